# SPDX-License-Identifier: BSD-3-Clause
"""Images that cannot be decoded: each refused by one type of error, with its own reason."""

import io
import os
import pickle
import struct
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from skpool.inputs import DecodeError, decode_image

LIMIT = 10**6


def decode(source, max_pixels=LIMIT):
    image = decode_image(source, max_pixels=max_pixels)
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    return np.asarray(image)


def reason(source, max_pixels=LIMIT):
    with pytest.raises(DecodeError) as caught:
        decode_image(source, max_pixels=max_pixels)
    assert caught.value.reason == str(caught.value)
    if isinstance(source, (str, os.PathLike)):
        assert os.path.basename(source) not in str(caught.value)
    return str(caught.value)


def encoded(array, kind="png", **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def test_missing_file_is_refused(tmp_path):
    assert reason(tmp_path / "nowhere.png") == "the file does not exist"


def test_directory_is_refused(tmp_path):
    assert "directory" in reason(tmp_path)


def test_empty_file_is_refused(write):
    assert reason(write(b"")) == "the file is empty"


def test_text_named_jpg_is_refused(write):
    assert reason(write(b"not a picture\n" * 20, "a.jpg")) == "not an image that Pillow can read"


def test_program_is_refused_unrun(write, pixels):
    assert "a program, which is not run" in reason(write(encoded(pixels, "eps"), "a.jpg"))


def test_path_with_null_byte_is_refused():
    assert "not a valid path" in reason("a\0b.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes exist on POSIX only")
def test_named_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in reason(tmp_path / "pipe.png")


def test_permission_denied_is_named(write, pixels, monkeypatch):
    # A stand-in for the system's refusal, because an administrator may read every file.
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("skpool.inputs._decode.open", refuse, raising=False)
    assert reason(write(encoded(pixels))) == "permission denied"


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_file_is_refused(write, photo, kind, part):
    data = encoded(photo, kind)
    reason(write(data[: int(part * len(data))]))


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_truncation_is_named(write, photo, kind):
    data = encoded(photo, kind)
    assert "truncated" in reason(write(data[: len(data) // 2]))


def test_png_without_its_last_bytes_is_refused(write, photo):
    data = encoded(photo)
    for missing in (9, 12, 14):
        assert "truncated" in reason(write(data[:-missing]))


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_bad_checksum_is_refused(write, photo, kind):
    data = bytearray(encoded(photo))
    start = data.index(kind)
    (length,) = struct.unpack(">I", data[start - 4 : start])
    data[start + 4 + length] ^= 1
    assert "checksum" in reason(write(bytes(data)))


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "tiff", "bmp"])
def test_damaged_bytes_never_raise_anything_else(tmp_path, photo, kind):
    data = encoded(photo, kind)
    path = tmp_path / "a.bin"

    @settings(
        deadline=None, max_examples=300, suppress_health_check=[HealthCheck.differing_executors]
    )
    @given(
        edits=st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4),
        early=st.lists(st.tuples(st.integers(0, 63), st.integers(0, 255)), max_size=2),
        end=st.just(len(data)) | st.integers(1, len(data)),
    )
    def check(edits, early, end):
        damaged = bytearray(data)
        for position, value in edits + early:
            damaged[position] = value
        path.write_bytes(damaged[:end])
        try:
            decode(path)
        except DecodeError as error:
            assert error.reason and "a.bin" not in error.reason

    check()


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "tiff", "bmp"])
def test_limit_is_inclusive(write, photo, kind):
    path = write(encoded(photo, kind))
    pixels = photo.shape[0] * photo.shape[1]
    assert decode(path, max_pixels=pixels).shape == photo.shape
    text = reason(path, max_pixels=pixels - 1)
    assert f"128 x 96 = {pixels}" in text
    assert f"limit of {pixels - 1}" in text
    assert f"skpool.set_config(max_pixels={pixels})" in text


def test_limit_holds_for_images_and_arrays(photo):
    for source in (photo, Image.fromarray(photo), Image.open(io.BytesIO(encoded(photo)))):
        assert "exceed the limit" in reason(source, max_pixels=photo[:, :, 0].size - 1)


@pytest.mark.parametrize("side", [10_000, 20_000])
@pytest.mark.parametrize("action", ["error", "always"])
def test_bomb_is_refused_by_its_header_without_a_warning(write, png_bytes, side, action):
    path = write(png_bytes(side, side, 8, 2, b"\0"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        assert f"{side} x {side}" in reason(path, max_pixels=89_478_485)
    assert caught == []


def test_size_is_checked_before_any_pixel_is_decoded(write, png_bytes, monkeypatch):
    def refuse(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    assert "exceed the limit" in reason(write(png_bytes(100, 100, 8, 2, b"\0")), max_pixels=9999)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp"])
@pytest.mark.parametrize("own_limit", [8000, 100])
def test_higher_limit_replaces_that_of_pillow(write, photo, kind, own_limit, monkeypatch):
    path = write(encoded(photo, kind))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", own_limit)
    assert decode(path).shape == photo.shape


def test_limit_of_a_decoder_itself_is_named(write, photo, monkeypatch):
    path = write(encoded(photo, "tiff"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "PIL.Image.MAX_IMAGE_PIXELS" in reason(path)


def test_not_enough_memory_is_named(write, photo, monkeypatch):
    def fail(self):
        raise MemoryError

    path = write(encoded(photo))
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert "memory" in reason(path)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2, 3)),
        np.zeros((2, 2), dtype=np.uint8),
        np.zeros((2, 2, 2), dtype=np.uint8),
        np.zeros((1, 2, 2, 3), dtype=np.uint8),
    ],
)
def test_array_that_is_no_image_is_refused(array):
    assert "give uint8 of shape (H, W, C)" in reason(array)


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 1)])
def test_array_without_pixels_is_refused(shape):
    assert "no pixels" in reason(np.zeros(shape, dtype=np.uint8))


def test_image_whose_file_was_closed_is_refused(pixels):
    with Image.open(io.BytesIO(encoded(pixels))) as image:
        pass
    assert "closed before its pixels were read" in reason(image)


def test_closed_image_is_refused(pixels):
    image = Image.fromarray(pixels)
    image.close()
    assert "closed" in reason(image)


@pytest.mark.parametrize("source", [None, 3, b"a.png", [1]])
def test_unknown_source_is_a_type_error(source):
    with pytest.raises(TypeError, match="give a path, a PIL image or a uint8 array"):
        decode_image(source, max_pixels=LIMIT)


def test_error_is_a_value_error_that_pickles():
    error = pickle.loads(pickle.dumps(DecodeError("the file is empty", "a.jpg")))
    assert isinstance(error, ValueError)
    assert (str(error), error.reason, error.name) == (
        "a.jpg: the file is empty",
        "the file is empty",
        "a.jpg",
    )
