# SPDX-License-Identifier: BSD-3-Clause
"""Pieces of ridge regression on centred sums that the heads of this room share."""

import numpy as np
import torch

from skpool.statistics import SymmetricFactor

__all__ = ["penalized", "row_leverages"]

# Rows whose centred copies in float64 are held at a time.
_BLOCK_ROWS = 4096


def penalized(scatter: np.ndarray, alpha: float, *, relative: bool) -> np.ndarray:
    """Return the scatter with a penalty on its diagonal, `relative` to its mean eigenvalue."""
    shifted = scatter.copy()
    shifted.flat[:: len(shifted) + 1] += alpha * (
        np.trace(scatter) / len(scatter) if relative else 1
    )
    return shifted


def row_leverages(rows: torch.Tensor, center: np.ndarray, factor: SymmetricFactor) -> np.ndarray:
    """Return the quadratic form of the inverse for every row around the center, (n,) float64."""
    parts = [factor.quad(part.cpu().double().numpy() - center) for part in rows.split(_BLOCK_ROWS)]
    return np.concatenate(parts)
