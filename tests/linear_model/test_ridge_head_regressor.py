# SPDX-License-Identifier: BSD-3-Clause
"""The ridge regressor against scikit-learn's Ridge, RidgeCV and Gaussian process."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct
from sklearn.linear_model import Ridge, RidgeCV

from skpool.linear_model import RidgeHeadRegressor


def _data(n: int = 80, d: int = 6, seed: int = 0):
    rng = np.random.default_rng(seed)
    X = 3 + rng.normal(size=(n, d))
    return X, X @ rng.normal(size=(d, 2)) + rng.normal(size=(n, 2)) + [1.0, 20.0]


@pytest.mark.parametrize("alpha", [0.0, 0.1, 30.0])
@pytest.mark.parametrize("shape", [(6, 80), (100, 40)])
def test_weights_are_those_of_ridge(alpha, shape):
    X, Y = _data(d=shape[0], n=shape[1])
    weights = np.random.default_rng(1).uniform(0, 2, size=len(X))
    model = RidgeHeadRegressor(alpha, relative=False).fit(X, Y, weights)
    solver = "lsqr" if alpha == 0 else "auto"
    expected = Ridge(alpha, solver=solver, tol=1e-12).fit(X, Y, weights)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.intercept_, expected.intercept_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-5, atol=1e-6)


def test_one_target_has_one_axis():
    X, Y = _data()
    model = RidgeHeadRegressor(0.5, relative=False).fit(X, Y[:, 0])
    expected = Ridge(0.5).fit(X, Y[:, 0])
    np.testing.assert_allclose(model.coef_, expected.coef_)
    assert model.intercept_ == pytest.approx(expected.intercept_)
    assert model.predict(X).shape == (80,)
    assert model.score(X, Y[:, 0]) == pytest.approx(expected.score(X, Y[:, 0]))


def test_leave_one_out_choice_is_that_of_ridge_cv():
    X, Y = _data(n=20, d=15)
    alphas = np.logspace(-3, 3, 13)
    model = RidgeHeadRegressor("loo", alphas=alphas, relative=False).fit(X, Y)
    expected = RidgeCV(alphas).fit(X, Y)
    assert model.alpha_ == expected.alpha_
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-7)
    for name in ("partial_fit", "forget", "merge", "certify"):
        assert not hasattr(model, name)


def test_scores_of_penalties_are_generalized_cross_validation():
    X, Y = _data()
    alphas = [1e-2, 1.0, 100.0]
    model = RidgeHeadRegressor(alphas=alphas, relative=False).fit(X, Y)
    centred, n = X - X.mean(0), len(X)
    expected = []
    for alpha in alphas:
        hat = 1 / n + centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(6), centred.T)
        expected.append(-n * ((Y - hat @ Y) ** 2).sum() / (n - np.trace(hat)) ** 2)
    np.testing.assert_allclose(model.scores_, expected)
    assert model.alpha_ == alphas[int(np.argmax(expected))]
    np.testing.assert_allclose(model.coef_, Ridge(model.alpha_).fit(X, Y).coef_)


def test_relative_penalty_is_in_mean_eigenvalues():
    X, Y = _data()
    scale = X.var(axis=0).sum() * len(X) / 6
    expected = Ridge(0.3 * scale).fit(X, Y)
    np.testing.assert_allclose(RidgeHeadRegressor(0.3).fit(X, Y).coef_, expected.coef_)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(1, 79), max_size=5, unique=True))
def test_any_order_and_partition_equals_one_fit(seed, cuts):
    X, Y = _data()
    stream = RidgeHeadRegressor()
    for rows in np.split(np.random.default_rng(seed).permutation(len(X)), sorted(cuts)):
        stream.partial_fit(X[rows], Y[rows])
    whole = RidgeHeadRegressor().fit(X, Y)
    assert stream.alpha_ == whole.alpha_
    np.testing.assert_allclose(stream.predict(X), whole.predict(X), rtol=1e-10)


def test_forgetting_and_merging_equal_a_fit_on_the_rest():
    X, Y = _data()
    part, whole = RidgeHeadRegressor().fit(X[:50], Y[:50]), RidgeHeadRegressor().fit(X, Y)
    forgotten = clone(whole).fit(X, Y).forget(X[50:], Y[50:])
    np.testing.assert_allclose(forgotten.predict(X), part.predict(X), rtol=1e-9)
    assert forgotten.certify(X[:50], Y[:50]) < 1e-12 < forgotten.certify(X[1:51], Y[1:51])
    merged = part.merge(RidgeHeadRegressor().fit(X[50:], Y[50:]))
    np.testing.assert_allclose(merged.predict(X), whole.predict(X), rtol=1e-10)


def test_variance_is_that_of_a_gaussian_process():
    # With targets that need no intercept: ridge is the posterior of a linear kernel.
    X, Y = _data()
    X = X - X.mean(axis=0)
    process = GaussianProcessRegressor(DotProduct(0, "fixed"), alpha=2.5, optimizer=None)
    new = np.random.default_rng(1).normal(size=(10, 6))
    deviation = process.fit(X, Y[:, 0]).predict(new, return_std=True)[1]
    model = RidgeHeadRegressor(2.5, relative=False).fit(X, Y)
    leverage = model.predict_variance(new) - 1 / len(X)
    np.testing.assert_allclose(2.5 * leverage, deviation**2, rtol=1e-7)


def test_residual_over_one_minus_variance_is_that_of_a_refit_without_the_row():
    X, Y = _data(n=25)
    model = RidgeHeadRegressor(1.5, relative=False).fit(X, Y)
    left_out = (Y - model.predict(X)) / (1 - model.predict_variance(X))[:, None]
    for i in (0, 11, 24):
        rest = np.arange(25) != i
        refit = Ridge(1.5).fit(X[rest], Y[rest])
        np.testing.assert_allclose(left_out[i], Y[i] - refit.predict(X[i : i + 1])[0], rtol=1e-8)


def test_sigmoid_regresses_logits():
    X, Y = _data()
    shares = expit(Y - Y.mean(0))
    model = RidgeHeadRegressor(0.7, relative=False, link="sigmoid").fit(X, shares)
    expected = expit(Ridge(0.7).fit(X, logit(shares)).predict(X))
    np.testing.assert_allclose(model.predict(X), expected)
    assert ((model.predict(100 * X) >= 0) & (model.predict(100 * X) <= 1)).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        model.partial_fit(X[:2], [[0.5, 0.5], [0.5, 1.0]])


def test_a_large_mean_costs_no_digits():
    X, Y = _data()
    near, far = (RidgeHeadRegressor(0.1).fit(X + shift, Y + shift) for shift in (0.0, 1e6))
    np.testing.assert_allclose(far.predict(X + 1e6) - 1e6, near.predict(X), atol=1e-6)


def test_tensors_are_taken():
    X, Y = _data()
    model = RidgeHeadRegressor(0.1).fit(torch.from_numpy(X), torch.from_numpy(Y))
    np.testing.assert_allclose(model.coef_, RidgeHeadRegressor(0.1).fit(X, Y).coef_)


def test_constant_rows_predict_the_mean():
    _, Y = _data()
    model = RidgeHeadRegressor().fit(np.ones((80, 3)), Y)
    np.testing.assert_allclose(model.predict(np.ones((1, 3)))[0], Y.mean(axis=0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_targets_that_are_not_finite_are_refused_and_change_nothing(bad):
    X, Y = _data()
    model = RidgeHeadRegressor().fit(X, Y)
    before = model.moments_
    with pytest.raises(ValueError, match="y contains"):
        model.partial_fit(X[:2], [[1.0, 2.0], [bad, 0.0]])
    with pytest.raises(ValueError, match="as many targets"):
        model.partial_fit(X[:2], [1.0, 2.0])
    assert model.moments_ is before


def test_another_link_is_not_merged():
    X, Y = _data()
    model = RidgeHeadRegressor().fit(X, expit(Y))
    with pytest.raises(ValueError, match="link='sigmoid'"):
        model.merge(RidgeHeadRegressor(link="sigmoid").fit(X, expit(Y - Y.mean(0))))


@pytest.mark.parametrize("alphas", [[], [-1.0], [np.nan]])
def test_alphas_that_are_no_penalties_are_refused(alphas):
    with pytest.raises(ValueError, match="alphas"):
        RidgeHeadRegressor(alphas=alphas).fit(*_data())


@pytest.mark.parametrize("alpha", ["gcv", "loo", 0.3])
def test_few_rows_are_learned_without_the_square_of_the_width(alpha):
    n, d = 30, 20_000
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(n, d)), rng.normal(size=(n, 2))
    tracemalloc.start()
    model = RidgeHeadRegressor(alpha).fit(X, Y)
    predicted = model.predict(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < d * d * 8 / 10
    penalty = model.alpha_ * ((X - X.mean(axis=0)) ** 2).sum() / d
    expected = Ridge(penalty, solver="svd").fit(X, Y).predict(X)
    np.testing.assert_allclose(predicted, expected, rtol=1e-6, atol=1e-8)
