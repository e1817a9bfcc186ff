# SPDX-License-Identifier: BSD-3-Clause
"""Extraction: raw samples through a frozen network, once, into lazy tokens."""

from skpool.extraction._feature_extractor import FeatureExtractor

__all__ = ["FeatureExtractor"]
