# SPDX-License-Identifier: BSD-3-Clause
"""Damage to the files of a feature store: always found, never served, and recomputed."""

import json
import os
import pickle
import shutil
import sqlite3
import warnings

import numpy as np
import pytest

from skpool.exceptions import DamagedBlockWarning, StoreError
from skpool.stores import HELD, MINE, FeatureStore

SPACE = "5a" * 16
_BLOCK_ROWS = 8


@pytest.fixture
def filled(tmp_path, filling):
    """A closed store of 10 blocks, and its keys."""
    return _filled(tmp_path / "store", filling, 10)


def _filled(path, filling, n_blocks, ragged=False):
    keys = filling.make_keys(n_blocks * _BLOCK_ROWS)
    with FeatureStore(path) as store:
        for part in np.split(keys, n_blocks):
            store.put(SPACE, part, *filling.compute(part, ragged))
            store.flush()
    return path, keys


def _blocks(path):
    """Block files in the order of the index."""
    with sqlite3.connect(path / "index.sqlite") as connection:
        rows = connection.execute("SELECT file FROM blocks ORDER BY id").fetchall()
    connection.close()
    return [path / "blocks" / file for (file,) in rows]


def _flip(path, at, mask):
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


def _read_with_warnings(store, keys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = store.read(SPACE, keys)
    assert all(w.category is DamagedBlockWarning for w in caught)
    return *result, [str(w.message) for w in caught]


def _check_recomputes(store, keys, filling, missing, ragged=False):
    """The claim and put cycle must compute the missing rows and no other."""
    computed = []
    filling.fill(store, SPACE, keys, ragged=ragged, on_computed=lambda k: computed.extend(k))
    assert len(computed) == missing
    found, rows, lengths = store.read(SPACE, keys)
    assert found.all() and filling.is_true(keys, rows, lengths, ragged)


@pytest.mark.parametrize("ragged", [False, True])
def test_flipped_byte_in_each_of_fifty_blocks_is_found(tmp_path, filling, ragged):
    path, keys = _filled(tmp_path / "store", filling, 50, ragged)
    choose = np.random.default_rng(0)
    files = _blocks(path)
    for i, file in enumerate(files):
        # Every fifth flip hits the header.
        at = choose.integers(128 if i % 5 == 0 else file.stat().st_size)
        _flip(file, at, choose.integers(1, 256))
    with FeatureStore(path) as store:
        assert store.held(SPACE, keys).all()
        found, rows, _, messages = _read_with_warnings(store, keys)
        assert not found.any() and len(rows) == 0
        assert len(messages) == 50
        for file, message in zip(files, messages, strict=True):
            assert str(file) in message and "recomputed" in message
            assert not file.exists()
        _check_recomputes(store, keys, filling, len(keys), ragged)


def test_flips_in_some_blocks_leave_the_others(tmp_path, filling):
    path, keys = _filled(tmp_path / "store", filling, 10)
    for i in (2, 7):
        _flip(_blocks(path)[i], -1, 1)
    with FeatureStore(path) as store:
        found, rows, lengths, messages = _read_with_warnings(store, keys)
        expected = ~np.isin(np.arange(len(keys)) // _BLOCK_ROWS, [2, 7])
        np.testing.assert_array_equal(found, expected)
        assert filling.is_true(keys[found], rows, lengths, False)
        assert len(messages) == 2
        np.testing.assert_array_equal(store.held(SPACE, keys), expected)
        np.testing.assert_array_equal(store.claim(SPACE, keys), np.where(expected, HELD, MINE))


def _truncate(file):
    os.truncate(file, file.stat().st_size - 1)


def _empty(file):
    os.truncate(file, 0)


def _extend(file):
    with open(file, "ab") as opened:
        opened.write(b"\0")


def _pickle(file):
    file.write_bytes(pickle.dumps(_Bomb()))


def _object_array(file):
    np.save(file, np.array([_Bomb()], dtype=object), allow_pickle=True)


def _other_array(file):
    np.save(file, np.load(file)[::-1])


def _directory(file):
    file.unlink()
    file.mkdir()


class _Bomb:
    """A pickle of it that is ever loaded fails the test."""

    def __reduce__(self):
        return pytest.fail, ("code from a stored file was run",)


@pytest.mark.parametrize(
    "damage",
    [os.unlink, _truncate, _empty, _extend, _pickle, _object_array, _other_array, _directory],
)
def test_block_file_that_is_not_what_was_written_is_recomputed(filled, filling, damage):
    path, keys = filled
    file = _blocks(path)[3]
    damage(file)
    with FeatureStore(path) as store:
        found, rows, lengths, messages = _read_with_warnings(store, keys)
        assert (~found).sum() == _BLOCK_ROWS and len(messages) == 1
        assert filling.is_true(keys[found], rows, lengths, False)
        _check_recomputes(store, keys, filling, _BLOCK_ROWS)
    with FeatureStore(path) as store:
        assert store.read(SPACE, keys)[0].all()


def test_swapped_block_files_are_found(filled):
    path, keys = filled
    one, two = _blocks(path)[:2]
    shutil.move(one, path / "elsewhere")
    shutil.move(two, one)
    shutil.move(path / "elsewhere", two)
    with FeatureStore(path) as store:
        found, _, _, messages = _read_with_warnings(store, keys)
        assert not found[: 2 * _BLOCK_ROWS].any() and found[2 * _BLOCK_ROWS :].all()
        assert len(messages) == 2


def test_block_that_vanishes_while_it_is_used_is_recomputed(filled, filling, monkeypatch):
    path, keys = filled
    monkeypatch.setattr("skpool.stores._blocks._MAX_OPEN", 1)
    with FeatureStore(path) as store:
        assert store.read(SPACE, keys)[0].all()
        _blocks(path)[0].unlink()
        found, _, _, messages = _read_with_warnings(store, keys)
        assert (~found).sum() == _BLOCK_ROWS and len(messages) == 1
        _check_recomputes(store, keys, filling, _BLOCK_ROWS)


def test_older_good_row_is_served_when_the_newest_is_damaged(filled, filling):
    path, keys = filled
    with FeatureStore(path) as store:
        store.put(SPACE, keys[:4], np.zeros((4, filling.DIM), dtype=np.float32))
    _flip(_blocks(path)[-1], -1, 1)
    with FeatureStore(path) as store:
        found, rows, lengths, messages = _read_with_warnings(store, keys)
        assert len(messages) == 1 and found.all()
        assert filling.is_true(keys, rows, lengths, False)


def test_damage_found_by_one_process_is_no_surprise_to_another(filled, filling):
    path, keys = filled
    _flip(_blocks(path)[0], -1, 1)
    with FeatureStore(path) as one, FeatureStore(path) as two:
        assert two.held(SPACE, keys).all()
        assert len(_read_with_warnings(one, keys)[-1]) == 1
        _check_recomputes(one, keys, filling, _BLOCK_ROWS)
        found, rows, lengths, messages = _read_with_warnings(two, keys)
        assert messages == [] and found.all()
        assert filling.is_true(keys, rows, lengths, False)


def test_damage_to_what_this_store_wrote_can_be_claimed_again(tmp_path, filling):
    keys = filling.make_keys(4)
    with FeatureStore(tmp_path) as store:
        filling.fill(store, SPACE, keys)
        _blocks(tmp_path)[0].unlink()
        # The file is mapped already, so only a check of all files can find out.
        with pytest.warns(DamagedBlockWarning):
            store.verify()
        np.testing.assert_array_equal(store.claim(SPACE, keys), [MINE] * 4)


def test_damage_is_dropped_even_where_warnings_are_errors(filled):
    path, keys = filled
    for i in (0, 1):
        _flip(_blocks(path)[i], -1, 1)
    with FeatureStore(path) as store:
        for _ in range(2):
            with pytest.raises(DamagedBlockWarning):
                store.read(SPACE, keys)
        assert (~store.read(SPACE, keys)[0]).sum() == 2 * _BLOCK_ROWS


def test_verify_lists_and_drops_the_damaged_blocks(filled):
    path, keys = filled
    files = _blocks(path)
    with FeatureStore(path) as store:
        assert store.read(SPACE, keys)[0].all()
        assert store.verify() == []
        # Also what was checked before is checked again.
        _flip(files[4], 200, 16)
        files[6].unlink()
        with pytest.warns(DamagedBlockWarning):
            assert store.verify() == [str(files[4]), str(files[6])]
        assert (~store.held(SPACE, keys)).sum() == 2 * _BLOCK_ROWS


@pytest.mark.parametrize("column", ["space", "file", "dtype", "shape", "keys", "lengths"])
def test_flipped_byte_in_an_index_row_is_found(tmp_path, filling, column):
    path, keys = _filled(tmp_path / "store", filling, 4, ragged=True)
    choose = np.random.default_rng(0)
    with sqlite3.connect(path / "index.sqlite") as connection:
        for i in (1, 2):
            kind = "TEXT" if column in {"space", "file", "dtype", "shape"} else "BLOB"
            statement = f"SELECT CAST({column} AS BLOB) FROM blocks WHERE id = ?"
            value = bytearray(connection.execute(statement, (i,)).fetchone()[0])
            value[choose.integers(len(value))] ^= choose.integers(1, 256)
            statement = f"UPDATE blocks SET {column} = CAST(? AS {kind}) WHERE id = ?"
            connection.execute(statement, (bytes(value), i))
    connection.close()
    with FeatureStore(path) as store:
        found, rows, lengths, messages = _read_with_warnings(store, keys)
        np.testing.assert_array_equal(found, np.arange(len(keys)) >= 2 * _BLOCK_ROWS)
        assert filling.is_true(keys[found], rows, lengths, True)
        # Nobody asks for a space of another name; only `verify` comes across it.
        assert len(messages) == (0 if column == "space" else 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedBlockWarning)
            assert len(store.verify()) == (2 if column == "space" else 0)
        _check_recomputes(store, keys, filling, 2 * _BLOCK_ROWS, ragged=True)


@pytest.mark.parametrize("column", ["size", "crc", "row_crc"])
def test_changed_number_in_an_index_row_is_found(filled, column):
    path, keys = filled
    with sqlite3.connect(path / "index.sqlite") as connection:
        connection.execute(f"UPDATE blocks SET {column} = {column} + 1 WHERE id = 3")
    connection.close()
    with FeatureStore(path) as store:
        found, _, _, messages = _read_with_warnings(store, keys)
        assert len(messages) == 1 and (~found).sum() == _BLOCK_ROWS


def test_index_that_names_a_file_elsewhere_does_not_reach_it(filled, monkeypatch):
    path, keys = filled
    outside = path.parent / "outside.npy"
    np.save(outside, np.zeros((_BLOCK_ROWS, 16), dtype=np.float32))
    size = outside.stat().st_size
    from skpool.stores._index import _row_crc

    with sqlite3.connect(path / "index.sqlite") as connection:
        row = connection.execute("SELECT space, dtype, shape, keys FROM blocks").fetchone()
        space, dtype, shape, keys_blob = row
        name = "../../outside.npy"
        crc = _row_crc((space, name, dtype, shape, size, 0), keys_blob, None)
        connection.execute(
            "UPDATE blocks SET file = ?, size = ?, crc = 0, row_crc = ? WHERE id = 1",
            (name, size, crc),
        )
    connection.close()
    with FeatureStore(path) as store:
        found, _, _, messages = _read_with_warnings(store, keys)
        assert (~found).sum() == _BLOCK_ROWS and "name" in messages[0]
    assert outside.exists()


def test_flipped_bytes_anywhere_in_the_index_never_give_wrong_rows(tmp_path, filling):
    path, keys = _filled(tmp_path / "store", filling, 6, ragged=True)
    good = (path / "index.sqlite").read_bytes()
    choose = np.random.default_rng(0)
    outcomes = {"refused": 0, "served": 0}
    for _ in range(60):
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        data = bytearray(good)
        for at in choose.integers(len(data), size=4):
            data[at] ^= choose.integers(1, 256)
        (copy / "index.sqlite").write_bytes(data)
        try:
            with FeatureStore(copy) as store:
                found, rows, lengths, _ = _read_with_warnings(store, keys)
            assert filling.is_true(keys[found], rows, lengths, True)
            outcomes["served"] += 1
        except StoreError:
            outcomes["refused"] += 1
        shutil.rmtree(copy)
    assert min(outcomes.values()) > 0


@pytest.mark.parametrize("content", [b"no database at all" * 99, b"SQLite format 3\0" + bytes(999)])
def test_damaged_database_is_refused_with_the_remedy(filled, content):
    path, _ = filled
    (path / "index.sqlite").write_bytes(content)
    with pytest.raises(StoreError, match=r"index\.sqlite.*delete the directory"):
        FeatureStore(path)


def test_truncated_database_is_refused_with_the_remedy(filled):
    path, keys = filled
    os.truncate(path / "index.sqlite", 4096)
    with pytest.raises(StoreError, match=r"index\.sqlite.*delete the directory"):
        FeatureStore(path).read(SPACE, keys)


def test_another_format_number_is_refused_and_left_alone(filled):
    path, _ = filled
    with sqlite3.connect(path / "index.sqlite") as connection:
        connection.execute("UPDATE meta SET value = 2 WHERE name = 'format'")
    connection.close()
    n_files = len(_blocks(path))
    with pytest.raises(StoreError, match=r"has format 2, .* reads format 1"):
        FeatureStore(path)
    assert len(_blocks(path)) == n_files
    assert os.listdir(path / "owners") == []


def test_database_of_another_program_is_refused_and_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    connection.close()
    before = (tmp_path / "index.sqlite").read_bytes()
    with pytest.raises(StoreError, match="not the index of a feature store"):
        FeatureStore(tmp_path)
    assert (tmp_path / "index.sqlite").read_bytes() == before


def test_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match="is a file; give a directory"):
            FeatureStore(path)


def test_foreign_files_are_neither_served_nor_touched(filled, filling):
    path, keys = filled
    np.save(path / "blocks" / "mine.npy", np.ones(3))
    (path / "blocks" / "notes.txt").write_text("x")
    (path / "owners" / "README").write_text("x")
    with FeatureStore(path) as store:
        assert store.read(SPACE, keys)[0].all()
        assert store.info()["n_blocks"] == 10
    assert {"mine.npy", "notes.txt"} <= set(os.listdir(path / "blocks"))
    assert os.listdir(path / "owners") == ["README"]


def test_litter_of_the_dead_is_removed_and_that_of_the_living_kept(filled):
    path, keys = filled
    dead = "0" * 32
    with FeatureStore(path) as living:
        (living_name,) = (name.removesuffix(".lock") for name in os.listdir(path / "owners"))
        kept = {f"{living_name}-000001.npy", f"{living_name}-000002.npy.tmp"}
        litter = {f"{dead}-000001.npy", f"{dead}-000002.npy.tmp"}
        for name in kept | litter:
            (path / "blocks" / name).write_bytes(b"x")
        (path / "owners" / f"{dead}.lock").write_bytes(b"")
        with sqlite3.connect(path / "index.sqlite") as connection:
            connection.execute("INSERT INTO claims VALUES ('aa', ?, ?)", (b"k" * 16, dead))
        living.claim("bb", keys[:1])
        with FeatureStore(path):
            names = set(os.listdir(path / "blocks"))
            assert kept <= names and not litter & names and len(names) == 12
            assert f"{dead}.lock" not in os.listdir(path / "owners")
            assert f"{living_name}.lock" in os.listdir(path / "owners")
            owners = connection.execute("SELECT owner FROM claims").fetchall()
            assert owners == [(living_name,)]
        connection.close()
    with FeatureStore(path):
        assert len(os.listdir(path / "blocks")) == 10


def test_blocks_are_plain_npy_files(filled, filling):
    path, keys = filled
    for file, part in zip(_blocks(path), np.split(keys, 10), strict=True):
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        np.testing.assert_array_equal(array, filling.vectors(part))


def test_ragged_blocks_are_the_tokens_one_after_the_other(tmp_path, filling):
    path, keys = _filled(tmp_path / "store", filling, 2, ragged=True)
    for file, part in zip(_blocks(path), np.split(keys, 2), strict=True):
        rows, lengths = filling.tokens(part)
        expected = np.concatenate([r[:n] for r, n in zip(rows, lengths, strict=True)])
        np.testing.assert_array_equal(np.load(file), expected)
    with sqlite3.connect(path / "index.sqlite") as connection:
        (shape,) = connection.execute("SELECT shape FROM blocks WHERE id = 2").fetchone()
    connection.close()
    assert json.loads(shape) == list(expected.shape)
