# SPDX-License-Identifier: BSD-3-Clause
"""Samples side by side on the CPU: one thread each, in place of several threads for each product.

Matrices of a few hundred rows are too small for two threads to share; two matrices are not.
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


def side_by_side(work: Callable[[slice], None], n: int) -> None:
    """Call `work` on consecutive parts of n samples, each in a thread with a BLAS of one thread.

    Products and decompositions of a few hundred rows gain little from two threads each, and
    twice as much from two samples at a time.
    """
    n_threads = max(1, min(torch.get_num_threads(), n))
    bounds = [n * i // n_threads for i in range(n_threads + 1)]
    parts = [slice(*pair) for pair in pairwise(bounds)]
    with _ONE_AT_A_TIME, _libraries().limit(limits=1, user_api="blas"):
        if n_threads == 1:
            work(parts[0])
            return
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(work, parts))
