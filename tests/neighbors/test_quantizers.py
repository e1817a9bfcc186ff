# SPDX-License-Identifier: BSD-3-Clause
"""VectorQuantizer and KeyQuantizer against scikit-learn, brute force, and their formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_argmin

from skpool.neighbors import KeyQuantizer, VectorQuantizer
from skpool.neighbors._quantizer_kernels import nearest_codes


@pytest.fixture(scope="module")
def blobs():
    return make_blobs(200, 3, centers=4, cluster_std=0.3, random_state=0)[0]


# Nearest codes.


@given(seed=st.integers(0, 2**32 - 1))
def test_nearest_codes_equal_brute_force_with_ties_to_the_first(seed):
    rng = np.random.default_rng(seed)
    # Whole numbers, so that distances and ties are exact in the brute force.
    rows, keys = rng.integers(-2, 3, (3, 20, 2)), rng.integers(-2, 3, (3, 7, 2))
    expected = ((rows[:, :, None] - keys[:, None]) ** 2).sum(axis=3).argmin(axis=2).T
    assert (nearest_codes(rows.astype(float), keys.astype(float)) == expected).all()


def test_code_of_a_row_does_not_depend_on_the_rows_beside_it():
    rng = np.random.default_rng(0)
    rows, keys = rng.standard_normal((4, 333, 8)), rng.standard_normal((4, 50, 8))
    # Rows midway between two keys, where rounding would decide.
    rows[:, :100] = (keys[:, rng.integers(0, 50, 100)] + keys[:, rng.integers(0, 50, 100)]) / 2
    together = nearest_codes(rows, keys)
    alone = np.concatenate([nearest_codes(rows[:, i : i + 1], keys) for i in range(333)])
    assert (together == alone).all()
    with config_context(working_memory=0.05):
        assert (nearest_codes(rows, keys) == together).all()


def test_keys_far_from_zero_are_told_apart():
    keys = 1e6 + np.array([[[0.0], [1e-3], [2e-3]]])
    assert nearest_codes(keys + 1e-4, keys)[:, 0].tolist() == [0, 1, 2]


# VectorQuantizer.


def test_kmeans_codes_are_centers_of_their_rows(blobs):
    vq = VectorQuantizer(4, random_state=0).fit(blobs)
    codes = vq.transform(blobs)
    assert codes.shape == (200,) and codes.dtype == np.int32
    expected = np.stack([blobs[codes == c].mean(axis=0) for c in range(4)])
    np.testing.assert_allclose(vq.codebook_, expected, atol=1e-10)
    assert (codes == pairwise_distances_argmin(blobs, vq.codebook_)).all()
    assert (vq.inverse_transform(codes) == vq.codebook_[codes]).all()


def test_kmeans_codes_are_those_of_scikit_learn_from_the_same_start(blobs):
    start = blobs[np.random.RandomState(3).permutation(200)[:4]]
    peer = KMeans(4, init=start, n_init=1, max_iter=100).fit(blobs)
    vq = VectorQuantizer(4, random_state=3).fit(blobs)
    np.testing.assert_allclose(vq.codebook_, peer.cluster_centers_, atol=1e-10)


def test_sampled_codes_are_distinct_rows(blobs):
    codebook = VectorQuantizer(30, init="sample", random_state=0).fit(blobs).codebook_
    places = [np.flatnonzero((blobs == code).all(axis=1)).item() for code in codebook]
    assert len(set(places)) == 30


def test_cosine_codes_have_norm_one_and_ignore_the_length_of_rows(blobs):
    vq = VectorQuantizer(4, metric="cosine", random_state=0).fit(blobs)
    np.testing.assert_allclose(np.linalg.norm(vq.codebook_, axis=1), 1)
    assert (vq.transform(7 * blobs) == vq.transform(blobs)).all()
    cosines = blobs @ vq.codebook_.T
    assert (vq.transform(blobs) == cosines.argmax(axis=1)).all()


def test_partial_fit_by_kmeans_keeps_means_of_all_rows(blobs):
    # Around corners so far apart that no row changes its code.
    corners = np.repeat(np.arange(4), 50)
    X = blobs + 1000 * np.eye(4, 3)[corners]
    vq = VectorQuantizer(4, random_state=0).fit(X[::50])
    first = vq.transform(X)
    rest = np.setdiff1d(np.arange(200), np.arange(0, 200, 50))
    vq.partial_fit(X[rest[::2]]).partial_fit(X[rest[1::2]])
    expected = np.stack([X[first == c].mean(axis=0) for c in range(4)])
    np.testing.assert_allclose(vq.codebook_, expected, atol=1e-9)
    assert vq.mass_.tolist() == [50] * 4


def test_partial_fit_by_moving_averages_follows_the_formula(blobs):
    vq = VectorQuantizer(4, update="ema", decay=0.8, random_state=0).fit(blobs[:100])
    mass, codes = vq.mass_.copy(), vq.codebook_.copy()
    batch = blobs[100:130] + 0.1
    nearest = pairwise_distances_argmin(batch, codes)
    for c in range(4):
        rows = batch[nearest == c]
        new = 0.8 * mass[c] + 0.2 * len(rows)
        codes[c] = (0.8 * mass[c] * codes[c] + 0.2 * rows.sum(axis=0)) / new
    np.testing.assert_allclose(vq.partial_fit(batch).codebook_, codes, atol=1e-10)


def test_dead_code_starts_anew_at_a_row_of_the_batch(blobs):
    vq = VectorQuantizer(4, update="ema", decay=0.5, random_state=0).fit(blobs)
    batch = blobs[:20] + 1000
    for _ in range(30):
        vq.partial_fit(batch)
    assert (vq.codebook_.min(axis=1) > 500).all() and vq.perplexity_ > 1.5


def test_affine_codes_follow_a_shift_and_a_stretch_of_the_data(blobs):
    vq = VectorQuantizer(4, update="ema", decay=0.0, affine=True, random_state=0).fit(blobs)
    before = vq.codebook_.copy()
    vq.partial_fit(3 * blobs + 50)
    np.testing.assert_allclose(vq.codebook_, 3 * before + 50, rtol=1e-9)


def test_perplexity_counts_codes_in_use():
    X = np.repeat(np.eye(4), [10, 10, 10, 10], axis=0)
    assert VectorQuantizer(4, init="kmeans", random_state=1).fit(X).perplexity_ <= 4 + 1e-9
    vq = VectorQuantizer(2, random_state=0).fit(np.array([[0.0]] * 9 + [[1.0]] * 3))
    share = np.array([0.75, 0.25])
    assert vq.perplexity_ == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_more_codes_than_rows_become_the_rows_with_a_warning():
    with pytest.warns(UserWarning, match=r"n_codes=9 .* n_samples=2"):
        vq = VectorQuantizer(9, random_state=0).fit(np.eye(2))
    assert sorted(vq.codebook_.tolist()) == [[0.0, 1.0], [1.0, 0.0]]


def test_failed_partial_fit_changes_nothing(blobs):
    vq = VectorQuantizer(4, update="ema", random_state=0).fit(blobs)
    before = vq.codebook_.copy()
    with pytest.raises(ValueError, match="NaN"):
        vq.partial_fit(np.full((2, 3), np.nan))
    assert (vq.codebook_ == before).all()


@pytest.mark.parametrize("codes", [[0, 4], [-1], [0.5]])
def test_codes_that_do_not_exist_are_refused(blobs, codes):
    with pytest.raises(ValueError, match="numbers of codes, 0 to 3"):
        VectorQuantizer(4, random_state=0).fit(blobs).inverse_transform(codes)


# KeyQuantizer.


@pytest.mark.parametrize("key_init", ["kmeans", "ema", "sample"])
@pytest.mark.parametrize("projection", ["gaussian", "pca", "slice"])
def test_codes_are_nearest_keys_of_projections(projection, key_init):
    X = np.random.default_rng(0).standard_normal((300, 12))
    quantizer = KeyQuantizer(
        5, n_keys=16, key_dim=2, projection=projection, key_init=key_init, random_state=0
    )
    codes = quantizer.fit(X[:250]).transform(X)
    assert codes.shape == (300, 5) and codes.dtype == np.int32
    assert quantizer.keys_.shape == (5, 16, 2)
    for h in range(5):
        z = X @ quantizer.projection_[:, 2 * h : 2 * h + 2]
        assert (codes[:, h] == pairwise_distances_argmin(z, quantizer.keys_[h])).all()
        assert len(np.unique(codes[:, h])) > 8


def test_projections_are_principal_axes_or_features():
    X = np.random.default_rng(0).standard_normal((200, 6)) * [1, 5, 2, 7, 3, 4]
    pca = KeyQuantizer(2, n_keys=4, key_dim=2, projection="pca", random_state=0).fit(X)
    products = np.abs(PCA(4).fit(X).components_ @ pca.projection_)
    np.testing.assert_allclose(products, np.eye(4), atol=1e-8)
    sliced = KeyQuantizer(2, n_keys=4, key_dim=2, projection="slice", random_state=0).fit(X)
    assert (X @ sliced.projection_ == X[:, :4]).all()


@pytest.mark.parametrize("projection", ["pca", "slice"])
def test_more_axes_than_features_are_refused(projection):
    with pytest.raises(ValueError, match=r"n_codebooks \* key_dim = 6 of the n_features = 4"):
        KeyQuantizer(3, n_keys=2, key_dim=2, projection=projection).fit(np.eye(4))


def test_more_keys_than_rows_become_the_rows_with_a_warning():
    with pytest.warns(UserWarning, match=r"n_keys=9 .* n_samples=4"):
        quantizer = KeyQuantizer(2, n_keys=9, key_dim=3, random_state=0).fit(np.eye(4))
    assert quantizer.keys_.shape == (2, 4, 3)


def test_keys_follow_the_seed_and_tensors_give_the_same():
    X = np.random.default_rng(0).standard_normal((60, 5))
    a, b, c = (KeyQuantizer(3, n_keys=4, random_state=seed).fit(X) for seed in (0, 0, 1))
    assert (a.keys_ == b.keys_).all() and (a.keys_ != c.keys_).any()
    assert (a.transform(torch.from_numpy(X)) == a.transform(X)).all()
