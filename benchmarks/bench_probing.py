# SPDX-License-Identifier: BSD-3-Clause
"""Which probe of real token maps is how accurate, and how long does it take to train?

2000 token maps (197, 192) of DeiT-tiny, ten kinds of clothes. A seed draws a stratified split,
1287 to learn from and 713 to test on, and everything random in a probe. Accuracy is the mean over
the seeds with its standard error; differences to the first probe are paired within a seed. Settings
are not tuned on the test parts. Seconds are those of `fit`, the median of the seeds.

    python benchmarks/bench_probing.py [--seeds 5] [--only moment attentive] [--threads 1]
"""

import argparse
import time
import warnings

import numpy as np
import torch
from _measure import DATA, header
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpool.linear_model import RidgeHeadClassifier
from skpool.pooling import CovariancePooling, TokenPooling
from skpool.preprocessing import L2Normalizer
from skpool.probing import (
    AttentiveProbeClassifier,
    CosineClassifier,
    LinearProbeClassifier,
    MomentProbingClassifier,
    make_moment_ridge,
)
from skpool.stores import TokenArray

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--only", nargs="*", default=[""], help="probes whose name holds one of these")
parser.add_argument("--threads", type=int, default=1)
options = parser.parse_args()
torch.set_num_threads(options.threads)

N_TRAIN = 1287
# Inverse penalties of linear probes, of standardised features.
CS = np.logspace(-5, 0, 11)
STEPS = {"batch_size": 64, "lr": 1e-3, "epochs": 30, "warmup_epochs": 3}


def moment(**settings: object) -> MomentProbingClassifier:
    """A moment probe for a thousand samples of narrow tokens."""
    return MomentProbingClassifier(**{"proj_dim": 128, **STEPS, **settings})


def plain(**settings: object) -> MomentProbingClassifier:
    """Two heads whose one map of 32 x 32 goes to the linear head as it is."""
    return moment(proj_dim=64, n_heads=2, conv_layers=0, **settings)


def attentive(n_queries: int = 1, **settings: object) -> AttentiveProbeClassifier:
    """An attentive probe with the same steps."""
    return AttentiveProbeClassifier(n_queries, **{**STEPS, **settings})


PROBES: dict[str, BaseEstimator] = {
    "class token, ridge": make_pipeline(TokenPooling("cls"), RidgeHeadClassifier()),
    "class token and mean, ridge": make_pipeline(
        TokenPooling(("cls", "mean")), RidgeHeadClassifier()
    ),
    "covariance, root, 18528 features, ridge of scikit-learn": make_pipeline(
        CovariancePooling(), L2Normalizer(), RidgeClassifierCV(np.logspace(-3, 3, 13))
    ),
    "covariance, root, 64 components, ridge": make_pipeline(
        CovariancePooling(n_components=64), RidgeHeadClassifier()
    ),
    "moment ridge, mean": make_moment_ridge(),
    "moment ridge, class token": make_moment_ridge(first="cls"),
    "moment ridge, both": make_moment_ridge(first="both"),
    "moment ridge, both, signed roots": make_moment_ridge(first="both", normalize="power"),
    "class token, linear probe": make_pipeline(
        TokenPooling("cls"), StandardScaler(), LinearProbeClassifier("cv", Cs=CS)
    ),
    "covariance, root, 64 components, linear probe": make_pipeline(
        CovariancePooling(n_components=64), StandardScaler(), LinearProbeClassifier("cv", Cs=CS)
    ),
    "class token, trained linear head": moment(combine=(1, 0)),
    "class token, trained cosine head": make_pipeline(
        TokenPooling("cls"), CosineClassifier(**STEPS)
    ),
    "attentive probe": attentive(),
    "attentive probe, 4 queries and a block": attentive(4, mlp_ratio=4, dropout=0.2),
    "moment probe, 64 / 2, centred tokens": plain(),
    "moment probe, 64 / 2, scalar": plain(center="scalar"),
    "moment probe, 64 / 2, not centred": plain(center=None),
    "moment probe, 128 / 4, two convolutions": moment(),
    "moment probe, 512 / 4, as released": moment(proj_dim=512, center="scalar", standardize=False),
}


def load() -> tuple[TokenArray, np.ndarray]:
    """Tokens and labels."""
    parts = [np.load(DATA / "features" / f"clothing_deit_tiny_tokens_{i}.npz") for i in (0, 1)]
    tokens = np.concatenate(
        [part["q"].astype(np.float32) * part["step"] + part["mean"] for part in parts]
    )
    y = np.concatenate([part["y"] for part in parts])
    array = TokenArray.from_array(tokens.astype(np.float32), n_prefix_tokens=1, grid=(14, 14))
    return array, y


def judged(probe: BaseEstimator, X: TokenArray, y: np.ndarray, seed: int) -> tuple[float, float]:
    """Accuracy and seconds of one seed."""
    split = StratifiedShuffleSplit(1, train_size=N_TRAIN, random_state=seed)
    train, test = next(split.split(y, y))
    probe = clone(probe)
    drawn = [name for name in probe.get_params() if name.endswith("random_state")]
    probe.set_params(**dict.fromkeys(drawn, seed))
    start = time.perf_counter()
    probe.fit(X[train], y[train])
    seconds = time.perf_counter() - start
    return probe.score(X[test], y[test]), seconds


def with_error(values: np.ndarray, *, sign: bool = False) -> str:
    """Mean in percent with its standard error."""
    error = 100 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{100 * values.mean():{'+' if sign else ''}.2f} ± {error:.2f}"


def main() -> None:
    """Measure and print."""
    X, y = load()
    print(header(options.threads))
    print(f"{len(X)} token maps {X.shape[1:]}, {N_TRAIN} to learn from, {options.seeds} seeds\n")
    print("| probe | accuracy, % | to the first | seconds |")
    print("| --- | --- | --- | --- |")
    base = None
    for name, probe in PROBES.items():
        if base is not None and not any(part in name for part in options.only):
            continue
        outcomes = np.array([judged(probe, X, y, seed) for seed in range(options.seeds)])
        accuracy, seconds = outcomes.T
        base = accuracy if base is None else base
        cells = (with_error(accuracy), with_error(accuracy - base, sign=True))
        print(f"| {name} | {' | '.join(cells)} | {np.median(seconds):.1f} |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
