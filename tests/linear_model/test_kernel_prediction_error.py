# SPDX-License-Identifier: BSD-3-Clause
"""Posterior variances against scikit-learn's Gaussian processes, with and without a row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, DotProduct

from skpool.linear_model import KernelPredictionErrorClassifier, PredictionErrorClassifier


def _data(n: int = 60, d: int = 4, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, size=n - classes)])
    return rng.normal(size=(n, d)) + rng.normal(size=(classes, d))[y], y


def _posterior_variance(new, rows, alpha, kernel):
    process = GaussianProcessRegressor(kernel, alpha=alpha, optimizer=None)
    return process.fit(rows, np.zeros(len(rows))).predict(new, return_std=True)[1] ** 2


@pytest.mark.parametrize("alpha", [0.01, 1.0])
@pytest.mark.parametrize(
    ("parameters", "kernel"),
    [({"length_scale": 1.7}, RBF(1.7)), ({"kernel": "linear"}, DotProduct(0, "fixed"))],
)
def test_scores_are_posterior_variances_of_a_gaussian_process(alpha, parameters, kernel):
    X, y = _data()
    weights = np.random.default_rng(1).uniform(0.2, 2, size=40)
    clf = KernelPredictionErrorClassifier(alpha, **parameters).fit(X[:40], y[:40], weights)
    scores = clf.class_scores(X)
    for c in range(3):
        own = y[:40] == c
        expected = _posterior_variance(X, X[:40][own], alpha / weights[own], kernel)
        np.testing.assert_allclose(-scores[:, c], expected, rtol=1e-7, atol=1e-9)


def test_linear_kernel_is_that_of_the_moments():
    X, y = _data(n=40, d=50)
    rows = KernelPredictionErrorClassifier(0.5, kernel="linear").fit(X, y)
    moments = PredictionErrorClassifier(0.5).fit(X, y)
    np.testing.assert_allclose(rows.class_scores(X), moments.class_scores(X), rtol=1e-8)


def test_many_random_cosines_come_near_the_rbf_kernel():
    X, y = _data(n=30)
    exact = KernelPredictionErrorClassifier(0.4).fit(X, y).class_scores(X)
    # Inner products of cosines tend to half the kernel.
    wide = PredictionErrorClassifier(
        0.2, kernel="random_features", n_components=1000, activation="cos", bias=True
    )
    np.testing.assert_allclose(2 * wide.fit(X, y).class_scores(X), exact, atol=0.1)


def test_left_out_errors_are_medians_of_refits():
    X, y = _data(n=40)
    clf = KernelPredictionErrorClassifier(0.3, length_scale=2.0).fit(X, y)
    for c in range(3):
        rows = X[y == c]
        refits = [
            _posterior_variance(rows[i : i + 1], np.delete(rows, i, axis=0), 0.3, RBF(2.0))[0]
            for i in range(len(rows))
        ]
        assert clf.left_out_errors_[c] == pytest.approx(np.median(refits), rel=1e-7)


def test_calibrated_scores_are_errors_over_left_out_errors():
    X, y = _data()
    clf = KernelPredictionErrorClassifier(calibrate=True).fit(X, y)
    plain = KernelPredictionErrorClassifier().fit(X, y)
    np.testing.assert_allclose(
        clf.class_scores(X) * plain.left_out_errors_, plain.class_scores(X), rtol=1e-9
    )


def test_without_noise_rows_learned_are_certain_and_strange_rows_are_not():
    X, y = _data()
    clf = KernelPredictionErrorClassifier(1e-10).fit(X, y)
    np.testing.assert_allclose(clf.class_scores(X)[np.arange(60), y], 0, atol=1e-8)
    np.testing.assert_allclose(clf.class_scores(X + 100), -1)


def test_order_of_classes_changes_no_bit():
    X, y = _data(classes=4)
    scores = []
    for order in ((0, 1, 2, 3), (2, 0, 3, 1)):
        stream = KernelPredictionErrorClassifier()
        for label in order:
            stream.partial_fit(X[y == label], y[y == label])
        scores.append(stream.class_scores(X))
    np.testing.assert_array_equal(*scores)
    np.testing.assert_array_equal(
        KernelPredictionErrorClassifier().fit(X, y).class_scores(X), scores[0]
    )


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(1, 59), max_size=4, unique=True))
def test_any_order_and_partition_equals_one_fit(seed, cuts):
    X, y = _data()
    stream = KernelPredictionErrorClassifier(0.1)
    for rows in np.split(np.random.default_rng(seed).permutation(len(X)), sorted(cuts)):
        stream.partial_fit(X[rows], y[rows])
    whole = KernelPredictionErrorClassifier(0.1).fit(X, y)
    np.testing.assert_allclose(stream.class_scores(X), whole.class_scores(X), rtol=1e-8)


def test_forgetting_and_merging_equal_refits():
    X, y = _data()
    base = KernelPredictionErrorClassifier(0.1)
    part, whole = clone(base).fit(X[:40], y[:40]), clone(base).fit(X, y)
    forgotten = clone(base).fit(X, y).forget(X[40:], y[40:])
    np.testing.assert_array_equal(forgotten.class_scores(X), part.class_scores(X))
    merged = part.merge(clone(base).fit(X[40:], y[40:]))
    np.testing.assert_array_equal(merged.class_scores(X), whole.class_scores(X))
    kept = y != 1
    never = clone(base).fit(X[kept], y[kept])
    np.testing.assert_array_equal(whole.forget_class(1).class_scores(X), never.class_scores(X))


def test_rows_that_were_not_learned_are_refused_and_nothing_changes():
    X, y = _data()
    clf = KernelPredictionErrorClassifier().fit(X, y)
    before = clf.class_scores(X)
    twice = np.concatenate([X[:1], X[:1]])
    for rows, labels, weights in (
        (X[:2] + 1e-9, y[:2], None),
        (X[:1], (y[:1] + 1) % 3, None),
        (twice, y[[0, 0]], None),
        (X[:1], y[:1], [2.0]),
    ):
        with pytest.raises(ValueError, match="not held"):
            clf.forget(rows, labels, weights)
    np.testing.assert_array_equal(clf.class_scores(X), before)


def test_median_length_scale_is_that_of_the_first_call():
    X, y = _data()
    clf = KernelPredictionErrorClassifier(length_scale="median").partial_fit(X[:20], y[:20])
    assert clf.length_scale_ == pytest.approx(np.median(pdist(X[:20])))
    clf.partial_fit(10 * X[20:], y[20:])
    assert clf.length_scale_ == pytest.approx(np.median(pdist(X[:20])))
    with pytest.raises(ValueError, match="one kernel"):
        clf.merge(KernelPredictionErrorClassifier(length_scale="median").fit(X, y))
    with pytest.raises(ValueError, match="n_samples=1"):
        clone(clf).fit(X[:1], y[:1])


def test_one_row_per_class_is_enough():
    X = np.array([[0.0, 0.0], [3.0, 0.0]])
    clf = KernelPredictionErrorClassifier(calibrate=True).fit(X, ["a", "b"])
    np.testing.assert_allclose(clf.left_out_errors_, 1.0)
    assert clf.predict([[1.0, 0.0], [2.0, 0.0]]).tolist() == ["a", "b"]
