# SPDX-License-Identifier: BSD-3-Clause
"""TIM and alpha-TIM against their loss in loops, and torch's gradients and steps."""

import numpy as np
import pytest
import torch
from few_shot_episodes import draw_episode, labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from skpool.few_shot import InformationMaximizationClassifier
from skpool.few_shot._information_kernels import Terms, loss_and_slopes, query_targets
from skpool.prototypes import NearestClassMeanClassifier


def loss_of(Xs, ys, Xq, W, *, weights, T, alpha):
    """The loss row by row."""

    def posterior(x):
        return softmax([-T / 2 * np.sum((x - w) ** 2) for w in W])

    def entropy(p):
        return -np.sum(p * np.log(p)) if alpha == 1 else (1 - np.sum(p**alpha)) / (alpha - 1)

    P = np.array([posterior(x) for x in Xq])
    cross = np.mean([-np.log(posterior(x)[k]) for x, k in zip(Xs, ys, strict=True)])
    each = np.mean([entropy(p) for p in P])
    return weights[0] * cross - weights[1] * entropy(P.mean(axis=0)) + weights[2] * each


@pytest.mark.parametrize(
    ("options", "weights", "alpha"),
    [
        ({}, (0.1, 1.0, 0.1), 1.0),
        ({"weights": (1.0, 0.5, 2.0)}, (1.0, 0.5, 2.0), 1.0),
        ({"entropy": "tsallis", "alpha": 3.0}, (1.0, 1.0, 1.0), 3.0),
        ({"solver": "adm"}, (0.1, 1.0, 0.1), 1.0),
    ],
)
def test_objective_is_the_loss_of_the_papers(options, weights, alpha):
    Xs, ys, Xq, _ = draw_episode(1)
    X, y = labelled((Xs, ys, Xq, None))
    model = InformationMaximizationClassifier(lr=0.01, max_iter=4, **options).fit(X, y)
    found = loss_of(Xs, ys, Xq, model.prototypes_, weights=weights, T=15.0, alpha=alpha)
    np.testing.assert_allclose(model.objective_[-1], found, rtol=1e-9)


def terms_and_logits(seed, alpha, weights):
    generator = torch.Generator().manual_seed(seed)
    supports = torch.eye(4, dtype=torch.float64)[torch.randint(0, 4, (2, 6), generator=generator)]
    queries = torch.ones(2, 1, 9, dtype=torch.float64)
    queries[1, 0, 5:] = 0
    logits = torch.randn(2, 4, 15, generator=generator, dtype=torch.float64)
    return Terms(supports.mT, queries, weights, alpha), logits


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    alpha=st.sampled_from([1.0, 0.5, 2.0, 7.0]),
    weights=st.tuples(*[st.floats(0, 2)] * 3),
)
def test_slopes_are_those_of_the_loss(seed, alpha, weights):
    terms, logits = terms_and_logits(seed, alpha, weights)
    logits.requires_grad_()
    losses, slopes = loss_and_slopes(logits, terms)
    (expected,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(slopes.detach(), expected, atol=1e-10, rtol=1e-8)


def test_steps_are_those_of_adam_on_the_loss():
    Xs, ys, Xq, _ = draw_episode(2)
    rows = [torch.from_numpy(X) for X in (Xs, Xq)]
    means = [Xs[ys == k].mean(axis=0) for k in range(3)]
    W = torch.nn.Parameter(torch.from_numpy(np.array(means)))
    adam = torch.optim.Adam([W], lr=0.02)
    for _ in range(20):
        logits_s, logits_q = (-7.5 * torch.cdist(X, W).square() for X in rows)
        P = logits_q.softmax(dim=1)
        cross = torch.nn.functional.cross_entropy(logits_s, torch.from_numpy(ys))
        mix = P.mean(dim=0)
        loss = 0.1 * cross + (mix * mix.log()).sum() - 0.1 * (P * P.log()).sum(dim=1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    X, y = labelled((Xs, ys, Xq, None))
    model = InformationMaximizationClassifier(lr=0.02, max_iter=20).fit(X, y)
    np.testing.assert_allclose(model.prototypes_, W.detach().numpy(), atol=1e-9)


def test_no_steps_is_the_nearest_class_mean():
    Xs, ys, Xq, _ = draw_episode(3)
    model = InformationMaximizationClassifier(weights=(1, 0, 0), max_iter=0).fit(Xs, ys)
    expected = NearestClassMeanClassifier("euclidean").fit(Xs, ys).predict(Xq)
    np.testing.assert_array_equal(model.predict_transductive(Xq), expected)


def test_tsallis_tends_to_shannon():
    X, y = labelled(draw_episode(4))
    options = {"weights": (1.0, 1.0, 1.0), "lr": 0.01, "max_iter": 30}
    shannon = InformationMaximizationClassifier("shannon", **options).fit(X, y)
    near = InformationMaximizationClassifier("tsallis", alpha=1 + 1e-6, **options).fit(X, y)
    np.testing.assert_allclose(near.prototypes_, shannon.prototypes_, atol=1e-5)


def test_queries_without_weight_leave_the_fit_of_the_supports():
    Xs, ys, Xq, _ = draw_episode(5)
    X, y = labelled((Xs, ys, Xq, None))
    options = {"weights": (1.0, 0.0, 0.0), "lr": 0.01, "max_iter": 30}
    with_queries = InformationMaximizationClassifier(**options).fit(X, y).prototypes_
    without = InformationMaximizationClassifier(**options).fit(Xs, ys).prototypes_
    np.testing.assert_allclose(with_queries, without, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_closed_form_ends_below_its_start(seed):
    """It lowers a bound that is not tight, so that this is usual and no law."""
    X, y = labelled(draw_episode(seed, n_query=20))
    model = InformationMaximizationClassifier(
        solver="adm", weights=(0.1, 1.0, 0.1), max_iter=30
    ).fit(X, y)
    assert model.objective_[-1] < model.objective_[0]


def test_query_targets_follow_their_formula():
    terms, logits = terms_and_logits(1, 1.0, (0.1, 2.0, 0.5))
    P = logits[:, :, 6:].softmax(dim=1)
    found = query_targets(P, terms).numpy()
    for e, n in ((0, 9), (1, 5)):
        p = P[e, :, :n].numpy().T ** 1.5
        q = p / p.sum(axis=0) ** (2 / 3)
        q /= q.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found[e, :, :n].T, q, atol=1e-12)


def test_prototypes_of_a_closed_form_step_follow_their_formula():
    Xs, ys, Xq, _ = draw_episode(6)
    X, y = labelled((Xs, ys, Xq, None))
    options = {"solver": "adm", "weights": (0.3, 1.0, 0.5), "temperature": 4.0}
    start, after = (
        InformationMaximizationClassifier(max_iter=n, **options).fit(X, y) for n in (0, 1)
    )
    W = start.prototypes_
    P_s, P_q = (softmax(-2.0 * ((R[:, None] - W) ** 2).sum(axis=2), axis=1) for R in (Xs, Xq))
    q = P_q**1.5 / (P_q**1.5).sum(axis=0) ** 0.5
    q /= q.sum(axis=1, keepdims=True)
    a, b = 0.3 / 1.5 / len(Xs), 1 / len(Xq)
    for k in range(3):
        onehot = (ys == k).astype(float)
        top = a * (onehot @ Xs + (P_s[:, k, None] * (W[k] - Xs)).sum(axis=0))
        top += b * (q[:, k] @ Xq + (P_q[:, k, None] * (W[k] - Xq)).sum(axis=0))
        expected = top / (a * onehot.sum() + b * q[:, k].sum())
        np.testing.assert_allclose(after.prototypes_[k], expected, atol=1e-10)


def test_closed_form_of_tsallis_is_refused():
    with pytest.raises(ValueError, match="solver='adm' is for entropy='shannon'"):
        InformationMaximizationClassifier("tsallis", solver="adm").fit(np.eye(2), [0, 1])


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, -1.0, 1.0), ("a", 1.0, 1.0)])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(ValueError, match="three numbers"):
        InformationMaximizationClassifier(weights=weights).fit(np.eye(2), [0, 1])


@pytest.mark.parametrize(("n_shot", "alpha"), [(1, 2.0), (5, 7.0), (8, 7.0)])
def test_automatic_exponent_follows_the_shots(n_shot, alpha):
    X, y = labelled(draw_episode(7, n_shot=n_shot))
    options = {"entropy": "tsallis", "lr": 0.01, "max_iter": 5}
    found = InformationMaximizationClassifier(**options).fit(X, y).prototypes_
    expected = InformationMaximizationClassifier(alpha=alpha, **options).fit(X, y).prototypes_
    np.testing.assert_array_equal(found, expected)
