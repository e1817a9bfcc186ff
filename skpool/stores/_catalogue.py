# SPDX-License-Identifier: BSD-3-Clause
"""What is where in a feature store: the rows on disk and the rows that wait to be written.

`Catalogue` is the index as this process has read it, one sorted key map per space, brought up to
date by a single small query; `WriteBuffer` holds the rows of one space that have been put and not
yet written.
"""

import time
from collections.abc import Iterable

import numpy as np

from skpool.stores._index import BlockInfo, Index
from skpool.stores._keymap import KeyMap
from skpool.stores._protocol import RowSet

__all__ = ["Catalogue", "WriteBuffer"]


class Catalogue:
    """The blocks of every space that was asked for; the caller holds a lock around every call.

    Parameters
    ----------
    index : Index
        Where the truth is.
    """

    def __init__(self, index: Index):
        self._index = index
        self._maps: dict[str, KeyMap] = {}
        self._seen: dict[str, int] = {}
        self._drops = -1
        # Blocks found damaged, for a directory from which they cannot be dropped.
        self.excluded: set[int] = set()
        self.blocks: dict[int, BlockInfo] = {}
        self._kinds: dict[str, tuple] = {}
        # Blocks that are no longer served, till the session has closed their files.
        self.gone: set[int] = set()

    def refresh(self, space: str) -> list[tuple[int, str]]:
        """Read what others have added or dropped; return id and file of damaged index rows."""
        newest, drops = self._index.state()
        if drops != self._drops:
            self._drops = drops
            self._remove_dropped()
        seen = self._seen.get(space, 0)
        if space in self._maps and seen >= newest:
            return []
        good, bad = self._index.blocks(space, seen)
        self._seen[space] = newest
        self._add(space, [pair for pair in good if pair[0].id not in self.excluded])
        return [pair for pair in bad if pair[0] not in self.excluded]

    def _remove_dropped(self) -> None:
        """Forget blocks that are gone; where they hid older rows the space is read anew."""
        known = np.array(list(self.blocks), dtype=np.int64)
        alive = np.isin(known, self._index.ids()) & ~np.isin(known, list(self.excluded))
        gone = known[~alive].tolist()
        self.gone.update(gone)
        for space in {self.blocks[i].space for i in gone}:
            if not self._maps[space].remove(gone):
                self.forget(space)
        for i in gone:
            self.blocks.pop(i, None)
        left = {info.space for info in self.blocks.values()}
        # The first block of a space says which others can be read together with it.
        for space in set(self._maps) - left:
            self.forget(space)

    def forget(self, space: str) -> None:
        """Read a space anew when it is asked for."""
        for known in (self._maps, self._seen, self._kinds):
            known.pop(space, None)
        for i in [i for i, info in self.blocks.items() if info.space == space]:
            del self.blocks[i]

    def _add(self, space: str, pairs: list[tuple[BlockInfo, np.ndarray]]) -> None:
        """Take blocks that can be read together with the space's first one."""
        new = []
        for info, keys in pairs:
            self._seen[space] = max(self._seen[space], info.id)
            if info.kind == self._kinds.setdefault(space, info.kind):
                self.blocks[info.id] = info
                new.append((info.id, keys))
        self._maps.setdefault(space, KeyMap()).add(new)

    def find(self, space: str, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return block and row of every key, -1 where there is none, as of the last refresh."""
        return self._maps[space].find(keys)

    def kind(self, space: str) -> tuple | None:
        """Return what the rows of a space share, or None before there are any."""
        return self._kinds.get(space)

    def places(self, space: str) -> tuple[np.ndarray, np.ndarray]:
        """Return block and row of every key that is stored, oldest block first."""
        return self._maps[space].places()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the key maps and the lengths of ragged rows take."""
        lengths = (info.lengths for info in self.blocks.values() if info.lengths is not None)
        return sum(m.nbytes for m in self._maps.values()) + sum(x.nbytes for x in lengths)

    def exclude(self, blocks: Iterable[int]) -> None:
        """Serve some blocks no more, whether or not the index can forget them."""
        self.excluded.update(blocks)
        self._drops = -1


class WriteBuffer:
    """Rows of one space that wait to be written; the caller holds a lock around every call."""

    def __init__(self):
        self.chunks: dict[int, tuple[np.ndarray, RowSet]] = {}
        self.nbytes = 0
        self.since = 0.0
        self._map = KeyMap()

    def append(self, chunk: int, keys: np.ndarray, rows: RowSet) -> None:
        """Take rows under a number that was not used before."""
        if not self.chunks:
            self.since = time.monotonic()
        self.chunks[chunk] = keys, rows
        self.nbytes += rows.data.nbytes
        self._map.add([(chunk, keys)])

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return chunk and row of every key, -1 where there is none."""
        return self._map.find(keys)

    @property
    def age(self) -> float:
        """Seconds since the oldest row came."""
        return time.monotonic() - self.since

    @property
    def kind(self) -> tuple | None:
        """What the rows share, or None while there are none."""
        for _, rows in self.chunks.values():
            return rows.kind
        return None

    def blocks(self) -> list[tuple[list[int], np.ndarray, RowSet]]:
        """Return chunks of one form as one block each, without rows that were put again since."""
        forms: dict[tuple, list[int]] = {}
        for number, (_, rows) in self.chunks.items():
            forms.setdefault(rows.row_shape, []).append(number)
        return [(numbers, *self._block(numbers)) for numbers in forms.values()]

    def _block(self, numbers: list[int]) -> tuple[np.ndarray, RowSet]:
        keys, sets = [], []
        for number in numbers:
            chunk_keys, rows = self.chunks[number]
            where, row = self._map.find(chunk_keys)
            newest = np.flatnonzero((where == number) & (row == np.arange(len(row))))
            complete = len(newest) == len(row)
            keys.append(chunk_keys if complete else chunk_keys[newest])
            sets.append(rows if complete else rows.take(newest))
        return np.concatenate(keys), RowSet.joined(sets)

    def discard(self, numbers: list[int]) -> None:
        """Forget chunks that have been written."""
        for number in numbers:
            _, rows = self.chunks.pop(number)
            self.nbytes -= rows.data.nbytes
        self._map = KeyMap()
        self._map.add([(number, keys) for number, (keys, _) in self.chunks.items()])
