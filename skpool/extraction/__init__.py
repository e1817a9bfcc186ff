# SPDX-License-Identifier: BSD-3-Clause
"""Extraction: raw samples through a frozen network, once, into lazy tokens."""

from skpool.extraction._feature_extractor import FeatureExtractor
from skpool.extraction._patch_dictionary import PatchDictionaryExtractor
from skpool.extraction._random_features import RandomFeatureExtractor
from skpool.extraction._test_time_augmentation import TestTimeAugmentation
from skpool.extraction._text_feature_extractor import TextFeatureExtractor

__all__ = [
    "FeatureExtractor",
    "PatchDictionaryExtractor",
    "RandomFeatureExtractor",
    "TestTimeAugmentation",
    "TextFeatureExtractor",
]
