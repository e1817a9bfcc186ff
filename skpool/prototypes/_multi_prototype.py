# SPDX-License-Identifier: BSD-3-Clause
"""MultiPrototypeClassifier: several centres per class, for classes that are not one blob.

It stands between the nearest class mean, which has one vector per class, and the nearest
neighbour, which has all rows. A bounded sample of the rows is kept, and clustered when needed.
"""

from collections.abc import Callable
from numbers import Integral, Real
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.prototypes._base import scores_of, wide_tensor
from skpool.prototypes._capacity_kmeans import capacity_kmeans, cluster_means
from skpool.prototypes._class_samples import ClassSample, join_samples, remove_rows, row_keys
from skpool.prototypes._kernels import METRICS
from skpool.prototypes._subclass_clustering import tail_size
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_squares,
    unchanged_on_error,
    unit_rows,
    validate_vectors,
    widened,
)

__all__ = ["MultiPrototypeClassifier"]

# Least size of the clusters of "balanced", as in `SubclassClustering`.
_DELTA = 10


def reduce_max(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the largest score of each row."""
    return scores.amax(dim=1)


def reduce_logsumexp(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return a smooth maximum, the logarithm of a mean: more prototypes alone gain nothing."""
    return (torch.logsumexp(temperature * scores, dim=1) - np.log(scores.shape[1])) / temperature


def reduce_mean_top2(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean of the two largest scores, or the only one."""
    return scores.topk(min(2, scores.shape[1]), dim=1).values.mean(dim=1)


_REDUCTIONS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "logsumexp": reduce_logsumexp,
    "max": reduce_max,
    "mean_top2": reduce_mean_top2,
}


class _Prototypes(NamedTuple):
    """The prototypes of the classes that hold samples, class by class."""

    vectors: np.ndarray  # (P, d)
    sizes: list[int]  # of the C classes


class MultiPrototypeClassifier(ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator):
    r"""Classifier by the nearest of several prototypes of each class.

    The rows of each class are clustered by k-means, and their means are its prototypes
    :math:`p_{ck}`. With the scores :math:`s_{ck}(x)` of these, the cosine or
    :math:`-\frac12 |x - p_{ck}|^2`, a class scores :math:`\max_k s_{ck}`, or

    .. math:: \tfrac1T \log \tfrac{1}{K_c} \sum_{k=1}^{K_c} e^{T s_{ck}} .

    One prototype per class is the nearest class mean (of unit rows, for the cosine); one per row
    is the nearest neighbour.

    Parameters
    ----------
    n_prototypes : int, "balanced" or dict, default=4
        Prototypes per class, at most as many as it has distinct rows: a number for all; by label,
        and 1 for labels that are not in the dict; or "balanced", as many as clusters of at most M
        rows need, where M is the size of the smallest class but at least 10, see
        `SubclassClustering`.
    reduce : {"max", "logsumexp", "mean_top2"}, default="max"
        Score of a class: the largest of its prototypes, the formula above, or the mean of the two
        largest.
    temperature : float, default=16.0
        :math:`T` of "logsumexp", and factor of the scores in `predict_proba`.
    metric : {"cosine", "euclidean"}, default="cosine"
        What near means; for "cosine" rows are scaled to unit length before they are clustered.
    reservoir : int, default=2000
        Rows kept per class, at most: a sample of all that were learned.
    random_state : int, RandomState instance or None, default=None
        Of the clusterings and the samples.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    prototypes_ : ndarray of shape (n_prototypes, n_features)
        Those of all classes, one class after the other.
    parent_ : ndarray of shape (n_prototypes,)
        Their classes.
    counts_ : ndarray of shape (n_classes,)
        Rows learned of each class.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.

    See Also
    --------
    NearestClassMeanClassifier : One prototype per class, without keeping rows.
    SubclassClustering : Clusters of bounded size, without a classifier.
    skpool.neighbors.PerClassKNNClassifier : All rows are prototypes.

    Notes
    -----
    The rows of a class that are kept are a function of what was learned, not of its order: those
    whose values, run through a random function, come out smallest. So `partial_fit` in any order
    and partition equals `fit`, and `merge` equals learning there, with an integer as
    `random_state`, also when more than `reservoir` rows came. `forget` is refused for classes of
    which rows were dropped, since these would have to come back; `forget_class` never is.

    Cost: O(n d) to learn; clustering, when a prediction needs it, takes
    O(reservoir K d) per class and iteration, up to 20 from each of 3 starts of k-means++; a
    prediction is one product with all prototypes. Memory: `reservoir` rows per class.

    References
    ----------
    .. [1] T. Hastie, R. Tibshirani, J. Friedman, The Elements of Statistical Learning, 2nd
       edition, 2009, section 13.2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.prototypes import MultiPrototypeClassifier
    >>> X = np.array([[0, 0], [5, 5], [0, 5], [5, 0]]) + 0.1 * np.eye(4, 2)
    >>> clf = MultiPrototypeClassifier(2, metric="euclidean", random_state=0)
    >>> clf.fit(X, ["same", "same", "other", "other"]).predict([[1, 1], [1, 4], [4, 4]])
    array(['same', 'other', 'same'], dtype='<U5')
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_prototypes": [
            StrOptions({"balanced"}),
            Interval(Integral, 1, None, closed="left"),
            dict,
        ],
        "reduce": [StrOptions(set(_REDUCTIONS))],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "metric": [StrOptions({"cosine", "euclidean"})],
        "reservoir": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_prototypes: int | str | dict = 4,
        *,
        reduce: str = "max",
        temperature: float = 16.0,
        metric: str = "cosine",
        reservoir: int = 2000,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_prototypes = n_prototypes
        self.reduce = reduce
        self.temperature = temperature
        self.metric = metric
        self.reservoir = reservoir
        self.random_state = random_state

    # Learning.

    def fit(self, X: ArrayLike, y: object) -> Self:
        """Learn from these samples alone, and find the prototypes at once.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            super().fit(X, y)
            _ = self._solved
        return self

    def partial_fit(self, X: ArrayLike, y: object, classes: object = None) -> Self:
        """Learn from these samples on top of all earlier ones.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels; labels never seen before are welcome in any call.
        classes : array-like of shape (n_classes,), default=None
            Labels to announce before they have samples. They are listed in `classes_` and are
            never predicted until a sample arrives. Not required.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        return super().partial_fit(X, y, classes)

    def forget(self, X: ArrayLike, y: object) -> Self:
        """Remove samples that were learned, as if they had never been seen.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            The feature vectors exactly as they were learned.
        y : array-like of shape (n_samples,)
            Their labels.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        return super().forget(X, y)

    def _reset(self) -> None:
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._samples: dict[object, ClassSample] = {}
        self._stored_classes: np.ndarray | None = None

    def _seen_classes(self) -> np.ndarray:
        return self._stored_classes

    def _store(self, samples: dict[object, ClassSample], labels: np.ndarray) -> None:
        """Add samples of classes, whose labels are given as an array too."""
        self._samples = self._samples | {
            label: join_samples(self._samples.get(label), sample, size=self.reservoir)
            for label, sample in samples.items()
        }
        held = self._stored_classes
        empty = held is None or not len(held)
        self._stored_classes = np.unique(labels) if empty else np.union1d(held, labels)

    def _by_class(self, X: ArrayLike, y: np.ndarray) -> dict[object, ClassSample]:
        rows = widened(as_tensor(X)).cpu().numpy()
        keys = row_keys(rows, self._seed)
        return {
            label: ClassSample(rows[y == label], keys[y == label], int((y == label).sum()))
            for label in np.unique(y).tolist()
        }

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: None) -> None:
        self._store(self._by_class(X, y), y)

    def _forget(self, X: ArrayLike, y: np.ndarray, sample_weight: None) -> None:
        samples = dict(self._samples)
        for label, gone in self._by_class(X, y).items():
            self._check_complete(label, samples[label])
            try:
                samples[label] = remove_rows(samples[label], gone.keys)
            except LookupError as error:
                raise ValueError(
                    f"X holds {error.args[0]} rows with label {label!r} that were not learned, or "
                    "not as often; forget takes samples exactly as they were learned."
                ) from None
        self._keep({label: sample for label, sample in samples.items() if sample.n_seen})

    def _check_complete(self, label: object, sample: ClassSample) -> None:
        if not sample.is_complete:
            raise ValueError(
                f"Of class {label!r} {sample.n_seen} rows were learned and {len(sample.rows)} are "
                f"kept, so what its prototypes would be without some is not known; set a larger "
                "reservoir before learning, or call forget_class."
            )

    def _forget_class(self, label: object) -> None:
        self._keep({held: sample for held, sample in self._samples.items() if held != label})

    def _keep(self, samples: dict[object, ClassSample]) -> None:
        kept = [label in samples for label in self._stored_classes.tolist()]
        self._samples, self._stored_classes = samples, self._stored_classes[kept]

    def _merge(self, other: Self) -> None:
        samples = other._samples
        if other._seed != self._seed:
            samples = {
                label: ClassSample(sample.rows, row_keys(sample.rows, self._seed), sample.n_seen)
                for label, sample in samples.items()
            }
        self._store(samples, other._stored_classes)

    def _can_map(self) -> bool:
        # Where k-means starts follows from the values of the rows, down to their last bits.
        return False

    def _refresh(self) -> None:
        super()._refresh()
        self._solution: _Prototypes | None = None

    @property
    def _solved(self) -> _Prototypes:
        if self._solution is None:
            self._solution = self._solve()
        return self._solution

    def _solve(self) -> _Prototypes:
        labels = self._stored_classes.tolist()
        counts = np.array([len(self._samples[label].rows) for label in labels])
        largest = tail_size(counts, _DELTA) if self.n_prototypes == "balanced" else None
        vectors = [self._prototypes_of(label, largest) for label in labels]
        return _Prototypes(np.concatenate(vectors), [len(part) for part in vectors])

    def _prototypes_of(self, label: object, largest: int | None) -> np.ndarray:
        """Centres of one class, in clusters of at most so many rows."""
        sample = self._samples[label]
        rows = sample.rows.astype(np.float64)
        if self.metric == "cosine":
            rows = unit_rows(torch.from_numpy(rows)).numpy()
        else:
            check_squares(rows)
        distinct = np.unique(sample.keys, return_inverse=True)[1]
        n_distinct = int(distinct.max()) + 1
        wanted = self._wanted(label) if largest is None else -(-len(rows) // largest)
        if wanted >= n_distinct and (largest is None or n_distinct == len(rows)):
            return cluster_means(rows, distinct, n_clusters=n_distinct)
        found = capacity_kmeans(rows, wanted, capacity=largest, metric=self.metric, seed=self._seed)
        return cluster_means(rows, found, n_clusters=int(found.max()) + 1)

    def _wanted(self, label: object) -> int:
        if not isinstance(self.n_prototypes, dict):
            return int(self.n_prototypes)
        wanted = self.n_prototypes.get(label, 1)
        if isinstance(wanted, bool) or not isinstance(wanted, Integral) or wanted < 1:
            raise ValueError(
                f"n_prototypes={self.n_prototypes!r} is not valid; give whole numbers of at least "
                "1."
            )
        return int(wanted)

    # What was learned.

    def _known(self, name: str) -> _Prototypes:
        if not hasattr(self, "classes_"):
            raise AttributeError(f"This {type(self).__name__} is not fitted, so has no {name!r}.")
        return self._solved

    @property
    def prototypes_(self) -> np.ndarray:
        """Prototypes of all classes, one class after the other."""
        return self._known("prototypes_").vectors

    @property
    def parent_(self) -> np.ndarray:
        """Classes of the prototypes."""
        sizes = self._known("parent_").sizes
        return np.repeat(self._stored_classes, sizes)

    @property
    def counts_(self) -> np.ndarray:
        """Rows learned of each class."""
        self._known("counts_")
        seen = [[self._samples[label].n_seen for label in self._stored_classes.tolist()]]
        return spread_columns(np.array(seen), self._stored_classes, self.classes_, fill=0)[0]

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
            float32 and half precision, else float64; always float64 for squares that leave the
            range of float32.
        """
        check_is_fitted(self)
        X = as_tensor(validate_vectors(self, X, reset=False))
        solved, metric, reduce = self._solved, METRICS[self.metric], _REDUCTIONS[self.reduce]
        vectors = wide_tensor(solved.vectors, X)

        def score(rows: torch.Tensor) -> torch.Tensor:
            parts = metric(rows, vectors).split(solved.sizes, dim=1)
            return torch.stack([reduce(part, self.temperature) for part in parts], dim=1)

        scores = scores_of(X, score, n_outputs=len(vectors))
        return spread_columns(scores, self._stored_classes, self.classes_, fill=-np.inf)

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
        return softmax(self.temperature * self._decisive_scores(X), axis=1)
