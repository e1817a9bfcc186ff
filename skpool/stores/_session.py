# SPDX-License-Identifier: BSD-3-Clause
"""One opening of a feature store by one process: everything that a fork or a close ends.

`FeatureStore` is the path and the settings; a session is the lock file, the index, the block
files and the rows that wait to be written. Every method but `load` and `check` is called with the
store's lock held.
"""

import errno
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from skpool.exceptions import StoreError
from skpool.stores._blocks import BlockFiles, DamagedBlock, sync_directory
from skpool.stores._catalogue import Catalogue, WriteBuffer
from skpool.stores._index import BlockInfo, Index
from skpool.stores._owner import Owner, is_alive, remove_dead_owners
from skpool.stores._protocol import (
    BUSY,
    FREE,
    HELD,
    MINE,
    RowSet,
    check_kind,
    kind_of,
)

__all__ = ["Session"]

# With these a store that exists can still be read.
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}

_BAD_ENTRY = "its entry in the index has a wrong checksum"


class Session:
    """See the module's description.

    Parameters
    ----------
    path : Path
        Directory of the store; made if there is none.
    block_bytes : int
        Size at which a block is written.
    """

    def __init__(self, path: Path, block_bytes: int):
        self.path = path
        self.warnings: list[str] = []
        self._block_bytes = block_bytes
        self._owners = path / "owners"
        self.unwritable: str | None = None
        self._owner = self._announced()
        try:
            self.index = Index(path / "index.sqlite", readonly=self._owner is None)
            self.files = BlockFiles(path / "blocks")
            self.catalogue = Catalogue(self.index)
            self._buffers: dict[str, WriteBuffer] = {}
            self._n_chunks = 0
            if self._owner is not None:
                self._clean()
        except BaseException:
            self.abandon(dead=True)
            raise

    def _announced(self) -> Owner | None:
        """Make the directories and a lock file; None where that cannot be and a store exists."""
        try:
            fresh = not self._owners.exists()
            for directory in (self.path, self.path / "blocks", self._owners):
                directory.mkdir(parents=True, exist_ok=True)
            owner = Owner(self._owners)
            if fresh:
                sync_directory(self.path)
                with suppress(OSError):
                    sync_directory(self.path.parent)
            return owner
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreError(
                f"{self.path} cannot be a feature store, since {error.filename} is a file; give "
                "a directory."
            ) from error
        except OSError as error:
            if error.errno in _UNWRITABLE and os.path.exists(self.path / "index.sqlite"):
                self.unwritable = error.strerror
                return None
            raise StoreError(
                f"The feature store {self.path} cannot be made ({error.strerror}); give a "
                "directory on a local disk that can be written."
            ) from error

    def _clean(self) -> None:
        """Remove what dead owners left: claims, unfinished and unnamed blocks, lock files."""
        writers = self.files.writers()
        claimants = self.index.owners()
        dead = self._dead(claimants | set(writers.values()))
        if dead & claimants:
            self.index.forget_owners(dead & claimants)
        # The dead cannot name a block any more, so what is not named now never will be.
        named = self.index.files()
        litter = [file for file, owner in writers.items() if owner in dead and file not in named]
        self.files.remove(*litter)
        remove_dead_owners(self._owners)

    def _dead(self, owners: set[str]) -> set[str]:
        me = None if self._owner is None else self._owner.name
        return {name for name in owners if name != me and not is_alive(self._owners, name)}

    def require_writable(self) -> None:
        """Raise one sentence where nothing can be written."""
        if self._owner is None:
            raise StoreError(
                f"The feature store {self.path} can only be read ({self.unwritable}), and this "
                "needs to write; make it writable or give another directory."
            )

    def refresh(self, space: str) -> None:
        """Take notice of what others have stored and dropped."""
        while bad := self.catalogue.refresh(space):
            self._forget([(i, file, _BAD_ENTRY) for i, file in bad])

    def locate(self, space: str, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where each row is (a block id, -2 - a chunk's number, or -1) and its position."""
        self.refresh(space)
        where, row = self.catalogue.find(space, keys)
        if space in self._buffers:
            chunk, position = self._buffers[space].find(keys)
            hit = chunk >= 0
            where[hit], row[hit] = -2 - chunk[hit], position[hit]
        return where, row

    def sets(self, space: str, where: np.ndarray) -> dict[int, RowSet | BlockInfo]:
        """Return the chunks and the descriptions of the blocks that `locate` named."""
        ids = [i for i in np.unique(where).tolist() if i != -1]
        return {
            i: self.catalogue.blocks[i] if i >= 0 else self._buffers[space].chunks[-2 - i][1]
            for i in ids
        }

    def check(
        self, sets: Mapping[int, RowSet | BlockInfo], *, again: bool = False
    ) -> list[tuple[BlockInfo, str]]:
        """Return the damaged ones among some blocks and why; needs no lock."""
        damaged = []
        for info in sets.values():
            if isinstance(info, BlockInfo):
                try:
                    self.files.check(info, again=again)
                except DamagedBlock as error:
                    damaged.append((info, str(error)))
        return damaged

    def survey(self) -> tuple[list[BlockInfo], list[str]]:
        """Return every block, and the files of those whose entry had to be dropped."""
        infos, bad = [], []
        for good_rows, bad_rows in self.index.all_blocks():
            infos.extend(info for info, _ in good_rows)
            bad.extend(bad_rows)
        return infos, self._forget([(i, file, _BAD_ENTRY) for i, file in bad])

    def drop(self, damaged: list[tuple[BlockInfo, str]]) -> list[str]:
        """Serve damaged blocks no more; return the files of those not dropped by another."""
        return self._forget([(info.id, info.file, reason) for info, reason in damaged])

    def _forget(self, damaged: list[tuple[int, str, str]]) -> list[str]:
        if not damaged:
            return []
        ids = [i for i, _, _ in damaged]
        self.catalogue.exclude(ids)
        self.files.forget(ids)
        # Where nothing can be written they stay, and this session passes them over.
        dropped = set(ids if self._owner is None else self.index.drop(ids))
        paths = []
        for i, file, reason in damaged:
            if i in dropped:
                paths.append(str(self.files.directory / file))
                self.warnings.append(
                    f"The stored block {paths[-1]} is damaged ({reason}): it is not used, and its "
                    "samples will be recomputed."
                )
        if self._owner is not None:
            self.files.remove(*(file for _, file, _ in damaged))
        return paths

    def status(self, space: str, keys: np.ndarray) -> np.ndarray:
        """Return HELD, BUSY or FREE for every key."""
        where, _ = self.locate(space, keys)
        status = np.where(where == -1, FREE, HELD).astype(np.uint8)
        free = np.flatnonzero(status == FREE)
        names = keys[free].tolist()
        claimed = self.index.claimed(space, names)
        dead = self._dead(set(claimed.values()))
        if dead and self._owner is not None:
            self.index.forget_owners(dead)
        busy = [claimed.get(name, None) not in {None, *dead} for name in names]
        status[free[np.array(busy, dtype=bool)]] = BUSY
        return status

    def claim(self, space: str, keys: np.ndarray) -> np.ndarray:
        """Return HELD, MINE or BUSY for every key."""
        where, _ = self.locate(space, keys)
        if (where != -1).all():
            return np.full(len(keys), HELD, dtype=np.uint8)
        self.require_writable()
        with self.index.transaction():
            status = self.status(space, keys)
            free = np.flatnonzero(status == FREE)
            _, first = np.unique(keys[free].view("S16"), return_index=True)
            status[free] = BUSY
            status[free[first]] = MINE
            self.index.claim(space, keys[free[first]].tolist(), self._owner.name)
        return status

    def release(self, space: str, keys: np.ndarray) -> None:
        """Give back claims of this session."""
        self.require_writable()
        self.index.release(space, keys.tolist(), self._owner.name)

    def put(
        self, space: str, keys: np.ndarray, rows: np.ndarray, lengths: np.ndarray | None
    ) -> None:
        """Buffer rows, and write a block whenever there are enough."""
        self.require_writable()
        self.refresh(space)
        kind = kind_of(rows.dtype, rows.shape[1:])
        waiting = self._buffers.get(space)
        check_kind(space, kind, waiting.kind if waiting else self.catalogue.kind(space))
        row_bytes = max(1, rows.itemsize * math.prod(rows.shape[1:]))
        begin = 0
        while begin < len(keys):
            buffer = self._buffers.setdefault(space, WriteBuffer())
            part = slice(begin, begin + max(1, (self._block_bytes - buffer.nbytes) // row_bytes))
            packed = RowSet.packed(rows[part], None if lengths is None else lengths[part])
            buffer.append(self._n_chunks, keys[part].copy(), packed)
            self._n_chunks += 1
            begin = part.stop
            if buffer.nbytes + row_bytes > self._block_bytes:
                self._write(space)

    def flush(self, *, older_than: float = -1.0) -> None:
        """Write what is buffered, or what has been for longer than some seconds."""
        for space, buffer in list(self._buffers.items()):
            if buffer.age > older_than:
                self._write(space)

    def _write(self, space: str) -> None:
        buffer = self._buffers[space]
        for numbers, keys, rows in buffer.blocks():
            info = self.files.write(space, rows, len(keys), self._owner.name)
            try:
                self.index.add(info, keys)
            except BaseException:
                self.files.remove(info.file)
                raise
            buffer.discard(numbers)
        del self._buffers[space]

    def close(self) -> None:
        """Write what is buffered, give back all claims, and die in good order."""
        try:
            if self._owner is not None:
                try:
                    self.flush()
                finally:
                    self.index.forget_owners([self._owner.name])
        finally:
            self.abandon(dead=True)

    def abandon(self, *, dead: bool) -> None:
        """Close the handles; unless dead, the lock is that of the parent process."""
        if hasattr(self, "index"):
            self.index.close()
        if self._owner is not None:
            if dead:
                self._owner.close()
            else:
                self._owner.abandon()
