# SPDX-License-Identifier: BSD-3-Clause
"""What the two stores have in common: statuses, argument checks, and gathering of rows.

Extraction asks a store which samples of a space it has (`held`, `read`), announces what it is
about to compute (`claim`), and hands in what it computed (`put`). `FeatureStore` keeps the rows
on disk for every process, `MemoryCache` in the memory of this one; both speak in the terms
defined here, so that a caller cannot tell them apart. A step of extraction is::

    status = store.claim(space, keys)
    mine = keys[status == MINE]
    try:
        rows = compute(mine)
        store.put(space, mine, rows)
    except BaseException:
        store.release(space, mine)
        raise
    store.wait(space, keys[status == BUSY])
    found, others, lengths = store.read(space, keys[status != MINE])

and again for what was not found (its block was damaged, or who computed it died). The caller uses
the rows that it computed itself: a small cache may have dropped them before they are read.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = [
    "BUSY",
    "FREE",
    "HELD",
    "MINE",
    "Groups",
    "RowSet",
    "check_keys",
    "check_rows",
    "gather",
    "grouped",
]

Groups = list[tuple[int, np.ndarray]]

HELD = 0
MINE = 1
BUSY = 2
FREE = 3

KEY_BYTES = 16
_STEP_BYTES = 2**18
_KEY_DTYPE = np.dtype(f"V{KEY_BYTES}")


def check_keys(space: str, keys: np.ndarray) -> np.ndarray:
    """Return contiguous keys, or say what is wrong with the space or the keys."""
    if not isinstance(space, str) or not space:
        raise TypeError(f"space={space!r} is not valid; give the fingerprint as non-empty text.")
    if not isinstance(keys, np.ndarray) or keys.dtype != _KEY_DTYPE or keys.ndim != 1:
        given = (
            f"{keys.dtype} {keys.shape}" if isinstance(keys, np.ndarray) else type(keys).__name__
        )
        raise TypeError(f"keys must be an array of dtype V16 and shape (n,); got {given}.")
    return np.ascontiguousarray(keys)


def check_rows(
    keys: np.ndarray, rows: np.ndarray, lengths: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return rows in native byte order and lengths as int64, or say what does not fit."""
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "biuf":
        given = rows.dtype if isinstance(rows, np.ndarray) else type(rows).__name__
        raise TypeError(f"rows must be a numeric ndarray; got {given}.")
    if rows.ndim == 0 or len(rows) != len(keys):
        raise ValueError(
            f"rows of shape {rows.shape} do not fit {len(keys)} keys; give one row per key."
        )
    rows = rows.astype(rows.dtype.newbyteorder("="), copy=False)
    if lengths is None:
        return rows, None
    lengths = np.asarray(lengths)
    if rows.ndim < 3 or lengths.shape != (len(keys),) or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"lengths of shape {lengths.shape} and dtype {lengths.dtype} do not fit rows of shape "
            f"{rows.shape}; give one whole number per row, and rows of shape (n, L, d)."
        )
    if len(lengths) and not 0 <= lengths.min() <= lengths.max() <= rows.shape[1]:
        raise ValueError(
            f"lengths between {lengths.min()} and {lengths.max()} do not fit rows of "
            f"{rows.shape[1]} entries; give lengths from 0 to {rows.shape[1]}."
        )
    return rows, lengths.astype(np.int64)


def kind_of(dtype: np.dtype, row_shape: tuple[int, ...]) -> tuple[np.dtype, int, tuple[int, ...]]:
    """Return what all rows of one space must share: all but the length of 2-D rows."""
    tail = row_shape if len(row_shape) < 2 else row_shape[1:]
    return dtype, len(row_shape), tail


def check_kind(space: str, kind: tuple, known: tuple | None) -> None:
    """Refuse rows that could not be read together with those of the same space."""
    if known is not None and kind != known:
        raise ValueError(
            f"Rows of dtype {kind[0]}, {kind[1]} axes and shape (..., {kind[2]}) cannot join space "
            f"{space!r}, whose rows are {known[0]}, {known[1]} axes, (..., {known[2]}); put other "
            "rows under another space."
        )


def lengths_of(lengths: np.ndarray | None, row_shape: tuple, rows: np.ndarray) -> np.ndarray:
    """Return the entries of some rows of a set, ragged (with `lengths`) or of one shape."""
    return np.full(len(rows), row_shape[0]) if lengths is None else lengths[rows]


@dataclass(frozen=True)
class RowSet:
    """Rows as they lie in a block or a buffer.

    Parameters
    ----------
    data : ndarray of shape (n, \\*row_shape), or (n_entries, \\*tail) with lengths
        Fixed-shape rows stacked, or ragged rows one after the other.
    lengths : ndarray of shape (n,) or None
        Entries of each ragged row.
    """

    data: np.ndarray
    lengths: np.ndarray | None

    @classmethod
    def packed(cls, rows: np.ndarray, lengths: np.ndarray | None) -> "RowSet":
        """Copy rows, leaving out the padding of ragged ones."""
        if lengths is None:
            return cls(np.array(rows, order="C"), None)
        return cls(rows[np.arange(rows.shape[1]) < lengths[:, None]], lengths.copy())

    @classmethod
    def joined(cls, sets: "list[RowSet]") -> "RowSet":
        """Concatenate sets of one form."""
        data = np.concatenate([s.data for s in sets])
        if sets[0].lengths is None:
            return cls(data, None)
        return cls(data, np.concatenate([s.lengths for s in sets]))

    @property
    def row_shape(self) -> tuple[int | None, ...]:
        """Shape of one row; the first axis of ragged rows is None."""
        shape = self.data.shape[1:]
        return shape if self.lengths is None else (None, *shape)

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return self.data.dtype

    @property
    def kind(self) -> tuple:
        """See `kind_of`."""
        return kind_of(self.data.dtype, self.row_shape)

    @cached_property
    def starts(self) -> np.ndarray:
        """First entry of each ragged row."""
        return np.cumsum(self.lengths) - self.lengths

    def take(self, rows: np.ndarray) -> "RowSet":
        """Return a copy of some rows."""
        if self.lengths is None:
            return RowSet(self.data[rows], None)
        lengths = self.lengths[rows]
        return RowSet(self.data[_entries(self.starts[rows], lengths)], lengths)

    def row_lengths(self, rows: np.ndarray) -> np.ndarray:
        """Entries of some rows, ragged or not."""
        return lengths_of(self.lengths, self.row_shape, rows)

    def ragged(self) -> "RowSet":
        """Return the same rows, without a copy, as ragged ones."""
        if self.lengths is not None:
            return self
        n, length, *tail = self.data.shape
        lengths = np.full(n, length, dtype=np.int64)
        return RowSet(self.data.reshape(n * length, *tail), lengths)


def _ramp(lengths: np.ndarray) -> np.ndarray:
    """Return 0..l-1 for every length l, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _entries(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the indices of the entries of rows that start at `starts`."""
    return np.repeat(starts, lengths) + _ramp(lengths)


def grouped(where: np.ndarray) -> Groups:
    """Return every number that occurs, with its positions in their order."""
    if not len(where):
        return []
    low, high = where.min(), where.max()
    # Numbers of two bytes are sorted by counting.
    if high - low < 2**15:
        small = (where - low).astype(np.int16)
    else:
        small = where
    order = np.argsort(small, kind="stable")
    in_order = where[order]
    begins = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
    ids = in_order[np.append(0, begins)].tolist()
    return list(zip(ids, np.split(order, begins), strict=True))


def gather(
    sets: Mapping[int, RowSet], load: Callable[[int], RowSet], groups: Groups, row: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Copy rows that lie in several sets into one array.

    Parameters
    ----------
    sets : mapping of int to RowSet, or to what has its `row_shape`, `dtype` and `row_lengths`
        What is known of the sets named by `where` without opening them.
    load : callable
        Opens one set; only one is needed at a time.
    groups : list of (int, ndarray)
        Number of every set, and which of the wanted rows it has (see `grouped`).
    row : ndarray of shape (n,)
        Position of each wanted row in its set.

    Returns
    -------
    rows : ndarray of shape (n, \\*row_shape), or (n, max length, \\*tail)
        Ragged rows, and rows of unequal length, are padded with zeros.
    lengths : ndarray of shape (n,) or None
        None if all rows are of one fixed shape.
    """
    if not groups:
        return np.empty((0,), dtype=np.float32), None
    shapes = {sets[i].row_shape for i, _ in groups}
    shape, dtype = sets[groups[0][0]].row_shape, sets[groups[0][0]].dtype
    if len(shapes) > 1 or shape[:1] == (None,):
        return _gather_ragged(sets, load, groups, row)
    if len(groups) == 1:
        return load(groups[0][0]).data[row], None
    out = np.empty((len(row), *shape), dtype=dtype)
    for i, at in groups:
        _scatter(load(i).data, row[at], out, at)
    return out, None


def _scatter(data: np.ndarray, row: np.ndarray, out: np.ndarray, at: np.ndarray) -> None:
    """Do ``out[at] = data[row]``, in steps whose intermediate copy stays in the CPU's cache."""
    row_bytes = max(1, out.itemsize * math.prod(out.shape[1:]))
    n_step = max(1, _STEP_BYTES // row_bytes)
    step = np.empty((min(n_step, len(at)), *out.shape[1:]), dtype=out.dtype)
    for begin in range(0, len(at), n_step):
        part = slice(begin, begin + n_step)
        # Any mode but "raise" writes to `out` without a buffer in between.
        out[at[part]] = data.take(row[part], axis=0, out=step[: len(at[part])], mode="clip")


def _gather_ragged(
    sets: Mapping[int, RowSet],
    load: Callable[[int], RowSet],
    groups: Groups,
    row: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.empty(len(row), dtype=np.int64)
    for i, at in groups:
        lengths[at] = sets[i].row_lengths(row[at])
    first = sets[groups[0][0]]
    out = np.zeros((len(row), lengths.max(), *first.row_shape[1:]), dtype=first.dtype)
    for i, at in groups:
        source = load(i).ragged()
        entries = _entries(source.starts[row[at]], lengths[at])
        out[np.repeat(at, lengths[at]), _ramp(lengths[at])] = source.data[entries]
    return out, lengths
