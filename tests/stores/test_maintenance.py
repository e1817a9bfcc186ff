# SPDX-License-Identifier: BSD-3-Clause
"""Pruning: what is dropped, what is kept, and that nobody ever reads a wrong row meanwhile."""

import os
import sqlite3
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpool.exceptions import DamagedBlockWarning, StoreError
from skpool.stores import MINE, FeatureStore
from skpool.stores import _session as session_module
from skpool.stores import _side_tables as side_tables

SPACE = "5a" * 16


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still till it is moved; one tick is a minute."""

    class Clock:
        minute = 30_000_000

        def tick(self):
            self.minute += 1

    clock = Clock()
    for module in (side_tables, session_module):
        monkeypatch.setattr(module, "now", lambda: clock.minute * 60_000)
    return clock


def _fill(store, filling, n_blocks, ragged=False, clock=None):
    """Put one block after the other, a tick apart; return their keys and the size of one."""
    keys = filling.make_keys(n_blocks * 8)
    for part in np.split(keys, n_blocks):
        store.put(SPACE, part, *filling.compute(part, ragged))
        store.flush()
        if clock is not None:
            clock.tick()
    return np.split(keys, n_blocks)


def _held(store, blocks):
    return [bool(store.held(SPACE, keys).all()) for keys in blocks]


def _size(path):
    return sum(file.stat().st_size for file in (path / "blocks").iterdir())


@pytest.mark.parametrize("ragged", [False, True])
def test_oldest_blocks_go_first_until_the_rest_fits(tmp_path, filling, clock, ragged):
    with FeatureStore(tmp_path) as store:
        blocks = _fill(store, filling, 6, ragged, clock)
        sizes = [file.stat().st_size for file in sorted((tmp_path / "blocks").iterdir())]
        dropped = store.prune(sum(sizes[2:]))
        assert dropped == {"n_blocks": 2, "n_bytes": sum(sizes[:2]), "n_rows": {SPACE: 16}}
        assert _held(store, blocks) == [False] * 2 + [True] * 4
        assert _size(tmp_path) == sum(sizes[2:]) == store.info()["n_bytes"]
        keys = np.concatenate(blocks[2:])
        found, rows, lengths = store.read(SPACE, keys)
        assert found.all() and filling.is_true(keys, rows, lengths, ragged)
        assert (store.claim(SPACE, blocks[0]) == MINE).all()


def test_block_that_was_read_outlives_those_written_later(tmp_path, filling, clock):
    with FeatureStore(tmp_path) as store:
        blocks = _fill(store, filling, 4, clock=clock)
        store.read(SPACE, blocks[0][:1])
        store.prune(_size(tmp_path) // 2)
        assert _held(store, blocks) == [True, False, False, True]


def test_reads_of_other_processes_and_sessions_count(tmp_path, filling, clock):
    with FeatureStore(tmp_path) as store:
        blocks = _fill(store, filling, 4, clock=clock)
        with FeatureStore(tmp_path) as other:
            other.read(SPACE, blocks[1])
        store.prune(_size(tmp_path) // 4)
        assert _held(store, blocks) == [False, True, False, False]


def test_times_of_use_are_written_once_a_minute(tmp_path, filling, clock):
    with FeatureStore(tmp_path) as store, FeatureStore(tmp_path) as reader:
        blocks = _fill(store, filling, 2, clock=clock)

        def times():
            return [row[-1] for row in sorted(store._session.side.by_use())]

        reader.read(SPACE, blocks[0])
        first = times()
        assert first[0] == clock.minute * 60_000
        reader.read(SPACE, blocks[1])
        assert times() == first
        clock.tick()
        clock.tick()
        reader.read(SPACE, blocks[1])
        assert times()[1] == clock.minute * 60_000


def test_reader_does_not_wait_for_a_writer_to_tell_of_its_use(tmp_path, filling):
    with FeatureStore(tmp_path) as store, FeatureStore(tmp_path) as reader:
        (keys,) = _fill(store, filling, 1)
        with store._session.index.transaction():
            assert reader.read(SPACE, keys)[0].all()


def test_prune_to_nothing_drops_everything(tmp_path, filling):
    with FeatureStore(tmp_path) as store:
        blocks = _fill(store, filling, 3)
        assert store.prune(0)["n_rows"] == {SPACE: 24}
        assert not any(_held(store, blocks)) and os.listdir(tmp_path / "blocks") == []
        # The space is as new: rows of another kind may come.
        store.put(SPACE, blocks[0], np.ones((8, 3, 2)))
        assert store.held(SPACE, blocks[0]).all()


@pytest.mark.parametrize("limit", [None, 10**9])
def test_prune_of_what_fits_drops_nothing(tmp_path, filling, limit):
    with FeatureStore(tmp_path) as store:
        blocks = _fill(store, filling, 3)
        assert store.prune(limit) == {"n_blocks": 0, "n_bytes": 0, "n_rows": {}}
        assert all(_held(store, blocks))


@pytest.mark.parametrize("limit", [-1, 1.5, True, "1"])
def test_limit_that_is_no_number_of_bytes_is_refused(tmp_path, limit):
    with FeatureStore(tmp_path) as store, pytest.raises(ValueError, match="max_bytes="):
        store.prune(limit)


@pytest.mark.parametrize("ragged", [False, True])
def test_superseded_rows_are_removed_without_loss(tmp_path, filling, ragged):
    keys = filling.make_keys(40)
    with FeatureStore(tmp_path) as store:
        wrong = filling.compute(keys[::-1], ragged)
        store.put(SPACE, keys, *wrong)
        store.flush()
        # Wholly superseded, half superseded, and whole.
        for part in (keys[:8], keys[8:16], keys[:8], keys[8:12], keys[16:]):
            store.put(SPACE, part, *filling.compute(part, ragged))
            store.flush()
        assert store.info()["spaces"][SPACE]["n_duplicates"] == 40 + 8 + 4
        before = _size(tmp_path)
        dropped = store.prune()
        assert dropped["n_bytes"] == before - _size(tmp_path) > 0 and dropped["n_rows"] == {}
        assert store.info()["spaces"][SPACE]["n_duplicates"] == 0
        found, rows, lengths = store.read(SPACE, keys)
        assert found.all() and filling.is_true(keys, rows, lengths, ragged)
        assert len(os.listdir(tmp_path / "blocks")) == store.info()["n_blocks"]
    with FeatureStore(tmp_path) as store:
        found, rows, lengths = store.read(SPACE, keys)
        assert found.all() and filling.is_true(keys, rows, lengths, ragged)
        assert store.verify() == []


def test_superseded_rows_go_before_any_that_is_needed(tmp_path, filling, clock):
    with FeatureStore(tmp_path) as store:
        blocks = _fill(store, filling, 3, clock=clock)
        for _ in range(3):
            store.put(SPACE, blocks[2], filling.vectors(blocks[2]))
            store.flush()
            clock.tick()
        assert store.prune(_size(tmp_path) // 2)["n_rows"] == {}
        assert all(_held(store, blocks))


def test_compaction_does_not_make_a_block_younger(tmp_path, filling, clock):
    with FeatureStore(tmp_path) as store:
        blocks = _fill(store, filling, 3, clock=clock)
        store.put(SPACE, blocks[0][:4], filling.vectors(blocks[0][:4]))
        store.flush()
        store.prune()
        by_use = store._session.side.by_use()
        assert [row[3] for row in by_use] == [4, 8, 8, 4]


def test_row_put_while_its_block_is_compacted_is_not_hidden(tmp_path, filling, monkeypatch):
    keys = filling.make_keys(8)
    zeros = np.zeros((8, filling.DIM), dtype=np.float32)
    with FeatureStore(tmp_path) as store, FeatureStore(tmp_path) as other:
        store.put(SPACE, keys, zeros)
        store.flush()
        store.put(SPACE, keys[:4], filling.vectors(keys[:4]))
        store.flush()
        session = store._session
        written = session.written

        def meanwhile(*arguments):
            monkeypatch.setattr(session, "written", written)
            result = written(*arguments)
            other.put(SPACE, keys[4:], filling.vectors(keys[4:]))
            other.flush()
            return result

        monkeypatch.setattr(session, "written", meanwhile)
        store.prune()
        found, rows, lengths = store.read(SPACE, keys)
        assert found.all() and filling.is_true(keys, rows, lengths, False)
        assert len(os.listdir(tmp_path / "blocks")) == store.info()["n_blocks"]


def test_damaged_block_is_not_compacted_into_a_sound_one(tmp_path, filling):
    keys = filling.make_keys(8)
    with FeatureStore(tmp_path) as store:
        store.put(SPACE, keys, filling.vectors(keys))
        store.flush()
        (file,) = (tmp_path / "blocks").iterdir()
        store.put(SPACE, keys[:4], filling.vectors(keys[:4]))
        store.flush()
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.warns(DamagedBlockWarning, match=file.name):
            store.prune()
        np.testing.assert_array_equal(store.held(SPACE, keys), [True] * 4 + [False] * 4)


def test_store_with_a_limit_prunes_itself_after_writing(tmp_path, filling, clock):
    with FeatureStore(tmp_path) as plain:
        blocks = _fill(plain, filling, 1)
        one = _size(tmp_path)
    with FeatureStore(tmp_path, max_bytes=3 * one) as store:
        blocks = _fill(store, filling, 7, clock=clock)
        assert _size(tmp_path) == 3 * one
        assert _held(store, blocks) == [False] * 4 + [True] * 3


def test_store_with_a_limit_smaller_than_a_block_still_serves_its_protocol(tmp_path, filling):
    keys = filling.make_keys(8)
    with FeatureStore(tmp_path, max_bytes=0) as store:
        assert (store.claim(SPACE, keys) == MINE).all()
        store.put(SPACE, keys, filling.vectors(keys))
        # Rows that wait take no room on the disk.
        assert store.held(SPACE, keys).all()
        store.flush()
        assert not store.held(SPACE, keys).any()
        assert (store.claim(SPACE, keys) == MINE).all()


def test_limit_survives_a_pickle(tmp_path):
    with FeatureStore(tmp_path, max_bytes=5) as store:
        rebuild, arguments = store.__reduce__()
        assert rebuild(*arguments).max_bytes == 5


def test_reader_with_a_block_open_goes_on_with_right_rows(tmp_path, filling):
    with FeatureStore(tmp_path) as store, FeatureStore(tmp_path) as reader:
        blocks = _fill(store, filling, 4)
        keys = np.concatenate(blocks)
        assert reader.read(SPACE, keys)[0].all()
        mapped = [reader._session.files.get(i) for i in reader._session.catalogue.blocks.values()]
        store.prune(_size(tmp_path) // 2)
        assert filling.is_true(keys, np.concatenate([m.data for m in mapped]), None, False)
        # The next read finds them gone, without a warning, and keeps no deleted file open.
        found, rows, lengths = reader.read(SPACE, keys)
        assert found.tolist() == [False] * 16 + [True] * 16
        assert filling.is_true(keys[found], rows, lengths, False)
        assert len(reader._session.files._open) == 2


def test_block_pruned_between_finding_and_reading_is_not_damage(tmp_path, filling, monkeypatch):
    with FeatureStore(tmp_path) as store, FeatureStore(tmp_path) as reader:
        blocks = _fill(store, filling, 2)
        keys = np.concatenate(blocks)
        check = reader._session.check

        def late(*arguments):
            store.prune(0)
            return check(*arguments)

        monkeypatch.setattr(reader._session, "check", late)
        assert not reader.read(SPACE, keys)[0].any()


def test_threads_and_stores_read_right_rows_while_others_prune_and_write(tmp_path, filling):
    keys = filling.make_keys(400)
    stop = threading.Event()

    def read():
        with FeatureStore(tmp_path) as reader:
            n_read = 0
            while not stop.is_set():
                found, rows, lengths = reader.read(SPACE, keys)
                assert filling.is_true(keys[found], rows, lengths, True)
                n_read += int(found.sum())
            return n_read

    with FeatureStore(tmp_path, block_bytes=1500) as store, ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            rng = np.random.default_rng(0)
            for turn in range(20):
                part = keys[rng.integers(0, 400, 50)]
                store.put(SPACE, part, *filling.tokens(part))
                if turn % 3 == 0:
                    store.prune()
                if turn % 5 == 0:
                    store.prune(40_000)
        finally:
            stop.set()
        assert all(reader.result() > 0 for reader in readers)
        assert store.verify() == []


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.integers(0, 11), min_size=1, max_size=8)),
        st.tuples(st.just("prune"), st.sampled_from([None, None, 0, 300, 1000])),
        st.tuples(st.just("read"), st.none()),
    ),
    max_size=20,
)


@given(steps=_STEPS)
@settings(deadline=None, max_examples=25)
def test_newest_row_or_none_is_served_after_any_pruning(tmp_path_factory, filling, steps):
    keys, known = filling.make_keys(12), {}
    path = tmp_path_factory.mktemp("store")
    with FeatureStore(path) as store, FeatureStore(path) as other:
        for count, (step, argument) in enumerate(steps):
            if step == "put":
                store.put(SPACE, keys[argument], np.full((len(argument), 2), float(count)))
                store.flush()
                known.update(dict.fromkeys(argument, float(count)))
            elif step == "prune":
                store.prune(argument)
            for reader in (store, other):
                found, rows, _ = reader.read(SPACE, keys)
                served = (
                    dict(zip(np.flatnonzero(found).tolist(), rows[:, :1].ravel(), strict=True))
                    if found.any()
                    else {}
                )
                if step == "prune" and argument is not None:
                    known = {i: known[i] for i in served if i in known}
                assert served == known


def test_prune_of_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    with FeatureStore(tmp_path):
        pass

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(session_module, "Owner", refuse)
    with FeatureStore(tmp_path) as store, pytest.raises(StoreError, match="can only be read"):
        store.prune(0)


def test_orphans_in_the_side_tables_are_removed_at_opening(tmp_path, filling):
    with FeatureStore(tmp_path) as store:
        _fill(store, filling, 2)
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        # As a version does that knows nothing of them.
        connection.execute("DELETE FROM blocks WHERE id = 1")
        connection.commit()
        with FeatureStore(tmp_path):
            pass
        for table in ("sums", "uses"):
            assert connection.execute(f"SELECT block FROM {table}").fetchall() == [(2,)]
    connection.close()


def test_drops_of_others_do_not_read_the_index_anew(tmp_path, filling, monkeypatch):
    with FeatureStore(tmp_path) as store, FeatureStore(tmp_path) as reader:
        blocks = _fill(store, filling, 6)
        assert all(_held(reader, blocks))
        index, asked = reader._session.index, []
        read = index.blocks
        monkeypatch.setattr(index, "blocks", lambda *a: asked.append(a) or read(*a))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            store.prune(_size(tmp_path) // 2)
            assert _held(reader, blocks) == [False] * 3 + [True] * 3
        assert asked == []
