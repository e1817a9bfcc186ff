# SPDX-License-Identifier: BSD-3-Clause
"""Candidates of an exact search by faiss, in larger blocks than its own; where faiss is imported.

faiss multiplies 4,096 queries by 1,024 rows at a time. Each block is packed anew for the product,
so larger blocks take about a fifth less time; how large is a pair of numbers of the whole process,
which are changed for the call and put back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from types import ModuleType
from typing import Any

import torch

from skpool.neighbors._kernels import working_bytes

__all__ = ["candidates_faiss", "faiss_library"]

# Sides of a block of products where memory allows, and where it does not.
_QUERIES, _ROWS = 8192, 4096
_SMALLEST = 256
_LOCK = Lock()


def faiss_library() -> ModuleType:
    """Import faiss, late: on macOS it and torch each bring their own OpenMP.

    Returns
    -------
    faiss : module
    """
    import faiss

    return faiss


@contextmanager
def _large_blocks(sizes: Any, n_queries: int) -> Iterator[None]:
    """Set the block sizes of faiss so that one block of products fits `working_memory`."""
    with _LOCK:
        before = sizes.distance_compute_blas_query_bs, sizes.distance_compute_blas_database_bs
        floats = working_bytes() // 4
        queries = min(_QUERIES, max(_SMALLEST, floats // _SMALLEST))
        rows = min(_ROWS, max(_SMALLEST, floats // min(queries, n_queries)))
        sizes.distance_compute_blas_query_bs = queries
        sizes.distance_compute_blas_database_bs = rows
        try:
            yield
        finally:
            sizes.distance_compute_blas_query_bs = before[0]
            sizes.distance_compute_blas_database_bs = before[1]


def candidates_faiss(
    q: torch.Tensor, x: torch.Tensor, n_candidates: int, *, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Propose the nearest rows as `candidates_torch` does.

    Parameters
    ----------
    q, x : tensor of shape (m, d), (n, d)
        Prepared queries and stored rows, on the host.
    n_candidates : int
        Rows to propose for each query, at most n.
    metric : {"cosine", "euclidean", "dot"}
        As they were prepared.

    Returns
    -------
    values : tensor of shape (m, n_candidates)
        Approximate distances, ascending; no other row has one smaller than the last.
    positions : tensor of shape (m, n_candidates)
        The rows; -1 where there is none.
    """
    faiss = faiss_library()
    kind = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    with _large_blocks(faiss.cvar, len(q)):
        values, positions = faiss.knn(q.numpy(), x.numpy(), n_candidates, metric=kind)
    values = torch.from_numpy(values)
    if metric != "euclidean":
        values = (1 if metric == "cosine" else 0) - values
    return values, torch.from_numpy(positions)
