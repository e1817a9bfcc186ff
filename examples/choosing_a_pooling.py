# SPDX-License-Identifier: BSD-3-Clause
"""Which pooling, and which whitening? A grid search, and one picture of what it found.

Photographs of ten kinds of garments as the tokens of a frozen DeiT-tiny: a class token and a map
of 14 x 14 patches each. Seventeen poolings, among them some that learn, and three whitenings are
compared by cross-validation; what wins is tried on photographs that the search never saw.

    python examples/choosing_a_pooling.py [--source tokens|photographs|digits] [--samples N]
        [--folds N] [--poolings NAME ...] [--output PNG]

Without options it takes 600 of the photographs in ../shared/data, and handwritten digits through
the network that ships where there is no such folder. "photographs" are the same garments, but
the pictures themselves, through a MobileNetV2, whose maps have no class token.
"""

# %%
# Tokens
# ------
# Whatever they come from, a `TokenArray` is what the search is given.

import argparse
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skpool.backbones import Backbone, ImageRecipe
from skpool.extraction import FeatureExtractor
from skpool.inputs import ImageSequence
from skpool.inspection import PoolingComparisonDisplay
from skpool.pooling import (
    AttentionPooling,
    BagOfFeaturesPooling,
    CompactBilinearPooling,
    CovariancePooling,
    FisherVectorPooling,
    GeMPooling,
    GroupGeMPooling,
    LogSumExpPooling,
    RMACPooling,
    SelectedTokenPooling,
    SpatialPyramidPooling,
    TokenPooling,
    VLADPooling,
)
from skpool.preprocessing import L2Normalizer, Whitening
from skpool.stores import TokenArray

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TOKENS = [DATA / "features" / f"clothing_deit_tiny_tokens_{i}.npz" for i in (0, 1)]

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--source", choices=["tokens", "photographs", "digits"])
parser.add_argument("--samples", type=int, default=600, help="samples of the search at most")
parser.add_argument("--folds", type=int, default=5)
parser.add_argument("--poolings", nargs="+", metavar="NAME", help="some of the names in the table")
parser.add_argument("--store", type=Path, default=Path("outputs/clothing_store"))
parser.add_argument("--output", type=Path, default=Path("outputs/choosing_a_pooling.png"))
options = parser.parse_args()
source = options.source or ("tokens" if TOKENS[0].exists() else "digits")


def token_maps() -> tuple[TokenArray, np.ndarray, np.ndarray]:
    """The tokens of DeiT-tiny, their labels, and which are for the search."""
    parts = [np.load(path) for path in TOKENS]
    values = [(part["q"] * part["step"] + part["mean"]).astype(np.float16) for part in parts]
    y, split = (np.concatenate([part[name] for part in parts]) for name in ("y", "split"))
    tokens = TokenArray.from_array(np.concatenate(values), n_prefix_tokens=1, grid=(14, 14))
    return tokens, y, split == "train"


def photographs() -> tuple[TokenArray, np.ndarray, np.ndarray]:
    """The same photographs as JPEG files, through a MobileNetV2; the tokens stay in a store."""
    content = np.load(DATA / "clothing" / "clothing10_224.npz")
    edges, folder = content["offsets"], options.store.parent / "clothing_in_order"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04}.jpg" for i in range(len(content["y"]))]
    for i, path in enumerate(paths):
        if not path.exists():
            path.write_bytes(content["jpeg"][edges[i] : edges[i + 1]].tobytes())
    half = (0.5, 0.5, 0.5)
    recipe = ImageRecipe(mean=half, std=half, interpolation="bilinear")
    backbone = Backbone(f"hf:{DATA / 'mobilenet_v2'}", recipe=recipe)
    extractor = FeatureExtractor(backbone, store=options.store)
    tokens = extractor.transform([str(path) for path in paths])
    return tokens, content["y"], content["split"] == "train"


def digits() -> tuple[TokenArray, np.ndarray, np.ndarray]:
    """Handwritten digits through the network that ships with the package."""
    X, y = load_digits(return_X_y=True)
    images = ImageSequence((X.reshape(-1, 8, 8, 1) * 255 / 16).round().astype(np.uint8))
    return FeatureExtractor("glyph").transform(images), y, np.arange(len(y)) % 5 < 3


tokens, y, for_search = {"tokens": token_maps, "photographs": photographs, "digits": digits}[
    source
]()
rng = np.random.default_rng(0)
train = rng.permutation(np.flatnonzero(for_search))[: options.samples]
test = np.flatnonzero(~for_search)
print(f"{source}: {len(train)} samples for the search, {len(test)} held out, {tokens.shape[1:]}")

# %%
# Poolings and whitenings are hyper-parameters
# --------------------------------------------
# The names are for the picture; the search is given the estimators. Those from the log-sum-exp on
# learn from the training tokens of every fold, and the last one from labels too.

poolings = {
    "class token": TokenPooling("cls"),
    "class token + mean": TokenPooling(("cls", "mean")),
    "patches like the class token": SelectedTokenPooling(0.25, output="concat_cls"),
    "mean": TokenPooling("mean"),
    "max": TokenPooling("max"),
    "mean + deviation": TokenPooling(("mean", "std")),
    "GeM, p = 3": GeMPooling(3.0, negative="signed"),
    "pyramid, 1 + 2 x 2": SpatialPyramidPooling((1, 2), reduce="mean"),
    "R-MAC": RMACPooling(levels=2),
    "log-sum-exp": LogSumExpPooling(2.0),
    "GeM of 4 groups": GroupGeMPooling(4, p=[1.0, 2.0, 3.0, 4.0]),
    "covariance of 48": CovariancePooling(n_components=48),
    "compact bilinear, 1024": CompactBilinearPooling(1024),
    "VLAD, 8 words": VLADPooling(8, power=0.5, max_tokens=20_000),
    "Fisher vector, 8 Gaussians": FisherVectorPooling(8, pca_dim=32, max_tokens=20_000),
    "bag of 128 words": BagOfFeaturesPooling(
        128, assignment="soft", norm="sqrt", max_tokens=20_000
    ),
    "gated attention": AttentionPooling(epochs=5),
}
if not tokens.n_prefix_tokens:
    poolings = {name: p for name, p in poolings.items() if "class token" not in name}
poolings = {name: poolings[name] for name in options.poolings or poolings}
# Vectors of unit length, so that one C suits all of them.
whitenings = {
    "each feature by itself": make_pipeline(StandardScaler(), L2Normalizer()),
    "half a whitening to 96": Whitening(96, power=0.5, l2=True),
    "whitening to 96": Whitening(96, l2=True),
}
pipeline = Pipeline(
    [
        ("pool", TokenPooling()),
        ("whiten", Whitening()),
        ("clf", LogisticRegression(C=2.0, max_iter=500)),
    ]
)
grid = {"pool": list(poolings.values()), "whiten": list(whitenings.values())}
folds = StratifiedKFold(options.folds, shuffle=True, random_state=0)
start = time.perf_counter()
search = GridSearchCV(pipeline, grid, cv=folds).fit(tokens[train], y[train])
seconds = time.perf_counter() - start
print(f"{len(search.cv_results_['params'])} pipelines x {options.folds} folds: {seconds:.0f} s")

# %%
# One picture, and the same as a table
# ------------------------------------
# A ring around the best, and a band as wide as its standard error: what reaches into the band is
# not clearly worse.

import matplotlib  # noqa: E402

matplotlib.use("Agg")

display = PoolingComparisonDisplay.from_search(
    search,
    classifier=None,
    names=poolings | whitenings,
    title=f"{source}: {len(train)} samples, {options.folds} folds",
)
width = max(map(len, display.poolings))
print("".ljust(width), *(name.rjust(23) for name in display.whitenings), "   seconds a fold")
for row, name in enumerate(display.poolings):
    cells = [
        f"{mean:.3f} +- {error:.3f}".rjust(23)
        for mean, error in zip(
            display.mean[row, :, 0], display.standard_error[row, :, 0], strict=True
        )
    ]
    print(name.ljust(width), *cells, f"{display.cost[row].mean():14.2f}")

held_out = search.score(tokens[test], y[test])
error = np.sqrt(held_out * (1 - held_out) / len(test))
print(f"The best, {search.best_score_:.3f} in cross-validation, on what the search never saw:")
print(f"  accuracy {held_out:.3f} +- {error:.3f}")
options.output.parent.mkdir(parents=True, exist_ok=True)
display.figure_.savefig(options.output, dpi=110)
print(f"Picture: {options.output}")
