# SPDX-License-Identifier: BSD-3-Clause
"""Linear heads in closed form: ridge regression on one-hot targets, exact on streams."""

from skpool.linear_model._ridge_head import RidgeHeadClassifier

__all__ = ["RidgeHeadClassifier"]
