# SPDX-License-Identifier: BSD-3-Clause
"""Sufficient statistics that add, subtract and merge: the exact core of the package."""

from skpool.statistics._class_covariances import (
    class_covariances,
    class_variances,
)
from skpool.statistics._class_distances import ClassDistances, class_distances
from skpool.statistics._class_moments import ClassMoments
from skpool.statistics._combining import largest_difference, merge_all
from skpool.statistics._covariance import Covariance, covariance_from_moments
from skpool.statistics._folds import (
    FoldMoments,
    fold_indices,
    fold_moments,
    ridge_fold_errors,
)
from skpool.statistics._ridge_path import RidgePath
from skpool.statistics._running_moments import RunningMoments
from skpool.statistics._shards import ShardedMoments
from skpool.statistics._symmetric_factor import SymmetricFactor, symmetric_eigen

__all__ = [
    "ClassDistances",
    "ClassMoments",
    "Covariance",
    "FoldMoments",
    "RidgePath",
    "RunningMoments",
    "ShardedMoments",
    "SymmetricFactor",
    "class_covariances",
    "class_distances",
    "class_variances",
    "covariance_from_moments",
    "fold_indices",
    "fold_moments",
    "largest_difference",
    "merge_all",
    "ridge_fold_errors",
    "symmetric_eigen",
]
