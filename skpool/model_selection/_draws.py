# SPDX-License-Identifier: BSD-3-Clause
"""Draws without replacement for many episodes at once: the arithmetic under `EpisodeSplit`.

Functions on arrays whose first axis counts episodes; loops run over shots or classes, never over
episodes. Absent entries are -1.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from sklearn.utils import gen_batches

from skpool.utils import joined_labels

__all__ = [
    "ClassRows",
    "distinct",
    "draw_between_groups",
    "draw_rows",
    "flattened",
    "rounded_shares",
]

# How many queries of each class, given the rows that are free and which episodes they are of.
Wanted = Callable[[np.ndarray, slice], np.ndarray]
# Entries of the largest array where all rows of the classes of an episode are looked at.
_BLOCK = 2_000_000
# From more draws of a class than this, sorting random keys of all its rows is faster.
_FEW = 128
# Trials to draw supports beside groups that run across classes.
_TRIALS = 100


class ClassRows(NamedTuple):
    """Rows by class: those of class c stand at ``rows[starts[c] : starts[c] + counts[c]]``."""

    labels: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, y: np.ndarray, labels: object = None) -> "ClassRows":
        """Sort the rows of y by class; of all classes, or of those in `labels`."""
        held, numbers, counts = np.unique(y, return_inverse=True, return_counts=True)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        rows = np.argsort(numbers, kind="stable")
        if labels is None:
            return cls(held, rows, starts, counts)
        labels = joined_labels(held[:0], np.asarray(labels))
        missing = np.setdiff1d(labels, held)
        if len(missing):
            raise ValueError(f"classes names {missing.tolist()}, of which y holds no row.")
        kept = np.searchsorted(held, labels)
        return cls(labels, rows, starts[kept], counts[kept])


def distinct(
    rng: np.random.Generator,
    sizes: np.ndarray | int,
    counts: np.ndarray | int,
    n: int,
    *,
    n_first: int = 0,
) -> np.ndarray:
    """Draw `counts[i]` different numbers below `sizes[i]` for every i below n.

    The first `n_first` are a random choice among those drawn. R. Floyd's method: the i-th draw
    goes up to the i-th last number, which stands in for a number that is drawn again, so that
    time does not depend on the sizes.
    """
    sizes, counts = (np.broadcast_to(np.asarray(v, dtype=np.int32), n) for v in (sizes, counts))
    width = int(counts.max(initial=0))
    if width > _FEW:
        return _distinct_by_sorting(rng, sizes, counts)
    chosen = np.full((width, n), -1, dtype=np.int32)
    for i in range(width):
        last = sizes - counts + np.int32(i)
        drawn = _below(rng, last + 1)
        again = (chosen[:i] == drawn).any(axis=0)
        chosen[i] = np.where(i < counts, np.where(again, last, drawn), -1)
    row = np.arange(n)
    for i in range(min(n_first, width)):
        other = i + _below(rng, np.maximum(counts - i, 1))
        chosen[i], chosen[other, row] = chosen[other, row], chosen[i].copy()
    return np.ascontiguousarray(chosen.T, dtype=np.intp)


def _below(rng: np.random.Generator, bounds: np.ndarray) -> np.ndarray:
    # Faster than `integers`, which draws one by one where bounds differ.
    return (rng.random(bounds.shape) * bounds).astype(np.int32)


def _distinct_by_sorting(
    rng: np.random.Generator, sizes: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    width, place = int(counts.max()), np.arange(sizes.max())
    out = np.empty((len(sizes), width), dtype=np.intp)
    for block in _blocks(len(sizes), len(place)):
        order = _shuffled(rng, place < sizes[block, None])[:, :width]
        out[block] = np.where(place[:width] < counts[block, None], order, -1)
    return out


def _shuffled(rng: np.random.Generator, free: np.ndarray) -> np.ndarray:
    """Places (..., width) in random order, those that are free first."""
    keys = rng.random(free.shape, dtype=np.float32)
    keys[~free] = 2.0
    return np.argsort(keys, axis=-1)


def _blocks(n: int, width: int) -> Iterator[slice]:
    yield from gen_batches(n, max(1, _BLOCK // max(width, 1)))


def rounded_shares(shares: np.ndarray, total: int, room: np.ndarray) -> np.ndarray:
    """Round `shares * total` to whole numbers of that sum, at most `room`, by largest remainder.

    What a class has no room for goes to the others in proportion; all have (n, N) shape.
    """
    counts = np.zeros(room.shape, dtype=np.intp)
    target = np.minimum(total, room.sum(axis=1))
    while True:
        left = target - counts.sum(axis=1)
        if not left.any():
            return counts
        weights = np.where(counts < room, np.maximum(shares, 1e-300), 0.0)
        weights /= weights.sum(axis=1, keepdims=True).clip(min=1e-300)
        exact = weights * left[:, None]
        more = np.floor(exact).astype(np.intp)
        ranks = np.argsort(np.argsort(more - exact, axis=1, kind="stable"), axis=1)
        more += ranks < (left - more.sum(axis=1))[:, None]
        counts = np.minimum(counts + more, room)


def _split(drawn: np.ndarray, shots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Part (n, N, width) draws after as many as there are shots."""
    if shots.min() == shots.max():
        return drawn[..., : shots.max()], drawn[..., shots.max() :]
    place = np.arange(drawn.shape[-1])
    support = np.where(place < shots[..., None], drawn, -1)[..., : shots.max()]
    query = np.where(place >= shots[..., None], drawn, -1)[..., shots.min() :]
    return support, query


def _rows_at(rows: ClassRows, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows (n, N, width) at places within the classes (n, N)."""
    found = rows.rows[rows.starts[numbers][..., None] + np.maximum(places, 0)]
    return found if places.min() >= 0 else np.where(places >= 0, found, -1)


def draw_rows(
    rng: np.random.Generator,
    rows: ClassRows,
    numbers: np.ndarray,
    shots: np.ndarray,
    wanted: Wanted,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw supports and queries (n, N, width) of the classes `numbers` (n, N)."""
    sizes = rows.counts[numbers]
    counts = shots + wanted(sizes - shots, slice(0, len(numbers)))
    drawn = distinct(rng, sizes.ravel(), counts.ravel(), sizes.size, n_first=shots.max())
    drawn = drawn.reshape(*sizes.shape, -1)
    return _split(_rows_at(rows, numbers, drawn), shots)


def draw_between_groups(
    rng: np.random.Generator,
    rows: ClassRows,
    numbers: np.ndarray,
    shots: np.ndarray,
    groups: np.ndarray,
    wanted: Wanted,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw supports and queries that share no group within an episode.

    One group of every class, the first in an order common to the classes of the episode, is kept
    for queries; supports come from the others.
    """
    alike = _rows_alike(rows, groups)
    _check_groups(rows, alike, int(shots.max()))
    width, n_groups = int(rows.counts.max()), int(groups.max()) + 1
    parts = []
    for block in _blocks(len(numbers), numbers.shape[1] * width + n_groups):
        drawn, n = numbers[block], shots[block]
        place = np.broadcast_to(np.arange(width), (*drawn.shape, width))
        at = _rows_at(rows, drawn, np.where(place < rows.counts[drawn][..., None], place, -1))
        # A group can be kept for queries if enough other rows of its class remain.
        can_wait = (at >= 0) & (alike[at] <= (rows.counts[drawn] - n)[..., None])
        free = _not_waiting(rng, at >= 0, groups[at], can_wait, n, n_groups)
        support = _first(at, _shuffled(rng, free), n)
        used = _marked(groups[support], support >= 0, n_groups)
        free = (at >= 0) & ~_of_marked(used, groups[at])
        query = _first(at, _shuffled(rng, free), wanted(free.sum(axis=-1), block))
        parts.append((support, query))
    return tuple(_stacked(part) for part in zip(*parts, strict=True))


def _rows_alike(rows: ClassRows, groups: np.ndarray) -> np.ndarray:
    """How many rows share the class and the group of each row; 0 for rows of other classes."""
    alike = np.zeros(len(groups), dtype=np.intp)
    for start, count in zip(rows.starts, rows.counts, strict=True):
        members = rows.rows[start : start + count]
        _, which, counts = np.unique(groups[members], return_inverse=True, return_counts=True)
        alike[members] = counts[which]
    return alike


def _check_groups(rows: ClassRows, alike: np.ndarray, shots: int) -> None:
    """Refuse classes in which no group can be kept for queries."""
    fewest = [
        alike[rows.rows[s : s + n]].min() for s, n in zip(rows.starts, rows.counts, strict=True)
    ]
    scarce = rows.labels[rows.counts - np.array(fewest) < shots]
    if len(scarce):
        raise ValueError(
            f"Classes {scarce.tolist()} do not hold {shots} rows beside those of a group that is "
            "left for queries; leave them out of `classes`, lower the shots or set "
            "groups_disjoint=False."
        )


def _marked(groups: np.ndarray, which: np.ndarray, n_groups: int) -> np.ndarray:
    """Which groups (n, n_groups) are among those of the entries (n, N, width) in question."""
    marked = np.zeros((len(groups), n_groups), dtype=bool)
    episode = np.broadcast_to(np.arange(len(groups))[:, None, None], groups.shape)
    marked[episode[which], groups[which]] = True
    return marked


def _of_marked(marked: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return marked[np.arange(len(groups))[:, None, None], groups]


def _not_waiting(
    rng: np.random.Generator,
    real: np.ndarray,
    groups: np.ndarray,
    can_wait: np.ndarray,
    shots: np.ndarray,
    n_groups: int,
) -> np.ndarray:
    """Keep a group of every class for queries; return which entries supports may come from."""
    free, todo = np.zeros_like(real), np.arange(len(real))
    for _ in range(_TRIALS):
        of = groups[todo]
        keys = rng.random((len(todo), n_groups))[np.arange(len(todo))[:, None, None], of]
        first = np.where(can_wait[todo], keys, 2.0).argmin(axis=-1)[..., None]
        waiting = _marked(
            np.take_along_axis(of, first, axis=-1), np.full(first.shape, True), n_groups
        )
        free[todo] = real[todo] & ~_of_marked(waiting, of)
        todo = todo[(free[todo].sum(axis=-1) < shots[todo]).any(axis=-1)]
        if len(todo) == 0:
            return free
    raise ValueError(
        "Groups run across classes so that supports and queries of some episodes could not be "
        f"parted in {_TRIALS} trials; lower n_way or the shots, or set groups_disjoint=False."
    )


def _first(at: np.ndarray, order: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The first `counts` (n, N) rows in an order of the places, and -1 after them."""
    taken = np.take_along_axis(at, order[..., : counts.max(initial=0)], axis=-1)
    return np.where(np.arange(taken.shape[-1]) < counts[..., None], taken, -1)


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    """Join blocks (n, N, width) of different widths."""
    width = max(part.shape[-1] for part in parts)
    pad = [((0, 0), (0, 0), (0, width - part.shape[-1])) for part in parts]
    return np.concatenate(
        [np.pad(x, p, constant_values=-1) for x, p in zip(parts, pad, strict=True)]
    )


def flattened(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (n, width) of draws (n, N, width), padding last, and the numbers of classes."""
    n, n_way, width = drawn.shape
    labels = np.broadcast_to(np.arange(n_way)[:, None], (n_way, width))
    real = drawn >= 0
    if real.all():
        return drawn.reshape(n, -1), np.tile(labels.reshape(1, -1), (n, 1))
    sizes = real.sum(axis=(1, 2))
    held = np.arange(sizes.max()) < sizes[:, None]
    rows, numbers = np.full(held.shape, -1), np.full(held.shape, -1)
    rows[held], numbers[held] = drawn[real], np.broadcast_to(labels, drawn.shape)[real]
    return rows, numbers
