# SPDX-License-Identifier: BSD-3-Clause
"""Protocols on real features of CIFAR-100, against the figures that came with the features.

They were computed by others, with class means of rows of length one.
"""

import numpy as np
import pytest

from skpool.model_selection import (
    ClassIncrementalSplit,
    FewShotIncrementalSplit,
    incremental_evaluate,
)
from skpool.prototypes import NearestClassMeanClassifier

pytestmark = pytest.mark.data
NCM = NearestClassMeanClassifier(metric="cosine", normalize="l2")


@pytest.fixture(scope="module")
def cifar(data_dir):
    path = data_dir / "features" / "cifar100_deit_tiny.npz"
    if not path.is_file():
        pytest.skip(f"the features {path.name} are not on this machine")
    with np.load(path) as file:
        X, y, split = file["cls"].astype(np.float32), file["labels"], file["split"]
    train = split == "train"
    return {"X": X[train], "y": y[train], "X_test": X[~train], "y_test": y[~train]}


def test_class_means_on_b0_inc10_have_the_known_accuracies(cifar):
    splitter = ClassIncrementalSplit(increment=10, class_order="shuffled", seed=1993)
    numbers = incremental_evaluate(NCM, splitter, **cifar).summary()
    assert numbers["average_incremental_accuracy_rows"] == pytest.approx(0.723, abs=0.001)
    assert numbers["last_accuracy_rows"] == pytest.approx(0.619, abs=0.001)


def test_few_shot_stages_have_the_known_accuracies(cifar):
    splitter = FewShotIncrementalSplit(60, way=5, shot=5, class_order="shuffled", seed=1993)
    given = {"X_test": cifar["X_test"], "y_test": cifar["y_test"]}
    results = []
    for repeat in range(10):
        stages = splitter.stages(cifar["y"], y_test=cifar["y_test"], repeat=repeat)
        results.append(incremental_evaluate(NCM, stages, cifar["X"], cifar["y"], **given))
    curves = np.array([result.seen_accuracy for result in results])
    # The base stage has no draw in it; the known figures of the others are of one unknown draw.
    known = [0.693, 0.674, 0.676, 0.656, 0.629, 0.615, 0.591, 0.585, 0.574]
    assert curves[:, 0] == pytest.approx(known[0], abs=0.0005)
    spread = curves[:, 1:].std(axis=0, ddof=1)
    assert (np.abs(curves[:, 1:].mean(axis=0) - known[1:]) < 2.5 * spread + 0.0005).all()
    assert (spread < 0.01).all()
    for name, figure in (("last_base_accuracy", 0.664), ("last_novel_accuracy", 0.440)):
        draws = [result.summary()[name] for result in results]
        assert abs(np.mean(draws) - figure) < 2.5 * np.std(draws, ddof=1) + 0.0005
