# SPDX-License-Identifier: BSD-3-Clause
"""What holds for every transductive classifier, whatever it solves."""

import numpy as np
import pytest
import torch
from few_shot_episodes import batch_of, draw_episode, labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skpool.few_shot import (
    InformationMaximizationClassifier,
    OptimalTransportClassifier,
    PrototypeRectification,
    TransductivePrototypeClassifier,
    make_laplacian_shot,
    make_transductive_kmeans,
)
from skpool.model_selection import EpisodeBatch

MODELS = [
    TransductivePrototypeClassifier(),
    TransductivePrototypeClassifier("kmodes", laplacian_weight=2.0, graph="query", rectify=True),
    TransductivePrototypeClassifier(symmetric=False, update_prototypes=False),
    PrototypeRectification(),
    PrototypeRectification(shift=False, n_iter=3),
    OptimalTransportClassifier(1.0),
    OptimalTransportClassifier(1.0, center="separate", marginals="uniform", tol=1e-12),
    OptimalTransportClassifier(1.0, marginals=[0.5, 0.3, 0.2], tol=1e-12),
    OptimalTransportClassifier(1.0, marginals=None),
    InformationMaximizationClassifier(lr=0.01, max_iter=15),
    InformationMaximizationClassifier("tsallis", lr=0.01, max_iter=15),
    InformationMaximizationClassifier(solver="adm", max_iter=15),
]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: " ".join(repr(m).split()))


def probabilities(model, episode):
    X, y = labelled(episode)
    return clone(model).fit(X, y).label_distributions_[y == -1]


@every_model
def test_batch_equals_one_by_one(model):
    episodes = [draw_episode(seed) for seed in range(6)]
    found = model.predict_proba_episodes(batch_of(episodes)).numpy()
    for one, episode in zip(found, episodes, strict=True):
        np.testing.assert_allclose(one, probabilities(model, episode), atol=1e-9)


@every_model
def test_parts_of_a_batch_equal_the_batch(model, monkeypatch):
    batch = batch_of([draw_episode(seed) for seed in range(7)])
    whole = model.predict_proba_episodes(batch)
    monkeypatch.setattr(type(model), "_batch_bytes", 1)
    torch.testing.assert_close(model.predict_proba_episodes(batch), whole, atol=1e-9, rtol=0)


@every_model
def test_masked_queries_change_nothing(model):
    episodes = [draw_episode(seed) for seed in range(3)]
    batch = batch_of(episodes)
    rng = torch.Generator().manual_seed(0)
    padding = 3 * torch.randn(3, 4, 5, generator=rng, dtype=torch.float64)
    Xq = torch.cat([batch.Xq[:, :5], padding, batch.Xq[:, 5:]], dim=1)
    real = torch.ones(3, Xq.shape[1], dtype=torch.bool)
    real[:, 5:9] = False
    padded = EpisodeBatch(batch.Xs, batch.ys, Xq, query_mask=real, n_way=3)
    found = model.predict_proba_episodes(padded)[real].reshape(3, -1, 3)
    torch.testing.assert_close(found, model.predict_proba_episodes(batch), atol=1e-9, rtol=0)


@every_model
def test_padded_supports_change_nothing(model):
    batch = batch_of([draw_episode(seed) for seed in range(3)])
    Xs = torch.cat([batch.Xs, torch.full((3, 2, 5), 0.7, dtype=torch.float64)], dim=1)
    ys = torch.cat([batch.ys, torch.full((3, 2), -1)], dim=1)
    found = model.predict_proba_episodes(EpisodeBatch(Xs, ys, batch.Xq, n_way=3))
    torch.testing.assert_close(found, model.predict_proba_episodes(batch), atol=1e-9, rtol=0)


@every_model
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 1000))
def test_order_of_queries_does_not_matter(model, seed):
    Xs, ys, Xq, yq = draw_episode(seed)
    order = np.random.default_rng(seed).permutation(len(Xq))
    shuffled = probabilities(model, (Xs, ys, Xq[order], yq))
    np.testing.assert_allclose(shuffled, probabilities(model, (Xs, ys, Xq, yq))[order], atol=1e-8)


@every_model
def test_predict_transductive_equals_fit_with_the_queries(model):
    episode = draw_episode(3)
    Xs, ys, Xq, _ = episode
    names = np.array(["ant", "bee", "cat"])
    supports = clone(model).fit(Xs, names[ys])
    X, y = labelled(episode)
    together = clone(model).fit(X, y)
    found = supports.predict_proba_transductive(Xq)
    np.testing.assert_allclose(found, together.label_distributions_[y == -1], atol=1e-12)
    expected = names[together.transduction_[y == -1]]
    np.testing.assert_array_equal(supports.predict_transductive(Xq), expected)


@every_model
def test_supports_keep_their_labels(model):
    X, y = labelled(draw_episode(4, spread=2.0))
    fitted = clone(model).fit(X, y)
    np.testing.assert_array_equal(fitted.transduction_[y >= 0], y[y >= 0])
    np.testing.assert_array_equal(fitted.label_distributions_[y >= 0], np.eye(3)[y[y >= 0]])


@every_model
def test_episodes_need_no_fit_and_leave_no_trace(model):
    model = clone(model)
    before = set(vars(model))
    model.predict_episodes(batch_of([draw_episode()]))
    assert set(vars(model)) == before
    with pytest.raises(NotFittedError):
        model.predict_transductive(np.zeros((2, 5)))


@every_model
def test_one_query_works(model):
    Xs, ys, Xq, yq = draw_episode(5, n_query=1)
    assert clone(model).fit(Xs, ys).predict_transductive(Xq).shape == yq.shape


@every_model
def test_float32_agrees_with_float64(model):
    episodes = [draw_episode(seed) for seed in range(5)]
    wide = model.predict_proba_episodes(batch_of(episodes))
    narrow = model.predict_proba_episodes(batch_of(episodes, torch.float32))
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "model", [TransductivePrototypeClassifier(), PrototypeRectification()], ids=["soft", "moved"]
)
def test_prototypes_without_queries_are_class_means(model):
    Xs, ys, _, _ = draw_episode(6)
    means = [Xs[ys == k].mean(axis=0) for k in range(3)]
    np.testing.assert_allclose(clone(model).fit(Xs, ys).prototypes_, means, atol=1e-12)


def test_class_without_support_is_refused_by_number():
    batch = batch_of([draw_episode(0), draw_episode(1)])
    batch.ys[1][batch.ys[1] == 2] = 0
    with pytest.raises(ValueError, match="Class 2 of episode 1 has no support"):
        PrototypeRectification().predict_episodes(batch)


def test_labels_without_any_support_are_refused():
    with pytest.raises(ValueError, match="at least one labelled row"):
        PrototypeRectification().fit(np.eye(3), [-1, -1, -1])


def test_wrong_parameter_is_refused_for_episodes():
    with pytest.raises(ValueError, match="scale"):
        PrototypeRectification(scale=-1.0).predict_episodes(batch_of([draw_episode()]))


@pytest.mark.parametrize("make", [make_laplacian_shot, make_transductive_kmeans])
def test_recipe_centres_and_then_clusters(make):
    X, y = labelled(draw_episode(7))
    center = np.linspace(-1, 1, X.shape[1])
    unit = (X - center) / np.linalg.norm(X - center, axis=1, keepdims=True)
    pipeline = make(center=center)
    alone = clone(pipeline[-1]).fit(unit, y)
    found = pipeline.fit(X, y)[-1].label_distributions_
    np.testing.assert_allclose(found, alone.label_distributions_, atol=1e-12)
