# SPDX-License-Identifier: BSD-3-Clause
"""A stream in which classes keep arriving, and in the middle of it one must be forgotten.

Sentences of clinc150 as features of a frozen MiniLM, a hundred at a time; each of the 150 intents
has a time of its own. Half way a request comes in: forget one intent, all of it. What is left is
compared, then and until the end, with a model that never saw that intent.

    python examples/stream.py [--quick] [--output outputs/stream.png]

It takes the features in ../shared/data, and generated ones where there is no such folder.
"""

# %%
# Features
# --------

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from skpool.inspection import StreamCurveDisplay
from skpool.model_selection import StreamSplit
from skpool.pipeline import IncrementalPipeline
from skpool.preprocessing import L2Normalizer, Whitening
from skpool.prototypes import NearestClassMeanClassifier

FEATURES = Path(__file__).resolve().parents[2] / "shared/data/features/clinc150_minilm_l6_mean.npz"

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--quick", action="store_true", help="20 generated classes, a few seconds")
parser.add_argument("--output", type=Path, default=Path("outputs/stream.png"))
options = parser.parse_args()


def generated(n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes that overlap, with 130 rows each."""
    rng = np.random.default_rng(0)
    codes = np.tile(np.arange(n_classes), 130)
    X = rng.normal(size=(n_classes, 48))[codes] + 1.5 * rng.normal(size=(len(codes), 48))
    names = np.array([f"class {i:03}" for i in range(n_classes)])
    return X, names[codes], rng.random(len(codes)) < 0.25


def sentences() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """15,000 sentences to learn from and 4,500 held out; 384 features each."""
    stored = np.load(FEATURES)
    used = np.isin(stored["split"], ["train", "test"])
    names = np.char.replace(stored["classes"], "_", " ")[stored["labels"][used]]
    return stored["features"][used].astype(np.float64), names, stored["split"][used] == "test"


real = FEATURES.exists() and not options.quick
X, y, held_out = sentences() if real else generated(20 if options.quick else 100)
X_train, y_train, X_test, y_test = X[~held_out], y[~held_out], X[held_out], y[held_out]
shown = "clinc150, sentences through a frozen MiniLM" if real else "generated features"
classes = np.unique(y)

# %%
# The stream, and a request
# -------------------------
# Rows of a class arrive around a time of its own. The class to be forgotten is one of which nearly
# all rows have come when the request does.

stream = StreamSplit("gaussian", width=0.05, batch_size=100 if real else 20, seed=0)
batches = list(stream.batches(y_train))
sizes = np.cumsum([len(rows) for rows in batches])
half = len(batches) // 2
arrival = dict.fromkeys(classes.tolist(), sizes[-1])
for rows, seen in zip(batches[::-1], sizes[::-1], strict=True):
    arrival |= dict.fromkeys(y_train[rows].tolist(), int(seen))
so_far = np.concatenate(batches[:half])
came = {label: int((y_train[so_far] == label).sum()) for label in classes.tolist()}
settled = [label for label in came if came[label] >= 0.98 * (y_train == label).sum()]
gone = max(settled, key=lambda label: arrival[label])
of_class = so_far[y_train[so_far] == gone]
print(f"{shown}: {len(y_train)} rows in {len(batches)} batches, {len(classes)} classes")
print(f"After {len(so_far)} rows: forget {gone!r}, of which {len(of_class)} rows have come")

# %%
# Two ways to forget
# ------------------
# Class means hold every class apart: its label is enough. A whitening has learned from the rows of
# all classes and no longer knows which were whose, so it is given the rows to subtract.


def means() -> IncrementalPipeline:
    """Nearest class mean of unit vectors."""
    return IncrementalPipeline(
        [("unit", L2Normalizer()), ("clf", NearestClassMeanClassifier(temperature=20.0))]
    )


def whitened() -> IncrementalPipeline:
    """The same behind a whitening that moves with the stream."""
    return IncrementalPipeline(
        [
            ("unit", L2Normalizer()),
            ("whiten", Whitening(power=0.5, shrinkage="oas")),
            ("clf", NearestClassMeanClassifier(temperature=20.0)),
        ]
    )


def forget_by_label(model: IncrementalPipeline) -> None:
    """No row of the class is needed."""
    model.forget_class(gone)


def forget_by_rows(model: IncrementalPipeline) -> None:
    """The rows are needed once more."""
    model.forget(X_train[of_class], y_train[of_class])


def probabilities(model: IncrementalPipeline) -> np.ndarray:
    """Of every class, 0 for one that the model does not know."""
    table = np.zeros((len(y_test), len(classes)))
    table[:, np.searchsorted(classes, model.classes_)] = model.predict_proba(X_test)
    return table


def along(make, forget) -> Iterator[tuple[int, float, float, float]]:
    """Rows seen, accuracy, answers with the class, and the distance to never having seen it."""
    model, never = make(), make()
    for step, rows in enumerate(batches):
        other = rows[y_train[rows] != gone]
        never.partial_fit(X_train[other], y_train[other])
        if step == half:
            forget(model)
        learned = other if step >= half else rows
        model.partial_fit(X_train[learned], y_train[learned])
        if step % 3 == 0 or step in (half - 1, half, len(batches) - 1):
            found = probabilities(model)
            answers = classes[found.argmax(axis=1)]
            known = np.isin(y_test, model.classes_)
            yield (
                int(sizes[step]),
                float((answers == y_test)[known].mean()),
                float((answers[y_test == gone] == gone).mean()),
                float(np.abs(found - probabilities(never)).max()),
            )


variants = {
    "class means: forget_class(label)": (means, forget_by_label),
    "whitened class means: forget(rows)": (whitened, forget_by_rows),
}
curves = {name: np.array(list(along(*variant))).T for name, variant in variants.items()}
for name, (times, accuracy, answers, distance) in curves.items():
    after = times > sizes[half - 1]
    print(f"  {name}")
    print(f"    accuracy at the end {accuracy[-1]:.3f}")
    print(
        f"    {gone!r} answered to its own rows: {answers[~after][-1]:.0%}, then {answers[-1]:.0%}"
    )
    print(
        f"    largest difference of a probability to never having seen it: "
        f"{distance[~after].max():.2f} before, {distance[after].max():.1e} after"
    )

# %%
# One picture
# -----------

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

figure, axes = plt.subplots(
    3, 1, figsize=(12.5, 9.5), sharex=True, height_ratios=[1.3, 0.8, 1], layout="constrained"
)
figure.suptitle(f"Forget one class of a stream: {shown}", fontsize=15)
times = curves["class means: forget_class(label)"][0]
display = StreamCurveDisplay(
    names=list(curves),
    times=times,
    accuracy=np.array([curve[1] for curve in curves.values()]),
    arrivals=np.array(list(arrival.values())),
    forgotten={f'"{gone}"': sizes[half - 1]},
).plot(axes[0], title="Accuracy on the classes known, while new ones arrive")
looks = [
    {"color": line.get_color(), "lw": 1.8, "ls": style}
    for line, style in zip(display.lines_, ["-", "--"], strict=True)
]

FLOOR = 1e-18
for (_, _, answers, distance), look in zip(curves.values(), looks, strict=True):
    axes[1].plot(times, 100 * answers, **look)
    axes[2].plot(times, np.maximum(distance, FLOOR), **look)
axes[1].set(ylim=(-5, 105), ylabel="answered (%)")
axes[1].set_title(f'Held-out rows of "{gone}" that are recognised', loc="left")
axes[2].set(yscale="log", ylim=(FLOOR / 5, 10), ylabel="difference", xlabel="rows seen")
axes[2].set_title(
    "Largest difference of a probability to a model that never saw the class", loc="left"
)
axes[2].set_yticks([FLOOR, 1e-12, 1e-6, 1], ["0", "$10^{-12}$", "$10^{-6}$", "1"])
axes[2].axhline(np.finfo(np.float64).eps, color="0.6", lw=0.8)
axes[2].annotate(
    "rounding of float64",
    (times[-1], np.finfo(np.float64).eps),
    (0, 3),
    textcoords="offset points",
    ha="right",
    color="0.4",
    fontsize=9,
)
for axis in axes[1:]:
    axis.axvline(sizes[half - 1], color="0.2", ls=(0, (4, 3)), lw=1.2, zorder=1)
    axis.minorticks_off()
    axis.grid(axis="y", color="0.9")
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_xlabel("ticks: a class arrives", fontsize=9)

options.output.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output, dpi=100)
print(f"Picture: {options.output}")
