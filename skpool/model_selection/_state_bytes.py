# SPDX-License-Identifier: BSD-3-Clause
"""How much an estimator remembers: the bytes of every array that would be pickled with it."""

from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType

import numpy as np
import torch

__all__ = ["state_bytes"]

_PLAIN = (str, bytes, int, float, complex, type, ModuleType, FunctionType, MethodType)


def state_bytes(estimator: object) -> int:
    """Bytes of the arrays and tensors in an estimator, stored exemplars among them.

    Parameters
    ----------
    estimator : object
        Its state is what would be pickled, so caches that are not are not counted.

    Returns
    -------
    n_bytes : int
        An array that is held twice counts once.
    """
    total, known, waiting = 0, {}, [estimator]
    while waiting:
        value = waiting.pop()
        if value is None or isinstance(value, _PLAIN) or id(value) in known:
            continue
        # Kept alive: the state of an object may be new, and its address would be used again.
        known[id(value)] = value
        if isinstance(value, (np.ndarray, torch.Tensor)):
            total += value.nbytes
        else:
            waiting.extend(_parts(value))
    return total


def _parts(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    else:
        yield value.__getstate__()
