# SPDX-License-Identifier: BSD-3-Clause
"""Generalized means over scales, against scikit-learn's normalize and scipy's power mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.preprocessing import normalize
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.pooling import ScaleGeM, ViewAggregator
from skpool.stores import TokenArray

N, V, D = 6, 3, 5


@parametrize_with_checks([ScaleGeM(), ScaleGeM(10.0)])
def test_scikit_learn_check_passes(estimator, check):
    check(estimator)


@pytest.fixture
def views():
    return np.random.default_rng(0).normal(size=(N, V, D))


def unit(views):
    return views / np.linalg.norm(views, axis=-1, keepdims=True)


views_of_any_shape = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)),
    # scikit-learn takes vectors near the smallest floats for zero.
    elements=st.floats(-100, 100, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x),
)


@pytest.mark.parametrize("p", [np.inf, 10.0, 1.0])
@given(X=views_of_any_shape)
@settings(max_examples=30)
def test_one_scale_is_its_vector_at_unit_length(p, X):
    actual = ScaleGeM(p).fit_transform(X[:, :1])
    np.testing.assert_allclose(actual, normalize(X[:, 0]), rtol=1e-6, atol=1e-6)


def test_infinite_exponent_is_the_maximum_of_unit_views(views):
    expected = normalize(unit(views).max(axis=1))
    np.testing.assert_allclose(ScaleGeM().fit_transform(views), expected, rtol=1e-12)


def test_infinite_exponent_ignores_the_length_of_views(views):
    scaled = views * np.array([1.0, 100.0, 0.01])[:, None]
    np.testing.assert_allclose(
        ScaleGeM().fit_transform(scaled), ScaleGeM().fit_transform(views), rtol=1e-12
    )


@pytest.mark.parametrize("p", [0.5, 1, 3, 10.0])
def test_finite_exponent_is_scipy_pmean_above_the_minimum_of_the_row(views, p):
    low = views.min((1, 2))[:, None]
    expected = stats.pmean(views - low[:, None], p, axis=1) + low
    np.testing.assert_allclose(ScaleGeM(p).fit_transform(views), normalize(expected), rtol=1e-9)


def test_exponent_of_one_is_the_mean(views):
    expected = normalize(ViewAggregator().fit_transform(views))
    np.testing.assert_allclose(ScaleGeM(1.0).fit_transform(views), expected, rtol=1e-9)


def test_large_exponent_tends_to_the_maximum(views):
    expected = normalize(views.max(axis=1))
    np.testing.assert_allclose(ScaleGeM(5000.0).fit_transform(views), expected, atol=1e-3)


def test_eps_is_the_smallest_distance_from_the_minimum(views):
    low = views.min((1, 2))[:, None]
    above = np.maximum(views - low[:, None], 0.5)
    expected = normalize((above**3).mean(1) ** (1 / 3) + low)
    np.testing.assert_allclose(ScaleGeM(3.0, eps=0.5).fit_transform(views), expected, rtol=1e-9)


@pytest.mark.parametrize("p", [np.inf, 10.0])
def test_rows_do_not_depend_on_each_other(views, p):
    views[3] -= 50.0
    whole = ScaleGeM(p).fit_transform(views)
    alone = np.vstack([ScaleGeM(p).fit_transform(row[None]) for row in views])
    np.testing.assert_allclose(whole, alone, rtol=1e-12)


@pytest.mark.parametrize("p", [np.inf, 10.0])
def test_order_of_views_does_not_matter(views, p):
    expected = ScaleGeM(p).fit_transform(views)
    np.testing.assert_allclose(ScaleGeM(p).fit_transform(views[:, ::-1]), expected, rtol=1e-12)


@pytest.mark.parametrize("p", [np.inf, 10.0])
def test_repeated_views_change_nothing(views, p):
    expected = ScaleGeM(p).fit_transform(views)
    np.testing.assert_allclose(
        ScaleGeM(p).fit_transform(views.repeat(2, axis=1)), expected, rtol=1e-9
    )


@pytest.mark.parametrize("p", [np.inf, 10.0])
def test_missing_view_is_left_out(views, p):
    views[2, 1, 0] = np.nan
    expected = ScaleGeM(p).fit_transform(views[2:3, [0, 2]])
    np.testing.assert_allclose(ScaleGeM(p).fit_transform(views)[2:3], expected, rtol=1e-12)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 1e30])
@pytest.mark.parametrize("p", [np.inf, 10.0])
def test_masked_view_is_left_out(views, p, garbage):
    mask = np.ones((N, V), dtype=bool)
    mask[1, 2] = False
    X = TokenArray.from_array(np.where(mask[..., None], views, garbage), mask=mask)
    expected = ScaleGeM(p).fit_transform(views[1:2, :2])
    np.testing.assert_allclose(ScaleGeM(p).fit_transform(X)[1:2], expected, rtol=1e-12)


def test_sample_without_a_view_follows_empty(views):
    views[4] = np.nan
    with pytest.raises(ValueError, match="Sample 4 has no real token"):
        ScaleGeM().fit(views)
    np.testing.assert_array_equal(ScaleGeM(empty="zero").fit_transform(views)[4], 0)
    assert np.isnan(ScaleGeM(10.0, empty="nan").fit_transform(views)[4]).all()


def test_infinite_value_is_refused(views):
    views[4, 0, 0] = np.inf
    with pytest.raises(ValueError, match="sample 4"):
        ScaleGeM().fit(views)


@pytest.mark.parametrize("p", [np.inf, 10.0])
def test_half_precision_beyond_its_squares_equals_float64(views, p):
    X = (15_000 * views).astype(np.float16)
    actual = ScaleGeM(p).fit_transform(X)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, ScaleGeM(p).fit_transform(X.astype(np.float64)), rtol=1e-5)


def test_zero_views_stay_zero():
    np.testing.assert_array_equal(ScaleGeM().fit_transform(np.zeros((2, V, D))), 0)
    np.testing.assert_array_equal(ScaleGeM(10.0).fit_transform(np.zeros((2, V, D))), 0)


def test_tensor_gives_tensor(views):
    actual = ScaleGeM().fit_transform(torch.from_numpy(views))
    assert isinstance(actual, torch.Tensor)
    np.testing.assert_array_equal(actual, ScaleGeM().fit_transform(views))


@pytest.mark.parametrize("params", [{"p": 0}, {"p": -np.inf}, {"p": np.nan}, {"eps": -1.0}])
def test_parameter_outside_its_range_is_refused(views, params):
    with pytest.raises(InvalidParameterError):
        ScaleGeM(**params).fit(views)


def test_parameters_name_the_result_in_stores():
    names = {pooling._fingerprint() for pooling in (ScaleGeM(), ScaleGeM(10.0), ScaleGeM(eps=1.0))}
    assert len(names) == 3 and None not in names
