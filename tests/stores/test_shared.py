# SPDX-License-Identifier: BSD-3-Clause
import shutil

import numpy as np
import pytest

from skpool.exceptions import StoreError
from skpool.stores import FeatureStore


def _keys(n):
    return np.arange(2 * n, dtype=np.int64).view("V16")


def test_one_path_gives_one_object(tmp_path):
    store = FeatureStore.shared(tmp_path / "store")
    assert FeatureStore.shared(str(tmp_path / "store")) is store
    assert FeatureStore.shared(tmp_path / "other") is not store


def test_a_deleted_directory_is_begun_anew(tmp_path):
    keys, rows = _keys(3), np.arange(6.0).reshape(3, 2)
    store = FeatureStore.shared(tmp_path / "store")
    store.put("5a", keys, rows)
    store.flush()
    shutil.rmtree(tmp_path / "store")
    store = FeatureStore.shared(tmp_path / "store")
    assert not store.held("5a", keys).any()
    store.put("5a", keys, rows)
    store.flush()
    with FeatureStore(tmp_path / "store") as other:
        found, stored, _ = other.read("5a", keys)
    assert found.all()
    np.testing.assert_array_equal(stored, rows)


def test_a_path_that_is_a_file_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        FeatureStore.shared(tmp_path / "file")
