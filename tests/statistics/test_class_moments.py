# SPDX-License-Identifier: BSD-3-Clause
"""ClassMoments against numpy's covariances, and against its own laws."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from skpool.statistics import ClassMoments

KINDS = ["none", "shared", "per_class", "diag", "shared_diag"]


def data(n=300, d=6, n_classes=4, *, seed=0, offset=0.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    scale = np.linspace(0.2, 2.0, d)
    y = np.arange(n) % n_classes
    rng.shuffle(y)
    X = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * scale
    X += rng.standard_normal((n_classes, d))[y] + offset
    return X.astype(dtype), y


def expected(X, y, kind, w=None):
    """Classes, counts, means and scatter by numpy, in two passes of float64."""
    X = np.asarray(X, dtype=np.float64)
    w = np.ones(len(X)) if w is None else np.asarray(w, dtype=np.float64)
    classes = np.unique(y[w > 0])
    counts = np.array([w[y == c].sum() for c in classes])
    means = np.array([np.average(X[y == c], axis=0, weights=w[y == c]) for c in classes])
    # aweights with ddof=0 divides by the sum of weights.
    scatters = np.array(
        [
            n * np.atleast_2d(np.cov(X[y == c].T, ddof=0, aweights=w[y == c]))
            for c, n in zip(classes, counts, strict=True)
        ]
    )
    diagonals = np.diagonal(scatters, axis1=1, axis2=2)
    scatter = {
        "none": None,
        "shared": scatters.sum(axis=0),
        "per_class": scatters,
        "diag": diagonals,
        "shared_diag": diagonals.sum(axis=0),
    }[kind]
    return classes, counts, means, scatter


def assert_holds(moments, X, y, w=None, *, rtol=1e-12, spread=None):
    classes, counts, means, scatter = expected(X, y, moments.scatter, w)
    np.testing.assert_array_equal(moments.classes_, classes)
    np.testing.assert_allclose(moments.counts_, counts, rtol=1e-12)
    spread = np.asarray(X, dtype=np.float64).std() if spread is None else spread
    np.testing.assert_allclose(moments.means_, means, atol=rtol * spread, rtol=1e-13)
    if scatter is None:
        assert moments.scatter_ is None
    else:
        np.testing.assert_allclose(moments.scatter_, scatter, atol=rtol * np.abs(scatter).max())


def assert_same(a, b, *, rtol=1e-11):
    assert a.scatter == b.scatter
    np.testing.assert_array_equal(a.classes_, b.classes_)
    np.testing.assert_allclose(a.counts_, b.counts_, rtol=1e-12)
    np.testing.assert_allclose(a.counts_sq_, b.counts_sq_, rtol=1e-12)
    np.testing.assert_allclose(a.means_, b.means_, rtol=rtol, atol=rtol)
    if a.scatter_ is not None:
        size = np.abs(b.scatter_).max(initial=1.0)
        np.testing.assert_allclose(a.scatter_, b.scatter_, rtol=0, atol=rtol * size)


def snapshot(moments):
    return {k: v.tobytes() for k, v in moments.to_arrays().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_update_equals_numpy_per_class(kind):
    X, y = data()
    assert_holds(ClassMoments(kind).update(X, y), X, y)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_equal_numpy_weights(kind):
    X, y = data()
    w = np.random.default_rng(1).uniform(0.0, 3.0, len(X))
    w[y == 2] = 0.0
    moments = ClassMoments(kind, block_rows=64).update(X, y, sample_weight=w)
    assert_holds(moments, X, y, w)
    np.testing.assert_allclose(moments.counts_sq_, [(w[y == c] ** 2).sum() for c in (0, 1, 3)])


@pytest.mark.parametrize("kind", KINDS)
def test_weight_two_equals_rows_twice(kind):
    X, y = data(80)
    twice = ClassMoments(kind).update(np.vstack([X, X]), np.r_[y, y])
    weighted = ClassMoments(kind).update(X, y, sample_weight=np.full(len(X), 2.0))
    np.testing.assert_array_equal(weighted.counts_, twice.counts_)
    np.testing.assert_allclose(weighted.means_, twice.means_, rtol=1e-12)
    if kind != "none":
        np.testing.assert_allclose(weighted.scatter_, twice.scatter_, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    cuts=st.lists(st.integers(0, 120), max_size=8),
    seed=st.integers(0, 1000),
    offset=st.sampled_from([0.0, 100.0]),
)
def test_any_partition_and_order_equals_numpy(kind, cuts, seed, offset):
    X, y = data(120, 4, seed=seed, offset=offset)
    order = np.random.default_rng(seed).permutation(len(X))
    moments = ClassMoments(kind)
    for part in np.split(order, sorted(cuts)):
        if len(part):
            moments.update(X[part], y[part])
    assert_holds(moments, X, y, rtol=1e-10)


@pytest.mark.parametrize(("batch", "n"), [(1, 100), (37, 400), (1000, 1000)])
@pytest.mark.parametrize("kind", ["shared", "per_class", "diag", "shared_diag"])
def test_float32_batches_at_100_spreads_are_within_float32_rounding(kind, batch, n):
    X, y = data(n, 260)
    X = (X + 100.0 * X.std()).astype(np.float32)
    moments = ClassMoments(kind)
    for start in range(0, len(X), batch):
        moments.update(X[start : start + batch], y[start : start + batch])
    # 500 rows of one float32 product round to 4e-7 at worst; without centring it is 1e-3.
    assert_holds(moments, X, y, rtol=5e-7, spread=1.0)


@pytest.mark.parametrize("kind", ["shared", "per_class", "diag", "shared_diag"])
def test_offset_of_1000_standard_deviations_in_float32_costs_no_digits(kind):
    X, y = data(6000, 260)
    X = ((X - X.mean(0)) / X.std(0) + 1000.0).astype(np.float32)
    moments = ClassMoments(kind, block_rows=1024).update(X[:3000], y[:3000])
    assert_holds(moments.update(X[3000:], y[3000:]), X, y, rtol=5e-7, spread=1.0)


@pytest.mark.parametrize(("width", "product_dtype"), [(16, "auto"), (260, "float64")])
def test_float64_products_are_exact_for_float32_rows(width, product_dtype):
    X, y = data(2000, width, offset=1000.0, dtype=np.float32)
    moments = ClassMoments("shared", product_dtype=product_dtype).update(X, y)
    assert_holds(moments, X, y, rtol=1e-12)


@pytest.mark.parametrize("d", [1, 95, 96, 97, 200, 300])
@pytest.mark.parametrize("kind", ["shared", "per_class"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrices_of_any_width_are_whole_and_symmetric(kind, d, dtype):
    X, y = data(400, d, dtype=dtype)
    w = np.random.default_rng(1).uniform(size=len(X))
    moments = ClassMoments(kind).update(X, y, w)
    assert_holds(moments, X, y, w, rtol=1e-11 if d <= 256 or dtype == np.float64 else 5e-7)
    scatter = moments.scatter_
    np.testing.assert_array_equal(scatter, np.swapaxes(scatter, -1, -2))


def test_float32_squares_of_quantised_rows_have_no_bias():
    # Rows around 1000 in float32 are multiples of 2**-14, whose squares round to one side.
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((40_000, 40)) + 1000).astype(np.float32)
    moments = ClassMoments("shared", product_dtype="float32").update(X, np.zeros(40_000, int))
    want = np.diagonal(expected(X, np.zeros(40_000), "shared")[3])
    error = np.diagonal(moments.scatter_) / want - 1
    assert abs(error.mean()) < 1e-8


@pytest.mark.parametrize("kind", ["shared", "per_class", "diag", "shared_diag"])
def test_pooled_moments_are_those_of_one_class(kind):
    X, y = data()
    w = np.random.default_rng(1).uniform(size=len(X))
    moments = ClassMoments(kind, product_dtype="float64", block_rows=77).update(X, y, w)
    before = snapshot(moments)
    pooled = moments.pooled()
    assert pooled.scatter == {"per_class": "shared", "diag": "shared_diag"}.get(kind, kind)
    assert (pooled.product_dtype, pooled.block_rows) == ("float64", 77)
    assert_holds(pooled, X, np.zeros(len(X), int), w)
    pooled.update(X, np.zeros(len(X), int))
    assert snapshot(moments) == before


def test_pooled_moments_of_nothing_are_empty():
    assert len(ClassMoments("per_class").pooled().classes_) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_float16_equals_its_float32_cast(kind):
    X, y = data(dtype=np.float16)
    half, single = ClassMoments(kind).update(X, y), ClassMoments(kind)
    assert snapshot(half) == snapshot(single.update(X.astype(np.float32), y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensor_equals_array(kind, dtype):
    X, y = data()
    T = torch.from_numpy(X).to(dtype)
    array = T.float().numpy() if dtype == torch.bfloat16 else T.numpy()
    moments = ClassMoments(kind).update(T, torch.from_numpy(y))
    assert snapshot(moments) == snapshot(ClassMoments(kind).update(array, y))


def test_memmap_equals_array(tmp_path):
    X, y = data(500, dtype=np.float32)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    a = ClassMoments(block_rows=64).update(mapped, y)
    assert snapshot(a) == snapshot(ClassMoments(block_rows=64).update(X, y))


def test_block_rows_changes_rounding_only():
    X, y = data(5000, 260, offset=50.0, dtype=np.float32)
    whole = ClassMoments(block_rows=8192).update(X, y)
    for rows in (1, 100, 1024):
        part = slice(0, 200 if rows == 1 else None)
        a = ClassMoments(block_rows=rows).update(X[part], y[part])
        b = whole if rows > 1 else ClassMoments().update(X[part], y[part])
        size = np.abs(b.scatter_).max()
        np.testing.assert_allclose(a.scatter_, b.scatter_, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("kind", KINDS)
def test_downdate_equals_refit(kind):
    X, y = data(400)
    moments = ClassMoments(kind).update(X, y).downdate(X[:150], y[:150])
    assert_holds(moments, X[150:], y[150:], rtol=1e-11)


@pytest.mark.parametrize("kind", ["shared", "per_class", "diag", "shared_diag"])
def test_downdate_in_float32_equals_refit_within_float32_rounding(kind):
    X, y = data(2000, 260, dtype=np.float32, offset=100.0)
    moments = ClassMoments(kind).update(X, y).downdate(X[:1000], y[:1000])
    assert_holds(moments, X[1000:], y[1000:], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_downdate_with_weights_equals_refit(kind):
    X, y = data(200)
    w = np.random.default_rng(3).uniform(0.1, 2.0, len(X))
    moments = ClassMoments(kind).update(X, y, w).downdate(X[:80], y[:80], w[:80])
    assert_holds(moments, X[80:], y[80:], w[80:], rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_removing_a_whole_class_drops_it(kind):
    X, y = data()
    moments = ClassMoments(kind).update(X, y).downdate(X[y == 1], y[y == 1])
    assert_holds(moments, X[y != 1], y[y != 1], rtol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_removing_everything_leaves_exactly_nothing(kind):
    X, y = data()
    moments = ClassMoments(kind).update(X, y)
    moments.downdate(X[::-1], y[::-1])
    assert len(moments.classes_) == len(moments.counts_) == len(moments.means_) == 0
    assert moments.n_features_in_ == X.shape[1]
    assert moments.scatter_ is None or not moments.scatter_.any()
    assert_holds(moments.update(X, y), X, y)


@settings(deadline=None, max_examples=25)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 1000))
def test_merge_is_associative_and_commutative(kind, seed):
    X, y = data(90, 4, n_classes=5, seed=seed, offset=10.0)
    a, b, c = (ClassMoments(kind).update(X[i::3], y[i::3]) for i in range(3))
    assert_same((a + b) + c, a + (b + c))
    assert_same(a + b, b + a)
    assert_holds(a + b + c, X, y, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_merge_with_empty_changes_nothing(kind):
    X, y = data()
    moments = ClassMoments(kind).update(X, y)
    assert snapshot(moments + ClassMoments(kind)) == snapshot(moments)
    assert snapshot(ClassMoments(kind) + moments) == snapshot(moments)


@pytest.mark.parametrize("kind", KINDS)
def test_subtract_undoes_merge(kind):
    X, y = data()
    a, b = ClassMoments(kind).update(X[:200], y[:200]), ClassMoments(kind).update(X[200:], y[200:])
    assert_same((a + b) - b, a, rtol=1e-10)


def test_operators_leave_their_operands_alone():
    X, y = data()
    a, b = ClassMoments().update(X, y), ClassMoments().update(X[:50], y[:50])
    before = snapshot(a), snapshot(b)
    a + b, a - b
    assert (snapshot(a), snapshot(b)) == before


@pytest.mark.parametrize("kind", KINDS)
def test_relabel_of_children_equals_parent_labels(kind):
    X, y = data(n_classes=5)
    parents = {0: "b", 1: "a", 2: "b", 3: "a", 4: "c"}
    moments = ClassMoments(kind).update(X, y).relabel(parents)
    assert_holds(moments, X, np.array([parents[c] for c in y]), rtol=1e-11)


def test_relabel_keeps_unmentioned_labels():
    X, y = data()
    moments = ClassMoments("diag").update(X, y).relabel({0: 9})
    assert_holds(moments, X, np.where(y == 0, 9, y))


def test_relabel_to_mixed_labels_is_refused():
    X, y = data()
    with pytest.raises(ValueError, match="mixes text"):
        ClassMoments().update(X, y).relabel({0: "a"})


@pytest.mark.parametrize("kind", ["none", "shared", "per_class"])
def test_affine_equals_fit_on_mapped_rows(kind):
    X, y = data()
    rng = np.random.default_rng(5)
    A, b = rng.standard_normal((X.shape[1], 3)), rng.standard_normal(3)
    assert_holds(ClassMoments(kind).update(X, y).affine(A, b), X @ A + b, y, rtol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_affine_scaling_equals_fit_on_scaled_rows(kind):
    X, y = data()
    A = np.linspace(-1, 2, X.shape[1])
    assert_holds(ClassMoments(kind).update(X, y).affine(A), X * A, y, rtol=1e-11)


def test_affine_of_diagonals_refuses_a_matrix():
    X, y = data()
    with pytest.raises(ValueError, match="one factor per feature"):
        ClassMoments("diag").update(X, y).affine(np.eye(X.shape[1]))


@pytest.mark.parametrize("kind", ["none", "per_class", "diag"])
def test_subset_equals_fit_on_these_classes(kind):
    X, y = data()
    keep = np.isin(y, [0, 3])
    assert_holds(ClassMoments(kind).update(X, y).subset([3, 0]), X[keep], y[keep])


@pytest.mark.parametrize("kind", ["none", "per_class", "diag"])
def test_forget_class_equals_fit_without_it(kind):
    # As many classes as features: a per-class and a shared scatter then have one shape.
    X, y = data(d=4)
    assert_holds(ClassMoments(kind).update(X, y).forget_class(2), X[y != 2], y[y != 2])


@pytest.mark.parametrize("kind", ["shared", "shared_diag"])
def test_parts_of_a_shared_scatter_are_refused(kind):
    X, y = data(d=4)
    moments = ClassMoments(kind).update(X, y)
    before = snapshot(moments)
    with pytest.raises(ValueError, match="not known"):
        moments.forget_class(2)
    with pytest.raises(ValueError, match="not known"):
        moments.subset([0])
    assert snapshot(moments) == before
    assert_same(moments.subset(moments.classes_), moments)


@pytest.mark.parametrize("kind", KINDS)
def test_total_and_between_equal_numpy(kind):
    X, y = data()
    moments = ClassMoments(kind).update(X, y)
    n, mean, T = moments.total()
    full = np.cov(X.T, ddof=0) * len(X)
    _, counts, means, _ = expected(X, y, "none")
    B = sum(n * np.outer(m, m) for n, m in zip(counts, means - X.mean(0), strict=True))
    assert n == len(X)
    np.testing.assert_allclose(mean, X.mean(0), rtol=1e-12)
    diagonal = kind in ("diag", "shared_diag")
    np.testing.assert_allclose(moments.between(), np.diag(B) if diagonal else B, atol=1e-9)
    if kind == "none":
        assert T is None
    else:
        np.testing.assert_allclose(T, np.diag(full) if diagonal else full, atol=1e-9)


@pytest.mark.parametrize(
    "labels", [["c", "a", "b"], [-1, 7, 0], [True, False, True], np.array(["b", "a", "b"], object)]
)
def test_classes_are_sorted_like_unique(labels):
    moments = ClassMoments("none")
    for row, label in enumerate(labels):
        moments.update(np.full((1, 2), float(row)), [label])
    np.testing.assert_array_equal(moments.classes_, np.unique(labels))
    assert moments.classes_.dtype.kind != "O"


def test_ten_thousand_classes_in_one_batch():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30_000, 64)).astype(np.float32)
    y = rng.integers(0, 10_000, len(X))
    moments = ClassMoments("none").update(X, y)
    shared = ClassMoments("shared").update(X, y)
    order = np.argsort(y, kind="stable")
    classes, starts = np.unique(y[order], return_index=True)
    sums = np.add.reduceat(X[order].astype(np.float64), starts, axis=0)
    np.testing.assert_array_equal(moments.classes_, classes)
    np.testing.assert_allclose(moments.means_, sums / moments.counts_[:, None], atol=1e-12)
    centred = X - moments.means_[np.searchsorted(classes, y)]
    np.testing.assert_allclose(
        shared.scatter_, centred.T @ centred, atol=2e-7 * np.trace(shared.scatter_) / 64
    )


def _bad_calls():
    X, y = data(20, 3)
    nan, inf = X.copy(), X.copy()
    nan[3, 1], inf[2, 0] = np.nan, np.inf
    w = np.ones(len(X))
    return {
        "nan": (nan, y, None, "NaN in row 3"),
        "inf": (inf, y, None, "infinity in row 2"),
        "nan tensor": (torch.from_numpy(nan), y, None, "NaN in row 3"),
        "width": (X[:, :2], y, None, "2 features"),
        "width of tensor": (torch.from_numpy(X[:, :2]), y, None, "2 features"),
        "rank": (X[0], y, None, "1D array"),
        "rank of tensor": (torch.from_numpy(X[0]), y, None, "n_samples, n_features"),
        "no rows": (X[:0], y[:0], None, "0 sample"),
        "label count": (X, y[:-1], None, "inconsistent"),
        "label kind": (X, y.astype(str), None, "one kind of label"),
        "missing label": (X, [None, *y[1:].tolist()], None, "NaN or None"),
        "continuous label": (X, y + 0.5, None, "continuous"),
        "weight count": (X, y, w[:-1], "one weight for each"),
        "negative weight": (X, y, w - 2, "at least 0"),
        "zero weights": (X, y, w * 0, "above 0"),
        "nan weight": (X, y, w * np.nan, "finite"),
        "overflow": (X * 1e300, y, None, "overflow in float64"),
    }


@pytest.mark.parametrize("kind", ["shared", "per_class", "diag"])
@pytest.mark.parametrize("case", _bad_calls())
def test_refused_update_changes_nothing(kind, case):
    X, y, w, message = _bad_calls()[case]
    moments = ClassMoments(kind).update(*data(50, 3))
    before = snapshot(moments)
    with pytest.raises(ValueError, match=message):
        moments.update(X, y, w)
    assert snapshot(moments) == before


def test_products_that_overflow_are_refused():
    X, y = data(20, 3)
    with pytest.raises(ValueError, match="overflow in float64"):
        ClassMoments().update(X * 1e200, y)


def test_refused_first_update_leaves_it_empty():
    X, y = data(20, 3)
    X[0, 0] = np.nan
    moments = ClassMoments()
    with pytest.raises(ValueError, match="NaN"):
        moments.update(X, y)
    assert moments.n_features_in_ is None
    assert_holds(moments.update(*data(20, 5)), *data(20, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_removing_more_than_held_changes_nothing(kind):
    X, y = data(50, 3)
    moments = ClassMoments(kind).update(X, y)
    before = snapshot(moments)
    with pytest.raises(ValueError, match="Cannot remove 26 rows"):
        moments.downdate(np.vstack([X, X]), np.r_[y, y])
    with pytest.raises(ValueError, match="class 9: it is not held"):
        moments.downdate(X[:1], [9])
    with pytest.raises(ValueError, match="class 9 is not held"):
        moments.subset([9])
    assert snapshot(moments) == before


@pytest.mark.parametrize("kind", ["shared", "per_class", "diag", "shared_diag"])
def test_removing_rows_never_added_changes_nothing(kind):
    X, y = data(50, 3)
    moments = ClassMoments(kind).update(X, y)
    before = snapshot(moments)
    with pytest.raises(ValueError, match="never been added"):
        moments.downdate(X[:2] + 100.0, y[:2])
    assert snapshot(moments) == before


def test_merging_what_does_not_fit_changes_nothing():
    moments = ClassMoments().update(*data(50, 3))
    before = snapshot(moments)
    X, y = data(50, 3)
    for other, message in (
        (ClassMoments().update(X, y.astype(str)), "one kind of label"),
        (ClassMoments().update(*data(50, 4)), "4 features"),
        (ClassMoments("diag").update(X, y), "equal kinds"),
    ):
        with pytest.raises(ValueError, match=message):
            moments.merge(other)
        with pytest.raises(ValueError, match=message):
            moments.subtract(other)
    with pytest.raises(TypeError, match="ClassMoments"):
        moments.merge(X)
    assert snapshot(moments) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [np.int64, str])
def test_arrays_round_trip_is_bit_exact(kind, labels):
    X, y = data()
    moments = ClassMoments(kind, block_rows=100, product_dtype="float64").update(
        X, y.astype(labels)
    )
    buffer = io.BytesIO()
    np.savez(buffer, **moments.to_arrays())
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as arrays:
        back = ClassMoments.from_arrays(arrays)
    assert snapshot(back) == snapshot(moments)
    assert (back.block_rows, back.product_dtype) == (100, "float64")
    assert_holds(back.update(X, y.astype(labels)), np.vstack([X, X]), np.r_[y, y].astype(labels))


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_empty_moments_round_trip(kind):
    back = ClassMoments.from_arrays(ClassMoments(kind).to_arrays())
    X, y = data()
    assert back.n_features_in_ is None
    assert_holds(back.update(X, y), X, y)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", np.array(99), "format 99"),
        ("means", np.zeros((4, 5)), "do not fit"),
        ("counts", -np.ones(4), "above 0"),
        ("classes", np.array([1, 0, 2, 3]), "sorted"),
        ("scatter_values", np.full((6, 6), np.nan), "finite"),
    ],
)
def test_damaged_arrays_are_refused(name, value, message):
    arrays = ClassMoments().update(*data()).to_arrays()
    with pytest.raises(ValueError, match=message):
        ClassMoments.from_arrays(arrays | {name: value})
    del arrays["means"]
    with pytest.raises(ValueError, match="'means' is missing"):
        ClassMoments.from_arrays(arrays)


def test_clone_is_empty_with_the_same_settings():
    moments = ClassMoments("diag", product_dtype="float64", block_rows=7).update(*data())
    fresh = clone(moments)
    assert (fresh.scatter, fresh.product_dtype, fresh.block_rows) == ("diag", "float64", 7)
    assert fresh.n_features_in_ is None
    assert len(fresh.classes_) == 0


@pytest.mark.parametrize("duplicate", [ClassMoments.copy, copy.deepcopy, copy.copy])
def test_copies_are_independent(duplicate):
    X, y = data()
    moments = ClassMoments().update(X, y)
    before = snapshot(moments)
    duplicate(moments).update(X, y)
    assert snapshot(moments) == before


def test_pickle_round_trip_is_bit_exact():
    moments = ClassMoments("per_class").update(*data())
    assert snapshot(pickle.loads(pickle.dumps(moments))) == snapshot(moments)


def test_arrays_handed_out_never_change():
    X, y = data()
    moments = ClassMoments().update(X, y)
    held = moments.means_, moments.scatter_, moments.counts_
    before = [a.copy() for a in held]
    moments.update(X + 1, y)
    for a, b in zip(held, before, strict=True):
        np.testing.assert_array_equal(a, b)
        with pytest.raises(ValueError, match="read-only"):
            a[0] = 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"scatter": "full"}, ValueError),
        ({"product_dtype": "float16"}, ValueError),
        ({"block_rows": 0}, ValueError),
        ({"block_rows": 1.5}, TypeError),
    ],
)
def test_unknown_options_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):
        ClassMoments(**options)


@pytest.mark.parametrize("scale", [1e-25, 1e-19, 1e18, 1e25])
@pytest.mark.parametrize("kind", ["shared", "per_class", "diag"])
def test_float32_rows_of_any_size_keep_their_scatter(scale, kind):
    X, y = data(400, 300, dtype=np.float32)
    moments = ClassMoments(kind).update(X * np.float32(scale), y)
    want = ClassMoments(kind, product_dtype="float64").update(X.astype(np.float64), y)
    got = moments.scatter_ / scale**2
    np.testing.assert_allclose(got, want.scatter_, atol=1e-5 * np.abs(want.scatter_).max())


@pytest.mark.parametrize("kind", ["shared", "shared_diag"])
def test_as_many_other_rows_as_a_class_holds_are_refused(kind):
    X, y = data(90, 4, 3)
    moments = ClassMoments(kind).update(X, y)
    before = moments.to_arrays()
    with pytest.raises(ValueError, match="their mean is another"):
        moments.downdate(0.5 * X[y == 2] + 50.0, y[y == 2])
    assert all(np.array_equal(before[k], v) for k, v in moments.to_arrays().items())


def test_rows_whose_mean_is_rounding_are_removed():
    X, _ = data(100, 300, 1, dtype=np.float32)
    X = np.vstack([X, -X]) / 3
    moments = ClassMoments("shared").update(X, np.zeros(200, int)).update(X + 5, np.ones(200, int))
    moments.downdate(X[::-1], np.zeros(200, int))
    assert moments.classes_.tolist() == [1]


@pytest.mark.parametrize("kind", ["shared", "per_class", "diag", "shared_diag"])
def test_values_whose_squares_vanish_are_refused(kind):
    X, y = data(40, 3)
    with pytest.raises(ValueError, match="scale X up"):
        ClassMoments(kind).update(X * 1e-170, y)
    ClassMoments(kind).update(np.zeros((4, 3)), [0, 0, 1, 1])
    ClassMoments(kind).update(np.full((4, 3), 7.0), [0, 0, 1, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [6, 300])
def test_same_rows_in_the_same_order_give_the_same_bits(kind, d):
    X, y = data(700, d, dtype=np.float32)

    def learned():
        moments = ClassMoments(kind, block_rows=100)
        for start in range(0, len(X), 160):
            moments.update(X[start : start + 160], y[start : start + 160])
        return snapshot(moments.downdate(X[:90], y[:90]))

    assert learned() == learned()
