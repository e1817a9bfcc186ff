# SPDX-License-Identifier: BSD-3-Clause
"""Parts of the work side by side on the CPU: one thread each, in place of several for each product.

Matrices of a few hundred rows are too small for two threads to share; two matrices are not. And
what waits for memory in one thread leaves the processor to the other.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch

__all__ = ["side_by_side"]

# Limits on the threads of the BLAS are global: two callers must not set and restore them at once.
_ONE_AT_A_TIME = threading.Lock()
# Whether a thread works on a part already.
_HERE = threading.local()


def _after_fork_in_child() -> None:
    """Who held the lock stayed with the parent."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


@cache
def _libraries():
    """The threaded libraries of this process; scikit-learn brings threadpoolctl."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _one_thread() -> None:
    """Let torch use the calling thread alone, and let that one be."""
    _HERE.works = True
    torch.set_num_threads(1)
    # A thread takes the setting of the process over when it first asks for its own.
    torch.get_num_threads()


def side_by_side(work: Callable[[slice], None], n: int) -> None:
    """Call `work` on consecutive parts of n items, each in a thread of its own.

    In each, the BLAS of numpy and torch have one thread, and gradients are as the caller has them.
    Products and decompositions of a few hundred rows gain little from two threads each, and twice
    as much from two at a time. A call within a part is done in its thread.

    Parameters
    ----------
    work : callable
        Of tensors and arrays in the memory of the host; it returns nothing, and no two parts may
        write to the same place.
    n : int
        As many parts are made as torch has threads, n at most.

    Examples
    --------
    >>> from skpool.utils import side_by_side
    >>> squares = [0] * 5
    >>> def work(part):
    ...     for i in range(5)[part]:
    ...         squares[i] = i**2
    >>> side_by_side(work, 5)
    >>> squares
    [0, 1, 4, 9, 16]
    """
    if getattr(_HERE, "works", False):
        work(slice(0, n))
        return
    n_threads = max(1, min(torch.get_num_threads(), n))
    bounds = [n * i // n_threads for i in range(n_threads + 1)]
    parts = [slice(*pair) for pair in pairwise(bounds)]
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def as_in_caller(part: slice) -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            work(part)

    with _ONE_AT_A_TIME, _libraries().limit(limits=1, user_api="blas"):
        if n_threads == 1:
            _HERE.works = True
            try:
                work(parts[0])
            finally:
                _HERE.works = False
            return
        try:
            with ThreadPoolExecutor(n_threads, initializer=_one_thread) as pool:
                list(pool.map(as_in_caller, parts))
        finally:
            # The setting is one of a thread, but new threads of the process start from the last.
            torch.set_num_threads(torch.get_num_threads())
