# SPDX-License-Identifier: BSD-3-Clause
"""One vector from several views, against numpy."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.base import clone
from sklearn.preprocessing import normalize

from skpool.pooling import ViewAggregator
from skpool.stores import TokenArray

METHODS = ("mean", "l2mean", "max", "median", "gem", "concat")


def power_mean(X, axis):
    mean = np.nanmean(np.sign(X) * np.abs(X) ** 3, axis=axis)
    return np.sign(mean) * np.abs(mean) ** (1 / 3)


BY_NUMPY = {
    "mean": np.nanmean,
    "l2mean": lambda X, axis: normalize(np.nanmean(X, axis=axis)),
    "max": np.nanmax,
    "median": np.nanmedian,
    "gem": power_mean,
}

views_of_any_shape = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5)),
    elements=st.floats(-100, 100, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x),
)


@pytest.fixture
def views():
    return np.random.default_rng(0).normal(size=(5, 4, 3))


@pytest.mark.parametrize("method", sorted(BY_NUMPY))
@given(X=views_of_any_shape)
@settings(max_examples=40)
def test_method_equals_numpy(method, X):
    actual = ViewAggregator(method).fit_transform(X)
    np.testing.assert_allclose(actual, BY_NUMPY[method](X, axis=1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", sorted(BY_NUMPY))
@given(X=views_of_any_shape, data=st.data())
@settings(max_examples=40)
def test_missing_views_are_left_out_as_by_numpy(method, X, data):
    missing = data.draw(hnp.arrays(bool, X.shape[:2]))
    missing[missing.all(axis=1), 0] = False
    X[missing] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = BY_NUMPY[method](X, axis=1)
    actual = ViewAggregator(method).fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)


def test_concat_puts_the_views_side_by_side(views):
    out = ViewAggregator("concat").fit_transform(views)
    np.testing.assert_array_equal(out, np.hstack([views[:, v] for v in range(4)]))


def test_view_with_one_nan_is_left_out_as_a_whole(views):
    views[2, 1, 0] = np.nan
    out = ViewAggregator().fit_transform(views)
    np.testing.assert_allclose(out[2], views[2, [0, 2, 3]].mean(axis=0))


@pytest.mark.parametrize("method", METHODS)
def test_identical_views_are_the_vector(method, views):
    X = np.repeat(views[:, :1], 4, axis=1)
    out = ViewAggregator(method).fit_transform(X)
    expected = {"l2mean": normalize(X[:, 0]), "concat": np.tile(X[:, 0], 4)}.get(method, X[:, 0])
    np.testing.assert_allclose(out, expected, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_views_matters_to_concat_alone(method, views):
    out = ViewAggregator(method).fit_transform(views)
    shuffled = ViewAggregator(method).fit_transform(views[:, [2, 0, 3, 1]])
    assert np.allclose(out, shuffled) == (method != "concat")


def test_exponent_one_is_the_mean_and_a_large_one_the_value_of_largest_magnitude(views):
    np.testing.assert_allclose(
        ViewAggregator("gem", p=1).fit_transform(views), views.mean(axis=1), rtol=1e-12
    )
    largest = np.take_along_axis(views, np.abs(views).argmax(axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(
        ViewAggregator("gem", p=500).fit_transform(views), largest, rtol=0.02
    )


@pytest.mark.parametrize("method", METHODS)
def test_normalized_views_equal_views_normalized_before(method, views):
    units = normalize(views.reshape(-1, 3)).reshape(views.shape)
    actual = ViewAggregator(method, normalize_views=True).fit_transform(views)
    np.testing.assert_allclose(actual, ViewAggregator(method).fit_transform(units), rtol=1e-12)
    scaled = views * np.array([1.0, 10.0, 0.1, 5.0])[:, None]
    again = ViewAggregator(method, normalize_views=True).fit_transform(scaled)
    np.testing.assert_allclose(again, actual, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensor_gives_tensor(method, dtype, views):
    X = torch.from_numpy(views).to(dtype)
    out = ViewAggregator(method).fit_transform(X)
    assert isinstance(out, torch.Tensor)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = ViewAggregator(method).fit_transform(X.double().numpy())
    np.testing.assert_allclose(out.double().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy, list, lambda X: X.tolist()])
@pytest.mark.parametrize("method", METHODS)
def test_sample_without_any_view_is_refused_by_number(method, wrap, views):
    model = ViewAggregator(method).fit(views)
    views[3] = np.nan
    for call in (model.transform, ViewAggregator(method).fit):
        with pytest.raises(ValueError, match="every view of sample 3"):
            call(wrap(views))


def test_vector_of_nan_counts_as_a_sample_without_views(views):
    X = views[:, 0].copy()
    X[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"\b2\b"):
        ViewAggregator().fit(X)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("method", METHODS)
def test_infinity_is_not_a_missing_view(method, sign, views):
    views[1, 2, 0] = sign * np.inf
    with pytest.raises(ValueError, match=r"infinity in the tokens of sample 1"):
        ViewAggregator(method).fit(views)


def test_infinities_of_both_signs_are_not_a_missing_view(views):
    views[1, 2, :2] = np.inf, -np.inf
    with pytest.raises(ValueError, match="sample 1"):
        ViewAggregator().fit(views)


def test_concat_refuses_a_missing_view(views):
    model = ViewAggregator("concat").fit(views)
    views[4, 1] = np.nan
    with pytest.raises(ValueError, match="sample 4, and method='concat'"):
        model.transform(views)


@pytest.mark.parametrize("method", METHODS)
def test_other_number_of_views_is_refused_by_concat_alone(method, views):
    model = ViewAggregator(method).fit(views)
    if method == "concat":
        with pytest.raises(ValueError, match="3 views and method='concat' was fitted on 4"):
            model.transform(views[:, :3])
    else:
        np.testing.assert_allclose(
            model.transform(views[:, :3]), clone(model).fit_transform(views[:, :3])
        )


def test_refused_fit_leaves_the_number_of_views(views):
    model = ViewAggregator("concat").fit(views)
    bad = views[:, :2].copy()
    bad[0] = np.nan
    with pytest.raises(ValueError, match="every view"):
        model.fit(bad)
    assert model.n_views_ == 4
    assert model.transform(views).shape == (5, 12)


def test_masked_token_array_is_views_with_some_missing(views):
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    out = ViewAggregator().fit_transform(TokenArray.from_array(views, mask=mask))
    masked = np.ma.array(views, mask=~np.repeat(mask[..., None] == 1, 3, axis=2))
    np.testing.assert_allclose(out, masked.mean(axis=1).data)


@pytest.mark.parametrize("method, width", [("mean", 3), ("concat", 12)])
def test_names_of_the_features_are_as_many_as_the_features(method, width, views):
    model = ViewAggregator(method).fit(views)
    assert len(model.get_feature_names_out()) == width == model.transform(views).shape[1]


@pytest.mark.parametrize("params", [{"method": "sum"}, {"p": 0}, {"normalize_views": 2}])
def test_bad_parameters_are_refused(params, views):
    with pytest.raises(ValueError, match=next(iter(params))):
        ViewAggregator(**params).fit(views)
