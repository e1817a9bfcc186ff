# SPDX-License-Identifier: BSD-3-Clause
"""The frozen network: images or texts in, tokens out, one file per source of models.

A `Backbone` names a network; pipelines carry the name, and the network is loaded once per process
and device. `ImageRecipe` says how its images are prepared, `TextRecipe` how its texts are pooled,
and `check_frozen` proves that it is a fixed function of one sample.
"""

from skpool.backbones._backbone import Backbone
from skpool.backbones._check_frozen import check_frozen
from skpool.backbones._network import TOKEN_NORMS, Layout, Network
from skpool.backbones._random import random_network, random_recipe
from skpool.backbones._recipe import ImageRecipe
from skpool.backbones._recipes import BACKBONE_RECIPES, FamilyRecipe
from skpool.backbones._text_network import TextNetwork, Tokenizer
from skpool.backbones._text_recipe import TEXT_POOLINGS, TextRecipe
from skpool.backbones._text_recipes import TEXT_RECIPES

__all__ = [
    "BACKBONE_RECIPES",
    "TEXT_POOLINGS",
    "TEXT_RECIPES",
    "TOKEN_NORMS",
    "Backbone",
    "FamilyRecipe",
    "ImageRecipe",
    "Layout",
    "Network",
    "TextNetwork",
    "TextRecipe",
    "Tokenizer",
    "check_frozen",
    "random_network",
    "random_recipe",
]
