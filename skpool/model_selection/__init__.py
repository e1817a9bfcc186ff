# SPDX-License-Identifier: BSD-3-Clause
"""Searches and protocols: what decides which samples, which parameters, and in which order."""

from skpool.model_selection._moments import cross_val_from_moments
from skpool.model_selection._prefetch import Prefetched, prefetch

__all__ = ["Prefetched", "cross_val_from_moments", "prefetch"]
