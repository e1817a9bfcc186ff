# SPDX-License-Identifier: BSD-3-Clause
"""Batches of episodes against plain loops over rows, and reductions against what they keep."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression

from skpool.model_selection import EpisodeBatch, EpisodeIndex, EpisodeSplit, _episode_batch

RNG = np.random.default_rng(0)
Y = np.repeat(np.arange(6), 20)
X = RNG.normal(size=(120, 30))


def split(**options):
    return EpisodeSplit(**{"n_way": 4, "n_shot": 3, "n_query": 5, "n_episodes": 11} | options)


RAGGED = {
    "plain": {},
    "shots": {"shot_distribution": (1, 6)},
    "queries": {"query_distribution": "all", "shot_distribution": (1, 6)},
}


def batches(X, index, batch_size=None):
    return list(EpisodeBatch.from_index(X, index, batch_size))


def means_of(X, index, e):
    rows, numbers = index.support[e], index.support_labels[e]
    return np.stack([X[rows[numbers == c]].mean(axis=0) for c in range(index.classes.shape[1])])


@pytest.mark.parametrize("ragged", RAGGED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_those_of_the_index(ragged, dtype):
    index, rows = split(**RAGGED[ragged]).episodes(Y), X.astype(dtype)
    parts = (slice(0, 4), slice(4, 8), slice(8, 11))
    for batch, part in zip(batches(rows, index, 4), parts, strict=True):
        for found, at in ((batch.Xs, index.support[part]), (batch.Xq, index.query[part])):
            want = np.where(at[..., None] >= 0, rows[at], 0.0)
            np.testing.assert_array_equal(found.numpy(), want)
            assert found.numpy().dtype == dtype
        np.testing.assert_array_equal(batch.ys.numpy(), index.support_labels[part])
        np.testing.assert_array_equal(batch.yq.numpy(), index.query_labels[part])


def test_mask_is_there_only_where_queries_differ():
    assert batches(X, split().episodes(Y))[0].query_mask is None
    assert batches(X, split(shot_distribution=(1, 6)).episodes(Y))[0].query_mask is None
    index = split(**RAGGED["queries"]).episodes(Y)
    np.testing.assert_array_equal(batches(X, index)[0].query_mask.numpy(), index.query >= 0)


@pytest.mark.parametrize("ragged", RAGGED)
def test_prototypes_are_the_means_of_the_supports(ragged):
    index = split(**RAGGED[ragged]).episodes(Y)
    (batch,) = batches(X, index, 20)
    for e in range(len(index)):
        np.testing.assert_allclose(batch.prototypes()[e], means_of(X, index, e), atol=1e-12)
        shots = [(index.support_labels[e] == c).sum() for c in range(4)]
        assert batch.counts()[e].tolist() == shots


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
def test_distances_are_those_of_scipy(metric):
    index = split().episodes(Y)
    (batch,) = batches(X, index, 20)
    for e in range(len(index)):
        want = cdist(X[index.query[e]], means_of(X, index, e), metric)
        np.testing.assert_allclose(batch.distances(metric)[e], want, atol=1e-12)


def test_distances_far_from_zero_keep_their_digits():
    index = split().episodes(Y)
    far = (X + 1000.0).astype(np.float32)
    near = batches(far.astype(np.float64), index, 20)[0].distances()
    np.testing.assert_allclose(batches(far, index, 20)[0].distances(), near, rtol=1e-4)


@pytest.mark.parametrize("ragged", RAGGED)
@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_products_of_queries_are_those_of_the_rows(ragged, gathered, half):
    index = split(n_episodes=40, **RAGGED[ragged]).episodes(Y)
    wide = np.tile(X, 40).astype(np.float16 if half else np.float64)
    (batch,) = batches(wide, index, 40)
    if gathered:
        assert batch.Xq.shape[1] == index.query.shape[1]
    vectors = torch.from_numpy(RNG.normal(size=(40, 3, 1200)))
    vectors = vectors.float() if half else vectors
    want = np.einsum("eqd,end->eqn", batches(wide, index, 40)[0].Xq.numpy(), vectors.numpy())
    tolerance = 1e-3 if half else 1e-9
    np.testing.assert_allclose(batch.query_products(vectors), want, atol=tolerance)


@pytest.mark.parametrize("ragged", RAGGED)
@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("n_episodes", [2, 40], ids=["few of the rows", "all rows"])
def test_queries_and_norms_are_those_of_the_index(ragged, gathered, n_episodes, monkeypatch):
    monkeypatch.setattr(_episode_batch, "_CACHED_ONCE", 1 << 12)
    index = split(n_episodes=n_episodes, **RAGGED[ragged]).episodes(Y)
    (batch,) = batches(X, index, n_episodes)
    if gathered:
        assert batch.Xq.shape[1] == index.query.shape[1]
    want = np.where(index.query[..., None] >= 0, X[index.query], 0.0)
    seen = []
    for part, rows in batch.query_blocks():
        np.testing.assert_array_equal(rows.numpy(), want[part])
        seen += range(n_episodes)[part]
    assert seen == list(range(n_episodes))
    np.testing.assert_allclose(batch.query_norms(), np.linalg.norm(want, axis=2), rtol=1e-12)


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("offset", [0.0, 3e3])
@pytest.mark.parametrize("ragged", RAGGED)
def test_distances_of_all_rows_follow_from_centered_products(ragged, offset, gathered, monkeypatch):
    # A few episodes at a time, so that what one block decides reaches the next.
    monkeypatch.setattr(_episode_batch, "_CACHED_ONCE", 1 << 14)
    index, rows = split(**RAGGED[ragged]).episodes(Y), (X + offset).astype(np.float32)
    (batch,) = batches(rows, index, len(index))
    if gathered:
        batch = batch.with_rows(batch.Xs, batch.Xq)
    products = batch.centered_products().double().numpy()
    for e, found in enumerate(products):
        at = np.concatenate([index.support[e], index.query[e]])
        real = np.flatnonzero(at >= 0)
        squares = np.diagonal(found)
        squares = squares[:, None] + squares - 2 * found
        want = cdist(rows[at[real]].astype(np.float64), rows[at[real]], "sqeuclidean")
        np.testing.assert_allclose(squares[np.ix_(real, real)], want, atol=2e-6 * want.max())


def test_reduced_rows_have_the_same_products():
    index = split(**RAGGED["queries"]).episodes(Y)
    wide = RNG.normal(size=(120, 300))
    (batch,) = batches(wide, index, 20)
    reduced = batch.reduce()
    n = batch.Xs.shape[1] + batch.Xq.shape[1]
    assert reduced.Xq.shape[2] == n < 300
    rows, few = (torch.cat([b.Xs, b.Xq], dim=1) for b in (batch, reduced))
    np.testing.assert_allclose(few @ few.mT, rows @ rows.mT, atol=1e-9)
    assert reduced.query_mask is batch.query_mask


def test_rows_that_repeat_are_reduced_too():
    index = split(n_way=2, n_shot=1, n_query=2).episodes(Y)
    few = np.tile(RNG.normal(size=(1, 30)), (120, 1))
    few[:60] *= 2
    (batch,) = batches(few, index, 20)
    rows = torch.cat([batch.Xs, batch.Xq], dim=1)
    kept = torch.cat([batch.reduce().Xs, batch.reduce().Xq], dim=1)
    np.testing.assert_allclose(kept @ kept.mT, rows @ rows.mT, atol=1e-9)


def test_narrow_rows_stay_as_they_are():
    (batch,) = batches(X[:, :10], split().episodes(Y), 20)
    assert batch.reduce() is batch


def test_logistic_regression_decides_alike_on_reduced_rows():
    index = split(n_episodes=3).episodes(Y)
    (batch,) = batches(RNG.normal(size=(120, 200)) + 3 * np.eye(6, 200)[Y], index, 20)
    reduced = batch.reduce()
    for e in range(3):
        scores = [
            LogisticRegression(max_iter=5000, tol=1e-10)
            .fit(b.Xs[e].numpy(), b.ys[e].numpy())
            .decision_function(b.Xq[e].numpy())
            for b in (batch, reduced)
        ]
        np.testing.assert_allclose(*scores, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12))
def test_size_of_batches_changes_nothing(size):
    index = split().episodes(Y)
    parts = [batch.distances() for batch in batches(X, index, size)]
    assert {len(part) for part in parts[:-1]} <= {size}
    np.testing.assert_allclose(torch.cat(parts), batches(X, index, 20)[0].distances(), atol=1e-12)


@pytest.mark.parametrize("kind", ["memmap", "tensor", "bfloat16"])
def test_rows_come_from_arrays_and_tensors(kind, tmp_path):
    index, rows = split().episodes(Y), X.astype(np.float32)
    want = rows[index.query]
    if kind == "memmap":
        np.save(tmp_path / "rows.npy", rows)
        rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    else:
        rows = torch.from_numpy(rows)
    if kind == "bfloat16":
        rows, want = rows.bfloat16(), rows.bfloat16().float().numpy()[index.query]
    np.testing.assert_array_equal(batches(rows, index, 20)[0].Xq.numpy(), want)


def test_changed_rows_keep_the_labels():
    (batch,) = batches(X, split(**RAGGED["queries"]).episodes(Y), 20)
    doubled = batch.with_rows(2 * batch.Xs, 2 * batch.Xq)
    np.testing.assert_allclose(doubled.prototypes(), 2 * batch.prototypes())
    assert doubled.yq is batch.yq and doubled.query_mask is batch.query_mask


def test_type_of_the_rows_can_be_changed():
    (batch,) = batches(X, split().episodes(Y), 20)
    single = batch.to(dtype=torch.float32)
    assert single.Xs.dtype == single.onehot().dtype == torch.float32
    assert single.ys.dtype == torch.int64


def test_class_without_support_is_named():
    index = EpisodeIndex(*(np.array(a) for a in ([[0, 1]], [[2]], [[0, 0]], [[0]], [[3, 4]])))
    with pytest.raises(ValueError, match="Class 1 of episode 0 has no support"):
        batches(X, index)[0].prototypes()


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (((2, 3, 4), (2, 2), (2, 5, 4)), "ys has shape"),
        (((2, 3, 4), (2, 3), (2, 5, 3)), "same episodes and features"),
        (((3, 4), (3,), (5, 4)), "ys has shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, match):
    Xs, ys, Xq = shapes
    with pytest.raises(ValueError, match=match):
        EpisodeBatch(torch.zeros(Xs), torch.zeros(ys, dtype=torch.int64), torch.zeros(Xq))


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metric='taxi' is not valid"):
        batches(X, split().episodes(Y))[0].distances("taxi")


def test_part_of_a_batch_gathers_its_own_rows_alone():
    X = np.random.default_rng(0).normal(size=(60, 5))
    index = EpisodeSplit(3, n_shot=2, n_query=4, n_episodes=7, random_state=0).episodes(
        np.repeat(np.arange(6), 10)
    )
    (whole,) = EpisodeBatch.from_index(X, index, 7)
    part = whole[2:5]
    assert "Xq" not in vars(whole)
    again = EpisodeBatch(whole.Xs, whole.ys, whole.Xq, whole.yq, n_way=3)[2:5]
    for name in ("Xs", "ys", "Xq", "yq"):
        assert torch.equal(getattr(part, name), getattr(again, name))
        assert torch.equal(getattr(part, name), getattr(whole[2:5], name))
