# SPDX-License-Identifier: BSD-3-Clause
"""A long search tries both engines on its first queries; what it finds does not depend on them."""

import time

import numpy as np
import pytest

from skpool.neighbors import NeighborIndex, _engines


@pytest.fixture
def calls(monkeypatch):
    """Searches are long from the first product on; calls of the engines are written down."""
    found = []

    def recorded(name):
        real = _engines._PROPOSE[name]

        def propose(q, x, n_candidates, *, metric):
            found.append((name, len(q)))
            return real(q, x, n_candidates, metric=metric)

        return propose

    monkeypatch.setattr(_engines, "_PROPOSE", {name: recorded(name) for name in _engines._PROPOSE})
    monkeypatch.setattr(_engines, "_FASTER", {})
    monkeypatch.setattr(_engines, "_LONG", 1)
    monkeypatch.setattr(_engines, "_TRIAL", 5)
    monkeypatch.setattr(_engines.sys, "platform", "linux")
    return found


@pytest.fixture(scope="module")
def rows():
    X = np.random.default_rng(0).integers(-2, 3, size=(90, 4)).astype(np.float32)
    return X[:60], X[60:]


def searched(X, Q, metric, backend):
    index = NeighborIndex(metric, backend=backend)
    index.add(X)
    return index.search(Q, 7)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_a_long_search_finds_what_each_engine_finds(calls, rows, metric):
    distances, ids = searched(*rows, metric, "auto")
    assert [n for _, n in calls] == [5, 5, 20]
    assert [name for name, _ in calls[:2]] == ["torch", "faiss"]
    for backend in ("torch", "faiss"):
        expected = searched(*rows, metric, backend)
        np.testing.assert_array_equal(ids, expected[1])
        np.testing.assert_array_equal(distances, expected[0])


@pytest.mark.parametrize("slow", ["torch", "faiss"])
def test_the_faster_engine_takes_the_rest_and_is_remembered(calls, rows, monkeypatch, slow):
    recorded = _engines._PROPOSE[slow]

    def slowed(*args, **options):
        time.sleep(0.2)
        return recorded(*args, **options)

    monkeypatch.setitem(_engines._PROPOSE, slow, slowed)
    fast = "faiss" if slow == "torch" else "torch"
    searched(*rows, "cosine", "auto")
    assert calls[2:] == [(fast, 20)]
    searched(*rows, "cosine", "auto")
    assert calls[3:] == [(fast, 30)]
    # Rows of another width are tried anew.
    searched(rows[0][:, :3], rows[1][:, :3], "cosine", "auto")
    assert [n for _, n in calls[4:]] == [5, 5, 20]


def test_nothing_is_tried_in_short_searches(calls, rows, monkeypatch):
    X, Q = rows
    searched(X, Q[:19], "cosine", "auto")
    monkeypatch.setattr(_engines, "_LONG", len(Q) * X.size + 1)
    searched(X, Q, "cosine", "auto")
    assert calls == [("torch", 19), ("torch", 30)]


def test_nothing_is_tried_where_two_libraries_of_threads_would_meet(calls, rows, monkeypatch):
    monkeypatch.setattr(_engines.sys, "platform", "darwin")
    searched(*rows, "cosine", "auto")
    assert calls == [("torch", 30)]
