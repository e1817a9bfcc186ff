# SPDX-License-Identifier: BSD-3-Clause
"""Several processes on one store: killed at random moments, racing each other, forked."""

import os
import pickle

import numpy as np
import pytest

from skpool.stores import BUSY, FREE, HELD, MINE, FeatureStore

SPACE = "5a" * 16
_BLOCK_ROWS = 32

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def _check_kills(result, n_kills):
    assert result["kills"] == n_kills
    assert result["wrong"] == []
    # What put() had returned from, and the one batch that was being put.
    assert result["most_lost"] <= _BLOCK_ROWS


@needs_fork
def test_killed_writer_leaves_true_rows_no_litter_and_loses_one_block(driver):
    _check_kills(driver("kills", 10, 0), 10)


@needs_fork
@pytest.mark.slow
def test_fifty_killed_writers_leave_true_rows_no_litter_and_lose_one_block(driver):
    result = driver("kills", 50, 100)
    _check_kills(result, 50)
    # The kills did hit the moments between writing a block and naming it.
    assert result["unfinished"] > 0


@needs_fork
@pytest.mark.parametrize("n_kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_merges_and_prunes_leave_true_rows_and_no_litter(driver, n_kills):
    result = driver("maintenance_kills", n_kills, n_kills)
    assert result["kills"] == n_kills and result["wrong"] == []
    # The kills did hit stores in the middle of something.
    assert len(set(result["held"])) > 1


@needs_fork
@pytest.mark.parametrize("n_processes", [2, 3])
def test_processes_compute_each_sample_once(driver, n_processes):
    result = driver("race", n_processes, 0, n_processes)
    assert result["codes"] == [0] * n_processes
    assert result["computed"] == result["distinct"] == result["held"] == 1000
    assert result["litter"] == []


@needs_fork
@pytest.mark.parametrize("n_processes", [2, 3])
def test_others_finish_what_a_killed_process_began(driver, n_processes):
    result = driver("race", n_processes, 1, 10 + n_processes)
    assert result["codes"] == [-9] + [0] * (n_processes - 1)
    assert result["distinct"] == result["held"] == 1000
    # Computed again: what waited in the killed process, and the batch that it was computing.
    assert result["computed"] - 1000 <= _BLOCK_ROWS + 16
    assert result["litter"] == []


@needs_fork
def test_forked_child_and_parent_go_on_with_an_open_store(driver):
    assert driver("fork_with_open_store") == {"code": 0, "good": True, "rows": 30}


@needs_fork
def test_claims_end_with_a_process_whose_forked_child_lives_on(driver):
    result = driver("orphan")
    assert result == {"before": [BUSY] * 10, "waited": [FREE] * 10, "all_mine": True}


@needs_fork
def test_forks_while_threads_fill_the_store_disturb_nobody(driver):
    result = driver("fork_under_threads", 10)
    assert result["codes"] == [0] * 10 and result["good"]
    assert result["rows"] == {SPACE: 400} | {f"{i:02x}": 20 for i in range(10)}


@needs_fork
def test_forked_child_has_the_rows_of_a_cache_and_not_its_claims(driver):
    assert driver("fork_with_cache") == {"code": 0, "status": [HELD, BUSY, MINE]}


def test_two_objects_share_rows_after_flush_and_claims_at_once(tmp_path, filling):
    keys = filling.make_keys(4)
    with FeatureStore(tmp_path) as one, FeatureStore(tmp_path) as two:
        np.testing.assert_array_equal(one.claim(SPACE, keys[:2]), [MINE, MINE])
        np.testing.assert_array_equal(two.claim(SPACE, keys), [BUSY, BUSY, MINE, MINE])
        one.put(SPACE, keys[:2], np.ones((2, 3)))
        np.testing.assert_array_equal(two.claim(SPACE, keys[:2]), [BUSY, BUSY])
        one.flush()
        np.testing.assert_array_equal(two.claim(SPACE, keys[:2]), [HELD, HELD])
        assert two.read(SPACE, keys[:2])[1].sum() == 6


def test_wait_writes_what_waits_first(tmp_path, filling):
    keys = filling.make_keys(2)
    with FeatureStore(tmp_path) as one, FeatureStore(tmp_path) as two:
        one.claim(SPACE, keys[:1])
        two.claim(SPACE, keys[1:])
        one.put(SPACE, keys[:1], np.ones((1, 3)))
        two.put(SPACE, keys[1:], np.ones((1, 3)))
        one.wait(SPACE, keys, timeout=0.0)
        np.testing.assert_array_equal(two.wait(SPACE, keys, timeout=5), [HELD, HELD])


def test_old_rows_are_written_at_the_next_put(tmp_path, filling):
    keys = filling.make_keys(2)
    with FeatureStore(tmp_path, block_seconds=0.0) as one, FeatureStore(tmp_path) as two:
        one.put(SPACE, keys[:1], np.ones((1, 3)))
        np.testing.assert_array_equal(two.held(SPACE, keys), [True, False])


def test_claims_of_a_closed_store_are_free(tmp_path, filling):
    keys = filling.make_keys(2)
    with FeatureStore(tmp_path) as two:
        one = FeatureStore(tmp_path)
        one.claim(SPACE, keys)
        one.close()
        assert (two.claim(SPACE, keys) == MINE).all()


def test_store_that_is_collected_writes_what_waits(tmp_path, filling):
    keys = filling.make_keys(2)
    store = FeatureStore(tmp_path)
    store.put(SPACE, keys, np.ones((2, 3)))
    del store
    with FeatureStore(tmp_path) as store:
        assert store.held(SPACE, keys).all()
        assert len(os.listdir(tmp_path / "owners")) == 1


_CHILD = """
import pickle, sys
import numpy as np
store = pickle.loads(bytes.fromhex(sys.argv[1]))
assert store is pickle.loads(bytes.fromhex(sys.argv[1]))
keys = np.arange(8, dtype=np.int64).view("V16")
assert store.read("5a", keys)[0].tolist() == [True, True, False, False]
store.put("5a", keys[2:], np.full((2, 3), 2.0))
"""


def test_pickled_store_opens_in_another_process_which_writes_at_its_end(tmp_path, run_python):
    keys = np.arange(8, dtype=np.int64).view("V16")
    with FeatureStore(tmp_path / "store") as store:
        store.put("5a", keys[:2], np.ones((2, 3)))
        store.flush()
        run_python("-W", "error", "-c", _CHILD, pickle.dumps(store).hex())
        np.testing.assert_array_equal(store.read("5a", keys)[1][:, 0], [1, 1, 2, 2])
