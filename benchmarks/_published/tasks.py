# SPDX-License-Identifier: BSD-3-Clause
"""Real features as a sequence of tasks with new classes, and what a comparison hands back."""

from typing import NamedTuple

import numpy as np
from _measure import DATA
from sklearn.base import BaseEstimator


class Tasks(NamedTuple):
    """Rows in order of arrival; labels are numbered in that order too."""

    X: np.ndarray  # (n, d), float32
    y: np.ndarray  # (n,), int64
    X_test: np.ndarray
    y_test: np.ndarray
    ends: np.ndarray  # (n_tasks,), one past the last row of each task

    @property
    def n_classes(self) -> int:
        """Number of classes of all tasks."""
        return int(self.y.max()) + 1

    def parts(self) -> list[slice]:
        """Rows of the tasks."""
        return [slice(a, b) for a, b in zip([0, *self.ends[:-1]], self.ends, strict=True)]


class Outcome(NamedTuple):
    """Predictions side by side, and the numbers that show where the codes part."""

    theirs: np.ndarray
    ours: np.ndarray
    truth: np.ndarray
    facts: dict[str, float]


def features(name: str, kind: str = "cls") -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels of a file of features."""
    file = DATA / "features" / f"{name}.npz"
    if not file.exists():
        raise FileNotFoundError(f"{file.name} is not among the features of {DATA.name}/features.")
    with np.load(file) as content:
        return content[kind].astype(np.float32), content["labels"].astype(np.int64)


def make_tasks(
    name: str,
    seed: int,
    *,
    per_task: int,
    n_train: int | float,
    n_test: int | None = None,
    kind: str = "cls",
    in_class_order: bool = False,
    first: int | None = None,
) -> Tasks:
    """Draw training and test rows and the order of the classes.

    `n_train` is a number of rows per class, or a share of them. `first` classes make the first
    task. Rows of a task are shuffled, unless they come class after class.
    """
    X, y = features(name, kind)
    rng = np.random.default_rng(seed)
    order = rng.permutation(y.max() + 1)
    train, test = [], []
    for label in order:
        rows = rng.permutation(np.flatnonzero(y == label))
        n = n_train if isinstance(n_train, int) else round(n_train * len(rows))
        train.append(rows[:n])
        test.append(rows[n:][:n_test])
    starts = [0, *range(first or per_task, len(order), per_task)]
    parts = [
        np.concatenate(train[a:b]) for a, b in zip(starts, [*starts[1:], len(order)], strict=True)
    ]
    if not in_class_order:
        parts = [rng.permutation(part) for part in parts]
    kept, left = np.concatenate(parts), np.concatenate(test)
    ends = np.cumsum([len(part) for part in parts])
    rank = np.argsort(order)
    return Tasks(X[kept], rank[y[kept]], X[left], rank[y[left]], ends)


def learned(model: BaseEstimator, tasks: Tasks) -> BaseEstimator:
    """Ours, task by task."""
    for part in tasks.parts():
        model.partial_fit(tasks.X[part], tasks.y[part])
    return model


def share(a: np.ndarray, b: np.ndarray) -> float:
    """Share of equal entries."""
    return float(np.mean(np.asarray(a) == np.asarray(b)))


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Length of the difference, relative to that of the second."""
    return float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b))
