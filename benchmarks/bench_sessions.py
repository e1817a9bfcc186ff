# SPDX-License-Identifier: BSD-3-Clause
"""Classes that arrive in sessions, on real features: every method, and what is known of each.

Features of frozen networks: photographs and drawings (DeiT-tiny's class token) and sentences
(MiniLM), B0-Inc10 with the classes in the field's order (seed 1993), for omniglot B0-Inc22. After
every session the methods are asked about the test rows of all classes so far. Of a method that
claims to be exact the scores at the end are compared with those of one fit on everything, for the
classes in three orders: the largest difference, as a part of the largest score.

    python benchmarks/bench_sessions.py [--json FILE] [--sets cifar100,banking77] [--only ridge]
    python benchmarks/bench_sessions.py --json FILE --page docs/classes_that_arrive_later.md
    python benchmarks/bench_sessions.py --json FILE --page docs/session_curves.md

The file is written after every method and read at the start; with `--page` nothing is run, and
the tables of that page are written from the file.
"""

import argparse
import json
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _measure import DATA, header
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import SGDClassifier
from threadpoolctl import threadpool_limits

from skpool.continual import (
    AlignedClassifier,
    ExemplarMemory,
    FewShotIncrementalClassifier,
    FirstSessionAdapter,
    NearestMeanOfExemplarsClassifier,
    ReplayBuffer,
    ReplayClassifier,
    SubspaceEnsemblePrototypeClassifier,
)
from skpool.discriminant import GaussianClassifier, LinearDiscriminantClassifier
from skpool.linear_model import (
    PredictionErrorClassifier,
    RandomFeatureRidgeClassifier,
    RidgeHeadClassifier,
)
from skpool.model_selection import ClassIncrementalSplit, incremental_evaluate
from skpool.neighbors import DiscreteKeyValueClassifier, KeyQuantizer, WeightedKNNClassifier
from skpool.pipeline import FitOnce, make_incremental_pipeline
from skpool.preprocessing import L2Normalizer, Whitening
from skpool.prototypes import CalibratedPrototypeClassifier, NearestClassMeanClassifier

SETS = {
    "cifar100": ("cifar100_deit_tiny", "cls", 10),
    "banking77": ("banking77_minilm_l6_mean", "features", 10),
    "clinc150": ("clinc150_minilm_l6_mean", "features", 10),
    "omniglot242": ("omniglot242_deit_tiny", "cls", 22),
}


def unit(classifier: BaseEstimator) -> BaseEstimator:
    """A classifier of rows of unit length."""
    return make_incremental_pipeline(L2Normalizer(), classifier)


def replay(policy: str) -> BaseEstimator:
    """A linear head trained by gradient, with a memory of 2000 rows."""
    buffer = ReplayBuffer(2000, policy=policy, random_state=0)
    return unit(ReplayClassifier(head(), buffer=buffer, replay_batch=2000, n_passes=20))


def head() -> BaseEstimator:
    """scikit-learn's linear head that learns in calls."""
    return SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0)


EXACT: dict[str, Callable[[], BaseEstimator]] = {
    "nearest mean, cosine (SimpleCIL)": NearestClassMeanClassifier,
    "nearest mean of unit rows, cosine": lambda: NearestClassMeanClassifier(normalize="l2"),
    "nearest mean, Euclidean": lambda: NearestClassMeanClassifier("euclidean"),
    "moving whitening, nearest mean": lambda: make_incremental_pipeline(
        Whitening(shrinkage=0.1), NearestClassMeanClassifier("euclidean")
    ),
    "linear discriminant (streaming LDA)": lambda: unit(LinearDiscriminantClassifier()),
    "Gaussian, blend 0.9 (FeCAM's kind)": lambda: unit(
        GaussianClassifier(shrinkage=0.1, blend=0.9)
    ),
    "ridge": lambda: unit(RidgeHeadClassifier("gcv")),
    "random-feature ridge, 2000 (RanPAC)": lambda: unit(
        RandomFeatureRidgeClassifier(2000, random_state=0)
    ),
    "prediction error (PEC)": lambda: unit(PredictionErrorClassifier(0.01)),
    "weighted neighbours": lambda: unit(WeightedKNNClassifier()),
}
OTHERS: dict[str, Callable[[], BaseEstimator]] = {
    "first-session discriminants, nearest mean": lambda: make_incremental_pipeline(
        FitOnce(LinearDiscriminantClassifier()), NearestClassMeanClassifier()
    ),
    "adapter of the first session (APER)": lambda: make_incremental_pipeline(
        FirstSessionAdapter(random_state=0), NearestClassMeanClassifier()
    ),
    "subspaces of all sessions (EASE)": lambda: SubspaceEnsemblePrototypeClassifier(
        per_task_block=FirstSessionAdapter(concat=False, random_state=0)
    ),
    "calibrated prototypes (TEEN)": CalibratedPrototypeClassifier,
    "base-session projector": lambda: FewShotIncrementalClassifier(random_state=0),
    "discrete keys": lambda: unit(
        DiscreteKeyValueClassifier(KeyQuantizer(32, n_keys=128, key_dim=14, random_state=0))
    ),
    "mean of exemplars, 2000 (iCaRL)": lambda: NearestMeanOfExemplarsClassifier(
        ExemplarMemory(2000)
    ),
    "replay, 2000 rows": lambda: replay("class_balanced"),
    "Gaussian replay (SLCA)": lambda: unit(AlignedClassifier(random_state=0)),
    "`SGDClassifier`, no memory": lambda: unit(head()),
}


def load(name: str) -> tuple[np.ndarray, ...]:
    """Rows and labels to learn from, and to test on."""
    file, feature, _ = SETS[name]
    content = np.load(DATA / "features" / f"{file}.npz")
    X, y = content[feature].astype(np.float32), content["labels"].astype(np.int64)
    if name == "omniglot242":
        train = content["drawer"] <= 10
        test = ~train
    else:
        train, test = content["split"] == "train", content["split"] == "test"
    return X[train], y[train], X[test], y[test]


def largest_difference(
    make: Callable, X: np.ndarray, y: np.ndarray, T: np.ndarray, n: int
) -> float:
    """Between the scores after sessions, the classes in three orders, and after one fit."""

    def scores(model: BaseEstimator) -> np.ndarray:
        method = "decision_function" if hasattr(model, "decision_function") else "predict_proba"
        return getattr(model, method)(T[:1000].astype(np.float64))

    joint = scores(make().fit(X, y))
    labels = np.unique(y)
    orders = [np.random.RandomState(seed).permutation(labels) for seed in (1993, 0)]
    largest = 0.0
    for order in [*orders, labels[::-1]]:
        model = make()
        for stage in ClassIncrementalSplit(increment=n, class_order=order).stages(y, y_test=y):
            model.partial_fit(X[stage.train], y[stage.train])
        gap = np.abs(scores(model) - joint).max() / np.abs(joint[np.isfinite(joint)]).max()
        largest = max(largest, float(gap))
    return largest


def measured(make: Callable, data: tuple, increment: int, *, exact: bool) -> dict:
    """The curve of a method, its joint fit, and how far it ends from it."""
    X, y, T, t = data
    split = ClassIncrementalSplit(increment=increment, class_order="shuffled")
    start = time.perf_counter()
    result = incremental_evaluate(make(), split, X, y, X_test=T, y_test=t)
    seconds = time.perf_counter() - start
    joint = clone(make()).fit(X, y)
    return {
        "curve": result.seen_accuracy.tolist(),
        "summary": result.summary(),
        "state_bytes": int(result.state_bytes[-1]),
        "fit": float(result.fit_time.sum()),
        "seconds": seconds,
        "joint": float((joint.predict(T) == t).mean()),
        "difference": largest_difference(make, X, y, T, increment) if exact else None,
    }


def run(results: dict, path: Path | None) -> None:
    """Measure what the results lack, and write them after every method."""
    for name in options.sets.split(","):
        data, increment = load(name), SETS[name][2]
        print(f"{name}: {data[0].shape} to learn from, {len(data[2])} to test", flush=True)
        held = results.setdefault(name, {})
        for title, make in {**EXACT, **OTHERS}.items():
            if options.only not in title or title in held:
                continue
            held[title] = measured(make, data, increment, exact=title in EXACT)
            if path is not None:
                path.write_text(json.dumps(results, indent=1))
            found = held[title]
            gap = "" if found["difference"] is None else f"  difference {found['difference']:.1e}"
            print(
                f"  {title:42s} average {np.mean(found['curve']):.3f}  last "
                f"{found['curve'][-1]:.3f}  joint {found['joint']:.3f}  forgetting "
                f"{found['summary']['forgetting_max']:.3f}  fit {found['fit']:.2f} s{gap}",
                flush=True,
            )


def main_table(results: dict) -> str:
    """Methods by sets: average and last accuracy, and the last of one fit on everything."""
    lines = [
        "| method | " + " | ".join(results) + " | exact to |",
        "| --- |" + " --- |" * (len(results) + 1),
    ]
    for title in [*EXACT, *OTHERS]:
        found = [held[title] for held in results.values() if title in held]
        if not found:
            continue
        cells = [
            f"{np.mean(held[title]['curve']):.3f} / {held[title]['curve'][-1]:.3f} / "
            f"{held[title]['joint']:.3f}"
            if title in held
            else ""
            for held in results.values()
        ]
        gaps = [one["difference"] for one in found if one["difference"] is not None]
        lines.append(f"| {title} | {' | '.join(cells)} | {f'{max(gaps):.0e}' if gaps else ''} |")
    return "\n".join(lines)


def curve_table(results: dict, name: str) -> str:
    """Methods by sessions: accuracy on all classes so far."""
    held = results[name]
    n = len(next(iter(held.values()))["curve"])
    lines = [
        "| method | " + " | ".join(str(i + 1) for i in range(n)) + " | forgetting | MB |",
        "| --- |" + " --- |" * (n + 2),
    ]
    for title, found in held.items():
        cells = " | ".join(f"{value:.3f}" for value in found["curve"])
        lines.append(
            f"| {title} | {cells} | {found['summary']['forgetting_max']:.3f} "
            f"| {found['state_bytes'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


def write_page(results: dict, page: Path) -> None:
    """Replace the tables between their marks."""
    tables = {"sessions": main_table(results)}
    tables |= {f"sessions-{name}": curve_table(results, name) for name in results}
    text = page.read_text()
    for mark, table in tables.items():
        pattern = rf"(<!-- table: {mark} -->\n).*?(<!-- end of table -->)"
        text = re.sub(pattern, lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", text, flags=re.DOTALL)
    page.write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--only", default="")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    if options.page:
        write_page(known, options.page)
    else:
        print(header(options.threads))
        with threadpool_limits(options.threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(known, options.json)
