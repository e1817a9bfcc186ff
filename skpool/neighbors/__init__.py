# SPDX-License-Identifier: BSD-3-Clause
"""Instance-based classifiers on frozen features, over one exact neighbour index."""

from skpool.neighbors._index import NeighborIndex
from skpool.neighbors._weighted_knn import WeightedKNNClassifier

__all__ = ["NeighborIndex", "WeightedKNNClassifier"]
