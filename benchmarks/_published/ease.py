# SPDX-License-Identifier: BSD-3-Clause
"""EASE in LAMDA-PILOT: `solve_sim_reset` and `EaseCosineLinear.forward_reweight`, blocks given.

The published blocks come from a backbone with adapters. Here a block per task is a within-class
whitening of frozen features, the same for both codes.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from _published.clones import load
from _published.tasks import Outcome, Tasks, apart, learned, make_tasks
from skpool.continual import FirstSessionAdapter, SubspaceEnsemblePrototypeClassifier
from skpool.prototypes import NearestClassMeanClassifier

CLONE = "LAMDA-PILOT"
ABSENT = ("timm", "tqdm", "backbone.prompt", "torchvision")
PER_TASK, ALPHA = 10, 0.1


def blocks_of(ours: SubspaceEnsemblePrototypeClassifier, X: np.ndarray) -> np.ndarray:
    """Features in the spaces of all tasks, side by side."""
    return np.concatenate([one.transform(X) for one in ours.transformers_], axis=1)


def theirs(code: Path, tasks: Tasks, X: np.ndarray, X_test: np.ndarray) -> tuple:
    """Their head after the last task, and its scores."""
    published = load(code / CLONE, "models.ease", ABSENT)
    linears = load(code / CLONE, "backbone.linears", ABSENT)
    d, n_tasks = tasks.X.shape[1], len(tasks.ends)
    head = linears.EaseCosineLinear(n_tasks * d, tasks.n_classes)
    head.reset_parameters_to_zero()
    for label in range(tasks.n_classes):
        # Rows of a class are known in the blocks that were there when they came.
        known = slice(0, (label // PER_TASK + 1) * d)
        rows = torch.from_numpy(X[tasks.y == label, known])
        head.weight.data[label, known] = rows.mean(0)
    learner = published.Learner.__new__(published.Learner)
    learner._network = SimpleNamespace(fc=head, out_dim=d)
    learner._cur_task, learner._total_classes = n_tasks - 1, tasks.n_classes
    learner.init_cls = learner.inc = PER_TASK
    learner.use_init_ptm = learner.moni_adam = False
    learner._device = "cpu"
    learner.solve_sim_reset()
    with torch.no_grad():
        scores = head.forward_reweight(
            torch.from_numpy(X_test), n_tasks - 1, ALPHA, 0.0, PER_TASK, PER_TASK, d
        )["logits"]
    return head.weight.detach().numpy(), scores.numpy()


def compare(code: Path, seed: int) -> Outcome:
    """10 tasks of 10 classes of 100 rows."""
    tasks = make_tasks("cifar100_deit_tiny", seed, per_task=PER_TASK, n_train=100, n_test=50)
    block = FirstSessionAdapter("lda", concat=False)
    ours = learned(SubspaceEnsemblePrototypeClassifier(ALPHA, per_task_block=block), tasks)
    X, X_test = blocks_of(ours, tasks.X), blocks_of(ours, tasks.X_test)
    weights, scores = theirs(code, tasks, X, X_test)
    n_tasks, prototypes = len(tasks.ends), ours.prototypes_
    expected = np.concatenate(
        [[prototypes[b, c] for c in range(tasks.n_classes)] for b in range(n_tasks)], axis=1
    )
    ncm = learned(NearestClassMeanClassifier(), tasks)
    facts = {
        "identity: distance of prototypes, completed ones included": apart(weights, expected),
        "identity: distance of scores": apart(scores, ours.class_scores(tasks.X_test)),
        "accuracy of NearestClassMeanClassifier on the raw features": ncm.score(
            tasks.X_test, tasks.y_test
        ),
    }
    return Outcome(scores.argmax(1), ours.predict(tasks.X_test), tasks.y_test, facts)


RUNS = {"CIFAR-100, 10 tasks, a whitening per task": compare}
