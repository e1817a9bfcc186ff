# SPDX-License-Identifier: BSD-3-Clause
"""The one way to a stored row: read it, or compute it once, or wait for who computes it.

Tokens and pooled vectors go through the same loop. Rows are claimed in chunks just before they are
computed, so that several processes share one list of samples; nobody waits while holding rows
back, since everything computed is flushed first.
"""

import threading
from collections.abc import Callable, Iterator

import numpy as np

from skpool.stores import MINE

__all__ = ["exchange", "read_stored"]

# Claims are one transaction each: a chunk is large enough to make them rare, and small enough
# that two processes with the same list share it.
_CLAIMED_AT_ONCE = 256

_thread = threading.local()


def _claims_of_this_thread(store: object, space: str) -> set[bytes]:
    """Keys claimed further up in this thread, by an iteration that waits for its consumer.

    Waiting for them would be waiting for oneself.
    """
    if not hasattr(_thread, "claims"):
        _thread.claims = {}
    return _thread.claims.setdefault((id(store), space), set())


def read_stored(
    store, space: str, keys: np.ndarray, rows: np.ndarray, at_once: int, missing: list
) -> Iterator:
    """Yield the stored ones among the rows and append the others to `missing`."""
    for start in range(0, len(rows), at_once):
        chunk = rows[start : start + at_once]
        found, values, _ = store.read(space, keys[chunk])
        if found.any():
            yield chunk[found], values
        missing.append(chunk[~found])


def _compute(store, space: str, keys: np.ndarray, rows: np.ndarray, compute, busy: list):
    """Claim, compute and put; rows that somebody else has are appended to `busy`."""
    own = _claims_of_this_thread(store, space)
    for start in range(0, len(rows), _CLAIMED_AT_ONCE):
        chunk = rows[start : start + _CLAIMED_AT_ONCE]
        status = store.claim(space, keys[chunk])
        mine = chunk[status == MINE]
        others = chunk[status != MINE]
        nested = np.array([key.item() in own for key in keys[others]], dtype=bool)
        busy.append(others[~nested])
        claimed = {key.item() for key in keys[mine]}
        own |= claimed
        left = set(mine.tolist())
        try:
            for computed, values in compute(mine):
                store.put(space, keys[computed], values.cpu().numpy())
                left.difference_update(computed.tolist())
                yield computed, values
            if nested.any():
                yield from compute(others[nested])
        finally:
            own -= claimed
            # Unreadable samples, and what an interruption left undone.
            store.release(space, keys[sorted(left)])


def exchange(
    store,
    space: str,
    keys: np.ndarray,
    rows: np.ndarray,
    compute: Callable[[np.ndarray], Iterator],
    *,
    read_at_once: int,
) -> Iterator:
    """Yield the values of all rows, computing each missing one once.

    Parameters
    ----------
    store : FeatureStore or MemoryCache
    space : str
        Fingerprint of what is computed.
    keys : ndarray of shape (n,), V16
        Keys of all rows of the source.
    rows : ndarray of int
        The rows wanted, without two of equal key.
    compute : callable
        Yields (rows, tensor) for the rows it is given, leaving out what cannot be read.
    read_at_once : int
        Stored rows that are in memory at a time.

    Yields
    ------
    rows : ndarray of int
    values : ndarray or tensor
        ndarray when read, tensor on its device when just computed.
    """
    while len(rows):
        missing: list[np.ndarray] = []
        busy: list[np.ndarray] = []
        yield from read_stored(store, space, keys, rows, read_at_once, missing)
        try:
            yield from _compute(store, space, keys, np.concatenate(missing), compute, busy)
        finally:
            # Also when the consumer stops or is interrupted: what was computed is kept.
            store.flush()
        rows = np.concatenate(busy) if busy else rows[:0]
        if len(rows) and not (store.held(space, keys[rows])).all():
            store.wait(space, keys[rows])
