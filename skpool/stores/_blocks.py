# SPDX-License-Identifier: BSD-3-Clause
"""The block files of a feature store: plain `.npy` arrays, written once, checked before use.

A block is written under a temporary name, synced, renamed and its directory synced; only then
does the index name it, together with the checksum of the whole file. The first read of a block
compares that checksum, so a flipped byte, a half-written, foreign or replaced file is never
served. Reading needs no pickle and evaluates nothing.
"""

import errno
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np

from skpool.exceptions import StoreError
from skpool.stores._index import BlockInfo
from skpool.stores._protocol import RowSet

__all__ = ["BlockFiles", "DamagedBlock"]

# The writer's name comes first: it tells whether anybody may still be writing the file.
_NAME = re.compile(r"([0-9a-f]{32})-\d+\.npy(\.tmp)?")
_CHUNK = 2**20
_MAX_OPEN = 128
# Errors that say something about the file rather than about this process or the system.
_DAMAGE = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EIO, errno.ELOOP}


class DamagedBlock(Exception):
    """A block that must not be served, and why."""


class _CheckedWriter:
    """A file that keeps the checksum and size of what passes through."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.crc = 0
        self.size = 0

    def write(self, data: bytes) -> None:
        self.crc = zlib.crc32(data, self.crc)
        self.size += len(data)
        self._file.write(data)


def sync_directory(path: Path) -> None:
    """Make names in a directory durable; Windows does so by itself and cannot open one."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _file_crc(path: Path, size: int) -> int:
    """Return the checksum of a file, read in chunks, if it has the right size."""
    with open(path, "rb", buffering=0) as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise DamagedBlock(f"it has {found} bytes instead of {size}")
        buffer = memoryview(bytearray(min(_CHUNK, max(size, 1))))
        crc = 0
        while count := file.readinto(buffer):
            crc = zlib.crc32(buffer[:count], crc)
    return crc


class BlockFiles:
    """The block files in one directory; safe for threads.

    Parameters
    ----------
    directory : Path
        Where they lie.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._lock = Lock()
        self._open: OrderedDict[int, RowSet] = OrderedDict()
        self._checked: set[int] = set()
        self._written = 0

    def write(self, space: str, rows: RowSet, n_rows: int, owner: str) -> BlockInfo:
        """Bring rows to the disk, under a name that says who wrote them."""
        with self._lock:
            self._written += 1
            path = self.directory / f"{owner}-{self._written:06d}.npy"
        temporary = path.with_name(path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                writer = _CheckedWriter(file)
                np.lib.format.write_array(writer, rows.data, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(self.directory)
        except OSError as error:
            self._remove_quietly(temporary, path)
            raise StoreError(
                f"The block {path} cannot be written ({error.strerror}): free space or make the "
                "directory writable, then call flush() again; the rows are kept in memory till "
                "then, and all others are safe."
            ) from error
        return BlockInfo(
            id=0,
            space=space,
            file=path.name,
            dtype=rows.data.dtype,
            shape=rows.data.shape,
            size=writer.size,
            crc=writer.crc,
            n_rows=n_rows,
            lengths=rows.lengths,
        )

    @staticmethod
    def _remove_quietly(*paths: Path) -> None:
        """Delete what can be deleted: what remains is litter for the next open."""
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue

    def remove(self, *names: str) -> None:
        """Delete block files as far as the system allows; never a file of another kind."""
        self._remove_quietly(*(self.directory / n for n in names if _NAME.fullmatch(n)))

    def check(self, info: BlockInfo, *, again: bool = False) -> None:
        """Compare the checksum of a block that was not compared before, or raise DamagedBlock."""
        with self._lock:
            if info.id in self._checked and not again:
                return
        with self._causes(info):
            crc = _file_crc(self._path(info), info.size)
        if crc != info.crc:
            raise DamagedBlock("its checksum is wrong")
        with self._lock:
            self._checked.add(info.id)

    def get(self, info: BlockInfo) -> RowSet:
        """Return a block's rows, memory-mapped, or raise DamagedBlock."""
        with self._lock:
            if info.id in self._open:
                self._open.move_to_end(info.id)
                return self._open[info.id]
        self.check(info)
        with self._causes(info):
            rows = RowSet(self._mapped(info), info.lengths)
        with self._lock:
            self._open[info.id] = rows
            while len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
        return rows

    def _mapped(self, info: BlockInfo) -> np.ndarray:
        try:
            # Unlike np.load this accepts nothing but .npy, and never a pickle.
            data = np.lib.format.open_memmap(self._path(info), mode="r")
        except (ValueError, EOFError) as error:
            raise DamagedBlock("it is not an array file") from error
        if data.shape != info.shape or data.dtype != info.dtype:
            raise DamagedBlock("it contains another array")
        return np.asarray(data)

    def _path(self, info: BlockInfo) -> Path:
        if not _NAME.fullmatch(info.file):
            raise DamagedBlock("its name is not one of a block")
        return self.directory / info.file

    @contextmanager
    def _causes(self, info: BlockInfo) -> Iterator[None]:
        """Tell damage of a file from the troubles of this process, after which it must remain."""
        try:
            yield
        except OSError as error:
            if error.errno in _DAMAGE:
                raise DamagedBlock((error.strerror or "unreadable").lower()) from error
            raise StoreError(
                f"The block {self.directory / info.file} cannot be read ({error.strerror}); it is "
                "kept, so try again when the cause is gone."
            ) from error

    def forget(self, blocks: Iterable[int]) -> None:
        """Close blocks that are no longer to be served."""
        with self._lock:
            for block in blocks:
                self._open.pop(block, None)
                self._checked.discard(block)

    def writers(self) -> dict[str, str]:
        """Return the writer of every file that a feature store wrote here."""
        matches = (_NAME.fullmatch(name) for name in os.listdir(self.directory))
        return {match[0]: match[1] for match in matches if match}
