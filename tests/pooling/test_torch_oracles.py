# SPDX-License-Identifier: BSD-3-Clause
"""The poolings against the pooling layers of torch, on maps and sequences of many sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from skpool.pooling import (
    GeMPooling,
    GroupGeMPooling,
    LogSumExpPooling,
    RegionalGeM,
    SpatialPyramidPooling,
    TemporalPyramidPooling,
    TokenPooling,
)

D = 4
SIZES = st.integers(1, 9)
SEEDS = st.integers(0, 2**32 - 1)
EXPONENTS = st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0, 4.6, 5.0, 7.0])
some = settings(deadline=None, max_examples=30)


def maps(seed, height, width, low=None):
    """Maps (3, height, width, D): normal, or uniform from `low` on."""
    rng = np.random.default_rng(seed)
    shape = (3, height, width, D)
    return rng.normal(size=shape) if low is None else rng.uniform(low, low + 3.0, size=shape)


def channels_first(X):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(X, -1, 1)))


def flat(pooled):
    """Maps of a layer of torch (n, d, ...) as vectors: cell by cell, the features of each."""
    return pooled.flatten(2).transpose(1, 2).flatten(1).numpy()


# Means and maxima.


@some
@given(seed=SEEDS, height=SIZES, width=SIZES)
def test_max_and_mean_of_a_map_equal_adaptive_pooling_to_one_cell(seed, height, width):
    X = maps(seed, height, width)
    tensor = channels_first(X)
    np.testing.assert_array_equal(
        TokenPooling("max").fit_transform(X), flat(F.adaptive_max_pool2d(tensor, 1))
    )
    np.testing.assert_allclose(
        TokenPooling("mean").fit_transform(X), flat(F.adaptive_avg_pool2d(tensor, 1)), atol=1e-14
    )


@some
@given(
    seed=SEEDS,
    height=SIZES,
    width=SIZES,
    levels=st.lists(st.integers(1, 5), min_size=1, max_size=3),
)
def test_spatial_pyramid_equals_adaptive_pooling_level_by_level(seed, height, width, levels):
    X, levels = maps(seed, height, width), tuple(levels)
    tensor = channels_first(X)
    largest = [flat(F.adaptive_max_pool2d(tensor, n)) for n in levels]
    actual = SpatialPyramidPooling(levels, reduce="max").fit_transform(X)
    np.testing.assert_array_equal(actual, np.hstack(largest))
    means = [flat(F.adaptive_avg_pool2d(tensor, n)) for n in levels]
    actual = SpatialPyramidPooling(levels, reduce="mean").fit_transform(X)
    np.testing.assert_allclose(actual, np.hstack(means), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_spatial_pyramid_of_narrow_floats_equals_adaptive_pooling(dtype):
    X = (300.0 * maps(0, 7, 5)).astype(dtype)
    tensor = channels_first(X.astype(np.float32))
    expected = np.hstack([flat(F.adaptive_avg_pool2d(tensor, n)) for n in (1, 2, 3)])
    actual = SpatialPyramidPooling((1, 2, 3), reduce="mean").fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-3)


@some
@given(seed=SEEDS, length=SIZES, levels=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_temporal_pyramid_equals_adaptive_pooling_level_by_level(seed, length, levels):
    X, levels = maps(seed, 1, length)[:, 0], tuple(levels)
    tensor = channels_first(X)
    largest = [flat(F.adaptive_max_pool1d(tensor, n)) for n in levels]
    actual = TemporalPyramidPooling(levels, reduce="max").fit_transform(X)
    np.testing.assert_array_equal(actual, np.hstack(largest))
    means = [flat(F.adaptive_avg_pool1d(tensor, n)) for n in levels]
    actual = TemporalPyramidPooling(levels, reduce="mean").fit_transform(X)
    np.testing.assert_allclose(actual, np.hstack(means), atol=1e-12)


# Power means: torch adds up powers, so the mean is left to us.


def power_mean(tensor, p):
    """The generalized mean by the layer of torch for sums of powers, (n, d)."""
    size = tensor.shape[2:]
    layer = F.lp_pool2d if len(size) == 2 else F.lp_pool1d
    kernel = tuple(size) if len(size) == 2 else size[0]
    return flat(layer(tensor, p, kernel_size=kernel)) / np.prod(size) ** (1 / p)


@some
@given(seed=SEEDS, height=SIZES, width=SIZES, p=EXPONENTS)
def test_gem_of_a_map_without_negative_values_equals_lp_pooling(seed, height, width, p):
    X = maps(seed, height, width, low=0.01)
    actual = GeMPooling(p).fit_transform(X)
    np.testing.assert_allclose(actual, power_mean(channels_first(X), p), rtol=1e-10)
    signed = GeMPooling(p, negative="signed").fit_transform(X)
    np.testing.assert_allclose(signed, actual, rtol=1e-10)


@some
@given(seed=SEEDS, length=SIZES, p=EXPONENTS)
def test_gem_of_a_sequence_equals_lp_pooling(seed, length, p):
    X = maps(seed, 1, length, low=0.01)[:, 0]
    actual = GeMPooling(p).fit_transform(X)
    np.testing.assert_allclose(actual, power_mean(channels_first(X), p), rtol=1e-10)


def test_gem_of_rectified_maps_equals_lp_pooling():
    # Zeros are raised to eps, which the power mean of the others does not show.
    X = np.maximum(maps(0, 6, 5), 0.0)
    actual = GeMPooling(3.0).fit_transform(X)
    np.testing.assert_allclose(actual, power_mean(channels_first(X), 3.0), rtol=1e-9)


@some
@given(seed=SEEDS, p=st.tuples(EXPONENTS, EXPONENTS))
def test_group_gem_equals_lp_pooling_of_each_group(seed, p):
    X = maps(seed, 4, 3, low=0.01)
    tensor = channels_first(X)
    expected = [power_mean(part, q) for part, q in zip(tensor.split(2, dim=1), p, strict=True)]
    actual = GroupGeMPooling(2, p=p, negative="clamp").fit_transform(X)
    np.testing.assert_allclose(actual, np.hstack(expected), rtol=1e-10)


@some
@given(seed=SEEDS, height=SIZES, width=SIZES, p=EXPONENTS, level=st.integers(1, 3))
def test_pyramid_of_power_means_equals_the_root_of_adaptive_means(seed, height, width, p, level):
    X = maps(seed, height, width, low=0.01)
    powers = F.adaptive_avg_pool2d(channels_first(X) ** p, level)
    actual = SpatialPyramidPooling((level,), reduce="gem", p=p).fit_transform(X)
    np.testing.assert_allclose(actual, flat(powers ** (1 / p)), rtol=1e-9)


@some
@given(seed=SEEDS, size=st.tuples(st.integers(3, 8), st.integers(3, 8)), p=EXPONENTS)
@pytest.mark.parametrize("pad", ["reflect", "replicate"])
def test_regional_gem_equals_lp_pooling_with_stride_one(pad, seed, size, p):
    X = maps(seed, *size, low=0.01)
    tensor = channels_first(X)
    padded = F.pad(tensor, (2, 2, 2, 2), mode=pad)
    around = F.lp_pool2d(padded, p, kernel_size=5, stride=1) / 25 ** (1 / p)
    expected = 0.3 * tensor + 0.7 * around
    actual = np.asarray(RegionalGeM(p, mix=0.7, pad=pad).fit_transform(X))
    np.testing.assert_allclose(actual.reshape(3, -1), flat(expected), rtol=1e-9)


@some
@given(seed=SEEDS, height=SIZES, width=SIZES, r=st.floats(0.05, 50.0))
def test_log_sum_exp_pooling_equals_that_of_torch_up_to_the_number_of_cells(seed, height, width, r):
    X = maps(seed, height, width)
    tensor = channels_first(X).flatten(2)
    expected = (torch.logsumexp(r * tensor, dim=2) - np.log(height * width)) / r
    actual = LogSumExpPooling(r, scale=None).fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)
