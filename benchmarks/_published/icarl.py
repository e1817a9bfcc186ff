# SPDX-License-Identifier: BSD-3-Clause
"""iCaRL in PyCIL: `build_rehearsal_memory` and `_eval_nme` of `BaseLearner`, rows as images.

Beside it stands the rule as its authors first wrote it, restated: the largest product of a row
with w, where a row can be taken again.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from _published.clones import load
from _published.tasks import Outcome, Tasks, apart, learned, make_tasks, share
from skpool.continual import ExemplarMemory, NearestMeanOfExemplarsClassifier, herding
from skpool.prototypes import NearestClassMeanClassifier

CLONE = "PyCIL"
# Exemplars whose mean is looked at.
M = 40


class Data:
    """Row numbers as images, of which the features are looked up."""

    def __init__(self, y: np.ndarray):
        self.y = y

    def get_dataset(self, labels, *, ret_data=False, appendent=None, **_):
        """Row numbers of some classes, or those that are given."""
        if appendent is not None:
            return appendent[0]
        rows = np.flatnonzero(np.isin(self.y, labels))
        return (rows, self.y[rows], rows) if ret_data else rows


def theirs(code: Path, tasks: Tasks, X: np.ndarray, budget: int) -> tuple[object, np.ndarray]:
    """Exemplars and predictions after the last task."""
    published = load(code / CLONE, "models.base")
    published.DataLoader = lambda rows, **_: rows
    learner = published.BaseLearner({"memory_size": budget, "device": ["cpu"]})
    learner._network = SimpleNamespace(feature_dim=X.shape[1], eval=lambda: None)
    learner._extract_vectors = lambda rows: (X[rows], tasks.y[rows])
    data = Data(tasks.y)
    for part in tasks.parts():
        learner._total_classes += len(np.unique(tasks.y[part]))
        learner.build_rehearsal_memory(data, learner.samples_per_class)
        learner._known_classes = learner._total_classes
    learner._extract_vectors = lambda _: (tasks.X_test.astype(X.dtype), tasks.y_test)
    return learner, learner._eval_nme(None, learner._class_means)[0][:, 0]


def first_rule(F: np.ndarray, m: int) -> np.ndarray:
    """The first published loop: a row may come again."""
    mean, chosen = F.mean(axis=0), []
    w = mean.copy()
    for _ in range(m):
        chosen.append(int((F @ w).argmax()))
        w = w + mean - F[chosen[-1]]
    return np.array(chosen)


def rules(tasks: Tasks) -> dict[str, float]:
    """How near the means of M exemplars are to those of the classes, by three rules."""
    rng, errors, again = np.random.default_rng(0), {}, []
    for label in range(tasks.n_classes):
        F = tasks.X[tasks.y == label].astype(np.float64)
        F /= np.linalg.norm(F, axis=1, keepdims=True)
        picked = first_rule(F, M)
        again.append(M - len(np.unique(picked)))
        chosen = {
            "ours": herding(F, M),
            "first published rule": picked,
            "its different rows": np.unique(picked),
            "random rows": rng.permutation(len(F))[:M],
        }
        for name, rows in chosen.items():
            error = np.linalg.norm(F[rows].mean(axis=0) - F.mean(axis=0))
            errors.setdefault(f"error of the mean of {M}: {name}", []).append(error)
    facts = {name: float(np.mean(values)) for name, values in errors.items()}
    return facts | {f"first published rule: picks of {M} that repeat one": float(np.mean(again))}


def compare(code: Path, seed: int, *, budget: int) -> Outcome:
    """10 tasks of 10 classes of 100 rows."""
    tasks = make_tasks("cifar100_deit_tiny", seed, per_task=10, n_train=100, n_test=50)
    memory = ExemplarMemory(budget, store_dtype="float32")
    ours = learned(NearestMeanOfExemplarsClassifier(memory), tasks)
    facts, decided = {}, ours.predict(tasks.X_test)
    for name, dtype in {"float32": np.float32, "float64": np.float64}.items():
        learner, found = theirs(code, tasks, tasks.X.astype(dtype), budget)
        rows = tasks.X[learner._data_memory]
        facts[f"identity, {name}: equal exemplars in equal places"] = share(
            (rows == ours.memory_.X_).all(axis=1), True
        )
        facts[f"identity, {name}: distance of the means"] = apart(
            learner._class_means, ours.prototypes_
        )
    ncm = learned(NearestClassMeanClassifier(), tasks)
    facts["accuracy of all rows: NearestClassMeanClassifier"] = ncm.score(
        tasks.X_test, tasks.y_test
    )
    return Outcome(found, decided, tasks.y_test, facts | rules(tasks))


RUNS = {
    "CIFAR-100, 10 tasks, 500 exemplars": partial(compare, budget=500),
    "CIFAR-100, 10 tasks, 200 exemplars": partial(compare, budget=200),
}
