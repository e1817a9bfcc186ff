# SPDX-License-Identifier: BSD-3-Clause
"""TEEN: `update_fc` and `soft_calibration` of `MYNET`, whose encoder hands features through."""

from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from _published.clones import load
from _published.tasks import Outcome, Tasks, apart, learned, make_tasks, share
from skpool.prototypes import CalibratedPrototypeClassifier, NearestClassMeanClassifier

CLONE = "TEEN"
BASE, WAY, SHOT = 60, 5, 5


def theirs(code: Path, tasks: Tasks, alpha: float) -> nn.Module:
    """Prototypes of the base session, then session by session."""
    published = load(code / CLONE, "models.teen.Network")
    args = Namespace(
        base_class=BASE,
        way=WAY,
        softmax_t=16,
        temperature=16,
        shift_weight=alpha,
        not_data_init=False,
        new_mode="avg_cos",
    )
    net = published.MYNET.__new__(published.MYNET)
    nn.Module.__init__(net)
    net.args, net.mode, net.encoder = args, "avg_cos", nn.Identity()
    net.num_features = tasks.X.shape[1]
    net.fc = nn.Linear(net.num_features, tasks.n_classes, bias=False)
    for session, part in enumerate(tasks.parts()):
        # Features as maps of one place, which `encode` averages.
        rows = torch.from_numpy(tasks.X[part])[:, :, None, None]
        labels = torch.from_numpy(tasks.y[part])
        net.update_fc([(rows, labels)], np.unique(tasks.y[part]), session)
        if session:
            net.soft_calibration(args, session)
    return net


def compare(code: Path, seed: int, *, alpha: float) -> Outcome:
    """60 base classes of 100 rows, then 8 sessions of 5 classes of 5 rows."""
    tasks = _sessions(seed)
    net = theirs(code, tasks, alpha)
    ours = learned(CalibratedPrototypeClassifier(alpha), tasks)
    with torch.no_grad():
        found = net(torch.from_numpy(tasks.X_test)[:, :, None, None]).numpy()
    decided, truth = ours.predict(tasks.X_test), tasks.y_test
    prototypes = nn.functional.normalize(net.fc.weight.data, dim=1).numpy()
    expected = ours.prototypes_ / np.linalg.norm(ours.prototypes_, axis=1, keepdims=True)
    facts = {"identity: distance of prototypes": apart(prototypes, expected)}
    plain = NearestClassMeanClassifier(metric="cosine").fit(tasks.X, tasks.y)
    named = {"not calibrated": plain.predict(tasks.X_test), "calibrated": decided}
    if alpha != 0.5:
        swapped = learned(CalibratedPrototypeClassifier(1 - alpha), tasks)
        named["alpha as weight of the own mean"] = swapped.predict(tasks.X_test)
    for name, predictions in named.items():
        base = share(predictions[truth < BASE], truth[truth < BASE])
        new = share(predictions[truth >= BASE], truth[truth >= BASE])
        facts[f"{name}: accuracy on base classes"] = base
        facts[f"{name}: accuracy on new classes"] = new
    return Outcome(found.argmax(1), decided, truth, facts)


def _sessions(seed: int) -> Tasks:
    """Base classes with all of 100 rows, new ones with 5 of them."""
    tasks = make_tasks("cifar100_deit_tiny", seed, per_task=WAY, first=BASE, n_train=100, n_test=50)
    kept, ends = [np.arange(tasks.ends[0])], [int(tasks.ends[0])]
    for part in tasks.parts()[1:]:
        rows = np.arange(part.start, part.stop)
        kept += [rows[tasks.y[rows] == label][:SHOT] for label in np.unique(tasks.y[rows])]
        ends.append(ends[-1] + WAY * SHOT)
    kept = np.concatenate(kept)
    return tasks._replace(X=tasks.X[kept], y=tasks.y[kept], ends=np.array(ends))


RUNS = {
    "60 + 8 x 5 classes, 5 shots, alpha 0.1": partial(compare, alpha=0.1),
    "60 + 8 x 5 classes, 5 shots, alpha 0.5": partial(compare, alpha=0.5),
}
