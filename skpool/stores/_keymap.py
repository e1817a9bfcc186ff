# SPDX-License-Identifier: BSD-3-Clause
"""From keys to places, for millions of keys: sorted arrays and binary search, no dict.

A million keys take 32 MB here and are found by one vectorised search. New blocks are appended as
small sorted runs, which are merged when they have grown to the size of their neighbour (so every
key is sorted a logarithmic number of times).
"""

from typing import NamedTuple

import numpy as np

__all__ = ["KeyMap"]


class _Run(NamedTuple):
    keys: np.ndarray  # sorted, without duplicates
    where: np.ndarray
    row: np.ndarray


def _sorted_run(keys: np.ndarray, where: np.ndarray, row: np.ndarray) -> _Run:
    """Sort keys and keep the last of equal ones."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    last = np.ones(len(keys), dtype=bool)
    last[:-1] = keys[1:] != keys[:-1]
    kept = order[last]
    return _Run(keys[last], where[kept], row[kept])


class KeyMap:
    """Places (a number and a row) of 16-byte keys; what was added last wins."""

    def __init__(self):
        self._runs: list[_Run] = []

    def add(self, blocks: list[tuple[int, np.ndarray]]) -> None:
        """Append the keys (dtype V16) of numbered blocks, oldest first."""
        if not blocks:
            return
        # As fixed-width bytes numpy sorts and searches them; all have 16, so the padding rule
        # of that type (trailing zeros do not count) cannot make two different keys equal.
        keys = np.concatenate([k.view("S16") for _, k in blocks])
        sizes = [len(k) for _, k in blocks]
        where = np.repeat(np.array([i for i, _ in blocks], dtype=np.int64), sizes)
        row = np.concatenate([np.arange(n, dtype=np.int64) for n in sizes])
        self._runs.append(_sorted_run(keys, where, row))
        while len(self._runs) > 1 and len(self._runs[-2].keys) <= 2 * len(self._runs[-1].keys):
            new, old = self._runs.pop(), self._runs.pop()
            pairs = zip(old, new, strict=True)
            self._runs.append(_sorted_run(*(np.concatenate(pair) for pair in pairs)))

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return block number and row of every key; -1 and -1 where it is absent."""
        where = np.full(len(keys), -1, dtype=np.int64)
        row = np.full(len(keys), -1, dtype=np.int64)
        wanted = keys.view("S16")
        for run in reversed(self._runs):
            if not len(run.keys):
                continue
            at = np.minimum(np.searchsorted(run.keys, wanted), len(run.keys) - 1)
            hit = (run.keys[at] == wanted) & (where == -1)
            where[hit], row[hit] = run.where[at[hit]], run.row[at[hit]]
        return where, row

    def __len__(self) -> int:
        """Return the number of keys, counting those that two runs share twice."""
        return sum(len(run.keys) for run in self._runs)
