# SPDX-License-Identifier: BSD-3-Clause
"""Symmetric products, of which one half is computed and the other copied.

Everything that adds ``rows.T @ rows`` to a matrix goes through here: the products of centred rows
and the terms between means.
"""

from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["MANY_MEANS", "add_outer", "add_product", "mirror", "outer_sum", "panels"]

# The terms between means are multiplied in float32 from so many rows on.
MANY_MEANS = 512
# Columns of a symmetric product that a CPU computes together, from the diagonal on: panels leave
# out almost half of it and are still wide enough for the BLAS to run at full speed.
_PANEL = 96


def panels(d: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of the upper triangle, panel by panel; a GPU takes all at once."""
    step = _PANEL if device.type == "cpu" else d
    for start in range(0, d, step):
        yield slice(start, start + step), slice(start, d)


def add_product(gram: torch.Tensor, rows: torch.Tensor, weighted: torch.Tensor) -> None:
    """Add ``rows.T @ weighted`` to the upper triangle; what is below it is not used."""
    for above, right in panels(rows.shape[1], rows.device):
        target = gram[above, right]
        if gram.dtype == rows.dtype:
            target.addmm_(rows[:, above].T, weighted[:, right])
        else:
            target += rows[:, above].T @ weighted[:, right]


def mirror(matrix: torch.Tensor) -> None:
    """Copy the upper triangle to the lower one, panel by panel: few rows stay in the cache."""
    d = len(matrix)
    for start in range(0, d, _PANEL):
        stop = min(start + _PANEL, d)
        square = matrix[start:stop, start:stop]
        # What rounding left between the halves of a square on the diagonal goes the same way.
        square.copy_(square.triu() + square.triu(1).T)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T


def add_outer(
    matrix: np.ndarray,
    rows: np.ndarray,
    *,
    sign: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Add ``sign * rows.T @ rows`` to a symmetric float64 matrix, in its memory.

    Of the matrix only the panels that `panels` yields need to be there; all of it is in the end.
    Products are in `dtype` where that saves time.
    """
    if len(rows) <= MANY_MEANS:
        dtype = torch.float64
    # Not by numpy, whose threads and torch's would wait for each other.
    tensor = torch.from_numpy(np.ascontiguousarray(rows)).to(dtype)
    target = torch.from_numpy(matrix)
    if len(rows):
        add_product(target, tensor, tensor * sign)
    mirror(target)


def outer_sum(rows: np.ndarray, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """Return ``rows.T @ rows`` in float64, multiplied in `dtype` where that saves time."""
    total = np.zeros((rows.shape[1], rows.shape[1]))
    add_outer(total, rows, dtype=dtype)
    return total
