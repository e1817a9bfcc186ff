# SPDX-License-Identifier: BSD-3-Clause
"""Which engine proposes the candidates of an exact search.

All engines lead to the same neighbours, so only time decides, and nearly all of it goes into
products of matrices: torch is the faster on some processors (Intel's Xeon), faiss on others (AMD's
EPYC). Where a search is long and the choice is free, its first queries are searched by one engine,
the next by the other, and the rest by the faster, which this process remembers.
"""

import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from skpool.neighbors._block_search import candidates_torch
from skpool.neighbors._flat_search import candidates_faiss, faiss_library

__all__ = ["Proposals", "proposals"]

# Multiplications of a search that takes about a second, and queries that try an engine.
_LONG = 2**36
_TRIAL = 512

_PROPOSE = {"torch": candidates_torch, "faiss": candidates_faiss}
# Relative error of a product; None for what torch is set to.
_UNIT = {"torch": None, "faiss": 2.0**-23}
# The faster engine by width of the rows and number of threads.
_FASTER: dict[tuple[int, int], str] = {}


class Proposals(NamedTuple):
    """What an engine proposes for some of the queries, as `nearest_of_candidates` takes it."""

    queries: slice
    values: torch.Tensor
    positions: torch.Tensor
    unit: float | None


def proposals(
    q: torch.Tensor, x: torch.Tensor, n_candidates: int, *, metric: str, backend: str
) -> Iterator[Proposals]:
    """Propose the nearest rows, for a part of the queries at a time.

    Parameters
    ----------
    q, x : tensor of shape (m, d), (n, d)
        Prepared queries and stored rows.
    n_candidates : int
        Rows to propose for each query, at most n.
    metric : {"cosine", "euclidean", "dot"}
        As they were prepared.
    backend : {"auto", "torch", "faiss"}
        The engine; "auto" is torch where a search is short or not on the CPU, and on macOS, where
        torch and faiss each bring their own OpenMP.

    Yields
    ------
    found : Proposals
    """

    def by(engine: str, queries: slice) -> Proposals:
        found = _PROPOSE[engine](q[queries], x, n_candidates, metric=metric)
        return Proposals(queries, *found, _UNIT[engine])

    start = 0
    if backend == "auto":
        known = x.shape[1], torch.get_num_threads()
        if not _is_long(q, x):
            backend = "torch"
        elif known in _FASTER:
            backend = _FASTER[known]
        else:
            faiss_library()
            seconds = {}
            for engine in _PROPOSE:
                begin = time.perf_counter()
                found = by(engine, slice(start, start + _TRIAL))
                seconds[engine] = time.perf_counter() - begin
                yield found
                start += _TRIAL
            backend = _FASTER[known] = min(seconds, key=seconds.__getitem__)
    yield by(backend, slice(start, len(q)))


def _is_long(q: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a search repays a trial."""
    on_host = x.device.type == "cpu" and sys.platform != "darwin"
    return on_host and len(q) >= 4 * _TRIAL and len(q) * x.numel() >= _LONG
