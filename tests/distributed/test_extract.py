# SPDX-License-Identifier: BSD-3-Clause
"""Many workers fill one store as one process would, whatever happens to them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import RECIPE, counting_backbone, token_backbone
from nets_on_workers import FailingNet, mean_of_tokens
from PIL import Image
from sklearn.pipeline import make_pipeline

import skpool
from skpool.backbones import Backbone
from skpool.distributed import extract
from skpool.distributed._extract import _Run, _Scratch
from skpool.distributed._tasks import _Threads
from skpool.exceptions import StoreError, UnreadableInputError
from skpool.extraction import FeatureExtractor
from skpool.inputs import ImageSequence
from skpool.pooling import GeMPooling, TokenPooling
from skpool.prototypes import NearestClassMeanClassifier
from skpool.stores import FeatureStore

# Not the bare name, which is also that of this directory.
pytest.importorskip("distributed.client", reason="dask.distributed is not installed")


@pytest.fixture(params=["network", "disk"])
def scratch(request, tmp_path):
    return None if request.param == "network" else tmp_path / "scratch"


def _pipeline(tmp_path, backbone=None, **options):
    backbone = backbone or counting_backbone(tmp_path / "count")
    options = {"store": tmp_path / "store", **options}
    return make_pipeline(FeatureExtractor(backbone, **options), GeMPooling())


def _expected(files):
    tokens = FeatureExtractor(token_backbone()).transform(files)
    return GeMPooling().fit_transform(tokens)


def test_rows_are_those_of_one_process_and_need_no_pass_later(client, files, tmp_path, scratch):
    pipeline, count = _pipeline(tmp_path), tmp_path / "count"
    report = extract(pipeline, files, client=client, scratch=scratch, partition_size=8)
    assert (report.n_held, report.n_added, report.failed) == (0, 60, [])
    assert count.stat().st_size == 60
    np.testing.assert_allclose(pipeline.fit_transform(files), _expected(files), rtol=1e-6)
    assert count.stat().st_size == 60
    assert scratch is None or not scratch.exists()


def test_pipeline_keeps_vectors_and_no_tokens(client, files, tmp_path, scratch):
    report = extract(_pipeline(tmp_path), files, client=client, scratch=scratch)
    (space,) = report.store.info()["spaces"].values()
    assert (space["n_rows"], tuple(space["row_shape"])) == (60, (6,))


def test_extractor_alone_keeps_tokens_of_all_layers(client, files, tmp_path, scratch):
    extractor = FeatureExtractor(token_backbone(), layers=[1, 2], store=tmp_path / "store")
    report = extract(extractor, files, client=client, scratch=scratch, partition_size=20)
    assert list(report.store.info()["n_rows"].values()) == [60, 60]
    expected = np.asarray(FeatureExtractor(token_backbone(), layers=[1, 2]).transform(files))
    np.testing.assert_allclose(np.asarray(extractor.transform(files)), expected, rtol=1e-6)


def test_class_token_of_an_extractor_is_kept(client, files, tmp_path):
    extractor = FeatureExtractor(
        counting_backbone(tmp_path / "count"), tokens="cls", store=tmp_path / "store"
    )
    extract(extractor, files, client=client)
    extractor.transform(files)
    assert (tmp_path / "count").stat().st_size == 60


def test_second_call_computes_only_what_is_missing(client, files, tmp_path, scratch):
    pipeline, count = _pipeline(tmp_path), tmp_path / "count"
    extract(pipeline, files[:25], client=client, scratch=scratch)
    report = extract(pipeline, files, client=client, scratch=scratch)
    assert (report.n_held, report.n_added) == (25, 35)
    assert count.stat().st_size == 60
    assert extract(pipeline, files, client=client, scratch=scratch)[1:] == (60, 0, [])


def test_file_that_is_listed_twice_is_computed_once(client, files, tmp_path):
    report = extract(_pipeline(tmp_path), [*files, *files[:10]], client=client, partition_size=7)
    assert report.n_added == 60
    assert (tmp_path / "count").stat().st_size == 60


def test_relative_paths_are_found_by_workers_elsewhere(client, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [os.path.relpath(name) for name in files[:5]]
    Path(names[2]).write_bytes(b"")
    report = extract(_pipeline(tmp_path, on_error="nan"), names, client=client)
    assert [(row, name) for row, name, _ in report.failed] == [(2, names[2])]


def test_files_known_by_content_are_found_under_other_names(client, files, tmp_path):
    pipeline = _pipeline(tmp_path)
    extract(pipeline, ImageSequence(files, key="content"), client=client)
    moved = [Path(name).rename(tmp_path / Path(name).name) for name in files]
    pipeline.fit_transform(ImageSequence(moved, key="content"))
    assert (tmp_path / "count").stat().st_size == 60


# Files that cannot be read.


def _break(files):
    Path(files[3]).write_bytes(b"no image")
    Path(files[41]).write_bytes(Path(files[41]).read_bytes()[:200])
    Path(files[17]).unlink()
    return [*files, files[41]]


def test_unreadable_files_are_reported_as_in_one_process(client, files, tmp_path, scratch):
    files = _break(files)
    with pytest.raises(UnreadableInputError) as alone:
        _expected(files)
    pipeline = _pipeline(tmp_path)
    with pytest.raises(UnreadableInputError) as many:
        extract(pipeline, files, client=client, scratch=scratch, partition_size=8)
    assert [row for row, _, _ in many.value.failures] == [3, 17, 41, 60]
    assert many.value.failures == alone.value.failures
    good = [name for i, name in enumerate(files) if i not in (3, 17, 41, 60)]
    pipeline.fit_transform(good)
    assert (tmp_path / "count").stat().st_size == 57


def test_unreadable_files_are_listed_when_asked_for_nan(client, files, tmp_path, scratch):
    files = _break(files)
    pipeline = _pipeline(tmp_path, on_error="nan")
    report = extract(pipeline, files, client=client, scratch=scratch, partition_size=8)
    vectors = pipeline.fit_transform(files)
    assert report.failed == pipeline[0].failed_
    assert np.flatnonzero(np.isnan(vectors).all(axis=1)).tolist() == [3, 17, 41, 60]


@pytest.mark.parametrize("destroy", [Path.unlink, lambda path: path.write_bytes(b"no image")])
def test_nothing_but_bad_files_is_a_report(destroy, client, files, tmp_path, scratch):
    for name in files[:3]:
        destroy(Path(name))
    pipeline = _pipeline(tmp_path, on_error="nan")
    report = extract(pipeline, files[:3], client=client, scratch=scratch, partition_size=1)
    assert (report.n_held, report.n_added) == (0, 0)
    assert [name for _, name, _ in report.failed] == files[:3]


def test_limit_of_pixels_holds_on_the_workers(client, files, tmp_path):
    with skpool.config_context(max_pixels=100):
        with pytest.raises(UnreadableInputError, match="max_pixels"):
            extract(_pipeline(tmp_path), files[:2], client=client)
    assert len(extract(_pipeline(tmp_path), files[:2], client=client).failed) == 0


def test_other_directories_in_scratch_are_left_alone(client, files, tmp_path):
    with FeatureStore(tmp_path / "scratch" / "mine") as mine:
        mine.put("5a", np.zeros(1, "V16"), np.ones((1, 2)))
    extract(_pipeline(tmp_path), files, client=client, scratch=tmp_path / "scratch")
    assert os.listdir(tmp_path / "scratch") == ["mine"]


def test_interrupted_call_goes_on_where_it_stood(client, files, tmp_path, scratch, monkeypatch):
    pipeline, taken = _pipeline(tmp_path), []

    def interrupted(run, part, failed, rows):
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.extend([part])
        take(run, part, failed, rows)

    take = _Run._take
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(pipeline, files, client=client, scratch=scratch, partition_size=10)
    report = extract(pipeline, files, client=client, scratch=scratch)
    assert report.n_held >= 30
    assert report.n_held + report.n_added == 60
    np.testing.assert_allclose(pipeline.fit_transform(files), _expected(files), rtol=1e-6)


# What is refused, and what goes wrong.


def test_error_of_the_network_names_the_partition_and_keeps_the_others(client, files, tmp_path):
    Image.new("RGB", (20, 20), (255, 255, 254)).save(files[30])
    backbone = Backbone.from_module(FailingNet(), recipe=RECIPE, patch_size=4)
    pipeline = _pipeline(tmp_path, backbone, batch_size=1)
    with pytest.raises(RuntimeError, match="too bright") as caught:
        extract(pipeline, files, client=client, partition_size=10, scratch=tmp_path / "scratch")
    assert files[30] in caught.value.__notes__[0] and files[39] in caught.value.__notes__[0]
    (n_rows,) = FeatureStore.shared(tmp_path / "store").info()["n_rows"].values()
    assert n_rows >= 50


def test_scratch_that_workers_do_not_see_is_refused(client, files, tmp_path, monkeypatch):
    elsewhere = (str(tmp_path / "elsewhere"), "call-0")
    monkeypatch.setattr(_Scratch, "seen_from_workers", elsewhere)
    with pytest.raises(StoreError, match=r"not on a disk that the worker tcp://.* sees"):
        extract(_pipeline(tmp_path), files, client=client, scratch=tmp_path / "scratch")


def test_file_that_changes_meanwhile_is_named(client, files, tmp_path, scratch):
    images = ImageSequence(files)
    images.keys()
    os.utime(files[5], (1, 1))
    with pytest.raises(StoreError, match=r"1 image.*005\.png.*content"):
        extract(_pipeline(tmp_path), images, client=client, scratch=scratch)


def test_threads_of_torch_are_limited_and_set_back():
    before = torch.get_num_threads()
    threads = _Threads()
    try:
        torch.set_num_threads(3)
        with threads.limited(1):
            with threads.limited(2):
                assert torch.get_num_threads() == 2
            assert torch.get_num_threads() in (1, 2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (lambda p: TokenPooling(), {}, "does not begin with a FeatureExtractor"),
        (lambda p: make_pipeline(TokenPooling()), {}, "does not begin with a FeatureExtractor"),
        (_pipeline, {"partition_size": 0}, "partition_size=0"),
        (_pipeline, {"partition_size": True}, "partition_size=True"),
        (_pipeline, {"n_threads": 0}, "n_threads=0"),
        (lambda p: _pipeline(p, store=None), {}, "store=None"),
        (lambda p: FeatureExtractor(keep_tokens=False), {"store": "s"}, "keep_tokens=False"),
        (_pipeline, {"client": "tcp://"}, "must be a dask.distributed.Client"),
        (lambda p: _pipeline(p, layers=9), {}, "layer"),
    ],
)
def test_wrong_arguments_are_refused(make, options, match, client, files, tmp_path):
    with pytest.raises((ValueError, TypeError), match=match):
        extract(make(tmp_path), files, **{"client": client, **options})


def test_images_in_memory_are_refused(client, tmp_path):
    with pytest.raises(TypeError, match=r"paths\[0\] is of type ndarray"):
        extract(_pipeline(tmp_path), np.zeros((2, 8, 8, 3), np.uint8), client=client)


def test_pooling_that_no_store_keeps_is_refused(client, files, tmp_path):
    pipeline = _pipeline(tmp_path)
    pipeline.steps[1] = ("pool", TokenPooling(strategy=mean_of_tokens))
    with pytest.raises(ValueError, match="kept in no store"):
        extract(pipeline, files, client=client)


def test_pipeline_with_a_classifier_learns_without_a_pass(client, files, tmp_path):
    pipeline = _pipeline(tmp_path)
    pipeline.steps.append(("clf", NearestClassMeanClassifier()))
    extract(pipeline, files, client=client)
    pipeline.fit(files, np.arange(60) % 3).predict(files)
    assert (tmp_path / "count").stat().st_size == 60
