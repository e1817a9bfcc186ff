# SPDX-License-Identifier: BSD-3-Clause
"""A hundred classes that arrive in ten sessions: what is learned exactly, and what forgets.

Images of CIFAR-100 as features of a frozen DeiT-tiny. Each session brings ten new classes, is seen
once and is never seen again; after each, every method is asked about all classes so far. Then the
same in small: sixty classes first, and five at a time of which there are five images each.

    python examples/sessions.py [--quick] [--output outputs/sessions.png]

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

from skpool.continual import ReplayBuffer, ReplayClassifier
from skpool.discriminant import LinearDiscriminantClassifier
from skpool.inspection import AccuracyMatrixDisplay, BaseNovelDisplay, SessionCurvesDisplay
from skpool.linear_model import RandomFeatureRidgeClassifier, RidgeHeadClassifier
from skpool.model_selection import (
    ClassIncrementalSplit,
    FewShotIncrementalSplit,
    IncrementalResult,
    incremental_evaluate,
)
from skpool.probing import LinearProbeClassifier
from skpool.prototypes import CalibratedPrototypeClassifier, NearestClassMeanClassifier

FEATURES = Path(__file__).resolve().parents[2] / "shared/data/features/cifar100_deit_tiny.npz"

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--quick", action="store_true", help="generated features, a few seconds")
parser.add_argument("--output", type=Path, default=Path("outputs/sessions.png"))
options = parser.parse_args()


def generated(n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A hundred classes that overlap, spread more in some directions than in others."""
    rng = np.random.default_rng(0)
    y = np.arange(n_rows) % 100
    spread = np.linspace(3.0, 0.4, 64)
    X = rng.normal(size=(100, 64))[y] + spread * rng.normal(size=(n_rows, 64)) + 1.0
    return X, y, rng.random(n_rows) < 0.2


def photographs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """200 images to learn from and 50 held out of every class; 192 features each."""
    stored = np.load(FEATURES)
    return stored["cls"].astype(np.float32), stored["labels"], stored["split"] == "test"


real = FEATURES.exists() and not options.quick
X, y, held_out = photographs() if real else generated(4000 if options.quick else 10_000)
data = {"X": X[~held_out], "y": y[~held_out], "X_test": X[held_out], "y_test": y[held_out]}
shown = "CIFAR-100, features of a frozen DeiT-tiny" if real else "generated features"
print(f"{shown}: {(~held_out).sum()} samples to learn from, {held_out.sum()} held out")

# %%
# Ten sessions of ten classes
# ---------------------------
# The order of the classes is the field's, `RandomState(1993).permutation(100)`. The first four are
# made of sums over rows: they end where a fit on everything at once ends. Gradient steps see the
# newest classes alone, and unlearn the others, unless some rows are kept and learned again.

sessions = ClassIncrementalSplit(increment=10, class_order="shuffled", seed=1993)
n_random = 500 if options.quick else 2000
methods = {
    "nearest class mean": NearestClassMeanClassifier(normalize="l2"),
    "linear discriminant": LinearDiscriminantClassifier(),
    "ridge": RidgeHeadClassifier(),
    f"ridge on {n_random} random features": RandomFeatureRidgeClassifier(n_random),
    "gradient steps (SGDClassifier)": SGDClassifier(loss="log_loss", random_state=0),
    "gradient steps, 2000 rows kept": ReplayClassifier(
        SGDClassifier(loss="log_loss", random_state=0),
        buffer=ReplayBuffer(2000, policy="class_balanced", random_state=0),
        replay_batch=2000,
        n_passes=5,
    ),
}


def evaluated(method: object, splitter: object, name: str) -> IncrementalResult:
    """What a method knew after each session."""
    start = time.perf_counter()
    result = incremental_evaluate(method, splitter, **data)
    numbers = result.summary()
    print(
        f"  {name.ljust(34)} average {numbers['average_incremental_accuracy_rows']:.3f}"
        f"  last {numbers['last_accuracy_rows']:.3f}  forgetting {numbers['forgetting_max']:.3f}"
        f"  {result.state_bytes[-1] / 2**20:6.1f} MiB  {time.perf_counter() - start:5.1f} s"
    )
    return result


print("10 sessions of 10 classes")
results = {name: evaluated(method, sessions, name) for name, method in methods.items()}

joint = LinearProbeClassifier(0.01).fit(data["X"], data["y"])
joint_accuracy = joint.score(data["X_test"], data["y_test"])
print(f"  a linear probe of all classes at once: {joint_accuracy:.3f}")

at_once = LinearDiscriminantClassifier().fit(data["X"], data["y"])
step_by_step = LinearDiscriminantClassifier()
for stage in sessions.stages(data["y"], y_test=data["y_test"]):
    step_by_step.partial_fit(data["X"][stage.train], data["y"][stage.train])
gap = np.abs(
    at_once.decision_function(data["X_test"]) - step_by_step.decision_function(data["X_test"])
).max()
print(f"  scores of the discriminant differ from those of one fit by at most {gap:.1e}")

# %%
# Sixty classes, then five at a time
# ----------------------------------
# Later classes have five images each. Calibration (TEEN) draws their means towards those of base
# classes that they resemble; a share of 0.1 is what its authors take for CIFAR-100. Where every row
# counts alike, a ridge of five rows against two hundred never answers with a new class.

few = FewShotIncrementalSplit(60, way=5, shot=5, class_order="shuffled", seed=1993)
few_methods = {
    "nearest class mean": NearestClassMeanClassifier(normalize="l2"),
    "linear discriminant": LinearDiscriminantClassifier(priors="uniform"),
    "ridge": RidgeHeadClassifier(),
    "calibrated means (TEEN)": CalibratedPrototypeClassifier(0.1),
    "ridge, balanced": RidgeHeadClassifier(class_weight="balanced"),
}
print("60 classes, then 8 sessions of 5 classes with 5 images each")
few_results = {name: evaluated(method, few, name) for name, method in few_methods.items()}

# %%
# One picture
# -----------

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

figure = plt.figure(figsize=(12.5, 14.5), layout="constrained")
figure.suptitle(f"Classes that arrive in sessions: {shown}", fontsize=15)
top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1, 1.3, 0.85], hspace=0.05)

SessionCurvesDisplay.from_results(
    results,
    joint_accuracy=joint_accuracy,
    ax=top.subplots(),
    joint_name="linear probe of all classes at once",
    title="100 classes, ten new ones in every session",
)
pair = {
    "linear discriminant": "as one fit on all sessions; more classes are harder to tell apart",
    "gradient steps (SGDClassifier)": "only the newest session is known",
}
for ax, (name, remark) in zip(middle.subplots(1, 2), pair.items(), strict=True):
    AccuracyMatrixDisplay.from_result(results[name], ax=ax)
    ax.set_title(name, loc="left", pad=24)
    ax.annotate(
        remark, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=9
    )
BaseNovelDisplay.from_results(
    few_results,
    axes=bottom.subplots(1, 3),
    title="60 classes, then 5 at a time with 5 images each",
)

options.output.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output, dpi=100)
print(f"Picture: {options.output}")
