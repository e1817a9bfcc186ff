# SPDX-License-Identifier: BSD-3-Clause
"""WeightedKNNClassifier: the standard training-free test of frozen features, append and forget.

`StoredSamplesMixin` keeps the rows in a `NeighborIndex` and their labels beside it; everything
else is a vote.
"""

from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.neighbors._approximate import METHODS
from skpool.neighbors._index import NeighborIndex
from skpool.neighbors._stored_samples import StoredSamplesMixin
from skpool.neighbors._votes import WEIGHTS, neighbor_weights, vote_probabilities
from skpool.utils import ArrayLike, validate_vectors

__all__ = ["WeightedKNNClassifier"]


class WeightedKNNClassifier(StoredSamplesMixin, ClassifierMixin, BaseEstimator):
    r"""Classifier by the weighted votes of the nearest training samples.

    With similarities :math:`s_i` of the :math:`k` nearest samples, the probability of class
    :math:`c` is

    .. math:: p_c = \frac{\sum_i e^{s_i/T}\,[y_i = c]}{\sum_i e^{s_i/T}},

    the weighted kNN of NPID [1]_ and DINO [2]_, by which representations are compared. It tends
    to the nearest neighbour as :math:`T` falls to 0 and to the majority of the neighbours as it
    grows. Samples can be added and removed at any time, exactly.

    Parameters
    ----------
    n_neighbors : int, default=20
        The nearest samples that vote. While fewer samples are stored, all of them vote.
    weights : {"exp", "uniform", "distance", "rank"} or callable, default="exp"
        Weight of a neighbour: exp(similarity / temperature), 1, the inverse distance, or k for
        the nearest down to 1 for the last. A callable takes distances of shape
        (n_queries, n_neighbors) and returns weights of that shape.
    temperature : float, default=0.07
        For ``weights="exp"``, whose similarity is the cosine, the dot product, or minus the
        squared Euclidean distance. For unit vectors ``metric="euclidean"`` with 2 T is
        ``metric="cosine"`` with T.
    metric : {"cosine", "euclidean", "dot"}, default="cosine"
        Distances are 1 - cosine (1 from or to a zero vector), the Euclidean distance, and minus
        the dot product.
    class_weight : {"balanced"}, float or dict, default=None
        A number divides the votes of a class by its number of samples to this power; "balanced"
        is 1 and None is 0. A dict of label to weight multiplies the votes; labels that it does
        not hold weigh 1.
    backend : {"auto", "torch", "faiss"}, default="auto"
        Engine of the search, see :class:`NeighborIndex`; all give the same neighbours.
    method : {"exact", "hnsw", "ivf", "ivfpq"}, default="exact"
        How neighbours are found, see :class:`NeighborIndex`. All others than "exact" may miss
        some: look at `recall_` before you trust an accuracy.
    params : dict, default=None
        Settings of the method, see :class:`NeighborIndex`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.
    index_ : NeighborIndex
        The stored samples.
    train_labels_ : ndarray of shape (n_stored,)
        Their labels, in order of arrival.
    train_features_ : ndarray of shape (n_stored, n_features)
        Their features, in the same order; read-only.
    recall_ : float
        Share of the `n_neighbors` nearest samples that the method finds, measured on up to 256
        of the stored samples when it is first asked for; 1 for ``method="exact"``.

    See Also
    --------
    NeighborIndex : The search underneath.
    PerClassKNNClassifier : Takes the nearest samples of every class, for uneven class sizes.
    KNNMixtureClassifier : Votes beside another classifier.
    skpool.prototypes.NearestClassMeanClassifier : Keeps one vector per class instead of all.

    Notes
    -----
    Cost: fitting stores the samples; a prediction of m samples is one product of
    m * n_stored * n_features and a partial sort. Of equally near samples the one that came first
    is taken, with every back-end. A new sample of a known class changes nothing else, so
    learning in pieces equals learning at once, and `sweep` tries many settings for the price of
    one search.

    With fewer neighbours than classes `class_weight` cannot help a class that has no vote; use
    :class:`PerClassKNNClassifier` then.

    A call that names its number of neighbours, `kneighbors(n_neighbors=...)` or `sweep`, is
    refused where fewer samples are stored.

    References
    ----------
    .. [1] Z. Wu, Y. Xiong, S. X. Yu, D. Lin, Unsupervised Feature Learning via Non-Parametric
       Instance Discrimination, CVPR 2018. <https://arxiv.org/abs/1805.01978>
    .. [2] M. Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021.
       <https://arxiv.org/abs/2104.14294>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.neighbors import WeightedKNNClassifier
    >>> X, y = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), ["cat", "cat", "dog"]
    >>> knn = WeightedKNNClassifier(n_neighbors=2).fit(X, y)
    >>> knn.predict([[2.0, 0.1]])
    array(['cat'], dtype='<U3')
    >>> knn.partial_fit([[-1.0, 0.0]], ["owl"]).predict([[-3.0, 0.5]])
    array(['owl'], dtype='<U3')
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "weights": [StrOptions(set(WEIGHTS)), callable],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "metric": [StrOptions({"cosine", "euclidean", "dot"})],
        "class_weight": [
            StrOptions({"balanced"}),
            Interval(Real, 0, None, closed="left"),
            dict,
            None,
        ],
        "backend": [StrOptions({"auto", "torch", "faiss"})],
        "method": [StrOptions({"exact", *METHODS})],
        "params": [dict, None],
    }

    def __init__(
        self,
        n_neighbors: int = 20,
        *,
        weights: str | Callable[[np.ndarray], np.ndarray] = "exp",
        temperature: float = 0.07,
        metric: str = "cosine",
        class_weight: str | float | dict | None = None,
        backend: str = "auto",
        method: str = "exact",
        params: dict | None = None,
    ):
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.temperature = temperature
        self.metric = metric
        self.class_weight = class_weight
        self.backend = backend
        self.method = method
        self.params = params

    def kneighbors(
        self,
        X: ArrayLike | None = None,
        n_neighbors: int | None = None,
        return_distance: bool = True,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Find the nearest stored samples.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features), default=None
            Queries. None takes every stored sample, which is then not its own neighbour.
        n_neighbors : int, default=None
            Neighbours to return. None takes the parameter `n_neighbors`, or all where fewer are
            stored.
        return_distance : bool, default=True
            Whether to return the distances too.

        Returns
        -------
        distances : ndarray of shape (n_samples, n_neighbors)
            Ascending; only if `return_distance`.
        positions : ndarray of shape (n_samples, n_neighbors)
            Positions in `train_labels_` and `train_features_`.
        """
        check_is_fitted(self)
        others = X is None
        X = self.train_features_ if others else validate_vectors(self, X, reset=False)
        available = len(self.index_) - others
        k = min(self.n_neighbors, available) if n_neighbors is None else n_neighbors
        if not 1 <= k <= available:
            raise ValueError(
                f"n_neighbors={k} were asked for, but {available} stored samples can be "
                f"neighbours; ask for 1 to {available}."
                if available
                else "n_samples = 1 is stored, which has no neighbours; store more."
            )
        distances, positions = self.index_._nearest(
            X, k, exclude=self.index_.ids if others else None
        )
        return (distances, positions) if return_distance else positions

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the share of the votes that each class collects.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Rows sum to 1; 0 for a class without a vote. Columns in the order of `classes_`.
        """
        return self._vote(*self.kneighbors(X), temperature=self.temperature)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the class with most votes.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Labels; of equal votes the first in `classes_` wins.
        """
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def sweep(
        self,
        X: ArrayLike,
        n_neighbors: Iterable[int] = (10, 20, 100, 200),
        temperatures: Iterable[float] = (0.03, 0.07, 0.1),
    ) -> dict[tuple[int, float], np.ndarray]:
        """Return the probabilities of many settings from one search.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        n_neighbors : iterable of int, default=(10, 20, 100, 200)
            Numbers of neighbours; each at most the number of stored samples.
        temperatures : iterable of float, default=(0.03, 0.07, 0.1)
            Temperatures, greater than 0.

        Returns
        -------
        probabilities : dict of (int, float) to ndarray of shape (n_samples, n_classes)
            What `predict_proba` gives for each pair (number of neighbours, temperature).
        """
        check_is_fitted(self)
        ks, temperatures = list(n_neighbors), list(temperatures)
        if self.weights != "exp":
            raise ValueError(
                f"sweep varies the temperature, which weights={self.weights!r} does not have; use "
                "weights='exp'."
            )
        if not ks or not temperatures or min(ks) < 1 or not min(temperatures) > 0:
            raise ValueError(
                f"n_neighbors={ks} and temperatures={temperatures} must hold whole numbers of at "
                "least 1 and numbers above 0."
            )
        distances, positions = self.kneighbors(X, max(ks))
        return {
            (k, t): self._vote(distances[:, :k], positions[:, :k], temperature=t)
            for k in ks
            for t in temperatures
        }

    def loo_predict_proba(self) -> np.ndarray:
        """Return the probabilities of each stored sample when it is left out.

        Returns
        -------
        probabilities : ndarray of shape (n_stored, n_classes)
            Row i is what `predict_proba` would give for sample i had it not been stored, with 0
            for a class that had no other sample.
        """
        distances, positions = self.kneighbors()
        return self._vote(distances, positions, temperature=self.temperature, own=True)

    @property
    def recall_(self) -> float:
        """Share of the nearest samples that the method finds."""
        # Fitted attributes do not exist before fit: hasattr must say so.
        if not hasattr(self, "index_"):
            raise AttributeError(f"This {type(self).__name__} is not fitted, so has no 'recall_'.")
        if self.index_.method == "exact" or len(self.index_) < 2:
            return 1.0
        if self._recall is None:
            self._recall = self.index_.recall(k=self.n_neighbors)
        return self._recall

    def _new_index(self) -> NeighborIndex:
        return NeighborIndex(
            self.metric, backend=self.backend, method=self.method, params=self.params
        )

    def _refresh(self) -> None:
        super()._refresh()
        self._recall: float | None = None

    def _vote(
        self,
        distances: np.ndarray,
        positions: np.ndarray,
        *,
        temperature: float,
        own: bool = False,
    ) -> np.ndarray:
        weights = neighbor_weights(
            distances, self.weights, metric=self.index_.metric, temperature=temperature
        )
        return vote_probabilities(
            self._codes[positions],
            weights,
            len(self.classes_),
            class_sizes=self._class_sizes(own=own),
        )

    def _class_sizes(self, *, own: bool) -> np.ndarray | float:
        """Return what votes are divided by; with `own` for each stored sample left out."""
        if isinstance(self.class_weight, dict):
            return 1 / self._named_weights()
        power = {None: 0.0, "balanced": 1.0}.get(self.class_weight, self.class_weight)
        if not power:
            return 1.0
        sizes = self._counts().astype(np.float64)
        if own:
            sizes = sizes - (self._codes[:, None] == np.arange(len(sizes)))
        # A class without samples gets no votes; its size only must not be 0.
        return np.maximum(sizes, 1.0) ** power

    def _named_weights(self) -> np.ndarray:
        weights = [self.class_weight.get(label, 1.0) for label in self.classes_.tolist()]
        weights = np.array(weights, dtype=np.float64)
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError(
                f"class_weight={self.class_weight!r} holds a weight that is not above 0; give "
                "finite weights above 0."
            )
        return weights
