# SPDX-License-Identifier: BSD-3-Clause
"""Base classes against later ones: the scores of few-shot class-incremental learning.

A learner that knows sixty classes well and has seen five examples of each new one can score well
and never predict a new class; one number over all rows hides it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["base_novel_accuracy", "confusion_base_novel", "harmonic_mean_accuracy"]


class BaseNovelAccuracy(NamedTuple):
    """Accuracy on rows of base classes, and on rows of all other classes."""

    base: float
    novel: float


class BaseNovelConfusion(NamedTuple):
    """Share of novel rows predicted as a base class, and of base rows as a novel one."""

    novel_as_base: float
    base_as_novel: float


def base_novel_accuracy(
    y_true: ArrayLike, y_pred: ArrayLike, *, base_classes: ArrayLike
) -> BaseNovelAccuracy:
    """Accuracy on base classes and on novel ones, both predicted among all.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels.
    y_pred : array-like of shape (n_samples,)
        Predictions.
    base_classes : array-like of shape (n_base,)
        Labels of the first stage.

    Returns
    -------
    base, novel : float
        NaN where there is no row of the kind.

    Examples
    --------
    >>> from skpool.metrics import base_novel_accuracy
    >>> base_novel_accuracy([0, 0, 1, 1], [0, 0, 0, 1], base_classes=[0])
    BaseNovelAccuracy(base=1.0, novel=0.5)
    """
    y_true, y_pred, is_base, _ = _check(y_true, y_pred, base_classes)
    right = y_true == y_pred
    return BaseNovelAccuracy(_share(right[is_base]), _share(right[~is_base]))


def harmonic_mean_accuracy(base_accuracy: ArrayLike, novel_accuracy: ArrayLike):
    """Harmonic mean of the accuracies on base and on novel classes.

    Parameters
    ----------
    base_accuracy : float or array-like of shape (n_stages,)
        Accuracy on base classes.
    novel_accuracy : float or array-like of shape (n_stages,)
        Accuracy on novel ones; NaN after the first stage.

    Returns
    -------
    accuracy : float or ndarray of shape (n_stages,)
        0 where both are 0, NaN where one is NaN.

    Examples
    --------
    >>> from skpool.metrics import harmonic_mean_accuracy
    >>> harmonic_mean_accuracy(0.75, 0.25)
    0.375
    """
    base = np.asarray(base_accuracy, dtype=np.float64)
    novel = np.asarray(novel_accuracy, dtype=np.float64)
    total = np.asarray(base + novel)
    mean = np.divide(2 * base * novel, total, out=np.zeros_like(total), where=total != 0)
    return float(mean) if mean.ndim == 0 else mean


def confusion_base_novel(
    y_true: ArrayLike, y_pred: ArrayLike, *, base_classes: ArrayLike
) -> BaseNovelConfusion:
    """How often novel rows are taken for base classes, and the reverse.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels.
    y_pred : array-like of shape (n_samples,)
        Predictions.
    base_classes : array-like of shape (n_base,)
        Labels of the first stage.

    Returns
    -------
    novel_as_base, base_as_novel : float
        Shares of the novel and of the base rows; NaN where there is no row of the kind.

    Examples
    --------
    >>> from skpool.metrics import confusion_base_novel
    >>> confusion_base_novel([0, 0, 1, 1], [0, 0, 0, 1], base_classes=[0])
    BaseNovelConfusion(novel_as_base=0.5, base_as_novel=0.0)
    """
    _, _, is_base, as_base = _check(y_true, y_pred, base_classes)
    return BaseNovelConfusion(_share(as_base[~is_base]), _share(~as_base[is_base]))


def _check(
    y_true: ArrayLike, y_pred: ArrayLike, base_classes: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    if y_true.shape != y_pred.shape or y_true.ndim != 1:
        raise ValueError(
            f"y_true and y_pred must be two lists of one length, got the shapes {y_true.shape} "
            f"and {y_pred.shape}."
        )
    base_classes = np.asarray(base_classes)
    return y_true, y_pred, np.isin(y_true, base_classes), np.isin(y_pred, base_classes)


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
