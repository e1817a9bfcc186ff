# SPDX-License-Identifier: BSD-3-Clause
"""The key of one sample: 16 bytes under which its features are stored and found again.

Stores look results up per sample, never per array, so a key must be the same for equal samples in
any list, process or session, differ for any other, and cost far less than a forward pass.
"""

import hashlib
import os
import stat
from functools import lru_cache

import numpy as np
from PIL import Image

from skpool._config import get_config
from skpool.inputs._decode import DecodeError, check_regular, decode_image, file_reason

__all__ = ["KEY_BYTES", "KEY_KINDS", "sample_key"]

KEY_BYTES = 16
KEY_KINDS = ("stat", "content")


@lru_cache(maxsize=4096)
def _resolved_parent(parent: str, device: int, inode: int) -> str:
    """Resolve a directory once; a link that is pointed elsewhere brings another inode."""
    return os.path.realpath(parent)


def _resolve_and_stat(path: str) -> tuple[str, os.stat_result]:
    """Return the path without links and the state of its file, mostly by two system calls."""
    status = os.lstat(path)
    parent, name = os.path.split(path)
    if stat.S_ISLNK(status.st_mode) or name in ("", os.curdir, os.pardir):
        return os.path.realpath(path), os.stat(path)
    if not os.path.isabs(parent):
        parent = os.path.join(os.getcwd(), parent)
    directory = os.stat(parent)
    return os.path.join(_resolved_parent(parent, directory.st_dev, directory.st_ino), name), status


def _stat_key(path: str) -> bytes:
    resolved, status = _resolve_and_stat(path)
    check_regular(status)
    # The path stands last, since only it may hold any byte.
    text = b"file\0%d\0%d\0" % (status.st_size, status.st_mtime_ns) + os.fsencode(resolved)
    return hashlib.sha256(text).digest()


def _content_key(path: str) -> bytes:
    check_regular(os.stat(path))
    with open(path, "rb") as fp:
        return hashlib.file_digest(fp, "sha256").digest()


def _path_key(path: str, by: str) -> bytes:
    try:
        return _stat_key(path) if by == "stat" else _content_key(path)
    except DecodeError:
        raise
    except (OSError, ValueError) as error:
        raise DecodeError(file_reason(error)) from error


def _pixel_key(pixels: np.ndarray | bytes, height: int, width: int) -> bytes:
    digest = hashlib.sha256(b"pixels\0uint8\0%d\0%d\0%d\0" % (height, width, 3))
    digest.update(pixels)
    return digest.digest()


def _image_key(image: Image.Image) -> bytes:
    return _pixel_key(image.tobytes(), image.height, image.width)


def _array_key(array: np.ndarray) -> bytes:
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
        # Hashed where it lies; only an array with gaps or in another order is copied.
        return _pixel_key(np.ascontiguousarray(array).reshape(-1), *array.shape[:2])
    # It is in memory already, so that no size is too large for a key.
    return _image_key(decode_image(array, max_pixels=max(array.size, 1)))


def sample_key(source: str | os.PathLike | Image.Image | np.ndarray, *, by: str = "stat") -> bytes:
    """Return the key of one image.

    Parameters
    ----------
    source : path-like, PIL image, or uint8 ndarray of shape (H, W, C)
        C is 1, 3 or 4, as in :func:`decode_image`.
    by : {"stat", "content"}, default="stat"
        How a file is known: "stat" by its resolved absolute path, size and time of modification
        in nanoseconds, without reading it; "content" by its bytes, wherever it lies. Pixels are
        always known by their content.

    Returns
    -------
    key : bytes of length 16
        The first 128 bits of a SHA-256. With ``by="content"`` it is that of the file's bytes.
        Pixels are hashed as 8-bit RGB with their shape, after the rules of :func:`decode_image`:
        a PIL image and the equal array have one key.

    Raises
    ------
    DecodeError
        The file is missing, a directory, empty or not readable; or pixels cannot be decoded.

    Notes
    -----
    Cost: two system calls and a short hash (a few microseconds) for a file by "stat"; reading the
    file by "content"; hashing H W 3 bytes for pixels, without a copy for contiguous RGB arrays.

    "stat" does not notice a file that was rewritten with its size and time of modification kept;
    "content" does.

    Directories are resolved once for each device and inode number: a link that is pointed
    elsewhere is noticed.

    Examples
    --------
    >>> import numpy as np
    >>> from PIL import Image
    >>> from skpool.inputs import sample_key
    >>> pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    >>> sample_key(pixels) == sample_key(Image.fromarray(pixels))
    True
    >>> sample_key(pixels) == sample_key(pixels.reshape(3, 2, 3))
    False
    """
    if by not in KEY_KINDS:
        raise ValueError(f"by={by!r} is not a kind of key; give one of {list(KEY_KINDS)}.")
    if isinstance(source, (str, os.PathLike)):
        digest = _path_key(os.fsdecode(source), by)
    elif isinstance(source, np.ndarray):
        digest = _array_key(source)
    else:
        digest = _image_key(decode_image(source, max_pixels=get_config()["max_pixels"]))
    return digest[:KEY_BYTES]
