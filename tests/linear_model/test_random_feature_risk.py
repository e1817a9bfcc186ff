# SPDX-License-Identifier: BSD-3-Clause
"""Risk formulas against simulated regressions, limits known in closed form, and real penalties."""

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from skpool.linear_model import (
    RandomFeatureRidgeClassifier,
    kernel_risk,
    random_feature_risk,
    suggest_ridge,
)
from skpool.linear_model._random_feature_risk import _limit_kernel
from skpool.preprocessing import RandomFeatures

MODES = np.arange(1, 301)
VALUES, COEFS = MODES**-1.5, MODES**-0.8


def _trial(rng, n, k, ridge, noise):
    """Test error of one regression on k Gaussian features of Gaussian modes; kernel if k is 0."""
    rows, new = rng.normal(size=(n, 300)), rng.normal(size=(2000, 300))
    y = rows @ COEFS + np.sqrt(noise) * rng.normal(size=n)
    maps = np.diag(np.sqrt(VALUES))
    if k:
        maps = maps @ rng.normal(size=(300, k)) / np.sqrt(k)
        model = Ridge(ridge, fit_intercept=False)
    else:
        model = KernelRidge(alpha=ridge)
    predicted = model.fit(rows @ maps, y).predict(new @ maps)
    return ((predicted - new @ COEFS) ** 2).mean() + noise


@pytest.mark.parametrize(
    ("n", "k", "ridge", "noise"),
    [(100, 60, 0.1, 0.5), (60, 100, 0.02, 0.0), (100, 400, 1.0, 0.2), (150, 0, 0.05, 0.3)],
)
def test_risk_is_that_of_simulated_regressions(n, k, ridge, noise):
    rng = np.random.default_rng(0)
    errors = [_trial(rng, n, k, ridge, noise) for _ in range(30)]
    risk = random_feature_risk(
        VALUES, COEFS, n_samples=n, n_components=k or np.inf, ridge=ridge, noise=noise
    )
    assert abs(np.mean(errors) - risk) < 4 * np.std(errors) / np.sqrt(30) + 0.01 * risk


def test_risk_of_unpenalised_features_is_that_of_simulated_regressions():
    rng = np.random.default_rng(0)
    for n, k in ((120, 60), (60, 120)):
        errors = [_trial(rng, n, k, 1e-10, 0.3) for _ in range(30)]
        risk = random_feature_risk(VALUES, COEFS, n_samples=n, n_components=k, ridge=0.0, noise=0.3)
        assert abs(np.mean(errors) - risk) < 4 * np.std(errors) / np.sqrt(30) + 0.02 * risk


def test_no_penalty_is_the_limit_of_small_ones():
    for n, k in ((120, 60), (60, 120), (400, 350), (400, 200)):
        given = {"n_samples": n, "n_components": k, "noise": 0.3}
        limit = random_feature_risk(VALUES, COEFS, ridge=1e-13, **given)
        exact = random_feature_risk(VALUES, COEFS, ridge=0.0, **given)
        assert exact == pytest.approx(limit, rel=1e-4)


def test_many_features_are_the_kernel():
    wide = random_feature_risk(VALUES, COEFS, n_samples=80, n_components=1e8, ridge=0.1, noise=0.2)
    limit = kernel_risk(VALUES, COEFS, n_samples=80, ridge=0.1, noise=0.2)
    assert wide == pytest.approx(limit, rel=1e-6)


def test_many_rows_leave_the_noise():
    risk = kernel_risk(VALUES, COEFS, n_samples=1e9, ridge=1e-3, noise=0.2)
    assert risk == pytest.approx(0.2, rel=1e-3)


def test_a_huge_penalty_learns_nothing():
    risk = random_feature_risk(VALUES, COEFS, n_samples=50, n_components=70, ridge=1e9, noise=0.2)
    assert risk == pytest.approx((COEFS**2).sum() + 0.2, rel=1e-6)


@pytest.mark.parametrize("n", [20, 40, 90, 200])
def test_equal_modes_without_penalty_are_least_squares(n):
    # Of M Gaussian modes: s^2 / (1 - M / n) beyond M rows, and by symmetry before.
    M, noise = 60, 0.3
    coefs = np.full(M, 0.5)
    if n > M:
        expected = noise / (1 - M / n)
    else:
        expected = (coefs**2).sum() * (1 - n / M) + noise / (1 - n / M)
    assert kernel_risk(np.ones(M), coefs, n_samples=n, ridge=0.0, noise=noise) == pytest.approx(
        expected
    )


def test_as_many_features_as_rows_and_no_penalty_diverge():
    risk = random_feature_risk(VALUES, COEFS, n_samples=50, n_components=50, ridge=0.0, noise=0.1)
    assert risk == np.inf


def test_modes_that_the_kernel_lacks_act_like_noise():
    risk = kernel_risk([*VALUES, 0.0], [*COEFS, 0.7], n_samples=50, ridge=0.1, noise=0.1)
    noisy = kernel_risk(VALUES, COEFS, n_samples=50, ridge=0.1, noise=0.1 + 0.49)
    assert risk == pytest.approx(noisy)


def test_at_its_best_penalty_more_rows_and_more_features_are_better():
    def best(n, k):
        return min(
            random_feature_risk(VALUES, COEFS, n_samples=n, n_components=k, ridge=ridge, noise=0.3)
            for ridge in np.logspace(-6, 3, 181)
        )

    sizes = [20, 40, 80, 160, 320]
    assert (np.diff([best(n, 100) for n in sizes]) < 0).all()
    assert (np.diff([best(100, k) for k in sizes]) < 0).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", "erf", "cos", "sign", None])
def test_limit_kernel_is_what_many_features_tend_to(activation, bias):
    X = np.random.default_rng(0).normal(size=(6, 4))
    Z = RandomFeatures(200_000, activation=activation, bias=bias).fit_transform(X)
    errors = np.abs(Z @ Z.T - _limit_kernel(X, activation, bias))
    scale = Z**2 @ np.ones((200_000, 1))
    assert (errors < 0.02 * np.sqrt(scale * scale.T)).all()


def _noisy(n, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 5))
    y = (X[:, 0] * X[:, 1] + 0.5 * X[:, 2] + 0.5 * rng.normal(size=n) > 0).astype(int)
    return X, y


@pytest.mark.parametrize("k", [60, 600])
def test_suggested_penalty_is_near_the_best_one(k):
    X, y = _noisy(300, seed=0)
    Z, t = _noisy(3000, seed=1)

    def error(ridge):
        clf = RandomFeatureRidgeClassifier(k, alpha=ridge, relative=False).fit(X, y)
        return ((clf.class_scores(Z) - np.eye(2)[t]) ** 2).mean()

    best = min(error(ridge) for ridge in np.logspace(-4, 4, 33))
    assert error(suggest_ridge(X, y, k)) < 1.03 * best


def test_suggestion_takes_labels_and_targets_alike():
    X, y = _noisy(200, seed=0)
    one_hot = suggest_ridge(X, np.eye(2)[y], 100)
    assert suggest_ridge(X, y, 100) == pytest.approx(one_hot)
    assert suggest_ridge(X, np.array(["a", "b"])[y], 100) == pytest.approx(one_hot)


def test_suggestion_from_some_of_the_rows_is_near_that_from_all():
    X, y = _noisy(600, seed=0)
    some, whole = suggest_ridge(X, y, 300, max_rows=300), suggest_ridge(X, y, 300)
    assert 0.3 < some / whole < 3


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"coefs": COEFS[1:]}, "one coefficient"),
        ({"eigenvalues": -VALUES}, "at least 0"),
        ({"ridge": -1.0}, "ridge=-1.0"),
        ({"noise": np.nan}, "noise=nan"),
        ({"n_samples": 0}, "n_samples=0"),
        ({"n_components": 0}, "n_components=0"),
    ],
)
def test_impossible_numbers_are_refused(wrong, match):
    given = {"eigenvalues": VALUES, "coefs": COEFS, "n_samples": 9, "n_components": 9, "ridge": 1.0}
    given |= wrong
    with pytest.raises(ValueError, match=match):
        random_feature_risk(given.pop("eigenvalues"), given.pop("coefs"), **given)


def test_suggestion_refuses_what_it_cannot_use():
    X, y = _noisy(20, seed=0)
    with pytest.raises(ValueError, match="activation='tanh'"):
        suggest_ridge(X, y, 10, activation="tanh")
    with pytest.raises(ValueError, match="n_components=0"):
        suggest_ridge(X, y, 0)
    with pytest.raises(ValueError, match="rows that differ"):
        suggest_ridge(np.ones((20, 3)), y, 10, activation=None)
