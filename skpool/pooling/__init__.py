# SPDX-License-Identifier: BSD-3-Clause
"""Pooling: from the tokens of a sample to one vector.

Each pooling is a kernel on tensors (`POOLINGS`) under a thin transformer. They take lazy tokens,
which they stream, or plain arrays; nothing here knows where tokens come from.
"""

from skpool.pooling._base import BasePooling
from skpool.pooling._gem import GeMPooling, GroupGeMPooling
from skpool.pooling._kernels import POOLINGS
from skpool.pooling._token import TokenPooling
from skpool.pooling._token_transformer import BaseTokenTransformer
from skpool.pooling._view_aggregator import ViewAggregator
from skpool.pooling._view_averaging import ViewAveragingClassifier

__all__ = [
    "POOLINGS",
    "BasePooling",
    "BaseTokenTransformer",
    "GeMPooling",
    "GroupGeMPooling",
    "TokenPooling",
    "ViewAggregator",
    "ViewAveragingClassifier",
]
