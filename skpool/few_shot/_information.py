# SPDX-License-Identifier: BSD-3-Clause
"""InformationMaximizationClassifier: prototypes that make queries sure, and classes many.

TIM and alpha-TIM, by Adam or by alternating closed-form steps.
"""

from numbers import Integral, Real
from typing import ClassVar

import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.few_shot._base import Solved, TransductiveMixin
from skpool.few_shot._information_kernels import Terms, loss_and_slopes, query_targets
from skpool.few_shot._kernels import (
    Distances,
    normalized,
    query_weights,
    squared_distances,
    support_weights,
)
from skpool.model_selection import EpisodeBatch

__all__ = ["InformationMaximizationClassifier"]

_WEIGHTS = {"shannon": (0.1, 1.0, 0.1), "tsallis": (1.0, 1.0, 1.0)}
_MAX_ITER = {"adam": 1000, "adm": 150}
# Exponents of Tsallis' entropy for 1 shot and for 5 and more, as published.
_ALPHAS = (2.0, 7.0)


class InformationMaximizationClassifier(TransductiveMixin, ClassifierMixin, BaseEstimator):
    r"""Transductive classifier by maximising the information about the queries (TIM, alpha-TIM).

    Prototypes :math:`w_k` start at the class means, and with :math:`p_x = \text{softmax}_k(-\frac
    T2 \|x - w_k\|^2)` they minimise

    .. math:: l_1 \, \text{mean}_s \text{CE}(y_s, p_s) - l_2 \, H(\text{mean}_q \, p_q)
              + l_3 \, \text{mean}_q H(p_q),

    so that supports are right, queries sure, and classes many [1]_. With Shannon's entropy the
    second term pushes towards equally frequent classes; Tsallis' entropy :math:`H_\alpha(p) =
    (1 - \sum_k p_k^\alpha) / (\alpha - 1)` does so less, for queries that are not [2]_.

    Rows should be of unit length (:class:`~skpool.preprocessing.L2Normalizer` as a step before).

    Parameters
    ----------
    entropy : {"shannon", "tsallis"}, default="shannon"
        H of the two terms of the queries: TIM, or alpha-TIM. The cross-entropy of the supports is
        Shannon's in both.
    alpha : "auto" or float, default="auto"
        Exponent of "tsallis"; "auto" is 2 for one shot and 7 from 5 on, in between by the mean
        number of shots; 1 is Shannon's.
    weights : "auto" or tuple of three floats, default="auto"
        :math:`l_1, l_2, l_3`; "auto" is (0.1, 1, 0.1) for "shannon" and (1, 1, 1) for "tsallis".
    temperature : float, default=15.0
        T.
    solver : {"adam", "adm"}, default="adam"
        Adam steps, or alternating steps in closed form (for "shannon"), which need fewer.
    lr : float, default=1e-4
        Learning rate of Adam.
    max_iter : int, default=None
        Number of steps; None for 1000 of "adam" and 150 of "adm".

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
    objective_ : ndarray of shape (n_iter_ + 1,)
        The loss for the rows given to `fit`, before every step and at the end.
    n_iter_ : int
        Number of steps.
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
    TransductivePrototypeClassifier : Clustering with neighbours.
    OptimalTransportClassifier : Prototypes moved by assignments of given or estimated shares.

    Notes
    -----
    Cost: a step of "adam" is two products of the n rows with the N prototypes, O(n N d); "adm"
    takes the inner products of the rows once, O(n^2 d), and O(n^2 N) a step. Adam scales every
    feature for itself, so its result is not that of the inner products alone.

    References
    ----------
    .. [1] M. Boudiaf, I. M. Ziko, J. Rony, J. Dolz, P. Piantanida, I. Ben Ayed, Transductive
       Information Maximization For Few-Shot Learning, NeurIPS 2020.
       <https://arxiv.org/abs/2008.11297>
    .. [2] O. Veilleux, M. Boudiaf, P. Piantanida, I. Ben Ayed, Realistic Evaluation of
       Transductive Few-Shot Learning, NeurIPS 2021. <https://arxiv.org/abs/2204.11181>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.few_shot import InformationMaximizationClassifier
    >>> X = np.array([[1.0, 0], [0, 1], [0.8, 0.6], [0.9, 0.4], [0.6, 0.8], [0.3, 0.9]])
    >>> model = InformationMaximizationClassifier(solver="adm", max_iter=10)
    >>> model.fit(X, [0, 1, -1, -1, -1, -1]).transduction_
    array([0, 1, 0, 0, 1, 1])
    >>> bool(model.objective_[-1] < model.objective_[0])
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "entropy": [StrOptions({"shannon", "tsallis"})],
        "alpha": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "weights": [StrOptions({"auto"}), tuple, list],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "solver": [StrOptions({"adam", "adm"})],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 0, None, closed="left"), None],
    }

    def __init__(
        self,
        entropy: str = "shannon",
        *,
        alpha: str | float = "auto",
        weights: str | tuple[float, float, float] = "auto",
        temperature: float = 15.0,
        solver: str = "adam",
        lr: float = 1e-4,
        max_iter: int | None = None,
    ):
        self.entropy = entropy
        self.alpha = alpha
        self.weights = weights
        self.temperature = temperature
        self.solver = solver
        self.lr = lr
        self.max_iter = max_iter

    def _solve(self, batch: EpisodeBatch) -> Solved:
        terms = self._terms(batch)
        n_steps = _MAX_ITER[self.solver] if self.max_iter is None else self.max_iter
        solve = self._by_adam if self.solver == "adam" else self._by_closed_form
        logits, prototypes, losses = solve(batch, terms, n_steps)
        log_proba = logits[:, :, batch.Xs.shape[1] :].log_softmax(dim=1).mT
        steps = torch.full((len(log_proba),), len(losses) - 1)
        found = {"objective_": torch.stack(losses, dim=1), "n_iter_": steps}
        return Solved(log_proba, prototypes, found)

    def _terms(self, batch: EpisodeBatch) -> Terms:
        supports = support_weights(batch)
        weights = _WEIGHTS[self.entropy] if isinstance(self.weights, str) else self.weights
        if len(weights) != 3 or not all(isinstance(x, Real) and x >= 0 for x in weights):
            raise ValueError(
                f"weights={self.weights!r} is not valid; give three numbers of at least 0, or "
                "'auto'."
            )
        if self.solver == "adm" and self.entropy != "shannon":
            raise ValueError(
                f"solver='adm' is for entropy='shannon', and this is {self.entropy!r}; set "
                "solver='adam'."
            )
        return Terms(supports, query_weights(batch), tuple(weights), self._alpha(supports))

    def _alpha(self, supports: torch.Tensor) -> float:
        if self.entropy == "shannon":
            return 1.0
        if not isinstance(self.alpha, str):
            return float(self.alpha)
        # Batches hold episodes of one kind; where shots differ, the mean decides.
        shots = float(supports.sum(dim=(1, 2)).mean()) / supports.shape[1]
        low, high = _ALPHAS
        return low + (high - low) * min(max((shots - 1) / 4, 0.0), 1.0)

    def _by_adam(self, batch: EpisodeBatch, terms: Terms, n_steps: int) -> tuple:
        means = batch.prototypes()
        center = means.mean(dim=1, keepdim=True)
        rows = torch.cat([batch.Xs - center, batch.Xq - center], dim=1)
        means = torch.nn.Parameter(means - center, requires_grad=False)
        adam = torch.optim.Adam([means], lr=self.lr, fused=True)
        losses = []
        for _ in range(n_steps):
            logits = self._logits(rows, means)
            loss, slopes = loss_and_slopes(logits, terms)
            losses.append(loss)
            # Of temperature * (x w - |w|^2 / 2) by w.
            means.grad = slopes @ rows - slopes.sum(dim=2, keepdim=True) * means
            means.grad *= self.temperature
            adam.step()
        logits = self._logits(rows, means)
        losses.append(loss_and_slopes(logits, terms)[0])
        return logits, lambda: means.data + center, losses

    def _logits(self, rows: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        """Return logits (E, N, n) without what all classes of a row have in common."""
        lengths = means.square().sum(dim=2, keepdim=True)
        return self.temperature * (means @ rows.mT - lengths / 2)

    def _by_closed_form(self, batch: EpisodeBatch, terms: Terms, n_steps: int) -> tuple:
        """Alternate assignments of the queries and prototypes, each the best for the other."""
        distances, losses = Distances(batch), []
        none = terms.supports.new_zeros(*terms.supports.shape[:2], batch.Xq.shape[1])
        weights = torch.cat([normalized(terms.supports), none], dim=2)
        logits = -self.temperature / 2 * distances.to_means(weights)
        for _ in range(n_steps):
            loss, weights = self._alternated(logits, weights, terms)
            losses.append(loss)
            logits = -self.temperature / 2 * distances.to_means(weights)
        losses.append(loss_and_slopes(logits, terms)[0])
        return logits, lambda: distances.means(weights), losses

    def _alternated(
        self, logits: torch.Tensor, weights: torch.Tensor, terms: Terms
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses, and the prototypes of one step as weights of the rows."""
        n_s, (of_supports, _, of_each) = terms.supports.shape[2], terms.weights
        proba = logits.softmax(dim=1)
        targets = query_targets(proba[:, :, n_s:], terms)
        real = terms.supports.sum(dim=1, keepdim=True)
        # What a row counts: the loss is a sum of cross-entropies to these targets.
        counts = torch.cat(
            [
                of_supports / terms.n_supports * real,
                (1 + of_each) / terms.n_queries * terms.queries,
            ],
            dim=2,
        )
        wanted = torch.cat([terms.supports, targets], dim=2) * counts
        proba = proba * counts
        # A bound of the loss that touches it at the old prototypes has its minimum here.
        moved = wanted - proba + proba.sum(dim=2, keepdim=True) * weights
        return loss_and_slopes(logits, terms)[0], moved / wanted.sum(dim=2, keepdim=True)

    def _scores(self, rows: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        return -self.temperature / 2 * squared_distances(rows, prototypes)
