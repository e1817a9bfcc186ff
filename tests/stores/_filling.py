# SPDX-License-Identifier: BSD-3-Clause
"""Keys, rows that are a known function of their key, and the loop that fills a store with them.

Used by the tests (through the fixture `filling`) and by the processes that they start.
"""

import numpy as np

from skpool.stores import HELD, MINE

DIM = 16


def make_keys(n: int, seed: int = 0) -> np.ndarray:
    """Return n distinct random keys."""
    keys = np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)
    keys[:, :4] = np.arange(n, dtype=">u4").view(np.uint8).reshape(n, 4)
    return keys.view("V16").ravel()


def _numbers(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys).view("<u8").reshape(-1, 2) % np.uint64(65_521)


def vectors(keys: np.ndarray) -> np.ndarray:
    """Return the true (n, DIM) float32 rows of some keys."""
    low, high = _numbers(keys).T
    return (low[:, None] * np.arange(1, DIM + 1, dtype=np.uint64) + high[:, None]).astype("f4")


def true_lengths(keys: np.ndarray) -> np.ndarray:
    """Return the true number of tokens of some keys, from 1 to 5."""
    return (_numbers(keys)[:, 0] % np.uint64(5)).astype(np.int64) + 1


def tokens(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the true (n, 5, DIM) float32 ragged rows, padded with zeros, and their lengths."""
    lengths = true_lengths(keys)
    real = np.arange(5) < lengths[:, None]
    steps = np.arange(5, dtype=np.float32)[:, None]
    return (vectors(keys)[:, None, :] + steps) * real[:, :, None], lengths


def compute(keys: np.ndarray, ragged: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Return true rows and lengths of one kind or the other."""
    return tokens(keys) if ragged else (vectors(keys), None)


def is_true(keys: np.ndarray, rows: np.ndarray, lengths: np.ndarray | None, ragged: bool) -> bool:
    """Tell whether rows that a store served are the true ones."""
    if len(keys) == 0:
        return len(rows) == 0
    expected, true = compute(keys, ragged)
    if not ragged:
        return lengths is None and np.array_equal(rows, expected)
    expected = expected[:, : true.max()]
    return np.array_equal(lengths, true) and np.array_equal(rows, expected)


def fill(store, space, keys, *, ragged=False, batch=16, on_computed=None, on_put=None) -> None:
    """Make a store hold every key, computing only what nobody else holds or computes."""
    while True:
        for begin in range(0, len(keys), batch):
            part = keys[begin : begin + batch]
            mine = part[store.claim(space, part) == MINE]
            try:
                rows, lengths = compute(mine, ragged)
                if on_computed is not None and len(mine):
                    on_computed(mine)
                store.put(space, mine, rows, lengths)
            except BaseException:
                store.release(space, mine)
                raise
            if on_put is not None:
                on_put(mine)
        store.flush()
        if (store.wait(space, keys) == HELD).all() and store.read(space, keys)[0].all():
            return
