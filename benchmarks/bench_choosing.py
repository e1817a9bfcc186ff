# SPDX-License-Identifier: BSD-3-Clause
"""Which pooling, and which whitening behind it, on real photographs?

Token maps of DeiT-tiny for 2000 photographs of clothing, ten classes: 1287 to learn from, 713 to
test on. Every pooling is learned and judged on the same five folds of the 1287, with three
whitenings and two classifiers behind it, and once on the 713. Errors are standard errors: over the
folds, which share training images and are a little too small, and of a proportion for the test.

    python benchmarks/bench_choosing.py [--only covariance] [--json FILE]

The test column belongs to the combination that the folds chose, so nothing is chosen on the test.
"""

import argparse
import json
import time
import warnings

import numpy as np
import torch
from _measure import DATA, header
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpool.pooling import (
    AttentionPooling,
    BagOfFeaturesPooling,
    BilinearPooling,
    CompactBilinearPooling,
    CovariancePooling,
    FisherVectorPooling,
    GeMPooling,
    GroupGeMPooling,
    LogSumExpPooling,
    MomentPooling,
    PositionalDebias,
    RMACPooling,
    SpatialPyramidPooling,
    TokenPooling,
    VLADPooling,
)
from skpool.preprocessing import L2Normalizer, Whitening
from skpool.stores import TokenArray

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--only", default="", help="poolings whose name holds this text")
parser.add_argument("--json", default=None, help="where all numbers are kept")
parser.add_argument("--folds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
torch.set_num_threads(options.threads)

POOLINGS: dict[str, BaseEstimator] = {
    "class token": TokenPooling("cls"),
    "mean": TokenPooling("mean"),
    "max": TokenPooling("max"),
    "std": TokenPooling("std"),
    "class token + mean": TokenPooling(("cls", "mean")),
    "mean + std": TokenPooling(("mean", "std")),
    "GeM, clamp, p = 3": GeMPooling(3.0),
    "GeM, shift, p = 3": GeMPooling(3.0, negative="shift"),
    "GeM, signed, p = 3": GeMPooling(3.0, negative="signed"),
    "GeM, clamp, p by cv": GeMPooling(learn_p="cv"),
    "group GeM, shift, p by cv": GroupGeMPooling(3, learn_p="cv"),
    "log-sum-exp, r = 3": LogSumExpPooling(3.0),
    "spatial pyramid, mean, 1 + 2": SpatialPyramidPooling((1, 2), reduce="mean"),
    "spatial pyramid, max, 1 + 2": SpatialPyramidPooling((1, 2), reduce="max"),
    "R-MAC": RMACPooling(),
    "moment, 64 components": MomentPooling(n_components=64),
    "covariance, root": CovariancePooling(),
    "covariance, root, 64 components": CovariancePooling(n_components=64),
    "covariance, log": CovariancePooling(function="log"),
    "covariance, signed root": CovariancePooling(function="signed_sqrt"),
    "Gaussian, root": CovariancePooling(kind="gaussian"),
    "bilinear": BilinearPooling(),
    "compact bilinear, 4096": CompactBilinearPooling(4096, random_state=0),
    "debiased, covariance, root": make_pipeline(PositionalDebias(), CovariancePooling()),
    "VLAD, 16 words": VLADPooling(16, random_state=0),
    "Fisher vector, 16 components": FisherVectorPooling(16, random_state=0),
    "bag of 512 words": BagOfFeaturesPooling(512, assignment="soft", random_state=0),
    "attention, query": AttentionPooling("query", random_state=0),
    "attention, 4 queries": AttentionPooling("query", n_queries=4, random_state=0),
    "attention, gated": AttentionPooling("gated", random_state=0),
    "attention, simpool": AttentionPooling("simpool", random_state=0),
}
WHITENINGS = {
    "standardised": lambda width: StandardScaler(),
    "unit length": lambda width: L2Normalizer(),
    "whitened": lambda width: Whitening(min(300, width), l2=False),
}


def classifiers(width: int) -> dict[str, BaseEstimator]:
    """Linear ones; the ridge chooses its penalty by itself."""
    ridge = {"ridge": RidgeClassifierCV(np.logspace(-5, 5, 21))}
    # On thousands of features a solver takes minutes to say what the ridge says at once.
    if width > 2000:
        return ridge
    return {**ridge, "logistic": LogisticRegression(C=0.01, max_iter=1000)}


def load() -> tuple[TokenArray, np.ndarray, np.ndarray]:
    """Tokens, labels, and which samples are for training."""
    parts = [np.load(DATA / "features" / f"clothing_deit_tiny_tokens_{i}.npz") for i in (0, 1)]
    tokens = np.concatenate([p["q"].astype(np.float32) * p["step"] + p["mean"] for p in parts])
    y = np.concatenate([p["y"] for p in parts])
    split = np.concatenate([p["split"] for p in parts])
    array = TokenArray.from_array(tokens.astype(np.float32), n_prefix_tokens=1, grid=(14, 14))
    return array, y, split == "train"


def judged(
    pooling: BaseEstimator, X: TokenArray, y: np.ndarray, train: np.ndarray, test: np.ndarray
) -> tuple[dict[str, float], int, float]:
    """Accuracy per whitening and classifier, width of the vectors, and seconds of the pooling."""
    start = time.perf_counter()
    pooling = clone(pooling).fit(X[train], y[train])
    fitted, unseen = pooling.transform(X[train]), pooling.transform(X[test])
    seconds = time.perf_counter() - start
    scores = {}
    for name, whitening in WHITENINGS.items():
        step = whitening(fitted.shape[1])
        a, b = step.fit_transform(fitted.astype(np.float64)), step.transform(unseen)
        for classifier, estimator in classifiers(a.shape[1]).items():
            estimator.fit(a, y[train])
            scores[f"{name}, {classifier}"] = estimator.score(b, y[test])
    return scores, fitted.shape[1], seconds


def main() -> None:
    """Measure and print."""
    X, y, train = load()
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows, places = {}, np.flatnonzero(train)
    folds = StratifiedKFold(options.folds, shuffle=True, random_state=0)
    print(header(options.threads))
    print(
        f"{len(X)} token maps {X.shape[1:]}, {train.sum()} to learn from, {options.folds} folds\n"
    )
    print("| pooling | width | seconds | best behind it | folds | class token's | test |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    base = None
    for name, pooling in POOLINGS.items():
        if options.only not in name and name != "class token":
            continue
        parts = [
            judged(pooling, X, y, places[a], places[b]) for a, b in folds.split(places, y[places])
        ]
        scores = {key: np.array([part[0][key] for part in parts]) for key in parts[0][0]}
        best = max(scores, key=lambda key: scores[key].mean())
        base = scores[best] if base is None else base
        tested, width, seconds = judged(pooling, X, y, places, np.flatnonzero(~train))
        error = np.sqrt(tested[best] * (1 - tested[best]) / (~train).sum())
        root = np.sqrt(options.folds)
        paired = scores[best] - base
        print(
            f"| {name} | {width} | {seconds:.1f} | {best} | {scores[best].mean():.3f} ± "
            f"{scores[best].std(ddof=1) / root:.3f} | {paired.mean():+.3f} ± "
            f"{paired.std(ddof=1) / root:.3f} | {tested[best]:.3f} ± {error:.3f} |",
            flush=True,
        )
        rows[name] = {
            "width": width,
            "seconds": seconds,
            "folds": {key: values.tolist() for key, values in scores.items()},
            "test": tested,
        }
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
