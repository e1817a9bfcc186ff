# SPDX-License-Identifier: BSD-3-Clause
"""A contributor and a class leave a trained classifier, as if they had never been there.

Nine people labelled scikit-learn's handwritten digits, and one of them took threes for eights
and fours for nines. The classifier forgets that person, then a digit; a fresh fit on what is left
certifies it.

    python examples/forgetting.py [--output outputs/forgetting.png]
"""

# %%
# Nine contributors, one of them wrong
# --------------------------------------

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from skpool.discriminant import GaussianClassifier, LinearDiscriminantClassifier
from skpool.extraction import FeatureExtractor
from skpool.pooling import TokenPooling
from skpool.statistics import ClassMoments, ShardedMoments, largest_difference

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--output", type=Path, default=Path("outputs/forgetting.png"))
options = parser.parse_args()

digits = load_digits()
images = (digits.images * 255 / 16).round().astype(np.uint8)[..., None]
describe = make_pipeline(FeatureExtractor("glyph"), TokenPooling(("cls", "mean", "max")))
features, truth = describe.fit_transform(images), digits.target
train, test = train_test_split(np.arange(len(truth)), test_size=0.4, stratify=truth, random_state=0)
X, y = features[train], truth[train].copy()

rng = np.random.default_rng(0)
people = np.array(["anna", "ben", "carla", "dora", "emil", "fritz", "gina", "hans"])
person = people[rng.integers(0, len(people), len(y))]
# Otto labels many of the four digits, and confuses them.
person[np.isin(y, [3, 4, 8, 9]) & (rng.random(len(y)) < 0.55)] = "otto"
confused = {3: 8, 8: 3, 4: 9, 9: 4}
otto = person == "otto"
y[otto] = [confused.get(label, label) for label in y[otto]]


def by_digit(model: object) -> np.ndarray:
    """Share of right answers among the held-out images of every digit."""
    right = model.predict(features[test]) == truth[test]
    return np.array([right[truth[test] == digit].mean() for digit in range(10)])


model = LinearDiscriminantClassifier().fit(X, y)
before = by_digit(model)
print(f"{len(y)} images of {len(np.unique(person))} people, {otto.sum()} labelled by otto")
print(f"Accuracy on {len(test)} held-out images: {model.score(features[test], truth[test]):.3f}")

# %%
# Otto leaves
# -----------
# `forget` takes the rows out of the moments that the classifier is made of; `certify` fits a fresh
# one on the rows of the others and compares.

model.forget(X[otto], y[otto])
after = by_digit(model)
fresh = LinearDiscriminantClassifier().fit(X[~otto], y[~otto])
same = (model.predict(features[test]) == fresh.predict(features[test])).mean()
print(f"Without otto: {model.score(features[test], truth[test]):.3f}")
print(
    f"  a fresh fit gives {fresh.score(features[test], truth[test]):.3f}; equal answers: {same:.1%}"
)
print(f"  residue in the moments: {model.certify(X[~otto], y[~otto]):.1e}")

# %%
# Not a digit is left behind
# --------------------------
# Subtraction leaves something in the last digits. Moments kept apart by contributor leave nothing:
# the sum without otto is the sum that it would have been had he never come.

shards = ShardedMoments()
for name in np.unique(person):
    shards.update(X[person == name], y[person == name], shard=name)
without = LinearDiscriminantClassifier().fit_moments(shards.drop_shard("otto").total())
never = ShardedMoments()
for name in np.unique(person[~otto]):
    never.update(X[person == name], y[person == name], shard=name)
honest = LinearDiscriminantClassifier().fit_moments(never.total())
print(f"By shards, weights equal to the last bit: {np.array_equal(without.coef_, honest.coef_)}")

# %%
# A digit leaves
# --------------
# A Gaussian per class holds the scatter of each class apart, so a class can go without its rows.

gaussians = GaussianClassifier(shrinkage=0.1, blend=0.8).fit(X[~otto], y[~otto])
nines = test[truth[test] == 9]
known = gaussians.predict(features[nines])
gaussians.forget_class(9)
unknown = gaussians.predict(features[nines])
rest = ~otto & (y != 9)
print(f"Nines called nine: {(known == 9).mean():.1%}, then {(unknown == 9).mean():.1%}")
print(f"  residue after forget_class: {gaussians.certify(X[rest], y[rest]):.1e}")

# %%
# Residues
# --------
# Otto comes and goes a hundred times. Every visit leaves as much as the first one, with products in
# float32 more than with float64, and with shards nothing.

visits = [1, 2, 5, 10, 20, 50, 100]
residues: dict[str, list[float]] = {}
for name, dtype in {"products in float32": "float32", "products in float64": "float64"}.items():
    left = ClassMoments(product_dtype=dtype).update(X[~otto], y[~otto])
    moments, residues[name] = left.copy(), []
    for visit in range(1, visits[-1] + 1):
        moments.update(X[otto], y[otto]).downdate(X[otto], y[otto])
        if visit in visits:
            residues[name].append(largest_difference(moments, left))
left, residues["shards"] = never.total(), []
for visit in range(1, visits[-1] + 1):
    never.update(X[otto], y[otto], shard="otto").drop_shard("otto")
    if visit in visits:
        residues["shards"].append(largest_difference(never.total(), left))
for name, values in residues.items():
    print(f"Residue after {visits[-1]} visits, {name}: {values[-1]:.1e}")

# %%
# One picture
# -----------

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

figure = plt.figure(figsize=(13, 7.6), layout="constrained")
figure.suptitle(
    f"{otto.sum()} of {len(y)} samples forgotten: accuracy {before.mean():.1%} to "
    f"{after.mean():.1%}, as a fresh fit",
    fontsize=15,
)
top, bottom = figure.subfigures(2, 1)
axis = top.subplots()
places = np.arange(10)
axis.bar(
    places - 0.2, before, 0.4, color="0.72", label="with otto, who confuses 3 with 8 and 4 with 9"
)
axis.bar(places + 0.2, after, 0.4, color="tab:green", label="after forget")
axis.plot(
    places + 0.2, by_digit(fresh), "kD", markersize=5, label="fresh fit without otto's samples"
)
axis.set(xticks=places, xlabel="digit", ylabel="held-out accuracy", ylim=(0, 1.18))
axis.legend(loc="upper center", ncols=3, frameon=False)
axis.set_title("A contributor leaves: otto, who confuses 3 with 8 and 4 with 9")

image_axis, residue_axis = bottom.subplots(1, 2, width_ratios=[1.25, 1])
image_axis.set_axis_off()
names, counts = np.unique(unknown, return_counts=True)
most = np.argsort(-counts)[:3]
said = ", ".join(f"{counts[i]} are read as {names[i]}" for i in most)
image_axis.set_title(f"A class leaves: of {len(nines)} held-out nines {said}", fontsize=11)
for place in range(14):
    inset = image_axis.inset_axes([(place % 7) / 7 + 0.01, 0.52 - 0.52 * (place // 7), 0.12, 0.4])
    inset.imshow(images[nines[place], ..., 0], cmap="gray")
    inset.set_title(f"{known[place]} > {unknown[place]}", fontsize=11, pad=3)
    inset.set_axis_off()

# Zero has no place on a logarithmic axis: it is drawn at the bottom.
bottom_line = 1e-18
styles = zip(residues.items(), ("tab:orange", "tab:blue", "tab:green"), strict=True)
for (name, values), color in styles:
    shown = np.maximum(values, bottom_line)
    label = name if max(values) else f"{name}: exactly 0"
    residue_axis.loglog(visits, shown, "o-", color=color, label=label)
residue_axis.axhline(np.finfo(np.float64).eps, color="0.6", linewidth=0.8)
residue_axis.annotate(
    "rounding of float64",
    (visits[-1], np.finfo(np.float64).eps),
    ha="right",
    va="bottom",
    color="0.4",
)
residue_axis.set(ylim=(3e-19, 1e-1), xlabel="times that otto came and left", ylabel="residue")
residue_axis.legend(loc="upper left", ncols=3, fontsize=8, frameon=False)
residue_axis.set_title("What subtraction leaves behind")
residue_axis.grid(alpha=0.3)

options.output.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output, dpi=110)
print(f"Picture: {options.output}")
