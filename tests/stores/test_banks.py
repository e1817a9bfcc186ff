# SPDX-License-Identifier: BSD-3-Clause
"""Banks that others made come in, rows come out by id, and files that others read are written."""

import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from sklearn.linear_model import LogisticRegression

import skpool
from skpool.exceptions import MissingDependencyError, StoreError
from skpool.pooling import TokenPooling
from skpool.stores import FeatureStore, TokenArray
from skpool.stores import _banks as banks_module
from skpool.stores import _export as export_module
from skpool.stores import _store_source as source_module

N = 50
IDS = [f"image {i}" for i in range(N)]
VECTORS = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
TOKENS = np.random.default_rng(1).normal(size=(N, 5, 3)).astype(np.float16)
LENGTHS = np.arange(N) % 6
PADDED = TOKENS * (np.arange(5) < LENGTHS[:, None])[:, :, None]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Many blocks, also for a few rows."""
    monkeypatch.setattr(banks_module, "_READ_BYTES", 200)
    monkeypatch.setattr(export_module, "_BLOCK_BYTES", 500)
    monkeypatch.setattr(source_module, "_BATCH_BYTES", 200)


def _h5py():
    return pytest.importorskip("h5py", reason="h5py is not installed")


def _write(path, **arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        safetensors.numpy.save_file(arrays, path)
    else:
        with _h5py().File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array.astype("S") if array.dtype.kind == "U" else array
    return path


FILES = ["bank.npz", "bank.safetensors", "bank.h5"]


@pytest.mark.parametrize("values", [VECTORS, TOKENS], ids=["vectors", "tokens"])
@pytest.mark.parametrize("name", [*FILES, "bank.npy"])
def test_rows_of_a_file_come_back_by_their_numbers(tmp_path, name, values):
    path = tmp_path / name
    np.save(path, values) if name.endswith("npy") else _write(path, features=values)
    with FeatureStore.from_arrays(tmp_path / "store", path) as store:
        np.testing.assert_array_equal(store.get(), values)
        order = [7, 3, 3, 49]
        rows = store.get(ids=order)
        np.testing.assert_array_equal(rows, values[order])
        assert rows.dtype == values.dtype


@pytest.mark.parametrize("name", ["bank.npz", "bank.h5"])
def test_ids_may_be_an_array_of_the_file(tmp_path, name):
    path = _write(tmp_path / name, names=np.array(IDS), features=VECTORS, labels=np.arange(N))
    with FeatureStore.from_arrays(tmp_path / "store", path, ids="names") as store:
        np.testing.assert_array_equal(store.get(ids=IDS[5:2:-1]), VECTORS[5:2:-1])


@pytest.mark.parametrize(
    "ids", [IDS, np.array(IDS), np.array(IDS, dtype=object), np.array(IDS, dtype="S"), tuple(IDS)]
)
def test_text_in_any_container_is_the_same_id(tmp_path, ids):
    with FeatureStore.from_arrays(tmp_path, VECTORS, ids=ids) as store:
        np.testing.assert_array_equal(store.get(ids=IDS[::-1]), VECTORS[::-1])


@pytest.mark.parametrize(
    "ids", [range(10, 60), np.arange(10, 60, dtype=np.uint8), [*range(10, 60)]]
)
def test_numbers_in_any_container_are_the_same_id(tmp_path, ids):
    with FeatureStore.from_arrays(tmp_path, VECTORS, ids=ids) as store:
        np.testing.assert_array_equal(store.get(ids=[59, 10]), VECTORS[[49, 0]])
        with pytest.raises(ValueError, match=r"ids names 1 samples .*the first: 9"):
            store.get(ids=[10, 9])


@pytest.mark.parametrize(
    ("ids", "error", "text"),
    [
        ([*IDS[:-1], 3], TypeError, "one kind"),
        ([*range(N - 1), 1.5], TypeError, "one kind"),
        ([True] * N, TypeError, "one kind"),
        (np.linspace(0, 1, N), TypeError, "one kind"),
        (IDS[:-1], ValueError, "49 entries for 50 rows"),
        ([*IDS[:-1], IDS[3]], ValueError, "same entry for rows 3 and 49"),
        (np.zeros((N, 2), dtype=int), ValueError, "one id per row"),
        ("names", ValueError, "names no array"),
    ],
)
def test_ids_that_name_no_rows_are_refused(tmp_path, ids, error, text):
    with FeatureStore(tmp_path) as store:
        with pytest.raises(error, match=text):
            FeatureStore.from_arrays(store, VECTORS, ids=ids)
        assert store.info()["n_blocks"] == 0


def test_text_where_ids_to_read_are_expected_is_refused(tmp_path):
    with FeatureStore.from_arrays(tmp_path, VECTORS, ids=IDS) as store:
        with pytest.raises(TypeError, match="one id; give a sequence"):
            store.get(ids="image 3")


def test_keys_may_be_given_in_place_of_ids(tmp_path, filling):
    keys = filling.make_keys(N)
    with FeatureStore.from_arrays(tmp_path, VECTORS, keys=keys) as store:
        np.testing.assert_array_equal(store.get(keys=keys[3:5]), VECTORS[3:5])
        found, rows, _ = store.read("bank", keys)
        assert found.all() and np.array_equal(rows, VECTORS)
        with pytest.raises(ValueError, match="both given"):
            store.get(ids=[1], keys=keys)
        with pytest.raises(ValueError, match="both given"):
            FeatureStore.from_arrays(store, VECTORS, ids=IDS, keys=keys)


@pytest.mark.parametrize("source", [VECTORS, torch.from_numpy(VECTORS), np.asfortranarray(VECTORS)])
def test_arrays_and_tensors_are_sources_too(tmp_path, source):
    with FeatureStore.from_arrays(tmp_path, source) as store:
        np.testing.assert_array_equal(store.get(), VECTORS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_compressed_and_fortran_order_members_are_read(tmp_path, save):
    save(tmp_path / "bank.npz", features=np.asfortranarray(VECTORS), scale=np.float64(3.0))
    with FeatureStore.from_arrays(tmp_path / "store", tmp_path / "bank.npz") as store:
        np.testing.assert_array_equal(store.get(), VECTORS)


def test_bfloat16_becomes_float32_without_loss(tmp_path):
    values = torch.from_numpy(VECTORS).to(torch.bfloat16)
    safetensors.torch.save_file({"features": values}, tmp_path / "bank.safetensors")
    with FeatureStore.from_arrays(tmp_path / "store", tmp_path / "bank.safetensors") as store:
        rows = store.get()
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, values.float().numpy())


def test_datasets_in_groups_are_found_by_their_path(tmp_path):
    path = _write(tmp_path / "bank.h5", **{"train/features": VECTORS, "test/features": TOKENS})
    with FeatureStore(tmp_path / "store") as store:
        with pytest.raises(ValueError, match=r"several arrays .*test/features.*array="):
            FeatureStore.from_arrays(store, path)
        FeatureStore.from_arrays(store, path, array="train/features", space="train")
        FeatureStore.from_arrays(store, path, array="test/features", space="test")
        np.testing.assert_array_equal(store.get("test"), TOKENS)
        with pytest.raises(ValueError, match=r"2 spaces \('train', 'test'\): name one"):
            store.get()
        with pytest.raises(ValueError, match="space='val'"):
            store.get("val")


def test_hdf5_without_h5py_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "bank.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"skpool\[hdf5\]"):
        FeatureStore.from_arrays(tmp_path / "store", tmp_path / "bank.h5")


def test_links_to_other_files_are_not_followed(tmp_path):
    h5py = _h5py()
    _write(tmp_path / "secret.h5", features=VECTORS)
    VECTORS.tofile(tmp_path / "secret.bin")
    with h5py.File(tmp_path / "bank.h5", "w") as file:
        file["linked"] = h5py.ExternalLink("secret.h5", "features")
        file["soft"] = h5py.SoftLink("/linked")
        external = [(str(tmp_path / "secret.bin"), 0, VECTORS.nbytes)]
        file.create_dataset("external", VECTORS.shape, VECTORS.dtype, external=external)
        layout = h5py.VirtualLayout(VECTORS.shape, VECTORS.dtype)
        layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "features", VECTORS.shape)
        file.create_virtual_dataset("virtual", layout)
    with pytest.raises(ValueError, match="no numeric array"):
        FeatureStore.from_arrays(tmp_path / "store", tmp_path / "bank.h5")


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("bank.csv", ValueError, "no known ending"),
        ("absent.npy", ValueError, "no file"),
        ([[1.0]], TypeError, "source is a list"),
        (np.arange(3.0), ValueError, "no numeric array"),
        (np.array([["a"]]), ValueError, "no numeric array"),
        (np.float64(1.0), TypeError, "source is a float64"),
    ],
)
def test_source_that_is_no_bank_is_refused(tmp_path, source, error, text):
    if isinstance(source, str):
        source = tmp_path / source
    with pytest.raises(error, match=text):
        FeatureStore.from_arrays(tmp_path / "store", source)


@pytest.mark.parametrize("name", [*FILES, "bank.npy"])
@pytest.mark.parametrize("damage", ["empty", "half", "text", "pickle"])
def test_file_that_is_damaged_is_refused_and_nothing_is_taken(tmp_path, name, damage):
    path = tmp_path / name
    np.save(path, VECTORS) if name.endswith("npy") else _write(path, features=VECTORS)
    good = path.read_bytes()
    content = {"empty": b"", "half": good[: len(good) // 2], "text": b"no bank" * 50}
    path.write_bytes(content.get(damage, pickle.dumps(VECTORS)))
    with FeatureStore(tmp_path / "store") as store:
        with pytest.raises(ValueError, match="cannot be read"):
            FeatureStore.from_arrays(store, path)
        assert store.info()["n_blocks"] == 0


def test_flipped_byte_in_an_npz_is_found_before_any_row_is_taken(tmp_path):
    path = _write(tmp_path / "bank.npz", features=VECTORS)
    data = bytearray(path.read_bytes())
    data[data.index(VECTORS[-1].tobytes())] ^= 1
    path.write_bytes(data)
    with FeatureStore(tmp_path / "store") as store:
        with pytest.raises(ValueError, match=r"cannot be read .*CRC"):
            FeatureStore.from_arrays(store, path)
        assert store.info()["n_blocks"] == 0


def test_npz_whose_header_promises_more_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bank.npz", "w") as archive:
        with archive.open("features.npy", "w") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 8)}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(64))
    with pytest.raises(ValueError, match="do not fit its shape"):
        FeatureStore.from_arrays(tmp_path / "store", tmp_path / "bank.npz")


# Opening.


def test_tokens_open_lazily_with_prefix_and_grid(tmp_path):
    store = FeatureStore.from_arrays(tmp_path, TOKENS, n_prefix_tokens=1, grid=(2, 2))
    with store:
        tokens = store.open(ids=[4, 2, 9])
        assert isinstance(tokens, TokenArray) and tokens.shape == (3, 5, 3)
        assert tokens.grid == (2, 2) and tokens.n_prefix_tokens == 1 and tokens.mask is None
        np.testing.assert_array_equal(np.asarray(tokens), TOKENS[[4, 2, 9]])
        np.testing.assert_array_equal(np.asarray(tokens[[2, 0]].patches), TOKENS[[9, 4], 1:])
        np.testing.assert_array_equal(tokens.to_map(), TOKENS[[4, 2, 9], 1:].reshape(3, 2, 2, 3))
        other = store.open(n_prefix_tokens=0, grid=(1, 5))
        assert other.grid == (1, 5) and other.n_prefix_tokens == 0
        with pytest.raises(ValueError, match="does not hold the 4 tokens"):
            store.open(grid=(3, 3))
        with pytest.raises(ValueError, match="n_prefix_tokens=6"):
            store.open(n_prefix_tokens=6)


def test_vectors_open_as_one_token_each(tmp_path):
    with FeatureStore.from_arrays(tmp_path, VECTORS) as store:
        tokens = store.open()
        assert tokens.shape == (N, 1, 6)
        np.testing.assert_array_equal(TokenPooling("mean").fit_transform(tokens), VECTORS)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_pooling_of_an_opened_store_equals_that_of_the_array(tmp_path, pooling):
    values = TOKENS.astype(np.float32)
    with FeatureStore.from_arrays(tmp_path, values, n_prefix_tokens=1, grid=(2, 2)) as store:
        expected = TokenArray.from_array(values, n_prefix_tokens=1, grid=(2, 2))
        expected = TokenPooling(pooling).fit_transform(expected)
        np.testing.assert_allclose(
            TokenPooling(pooling).fit_transform(store.open()), expected, rtol=1e-6
        )


def test_ragged_tokens_open_with_a_mask(tmp_path):
    with FeatureStore.from_arrays(tmp_path, TOKENS, lengths=LENGTHS, ids=IDS) as store:
        tokens = store.open(ids=IDS[::-1])
        assert tokens.shape == TOKENS.shape
        np.testing.assert_array_equal(np.asarray(tokens), PADDED[::-1])
        np.testing.assert_array_equal(tokens.mask.sum(axis=1), LENGTHS[::-1])
        means = TokenPooling("mean", empty="zero").fit_transform(tokens)
        counts = np.maximum(LENGTHS, 1)[::-1, None]
        np.testing.assert_allclose(
            means, PADDED[::-1].astype(float).sum(axis=1) / counts, atol=1e-3
        )
        with pytest.raises(ValueError, match="from 0 to 5 tokens"):
            store.get()


def test_whole_numbers_open_as_float64(tmp_path):
    values = np.arange(24).reshape(4, 3, 2)
    with FeatureStore.from_arrays(tmp_path, values) as store:
        tokens = store.open()
        assert tokens.dtype == np.float64 and store.get().dtype == values.dtype
        np.testing.assert_array_equal(np.asarray(tokens), values)


def test_opened_store_reads_nothing_before_it_is_asked(tmp_path, monkeypatch):
    with FeatureStore.from_arrays(tmp_path, TOKENS) as store:
        monkeypatch.setattr(store, "read", None)
        assert store.open()[::2].shape == (25, 5, 3)


def test_opened_store_is_pickled_by_its_path(tmp_path):
    with FeatureStore.from_arrays(tmp_path, TOKENS) as store:
        tokens = pickle.loads(pickle.dumps(store.open(ids=[1, 2])))
        np.testing.assert_array_equal(np.asarray(tokens), TOKENS[1:3])
        tokens._source.store.close()


def test_rows_pruned_after_opening_are_an_error_and_no_silent_gap(tmp_path):
    with FeatureStore.from_arrays(tmp_path, TOKENS) as store:
        tokens = store.open()
        store.prune(0)
        with pytest.raises(StoreError, match="no longer in the store"):
            np.asarray(tokens)


def test_rows_that_are_neither_vectors_nor_tokens_are_for_get(tmp_path, filling):
    with FeatureStore(tmp_path) as store:
        store.put("maps", filling.make_keys(2), np.ones((2, 3, 4, 5)))
        assert store.get("maps").shape == (2, 3, 4, 5)
        with pytest.raises(ValueError, match=r"neither vectors .* use get"):
            store.open("maps")


def test_array_above_the_limit_is_refused(tmp_path):
    with FeatureStore.from_arrays(tmp_path, VECTORS) as store:
        with skpool.config_context(max_array_bytes=VECTORS.nbytes - 1):
            with pytest.raises(ValueError, match="max_array_bytes=1,199"):
                store.get()


def test_rows_by_id_fit_an_estimator_of_scikit_learn(tmp_path):
    y = (VECTORS[:, 0] > 0).astype(int)
    with FeatureStore.from_arrays(tmp_path, VECTORS, ids=IDS) as store:
        model = LogisticRegression(C=1e4).fit(store.get(ids=IDS[:40]), y[:40])
        np.testing.assert_array_equal(
            model.predict(store.get(ids=IDS[40:])), model.predict(VECTORS[40:])
        )


def test_damaged_note_is_an_error_till_verify_removes_it(tmp_path):
    with FeatureStore.from_arrays(tmp_path, TOKENS, n_prefix_tokens=1, grid=(2, 2)) as store:
        with store._session.index.transaction() as connection:
            connection.execute("UPDATE notes SET value = replace(value, '1', '0')")
        with pytest.raises(StoreError, match="damaged; call verify"):
            store.open()
        with pytest.warns(UserWarning, match="space 'bank' is damaged"):
            assert store.verify() == [str(tmp_path / "index.sqlite")]
        assert store.open().n_prefix_tokens == 0


# Exporting.


def _load(path):
    if path.suffix == ".npz":
        return dict(np.load(path, allow_pickle=False))
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    with _h5py().File(path) as file:
        return {name: file[name][()] for name in file}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_exported_file_is_read_by_others_and_by_us(tmp_path, name, ragged):
    lengths = LENGTHS if ragged else None
    with FeatureStore.from_arrays(tmp_path / "one", TOKENS, ids=IDS, lengths=lengths) as store:
        store.export(tmp_path / name)
        loaded = _load(tmp_path / name)
        np.testing.assert_array_equal(loaded["rows"], PADDED if ragged else TOKENS)
        assert loaded["rows"].dtype == TOKENS.dtype and loaded["keys"].shape == (N, 16)
        assert set(loaded) == {"rows", "keys", "lengths"} - (set() if ragged else {"lengths"})
        with FeatureStore.from_arrays(tmp_path / "two", tmp_path / name) as again:
            tokens = again.open(ids=IDS[::-1])
            np.testing.assert_array_equal(np.asarray(tokens), np.asarray(store.open())[::-1])
            if ragged:
                np.testing.assert_array_equal(tokens.mask, store.open().mask[::-1])
    assert sorted(os.listdir(tmp_path)) == sorted([name, "one", "two"])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u2", "?"])
@pytest.mark.parametrize("name", FILES)
def test_exported_types_are_kept(tmp_path, name, dtype):
    values = (np.arange(12).reshape(6, 2) % 2).astype(dtype)
    with FeatureStore.from_arrays(tmp_path / "store", values) as store:
        store.export(tmp_path / name, ids=[3, 0])
    rows = _load(tmp_path / name)["rows"]
    assert rows.dtype == values.dtype
    np.testing.assert_array_equal(rows, values[[3, 0]])


def test_existing_file_is_replaced_only_if_asked(tmp_path):
    path = tmp_path / "bank.npz"
    path.write_bytes(b"mine")
    with FeatureStore.from_arrays(tmp_path / "store", VECTORS) as store:
        with pytest.raises(ValueError, match="overwrite=True"):
            store.export(path)
        assert path.read_bytes() == b"mine"
        store.export(path, overwrite=True)
        np.testing.assert_array_equal(_load(path)["rows"], VECTORS)
        with pytest.raises(ValueError, match="no known ending"):
            store.export(tmp_path / "bank.csv")
        with pytest.raises(StoreError, match="cannot be written"):
            store.export(tmp_path / "absent" / "bank.npz")


def test_interrupted_export_leaves_no_file(tmp_path, monkeypatch):
    with FeatureStore.from_arrays(tmp_path / "store", VECTORS) as store:
        read, left = store.read, [2]

        def interrupted(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return read(*arguments)

        monkeypatch.setattr(store, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.export(tmp_path / "bank.npz")
    assert os.listdir(tmp_path) == ["store"]
