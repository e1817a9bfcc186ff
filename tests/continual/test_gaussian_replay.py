# SPDX-License-Identifier: BSD-3-Clause
"""GaussianReplay: draws have the moments that they are drawn from."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.covariance import OAS
from sklearn.decomposition import PCA

from skpool.continual import GaussianReplay
from skpool.statistics import ClassMoments

N = 60_000


def rows(seed=0, d=5, n=40, n_classes=3):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(n_classes), n)
    roots = rng.normal(size=(n_classes, d, d))
    X = 5 * rng.normal(size=(n_classes, d))[y]
    return X + np.einsum("nd,nde->ne", rng.normal(size=(len(y), d)), roots[y]), y


def drawn(replay, X, y, classes=None, n=N):
    moments = replay.new_moments().update(X, y)
    draws, labels = replay.sample(moments, n, classes=classes, random_state=0)
    return {label: draws[labels == label] for label in np.unique(labels).tolist()}


def assert_moments(draws, mean, covariance):
    """Within five standard errors of what is expected."""
    spread = np.sqrt(np.diagonal(covariance))
    assert (np.abs(draws.mean(axis=0) - mean) < 5 * spread / np.sqrt(len(draws))).all()
    bound = 5 * np.sqrt(2 / len(draws)) * np.outer(spread, spread)
    assert (np.abs(np.cov(draws.T, bias=True) - covariance) < bound).all()


def pooled(X, y):
    return sum(np.cov(X[y == c].T, bias=True) * (y == c).mean() for c in np.unique(y))


def test_draws_per_class_have_its_mean_and_covariance():
    X, y = rows()
    replay = GaussianReplay(shrinkage=None, jitter=0.5)
    for c, draws in drawn(replay, X, y).items():
        covariance = np.cov(X[y == c].T, bias=True) + 0.5 * np.eye(5)
        assert_moments(draws, X[y == c].mean(axis=0), covariance)


def test_oas_shrinks_as_scikit_learn_does():
    X, y = rows(n=8)
    for c, draws in drawn(GaussianReplay(jitter=0.0), X, y).items():
        assert_moments(draws, X[y == c].mean(axis=0), OAS().fit(X[y == c]).covariance_)


def test_shared_draws_have_the_pooled_covariance():
    X, y = rows()
    replay = GaussianReplay(covariance="shared", shrinkage=None, jitter=0.0)
    for c, draws in drawn(replay, X, y).items():
        assert_moments(draws, X[y == c].mean(axis=0), pooled(X, y))


def test_diagonal_draws_have_the_variances():
    X, y = rows()
    replay = GaussianReplay(covariance="diag", shrinkage=None, jitter=0.1)
    for c, draws in drawn(replay, X, y).items():
        variances = np.diag(X[y == c].var(axis=0) + 0.1)
        assert_moments(draws, X[y == c].mean(axis=0), variances)


@pytest.mark.parametrize("rank", [2, 5])
def test_low_rank_draws_have_the_covariance_of_probabilistic_components(rank):
    X, y = rows()
    replay = GaussianReplay(covariance="low_rank", shrinkage=None, jitter=0.0, rank=rank)
    for c, draws in drawn(replay, X, y).items():
        n = (y == c).sum()
        covariance = PCA(rank).fit(X[y == c]).get_covariance() * (n - 1) / n
        assert_moments(draws, X[y == c].mean(axis=0), covariance)


def test_prototype_noise_is_round_with_the_mean_variance():
    X, y = rows()
    variance = np.trace(pooled(X, y)) / 5
    for c, draws in drawn(GaussianReplay("prototype_noise"), X, y).items():
        assert_moments(draws, X[y == c].mean(axis=0), variance * np.eye(5))


def test_neighbor_draws_lie_between_the_mean_and_its_nearest():
    means = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [90.0, 90.0]])
    draws = drawn(GaussianReplay("neighbor", n_neighbors=2), means, [0, 1, 2, 3], [0], n=2000)[0]
    along_x, along_y = draws[:, 0] / 2, draws[:, 1] / 4
    # On one of two segments, at most half the way, and at a quarter on average.
    assert (np.minimum(along_x, along_y) == 0).all()
    way = np.maximum(along_x, along_y)
    assert 0 < way.min() and way.max() <= 0.5
    assert abs(way.mean() - 0.25) < 0.02
    assert abs((along_x > 0).mean() - 0.5) < 0.06


def test_class_of_one_row_takes_the_pooled_covariance():
    X, y = rows()
    X, y = np.concatenate([X, np.full((1, 5), 20.0)]), np.append(y, 7)
    draws = drawn(GaussianReplay(shrinkage=None, jitter=0.0), X, y, [7])[7]
    assert_moments(draws, np.full(5, 20.0), pooled(X, y))


def test_draws_come_in_the_order_that_is_asked():
    X, y = rows()
    replay = GaussianReplay(shrinkage=0.1)
    moments = replay.new_moments().update(X, y)
    draws, labels = replay.sample(moments, 50, classes=[2, 0], random_state=0)
    assert labels.tolist() == [2] * 50 + [0] * 50
    for c in (2, 0):
        apart = draws[labels == c].mean(axis=0) - X[y == c].mean(axis=0)
        assert np.abs(apart).max() < 2.5


@pytest.mark.parametrize("mode", ["gaussian", "prototype_noise", "neighbor"])
def test_seed_decides_the_draws(mode):
    X, y = rows()
    replay = GaussianReplay(mode)
    moments = replay.new_moments().update(X, y)
    one, other, third = (replay.sample(moments, 5, random_state=s)[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(one, other)
    assert (one != third).all()


def test_draws_of_few_rows_need_shrinkage_or_jitter():
    X, y = rows(n=3)
    moments = ClassMoments("per_class").update(X, y)
    with pytest.raises(ValueError, match="singular"):
        GaussianReplay(shrinkage=None, jitter=0.0).sample(moments, 2)
    assert np.isfinite(GaussianReplay(shrinkage=None).sample(moments, 2)[0]).all()


def test_what_cannot_be_drawn_is_refused():
    X, y = rows()
    replay = GaussianReplay()
    with pytest.raises(ValueError, match="not among the 3 classes"):
        replay.sample(replay.new_moments().update(X, y), 2, classes=[0, 9])
    with pytest.raises(ValueError, match="covariance='diag'"):
        GaussianReplay(covariance="diag").new_moments()
    with pytest.raises(ValueError, match="mode"):
        GaussianReplay("uniform").new_moments()


def test_clone_keeps_parameters():
    replay = GaussianReplay("neighbor", n_neighbors=3)
    assert clone(replay).get_params() == replay.get_params()
