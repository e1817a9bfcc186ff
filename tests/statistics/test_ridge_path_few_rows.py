# SPDX-License-Identifier: BSD-3-Clause
"""The path of fewer rows than features against its other form, scikit-learn and refits."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, Ridge

from skpool.statistics import ClassMoments, RidgePath, RunningMoments

ALPHAS = np.logspace(-4, 2, 7)


def _data(n: int = 12, d: int = 30, m: int = 2, seed: int = 0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * rng.uniform(0.5, 3, d) + 2.0
    return X, X @ rng.normal(size=(d, m)) / 5 + rng.normal(size=(n, m)) + 1.0


def _labels(n: int = 20, d: int = 40, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([[0, 1, 2], rng.choice(3, n - 3, p=[0.6, 0.3, 0.1])])
    return rng.normal(size=(n, d)) + 1.5 * np.eye(3, d)[y], y


def _both_forms(X, Y, weights=None, **options):
    """The path by the rows' Gram matrix, and by the features' products: of as many rows as there
    are features, of which most weigh nothing."""
    n, d = X.shape
    weights = np.ones(n) if weights is None else weights
    rng = np.random.default_rng(7)
    junk = rng.normal(size=(d - n, d))
    labels = np.eye(Y.shape[1])[np.zeros(d - n, dtype=int)]
    full = np.vstack([X, junk]), np.vstack([Y, labels]), np.append(weights, np.zeros(d - n))
    dual, primal = RidgePath(**options), RidgePath(**options)
    return dual.fit(X, Y, weights), primal.fit(*full), full


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("scoring", ["gcv", "loo_mse"])
def test_both_forms_give_the_same(intercept, weighted, scoring):
    X, Y = _data()
    weights = np.random.default_rng(1).uniform(0.9, 2, len(X)) if weighted else None
    options = {"alphas": ALPHAS, "fit_intercept": intercept, "scoring": scoring}
    dual, primal, full = _both_forms(X, Y, weights, **options)
    np.testing.assert_allclose(dual.lambdas_, primal.lambdas_, rtol=1e-12)
    np.testing.assert_allclose(dual.scores_, primal.scores_, rtol=1e-6)
    for alpha in ALPHAS:
        for one, other in zip(dual.coef_path(alpha), primal.coef_path(alpha), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-10)
    mine, theirs = dual.loo_predictions(X, Y, weights), primal.loo_predictions(*full)
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(one, other[: len(X)], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("class_weight", ["balanced", {0: 2.0, 2: 0.5}])
def test_both_forms_weigh_classes_alike(class_weight):
    X, y = _labels()
    options = {"alphas": ALPHAS, "class_weight": class_weight}
    dual, primal, _ = _both_forms(X, np.eye(3)[y], **options)
    assert dual.scoring_ == "loo_accuracy"
    np.testing.assert_allclose(dual.scores_, primal.scores_, rtol=1e-9)
    np.testing.assert_allclose(dual.coef_, primal.coef_, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("d", [4, 40])
@pytest.mark.parametrize("class_weight", ["balanced", {0: 2.0, 2: 0.5}])
def test_class_weights_are_weights_of_the_rows(class_weight, d):
    X, y = _labels(d=d)
    factors = len(y) / (3 * np.bincount(y)) if class_weight == "balanced" else [2.0, 1.0, 0.5]
    path = RidgePath([0.7], relative=False, class_weight=class_weight).fit(X, np.eye(3)[y])
    expected = Ridge(alpha=0.7).fit(X, np.eye(3)[y], np.asarray(factors)[y])
    np.testing.assert_allclose(path.coef_, expected.coef_, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(path.intercept_, expected.intercept_, rtol=1e-7)


@pytest.mark.parametrize("d", [4, 40])
@pytest.mark.parametrize("scatter", ["per_class", "shared"])
def test_class_weights_of_moments_are_those_of_rows(scatter, d):
    X, y = _labels(d=d)
    names = np.array(["a", "b", "c"])
    moments = ClassMoments(scatter).update(X, names[y])
    options = {"alphas": ALPHAS, "class_weight": {"a": 2.0, "c": 0.5}}
    rows = RidgePath(ALPHAS, class_weight={0: 2.0, 2: 0.5}).fit(X, np.eye(3)[y])
    path = RidgePath(**options).fit_moments(moments, X, names[y])
    np.testing.assert_allclose(path.scores_, rows.scores_, rtol=1e-9)
    np.testing.assert_allclose(path.coef_, rows.coef_, rtol=1e-6, atol=1e-10)
    if scatter == "per_class":
        alone = RidgePath(**options).fit_moments(moments).coef_path(0.1)[0]
        np.testing.assert_allclose(alone, rows.coef_path(0.1)[0], rtol=1e-6, atol=1e-10)
    else:
        with pytest.raises(ValueError, match="per_class"):
            RidgePath(**options).fit_moments(moments)


def test_class_weights_that_cannot_be_are_refused():
    X, Y = _data()
    with pytest.raises(ValueError, match="one-hot"):
        RidgePath(class_weight="balanced").fit(X, Y)
    with pytest.raises(ValueError, match="class_weight"):
        RidgePath(class_weight="even")
    with pytest.raises(ValueError, match="numbers above 0"):
        RidgePath(class_weight={5: 1.0}).fit(X, np.eye(2)[np.arange(12) % 2])
    with pytest.raises(ValueError, match="numbers above 0"):
        RidgePath(class_weight={0: -1.0}).fit(X, np.eye(2)[np.arange(12) % 2])


@pytest.mark.parametrize("alpha", [1e-6, 1e-2, 1.0, 1e3])
def test_coefficients_equal_scikit_learn(alpha):
    X, Y = _data()
    coef, intercept = RidgePath(relative=False).fit(X, Y).coef_path(alpha)
    expected = Ridge(alpha=alpha, solver="svd").fit(X, Y)
    np.testing.assert_allclose(coef, expected.coef_, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(intercept, expected.intercept_, rtol=1e-7)
    uncentred = RidgePath(relative=False, fit_intercept=False).fit(X, Y)
    kernel = KernelRidge(alpha=alpha, kernel="linear").fit(X, Y)
    new = np.random.default_rng(3).normal(size=(5, X.shape[1]))
    np.testing.assert_allclose(
        new @ uncentred.coef_path(alpha)[0].T, kernel.predict(new), rtol=1e-6
    )


def _refits(X, Y, weights, make):
    """Predictions of every row by a fit without it."""
    out = []
    for i in range(len(X)):
        rest = np.arange(len(X)) != i
        w = None if weights is None else weights[rest]
        out.append(make().fit(X[rest], Y[rest], w).predict(X[i : i + 1])[0])
    return np.array(out)


@settings(deadline=None, max_examples=12)
@given(
    n=st.integers(3, 9),
    seed=st.integers(0, 99),
    weighted=st.booleans(),
    intercept=st.booleans(),
    exponent=st.integers(-9, 2),
)
def test_leave_one_out_equals_refits_however_small_the_penalty(
    n, seed, weighted, intercept, exponent
):
    X, Y = _data(n, 14, seed=seed)
    penalty = 10.0**exponent
    weights = np.random.default_rng(seed).uniform(0.5, 2, n) if weighted else None
    options = {"relative": False, "fit_intercept": intercept, "scoring": "loo_mse"}
    path = RidgePath([penalty], **options).fit(X, Y, weights)
    expected = _refits(X, Y, weights, lambda: Ridge(penalty, fit_intercept=intercept, solver="svd"))
    found = next(path.loo_predictions(X, Y, weights))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    errors = ((Y - expected) ** 2).sum(axis=1)
    assert -path.scores_[0] == pytest.approx(np.average(errors, weights=weights), rel=1e-5)


@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
def test_leave_one_out_without_a_penalty_equals_refits_of_minimum_norm(intercept, twins):
    X, Y = _data()
    X[5:7] = X[3] if twins else X[5:7]
    path = RidgePath([0.0], fit_intercept=intercept, scoring="loo_mse").fit(X, Y)
    expected = _refits(X, Y, None, lambda: LinearRegression(fit_intercept=intercept))
    np.testing.assert_allclose(next(path.loo_predictions(X, Y)), expected, rtol=1e-6, atol=1e-7)
    assert -path.scores_[0] == pytest.approx(((Y - expected) ** 2).sum(axis=1).mean(), rel=1e-6)


@pytest.mark.parametrize("intercept", [True, False])
def test_no_penalty_interpolates_with_the_smallest_coefficients(intercept):
    X, Y = _data()
    path = RidgePath([0.0], fit_intercept=intercept, scoring="gcv").fit(X, Y)
    np.testing.assert_allclose(X @ path.coef_.T + path.intercept_, Y, rtol=1e-9)
    expected = LinearRegression(fit_intercept=intercept).fit(X, Y)
    np.testing.assert_allclose(path.coef_, expected.coef_, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 1e-12, 1e-6])
def test_generalized_cross_validation_has_a_limit(alpha):
    X, Y = _data()
    score = RidgePath([alpha], relative=False, scoring="gcv").fit(X, Y).scores_[0]
    # By the inverse of the centred Gram matrix, which is what is left of n RSS / (n - df)^2.
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    inverse = np.linalg.pinv(X @ X.T, rcond=1e-10)
    expected = len(X) * ((inverse @ Y) ** 2).sum() / np.trace(inverse) ** 2
    assert -score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(12, 30), (60, 5)])
@pytest.mark.parametrize("relative", [True, False])
def test_weights_that_sum_to_one_choose_as_equal_rows(shape, relative):
    n, d = shape
    X, Y = _data(n, d)
    alphas = ALPHAS if relative else ALPHAS / n
    rows = RidgePath(ALPHAS, relative=relative, scoring="gcv").fit(X, Y)
    path = RidgePath(alphas, relative=relative, scoring="gcv").fit(X, Y, np.full(n, 1 / n))
    np.testing.assert_allclose(path.scores_, rows.scores_, rtol=1e-7)
    joined = RunningMoments().update(np.hstack([X, Y]), np.full(n, 1 / n))
    moments = RidgePath(alphas, relative=relative).fit_moments(joined, n_targets=2)
    np.testing.assert_allclose(moments.scores_, rows.scores_, rtol=1e-6)


def test_moments_know_the_limit_too():
    X, y = _labels()
    rows = RidgePath([1e-9], scoring="gcv").fit(X, np.eye(3)[y])
    moments = RidgePath([1e-9]).fit_moments(ClassMoments().update(X, y))
    np.testing.assert_allclose(moments.scores_, rows.scores_, rtol=1e-6)


def test_single_precision_rows_are_left_out_as_exactly():
    X, y = _labels(60, 400)
    X = X.astype(np.float32)
    Y = np.eye(3)[y]
    for form in (X, torch.from_numpy(X)):
        path = RidgePath([1e-6], scoring="loo_mse").fit(form, Y)
        double = RidgePath([1e-6], scoring="loo_mse").fit(X.astype(np.float64), Y)
        np.testing.assert_allclose(path.scores_, double.scores_, rtol=1e-9)
    moments = ClassMoments().update(X, y)
    path = RidgePath([1e-6], scoring="loo_mse").fit_moments(moments, X, y)
    np.testing.assert_allclose(path.scores_, double.scores_, rtol=1e-9)


def test_rows_that_weigh_nothing_change_nothing_and_are_predicted():
    X, Y = _data()
    weights = np.append(np.ones(10), [0.0, 0.0])
    path = RidgePath(ALPHAS, scoring="loo_mse").fit(X, Y, weights)
    alone = RidgePath(ALPHAS, scoring="loo_mse").fit(X[:10], Y[:10])
    np.testing.assert_allclose(path.scores_, alone.scores_, rtol=1e-9)
    for k, found in enumerate(path.loo_predictions(X, Y, weights)):
        coef, intercept = alone.coef_path(float(ALPHAS[k]))
        np.testing.assert_allclose(found[10:], X[10:] @ coef.T + intercept, rtol=1e-8)


def test_some_of_the_rows_are_left_out_as_among_all():
    X, Y = _data()
    path = RidgePath([0.1, 10.0]).fit(X, Y)
    for part, all_of_them in zip(
        path.loo_predictions(X[4:7], Y[4:7]), path.loo_predictions(X, Y), strict=True
    ):
        np.testing.assert_allclose(part, all_of_them[4:7], rtol=1e-8)


def test_one_row_predicts_its_target():
    X, Y = _data(1)
    path = RidgePath(scoring="gcv").fit(X, Y)
    np.testing.assert_array_equal(path.coef_, 0)
    np.testing.assert_allclose(path.intercept_, Y[0])


def test_nothing_as_large_as_the_square_of_the_width_is_built(monkeypatch):
    n, d = 30, 20_000
    X, y = _labels(n, d)
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: sizes.append(len(A)) or eigh(A))
    moments = ClassMoments("diag").update(X, y)
    tracemalloc.start()
    path = RidgePath().fit(X, np.eye(3)[y])
    list(path.loo_predictions(X, np.eye(3)[y]))
    RidgePath(fit_intercept=False).fit(X, np.eye(3)[y])
    RidgePath().fit_moments(moments, X, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < d * d * 8 / 10
    assert len(path.scores_) == 17 and max(sizes) <= n and len(sizes) == 3
