# SPDX-License-Identifier: BSD-3-Clause
"""Regional generalized means of maps, against torch's LPPool2d and scipy's box filter."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.pipeline import make_pipeline
from sklearn.utils._param_validation import InvalidParameterError
from torch.nn import functional as F

from skpool.pooling import GeMPooling, RegionalGeM
from skpool.stores import TokenArray

N, H, W, D = 4, 7, 9, 3


@pytest.fixture
def maps():
    """Not negative, as after a rectifier."""
    return np.abs(np.random.default_rng(0).normal(size=(N, H, W, D)))


def lp_pooled(maps, p, size, mode="reflect"):
    """Power means of windows by torch."""
    half = size // 2
    padded = F.pad(torch.from_numpy(maps).permute(0, 3, 1, 2), [half] * 4, mode=mode)
    pooled = F.lp_pool2d(padded, p, size, stride=1) / size ** (2 / p)
    return pooled.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("pad", ["reflect", "replicate"])
@given(
    p=st.sampled_from([0.3, 1.0, 2.5, 3, 4.6, 10.0]),
    size=st.sampled_from([1, 3, 5, 7]),
    mix=st.floats(0, 1),
)
@settings(max_examples=40)
def test_map_equals_lp_pool_of_torch(pad, p, size, mix):
    X = np.abs(np.random.default_rng(0).normal(size=(2, H, W, D)))
    expected = (1 - mix) * X + mix * lp_pooled(X, p, size, pad)
    actual = RegionalGeM(p, size=size, mix=mix, pad=pad).fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_defaults_are_those_of_the_paper(maps):
    expected = 0.5 * maps + 0.5 * lp_pooled(maps, 2.5, 5)
    np.testing.assert_allclose(RegionalGeM().fit_transform(maps), expected, rtol=1e-9)


@pytest.mark.parametrize("pad, mode", [("reflect", "mirror"), ("replicate", "nearest")])
def test_p_one_is_the_box_mean_of_scipy(maps, pad, mode):
    expected = ndimage.uniform_filter(maps, size=(0, 5, 5, 0), mode=mode)
    actual = RegionalGeM(1, mix=1.0, pad=pad).fit_transform(maps)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    p=st.floats(0.1, 20),
    pad=st.sampled_from(["reflect", "replicate"]),
)
@settings(max_examples=40)
def test_constant_map_is_a_fixed_point(size, p, pad):
    X = np.broadcast_to([0.0, 1e-3, 7.0], (1, *size, 3))
    actual = RegionalGeM(p, pad=pad).fit_transform(X)
    np.testing.assert_allclose(actual, X, rtol=1e-12)


def test_mix_of_zero_is_identity():
    X = np.random.default_rng(0).normal(size=(N, H, W, D))
    np.testing.assert_array_equal(RegionalGeM(mix=0.0).fit_transform(X), X)


def test_window_of_one_cell_is_identity(maps):
    np.testing.assert_allclose(RegionalGeM(size=1, mix=1.0).fit_transform(maps), maps, rtol=1e-12)


def test_negative_values_count_as_zero_in_the_mean_only(maps):
    X = maps - 0.7
    expected = 0.6 * X + 0.4 * lp_pooled(np.maximum(X, 0), 2.5, 5)
    actual = RegionalGeM(mix=0.4).fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_side_just_long_enough_is_reflected():
    X = np.abs(np.random.default_rng(0).normal(size=(2, 3, W, D)))
    actual = RegionalGeM(mix=1.0).fit_transform(X)
    np.testing.assert_allclose(actual, lp_pooled(X, 2.5, 5), rtol=1e-9)


@pytest.mark.parametrize("height", [1, 2])
def test_side_too_short_to_reflect_is_replicated(height):
    X = np.abs(np.random.default_rng(0).normal(size=(2, height, W, D)))
    # Rows are replicated before columns are reflected.
    tall = np.pad(X, [(0, 0), (2, 2), (0, 0), (0, 0)], mode="edge")
    expected = lp_pooled(tall, 2.5, 5)[:, 2:-2]
    actual = RegionalGeM(mix=1.0).fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("p", [3.0, 20.0])
def test_massive_half_precision_equals_float64(maps, p):
    X = maps.astype(np.float16)
    X[..., 1] = 300
    actual = RegionalGeM(p, mix=1.0).fit_transform(X)
    assert actual.dtype == np.float32
    expected = RegionalGeM(p, mix=1.0).fit_transform(X.astype(np.float64))
    np.testing.assert_allclose(expected, lp_pooled(X.astype(np.float64), p, 5), rtol=1e-9)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("p", [6.0, 20.0])
def test_windows_apart_from_a_massive_cell_keep_their_mean(p):
    X = np.random.default_rng(0).uniform(0.1, 1.0, size=(1, H, W, D)).astype(np.float32)
    X[0, 0, 0] = 1000.0
    actual = RegionalGeM(p, mix=1.0).fit_transform(X)
    np.testing.assert_allclose(actual, lp_pooled(X.astype(np.float64), p, 5), rtol=1e-5)


def test_even_window_is_refused(maps):
    with pytest.raises(ValueError, match="size=4 has no cell in the middle"):
        RegionalGeM(size=4).fit(maps)


def test_tokens_without_a_grid_are_refused(maps):
    with pytest.raises(ValueError, match="RegionalGeM needs to know where tokens lie"):
        RegionalGeM().fit(maps.reshape(N, -1, D))


# Masks and prefix tokens.


def test_masked_cells_are_left_out_of_the_means_of_others(maps):
    mask = np.random.default_rng(1).random((N, H, W)) < 0.7
    half = 2
    padded = np.pad(maps, [(0, 0), (half, half), (half, half), (0, 0)], mode="reflect")
    seen = np.pad(mask, [(0, 0), (half, half), (half, half)], mode="reflect")
    dirty = np.where(mask[..., None], maps, np.nan).reshape(N, -1, D)
    X = TokenArray.from_array(dirty, mask=mask.reshape(N, -1), grid=(H, W))
    out = RegionalGeM(mix=1.0).fit_transform(X).to_map()
    for n, y, x in zip(*np.nonzero(mask), strict=True):
        window = np.s_[n, y : y + 5, x : x + 5]
        expected = (padded[window][seen[window]] ** 2.5).mean(0) ** 0.4
        np.testing.assert_allclose(out[n, y, x], expected, rtol=1e-9)


def test_garbage_under_the_mask_does_not_reach_the_result(maps):
    mask = np.random.default_rng(1).random((N, H * W)) < 0.5
    tokens = maps.reshape(N, -1, D)
    clean = None
    for garbage in (0.0, np.nan, np.inf, -1e30):
        X = np.where(mask[..., None], tokens, garbage)
        out = RegionalGeM().fit_transform(TokenArray.from_array(X, mask=mask, grid=(H, W)))
        out = np.asarray(out)
        clean = out if clean is None else clean
        np.testing.assert_array_equal(out, clean)


def test_prefix_tokens_pass_unchanged(maps):
    prefix = np.random.default_rng(1).normal(size=(N, 2, D))
    tokens = np.concatenate([prefix, maps.reshape(N, -1, D)], axis=1)
    X = TokenArray.from_array(tokens, n_prefix_tokens=2, grid=(H, W))
    out = RegionalGeM().fit_transform(X)
    np.testing.assert_array_equal(np.asarray(out)[:, :2], prefix)
    assert out.n_prefix_tokens == 2 and out.grid == (H, W)
    np.testing.assert_array_equal(out.to_map(), RegionalGeM().fit_transform(maps))


# Forms of input and output.


def test_tokens_stay_lazy_and_keep_their_grid(maps):
    out = RegionalGeM().fit_transform(TokenArray.from_map(maps))
    assert isinstance(out, TokenArray) and out.grid == (H, W)
    np.testing.assert_array_equal(out.to_map(), RegionalGeM().fit_transform(maps))


def test_tensor_of_maps_comes_back_as_tensor_of_maps(maps):
    out = RegionalGeM().fit_transform(torch.from_numpy(maps))
    assert isinstance(out, torch.Tensor) and out.shape == maps.shape
    np.testing.assert_array_equal(out, RegionalGeM().fit_transform(maps))


def test_vector_is_a_map_of_one_cell(maps):
    vectors = maps[:, 0, 0]
    np.testing.assert_allclose(RegionalGeM().fit_transform(vectors), vectors, rtol=1e-12)


def test_rows_do_not_depend_on_each_other(maps):
    X = maps * np.array([1.0, 1e3, 1e-3, 1.0]).reshape(N, 1, 1, 1)
    whole = RegionalGeM().fit_transform(X)
    alone = np.concatenate([RegionalGeM().fit_transform(x[None]) for x in X])
    np.testing.assert_allclose(whole, alone, rtol=1e-12)


def test_step_stands_before_a_pooling(maps):
    expected = GeMPooling().fit_transform(RegionalGeM().fit_transform(maps))
    steps = make_pipeline(RegionalGeM(), GeMPooling())
    for X in (maps, TokenArray.from_map(maps)):
        np.testing.assert_allclose(steps.fit_transform(X), expected, rtol=1e-12)


def test_input_is_not_written_to(maps):
    before = maps.copy()
    for X in (maps, torch.from_numpy(maps), TokenArray.from_map(maps)):
        np.asarray(RegionalGeM().fit_transform(X))
        np.testing.assert_array_equal(maps, before)


def test_nan_names_the_sample(maps):
    maps[2, 0, 1, 1] = np.nan
    with pytest.raises(ValueError, match="sample 2"):
        RegionalGeM().fit(maps)


def test_other_width_than_fitted_is_refused(maps):
    with pytest.raises(ValueError, match=rf"{D - 1} features.*{D} features"):
        RegionalGeM().fit(maps).transform(maps[..., 1:])


def test_parameters_name_the_step_in_stores():
    names = {step._fingerprint() for step in (RegionalGeM(), RegionalGeM(3), RegionalGeM(size=3))}
    assert len(names) == 3 and None not in names


def test_pickled_step_gives_the_same(maps):
    step = RegionalGeM().fit(maps)
    back = pickle.loads(pickle.dumps(step))
    np.testing.assert_array_equal(back.transform(maps), step.transform(maps))


@pytest.mark.parametrize(
    "params", [{"p": 0}, {"p": np.inf}, {"size": 0}, {"mix": 1.1}, {"pad": "zero"}]
)
def test_parameter_outside_its_range_is_refused(maps, params):
    with pytest.raises(InvalidParameterError):
        RegionalGeM(**params).fit(maps)
