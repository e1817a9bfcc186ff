# SPDX-License-Identifier: BSD-3-Clause
"""Instance-based classifiers on frozen features, over one neighbour index, and key-value memory."""

from skpool.neighbors._index import NeighborIndex, tune_ef_search
from skpool.neighbors._key_quantizer import KeyQuantizer
from skpool.neighbors._key_value import DiscreteKeyValueClassifier
from skpool.neighbors._knn_mixture import KNNMixtureClassifier
from skpool.neighbors._per_class_knn import PerClassKNNClassifier
from skpool.neighbors._vector_quantizer import VectorQuantizer
from skpool.neighbors._weighted_knn import WeightedKNNClassifier

__all__ = [
    "DiscreteKeyValueClassifier",
    "KNNMixtureClassifier",
    "KeyQuantizer",
    "NeighborIndex",
    "PerClassKNNClassifier",
    "VectorQuantizer",
    "WeightedKNNClassifier",
    "tune_ef_search",
]
