# SPDX-License-Identifier: BSD-3-Clause
"""Workers that are killed lose nothing; the last tests, since one that is new loads torch."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from nets import RECIPE, counting_backbone, token_backbone
from nets_on_workers import SlowNet, slow_rows
from sklearn.pipeline import make_pipeline

from skpool.backbones import Backbone
from skpool.distributed import extract, fit
from skpool.distributed._extract import _Scratch
from skpool.distributed._tasks import _not_held_by_the_dead
from skpool.extraction import FeatureExtractor
from skpool.inputs import ImageSequence
from skpool.pooling import GeMPooling
from skpool.statistics import RunningMoments
from skpool.stores import FeatureStore

# Not the bare name, which is also that of this directory.
pytest.importorskip("distributed.client", reason="dask.distributed is not installed")
dask = pytest.importorskip("dask", reason="dask is not installed")


def _pid_and_modules():
    return len(sys.modules), os.getpid()


@pytest.fixture
def victims(client):
    """Processes of the two workers, first the one that has loaded most."""
    client.wait_for_workers(2, timeout=60)
    return [pid for _, pid in sorted(client.run(_pid_and_modules).values(), reverse=True)]


def _kill(pid, count, *, after):
    """Kill a process once so many images were seen, from a thread; return the thread."""

    def kill():
        while not count.exists() or count.stat().st_size < after:
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def _passes_with_a_kill(client, pid, files, tmp_path, scratch):
    """Images that the networks saw while a worker was killed, after a check of all rows."""
    count = tmp_path / "count"
    backbone = Backbone.from_module(SlowNet(count), recipe=RECIPE, patch_size=4)
    extractor = FeatureExtractor(backbone, store=tmp_path / "store", batch_size=2)
    pipeline = make_pipeline(extractor, GeMPooling())
    thread = _kill(pid, count, after=20)
    report = extract(pipeline, files, client=client, scratch=scratch, partition_size=4)
    thread.join()
    assert (report.n_held, report.n_added, report.failed) == (0, 60, [])
    n_passes = count.stat().st_size
    expected = GeMPooling().fit_transform(FeatureExtractor(token_backbone()).transform(files))
    np.testing.assert_allclose(pipeline.fit_transform(files), expected, rtol=1e-6)
    assert count.stat().st_size == n_passes
    return n_passes


def _fill(path, backbone, files):
    extractor = FeatureExtractor(backbone, store=path, keep_tokens=False)
    make_pipeline(extractor, GeMPooling()).fit_transform(files)
    FeatureStore.shared(path).close()


def test_stores_that_an_interrupted_call_left_are_used_and_removed(client, files, tmp_path):
    count, scratch = tmp_path / "count", tmp_path / "scratch"
    _fill(scratch / "skpool-worker-tcp-127.0.0.1-1", counting_backbone(count), files[:20])
    _fill(scratch / "skpool-worker-tcp-127.0.0.1-2", counting_backbone(count), files[15:30])
    n_passes = count.stat().st_size
    extractor = FeatureExtractor(counting_backbone(count), store=tmp_path / "store")
    pipeline = make_pipeline(extractor, GeMPooling())
    report = extract(pipeline, files, client=client, scratch=scratch)
    assert (report.n_held, report.n_added) == (30, 30)
    assert count.stat().st_size == n_passes + 30
    assert not scratch.exists()


def test_rows_of_the_dead_are_left_out_of_a_task_and_those_of_the_living_are_not(files, tmp_path):
    _fill(tmp_path / "skpool-worker-1", token_backbone(), files[:3])
    _fill(tmp_path / "skpool-worker-2", token_backbone(), files[5:8])
    with FeatureStore(tmp_path / "skpool-worker-1") as store:
        spaces = list(store.info()["spaces"])
    left = _not_held_by_the_dead(
        ImageSequence(files[:10]), spaces, tmp_path, alive={"skpool-worker-2"}
    )
    assert left.tolist() == [3, 4, 5, 6, 7, 8, 9]


def test_task_leaves_out_what_the_dead_have_and_names_bad_files(
    client, files, tmp_path, monkeypatch
):
    """As when a worker dies during the call, whose store is not merged yet."""
    count, scratch = tmp_path / "count", tmp_path / "scratch"
    _fill(scratch / "skpool-worker-tcp-127.0.0.1-1", counting_backbone(count), files[:30])
    Path(files[45]).write_bytes(b"no image")
    merges = []

    def late(shared, store):
        merges.append(store)
        if len(merges) > 1:
            merge_into(shared, store)

    merge_into = _Scratch.merge_into
    monkeypatch.setattr(_Scratch, "merge_into", late)
    extractor = FeatureExtractor(counting_backbone(count), store=tmp_path / "s", on_error="nan")
    pipeline = make_pipeline(extractor, GeMPooling())
    report = extract(pipeline, files, client=client, scratch=scratch, partition_size=60)
    assert [(row, name) for row, name, _ in report.failed] == [(45, files[45])]
    assert (report.n_held, report.n_added) == (0, 59)
    assert count.stat().st_size == 59


def test_worker_killed_with_a_scratch_directory_loses_one_partition(
    client, victims, files, tmp_path
):
    n_passes = _passes_with_a_kill(client, victims[0], files, tmp_path, tmp_path / "scratch")
    assert n_passes <= 60 + 4


def test_worker_killed_without_one_loses_what_was_not_sent(client, victims, files, tmp_path):
    # The partition in its hands, and those whose rows were on their way.
    assert _passes_with_a_kill(client, victims[0], files, tmp_path, None) <= 60 + 3 * 4


def test_worker_killed_while_learning_loses_nothing(client, victims):
    X = np.random.default_rng(0).normal(size=(200, 5)) + 10
    lazy = [dask.delayed(slow_rows)(part, seed) for seed, part in enumerate(np.array_split(X, 30))]
    thread = threading.Timer(0.3, os.kill, (victims[1], signal.SIGKILL))
    thread.start()
    moments = fit(RunningMoments(), lazy, client=client)
    thread.join()
    assert moments.n_samples == 200
    np.testing.assert_allclose(moments.covariance(ddof=1), np.cov(X.T), rtol=1e-10, atol=1e-10)
