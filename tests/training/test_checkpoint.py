# SPDX-License-Identifier: BSD-3-Clause
"""A training that was interrupted ends where it would have ended, and damage is never used."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from linear_heads import Linear, classes, trained

from skpool.training import _checkpoint
from skpool.training._checkpoint import FORMAT, Checkpoint, Saved

SETTINGS = {
    "adamw": {"weight_decay": 0.1},
    "sgd with momentum": {"optimizer": "sgd", "momentum": 0.9},
    "exponential average": {"ema": 0.9, "warmup_epochs": 1},
    "plain average": {"swa_start": 2, "schedule": "step"},
    "validation part": {"validation_fraction": 0.2, "early_stopping": True, "patience": 3},
    "everything random": {"mixup": 0.3, "feature_noise": 0.1, "sampler": "class_balanced"},
    "lbfgs": {"optimizer": "lbfgs", "weight_decay": 1e-9},
}


class Interrupts:
    """A callback that is interrupted after an epoch."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def __call__(self, epoch, *losses):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def run(path, *, stop_after=None, module=None, data=None, seed=0, **settings):
    X, y = classes() if data is None else data
    options = {"seed": seed}
    if stop_after is not None:
        options["on_epoch"] = Interrupts(stop_after)
    module = Linear(seed=1, dropout=0.0) if module is None else module
    settings = {"epochs": 6} | settings
    return trained(X, y, module=module, checkpoint=path, options=options, **settings)


def interrupted(path, epoch=2, **settings):
    with pytest.raises(KeyboardInterrupt):
        run(path, stop_after=epoch, **settings)


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch):
    """Rounds of L-BFGS that end before it converges."""
    monkeypatch.setattr("skpool.training._optimizers.LBFGS_ITERATIONS", 3)
    monkeypatch.setattr("skpool.training._run.LBFGS_ITERATIONS", 3)


# The same bits.


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("epochs", [[2], [0, 3]])
def test_resumed_training_gives_the_bits_of_one_that_never_stopped(name, epochs, tmp_path):
    desired, whole = run(None, **SETTINGS[name])
    assert whole.n_iter > 4
    for epoch in epochs:
        interrupted(tmp_path, epoch, **SETTINGS[name])
    actual, resumed = run(tmp_path, **SETTINGS[name])
    np.testing.assert_array_equal(actual, desired)
    np.testing.assert_array_equal(resumed.history, whole.history)
    assert resumed.best_epoch == whole.best_epoch
    assert resumed.optimizer_state.keys() == whole.optimizer_state.keys()
    for key, value in whole.optimizer_state.items():
        np.testing.assert_array_equal(resumed.optimizer_state[key], value)


def test_resumed_dropout_gives_the_bits_of_one_that_never_stopped(tmp_path):
    desired, _ = run(None, module=Linear(dropout=0.3))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, module=Linear(dropout=0.3), stop_after=2)
    actual, _ = run(tmp_path, module=Linear(dropout=0.3))
    np.testing.assert_array_equal(actual, desired)


def test_checkpoint_does_not_change_the_training(tmp_path):
    np.testing.assert_array_equal(run(tmp_path)[0], run(None)[0])


def test_finished_training_is_read_and_not_run_again(tmp_path):
    desired, first = run(tmp_path, validation_fraction=0.2, early_stopping=True, patience=2)
    told = []
    X, y = classes()
    actual, again = trained(
        X,
        y,
        module=Linear(seed=1),
        epochs=6,
        validation_fraction=0.2,
        early_stopping=True,
        patience=2,
        checkpoint=tmp_path,
        options={"on_epoch": lambda *numbers: told.append(numbers)},
    )
    np.testing.assert_array_equal(actual, desired)
    np.testing.assert_array_equal(again.history, first.history)
    assert not told


def test_resumed_run_trains_only_the_epochs_that_are_left(tmp_path):
    class Counting(Linear):
        n_calls = 0

        def forward(self, values, mask):
            Counting.n_calls += 1
            return super().forward(values, mask)

    interrupted(tmp_path, 3)
    run(tmp_path, module=Counting(seed=1), batch_size=16)
    # Two of six epochs, four minibatches each.
    assert Counting.n_calls == 8


# What is on the disk.


def test_directory_holds_arrays_and_json_of_the_last_epoch(tmp_path):
    interrupted(tmp_path / "deep" / "path")
    names = sorted(path.name for path in (tmp_path / "deep" / "path").iterdir())
    assert names == ["epoch-000003.safetensors", "state.json"]
    state = json.loads((tmp_path / "deep" / "path" / "state.json").read_text())
    assert state["format"] == FORMAT and state["facts"]["epoch"] == 3


def test_run_killed_while_it_writes_leaves_the_epoch_before(tmp_path, monkeypatch):
    desired, _ = run(None)
    write = _checkpoint._replaced

    def killed(path, content):
        if path.name == "state.json" and json.loads(content)["facts"]["epoch"] == 4:
            path.with_name("state.json.1.part").write_bytes(content[:40])
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(_checkpoint, "_replaced", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    assert json.loads((tmp_path / "state.json").read_text())["facts"]["epoch"] == 3
    np.testing.assert_array_equal(run(tmp_path)[0], desired)


def test_arrays_come_back_with_shape_and_type(tmp_path):
    arrays = {
        "number": np.asarray(3.5, dtype=np.float32),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "empty": np.empty((0, 2)),
        "whole": np.arange(3),
    }
    Checkpoint(tmp_path, "a").save(Saved(arrays, {"epoch": 1}))
    saved = Checkpoint(tmp_path, "a").load()
    assert saved.facts == {"epoch": 1}
    for name, array in arrays.items():
        np.testing.assert_array_equal(saved.arrays[name], array)
        assert saved.arrays[name].dtype == array.dtype and saved.arrays[name].shape == array.shape


# What is refused.


@pytest.mark.parametrize(
    "other",
    [
        {"lr": 0.04},
        {"epochs": 7},
        {"seed": 1},
        {"sampler": "sqrt"},
        {"loss": "focal"},
        {"module": Linear(seed=2)},
        {"data": (classes()[0], 2 - classes()[1])},
        {"data": (classes()[0] + 1e-9, classes()[1])},
        {"data": (classes()[0][:59], classes()[1][:59])},
    ],
    ids=str,
)
def test_another_training_is_refused(other, tmp_path):
    interrupted(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds another training"):
        run(tmp_path, **other)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("what", ["truncated", "a flipped bit", "missing"])
def test_damaged_arrays_are_refused(what, tmp_path):
    interrupted(tmp_path)
    path = tmp_path / "epoch-000003.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if what == "missing":
        path.unlink()
    else:
        path.write_bytes(content if what == "a flipped bit" else content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"damaged: epoch-000003\.safetensors"):
        run(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe"])
def test_damaged_state_is_refused(content, tmp_path):
    interrupted(tmp_path)
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: state\.json"):
        run(tmp_path)


def test_another_format_is_refused(tmp_path):
    interrupted(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"format": FORMAT + 1}))
    with pytest.raises(ValueError, match=f"has format {FORMAT + 1}"):
        run(tmp_path)


class _Creates:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def forged(directory, content: bytes, name="epoch-000003.safetensors") -> None:
    """Arrays of somebody else's, with the digest that belongs to them."""
    state = json.loads((directory / "state.json").read_text())
    (directory / name).write_bytes(content)
    state |= {"arrays": name, "sha256": _checkpoint.hashlib.sha256(content).hexdigest()}
    (directory / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("save", [lambda value, file: pickle.dump(value, file), torch.save])
def test_code_in_the_arrays_is_never_run(save, tmp_path):
    directory, trace = tmp_path / "checkpoint", tmp_path / "trace"
    interrupted(directory)
    with open(tmp_path / "code", "wb") as file:
        save(_Creates(trace), file)
    forged(directory, (tmp_path / "code").read_bytes())
    with pytest.raises(ValueError, match="holds no arrays"):
        run(directory)
    assert not trace.exists()


def test_nothing_outside_of_the_directory_is_read(tmp_path):
    directory = tmp_path / "checkpoint"
    interrupted(directory)
    content = (directory / "epoch-000003.safetensors").read_bytes()
    forged(directory, content, name="../outside.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        run(directory)
