# SPDX-License-Identifier: BSD-3-Clause
"""Stores that older versions wrote are read: the values are those of the formulas below.

`data/format_1` was written by the first version, with these calls::

    put("vectors", KEYS[:6], -1 everywhere); put("vectors", KEYS[2:], vectors(...) as float16)
    put("tokens", KEYS[:4], tokens(..., 2) as float32)
    put("ragged", KEYS[:5], tokens(..., 3) as float64, lengths [0, 1, 2, 3, 0])
    put("ragged", KEYS[5:7], tokens(..., 3) as float64)
"""

import os
import shutil
import sqlite3
import warnings
from pathlib import Path

import numpy as np
import pytest

from skpool.stores import MINE, FeatureStore

KEYS = np.array([[i, 7] for i in range(10)], dtype="<u8").view("V16").ravel()


def vectors(numbers, d=4):
    return np.asarray(numbers, dtype=float)[:, None] + np.arange(d) / 4


def tokens(numbers, n_tokens, d=3):
    return vectors(numbers, d)[:, None] + 100 * np.arange(n_tokens)[:, None]


@pytest.fixture
def old(tmp_path):
    """A copy of the store, without the empty directory that version control leaves out."""
    shutil.copytree(Path(__file__).parent / "data" / "format_1", tmp_path / "store")
    return tmp_path / "store"


def _check(store):
    found, rows, lengths = store.read("vectors", KEYS)
    assert found.all() and lengths is None and rows.dtype == np.float16
    expected = vectors(range(10))
    expected[:2] = -1
    np.testing.assert_array_equal(rows, expected)
    found, rows, lengths = store.read("tokens", KEYS)
    assert found.tolist() == [True] * 4 + [False] * 6 and rows.dtype == np.float32
    np.testing.assert_array_equal(rows, tokens(range(4), 2))
    found, rows, lengths = store.read("ragged", KEYS)
    assert found.tolist() == [True] * 7 + [False] * 3 and rows.dtype == np.float64
    assert lengths.tolist() == [0, 1, 2, 3, 0, 3, 3]
    real = np.arange(3) < lengths[:, None]
    np.testing.assert_array_equal(rows, tokens(range(7), 3) * real[:, :, None])


def test_rows_of_format_1_are_read(old):
    with FeatureStore(old) as store:
        _check(store)
        assert store.info()["format"] == 1
        assert store.info()["n_rows"] == {"vectors": 14, "tokens": 4, "ragged": 7}


def test_store_of_format_1_is_written_on(old):
    with FeatureStore(old) as store:
        np.testing.assert_array_equal(store.claim("tokens", KEYS[4:]), [MINE] * 6)
        store.put("tokens", KEYS[4:], tokens(range(4, 10), 2).astype(np.float32))
    with FeatureStore(old) as store:
        np.testing.assert_array_equal(store.read("tokens", KEYS)[1], tokens(range(10), 2))


def test_store_of_format_1_is_verified_pruned_and_merged(old, tmp_path):
    with FeatureStore(old) as store, FeatureStore(tmp_path / "new") as new:
        assert store.verify() == []
        new.merge(store)
        _check(new)
        assert store.prune()["n_blocks"] == 0
        store.put("vectors", KEYS[:2], np.full((2, 4), -1, np.float16))
        assert store.prune()["n_blocks"] == 1
        _check(store)
        # What has no time of use is oldest.
        assert store.prune(store.info()["n_bytes"] - 1)["n_rows"] == {"vectors": 8}


@pytest.mark.parametrize("number", range(5))
def test_damage_to_a_block_of_format_1_is_found(old, number):
    file = sorted((old / "blocks").iterdir())[number]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with FeatureStore(old) as store, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert store.verify() == [str(file)]
    assert len(caught) == 1 and not file.exists()


def test_index_without_side_tables_is_read_where_it_cannot_be_written(old, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("skpool.stores._session.Owner", refuse)
    with FeatureStore(old) as store:
        _check(store)
        assert store.verify() == []
        np.testing.assert_array_equal(store.get("tokens"), tokens(range(4), 2))
    with sqlite3.connect(old / "index.sqlite") as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert "sums" not in tables


def test_first_version_reads_what_is_written_now(tmp_path):
    """It knows the columns of `blocks`, the checksum of whole files, and plain `.npy`."""
    with FeatureStore(tmp_path) as store:
        store.put("vectors", KEYS, vectors(range(10)))
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        columns = "id, space, file, dtype, shape, size, crc, row_crc, keys, lengths"
        ((_, _, file, dtype, shape, size, *_, keys, _),) = connection.execute(
            f"SELECT {columns} FROM blocks"
        )
        assert connection.execute("SELECT value FROM meta WHERE name='format'").fetchone() == (1,)
    connection.close()
    path = tmp_path / "blocks" / file
    assert (dtype, shape, size) == ("<f8", "[10, 4]", os.path.getsize(path))
    assert keys == KEYS.tobytes()
    np.testing.assert_array_equal(np.load(path), vectors(range(10)))
