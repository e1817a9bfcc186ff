# SPDX-License-Identifier: BSD-3-Clause
"""What does a whitening cost beside PCA of scikit-learn, how exact is it, what does a sweep save?

Float32 rows of condition number 1e6 (of the covariance) around a mean of 1,000 standard deviations.
Fits are timed in turn against every solver of `PCA(whiten=True)` that gives all components; those
for a few components are timed beside them, and so are a sweep over the number of components and a
grid search, with and without what `Whitening` remembers. The error is the largest deviation from
the identity of the covariance (in float64) of the whitened training rows; the memory is what a
fresh process needs on top of the rows, at its peak.

    python benchmarks/bench_whitening.py [--rows 200000] [--features 768] [--rounds 5]
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _measure import header, peak_memory, rounds, spread
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline

from skpool.preprocessing import Whitening, _memo

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--rows", type=int, default=200_000)
parser.add_argument("--features", type=int, default=768)
parser.add_argument("--few", type=int, default=64, help="components of the truncated solvers")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--slow-rounds", type=int, default=1, help="of full and arpack")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--memory-of", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
options = parser.parse_args()
torch.set_num_threads(options.threads)

OURS = "Whitening"
ALL = {
    OURS: Whitening(eps=0.0),
    "PCA covariance_eigh": PCA(whiten=True, svd_solver="covariance_eigh"),
    "PCA full": PCA(whiten=True, svd_solver="full"),
}
FEW = {
    f"Whitening, {options.few}": Whitening(options.few, eps=0.0),
    f"PCA randomized, {options.few}": PCA(
        options.few, whiten=True, svd_solver="randomized", random_state=0
    ),
    f"PCA arpack, {options.few}": PCA(
        options.few, whiten=True, svd_solver="arpack", random_state=0
    ),
}
SLOW = ("PCA full", f"PCA arpack, {options.few}")


def make_rows() -> np.ndarray:
    """Rows whose variances fall from 1 to 1e-6 along random directions, far from the origin."""
    rng = np.random.default_rng(0)
    d = options.features
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    X = rng.standard_normal((options.rows, d), dtype=np.float32)
    X *= np.logspace(0, -3, d, dtype=np.float32)
    X = X @ Q.T
    X /= X.std(axis=0).mean()
    X += np.float32(1000)
    return X


def fresh_fit(estimator: BaseEstimator, X: np.ndarray) -> BaseEstimator:
    """A fit that finds nothing remembered."""
    _memo.forget_decompositions()
    return estimator.fit(X)


def in_parts(X: np.ndarray) -> Whitening:
    """A whitening whose products are all float64, as those of few rows at once are."""
    _memo.forget_decompositions()
    model = Whitening(eps=0.0)
    for start in range(0, len(X), 50_000):
        model.partial_fit(X[start : start + 50_000])
    # The decomposition waits for the first use.
    return model.truncated(None)


def error_of(model: BaseEstimator, X: np.ndarray) -> float:
    """Largest deviation of the covariance of the whitened rows from the identity."""
    Z = model.transform(X).astype(np.float64)
    Z -= Z.mean(axis=0)
    covariance = Z.T @ Z / (len(Z) - 1)
    return float(np.abs(covariance - np.eye(len(covariance))).max())


def print_memory(name: str, file: str) -> None:
    """Fit in this fresh process and print the growth of its peak, in MB."""
    X = np.load(file)
    fresh_fit((ALL | FEW)[name].__class__(), X[:500, :32].copy())  # what libraries allocate once
    before = peak_memory()
    fresh_fit((ALL | FEW)[name], X)
    print(peak_memory() - before)


def memory_of(name: str, file: Path) -> float:
    """The same from outside."""
    arguments = ["--features", str(options.features), "--few", str(options.few)]
    command = [sys.executable, __file__, *arguments, "--memory-of", name, str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def fits(X: np.ndarray, file: Path) -> None:
    """Print seconds, ratios, errors and memory of all competitors."""
    competitors: dict[str, Callable[[], object]] = {
        name: lambda estimator=estimator: fresh_fit(estimator, X)
        for name, estimator in (ALL | FEW).items()
    }
    seconds = rounds(
        {"Whitening, float64 products": lambda: in_parts(X)}
        | {name: run for name, run in competitors.items() if name not in SLOW},
        options.rounds,
    )
    seconds |= rounds({name: competitors[name] for name in SLOW}, options.slow_rounds)
    print("\nfit                          seconds                   to Whitening   error    MB")
    for name, values in seconds.items():
        ours = seconds[OURS][: len(values)]
        exact = name == "Whitening, float64 products"
        error = error_of(in_parts(X) if exact else fresh_fit((ALL | FEW)[name], X), X)
        memory = "" if exact else f"{memory_of(name, file):6.0f}"
        ratio = np.median(values / ours)
        print(f"{name:28} {spread(values):24}  {ratio:8.2f}   {error:10.1e}  {memory}", flush=True)


def sweeps(X: np.ndarray) -> None:
    """Print what other numbers of components cost after one fit, and in a search."""
    sizes = [k for k in (16, 32, 64, 128, 256, 512) if k <= options.features]
    fitted = Whitening(eps=0.0).fit(X)
    seconds = rounds(
        {
            "truncated from one fit": lambda: [fitted.truncated(k) for k in sizes],
            "PCA fitted to each": lambda: [
                PCA(k, whiten=True, svd_solver="covariance_eigh").fit(X) for k in sizes
            ],
        },
        min(2, options.rounds),
    )
    print(f"\n{len(sizes)} numbers of components      seconds")
    for name, values in seconds.items():
        print(f"{name:28} {spread(values)}")
    few = X[:: max(1, len(X) // 5000)]
    y = np.random.default_rng(0).integers(0, 10, len(few))
    grid = {"whitening__n_components": [f"auto{k}" for k in sizes], "whitening__power": [0.5, 1.0]}
    pipeline = make_pipeline(Whitening(), NearestCentroid())

    def search(smallest: int) -> None:
        _memo.forget_decompositions()
        _memo._MIN_BYTES = smallest
        GridSearchCV(pipeline, grid, cv=5, refit=False, error_score="raise").fit(few, y)

    remembered = _memo._MIN_BYTES
    seconds = rounds(
        {
            "decompositions remembered": lambda: search(remembered),
            "nothing remembered": lambda: search(sys.maxsize),
        },
        min(3, options.rounds),
    )
    _memo._MIN_BYTES = remembered
    print(f"\nsearch, {2 * len(sizes)} candidates, 5 folds of {len(few)} rows: seconds")
    for name, values in seconds.items():
        print(f"{name:28} {spread(values)}")


def main() -> None:
    """Measure and print."""
    if options.memory_of:
        print_memory(*options.memory_of)
        return
    X = make_rows()
    print(header(options.threads))
    print(f"{options.rows} x {options.features} float32, {X.nbytes / 2**20:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npy"
        np.save(file, X)
        fits(X, file)
    sweeps(X)


if __name__ == "__main__":
    main()
