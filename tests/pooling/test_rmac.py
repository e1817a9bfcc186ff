# SPDX-License-Identifier: BSD-3-Clause
"""R-MAC against regions cut out one by one and pooled by torch."""

import pickle
import warnings
from fractions import Fraction
from itertools import product
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.nn import functional as F

from skpool.pooling import RMACPooling, TokenPooling
from skpool.pooling._spatial_kernels import _spread_spans
from skpool.preprocessing import Whitening
from skpool.stores import TokenArray

N, D = 6, 4
# So small that lengths are divided by exactly, as by scikit-learn's normalize.
EPS = 1e-14


def regions_of_the_paper(height, width, levels, overlap=Fraction(2, 5)):
    """(y, x, side) of all regions, in exact fractions."""
    short, long = min(height, width), max(height, width)
    extra = 0
    if long > short:
        shared = {m: 1 - Fraction(long - short, (m - 1) * short) for m in range(2, 8)}
        extra = min(shared, key=lambda m: (abs(shared[m] - overlap), m)) - 1
    found = []
    for level in range(1, levels + 1):
        side = floor(Fraction(2 * short, level + 1))
        starts = []
        for size in (height, width):
            count = level + (extra if size == long else 0)
            step = Fraction(size - side, count - 1) if count > 1 else 0
            starts.append([floor(j * step) for j in range(count)])
        found += [(y, x, side) for y in starts[0] for x in starts[1] if side]
    return found


def rmac_of_the_paper(maps, levels=3, include_global=True):
    """Sum of the region vectors by torch's pooling of every region alone."""
    x = torch.from_numpy(maps).permute(0, 3, 1, 2)
    pooled = [F.adaptive_max_pool2d(x, 1)] if include_global else []
    for top, left, side in regions_of_the_paper(*maps.shape[1:3], levels):
        pooled.append(F.max_pool2d(x[:, :, top : top + side, left : left + side], side))
    return F.normalize(sum(F.normalize(r.flatten(1)) for r in pooled)).numpy()


@parametrize_with_checks(
    [RMACPooling(1), RMACPooling(1, reduce="gem", region_transform=StandardScaler())]
)
def test_scikit_learn_check_passes(estimator, check):
    check(estimator)


@pytest.fixture
def maps():
    return np.random.default_rng(0).normal(size=(N, 8, 8, D))


# Which regions.


@pytest.mark.parametrize("side", [4, 7, 14, 16, 37])
def test_square_map_has_fourteen_regions(side):
    # 1 + 4 + 9, as in the paper.
    regions = RMACPooling().regions(side, side)
    assert len(regions) == 14
    assert regions[0] == (0, 0, side, side)


@given(height=st.integers(3, 40), width=st.integers(3, 40), levels=st.integers(1, 5))
@settings(max_examples=150)
def test_regions_are_those_of_the_paper(height, width, levels):
    assume(2 * min(height, width) > levels)
    expected = [(y, x, s, s) for y, x, s in regions_of_the_paper(height, width, levels)]
    assert RMACPooling(levels).regions(height, width) == expected


def test_corners_that_a_rounded_stride_would_move_stay():
    moved = 0
    for size, count in product(range(2, 80), range(2, 14)):
        exact = [floor(j * Fraction(size - 1, count - 1)) for j in range(count)]
        assert [start for start, _ in _spread_spans(size, 1, count)] == exact
        moved += exact != [floor(j * ((size - 1) / (count - 1))) for j in range(count)]
    assert moved > 0


@pytest.mark.parametrize("height", range(3, 20))
def test_regions_reach_all_borders(height):
    for width in range(3, 20):
        regions = np.array(RMACPooling().regions(height, width))
        for side in np.unique(regions[:, 2]):
            level = regions[regions[:, 2] == side]
            assert level[:, :2].min() == 0
            assert (level[:, 0] + side).max() == height
            assert (level[:, 1] + side).max() == width


def test_overlap_decides_the_number_along_the_longer_side():
    few, many = RMACPooling(1, overlap=0.0), RMACPooling(1, overlap=0.7)
    assert [x for _, x, _, _ in few.regions(4, 8)] == [0, 4]
    assert [x for _, x, _, _ in many.regions(4, 8)] == [0, 1, 2, 4]


def test_equally_near_overlaps_take_fewer_regions():
    # 2 regions of side 5 on 9 share a fifth and 3 share three fifths: both are a fifth off.
    assert [x for _, x, _, _ in RMACPooling(1).regions(5, 9)] == [0, 4]


def test_transposed_map_has_transposed_regions():
    wide = RMACPooling().regions(9, 14)
    tall = RMACPooling().regions(14, 9)
    assert sorted((x, y, s, t) for y, x, s, t in wide) == sorted(tall)


# What is made of them.


@given(
    height=st.integers(3, 23),
    width=st.integers(3, 23),
    levels=st.integers(1, 4),
    include_global=st.booleans(),
)
@settings(max_examples=60)
def test_descriptor_equals_regions_pooled_by_torch(height, width, levels, include_global):
    assume(2 * min(height, width) > levels)
    X = np.random.default_rng(height).normal(size=(2, height, width, D))
    expected = rmac_of_the_paper(X, levels, include_global)
    actual = RMACPooling(levels, include_global=include_global).fit_transform(X)
    np.testing.assert_allclose(actual, expected, atol=3e-6)


@pytest.mark.parametrize("size", [(5, 9), (3, 11), (6, 22), (10, 18), (9, 5)])
def test_sizes_with_ties_equal_regions_pooled_by_torch(size):
    X = np.random.default_rng(0).normal(size=(2, *size, D))
    np.testing.assert_allclose(RMACPooling().fit_transform(X), rmac_of_the_paper(X), atol=3e-6)


@pytest.mark.parametrize("include_global", [True, False])
def test_one_level_of_a_square_map_is_its_maximum(maps, include_global):
    expected = normalize(TokenPooling("max").fit_transform(maps))
    actual = RMACPooling(1, include_global=include_global).fit_transform(maps)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("reduce", ["max", "mean", "gem"])
def test_constant_map_gives_its_vector_at_unit_length(reduce):
    vector = np.abs(np.random.default_rng(0).normal(size=(1, D)))
    X = np.broadcast_to(vector[:, None, None], (1, 7, 10, D))
    actual = RMACPooling(reduce=reduce).fit_transform(X)
    np.testing.assert_allclose(actual, normalize(vector), rtol=1e-6)


@pytest.mark.parametrize("reduce", ["max", "mean", "gem"])
def test_flipped_square_map_gives_the_same(reduce):
    # 5 - 3 and 5 - 2 are multiples of what lies between regions, so these lie symmetrically.
    X = np.random.default_rng(0).normal(size=(2, 5, 5, D))
    pooling = RMACPooling(2, reduce=reduce).fit(X)
    regions = set(pooling.regions(5, 5))
    assert regions == {(y, 5 - x - s, s, s) for y, x, s, _ in regions}
    np.testing.assert_allclose(pooling.transform(X[:, :, ::-1]), pooling.transform(X), atol=1e-12)


@pytest.mark.parametrize("reduce", ["mean", "gem"])
def test_other_reductions_equal_regions_one_by_one(maps, reduce):
    pooling = RMACPooling(reduce=reduce, p=4.6, include_global=False, eps=EPS)
    total = 0
    for y, x, height, width in pooling.regions(8, 8):
        cells = maps[:, y : y + height, x : x + width].reshape(N, -1, D)
        power = np.maximum(cells, 1e-6) ** 4.6
        pooled = cells.mean(1) if reduce == "mean" else power.mean(1) ** (1 / 4.6)
        total = total + normalize(pooled)
    np.testing.assert_allclose(pooling.fit_transform(maps), normalize(total), rtol=1e-9)


def test_eps_is_added_to_the_length_of_regions(maps):
    X = maps.copy()
    X[:, :, 4:] *= 1e-3
    pooling = RMACPooling(2, include_global=False, eps=0.1)
    total = 0
    for y, x, side, _ in pooling.regions(8, 8):
        pooled = X[:, y : y + side, x : x + side].max((1, 2))
        total = total + pooled / (np.linalg.norm(pooled, axis=1, keepdims=True) + 0.1)
    np.testing.assert_allclose(pooling.fit_transform(X), normalize(total), rtol=1e-12)


def test_descriptor_has_unit_length_whatever_the_scale(maps):
    for scale in (1e-3, 1.0, 1e30):
        vectors = RMACPooling().fit_transform((scale * maps).astype(np.float32))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)


def test_level_that_is_too_small_is_left_out_with_a_warning():
    X = np.random.default_rng(0).normal(size=(2, 1, 4, D))
    pooling = RMACPooling(3)
    with pytest.warns(UserWarning, match="1 x 4 cells is too small for regions of level 2 on"):
        pooling.fit(X)
    with pytest.warns(UserWarning, match="left out; set levels=1") as caught:
        vectors = pooling.transform(X)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(vectors, RMACPooling(1).fit_transform(X))


def test_large_enough_map_gives_no_warning(maps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RMACPooling(5).fit_transform(maps)


# Inputs.


def test_maps_of_several_sizes_give_what_each_gives_alone():
    rng = np.random.default_rng(1)
    X = [rng.normal(size=(*size, D)) for size in [(4, 6), (7, 7), (4, 6), (3, 3)]]
    expected = np.vstack([RMACPooling().fit_transform(sample[None]) for sample in X])
    np.testing.assert_allclose(RMACPooling().fit_transform(X), expected, rtol=1e-12)


def test_tokens_without_a_grid_are_refused(maps):
    with pytest.raises(ValueError, match="RMACPooling needs to know where tokens lie"):
        RMACPooling().fit(maps.reshape(N, -1, D))


def test_masked_cells_are_absent(maps):
    mask = np.ones((8, 8), dtype=bool)
    mask[:4, :4] = mask[6, :] = False
    tokens = np.where(mask[..., None], maps, np.nan).reshape(N, 64, D)
    X = TokenArray.from_array(tokens, mask=np.tile(mask.ravel(), (N, 1)), grid=(8, 8))
    pooling = RMACPooling(eps=EPS)
    total = normalize(maps[:, mask].max(1))
    for y, x, side, _ in pooling.regions(8, 8):
        seen = mask[y : y + side, x : x + side]
        if seen.any():
            total = total + normalize(maps[:, y : y + side, x : x + side][:, seen].max(1))
    np.testing.assert_allclose(pooling.fit_transform(X), normalize(total), rtol=1e-9)


def test_map_without_a_real_cell_follows_empty(maps):
    mask = np.ones((N, 64), dtype=bool)
    mask[2] = False
    X = TokenArray.from_array(maps.reshape(N, 64, D), mask=mask, grid=(8, 8))
    with pytest.raises(ValueError, match="Sample 2 has no real token"):
        RMACPooling().fit(X)
    vectors = RMACPooling(empty="zero").fit_transform(X)
    np.testing.assert_array_equal(vectors[2], 0)
    expected = RMACPooling().fit_transform(np.delete(maps, 2, axis=0))
    np.testing.assert_allclose(np.delete(vectors, 2, axis=0), expected, rtol=1e-12)


# A transform of regions.


def region_vectors(maps, levels=3):
    """All region vectors of unit length, (n, n_regions, d), the whole map first."""
    regions = [(0, 0, 8, 8), *RMACPooling(levels).regions(8, 8)]
    pooled = [maps[:, y : y + h, x : x + w].max((1, 2)) for y, x, h, w in regions]
    return np.stack([normalize(v) for v in pooled], axis=1)


@pytest.mark.parametrize("transform", [Whitening(2), PCA(2, whiten=True), StandardScaler()])
def test_transform_is_fitted_on_all_regions_and_applied_to_each(maps, transform):
    vectors = region_vectors(maps)
    alone = transform.fit(vectors.reshape(-1, D))
    expected = normalize(sum(normalize(alone.transform(vectors[:, r])) for r in range(15)))
    pooling = RMACPooling(region_transform=transform, eps=EPS).fit(maps)
    actual = pooling.transform(maps)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert len(pooling.get_feature_names_out()) == actual.shape[1]


def test_transform_itself_stays_unfitted(maps):
    scaler = StandardScaler()
    pooling = RMACPooling(region_transform=scaler).fit(maps)
    assert not hasattr(scaler, "mean_")
    assert pooling.region_transform_.n_samples_seen_ == 15 * N


def test_frozen_transform_is_taken_as_it_is(maps):
    scaler = StandardScaler().fit(np.random.default_rng(5).normal(size=(50, D)))
    pooling = RMACPooling(region_transform=FrozenEstimator(scaler), eps=EPS).fit(maps)
    vectors = region_vectors(maps)
    expected = normalize(sum(normalize(scaler.transform(vectors[:, r])) for r in range(15)))
    np.testing.assert_allclose(pooling.transform(maps), expected, rtol=1e-9)


def test_transform_is_fitted_on_maps_of_all_sizes():
    rng = np.random.default_rng(1)
    X = [rng.normal(size=(*size, D)) for size in [(4, 4), (7, 7), (4, 4), (5, 7)]]
    pooling = RMACPooling(2, region_transform=StandardScaler()).fit(X)
    n_regions = [1 + len(RMACPooling(2).regions(*x.shape[:2])) for x in X]
    assert pooling.region_transform_.n_samples_seen_ == sum(n_regions)
    alone = np.vstack([pooling.transform(x[None]) for x in X])
    np.testing.assert_allclose(pooling.transform(X), alone, rtol=1e-9)


def test_regions_without_a_real_cell_teach_nothing_and_add_nothing(maps):
    mask = np.ones((8, 8), dtype=bool)
    mask[:4, :4] = False
    tiled = np.tile(mask.ravel(), (N, 1))
    X = TokenArray.from_array(maps.reshape(N, 64, D), mask=tiled, grid=(8, 8))
    pooling = RMACPooling(region_transform=StandardScaler(), eps=EPS).fit(X)
    hidden = sum(y + s <= 4 and x + s <= 4 for y, x, s, _ in pooling.regions(8, 8))
    assert hidden > 0
    scaler = pooling.region_transform_
    assert scaler.n_samples_seen_ == (15 - hidden) * N
    total = 0
    for y, x, h, w in [(0, 0, 8, 8), *pooling.regions(8, 8)]:
        seen = mask[y : y + h, x : x + w]
        if seen.any():
            pooled = normalize(maps[:, y : y + h, x : x + w][:, seen].max(1))
            total = total + normalize(scaler.transform(pooled))
    np.testing.assert_allclose(pooling.transform(X), normalize(total), rtol=1e-9)


def test_transform_before_fit_is_refused(maps):
    with pytest.raises(NotFittedError):
        RMACPooling(region_transform=StandardScaler()).transform(maps)
    assert RMACPooling().transform(maps).shape == (N, D)


def test_fit_does_not_depend_on_batch_size(maps):
    one, all_ = (
        RMACPooling(region_transform=Whitening(), batch_size=size).fit(maps) for size in (1, 256)
    )
    np.testing.assert_array_equal(
        one.region_transform_.covariance_, all_.region_transform_.covariance_
    )


def test_float32_maps_stay_float32_behind_a_transform(maps):
    pooling = RMACPooling(region_transform=StandardScaler())
    assert pooling.fit_transform(maps.astype(np.float32)).dtype == np.float32
    assert isinstance(pooling.transform(torch.from_numpy(maps)), torch.Tensor)


def test_what_is_learned_is_not_kept_under_a_name():
    assert RMACPooling(region_transform=StandardScaler())._fingerprint() is None
    names = {RMACPooling(**p)._fingerprint() for p in ({}, {"levels": 2}, {"overlap": 0.5})}
    assert len(names) == 3 and None not in names


def test_pickled_pooling_gives_the_same(maps):
    pooling = RMACPooling(region_transform=Whitening()).fit(maps)
    back = pickle.loads(pickle.dumps(pooling))
    np.testing.assert_array_equal(back.transform(maps), pooling.transform(maps))


def test_refused_fit_keeps_the_fitted_transform(maps):
    pooling = RMACPooling(region_transform=StandardScaler()).fit(maps)
    before = pooling.region_transform_
    with pytest.raises(ValueError, match="sample 3"):
        bad = maps[..., :2].copy()
        bad[3, 0, 0, 0] = np.nan
        pooling.fit(bad)
    assert pooling.region_transform_ is before and pooling.n_features_in_ == D


@pytest.mark.parametrize(
    "params",
    [
        {"levels": 0},
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"reduce": "sum"},
        {"p": 0},
        {"eps": 0},
        {"region_transform": "pca"},
    ],
)
def test_parameter_outside_its_range_is_refused(maps, params):
    with pytest.raises(InvalidParameterError):
        RMACPooling(**params).fit(maps)
