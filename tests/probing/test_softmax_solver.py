# SPDX-License-Identifier: BSD-3-Clause
"""The softmax path: its gradient, its minima, and what must not change them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax

from skpool.probing import _softmax_solver
from skpool.probing._softmax_solver import softmax_path
from skpool.probing._softmax_terms import ScaledRows, add_residuals, line_derivatives

C = 4


def problem(n=120, d=6, seed=0, offset=3.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, C, n)
    X = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-1, 1, d) + offset
    X[:, :C] += 1.5 * np.eye(C)[y]
    return torch.from_numpy(X), torch.from_numpy(y)


def solve(X, y, penalties, weights=None, tol=1e-15, **options):
    weights = torch.ones(1, len(X)) if weights is None else weights
    penalties = np.broadcast_to(np.atleast_2d(penalties), (len(weights), np.size(penalties)))
    return softmax_path(X, y, weights, penalties, n_classes=C, tol=tol, **options)


def objective(coef, intercept, X, y, penalty, w=None):
    """The definition, by numpy."""
    w = np.ones(len(X)) if w is None else w
    log_p = log_softmax(X @ coef.T + intercept, axis=1)[np.arange(len(X)), y]
    return -(w * log_p).sum() / w.sum() + penalty / 2 * (coef**2).sum()


def test_objective_is_that_of_the_definition():
    X, y = problem()
    path = solve(X, y, [0.1, 0.001], tol=1e-4)
    for k, penalty in enumerate([0.1, 0.001]):
        expected = objective(path.coef[0, k], path.intercept[0, k], X.numpy(), y.numpy(), penalty)
        np.testing.assert_allclose(path.objective[0, k], expected, rtol=1e-10)


def test_minimum_is_that_of_scipy():
    X, y = problem()
    d, penalty = X.shape[1], 0.01

    def f(theta):
        P = theta.reshape(C, d + 1)
        return objective(P[:, :d], P[:, d], X.numpy(), y.numpy(), penalty)

    found = minimize(f, np.zeros(C * (d + 1)), options={"gtol": 1e-7, "maxiter": 2000})
    path = solve(X, y, penalty)
    assert path.objective[0, 0] <= found.fun + 1e-9
    np.testing.assert_allclose(path.objective[0, 0], found.fun, rtol=1e-6)


def test_gradient_is_that_of_finite_differences():
    X, y = problem()
    w = torch.rand(len(X), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = ScaledRows(X, fit_intercept=True)
    P = torch.randn(C, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(P):
        return add_residuals(rows.scores(P[None], torch.float64)[0], y, w)[0]

    _, residuals = add_residuals(rows.scores(P[None], torch.float64)[0], y, w)
    whole = iter([(slice(0, len(X)), [residuals])])
    gradient = rows.gradients(whole, (1, C, 7), torch.float64)[0]
    for place in [(0, 0), (2, 5), (3, 6)]:
        step = torch.zeros_like(P)
        step[place] = 1e-5
        difference = (loss(P + step) - loss(P - step)) / 2e-5
        assert gradient[place] == pytest.approx(difference, rel=1e-6, abs=1e-8)


def test_line_derivatives_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    Z, D = torch.randn(2, 50, C, dtype=torch.float64, generator=generator)
    w = torch.rand(50, dtype=torch.float64, generator=generator)

    def f(t):
        return float((w * torch.logsumexp(Z + t * D, dim=1)).sum())

    first, second = line_derivatives(Z, D, w, 0.3)
    assert first == pytest.approx((f(0.3 + 1e-4) - f(0.3 - 1e-4)) / 2e-4, rel=1e-6)
    assert second == pytest.approx((f(0.3 + 1e-3) - 2 * f(0.3) + f(0.3 - 1e-3)) / 1e-6, rel=1e-4)


def test_loss_of_sure_rows_keeps_its_digits_in_float32():
    Z = torch.tensor([[0.0, -20.0, -21.0]])
    y, w = torch.tensor([0]), torch.ones(1)
    loss, residuals = add_residuals(Z, y, w)
    others = np.exp(-20.0) + np.exp(-21.0)
    assert loss == pytest.approx(np.log1p(others), rel=1e-5)
    assert float(residuals[0, 0]) == pytest.approx(-others / (1 + others), rel=1e-5)


def test_gradient_vanishes_at_the_solution():
    X, y = problem()
    path = solve(X, y, [0.1, 1e-3], tol=1e-18)
    for k, penalty in enumerate([0.1, 1e-3]):
        coef, intercept = path.coef[0, k], path.intercept[0, k]
        G = np.exp(log_softmax(X.numpy() @ coef.T + intercept, axis=1))
        G[np.arange(len(y)), y] -= 1
        np.testing.assert_allclose(G.T @ X.numpy() / len(X) + penalty * coef, 0, atol=1e-8)
        np.testing.assert_allclose(G.mean(axis=0), 0, atol=1e-8)


def test_path_equals_separate_fits():
    X, y = problem()
    penalties = np.logspace(1, -4, 6)
    path = solve(X, y, penalties)
    for k, penalty in enumerate(penalties):
        alone = solve(X, y, penalty)
        np.testing.assert_allclose(path.objective[0, k], alone.objective[0, 0], rtol=1e-11)
        np.testing.assert_allclose(path.coef[0, k], alone.coef[0, 0], atol=2e-6)


def test_order_of_the_penalties_does_not_matter():
    X, y = problem()
    penalties = np.array([0.1, 1e-3, 1.0, 1e-3])
    there, back = solve(X, y, penalties), solve(X, y, penalties[::-1])
    np.testing.assert_allclose(there.coef, back.coef[:, ::-1], atol=2e-6)


def test_problems_side_by_side_are_those_alone():
    X, y = problem()
    weights = torch.rand(3, len(X), generator=torch.Generator().manual_seed(0)).double()
    together = solve(X, y, [0.1, 0.01], weights)
    for j in range(3):
        alone = solve(X, y, [0.1, 0.01], weights[j : j + 1])
        np.testing.assert_allclose(together.coef[j], alone.coef[0], atol=2e-6)


def test_problems_one_after_the_other_are_those_side_by_side(monkeypatch):
    X, y = problem()
    weights = torch.rand(3, len(X), generator=torch.Generator().manual_seed(0)).double()
    together = solve(X, y, [0.1, 0.01], weights)
    monkeypatch.setattr(_softmax_solver, "get_config", lambda: {"working_memory": 0})
    np.testing.assert_allclose(solve(X, y, [0.1, 0.01], weights).coef, together.coef, atol=2e-6)


def test_weight_of_nothing_is_absence():
    X, y = problem()
    weights = torch.ones(1, len(X))
    weights[0, 100:] = 0
    there, absent = solve(X, y, 0.01, weights), solve(X[:100], y[:100], 0.01)
    np.testing.assert_allclose(there.coef, absent.coef, atol=1e-6)


def test_class_without_weight_leaves_the_others_their_solution():
    X, y = problem()
    weights = (y != 3).double()[None]
    path = solve(X, y, 0.01, weights)
    few = softmax_path(
        X[y != 3],
        y[y != 3],
        torch.ones(1, int((y != 3).sum())),
        np.array([[0.01]]),
        n_classes=3,
        tol=1e-15,
    )
    np.testing.assert_allclose(path.coef[0, 0, :3], few.coef[0, 0], atol=1e-5)
    scores = X[y == 3].numpy() @ path.coef[0, 0].T + path.intercept[0, 0]
    assert (log_softmax(scores, axis=1)[:, 3] < -20).all()


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_rows_in_any_order_give_one_solution(seed):
    X, y = problem(seed=seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(X)))
    np.testing.assert_allclose(
        solve(X[order], y[order], 0.01).coef, solve(X, y, 0.01).coef, atol=2e-6
    )


@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(C)))
def test_classes_in_any_order_give_one_solution(order):
    X, y = problem()
    renamed = solve(X, torch.tensor(order)[y], 0.01)
    np.testing.assert_allclose(renamed.coef[:, :, list(order)], solve(X, y, 0.01).coef, atol=2e-6)


@settings(deadline=None, max_examples=20)
@given(exponent=st.integers(-100, 100))
def test_features_of_any_scale_give_one_objective(exponent):
    X, y = problem(offset=0.0)
    unit = 10.0**exponent
    path = solve(X * unit, y, 0.01 * unit**2)
    np.testing.assert_allclose(path.objective, solve(X, y, 0.01).objective, rtol=1e-8)
    np.testing.assert_allclose(path.coef * unit, solve(X, y, 0.01).coef, atol=2e-6)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_float32_products_reach_the_float64_minimum(monkeypatch, fit_intercept):
    X, y = problem(n=400)
    exact = solve(X, y, [0.1, 1e-3], tol=1e-12, fit_intercept=fit_intercept)
    monkeypatch.setattr(_softmax_solver, "_FEW_PRODUCTS", 0)
    for given_X in (X.float(), X, X.float() + 100):
        if not fit_intercept and given_X[0, 0] > 50:
            continue
        path = solve(given_X, y, [0.1, 1e-3], tol=1e-7, fit_intercept=fit_intercept)
        np.testing.assert_allclose(path.objective, exact.objective, rtol=2e-6)
        fine = solve(given_X, y, [0.1, 1e-3], tol=1e-12, fit_intercept=fit_intercept)
        np.testing.assert_allclose(fine.objective, exact.objective, rtol=1e-5)
        assert fine.converged.all()


def test_float64_follows_float32_where_the_tolerance_asks_for_it(monkeypatch):
    X, y = problem(n=400)
    exact = solve(X, y, 1e-3, tol=1e-16)
    monkeypatch.setattr(_softmax_solver, "_FEW_PRODUCTS", 0)
    np.testing.assert_allclose(solve(X, y, 1e-3, tol=1e-16).coef, exact.coef, atol=1e-7)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), tol=st.sampled_from([1e-3, 1e-5]))
def test_tolerance_is_the_size_of_what_is_left(seed, tol):
    X, y = problem(seed=seed)
    least = solve(X, y, 1e-4, tol=1e-16).objective[0, 0]
    gap = solve(X, y, 1e-4, tol=tol).objective[0, 0] / least - 1
    # Where steps are short, some tens of them are left; stopping by the objective leaves thousands.
    assert -1e-12 < gap < 50 * tol


def test_separable_classes_stop_at_max_iter():
    X = torch.tensor([[-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64)
    path = softmax_path(
        X, torch.arange(4), torch.ones(1, 4), np.array([[1e-90]]), n_classes=4, max_iter=5
    )
    assert not path.converged.any()
    assert path.n_iter[0, 0] == 5
    assert np.isfinite(path.coef).all()


def test_passes_are_those_that_were_made(monkeypatch):
    X, y = problem()
    made = []
    plain = ScaledRows.scores

    def counted(self, P, dtype):
        made.append(len(P))
        return plain(self, P, dtype)

    monkeypatch.setattr(ScaledRows, "scores", counted)
    path = solve(X, y, [1.0, 0.1], tol=1e-6)
    # Each product for scores is followed by one for a gradient.
    assert path.n_passes == sum(made)


def test_curvature_saves_most_of_the_steps(monkeypatch):
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.integers(0, C, 1000))
    X = rng.normal(size=(1000, 48)) @ (rng.normal(size=(48, 48)) * np.logspace(0, -3, 48)[:, None])
    X = torch.from_numpy(X)
    X[:, :C] += torch.eye(C, dtype=X.dtype)[y]
    with_model = solve(X, y, 1e-4, tol=1e-8).n_iter[0, 0]
    monkeypatch.setattr(
        _softmax_solver.Curvature, "divide", lambda self, G, penalty: G / self.D.max()
    )
    assert with_model < 0.5 * solve(X, y, 1e-4, tol=1e-8).n_iter[0, 0]
