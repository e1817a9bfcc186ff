# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmarks share: rounds taken in turn, medians, versions, and small real inputs.

Competitors run alternately, round after round, so that a change of the machine's speed hits all of
them; a ratio is taken within a round, and the median of the rounds is what is printed.
"""

import io
import platform
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def rounds(competitors: dict[str, Callable[[], object]], n_rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every competitor in every round, after one round that does not count."""
    seconds = {name: [] for name in competitors}
    for number in range(n_rounds + 1):
        for name, run in competitors.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values: np.ndarray) -> str:
    """Median with the smallest and the largest value."""
    return f"{np.median(values):.3f} ({values.min():.3f} to {values.max():.3f})"


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MB, on Linux."""
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def extra_bytes(run: Callable[[], object]) -> int:
    """Largest resident memory during a call, on top of that before it (Linux)."""
    statm, page = Path("/proc/self/statm"), 4096
    if not statm.exists():
        return -1

    def resident() -> int:
        return page * int(statm.read_text().split()[1])

    before, done = resident(), threading.Event()
    peak = [before]

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak[0] - before


def header(threads: int) -> str:
    """Versions and the machine, for the top of every table."""
    names = ("scikit-learn", "torch", "numpy", "Pillow", "faiss-cpu")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{versions}; Python {platform.python_version()}; {threads} threads"


def write_photographs(folder: Path, n: int, side: int, seed: int = 0) -> list[str]:
    """Distinct JPEG photographs: crops of scikit-learn's two, or the real clothing pictures."""
    archive = DATA / "clothing" / "clothing10_224.npz"
    names = [str(folder / f"{i:05}.jpg") for i in range(n)]
    if archive.exists() and side == 224 and n <= 2000:
        content = np.load(archive)
        starts = content["offsets"]
        for i, name in enumerate(names):
            Path(name).write_bytes(content["jpeg"][starts[i] : starts[i + 1]].tobytes())
        return names
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for i, name in enumerate(names):
        photograph = photographs[i % 2]
        size = int(rng.integers(side, 400))
        left = int(rng.integers(0, photograph.width - size))
        top = int(rng.integers(0, photograph.height - size))
        crop = photograph.crop((left, top, left + size, top + size)).resize((side, side))
        buffer = io.BytesIO()
        crop.save(buffer, "JPEG", quality=90)
        Path(name).write_bytes(buffer.getvalue())
    return names
