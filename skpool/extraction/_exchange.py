# SPDX-License-Identifier: BSD-3-Clause
"""The one way to a stored row: read it, or compute it once, or wait for who computes it.

Tokens and pooled vectors go through the same loop, the one inside the other. Rows are claimed in
chunks just before they are decoded, so that several processes share one list of samples and the
device never waits between two chunks; nobody waits for others while holding rows back, since
everything computed is flushed first.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from skpool.extraction._spaces import Rows, Spaces
from skpool.stores import BUSY, HELD

__all__ = ["Chunks", "exchange"]

# Claims are one transaction each: a chunk is large enough to make them rare, and small enough
# that two processes with the same list share it.
_CLAIMED_AT_ONCE = 256

_thread = threading.local()


def _claims_of_this_thread(spaces: Spaces) -> set[bytes]:
    """Keys claimed further up in this thread, by an iteration that waits for its consumer.

    Waiting for them would be waiting for oneself.
    """
    if not hasattr(_thread, "claims"):
        _thread.claims = {}
    return _thread.claims.setdefault((id(spaces.store), spaces.name), set())


class Chunks:
    """Rows handed on in chunks when they are needed.

    Parameters
    ----------
    chunks : iterator of ndarray of int
        Some may be empty: they let the consumer see to what is ready meanwhile.
    n_rows : int
        Rows in all of them, at most.
    """

    def __init__(self, chunks: Iterator[np.ndarray], n_rows: int):
        self._chunks = chunks
        self.n_rows = n_rows

    @classmethod
    def of(cls, rows: np.ndarray) -> "Chunks":
        """Chunks of the size that is claimed at once."""
        starts = range(0, len(rows), _CLAIMED_AT_ONCE)
        return cls((rows[start : start + _CLAIMED_AT_ONCE] for start in starts), len(rows))

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._chunks


class _Exchange:
    """One run of the loop: what waits to be read, what is being computed, what others have."""

    def __init__(self, spaces: Spaces, keys: np.ndarray, read_at_once: int):
        self.spaces = spaces
        self.keys = keys
        self.read_at_once = read_at_once
        self.stored: deque[np.ndarray] = deque()
        self.later: list[np.ndarray] = []
        self._claimed: set[int] = set()
        self._own = _claims_of_this_thread(spaces)

    def split(self, rows: np.ndarray) -> np.ndarray:
        """Set the stored ones among the rows aside, and return the others."""
        held = self.spaces.held(self.keys[rows])
        if held.any():
            self.stored.append(rows[held])
        return rows[~held]

    def claims(self, chunks: Chunks) -> Iterator[np.ndarray]:
        """Yield per chunk the rows to compute, claimed."""
        for chunk in chunks:
            rows = self.split(chunk)
            status = self.spaces.claim(self.keys[rows])
            if (status == HELD).any():
                self.stored.append(rows[status == HELD])
            busy = rows[status == BUSY]
            nested = np.array([key.item() in self._own for key in self.keys[busy]], dtype=bool)
            self.later.append(busy[~nested])
            mine = rows[(status != HELD) & (status != BUSY)]
            self._claimed.update(mine.tolist())
            self._own.update(key.item() for key in self.keys[mine])
            yield np.concatenate([mine, busy[nested]])

    def keep(self, computed: Rows) -> None:
        """Put what was claimed here; the rest belongs to an iteration further up."""
        mine = np.array([row in self._claimed for row in computed.rows.tolist()], dtype=bool)
        chosen = computed if mine.all() else computed.select(mine)
        self.spaces.put(self.keys[chosen.rows], chosen.values, chosen.lengths)
        self._end(chosen.rows)

    def _end(self, rows: np.ndarray) -> None:
        self._claimed.difference_update(rows.tolist())
        self._own.difference_update(key.item() for key in self.keys[rows])

    def read(self) -> Iterator[Rows]:
        """Yield the rows that are stored; those that vanished meanwhile come later."""
        while self.stored:
            rows = self.stored.popleft()
            for start in range(0, len(rows), self.read_at_once):
                chunk = rows[start : start + self.read_at_once]
                found, values, lengths = self.spaces.read(self.keys[chunk])
                self.later.append(chunk[~found])
                if found.any():
                    yield Rows(chunk[found], values, lengths)

    def end(self) -> None:
        """Give back claims on unreadable samples and on what an interruption left undone."""
        left = np.array(sorted(self._claimed), dtype=np.int64)
        self._end(left)
        self.spaces.release(self.keys[left])
        # Also when the consumer stops or is interrupted: what was computed is kept.
        self.spaces.flush()


def exchange(
    spaces: Spaces,
    keys: np.ndarray,
    rows: np.ndarray | Chunks,
    compute: Callable[[Chunks], Iterator[Rows]],
    *,
    read_at_once: int,
) -> Iterator[Rows]:
    """Yield the values of all rows, computing each missing one once.

    Parameters
    ----------
    spaces : Spaces
        Where the rows are kept; a row that one of them lacks is computed.
    keys : ndarray of shape (n,), V16
        Keys of all rows of the source.
    rows : ndarray of int, or Chunks
        The rows wanted, without two of equal key.
    compute : callable
        Yields values of the rows it is given, leaving out what cannot be read; no rows for an
        empty chunk.
    read_at_once : int
        Stored rows that are in memory at a time.

    Yields
    ------
    rows : Rows
        With ndarrays when read, tensors on their device when just computed; some may be empty.
    """
    while isinstance(rows, Chunks) or len(rows):
        loop = _Exchange(spaces, keys, read_at_once)
        if not isinstance(rows, Chunks):
            # The stored ones in one piece; only the others go chunk by chunk.
            rows = Chunks.of(loop.split(rows))
            yield from loop.read()
        try:
            for computed in compute(Chunks(loop.claims(rows), rows.n_rows)):
                if len(computed.rows):
                    loop.keep(computed)
                yield computed
                yield from loop.read()
            yield from loop.read()
        finally:
            loop.end()
        rows = np.concatenate(loop.later) if loop.later else np.empty(0, dtype=np.int64)
        if len(rows) and not spaces.held(keys[rows]).all():
            spaces.wait(keys[rows])
