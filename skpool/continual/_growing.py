# SPDX-License-Identifier: BSD-3-Clause
"""New classes for estimators that must be told of all classes in their first call.

Classifiers of this package take new labels in any call. Those of scikit-learn want `classes=` at
the start; linear ones among them can grow, a row of zeros per class.
"""

import copy

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

from skpool.base import IncrementalMixin
from skpool.probing import TorchHeadMixin
from skpool.utils import joined_labels

__all__ = ["teach"]

# Arrays of scikit-learn's linear classifiers with one row per class; the averaged ones beside.
_PER_CLASS = (
    "coef_",
    "intercept_",
    "_standard_coef",
    "_standard_intercept",
    "_average_coef",
    "_average_intercept",
)


def teach(
    estimator: BaseEstimator, X: np.ndarray, y: np.ndarray, announced: np.ndarray
) -> BaseEstimator:
    """Return an estimator that learned one more batch, which may bring new classes.

    Parameters
    ----------
    estimator : estimator with partial_fit
        Not changed.
    X : ndarray of shape (n_samples, n_features)
    y : ndarray of shape (n_samples,)
    announced : ndarray of shape (n_classes,)
        Labels to come, for estimators that have to know.

    Returns
    -------
    estimator : estimator
        Not yet fitted where it needs two classes and knows one.
    """
    estimator = copy.deepcopy(estimator)
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    if isinstance(last, (IncrementalMixin, TorchHeadMixin)):
        return estimator.partial_fit(X, y)
    if not hasattr(estimator, "classes_"):
        labels = joined_labels(announced, np.unique(y))
        return estimator if len(labels) < 2 else estimator.partial_fit(X, y, classes=labels)
    known = joined_labels(estimator.classes_, y)
    if len(known) > len(estimator.classes_):
        _grow(estimator, known)
    if hasattr(estimator, "coef_"):
        # Weights of one float type cannot be changed by rows of another.
        X = X.astype(estimator.coef_.dtype, copy=False)
    return estimator.partial_fit(X, y)


def _grow(estimator: BaseEstimator, labels: np.ndarray) -> None:
    """Give a linear classifier rows of zeros for labels that it lacks."""
    if not hasattr(estimator, "coef_"):
        new = np.setdiff1d(labels, estimator.classes_).tolist()
        raise ValueError(
            f"y holds the new label {new[0]!r}, which {type(estimator).__name__} cannot take after "
            "its first call; announce all labels by classes=... in the first partial_fit, or take "
            "a linear classifier or one of skpool."
        )
    n_old = len(estimator.classes_)
    places = np.searchsorted(labels, estimator.classes_)
    for name in _PER_CLASS:
        held = getattr(estimator, name, None)
        if held is None:
            continue
        if n_old == 2:
            # One row that speaks for the second class, and so against the first.
            held = held.reshape(1, -1) if "coef" in name else held.reshape(1)
            held = np.concatenate([-held, held])
        grown = np.zeros((len(labels), *held.shape[1:]), dtype=held.dtype)
        grown[places] = held
        setattr(estimator, name, grown)
    estimator.classes_ = labels
