# SPDX-License-Identifier: BSD-3-Clause
"""L2Normalizer against scikit-learn's Normalizer and the laws of a norm."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone
from sklearn.preprocessing import Normalizer

from skpool.preprocessing import L2Normalizer


@pytest.fixture
def X():
    return np.random.default_rng(0).standard_normal((20, 12))


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-14), (np.float32, 1e-6)])
def test_equals_scikit_learn(X, dtype, rtol):
    got = L2Normalizer().fit_transform(X.astype(dtype))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, Normalizer().fit_transform(X), rtol=rtol)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-14, 1.0, 1e14, 1e30, 1e37])
def test_float32_rows_of_any_magnitude_have_unit_norm(X, scale):
    rows = (np.abs(X) * scale).astype(np.float32)
    got = L2Normalizer(eps=0.0).transform(rows)
    # The values given have float64 to spare, so numpy can divide by their norm.
    exact = rows.astype(np.float64)
    want = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_float16_rows_whose_norm_exceeds_float16_come_out_right():
    got = L2Normalizer().transform(np.full((2, 768), 300, dtype=np.float16))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, 768**-0.5, rtol=1e-6)
    half = np.full((2, 768), 60000, dtype=np.float16)
    np.testing.assert_allclose(L2Normalizer().transform(half), 768**-0.5, rtol=1e-6)


def test_zero_rows_stay_zero(X):
    X[3] = 0.0
    for eps in (0.0, 1e-12):
        got = L2Normalizer(eps=eps).transform(X)
        assert not got[3].any()
        np.testing.assert_allclose(got, Normalizer().transform(X), rtol=1e-12)


@pytest.mark.parametrize("norm", [1e-3, 1e-14, 1e-18])
def test_rows_below_eps_are_divided_by_eps(norm):
    X = norm * np.array([[0.6, 0.8]])
    np.testing.assert_allclose(L2Normalizer(eps=1e-2).transform(X), X / 1e-2, rtol=1e-12)


@settings(deadline=None, max_examples=50)
@given(
    arrays(np.float32, (3, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)
def test_any_finite_rows_have_unit_or_zero_norm_and_the_map_is_idempotent(X):
    once = L2Normalizer(eps=0.0).transform(X)
    norms = np.linalg.norm(once.astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, X.any(axis=1), rtol=1e-5)
    np.testing.assert_allclose(L2Normalizer(eps=0.0).transform(once), once, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(
    arrays(np.float64, (3, 4), elements=st.floats(-10, 10)),
    arrays(np.float64, (3, 1), elements=st.floats(1e-3, 1e3)),
)
def test_rows_may_be_multiplied_by_any_positive_number(X, factors):
    X[np.abs(X) < 1e-3] = 0.0
    model = L2Normalizer(eps=0.0)
    np.testing.assert_allclose(model.transform(X * factors), model.transform(X), atol=1e-14)


def test_maps_and_tokens_are_scaled_along_their_last_axis(X):
    maps = X.reshape(2, 5, 2, 12)
    want = maps / np.linalg.norm(maps, axis=-1, keepdims=True)
    np.testing.assert_allclose(L2Normalizer().fit_transform(maps), want, rtol=1e-14)
    tokens = maps.reshape(2, 10, 12)
    np.testing.assert_allclose(
        L2Normalizer().fit_transform(tokens), want.reshape(2, 10, 12), rtol=1e-14
    )


def test_blocks_are_scaled_on_their_own(X):
    got = L2Normalizer(blocks=[5, 3, 4]).fit_transform(X)
    parts = [Normalizer().fit_transform(p) for p in np.split(X, [5, 8], axis=1)]
    np.testing.assert_allclose(got, np.hstack(parts), rtol=1e-13)


@pytest.mark.parametrize("blocks", [[5, 5], [12, 0], [6.0, 6.0], []])
@pytest.mark.parametrize("method", ["fit", "transform"])
def test_blocks_that_do_not_add_up_are_refused(X, blocks, method):
    with pytest.raises(ValueError, match="add up to the 12 features"):
        getattr(L2Normalizer(blocks=blocks), method)(X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensor_in_gives_tensor_out(X, dtype):
    T = torch.from_numpy(X).to(dtype)
    got = L2Normalizer().fit_transform(T)
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    assert got.dtype == wide
    np.testing.assert_array_equal(got, L2Normalizer().transform(T.to(wide).numpy()))


def test_input_is_left_alone(X):
    before = X.copy()
    L2Normalizer().transform(X)
    np.testing.assert_array_equal(X, before)


def test_pandas_output_keeps_names(X):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(12)])
    got = L2Normalizer().set_output(transform="pandas").fit_transform(frame)
    assert list(got.columns) == list(frame.columns)


def test_clone_keeps_parameters():
    assert clone(L2Normalizer(blocks=[3, 4], eps=0.1)).get_params() == {
        "blocks": [3, 4],
        "eps": 0.1,
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_by_row(X, bad):
    X[7, 2] = bad
    with pytest.raises(ValueError, match="row 7"):
        L2Normalizer().transform(X)


def test_other_width_than_at_fit_is_refused(X):
    with pytest.raises(ValueError, match="features"):
        L2Normalizer().fit(X).transform(X[:, :5])
