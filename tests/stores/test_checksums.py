# SPDX-License-Identifier: BSD-3-Clause
"""Checksums of the pieces of a block: what is read is checked, and no more than that."""

import os
import shutil
import sqlite3
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

from skpool.exceptions import DamagedBlockWarning, StoreError
from skpool.stores import FeatureStore
from skpool.stores._checksums import CheckedWriter, DamagedBlock, FileCheck, piece_bytes

SPACE = "5a" * 16


@pytest.mark.parametrize(
    ("row_bytes", "step"),
    [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192), (50_000, 65_536), (10**6, 65_536)],
)
def test_pieces_are_about_a_row_within_limits(row_bytes, step):
    assert piece_bytes(row_bytes) == step


@pytest.mark.parametrize("cuts", [[], [1], [4095, 4096, 4097], [10_000, 10_001]])
def test_written_sums_are_those_of_the_pieces(cuts):
    data = np.random.default_rng(0).bytes(20_001)
    writer = CheckedWriter(None, 4096)
    for part in np.split(np.frombuffer(data, np.uint8), cuts):
        writer.write(part.tobytes())
    assert (writer.size, writer.crc) == (len(data), zlib.crc32(data))
    expected = [zlib.crc32(data[i : i + 4096]) for i in range(0, len(data), 4096)]
    assert writer.sums.values.tolist() == expected


@pytest.mark.parametrize("step", [512, 4096, 300_000])
def test_damage_is_found_exactly_where_it_is_read(tmp_path, step):
    data = bytearray(np.random.default_rng(0).bytes(700_000))
    writer = CheckedWriter(None, step)
    writer.write(data)
    data[444_444] ^= 1
    (tmp_path / "file").write_bytes(data)
    rng = np.random.default_rng(step)
    for _ in range(60):
        check = FileCheck(len(data), writer.sums)
        begins = rng.integers(0, len(data), 5)
        ends = np.minimum(begins + rng.integers(0, 30_000, 5), len(data))
        pieces = check.missing(begins, ends)
        touched = {
            piece
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
            for piece in range(begin // step, -(-end // step) if end > begin else 0)
        }
        assert pieces.tolist() == sorted(touched)
        if 444_444 // step in touched:
            with pytest.raises(DamagedBlock):
                check.compare(tmp_path / "file", pieces)
        elif touched:
            check.compare(tmp_path / "file", pieces)
            assert not len(check.missing(begins, ends))


def _store(path, filling, n=4000, **settings):
    keys = filling.make_keys(n)
    with FeatureStore(path, **settings) as store:
        store.put(SPACE, keys, filling.vectors(keys))
    (file,) = (path / "blocks").iterdir()
    return keys, file


def _flip(file, at):
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 0x10]))


def test_rows_beside_the_damage_are_served_and_the_damaged_never(tmp_path, filling):
    keys, file = _store(tmp_path, filling)
    _flip(file, 128 + 3000 * filling.DIM * 4)
    with FeatureStore(tmp_path) as store:
        found, rows, lengths = store.read(SPACE, keys[:100])
        assert found.all() and filling.is_true(keys[:100], rows, lengths, False)
        with pytest.warns(DamagedBlockWarning, match="checksum"):
            assert not store.read(SPACE, keys[3000:3001])[0].any()
        assert not store.held(SPACE, keys).any()


def test_few_rows_of_a_large_block_read_few_pieces(tmp_path, filling, monkeypatch):
    keys, _ = _store(tmp_path, filling)
    counted = []
    crc32 = zlib.crc32
    with FeatureStore(tmp_path) as store:
        store.held(SPACE, keys[:1])
        monkeypatch.setattr(
            zlib, "crc32", lambda data, *a: counted.append(len(data)) or crc32(data, *a)
        )
        assert store.read(SPACE, keys[[5, 2000]])[0].all()
        # The header with the first row, the other row, and the entry with the sums themselves.
        assert sum(counted) < 4 * 4096
        counted.clear()
        assert store.read(SPACE, keys[[2000, 5]])[0].all()
        assert counted == []


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM sums",
        "UPDATE sums SET crc = crc + 1",
        "UPDATE sums SET step = 0",
        "UPDATE sums SET data = 'x'",
        "UPDATE sums SET data = zeroblob(4)",
        "DROP TABLE sums",
    ],
)
def test_without_sums_of_pieces_the_whole_block_is_checked(tmp_path, filling, change):
    keys, file = _store(tmp_path, filling)
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        connection.execute(change)
    connection.close()
    with FeatureStore(tmp_path) as store:
        found, rows, lengths = store.read(SPACE, keys[:10])
        assert found.all() and filling.is_true(keys[:10], rows, lengths, False)
    _flip(file, -1 % file.stat().st_size)
    with FeatureStore(tmp_path) as store, pytest.warns(DamagedBlockWarning):
        assert not store.read(SPACE, keys[:10])[0].any()


def test_verify_gives_old_blocks_sums_of_pieces(tmp_path, filling):
    _store(tmp_path, filling)
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        before = connection.execute("SELECT * FROM sums").fetchall()
        connection.execute("DELETE FROM sums")
        connection.commit()
        with FeatureStore(tmp_path) as store:
            assert store.verify() == []
        assert connection.execute("SELECT * FROM sums").fetchall() == before
    connection.close()


def test_file_replaced_while_it_is_open_is_checked_from_the_start(tmp_path, filling):
    keys, file = _store(tmp_path, filling)
    with FeatureStore(tmp_path) as store:
        assert store.read(SPACE, keys[:10])[0].all()
        data = bytearray(file.read_bytes())
        data[128 + 5 * filling.DIM * 4] ^= 1
        (tmp_path / "other").write_bytes(data)
        os.replace(tmp_path / "other", file)
        # The damage is in rows that were checked in the file that is gone.
        with pytest.warns(DamagedBlockWarning):
            assert not store.read(SPACE, keys[3000:3010])[0].any()


def _verified_copy(path, tmp_path, file, at):
    """Flip one byte of a file in a copy of a store; return what verify says of the copy."""
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    _flip(copy / file.relative_to(path), at)
    with FeatureStore(copy) as store, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        damaged = store.verify()
        assert len(caught) == len(damaged)
    shutil.rmtree(copy)
    return [str(Path(name).relative_to(copy)) for name in damaged]


@pytest.mark.parametrize(("ragged", "n_flips"), [(False, 100), (True, 30)])
def test_verify_finds_each_of_many_flipped_bytes_in_blocks(tmp_path, filling, ragged, n_flips):
    keys, path = filling.make_keys(1000), tmp_path / "store"
    with FeatureStore(path, block_bytes=16_000) as store:
        store.put(SPACE, keys, *filling.compute(keys, ragged))
    files = sorted((path / "blocks").iterdir())
    rng = np.random.default_rng(int(ragged))
    for i in range(n_flips):
        file = files[rng.integers(len(files))]
        # Every tenth hits the header.
        at = int(rng.integers(128 if i % 10 == 0 else file.stat().st_size))
        assert _verified_copy(path, tmp_path, file, at) == [f"blocks/{file.name}"]
    with FeatureStore(path) as store:
        assert store.verify() == []


def test_verify_finds_flipped_bytes_in_the_entries_of_the_index(tmp_path, filling):
    keys, path = filling.make_keys(200), tmp_path / "store"
    with FeatureStore(path) as store:
        store.put(SPACE, keys, *filling.tokens(keys))
    index = path / "index.sqlite"
    content = index.read_bytes()
    with sqlite3.connect(index) as connection:
        entry = connection.execute("SELECT space, file, shape, keys, lengths FROM blocks")
        values = [v.encode() if isinstance(v, str) else v for v in entry.fetchone()]
        (sums,) = connection.execute("SELECT data FROM sums").fetchone()
    connection.close()
    rng = np.random.default_rng(0)
    (file,) = (path / "blocks").iterdir()
    for value in values * 4:
        # A long value lies in several pages; its first bytes are surely together.
        begin = content.index(value[:40])
        at = begin + int(rng.integers(len(value[:40])))
        damaged = _verified_copy(path, tmp_path, index, at)
        # Where the tree of spaces has the old name, it is rebuilt too.
        assert set(damaged) - {"index.sqlite"} and len(damaged) <= 2
    assert _verified_copy(path, tmp_path, index, content.index(sums) + 1) == ["index.sqlite"]
    assert file.exists()


def test_flip_anywhere_in_the_index_is_found_or_changes_no_row(tmp_path, filling):
    keys, path = filling.make_keys(60), tmp_path / "store"
    with FeatureStore(path, block_bytes=1000) as store:
        store.put(SPACE, keys, filling.vectors(keys))
    content = (path / "index.sqlite").read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(len(content), size=60).tolist():
        copy = tmp_path / "copy"
        shutil.copytree(path, copy)
        _flip(copy / "index.sqlite", at)
        try:
            with FeatureStore(copy) as store, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                store.verify()
                found, rows, lengths = store.read(SPACE, keys)
            assert filling.is_true(keys[found], rows, lengths, False)
            assert found.all() or caught
        except StoreError:
            pass
        shutil.rmtree(copy)
