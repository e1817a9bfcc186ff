# SPDX-License-Identifier: BSD-3-Clause
"""Fingerprints add and subtract as the rows do, and tell other rows apart."""

import hashlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skpool.statistics import ClassMoments, merge_all

KINDS = ["none", "shared", "per_class", "diag", "shared_diag"]


def _data(n: int = 30, d: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), np.array(["a", "b", "c"])[np.arange(n) % 3]


def _learned(X, y, weights=None, scatter="none"):
    return ClassMoments(scatter, fingerprint=True).update(X, y, weights)


def test_it_is_the_sum_of_hashes_modulo_2_to_the_64():
    X, y = _data()
    expected = [
        sum(
            int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
            for row in np.column_stack([X, np.ones(len(X))])[y == label]
        )
        % 2**64
        for label in "abc"
    ]
    assert _learned(X, y).fingerprints_.tolist() == expected


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 999),
    cuts=st.lists(st.integers(1, 29), max_size=4, unique=True),
    scatter=st.sampled_from(KINDS),
)
def test_parts_in_any_order_hold_the_same_rows_as_the_whole(seed, cuts, scatter):
    X, y = _data()
    whole = _learned(X, y, scatter=scatter)
    order = np.random.default_rng(seed).permutation(len(X))
    parts = [_learned(X[p], y[p], scatter=scatter) for p in np.split(order, sorted(cuts))]
    assert merge_all(parts).holds_same_rows(whole)
    assert merge_all(parts[::-1]).holds_same_rows(whole)


@pytest.mark.parametrize("scatter", KINDS)
def test_add_then_remove_is_zero(scatter):
    X, y = _data()
    moments = _learned(X, y, scatter=scatter)
    part = _learned(X[:9], y[:9], scatter=scatter)
    assert (moments - part).holds_same_rows(_learned(X[9:], y[9:], scatter=scatter))
    more = moments.copy().update(X[:9] + 1, y[:9]).downdate(X[:9] + 1, y[:9])
    assert more.holds_same_rows(moments)
    np.testing.assert_array_equal(moments.fingerprints_ - more.fingerprints_, 0)
    empty = moments.downdate(X, y)
    assert not len(empty.fingerprints_) and empty.fingerprints_.dtype == np.uint64
    assert empty.update(X, y).holds_same_rows(_learned(X, y, scatter=scatter))


def test_one_bit_one_label_one_weight_or_one_row_more_is_seen():
    X, y = _data()
    whole = _learned(X, y)
    bit, labels = X.copy(), y.copy()
    bit[3, 2] = np.nextafter(bit[3, 2], 9)
    labels[3] = "b" if y[3] != "b" else "c"
    weights = np.append(1 + 1e-15, np.ones(len(X) - 1))
    assert not whole.holds_same_rows(_learned(bit, y))
    assert not whole.holds_same_rows(_learned(X, labels))
    assert not whole.holds_same_rows(_learned(X, y, weights))
    assert not whole.holds_same_rows(_learned(np.vstack([X, X[:1]]), np.append(y, y[0])))
    assert not whole.holds_same_rows(_learned(X[y != "c"], y[y != "c"]))


def test_two_rows_swapped_between_classes_are_seen():
    X, y = _data()
    swapped = y.copy()
    swapped[[0, 1]] = y[[1, 0]]
    assert not _learned(X, y).holds_same_rows(_learned(X, swapped))


def test_numbers_count_and_not_their_type():
    X, y = _data()
    X = X.astype(np.float16)
    X[0, 0] = 0.0
    half = _learned(X, y)
    negative = X.copy()
    negative[0, 0] = -0.0
    for form in (X.astype(np.float32), X.astype(np.float64), torch.from_numpy(X), negative):
        assert half.holds_same_rows(_learned(form, y))
    assert half.holds_same_rows(_learned(np.asfortranarray(X), y))


def test_rows_that_weigh_nothing_count_as_absent():
    X, y = _data()
    weights = np.append(np.ones(20), np.zeros(10))
    assert _learned(X, y, weights).holds_same_rows(_learned(X[:20], y[:20]))


def test_new_labels_take_the_rows_along():
    X, y = _data()
    parents = np.where(y == "c", "b", y)
    moments = _learned(X, y)
    assert moments.relabel({"c": "b"}).holds_same_rows(_learned(X, parents))
    assert moments.pooled().holds_same_rows(_learned(X, np.zeros(len(X), dtype=int)))
    kept = _learned(X[y != "a"], y[y != "a"])
    assert moments.subset(["b", "c"]).holds_same_rows(kept)
    assert moments.copy().forget_class("a").holds_same_rows(kept)


def test_other_rows_or_weights_leave_it_behind():
    X, y = _data()
    moments = _learned(X, y)
    for other in (moments.affine(np.ones(4)), moments.reweighted({"a": 2.0})):
        assert other.fingerprints_ is None and not other.fingerprint
        with pytest.raises(ValueError, match="fingerprint=True"):
            moments.holds_same_rows(other)


def test_a_file_keeps_it_to_the_bit():
    X, y = _data()
    moments, file = _learned(X, y, scatter="shared"), io.BytesIO()
    np.savez(file, **moments.to_arrays())
    file.seek(0)
    again = ClassMoments.from_arrays(np.load(file))
    assert again.fingerprint and again.holds_same_rows(moments)
    arrays = moments.to_arrays()
    arrays["fingerprints"] = arrays["fingerprints"].astype(float)
    with pytest.raises(ValueError, match="damaged"):
        ClassMoments.from_arrays(arrays)


def test_rows_removed_in_place_of_others_are_refused_and_change_nothing():
    X, y = _data()
    moments = _learned(X, y)
    before = moments.copy()
    wrong = X.copy()
    wrong[:2] += [[1e-3], [-1e-3]]
    with pytest.raises(ValueError, match="fingerprints"):
        moments.downdate(wrong, y)
    assert moments.holds_same_rows(before) and (moments.counts_ == before.counts_).all()


def test_moments_with_and_without_do_not_mix():
    X, y = _data()
    plain = ClassMoments("none").update(X, y)
    assert plain.fingerprints_ is None and "fingerprints" not in plain.to_arrays()
    with pytest.raises(ValueError, match="only equal kinds combine"):
        plain.merge(_learned(X, y))


def test_nothing_is_hashed_unless_asked_for(monkeypatch):
    def fail(*args):
        raise AssertionError("hashed")

    monkeypatch.setattr("skpool.statistics._class_batch.row_fingerprints", fail)
    X, y = _data()
    assert len(ClassMoments().update(X, y).downdate(X[:3], y[:3]).classes_) == 3
