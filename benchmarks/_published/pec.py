# SPDX-License-Identifier: BSD-3-Clause
"""PEC: `Pec`, one class after another and one row per step."""

from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.base import clone
from sklearn.preprocessing import normalize
from torch import nn
from torch.optim.lr_scheduler import PolynomialLR

from _published.clones import load
from _published.tasks import Outcome, Tasks, apart, learned, make_tasks, share
from skpool.linear_model import PredictionErrorClassifier, PredictionErrorNetworkClassifier

CLONE = "pec"
# `utils.args` would import every model and every data set.
ABSENT = ("wandb", "torchvision", "utils.args", "utils.loggers")


def _mlp(
    in_channels: int,
    hidden_channels: list[int],
    norm_layer: type,
    activation_layer: type,
    **_: object,
) -> nn.Sequential:
    """The layers of `torchvision.ops.MLP` for one hidden layer; its dropout is of rate 0."""
    width, outputs = hidden_channels
    hidden = [nn.Linear(in_channels, width), norm_layer(width), activation_layer()]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def new_model(code: Path, tasks: Tasks) -> nn.Module:
    """The published model, with the settings of its MNIST run."""
    published = load(code / CLONE, "models.pec", ABSENT)
    networks = published.get_single_pec_network.__globals__
    networks["torchvision"] = SimpleNamespace(ops=SimpleNamespace(MLP=_mlp))
    # Theirs is a copy of this one for older versions, and passes an argument that is no more.
    published.get_lr_scheduler.__globals__["PolynomialLR"] = PolynomialLR
    args = Namespace(
        lr=0.01,
        optim_kind="adam",
        optim_scheduler="linear",
        pec_architecture="mlp",
        pec_num_layers=2,
        pec_width=10,
        pec_output_dim=99,
        pec_teacher_width_multiplier=500,
        pec_activation="gelu",
        pec_normalize_layers=True,
    )
    config = {"classes": tasks.n_classes, "size": 1, "channels": tasks.X.shape[1]}
    return published.Pec(None, None, config, args, None)


def scores(model: nn.Module, tasks: Tasks) -> np.ndarray:
    """Learn class after class, row after row; return scores of the test rows."""
    X, y = torch.from_numpy(tasks.X), torch.from_numpy(tasks.y)
    for label, part in enumerate(tasks.parts()):
        model.reset_per_step_lr_scheduler(part.stop - part.start, label, label + 1)
        for i in range(part.start, part.stop):
            model.observe(X[i : i + 1], y[i : i + 1], None)
            model.step_lr_scheduler()
    return model(torch.from_numpy(tasks.X_test)).numpy()


def compare(code: Path, seed: int, *, few: int | None = None) -> Outcome:
    """One flower a task; with `few`, every second class has only so many rows."""
    tasks = make_tasks("flowers17_deit_tiny", seed, per_task=1, n_train=40)
    if few:
        tasks = _thinned(tasks, few)
    unit = tasks._replace(X=normalize(tasks.X), X_test=normalize(tasks.X_test))
    truth, found = tasks.y_test, scores(new_model(code, tasks), tasks).argmax(1)
    plain, calibrated = (
        learned(PredictionErrorClassifier(calibrate=value), unit).predict(unit.X_test)
        for value in (False, True)
    )
    facts = {"accuracy, ours, calibrated": share(calibrated, truth)}
    if few:
        named = {"true": truth, "theirs": found, "ours": plain, "ours, calibrated": calibrated}
        for name, labels in named.items():
            facts[f"share of test rows in the large classes, {name}"] = np.mean(labels % 2 == 0)
    return Outcome(found, plain, truth, facts | _identity(code, tasks, seed))


def _thinned(tasks: Tasks, few: int) -> Tasks:
    """Every second class with few rows."""
    sizes = [few if label % 2 else part.stop for label, part in enumerate(tasks.parts())]
    parts = zip(tasks.parts(), sizes, strict=True)
    rows = [np.arange(part.start, part.stop)[:size] for part, size in parts]
    kept, ends = np.concatenate(rows), np.cumsum([len(part) for part in rows])
    return tasks._replace(X=tasks.X[kept], y=tasks.y[kept], ends=ends)


def _identity(code: Path, tasks: Tasks, seed: int) -> dict[str, float]:
    """Theirs from the initial weights of our networks."""
    ours = PredictionErrorNetworkClassifier(
        10, teacher_multiplier=500, output_dim=99, random_state=seed
    )
    # At rate 0, students stay what they were.
    start = clone(ours).set_params(lr=0.0).fit(tasks.X[:1], tasks.y[:1])
    model = new_model(code, tasks)
    for pair in model.pec_modules:
        for network, weights in (
            (pair.student, start.students_[0]),
            (pair.teacher, start.teacher_),
        ):
            network.features[1].load_state_dict(
                {name: torch.from_numpy(values) for name, values in weights.items()}
            )
    theirs, found = scores(model, tasks), learned(ours, tasks).class_scores(tasks.X_test)
    return {
        "identity, same start, our networks: distance of scores": apart(found, theirs),
        "identity, same start, our networks: equal predictions": share(
            found.argmax(1), theirs.argmax(1)
        ),
    }


RUNS = {
    "17 flowers, 40 rows a class": compare,
    "17 flowers, 40 and 5 rows in turn": partial(compare, few=5),
}
