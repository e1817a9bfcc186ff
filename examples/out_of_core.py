# SPDX-License-Identifier: BSD-3-Clause
"""A classifier learned from a file that is larger than the memory it may take.

Features lie in a memory-mapped file, block after block goes into the moments of the classes, and
what is held is one block and a few matrices of features by features. Beside it the same classifier
by scikit-learn and by numpy. scikit-learn's default solver and the plain formula hold all rows;
its solver "lsqr" copies one class at a time, so its memory is that of the largest class. Each way
runs in a process of its own whose memory is watched, once without a limit and once with one.

    python examples/out_of_core.py [--rows 120000] [--features 512] [--limit 128]

With `n_jobs` every worker is a process that loads the libraries again: that is in its memory, and
the limit holds for each process by itself.
"""

# %%
# The ways
# --------
# One per process: this file calls itself with `--way`.

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from threadpoolctl import threadpool_limits

from skpool.discriminant import LinearDiscriminantClassifier

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--rows", type=int, default=120_000)
parser.add_argument("--features", type=int, default=512)
parser.add_argument("--classes", type=int, default=50)
parser.add_argument("--block-rows", type=int, default=4096)
parser.add_argument("--limit", type=int, default=128, help="MB that a fit may take")
parser.add_argument("--output", type=Path, default=Path("outputs/out_of_core.png"))
parser.add_argument("--way", help=argparse.SUPPRESS)
parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
parser.add_argument("--limited", action="store_true", help=argparse.SUPPRESS)
options = parser.parse_args()


def blocks(X: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of a memory-mapped file; nothing is read before they are used."""
    for start in range(0, len(X), options.block_rows):
        part = slice(start, start + options.block_rows)
        yield X[part], y[part]


def by_blocks(n_jobs: int | None, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights from the moments of blocks."""
    model = LinearDiscriminantClassifier(0.0).fit_blocks(blocks(X, y), n_jobs=n_jobs)
    return model.coef_, model.intercept_


def by_scikit_learn(solver: str, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the same classifier, from all rows."""
    model = LinearDiscriminantAnalysis(solver=solver).fit(X, y)
    return model.coef_, model.intercept_


def by_numpy(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The formula as it is written: rows minus class means, and their products."""
    means = np.stack([X[y == c].mean(axis=0, dtype=np.float64) for c in range(y.max() + 1)])
    rest = X - means[y]
    coef = np.linalg.solve(rest.T @ rest / len(X), means.T).T
    return coef, np.log(np.bincount(y) / len(y)) - (means * coef).sum(axis=1) / 2


WAYS = {
    "skpool, blocks": lambda X, y: by_blocks(None, X, y),
    "skpool, blocks, n_jobs=2": lambda X, y: by_blocks(2, X, y),
    "scikit-learn, lsqr": lambda X, y: by_scikit_learn("lsqr", X, y),
    "scikit-learn, svd (default)": lambda X, y: by_scikit_learn("svd", X, y),
    "numpy": by_numpy,
}


def one_way() -> None:
    """Learn in this process, and write the weights and the seconds."""
    X = np.load(options.folder / "X.npy", mmap_mode="r")
    y = np.load(options.folder / "y.npy")
    way = WAYS[options.way]
    # Libraries, threads and their buffers are there before anything is counted.
    few = slice(0, max(4 * len(np.unique(y)), 2 * X.shape[1]))
    way(np.array(X[few]), np.arange(few.stop) % (int(y.max()) + 1))
    if options.limited:
        held = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + options.limit * 2**20,) * 2)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    try:
        coef, intercept = way(X, y)
    except (MemoryError, RuntimeError, np.linalg.LinAlgError) as error:
        print(f"{options.way}: {error!r}", file=sys.stderr)
        print(json.dumps({"seconds": None}))
        return
    seconds = time.perf_counter() - start
    np.savez(options.folder / "weights.npz", coef=coef, intercept=intercept)
    print(json.dumps({"seconds": seconds}))


if options.way:
    with threadpool_limits(2):
        one_way()
    sys.exit()

# %%
# Memory of a process and those that it starts
# --------------------------------------------
# Pages of a mapped file are the system's to take back at any time, so what counts is the memory
# that belongs to the processes alone.


def descendants(pid: int) -> list[int]:
    """A process, and all that it started."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found.extend(int(child) for child in task.read_text().split())
    return found


def own_memory(pid: int) -> float:
    """MB that belong to a process and its descendants alone."""
    total = 0
    for process in descendants(pid):
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        if "RssAnon:" in status:
            total += int(status.split("RssAnon:")[1].split()[0])
    return total / 1024


def watched(way: str, folder: Path, *, limited: bool) -> dict:
    """Seconds of a way, the MB above its start, and the weights; no seconds where it failed."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    command += ["--limit", str(options.limit), "--block-rows", str(options.block_rows)]
    command += ["--limited"] * limited
    trace, done = [], threading.Event()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:

        def watch() -> None:
            start = time.perf_counter()
            while not done.is_set():
                trace.append((time.perf_counter() - start, own_memory(process.pid)))
                time.sleep(0.01)

        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{way} ended before it started.")
        # The first entry of the trace is what the process held before.
        trace.append((0.0, own_memory(process.pid)))
        watcher = threading.Thread(target=watch)
        watcher.start()
        process.stdin.write("\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        done.set()
        watcher.join()
        process.stdin.close()
    result = json.loads(answer) if answer.strip() else {"seconds": None}
    times, memory = np.array(trace).T
    result |= {"times": times, "memory": memory - memory[0]}
    if result["seconds"] is not None and not limited:
        result["weights"] = dict(np.load(folder / "weights.npz"))
    return result


# %%
# A file of features
# ------------------
# Written block by block too: classes around means of their own, with directions that they share.


def write_features(folder: Path) -> None:
    """Write X.npy and y.npy."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(options.classes, options.features))
    mixing = rng.normal(size=(options.features, options.features)) / 8
    shape = (options.rows, options.features)
    X = np.lib.format.open_memmap(folder / "X.npy", mode="w+", dtype=np.float32, shape=shape)
    y = rng.integers(0, options.classes, options.rows)
    for start in range(0, options.rows, options.block_rows):
        part = slice(start, start + options.block_rows)
        noise = rng.normal(size=(len(y[part]), options.features)) @ mixing
        X[part] = means[y[part]] + noise
    X.flush()
    np.save(folder / "y.npy", y)


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    write_features(folder)
    size = (folder / "X.npy").stat().st_size / 2**20
    print(f"A file of {size:.0f} MB: {options.rows} rows of {options.features} features")
    probe = np.load(folder / "X.npy", mmap_mode="r")[:2000].astype(np.float64)
    free = {way: watched(way, folder, limited=False) for way in WAYS}
    limited = {way: watched(way, folder, limited=True) for way in WAYS}

# %%
# The same decisions
# ------------------
# Weights are known up to a vector that is added to those of every class, so scores are compared
# around their mean over the classes, with those of numpy, which multiplied in float64. Rows of
# float32 are multiplied in float32 here, and the covariance, which nothing shrinks, is badly
# conditioned, so our scores are the least exact; blocks of float64 would make them as exact as
# numpy's.


def scores(weights: dict[str, np.ndarray], X: np.ndarray) -> np.ndarray:
    """Class scores around their mean."""
    values = X @ weights["coef"].T + weights["intercept"]
    return values - values.mean(axis=1, keepdims=True)


reference = scores(free["numpy"]["weights"], probe)
for way, result in free.items():
    apart = np.abs(scores(result["weights"], probe) - reference).max() / np.abs(reference).max()
    finished = "finished" if limited[way]["seconds"] else "out of memory"
    print(
        f"{way:28s} {result['seconds']:6.2f} s  {result['memory'].max():5.0f} MB  scores differ "
        f"by {apart:.0e}; with {options.limit} MB: {finished}"
    )

# %%
# One picture
# -----------

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

colors = dict(
    zip(WAYS, ("tab:green", "tab:olive", "tab:blue", "tab:orange", "tab:gray"), strict=True)
)
figure, (trace_axis, bar_axis) = plt.subplots(
    1, 2, figsize=(13, 5), layout="constrained", width_ratios=[1.5, 1]
)
figure.suptitle(f"Discriminant analysis on a file of {size:.0f} MB, two cores", fontsize=15)
for way, result in free.items():
    trace_axis.plot(result["times"], result["memory"], color=colors[way], label=way, linewidth=2)
trace_axis.axhline(size, color="0.6", linewidth=0.8)
trace_axis.text(0.1, size, " the file", color="0.4", va="bottom")
trace_axis.axhline(options.limit, color="tab:red", linewidth=0.8, linestyle="--")
trace_axis.text(0.1, options.limit, " the limit", color="tab:red", va="bottom")
trace_axis.set(
    xscale="log", xlim=(0.1, None), xlabel="seconds", ylabel="memory above the start, MB"
)
trace_axis.legend(loc="upper left")
trace_axis.grid(alpha=0.3)
trace_axis.set_title("Without a limit (n_jobs: with the libraries of both workers)")

places = np.arange(len(WAYS))[::-1]
for place, (way, result) in zip(places, limited.items(), strict=True):
    if result["seconds"]:
        bar_axis.barh(place, result["seconds"], color=colors[way])
        bar_axis.text(result["seconds"], place, f" {result['seconds']:.2f} s", va="center")
    else:
        bar_axis.text(0, place, " out of memory", color="tab:red", va="center")
bar_axis.set_yticks(places, list(WAYS))
bar_axis.set(xlabel="seconds", ylim=(-0.6, len(WAYS) - 0.4))
bar_axis.margins(x=0.2)
bar_axis.set_xlim(left=0)
bar_axis.set_title(f"Each process limited to {options.limit} MB above its start")

options.output.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output, dpi=110)
print(f"Picture: {options.output}")
