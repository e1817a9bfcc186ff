# SPDX-License-Identifier: BSD-3-Clause
"""Prediction errors against scikit-learn's Gaussian processes, and refits without a row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct

import skpool
from skpool.linear_model import PredictionErrorClassifier
from skpool.preprocessing import RandomFeatures

KERNELS = [{}, {"kernel": "random_features", "n_components": 30, "bias": True}]


def _data(n: int = 60, d: int = 6, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, size=n - classes)])
    X = rng.normal(size=(n, d)) + 2 * rng.normal(size=(classes, d))[y]
    return X / np.linalg.norm(X, axis=1, keepdims=True), y


def _posterior_variance(Z, rows, alpha):
    process = GaussianProcessRegressor(DotProduct(0, "fixed"), alpha=alpha, optimizer=None)
    return process.fit(rows, np.zeros(len(rows))).predict(Z, return_std=True)[1] ** 2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("alpha", [0.01, 1.0])
def test_scores_are_posterior_variances_of_a_gaussian_process(kernel, alpha):
    X, y = _data()
    clf = PredictionErrorClassifier(alpha, **kernel).fit(X[:40], y[:40])
    Z = X
    if kernel:
        Z = RandomFeatures(30, bias=True, random_state=0).fit_transform(X)
    scores = clf.class_scores(X)
    for c in range(3):
        expected = _posterior_variance(Z, Z[:40][y[:40] == c], alpha)
        np.testing.assert_allclose(-scores[:, c], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_order_of_classes_changes_no_bit(kernel):
    X, y = _data(classes=4)
    scores = []
    for order in ((0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0)):
        stream = PredictionErrorClassifier(0.1, **kernel)
        for label in order:
            stream.partial_fit(X[y == label], y[y == label])
        scores.append(stream.class_scores(X))
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])


def test_other_classes_change_no_bit():
    X, y = _data(classes=4)
    stream = PredictionErrorClassifier(0.1).partial_fit(X[y == 2], y[y == 2])
    before = stream.class_scores(X)[:, 0]
    stream.partial_fit(X[y != 2], y[y != 2])
    np.testing.assert_array_equal(stream.class_scores(X)[:, 2], before)


def test_without_noise_rows_learned_are_certain_and_strange_rows_are_not():
    rng = np.random.default_rng(0)
    X, y = np.zeros((12, 10)), np.repeat([0, 1], 6)
    X[:, :8] = rng.normal(size=(12, 8))
    clf = PredictionErrorClassifier(1e-9).fit(X, y)
    own = clf.class_scores(X)[np.arange(12), y]
    np.testing.assert_allclose(own, 0, atol=1e-6)
    strange = np.zeros((2, 10))
    strange[:, 8:] = [[3.0, 0.0], [1.0, 2.0]]
    expected = -(strange**2).sum(axis=1)
    np.testing.assert_allclose(clf.class_scores(strange), expected[:, None] * [1, 1], rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_identical_classes_tie(kernel):
    X, _ = _data()
    clf = PredictionErrorClassifier(0.3, **kernel).fit(np.concatenate([X, X]), [0] * 60 + [1] * 60)
    scores = clf.class_scores(X)
    np.testing.assert_array_equal(scores[:, 0], scores[:, 1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_forgetting_and_merging_equal_refits(kernel):
    X, y = _data()
    base = PredictionErrorClassifier(0.1, **kernel)
    part, whole = clone(base).fit(X[:40], y[:40]), clone(base).fit(X, y)
    forgotten = clone(base).fit(X, y).forget(X[40:], y[40:])
    np.testing.assert_allclose(forgotten.class_scores(X), part.class_scores(X), rtol=1e-7)
    merged = part.merge(clone(base).fit(X[40:], y[40:]))
    np.testing.assert_allclose(merged.class_scores(X), whole.class_scores(X), rtol=1e-8)
    kept = y != 1
    np.testing.assert_allclose(
        whole.forget_class(1).class_scores(X), clone(base).fit(X[kept], y[kept]).class_scores(X)
    )


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(1, 59), max_size=4, unique=True))
def test_any_order_and_partition_equals_one_fit(seed, cuts):
    X, y = _data()
    stream = PredictionErrorClassifier(0.1, calibrate=True)
    for rows in np.split(np.random.default_rng(seed).permutation(len(X)), sorted(cuts)):
        stream.partial_fit(X[rows], y[rows])
    whole = PredictionErrorClassifier(0.1, calibrate=True).fit(X, y)
    np.testing.assert_allclose(stream.class_scores(X), whole.class_scores(X), rtol=1e-8)


def test_left_out_error_equals_refits_where_rows_are_alike():
    # Orthogonal directions, each three times: no row is more influential than another.
    X = np.repeat(1.7 * np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0], 3, axis=0)
    clf = PredictionErrorClassifier(0.4).fit(X, np.zeros(15, dtype=int))
    rest = np.arange(15) != 7
    expected = _posterior_variance(X[7:8], X[rest], 0.4)
    np.testing.assert_allclose(clf.left_out_errors_, expected, rtol=1e-7)


def test_left_out_error_is_near_the_mean_of_refits():
    X, _ = _data(n=80)
    clf = PredictionErrorClassifier(0.2).fit(X, np.zeros(80, dtype=int))
    refits = [_posterior_variance(X[i : i + 1], np.delete(X, i, axis=0), 0.2)[0] for i in range(80)]
    assert clf.left_out_errors_[0] == pytest.approx(np.mean(refits), rel=0.05)


def test_left_out_error_of_a_single_row_is_its_squared_length():
    clf = PredictionErrorClassifier(0.2).fit([[3.0, 4.0]], ["a"])
    np.testing.assert_allclose(clf.left_out_errors_, [25.0], rtol=1e-7)


def test_calibrated_scores_are_errors_over_left_out_errors():
    X, y = _data()
    clf = PredictionErrorClassifier(0.2, calibrate=True).fit(X, y)
    plain = PredictionErrorClassifier(0.2).fit(X, y)
    np.testing.assert_allclose(
        clf.class_scores(X) * clf.left_out_errors_, plain.class_scores(X), rtol=1e-9
    )


def test_calibration_takes_off_the_bias_to_large_classes():
    rng = np.random.default_rng(0)
    spread = np.repeat([[2.0, 1.0], [1.0, 2.0]], 10, axis=1)
    y, t = np.repeat([0, 1], [2000, 100]), np.repeat([0, 1], 300)
    X, Z = rng.normal(size=(2100, 20)) * spread[y], rng.normal(size=(600, 20)) * spread[t]
    plain = PredictionErrorClassifier().fit(X, y)
    calibrated = PredictionErrorClassifier(calibrate=True).fit(X, y)
    assert plain.predict(Z).mean() < 0.05
    assert 0.4 < calibrated.predict(Z).mean() < 0.6
    assert calibrated.score(Z, t) > 0.8


def test_weights_count_like_repeated_rows():
    X, y = _data()
    weights = np.random.default_rng(1).integers(1, 4, size=60)
    repeated = PredictionErrorClassifier(calibrate=True).fit(
        np.repeat(X, weights, axis=0), np.repeat(y, weights)
    )
    weighted = PredictionErrorClassifier(calibrate=True).fit(X, y, weights)
    np.testing.assert_allclose(weighted.class_scores(X), repeated.class_scores(X), rtol=1e-9)


def test_small_weights_never_promise_more_than_no_knowledge():
    X, y = _data()
    clf = PredictionErrorClassifier(0.01).fit(X, y, np.full(60, 0.01))
    np.testing.assert_allclose(clf.left_out_errors_, 1.0)


def test_affine_equals_learning_mapped_rows():
    X, y = _data()
    rng = np.random.default_rng(1)
    A, b = rng.normal(size=(6, 4)), rng.normal(size=4)
    mapped = PredictionErrorClassifier().fit(X, y).affine(A, b)
    expected = PredictionErrorClassifier().fit(X @ A + b, y).class_scores(X @ A + b)
    np.testing.assert_allclose(mapped.class_scores(X @ A + b), expected, rtol=1e-8)
    assert not hasattr(PredictionErrorClassifier(kernel="random_features"), "affine")


def test_class_of_zeros_is_fine():
    X, y = _data()
    X[y == 1] = 0
    clf = PredictionErrorClassifier(calibrate=True).fit(X, y)
    assert np.isfinite(clf.class_scores(X)).all()


def test_another_projection_is_not_merged():
    X, y = _data()
    clf = PredictionErrorClassifier(**KERNELS[1]).fit(X, y)
    with pytest.raises(ValueError, match="one projection"):
        clf.merge(PredictionErrorClassifier(random_state=1, **KERNELS[1]).fit(X, y))


def test_products_above_the_limit_are_refused_with_their_size():
    X, y = _data(d=50)
    with (
        skpool.config_context(max_array_bytes=50_000),
        pytest.raises(ValueError, match="of 50 features of 3 classes take 6e-05 GB"),
    ):
        PredictionErrorClassifier().fit(X, y)
