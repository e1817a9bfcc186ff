# SPDX-License-Identifier: BSD-3-Clause
"""Which layer of a network, and what do the recipes of the literature give?

DeiT-tiny on real photographs of clothing, a logistic regression on frozen features, the same folds
for all rows. Errors are standard errors over the folds, which share training images and are a
little too small; the difference to the last layer is taken fold by fold.

    python benchmarks/bench_layers.py DIRECTORY [--images 600] [--folds 5] [--store PATH]

DIRECTORY holds the network for `hf:` (`../shared/data/deit_tiny/to_hf.py` writes one).
"""

import argparse
import io

import numpy as np
from _measure import DATA, header
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpool.backbones import Backbone, ImageRecipe
from skpool.extraction import FeatureExtractor
from skpool.layers import LayerAggregator, LayerSelector, layerwise_probe
from skpool.pooling import TokenPooling
from skpool.stores import TokenArray

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("directory")
parser.add_argument("--images", type=int, default=600)
parser.add_argument("--folds", type=int, default=5)
parser.add_argument("--store", default=None)
options = parser.parse_args()

N_BLOCKS = 12


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, drawn with a fixed seed."""
    content = np.load(DATA / "clothing" / "clothing10_224.npz")
    rows = np.sort(np.random.default_rng(0).permutation(len(content["y"]))[: options.images])
    stream, starts = content["jpeg"], content["offsets"]
    files = (io.BytesIO(stream[starts[i] : starts[i + 1]].tobytes()) for i in rows)
    return np.stack([np.asarray(Image.open(file)) for file in files]), content["y"][rows]


def head() -> BaseEstimator:
    """The classifier on top of every row of the tables."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))


def shown(scores: np.ndarray, base: np.ndarray) -> str:
    """Mean and standard error in percent, and the same of the difference to the base."""
    error, paired = 100 * scores, 100 * (scores - base)
    root = np.sqrt(len(scores))
    return (
        f"{error.mean():5.1f} ± {error.std(ddof=1) / root:.1f}   "
        f"{paired.mean():+5.1f} ± {paired.std(ddof=1) / root:.1f}"
    )


def recipes() -> dict[str, BaseEstimator]:
    """The recipes; layers are positions: 0 the embedding, 1 to 12 the blocks."""
    cls, concat = {"token_pool": "cls"}, {"layer_pool": "concat"}
    last4 = slice(-4, None)
    return {
        "last layer, mean of patches": LayerAggregator([-1]),
        "last layer, class token": LayerAggregator([-1], **cls),
        "DINO: class tokens of the last 4": LayerAggregator(last4, **cls, **concat),
        "DINOv2, last 1 + mean": LayerAggregator([-1], **cls, **concat, append_patch_mean=True),
        "DINOv2, last 4 + mean": LayerAggregator(last4, **cls, **concat, append_patch_mean=True),
        "WhiteningBERT: (h1 + hlast) / 2": LayerAggregator([1, -1]),
        "EarlyBIRD: max over class tokens": LayerAggregator(**cls, layer_pool="max"),
        "EarlyBIRD: weighted class tokens": LayerAggregator(**cls, layer_pool="weighted"),
        "EarlyBIRD: max over all tokens": LayerAggregator(
            token_pool=TokenPooling("max", scope="all"), layer_pool="max"
        ),
        "mean over the last 4": LayerAggregator(last4),
        "mean over the last 4, l2": LayerAggregator(last4, normalize="l2"),
        "weighted, layernorm": LayerAggregator(layer_pool="weighted", normalize="layernorm"),
        "selected by knn": LayerSelector("knn"),
        "selected by ridge": LayerSelector("ridge"),
        "selected by ridge, 3 side by side": LayerSelector("ridge", rule="top_k", k=3),
        "selected by rankme": LayerSelector("rankme"),
    }


def layer_table(X: TokenArray, y: np.ndarray, folds: list) -> np.ndarray:
    """Print the probe and the criteria of every layer; return the scores of the last."""
    scores = {
        pool: layerwise_probe(X, y, head(), cv=folds, token_pool=pool) for pool in ("mean", "cls")
    }
    base = scores["mean"][-1]
    named = ("knn", "ridge", "rankme", "lidar", "prompt_entropy")
    criteria = {name: LayerSelector(name, max_samples=300).fit(X, y).scores_ for name in named}
    print("layer  mean of patches   to the last    class token   |  " + "  ".join(named))
    for place in range(X.n_layers):
        of_cls = shown(scores["cls"][place], base)[:11]
        values = "  ".join(f"{criteria[name][place]:7.3f}" for name in named)
        print(f"{place:5}  {shown(scores['mean'][place], base)}   {of_cls}   |  {values}")
    return base


def main() -> None:
    """Measure and print."""
    images, y = load()
    folds = list(StratifiedKFold(options.folds, shuffle=True, random_state=0).split(images, y))
    backbone = Backbone(f"hf:{options.directory}", recipe=ImageRecipe())
    extractor = FeatureExtractor(
        backbone, layers=list(range(N_BLOCKS + 1)), store=options.store, dtype="float16"
    )
    X = extractor.transform(images)
    print(header(1))
    print(f"DeiT-tiny, {len(y)} photographs of clothing, {options.folds} folds; accuracy in %")
    base = layer_table(X, y, folds)
    print("\nrecipe                              accuracy      to the last layer")
    for name, step in recipes().items():
        scores = cross_val_score(make_pipeline(step, head()), X, y, cv=folds, error_score="raise")
        print(f"{name:35} {shown(scores, base)}", flush=True)


if __name__ == "__main__":
    main()
