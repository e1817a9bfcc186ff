# SPDX-License-Identifier: BSD-3-Clause
"""The record of one batch of labelled rows, which `ClassMoments` then adds to its own or removes.

Here it is decided around which points rows are centred, in which type they are multiplied, and
whether they are multiplied at once or held as rows.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from skpool.statistics._checks import check_rows, check_weights, label_kind
from skpool.statistics._fingerprints import row_fingerprints
from skpool.statistics._kernels import batch_moments, higher_moments, resolve_product_dtype
from skpool.statistics._open_scatter import OpenScatter
from skpool.statistics._row_scatter import RowScatter, batch_rows
from skpool.statistics._state import Moments, take_moments
from skpool.utils import ArrayLike, as_tensor, check_labels

__all__ = ["Batch", "check_kind", "found_labels"]


def check_kind(held: np.ndarray, labels: np.ndarray) -> None:
    """Refuse labels that cannot be sorted among those held."""
    if len(held) and len(labels) and label_kind(held) != label_kind(labels):
        raise ValueError(
            f"The labels given are {label_kind(labels)} (dtype {labels.dtype}) and those "
            f"held are {label_kind(held)} (dtype {held.dtype}); use one kind of label."
        )


def found_labels(held: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the labels are held (sorted), and where."""
    if not len(held):
        return np.zeros(len(labels), dtype=bool), np.zeros(0, dtype=np.intp)
    at = np.minimum(np.searchsorted(held, labels), len(held) - 1)
    known = held[at] == labels
    return known, at[known]


@dataclass(frozen=True)
class Batch:
    """Checked rows with the codes of their labels."""

    X: ArrayLike
    classes: np.ndarray  # (C,), sorted
    codes: np.ndarray  # (n,)
    weights: np.ndarray | None
    dtype: torch.dtype  # of the products

    @classmethod
    def checked(
        cls,
        X: object,
        y: object,
        sample_weight: object,
        held: Moments | None,
        *,
        product_dtype: str,
        block_rows: int,
    ) -> "Batch":
        """Check what was handed over against what is held."""
        X = check_rows(X, None if held is None else held.means.shape[1])
        y = check_labels(y, n_samples=X.shape[0])
        weights = check_weights(sample_weight, X.shape[0])
        if held is not None:
            check_kind(held.classes, y)
        dtype = resolve_product_dtype(
            product_dtype,
            as_tensor(X[:1]).dtype,
            n_features=X.shape[1],
            block_rows=block_rows,
        )
        return cls(X, *np.unique(y, return_inverse=True), weights, dtype)

    def fits_as_rows(self, held: Moments) -> bool:
        """Tell whether these rows and those held are fewer than the features."""
        if not isinstance(held.scatter, RowScatter):
            return False
        # A class adds a row between its means.
        return len(held.scatter) + len(self.X) + len(self.classes) < held.scatter.width

    def record(
        self, held: Moments, scatter: str, *, block_rows: int, fourth_order: bool, fingerprint: bool
    ) -> Moments:
        """Return the moments of the batch, in the form that goes with what is held."""
        if self.fits_as_rows(held):
            found = batch_rows(self.X, self.codes, len(self.classes), self.weights)
        else:
            found = self._multiplied(held, scatter, block_rows)
        counts, means, total = found
        squares = counts if self.weights is None else np.bincount(self.codes, self.weights**2)
        batch = Moments(self.classes, counts, squares, means, total)
        if fourth_order:
            third, fourth = higher_moments(as_tensor(self.X), self.codes, means, self.weights)
            batch = replace(batch, third=third, fourth=fourth)
        if fingerprint:
            prints = row_fingerprints(self.X, self.codes, len(self.classes), self.weights)
            batch = replace(batch, fingerprints=prints)
        return take_moments(batch, counts > 0, scatter)

    def _multiplied(self, held: Moments, scatter: str, block_rows: int) -> tuple:
        reference = np.full((len(self.classes), self.X.shape[1]), np.nan)
        known, at = found_labels(held.classes, self.classes)
        if known.any():
            # An open scatter goes on around the points that it has.
            is_open = isinstance(held.scatter, OpenScatter)
            reference[known] = (held.scatter.points if is_open else held.means)[at]
        return batch_moments(
            self.X,
            self.codes,
            reference=reference,
            weights=self.weights,
            scatter=scatter,
            dtype=self.dtype,
            block_rows=block_rows,
        )
