# SPDX-License-Identifier: BSD-3-Clause
"""Layers: which of a network's layers to read, and how to make one vector of several.

Between extraction and the vector steps: tokens of several layers, (n, k, L, d), or vectors of
several layers, (n, k, d), become vectors (n, d). Nothing here knows where layers come from.
"""

from skpool.layers._backbone_selector import BackboneSelector
from skpool.layers._criteria import CRITERIA
from skpool.layers._kernels import LAYER_POOLS
from skpool.layers._layer_aggregator import LayerAggregator
from skpool.layers._layer_selector import LayerSelector
from skpool.layers._probe import layerwise_probe

__all__ = [
    "CRITERIA",
    "LAYER_POOLS",
    "BackboneSelector",
    "LayerAggregator",
    "LayerSelector",
    "layerwise_probe",
]
