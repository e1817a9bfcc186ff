# SPDX-License-Identifier: BSD-3-Clause
"""Distances between queries and chosen rows in float64, on the host, at the speed of the gather.

The second half of an exact search: a few rows per query, gathered and compared directly. numpy
and not torch, because the work comes in pieces that fit the cache, on each of which torch's
threads would wait for one another; here every thread takes whole pieces.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["host_distances", "row_norms"]

# Gathered rows in float64 that are worked on at a time: what stays in the cache of one core.
_PIECE_BYTES = 2**20
# Fewer pieces than this are done before threads have started.
_FEW_PIECES = 8


def _sums(a: np.ndarray, b: np.ndarray, subscripts: str) -> np.ndarray:
    # Not a matrix product: that treats rows at the edge of a block differently, which would tear
    # equal rows apart.
    return np.einsum(subscripts, a, b, optimize=False)


def row_norms(X: np.ndarray) -> np.ndarray:
    """Return the Euclidean norms of rows in float64.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Of any magnitude.

    Returns
    -------
    norms : ndarray of shape (n,)
        Equal rows have equal norms to the last bit.
    """
    norms = np.empty(len(X))
    height = max(1, _PIECE_BYTES // (8 * X.shape[1]))
    for start in range(0, len(X), height):
        rows = slice(start, start + height)
        part = X[rows].astype(np.float64)
        peak = np.ones(len(part))
        if X.dtype == np.float64:
            # Squares of float32 fit into float64; squares of float64 fit into nothing wider.
            peak = np.abs(part).max(axis=1)
            peak[peak == 0] = 1
            part /= peak[:, None]
        norms[rows] = peak * np.sqrt(_sums(part, part, "nd,nd->n"))
    return norms


def _pieces(m: int, k: int, d: int) -> Iterator[tuple[slice, slice]]:
    pairs = max(1, _PIECE_BYTES // (8 * d))
    height = max(1, pairs // k)
    for row in range(0, m, height):
        for column in range(0, k, pairs):
            yield slice(row, row + height), slice(column, column + pairs)


def host_distances(
    Q: np.ndarray,
    X: np.ndarray,
    positions: np.ndarray,
    *,
    metric: str,
    norms: np.ndarray | None = None,
    n_threads: int = 1,
) -> np.ndarray:
    """Return distances between queries and chosen rows, each computed directly in float64.

    Parameters
    ----------
    Q, X : ndarray of shape (m, d), (n, d)
        Queries and stored rows as they were given.
    positions : ndarray of shape (m, k)
        Rows of X for each query.
    metric : {"cosine", "euclidean", "dot"}
        1 - cosine (1 for a zero vector), squared Euclidean distance, or minus the product.
    norms : ndarray of shape (n,), default=None
        `row_norms` of X, for "cosine"; None computes them.
    n_threads : int, default=1
        Threads; the result does not depend on their number.

    Returns
    -------
    distances : ndarray of shape (m, k)
        Equal rows have equal distances to the last bit.
    """
    out = np.empty(positions.shape)
    if not out.size:
        return out
    lengths = np.ones(len(Q))
    if metric == "cosine":
        lengths = row_norms(Q)
        lengths[lengths == 0] = 1
        norms = row_norms(X) if norms is None else norms
    pieces = list(_pieces(*positions.shape, X.shape[1]))

    def work(some: list[tuple[slice, slice]]) -> None:
        _sum_pieces(Q, lengths, X, positions, some, out, squared=metric == "euclidean")

    if n_threads == 1 or len(pieces) < _FEW_PIECES:
        work(pieces)
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            # The list raises what a thread raised.
            list(pool.map(work, [pieces[i::n_threads] for i in range(n_threads)]))
    # Steps of Python for all at once: between them, threads wait for one another.
    if metric == "dot":
        np.negative(out, out=out)
    elif metric == "cosine":
        scale = norms[positions]
        out /= np.where(scale > 0, scale, 1)
        np.maximum(np.subtract(1, out, out=out), 0, out=out)
    return out


def _sum_pieces(
    Q: np.ndarray,
    lengths: np.ndarray,
    X: np.ndarray,
    positions: np.ndarray,
    pieces: list[tuple[slice, slice]],
    out: np.ndarray,
    *,
    squared: bool,
) -> None:
    """Write products of Q / lengths and rows, or squared distances, of some pieces into `out`."""
    # In memory that stays: a new array of this size costs several times what is done in it.
    room = np.empty((max(out[piece].size for piece in pieces), X.shape[1]))
    gathered = np.empty_like(room, dtype=X.dtype)
    for piece in pieces:
        places = positions[piece]
        x, rows = room[: places.size], gathered[: places.size]
        # "clip" writes into the memory given; all places are rows of X.
        X.take(places.ravel(), axis=0, out=rows, mode="clip")
        np.copyto(x, rows)
        x, q = x.reshape(*places.shape, -1), Q[piece[0]] / lengths[piece[0], None]
        if squared:
            x -= q[:, None]
            out[piece] = _sums(x, x, "qkd,qkd->qk")
        else:
            out[piece] = _sums(x, q, "qkd,qd->qk")
