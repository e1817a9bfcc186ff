# SPDX-License-Identifier: BSD-3-Clause
"""What do few-shot methods lose when some classes have many queries and others few?

Real features of classes from which nothing else was learned, 5-way, 75 queries an episode: 15 of
every class, or shares drawn from a Dirichlet distribution (alpha 2). All methods see the same
episodes. The last column is the loss from one to the other.

    python benchmarks/bench_unbalanced_queries.py [--episodes 1000] [--page docs/five_examples.md]
"""

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from _measure import DATA, header
from sklearn.base import BaseEstimator
from sklearn.pipeline import make_pipeline

from skpool.few_shot import (
    InformationMaximizationClassifier,
    OptimalTransportClassifier,
    PrototypeRectification,
    make_laplacian_shot,
)
from skpool.model_selection import EpisodeSplit, FewShotResult, MetaClassSplit, few_shot_score
from skpool.pipeline import make_simpleshot
from skpool.preprocessing import CenteredL2Normalizer
from skpool.prototypes import NearestClassMeanClassifier

SETS = {"CIFAR-100": "cifar100_deit_tiny", "Omniglot": "omniglot242_deit_tiny"}
QUERIES = ("balanced", "dirichlet")


def behind_base_mean(method: BaseEstimator) -> BaseEstimator:
    """Rows around the mean of the base classes, of unit length."""
    return make_pipeline(CenteredL2Normalizer(), method)


def methods() -> dict[str, BaseEstimator]:
    """By name; alpha follows the number of shots, as its authors choose it."""
    alpha_tim = InformationMaximizationClassifier("tsallis", lr=1e-3, max_iter=300)
    return {
        "nearest mean": NearestClassMeanClassifier(),
        "SimpleShot": make_simpleshot(),
        "LaplacianShot": make_laplacian_shot(),
        "rectified means (BD-CSPN)": behind_base_mean(PrototypeRectification()),
        "transport, equal shares (PT-MAP)": behind_base_mean(
            OptimalTransportClassifier(1.0, marginals="uniform")
        ),
        "transport, estimated shares": behind_base_mean(OptimalTransportClassifier(1.0)),
        "information, equal shares (TIM)": behind_base_mean(
            InformationMaximizationClassifier(solver="adm", max_iter=150)
        ),
        "information, free shares (alpha-TIM)": behind_base_mean(alpha_tim),
    }


def evaluated(name: str, n_shot: int, n_episodes: int) -> dict[str, list[FewShotResult]]:
    """Every method on balanced and on unbalanced queries."""
    with np.load(DATA / "features" / f"{SETS[name]}.npz") as content:
        X, y = content["cls"].astype(np.float32), content["labels"].astype(np.int64)
    base, _, novel = MetaClassSplit().parts(y)
    found: dict[str, list[FewShotResult]] = {}
    for mix in QUERIES:
        cv = EpisodeSplit(5, n_shot=n_shot, n_episodes=n_episodes, query_distribution=mix)
        for title, method in methods().items():
            result = few_shot_score(method, X[novel], y[novel], cv, X_base=X[base], y_base=y[base])
            found.setdefault(title, []).append(result)
    return found


def row(title: str, found: list[list[FewShotResult]]) -> str:
    """One line of the table: for each setting both accuracies and the loss, in percent."""
    cells = []
    for balanced, mixed in found:
        error = np.hypot(balanced.ci95, mixed.ci95)
        loss = balanced.mean - mixed.mean
        cells.append(
            f"{100 * balanced.mean:.1f} → {100 * mixed.mean:.1f} "
            f"({-100 * loss:+.1f} ± {100 * error:.1f})"
        )
    return f"| {title} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table, and write it to a page."""
    torch.set_num_threads(options.threads)
    print(header(options.threads), flush=True)
    settings = [(name, n_shot) for name in SETS for n_shot in (1, 5)]
    found = [evaluated(*setting, options.episodes) for setting in settings]
    titles = [f"{name}, {n_shot} shot{'s' * (n_shot > 1)}" for name, n_shot in settings]
    lines = ["| method | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(titles)]
    lines += [row(title, [one[title] for one in found]) for title in found[0]]
    table = "\n".join(lines)
    print(table)
    if options.page:
        text = options.page.read_text()
        pattern = r"(<!-- table: few_shot -->\n).*?(<!-- end of table -->)"
        new = re.sub(pattern, lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text, flags=re.DOTALL)
        options.page.write_text(new)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    main()
