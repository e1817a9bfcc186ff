# SPDX-License-Identifier: BSD-3-Clause
"""Discriminants: classifiers that follow in closed form from the moments of the classes."""

from skpool.discriminant._gaussian import GaussianClassifier, make_fecam
from skpool.discriminant._linear import LinearDiscriminantClassifier, make_slda

__all__ = [
    "GaussianClassifier",
    "LinearDiscriminantClassifier",
    "make_fecam",
    "make_slda",
]
