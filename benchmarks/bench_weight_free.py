# SPDX-License-Identifier: BSD-3-Clause
"""What do features without pretrained weights add to raw pixels?

A logistic regression on standardised pixels, on random networks, and on patch dictionaries, with
the same choice of its penalty by cross-validation inside the training images. Digits: the 1797
images of 8 x 8 of scikit-learn, five folds. CIFAR-100: 10 training and 5 test images of each of 100
classes, where they lie in ../shared/data.

    python benchmarks/bench_weight_free.py [--data digits|cifar100] [--atoms 400] [--seeds 3]
"""

import argparse
import time

import numpy as np
from _measure import DATA, header
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpool.extraction import PatchDictionaryExtractor, RandomFeatureExtractor
from skpool.pooling import TokenPooling

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--data", choices=["digits", "cifar100"], default="digits")
parser.add_argument("--atoms", type=int, default=400)
parser.add_argument("--width", type=int, default=256)
parser.add_argument("--seeds", type=int, default=3)
options = parser.parse_args()


def load() -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Images, labels, and the splits into training and test."""
    if options.data == "digits":
        digits = load_digits()
        images = (digits.images * 255 / 16).round().astype(np.uint8)[..., None]
        splits = StratifiedKFold(5, shuffle=True, random_state=0).split(images, digits.target)
        return images, digits.target, list(splits)
    content = np.load(DATA / "cifar100_subset" / "cifar100_1500.npz")
    train, test = (np.flatnonzero(content["split"] == part) for part in ("train", "test"))
    return content["images"], content["labels"], [(train, test)]


def candidates(seed: int) -> dict[str, object]:
    """The ways from images to vectors."""
    patch = 4 if options.data == "digits" else 6
    side = 16 if options.data == "digits" else 32
    dictionary = {"patch": patch, "random_state": seed}
    network = {"width": options.width, "depth": 2, "input_size": side, "random_state": seed}
    mean = TokenPooling(("mean", "std"))
    return {
        "pixels": None,
        "random conv, not calibrated": make_pipeline(
            RandomFeatureExtractor("conv", calibrate=False, **network), mean
        ),
        "random conv": make_pipeline(RandomFeatureExtractor("conv", **network), mean),
        "random vit": make_pipeline(RandomFeatureExtractor("vit", patch_size=4, **network), mean),
        "random mlp": make_pipeline(RandomFeatureExtractor("mlp", **network), TokenPooling("mean")),
        "patches, hard": PatchDictionaryExtractor(options.atoms, encoding="hard", **dictionary),
        "patches, soft": PatchDictionaryExtractor(options.atoms, encoding="soft", **dictionary),
        "patches, triangle": PatchDictionaryExtractor(options.atoms, **dictionary),
    }


def accuracy(extractor: object, images: np.ndarray, y: np.ndarray, split: tuple) -> float:
    """Accuracy on the test images; everything is learned on the training images."""
    train, test = split
    if extractor is None:
        X = images.reshape(len(images), -1).astype(np.float32)
    else:
        X = np.asarray(extractor.fit(images[train]).transform(images))
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, tol=1e-3))
    search = GridSearchCV(head, {"logisticregression__C": np.logspace(-6, 0, 7)}, cv=3)
    return search.fit(X[train], y[train]).score(X[test], y[test])


def main() -> None:
    """Measure and print."""
    images, y, splits = load()
    print(header(1))
    print(f"{options.data}: {len(images)} images, {options.atoms} atoms, width {options.width}")
    for name in candidates(0):
        start = time.perf_counter()
        seeds = range(1 if name == "pixels" else options.seeds)
        scores = [
            np.mean([accuracy(candidates(seed)[name], images, y, split) for split in splits])
            for seed in seeds
        ]
        seconds = time.perf_counter() - start
        spread = f"{np.mean(scores):.4f} ({min(scores):.4f} to {max(scores):.4f})"
        print(f"{name:28} {spread}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
