# SPDX-License-Identifier: BSD-3-Clause
"""Is the nearest class mean one pass over the rows, and how far is it from scikit-learn's?

Rounds in turn. The fit is compared with `sklearn.neighbors.NearestCentroid` and with one read of
the rows (their smallest and largest value), which no fit that checks its input can go below;
predictions are compared with NearestCentroid and with the one product that they are made of.
Memory is what a call takes on top of what was held before it.

    python benchmarks/bench_prototypes.py [--rows 50000] [--features 768] [--classes 100]
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from _measure import extra_bytes, header, rounds, spread
from sklearn.neighbors import NearestCentroid

from skpool.prototypes import (
    CalibratedPrototypeClassifier,
    NearestClassMeanClassifier,
    SimplexClassifier,
)

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--rows", type=int, default=50_000)
parser.add_argument("--features", type=int, default=768)
parser.add_argument("--classes", type=int, default=100)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
torch.set_num_threads(options.threads)

PEER = "NearestCentroid"
READ = "one read of the rows"
PRODUCT = "one product X @ means.T"


def table(title: str, competitors: dict[str, Callable[[], object]], n_bytes: int) -> None:
    """Print seconds, times as fast as NearestCentroid, and memory against that of the rows."""
    print(f"\n{title}\n{'':34} {'seconds':>26} {'NearestCentroid / this':>28} {'memory':>16}")
    seconds = rounds(competitors, options.rounds)
    for name, values in seconds.items():
        extra = extra_bytes(competitors[name])
        memory = f"{extra / 2**20:.0f} MiB ({extra / n_bytes:.2f} X)"
        faster = spread(seconds[PEER] / values)
        print(f"{name:34} {spread(values):>26} {faster:>28} {memory:>16}", flush=True)


def main() -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((options.classes, options.features), dtype=np.float32)
    y = rng.integers(0, options.classes, options.rows)
    X = rng.standard_normal((options.rows, options.features), dtype=np.float32)
    X += means[y]
    print(header(options.threads))
    print(
        f"{options.rows} x {options.features}, float32, {options.classes} classes, "
        f"{X.nbytes / 2**20:.0f} MiB"
    )

    peer = NearestCentroid().fit(X, y)
    euclidean = NearestClassMeanClassifier("euclidean").fit(X, y)
    cosine = NearestClassMeanClassifier("cosine").fit(X, y)
    off = np.abs(euclidean.prototypes_ - peer.centroids_).max()
    same = (euclidean.predict(X) == peer.predict(X)).mean()
    print(f"means differ by at most {off:.1e}, predictions agree on {same:.4%}")

    tensor, weights = torch.from_numpy(X), torch.from_numpy(means)
    unit = NearestClassMeanClassifier("cosine", normalize="l2")
    shared = NearestClassMeanClassifier("mahalanobis")
    rotated = SimplexClassifier(options.features, solver="procrustes")
    table(
        "fit",
        {
            PEER: lambda: NearestCentroid().fit(X, y),
            READ: tensor.aminmax,
            "ours, euclidean": lambda: NearestClassMeanClassifier("euclidean").fit(X, y),
            "ours, cosine": lambda: NearestClassMeanClassifier("cosine").fit(X, y),
            "ours, cosine of unit rows": lambda: unit.fit(X, y),
            "ours, mahalanobis": lambda: shared.fit(X, y),
            "ours, calibrated": lambda: CalibratedPrototypeClassifier().fit(X, y),
            "ours, simplex by procrustes": lambda: rotated.fit(X, y),
        },
        X.nbytes,
    )
    table(
        "predict",
        {
            PEER: lambda: peer.predict(X),
            PRODUCT: lambda: tensor @ weights.T,
            "ours, euclidean": lambda: euclidean.predict(X),
            "ours, cosine": lambda: cosine.predict(X),
        },
        X.nbytes,
    )


if __name__ == "__main__":
    main()
