# SPDX-License-Identifier: BSD-3-Clause
"""From class scores to decisions: columns, priors, and the outputs that scorers expect."""

from typing import Any

import numpy as np
from scipy.special import softmax

from skpool.utils import ArrayLike, check_scores

__all__ = ["ClassScoresMixin", "log_priors", "spread_columns"]


class ClassScoresMixin:
    """Mixin that derives decisions and probabilities from one matrix of class scores.

    Notes
    -----
    A subclass writes `class_scores(X)`, of shape (n_samples, n_classes) with the columns in the
    order of `classes_`; a class without samples scores -inf.
    """

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Return class scores in scikit-learn's convention.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes) or (n_samples,)
            One column per class; for two classes the second score minus the first.
            `class_scores` always gives the columns.
        """
        scores = self._decisive_scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the class of the highest score.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Labels; of equal scores the first in `classes_` wins.
        """
        best = self._decisive_scores(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the softmax of the class scores.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Rows sum to 1; columns in the order of `classes_`.
        """
        return softmax(self._decisive_scores(X), axis=1)

    def _decisive_scores(self, X: ArrayLike) -> np.ndarray:
        """Class scores of which every row has a highest one."""
        return check_scores(self.class_scores(X))


def spread_columns(
    columns: np.ndarray, seen: np.ndarray, classes: np.ndarray, *, fill: Any
) -> np.ndarray:
    """Place the columns of the classes that hold samples among those of all classes.

    Parameters
    ----------
    columns : ndarray of shape (n, n_seen)
        One column per label in `seen`.
    seen, classes : ndarray of shape (n_seen,), (n_classes,)
        Sorted labels; `classes` holds all of `seen`.
    fill : float
        Value of the columns of labels that are only announced.

    Returns
    -------
    matrix : ndarray of shape (n, n_classes)
        The columns, and `fill` in those of the other labels.
    """
    if len(seen) == len(classes):
        return columns
    matrix = np.full((len(columns), len(classes)), fill, dtype=columns.dtype)
    matrix[:, np.searchsorted(classes, seen)] = columns
    return matrix


def log_priors(priors: object, counts: np.ndarray) -> np.ndarray:
    """Return the logarithms of the classes' priors.

    Parameters
    ----------
    priors : {"empirical", "uniform"} or array-like of shape (n_classes,)
        In the order of the classes; numbers of at least 0 that sum to 1.
    counts : ndarray of shape (n_classes,)
        Samples of the classes, with 0 for those that are only announced.

    Returns
    -------
    values : ndarray of shape (n_classes,)
        All 0 for "uniform": a constant would only make old scores move when classes arrive.

    Raises
    ------
    ValueError
        The array does not fit the classes, or is no distribution.
    """
    if isinstance(priors, str) and priors == "uniform":
        return np.zeros(len(counts))
    with np.errstate(divide="ignore"):
        if isinstance(priors, str):
            return np.log(counts) - np.log(counts.sum())
        values = np.asarray(priors, dtype=np.float64)
        if values.shape != counts.shape:
            raise ValueError(
                f"priors has shape {values.shape}, and there are {len(counts)} classes; give one "
                "prior per class, or 'empirical'."
            )
        if not ((values >= 0).all() and np.isclose(values.sum(), 1)):
            raise ValueError(
                f"priors={priors!r} is not valid; give numbers of at least 0 that sum to 1."
            )
        return np.log(values)
