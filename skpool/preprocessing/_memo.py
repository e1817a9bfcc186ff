# SPDX-License-Identifier: BSD-3-Clause
"""Decompositions remembered across fits, which a grid search asks for again and again.

A search clones its pipeline and fits it to the same fold once for every candidate. Each fit finds
the moments anew, which is a product at full speed; but the eigenvectors of an equal matrix need
not be solved for twice, and an equal matrix is known by its bytes in a hundredth of that time.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import numpy as np

__all__ = ["forget_decompositions", "remembered"]

Arrays = tuple[np.ndarray, ...]

# What is kept in all: the folds of a search at 2048 features, and many more at fewer.
_MAX_BYTES = 192 * 2**20
# Smaller matrices are solved as fast as they are looked up.
_MIN_BYTES = 2**15

_held: OrderedDict[tuple, Arrays] = OrderedDict()
_lock = Lock()


def remembered(solve: Callable[[np.ndarray], Arrays], matrix: np.ndarray) -> Arrays:
    """Return ``solve(matrix)``, from memory where an equal matrix was solved before.

    Parameters
    ----------
    solve : callable
        A function of a module that depends on the matrix alone.
    matrix : ndarray

    Returns
    -------
    arrays : tuple of ndarray
        Read-only, since others may hold them too.
    """
    if matrix.nbytes < _MIN_BYTES:
        return _solved(solve, matrix)
    digest = hashlib.sha256(np.ascontiguousarray(matrix).data).digest()
    key = (solve, matrix.shape, matrix.dtype.str, digest)
    with _lock:
        if key in _held:
            _held.move_to_end(key)
            return _held[key]
    arrays = _solved(solve, matrix)
    with _lock:
        if _size(arrays) <= _MAX_BYTES:
            _held[key] = arrays
        while sum(map(_size, _held.values())) > _MAX_BYTES:
            _held.popitem(last=False)
    return arrays


def _solved(solve: Callable[[np.ndarray], Arrays], matrix: np.ndarray) -> Arrays:
    arrays = solve(matrix)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays)


def forget_decompositions() -> None:
    """Drop all that is remembered."""
    with _lock:
        _held.clear()


def _after_fork_in_child() -> None:
    # Another thread may have held the lock when this process was forked.
    global _lock
    _lock = Lock()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
