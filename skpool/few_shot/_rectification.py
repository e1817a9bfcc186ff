# SPDX-License-Identifier: BSD-3-Clause
"""PrototypeRectification: prototypes moved once by the queries that they attract.

The cheapest of the transductive classifiers: two products of the queries with a few vectors. Its
weights are those with which others start (`rectify=True`).
"""

from numbers import Integral, Real
from typing import ClassVar

import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval

from skpool.few_shot._base import Solved, TransductiveMixin
from skpool.few_shot._kernels import normalized, query_weights, support_weights
from skpool.model_selection import EpisodeBatch
from skpool.utils import unit_rows

__all__ = ["PrototypeRectification", "rectified_weights"]


class PrototypeRectification(TransductiveMixin, ClassifierMixin, BaseEstimator):
    r"""Transductive classifier by rectified prototypes (BD-CSPN).

    Class means of a few supports are moved by the queries of the same episode. (1) The queries
    are shifted so that their mean is that of the supports. (2) Every query is given the class k of
    the highest cosine to the class means, with weight :math:`w_k = \text{softmax}_k(\text{scale}
    \cdot \cos)`; supports keep their own class, weighted likewise. (3) The new prototype of a
    class is the weighted mean of the rows that were given to it. (4) The class of the highest
    cosine to the new prototypes is predicted [1]_.

    Rows of unit length around the mean of base classes are what the method was made for
    (:class:`~skpool.preprocessing.CenteredL2Normalizer` as a step before).

    Parameters
    ----------
    scale : float, default=10.0
        Factor of the cosines in the softmax. 0 gives all rows of a class the same weight.
    shift : bool, default=True
        Whether the queries are shifted to the mean of the supports. That is right if both have
        the same mix of classes.
    n_iter : int, default=1
        How often steps 2 and 3 are done.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels of the supports, sorted.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X had text column names.
    prototypes_ : ndarray of shape (n_classes, n_features)
        The rectified prototypes; the class means where `fit` saw no queries.
    support_ : ndarray of shape (n_supports, n_features)
        The labelled rows.
    support_labels_ : ndarray of shape (n_supports,)
        Their labels.
    transduction_ : ndarray of shape (n_samples,)
        Labels of the rows given to `fit`; supports have their own.
    label_distributions_ : ndarray of shape (n_samples, n_classes)
        Probabilities of the classes for the rows given to `fit`.

    See Also
    --------
    skpool.prototypes.NearestClassMeanClassifier : The same without queries.
    TransductivePrototypeClassifier : Goes on until nothing changes, with neighbours.

    Notes
    -----
    Cost: two products of the n queries with the N prototypes, O(n N d); no state but N vectors and
    the supports. Supports always keep their labels, and a weighted mean is divided by the sum of
    its weights; published codes differ in both.

    References
    ----------
    .. [1] J. Liu, L. Song, Y. Qin, Prototype Rectification for Few-Shot Learning, ECCV 2020.
       <https://arxiv.org/abs/1911.10713>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.few_shot import PrototypeRectification
    >>> X = np.array([[1.0, 0.2], [0.2, 1.0], [1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> rectified = PrototypeRectification().fit(X, [0, 1, -1, -1, -1])
    >>> rectified.transduction_
    array([0, 1, 0, 0, 1])
    >>> rectified.predict_transductive([[0.8, 0.3], [0.3, 0.8]])
    array([0, 1])
    """

    _parameter_constraints: ClassVar[dict] = {
        "scale": [Interval(Real, 0, None, closed="left")],
        "shift": ["boolean"],
        "n_iter": [Interval(Integral, 0, None, closed="left")],
    }
    # Rows are read again and again.
    _batch_bytes = 2**21

    def __init__(self, scale: float = 10.0, *, shift: bool = True, n_iter: int = 1):
        self.scale = scale
        self.shift = shift
        self.n_iter = n_iter

    def _solve(self, batch: EpisodeBatch) -> Solved:
        supports = support_weights(batch)
        means = batch.prototypes()
        queries = _ShiftedQueries(batch, supports, shift=self.shift)
        for _ in range(self.n_iter):
            own, given = _confidences(batch, supports, queries, means, self.scale)
            means = _rectified(batch, queries, own, given)
        cosines = queries.cosines(unit_rows(means))
        log_proba = cosines.mul_(self.scale).log_softmax(dim=1).mT
        return Solved(log_proba, lambda: means)

    def _scores(self, rows: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        return self.scale * (unit_rows(rows) @ unit_rows(prototypes).mT)


class _ShiftedQueries:
    """Queries that are moved by one vector an episode, of which no copy is made."""

    def __init__(self, batch: EpisodeBatch, supports: torch.Tensor, *, shift: bool):
        self.rows, self.weights = batch.Xq, query_weights(batch)
        self.move = self._move(batch, supports) if shift and self.rows.shape[1] else None
        squares = torch.linalg.vector_norm(self.rows, dim=2).square_()[:, None]
        if self.move is not None:
            squares += 2 * (self.move @ self.rows.mT) + self.move.square().sum(2, keepdim=True)
        self.lengths = squares.clamp_(min=torch.finfo(squares.dtype).tiny).sqrt_()

    def _move(self, batch: EpisodeBatch, supports: torch.Tensor) -> torch.Tensor:
        real = supports.sum(dim=1, keepdim=True)
        middle = (real @ batch.Xs) / real.sum(dim=2, keepdim=True)
        total = self.weights.sum(dim=2, keepdim=True).clamp_(min=1)
        return middle - (self.weights @ self.rows) / total

    def cosines(self, unit_means: torch.Tensor) -> torch.Tensor:
        """Return cosines (E, N, n_q) with vectors of unit length."""
        products = unit_means @ self.rows.mT
        if self.move is not None:
            products += unit_means @ self.move.mT
        return products.div_(self.lengths)

    def sums(self, weights: torch.Tensor) -> torch.Tensor:
        """Return weighted sums (E, N, d), for weights (E, N, n_q)."""
        sums = weights @ self.rows
        if self.move is not None:
            sums += weights.sum(dim=2, keepdim=True) * self.move
        return sums


def _confidences(
    batch: EpisodeBatch,
    supports: torch.Tensor,
    queries: _ShiftedQueries,
    means: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (E, N, n_s) and (E, N, n_q) of rows in the class that each is given to."""
    unit = unit_rows(means)
    own = (scale * (unit @ unit_rows(batch.Xs).mT)).softmax(dim=1).mul_(supports)
    proba = queries.cosines(unit).mul_(scale).softmax(dim=1)
    # Several times as fast as argmax along this axis.
    best = torch.zeros_like(proba).scatter_(1, proba.max(dim=1, keepdim=True).indices, 1.0)
    return own, proba.mul_(best).mul_(queries.weights)


def _rectified(
    batch: EpisodeBatch, queries: _ShiftedQueries, own: torch.Tensor, given: torch.Tensor
) -> torch.Tensor:
    """Return the weighted means (E, N, d)."""
    sums = own @ batch.Xs + queries.sums(given)
    return sums / (own.sum(dim=2, keepdim=True) + given.sum(dim=2, keepdim=True))


def rectified_weights(
    batch: EpisodeBatch, supports: torch.Tensor, *, scale: float = 10.0
) -> torch.Tensor:
    """Return rectified prototypes as weights (E, N, n_s + n_q) of the rows of their episode."""
    queries = _ShiftedQueries(batch, supports, shift=True)
    own, given = _confidences(batch, supports, queries, batch.prototypes(), scale)
    weights = torch.cat([own, given], dim=2)
    total = weights.sum(dim=2, keepdim=True)
    if queries.move is not None:
        # The move itself is a difference of two means of rows.
        real = normalized(supports.sum(dim=1, keepdim=True))
        move = torch.cat([real, -normalized(queries.weights)], dim=2)
        weights = weights + given.sum(dim=2, keepdim=True) * move
    return weights / total
