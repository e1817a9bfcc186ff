# SPDX-License-Identifier: BSD-3-Clause
"""A search over poolings and whitenings costs one pass of the network, fitted poolings included."""

import numpy as np
import pytest
from nets import counting_backbone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skpool.extraction import FeatureExtractor
from skpool.pooling import (
    AttentionPooling,
    BagOfFeaturesPooling,
    CovariancePooling,
    FisherVectorPooling,
    GeMPooling,
    GroupGeMPooling,
    LogSumExpPooling,
    MomentPooling,
    Pooling,
    RMACPooling,
    SpatialPyramidPooling,
    TokenPooling,
    VLADPooling,
)
from skpool.preprocessing import L2Normalizer, Whitening
from skpool.prototypes import NearestClassMeanClassifier

POOLINGS = [
    TokenPooling("mean"),
    TokenPooling(("cls", "mean")),
    Pooling("max"),
    GeMPooling(negative="shift"),
    GroupGeMPooling(2, learn_p=True, max_epochs=2),
    LogSumExpPooling(),
    SpatialPyramidPooling((1, 2)),
    RMACPooling(1),
    MomentPooling(n_components=3),
    CovariancePooling(n_components=4),
    VLADPooling(2),
    FisherVectorPooling(2, pca_dim=3),
    BagOfFeaturesPooling(4, assignment="soft"),
    AttentionPooling("gated", epochs=2, hidden_dim=4),
]
WHITENINGS = [None, L2Normalizer(), Whitening(shrinkage=0.1)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_pooling_and_whitening_of_a_grid_shares_one_pass(tmp_path):
    count = tmp_path / "count"
    X = np.random.default_rng(0).integers(0, 256, size=(24, 16, 16, 3), dtype=np.uint8)
    pipeline = Pipeline(
        [
            ("features", FeatureExtractor(counting_backbone(count))),
            ("pool", TokenPooling()),
            ("whiten", None),
            ("clf", NearestClassMeanClassifier()),
        ]
    )
    grid = {"pool": POOLINGS, "whiten": WHITENINGS}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(X, np.arange(24) % 2)
    assert len(search.cv_results_["params"]) == len(POOLINGS) * len(WHITENINGS) >= 36
    assert count.stat().st_size == len(X)
