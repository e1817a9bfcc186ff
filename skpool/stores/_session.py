# SPDX-License-Identifier: BSD-3-Clause
"""One opening of a feature store by one process: everything that a fork or a close ends.

`FeatureStore` is the path and the settings; a session is the lock file, the index, the block
files and the rows that wait to be written. Every method but `load` and `check` is called with the
store's lock held.
"""

import errno
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from skpool.exceptions import StoreError
from skpool.stores._blocks import BlockFiles, DamagedBlock, sync_directory
from skpool.stores._catalogue import Catalogue, WriteBuffer
from skpool.stores._checksums import PieceSums
from skpool.stores._index import BlockInfo, Index
from skpool.stores._owner import Owner, is_alive, remove_dead_owners
from skpool.stores._protocol import (
    BUSY,
    FREE,
    HELD,
    MINE,
    Groups,
    RowSet,
    check_kind,
    kind_of,
)
from skpool.stores._side_tables import SideTables, now

__all__ = ["Session"]

# Times of use are written this often at most, in milliseconds.
_USES_EVERY = 60_000

# With these a store that exists can still be read.
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}

BAD_ENTRY = "its entry in the index has a wrong checksum"


def damage_text(file: object, reason: str) -> str:
    """Say that a block is not served."""
    return (
        f"The stored block {file} is damaged ({reason}): it is not used, and its samples will be "
        "recomputed."
    )


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
            self.side = SideTables(self.index)
            self._uses: dict[int, int] = {}
            self._uses_written = 0
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
        self.side.forget_orphans()

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
            self._forget([(i, file, BAD_ENTRY) for i, file in bad])
        if self.catalogue.gone:
            self.files.forget(self.catalogue.gone)
            self.catalogue.gone.clear()

    def locate(self, space: str, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where each row is (a block id, -2 - a chunk's number, or -1) and its position."""
        self.refresh(space)
        where, row = self.catalogue.find(space, keys)
        if space in self._buffers:
            chunk, position = self._buffers[space].find(keys)
            hit = chunk >= 0
            where[hit], row[hit] = -2 - chunk[hit], position[hit]
        return where, row

    def sets(self, space: str, groups: Groups) -> dict[int, RowSet | BlockInfo]:
        """Return the chunks and the descriptions of the blocks that `locate` named."""
        sets = {
            i: self.catalogue.blocks[i] if i >= 0 else self._buffers[space].chunks[-2 - i][1]
            for i, _ in groups
        }
        blocks = [info for i, info in sets.items() if i >= 0]
        self.expect(blocks)
        self._use(blocks)
        return sets

    def expect(self, blocks: Iterable[BlockInfo]) -> None:
        """Read the checksums of blocks that are about to be checked."""
        for info in self.files.unknown(blocks):
            self.files.expect(info, self.side.sums(info))

    def _use(self, blocks: Iterable[BlockInfo]) -> None:
        """Note that blocks are used now."""
        if self._owner is None:
            return
        self._uses.update(dict.fromkeys((info.id for info in blocks), now()))
        if self._uses and now() - self._uses_written > _USES_EVERY:
            self.write_uses()

    def write_uses(self, *, patient: bool = False) -> None:
        """Tell the index when blocks were used; unless patient, if that is possible at once."""
        self._uses_written = now()
        # A reader neither waits for a writer nor fails where the disk is full.
        with suppress(StoreError):
            if self._uses:
                self.side.set_uses(self._uses, patient=patient)
            self._uses.clear()

    def check(
        self, sets: Mapping[int, RowSet | BlockInfo], groups: Groups, row: np.ndarray
    ) -> list[tuple[BlockInfo, str]]:
        """Return the blocks whose rows are damaged and why; needs no lock."""
        damaged = []
        for i, at in groups:
            info = sets[i]
            if isinstance(info, BlockInfo):
                try:
                    self.files.check(info, row[at])
                except DamagedBlock as error:
                    damaged.append((info, str(error)))
        return damaged

    def survey(self) -> tuple[list[BlockInfo], list[str]]:
        """Return every block, and the files of those whose entry had to be dropped."""
        infos, bad = [], []
        for good_rows, bad_rows in self.index.all_blocks():
            infos.extend(info for info, _ in good_rows)
            bad.extend(bad_rows)
        return infos, self._forget([(i, file, BAD_ENTRY) for i, file in bad])

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
                self.warnings.append(damage_text(paths[-1], reason))
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

    def check_kind(self, space: str, kind: tuple) -> None:
        """Refuse rows that could not be read together with those of the space."""
        self.refresh(space)
        waiting = self._buffers.get(space)
        check_kind(space, kind, waiting.kind if waiting else self.catalogue.kind(space))

    def put(
        self, space: str, keys: np.ndarray, rows: np.ndarray, lengths: np.ndarray | None
    ) -> bool:
        """Buffer rows, and write a block whenever there are enough; tell whether one was."""
        self.require_writable()
        self.check_kind(space, kind_of(rows.dtype, rows.shape[1:]))
        written = False
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
                written = True
        return written

    def flush(self, *, older_than: float = -1.0) -> bool:
        """Write what is buffered, or for longer than some seconds; tell whether there was any."""
        old = [space for space, buffer in self._buffers.items() if buffer.age > older_than]
        for space in old:
            self._write(space)
        return bool(old)

    def _write(self, space: str) -> None:
        buffer = self._buffers[space]
        for numbers, keys, rows in buffer.blocks():
            self.name(keys, *self.written(space, keys, rows))
            buffer.discard(numbers)
        del self._buffers[space]

    def written(self, space: str, keys: np.ndarray, rows: RowSet) -> tuple[BlockInfo, PieceSums]:
        """Bring a block to the disk that nobody knows of yet; needs no lock."""
        return self.files.write(space, rows, len(keys), self._owner.name)

    def taken(self, source: Path, info: BlockInfo, *, link: bool) -> tuple[BlockInfo, PieceSums]:
        """Copy a block of another store, or raise DamagedBlock; needs no lock."""
        linked = self.files.link(source, info, self._owner.name) if link else None
        file, sums = linked or self.files.copy(source, info, self._owner.name)
        return replace(info, id=0, file=file), sums

    def name(
        self, keys: np.ndarray, info: BlockInfo, sums: PieceSums, *, used: int | None = None
    ) -> None:
        """Let the index name a block that is on the disk."""
        try:
            with self.index.transaction(durable=True):
                block = self.index.add(info, keys)
                self.side.add(block, sums, now() if used is None else used)
        except BaseException:
            self.files.remove(info.file)
            raise

    def close(self) -> None:
        """Write what is buffered, give back all claims, and die in good order."""
        try:
            if self._owner is not None:
                try:
                    self.flush()
                finally:
                    self.write_uses()
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
