# SPDX-License-Identifier: BSD-3-Clause
"""Laws that every public pooling keeps, whatever its formula.

The suite of estimator checks puts every instance through containers, masks on the right, refusals
and half precision on one small array. Here stands what it lacks: the order and the number of
tokens, padding on any side and in between, rows that must not reach into others, degenerate
tokens, massive activations, and other devices. A new pooling is put to all of it by its line in
`CASES`, and a test fails while it has none.
"""

import inspect
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import issparse

import skpool.pooling
from skpool.pooling import BasePooling
from skpool.preprocessing import Whitening
from skpool.stores import TokenArray

D = 12


class Case(NamedTuple):
    """Parameters of a cheap instance, and what is true of it.

    ordered: where a token stands matters. grid: it needs maps. cls: it needs a class token.
    doubling: doubling every token changes nothing. token: a single token is returned.
    smooth: a small change of the tokens is a small change of the vector.
    """

    facts: frozenset[str]
    params: dict


def case(*facts, **params):
    return Case(frozenset(facts), params)


# The power, the extreme and the plain means: everything holds of them.
REDUCTION = ("doubling", "token", "smooth")
MAP = ("grid", "ordered")
CASES = {
    "AttentionPooling": [
        case("doubling", "token", "smooth", epochs=2),
        case("doubling", kind="query", n_queries=2, n_heads=2, query_pool="concat", epochs=2),
        case("doubling", kind="latent", n_latents=3, n_heads=3, epochs=2),
        case("doubling", kind="simpool", n_heads=2, gamma=2.0, epochs=2),
    ],
    "BagOfFeaturesPooling": [
        case("doubling", n_words=5),
        case("doubling", "smooth", n_words=5, assignment="soft", tfidf=True, norm="l2"),
        case("doubling", n_words=4, pool="max", norm="sqrt"),
        case(n_words=6, vocabulary="queue", norm=None, sparse_output=False),
    ],
    "BilinearPooling": [case("doubling", "smooth"), case("doubling", n_components=5, l2=False)],
    "CompactBilinearPooling": [
        case("doubling", n_components=17),
        case("doubling", "smooth", n_components=8, method="random_maclaurin", power_norm=False),
    ],
    "CovariancePooling": [
        case("doubling", "smooth"),
        case("doubling", kind="correlation", n_components=5, function=None),
        case("doubling", kind="gaussian", function="log", shrinkage=0.1),
        case("doubling", "smooth", kind="second_moment", function="isqrt", vectorize="full"),
        case("doubling", function="power", alpha=0.25, l2=False),
        case("doubling", function="signed_sqrt"),
    ],
    "CrossCovariancePooling": [
        case("doubling", "smooth", n_heads=3, cross="near", head_norm="layernorm"),
        case("doubling", n_heads=2, cross="half", normalize="column", center="scalar"),
        case("doubling", projection="random", n_components=4, normalize="sqrtm"),
    ],
    "FisherVectorPooling": [
        case("doubling", n_components=3, pca_dim=6),
        case("doubling", n_components=2, pca_dim=None, power=None, l2=False),
    ],
    "GeMPooling": [
        case(*REDUCTION),
        case(*REDUCTION, p=20.0),
        case(*REDUCTION, p=-3.0),
        case(*REDUCTION, p=20.0, negative="shift"),
        case(*REDUCTION, p=20.0, negative="signed"),
        case(*REDUCTION, p=np.inf, negative="shift"),
    ],
    "GroupGeMPooling": [
        case(*REDUCTION, n_groups=3, p=[1.0, 4.0, 20.0]),
        case(*REDUCTION, n_groups=12, p=np.linspace(0.0, 20.0, 12), negative="clamp"),
    ],
    "LogSumExpPooling": [
        case(*REDUCTION),
        case(*REDUCTION, r=20.0, scale=None),
        case(*REDUCTION, r=-1e4),
    ],
    "MomentPooling": [
        case("doubling", "smooth"),
        case("doubling", n_heads=3, cross="all", downsample=2, normalize="frobenius"),
        case("cls", first="both", projection=None, normalize=None, order_weights=None),
    ],
    "Pooling": [
        case(*REDUCTION, kind="gem", p=20.0),
        case("doubling", kind="vlad", n_clusters=3),
        case(*MAP, kind="rmac", levels=2),
    ],
    "RMACPooling": [
        case(*MAP),
        case(*MAP, levels=2, reduce="gem", p=20.0, include_global=False),
        case(*MAP, reduce="mean", region_transform=Whitening(6, shrinkage=0.1)),
    ],
    "ScaleGeM": [case("doubling"), case("doubling", p=20.0)],
    "SelectedTokenPooling": [
        case("token", k=3, criterion="norm"),
        case("token", k=0.5, criterion="query", query=np.arange(D), keep="lowest", fuse_rest=True),
        case("cls", k=2, output="concat_cls"),
    ],
    "SpatialPyramidPooling": [
        case(*MAP, "smooth"),
        case(*MAP, "smooth", levels=(1, 2), reduce="mean"),
        case(*MAP, levels=(2,), reduce="gem", p=20.0, normalize_levels="l2"),
    ],
    "TemporalPyramidPooling": [
        case("ordered", "smooth"),
        case("ordered", "smooth", levels=(1, 3), reduce="mean"),
        case("ordered", levels=(2,), reduce="gem", p=20.0, normalize_levels="l2"),
    ],
    "TokenPooling": [
        case(*REDUCTION, strategy=("mean", "max", "min", "avgmax")),
        case("doubling", "smooth", strategy="std"),
        case("doubling", strategy=("mean", "std"), normalize_tokens=True),
        case("token", strategy="sum"),
        case("token", strategy="mean_sqrt_len"),
        case("ordered", "token", strategy=("first", "last", "weighted_mean")),
        case("cls", "smooth", strategy=("cls", "mean")),
    ],
    "VLADPooling": [
        case("doubling", n_clusters=4),
        case("doubling", "smooth", n_clusters=3, assignment="soft", power=0.5, n_components=6),
        case(n_clusters=3, normalize_tokens=False, l2=False, intra_norm=False),
    ],
    "ViewAggregator": [
        case(*REDUCTION, method="median"),
        case("doubling", method="gem", p=20.0, normalize_views=True),
        case("doubling", method="l2mean"),
    ],
}
PUBLIC = sorted(
    name
    for name in skpool.pooling.__all__
    if inspect.isclass(getattr(skpool.pooling, name))
    and issubclass(getattr(skpool.pooling, name), BasePooling)
    and not name.startswith("Base")
)


def law(*facts, without=()):
    """Parametrize a test with the cases that have all of some facts and none of others."""
    chosen = [
        pytest.param((name, number), id=f"{name}-{number}")
        for name in PUBLIC
        for number, (known, _) in enumerate(CASES.get(name, ()))
        if known >= set(facts) and not known & set(without)
    ]
    return pytest.mark.parametrize("key", chosen)


def facts_of(key):
    return CASES[key[0]][key[1]].facts


def rows_of_tokens(seed, shape, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=shape)


def as_tokens(key, X, mask=None, grid=None):
    """Tokens with what the case needs: a class token, or a grid."""
    facts = facts_of(key)
    if "grid" in facts and grid is None:
        grid = (1, X.shape[1])
    return TokenArray.from_array(
        X,
        mask=mask,
        n_prefix_tokens=int("cls" in facts),
        grid=grid if "grid" in facts else None,
    )


@cache
def fitted(key):
    """The instance of a case, fitted once to tokens of both classes."""
    name, number = key
    y = np.arange(30) % 2
    X = rows_of_tokens(5, (30, 12, D)) + y[:, None, None]
    pooling = getattr(skpool.pooling, name)(**CASES[name][number].params)
    return pooling.fit(as_tokens(key, X, grid=(3, 4)), y)


def pooled(key, X, mask=None, grid=None):
    vectors = fitted(key).transform(as_tokens(key, X, mask, grid))
    return vectors.toarray() if issparse(vectors) else vectors


def assert_same(actual, expected, tol, magnitude=1.0):
    """Equal to `tol`, relative to the largest of the expected values or what tokens are like."""
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all()
    scale = max(np.abs(expected).max(initial=0.0), min(1.0, magnitude))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tol * scale)


SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.sampled_from([1e-3, 1.0, 1e3])
few = settings(deadline=None, max_examples=8)


def test_every_public_pooling_has_cases():
    assert sorted(CASES) == PUBLIC


# What a token array says, and what it does not.


@law(without=["ordered", "cls"])
@few
@given(seed=SEEDS, n=st.integers(1, 4), length=st.integers(1, 9), scale=SCALES)
def test_order_of_tokens_does_not_matter(key, seed, n, length, scale):
    X = rows_of_tokens(seed, (n, length, D), scale)
    rng = np.random.default_rng(seed)
    mask = rng.random((n, length)) < 0.7
    mask[:, 0] = True
    order = rng.permutation(length)
    expected = pooled(key, X, mask)
    assert_same(pooled(key, X[:, order], mask[:, order]), expected, 1e-8, scale)


@law("cls", without=["ordered"])
def test_order_of_patches_behind_the_class_token_does_not_matter(key):
    X = rows_of_tokens(0, (3, 7, D))
    order = [0, *np.random.default_rng(0).permutation(np.arange(1, 7))]
    assert_same(pooled(key, X[:, order]), pooled(key, X), 1e-9)


@law("ordered", without=["grid"])
def test_order_of_tokens_matters_where_it_should(key):
    X = rows_of_tokens(0, (3, 6, D))
    assert np.abs(pooled(key, X[:, ::-1].copy()) - pooled(key, X)).max() > 1e-3


@law(without=["grid", "cls"])
@few
@given(
    seed=SEEDS,
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    extra=st.integers(0, 3),
    garbage=st.sampled_from([0.0, 1e30, -1e30, np.nan, np.inf, -np.inf]),
    scale=SCALES,
)
def test_padding_of_any_side_gives_the_samples_alone(key, seed, lengths, extra, garbage, scale):
    samples = [rows_of_tokens([seed, i], (k, D), scale) for i, k in enumerate(lengths)]
    expected = np.concatenate([pooled(key, sample[None]) for sample in samples])
    width = max(lengths) + extra
    for side in ("left", "right", "both"):
        X, mask = np.full((len(samples), width, D), garbage), np.zeros((len(samples), width), bool)
        for i, sample in enumerate(samples):
            spare = width - len(sample)
            start = {"left": spare, "right": 0, "both": spare // 2}[side]
            X[i, start : start + len(sample)] = sample
            mask[i, start : start + len(sample)] = True
        assert_same(pooled(key, X, mask), expected, 1e-8, scale)
    ragged = fitted(key).transform(samples)
    ragged = ragged.toarray() if issparse(ragged) else ragged
    assert_same(ragged, expected, 1e-8, scale)


@law(without=["grid"])
@pytest.mark.parametrize("garbage", [1e30, np.nan])
def test_masked_tokens_in_between_are_as_if_taken_out(key, garbage):
    X = rows_of_tokens(1, (4, 8, D))
    mask = np.random.default_rng(2).random((4, 8)) < 0.5
    mask[:, [0, 7]] = True
    expected = np.concatenate(
        [pooled(key, row[real][None]) for row, real in zip(X, mask, strict=True)]
    )
    dirty = np.where(mask[..., None], X, garbage)
    assert_same(pooled(key, dirty, mask), expected, 1e-8)


@law("grid")
@pytest.mark.parametrize("garbage", [1e30, np.nan, -np.inf])
def test_masked_cells_of_a_map_are_never_read(key, garbage):
    X = rows_of_tokens(1, (4, 20, D))
    mask = np.random.default_rng(2).random((4, 20)) < 0.7
    mask[0] = False
    mask[0, 11] = True
    expected = pooled(key, np.where(mask[..., None], X, 0.0), mask, (4, 5))
    dirty = np.where(mask[..., None], X, garbage)
    assert_same(pooled(key, dirty, mask, (4, 5)), expected, 1e-12)


@law("doubling")
@few
@given(
    seed=SEEDS,
    length=st.integers(1, 6),
    times=st.integers(2, 4),
    scale=st.sampled_from([1e-3, 1.0]),
)
def test_repeating_every_token_changes_nothing(key, seed, length, times, scale):
    X = rows_of_tokens(seed, (3, length, D), scale)
    expected = pooled(key, X)
    assert_same(pooled(key, np.repeat(X, times, axis=1)), expected, 1e-7, scale)
    assert_same(pooled(key, np.tile(X, (1, times, 1))), expected, 1e-7, scale)


@law("token")
def test_single_token_is_returned(key):
    x = np.abs(rows_of_tokens(3, (5, 1, D))) + 0.1
    vectors = pooled(key, x)
    expected = np.tile(x[:, 0], (1, vectors.shape[1] // D))
    np.testing.assert_allclose(vectors, expected, rtol=1e-9)


@law()
@pytest.mark.filterwarnings("ignore:levels=")
def test_single_token_gives_finite_numbers(key):
    # A map of one cell, and one patch beside the class token. Some say that it is too little.
    x = rows_of_tokens(3, (5, 1 + ("cls" in facts_of(key)), D))
    assert np.isfinite(pooled(key, x, grid=(1, 1))).all()


# Rows.


@law()
@pytest.mark.parametrize(
    ("dtype", "factor"), [("float32", 1e6), ("float64", 1e-12), ("float64", 0.0)]
)
def test_what_other_rows_hold_does_not_matter(key, dtype, factor):
    X = rows_of_tokens(4, (5, 12, D)).astype(dtype)
    expected = pooled(key, X, grid=(4, 3))[[1, 3]]
    X[[0, 2, 4]] *= factor
    tol = 1e-5 if dtype == "float32" else 1e-10
    assert_same(pooled(key, X, grid=(4, 3))[[1, 3]], expected, tol)


@law(without=["grid"])
def test_how_long_other_rows_are_does_not_matter(key):
    short = rows_of_tokens(4, (2, 3, D))
    expected = pooled(key, short)
    X = np.zeros((3, 40, D))
    X[:2, :3], X[2] = short, rows_of_tokens(6, (40, D))
    mask = np.arange(40) < np.array([3, 3, 40])[:, None]
    assert_same(pooled(key, X, mask)[:2], expected, 1e-9)


# Numbers.

PLAIN = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 300.0, 1e-20]), st.floats(-1e4, 1e4, width=32))


@law()
@settings(deadline=None, max_examples=12)
@given(X=arrays(np.float32, (2, 6, D), elements=PLAIN, fill=st.sampled_from([0.0, 1.0, -2.0])))
def test_finite_tokens_give_finite_vectors(key, X):
    assert np.isfinite(pooled(key, X, grid=(2, 3))).all()
    assert np.isfinite(pooled(key, X.astype(np.float64), grid=(2, 3))).all()


@law("doubling")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_tokens_give_what_one_of_them_gives(key, dtype):
    # A mean of seven numbers 0.1 is not 0.1; what that leaves over must not become a direction.
    x = (rows_of_tokens(7, (4, 1, D)) + 0.1).astype(dtype)
    tol = 1e-4 if dtype == np.float32 else 1e-7
    assert_same(pooled(key, np.repeat(x, 7, axis=1)), pooled(key, x), tol)


@law()
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_is_near_float64(key, offset):
    X = (rows_of_tokens(8, (6, 20, D)) + offset).astype(np.float32)
    actual, expected = pooled(key, X, grid=(4, 5)), pooled(key, X.astype(np.float64), grid=(4, 5))
    assert actual.dtype == np.float32 and expected.dtype == np.float64
    assert_same(actual, expected, 2e-5)


def massive(n_tokens):
    """Normal tokens, with 300 in one channel always, and in another now and then."""
    X = rows_of_tokens(9, (3, n_tokens, D)).astype(np.float32)
    X[:, :, 2] = 300.0
    X[:, ::50, 5] = -300.0
    X[:, 1::50, 8] = 300.0
    return X


@law()
def test_massive_activations_in_half_precision_give_the_result_of_float32(key):
    # 300 tokens of 300 sum to more than the largest float16, and so does a single square.
    half = massive(300).astype(np.float16)
    actual = pooled(key, half, grid=(15, 20))
    assert actual.dtype == np.float32 and np.isfinite(actual).all()
    assert_same(actual, pooled(key, half.astype(np.float32), grid=(15, 20)), 1e-6)


@law("smooth")
def test_rounding_of_the_tokens_to_half_precision_is_all_that_is_lost(key):
    X = massive(300)
    actual, exact = (pooled(key, x, grid=(15, 20)) for x in (X.astype(np.float16), X))
    # Of values up to 300, and of what was divided by the spread of a channel.
    assert_same(actual, exact, 2 * np.finfo(np.float16).eps)


@law()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_massive_activations_in_tensors_are_finite(key, dtype):
    X = torch.from_numpy(massive(60)).to(dtype)
    vectors = fitted(key).transform(as_tokens(key, X, grid=(6, 10)))
    assert vectors.dtype == torch.float32
    assert bool(torch.isfinite(vectors).all())


# Where tokens lie.


@law()
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masked_tensor_gives_what_the_masked_array_gives(key, dtype):
    X = rows_of_tokens(10, (5, 12, D)).astype(dtype)
    mask = np.random.default_rng(3).random((5, 12)) < 0.6
    mask[:, 0] = True
    expected = pooled(key, X, mask, (3, 4))
    # Features first in memory, as the maps of a convolutional network.
    strided = torch.from_numpy(np.ascontiguousarray(X.swapaxes(1, 2))).transpose(1, 2)
    vectors = fitted(key).transform(as_tokens(key, strided, torch.from_numpy(mask), (3, 4)))
    assert isinstance(vectors, torch.Tensor) and str(vectors.dtype) == f"torch.{dtype}"
    assert_same(vectors.numpy(), expected, 1e-5 if dtype == "float32" else 1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@law()
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_gpu_gives_what_the_cpu_gives(key, dtype):
    X = rows_of_tokens(11, (5, 12, D)).astype(dtype)
    mask = np.random.default_rng(4).random((5, 12)) < 0.6
    mask[:, 0] = True
    tokens, real = torch.from_numpy(X).cuda(), torch.from_numpy(mask).cuda()
    vectors = fitted(key).transform(as_tokens(key, tokens, real, (3, 4)))
    assert vectors.device.type == "cuda"
    tol = 1e-9 if dtype == "float64" else 1e-4
    assert_same(vectors.cpu().numpy(), pooled(key, X, mask, (3, 4)), tol)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@law()
def test_what_was_learned_on_the_gpu_is_what_was_learned_on_the_cpu(key):
    X, y = rows_of_tokens(12, (30, 12, D)), np.arange(30) % 2
    pooling = getattr(skpool.pooling, key[0])(**CASES[key[0]][key[1]].params)
    host, device = (as_tokens(key, x, grid=(3, 4)) for x in (X, torch.from_numpy(X).cuda()))
    # Tensors, so that bags of words are dense.
    expected, actual = (pooling.fit(given, y).transform(device).cpu() for given in (host, device))
    assert_same(actual.numpy(), expected.numpy(), 1e-3)
