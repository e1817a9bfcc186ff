# SPDX-License-Identifier: BSD-3-Clause
"""Linear heads in closed form: ridge on rows or random features, prediction errors, and risks."""

from skpool.linear_model._block_weighted_ridge import BlockWeightedRidgeClassifier
from skpool.linear_model._kernel_prediction_error import KernelPredictionErrorClassifier
from skpool.linear_model._prediction_error import PredictionErrorClassifier
from skpool.linear_model._prediction_error_network import PredictionErrorNetworkClassifier
from skpool.linear_model._random_feature_ridge import RandomFeatureRidgeClassifier
from skpool.linear_model._random_feature_risk import (
    kernel_risk,
    random_feature_risk,
    suggest_ridge,
)
from skpool.linear_model._ridge_head import RidgeHeadClassifier
from skpool.linear_model._ridge_head_regressor import RidgeHeadRegressor

__all__ = [
    "BlockWeightedRidgeClassifier",
    "KernelPredictionErrorClassifier",
    "PredictionErrorClassifier",
    "PredictionErrorNetworkClassifier",
    "RandomFeatureRidgeClassifier",
    "RidgeHeadClassifier",
    "RidgeHeadRegressor",
    "kernel_risk",
    "random_feature_risk",
    "suggest_ridge",
]
