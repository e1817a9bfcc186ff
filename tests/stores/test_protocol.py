# SPDX-License-Identifier: BSD-3-Clause
"""The protocol of stores, for the one in memory and the one on disk alike."""

import pickle
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from skpool.stores import BUSY, FREE, HELD, MINE, FeatureStore, MemoryCache

SPACE = "5a" * 16


def test_held_is_false_for_an_empty_store(store, filling):
    assert not store.held(SPACE, filling.make_keys(3)).any()


def test_read_of_nothing_found_is_empty(store, filling):
    found, rows, lengths = store.read(SPACE, filling.make_keys(3))
    assert not found.any() and found.shape == (3,)
    assert len(rows) == 0 and lengths is None


@pytest.mark.parametrize("shape", [(), (7,), (3, 7), (2, 3, 7)])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u1", "?"])
def test_read_returns_shape_dtype_and_bytes_that_were_put(store, filling, shape, dtype):
    keys = filling.make_keys(10)
    rows = np.random.default_rng(0).integers(0, 2, (10, *shape)).astype(dtype)
    store.put(SPACE, keys, rows)
    found, read, lengths = store.read(SPACE, keys)
    assert found.all() and lengths is None
    assert read.dtype == rows.dtype and read.shape == rows.shape
    assert read.tobytes() == rows.tobytes()


def test_nan_and_inf_come_back_bit_by_bit(store, filling):
    keys = filling.make_keys(4)
    rows = np.array([[np.nan], [np.inf], [-0.0], [1e-40]], dtype=np.float32)
    store.put(SPACE, keys, rows)
    assert store.read(SPACE, keys)[1].tobytes() == rows.tobytes()


def test_foreign_byte_order_comes_back_as_equal_numbers(store, filling):
    keys = filling.make_keys(3)
    rows = np.arange(6, dtype=">f4").reshape(3, 2)
    store.put(SPACE, keys, rows)
    read = store.read(SPACE, keys)[1]
    np.testing.assert_array_equal(read, rows)
    assert read.dtype.isnative


def test_read_follows_the_order_of_keys_and_allows_duplicates(store, filling):
    keys = filling.make_keys(50)
    rows = filling.vectors(keys)
    for part in np.array_split(np.arange(50), 7):
        store.put(SPACE, keys[part], rows[part])
    order = np.random.default_rng(0).integers(0, 50, 200)
    found, read, _ = store.read(SPACE, keys[order])
    assert found.all()
    np.testing.assert_array_equal(read, rows[order])


def test_read_of_partial_hits_returns_the_found_rows_only(store, filling):
    keys = filling.make_keys(20)
    store.put(SPACE, keys[::2], filling.vectors(keys[::2]))
    found, read, _ = store.read(SPACE, keys[::-1])
    np.testing.assert_array_equal(found, np.arange(20)[::-1] % 2 == 0)
    np.testing.assert_array_equal(read, filling.vectors(keys[::-1][found]))
    np.testing.assert_array_equal(store.held(SPACE, keys), np.arange(20) % 2 == 0)


def test_ragged_rows_come_back_padded_with_zeros(store, filling):
    keys = filling.make_keys(30)
    rows, lengths = filling.tokens(keys)
    garbage = rows + 99 * (rows == 0)
    for part in np.array_split(np.arange(30), 4):
        store.put(SPACE, keys[part], garbage[part], lengths[part])
    order = np.random.default_rng(0).permutation(30)
    _, read, read_lengths = store.read(SPACE, keys[order])
    real = np.arange(5) < lengths[:, None]
    expected = garbage * real[:, :, None]
    np.testing.assert_array_equal(read_lengths, lengths[order])
    np.testing.assert_array_equal(read, expected[order][:, : lengths.max()])


def test_ragged_rows_are_padded_to_the_longest_that_was_asked_for(store, filling):
    keys = filling.make_keys(2)
    store.put(SPACE, keys, np.ones((2, 5, 3)), np.array([2, 5]))
    _, read, lengths = store.read(SPACE, keys[:1])
    assert read.shape == (1, 2, 3)
    np.testing.assert_array_equal(lengths, [2])


def test_ragged_rows_may_be_of_length_zero(store, filling):
    keys = filling.make_keys(3)
    store.put(SPACE, keys, np.ones((3, 2, 4)), np.array([0, 2, 0]))
    store.flush()
    found, read, lengths = store.read(SPACE, keys)
    assert found.all()
    np.testing.assert_array_equal(lengths, [0, 2, 0])
    np.testing.assert_array_equal(read.sum(axis=(1, 2)), [0, 8, 0])


def test_rows_of_different_length_in_one_space_are_padded(store, filling):
    keys = filling.make_keys(4)
    store.put(SPACE, keys[:2], np.ones((2, 3, 4)))
    store.put(SPACE, keys[2:], np.full((2, 5, 4), 2.0))
    store.flush()
    assert store.read(SPACE, keys[:2])[2] is None
    _, read, lengths = store.read(SPACE, keys)
    np.testing.assert_array_equal(lengths, [3, 3, 5, 5])
    assert read.shape == (4, 5, 4)
    assert not read[:2, 3:].any()


def test_spaces_do_not_mix(store, filling):
    keys = filling.make_keys(4)
    store.put("aa", keys, np.ones((4, 2)))
    store.put("bb", keys[:2], np.zeros((2, 3), dtype=np.float16))
    assert store.read("aa", keys)[1].sum() == 8
    np.testing.assert_array_equal(store.held("bb", keys), [True, True, False, False])
    np.testing.assert_array_equal(store.claim("bb", keys), [HELD, HELD, MINE, MINE])


def test_put_again_replaces(store, filling):
    keys = filling.make_keys(6)
    store.put(SPACE, keys, np.zeros((6, 2)))
    store.flush()
    store.put(SPACE, keys[2:4], np.ones((2, 2)))
    np.testing.assert_array_equal(store.read(SPACE, keys)[1][:, 0], [0, 0, 1, 1, 0, 0])
    store.flush()
    np.testing.assert_array_equal(store.read(SPACE, keys)[1][:, 0], [0, 0, 1, 1, 0, 0])


def test_put_of_one_key_twice_keeps_the_last(store, filling):
    keys = filling.make_keys(2)[[0, 1, 0]]
    store.put(SPACE, keys, np.array([[1.0], [2.0], [3.0]]))
    store.flush()
    np.testing.assert_array_equal(store.read(SPACE, keys)[1].ravel(), [3, 2, 3])


def test_put_copies(store, filling):
    keys = filling.make_keys(2)
    rows = np.ones((2, 3))
    mutable = keys.copy()
    store.put(SPACE, mutable, rows)
    rows[:] = 7
    mutable[:] = filling.make_keys(4)[2:]
    found, read, _ = store.read(SPACE, keys)
    assert found.all() and (read == 1).all()
    read[:] = 8
    assert (store.read(SPACE, keys)[1] == 1).all()


def test_keys_that_end_in_zero_bytes_are_distinct(store):
    keys = np.frombuffer(bytes(16) + b"\1" + bytes(15) + b"\1\1" + bytes(14), dtype="V16")
    store.put(SPACE, keys[:2], np.array([[1.0], [2.0]]))
    np.testing.assert_array_equal(store.held(SPACE, keys), [True, True, False])
    np.testing.assert_array_equal(store.read(SPACE, keys)[1].ravel(), [1, 2])


def test_empty_calls_do_nothing(store, filling):
    keys = filling.make_keys(0)
    assert store.held(SPACE, keys).shape == (0,)
    assert store.claim(SPACE, keys).shape == (0,)
    assert store.wait(SPACE, keys).shape == (0,)
    store.put(SPACE, keys, np.empty((0, 3)))
    store.release(SPACE, keys)
    found, rows, lengths = store.read(SPACE, keys)
    assert found.shape == (0,) and len(rows) == 0 and lengths is None


def test_claim_gives_each_sample_once(store, filling):
    keys = filling.make_keys(4)
    store.put(SPACE, keys[:1], np.ones((1, 2)))
    np.testing.assert_array_equal(store.claim(SPACE, keys[:3]), [HELD, MINE, MINE])
    np.testing.assert_array_equal(store.claim(SPACE, keys), [HELD, BUSY, BUSY, MINE])


def test_claim_of_duplicates_gives_the_first(store, filling):
    keys = filling.make_keys(2)[[1, 0, 1, 1]]
    np.testing.assert_array_equal(store.claim(SPACE, keys), [MINE, MINE, BUSY, BUSY])


def test_put_ends_claims(store, filling):
    keys = filling.make_keys(3)
    store.claim(SPACE, keys)
    store.put(SPACE, keys, np.ones((3, 2)))
    np.testing.assert_array_equal(store.claim(SPACE, keys), [HELD] * 3)


def test_release_frees_claims(store, filling):
    keys = filling.make_keys(3)
    store.claim(SPACE, keys)
    store.release(SPACE, keys[:2])
    np.testing.assert_array_equal(store.claim(SPACE, keys), [MINE, MINE, BUSY])


def test_wait_tells_held_free_and_busy_after_the_timeout(store, filling):
    keys = filling.make_keys(3)
    store.put(SPACE, keys[:1], np.ones((1, 2)))
    store.claim(SPACE, keys[1:2])
    begin = time.monotonic()
    status = store.wait(SPACE, keys, timeout=0.05)
    assert 0.05 <= time.monotonic() - begin < 2
    np.testing.assert_array_equal(status, [HELD, BUSY, FREE])


def test_wait_without_busy_returns_at_once(store, filling):
    begin = time.monotonic()
    assert (store.wait(SPACE, filling.make_keys(3)) == FREE).all()
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("how", ["put", "release"])
def test_wait_ends_when_another_thread_is_done(store, filling, how):
    keys = filling.make_keys(3)
    store.claim(SPACE, keys)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait, SPACE, keys, 20)
        time.sleep(0.05)
        assert not waiting.done()
        if how == "put":
            store.put(SPACE, keys, np.ones((3, 2)))
        else:
            store.release(SPACE, keys)
        expected = HELD if how == "put" else FREE
        assert (waiting.result(timeout=10) == expected).all()


def test_many_threads_compute_each_sample_once(store, filling):
    keys = filling.make_keys(300)
    computed, lock = [], threading.Lock()

    def log(mine):
        with lock:
            computed.extend(mine.tolist())

    def run(seed):
        order = np.random.default_rng(seed).permutation(len(keys))
        filling.fill(store, SPACE, keys[order], ragged=True, on_computed=log)
        found, rows, lengths = store.read(SPACE, keys[order])
        return found.all() and filling.is_true(keys[order], rows, lengths, True)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(8)))
    assert len(computed) == len(set(computed)) == 300


def test_threads_read_while_others_put(store, filling):
    keys = filling.make_keys(400)
    stop = threading.Event()

    def read_all():
        n_read = 0
        while not stop.is_set():
            found, rows, lengths = store.read(SPACE, keys)
            assert filling.is_true(keys[found], rows, lengths, False)
            n_read += 1
        return n_read

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read_all) for _ in range(3)]
        try:
            for part in np.array_split(np.random.default_rng(0).permutation(400), 60):
                store.put(SPACE, keys[part], filling.vectors(keys[part]))
        finally:
            stop.set()
        assert all(reader.result() > 0 for reader in readers)
    assert store.read(SPACE, keys)[0].all()


def test_clone_and_deepcopy_are_the_store_itself(store):
    assert clone(store, safe=False) is store
    assert deepcopy(store) is store


def test_pickle_is_small(store, filling):
    keys = filling.make_keys(100)
    store.put(SPACE, keys, np.ones((100, 1000)))
    assert len(pickle.dumps(store)) < 1000


def test_repr_names_the_class(store):
    assert type(store).__name__ in repr(store)


def test_store_can_be_used_after_close(store, filling):
    keys = filling.make_keys(2)
    store.close()
    store.put(SPACE, keys, np.ones((2, 2)))
    assert store.read(SPACE, keys)[0].all()


def test_close_ends_claims(store, filling):
    keys = filling.make_keys(2)
    store.claim(SPACE, keys)
    store.close()
    assert (store.claim(SPACE, keys) == MINE).all()


@pytest.mark.parametrize(
    "keys",
    [
        [b"0" * 16],
        np.zeros((2, 16), dtype=np.uint8),
        np.zeros(2, dtype="S16"),
        np.zeros(2, dtype="V8"),
        np.zeros((1, 2), dtype="V16"),
    ],
)
def test_keys_of_another_form_are_refused(store, keys):
    with pytest.raises(TypeError, match="keys must be an array of dtype V16"):
        store.held(SPACE, keys)


@pytest.mark.parametrize("space", ["", None, b"5a"])
def test_space_that_is_no_text_is_refused(store, filling, space):
    with pytest.raises(TypeError, match="space="):
        store.claim(space, filling.make_keys(1))


@pytest.mark.parametrize(
    ("rows", "lengths", "error"),
    [
        ([[1.0], [2.0]], None, TypeError),
        (np.array([["a"], ["b"]]), None, TypeError),
        (np.array([[None], [None]]), None, TypeError),
        (np.ones((3, 2)), None, ValueError),
        (np.ones(()), None, ValueError),
        (np.ones((2, 2)), [1, 1], ValueError),
        (np.ones((2, 2, 2)), [1], ValueError),
        (np.ones((2, 2, 2)), [1.0, 1.0], ValueError),
        (np.ones((2, 2, 2)), [1, 3], ValueError),
        (np.ones((2, 2, 2)), [-1, 1], ValueError),
    ],
)
def test_rows_that_do_not_fit_are_refused(store, filling, rows, lengths, error):
    keys = filling.make_keys(2)
    with pytest.raises(error, match="rows"):
        store.put(SPACE, keys, rows, lengths)
    assert not store.held(SPACE, keys).any()


@pytest.mark.parametrize(
    "other", [np.ones((1, 3)), np.ones((1, 2), np.float32), np.ones((1, 1, 2)), np.ones(1)]
)
@pytest.mark.parametrize("flushed", [True, False])
def test_rows_unlike_those_of_the_space_are_refused(store, filling, other, flushed):
    keys = filling.make_keys(2)
    store.put(SPACE, keys[:1], np.ones((1, 2)))
    if flushed:
        store.flush()
    with pytest.raises(ValueError, match="another space"):
        store.put(SPACE, keys[1:], other)
    np.testing.assert_array_equal(store.held(SPACE, keys), [True, False])


_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"),
            st.sampled_from(["vector", "grid", "ragged"]),
            st.lists(st.integers(0, 11), min_size=1, max_size=8),
            st.integers(1, 4),
        ),
        st.tuples(st.just("flush")),
        st.tuples(st.just("reopen")),
        st.tuples(st.just("read"), st.lists(st.integers(0, 11), max_size=12)),
    ),
    max_size=14,
)


class _Model:
    """What a store must do, as a plain dict."""

    def __init__(self, store, keys):
        self.store, self.keys = store, keys
        self.rows = {}
        self.count = 0

    def put(self, form, samples, length):
        n = len(samples)
        shape = (n, 3) if form == "vector" else (n, length, 3)
        rows = np.arange(self.count, self.count + np.prod(shape), dtype=np.float64).reshape(shape)
        self.count += rows.size
        lengths = np.arange(n) % (length + 1) if form == "ragged" else None
        self.store.put(form, self.keys[samples], rows, lengths)
        for i, sample in enumerate(samples):
            self.rows[form, sample] = rows[i] if lengths is None else rows[i, : lengths[i]]

    def check(self, samples):
        for form in ("vector", "grid", "ragged"):
            found, rows, lengths = self.store.read(form, self.keys[samples])
            known = [(form, sample) in self.rows for sample in samples]
            np.testing.assert_array_equal(found, known)
            np.testing.assert_array_equal(self.store.held(form, self.keys[samples]), known)
            expected = [self.rows[form, s] for s in samples if (form, s) in self.rows]
            assert len(rows) == len(expected)
            for i, row in enumerate(expected):
                length = len(row) if lengths is None else lengths[i]
                np.testing.assert_array_equal(rows[i][:length], row)
                assert not rows[i][length:].any()


@pytest.mark.parametrize("kind", ["memory", "directory"])
@given(operations=_OPERATIONS, block_bytes=st.sampled_from([1, 100, 10_000]))
@settings(deadline=None, max_examples=25)
def test_what_was_put_is_what_is_read(kind, filling, operations, block_bytes):
    with tempfile.TemporaryDirectory() as path:
        memory = kind == "memory"
        store = MemoryCache(2**20) if memory else FeatureStore(path, block_bytes=block_bytes)
        model = _Model(store, filling.make_keys(12))
        for name, *arguments in operations:
            if name == "put":
                model.put(*arguments)
            elif name == "flush":
                model.store.flush()
            elif name == "read":
                model.check(*arguments)
            elif not memory:
                model.store.close()
                model.store = FeatureStore(path, block_bytes=block_bytes)
        model.check(list(range(12)))
        model.store.close()
