# SPDX-License-Identifier: BSD-3-Clause
"""Small networks that the tests freeze, and one that counts the images it sees."""

import os
from pathlib import Path

import torch
from torch import nn

from skpool.backbones import Backbone, ImageRecipe

RECIPE = ImageRecipe(input_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, fit="squash")


class TokenNet(nn.Module):
    """A class token and 4 x 4 patches of width 6, through two token-wise blocks and a norm."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Conv2d(3, 6, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 6))
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.norm = nn.LayerNorm(6)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, images):
        patches = self.embed(images).flatten(2).transpose(1, 2)
        # The class token sees the patches, so every token depends on the whole image.
        cls = self.cls_token + patches.mean(1, keepdim=True)
        tokens = torch.cat([cls, patches], 1)
        for block in self.blocks:
            tokens = block(tokens).tanh()
        return self.norm(tokens)


class CountingNet(TokenNet):
    """Appends one byte per image to a file, which all processes share."""

    def __init__(self, path: Path, seed: int = 0):
        super().__init__(seed)
        self.path = str(path)

    def forward(self, images):
        # The blank image by which a layout is found is not an image of the user's.
        n = int((images.flatten(1) != images.flatten(1)[:, :1]).any(1).sum())
        with open(self.path, "ab", buffering=0) as file:
            os.write(file.fileno(), b"x" * n)
        return super().forward(images)


def token_backbone(seed: int = 0) -> Backbone:
    """A small frozen backbone with a class token and a grid."""
    return Backbone.from_module(
        TokenNet(seed), recipe=RECIPE, layer_paths=["blocks.0", "blocks.1"], patch_size=4
    )


def counting_backbone(path: Path) -> Backbone:
    """The same, which counts the images in a file."""
    return Backbone.from_module(
        CountingNet(path), recipe=RECIPE, layer_paths=["blocks.0", "blocks.1"], patch_size=4
    )
