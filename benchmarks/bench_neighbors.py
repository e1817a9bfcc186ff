# SPDX-License-Identifier: BSD-3-Clause
"""What do exact votes cost over the search alone, and what do approximate methods find?

Clustered vectors, five rounds in turn. The exact classifier, votes included, is compared with
`faiss.IndexFlatIP.search` alone and with scikit-learn's brute-force cosine neighbours; approximate
methods are timed in the same rounds, and their recall is measured against the exact neighbours.
Memory is what a call takes on top of what was held before it.

    python benchmarks/bench_neighbors.py [--rows 50000 200000] [--queries 5000] [--features 768]
"""

import argparse
import time

import faiss
import numpy as np
import torch
from _measure import extra_bytes, header, rounds, spread
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from skpool.neighbors import WeightedKNNClassifier

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000])
parser.add_argument("--queries", type=int, default=5000)
parser.add_argument("--features", type=int, default=768)
parser.add_argument("--classes", type=int, default=100)
parser.add_argument("--neighbors", type=int, default=20)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
torch.set_num_threads(options.threads)
faiss.omp_set_num_threads(options.threads)

APPROXIMATE = {
    "ivf": {},
    "hnsw": {"ef_construction": 40},
    "ivfpq": {},
}
BASE = "faiss.IndexFlatIP, search alone"


def vectors(n: int, rng: np.random.Generator, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows around the centers of their classes."""
    y = rng.integers(0, len(centers), n)
    X = rng.standard_normal((n, options.features), dtype=np.float32)
    X += centers[y]
    return X, y


def measure(n: int) -> None:
    """Print the table for one number of rows."""
    rng = np.random.default_rng(0)
    centers = 0.5 * rng.standard_normal((options.classes, options.features), dtype=np.float32)
    X, y = vectors(n, rng, centers)
    Q, _ = vectors(options.queries, rng, centers)
    unit = normalize(Q)
    flat = faiss.IndexFlatIP(options.features)
    flat.add(normalize(X))
    peer = KNeighborsClassifier(
        options.neighbors, metric="cosine", algorithm="brute", weights="distance"
    ).fit(X, y)

    exact = WeightedKNNClassifier(options.neighbors).fit(X, y)
    by_faiss = WeightedKNNClassifier(options.neighbors, backend="faiss").fit(X, y)
    competitors = {
        BASE: lambda: flat.search(unit, options.neighbors),
        "ours, exact, votes included": lambda: exact.predict_proba(Q),
        "ours, exact, by faiss": lambda: by_faiss.predict_proba(Q),
        "scikit-learn, brute cosine": lambda: peer.predict_proba(Q),
    }
    notes = {}
    for method, params in APPROXIMATE.items():
        knn = WeightedKNNClassifier(options.neighbors, method=method, params=params).fit(X, y)
        start = time.perf_counter()
        # The first search builds the structure.
        knn.predict_proba(Q[:1])
        seconds = time.perf_counter() - start
        recall = knn.index_.recall(Q, options.neighbors)
        name = f"ours, {method}"
        competitors[name] = lambda knn=knn: knn.predict_proba(Q)
        notes[name] = f"recall {recall:.4f}, built in {seconds:.1f} s"

    _, found = exact.kneighbors(Q)
    _, theirs = flat.search(unit, options.neighbors)
    same = np.mean([len(set(a) & set(b)) for a, b in zip(found, theirs, strict=True)])
    print(f"\n{n} x {options.features}, {options.queries} queries, k = {options.neighbors}")
    print(f"neighbours shared with faiss: {same / options.neighbors:.6f}")
    print(f"{'':32} {'seconds':>26} {'ratio to the search alone':>28}")
    seconds = rounds(competitors, options.rounds)
    for name, values in seconds.items():
        ratio = spread(values / seconds[BASE])
        memory = f"{extra_bytes(competitors[name]) / 2**20:.0f} MiB"
        print(f"{name:32} {spread(values):>26} {ratio:>28}  {memory:>9}  {notes.get(name, '')}")
    speedup = seconds["scikit-learn, brute cosine"] / seconds["ours, exact, votes included"]
    print(f"scikit-learn / ours: {spread(speedup)}", flush=True)


def main() -> None:
    """Measure and print."""
    print(header(options.threads))
    for n in options.rows:
        measure(n)


if __name__ == "__main__":
    main()
