# SPDX-License-Identifier: BSD-3-Clause
"""FeCAM: the functions of the ViT script, and the class for convolutional networks, `FeCAM`."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch

from _published.clones import functions, load
from _published.tasks import Outcome, Tasks, apart, learned, make_tasks, share
from skpool.discriminant import make_fecam

CLONE = "FeCAM"
ABSENT = ("torchvision", "tqdm", "utils.inc_net", "utils.autoaugment")
# Those of exps/FeCAM_cifar100.json.
SETTINGS = {
    "beta": 0.5,
    "alpha1": 1,
    "alpha2": 1,
    "ncm": False,
    "tukey": True,
    "diagonal": False,
    "per_class": True,
    "full_cov": True,
    "shrink": True,
    "norm_cov": True,
    "batch_size": 128,
}


def unit(X: np.ndarray) -> np.ndarray:
    """Rows of length 1, as the script makes them."""
    return torch.nn.functional.normalize(torch.from_numpy(X)).numpy()


def script(code: Path, tasks: Tasks) -> np.ndarray:
    """Distances by the functions of the ViT script, called as its loop over tasks does."""
    published = functions(
        code / CLONE / "FeCAM_vit_cifar100.py",
        ("shrink_cov", "normalize_cov", "_mahalanobis"),
        np=np,
    )
    X, X_test = unit(tasks.X), unit(tasks.X_test)
    rows = [X[tasks.y == label] for label in range(tasks.n_classes)]
    shrunk = [published.shrink_cov(np.cov(part.T)) for part in rows]
    matrices = published.normalize_cov(shrunk)
    return np.stack(
        [
            published._mahalanobis(X_test - part.mean(axis=0), matrix)
            for part, matrix in zip(rows, matrices, strict=True)
        ],
        axis=1,
    )


class Published:
    """The class `FeCAM` with features in place of a network, from its second task on."""

    def __init__(self, code: Path, tasks: Tasks, **settings: object):
        self.module = load(code / CLONE, "models.fecam", ABSENT)
        self.learner = learner = self.module.FeCAM.__new__(self.module.FeCAM)
        learner.args = SETTINGS | settings
        learner._device, learner._network, learner.shot = "cpu", MagicMock(), None
        learner._protos, learner._cov_mat = [], []
        # In task 0 the code trains its network and takes Euclidean distances.
        learner._cur_task, learner._total_classes = 0, 0
        learner._extract_vectors = lambda loader: (loader.dataset, None)
        learner.data_manager = SimpleNamespace(
            get_dataset=lambda label, **_: (None, None, tasks.X[tasks.y == label[0]])
        )

    def shrink_once(self) -> "Published":
        """Leave out the first of the two times that covariances are shrunk."""
        compute = self.module.compute_new_cov

        def without(learner: object) -> None:
            learner.args["shrink"] = False
            compute(learner)
            learner.args["shrink"] = True

        self.module.compute_new_cov = without
        return self

    def distances(self, tasks: Tasks) -> np.ndarray:
        """Learn task after task; return what the evaluation ranks classes by."""
        learner = self.learner
        for part in tasks.parts():
            learner._cur_task += 1
            learner._known_classes = learner._total_classes
            learner.args["increment"] = len(np.unique(tasks.y[part]))
            learner._total_classes += learner.args["increment"]
            with contextlib.redirect_stdout(io.StringIO()):
                learner._train(None, None)
        return learner._maha_dist(unit(tasks.X_test), None, learner._protos).T


def compare_script(code: Path, seed: int) -> Outcome:
    """The ViT script: signed features of unit length, no power."""
    tasks = make_tasks("flowers17_deit_tiny", seed, per_task=2, n_train=40)
    distances, ours = script(code, tasks), learned(make_fecam(nonnegative=False), tasks)
    found = ours.mahalanobis(tasks.X_test)
    facts = {"identity: distance of the distances": apart(found, distances)}
    # The class on the same features, with its power.
    powered = Published(code, tasks).learner._tukeys_transform(tasks.X_test)
    facts["entries that the power of the class makes NaN"] = float(powered.isnan().float().mean())
    return Outcome(distances.argmin(1), ours.predict(tasks.X_test), tasks.y_test, facts)


def compare_class(code: Path, seed: int) -> Outcome:
    """The class for convolutional networks, on every fourth of features that have no signs."""
    tasks = make_tasks(
        "clothing2000_mobilenet_v2", seed, kind="avg", per_task=2, n_train=80, n_test=50
    )
    tasks = tasks._replace(X=tasks.X[:, ::4], X_test=tasks.X_test[:, ::4])
    found, ours = Published(code, tasks).distances(tasks), learned(make_fecam(), tasks)
    once = Published(code, tasks).shrink_once().distances(tasks)
    # Its power and norm before everything, so that covariances see them too.
    mapped = tasks._replace(X=unit(tasks.X**0.5), X_test=unit(tasks.X_test**0.5))
    in_one_space = Published(code, mapped, tukey=False).shrink_once().distances(mapped)
    # Shrinking twice by 1 is once by 3.
    thrice = learned(make_fecam().set_params(shrinkage=("additive", 3.0, 3.0)), tasks)
    truth = tasks.y_test
    facts = {
        "accuracy, theirs, shrunk once": share(once.argmin(1), truth),
        "accuracy, theirs, shrunk once, in one space": share(in_one_space.argmin(1), truth),
        "accuracy, ours, shrunk by 3": thrice.score(tasks.X_test, truth),
    }
    for name, shrink_once, same in (("once", True, ours), ("twice", False, thrice)):
        found_so = _without_norm_of_means(code, mapped, shrink_once)
        facts[f"identity, shrunk {name}, means as they are: distance of the distances"] = apart(
            found_so, same.mahalanobis(tasks.X_test)
        )
    return Outcome(found.argmin(1), ours.predict(tasks.X_test), truth, facts)


def _without_norm_of_means(code: Path, mapped: Tasks, shrink_once: bool) -> np.ndarray:
    """Distances to the means of rows of unit length, which are not of unit length."""
    published = Published(code, mapped, tukey=False)
    scope = published.learner._mahalanobis.__globals__
    scope["F"] = SimpleNamespace(normalize=lambda rows, **_: rows)
    return (published.shrink_once() if shrink_once else published).distances(mapped)


RUNS = {
    "ViT script, 17 flowers, 40 rows a class": compare_script,
    "class, clothing by MobileNetV2, 80 rows a class": compare_class,
}
