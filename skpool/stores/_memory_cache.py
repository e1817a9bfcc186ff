# SPDX-License-Identifier: BSD-3-Clause
"""Features kept in memory: what serves an extractor that was given no store.

The same protocol as `FeatureStore`, for the threads of one process, within a limit of bytes.
"""

from collections import OrderedDict
from threading import Condition
from time import monotonic
from typing import NamedTuple

import numpy as np

from skpool._config import get_config
from skpool.stores._forking import watch_forks
from skpool.stores._protocol import (
    BUSY,
    FREE,
    HELD,
    MINE,
    check_keys,
    check_kind,
    check_rows,
    kind_of,
)

__all__ = ["MemoryCache", "default_cache"]


class _Row(NamedTuple):
    data: np.ndarray
    ragged: bool


_Shelf = OrderedDict[tuple[str, bytes], _Row]


class MemoryCache:
    """Features at rest in the memory of this process.

    Speaks the protocol of :class:`FeatureStore`, bounded by a number of bytes: the rows that were
    not used for longest are dropped first, and rows of tokens before any vector, because vectors
    are small and as dear to compute.

    Parameters
    ----------
    max_bytes : int, default=None
        Bytes of rows kept; 0 keeps nothing, and claims still work. None follows the option
        `cache_bytes` of :func:`skpool.set_config` at every put.

    Attributes
    ----------
    nbytes : int
        Bytes of the rows that are kept now.

    Notes
    -----
    Safe for threads. A pickled, copied or cloned cache is not a second copy of the rows: copies
    and clones are the cache itself, and a pickle comes back as the process-wide cache (if it was
    that one) or empty. In a forked child the rows remain and the claims of the parent are gone.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.stores import MemoryCache
    >>> cache = MemoryCache(max_bytes=2**20)
    >>> keys = np.arange(6, dtype=np.int64).view("V16")
    >>> cache.put("5a", keys[:2], np.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> found, rows, lengths = cache.read("5a", keys)
    >>> found
    array([ True,  True, False])
    >>> rows
    array([[1., 2.],
           [3., 4.]])
    """

    def __init__(self, max_bytes: int | None = None):
        if max_bytes is not None and (isinstance(max_bytes, bool) or not max_bytes >= 0):
            raise ValueError(f"max_bytes={max_bytes!r} is not valid; give a number of at least 0.")
        self.max_bytes = max_bytes
        self._changed = Condition()
        self._claims: set[tuple[str, bytes]] = set()
        self._empty()
        watch_forks(self)

    def _empty(self) -> None:
        # Tokens first: that is the order of eviction.
        self._tokens: _Shelf = OrderedDict()
        self._vectors: _Shelf = OrderedDict()
        self._kinds: dict[str, tuple] = {}
        self._counts: dict[str, int] = {}
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are kept now."""
        return self._nbytes

    def held(self, space: str, keys: np.ndarray) -> np.ndarray:
        """Tell which samples are stored.

        Parameters
        ----------
        space : str
            Fingerprint of what the rows are.
        keys : ndarray of shape (n,), dtype V16
            Samples.

        Returns
        -------
        held : ndarray of shape (n,), bool
        """
        keys = check_keys(space, keys)
        with self._changed:
            return np.array([self._shelf_of(space, k) is not None for k in keys.tolist()], bool)

    def _shelf_of(self, space: str, key: bytes) -> _Shelf | None:
        for shelf in (self._vectors, self._tokens):
            if (space, key) in shelf:
                return shelf
        return None

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
        found = np.zeros(len(keys), dtype=bool)
        rows: list[_Row] = []
        with self._changed:
            for i, key in enumerate(keys.tolist()):
                shelf = self._shelf_of(space, key)
                if shelf is not None:
                    shelf.move_to_end((space, key))
                    rows.append(shelf[space, key])
                    found[i] = True
        return found, *_stacked(rows)

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
            else is computing it).
        """
        keys = check_keys(space, keys)
        with self._changed:
            status = self._status(space, keys)
            for i in np.flatnonzero(status == FREE):
                name = space, keys[i].item()
                status[i] = BUSY if name in self._claims else MINE
                self._claims.add(name)
        return status

    def _status(self, space: str, keys: np.ndarray) -> np.ndarray:
        status = np.full(len(keys), FREE, dtype=np.uint8)
        for i, key in enumerate(keys.tolist()):
            if self._shelf_of(space, key) is not None:
                status[i] = HELD
            elif (space, key) in self._claims:
                status[i] = BUSY
        return status

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
        with self._changed:
            self._claims.difference_update((space, key) for key in keys.tolist())
            self._changed.notify_all()

    def put(
        self, space: str, keys: np.ndarray, rows: np.ndarray, lengths: np.ndarray | None = None
    ) -> None:
        """Store rows, as copies, and end the claims on them.

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
        """
        keys = check_keys(space, keys)
        rows, lengths = check_rows(keys, rows, lengths)
        with self._changed:
            kind = kind_of(rows.dtype, rows.shape[1:])
            check_kind(space, kind, self._kinds.get(space))
            for i, key in enumerate(keys.tolist()):
                row = rows[i] if lengths is None else rows[i, : lengths[i]]
                self._insert(space, key, _Row(row, lengths is not None), kind)
                self._claims.discard((space, key))
            self._changed.notify_all()

    def _insert(self, space: str, key: bytes, row: _Row, kind: tuple) -> None:
        limit = get_config()["cache_bytes"] if self.max_bytes is None else self.max_bytes
        self._remove(space, key)
        if row.data.nbytes <= limit and limit > 0:
            shelf = self._tokens if row.data.ndim > 1 else self._vectors
            shelf[space, key] = row._replace(data=row.data.copy())
            self._nbytes += row.data.nbytes
            self._kinds[space] = kind
            self._counts[space] = self._counts.get(space, 0) + 1
        while self._nbytes > limit or (limit == 0 and (self._tokens or self._vectors)):
            self._remove(*next(iter(self._tokens or self._vectors)))

    def _remove(self, space: str, key: bytes) -> None:
        shelf = self._shelf_of(space, key)
        if shelf is None:
            return
        self._nbytes -= shelf.pop((space, key)).data.nbytes
        self._counts[space] -= 1
        if not self._counts[space]:
            del self._counts[space], self._kinds[space]

    def flush(self) -> None:
        """Do nothing: every row is visible as soon as it is put."""

    def wait(self, space: str, keys: np.ndarray, timeout: float | None = None) -> np.ndarray:
        """Wait until nobody computes any of the samples.

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
            HELD (0), FREE (3, neither stored nor claimed: claim it), or after a timeout BUSY (2).
        """
        keys = check_keys(space, keys)
        deadline = None if timeout is None else monotonic() + timeout
        with self._changed:
            while (BUSY == (status := self._status(space, keys))).any():
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
        return status

    def clear(self) -> None:
        """Drop all rows; claims remain."""
        with self._changed:
            self._empty()

    def close(self) -> None:
        """Drop all rows and claims; the cache can be used again."""
        with self._changed:
            self._empty()
            self._claims.clear()
            self._changed.notify_all()

    def __enter__(self) -> "MemoryCache":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        n = len(self._tokens) + len(self._vectors)
        return f"MemoryCache(max_bytes={self.max_bytes}) of {n} rows, {self._nbytes} bytes"

    def __sklearn_clone__(self) -> "MemoryCache":
        return self

    def __copy__(self) -> "MemoryCache":
        return self

    def __deepcopy__(self, memo: dict) -> "MemoryCache":
        return self

    def __reduce__(self):
        if self is _default:
            return default_cache, ()
        return MemoryCache, (self.max_bytes,)

    def _before_fork(self) -> None:
        self._changed.acquire()

    def _after_fork_in_parent(self) -> None:
        self._changed.release()

    def _after_fork_in_child(self) -> None:
        self._changed = Condition()
        self._claims.clear()


def _stacked(rows: list[_Row]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return rows as one array, padded and with their lengths unless they are of one shape."""
    if not rows:
        return np.empty((0,), dtype=np.float32), None
    arrays = [row.data for row in rows]
    if not any(row.ragged for row in rows) and len({a.shape for a in arrays}) == 1:
        return np.stack(arrays), None
    lengths = np.array([len(a) for a in arrays], dtype=np.int64)
    out = np.zeros((len(arrays), lengths.max(), *arrays[0].shape[1:]), dtype=arrays[0].dtype)
    for target, array in zip(out, arrays, strict=True):
        target[: len(array)] = array
    return out, lengths


_default = MemoryCache()


def default_cache() -> MemoryCache:
    """Return the one cache that this process shares among extractors without a store.

    Returns
    -------
    cache : MemoryCache
        Bounded by the option `cache_bytes` of :func:`skpool.set_config`.

    Examples
    --------
    >>> from skpool.stores import default_cache
    >>> default_cache() is default_cache()
    True
    """
    return _default
