# SPDX-License-Identifier: BSD-3-Clause
"""What does a grid search cost over one pass and the same grid on ready features?

The same `GridSearchCV` over poolings, whitenings and classifiers in the same rounds: on tokens that
are an array already, plus one pass that makes them; from images, with the cache in memory; and from
images, with a new store on disk.

    python benchmarks/bench_grid_search.py [--backbone glyph|hf:<directory>] [--images 400]
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from _measure import header, rounds, spread, write_photographs
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

import skpool
from skpool.backbones import Backbone, ImageRecipe
from skpool.extraction import FeatureExtractor
from skpool.neighbors import WeightedKNNClassifier
from skpool.pooling import GeMPooling, TokenPooling
from skpool.preprocessing import L2Normalizer, Whitening
from skpool.prototypes import NearestClassMeanClassifier
from skpool.stores import FeatureStore, TokenArray, default_cache

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--backbone", default="glyph")
parser.add_argument("--images", type=int, default=400)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()
torch.set_num_threads(options.threads)

POOLINGS = [
    TokenPooling("mean"),
    TokenPooling("max"),
    TokenPooling("std"),
    GeMPooling(3.0, negative="signed"),
    GeMPooling(3.0),
    TokenPooling(("mean", "max")),
]


def search(*first: tuple[str, object]) -> GridSearchCV:
    """Six poolings, three whitenings, two classifiers, five folds."""
    steps = [("pool", TokenPooling()), ("whiten", None), ("clf", WeightedKNNClassifier())]
    grid = {
        "pool": POOLINGS,
        "whiten": ["passthrough", L2Normalizer(), Whitening(shrinkage="oas")],
        "clf": [NearestClassMeanClassifier(), WeightedKNNClassifier(10)],
    }
    return GridSearchCV(Pipeline([*first, *steps]), grid, cv=5, error_score="raise")


def main() -> None:
    """Measure and print."""
    recipe = None if options.backbone == "glyph" else ImageRecipe()
    backbone = Backbone(options.backbone, recipe=recipe)
    y = np.arange(options.images) % 10
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), options.images, 224)
        ready = {}

        def from_images() -> None:
            default_cache().clear()
            extractor = FeatureExtractor(backbone)
            scores["skpool"] = search(("features", extractor)).fit(paths, y).best_score_

        def from_images_to_a_store() -> None:
            default_cache().clear()
            with tempfile.TemporaryDirectory() as place, FeatureStore(place) as store:
                search(("features", FeatureExtractor(backbone, store=store))).fit(paths, y)

        def one_pass() -> None:
            with skpool.config_context(cache_bytes=0):
                lazy = FeatureExtractor(backbone).transform(paths)
                ready["tokens"] = TokenArray.from_array(
                    np.asarray(lazy), n_prefix_tokens=lazy.n_prefix_tokens, grid=lazy.grid
                )

        def ready_tokens() -> None:
            scores["ready"] = search().fit(ready["tokens"], y).best_score_

        seconds = rounds(
            {
                "one pass to an array": one_pass,
                "grid on ready tokens": ready_tokens,
                "grid from images, cache in memory": from_images,
                "grid from images, new store on disk": from_images_to_a_store,
            },
            options.rounds,
        )
    floor = seconds["one pass to an array"] + seconds["grid on ready tokens"]
    print(header(options.threads))
    print(
        f"{options.backbone}, {options.images} images, 36 candidates x 5 folds; seconds and the "
        "ratio to (one pass + grid on ready tokens), taken within each round\n"
    )
    print("| what | seconds | ratio |")
    print("| --- | --- | --- |")
    for name, values in seconds.items():
        print(f"| {name} | {spread(values)} | {spread(values / floor)} |")
    print(f"\nBest scores agree: {scores['skpool'] == scores['ready']}")


if __name__ == "__main__":
    main()
