# SPDX-License-Identifier: BSD-3-Clause
"""IncrementalMixin: the verbs of learning in parts, each of which happens wholly or not at all.

It checks a batch, calls what the estimator does with it, and puts every attribute back if anything
failed. What is learned, and how, is the estimator's.
"""

from collections.abc import Iterable
from typing import ClassVar, Self

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.base import _fit_context, clone
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from skpool.utils import (
    ArrayLike,
    check_labels,
    check_squares,
    joined_labels,
    unchanged_on_error,
    validate_vectors,
)

__all__ = ["IncrementalMixin", "learns_in_parts"]


def learns_in_parts(estimator: "IncrementalMixin") -> bool:
    """Whether samples can come and go after `fit`; the estimator says why not."""
    return estimator._check_learns_in_parts()


def _fitted(
    empty: "IncrementalMixin", X: ArrayLike, y: object, sample_weight: object = None
) -> "IncrementalMixin":
    # Not `fit`: solving for weights that the next merge makes stale would be lost work.
    weights = {} if sample_weight is None else {"sample_weight": sample_weight}
    return clone(empty).partial_fit(X, y, **weights)


class IncrementalMixin:
    """Mixin for classifiers whose state grows, shrinks and merges by exact updates.

    `fit` is reset and update; `partial_fit` is update. New labels may arrive in any call,
    `classes_` is sorted at all times, and a call that fails, `fit` on a fitted estimator
    included, leaves every attribute as it was.

    Notes
    -----
    A subclass writes the hooks `_reset()` (start empty), `_update(X, y, sample_weight)`,
    `_seen_classes()` (labels that hold samples, sorted) and, where it can undo and combine,
    `_forget(X, y, sample_weight)`, `_forget_class(label)`, `_merge(other)` and
    `_map_to(mapped, A, b)`. It names in `_solved_parameters` those that decide what is solved for
    and predicted, not what is learned. A hook replaces attributes rather than changing what they
    hold, or changes one object, in one step that itself happens wholly or not at all, as its last
    act; `_refresh` recomputes what is derived. `_squares_rows` says that squares of rows are taken
    in their own type, so that rows are refused where these overflow.
    """

    _solved_parameters: ClassVar[frozenset[str]] = frozenset()
    _squares_rows: ClassVar[bool] = False

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object, sample_weight: object = None) -> Self:
        """Learn from these samples alone.

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
        return self._learn(X, y, None, sample_weight, reset=True)

    @available_if(learns_in_parts)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: ArrayLike, y: object, classes: object = None, sample_weight: object = None
    ) -> Self:
        """Learn from these samples on top of all earlier ones.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels; labels never seen before are welcome in any call.
        classes : array-like of shape (n_classes,), default=None
            Labels to announce before they have samples. They are listed in `classes_` and are
            never predicted until a sample arrives. Not required.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0; a sample of weight 0 counts as absent.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        return self._learn(X, y, classes, sample_weight, reset=not hasattr(self, "classes_"))

    @available_if(learns_in_parts)
    def fit_blocks(self, blocks: Iterable[tuple], *, n_jobs: int | None = None) -> Self:
        """Learn from blocks of samples that need never be in memory together.

        Parameters
        ----------
        blocks : iterable of tuples (X, y) or (X, y, sample_weight)
            Read one after the other, such as parts of memory-mapped files; with `n_jobs`, a few
            blocks ahead.
        n_jobs : int, default=None
            Blocks learned at the same time, in joblib's workers, see
            :class:`joblib.Parallel`. A worker returns what it learned, not rows.

        Returns
        -------
        self : estimator
            Fitted on all blocks as `fit` would have been on their rows, to rounding. If the call
            fails, the estimator stays as it was.
        """
        empty = clone(self)
        learned = Parallel(n_jobs=n_jobs, return_as="generator")(
            delayed(_fitted)(empty, *block) for block in blocks
        )
        total = next(learned, None)
        if total is None:
            raise ValueError("blocks is empty; give at least one tuple of X and y.")
        for part in learned:
            total.merge(part)
        parameters = self.get_params(deep=False)
        for name in vars(self).keys() - parameters.keys():
            delattr(self, name)
        vars(self).update({k: v for k, v in vars(total).items() if k not in parameters})
        return self

    @available_if(learns_in_parts)
    def forget(self, X: ArrayLike, y: object, sample_weight: object = None) -> Self:
        """Remove samples that were learned, as if they had never been seen.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            The feature vectors as they were learned.
        y : array-like of shape (n_samples,)
            Their labels.
        sample_weight : array-like of shape (n_samples,), default=None
            The weights that they were learned with.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        check_is_fitted(self)
        with unchanged_on_error(self):
            X, y, sample_weight = self._check_batch(X, y, sample_weight, reset=False)
            self._check_seen(y)
            self._forget(X, y, sample_weight)
            self._refresh()
        return self

    @available_if(learns_in_parts)
    def forget_class(self, label: object) -> Self:
        """Remove a class with all its samples.

        Parameters
        ----------
        label : int, bool or str
            A label in `classes_`.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        check_is_fitted(self)
        if label not in self.classes_.tolist():
            raise ValueError(
                f"label={label!r} is not a known class; the {len(self.classes_)} classes are "
                "listed in `classes_`."
            )
        with unchanged_on_error(self):
            self._announced = self._announced[self._announced != label]
            if label in self._seen_classes().tolist():
                self._forget_class(label)
            self._refresh()
        return self

    @available_if(learns_in_parts)
    def merge(self, other: Self) -> Self:
        """Add what another estimator has learned, as if its samples had been learned here.

        Parameters
        ----------
        other : estimator of the same class
            Fitted on vectors of the same width with labels of the same type; not changed.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        check_is_fitted(self)
        if type(other) is not type(self):
            raise TypeError(
                f"other must be a {type(self).__name__}, got {type(other).__name__}; merge "
                "estimators of one class."
            )
        check_is_fitted(other)
        if other.n_features_in_ != self.n_features_in_:
            raise ValueError(
                f"other was fitted on {other.n_features_in_} features and this estimator on "
                f"{self.n_features_in_}; merge estimators of one width."
            )
        with unchanged_on_error(self):
            joined_labels(self.classes_, other.classes_)
            self._announced = joined_labels(self._announced, other._announced)
            self._merge(other)
            self._refresh()
        return self

    @available_if(lambda self: self._can_map())
    def affine(self, A: np.ndarray, b: np.ndarray) -> Self:
        """Return the classifier that would have learned ``X @ A + b`` in place of X.

        Parameters
        ----------
        A : ndarray of shape (n_features, n_features_out)
            Linear map.
        b : ndarray of shape (n_features_out,)
            Offset.

        Returns
        -------
        mapped : estimator
            A new one; this one stays as it is.
        """
        check_is_fitted(self)
        mapped = clone(self)
        mapped.n_features_in_ = A.shape[1]
        mapped._announced = self._announced
        self._map_to(mapped, A, b)
        mapped._refresh()
        return mapped

    def _check_learns_in_parts(self) -> bool:
        """Return True; subclasses raise AttributeError where their parameters need all rows."""
        return True

    def _learning_sees_nan(self) -> bool:
        """Tell whether NaN and infinity in X show in what is learned, without another read."""
        return False

    def _can_map(self) -> bool:
        """Tell whether what was learned can be mapped; subclasses narrow it."""
        return True

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_") and len(self._seen_classes()) > 0

    def _learn(
        self, X: ArrayLike, y: object, classes: object, sample_weight: object, *, reset: bool
    ) -> Self:
        with unchanged_on_error(self):
            X, y, sample_weight = self._check_batch(X, y, sample_weight, reset=reset)
            if reset:
                self._announced = np.empty(0, dtype=y.dtype)
                self._reset()
            else:
                joined_labels(self.classes_, y)
            if classes is not None and len(classes) > 0:
                announced = check_labels(classes, n_samples=len(classes))
                joined_labels(y, announced)
                self._announced = joined_labels(self._announced, announced)
            self._update(X, y, sample_weight)
            self._refresh()
        return self

    def _check_batch(
        self, X: ArrayLike, y: object, sample_weight: object, *, reset: bool
    ) -> tuple[ArrayLike, np.ndarray, np.ndarray | None]:
        """Check rows, labels and weights; rows of weight 0 are left out."""
        X = validate_vectors(self, X, reset=reset, finite=not self._learning_sees_nan())
        if self._squares_rows:
            check_squares(X, vanishing=False)
        y = check_labels(y, n_samples=len(X))
        if sample_weight is None:
            return X, y, None
        if isinstance(sample_weight, torch.Tensor):
            sample_weight = sample_weight.cpu().numpy()
        weights = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
        kept = np.flatnonzero(weights)
        if len(kept) == 0:
            raise ValueError("sample_weight is 0 for every sample; give a positive weight.")
        if len(kept) < len(weights):
            X = X[torch.from_numpy(kept).to(X.device) if isinstance(X, torch.Tensor) else kept]
        return X, y[kept], weights[kept]

    def _check_seen(self, y: np.ndarray) -> None:
        seen = self._seen_classes()
        joined_labels(seen, y)
        unknown = np.setdiff1d(y, seen).tolist()
        if unknown:
            raise ValueError(
                f"y holds the label {unknown[0]!r}, of which no sample was learned; give only "
                "samples that were."
            )

    def _refresh(self) -> None:
        """Recompute what follows from the state; subclasses extend it."""
        self.classes_ = joined_labels(self._seen_classes(), self._announced)
