# SPDX-License-Identifier: BSD-3-Clause
"""Spatial and temporal pyramids, against torch's adaptive pools; the suite of tokens on maps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.nn import functional as F

from skpool.pooling import RMACPooling, SpatialPyramidPooling, TemporalPyramidPooling, TokenPooling
from skpool.stores import TokenArray
from skpool.utils.estimator_checks import (
    parametrize_with_checks as parametrize_with_token_checks,
)

N, H, W, D = 5, 7, 5, 3


def adaptive(maps: np.ndarray, level: int, reduce: str, p: float = 3.0) -> np.ndarray:
    """Bins of one level by torch, (n, level * level * d)."""
    x = torch.from_numpy(maps).permute(0, 3, 1, 2)
    if reduce == "max":
        pooled = F.adaptive_max_pool2d(x, level)
    elif reduce == "mean":
        pooled = F.adaptive_avg_pool2d(x, level)
    else:
        pooled = F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(p), level).pow(1 / p)
    return pooled.permute(0, 2, 3, 1).flatten(1).numpy()


def adaptive_1d(frames: np.ndarray, level: int, reduce: str) -> np.ndarray:
    """Bins of one level by torch, (n, level * d)."""
    pool = F.adaptive_max_pool1d if reduce == "max" else F.adaptive_avg_pool1d
    return pool(torch.from_numpy(frames).mT, level).mT.flatten(1).numpy()


def masked_bins(maps: np.ndarray, mask: np.ndarray, level: int, reduce: str) -> np.ndarray:
    """Bins of the real cells, cell by cell in numpy; 0 where there is none."""
    n, height, width, d = maps.shape
    out = np.zeros((n, level, level, d))
    for i in range(level):
        rows = slice(int(np.floor(i * height / level)), int(np.ceil((i + 1) * height / level)))
        for j in range(level):
            columns = slice(int(np.floor(j * width / level)), int(np.ceil((j + 1) * width / level)))
            for k in range(n):
                cells = maps[k, rows, columns][mask[k, rows, columns]]
                if len(cells):
                    out[k, i, j] = cells.max(0) if reduce == "max" else cells.mean(0)
    return out.reshape(n, -1)


@pytest.fixture
def maps():
    return np.random.default_rng(0).normal(size=(N, H, W, D))


# The suites.


@parametrize_with_token_checks(
    [
        SpatialPyramidPooling(),
        SpatialPyramidPooling((1, 2), reduce="mean", normalize_levels="l2"),
        SpatialPyramidPooling((3, 2), reduce="gem", p=4.6, level_weights=(1, 0.5)),
        # The maps of the suite have one row or column at times, too few for more levels.
        RMACPooling(1),
        RMACPooling(1, reduce="mean", include_global=False),
        RMACPooling(1, reduce="gem", region_transform=StandardScaler()),
    ]
)
def test_token_check_passes_on_maps(estimator, check):
    check(estimator)


@parametrize_with_token_checks(
    [
        TemporalPyramidPooling(),
        TemporalPyramidPooling((2, 3), reduce="mean", normalize_levels="l2"),
        TemporalPyramidPooling(reduce="gem", level_weights=(1, 0.5, 0.25)),
    ]
)
def test_token_check_passes_on_sequences(estimator, check):
    check(estimator)


@parametrize_with_checks(
    [
        SpatialPyramidPooling(),
        SpatialPyramidPooling((1, 2), reduce="gem", normalize_levels="l2"),
        TemporalPyramidPooling(),
        TemporalPyramidPooling((1, 3), reduce="mean", level_weights=(0.5, 1)),
    ]
)
def test_scikit_learn_check_passes(estimator, check):
    check(estimator)


# Bins of maps.


@pytest.mark.parametrize("reduce", ["max", "mean", "gem"])
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    levels=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_levels_equal_adaptive_pools_of_torch(reduce, size, levels, seed):
    X = np.random.default_rng(seed).normal(size=(2, *size, D))
    expected = np.hstack([adaptive(X, level, reduce) for level in levels])
    actual = SpatialPyramidPooling(levels, reduce=reduce).fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_defaults_are_maxima_of_four_levels(maps):
    expected = np.hstack([adaptive(maps, level, "max") for level in (1, 2, 3, 6)])
    np.testing.assert_array_equal(SpatialPyramidPooling().fit_transform(maps), expected)


def test_one_bin_is_global_maximum(maps):
    actual = SpatialPyramidPooling((1,)).fit_transform(maps)
    np.testing.assert_array_equal(actual, TokenPooling("max").fit_transform(maps))


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_bin_per_cell_is_identity(maps, reduce):
    square = maps[:, :W]
    actual = SpatialPyramidPooling((W,), reduce=reduce).fit_transform(square)
    np.testing.assert_allclose(actual, square.reshape(N, -1), rtol=1e-14)


@given(level=st.integers(1, 5), rows=st.integers(1, 4), columns=st.integers(1, 4))
@settings(max_examples=30)
def test_mean_bins_of_equal_area_average_to_the_global_mean(level, rows, columns):
    X = np.random.default_rng(level).normal(size=(2, level * rows, level * columns, D))
    bins = SpatialPyramidPooling((level,), reduce="mean").fit_transform(X).reshape(2, -1, D)
    np.testing.assert_allclose(bins.mean(1), X.mean((1, 2)), atol=1e-12)


@pytest.mark.parametrize("p", [0.2, 1, 2.5, 6.0, 20.0])
def test_gem_equals_power_means_of_torch(maps, p):
    expected = adaptive(np.abs(maps), 3, "gem", p)
    actual = SpatialPyramidPooling((3,), reduce="gem", p=p).fit_transform(np.abs(maps))
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("p", [3, 5, 20])
def test_gem_of_massive_half_precision_equals_float64(maps, p):
    X = np.abs(maps).astype(np.float16)
    X[..., 1] = 300
    expected = adaptive(X.astype(np.float64), 2, "gem", p)
    actual = SpatialPyramidPooling((2,), reduce="gem", p=p).fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("p", [6.0, 20.0])
def test_gem_beside_a_massive_cell_keeps_small_bins(p):
    X = np.random.default_rng(0).uniform(0.1, 1.0, size=(1, 4, 4, D)).astype(np.float32)
    X[0, 0, 0] = 1000.0
    expected = adaptive(X.astype(np.float64), 2, "gem", p)
    actual = SpatialPyramidPooling((2,), reduce="gem", p=p).fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_mean_of_offset_float32_is_exact_to_float32(maps):
    X = (1000 + np.random.default_rng(0).normal(size=(2, 40, 40, D))).astype(np.float32)
    expected = adaptive(X.astype(np.float64), 2, "mean")
    actual = SpatialPyramidPooling((2,), reduce="mean").fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=5e-7)


@pytest.mark.parametrize("size, level", [(7, 3), (8, 4), (9, 3), (13, 1), (10, 4)])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_window_rule_equals_pool_of_torch(size, level, reduce):
    X = np.random.default_rng(0).normal(size=(2, size, size, D))
    window, stride = int(np.ceil(size / level)), size // level
    pool = F.max_pool2d if reduce == "max" else F.avg_pool2d
    expected = pool(torch.from_numpy(X).permute(0, 3, 1, 2), window, stride)
    assert expected.shape[2:] == (level, level)
    actual = SpatialPyramidPooling((level,), reduce=reduce, grid="window").fit_transform(X)
    np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1).flatten(1), rtol=1e-12)


@pytest.mark.parametrize("size, level", [(11, 6), (2, 3)])
def test_window_rule_that_gives_other_bins_is_refused(size, level):
    X = np.zeros((2, size, size, D))
    with pytest.raises(ValueError, match=rf"'window' does not give {level} bins of {size} rows"):
        SpatialPyramidPooling((level,), grid="window").fit(X)


# Levels as wholes.


def test_normalized_levels_equal_scikit_learn(maps):
    expected = np.hstack([normalize(adaptive(maps, level, "mean")) for level in (1, 3)])
    pooling = SpatialPyramidPooling((1, 3), reduce="mean", normalize_levels="l2")
    np.testing.assert_allclose(pooling.fit_transform(maps), expected, rtol=1e-12)


def test_level_weights_multiply_levels(maps):
    plain = SpatialPyramidPooling((1, 2)).fit_transform(maps)
    weighted = SpatialPyramidPooling((1, 2), level_weights=[2.0, 0.5]).fit_transform(maps)
    np.testing.assert_array_equal(weighted, plain * np.repeat([2.0, 0.5], [D, 4 * D]))


def test_level_weights_come_after_normalization(maps):
    options = {"normalize_levels": "l2", "level_weights": (0.0, 3.0)}
    vectors = SpatialPyramidPooling((1, 2), **options).fit_transform(maps)
    np.testing.assert_array_equal(vectors[:, :D], 0)
    np.testing.assert_allclose(np.linalg.norm(vectors[:, D:], axis=1), 3.0)


# Maps of several sizes.


@pytest.fixture
def ragged():
    rng = np.random.default_rng(1)
    return [rng.normal(size=(*size, D)) for size in [(4, 6), (7, 7), (4, 6), (1, 3), (2, 9)]]


def test_maps_of_several_sizes_give_what_each_gives_alone(ragged):
    pooling = SpatialPyramidPooling()
    expected = np.vstack([pooling.fit_transform(sample[None]) for sample in ragged])
    actual = pooling.fit_transform(ragged)
    assert actual.shape == (5, 50 * D)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", [tuple, "objects", "tensors"])
def test_other_containers_of_maps_give_what_the_list_gives(ragged, kind):
    expected = SpatialPyramidPooling().fit_transform(ragged)
    if kind == "tensors":
        X = [torch.from_numpy(sample) for sample in ragged]
    elif kind == "objects":
        X = np.empty(len(ragged), dtype=object)
        X[:] = ragged
    else:
        X = kind(ragged)
    actual = SpatialPyramidPooling().fit_transform(X)
    assert isinstance(actual, torch.Tensor) == (kind == "tensors")
    np.testing.assert_array_equal(actual, expected)


def test_float_type_of_a_list_is_the_widest(ragged):
    X = [sample.astype(np.float32) for sample in ragged[:-1]]
    assert SpatialPyramidPooling().fit_transform(X).dtype == np.float32
    assert SpatialPyramidPooling().fit_transform([*X, ragged[-1]]).dtype == np.float64
    half = [sample.astype(np.float16) for sample in ragged]
    assert SpatialPyramidPooling().fit_transform(half).dtype == np.float32


def test_list_of_whole_numbers_is_read_as_float64(ragged):
    X = [(10 * sample).astype(np.uint16) for sample in map(np.abs, ragged)]
    expected = SpatialPyramidPooling().fit_transform([x.astype(np.float64) for x in X])
    for numbers in (X, [x.tolist() for x in X]):
        actual = SpatialPyramidPooling().fit_transform(numbers)
        assert actual.dtype == np.float64
        np.testing.assert_array_equal(actual, expected)


def test_list_of_text_is_refused():
    with pytest.raises(ValueError, match="could not convert string"):
        SpatialPyramidPooling().fit([np.full((2, 2, D), "a")])


def test_list_of_maps_becomes_a_frame_where_asked(ragged):
    pd = pytest.importorskip("pandas")
    pooling = SpatialPyramidPooling((1, 2)).set_output(transform="pandas")
    frame = pooling.fit_transform(ragged)
    assert isinstance(frame, pd.DataFrame)
    expected = SpatialPyramidPooling((1, 2)).fit_transform(ragged)
    np.testing.assert_array_equal(frame.to_numpy(), expected)


def test_maps_of_several_sizes_go_through_a_search(ragged):
    X, y = ragged * 4, [0, 1, 0, 1, 0] * 4
    search = GridSearchCV(
        make_pipeline(SpatialPyramidPooling(), KNeighborsClassifier(1)),
        {"spatialpyramidpooling__levels": [(1,), (1, 2)]},
        cv=2,
        error_score="raise",
    )
    assert search.fit(X, y).best_score_ == 1.0


def test_nan_in_a_list_names_the_sample(ragged):
    ragged[3][0, 1, 2] = np.nan
    pooling = SpatialPyramidPooling()
    for verb in (pooling.fit, pooling.transform):
        with pytest.raises(ValueError, match=r"NaN .* sample 3"):
            verb(ragged)


def test_list_of_maps_of_several_widths_is_refused(ragged):
    ragged[2] = ragged[2][..., :2]
    with pytest.raises(ValueError, match="one n_features"):
        SpatialPyramidPooling().fit(ragged)


def test_list_of_maps_and_tokens_is_refused(ragged):
    ragged[2] = ragged[2][0]
    with pytest.raises(ValueError, match="height_i, width_i, n_features"):
        SpatialPyramidPooling().fit(ragged)


def test_refused_list_leaves_the_pooling_as_it_was(ragged):
    pooling = SpatialPyramidPooling().fit(ragged)
    with pytest.raises(ValueError, match="sample 0"):
        pooling.fit([np.full((2, 2, D + 1), np.nan)])
    assert pooling.n_features_in_ == D


def test_list_of_another_width_than_fitted_is_refused(ragged):
    pooling = SpatialPyramidPooling().fit(ragged)
    with pytest.raises(ValueError, match=rf"{D + 1} features.*{D} features"):
        pooling.transform([np.ones((2, 2, D + 1))])


# Grids and masks.


def test_tokens_without_a_grid_are_refused(maps):
    with pytest.raises(ValueError, match="have no grid; give maps"):
        SpatialPyramidPooling().fit(maps.reshape(N, -1, D))
    with pytest.raises(ValueError, match="have no grid; give maps"):
        SpatialPyramidPooling().fit(list(maps.reshape(N, -1, D)))


def test_vector_is_a_map_of_one_cell(maps):
    vectors = maps[:, 0, 0]
    actual = SpatialPyramidPooling((1, 2)).fit_transform(vectors)
    np.testing.assert_array_equal(actual, np.tile(vectors, 5))


def test_class_token_is_left_out(maps):
    tokens = np.concatenate([np.full((N, 1, D), 99.0), maps.reshape(N, -1, D)], axis=1)
    X = TokenArray.from_array(tokens, n_prefix_tokens=1, grid=(H, W))
    expected = SpatialPyramidPooling().fit_transform(maps)
    np.testing.assert_array_equal(SpatialPyramidPooling().fit_transform(X), expected)


def test_class_token_in_scope_is_refused(maps):
    X = TokenArray.from_array(maps.reshape(N, -1, D), n_prefix_tokens=1, grid=(2, 17))
    with pytest.raises(ValueError, match=r"scope='all'.*no place on the grid"):
        SpatialPyramidPooling(scope="all").fit(X)
    assert SpatialPyramidPooling(scope="all").fit(maps)


def test_class_token_alone_is_refused():
    X = TokenArray.from_array(np.zeros((2, 1, D)), n_prefix_tokens=1)
    with pytest.raises(ValueError, match="prefix tokens"):
        SpatialPyramidPooling().fit(X)


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("level", [1, 2, 3, 6])
def test_masked_cells_are_absent(maps, reduce, level):
    mask = np.random.default_rng(2).random((N, H, W)) < 0.4
    dirty = np.where(mask[..., None], maps, np.nan)
    X = TokenArray.from_array(dirty.reshape(N, -1, D), mask=mask.reshape(N, -1), grid=(H, W))
    actual = SpatialPyramidPooling((level,), reduce=reduce).fit_transform(X)
    np.testing.assert_allclose(actual, masked_bins(maps, mask, level, reduce), atol=1e-12)


@pytest.mark.parametrize("reduce", ["max", "mean", "gem"])
def test_bin_without_a_real_cell_is_zero(reduce):
    mask = np.array([[True, False], [True, True]])
    X = TokenArray.from_array(-np.ones((1, 4, D)), mask=mask.reshape(1, 4), grid=(2, 2))
    bins = SpatialPyramidPooling((2,), reduce=reduce).fit_transform(X).reshape(4, D)
    np.testing.assert_array_equal(bins[1], 0)
    assert (bins[[0, 2, 3]] != 0).all()


# Parameters.


@pytest.mark.parametrize("levels", [(), (0,), (1, 2.5), (-1,), ("a",)])
@pytest.mark.parametrize("kind", [SpatialPyramidPooling, TemporalPyramidPooling])
def test_bad_levels_are_refused(maps, kind, levels):
    with pytest.raises(ValueError, match="levels="):
        kind(levels).fit(maps)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, np.nan), (1.0, -1.0), (1.0, 2.0, 3.0)])
def test_bad_level_weights_are_refused(maps, weights):
    with pytest.raises(ValueError, match="level_weights="):
        SpatialPyramidPooling((1, 2), level_weights=weights).fit(maps)


@pytest.mark.parametrize(
    "params", [{"reduce": "sum"}, {"grid": "free"}, {"p": 0}, {"p": np.nan}, {"levels": 3}]
)
def test_parameter_outside_its_range_is_refused(maps, params):
    with pytest.raises(InvalidParameterError):
        SpatialPyramidPooling(**params).fit(maps)


def test_parameters_name_the_result_in_stores(maps):
    names = {
        pooling._fingerprint()
        for pooling in (
            SpatialPyramidPooling(),
            SpatialPyramidPooling(reduce="mean"),
            SpatialPyramidPooling(level_weights=[1, 1, 1, 2]),
            TemporalPyramidPooling((1, 2, 3, 6)),
        )
    }
    assert len(names) == 4 and None not in names
    assert SpatialPyramidPooling(batch_size=3)._fingerprint() in names


# Regions.


def test_full_box_is_transform(maps):
    pooling = SpatialPyramidPooling()
    boxes = [(i, 0, 0, W, H) for i in (3, 0, 3)]
    expected = pooling.transform(maps)[[3, 0, 3]]
    np.testing.assert_array_equal(pooling.pool_regions(maps, boxes), expected)


@pytest.mark.parametrize("reduce", ["max", "mean", "gem"])
@pytest.mark.parametrize("batch_size", [2, 256])
def test_boxes_equal_adaptive_pools_of_cut_out_cells(maps, reduce, batch_size):
    rng = np.random.default_rng(3)
    left, top = rng.integers(0, W - 1, 30), rng.integers(0, H - 1, 30)
    right, bottom = rng.integers(left + 1, W + 1), rng.integers(top + 1, H + 1)
    index = rng.integers(0, N, 30)
    cut = [maps[i, b:d, a:c] for i, a, b, c, d in zip(index, left, top, right, bottom, strict=True)]
    expected = np.vstack(
        [np.hstack([adaptive(x[None], level, reduce) for level in (1, 3)]) for x in cut]
    )
    pooling = SpatialPyramidPooling((1, 3), reduce=reduce, batch_size=batch_size)
    actual = pooling.pool_regions(maps, np.stack([index, left, top, right, bottom], axis=1))
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_box_takes_every_cell_that_it_touches(maps):
    # In pixels of an image whose patches have 16: columns 1 to 2, rows 0 to 3.
    box = [(2, 17.0, 15.9, 47.0, 48.1)]
    actual = SpatialPyramidPooling((1,)).pool_regions(maps, box, spatial_scale=1 / 16)
    np.testing.assert_array_equal(actual[0], maps[2, 0:4, 1:3].max((0, 1)))


def test_tiny_box_takes_one_cell(maps):
    actual = SpatialPyramidPooling((1,)).pool_regions(maps, [(0, 2.2, 3.4, 2.3, 3.5)])
    np.testing.assert_array_equal(actual[0], maps[0, 3, 2])


def test_box_beyond_the_map_is_cut_at_its_border(maps):
    actual = SpatialPyramidPooling((1,)).pool_regions(maps, [(0, -3, 5, 2, 99)])
    np.testing.assert_array_equal(actual[0], maps[0, 5:, :2].max((0, 1)))


@pytest.mark.parametrize(
    "box",
    [
        (0, 2, 1, 2, 3),
        (0, 3, 1, 2, 3),
        (0, W, 0, W + 1, 2),
        (0, -2, 0, -1, 2),
        (0, 0, np.nan, 1, 1),
    ],
)
def test_empty_box_is_refused(maps, box):
    with pytest.raises(ValueError, match=r"Box 1, .*holds no cell"):
        SpatialPyramidPooling().pool_regions(maps, [(0, 0, 0, 1, 1), box])


@pytest.mark.parametrize("index", [-1, N, 0.5, np.nan])
def test_box_of_no_sample_is_refused(maps, index):
    with pytest.raises(ValueError, match="Box 0 is of sample"):
        SpatialPyramidPooling().pool_regions(maps, [(index, 0, 0, 1, 1)])


@pytest.mark.parametrize("boxes", [[], [0, 0, 0, 1, 1], [(0, 0, 1, 1)]])
def test_boxes_of_another_shape_are_refused(maps, boxes):
    with pytest.raises(ValueError, match=r"boxes has shape .*; give \(n_boxes, 5\)"):
        SpatialPyramidPooling().pool_regions(maps, boxes)


def test_boxes_of_tensors_give_a_tensor(maps):
    boxes = [(0, 0, 0, 2, 2), (4, 1, 1, 3, 2)]
    actual = SpatialPyramidPooling().pool_regions(torch.from_numpy(maps), boxes)
    assert isinstance(actual, torch.Tensor)
    np.testing.assert_array_equal(actual, SpatialPyramidPooling().pool_regions(maps, boxes))


def test_masked_cells_of_boxes_are_absent(maps):
    mask = np.ones((N, H, W), dtype=bool)
    mask[1, :3, :2] = False
    X = TokenArray.from_array(maps.reshape(N, -1, D), mask=mask.reshape(N, -1), grid=(H, W))
    actual = SpatialPyramidPooling((1,), reduce="mean").pool_regions(X, [(1, 0, 0, 3, 4)])
    np.testing.assert_allclose(actual[0], maps[1, :4, :3][mask[1, :4, :3]].mean(0))


def test_box_without_a_real_cell_follows_empty(maps):
    mask = np.ones((N, H, W), dtype=bool)
    mask[1, :3, :2] = False
    X = TokenArray.from_array(maps.reshape(N, -1, D), mask=mask.reshape(N, -1), grid=(H, W))
    boxes = [(0, 0, 0, 1, 1), (1, 0, 0, 2, 3)]
    with pytest.raises(ValueError, match="Box 1 holds no real token"):
        SpatialPyramidPooling((1,)).pool_regions(X, boxes)
    zero = SpatialPyramidPooling((1,), empty="zero").pool_regions(X, boxes)
    nan = SpatialPyramidPooling((1,), empty="nan").pool_regions(X, boxes)
    np.testing.assert_array_equal(zero, [maps[0, 0, 0], np.zeros(D)])
    np.testing.assert_array_equal(nan, [maps[0, 0, 0], np.full(D, np.nan)])


# Sequences.


@pytest.mark.parametrize("reduce", ["max", "mean"])
@given(n_tokens=st.integers(1, 13), levels=st.lists(st.integers(1, 6), min_size=1, max_size=3))
@settings(max_examples=40)
def test_temporal_levels_equal_adaptive_pools_of_torch(reduce, n_tokens, levels):
    X = np.random.default_rng(n_tokens).normal(size=(3, n_tokens, D))
    expected = np.hstack([adaptive_1d(X, level, reduce) for level in levels])
    actual = TemporalPyramidPooling(levels, reduce=reduce).fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduce", ["max", "mean"])
@given(data=st.data())
@settings(max_examples=30)
def test_real_tokens_close_ranks_wherever_masked_ones_stand(reduce, data):
    X = np.random.default_rng(0).normal(size=(1, 9, D))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=9, max_size=9).filter(any)))
    level = data.draw(st.integers(1, 5))
    given = TokenArray.from_array(np.where(mask[:, None], X, np.inf), mask=mask[None])
    actual = TemporalPyramidPooling((level,), reduce=reduce).fit_transform(given)
    expected = adaptive_1d(X[:, mask], level, reduce)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_equal_frames_give_the_image_in_every_bin():
    frame = np.random.default_rng(0).normal(size=(2, 1, D))
    actual = TemporalPyramidPooling(reduce="mean").fit_transform(frame.repeat(6, axis=1))
    np.testing.assert_allclose(actual, np.tile(frame[:, 0], 7), rtol=1e-12)


def test_temporal_gem_is_the_power_mean_of_windows():
    X = np.abs(np.random.default_rng(0).normal(size=(2, 8, D)))
    bins = sliding_window_view(X, 4, axis=1)[:, ::4]
    expected = (bins**4.0).mean(-1) ** 0.25
    actual = TemporalPyramidPooling((2,), reduce="gem", p=4).fit_transform(X)
    np.testing.assert_allclose(actual, expected.reshape(2, -1), rtol=1e-9)


def test_temporal_pyramid_leaves_the_prefix_out_unless_told():
    X = np.random.default_rng(0).normal(size=(2, 5, D))
    tokens = TokenArray.from_array(X, n_prefix_tokens=1)
    patches = TemporalPyramidPooling().fit_transform(tokens)
    np.testing.assert_array_equal(patches, TemporalPyramidPooling().fit_transform(X[:, 1:]))
    whole = TemporalPyramidPooling(scope="all").fit_transform(tokens)
    np.testing.assert_array_equal(whole, TemporalPyramidPooling().fit_transform(X))
