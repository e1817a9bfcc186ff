# SPDX-License-Identifier: BSD-3-Clause
"""What the classifiers of this room share: class means as state, scores block by block.

`ClassMeansMixin` stands under the classifiers with one vector per class; `row_blocks` and
`scores_of` are how all of them read rows, `NumberedClassesMixin` is how some of them remember in
which order classes came.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import torch
from scipy.special import softmax

from skpool.base import ClassScoresMixin, MomentsMixin, spread_columns
from skpool.utils import ArrayLike, full_float32, row_batches, unchanged_on_error, widened

__all__ = ["ClassMeansMixin", "NumberedClassesMixin", "row_blocks", "scores_of", "wide_tensor"]

# Rows scored at a time: what is made of them takes tens of megabytes, and threads meet seldom.
_BLOCK_ROWS = 8192


def wide_tensor(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Return an array in float64 where the rows lie; Apple's GPUs have float32 at most."""
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    return torch.from_numpy(np.array(values)).to(device=like.device, dtype=dtype)


def row_blocks(X: torch.Tensor, *, n_outputs: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield blocks of rows, as float32 or float64, that fit the working memory with outputs."""
    row_bytes = 8 * (3 * X.shape[1] + 3 * n_outputs)
    for block in row_batches(len(X), row_bytes, most=_BLOCK_ROWS):
        yield block, widened(X[block])


def scores_of(
    X: torch.Tensor, score: Callable[[torch.Tensor], torch.Tensor], *, n_outputs: int
) -> np.ndarray:
    """Return ``score(rows)`` of all rows, computed block by block, on the host."""
    with full_float32():
        parts = [score(rows) for _, rows in row_blocks(X, n_outputs=n_outputs)]
    return torch.cat(parts).cpu().numpy()


class ClassMeansMixin(ClassScoresMixin, MomentsMixin):
    """Mixin for classifiers with one vector per class and a softmax of their scores.

    Notes
    -----
    A subclass has the parameter `temperature`, and its `_solve()` returns something with
    `prototypes`, of shape (n_seen, n_features), for the classes that hold samples.
    """

    @property
    def counts_(self) -> np.ndarray:
        """Samples, or sums of sample weights, of the classes."""
        self._known("counts_")
        return self._of_classes(self.moments_.counts_, fill=0.0)

    @property
    def prototypes_(self) -> np.ndarray:
        """The vectors of the classes; NaN for a class without samples."""
        return self._of_classes(self._known("prototypes_").prototypes, fill=np.nan)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the softmax of the scores times `temperature`.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Rows sum to 1; columns in the order of `classes_`.
        """
        return softmax(self.temperature * self._decisive_scores(X), axis=1)

    def _warn_of_zero_means(self, means: np.ndarray) -> None:
        known = means.any(axis=1)
        if not known.all():
            empty = self.moments_.classes_[~known].tolist()
            warnings.warn(
                f"The mean of class {empty[0]!r} is zero, so its cosine with every sample is 0.",
                UserWarning,
                stacklevel=2,
            )

    def _of_classes(self, rows: np.ndarray, *, fill: float) -> np.ndarray:
        """Place rows of the classes that hold samples among those of all classes."""
        held = self.moments_.classes_
        return spread_columns(np.atleast_2d(rows.T), held, self.classes_, fill=fill).T.reshape(
            len(self.classes_), *rows.shape[1:]
        )


class NumberedClassesMixin(MomentsMixin):
    """Mixin for classifiers in which every class has a number from when its first sample came.

    A class keeps its number as long as it holds samples.

    Notes
    -----
    A subclass writes `_numbered(new, numbers)`, which returns the numbers of new labels, given
    those of the labels already there.
    """

    def fit_moments(self, moments: Any) -> Self:
        """Learn from moments that were computed elsewhere, forgetting what was learned before.

        Parameters
        ----------
        moments : ClassMoments
            Of the rows as this classifier would see them; not changed.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            self._reset()
            return super().fit_moments(moments)

    def _numbered(self, new: list, numbers: dict) -> list[int]:
        raise NotImplementedError

    def _numbers_held(self) -> np.ndarray:
        """Numbers of the classes that hold samples, in the order of their labels."""
        return np.array([self._numbers[c] for c in self.moments_.classes_.tolist()], dtype=np.intp)

    def _reset(self) -> None:
        super()._reset()
        self._numbers: dict = {}

    def _map_to(self, mapped: Self, A: np.ndarray, b: np.ndarray) -> None:
        super()._map_to(mapped, A, b)
        mapped._numbers = self._numbers

    def _refresh(self) -> None:
        super()._refresh()
        held = self.moments_.classes_.tolist()
        kept = {label: self._numbers[label] for label in held if label in self._numbers}
        new = [label for label in held if label not in kept]
        self._numbers = kept | dict(zip(new, self._numbered(new, kept), strict=True))
