# SPDX-License-Identifier: BSD-3-Clause
"""SimpleCIL in LAMDA-PILOT: its `Learner` task by task, whose backbone hands features through."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from _published.clones import load
from _published.tasks import Outcome, Tasks, apart, make_tasks, share
from skpool.prototypes import NearestClassMeanClassifier

CLONE = "LAMDA-PILOT"
ABSENT = ("timm", "tqdm", "backbone.prompt")


class Rows(Dataset):
    """Rows as the published data sets give images: number, values, label."""

    def __init__(self, X: np.ndarray, y: np.ndarray):
        self.X, self.labels = torch.from_numpy(X), y

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[int, torch.Tensor, int]:
        return i, self.X[i], self.labels[i]


def data_of(tasks: Tasks) -> SimpleNamespace:
    """What the learner asks for its data."""

    def get_dataset(labels: np.ndarray, source: str, mode: str) -> Rows:
        train = source == "train"
        X, y = (tasks.X, tasks.y) if train else (tasks.X_test, tasks.y_test)
        rows = np.isin(y, labels)
        return Rows(X[rows], y[rows])

    sizes = [len(np.unique(tasks.y[part])) for part in tasks.parts()]
    return SimpleNamespace(get_dataset=get_dataset, get_task_size=sizes.__getitem__)


def published_learner(code: Path, tasks: Tasks) -> object:
    """Their learner and network, without the images."""
    published = load(code / CLONE, "models.simplecil", ABSENT)
    published.DataLoader = lambda rows, *, batch_size, shuffle, num_workers: DataLoader(
        rows, batch_size, shuffle=shuffle
    )
    net = published.SimpleVitNet.__new__(published.SimpleVitNet)
    nn.Module.__init__(net)
    net.backbone, net.fc, net._device = nn.Identity(), None, "cpu"
    net.backbone.out_dim, net.W_rand, net.RP_dim = tasks.X.shape[1], None, None
    learner = published.Learner.__new__(published.Learner)
    published.BaseLearner.__init__(learner, {"memory_size": 0, "device": ["cpu"]})
    learner._network = net
    return learner


def compare(code: Path, seed: int, *, per_task: int) -> Outcome:
    """Their accuracy and ours after every task."""
    tasks = make_tasks("cifar100_deit_tiny", seed, per_task=per_task, n_train=100, n_test=50)
    learner, data = published_learner(code, tasks), data_of(tasks)
    ours, curves = NearestClassMeanClassifier(), []
    for part in tasks.parts():
        learner.incremental_train(data)
        found, truth = learner._eval_cnn(learner.test_loader)
        learner.after_task()
        ours.partial_fit(tasks.X[part], tasks.y[part])
        seen = np.isin(tasks.y_test, ours.classes_)
        decided = ours.predict(tasks.X_test[seen])
        curves.append((share(found[:, 0], truth), share(decided, truth)))
    weights = learner._network.fc.weight.detach().numpy()
    curves = np.array(curves)
    facts = {
        "identity: distance of prototypes": apart(weights, ours.prototypes_),
        "average over the tasks, theirs": curves[:, 0].mean(),
        "average over the tasks, ours": curves[:, 1].mean(),
        "largest difference after a task": float(np.abs(curves[:, 0] - curves[:, 1]).max()),
    }
    return Outcome(found[:, 0], decided, truth, facts)


RUNS = {
    "CIFAR-100, 10 tasks of 10 classes": partial(compare, per_task=10),
    "CIFAR-100, 20 tasks of 5 classes": partial(compare, per_task=5),
}
