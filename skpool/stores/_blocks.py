# SPDX-License-Identifier: BSD-3-Clause
"""The block files of a feature store: plain `.npy` arrays, written once, checked before use.

A block is written under a temporary name, synced, renamed and its directory synced; only then
does the index name it, together with its checksums. Every part of a block is compared with its
checksum before this process first serves a row from it, so a flipped byte, a half-written,
foreign or replaced file is never served. Reading needs no pickle and evaluates nothing.
"""

import errno
import math
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np

from skpool.exceptions import StoreError
from skpool.stores._checksums import (
    CheckedWriter,
    DamagedBlock,
    FileCheck,
    PieceSums,
    piece_bytes,
)
from skpool.stores._index import BlockInfo
from skpool.stores._protocol import RowSet

__all__ = ["BlockFiles", "DamagedBlock", "sync_directory"]

# The writer's name comes first: it tells whether anybody may still be writing the file.
_NAME = re.compile(r"([0-9a-f]{32})-\d+\.npy(\.tmp)?")
_COPY_BYTES = 2**20
_MAX_OPEN = 128
# Errors that say something about the file rather than about this process or the system.
_DAMAGE = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EIO, errno.ELOOP}


def sync_directory(path: Path) -> None:
    """Make names in a directory durable; Windows does so by itself and cannot open one."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _step_of(shape: tuple[int, ...], itemsize: int, n_rows: int) -> int:
    """Return the size of the pieces of a block; of ragged rows the mean length counts."""
    return piece_bytes(math.prod(shape) * itemsize // max(1, n_rows))


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
        self._checks: dict[int, FileCheck] = {}
        self._written = 0

    def write(
        self, space: str, rows: RowSet, n_rows: int, owner: str
    ) -> tuple[BlockInfo, PieceSums]:
        """Bring rows to the disk, under a name that says who wrote them."""
        step = _step_of(rows.data.shape, rows.data.itemsize, n_rows)
        with self._new_file(owner, step) as (path, writer):
            np.lib.format.write_array(writer, rows.data, allow_pickle=False)
        info = BlockInfo(
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
        return info, writer.sums

    def copy(self, source: Path, info: BlockInfo, owner: str) -> tuple[str, PieceSums]:
        """Copy a block of another store under a new name, or raise DamagedBlock."""
        step = _step_of(info.shape, info.dtype.itemsize, info.n_rows)
        with self._new_file(owner, step) as (path, writer):
            for data in self._chunks(source, info):
                writer.write(data)
            _require(writer, info)
        return path.name, writer.sums

    def link(self, source: Path, info: BlockInfo, owner: str) -> tuple[str, PieceSums] | None:
        """Give a block of another store a second name here; None where the system cannot."""
        sums = BlockFiles(source.parent).sums(info)
        with self._lock:
            path = self._new_path(owner)
        try:
            os.link(source, path)
        except OSError:
            return None
        sync_directory(self.directory)
        return path.name, sums

    def sums(self, info: BlockInfo) -> PieceSums:
        """Compare a whole file with its one checksum, and return those of its pieces."""
        writer = CheckedWriter(None, _step_of(info.shape, info.dtype.itemsize, info.n_rows))
        for data in self._chunks(self.path(info), info):
            writer.write(data)
        _require(writer, info)
        return writer.sums

    def _chunks(self, path: Path, info: BlockInfo) -> Iterator[bytes]:
        with self._causes(info), open(path, "rb", buffering=0) as file:
            while data := file.read(_COPY_BYTES):
                yield data

    def _new_path(self, owner: str) -> Path:
        self._written += 1
        return self.directory / f"{owner}-{self._written:06d}.npy"

    @contextmanager
    def _new_file(self, owner: str, step: int) -> Iterator[tuple[Path, CheckedWriter]]:
        """Write a file that is durable, and has its name, when the block ends."""
        with self._lock:
            path = self._new_path(owner)
        temporary = path.with_name(path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                writer = CheckedWriter(file, step)
                yield path, writer
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(self.directory)
        except OSError as error:
            self._remove_quietly(temporary, path)
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"The block {path} cannot be written ({error.strerror}): free space or make the "
                "directory writable, then call flush() again; the rows are kept in memory till "
                "then, and all others are safe."
            ) from error
        except BaseException:
            self._remove_quietly(temporary)
            raise

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

    def unknown(self, infos: Iterable[BlockInfo]) -> list[BlockInfo]:
        """Return the blocks whose checksums were not handed to `expect` yet."""
        with self._lock:
            return [info for info in infos if info.id not in self._checks]

    def expect(self, info: BlockInfo, sums: PieceSums | None) -> None:
        """Take the checksums of a block's pieces; None leaves the one of the whole file."""
        whole = PieceSums(info.size, np.array([info.crc], dtype=np.uint32))
        with self._lock:
            self._checks.setdefault(info.id, FileCheck(info.size, sums or whole))

    def check(self, info: BlockInfo, rows: np.ndarray | None) -> None:
        """Compare what some rows need and was not compared before, or raise DamagedBlock.

        Parameters
        ----------
        info : BlockInfo
            Known through `expect`.
        rows : ndarray of int, or None
            None compares the whole file, whatever was compared before.
        """
        known = self._known(info)
        if rows is None:
            pieces = None
        elif known.complete:
            return
        else:
            pieces = known.missing(*info.byte_ranges(rows))
            if not len(pieces):
                return
        with self._causes(info):
            replaced = known.compare(self.path(info), pieces)
        if replaced:
            with self._lock:
                self._open.pop(info.id, None)

    def get(self, info: BlockInfo) -> RowSet:
        """Return a block's rows, memory-mapped, or raise DamagedBlock; they must be checked."""
        with self._lock:
            if info.id in self._open:
                self._open.move_to_end(info.id)
                return self._open[info.id]
        known = self._known(info)
        with self._causes(info):
            if known.identity != self._identity(info):
                known.compare(self.path(info), None)
            rows = RowSet(self._mapped(info), info.lengths)
        with self._lock:
            self._open[info.id] = rows
            while len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
        return rows

    def _known(self, info: BlockInfo) -> FileCheck:
        with self._lock:
            if info.id in self._checks:
                return self._checks[info.id]
        # Another thread has learnt that it is gone.
        raise DamagedBlock("it was dropped")

    def _identity(self, info: BlockInfo) -> tuple[int, int]:
        stat = os.stat(self.path(info))
        return stat.st_ino, stat.st_mtime_ns

    def _mapped(self, info: BlockInfo) -> np.ndarray:
        try:
            # Unlike np.load this accepts nothing but .npy, and never a pickle.
            data = np.lib.format.open_memmap(self.path(info), mode="r")
        except (ValueError, EOFError) as error:
            raise DamagedBlock("it is not an array file") from error
        if data.shape != info.shape or data.dtype != info.dtype:
            raise DamagedBlock("it contains another array")
        return np.asarray(data)

    def path(self, info: BlockInfo) -> Path:
        """Return where a block lies, never outside the directory."""
        if not _NAME.fullmatch(info.file):
            raise DamagedBlock("its name is not one of a block")
        return self.directory / info.file

    @contextmanager
    def _causes(self, info: BlockInfo) -> Iterator[None]:
        """Tell damage of a file from the troubles of this process, after which it must remain."""
        try:
            yield
        except StoreError:
            raise
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
                self._checks.pop(block, None)

    def writers(self) -> dict[str, str]:
        """Return the writer of every file that a feature store wrote here."""
        matches = (_NAME.fullmatch(name) for name in os.listdir(self.directory))
        return {match[0]: match[1] for match in matches if match}


def _require(writer: CheckedWriter, info: BlockInfo) -> None:
    if writer.size != info.size:
        raise DamagedBlock(f"it has {writer.size} bytes instead of {info.size}")
    if writer.crc != info.crc:
        raise DamagedBlock("its checksum is wrong")
