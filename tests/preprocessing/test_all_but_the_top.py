# SPDX-License-Identifier: BSD-3-Clause
"""AllButTheTop against scikit-learn's PCA and the definition of a projection."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

from skpool.preprocessing import AllButTheTop


def make(n=80, d=10, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + np.arange(d)


@pytest.fixture
def X():
    return make()


@pytest.mark.parametrize("n_remove", [1, 3, 9])
def test_equals_what_pca_does_not_explain(X, n_remove):
    pca = PCA(n_remove, svd_solver="full").fit(X)
    new = make(seed=1)
    want = new - pca.inverse_transform(pca.transform(new))
    model = AllButTheTop(n_remove).fit(X)
    np.testing.assert_allclose(model.transform(new), want, atol=1e-10)
    np.testing.assert_allclose(model.explained_variance_, pca.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(
        np.abs(model.components_ @ pca.components_.T), np.eye(n_remove), atol=1e-9
    )
    np.testing.assert_allclose(model.mean_, X.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("n_remove", [1, 3])
def test_nothing_is_left_along_the_removed_directions(X, n_remove):
    model = AllButTheTop(n_remove).fit(X)
    assert model.components_.shape == (n_remove, 10)
    V = model.components_
    np.testing.assert_allclose(V @ V.T, np.eye(n_remove), atol=1e-13)
    np.testing.assert_allclose(model.transform(make(seed=1)) @ V.T, 0.0, atol=1e-12)


def test_training_rows_get_mean_zero(X):
    np.testing.assert_allclose(AllButTheTop(2).fit_transform(X).mean(axis=0), 0.0, atol=1e-12)


def test_removing_none_is_centring(X):
    np.testing.assert_allclose(AllButTheTop(0).fit_transform(X), X - X.mean(axis=0), atol=1e-13)
    equal = np.full((4, 3), 0.1)
    assert not AllButTheTop(0).fit_transform(equal).any()


def test_projection_of_centred_rows_is_idempotent(X):
    X -= X.mean(axis=0)
    model = AllButTheTop(3).fit(X)
    once = model.transform(X)
    np.testing.assert_allclose(model.transform(once), once, atol=1e-12)
    A, _ = model.as_affine()
    np.testing.assert_allclose(A @ A, A, atol=1e-13)
    np.testing.assert_allclose(A, A.T, atol=1e-15)


def test_cosines_of_rows_with_a_common_direction_fall_to_zero():
    rng = np.random.default_rng(0)
    common = rng.normal(size=50)
    strength = 5 * rng.uniform(0.5, 1.5, size=(300, 1))
    X = rng.normal(size=(300, 50)) + strength * common

    def mean_cosine(rows):
        return cosine_similarity(rows)[np.triu_indices(len(rows), 1)].mean()

    assert mean_cosine(X) > 0.9
    assert abs(mean_cosine(AllButTheTop(1).fit_transform(X))) < 0.01
    # Centring alone leaves the direction: pairs agree or disagree along it.
    centered = cosine_similarity(X - X.mean(axis=0))[np.triu_indices(300, 1)]
    left = cosine_similarity(AllButTheTop(1).fit_transform(X))[np.triu_indices(300, 1)]
    assert np.abs(left).mean() < np.abs(centered).mean() / 3


@pytest.mark.parametrize(("d", "n_removed"), [(3, 1), (100, 1), (160, 2), (384, 4)])
def test_auto_is_one_in_a_hundred_features_and_at_least_one(d, n_removed):
    X = np.random.default_rng(0).normal(size=(d + 2, d))
    assert AllButTheTop().fit(X).components_.shape == (n_removed, d)


def test_auto_leaves_something():
    X = np.random.default_rng(0).normal(size=(9, 1))
    np.testing.assert_allclose(AllButTheTop().fit_transform(X), X - X.mean(), atol=1e-14)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95])
def test_share_of_variance_removes_as_many_as_pca_would_keep(X, share):
    want = PCA(share, svd_solver="full").fit(X).n_components_
    assert AllButTheTop(share).fit(X).components_.shape == (want, 10)


def test_signs_do_not_depend_on_the_sign_of_the_data(X):
    a, b = AllButTheTop(4).fit(X), AllButTheTop(4).fit(-X)
    np.testing.assert_allclose(a.components_, b.components_, atol=1e-12)
    largest = np.abs(a.components_).argmax(axis=1)
    assert (a.components_[np.arange(4), largest] > 0).all()


@pytest.mark.parametrize("n_remove", [10, 11, 0.9999999])
def test_as_many_as_the_rank_are_refused(X, n_remove):
    with pytest.raises(ValueError, match="rank 10"):
        AllButTheTop(n_remove).fit(X)


def test_rank_counts_rows_not_features(X):
    with pytest.raises(ValueError, match="rank 5"):
        AllButTheTop(5).fit(X[:6])
    model = AllButTheTop(4).fit(X[:6])
    assert np.linalg.matrix_rank(model.transform(X[:6]), tol=1e-9) == 1


def test_equal_rows_are_refused():
    with pytest.raises(ValueError, match="rows that differ"):
        AllButTheTop().fit(np.full((4, 3), 0.1))


def test_one_row_is_refused(X):
    with pytest.raises(ValueError, match="n_samples=1"):
        AllButTheTop().fit(X[:1])
    with pytest.raises(ValueError, match="n_samples=1"):
        AllButTheTop().partial_fit(X[:1]).transform(X)


def test_too_few_rows_wait_for_more(X):
    model = AllButTheTop(5).partial_fit(X[:3]).partial_fit(X[3:])
    np.testing.assert_allclose(model.transform(X), AllButTheTop(5).fit_transform(X), atol=1e-10)


@pytest.mark.parametrize("n_remove", [-1, 1.5, 0.0, 1.0, "all", None])
def test_other_numbers_are_refused(X, n_remove):
    with pytest.raises(ValueError, match="n_remove"):
        AllButTheTop(n_remove).fit(X)
