# SPDX-License-Identifier: BSD-3-Clause
"""What Dask costs: extraction on two workers against one process with two threads.

    cd benchmarks && python bench_distributed.py --images 1024

Both begin with nothing stored and end with pooled vectors in a store on the same disk; workers and
networks are loaded before the clock starts. Rounds alternate, ratios are taken within a round.
"""

import argparse
import platform
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import dask
import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from PIL import Image
from sklearn.pipeline import make_pipeline

from skpool.distributed import extract
from skpool.extraction import FeatureExtractor
from skpool.pooling import GeMPooling


def write_images(folder: Path, n: int) -> list[str]:
    """Noise as JPEG files of 224 px."""
    rng = np.random.default_rng(0)
    names = []
    for i in range(n):
        names.append(str(folder / f"{i:05}.jpg"))
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(names[-1])
    return names


def seconds_of(backbone: str, paths: list[str], run) -> float:
    """Time of one run into a new store."""
    with tempfile.TemporaryDirectory() as folder:
        extractor = FeatureExtractor(backbone, store=Path(folder) / "store", keep_tokens=False)
        model = make_pipeline(extractor, GeMPooling())
        start = perf_counter()
        run(model, paths, Path(folder) / "scratch")
        return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="glyph")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        paths = write_images(Path(folder), arguments.images)
        runs = {
            "one process, 2 threads": lambda m, p, s: m.fit_transform(p),
            "2 workers, rows travel": lambda m, p, s: extract(m, p, client=client),
            "2 workers, stores merge": lambda m, p, s: extract(m, p, client=client, scratch=s),
        }
        for run in runs.values():
            seconds_of(arguments.backbone, paths[:256], run)
        times = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                times[name].append(seconds_of(arguments.backbone, paths, run))
    print(f"torch {torch.__version__}, dask {dask.__version__}, {platform.machine()}")
    base = times["one process, 2 threads"]
    for name, seconds in times.items():
        rates = [arguments.images / s for s in seconds]
        ratios = [b / s for b, s in zip(base, seconds, strict=True)]
        print(
            f"{name}: {statistics.median(rates):.1f} images/s, speed against one process "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
