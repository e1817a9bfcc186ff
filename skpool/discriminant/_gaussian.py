# SPDX-License-Identifier: BSD-3-Clause
"""GaussianClassifier: a Gaussian per class, from the moments of the classes.

Quadratic discriminant analysis, regularised as far as linear discriminant analysis, with variances
alone or in few dimensions, and the Mahalanobis classifiers of few-shot and incremental learning.
"""

import math
import warnings
from numbers import Integral, Real
from typing import Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, MomentsMixin, log_priors, spread_columns
from skpool.statistics import ClassDistances, ClassMoments, class_distances
from skpool.utils import ArrayLike, as_tensor, row_batches, unit_rows, validate_vectors, widened

__all__ = ["GaussianClassifier", "make_fecam"]

_SCATTERS = {"shared": "shared", "diag": "diag"}
# From so many bytes of scatters on, a class that arrives is announced by a warning.
_MANY_BYTES = 2 * 2**30


class GaussianClassifier(ClassScoresMixin, MomentsMixin, ClassifierMixin, BaseEstimator):
    r"""Classes with Gaussian distributions of their own: QDA, Mahalanobis distances, FeCAM.

    With the mean :math:`\mu_c`, the covariance :math:`\Sigma_c` and the prior :math:`\pi_c` of a
    class, a sample scores

    .. math:: s_c(x) = -\tfrac12 (x - \mu_c)^\top \Sigma_c^{-1} (x - \mu_c)
        - \tfrac12 \log \det \Sigma_c + \log \pi_c .

    The covariance of a class starts from :math:`(1 - a) C_c + a C`, with the covariance
    :math:`C_c` of its samples, the pooled one :math:`C` and the blend :math:`a`, which is then
    shrunk [1]_: quadratic discriminant analysis for ``blend=0, shrinkage=0``, linear discriminant
    analysis for ``blend=1``.

    Parameters
    ----------
    covariance : {"per_class", "shared", "diag", "low_rank", "class_task"}, default="per_class"
        A full matrix per class; one for all classes; variances per class; the `rank` largest
        eigenpairs per class with one variance for the rest of the space [2]_; or
        :math:`\frac{n_c}{n_c + 1} C_c + \frac{1}{n_c + 1} C_{\text{total}} + I`, as Simple CNAPS
        [3]_, which uses neither `shrinkage` nor `blend`.
    shrinkage : float, "oas", "ledoit_wolf" or ("additive", g1, g2), default="oas"
        Share of the identity times the mean variance in each covariance, as a number, by oracle
        approximating shrinkage, or by Ledoit and Wolf's; or multiples of the mean variance and of
        the mean covariance that are added to the diagonal and to the rest [4]_. "diag" needs a
        number.
    blend : float, default=0.9
        Share of the pooled covariance, from 0 to 1; few classes have samples enough for a
        covariance of their own. Not used by "shared".
    rank : int, default=32
        Eigenpairs of "low_rank".
    correlation : bool, default=False
        Whether covariances are divided by their standard deviations, and so made correlations,
        while samples are not: the classes become comparable [4]_, but are no densities.
    log_det : bool, default=True
        Whether scores hold the determinants.
    priors : {"empirical", "uniform"} or array-like of shape (n_classes,), default="empirical"
        Priors of the classes, in sorted order.
    normalize : {"l2"} or None, default=None
        "l2" divides every row by its norm, before it is learned and before it is scored; None
        takes rows as they are.
    power : float or None, default=None
        Exponent above 0 and up to 1 that features are raised to, before `normalize`; they must be
        at least 0. None takes them as they are.
    min_count : int or None, default=None
        A class of fewer samples takes the pooled covariance. None is a tenth of the features, at
        least 2. Not used by "shared" and "class_task".
    ddof : int, default=0
        Subtracted from the numbers of samples in the divisors of covariances; 0 is what
        scikit-learn takes, 1 is unbiased.
    refit_every : int or None, default=None
        Rows that may be learned before what predictions are made of is solved for again, so that
        a stream that learns and predicts in turn solves once in so many rows. None solves at the
        first prediction after any change, as a new class, `forget`, `forget_class` and `merge`
        always make it.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted, announced ones included.
    means_ : ndarray of shape (n_classes, n_features)
        Means; NaN for a class without samples.
    covariance_ : ndarray of shape (n_classes, n_features, n_features), \
            (n_features, n_features) or (n_classes, n_features)
        Regularised covariances of all classes, of "shared", or variances of "diag"; NaN for a
        class without samples. Computed from their factors when asked for.
    shrinkage_ : ndarray of shape (n_classes,)
        Share of the identity in each covariance; NaN for a class without samples.
    moments_ : ClassMoments
        Counts, means and scatters; everything above follows from them.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    LinearDiscriminantClassifier : One covariance, and scores that are linear in the features.
    sklearn.discriminant_analysis.QuadraticDiscriminantAnalysis : The same decisions for
        ``blend=0``, with ``shrinkage=0`` or, by its "eigen" solver, another number.

    Notes
    -----
    `partial_fit` in any order and partition, `forget` and `merge` give what one `fit` gives, to
    rounding. They only touch the moments; covariances are factored when a prediction needs them.
    With "shared", `forget_class` needs the rows of the class (`forget`).

    Scores are float64. Rows of float32 are multiplied in float32 for classes whose covariance is
    conditioned well enough for 1e-5 of a distance, and in float64 for others.

    Cost for C classes: one product O(n d^2), then O(C d^3) to factor, and n C d^2 operations to
    score n rows. Memory: the scatters take 8 C d^2 bytes and the factors another 4.5 C d^2 (7 once
    float32 was scored); "low_rank" saves the second, "diag" and "shared" both. Learning warns
    where the scatters pass 2 GB.

    References
    ----------
    .. [1] J. H. Friedman, Regularized Discriminant Analysis, 1989.
    .. [2] M. E. Tipping, C. M. Bishop, Probabilistic Principal Component Analysis, 1999.
    .. [3] P. Bateni, R. Goyal, V. Masrani, F. Wood, L. Sigal, Improved Few-Shot Visual
       Classification, 2020. <https://arxiv.org/abs/1912.03432>
    .. [4] D. Goswami, Y. Liu, B. Twardowski, J. van de Weijer, FeCAM: Exploiting the Heterogeneity
       of Class Distributions in Exemplar-Free Continual Learning, 2023.
       <https://arxiv.org/abs/2309.14062>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.discriminant import GaussianClassifier
    >>> narrow = [[-1.0], [0.0], [1.0]]
    >>> clf = GaussianClassifier(blend=0.0).partial_fit(narrow, ["narrow"] * 3)
    >>> wide = [[-9.0], [0.0], [9.0]]
    >>> clf.partial_fit(wide, ["wide"] * 3).predict([[0.5], [5.0]])
    array(['narrow', 'wide'], dtype='<U6')
    >>> clf.mahalanobis([[1.0]]).round(3)
    array([[1.5  , 0.019]])
    """

    _parameter_constraints: dict = {
        "covariance": [StrOptions({"per_class", "shared", "diag", "low_rank", "class_task"})],
        "shrinkage": [
            StrOptions({"oas", "ledoit_wolf"}),
            Interval(Real, 0, 1, closed="both"),
            tuple,
        ],
        "blend": [Interval(Real, 0, 1, closed="both")],
        "rank": [Interval(Integral, 1, None, closed="left")],
        "correlation": ["boolean"],
        "log_det": ["boolean"],
        "priors": [StrOptions({"empirical", "uniform"}), "array-like"],
        "normalize": [StrOptions({"l2"}), None],
        "power": [Interval(Real, 0, 1, closed="right"), None],
        "min_count": [Interval(Integral, 1, None, closed="left"), None],
        "ddof": [Interval(Integral, 0, None, closed="left")],
        "refit_every": [Interval(Integral, 1, None, closed="left"), None],
    }

    _solved_parameters = frozenset(
        {"blend", "rank", "correlation", "log_det", "priors", "min_count", "ddof", "refit_every"}
    )

    def __init__(
        self,
        covariance: str = "per_class",
        *,
        shrinkage: float | str | tuple = "oas",
        blend: float = 0.9,
        rank: int = 32,
        correlation: bool = False,
        log_det: bool = True,
        priors: object = "empirical",
        normalize: str | None = None,
        power: float | None = None,
        min_count: int | None = None,
        ddof: int = 0,
        refit_every: int | None = None,
    ):
        self.covariance = covariance
        self.shrinkage = shrinkage
        self.blend = blend
        self.rank = rank
        self.correlation = correlation
        self.log_det = log_det
        self.priors = priors
        self.normalize = normalize
        self.power = power
        self.min_count = min_count
        self.ddof = ddof
        self.refit_every = refit_every

    # Learning.

    def _new_moments(self) -> ClassMoments:
        if self.shrinkage == "ledoit_wolf" and self.covariance != "class_task":
            return ClassMoments("per_class", fourth_order=True)
        return ClassMoments(_SCATTERS.get(self.covariance, "per_class"))

    def _prepared(self, X: ArrayLike) -> ArrayLike:
        if self.power is None and self.normalize is None:
            return X
        rows = widened(as_tensor(X))
        if self.power is not None:
            if bool((rows < 0).any()):
                raise ValueError(
                    f"X holds {float(rows.min()):g}, and power={self.power} is for features of at "
                    "least 0; set power=None, or put PowerNormalizer, which keeps signs, before."
                )
            rows = rows**self.power
        return rows if self.normalize is None else unit_rows(rows)

    def _prepared_row_bytes(self) -> int:
        changed = self.power is not None or self.normalize is not None
        return 32 * getattr(self, "n_features_in_", 1) if changed else 0

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        self._warn_of_memory(y)
        super()._update(X, y, sample_weight)

    def _warn_of_memory(self, y: np.ndarray) -> None:
        held = self.moments_.classes_.tolist()
        known = len({*held, *np.unique(y).tolist()})
        taken = 8 * known * self.n_features_in_**2
        if self.moments_.scatter != "per_class" or known == len(held) or taken <= _MANY_BYTES:
            return
        warnings.warn(
            f"The scatters of {known} classes with covariance={self.covariance!r} take "
            f"{taken / 2**30:.1f} GB, and factors of full matrices half as much again; "
            "covariance='low_rank' needs next to no factors, 'diag' and 'shared' neither.",
            UserWarning,
            stacklevel=2,
        )

    def _merge(self, other: Self) -> None:
        for name in ("normalize", "power"):
            if getattr(other, name) != getattr(self, name):
                raise ValueError(
                    f"other has {name}={getattr(other, name)!r} and this classifier "
                    f"{name}={getattr(self, name)!r}, so their moments are of other rows; merge "
                    "classifiers that prepare rows alike."
                )
        super()._merge(other)

    def _can_map(self) -> bool:
        # Moments of changed rows, variances and fourth moments say nothing of rows that are
        # mapped before.
        plain = self.normalize is None and self.power is None
        return plain and self.covariance != "diag" and self.shrinkage != "ledoit_wolf"

    def _refresh(self) -> None:
        super()._refresh()
        # Refused here and not at the first prediction: these are parameters.
        self._check_options()
        self._priors_of_classes()

    def _check_options(self) -> None:
        shrinkage = self.shrinkage
        if self.covariance == "diag" and not isinstance(shrinkage, Real):
            raise ValueError(
                f"shrinkage={shrinkage!r} is for full matrices, and covariance='diag' has none; "
                "give a number."
            )
        if isinstance(shrinkage, tuple):
            numbers = [g for g in shrinkage[1:] if isinstance(g, Real) and 0 <= g < math.inf]
            if len(shrinkage) != 3 or shrinkage[0] != "additive" or len(numbers) != 2:
                raise ValueError(
                    f'shrinkage={shrinkage!r} is not valid; give ("additive", g1, g2) with numbers '
                    "of at least 0."
                )

    def _priors_of_classes(self) -> np.ndarray:
        counts = self._of_classes(self.moments_.counts_, 0.0)
        return log_priors(self.priors, counts)

    def _solve(self) -> ClassDistances:
        return class_distances(
            self.moments_,
            self.covariance,
            shrinkage=self.shrinkage,
            blend=self.blend,
            min_count=self.min_count,
            rank=self.rank,
            correlation=self.correlation,
            ddof=self.ddof,
        )

    # What was learned.

    @property
    def means_(self) -> np.ndarray:
        """Means of the classes."""
        self._known("means_")
        return self._of_classes(self.moments_.means_, np.nan)

    @property
    def covariance_(self) -> np.ndarray:
        """Regularised covariances."""
        solved = self._known("covariance_")
        if self.covariance == "shared":
            return solved.matrix(0)
        if self.covariance == "diag":
            return self._of_classes(solved.variances, np.nan)
        matrices = [solved.matrix(k) for k in range(len(self.moments_.classes_))]
        return self._of_classes(np.stack(matrices), np.nan)

    @property
    def shrinkage_(self) -> np.ndarray:
        """Share of the identity in each covariance."""
        return self._of_classes(self._known("shrinkage_").shrinkage, np.nan)

    def _of_classes(self, values: np.ndarray, fill: float) -> np.ndarray:
        """Place what belongs to classes with samples among all classes."""
        spread = np.full((len(self.classes_), *values.shape[1:]), fill)
        spread[np.isin(self.classes_, self.moments_.classes_)] = values
        return spread

    # Predictions.

    def mahalanobis(self, X: ArrayLike) -> np.ndarray:
        """Return the squared Mahalanobis distances to the means of the classes.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        distances : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; inf for a class without samples.
        """
        return self._spread(self._distances(X), np.inf)

    def log_likelihood(self, X: ArrayLike) -> np.ndarray:
        """Return the logarithms of the densities of the classes.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        values : ndarray of shape (n_samples, n_classes)
            Of the rows as they are after `power` and `normalize`; determinants are always in.
            Columns in the order of `classes_`; -inf for a class without samples.
        """
        self._refuse_correlations()
        values = -0.5 * (self._distances(X) + self._solved.log_determinants)
        values -= 0.5 * self.n_features_in_ * math.log(2 * math.pi)
        return self._spread(values, -np.inf)

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the discriminant of every class.

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
        scores = self._distances(X)
        if self.log_det:
            scores += self._solved.log_determinants
        scores *= -0.5
        return self._spread(scores, -np.inf) + self._priors_of_classes()

    def sample(
        self, label: object, n_samples: int = 1, *, random_state: object = None
    ) -> np.ndarray:
        """Draw rows from the Gaussian of a class.

        Parameters
        ----------
        label : int, bool or str
            A class that holds samples.
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState instance or None, default=None
            Determines the rows; pass an int for the same ones in every call.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Rows as they are after `power` and `normalize`, to which these cannot be applied again.
        """
        check_is_fitted(self)
        self._refuse_correlations()
        held = self.moments_.classes_.tolist()
        if label not in held:
            raise ValueError(
                f"label={label!r} is not a class with samples; there are {len(held)}, see "
                "`classes_`."
            )
        k = held.index(label)
        normal = check_random_state(random_state).standard_normal((n_samples, self.n_features_in_))
        return self.moments_.means_[k] + self._solved.colored(k, normal)

    def _refuse_correlations(self) -> None:
        if self.correlation:
            raise ValueError(
                "correlation=True divides covariances by the standard deviations and not the rows, "
                "so there are no densities; set correlation=False."
            )

    def _distances(self, X: ArrayLike) -> np.ndarray:
        """Squared distances to classes that hold samples, a block of rows at a time."""
        check_is_fitted(self)
        X = validate_vectors(self, X, reset=False)
        solved = self._solved
        parts = row_batches(len(X), 32 * self.n_features_in_)
        found = [solved.squared(widened(as_tensor(self._prepared(X[part])))) for part in parts]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _spread(self, columns: np.ndarray, fill: float) -> np.ndarray:
        return spread_columns(columns, self.moments_.classes_, self.classes_, fill=fill)


def make_fecam(nonnegative: bool = True) -> GaussianClassifier:
    """Return FeCAM's classifier, with all its steps in one space and each of them once.

    Parameters
    ----------
    nonnegative : bool, default=True
        Whether features are at least 0, as those of residual networks are after their last
        rectifier: they are then raised to the power 0.5, and the mean covariance is added to the
        covariances too. Those of transformers have both signs.

    Returns
    -------
    classifier : GaussianClassifier
        Mahalanobis distances of rows of unit length, with correlations per class.

    Notes
    -----
    The released code shrinks twice for residual networks, takes the covariances of rows that are
    not normalised and the distances of rows that are, and leaves out the power in the first
    session. A class of one sample takes the pooled covariance here. Shrinking twice by 1 is
    shrinking once by 3, which ``shrinkage=("additive", 3.0, 3.0)`` asks for where it helps.

    References
    ----------
    .. [1] D. Goswami, Y. Liu, B. Twardowski, J. van de Weijer, FeCAM: Exploiting the Heterogeneity
       of Class Distributions in Exemplar-Free Continual Learning, 2023.
       <https://arxiv.org/abs/2309.14062>

    Examples
    --------
    >>> from skpool.discriminant import make_fecam
    >>> make_fecam(nonnegative=False).shrinkage
    ('additive', 1.0, 0.0)
    """
    return GaussianClassifier(
        "per_class",
        shrinkage=("additive", 1.0, 1.0 if nonnegative else 0.0),
        blend=0.0,
        correlation=True,
        log_det=False,
        priors="uniform",
        normalize="l2",
        power=0.5 if nonnegative else None,
        min_count=2,
    )
