# SPDX-License-Identifier: BSD-3-Clause
"""A shared scatter held as rows whose products it is, while these are fewer than the features.

Few rows are smaller than the square of their width, and a ridge regression on them is solved by
their Gram matrix. So `ClassMoments` starts out with centred rows, and multiplies them when they
reach the width, or when somebody asks for the matrix.
"""

from typing import NamedTuple

import numpy as np
import torch

from skpool.statistics._kernels import batch_moments
from skpool.statistics._open_scatter import OpenScatter
from skpool.statistics._symmetric_products import outer_sum
from skpool.utils import ArrayLike, as_tensor

__all__ = ["RowScatter", "batch_rows"]


class RowScatter(NamedTuple):
    """The scatter ``rows.T @ rows``.

    Attributes
    ----------
    parts : tuple of ndarray of shape (n_rows, n_features)
        The rows, float64, as they came.
    width : int
        Number of features.
    """

    parts: tuple[np.ndarray, ...]
    width: int

    def __len__(self) -> int:
        """Number of rows."""
        return sum(len(part) for part in self.parts)

    def rows(self, *more: np.ndarray) -> np.ndarray:
        """Return all rows, and more below them."""
        return np.concatenate([np.zeros((0, self.width)), *self.parts, *more])

    def closed(self) -> np.ndarray:
        """Return the scatter, (n_features, n_features)."""
        return outer_sum(self.rows())

    def opened(self, counts: np.ndarray, means: np.ndarray, dtype: torch.dtype) -> OpenScatter:
        """Return the same around the means as `dtype` rounds them, for a stream to add to."""
        points = torch.from_numpy(means).to(dtype).double().numpy()
        excess = (means - points) * np.sqrt(counts)[:, None]
        return OpenScatter(torch.from_numpy(outer_sum(self.rows(excess))), None, points)

    def joined(self, other: "RowScatter", between: np.ndarray) -> "RowScatter | None":
        """Return both together with rows between their means; None where they are too many."""
        parts = (*self.parts, *other.parts, between[between.any(axis=1)])
        both = RowScatter(tuple(part for part in parts if len(part)), self.width)
        return both if len(both) < self.width else None


def batch_rows(
    X: ArrayLike, codes: np.ndarray, n_classes: int, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, RowScatter]:
    """Return counts, means and scatter of the classes of one batch, as `batch_moments` does.

    Parameters
    ----------
    X : ndarray or tensor of shape (n_samples, n_features)
        Fewer rows than features.
    codes : ndarray of shape (n_samples,)
        Class of each row, 0 to n_classes - 1.
    n_classes : int
    weights : ndarray of shape (n_samples,) or None

    Returns
    -------
    counts : ndarray of shape (n_classes,)
    means : ndarray of shape (n_classes, n_features)
    scatter : RowScatter
    """
    width = X.shape[1]
    counts, means, _ = batch_moments(
        X,
        codes,
        reference=np.full((n_classes, width), np.nan),
        weights=weights,
        scatter="shared_diag",
    )
    rows = as_tensor(X).cpu().double().numpy() - means[codes]
    if weights is not None:
        rows *= np.sqrt(weights)[:, None]
    # The only row of a class is its mean.
    return counts, means, RowScatter((rows[rows.any(axis=1)],), width)
