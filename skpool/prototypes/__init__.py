# SPDX-License-Identifier: BSD-3-Clause
"""Classifiers that keep one or a few vectors per class: one pass, new classes any time."""

from skpool.prototypes._calibrated import CalibratedPrototypeClassifier, calibrate_prototypes
from skpool.prototypes._multi_prototype import MultiPrototypeClassifier
from skpool.prototypes._nearest_class_mean import NearestClassMeanClassifier
from skpool.prototypes._polytopes import fixed_polytope, simplex_etf, simplex_vertices
from skpool.prototypes._simplex import SimplexClassifier
from skpool.prototypes._subclass_clustering import SubclassClustering

__all__ = [
    "CalibratedPrototypeClassifier",
    "MultiPrototypeClassifier",
    "NearestClassMeanClassifier",
    "SimplexClassifier",
    "SubclassClustering",
    "calibrate_prototypes",
    "fixed_polytope",
    "simplex_etf",
    "simplex_vertices",
]
