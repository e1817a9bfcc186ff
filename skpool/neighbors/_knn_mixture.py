# SPDX-License-Identifier: BSD-3-Clause
"""KNNMixtureClassifier: the votes of neighbours beside a parametric head, in one probability.

Both see the same normalised features, so the normalisation stands inside the estimator.
"""

import warnings
from numbers import Integral, Real
from typing import ClassVar, Self

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, _fit_context, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from skpool.base import spread_columns
from skpool.neighbors._weighted_knn import WeightedKNNClassifier
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_labels,
    unchanged_on_error,
    unit_rows,
    validate_vectors,
    widened,
)

__all__ = ["KNNMixtureClassifier"]

_MIXINGS = tuple(round(0.05 * i, 2) for i in range(21))
_N_FOLDS = 5
# Logarithms of probabilities are clamped here, as in the released code.
_LOG_FLOOR = -100.0


def head_probabilities(head: BaseEstimator, Z: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the probabilities of a fitted classifier, one column per label in `classes`.

    Parameters
    ----------
    head : classifier
        With `predict_proba`, or `decision_function`, of which the softmax is taken.
    Z : ndarray of shape (n_samples, n_features)
        What it was fitted on looked like this.
    classes : ndarray of shape (n_classes,)
        Sorted labels; they hold all that the head knows.

    Returns
    -------
    probabilities : ndarray of shape (n_samples, n_classes)
        0 for labels that the head does not know.
    """
    if hasattr(head, "predict_proba"):
        columns = head.predict_proba(Z)
    else:
        scores = head.decision_function(Z)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        columns = softmax(scores, axis=1)
    return spread_columns(columns, head.classes_, classes, fill=0.0)


def mixing_scores(
    p_knn: np.ndarray, p_head: np.ndarray, codes: np.ndarray, mixings: tuple[float, ...]
) -> dict[float, float]:
    """Return the accuracy of every mixture of two matrices of probabilities.

    Parameters
    ----------
    p_knn, p_head : ndarray of shape (n_samples, n_classes)
        Probabilities.
    codes : ndarray of shape (n_samples,)
        Columns of the true classes.
    mixings : tuple of float
        Shares of `p_knn`.

    Returns
    -------
    scores : dict of float to float
        Accuracies.
    """
    mixed = ((mixing, mixing * p_knn + (1 - mixing) * p_head) for mixing in mixings)
    return {mixing: float((p.argmax(axis=1) == codes).mean()) for mixing, p in mixed}


class KNNMixtureClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    r"""Mixture of weighted nearest neighbours and another classifier.

    The probability of class :math:`c` is

    .. math:: p(c) = \lambda\, p_{knn}(c) + (1 - \lambda)\, p_{head}(c) ,

    where neighbours at distance :math:`d` vote with weight :math:`e^{-d^2/T}` [1]_. Neighbours
    remember what a linear head smooths away; the head generalises where they are noisy.

    Parameters
    ----------
    estimator : classifier, default=None
        The head. None takes scikit-learn's `LogisticRegression` with ``max_iter=1000``.
    n_neighbors : int, default=20
        The nearest samples that vote.
    temperature : float, default=1.0
        Divisor :math:`T` of the squared distances, or of minus the cosine; for unit vectors
        "euclidean" with 2 T is "cosine" with T.
    mixing : float or "cv", default=0.1
        Share of the neighbours. "cv" takes the one of 0, 0.05, ..., 1 at which neighbours that
        leave one out and heads that leave out a fold of 5 are most accurate together; of equally
        accurate ones the smallest.
    normalization : {"center_l2", "l2"} or None, default="center_l2"
        What is done to the rows, for neighbours and head alike: subtract the mean of the
        training rows, then divide by the norm; only the latter; or nothing.
    metric : {"cosine", "euclidean", "dot"}, default="euclidean"
        Metric of the neighbours.
    sample_weighting : {"knn", "focal"} or None, default=None
        Weights of the samples for the head, by the probability :math:`p` that their neighbours
        (without themselves) give to their class: :math:`1 - \alpha \log p`, with logarithms of
        at least -100, or :math:`(1 - p)^\gamma`.
    alpha : float, default=1.0
        For "knn".
    gamma : float, default=2.0
        For "focal".

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    estimator_ : classifier
        The fitted head.
    knn_ : WeightedKNNClassifier
        The neighbours, of normalised rows.
    mixing_ : float
        Share of the neighbours.
    mixing_scores_ : dict of float to float or None
        Accuracy of every share that was tried; None where one was given.
    mean_ : ndarray of shape (n_features,) or None
        Mean of the training rows; None without centring.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X had text column names.

    See Also
    --------
    WeightedKNNClassifier : The neighbours alone.

    Notes
    -----
    Cost: one fit of the head and a search per prediction; with ``mixing="cv"`` five more fits and
    one search of the training rows, after which every share is a sum of two matrices.

    References
    ----------
    .. [1] M. Jia, B.-C. Chen, Z. Wu, C. Cardie, S. Belongie, S.-N. Lim, Rethinking Nearest
       Neighbors for Visual Classification, 2021. <https://arxiv.org/abs/2112.08459>

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skpool.neighbors import KNNMixtureClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = KNNMixtureClassifier(mixing="cv", normalization=None).fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "estimator": [HasMethods(["fit", "predict"]), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "mixing": [StrOptions({"cv"}), Interval(Real, 0, 1, closed="both")],
        "normalization": [StrOptions({"center_l2", "l2"}), None],
        "metric": [StrOptions({"cosine", "euclidean", "dot"})],
        "sample_weighting": [StrOptions({"knn", "focal"}), None],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "gamma": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        estimator: BaseEstimator | None = None,
        *,
        n_neighbors: int = 20,
        temperature: float = 1.0,
        mixing: float | str = 0.1,
        normalization: str | None = "center_l2",
        metric: str = "euclidean",
        sample_weighting: str | None = None,
        alpha: float = 1.0,
        gamma: float = 2.0,
    ):
        self.estimator = estimator
        self.n_neighbors = n_neighbors
        self.temperature = temperature
        self.mixing = mixing
        self.normalization = normalization
        self.metric = metric
        self.sample_weighting = sample_weighting
        self.alpha = alpha
        self.gamma = gamma

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: ArrayLike, y: object) -> Self:
        """Store the samples, fit the head, and choose the share.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors; the head sees them on the host.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.

        Returns
        -------
        self : KNNMixtureClassifier
            The fitted classifier. If the call fails, it stays as it was.
        """
        with unchanged_on_error(self):
            X = validate_vectors(self, X)
            y = check_labels(y, n_samples=len(X))
            self._fit(X, y)
        return self

    def _fit(self, X: ArrayLike, y: np.ndarray) -> None:
        head = LogisticRegression(max_iter=1000) if self.estimator is None else self.estimator
        if self.sample_weighting is not None and not has_fit_parameter(head, "sample_weight"):
            raise ValueError(
                f"sample_weighting={self.sample_weighting!r} needs an estimator whose fit takes "
                f"sample_weight, which {type(head).__name__} does not; set it to None."
            )
        self.mean_ = None
        if self.normalization == "center_l2":
            self.mean_ = as_tensor(X).double().mean(dim=0).cpu().numpy()
        Z = self._normalized(X)
        knn = WeightedKNNClassifier(
            self.n_neighbors, temperature=self.temperature, metric=self.metric
        )
        self.knn_ = knn.fit(Z, y)
        self.classes_ = self.knn_.classes_
        codes = np.searchsorted(self.classes_, y)
        left_out = None
        if self.mixing == "cv" or self.sample_weighting is not None:
            left_out = self.knn_.loo_predict_proba()
        weights = self._weights(left_out, codes)
        self.estimator_ = _fitted(head, Z, y, weights)
        if not hasattr(self.estimator_, "predict_proba"):
            warnings.warn(
                f"{type(head).__name__} has no predict_proba, so the softmax of its decision "
                "function is mixed, which is not calibrated.",
                UserWarning,
                stacklevel=4,
            )
        self.mixing_, self.mixing_scores_ = self.mixing, None
        if self.mixing == "cv":
            p_head = _out_of_fold(head, Z, y, codes, weights, self.classes_)
            self.mixing_scores_ = mixing_scores(left_out, p_head, codes, _MIXINGS)
            self.mixing_ = max(self.mixing_scores_, key=self.mixing_scores_.get)

    def _normalized(self, X: ArrayLike) -> np.ndarray:
        rows = widened(as_tensor(X))
        if self.mean_ is not None:
            rows = rows - as_tensor(self.mean_).to(rows)
        return (rows if self.normalization is None else unit_rows(rows)).cpu().numpy()

    def _weights(self, left_out: np.ndarray | None, codes: np.ndarray) -> np.ndarray | None:
        if self.sample_weighting is None:
            return None
        own = left_out[np.arange(len(codes)), codes]
        if self.sample_weighting == "knn":
            with np.errstate(divide="ignore"):
                return 1 - self.alpha * np.maximum(np.log(own), _LOG_FLOOR)
        weights = (1 - own) ** self.gamma
        if not weights.any():
            raise ValueError(
                'sample_weighting="focal" leaves no sample a weight, because the neighbours are '
                "right and sure about all; set it to None."
            )
        return weights

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the mixed probabilities.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Rows sum to 1; columns in the order of `classes_`.
        """
        check_is_fitted(self)
        Z = self._normalized(validate_vectors(self, X, reset=False))
        p_head = head_probabilities(self.estimator_, Z, self.classes_)
        if self.mixing_ == 0:
            return p_head
        return self.mixing_ * self.knn_.predict_proba(Z) + (1 - self.mixing_) * p_head

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the most probable class.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Labels; of equal probabilities the first in `classes_` wins.
        """
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]


def _fitted(
    head: BaseEstimator, Z: np.ndarray, y: np.ndarray, weights: np.ndarray | None
) -> BaseEstimator:
    given = {} if weights is None else {"sample_weight": weights}
    return clone(head).fit(Z, y, **given)


def _out_of_fold(
    head: BaseEstimator,
    Z: np.ndarray,
    y: np.ndarray,
    codes: np.ndarray,
    weights: np.ndarray | None,
    classes: np.ndarray,
) -> np.ndarray:
    """Probabilities of the head for each sample, from the folds that it is not in."""
    # Folds of equal classes where every class has a sample for each.
    enough = np.bincount(codes).min() >= _N_FOLDS
    folds = (StratifiedKFold if enough else KFold)(
        min(_N_FOLDS, len(y)), shuffle=True, random_state=0
    )
    found = np.zeros((len(y), len(classes)))
    for train, test in folds.split(Z, codes):
        part = None if weights is None else weights[train]
        fitted = _fitted(head, Z[train], y[train], part)
        found[test] = head_probabilities(fitted, Z[test], classes)
    return found
