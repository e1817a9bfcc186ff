# SPDX-License-Identifier: BSD-3-Clause
"""TransductiveMixin: supports and queries in, everything that users call out.

A transductive classifier decides about all queries of an episode together. It writes one hook,
`_solve`, for a batch of episodes; one episode is a batch of one. What is here turns that into
`fit` with unlabelled rows, `predict_transductive`, and predictions for many episodes at once.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin
from skpool.few_shot._kernels import squared_distances
from skpool.model_selection import EpisodeBatch
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_labels,
    full_float32,
    row_batches,
    side_by_side,
    unchanged_on_error,
    validate_vectors,
    widened,
)

__all__ = ["Solved", "TransductiveMixin"]

# The label of a row that has none, as scikit-learn's semi-supervised estimators have it.
_UNLABELLED = -1
# Rows scored at a time.
_BLOCK_ROWS = 8192


class Solved(NamedTuple):
    """What `_solve` makes of a batch of E episodes."""

    # (E, n_q, N); rows of padding are of no interest.
    log_proba: torch.Tensor
    # Gives (E, N, d), in the space where `_scores` compares; called by `fit` alone.
    prototypes: Callable[[], torch.Tensor]
    # Other fitted attributes by name; the first axis is that of the episodes.
    attributes: Mapping[str, torch.Tensor] = MappingProxyType({})


def _is_unlabelled(y: np.ndarray) -> np.ndarray:
    """Tell which rows are queries; text, booleans and unsigned integers have no -1."""
    return y == _UNLABELLED if y.dtype.kind in "if" else np.zeros(len(y), dtype=bool)


def _check_supports(batch: EpisodeBatch) -> None:
    numbers = torch.arange(batch.n_way, device=batch.ys.device)
    missing = ~(batch.ys[..., None] == numbers).any(dim=1)
    if bool(missing.any()):
        episode, number = missing.nonzero()[0].tolist()
        raise ValueError(
            f"Class {number} of episode {episode} has no support; give at least one row of every "
            "class."
        )


class TransductiveMixin(ClassScoresMixin):
    """Mixin for classifiers that decide about all queries of an episode together.

    Notes
    -----
    A subclass writes `_solve(batch)`, which returns a `Solved`, reads parameters alone, and lets
    queries that are masked change nothing; where the fitted prototypes are not compared by
    squared Euclidean distances it writes `_scores(rows, prototypes)` too. `_batch_bytes` says how
    many bytes of rows are best worked on at a time on a CPU, `_squares_rows` that squares of rows
    are taken in their own type, so that rows are refused where these leave its range.
    `_takes_all_threads` says that `_solve` is a few large products, which threads share; else each
    thread solves episodes of its own.
    """

    _squares_rows: ClassVar[bool] = True
    _takes_all_threads: ClassVar[bool] = False

    # Fewer episodes would stay nearer to the processor, and cost more in steps of Python.
    _batch_bytes = 2**23

    def _solve(self, batch: EpisodeBatch) -> Solved:
        raise NotImplementedError

    def _scores(self, rows: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        """Return scores (n, N) of rows by themselves."""
        return -squared_distances(rows, prototypes)

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object) -> Self:
        """Learn from labelled rows, and decide about the unlabelled ones among them.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors of the supports, and of the queries if they are known already.
        y : array-like of shape (n_samples,)
            Class labels of the supports, and -1 for a query. Labels that are text, booleans or
            unsigned integers are all labels of supports.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            X = validate_vectors(self, X, squares=self._squares_rows)
            y = check_labels(y, n_samples=len(X))
            self._fit_checked(widened(as_tensor(X)), y)
        return self

    def _fit_checked(self, X: torch.Tensor, y: np.ndarray) -> None:
        queries = _is_unlabelled(y)
        if queries.all():
            raise ValueError(
                "y holds no label but -1, which says that a row has none; give at least one "
                "labelled row per class."
            )
        supports, queries = np.flatnonzero(~queries), np.flatnonzero(queries)
        Xs, Xq = (X[torch.from_numpy(rows).to(X.device)] for rows in (supports, queries))
        self.support_, self.support_labels_ = Xs.cpu().numpy(), y[supports]
        self.classes_, codes = np.unique(y[supports], return_inverse=True)
        solved = self._solve_one(Xs, Xq)
        self.prototypes_ = solved.prototypes()[0].cpu().numpy()
        for name, values in solved.attributes.items():
            # A number an episode becomes a number.
            value = values[0].cpu()
            setattr(self, name, value.numpy() if value.ndim else value.item())
        proba = np.empty((len(y), len(self.classes_)), dtype=self.support_.dtype)
        proba[supports] = np.eye(len(self.classes_))[codes]
        proba[queries] = solved.log_proba[0].exp().cpu().numpy()
        self.label_distributions_ = proba
        self.transduction_ = self.classes_[proba.argmax(axis=1)]

    def _solve_one(self, Xs: torch.Tensor, Xq: torch.Tensor) -> Solved:
        codes = np.searchsorted(self.classes_, self.support_labels_)
        ys = torch.from_numpy(codes).to(Xs.device)
        batch = EpisodeBatch(Xs[None], ys[None], Xq[None], n_way=len(self.classes_))
        with torch.no_grad(), full_float32():
            return self._solve(batch)

    def predict_proba_transductive(self, Xq: ArrayLike) -> np.ndarray:
        """Return class probabilities of queries that are decided about together.

        Parameters
        ----------
        Xq : array-like or tensor of shape (n_queries, n_features)
            All queries of the episode; those of `fit` have no part in it.

        Returns
        -------
        probabilities : ndarray of shape (n_queries, n_classes)
            Columns in the order of `classes_`. A row depends on all queries.
        """
        check_is_fitted(self)
        Xq = widened(as_tensor(validate_vectors(self, Xq, reset=False, squares=self._squares_rows)))
        solved = self._solve_one(torch.from_numpy(np.array(self.support_)).to(Xq), Xq)
        return solved.log_proba[0].exp().cpu().numpy()

    def predict_transductive(self, Xq: ArrayLike) -> np.ndarray:
        """Return labels of queries that are decided about together.

        Parameters
        ----------
        Xq : array-like or tensor of shape (n_queries, n_features)
            All queries of the episode; those of `fit` have no part in it.

        Returns
        -------
        y : ndarray of shape (n_queries,)
            A label depends on all queries; `predict` decides about rows one by one.
        """
        best = self.predict_proba_transductive(Xq).argmax(axis=1)
        return self.classes_[best]

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return how near rows are to the fitted prototypes, each row by itself.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`.
        """
        check_is_fitted(self)
        X = as_tensor(validate_vectors(self, X, reset=False, squares=self._squares_rows))
        dtype = widened(X[:0]).dtype
        prototypes = torch.from_numpy(np.array(self.prototypes_)).to(X.device, dtype)
        row_bytes = 8 * (3 * X.shape[1] + 3 * len(prototypes))
        blocks = row_batches(len(X), row_bytes, most=_BLOCK_ROWS)
        with full_float32():
            parts = [self._scores(widened(X[rows]), prototypes) for rows in blocks]
        return torch.cat(parts).cpu().numpy()

    def predict_proba_episodes(self, batch: EpisodeBatch) -> torch.Tensor:
        """Return class probabilities of the queries of many episodes.

        Parameters
        ----------
        batch : EpisodeBatch
            Supports and queries. Nothing fitted is read or written.

        Returns
        -------
        probabilities : tensor of shape (n_episodes, n_queries, n_classes)
            Columns in the order of the local numbers of the classes.
        """
        return self._log_proba(batch).exp_()

    def predict_episodes(self, batch: EpisodeBatch) -> torch.Tensor:
        """Return the classes of the queries of many episodes.

        Parameters
        ----------
        batch : EpisodeBatch
            Supports and queries. Nothing fitted is read or written.

        Returns
        -------
        numbers : tensor of shape (n_episodes, n_queries)
            Local numbers of the classes.
        """
        # Of a few classes this is faster than argmax.
        return self._log_proba(batch).max(dim=2).indices

    def _log_proba(self, batch: EpisodeBatch) -> torch.Tensor:
        """Solve a few episodes at a time, so that they stay in the cache of a processor."""
        self._validate_params()
        _check_supports(batch)
        with torch.no_grad(), full_float32():
            if batch.ys.device.type != "cpu":
                return self._solve(batch).log_proba
            # Classes before queries in memory, as they are solved for.
            out = torch.empty(len(batch), batch.n_way, batch.n_query, dtype=batch.dtype).mT

            def solve(part: slice) -> None:
                found = out[part]
                for few, episodes in batch[part].parts(self._batch_bytes):
                    found[few] = self._solve(episodes).log_proba

            if self._takes_all_threads:
                solve(slice(0, len(batch)))
            else:
                side_by_side(solve, len(batch))
        return out
