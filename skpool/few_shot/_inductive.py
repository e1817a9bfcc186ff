# SPDX-License-Identifier: BSD-3-Clause
"""Baselines that look at one query at a time: RFS, and discriminants with a borrowed covariance.

What is learned from a few rows here is little: a regularised linear head, or class means in a
space whose shape was learned from other classes.
"""

from copy import copy
from numbers import Real
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if

from skpool.discriminant import LinearDiscriminantClassifier
from skpool.preprocessing import L2Normalizer
from skpool.statistics import ClassMoments, RunningMoments, covariance_from_moments
from skpool.utils import ArrayLike, full_float32

if TYPE_CHECKING:
    from skpool.model_selection import EpisodeBatch

__all__ = ["BaseCovarianceClassifier", "make_rfs"]


def make_rfs(C: float = 1.0, *, max_iter: int = 1000) -> Pipeline:
    """Return the baseline of RFS: logistic regression on unit rows.

    Parameters
    ----------
    C : float, default=1.0
        Weight of the errors against the penalty. 1 is the choice of the paper; with a handful of
        rows it regularises strongly. Choose another on classes that are not those of the
        evaluation.
    max_iter : int, default=1000
        Most iterations of the solver.

    Returns
    -------
    pipeline : Pipeline
        `L2Normalizer` and scikit-learn's `LogisticRegression`, not fitted.

    See Also
    --------
    EpisodicLinear : In place of the last step, the same predictions for many episodes at once.

    Notes
    -----
    The paper adds five augmented copies of every support image: views of an image are further
    rows with its label.

    References
    ----------
    .. [1] Y. Tian, Y. Wang, D. Krishnan, J. B. Tenenbaum, P. Isola, Rethinking Few-Shot Image
       Classification: a Good Embedding Is All You Need?, 2020. <https://arxiv.org/abs/2003.11539>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.few_shot import make_rfs
    >>> X = np.array([[5.0, 0.0], [0.0, 2.0]])
    >>> make_rfs().fit(X, ["cat", "dog"]).predict([[0.5, 9.0]])
    array(['dog'], dtype='<U3')
    """
    return make_pipeline(L2Normalizer(), LogisticRegression(C=C, max_iter=max_iter))


def _has_no_base(estimator: "BaseCovarianceClassifier") -> bool:
    if estimator.base_moments is not None:
        raise AttributeError(
            "loo_scores is of the covariance of the samples learned; use cross_val_predict, or "
            "base_moments=None."
        )
    return True


def _has_base(estimator: "BaseCovarianceClassifier") -> bool:
    if estimator.base_moments is None:
        raise AttributeError(
            "predict_episodes needs a covariance that all episodes share; give base_moments."
        )
    return True


class BaseCovarianceClassifier(LinearDiscriminantClassifier):
    r"""Discriminant analysis whose covariance comes from other classes.

    A few rows give class means, and no covariance. With the covariance :math:`B` within base
    classes, of which there are many rows, that within the classes learned, :math:`C`, the weight
    :math:`w` and the shrinkage :math:`s`, a sample has the class of the highest

    .. math:: -\tfrac12 (x - \mu_c)^\top \Sigma^{-1} (x - \mu_c) + \log \pi_c , \qquad
        \Sigma = (1 - s) \bigl(w B + (1 - w) C\bigr) + s \frac{\operatorname{tr} B}{d} I .

    With :math:`s = 1`, or with :math:`w = 0` and one row per class, this is the nearest class
    mean.

    Parameters
    ----------
    base_moments : ClassMoments, RunningMoments or None, default=None
        Of base classes, with their shared scatter, in the space of the rows; clones share it.
        With None the classes that are learned are the base, and `weight` plays no part: this is
        `LinearDiscriminantClassifier`.
    weight : float, default=1.0
        Share of the base covariance, from 0 to 1.
    shrinkage : float or "oas", default="oas"
        Share of the identity times the mean base variance, from 0 to 1; "oas" follows from the
        base moments.
    priors : {"empirical", "uniform"} or array-like of shape (n_classes,), default="uniform"
        Priors of the classes, in sorted order; episodes have uniform ones.

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
    covariance_ : ndarray of shape (n_features, n_features)
        :math:`\Sigma`.
    shrinkage_ : float
        Share of the identity in it.
    scores_ : None
        Of a search that this classifier does not make.
    explained_variance_ratio_ : ndarray of shape (n_components,)
        Shares of the variance between classes along the directions of `transform`.
    moments_ : ClassMoments
        Of the classes learned.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.

    See Also
    --------
    skpool.discriminant.LinearDiscriminantClassifier : With the covariance of the classes learned.
    skpool.discriminant.GaussianClassifier : ``covariance="class_task"`` mixes the covariances of
        class and episode, as Simple CNAPS does.

    Notes
    -----
    The base classes must not be those of the episodes. Choose `shrinkage` on classes that are
    neither: whitening raises the directions in which a mean of one row is mostly noise, and "oas",
    which is right for the base covariance by itself, can be worse than the nearest class mean,
    which is a shrinkage of 1. `partial_fit`, `forget` and `merge` are
    exact, and leave the base as it is.

    Cost: O(n d) to learn and one Cholesky factor O(d^3); with a weight below 1, O(n d^2). Many
    episodes share the factor: O(d^2) per row, and for a weight below 1 a system of as many
    unknowns as an episode has supports.

    References
    ----------
    .. [1] P. Bateni, R. Goyal, V. Masrani, F. Wood, L. Sigal, Improved Few-Shot Visual
       Classification, 2020. <https://arxiv.org/abs/1912.03432>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.few_shot import BaseCovarianceClassifier
    >>> from skpool.statistics import ClassMoments
    >>> rows = np.random.default_rng(0).normal(size=(200, 2)) * [10.0, 0.1]
    >>> base = ClassMoments("shared").update(rows, np.arange(200) % 4)
    >>> clf = BaseCovarianceClassifier(base, shrinkage=0.0)
    >>> clf.fit([[0.0, 0.0], [9.0, 1.0]], ["cat", "dog"]).predict([[9.0, 0.1]])
    array(['cat'], dtype='<U3')
    """

    _parameter_constraints: ClassVar[dict] = {
        "base_moments": [ClassMoments, RunningMoments, None],
        "weight": [Interval(Real, 0, 1, closed="both")],
        "shrinkage": [StrOptions({"oas"}), Interval(Real, 0, 1, closed="both")],
        "priors": [StrOptions({"empirical", "uniform"}), "array-like"],
    }

    _solved_parameters = frozenset({"shrinkage", "priors"})

    # Parameters of the parent that base moments leave no room for.
    target = "identity"
    shrinkages = "auto"
    n_components = None
    covariance = "shared"

    def __init__(
        self,
        base_moments: ClassMoments | RunningMoments | None = None,
        *,
        weight: float = 1.0,
        shrinkage: float | str = "oas",
        priors: object = "uniform",
    ):
        self.base_moments = base_moments
        self.weight = weight
        self.shrinkage = shrinkage
        self.priors = priors

    def __sklearn_clone__(self) -> Self:
        """Clone with the same base: moments by themselves clone as empty ones."""
        bare = copy(self)
        bare.base_moments = None
        cloned = super(BaseCovarianceClassifier, bare).__sklearn_clone__()
        return cloned.set_params(base_moments=self.base_moments)

    @property
    def _uses_scatter(self) -> bool:
        return self.base_moments is None or self.weight < 1

    def _new_moments(self) -> ClassMoments:
        return super()._new_moments() if self._uses_scatter else ClassMoments("none")

    def _can_map(self) -> bool:
        return self.base_moments is None

    def _refuse_no_spread(self) -> None:
        if self.base_moments is None:
            super()._refuse_no_spread()

    def _refuse_singular(self, factor: object) -> None:
        if self.base_moments is None:
            super()._refuse_singular(factor)
        elif factor.jitter_ > 0:
            self._refuse_singular_base()

    def _refuse_singular_base(self) -> None:
        raise ValueError(
            f"The covariance of weight={self.weight} base_moments with shrinkage=0 is singular; "
            'set shrinkage above 0, or "oas".'
        )

    def _base(self, n_features: int) -> tuple[np.ndarray, float]:
        """The part of the covariance that all episodes share, and the shrinkage."""
        base = self.base_moments
        if base.n_features_in_ != n_features:
            raise ValueError(
                f"base_moments are of {base.n_features_in_} features and X has {n_features}; give "
                "moments of base rows in the same space."
            )
        found = covariance_from_moments(base, shrinkage=self.shrinkage)
        if self.weight == 1:
            return found.matrix, found.shrinkage
        mean_variance = np.trace(found.matrix) / n_features
        matrix = self.weight * found.matrix
        matrix.flat[:: n_features + 1] += (1 - self.weight) * found.shrinkage * mean_variance
        return matrix, found.shrinkage

    def _shrunk(self) -> tuple[np.ndarray, float]:
        if self.base_moments is None:
            return super()._shrunk()
        matrix, share = self._base(self.n_features_in_)
        if self._uses_scatter:
            own = self.moments_.scatter_ / self.moments_.counts_.sum()
            matrix = matrix + (1 - share) * (1 - self.weight) * own
        if not matrix.any():
            self._refuse_singular_base()
        return matrix, share

    @available_if(_has_no_base)
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
            As those of `LinearDiscriminantClassifier`; without base moments only.
        """
        return super().loo_scores(X, y)

    # Many episodes.

    @available_if(_has_base)
    def class_scores_episodes(self, batch: "EpisodeBatch") -> torch.Tensor:
        """Return the scores of the queries of many episodes, each by its own supports.

        Parameters
        ----------
        batch : EpisodeBatch
            Episodes; nothing that was fitted is read or written.

        Returns
        -------
        scores : tensor of shape (n_episodes, n_queries, n_way)
            Minus half the squared Mahalanobis distances from the class means.
        """
        self._validate_params()
        matrix, share = self._base(batch[:1].Xs.shape[2])
        lower, flaw = torch.linalg.cholesky_ex(torch.from_numpy(matrix))
        if flaw:
            self._refuse_singular_base()
        evidence = (1 - share) * (1 - self.weight)
        with full_float32():
            parts = [_distances(part, lower, evidence) for _, part in batch.parts()]
        return -torch.cat(parts) / 2

    @available_if(_has_base)
    def predict_episodes(self, batch: "EpisodeBatch") -> torch.Tensor:
        """Predict the queries of many episodes, each by its own supports.

        Parameters
        ----------
        batch : EpisodeBatch
            Episodes; nothing that was fitted is read or written.

        Returns
        -------
        labels : tensor of shape (n_episodes, n_queries)
            Local numbers of the classes.
        """
        return self.class_scores_episodes(batch).argmax(dim=2)


def _distances(batch: "EpisodeBatch", lower: torch.Tensor, share: float) -> torch.Tensor:
    """Squared distances of queries to class means, in the covariance of a factor and a share."""
    lower = lower.to(batch.Xs)
    # Differences from near by, so that float32 keeps their digits.
    center = batch.Xs.mean(dim=1, keepdim=True)
    rows = [
        torch.linalg.solve_triangular(lower.mT, part - center, upper=True, left=False)
        for part in (batch.Xs, batch.Xq)
    ]
    white = batch.with_rows(*rows)
    return white.distances() - _explained(white, share) if share else white.distances()


def _explained(white: "EpisodeBatch", share: float) -> torch.Tensor:
    """What squared distances lose to the covariance within an episode, by Woodbury's identity."""
    onehot, means = white.onehot(), white.prototypes()
    real = onehot.sum(dim=2, keepdim=True)
    # Rows whose outer products sum to the episode's part of the covariance.
    within = (white.Xs - onehot @ means) * real * (share / real.sum(dim=1, keepdim=True)).sqrt()
    system = within @ within.mT
    system.diagonal(dim1=-2, dim2=-1).add_(1)
    lower = torch.linalg.cholesky(system)
    queries, classes = (
        torch.linalg.solve_triangular(lower, within @ part.mT, upper=False).mT
        for part in (white.Xq, means)
    )
    return torch.cdist(queries, classes).square()
