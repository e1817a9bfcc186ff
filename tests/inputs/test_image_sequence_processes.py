# SPDX-License-Identifier: BSD-3-Clause
"""Image sequences on their way to other processes: pickles, scikit-learn's splits and searches."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    ShuffleSplit,
    cross_val_predict,
    cross_val_score,
    train_test_split,
)
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skpool.inputs import DecodeError, ImageSequence, sample_key


def assert_same(sequence, arrays):
    assert len(sequence) == len(arrays)
    for got, expected in zip(sequence, arrays, strict=True):
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, expected)


# Pickles


def round_trip(sequence):
    return pickle.loads(pickle.dumps(sequence))


def test_pickle_gives_the_same_rows(paths, arrays, block):
    for samples, expected in [
        (paths, arrays),
        (arrays, arrays),
        ([Image.fromarray(a) for a in arrays], arrays),
        (block, block),
    ]:
        sequence = ImageSequence(samples, key="content")
        index = [3, 3, -1, 0]
        assert_same(round_trip(sequence), expected)
        view = round_trip(sequence[index])
        assert_same(view, [expected[i] for i in index])
        assert view.key == "content"
        assert [view.name(i) for i in range(4)] == [sequence.name(i) for i in index]
        assert view.keys()[0].tolist() == sequence[index].keys()[0].tolist()
        assert round_trip(view[2:3]).name(0) == view.name(2)
        assert len(round_trip(sequence[:0])) == 0


def test_pickle_of_paths_is_small():
    paths = [f"folder/{i:06d}.png" for i in range(1000)]
    sequence = ImageSequence(paths)
    assert len(pickle.dumps(sequence)) < 80 * 1000
    assert len(pickle.dumps(sequence[:10])) < 2000


def test_pickle_of_all_rows_does_not_copy_the_block(block):
    # joblib shares an array between its tasks only where every task sends the same one.
    buffers = []
    pickle.dumps(ImageSequence(block)[::-1], protocol=5, buffer_callback=buffers.append)
    assert any(np.shares_memory(np.frombuffer(b.raw(), np.uint8), block) for b in buffers)


def test_pickle_of_a_view_carries_its_rows_only(block):
    big = np.repeat(block, 100, axis=0)
    assert len(pickle.dumps(ImageSequence(big)[:10])) < 10 * block[0].nbytes + 3000


def test_pickle_carries_keys_of_pixels_and_not_of_files(paths, arrays, monkeypatch):
    sequence = ImageSequence([*paths[:2], *arrays[2:4]])
    before, _ = sequence.keys()
    data = pickle.dumps(sequence)
    os.utime(paths[0], ns=(1, 1))
    asked = []
    monkeypatch.setattr(
        "skpool.inputs._image_sequence.sample_key",
        lambda source, by: asked.append(source) or sample_key(source, by=by),
    )
    after, _ = pickle.loads(data).keys()
    assert asked == paths[:2]
    assert (after != before).tolist() == [True, False, False, False]


def test_pickle_keeps_the_reason_of_an_image_that_cannot_be_read(paths, arrays):
    data = Path(paths[9]).read_bytes()
    with Image.open(io.BytesIO(data[:-30])) as image:
        sequence = ImageSequence([arrays[0], image, paths[1]])
        expected = sequence.keys()[1][1]
        assert "truncated" in expected
        copy = round_trip(sequence)
    assert copy.name(1) == "X[1]"
    assert copy.keys()[1] == {1: expected}
    with pytest.raises(DecodeError, match=r"X\[1\]: truncated"):
        copy.load(1)
    np.testing.assert_array_equal(copy[2], arrays[1])


# In scikit-learn


@pytest.fixture
def labelled(tmp_path):
    """Forty files of two classes: reddish and bluish, of several sizes."""
    rng = np.random.default_rng(5)
    y = np.arange(40) % 2
    for i, label in enumerate(y):
        image = rng.integers(0, 60, (4 + i % 3, 5, 3), dtype=np.uint8)
        image[..., 2 * label] += 150
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(40)], y


@pytest.fixture
def mean_color():
    # Inside a function, so that worker processes receive it by value.
    def mean_color(X, channels=(0, 1, 2)):
        return np.stack([image.mean(axis=(0, 1))[list(channels)] for image in X])

    return FunctionTransformer(mean_color)


def test_train_test_split_gives_views(labelled):
    X, y = ImageSequence(labelled[0]), labelled[1]
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    paths_train, paths_test = train_test_split(labelled[0], stratify=y, random_state=0)
    assert X_train._base is X_test._base is X._base
    assert [X_train.name(i) for i in range(len(X_train))] == paths_train
    assert [X_test.name(i) for i in range(len(X_test))] == paths_test
    assert (len(y_train), len(y_test)) == (len(X_train), len(X_test))


@pytest.mark.parametrize("kind", ["paths", "images", "arrays"])
def test_cross_validation_equals_that_of_features(labelled, mean_color, kind):
    paths, y = labelled
    X = ImageSequence(paths)
    if kind != "paths":
        images = list(X)
        X = ImageSequence(images if kind == "arrays" else [Image.fromarray(a) for a in images])
    features = mean_color.transform(X)
    pipeline = make_pipeline(mean_color, NearestCentroid())
    predicted = cross_val_predict(pipeline, X, y, cv=4)
    np.testing.assert_array_equal(
        predicted, cross_val_predict(NearestCentroid(), features, y, cv=4)
    )
    np.testing.assert_array_equal(predicted, y)
    splitter = ShuffleSplit(5, random_state=0)
    assert cross_val_score(pipeline, X, y, cv=splitter).tolist() == [1.0] * 5


@pytest.mark.parametrize("kind", ["paths", "images"])
def test_parallel_search_equals_serial_search_on_features(labelled, mean_color, kind):
    paths, y = labelled
    X = ImageSequence(paths)
    if kind == "images":
        X = ImageSequence([Image.fromarray(image) for image in X])
    grid = {"functiontransformer__kw_args": [{"channels": c} for c in ((0,), (1,), (0, 1, 2))]}
    pipeline = make_pipeline(mean_color, LogisticRegression())
    search = GridSearchCV(pipeline, grid, cv=3, n_jobs=2).fit(X, y)
    features = mean_color.transform(X)
    expected = [
        cross_val_score(LogisticRegression(), features[:, c], y, cv=3).mean()
        for c in ([0], [1], [0, 1, 2])
    ]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected)
    np.testing.assert_array_equal(search.predict(X[-5:]), y[-5:])
