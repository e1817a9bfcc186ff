# SPDX-License-Identifier: BSD-3-Clause
"""The ridge on two weighted blocks against scikit-learn and plain formulas."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.utils._param_validation import InvalidParameterError

from skpool.linear_model import BlockWeightedRidgeClassifier, RidgeHeadClassifier

N, D, LAST = 90, 10, 4


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.array(["a", "b", "c"])[np.arange(N) % 3]
    X = rng.normal(size=(N, D))
    X[:, 0] += y == "a"
    X[:, -1] += 0.3 * (y == "b")
    X[:, -LAST:] *= 0.2
    return X, y


def weighted(X, g):
    return X * np.r_[np.ones(D - LAST), np.full(LAST, g)]


def gcv(X, y, penalty):
    """Generalized cross-validation from the hat matrix."""
    Y = (y[:, None] == np.unique(y)).astype(float)
    X, Y = X - X.mean(0), Y - Y.mean(0)
    hat = X @ np.linalg.solve(X.T @ X + penalty * np.eye(X.shape[1]), X.T)
    n = len(X)
    return n * np.square(Y - hat @ Y).sum() / (n - 1 - np.trace(hat)) ** 2


@pytest.mark.parametrize("g", [0.3, 1.0, 5.0])
def test_given_numbers_are_the_ridge_of_scikit_learn_on_weighted_rows(data, g):
    X, y = data
    ours = BlockWeightedRidgeClassifier(LAST, weight=g, alpha=2.0, relative=False).fit(X, y)
    theirs = Ridge(2.0).fit(weighted(X, g), (y[:, None] == ours.classes_).astype(float))
    np.testing.assert_allclose(ours.class_scores(X), theirs.predict(weighted(X, g)), atol=1e-10)
    # For rows as they came.
    np.testing.assert_allclose(X @ ours.coef_.T + ours.intercept_, ours.class_scores(X), atol=1e-10)
    assert ours.weight_ == g and ours.weight_scores_ is None


def test_weight_is_another_penalty_of_the_second_block(data):
    X, y = data
    g, penalty = 3.0, 2.0
    ours = BlockWeightedRidgeClassifier(LAST, weight=g, alpha=penalty, relative=False).fit(X, y)
    Y = (y[:, None] == ours.classes_).astype(float)
    Xc = X - X.mean(0)
    penalties = np.r_[np.full(D - LAST, penalty), np.full(LAST, penalty / g**2)]
    expected = np.linalg.solve(Xc.T @ Xc + np.diag(penalties), Xc.T @ Y).T
    np.testing.assert_allclose(ours.coef_, expected, atol=1e-11)


def test_weight_and_penalty_have_the_smallest_error_of_the_grid(data):
    X, y = data
    weights, alphas = np.array([0.1, 1.0, 3.0, 9.0]), np.array([1e-3, 0.1, 1.0])
    ours = BlockWeightedRidgeClassifier(LAST, weights=weights[::-1], alphas=alphas).fit(X, y)
    errors = np.empty((len(weights), len(alphas)))
    for i, g in enumerate(weights):
        Z = weighted(X, g)
        scale = np.square(Z - Z.mean(0)).sum() / D
        errors[i] = [gcv(Z, y, alpha * scale) for alpha in alphas]
    i, j = np.unravel_index(errors.argmin(), errors.shape)
    assert (ours.weight_, ours.alpha_) == (weights[i], alphas[j])
    np.testing.assert_allclose(ours.weight_scores_, -errors.min(axis=1) / 3, rtol=1e-9)
    np.testing.assert_allclose(ours.scores_, -errors[i], rtol=1e-9)


def test_one_block_is_the_ridge_head(data):
    X, y = data
    one, head = BlockWeightedRidgeClassifier().fit(X, y), RidgeHeadClassifier().fit(X, y)
    np.testing.assert_allclose(one.class_scores(X), head.class_scores(X), rtol=1e-9)
    assert one.weight_scores_ is None and one.alpha_ == head.alpha_


def test_leverages_are_those_of_weighted_rows(data):
    X, y = data
    ours = BlockWeightedRidgeClassifier(LAST, weight=3.0, alpha=0.1).fit(X, y)
    head = RidgeHeadClassifier(0.1).fit(weighted(X, 3.0), y)
    expected = head.predict_variance(weighted(X, 3.0))
    np.testing.assert_allclose(ours.predict_variance(X), expected, rtol=1e-9)
    np.testing.assert_allclose(
        ours.predict_proba(X), head.predict_proba(weighted(X, 3.0)), rtol=1e-9
    )


def test_parts_and_forgetting_choose_as_one_fit(data):
    X, y = data
    whole = BlockWeightedRidgeClassifier(LAST).fit(X[:60], y[:60])
    parts = BlockWeightedRidgeClassifier(LAST)
    for part in (slice(60, 90), slice(0, 20), slice(20, 60)):
        parts.partial_fit(X[part], y[part])
    parts.forget(X[60:], y[60:])
    assert (parts.weight_, parts.alpha_) == (whole.weight_, whole.alpha_)
    np.testing.assert_allclose(parts.class_scores(X), whole.class_scores(X), atol=1e-9)


def test_block_without_a_first_one_is_refused(data):
    X, y = data
    with pytest.raises(ValueError, match=r"last_block=10 leaves nothing .* n_features=10"):
        BlockWeightedRidgeClassifier(D).fit(X, y)


@pytest.mark.parametrize("weights", [[], [0.0, 1.0], [np.nan], [-1.0]])
def test_weights_that_are_none_are_refused(data, weights):
    with pytest.raises(ValueError, match="weights="):
        BlockWeightedRidgeClassifier(LAST, weights=weights).fit(*data)


@pytest.mark.parametrize(
    "parameters",
    [{"weight": 0.0}, {"weight": "best"}, {"alpha": "loo"}, {"last_block": 0}],
    ids=str,
)
def test_other_options_are_refused(data, parameters):
    with pytest.raises(InvalidParameterError):
        BlockWeightedRidgeClassifier(**parameters).fit(*data)
