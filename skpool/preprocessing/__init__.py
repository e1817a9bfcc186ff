# SPDX-License-Identifier: BSD-3-Clause
"""Vector steps between pooling and the classifier: normalisation and whitening."""

from skpool.preprocessing._all_but_the_top import AllButTheTop
from skpool.preprocessing._base import BaseRowMap
from skpool.preprocessing._centered_l2 import CenteredL2Normalizer
from skpool.preprocessing._frozen_layer import FrozenStdLayerNormalizer
from skpool.preprocessing._group_scaler import GroupCenterer, GroupStandardScaler
from skpool.preprocessing._l2 import L2Normalizer
from skpool.preprocessing._learned_whitening import LearnedWhitening
from skpool.preprocessing._negated_pca import NegatedPCA
from skpool.preprocessing._power import PowerNormalizer
from skpool.preprocessing._random_features import RandomFeatures
from skpool.preprocessing._row_normalizers import (
    CompressedRMSNormalizer,
    GroupNormalizer,
    LayerNormalizer,
    RMSNormalizer,
)
from skpool.preprocessing._sample_normalizer import SampleNormalizer
from skpool.preprocessing._token_scaler import TokenStandardScaler
from skpool.preprocessing._whitening import Whitening
from skpool.preprocessing._whitening_coloring import WhiteningColoring

__all__ = [
    "AllButTheTop",
    "BaseRowMap",
    "CenteredL2Normalizer",
    "CompressedRMSNormalizer",
    "FrozenStdLayerNormalizer",
    "GroupCenterer",
    "GroupNormalizer",
    "GroupStandardScaler",
    "L2Normalizer",
    "LayerNormalizer",
    "LearnedWhitening",
    "NegatedPCA",
    "PowerNormalizer",
    "RMSNormalizer",
    "RandomFeatures",
    "SampleNormalizer",
    "TokenStandardScaler",
    "Whitening",
    "WhiteningColoring",
]
