# SPDX-License-Identifier: BSD-3-Clause
"""What a broken file does to a pass: nothing to the others."""

from pathlib import Path

import numpy as np
import pytest
from nets import counting_backbone, token_backbone
from PIL import Image

import skpool
from skpool.exceptions import UnreadableInputError
from skpool.extraction import FeatureExtractor
from skpool.pooling import TokenPooling
from skpool.stores import default_cache


@pytest.fixture(autouse=True)
def clean_cache():
    default_cache().clear()
    yield
    default_cache().clear()


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    names = []
    for i in range(200):
        names.append(str(folder / f"{i:03}.jpg"))
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(names[-1])
    return names


def _truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


BREAKS = {
    "truncated": (_truncate, "truncated"),
    "text": (lambda path: path.write_text("this is no image"), "not an image"),
    "missing": (lambda path: path.unlink(), "not exist|missing|No such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "directory": (lambda path: (path.unlink(), path.mkdir()), "directory"),
    "bomb": (lambda path: Image.new("L", (3000, 3000)).save(path), "max_pixels"),
}


@pytest.mark.parametrize("kind", sorted(BREAKS))
def test_one_bad_file_in_200_is_named_and_the_others_are_stored(kind, files, tmp_path):
    destroy, reason = BREAKS[kind]
    destroy(Path(files[137]))
    count = tmp_path / "count"
    extractor = FeatureExtractor(counting_backbone(count), store=tmp_path / "store")
    with skpool.config_context(max_pixels=1_000_000):
        with pytest.raises(UnreadableInputError, match=reason) as caught:
            TokenPooling().fit_transform(extractor.transform(files))
        assert files[137] in str(caught.value)
        assert [row for row, _, _ in caught.value.failures] == [137]
        assert count.stat().st_size == 199
        # Without the bad one, everything is there already.
        good = files[:137] + files[138:]
        vectors = TokenPooling().fit_transform(extractor.transform(good))
    assert count.stat().st_size == 199
    assert np.isfinite(vectors).all()


def test_bad_files_become_nan_rows_when_asked(files, tmp_path):
    Path(files[3]).write_bytes(b"")
    Path(files[7]).unlink()
    extractor = FeatureExtractor(token_backbone(), on_error="nan")
    tokens = extractor.fit_transform(files[:10])
    vectors = TokenPooling().fit_transform(tokens)
    assert np.isnan(vectors[[3, 7]]).all()
    assert np.isfinite(np.delete(vectors, [3, 7], axis=0)).all()
    assert [(row, name) for row, name, _ in extractor.failed_] == [(3, files[3]), (7, files[7])]
    assert np.isnan(np.asarray(tokens)[[3, 7]]).all()


@pytest.mark.parametrize("destroy", [_truncate, lambda path: path.unlink()])
def test_a_bad_file_that_is_listed_twice_is_reported_twice(destroy, files):
    destroy(Path(files[1]))
    chosen = [files[0], files[1], files[2], files[1]]
    extractor = FeatureExtractor(token_backbone(), on_error="nan")
    vectors = TokenPooling().fit_transform(extractor.transform(chosen))
    assert np.isnan(vectors[[1, 3]]).all()
    assert np.isfinite(vectors[[0, 2]]).all()
    assert [row for row, _, _ in extractor.failed_] == [1, 3]


def test_missing_files_do_not_stand_for_each_other(files):
    content = Path(files[1]).read_bytes(), Path(files[2]).read_bytes()
    for name in files[1:3]:
        Path(name).unlink()
    extractor = FeatureExtractor(token_backbone(), on_error="nan")
    tokens = extractor.transform(files[:4])
    assert np.isnan(TokenPooling().fit_transform(tokens)[1:3]).all()
    for name, data in zip(files[1:3], content, strict=True):
        Path(name).write_bytes(data)
    repaired = TokenPooling().fit_transform(extractor.transform(files[:4]))
    assert np.isfinite(repaired).all()
    assert np.abs(repaired[1] - repaired[2]).max() > 1e-3


def test_a_truncated_file_that_is_repaired_is_read_again(files):
    content = Path(files[1]).read_bytes()
    _truncate(Path(files[1]))
    tokens = FeatureExtractor(token_backbone()).transform(files[:3])
    with pytest.raises(UnreadableInputError):
        TokenPooling().fit_transform(tokens)
    Path(files[1]).write_bytes(content)
    assert np.isfinite(TokenPooling().fit_transform(tokens)).all()


def test_nothing_but_bad_files_gives_nan_rows_of_the_right_width(files):
    for name in files[:3]:
        Path(name).unlink()
    tokens = FeatureExtractor(token_backbone(), on_error="nan").transform(files[:3])
    vectors = TokenPooling(("cls", "mean")).fit_transform(tokens)
    assert vectors.shape == (3, 12)
    assert np.isnan(vectors).all()


def test_an_interrupted_pass_keeps_what_was_computed(files, tmp_path):
    count = tmp_path / "count"
    extractor = FeatureExtractor(
        counting_backbone(count), store=tmp_path / "store", batch_size=10, n_workers=1
    )

    seen = []

    def interrupt(tokens, mask):
        seen.append(len(tokens))
        if sum(seen) == 120:
            raise KeyboardInterrupt
        return tokens[:, 0]

    with pytest.raises(KeyboardInterrupt):
        extractor.transform(files).reduce(interrupt)
    assert count.stat().st_size == 120
    extractor.transform(files).reduce(lambda tokens, mask: tokens[:, 0])
    assert count.stat().st_size == 200
