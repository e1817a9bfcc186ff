# SPDX-License-Identifier: BSD-3-Clause
"""CenteredL2Normalizer against scikit-learn's scaler and normalizer, and its laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, RobustScaler, StandardScaler

from skpool.preprocessing import CenteredL2Normalizer, L2Normalizer

CENTERS = ["mean", "median"]


def make(n=40, d=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.exponential(size=(n, d)) + np.arange(d)


@pytest.fixture
def X():
    return make()


# --- what it computes ------------------------------------------------------------------------


def test_mean_equals_scikit_learn(X):
    want = make_pipeline(StandardScaler(with_std=False), Normalizer()).fit(X)
    model = CenteredL2Normalizer().fit(X)
    np.testing.assert_allclose(model.transform(X), want.transform(X), atol=1e-13)
    other = make(seed=1)
    np.testing.assert_allclose(model.transform(other), want.transform(other), atol=1e-13)
    np.testing.assert_allclose(model.center_, X.mean(axis=0), rtol=1e-14)


@pytest.mark.parametrize("n", [40, 41])
def test_median_equals_scikit_learn(n):
    X = make(n)
    want = make_pipeline(RobustScaler(with_scaling=False), Normalizer()).fit(X)
    model = CenteredL2Normalizer("median").fit(X)
    np.testing.assert_array_equal(model.center_, np.median(X, axis=0))
    other = make(seed=1)
    np.testing.assert_allclose(model.transform(other), want.transform(other), atol=1e-13)


def test_median_of_tensors_and_tokens_equals_numpy(X):
    tokens = X.reshape(8, 5, 6)
    for given_ in (torch.from_numpy(X), tokens, torch.from_numpy(tokens)):
        center = CenteredL2Normalizer("median").fit(given_).center_
        np.testing.assert_array_equal(center, np.median(X, axis=0))


def test_vector_of_ones_own_is_subtracted(X):
    center = np.linspace(-1, 1, 6)
    got = CenteredL2Normalizer(center).fit_transform(X)
    np.testing.assert_allclose(got, Normalizer().transform(X - center), atol=1e-14)
    np.testing.assert_array_equal(CenteredL2Normalizer(center.tolist()).fit_transform(X), got)


@pytest.mark.parametrize("center", [None, np.zeros(6)])
def test_center_zero_is_l2_normalizer(X, center):
    got = CenteredL2Normalizer(center).fit_transform(X)
    np.testing.assert_array_equal(got, L2Normalizer().transform(X))


@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("pre_l2", [False, True])
def test_rows_have_unit_norm(X, center, pre_l2):
    Z = CenteredL2Normalizer(center, pre_l2=pre_l2).fit_transform(X)
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1.0, rtol=1e-13)


@pytest.mark.parametrize("center", CENTERS)
@settings(deadline=None, max_examples=25)
@given(shift=st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6), seed=st.integers(0, 50))
def test_shift_of_all_data_changes_nothing(center, shift, seed):
    X = make(seed=seed)
    want = CenteredL2Normalizer(center).fit_transform(X)
    got = CenteredL2Normalizer(center).fit_transform(X + np.array(shift))
    np.testing.assert_allclose(got, want, atol=1e-9)


@pytest.mark.parametrize("center", CENTERS)
def test_pre_l2_centres_unit_rows(X, center):
    unit = Normalizer().transform(X)
    want = CenteredL2Normalizer(center).fit(unit)
    model = CenteredL2Normalizer(center, pre_l2=True).fit(X)
    np.testing.assert_allclose(model.center_, want.center_, atol=1e-14)
    np.testing.assert_allclose(model.transform(7 * X), want.transform(unit), atol=1e-12)


def test_row_equal_to_the_centre_becomes_zero(X):
    model = CenteredL2Normalizer(X[3]).fit(X)
    Z = model.transform(X)
    assert not Z[3].any()
    np.testing.assert_allclose(np.linalg.norm(np.delete(Z, 3, axis=0), axis=1), 1.0, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("center", CENTERS)
def test_equal_rows_become_zero(center, dtype):
    X = np.full((7, 3), 0.1, dtype=dtype)
    assert not CenteredL2Normalizer(center).fit_transform(X).any()


def test_float16_rows_whose_norm_exceeds_float16_come_out_right():
    X = np.full((2, 768), 300.0)
    X[1] = -300.0
    got = CenteredL2Normalizer().fit_transform(X.astype(np.float16))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.sign(X) * 768**-0.5, rtol=1e-6)


def test_euclidean_temperature_is_twice_that_of_the_cosine(X):
    Z = CenteredL2Normalizer().fit_transform(X)
    T = 0.3
    euclidean = np.exp(-(euclidean_distances(Z, squared=True)) / T)
    cosine = np.exp(cosine_similarity(X - X.mean(axis=0)) / (T / 2))
    np.testing.assert_allclose(euclidean, cosine * np.exp(-2 / T), rtol=1e-10)


# --- each set by itself ----------------------------------------------------------------------


@pytest.mark.parametrize("center", CENTERS)
def test_transductive_centres_each_set_by_itself(X, center):
    model = CenteredL2Normalizer(center, transductive=True).fit(X)
    for queries in (make(15, seed=3) + 50.0, X):
        want = CenteredL2Normalizer(center).fit_transform(queries)
        np.testing.assert_allclose(model.transform(queries), want, atol=1e-11)


def test_transductive_single_row_becomes_zero(X):
    assert not CenteredL2Normalizer(transductive=True).fit(X).transform(X[:1]).any()


def test_transductive_refuses_tokens(X):
    model = CenteredL2Normalizer(transductive=True).fit(X)
    with pytest.raises(ValueError, match="pool them first"):
        model.transform(X[None])


@pytest.mark.parametrize("center", [None, np.zeros(6)])
def test_transductive_with_a_given_centre_is_refused(X, center):
    with pytest.raises(ValueError, match="transductive=True"):
        CenteredL2Normalizer(center, transductive=True).fit(X)


# --- learning and options --------------------------------------------------------------------


def test_partial_fit_equals_fit(X):
    model = CenteredL2Normalizer()
    for part in np.split(X, [1, 2, 17]):
        model.partial_fit(part)
    np.testing.assert_allclose(model.center_, X.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(
        model.transform(X), CenteredL2Normalizer().fit_transform(X), atol=1e-12
    )


@pytest.mark.parametrize("verb", ["partial_fit", "forget", "merge"])
def test_median_is_not_learned_in_parts(X, verb):
    model = CenteredL2Normalizer("median").fit(X)
    assert not hasattr(model, verb)
    with pytest.raises(AttributeError, match=verb):
        getattr(model, verb)


def test_state_does_not_follow_the_vector_given(X):
    center = np.ones(6)
    model = CenteredL2Normalizer(center).fit(X)
    want = model.transform(X)
    center[:] = 5.0
    np.testing.assert_array_equal(model.transform(X), want)


@pytest.mark.parametrize("center", [np.ones(5), np.ones((1, 6)), np.full(6, np.nan), 3, "mode"])
def test_centre_that_does_not_fit_is_refused(X, center):
    with pytest.raises(ValueError, match="center"):
        CenteredL2Normalizer(center).fit(X)
