# SPDX-License-Identifier: BSD-3-Clause
"""Which rows of a stream stay in a buffer: pure functions of labels and random numbers.

A policy sees the class numbers of the rows held and of the new ones, and returns the `sources` of
the rows that are held afterwards: numbers below `len(held)` are old rows, the others new ones. No
row is copied here.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["POLICIES", "Stream"]


class Stream(NamedTuple):
    """What a policy knows of the stream; never changed once built."""

    capacity: int
    n_seen: int  # rows before this call
    counts: np.ndarray  # (C,), rows of the classes before this call
    full: np.ndarray  # (C,), bool: classes that have been the largest in a full buffer
    bonus: float


Kept = tuple[np.ndarray, np.ndarray]


def keep_last(held: np.ndarray, new: np.ndarray, stream: Stream, rng: np.random.Generator) -> Kept:
    """Return the last rows."""
    return np.arange(len(held) + len(new))[-stream.capacity :], stream.full


def keep_uniform(
    held: np.ndarray, new: np.ndarray, stream: Stream, rng: np.random.Generator
) -> Kept:
    """Return a uniform sample of all rows so far, each with the same chance (reservoir).

    A row that is not drawn enters with the chance `stream.bonus` if its class holds less than an
    equal share, in place of a random row of the largest class.
    """
    room = max(0, min(stream.capacity - len(held), len(new)))
    sources = np.arange(len(held) + room)
    times = stream.n_seen + np.arange(room, len(new))
    slots = rng.integers(0, times + 1)
    hit = slots < stream.capacity
    if stream.bonus == 0:
        # Of several rows for one slot the last one stays.
        sources[slots[hit]] = len(held) + room + np.flatnonzero(hit)
        return sources, stream.full
    labels = np.concatenate([held, new])
    lucky = rng.random(len(slots)) < stream.bonus
    share = stream.capacity / len(stream.counts)
    for number, slot in enumerate(slots):
        row = len(held) + room + number
        if not hit[number]:
            if not lucky[number] or (labels[sources] == labels[row]).sum() >= share:
                continue
            slot = _of_largest(labels[sources], len(stream.counts), rng)
        sources[slot] = row
    return sources, stream.full


def keep_balanced(
    held: np.ndarray, new: np.ndarray, stream: Stream, rng: np.random.Generator
) -> Kept:
    """Return classes as equal as they can be, each a uniform sample of its rows.

    A class is full once it has been the largest while the buffer was full. A row of a class that
    is not replaces a random row of the largest class; one of a class that is enters with the
    chance of a reservoir of its own.
    """
    labels, sources = np.concatenate([held, new]), np.arange(len(held)).tolist()
    n_classes, full, seen = len(stream.counts), stream.full.copy(), stream.counts.copy()
    sizes = np.bincount(held, minlength=n_classes)
    for row, label in enumerate(new.tolist(), start=len(held)):
        seen[label] += 1
        if len(sources) < stream.capacity:
            sources.append(row)
            sizes[label] += 1
            continue
        full |= sizes == sizes.max()
        if not full[label]:
            slot = _of_largest(labels[sources], n_classes, rng)
        elif rng.random() < sizes[label] / seen[label]:
            slot = int(rng.choice(np.flatnonzero(labels[sources] == label)))
        else:
            continue
        sizes[labels[sources[slot]]] -= 1
        sizes[label] += 1
        sources[slot] = row
    return np.array(sources, dtype=np.intp), full


def _of_largest(labels: np.ndarray, n_classes: int, rng: np.random.Generator) -> int:
    """A random position of a row of a largest class."""
    sizes = np.bincount(labels, minlength=n_classes)
    return int(rng.choice(np.flatnonzero(sizes[labels] == sizes.max())))


POLICIES: dict[str, Callable[..., Kept]] = {
    "class_balanced": keep_balanced,
    "fifo": keep_last,
    "reservoir": keep_uniform,
}
