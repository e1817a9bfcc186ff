# SPDX-License-Identifier: BSD-3-Clause
"""Transport plans against Sinkhorn's iterations, and the epochs of PT-MAP in NumPy."""

import numpy as np
import pytest
import torch
from few_shot_episodes import draw_episode, labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from skpool.few_shot import OptimalTransportClassifier
from skpool.few_shot._kernels import transport_plan


def sinkhorn(costs, totals, n_iter=20_000):
    """Rows (classes) and columns (queries) scaled in turn, until nothing changes."""
    kernel = np.exp(-(costs - costs.min(axis=0)))
    u = np.ones(costs.shape[1])
    for _ in range(n_iter):
        v = totals / (kernel @ u)
        before, u = u, 1 / (v @ kernel)
        if np.abs(u / before - 1).max() < 1e-15:
            break
    return v[:, None] * kernel * u


def plan_of(costs, totals, **options):
    costs, totals = torch.from_numpy(costs)[None], torch.from_numpy(totals)[None]
    weights = torch.ones_like(costs[:, :1])
    return transport_plan(costs, totals, weights=weights, **options)[0][0].numpy()


problems = given(
    seed=st.integers(0, 10_000),
    n_way=st.integers(2, 6),
    n=st.integers(6, 30),
    scale=st.floats(0.1, 15),
)


def problem(seed, n_way, n, scale):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(n_way, 2.0)) + 1e-2
    return scale * rng.random((n_way, n)), n * shares / shares.sum()


@settings(deadline=None, max_examples=60)
@problems
def test_plan_is_what_sinkhorn_converges_to(seed, n_way, n, scale):
    costs, totals = problem(seed, n_way, n, scale)
    found = plan_of(costs, totals, tol=1e-15)
    np.testing.assert_allclose(found, sinkhorn(costs, totals), atol=1e-10)


@settings(deadline=None, max_examples=60)
@problems
def test_plan_has_the_sums_asked_for_at_any_cost(seed, n_way, n, scale):
    costs, totals = problem(seed, n_way, n, 40 * scale)
    found = plan_of(costs, totals, tol=1e-9)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), totals, atol=1e-9 * n)


def test_plan_equals_that_of_pot():
    ot = pytest.importorskip("ot")
    costs, totals = problem(0, 5, 40, 8.0)
    desired = ot.sinkhorn(totals, np.ones(40), costs, 1.0, stopThr=1e-14, numItermax=100_000)
    np.testing.assert_allclose(plan_of(costs, totals, tol=1e-14), desired, atol=1e-9)


def test_start_does_not_change_the_plan():
    costs, totals = problem(1, 4, 20, 8.0)
    start = torch.tensor([[3.0, -2.0, 0.0, 1.0]], dtype=torch.float64)
    found = plan_of(costs, totals, tol=1e-14, start=start)
    np.testing.assert_allclose(found, plan_of(costs, totals, tol=1e-14), atol=1e-10)


def unit(X):
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def pt_map(Xs, ys, Xq, *, power, lam, step, n_epochs, plan, center):
    """The epochs of the paper; `plan(distances, state)` shares out the queries."""
    Xs, Xq = (unit((X + 1e-6) ** power) for X in (Xs, Xq))
    if center:
        Xs, Xq = (unit(X - X.mean(axis=0)) for X in (Xs, Xq))
    onehot = np.eye(ys.max() + 1)[ys]
    means = np.array([Xs[ys == k].mean(axis=0) for k in range(onehot.shape[1])])
    state = {}

    def share():
        squares = ((Xq[:, None] - means[None]) ** 2).sum(axis=2)
        return plan(lam * squares, state)

    for _ in range(n_epochs):
        P = share()
        target = (onehot.T @ Xs + P.T @ Xq) / (onehot.sum(axis=0) + P.sum(axis=0))[:, None]
        means = means + step * (target - means)
    return share()


def uniform(costs, state):
    n, n_way = costs.shape
    return sinkhorn(costs.T, np.full(n_way, n / n_way)).T


def estimated(costs, state):
    pi = state.get("pi", np.full(costs.shape[1], 1 / costs.shape[1]))
    P = softmax(np.log(pi) - costs, axis=1)
    state["pi"] = (P.sum(axis=0) + 2) / (len(P) + 2 * P.shape[1])
    return P


def free(costs, state):
    return softmax(-costs, axis=1)


@pytest.mark.parametrize("center", ["separate", None])
@pytest.mark.parametrize(
    ("marginals", "plan"), [("uniform", uniform), ("auto", estimated), (None, free)]
)
def test_equals_the_epochs_of_the_paper(marginals, plan, center):
    Xs, ys, Xq, _ = draw_episode(1, n_query=15, d=6)
    Xs, Xq = np.abs(Xs), np.abs(Xq)
    model = OptimalTransportClassifier(
        regularization=12.0, n_epochs=7, center=center, marginals=marginals, tol=1e-14
    )
    found = model.fit(Xs, ys).predict_proba_transductive(Xq)
    options = {"power": 0.5, "lam": 12.0, "step": 0.2, "n_epochs": 7, "center": center}
    np.testing.assert_allclose(found, pt_map(Xs, ys, Xq, plan=plan, **options), atol=1e-9)


def test_known_equal_shares_are_the_uniform_ones():
    X, y = labelled(draw_episode(2))
    named = OptimalTransportClassifier(1.0, marginals="uniform").fit(X, y)
    known = OptimalTransportClassifier(1.0, marginals=[1, 1, 1]).fit(X, y)
    np.testing.assert_array_equal(known.label_distributions_, named.label_distributions_)


def test_uniform_shares_give_every_class_as_many_queries():
    X, y = labelled(draw_episode(3, n_query=30, shares=[0.8, 0.1, 0.1]))
    model = OptimalTransportClassifier(1.0, marginals="uniform", tol=1e-12).fit(X, y)
    np.testing.assert_allclose(model.label_distributions_[y == -1].sum(axis=0), 10, atol=1e-6)


def test_strong_regularisation_assigns_hard():
    Xs, ys, Xq, _ = draw_episode(4)
    model = OptimalTransportClassifier(1.0, regularization=1e6, n_epochs=0, marginals=None)
    means = np.array([unit(Xs)[ys == k].mean(axis=0) for k in range(3)])
    nearest = ((unit(Xq)[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    found = model.fit(Xs, ys).predict_proba_transductive(Xq)
    np.testing.assert_allclose(found, np.eye(3)[nearest], atol=1e-6)


def test_estimated_shares_stand_unequal_queries_that_uniform_ones_do_not():
    right = {"auto": [], "uniform": []}
    for seed in range(20):
        episode = draw_episode(seed, n_shot=5, n_query=60, d=8, shares=[0.75, 0.2, 0.05])
        Xs, ys, Xq, yq = episode
        for marginals, hits in right.items():
            model = OptimalTransportClassifier(1.0, marginals=marginals).fit(Xs, ys)
            hits.append(np.mean(model.predict_transductive(Xq) == yq))
    assert np.mean(right["auto"]) > np.mean(right["uniform"]) + 0.15


def test_negative_features_under_a_fractional_power_are_warned_about():
    X, y = labelled(draw_episode(5))
    with pytest.warns(UserWarning, match="set power=1"):
        found = OptimalTransportClassifier(n_epochs=2).fit(X, y)
    signed = np.sign(X) * np.sqrt(np.abs(X) + 1e-6)
    expected = OptimalTransportClassifier(1.0, n_epochs=2).fit(signed, y)
    np.testing.assert_allclose(
        found.label_distributions_, expected.label_distributions_, atol=1e-12
    )


@pytest.mark.parametrize("marginals", [[0.5, 0.5], [1.0, 0.0, 1.0], [1.0, -1.0, 1.0]])
def test_shares_that_do_not_fit_are_refused(marginals):
    Xs, ys, _, _ = draw_episode(6)
    with pytest.raises(ValueError, match="one positive share"):
        OptimalTransportClassifier(1.0, marginals=marginals).fit(Xs, ys)


def test_inductive_prediction_compares_in_the_space_of_the_prototypes():
    Xs, ys, Xq, _ = draw_episode(7)
    X, y = labelled((Xs, ys, Xq, None))
    model = OptimalTransportClassifier(1.0, center="separate").fit(X, y)
    rows = unit(unit(Xq) - unit(Xs).mean(axis=0))
    costs = 20 * ((rows[:, None] - model.prototypes_) ** 2).sum(axis=2)
    expected = np.exp(-costs - logsumexp(-costs, axis=1, keepdims=True))
    np.testing.assert_allclose(model.predict_proba(Xq), expected, atol=1e-12)
