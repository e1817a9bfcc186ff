# SPDX-License-Identifier: BSD-3-Clause
"""Candidates of an exact search by torch: products block by block, of which little is looked at.

Selecting the largest of all products would take as long as computing them. Here a block of
products is read once, for the maxima of groups of 16 columns. The k-th largest maximum so far is a
floor: k products reach it, so nothing below is wanted, and after the first blocks few groups reach
it. The last step, `nearest_of_candidates`, makes the answer exact.
"""

import torch
from sklearn.utils import gen_batches

from skpool.neighbors._kernels import working_bytes

__all__ = ["candidates_torch"]

# Sides of a block of products where memory allows.
_QUERIES, _ROWS = 8192, 4096
# Columns of a group, and groups that share one entry of what the floor is taken from.
_GROUP, _COARSE = 16, 4


def _sides(n_queries: int) -> tuple[int, int]:
    """Return queries and rows of a block, so that it and what is made of it fit the memory."""
    floats = working_bytes() // 16
    queries = max(1, min(_QUERIES, n_queries, floats // _GROUP))
    rows = min(_ROWS, floats // queries) // _GROUP * _GROUP
    return queries, max(_GROUP, rows)


class _Largest:
    """The k largest of the columns of many blocks, for each query, and where they are."""

    def __init__(self, n_queries: int, k: int, like: torch.Tensor):
        self.k = k
        # The largest maxima of groups so far: each is reached by a column of its own.
        self._peaks = like.new_full((n_queries, k), -torch.inf)
        self._found: list[tuple[torch.Tensor, ...]] = []
        self._n_found = 0

    def add(self, scores: torch.Tensor, start: int) -> None:
        """Look at a block (m, width), whose first column is number `start` of all."""
        m, width = scores.shape
        groups = scores.view(m, _GROUP, width // _GROUP)
        maxima = groups.amax(dim=1)
        self._raise_floor(maxima)
        floor = self._peaks[:, -1:]
        query, group = (maxima >= floor).nonzero(as_tuple=True)
        if 4 * len(query) > maxima.numel():
            found = self._largest_of(scores)
        else:
            values = groups[query, :, group]
            pair, member = (values >= floor[query]).nonzero(as_tuple=True)
            column = member * (width // _GROUP) + group[pair]
            found = query[pair], column, values[pair, member]
        self._keep(found[0], found[1] + start, found[2])

    def _raise_floor(self, maxima: torch.Tensor) -> None:
        m, n_groups = maxima.shape
        if n_groups % _COARSE == 0 and n_groups // _COARSE >= self.k:
            # A few times fewer numbers to select from, for a floor that is hardly lower.
            maxima = maxima.view(m, _COARSE, -1).amax(dim=1)
        self._peaks = torch.cat([self._peaks, maxima], dim=1).topk(self.k, dim=1).values

    def _largest_of(self, scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Select where many groups reach the floor: early, with ties, or for a large k."""
        best = scores.topk(min(self.k, scores.shape[1]), dim=1)
        query = torch.arange(len(scores), device=scores.device)[:, None]
        return tuple(
            part.reshape(-1) for part in (query.expand_as(best.indices), best.indices, best.values)
        )

    def _keep(self, *found: torch.Tensor) -> None:
        self._found.append(found)
        self._n_found += len(found[0])
        if self._n_found > 16 * self._peaks.numel():
            values, positions = self.result()
            query, rank = (positions >= 0).nonzero(as_tuple=True)
            self._found = [(query, positions[query, rank], values[query, rank])]
            self._n_found = len(query)

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values, descending, and column numbers, (m, k); -1 where there is none."""
        m = len(self._peaks)
        query, column, value = (torch.cat(parts) for parts in zip(*self._found, strict=True))
        # What is not finite downwards is padding.
        real = (value >= self._peaks[query, -1]) & (value > -torch.inf)
        query, column, value = query[real], column[real], value[real]
        query, order = query.sort(stable=True)
        counts = torch.bincount(query, minlength=m)
        place = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        shape = (m, max(self.k, int(counts.max())))
        values = value.new_full(shape, -torch.inf)
        columns = column.new_full(shape, -1)
        values[query, place], columns[query, place] = value[order], column[order]
        best = values.topk(self.k, dim=1)
        return best.values, columns.gather(1, best.indices)


def candidates_torch(
    q: torch.Tensor, x: torch.Tensor, n_candidates: int, *, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Propose the nearest rows by products in blocks.

    Parameters
    ----------
    q, x : tensor of shape (m, d), (n, d)
        Prepared queries and stored rows.
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
    queries, rows = _sides(len(q))
    # A row is the nearer the larger its product less half its square.
    shift = -0.5 * torch.linalg.vector_norm(x, dim=1).square() if metric == "euclidean" else None
    values = q.new_empty(len(q), n_candidates)
    positions = torch.empty(values.shape, dtype=torch.int64, device=q.device)
    for block in gen_batches(len(q), queries):
        largest = _Largest(len(q[block]), n_candidates, values)
        room = q.new_empty(len(q[block]), rows)
        for part in gen_batches(len(x), rows):
            largest.add(_scores(q[block], x[part], shift, part, room), part.start)
        values[block], positions[block] = largest.result()
    return _distances(values, q, metric=metric), positions


def _scores(
    q: torch.Tensor, x: torch.Tensor, shift: torch.Tensor | None, part: slice, room: torch.Tensor
) -> torch.Tensor:
    """Products in the memory of `room`; minus infinity where the last block is filled up."""
    if len(x) < room.shape[1]:
        width = -(-len(x) // _GROUP) * _GROUP
        room = room.new_empty(len(q), width)
        room[:, len(x) :] = -torch.inf
    if shift is None:
        torch.mm(q, x.T, out=room[:, : len(x)])
    else:
        torch.addmm(shift[part], q, x.T, out=room[:, : len(x)])
    return room


def _distances(scores: torch.Tensor, q: torch.Tensor, *, metric: str) -> torch.Tensor:
    if metric == "dot":
        return scores.neg_()
    if metric == "cosine":
        return scores.neg_().add_(1)
    squares = torch.linalg.vector_norm(q, dim=1, keepdim=True).square()
    return scores.mul_(-2).add_(squares).clamp_(min=0)
