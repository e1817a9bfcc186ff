# SPDX-License-Identifier: BSD-3-Clause
"""NeighborIndex against brute force in float64, and against itself on the other back-end."""

import pickle
import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors, kneighbors_graph

from skpool.neighbors import NeighborIndex

METRICS = ["cosine", "euclidean", "dot"]
BACKENDS = ["faiss", "torch"]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    ),
]


def brute_force(X, Q, k, metric):
    """Distances by their definitions in float64, sorted by (distance, position)."""
    X, Q = np.asarray(X, np.float64), np.asarray(Q, np.float64)
    if metric == "euclidean":
        D = np.sqrt(((Q[:, None] - X[None]) ** 2).sum(axis=2))
    elif metric == "dot":
        D = -(Q[:, None] * X[None]).sum(axis=2)
    else:
        norms = np.linalg.norm(Q, axis=1)[:, None] * np.linalg.norm(X, axis=1)
        product = (Q[:, None] * X[None]).sum(axis=2)
        D = 1 - np.divide(product, norms, out=np.zeros_like(product), where=norms > 0)
    order = np.lexsort((np.broadcast_to(np.arange(len(X)), D.shape), D))[:, :k]
    return np.take_along_axis(D, order, axis=1), order


def made(X, metric, backend):
    index = NeighborIndex(metric, backend=backend)
    index.add(X)
    return index


@pytest.fixture(scope="module")
def cloud():
    rng = np.random.default_rng(0)
    return rng.standard_normal((400, 24)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 7, 150, 300])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_search_equals_brute_force(cloud, backend, metric, k):
    X, Q = cloud[:300], cloud[300:]
    distances, ids = made(X, metric, backend).search(Q, k)
    expected, order = brute_force(X, Q, k, metric)
    assert (ids == order).all()
    np.testing.assert_allclose(distances, expected, atol=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_distances_are_in_the_units_of_scikit_learn(cloud, metric):
    peer = NearestNeighbors(metric=metric, algorithm="brute").fit(cloud[:300].astype(np.float64))
    expected, _ = peer.kneighbors(cloud[300:].astype(np.float64), 5)
    distances, _ = made(cloud[:300], metric, "auto").search(cloud[300:], 5)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    d=st.integers(1, 4),
    metric=st.sampled_from(["euclidean", "dot"]),
    backend=st.sampled_from(BACKENDS),
)
def test_ties_go_to_the_lower_id(seed, n, d, metric, backend):
    # Products and distances of small whole numbers are exact, so ties are exact in both.
    rng = np.random.default_rng(seed)
    X = rng.integers(-1, 2, (n, d)).astype(np.float64)
    Q = rng.integers(-1, 2, (5, d)).astype(np.float64)
    k = int(rng.integers(1, n + 1))
    distances, ids = made(X, metric, backend).search(Q, k)
    expected, order = brute_force(X, Q, k, metric)
    assert (ids == order).all()
    np.testing.assert_allclose(distances, expected, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_copies_of_a_row_come_in_order(cloud, backend, metric):
    # Far more copies than candidates are proposed, scattered over the index.
    X = np.concatenate([cloud[:50], np.tile(cloud[:2], (100, 1))])[
        np.random.default_rng(1).permutation(250)
    ]
    _, ids = made(X, metric, backend).search(cloud[:1], 40)
    same = (X == cloud[0]).all(axis=1)
    if metric != "dot":
        assert (ids[0] == np.flatnonzero(same)[:40]).all()
    block = ids[0][same[ids[0]]]
    assert (np.diff(block) > 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_backends_agree_to_the_last_bit(cloud, metric):
    X = np.concatenate([cloud, cloud[:100], np.zeros((20, 24), np.float32)])
    Q = np.concatenate([cloud[:50] + 0.01, np.zeros((1, 24), np.float32)])
    a, b = (made(X, metric, backend).search(Q, 30) for backend in BACKENDS)
    assert (a[0] == b[0]).all() and (a[1] == b[1]).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
def test_tensors_give_what_arrays_give(cloud, metric, device):
    index = NeighborIndex(metric)
    index.add(torch.from_numpy(cloud[:300]).to(device))
    assert index.device.type == device
    distances, ids = index.search(torch.from_numpy(cloud[300:]).to(device), 9)
    expected, order = brute_force(cloud[:300], cloud[300:], 9, metric)
    assert isinstance(ids, np.ndarray) and (ids == order).all()
    np.testing.assert_allclose(distances, expected, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_offset_of_a_thousand_deviations_keeps_the_order(backend, metric):
    rng = np.random.default_rng(2)
    X = (1000 + rng.standard_normal((300, 32))).astype(np.float32)
    distances, ids = made(X[:250], metric, backend).search(X[250:], 10)
    expected, order = brute_force(X[:250], X[250:], 10, metric)
    np.testing.assert_allclose(distances, expected, rtol=1e-6, atol=1e-12)
    assert (ids == order).mean() > 0.999


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e15, 1e25])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_scales_beyond_float32_squares_keep_the_order(cloud, backend, metric, scale):
    X = cloud.astype(np.float64) * scale
    _, ids = made(X[:100], metric, backend).search(X[100:120], 10)
    assert (ids == brute_force(X[:100], X[100:120], 10, metric)[1]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_outlier_does_not_disturb_the_others(cloud, backend):
    X = np.concatenate([cloud[:100], np.full((1, 24), 1e6, np.float32)])
    _, ids = made(X, "euclidean", backend).search(cloud[100:120], 10)
    assert (ids == brute_force(X, cloud[100:120], 10, "euclidean")[1]).all()


def test_zero_vector_has_cosine_distance_one():
    index = made(np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]), "cosine", "auto")
    distances, ids = index.search([[1.0, 0.0], [0.0, 0.0]], 3)
    assert distances.tolist() == [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]
    assert ids.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_half_precision_of_large_norm_is_computed_in_float32():
    X = np.full((2, 64), 60000, dtype=np.float16)
    X[1, 0] = -60000
    distances, ids = made(X, "cosine", "auto").search(X[1:], 2)
    assert ids.tolist() == [[1, 0]]
    assert distances[0] == pytest.approx([0, 2 / 64], abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_adding_in_pieces_equals_adding_at_once(cloud, backend, metric):
    index = NeighborIndex(metric, backend=backend)
    ids = [index.add(part) for part in np.split(cloud[:300], [1, 2, 200])]
    assert np.concatenate(ids).tolist() == list(range(300)) and len(index) == 300
    expected = made(cloud[:300], metric, backend).search(cloud[300:], 5)
    distances, found = index.search(cloud[300:], 5)
    assert (found == expected[1]).all() and (distances == expected[0]).all()


@settings(deadline=None, max_examples=25)
@given(data=st.data(), metric=st.sampled_from(METRICS), backend=st.sampled_from(BACKENDS))
def test_removed_equals_never_added_with_stable_ids(cloud, data, metric, backend):
    index = made(cloud[:60], metric, backend)
    gone = data.draw(st.sets(st.integers(0, 59), max_size=50))
    index.remove(sorted(gone))
    kept = np.setdiff1d(np.arange(60), sorted(gone))
    assert (index.ids == kept).all() and (index.vectors == cloud[kept]).all()
    k = min(5, len(kept))
    _, ids = index.search(cloud[300:310], k)
    assert (ids == kept[brute_force(cloud[kept], cloud[300:310], k, metric)[1]]).all()
    assert index.add(cloud[60:61]).tolist() == [60]


def test_removing_all_leaves_an_empty_index_that_can_be_filled(cloud):
    index = made(cloud[:3], "euclidean", "auto")
    index.remove([0, 1, 2])
    assert len(index) == 0 and index.vectors.size == 0
    assert index.add(np.ones((1, 5))).tolist() == [3]
    assert index.search(np.ones((1, 5)), 1)[1].tolist() == [[3]]


def test_removing_an_unknown_id_changes_nothing(cloud):
    index = made(cloud[:3], "cosine", "auto")
    with pytest.raises(ValueError, match="id 7 is not held"):
        index.remove([0, 7])
    assert len(index) == 3


def test_more_neighbors_than_rows_names_both_numbers(cloud):
    with pytest.raises(ValueError, match=r"k=4 .* holds 3 rows"):
        made(cloud[:3], "cosine", "auto").search(cloud, 4)


def test_search_of_an_empty_index_is_refused(cloud):
    with pytest.raises(ValueError, match=r"k=1 .* holds 0 rows"):
        NeighborIndex().search(cloud, 1)


@pytest.mark.parametrize("k", [0, -1, 2.0, True])
def test_k_other_than_a_positive_whole_number_is_refused(cloud, k):
    with pytest.raises(ValueError, match="give a whole number"):
        made(cloud[:3], "cosine", "auto").search(cloud, k)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_nan_is_refused_with_its_row_and_nothing_changes(cloud, kind, value):
    index = made(cloud[:3], "cosine", "auto")
    bad = cloud[:4].copy()
    bad[2, 1] = value
    with pytest.raises(ValueError, match=r"Input X contains .* in row 2"):
        index.add(kind(bad))
    with pytest.raises(ValueError, match=r"Input Q contains .* in row 2"):
        index.search(kind(bad), 1)
    assert len(index) == 3


def test_other_width_is_refused(cloud):
    index = made(cloud[:3], "cosine", "auto")
    with pytest.raises(ValueError, match="X has 5 features, but this index holds rows of 24"):
        index.add(np.ones((1, 5)))
    with pytest.raises(ValueError, match="Q has 5 features"):
        index.search(np.ones((1, 5)), 1)


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(0, 3), torch.ones(2, 2).long()])
def test_tensor_of_wrong_kind_is_refused(bad):
    with pytest.raises(ValueError, match="floating-point tensor of shape"):
        NeighborIndex().add(bad)


@pytest.mark.parametrize("options", [{"metric": "l2"}, {"backend": "annoy"}])
def test_unknown_option_is_refused_with_the_choices(options):
    with pytest.raises(ValueError, match="choose one of"):
        NeighborIndex(**options)


def test_pickle_holds_plain_arrays_and_finds_the_same(cloud):
    index = made(cloud[:100], "euclidean", "auto")
    index.remove([3])
    index.search(cloud, 5)
    text = pickle.dumps(index)
    assert b"torch" not in text and b"faiss" not in text
    loaded = pickle.loads(text)
    assert loaded.add(cloud[:1]).tolist() == [100]
    index.add(cloud[:1])
    a, b = index.search(cloud[300:], 7), loaded.search(cloud[300:], 7)
    assert (a[0] == b[0]).all() and (a[1] == b[1]).all()


def test_pickle_of_an_empty_index_opens():
    assert len(pickle.loads(pickle.dumps(NeighborIndex("dot")))) == 0


def test_rows_are_copied(cloud):
    X = cloud[:50].copy()
    index = made(X, "dot", "auto")
    X[:] = 0
    assert (index.vectors == cloud[:50]).all()


def test_vectors_are_read_only(cloud):
    with pytest.raises(ValueError, match="read-only"):
        made(cloud[:5], "cosine", "auto").vectors[0] = 0


@pytest.mark.parametrize("metric", METRICS)
def test_small_working_memory_gives_the_same(cloud, metric):
    X = np.concatenate([cloud, cloud])
    expected = made(X, metric, "torch").search(cloud, 12)
    with config_context(working_memory=0.01):
        distances, ids = made(X, metric, "torch").search(cloud, 12)
    assert (distances == expected[0]).all() and (ids == expected[1]).all()


def test_memory_map_is_accepted(cloud, tmp_path):
    np.save(tmp_path / "rows.npy", cloud)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    _, ids = made(mapped, "cosine", "auto").search(mapped[:10], 1)
    assert ids[:, 0].tolist() == list(range(10))


@pytest.mark.parametrize(
    "laid",
    [
        np.asfortranarray,
        lambda X: np.repeat(X, 2, axis=0)[::2],
        lambda X: np.repeat(X, 2, axis=1)[:, ::2],
        lambda X: X.astype(np.float64),
    ],
    ids=["columns first", "every other row", "every other column", "float64"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_in_any_layout_are_found(cloud, backend, laid):
    distances, ids = made(laid(cloud[:300]), "euclidean", backend).search(laid(cloud[300:]), 5)
    expected, order = brute_force(cloud[:300], cloud[300:], 5, "euclidean")
    assert (ids == order).all()
    np.testing.assert_allclose(distances, expected, atol=1e-12)


def test_one_thread_and_many_agree(cloud):
    expected = made(cloud[:300], "cosine", "torch").search(cloud[300:], 9)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        distances, ids = made(cloud[:300], "cosine", "torch").search(cloud[300:], 9)
    finally:
        torch.set_num_threads(before)
    assert (distances == expected[0]).all() and (ids == expected[1]).all()


def test_faiss_is_imported_only_when_used():
    code = (
        "import sys, numpy as np; from skpool.neighbors import NeighborIndex;"
        "index = NeighborIndex(backend='torch'); index.add(np.ones((3, 2)));"
        "index.search(np.ones((1, 2)), 1); assert 'faiss' not in sys.modules;"
        "index.backend = 'faiss'; index.search(np.ones((1, 2)), 1); assert 'faiss' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_given_ids_are_kept(cloud):
    index = NeighborIndex()
    assert index.add(cloud[:3], ids=[5, 7, 20]).tolist() == [5, 7, 20]
    assert index.add(cloud[3:4]).tolist() == [21]
    assert index.search(cloud[:4], 1)[1][:, 0].tolist() == [5, 7, 20, 21]


@pytest.mark.parametrize("ids", [[3, 2], [0, 5], [5], [5.0, 6.0]])
def test_ids_that_do_not_ascend_or_fit_are_refused(cloud, ids):
    index = made(cloud[:1], "cosine", "auto")
    with pytest.raises(ValueError, match="ids"):
        index.add(cloud[:2], ids=ids)
    assert len(index) == 1


def test_reconstruct_gives_rows_by_their_ids(cloud):
    index = made(cloud[:10], "cosine", "auto")
    index.remove([0, 4])
    assert (index.reconstruct([7, 1, 7]) == cloud[[7, 1, 7]]).all()
    with pytest.raises(ValueError, match="id 4 is not held"):
        index.reconstruct([1, 4])


@pytest.mark.parametrize("metric", METRICS)
def test_excluded_row_is_not_a_neighbor(cloud, metric):
    X = np.concatenate([cloud[:40], cloud[:40]])
    index = made(X, metric, "auto")
    exclude = np.where(np.arange(80) % 2, np.arange(80), -1)
    _, ids = index.search(X, 79, exclude=exclude)
    for i in range(80):
        order = brute_force(X, X[i : i + 1], 80, metric)[1][0]
        assert (ids[i] == order[order != exclude[i]][:79]).all()


@pytest.mark.parametrize("exclude", [[1], [1.0, 2.0], [[1, 2]]])
def test_exclude_of_another_shape_or_kind_is_refused(cloud, exclude):
    with pytest.raises(ValueError, match="give one id per query"):
        made(cloud[:9], "cosine", "auto").search(cloud[:2], 3, exclude=exclude)


def test_search_that_is_not_strict_returns_all_rows(cloud):
    distances, ids = made(cloud[:3], "cosine", "auto").search(cloud, 9, strict=False)
    assert ids.shape == distances.shape == (400, 3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_range_search_equals_brute_force(cloud, backend, metric):
    X, Q = cloud[:300], cloud[300:320]
    expected, order = brute_force(X, Q, 300, metric)
    # One of the distances, so that the border is tried too.
    radius = float(made(X, metric, backend).search(Q, 30)[0][0, 29])
    offsets, distances, ids = made(X, metric, backend).range_search(Q, radius)
    assert offsets[1] == 30
    for i in range(20):
        found = slice(offsets[i], offsets[i + 1])
        inside = expected[i] <= radius + 1e-13
        assert (ids[found] == order[i][inside]).all()
        np.testing.assert_allclose(distances[found], expected[i][inside], atol=1e-12)


def test_range_search_may_find_nothing(cloud):
    offsets, distances, ids = made(cloud[:9], "euclidean", "auto").range_search(cloud[9:11], 1e-3)
    assert offsets.tolist() == [0, 0, 0] and len(distances) == len(ids) == 0


@pytest.mark.parametrize("radius", [np.nan, np.inf, -1.0])
def test_radius_that_is_no_distance_is_refused(cloud, radius):
    with pytest.raises(ValueError, match="is not a distance"):
        made(cloud[:9], "euclidean", "auto").range_search(cloud[:1], radius)


@pytest.mark.parametrize("mode", ["distance", "connectivity"])
def test_graph_equals_that_of_scikit_learn(cloud, mode):
    X = cloud[:100].astype(np.float64)
    index = made(X, "euclidean", "auto")
    expected = kneighbors_graph(X, 6, mode=mode).toarray()
    np.testing.assert_allclose(index.graph(k=6, mode=mode).toarray(), expected, atol=1e-10)
    peer = NearestNeighbors(n_neighbors=6).fit(X).kneighbors_graph(X[:5] + 0.1, mode=mode)
    found = index.graph(X[:5] + 0.1, 6, mode=mode)
    np.testing.assert_allclose(found.toarray(), peer.toarray(), atol=1e-10)


def test_graph_serves_scikit_learn_as_precomputed(cloud):
    X, y = cloud[:200].astype(np.float64), np.arange(200) % 3
    index = made(X, "euclidean", "auto")
    fitted = KNeighborsClassifier(5, metric="precomputed").fit(index.graph(X, 8), y)
    expected = KNeighborsClassifier(5).fit(X, y).predict_proba(cloud[200:])
    np.testing.assert_allclose(fitted.predict_proba(index.graph(cloud[200:], 8)), expected)


def test_block_sizes_of_faiss_are_put_back(cloud):
    def sizes():
        own = faiss.cvar
        return own.distance_compute_blas_query_bs, own.distance_compute_blas_database_bs

    before = sizes()
    made(cloud[:300], "cosine", "faiss").search(cloud, 5)
    assert sizes() == before


@pytest.mark.parametrize("metric", METRICS)
def test_small_working_memory_gives_the_same_with_faiss(metric):
    rng = np.random.default_rng(4)
    X, Q = rng.standard_normal((900, 8)), rng.standard_normal((600, 8))
    expected = made(X, metric, "faiss").search(Q, 12)
    with config_context(working_memory=0.01):
        distances, ids = made(X, metric, "faiss").search(Q, 12)
    assert (distances == expected[0]).all() and (ids == expected[1]).all()
