# SPDX-License-Identifier: BSD-3-Clause
"""What only the store on disk does: settings, persistence, scale, and disks that refuse."""

import errno
import os
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest

from skpool.exceptions import StoreError
from skpool.stores import HELD, MINE, FeatureStore
from skpool.stores import _blocks as blocks_module
from skpool.stores import _checksums as checksums_module

SPACE = "5a" * 16


@pytest.mark.parametrize(
    "settings",
    [
        {"block_bytes": 0},
        {"block_bytes": 1.5},
        {"block_bytes": True},
        {"block_seconds": -1},
        {"block_seconds": float("nan")},
        {"max_bytes": -1},
        {"max_bytes": 1.5},
        {"max_bytes": True},
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        FeatureStore(tmp_path, **settings)


def test_rows_outlive_the_store(tmp_path, filling):
    keys = filling.make_keys(20)
    with FeatureStore(tmp_path / "a" / "b") as store:
        store.put(SPACE, keys, filling.vectors(keys))
        store.put("bb", keys, *filling.tokens(keys))
    with FeatureStore(str(tmp_path / "a" / "b")) as store:
        found, rows, lengths = store.read(SPACE, keys)
        assert found.all() and filling.is_true(keys, rows, lengths, False)
        found, rows, lengths = store.read("bb", keys)
        assert found.all() and filling.is_true(keys, rows, lengths, True)


def test_relative_path_holds_when_the_working_directory_changes(tmp_path, filling, monkeypatch):
    keys = filling.make_keys(2)
    monkeypatch.chdir(tmp_path)
    store = FeatureStore("store")
    store.close()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with store:
        store.put(SPACE, keys, np.ones((2, 2)))
    assert os.listdir(tmp_path / "other") == []


@pytest.mark.parametrize("name", ["with space", "100%", "q?a#b", "ünïcode"])
def test_any_directory_name_works(tmp_path, filling, name):
    keys = filling.make_keys(2)
    with FeatureStore(tmp_path / name) as store:
        store.put(SPACE, keys, np.ones((2, 2)))
    assert (tmp_path / name / "index.sqlite").exists()
    with FeatureStore(tmp_path / name) as store:
        assert store.held(SPACE, keys).all()


def test_blocks_do_not_exceed_block_bytes(tmp_path, filling):
    keys = filling.make_keys(100)
    row = filling.DIM * 4
    with FeatureStore(tmp_path, block_bytes=10 * row + 1) as store:
        for begin, end in ((0, 3), (3, 50), (50, 51), (51, 100)):
            store.put(SPACE, keys[begin:end], filling.vectors(keys[begin:end]))
        # What is written holds full blocks only; the rest waits.
        assert store.info()["n_rows"][SPACE] == 100
    sizes = [len(np.load(file)) for file in (tmp_path / "blocks").iterdir()]
    assert sizes == [10] * 10


def test_rows_larger_than_a_block_are_blocks_of_their_own(tmp_path, filling):
    keys = filling.make_keys(3)
    with FeatureStore(tmp_path, block_bytes=1) as store:
        store.put(SPACE, keys, filling.vectors(keys))
        assert store.info()["n_blocks"] == 3
        assert store.read(SPACE, keys)[0].all()


def test_info_counts_what_is_on_the_disk(tmp_path, filling):
    keys = filling.make_keys(20)
    with FeatureStore(tmp_path) as store:
        empty = store.info()
        assert empty.pop("index_bytes") > 0
        assert empty == {
            "format": 1,
            "n_blocks": 0,
            "n_bytes": 0,
            "n_rows": {},
            "spaces": {},
            "memory_bytes": 0,
        }
        store.put("aa", keys, filling.vectors(keys))
        store.put("bb", keys[:5], *filling.tokens(keys[:5]))
        assert store.info()["n_blocks"] == 0
        store.flush()
        sizes = [file.stat().st_size for file in sorted((tmp_path / "blocks").iterdir())]
        info = store.info()
        assert info["n_blocks"] == 2 and info["n_bytes"] == sum(sizes)
        assert info["n_rows"] == {"aa": 20, "bb": 5}
        assert info["spaces"]["aa"] == {
            "n_rows": 20,
            "n_duplicates": 0,
            "n_blocks": 1,
            "n_bytes": sizes[0],
            "dtype": "float32",
            "row_shape": (filling.DIM,),
        }
        assert info["spaces"]["bb"]["row_shape"] == (None, filling.DIM)


def test_info_counts_rows_that_were_put_again(tmp_path, filling):
    keys = filling.make_keys(20)
    with FeatureStore(tmp_path) as store:
        for part in (slice(0, 12), slice(8, 20), slice(10, 11)):
            store.put(SPACE, keys[part], filling.vectors(keys[part]))
            store.flush()
        space = store.info()["spaces"][SPACE]
        assert (space["n_rows"], space["n_duplicates"]) == (25, 5)


def test_memory_of_the_index_is_24_bytes_a_key(tmp_path, filling):
    keys = filling.make_keys(1000)
    with FeatureStore(tmp_path) as store:
        store.put(SPACE, keys, filling.vectors(keys))
        store.flush()
        assert store.info()["memory_bytes"] == 0
        assert store.held(SPACE, keys).all()
        assert store.info()["memory_bytes"] == 24 * 1000


def test_repr_shows_path_and_settings(tmp_path):
    with FeatureStore(tmp_path, block_bytes=100) as store:
        assert eval(repr(store)).path == store.path
        assert "block_bytes=100" in repr(store)


def test_closed_store_leaves_index_and_blocks_only(tmp_path, filling):
    keys = filling.make_keys(2)
    with FeatureStore(tmp_path) as store:
        store.claim(SPACE, keys)
        store.put(SPACE, keys[:1], np.ones((1, 2)))
    assert sorted(os.listdir(tmp_path)) == ["blocks", "index.sqlite", "owners"]
    assert os.listdir(tmp_path / "owners") == []
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM claims").fetchone() == (0,)
    connection.close()


def test_many_keys_are_found_and_read(tmp_path, filling):
    keys = filling.make_keys(200_000)
    rows = np.random.default_rng(0).standard_normal((200_000, 32)).astype(np.float16)
    with FeatureStore(tmp_path, block_bytes=2**20) as store:
        for part in np.array_split(np.arange(200_000), 40):
            store.put(SPACE, keys[part], rows[part])
    chosen = np.random.default_rng(1).integers(0, 200_000, 20_000)
    absent = filling.make_keys(1000, seed=9)
    with FeatureStore(tmp_path) as store:
        assert store.held(SPACE, keys).all()
        assert not store.held(SPACE, absent).any()
        found, read, _ = store.read(SPACE, keys[chosen])
        assert found.all()
        np.testing.assert_array_equal(read, rows[chosen])


def test_open_memory_maps_are_bounded(tmp_path, filling, monkeypatch):
    monkeypatch.setattr(blocks_module, "_MAX_OPEN", 4)
    keys = filling.make_keys(60)
    with FeatureStore(tmp_path, block_bytes=1) as store:
        store.put(SPACE, keys, filling.vectors(keys))
        for _ in range(2):
            found, rows, lengths = store.read(SPACE, keys)
            assert found.all() and filling.is_true(keys, rows, lengths, False)
        maps = Path("/proc/self/maps")
        if maps.exists():
            assert maps.read_text().count(str(tmp_path / "blocks")) == 4


def test_blocks_of_another_kind_are_not_mixed_in(tmp_path, filling):
    keys = filling.make_keys(2)
    with FeatureStore(tmp_path) as one, FeatureStore(tmp_path) as two:
        one.put(SPACE, keys[:1], np.ones((1, 2)))
        two.put(SPACE, keys[1:], np.ones((1, 3)))
        one.flush()
        two.flush()
        found, rows, _ = one.read(SPACE, keys)
        np.testing.assert_array_equal(found, [True, False])
        assert rows.shape == (1, 2)


def _raise_no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_keeps_rows_in_memory_and_the_rest_readable(tmp_path, filling, monkeypatch, step):
    keys = filling.make_keys(6)
    rows = filling.vectors(keys)
    with FeatureStore(tmp_path) as store, FeatureStore(tmp_path) as other:
        store.put(SPACE, keys[:2], rows[:2])
        store.flush()
        store.claim(SPACE, keys[2:])
        store.put(SPACE, keys[2:4], rows[2:4])
        with monkeypatch.context() as patch:
            patch.setattr(os, step, _raise_no_space)
            with pytest.raises(StoreError, match=r"blocks/.*No space left"):
                store.flush()
            assert len(os.listdir(tmp_path / "blocks")) == 1
            np.testing.assert_array_equal(other.held(SPACE, keys[:4]), [True] * 2 + [False] * 2)
            assert store.read(SPACE, keys[:4])[0].all()
        store.flush()
        found, read, lengths = other.read(SPACE, keys[:4])
        assert found.all() and filling.is_true(keys[:4], read, lengths, False)


def test_failed_flush_at_close_still_ends_the_claims(tmp_path, filling, monkeypatch):
    keys = filling.make_keys(2)
    store = FeatureStore(tmp_path)
    store.claim(SPACE, keys)
    store.put(SPACE, keys, filling.vectors(keys))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _raise_no_space)
        with pytest.raises(StoreError, match="No space left"):
            store.close()
    assert os.listdir(tmp_path / "owners") == [] and os.listdir(tmp_path / "blocks") == []
    with FeatureStore(tmp_path) as store:
        assert (store.claim(SPACE, keys) == MINE).all()


def test_full_index_leaves_no_partial_entry(tmp_path, filling):
    keys = filling.make_keys(2000)
    with FeatureStore(tmp_path) as store:
        store.put(SPACE, keys[:2], np.ones((2, 1)))
        store.flush()
        connection = store._session.index._connection
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        store.put(SPACE, keys[2:], np.ones((1998, 1)))
        with pytest.raises(StoreError, match=r"index\.sqlite cannot be used .*full"):
            store.flush()
        assert len(os.listdir(tmp_path / "blocks")) == 1
        assert store.info()["n_rows"] == {SPACE: 2}
        connection.execute("PRAGMA max_page_count = 100000")
    with FeatureStore(tmp_path) as store:
        assert store.held(SPACE, keys).all()


def test_trouble_of_the_process_is_not_taken_for_damage(tmp_path, filling, monkeypatch):
    keys = filling.make_keys(2)
    with FeatureStore(tmp_path) as store:
        store.put(SPACE, keys, filling.vectors(keys))
        store.flush()

        def refuse(*_, **__):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(checksums_module, "open", refuse, raising=False)
            with pytest.raises(StoreError, match="Too many open files"):
                store.read(SPACE, keys)
        assert store.read(SPACE, keys)[0].all()


@pytest.fixture
def readonly_directory():
    """A store, a function after which others can only read it, and a closed directory beside."""
    if not hasattr(os, "getuid"):
        pytest.skip("this system has no unprivileged user to run as")
    with tempfile.TemporaryDirectory() as name:
        if not all(parent.stat().st_mode & 0o001 for parent in Path(name).parents):
            pytest.skip("the directory for temporary files is closed to other users")
        path, closed = Path(name) / "store", Path(name) / "closed"
        Path(name).chmod(0o755)
        closed.mkdir(mode=0)

        def set_mode(directory_mode, file_mode):
            for entry in [path, *path.rglob("*")]:
                entry.chmod(directory_mode if entry.is_dir() else file_mode)

        try:
            yield path, lambda: set_mode(0o555, 0o444), closed
        finally:
            set_mode(0o755, 0o644)
            closed.chmod(0o755)


def test_directory_that_cannot_be_written_can_be_read(readonly_directory, driver):
    path, make_readonly, closed = readonly_directory
    keys = np.arange(8, dtype=np.int64).view("V16")
    with FeatureStore(path) as store:
        store.put("5a", keys[:2], np.ones((2, 3)))
    make_readonly()
    assert driver("unprivileged", str(path), [True, True, False, False], str(closed)) == 0


def test_readonly_user_sees_what_a_writer_adds(readonly_directory, driver):
    path, make_readonly, closed = readonly_directory
    keys = np.arange(8, dtype=np.int64).view("V16")
    with FeatureStore(path) as store:
        store.put("5a", keys[:2], np.ones((2, 3)))
        store.flush()
        make_readonly()
        if os.getuid() != 0:
            pytest.skip("only root can write what others cannot")
        store.put("5a", keys[2:3], np.ones((1, 3)))
        store.flush()
        (path / "index.sqlite-wal").chmod(0o444)
        (path / "index.sqlite-shm").chmod(0o444)
        assert driver("unprivileged", str(path), [True, True, True, False], str(closed)) == 0
        assert (store.claim("5a", keys[:3]) == HELD).all()
