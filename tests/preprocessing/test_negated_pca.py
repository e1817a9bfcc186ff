# SPDX-License-Identifier: BSD-3-Clause
"""NegatedPCA against scikit-learn's PCA and covariance."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA

from skpool.preprocessing import NegatedPCA


def make(n=100, d=8, seed=0):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return (rng.normal(size=(n, d)) * np.logspace(1, -2, d)) @ Q.T + np.arange(d)


@pytest.fixture
def X():
    return make()


def boundary(X, threshold):
    """First index at which the cumulative share exceeds the threshold, by counting."""
    ratios = PCA(svd_solver="full").fit(X).explained_variance_ratio_
    total = 0.0
    for j, ratio in enumerate(ratios):
        total += ratio
        if total > threshold:
            return j
    return len(ratios) - 1


@pytest.mark.parametrize("threshold", [0.01, 0.5, 0.9, 0.99, 0.99999, 1.0])
@pytest.mark.parametrize("whiten", [False, True])
def test_parts_are_the_columns_of_pca(X, threshold, whiten):
    scores = PCA(whiten=whiten, svd_solver="full").fit_transform(X)
    j = boundary(X, threshold)
    slices = {
        ("high", True): slice(0, j + 1),
        ("high", False): slice(0, j + 1),
        ("low", True): slice(max(j - 1, 0), None),
        ("low", False): slice(j + 1, None),
    }
    for (keep, overlap), columns in slices.items():
        want = scores[:, columns]
        if not want.shape[1]:
            continue
        model = NegatedPCA(threshold, keep=keep, overlap=overlap, whiten=whiten).fit(X)
        got = model.transform(X)
        assert model.boundary_ == j
        signs = np.sign((want * got).sum(axis=0))
        np.testing.assert_allclose(got, want * signs, atol=1e-9)


@pytest.mark.parametrize("overlap", [True, False])
@settings(deadline=None, max_examples=25)
@given(threshold=st.floats(0.01, 0.98), seed=st.integers(0, 50))
def test_low_and_high_cover_all_components(overlap, threshold, seed):
    X = make(seed=seed)
    low = NegatedPCA(threshold, overlap=overlap).fit(X)
    high = NegatedPCA(threshold, keep="high", overlap=overlap).fit(X)
    stacked = np.vstack([high.components_, low.components_])
    assert np.linalg.matrix_rank(stacked) == 8
    shared = 0 if not overlap else min(2, low.boundary_ + 1)
    assert len(stacked) == 8 + shared


@pytest.mark.parametrize("threshold", [0.3, 0.9, 0.999])
def test_squared_norms_of_disjoint_whitened_parts_add_to_the_mahalanobis_distance(X, threshold):
    new = make(seed=1)
    parts = [
        NegatedPCA(threshold, keep=keep, overlap=False, whiten=True).fit(X).transform(new)
        for keep in ("low", "high")
    ]
    got = sum((part**2).sum(axis=1) for part in parts)
    want = EmpiricalCovariance().fit(X).mahalanobis(new) * (len(X) - 1) / len(X)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_disjoint_parts_keep_all_distances_without_whitening(X):
    parts = [NegatedPCA(0.9, keep=keep, overlap=False).fit_transform(X) for keep in ("low", "high")]
    got = sum((part**2).sum(axis=1) for part in parts)
    np.testing.assert_allclose(got, ((X - X.mean(axis=0)) ** 2).sum(axis=1), rtol=1e-12)


def test_anomaly_along_a_direction_of_small_variance_is_kept(X):
    weakest = PCA(svd_solver="full").fit(X).components_[-1]
    odd = X[:5] + 0.5 * weakest

    def distances(keep, rows):
        model = NegatedPCA(0.9, keep=keep, overlap=False, whiten=True).fit(X)
        return (model.transform(rows) ** 2).sum(axis=1)

    assert distances("low", odd).min() > 10 * distances("low", X).max()
    np.testing.assert_allclose(distances("high", odd), distances("high", X[:5]), rtol=1e-6)


def test_threshold_one_ends_with_the_last_component(X):
    low = NegatedPCA(1.0).fit(X)
    assert low.boundary_ == 7
    assert low.components_.shape == (2, 8)
    assert NegatedPCA(1.0, keep="high").fit(X).components_.shape == (8, 8)
    with pytest.raises(ValueError, match="leaves no component"):
        NegatedPCA(1.0, overlap=False).fit(X)


@pytest.mark.parametrize("seed", range(10))
def test_threshold_one_counts_components_without_variance_too(seed):
    X = make(seed=seed)
    double = np.hstack([X, X[:, :3]])
    assert NegatedPCA(1.0).fit(double).boundary_ == 10
    assert NegatedPCA(1.0, keep="high").fit(double).components_.shape == (11, 11)


def test_share_equal_to_the_threshold_does_not_exceed_it():
    X = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    assert NegatedPCA(0.5).fit(X).boundary_ == 1
    assert NegatedPCA(0.499).fit(X).boundary_ == 0


def test_first_component_above_the_threshold_keeps_all(X):
    X[:, 0] *= 1e4
    model = NegatedPCA(0.9).fit(X)
    assert model.boundary_ == 0
    assert model.components_.shape == (8, 8)
    assert NegatedPCA(0.9, overlap=False).fit(X).components_.shape == (7, 8)


def test_whitening_drops_components_without_variance(X):
    double = np.hstack([X, X[:, :3]])
    with pytest.warns(UserWarning, match="rank 8") as caught:
        model = NegatedPCA(0.5, overlap=False, whiten=True).fit(double)
    assert len(caught) == 1
    Z = model.transform(double)
    np.testing.assert_allclose(np.cov(Z.T), np.eye(Z.shape[1]), atol=1e-8)
    assert model.boundary_ + 1 + Z.shape[1] == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = NegatedPCA(0.5, overlap=False).fit(double)
    assert model.boundary_ + 1 + len(kept.components_) == 11


def test_whitening_of_nothing_but_dropped_components_is_refused():
    X = np.outer(np.arange(5.0), np.ones(4))
    with (
        pytest.warns(UserWarning, match="rank 1"),
        pytest.raises(ValueError, match="leaves no component"),
    ):
        NegatedPCA(0.5, overlap=False, whiten=True).fit(X)


def test_explained_variances_are_those_of_the_scores(X):
    model = NegatedPCA(0.9).fit(X)
    np.testing.assert_allclose(
        model.transform(X).var(axis=0, ddof=1), model.explained_variance_, rtol=1e-9
    )


def test_names_are_numbered(X):
    model = NegatedPCA(0.9).fit(X)
    names = list(model.get_feature_names_out())
    assert names == [f"negatedpca{i}" for i in range(len(model.components_))]


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_that_do_not_differ_are_refused(rows):
    with pytest.raises(ValueError, match="n_samples=1" if rows == 1 else "rows that differ"):
        NegatedPCA().fit(np.full((rows, 3), 0.1))


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.1, "0.9"])
def test_threshold_outside_its_interval_is_refused(X, threshold):
    with pytest.raises(ValueError, match="variance_threshold"):
        NegatedPCA(threshold).fit(X)
