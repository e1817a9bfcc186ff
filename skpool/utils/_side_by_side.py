# SPDX-License-Identifier: BSD-3-Clause
"""Parts of the work side by side on the CPU: one thread each, in place of several for each product.

Matrices of a few hundred rows are too small for two threads to share; two matrices are not. And
what waits for memory in one thread leaves the processor to the other.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch

__all__ = ["side_by_side"]

# Limits on the threads of the BLAS are global: two callers must not set and restore them at once.
_ONE_AT_A_TIME = threading.Lock()


@cache
def _libraries():
    """The threaded libraries of this process; scikit-learn brings threadpoolctl."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _one_thread() -> None:
    """Let torch use the calling thread alone."""
    torch.set_num_threads(1)
    # A thread takes the setting of the process over when it first asks for its own.
    torch.get_num_threads()


def side_by_side(work: Callable[[slice], None], n: int) -> None:
    """Call `work` on consecutive parts of n items, each in a thread of its own.

    In each, the BLAS of numpy and torch have one thread. Products and decompositions of a few
    hundred rows gain little from two threads each, and twice as much from two at a time.

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
    n_threads = max(1, min(torch.get_num_threads(), n))
    bounds = [n * i // n_threads for i in range(n_threads + 1)]
    parts = [slice(*pair) for pair in pairwise(bounds)]
    with _ONE_AT_A_TIME, _libraries().limit(limits=1, user_api="blas"):
        if n_threads == 1:
            work(parts[0])
            return
        try:
            with ThreadPoolExecutor(n_threads, initializer=_one_thread) as pool:
                list(pool.map(work, parts))
        finally:
            # The setting is one of a thread, but new threads of the process start from the last.
            torch.set_num_threads(torch.get_num_threads())
