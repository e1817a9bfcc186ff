# SPDX-License-Identifier: BSD-3-Clause
"""Projecting tokens to fewer features before they are pooled: principal axes or random ones.

Second-order poolings give numbers in the square of the width, so they nearly always project first.
"""

import numpy as np
import torch
from scipy import linalg
from sklearn.utils import check_random_state

from skpool.statistics import RunningMoments
from skpool.utils import as_tensor, full_float32

__all__ = ["check_n_components", "principal_axes", "project_tokens", "random_axes"]


def check_n_components(n_components: int, n_features: int) -> int:
    """Return the number of components, or say that the tokens have not as many features."""
    if n_components > n_features:
        raise ValueError(
            f"n_components={n_components} is above the {n_features} features of a token; give at "
            f"most {n_features}."
        )
    return int(n_components)


def principal_axes(moments: RunningMoments, n_components: int) -> np.ndarray:
    """Directions of largest variance, (n_components, n_features), in float64.

    Their signs are such that the largest loading of each is positive.
    """
    d = len(moments.mean_)
    vectors = linalg.eigh(moments.scatter_, subset_by_index=(d - n_components, d - 1))[1]
    axes = vectors.T[::-1]
    largest = axes[np.arange(n_components), np.abs(axes).argmax(axis=1)]
    return np.ascontiguousarray(axes * np.where(largest < 0, -1.0, 1.0)[:, None])


def random_axes(n_components: int, n_features: int, *, random_state: object) -> np.ndarray:
    """Gaussian matrix (n_components, n_features) that keeps squared lengths on average."""
    rng = check_random_state(random_state)
    return rng.standard_normal((n_components, n_features)) / np.sqrt(n_components)


def project_tokens(
    tokens: torch.Tensor, *, components: np.ndarray, mean: np.ndarray | None = None
) -> torch.Tensor:
    """Tokens (n, L, d) as (n, L, k): ``(x - mean) @ components.T`` in their own float type."""
    axes = as_tensor(components).to(tokens)
    if mean is not None:
        # Before the product: a mean of many standard deviations would cost digits after it.
        tokens = tokens - as_tensor(mean).to(tokens)
    with full_float32():
        return tokens @ axes.T
