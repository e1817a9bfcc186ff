# SPDX-License-Identifier: BSD-3-Clause
"""From the names that a user has for samples to the keys of a store.

A whole number is its own key, with eight bytes that say so; text is hashed. So an id gives the same
key on every machine, and the store needs to keep no ids.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from skpool.stores._protocol import KEY_BYTES

__all__ = ["first_repeated", "id_keys", "keys_of"]

_NUMBER = hashlib.sha256(b"skpool: id that is a whole number").digest()[:8]


def _number_keys(ids: np.ndarray) -> np.ndarray:
    keys = np.empty((len(ids), 2), dtype="<i8")
    keys[:, 0] = ids
    keys[:, 1] = np.frombuffer(_NUMBER, dtype="<i8")
    return keys.view(f"V{KEY_BYTES}").ravel()


def _text_key(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return hashlib.sha256(b"skpool: id that is text " + data).digest()[:KEY_BYTES]


def id_keys(ids: Sequence[str] | Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the keys of ids: all whole numbers, or all text."""
    if isinstance(ids, (str, bytes)):
        raise TypeError(f"ids={ids!r} is one id; give a sequence of ids.")
    values = ids if isinstance(ids, list) else np.asarray(ids)
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"ids has shape {array.shape}; give one id per row, shape (n,).")
    if not len(array):
        return np.empty(0, dtype=f"V{KEY_BYTES}")
    kinds = {_kind(value) for value in values} if isinstance(values, list) else {array.dtype.kind}
    if kinds == {"O"}:
        kinds = {_kind(value) for value in array}
    if kinds <= set("iu") and (array.dtype.kind == "i" or array.max() < 2**63):
        return _number_keys(array.astype(np.int64))
    if kinds <= set("US"):
        joined = b"".join(map(_text_key, array.tolist()))
        return np.frombuffer(joined, dtype=f"V{KEY_BYTES}")
    raise TypeError(
        f"ids of kind {sorted(kinds)} are not all text or all whole numbers; give ids of one kind."
    )


def _kind(value: object) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "b"
    if isinstance(value, (int, np.integer)):
        return "i"
    return "U" if isinstance(value, (str, bytes)) else type(value).__name__


def keys_of(ids: object, keys: np.ndarray | None) -> np.ndarray | None:
    """Return the keys that a user asks for in one way or the other, or None where in neither."""
    if ids is not None and keys is not None:
        raise ValueError("ids and keys were both given; give one of them.")
    return keys if ids is None else id_keys(ids)


def first_repeated(keys: np.ndarray) -> tuple[int, int] | None:
    """Return the positions of some key that comes twice, or None."""
    halves = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    equal = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    if not equal.any():
        return None
    at = int(np.argmax(equal))
    return int(order[at]), int(order[at + 1])
