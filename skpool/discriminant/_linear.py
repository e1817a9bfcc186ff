# SPDX-License-Identifier: BSD-3-Clause
"""LinearDiscriminantClassifier: shrinkage LDA, which is streaming LDA when it learns in parts.

It keeps the moments of the classes and solves one linear system for its weights, so any order and
partition of the rows gives the same classifier, and rows can be forgotten.
"""

from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, MomentsMixin, log_priors, spread_columns
from skpool.statistics import ClassMoments, SymmetricFactor, covariance_from_moments
from skpool.utils import ArrayLike, apply_affine, as_tensor, numpy_or_tensor, validate_vectors

__all__ = ["LinearDiscriminantClassifier", "make_slda"]


class _Discriminant(NamedTuple):
    """What predictions are made of; classes that hold samples only."""

    center: np.ndarray  # (d,), where scores are the intercepts
    coef: np.ndarray  # (C, d)
    intercept: np.ndarray  # (C,), without priors
    covariance: np.ndarray  # (d, d) or (d,)
    shrinkage: float
    axes: np.ndarray  # (d, k), of the transform
    shares: np.ndarray  # (k,), of the variance between classes


class LinearDiscriminantClassifier(
    ClassScoresMixin,
    MomentsMixin,
    ClassNamePrefixFeaturesOutMixin,
    ClassifierMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Classes with one covariance: linear discriminant analysis with shrinkage, exact on streams.

    With the class means :math:`\mu_c`, the covariance :math:`\Sigma` pooled over the classes and
    shrunk, and the priors :math:`\pi_c`, a sample scores

    .. math:: s_c(x) = x^\top \Sigma^{-1} \mu_c
        - \tfrac12 \mu_c^\top \Sigma^{-1} \mu_c + \log \pi_c .

    Parameters
    ----------
    shrinkage : float, "oas" or "ledoit_wolf", default="oas"
        Share of the target in the covariance. "oas" [1]_ follows from the moments. "ledoit_wolf"
        [2]_ needs the rows, hence `fit`.
    target : {"identity", "unit", "diag"}, default="identity"
        What the covariance is shrunk towards: the identity times the mean variance; the identity
        itself, as streaming LDA does [3]_; or its own diagonal. The last two need a number.
    priors : {"empirical", "uniform"} or array-like of shape (n_classes,), default="empirical"
        Priors of the classes, in sorted order.
    n_components : int, default=None
        Directions that `transform` keeps; None for all, at most n_classes - 1.
    covariance : {"shared", "shared_diag"}, default="shared"
        A full matrix, or variances alone (needs a number as `shrinkage`).

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted, announced ones included.
    coef_ : ndarray of shape (n_classes, n_features)
        Weights; NaN for a class without samples.
    intercept_ : ndarray of shape (n_classes,)
        Offsets, priors included; -inf for a class without samples.
    means_ : ndarray of shape (n_classes, n_features)
        Means; NaN for a class without samples.
    covariance_ : ndarray of shape (n_features, n_features) or (n_features,)
        Shrunk, with divisor n.
    shrinkage_ : float
        Share of the target in it.
    explained_variance_ratio_ : ndarray of shape (n_components,)
        Shares of the variance between classes along the directions of `transform`.
    moments_ : ClassMoments
        Counts, means and scatter; everything above follows from them.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    sklearn.discriminant_analysis.LinearDiscriminantAnalysis : With ``solver="lsqr"`` and a number
        as shrinkage the same decisions; its "auto" shrinks every class by itself, and given priors
        weigh the covariances of the classes there, while here all rows weigh alike.
    skpool.prototypes.NearestClassMeanClassifier : ``metric="mahalanobis"`` scores alike.

    Notes
    -----
    `partial_fit` in any order and partition, `forget` and `merge` give what one `fit` gives, to
    rounding. They only touch the moments; the system is solved when a prediction needs it.
    `forget_class` needs the rows of the class (`forget`), since one scatter is shared.

    Cost: one product O(n d^2), one Cholesky factor O(d^3), and O(n d C) to predict; memory
    O(d^2 + C d). Scores are float32 for float32 and half precision, else float64.

    References
    ----------
    .. [1] Y. Chen et al., Shrinkage Algorithms for MMSE Covariance Estimation, 2010.
    .. [2] O. Ledoit, M. Wolf, A well-conditioned estimator for large-dimensional covariance
       matrices, 2004.
    .. [3] T. L. Hayes, C. Kanan, Lifelong Machine Learning with Deep Streaming Linear
       Discriminant Analysis, 2020. <https://arxiv.org/abs/1909.01520>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.discriminant import LinearDiscriminantClassifier
    >>> X = np.array([[0.0, 0.0], [1.0, 1.0], [4.0, 0.0], [5.0, 1.0]])
    >>> clf = LinearDiscriminantClassifier(0.1).partial_fit(X[:2], ["a", "a"])
    >>> clf.partial_fit(X[2:], ["b", "b"]).predict([[0.0, 0.5], [5.0, 0.5]])
    array(['a', 'b'], dtype='<U1')
    """

    _parameter_constraints: dict = {
        "shrinkage": [StrOptions({"oas", "ledoit_wolf"}), Interval(Real, 0, 1, closed="both")],
        "target": [StrOptions({"identity", "unit", "diag"})],
        "priors": [StrOptions({"empirical", "uniform"}), "array-like"],
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "covariance": [StrOptions({"shared", "shared_diag"})],
    }

    _solved_parameters = frozenset({"shrinkage", "target", "priors", "n_components"})

    def __init__(
        self,
        shrinkage: float | str = "oas",
        *,
        target: str = "identity",
        priors: object = "empirical",
        n_components: int | None = None,
        covariance: str = "shared",
    ):
        self.shrinkage = shrinkage
        self.target = target
        self.priors = priors
        self.n_components = n_components
        self.covariance = covariance

    # Learning.

    def _new_moments(self) -> ClassMoments:
        return ClassMoments(self.covariance)

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        super()._update(X, y, sample_weight)
        if self.shrinkage != "ledoit_wolf":
            return
        if sample_weight is not None:
            raise ValueError(
                'shrinkage="ledoit_wolf" is not defined with sample_weight; set shrinkage="oas" '
                "or a number."
            )
        self._share = covariance_from_moments(
            self.moments_, shrinkage="ledoit_wolf", X=X, y=y
        ).shrinkage

    def _check_learns_in_parts(self) -> bool:
        if self.shrinkage == "ledoit_wolf":
            raise AttributeError(
                'shrinkage="ledoit_wolf" follows from all rows together, not from their moments; '
                'call fit, or set shrinkage="oas" or a number.'
            )
        return True

    def _can_map(self) -> bool:
        return self._check_learns_in_parts()

    def _refresh(self) -> None:
        super()._refresh()
        # Refused here and not at the first prediction: these are parameters.
        self._check_options()
        self._priors_of_classes()

    def _check_options(self) -> None:
        named = isinstance(self.shrinkage, str)
        if named and (self.target != "identity" or self.covariance != "shared"):
            raise ValueError(
                f"shrinkage={self.shrinkage!r} is for target='identity' and covariance='shared', "
                f"and these are {self.target!r} and {self.covariance!r}; give a number."
            )

    def _counts(self) -> np.ndarray:
        held = self.moments_
        return spread_columns(held.counts_[None], held.classes_, self.classes_, fill=0.0)[0]

    def _priors_of_classes(self) -> np.ndarray:
        return log_priors(self.priors, self._counts())

    def _solve(self) -> _Discriminant:
        covariance, share = self._shrunk()
        means = self.moments_.means_
        center = self.moments_.counts_ @ means / self.moments_.counts_.sum()
        # Around the mean of all rows: it cancels between classes, and its digits are saved.
        shifted = means - center
        if covariance.ndim == 1:
            coef, half = shifted / covariance, shifted / np.sqrt(covariance)
            factor = None
        else:
            factor = SymmetricFactor(covariance)
            coef, half = factor.solve(shifted.T).T, factor.half(shifted)
        intercept = -0.5 * (half**2).sum(axis=1)
        axes, shares = self._axes(half, covariance, factor)
        return _Discriminant(center, coef, intercept, covariance, share, axes, shares)

    def _shrunk(self) -> tuple[np.ndarray, float]:
        held = self.moments_
        shrinkage = self._share if self.shrinkage == "ledoit_wolf" else self.shrinkage
        if held.scatter_ is not None and not held.scatter_.any():
            raise ValueError(
                f"All n_samples={held.counts_.sum():g} equal the mean of their class, so there is "
                "no covariance; give classes with more than one distinct sample."
            )
        if self.target == "identity":
            found = covariance_from_moments(held, self.covariance, shrinkage=shrinkage)
            return found.matrix, found.shrinkage
        matrix = covariance_from_moments(held, self.covariance).matrix
        target = np.ones(len(matrix))
        if self.target == "diag":
            target = matrix if matrix.ndim == 1 else np.diagonal(matrix)
        if matrix.ndim == 1:
            return (1 - shrinkage) * matrix + shrinkage * target, float(shrinkage)
        mixed = (1 - shrinkage) * matrix
        mixed.flat[:: len(mixed) + 1] += shrinkage * target
        return mixed, float(shrinkage)

    def _axes(
        self, half: np.ndarray, covariance: np.ndarray, factor: SymmetricFactor | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Directions in which the classes lie apart, in whitened coordinates brought back."""
        counts = self.moments_.counts_
        uniform = isinstance(self.priors, str) and self.priors == "uniform"
        weights = np.full(len(counts), 1 / len(counts)) if uniform else counts / counts.sum()
        apart = np.sqrt(weights)[:, None] * (half - weights @ half)
        _, singular, directions = np.linalg.svd(apart, full_matrices=False)
        known = int((singular > 1e-10 * singular.max(initial=0.0)).sum())
        kept = min(known, max(len(counts) - 1, 1), self.n_components or known)
        directions = directions[:kept].T
        if factor is None:
            axes = directions / np.sqrt(covariance)[:, None]
        else:
            axes = factor.half(np.eye(len(covariance))) @ directions
        total = (singular**2).sum()
        return axes, singular[:kept] ** 2 / total if total else singular[:kept]

    # What was learned.

    @property
    def coef_(self) -> np.ndarray:
        """Weights of the classes."""
        return self._of_classes("coef_", self._known("coef_").coef)

    @property
    def intercept_(self) -> np.ndarray:
        """Offsets of the classes, priors included."""
        solved = self._known("intercept_")
        intercept = (solved.intercept - solved.coef @ solved.center)[None]
        held = self.moments_.classes_
        spread = spread_columns(intercept, held, self.classes_, fill=-np.inf)[0]
        return spread + self._priors_of_classes()

    @property
    def means_(self) -> np.ndarray:
        """Means of the classes."""
        self._known("means_")
        return self._of_classes("means_", self.moments_.means_)

    @property
    def covariance_(self) -> np.ndarray:
        """The shrunk covariance."""
        return self._known("covariance_").covariance

    @property
    def shrinkage_(self) -> float:
        """Share of the target in the covariance."""
        return self._known("shrinkage_").shrinkage

    @property
    def explained_variance_ratio_(self) -> np.ndarray:
        """Shares of the variance between classes along the directions of `transform`."""
        return self._known("explained_variance_ratio_").shares

    def _of_classes(self, name: str, rows: np.ndarray) -> np.ndarray:
        return spread_columns(rows.T, self.moments_.classes_, self.classes_, fill=np.nan).T

    # Predictions.

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the discriminant of every class, up to a constant of the sample.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; -inf for a class without samples. Their softmax is
            the posterior.
        """
        check_is_fitted(self)
        rows = as_tensor(validate_vectors(self, X, reset=False))
        solved = self._solved
        scores = apply_affine(
            rows, shift=solved.center, matrix=solved.coef.T, offset=solved.intercept
        )
        scores = spread_columns(
            scores.cpu().numpy(), self.moments_.classes_, self.classes_, fill=-np.inf
        )
        return scores + self._priors_of_classes().astype(scores.dtype)

    def transform(self, X: ArrayLike) -> ArrayLike:
        """Project on the directions in which the classes lie apart, at unit variance within.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        Z : ndarray or tensor of shape (n_samples, n_components)
            The nearest class mean in these coordinates is the prediction under uniform priors,
            if all components are kept.
        """
        check_is_fitted(self)
        X = validate_vectors(self, X, reset=False)
        axes = self._solved.axes
        _, restore = numpy_or_tensor(X[:1])
        zero = np.zeros(axes.shape[1])
        return restore(
            apply_affine(as_tensor(X), shift=self._solved.center, matrix=axes, offset=zero)
        )

    @property
    def _n_features_out(self) -> int:
        return self._solved.axes.shape[1]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def make_slda(shrinkage: float = 1e-4) -> LinearDiscriminantClassifier:
    """Return streaming LDA as it was published, with its covariance computed exactly.

    Parameters
    ----------
    shrinkage : float, default=1e-4
        Share of the identity in the covariance.

    Returns
    -------
    classifier : LinearDiscriminantClassifier
        With uniform priors, shrunk towards the identity itself.

    Notes
    -----
    The released code scales the rank-one updates by the total count in place of the class's, and
    starts from a matrix of ones, so that its covariance depends on the order of the rows and is
    16 to 19 % away from the pooled one; here it is the pooled one, from the first row on.

    References
    ----------
    .. [1] T. L. Hayes, C. Kanan, Lifelong Machine Learning with Deep Streaming Linear
       Discriminant Analysis, 2020. <https://arxiv.org/abs/1909.01520>

    Examples
    --------
    >>> from skpool.discriminant import make_slda
    >>> make_slda()
    LinearDiscriminantClassifier(priors='uniform', shrinkage=0.0001, target='unit')
    """
    return LinearDiscriminantClassifier(shrinkage, target="unit", priors="uniform")
