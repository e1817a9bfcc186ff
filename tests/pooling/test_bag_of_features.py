# SPDX-License-Identifier: BSD-3-Clause
"""Bags of features against k-means and bincount, scipy's softmax, tf-idf, and a queue by hand."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, issparse
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.pipeline import make_union
from sklearn.preprocessing import normalize
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks as sklearn_checks

from skpool.pooling import BagOfFeaturesPooling, _vocabulary_kernels
from skpool.pooling._vocabulary_kernels import pool_bag_of_features
from skpool.stores import ArraySource, TokenArray, TokenBatch
from skpool.utils.estimator_checks import parametrize_with_checks

N, L, D, K = 8, 9, 4, 5


@sklearn_checks(
    [
        BagOfFeaturesPooling(2, sparse_output=True),
        BagOfFeaturesPooling(2, vocabulary="queue", sparse_output=True),
    ]
)
def test_scikit_learn_check_passes_with_sparse_results(estimator, check):
    check(estimator)


def expected_failures(estimator):
    reason = "which place of a sample is drawn depends on its number, which all samples have"
    return {"check_unreadable_rows_are_nan": reason}


@parametrize_with_checks(
    [BagOfFeaturesPooling(2, vocabulary="queue", assignment="soft")],
    expected_failed_checks=expected_failures,
)
def test_skpool_check_passes_with_a_queue(estimator, check):
    check(estimator)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(N, L, D))


@pytest.fixture
def words():
    return np.random.default_rng(1).normal(size=(K, D))


@pytest.fixture(params=["one block", "a row per block"])
def blocks(request, monkeypatch):
    """Both ways in which a kernel may go through its rows."""
    n_bytes = 2**40 if request.param == "one block" else 0
    monkeypatch.setattr(_vocabulary_kernels, "_BLOCK_BYTES", n_bytes)


def bag(x, words, mask=None, **options):
    mask = None if mask is None else torch.from_numpy(mask)
    x, words = torch.as_tensor(x), torch.as_tensor(words)
    return pool_bag_of_features(x, mask, vocabulary=words, **options).numpy()


def counts_by_kmeans(tokens, words):
    kmeans = KMeans(len(words), init=words, n_init=1, max_iter=1).fit(words)
    kmeans.cluster_centers_ = np.ascontiguousarray(words, dtype=np.float64)
    return np.array([np.bincount(kmeans.predict(x), minlength=len(words)) for x in tokens])


# The kernel.


def test_hard_bags_equal_the_labels_of_kmeans_counted(tokens, words, blocks):
    expected = counts_by_kmeans(tokens, words) / L
    np.testing.assert_allclose(bag(tokens, words), expected, rtol=1e-12)


def test_masked_bags_count_the_real_tokens(tokens, words, blocks):
    mask = np.random.default_rng(2).random((N, L)) < 0.6
    mask[:, 0] = True
    dirty = np.where(mask[..., None], tokens, np.nan)
    pairs = zip(tokens, mask, strict=True)
    expected = [counts_by_kmeans([x[real]], words)[0] / real.sum() for x, real in pairs]
    np.testing.assert_allclose(bag(dirty, words, mask), expected, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.2, 3.0])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_soft_bags_equal_the_softmax_of_distances(tokens, words, alpha, pool, blocks):
    codes = np.array([softmax(-alpha * cdist(x, words, "sqeuclidean"), axis=1) for x in tokens])
    expected = codes.mean(1) if pool == "mean" else codes.max(1)
    actual = bag(tokens, words, assignment="soft", alpha=alpha, pool=pool, norm=None)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_hard_maximum_is_one_where_a_word_occurs(tokens, words):
    expected = counts_by_kmeans(tokens, words) > 0
    np.testing.assert_array_equal(bag(tokens, words, pool="max", norm=None), expected)


@pytest.mark.parametrize("assignment", ["hard", "soft"])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_norms_equal_those_of_scikit_learn(tokens, words, assignment, pool):
    options = {"assignment": assignment, "pool": pool}
    plain = bag(tokens, words, norm=None, **options)
    for norm in ("l1", "l2"):
        expected = normalize(plain, norm=norm)
        np.testing.assert_allclose(bag(tokens, words, norm=norm, **options), expected, rtol=1e-12)
    expected = np.sqrt(normalize(plain, norm="l1"))
    actual = bag(tokens, words, norm="sqrt", **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    np.testing.assert_allclose((actual**2).sum(1), 1, rtol=1e-12)


def test_weights_of_words_come_before_the_norm(tokens, words):
    idf = np.array([1.0, 3.0, 0.5, 2.0, 1.5])
    expected = normalize(counts_by_kmeans(tokens, words) * idf, norm="l1")
    actual = bag(tokens, words, idf=torch.from_numpy(idf))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_float32_survives_a_mean_of_a_thousand_deviations(tokens, words):
    x, far = (tokens + 1000).astype(np.float32), (words + 1000).astype(np.float32)
    expected = bag(x.astype(np.float64), far.astype(np.float64), assignment="soft")
    np.testing.assert_allclose(bag(x, far, assignment="soft"), expected, atol=1e-5)


@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_tokens_too_large_for_their_type_are_refused(words, assignment):
    x, far = np.full((1, 2, D), 1e38, dtype=np.float32), (30 * words).astype(np.float32)
    with pytest.raises(ValueError, match="too large for products in float32"):
        bag(x, far, assignment=assignment)


@settings(max_examples=30)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from(["hard", "soft"]),
    st.sampled_from(["mean", "max"]),
    st.sampled_from(["l1", "l2", "sqrt", None]),
)
def test_laws_of_a_bag_hold(seed, assignment, pool, norm):
    rng = np.random.default_rng(seed)
    x, words = rng.normal(size=(N, L, D)), rng.normal(size=(K, D))
    options = {"assignment": assignment, "pool": pool, "norm": norm}
    bags = bag(x, words, **options)

    def same(actual):
        np.testing.assert_allclose(actual, bags, atol=1e-9)

    assert (bags >= 0).all()
    same(bag(x[:, rng.permutation(L)], words, **options))
    same(bag(np.concatenate([x, x], axis=1), words, **options))
    padded = np.concatenate([np.full((N, 2, D), np.inf), x], axis=1)
    real = np.concatenate([np.zeros((N, 2), bool), np.ones((N, L), bool)], axis=1)
    same(bag(padded, words, real, **options))
    same(np.concatenate([bag(row[None], words, **options) for row in x]))
    order = rng.permutation(K)
    np.testing.assert_allclose(bag(x, words[order], **options), bags[:, order], atol=1e-9)


# The estimator: codes.


def test_hard_bags_equal_kmeans_of_the_same_words(tokens):
    pooling = BagOfFeaturesPooling(K).fit(tokens)
    expected = counts_by_kmeans(tokens, pooling.vocabulary_) / L
    np.testing.assert_allclose(pooling.transform(tokens), expected, rtol=1e-12)


def test_words_minimise_what_kmeans_minimises(tokens):
    words = BagOfFeaturesPooling(K).fit(tokens).vocabulary_
    flat = tokens.reshape(-1, D).astype(np.float32)
    again = KMeans(K, init=words, n_init=1).fit(flat).cluster_centers_
    np.testing.assert_allclose(words, again, atol=1e-5)


@pytest.mark.parametrize("assignment", ["hard", "soft"])
@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("tfidf", [False, True])
def test_rows_sum_to_one(tokens, assignment, pool, tfidf):
    pooling = BagOfFeaturesPooling(K, assignment=assignment, pool=pool, tfidf=tfidf)
    np.testing.assert_allclose(pooling.fit_transform(tokens).sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_one_word_is_constant(tokens, assignment):
    bags = BagOfFeaturesPooling(1, assignment=assignment).fit_transform(tokens)
    np.testing.assert_allclose(bags, np.ones((N, 1)), rtol=1e-12)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_soft_with_a_large_inv_delta_is_hard(tokens, pool):
    options = {"pool": pool}
    hard = BagOfFeaturesPooling(K, **options).fit_transform(tokens)
    soft = BagOfFeaturesPooling(K, assignment="soft", inv_delta=1e12, **options)
    np.testing.assert_allclose(soft.fit_transform(tokens), hard, atol=1e-12)


def test_soft_codes_are_adapted_to_the_mean_smallest_distance(tokens):
    pooling = BagOfFeaturesPooling(K, assignment="soft", inv_delta=4.0).fit(tokens)
    distances = np.array([cdist(x, pooling.vocabulary_, "sqeuclidean") for x in tokens])
    mu = distances.min(2).mean()
    assert pooling.mu_ == pytest.approx(mu, rel=1e-9)
    expected = softmax(-4.0 / mu * distances, axis=2).mean(1)
    np.testing.assert_allclose(pooling.transform(tokens), expected, rtol=1e-8)


def test_soft_codes_are_not_adapted_unless_asked(tokens):
    pooling = BagOfFeaturesPooling(K, assignment="soft", inv_delta=4.0, adaptive=False).fit(tokens)
    distances = np.array([cdist(x, pooling.vocabulary_, "sqeuclidean") for x in tokens])
    expected = softmax(-4.0 * distances, axis=2).mean(1)
    np.testing.assert_allclose(pooling.transform(tokens), expected, rtol=1e-8)


@pytest.mark.parametrize("vocabulary", ["kmeans", "queue"])
def test_scale_of_tokens_and_words_does_not_matter(tokens, vocabulary):
    options = {"assignment": "soft", "vocabulary": vocabulary}
    plain = BagOfFeaturesPooling(K, **options).fit_transform(tokens)
    for scale in (2.0**-20, 2.0**20):
        scaled = BagOfFeaturesPooling(K, **options).fit_transform(scale * tokens)
        np.testing.assert_allclose(scaled, plain, rtol=1e-9)
    fixed = BagOfFeaturesPooling(K, adaptive=False, **options)
    assert not np.allclose(fixed.fit_transform(2 * tokens), fixed.fit_transform(tokens))


def test_order_of_tokens_does_not_matter(tokens):
    pooling = BagOfFeaturesPooling(K, assignment="soft").fit(tokens)
    order = np.random.default_rng(3).permutation(L)
    expected = pooling.transform(tokens)
    np.testing.assert_allclose(pooling.transform(tokens[:, order]), expected, rtol=1e-12)


def test_tokens_that_are_all_words_take_their_word(tokens):
    x = tokens[:, :1]
    pooling = BagOfFeaturesPooling(N, assignment="soft", vocabulary="queue").fit(x)
    assert pooling.mu_ < 1e-12
    np.testing.assert_allclose(pooling.transform(x), np.eye(N), atol=1e-12)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_tfidf_equals_that_of_scikit_learn(tokens, norm):
    pooling = BagOfFeaturesPooling(20, tfidf=True, norm=norm).fit(tokens)
    reference = TfidfTransformer(norm=norm)
    expected = reference.fit_transform(counts_by_kmeans(tokens, pooling.vocabulary_))
    np.testing.assert_allclose(pooling.idf_, reference.idf_, rtol=1e-12)
    np.testing.assert_allclose(pooling.transform(tokens), expected.toarray(), rtol=1e-9, atol=1e-12)


def test_frequencies_do_not_count_empty_samples(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[3] = False
    X = TokenArray.from_array(tokens, mask=mask)
    pooling = BagOfFeaturesPooling(K, tfidf=True, empty="zero").fit(X)
    expected = BagOfFeaturesPooling(K, tfidf=True).fit(np.delete(tokens, 3, axis=0))
    np.testing.assert_allclose(pooling.idf_, expected.idf_, rtol=1e-12)


def test_resolutions_stand_side_by_side(tokens):
    union = make_union(BagOfFeaturesPooling(3), BagOfFeaturesPooling(7)).fit(tokens)
    bags = union.transform(tokens)
    assert bags.shape == (N, 10)
    np.testing.assert_allclose(bags.sum(axis=1), 2, rtol=1e-12)


# The estimator: containers.


def test_hard_means_are_sparse(tokens):
    bags = BagOfFeaturesPooling(20, sparse_output=True).fit_transform(tokens)
    assert issparse(bags) and bags.format == "csr" and isinstance(bags, csr_array)
    assert bags.nnz < N * 20
    dense = BagOfFeaturesPooling(20).fit_transform(tokens)
    np.testing.assert_array_equal(bags.toarray(), dense)


@pytest.mark.parametrize("params", [{"pool": "max"}, {"assignment": "soft"}])
def test_other_bags_are_dense(tokens, params):
    assert isinstance(BagOfFeaturesPooling(K, **params).fit_transform(tokens), np.ndarray)


def test_tensor_gives_a_dense_tensor(tokens):
    bags = BagOfFeaturesPooling(K).fit_transform(torch.from_numpy(tokens))
    assert isinstance(bags, torch.Tensor)
    expected = BagOfFeaturesPooling(K).fit_transform(tokens)
    np.testing.assert_array_equal(bags, expected)


def test_frames_are_dense(tokens):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pooling = BagOfFeaturesPooling(K).set_output(transform="pandas")
    frame = pooling.fit_transform(tokens)
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(pooling.get_feature_names_out())
    expected = BagOfFeaturesPooling(K).fit_transform(tokens)
    np.testing.assert_array_equal(frame.to_numpy(), expected)


class Unreadable(ArraySource):
    """Tokens in memory of which one sample cannot be read."""

    def stream(self, rows, batch_size=None):
        for batch in super().stream(rows, 1):
            if rows[batch.positions[0]] != 2:
                yield TokenBatch(*batch)


def test_unreadable_rows_are_nan_in_sparse_bags(tokens):
    X = TokenArray(Unreadable(tokens))
    pooling = BagOfFeaturesPooling(K, tfidf=True, sparse_output=True).fit(X)
    bags = pooling.transform(X)
    assert issparse(bags)
    others = np.delete(np.arange(N), 2)
    np.testing.assert_array_equal(bags.toarray()[2], np.full(K, np.nan))
    expected = BagOfFeaturesPooling(K, tfidf=True).fit_transform(tokens[others])
    np.testing.assert_allclose(bags.toarray()[others], expected, rtol=1e-12)


# The estimator: given words.


@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_given_words_are_used(tokens, words, assignment):
    words = words.astype(np.float32)
    options = {"assignment": assignment}
    pooling = BagOfFeaturesPooling(vocabulary=words.tolist(), **options).fit(tokens)
    np.testing.assert_array_equal(pooling.vocabulary_, words)
    alpha = 15 / pooling.mu_ if assignment == "soft" else 1.0
    expected = bag(tokens, words.astype(np.float64), assignment=assignment, alpha=alpha)
    np.testing.assert_allclose(pooling.transform(tokens), expected, rtol=1e-9)
    assert len(pooling.get_feature_names_out()) == K


def test_given_words_are_copied(tokens, words):
    words = words.astype(np.float32)
    pooling = BagOfFeaturesPooling(vocabulary=words).fit(tokens)
    words[:] = 0
    assert pooling.vocabulary_.any()


def test_given_words_of_another_width_are_refused(tokens):
    with pytest.raises(ValueError, match="words of 3 features, and the tokens of X have 4"):
        BagOfFeaturesPooling(vocabulary=np.ones((2, 3))).fit(tokens)


def test_given_words_that_are_nan_are_refused(tokens):
    with pytest.raises(ValueError, match="NaN"):
        BagOfFeaturesPooling(vocabulary=np.full((2, D), np.nan)).fit(tokens)


# The estimator: the queue.


def queue(n_words=K, **params):
    return BagOfFeaturesPooling(n_words, vocabulary="queue", **params)


def test_queue_holds_one_token_of_each_of_the_last_samples(tokens):
    words = queue(3).fit(tokens).vocabulary_
    x = tokens.astype(np.float32)
    # A ring: the eighth sample has taken the place of the fifth and the second.
    for slot, sample in ((0, 6), (1, 7), (2, 5)):
        assert (x[sample] == words[slot]).all(axis=1).any()


def test_places_in_the_queue_are_drawn_evenly():
    x = np.tile(np.arange(4.0)[None, :, None], (4000, 1, 1))
    found = queue(4000).fit(x).vocabulary_.ravel()
    shares = np.bincount(found.astype(int), minlength=4) / 4000
    # Four standard errors.
    np.testing.assert_allclose(shares, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 4000))


@settings(max_examples=25)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 99))
def test_parts_fill_the_queue_as_the_whole_does(sizes, batch_size, seed):
    x = np.random.default_rng(seed).normal(size=(sum(sizes), 3, 2))
    n_words = min(4, sum(sizes))
    whole = queue(n_words, random_state=seed).fit(x)
    parts = queue(n_words, random_state=seed, batch_size=batch_size)
    for part in np.split(x, np.cumsum(sizes)[:-1]):
        parts.partial_fit(part)
    np.testing.assert_array_equal(parts.vocabulary_, whole.vocabulary_)
    assert parts.n_samples_seen_ == parts.n_drawn_ == len(x)


def test_queue_goes_on_after_fit(tokens):
    parts = queue().fit(tokens[:6]).partial_fit(tokens[6:])
    np.testing.assert_array_equal(parts.vocabulary_, queue().fit(tokens).vocabulary_)


def test_fit_starts_the_queue_anew(tokens):
    again = queue(assignment="soft").fit(tokens).partial_fit(tokens).fit(tokens)
    expected = queue(assignment="soft").fit(tokens)
    np.testing.assert_array_equal(again.vocabulary_, expected.vocabulary_)
    assert again.mu_ == expected.mu_


def test_words_keep_their_column_while_they_stay(tokens):
    pooling = queue().partial_fit(tokens[:5])
    before = pooling.vocabulary_
    pooling.partial_fit(tokens[5:7])
    np.testing.assert_array_equal(pooling.vocabulary_[2:], before[2:])
    assert (pooling.vocabulary_[:2] != before[:2]).any(axis=1).all()


def test_transform_before_the_queue_is_full_is_refused(tokens):
    pooling = queue(assignment="soft").partial_fit(tokens[:4])
    with pytest.raises(NotFittedError, match="holds 4 of the n_words=5"):
        pooling.transform(tokens)
    pooling.partial_fit(tokens[4:5])
    assert pooling.transform(tokens).shape == (N, K)
    with pytest.raises(NotFittedError):
        queue().transform(tokens)


def test_fit_on_fewer_samples_than_words_is_refused(tokens):
    with pytest.raises(ValueError, match="n_words=9 is more than the 8 samples of X"):
        queue(9).fit(tokens)


def test_distances_of_the_queue_are_a_running_mean(tokens):
    pooling = queue(assignment="soft")
    first, second, third = tokens[:5], tokens[5:7], tokens[7:] * 3

    def mean_of(x):
        return cdist(x.reshape(-1, D), pooling.vocabulary_, "sqeuclidean").min(1).mean()

    pooling.partial_fit(first)
    expected = mean_of(first)
    assert pooling.mu_ == pytest.approx(expected, rel=1e-9)
    for part in (second, third):
        # To the words before these enter.
        expected = 0.99 * expected + 0.01 * mean_of(part)
        pooling.partial_fit(part)
        assert pooling.mu_ == pytest.approx(expected, rel=1e-9)


def test_distances_of_the_queue_do_not_depend_on_the_batches(tokens):
    x = tokens.astype(np.float32)
    found = set()
    for batch_size in (1, 3, 256):
        pooling = queue(assignment="soft", batch_size=batch_size)
        found.add(pooling.partial_fit(x[:6]).partial_fit(x[6:]).mu_)
    assert len(found) == 1


def test_queue_after_a_soft_fit_by_kmeans_starts_its_own_distances(tokens):
    pooling = BagOfFeaturesPooling(K, assignment="soft").fit(3 * tokens)
    pooling.set_params(vocabulary="queue").partial_fit(tokens)
    expected = queue(assignment="soft").partial_fit(tokens)
    assert pooling.mu_ == expected.mu_
    np.testing.assert_array_equal(pooling.vocabulary_, expected.vocabulary_)


def test_features_of_the_queue_are_local_averages():
    maps = np.random.default_rng(5).normal(size=(N, 4, 5, 2)).astype(np.float32)
    words = queue(N, local_average=3).fit(maps).vocabulary_
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(maps).permute(0, 3, 1, 2), 3, stride=1)
    candidates = pooled.flatten(2).permute(0, 2, 1).numpy()
    distances = np.linalg.norm(candidates - words[:, None], axis=2)
    np.testing.assert_allclose(distances.min(1), 0, atol=1e-6)
    # Not the same place in all samples.
    assert len(set(distances.argmin(1))) > 1


def test_local_average_without_a_grid_is_refused(tokens):
    with pytest.raises(ValueError, match="local_average=3 needs tokens on a grid"):
        queue(local_average=3).fit(tokens)


@pytest.mark.parametrize("vocabulary", ["kmeans", "queue"])
def test_border_is_left_out_everywhere(vocabulary):
    maps = np.random.default_rng(6).normal(size=(N, 5, 6, 2))
    params = {"assignment": "soft", "vocabulary": vocabulary}
    pooling = BagOfFeaturesPooling(3, border=1, **params).fit(maps)
    inner = maps[:, 1:-1, 1:-1]
    expected = BagOfFeaturesPooling(3, **params).fit(inner)
    np.testing.assert_array_equal(pooling.vocabulary_, expected.vocabulary_)
    np.testing.assert_allclose(pooling.transform(maps), expected.transform(inner), rtol=1e-12)


def test_border_without_a_grid_is_refused(tokens):
    with pytest.raises(ValueError, match="border=1 needs tokens on a grid"):
        BagOfFeaturesPooling(K, border=1).fit(tokens)


def test_sample_with_tokens_in_the_border_alone_is_empty():
    maps = np.random.default_rng(6).normal(size=(3, 16, 2))
    mask = np.ones((3, 4, 4), dtype=bool)
    mask[1, 1:3, 1:3] = False
    X = TokenArray.from_array(maps, mask=mask.reshape(3, 16), grid=(4, 4))
    with pytest.raises(ValueError, match="Sample 1 has no real token"):
        BagOfFeaturesPooling(2, border=1).fit(X)
    bags = BagOfFeaturesPooling(2, border=1, empty="zero").fit_transform(X)
    np.testing.assert_allclose(bags.sum(axis=1), [1, 0, 1], rtol=1e-12)


def test_only_a_queue_learns_in_parts(tokens):
    assert hasattr(queue(), "partial_fit")
    assert not hasattr(BagOfFeaturesPooling(K), "partial_fit")
    assert not hasattr(BagOfFeaturesPooling(vocabulary=np.ones((2, D))), "partial_fit")


def test_weights_of_words_cannot_be_learned_in_parts(tokens):
    with pytest.raises(ValueError, match="tfidf=True counts the samples"):
        queue(tfidf=True).partial_fit(tokens)
    assert queue(tfidf=True).fit(tokens).idf_.shape == (K,)


def test_refused_part_changes_nothing(tokens):
    pooling = queue(assignment="soft").partial_fit(tokens)
    before = pickle.dumps(pooling)
    bad = tokens.copy()
    bad[4, 2, 1] = np.nan
    for x in (bad, tokens[:, :, :3]):
        with pytest.raises(ValueError):
            pooling.partial_fit(x)
        assert pickle.dumps(pooling) == before


def test_samples_without_real_tokens_do_not_enter_the_queue(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[[0, 4]] = False
    pooling = queue(empty="zero").partial_fit(TokenArray.from_array(tokens, mask=mask))
    assert (pooling.n_samples_seen_, pooling.n_drawn_) == (N, N - 2)
    x = tokens.astype(np.float32)
    held = [i for i in range(N) if (x[i][:, None] == pooling.vocabulary_).all(2).any()]
    assert held == [2, 3, 5, 6, 7]


def test_queue_differs_by_random_state_alone(tokens):
    words = [queue(random_state=seed).fit(tokens).vocabulary_ for seed in (1, 1, 2)]
    np.testing.assert_array_equal(words[0], words[1])
    assert (words[0] != words[2]).any()


# The estimator: the rest.


def test_more_words_than_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match=r"n_words=512 is more than the 72 sampled tokens"):
        BagOfFeaturesPooling().fit(tokens)


@pytest.mark.parametrize("vocabulary", ["kmeans", "queue"])
def test_fit_is_the_same_whatever_the_batches(vocabulary):
    x = np.random.default_rng(0).normal(size=(40, 7, D)).astype(np.float32)
    params = {"assignment": "soft", "vocabulary": vocabulary, "max_tokens": 100, "tfidf": True}
    expected = BagOfFeaturesPooling(6, **params).fit(x)
    for X in (x, torch.from_numpy(x), list(x)):
        for batch_size in (1, 7, 256):
            actual = BagOfFeaturesPooling(6, batch_size=batch_size, **params).fit(X)
            np.testing.assert_array_equal(actual.vocabulary_, expected.vocabulary_)
            np.testing.assert_array_equal(actual.idf_, expected.idf_)
            assert actual.mu_ == expected.mu_


@pytest.mark.parametrize(
    ("first", "then"),
    [({}, {"assignment": "soft"}), ({}, {"tfidf": True})],
)
def test_what_was_not_learned_is_asked_for(tokens, first, then):
    pooling = BagOfFeaturesPooling(K, **first).fit(tokens).set_params(**then)
    with pytest.raises(NotFittedError):
        pooling.transform(tokens)


@pytest.mark.parametrize(
    "params",
    [
        {"n_words": 0},
        {"assignment": "medium"},
        {"inv_delta": 0.0},
        {"pool": "sum"},
        {"norm": "max"},
        {"vocabulary": "words"},
        {"local_average": 0},
        {"border": -1},
        {"max_tokens": 0},
        {"tfidf": "yes"},
    ],
)
def test_bad_parameters_are_refused(tokens, params):
    with pytest.raises(InvalidParameterError):
        BagOfFeaturesPooling(**params).fit(tokens)
