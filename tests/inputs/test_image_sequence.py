# SPDX-License-Identifier: BSD-3-Clause
"""The lazy X of images: what it takes, what it refuses, and its indexing against numpy's."""

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import skpool
from skpool.inputs import DecodeError, ImageSequence, sample_key


def assert_same(sequence, arrays):
    assert len(sequence) == len(arrays)
    for got, expected in zip(sequence, arrays, strict=True):
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, expected)


# What it takes


def object_array(items):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


@pytest.mark.parametrize(
    "container",
    [
        list,
        tuple,
        np.array,
        object_array,
        lambda paths: [Path(path) for path in paths],
        lambda paths: np.array(paths, dtype=np.dtypes.StringDType()),
    ],
)
def test_containers_of_paths_give_their_pixels(paths, arrays, container):
    assert_same(ImageSequence(container(paths)), arrays)


@pytest.mark.parametrize("dtype", [None, object, "string", "category"])
def test_series_of_paths_gives_its_pixels(paths, arrays, dtype):
    pd = pytest.importorskip("pandas")
    series = pd.Series(paths, index=range(50, 60), dtype=dtype)
    assert_same(ImageSequence(series), arrays)
    assert_same(ImageSequence(pd.DataFrame({"path": series})["path"]), arrays)


@pytest.mark.parametrize("container", [list, tuple, object_array])
def test_containers_of_images_and_arrays_give_their_pixels(arrays, container):
    assert_same(ImageSequence(container([Image.fromarray(a) for a in arrays])), arrays)
    assert_same(ImageSequence(container(arrays)), arrays)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_block_gives_rgb(channels):
    block = np.random.default_rng(2).integers(0, 256, (3, 4, 5, channels), dtype=np.uint8)
    block[..., 3:] = 255
    expected = np.repeat(block, 3, axis=3) if channels == 1 else block[..., :3]
    assert_same(ImageSequence(block), expected)


def test_mixed_kinds_give_their_pixels(paths, arrays):
    mixed = [paths[0], Path(paths[1]), Image.fromarray(arrays[2]), *arrays[3:]]
    assert_same(ImageSequence(mixed), arrays)


def test_sequence_of_a_sequence_shares_its_base(paths, arrays):
    view = ImageSequence(paths)[3:7]
    again = ImageSequence(view)
    assert_same(again, arrays[3:7])
    assert again._base is view._base


def test_key_is_passed_on_unless_content_is_asked(paths):
    content = ImageSequence(paths, key="content")
    assert ImageSequence(content).key == "content"
    stat = ImageSequence(paths)[2:4]
    assert ImageSequence(stat).key == "stat"
    asked = ImageSequence(stat, key="content")
    assert asked.key == "content"
    assert asked.keys()[0].tolist() == [sample_key(p, by="content") for p in paths[2:4]]


def test_changing_the_list_later_changes_nothing(paths, arrays):
    given_list = list(paths)
    sequence = ImageSequence(given_list)
    given_list.reverse()
    assert_same(sequence, arrays)


def test_block_is_neither_copied_nor_writable_through(block):
    before = block.copy()
    sequence = ImageSequence(block)
    assert np.shares_memory(sequence._base.sources, block)
    image = sequence[0]
    image[:] = 7
    sequence.load(1).paste((1, 2, 3), (0, 0, 5, 4))
    np.testing.assert_array_equal(block, before)


def test_read_only_block_is_accepted(block):
    block.flags.writeable = False
    assert_same(ImageSequence(block), block)


def test_images_are_left_as_they_were(arrays):
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(arrays[0]).save(stream, "png", exif=exif)
    with Image.open(stream) as image:
        sequence = ImageSequence([image])
        np.testing.assert_array_equal(sequence[0], np.rot90(arrays[0], -1))
        sequence.keys()
        pickle.dumps(sequence)
        assert image.tile and not image.fp.closed
        np.testing.assert_array_equal(np.asarray(image), arrays[0])


# What it refuses


@pytest.mark.parametrize(
    ("samples", "error", "text"),
    [
        ("a.png", TypeError, r"'a.png' is a single path; pass a list: \[path\]"),
        (Path("a.png"), TypeError, "is a single path"),
        (Image.new("L", (2, 2)), TypeError, r"is a single image; pass a list: \[image\]"),
        ([], ValueError, r"Found array with 0 sample\(s\)"),
        ((), ValueError, r"Found array with 0 sample\(s\)"),
        (np.empty(0, dtype=object), ValueError, r"Found array with 0 sample\(s\)"),
        (np.empty((0, 4, 4, 3), dtype=np.uint8), ValueError, r"Found array with 0 sample\(s\)"),
        (np.ones((2, 4, 4, 3)), ValueError, r'float64.*\(255 \* X\).round\(\).astype\("uint8"\)'),
        (np.ones((2, 4, 4, 3), dtype=np.int64), ValueError, r'int64.*X.astype\("uint8"\)'),
        (np.ones((2, 4, 4, 3), dtype=bool), ValueError, r'bool.*X.astype\("uint8"\) \* 255'),
        (np.ones((2, 4), dtype=np.uint8), ValueError, r"\(2, 4\).*X\[None, ..., None\]"),
        (np.ones((2, 4, 4), dtype=np.uint8), ValueError, r"\(2, 4, 4\).*X\[..., None\] for n grey"),
        (np.ones((4, 4, 3), dtype=np.uint8), ValueError, r"X\[None\] for one colour image"),
        (np.ones(4, dtype=np.uint8), ValueError, r"\(4,\).*reshape"),
        (np.array(4, dtype=np.uint8), ValueError, r"shape \(\).*reshape"),
        (np.ones((2, 3, 8, 8), dtype=np.uint8), ValueError, r"X.transpose\(0, 2, 3, 1\)"),
        (np.ones((2, 8, 8, 2), dtype=np.uint8), ValueError, r"\(2, 8, 8, 2\).*C in \(1, 3, 4\)"),
        (np.ones((2, 0, 8, 3), dtype=np.uint8), ValueError, "without pixels"),
        (np.array([["a", "b"]]), ValueError, r"shape \(1, 2\).*X.ravel\(\)"),
        (np.array([b"a.png"]), TypeError, r"dtype \|S5; pass a list"),
        (["a.png", 3], TypeError, r"samples\[1\]=3 is of type int"),
        (["a.png", b"b.png"], TypeError, r"samples\[1\]=b'b.png' is of type bytes"),
        (["a.png", None], ValueError, r"samples\[1\] is missing \(None\); drop this row"),
        (["a.png", float("nan")], ValueError, r"samples\[1\] is missing \(nan\)"),
        ([np.ones((2, 2, 3))], ValueError, r"samples\[0\].*float64.*\(255 \* it\)"),
        ([np.ones((2, 2), dtype=np.uint8)], ValueError, r"samples\[0\].*image\[..., None\]"),
        ([np.ones((3, 8, 8), dtype=np.uint8)], ValueError, r"image.transpose\(1, 2, 0\)"),
        ([np.ones((8, 0, 3), dtype=np.uint8)], ValueError, r"samples\[0\].*\(8, 0, 3\)"),
        (None, TypeError, "of type NoneType; pass a list"),
        ({"a.png": 1}, TypeError, "of type dict; pass a list"),
        ((path for path in ["a.png"]), TypeError, "of type generator; pass a list"),
    ],
)
def test_wrong_samples_are_refused_with_a_remedy(samples, error, text):
    with pytest.raises(error, match=text) as caught:
        ImageSequence(samples)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_remedies_work():
    grey = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert_same(ImageSequence(grey[..., None]), np.repeat(grey[..., None], 3, axis=3))
    unit = np.linspace(0, 1, 2 * 3 * 4 * 3).reshape(2, 3, 4, 3)
    remedied = (255 * unit).round().astype("uint8")
    assert_same(ImageSequence(remedied), np.rint(255 * unit))


def test_data_frame_is_refused():
    pd = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=r'DataFrame of shape \(1, 1\); .* df\["path"\]'):
        ImageSequence(pd.DataFrame({"path": ["a.png"]}))


@pytest.mark.parametrize("dtype", [object, "string", "str"])
def test_missing_value_in_a_series_is_refused(dtype):
    pd = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"samples\[2\] is missing"):
        ImageSequence(pd.Series(["a.png", "b.png", None], dtype=dtype))


def test_unknown_key_is_refused(paths):
    with pytest.raises(ValueError, match=r"key='name' .* \['stat', 'content'\]"):
        ImageSequence(paths, key="name")


# How it is indexed


def test_shape_is_that_of_a_vector(paths):
    sequence = ImageSequence(paths)
    assert (sequence.shape, sequence.ndim, len(sequence)) == ((10,), 1, 10)
    assert (sequence[2:5].shape, len(sequence[5:5])) == ((3,), 0)


@st.composite
def indexing(draw, n):
    """An index that is valid for n rows, of any of the kinds that numpy knows."""
    kind = draw(st.sampled_from(["slice", "ints", "list", "mask", "mask list", "pair", "tuple"]))
    if kind == "slice":
        return draw(st.slices(n))
    if kind.startswith("mask"):
        mask = draw(st.lists(st.booleans(), min_size=n, max_size=n))
        return mask if kind == "mask list" else np.array(mask, dtype=bool)
    ints = draw(st.lists(st.integers(-n, n - 1), max_size=12)) if n else []
    if kind == "list":
        return ints
    ints = np.array(ints, dtype=draw(st.sampled_from([np.int64, np.int32])))
    return {"ints": ints, "pair": (ints, ...), "tuple": (ints,)}[kind]


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_views_compose_as_numpy_indexes(data):
    base = np.arange(7)
    images = base.astype(np.uint8)[:, None, None, None]
    whole = ImageSequence(images)
    sequence, expected = whole, base
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(indexing(len(expected)))
        empty = isinstance(index, list) and not index
        sequence, expected = sequence[index], expected[np.array(index, int) if empty else index]
        assert isinstance(sequence, ImageSequence) and sequence._base is whole._base
        assert sequence.shape == expected.shape
        assert [image[0, 0, 0] for image in sequence] == expected.tolist()
        assert [sequence.name(i) for i in range(len(sequence))] == [f"X[{e}]" for e in expected]


@pytest.mark.parametrize(
    "integer", [-10, 0, 9, np.int64(3), np.uint8(3), np.array(3), (3,), (3, ...), (..., -1)]
)
def test_integer_gives_pixels(paths, arrays, integer):
    index = next(i for i in integer if i is not ...) if isinstance(integer, tuple) else integer
    image = ImageSequence(paths)[integer]
    np.testing.assert_array_equal(image, arrays[int(index)])
    assert type(image) is np.ndarray and image.flags.writeable


@pytest.mark.parametrize("everything", [..., (), slice(None), (slice(None), ...)])
def test_everything_is_a_view(paths, arrays, everything):
    assert_same(ImageSequence(paths)[everything], arrays)


@pytest.mark.parametrize(
    "index",
    [
        10,
        -11,
        [0, 10],
        np.array([-11]),
        np.ones(9, dtype=bool),
        np.ones(11, dtype=bool),
        [True] * 3,
        1.0,
        [0.5],
        np.array([]),
        np.array(0.5),
        True,
        np.True_,
        None,
        "a",
        ["a"],
        [[0, 1]],
        (0, 1),
        (0, slice(None)),
        (..., ...),
    ],
)
def test_wrong_index_is_an_index_error(paths, index):
    with pytest.raises(IndexError):
        ImageSequence(paths)[index]


@pytest.mark.parametrize("method", ["load", "name"])
def test_methods_check_their_position(paths, method):
    view = ImageSequence(paths)[:4]
    getattr(view, method)(-4)
    for i in (4, -5):
        with pytest.raises(IndexError, match=f"index {i} is out of bounds .* 4 images"):
            getattr(view, method)(i)


def test_iteration_ends(paths, arrays):
    view = ImageSequence(paths)[::-2]
    assert_same(list(view), arrays[::-2])


# Names and loading


def test_name_is_the_path_as_given_or_the_position(paths, arrays, monkeypatch):
    monkeypatch.chdir(os.path.dirname(paths[0]))
    sequence = ImageSequence(["0.png", Path("./1.png"), arrays[2]])
    assert [sequence.name(i) for i in range(3)] == ["0.png", "1.png", "X[2]"]
    assert sequence[[2]].name(0) == "X[2]"


def test_repr_names_the_first_rows(block, paths):
    assert repr(ImageSequence(block)[4:]) == "ImageSequence of 6 images: X[4], X[5], X[6], ..."
    assert repr(ImageSequence(paths)[3:4]) == f"ImageSequence of 1 image: {paths[3]}"


def test_load_gives_a_pil_image(paths, arrays):
    image = ImageSequence(paths)[5:].load(-1)
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), arrays[9])


def test_nothing_is_read_before_it_is_asked_for(paths):
    sequence = ImageSequence([*paths, "nowhere.png"])[[10, 0]]
    assert sequence.name(0) == "nowhere.png"
    sequence.load(1)
    with pytest.raises(DecodeError) as caught:
        sequence.load(0)
    assert caught.value.name == "nowhere.png"
    assert caught.value.reason == "the file does not exist"
    assert str(caught.value) == "nowhere.png: the file does not exist"


def test_limit_is_read_when_an_image_is_loaded(paths):
    sequence = ImageSequence(paths)
    with skpool.config_context(max_pixels=1):
        with pytest.raises(DecodeError, match=r"0\.png: 12 x 2 = 24 pixels exceed the limit of 1"):
            sequence.load(0)
    sequence.load(0)


def test_many_threads_load_and_index_at_once(paths, arrays):
    shared = Image.open(paths[0])
    sequence = ImageSequence([*paths, shared, *arrays])
    order = np.random.default_rng(0).integers(0, len(sequence), 400)
    with ThreadPoolExecutor(16) as pool:
        images = list(pool.map(lambda i: sequence[[i]][0], order))
    expected = [*arrays, arrays[0], *arrays]
    for i, image in zip(order, images, strict=True):
        np.testing.assert_array_equal(image, expected[i])
    shared.close()


# Keys


def test_keys_are_those_of_the_samples(paths, arrays):
    sequence = ImageSequence([*paths, *arrays, Image.fromarray(arrays[0])])[::-1]
    keys, failures = sequence.keys()
    assert (keys.dtype, keys.shape, failures) == (np.dtype("V16"), (21,), {})
    expected = [sample_key(s) for s in [arrays[0], *arrays[::-1], *paths[::-1]]]
    assert [key.tobytes() for key in keys] == expected


def test_content_keys_are_asked_for_by_key(paths):
    keys, _ = ImageSequence(paths, key="content").keys()
    assert [key.tobytes() for key in keys] == [sample_key(p, by="content") for p in paths]


def test_block_rows_have_the_keys_of_their_pixels(block):
    keys, _ = ImageSequence(block)[[7, 7, 2]].keys()
    assert [key.tobytes() for key in keys] == [sample_key(block[i]) for i in (7, 7, 2)]


def test_rows_without_a_key_are_zero_and_named(paths, tmp_path):
    (tmp_path / "empty.png").touch()
    bad = [str(tmp_path / "nowhere.png"), str(tmp_path / "empty.png"), str(tmp_path)]
    keys, failures = ImageSequence([paths[0], *bad, paths[1]])[[4, 3, 2, 1, 1]].keys()
    assert failures == {
        1: "it is a directory, not an image file",
        2: "the file is empty",
        3: "the file does not exist",
        4: "the file does not exist",
    }
    zero = [key.tobytes() == bytes(16) for key in keys]
    assert zero == [False, True, True, True, True]


def test_keys_are_computed_once_for_all_views(block, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "skpool.inputs._image_sequence.sample_key",
        lambda source, by: asked.append(source) or sample_key(source, by=by),
    )
    sequence = ImageSequence(block)
    first, _ = sequence[2:6].keys()
    second, _ = sequence[[5, 4, 3, 2, 2]].keys()
    assert len(asked) == 4
    assert second[:4].tolist() == first[::-1].tolist()
    sequence.keys()
    assert len(asked) == 10


def test_returned_keys_are_a_copy(block):
    sequence = ImageSequence(block)
    keys, _ = sequence.keys()
    expected = keys.tolist()
    keys[:] = np.zeros((), dtype="V16")
    assert sequence.keys()[0].tolist() == expected


def test_base_remembers_keys_and_a_new_sequence_does_not(paths):
    sequence = ImageSequence(paths)
    before, _ = sequence.keys()
    os.utime(paths[3], ns=(1, 1))
    assert sequence.keys()[0].tolist() == before.tolist()
    after, _ = ImageSequence(paths).keys()
    assert (after != before).nonzero()[0].tolist() == [3]


def test_failure_is_not_remembered(paths, tmp_path):
    sequence = ImageSequence([str(tmp_path / "late.png"), paths[0]])
    assert list(sequence.keys()[1]) == [0]
    os.link(paths[1], tmp_path / "late.png")
    assert sequence.keys()[1] == {}


def test_many_threads_get_the_same_keys(block):
    expected = ImageSequence(block).keys()[0].tolist()
    sequence = ImageSequence(block)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: sequence[i % 5 :].keys()[0].tolist(), range(64)))
    assert all(keys == expected[i % 5 :] for i, keys in enumerate(results))
