# SPDX-License-Identifier: BSD-3-Clause
"""RidgeHeadRegressor: ridge regression from the moments of rows and targets joined.

A row and its targets are one longer row, whose scatter holds all that ridge regression needs. So
the regressor learns in any order, forgets and merges as the classifiers do.
"""

from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Self

import numpy as np
import torch
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from skpool.linear_model._kernels import penalized, row_leverages
from skpool.statistics import RidgePath, RunningMoments, SymmetricFactor, largest_difference
from skpool.utils import (
    ArrayLike,
    apply_affine,
    as_tensor,
    check_finite,
    unchanged_on_error,
    validate_vectors,
)

__all__ = ["RidgeHeadRegressor"]


def _learns_in_parts(estimator: "RidgeHeadRegressor") -> bool:
    if estimator.alpha == "loo":
        raise AttributeError(
            'alpha="loo" is chosen on all rows together; call fit, or set alpha="gcv" or a number.'
        )
    return True


@dataclass(frozen=True, eq=False)
class _Solution:
    """What predictions are made of."""

    moments: RunningMoments
    center: np.ndarray  # (d,), where predictions are the offsets
    offset: np.ndarray  # (m,)
    coef: np.ndarray  # (m, d)
    alpha: float
    scores: np.ndarray | None
    relative: bool

    @cached_property
    def factor(self) -> SymmetricFactor:
        """Of the scatter and the penalty."""
        d = len(self.center)
        scatter = self.moments.scatter_[:d, :d]
        return SymmetricFactor(penalized(scatter, self.alpha, relative=self.relative))


class RidgeHeadRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    r"""Ridge regression of one or several targets, exact on streams.

    With the scatter :math:`T` of the rows around their mean and their centred cross-products
    :math:`Q` with the targets, :math:`\hat y(x) = \bar y + (x - \bar x)^\top (T + \lambda
    I)^{-1} Q`.

    Parameters
    ----------
    alpha : float, "gcv" or "loo", default="gcv"
        Penalty, one for all targets. "gcv" chooses it by generalized cross-validation [1]_, which
        needs the moments alone; "loo" by the squared error of predictions that leave one out,
        which needs the rows, hence `fit`.
    alphas : array-like of shape (n_alphas,) or "auto", default="auto"
        Penalties that are tried; "auto" takes 17 from 1e-6 to 100.
    relative : bool, default=True
        Whether a penalty is this many times the mean eigenvalue of the scatter.
    link : {"identity", "sigmoid"}, default="identity"
        What turns linear predictions into targets. With "sigmoid" the targets lie between 0 and
        1, as ratings and shares do, and their logits are regressed.

    Attributes
    ----------
    coef_ : ndarray of shape (n_targets, n_features) or (n_features,)
        Weights; one axis where y had one.
    intercept_ : ndarray of shape (n_targets,) or float
        Offsets.
    alpha_ : float
        The penalty.
    scores_ : ndarray of shape (n_alphas,) or None
        Scores of the penalties that were tried, in ascending order of these; higher is better.
    moments_ : RunningMoments
        Of rows and targets joined; everything above follows from them.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    RidgeHeadClassifier : The same on one-hot targets.
    sklearn.linear_model.Ridge : The same weights for one penalty, from all rows.

    Notes
    -----
    `partial_fit` in any order and partition, `forget` and `merge` give what one `fit` gives, to
    rounding. Products are in float64, because targets may be known better than features.

    Cost: one product O(n (d + m)^2), one decomposition O(d^3) (a Cholesky factor where `alpha` is
    a number), and O(n d m) to predict; memory O((d + m)^2), and a copy of the rows of a call.

    References
    ----------
    .. [1] G. H. Golub, M. Heath, G. Wahba, Generalized Cross-Validation as a Method for Choosing
       a Good Ridge Parameter, 1979.
    .. [2] P. Zhao et al., From Words to Worth: Newborn Article Impact Prediction with LLM, 2024.
       <https://arxiv.org/abs/2408.03934>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.linear_model import RidgeHeadRegressor
    >>> X = np.arange(6.0).reshape(6, 1)
    >>> model = RidgeHeadRegressor(0.0).partial_fit(X[:3], 2 * X[:3, 0] + 1)
    >>> model.partial_fit(X[3:], 2 * X[3:, 0] + 1).predict([[10.0]]).round(6)
    array([21.])
    """

    _parameter_constraints: dict = {
        "alpha": [StrOptions({"gcv", "loo"}), Interval(Real, 0, None, closed="left")],
        "alphas": [StrOptions({"auto"}), "array-like"],
        "relative": ["boolean"],
        "link": [StrOptions({"identity", "sigmoid"})],
    }

    def __init__(
        self,
        alpha: float | str = "gcv",
        *,
        alphas: ArrayLike | str = "auto",
        relative: bool = True,
        link: str = "identity",
    ):
        self.alpha = alpha
        self.alphas = alphas
        self.relative = relative
        self.link = link

    # Learning.

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learn from these samples alone, and solve at once.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            X, Y, weights = self._batch(X, y, sample_weight, reset=True)
            self.moments_ = self._moments_of(X, Y, weights)
            if self.alpha == "loo":
                path = self._path("loo_mse").fit(X, Y, weights)
                self._chosen = path.alpha_, path.scores_
            self._solution = self._solve()
        return self

    @available_if(_learns_in_parts)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Learn from these samples on top of all earlier ones.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets, as many as before.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            first = not hasattr(self, "moments_")
            new = self._moments_of(*self._batch(X, y, sample_weight, reset=first))
            self.moments_, self._solution = new if first else self.moments_ + new, None
        return self

    @available_if(_learns_in_parts)
    def forget(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Remove samples that were learned, as if they had never been seen.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors that were learned.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Their targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Their weights.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        check_is_fitted(self)
        removed = self._moments_of(*self._batch(X, y, sample_weight, reset=False))
        self.moments_, self._solution = self.moments_ - removed, None
        return self

    @available_if(_learns_in_parts)
    def merge(self, other: Self) -> Self:
        """Add what another estimator has learned, as if its samples had been learned here.

        Parameters
        ----------
        other : RidgeHeadRegressor
            Fitted with as many features and targets and the same `link`; not changed.

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
        for name in ("n_features_in_", "_target_shape", "link"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(
                    f"other has {name.strip('_')}={theirs!r} and this estimator {ours!r}; merge "
                    "estimators of the same."
                )
        self.moments_, self._solution = self.moments_ + other.moments_, None
        return self

    @available_if(_learns_in_parts)
    def certify(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Compare with a fresh fit on the samples that should be all that is left.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            The samples learned and not forgotten.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Their targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Their weights.

        Returns
        -------
        difference : float
            The largest difference between the two states: of counts, means and scatters, each
            relative to the largest number of its kind.
        """
        check_is_fitted(self)
        fresh = self._moments_of(*self._batch(X, y, sample_weight, reset=False))
        return largest_difference(self.moments_, fresh)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "moments_") and self.moments_.n_samples > 0

    def _batch(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, *, reset: bool
    ) -> tuple[ArrayLike, np.ndarray, np.ndarray | None]:
        """Check rows, targets, which come as (n, m) of what is regressed, and weights."""
        X = validate_vectors(self, X, reset=reset)
        Y, shape = self._checked_targets(y, len(X))
        if reset:
            self._target_shape = shape
        elif shape != self._target_shape:
            raise ValueError(
                f"y has targets of shape {shape}, and earlier ones were of {self._target_shape}; "
                "give as many targets as before."
            )
        if sample_weight is None:
            return X, Y, None
        if isinstance(sample_weight, torch.Tensor):
            sample_weight = sample_weight.cpu().numpy()
        weights = _check_sample_weight(sample_weight, Y, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise ValueError("sample_weight is 0 for every sample; give a positive weight.")
        return X, Y, weights

    def _checked_targets(self, y: ArrayLike, n_samples: int) -> tuple[np.ndarray, tuple]:
        if y is None:
            raise ValueError(
                "This regressor requires y to be passed, but the target y is None; give targets."
            )
        y = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
        y = y.astype(np.float64, copy=False)
        if y.ndim not in (1, 2) or len(y) != n_samples or not y.size:
            raise ValueError(
                f"Found input variables with inconsistent numbers of samples: y has shape "
                f"{y.shape} and X {n_samples} rows; give one row of targets per row of X."
            )
        check_finite(y.reshape(len(y), -1), name="y")
        if self.link == "sigmoid":
            if not ((y > 0) & (y < 1)).all():
                raise ValueError(
                    'link="sigmoid" needs targets between 0 and 1, both excluded, and y holds '
                    f'{y[~((y > 0) & (y < 1))][0]:g}; scale them, or set link="identity".'
                )
            y = logit(y)
        return y.reshape(len(y), -1), y.shape[1:]

    def _moments_of(
        self, X: ArrayLike, Y: np.ndarray, weights: np.ndarray | None
    ) -> RunningMoments:
        rows = as_tensor(X)
        # Apple's GPUs have no float64.
        rows = rows.double() if rows.device.type != "mps" else rows.float()
        joined = torch.cat([rows, as_tensor(Y).to(rows)], dim=1)
        return RunningMoments(product_dtype="float64").update(joined, weights)

    def _path(self, scoring: str) -> RidgePath:
        return RidgePath(self.alphas, relative=self.relative, scoring=scoring)

    @property
    def _solved(self) -> _Solution:
        if self._solution is None:
            self._solution = self._solve()
        return self._solution

    def _solve(self) -> _Solution:
        d, held = self.n_features_in_, self.moments_
        mean = held.mean_
        if self.alpha == "gcv":
            path = self._path("gcv").fit_moments(held, n_targets=len(mean) - d)
            coef, alpha, scores = path.coef_, path.alpha_, path.scores_
        else:
            alpha, scores = self._chosen if self.alpha == "loo" else (float(self.alpha), None)
            coef = self._weights(alpha)
        return _Solution(held, mean[:d], mean[d:], coef, alpha, scores, self.relative)

    def _weights(self, alpha: float) -> np.ndarray:
        """Weights of one penalty, by Cholesky's factor where there is one."""
        d, held = self.n_features_in_, self.moments_
        path, n_targets = RidgePath([alpha], relative=self.relative), len(held.mean_) - d
        rows = held.factor()
        if alpha == 0 or (rows is not None and len(rows) < d):
            return path.fit_moments(held, n_targets=n_targets).coef_
        scatter = held.scatter_[:d, :d]
        if self.relative and not scatter.any():
            return path.fit_moments(held, n_targets=n_targets).coef_
        shifted = penalized(scatter, alpha, relative=self.relative)
        return SymmetricFactor(shifted).solve(held.scatter_[:d, d:]).T

    # What was learned.

    def _known(self, name: str) -> _Solution:
        """What was solved for, for a fitted attribute: none exists before fit, as hasattr says."""
        if not hasattr(self, "moments_"):
            raise AttributeError(f"This {type(self).__name__} is not fitted, so has no {name!r}.")
        return self._solved

    @property
    def coef_(self) -> np.ndarray:
        """Weights."""
        coef = self._known("coef_").coef
        return coef if self._target_shape else coef[0]

    @property
    def intercept_(self) -> np.ndarray | float:
        """Offsets."""
        solved = self._known("intercept_")
        intercept = solved.offset - solved.coef @ solved.center
        return intercept if self._target_shape else float(intercept[0])

    @property
    def alpha_(self) -> float:
        """The penalty."""
        return self._known("alpha_").alpha

    @property
    def scores_(self) -> np.ndarray | None:
        """Scores of the penalties that were tried."""
        return self._known("scores_").scores

    # Predictions.

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the predicted targets.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_targets)
            As y was given; between 0 and 1 with ``link="sigmoid"``.
        """
        check_is_fitted(self)
        rows = as_tensor(validate_vectors(self, X, reset=False))
        solved = self._solved
        Y = apply_affine(rows, shift=solved.center, matrix=solved.coef.T, offset=solved.offset)
        Y = Y.cpu().numpy()
        Y = expit(Y) if self.link == "sigmoid" else Y
        return Y if self._target_shape else Y[:, 0]

    def predict_variance(self, X: ArrayLike) -> np.ndarray:
        r"""Return how uncertain the prediction of every row is, by its place among those learned.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        variances : ndarray of shape (n_samples,)
            The leverage :math:`1/n + (x - \bar x)^\top (T + \lambda I)^{-1} (x - \bar x)`:
            variances of linear predictions whose targets have noise of variance 1.
        """
        check_is_fitted(self)
        rows = as_tensor(validate_vectors(self, X, reset=False))
        solved = self._solved
        return row_leverages(rows, solved.center, solved.factor) + 1.0 / solved.moments.n_samples
