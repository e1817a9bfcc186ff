# SPDX-License-Identifier: BSD-3-Clause
"""TransductivePrototypeClassifier: soft clustering of queries around class prototypes.

LaplacianShot and transductive k-means are settings of it; two functions build them.
"""

from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.few_shot._base import Solved, TransductiveMixin
from skpool.few_shot._kernels import (
    Distances,
    nearest_neighbors,
    normalized,
    query_weights,
    squared_distances,
    support_weights,
)
from skpool.few_shot._laplacian_kernels import Pull, assign, damping_of
from skpool.few_shot._rectification import rectified_weights
from skpool.model_selection import EpisodeBatch
from skpool.preprocessing import CenteredL2Normalizer

__all__ = [
    "TransductivePrototypeClassifier",
    "make_laplacian_shot",
    "make_transductive_kmeans",
]


class TransductivePrototypeClassifier(TransductiveMixin, ClassifierMixin, BaseEstimator):
    r"""Transductive classifier by clustering around class prototypes, which neighbours smooth.

    Assignments S of the rows to classes (those of supports are fixed) and prototypes :math:`\mu`
    lower, in turns, the energy

    .. math:: E = \frac{1}{T} \sum_{pk} s_{pk} D(x_p, \mu_k)
        - \frac{\lambda}{2} \sum_{pq} w_{pq} \langle s_p, s_q \rangle
        + \sum_{pk} s_{pk} \log s_{pk},

    where W joins nearest neighbours. With fixed prototypes this is LaplacianShot [1]_
    (:func:`make_laplacian_shot`); without neighbours and with a low temperature it is k-means
    that starts at the class means (:func:`make_transductive_kmeans`) [2]_.

    Parameters
    ----------
    divergence : {"kmeans", "kmodes"}, default="kmeans"
        D: the squared distance, whose prototypes are means, or
        :math:`-\exp(-\gamma \|x - \mu\|^2)`, whose prototypes are modes.
    gamma : float, default=1.0
        Inverse squared width of the kernel of "kmodes".
    laplacian_weight : float, default=0.7
        :math:`\lambda`, how strongly neighbours pull; choose it on other classes, in 0.1 to 1.5.
    n_neighbors : int, default=3
        Neighbours of a row; rows as near as the last are neighbours too.
    include_self : bool, default=False
        Whether a row counts as the first of its own neighbours, as in published codes, which
        leaves one neighbour less.
    symmetric : bool, default=True
        Whether W is made symmetric, as the energy has it. If False, a row is pulled by its own
        neighbours alone, as in published codes, and the energy may rise.
    graph : {"all", "query"}, default="all"
        Rows that are neighbours: all, or queries among themselves.
    update_prototypes : bool, default=True
        Whether prototypes move.
    temperature : float, default=1.0
        T. Squared distances of unit rows are at most 4, for which 0.1 is often better than 1.
    max_iter : int, default=20
        Most steps of the assignments between two steps of the prototypes.
    n_outer : int, default=10
        Most steps of the prototypes.
    tol : float, default=1e-6
        Relative change of the energy at which either loop stops.
    rectify : bool, default=False
        Whether to start from the prototypes of :class:`PrototypeRectification`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels of the supports, sorted.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X had text column names.
    prototypes_ : ndarray of shape (n_classes, n_features)
        The prototypes after the last step.
    objective_ : ndarray of shape (n_steps,)
        The energy of the rows given to `fit` after every step. If `symmetric`, it never rises.
    n_iter_ : int
        Number of these steps.
    support_ : ndarray of shape (n_supports, n_features)
        The labelled rows.
    support_labels_ : ndarray of shape (n_supports,)
        Their labels.
    transduction_ : ndarray of shape (n_samples,)
        Labels of the rows given to `fit`; supports have their own.
    label_distributions_ : ndarray of shape (n_samples, n_classes)
        S: probabilities of the classes for the rows given to `fit`.

    See Also
    --------
    PrototypeRectification : One step, at a fraction of the cost.
    sklearn.semi_supervised.LabelSpreading : Spreads labels along a graph alone.

    Notes
    -----
    Cost: the inner products of the n rows of an episode, O(n^2 d), then O(n^2 N) a step; memory
    n^2 numbers. Where W has negative eigenvalues that are large for :math:`\lambda`, steps are
    held back by just as much as keeps the energy from rising, rather than adding a multiple of
    the identity to W, which would be another energy.

    References
    ----------
    .. [1] I. M. Ziko, J. Dolz, E. Granger, I. Ben Ayed, Laplacian Regularized Few-Shot Learning,
       ICML 2020. <https://arxiv.org/abs/2006.15486>
    .. [2] I. M. Ziko, M. Boudiaf, J. Dolz, E. Granger, I. Ben Ayed, Transductive Few-Shot
       Learning: Clustering is All You Need?, 2021. <https://arxiv.org/abs/2106.09516>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.few_shot import TransductivePrototypeClassifier
    >>> X = np.array([[0.0, 0], [3, 0], [0.5, 1], [1, 1], [1.5, 1], [3, 1]])
    >>> clustering = TransductivePrototypeClassifier(n_neighbors=1, temperature=0.1)
    >>> clustering.fit(X, [0, 1, -1, -1, -1, -1]).transduction_
    array([0, 1, 0, 0, 0, 1])
    """

    _parameter_constraints: ClassVar[dict] = {
        "divergence": [StrOptions({"kmeans", "kmodes"})],
        "gamma": [Interval(Real, 0, None, closed="neither")],
        "laplacian_weight": [Interval(Real, 0, None, closed="left")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "include_self": ["boolean"],
        "symmetric": ["boolean"],
        "graph": [StrOptions({"all", "query"})],
        "update_prototypes": ["boolean"],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "n_outer": [Interval(Integral, 0, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "rectify": ["boolean"],
    }

    # Rows are gone once their products are there, and the steps on these are small.
    _batch_bytes = 2**26

    def __init__(
        self,
        divergence: str = "kmeans",
        *,
        gamma: float = 1.0,
        laplacian_weight: float = 0.7,
        n_neighbors: int = 3,
        include_self: bool = False,
        symmetric: bool = True,
        graph: str = "all",
        update_prototypes: bool = True,
        temperature: float = 1.0,
        max_iter: int = 20,
        n_outer: int = 10,
        tol: float = 1e-6,
        rectify: bool = False,
    ):
        self.divergence = divergence
        self.gamma = gamma
        self.laplacian_weight = laplacian_weight
        self.n_neighbors = n_neighbors
        self.include_self = include_self
        self.symmetric = symmetric
        self.graph = graph
        self.update_prototypes = update_prototypes
        self.temperature = temperature
        self.max_iter = max_iter
        self.n_outer = n_outer
        self.tol = tol
        self.rectify = rectify

    def _solve(self, batch: EpisodeBatch) -> Solved:
        return _Clustering(self, batch).run()

    def _scores(self, rows: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        return -self._divergences(squared_distances(rows, prototypes)) / self.temperature

    def _divergences(self, squares: torch.Tensor) -> torch.Tensor:
        """Return D, given squared distances."""
        return squares if self.divergence == "kmeans" else -torch.exp(-self.gamma * squares)


class _Clustering:
    """The state of the alternation for one batch."""

    def __init__(self, model: TransductivePrototypeClassifier, batch: EpisodeBatch):
        self.model = model
        self.supports, self.queries = support_weights(batch), query_weights(batch)
        self.n_s = self.supports.shape[2]
        self.distances = Distances(batch)
        self.weights = self._first_weights(batch)
        self.pull, self.from_supports, self.among_supports = self._pulls()

    def _first_weights(self, batch: EpisodeBatch) -> torch.Tensor:
        if self.model.rectify and batch.n_query:
            return rectified_weights(batch, self.supports)
        none = self.supports.new_zeros(*self.supports.shape[:2], batch.n_query)
        return torch.cat([normalized(self.supports), none], dim=2)

    def _pulls(self) -> tuple[Pull | None, torch.Tensor | float, torch.Tensor | float]:
        """Return the pull among queries, that of the supports, and the energy among these."""
        model, n_s = self.model, self.n_s
        lam, k = model.laplacian_weight, model.n_neighbors - int(model.include_self)
        if lam == 0 or k == 0:
            return None, 0.0, 0.0
        if model.graph == "query":
            graph = self._graph(slice(n_s, None), self.queries, k)
            return self._pull(graph), 0.0, 0.0
        real = torch.cat([self.supports.sum(dim=1, keepdim=True), self.queries], dim=2)
        graph = self._graph(slice(None), real, k)
        inside = ((self.supports @ graph[:, :n_s, :n_s].mT) * self.supports).sum(dim=(1, 2))
        to_queries = lam * (self.supports @ graph[:, n_s:, :n_s].mT)
        return self._pull(graph[:, n_s:, n_s:]), to_queries, -lam / 2 * inside

    def _graph(self, rows: slice, real: torch.Tensor, k: int) -> torch.Tensor:
        order = self.distances.order(rows)
        graph = nearest_neighbors(order, k, weights=real)
        if not self.model.symmetric:
            return graph.to(order.dtype)
        # Bytes are turned in a fraction of the time of floats.
        counts = graph.view(torch.uint8)
        return (counts + counts.mT).to(order.dtype).mul_(0.5)

    def _pull(self, graph: torch.Tensor) -> Pull:
        lam = self.model.laplacian_weight
        if self.model.symmetric:
            return Pull(graph.contiguous(), lam, damping_of(graph, lam))
        return Pull(graph.mT.contiguous(), lam, graph.new_zeros(len(graph), 1, 1))

    def run(self) -> Solved:
        """Alternate until nothing changes."""
        log_proba, energies = self._assigned(None)
        moving = torch.ones_like(self.weights[:, :1, :1], dtype=torch.bool)
        for _ in range(self.model.n_outer if self.model.update_prototypes else 0):
            before = energies[-1]
            self.weights = torch.where(moving, self._moved(log_proba), self.weights)
            new, found = self._assigned(log_proba)
            # Who has stopped stays as it is, whoever else is in the batch.
            log_proba = torch.where(moving, new, log_proba)
            energies += [torch.where(moving[:, 0, 0], value, before) for value in found]
            change = (energies[-1] - before).abs() > self.model.tol * before.abs()
            moving = moving & change[:, None, None]
            if not bool(moving.any()):
                break
        means, weights = self.distances.means, self.weights
        steps = torch.full((len(weights),), len(energies))
        found = {"objective_": torch.stack(energies, dim=1), "n_iter_": steps}
        return Solved(log_proba.mT, lambda: means(weights), found)

    def _assigned(self, start: torch.Tensor | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return new assignments, and the whole energy along the way."""
        squares = self.distances.to_means(self.weights)
        costs = self.model._divergences(squares) / self.model.temperature
        of_supports = (costs[:, :, : self.n_s] * self.supports).sum(dim=(1, 2))
        log_proba, energies = assign(
            costs[:, :, self.n_s :] - self.from_supports,
            self.pull,
            weights=self.queries,
            start=start,
            max_iter=self.model.max_iter,
            tol=self.model.tol,
        )
        rest = of_supports + self.among_supports
        return log_proba, [value + rest for value in energies]

    def _moved(self, log_proba: torch.Tensor) -> torch.Tensor:
        """Return the weights of the rows in the prototypes that fit these assignments."""
        shares = torch.cat([self.supports, log_proba.exp() * self.queries], dim=2)
        if self.model.divergence == "kmodes":
            squares = self.distances.to_means(self.weights)
            shares = shares * torch.exp(-self.model.gamma * squares)
        return normalized(shares)


def make_laplacian_shot(
    *,
    laplacian_weight: float = 0.7,
    n_neighbors: int = 3,
    rectify: bool = False,
    center: str | np.ndarray = "mean",
) -> Pipeline:
    """Build LaplacianShot: centred unit rows, fixed prototypes, neighbours among the queries.

    Parameters
    ----------
    laplacian_weight : float, default=0.7
        How strongly neighbours pull.
    n_neighbors : int, default=3
        Neighbours of a query, itself not counted.
    rectify : bool, default=False
        Whether prototypes are rectified first.
    center : "mean" or array-like of shape (n_features,), default="mean"
        What is subtracted: the mean of the rows that the step is fitted on, or a vector, such as
        the mean of base data.

    Returns
    -------
    pipeline : Pipeline
        Steps "centeredl2normalizer" and "transductiveprototypeclassifier", not fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.few_shot import make_laplacian_shot
    >>> X = np.array([[0.0, 4], [4, 0], [1, 4], [4, 1], [4, 2]])
    >>> model = make_laplacian_shot(center=[2.0, 2.0]).fit(X, [0, 1, -1, -1, -1])
    >>> model[-1].transduction_
    array([0, 1, 0, 1, 1])
    """
    clustering = TransductivePrototypeClassifier(
        laplacian_weight=laplacian_weight,
        n_neighbors=n_neighbors,
        graph="query",
        update_prototypes=False,
        rectify=rectify,
    )
    return make_pipeline(CenteredL2Normalizer(center), clustering)


def make_transductive_kmeans(
    *, temperature: float = 0.1, center: str | np.ndarray = "mean"
) -> Pipeline:
    """Build soft k-means of centred unit rows that starts from the class means.

    Parameters
    ----------
    temperature : float, default=0.1
        The lower, the harder the assignments.
    center : "mean" or array-like of shape (n_features,), default="mean"
        What is subtracted: the mean of the rows that the step is fitted on, or a vector, such as
        the mean of base data.

    Returns
    -------
    pipeline : Pipeline
        Steps "centeredl2normalizer" and "transductiveprototypeclassifier", not fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.few_shot import make_transductive_kmeans
    >>> X = np.array([[0.0, 4], [4, 0], [1, 4], [4, 1], [4, 2]])
    >>> model = make_transductive_kmeans(center=[2.0, 2.0]).fit(X, [0, 1, -1, -1, -1])
    >>> model[-1].transduction_
    array([0, 1, 0, 1, 1])
    """
    clustering = TransductivePrototypeClassifier(laplacian_weight=0.0, temperature=temperature)
    return make_pipeline(CenteredL2Normalizer(center), clustering)
