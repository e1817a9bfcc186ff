# SPDX-License-Identifier: BSD-3-Clause
"""Classifiers for a handful of labelled rows: transductive ones that look at all queries at once.

All work on vectors, one episode at a time or many in a batch (`predict_episodes`); the protocol
that draws episodes and scores them is :mod:`skpool.model_selection`.
"""

from skpool.few_shot._cache_adapter import CacheAdapterClassifier
from skpool.few_shot._clustering import (
    TransductivePrototypeClassifier,
    make_laplacian_shot,
    make_transductive_kmeans,
)
from skpool.few_shot._episodic_linear import EpisodicLinear
from skpool.few_shot._inductive import BaseCovarianceClassifier, make_rfs
from skpool.few_shot._information import InformationMaximizationClassifier
from skpool.few_shot._optimal_transport import OptimalTransportClassifier
from skpool.few_shot._prior import estimate_query_prior
from skpool.few_shot._rectification import PrototypeRectification

__all__ = [
    "BaseCovarianceClassifier",
    "CacheAdapterClassifier",
    "EpisodicLinear",
    "InformationMaximizationClassifier",
    "OptimalTransportClassifier",
    "PrototypeRectification",
    "TransductivePrototypeClassifier",
    "estimate_query_prior",
    "make_laplacian_shot",
    "make_rfs",
    "make_transductive_kmeans",
]
