# SPDX-License-Identifier: BSD-3-Clause
"""Pooling: from the tokens of a sample to one vector.

Each pooling is a kernel on tensors (`POOLINGS`) under a thin transformer. They take lazy tokens,
which they stream, or plain arrays; nothing here knows where tokens come from.
"""

from skpool.pooling._attention import AttentionPooling
from skpool.pooling._attention_classifier import AttentionPoolingClassifier
from skpool.pooling._attention_modules import CrossAttention, TokenAttention
from skpool.pooling._bag_of_features import BagOfFeaturesPooling
from skpool.pooling._base import BasePooling
from skpool.pooling._by_name import Pooling
from skpool.pooling._compact_bilinear import CompactBilinearPooling, fuse_compact_bilinear
from skpool.pooling._covariance import BilinearPooling, CovariancePooling
from skpool.pooling._fisher import FisherVectorPooling
from skpool.pooling._gem import GeMPooling, GroupGeMPooling
from skpool.pooling._kernels import POOLINGS
from skpool.pooling._log_sum_exp import LogSumExpPooling
from skpool.pooling._moment import CrossCovariancePooling, MomentPooling
from skpool.pooling._moment_kernels import cross_pairs, cross_width, pool_cross_covariance
from skpool.pooling._positional import (
    PositionalDebias,
    PositionalMeanRemoval,
    position_context_decomposition,
)
from skpool.pooling._pyramid import SpatialPyramidPooling, TemporalPyramidPooling
from skpool.pooling._regional_gem import RegionalGeM
from skpool.pooling._rmac import RMACPooling
from skpool.pooling._scale_gem import ScaleGeM
from skpool.pooling._token import TokenPooling
from skpool.pooling._token_selector import SelectedTokenPooling, TokenSelector
from skpool.pooling._token_transformer import BaseTokenTransformer
from skpool.pooling._view_aggregator import ViewAggregator
from skpool.pooling._view_averaging import ViewAveragingClassifier
from skpool.pooling._vlad import VLADPooling

__all__ = [
    "POOLINGS",
    "AttentionPooling",
    "AttentionPoolingClassifier",
    "BagOfFeaturesPooling",
    "BasePooling",
    "BaseTokenTransformer",
    "BilinearPooling",
    "CompactBilinearPooling",
    "CovariancePooling",
    "CrossAttention",
    "CrossCovariancePooling",
    "FisherVectorPooling",
    "GeMPooling",
    "GroupGeMPooling",
    "LogSumExpPooling",
    "MomentPooling",
    "Pooling",
    "PositionalDebias",
    "PositionalMeanRemoval",
    "RMACPooling",
    "RegionalGeM",
    "ScaleGeM",
    "SelectedTokenPooling",
    "SpatialPyramidPooling",
    "TemporalPyramidPooling",
    "TokenAttention",
    "TokenPooling",
    "TokenSelector",
    "VLADPooling",
    "ViewAggregator",
    "ViewAveragingClassifier",
    "cross_pairs",
    "cross_width",
    "fuse_compact_bilinear",
    "pool_cross_covariance",
    "position_context_decomposition",
]
