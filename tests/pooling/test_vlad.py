# SPDX-License-Identifier: BSD-3-Clause
"""VLAD against loops over tokens, the formula of NetVLAD, and the laws of a set of residuals."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import normalize
from sklearn.utils._param_validation import InvalidParameterError

from skpool.pooling import VLADPooling, _vocabulary_kernels
from skpool.pooling._vocabulary_kernels import pool_vlad
from skpool.stores import TokenArray

N, L, D, K = 6, 9, 4, 3


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


def vlad(x, words, mask=None, **options):
    mask = None if mask is None else torch.from_numpy(mask)
    x = torch.as_tensor(x)
    return pool_vlad(x, mask, vocabulary=torch.as_tensor(words), **options).numpy()


PLAIN = {"intra_norm": False, "l2": False}


def sums_by_loop(x, words):
    """Residuals to the nearest word, token by token; the number of tokens of every word."""
    sums, counts = np.zeros_like(words), np.zeros(len(words))
    for token in x:
        k = min(range(len(words)), key=lambda k: ((token - words[k]) ** 2).sum())
        sums[k] += token - words[k]
        counts[k] += 1
    return sums, counts


# The kernel.


def test_hard_sums_equal_a_double_loop(tokens, words, blocks):
    expected = [sums_by_loop(x, words)[0].ravel() for x in tokens]
    np.testing.assert_allclose(vlad(tokens, words, **PLAIN), expected, rtol=1e-10, atol=1e-13)


def test_masked_sums_equal_a_double_loop_over_the_real_tokens(tokens, words, blocks):
    mask = np.random.default_rng(2).random((N, L)) < 0.6
    mask[:, 0] = True
    dirty = np.where(mask[..., None], tokens, np.nan)
    expected = [
        sums_by_loop(x[real], words)[0].ravel() for x, real in zip(tokens, mask, strict=True)
    ]
    actual = vlad(dirty, words, mask, **PLAIN)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("mass_norm", [False, True])
@pytest.mark.parametrize("power", [None, 0.5, 0.3])
@pytest.mark.parametrize("intra_norm", [False, True])
@pytest.mark.parametrize("l2", [False, True])
def test_steps_come_in_their_order(tokens, words, mass_norm, power, intra_norm, l2):
    expected = []
    for x in tokens:
        sums, counts = sums_by_loop(x, words)
        if mass_norm:
            sums = sums / np.maximum(counts, 1)[:, None]
        if power is not None:
            sums = np.sign(sums) * np.abs(sums) ** power
        if intra_norm:
            sums = normalize(sums)
        expected.append(normalize(sums.reshape(1, -1))[0] if l2 else sums.ravel())
    options = {"mass_norm": mass_norm, "power": power, "intra_norm": intra_norm, "l2": l2}
    np.testing.assert_allclose(vlad(tokens, words, **options), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 8.0])
def test_soft_sums_equal_a_double_loop(tokens, words, alpha, blocks):
    expected = []
    for x in tokens:
        codes = softmax(-alpha * cdist(x, words, "sqeuclidean"), axis=1)
        sums = sum(
            codes[t, k] * np.outer(np.eye(K)[k], x[t] - words[k])
            for t in range(L)
            for k in range(K)
        )
        expected.append(sums.ravel())
    actual = vlad(tokens, words, assignment="soft", alpha=alpha, **PLAIN)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 4.0, 30.0])
def test_soft_vlad_equals_the_layer_of_netvlad(tokens, words, alpha):
    # Sections 3.1 and 3.2 of the paper: a 1x1 convolution with weights 2 alpha c_k and biases
    # -alpha |c_k|^2, softmax, weighted residuals, intra-normalisation, L2.
    x = torch.nn.functional.normalize(torch.from_numpy(tokens), dim=2).transpose(1, 2)
    centers = torch.from_numpy(words)
    logits = torch.nn.functional.conv1d(
        x, 2 * alpha * centers[:, :, None], -alpha * centers.square().sum(1)
    )
    codes = logits.softmax(dim=1)
    residuals = x[:, None] - centers[None, :, :, None]
    sums = (codes[:, :, None] * residuals).sum(dim=3)
    sums = torch.nn.functional.normalize(sums, dim=2).flatten(1)
    expected = torch.nn.functional.normalize(sums, dim=1)
    actual = vlad(tokens, words, assignment="soft", alpha=alpha, normalize_tokens=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("normalize_tokens", [False, True])
def test_soft_with_a_large_alpha_is_hard(tokens, words, normalize_tokens):
    options = {"normalize_tokens": normalize_tokens, "mass_norm": True}
    soft = vlad(tokens, words, assignment="soft", alpha=1e12, **options)
    np.testing.assert_allclose(soft, vlad(tokens, words, **options), atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_by_addition_equal_those_by_product(masked, scaled, dtype):
    rng = np.random.default_rng(7)
    x, words, scale = rng.normal(size=(N, L, D)), rng.normal(size=(K, D)), rng.random((N, L, 1))
    codes = np.eye(K)[rng.integers(K, size=(N, L))]
    if masked:
        codes[rng.random((N, L)) < 0.5] = 0
        codes[3] = 0
    scale = scale if scaled else np.ones_like(scale)
    x, words, scale, codes = (a.astype(dtype) for a in (x, words, scale, codes))
    expected = np.einsum("nlk,nld->nkd", codes, x * scale) - codes.sum(1)[..., None] * words
    given = torch.from_numpy(x), torch.from_numpy(scale) if scaled else None
    for function in (
        _vocabulary_kernels._residuals_by_addition,
        _vocabulary_kernels._residuals_by_product,
    ):
        out = torch.full((N, K, D), torch.nan, dtype=getattr(torch, dtype))
        mass = function(*given, torch.from_numpy(codes.copy()), torch.from_numpy(words), out=out)
        np.testing.assert_allclose(out, expected, atol=2e-6)
        np.testing.assert_array_equal(mass, codes.sum(1))


def test_one_word_gives_the_direction_of_the_mean_from_it(tokens, words):
    word = words[:1]
    mean = tokens.mean(1) - word
    np.testing.assert_allclose(vlad(tokens, word), normalize(mean), rtol=1e-10)
    np.testing.assert_allclose(vlad(tokens, word, **PLAIN), L * mean, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("normalize_tokens", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("options", [{}, {"power": 0.5}, {"mass_norm": True}, {"l2": False}])
def test_tokens_that_equal_their_words_give_zero(words, dtype, normalize_tokens, offset, options):
    words = (words + offset).astype(dtype)
    if normalize_tokens:
        words = normalize(words)
    x = words[np.random.default_rng(3).integers(K, size=(N, 50))]
    vectors = vlad(x, words, normalize_tokens=normalize_tokens, **options)
    np.testing.assert_array_equal(vectors, np.zeros((N, K * D)))


def test_word_without_tokens_gives_zeros(tokens, words):
    far = np.concatenate([words, [[50.0] * D]])
    for options in ({}, {"mass_norm": True}, {"power": 0.5, "mass_norm": True}):
        vectors = vlad(tokens, far, **options).reshape(N, K + 1, D)
        np.testing.assert_array_equal(vectors[:, K], 0)
        np.testing.assert_allclose(
            vectors[:, :K].reshape(N, -1), vlad(tokens, words, **options), atol=1e-12
        )


def test_word_with_a_trace_of_mass_gives_zeros(tokens, words):
    far = np.concatenate([words, [[6.0] * D]])
    codes = softmax(-0.6 * cdist(tokens.reshape(-1, D), far, "sqeuclidean"), axis=1)
    assert 0 < codes[:, K].min() and codes[:, K].max() < 1e-13
    for dtype in ("float32", "float64"):
        x = tokens.astype(dtype)
        vectors = vlad(x, far, assignment="soft", alpha=0.6).reshape(N, K + 1, D)
        np.testing.assert_array_equal(vectors[:, K], 0)
        assert (vectors[:, :K] != 0).all()


def test_equal_words_leave_all_tokens_to_the_first(tokens, words):
    twice = np.concatenate([words[:1], words])
    vectors = vlad(tokens, twice, **PLAIN).reshape(N, K + 1, D)
    np.testing.assert_array_equal(vectors[:, 1], 0)
    expected = vlad(tokens, words, **PLAIN).reshape(N, K, D)
    np.testing.assert_allclose(vectors[:, [0, 2, 3]], expected, atol=1e-12)


def test_nearest_word_is_euclidean_for_tokens_of_unit_length():
    # The dot product would choose the long word.
    words = np.array([[0.9, 0.1], [3.0, 3.0]])
    vectors = vlad(np.array([[[2.0, 0.0]]]), words, normalize_tokens=True, **PLAIN)
    np.testing.assert_allclose(vectors, [[0.1, -0.1, 0, 0]], atol=1e-12)


@pytest.mark.parametrize("assignment", ["hard", "soft"])
@pytest.mark.parametrize("normalize_tokens", [False, True])
@pytest.mark.parametrize("offset", [0.0, 200.0])
def test_projection_equals_pca_before(tokens, assignment, normalize_tokens, offset):
    x = tokens + offset
    flat = normalize(x.reshape(-1, D)) if normalize_tokens else x.reshape(-1, D)
    pca = PCA(2).fit(flat)
    rotated = pca.transform(flat).reshape(N, L, 2)
    words = KMeans(K, n_init=1, random_state=0).fit(rotated.reshape(-1, 2)).cluster_centers_
    projection = torch.from_numpy(pca.mean_), torch.from_numpy(pca.components_.T)
    options = {"assignment": assignment, "alpha": 5.0}
    actual = vlad(x, words, normalize_tokens=normalize_tokens, projection=projection, **options)
    np.testing.assert_allclose(actual, vlad(rotated, words, **options), atol=1e-7)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_norms_of_tokens_of_any_size_do_not_matter(tokens, words, scale):
    x = (scale * tokens).astype(np.float32)
    expected = vlad(tokens, words, normalize_tokens=True)
    actual = vlad(x, words.astype(np.float32), normalize_tokens=True)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_zero_tokens_of_unit_length_are_zero(words):
    vectors = vlad(np.zeros((1, 2, D)), words, normalize_tokens=True, **PLAIN)
    expected, _ = sums_by_loop(np.zeros((2, D)), words)
    np.testing.assert_allclose(vectors, [expected.ravel()], atol=1e-14)


def test_float32_survives_a_mean_of_a_thousand_deviations(tokens, words):
    x, near = tokens + 1000.0, words + 1000.0
    expected = vlad(x, near)
    actual = vlad(x.astype(np.float32), near.astype(np.float32))
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_tokens_too_large_for_their_type_are_refused(words):
    with pytest.raises(ValueError, match="too large for products in float32"):
        vlad(np.full((1, 2, D), 1e30, dtype=np.float32), words)


def test_half_precision_is_widened(tokens, words):
    x = torch.from_numpy(tokens).to(torch.bfloat16)
    vectors = pool_vlad(x, vocabulary=torch.from_numpy(words))
    assert vectors.dtype == torch.float32
    np.testing.assert_allclose(vectors, vlad(x.float(), words), rtol=1e-6)


@settings(max_examples=30)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from(["hard", "soft"]),
    st.booleans(),
    st.sampled_from([None, 0.5]),
)
def test_laws_of_a_set_hold(seed, assignment, normalize_tokens, power):
    rng = np.random.default_rng(seed)
    x, words = rng.normal(size=(N, L, D)), rng.normal(size=(K, D))
    options = {"assignment": assignment, "normalize_tokens": normalize_tokens, "power": power}
    vectors = vlad(x, words, **options)

    def same(actual):
        np.testing.assert_allclose(actual, vectors, atol=1e-7)

    same(vlad(x[:, rng.permutation(L)], words, **options))
    same(vlad(np.concatenate([x, x], axis=1), words, **options))
    padded = np.concatenate([np.full((N, 2, D), np.nan), x], axis=1)
    real = np.concatenate([np.zeros((N, 2), bool), np.ones((N, L), bool)], axis=1)
    same(vlad(padded, words, real, **options))
    same(np.concatenate([vlad(row[None], words, **options) for row in x]))
    order = rng.permutation(K)
    moved = vlad(x, words[order], **options).reshape(N, K, D)
    np.testing.assert_allclose(moved, vectors.reshape(N, K, D)[:, order], atol=1e-7)


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_vectors_and_sums_have_unit_length(seed, mass_norm):
    rng = np.random.default_rng(seed)
    x, words = rng.normal(size=(N, L, D)), rng.normal(size=(K, D))
    vectors = vlad(x, words, mass_norm=mass_norm)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-9)
    parts = np.linalg.norm(vectors.reshape(N, K, D), axis=2)
    # Words that have tokens weigh the same.
    share = parts.max(axis=1, keepdims=True)
    assert (np.isclose(parts, share) | (parts == 0)).all()


# The estimator.


def test_words_minimise_what_kmeans_minimises(tokens):
    pooling = VLADPooling(K, normalize_tokens=False).fit(tokens)
    flat = tokens.reshape(-1, D)
    words = pooling.vocabulary_
    again = KMeans(K, init=words, n_init=1).fit(flat.astype(np.float32)).cluster_centers_
    np.testing.assert_allclose(words, again, atol=1e-5)


def test_words_are_those_of_tokens_of_unit_length(tokens):
    unit = normalize(tokens.reshape(-1, D)).reshape(tokens.shape)
    expected = VLADPooling(K, normalize_tokens=False).fit(unit).vocabulary_
    np.testing.assert_allclose(VLADPooling(K).fit(tokens).vocabulary_, expected, atol=1e-6)


@pytest.mark.parametrize("n_components", [None, 2])
@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_transform_equals_the_kernel_with_what_was_learned(tokens, n_components, assignment):
    options = {"assignment": assignment, "mass_norm": True, "power": 0.5}
    pooling = VLADPooling(K, n_components=n_components, **options).fit(tokens)
    unit = normalize(tokens.reshape(-1, D))
    if n_components:
        unit = (unit - pooling.pca_mean_) @ pooling.pca_components_.T
    kernel_options = options | ({"alpha": pooling.alpha_} if assignment == "soft" else {})
    expected = vlad(unit.reshape(N, L, -1), pooling.vocabulary_, **kernel_options)
    np.testing.assert_allclose(pooling.transform(tokens), expected, atol=1e-7)


def test_auto_alpha_gives_the_second_word_a_hundredth_at_the_mean_gap(tokens):
    pooling = VLADPooling(K, assignment="soft").fit(tokens)
    unit = normalize(tokens.reshape(-1, D))
    distances = np.sort(cdist(unit, pooling.vocabulary_, "sqeuclidean"), axis=1)
    gap = (distances[:, 1] - distances[:, 0]).mean()
    assert np.exp(-pooling.alpha_ * gap) == pytest.approx(0.01, rel=1e-6)


def test_given_alpha_is_used(tokens):
    pooling = VLADPooling(K, assignment="soft", alpha=2.5).fit(tokens)
    assert pooling.alpha_ == 2.5


@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_one_cluster_gives_the_direction_of_the_mean(tokens, assignment):
    pooling = VLADPooling(1, assignment=assignment, normalize_tokens=False)
    expected = normalize(tokens.mean(1) - tokens.mean((0, 1)))
    np.testing.assert_allclose(pooling.fit_transform(tokens), expected, atol=1e-5)


def test_as_many_clusters_as_tokens_give_zero():
    x = np.random.default_rng(0).normal(size=(4, 2, D))
    pooling = VLADPooling(8, normalize_tokens=False).fit(x)
    np.testing.assert_array_equal(pooling.transform(x), np.zeros((4, 8 * D)))


def test_one_token_per_sample_gives_its_residual(tokens):
    single = tokens[:, :1]
    pooling = VLADPooling(2, normalize_tokens=False).fit(tokens)
    expected = vlad(single, pooling.vocabulary_)
    np.testing.assert_allclose(pooling.transform(single), expected, atol=1e-12)
    assert (np.count_nonzero(pooling.transform(single), axis=1) == D).all()


def test_more_clusters_than_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match=r"n_clusters=64 is more than the 54 sampled tokens"):
        VLADPooling().fit(tokens)
    with pytest.raises(ValueError, match=r"n_clusters=9 is more than the 8 sampled tokens"):
        VLADPooling(9, max_tokens=8).fit(tokens)


def test_too_few_distinct_tokens_are_reported_and_finite():
    x = np.tile(np.eye(D)[:2], (5, 3, 1))
    for assignment in ("hard", "soft"):
        with pytest.warns(UserWarning, match="Only 2 of the 3 words are distinct"):
            pooling = VLADPooling(3, assignment=assignment).fit(x)
        assert np.isfinite(pooling.transform(x + 0.1)).all()


def test_components_are_at_most_the_features(tokens):
    pooling = VLADPooling(K, n_components=64).fit(tokens)
    assert pooling.vocabulary_.shape == (K, D)
    assert len(pooling.get_feature_names_out()) == K * D


def test_refit_without_components_forgets_the_axes(tokens):
    pooling = VLADPooling(K, n_components=2).fit(tokens)
    assert pooling.transform(tokens).shape == (N, K * 2)
    pooling.set_params(n_components=None).fit(tokens)
    expected = VLADPooling(K).fit_transform(tokens)
    np.testing.assert_array_equal(pooling.transform(tokens), expected)


def in_memory_map(folder, x):
    np.save(folder / "tokens.npy", x)
    return np.load(folder / "tokens.npy", mmap_mode="r")


@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_fit_is_the_same_whatever_the_batches(assignment, tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 7, D)).astype(np.float32)
    options = {"assignment": assignment, "max_tokens": 100, "n_components": 3}
    expected = VLADPooling(4, **options).fit(x)
    for X in (x, in_memory_map(tmp_path, x), torch.from_numpy(x), list(x)):
        for batch_size in (1, 7, 256):
            actual = VLADPooling(4, batch_size=batch_size, **options).fit(X)
            for name in ("vocabulary_", "pca_mean_", "pca_components_"):
                np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
            if assignment == "soft":
                assert actual.alpha_ == expected.alpha_


def test_fit_is_the_same_for_the_same_random_state():
    x = np.random.default_rng(0).normal(size=(40, 7, D))
    first, again, other = (
        VLADPooling(8, max_tokens=60, random_state=seed).fit(x).vocabulary_ for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    drawn = VLADPooling(8, max_tokens=60, random_state=np.random.RandomState(3)).fit(x)
    np.testing.assert_array_equal(drawn.vocabulary_, first)


def test_words_are_learned_from_the_tokens_in_scope(tokens):
    x = tokens.copy()
    x[:, 0] = 100.0
    X = TokenArray.from_array(x, n_prefix_tokens=1)
    pooling = VLADPooling(K, normalize_tokens=False).fit(X)
    expected = VLADPooling(K, normalize_tokens=False).fit(tokens[:, 1:])
    np.testing.assert_array_equal(pooling.vocabulary_, expected.vocabulary_)
    whole = VLADPooling(K, normalize_tokens=False, scope="all").fit(X)
    assert cdist([[100.0] * D], whole.vocabulary_).min() < 1e-3


def test_words_are_learned_from_real_tokens(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[:, 5:] = False
    dirty = np.where(mask[..., None], tokens, np.nan)
    pooling = VLADPooling(K).fit(TokenArray.from_array(dirty, mask=mask))
    expected = VLADPooling(K).fit(tokens[:, :5])
    np.testing.assert_array_equal(pooling.vocabulary_, expected.vocabulary_)


def test_norms_of_tokens_do_not_matter_unless_asked(tokens):
    sizes = 2.0 ** np.random.default_rng(5).integers(-3, 4, size=(N, L, 1))
    scaled = tokens * sizes
    expected = VLADPooling(K).fit_transform(tokens)
    np.testing.assert_allclose(VLADPooling(K).fit_transform(scaled), expected, atol=1e-6)
    raw = VLADPooling(K, normalize_tokens=False).fit(tokens)
    assert not np.allclose(raw.transform(scaled), raw.transform(tokens))


@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_transform_before_fit_is_refused(tokens, assignment):
    with pytest.raises(NotFittedError):
        VLADPooling(K, assignment=assignment).transform(tokens)


def test_soft_needs_a_fit_of_its_own(tokens):
    pooling = VLADPooling(K).fit(tokens).set_params(assignment="soft")
    with pytest.raises(NotFittedError):
        pooling.transform(tokens)


def test_empty_samples_follow_the_rule(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[2] = False
    X = TokenArray.from_array(tokens, mask=mask)
    for empty, value in (("zero", 0.0), ("nan", np.nan)):
        vectors = VLADPooling(K, empty=empty).fit_transform(X)
        np.testing.assert_array_equal(vectors[2], np.full(K * D, value))


def test_out_dtype_is_kept(tokens):
    vectors = VLADPooling(K, out_dtype="float16").fit_transform(tokens.astype(np.float32))
    assert vectors.dtype == np.float16


def test_float32_and_float64_agree(tokens):
    wide = VLADPooling(K).fit(tokens)
    narrow = wide.transform(tokens.astype(np.float32))
    np.testing.assert_allclose(narrow, wide.transform(tokens), atol=1e-5)


@pytest.mark.parametrize(
    "params",
    [
        {"n_clusters": 0},
        {"assignment": "medium"},
        {"alpha": 0.0},
        {"alpha": "best"},
        {"power": 0.0},
        {"power": 2.0},
        {"n_components": 0},
        {"max_tokens": 0},
        {"normalize_tokens": "yes"},
    ],
)
def test_bad_parameters_are_refused(tokens, params):
    with pytest.raises(InvalidParameterError):
        VLADPooling(**params).fit(tokens)


def test_fit_gives_no_warning(tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VLADPooling(K, assignment="soft", n_components=2).fit(tokens).transform(tokens)
