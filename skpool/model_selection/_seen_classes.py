# SPDX-License-Identifier: BSD-3-Clause
"""A learner that is asked among the labels that it has seen, whoever wrote the estimator.

Our classifiers take new labels in any call. Those of scikit-learn want all labels announced in the
first call, and may then predict a label of which they never saw a row; a protocol that allowed
this would know the future, so only the columns of seen labels are compared.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import Pipeline

from skpool.base import IncrementalMixin
from skpool.utils import joined_labels

__all__ = ["SeenClassesLearner", "predict_among"]

_SCORES = ("decision_function", "predict_log_proba", "predict_proba")


class SeenClassesLearner:
    """A clone of an estimator that learns in calls, and predicts labels of past calls alone.

    Parameters
    ----------
    estimator : classifier with `partial_fit`
    classes : ndarray of shape (n_classes,)
        All labels to come, for an estimator that must be told in the first call.
    """

    def __init__(self, estimator: BaseEstimator, classes: np.ndarray):
        if not hasattr(estimator, "partial_fit"):
            raise TypeError(
                f"estimator={estimator!r} has no partial_fit, so it cannot learn in stages; take "
                "one that has (a pipeline: IncrementalPipeline), or give it as joint_reference."
            )
        self.estimator = clone(estimator)
        self.seen = classes[:0]
        self._announced = classes if _must_be_told(estimator) else None

    def learn(self, X: Any, y: np.ndarray, params: Mapping[str, Any]) -> None:
        """Learn more rows.

        Parameters
        ----------
        X : array-like
        y : ndarray of shape (n_samples,)
        params : mapping
            Further arguments of `partial_fit`.
        """
        told = {}
        if self._announced is not None and len(self.seen) == 0:
            told = {"classes": self._announced}
        self.estimator.partial_fit(X, y, **told, **params)
        self.seen = joined_labels(self.seen, y)

    def predict(self, X: Any, *, among: np.ndarray | None = None) -> np.ndarray:
        """Predict labels that were seen.

        Parameters
        ----------
        X : array-like
        among : ndarray, default=None
            Labels to choose from; None for all.

        Returns
        -------
        y_pred : ndarray of shape (n_samples,)
        """
        if among is None and self._announced is None:
            return np.asarray(self.estimator.predict(X))
        among = self.seen if among is None else np.intersect1d(among, self.seen)
        return predict_among(self.estimator, X, among)


def _must_be_told(estimator: BaseEstimator) -> bool:
    """Whether `partial_fit` of the last step wants all labels in its first call."""
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    if isinstance(estimator, IncrementalMixin) or type(estimator).__module__.startswith("skpool."):
        return False
    return "classes" in signature(estimator.partial_fit).parameters


def predict_among(estimator: BaseEstimator, X: Any, among: np.ndarray) -> np.ndarray:
    """Predict the best of some labels by the scores of an estimator.

    Parameters
    ----------
    estimator : fitted classifier
    X : array-like
    among : ndarray of shape (n_labels,)
        Labels that the estimator knows.

    Returns
    -------
    y_pred : ndarray of shape (n_samples,)
    """
    if np.array_equal(among, estimator.classes_):
        return np.asarray(estimator.predict(X))
    method = next((name for name in _SCORES if hasattr(estimator, name)), None)
    if method is None:
        raise TypeError(
            f"{type(estimator).__name__} has none of {list(_SCORES)}, so it cannot be asked among "
            "some of its labels; take an estimator that has one."
        )
    # Of a label that was announced and has no rows, scikit-learn takes the logarithm of 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.asarray(getattr(estimator, method)(X))
    if scores.ndim == 1:
        scores = np.stack([-scores, scores], axis=1)
    columns = np.searchsorted(estimator.classes_, among)
    return among[scores[:, columns].argmax(axis=1)]
