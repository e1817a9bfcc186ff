# SPDX-License-Identifier: BSD-3-Clause
"""Classifiers that keep one vector per class: one pass, new classes any time, exact forgetting."""

from skpool.prototypes._nearest_class_mean import NearestClassMeanClassifier

__all__ = ["NearestClassMeanClassifier"]
