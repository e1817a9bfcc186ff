# SPDX-License-Identifier: BSD-3-Clause
"""Sufficient statistics that add, subtract and merge: the exact core of the package."""

from skpool.statistics._class_moments import ClassMoments
from skpool.statistics._covariance import Covariance, covariance_from_moments
from skpool.statistics._running_moments import RunningMoments

__all__ = ["ClassMoments", "Covariance", "RunningMoments", "covariance_from_moments"]
