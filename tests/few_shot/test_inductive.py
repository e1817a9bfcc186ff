# SPDX-License-Identifier: BSD-3-Clause
"""The inductive baselines: limits, closed forms written out, and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from skpool.discriminant import LinearDiscriminantClassifier
from skpool.few_shot import BaseCovarianceClassifier, EpisodicLinear, make_rfs
from skpool.model_selection import EpisodeBatch, EpisodeSplit, few_shot_score
from skpool.preprocessing import L2Normalizer
from skpool.prototypes import NearestClassMeanClassifier
from skpool.statistics import ClassMoments, RunningMoments


def world(seed=0, d=6):
    """Base rows of ten classes, and an episode of three others, with one covariance."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d)) * np.linspace(0.2, 2.0, d)
    y_base = np.arange(400) % 10
    X_base = 3 * rng.normal(size=(10, d))[y_base] + rng.normal(size=(400, d)) @ root + 4
    centres, y = rng.normal(size=(3, d)), np.repeat([4, 7, 9], 4)
    X = centres[[0, 1, 2]].repeat(4, axis=0) + rng.normal(size=(12, d)) @ root + 4
    queries = centres[rng.integers(0, 3, 30)] + rng.normal(size=(30, d)) @ root + 4
    return ClassMoments("shared").update(X_base, y_base), X, y, queries


def within(X, y):
    centred = X - np.stack([X[y == label].mean(axis=0) for label in y])
    return centred.T @ centred / len(X)


def distances(queries, X, y, covariance):
    means = np.stack([X[y == label].mean(axis=0) for label in np.unique(y)])
    apart = queries[:, None] - means
    return np.einsum("qcd,de,qce->qc", apart, np.linalg.inv(covariance), apart)


def centred(scores):
    return scores - scores.mean(axis=1, keepdims=True)


def batch_of(*episodes, dtype=torch.float64):
    Xs, ys, Xq = (np.stack(part) for part in zip(*episodes, strict=True))
    ys = torch.tensor(np.stack([np.unique(y, return_inverse=True)[1] for y in ys]))
    return EpisodeBatch(torch.tensor(Xs, dtype=dtype), ys, torch.tensor(Xq, dtype=dtype))


# RFS.


def test_rfs_is_logistic_regression_on_unit_rows():
    _, X, y, queries = world()
    units = X / np.linalg.norm(X, axis=1, keepdims=True)
    desired = LogisticRegression(max_iter=1000).fit(units, y)
    unit_queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    np.testing.assert_allclose(
        make_rfs().fit(X, y).decision_function(queries), desired.decision_function(unit_queries)
    )


def test_rfs_on_views_that_are_copies_is_rfs_with_a_larger_C():
    _, X, y, queries = world()
    views = make_rfs(1.0).fit(np.tile(X, (5, 1)), np.tile(y, 5)).predict(queries)
    np.testing.assert_array_equal(views, make_rfs(5.0).fit(X, y).predict(queries))


def test_episodes_of_rfs_equal_those_of_the_batched_head():
    rng = np.random.default_rng(0)
    y = np.arange(240) % 8
    X = rng.normal(size=(8, 16))[y] + rng.normal(size=(240, 16))
    cv = EpisodeSplit(5, 2, 6, n_episodes=12, random_state=0)
    batched = make_pipeline(L2Normalizer(), EpisodicLinear())
    one, other = (few_shot_score(model, X, y, cv=cv).scores for model in (make_rfs(), batched))
    np.testing.assert_allclose(one, other, atol=1e-12)


def test_one_shot_prototype_is_cosine_and_nearest_neighbour_on_unit_rows():
    _, X, y, queries = world()
    X, y = X[::4], y[::4]
    by_cosine = y[cosine_similarity(queries, X).argmax(axis=1)]
    units, unit_queries = (part / np.linalg.norm(part, axis=1)[:, None] for part in (X, queries))
    by_neighbour = KNeighborsClassifier(1).fit(units, y).predict(unit_queries)
    by_mean = NearestClassMeanClassifier("euclidean", normalize="l2").fit(X, y).predict(queries)
    np.testing.assert_array_equal(by_mean, by_cosine)
    np.testing.assert_array_equal(by_mean, by_neighbour)


# A borrowed covariance.


@pytest.mark.parametrize("weight", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("shrinkage", [0.1, 0.7])
def test_scores_are_distances_by_the_mixed_covariance(weight, shrinkage):
    base, X, y, queries = world()
    B = base.scatter_ / base.counts_.sum()
    mixed = weight * B + (1 - weight) * within(X, y)
    covariance = (1 - shrinkage) * mixed + shrinkage * np.trace(B) / len(B) * np.eye(len(B))
    desired = -distances(queries, X, y, covariance) / 2
    clf = BaseCovarianceClassifier(base, weight=weight, shrinkage=shrinkage)
    np.testing.assert_allclose(clf.fit(X, y).covariance_, covariance)
    np.testing.assert_allclose(centred(clf.class_scores(queries)), centred(desired), atol=1e-9)
    batched = clf.class_scores_episodes(batch_of((X, y, queries)))[0]
    np.testing.assert_allclose(batched, desired, rtol=1e-9)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_batch_equals_one_fit_per_episode(weight):
    base, *_ = world()
    episodes = [world(seed)[1:] for seed in range(1, 5)]
    clf = BaseCovarianceClassifier(base, weight=weight)
    for dtype in (torch.float64, torch.float32):
        labels = clf.predict_episodes(batch_of(*episodes, dtype=dtype))
        for i, (X, y, queries) in enumerate(episodes):
            alone = clone(clf).fit(X, y).predict(queries)
            np.testing.assert_array_equal(np.unique(y)[labels[i]], alone)


def test_padding_of_supports_is_never_read():
    base, X, y, queries = world()
    clf, batch = BaseCovarianceClassifier(base, weight=0.5), batch_of((X, y, queries))
    Xs = torch.cat([batch.Xs, torch.full((1, 2, 6), 50.0)], dim=1)
    ys = torch.cat([batch.ys, torch.full((1, 2), -1)], dim=1)
    padded = clf.class_scores_episodes(EpisodeBatch(Xs, ys, batch.Xq, n_way=3))
    assert (padded - clf.class_scores_episodes(batch)).abs().max() < 1e-9


def test_no_base_weight_and_one_shot_is_the_nearest_class_mean():
    base, X, y, queries = world()
    X, y = X[::4], y[::4]
    desired = NearestClassMeanClassifier("euclidean").fit(X, y).predict(queries)
    for model in (
        BaseCovarianceClassifier(base, weight=0.0, shrinkage=0.2),
        BaseCovarianceClassifier(base, shrinkage=1.0),
    ):
        np.testing.assert_array_equal(model.fit(X, y).predict(queries), desired)


def test_without_base_it_is_discriminant_analysis_of_the_rows():
    _, X, y, queries = world()
    given = BaseCovarianceClassifier(shrinkage=0.3).fit(X, y)
    desired = LinearDiscriminantAnalysis("lsqr", shrinkage=0.3, priors=np.full(3, 1 / 3)).fit(X, y)
    np.testing.assert_allclose(given.predict_proba(queries), desired.predict_proba(queries))


def test_base_that_is_the_rows_gives_their_discriminant_analysis():
    _, X, y, queries = world()
    own = ClassMoments("shared").update(X, y)
    for weight in (1.0, 0.4):
        given = BaseCovarianceClassifier(own, weight=weight, shrinkage=0.2).fit(X, y)
        desired = LinearDiscriminantClassifier(0.2, priors="uniform").fit(X, y)
        np.testing.assert_allclose(given.class_scores(queries), desired.class_scores(queries))


def test_moments_without_classes_are_one_class():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 6))
    _, X, y, queries = world()
    as_running = BaseCovarianceClassifier(RunningMoments().update(rows)).fit(X, y)
    as_class = BaseCovarianceClassifier(ClassMoments("shared").update(rows, [0] * 50)).fit(X, y)
    np.testing.assert_allclose(as_running.class_scores(queries), as_class.class_scores(queries))


def test_clone_keeps_the_base():
    base, X, y, queries = world()
    clf = BaseCovarianceClassifier(base)
    copy = clone(clf)
    assert copy.base_moments is base
    np.testing.assert_array_equal(
        copy.fit(X, y).class_scores(queries), clf.fit(X, y).class_scores(queries)
    )


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_parts_and_forgetting_equal_one_fit(weight):
    base, X, y, queries = world()
    clf = BaseCovarianceClassifier(base, weight=weight)
    parts = clone(clf).partial_fit(X[6:], y[6:]).partial_fit(X[:6], y[:6])
    whole = clone(clf).fit(X, y).class_scores(queries)
    np.testing.assert_allclose(parts.class_scores(queries), whole, atol=1e-9)
    left = parts.forget(X[:4], y[:4]).class_scores(queries)
    np.testing.assert_allclose(left, clone(clf).fit(X[4:], y[4:]).class_scores(queries), atol=1e-9)


def test_base_of_another_width_is_refused():
    base, X, y, _ = world()
    with pytest.raises(ValueError, match="6 features and X has 5"):
        BaseCovarianceClassifier(base).fit(X[:, :5], y)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_singular_covariance_is_refused(weight):
    _, X, y, queries = world()
    base = ClassMoments("shared").update(X[:3], [0, 0, 0])
    clf = BaseCovarianceClassifier(base, weight=weight, shrinkage=0.0)
    with pytest.raises(ValueError, match="singular"):
        clf.fit(X[::4], y[::4])
    with pytest.raises(ValueError, match="singular"):
        clf.predict_episodes(batch_of((X[::4], y[::4], queries)))


def test_episodes_need_a_base():
    assert not hasattr(BaseCovarianceClassifier(), "predict_episodes")
    assert not hasattr(BaseCovarianceClassifier(world()[0]), "loo_scores")
