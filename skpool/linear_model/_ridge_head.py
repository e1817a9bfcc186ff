# SPDX-License-Identifier: BSD-3-Clause
"""RidgeHeadClassifier: ridge regression on one-hot targets, from the moments of the classes.

A new class is one more column of cross-products, to which the rows learned before contribute
nothing, so classes may arrive in any order and the weights are those of one joint fit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, MomentsMixin, spread_columns
from skpool.linear_model._kernels import penalized, row_leverages
from skpool.statistics import (
    ClassMoments,
    FoldMoments,
    RidgePath,
    SymmetricFactor,
    ridge_fold_errors,
)
from skpool.utils import ArrayLike, apply_affine, as_tensor, validate_vectors

__all__ = ["Head", "RidgeHeadClassifier"]

# Relative penalties from here on lie far above what float32 rounds off a product.
_SAFE_PENALTY = 1e-3


@dataclass(frozen=True, eq=False)
class Head:
    """What predictions of a ridge classifier are made of; classes that hold samples only."""

    moments: ClassMoments
    center: np.ndarray  # (d,), where scores are the offsets
    coef: np.ndarray  # (C, d)
    offset: np.ndarray  # (C,)
    alpha: float
    scores: np.ndarray | None  # of the penalties
    relative: bool
    gcv: float | None  # of the chosen penalty, summed over the classes

    @cached_property
    def variance(self) -> float:
        """Of what is left of a target, by generalized cross-validation."""
        gcv = self.gcv
        if gcv is None:
            path = RidgePath([self.alpha], relative=self.relative, scoring="gcv")
            gcv = float(-path.fit_moments(self.moments).scores_[0])
        return gcv / len(self.offset)

    @cached_property
    def factor(self) -> SymmetricFactor:
        """Of the scatter and the penalty."""
        _, _, scatter = self.moments.total()
        return SymmetricFactor(penalized(scatter, self.alpha, relative=self.relative))


class RidgeHeadClassifier(ClassScoresMixin, MomentsMixin, ClassifierMixin, BaseEstimator):
    r"""Ridge regression on one-hot targets, as a classifier that learns in any order.

    With the scatter :math:`T` of all rows around their mean and the centred cross-products
    :math:`q_c = n_c (\mu_c - \bar x)` of the classes, a sample scores

    .. math:: s_c(x) = \frac{n_c}{n} + (x - \bar x)^\top (T + \lambda I)^{-1} q_c .

    Parameters
    ----------
    alpha : float, "gcv", "loo" or "kfold", default="gcv"
        Penalty. "gcv" chooses it by generalized cross-validation [1]_, which needs the moments
        alone, hence works on streams, after merging and after forgetting; "loo" by the accuracy
        of predictions that leave one out, which needs the rows, hence `fit`; "kfold" by the
        squared error on three folds, to which rows find by their content, so that it too works
        when the rows are gone, at three times the memory, see
        :class:`~skpool.statistics.FoldMoments`.
    alphas : array-like of shape (n_alphas,) or "auto", default="auto"
        Penalties that are tried; "auto" takes 17 from 1e-6 to 100.
    relative : bool, default=True
        Whether a penalty is this many times the mean eigenvalue of the scatter.
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
        Weights; NaN for a class without samples.
    intercept_ : ndarray of shape (n_classes,)
        Offsets; -inf for a class without samples.
    alpha_ : float
        The penalty.
    scores_ : ndarray of shape (n_alphas,) or None
        Scores of the penalties that were tried, in ascending order of these; higher is better.
        None where one was given.
    temperature_ : float
        Factor of the scores in the softmax.
    moments_ : ClassMoments, or FoldMoments for "kfold"
        Counts, means and scatter; everything above follows from them.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    sklearn.linear_model.RidgeClassifier : The same weights for one penalty, from all rows.
    skpool.statistics.RidgePath : The path of penalties.

    Notes
    -----
    `partial_fit` in any order and partition, `forget` and `merge` give what one `fit` gives, to
    rounding. They only touch the moments; the weights are solved for when a prediction needs
    them. Ridge regression favours frequent classes; `class_weight` undoes that exactly. A
    recursion of inverse matrices, which some published codes use in place of the scatter, drifts
    in float32 and is not used.

    Products are in float64 where a penalty below 1e-3 is given or tried, or a penalty that is not
    relative: it would divide by eigenvalues that float32 rounds away. So a grid from 1e-3 on
    learns rows of float32 in half the time.

    Cost: one product O(n d^2), one decomposition O(d^3) (a Cholesky factor where `alpha` is a
    number), and O(n d C) to predict; memory O(d^2 + C d). While fewer rows than features were
    learned, and none forgotten, O(n^2 d + n^3) and memory O(n d), without `class_weight`.

    References
    ----------
    .. [1] G. H. Golub, M. Heath, G. Wahba, Generalized Cross-Validation as a Method for Choosing
       a Good Ridge Parameter, 1979.
    .. [2] H. Zhuang et al., ACIL: Analytic Class-Incremental Learning with Absolute Memorization
       and Privacy Protection, 2022. <https://arxiv.org/abs/2205.14922>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.linear_model import RidgeHeadClassifier
    >>> X = np.array([[0.0], [1.0], [4.0], [5.0]])
    >>> clf = RidgeHeadClassifier(alpha=0.1).partial_fit(X[:2], ["a", "a"])
    >>> clf.partial_fit(X[2:], ["b", "b"]).predict([[0.5], [4.5]])
    array(['a', 'b'], dtype='<U1')
    """

    _parameter_constraints: dict = {
        "alpha": [StrOptions({"gcv", "loo", "kfold"}), Interval(Real, 0, None, closed="left")],
        "alphas": [StrOptions({"auto"}), "array-like"],
        "relative": ["boolean"],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "temperature": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "refit_every": [Interval(Integral, 1, None, closed="left"), None],
    }

    _solved_parameters = frozenset({"alpha", "alphas", "relative", "temperature", "refit_every"})

    def __init__(
        self,
        alpha: float | str = "gcv",
        *,
        alphas: ArrayLike | str = "auto",
        relative: bool = True,
        class_weight: dict | str | None = None,
        temperature: float | str = "auto",
        refit_every: int | None = None,
    ):
        self.alpha = alpha
        self.alphas = alphas
        self.relative = relative
        self.class_weight = class_weight
        self.temperature = temperature
        self.refit_every = refit_every

    # Learning.

    def _new_moments(self) -> ClassMoments:
        # What a small penalty divides by are the smallest eigenvalues, which float32 rounds away.
        tried = self.alphas if isinstance(self.alpha, str) else [self.alpha]
        least = 0.0 if isinstance(tried, str) else min(tried, default=0.0)
        safe = self.relative and least >= _SAFE_PENALTY
        kind = "shared" if self.class_weight is None else "per_class"
        if self.alpha == "kfold":
            return FoldMoments(3, kind, product_dtype="float64")
        return ClassMoments(kind, product_dtype="auto" if safe else "float64")

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        super()._update(X, y, sample_weight)
        if self.alpha != "loo":
            return
        self._chosen = self._left_out(X, y, sample_weight)

    def _left_out(
        self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None
    ) -> tuple[float, np.ndarray]:
        """The penalty that predicts most rows without themselves, and the scores of all."""
        path = self._path("loo_accuracy", class_weight=self.class_weight)
        path.fit_moments(self.moments_, X, y, sample_weight)
        return path.alpha_, path.scores_

    def _check_learns_in_parts(self) -> bool:
        if self.alpha == "loo":
            raise AttributeError(
                'alpha="loo" is chosen on all rows together; call fit, or set alpha="gcv" or a '
                "number."
            )
        return True

    def _can_map(self) -> bool:
        return self._check_learns_in_parts()

    def _path(self, scoring: str, **options: object) -> RidgePath:
        return RidgePath(self.alphas, relative=self.relative, scoring=scoring, **options)

    def _weighted_moments(self) -> ClassMoments | FoldMoments:
        held = self.moments_
        if self.class_weight is None:
            return held
        if self.class_weight == "balanced":
            total = held.total_ if self.alpha == "kfold" else held
            weights = total.counts_.sum() / (len(total.classes_) * total.counts_)
            return held.reweighted(dict(zip(total.classes_.tolist(), weights, strict=True)))
        return held.reweighted(self.class_weight)

    def _solve(self) -> Head:
        return self._head(self._weighted_moments())

    def _head(self, moments: ClassMoments | FoldMoments) -> Head:
        gcv = None
        if self.alpha == "kfold":
            alpha, scores = self._by_folds(moments)
            moments = moments.total_
            coef = self._weights(moments, alpha)
        elif self.alpha == "gcv":
            path = self._path("gcv").fit_moments(moments)
            coef, alpha, scores = path.coef_, path.alpha_, path.scores_
            gcv = -float(scores[path.alphas_ == alpha][0])
        else:
            alpha, scores = self._chosen if self.alpha == "loo" else (float(self.alpha), None)
            coef = self._weights(moments, alpha)
        share = moments.counts_ / moments.counts_.sum()
        center = share @ moments.means_
        return Head(moments, center, coef, share, alpha, scores, self.relative, gcv)

    def _by_folds(self, folds: FoldMoments) -> tuple[float, np.ndarray]:
        """The penalty of the smallest squared error on held-out folds, and the scores of all."""
        alphas = self._path("gcv").sorted_alphas()
        scores = -ridge_fold_errors(folds, alphas, relative=self.relative).sum(axis=0)
        # Of equally good ones the largest.
        return float(alphas[np.flatnonzero(scores == scores.max())[-1]]), scores

    def _weights(self, moments: ClassMoments, alpha: float) -> np.ndarray:
        """Weights of one penalty, by Cholesky's factor where there is one."""
        path = RidgePath([alpha], relative=self.relative)
        if alpha == 0 or moments.total_factor() is not None:
            return path.fit_moments(moments).coef_
        _, center, scatter = moments.total()
        if self.relative and not scatter.any():
            return path.fit_moments(moments).coef_
        cross = moments.counts_[:, None] * (moments.means_ - center)
        shifted = penalized(scatter, alpha, relative=self.relative)
        return SymmetricFactor(shifted).solve(cross.T).T

    # What was learned.

    @property
    def coef_(self) -> np.ndarray:
        """Weights of the classes."""
        coef = self._known("coef_").coef
        return spread_columns(coef.T, self.moments_.classes_, self.classes_, fill=np.nan).T

    @property
    def intercept_(self) -> np.ndarray:
        """Offsets of the classes."""
        head = self._known("intercept_")
        intercept = (head.offset - head.coef @ head.center)[None]
        held = self.moments_.classes_
        return spread_columns(intercept, held, self.classes_, fill=-np.inf)[0]

    @property
    def alpha_(self) -> float:
        """The penalty."""
        return self._known("alpha_").alpha

    @property
    def scores_(self) -> np.ndarray | None:
        """Scores of the penalties that were tried."""
        return self._known("scores_").scores

    @property
    def temperature_(self) -> float:
        """Factor of the scores in the softmax."""
        head = self._known("temperature_")
        if self.temperature != "auto":
            return float(self.temperature)
        # One class leaves nothing of its target, and needs no factor.
        return 1.0 / head.variance if head.variance > 0 else 1.0

    # Predictions.

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return what the regression predicts for every class.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Near 1 for the class of a sample and near 0 for others; they sum to 1 without
            `class_weight`. Columns in the order of `classes_`; -inf for a class without samples.
        """
        check_is_fitted(self)
        head = self._solved
        parts = [
            apply_affine(rows, shift=head.center, matrix=head.coef.T, offset=head.offset)
            for rows in self._seen_rows(X)
        ]
        scores = torch.cat(parts).cpu().numpy()
        return spread_columns(scores, self.moments_.classes_, self.classes_, fill=-np.inf)

    def predict_variance(self, X: ArrayLike) -> np.ndarray:
        r"""Return how uncertain the scores of every row are, by its place among the rows learned.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        variances : ndarray of shape (n_samples,)
            The leverage :math:`1/n + (x - \bar x)^\top (T + \lambda I)^{-1} (x - \bar x)`:
            variances of scores whose targets have noise of variance 1. High where no rows like
            this one were learned, which are worth a label. Of a row learned from, it lies between
            0 and 1.
        """
        check_is_fitted(self)
        head = self._solved
        parts = [row_leverages(rows, head.center, head.factor) for rows in self._seen_rows(X)]
        return np.concatenate(parts) + 1.0 / head.moments.counts_.sum()

    def _seen_rows(self, X: ArrayLike) -> Iterator[torch.Tensor]:
        """Rows as the head sees them, in blocks."""
        yield as_tensor(validate_vectors(self, X, reset=False))

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the softmax of the scores times `temperature_`.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Rows sum to 1; columns in the order of `classes_`.
        """
        scores = self._decisive_scores(X)
        return softmax(self.temperature_ * scores, axis=1)
