# SPDX-License-Identifier: BSD-3-Clause
"""Features kept on disk, for every process that wants them: each sample is computed once.

The directory holds `index.sqlite` (which block has which samples, who computes what), `blocks/`
(plain `.npy` files, written once) and `owners/` (one locked file per open store). What makes it
safe is told where it is done: order of writes in `_blocks.py`, checksums in `_checksums.py`,
transactions in `_index.py`, liveness in `_owner.py`, forks in `_forking.py`. Work on the whole
store is in `_maintenance.py` and `_merge.py`, exchange with other files in `_banks.py` and
`_export.py`.
"""

import os
from collections.abc import Sequence
from time import monotonic
from typing import Any

import numpy as np

from skpool.stores._banks import add_bank
from skpool.stores._blocks import DamagedBlock
from skpool.stores._export import export_space
from skpool.stores._handle import BLOCK_BYTES, BLOCK_SECONDS, StoreHandle
from skpool.stores._index import BlockInfo
from skpool.stores._maintenance import describe, drop_unused, prune, verify
from skpool.stores._merge import merge
from skpool.stores._protocol import BUSY, check_keys, check_rows, gather, grouped
from skpool.stores._session import Session
from skpool.stores._store_source import read_all, store_source
from skpool.stores._token_array import TokenArray
from skpool.utils import ArrayLike

__all__ = ["FeatureStore"]

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.2


class FeatureStore(StoreHandle):
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
    max_bytes : int, default=None
        Whenever this object has written blocks, those that were not used for longest are dropped
        until the blocks take at most so many bytes (see `prune`); None drops nothing.

    See Also
    --------
    MemoryCache : The same protocol in the memory of one process.

    Notes
    -----
    - What `flush` has returned from survives kill -9 and a power cut: the block is synced before
      the index names it, and that transaction is synced before `flush` returns.
    - Every piece of a block (about one row, at least 4 KiB) is compared with its checksum before
      this process first serves a row from it, at 1 to 3 GB/s. A damaged, missing or replaced
      block is never served: one `DamagedBlockWarning` names the file, it is dropped, and its
      samples are recomputed.
    - Claims end with the process that made them, however it ends. They belong to the store
      object, so two threads that share it never compute the same sample.
    - A pickle carries the path and the settings; it is opened at first use, once per process and
      path. Copies and clones are the store itself. After `close`, and in a forked child, the
      next use opens it anew.
    - A directory that cannot be written can still be read.
    - Nothing in the directory can run code.
    - Finding n of N keys takes O(n log N), without a loop in Python; a million keys take 24 MB
      of memory, and a tenth of a second when they are first asked for.

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
        block_bytes: int = BLOCK_BYTES,
        block_seconds: float = BLOCK_SECONDS,
        max_bytes: int | None = None,
    ):
        if isinstance(block_bytes, bool) or not isinstance(block_bytes, int) or block_bytes < 1:
            raise ValueError(
                f"block_bytes={block_bytes!r} is not valid; give a whole number of at least 1."
            )
        if not block_seconds >= 0:
            raise ValueError(
                f"block_seconds={block_seconds!r} is not valid; give a number of at least 0."
            )
        self._set_up(path, block_bytes, block_seconds, _checked_limit(max_bytes))
        with self._opened():
            pass

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
                found = where != -1
                row, groups = row[found], grouped(where[found])
                sets = session.sets(space, groups)
            # Checking and copying take long, and other threads need not wait for them.
            damaged = session.check(sets, groups, row)
            if not damaged:
                load = _Loader(session, sets)
                try:
                    return found, *gather(sets, load, groups, row)
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
            written = session.put(space, keys, rows, lengths)
            written |= session.flush(older_than=self.block_seconds)
            self._changed.notify_all()
            self._keep_within(session, written)

    def flush(self) -> None:
        """Write all rows that wait: afterwards they are durable and visible to others."""
        with self._opened() as session:
            self._keep_within(session, session.flush())

    def _keep_within(self, session: Session, written: bool) -> None:
        """Prune after blocks were written, if there is a limit."""
        if written and self.max_bytes is not None:
            drop_unused(session, self.max_bytes)

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
                self._keep_within(session, session.flush(older_than=self.block_seconds))
                status[busy] = session.status(space, keys[busy])
                left = pause if deadline is None else min(pause, deadline - monotonic())
                if left <= 0 or not (status == BUSY).any():
                    return status
                self._changed.wait(left)
            pause = min(1.5 * pause, _LONGEST_PAUSE)

    # The store as a whole.

    def info(self) -> dict[str, Any]:
        """Tell what is on the disk.

        Returns
        -------
        info : dict
            `format`, `n_blocks`, `n_bytes` of the blocks, `n_rows` (a dict from space to the
            number of stored rows), `spaces` (a dict from space to a dict of `n_rows`,
            `n_duplicates` (rows that were put again, which `prune` removes), `n_blocks`,
            `n_bytes`, `dtype` and `row_shape` (None for a length that differs)),
            `index_bytes` on the disk, and `memory_bytes` that the index takes in this process.

        Notes
        -----
        Every key is read to count the duplicates: a tenth of a second per million rows.
        """
        with self._opened() as session:
            return describe(session)

    def verify(self) -> list[str]:
        """Compare every block and every entry of the index with its checksum; drop damaged ones.

        Returns
        -------
        damaged : list of str
            Files of the damaged blocks, and the index if something in it had to be repaired;
            each was named by a warning too.
        """
        return verify(self)

    def prune(self, max_bytes: int | None = None) -> dict[str, Any]:
        """Make the store smaller: first what nobody can read, then what was not used for longest.

        Parameters
        ----------
        max_bytes : int, default=None
            The blocks may take so many bytes; None takes the store's own `max_bytes`, and where
            that is None too, only rows that were put again are removed.

        Returns
        -------
        dropped : dict
            `n_blocks`, `n_bytes` (by how much the blocks became smaller), and `n_rows`, a dict
            from space to the number of rows in blocks that were dropped because of their age.

        Notes
        -----
        A block is used when a row of it is written or read. The index learns of reads at most
        once a minute per process, so among blocks of one minute the order is that of writing.
        Blocks of which half or more was put again are copied without those rows. Other processes
        may read and write meanwhile: rows that they have found are served or, once the block is
        gone, reported as not stored, and recomputed.
        """
        return prune(self, _checked_limit(max_bytes))

    def merge(
        self, other: "str | os.PathLike[str] | FeatureStore", *, link: bool = False
    ) -> dict[str, Any]:
        """Take over the rows of another store that this one lacks.

        Parameters
        ----------
        other : str, path-like or FeatureStore
            A store, for example that of another machine.
        link : bool, default=False
            Whether blocks become hard links where the system can make them, and take no space
            twice; damage to such a file is damage to both stores.

        Returns
        -------
        taken : dict
            `n_blocks`, `n_bytes`, and `n_rows`, a dict from space to the number of rows.

        Notes
        -----
        Blocks are copied as they are and checked on the way; damaged ones are left out with the
        usual warning. Merging again takes nothing, and the order of merges does not matter: rows
        that both stores have under one key are equal by the meaning of keys, and stay.
        """
        return merge(self, other, link=link)

    # Rows by the names that a user has for them.

    def open(
        self,
        space: str | None = None,
        *,
        ids: Sequence[str] | Sequence[int] | None = None,
        keys: np.ndarray | None = None,
        n_prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> TokenArray:
        """Return rows as a lazy array of tokens.

        Parameters
        ----------
        space : str, default=None
            Which features; None takes the only space of the store.
        ids : sequence of str or int, default=None
            Samples in the wanted order, by the ids (or row numbers) that `from_arrays` was given.
        keys : ndarray of shape (n,), dtype V16, default=None
            Samples by their keys. Without ids and keys: all, in the order of writing.
        n_prefix_tokens : int, default=None
            Leading tokens that are no patches; None takes what `from_arrays` was told.
        grid : tuple of 2 ints, default=None
            Rows and columns of the patches; None takes what `from_arrays` was told.

        Returns
        -------
        tokens : TokenArray
            (n_samples, n_tokens, n_features); vectors count as one token, and rows of unequal
            length are padded, with a mask.
        """
        source = store_source(self, space, ids, keys, n_prefix_tokens, grid)
        return TokenArray(source)

    def get(
        self,
        space: str | None = None,
        *,
        ids: Sequence[str] | Sequence[int] | None = None,
        keys: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return rows as an array.

        Parameters
        ----------
        space : str, default=None
            Which features; None takes the only space of the store.
        ids : sequence of str or int, default=None
            Samples in the wanted order, by the ids (or row numbers) that `from_arrays` was given.
        keys : ndarray of shape (n,), dtype V16, default=None
            Samples by their keys. Without ids and keys: all, in the order of writing.

        Returns
        -------
        rows : ndarray of shape (n_samples, \\*row_shape)
            Of the type that was stored.
        """
        return read_all(self, space, ids, keys)

    @classmethod
    def from_arrays(
        cls,
        path: "str | os.PathLike[str] | FeatureStore",
        source: object,
        *,
        space: str = "bank",
        array: str | None = None,
        ids: str | Sequence[str] | Sequence[int] | None = None,
        keys: str | np.ndarray | None = None,
        lengths: str | ArrayLike | None = None,
        n_prefix_tokens: int = 0,
        grid: tuple[int, int] | None = None,
    ) -> "FeatureStore":
        """Put features that others computed into a store, block by block.

        Parameters
        ----------
        path : str, path-like or FeatureStore
            The store; rows are added to what it has.
        source : path, array or tensor
            Features (n, d) or tokens (n, L, d): a file `.npy`, `.npz`, `.safetensors`, `.h5` or
            `.hdf5`, or an array in memory.
        space : str, default="bank"
            Name under which the rows are kept.
        array : str, default=None
            Which array of the file; None takes the only one that can be features.
        ids : str or sequence of str or int, default=None
            One id per row, or the array of the file that has them; None numbers the rows from 0.
        keys : str or ndarray of shape (n,), dtype V16, default=None
            Sample keys in place of ids, or the array of the file that has them (n, 16), uint8.
            A file made by `export` is recognised without.
        lengths : str or ndarray of shape (n,), default=None
            Tokens of each row that count, for padded tokens (n, L, d).
        n_prefix_tokens : int, default=0
            Leading tokens that are no patches, which `open` then knows.
        grid : tuple of 2 ints, default=None
            Rows and columns of the patches, which `open` then knows.

        Returns
        -------
        store : FeatureStore
            With all rows on the disk.

        Notes
        -----
        Nothing is ever unpickled. A file is read in blocks and never held in memory as a whole,
        except an array in Fortran order inside an `.npz`. bfloat16 becomes float32. HDF5 needs
        `pip install 'skpool[hdf5]'`. Ids are kept as keys only, so a store cannot list them.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from skpool.stores import FeatureStore
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     features = np.arange(6.0).reshape(3, 2)
        ...     store = FeatureStore.from_arrays(folder, features, ids=["a", "b", "c"])
        ...     store.get(ids=["c", "a"])
        ...     store.close()
        array([[4., 5.],
               [0., 1.]])
        """
        store = path if isinstance(path, cls) else cls(path)
        add_bank(
            store,
            source,
            space=space,
            array=array,
            ids=ids,
            keys=keys,
            lengths=lengths,
            note={"n_prefix_tokens": n_prefix_tokens, "grid": grid},
        )
        return store

    def export(
        self,
        path: str | os.PathLike[str],
        space: str | None = None,
        *,
        ids: Sequence[str] | Sequence[int] | None = None,
        keys: np.ndarray | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write rows to one file that other programs read.

        Parameters
        ----------
        path : str or path-like
            A file that ends in `.npz`, `.safetensors`, `.h5` or `.hdf5`.
        space : str, default=None
            Which features; None takes the only space of the store.
        ids : sequence of str or int, default=None
            Samples in the wanted order, by the ids (or row numbers) that `from_arrays` was given.
        keys : ndarray of shape (n,), dtype V16, default=None
            Samples by their keys. Without ids and keys: all, in the order of writing.
        overwrite : bool, default=False
            Whether a file that exists is replaced.

        Notes
        -----
        The file has the arrays `rows`, `keys` (n, 16) and, for rows of unequal length, which are
        padded with zeros, `lengths`. It is written block by block, and gets its name when it is
        complete.
        """
        export_space(self, path, space, ids, keys, overwrite=overwrite)


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


def _checked_limit(max_bytes: int | None) -> int | None:
    if max_bytes is None or (
        isinstance(max_bytes, int) and not isinstance(max_bytes, bool) and max_bytes >= 0
    ):
        return max_bytes
    raise ValueError(
        f"max_bytes={max_bytes!r} is not valid; give a whole number of at least 0, or None."
    )
