# SPDX-License-Identifier: BSD-3-Clause
"""RanPAC: `Learner.replace_fc` on a backbone that hands features through, phase 2 alone."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, StackDataset

from _published.clones import load
from _published.tasks import Outcome, Tasks, apart, learned, make_tasks, share
from skpool.linear_model import RandomFeatureRidgeClassifier

CLONE = "RanPAC"
ABSENT = ("timm", "petl", "resnet", "tqdm")


class Published:
    """The published learner, without backbone, from the matrix of random directions on."""

    def __init__(self, code: Path, directions: np.ndarray | None, n_features: int, n_classes: int):
        published = load(code / CLONE, "RanPAC", ABSENT)
        heads = load(code / CLONE, "inc_net", ABSENT)
        self.learner = learner = published.Learner.__new__(published.Learner)
        width = n_features if directions is None else directions.shape[1]
        learner.args = {"use_RP": True, "M": 0 if directions is None else width}
        learner.total_classnum = n_classes
        learner._network = nn.Module()
        learner._network.convnet = nn.Identity()
        learner._network.fc = heads.CosineLinear(n_features, n_classes)
        learner.setup_RP()
        if directions is not None:
            learner.W_rand = torch.from_numpy(directions).float()
        learner._network.fc.weight = nn.Parameter(torch.zeros(n_classes, width))
        self.ridges = []
        choose = learner.optimise_ridge_parameter
        learner.optimise_ridge_parameter = lambda H, Y: self._noted(choose(H, Y))

    def _noted(self, ridge: float) -> float:
        self.ridges.append(float(ridge))
        return ridge

    def learn(self, X: np.ndarray, y: np.ndarray, *, shuffle: bool) -> None:
        """Learn a task through a loader, which the published code lets shuffle."""
        rows = StackDataset(torch.arange(len(X)), torch.from_numpy(X), torch.from_numpy(y))
        self.learner.replace_fc(DataLoader(rows, 128, shuffle=shuffle))

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Scores by the published head."""
        with torch.no_grad():
            return self.learner._network.fc(torch.from_numpy(X))["logits"].numpy()

    def with_ridge(self, ridge: float, X: np.ndarray) -> np.ndarray:
        """Predictions from the same sums under another penalty."""
        G, Q = self.learner.G, self.learner.Q
        W = torch.linalg.solve(G + ridge * torch.eye(len(G)), Q)
        self.learner._network.fc.weight.data = W.T
        return self.scores(X).argmax(1)


def compare(
    code: Path, seed: int, *, n_train: int, per_task: int, width: int = 1000, shuffle: bool = True
) -> Outcome:
    """One projection for both, the tasks of one sequence."""
    tasks = make_tasks(
        "cifar100_deit_tiny",
        seed,
        per_task=per_task,
        n_train=n_train,
        n_test=50,
        in_class_order=not shuffle,
    )
    ours = learned(RandomFeatureRidgeClassifier(width, random_state=seed), tasks)
    directions = _directions(ours, tasks.X.shape[1])
    model = Published(code, directions, tasks.X.shape[1], tasks.n_classes)
    for part in tasks.parts():
        model.learn(tasks.X[part], tasks.y[part], shuffle=shuffle)
    found, decided = model.scores(tasks.X_test).argmax(1), ours.predict(tasks.X_test)
    facts = {
        "log10 of lambda, theirs, last task": np.log10(model.ridges[-1]),
        "log10 of lambda, theirs, spread over the tasks": np.ptp(np.log10(model.ridges)),
        "log10 of lambda, ours in their units": np.log10(_ridge(ours)),
    }
    at_ours = share(model.with_ridge(_ridge(ours), tasks.X_test), tasks.y_test)
    facts["accuracy, theirs with the lambda of ours"] = at_ours
    facts |= _identity(code, tasks, ours)
    return Outcome(found, decided, tasks.y_test, facts)


def _directions(ours: RandomFeatureRidgeClassifier, n_features: int) -> np.ndarray:
    """The matrix W of ours: what the unit vectors and their negatives are mapped to."""
    unit = np.eye(n_features)
    scale = np.sqrt(ours.n_components)
    return scale * (ours.projection_.transform(unit) - ours.projection_.transform(-unit))


def _ridge(ours: RandomFeatureRidgeClassifier) -> float:
    """The penalty of ours, for features that are not divided by the root of their number."""
    return float(ours.alpha_ * np.trace(ours.moments_.total()[2]))


def _identity(code: Path, tasks: Tasks, ours: RandomFeatureRidgeClassifier) -> dict[str, float]:
    """Theirs on our random features around their mean, which is an intercept; our penalty."""
    H, H_test = ours.projection_.transform(tasks.X), ours.projection_.transform(tasks.X_test)
    mean = H.mean(axis=0, dtype=np.float64)
    model = Published(code, None, H.shape[1], tasks.n_classes)
    penalty = _ridge(ours) / ours.n_components
    model.learner.optimise_ridge_parameter = lambda H, Y: penalty
    for part in tasks.parts():
        model.learn((H[part] - mean).astype(np.float32), tasks.y[part], shuffle=True)
    theirs = model.scores((H_test - mean).astype(np.float32))
    scores = ours.class_scores(tasks.X_test) - np.bincount(tasks.y) / len(tasks.y)
    return {
        "identity, features centred, our lambda: distance of scores": apart(theirs, scores),
        "identity, features centred, our lambda: equal predictions": share(
            theirs.argmax(1), scores.argmax(1)
        ),
    }


RUNS = {
    "10 tasks, 50 rows a class": partial(compare, n_train=50, per_task=10),
    "10 tasks, 10 rows a class": partial(compare, n_train=10, per_task=10),
    "20 tasks, 10 rows a class": partial(compare, n_train=10, per_task=5),
    "10 tasks, 10 rows a class, loader not shuffled": partial(
        compare, n_train=10, per_task=10, shuffle=False
    ),
}
