# SPDX-License-Identifier: BSD-3-Clause
"""One image, from wherever it comes, to 8-bit RGB by stated rules, or one error with a reason.

The lowest layer of the inputs: `ImageSequence` calls `decode_image` for a row, in threads, so
nothing here touches process-wide state (warning filters, Pillow's own limits). Every failure
leaves as `DecodeError`, whose reason does not name the file: the caller knows the name.
"""

import io
import os
import stat
import struct
import threading
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile

__all__ = ["DecodeError", "decode_image"]

_CHANNELS = (1, 3, 4)

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# value / 257 rounded; 257 is odd, so there are no ties.
_TO_8_BIT = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)

# Guards the file position and the EXIF cache of images that a user opened and several threads read.
_USER_IMAGE_LOCK = threading.Lock()


class DecodeError(ValueError):
    """A sample cannot be turned into pixels.

    Parameters
    ----------
    reason : str
        What is wrong, without the name of the sample.
    name : str, default=None
        Name of the sample, put before the reason in the message.

    Attributes
    ----------
    reason : str
    name : str or None

    Examples
    --------
    >>> from skpool.inputs import DecodeError
    >>> str(DecodeError("the file is empty", "a.jpg"))
    'a.jpg: the file is empty'
    """

    def __init__(self, reason: str, name: str | None = None):
        self.reason = reason
        self.name = name
        super().__init__(reason if name is None else f"{name}: {reason}")

    def __reduce__(self):
        return type(self), (self.reason, self.name)


def file_reason(error: Exception) -> str:
    """Say in a few words why the operating system did not give a file."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "the file does not exist"
    if isinstance(error, IsADirectoryError):
        return "it is a directory, not an image file"
    if isinstance(error, PermissionError):
        return "permission denied"
    # str(error) would repeat the name; a path that no system call takes has no strerror.
    return getattr(error, "strerror", None) or f"not a valid path ({error})"


def check_regular(status: os.stat_result) -> None:
    """Refuse what is not a file with bytes in it; opening a named pipe would wait for ever."""
    if stat.S_ISDIR(status.st_mode):
        raise DecodeError("it is a directory, not an image file")
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("it is not a regular file")
    if status.st_size == 0:
        raise DecodeError("the file is empty")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    pixels = width * height
    if pixels == 0:
        raise DecodeError(f"the image has no pixels ({width} x {height})")
    if pixels > max_pixels:
        raise DecodeError(
            f"{width} x {height} = {pixels} pixels exceed the limit of {max_pixels}; if the image "
            f"is to be trusted, raise it with skpool.set_config(max_pixels={pixels})"
        )


def _damage(error: Exception) -> DecodeError:
    """Give any exception that escapes from a decoder the one type and a short reason."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return DecodeError(
            "larger than Pillow's own limit, which this format's decoder checks itself; if the "
            "image is to be trusted, raise PIL.Image.MAX_IMAGE_PIXELS"
        )
    if isinstance(error, MemoryError):
        return DecodeError("not enough memory to decode it")
    text = str(error) or type(error).__name__
    cut = "runcated" in text or "incomplete" in text
    return DecodeError(f"{'truncated' if cut else 'damaged'} image data ({text})")


def _open_header(fp: IO[bytes]) -> ImageFile.ImageFile:
    """Find the plugin that reads this file, and read the header only.

    `PIL.Image.open` would do, but it warns about large images before a caller can see their size,
    and a warning cannot be silenced in one thread alone. So this walks Pillow's registry of
    formats, in Pillow's order, and leaves the size to `_check_size`.
    """
    prefix = fp.read(16)
    complaints, tried = [], set()
    for register in (Image.preinit, Image.init):
        register()
        for name in [n for n in tuple(Image.ID) if n not in tried]:
            tried.add(name)
            factory, accept = Image.OPEN[name]
            accepted = accept(prefix) if accept else True
            if isinstance(accepted, str):
                complaints.append(accepted)
            elif accepted and name == "EPS":
                raise DecodeError("an EPS file is a program, which is not run; convert it to PNG")
            elif accepted:
                fp.seek(0)
                try:
                    return factory(fp, "")
                except (SyntaxError, IndexError, TypeError, struct.error) as error:
                    # A plugin without a signature tries every file: its complaint says nothing.
                    complaints += [f"{name}: {error}"] if accept else []
    detail = f" ({'; '.join(complaints)})" if complaints else ""
    raise DecodeError(f"not an image that Pillow can read{detail}")


def _open_checked(fp: IO[bytes], max_pixels: int, frame: int = 0) -> ImageFile.ImageFile:
    """Open, refuse what is too large, and verify what Pillow verifies only when asked."""
    image = _open_header(fp)
    _check_size(image.size, max_pixels)
    if image.format == "PNG":
        # Decoding skips the checksums of the pixel chunks and a missing end.
        image.verify()
        fp.seek(0)
        image = _open_header(fp)
        _scale_transparency(image)
    if frame:
        image.seek(frame)
        _check_size(image.size, max_pixels)
    return image


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent colour to the 8 bits to which Pillow brings the pixels."""
    value = image.info.get("transparency")
    if value is None or not image.tile:
        return
    rawmode = image.tile[0][3]
    if rawmode in ("L;2", "L;4"):
        image.info["transparency"] = value * {"L;2": 85, "L;4": 17}[rawmode]
    elif rawmode == "1":
        image.info["transparency"] = 255 if value else 0
    elif rawmode == "RGB;16B":
        image.info["transparency"] = tuple(v >> 8 for v in value)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        # Damaged metadata beside sound pixels: the pixels stand as they are stored.
        return None


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image)
    return canvas


def _grey_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise DecodeError(
            f"32-bit grey values from {values.min()} to {values.max()} have no stated scale; "
            "convert the image to 8 or 16 bit"
        )
    grey = _TO_8_BIT[values]
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _grey_float(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    # NaN fails both comparisons.
    if not (values.min() >= 0 and values.max() <= 1):
        raise DecodeError(
            f"floating-point values from {values.min()} to {values.max()} have no stated scale; "
            "scale the image to [0, 1] or convert it to 8 bit"
        )
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _grey_16_bit(image)
    elif image.mode == "F":
        image = _grey_float(image)
    elif image.mode == "La" or image.has_transparency_data:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _finish(image: Image.Image, orientation: Image.Transpose | None) -> Image.Image:
    image = _to_rgb(image)
    if orientation is not None:
        image = image.transpose(orientation)
    # The rules are applied: what they were read from must not make anyone apply them again.
    image.info = {}
    return image


def _decode_stream(
    fp: IO[bytes], max_pixels: int, *, frame: int = 0, at_least: int | None = None
) -> Image.Image:
    image = _open_checked(fp, max_pixels, frame)
    if at_least is not None and image.format == "JPEG":
        # Half, a quarter or an eighth of the sides, whichever is the least that is still enough.
        image.draft(image.mode, (at_least, at_least))
    image.load()
    # After load, because a PNG may bring its EXIF after the pixels.
    return _finish(image, _orientation(image))


def _decode_path(path: str, max_pixels: int, at_least: int | None) -> Image.Image:
    try:
        check_regular(os.stat(path))
        fp = open(path, "rb")
    except DecodeError:
        raise
    except (OSError, ValueError) as error:
        raise DecodeError(file_reason(error)) from error
    with fp:
        return _decode_stream(fp, max_pixels, at_least=at_least)


def _unread_bytes(image: Image.Image) -> bytes | None:
    """Return the file behind an image that was opened and not read, leaving it as it stands.

    Reading the image itself would close its file and is not safe in two threads at once.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return None
    # Pixels once read belong to the user, who may have drawn on them; and only the image itself
    # knows of a `draft` that was asked of it.
    if (not image.tile and getattr(image, "_im", None) is not None) or image.decoderconfig:
        return None
    fp = getattr(image, "fp", None)
    if fp is None or fp.closed:
        raise DecodeError("the image's file was closed before its pixels were read")
    position = fp.tell()
    fp.seek(0)
    data = fp.read()
    fp.seek(position)
    return data


def _decode_image_object(image: Image.Image, max_pixels: int, at_least: int | None) -> Image.Image:
    _check_size(image.size, max_pixels)
    with _USER_IMAGE_LOCK:
        data = _unread_bytes(image)
        if data is None:
            # The copy keeps conversions, which may write to palettes, away from the user's image.
            copy, orientation = image.copy(), _orientation(image)
    if data is None:
        return _finish(copy, orientation)
    return _decode_stream(io.BytesIO(data), max_pixels, frame=image.tell(), at_least=at_least)


def _decode_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in _CHANNELS:
        raise DecodeError(
            f"an array of shape {array.shape} and dtype {array.dtype} is not an image; give uint8 "
            "of shape (H, W, C) with C in (1, 3, 4)"
        )
    _check_size((array.shape[1], array.shape[0]), max_pixels)
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    return _to_rgb(image)


def decode_image(
    source: str | os.PathLike | Image.Image | np.ndarray,
    *,
    max_pixels: int,
    at_least: int | None = None,
) -> Image.Image:
    """Decode one image to 8-bit RGB.

    Parameters
    ----------
    source : path-like, PIL image, or uint8 ndarray of shape (H, W, C)
        C is 1 (grey), 3 (RGB) or 4 (RGBA). The source is not altered: a PIL image that was opened
        and not yet read stays unread, with its file open.
    max_pixels : int
        Larger images are refused; files, before their pixels are decoded.
    at_least : int, default=None
        Of a JPEG file whose sides are both at least twice this number, a half, a quarter or an
        eighth of each side is decoded, in less time, such that both remain at least this number.
        None decodes all pixels.

    Returns
    -------
    image : PIL.Image.Image
        Mode RGB, fully loaded, without metadata, sharing no memory with `source`; its file is
        closed.

    Raises
    ------
    DecodeError
        The file is missing, a directory, empty, not readable, not an image, truncated, damaged or
        too large, or the source is an array or a mode with no stated scale. The reason does not
        name the file.
    TypeError
        `source` is none of the accepted types.

    Notes
    -----
    The rules, in the order of application:

    - Of an animated or many-page file, the first frame; of a PIL image, the frame it stands at.
    - The checksums of a PNG are verified, and it must be complete. EPS is refused, because reading
      it means to run it.
    - 16-bit grey becomes 8-bit by ``value / 257`` rounded, not by clipping. So does 32-bit integer
      grey (mode I, which some formats use for 16 bits), refused outside 0 to 65535. Floating-point
      grey (mode F) becomes ``255 * value`` rounded, refused outside 0 to 1. 16-bit colour comes as
      Pillow reads it, by its high byte.
    - Alpha (a channel, a palette with alpha, or one transparent colour) is composited over white.
    - Bilevel, grey, palette, CMYK, YCbCr, LAB and HSV go through Pillow's conversion. Colour
      profiles are not applied.
    - The EXIF (or XMP) orientation of files and PIL images is applied; damaged EXIF counts as
      none.

    `max_pixels` replaces Pillow's own guard against decompression bombs, which neither warns nor
    raises here at any size, whatever ``PIL.Image.MAX_IMAGE_PIXELS`` is. Exceptions are the few
    formats whose decoders check that limit themselves (WebP, TIFF and rare ones): where
    `max_pixels` is set higher, they warn above Pillow's limit and refuse above twice of it, and
    the reason says so.
    ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` is obeyed if a program sets it.

    Cost: Pillow's decoder and, unless the file is RGB, one conversion; a PNG is read twice for its
    checksums, a few hundredths of the time to decode it. Safe to call from many threads.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.inputs import decode_image
    >>> half_transparent_black = np.array([[[0, 0, 0, 128]]], dtype=np.uint8)
    >>> decode_image(half_transparent_black, max_pixels=100).getpixel((0, 0))
    (127, 127, 127)
    """
    try:
        if isinstance(source, (str, os.PathLike)):
            return _decode_path(os.fsdecode(source), max_pixels, at_least)
        if isinstance(source, Image.Image):
            return _decode_image_object(source, max_pixels, at_least)
        if isinstance(source, np.ndarray):
            return _decode_array(source, max_pixels)
    except DecodeError:
        raise
    except Exception as error:
        # Decoders raise whatever they meet: OSError, SyntaxError, struct.error, zlib.error, ...
        raise _damage(error) from error
    raise TypeError(
        f"source={source!r:.80} is of type {type(source).__name__}; give a path, a PIL image or a "
        "uint8 array (H, W, C)."
    )
