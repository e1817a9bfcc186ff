# SPDX-License-Identifier: BSD-3-Clause
"""Do the published codes and ours say the same on the same features, and where do they part?

Each published class or function is imported from a clone of its repository, or from its package,
and fed frozen features in a class-incremental setting or in few-shot episodes; ours learns the same
rows. The first table has the accuracy after the last task, or of all episodes; differences are
paired within a seed, which draws the split and the order of the classes or the episodes, and the
standard error is over seeds. The second has what tells the codes apart: means
over the seeds, with the smallest and the largest value.

    python benchmarks/compare_published.py --code DIR [--codes slda dkvb ...] [--seeds 5]

DIR holds clones of the repositories named in docs/published_codes.md, under their own names.
"""

import argparse
import importlib
import os
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from _measure import header
from _published.clones import commit
from _published.tasks import Outcome

CODES = (
    "slda",
    "ranpac",
    "fecam",
    "teen",
    "pec",
    "dkvb",
    "moment_probing",
    "icarl",
    "simplecil",
    "ease",
    "easyfsl",
    "pt_map",
    "alpha_tim",
)

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--code", type=Path, required=True, help="folder of the clones")
parser.add_argument("--codes", nargs="+", choices=CODES, default=CODES)
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--threads", type=int, default=1)
options = parser.parse_args()


def paired(values: np.ndarray) -> str:
    """Mean with its standard error, in points."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{100 * values.mean():+.2f} ± {100 * error:.2f}"


def row(name: str, setting: str, outcomes: list[Outcome]) -> str:
    """One line of the first table."""
    theirs = np.array([np.mean(x.theirs == x.truth) for x in outcomes])
    ours = np.array([np.mean(x.ours == x.truth) for x in outcomes])
    equal = np.mean([np.mean(x.theirs == x.ours) for x in outcomes])
    cells = [
        f"{100 * theirs.mean():.2f}",
        f"{100 * ours.mean():.2f}",
        paired(ours - theirs),
        f"{100 * equal:.2f} %",
    ]
    return f"| {name} | {setting} | {' | '.join(cells)} |"


def number(values: list[float]) -> str:
    """Mean with the smallest and the largest value; one value where all are the same."""
    low, mean, high = min(values), float(np.mean(values)), max(values)
    if low == high:
        return f"{low:.4g}"
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"


def measured(name: str, run: Callable[..., Outcome]) -> list[Outcome]:
    """The outcomes of all seeds."""
    start = time.perf_counter()
    outcomes = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        outcomes.append(run(options.code, seed))
    print(f"<!-- {name}: {time.perf_counter() - start:.0f} s -->", flush=True)
    return outcomes


def main() -> None:
    """Measure and print."""
    # Published codes use what has been renamed since.
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    os.environ.setdefault("TQDM_DISABLE", "1")
    print(header(options.threads))
    lines, facts = [], []
    for key in options.codes:
        adapter = importlib.import_module(f"_published.{key}")
        for clone in np.atleast_1d(adapter.CLONE):
            print(f"{clone} at {commit(options.code / clone)}")
        for package in getattr(adapter, "PACKAGES", ()):
            print(f"{package} {version(package)}")
        for setting, run in adapter.RUNS.items():
            outcomes = measured(f"{key}, {setting}", run)
            lines.append(row(key, setting, outcomes))
            for fact in outcomes[0].facts:
                values = number([x.facts[fact] for x in outcomes])
                facts.append(f"| {key} | {setting} | {fact} | {values} |")
    print("\n| code | setting | theirs | ours | ours - theirs | equal predictions |")
    print("\n".join(["| --- | --- | --- | --- | --- | --- |", *lines]))
    print("\n| code | setting | measured | mean (least to most) |")
    print("\n".join(["| --- | --- | --- | --- |", *facts]))


if __name__ == "__main__":
    main()
