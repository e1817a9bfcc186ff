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

    # Cosines need no squares. Rows are read a few episodes at a time, and never held.
    _squares_rows = False
    _takes_all_threads = True
    _batch_bytes = 2**27

    _parameter_constraints: ClassVar[dict] = {
        "scale": [Interval(Real, 0, None, closed="left")],
        "shift": ["boolean"],
        "n_iter": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, scale: float = 10.0, *, shift: bool = True, n_iter: int = 1):
        self.scale = scale
        self.shift = shift
        self.n_iter = n_iter

    def _solve(self, batch: EpisodeBatch) -> Solved:
        supports = support_weights(batch)
        means = batch.prototypes()
        queries = _ShiftedQueries(batch, means, supports, shift=self.shift)
        cosines = queries.first
        for _ in range(self.n_iter if batch.n_query else 0):
            own, given = _confidences(batch, supports, means, cosines, self.scale)
            means, cosines = queries.moved_means(own, given)
        return Solved(cosines.mul_(self.scale).log_softmax(dim=1).mT, lambda: means)

    def _scores(self, rows: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        return self.scale * (unit_rows(rows) @ unit_rows(prototypes).mT)


def _norms(vectors: torch.Tensor) -> torch.Tensor:
    """Return norms (..., 1), above 0."""
    tiny = torch.finfo(vectors.dtype).tiny
    return torch.linalg.vector_norm(vectors, dim=2, keepdim=True).clamp_(min=tiny)


class _ShiftedQueries:
    """Queries that are moved by one vector an episode, of which no copy is made.

    They are read once for their norms, their mean and the first products, and once for each set
    of means that follow from them; what they are moved by enters as a product of a few numbers.
    """

    def __init__(
        self, batch: EpisodeBatch, means: torch.Tensor, supports: torch.Tensor, *, shift: bool
    ):
        self.batch = batch
        n_rows = means.shape[1] + 1 if shift else means.shape[1]
        products = means.new_empty(len(batch), n_rows, batch.n_query)
        self.move = None
        if shift:
            shares = normalized(query_weights(batch))
            self.move = normalized(supports.sum(dim=1, keepdim=True)) @ batch.Xs
        for part, rows in batch.query_blocks():
            vectors = means[part]
            if shift:
                move = self.move[part].baddbmm_(shares[part], rows, alpha=-1)
                vectors = torch.cat([vectors, move], dim=1)
            torch.bmm(vectors, rows.mT, out=products[part])
        squares = batch.query_norms()[:, None].square()
        if shift:
            squares += self.move.square().sum(dim=2, keepdim=True)
            squares += 2 * products[:, -1:]
        self.lengths = squares.clamp_(min=torch.finfo(squares.dtype).tiny).sqrt_()
        self.first = self._cosines(means, products[:, : means.shape[1]])

    def _cosines(self, means: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
        """Return cosines (E, N, n_q) with means, from products with the queries as they were."""
        if self.move is not None:
            products += means @ self.move.mT
        return products.div_(_norms(means)).div_(self.lengths)

    def moved_means(
        self, own: torch.Tensor, given: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means for weights (E, N, n_s) and (E, N, n_q), and the cosines with them."""
        weights = given.sum(dim=2, keepdim=True)
        means = own @ self.batch.Xs
        if self.move is not None:
            means.addcmul_(weights, self.move)
        total = own.sum(dim=2, keepdim=True) + weights
        products = torch.empty_like(given)
        for part, rows in self.batch.query_blocks():
            sums = means[part].baddbmm_(given[part], rows)
            torch.bmm(sums, rows.mT, out=products[part])
        # Cosines are those with the sums.
        cosines = self._cosines(means, products)
        return means.div_(total), cosines


def _confidences(
    batch: EpisodeBatch,
    supports: torch.Tensor,
    means: torch.Tensor,
    cosines: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (E, N, n_s) and (E, N, n_q) of rows in the class that each is given to."""
    own = (means @ batch.Xs.mT).div_(_norms(means)).div_(_norms(batch.Xs).mT)
    own = own.mul_(scale).softmax(dim=1).mul_(supports)
    # Along this axis several times as fast as argmax.
    nearest = cosines.max(dim=1, keepdim=True).indices
    proba = (cosines * scale).softmax(dim=1)
    given = torch.zeros_like(proba).scatter_(1, nearest, proba.gather(1, nearest))
    if batch.query_mask is not None:
        given.mul_(batch.query_mask[:, None])
    return own, given


def rectified_weights(
    batch: EpisodeBatch, supports: torch.Tensor, *, scale: float = 10.0
) -> torch.Tensor:
    """Return rectified prototypes as weights (E, N, n_s + n_q) of the rows of their episode."""
    means = batch.prototypes()
    queries = _ShiftedQueries(batch, means, supports, shift=True)
    own, given = _confidences(batch, supports, means, queries.first, scale)
    weights = torch.cat([own, given], dim=2)
    total = weights.sum(dim=2, keepdim=True)
    if queries.move is not None:
        # The move itself is a difference of two means of rows.
        real = normalized(supports.sum(dim=1, keepdim=True))
        move = torch.cat([real, -normalized(query_weights(batch))], dim=2)
        weights = weights + given.sum(dim=2, keepdim=True) * move
    return weights / total
