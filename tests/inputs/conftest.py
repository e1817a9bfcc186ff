# SPDX-License-Identifier: BSD-3-Clause
"""Images with known pixels, and PNG files put together by hand where no encoder writes them."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image


def _chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


@pytest.fixture(scope="session")
def png_bytes():
    """Build a PNG from its header fields and raw scan lines (each led by its filter byte)."""

    def build(width, height, depth, color_type, lines, *, transparent=None):
        header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
        trns = b"" if transparent is None else _chunk(b"tRNS", transparent)
        pixels = _chunk(b"IDAT", zlib.compress(lines))
        signature = b"\x89PNG\r\n\x1a\n"
        return signature + _chunk(b"IHDR", header) + trns + pixels + _chunk(b"IEND", b"")

    return build


@pytest.fixture
def pixels():
    """Random colours of an image that is not square."""
    return np.random.default_rng(0).integers(0, 256, (11, 17, 3), dtype=np.uint8)


@pytest.fixture
def photo():
    """A smooth colour image, large enough for its data to span many blocks of a codec."""
    y, x = np.mgrid[0:96, 0:128]
    return np.stack([x * 2, y * 2, (x + y)], axis=2).clip(0, 255).astype(np.uint8)


@pytest.fixture
def arrays():
    """Ten images of ten sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (i + 2, 12 - i, 3), dtype=np.uint8) for i in range(10)]


@pytest.fixture
def paths(tmp_path, arrays):
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(len(arrays))]


@pytest.fixture
def block():
    return np.random.default_rng(1).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def write(tmp_path):
    def write(data, name="sample.png"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write
