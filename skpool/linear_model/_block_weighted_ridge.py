# SPDX-License-Identifier: BSD-3-Clause
"""BlockWeightedRidgeClassifier: a ridge head for two blocks of features with a penalty each.

How much the second block weighs is one number, which scales a block of the stored scatter; so it
is chosen without another look at the rows. Moment ridge (`skpool.probing.make_moment_ridge`) puts
first and second moments of tokens in front of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.linear_model._ridge_head import Head, RidgeHeadClassifier
from skpool.statistics import ClassMoments
from skpool.utils import ArrayLike, as_tensor

__all__ = ["BlockWeightedRidgeClassifier"]

# Powers of two, so that a weight rounds nothing.
_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, eq=False)
class _BlockHead(Head):
    """A head for rows whose features are multiplied by factors first."""

    factors: np.ndarray  # (d,)
    weight: float
    weight_scores: np.ndarray | None


class BlockWeightedRidgeClassifier(RidgeHeadClassifier):
    r"""Ridge regression on one-hot targets, on two blocks of features of which one is weighted.

    A row is :math:`[a\,;\,g\,b]`: the first features as they are, the last ones times a weight
    g. That is a ridge with the penalty :math:`\lambda` for the coefficients of a and
    :math:`\lambda / g^2` for those of b. Both numbers minimise generalized cross-validation [1]_,
    which needs the moments of the rows alone: with the scatter T of the rows as they came and
    :math:`S = \mathrm{diag}(1, \dots, 1, g, \dots, g)`, that of the weighted rows is
    :math:`S T S`.

    Parameters
    ----------
    last_block : int, default=None
        Features of the second block, the last of X; None for one block, which has no weight.
    weight : float or "gcv", default="gcv"
        Weight g of the second block; "gcv" takes the one of `weights` with the smallest error by
        generalized cross-validation.
    weights : "auto" or array-like of shape (n_weights,), default="auto"
        Weights that are tried, above 0; "auto" takes 1/4, 1/2, 1, 2 and 4.
    alpha : float or "gcv", default="gcv"
        Penalty; "gcv" takes the one of `alphas` with the smallest error, for every weight.
    alphas : array-like of shape (n_alphas,) or "auto", default="auto"
        Penalties that are tried; "auto" takes 17 from 1e-6 to 100.
    relative : bool, default=True
        Whether a penalty is this many times the mean eigenvalue of the scatter of weighted rows.
    class_weight : {"balanced"}, dict or None, default=None
        Weights of the classes; "balanced" weighs classes alike. They need one scatter per class:
        memory n_classes times as large.
    temperature : float or "auto", default="auto"
        Factor of the scores in the softmax of `predict_proba`; "auto" takes the inverse of the
        variance of what is left of the targets, as of a Gaussian around one-hot targets.
    refit_every : int or None, default=None
        Rows that may be learned before what predictions are made of is solved for again, so that
        a stream that learns and predicts in turn solves once in so many rows. None solves at the
        first prediction after any change, as a new class, `forget`, `forget_class` and `merge`
        always make it.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted, announced ones included.
    coef_ : ndarray of shape (n_classes, n_features)
        Weights, for rows as they came; NaN for a class without samples.
    intercept_ : ndarray of shape (n_classes,)
        Offsets; -inf for a class without samples.
    weight_ : float
        Weight of the second block.
    weight_scores_ : ndarray of shape (n_weights,) or None
        Scores of the weights that were tried, in ascending order of these; higher is better. None
        where one was given.
    alpha_ : float
        The penalty.
    scores_ : ndarray of shape (n_alphas,) or None
        Scores of the penalties that were tried beside `weight_`. None where one was given.
    temperature_ : float
        Factor of the scores in the softmax.
    moments_ : ClassMoments
        Counts, means and scatter of rows as they came; everything above follows from them.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    skpool.probing.make_moment_ridge : First and second moments of tokens in front of it.
    RidgeHeadClassifier : One block.

    Notes
    -----
    All that is said of `RidgeHeadClassifier` holds: rows may come and go in any order, and the
    weight and the penalty are chosen anew when a prediction needs them.

    Cost: one product O(n d^2), one decomposition O(d^3) for each weight that is tried; memory
    O(d^2 + C d).

    References
    ----------
    .. [1] G. H. Golub, M. Heath, G. Wahba, Generalized Cross-Validation as a Method for Choosing
       a Good Ridge Parameter, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.linear_model import BlockWeightedRidgeClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(60) % 2
    >>> X = rng.normal(size=(60, 12))
    >>> X[:, 11] += 3 * y
    >>> BlockWeightedRidgeClassifier(2).fit(X, y).weight_ > 1
    True
    """

    _parameter_constraints: dict = {
        **RidgeHeadClassifier._parameter_constraints,
        "last_block": [Interval(Integral, 1, None, closed="left"), None],
        "weight": [StrOptions({"gcv"}), Interval(Real, 0, None, closed="neither")],
        "weights": [StrOptions({"auto"}), "array-like"],
        "alpha": [StrOptions({"gcv"}), Interval(Real, 0, None, closed="left")],
    }

    _solved_parameters = RidgeHeadClassifier._solved_parameters | {
        "last_block",
        "weight",
        "weights",
    }

    def __init__(
        self,
        last_block: int | None = None,
        *,
        weight: float | str = "gcv",
        weights: ArrayLike | str = "auto",
        alpha: float | str = "gcv",
        alphas: ArrayLike | str = "auto",
        relative: bool = True,
        class_weight: dict | str | None = None,
        temperature: float | str = "auto",
        refit_every: int | None = None,
    ):
        super().__init__(
            alpha,
            alphas=alphas,
            relative=relative,
            class_weight=class_weight,
            temperature=temperature,
            refit_every=refit_every,
        )
        self.last_block = last_block
        self.weight = weight
        self.weights = weights

    # Choosing.

    def _check_batch(
        self, X: ArrayLike, y: object, sample_weight: object, *, reset: bool
    ) -> tuple[ArrayLike, np.ndarray, np.ndarray | None]:
        batch = super()._check_batch(X, y, sample_weight, reset=reset)
        if self.last_block is not None and self.last_block >= self.n_features_in_:
            raise ValueError(
                f"last_block={self.last_block} leaves nothing for the first block where X has "
                f"n_features={self.n_features_in_}; give less."
            )
        self._sorted_weights()
        return batch

    def _sorted_weights(self) -> np.ndarray:
        """The weights that are tried, ascending."""
        if self.last_block is None:
            return np.ones(1)
        if self.weight != "gcv":
            return np.array([float(self.weight)])
        if isinstance(self.weights, str):
            return np.array(_WEIGHTS)
        weights = np.unique(np.atleast_1d(np.asarray(self.weights, dtype=np.float64)))
        if not len(weights) or not np.isfinite(weights).all() or (weights <= 0).any():
            raise ValueError(
                f"weights={self.weights!r} are not valid; give one or more numbers above 0."
            )
        return weights

    def _can_map(self) -> bool:
        # A map mixes the blocks.
        return self.last_block is None

    def _head(self, moments: ClassMoments) -> _BlockHead:
        weights, factors = self._sorted_weights(), np.ones(moments.n_features_in_)
        best, scores = None, []
        for weight in weights:
            if self.last_block is not None:
                factors[-self.last_block :] = weight
            head = super()._head(moments.affine(factors))
            scores.append(-head.variance if len(weights) > 1 else 0.0)
            # Of equally good ones the smallest.
            if best is None or scores[-1] > max(scores[:-1]):
                best = head, factors.copy(), float(weight)
        head, factors, weight = best
        held = {field.name: getattr(head, field.name) for field in fields(Head)}
        tried = self.last_block is not None and self.weight == "gcv"
        return _BlockHead(
            **held,
            factors=factors,
            weight=weight,
            weight_scores=np.array(scores) if tried else None,
        )

    # What was learned.

    @property
    def coef_(self) -> np.ndarray:
        """Weights of the classes, for rows as they came."""
        factors = self._known("coef_").factors
        return super().coef_ * factors

    @property
    def weight_(self) -> float:
        """Weight of the second block."""
        return self._known("weight_").weight

    @property
    def weight_scores_(self) -> np.ndarray | None:
        """Scores of the weights that were tried."""
        return self._known("weight_scores_").weight_scores

    def _seen_rows(self, X: ArrayLike) -> Iterator[torch.Tensor]:
        head = self._solved
        for rows in super()._seen_rows(X):
            yield rows * as_tensor(head.factors).to(rows.device, rows.dtype)
