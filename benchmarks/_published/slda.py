# SPDX-License-Identifier: BSD-3-Clause
"""Deep_SLDA: `SLDA_Model.StreamingLDA`, which learns one row per call after a base task."""

import contextlib
import io
from functools import partial
from pathlib import Path

import numpy as np
import torch

from _published.clones import load
from _published.tasks import Outcome, Tasks, apart, learned, make_tasks, share
from skpool.discriminant import LinearDiscriminantClassifier, make_slda

CLONE = "Deep_SLDA"


def theirs(
    code: Path, tasks: Tasks, shrinkage: float, base: int, order: np.ndarray | None = None
) -> object:
    """Learn as `experiment.py` does: base rows, if any, by `fit_base`, then row by row."""
    published = load(code / CLONE, "SLDA_Model")
    model = published.StreamingLDA(
        tasks.X.shape[1], tasks.n_classes, shrinkage_param=shrinkage, streaming_update_sigma=True
    )
    X, y = torch.from_numpy(tasks.X), torch.from_numpy(tasks.y)
    with contextlib.redirect_stdout(io.StringIO()):
        if base:
            model.fit_base(X[:base], y[:base])
        for i in range(base, len(X)) if order is None else order:
            model.fit(X[i], y[i])
    return model


def scores(model: object, X: np.ndarray) -> np.ndarray:
    """Scores of the published model."""
    with contextlib.redirect_stdout(io.StringIO()):
        return model.predict(torch.from_numpy(X)).numpy()


def compare(
    code: Path, seed: int, *, n_train: int, shrinkage: float, with_base: bool = True
) -> Outcome:
    """The same rows, one by one for theirs, task by task for ours."""
    tasks = make_tasks("cifar100_deit_tiny", seed, per_task=10, n_train=n_train, n_test=50)
    base = int(tasks.ends[0]) if with_base else 0
    model = theirs(code, tasks, shrinkage, base)
    ours = learned(make_slda(shrinkage), tasks)
    found, decided = scores(model, tasks.X_test), ours.predict(tasks.X_test)
    pooled = ours.moments_.scatter_ / len(tasks.X)
    facts = {"Sigma, distance from the pooled within-class covariance": apart(model.Sigma, pooled)}
    chosen = LinearDiscriminantClassifier().fit(tasks.X, tasks.y)
    facts["accuracy of ours with its default, OAS"] = chosen.score(tasks.X_test, tasks.y_test)
    facts |= _order(code, tasks, shrinkage, base, model, decided)
    facts |= _half_way(code, tasks, shrinkage, base)
    # Without its slip: the exact covariance, everything else as published.
    model.Sigma, model.prev_num_updates = torch.from_numpy(pooled).float(), -1
    mended, exact = scores(model, tasks.X_test), ours.class_scores(tasks.X_test)
    exact = exact - exact.mean(axis=1, keepdims=True)
    facts["identity, Sigma pooled: equal predictions"] = share(mended.argmax(1), decided)
    facts["identity, Sigma pooled: distance of scores"] = apart(
        mended - mended.mean(axis=1, keepdims=True), exact
    )
    return Outcome(found.argmax(1), decided, tasks.y_test, facts)


def _order(
    code: Path, tasks: Tasks, shrinkage: float, base: int, model: object, decided: np.ndarray
) -> dict[str, float]:
    """The same rows after the base, shuffled across tasks."""
    order = base + np.random.default_rng(0).permutation(len(tasks.X) - base)
    other = theirs(code, tasks, shrinkage, base, order)
    rows = np.concatenate([np.arange(base), order])
    again = make_slda(shrinkage).fit(tasks.X[rows], tasks.y[rows])
    first, second = scores(model, tasks.X_test), scores(other, tasks.X_test)
    return {
        "rows in another order: distance of Sigma": apart(other.Sigma, model.Sigma.numpy()),
        "rows in another order: predictions changed": 1 - share(first.argmax(1), second.argmax(1)),
        "rows in another order: predictions changed, ours": 1
        - share(again.predict(tasks.X_test), decided),
    }


def _half_way(code: Path, tasks: Tasks, shrinkage: float, base: int) -> dict[str, float]:
    """Test rows of the classes seen half way that go to a class that has not been seen."""
    half = int(tasks.ends[len(tasks.ends) // 2 - 1])
    seen = tasks.n_classes // 2
    model = theirs(code, tasks, shrinkage, base, np.arange(base, half))
    found = scores(model, tasks.X_test[tasks.y_test < seen]).argmax(1)
    return {"half way: rows given to unseen classes": float(np.mean(found >= seen))}


RUNS = {
    "50 rows a class, shrinkage 1e-4": partial(compare, n_train=50, shrinkage=1e-4),
    "5 rows a class, shrinkage 1e-2": partial(compare, n_train=5, shrinkage=1e-2),
    "5 rows a class, shrinkage 1e-2, no base": partial(
        compare, n_train=5, shrinkage=1e-2, with_base=False
    ),
}
