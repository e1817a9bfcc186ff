# SPDX-License-Identifier: BSD-3-Clause
"""From keys to places, for millions of keys: sorted arrays and binary search, no dict.

A million keys take 24 MB here and are found by one vectorised search. A key is two 64-bit numbers;
sorting and searching look at the first alone, which numpy does several times faster than for text,
and at the second only where first numbers are equal. New blocks are appended as small sorted runs,
which are merged when they have grown to the size of their neighbour (so every key is sorted a
logarithmic number of times).
"""

from typing import NamedTuple

import numpy as np

__all__ = ["KeyMap"]


class _Run(NamedTuple):
    heads: np.ndarray  # sorted
    tails: np.ndarray  # sorted where heads are equal; no (head, tail) comes twice
    where: np.ndarray
    row: np.ndarray
    shared_heads: bool  # whether different keys have one head
    hides: bool  # whether an older place of some key was left out

    @property
    def n_keys(self) -> int:
        return len(self.heads)

    def take(self, kept: np.ndarray) -> "_Run":
        """Return the entries under a mask."""
        return _Run(*(a[kept] for a in self[:4]), self.shared_heads, self.hides)


def _halves(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return keys (dtype V16) as two arrays of numbers, in any order that is always the same."""
    pairs = keys.view(np.uint64).reshape(-1, 2)
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def _narrow(numbers: np.ndarray) -> np.ndarray:
    """Return whole numbers in four bytes where they fit."""
    fits = not len(numbers) or numbers.max() < 2**31
    return numbers.astype(np.int32 if fits else np.int64, copy=False)


def _order(heads: np.ndarray, tails: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the order by (head, tail, position), and whether some heads are equal."""
    order = np.argsort(heads)
    by_head = heads[order]
    equal = by_head[1:] == by_head[:-1]
    if not equal.any():
        return order, False
    # The unstable sort is the fast one; what it may have mixed up are neighbours of one head.
    tied = np.zeros(len(order), dtype=bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    mixed = order[tied]
    order[tied] = mixed[np.lexsort((mixed, tails[mixed], heads[mixed]))]
    return order, True


def _sorted_run(
    heads: np.ndarray, tails: np.ndarray, where: np.ndarray, row: np.ndarray, hides: bool = False
) -> _Run:
    """Sort keys and keep the last of equal ones."""
    order, shared = _order(heads, tails)
    run = _Run(heads[order], tails[order], where[order], row[order], False, hides)
    if not shared:
        return run
    same_head = run.heads[1:] == run.heads[:-1]
    same_key = same_head & (run.tails[1:] == run.tails[:-1])
    last = np.append(~same_key, True)
    hides = hides or bool(same_key.any())
    return run.take(last)._replace(shared_heads=bool((same_head & ~same_key).any()), hides=hides)


class KeyMap:
    """Places (a number and a row) of 16-byte keys; what was added last wins."""

    def __init__(self):
        self._runs: list[_Run] = []

    def add(self, blocks: list[tuple[int, np.ndarray]]) -> None:
        """Append the keys (dtype V16) of numbered blocks, oldest first."""
        if not blocks:
            return
        heads, tails = _halves(np.concatenate([keys for _, keys in blocks]))
        sizes = [len(keys) for _, keys in blocks]
        where = np.repeat(_narrow(np.array([i for i, _ in blocks], dtype=np.int64)), sizes)
        row = _narrow(np.concatenate([np.arange(n, dtype=np.int64) for n in sizes]))
        self._runs.append(_sorted_run(heads, tails, where, row))
        while len(self._runs) > 1 and self._runs[-2].n_keys <= 2 * self._runs[-1].n_keys:
            new, old = self._runs.pop(), self._runs.pop()
            parts = [np.concatenate(pair) for pair in zip(old[:4], new[:4], strict=True)]
            self._runs.append(_sorted_run(*parts, hides=old.hides or new.hides))

    def remove(self, numbers: np.ndarray) -> bool:
        """Forget all places in some blocks, or return False: older places must be read anew."""
        gone = [np.isin(run.where, numbers) for run in self._runs]
        if any(run.hides and g.any() for run, g in zip(self._runs, gone, strict=True)):
            return False
        self._runs = [
            run.take(~g) if g.any() else run for run, g in zip(self._runs, gone, strict=True)
        ]
        return True

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return block number and row of every key; -1 and -1 where it is absent."""
        where = np.full(len(keys), -1, dtype=np.int64)
        row = np.full(len(keys), -1, dtype=np.int64)
        heads, tails = _halves(keys)
        # Neighbours among sorted keys are found in the same part of the CPU's cache.
        left = np.argsort(heads)
        heads, tails = heads[left], tails[left]
        for run in reversed(self._runs):
            if not run.n_keys or not len(left):
                continue
            at = _search(run, heads, tails)
            hit = (run.heads[at] == heads) & (run.tails[at] == tails)
            where[left[hit]], row[left[hit]] = run.where[at[hit]], run.row[at[hit]]
            left, heads, tails = left[~hit], heads[~hit], tails[~hit]
        return where, row

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Return block number and row of every distinct key, in the order of both."""
        halves = [run[:4] for run in self._runs]
        if not halves:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        run = _sorted_run(*(np.concatenate(parts) for parts in zip(*halves, strict=True)))
        order = np.lexsort((run.row, run.where))
        return run.where[order].astype(np.int64), run.row[order].astype(np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(a.nbytes for run in self._runs for a in run[:4])


def _search(run: _Run, heads: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """Return for every key the one place where it can be in a run that is not empty."""
    begin = np.searchsorted(run.heads, heads)
    if run.shared_heads:
        end = np.searchsorted(run.heads, heads, side="right")
        while (open_ := begin < end).any():
            middle = np.where(open_, (begin + end) // 2, 0)
            below = open_ & (run.tails[middle] < tails)
            begin = np.where(below, middle + 1, begin)
            end = np.where(open_ & ~below, middle, end)
    return np.minimum(begin, run.n_keys - 1)
