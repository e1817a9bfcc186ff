# SPDX-License-Identifier: BSD-3-Clause
"""Seventy-seven intents of bank customers, learned one after the other.

Sentences of banking77 as features of a frozen MiniLM. Every session brings one new intent, so that
a model sees the rows of a single class at a time; after each it is asked about all held-out
sentences of the intents so far. What a new intent costs, and whom, is read from the accuracies.

    python examples/intents.py [--quick] [--output outputs/intents.png]

It takes the features in ../shared/data, and generated ones where there is no such folder.
"""

# %%
# Features
# --------

import argparse
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import SGDClassifier

from skpool.discriminant import LinearDiscriminantClassifier
from skpool.inspection import SessionCurvesDisplay
from skpool.linear_model import RidgeHeadClassifier
from skpool.model_selection import ClassIncrementalSplit, incremental_evaluate
from skpool.prototypes import NearestClassMeanClassifier

FEATURES = Path(__file__).resolve().parents[2] / "shared/data/features/banking77_minilm_l6_mean.npz"

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--quick", action="store_true", help="20 generated intents, a few seconds")
parser.add_argument("--output", type=Path, default=Path("outputs/intents.png"))
options = parser.parse_args()


def generated(n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intents in families of five, of which the members are alike."""
    rng = np.random.default_rng(0)
    labels = np.arange(n_classes)
    families = rng.normal(size=(n_classes // 5 + 1, 48))[labels // 5]
    means = families + 0.5 * rng.normal(size=(n_classes, 48))
    codes = np.tile(labels, 80)
    X = means[codes] + 0.8 * rng.normal(size=(len(codes), 48))
    names = np.array([f"family {i // 5}, intent {i % 5}" for i in labels])
    return X, names[codes], rng.random(len(codes)) < 0.3


def sentences() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """10,003 sentences to learn from and 3,080 held out; 384 features each."""
    stored = np.load(FEATURES)
    names = np.char.replace(stored["classes"], "_", " ")
    return stored["features"].astype(np.float32), names[stored["labels"]], stored["split"] == "test"


real = FEATURES.exists() and not options.quick
X, y, held_out = sentences() if real else generated(20 if options.quick else 77)
data = {"X": X[~held_out], "y": y[~held_out], "X_test": X[held_out], "y_test": y[held_out]}
shown = "banking77, sentences through a frozen MiniLM" if real else "generated features"
n_intents = len(np.unique(y))
print(f"{shown}: {n_intents} intents, {(~held_out).sum()} to learn from, {held_out.sum()} held out")

# %%
# One intent at a time
# --------------------
# With the rows of a single class there is nothing to tell it apart from, which makes gradient
# steps useless. Sums over rows do not mind: they end where one fit on everything ends.

one_by_one = ClassIncrementalSplit(increment=1, class_order="shuffled", seed=1993)
methods = {
    "ridge": RidgeHeadClassifier(),
    "linear discriminant": LinearDiscriminantClassifier(),
    "nearest class mean": NearestClassMeanClassifier(),
    "gradient steps (SGDClassifier)": SGDClassifier(loss="log_loss", random_state=0),
}
results = {}
for name, method in methods.items():
    start = time.perf_counter()
    results[name] = incremental_evaluate(method, one_by_one, **data)
    last = results[name].seen_accuracy[-1]
    print(f"  {name.ljust(32)} last {last:.3f}  {time.perf_counter() - start:5.1f} s")
joint = RidgeHeadClassifier().fit(data["X"], data["y"])
joint_accuracy = joint.score(data["X_test"], data["y_test"])
print(f"  {'ridge, one fit on everything'.ljust(32)} last {joint_accuracy:.3f}")

# %%
# What an arrival costs
# ---------------------
# The accuracy matrix has a row per arrival and a column per intent. Its largest drops from one row
# to the next say which intent was taken for which.

result = results["ridge"]
arrived = [str(classes[0]) for classes in result.stages]
R = result.accuracy_matrix
drops = np.nan_to_num(R[:-1] - R[1:], nan=-1.0)
largest = np.argsort(-drops, axis=None, kind="stable")[:8]
costs = [(old, time + 1) for time, old in zip(*np.unravel_index(largest, drops.shape), strict=True)]
print("Arrivals that cost another intent most, under ridge")
for old, new in costs:
    print(f"  {arrived[old]}: {R[new - 1, old]:.0%} to {R[new, old]:.0%} by {arrived[new]}")

# %%
# One picture
# -----------

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

figure = plt.figure(figsize=(12.5, 9.5), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=[1.2, 1])
curve_axis, cost_axis = top.subplots(), bottom.subplots()
figure.suptitle(f"{n_intents} intents, one at a time: {shown}", fontsize=15)
SessionCurvesDisplay.from_results(
    results,
    joint_accuracy=joint_accuracy,
    ax=curve_axis,
    joint_name="ridge, one fit on everything",
    title="Sums over rows learn from one class at a time; gradient steps cannot",
)

# From the accuracy before an arrival to that after it.
BEFORE, AFTER = "#7f7f7f", "#0072B2"
for row, (old, new) in enumerate(costs):
    before, after = 100 * R[new - 1, old], 100 * R[new, old]
    cost_axis.annotate(
        "", (after, row), (before, row), arrowprops={"arrowstyle": "-|>", "color": AFTER, "lw": 2}
    )
    cost_axis.plot(before, row, "o", color=BEFORE, ms=6)
    cost_axis.annotate(
        f"{arrived[new]} arrives", (before, row), (8, 0), textcoords="offset points", va="center"
    )
cost_axis.set_yticks(range(len(costs)), [arrived[old] for old, _ in costs])
lowest = 100 * min(R[new, old] for old, new in costs)
cost_axis.set(xlim=(lowest - 5, 145), ylim=(len(costs) - 0.5, -0.5))
cost_axis.set_xticks([tick for tick in range(0, 101, 20) if tick > lowest - 5])
cost_axis.set_xlabel("accuracy (%) on the intent to the left, before and after")
cost_axis.set_title("What an arrival costs an intent that is alike (ridge)", loc="left")
cost_axis.grid(axis="x", color="0.9")
cost_axis.set_axisbelow(True)
cost_axis.spines[["top", "right", "left"]].set_visible(False)
cost_axis.tick_params(axis="y", length=0)

options.output.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output, dpi=100)
print(f"Picture: {options.output}")
