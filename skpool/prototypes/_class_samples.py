# SPDX-License-Identifier: BSD-3-Clause
"""A bounded sample of the rows of a class that does not depend on their order.

Every row has a key, a number drawn from its values as if at random, and a sample keeps the rows
with the smallest keys. So any order and partition of the rows keeps the same ones, two samples
merge by putting them together, and a row that is kept is found again by its key.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["ClassSample", "join_samples", "remove_rows", "row_keys"]

_BLOCK_ROWS = 1024


class ClassSample(NamedTuple):
    """Rows of one class, sorted by their keys; never changed once built."""

    rows: np.ndarray  # (m, d)
    keys: np.ndarray  # (m,), ascending
    n_seen: int

    @property
    def is_complete(self) -> bool:
        """Whether every row that was seen is kept."""
        return self.n_seen == len(self.rows)


def row_keys(rows: np.ndarray, seed: int) -> np.ndarray:
    """Return a number for each row that follows from its values, and looks random.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Equal rows have equal keys in any float type.
    seed : int
        Another seed gives other keys.

    Returns
    -------
    keys : ndarray of shape (n,) of uint64
        Different rows have different keys, up to a chance of about 1e-19 per pair.
    """
    drawn = np.random.default_rng(seed).integers(2**63, size=rows.shape[1], dtype=np.uint64)
    factors = (drawn << np.uint64(1)) | np.uint64(1)
    keys = np.empty(len(rows), dtype=np.uint64)
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        # Widening is exact, and adding 0 makes -0 equal to 0.
        words = (rows[part].astype(np.float64, order="C") + 0.0).view(np.uint64)
        # Short numbers end in zeros, which products would keep.
        words ^= words >> np.uint64(32)
        keys[part] = (words * factors).sum(axis=1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys ^= keys >> np.uint64(shift)
        keys *= np.uint64(factor)
    return keys ^ (keys >> np.uint64(31))


def join_samples(one: ClassSample | None, other: ClassSample, *, size: int) -> ClassSample:
    """Return a sample of at most `size` of the rows behind two samples of one seed."""
    rows, keys, n_seen = other
    if one is not None:
        rows = np.concatenate([one.rows, rows])
        keys = np.concatenate([one.keys, keys])
        n_seen += one.n_seen
    kept = np.argsort(keys, kind="stable")[:size]
    return ClassSample(rows[kept], keys[kept], n_seen)


def remove_rows(sample: ClassSample, keys: np.ndarray) -> ClassSample:
    """Return a complete sample without the rows of these keys.

    Parameters
    ----------
    sample : ClassSample
    keys : ndarray of shape (n,)
        A key takes away as many rows as it is given times.

    Returns
    -------
    sample : ClassSample

    Raises
    ------
    LookupError
        A key is not in the sample, or not as often; its argument is the number of such keys.
    """
    keys = np.sort(keys)
    # Equal keys take the rows that hold them one after the other.
    repeats = np.arange(len(keys)) - np.searchsorted(keys, keys)
    at = np.searchsorted(sample.keys, keys) + repeats
    found = np.take(sample.keys, at, mode="clip") == keys
    found &= at < len(sample.keys)
    if not found.all():
        raise LookupError(int((~found).sum()))
    return ClassSample(
        np.delete(sample.rows, at, axis=0), np.delete(sample.keys, at), sample.n_seen - len(at)
    )
