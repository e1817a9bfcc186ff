# SPDX-License-Identifier: BSD-3-Clause
"""Files of arrays that others made, read block by block and without ever unpickling.

`open_arrays` gives the arrays of a file by name as `ArrayFile` objects: a shape, a type, and
`blocks()`, which yields rows in order. Nothing here calls a loader that can run code: `.npy`
headers are parsed by numpy without pickle, `.npz` members are read as `.npy` streams,
safetensors have no code, and HDF5 objects that are not plain numbers or text, or that lie in other
files, are refused.
"""

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skpool.utils import import_optional

__all__ = ["SUFFIXES", "ArrayFile", "file_of", "in_memory", "open_arrays"]

_READ_BYTES = 2**20

SUFFIXES = (".npy", ".npz", ".safetensors", ".h5", ".hdf5")


@dataclass(frozen=True)
class ArrayFile:
    """One array of a file.

    Parameters
    ----------
    name : str
    shape : tuple of int
    dtype : numpy dtype
        Of what `blocks` yields.
    blocks : callable
        ``blocks(n)`` yields arrays of n rows, and one of the rest, in order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[int], Iterator[np.ndarray]]

    def read(self) -> np.ndarray:
        """Return the whole array."""
        parts = list(self.blocks(max(1, self.shape[0])))
        return np.concatenate(parts) if parts else np.empty(self.shape, dtype=self.dtype)


def _sliced(name: str, array: Any, convert: Callable | None = None) -> ArrayFile:
    """Wrap what has a shape and is read by slices."""

    def blocks(n: int) -> Iterator[np.ndarray]:
        for begin in range(0, len(array), n):
            part = array[begin : begin + n]
            yield part if convert is None else convert(part)

    dtype = array.dtype if convert is None else convert(array[:0]).dtype
    return ArrayFile(name, tuple(array.shape), dtype, blocks)


def in_memory(array: np.ndarray) -> ArrayFile:
    """Wrap an array that is there already."""
    return _sliced("source", array)


def _refused(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"source={str(path)!r} cannot be read ({reason}); give a file of plain numeric arrays "
        "(.npy, .npz, .safetensors, .h5), saved without pickled objects."
    )


@contextmanager
def open_arrays(path: Path) -> Iterator[dict[str, ArrayFile]]:
    """Give the arrays of a file by name, as long as the block lasts."""
    openers = {
        ".npy": _open_npy,
        ".npz": _open_npz,
        ".safetensors": _open_safetensors,
        ".h5": _open_hdf5,
        ".hdf5": _open_hdf5,
    }
    opener = openers.get(path.suffix.lower())
    if opener is None:
        raise ValueError(
            f"source={str(path)!r} has no known ending; give a file that ends in "
            f"{', '.join(SUFFIXES)}, or an array."
        )
    if not path.is_file():
        raise ValueError(f"source={str(path)!r} is no file; give the path of one.")
    with opener(path) as arrays:
        yield arrays


@contextmanager
def _open_npy(path: Path) -> Iterator[dict[str, ArrayFile]]:
    try:
        # Unlike np.load this accepts nothing but .npy, and never a pickle.
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise _refused(path, str(error).rstrip(".")) from error
    yield {} if array.ndim == 0 else {path.stem: _sliced(path.stem, array, np.asarray)}


@contextmanager
def _open_npz(path: Path) -> Iterator[dict[str, ArrayFile]]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise _refused(path, str(error).rstrip(".")) from error
    with archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        found = [_npz_member(path, archive, member) for member in members]
        yield {array.name: array for array in found if array is not None}


def _header(path: Path, file: Any, member: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"its format {version} is for structured arrays")
    except ValueError as error:
        raise _refused(path, f"{member}: {str(error).rstrip('.')}") from error
    return header


def _npz_member(path: Path, archive: zipfile.ZipFile, member: str) -> ArrayFile | None:
    """Return an array of an archive; None for a scalar."""
    name = member.removesuffix(".npy")
    with _zip_errors(path), archive.open(member) as file:
        shape, fortran, dtype = _header(path, file, member)
        begin = file.tell()
    if dtype.hasobject:
        return ArrayFile(name, shape, dtype, _no_blocks(path, name))
    if not shape:
        return None
    row_bytes = dtype.itemsize * math.prod(shape[1:])
    size = archive.getinfo(member).file_size
    if size != begin + shape[0] * row_bytes:
        raise _refused(path, f"{member} has {size} bytes, which do not fit its shape {shape}")

    def blocks(n: int) -> Iterator[np.ndarray]:
        with _zip_errors(path), archive.open(member) as file:
            # To the end once: only there the archive's checksum is compared.
            while file.read(_READ_BYTES):
                continue
            file.seek(0)
            if fortran and len(shape) > 1:
                # Its rows do not follow each other in the file.
                whole = np.lib.format.read_array(file, allow_pickle=False)
                yield from (whole[i : i + n] for i in range(0, len(whole), n))
                return
            file.read(begin)
            for i in range(0, shape[0], n):
                count = min(n, shape[0] - i)
                data = file.read(count * row_bytes)
                yield np.frombuffer(data, dtype).reshape(count, *shape[1:])

    return ArrayFile(name, shape, dtype, blocks)


@contextmanager
def _zip_errors(path: Path) -> Iterator[None]:
    """Say of damaged, encrypted and unknown kinds of archives that they cannot be read."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _refused(path, str(error).rstrip(".")) from error


def _no_blocks(path: Path, name: str) -> Callable[[int], Iterator[np.ndarray]]:
    def blocks(n: int) -> Iterator[np.ndarray]:
        raise _refused(path, f"the array {name!r} holds Python objects, which would be unpickled")

    return blocks


@contextmanager
def _open_safetensors(path: Path) -> Iterator[dict[str, ArrayFile]]:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise _refused(path, str(error).rstrip(".")) from error
    with opened as file:
        arrays = {}
        for name in file.keys():
            array = file.get_slice(name)
            shape = tuple(array.get_shape())
            if shape:
                arrays[name] = _tensor_array(name, shape, array)
        yield arrays


def _tensor_array(name: str, shape: tuple[int, ...], array: Any) -> ArrayFile:
    def convert(part: Any) -> np.ndarray:
        # numpy has neither bfloat16 nor the small floats.
        exotic = part.dtype.is_floating_point and part.dtype.itemsize < 4
        exotic = exotic and str(part.dtype) != "torch.float16"
        return (part.float() if exotic else part).numpy()

    def blocks(n: int) -> Iterator[np.ndarray]:
        for begin in range(0, shape[0], n):
            yield convert(array[begin : min(begin + n, shape[0])])

    return ArrayFile(name, shape, convert(array[:0]).dtype, blocks)


@contextmanager
def _open_hdf5(path: Path) -> Iterator[dict[str, ArrayFile]]:
    h5py = import_optional("h5py", extra="hdf5", purpose=f"reading {path.name}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _refused(path, "it is no HDF5 file, or damaged") from error
    with file:
        yield dict(_datasets(path, h5py, file))


def _datasets(
    path: Path, h5py: Any, group: Any, prefix: str = ""
) -> Iterator[tuple[str, ArrayFile]]:
    """Yield the datasets that lie in this very file, however deep."""
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            continue
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(path, h5py, item, f"{prefix}{name}/")
        elif isinstance(item, h5py.Dataset) and item.ndim and not item.external:
            if not item.is_virtual:
                yield prefix + name, _dataset(path, h5py, prefix + name, item)


def _dataset(path: Path, h5py: Any, name: str, dataset: Any) -> ArrayFile:
    text = h5py.check_string_dtype(dataset.dtype) is not None
    values = dataset.asstr() if text else dataset

    def blocks(n: int) -> Iterator[np.ndarray]:
        for begin in range(0, dataset.shape[0], n):
            try:
                yield np.asarray(values[begin : begin + n])
            except OSError as error:
                raise _refused(path, f"{name}: {str(error).rstrip('.')}") from error

    return ArrayFile(name, dataset.shape, np.dtype(str) if text else dataset.dtype, blocks)


def file_of(source: object) -> Path | None:
    """Return the path that a source is, or None where it is an array."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).expanduser()
    return None
