# SPDX-License-Identifier: BSD-3-Clause
"""Distances in float64 against scikit-learn, whatever the pieces, the threads and the magnitude."""

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from skpool.neighbors import _host_distances
from skpool.neighbors._host_distances import host_distances, row_norms

METRICS = ["cosine", "euclidean", "dot"]


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 40)).astype(np.float32)
    return X, rng.standard_normal((50, 40)).astype(np.float32), rng.integers(0, 300, (50, 9))


@pytest.mark.parametrize("metric", METRICS)
def test_distances_equal_those_of_scikit_learn(rows, metric):
    X, Q, positions = rows
    wide = X.astype(np.float64), Q.astype(np.float64)
    if metric == "dot":
        every = -wide[1] @ wide[0].T
    else:
        every = pairwise_distances(wide[1], wide[0], metric=metric)
        every = every**2 if metric == "euclidean" else every
    expected = np.take_along_axis(every, positions, axis=1)
    np.testing.assert_allclose(host_distances(Q, X, positions, metric=metric), expected, atol=1e-11)


@pytest.mark.parametrize("metric", METRICS)
def test_pieces_and_threads_do_not_change_a_bit(rows, metric, monkeypatch):
    X, Q, positions = rows
    expected = host_distances(Q, X, positions, metric=metric)
    for piece in (1, 700, 5000):
        monkeypatch.setattr(_host_distances, "_PIECE_BYTES", piece)
        for n_threads in (1, 3):
            found = host_distances(Q, X, positions, metric=metric, n_threads=n_threads)
            assert (found == expected).all()


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_have_equal_distances_to_the_last_bit(rows, metric):
    X, Q, _ = rows
    X = np.concatenate([X, X[::-1]])
    positions = np.tile(np.arange(600), (50, 1))
    found = host_distances(Q, X, positions, metric=metric)
    assert (found[:, :300] == found[:, :299:-1]).all()


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e200])
def test_cosines_of_extreme_rows_are_right(rows, scale):
    X, Q, positions = (rows[0].astype(np.float64), rows[1].astype(np.float64), rows[2])
    expected = host_distances(Q, X, positions, metric="cosine")
    found = host_distances(Q / scale, X * scale, positions, metric="cosine")
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_norms_equal_those_of_numpy_and_zero_stays_zero(rows):
    X = np.concatenate([rows[0], np.zeros((1, 40), np.float32)])
    np.testing.assert_allclose(row_norms(X), np.linalg.norm(X.astype(np.float64), axis=1))
    np.testing.assert_allclose(row_norms(np.full((1, 4), 1e300)), 2e300)


def test_failure_in_a_thread_is_raised(rows, monkeypatch):
    X, Q, positions = rows
    monkeypatch.setattr(_host_distances, "_PIECE_BYTES", 1)
    with pytest.raises(ValueError, match="operand"):
        host_distances(Q[:, 1:], X, positions, metric="dot", n_threads=2)
