# SPDX-License-Identifier: BSD-3-Clause
"""The path, its leave-one-out errors and its scores against scikit-learn and against refits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV

from skpool.statistics import ClassMoments, RidgePath

ALPHAS = np.logspace(-3, 3, 7)


def _data(n: int = 40, d: int = 5, m: int = 3, seed: int = 0, offset: float = 3.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.arange(1, d + 1) + offset
    return X, X @ rng.normal(size=(d, m)) + rng.normal(size=(n, m)) + 1.0


def _labels(n: int = 60, d: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, size=n)
    return rng.normal(size=(n, d)) + 2 * np.eye(3, d)[y], y


@pytest.mark.parametrize("shape", [(40, 5), (6, 20)])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_coefficients_equal_ridge(shape, alpha):
    X, Y = _data(*shape)
    coef, intercept = RidgePath(ALPHAS, relative=False).fit(X, Y).coef_path(alpha)
    expected = Ridge(alpha=alpha).fit(X, Y)
    np.testing.assert_allclose(coef, expected.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(intercept, expected.intercept_, rtol=1e-7, atol=1e-8)


def test_coefficients_without_intercept_equal_ridge():
    X, Y = _data()
    path = RidgePath([2.0], relative=False, fit_intercept=False).fit(X, Y)
    expected = Ridge(alpha=2.0, fit_intercept=False).fit(X, Y)
    np.testing.assert_allclose(path.coef_, expected.coef_, rtol=1e-9)
    np.testing.assert_array_equal(path.intercept_, 0)


@pytest.mark.parametrize("shape", [(40, 5), (6, 20)])
def test_weights_equal_ridge_with_sample_weight(shape):
    X, Y = _data(*shape)
    weights = np.random.default_rng(1).uniform(0.2, 3, size=len(X))
    path = RidgePath([0.7], relative=False).fit(X, Y, weights)
    expected = Ridge(alpha=0.7).fit(X, Y, weights)
    np.testing.assert_allclose(path.coef_, expected.coef_, rtol=1e-7)


def _refits(X, Y, penalty, weights=None, fit_intercept=True):
    """Predictions of every row by a fit without it."""
    out = []
    for i in range(len(X)):
        rest = np.arange(len(X)) != i
        w = None if weights is None else weights[rest]
        model = Ridge(alpha=penalty, fit_intercept=fit_intercept).fit(X[rest], Y[rest], w)
        out.append(model.predict(X[i : i + 1])[0])
    return np.array(out)


@settings(deadline=None, max_examples=8)
@given(
    n=st.integers(4, 15),
    d=st.integers(1, 12),
    seed=st.integers(0, 99),
    weighted=st.booleans(),
    intercept=st.booleans(),
)
def test_leave_one_out_predictions_equal_refits(n, d, seed, weighted, intercept):
    X, Y = _data(n, d, 2, seed)
    weights = np.random.default_rng(seed).uniform(0.5, 2, size=n) if weighted else None
    path = RidgePath([0.5, 5.0], relative=False, fit_intercept=intercept).fit(X, Y, weights)
    for penalty, found in zip((0.5, 5.0), path.loo_predictions(X, Y, weights), strict=True):
        expected = _refits(X, Y, penalty, weights, intercept)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_chosen_penalty_and_errors_equal_ridgecv():
    X, Y = _data(50, 6)
    path = RidgePath(ALPHAS, relative=False).fit(X, Y)
    expected = RidgeCV(ALPHAS, store_cv_results=True).fit(X, Y)
    errors = expected.cv_results_.mean(axis=(0, 1))
    np.testing.assert_allclose(-path.scores_ / Y.shape[1], errors, rtol=1e-7)
    assert path.alpha_ == expected.alpha_


def test_relative_penalty_is_a_share_of_the_mean_eigenvalue():
    X, Y = _data()
    path = RidgePath([0.1]).fit(X, Y)
    mean_eigenvalue = ((X - X.mean(0)) ** 2).sum() / X.shape[1]
    assert path.lambdas_[0] == pytest.approx(0.1 * mean_eigenvalue)
    np.testing.assert_allclose(RidgePath([0.1]).fit(10 * X, Y).coef_, path.coef_ / 10)


def test_accuracy_of_leaving_one_out_equals_refits():
    X, y = _labels()
    Y = np.eye(3)[y]
    path = RidgePath(ALPHAS, relative=False).fit(X, Y)
    assert path.scoring_ == "loo_accuracy"
    expected = [(_refits(X, Y, penalty).argmax(1) == y).mean() for penalty in ALPHAS]
    np.testing.assert_allclose(path.scores_, expected)


def test_equal_scores_go_to_the_larger_penalty():
    X = np.array([[-3.0], [-2.5], [2.5], [3.0]])
    path = RidgePath([1e-3, 1e-2, 1e-1], relative=False).fit(X, np.eye(2)[[0, 0, 1, 1]])
    np.testing.assert_array_equal(path.scores_, 1)
    assert path.alpha_ == 0.1


@pytest.mark.parametrize("intercept", [True, False])
def test_generalized_cross_validation_by_its_definition(intercept):
    X, Y = _data(30, 4)
    path = RidgePath(ALPHAS, relative=False, scoring="gcv", fit_intercept=intercept).fit(X, Y)
    for score, penalty in zip(path.scores_, ALPHAS, strict=True):
        centred = X - X.mean(0) if intercept else X
        hat = centred @ np.linalg.inv(centred.T @ centred + penalty * np.eye(4)) @ centred.T
        hat += intercept / len(X)
        rest = ((Y - hat @ Y) ** 2).sum()
        expected = len(X) * rest / (len(X) - np.trace(hat)) ** 2
        assert -score == pytest.approx(expected, rel=1e-9)


def test_moments_of_classes_give_what_one_hot_rows_give():
    X, y = _labels()
    moments = ClassMoments().update(X, y)
    rows = RidgePath(ALPHAS, scoring="gcv").fit(X, np.eye(3)[y])
    path = RidgePath(ALPHAS).fit_moments(moments)
    assert path.scoring_ == "gcv"
    np.testing.assert_allclose(path.scores_, rows.scores_, rtol=1e-9)
    np.testing.assert_allclose(path.coef_, rows.coef_, rtol=1e-8)
    np.testing.assert_allclose(path.intercept_, rows.intercept_, rtol=1e-8)


@pytest.mark.parametrize("scoring", ["loo_accuracy", "loo_mse"])
def test_moments_with_rows_are_scored_as_rows_are(scoring):
    X, y = _labels()
    path = RidgePath(ALPHAS, scoring=scoring).fit_moments(ClassMoments().update(X, y), X, y)
    rows = RidgePath(ALPHAS, scoring=scoring).fit(X, np.eye(3)[y])
    np.testing.assert_allclose(path.scores_, rows.scores_, rtol=1e-9)


def test_merged_halves_choose_what_the_whole_chooses():
    X, y = _labels(80)
    halves = ClassMoments().update(X[:30], y[:30]) + ClassMoments().update(X[30:], y[30:])
    whole = RidgePath().fit_moments(ClassMoments().update(X, y))
    merged = RidgePath().fit_moments(halves)
    assert merged.alpha_ == whole.alpha_
    np.testing.assert_allclose(merged.scores_, whole.scores_, rtol=1e-10)


def test_huge_penalty_predicts_the_mean_target():
    X, Y = _data()
    coef, intercept = RidgePath(relative=False).fit(X, Y).coef_path(1e14)
    np.testing.assert_allclose(coef, 0, atol=1e-9)
    np.testing.assert_allclose(intercept, Y.mean(0), rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 20), (40, 4)])
def test_no_penalty_is_least_squares_of_minimum_norm(shape):
    X, Y = _data(*shape)
    coef, intercept = RidgePath([0.0]).fit(X, Y).coef_path(0.0)
    expected = LinearRegression().fit(X, Y)
    np.testing.assert_allclose(coef, expected.coef_, rtol=1e-6, atol=1e-8)
    if shape[0] <= shape[1]:
        np.testing.assert_allclose(X @ coef.T + intercept, Y, rtol=1e-6)


def test_row_that_alone_spans_a_direction_is_nan_and_not_scored():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=20), np.eye(20)[0]])
    Y = X[:, :1] + rng.normal(size=(20, 1))
    with pytest.warns(UserWarning, match="span a direction alone"):
        path = RidgePath([0.0], relative=False, scoring="loo_mse").fit(X, Y)
    found = next(path.loo_predictions(X, Y))
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1:]).all()
    np.testing.assert_allclose(path.scores_[0], -((found[1:] - Y[1:]) ** 2).mean(), rtol=1e-9)


def test_single_precision_and_tensors_agree_with_double():
    X, y = _labels(200, 6, seed=3)
    Y = np.eye(3)[y]
    double = RidgePath().fit(X, Y)
    for form in (X.astype(np.float32), torch.from_numpy(X), torch.from_numpy(X).half()):
        path = RidgePath().fit(form, Y)
        np.testing.assert_allclose(path.scores_, double.scores_, atol=0.011)
    single = RidgePath([0.1]).fit(X.astype(np.float32), Y)
    np.testing.assert_allclose(single.coef_, RidgePath([0.1]).fit(X, Y).coef_, atol=1e-5)


def test_a_large_mean_costs_no_digits():
    X, Y = _data(60, 5, offset=0.0)
    near = RidgePath([0.1]).fit(X, Y)
    far = RidgePath([0.1]).fit(X + 1e5, Y)
    np.testing.assert_allclose(far.coef_, near.coef_, rtol=1e-6)
    np.testing.assert_allclose(far.scores_, near.scores_, rtol=1e-6)


def test_constant_target_gets_no_weights():
    X, Y = _data()
    Y[:, 1] = 4.0
    path = RidgePath().fit(X, Y)
    np.testing.assert_allclose(path.coef_[1], 0, atol=1e-12)
    assert path.intercept_[1] == pytest.approx(4.0)


@pytest.mark.parametrize(
    "how, match",
    [
        ({"alphas": []}, "alphas"),
        ({"alphas": [-1.0]}, "alphas"),
        ({"alphas": "many"}, "alphas"),
    ],
)
def test_bad_parameters_are_refused(how, match):
    with pytest.raises(ValueError, match=match):
        RidgePath(**how).fit(*_data())


def test_other_bad_input_is_refused():
    X, Y = _data()
    with pytest.raises(ValueError, match="scoring"):
        RidgePath(scoring="accuracy")
    with pytest.raises(ValueError, match="Y"):
        RidgePath().fit(X, np.full_like(Y, np.nan))
    with pytest.raises(ValueError, match="one row of targets"):
        RidgePath().fit(X, Y[:-1])
    Xc, y = _labels()
    moments = ClassMoments().update(Xc, y)
    with pytest.raises(ValueError, match="needs the rows"):
        RidgePath(scoring="loo_mse").fit_moments(moments)
    with pytest.raises(ValueError, match="fit_intercept"):
        RidgePath(fit_intercept=False).fit_moments(moments)
    with pytest.raises(ValueError, match="products between features"):
        RidgePath().fit_moments(ClassMoments("diag").update(Xc, y))
    with pytest.raises(ValueError, match="alpha"):
        RidgePath().fit(X, Y).coef_path(-1.0)
