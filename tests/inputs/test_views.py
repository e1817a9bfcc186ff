# SPDX-License-Identifier: BSD-3-Clause
"""Views of images: their geometry, the sequence of them, and their keys in stores."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from skpool.inputs import (
    VIEWS,
    DecodeError,
    ImageSequence,
    _image_sequence,
    image_views,
    sample_key,
    view_sequence,
)


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels_of(views, image):
    return [np.asarray(view.apply(image)) for view in views]


def keys_of(images, views):
    return [key.item() for key in view_sequence(ImageSequence(images), views).keys()[0]]


# Geometry.


@pytest.mark.parametrize(
    "name, count", [("flip", 2), ("five_crop", 5), ("ten_crop", 10), ("sixteen_view", 16)]
)
def test_set_of_views_has_its_size(name, count):
    assert len(image_views(name)) == count


def test_every_set_has_a_test_of_its_size():
    assert set(VIEWS) == {"flip", "five_crop", "ten_crop", "sixteen_view", "multi_scale"}


def test_flip_is_the_image_and_its_mirror_image():
    image = noise(7, 5)
    plain, mirrored = pixels_of(image_views("flip"), image)
    np.testing.assert_array_equal(plain, np.asarray(image))
    np.testing.assert_array_equal(mirrored, np.asarray(image)[:, ::-1])


def test_five_crops_are_the_corners_and_the_centre():
    image = noise(9, 6)
    x = np.asarray(image)
    expected = [x[:4, :5], x[:4, 4:], x[2:, :5], x[2:, 4:], x[1:5, 2:7]]
    for actual, desired in zip(pixels_of(image_views("five_crop"), image), expected, strict=True):
        np.testing.assert_array_equal(actual, desired)


@given(st.integers(20, 200), st.integers(20, 200), st.floats(0.1, 1.0))
@settings(max_examples=30)
def test_crop_keeps_the_share_of_the_area(width, height, area):
    for view in image_views("five_crop", crop_area=area):
        w, h = view.apply(Image.new("RGB", (width, height))).size
        side = math.sqrt(area)
        assert abs(w - side * width) <= 1.0001 and abs(h - side * height) <= 1.0001


def test_sixteen_views_are_whole_five_crops_two_rotations_and_their_mirror_images():
    image = noise(30, 21)
    views = pixels_of(image_views("sixteen_view"), image)
    np.testing.assert_array_equal(views[0], np.asarray(image))
    for actual, crop in zip(views[1:6], pixels_of(image_views("five_crop"), image), strict=True):
        np.testing.assert_array_equal(actual, crop)
    assert [view.angle for view in image_views("sixteen_view")[6:8]] == [15, -15]
    for view, mirrored in zip(views[:8], views[8:], strict=True):
        np.testing.assert_array_equal(mirrored, view[:, ::-1])


@given(st.integers(3, 40), st.integers(3, 40))
@settings(max_examples=30)
def test_crops_of_the_mirror_image_are_mirror_images_of_the_crops(width, height):
    image = noise(width, height)
    views = image_views("five_crop")
    straight, mirrored = pixels_of(views, image), pixels_of(views, ImageOps.mirror(image))
    for a, b in zip((0, 1, 2, 3, 4), (1, 0, 3, 2, 4), strict=True):
        np.testing.assert_array_equal(mirrored[a], straight[b][:, ::-1])


@pytest.mark.parametrize("angle", [15.0, -30.0, 60.0])
def test_rotation_turns_anticlockwise_about_the_centre(angle):
    y, x = np.mgrid[0:60, 0:80]
    ramp = (2 * x + y + 10).astype(np.uint8)
    image = Image.fromarray(np.repeat(ramp[..., None], 3, axis=2))
    turned = np.asarray(image_views("sixteen_view", angle=angle)[6].apply(image))[..., 0]
    h, w = turned.shape
    dy, dx = np.mgrid[0:h, 0:w] + 0.5 - np.array([h / 2, w / 2])[:, None, None]
    a = math.radians(angle)
    source_x = 40 + math.cos(a) * dx - math.sin(a) * dy
    source_y = 30 + math.sin(a) * dx + math.cos(a) * dy
    expected = 2 * (source_x - 0.5) + (source_y - 0.5) + 10
    # A linear ramp is interpolated exactly but at the edge; Pillow cuts fractions off.
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(turned - expected)[inner].max() < 1.5


def test_rotation_keeps_two_thirds_of_the_area_of_a_square():
    w, h = image_views("sixteen_view")[6].apply(Image.new("RGB", (600, 600))).size
    assert w == h and w * h / 600**2 == pytest.approx(2 / 3, abs=0.01)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(-89, 89))
@settings(max_examples=60)
def test_rotation_makes_up_no_pixel(width, height, angle):
    white = Image.new("RGB", (width, height), "white")
    assert np.asarray(image_views("sixteen_view", angle=angle)[6].apply(white)).min() == 255


def test_zoom_in_keeps_the_centre():
    image = noise(12, 8)
    (view,) = pixels_of(image_views("multi_scale", scales=[2.0]), image)
    np.testing.assert_array_equal(view, np.asarray(image)[2:6, 3:9])


def test_zoom_out_continues_the_image_by_its_mirror_image():
    image = noise(12, 8)
    (view,) = pixels_of(image_views("multi_scale", scales=[0.5]), image)
    assert view.shape == (16, 24, 3)
    np.testing.assert_array_equal(view[4:12, 6:18], np.asarray(image))
    np.testing.assert_array_equal(view[4:12, :6], np.asarray(image)[:, 5::-1])


def test_zoom_by_one_is_the_image():
    image = noise(5, 5)
    np.testing.assert_array_equal(
        pixels_of(image_views("multi_scale"), image)[1], np.asarray(image)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
@pytest.mark.parametrize("name", sorted(VIEWS))
def test_smallest_images_have_all_views(name, size):
    for view in image_views(name):
        assert min(view.apply(noise(*size)).size) >= 1


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_views_do_not_change_the_image(name):
    image = noise(9, 7)
    before = np.array(image)
    pixels_of(image_views(name), image)
    np.testing.assert_array_equal(np.asarray(image), before)


# What a user may give.


@pytest.mark.parametrize(
    "views, options, error, match",
    [
        ("nine_crop", {}, ValueError, "five_crop"),
        ([], {}, ValueError, "empty"),
        ([3], {}, TypeError, r"views\[0\]=3"),
        ([("name", 3)], {}, TypeError, "callable"),
        ([(3, ImageOps.mirror)], {}, TypeError, "callable"),
        ("multi_scale", {"scales": []}, ValueError, "positive"),
        ("multi_scale", {"scales": [1.0, 0.0]}, ValueError, "positive"),
        ("multi_scale", {"scales": [np.inf]}, ValueError, "positive"),
    ],
)
def test_bad_views_are_refused_with_the_remedy(views, options, error, match):
    with pytest.raises(error, match=match):
        image_views(views, **options)


def test_callable_that_gives_no_image_is_refused():
    with pytest.raises(TypeError, match="must return a PIL image"):
        image_views([np.asarray])[0].apply(noise(3, 3))


def test_callable_may_give_another_mode():
    (view,) = image_views([ImageOps.grayscale])
    assert view.apply(noise(3, 3)).mode == "RGB"


def test_callable_that_draws_into_its_image_spoils_no_other_view():
    def draw(image):
        ImageDraw.Draw(image).rectangle((0, 0, 99, 99), fill="red")
        return image

    image = noise(6, 6)
    sequence = view_sequence(ImageSequence([image]), image_views([draw, lambda image: image]))
    assert sequence[0].reshape(-1, 3).tolist() == [[255, 0, 0]] * 36
    np.testing.assert_array_equal(sequence[1], np.asarray(image))


def random_crop(image, rng):
    left, top = rng.integers(0, 5, 2).tolist()
    return image.crop((left, top, left + 4, top + 4))


def test_random_view_is_a_function_of_its_image():
    images = ImageSequence([noise(9, 9, seed) for seed in range(3)])
    views = image_views([random_crop] * 4, random_state=1)
    forwards = [np.array(x) for x in view_sequence(images, views)]
    sequence = view_sequence(images, views)
    backwards = [sequence[i] for i in range(11, -1, -1)][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert len({x.tobytes() for x in forwards[:4]}) > 1
    other = view_sequence(images, image_views([random_crop] * 4, random_state=2))
    assert any((a != b).any() for a, b in zip(forwards, other, strict=True))


# The sequence.


def test_rows_are_the_views_of_one_image_after_the_other(paths):
    images, views = ImageSequence(paths), image_views("sixteen_view")
    sequence = view_sequence(images, views)
    assert sequence.shape == (160,)
    for row in (0, 15, 16, 17, 159):
        expected = views[row % 16].apply(images.load(row // 16))
        np.testing.assert_array_equal(sequence[row], np.asarray(expected))
        assert sequence.name(row) == paths[row // 16]


def test_views_of_views_of_the_sequence_compose(block):
    sequence = view_sequence(ImageSequence(block), image_views("flip"))
    part = ImageSequence(sequence)[4:][::-2]
    np.testing.assert_array_equal(part[1], block[8, :, ::-1])
    assert part.name(1) == "X[8]"


def counted_decoding(monkeypatch):
    seen, decode = [], _image_sequence.decode_image

    def counting(source, **options):
        seen.append(source)
        return decode(source, **options)

    monkeypatch.setattr(_image_sequence, "decode_image", counting)
    return seen


def test_image_is_decoded_once_for_all_its_views(paths, monkeypatch):
    seen = counted_decoding(monkeypatch)
    sequence = view_sequence(ImageSequence(paths), image_views("sixteen_view"))
    for row in range(len(sequence)):
        sequence.load(row)
    assert seen == paths


def test_unchanged_view_is_decoded_as_its_image_is_and_the_others_in_full(tmp_path):
    path = str(tmp_path / "large.jpg")
    noise(128, 96).resize((512, 384)).save(path, quality=90)
    images = ImageSequence([path])
    reduced = np.asarray(images.load(0, at_least=50))
    assert reduced.shape == (96, 128, 3)
    for views in ("flip", [ImageOps.mirror, lambda image: image]):
        sequence = view_sequence(images, image_views(views))
        for row in (0, 1, 0, 1):
            view = np.asarray(sequence.load(row, at_least=50))
            if views == "flip" and row == 0:
                np.testing.assert_array_equal(view, reduced)
            else:
                assert view.shape == (384, 512, 3)


def test_unreadable_image_is_tried_once_and_named_by_every_view(tmp_path, monkeypatch):
    seen = counted_decoding(monkeypatch)
    path = tmp_path / "bad.png"
    path.write_bytes(b"no image")
    sequence = view_sequence(ImageSequence([str(path)]), image_views("five_crop"))
    for row in range(5):
        with pytest.raises(DecodeError, match=r"bad\.png"):
            sequence.load(row)
    assert len(seen) == 1


def test_slice_travels_with_its_own_images_alone():
    images = [noise(50, 50, seed) for seed in range(10)]
    sequence = view_sequence(ImageSequence(images), image_views("ten_crop"))
    data = pickle.dumps(sequence[[31, 5, 35]])
    assert len(data) < 2.5 * 50 * 50 * 3
    back = pickle.loads(data)
    assert [back.name(i) for i in range(3)] == ["X[3]", "X[0]", "X[3]"]
    for i, row in enumerate((31, 5, 35)):
        np.testing.assert_array_equal(back[i], sequence[row])
    np.testing.assert_array_equal(back.keys()[0], sequence[[31, 5, 35]].keys()[0])


# Keys.


def test_unchanged_view_has_the_key_of_its_image(block):
    images = ImageSequence(block)
    keys = view_sequence(images, image_views("flip")).keys()[0]
    np.testing.assert_array_equal(keys[::2], images.keys()[0])


def test_every_view_of_every_image_has_a_key_of_its_own(paths):
    keys = keys_of(paths, image_views("sixteen_view"))
    assert len(set(keys)) == 160


def test_equal_definitions_have_equal_keys(paths):
    ten, five = keys_of(paths[:1], image_views("ten_crop")), image_views("five_crop")
    assert ten[:5] == keys_of(paths[:1], five)
    sixteen = keys_of(paths[:1], image_views("sixteen_view"))
    assert sixteen[1:6] == ten[:5] and sixteen[9:14] == ten[5:]


@pytest.mark.parametrize(
    "name, options, rows",
    [
        ("five_crop", {"crop_area": 0.5}, range(5)),
        ("sixteen_view", {"angle": 20.0}, (6, 7, 14, 15)),
        ("multi_scale", {"scales": (0.7072, 1.0001, 1.5)}, range(3)),
    ],
)
def test_other_definitions_have_other_keys(name, options, rows, paths):
    before = set(keys_of(paths[:1], image_views(name)))
    after = keys_of(paths[:1], image_views(name, **options))
    assert before.isdisjoint(after[row] for row in rows)


def test_keys_of_files_need_no_decoding(paths, monkeypatch):
    seen = counted_decoding(monkeypatch)
    keys_of(paths, image_views("sixteen_view"))
    assert seen == []


amount = 1


def shifted(image):
    return Image.fromarray((np.asarray(image).astype(int) + amount).clip(0, 255).astype(np.uint8))


def test_callable_is_known_by_the_pixels_that_it_gives(monkeypatch):
    image = noise(4, 4)
    (before,) = keys_of([image], image_views([shifted]))
    # The code is the same, and what it refers to is not.
    monkeypatch.setitem(globals(), "amount", 9)
    (after,) = keys_of([image], image_views([shifted]))
    assert before != after
    assert after == sample_key(shifted(image))


def test_callables_that_do_the_same_share_their_features():
    image = noise(4, 4)
    assert keys_of([image], image_views([lambda x: x, ImageOps.mirror])) == [
        sample_key(image),
        sample_key(ImageOps.mirror(image)),
    ]


def test_named_callable_is_not_run_for_its_key(paths):
    def never(image):
        raise AssertionError

    keys = keys_of(paths, image_views([("blur", never), ("blur 2", never)]))
    assert len(set(keys)) == 20


def test_named_random_callables_differ_by_seed_and_place(paths):
    views = [("crop", random_crop)] * 2
    first = keys_of(paths[:1], image_views(views, random_state=0))
    second = keys_of(paths[:1], image_views(views, random_state=1))
    assert len({*first, *second}) == 4


def test_missing_file_has_no_key_in_any_of_its_views(paths, tmp_path):
    images = ImageSequence([paths[0], str(tmp_path / "gone.png")])
    for views in ("flip", [ImageOps.mirror, lambda x: x]):
        keys, failures = view_sequence(images, image_views(views)).keys()
        assert sorted(failures) == [2, 3] and "does not exist" in failures[2]
        assert not any(keys[2:].tobytes())


def test_views_by_content_do_not_depend_on_the_place_of_a_file(paths, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(paths[0]).read_bytes())
    sequences = [
        view_sequence(ImageSequence([path]), image_views("flip")) for path in (paths[0], str(copy))
    ]
    by_stat = [sequence.keys()[0].tobytes() for sequence in sequences]
    by_content = [ImageSequence(s, key="content").keys()[0].tobytes() for s in sequences]
    assert by_stat[0] != by_stat[1] and by_content[0] == by_content[1]
