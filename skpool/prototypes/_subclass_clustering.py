# SPDX-License-Identifier: BSD-3-Clause
"""SubclassClustering: large classes cut into subclasses of about the size of the small ones.

On long-tailed data a class of a thousand rows outweighs one of ten. Cut into clusters of ten it
does not, and its subclasses can be learned like classes.
"""

from numbers import Integral
from typing import ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.prototypes._base import scores_of, wide_tensor
from skpool.prototypes._capacity_kmeans import capacity_kmeans, cluster_means
from skpool.prototypes._kernels import METRICS
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_labels,
    unchanged_on_error,
    unit_rows,
    validate_vectors,
)

__all__ = ["SubclassClustering", "tail_size"]


def tail_size(counts: np.ndarray, delta: int) -> int:
    """Return the size that subclasses may have: that of the smallest class, or `delta`."""
    return max(delta, int(counts.min()))


class SubclassClustering(BaseEstimator):
    r"""Clusters of every class, none larger than a given size.

    A class of :math:`n_c` rows is split into :math:`\lceil n_c / M \rceil` clusters of at most
    :math:`M` rows by k-means: from centres of k-means++, all pairs of rows and centres are taken
    by distance, the nearest first, those with full clusters are skipped, and the centres move to
    the means of what they got. This is the clustering step of subclass-balancing contrastive
    learning [1]_.

    Parameters
    ----------
    max_size : "tail" or int, default="tail"
        Rows per cluster, :math:`M`; "tail" takes the size of the smallest class, but at least
        `delta`.
    delta : int, default=10
        Least value of "tail".
    n_init : int, default=3
        Starts of every clustering, of which the best counts.
    max_iter : int, default=20
        Iterations of a start, at most.
    metric : {"cosine", "euclidean"}, default="cosine"
        "cosine" scales rows and centres to unit length.
    random_state : int, RandomState instance or None, default=None
        Of the starts.

    Attributes
    ----------
    subclass_labels_ : ndarray of shape (n_samples,)
        Cluster of each row, from 0 on; those of one class follow each other.
    parent_ : ndarray of shape (n_subclasses,)
        The class that each cluster is a part of.
    centers_ : ndarray of shape (n_subclasses, n_features)
        Means of the clusters; of unit rows, and of unit length, for the cosine.
    max_size_ : int
        Rows per cluster, at most.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    MultiPrototypeClassifier : Several such centres per class as a classifier.

    Notes
    -----
    Cost O(n_c^2 d / M) per iteration of a class of :math:`n_c` rows; memory O(n_c^2 / M).

    References
    ----------
    .. [1] C. Hou, J. Zhang, H. Wang, T. Zhou, Subclass-balancing Contrastive Learning for
       Long-tailed Recognition, 2023. <https://arxiv.org/abs/2306.15925>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.prototypes import SubclassClustering
    >>> X = np.array([[0.0], [5.0], [0.1], [5.1], [9.0], [9.1]])
    >>> y = ["head", "head", "head", "head", "tail", "tail"]
    >>> cut = SubclassClustering(2, metric="euclidean", random_state=0).fit(X, y)
    >>> cut.parent_
    array(['head', 'head', 'tail'], dtype='<U4')
    >>> cut.centers_.round(2).ravel()
    array([0.05, 5.05, 9.05])
    """

    _parameter_constraints: ClassVar[dict] = {
        "max_size": [StrOptions({"tail"}), Interval(Integral, 1, None, closed="left")],
        "delta": [Interval(Integral, 1, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "metric": [StrOptions({"cosine", "euclidean"})],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        max_size: int | str = "tail",
        *,
        delta: int = 10,
        n_init: int = 3,
        max_iter: int = 20,
        metric: str = "cosine",
        random_state: int | np.random.RandomState | None = None,
    ):
        self.max_size = max_size
        self.delta = delta
        self.n_init = n_init
        self.max_iter = max_iter
        self.metric = metric
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object) -> Self:
        """Cluster the rows of every class.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels.

        Returns
        -------
        self : estimator
            If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            tensor = as_tensor(validate_vectors(self, X)).cpu().double()
            classes, codes = np.unique(check_labels(y, n_samples=len(tensor)), return_inverse=True)
            rows = (unit_rows(tensor) if self.metric == "cosine" else tensor).numpy()
            counts = np.bincount(codes)
            tail = self.max_size == "tail"
            self.max_size_ = tail_size(counts, self.delta) if tail else int(self.max_size)
            self._cluster(rows, classes, codes)
        return self

    def fit_predict(self, X: ArrayLike, y: object) -> np.ndarray:
        """Cluster the rows of every class and return their clusters.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            The attribute `subclass_labels_`.
        """
        return self.fit(X, y).subclass_labels_

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the cluster with the nearest centre, whatever its class and however full.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Positions in `centers_` and `parent_`.
        """
        check_is_fitted(self)
        X = as_tensor(validate_vectors(self, X, reset=False))
        centers, metric = wide_tensor(self.centers_, X), METRICS[self.metric]
        scores = scores_of(X, lambda rows: metric(rows, centers), n_outputs=len(centers))
        return scores.argmax(axis=1)

    def _cluster(self, rows: np.ndarray, classes: np.ndarray, codes: np.ndarray) -> None:
        random_state = check_random_state(self.random_state)
        labels, parents = np.empty(len(rows), dtype=np.intp), []
        for code in range(len(classes)):
            members = np.flatnonzero(codes == code)
            found = capacity_kmeans(
                rows[members],
                -(-len(members) // self.max_size_),
                capacity=self.max_size_,
                metric=self.metric,
                n_init=self.n_init,
                max_iter=self.max_iter,
                seed=random_state.randint(2**31 - 1),
            )
            labels[members] = len(parents) + found
            parents += [code] * (found.max() + 1)
        self.subclass_labels_, self.parent_ = labels, classes[parents]
        self.centers_ = cluster_means(
            rows, labels, n_clusters=len(parents), unit=self.metric == "cosine"
        )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
