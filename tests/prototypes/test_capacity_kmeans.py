# SPDX-License-Identifier: BSD-3-Clause
"""k-means with full clusters, against a walk through all pairs and scikit-learn's k-means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from skpool.prototypes._capacity_kmeans import (
    assign_with_capacity,
    capacity_kmeans,
    cluster_means,
)


def walk(distances, capacity):
    """All pairs by distance, skipping rows that are given and clusters that are full."""
    n, k = distances.shape
    labels, room = [-1] * n, [capacity] * k
    pairs = sorted((distances[i, j], i, j) for i in range(n) for j in range(k))
    for _, i, j in pairs:
        if labels[i] < 0 and room[j]:
            labels[i] = j
            room[j] -= 1
    return labels


@settings(deadline=None, max_examples=150)
@given(data=st.data(), n=st.integers(1, 25), k=st.integers(1, 6), few=st.booleans())
def test_assignment_equals_the_walk_through_all_pairs(data, n, k, few):
    capacity = data.draw(st.integers(-(-n // k), n))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    # Few values make many ties.
    distances = rng.integers(0, 3 if few else 10**9, (n, k)).astype(float)
    assert assign_with_capacity(distances, capacity).tolist() == walk(distances, capacity)


def test_assignment_without_limit_is_the_nearest_centre():
    distances = np.random.default_rng(0).random((50, 7))
    assert (assign_with_capacity(distances, 50) == distances.argmin(axis=1)).all()


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 60), size=st.integers(1, 20), seed=st.integers(0, 1000))
def test_no_cluster_exceeds_its_capacity_and_all_rows_are_given(n, size, seed):
    rows = np.random.default_rng(seed).standard_normal((n, 3))
    k = -(-n // size)
    labels = capacity_kmeans(rows, k, capacity=size, seed=seed)
    counts = np.bincount(labels, minlength=k)
    assert len(labels) == n and counts.sum() == n
    assert counts.max() <= size and counts.min() >= 1 and len(counts) == k


def test_without_limit_it_is_k_means_of_scikit_learn():
    X, _ = make_blobs(300, 5, centers=6, cluster_std=0.7, random_state=1)
    ours = capacity_kmeans(X, 6, n_init=10, max_iter=100)
    peer = KMeans(6, n_init=10, random_state=0).fit(X)
    assert adjusted_rand_score(peer.labels_, ours) == 1.0
    means = cluster_means(X, ours, n_clusters=6)
    inertia = ((X - means[ours]) ** 2).sum()
    assert inertia == pytest.approx(peer.inertia_, rel=1e-9)


def test_far_from_zero_clusters_are_the_same():
    X, _ = make_blobs(200, 4, centers=5, random_state=2)
    assert adjusted_rand_score(capacity_kmeans(X, 5), capacity_kmeans(X + 1e7, 5)) == 1.0


def test_cosine_clusters_directions():
    rng = np.random.default_rng(0)
    axes = np.eye(3)[rng.integers(0, 3, 90)]
    X = axes + 0.1 * rng.standard_normal((90, 3))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    labels = capacity_kmeans(X, 3, metric="cosine")
    assert adjusted_rand_score(axes.argmax(axis=1), labels) == 1.0


def test_more_starts_are_never_worse():
    X = np.random.default_rng(0).standard_normal((80, 2))

    def inertia(n_init):
        labels = capacity_kmeans(X, 8, capacity=12, n_init=n_init)
        means = cluster_means(X, labels, n_clusters=8)
        return ((X - means[labels]) ** 2).sum()

    assert inertia(20) < inertia(1)


def test_means_of_clusters():
    X, labels = np.random.default_rng(0).standard_normal((30, 4)), np.arange(30) % 3
    expected = [X[labels == c].mean(axis=0) for c in range(3)]
    np.testing.assert_allclose(cluster_means(X, labels, n_clusters=3), expected, atol=1e-14)
    unit = cluster_means(X, labels, n_clusters=4, unit=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 1, 1, 0], atol=1e-14)


def test_rows_that_are_all_equal_are_shared_out():
    labels = capacity_kmeans(np.ones((10, 2)), 4, capacity=3)
    assert sorted(np.bincount(labels)) == [1, 3, 3, 3]
