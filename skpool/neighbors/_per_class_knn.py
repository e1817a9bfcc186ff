# SPDX-License-Identifier: BSD-3-Clause
"""PerClassKNNClassifier: the nearest samples of every class, whatever the sizes of the classes."""

from itertools import pairwise
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin
from skpool.neighbors._index import NeighborIndex
from skpool.neighbors._kernels import approximate_distances, working_bytes
from skpool.neighbors._stored_samples import StoredSamplesMixin
from skpool.utils import ArrayLike, numpy_or_tensor, squares_fit, unit_rows, validate_vectors

__all__ = ["PerClassKNNClassifier"]


def class_similarities(
    similarities: torch.Tensor, codes: np.ndarray, k: int, *, reduce: str, temperature: float
) -> torch.Tensor:
    """Return for each class how similar its nearest samples are.

    Parameters
    ----------
    similarities : tensor of shape (m, n)
        Of queries and stored samples.
    codes : ndarray of shape (n,)
        Classes of the stored samples, each of 0 to the largest at least once.
    k : int
        Samples per class, at most.
    reduce : {"mean", "logmeanexp"}
        How the similarities of a class are reduced.
    temperature : float
        For "logmeanexp".

    Returns
    -------
    scores : tensor of shape (m, n_classes)
        Of the type of the similarities.
    """
    order = torch.from_numpy(np.argsort(codes, kind="stable")).to(similarities.device)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(codes))]).tolist()
    similarities = similarities.index_select(1, order)
    scores = similarities.new_empty((len(similarities), len(bounds) - 1))
    for c, (start, stop) in enumerate(pairwise(bounds)):
        best = similarities[:, start:stop]
        if k < stop - start:
            best = best.topk(k, dim=1).values
        if reduce == "mean":
            scores[:, c] = best.mean(dim=1)
        else:
            total = torch.logsumexp(best / temperature, dim=1) - np.log(best.shape[1])
            scores[:, c] = temperature * total
    return scores


class PerClassKNNClassifier(StoredSamplesMixin, ClassScoresMixin, ClassifierMixin, BaseEstimator):
    r"""Classifier by the nearest samples of every class.

    With the similarities :math:`s_{ci}` of the :math:`k` nearest samples of class :math:`c`, or of
    all where it has fewer, the class scores their mean or

    .. math:: T \log \frac{1}{k} \sum_{i=1}^{k} e^{s_{ci}/T} ,

    a kernel estimate of the density of the class. Every class has its say, so the sizes of the
    classes do not matter; with a temperature that grows or ``reduce="mean"`` and `k` above the
    class sizes, unit vectors are classified by their products with the class means.

    Parameters
    ----------
    k : int, default=5
        Samples per class.
    reduce : {"mean", "logmeanexp"}, default="mean"
        How the similarities of a class are reduced to its score.
    temperature : float, default=0.07
        Of "logmeanexp", and divisor of the scores in the softmax of `predict_proba`.
    metric : {"cosine", "euclidean", "dot"}, default="cosine"
        Similarities are the cosine (0 from or to a zero vector), minus the squared Euclidean
        distance, and the dot product.

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

    See Also
    --------
    WeightedKNNClassifier : The nearest samples of all classes together.
    skpool.prototypes.NearestClassMeanClassifier : One vector per class.

    Notes
    -----
    Cost: one product of n_queries * n_stored * n_features in the type of the samples, and a
    partial sort within each class; blocks fit scikit-learn's `working_memory`. Learning in pieces
    equals learning at once.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.neighbors import PerClassKNNClassifier
    >>> X = np.array([[1.0, 0.0], [0.9, 0.1], [0.9, 0.2], [0.0, 1.0]])
    >>> knn = PerClassKNNClassifier(k=2).fit(X, ["cat", "cat", "cat", "dog"])
    >>> knn.predict([[0.3, 0.9]])
    array(['dog'], dtype='<U3')
    """

    _parameter_constraints: ClassVar[dict] = {
        "k": [Interval(Integral, 1, None, closed="left")],
        "reduce": [StrOptions({"mean", "logmeanexp"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "metric": [StrOptions({"cosine", "euclidean", "dot"})],
    }

    def __init__(
        self,
        k: int = 5,
        *,
        reduce: str = "mean",
        temperature: float = 0.07,
        metric: str = "cosine",
    ):
        self.k = k
        self.reduce = reduce
        self.temperature = temperature
        self.metric = metric

    def _new_index(self) -> NeighborIndex:
        return NeighborIndex(self.metric)

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return how similar the nearest samples of every class are.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; -inf for a class without samples.
        """
        check_is_fitted(self)
        rows = numpy_or_tensor(validate_vectors(self, X, reset=False))[0]
        index, counts = self.index_, self._counts()
        x = self._comparable(index._joined("_stored"), index._joined("_prepared"))
        if not squares_fit(x):
            x = x.double()
        held = np.flatnonzero(counts)
        codes = np.searchsorted(held, self._codes)
        scores = np.full((len(rows), len(counts)), -np.inf)
        # A block holds its similarities twice: as computed, and class by class.
        for block in gen_batches(len(rows), max(1, working_bytes() // (8 * len(x)))):
            q = rows[block].to(x)
            q = self._comparable(q, index._prepare(q, index._center))
            similarities = approximate_distances(q, x, metric=index.metric).neg_()
            if index.metric == "cosine":
                similarities.add_(1)
            found = class_similarities(
                similarities, codes, self.k, reduce=self.reduce, temperature=self.temperature
            )
            scores[block, held] = found.cpu().numpy()
        return scores

    def _comparable(self, rows: torch.Tensor, prepared: torch.Tensor) -> torch.Tensor:
        """Rows as products compare them, in the type that the samples are stored in."""
        if rows.dtype == prepared.dtype:
            return prepared
        if self.index_.metric == "euclidean":
            return rows - self.index_._center
        return unit_rows(rows) if self.index_.metric == "cosine" else rows

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the softmax of the scores divided by `temperature`: classes alike beforehand.

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
        # Differences first: quotients of large scores overflow.
        return softmax((scores - scores.max(axis=1, keepdims=True)) / self.temperature, axis=1)
