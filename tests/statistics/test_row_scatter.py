# SPDX-License-Identifier: BSD-3-Clause
"""A scatter held as few rows is the scatter, through every verb and until it is multiplied."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skpool.statistics import ClassMoments, RunningMoments, largest_difference
from skpool.statistics._row_scatter import RowScatter


def _data(n: int = 60, d: int = 40, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(3), rng.integers(0, 3, n - 3)])
    return rng.normal(size=(n, d)) + 4 * rng.normal(size=(3, d))[y] + 20, y


def _within(X, y, weights=None):
    """By the definition."""
    weights = np.ones(len(y)) if weights is None else weights
    total = np.zeros((X.shape[1], X.shape[1]))
    for c in np.unique(y):
        rows, w = X[y == c].astype(np.float64), weights[y == c]
        centred = rows - w @ rows / w.sum()
        total += (centred * w[:, None]).T @ centred
    return total


def _is_rows(moments):
    return isinstance(moments._held.scatter, RowScatter)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    cuts=st.lists(st.integers(1, 59), max_size=8, unique=True),
    weighted=st.booleans(),
    single=st.booleans(),
)
def test_parts_equal_the_definition_at_every_step(seed, cuts, weighted, single):
    X, y = _data()
    X = X.astype(np.float32) if single else X
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.2, 3, len(X)) if weighted else np.ones(len(X))
    order, moments = rng.permutation(len(X)), ClassMoments()
    done = np.zeros(0, dtype=int)
    for part in np.split(order, sorted(cuts)):
        moments.update(X[part], y[part], weights[part] if weighted else None)
        done = np.append(done, part)
        seen = moments.copy()
        expected = _within(X[done], y[done], weights[done])
        np.testing.assert_allclose(seen.scatter_, expected, rtol=1e-9, atol=1e-8)
        np.testing.assert_allclose(seen.counts_.sum(), weights[done].sum())
    assert not _is_rows(moments)


def test_rows_are_held_while_they_are_fewer_than_the_features():
    X, y = _data()
    moments = ClassMoments().update(X[:20], y[:20])
    assert _is_rows(moments) and _is_rows(moments.copy().update(X[20:30], y[20:30]))
    assert not _is_rows(moments.copy().update(X[20:], y[20:]))
    assert not _is_rows(ClassMoments().update(X, y))
    assert _is_rows(moments + ClassMoments().update(X[20:30], y[20:30]))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), cut=st.integers(3, 57), n=st.integers(6, 60))
def test_merging_and_removing_equal_the_definition(seed, cut, n):
    X, y = _data(n)
    order = np.random.default_rng(seed).permutation(n)
    one, two = order[: cut * n // 60], order[cut * n // 60 :]
    parts = [ClassMoments().update(X[part], y[part]) for part in (one, two) if len(part)]
    both = parts[0] + parts[-1] if len(parts) == 2 else parts[0]
    np.testing.assert_allclose(both.scatter_, _within(X, y), rtol=1e-9, atol=1e-8)
    if len(parts) == 2:
        for rest in (both - parts[1], both.copy().downdate(X[two], y[two])):
            np.testing.assert_allclose(rest.scatter_, _within(X[one], y[one]), atol=1e-8)
        again = rest.update(X[two], y[two])
        assert largest_difference(again, both) < 1e-12


def test_removing_everything_and_starting_over():
    X, y = _data(20)
    moments = ClassMoments().update(X, y).downdate(X, y)
    assert not len(moments.classes_) and moments.scatter_.shape == (40, 40)
    fresh = ClassMoments().update(X, y)
    assert largest_difference(moments.update(X, y), fresh) == 0


def test_storage_and_pickles_hold_the_scatter():
    X, y = _data(20)
    moments = ClassMoments().update(X, y)
    for again in (
        ClassMoments.from_arrays(moments.copy().to_arrays()),
        pickle.loads(pickle.dumps(moments.copy())),
    ):
        np.testing.assert_array_equal(again.scatter_, moments.copy().scatter_)
        again.update(X + 1, y), moments.copy().update(X + 1, y)
        both = np.vstack([X, X + 1]), np.append(y, y)
        np.testing.assert_allclose(again.scatter_, _within(*both), atol=1e-8)


def test_a_failed_update_changes_nothing():
    X, y = _data(20)
    moments = ClassMoments().update(X, y)
    before = moments.copy()
    wrong = X.copy()
    wrong[3, 4] = np.nan
    for verb in (moments.update, moments.downdate):
        with pytest.raises(ValueError, match="NaN"):
            verb(wrong, y)
    assert largest_difference(moments, before) == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_factor_gives_the_total_scatter_until_the_rows_reach_the_width(labelled):
    X, y = _data(30)
    moments = ClassMoments() if labelled else RunningMoments()
    update = (
        (lambda a, b: moments.update(X[a:b], y[a:b]))
        if labelled
        else (lambda a, b: moments.update(X[a:b]))
    )
    factor = moments.total_factor if labelled else moments.factor
    for a, b in ((0, 9), (9, 10), (10, 25)):
        update(a, b)
        centred = X[:b] - X[:b].mean(axis=0)
        rows = factor()
        assert len(rows) < 40
        np.testing.assert_allclose(rows.T @ rows, centred.T @ centred, atol=1e-8)
    update(0, 30)
    assert factor() is None


def test_last_rows_of_the_factor_are_the_means():
    X, y = _data(30)
    moments = ClassMoments().update(X, y)
    n = np.bincount(y)
    means = np.array([X[y == c].mean(axis=0) for c in range(3)]) - X.mean(axis=0)
    np.testing.assert_allclose(moments.total_factor()[-3:], np.sqrt(n)[:, None] * means)


def test_tensors_and_half_precision_are_taken():
    X, y = _data(20)
    expected = ClassMoments().update(X.astype(np.float16).astype(np.float64), y).scatter_
    for form in (X.astype(np.float16), torch.from_numpy(X.astype(np.float16))):
        np.testing.assert_allclose(ClassMoments().update(form, y).scatter_, expected, rtol=1e-6)
