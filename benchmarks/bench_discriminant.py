# SPDX-License-Identifier: BSD-3-Clause
"""What do linear discriminants cost over one product, and Mahalanobis distances over inverses?

Clustered float32 vectors, rounds in turn. The fit is compared with one `X.T @ X` and with
scikit-learn's; learning in blocks with the rank-one update per sample of the published streaming
LDA, which is written here as published, timed on the first `--stream-rows` rows and scaled to all;
distances to many classes with an inverse and a full product per class, and with the pseudoinverse
and the n x n product of the published FeCAM, timed on the first `--naive-classes` and
`--published-classes` classes and scaled to all. Covariances are those of OAS per class in all.
Memory is what a call takes on top of what was held before it.

    python benchmarks/bench_discriminant.py [--rows 50000] [--features 768] [--classes 100]
"""

import argparse
import time

import numpy as np
import torch
from _measure import extra_bytes, header, peak_memory, rounds, spread
from sklearn.covariance import OAS
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from threadpoolctl import threadpool_limits

from skpool.discriminant import GaussianClassifier, LinearDiscriminantClassifier, make_slda

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--rows", type=int, default=50_000)
parser.add_argument("--features", type=int, default=768)
parser.add_argument("--classes", type=int, default=100)
parser.add_argument("--block", type=int, default=1024)
parser.add_argument("--stream-rows", type=int, default=1000)
parser.add_argument("--distance-classes", type=int, default=200)
parser.add_argument("--naive-classes", type=int, default=20)
parser.add_argument("--published-classes", type=int, default=2)
parser.add_argument("--queries", type=int, nargs="+", default=[200, 1000, 5000])
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
torch.set_num_threads(options.threads)
LIMITS = threadpool_limits(options.threads)


def vectors(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around the centers of their classes, with features that vary together."""
    rng = np.random.default_rng(seed)
    d = options.features
    y = np.arange(n) % classes
    X = rng.standard_normal((n, d), dtype=np.float32)
    X *= np.logspace(0, -1, d, dtype=np.float32)
    X = X @ np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    X += 0.2 * rng.standard_normal((classes, d), dtype=np.float32)[y]
    return X, y


class PublishedStreamingLDA:
    """Streaming LDA as it was published: one row per call, one rank-one update of a matrix."""

    def __init__(self, d: int, classes: int):
        self.means = torch.zeros(classes, d)
        self.counts = torch.zeros(classes)
        self.covariance = torch.ones(d, d)
        self.seen = 0

    def learn(self, x: torch.Tensor, label: int) -> None:
        """Update covariance and mean by one row."""
        gap = (x - self.means[label])[None]
        update = gap.T @ gap * (self.seen / (self.seen + 1))
        self.covariance = (self.seen * self.covariance + update) / (self.seen + 1)
        self.means[label] += gap[0] / (self.counts[label] + 1)
        self.counts[label] += 1
        self.seen += 1


def stream_published(X: np.ndarray, y: np.ndarray) -> None:
    """Learn the first rows, one by one."""
    model = PublishedStreamingLDA(X.shape[1], int(y.max()) + 1)
    for x, label in zip(torch.from_numpy(X), y.tolist(), strict=True):
        model.learn(x, label)


def stream_ours(model: LinearDiscriminantClassifier, X: np.ndarray, y: np.ndarray) -> None:
    """Learn block by block, and solve once."""
    for start in range(0, len(X), options.block):
        part = slice(start, start + options.block)
        model.partial_fit(X[part], y[part])
    model.predict(X[:1])


def table(seconds: dict[str, np.ndarray], base: str, memory: dict[str, int]) -> None:
    """Print seconds, ratios within the rounds to `base`, and memory."""
    print(f"{'':44} {'seconds':>26} {'ratio to ' + base:>36} {'memory':>10}")
    for name, values in seconds.items():
        taken = f"{memory[name] / 2**20:.0f} MiB" if name in memory else ""
        print(f"{name:44} {spread(values):>26} {spread(values / seconds[base]):>36} {taken:>10}")


def measure_fit() -> None:
    """Fit against one product and against scikit-learn."""
    X, y = vectors(options.rows, options.classes)
    competitors = {
        "X.T @ X": lambda: X.T @ X,
        "ours, OAS": lambda: LinearDiscriminantClassifier().fit(X, y),
        "ours, shrinkage by leaving one out": lambda: LinearDiscriminantClassifier("loo").fit(X, y),
        "scikit-learn, lsqr, auto": lambda: LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage="auto"
        ).fit(X, y),
    }
    print(f"\nFit: {options.rows} x {options.features}, {options.classes} classes, float32")
    seconds = rounds(competitors, options.rounds)
    memory = {name: extra_bytes(run) for name, run in competitors.items()}
    table(seconds, "X.T @ X", memory)
    speedup = seconds["scikit-learn, lsqr, auto"] / seconds["ours, OAS"]
    print(f"scikit-learn / ours: {spread(speedup)}", flush=True)


def measure_stream() -> None:
    """Blocks against one row at a time."""
    X, y = vectors(options.rows, options.classes)
    few = min(options.stream_rows, len(X))
    competitors = {
        "ours, OAS": lambda: stream_ours(LinearDiscriminantClassifier(), X, y),
        "ours, shrinkage 1e-4 (float64 products)": lambda: stream_ours(make_slda(), X, y),
        "rank-one update per row": lambda: stream_published(X[:few], y[:few]),
    }
    print(f"\nStream: blocks of {options.block}; the rank-one updates scaled from {few} rows")
    seconds = rounds(competitors, options.rounds)
    memory = {name: extra_bytes(run) for name, run in competitors.items()}
    seconds["rank-one update per row"] *= len(X) / few
    table(seconds, "ours, OAS", memory)
    slow = seconds["rank-one update per row"]
    for name in competitors:
        print(f"rank-one update per row / {name}: {spread(slow / seconds[name])}")
    print(flush=True)


def naive_distances(
    Q: np.ndarray, means: np.ndarray, matrices: list[np.ndarray], inverted: bool
) -> np.ndarray:
    """An inverse and a full product per class."""
    found = np.empty((len(Q), len(matrices)))
    for c, (mean, matrix) in enumerate(zip(means, matrices, strict=True)):
        precision = matrix if inverted else np.linalg.inv(matrix)
        gap = Q - mean
        found[:, c] = (gap @ precision * gap).sum(axis=1)
    return found


def published_distances(
    Q: np.ndarray, means: np.ndarray, matrices: list[np.ndarray]
) -> list[torch.Tensor]:
    """A pseudoinverse per class, and all pairs of rows to read the diagonal, as published."""
    found = []
    for mean, matrix in zip(means[: len(matrices)], matrices, strict=True):
        gap = torch.from_numpy(Q) - torch.tensor(mean, dtype=torch.float32)
        precision = torch.linalg.pinv(torch.from_numpy(matrix)).float()
        found.append(torch.diagonal(gap @ precision @ gap.T))
    return found


def measure_distances() -> None:
    """Distances to many classes, each with its own covariance."""
    classes = options.distance_classes
    X, y = vectors(options.rows, classes)
    start = time.perf_counter()
    clf = GaussianClassifier(blend=0.0, priors="uniform").fit(X, y)
    stack = 8 * classes * options.features**2 / 2**20
    print(
        f"\nDistances to {classes} classes of {options.features} features: learned and factored in "
        f"{time.perf_counter() - start:.1f} s, peak {peak_memory():.0f} MB; a stack of their "
        f"covariances takes {stack:.0f} MiB"
    )
    low = GaussianClassifier("low_rank", blend=0.0, priors="uniform").fit_moments(clf.moments_)
    few = min(options.naive_classes, classes)
    fewest = min(options.published_classes, few)
    matrices = [OAS().fit(X[y == c].astype(np.float64)).covariance_ for c in range(few)]
    inverses, means = [np.linalg.inv(matrix) for matrix in matrices], clf.means_[:few]
    for n in options.queries:
        Q = X[:n]
        wide = Q.astype(np.float64)
        competitors = {
            "ours, float32": lambda Q=Q: clf.mahalanobis(Q),
            "ours, float64": lambda wide=wide: clf.mahalanobis(wide),
            "ours, low rank 32": lambda Q=Q: low.mahalanobis(Q),
            "inverse per class": lambda Q=Q: naive_distances(Q, means, matrices, False),
            "published FeCAM": lambda Q=Q: published_distances(Q, means, matrices[:fewest]),
            "inverses given": lambda Q=Q: naive_distances(Q, means, inverses, True),
        }
        expected = naive_distances(wide, means, matrices, False)
        worst = np.abs(clf.mahalanobis(Q)[:, :few] / expected - 1).max()
        print(f"\n{n} queries; inverses scaled from {few} classes, the published from {fewest}")
        print(f"largest relative difference of float32 from an inverse in float64: {worst:.1e}")
        seconds = rounds(competitors, options.rounds)
        memory = {name: extra_bytes(run) for name, run in competitors.items()}
        for name in ("inverse per class", "inverses given"):
            seconds[name] *= classes / few
        seconds["published FeCAM"] *= classes / fewest
        table(seconds, "ours, float32", memory)
        print(flush=True)


def main() -> None:
    """Measure and print."""
    print(header(options.threads))
    measure_fit()
    measure_stream()
    measure_distances()


if __name__ == "__main__":
    main()
