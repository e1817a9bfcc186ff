# SPDX-License-Identifier: BSD-3-Clause
"""PerClassKNNClassifier against loops, class means, and its indifference to class sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from sklearn import config_context
from sklearn.metrics import pairwise_distances

from skpool.neighbors import PerClassKNNClassifier, WeightedKNNClassifier


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [30, 12, 7])
    return rng.standard_normal((49, 5)) + 0.5 * y[:, None], y, rng.standard_normal((20, 5))


def similarities(Q, X, metric):
    if metric == "dot":
        return Q @ X.T
    distances = pairwise_distances(Q, X, metric=metric)
    return 1 - distances if metric == "cosine" else -(distances**2)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("reduce", ["mean", "logmeanexp"])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_scores_equal_a_loop(data, k, reduce, metric):
    X, y, Q = data
    knn = PerClassKNNClassifier(k, reduce=reduce, metric=metric, temperature=0.3).fit(X, y)
    expected = np.empty((20, 3))
    for c in range(3):
        s = np.sort(similarities(Q, X[y == c], metric), axis=1)[:, ::-1][:, :k]
        tempered = 0.3 * (logsumexp(s / 0.3, axis=1) - np.log(s.shape[1]))
        expected[:, c] = s.mean(axis=1) if reduce == "mean" else tempered
    np.testing.assert_allclose(knn.class_scores(Q), expected, atol=1e-10)
    np.testing.assert_allclose(knn.predict_proba(Q), softmax(expected / 0.3, axis=1), atol=1e-9)


def test_all_neighbors_with_mean_are_products_with_class_means(data):
    X, y, Q = data
    X, Q = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (X, Q))
    means = np.stack([X[y == c].mean(axis=0) for c in range(3)])
    scores = PerClassKNNClassifier(30).fit(X, y).class_scores(Q)
    np.testing.assert_allclose(scores, Q @ means.T, atol=1e-12)


@pytest.mark.parametrize("reduce", ["mean", "logmeanexp"])
@pytest.mark.parametrize("k", [1, 10**6])
def test_copies_of_one_class_change_nothing(data, k, reduce):
    X, y, Q = data
    more = np.concatenate([np.arange(49), np.tile(np.flatnonzero(y == 1), 9)])
    plain = PerClassKNNClassifier(k, reduce=reduce).fit(X, y)
    copied = PerClassKNNClassifier(k, reduce=reduce).fit(X[more], y[more])
    np.testing.assert_allclose(copied.class_scores(Q), plain.class_scores(Q), atol=1e-12)


def test_copies_of_all_rows_with_k_scaled_change_nothing(data):
    X, y, Q = data
    plain = PerClassKNNClassifier(4).fit(X, y)
    copied = PerClassKNNClassifier(40).fit(np.tile(X, (10, 1)), np.tile(y, 10))
    np.testing.assert_allclose(copied.class_scores(Q), plain.class_scores(Q), atol=1e-12)


def test_copies_of_one_class_do_not_change_balanced_votes_of_all(data):
    X, y, Q = data
    more = np.concatenate([np.arange(49), np.tile(np.flatnonzero(y == 1), 9)])
    knn = WeightedKNNClassifier(1000, class_weight="balanced", temperature=0.5)
    plain = knn.fit(X, y).predict_proba(Q)
    np.testing.assert_allclose(knn.fit(X[more], y[more]).predict_proba(Q), plain, atol=1e-12)


@given(st.permutations(range(49)), st.integers(1, 48))
def test_learning_in_pieces_in_any_order_equals_fit(data, order, cut):
    X, y, Q = data
    parts = np.array(order[:cut]), np.array(order[cut:])
    pieces = PerClassKNNClassifier(3)
    for part in parts:
        pieces.partial_fit(X[part], y[part])
    expected = PerClassKNNClassifier(3).fit(X, y).class_scores(Q)
    np.testing.assert_allclose(pieces.class_scores(Q), expected, atol=1e-12)


def test_forgetting_and_merging_equal_refits(data):
    X, y, Q = data
    expected = PerClassKNNClassifier(3).fit(X[:40], y[:40]).class_scores(Q)
    forgot = PerClassKNNClassifier(3).fit(X, y).forget(X[40:], y[40:])
    np.testing.assert_allclose(forgot.class_scores(Q), expected, atol=1e-12)
    merged = PerClassKNNClassifier(3).fit(X[:20], y[:20])
    merged.merge(PerClassKNNClassifier(3).fit(X[20:40], y[20:40]))
    np.testing.assert_allclose(merged.class_scores(Q), expected, atol=1e-12)


def test_announced_class_is_never_predicted(data):
    X, y, Q = data
    knn = PerClassKNNClassifier().partial_fit(X, y, classes=[0, 1, 2, 3])
    assert (knn.class_scores(Q)[:, 3] == -np.inf).all() and (knn.predict_proba(Q)[:, 3] == 0).all()


def test_large_products_give_finite_probabilities():
    X = np.array([[1e4, 0.0], [0.0, 1e4]])
    assert PerClassKNNClassifier(metric="dot").fit(X, [0, 1]).predict_proba(X).tolist() == [
        [1.0, 0.0],
        [0.0, 1.0],
    ]


def test_small_blocks_and_tensors_give_the_same(data):
    X, y, Q = data
    expected = PerClassKNNClassifier().fit(X, y).class_scores(Q)
    with config_context(working_memory=0.001):
        blocked = PerClassKNNClassifier().fit(torch.from_numpy(X), y).class_scores(Q)
    np.testing.assert_allclose(blocked, expected, atol=1e-12)
