# SPDX-License-Identifier: BSD-3-Clause
"""What does a store of a million rows cost over a plain memory map of the same rows?

Opening, gathering random rows (the first time in a process, which checks them, and again), and
importing, against `np.memmap` and, where h5py is installed, fancy indexing of HDF5 in the same
rounds; index memory; and whether `verify` finds every one of 100 flipped bytes.

    python benchmarks/bench_store.py [--rows 1000000] [--features 384] [--gather 100000]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from _measure import header, rounds, spread

from skpool.stores import FeatureStore
from skpool.stores._checksums import DamagedBlock

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--rows", type=int, default=1_000_000)
parser.add_argument("--features", type=int, default=384)
parser.add_argument("--gather", type=int, default=100_000)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--flips", type=int, default=100)
options = parser.parse_args()

# Printed by a process of its own, so that nothing of the store is in memory: seconds to open (with
# the whole index), to gather for the first time, and to gather a few rows for the first time.
_FRESH = """
import sys, time
import numpy as np
from skpool.stores import FeatureStore
path, rows, few = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3])
keys = np.load(sys.argv[4]).view("V16").ravel()
begin = time.perf_counter()
store = FeatureStore(path)
store.held("bank", keys[:1])
opened = time.perf_counter()
assert store.read("bank", keys[rows[:few]])[0].all()
little = time.perf_counter()
assert store.read("bank", keys[rows])[0].all()
print(opened - begin, little - opened, time.perf_counter() - little)
"""


def write_bank(path: Path) -> None:
    """Random float16 rows, written block by block."""
    rng = np.random.default_rng(0)
    shape = options.rows, options.features
    bank = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    for begin in range(0, options.rows, 20_000):
        part = bank[begin : begin + 20_000]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    bank.flush()


def fresh(folder: Path, rows: np.ndarray, keys: np.ndarray, few: int) -> np.ndarray:
    """Seconds of a new process; the median of the rounds of each."""
    np.save(folder / "rows.npy", rows)
    np.save(folder / "keys.npy", keys.view(np.uint8).reshape(-1, 16))
    arguments = [folder / "store", folder / "rows.npy", few, folder / "keys.npy"]
    command = [sys.executable, "-c", _FRESH, *map(str, arguments)]
    lines = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for _ in range(options.rounds)
    ]
    return np.array([[float(x) for x in line.split()] for line in lines]).T


def flips_found(store: FeatureStore) -> int:
    """Flip bytes one by one, each put back; count those that the check of `verify` finds."""
    rng = np.random.default_rng(0)
    with store._opened() as session:
        infos, _ = session.survey()
        session.expect(infos)
    found = 0
    for _ in range(options.flips):
        info = infos[rng.integers(len(infos))]
        at, bit = int(rng.integers(info.size)), 1 << int(rng.integers(8))
        with open(session.files.path(info), "r+b") as file:
            file.seek(at)
            good = file.read(1)
            file.seek(at)
            file.write(bytes([good[0] ^ bit]))
            file.flush()
            try:
                # What `verify` does to every block, without dropping it.
                session.files.check(info, None)
            except DamagedBlock:
                found += 1
            file.seek(at)
            file.write(good)
    return found


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bank(folder / "bank.npy")
        begin = time.perf_counter()
        # With hashed ids, as names of files have.
        ids = [f"image {i}" for i in range(options.rows)]
        store = FeatureStore.from_arrays(folder / "store", folder / "bank.npy", ids=ids)
        imported = time.perf_counter() - begin
        keys = store.open()._source.keys
        rows = np.random.default_rng(1).integers(0, options.rows, options.gather)
        wanted = keys[rows]
        bank = np.load(folder / "bank.npy", mmap_mode="r")
        competitors = {
            "np.memmap": lambda: bank[rows],
            "skpool": lambda: store.read("bank", wanted)[1],
        }
        if find_spec("h5py") is not None:
            import h5py

            file = h5py.File(folder / "bank.h5", "w")
            dataset = file.create_dataset("rows", bank.shape, bank.dtype)
            for begin_row in range(0, options.rows, 20_000):
                dataset[begin_row : begin_row + 20_000] = bank[begin_row : begin_row + 20_000]
            distinct, place = np.unique(rows, return_inverse=True)
            competitors["HDF5 (h5py), sorted distinct rows"] = lambda: dataset[distinct][place]
        results = [run() for run in competitors.values()]
        equal = all(np.array_equal(results[0], result) for result in results)
        seconds = rounds(competitors, options.rounds)
        info = store.info()
        opening, few, first = fresh(folder, rows, keys, 256)
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            damaged = store.verify()
        verified = time.perf_counter() - begin
        found = flips_found(store)
        store.close()
    print(header(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))))
    print(
        f"{options.rows} x {options.features} float16, {options.gather} random rows, warm cache\n"
    )
    print("| gather | seconds | ratio to np.memmap |")
    print("| --- | --- | --- |")
    for competitor, values in seconds.items():
        print(f"| {competitor} | {spread(values)} | {spread(values / seconds['np.memmap'])} |")
    plain = np.median(seconds["np.memmap"])
    print(
        f"| skpool, first in a process, with checks | {spread(first)} | {spread(first / plain)} |"
    )
    print(f"\nAll rows agree: {equal}")
    print(f"Open and read the index: {spread(opening)} s")
    print(f"First gather of 256 rows after opening: {spread(few)} s")
    print(
        f"Index: {info['memory_bytes'] / 1e6:.1f} MB of memory, {info['index_bytes'] / 1e6:.1f} MB "
        f"on the disk, for {info['n_bytes'] / 1e6:.0f} MB in {info['n_blocks']} blocks"
    )
    print(f"Import from .npy: {imported:.1f} s; verify: {verified:.2f} s, {len(damaged)} damaged")
    print(f"Flipped bytes found: {found} of {options.flips}")


if __name__ == "__main__":
    main()
