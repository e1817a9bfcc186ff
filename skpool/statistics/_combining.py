# SPDX-License-Identifier: BSD-3-Clause
"""Moments of many machines made one, and two moments compared.

Workers return moments, not rows; this is the last step, where their results meet.
"""

from collections.abc import Sequence

import numpy as np

from skpool.statistics._class_moments import ClassMoments
from skpool.statistics._running_moments import RunningMoments

__all__ = ["largest_difference", "merge_all"]

_NUMBERS = ("counts", "counts_sq", "means", "scatter_values", "third", "fourth")


def merge_all(
    parts: Sequence[ClassMoments] | Sequence[RunningMoments],
) -> ClassMoments | RunningMoments:
    """Merge moments pairwise, in a tree that depends on their number alone.

    Parameters
    ----------
    parts : sequence of ClassMoments or of RunningMoments
        At least one, all of one kind; not changed.

    Returns
    -------
    moments : ClassMoments or RunningMoments
        A new object. The same parts in the same order give the same bits.

    Notes
    -----
    Rounding grows with the logarithm of the number of parts. Cost: O(d^2) per part.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import RunningMoments, merge_all
    >>> rows = np.arange(6.0).reshape(6, 1)
    >>> merge_all([RunningMoments().update(rows[i : i + 2]) for i in (0, 2, 4)]).mean_
    array([2.5])
    """
    parts = list(parts)
    if not parts:
        raise ValueError("parts is empty; give at least one object with moments.")
    merged = [part.copy() for part in parts]
    while len(merged) > 1:
        pairs = [a.merge(b) for a, b in zip(merged[::2], merged[1::2], strict=False)]
        merged = pairs + merged[2 * len(pairs) :]
    return merged[0]


def largest_difference(a: ClassMoments | RunningMoments, b: ClassMoments | RunningMoments) -> float:
    """Return how far two moments are apart, relative to the second.

    Parameters
    ----------
    a, b : ClassMoments, RunningMoments or FoldMoments
        Of one kind; of folds, the largest of the folds' differences counts.

    Returns
    -------
    difference : float
        The largest difference of two counts, means or scatters, each relative to the largest
        number of its kind; infinite where the classes or the widths differ.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import RunningMoments, largest_difference
    >>> one, two = np.array([[1.0], [3.0]]), np.array([[1.0], [4.0]])
    >>> largest_difference(RunningMoments().update(one), RunningMoments().update(two))
    0.5555555555555556
    """
    if hasattr(a, "parts_") and hasattr(b, "parts_"):
        pairs = zip(a.parts_, b.parts_, strict=True)
        return max(largest_difference(*pair) for pair in pairs)
    if type(a) is not type(b) or a.scatter != b.scatter:
        raise TypeError(
            f"Moments of different kinds, {a!r} and {b!r}, cannot be compared; keep the same "
            "scatter."
        )
    first, second = a.to_arrays(), b.to_arrays()
    if not np.array_equal(first["classes"], second["classes"]):
        return np.inf
    compared = [k for k in first if k in _NUMBERS]
    if any(first[k].shape != second[k].shape for k in compared):
        return np.inf
    return max(_relative(first[k], second[k]) for k in compared)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    apart = float(np.abs(a - b).max(initial=0.0))
    return apart / float(np.abs(b).max()) if apart else 0.0
