# SPDX-License-Identifier: BSD-3-Clause
"""Checksums of the pieces of a block file, so that reading a few rows checks a few pages.

A file is cut into pieces of one size, each with a CRC-32. `CheckedWriter` takes them while a file
is written, `FileCheck` remembers which pieces this process has compared. A file without checksums
of its pieces counts as one piece.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

__all__ = ["CheckedWriter", "DamagedBlock", "FileCheck", "PieceSums", "piece_bytes"]

_READ_BYTES = 2**18
_SMALLEST, _LARGEST = 2**12, 2**16
# A read goes on over this many pieces that need no check: that is quicker than a second read.
_GAP = 2


class DamagedBlock(Exception):
    """A block that must not be served, and why."""


class PieceSums(NamedTuple):
    """CRC-32 of every piece of a file.

    Attributes
    ----------
    step : int
        Bytes of a piece; the last one may be shorter.
    values : ndarray of shape (n_pieces,), uint32
    """

    step: int
    values: np.ndarray


def piece_bytes(row_bytes: int) -> int:
    """Return the size of pieces for rows of a size: about one row, at least one page of memory."""
    return min(max(_SMALLEST, 1 << max(0, row_bytes - 1).bit_length()), _LARGEST)


class CheckedWriter:
    """A file that keeps size and checksums of what passes through."""

    def __init__(self, file: BinaryIO | None, step: int):
        self._file = file
        self._step = step
        self._sums: list[int] = []
        self.crc = 0
        self.size = 0

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        if self._file is not None:
            self._file.write(view)
        self.crc = zlib.crc32(view, self.crc)
        begin = 0
        while begin < len(view):
            full = self.size % self._step
            part = view[begin : begin + self._step - full]
            if full:
                self._sums[-1] = zlib.crc32(part, self._sums[-1])
            else:
                self._sums.append(zlib.crc32(part))
            begin += len(part)
            self.size += len(part)

    @property
    def sums(self) -> PieceSums:
        """Checksums of the pieces."""
        return PieceSums(self._step, np.array(self._sums, dtype=np.uint32))


class FileCheck:
    """What this process knows about one file: which of its pieces are right.

    Parameters
    ----------
    size : int
        Bytes that the file must have.
    sums : PieceSums
        Its checksums.
    """

    def __init__(self, size: int, sums: PieceSums):
        self._size = size
        self._sums = sums
        self._good = np.zeros(len(sums.values), dtype=bool)
        self.complete = False
        # Inode and time of change; another file under the same name is checked from the start.
        self.identity: tuple[int, int] | None = None

    def missing(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the pieces under some ranges of bytes that were not compared before."""
        n, step = len(self._good), self._sums.step
        if n == 1:
            return np.flatnonzero(~self._good)
        real = ends > begins
        first, last = begins[real] // step, (ends[real] - 1) // step
        # Rows are mostly shorter than two pieces, and in the long run all of them were compared.
        if self._good[first].all() and self._good[last].all() and (last - first).max(initial=0) < 2:
            return np.empty(0, dtype=np.int64)
        opened = np.bincount(first, minlength=n + 1)
        closed = np.bincount(last + 1, minlength=n + 1)
        return np.flatnonzero((np.cumsum(opened - closed)[:n] > 0) & ~self._good)

    def compare(self, path: Path, pieces: np.ndarray | None) -> bool:
        """Compare some pieces, or all, or raise DamagedBlock; tell whether it is another file."""
        with open(path, "rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            if stat.st_size != self._size:
                raise DamagedBlock(f"it has {stat.st_size} bytes instead of {self._size}")
            identity = stat.st_ino, stat.st_mtime_ns
            replaced = self.identity is not None and identity != self.identity
            if replaced or pieces is None:
                self._good[:] = self.complete = False
                pieces = np.arange(len(self._good))
            buffer = memoryview(bytearray(min(_READ_BYTES, self._size)))
            for some in _spans(pieces, self._sums.step):
                if self._crcs(file, some, buffer) != self._sums.values[some].tolist():
                    raise DamagedBlock("its checksum is wrong")
                self._good[some] = True
        self.identity = identity
        self.complete = bool(self._good.all())
        return replaced

    def _crcs(self, file: BinaryIO, pieces: np.ndarray, buffer: memoryview) -> list[int]:
        step, first = self._sums.step, int(pieces[0])
        file.seek(first * step)
        if step > len(buffer):
            return [_crc_of(file, buffer, step)]
        data = buffer[: _read_into(file, buffer[: (int(pieces[-1]) + 1 - first) * step])]
        begins = ((pieces - first) * step).tolist()
        return [zlib.crc32(data[begin : begin + step]) for begin in begins]


def _spans(pieces: np.ndarray, step: int) -> Iterator[np.ndarray]:
    """Yield neighbouring pieces that are read at once."""
    most = max(1, _READ_BYTES // step)
    begin = 0
    # Pieces are sorted, so the last that fits into one read is found by bisection.
    ends = np.searchsorted(pieces, pieces + most).tolist()
    far = np.append(np.diff(pieces) > 1 + _GAP, True)
    stops = (np.flatnonzero(far) + 1).tolist()
    for stop in stops:
        while begin < stop:
            end = min(ends[begin], stop)
            yield pieces[begin:end]
            begin = end


def _read_into(file: BinaryIO, buffer: memoryview) -> int:
    """Fill a buffer, or what of it the file has; return how much that is."""
    size = 0
    while size < len(buffer) and (count := file.readinto(buffer[size:])):
        size += count
    return size


def _crc_of(file: BinaryIO, buffer: memoryview, size: int) -> int:
    """Return the checksum of so many bytes, or of what there is."""
    crc = 0
    while count := file.readinto(buffer[:size]):
        crc = zlib.crc32(buffer[:count], crc)
        size -= count
    return crc
