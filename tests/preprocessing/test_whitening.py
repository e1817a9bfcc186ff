# SPDX-License-Identifier: BSD-3-Clause
"""Whitening against scikit-learn and the definition of a whitening."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.covariance import OAS, LedoitWolf
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from skpool.preprocessing import Whitening
from skpool.preprocessing._memo import forget_decompositions
from skpool.statistics import ClassMoments, RunningMoments

METHODS = ["pca", "zca", "zca_cor", "pca_cor", "cholesky"]


def make(n=200, d=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 3.0


@pytest.fixture
def X():
    return make()


def cov(Z):
    return np.cov(np.asarray(Z, dtype=np.float64).T)


def ill_conditioned(dtype):
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((32, 32)))[0]
    X = (rng.standard_normal((3000, 32)) * np.logspace(0, -3, 32)) @ Q.T
    return (X / X.std() + 1000.0).astype(dtype)


def error_of(Z):
    return np.abs(cov(Z) - np.eye(Z.shape[1])).max()


def rows_few(n=20, d=50):
    return np.random.default_rng(0).standard_normal((n, d)) * np.linspace(1, 2, d) + 1.0


# --- what a whitening is ---------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_training_covariance_becomes_the_identity(method):
    X = np.random.default_rng(0).standard_normal((400, 8)) * np.linspace(1, 5, 8) + 3.0
    Z = Whitening(method=method, eps=0.0).fit_transform(X)
    np.testing.assert_allclose(cov(Z), np.eye(8), atol=1e-13)
    np.testing.assert_allclose(Z.mean(0), 0.0, atol=1e-13)


def test_pca_equals_scikit_learn_up_to_sign(X):
    want = PCA(whiten=True, svd_solver="full").fit_transform(X)
    got = Whitening(eps=0.0).fit_transform(X)
    signs = np.sign((want * got).sum(0))
    np.testing.assert_allclose(got, want * signs, atol=1e-11)


def test_pca_equals_faiss_in_its_float32_up_to_sign(X):
    faiss = pytest.importorskip("faiss")
    rows = X.astype(np.float32)
    matrix = faiss.PCAMatrix(8, 8, -0.5)
    matrix.train(rows)
    got = Whitening(eps=0.0).fit_transform(rows)
    # faiss whitens the scatter, which it divides by nothing.
    want = matrix.apply(rows) * np.sqrt(len(X) - 1)
    np.testing.assert_allclose(got, want * np.sign((want * got).sum(0)), atol=1e-3)


def test_eigenvalues_and_covariance_equal_scikit_learn(X):
    model, want = Whitening(eps=0.0).fit(X), PCA(svd_solver="full").fit(X)
    np.testing.assert_allclose(model.eigenvalues_, want.explained_variance_, rtol=1e-12)
    np.testing.assert_allclose(model.covariance_, np.cov(X.T), rtol=1e-11)
    np.testing.assert_allclose(model.mean_, X.mean(0), rtol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_one_group_per_feature_is_standardisation(X, method):
    got = Whitening(method=method, n_groups=8, eps=0.0).fit_transform(X)
    want = StandardScaler().fit_transform(X) * np.sqrt((len(X) - 1) / len(X))
    np.testing.assert_allclose(got, want, atol=1e-11)


def test_groups_are_whitened_on_their_own(X):
    got = Whitening(method="zca", n_groups=2).fit_transform(X)
    parts = [Whitening(method="zca").fit_transform(p) for p in np.split(X, 2, axis=1)]
    np.testing.assert_allclose(got, np.hstack(parts), atol=1e-12)


def test_zca_matrix_is_symmetric_and_its_root_is_the_covariance(X):
    W = Whitening(method="zca", eps=0.0).fit(X).components_
    np.testing.assert_allclose(W, W.T, atol=1e-12)
    np.testing.assert_allclose(np.linalg.inv(W @ W), np.cov(X.T), atol=1e-10)


def test_zca_cor_is_zca_of_standardised_rows(X):
    scaled = (X - X.mean(0)) / X.std(0, ddof=1)
    for method in ("pca", "zca"):
        got = Whitening(method=f"{method}_cor", eps=1e-3).fit_transform(X)
        want = Whitening(method=method, eps=1e-3).fit_transform(scaled)
        np.testing.assert_allclose(got, want, atol=1e-11)


def test_cholesky_output_depends_on_earlier_features_only(X):
    W = Whitening(method="cholesky").fit(X).components_
    np.testing.assert_array_equal(W, np.tril(W))
    assert (np.diag(W) > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_second_whitening_changes_nothing_but_the_basis(X, method):
    Z = Whitening(method=method, eps=0.0).fit_transform(X)
    again = Whitening(method="zca", eps=0.0).fit_transform(Z)
    np.testing.assert_allclose(again, Z, atol=1e-11)


@pytest.mark.parametrize("method", METHODS[1:])
def test_all_methods_give_the_same_distances(X, method):
    a = Whitening(eps=0.0).fit_transform(X)
    b = Whitening(method=method, eps=0.0).fit_transform(X)
    np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-10)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_power_leaves_eigenvalues_to_one_minus_power(X, power):
    model = Whitening(power=power, eps=0.0).fit(X)
    got = np.diag(cov(model.transform(X)))
    np.testing.assert_allclose(got, model.eigenvalues_ ** (1 - power), rtol=1e-11)


def test_power_zero_is_the_pca_rotation(X):
    W = Whitening(power=0.0).fit(X).components_
    np.testing.assert_allclose(W @ W.T, np.eye(8), atol=1e-13)


def test_eps_is_added_as_a_share_of_the_mean_eigenvalue(X):
    model = Whitening(eps=0.1).fit(X)
    lam = model.eigenvalues_
    got = np.diag(cov(model.transform(X)))
    np.testing.assert_allclose(got, lam / (lam + 0.1 * lam.mean()), rtol=1e-11)


def test_signs_do_not_depend_on_the_solver_or_the_sign_of_the_data(X):
    W = Whitening().fit(X).components_
    assert (W[np.arange(8), np.abs(W).argmax(axis=1)] > 0).all()
    np.testing.assert_allclose(Whitening().fit(-X).components_, W, atol=1e-9)
    np.testing.assert_allclose(Whitening(solver="svd").fit(X).components_, W, atol=1e-9)


# --- how many components ---------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 8])
def test_n_components_keeps_the_leading_ones(X, k):
    got = Whitening(k).fit_transform(X)
    np.testing.assert_allclose(got, Whitening().fit_transform(X)[:, :k], atol=1e-12)


@pytest.mark.parametrize("share", [0.2, 0.8, 0.99, 0.999])
def test_share_of_variance_equals_scikit_learn(X, share):
    want = PCA(share, svd_solver="full").fit(X).n_components_
    assert Whitening(share).fit(X).components_.shape == (want, 8)


def test_share_one_keeps_all(X):
    assert Whitening(1.0).fit(X).components_.shape == (8, 8)


def test_zca_with_n_components_spans_only_these(X):
    Z = Whitening(3, method="zca", eps=0.0).fit_transform(X)
    assert Z.shape == X.shape
    np.testing.assert_allclose(np.linalg.eigvalsh(cov(Z)), [0] * 5 + [1] * 3, atol=1e-11)


def test_more_components_than_the_rank_are_refused():
    with pytest.raises(ValueError, match="n_components=30 is above the rank 19"):
        Whitening(30).fit(rows_few())


@pytest.mark.parametrize("shrinkage", [None, 0.1])
@pytest.mark.parametrize(
    ("wanted", "n", "kept"), [("auto5", 200, 5), ("auto500", 200, 7), ("auto500", 6, 5)]
)
def test_auto_keeps_as_many_as_there_are(wanted, n, kept, shrinkage):
    X = make(n)
    model = Whitening(wanted, shrinkage=shrinkage).fit(X)
    assert model.components_.shape == (kept, 8)
    want = Whitening(kept, shrinkage=shrinkage).fit(X)
    np.testing.assert_array_equal(model.components_, want.components_)


def test_auto_keeps_no_direction_without_variance(X):
    X[:, 3:6] = 1.0
    assert Whitening("auto100").fit(X).components_.shape == (5, 8)


def test_auto_of_one_feature_keeps_it():
    assert Whitening("auto3").fit_transform(make(20, 1)).shape == (20, 1)


# --- degenerate data -------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["cov", "svd", "gram"])
def test_few_rows_keep_the_rank_and_warn(solver):
    X = rows_few()
    with pytest.warns(UserWarning, match=r'rank 19.*shrinkage="oas"') as caught:
        model = Whitening(solver=solver, eps=0.0).fit(X)
    assert [warning.filename for warning in caught] == [__file__]
    Z = model.transform(X)
    np.testing.assert_allclose(cov(Z), np.eye(19), atol=1e-10)
    # On the simplex: every squared distance is 2 (n - 1) here, 2 n with the divisor n.
    squared = ((Z[:, None] - Z[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared[~np.eye(20, dtype=bool)], 2 * 19, rtol=1e-9)


@pytest.mark.parametrize("method", ["pca", "zca", "pca_cor", "zca_cor"])
@pytest.mark.parametrize("solver", ["auto", "svd", "gram"])
def test_solvers_of_few_rows_equal_the_covariance_solver(method, solver):
    X = rows_few()
    with pytest.warns(UserWarning, match="rank 19"):
        a = Whitening(method=method, solver=solver).fit(X)
        b = Whitening(method=method, solver="cov").fit(X)
    np.testing.assert_allclose(a.components_, b.components_, atol=1e-9)
    np.testing.assert_allclose(a.eigenvalues_, b.eigenvalues_, rtol=1e-10)


@pytest.mark.parametrize("shrinkage", ["oas", "ledoit_wolf", 0.2])
@pytest.mark.parametrize("method", METHODS)
def test_shrinkage_keeps_all_features_of_few_rows(method, shrinkage):
    model = Whitening(method=method, shrinkage=shrinkage).fit(rows_few())
    assert model.components_.shape == (50, 50)
    W = model.components_.T
    np.testing.assert_allclose(W.T @ model.covariance_ @ W, np.eye(50), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", ["pca", "pca_cor"])
def test_constant_feature_is_dropped_with_a_warning(X, method, dtype):
    X[:, 3] = 0.1
    with pytest.warns(UserWarning, match="rank 7"):
        model = Whitening(method=method).fit(X.astype(dtype))
    assert model.components_.shape == (7, 8)
    X[:, 3] = 50.0
    Z = model.transform(X.astype(dtype))
    np.testing.assert_allclose(cov(Z), np.eye(7), atol=1e-3)


@pytest.mark.parametrize("method", ["zca", "zca_cor"])
def test_constant_feature_is_zero_where_all_features_stay(X, method):
    X[:, 3] = 0.1
    with pytest.warns(UserWarning, match="rank 7"):
        Z = Whitening(method=method).fit_transform(X)
    np.testing.assert_allclose(Z[:, 3], 0.0, atol=1e-9)


def test_duplicate_feature_adds_no_direction(X):
    with pytest.warns(UserWarning, match="rank 8"):
        model = Whitening().fit(np.hstack([X, X[:, :1]]))
    assert model.components_.shape == (8, 9)


def test_cholesky_without_full_rank_is_refused(X):
    X[:, 3] = 0.1
    with pytest.raises(ValueError, match="full rank 8, and its rank is 7"):
        Whitening(method="cholesky").fit(X)


@pytest.mark.parametrize("rows", [np.ones((5, 3)), np.full((5, 3), 0.1)])
def test_equal_rows_are_refused(rows):
    with pytest.raises(ValueError, match="rows that differ"):
        Whitening().fit(rows)


def test_one_row_is_refused(X):
    with pytest.raises(ValueError, match="n_samples=1 and needs at least 2"):
        Whitening().fit(X[:1])
    with pytest.raises(ValueError, match="n_samples=1"):
        Whitening().partial_fit(X[:1]).transform(X)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", METHODS)
def test_condition_number_1e6_at_an_offset_of_1000(method, dtype):
    X = ill_conditioned(dtype)
    Z = Whitening(method=method, eps=0.0).fit_transform(X)
    assert Z.dtype == dtype
    tolerance = 1e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(cov(Z), np.eye(32), atol=tolerance)


def test_float32_transform_at_an_offset_equals_float64():
    X = ill_conditioned(np.float32)
    model = Whitening(eps=0.0).fit(X)
    want = (X.astype(np.float64) - X.mean(0, dtype=np.float64)) @ model.components_.T
    np.testing.assert_allclose(model.transform(X), want, atol=2e-3)


def test_float32_error_is_a_hundredth_of_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((96, 96)))[0]
    X = (rng.standard_normal((4000, 96)) * np.logspace(0, -3, 96)) @ Q.T
    X = (X / X.std(0).mean() + 1000.0).astype(np.float32)
    peer = min(
        error_of(PCA(whiten=True, svd_solver=solver).fit_transform(X))
        for solver in ("full", "covariance_eigh")
    )
    assert error_of(Whitening(eps=0.0).fit_transform(X)) < peer / 100


def test_many_float32_rows_are_multiplied_in_float32_without_harm():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((260, 260)))[0].astype(np.float32)
    X = rng.standard_normal((66_000, 260), dtype=np.float32)
    X = (X * np.logspace(0, -3, 260, dtype=np.float32)) @ Q.T
    X = X / X.std(0).mean() + np.float32(1000)
    model = Whitening(eps=0.0).fit(X)
    exact = Whitening(eps=0.0).partial_fit(X[:33_000]).partial_fit(X[33_000:])
    # That it was float32: the moments differ, by a rounding that is small beside the variances.
    difference = np.abs(model.covariance_ - exact.covariance_).max()
    assert 0 < difference < 5e-7 * np.diagonal(exact.covariance_).min()
    assert error_of(model.transform(X)) < 2e-3


# --- shrinkage -------------------------------------------------------------------------------


@pytest.mark.parametrize(("shrinkage", "oracle"), [("oas", OAS), ("ledoit_wolf", LedoitWolf)])
def test_shrinkage_equals_scikit_learn(X, shrinkage, oracle):
    model, want = Whitening(shrinkage=shrinkage).fit(X), oracle().fit(X)
    assert model.shrinkage_ == pytest.approx(want.shrinkage_, rel=1e-9)
    np.testing.assert_allclose(model.covariance_, want.covariance_ * 200 / 199, rtol=1e-9)


def test_full_shrinkage_only_centres_and_scales(X):
    got = Whitening(method="zca", shrinkage=1.0, eps=0.0).fit_transform(X)
    want = (X - X.mean(0)) / np.sqrt(X.var(0, ddof=1).mean())
    np.testing.assert_allclose(got, want, atol=1e-12)


# --- learning in parts -----------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 60), max_size=6),
    seed=st.integers(0, 1000),
    method=st.sampled_from(METHODS),
    shrinkage=st.sampled_from([None, "oas", 0.1]),
)
def test_partial_fit_in_any_partition_and_order_equals_fit(cuts, seed, method, shrinkage):
    X = make(60, 5, seed=seed)
    model = Whitening(method=method, shrinkage=shrinkage)
    for part in np.split(np.random.default_rng(seed).permutation(60), sorted(cuts)):
        if len(part):
            model.partial_fit(X[part])
    want = clone(model).fit(X)
    assert model.n_samples_seen_ == 60
    np.testing.assert_allclose(model.covariance_, want.covariance_, atol=1e-11)
    np.testing.assert_allclose(model.components_, want.components_, atol=1e-7)


def test_partial_fit_after_fit_goes_on(X):
    model = Whitening().fit(X[:50]).partial_fit(X[50:])
    np.testing.assert_allclose(model.transform(X), Whitening().fit_transform(X), atol=1e-10)


def test_partial_fit_with_fewer_rows_than_components_waits_for_more(X):
    model = Whitening(5).partial_fit(X[:3])
    model.partial_fit(X[3:])
    np.testing.assert_allclose(model.transform(X), Whitening(5).fit_transform(X), atol=1e-10)


def test_fit_forgets_what_was_before(X):
    model = Whitening().partial_fit(X + 100).fit(X)
    np.testing.assert_array_equal(model.components_, Whitening().fit(X).components_)


def test_forget_equals_never_having_seen(X):
    model = Whitening().fit(X).forget(X[:80])
    np.testing.assert_allclose(model.covariance_, np.cov(X[80:].T), atol=1e-11)
    assert model.n_samples_seen_ == 120


def test_merge_equals_one_fit(X):
    a, b = Whitening().fit(X[:90]), Whitening().fit(X[90:])
    np.testing.assert_allclose(a.merge(b).covariance_, np.cov(X.T), atol=1e-11)
    np.testing.assert_allclose(b.covariance_, np.cov(X[90:].T), atol=1e-11)


def test_ledoit_wolf_learns_in_parts_and_forgets(X):
    want = LedoitWolf().fit(X).shrinkage_
    model = Whitening(shrinkage="ledoit_wolf").partial_fit(X[:70]).partial_fit(X[70:])
    assert model.shrinkage_ == pytest.approx(want, rel=1e-12)
    model.partial_fit(X[:30] + 5.0).forget(X[:30] + 5.0)
    assert model.shrinkage_ == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("options", [{"solver": "svd"}, {"solver": "gram"}])
@pytest.mark.parametrize("verb", ["partial_fit", "forget", "merge", "fit_moments"])
def test_what_needs_all_rows_at_once_has_no_incremental_verbs(X, options, verb):
    model = Whitening(**options).fit(X)
    assert not hasattr(model, verb)
    with pytest.raises(AttributeError, match=verb):
        getattr(model, verb)


def test_forgetting_everything_leaves_nothing_to_transform_with(X):
    model = Whitening().fit(X).forget(X)
    assert model.n_samples_seen_ == 0
    with pytest.raises(ValueError, match="n_samples=0"):
        model.transform(X)


def test_moments_teach_as_rows_do(X):
    y = np.arange(200) % 3
    want = Whitening(shrinkage="oas").fit(X)
    for moments in (
        RunningMoments().update(X),
        ClassMoments("shared").update(X, y),
        ClassMoments("per_class").update(X, y.astype(str)),
    ):
        model = Whitening(shrinkage="oas").fit_moments(moments)
        assert model.n_samples_seen_ == 200
        np.testing.assert_allclose(model.covariance_, want.covariance_, rtol=1e-10)
        np.testing.assert_allclose(model.transform(X), want.transform(X), atol=1e-9)


def test_moments_are_not_changed_by_learning_on(X):
    moments = RunningMoments().update(X[:100])
    model = Whitening().fit_moments(moments).partial_fit(X[100:])
    assert moments.n_samples == 100
    np.testing.assert_allclose(model.covariance_, np.cov(X.T), rtol=1e-10)


@pytest.mark.parametrize(
    ("moments", "error"),
    [
        (RunningMoments("diag").update(make(20)), ValueError),
        (ClassMoments("none").update(make(20), np.zeros(20, int)), ValueError),
        (RunningMoments(), ValueError),
        (RunningMoments().update(make(20)[:1]), ValueError),
        (make(20), TypeError),
    ],
)
def test_moments_without_a_covariance_are_refused(X, moments, error):
    model = Whitening().fit(X)
    before = pickle.dumps(model)
    with pytest.raises(error):
        model.fit_moments(moments)
    assert pickle.dumps(model) == before


# --- one decomposition, many maps ------------------------------------------------------------


@pytest.fixture
def decompositions(monkeypatch):
    """A list that grows by the size of every matrix that is decomposed."""
    forget_decompositions()
    sizes, eigh, svd = [], torch.linalg.eigh, np.linalg.svd
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: (sizes.append(len(A)), eigh(A))[1])
    monkeypatch.setattr(
        np.linalg, "svd", lambda A, *a, **k: (sizes.append(len(A)), svd(A, *a, **k))[1]
    )
    return sizes


CHANGES = [
    {"n_components": 3},
    {"n_components": 0.9},
    {"n_components": 1.0},
    {"n_components": "auto4"},
    {"power": 0.5},
    {"eps": 0.1},
    {"method": "zca"},
    {"method": "cholesky"},
    {"center": False},
    {"l2": True},
    {"shrinkage": 0.3},
    {"shrinkage": "oas"},
    {"solver": "cov"},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_parameters_set_after_fit_are_followed_without_decomposing(X, decompositions, change):
    model = Whitening().fit(X)
    assert decompositions == [8]
    got = model.set_params(**change).transform(X)
    assert decompositions == [8]
    np.testing.assert_array_equal(got, Whitening(**change).fit(X).transform(X))


@pytest.mark.parametrize("change", [{"n_groups": 2}, {"method": "pca_cor"}], ids=str)
def test_other_matrices_are_decomposed_after_fit(X, change):
    got = Whitening().fit(X).set_params(**change).transform(X)
    np.testing.assert_array_equal(got, Whitening(**change).fit(X).transform(X))


@pytest.mark.parametrize("solver", ["auto", "svd", "gram"])
def test_sweep_after_a_fit_to_few_rows_needs_them_no_more(decompositions, solver):
    X = rows_few()
    model = Whitening(10, solver=solver).fit(X)
    assert decompositions == [20]
    got = model.set_params(n_components=5, power=0.5).transform(X)
    assert decompositions == [20]
    want = Whitening(5, power=0.5, solver=solver).fit(X).transform(X)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_components": 9}, "rank 8"),
        ({"n_components": 0}, "n_components"),
        ({"n_components": "few"}, "n_components='few'"),
        ({"n_groups": 3}, "does not divide"),
        ({"shrinkage": "ledoit_wolf"}, "must be set before rows are learned; fit again"),
        ({"solver": "gram"}, "needs the rows for these parameters; call fit"),
    ],
    ids=str,
)
def test_parameters_that_cannot_be_followed_after_fit_are_refused(X, change, message):
    model = Whitening().fit(X).set_params(**change)
    with pytest.raises(ValueError, match=message):
        model.transform(X)


def test_ledoit_wolf_is_kept_for_other_numbers_of_components(X):
    model = Whitening(shrinkage="ledoit_wolf").fit(X).set_params(n_components=3)
    want = Whitening(3, shrinkage="ledoit_wolf").fit(X)
    np.testing.assert_array_equal(model.components_, want.components_)


@pytest.mark.parametrize("method", ["pca", "zca", "pca_cor"])
@pytest.mark.parametrize("k", [1, 4, 0.7, "auto3", None])
def test_truncated_equals_a_fit_with_fewer_components(X, decompositions, method, k):
    model = Whitening(6, method=method).fit(X)
    before = pickle.dumps(model)
    other = model.truncated(k)
    assert decompositions == [8]
    want = Whitening(k, method=method).fit(X)
    np.testing.assert_array_equal(other.transform(X), want.transform(X))
    np.testing.assert_array_equal(other.eigenvalues_, want.eigenvalues_)
    assert pickle.dumps(model) == before


def test_one_component_is_not_all_of_the_variance(X):
    model = Whitening(1).fit(X).set_params(n_components=1.0)
    assert model.components_.shape == (8, 8)


def test_truncated_learns_on_by_itself(X):
    model = Whitening().fit(X[:100])
    other = model.truncated(3).partial_fit(X[100:])
    np.testing.assert_allclose(other.covariance_, np.cov(X.T), rtol=1e-10)
    np.testing.assert_allclose(model.covariance_, np.cov(X[:100].T), rtol=1e-10)
    np.testing.assert_array_equal(model.components_, Whitening().fit(X[:100]).components_)


def test_truncated_to_what_there_is_not_is_refused(X):
    model = Whitening().fit(X)
    for k, message in ((9, "rank 8"), (0, "n_components"), ("x", "n_components='x'")):
        with pytest.raises(ValueError, match=message):
            model.truncated(k)
    assert model.n_components is None
    with pytest.raises(NotFittedError):
        Whitening().truncated(2)


# --- tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shrinkage", ["oas", "ledoit_wolf"])
def test_tokens_are_rows(X, shrinkage):
    tokens = X.reshape(40, 5, 8)
    got = Whitening(3, shrinkage=shrinkage).fit_transform(tokens)
    want = Whitening(3, shrinkage=shrinkage).fit_transform(X)
    np.testing.assert_allclose(got, want.reshape(40, 5, 3), atol=1e-12)


# --- nothing half-set ------------------------------------------------------------------------


def bad_rows(X):
    nan = X.copy()
    nan[5, 1] = np.nan
    return [(nan, "row 5"), (X[:, :3], "features"), (X[:0], "0 sample"), (X[0], "1D array")]


@pytest.mark.parametrize("verb", ["partial_fit", "forget"])
def test_refused_call_changes_nothing(X, verb):
    model = Whitening().fit(X)
    before = pickle.dumps(model)
    for bad, message in bad_rows(X):
        with pytest.raises(ValueError, match=message):
            getattr(model, verb)(bad)
    with pytest.raises(ValueError, match="Cannot remove"):
        model.forget(np.vstack([X, X]))
    with pytest.raises(ValueError, match="4 features"):
        model.merge(Whitening().fit(X[:, :4]))
    assert pickle.dumps(model) == before


def test_refused_fit_keeps_the_old_one(X):
    model = Whitening().fit(X)
    before = pickle.dumps(model)
    for bad in (X[:, :4] * np.nan, np.ones((5, 3))):
        with pytest.raises(ValueError):
            model.fit(bad)
    assert pickle.dumps(model) == before


@pytest.mark.parametrize("verb", ["fit", "partial_fit"])
def test_refused_first_call_leaves_it_unfitted(X, verb):
    model = Whitening()
    with pytest.raises(ValueError):
        getattr(model, verb)(X * np.nan)
    assert vars(model) == model.get_params()
    assert not hasattr(model, "components_")
    with pytest.raises(NotFittedError):
        model.transform(X)


# --- maps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_as_affine_equals_transform(X, method, center):
    model = Whitening(method=method, center=center).fit(X)
    A, b = model.as_affine()
    np.testing.assert_allclose(X @ A + b, model.transform(X), atol=1e-11)


def test_without_centring_only_the_mean_stays(X):
    got = Whitening(center=False).fit(X)
    want = Whitening().fit(X)
    np.testing.assert_allclose(got.components_, want.components_)
    np.testing.assert_allclose(
        got.transform(X) - want.transform(X),
        np.broadcast_to(X.mean(0) @ want.components_.T, X.shape),
        atol=1e-11,
    )


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("n_groups", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_inverse_transform_undoes_transform(X, method, n_groups, center):
    model = Whitening(method=method, n_groups=n_groups, center=center, eps=0.01).fit(X)
    np.testing.assert_allclose(model.inverse_transform(model.transform(X)), X, atol=1e-10)


def test_inverse_transform_of_few_components_equals_scikit_learn(X):
    got = Whitening(3).fit(X)
    want = PCA(3, svd_solver="full").fit(X)
    np.testing.assert_allclose(
        got.inverse_transform(got.transform(X)),
        want.inverse_transform(want.transform(X)),
        atol=1e-10,
    )


def test_l2_gives_unit_rows_and_has_no_inverse(X):
    model = Whitening(l2=True).fit(X)
    want = make_pipeline(Whitening(), Normalizer()).fit_transform(X)
    np.testing.assert_allclose(model.transform(X), want, atol=1e-13)
    for call in (model.as_affine, lambda: model.inverse_transform(X)):
        with pytest.raises(ValueError, match="l2=True"):
            call()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensor_equals_array(X, dtype):
    T = torch.from_numpy(X).to(dtype)
    wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    a, b = Whitening().fit(T), Whitening().fit(T.to(wide).numpy())
    np.testing.assert_array_equal(a.components_, b.components_)
    Z = a.transform(T)
    assert isinstance(Z, torch.Tensor)
    assert Z.dtype == wide
    np.testing.assert_array_equal(Z, b.transform(T.to(wide).numpy()))
    back = a.inverse_transform(Z)
    assert isinstance(back, torch.Tensor)
    np.testing.assert_allclose(back, T.to(wide), atol=1e-4)


def test_float16_array_equals_its_float32_cast(X):
    half = X.astype(np.float16)
    model = Whitening().fit(half)
    Z = model.transform(half)
    assert Z.dtype == np.float32
    np.testing.assert_array_equal(Z, model.transform(half.astype(np.float32)))


def test_blocks_of_a_large_transform_agree():
    X = make(10_000, 6)
    model = Whitening().fit(X)
    A, b = model.as_affine()
    np.testing.assert_allclose(model.transform(X), X @ A + b, atol=1e-11)


# --- scikit-learn ----------------------------------------------------------------------------


def test_names_and_pandas_output(X):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    got = Whitening(3).set_output(transform="pandas").fit_transform(frame)
    assert list(got.columns) == ["whitening0", "whitening1", "whitening2"]


def test_pickle_transforms_alike(X):
    model = Whitening().partial_fit(X)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(X), model.transform(X))


def test_clone_is_unfitted_with_the_same_parameters(X):
    model = Whitening(3, method="zca", shrinkage=0.1, power=0.5).fit(X)
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    assert not hasattr(fresh, "components_")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "n_components"),
        ({"n_components": 1.5}, "n_components"),
        ({"method": "ica"}, "method"),
        ({"power": 1.5}, "power"),
        ({"shrinkage": 2.0}, "shrinkage"),
        ({"eps": -1.0}, "eps"),
        ({"n_groups": 3}, "does not divide the 8 features"),
        ({"n_components": 2, "n_groups": 2}, "n_groups=2"),
        ({"n_components": 2, "method": "cholesky"}, "cholesky"),
        ({"power": 0.5, "method": "cholesky"}, "power=0.5"),
        ({"n_components": "auto0"}, "'auto0' is not valid.*auto256"),
        ({"n_components": "500"}, "'500' is not valid"),
        ({"n_components": "auto2", "n_groups": 2}, "n_groups=2"),
        ({"solver": "gram", "shrinkage": 0.1}, "gram"),
        ({"solver": "svd", "shrinkage": 0.1}, "svd"),
        ({"solver": "svd", "method": "cholesky"}, "svd"),
    ],
)
def test_options_that_do_not_fit_are_refused(X, options, message):
    with pytest.raises(ValueError, match=message):
        Whitening(**options).fit(X)


# Far more features than samples, as vectors of second order have.


@pytest.fixture
def wide_rows(monkeypatch) -> np.ndarray:
    monkeypatch.setattr("skpool.preprocessing._whitening._WIDE", 200)
    rng = np.random.default_rng(0)
    return rng.normal(size=(30, 12)) @ rng.normal(size=(12, 300)) + 7.0


def test_wide_rows_are_whitened_as_pca_does(wide_rows):
    X = wide_rows
    ours = Whitening(8, eps=0.0).fit(X)
    theirs = PCA(8, whiten=True, svd_solver="full").fit(X)
    a, b = ours.transform(X), theirs.transform(X)
    np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(ours.eigenvalues_, theirs.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(ours.inverse_transform(a), theirs.inverse_transform(b), rtol=1e-7)


def test_wide_rows_keep_no_covariance_and_say_how_to_have_it(wide_rows):
    X = wide_rows
    whitening = Whitening(8).fit(X)
    assert whitening.moments_.scatter_.shape == (300,)
    assert not hasattr(whitening, "covariance_")
    with pytest.raises(ValueError, match='solver="cov"'):
        whitening.partial_fit(X)
    np.testing.assert_allclose(
        whitening.truncated(3).transform(X), whitening.transform(X)[:, :3], rtol=1e-9
    )


def test_wide_rows_in_parts_keep_their_covariance(wide_rows):
    X = wide_rows
    model = Whitening(8).partial_fit(X[:10]).partial_fit(X[10:])
    want = Whitening(8, solver="cov").fit(X)
    np.testing.assert_allclose(model.transform(X), want.transform(X), atol=1e-8)


def test_wide_rows_that_must_be_shrunk_keep_their_covariance(wide_rows):
    assert Whitening(8, shrinkage=0.1).fit(wide_rows).moments_.scatter == "full"
