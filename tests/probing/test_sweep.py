# SPDX-License-Identifier: BSD-3-Clause
"""Probes of many rates trained together: each is what it would be alone, and the best is kept."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris, make_classification
from sklearn.preprocessing import StandardScaler

from skpool.probing import LinearProbeSweepClassifier

RATES = [1e-4, 1e-2, 0.1]


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def test_every_rate_is_what_it_would_be_alone(iris):
    together = LinearProbeSweepClassifier(RATES, batch_size=16).fit(*iris)
    for lr, coef, intercept, score in zip(
        RATES, together.coefs_, together.intercepts_, together.scores_, strict=True
    ):
        alone = LinearProbeSweepClassifier([lr], batch_size=16).fit(*iris)
        np.testing.assert_allclose(coef, alone.coef_, atol=1e-10)
        np.testing.assert_allclose(intercept, alone.intercept_, atol=1e-10)
        assert score == alone.scores_[0]


def test_steps_are_those_of_momentum_and_a_cosine_by_hand(iris):
    X, y = iris
    epochs, lr, momentum = 12, 0.05, 0.8
    clf = LinearProbeSweepClassifier(
        [lr, 0.2], epochs=epochs, momentum=momentum, batch_size=1000, validation_fraction=0.2
    )
    # As few epochs as there can be, at a rate of nothing, leave the first weights.
    first = LinearProbeSweepClassifier(
        [1e-300], epochs=1, batch_size=1000, validation_fraction=0.2
    ).fit(X, y)
    clf.fit(X, y)
    seed = int(np.random.RandomState(0).randint(np.iinfo(np.int32).max))
    training, _ = clf._parts(y, seed)
    Z, Y = X[training], np.eye(3)[y[training]]
    W, b = first.coef_.copy(), first.intercept_.copy()
    speed = np.zeros_like(W), np.zeros_like(b)
    for step in range(epochs):
        p = np.exp(Z @ W.T + b)
        G = (p / p.sum(axis=1, keepdims=True) - Y) / len(Z)
        speed = momentum * speed[0] + G.T @ Z, momentum * speed[1] + G.sum(axis=0)
        now = lr * (1 + math.cos(math.pi * step / epochs)) / 2
        W, b = W - now * speed[0], b - now * speed[1]
    np.testing.assert_allclose(clf.coefs_[0], W, atol=1e-8)
    np.testing.assert_allclose(clf.intercepts_[0], b, atol=1e-8)


def test_first_weights_are_equal_and_small(iris):
    clf = LinearProbeSweepClassifier([1e-300, 2e-300], epochs=1).fit(*iris)
    np.testing.assert_array_equal(clf.coefs_[0], clf.coefs_[1])
    assert 0 < abs(clf.coefs_).max() < 0.05
    np.testing.assert_allclose(clf.intercepts_, 0, atol=1e-250)


def test_best_rate_predicts(iris):
    X, y = iris
    clf = LinearProbeSweepClassifier(RATES, batch_size=16).fit(X, y)
    best = int(clf.scores_.argmax())
    assert clf.lr_ == clf.lrs_[best]
    expected = X @ clf.coefs_[best].T + clf.intercepts_[best]
    np.testing.assert_allclose(clf.decision_function(X), expected, atol=1e-10)
    assert clf.score(X, y) > 0.9


def test_scores_are_accuracies_on_rows_kept_back(iris):
    X, y = iris
    clf = LinearProbeSweepClassifier(RATES, validation_fraction=0.2).fit(X, y)
    # Of 30 rows, 10 of every class.
    np.testing.assert_allclose(clf.scores_ * 30, np.round(clf.scores_ * 30), atol=1e-12)
    assert (clf.scores_ <= 1).all()


def test_published_rates_are_thirteen(iris):
    clf = LinearProbeSweepClassifier(epochs=1).fit(*iris)
    assert len(clf.lrs_) == 13
    assert clf.lrs_[0] == pytest.approx(1e-5)
    assert clf.lrs_[-1] == pytest.approx(0.1)
    assert (np.diff(clf.lrs_) > 0).all()


def test_two_classes_are_one_row_of_weights():
    X, y = make_classification(100, 5, random_state=0)
    clf = LinearProbeSweepClassifier(RATES, batch_size=16).fit(X, y)
    assert clf.coef_.shape == (1, 5)
    np.testing.assert_allclose(
        clf.decision_function(X), X @ clf.coef_[0] + clf.intercept_, atol=1e-10
    )
    assert clf.predict_proba(X).shape == (100, 2)


def test_weight_of_nothing_is_absence(iris):
    X, y = iris
    w = np.ones(len(X))
    w[::5] = 0
    options = {"lrs": RATES, "batch_size": 16}
    there = LinearProbeSweepClassifier(**options).fit(X, y, w)
    absent = LinearProbeSweepClassifier(**options).fit(X[w > 0], y[w > 0])
    np.testing.assert_array_equal(there.coefs_, absent.coefs_)


def test_class_weights_are_sample_weights(iris):
    X, y = iris
    X, y = X[20:], y[20:]
    w = len(y) / (3 * np.bincount(y))[y]
    balanced = LinearProbeSweepClassifier(RATES, class_weight="balanced").fit(X, y)
    weighted = LinearProbeSweepClassifier(RATES).fit(X, y, w)
    np.testing.assert_allclose(balanced.coefs_, weighted.coefs_, atol=1e-12)


def test_seed_decides_and_torchs_generator_stays(iris):
    before = torch.get_rng_state()
    one, again, other = (
        LinearProbeSweepClassifier(RATES, random_state=seed).fit(*iris).coefs_ for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert abs(one - other).max() > 0
    assert torch.equal(before, torch.get_rng_state())


def test_class_of_one_sample_chooses_on_the_training_rows():
    X = np.arange(12.0).reshape(6, 2)
    with pytest.warns(UserWarning, match="leaves a class without a row"):
        clf = LinearProbeSweepClassifier(RATES).fit(X, [0, 0, 0, 1, 1, 2])
    assert clf.scores_.shape == (3,)


def test_one_class_is_predicted_always():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = LinearProbeSweepClassifier(RATES).fit(np.eye(4), ["a"] * 4)
    assert clf.predict(np.eye(4)).tolist() == ["a"] * 4


def test_pickle_predicts_the_same(iris):
    X, y = iris
    clf = LinearProbeSweepClassifier(RATES).fit(X, y)
    copy = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(copy.predict_proba(X), clf.predict_proba(X))


@pytest.mark.parametrize("lrs", [[], [0.0], [[0.1]], [np.inf]])
def test_rates_that_are_none_are_refused(iris, lrs):
    with pytest.raises(ValueError, match="lrs="):
        LinearProbeSweepClassifier(lrs).fit(*iris)
