# SPDX-License-Identifier: BSD-3-Clause
"""What the index of a store knows beside its blocks: helpful, and never needed.

`sums` has the checksums of the pieces of a block (without them the block is checked as a whole),
`uses` the time when a block was last used (without it the block is old), `notes` what a user said
about a space. A store without these tables is read alike, and a version of skpool that knows
nothing of them reads and writes beside.
"""

import json
import time
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from skpool.exceptions import StoreError
from skpool.stores._checksums import PieceSums

if TYPE_CHECKING:
    from skpool.stores._index import BlockInfo, Index

__all__ = ["SCHEMA", "SideTables", "now"]

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS sums (
        block INTEGER PRIMARY KEY,
        step INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        data BLOB NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS uses (block INTEGER PRIMARY KEY, time INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS notes (space TEXT PRIMARY KEY, crc INTEGER NOT NULL, value TEXT)",
)


def now() -> int:
    """Return the time in milliseconds."""
    return time.time_ns() // 10**6


def _crc(*parts: object) -> int:
    *numbers, data = parts
    return zlib.crc32(data, zlib.crc32(json.dumps(numbers).encode()))


class SideTables:
    """The tables in the index of one store; the caller holds a lock around every call.

    Parameters
    ----------
    index : Index
        Which holds them.
    """

    def __init__(self, index: "Index"):
        self._index = index
        found = index.query("SELECT name FROM sqlite_master WHERE type='table'")
        # A directory that cannot be written may hold an index that is older than these tables.
        self._exist = {"sums", "uses", "notes"} <= {name for (name,) in found}

    def add(self, block: int, sums: PieceSums, used: int) -> None:
        """Keep what belongs to a block; in the transaction that names it."""
        self.set_sums(block, sums)
        self.set_uses({block: used})

    def set_sums(self, block: int, sums: PieceSums) -> None:
        """Keep the checksums of a block's pieces."""
        data = sums.values.astype("<u4").tobytes()
        with self._index.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO sums VALUES (?, ?, ?, ?)",
                (block, sums.step, _crc(block, sums.step, data), data),
            )

    def sums(self, info: "BlockInfo") -> PieceSums | None:
        """Return the checksums of a block's pieces, or None where they are absent or damaged."""
        if not self._exist:
            return None
        rows = self._index.query("SELECT step, crc, data FROM sums WHERE block = ?", (info.id,))
        try:
            ((step, crc, data),) = rows
            if crc != _crc(info.id, step, data):
                return None
            sums = PieceSums(step, np.frombuffer(data, dtype="<u4").astype(np.uint32))
            return sums if len(sums.values) == -(-info.size // step) else None
        except (TypeError, ValueError, ZeroDivisionError):
            return None

    def has_sums(self, block: int) -> bool:
        """Tell whether there are checksums of a block's pieces, right or not."""
        return bool(self._index.query("SELECT 1 FROM sums WHERE block = ?", (block,)))

    def set_uses(self, times: Mapping[int, int], *, patient: bool = True) -> None:
        """Remember when blocks were used, unless somebody used them later."""
        with self._index.transaction(patient=patient) as connection:
            connection.executemany(
                "INSERT INTO uses SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM blocks WHERE id = ?1) "
                "ON CONFLICT (block) DO UPDATE SET time = max(time, excluded.time)",
                times.items(),
            )

    def by_use(self) -> list[tuple[int, str, str, int, int, int]]:
        """Return id, space, file, rows, bytes and time of every block, longest unused first."""
        time_ = "coalesce(uses.time, 0)" if self._exist else "0"
        join = "LEFT JOIN uses ON uses.block = blocks.id" if self._exist else ""
        return self._index.query(
            f"SELECT id, space, file, length(keys) / 16, size, {time_} AS used FROM blocks {join} "
            "ORDER BY used, id"
        )

    def note(self, space: str) -> dict[str, Any]:
        """Return what was said about a space, {} if nothing was."""
        if not self._exist:
            return {}
        rows = self._index.query("SELECT crc, value FROM notes WHERE space = ?", (space,))
        if not rows:
            return {}
        crc, value = rows[0]
        if not isinstance(value, str) or crc != _crc(space, value.encode()):
            raise StoreError(
                f"What the index {self._index.path} says about space {space!r} is damaged; call "
                "verify(), which removes it, and give n_prefix_tokens and grid to open()."
            )
        return json.loads(value)

    def set_note(self, space: str, value: Mapping[str, Any]) -> None:
        """Keep what is said about a space in place of what was."""
        text = json.dumps(dict(value))
        with self._index.transaction(durable=True) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO notes VALUES (?, ?, ?)",
                (space, _crc(space, text.encode()), text),
            )

    def drop_damaged_notes(self) -> list[str]:
        """Remove what cannot be trusted; return the spaces."""
        spaces = self._index.query("SELECT space FROM notes") if self._exist else []
        damaged = []
        for (space,) in spaces:
            try:
                self.note(space)
            except StoreError:
                damaged.append(str(space))
        if damaged and not self._index.readonly:
            with self._index.transaction() as connection:
                connection.executemany(
                    "DELETE FROM notes WHERE space = ?", ((space,) for space in damaged)
                )
        return damaged

    def forget_orphans(self) -> None:
        """Remove what belongs to blocks that are gone."""
        with self._index.transaction() as connection:
            for table in ("sums", "uses"):
                connection.execute(
                    f"DELETE FROM {table} WHERE block NOT IN (SELECT id FROM blocks)"
                )
