# SPDX-License-Identifier: BSD-3-Clause
"""What do a resize to the crop box and a draft of large JPEG files save, and what do they change?

Mosaics of photographs stand for photographs of many megapixels, since their detail is real. The
reference decodes in full, resizes, and then crops.

    python benchmarks/bench_decoding.py --backbone hf:<directory> [--tiles 24 18]
"""

import argparse
from dataclasses import replace

import numpy as np
import torch
from _measure import header, rounds, spread, write_photographs
from PIL import Image

from skpool.backbones import Backbone, ImageRecipe
from skpool.inputs import ImageSequence

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--backbone", required=True)
parser.add_argument("--tiles", type=int, nargs=2, default=(24, 18), help="tiles of 224 px")
parser.add_argument("--images", type=int, default=6)
parser.add_argument("--rounds", type=int, default=5)
options = parser.parse_args()
torch.set_num_threads(1)


def mosaics(folder: str) -> list[str]:
    """Large JPEG files, each of many photographs side by side."""
    columns, rows = options.tiles
    tiles = write_photographs(folder, 200, 224)
    rng = np.random.default_rng(0)
    names = []
    for number in range(options.images):
        canvas = Image.new("RGB", (224 * columns, 224 * rows))
        for place in range(columns * rows):
            with Image.open(tiles[rng.integers(len(tiles))]) as tile:
                canvas.paste(tile, (224 * (place % columns), 224 * (place // columns)))
        names.append(str(folder / f"mosaic{number}.jpg"))
        canvas.save(names[-1], quality=92)
    return names


def in_turn(image: Image.Image, recipe: ImageRecipe) -> np.ndarray:
    """Resize, then crop."""
    scale = round(recipe.input_size / recipe.crop_pct) / min(image.size)
    resized = tuple(
        round(scale * side) if side == min(image.size) else int(scale * side) for side in image.size
    )
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = ((side - recipe.input_size) // 2 for side in resized)
    box = (left, top, left + recipe.input_size, top + recipe.input_size)
    return np.asarray(image.crop(box))


def main() -> None:
    """Measure and print."""
    import tempfile
    from pathlib import Path

    backbone = Backbone(options.backbone, recipe=ImageRecipe())
    with tempfile.TemporaryDirectory() as folder:
        images = ImageSequence(mosaics(Path(folder)))

        def prepared(draft: float | None) -> list[np.ndarray]:
            recipe = replace(backbone.recipe, draft=draft)
            enough = recipe.enough()
            return [recipe.prepare(images.load(i, at_least=enough)) for i in range(len(images))]

        ways = {
            "resize, then crop": lambda: [
                in_turn(images.load(i), backbone.recipe) for i in range(len(images))
            ],
            "at once": lambda: prepared(None),
            "at once, draft=4 (default)": lambda: prepared(4.0),
            "at once, draft=2": lambda: prepared(2.0),
        }
        seconds = rounds(ways, options.rounds)
        pixels = {name: np.stack(way()) for name, way in ways.items()}
        tokens = {n: backbone.forward(torch.from_numpy(p))[0][0] for n, p in pixels.items()}

    first = next(iter(ways))
    width, height = (224 * n for n in options.tiles)
    print(header(1))
    print(f"JPEG files of {width} x {height} pixels to 224 x 224; {options.backbone}\n")
    print("| way | time | grey levels off: mean, most | class token off |")
    print("| --- | --- | --- | --- |")
    for name in ways:
        off = np.abs(pixels[name].astype(int) - pixels[first])
        a, b = tokens[first][:, 0], tokens[name][:, 0]
        share = float(((a - b).norm(dim=1) / a.norm(dim=1)).max())
        ratio = spread(seconds[name] / seconds[first])
        print(f"| {name} | {ratio} | {off.mean():.4f}, {off.max()} | {share:.2%} |")


if __name__ == "__main__":
    main()
