# SPDX-License-Identifier: BSD-3-Clause
"""NearestClassMeanClassifier: one vector per class, learned in one pass, open to new classes.

The first baseline for few-shot and class-incremental work. Its whole state is a `ClassMoments`,
so it learns in any order, merges and forgets exactly; this file derives scores from the means.
"""

import warnings
from collections.abc import Iterator
from numbers import Real
from typing import ClassVar, Self

import numpy as np
import scipy.linalg
import torch
from scipy.special import softmax
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.prototypes._kernels import METRICS
from skpool.statistics import ClassMoments, covariance_from_moments
from skpool.utils import ArrayLike, as_tensor, full_float32, unit_rows, validate_vectors, widened

__all__ = ["NearestClassMeanClassifier"]


class NearestClassMeanClassifier(
    ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator
):
    r"""Classifier by the nearest class mean.

    Each class is represented by the mean :math:`\mu_c` of its samples, and a sample gets the
    class of the highest score :math:`s_c(x)`: the cosine or dot product of :math:`x` and
    :math:`\mu_c`, :math:`-\frac12 \|x - \mu_c\|^2`, :math:`-\frac12 (x - \mu_c)^\top \Sigma^{-1}
    (x - \mu_c)`, or :math:`-\|x - \mu_c\|_1`. Probabilities are the softmax of
    :math:`\text{temperature} \cdot s_c`.

    Known under many names: ``metric="cosine"`` on raw features is SimpleCIL [1]_,
    ``metric="euclidean"`` the nearest mean classifier (NMC) [2]_ and the head of Prototypical
    Networks [3]_, ``metric="dot"`` the mean classifier of Arora et al., and
    ``normalize="l2", normalize_means=True, metric="euclidean"`` the nearest-mean-of-exemplars
    rule of iCaRL.

    Parameters
    ----------
    metric : {"cosine", "euclidean", "dot", "mahalanobis", "manhattan"}, default="cosine"
        What near means. A zero vector has cosine 0 with everything.
    normalize : {"l2"}, default=None
        "l2" divides every row by its norm, before the means are taken and before scoring; None
        takes rows as they are. Centring first is a step of its own, in a pipeline.
    normalize_means : bool, default=False
        Whether the means are divided by their norms.
    temperature : float, default=1.0
        Factor of the scores in `predict_proba`; cosines need about 10 to 100 to be sharp.
    priors : {"uniform", "empirical"} or array-like of shape (n_classes,), default="uniform"
        log(prior) / temperature is added to the scores. An array follows `classes_` and sums to
        1.
    shrinkage : {"oas"}, float or None, default="oas"
        Shrinkage, from 0 to 1, of the covariance shared by the classes towards a multiple of the
        identity. Only for ``metric="mahalanobis"``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.
    prototypes_ : ndarray of shape (n_classes, n_features)
        The class means, normalised if `normalize_means`; NaN for a class that was announced and
        has no samples.
    counts_ : ndarray of shape (n_classes,)
        Samples, or sums of sample weights, of the classes.
    moments_ : ClassMoments
        The state that all else follows from.

    See Also
    --------
    skpool.neighbors.WeightedKNNClassifier : Keeps all samples instead of their means.
    sklearn.neighbors.NearestCentroid : The Euclidean case; its Manhattan centroid is the median,
        which cannot be updated, and ours is the mean.

    Notes
    -----
    Cost: one pass over the samples, O(n d), or O(n d^2 + d^3) with ``metric="mahalanobis"``,
    whose covariance is factorised after every call that learns; a prediction is one product of
    n * n_classes * d. Memory: n_classes * d numbers, and d^2 for "mahalanobis".

    The order and partition of the samples do not matter, and `forget` equals never having
    learned, to rounding. With "mahalanobis", `forget_class` is refused, because the part of the
    class in the shared covariance is not known: `forget` takes its samples.

    References
    ----------
    .. [1] D.-W. Zhou, Z.-W. Cai, H.-J. Ye, D.-C. Zhan, Z. Liu, Revisiting Class-Incremental
       Learning with Pre-Trained Models: Generalizability and Adaptivity are All You Need, 2023.
       <https://arxiv.org/abs/2303.07338>
    .. [2] P. Janson, W. Zhang, R. Aljundi, M. Elhoseiny, A Simple Baseline that Questions the Use
       of Pretrained-Models in Continual Learning, 2022. <https://arxiv.org/abs/2210.04428>
    .. [3] J. Snell, K. Swersky, R. Zemel, Prototypical Networks for Few-shot Learning, NeurIPS
       2017. <https://arxiv.org/abs/1703.05175>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> X, y = np.array([[1.0, 0.0], [3.0, 1.0], [0.0, 1.0]]), ["cat", "cat", "dog"]
    >>> ncm = NearestClassMeanClassifier().fit(X, y)
    >>> ncm.prototypes_
    array([[2. , 0.5],
           [0. , 1. ]])
    >>> ncm.partial_fit([[-1.0, 0.0]], ["owl"]).predict([[-3.0, 0.5], [2.0, 0.0]])
    array(['owl', 'cat'], dtype='<U3')
    """

    _parameter_constraints: ClassVar[dict] = {
        "metric": [StrOptions(set(METRICS))],
        "normalize": [StrOptions({"l2"}), None],
        "normalize_means": ["boolean"],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "priors": [StrOptions({"uniform", "empirical"}), "array-like"],
        "shrinkage": [StrOptions({"oas"}), Interval(Real, 0, 1, closed="both"), None],
    }

    _solved_parameters = frozenset({"normalize_means", "temperature", "priors", "shrinkage"})

    def __init__(
        self,
        metric: str = "cosine",
        *,
        normalize: str | None = None,
        normalize_means: bool = False,
        temperature: float = 1.0,
        priors: object = "uniform",
        shrinkage: str | float | None = "oas",
    ):
        self.metric = metric
        self.normalize = normalize
        self.normalize_means = normalize_means
        self.temperature = temperature
        self.priors = priors
        self.shrinkage = shrinkage

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the score of every class.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; -inf for a class without samples. float32 for
            float32 and half precision, else float64.
        """
        check_is_fitted(self)
        X = as_tensor(validate_vectors(self, X, reset=False))
        scores = self._scores(X)
        log_priors = self._log_priors(self.counts_)[self.counts_ > 0]
        scores += (log_priors / self.temperature).astype(scores.dtype)
        return spread_columns(scores, self.moments_.classes_, self.classes_, fill=-np.inf)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the softmax of the scores times `temperature`.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Rows sum to 1; columns in the order of `classes_`.
        """
        return softmax(self.temperature * self.class_scores(X), axis=1)

    def loo_scores(self, X: ArrayLike, y: object) -> np.ndarray:
        """Return the class scores of learned samples, each left out of its class mean.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Samples that were learned, with weight 1. That they were is not checked.
        y : array-like of shape (n_samples,)
            Their labels.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Row i is what `class_scores` would give for sample i had it not been learned; -inf
            for its class if it was the only sample.
        """
        check_is_fitted(self)
        if self.metric == "mahalanobis":
            raise ValueError(
                "loo_scores is not available with metric='mahalanobis', whose covariance changes "
                "with every sample; use cross_val_predict."
            )
        X, y, _ = self._check_batch(X, y, None, reset=False)
        self._check_seen(y)
        X, own = as_tensor(X), np.searchsorted(self.moments_.classes_, y)
        scores = self._scores(X)
        scores[np.arange(len(y)), own] = self._loo_own_scores(X, own)
        scores = spread_columns(scores, self.moments_.classes_, self.classes_, fill=-np.inf)
        left = self.counts_ - (y[:, None] == self.classes_)
        return scores + (self._log_priors(left) / self.temperature).astype(scores.dtype)

    def _loo_own_scores(self, X: torch.Tensor, own: np.ndarray) -> np.ndarray:
        """Score each row against the mean of the others of its class."""
        counts, means = self.moments_.counts_[own], self.moments_.means_
        out = np.full(len(own), -np.inf)
        for block, rows in self._blocks(X):
            n = self._on_device(np.maximum(counts[block], 2.0)[:, None], rows)
            mean = self._on_device(means[own[block]], rows)
            mean = (n * mean - rows) / (n - 1)
            mean = unit_rows(mean) if self.normalize_means else mean
            scores = METRICS[self.metric](rows[:, None], mean[:, None])[:, 0, 0]
            out[block] = scores.cpu().numpy()
        # What is left after taking one away from a count of 1 may be a rounding error.
        out[counts - 1 < 1e-9] = -np.inf
        return out

    @staticmethod
    def _on_device(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        # Apple's GPUs have no float64.
        wide = torch.float32 if like.device.type == "mps" else torch.float64
        return torch.from_numpy(np.array(values)).to(device=like.device, dtype=wide)

    def _blocks(self, X: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield blocks of rows, as float32 or float64, that fit the working memory."""
        row_bytes = 8 * (3 * X.shape[1] + 3 * len(self.moments_.classes_))
        n_rows = max(1, int(get_config()["working_memory"] * 2**20) // row_bytes)
        for block in gen_batches(len(X), n_rows):
            rows = widened(X[block])
            yield block, unit_rows(rows) if self.normalize == "l2" else rows

    def _scores(self, X: torch.Tensor) -> np.ndarray:
        """Return the scores, without priors, of the classes that hold samples."""
        prototypes = self._on_device(self.prototypes_[self.counts_ > 0], X)
        options = {}
        if self.metric == "mahalanobis":
            options["cholesky"] = self._on_device(self._checked_cholesky(), X)
        with full_float32():
            blocks = [
                METRICS[self.metric](rows, prototypes, **options).cpu().numpy()
                for _, rows in self._blocks(X)
            ]
        return np.concatenate(blocks)

    def _checked_cholesky(self) -> np.ndarray:
        if self._cholesky is None:
            raise ValueError(
                f"The covariance of {self.counts_.sum():g} samples in "
                f"{len(self.moments_.classes_)} classes is singular, so metric='mahalanobis' "
                f"cannot score with shrinkage={self.shrinkage!r}; learn more samples per class, "
                "set shrinkage above 0, or take metric='euclidean'."
            )
        return self._cholesky

    def _log_priors(self, counts: np.ndarray) -> np.ndarray:
        """Return the log-priors of the classes, given their counts (of shape (..., C))."""
        if isinstance(self.priors, str) and self.priors == "uniform":
            # A constant would only make old scores move when classes arrive.
            return np.zeros(counts.shape)
        with np.errstate(divide="ignore"):
            if isinstance(self.priors, str):
                return np.log(np.maximum(counts, 0)) - np.log(counts.sum(axis=-1, keepdims=True))
            return np.broadcast_to(np.log(np.asarray(self.priors, np.float64)), counts.shape)

    def _seen_classes(self) -> np.ndarray:
        return self.moments_.classes_

    def _reset(self) -> None:
        self.moments_ = ClassMoments("shared" if self.metric == "mahalanobis" else "none")

    def _apply(
        self, method: str, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None
    ) -> None:
        """Replace the moments by a copy that was updated or downdated."""
        moments = self.moments_.copy()
        if self.normalize is None:
            getattr(moments, method)(X, y, sample_weight)
        else:
            for block, rows in self._blocks(as_tensor(X)):
                weights = None if sample_weight is None else sample_weight[block]
                getattr(moments, method)(rows, y[block], weights)
        self.moments_ = moments

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        self._apply("update", X, y, sample_weight)

    def _forget(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        self._apply("downdate", X, y, sample_weight)

    def _forget_class(self, label: object) -> None:
        if self.metric == "mahalanobis":
            raise ValueError(
                f"The samples of class {label!r} are needed to remove it from the shared "
                "covariance of metric='mahalanobis'; call forget(X, y) with them."
            )
        moments = self.moments_.copy()
        moments.forget_class(label)
        self.moments_ = moments

    def _merge(self, other: "NearestClassMeanClassifier") -> None:
        if other.normalize != self.normalize:
            raise ValueError(
                f"other has normalize={other.normalize!r} and this classifier "
                f"normalize={self.normalize!r}, so their means differ in kind; merge classifiers "
                "that normalise alike."
            )
        self.moments_ = self.moments_ + other.moments_

    def _can_map(self) -> bool:
        # The mean of normalised rows says nothing of rows that are mapped before they are.
        return self.normalize is None

    def _map_to(self, mapped: Self, A: np.ndarray, b: np.ndarray) -> None:
        mapped.moments_ = self.moments_.affine(A, b)

    def _refresh(self) -> None:
        super()._refresh()
        moments = self.moments_
        seen = np.searchsorted(self.classes_, moments.classes_)
        self.counts_ = np.zeros(len(self.classes_))
        self.counts_[seen] = moments.counts_
        means = np.array(moments.means_)
        if self.normalize_means:
            means = unit_rows(torch.from_numpy(means)).numpy()
        self.prototypes_ = np.full((len(self.classes_), self.n_features_in_), np.nan)
        self.prototypes_[seen] = means
        self._check_priors()
        if self.metric == "cosine" and not means.any(axis=1).all():
            empty = moments.classes_[~means.any(axis=1)].tolist()
            warnings.warn(
                f"The mean of class {empty[0]!r} is zero, so its cosine with every sample is 0.",
                UserWarning,
                stacklevel=5,
            )
        self._cholesky = self._factorise() if self.metric == "mahalanobis" else None

    def _check_priors(self) -> None:
        if isinstance(self.priors, str):
            return
        priors = np.asarray(self.priors, dtype=np.float64)
        if priors.shape != self.classes_.shape:
            raise ValueError(
                f"priors has shape {priors.shape}, and there are {len(self.classes_)} classes; "
                "give one prior per class, or 'empirical'."
            )
        if not ((priors >= 0).all() and np.isclose(priors.sum(), 1)):
            raise ValueError(
                f"priors={self.priors!r} is not valid; give numbers of at least 0 that sum to 1."
            )

    def _factorise(self) -> np.ndarray | None:
        """Return the Cholesky factor of the shared covariance, or None if it is singular."""
        moments = self.moments_
        if not len(moments.classes_) or not moments.scatter_.any():
            return None
        covariance = covariance_from_moments(moments, "shared", shrinkage=self.shrinkage)
        d = self.n_features_in_
        if covariance.shrinkage == 0 and moments.counts_sq_.sum() == moments.counts_.sum():
            # Rows of weight 1: fewer than this span too little, whatever rounding says.
            if moments.counts_.sum() - len(moments.classes_) < d:
                return None
        try:
            factor = scipy.linalg.cholesky(covariance.matrix, lower=True)
        except np.linalg.LinAlgError:
            return None
        pivots = np.square(np.diagonal(factor))
        return factor if pivots.min() > d * np.finfo(np.float64).eps * pivots.max() else None
