# SPDX-License-Identifier: BSD-3-Clause
"""Features kept on disk, for every process that wants them: each sample is computed once.

The directory holds `index.sqlite` (which block has which samples, who computes what), `blocks/`
(plain `.npy` files, written once) and `owners/` (one locked file per open store). What makes it
safe is told where it is done: order of writes and checksums in `_blocks.py`, transactions in
`_index.py`, liveness in `_owner.py`, forks in `_forking.py`.
"""

import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition
from time import monotonic
from typing import Any

import numpy as np

from skpool.exceptions import DamagedBlockWarning
from skpool.stores._blocks import DamagedBlock
from skpool.stores._forking import watch_forks
from skpool.stores._index import FORMAT, BlockInfo
from skpool.stores._protocol import BUSY, check_keys, check_rows, gather
from skpool.stores._session import Session

__all__ = ["FeatureStore"]

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.2
_BLOCK_BYTES = 2**24
_BLOCK_SECONDS = 30.0


class FeatureStore:
    """Features at rest in a directory.

    Rows are kept per *space* (the fingerprint of what was computed) and *key* (16 bytes, one
    sample), so shuffles, folds, subsets, other processes and later sessions all find them.
    Several processes and threads may use one directory at once: each sample is computed once.

    Parameters
    ----------
    path : str or path-like
        The directory, on a local disk; made if there is none.
    block_bytes : int, default=2**24
        Rows are gathered in memory and written in blocks of this size. A killed process loses
        the rows that wait, at most one block per space.
    block_seconds : float, default=30.0
        Rows that have waited for longer are written at the next put.

    See Also
    --------
    MemoryCache : The same protocol in the memory of one process.

    Notes
    -----
    - What `flush` has returned from survives kill -9 and a power cut: the block is synced before
      the index names it, and that transaction is synced before `flush` returns.
    - Every block is compared with its checksum when it is first read (about 1 GB/s). A damaged,
      missing or replaced block is never served: one `DamagedBlockWarning` names the file, it is
      dropped, and its samples are recomputed.
    - Claims end with the process that made them, however it ends. They belong to the store
      object, so two threads that share it never compute the same sample.
    - A pickle carries the path and the settings; it is opened at first use, once per process and
      path. Copies and clones are the store itself. After `close`, and in a forked child, the
      next use opens it anew.
    - A directory that cannot be written can still be read.
    - Nothing in the directory can run code.
    - Finding n of N keys takes O(n log N), without a loop in Python; a million keys take about
      32 MB and half a second when they are first asked for.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from skpool.stores import FeatureStore
    >>> keys = np.arange(6, dtype=np.int64).view("V16")
    >>> with tempfile.TemporaryDirectory() as path, FeatureStore(path) as store:
    ...     store.put("5a", keys[:2], np.array([[1.0, 2.0], [3.0, 4.0]]))
    ...     found, rows, lengths = store.read("5a", keys)
    >>> found
    array([ True,  True, False])
    >>> rows
    array([[1., 2.],
           [3., 4.]])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        block_bytes: int = _BLOCK_BYTES,
        block_seconds: float = _BLOCK_SECONDS,
    ):
        if isinstance(block_bytes, bool) or not isinstance(block_bytes, int) or block_bytes < 1:
            raise ValueError(
                f"block_bytes={block_bytes!r} is not valid; give a whole number of at least 1."
            )
        if not block_seconds >= 0:
            raise ValueError(
                f"block_seconds={block_seconds!r} is not valid; give a number of at least 0."
            )
        self._set_up(path, block_bytes, block_seconds)
        with self._opened():
            pass

    @classmethod
    def shared(cls, path: str | os.PathLike[str]) -> "FeatureStore":
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
        store = _unpickled(name, _BLOCK_BYTES, _BLOCK_SECONDS)
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

    def _set_up(self, path: str | os.PathLike[str], block_bytes: int, block_seconds: float) -> None:
        self.path = Path(path).expanduser().absolute()
        self.block_bytes = block_bytes
        self.block_seconds = block_seconds
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

    def held(self, space: str, keys: np.ndarray) -> np.ndarray:
        """Tell which samples are stored, without reading their rows.

        Parameters
        ----------
        space : str
            Fingerprint of what the rows are.
        keys : ndarray of shape (n,), dtype V16
            Samples.

        Returns
        -------
        held : ndarray of shape (n,), bool
            A stored block that turns out to be damaged when it is first read counts until then.
        """
        keys = check_keys(space, keys)
        with self._opened() as session:
            return session.locate(space, keys)[0] != -1

    def read(
        self, space: str, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the rows of the samples that are stored.

        Parameters
        ----------
        space : str
            Fingerprint of what the rows are.
        keys : ndarray of shape (n,), dtype V16
            Samples, in any order, also repeated.

        Returns
        -------
        found : ndarray of shape (n,), bool
        rows : ndarray of shape (n_found, \\*row_shape)
            In the order of the found keys and the dtype that was put; ragged rows, and rows of
            unequal length, are padded with zeros.
        lengths : ndarray of shape (n_found,) or None
            Entries of each padded row; None if all found rows are of one fixed shape.
        """
        keys = check_keys(space, keys)
        while True:
            with self._opened() as session:
                where, row = session.locate(space, keys)
                sets = session.sets(space, where)
            found = where != -1
            # Checking and copying take long, and other threads need not wait for them.
            damaged = session.check(sets)
            if not damaged:
                try:
                    load = _Loader(session, sets)
                    return found, *gather(sets, load, where[found], row[found])
                except DamagedBlock as error:
                    damaged = [(load.last, str(error))]
            with self._opened() as session:
                session.drop(damaged)

    def claim(self, space: str, keys: np.ndarray) -> np.ndarray:
        """Announce which samples the caller is about to compute.

        Parameters
        ----------
        space : str
            Fingerprint of what the rows are.
        keys : ndarray of shape (n,), dtype V16
            Samples; of a repeated one the first is claimed, the others are BUSY.

        Returns
        -------
        status : ndarray of shape (n,), uint8
            HELD (0, stored), MINE (1, the caller must now put or release it) or BUSY (2, somebody
            alive is computing it, in this process or another).
        """
        keys = check_keys(space, keys)
        with self._opened() as session:
            return session.claim(space, keys)

    def release(self, space: str, keys: np.ndarray) -> None:
        """Give back claims that will not be computed.

        Parameters
        ----------
        space : str
            Fingerprint of what the rows are.
        keys : ndarray of shape (n,), dtype V16
            Samples that `claim` called MINE; others must not be given.
        """
        keys = check_keys(space, keys)
        with self._opened() as session:
            session.release(space, keys)
            self._changed.notify_all()

    def put(
        self, space: str, keys: np.ndarray, rows: np.ndarray, lengths: np.ndarray | None = None
    ) -> None:
        """Store rows, as copies, and end the claims on them once they are on the disk.

        Parameters
        ----------
        space : str
            Fingerprint of what the rows are.
        keys : ndarray of shape (n,), dtype V16
            Samples; what is put last wins.
        rows : ndarray of shape (n, \\*row_shape)
            All rows of a space have one dtype and shape; rows (L, d) may differ in L.
        lengths : ndarray of shape (n,), default=None
            Entries of each row that count, for ragged rows (n, L, d); the others are padding.

        Notes
        -----
        The rows are visible to this object at once, and to others when their block is written.
        """
        keys = check_keys(space, keys)
        rows, lengths = check_rows(keys, rows, lengths)
        with self._opened() as session:
            session.put(space, keys, rows, lengths)
            session.flush(older_than=self.block_seconds)
            self._changed.notify_all()

    def flush(self) -> None:
        """Write all rows that wait: afterwards they are durable and visible to others."""
        with self._opened() as session:
            session.flush()

    def wait(self, space: str, keys: np.ndarray, timeout: float | None = None) -> np.ndarray:
        """Wait until nobody computes any of the samples.

        What this object has buffered is written first, since others may be waiting for it.

        Parameters
        ----------
        space : str
            Fingerprint of what the rows are.
        keys : ndarray of shape (n,), dtype V16
            Samples, none of them claimed by the caller and neither put nor released.
        timeout : float, default=None
            Seconds to wait at most; None waits as long as it takes.

        Returns
        -------
        status : ndarray of shape (n,), uint8
            HELD (0), FREE (3, neither stored nor claimed by anybody alive: claim it), or after a
            timeout BUSY (2).
        """
        keys = check_keys(space, keys)
        deadline = None if timeout is None else monotonic() + timeout
        self.flush()
        status = np.full(len(keys), BUSY, dtype=np.uint8)
        pause = _FIRST_PAUSE
        while True:
            busy = np.flatnonzero(status == BUSY)
            with self._opened() as session:
                session.flush(older_than=self.block_seconds)
                status[busy] = session.status(space, keys[busy])
                left = pause if deadline is None else min(pause, deadline - monotonic())
                if left <= 0 or not (status == BUSY).any():
                    return status
                self._changed.wait(left)
            pause = min(1.5 * pause, _LONGEST_PAUSE)

    def info(self) -> dict[str, Any]:
        """Tell what is on the disk.

        Returns
        -------
        info : dict
            `format`, `n_blocks`, `n_bytes` of the blocks, and `n_rows`, a dict from space to the
            number of stored rows (samples that were stored again count twice).
        """
        with self._opened() as session:
            totals = session.index.totals()
        return {
            "format": FORMAT,
            "n_blocks": sum(n for _, n, _, _ in totals),
            "n_bytes": sum(size for *_, size in totals),
            "n_rows": {space: n for space, _, n, _ in totals},
        }

    def verify(self) -> list[str]:
        """Compare every block with its checksum and drop the damaged ones.

        Returns
        -------
        damaged : list of str
            Files of the damaged blocks, each of which was named by a warning too.
        """
        with self._opened() as session:
            infos, damaged = session.survey()
        wrong = session.check({info.id: info for info in infos}, again=True)
        with self._opened() as session:
            return damaged + session.drop(wrong)

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

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"FeatureStore({str(self.path)!r}, block_bytes={self.block_bytes}, "
            f"block_seconds={self.block_seconds})"
        )

    def __sklearn_clone__(self) -> "FeatureStore":
        return self

    def __copy__(self) -> "FeatureStore":
        return self

    def __deepcopy__(self, memo: dict) -> "FeatureStore":
        return self

    def __reduce__(self):
        return _unpickled, (str(self.path), self.block_bytes, self.block_seconds)

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


class _Loader:
    """Opens sets for `gather`, and remembers the last one in case it is damaged."""

    def __init__(self, session: Session, sets: dict):
        self._session = session
        self._sets = sets
        self.last: BlockInfo | None = None

    def __call__(self, number: int):
        if number < 0:
            return self._sets[number]
        self.last = self._sets[number]
        return self._session.files.get(self.last)


def _finish(session: Session, lock: Condition) -> None:
    with lock:
        session.close()


# A worker process unpickles the same store once per task; it opens it once.
_stores: dict[tuple[str, int, float], FeatureStore] = {}


def _unpickled(path: str, block_bytes: int, block_seconds: float) -> FeatureStore:
    """Return this process's store of that path and settings, opened at first use."""
    store = FeatureStore.__new__(FeatureStore)
    store._set_up(path, block_bytes, block_seconds)
    return _stores.setdefault((path, block_bytes, block_seconds), store)
