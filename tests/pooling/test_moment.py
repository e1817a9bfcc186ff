# SPDX-License-Identifier: BSD-3-Clause
"""MomentPooling and CrossCovariancePooling against numpy, scikit-learn and the published head."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.pooling import CrossCovariancePooling, MomentPooling, TokenPooling
from skpool.stores import TokenArray

N, L, D = 6, 11, 8

# The second order as it is, of the tokens as they are.
PLAIN = {"projection": None, "normalize": None}


@pytest.mark.filterwarnings("ignore:Every sample has one token:UserWarning")
@parametrize_with_checks(
    [
        MomentPooling(),
        MomentPooling((1,)),
        MomentPooling(center="scalar", projection="random", normalize="column"),
        CrossCovariancePooling(normalize="sqrtm"),
    ]
)
def test_scikit_learn_check_passes(estimator, check):
    check(estimator)


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, L, D)) @ rng.normal(size=(D, D)) + 1


def covariances(x):
    return np.stack([np.cov(sample.T, bias=True) for sample in x])


def triangle(matrices):
    rows, columns = np.triu_indices(matrices.shape[1])
    return matrices[:, rows, columns] * np.where(rows == columns, 1, np.sqrt(2))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def signed_sqrt(values):
    return np.sign(values) * np.sqrt(np.abs(values))


# Orders.


def test_first_order_alone_is_the_mean(tokens):
    vectors = MomentPooling((1,)).fit_transform(tokens)
    np.testing.assert_allclose(vectors, tokens.mean(1), rtol=1e-12)


@pytest.mark.parametrize("scope", ["patch", "all"])
def test_first_order_alone_is_the_class_token(tokens, scope):
    X = TokenArray.from_array(tokens, n_prefix_tokens=2)
    vectors = MomentPooling((1,), first="cls", scope=scope).fit_transform(X)
    np.testing.assert_array_equal(vectors, tokens[:, 0])


def test_both_are_the_class_token_and_the_mean_of_the_patches(tokens):
    X = TokenArray.from_array(tokens, n_prefix_tokens=2)
    vectors = MomentPooling((1,), first="both").fit_transform(X)
    expected = TokenPooling(("cls", "mean")).fit_transform(X)
    np.testing.assert_allclose(vectors, expected, rtol=1e-12)


def test_second_order_alone_is_cross_covariance_pooling(tokens):
    options = {"n_heads": 2, "cross": "near", "n_components": 4}
    np.testing.assert_array_equal(
        MomentPooling((2,), **options).fit_transform(tokens),
        CrossCovariancePooling(**options).fit_transform(tokens),
    )


@pytest.mark.parametrize("first", ["cls", "both"])
def test_second_order_beside_the_class_token_is_of_the_patches(tokens, first):
    X = TokenArray.from_array(tokens, n_prefix_tokens=2)
    pooling = MomentPooling(first=first, order_weights=None, n_components=3)
    alone = CrossCovariancePooling(n_components=3)
    m = 3 * 4 // 2
    np.testing.assert_allclose(
        pooling.fit_transform(X)[:, -m:], alone.fit_transform(tokens[:, 2:]), rtol=1e-10
    )


def test_masked_tokens_beside_the_class_token_are_not_seen(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[:, 7:] = False
    dirty = TokenArray.from_array(
        np.where(mask[..., None], tokens, np.nan), mask=mask, n_prefix_tokens=1
    )
    clean = TokenArray.from_array(tokens[:, :7], n_prefix_tokens=1)
    pooling = MomentPooling(first="both", n_components=3)
    np.testing.assert_allclose(
        pooling.fit_transform(dirty), pooling.fit_transform(clean), rtol=1e-9, atol=1e-12
    )


def test_orders_stand_in_the_order_given(tokens):
    options = {"order_weights": None, **PLAIN}
    there, back = (
        MomentPooling(orders, **options).fit_transform(tokens) for orders in ((1, 2), (2, 1))
    )
    np.testing.assert_array_equal(there, np.roll(back, D, axis=1))


def test_balanced_orders_weigh_the_same(tokens):
    vectors = MomentPooling(**PLAIN).fit_transform(100 * tokens)
    expected = [unit(tokens.mean(1)), unit(triangle(covariances(tokens)))]
    np.testing.assert_allclose(vectors, np.hstack(expected), rtol=1e-9)


def test_class_token_that_is_not_there_is_refused(tokens):
    with pytest.raises(ValueError, match="class token"):
        MomentPooling(first="cls").fit(tokens)


@pytest.mark.parametrize("orders", [(), (3,), (1, 1), (0, 1), (1, 2, 1)])
def test_other_orders_are_refused(tokens, orders):
    with pytest.raises(ValueError, match="must hold 1, 2 or both"):
        MomentPooling(orders).fit(tokens)


def test_covariances_tell_classes_of_equal_means_apart():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = rng.normal(size=(120, 60, 6))
    x[y == 1, :, 1] = 0.8 * x[y == 1, :, 0] + 0.6 * x[y == 1, :, 1]
    # Exactly the same mean in every sample, so nothing but higher moments can tell.
    x -= x.mean(1, keepdims=True)
    x += rng.normal(size=(120, 1, 6))
    head = LogisticRegression(C=100.0, max_iter=1000)
    by_mean, by_moments = (
        cross_val_score(make_pipeline(pooling, head), x, y, cv=5).mean()
        for pooling in (TokenPooling(), MomentPooling())
    )
    assert by_mean < 0.65 and by_moments > 0.97


# The second order.


def test_one_head_without_normalisation_is_the_covariance_of_numpy(tokens):
    vectors = CrossCovariancePooling(**PLAIN).fit_transform(tokens)
    np.testing.assert_allclose(vectors, triangle(covariances(tokens)), rtol=1e-10)


@pytest.mark.parametrize("cross", ["full", "near", "one", "half", "all"])
@pytest.mark.parametrize("normalize", ["power", "column", "frobenius", None])
def test_order_and_repetition_of_tokens_do_not_matter(tokens, cross, normalize):
    pooling = MomentPooling(
        n_heads=1 if cross == "full" else 4, cross=cross, normalize=normalize
    ).fit(tokens)
    expected = pooling.transform(tokens)
    order = np.random.default_rng(1).permutation(L)
    for again in (tokens[:, order], np.repeat(tokens, 3, axis=1)):
        np.testing.assert_allclose(pooling.transform(again), expected, rtol=1e-8, atol=1e-11)


PAIRS = {
    "near": [(0, 1), (1, 2), (2, 3)],
    "one": [(0, 1), (0, 2), (0, 3)],
    "half": [(0, 2), (1, 3)],
    "all": [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)],
}


@pytest.mark.parametrize("cross", sorted(PAIRS))
def test_maps_are_blocks_of_the_covariance(tokens, cross):
    C, w = covariances(tokens), D // 4
    blocks = [C[:, i * w : (i + 1) * w, j * w : (j + 1) * w] for i, j in PAIRS[cross]]
    expected = np.stack(blocks, axis=1).reshape(N, -1)
    vectors = CrossCovariancePooling(4, cross=cross, **PLAIN).fit_transform(tokens)
    np.testing.assert_allclose(vectors, expected, rtol=1e-9, atol=1e-13)


def test_power_is_signed_roots_at_unit_length(tokens):
    one = CrossCovariancePooling(projection=None).fit_transform(tokens)
    np.testing.assert_allclose(one, unit(triangle(signed_sqrt(covariances(tokens)))), rtol=1e-9)
    maps = CrossCovariancePooling(4, cross="near", **PLAIN).fit_transform(tokens)
    near = CrossCovariancePooling(4, cross="near", projection=None).fit_transform(tokens)
    np.testing.assert_allclose(near, unit(signed_sqrt(maps)), rtol=1e-9)


def test_columns_have_unit_length_as_published(tokens):
    vectors = CrossCovariancePooling(projection=None, normalize="column").fit_transform(tokens)
    C = covariances(tokens)
    expected = C / np.linalg.norm(C, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors.reshape(N, D, D), expected, rtol=1e-10)


def test_every_map_has_unit_frobenius_norm(tokens):
    pooling = CrossCovariancePooling(4, cross="near", projection=None, normalize="frobenius")
    maps = pooling.fit_transform(tokens).reshape(N, 3, -1)
    np.testing.assert_allclose(np.linalg.norm(maps, axis=2), 1.0, rtol=1e-12)
    whole = CrossCovariancePooling(projection=None, normalize="frobenius").fit_transform(tokens)
    np.testing.assert_allclose(whole, unit(triangle(covariances(tokens))), rtol=1e-10)


def test_matrix_root_times_itself_is_the_covariance(tokens):
    vectors = CrossCovariancePooling(projection=None, normalize="sqrtm").fit_transform(tokens)
    S = np.zeros((N, D, D))
    rows, columns = np.triu_indices(D)
    S[:, rows, columns] = vectors / np.where(rows == columns, 1, np.sqrt(2))
    S[:, columns, rows] = S[:, rows, columns]
    np.testing.assert_allclose(S @ S, covariances(tokens), rtol=1e-9, atol=1e-12)


def test_scalar_centring_subtracts_one_number_per_head(tokens):
    heads = tokens.reshape(N, L, 2, D // 2)
    heads = heads - heads.mean((1, 3), keepdims=True)
    expected = np.einsum("nta,ntb->nab", heads[:, :, 0], heads[:, :, 1]) / L
    pooling = CrossCovariancePooling(2, cross="near", center="scalar", **PLAIN)
    np.testing.assert_allclose(
        pooling.fit_transform(tokens), expected.reshape(N, -1), rtol=1e-9, atol=1e-12
    )


def test_scalar_centring_of_one_head_subtracts_one_number(tokens):
    x = tokens - tokens.mean((1, 2), keepdims=True)
    expected = triangle(np.einsum("nta,ntb->nab", x, x) / L)
    pooling = CrossCovariancePooling(center="scalar", **PLAIN)
    np.testing.assert_allclose(pooling.fit_transform(tokens), expected, rtol=1e-9, atol=1e-12)


def test_without_centring_it_is_the_second_moment(tokens):
    expected = triangle(np.einsum("nta,ntb->nab", tokens, tokens) / L)
    pooling = CrossCovariancePooling(center=None, **PLAIN)
    np.testing.assert_allclose(pooling.fit_transform(tokens), expected, rtol=1e-10)


def test_downsampling_is_the_adaptive_average_of_torch(tokens):
    C = torch.from_numpy(covariances(tokens))[:, None]
    small = torch.nn.functional.adaptive_avg_pool2d(C, 3)[:, 0].numpy()
    pooling = CrossCovariancePooling(downsample=3, **PLAIN)
    np.testing.assert_allclose(pooling.fit_transform(tokens), triangle(small), rtol=1e-9)


def published_head(x, n_heads):
    """The block of the paper: layernorm of each head, near pairs, one mean, unit columns."""
    heads = torch.nn.functional.layer_norm(
        torch.from_numpy(x).unflatten(2, (n_heads, -1)), (x.shape[2] // n_heads,)
    )
    maps = []
    for i in range(n_heads - 1):
        a, b = (heads[:, :, j] - heads[:, :, j].mean(dim=(1, 2), keepdim=True) for j in (i, i + 1))
        C = a.transpose(1, 2) @ b / x.shape[1]
        maps.append(torch.nn.functional.normalize(C, dim=1))
    return torch.stack(maps, dim=1).flatten(1).numpy()


def test_published_block_is_one_of_the_settings(tokens):
    pooling = CrossCovariancePooling(
        2, cross="near", projection=None, center="scalar", head_norm="layernorm", normalize="column"
    )
    np.testing.assert_allclose(pooling.fit_transform(tokens), published_head(tokens, 2), rtol=1e-9)


def test_sizes_are_those_of_the_paper():
    x = np.random.default_rng(0).normal(size=(2, 4, 512)).astype(np.float32)
    assert CrossCovariancePooling().fit_transform(x).shape == (2, 2080)
    head = {"n_heads": 4, "cross": "near", "projection": None, "normalize": "column"}
    assert CrossCovariancePooling(**head).fit_transform(x).shape == (2, 3 * 128 * 128)
    assert CrossCovariancePooling(**head, downsample=31).fit_transform(x).shape == (2, 2883)
    assert MomentPooling().fit_transform(x).shape == (2, 512 + 2080)


@pytest.mark.parametrize("center", ["token", "scalar", None])
def test_only_a_covariance_of_single_tokens_warns(tokens, center):
    single = tokens[:, :1]
    pooling = CrossCovariancePooling(center=center)
    if center == "token":
        with pytest.warns(UserWarning, match="Every sample has one token"):
            assert not pooling.fit_transform(single).any()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pooling.fit(single)


# The projection.


def test_projection_is_pca_of_all_tokens(tokens):
    pca = PCA(3).fit(tokens.reshape(-1, D))
    pooling = CrossCovariancePooling(n_components=3, normalize=None).fit(tokens)
    np.testing.assert_allclose(abs(pooling.components_), abs(pca.components_), rtol=1e-8)
    z = (tokens - pca.mean_) @ pooling.components_.T
    np.testing.assert_allclose(
        pooling.transform(tokens), triangle(covariances(z)), rtol=1e-9, atol=1e-12
    )


def test_parts_in_any_order_give_what_all_tokens_give(tokens):
    whole = MomentPooling(n_components=3).fit(tokens)
    for parts in ((tokens[:2], tokens[2:]), (tokens[4:], tokens[:1], tokens[1:4])):
        pooling = MomentPooling(n_components=3)
        for part in parts:
            pooling.partial_fit(part)
        np.testing.assert_allclose(pooling.mean_, whole.mean_, rtol=1e-12)
        np.testing.assert_allclose(pooling.components_, whole.components_, rtol=1e-8, atol=1e-10)
        assert pooling.moments_.n_samples == N * L


def test_fit_starts_anew_and_partial_fit_goes_on(tokens):
    pooling = MomentPooling(n_components=3).partial_fit(5 * tokens[:3]).fit(tokens[:3])
    np.testing.assert_array_equal(
        pooling.components_, MomentPooling(n_components=3).fit(tokens[:3]).components_
    )
    pooling.partial_fit(tokens[3:])
    np.testing.assert_allclose(
        pooling.components_, MomentPooling(n_components=3).fit(tokens).components_, rtol=1e-8
    )


def test_refused_part_changes_nothing(tokens):
    pooling = MomentPooling(n_components=3).partial_fit(tokens)
    before = pooling.components_.copy(), pooling.moments_.n_samples
    bad = tokens.copy()
    bad[2, 1, 0] = np.nan
    for part in (bad, tokens[:, :, :-1]):
        with pytest.raises(ValueError):
            pooling.partial_fit(part)
    np.testing.assert_array_equal(pooling.components_, before[0])
    assert pooling.moments_.n_samples == before[1]


def test_random_projection_keeps_lengths_on_average():
    x = np.random.default_rng(0).normal(size=(2, 3, 400))
    axes = CrossCovariancePooling(projection="random", n_components=200).fit(x).components_
    assert axes.shape == (200, 400)
    ratio = np.linalg.norm(x @ axes.T, axis=2) / np.linalg.norm(x, axis=2)
    np.testing.assert_allclose(ratio, 1.0, atol=0.25)
    np.testing.assert_allclose(axes.std(), 1 / np.sqrt(200), rtol=0.02)


def test_random_projection_is_that_of_its_seed(tokens):
    a, b, c = (
        CrossCovariancePooling(projection="random", random_state=seed).fit(tokens).components_
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_random_projection_stays_when_more_tokens_come(tokens):
    pooling = CrossCovariancePooling(projection="random", random_state=None).partial_fit(tokens)
    axes = pooling.components_
    assert pooling.partial_fit(tokens).components_ is axes


def test_given_axes_are_used_as_they_are(tokens):
    axes = np.random.default_rng(0).normal(size=(3, D))
    pooling = CrossCovariancePooling(projection=axes, normalize=None)
    expected = triangle(covariances(tokens @ axes.T))
    np.testing.assert_allclose(pooling.transform(tokens), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("axes", [np.ones((3, D - 1)), np.ones(D), np.full((2, D), np.nan)])
def test_axes_that_do_not_fit_are_refused(tokens, axes):
    with pytest.raises(ValueError, match="projection has shape"):
        CrossCovariancePooling(projection=axes).fit(tokens)


def test_default_width_is_64_or_all_features_in_whole_heads(tokens):
    wide = np.random.default_rng(0).normal(size=(3, 30, 70))
    assert MomentPooling().fit(wide).components_.shape == (64, 70)
    assert MomentPooling().fit(tokens).components_.shape == (D, D)
    heads = CrossCovariancePooling(3, cross="near").fit(tokens)
    assert heads.components_.shape == (6, D)


@pytest.mark.parametrize("projection", ["pca", "random"])
def test_learned_projection_is_needed_before_transform(tokens, projection):
    with pytest.raises(NotFittedError):
        MomentPooling(projection=projection).transform(tokens)
    MomentPooling((1,), projection=projection).transform(tokens)
    MomentPooling(projection=None).transform(tokens)


def test_only_what_parameters_decide_is_named():
    assert MomentPooling()._fingerprint() is None
    assert MomentPooling(projection="random")._fingerprint() is None
    assert MomentPooling(projection=None)._fingerprint() is not None
    axes = np.eye(3)
    given = MomentPooling(projection=axes)._fingerprint()
    assert given not in (None, MomentPooling(projection=2 * axes)._fingerprint())


@pytest.mark.parametrize("batch_size", [1, 4])
def test_helpings_do_not_change_a_bit_of_the_projection(tokens, batch_size):
    whole = MomentPooling().fit(tokens)
    parts = MomentPooling(batch_size=batch_size).fit(tokens)
    np.testing.assert_array_equal(parts.components_, whole.components_)


# Refusals.


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_heads": 3, "cross": "near", "n_components": 4}, "n_heads=3 does not divide the 4"),
        ({"n_heads": 2}, "cross='full' is one map"),
        ({"cross": "near"}, "at least 2 heads"),
        ({"cross": "all"}, "at least 2 heads"),
        ({"cross": "half", "n_heads": 3, "n_components": 6}, "an even number of heads"),
        ({"cross": "near", "n_heads": 2, "normalize": "sqrtm"}, "one symmetric map"),
        ({"downsample": 9}, "downsample=9 is above the side 8"),
        ({"n_components": 9}, "n_components=9 is above the 8 features"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(tokens, parameters, message):
    for pooling in (MomentPooling(**parameters), CrossCovariancePooling(**parameters)):
        with pytest.raises(ValueError, match=message):
            pooling.fit(tokens)


@pytest.mark.parametrize(
    "parameters",
    [
        {"cross": "some"},
        {"center": "mean"},
        {"head_norm": True},
        {"normalize": "l2"},
        {"downsample": 0},
        {"n_components": "all"},
        {"n_heads": 0},
        {"projection": "ica"},
    ],
)
def test_bad_parameter_is_refused(tokens, parameters):
    with pytest.raises(InvalidParameterError, match=next(iter(parameters))):
        MomentPooling(**parameters).fit(tokens)


def test_clone_of_a_fitted_one_is_not_fitted(tokens):
    with pytest.raises(NotFittedError):
        clone(MomentPooling().fit(tokens)).transform(tokens)
