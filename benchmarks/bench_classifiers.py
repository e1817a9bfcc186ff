# SPDX-License-Identifier: BSD-3-Clause
"""Every classifier on real features, against those of scikit-learn, each tuned.

Features of frozen networks: photographs (DeiT-tiny's class token) and sentences (mean of MiniLM).
Every classifier is learned and judged on the same five folds of the training part, and once on
the official test set. What is tuned is tuned inside: ours by folds of moments, by generalized
cross-validation or by one search of neighbours, scikit-learn's by a grid search, all on three
folds where folds are used. The seconds of `fit` include it. Training parts above `--rows` rows are
cut to so many, with equal shares of the classes, so that the whole run takes under 20 minutes on
two cores; `--rows 0` takes all.

    python bench_classifiers.py [--json FILE] [--sets flowers17,clothing] [--only ridge]
    python bench_classifiers.py --json FILE --page ../docs/classifiers.md

The file is written after every classifier and read at the start, so a run that was stopped goes
on; with `--page` nothing is run, and the tables of that page are written from the file.
"""

import argparse
import json
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import torch
from _measure import DATA, header
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from skpool.discriminant import GaussianClassifier, LinearDiscriminantClassifier, make_fecam
from skpool.linear_model import (
    PredictionErrorClassifier,
    RandomFeatureRidgeClassifier,
    RidgeHeadClassifier,
)
from skpool.model_selection import cross_val_from_moments
from skpool.neighbors import WeightedKNNClassifier
from skpool.preprocessing import CenteredL2Normalizer, L2Normalizer, RandomFeatures, Whitening
from skpool.prototypes import (
    CalibratedPrototypeClassifier,
    MultiPrototypeClassifier,
    NearestClassMeanClassifier,
    SimplexClassifier,
)

SETS = {
    "flowers17": ("flowers17_deit_tiny", "cls"),
    "clothing": ("clothing_deit_tiny", "cls"),
    "omniglot242": ("omniglot242_deit_tiny", "cls"),
    "cifar100": ("cifar100_deit_tiny", "cls"),
    "banking77": ("banking77_minilm_l6_mean", "features"),
    "clinc150": ("clinc150_minilm_l6_mean", "features"),
}
INNER = StratifiedKFold(3, shuffle=True, random_state=1)
BLENDS = [0.6, 0.8, 0.9, 0.95]
OUTER = StratifiedKFold(5, shuffle=True, random_state=0)


class ByMoments(ClassifierMixin, BaseEstimator):
    """A step, and a classifier whose parameters are chosen by folds of moments."""

    def __init__(self, step: BaseEstimator, classifier: BaseEstimator, grid: dict):
        self.step = step
        self.classifier = classifier
        self.grid = grid

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Choose, then learn from all rows."""
        self.step_ = clone(self.step)
        Z = self.step_.fit_transform(X)
        found = cross_val_from_moments(self.classifier, Z, y, param_grid=self.grid, cv=INNER)
        self.best_params_ = found["params"][int(found["rank_test_score"].argmin())]
        self.classifier_ = clone(self.classifier).set_params(**self.best_params_).fit(Z, y)
        self.classes_ = self.classifier_.classes_
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Labels."""
        return self.classifier_.predict(self.step_.transform(X))


class SweptNeighbors(ClassifierMixin, BaseEstimator):
    """Weighted neighbours; their number and the temperature come from one search per fold."""

    def __init__(self, step: BaseEstimator):
        self.step = step

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Choose, then store all rows."""
        self.step_ = clone(self.step)
        Z = self.step_.fit_transform(X)
        right: dict[tuple, int] = {}
        for train, held in INNER.split(Z, y):
            neighbors = WeightedKNNClassifier().fit(Z[train], y[train])
            votes = neighbors.sweep(Z[held], (5, 10, 20, 50), (0.02, 0.05, 0.1, 0.2))
            for setting, p in votes.items():
                hits = neighbors.classes_[p.argmax(axis=1)] == y[held]
                right[setting] = right.get(setting, 0) + int(hits.sum())
        k, temperature = max(right, key=right.__getitem__)
        self.best_params_ = {"n_neighbors": k, "temperature": temperature}
        self.classifier_ = WeightedKNNClassifier(k, temperature=temperature).fit(Z, y)
        self.classes_ = self.classifier_.classes_
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Labels."""
        return self.classifier_.predict(self.step_.transform(X))


class HalfCalibrated(CalibratedPrototypeClassifier):
    """Calibrated prototypes for which the first half of the labels is the base session."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Learn the base classes, then the others."""
        base = y < np.median(np.unique(y))
        return super().fit(X[base], y[base]).partial_fit(X[~base], y[~base])


def searched(estimator: BaseEstimator, grid: dict) -> GridSearchCV:
    """A grid search on both cores, which leaves scikit-learn's solvers the time they ask for."""
    return GridSearchCV(estimator, grid, cv=INNER, n_jobs=options.threads)


def nearest(metric: str, step: BaseEstimator) -> BaseEstimator:
    """Nearest class mean behind a step."""
    return make_pipeline(step, NearestClassMeanClassifier(metric))


def with_mean(classifier: BaseEstimator) -> BaseEstimator:
    """Rows around their mean, of unit length, before a classifier."""
    return make_pipeline(StandardScaler(with_std=False), Normalizer(), classifier)


OURS: dict[str, Callable[[], BaseEstimator]] = {
    "nearest mean, cosine": lambda: nearest("cosine", L2Normalizer()),
    "nearest mean, Euclidean": lambda: nearest("euclidean", CenteredL2Normalizer()),
    "nearest mean, Mahalanobis": lambda: ByMoments(
        L2Normalizer(),
        NearestClassMeanClassifier("mahalanobis"),
        {"shrinkage": ["oas", 0.003, 0.03, 0.1, 0.3]},
    ),
    "discriminant, OAS": lambda: make_pipeline(L2Normalizer(), LinearDiscriminantClassifier()),
    "discriminant, OAS, on random features": lambda: make_pipeline(
        CenteredL2Normalizer(),
        RandomFeatures(2000, random_state=0),
        LinearDiscriminantClassifier(),
    ),
    "ridge": lambda: make_pipeline(L2Normalizer(), RidgeHeadClassifier()),
    "random-feature ridge": lambda: make_pipeline(
        CenteredL2Normalizer(), RandomFeatureRidgeClassifier(2000, random_state=0)
    ),
    "random-feature ridge on discriminants": lambda: make_pipeline(
        LinearDiscriminantClassifier(),
        CenteredL2Normalizer(),
        RandomFeatureRidgeClassifier(2000, random_state=0),
    ),
    "prediction error": lambda: ByMoments(
        L2Normalizer(), PredictionErrorClassifier(), {"alpha": [0.01, 0.1, 1.0]}
    ),
    "Gaussian, blended": lambda: ByMoments(
        L2Normalizer(), GaussianClassifier(shrinkage=0.1), {"blend": BLENDS}
    ),
    "Gaussian, blended, on discriminants": lambda: GridSearchCV(
        # The directions know the labels, so they belong inside the folds.
        make_pipeline(LinearDiscriminantClassifier(), GaussianClassifier(shrinkage=0.1)),
        {"gaussianclassifier__blend": BLENDS},
        cv=INNER,
    ),
    "Gaussian, blend 0.9": lambda: make_pipeline(
        L2Normalizer(), GaussianClassifier(shrinkage=0.1, blend=0.9)
    ),
    "Gaussian, blend 0.9, on discriminants": lambda: make_pipeline(
        LinearDiscriminantClassifier(), GaussianClassifier(shrinkage=0.1, blend=0.9)
    ),
    "FeCAM": lambda: make_fecam(nonnegative=False),
    "simplex, Procrustes": lambda: make_pipeline(
        Whitening(shrinkage="oas"), SimplexClassifier(solver="procrustes")
    ),
    "several prototypes": lambda: ByMoments(
        L2Normalizer(),
        MultiPrototypeClassifier(random_state=0),
        {"n_prototypes": [2, 4, 8]},
    ),
    "calibrated prototypes": lambda: make_pipeline(L2Normalizer(), HalfCalibrated()),
    "weighted neighbours": lambda: SweptNeighbors(CenteredL2Normalizer()),
    "weighted neighbours, half whitened": lambda: SweptNeighbors(
        Whitening(power=0.5, shrinkage="oas")
    ),
}
THEIRS: dict[str, Callable[[], BaseEstimator]] = {
    "`LogisticRegression`": lambda: searched(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
        {"logisticregression__C": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]},
    ),
    "`LinearSVC`": lambda: searched(
        with_mean(LinearSVC(tol=1e-3)), {"linearsvc__C": [0.1, 0.3, 1.0, 3.0]}
    ),
    "`LinearDiscriminantAnalysis`": lambda: searched(
        LinearDiscriminantAnalysis(solver="lsqr"), {"shrinkage": ["auto", 0.003, 0.03, 0.1, 0.3]}
    ),
    "`KNeighborsClassifier`": lambda: searched(
        with_mean(KNeighborsClassifier(metric="cosine", algorithm="brute")),
        {
            "kneighborsclassifier__n_neighbors": [1, 5, 10, 20, 50],
            "kneighborsclassifier__weights": ["uniform", "distance"],
        },
    ),
}


def load(name: str, n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows and labels of the training part, cut to so many, and of the test set."""
    file, feature = SETS[name]
    content = np.load(DATA / "features" / f"{file}.npz")
    X, y = content[feature].astype(np.float32), content["labels"].astype(np.int64)
    if name == "omniglot242":
        train = content["drawer"] <= 10
        test = ~train
    else:
        train, test = content["split"] == "train", content["split"] == "test"
    kept = np.flatnonzero(train)
    if 0 < n_rows < len(kept):
        kept, _ = train_test_split(kept, train_size=n_rows, stratify=y[kept], random_state=0)
    return X[kept], y[kept], X[test], y[test]


def judged(
    make: Callable[[], BaseEstimator], X: np.ndarray, y: np.ndarray, T: np.ndarray, t: np.ndarray
) -> dict:
    """Accuracy on (T, t) after learning from (X, y), and seconds."""
    model = make()
    start = time.perf_counter()
    model.fit(X, y)
    fitted = time.perf_counter()
    predicted = model.predict(T)
    end = time.perf_counter()
    chosen = getattr(model, "best_params_", {})
    return {
        "accuracy": float((predicted == t).mean()),
        "fit": fitted - start,
        "last_fit": getattr(model, "refit_time_", fitted - start),
        "predict": end - fitted,
        "chosen": {name: str(value) for name, value in chosen.items()},
    }


def run(results: dict, path: Path) -> None:
    """Measure what the results lack, and write them after every classifier."""
    for name in options.sets.split(","):
        X, y, T, t = load(name, options.rows)
        print(f"{name}: {X.shape} to learn from, {len(T)} to test, {len(np.unique(y))} classes")
        held = results.setdefault(name, {"n_train": len(X), "n_test": len(T), "scores": {}})
        if held["n_train"] != len(X):
            raise SystemExit(f"{path} holds {held['n_train']} rows of {name}; take another file.")
        for title, make in {**OURS, **THEIRS}.items():
            if options.only not in title or title in held["scores"]:
                continue
            folds = [judged(make, X[a], y[a], X[b], y[b]) for a, b in OUTER.split(X, y)]
            held["scores"][title] = {"folds": folds, "test": judged(make, X, y, T, t)}
            path.write_text(json.dumps(results, indent=1))
            mean, error = over_folds(held["scores"][title])
            test = held["scores"][title]["test"]
            print(
                f"  {title:38s} {mean:.3f} ± {error:.3f}  test {test['accuracy']:.3f}  "
                f"fit {test['fit']:.2f} s  predict {test['predict']:.2f} s  {test['chosen']}",
                flush=True,
            )


# The tables of the docs.


def over_folds(scores: dict) -> tuple[float, float]:
    """Mean accuracy and its standard error."""
    values = np.array([fold["accuracy"] for fold in scores["folds"]])
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def best_of(scores: dict, side: dict) -> str:
    """The classifier of a side with the best folds."""
    return max((title for title in side if title in scores), key=lambda t: over_folds(scores[t])[0])


def seconds(scores: dict, kind: str = "fit") -> float:
    """Median over the folds."""
    return float(np.median([fold[kind] for fold in scores["folds"]]))


def contender(scores: dict) -> str:
    """The fastest of ours that is not below the best of theirs, or else our best."""
    bar = over_folds(scores[best_of(scores, THEIRS)])[0]
    level = [title for title in OURS if title in scores and over_folds(scores[title])[0] >= bar]
    return min(level, key=lambda t: seconds(scores[t])) if level else best_of(scores, OURS)


def accuracy_table(results: dict) -> str:
    """Classifiers by sets: accuracy over the folds, the best of either side in bold."""
    lines = [
        "| classifier | " + " | ".join(results) + " |",
        "| --- |" + " --- |" * len(results),
    ]
    for side in (OURS, THEIRS):
        for title in side:
            cells = []
            for held in results.values():
                if title not in held["scores"]:
                    cells.append("")
                    continue
                mean, error = over_folds(held["scores"][title])
                cell = f"{mean:.3f} ± {error:.3f}"
                best = best_of(held["scores"], side) == title
                cells.append(f"**{cell}**" if best else cell)
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def time_table(results: dict) -> str:
    """Classifiers by sets: seconds to fit, choice included, and to predict the test set."""
    lines = [
        "| classifier | " + " | ".join(results) + " |",
        "| --- |" + " --- |" * len(results),
    ]
    for title in {**OURS, **THEIRS}:
        cells = []
        for held in results.values():
            scores = held["scores"].get(title)
            if scores is None:
                cells.append("")
                continue
            cells.append(f"{seconds(scores):.2g}; {scores['test']['predict']:.2g}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def duel_table(results: dict) -> str:
    """Per set: the fastest of ours that the folds put level, against the best of theirs."""
    lines = [
        "| set (to learn from, test) | ours | theirs | difference, folds | test: ours, theirs | "
        "times as fast: with its choice, one fit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, held in results.items():
        scores = held["scores"]
        ours, theirs = contender(scores), best_of(scores, THEIRS)
        apart = np.array(
            [
                a["accuracy"] - b["accuracy"]
                for a, b in zip(scores[ours]["folds"], scores[theirs]["folds"], strict=True)
            ]
        )
        error = apart.std(ddof=1) / np.sqrt(len(apart))
        tests = []
        for title in (ours, theirs):
            p = scores[title]["test"]["accuracy"]
            tests.append(f"{p:.3f} ± {np.sqrt(p * (1 - p) / held['n_test']):.3f}")
        ratios = [seconds(scores[theirs], k) / seconds(scores[ours]) for k in ("fit", "last_fit")]
        lines.append(
            f"| {name} ({held['n_train']}, {held['n_test']}) | {ours} | {theirs} | "
            f"{apart.mean():+.3f} ± {error:.3f} | {tests[0]}, {tests[1]} | "
            f"{ratios[0]:.1f}, {ratios[1]:.1f} |"
        )
    return "\n".join(lines)


TABLES = {"duel": duel_table, "accuracy": accuracy_table, "time": time_table}


def fill(page: str, results: dict) -> str:
    """The text of a page with its tables replaced, between `<!-- NAME -->` and `<!-- end -->`."""
    for name, table in TABLES.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", flags=re.DOTALL)
        text = table(results)
        page, times = between.subn(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)
        if times != 1:
            raise SystemExit(f"The page holds {times} places for the table {name!r}, not one.")
    return page


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--json", type=Path, default=Path("classifiers.json"))
parser.add_argument("--page", type=Path, help="write the tables of this page, and run nothing")
parser.add_argument("--sets", default=",".join(SETS))
parser.add_argument("--only", default="", help="classifiers whose name holds this text")
parser.add_argument("--rows", type=int, default=5000, help="to learn from at most; 0 for all")
parser.add_argument("--threads", type=int, default=2)

if __name__ == "__main__":
    options = parser.parse_args()
    known = json.loads(options.json.read_text()) if options.json.exists() else {}
    if options.page:
        options.page.write_text(fill(options.page.read_text(), known))
    else:
        torch.set_num_threads(options.threads)
        # Solvers that stop early on one of six penalties are a part of the grid, not news.
        warnings.simplefilter("ignore")
        with threadpool_limits(options.threads):
            print(header(options.threads))
            run(known, options.json)
