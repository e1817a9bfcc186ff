# SPDX-License-Identifier: BSD-3-Clause
"""EpisodicLinear is scikit-learn's linear heads, one episode or many at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import LinearSVC

from skpool.few_shot import EpisodicLinear
from skpool.model_selection import EpisodeBatch

HEADS = ("logistic", "ridge", "svm")


def peer(head, C):
    """What scikit-learn has; liblinear's penalty of the intercept is made small."""
    return {
        "logistic": LogisticRegression(C=C, tol=1e-12, max_iter=100_000, solver="newton-cg"),
        "ridge": RidgeClassifier(alpha=1 / C),
        "svm": LinearSVC(C=C, dual=False, tol=1e-12, intercept_scaling=1e3, max_iter=100_000),
    }[head]


def episode(n_way, n_shot, d, *, seed=0, shift=3.0):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(n_way), n_shot)
    centres = rng.normal(size=(n_way, d))
    X = shift + centres[y] + rng.normal(size=(len(y), d))
    queries = shift + centres[rng.integers(0, n_way, 40)] + rng.normal(size=(40, d))
    order = rng.permutation(len(y))
    return X[order], y[order], queries


def batch_of(episodes, dtype=torch.float64):
    Xs, ys, Xq = (np.stack(part) for part in zip(*episodes, strict=True))
    return EpisodeBatch(
        torch.tensor(Xs, dtype=dtype), torch.tensor(ys), torch.tensor(Xq, dtype=dtype)
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "n_way, n_shot, d, C",
    [
        (5, 1, 64, 1.0),
        (5, 5, 64, 1.0),
        (2, 5, 64, 1.0),
        (3, 10, 4, 10.0),
        (5, 5, 300, 0.01),
        (4, 5, 64, 100.0),
    ],
)
def test_decisions_equal_scikit_learn(head, n_way, n_shot, d, C):
    X, y, queries = episode(n_way, n_shot, d)
    desired = peer(head, C).fit(X, y)
    clf = EpisodicLinear(head, C=C).fit(X, y)
    decisions = clf.decision_function(queries)
    tol = 1e-4 if head != "svm" else 2e-3
    scale = np.abs(desired.decision_function(queries)).max()
    np.testing.assert_allclose(decisions, desired.decision_function(queries), atol=tol * scale)
    np.testing.assert_array_equal(clf.predict(queries), desired.predict(queries))


def test_logistic_probabilities_equal_scikit_learn():
    X, y, queries = episode(3, 5, 20)
    desired = peer("logistic", 1.0).fit(X, y).predict_proba(queries)
    np.testing.assert_allclose(
        EpisodicLinear().fit(X, y).predict_proba(queries), desired, atol=1e-6
    )


@pytest.mark.parametrize("head", ["logistic", "ridge"])
def test_weights_equal_scikit_learn(head):
    X, y, queries = episode(4, 5, 30)
    weights = np.random.default_rng(1).uniform(0, 2, len(y)) * (np.arange(len(y)) % 5 != 0)
    desired = peer(head, 1.0).fit(X, y, sample_weight=weights).decision_function(queries)
    clf = EpisodicLinear(head).fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(clf.decision_function(queries), desired, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_optimum_has_no_gradient(head):
    X, y, _ = episode(3, 6, 8)
    clf = EpisodicLinear(head, C=0.7).fit(X, y)
    coef = torch.tensor(clf.coef_, requires_grad=True)
    bias = torch.tensor(clf.intercept_, requires_grad=True)
    scores = torch.tensor(X) @ coef.T + bias
    signs = 2.0 * torch.eye(3, dtype=torch.float64)[y] - 1
    errors = {
        "logistic": torch.nn.functional.cross_entropy(scores, torch.tensor(y), reduction="sum"),
        "ridge": (signs - scores).square().sum() / 2,
        "svm": (1 - signs * scores).clamp(min=0).square().sum(),
    }[head]
    (coef.square().sum() / 2 + 0.7 * errors).backward()
    assert coef.grad.abs().max() < 1e-7
    assert bias.grad.abs().max() < 1e-7


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("n_way, n_shot", [(5, 1), (5, 5), (2, 3)])
def test_batch_equals_one_fit_per_episode(head, n_way, n_shot):
    episodes = [episode(n_way, n_shot, 30, seed=s, shift=s) for s in range(4)]
    clf, batch = EpisodicLinear(head), batch_of(episodes)
    scores, labels = clf.class_scores_episodes(batch), clf.predict_episodes(batch)
    for i, (X, y, queries) in enumerate(episodes):
        alone = clone(clf).fit(X, y)
        np.testing.assert_allclose(scores[i], alone.class_scores(queries), atol=1e-7)
        np.testing.assert_array_equal(labels[i], alone.predict(queries))


@pytest.mark.parametrize("head", HEADS)
def test_reduced_batch_gives_the_same(head):
    batch = batch_of([episode(5, 5, 200, seed=s, shift=0.5) for s in range(3)])
    clf = EpisodicLinear(head)
    reduced = clf.class_scores_episodes(batch.reduce())
    assert (reduced - clf.class_scores_episodes(batch)).abs().max() < 1e-6


@pytest.mark.parametrize("head", HEADS)
def test_padding_of_supports_is_never_read(head):
    X, y, queries = episode(3, 4, 10)
    padded = np.concatenate([X, np.full((2, 10), 77.0)]), np.append(y, [-1, -1]), queries
    clf = EpisodicLinear(head)
    given = clf.class_scores_episodes(batch_of([padded]))
    desired = clf.class_scores_episodes(batch_of([(X, y, queries)]))
    assert (given - desired).abs().max() < 1e-7


@pytest.mark.parametrize("head", HEADS)
def test_float32_batch_is_near_float64(head):
    episodes = [episode(5, 5, 100, seed=s) for s in range(3)]
    clf = EpisodicLinear(head)
    single = clf.class_scores_episodes(batch_of(episodes, torch.float32))
    assert (single - clf.class_scores_episodes(batch_of(episodes))).abs().max() < 1e-4


@given(seed=st.integers(0, 2**16), head=st.sampled_from(HEADS), C=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=15)
def test_shift_and_rotation_change_no_decision(seed, head, C):
    X, y, queries = episode(3, 3, 6, seed=seed)
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    moved = EpisodicLinear(head, C=C).fit(X @ turn + 5, y).class_scores(queries @ turn + 5)
    desired = EpisodicLinear(head, C=C).fit(X, y).class_scores(queries)
    np.testing.assert_allclose(moved, desired, atol=1e-6 * max(1, np.abs(desired).max()))


@pytest.mark.parametrize("head", ["ridge", "svm"])
def test_no_probabilities_but_of_logistic(head):
    clf = EpisodicLinear(head)
    assert not hasattr(clf, "predict_proba")
    with pytest.raises(AttributeError):
        clf.predict_proba([[0.0]])


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        EpisodicLinear().fit(np.eye(3), [1, 1, 1])


def test_batch_refuses_bad_parameters():
    with pytest.raises(ValueError, match="head"):
        EpisodicLinear("tree").predict_episodes(batch_of([episode(2, 2, 3)]))
