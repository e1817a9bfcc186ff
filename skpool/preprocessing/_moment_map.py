# SPDX-License-Identifier: BSD-3-Clause
"""What the row steps share that learn moments: fit, partial_fit, forget and merge, written once.

Such a step keeps the exact moments of its rows (`skpool.statistics`) and solves for what it needs
when it is next used. So learning in parts, on several machines, or with rows taken away again
gives what one fit gives.
"""

from typing import Any, Self

from sklearn.base import _fit_context
from sklearn.utils import Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpool.preprocessing._base import BaseRowMap, rows_of
from skpool.statistics import RunningMoments
from skpool.stores import TokenArray
from skpool.utils import ArrayLike, unchanged_on_error

__all__ = ["BaseMomentMap"]


def _learns_in_parts(step: "BaseMomentMap") -> bool:
    step._refuse_parts()
    return True


class BaseMomentMap(BaseRowMap):
    """Base of the row steps whose state is moments.

    A subclass writes `_solve` and `_map`, which takes what was solved for from `_solved`, and
    says what is kept: `_scatter`, and `_observed` where that is not the rows themselves.

    Attributes
    ----------
    moments_ : RunningMoments
        Everything that was learned.
    """

    # All products of features, or the squares alone ("diag").
    _scatter = "full"
    _min_samples = 2
    # Parameters that decide what the moments are taken of.
    _moment_parameters: tuple[str, ...] = ()

    @available_if(_learns_in_parts)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike | TokenArray, y: object = None) -> Self:
        """Add rows to those learned from.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Or tokens, as in `fit`.
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
            If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            first = not hasattr(self, "moments_")
            X = self._checked_to_learn(X, reset=first)
            self._check_parameters(self.n_features_in_)
            if not first:
                self._check_more(X)
            new = self._moments_of(X)
            self.moments_, self._solution = new if first else self.moments_ + new, None
        return self

    @available_if(_learns_in_parts)
    def forget(self, X: ArrayLike | TokenArray) -> Self:
        """Remove rows from those learned from.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Rows, or tokens, that were given to `fit` or `partial_fit`.

        Returns
        -------
        self : estimator
            If the call fails, the estimator stays as it was.
        """
        check_is_fitted(self)
        X = self._checked_to_learn(X, reset=False)
        self.moments_, self._solution = self.moments_ - self._moments_of(X), None
        return self

    @available_if(_learns_in_parts)
    def merge(self, other: Self) -> Self:
        """Add the rows that another step of the same kind learned from.

        Parameters
        ----------
        other : estimator of the same class
            Fitted to as many features; not changed.

        Returns
        -------
        self : estimator
            If the call fails, the estimator stays as it was.
        """
        check_is_fitted(self)
        who = type(self).__name__
        if type(other) is not type(self):
            raise TypeError(f"other must be a {who}, got {type(other).__name__}.")
        check_is_fitted(other)
        if other.n_features_in_ != self.n_features_in_:
            raise ValueError(
                f"other was fitted on {other.n_features_in_} features and this {who} on "
                f"{self.n_features_in_}; merge steps of one width."
            )
        for name in self._moment_parameters:
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"other has {name}={getattr(other, name)!r} and this {who} "
                    f"{getattr(self, name)!r}, so their moments are of different rows; merge "
                    "steps of equal parameters."
                )
        self.moments_, self._solution = self.moments_ + other.moments_, None
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "moments_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        return tags

    @property
    def n_samples_seen_(self) -> int:
        """Rows learned from."""
        return round(self._held("n_samples_seen_").n_samples)

    @property
    def _solved(self) -> Any:
        """What `_solve` gives of all rows held."""
        check_is_fitted(self)
        if self._solution is None:
            self._solution = self._solve_now()
        return self._solution

    def _held(self, name: str) -> RunningMoments:
        """The moments, for a fitted attribute: none exists before fit, as hasattr must say."""
        if not hasattr(self, "moments_"):
            raise AttributeError(f"This {type(self).__name__} is not fitted, so it has no {name}.")
        return self.moments_

    def _check_ready(self) -> None:
        check_is_fitted(self)

    def _learn(self, X: ArrayLike | TokenArray) -> None:
        self.moments_ = self._moments_of(X)
        self._solution = self._solve_now(X)

    def _solve_now(self, X: ArrayLike | TokenArray | None = None) -> Any:
        n = self.n_samples_seen_
        if n < self._min_samples:
            raise ValueError(
                f"{type(self).__name__} holds n_samples={n} and needs at least "
                f"{self._min_samples}; give more rows to learn from."
            )
        return self._solve(X)

    # For subclasses.

    def _refuse_parts(self) -> None:
        """Raise AttributeError where the parameters need all rows at once."""

    def _check_more(self, X: ArrayLike | TokenArray) -> None:
        """Refuse checked data that do not go with those learned from."""

    def _moments_of(self, X: ArrayLike | TokenArray) -> RunningMoments:
        # In float64: what is divided by, or cut off, are the smallest of the products.
        moments = RunningMoments(self._scatter, product_dtype="float64")
        for rows in rows_of(X):
            moments.update(self._observed(rows))
        return moments

    def _observed(self, rows: ArrayLike) -> ArrayLike:
        """What the moments of rows (m, d) are taken of."""
        return rows

    def _solve(self, X: ArrayLike | TokenArray | None) -> Any:
        """What `_map` needs, from the moments; X holds the rows of `fit` and is None after it."""
        raise NotImplementedError
