# SPDX-License-Identifier: BSD-3-Clause
"""Sums of third and fourth order: Ledoit-Wolf's shrinkage of rows that are gone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from skpool.statistics import ClassMoments, RunningMoments, covariance_from_moments


def moments(X=None, y=None, w=None):
    new = ClassMoments("per_class", fourth_order=True)
    return new if X is None else new.update(X, y, w)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    return rng.standard_exponential((120, 4)) * [1, 2, 3, 4] + 10.0 * y[:, None], y


def direct(X, y, w=None):
    """The sums as they are written, row by row."""
    w = np.ones(len(X)) if w is None else w
    third, fourth = [], []
    for c in np.unique(y):
        v = X[y == c] - np.average(X[y == c], axis=0, weights=w[y == c])
        squares = np.array([row @ row for row in v])
        third.append(sum(k * s * row for k, s, row in zip(w[y == c], squares, v, strict=True)))
        fourth.append(float((w[y == c] * squares**2).sum()))
    return np.array(third), np.array(fourth)


def assert_holds(held, X, y, w=None, rtol=1e-11):
    third, fourth = direct(X, y, w)
    np.testing.assert_allclose(held.third_, third, atol=rtol * np.abs(third).max())
    np.testing.assert_allclose(held.fourth_, fourth, rtol=rtol)


def test_sums_are_those_of_the_definition(data):
    weights = np.random.default_rng(1).uniform(0.5, 2.0, 120)
    assert_holds(moments(*data), *data)
    assert_holds(moments(*data, weights), *data, weights)


def test_without_rows_the_shrinkage_is_that_of_scikit_learn(data):
    X, y = data
    held = moments(X, y)
    centred = X - np.array([X[y == c].mean(axis=0) for c in range(3)])[y]
    want = LedoitWolf(assume_centered=True).fit(centred)
    got = covariance_from_moments(held, shrinkage="ledoit_wolf")
    assert got.shrinkage == pytest.approx(want.shrinkage_, rel=1e-12)
    np.testing.assert_allclose(got.matrix, want.covariance_, rtol=1e-10)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_any_partition_and_order_gives_the_same(seed, cuts):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(60, 3)) ** 3 + 100.0, rng.integers(0, 3, 60)
    order = rng.permutation(60)
    held = moments()
    for part in np.split(order, np.unique(np.minimum(np.cumsum(cuts), 59))):
        held = (
            held.merge(moments(X[part], y[part]))
            if rng.integers(2)
            else held.update(X[part], y[part])
        )
    assert_holds(held, X, y, rtol=1e-9)


def test_rows_are_removed_and_classes_too(data):
    X, y = data
    held = moments(X, y).downdate(X[:50], y[:50])
    assert_holds(held, X[50:], y[50:], rtol=1e-9)
    held = moments(X, y).forget_class(1)
    assert_holds(held, X[y != 1], y[y != 1])
    gone = moments(X, y).downdate(X, y)
    assert gone.third_.shape == (0, 4)
    assert_holds(gone.update(X, y), X, y)


def test_classes_made_one_equal_a_fit_with_one_label(data):
    X, y = data
    assert_holds(moments(X, y).relabel({0: 2}), X, np.where(y == 0, 2, y), rtol=1e-10)


def test_reweighted_classes_equal_sample_weights(data):
    X, y = data
    weights = np.where(y == 1, 3.0, 1.0)
    assert_holds(moments(X, y).reweighted({1: 3.0}), X, y, weights)


def test_arrays_bring_them_back(data):
    held = moments(*data)
    again = ClassMoments.from_arrays(held.to_arrays())
    np.testing.assert_array_equal(again.third_, held.third_)
    np.testing.assert_array_equal(again.fourth_, held.fourth_)
    assert_holds(again.update(*data), *(np.concatenate([part, part]) for part in data))


def test_a_map_leaves_them_behind(data):
    assert moments(*data).affine(2.0 * np.eye(4)).fourth_ is None


def test_only_equal_kinds_combine(data):
    with pytest.raises(ValueError, match="fourth_order"):
        moments(*data).merge(ClassMoments("per_class").update(*data))
    with pytest.raises(ValueError, match='set scatter="per_class"'):
        ClassMoments("shared", fourth_order=True)


def test_running_moments_of_a_stream_shrink_like_all_rows(data):
    X, _ = data
    held = RunningMoments(fourth_order=True).update(X[:30]).update(X[30:])
    got = covariance_from_moments(held, shrinkage="ledoit_wolf")
    want = LedoitWolf().fit(X)
    assert got.shrinkage == pytest.approx(want.shrinkage_, rel=1e-12)
    np.testing.assert_allclose(held.covariance(), np.cov(X.T, ddof=0), rtol=1e-12)
    again = RunningMoments.from_arrays(held.to_arrays())
    assert again.fourth_order
    np.testing.assert_array_equal(again.scatter_, held.scatter_)


def test_float32_rows_keep_the_shrinkage(data):
    rng = np.random.default_rng(2)
    X = (rng.standard_normal((500, 300)) * np.linspace(0.1, 3, 300) + 5).astype(np.float32)
    held = RunningMoments(fourth_order=True).update(X)
    want = LedoitWolf().fit(X.astype(np.float64)).shrinkage_
    got = covariance_from_moments(held, shrinkage="ledoit_wolf").shrinkage
    assert got == pytest.approx(want, rel=1e-6)
