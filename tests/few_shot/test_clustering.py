# SPDX-License-Identifier: BSD-3-Clause
"""Clustering around prototypes against the formulas of the papers, in loops."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from few_shot_episodes import batch_of, draw_episode, labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from skpool.few_shot import PrototypeRectification, TransductivePrototypeClassifier


def neighbors(rows, k):
    """W of 0 and 1 from every row to its k nearest others."""
    W = np.zeros((len(rows), len(rows)))
    for p, row in enumerate(rows):
        distances = [np.inf if q == p else np.sum((row - x) ** 2) for q, x in enumerate(rows)]
        W[p, np.argsort(distances)[:k]] = 1
    return W


def divergence(X, means, kind, gamma):
    squares = np.array([[np.sum((x - m) ** 2) for m in means] for x in X])
    return squares if kind == "kmeans" else -np.exp(-gamma * squares)


def energy(S, D, W, lam):
    """The energy term by term."""
    total = np.sum(S * D)
    for p in range(len(S)):
        total -= lam / 2 * sum(W[p, q] * S[p] @ S[q] for q in range(len(S)))
        total += sum(s * np.log(s) for s in S[p] if s > 0)
    return total


PARAMETERS = {
    "divergence": st.sampled_from(["kmeans", "kmodes"]),
    "gamma": st.floats(0.2, 3),
    "laplacian_weight": st.floats(0, 8),
    "n_neighbors": st.integers(1, 6),
    "graph": st.sampled_from(["all", "query"]),
    "update_prototypes": st.booleans(),
    "temperature": st.floats(0.02, 2),
    "max_iter": st.integers(1, 20),
    "rectify": st.booleans(),
}
drawn = given(seed=st.integers(0, 10_000), parameters=st.fixed_dictionaries(PARAMETERS))


@settings(deadline=None, max_examples=150)
@drawn
def test_objective_never_increases(seed, parameters):
    X, y = labelled(draw_episode(seed, n_query=2 + seed % 15))
    energies = TransductivePrototypeClassifier(**parameters).fit(X, y).objective_
    assert np.diff(energies).max(initial=0) <= 1e-10 * (1 + np.abs(energies).max())


@settings(deadline=None, max_examples=40)
@drawn
def test_objective_is_the_energy_of_the_paper(seed, parameters):
    Xs, ys, Xq, _ = draw_episode(seed, n_query=9)
    # In the order of the rows that the graph among all joins.
    X, y = np.vstack([Xs, Xq]), np.concatenate([ys, np.full(9, -1)])
    model = TransductivePrototypeClassifier(**parameters).fit(X, y)
    W = np.zeros((len(X), len(X)))
    part = slice(None) if parameters["graph"] == "all" else slice(len(Xs), None)
    W[part, part] = neighbors(X[part], min(parameters["n_neighbors"], len(X[part]) - 1))
    D = divergence(X, model.prototypes_, parameters["divergence"], parameters["gamma"])
    expected = energy(
        model.label_distributions_,
        D / parameters["temperature"],
        (W + W.T) / 2,
        parameters["laplacian_weight"],
    )
    np.testing.assert_allclose(model.objective_[-1], expected, rtol=1e-9, atol=1e-9)


def test_no_neighbours_and_fixed_prototypes_is_the_softmax_of_distances():
    Xs, ys, Xq, _ = draw_episode(1)
    model = TransductivePrototypeClassifier(
        laplacian_weight=0.0, update_prototypes=False, temperature=0.3
    ).fit(Xs, ys)
    means = np.array([Xs[ys == k].mean(axis=0) for k in range(3)])
    expected = softmax(-divergence(Xq, means, "kmeans", 0) / 0.3, axis=1)
    np.testing.assert_allclose(model.predict_proba_transductive(Xq), expected, atol=1e-12)
    np.testing.assert_allclose(model.predict_proba(Xq), expected, atol=1e-12)


def test_cold_clustering_is_lloyds_k_means_with_fixed_supports():
    Xs, ys, Xq, _ = draw_episode(2, n_query=40, spread=0.7)
    means = np.array([Xs[ys == k].mean(axis=0) for k in range(3)])
    for _ in range(50):
        own = divergence(Xq, means, "kmeans", 0).argmin(axis=1)
        means = np.array([np.vstack([Xs[ys == k], Xq[own == k]]).mean(axis=0) for k in range(3)])
    model = TransductivePrototypeClassifier(laplacian_weight=0, temperature=1e-9, n_outer=50)
    X, y = labelled((Xs, ys, Xq, None))
    model.fit(X, y)
    np.testing.assert_array_equal(model.transduction_[y == -1], own)
    np.testing.assert_allclose(model.prototypes_, means, atol=1e-9)


def test_modes_are_fixed_points_of_the_mean_shift():
    X, y = labelled(draw_episode(3, n_query=30))
    model = TransductivePrototypeClassifier(
        "kmodes", gamma=0.5, laplacian_weight=0.0, temperature=0.2, n_outer=2000, tol=0.0
    ).fit(X, y)
    kernel = -divergence(X, model.prototypes_, "kmodes", 0.5) * model.label_distributions_
    expected = kernel.T @ X / kernel.sum(axis=0)[:, None]
    np.testing.assert_allclose(model.prototypes_, expected, atol=1e-7)


def published(Xq, means, k, lam, n_iter):
    """LaplacianShot: a directed graph in which a row counts among its own k neighbours."""
    W = neighbors(Xq, k - 1)
    costs = divergence(Xq, means, "kmeans", 0)
    S = softmax(-costs, axis=1)
    for _ in range(n_iter):
        S = softmax(-costs + lam * W @ S, axis=1)
    return S


def with_their_conventions(n_iter=200):
    return TransductivePrototypeClassifier(
        laplacian_weight=0.7,
        n_neighbors=3,
        include_self=True,
        symmetric=False,
        graph="query",
        update_prototypes=False,
        max_iter=n_iter,
        tol=0.0,
    )


def test_published_conventions_give_the_published_updates():
    Xs, ys, Xq, _ = draw_episode(4, n_query=20)
    means = np.array([Xs[ys == k].mean(axis=0) for k in range(3)])
    found = with_their_conventions(7).fit(Xs, ys).predict_proba_transductive(Xq)
    np.testing.assert_allclose(found, published(Xq, means, 3, 0.7, 7), atol=1e-12)


class _AnyName(ModuleType):
    """A module of torchvision that is never used."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return torch.nn.Module


@pytest.fixture
def easyfsl(monkeypatch):
    """Its methods, which need torchvision for their networks alone."""
    for name in ("", ".models", ".models.resnet", ".transforms", ".datasets"):
        module = _AnyName(f"torchvision{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return pytest.importorskip("easyfsl.methods", exc_type=ImportError)


def test_agrees_with_easyfsl(easyfsl):
    class Fixed(easyfsl.LaplacianShot):
        def rectify_prototypes(self, query_features):
            pass

    episodes = [draw_episode(seed, n_query=25) for seed in range(10)]
    batch = batch_of(episodes, torch.float32)
    found = with_their_conventions(20).predict_proba_episodes(batch)
    for one, Xs, ys, Xq in zip(found, batch.Xs, batch.ys, batch.Xq, strict=True):
        theirs = Fixed()
        theirs.process_support_set(Xs, ys)
        expected = theirs(Xq)
        # It stops where its energy, of a graph without symmetry, changes by one in a million.
        torch.testing.assert_close(one, expected, atol=5e-3, rtol=0)
        assert torch.equal(one.argmax(dim=1), expected.argmax(dim=1))


def test_neighbours_are_as_many_as_there_are():
    Xs, ys, Xq, _ = draw_episode(5, n_query=4)
    few, many = (
        TransductivePrototypeClassifier(n_neighbors=k, graph="query").fit(Xs, ys) for k in (3, 99)
    )
    expected = few.predict_proba_transductive(Xq)
    np.testing.assert_array_equal(many.predict_proba_transductive(Xq), expected)


def test_neighbours_smooth_an_outlier():
    Xs, ys = np.array([[0.0, 0.0], [4.0, 0.0]]), np.array([0, 1])
    # Slightly nearer to the second prototype, amid queries of the first.
    Xq = np.array([[1.0, 0.0], [1.5, 0.1], [1.5, -0.1], [2.05, 0.0]])
    alone = TransductivePrototypeClassifier(laplacian_weight=0.0, update_prototypes=False)
    pulled = TransductivePrototypeClassifier(laplacian_weight=2.0, update_prototypes=False)
    assert alone.fit(Xs, ys).predict_transductive(Xq).tolist() == [0, 0, 0, 1]
    assert pulled.fit(Xs, ys).predict_transductive(Xq).tolist() == [0, 0, 0, 0]


def test_rectify_starts_from_rectified_prototypes():
    X, y = labelled(draw_episode(6, n_query=20))
    fixed = TransductivePrototypeClassifier(rectify=True, update_prototypes=False).fit(X, y)
    expected = PrototypeRectification().fit(X, y).prototypes_
    np.testing.assert_allclose(fixed.prototypes_, expected, atol=1e-12)
