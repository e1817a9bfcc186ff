# SPDX-License-Identifier: BSD-3-Clause
"""Patches, whitening, codes and their sums, each against an implementation that is not ours."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.mixture import GaussianMixture

from skpool.extraction import _patch_kernels as kernels


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_patches_equal_those_of_scikit_learn():
    images = normal(1, 3, 7, 9)
    patches = kernels.extract_patches(images, patch=4, stride=1)[0]
    expected = extract_patches_2d(images[0].permute(1, 2, 0).numpy(), (4, 4))
    np.testing.assert_array_equal(patches, expected.transpose(0, 3, 1, 2).reshape(24, -1))


@given(st.integers(3, 20), st.integers(3, 20), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=30)
def test_grid_is_the_number_of_places(height, width, patch, stride):
    rows, columns = kernels.grid_of(height, width, patch=patch, stride=stride)
    assert rows == len(range(0, height - patch + 1, stride))
    assert columns == len(range(0, width - patch + 1, stride))
    image = torch.zeros(1, 1, height, width)
    patches = kernels.extract_patches(image, patch=patch, stride=stride)
    assert patches.shape == (1, rows * columns, patch**2)


@pytest.mark.parametrize("eps", [0.0, 10.0])
def test_contrast_is_normalised_by_the_variance_of_each_patch(eps):
    patches = 20 * normal(50, 12) + 100
    out = kernels.contrast_normalize(patches, eps=eps).numpy()
    x = patches.numpy()
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps)
    np.testing.assert_allclose(out, expected, rtol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 10.0])
def test_constant_patch_becomes_zero(eps):
    patches = torch.tensor([[7.0] * 12, [255.0] * 12, [0.0] * 12])
    np.testing.assert_array_equal(kernels.contrast_normalize(patches, eps=eps), 0)


def test_zca_is_the_symmetric_inverse_root():
    a = normal(6, 9).numpy()
    covariance = a @ a.T
    actual = kernels.zca_matrix(torch.from_numpy(covariance), eps=0.3)
    expected = scipy.linalg.inv(scipy.linalg.sqrtm(covariance + 0.3 * np.eye(6)))
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-10)


def test_zca_drops_directions_without_variance_where_nothing_is_added():
    a = normal(6, 3).numpy()
    matrix = kernels.zca_matrix(torch.from_numpy(a @ a.T), eps=0.0).numpy()
    projection = a @ np.linalg.pinv(a)
    np.testing.assert_allclose(matrix @ a @ a.T @ matrix, projection, atol=1e-6)


def test_distances_equal_scipy():
    x, c = normal(40, 7), normal(9, 7, seed=1)
    np.testing.assert_allclose(kernels.distances(x, c), cdist(x, c), rtol=1e-10)


def test_distance_to_itself_is_zero_and_not_nan():
    x = 1000 * normal(20, 30).float()
    assert torch.isfinite(kernels.distances(x, x)).all()


def test_triangle_is_zero_exactly_at_or_beyond_the_mean_distance():
    z = normal(100, 9).abs()
    z[0] = 3.0
    z[1] = torch.tensor([1.0, 2, 3, 2, 2, 2, 2, 2, 2])
    codes = kernels.encode_triangle(z.clone())
    mean = z.mean(dim=1, keepdim=True)
    assert torch.equal(codes == 0, z >= mean)
    torch.testing.assert_close(codes[z < mean], (mean - z)[z < mean])
    assert codes[1, 1] == 0 and codes[1, 0] == 1


def test_hard_is_one_for_the_nearest():
    z = normal(50, 9).abs()
    z[0, [3, 5]] = 0.0
    codes = kernels.encode_hard(z).numpy()
    np.testing.assert_array_equal(codes.sum(axis=1), 1)
    np.testing.assert_array_equal(codes.argmax(axis=1), z.numpy().argmin(axis=1))


def test_soft_is_the_posterior_of_a_mixture_of_gaussians():
    x, c, variance = normal(40, 5).numpy(), normal(6, 5, seed=1).numpy(), 0.7
    mixture = GaussianMixture(6, covariance_type="spherical")
    mixture.weights_, mixture.means_ = np.full(6, 1 / 6), c
    mixture.covariances_ = np.full(6, variance)
    mixture.precisions_cholesky_ = np.full(6, variance**-0.5)
    codes = kernels.encode_soft(torch.from_numpy(cdist(x, c)), variance)
    np.testing.assert_allclose(codes, mixture.predict_proba(x), rtol=1e-9, atol=1e-12)


@given(st.integers(1, 40), st.integers(1, 8))
@settings(max_examples=40)
def test_cells_cover_all_rows_and_are_equal_to_one(length, pool):
    bounds = kernels.pool_bounds(max(length, pool), pool)
    sizes = np.diff(bounds)
    assert bounds[0] == 0 and bounds[-1] == max(length, pool)
    assert len(sizes) == pool and sizes.min() >= 1 and np.ptp(sizes) <= 1


OPTIONS = {"patch": 3, "stride": 2, "n_atoms": 5}


def linear(patches):
    return patches @ normal(27, 5, seed=2)


@pytest.mark.parametrize("strip", [1, 60, 2**23])
def test_sums_over_cells_are_sums_of_the_map_for_every_size_of_strip(strip, monkeypatch):
    images = normal(4, 3, 17, 14)
    maps = torch.stack(
        [
            linear(images[:, :, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].flatten(1))
            for r in range(8)
            for c in range(6)
        ],
        dim=1,
    ).view(4, 8, 6, 5)
    monkeypatch.setattr(kernels, "_STRIP_NUMBERS", strip)
    torch.testing.assert_close(kernels.encode_maps(images, linear, **OPTIONS), maps)
    pooled = kernels.encode_pooled(images, linear, pool=3, **OPTIONS).view(4, 3, 3, 5)
    for row, (top, bottom) in enumerate([(0, 2), (2, 5), (5, 8)]):
        for column in range(3):
            cell = maps[:, top:bottom, 2 * column : 2 * column + 2]
            torch.testing.assert_close(pooled[:, row, column], cell.sum(dim=(1, 2)))
