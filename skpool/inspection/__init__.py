# SPDX-License-Identifier: BSD-3-Clause
"""Inspection: what a person looks at after a search or a fit.

Each display holds plain arrays and draws them; matplotlib is imported when something is drawn.
Nothing here knows of tokens or networks.
"""

from skpool.inspection._pooling_comparison import PoolingComparisonDisplay

__all__ = ["PoolingComparisonDisplay"]
