# SPDX-License-Identifier: BSD-3-Clause
"""How much faster are many episodes at once than one after the other in a few-shot library?

Rounds in turn, from rows and labels to accuracies on both sides, so that the draw of the episodes
counts. The peer is `easyfsl`, used as its documentation says: a `FeaturesDataset`, a `TaskSampler`
and a `DataLoader`, and `evaluate` without its progress bar, a method around an identity backbone.
A second column gives the peer the tensors of its episodes for nothing, to show what sampling costs.
Centres and scales are known beforehand on both sides. Accuracies stand beside the times, of
different draws of episodes from the same rows.

    python benchmarks/bench_few_shot.py [--episodes 10000] [--shots 1] [--methods ncm simpleshot]
"""

import argparse
import types
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from _measure import header, rounds, spread
from _published.easyfsl import load_easyfsl
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from torch.utils.data import DataLoader

from skpool.few_shot import (
    InformationMaximizationClassifier,
    OptimalTransportClassifier,
    PrototypeRectification,
    make_laplacian_shot,
)
from skpool.model_selection import EpisodeSplit, FewShotResult, few_shot_score
from skpool.pipeline import make_simpleshot
from skpool.preprocessing import CenteredL2Normalizer, L2Normalizer
from skpool.prototypes import NearestClassMeanClassifier

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--classes", type=int, default=20)
parser.add_argument("--rows", type=int, default=600, help="rows of a class")
parser.add_argument("--features", type=int, default=640)
parser.add_argument("--episodes", type=int, default=10_000)
parser.add_argument("--shots", type=int, default=1)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--methods", nargs="+", default=None)
options = parser.parse_args()
torch.set_num_threads(options.threads)

WAYS, QUERIES = 5, 15


class Case(NamedTuple):
    """A method on both sides."""

    ours: BaseEstimator
    peer: torch.nn.Module
    peer_episodes: int


def make_data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features as a network's last rectified layer gives them, and the rows of base classes."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((options.classes, options.features), dtype=np.float32)
    y = np.repeat(np.arange(options.classes), options.rows)
    noise = rng.standard_normal((len(y), options.features), dtype=np.float32)
    base = np.maximum(3 * rng.standard_normal((2000, options.features), dtype=np.float32), 0)
    return np.maximum(0.8 * means[y] + 3 * noise, 0), y, base


def cases(peer: types.ModuleType, base: np.ndarray) -> dict[str, Case]:
    """The methods by name; a peer takes as many episodes as fit a second or so."""
    methods, identity = peer.methods, torch.nn.Identity
    center = torch.from_numpy(base.mean(axis=0))
    centered = {"feature_centering": center, "feature_normalization": 2}
    frozen = FrozenEstimator(CenteredL2Normalizer().fit(base))
    unit = {"feature_normalization": 2}
    return {
        "ncm": Case(
            NearestClassMeanClassifier("euclidean"),
            methods.PrototypicalNetworks(identity()),
            500,
        ),
        "simpleshot": Case(
            make_pipeline(frozen, make_simpleshot()[-1]),
            methods.SimpleShot(identity(), **centered),
            500,
        ),
        "bd-cspn": Case(
            make_pipeline(frozen, PrototypeRectification()),
            methods.BDCSPN(identity(), **centered),
            500,
        ),
        "laplacianshot": Case(
            make_pipeline(frozen, make_laplacian_shot()[-1]),
            methods.LaplacianShot(identity(), **centered),
            300,
        ),
        "pt-map": Case(
            OptimalTransportClassifier(regularization=10.0, n_epochs=10, marginals="uniform"),
            methods.PTMAP(identity(), **unit),
            20,
        ),
        "tim": Case(
            make_pipeline(L2Normalizer(), InformationMaximizationClassifier(max_iter=50)),
            methods.TIM(identity(), **unit),
            20,
        ),
    }


def compare(name: str, case: Case, peer: types.ModuleType, X: np.ndarray, y: np.ndarray) -> None:
    """Print microseconds of an episode on each side, and their ratios."""
    data = peer.datasets.FeaturesDataset(
        y.tolist(), torch.from_numpy(X), [str(c) for c in range(options.classes)]
    )
    found: dict[str, float] = {}
    split = EpisodeSplit(WAYS, options.shots, QUERIES, n_episodes=options.episodes)

    def episodes() -> DataLoader:
        sampler = peer.samplers.TaskSampler(data, WAYS, options.shots, QUERIES, case.peer_episodes)
        return DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)

    def evaluate(loader: object) -> float:
        return peer.utils.evaluate(case.peer, loader, device="cpu", use_tqdm=False)

    def run_peer() -> None:
        found["peer"] = evaluate(episodes())

    def run_ours() -> None:
        found["ours"] = few_shot_score(case.ours, X, y, split)

    ready = list(episodes())
    competitors: dict[str, Callable[[], object]] = {
        "peer": run_peer,
        "ready": lambda: evaluate(ready),
        "ours": run_ours,
    }
    seconds = rounds(competitors, options.rounds)
    counts = {"peer": case.peer_episodes, "ready": case.peer_episodes, "ours": options.episodes}
    micro = {side: 1e6 * values / counts[side] for side, values in seconds.items()}
    result: FewShotResult = found["ours"]
    print(
        f"{name:14}"
        + "".join(f"{np.median(micro[side]):10.1f}" for side in ("ours", "peer", "ready"))
        + f"{spread(micro['peer'] / micro['ours']):>26}{spread(micro['ready'] / micro['ours']):>26}"
        + f"{100 * result.mean:10.2f}{100 * found['peer']:8.2f}",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    peer = load_easyfsl()
    X, y, base = make_data()
    print(header(options.threads) + f"; easyfsl {version('easyfsl')}")
    print(
        f"{options.episodes} episodes of {WAYS} ways, {options.shots} shots and {QUERIES} queries "
        f"a class, from {X.shape[0]} x {X.shape[1]} float32 rows"
    )
    print(
        f"\n{'':14}{'microseconds of an episode':>30}{'easyfsl / ours':>26}"
        f"{'ready tensors / ours':>26}{'accuracy, %':>18}\n"
        f"{'':14}{'ours':>10}{'easyfsl':>10}{'ready':>10}{'':52}{'ours':>10}{'theirs':>8}"
    )
    for name, case in cases(peer, base).items():
        if options.methods is None or name in options.methods:
            compare(name, case, peer, X, y)


if __name__ == "__main__":
    main()
