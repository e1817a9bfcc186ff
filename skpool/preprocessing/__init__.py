# SPDX-License-Identifier: BSD-3-Clause
"""Vector steps between pooling and the classifier: normalisation and whitening."""

from skpool.preprocessing._base import BaseRowMap
from skpool.preprocessing._l2 import L2Normalizer
from skpool.preprocessing._power import PowerNormalizer
from skpool.preprocessing._whitening import Whitening

__all__ = ["BaseRowMap", "L2Normalizer", "PowerNormalizer", "Whitening"]
