# SPDX-License-Identifier: BSD-3-Clause
"""Moments of tokens and a ridge behind them, against the steps by hand and the laws they keep."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline

from skpool.linear_model import BlockWeightedRidgeClassifier, RidgeHeadClassifier
from skpool.pooling import MomentPooling
from skpool.probing import make_moment_ridge
from skpool.stores import TokenArray


def equal_means(n=240, n_tokens=60, d=6, seed=0):
    """Samples whose means tell nothing; two features of the second class vary together."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, n_tokens, d))
    x[y == 1, :, 1] = 0.6 * x[y == 1, :, 0] + 0.8 * x[y == 1, :, 1]
    x -= x.mean(1, keepdims=True)
    return x + rng.normal(size=(n, 1, d)), y


def test_covariances_tell_classes_of_equal_means_apart():
    X, y = equal_means()
    by_mean = Pipeline([("mean", MomentPooling((1,))), ("ridge", RidgeHeadClassifier())])
    assert cross_val_score(by_mean, X, y).mean() < 0.6
    assert cross_val_score(make_moment_ridge(6), X, y).mean() > 0.95


def test_steps_are_the_pooling_and_the_ridge_by_hand():
    X, y = equal_means(n=60)
    X = TokenArray.from_array(X, n_prefix_tokens=1)
    pipeline = make_moment_ridge(4, first="both").fit(X, y)
    pooling = MomentPooling(first="both", n_components=4, normalize="sqrtm")
    vectors = pooling.fit_transform(X)
    assert vectors.shape[1] == 12 + 10
    np.testing.assert_allclose(np.linalg.norm(vectors[:, 12:], axis=1), 1.0, rtol=1e-12)
    ridge = BlockWeightedRidgeClassifier(10).fit(vectors, y)
    expected = ridge.decision_function(vectors)
    np.testing.assert_array_equal(pipeline.decision_function(X), expected)


@pytest.mark.parametrize(
    ("cross", "normalize"), [("full", "sqrtm"), ("near", "power"), ("all", "power")]
)
def test_normalisation_fits_the_maps(cross, normalize):
    pipeline = make_moment_ridge(8, cross=cross, n_heads=1 if cross == "full" else 2)
    assert pipeline["moments"].normalize == normalize


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, 36),
        ({"normalize": "power"}, 36),
        ({"n_heads": 2, "cross": "near"}, 16),
        ({"n_heads": 4, "cross": "all", "normalize": "column", "head_norm": "layernorm"}, 24),
        ({"normalize": "column", "center": "scalar"}, 64),
    ],
    ids=str,
)
def test_second_block_is_as_wide_as_the_maps(options, width):
    X, y = equal_means(n=60, d=8)
    pipeline = make_moment_ridge(8, **options).fit(X, y)
    assert pipeline["ridge"].last_block == width
    assert pipeline["ridge"].n_features_in_ == 8 + width


def test_means_alone_decide_when_the_weight_vanishes():
    X, y = equal_means(n=60)
    X[y == 1] += 0.3
    tiny = make_moment_ridge(6, weight=1e-9, alpha=0.1).fit(X, y)
    means = MomentPooling((1,)).fit_transform(X)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    # The penalty counts all features, of which 21 are gone.
    alone = RidgeHeadClassifier(0.1 * 6 / 27).fit(means, y)
    np.testing.assert_allclose(tiny.decision_function(X), alone.decision_function(means), atol=1e-6)


def test_masked_tokens_and_ragged_lists_are_one():
    X, y = equal_means(n=60)
    lengths = np.random.default_rng(1).integers(20, 60, size=60)
    mask = np.arange(60) < lengths[:, None]
    masked = TokenArray.from_array(np.where(mask[..., None], X, np.nan), mask=mask)
    ragged = [x[:k] for x, k in zip(X, lengths, strict=True)]
    a, b = (make_moment_ridge(6).fit(x, y).decision_function(x) for x in (masked, ragged))
    np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e3])
def test_half_precision_of_any_scale_is_learned(scale):
    X, y = equal_means()
    X = (scale * X).astype(np.float16)
    pipeline = make_moment_ridge(6).fit(X[:160], y[:160])
    assert np.isfinite(pipeline.decision_function(X)).all()
    assert pipeline.score(X[160:], y[160:]) > 0.95


def test_copies_and_pickles_decide_alike():
    X, y = equal_means(n=60)
    pipeline = make_moment_ridge(6).fit(X, y)
    expected = pipeline.decision_function(X)
    again = pickle.loads(pickle.dumps(pipeline)).decision_function(X)
    np.testing.assert_array_equal(again, expected)
    np.testing.assert_array_equal(clone(pipeline).fit(X, y).decision_function(X), expected)


def test_folds_side_by_side_are_folds_in_turn():
    X, y = equal_means(n=60)
    one, two = (cross_val_score(make_moment_ridge(6), X, y, cv=3, n_jobs=n) for n in (None, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("n_components", [0, 2.5, "auto", True])
def test_components_that_are_no_number_are_refused(n_components):
    with pytest.raises(ValueError, match="n_components="):
        make_moment_ridge(n_components)


def test_more_components_than_features_are_refused():
    X, y = equal_means(n=10)
    with pytest.raises(ValueError, match="n_components=64 is above the 6 features"):
        make_moment_ridge().fit(X, y)
