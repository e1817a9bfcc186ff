# SPDX-License-Identifier: BSD-3-Clause
"""Who is alive: one locked file per open store.

Every open `FeatureStore` holds an operating-system lock on a small file of its own for as long
as it lives. The system releases it however the process ends, kill -9 included, so another
process finds an owner dead exactly when it can take that lock. There are no process ids (which
are reused) and no heartbeats (which a busy or stopped process misses).
"""

import os
import re
import uuid
from pathlib import Path

__all__ = ["Owner", "is_alive", "remove_dead_owners"]

_NAME = re.compile(r"[0-9a-f]{32}")

if os.name == "nt":
    import msvcrt

    def _lock(fd: int, *, wait: bool) -> bool:
        while True:
            try:
                msvcrt.locking(fd, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False

    def _probe(fd: int) -> bool:
        if not _lock(fd, wait=False):
            return False
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
        return True

else:
    import fcntl

    def _lock(fd: int, *, wait: bool) -> bool:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True

    def _probe(fd: int) -> bool:
        try:
            # Shared, so that two who probe the same dead owner do not take each other for it.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class Owner:
    """An open store, alive until `close` or until the process ends.

    Parameters
    ----------
    directory : Path
        Where the lock files lie.
    """

    def __init__(self, directory: Path):
        self.name, self._path, self._fd = self._acquire(directory)

    @staticmethod
    def _acquire(directory: Path) -> tuple[str, Path, int]:
        while True:
            name = uuid.uuid4().hex
            path = directory / f"{name}.lock"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                _lock(fd, wait=True)
            except OSError:
                os.close(fd)
                path.unlink(missing_ok=True)
                raise
            # Between creation and lock a cleaner may have taken the file for a dead owner's.
            if path.exists():
                return name, path, fd
            os.close(fd)

    def close(self) -> None:
        """Die in good order; the file goes first, so that nobody finds it unlocked."""
        if os.name == "nt":
            self.abandon()
            self._path.unlink(missing_ok=True)
        else:
            self._path.unlink(missing_ok=True)
            self.abandon()

    def abandon(self) -> None:
        """Close this process's handle only: in a forked child the lock is the parent's."""
        os.close(self._fd)


def is_alive(directory: Path, name: str) -> bool:
    """Return whether the named owner still holds its lock."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        # From a damaged index.
        return False
    try:
        fd = os.open(directory / f"{name}.lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _probe(fd)
    finally:
        os.close(fd)


def remove_dead_owners(directory: Path) -> None:
    """Delete the lock files that nobody holds."""
    for entry in list(os.scandir(directory)):
        name, suffix = os.path.splitext(entry.name)
        if suffix != ".lock" or not _NAME.fullmatch(name):
            continue
        try:
            fd = os.open(entry.path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            dead = _probe(fd)
            if dead and os.name != "nt":
                # Still under the lock: an owner that is just being born waits for it, and
                # then sees that its file is gone.
                os.unlink(entry.path)
        except FileNotFoundError:
            dead = False
        finally:
            os.close(fd)
        if dead and os.name == "nt":
            _unlink_closed(entry.path)


def _unlink_closed(path: str) -> None:
    """Windows deletes no open file: an owner that is being born keeps its own."""
    try:
        os.unlink(path)
    except (FileNotFoundError, PermissionError):
        return
