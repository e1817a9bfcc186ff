# SPDX-License-Identifier: BSD-3-Clause
"""Decompositions that are remembered: what a search saves by them, and what it must not notice."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline

from skpool.preprocessing import Whitening, _memo
from skpool.preprocessing._memo import forget_decompositions, remembered


@pytest.fixture(autouse=True)
def empty():
    forget_decompositions()
    yield
    forget_decompositions()


@pytest.fixture
def solve():
    """A pure function and the list of the matrices that it was called with."""
    calls = []

    def doubled(matrix):
        calls.append(matrix)
        return 2 * matrix, matrix.sum(axis=0)

    return doubled, calls


def matrix(seed, d=80):
    return np.random.default_rng(seed).standard_normal((d, d))


def test_equal_matrices_are_solved_once(solve):
    function, calls = solve
    first, again = remembered(function, matrix(0)), remembered(function, matrix(0))
    assert len(calls) == 1
    np.testing.assert_array_equal(first[0], 2 * matrix(0))
    assert first[1] is again[1]


def test_one_changed_bit_is_another_matrix(solve):
    function, calls = solve
    other = matrix(0)
    other[3, 5] = np.nextafter(other[3, 5], 9.0)
    remembered(function, matrix(0))
    np.testing.assert_array_equal(remembered(function, other)[0], 2 * other)
    remembered(function, matrix(0).reshape(40, 160))
    assert len(calls) == 3


def test_other_functions_of_a_matrix_are_kept_apart(solve):
    function, _ = solve
    remembered(function, matrix(0))
    (got,) = remembered(lambda A: (A + 1,), matrix(0))
    np.testing.assert_array_equal(got, matrix(0) + 1)


def test_small_matrices_are_solved_anew(solve):
    function, calls = solve
    for _ in range(2):
        remembered(function, matrix(0, d=8))
    assert len(calls) == 2


def test_arrays_are_read_only(solve):
    for d in (8, 80):
        with pytest.raises(ValueError, match="read-only"):
            remembered(solve[0], matrix(0, d=d))[0][0, 0] = 1.0


def test_memory_is_bounded_and_the_oldest_goes_first(solve, monkeypatch):
    function, calls = solve
    size = sum(array.nbytes for array in function(matrix(0)))
    monkeypatch.setattr(_memo, "_MAX_BYTES", 2 * size)
    calls.clear()
    for seed in (0, 1, 0, 2):
        remembered(function, matrix(seed))
    held = [array.nbytes for arrays in _memo._held.values() for array in arrays]
    assert sum(held) == 2 * size
    assert len(calls) == 3
    # 0 was used after 1, so 1 is what went.
    remembered(function, matrix(0))
    assert len(calls) == 3
    remembered(function, matrix(1))
    assert len(calls) == 4


def test_what_is_larger_than_the_bound_is_not_kept(solve, monkeypatch):
    function, calls = solve
    monkeypatch.setattr(_memo, "_MAX_BYTES", 100)
    for _ in range(2):
        remembered(function, matrix(0))
    assert len(calls) == 2


def test_threads_share_what_is_remembered(solve):
    function, calls = solve
    seeds = list(range(4)) * 25
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda seed: remembered(function, matrix(seed))[0], seeds))
    for seed, got in zip(seeds, results, strict=True):
        np.testing.assert_array_equal(got, 2 * matrix(seed))
    # Threads that come at the same time may each solve.
    assert len(calls) <= 32


def test_failing_solve_leaves_nothing_behind():
    def fails(_):
        raise np.linalg.LinAlgError("no")

    with pytest.raises(np.linalg.LinAlgError):
        remembered(fails, matrix(0))
    assert not _memo._held


@pytest.fixture
def search():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 5
    X = (
        rng.standard_normal((300, 80)) @ rng.standard_normal((80, 80))
        + 3 * rng.standard_normal((5, 80))[y]
    )
    grid = {
        "whitening__n_components": [5, 20, "auto60", None],
        "whitening__power": [0.5, 1.0],
        "whitening__shrinkage": [None, 0.1, "oas"],
    }
    pipeline = make_pipeline(Whitening(), NearestCentroid())
    return GridSearchCV(pipeline, grid, cv=3, error_score="raise", refit=False), X, y


def test_search_decomposes_once_per_fold(search, monkeypatch):
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: (sizes.append(len(A)), eigh(A))[1])
    model, X, y = search
    model.fit(X, y)
    assert sizes == [80] * 3


def test_search_scores_the_same_with_nothing_remembered(search, monkeypatch):
    model, X, y = search
    with_memo = model.fit(X, y).cv_results_["mean_test_score"]
    monkeypatch.setattr(_memo, "_MIN_BYTES", sys.maxsize)
    np.testing.assert_array_equal(model.fit(X, y).cv_results_["mean_test_score"], with_memo)


def test_remembered_fit_is_the_very_same_fit(search, monkeypatch):
    X = search[1]
    first, second = (Whitening(30).fit(X) for _ in range(2))
    monkeypatch.setattr(_memo, "_MIN_BYTES", sys.maxsize)
    alone = Whitening(30).fit(X)
    for model in (second, alone):
        np.testing.assert_array_equal(model.components_, first.components_)
        np.testing.assert_array_equal(model.transform(X), first.transform(X))
