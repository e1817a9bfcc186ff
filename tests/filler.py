# SPDX-License-Identifier: BSD-3-Clause
"""One process of several that fill a store: ``python filler.py FOLDER STORE LOG MODE``.

MODE is "finish", "wait" (until it is interrupted) or the number of batches after which the process
kills itself as nobody could catch it.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

import skpool
from skpool.backbones import Backbone, ImageRecipe
from skpool.extraction import FeatureExtractor
from skpool.stores import FeatureStore

MAX_PIXELS = 1_000_000


class SlowNet(torch.nn.Module):
    """Writes down the first two pixels of every image, by which the test knows it."""

    def __init__(self, log: str):
        super().__init__()
        self.log = log
        self.embed = torch.nn.Conv2d(3, 4, 8, 8)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        with open(self.log, "ab", buffering=0) as file:
            named = (images[:, :, 0, 0] * 255).round().to(torch.uint8)
            os.write(file.fileno(), b"".join(bytes(row.tolist()) for row in named))
        return self.embed(images).flatten(2).transpose(1, 2)


def extractor(store: str, log: str) -> FeatureExtractor:
    """What all processes run."""
    recipe = ImageRecipe(input_size=16, mean=(0.0,) * 3, std=(1.0,) * 3, fit="squash")
    return FeatureExtractor(
        Backbone.from_module(SlowNet(log), recipe=recipe),
        batch_size=8,
        # A batch is written as soon as it is computed.
        store=FeatureStore(store, block_bytes=1),
    )


def files(folder: str) -> list[str]:
    """All files, the missing ones too."""
    return [str(Path(folder, f"{i:04}.png")) for i in range(1000)]


def main() -> None:
    """Read all tokens, or be stopped."""
    folder, store, log, mode = sys.argv[1:]
    torch.set_num_threads(1)
    skpool.set_config(max_pixels=MAX_PIXELS)
    tokens = extractor(store, log).fit_transform(files(folder))
    for number, _ in enumerate(tokens.iter_batches(), start=1):
        if mode.isdigit() and number == int(mode):
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 1:
            sys.stdout.write("started\n")
            sys.stdout.flush()
    if mode == "wait":
        # Should it be done before anybody interrupts it, it waits for that.
        time.sleep(60)


if __name__ == "__main__":
    main()
