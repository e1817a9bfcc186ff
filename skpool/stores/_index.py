# SPDX-License-Identifier: BSD-3-Clause
"""The index of a feature store: which block holds which keys, and who computes what.

One SQLite file in WAL mode. A block and all of its keys are one row, so they become visible in
one transaction, which is synced to the disk (`synchronous=FULL`) before `add` returns; the block
file itself was synced before. Claims need not survive a power cut and are written without a sync
(`NORMAL`, which in WAL mode can lose the last transactions but never damages the file).

SQLite does not checksum its pages, so every row carries a checksum of its own. What a store can do
without lies in tables of its own (`_side_tables.py`), so the format number stays.
"""

import json
import math
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from skpool.exceptions import StoreError
from skpool.stores._protocol import KEY_BYTES, kind_of, lengths_of
from skpool.stores._side_tables import SCHEMA as SIDE_SCHEMA

__all__ = ["FORMAT", "BlockInfo", "Index"]

FORMAT = 1

_LOCK_SECONDS = 60.0
# SQLite takes 32,766 parameters in one statement.
_PARAMETERS = 10_000

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    # The BLOBs come last, so that the short columns are read without paging through them.
    """CREATE TABLE IF NOT EXISTS blocks (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        space TEXT NOT NULL,
        file TEXT NOT NULL,
        dtype TEXT NOT NULL,
        shape TEXT NOT NULL,
        size INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        row_crc INTEGER NOT NULL,
        keys BLOB NOT NULL,
        lengths BLOB)""",
    "CREATE INDEX IF NOT EXISTS blocks_of_space ON blocks (space)",
    """CREATE TABLE IF NOT EXISTS claims (
        space TEXT NOT NULL,
        key BLOB NOT NULL,
        owner TEXT NOT NULL,
        PRIMARY KEY (space, key)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS claims_of_owner ON claims (owner)",
    f"INSERT OR IGNORE INTO meta VALUES ('format', {FORMAT})",
    # Counts removals of blocks: who has seen another count must read the index anew.
    "INSERT OR IGNORE INTO meta VALUES ('drops', 0)",
    *SIDE_SCHEMA,
)

_COLUMNS = "id, space, file, dtype, shape, size, crc, row_crc, keys, lengths"


@dataclass(frozen=True)
class BlockInfo:
    """One block: its file, how to check it, and what it must contain."""

    id: int
    space: str
    file: str
    dtype: np.dtype
    shape: tuple[int, ...]
    size: int
    crc: int
    n_rows: int
    lengths: np.ndarray | None

    @property
    def row_shape(self) -> tuple[int | None, ...]:
        """Shape of one row; the first axis of ragged rows is None."""
        return self.shape[1:] if self.lengths is None else (None, *self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, or of an entry of a ragged one."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    def byte_ranges(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where some rows begin and end in the file, after the header's own range."""
        header = self.size - self.shape[0] * self.row_bytes
        ragged = self.lengths is not None
        first = self._starts[rows] if ragged else rows
        last = first + (self.lengths[rows] if ragged else 1)
        begins, ends = (header + self.row_bytes * x for x in (first, last))
        return np.append(begins, 0), np.append(ends, header)

    @property
    def kind(self) -> tuple:
        """What the rows of a space share (see `kind_of`)."""
        return kind_of(self.dtype, self.row_shape)

    def row_lengths(self, rows: np.ndarray) -> np.ndarray:
        """Entries of some rows, ragged or not."""
        return lengths_of(self.lengths, self.row_shape, rows)


def _row_crc(columns: Iterable[object], keys: bytes, lengths: bytes | None) -> int:
    crc = zlib.crc32(json.dumps([*columns, lengths is None]).encode())
    return zlib.crc32(lengths or b"", zlib.crc32(keys, crc))


def _parsed(row: tuple) -> tuple[BlockInfo, np.ndarray] | None:
    """Return a row's block and keys, or None if the row is damaged."""
    block, space, file, dtype, shape, size, crc, row_crc, keys, lengths = row
    try:
        if row_crc != _row_crc((space, file, dtype, shape, size, crc), keys, lengths):
            return None
        shape = tuple(json.loads(shape))
        lengths = None if lengths is None else np.frombuffer(lengths, dtype="<i8").astype(np.int64)
        n_rows = len(keys) // KEY_BYTES
        entries = n_rows if lengths is None else int(lengths.sum())
        if entries != shape[0] or (lengths is not None and len(lengths) != n_rows):
            return None
        info = BlockInfo(block, space, file, np.dtype(dtype), shape, size, crc, n_rows, lengths)
        if info.dtype.kind not in "biuf" or size <= shape[0] * info.row_bytes or crc >> 32:
            return None
        return info, np.frombuffer(keys, dtype=f"V{KEY_BYTES}")
    except (TypeError, ValueError, LookupError):
        # A flipped byte can change the type of a column too.
        return None


class Index:
    """The SQLite file of one store, for one process; the caller holds a lock around every call.

    Parameters
    ----------
    path : Path
        The file.
    readonly : bool
        Whether the directory cannot be written.
    """

    def __init__(self, path: Path, *, readonly: bool):
        self.path = path
        self.readonly = readonly
        self._connection: sqlite3.Connection | None = None
        with self._named_errors():
            self._open()

    def _open(self) -> sqlite3.Connection:
        """Return the connection, opening it where a fork or `close` has closed it."""
        if self._connection is None:
            fresh = not self.path.exists() or self.path.stat().st_size == 0
            self._connection = self._connect_readonly() if self.readonly else self._connect("rwc")
            try:
                self._prepare(fresh)
            except BaseException:
                self.close()
                raise
        return self._connection

    def _connect(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=_LOCK_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        # A planted view or trigger may call nothing.
        connection.execute("PRAGMA trusted_schema=OFF")
        # Damaged text must reach the checksum rather than raise.
        connection.text_factory = lambda text: text.decode(errors="replace")
        return connection

    def _connect_readonly(self) -> sqlite3.Connection:
        connection = self._connect("ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.OperationalError:
            # Without a writable directory SQLite cannot make its -shm file; where there is none
            # to share, nobody writes, and the file can be read as it is.
            connection.close()
            connection = self._connect("ro&immutable=1")
        return connection

    def _prepare(self, fresh: bool) -> None:
        if not fresh or self.readonly:
            self._check_format()
        if self.readonly:
            return
        self._set_wal()
        with self.transaction():
            for statement in _SCHEMA:
                self._connection.execute(statement)
        self._check_format()

    def _set_wal(self) -> None:
        """Switch to WAL; while another process does the same, SQLite refuses without waiting."""
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _check_format(self) -> None:
        run = self._connection.execute
        tables = {name for (name,) in run("SELECT name FROM sqlite_master WHERE type='table'")}
        if not tables and not self.readonly:
            # Another process has created the file and not yet its tables.
            return
        if not {"meta", "blocks", "claims"} <= tables:
            raise StoreError(
                f"{self.path} is an SQLite file but not the index of a feature store; give "
                "another directory."
            )
        found = run("SELECT value FROM meta WHERE name='format'").fetchone()
        if found != (FORMAT,):
            number = found[0] if found else None
            raise StoreError(
                f"{self.path.parent} has format {number}, and this version of skpool reads format "
                f"{FORMAT}; give another directory or install the version that wrote it."
            )

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn SQLite's errors into one sentence with the path and the remedy."""
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            text = str(error)
            # The names of damaged columns need not even be text.
            undecodable = isinstance(error, UnicodeDecodeError)
            if undecodable or "malformed" in text or "not a database" in text:
                remedy = "it is damaged; delete the directory, and the features are recomputed"
            elif "locked" in text:
                remedy = "another process keeps it locked; try again when that one has ended"
            else:
                remedy = "free space or make the directory writable, and try again"
            raise StoreError(f"The index {self.path} cannot be used ({text}): {remedy}.") from error

    @contextmanager
    def transaction(
        self, *, durable: bool = False, patient: bool = True
    ) -> Iterator[sqlite3.Connection]:
        """Do all of the block or nothing, alone among the writers; may be nested."""
        with self._named_errors():
            connection = self._open()
            outermost = not connection.in_transaction
            try:
                if outermost:
                    connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                    milliseconds = int(1000 * _LOCK_SECONDS) if patient else 0
                    connection.execute(f"PRAGMA busy_timeout={milliseconds}")
                    connection.execute("BEGIN IMMEDIATE")
                yield connection
                if outermost:
                    connection.execute("COMMIT")
            except BaseException:
                if outermost and connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def query(self, statement: str, parameters: tuple = ()) -> list[tuple]:
        """Run a statement that only reads."""
        with self._named_errors():
            return self._open().execute(statement, parameters).fetchall()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def state(self) -> tuple[int, int]:
        """Return two numbers that change when blocks are added, or removed."""
        statement = (
            "SELECT (SELECT max(id) FROM blocks), (SELECT value FROM meta WHERE name='drops')"
        )
        newest, drops = self.query(statement)[0]
        return newest or 0, drops or 0

    def blocks(
        self, space: str, after: int
    ) -> tuple[list[tuple[BlockInfo, np.ndarray]], list[tuple[int, str]]]:
        """Return blocks with their keys, oldest first, and id and file of damaged rows."""
        where = "WHERE space = ? AND id > ? ORDER BY id"
        return self._parse(self.query(f"SELECT {_COLUMNS} FROM blocks {where}", (space, after)))

    def block(self, block: int) -> tuple[BlockInfo, np.ndarray] | None:
        """Return one block with its keys, or None where it is gone or its entry damaged."""
        good, _ = self._parse(self.query(f"SELECT {_COLUMNS} FROM blocks WHERE id = ?", (block,)))
        return good[0] if good else None

    def newest(self, space: str) -> int:
        """Return the id of the last block of a space, 0 where there is none."""
        return self.query("SELECT max(id) FROM blocks WHERE space = ?", (space,))[0][0] or 0

    def all_blocks(self) -> Iterator[tuple[list, list]]:
        """Yield the same for every block of every space, one by one."""
        for (block,) in self.query("SELECT id FROM blocks ORDER BY id"):
            yield self._parse(self.query(f"SELECT {_COLUMNS} FROM blocks WHERE id = ?", (block,)))

    @staticmethod
    def _parse(rows: list[tuple]) -> tuple[list, list]:
        good, bad = [], []
        for row in rows:
            parsed = _parsed(row)
            if parsed is None:
                bad.append((row[0], str(row[2])))
            else:
                good.append(parsed)
        return good, bad

    def add(self, info: BlockInfo, keys: np.ndarray) -> int:
        """Name a block that is safely on the disk, end the claims on its keys, return its id."""
        shape = json.dumps(info.shape)
        lengths = None if info.lengths is None else info.lengths.astype("<i8").tobytes()
        columns = (info.space, info.file, info.dtype.str, shape, info.size, info.crc)
        crc = _row_crc(columns, keys.tobytes(), lengths)
        with self.transaction(durable=True) as connection:
            cursor = connection.execute(
                f"INSERT INTO blocks ({_COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*columns, crc, keys.tobytes(), lengths),
            )
            connection.executemany(
                "DELETE FROM claims WHERE space = ? AND key = ?",
                ((info.space, key) for key in keys.tolist()),
            )
            return cursor.lastrowid

    def drop(self, blocks: Iterable[int]) -> list[int]:
        """Forget blocks; return those that were still named."""
        dropped = []
        with self.transaction() as connection:
            for block in blocks:
                if connection.execute("DELETE FROM blocks WHERE id = ?", (block,)).rowcount:
                    dropped.append(block)
                for table in ("sums", "uses"):
                    connection.execute(f"DELETE FROM {table} WHERE block = ?", (block,))
            if dropped:
                connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'drops'")
        return dropped

    def files(self) -> set[str]:
        """Return the names of all block files."""
        return {file for (file,) in self.query("SELECT file FROM blocks")}

    def ids(self) -> np.ndarray:
        """Return the ids of all blocks, sorted."""
        return np.array([i for (i,) in self.query("SELECT id FROM blocks ORDER BY id")], np.int64)

    def spaces(self) -> list[str]:
        """Return every space that has blocks."""
        rows = self.query("SELECT space FROM blocks GROUP BY space ORDER BY min(id)")
        return [str(space) for (space,) in rows]

    def n_bytes(self) -> int:
        """Return the bytes of all blocks."""
        return self.query("SELECT sum(size) FROM blocks")[0][0] or 0

    def file_bytes(self) -> int:
        """Return the bytes of the index itself."""
        pages = "pragma_page_count(), pragma_page_size()"
        return self.query(f"SELECT page_count * page_size FROM {pages}")[0][0]

    def repair(self) -> tuple[bool, bool]:
        """Tell whether the file is sound, and whether it is now (only trees can be rebuilt)."""
        if self._is_sound():
            return True, True
        if self.readonly:
            return False, False
        with self.transaction(durable=True) as connection:
            connection.execute("REINDEX")
        return False, self._is_sound()

    def _is_sound(self) -> bool:
        return self.query("PRAGMA integrity_check(1)") == [("ok",)]

    def totals(self) -> list[tuple[str, int, int, int]]:
        """Return space, blocks, rows (those in two blocks count twice) and bytes on disk."""
        return self.query(
            "SELECT space, count(*), sum(length(keys)) / ?, sum(size) FROM blocks GROUP BY space",
            (KEY_BYTES,),
        )

    def claimed(self, space: str, keys: list[bytes]) -> dict[bytes, str]:
        """Return the owners of those keys that are claimed."""
        owners = {}
        for begin in range(0, len(keys), _PARAMETERS):
            some = keys[begin : begin + _PARAMETERS]
            marks = ",".join("?" * len(some))
            statement = f"SELECT key, owner FROM claims WHERE space = ? AND key IN ({marks})"
            owners.update(self.query(statement, (space, *some)))
        return owners

    def claim(self, space: str, keys: Iterable[bytes], owner: str) -> None:
        """Claim keys that nobody has claimed."""
        with self.transaction() as connection:
            connection.executemany(
                "INSERT INTO claims VALUES (?, ?, ?)", ((space, key, owner) for key in keys)
            )

    def release(self, space: str, keys: Iterable[bytes], owner: str) -> None:
        """Give back claims of one owner."""
        with self.transaction() as connection:
            connection.executemany(
                "DELETE FROM claims WHERE space = ? AND key = ? AND owner = ?",
                ((space, key, owner) for key in keys),
            )

    def owners(self) -> set[str]:
        """Return everyone who claims something."""
        return {owner for (owner,) in self.query("SELECT DISTINCT owner FROM claims")}

    def forget_owners(self, owners: Iterable[str]) -> None:
        """Delete all claims of owners who are gone."""
        with self.transaction() as connection:
            connection.executemany("DELETE FROM claims WHERE owner = ?", ((o,) for o in owners))
