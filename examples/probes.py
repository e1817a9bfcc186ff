# SPDX-License-Identifier: BSD-3-Clause
"""Probes of frozen tokens: what training a head adds to closed forms, by epoch and by sample.

Photographs of ten kinds of garments as the tokens of a frozen DeiT-tiny. A linear probe and a
discriminant see the class token; a moment ridge and a moment probe add second moments of the
patches; an attentive probe learns which tokens to look at. Every seed draws a split and all that
is random in a probe.

    python examples/probes.py [--source tokens|digits] [--seeds N] [--epochs N] [--jobs N]
        [--quick] [--output PNG]

Without options it takes the tokens in ../shared/data, and handwritten digits through the network
that ships where there is no such folder. All trained probes take the same steps; size of batch and
number of epochs were settled after a few tries on the split of the first seed.
"""

# %%
# Tokens
# ------
# Half precision: probes widen a minibatch at a time.

import argparse
import time
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpool.discriminant import LinearDiscriminantClassifier
from skpool.extraction import FeatureExtractor
from skpool.pooling import TokenPooling
from skpool.preprocessing import L2Normalizer
from skpool.probing import (
    AttentiveProbeClassifier,
    LinearProbeClassifier,
    MomentProbingClassifier,
    make_moment_ridge,
)
from skpool.stores import TokenArray

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "features"
TOKENS = [DATA / f"clothing_deit_tiny_tokens_{i}.npz" for i in (0, 1)]

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--source", choices=["tokens", "digits"])
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--jobs", type=int, default=2, help="seeds that are computed side by side")
parser.add_argument("--quick", action="store_true", help="two seeds, four epochs, three sizes")
parser.add_argument("--output", type=Path, default=Path("outputs/probes.png"))
options = parser.parse_args()
source = options.source or ("tokens" if TOKENS[0].exists() else "digits")
n_seeds, n_epochs = (2, 4) if options.quick else (options.seeds, options.epochs)
# Samples per class to learn from; None for all of the training part.
sizes = (5, 25, None) if options.quick else (5, 10, 25, 50, None)


def garments() -> tuple[np.ndarray, np.ndarray]:
    """2000 photographs: a class token and 14 x 14 patches of 192 features each, and labels."""
    parts = [np.load(path) for path in TOKENS]
    values = [(part["q"] * part["step"] + part["mean"]).astype(np.float16) for part in parts]
    return np.concatenate(values), np.concatenate([part["y"] for part in parts])


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1797 digits: a class token and 8 x 8 patches of 128 features each, and labels."""
    X, y = load_digits(return_X_y=True)
    images = (X.reshape(-1, 8, 8, 1) * 255 / 16).round().astype(np.uint8)
    return np.asarray(FeatureExtractor("glyph").transform(images)).astype(np.float16), y


# %%
# Probes
# ------
# Samples are few and tokens narrow, so that minibatches are small, and the moment probe has two
# heads of 32 features, whose map needs no convolution. Its first branch alone is a linear probe
# that is trained; the one that is solved chooses its penalty by cross-validation.

STEPS = {"epochs": n_epochs, "batch_size": 16, "lr": 1e-3, "warmup_epochs": 1}


def solved() -> dict[str, BaseEstimator]:
    """Probes that have a solution; the first two see the class token alone."""
    return {
        "discriminant": make_pipeline(
            TokenPooling("cls"), L2Normalizer(), LinearDiscriminantClassifier()
        ),
        "linear probe": make_pipeline(
            TokenPooling("cls"),
            StandardScaler(),
            LinearProbeClassifier("cv", Cs=np.logspace(-5, 0, 6)),
        ),
        "moment ridge": make_moment_ridge(32, first="cls"),
    }


def trained(seed: int) -> dict[str, BaseEstimator]:
    """Probes that are trained epoch by epoch."""
    return {
        "attentive probe": AttentiveProbeClassifier(random_state=seed, **STEPS),
        "moment probe": MomentProbingClassifier(
            64, n_heads=2, conv_layers=0, random_state=seed, **STEPS
        ),
        "linear probe, trained": MomentProbingClassifier(
            combine=(1, 0), random_state=seed, **STEPS
        ),
    }


class HeldOutAccuracy:
    """A callback of scikit-learn that scores a classifier after every epoch."""

    def __init__(self, X: TokenArray, y: np.ndarray):
        self.X, self.y, self.curve, self.seconds = X, y, [], 0.0

    def setup(self, estimator, context):
        """Nothing to prepare."""

    def teardown(self, estimator, context):
        """Nothing to leave."""

    def on_fit_task_begin(self, estimator, context):
        """Nothing to do before an epoch."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        """Score the weights that would be kept now; training goes on."""
        if context.task_name == "epoch":
            start = time.perf_counter()
            self.curve.append(fitted_estimator.score(self.X, self.y))
            self.seconds += time.perf_counter() - start
        return False


# %%
# One seed
# --------
# Of every class the first samples of a random order are taken, so that small training sets are
# parts of the large ones.


def few(train: np.ndarray, y: np.ndarray, size: int | None, seed: int) -> np.ndarray:
    """At most so many rows of every class."""
    if size is None:
        return train
    mixed = np.random.default_rng(seed).permutation(train)
    return np.sort(np.concatenate([mixed[y[mixed] == label][:size] for label in np.unique(y)]))


def one_seed(values: np.ndarray, y: np.ndarray, seed: int) -> tuple[dict, dict, dict]:
    """Accuracy of (probe, size), seconds of a fit on all, and accuracy of a probe by epoch."""
    side = int((values.shape[1] - 1) ** 0.5)
    tokens = TokenArray.from_array(values, n_prefix_tokens=1, grid=(side, side))
    split = StratifiedShuffleSplit(1, train_size=0.64, random_state=seed)
    train, test = next(split.split(y, y))
    accuracy, seconds, curves = {}, {}, {}
    for size in sizes:
        rows = few(train, y, size, seed)
        for name, probe in {**solved(), **trained(seed)}.items():
            told = HeldOutAccuracy(tokens[test], y[test])
            if size is None and name in TRAINED:
                probe.set_callbacks(told)
            start = time.perf_counter()
            probe.fit(tokens[rows], y[rows])
            if size is None:
                seconds[name] = time.perf_counter() - start - told.seconds
                curves[name] = told.curve
            accuracy[name, size] = probe.score(tokens[test], y[test])
    return accuracy, seconds, curves


TRAINED = list(trained(0))
values, y = {"tokens": garments, "digits": digits}[source]()
n_train = int(0.64 * len(y))
print(f"{source}: {n_train} of {len(y)} samples to learn from, tokens {values.shape[1:]}")
start = time.perf_counter()
# Workers read the tokens from one memory map.
outcomes = Parallel(options.jobs)(delayed(one_seed)(values, y, seed) for seed in range(n_seeds))
print(f"{n_seeds} seeds, {n_epochs} epochs: {time.perf_counter() - start:.0f} s")

# %%
# What came of it
# ---------------
# Errors are those of the mean over the seeds. Their splits share samples, which makes them a
# little too small.


def summary(samples: list) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the seeds and its standard error."""
    table = np.asarray(samples)
    return table.mean(axis=0), table.std(axis=0, ddof=1) / np.sqrt(len(table))


names = [*solved(), *TRAINED]
scores = {
    name: [[accuracy[name, size] for size in sizes] for accuracy, _, _ in outcomes]
    for name in names
}
reached = {name: summary(scores[name]) for name in names}
by_epoch = {name: summary([curves[name] for _, _, curves in outcomes]) for name in TRAINED}
duration = {name: np.median([seconds[name] for _, seconds, _ in outcomes]) for name in names}
print("samples per class".ljust(26), *(str(size or "all").rjust(15) for size in sizes), "  seconds")
for name in names:
    cells = [f"{m:.3f} +- {e:.3f}".rjust(15) for m, e in zip(*reached[name], strict=True)]
    print(name.ljust(26), *cells, f"{duration[name]:9.1f}")
print("Differences to the linear probe, seed by seed:")
for name in names:
    if name != "linear probe":
        gain = summary(np.subtract(scores[name], scores["linear probe"]))
        cells = [f"{m:+.3f} +- {e:.3f}".rjust(15) for m, e in zip(*gain, strict=True)]
        print(name.ljust(26), *cells)

# %%
# One picture
# -----------

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

COLORS = {
    "discriminant": "#7f7f7f",
    "linear probe": "#0072b2",
    "linear probe, trained": "#56b4e9",
    "attentive probe": "#e69f00",
    "moment ridge": "#009e73",
    "moment probe": "#d55e00",
}
# Dashes of the one that often lies on the linear probe stand in the gaps of the other.
DASHES = {name: (4 * (name == "discriminant"), (4, 4)) for name in solved()}

figure, (epoch_axis, size_axis) = plt.subplots(1, 2, figsize=(12.5, 6), layout="constrained")
shown = {"tokens": "photographs of garments, DeiT-tiny", "digits": "digits, glyph"}[source]
figure.suptitle(
    f"Probes of frozen tokens: {shown}, {n_seeds} seeds, bands and bars of one standard error",
    fontsize=13,
)

# By epoch; what has a solution is a level.
epochs = np.arange(1, n_epochs + 1)
ranked = sorted(names, key=lambda name: -reached[name][0][-1])
for name in ranked:
    color, last, error = COLORS[name], reached[name][0][-1], reached[name][1][-1]
    seconds = f"{duration[name]:.0f}" if duration[name] >= 10 else f"{duration[name]:.1f}"
    label = f"{name}: {100 * last:.1f} \u00b1 {100 * error:.1f} %, {seconds} s"
    if name in TRAINED:
        mean, error = by_epoch[name]
        epoch_axis.plot(epochs, mean, color=color, lw=2, label=label, zorder=3)
        epoch_axis.fill_between(epochs, mean - error, mean + error, color=color, alpha=0.18, lw=0)
    else:
        epoch_axis.axhline(last, color=color, lw=1.8, ls=DASHES[name], label=label)
        epoch_axis.axhspan(last - error, last + error, color=color, alpha=0.1, lw=0)
means = [reached[name][0][-1] for name in names]
epoch_axis.set(
    xlabel="epochs",
    ylabel="held-out accuracy",
    xlim=(1, n_epochs),
    ylim=(min(means) - 0.1, max(means) + 0.02),
    title=f"All {n_train} samples: trained (lines), solved (dashes)",
)
epoch_axis.xaxis.set_major_locator(MaxNLocator(integer=True))
epoch_axis.grid(alpha=0.25)

# By samples. The trained linear probe lies on the one that is solved.
counts = np.array([size or n_train / len(np.unique(y)) for size in sizes])
right = [name for name in ranked if name != "linear probe, trained"]
for place, name in enumerate(right):
    mean, error = reached[name]
    size_axis.errorbar(
        # A little apart, so that bars can be told from each other.
        counts * 1.015 ** (place - (len(right) - 1) / 2),
        mean,
        error,
        color=COLORS[name],
        marker="o" if name in TRAINED else "s",
        ls=DASHES.get(name, "-"),
        ms=5,
        lw=1.8,
        capsize=3,
    )
size_axis.set(
    xscale="log",
    xlabel="samples per class to learn from",
    ylabel="held-out accuracy",
    title="The same probes of fewer samples",
)
size_axis.set_xticks(counts, [str(size or f"all ({counts[-1]:.0f})") for size in sizes])
size_axis.minorticks_off()
size_axis.grid(alpha=0.25)
figure.legend(
    *epoch_axis.get_legend_handles_labels(),
    title="accuracy with all samples, and seconds of that fit",
    loc="outside lower center",
    ncols=3,
)

options.output.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output, dpi=110)
print(f"Picture: {options.output}")
