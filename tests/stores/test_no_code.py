# SPDX-License-Identifier: BSD-3-Clause
"""No file can run code: a payload in place of any file of a store or a bank stays data."""

import dataclasses
import os
import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from skpool.exceptions import DamagedBlockWarning, StoreError
from skpool.stores import FeatureStore

SPACE = "5a" * 16


class _Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def payload(tmp_path):
    """A payload, of which this checks at the end that it can run and has not."""
    marker = tmp_path / "the payload ran"
    made = _Payload(marker)
    yield made
    assert not marker.exists()
    pickle.loads(pickle.dumps(made))
    assert marker.exists()


def _pickled(payload, path):
    path.write_bytes(pickle.dumps(payload))


def _npy(payload, path):
    with open(path, "wb") as file:
        np.save(file, np.array([payload] * 8, dtype=object), allow_pickle=True)


def _npz(payload, path):
    with open(path, "wb") as file:
        np.savez(file, features=np.array([[payload]], dtype=object), allow_pickle=True)


def _torch_file(payload, path):
    torch.save(payload, path)


def _npy_with_pickle_behind_the_header(payload, path):
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (8, 16)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(pickle.dumps(payload))


FORGERIES = [_pickled, _npy, _npz, _torch_file, _npy_with_pickle_behind_the_header]


@pytest.fixture
def filled(tmp_path, filling):
    keys = filling.make_keys(8)
    with FeatureStore(tmp_path / "store") as store:
        store.put(SPACE, keys, filling.vectors(keys))
    return tmp_path / "store", keys


@pytest.mark.parametrize("forge", FORGERIES)
def test_block_that_is_a_payload_is_dropped(filled, payload, forge):
    path, keys = filled
    (file,) = (path / "blocks").iterdir()
    forge(payload, file)
    with FeatureStore(path) as store, pytest.warns(DamagedBlockWarning, match=file.name):
        assert not store.read(SPACE, keys)[0].any()


@pytest.mark.parametrize("forge", FORGERIES)
def test_block_that_is_a_payload_is_left_out_of_merges(filled, payload, forge, tmp_path):
    path, _ = filled
    (file,) = (path / "blocks").iterdir()
    forge(payload, file)
    with FeatureStore(tmp_path / "other") as store:
        with pytest.warns(DamagedBlockWarning, match=file.name):
            assert store.merge(path)["n_blocks"] == 0


@pytest.mark.parametrize("forge", FORGERIES)
def test_block_whose_checksums_were_forged_too_is_dropped(filled, payload, forge):
    """Who can write the index can name any file as sound, and still runs nothing."""
    path, keys = filled
    (file,) = (path / "blocks").iterdir()
    forge(payload, file)
    with FeatureStore(path) as store:
        index = store._session.index
        info, block_keys = index.block(1)
        index.drop([1])
        data = file.read_bytes()
        forged = dataclasses.replace(info, size=len(data), crc=zlib.crc32(data))
        index.add(forged, block_keys)
        with pytest.warns(DamagedBlockWarning):
            assert not store.read(SPACE, keys)[0].any()


@pytest.mark.parametrize("forge", FORGERIES)
@pytest.mark.parametrize("name", ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"])
def test_index_that_is_a_payload_is_refused_or_ignored(filled, filling, payload, forge, name):
    path, keys = filled
    forge(payload, path / name)
    if name == "index.sqlite":
        with pytest.raises(StoreError, match=r"index\.sqlite.*delete the directory"):
            FeatureStore(path)
        return
    with FeatureStore(path) as store:
        found, rows, lengths = store.read(SPACE, keys)
        assert found.all() and filling.is_true(keys, rows, lengths, False)


@pytest.mark.parametrize("forge", FORGERIES)
def test_owner_file_that_is_a_payload_is_never_read(filled, filling, payload, forge):
    path, keys = filled
    for name in ("0" * 32 + ".lock", "payload.lock", "payload"):
        forge(payload, path / "owners" / name)
    with FeatureStore(path) as store:
        assert store.read(SPACE, keys)[0].all()
    assert sorted(os.listdir(path / "owners")) == ["payload", "payload.lock"]


@pytest.mark.parametrize("forge", FORGERIES)
@pytest.mark.parametrize("name", ["bank.npy", "bank.npz", "bank.safetensors", "bank.h5"])
def test_bank_that_is_a_payload_is_refused(tmp_path, payload, forge, name):
    if name.endswith("h5"):
        pytest.importorskip("h5py", reason="h5py is not installed")
    forge(payload, tmp_path / name)
    with FeatureStore(tmp_path / "store") as store:
        # An archive of torch is a zip file, but one without arrays.
        with pytest.raises(ValueError, match=r"cannot be read|no numeric array"):
            FeatureStore.from_arrays(store, tmp_path / name)
        assert store.info()["n_blocks"] == 0


def test_ids_of_a_bank_that_are_a_payload_are_refused(tmp_path, payload):
    np.savez(
        tmp_path / "bank.npz",
        features=np.ones((2, 3)),
        ids=np.array([payload, payload], dtype=object),
    )
    with pytest.raises(ValueError, match=r"'ids' holds Python objects"):
        FeatureStore.from_arrays(tmp_path / "store", tmp_path / "bank.npz", ids="ids")


def test_members_of_a_bank_that_are_no_arrays_are_ignored(tmp_path, payload):
    np.savez(tmp_path / "bank.npz", features=np.ones((2, 3)))
    with zipfile.ZipFile(tmp_path / "bank.npz", "a") as archive:
        archive.writestr("payload.pkl", pickle.dumps(payload))
    with FeatureStore.from_arrays(tmp_path / "store", tmp_path / "bank.npz") as store:
        np.testing.assert_array_equal(store.get(), np.ones((2, 3)))


def test_pickle_in_an_hdf5_dataset_stays_bytes(tmp_path, payload):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(tmp_path / "bank.h5", "w") as file:
        file["features"] = np.ones((2, 3))
        file["ids"] = np.array([pickle.dumps(payload, 0) + bytes([65 + i]) for i in range(2)])
        file.attrs["payload"] = np.void(pickle.dumps(payload))
    store = FeatureStore.from_arrays(tmp_path / "store", tmp_path / "bank.h5", ids="ids")
    with store:
        assert store.get().shape == (2, 3)


@pytest.mark.parametrize("dtype", ["O", "|O8", "V8", "S3", "M8[s]", "c8", "i4,O"])
def test_index_that_names_another_type_of_values_is_not_believed(filled, payload, dtype):
    path, keys = filled
    (file,) = (path / "blocks").iterdir()
    _npy(payload, file)
    with FeatureStore(path) as store:
        index = store._session.index
        info, block_keys = index.block(1)
        index.drop([1])
        data = file.read_bytes()

        class Named:
            str = dtype

        forged = dataclasses.replace(
            info, dtype=Named, shape=(8,), size=len(data), crc=zlib.crc32(data)
        )
        index.add(forged, block_keys)
        with pytest.warns(DamagedBlockWarning, match="entry in the index"):
            assert not store.read(SPACE, keys)[0].any()
