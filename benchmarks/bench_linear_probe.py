# SPDX-License-Identifier: BSD-3-Clause
"""How many reads of the rows does a linear probe take, and how far is it from scikit-learn's?

One penalty and a path of ten, on clustered vectors whose variances decay, and, with `--real`, on
real features. Seconds follow from the passes (a read of all rows for scores and a gradient), which
no other process disturbs. The losses are evaluated here, in float64, by numpy, for both.
scikit-learn's `LogisticRegression` (L-BFGS) runs from zero to each of the tolerances asked for;
its default, 1e-4, often ends well above the minimum. Memory is what a call takes on top of what
was held before it.

    python benchmarks/bench_linear_probe.py [--rows 50000] [--features 768] [--classes 100]
    python benchmarks/bench_linear_probe.py --real cifar100 --C 0.01 --Cs 1e-4 1
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from _measure import DATA, extra_bytes, header, rounds, spread
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from skpool.probing import LinearProbeClassifier, linear_probe_path

REAL = {
    "cifar100": ("cifar100_deit_tiny.npz", "cls"),
    "clinc150": ("clinc150_minilm_l6_mean.npz", "features"),
    "banking77": ("banking77_minilm_l6_mean.npz", "features"),
}

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--rows", type=int, default=50_000)
parser.add_argument("--features", type=int, default=768)
parser.add_argument("--classes", type=int, default=100)
parser.add_argument("--separation", type=float, default=0.3, help="of the class means")
parser.add_argument("--decay", type=float, default=1.0, help="of the variances")
parser.add_argument("--real", choices=REAL, help="real features in place of drawn ones")
parser.add_argument("--C", type=float, default=1.0)
parser.add_argument("--Cs", type=float, nargs=2, default=(1e-4, 1.0), help="ends of the path")
parser.add_argument("--tol", type=float, default=1e-6)
parser.add_argument("--peer-tol", type=float, nargs="*", default=(1e-4, 1e-6))
parser.add_argument("--rounds", type=int, default=1)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
torch.set_num_threads(options.threads)


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Clusters of unequal width along turned axes whose variances decay, off the origin."""
    rng = np.random.default_rng(0)
    n, d, n_classes = options.rows, options.features, options.classes
    sd = ((np.arange(d) / 10 + 1) ** (-options.decay / 2)).astype(np.float32)
    y = rng.integers(0, n_classes, n)
    means = options.separation * rng.standard_normal((n_classes, d), dtype=np.float32)
    means[:, 150:] = 0
    X = rng.standard_normal((n, d), dtype=np.float32)
    X *= (0.7 + 0.6 * rng.random((n_classes, 1), dtype=np.float32))[y]
    X += means[y]
    turned = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    return (X * sd) @ turned + 0.5 * rng.standard_normal(d, dtype=np.float32), y


def real(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The training rows of a set of real features, in float32."""
    file, key = REAL[name]
    content = np.load(DATA / "features" / file)
    train = np.char.startswith(content["split"].astype(str), "train")
    labels = np.unique(content["labels"][train], return_inverse=True)[1]
    return content[key][train].astype(np.float32), labels


def loss(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray, C: float) -> float:
    """The mean of the cross-entropy and the penalty, in float64."""
    total = 0.0
    for start in range(0, len(X), 4096):
        part = slice(start, start + 4096)
        scores = X[part].astype(np.float64) @ coef.T + intercept
        total += (logsumexp(scores, axis=1) - scores[np.arange(len(scores)), y[part]]).sum()
    return (total + (coef.astype(np.float64) ** 2).sum() / (2 * C)) / len(X)


def one_penalty(X: np.ndarray, y: np.ndarray) -> tuple[LinearProbeClassifier, float]:
    """Print what one penalty takes, beside scikit-learn; our estimator and its seconds."""
    ours = LinearProbeClassifier(options.C, tol=options.tol)
    competitors: dict[str, Callable[[], object]] = {"ours": lambda: ours.fit(X, y)}
    peers = {}
    for tol in options.peer_tol:
        name = f"scikit-learn, tol={tol:g}"
        peers[name] = LogisticRegression(C=options.C, tol=tol, max_iter=10_000)
        competitors[name] = lambda peer=peers[name]: peer.fit(X, y)
    if options.rounds > 1:
        seconds = rounds(competitors, options.rounds)
    else:
        # One round, without one that does not count: a peer takes minutes.
        seconds = {}
        for name, run in competitors.items():
            start = time.perf_counter()
            run()
            seconds[name] = np.array([time.perf_counter() - start])
    reached = loss(X, y, ours.coef_, ours.intercept_, options.C)
    print(f"\none penalty, C={options.C:g}")
    print(f"{'ours':28} {spread(seconds['ours'])} s, {ours.n_passes_:g} passes, loss {reached:.8f}")
    for name, peer in peers.items():
        theirs = loss(X, y, peer.coef_, peer.intercept_, options.C)
        print(
            f"{name:28} {spread(seconds[name])} s, {peer.n_iter_[0]} iterations, loss "
            f"{theirs:.8f}; theirs / ours {spread(seconds[name] / seconds['ours'])} in seconds; "
            f"ours is {(reached - theirs) / theirs:+.1e} of the loss above",
            flush=True,
        )
    return ours, float(np.median(seconds["ours"]))


def ten_penalties(X: np.ndarray, y: np.ndarray, ours: LinearProbeClassifier, base: float) -> None:
    """Print what a path takes, beside its ends and the penalty above, each by itself."""
    Cs = np.geomspace(*options.Cs, 10)
    start = time.perf_counter()
    path = linear_probe_path(X, y, Cs, tol=options.tol)
    seconds = time.perf_counter() - start
    print(f"\nten penalties, C={Cs[0]:g} to {Cs[-1]:g}")
    print(f"path: {seconds:.3f} s, {path.n_passes:g} passes; steps {path.n_iter.tolist()}")
    alone = {options.C: (base, ours.n_passes_)}
    for C in (Cs[-1], Cs[len(Cs) // 2]):
        if C not in alone:
            start = time.perf_counter()
            model = LinearProbeClassifier(C, tol=options.tol).fit(X, y)
            alone[C] = time.perf_counter() - start, model.n_passes_
    for C, (taken, passes) in alone.items():
        print(
            f"C={C:<8.3g} alone: {taken:.3f} s, {passes:g} passes; path / this "
            f"{seconds / taken:.2f} in seconds, {path.n_passes / passes:.2f} in passes"
        )


def main() -> None:
    """Measure and print."""
    print(header(options.threads))
    X, y = real(options.real) if options.real else drawn()
    print(f"{X.shape[0]} x {X.shape[1]}, float32, {y.max() + 1} classes")
    warnings.simplefilter("ignore", ConvergenceWarning)
    with threadpool_limits(options.threads):
        # First: memory that was given back is not seen to be taken again.
        first = LinearProbeClassifier(options.C, tol=options.tol)
        extra = extra_bytes(lambda: first.fit(X, y))
        print(f"memory of our fit: {extra / 2**20:.0f} MiB, {extra / X.nbytes:.2f} of X")
        ours, seconds = one_penalty(X, y)
        ten_penalties(X, y, ours, seconds)


if __name__ == "__main__":
    main()
