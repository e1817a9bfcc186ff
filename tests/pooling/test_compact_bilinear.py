# SPDX-License-Identifier: BSD-3-Clause
"""CompactBilinearPooling against scikit-learn, and the property that makes it a sketch."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.kernel_approximation import PolynomialCountSketch
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.pooling import CompactBilinearPooling, _sketch_kernels, fuse_compact_bilinear
from skpool.pooling._sketch_kernels import (
    CountSketch,
    draw_count_sketch,
    draw_signs,
    pool_compact_bilinear,
    random_maclaurin,
    tensor_sketch,
)

N, L, D = 5, 7, 6

METHODS = pytest.mark.parametrize("method", ["tensor_sketch", "random_maclaurin"])


@parametrize_with_checks(
    [
        CompactBilinearPooling(),
        CompactBilinearPooling(9, method="random_maclaurin", random_state=None),
    ]
)
def test_scikit_learn_check_passes(estimator, check):
    check(estimator)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(N, L, D))


@pytest.fixture(params=["moments first", "token by token"])
def route(request, monkeypatch):
    """Both ways to a mean of tensor sketches."""
    cost = np.inf if request.param == "moments first" else 0
    monkeypatch.setattr(_sketch_kernels, "_TRANSFORM_COST", cost)


def sketch_of(peer):
    return CountSketch(tuple(peer.indexHash_), tuple(peer.bitHash_), peer.n_components)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("n_components", [16, 17, 2, 1, 100])
def test_pooling_is_the_mean_of_the_sketches_of_scikit_learn(tokens, n_components, route):
    peer = PolynomialCountSketch(degree=2, n_components=n_components, random_state=0)
    flat = peer.fit_transform(tokens.reshape(-1, D))
    expected = flat.reshape(N, L, -1).mean(1)
    actual = pool_compact_bilinear(
        torch.from_numpy(tokens), sketch=sketch_of(peer), power_norm=False, l2=False
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def test_masked_tokens_are_left_out_of_the_mean(tokens, route):
    peer = PolynomialCountSketch(degree=2, n_components=16, random_state=0)
    mask = np.random.default_rng(1).random((N, L)) < 0.5
    mask[:, 3] = True
    expected = [
        peer.fit_transform(row[real]).mean(0) for row, real in zip(tokens, mask, strict=True)
    ]
    dirty = torch.from_numpy(np.where(mask[..., None], tokens, np.nan))
    actual = pool_compact_bilinear(
        dirty, torch.from_numpy(mask), sketch=sketch_of(peer), power_norm=False, l2=False
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-14)


def test_signed_roots_and_unit_length_come_after_the_mean(tokens):
    plain = CompactBilinearPooling(32, power_norm=False, l2=False).fit_transform(tokens)
    roots = np.sign(plain) * np.sqrt(abs(plain))
    both = CompactBilinearPooling(32).fit_transform(tokens)
    np.testing.assert_allclose(both, unit(roots), rtol=1e-10)
    only_l2 = CompactBilinearPooling(32, power_norm=False).fit_transform(tokens)
    np.testing.assert_allclose(only_l2, unit(plain), rtol=1e-10)


@METHODS
def test_order_of_tokens_does_not_matter(tokens, method):
    pooling = CompactBilinearPooling(64, method=method)
    np.testing.assert_allclose(
        pooling.fit_transform(tokens[:, ::-1]), pooling.fit_transform(tokens), rtol=1e-8, atol=1e-9
    )


@METHODS
@pytest.mark.parametrize("n_components", [8, 9])
def test_inner_products_are_kept_on_average(method, n_components):
    rng = np.random.default_rng(0)
    x, a = (torch.from_numpy(rng.normal(size=(1, 4))) for _ in range(2))
    y, b = (torch.from_numpy(rng.normal(size=(1, 3))) for _ in range(2))
    products = []
    for seed in range(2000):
        if method == "tensor_sketch":
            sketch = draw_count_sketch((4, 3), n_components, seed=seed)
            first, second = tensor_sketch(x, y, sketch=sketch), tensor_sketch(a, b, sketch=sketch)
        else:
            signs = draw_signs((4, 3), n_components, seed=seed)
            first, second = random_maclaurin(x, y, signs=signs), random_maclaurin(a, b, signs=signs)
        products.append(float((first * second).sum()))
    expected = float((x * a).sum() * (y * b).sum())
    error = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - expected) < 4 * error
    # Few enough deviations that a wrong scale would show.
    assert 8 * error < abs(expected)


@METHODS
def test_inner_products_of_pooled_vectors_are_those_of_second_moments(tokens, method):
    M = np.einsum("nti,ntj->nij", tokens, tokens) / L
    expected = np.einsum("nij,mij->nm", M, M)
    pooling = CompactBilinearPooling(20_000, method=method, power_norm=False, l2=False)
    vectors = pooling.fit_transform(tokens)
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=0.1 * abs(expected).max())


def test_maclaurin_equals_its_formula(tokens):
    left, right = draw_signs((D, D), 10, seed=3)
    assert set(np.unique([left, right])) == {-1, 1}
    expected = ((tokens @ left) * (tokens @ right)).mean(1) / np.sqrt(10)
    pooling = CompactBilinearPooling(
        10, method="random_maclaurin", power_norm=False, l2=False, random_state=3
    )
    np.testing.assert_allclose(pooling.fit_transform(tokens), expected, rtol=1e-10, atol=1e-13)


def test_wide_tokens_take_the_same_sketch_both_ways(monkeypatch):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 5, 150)))
    sketch = draw_count_sketch((150, 150), 64, seed=0)
    results = []
    for cost in (0, np.inf):
        monkeypatch.setattr(_sketch_kernels, "_TRANSFORM_COST", cost)
        results.append(pool_compact_bilinear(x, sketch=sketch, power_norm=False, l2=False))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


# The seed.


@METHODS
def test_whole_number_as_random_state_needs_no_fit(tokens, method):
    pooling = CompactBilinearPooling(16, method=method, random_state=7)
    before = pooling.transform(tokens)
    np.testing.assert_array_equal(before, pooling.fit_transform(tokens))
    assert pooling.seed_ == 7
    other = CompactBilinearPooling(16, method=method, random_state=8).transform(tokens)
    assert (before != other).any()


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)])
def test_drawn_seed_needs_a_fit_and_stays(tokens, random_state):
    pooling = CompactBilinearPooling(16, random_state=random_state)
    with pytest.raises(NotFittedError):
        pooling.transform(tokens)
    pooling.fit(tokens)
    np.testing.assert_array_equal(pooling.transform(tokens), pooling.transform(tokens))


def test_only_a_seed_among_the_parameters_names_the_result():
    assert CompactBilinearPooling(random_state=0)._fingerprint() is not None
    assert CompactBilinearPooling(random_state=None)._fingerprint() is None


@pytest.mark.parametrize(
    "parameters", [{"n_components": 0}, {"method": "fft"}, {"power_norm": 2}, {"l2": None}]
)
def test_bad_parameter_is_refused(tokens, parameters):
    with pytest.raises(InvalidParameterError, match=next(iter(parameters))):
        CompactBilinearPooling(**parameters).fit(tokens)


# Two vectors per sample.


@METHODS
def test_fusion_is_a_sketch_of_the_outer_product(method):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 9)), rng.normal(size=(4, 5))
    fused = fuse_compact_bilinear(
        a, b, n_components=20_000, method=method, power_norm=False, l2=False
    )
    expected = (a @ a.T) * (b @ b.T)
    np.testing.assert_allclose(fused @ fused.T, expected, atol=0.1 * abs(expected).max())


def test_fusion_of_a_vector_with_itself_is_the_pooling_of_one_token():
    x = np.random.default_rng(0).normal(size=(4, 6))
    options = {"n_components": 33, "power_norm": False, "l2": False}
    np.testing.assert_allclose(
        fuse_compact_bilinear(x, x, **options),
        CompactBilinearPooling(**options).transform(x),
        rtol=1e-9,
        atol=1e-12,
    )


@METHODS
def test_fusion_gives_the_container_and_float_type_of_the_first(method):
    a, b = torch.ones(3, 4, dtype=torch.float16), np.ones((3, 2))
    fused = fuse_compact_bilinear(a, b, n_components=8, method=method)
    assert isinstance(fused, torch.Tensor) and fused.dtype == torch.float32
    assert fuse_compact_bilinear(b, b, n_components=8).dtype == np.float64


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((3, 2)), np.ones((4, 2)), "Xa has 3 samples and Xb has 4"),
        (np.ones((3, 2, 2)), np.ones((3, 2)), "Xa has shape"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), "NaN"),
    ],
)
def test_fusion_refuses_what_does_not_fit(a, b, message):
    with pytest.raises(ValueError, match=message):
        fuse_compact_bilinear(a, b)
