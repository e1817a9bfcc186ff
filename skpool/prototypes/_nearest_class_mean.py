# SPDX-License-Identifier: BSD-3-Clause
"""NearestClassMeanClassifier: one vector per class, learned in one pass, open to new classes.

The first baseline for few-shot and class-incremental work. Its whole state is a `ClassMoments`,
so it learns in any order, merges and forgets exactly; this file derives scores from the means.
"""

from numbers import Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import scipy.linalg
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpool.base import log_priors, spread_columns
from skpool.prototypes._base import ClassMeansMixin, row_blocks, scores_of, wide_tensor
from skpool.prototypes._kernels import METRICS
from skpool.statistics import ClassMoments, covariance_from_moments
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_finite,
    full_float32,
    unit_rows,
    validate_vectors,
    widened,
)

__all__ = ["NearestClassMeanClassifier"]


# Cosines that differ by less than this are told apart by the last three digits of float32.
_PARALLEL = 1e-4


# Squared distances of prototypes below this part of their squares leave plain products of float32
# too few digits.
_NEAR = 0.02
_TINY = 1e-30


class _Means(NamedTuple):
    """What predictions are made of; classes that hold samples only."""

    prototypes: np.ndarray  # (C, d)
    deviations: np.ndarray | None  # Cholesky factor (d, d) or standard deviations (d,)
    parallel: bool  # so that cosines of float32 would hardly tell them apart


def _apart(distances: torch.Tensor) -> bool:
    """Whether all distances (E, N, N) but those of a vector to itself are large enough."""
    itself = torch.eye(distances.shape[1], dtype=torch.bool, device=distances.device)
    return not bool(((distances < _NEAR) & ~itself).any())


def _argmax(scores: torch.Tensor) -> torch.Tensor:
    """Argmax of the last axis, which may be short and far from contiguous."""
    if scores.shape[-1] > 32:
        return scores.argmax(dim=-1)
    best, *others = scores.unbind(dim=-1)
    number = torch.zeros_like(best, dtype=torch.int64)
    for k, values in enumerate(others, start=1):
        number = torch.where(values > best, k, number)
        best = torch.maximum(best, values)
    return number


def _are_parallel(means: np.ndarray) -> bool:
    """Whether directions differ by so little that float32 holds few digits of their cosines."""
    unit = unit_rows(torch.from_numpy(np.array(means))).numpy()
    middle = unit.mean(axis=0)
    length = float(np.linalg.norm(middle))
    return len(means) > 1 and length > 0 and 1.0 - float((unit @ middle).min()) / length < _PARALLEL


def _takes_episodes(self: "NearestClassMeanClassifier") -> bool:
    if self.metric == "mahalanobis":
        raise AttributeError(
            "predict_episodes is not available with metric='mahalanobis', which needs a "
            "covariance per episode; fit a clone to each."
        )
    return True


class NearestClassMeanClassifier(ClassMeansMixin, ClassifierMixin, BaseEstimator):
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
        takes rows as they are. Centring first is a step of its own, in a pipeline
        (:func:`~skpool.pipeline.make_simpleshot`): the centre of a stream moves, and unit vectors
        cannot be moved after it.
    normalize_means : bool, default=False
        Whether the means are divided by their norms.
    temperature : float, default=1.0
        Factor of the scores in `predict_proba`; cosines need about 10 to 100 to be sharp.
    priors : {"uniform", "empirical"} or array-like of shape (n_classes,), default="uniform"
        log(prior) / temperature is added to the scores. An array follows `classes_` and sums to
        1.
    shrinkage : {"oas"}, float or None, default="oas"
        Shrinkage, from 0 to 1, of the covariance towards a multiple of the identity. Only for
        ``metric="mahalanobis"``.
    covariance : {"shared", "shared_diag"}, default="shared"
        The covariance shared by the classes, or its variances alone (a number as `shrinkage`).
        Only for ``metric="mahalanobis"``.

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
    skpool.discriminant.LinearDiscriminantClassifier : The same decisions as with
        ``metric="mahalanobis"``, at the cost of the Euclidean ones.
    sklearn.neighbors.NearestCentroid : The Euclidean case; its Manhattan centroid is the median,
        which cannot be updated, and ours is the mean.

    Notes
    -----
    Cost: one pass over the samples, O(n d), or O(n d^2) with ``metric="mahalanobis"``, whose
    covariance is factorised, O(d^3), when it is next needed; a prediction is one product of
    n * n_classes * d, and of n * d^2 for "mahalanobis" with a full covariance. Memory:
    n_classes * d numbers, and d^2 for that covariance. Rows are copied block by block at most.

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
        "covariance": [StrOptions({"shared", "shared_diag"})],
    }

    # Episodes are a few large products, which threads share.
    _takes_all_threads = True

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
        covariance: str = "shared",
    ):
        self.metric = metric
        self.normalize = normalize
        self.normalize_means = normalize_means
        self.temperature = temperature
        self.priors = priors
        self.shrinkage = shrinkage
        self.covariance = covariance

    # Learning.

    def _new_moments(self) -> ClassMoments:
        return ClassMoments(self.covariance if self.metric == "mahalanobis" else "none")

    def _prepared(self, X: ArrayLike) -> ArrayLike:
        return X if self.normalize is None else unit_rows(widened(as_tensor(X)))

    def _prepared_row_bytes(self) -> int:
        # Asked before the width is known, too.
        return 0 if self.normalize is None else 24 * getattr(self, "n_features_in_", 1)

    def _forget_class(self, label: object) -> None:
        if self.metric == "mahalanobis":
            raise ValueError(
                f"The samples of class {label!r} are needed to remove it from the shared "
                "covariance of metric='mahalanobis'; call forget(X, y) with them."
            )
        super()._forget_class(label)

    def _merge(self, other: "NearestClassMeanClassifier") -> None:
        if other.normalize != self.normalize:
            raise ValueError(
                f"other has normalize={other.normalize!r} and this classifier "
                f"normalize={self.normalize!r}, so their means differ in kind; merge classifiers "
                "that normalise alike."
            )
        super()._merge(other)

    def _can_map(self) -> bool:
        # The mean of normalised rows says nothing of rows that are mapped before they are, nor
        # do variances of what a matrix mixes.
        diagonal = self.metric == "mahalanobis" and self.covariance == "shared_diag"
        return self.normalize is None and not diagonal

    def _refresh(self) -> None:
        super()._refresh()
        # Refused here and not at the first prediction: these are parameters.
        log_priors(self.priors, self._of_classes(self.moments_.counts_, fill=0.0))
        diagonal = self.metric == "mahalanobis" and self.covariance == "shared_diag"
        if diagonal and isinstance(self.shrinkage, str):
            raise ValueError(
                f"shrinkage={self.shrinkage!r} is for covariance='shared', and this is "
                f"{self.covariance!r}; give a number from 0 to 1, or None."
            )

    def _solve(self) -> _Means:
        means = self.moments_.means_
        if self.normalize_means:
            means = unit_rows(torch.from_numpy(np.array(means))).numpy()
        if self.metric == "cosine":
            self._warn_of_zero_means(means)
        deviations = self._deviations() if self.metric == "mahalanobis" else None
        return _Means(means, deviations, self.metric == "cosine" and _are_parallel(means))

    def _deviations(self) -> np.ndarray | None:
        """Return a factor of the covariance shared by the classes, or None if it is singular."""
        moments, d = self.moments_, self.n_features_in_
        if moments.scatter_ is not None and not moments.scatter_.any():
            return None
        found = covariance_from_moments(moments, self.covariance, shrinkage=self.shrinkage)
        if self.covariance == "shared_diag":
            return np.sqrt(found.matrix)
        if found.shrinkage == 0 and moments.counts_sq_.sum() == moments.counts_.sum():
            # Rows of weight 1: fewer than this span too little, whatever rounding says.
            if moments.counts_.sum() - len(moments.classes_) < d:
                return None
        try:
            factor = scipy.linalg.cholesky(found.matrix, lower=True)
        except np.linalg.LinAlgError:
            return None
        pivots = np.square(np.diagonal(factor))
        return factor if pivots.min() > d * np.finfo(np.float64).eps * pivots.max() else None

    # Predictions.

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
            float32 and half precision, else float64; always float64 for cosines with means that
            are all but parallel, which float32 would not tell apart, and for squares that leave
            its range.
        """
        check_is_fitted(self)
        scores = self._scores(as_tensor(validate_vectors(self, X, reset=False)))
        return self._with_priors(scores, self.counts_)

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
                "with every sample; use cross_val_predict, or LinearDiscriminantClassifier with "
                "priors='uniform', which scores alike and has them."
            )
        X, y, _ = self._check_batch(X, y, None, reset=False)
        check_finite(X)
        self._check_seen(y)
        X, own = as_tensor(X), np.searchsorted(self.moments_.classes_, y)
        scores = self._scores(X)
        scores[np.arange(len(y)), own] = self._loo_own_scores(X, own)
        out = np.empty((len(y), len(self.classes_)), dtype=scores.dtype)
        for label in np.unique(y):
            rows, left = y == label, self.counts_ - (self.classes_ == label)
            out[rows] = self._with_priors(scores[rows], np.maximum(left, 0.0))
        return out

    @available_if(_takes_episodes)
    def predict_episodes(self, batch: Any) -> torch.Tensor:
        """Return what `fit` to the supports and `predict` would give in each of many episodes.

        Parameters
        ----------
        batch : EpisodeBatch
            The episodes; only parameters of the classifier are used, nothing that it learned.

        Returns
        -------
        numbers : tensor of shape (n_episodes, n_query)
            Local numbers of the classes.
        """
        self._validate_params()
        if self.normalize == "l2":
            batch = batch.with_rows(unit_rows(batch.Xs), unit_rows(batch.Xq))
        prototypes = batch.prototypes()
        if self.normalize_means:
            prototypes = unit_rows(prototypes)
        with full_float32():
            scores = self._episode_scores(batch, prototypes)
        return _argmax(self._with_episode_priors(scores, batch))

    def _episode_scores(self, batch: Any, prototypes: torch.Tensor) -> torch.Tensor:
        """Scores (E, n_q, N), up to what is the same for all classes where that spares a pass."""
        products = prototypes @ prototypes.mT
        squares = products.diagonal(dim1=1, dim2=2)
        uniform = isinstance(self.priors, str) and self.priors == "uniform"
        if self.metric == "dot":
            return batch.query_products(prototypes)
        if self.metric == "cosine":
            lengths = squares.sqrt().clamp(min=_TINY)
            cosines = products / (lengths[:, :, None] * lengths[:, None])
            if uniform and _apart(2 - 2 * cosines):
                return batch.query_products(prototypes) / lengths[:, None]
        elif self.metric == "euclidean":
            distances = squares[:, :, None] + squares[:, None] - 2 * products
            if _apart(distances / squares.amax(dim=1).clamp(min=_TINY)[:, None, None]):
                return batch.query_products(prototypes) - squares[:, None] / 2
        if prototypes.device.type != "mps":
            batch, prototypes = batch.to(dtype=torch.float64), prototypes.double()
        return METRICS[self.metric](batch.Xq, prototypes)

    def _with_episode_priors(self, scores: torch.Tensor, batch: Any) -> torch.Tensor:
        if isinstance(self.priors, str):
            if self.priors == "uniform":
                return scores
            counts = batch.counts()
            priors = counts.log() - counts.sum(dim=1, keepdim=True).log()
        else:
            values = log_priors(self.priors, np.ones(batch.n_way))
            priors = torch.from_numpy(values).to(scores)[None]
        return scores + priors[:, None] / self.temperature

    def _with_priors(self, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Spread the scores over all classes and add the priors that follow from counts."""
        scores = spread_columns(scores, self.moments_.classes_, self.classes_, fill=-np.inf)
        scores += (log_priors(self.priors, counts) / self.temperature).astype(scores.dtype)
        return scores

    def _loo_own_scores(self, X: torch.Tensor, own: np.ndarray) -> np.ndarray:
        """Score each row against the mean of the others of its class."""
        counts, means = self.moments_.counts_[own], self.moments_.means_
        out = np.full(len(own), -np.inf)
        for block, rows in row_blocks(X, n_outputs=1):
            rows = self._prepared(rows)
            n = wide_tensor(np.maximum(counts[block], 2.0)[:, None], rows)
            mean = wide_tensor(means[own[block]], rows)
            mean = (n * mean - rows) / (n - 1)
            mean = unit_rows(mean) if self.normalize_means else mean
            with full_float32():
                scores = METRICS[self.metric](rows[:, None], mean[:, None])[:, 0, 0]
            out[block] = scores.cpu().numpy()
        # What is left after taking one away from a count of 1 may be a rounding error.
        out[counts - 1 < 1e-9] = -np.inf
        return out

    def _scores(self, X: torch.Tensor) -> np.ndarray:
        """Return the scores, without priors, of the classes that hold samples."""
        solved, metric, options = self._solved, METRICS[self.metric], {}
        prototypes = wide_tensor(solved.prototypes, X)
        if self.metric == "mahalanobis":
            if solved.deviations is None:
                self._refuse_singular()
            options["deviations"] = wide_tensor(solved.deviations, X)

        def score(rows: torch.Tensor) -> torch.Tensor:
            rows = rows.to(prototypes.dtype) if solved.parallel else rows
            return metric(self._prepared(rows), prototypes, **options)

        return scores_of(X, score, n_outputs=len(prototypes))

    def _refuse_singular(self) -> None:
        raise ValueError(
            f"The covariance of {self.counts_.sum():g} samples in "
            f"{len(self.moments_.classes_)} classes is singular, so metric='mahalanobis' "
            f"cannot score with shrinkage={self.shrinkage!r}; learn more samples per class, "
            "set shrinkage above 0, or take metric='euclidean'."
        )
