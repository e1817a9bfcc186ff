# SPDX-License-Identifier: BSD-3-Clause
"""Features that others computed, put into a store.

A bank is an array of features or tokens with, perhaps, an id per row. It is read block by block
(`_array_files.py`) and put like rows that were computed here.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from skpool.stores._array_files import ArrayFile, file_of, in_memory, open_arrays
from skpool.stores._ids import first_repeated, id_keys
from skpool.stores._protocol import KEY_BYTES, check_keys
from skpool.stores._row_source import as_array
from skpool.stores._store_source import check_layout

if TYPE_CHECKING:
    from skpool.stores._feature_store import FeatureStore

__all__ = ["add_bank"]

_READ_BYTES = 2**23


def add_bank(
    store: "FeatureStore",
    source: object,
    *,
    space: str,
    array: str | None,
    ids: object,
    keys: object,
    lengths: object,
    note: Mapping[str, Any],
) -> None:
    """See `FeatureStore.from_arrays`."""
    with _arrays(source) as arrays:
        named = {name for name in (ids, keys, lengths) if isinstance(name, str)}
        rows = _features(source, arrays, array, named)
        if rows.name == "rows" and ids is None and keys is None and "keys" in arrays:
            # Made by `export`.
            keys = "keys"
            lengths = "lengths" if lengths is None and "lengths" in arrays else lengths
        row_keys = _row_keys(arrays, rows.shape[0], space, ids, keys)
        row_lengths = _column(arrays, "lengths", lengths)
        _check_note(rows, row_lengths, note)
        _put(store, space, rows, row_keys, row_lengths)
    with store._opened() as session:
        session.side.set_note(space, note)


@contextmanager
def _arrays(source: object) -> Iterator[dict[str, ArrayFile]]:
    path = file_of(source)
    if path is not None:
        with open_arrays(path) as arrays:
            yield arrays
        return
    if isinstance(source, torch.Tensor):
        source = as_array(source.detach())
    if not isinstance(source, np.ndarray):
        raise TypeError(
            f"source is a {type(source).__name__}; give the path of a file, an array or a tensor."
        )
    yield {"source": in_memory(np.asarray(source))} if source.ndim else {}


def _features(
    source: object, arrays: dict[str, ArrayFile], array: str | None, named: set[str]
) -> ArrayFile:
    """Return the array that holds the rows."""
    if array is not None:
        return _named(arrays, "array", array)
    able = [a for a in arrays.values() if a.dtype.kind in "biuf" and len(a.shape) > 1]
    able = [a for a in able if a.name not in named]
    exported = [a for a in able if a.name == "rows"]
    if len(exported or able) == 1:
        return (exported or able)[0]
    if not able:
        for refused in arrays.values():
            if refused.dtype.hasobject:
                refused.read()
        shown = source if file_of(source) else f"an array of shape {np.shape(source)}"
        raise ValueError(
            f"source={str(shown)!r} has no numeric array of shape (n, d) or (n, L, d); it has "
            f"{_shown(arrays)}."
        )
    raise ValueError(f"source has several arrays ({_shown(arrays)}); name one by array=.")


def _shown(arrays: dict[str, ArrayFile]) -> str:
    return ", ".join(f"{a.name!r} {a.shape}" for a in list(arrays.values())[:10]) or "no array"


def _named(arrays: dict[str, ArrayFile], argument: str, name: str) -> ArrayFile:
    if name not in arrays:
        raise ValueError(
            f"{argument}={name!r} names no array of the source, which has {_shown(arrays)}."
        )
    return arrays[name]


def _column(arrays: dict[str, ArrayFile], argument: str, value: object) -> Any:
    """Return values that were given, or those of the array that was named."""
    if isinstance(value, str):
        return _named(arrays, argument, value).read()
    return as_array(value) if isinstance(value, torch.Tensor) else value


def _row_keys(
    arrays: dict[str, ArrayFile], n_rows: int, space: str, ids: object, keys: object
) -> np.ndarray:
    """Return one key per row, from ids, keys or row numbers."""
    if ids is not None and keys is not None:
        raise ValueError("ids and keys were both given; give one of them.")
    name = "ids" if keys is None else "keys"
    if keys is not None:
        found = _as_keys(_column(arrays, name, keys))
    else:
        found = id_keys(np.arange(n_rows) if ids is None else _column(arrays, name, ids))
    found = check_keys(space, found)
    if len(found) != n_rows:
        raise ValueError(f"{name} has {len(found)} entries for {n_rows} rows; give one per row.")
    if repeated := first_repeated(found):
        raise ValueError(
            f"{name} has the same entry for rows {repeated[0]} and {repeated[1]}; make them "
            "distinct."
        )
    return found


def _as_keys(keys: object) -> object:
    if isinstance(keys, np.ndarray) and keys.dtype == np.uint8 and keys.shape[1:] == (KEY_BYTES,):
        return np.ascontiguousarray(keys).view(f"V{KEY_BYTES}").ravel()
    return keys


def _check_note(rows: ArrayFile, lengths: object, note: Mapping[str, Any]) -> None:
    """Refuse what the rows cannot be before any is put."""
    if rows.dtype.kind not in "biuf" or len(rows.shape) < 2:
        raise ValueError(
            f"array={rows.name!r} has dtype {rows.dtype} and shape {rows.shape}; features are "
            "numbers of shape (n, d) or (n, L, d)."
        )
    if lengths is not None and note["grid"] is not None:
        raise ValueError(
            f"grid={note['grid']} needs rows of one length; leave out grid or lengths."
        )
    check_layout(rows.shape[1:], note["n_prefix_tokens"], note["grid"])


def _put(
    store: "FeatureStore",
    space: str,
    rows: ArrayFile,
    keys: np.ndarray,
    lengths: np.ndarray | None,
) -> None:
    row_bytes = rows.dtype.itemsize * math.prod(rows.shape[1:])
    begin = 0
    for block in rows.blocks(max(1, _READ_BYTES // max(1, row_bytes))):
        part = slice(begin, begin + len(block))
        store.put(space, keys[part], block, None if lengths is None else lengths[part])
        begin = part.stop
    store.flush()
