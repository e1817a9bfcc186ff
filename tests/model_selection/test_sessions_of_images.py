# SPDX-License-Identifier: BSD-3-Clause
"""Sessions of images: the network sees every image once, over the stream and all questions."""

import numpy as np
import pytest
from nets import counting_backbone

from skpool.extraction import FeatureExtractor
from skpool.model_selection import ClassIncrementalSplit, incremental_evaluate
from skpool.pipeline import make_incremental_pipeline
from skpool.pooling import GeMPooling, TokenPooling
from skpool.preprocessing import L2Normalizer, Whitening
from skpool.prototypes import NearestClassMeanClassifier

N_SESSIONS = 10


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.tile(np.arange(20), 6)
    images = rng.integers(0, 100, (20, 16, 16, 3))[y] + rng.integers(0, 60, (120, 16, 16, 3))
    return images.astype(np.uint8), y


def seen(counter):
    """Images that went through the network so far."""
    return counter.stat().st_size


@pytest.mark.parametrize("pooling", [TokenPooling("mean"), GeMPooling(negative="signed")])
@pytest.mark.parametrize("with_store", [False, True])
def test_ten_sessions_cost_one_pass_per_image(pooling, with_store, data, tmp_path):
    images, y = data
    counter = tmp_path / "counter"
    store = tmp_path / "store" if with_store else None
    model = make_incremental_pipeline(
        FeatureExtractor(counting_backbone(counter), store=store),
        pooling,
        L2Normalizer(),
        Whitening(4),
        NearestClassMeanClassifier("euclidean"),
    )
    split = ClassIncrementalSplit(increment=2, class_order="shuffled", test_size=0.34)
    result = incremental_evaluate(model, split, images, y, joint_reference=model)
    assert result.accuracy_matrix.shape == (N_SESSIONS, N_SESSIONS)
    assert result.seen_accuracy[-1] > 3 / 20
    assert seen(counter) == len(images)
    # A whitening that moves ends where that of all sessions is.
    np.testing.assert_array_equal(result.seen_accuracy, result.joint_accuracy)
    incremental_evaluate(model, split, images, y)
    assert seen(counter) == len(images)
