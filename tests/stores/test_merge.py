# SPDX-License-Identifier: BSD-3-Clause
"""Merging: everything that is missing comes over, once, checked, in whatever order."""

import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpool.exceptions import DamagedBlockWarning, StoreError
from skpool.stores import FeatureStore

SPACE = "5a" * 16


def _make(path, filling, keys, ragged=False, n_blocks=2, space=SPACE):
    with FeatureStore(path) as store:
        for part in np.array_split(keys, n_blocks):
            store.put(space, part, *filling.compute(part, ragged))
            store.flush()
    return path


def _check(store, filling, keys, ragged):
    found, rows, lengths = store.read(SPACE, keys)
    assert found.all() and filling.is_true(keys, rows, lengths, ragged)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("link", [False, True])
def test_rows_of_both_stores_are_in_the_merged_one(tmp_path, filling, ragged, link):
    keys = filling.make_keys(60)
    one = _make(tmp_path / "one", filling, keys[:30], ragged)
    # Of its blocks the first is known here by half, the second not at all.
    two = _make(tmp_path / "two", filling, keys[20:60], ragged)
    with FeatureStore(one) as store:
        taken = store.merge(two, link=link)
        assert taken["n_rows"] == {SPACE: 30} and taken["n_blocks"] == 2
        _check(store, filling, keys, ragged)
        assert store.info()["spaces"][SPACE]["n_duplicates"] == 0
        assert store.info()["n_bytes"] == sum(f.stat().st_size for f in (one / "blocks").iterdir())
    shutil.rmtree(two)
    with FeatureStore(one) as store:
        _check(store, filling, keys, ragged)
        assert store.verify() == []


def test_merging_again_takes_nothing(tmp_path, filling):
    keys = filling.make_keys(40)
    one = _make(tmp_path / "one", filling, keys[:20])
    two = _make(tmp_path / "two", filling, keys[10:])
    nothing = {"n_blocks": 0, "n_bytes": 0, "n_rows": {}}
    with FeatureStore(one) as store:
        assert store.merge(two)["n_rows"] == {SPACE: 20}
        before = store.info()["spaces"]
        assert store.merge(two) == nothing == store.merge(one) == store.merge(store)
        assert store.info()["spaces"] == before


@given(
    parts=st.lists(st.sets(st.integers(0, 15), min_size=1), min_size=1, max_size=4),
    data=st.data(),
)
@settings(deadline=None, max_examples=8)
def test_order_of_merges_does_not_matter(tmp_path_factory, filling, parts, data):
    keys, folder = filling.make_keys(16), tmp_path_factory.mktemp("stores")
    paths = [
        _make(folder / str(i), filling, keys[sorted(part)], ragged=True, n_blocks=1)
        for i, part in enumerate(parts)
    ]
    for name, order in [("a", paths), ("b", data.draw(st.permutations(paths)))]:
        with FeatureStore(folder / name) as store:
            n_rows = sum(store.merge(path)["n_rows"].get(SPACE, 0) for path in order)
            held = sorted(set().union(*parts))
            assert n_rows == len(held)
            _check(store, filling, keys[held], True)
            assert store.held(SPACE, keys).sum() == len(held)


def test_what_is_here_stays_and_the_newest_there_is_taken(tmp_path, filling):
    keys = filling.make_keys(4)
    with FeatureStore(tmp_path / "one") as one, FeatureStore(tmp_path / "two") as two:
        one.put(SPACE, keys[:1], np.zeros((1, 2)))
        for value in (1.0, 2.0):
            two.put(SPACE, keys[:3], np.full((3, 2), value))
            two.flush()
        two.put(SPACE, keys[3:], np.full((1, 2), 3.0))
        assert one.merge(two)["n_rows"] == {SPACE: 3}
        np.testing.assert_array_equal(one.read(SPACE, keys)[1][:, 0], [0, 2, 2, 3])


@pytest.mark.parametrize("link", [False, True])
def test_damaged_block_is_left_out_with_a_warning(tmp_path, filling, link):
    keys = filling.make_keys(40)
    two = _make(tmp_path / "two", filling, keys, n_blocks=4)
    file = sorted((two / "blocks").iterdir())[1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with FeatureStore(tmp_path / "one") as store:
        with pytest.warns(DamagedBlockWarning, match=file.name):
            assert store.merge(two, link=link)["n_rows"] == {SPACE: 30}
        held = store.held(SPACE, keys)
        np.testing.assert_array_equal(held, np.arange(40) // 10 != 1)
        _check(store, filling, keys[held], False)
        assert len(os.listdir(tmp_path / "one" / "blocks")) == 3


def test_older_rows_come_over_where_the_newest_are_damaged(tmp_path, filling):
    keys = filling.make_keys(4)
    with FeatureStore(tmp_path / "two") as two:
        two.put(SPACE, keys, filling.vectors(keys))
        two.flush()
        two.put(SPACE, keys, filling.vectors(keys))
    file = sorted((tmp_path / "two" / "blocks").iterdir())[1]
    os.truncate(file, 200)
    with FeatureStore(tmp_path / "one") as one:
        with pytest.warns(DamagedBlockWarning, match=file.name):
            one.merge(tmp_path / "two")
        _check(one, filling, keys, False)


def test_linked_blocks_take_no_room_twice(tmp_path, filling):
    keys = filling.make_keys(20)
    two = _make(tmp_path / "two", filling, keys)
    with FeatureStore(tmp_path / "one") as one:
        one.merge(two, link=True)
        inodes = [
            {f.stat().st_ino for f in (tmp_path / n / "blocks").iterdir()} for n in ("one", "two")
        ]
        assert inodes[0] == inodes[1]
        # Dropping here leaves the other's file.
        one.prune(0)
    with FeatureStore(two) as store:
        _check(store, filling, keys, False)


def test_where_links_are_refused_blocks_are_copied(tmp_path, filling, monkeypatch):
    keys = filling.make_keys(20)
    two = _make(tmp_path / "two", filling, keys)

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with FeatureStore(tmp_path / "one") as one:
        one.merge(two, link=True)
        _check(one, filling, keys, False)


def test_rows_that_wait_in_an_open_store_are_taken_too(tmp_path, filling):
    keys = filling.make_keys(4)
    with FeatureStore(tmp_path / "one") as one, FeatureStore(tmp_path / "two") as two:
        two.put(SPACE, keys, filling.vectors(keys))
        assert one.merge(two)["n_rows"] == {SPACE: 4}


def test_rows_of_another_kind_are_refused_before_anything_is_taken(tmp_path, filling):
    keys = filling.make_keys(4)
    with FeatureStore(tmp_path / "one") as one, FeatureStore(tmp_path / "two") as two:
        one.put("b", keys, np.ones((4, 2)))
        two.put("a", keys, np.ones((4, 2)))
        two.put("b", keys, np.ones((4, 3)))
        with pytest.raises(ValueError, match="another space"):
            one.merge(two)
        assert not one.held("a", keys).any()


def test_path_without_a_store_is_refused_and_left_alone(tmp_path):
    with FeatureStore(tmp_path / "one") as one:
        with pytest.raises(ValueError, match="is no feature store"):
            one.merge(tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_full_disk_while_merging_is_named_and_a_second_merge_finishes(
    tmp_path, filling, monkeypatch
):
    keys = filling.make_keys(40)
    two = _make(tmp_path / "two", filling, keys, n_blocks=4)
    with FeatureStore(tmp_path / "one") as one:
        replace, left = os.replace, [2]

        def full(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            return replace(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(StoreError, match="No space left"):
                one.merge(two)
        assert one.held(SPACE, keys).sum() == 20
        assert len(os.listdir(tmp_path / "one" / "blocks")) == 2
        assert one.merge(two)["n_rows"] == {SPACE: 20}
        _check(one, filling, keys, False)
