# SPDX-License-Identifier: BSD-3-Clause
"""Checks of accuracies, which every score of sessions begins with."""

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["check_choice", "check_counts", "check_curve", "check_history", "check_matrix"]


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse an option that is none of the known ones.

    Parameters
    ----------
    name : str
    value : object
    choices : tuple of str
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")


def check_history(accuracy: ArrayLike, *, name: str = "accuracy") -> np.ndarray:
    """Accuracies of evaluations (rows) on tasks or classes (columns), NaN where not seen.

    Parameters
    ----------
    accuracy : array-like of shape (n_evaluations, n_tasks)
    name : str, default="accuracy"

    Returns
    -------
    accuracy : ndarray of float64
    """
    accuracy = np.asarray(accuracy, dtype=np.float64)
    if accuracy.ndim != 2 or 0 in accuracy.shape:
        raise ValueError(
            f"{name} must have a row per evaluation and a column per task, got the shape "
            f"{accuracy.shape}."
        )
    return accuracy


def check_matrix(accuracy_matrix: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The matrix, and which stages have test rows: those whose column is not NaN.

    Parameters
    ----------
    accuracy_matrix : array-like of shape (n_stages, n_stages)

    Returns
    -------
    accuracy_matrix : ndarray of float64
    tested : ndarray of bool of shape (n_stages,)
    """
    R = check_history(accuracy_matrix, name="accuracy_matrix")
    if R.shape[0] != R.shape[1]:
        raise ValueError(
            f"accuracy_matrix must be square, a row and a column per stage, got {R.shape}."
        )
    missing = np.isnan(R)
    tested = ~np.diagonal(missing)
    if (np.tril(missing) != np.tril(np.broadcast_to(~tested, R.shape))).any():
        raise ValueError(
            "accuracy_matrix has a NaN on or below its diagonal in a column that is not NaN "
            "throughout; give the accuracy on every stage after it and after all later ones."
        )
    return R, tested


def check_curve(values: ArrayLike, *, name: str) -> np.ndarray:
    """One value per stage.

    Parameters
    ----------
    values : array-like of shape (n_stages,)
    name : str

    Returns
    -------
    values : ndarray of float64
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must hold one value per stage, got the shape {values.shape}.")
    return values


def check_counts(test_counts: ArrayLike | None, n_stages: int) -> np.ndarray:
    """Weights of the stages: their numbers of test rows, or ones.

    Parameters
    ----------
    test_counts : array-like of shape (n_stages,) or None
    n_stages : int

    Returns
    -------
    weights : ndarray of float64
    """
    if test_counts is None:
        return np.ones(n_stages)
    counts = check_curve(test_counts, name="test_counts")
    if len(counts) != n_stages or not (counts >= 0).all():
        raise ValueError(
            f"test_counts must hold {n_stages} numbers of rows, at least 0, got {counts.tolist()}."
        )
    return counts
