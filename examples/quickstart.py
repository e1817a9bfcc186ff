# SPDX-License-Identifier: BSD-3-Clause
"""From images to a tuned, incremental classifier, with one pass of the network.

scikit-learn's handwritten digits as images; a small transformer, pretrained on the alphabets of
Omniglot and never on digits, as a fixed function; everything after it chosen by `GridSearchCV`.

    python examples/quickstart.py [--output outputs/quickstart.png]
"""

# %%
# Images, and a counter inside the network
# ----------------------------------------
# The counter is a hook on the frozen module itself: it sees every image that passes.

import argparse
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline

from skpool.backbones import Backbone
from skpool.extraction import FeatureExtractor
from skpool.inputs import ImageSequence
from skpool.neighbors import WeightedKNNClassifier
from skpool.pipeline import IncrementalPipeline
from skpool.pooling import GeMPooling, TokenPooling
from skpool.preprocessing import Whitening
from skpool.prototypes import NearestClassMeanClassifier

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--output", type=Path, default=Path("outputs/quickstart.png"))
options = parser.parse_args()

digits = load_digits()
pixels = (digits.images * 255 / 16).round().astype(np.uint8)[..., None]
images, y = ImageSequence(pixels), digits.target
train, test = train_test_split(np.arange(len(y)), test_size=0.4, stratify=y, random_state=0)

passes = []
network = Backbone("glyph").network().module
network.register_forward_hook(lambda module, args, output: passes.append(len(output)))

# %%
# Poolings, whitenings and classifiers are hyper-parameters
# ---------------------------------------------------------

pipeline = Pipeline(
    [
        ("features", FeatureExtractor("glyph")),
        ("pool", TokenPooling()),
        ("whiten", Whitening()),
        ("clf", NearestClassMeanClassifier()),
    ]
)
poolings = {
    "mean": TokenPooling("mean"),
    "max": TokenPooling("max"),
    "class token": TokenPooling("cls"),
    "class token + mean": TokenPooling(("cls", "mean")),
    "GeM, p = 3": GeMPooling(3.0, negative="signed"),
}
whitenings = {
    "none": "passthrough",
    "whitening": Whitening(shrinkage="oas"),
    "whitening to 32": Whitening(32, shrinkage="oas"),
}
classifiers = {
    "nearest class mean": NearestClassMeanClassifier(),
    "weighted 10 nearest neighbours": WeightedKNNClassifier(10),
}
grid = {
    "pool": list(poolings.values()),
    "whiten": list(whitenings.values()),
    "clf": list(classifiers.values()),
}
start = time.perf_counter()
search = GridSearchCV(pipeline, grid, cv=5).fit(images[train], y[train])
seconds = time.perf_counter() - start
best = search.best_params_
print(f"Grid search: {len(search.cv_results_['params'])} candidates x 5 folds, {seconds:.1f} s")
print(f"  best: {best['pool']}, {best['whiten']}, {best['clf']}")
print(f"  accuracy in cross-validation {search.best_score_:.3f}")
print(f"  accuracy on {len(test)} held-out images {search.score(images[test], y[test]):.3f}")
# Networks are tried once on a blank image to learn the shape of their tokens.
print(f"Forward passes per image: {(sum(passes) - 1) / len(y):.2f}")

# %%
# Five images per class
# ---------------------
# Nearest class means from a few labelled images of each digit, with the winner's pooling. A
# whitening needs no labels and can be learned from all training images; whether it helps is not a
# matter of taste: with few shots a full one enlarges directions that no class needs.

describe = Pipeline([("features", FeatureExtractor("glyph")), ("pool", best["pool"])])
vectors = describe.fit_transform(images)
versions = {
    "as they are": vectors,
    "whitened": Whitening(shrinkage="oas").fit(vectors[train]).transform(vectors),
    "whitened to 16": Whitening(16, shrinkage="oas").fit(vectors[train]).transform(vectors),
}


def few_shot_accuracy(X: np.ndarray, n_shots: int, rng: np.random.Generator) -> float:
    """Accuracy on the held-out images after learning from a few."""
    shots = np.concatenate(
        [rng.choice(train[y[train] == digit], n_shots, replace=False) for digit in range(10)]
    )
    return NearestClassMeanClassifier().fit(X[shots], y[shots]).score(X[test], y[test])


rng = np.random.default_rng(0)
shots = (1, 2, 5, 10, 20)
few_shot = {
    name: {n: [few_shot_accuracy(X, n, rng) for _ in range(50)] for n in shots}
    for name, X in versions.items()
}
for name, results in few_shot.items():
    mean, deviation = np.mean(results[5]), np.std(results[5])
    print(f"5-shot accuracy, vectors {name}: {mean:.3f} (50 draws, deviation {deviation:.3f})")

# %%
# Five classes, then five more
# ----------------------------
# The whitening moves when classes arrive; the pipeline carries the class means along, so two
# calls give what one call on everything would.


def incremental() -> IncrementalPipeline:
    """Pooling of the winner, a whitening that moves, nearest class means."""
    return IncrementalPipeline(
        [
            ("features", FeatureExtractor("glyph")),
            ("pool", best["pool"]),
            ("whiten", Whitening(shrinkage="oas")),
            ("clf", NearestClassMeanClassifier()),
        ]
    )


def accuracy(model: IncrementalPipeline, rows: np.ndarray) -> float:
    """Share of right answers."""
    return float((model.predict(images[rows]) == y[rows]).mean())


old, new = train[y[train] < 5], train[y[train] >= 5]
old_test, new_test = test[y[test] < 5], test[y[test] >= 5]
model = incremental().partial_fit(images[old], y[old])
before = accuracy(model, old_test)
model.partial_fit(images[new], y[new])
joint = incremental().fit(images[train], y[train])
gap = np.abs(model.decision_function(images[test]) - joint.decision_function(images[test])).max()
after_old, after_new = accuracy(model, old_test), accuracy(model, new_test)
print(f"Digits 0 to 4: accuracy {before:.3f}")
print(
    f"After 5 to 9 were added: {accuracy(model, test):.3f} on all ten ({after_old:.3f} on the old "
    f"five, {after_new:.3f} on the new); joint fit {accuracy(joint, test):.3f}, scores differ by "
    f"at most {gap:.1e}"
)

# %%
# One picture
# -----------

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

figure = plt.figure(figsize=(13, 8.2), layout="constrained")
figure.suptitle(
    f"One pass of a frozen network, {len(search.cv_results_['params'])} pipelines, "
    f"held-out accuracy {search.score(images[test], y[test]):.1%}",
    fontsize=15,
)
top, bottom = figure.subfigures(2, 1, height_ratios=[1.05, 1])

# The grid: one map per classifier.
shape = (len(classifiers), len(poolings), len(whitenings))
scores = search.cv_results_["mean_test_score"].reshape(shape)
axes = top.subplots(1, 2, sharey=True)
for axis, name, table in zip(axes, classifiers, scores, strict=True):
    picture = axis.imshow(
        table, cmap="viridis", vmin=scores.min(), vmax=scores.max(), aspect="auto"
    )
    axis.set_title(name)
    axis.set_xticks(range(len(whitenings)), list(whitenings))
    axis.set_yticks(range(len(poolings)), list(poolings))
    for (row, column), value in np.ndenumerate(table):
        dark = value < (scores.min() + scores.max()) / 2
        weight = "bold" if value == scores.max() else "normal"
        color = "white" if dark else "black"
        axis.text(column, row, f"{value:.3f}", ha="center", va="center", color=color, weight=weight)
top.colorbar(picture, ax=axes, label="accuracy, 5 folds", shrink=0.9)

# Few shots, classes that arrive, and what the model gets wrong.
shot_axis, class_axis, error_axis = bottom.subplots(1, 3, width_ratios=[1, 1, 1.25])
for name, results in few_shot.items():
    means = [np.mean(results[n]) for n in shots]
    spreads = [np.std(results[n]) for n in shots]
    shot_axis.errorbar(shots, means, spreads, marker="o", capsize=3, label=name)
shot_axis.legend(title="vectors", loc="lower right")
shot_axis.set(xscale="log", xticks=shots, xlabel="images per class", ylabel="held-out accuracy")
shot_axis.set_xticks(shots, [str(n) for n in shots])
shot_axis.set_title("Few shots, nearest class mean")
shot_axis.grid(alpha=0.3)

digit_accuracy = [accuracy(model, test[y[test] == digit]) for digit in range(10)]
first_model = incremental().partial_fit(images[old], y[old])
first_accuracy = [accuracy(first_model, test[y[test] == digit]) for digit in range(5)]
class_axis.bar(np.arange(5) - 0.2, first_accuracy, 0.4, label="five classes known", color="0.7")
class_axis.bar(
    np.arange(10) + np.where(np.arange(10) < 5, 0.2, 0),
    digit_accuracy,
    np.where(np.arange(10) < 5, 0.4, 0.6),
    label="ten classes known",
    color=["tab:green"] * 5 + ["tab:orange"] * 5,
)
class_axis.set(xticks=range(10), xlabel="digit", ylabel="held-out accuracy", ylim=(0.5, 1.13))
class_axis.set_title("5 to 9 arrive by partial_fit")
class_axis.legend(loc="upper center", ncols=2, fontsize=8)

predicted = search.predict(images[test])
wrong = np.flatnonzero(predicted != y[test])[:8]
error_axis.set_axis_off()
mistakes = int((predicted != y[test]).sum())
error_axis.set_title(f"{mistakes} mistakes of {len(test)}: true > predicted")
for place, row in enumerate(wrong):
    inset = error_axis.inset_axes([(place % 4) / 4 + 0.02, 0.52 - 0.5 * (place // 4), 0.21, 0.36])
    inset.imshow(pixels[test[row], ..., 0], cmap="gray")
    inset.set_title(f"{y[test][row]} > {predicted[row]}", fontsize=11, pad=3)
    inset.set_axis_off()

options.output.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output, dpi=110)
print(f"Picture: {options.output}")
