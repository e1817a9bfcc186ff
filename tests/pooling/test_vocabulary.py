# SPDX-License-Identifier: BSD-3-Clause
"""What learns and compares words, against scipy's distances and scikit-learn's k-means and PCA."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA

from skpool.pooling import _vocabulary
from skpool.pooling._vocabulary import (
    Words,
    assign_hard,
    assign_soft,
    check_enough_tokens,
    drawn_features,
    fit_vocabulary,
    inner_tokens,
    mean_gap,
    mean_smallest_distance,
    principal_axes,
    rotated,
    window_means,
    word_scores,
)
from skpool.stores import TokenArray

N, K, D = 30, 5, 4


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(N, D))


@pytest.fixture
def words():
    return np.random.default_rng(1).normal(size=(K, D))


def scores_of(rows, words):
    return word_scores(torch.from_numpy(rows), Words.of(torch.from_numpy(words)))


# Scores and codes.


def test_scores_are_squared_distances_up_to_the_norm_of_the_token(rows, words):
    expected = (rows**2).sum(1)[:, None] - cdist(rows, words, "sqeuclidean")
    np.testing.assert_allclose(scores_of(rows, words), expected, atol=1e-12)


def test_scores_of_scaled_tokens_equal_those_of_their_products(rows, words):
    scale = np.random.default_rng(2).random((N, 1))
    prepared = Words.of(torch.from_numpy(words))
    scores = word_scores(torch.from_numpy(rows), prepared, scale=torch.from_numpy(scale))
    np.testing.assert_allclose(scores, scores_of(rows * scale, words), atol=1e-12)


def test_scores_keep_the_leading_axes(rows, words):
    scores = scores_of(rows.reshape(5, 6, D), words)
    np.testing.assert_array_equal(scores.reshape(N, K), scores_of(rows, words))


def test_hard_codes_equal_the_labels_of_kmeans(rows, words):
    kmeans = KMeans(K, n_init=1, random_state=0).fit(rows)
    codes = assign_hard(scores_of(rows, kmeans.cluster_centers_))
    np.testing.assert_array_equal(codes, np.eye(K)[kmeans.labels_])


def test_hard_codes_give_a_tie_to_the_first_word():
    scores = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(assign_hard(scores), [[0, 1, 0], [1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("alpha", [0.01, 1.0, 7.5])
def test_soft_codes_equal_the_softmax_of_distances(rows, words, alpha):
    expected = softmax(-alpha * cdist(rows, words, "sqeuclidean"), axis=1)
    codes = assign_soft(scores_of(rows, words), alpha=alpha)
    np.testing.assert_allclose(codes, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("alpha", [1e9, 1e300, np.finfo(np.float64).max, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_soft_codes_of_a_large_alpha_are_hard(rows, words, alpha, dtype):
    scores = scores_of(rows, words).to(getattr(torch, dtype))
    np.testing.assert_array_equal(assign_soft(scores.clone(), alpha=alpha), assign_hard(scores))


def test_more_words_than_tokens_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"n_words=9 .* 8 sampled tokens"):
        check_enough_tokens("n_words", 9, 8)


# Axes.


def test_axes_equal_those_of_pca(rows):
    mean, axes = principal_axes(torch.from_numpy(rows), 3)
    pca = PCA(3).fit(rows)
    np.testing.assert_allclose(mean, pca.mean_, atol=1e-14)
    np.testing.assert_allclose(np.abs((axes * pca.components_).sum(1)), np.ones(3), rtol=1e-12)


def test_axes_have_a_positive_largest_loading(rows):
    _, axes = principal_axes(torch.from_numpy(rows), D)
    assert (axes[np.arange(D), np.abs(axes).argmax(1)] > 0).all()


def test_rotated_tokens_equal_those_of_pca(rows):
    mean, axes = principal_axes(torch.from_numpy(rows), 3)
    pca = PCA(3).fit(rows)
    actual = rotated(torch.from_numpy(rows), mean, axes)
    np.testing.assert_allclose(actual.abs(), np.abs(pca.transform(rows)), atol=1e-12)


def test_axes_are_no_more_than_features(rows):
    assert principal_axes(torch.from_numpy(rows), 64)[1].shape == (D, D)


def test_axes_are_no_more_than_the_rank(rows):
    flat = rows @ np.diag([1.0, 1.0, 0.0, 0.0])
    assert principal_axes(torch.from_numpy(flat), 64)[1].shape == (2, D)


def test_equal_tokens_have_one_axis():
    mean, axes = principal_axes(torch.full((5, 3), 2.0), 64)
    assert axes.shape == (1, 3)
    np.testing.assert_array_equal(mean, [2.0, 2.0, 2.0])


def test_axes_survive_a_mean_of_a_thousand_deviations(rows):
    shifted = (rows + 1000.0).astype(np.float32)
    exact = PCA(2, svd_solver="full").fit(shifted.astype(np.float64)).components_
    _, axes = principal_axes(torch.from_numpy(shifted), 2)
    np.testing.assert_allclose(np.abs((axes * exact).sum(1)), [1.0, 1.0], rtol=1e-9)


# Words of k-means.


def test_words_of_separate_clusters_are_their_means():
    rows, labels = make_blobs(200, D, centers=6, cluster_std=0.1, random_state=3)
    found = fit_vocabulary(torch.from_numpy(rows), n_words=6, random_state=0)
    expected = np.array([rows[labels == k].mean(0) for k in range(6)])
    nearest = cdist(expected, found).argmin(1)
    assert sorted(nearest) == list(range(6))
    np.testing.assert_allclose(found[nearest], expected, rtol=1e-5, atol=1e-5)


def test_words_of_many_tokens_are_about_as_good_as_those_of_kmeans():
    rows = np.random.default_rng(0).normal(size=(20_000, 3))
    found = fit_vocabulary(torch.from_numpy(rows), n_words=8, random_state=0)
    ours = (cdist(rows, found, "sqeuclidean").min(1)).sum()
    assert ours < 1.05 * KMeans(8, n_init=3, random_state=0).fit(rows).inertia_


def test_words_are_float32_whatever_the_tokens_are(rows):
    for dtype in (np.float32, np.float64):
        sample = torch.from_numpy(rows.astype(dtype))
        assert fit_vocabulary(sample, n_words=2, random_state=0).dtype == np.float32


def test_words_survive_a_mean_of_a_thousand_deviations():
    rows, _ = make_blobs(200, D, centers=6, cluster_std=0.3, random_state=3)
    plain = fit_vocabulary(torch.from_numpy(rows), n_words=6, random_state=0)
    shifted = torch.from_numpy((rows + 4096.0).astype(np.float32))
    found = fit_vocabulary(shifted, n_words=6, random_state=0)
    np.testing.assert_allclose(found - 4096.0, plain, atol=2e-3)


def test_words_scale_with_the_tokens(rows):
    sample = torch.from_numpy(rows)
    plain = fit_vocabulary(sample, n_words=K, random_state=0)
    scaled = fit_vocabulary(sample * 2.0**70, n_words=K, random_state=0)
    np.testing.assert_array_equal(scaled, plain * np.float32(2.0**70))


def test_words_depend_on_the_random_state_alone():
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(300, D)))
    first = fit_vocabulary(rows, n_words=20, random_state=7)
    np.random.seed(5)
    np.testing.assert_array_equal(fit_vocabulary(rows, n_words=20, random_state=7), first)
    assert (fit_vocabulary(rows, n_words=20, random_state=8) != first).any()


def test_learning_leaves_the_sample_as_it_was(rows):
    sample = torch.from_numpy(rows.astype(np.float32))
    before = sample.clone()
    fit_vocabulary(sample, n_words=K, random_state=0)
    assert torch.equal(sample, before)


def test_as_many_words_as_tokens_are_the_tokens(rows):
    found = fit_vocabulary(torch.from_numpy(rows), n_words=N, random_state=0)
    assert cdist(rows, found).min(1).max() < 1e-6


@pytest.mark.parametrize("repeats", [4, 6000])
def test_words_for_too_few_distinct_tokens_are_reported(repeats):
    sample = torch.eye(3).repeat(repeats, 1)
    with pytest.warns(UserWarning, match=r"Only \d of the 5 words are distinct") as record:
        found = fit_vocabulary(sample, n_words=5, random_state=0)
    assert len(record) == 1
    assert cdist(np.eye(3), found).min(1).max() < 1e-6


def test_words_that_mini_batches_give_twice_get_another_place(monkeypatch):
    class Twice(MiniBatchKMeans):
        def fit(self, X):
            super().fit(X)
            self.cluster_centers_[1] = self.cluster_centers_[0]
            return self

    monkeypatch.setattr(_vocabulary, "MiniBatchKMeans", Twice)
    rows = np.random.default_rng(0).normal(size=(20_000, 3))
    found = fit_vocabulary(torch.from_numpy(rows), n_words=8, random_state=0)
    assert len(np.unique(cdist(rows, found).argmin(1))) == 8


def test_one_word_is_the_mean(rows):
    found = fit_vocabulary(torch.from_numpy(rows), n_words=1, random_state=0)
    np.testing.assert_allclose(found, [rows.mean(0)], atol=1e-6)


# Distances of a sample.


@pytest.mark.parametrize("block", [0, 2**25])
def test_gap_equals_that_of_sorted_distances(rows, words, block, monkeypatch):
    monkeypatch.setattr("skpool.pooling._vocabulary._SCORE_BYTES", block)
    distances = np.sort(cdist(rows, words, "sqeuclidean"), axis=1)
    expected = (distances[:, 1] - distances[:, 0]).mean()
    assert mean_gap(torch.from_numpy(rows), words) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("block", [0, 2**25])
def test_smallest_distance_equals_that_of_all(rows, words, block, monkeypatch):
    monkeypatch.setattr("skpool.pooling._vocabulary._SCORE_BYTES", block)
    expected = cdist(rows, words, "sqeuclidean").min(1).mean()
    actual = mean_smallest_distance(torch.from_numpy(rows), words)
    assert actual == pytest.approx(expected, rel=1e-12)


def test_smallest_distance_survives_a_mean_of_a_thousand_deviations(rows, words):
    # Whole numbers, so that rounding to float32 moves neither tokens nor words.
    rows, words = np.round(8 * rows), np.round(8 * words)
    expected = cdist(rows, words, "sqeuclidean").min(1).mean()
    far = torch.from_numpy((rows + 2.0**15).astype(np.float32))
    actual = mean_smallest_distance(far, (words + 2.0**15).astype(np.float32))
    assert actual == pytest.approx(expected, rel=1e-4)


def test_smallest_distance_of_the_words_is_zero(words):
    assert 0 <= mean_smallest_distance(torch.from_numpy(words), words) < 1e-14


# Places on a grid.


@pytest.fixture
def maps():
    return np.random.default_rng(4).normal(size=(6, 5, 7, 3))


def test_inner_tokens_equal_the_inner_part_of_the_map(maps):
    inner = inner_tokens(TokenArray.from_map(maps), 2)
    assert inner.grid == (1, 3)
    np.testing.assert_array_equal(np.asarray(inner), maps[:, 2:3, 2:5].reshape(6, 3, 3))


def test_inner_tokens_leave_the_prefix_out(maps):
    flat = maps.reshape(6, 35, 3)
    whole = np.concatenate([np.full((6, 1, 3), 9.0), flat], axis=1)
    tokens = TokenArray.from_array(whole, n_prefix_tokens=1, grid=(5, 7))
    expected = np.asarray(inner_tokens(TokenArray.from_map(maps), 1))
    np.testing.assert_array_equal(np.asarray(inner_tokens(tokens, 1)), expected)


def test_inner_tokens_keep_their_part_of_the_mask(maps):
    mask = np.random.default_rng(5).random((6, 5, 7)) < 0.5
    tokens = TokenArray.from_array(maps.reshape(6, 35, 3), mask=mask.reshape(6, 35), grid=(5, 7))
    inner = inner_tokens(tokens, 1)
    np.testing.assert_array_equal(inner.mask, mask[:, 1:-1, 1:-1].reshape(6, 15))
    batch = next(inner.iter_batches())
    np.testing.assert_array_equal(batch.mask, inner.mask)


def test_no_border_changes_nothing(maps):
    tokens = TokenArray.from_map(maps)
    assert inner_tokens(tokens, 0) is tokens


def test_border_without_a_grid_is_refused():
    with pytest.raises(ValueError, match="border=1 needs tokens on a grid"):
        inner_tokens(TokenArray.from_array(np.ones((2, 9, 1))), 1)


def test_border_that_leaves_nothing_is_refused(maps):
    with pytest.raises(ValueError, match="border=3 leaves nothing of a grid of 5 x 7"):
        inner_tokens(TokenArray.from_map(maps), 3)


def drawn(tokens, place, side, batch_size=None):
    places = np.full(len(tokens), place)
    return drawn_features(tokens, places, side=side, batch_size=batch_size)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_window_means_equal_average_pooling(maps, side):
    tokens = TokenArray.from_map(maps)
    pooled = torch.nn.functional.avg_pool2d(
        torch.from_numpy(maps).permute(0, 3, 1, 2), side, stride=1
    )
    expected = pooled.flatten(2).permute(2, 0, 1).numpy()
    n_windows = (6 - side) * (8 - side)
    assert len(expected) == n_windows
    for number, means in enumerate(expected):
        actual = drawn(tokens, (number + 0.5) / n_windows, side)
        np.testing.assert_allclose(actual, means, rtol=1e-10)


def test_window_means_leave_the_prefix_out(maps):
    whole = np.concatenate([np.full((6, 1, 3), 9.0), maps.reshape(6, 35, 3)], axis=1)
    tokens = TokenArray.from_array(whole, n_prefix_tokens=1, grid=(5, 7))
    expected = drawn(TokenArray.from_map(maps), 0.3, 3)
    np.testing.assert_allclose(drawn(tokens, 0.3, 3), expected, rtol=1e-12)


def test_windows_average_their_real_tokens(maps):
    mask = np.ones((6, 5, 7), dtype=bool)
    mask[:, 0] = False
    flat = np.where(mask[..., None], maps, np.nan).reshape(6, 35, 3)
    tokens = TokenArray.from_array(flat, mask=mask.reshape(6, 35), grid=(5, 7))
    expected = maps[:, 1:3, 0:3].mean((1, 2))
    np.testing.assert_allclose(drawn(tokens, 0.0, 3), expected, rtol=1e-12)


def test_places_are_among_the_windows_with_real_tokens():
    values = np.arange(12.0).reshape(2, 6, 1)
    mask = np.array([[0, 1, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0]], dtype=bool)
    tokens = TokenArray.from_array(values, mask=mask)
    found = {tuple(drawn(tokens, place, 1).ravel()) for place in (0.0, 0.3, 0.4, 0.6, 0.7, 0.999)}
    assert found == {(1.0, 9.0), (4.0, 9.0), (5.0, 9.0)}


def test_samples_without_real_tokens_give_no_feature():
    mask = np.array([[True, True], [False, False], [True, False]])
    tokens = TokenArray.from_array(np.arange(6.0).reshape(3, 2, 1), mask=mask)
    np.testing.assert_array_equal(drawn(tokens, 0.0, 1), [[0.0], [4.0]])


def test_window_means_report_what_has_none():
    _, known = window_means(
        torch.ones(2, 2, 1),
        torch.tensor([[True, False], [False, False]]),
        windows=torch.tensor([[0], [1]]),
        places=torch.zeros(2),
    )
    assert known.tolist() == [True, False]


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(0, 2**31 - 1))
def test_drawn_features_do_not_depend_on_the_batches(batch_size, seed):
    rng = np.random.default_rng(seed)
    tokens = TokenArray.from_array(rng.normal(size=(6, 4, 2)), mask=rng.random((6, 4)) < 0.6)
    places = rng.random(6)
    whole = drawn_features(tokens, places, side=1)
    np.testing.assert_array_equal(
        drawn_features(tokens, places, side=1, batch_size=batch_size), whole
    )


def test_windows_without_a_grid_are_refused():
    with pytest.raises(ValueError, match="local_average=3 needs tokens on a grid"):
        drawn(TokenArray.from_array(np.ones((2, 9, 1))), 0.0, 3)


def test_windows_larger_than_the_grid_are_refused(maps):
    with pytest.raises(ValueError, match="local_average=6 is larger than the grid of 5 x 7"):
        drawn(TokenArray.from_map(maps), 0.0, 6)


def test_distinct_words_are_learned_without_a_warning(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_vocabulary(torch.from_numpy(rows), n_words=K, random_state=0)
