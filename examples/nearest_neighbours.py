# SPDX-License-Identifier: BSD-3-Clause
"""Photographs on disk, features in a store, and which garments look alike.

2000 photographs of garments through a MobileNetV2 that was trained on other pictures. The features
stay in a directory, so the second run of this script starts where the first one ended.

    python examples/nearest_neighbours.py [--images FOLDER] [--backbone NAME] [--store DIRECTORY]

Without options it takes the photographs and the network in ../shared/data. A folder of your own
has one folder of JPEG files per class.
"""

# %%
# The photographs
# ---------------

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.pipeline import make_pipeline

from skpool.backbones import Backbone, ImageRecipe
from skpool.extraction import FeatureExtractor
from skpool.inputs import ImageSequence
from skpool.neighbors import NeighborIndex
from skpool.pooling import GeMPooling
from skpool.preprocessing import Whitening

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--images", type=Path, help="a folder with one folder per class")
parser.add_argument("--backbone", help='for example "hf:facebook/dinov2-small"')
parser.add_argument("--store", type=Path, default=Path("outputs/clothing_store"))
parser.add_argument("--limit", type=int, default=2000, help="photographs at most")
parser.add_argument("--output", type=Path, default=Path("outputs/nearest_neighbours.png"))
options = parser.parse_args()


def unpacked(folder: Path) -> Path:
    """The photographs of ../shared/data as JPEG files, one folder per class."""
    content = np.load(DATA / "clothing" / "clothing10_224.npz")
    edges = content["offsets"]
    for i, label in enumerate(content["y"]):
        file = folder / str(content["classes"][label]) / f"{i:04}.jpg"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content["jpeg"][edges[i] : edges[i + 1]].tobytes())
    return folder


folder = options.images or unpacked(options.store.parent / "clothing")
paths = sorted(str(path) for path in folder.glob("*/*.jpg"))
rng = np.random.default_rng(0)
paths = [paths[i] for i in rng.permutation(len(paths))[: options.limit]]
labels = np.array([Path(path).parent.name for path in paths])

if options.backbone:
    backbone = Backbone(options.backbone)
else:
    half = (0.5, 0.5, 0.5)
    backbone = Backbone(
        f"hf:{DATA / 'mobilenet_v2'}",
        recipe=ImageRecipe(mean=half, std=half, interpolation="bilinear"),
    )

# %%
# Features, once
# --------------
# An unreadable file would be named at the end, with everything else done and stored.

extractor = FeatureExtractor(backbone, store=options.store, keep_tokens=False)
describe = make_pipeline(extractor, GeMPooling(3.0), Whitening(128, shrinkage="oas"))
start = time.perf_counter()
vectors = describe.fit_transform(paths)
seconds = time.perf_counter() - start
print(f"{len(paths)} photographs in {seconds:.1f} s ({len(paths) / seconds:.0f} images/s)")
start = time.perf_counter()
make_pipeline(extractor, GeMPooling(3.0)).fit_transform(paths)
print(f"The same again, from the store: {time.perf_counter() - start:.1f} s")

# %%
# Neighbours
# ----------

n_shown = 7
index = NeighborIndex("cosine")
index.add(vectors)
similarity, neighbours = index.search(vectors, n_shown + 1)
# The nearest picture of a picture is itself.
neighbours = neighbours[:, 1:]
alike = labels[neighbours] == labels[:, None]
print(f"Of the {n_shown} nearest, {alike.mean():.1%} are of the same class")
for name in np.unique(labels):
    print(f"  {name:12s} {alike[labels == name].mean():.1%}")

# %%
# One picture
# -----------
# One query per class, in the order of how well the class does.

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

classes = sorted(np.unique(labels), key=lambda name: -alike[labels == name].mean())[:10]
images = ImageSequence(paths)
figure, axes = plt.subplots(
    len(classes), n_shown + 1, figsize=(n_shown + 2.2, len(classes) + 0.8), layout="constrained"
)
figure.suptitle(
    f"The nearest of {len(paths)} photographs to the one on the left; "
    f"{alike.mean():.0%} are of its class",
    fontsize=13,
)
for row, name in enumerate(classes):
    query = int(rng.choice(np.flatnonzero(labels == name)))
    for column, shown in enumerate([query, *neighbours[query]]):
        axis = axes[row, column]
        axis.imshow(images.load(shown).resize((112, 112), Image.Resampling.BICUBIC))
        axis.set(xticks=[], yticks=[])
        right = labels[shown] == name
        color = "0.3" if column == 0 else "tab:green" if right else "tab:red"
        for spine in axis.spines.values():
            spine.set(color=color, linewidth=3)
        if not right:
            axis.set_xlabel(labels[shown], fontsize=8, color=color, labelpad=2)
    share = alike[labels == name].mean()
    axes[row, 0].set_ylabel(
        f"{name}\n{share:.0%}", fontsize=9, rotation=0, labelpad=28, va="center"
    )
options.output.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output, dpi=110)
print(f"Picture: {options.output}")
