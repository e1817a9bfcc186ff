# SPDX-License-Identifier: BSD-3-Clause
"""What do many penalties, and a wide random layer, cost over the products they need anyway?

Clustered vectors, rounds in turn. The ridge head chooses among 21 penalties by the accuracy that
leaves one out, and by generalized cross-validation, beside `RidgeClassifierCV`, which chooses by
the squared error that leaves one out. Random-feature ridge chooses among 17 penalties; its features
alone, their products alone, and one decomposition alone are timed in the same rounds, and
decompositions are counted. Memory is what a call takes on top of what was held before it.

    python benchmarks/bench_linear_model.py [--rows 50000] [--features 768] [--components 5000]
"""

import argparse
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from _measure import extra_bytes, header, rounds, spread
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from skpool.linear_model import RandomFeatureRidgeClassifier, RidgeHeadClassifier
from skpool.model_selection import cross_val_from_moments
from skpool.preprocessing import RandomFeatures
from skpool.statistics import fold_moments, ridge_fold_errors

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--rows", type=int, default=50_000)
parser.add_argument("--queries", type=int, default=5000)
parser.add_argument("--features", type=int, default=768)
parser.add_argument("--classes", type=int, default=100)
parser.add_argument("--components", type=int, default=5000)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument(
    "--peer-rounds", type=int, default=1, help="of RidgeClassifierCV, which is slow"
)
parser.add_argument("--only", choices=["heads", "folds", "random"], help="one of the tables")
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
torch.set_num_threads(options.threads)

ALPHAS = np.logspace(-6, 4, 21)
BLOCK_ROWS = 8192


def vectors(n: int, rng: np.random.Generator, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows around the centers of their classes."""
    y = rng.integers(0, len(centers), n)
    X = rng.standard_normal((n, options.features), dtype=np.float32)
    X += centers[y]
    return X, y


def decompositions(run: Callable[[], object]) -> int:
    """Calls of `torch.linalg.eigh` during a call."""
    with mock.patch.object(torch.linalg, "eigh", wraps=torch.linalg.eigh) as counted:
        run()
    return counted.call_count


def table(seconds: dict[str, np.ndarray], base: str, memory: dict[str, int]) -> None:
    """Print seconds, ratios within the rounds to a base, and memory."""
    print(f"{'':44} {'seconds':>28} {'ratio to ' + base:>44}")
    for name, values in seconds.items():
        ratio = spread(values / seconds[base][: len(values)])
        note = f"{memory[name] / 2**20:.0f} MiB" if name in memory else ""
        print(f"{name:44} {spread(values):>28} {ratio:>44} {note:>10}")


def ridge_heads(X: np.ndarray, y: np.ndarray, Q: np.ndarray, t: np.ndarray) -> None:
    """Print the table of the penalties of a linear head."""
    loo = RidgeHeadClassifier("loo", alphas=ALPHAS, relative=False)
    gcv = RidgeHeadClassifier("gcv", alphas=ALPHAS, relative=False)
    # Relative penalties that allow products in float32.
    safe = RidgeHeadClassifier("gcv", alphas=np.logspace(-3, 2, 21))
    ours = {
        "one product X.T @ X": lambda: X.T @ X,
        "ours, 21 penalties, leave-one-out accuracy": lambda: loo.fit(X, y),
        "ours, 21 penalties, GCV": lambda: gcv.fit(X, y),
        "ours, the same from 1e-3 on": lambda: safe.fit(X, y),
    }
    seconds = rounds(ours, options.rounds)
    memory = {name: extra_bytes(run) for name, run in ours.items()}
    peer = RidgeClassifierCV(ALPHAS)
    name = "scikit-learn, RidgeClassifierCV"
    taken = []
    for _ in range(options.peer_rounds):
        start = time.perf_counter()
        memory[name] = extra_bytes(lambda: peer.fit(X, y))
        taken.append(time.perf_counter() - start)
    print(f"\nridge head, {X.shape[0]} x {X.shape[1]}, {options.classes} classes")
    table(seconds | {name: np.array(taken)}, "one product X.T @ X", memory)
    for who, model in (("leave-one-out", loo), ("GCV", gcv), ("scikit-learn", peer)):
        print(f"{who:16} penalty {model.alpha_:8.3g}  accuracy {model.score(Q, t):.4f}")
    for who in list(ours)[1:]:
        print(f"scikit-learn / {who}: {np.median(taken) / np.median(seconds[who]):.1f}", flush=True)


def cross_validation(X: np.ndarray, y: np.ndarray) -> None:
    """Print what five folds of 21 penalties cost, from moments and by fitting again."""
    alphas = np.logspace(-3, 2, 21)

    def from_moments() -> dict:
        return cross_val_from_moments(RidgeHeadClassifier(), X, y, param_grid={"alpha": alphas})

    def fitted_again() -> list[float]:
        """One fold of one penalty, which `Ridge` solves by Cholesky's factor."""
        train, test = next(StratifiedKFold(5).split(X, y))
        peer = RidgeClassifier(alpha=100.0, solver="cholesky").fit(X[train], y[train])
        return peer.score(X[test], y[test])

    def errors_alone() -> np.ndarray:
        return ridge_fold_errors(fold_moments(X, y, 5), alphas)

    name = "scikit-learn, fitted 105 times (scaled from 1)"
    competitors = {
        "ours, accuracies from moments": from_moments,
        "ours, squared errors without rows": errors_alone,
        name: fitted_again,
    }
    seconds = rounds(competitors, options.rounds)
    seconds[name] *= 5 * len(alphas)
    memory = {who: extra_bytes(run) for who, run in competitors.items()}
    print(f"\n5 folds, 21 penalties, {X.shape[0]} x {X.shape[1]}, {options.classes} classes")
    table(seconds, "ours, accuracies from moments", memory)


def random_features(X: np.ndarray, y: np.ndarray, Q: np.ndarray, t: np.ndarray) -> None:
    """Print the table of random-feature ridge and the parts that it cannot do without."""
    k = options.components
    model = RandomFeatureRidgeClassifier(k)
    projection = RandomFeatures(k).fit(X[:1])
    Z = projection.transform(X[:BLOCK_ROWS])
    gram = np.zeros((k, k))

    def products() -> None:
        for start in range(0, len(X), BLOCK_ROWS):
            block = Z[: len(X) - start]
            np.add(gram, block.T @ block, out=gram)

    def features() -> None:
        for start in range(0, len(X), BLOCK_ROWS):
            projection.transform(X[start : start + BLOCK_ROWS])

    symmetric = (Z.T @ Z).astype(np.float64)
    competitors = {
        "products of the features alone": products,
        "features alone": features,
        "one decomposition alone": lambda: torch.linalg.eigh(torch.from_numpy(symmetric)),
        "ours, 17 penalties": lambda: model.fit(X, y),
    }
    seconds = rounds(competitors, options.rounds)
    memory = {"ours, 17 penalties": extra_bytes(competitors["ours, 17 penalties"])}
    print(f"\nrandom-feature ridge, {k} features of {X.shape[0]} x {X.shape[1]}")
    table(seconds, "products of the features alone", memory)
    parts = list(competitors)[:3]
    needed = sum(np.median(seconds[name]) for name in parts)
    whole = np.median(seconds["ours, 17 penalties"])
    count = decompositions(lambda: model.fit(X, y).predict_proba(Q))
    print(f"ours / sum of the three parts: {whole / needed:.3f}")
    print(f"decompositions, fit and probabilities together: {count}")
    print(f"features of all rows, never held: {4 * len(X) * k / 2**20:.0f} MiB in float32")
    print(f"penalty {model.alpha_:.3g}  accuracy {model.score(Q, t):.4f}", flush=True)


def main() -> None:
    """Measure and print."""
    print(header(options.threads))
    rng = np.random.default_rng(0)
    centers = 0.15 * rng.standard_normal((options.classes, options.features), dtype=np.float32)
    data = (*vectors(options.rows, rng, centers), *vectors(options.queries, rng, centers))
    with threadpool_limits(options.threads):
        if options.only in (None, "heads"):
            ridge_heads(*data)
        if options.only in (None, "folds"):
            cross_validation(*data[:2])
        if options.only in (None, "random"):
            random_features(*data)


if __name__ == "__main__":
    main()
