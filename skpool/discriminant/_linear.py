# SPDX-License-Identifier: BSD-3-Clause
"""LinearDiscriminantClassifier: shrinkage LDA, which is streaming LDA when it learns in parts.

It keeps the moments of the classes and solves one linear system for its weights, so any order and
partition of the rows gives the same classifier, and rows can be forgotten.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Self

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
from skpool.discriminant._leave_one_out import LeftOut, distances_without, loo_accuracies
from skpool.statistics import ClassMoments, SymmetricFactor, covariance_from_moments
from skpool.utils import (
    ArrayLike,
    apply_affine,
    as_tensor,
    check_finite,
    numpy_or_tensor,
    unchanged_on_error,
    validate_vectors,
)

__all__ = ["LinearDiscriminantClassifier", "make_slda"]

# Shrinkages that follow from the rows.
_FROM_ROWS = ("ledoit_wolf", "loo")
_SHRINKAGES = np.logspace(-4, 0, 13)
# Shrinkages from here on lie far above what float32 rounds off a product.
_SAFE_SHRINKAGE = 1e-3


@dataclass(frozen=True, eq=False)
class _Discriminant:
    """What predictions are made of; classes that hold samples only."""

    center: np.ndarray  # (d,), where scores are the intercepts
    coef: np.ndarray  # (C, d)
    intercept: np.ndarray  # (C,), without priors
    covariance: np.ndarray  # (d, d) or (d,)
    shrinkage: float
    shifted: np.ndarray  # (C, d), means around the center
    weights: np.ndarray  # (C,), of the classes in `axes`
    n_components: int | None

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Directions (d, k) in which the classes lie apart, and their shares of the variance."""
        covariance, weights = self.covariance, self.weights
        factor = SymmetricFactor(covariance) if covariance.ndim == 2 else None
        half = self.shifted / np.sqrt(covariance) if factor is None else factor.half(self.shifted)
        apart = np.sqrt(weights)[:, None] * (half - weights @ half)
        _, singular, directions = np.linalg.svd(apart, full_matrices=False)
        known = int((singular > 1e-10 * singular.max(initial=0.0)).sum())
        kept = min(known, max(len(weights) - 1, 1), self.n_components or known)
        directions = directions[:kept].T
        # Of whitened coordinates, brought back.
        if factor is None:
            axes = directions / np.sqrt(covariance)[:, None]
        else:
            axes = factor.half_back(directions)
        total = (singular**2).sum()
        return axes, singular[:kept] ** 2 / total if total else singular[:kept]


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
    shrinkage : float, "oas", "ledoit_wolf" or "loo", default="oas"
        Share of the target in the covariance. "oas" [1]_ follows from the moments. "ledoit_wolf"
        [2]_ and "loo", the best of `shrinkages` by the accuracy of predictions that leave one out,
        need the rows, hence `fit`.
    target : {"identity", "unit", "diag"}, default="identity"
        What the covariance is shrunk towards: the identity times the mean variance; the identity
        itself, as streaming LDA does [3]_; or its own diagonal. The last two need a number or
        "loo".
    shrinkages : array-like of shape (n_shrinkages,) or "auto", default="auto"
        Numbers from 0 to 1 that "loo" tries; "auto" takes 13 from 1e-4 to 1, evenly in logarithm.
    priors : {"empirical", "uniform"} or array-like of shape (n_classes,), default="empirical"
        Priors of the classes, in sorted order.
    n_components : int, default=None
        Directions that `transform` keeps; None for all, at most n_classes - 1.
    covariance : {"shared", "shared_diag"}, default="shared"
        A full matrix, or variances alone (needs a number or "loo" as `shrinkage`).
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
        Weights; NaN for a class without samples.
    intercept_ : ndarray of shape (n_classes,)
        Offsets, priors included; -inf for a class without samples.
    means_ : ndarray of shape (n_classes, n_features)
        Means; NaN for a class without samples.
    covariance_ : ndarray of shape (n_features, n_features) or (n_features,)
        Shrunk, with divisor n.
    shrinkage_ : float
        Share of the target in it.
    scores_ : ndarray of shape (n_shrinkages,) or None
        Accuracies of the `shrinkages` that "loo" tried, in ascending order of these; None
        otherwise. Of equal ones the largest shrinkage is taken.
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

    "ledoit_wolf" can be had on streams too, at n_classes times the memory: let `fit_moments` learn
    moments that were updated with ``scatter="per_class", fourth_order=True``.

    Cost: one product O(n d^2), one Cholesky factor O(d^3), and O(n d C) to predict; memory
    O(d^2 + C d). "loo" adds one eigendecomposition and O(n d C) per shrinkage. Scores are float32
    for float32 and half precision, else float64.

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
        "shrinkage": [
            StrOptions({"oas", "ledoit_wolf", "loo"}),
            Interval(Real, 0, 1, closed="both"),
        ],
        "target": [StrOptions({"identity", "unit", "diag"})],
        "shrinkages": [StrOptions({"auto"}), "array-like"],
        "priors": [StrOptions({"empirical", "uniform"}), "array-like"],
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "covariance": [StrOptions({"shared", "shared_diag"})],
        "refit_every": [Interval(Integral, 1, None, closed="left"), None],
    }

    _solved_parameters = frozenset({"shrinkage", "target", "priors", "n_components", "refit_every"})

    def __init__(
        self,
        shrinkage: float | str = "oas",
        *,
        target: str = "identity",
        shrinkages: ArrayLike | str = "auto",
        priors: object = "empirical",
        n_components: int | None = None,
        covariance: str = "shared",
        refit_every: int | None = None,
    ):
        self.shrinkage = shrinkage
        self.target = target
        self.shrinkages = shrinkages
        self.priors = priors
        self.n_components = n_components
        self.covariance = covariance
        self.refit_every = refit_every

    # Learning.

    def _new_moments(self) -> ClassMoments:
        # What little shrinkage divides by are the smallest eigenvalues, which float32 rounds away.
        little = self.shrinkage == "loo" or (
            not isinstance(self.shrinkage, str) and self.shrinkage < _SAFE_SHRINKAGE
        )
        return ClassMoments(self.covariance, product_dtype="float64" if little else "auto")

    def fit_moments(self, moments: ClassMoments) -> Self:
        """Learn from moments that were computed elsewhere, forgetting what was learned before.

        Parameters
        ----------
        moments : ClassMoments
            Of the rows; not changed. ``shrinkage="ledoit_wolf"`` needs ``fourth_order=True``,
            and "loo" is not possible.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            self._chosen = None
            return super().fit_moments(moments)

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        super()._update(X, y, sample_weight)
        self._check_options()
        if self.shrinkage == "loo":
            self._chosen = self._by_leaving_one_out(X, y, sample_weight)
        elif self.shrinkage == "ledoit_wolf":
            if sample_weight is not None:
                raise ValueError(
                    'shrinkage="ledoit_wolf" is not defined with sample_weight; set '
                    'shrinkage="oas" or a number.'
                )
            found = covariance_from_moments(self.moments_, shrinkage="ledoit_wolf", X=X, y=y)
            self._chosen = found.shrinkage, None

    def _by_leaving_one_out(
        self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None
    ) -> tuple[float, np.ndarray]:
        """The shrinkage of the best predictions, and the accuracies of all."""
        self._refuse_no_spread()
        auto = isinstance(self.shrinkages, str)
        shares = np.unique(_SHRINKAGES if auto else np.asarray(self.shrinkages, np.float64))
        if not (len(shares) and (shares >= 0).all() and (shares <= 1).all()):
            raise ValueError(
                f"shrinkages={self.shrinkages!r} is not valid; give at least one number, all from "
                "0 to 1."
            )
        rows, held = self._left_out(X, y, sample_weight), self.moments_
        priors = log_priors(self.priors, held.counts_)
        accuracies = loo_accuracies(
            rows,
            covariance_from_moments(held, self.covariance).matrix,
            target=self.target,
            shares=shares,
            priors=lambda scores, part: self._add_reduced_priors(scores, rows, part, priors),
        )
        # Of equal ones the largest: the last.
        best = len(shares) - 1 - int(accuracies[::-1].argmax())
        return float(shares[best]), accuracies

    def _left_out(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> LeftOut:
        held = self.moments_
        own = np.searchsorted(held.classes_, y)
        weights = np.ones(len(y)) if sample_weight is None else sample_weight
        return LeftOut(X, own, weights, held.means_, held.counts_)

    def _add_reduced_priors(
        self, scores: np.ndarray, rows: LeftOut, part: slice, priors: np.ndarray
    ) -> None:
        """Add the logarithms of the priors, of the samples that are left where they are counted."""
        scores += priors
        if isinstance(self.priors, str) and self.priors == "empirical":
            own, weights, n = rows.own[part], rows.weights[part], rows.counts.sum()
            held = rows.counts[own]
            left = np.maximum(held - weights, np.finfo(np.float64).tiny)
            scores[np.arange(len(own)), own] += np.log(left / held)
            scores -= np.log((n - weights) / n)[:, None]

    def _check_learns_in_parts(self) -> bool:
        if self.shrinkage in _FROM_ROWS:
            raise AttributeError(
                f'shrinkage="{self.shrinkage}" follows from all rows together, not from their '
                'moments; call fit, or set shrinkage="oas" or a number.'
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
        full, needed = self.covariance == "shared", "target='identity' and covariance='shared'"
        fits = full and self.target == "identity"
        if self.shrinkage == "loo":
            # Variances that are shrunk towards themselves leave nothing to choose.
            fits, needed = full or self.target != "diag", "target='identity' or 'unit'"
        if isinstance(self.shrinkage, str) and not fits:
            raise ValueError(
                f"shrinkage={self.shrinkage!r} is for {needed}, and these are "
                f"target={self.target!r} and covariance={self.covariance!r}; give a number."
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
        else:
            factor = SymmetricFactor(covariance)
            if share == 0:
                self._refuse_singular(factor)
            coef, half = factor.solve(shifted.T).T, factor.half(shifted)
        intercept = -0.5 * (half**2).sum(axis=1)
        counts = self.moments_.counts_
        uniform = isinstance(self.priors, str) and self.priors == "uniform"
        weights = np.full(len(counts), 1 / len(counts)) if uniform else counts / counts.sum()
        return _Discriminant(
            center, coef, intercept, covariance, share, shifted, weights, self.n_components
        )

    def _shrunk(self) -> tuple[np.ndarray, float]:
        held, shrinkage = self.moments_, self.shrinkage
        if shrinkage in _FROM_ROWS and self._chosen is not None:
            shrinkage = self._chosen[0]
        self._refuse_no_spread()
        if shrinkage == "loo":
            raise ValueError(
                'shrinkage="loo" follows from the rows, and moments are given; call fit, or set '
                'shrinkage="oas" or a number.'
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

    def _refuse_singular(self, factor: SymmetricFactor) -> None:
        counts = self.moments_.counts_
        # Rows of weight 1: fewer than this span too little, whatever rounding says.
        rows = counts.sum() if self.moments_.counts_sq_.sum() == counts.sum() else np.inf
        if factor.jitter_ > 0 or rows - len(counts) < self.n_features_in_:
            raise ValueError(
                f"The covariance of n_samples={counts.sum():g} in {len(counts)} classes and "
                f"{self.n_features_in_} features is singular, and shrinkage=0 needs its inverse; "
                'set shrinkage above 0, or "oas".'
            )

    def _refuse_no_spread(self) -> None:
        held = self.moments_
        if held.scatter_ is not None and not held.scatter_.any():
            raise ValueError(
                f"All n_samples={held.counts_.sum():g} equal the mean of their class, so there is "
                "no covariance; give classes with more than one distinct sample."
            )

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
    def scores_(self) -> np.ndarray | None:
        """Accuracies of the shrinkages that leaving one out tried."""
        self._known("scores_")
        return self._chosen[1] if self.shrinkage == "loo" else None

    @property
    def explained_variance_ratio_(self) -> np.ndarray:
        """Shares of the variance between classes along the directions of `transform`."""
        return self._known("explained_variance_ratio_").axes[1]

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

    def loo_scores(self, X: ArrayLike, y: object) -> np.ndarray:
        """Return the class scores of learned samples, each as if it had not been learned.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Samples that were learned, with weight 1. That they were is not checked.
        y : array-like of shape (n_samples,)
            Their labels.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Minus half the squared Mahalanobis distances to the means of the classes, plus the
            logarithms of the priors, of what is left without each sample: equal to `class_scores`
            of a refit up to a constant of the sample. float64; -inf for the class of its only
            sample, NaN with a warning where a sample alone spans a direction.

        Notes
        -----
        The divisor of the covariance follows the samples that are left, and so do empirical
        priors. The multiple of the target that is added to the scatter stays what it is with all
        samples, although a shrinkage as a share would make it depend on them.

        Cost: one map of the rows O(n d^2), which variances alone do not need, and products with
        the means O(n d C).
        """
        check_is_fitted(self)
        X, y, _ = self._check_batch(X, y, None, reset=False)
        check_finite(X)
        self._check_seen(y)
        solved, rows = self._solved_anew, self._left_out(X, y, None)
        pull = (1 - solved.shrinkage) / rows.counts.sum()
        priors = self._priors_of_classes()[np.isin(self.classes_, self.moments_.classes_)]
        scores = np.empty((len(y), len(rows.means)))
        for part, distances in distances_without(rows, solved.covariance, pull):
            scores[part] = -0.5 * distances
            self._add_reduced_priors(scores[part], rows, part, priors)
        lost = np.isnan(scores).any(axis=1)
        if lost.any():
            warnings.warn(
                f"{lost.sum()} samples, the first at {int(lost.argmax())}, alone span a direction, "
                "so their scores without them are NaN; raise shrinkage.",
                UserWarning,
                stacklevel=2,
            )
        return spread_columns(scores, self.moments_.classes_, self.classes_, fill=-np.inf)

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
        axes = self._solved.axes[0]
        _, restore = numpy_or_tensor(X[:1])
        zero = np.zeros(axes.shape[1])
        return restore(
            apply_affine(as_tensor(X), shift=self._solved.center, matrix=axes, offset=zero)
        )

    @property
    def _n_features_out(self) -> int:
        return self._solved.axes[0].shape[1]

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
    learns the first row of a class as if its mean were 0, so that its covariance depends on the
    order of the rows and lies 15 % from the pooled one at 50 rows a class and more than 100 % at
    5 (docs/published_codes.md); here it is the pooled one, from the first row on.

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
