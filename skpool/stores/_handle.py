# SPDX-License-Identifier: BSD-3-Clause
"""The store as an object of one process: its settings, its one session, forks, copies, pickles.

`FeatureStore` adds what a user calls. Everything here is about the life of the object: it opens a
session at first use, closes it, gives a forked child a fresh start, and comes out of a pickle as
the same object for the same path.
"""

import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

from skpool.exceptions import DamagedBlockWarning
from skpool.stores._forking import watch_forks
from skpool.stores._session import Session

__all__ = ["BLOCK_BYTES", "BLOCK_SECONDS", "StoreHandle"]

BLOCK_BYTES = 2**24
BLOCK_SECONDS = 30.0


class StoreHandle:
    """See the module's description."""

    path: Path
    block_bytes: int
    block_seconds: float
    max_bytes: int | None

    @classmethod
    def shared(cls, path: str | os.PathLike[str]):
        """Return this process's store of a directory, opened at the first call.

        Parameters
        ----------
        path : str or path-like
            The directory; made if there is none.

        Returns
        -------
        store : FeatureStore
            With the default settings; the same object for the same path, unless the directory
            was deleted in between.
        """
        name = str(Path(path).expanduser().absolute())
        store = _unpickled(cls, name, BLOCK_BYTES, BLOCK_SECONDS)
        if store._session is not None and not Path(name, "index.sqlite").exists():
            store._forget_session()
        with store._opened():
            pass
        return store

    def _forget_session(self) -> None:
        """Let go of a directory that is gone, with what was waiting to be written there."""
        with self._changed:
            session, self._session = self._session, None
            self._finalizer.detach()
            session.abandon(dead=True)

    def _set_up(
        self,
        path: str | os.PathLike[str],
        block_bytes: int,
        block_seconds: float,
        max_bytes: int | None,
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self.block_bytes = block_bytes
        self.block_seconds = block_seconds
        self.max_bytes = max_bytes
        self._changed = Condition()
        self._session: Session | None = None
        self._finalizer: weakref.finalize | None = None
        watch_forks(self)

    @contextmanager
    def _opened(self) -> Iterator[Session]:
        """Hold the lock on an open session; afterwards, without it, warn of what was found."""
        with self._changed:
            if self._session is None:
                self._session = Session(self.path, self.block_bytes)
                # Also at the end of the interpreter, so that buffered rows are written.
                self._finalizer = weakref.finalize(self, _finish, self._session, self._changed)
            session = self._session
            yield session
        while session.warnings:
            warnings.warn(session.warnings.pop(0), DamagedBlockWarning, stacklevel=4)

    def close(self) -> None:
        """Write all rows that wait, give back all claims, and close; the next use opens again."""
        with self._changed:
            if self._session is None:
                return
            session, self._session = self._session, None
            self._finalizer.detach()
            try:
                session.close()
            finally:
                self._changed.notify_all()

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self.path)!r}, block_bytes={self.block_bytes}, "
            f"block_seconds={self.block_seconds}, max_bytes={self.max_bytes})"
        )

    def __sklearn_clone__(self):
        return self

    def __copy__(self):
        return self

    def __deepcopy__(self, memo: dict):
        return self

    def __reduce__(self):
        settings = str(self.path), self.block_bytes, self.block_seconds, self.max_bytes
        return _unpickled, (type(self), *settings)

    def _before_fork(self) -> None:
        self._changed.acquire()
        if self._session is not None:
            self._session.index.close()

    def _after_fork_in_parent(self) -> None:
        self._changed.release()

    def _after_fork_in_child(self) -> None:
        self._changed = Condition()
        if self._session is not None:
            session, self._session = self._session, None
            self._finalizer.detach()
            # The buffered rows, the claims and the lock are the parent's.
            session.abandon(dead=False)


def _finish(session: Session, lock: Condition) -> None:
    with lock:
        session.close()


# A worker process unpickles the same store once per task; it opens it once.
_stores: dict[tuple, StoreHandle] = {}


def _unpickled(
    cls: type[StoreHandle],
    path: str,
    block_bytes: int,
    block_seconds: float,
    max_bytes: int | None = None,
) -> StoreHandle:
    """Return this process's store of that path and settings, opened at first use."""
    settings = path, block_bytes, block_seconds, max_bytes
    store = cls.__new__(cls)
    store._set_up(*settings)
    return _stores.setdefault((cls, *settings), store)
