# SPDX-License-Identifier: BSD-3-Clause
"""A scatter that is left open between the blocks of a stream is the same scatter."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpool.statistics import ClassMoments
from skpool.statistics._open_scatter import OpenScatter


def brute_force(X, y):
    """By the definition."""
    X = X.astype(np.float64)
    centred = X - np.stack([X[y == c].mean(axis=0) for c in range(y.max() + 1)])[y]
    return centred.T @ centred


def stream(X, y, size, look=None, **options):
    moments = ClassMoments("shared", **options)
    for start in range(0, len(X), size):
        moments.update(X[start : start + size], y[start : start + size])
        if look is not None:
            look(moments)
    return moments


def is_open(moments):
    return isinstance(moments._held.scatter, OpenScatter)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 70),
    d=st.sampled_from([3, 130]),
    looks=st.booleans(),
)
def test_stream_equals_the_definition(seed, size, d, looks):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(4), rng.integers(0, 4, 150)])
    X = rng.normal(size=(len(y), d)) + 5 * rng.normal(size=(4, d))[y] + 20

    def look(moments):
        if looks and rng.random() < 0.3:
            _ = moments.scatter_

    expected = brute_force(X, y)
    found = stream(X, y, size, look).scatter_
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.trace(expected))


def test_updates_leave_it_open_and_whoever_looks_closes_it():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 6)), rng.integers(0, 3, 200)
    moments = stream(X, y, 50)
    copy = moments.copy()
    assert is_open(moments)
    _ = moments.counts_, moments.means_, moments.classes_
    assert is_open(moments)
    _ = moments.scatter_
    assert not is_open(moments)
    np.testing.assert_array_equal(copy.scatter_, moments.scatter_)


def test_pickle_holds_plain_numbers():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    moments = stream(X, y, 20)
    loaded = pickle.loads(pickle.dumps(moments))
    assert isinstance(loaded._held.scatter, np.ndarray)
    np.testing.assert_array_equal(loaded.scatter_, moments.scatter_)


@pytest.mark.parametrize("far", [0.0, 30.0, 1e3])
def test_first_rows_far_away_cost_no_more_digits_than_when_points_follow_the_means(far):
    """In float32, products around points that stay far away would be worse block after block."""
    rng = np.random.default_rng(0)
    y = np.concatenate([np.repeat(np.arange(3), 4), rng.integers(0, 3, 6000)])
    X = rng.normal(size=(len(y), 300)).astype(np.float32)
    X[:12] += far
    expected = brute_force(X, y)

    def error(look=None):
        moments = ClassMoments("shared", product_dtype="float32").update(X[:12], y[:12])
        for start in range(12, len(X), 300):
            moments.update(X[start : start + 300], y[start : start + 300])
            if look is not None:
                look(moments)
        assert is_open(moments) == (far == 0 and look is None)
        return np.abs(moments.scatter_ - expected).max()

    assert error() < 4 * error(lambda moments: moments.scatter_)


def test_blocks_in_two_float_types_add_up():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(600, 300)) + 7, rng.integers(0, 5, 600)
    moments = ClassMoments("shared").update(X[:200], y[:200])
    moments.update(X[200:400].astype(np.float32), y[200:400]).update(X[400:], y[400:])
    expected = brute_force(X, y)
    np.testing.assert_allclose(
        moments.scatter_, expected, rtol=0, atol=1e-6 * np.trace(expected) / 300
    )
