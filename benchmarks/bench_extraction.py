# SPDX-License-Identifier: BSD-3-Clause
"""How near is extraction to the limit of the model, and how does a plain loop do?

JPEG files on disk to pooled vectors. The limit is taken in the same rounds from its two parts,
measured alone: the forward pass on ready pixels with all threads, and decoding with cropping on one
thread. Both use the processor, so with c cores an image cannot take less than
(c * forward + decoding) / c seconds. The peers are loops over a `DataLoader`: the plain one, whose
dataset gives normalised images to the module as its library built it, and a tuned one, which hands
bytes over and calls our forward pass (channels last, pixels normalised as a batch).

    python benchmarks/bench_extraction.py [--backbone glyph|hf:<directory>] [--images 256]

Both read and crop their images by the functions that we use, and start their workers as Python does
by default, in every round.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _measure import header, rounds, spread, write_photographs

import skpool
from skpool.backbones import Backbone, ImageRecipe
from skpool.extraction import FeatureExtractor
from skpool.inputs import ImageSequence
from skpool.pooling import TokenPooling

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--backbone", default="glyph")
parser.add_argument("--mean-std-half", action="store_true", help="mean and deviation 0.5")
parser.add_argument("--crop-pct", type=float, default=0.875)
parser.add_argument("--images", type=int, default=256)
parser.add_argument("--side", type=int, default=224, help="of the files, in pixels")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
parser.add_argument("--interpolation", default="bicubic")
parser.add_argument("--dtypes", nargs="*", default=[], help="further float types of the pass")
parser.add_argument("--compile", action="store_true", help="also with torch.compile")
options = parser.parse_args()
torch.set_num_threads(options.threads)


class Photographs(torch.utils.data.Dataset):
    """What a user writes for a `DataLoader`: bytes, or floats as a network reads them."""

    def __init__(self, paths: list[str], recipe: ImageRecipe, normalized: bool):
        self.paths, self.recipe, self.normalized = paths, recipe, normalized

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            pixels = torch.from_numpy(self.recipe.prepare(image.convert("RGB")).copy())
        if not self.normalized:
            return pixels
        return self.recipe.normalize(pixels[None])[0].contiguous()


def main() -> None:
    """Measure and print."""
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3} if options.mean_std_half else {}
    recipe = None
    if options.backbone != "glyph":
        recipe = ImageRecipe(crop_pct=options.crop_pct, interpolation=options.interpolation, **half)
    backbone = Backbone(options.backbone, recipe=recipe)
    layout = backbone.layout()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photographs(Path(folder), options.images, options.side)
        images = ImageSequence(paths)
        ready = backbone.prepare([images.load(i) for i in range(len(images))])

        def forward() -> None:
            for start in range(0, len(ready), options.batch_size):
                pooled(backbone.forward(ready[start : start + options.batch_size])[0][0])

        def decode() -> None:
            for i in range(len(images)):
                backbone.recipe.prepare(images.load(i))

        def extract(n_workers: int | str = "auto", **how: object) -> None:
            # Without a cache, so that every round runs the network.
            with skpool.config_context(cache_bytes=0):
                extractor = FeatureExtractor(
                    backbone, batch_size=options.batch_size, n_workers=n_workers, **how
                )
                TokenPooling("mean").fit_transform(extractor.transform(paths))

        module = copy.deepcopy(backbone.network().module).to(memory_format=torch.contiguous_format)

        def by_module(batch: torch.Tensor) -> torch.Tensor:
            output = module(batch)
            values = getattr(output, "last_hidden_state", output)
            return values.flatten(2).mean(2) if values.ndim == 4 else pooled(values)

        def by_us(batch: torch.Tensor) -> torch.Tensor:
            return pooled(backbone.forward(batch)[0][0])

        def pooled(tokens: torch.Tensor) -> torch.Tensor:
            return tokens[:, layout.n_prefix_tokens :].mean(1)

        def loop(n_workers: int, vectors: Callable, normalized: bool) -> None:
            loader = torch.utils.data.DataLoader(
                Photographs(paths, backbone.recipe, normalized),
                batch_size=options.batch_size,
                num_workers=n_workers,
            )
            with torch.inference_mode():
                torch.cat([vectors(batch) for batch in loader]).numpy()

        competitors = {"forward only": forward, "decoding, 1 thread": decode}
        competitors["skpool"] = extract
        for dtype in options.dtypes:
            competitors[f"skpool, {dtype}"] = lambda dtype=dtype: extract(dtype=dtype)
        if options.compile:
            competitors["skpool, compiled"] = lambda: extract(compile=True)
        for n in options.workers:
            competitors[f"plain loop, {n} workers"] = lambda n=n: loop(n, by_module, True)
        for n in options.workers:
            competitors[f"tuned loop, {n} workers"] = lambda n=n: loop(n, by_us, False)
        seconds = rounds(competitors, options.rounds)

    cores = options.threads
    bound = seconds["forward only"] + seconds["decoding, 1 thread"] / cores
    print(header(options.threads))
    print(f"{options.backbone}, {len(paths)} JPEG files of {options.side} px, ", end="")
    print(f"batches of {options.batch_size}")
    print("images/s is the median of the rounds, with the smallest and the largest; share of the")
    print("bound (forward + decoding / cores) is taken within each round\n")
    print("| what | images/s | share of the bound |")
    print("| --- | --- | --- |")
    for name, values in {**seconds, "bound": bound}.items():
        print(f"| {name} | {spread(len(paths) / values)} | {spread(bound / values)} |")
    print()
    for kind in ("plain", "tuned"):
        loops = np.stack([values for name, values in seconds.items() if name.startswith(kind)])
        best = loops[np.median(loops, axis=1).argmin()]
        print(f"skpool is {spread(best / seconds['skpool'])} times as fast as the best {kind} loop")


if __name__ == "__main__":
    main()
