# SPDX-License-Identifier: BSD-3-Clause
"""Keys of samples: the same for equal samples however they come, different for any other."""

import hashlib
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from skpool.inputs import DecodeError, sample_key


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"some bytes")
    return path


images = arrays(
    np.uint8,
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3, 4])),
    elements=st.integers(0, 255),
)


def test_key_is_16_bytes(file, pixels):
    keys = [sample_key(file), sample_key(file, by="content"), sample_key(pixels)]
    assert [(type(key), len(key)) for key in keys] == [(bytes, 16)] * 3
    assert len(set(keys)) == 3


def test_unknown_kind_is_refused(file):
    with pytest.raises(ValueError, match=r"by='name' .* \['stat', 'content'\]"):
        sample_key(file, by="name")


# Files


@pytest.mark.parametrize("by", ["stat", "content"])
def test_every_spelling_of_a_path_has_one_key(file, by, monkeypatch):
    monkeypatch.chdir(file.parent)
    (file.parent / "sub").mkdir()
    spellings = [str(file), "a.png", "./a.png", "sub/../a.png", f"{file.parent}//a.png"]
    assert {sample_key(spelling, by=by) for spelling in spellings} == {sample_key(file, by=by)}


def test_relative_path_follows_the_working_directory(file, monkeypatch):
    other = file.parent / "other"
    other.mkdir()
    shutil.copy2(file, other / "a.png")
    monkeypatch.chdir(file.parent)
    here = sample_key("a.png")
    monkeypatch.chdir(other)
    assert sample_key("a.png") != here
    assert sample_key("a.png") == sample_key(other / "a.png")


def test_link_has_the_key_of_its_target(file):
    link, directory = file.parent / "link.png", file.parent / "directory"
    link.symlink_to(file)
    directory.symlink_to(file.parent, target_is_directory=True)
    assert sample_key(link) == sample_key(directory / "a.png") == sample_key(file)


def test_directory_link_pointed_elsewhere_gives_another_key(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"some bytes")
        os.utime(tmp_path / name / "a.png", ns=(1, 1))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one", target_is_directory=True)
    before = sample_key(link / "a.png")
    link.unlink()
    link.symlink_to(tmp_path / "two", target_is_directory=True)
    assert sample_key(link / "a.png") != before
    assert sample_key(link / "a.png") == sample_key(tmp_path / "two" / "a.png")


def test_same_file_has_same_key_again(file):
    assert sample_key(file) == sample_key(file)


def test_time_of_modification_changes_the_key(file):
    os.utime(file, ns=(10**18, 10**18))
    before = sample_key(file)
    os.utime(file, ns=(10**18, 10**18 + 1000))
    assert sample_key(file) != before
    os.utime(file, ns=(0, 10**18))
    assert sample_key(file) == before


def test_size_changes_the_key(file):
    os.utime(file, ns=(1, 1))
    before = sample_key(file)
    file.write_bytes(b"some more bytes")
    os.utime(file, ns=(1, 1))
    assert sample_key(file) != before


def test_name_changes_the_key(file):
    before = sample_key(file)
    assert sample_key(file.rename(file.parent / "b.png")) != before


def test_size_and_time_do_not_run_together(tmp_path):
    keys = set()
    for size, time in [(1, 11000), (11, 1000), (1, 1100)]:
        (tmp_path / "a").write_bytes(b"x" * size)
        os.utime(tmp_path / "a", ns=(1, time))
        keys.add(sample_key(tmp_path / "a"))
    assert len(keys) == 3


def test_content_key_is_sha256_of_the_bytes(file):
    expected = hashlib.sha256(b"some bytes").digest()[:16]
    assert sample_key(file, by="content") == expected


def test_content_key_knows_a_copy_and_a_change(file):
    before = sample_key(file, by="content")
    os.utime(file, ns=(1, 1))
    assert sample_key(shutil.copy(file, file.parent / "b.png"), by="content") == before
    file.write_bytes(b"some bytez")
    os.utime(file, ns=(1, 1))
    assert sample_key(file, by="content") != before


@pytest.mark.parametrize("by", ["stat", "content"])
def test_file_without_key_is_refused_with_its_reason(tmp_path, by):
    (tmp_path / "empty.png").touch()
    dangling = tmp_path / "dangling.png"
    dangling.symlink_to(tmp_path / "nowhere.png")
    cases = {
        tmp_path / "missing.png": "does not exist",
        tmp_path / "empty.png": "is empty",
        tmp_path / "empty.png" / "a.png": "does not exist",
        tmp_path: "is a directory",
        f"{tmp_path}/": "is a directory",
        dangling: "does not exist",
        "a\0b": "not a valid path",
    }
    for path, text in cases.items():
        with pytest.raises(DecodeError, match=text) as caught:
            sample_key(path, by=by)
        assert ".png" not in str(caught.value)


# Pixels


@settings(deadline=None, max_examples=50)
@given(image=images)
def test_array_and_equal_image_have_one_key(image):
    array = image[:, :, 0] if image.shape[2] == 1 else image
    assert sample_key(image) == sample_key(Image.fromarray(array))
    assert sample_key(image) == sample_key(image.copy())


@settings(deadline=None, max_examples=50)
@given(image=images, data=st.data())
def test_any_changed_pixel_changes_the_key(image, data):
    # Opaque, since the colour below full transparency is no part of the picture.
    image[:, :, 3:] = 255
    bands = min(image.shape[2], 3)
    place = tuple(data.draw(st.integers(0, n - 1)) for n in (*image.shape[:2], bands))
    changed = image.copy()
    changed[place] ^= data.draw(st.integers(1, 255))
    assert sample_key(changed) != sample_key(image)


def test_shape_changes_the_key(pixels):
    height, width, _ = pixels.shape
    assert sample_key(pixels.reshape(width, height, 3)) != sample_key(pixels)


def test_grey_and_its_repetition_have_one_key(pixels):
    grey = pixels[:, :, :1]
    assert sample_key(grey) == sample_key(np.repeat(grey, 3, axis=2))


def test_opaque_alpha_does_not_change_the_key(pixels):
    alpha = np.full(pixels.shape[:2], 255, dtype=np.uint8)
    assert sample_key(np.dstack([pixels, alpha])) == sample_key(pixels)


def test_memory_layout_does_not_change_the_key(pixels):
    key = sample_key(pixels[::2, ::-1].copy())
    assert sample_key(pixels[::2, ::-1]) == key
    assert sample_key(np.asfortranarray(pixels[::2, ::-1])) == key


def test_kind_does_not_matter_for_pixels(pixels):
    assert sample_key(pixels, by="content") == sample_key(pixels, by="stat")


def test_array_that_is_no_image_is_refused():
    with pytest.raises(DecodeError, match="give uint8"):
        sample_key(np.zeros((2, 2, 3)))


def test_unknown_source_is_a_type_error():
    with pytest.raises(TypeError, match="give a path"):
        sample_key(None)
