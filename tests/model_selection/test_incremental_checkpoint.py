# SPDX-License-Identifier: BSD-3-Clause
"""An evaluation that was stopped and started again ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier
from sklearn.neighbors import NearestCentroid

import skpool
from skpool.model_selection import ClassIncrementalSplit, incremental_evaluate
from skpool.prototypes import NearestClassMeanClassifier

TIMES = {"fit_time", "predict_time"}
SPLITTER = ClassIncrementalSplit(increment=2, class_order="shuffled")


class Counting(NearestClassMeanClassifier):
    """Counts how often it learns and is asked."""

    learned = asked = 0

    def partial_fit(self, *args, **kwargs):
        Counting.learned += 1
        return super().partial_fit(*args, **kwargs)

    def predict(self, X):
        Counting.asked += 1
        return super().predict(X)


def make_data():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(["a", "b", "c", "d", "e", "f", "g"], 20))
    return 1.5 * np.eye(7)[np.unique(y, return_inverse=True)[1]] + rng.normal(size=(140, 7)), y


@pytest.fixture(scope="module")
def data():
    return make_data()


def stop_after(n_stages):
    def on_stage(result):
        if len(result.seen_accuracy) == n_stages:
            raise KeyboardInterrupt

    return on_stage


def assert_same(result, expected):
    for field in fields(result):
        found, wanted = getattr(result, field.name), getattr(expected, field.name)
        if field.name in TIMES:
            assert len(found) == len(wanted)
        elif field.name == "predictions":
            for mine, theirs in zip(found or [], wanted or [], strict=True):
                for part, other in zip(mine, theirs, strict=True):
                    np.testing.assert_array_equal(part, other)
        else:
            np.testing.assert_equal(found, wanted)


OPTIONS = [
    {},
    {"return_predictions": True, "eval_future": True},
    {"joint_reference": NearestCentroid(), "average": "macro"},
]


@pytest.mark.parametrize("n_stages", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_an_interrupted_run_ends_as_an_undisturbed_one(data, tmp_path, n_stages, options):
    model = SGDClassifier(random_state=0)
    expected = incremental_evaluate(model, SPLITTER, *data, **options)
    with pytest.raises(KeyboardInterrupt):
        incremental_evaluate(
            model,
            SPLITTER,
            *data,
            checkpoint=tmp_path,
            on_stage=stop_after(n_stages),
            **options,
        )
    result = incremental_evaluate(model, SPLITTER, *data, checkpoint=tmp_path, **options)
    assert_same(result, expected)


def test_finished_stages_are_learned_again_and_not_asked_again(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        incremental_evaluate(
            Counting(), SPLITTER, *data, checkpoint=tmp_path, on_stage=stop_after(2)
        )
    Counting.learned = Counting.asked = 0
    progress = []
    incremental_evaluate(Counting(), SPLITTER, *data, checkpoint=tmp_path, on_stage=progress.append)
    # Four stages; after the third its three groups of test rows are asked, after the last four.
    assert (Counting.learned, Counting.asked) == (4, 3 + 4)
    assert [len(result.seen_accuracy) for result in progress] == [3, 4]


def test_a_finished_run_is_read_and_nothing_is_learned(data, tmp_path):
    expected = incremental_evaluate(Counting(), SPLITTER, *data, checkpoint=tmp_path)
    Counting.learned = 0
    result = incremental_evaluate(Counting(), SPLITTER, *data, checkpoint=tmp_path)
    assert Counting.learned == 0
    assert_same(result, expected)
    np.testing.assert_array_equal(result.fit_time, expected.fit_time)


SCRIPT = """
import os, signal, sys
import numpy as np
sys.path.insert(0, {tests!r})
from test_incremental_checkpoint import SPLITTER, make_data
from skpool.model_selection import incremental_evaluate
from skpool.prototypes import NearestClassMeanClassifier

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def on_stage(result):
    if {where!r} == "on_stage" and len(result.seen_accuracy) == 2:
        die()
    if {where!r} == "rename" and len(result.seen_accuracy) == 1:
        os.replace = die

incremental_evaluate(
    NearestClassMeanClassifier(), SPLITTER, *make_data(), checkpoint={path!r}, on_stage=on_stage
)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is a signal of POSIX")
@pytest.mark.parametrize(("where", "n_finished"), [("on_stage", 2), ("rename", 1)])
def test_a_killed_process_loses_the_stage_it_was_in_alone(data, tmp_path, where, n_finished):
    script = SCRIPT.format(tests=str(Path(__file__).parent), where=where, path=str(tmp_path))
    root = str(Path(skpool.__file__).parents[1])
    killed = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(tmp_path.glob("stage-*.npz"))) == n_finished
    model = NearestClassMeanClassifier()
    result = incremental_evaluate(model, SPLITTER, *data, checkpoint=tmp_path)
    assert_same(result, incremental_evaluate(model, SPLITTER, *data))


@pytest.mark.parametrize(
    "changed",
    [
        {"estimator": NearestClassMeanClassifier("euclidean")},
        {"estimator": Counting()},
        {"splitter": ClassIncrementalSplit(increment=2)},
        {"average": "macro"},
        {"joint_reference": [1.0] * 4},
        {"return_predictions": True},
        {"fit_params": {"sample_weight": np.ones(140)}},
        {"X": make_data()[0] + 1},
        {"y": np.char.add(make_data()[1], "!")},
    ],
    ids=str,
)
def test_a_directory_of_another_evaluation_is_refused(data, tmp_path, changed):
    given = {
        "estimator": NearestClassMeanClassifier(),
        "splitter": SPLITTER,
        "X": data[0],
        "y": data[1],
    }
    incremental_evaluate(**given, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="holds another evaluation"):
        incremental_evaluate(**{**given, **changed}, checkpoint=tmp_path)


@pytest.mark.parametrize("name", ["stage-00001.npz", "run.json"])
def test_a_damaged_file_is_refused_in_one_sentence(data, tmp_path, name):
    model = NearestClassMeanClassifier()
    incremental_evaluate(model, SPLITTER, *data, checkpoint=tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"is damaged: {name} cannot be read"):
        incremental_evaluate(model, SPLITTER, *data, checkpoint=tmp_path)


def test_nothing_in_the_directory_is_a_pickle(data, tmp_path):
    objects = np.array(data[1].tolist(), dtype=object)
    incremental_evaluate(
        SGDClassifier(random_state=0),
        SPLITTER,
        data[0],
        objects,
        checkpoint=tmp_path,
        return_predictions=True,
    )
    for path in tmp_path.glob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays)
