# SPDX-License-Identifier: BSD-3-Clause
"""How good a learner was at all times, not only at the ends of stages.

An online learner is asked many times while it learns. Between two ends of stages its accuracy on
old tasks may fall and recover, which the usual matrix never shows: the stability gap.
"""

import numpy as np
from numpy.typing import ArrayLike

from skpool.metrics._checks import check_history

__all__ = ["anytime_accuracy", "min_accuracy", "worst_case_accuracy"]


def anytime_accuracy(accuracy: ArrayLike) -> float:
    """Mean over the evaluations of the mean accuracy over the tasks, or classes, seen by then.

    Parameters
    ----------
    accuracy : array-like of shape (n_evaluations, n_tasks)
        In the order of time; NaN where a task was not seen yet.

    Returns
    -------
    accuracy : float
        Evaluations before anything was seen take no part.

    References
    ----------
    .. [1] Soutif-Cormerais et al., A Comprehensive Empirical Evaluation on Online Continual
       Learning, ICCV Workshops 2023. <https://arxiv.org/abs/2308.10328>

    Examples
    --------
    >>> from skpool.metrics import anytime_accuracy
    >>> anytime_accuracy([[1.0, float("nan")], [0.5, 0.5]])
    0.75
    """
    accuracy = check_history(accuracy)
    accuracy = accuracy[~np.isnan(accuracy).all(axis=1)]
    return float(np.nanmean(accuracy, axis=1).mean()) if len(accuracy) else float("nan")


def min_accuracy(accuracy: ArrayLike, learned: ArrayLike | None = None) -> float:
    """Mean over old tasks of the lowest accuracy ever measured after they were learned.

    Parameters
    ----------
    accuracy : array-like of shape (n_evaluations, n_tasks)
        In the order of time. What was measured before a task was learned, or just then, is not
        read and may be NaN.
    learned : array-like of shape (n_tasks,), default=None
        The evaluation made just after each task was learned; None where the evaluations are one
        per task. A task is old if an evaluation follows.

    Returns
    -------
    accuracy : float
        NaN where no task is old.

    References
    ----------
    .. [1] De Lange et al., Continual evaluation for lifelong learning: Identifying the stability
       gap, ICLR 2023. <https://arxiv.org/abs/2205.13452>

    Examples
    --------
    >>> from skpool.metrics import min_accuracy
    >>> min_accuracy([[1.0, 0.0, 0.0], [0.25, 0.9, 0.0], [0.5, 0.75, 0.9]])
    0.5
    """
    accuracy = check_history(accuracy)
    learned = _check_learned(learned, accuracy.shape)
    lowest = [accuracy[start + 1 :, task].min(initial=np.inf) for task, start in enumerate(learned)]
    lowest = np.array([value for value in lowest if not np.isposinf(value)])
    lowest = lowest[~np.isnan(lowest)]
    return float(lowest.mean()) if len(lowest) else float("nan")


def worst_case_accuracy(accuracy: ArrayLike, learned: ArrayLike | None = None) -> float:
    r"""Accuracy on the newest task, and the lowest ones on the old tasks, in one number.

    Of k tasks, with the accuracy R on the newest after the last evaluation, it is

    .. math:: R / k + (1 - 1/k) \, \mathrm{min\_accuracy}.

    Parameters
    ----------
    accuracy : array-like of shape (n_evaluations, n_tasks)
        In the order of time.
    learned : array-like of shape (n_tasks,), default=None
        As for :func:`min_accuracy`; the newest task is the one learned last.

    Returns
    -------
    accuracy : float

    References
    ----------
    .. [1] De Lange et al., Continual evaluation for lifelong learning: Identifying the stability
       gap, ICLR 2023. <https://arxiv.org/abs/2205.13452>

    Examples
    --------
    >>> from skpool.metrics import worst_case_accuracy
    >>> worst_case_accuracy([[1.0, 0.0], [0.25, 0.75]])
    0.5
    """
    accuracy = check_history(accuracy)
    n_tasks = accuracy.shape[1]
    newest = int(np.argmax(_check_learned(learned, accuracy.shape)))
    now = float(accuracy[-1, newest])
    if n_tasks == 1:
        return now
    return now / n_tasks + (1 - 1 / n_tasks) * min_accuracy(accuracy, learned)


def _check_learned(learned: ArrayLike | None, shape: tuple[int, int]) -> np.ndarray:
    n_evaluations, n_tasks = shape
    if learned is None:
        if n_evaluations != n_tasks:
            raise ValueError(
                f"learned is None, which means one evaluation per task, but accuracy has "
                f"{n_evaluations} rows and {n_tasks} columns; say after which evaluation each "
                "task was learned."
            )
        return np.arange(n_tasks)
    learned = np.asarray(learned)
    if learned.shape != (n_tasks,) or not ((learned >= 0) & (learned < n_evaluations)).all():
        raise ValueError(
            f"learned must hold {n_tasks} row numbers below {n_evaluations}, got "
            f"{learned.tolist()}."
        )
    return learned.astype(np.intp)
