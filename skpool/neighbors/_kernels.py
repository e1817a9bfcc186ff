# SPDX-License-Identifier: BSD-3-Clause
"""Exact nearest neighbours in two steps: fast candidates, then an order that is proved.

A back-end proposes a few more rows than were asked for, by products in float32. Their distances
are then computed directly in float64 and sorted by (distance, position). Rounding of the first
step is bounded, so it is known for each query whether a row that was not proposed could belong to
the answer; only for such queries (ties, near-ties) all rows are looked at again. The answer is
therefore the same for every back-end, block size and number of threads.

Distances in here are squared for "euclidean"; `NeighborIndex` takes the root at the end.
"""

from collections.abc import Iterator

import torch
from sklearn import get_config
from sklearn.utils import gen_batches

from skpool.neighbors._host_distances import host_distances
from skpool.utils import unit_rows

__all__ = [
    "exact_distances",
    "nearest_of_candidates",
    "prepare_rows",
    "rows_within",
    "sorted_pairs",
    "wide_dtype",
    "working_bytes",
]

# Rows proposed beyond k: enough that a near-tie at the border rarely costs a second look.
N_EXTRA = 8
# Of these, so many are compared at once.
_N_FIRST = 1


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def working_bytes() -> int:
    """Return scikit-learn's `working_memory` in bytes."""
    return max(1, int(get_config()["working_memory"] * 2**20))


def prepare_rows(X: torch.Tensor, *, metric: str, center: torch.Tensor | None) -> torch.Tensor:
    """Return the float32 rows that candidates are searched by.

    Parameters
    ----------
    X : tensor of shape (n, d)
        float32 or float64.
    metric : {"cosine", "euclidean", "dot"}
        Cosine rows become unit rows, Euclidean rows are centred (products of rows far from 0
        lose digits), rows for the dot product stay.
    center : tensor of shape (d,) or None
        For "euclidean".

    Returns
    -------
    rows : tensor of shape (n, d)
        float32.
    """
    if metric == "cosine":
        X = unit_rows(X)
    elif metric == "euclidean":
        X = X - center.to(X.dtype)
    return X.to(torch.float32).contiguous()


def approximate_distances(q: torch.Tensor, x: torch.Tensor, *, metric: str) -> torch.Tensor:
    """Return float32 distances (m, n) of prepared rows by one matrix product."""
    product = q @ x.T
    if metric == "cosine":
        return product.neg_().add_(1)
    if metric == "dot":
        return product.neg_()
    # `vector_norm` makes no squared copy of all rows.
    product.mul_(-2).add_(torch.linalg.vector_norm(x, dim=1).square_())
    product.add_(torch.linalg.vector_norm(q, dim=1, keepdim=True).square_())
    return product.clamp_(min=0)


def _pair_blocks(m: int, k: int, d: int) -> Iterator[tuple[slice, slice]]:
    pairs = max(1, working_bytes() // (32 * d))
    for rows in gen_batches(m, max(1, pairs // k)):
        for columns in gen_batches(k, min(k, pairs)):
            yield rows, columns


def exact_distances(
    Q: torch.Tensor,
    X: torch.Tensor,
    positions: torch.Tensor,
    *,
    metric: str,
    norms: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return distances between queries and chosen rows, each computed directly in float64.

    Parameters
    ----------
    Q, X : tensor of shape (m, d), (n, d)
        Queries and stored rows as they were given.
    positions : tensor of shape (m, k)
        Rows of X for each query.
    metric : {"cosine", "euclidean", "dot"}
        1 - cosine (1 for a zero vector), squared Euclidean distance, or minus the product.
    norms : tensor of shape (n,), default=None
        Norms of X by `row_norms`, if they are known; for "cosine" on the host.

    Returns
    -------
    distances : tensor of shape (m, k)
        Equal rows have equal distances to the last bit.
    """
    if X.device.type == "cpu":
        known = None if norms is None else norms.numpy()
        found = host_distances(
            Q.numpy(),
            X.numpy(),
            positions.numpy(),
            metric=metric,
            norms=known,
            n_threads=torch.get_num_threads(),
        )
        return torch.from_numpy(found)
    wide = wide_dtype(X.device)
    out = torch.empty(positions.shape, dtype=wide, device=X.device)
    for rows, columns in _pair_blocks(*positions.shape, X.shape[1]):
        q = Q[rows].to(wide)[:, None, :]
        x = X[positions[rows, columns]].to(wide)
        # Sums over the last axis and not matrix products: those treat rows at the edge of a
        # block differently, which would tear equal rows apart.
        if metric == "euclidean":
            out[rows, columns] = x.sub_(q).square_().sum(dim=2)
        elif metric == "dot":
            out[rows, columns] = -x.mul_(q).sum(dim=2)
        else:
            x, q = unit_rows(x), unit_rows(q)
            out[rows, columns] = (1 - x.mul_(q).sum(dim=2)).clamp_(min=0)
    return out


def sorted_pairs(
    distances: torch.Tensor, positions: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first k by (distance, position).

    Parameters
    ----------
    distances, positions : tensor of shape (..., n)
        In any order.
    k : int
        Pairs to keep.

    Returns
    -------
    distances, positions : tensor of shape (..., k)
        Ascending.
    """
    positions, order = positions.sort(dim=-1)
    distances, by_distance = distances.gather(-1, order).sort(dim=-1, stable=True)
    return distances[..., :k], positions.gather(-1, by_distance)[..., :k]


def _unit_roundoff() -> float:
    """Return a bound on the relative error of one float32 product under torch's settings."""
    try:
        full = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:
        # torch refuses to say once its newer per-back-end settings were used.
        full = False
    return 2.0**-23 if full else 2.0**-7


def rounding_bound(
    q: torch.Tensor, x: torch.Tensor, kth: torch.Tensor, *, metric: str, unit: float
) -> torch.Tensor:
    """Bound the error of the approximate distance of any row at least as near as the k-th.

    Parameters
    ----------
    q, x : tensor of shape (m, d), (n, d)
        Prepared queries and stored rows.
    kth : tensor of shape (m,)
        A distance that is known to be reached by k rows.
    metric : {"cosine", "euclidean", "dot"}
        As they were prepared.
    unit : float
        Relative error of one product.

    Returns
    -------
    bound : tensor of shape (m,)
        Infinite where float32 may have overflowed.
    """
    wide = wide_dtype(x.device)
    d = x.shape[1]
    factor = 2 * (unit + (d + 16) * 2.0**-24)
    if metric == "cosine":
        return torch.full_like(kth, factor)
    norms = torch.linalg.vector_norm(q, dim=1, dtype=wide)
    if metric == "euclidean":
        # A row within the k-th distance of q has at most the norm |q| + that distance.
        scale = (2 * norms + kth.sqrt()).square()
    else:
        scale = norms * torch.linalg.vector_norm(x, dim=1, dtype=wide).max()
    # The second term stands for squares too small for float32.
    return torch.where(scale < 1e36, factor * scale + d * 1e-37, torch.inf)


def nearest_of_candidates(
    Q: torch.Tensor,
    X: torch.Tensor,
    q: torch.Tensor,
    x: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    k: int,
    *,
    metric: str,
    unit: float | None = None,
    norms: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k nearest rows, given what a back-end proposed.

    For most queries the first proposals are proved to hold them by the approximate distance of
    the next one; the others are compared with all proposals, and if need be with all rows.

    Parameters
    ----------
    Q, X : tensor of shape (m, d), (n, d)
        Queries and stored rows as they were given.
    q, x : tensor of shape (m, d), (n, d)
        The same, prepared.
    values : tensor of shape (m, n_candidates)
        Approximate distances of the proposals, ascending; no other row has a smaller one.
    positions : tensor of shape (m, n_candidates)
        At least k proposed rows; -1 where the back-end found none.
    k : int
        Neighbours wanted.
    metric : {"cosine", "euclidean", "dot"}
        As the rows were prepared.
    unit : float, default=None
        Relative error of one product of the back-end; None takes what torch is set to.
    norms : tensor of shape (n,), default=None
        As `exact_distances` takes them.

    Returns
    -------
    distances : tensor of shape (m, k)
        Ascending.
    positions : tensor of shape (m, k)
        Of equal distances the lower position first.
    """
    unit = _unit_roundoff() if unit is None else unit
    distances = torch.empty((len(Q), k), dtype=wide_dtype(X.device), device=X.device)
    found = positions.new_empty((len(Q), k))
    kth = distances.new_empty(len(Q))
    open_ = torch.arange(len(Q), device=X.device)
    n_candidates = positions.shape[1]
    for width in sorted({min(k + _N_FIRST, n_candidates), n_candidates}):
        proposed = positions[open_, :width]
        missing = (proposed < 0).any(dim=1)
        exact = exact_distances(Q[open_], X, proposed.clamp(min=0), metric=metric, norms=norms)
        distances[open_], found[open_] = sorted_pairs(exact, proposed, k)
        if width == len(X) and not bool(missing.any()):
            return distances, found
        kth[open_] = torch.where(missing, torch.inf, distances[open_, -1])
        bound = rounding_bound(q[open_], x, kth[open_], metric=metric, unit=unit)
        border = values[open_, min(width, n_candidates - 1)].to(kth.dtype)
        # A comparison with NaN is false: what cannot be proved is looked at again.
        open_ = open_[~(border > kth[open_] + bound)]
    for rows in open_.split(max(1, working_bytes() // (4 * len(X)))):
        near = approximate_distances(q[rows], x, metric=metric).to(kth.dtype)
        worse = max(unit, _unit_roundoff())
        bound = rounding_bound(q[rows], x, kth[rows], metric=metric, unit=worse)
        possible = ~(near > (kth[rows] + bound)[:, None])
        for i, mask in zip(rows.tolist(), possible, strict=True):
            others = mask.nonzero().T
            exact = exact_distances(Q[i : i + 1], X, others, metric=metric, norms=norms)
            distances[i : i + 1], found[i : i + 1] = sorted_pairs(exact, others, k)
    return distances, found


def rows_within(
    Q: torch.Tensor,
    X: torch.Tensor,
    q: torch.Tensor,
    x: torch.Tensor,
    radius: float,
    *,
    metric: str,
    norms: torch.Tensor | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield for each query all rows within a radius.

    Parameters
    ----------
    Q, X, q, x, norms : tensor
        As `nearest_of_candidates` takes them.
    radius : float
        Largest distance; squared for "euclidean".
    metric : {"cosine", "euclidean", "dot"}
        As the rows were prepared.

    Yields
    ------
    distances, positions : tensor of shape (n_found,)
        By (distance, position).
    """
    kth = torch.full((len(q),), radius, dtype=wide_dtype(x.device), device=x.device)
    limit = kth + rounding_bound(q, x, kth.clamp(min=0), metric=metric, unit=_unit_roundoff())
    for block in gen_batches(len(q), max(1, working_bytes() // (8 * len(x)))):
        near = approximate_distances(q[block], x, metric=metric).to(kth.dtype)
        # A comparison with NaN is false: what cannot be ruled out is computed.
        possible = ~(near > limit[block, None])
        for i, mask in zip(range(block.start, block.stop), possible, strict=True):
            rows = mask.nonzero().T
            exact = exact_distances(Q[i : i + 1], X, rows, metric=metric, norms=norms)
            inside = exact[0] <= radius
            yield sorted_pairs(exact[0][inside], rows[0][inside], int(inside.sum()))
