# SPDX-License-Identifier: BSD-3-Clause
"""Every kind of image and every kind of damage, against pixel values from stated formulas."""

import colorsys
import io
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from skpool.inputs import DecodeError, decode_image

LIMIT = 10**6

ROTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def decode(source, max_pixels=LIMIT):
    image = decode_image(source, max_pixels=max_pixels)
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    return np.asarray(image)


def over_white(color, alpha):
    """Composite in exact arithmetic, rounded once."""
    color, alpha = np.asarray(color, dtype=float), np.asarray(alpha, dtype=float)
    return np.rint((color * alpha + 255 * (255 - alpha)) / 255).astype(np.uint8)


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


# Pixel values


@pytest.mark.parametrize(
    ("kind", "options"),
    [("png", {}), ("bmp", {}), ("tiff", {}), ("ppm", {}), ("webp", {"lossless": True})],
)
@pytest.mark.parametrize("shape", [(11, 17, 3), (1, 1, 3), (3, 2000, 3), (2000, 3, 3)])
def test_lossless_file_gives_its_pixels(write, kind, options, shape):
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(decode(write(encoded(array, kind, **options))), array)


def test_str_path_gives_same_as_path(write, pixels):
    path = write(encoded(pixels))
    np.testing.assert_array_equal(decode(str(path)), decode(path))


def test_jpeg_equals_pillow(write, photo):
    path = write(encoded(photo, "jpeg"), "a.jpg")
    with Image.open(path) as expected:
        np.testing.assert_array_equal(decode(path), np.asarray(expected))


def test_wrong_extension_is_decoded_by_content(write, pixels):
    np.testing.assert_array_equal(decode(write(encoded(pixels), "a.jpg")), pixels)


def test_grey_is_repeated(write, pixels):
    grey = pixels[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode(write(encoded(grey))), expected)
    np.testing.assert_array_equal(decode(grey[:, :, None]), expected)


def test_bilevel_is_black_and_white(write, pixels):
    mask = pixels[:, :, 0] > 100
    expected = np.repeat(np.where(mask, 255, 0)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode(write(encoded(mask))), expected)
    np.testing.assert_array_equal(decode(Image.fromarray(mask)), expected)


def palette_image(pixels):
    colors = pixels.reshape(-1, 3)[:7]
    index = (pixels[:, :, 0] % 7).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette(colors.tobytes())
    return image, colors, index


def test_palette_is_looked_up(tmp_path, pixels):
    image, colors, index = palette_image(pixels)
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), colors[index])
    np.testing.assert_array_equal(decode(image), colors[index])


@pytest.mark.parametrize("transparency", [3, bytes([0, 255, 128, 7, 200, 99, 1])])
def test_palette_alpha_is_composited_over_white(tmp_path, pixels, transparency):
    image, colors, index = palette_image(pixels)
    image.save(tmp_path / "a.png", transparency=transparency)
    one = np.where(np.arange(7) == 3, 0, 255)
    alpha = one if transparency == 3 else np.frombuffer(transparency, np.uint8)
    expected = over_white(colors, alpha[:, None])[index]
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), expected)


def test_palette_with_alpha_band_is_composited_over_white(pixels):
    image, colors, index = palette_image(pixels)
    image.putalpha(Image.fromarray(pixels[:, :, 1]))
    assert image.mode == "PA"
    expected = over_white(colors[index], pixels[:, :, 1:2])
    np.testing.assert_array_equal(decode(image), expected)


def test_rgba_palette_is_composited_over_white(pixels):
    image, colors, index = palette_image(pixels)
    alpha = np.arange(0, 210, 30, dtype=np.uint8)[:, None]
    image.putpalette(np.hstack([colors, alpha]).tobytes(), "RGBA")
    np.testing.assert_array_equal(decode(image), over_white(colors, alpha)[index])


def all_alphas():
    color = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    return np.dstack([color, color[:, ::-1], np.full_like(color, 9), color.T])


def test_rgba_is_composited_over_white(write):
    rgba = all_alphas()
    expected = over_white(rgba[:, :, :3], rgba[:, :, 3:])
    np.testing.assert_array_equal(decode(write(encoded(rgba))), expected)
    np.testing.assert_array_equal(decode(rgba), expected)
    np.testing.assert_array_equal(decode(Image.fromarray(rgba)), expected)


def test_grey_alpha_is_composited_over_white(tmp_path):
    rgba = all_alphas()
    image = Image.merge("LA", [Image.fromarray(rgba[:, :, i]) for i in (0, 3)])
    image.save(tmp_path / "a.png")
    expected = np.repeat(over_white(rgba[:, :, :1], rgba[:, :, 3:]), 3, axis=2)
    np.testing.assert_array_equal(decode(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(decode(image), expected)


@pytest.mark.parametrize(("mode", "bands"), [("RGBa", (10, 20, 30, 51)), ("La", (10, 51))])
def test_premultiplied_alpha_is_composited_over_white(mode, bands):
    values = decode(Image.new(mode, (2, 2), bands))[0, 0]
    expected = np.resize(bands[:-1], 3) + (255 - 51)
    np.testing.assert_allclose(values.astype(int), expected, atol=1)


@pytest.mark.parametrize(
    ("depth", "line", "transparent", "expected"),
    [
        (1, b"\xa0", 1, [255, 0, 255, 0]),
        (1, b"\xa0", 0, [255, 255, 255, 255]),
        (2, b"\x1b", 2, [0, 85, 255, 255]),
        (4, b"\x01\x7f", 7, [0, 17, 255, 255]),
        (8, b"\x00\x01\x02\xff", 2, [0, 1, 255, 255]),
        (16, struct.pack(">4H", 0, 2570, 5140, 5141), 5140, [0, 10, 255, 20]),
    ],
)
def test_transparent_grey_becomes_white(write, png_bytes, depth, line, transparent, expected):
    data = png_bytes(4, 1, depth, 0, b"\0" + line, transparent=struct.pack(">H", transparent))
    np.testing.assert_array_equal(decode(write(data))[0], np.repeat(expected, 3).reshape(4, 3))


@pytest.mark.parametrize(("depth", "code"), [(8, ">9B"), (16, ">9H")])
def test_transparent_color_becomes_white(write, png_bytes, depth, code):
    colors = np.array([[1, 2, 3], [4, 5, 6], [1, 2, 4]])
    stored = colors if depth == 8 else colors * 256 + 77
    line = b"\0" + struct.pack(code, *stored.ravel())
    data = png_bytes(3, 1, depth, 2, line, transparent=struct.pack(">3H", *stored[1]))
    expected = [[1, 2, 3], [255, 255, 255], [1, 2, 4]]
    np.testing.assert_array_equal(decode(write(data))[0], expected)


ALL_16_BIT = np.arange(65536, dtype=np.uint16).reshape(256, 256)
SCALED = np.repeat(np.rint(ALL_16_BIT / 257).astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_16_bit_grey_file_is_scaled(write, kind):
    np.testing.assert_array_equal(decode(write(encoded(ALL_16_BIT, kind))), SCALED)


@pytest.mark.parametrize(
    ("mode", "order"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "=i4")]
)
def test_16_bit_grey_image_is_scaled(mode, order):
    image = Image.frombytes(mode, (256, 256), ALL_16_BIT.astype(order).tobytes())
    np.testing.assert_array_equal(decode(image), SCALED)


def test_big_endian_16_bit_tiff_is_scaled(tmp_path):
    big = Image.frombytes("I;16B", (256, 256), ALL_16_BIT.astype(">u2").tobytes())
    big.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(decode(tmp_path / "a.tif"), SCALED)


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_grey_without_scale_is_refused(value):
    assert "no stated scale" in reason(Image.new("I", (2, 2), value))


def test_float_grey_in_unit_range_is_scaled():
    whole = np.arange(0, 255, 5).reshape(3, 17)
    values = ((whole + 0.4 * (-1) ** whole) / 255).clip(0, 1).astype(np.float32)
    expected = np.repeat(whole[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode(Image.fromarray(values)), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.01, 1.01, 255.0])
def test_float_grey_outside_unit_range_is_refused(value):
    values = np.full((2, 2), 0.5, dtype=np.float32)
    values[1, 0] = value
    assert "no stated scale" in reason(Image.fromarray(values))


def cmyk_to_rgb(cmyk):
    ink, key = cmyk[:, :, :3].astype(float), cmyk[:, :, 3:].astype(float)
    return (255 - ink) * (255 - key) / 255


def test_cmyk_is_converted(tmp_path):
    cmyk = np.random.default_rng(2).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    image = Image.frombytes("CMYK", (9, 8), cmyk.tobytes())
    image.save(tmp_path / "a.tif")
    np.testing.assert_allclose(decode(tmp_path / "a.tif"), cmyk_to_rgb(cmyk), atol=1)
    np.testing.assert_allclose(decode(image), cmyk_to_rgb(cmyk), atol=1)


def test_cmyk_jpeg_is_converted(tmp_path):
    cmyk = np.full((16, 16, 4), (200, 30, 90, 20), dtype=np.uint8)
    Image.frombytes("CMYK", (16, 16), cmyk.tobytes()).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(decode(tmp_path / "a.jpg"), cmyk_to_rgb(cmyk), atol=4)


def test_ycbcr_is_converted():
    y, cb, cr = 120, 100, 160
    expected = [
        y + 1.402 * (cr - 128),
        y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
        y + 1.772 * (cb - 128),
    ]
    values = decode(Image.new("YCbCr", (2, 2), (y, cb, cr)))[1, 1]
    np.testing.assert_allclose(values, expected, atol=1)


def test_hsv_is_converted():
    expected = 255 * np.array(colorsys.hsv_to_rgb(40 / 255, 200 / 255, 180 / 255))
    values = decode(Image.new("HSV", (2, 2), (40, 200, 180)))[1, 1]
    np.testing.assert_allclose(values, expected, atol=2)


def test_lab_is_converted():
    # L* of 50 is a relative luminance of 0.1842, which sRGB writes as 118.9.
    values = decode(Image.new("LAB", (2, 2), (128, 128, 128)))[1, 1]
    np.testing.assert_allclose(values, 119, atol=2)


# Frames


def frames(kind):
    colors = [(250, 10, 20), (10, 250, 20), (20, 10, 250)]
    images = [Image.new("RGB", (6, 5), color) for color in colors]
    stream = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {}
    images[0].save(stream, kind, save_all=True, append_images=images[1:], **options)
    return stream.getvalue(), np.array(colors)


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_animated_file_gives_first_frame(write, kind):
    data, colors = frames(kind)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert (decode(write(data)) == colors[0]).all()


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
@pytest.mark.parametrize("read", [False, True])
def test_pil_image_gives_the_frame_it_stands_at(kind, read):
    data, colors = frames(kind)
    with Image.open(io.BytesIO(data)) as image:
        image.seek(1)
        if read:
            image.load()
        assert (decode(image) == colors[1]).all()
        assert image.tell() == 1
        image.seek(2)
        assert (decode(image) == colors[2]).all()


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("png", {}), ("webp", {"lossless": True})])
def test_orientation_of_file_is_applied(write, pixels, kind, options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(encoded(pixels, kind, exif=exif, **options))
    np.testing.assert_array_equal(decode(path), ROTATIONS[orientation](pixels))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_tiff_is_applied(write, pixels, orientation):
    path = write(encoded(pixels, "tiff", tiffinfo={0x0112: orientation}))
    np.testing.assert_array_equal(decode(path), ROTATIONS[orientation](pixels))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_jpeg_is_applied(write, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode(write(encoded(photo, "jpeg"), "upright.jpg"))
    path = write(encoded(photo, "jpeg", exif=exif), "turned.jpg")
    np.testing.assert_array_equal(decode(path), ROTATIONS[orientation](upright))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_orientation_of_other_modes_is_applied(write, mode, orientation):
    image = Image.linear_gradient("L").resize((7, 5)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, "png", exif=exif)
    np.testing.assert_array_equal(
        decode(write(stream.getvalue())), ROTATIONS[orientation](decode(image))
    )


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_pil_image_is_applied_to_a_copy(pixels, read, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(io.BytesIO(encoded(pixels, exif=exif))) as image:
        if read:
            image.load()
        np.testing.assert_array_equal(decode(image), ROTATIONS[orientation](pixels))
        np.testing.assert_array_equal(np.asarray(image), pixels)
        assert image.getexif()[0x0112] == orientation


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_decoding_twice_turns_once(write, photo, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    once = decode_image(write(encoded(photo, kind, exif=exif)), max_pixels=LIMIT)
    np.testing.assert_array_equal(decode(once), np.asarray(once))
    np.testing.assert_array_equal(decode(pickle.loads(pickle.dumps(once))), np.asarray(once))


def test_damaged_exif_counts_as_none(write, pixels):
    path = write(encoded(pixels, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"))
    np.testing.assert_array_equal(decode(path), pixels)


# What must stay as it was


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "webp"])
def test_unread_image_stays_unread_and_open(write, photo, kind):
    path = write(encoded(photo, kind))
    with Image.open(path) as image:
        tile, fp, position = list(image.tile), image.fp, image.fp.tell()
        first, second = decode(image), decode(image)
        assert (image.tile, image.fp, image.fp.tell()) == (tile, fp, position)
        assert not fp.closed
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), first)


def test_image_read_before_gives_what_was_drawn_on_it(photo):
    image = Image.open(io.BytesIO(encoded(photo)))
    image.paste((1, 2, 3), (0, 0, 4, 4))
    assert (decode(image)[:4, :4] == (1, 2, 3)).all()


def test_draft_is_obeyed(photo):
    with Image.open(io.BytesIO(encoded(photo, "jpeg"))) as image:
        image.draft("RGB", (64, 48))
        assert decode(image).shape == (48, 64, 3)


def test_palette_image_keeps_its_transparency(pixels):
    image, _, index = palette_image(pixels)
    image.info["transparency"] = bytes([0, 255, 128, 7, 200, 99, 1])
    before = image.convert("RGBA").tobytes()
    decode(image)
    assert image.mode == "P"
    assert image.info["transparency"] == bytes([0, 255, 128, 7, 200, 99, 1])
    assert image.convert("RGBA").tobytes() == before
    np.testing.assert_array_equal(np.asarray(image), index)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_result_shares_no_memory_with_an_array(channels):
    array = np.random.default_rng(3).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    before = array.copy()
    array.flags.writeable = False
    image = decode_image(array, max_pixels=LIMIT)
    image.paste((1, 2, 3), (0, 0, 5, 4))
    np.testing.assert_array_equal(array, before)
    assert (np.asarray(image) == (1, 2, 3)).all()


def test_result_shares_no_memory_with_an_image(pixels):
    source = Image.fromarray(pixels)
    decode_image(source, max_pixels=LIMIT).paste((1, 2, 3), (0, 0, 5, 4))
    np.testing.assert_array_equal(np.asarray(source), pixels)


def test_non_contiguous_array_is_decoded(pixels):
    np.testing.assert_array_equal(decode(pixels[::-1, ::2]), pixels[::-1, ::2])


def times_open(*paths) -> int:
    """How often this process has these very files open, whatever else it and its threads have."""
    wanted, found = {os.path.realpath(path) for path in paths}, 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{name}") in wanted
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads open files from /proc")
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "webp"])
def test_files_are_closed(write, photo, kind):
    data = encoded(photo, kind)
    good, bad = write(data, "good"), write(data[: len(data) // 2], "bad")
    with open(good, "rb"):
        assert times_open(good, bad) == 1
    kept = [decode_image(good, max_pixels=LIMIT) for _ in range(5)]
    for _ in range(5):
        reason(bad)
    assert len(kept) == 5
    assert times_open(good, bad) == 0


def test_threads_give_what_one_thread_gives(write, photo):
    sources = [write(encoded(np.roll(photo, i, axis=1), "png"), f"{i}.png") for i in range(8)]
    # One unread image with one file position, and one read image, that all threads share.
    sources += [Image.open(io.BytesIO(encoded(photo))), Image.fromarray(photo)]
    expected = [np.roll(photo, i, axis=1) for i in range(8)] + [photo, photo]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(decode, sources * 20))
    for result, array in zip(results, expected * 20, strict=True):
        np.testing.assert_array_equal(result, array)
