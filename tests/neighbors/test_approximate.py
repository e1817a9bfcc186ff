# SPDX-License-Identifier: BSD-3-Clause
"""Approximate methods: what they find and miss, and that rows come and go as in exact search."""

import pickle
from itertools import pairwise

import faiss
import numpy as np
import pytest

from skpool.neighbors import NeighborIndex, tune_ef_search
from skpool.neighbors._approximate import intrinsic_dimension

METHODS = ["hnsw", "ivf", "ivfpq"]
# Small codebooks are trained in little time.
SMALL = {"ivfpq": {"n_lists": 8, "n_bits": 4, "n_subvectors": 8, "refine": 8}}


@pytest.fixture(scope="module")
def cloud():
    rng = np.random.default_rng(0)
    centers = 2 * rng.standard_normal((20, 32))
    return (centers[rng.integers(0, 20, 2200)] + rng.standard_normal((2200, 32))).astype(np.float32)


def made(X, method, metric="cosine", **params):
    index = NeighborIndex(metric, method=method, params=params or SMALL.get(method))
    index.add(X)
    return index


def test_exact_search_has_recall_one(cloud):
    assert made(cloud[:500], "exact").recall(cloud[2000:], 10) == 1.0


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("method", METHODS)
def test_recall_equals_overlap_with_exact_search(cloud, method, metric):
    X, Q = cloud[:2000], cloud[2000:]
    index = made(X, method, metric)
    _, exact = made(X, "exact", metric).search(Q, 10)
    distances, ids = index.search(Q, 10)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, exact, strict=True)])
    assert index.recall(Q, 10) == pytest.approx(overlap)
    assert overlap > 0.8
    # Distances are exact whatever was found.
    rows = X[ids].astype(np.float64)
    expected = np.linalg.norm(rows - Q[:, None], axis=2)
    if metric == "cosine":
        products = np.einsum("qkd,qd->qk", rows, Q.astype(np.float64))
        norms = np.linalg.norm(rows, axis=2) * np.linalg.norm(Q.astype(np.float64), axis=1)[:, None]
        expected = 1 - products / norms
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    assert (np.diff(distances, axis=1) >= 0).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_ivf_with_all_lists_probed_is_exact(cloud, metric):
    index = made(cloud[:2000], "ivf", metric, n_lists=16, n_probes=16)
    found = index.search(cloud[2000:], 7)
    expected = made(cloud[:2000], "exact", metric).search(cloud[2000:], 7)
    assert (found[1] == expected[1]).all() and (found[0] == expected[0]).all()


def test_recall_does_not_fall_as_ef_search_rises(cloud):
    index = made(cloud[:2000], "hnsw", M=4, ef_construction=20, ef_search=1)
    recalls = []
    for ef in (10, 20, 80, 320):
        index.params["ef_search"] = ef
        recalls.append(index.recall(cloud[2000:], 1))
    assert all(b >= a - 0.02 for a, b in pairwise(recalls))
    assert recalls[-1] > recalls[0]


def test_ef_search_of_all_rows_finds_all(cloud):
    X = np.random.default_rng(1).standard_normal((300, 8))
    index = made(X, "hnsw", M=16, ef_search=300)
    assert index.recall(X[:50], 10) == 1.0


def test_tune_ef_search_reaches_the_target(cloud):
    index = made(cloud[:2000], "hnsw", M=4, ef_construction=20, ef_search=1)
    before = index.recall(cloud[2000:], 10)
    reached = tune_ef_search(index, cloud[2000:], before + (1 - before) / 2, k=10)
    assert reached == index.recall(cloud[2000:], 10) >= before + (1 - before) / 2
    assert index.params["ef_search"] > 1


def test_tune_ef_search_of_another_method_is_refused(cloud):
    with pytest.raises(ValueError, match="method='ivf' has no ef_search"):
        tune_ef_search(made(cloud, "ivf"))
    with pytest.raises(ValueError, match="target_recall=2"):
        tune_ef_search(made(cloud, "hnsw"), target_recall=2)


def mixed_dimensions(rng, n):
    """Groups of rows of very different dimension, apart from one another."""
    parts = []
    for dimension in (2, 8, 24, 64):
        axes = np.linalg.qr(rng.standard_normal((64, 64)))[0][:, :dimension]
        parts.append(rng.standard_normal((n, dimension)) @ axes.T + rng.standard_normal(64))
    return np.concatenate(parts).astype(np.float32)


def test_rows_of_high_dimension_first_are_found_better_than_last():
    differences = []
    for seed in range(3):
        X = mixed_dimensions(np.random.default_rng(seed), 400)
        params = {"M": 16, "ef_construction": 40, "ef_search": 16, "block_size": 1}
        distances, _ = made(X, "exact", "euclidean").search(X, 101, exclude=np.arange(len(X)))
        ascending = np.argsort(intrinsic_dimension(distances[:, :100]))
        down, up = (
            made(X, "hnsw", "euclidean", insertion_order=order, **params).recall(X[::4], k=10)
            for order in ("lid_descending", ascending)
        )
        differences.append(down - up)
    # The paper saw up to 0.12.
    assert 0 < np.mean(differences) < 0.25


def test_insertion_one_by_one_is_that_of_faiss(cloud):
    X = cloud[:400] / np.linalg.norm(cloud[:400], axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(400)
    index = made(
        X, "hnsw", "euclidean", M=4, ef_construction=8, insertion_order=order, block_size=1
    )
    index.search(X, 1)
    peer = faiss.IndexHNSWFlat(32, 4, faiss.METRIC_L2)
    peer.hnsw.efConstruction = 8
    centered = X - X.mean(axis=0)
    for i in order:
        peer.add(centered[i : i + 1])
    ours = faiss.vector_to_array(index._approximate._index.hnsw.neighbors)
    assert (ours == faiss.vector_to_array(peer.hnsw.neighbors)).mean() > 0.99


def test_random_insertion_order_follows_its_seed(cloud):
    def graph(seed):
        params = {"insertion_order": "random", "block_size": 1, "random_state": seed}
        index = made(cloud[:200], "hnsw", **params)
        index.search(cloud[:1], 1)
        return index._approximate._owners

    assert (graph(0) == graph(0)).all() and (graph(0) != graph(1)).any()


def test_insertion_order_that_is_no_permutation_is_refused(cloud):
    index = made(cloud[:10], "hnsw", insertion_order=np.zeros(10, dtype=int))
    with pytest.raises(ValueError, match="give a permutation of 0 to 9"):
        index.search(cloud[:1], 1)


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_come_later_are_found(cloud, method):
    index = made(cloud[:1500], method)
    index.search(cloud[:1], 1)
    index.add(cloud[1500:2000])
    _, ids = index.search(cloud[1500:2000], 1)
    assert (ids[:, 0] == np.arange(1500, 2000)).mean() > 0.95


@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize("method", METHODS)
def test_removed_rows_are_not_found(cloud, method, share):
    index = made(cloud[:2000], method)
    index.search(cloud[:1], 1)
    gone = np.arange(int(2000 * share))
    index.remove(gone)
    distances, ids = index.search(cloud[:200], 20)
    assert not np.isin(ids, gone).any() and np.isfinite(distances).all()
    assert index.recall(cloud[:200], 10) > 0.7


def test_graph_is_built_anew_past_a_fifth_of_removed_rows(cloud):
    index = made(cloud[:1000], "hnsw")
    index.search(cloud[:1], 1)
    index.remove(range(150))
    index.search(cloud[:1], 1)
    assert index._approximate._index.ntotal == 1000
    index.remove(range(150, 250))
    index.search(cloud[:1], 1)
    assert index._approximate._index.ntotal == 750


def test_too_few_found_is_completed_exactly(cloud):
    # One list of many is probed, which holds fewer rows than are asked for.
    index = made(cloud[:500], "ivf", n_lists=50, n_probes=1)
    distances, ids = index.search(cloud[2000:2020], 400)
    expected = made(cloud[:500], "exact").search(cloud[2000:2020], 400)
    assert (ids == expected[1]).all() and (distances == expected[0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_pickle_finds_the_same(cloud, method):
    index = made(cloud[:1000], method)
    index.search(cloud[:1], 1)
    index.remove([5])
    expected = index.search(cloud[1000:1100], 9)
    found = pickle.loads(pickle.dumps(index)).search(cloud[1000:1100], 9)
    assert (found[0] == expected[0]).all() and (found[1] == expected[1]).all()


def test_damaged_structure_is_built_anew(cloud):
    index = made(cloud[:500], "ivf")
    expected = index.search(cloud[1000:1050], 5)
    state = index.__getstate__()
    content = state["built"]["content"].copy()
    content[len(content) // 2 :] ^= 255
    loaded = NeighborIndex.__new__(NeighborIndex)
    loaded.__setstate__(state | {"built": state["built"] | {"content": content}})
    assert (loaded.search(cloud[1000:1050], 5)[1] == expected[1]).all()


def test_range_search_is_exact_with_every_method(cloud):
    found = made(cloud[:500], "ivf", n_probes=1).range_search(cloud[500:510], 0.3)
    expected = made(cloud[:500], "exact").range_search(cloud[500:510], 0.3)
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def test_tiny_index_is_searched_by_every_method():
    X = np.eye(3, 8)
    for method in METHODS:
        assert made(X, method).search(X, 3)[1][:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hnsw", "params": {"nprobe": 3}}, "params holds 'nprobe'"),
        ({"method": "exact", "params": {"M": 3}}, "params holds 'M'"),
        ({"method": "hnsw", "params": {"M": 0}}, "M=0 is not valid"),
        ({"method": "hnsw", "params": {"insertion_order": "up"}}, "insertion_order='up'"),
        ({"method": "hnsw", "metric": "dot"}, "method='hnsw' needs a metric"),
        ({"method": "ivf", "backend": "torch"}, "not by backend='torch'"),
        ({"method": "lsh"}, "choose one of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NeighborIndex(**options)


def test_subvectors_that_do_not_divide_the_width_are_refused(cloud):
    with pytest.raises(ValueError, match="n_subvectors=5 does not divide the 32 features"):
        made(cloud, "ivfpq", n_subvectors=5).search(cloud[:1], 1)


def test_intrinsic_dimension_of_a_ball_is_its_dimension():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3000, 5))
    X *= (rng.random(3000) ** (1 / 5) / np.linalg.norm(X, axis=1))[:, None]
    # In the middle, because near the surface neighbours are missing on one side.
    distances, _ = made(X, "exact", "euclidean").search(0.3 * X[:100], 100)
    dimension = intrinsic_dimension(distances)
    assert 1 / np.mean(1 / dimension) == pytest.approx(5, abs=0.3)
