# SPDX-License-Identifier: BSD-3-Clause
"""What only the cache in memory does: its limit, and what is dropped first."""

import pickle

import numpy as np
import pytest

import skpool
from skpool.stores import FREE, HELD, MINE, MemoryCache, default_cache

SPACE = "5a" * 16


def _rows(n, *shape):
    return np.arange(n * np.prod(shape), dtype=np.float64).reshape(n, *shape)


def test_nbytes_counts_the_rows_that_are_kept(filling):
    cache = MemoryCache(10**6)
    keys = filling.make_keys(6)
    cache.put("aa", keys, _rows(6, 5))
    cache.put("bb", keys, np.zeros((6, 4, 3), np.float32), np.array([0, 1, 2, 3, 4, 4]))
    assert cache.nbytes == 6 * 5 * 8 + 14 * 3 * 4
    cache.put("aa", keys[:2], _rows(2, 5))
    assert cache.nbytes == 6 * 5 * 8 + 14 * 3 * 4
    cache.clear()
    assert cache.nbytes == 0 and not cache.held("aa", keys).any()


def test_oldest_rows_are_dropped_first(filling):
    cache = MemoryCache(4 * 16)
    keys = filling.make_keys(6)
    cache.put(SPACE, keys, _rows(6, 2))
    np.testing.assert_array_equal(cache.held(SPACE, keys), [False, False, True, True, True, True])


def test_read_rows_are_dropped_later(filling):
    cache = MemoryCache(3 * 16)
    keys = filling.make_keys(4)
    cache.put(SPACE, keys[:3], _rows(3, 2))
    cache.read(SPACE, keys[:1])
    cache.put(SPACE, keys[3:], _rows(1, 2))
    np.testing.assert_array_equal(cache.held(SPACE, keys), [True, False, True, True])


def test_tokens_are_dropped_before_any_vector(filling):
    cache = MemoryCache(100)
    keys = filling.make_keys(5)
    cache.put("vectors", keys[:2], _rows(2, 2))
    cache.put("tokens", keys[:2], _rows(2, 2, 2))
    cache.read("tokens", keys[:2])
    cache.put("vectors", keys[2:], _rows(3, 2))
    assert cache.held("vectors", keys).all()
    assert not cache.held("tokens", keys).any()


def test_tokens_never_push_out_vectors(filling):
    cache = MemoryCache(100)
    keys = filling.make_keys(6)
    cache.put("vectors", keys, _rows(6, 2))
    cache.put("tokens", keys, _rows(6, 1, 2))
    assert cache.held("vectors", keys).all()
    assert not cache.held("tokens", keys).any()


def test_row_larger_than_the_limit_leaves_the_others(filling):
    cache = MemoryCache(40)
    keys = filling.make_keys(3)
    cache.put("aa", keys[:2], _rows(2, 2))
    cache.put("bb", keys[2:], _rows(1, 9))
    assert cache.held("aa", keys[:2]).all() and not cache.held("bb", keys).any()


def test_dropping_one_row_of_a_put_frees_its_memory(filling):
    cache = MemoryCache(10**6)
    keys = filling.make_keys(4)
    cache.put(SPACE, keys, _rows(4, 3, 2))
    assert all(row.data.base is None for row in cache._tokens.values())


def test_limit_of_zero_keeps_nothing_and_claims_work(filling):
    cache = MemoryCache(0)
    keys = filling.make_keys(3)
    assert (cache.claim(SPACE, keys) == MINE).all()
    cache.put(SPACE, keys[:2], _rows(2, 2))
    cache.put("empty rows", keys, np.empty((3, 0)))
    assert not cache.held(SPACE, keys).any() and not cache.held("empty rows", keys).any()
    np.testing.assert_array_equal(cache.wait(SPACE, keys[:2]), [FREE, FREE])
    assert (cache.claim(SPACE, keys[:2]) == MINE).all()


def test_limit_follows_the_configuration(filling):
    cache = MemoryCache()
    keys = filling.make_keys(4)
    with skpool.config_context(cache_bytes=32):
        cache.put(SPACE, keys, _rows(4, 2))
        assert cache.nbytes == 32
    with skpool.config_context(cache_bytes=64):
        cache.put(SPACE, keys, _rows(4, 2))
        assert cache.nbytes == 64
    with skpool.config_context(cache_bytes=0):
        cache.put("bb", keys[:1], _rows(1, 2))
        assert cache.nbytes == 0


def test_put_beyond_the_limit_ends_all_claims(filling):
    cache = MemoryCache(16)
    keys = filling.make_keys(3)
    cache.claim(SPACE, keys)
    cache.put(SPACE, keys, _rows(3, 2))
    np.testing.assert_array_equal(cache.wait(SPACE, keys), [FREE, FREE, HELD])


def test_pickle_comes_back_empty_with_the_limit(filling):
    cache = MemoryCache(10**6)
    keys = filling.make_keys(3)
    cache.put(SPACE, keys, _rows(3, 2))
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.max_bytes == 10**6 and copy.nbytes == 0
    assert not copy.held(SPACE, keys).any()


def test_pickle_of_the_default_cache_is_the_default_cache():
    assert pickle.loads(pickle.dumps(default_cache())) is default_cache()


@pytest.mark.parametrize("max_bytes", [-1, True, float("nan")])
def test_limit_that_is_no_size_is_refused(max_bytes):
    with pytest.raises(ValueError, match="max_bytes"):
        MemoryCache(max_bytes)
