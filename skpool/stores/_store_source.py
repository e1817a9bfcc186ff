# SPDX-License-Identifier: BSD-3-Clause
"""Rows of a store as a lazy array of tokens, or at once as an array.

`StoreSource` is what a `TokenArray` reads: it holds the keys of its samples and nothing of their
rows, so opening a store of any size is quick, and a pooling streams it.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from skpool._config import get_config
from skpool.exceptions import StoreError
from skpool.stores._ids import keys_of
from skpool.stores._protocol import check_keys, grouped
from skpool.stores._row_source import Reduction, RowSource, TokenBatch, as_array, assemble
from skpool.utils import as_tensor

if TYPE_CHECKING:
    from skpool.stores._feature_store import FeatureStore

__all__ = ["StoreSource", "check_layout", "chosen", "form_of", "read_all", "store_source"]

_BATCH_BYTES = 2**23


class StoreSource(RowSource):
    """Tokens that a store holds.

    Parameters
    ----------
    store : FeatureStore
    space : str
    keys : ndarray of shape (n,), dtype V16
    shape : tuple of int
        Of one row: (d,), or (L, d) with the largest L.
    dtype : numpy dtype
        Of the stored values.
    lengths : ndarray of shape (n,) or None
        Tokens of each row, where they differ.
    n_prefix_tokens : int
    grid : tuple of 2 ints or None
    """

    # They are on the disk: a pooling checks its results rather than read all tokens before.
    in_memory = False

    def __init__(
        self,
        store: "FeatureStore",
        space: str,
        keys: np.ndarray,
        *,
        shape: tuple[int, ...],
        dtype: np.dtype,
        lengths: np.ndarray | None,
        n_prefix_tokens: int,
        grid: tuple[int, int] | None,
    ):
        self.store = store
        self.space = space
        self.keys = keys
        self.n_rows = len(keys)
        self.row_shape = shape if len(shape) == 2 else (1, *shape)
        self.dtype = dtype if dtype.kind == "f" else np.dtype(np.float64)
        self.n_prefix_tokens = n_prefix_tokens
        self.grid = grid
        self._lengths = lengths

    def mask(self, rows: np.ndarray) -> np.ndarray | None:
        """Real tokens of the rows."""
        if self._lengths is None:
            return None
        return np.arange(self.row_shape[0]) < self._lengths[rows][:, None]

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Yield the rows in order."""
        row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        step = batch_size or max(1, _BATCH_BYTES // max(1, row_bytes))
        for start in range(0, len(rows), step):
            positions = np.arange(start, min(start + step, len(rows)))
            tokens = as_tensor(self._padded(rows[positions]))
            mask = self.mask(rows[positions])
            yield TokenBatch(positions, tokens, None if mask is None else as_tensor(mask))

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        found, values, _ = self.store.read(self.space, self.keys[rows])
        if not found.all():
            raise StoreError(
                f"{(~found).sum()} rows of space {self.space!r} are no longer in the store "
                f"{self.store.path} (pruned or damaged since it was opened); compute them again, "
                "or call open() without them."
            )
        values = values.reshape(len(rows), -1, self.row_shape[1])
        values = values.astype(self.dtype, copy=False)
        short = self.row_shape[0] - values.shape[1]
        return np.pad(values, ((0, 0), (0, short), (0, 0))) if short else values

    def reduce(
        self,
        rows: np.ndarray,
        function: Reduction,
        *,
        fingerprint: str | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Turn every row into a vector."""
        batches = self.stream(rows, batch_size)
        blank = torch.zeros(1, *self.row_shape, dtype=as_tensor(np.empty(0, self.dtype)).dtype)
        result = assemble(
            ((batch.positions, function(batch.tokens, batch.mask)) for batch in batches),
            len(rows),
            lambda: function(blank, None),
        )
        return as_array(result)


def only_space(store: "FeatureStore", space: str | None) -> str:
    """Return the space that was named, or the only one."""
    with store._opened() as session:
        session.flush()
        spaces = session.index.spaces()
    if space is None and len(spaces) == 1:
        return spaces[0]
    if space in spaces:
        return space
    shown = ", ".join(map(repr, spaces[:5])) + (", ..." if len(spaces) > 5 else "")
    given = "space=None needs a store of one space" if space is None else f"space={space!r}"
    raise ValueError(f"{given}; {store.path} has {len(spaces)} spaces ({shown}): name one of them.")


def chosen(
    store: "FeatureStore", space: str | None, ids: object, keys: np.ndarray | None
) -> tuple[str, np.ndarray]:
    """Return the space and the keys that a user asks for, all of which are stored."""
    space = only_space(store, space)
    wanted = keys_of(ids, keys)
    if wanted is None:
        return space, _all_keys(store, space)
    wanted = check_keys(space, wanted)
    absent = np.flatnonzero(~store.held(space, wanted))
    if len(absent):
        name = "keys" if ids is None else "ids"
        first = wanted[absent[0]].tobytes().hex() if ids is None else list(ids)[absent[0]]
        raise ValueError(
            f"{name} names {len(absent)} samples that space {space!r} of {store.path} does not "
            f"have (the first: {first!r}); leave them out or put their rows first."
        )
    return space, wanted


def _all_keys(store: "FeatureStore", space: str) -> np.ndarray:
    """Return every key of a space in the order of writing."""
    with store._opened() as session:
        session.refresh(space)
        where, row = session.catalogue.places(space)
        parts = []
        for i, at in grouped(where):
            block = session.index.block(i)
            if block is not None:
                parts.append(block[1][row[at]])
    return np.concatenate(parts) if parts else np.empty(0, dtype="V16")


def form_of(
    store: "FeatureStore", space: str, keys: np.ndarray
) -> tuple[tuple[int, ...], np.dtype, np.ndarray | None]:
    """Return the shape of one row, the type, and lengths where they differ; rows stay unread."""
    with store._opened() as session:
        where, row = session.locate(space, keys)
        groups = grouped(where)
        sets = session.sets(space, groups)
        kind = session.catalogue.kind(space)
    shapes = {sets[i].row_shape for i, _ in groups}
    if len(shapes) == 1 and (shape := shapes.pop())[:1] != (None,):
        return shape, kind[0], None
    lengths = np.zeros(len(keys), dtype=np.int64)
    for i, at in groups:
        lengths[at] = sets[i].row_lengths(row[at])
    dtype, n_axes, tail = kind
    if n_axes < 2:
        return tail, dtype, None
    return (max(1, int(lengths.max(initial=1))), *tail), dtype, lengths


def store_source(
    store: "FeatureStore",
    space: str | None,
    ids: object,
    keys: np.ndarray | None,
    n_prefix_tokens: int | None,
    grid: tuple[int, int] | None,
) -> StoreSource:
    """See `FeatureStore.open`."""
    space, keys = chosen(store, space, ids, keys)
    shape, dtype, lengths = form_of(store, space, keys)
    if len(shape) not in (1, 2):
        raise ValueError(
            f"Rows of shape {shape} in space {space!r} are neither vectors (d,) nor tokens "
            "(L, d); use get()."
        )
    if n_prefix_tokens is None or grid is None:
        with store._opened() as session:
            note = session.side.note(space)
        grid = note.get("grid") if grid is None else grid
        n_prefix_tokens = (
            note.get("n_prefix_tokens", 0) if n_prefix_tokens is None else n_prefix_tokens
        )
    check_layout(shape, n_prefix_tokens, grid)
    return StoreSource(
        store,
        space,
        keys,
        shape=shape,
        dtype=dtype,
        lengths=lengths,
        n_prefix_tokens=n_prefix_tokens,
        grid=None if grid is None else tuple(grid),
    )


def check_layout(
    shape: tuple[int, ...], n_prefix_tokens: int, grid: tuple[int, int] | None
) -> None:
    """Refuse a number of prefix tokens or a grid that rows cannot have."""
    n_tokens = shape[0] if len(shape) == 2 else 1
    if not 0 <= n_prefix_tokens <= n_tokens:
        raise ValueError(
            f"n_prefix_tokens={n_prefix_tokens} must lie between 0 and the {n_tokens} tokens of a "
            "sample."
        )
    if grid is not None and grid[0] * grid[1] != n_tokens - n_prefix_tokens:
        raise ValueError(
            f"grid={tuple(grid)} does not hold the {n_tokens - n_prefix_tokens} tokens after "
            f"n_prefix_tokens={n_prefix_tokens}."
        )


def read_all(
    store: "FeatureStore", space: str | None, ids: object, keys: np.ndarray | None
) -> np.ndarray:
    """See `FeatureStore.get`."""
    space, keys = chosen(store, space, ids, keys)
    shape, dtype, lengths = form_of(store, space, keys)
    if lengths is not None:
        raise ValueError(
            f"The rows of space {space!r} have from {lengths.min(initial=0)} to "
            f"{lengths.max(initial=0)} tokens and fill no array; use open(), which pads and masks."
        )
    n_bytes = len(keys) * math.prod(shape) * dtype.itemsize
    limit = get_config()["max_array_bytes"]
    if n_bytes > limit:
        raise ValueError(
            f"{len(keys)} rows of shape {shape} take {n_bytes:,} bytes, more than "
            f"max_array_bytes={limit:,}; ask for fewer, use open(), or raise the limit with "
            "skpool.set_config(max_array_bytes=...)."
        )
    found, rows, _ = store.read(space, keys)
    if not found.all():
        raise StoreError(
            f"{(~found).sum()} of {len(keys)} rows of space {space!r} in {store.path} are damaged; "
            "put them again, or ask for the others."
        )
    return rows if len(keys) else np.empty((0, *shape), dtype=dtype)
