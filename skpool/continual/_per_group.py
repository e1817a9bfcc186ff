# SPDX-License-Identifier: BSD-3-Clause
"""PerGroupClassifier: one prototype, or one Gaussian, per domain and class.

The same classes come from several domains, and one mean over all of them would lie between. Here
every class of every domain is a class of its own to the classifier below, and a sample gets the
class of the best of them, whatever its domain.
"""

import copy
import json
from collections.abc import Callable
from typing import ClassVar, Self

import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, _fit_context, clone
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, column_or_1d

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.prototypes import NearestClassMeanClassifier
from skpool.utils import (
    ArrayLike,
    check_finite,
    joined_labels,
    validate_vectors,
)

__all__ = ["PerGroupClassifier"]

_REDUCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "logsumexp": lambda scores: logsumexp(scores, axis=1) - np.log(scores.shape[1]),
    "max": lambda scores: scores.max(axis=1),
}


def _learns_in_parts(estimator: "PerGroupClassifier") -> bool:
    """Whether rows can be taken away; the estimator says why not."""
    return estimator._check_learns_in_parts()


class PerGroupClassifier(
    MetaEstimatorMixin, ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator
):
    r"""Classifier that knows every class once per group, and decides by the best of them.

    Groups are domains, such as scanners, seasons or styles, known for the training rows and not
    for those to come. The estimator learns the pairs of group and class; with its scores
    :math:`s_{gc}(x)` a class scores :math:`\max_g s_{gc}(x)`, or
    :math:`\log \frac{1}{|G_c|} \sum_g e^{s_{gc}(x)}` over the groups that it has rows of.

    Parameters
    ----------
    estimator : classifier with partial_fit and class_scores, default=None
        Cloned; None for ``NearestClassMeanClassifier()``, one mean per group and class. A
        `GaussianClassifier` keeps one Gaussian of each.
    reduce : {"max", "logsumexp"}, default="max"
        Score of a class: of its best group, or the logarithm of the mean of the densities, where
        scores are logarithms of densities.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    cells_ : list of (group, label)
        The pairs, in the order of the classes of `estimator_`, which are their names.
    estimator_ : classifier
        What learned the pairs.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.

    See Also
    --------
    skpool.prototypes.MultiPrototypeClassifier : Where it is not known what a class consists of.
    skpool.preprocessing.GroupCenterer : Takes the groups off before one classifier for all; the
        groups must be known for the rows to come.

    Notes
    -----
    The estimator decides what order and partition of the samples do: none, for those that follow
    from moments, which forget samples exactly, too. In a pipeline groups travel by metadata
    routing: ``set_partial_fit_request(groups=True)``.

    Cost: that of the estimator with as many classes as there are pairs.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import PerGroupClassifier
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> X, y = np.array([[0.0], [9.0], [1.0], [2.0]]), ["a", "a", "b", "b"]
    >>> model = PerGroupClassifier(NearestClassMeanClassifier("euclidean"))
    >>> model.fit(X, y, groups=["day", "night", "day", "day"]).predict([[8.0], [1.0]])
    array(['a', 'b'], dtype='<U1')
    """

    _parameter_constraints: ClassVar[dict] = {
        "estimator": [HasMethods(["partial_fit", "class_scores"]), None],
        "reduce": [StrOptions(set(_REDUCTIONS))],
    }

    def __init__(self, estimator: BaseEstimator | None = None, *, reduce: str = "max"):
        self.estimator = estimator
        self.reduce = reduce

    # Learning.

    def fit(self, X: ArrayLike, y: object, *, groups: object = None) -> Self:
        """Learn from these samples alone.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.
        groups : array-like of shape (n_samples,), default=None
            Group of every row, as numbers or text; None puts all rows into one group.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        return super().fit(X, y, groups)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: ArrayLike, y: object, classes: object = None, *, groups: object = None
    ) -> Self:
        """Learn from these samples on top of all earlier ones.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels; labels never seen before are welcome in any call.
        classes : array-like of shape (n_classes,), default=None
            Labels to announce before they have samples; never predicted until then.
        groups : array-like of shape (n_samples,), default=None
            As in `fit`; groups never seen before are welcome in any call.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        return self._learn(X, y, classes, groups, reset=not hasattr(self, "classes_"))

    @available_if(_learns_in_parts)
    def forget(self, X: ArrayLike, y: object, *, groups: object = None) -> Self:
        """Remove samples that were learned, as if they had never been seen.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            The feature vectors as they were learned.
        y : array-like of shape (n_samples,)
            Their labels.
        groups : array-like of shape (n_samples,), default=None
            Their groups.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        return super().forget(X, y, groups)

    def _check_learns_in_parts(self) -> bool:
        held = self._new_estimator()
        if not (hasattr(held, "forget") and hasattr(held, "merge")):
            raise AttributeError(
                f"{type(held).__name__} neither forgets nor merges; take an estimator that follows "
                "from moments."
            )
        return True

    def _can_map(self) -> bool:
        return False

    def _new_estimator(self) -> BaseEstimator:
        return clone(NearestClassMeanClassifier() if self.estimator is None else self.estimator)

    # Hooks of the mixin; where others get weights, this one gets the groups.

    def _check_batch(
        self, X: ArrayLike, y: object, groups: object, *, reset: bool
    ) -> tuple[ArrayLike, np.ndarray, np.ndarray]:
        X, y, _ = super()._check_batch(X, y, None, reset=reset)
        check_finite(X)
        return X, y, _cells(y, groups)

    def _reset(self) -> None:
        self.estimator_, self._labels = self._new_estimator(), self._announced[:0]

    def _update(self, X: ArrayLike, y: np.ndarray, cells: np.ndarray) -> None:
        self._labels = joined_labels(self._labels, y)
        self.estimator_ = copy.deepcopy(self.estimator_).partial_fit(X, cells)

    def _forget(self, X: ArrayLike, y: np.ndarray, cells: np.ndarray) -> None:
        self.estimator_ = copy.deepcopy(self.estimator_).forget(X, cells)

    def _forget_class(self, label: object) -> None:
        estimator = copy.deepcopy(self.estimator_)
        for cell, (_, known) in zip(estimator.classes_.tolist(), self.cells_, strict=True):
            if known == label:
                estimator.forget_class(cell)
        self.estimator_ = estimator

    def _merge(self, other: Self) -> None:
        self._labels = joined_labels(self._labels, other._labels)
        self.estimator_ = copy.deepcopy(self.estimator_).merge(other.estimator_)

    def _seen_classes(self) -> np.ndarray:
        held = {label for _, label in self.cells_}
        return self._labels[[label in held for label in self._labels.tolist()]]

    @property
    def cells_(self) -> list[tuple]:
        """The pairs of group and label."""
        return [tuple(json.loads(cell)) for cell in self.estimator_.classes_.tolist()]

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
            Columns in the order of `classes_`; -inf for a class without samples.
        """
        check_is_fitted(self)
        scores = self.estimator_.class_scores(validate_vectors(self, X, reset=False))
        seen, labels = self._seen_classes(), [label for _, label in self.cells_]
        parts = [scores[:, [known == label for known in labels]] for label in seen.tolist()]
        scores = np.stack([_REDUCTIONS[self.reduce](part) for part in parts], axis=1)
        return spread_columns(scores, seen, self.classes_, fill=-np.inf)


def _cells(y: np.ndarray, groups: object) -> np.ndarray:
    """Names of the pairs of group and label, which are the same on every machine."""
    groups = [None] * len(y) if groups is None else _checked(groups, len(y)).tolist()
    return np.array([json.dumps(pair) for pair in zip(groups, y.tolist(), strict=True)])


def _checked(groups: object, n_samples: int) -> np.ndarray:
    if isinstance(groups, torch.Tensor):
        groups = groups.detach().cpu().numpy()
    groups = column_or_1d(groups)
    if groups.dtype.kind == "O":
        mixed = len({isinstance(name, str) for name in groups}) > 1
        groups = groups if mixed else np.array(groups.tolist())
    if len(groups) != n_samples:
        raise ValueError(f"X has {n_samples} rows and groups {len(groups)}; give one per row.")
    if groups.dtype.kind not in "iubUf" or (groups.dtype.kind == "f" and np.isnan(groups).any()):
        raise ValueError(
            f"groups of {groups.dtype} must be numbers alone or text alone, without NaN; name the "
            "group of every row."
        )
    return groups
