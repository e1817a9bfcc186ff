# SPDX-License-Identifier: BSD-3-Clause
"""Rows of a store in one file for other programs, written block by block.

Every writer takes the shapes and types first and then the rows in order. A file gets its name when
it is complete and synced, so an interrupted export leaves nothing that could be taken for one.
"""

import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skpool.exceptions import StoreError
from skpool.stores._blocks import sync_directory
from skpool.stores._protocol import KEY_BYTES
from skpool.stores._store_source import chosen, form_of
from skpool.utils import import_optional

if TYPE_CHECKING:
    from skpool.stores._feature_store import FeatureStore

__all__ = ["export_space"]

_BLOCK_BYTES = 2**23

_SAFETENSORS_TYPES = {
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
}


def export_space(
    store: "FeatureStore",
    path: str | os.PathLike[str],
    space: str | None,
    ids: Sequence[str] | Sequence[int] | None,
    keys: np.ndarray | None,
    *,
    overwrite: bool,
) -> None:
    """See `FeatureStore.export`."""
    path = Path(path).expanduser().absolute()
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise ValueError(
            f"path={str(path)!r} has no known ending; give one of {', '.join(_WRITERS)}."
        )
    if path.exists() and not overwrite:
        raise ValueError(f"path={str(path)!r} exists; give another one or overwrite=True.")
    space, keys = chosen(store, space, ids, keys)
    shape, dtype, lengths = form_of(store, space, keys)
    named = keys.view(np.uint8).reshape(len(keys), KEY_BYTES)
    small = {"keys": named} | ({} if lengths is None else {"lengths": lengths})
    rows = _rows(store, space, keys, shape)
    _write_whole(path, lambda file: write(file, (len(keys), *shape), dtype, rows, small))


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Give a file its name when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, StoreError):
            raise StoreError(
                f"path={str(path)!r} cannot be written ({error.strerror or error}); give a path in "
                "a directory with free space."
            ) from error
        raise


def _rows(
    store: "FeatureStore", space: str, keys: np.ndarray, shape: tuple[int, ...]
) -> Iterator[np.ndarray]:
    """Yield the rows in order, padded to one shape."""
    row_bytes = 8 * max(1, int(np.prod(shape)))
    step = max(1, _BLOCK_BYTES // row_bytes)
    for begin in range(0, len(keys), step):
        part = keys[begin : begin + step]
        found, rows, _ = store.read(space, part)
        if not found.all():
            raise StoreError(
                f"{(~found).sum()} rows of space {space!r} were pruned or are damaged; call "
                "export() again for those that are left."
            )
        if rows.shape[1:] != shape:
            rows = np.pad(rows, ((0, 0), (0, shape[0] - rows.shape[1]), (0, 0)))
        yield np.ascontiguousarray(rows)


def _write_npz(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    rows: Iterator[np.ndarray],
    small: dict[str, np.ndarray],
) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("rows.npy", "w", force_zip64=True) as file:
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in rows:
                file.write(block.tobytes())


def _write_safetensors(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    rows: Iterator[np.ndarray],
    small: dict[str, np.ndarray],
) -> None:
    # The library's writer wants everything in memory; the format is a header and the values.
    forms = {name: (array.dtype, array.shape) for name, array in small.items()}
    forms["rows"] = dtype, shape
    header, end = {}, 0
    for name, (kind, form) in forms.items():
        begin, end = end, end + kind.itemsize * int(np.prod(form, dtype=np.int64))
        header[name] = {
            "dtype": _SAFETENSORS_TYPES[kind.name],
            "shape": list(form),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in small.values():
            file.write(array.tobytes())
        for block in rows:
            file.write(block.tobytes())


def _write_hdf5(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    rows: Iterator[np.ndarray],
    small: dict[str, np.ndarray],
) -> None:
    h5py = import_optional("h5py", extra="hdf5", purpose="exporting to HDF5")
    with h5py.File(path, "w") as file:
        for name, array in small.items():
            file[name] = array
        dataset = file.create_dataset("rows", shape, dtype)
        begin = 0
        for block in rows:
            dataset[begin : begin + len(block)] = block
            begin += len(block)


_WRITERS = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".h5": _write_hdf5,
    ".hdf5": _write_hdf5,
}
