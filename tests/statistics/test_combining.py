# SPDX-License-Identifier: BSD-3-Clause
"""Moments of several machines and contributors, put together and taken apart."""

import numpy as np
import pytest

from skpool.statistics import (
    ClassMoments,
    RunningMoments,
    ShardedMoments,
    largest_difference,
    merge_all,
)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 5)) * [1, 2, 3, 4, 5] + 50.0, rng.integers(0, 4, 200)


def split(X, y, n):
    return [ClassMoments().update(X[i::n], y[i::n]) for i in range(n)]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16])
def test_merged_parts_equal_one_fit(data, n):
    X, y = data
    parts = split(X, y, n)
    before = [part.to_arrays() for part in parts]
    assert largest_difference(merge_all(parts), ClassMoments().update(X, y)) < 1e-13
    for part, arrays in zip(parts, before, strict=True):
        assert all(np.array_equal(arrays[k], v) for k, v in part.to_arrays().items())


def test_order_of_machines_changes_rounding_only(data):
    parts = split(*data, 9)
    assert 0 <= largest_difference(merge_all(parts), merge_all(parts[::-1])) < 1e-12


def test_running_moments_merge_too(data):
    X, _ = data
    merged = merge_all([RunningMoments().update(X[i::3]) for i in range(3)])
    np.testing.assert_allclose(merged.covariance(), np.cov(X.T, ddof=0), rtol=1e-12)


def test_nothing_to_merge_is_refused():
    with pytest.raises(ValueError, match="parts is empty"):
        merge_all([])


def test_difference_is_the_largest_relative_one(data):
    X, y = data
    a, b = ClassMoments("none").update(X, y), ClassMoments("none").update(X, y)
    assert largest_difference(a, b) == 0.0
    moved = ClassMoments("none").update(X + 1.0, y)
    want = 1.0 / np.abs(moved.means_).max()
    assert largest_difference(a, moved) == pytest.approx(want, rel=1e-12)
    assert largest_difference(a, ClassMoments("none").update(X, y + 1)) == np.inf
    assert largest_difference(a, ClassMoments("none").update(X[:, :3], y)) == np.inf
    with pytest.raises(TypeError, match="different kinds"):
        largest_difference(a, ClassMoments("shared").update(X, y))


# --- shards ----------------------------------------------------------------------------------


def sharded(X, y, names, scatter="shared"):
    held = ShardedMoments(scatter)
    for i, name in enumerate(names):
        held.update(X[i :: len(names)], y[i :: len(names)], shard=name)
    return held


def test_total_of_shards_equals_one_fit(data):
    X, y = data
    held = sharded(X, y, ["b", "a", "c"])
    assert list(held.shards_) == ["a", "b", "c"]
    assert largest_difference(held.total(), ClassMoments().update(X, y)) < 1e-13


@pytest.mark.parametrize("scatter", ["none", "shared", "per_class"])
def test_a_dropped_shard_leaves_no_bit(data, scatter):
    X, y = data
    names = ["a", "b", "c", 7, 3]
    after = sharded(X, y, names, scatter).drop_shard("b").total().to_arrays()
    never = ShardedMoments(scatter)
    for i in (4, 2, 0, 3):
        never.update(X[i::5], y[i::5], shard=names[i])
    assert all(np.array_equal(after[k], v) for k, v in never.total().to_arrays().items())


def test_all_shards_dropped_hold_nothing(data):
    assert len(sharded(*data, ["a"]).drop_shard("a").total().classes_) == 0


def test_bad_shards_are_refused_and_change_nothing(data):
    X, y = data
    held = sharded(X, y, ["a", "b"])
    before = held.total().to_arrays()
    with pytest.raises(ValueError, match="features"):
        held.update(X[:, :2], y, shard="c")
    with pytest.raises(ValueError, match="one kind of label"):
        held.update(X, y.astype(str), shard="c")
    with pytest.raises(ValueError, match="shard='z' is not held"):
        held.drop_shard("z")
    with pytest.raises(TypeError, match="shard=None"):
        held.update(X, y, shard=None)
    assert all(np.array_equal(before[k], v) for k, v in held.total().to_arrays().items())
