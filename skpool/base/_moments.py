# SPDX-License-Identifier: BSD-3-Clause
"""MomentsMixin: classifiers that are functions of the moments of the classes.

Learning touches the moments alone; what predictions are made of is solved for when one is asked.
"""

from typing import Any, Self

import numpy as np
from sklearn.base import clone
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpool.base._incremental import IncrementalMixin, learns_in_parts
from skpool.statistics import largest_difference
from skpool.utils import ArrayLike, row_batches, unchanged_on_error

__all__ = ["MomentsMixin"]


class MomentsMixin(IncrementalMixin):
    """Mixin for classifiers that are functions of the moments of the classes.

    It keeps `moments_` and updates, downdates, merges and maps them; what follows from them is
    solved for when it is next needed.

    Notes
    -----
    A subclass writes `_new_moments()`, empty moments of the kind that it needs, and `_solve()`,
    which returns what predictions are made of and is called through `_solved`. Where rows are
    changed before they are learned it writes `_prepared(rows)`, and `_prepared_row_bytes()` so
    that no more rows are prepared at a time than fit the working memory.

    One with a parameter `refit_every`, a number of rows, solves again only when more rows than
    that came since, when a class got its first row, or after anything but `partial_fit`. Where it
    compares what was solved for with the moments, it takes `_solved_anew`.
    """

    _solution: Any = None
    # Rows learned since the solution was made, and whether it may stay after what was just learned.
    _rows_behind: int = 0
    _solution_stays: bool = False

    def fit(self, X: ArrayLike, y: object, sample_weight: object = None) -> Self:
        """Learn from these samples alone, and solve at once.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0; a sample of weight 0 counts as absent.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            super().fit(X, y, sample_weight)
            _ = self._solved
        return self

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
        empty = self._new_moments()
        if type(moments) is not type(empty):
            raise TypeError(
                f"moments must be a {type(empty).__name__}, got {type(moments).__name__}; use fit "
                "for rows."
            )
        if not len(moments.classes_):
            raise ValueError("moments hold no rows; call their update first.")
        with unchanged_on_error(self):
            self._announced = moments.classes_[:0]
            self.n_features_in_ = moments.n_features_in_
            self.moments_ = moments.copy()
            self._refresh()
            _ = self._solved
        return self

    @available_if(learns_in_parts)
    def certify(self, X: ArrayLike, y: object, sample_weight: object = None) -> float:
        """Compare with a fresh fit on the samples that should be all that is left.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            The samples learned and not forgotten.
        y : array-like of shape (n_samples,)
            Their labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Their weights.

        Returns
        -------
        difference : float
            The largest difference between the two states: of counts, means and scatters, each
            relative to the largest number of its kind. About 1e-13 after forgetting with products
            in float64, 1e-7 with float32; infinite where the classes differ.
        """
        check_is_fitted(self)
        fresh = clone(self).partial_fit(X, y, sample_weight=sample_weight)
        return largest_difference(self.moments_, fresh.moments_)

    @property
    def _solved(self) -> Any:
        if self._solution is None:
            self._solution, self._rows_behind = self._solve(), 0
        return self._solution

    @property
    def _solved_anew(self) -> Any:
        """What follows from all rows learned, where predictions may lag behind."""
        if self._rows_behind:
            self._solution = None
        return self._solved

    def _known(self, name: str) -> Any:
        """What was solved for, for a fitted attribute: none exists before fit, as hasattr says."""
        if not hasattr(self, "moments_"):
            raise AttributeError(f"This {type(self).__name__} is not fitted, so has no {name!r}.")
        return self._solved

    def _new_moments(self) -> Any:
        raise NotImplementedError

    def _solve(self) -> Any:
        raise NotImplementedError

    def _prepared(self, X: ArrayLike) -> ArrayLike:
        """Rows as the moments see them."""
        return X

    def _prepared_row_bytes(self) -> int:
        """Memory that preparing one row takes; 0 where rows are taken as they come."""
        return 0

    def _learning_sees_nan(self) -> bool:
        # Prepared rows are other rows, in other blocks: what is wrong in X would be misnamed.
        return self._prepared_row_bytes() == 0

    def _changed(
        self, method: str, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None
    ) -> Any:
        """Return a copy of the moments that was updated or downdated, block by block."""
        moments = self.moments_.copy()
        for part in row_batches(len(X), self._prepared_row_bytes()):
            weights = None if sample_weight is None else sample_weight[part]
            getattr(moments, method)(self._prepared(X[part]), y[part], weights)
        return moments

    def _seen_classes(self) -> np.ndarray:
        return self.moments_.classes_

    def _reset(self) -> None:
        self.moments_ = self._new_moments()

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        known = self.moments_.classes_
        self.moments_ = self._changed("update", X, y, sample_weight)
        self._rows_behind += len(y)
        most = getattr(self, "refit_every", None)
        # A solution has nothing for a class that it did not see.
        new = len(self.moments_.classes_) > len(known)
        self._solution_stays = most is not None and self._rows_behind <= most and not new

    def _forget(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        self.moments_ = self._changed("downdate", X, y, sample_weight)

    def _forget_class(self, label: object) -> None:
        self.moments_ = self.moments_.copy().forget_class(label)

    def _merge(self, other: Self) -> None:
        self.moments_ = self.moments_ + other.moments_

    def _map_to(self, mapped: Self, A: np.ndarray, b: np.ndarray) -> None:
        mapped.moments_ = self.moments_.affine(A, b)

    def _refresh(self) -> None:
        super()._refresh()
        if not self._solution_stays:
            self._solution = None
        self._solution_stays = False
