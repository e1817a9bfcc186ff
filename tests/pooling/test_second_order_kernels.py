# SPDX-License-Identifier: BSD-3-Clause
"""Second-order kernels against numpy, scipy and published formulas, and the laws they all keep."""

from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skpool.pooling import _second_order_kernels as kernels
from skpool.pooling import _spd_functions
from skpool.pooling._moment_kernels import pool_cross_covariance
from skpool.pooling._second_order_kernels import (
    inverse_vectorize,
    pool_covariance,
    upper_second_moment,
    vectorize_symmetric,
)
from skpool.pooling._sketch_kernels import draw_count_sketch, draw_signs, pool_compact_bilinear
from skpool.pooling._spd_functions import newton_schulz, spd_factor

N, L, D = 4, 7, 6

plain = partial(pool_covariance, function=None, l2=False)
SKETCH = draw_count_sketch((D, D), 16, seed=0)
# Every second-order pooling; powers of entries magnify rounding near 0, hence the exact ones too.
POOLINGS = {
    "covariance": plain,
    "second moment": partial(plain, kind="second_moment"),
    "correlation": partial(plain, kind="correlation"),
    "gaussian": partial(plain, kind="gaussian"),
    "shrunk": partial(plain, shrinkage=0.3),
    "full": partial(plain, vectorize="full"),
    "sqrtm": pool_covariance,
    "power": partial(pool_covariance, function="power", alpha=0.7, shrinkage=0.1, l2=False),
    "log": partial(pool_covariance, function="log", l2=False),
    "isqrt": partial(pool_covariance, function="isqrt", l2=False),
    "isqrt, shrunk": partial(pool_covariance, function="isqrt", shrinkage=0.2),
    "bilinear": partial(pool_covariance, kind="second_moment", function="signed_sqrt"),
    "cross": pool_cross_covariance,
    "cross, sqrtm": partial(pool_cross_covariance, normalize="sqrtm"),
    "cross, near": partial(
        pool_cross_covariance, n_heads=3, cross="near", center="scalar", normalize="column"
    ),
    "cross, all": partial(
        pool_cross_covariance, n_heads=2, cross="all", head_norm="layernorm", normalize="frobenius"
    ),
    "cross, plain": partial(pool_cross_covariance, n_heads=2, cross="half", normalize=None),
    "cross, down": partial(pool_cross_covariance, downsample=2, center=None),
    "tensor sketch": partial(pool_compact_bilinear, sketch=SKETCH),
    "maclaurin": partial(pool_compact_bilinear, sketch=draw_signs((D, D), 16, seed=0)),
}
every_pooling = pytest.mark.parametrize("name", sorted(POOLINGS))


@pytest.fixture(params=["one product", "sample by sample"])
def route(request, monkeypatch):
    """Both ways in which second moments are multiplied."""
    monkeypatch.setattr(kernels, "_WIDE", 10**9 if request.param == "one product" else 1)
    monkeypatch.setattr(kernels, "_BLOCK_BYTES", 2**24 if request.param == "one product" else 0)


def make_tokens(seed=0, shape=(N, L, D)):
    mixing = np.random.default_rng(1).normal(size=(shape[-1], shape[-1]))
    return np.random.default_rng(seed).normal(size=shape) @ mixing + 0.5


def make_mask(seed=0):
    mask = np.random.default_rng(seed).random((N, L)) < 0.6
    mask[:, 2:4] = True
    return mask


def pool(name, x, mask=None):
    mask = None if mask is None else torch.as_tensor(mask)
    return POOLINGS[name](torch.as_tensor(x), mask).numpy()


def matrices(vectors):
    return inverse_vectorize(torch.as_tensor(vectors)).numpy()


def covariances(x):
    return np.stack([np.cov(sample.T, bias=True) for sample in x])


def anisotropic(n_features, seed=0, n_samples=2):
    """Covariances with eigenvalues over three orders of magnitude."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(n_samples, n_features, n_features)))[0]
    return (axes * np.logspace(0, -3, n_features)) @ axes.transpose(0, 2, 1)


def relative(actual, desired):
    axes = (1, 2)
    return (np.linalg.norm(actual - desired, axis=axes) / np.linalg.norm(desired, axis=axes)).max()


# Laws.


@every_pooling
def test_order_of_tokens_does_not_matter(name, route):
    x, mask = make_tokens(), make_mask()
    order = np.random.default_rng(1).permutation(L)
    np.testing.assert_allclose(
        pool(name, x[:, order], mask[:, order]), pool(name, x, mask), rtol=1e-9, atol=1e-12
    )


@every_pooling
def test_doubling_every_token_changes_nothing(name, route):
    x, mask = make_tokens(), make_mask()
    twice = np.repeat(x, 2, axis=1), np.repeat(mask, 2, axis=1)
    np.testing.assert_allclose(pool(name, *twice), pool(name, x, mask), rtol=1e-8, atol=1e-11)


@every_pooling
@pytest.mark.parametrize("garbage", [1e9, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_seen(name, side, garbage, route):
    x = make_tokens()
    order = slice(None, None, 1 if side == "right" else -1)
    padded = np.concatenate([x, np.full((N, 3, D), garbage)][order], axis=1)
    mask = np.concatenate([np.ones((N, L), bool), np.zeros((N, 3), bool)][order], axis=1)
    np.testing.assert_allclose(pool(name, padded, mask), pool(name, x), rtol=1e-9, atol=1e-12)


@every_pooling
def test_masked_sample_equals_its_real_tokens_alone(name, route):
    x, mask = make_tokens(), make_mask()
    alone = [pool(name, row[real][None])[0] for row, real in zip(x, mask, strict=True)]
    np.testing.assert_allclose(pool(name, x, mask), alone, rtol=1e-8, atol=1e-11)


@every_pooling
def test_rows_do_not_see_each_other(name, route):
    x, mask = make_tokens(), make_mask()
    alone = np.concatenate([pool(name, x[i : i + 1], mask[i : i + 1]) for i in range(N)])
    np.testing.assert_allclose(pool(name, x, mask), alone, rtol=1e-9, atol=1e-12)


@every_pooling
def test_nan_in_one_row_stays_in_that_row(name, route):
    x = make_tokens()
    x[1, 3, 2] = np.nan
    others = [0, 2, 3]
    vectors = pool(name, x)
    np.testing.assert_allclose(vectors[others], pool(name, x[others]), rtol=1e-9, atol=1e-12)
    assert np.isnan(vectors[1]).any()


@every_pooling
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(name, dtype, route):
    x, mask = torch.from_numpy(make_tokens()).to(dtype), torch.from_numpy(make_mask())
    actual = POOLINGS[name](x, mask)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, POOLINGS[name](x.float(), mask), rtol=1e-5, atol=1e-6)


@every_pooling
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_kept(name, dtype, route):
    assert POOLINGS[name](torch.from_numpy(make_tokens()).to(dtype)).dtype == dtype


@every_pooling
def test_massive_activation_in_half_precision_is_finite(name):
    x = make_tokens().astype(np.float16)
    x[:, ::2, 1] = 300.0
    x[:, 1::2, 1] = 250.0
    expected = pool(name, x.astype(np.float64))
    np.testing.assert_allclose(pool(name, x), expected, rtol=2e-3, atol=2e-4 * abs(expected).max())


@every_pooling
def test_strided_tokens_equal_contiguous_ones(name, route):
    x = make_tokens()
    strided = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1))).transpose(1, 2)
    expected = pool(name, x)
    np.testing.assert_allclose(POOLINGS[name](strided).numpy(), expected, rtol=1e-9, atol=1e-12)


@every_pooling
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_input_is_never_modified(name, dtype, masked, route):
    x = torch.from_numpy(make_tokens()).to(dtype)
    before = x.clone()
    POOLINGS[name](x, torch.from_numpy(make_mask()) if masked else None)
    assert torch.equal(x, before)


@every_pooling
def test_no_rows_give_no_vectors(name):
    assert pool(name, np.zeros((0, L, D))).shape[0] == 0


@pytest.mark.parametrize("value", [0.0, 0.1, -123.4, 1e6])
@pytest.mark.parametrize("function", ["sqrtm", "isqrt", "power", "signed_sqrt", None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_equal_tokens_have_no_covariance_whatever_their_mean_rounds_to(
    value, function, dtype, masked, route
):
    x = torch.from_numpy(np.full((2, 197, 5), value, dtype=dtype))
    mask = torch.arange(197).expand(2, -1) < 180 if masked else None
    for kind in ("covariance", "correlation"):
        assert not pool_covariance(x, mask, kind=kind, function=function).any()


@pytest.mark.parametrize("function", ["sqrtm", "isqrt", "power", "signed_sqrt", None])
@pytest.mark.parametrize("shape", [(2, 3, 8), (1, 30_000, 5)])
def test_few_or_many_equal_tokens_have_no_covariance(function, shape, route):
    x = torch.full(shape, 0.7)
    assert not pool_covariance(x, function=function).any()


@pytest.mark.parametrize("normalize", ["power", "column", "frobenius", "sqrtm", None])
@pytest.mark.parametrize("cross", ["full", "near"])
def test_equal_tokens_have_no_cross_covariance(normalize, cross):
    if (cross, normalize) == ("near", "sqrtm"):
        return
    x = torch.full((2, 197, 6), 0.1)
    heads = 1 if cross == "full" else 3
    assert not pool_cross_covariance(x, n_heads=heads, cross=cross, normalize=normalize).any()


def test_one_token_has_no_covariance():
    assert not pool("sqrtm", make_tokens(shape=(N, 1, D))).any()


def test_second_moment_of_one_token_is_its_product_with_itself():
    x = make_tokens(shape=(N, 1, D))
    actual = matrices(pool("second moment", x))
    np.testing.assert_allclose(actual, x.transpose(0, 2, 1) @ x, rtol=1e-12)


# The matrices.


def test_covariance_equals_numpy(route):
    x = make_tokens()
    np.testing.assert_allclose(matrices(pool("covariance", x)), covariances(x), rtol=1e-10)


@pytest.mark.parametrize("width", [5, 96, 97, 200, 300])
def test_wide_covariance_equals_numpy(width):
    x = make_tokens(shape=(3, 20, width))
    np.testing.assert_allclose(
        matrices(plain(torch.from_numpy(x))), covariances(x), rtol=1e-9, atol=1e-10
    )


def test_second_moment_equals_the_mean_of_outer_products(route):
    x = make_tokens()
    expected = [np.mean([np.outer(t, t) for t in sample], axis=0) for sample in x]
    np.testing.assert_allclose(matrices(pool("second moment", x)), expected, rtol=1e-10)


def test_correlation_equals_numpy(route):
    x = make_tokens()
    expected = [np.corrcoef(sample.T) for sample in x]
    np.testing.assert_allclose(matrices(pool("correlation", x)), expected, rtol=1e-10, atol=1e-13)


def test_correlation_of_a_constant_feature_is_zero():
    x = make_tokens()
    x[1, :, 2] = 0.1
    actual = matrices(pool("correlation", x))[1]
    others = np.delete(np.arange(D), 2)
    assert not actual[2].any() and not actual[:, 2].any()
    np.testing.assert_allclose(
        actual[np.ix_(others, others)], np.corrcoef(x[1][:, others].T), rtol=1e-10
    )


def test_gaussian_holds_mean_and_covariance(route):
    x = make_tokens()
    actual = matrices(pool("gaussian", x))
    mean = x.mean(1)
    expected = covariances(x) + mean[:, :, None] * mean[:, None]
    np.testing.assert_allclose(actual[:, :D, :D], expected, rtol=1e-10)
    np.testing.assert_allclose(actual[:, :D, D], mean, rtol=1e-10)
    np.testing.assert_allclose(actual[:, D, D], 1.0, rtol=1e-12)


def test_gaussian_of_masked_tokens_has_a_one_in_the_corner():
    x, mask = make_tokens(), make_mask()
    np.testing.assert_allclose(matrices(pool("gaussian", x, mask))[:, D, D], 1.0, rtol=1e-12)


@pytest.mark.parametrize("shrinkage", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("function", [None, "power"])
def test_shrinkage_mixes_in_the_mean_eigenvalue(shrinkage, function):
    x = make_tokens()
    C = covariances(x)
    level = np.trace(C, axis1=1, axis2=2)[:, None, None] / D
    expected = (1 - shrinkage) * C + shrinkage * level * np.eye(D)
    options = {"function": function, "alpha": 1.0, "shrinkage": shrinkage, "l2": False}
    actual = matrices(pool_covariance(torch.from_numpy(x), **options))
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("L", [20, 600])
@pytest.mark.parametrize("width", [6, 150])
def test_covariance_keeps_its_digits_far_from_zero(L, width):
    x = (make_tokens(shape=(2, L, width)) + 1000 * np.sqrt(width)).astype(np.float32)
    expected = covariances(x.astype(np.float64))
    actual = matrices(plain(torch.from_numpy(x)))
    assert relative(actual, expected) < 1e-5


def test_covariance_of_long_samples_keeps_its_digits():
    x = (np.random.default_rng(0).normal(size=(1, 30_000, 130)) + 1000).astype(np.float32)
    expected = covariances(x.astype(np.float64))
    assert relative(matrices(plain(torch.from_numpy(x))), expected) < 1e-5


def test_threads_do_not_change_a_bit():
    x = torch.from_numpy(make_tokens(shape=(5, 20, 150)).astype(np.float32))
    before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            rows = x - x.mean(dim=1, keepdim=True)
            results.append(upper_second_moment(rows, torch.ones(5)))
            results[-1] = results[-1], *spd_factor(rows.double(), torch.ones(5).double())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1:], results[1][1:], rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@every_pooling
def test_gpu_gives_what_the_cpu_gives(name):
    x, mask = torch.from_numpy(make_tokens()), torch.from_numpy(make_mask())
    actual = POOLINGS[name](x.cuda(), mask.cuda())
    torch.testing.assert_close(actual.cpu(), POOLINGS[name](x, mask), rtol=1e-7, atol=1e-9)


# Vectors.

SYMMETRIC = arrays(np.float64, (2, 4, 4), elements=st.floats(-1e3, 1e3)).map(
    lambda a: a + a.transpose(0, 2, 1)
)


@settings(deadline=None, max_examples=30)
@given(a=SYMMETRIC, b=SYMMETRIC)
def test_inner_products_of_vectors_are_frobenius_products(a, b):
    u, v = (vectorize_symmetric(torch.from_numpy(matrix)).numpy() for matrix in (a, b))
    np.testing.assert_allclose((u * v).sum(1), (a * b).sum((1, 2)), rtol=1e-9, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(a=SYMMETRIC)
def test_inverse_of_vectorize_is_the_matrix(a):
    vectors = vectorize_symmetric(torch.from_numpy(a))
    np.testing.assert_allclose(inverse_vectorize(vectors).numpy(), a, rtol=1e-14)
    flat = torch.from_numpy(a).flatten(1)
    np.testing.assert_array_equal(inverse_vectorize(flat, vectorize="full").numpy(), a)


def test_triangle_is_in_the_order_of_numpy():
    a = np.arange(9.0).reshape(1, 3, 3)
    weights = np.array([1, np.sqrt(2), np.sqrt(2), 1, np.sqrt(2), 1])
    expected = a[0][np.triu_indices(3)] * weights
    np.testing.assert_allclose(vectorize_symmetric(torch.from_numpy(a))[0], expected, rtol=1e-15)


@pytest.mark.parametrize(("width", "vectorize"), [(5, "upper"), (6, "full"), (4, "upper")])
def test_width_that_is_no_matrix_is_refused(width, vectorize):
    with pytest.raises(ValueError, match=f"{width} features"):
        inverse_vectorize(torch.zeros(2, width), vectorize=vectorize)


def test_full_vectors_hold_both_triangles():
    x = make_tokens()
    np.testing.assert_allclose(
        pool("full", x).reshape(N, D, D), covariances(x), rtol=1e-10, atol=1e-14
    )


# Functions of the matrix, with more and with fewer tokens than features.

SHAPES = pytest.mark.parametrize("shape", [(3, 40, 12), (3, 9, 20), (2, 30, 150), (2, 200, 130)])


@SHAPES
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_square_root_times_itself_is_the_covariance(shape, dtype):
    x = make_tokens(shape=shape)
    S = matrices(pool_covariance(torch.from_numpy(x.astype(dtype)), l2=False)).astype(np.float64)
    assert relative(S @ S, covariances(x)) < (1e-12 if dtype == np.float64 else 2e-6)
    assert np.linalg.eigvalsh(S).min() > -1e-5 * np.linalg.eigvalsh(S).max()


@SHAPES
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0, 1.7])
def test_power_equals_scipy(shape, alpha):
    x = make_tokens(shape=shape)
    options = {"function": "power", "alpha": alpha, "shrinkage": 0.05, "l2": False}
    actual = matrices(pool_covariance(torch.from_numpy(x), **options))
    for S, C in zip(actual, covariances(x), strict=True):
        shrunk = 0.95 * C + 0.05 * np.trace(C) / len(C) * np.eye(len(C))
        expected = scipy.linalg.fractional_matrix_power(shrunk, alpha)
        np.testing.assert_allclose(S, expected, rtol=1e-8, atol=1e-9 * abs(expected).max())


@SHAPES
def test_logarithm_equals_scipy(shape):
    x = make_tokens(shape=shape)
    actual = matrices(pool_covariance(torch.from_numpy(x), function="log", eps=0.01, l2=False))
    for S, C in zip(actual, covariances(x), strict=True):
        ridge = 0.01 * np.trace(C) / len(C) * np.eye(len(C))
        np.testing.assert_allclose(S, scipy.linalg.logm(C + ridge), rtol=1e-7, atol=1e-8)


@SHAPES
def test_power_one_is_the_covariance(shape):
    x = make_tokens(shape=shape)
    actual = matrices(pool_covariance(torch.from_numpy(x), function="power", alpha=1.0, l2=False))
    assert relative(actual, covariances(x)) < 1e-12


@SHAPES
def test_float32_root_is_near_that_of_float64(shape):
    x = torch.from_numpy(make_tokens(shape=shape)).float()
    exact = matrices(pool_covariance(x.double(), l2=False))
    assert relative(matrices(pool_covariance(x, l2=False)), exact) < 5e-6


def test_logarithm_of_no_covariance_is_that_of_the_ridge():
    x = torch.ones(2, 5, 3)
    actual = matrices(pool_covariance(x, function="log", eps=0.5, l2=False))
    np.testing.assert_allclose(actual, np.log(0.5) * np.eye(3)[None].repeat(2, 0), rtol=1e-6)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10**6), function=st.sampled_from(["sqrtm", "power", "log", "isqrt", None])
)
def test_rotation_of_features_rotates_the_matrix(seed, function):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, rng.integers(3, 15), 8)) * np.arange(1, 9)
    Q = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    options = {"function": function, "alpha": 0.6, "l2": False}
    S, turned = (
        matrices(pool_covariance(torch.from_numpy(tokens), **options)) for tokens in (x, x @ Q)
    )
    np.testing.assert_allclose(turned, Q.T @ S @ Q, rtol=1e-6, atol=1e-8 * abs(S).max())


def test_factor_needs_no_more_rows_than_tokens_or_features():
    for n_tokens in (3, 9):
        rows = torch.from_numpy(make_tokens(shape=(2, n_tokens, 5)))
        assert spd_factor(rows, torch.ones(2).double()).rows.shape == (2, min(n_tokens, 5), 5)


@pytest.mark.parametrize("function", ["sqrtm", "power", "log"])
@pytest.mark.parametrize("n_tokens", [3, 9])
def test_factors_in_one_batch_are_those_of_samples_one_by_one(function, n_tokens):
    rows = torch.from_numpy(make_tokens(shape=(4, n_tokens, 5)))
    rows[1] = 0.0
    rows[2, 0, 3] = np.nan
    scale = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    named = _spd_functions._Function(function, 0.3, 0.01, 0.1)
    batch, constants = _spd_functions._factor_in_batch(rows, scale, function=named)
    single = spd_factor(rows, scale, function=function, alpha=0.3, eps=0.01, shrinkage=0.1)
    torch.testing.assert_close(constants, single.constant, equal_nan=True)
    batch, single = (f.transpose(1, 2) @ f for f in (batch, single.rows))
    torch.testing.assert_close(batch, single, rtol=1e-9, atol=1e-11, equal_nan=True)
    assert batch[2].isnan().all() and not batch[[0, 1, 3]].isnan().any()


# Newton-Schulz.


def published(C, n_iter):
    """The iteration of the paper: divide by the trace, coupled steps, multiply by its root."""
    trace = np.trace(C)
    Y, Z, eye = C / trace, np.eye(len(C)), np.eye(len(C))
    for _ in range(n_iter):
        T = (3 * eye - Z @ Y) / 2
        Y, Z = Y @ T, T @ Z
    return np.sqrt(trace) * Y


@SHAPES
@pytest.mark.parametrize("n_iter", [1, 2, 5])
def test_isqrt_equals_the_published_iteration(shape, n_iter):
    x = make_tokens(shape=shape)
    options = {"function": "isqrt", "n_iter": n_iter, "l2": False}
    actual = matrices(pool_covariance(torch.from_numpy(x), **options))
    expected = np.stack([published(C, n_iter) for C in covariances(x)])
    assert relative(actual, expected) < 1e-10


def test_isqrt_with_shrinkage_equals_the_published_iteration_of_the_shrunk_matrix():
    x = make_tokens(shape=(2, 6, 9))
    options = {"function": "isqrt", "shrinkage": 0.2, "l2": False}
    actual = matrices(pool_covariance(torch.from_numpy(x), **options))
    for S, C in zip(actual, covariances(x), strict=True):
        shrunk = 0.8 * C + 0.2 * np.trace(C) / 9 * np.eye(9)
        np.testing.assert_allclose(S, published(shrunk, 5), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("width", [64, 256])
def test_more_steps_come_nearer_to_the_square_root(width):
    C = anisotropic(width)
    C /= np.trace(C, axis1=1, axis2=2)[:, None, None]
    exact = np.stack([np.real(scipy.linalg.sqrtm(matrix)) for matrix in C])
    errors = [
        relative(newton_schulz(torch.from_numpy(C), n_iter=n_iter)[0].numpy(), exact)
        for n_iter in (5, 10, 20)
    ]
    # Five steps, as published, are far from the root where eigenvalues differ much.
    assert 0.1 < errors[0] < 0.5 and 0.005 < errors[1] < 0.1 and errors[2] < 1e-8


def test_inverse_root_comes_with_the_root():
    C = anisotropic(16)
    C /= np.trace(C, axis1=1, axis2=2)[:, None, None]
    Y, Z = newton_schulz(torch.from_numpy(C), n_iter=40)
    np.testing.assert_allclose((Z @ Y).numpy(), np.eye(16)[None].repeat(2, 0), atol=1e-9)


def test_iteration_stops_before_rounding_adds_up():
    C = anisotropic(64)
    C /= np.trace(C, axis1=1, axis2=2)[:, None, None]
    converged, long = (newton_schulz(torch.from_numpy(C).float(), n_iter=n) for n in (40, 500))
    assert torch.equal(converged[0], long[0]) and torch.equal(converged[1], long[1])
    exact = np.stack([np.real(scipy.linalg.sqrtm(matrix)) for matrix in C])
    assert relative(long[0].numpy(), exact) < 1e-5


def test_iteration_of_one_sample_does_not_depend_on_the_others():
    slow, fast = anisotropic(8)[:1], np.eye(8)[None] / 8
    both = torch.from_numpy(np.concatenate([slow / np.trace(slow[0]), fast])).float()
    together = newton_schulz(both, n_iter=60)[0]
    for i in range(2):
        alone = newton_schulz(both[i : i + 1], n_iter=60)[0]
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=1e-7)
