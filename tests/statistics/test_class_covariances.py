# SPDX-License-Identifier: BSD-3-Clause
"""Covariances of classes and distances by them, against scikit-learn, scipy and plain numpy."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.covariance import OAS, EmpiricalCovariance, LedoitWolf, shrunk_covariance
from sklearn.decomposition import PCA

from skpool.statistics import (
    ClassMoments,
    class_covariances,
    class_distances,
    class_variances,
    covariance_from_moments,
)
from skpool.statistics._covariance import oas_shrinkage

FULL_KINDS = ("per_class", "class_task", "shared", "low_rank")


def _data(n: int = 120, d: int = 6, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.concatenate(
        [np.repeat(np.arange(classes), 2), rng.integers(0, classes, n - 2 * classes)]
    )
    mixing = rng.normal(size=(classes, d, d))
    X = np.einsum("nd,nde->ne", rng.normal(size=(n, d)), mixing[y])
    return X + 2 * rng.normal(size=(classes, d))[y], y


def _moments(X, y, **options):
    return ClassMoments("per_class", **options).update(X, y)


def _of_class(X, y, c):
    return X[y == c] - X[y == c].mean(axis=0)


def _within(X, y):
    return np.concatenate([_of_class(X, y, c) for c in np.unique(y)])


def _matrices(moments, kind="per_class", **options):
    return [found.matrix for found in class_covariances(moments, kind, **options)]


# From moments to matrices.


def test_without_regularisation_they_are_the_empirical_ones():
    X, y = _data()
    for c, matrix in enumerate(_matrices(_moments(X, y), shrinkage=0.0)):
        np.testing.assert_allclose(matrix, EmpiricalCovariance().fit(X[y == c]).covariance_)


def test_ddof_is_that_of_numpy():
    X, y = _data()
    for c, matrix in enumerate(_matrices(_moments(X, y), ddof=1)):
        np.testing.assert_allclose(matrix, np.cov(X[y == c].T))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_fixed_shrinkage_is_that_of_scikit_learn(share):
    X, y = _data()
    for c, found in enumerate(class_covariances(_moments(X, y), shrinkage=share)):
        expected = shrunk_covariance(np.cov(X[y == c].T, bias=True), shrinkage=share)
        np.testing.assert_allclose(found.matrix, expected, atol=1e-13)
        assert found.shrinkage == share


@pytest.mark.parametrize("name, estimator", [("oas", OAS), ("ledoit_wolf", LedoitWolf)])
def test_named_shrinkage_is_that_of_scikit_learn_per_class(name, estimator):
    X, y = _data()
    found = list(class_covariances(_moments(X, y, fourth_order=True), shrinkage=name))
    for c, one in enumerate(found):
        expected = estimator().fit(X[y == c])
        assert one.shrinkage == pytest.approx(expected.shrinkage_, rel=1e-9)
        np.testing.assert_allclose(one.matrix, expected.covariance_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["oas", "ledoit_wolf"])
def test_merged_moments_give_the_same_shrinkage(name):
    X, y = _data()
    parts = [_moments(X[i::2], y[i::2], fourth_order=True) for i in range(2)]
    whole = _moments(X, y, fourth_order=True)
    for a, b in zip(
        class_covariances(parts[0] + parts[1], shrinkage=name, blend=0.2),
        class_covariances(whole, shrinkage=name, blend=0.2),
        strict=True,
    ):
        assert a.shrinkage == pytest.approx(b.shrinkage, rel=1e-10)


def test_blend_mixes_with_the_pooled_one():
    X, y = _data()
    pooled = np.cov(_within(X, y).T, bias=True)
    for c, matrix in enumerate(_matrices(_moments(X, y), blend=0.3)):
        expected = 0.7 * np.cov(X[y == c].T, bias=True) + 0.3 * pooled
        np.testing.assert_allclose(matrix, expected)


@pytest.mark.parametrize("name", ["oas", "ledoit_wolf"])
def test_whole_blend_shrinks_as_the_pooled_one_does(name):
    X, y = _data()
    estimator = OAS if name == "oas" else LedoitWolf
    expected = estimator(assume_centered=True).fit(_within(X, y))
    moments = _moments(X, y, fourth_order=True)
    found = [*class_covariances(moments, shrinkage=name, blend=1.0)]
    found += class_covariances(moments, "shared", shrinkage=name)
    for one in found:
        assert one.shrinkage == pytest.approx(expected.shrinkage_, rel=1e-9)
        np.testing.assert_allclose(one.matrix, expected.covariance_, rtol=1e-9, atol=1e-12)


def test_rows_behind_a_blend_are_those_whose_mean_varies_as_much():
    # Variances of a mean of 20 rows, mixed with one of 80 that holds them, over many draws.
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(40_000, 80))
    mixed = 0.6 * draws[:, :20].mean(axis=1) + 0.4 * draws.mean(axis=1)
    X = rng.normal(size=(80, 2))
    moments = _moments(X, np.repeat([0, 1, 1, 1], 20))
    first = next(class_covariances(moments, blend=0.4))
    assert 1 / first.n_samples == pytest.approx(mixed.var(), rel=0.03)


def test_additive_shrinkage_by_hand():
    X, y = _data()
    for c, found in enumerate(class_covariances(_moments(X, y), shrinkage=("additive", 2.0, 0.5))):
        C = np.cov(X[y == c].T, bias=True)
        off = C[~np.eye(6, dtype=bool)].mean()
        expected = C + 2.0 * np.diag(C).mean() * np.eye(6) + 0.5 * off * (1 - np.eye(6))
        np.testing.assert_allclose(found.matrix, expected)


def test_class_and_task_by_hand():
    X, y = _data()
    total = np.cov(X.T, bias=True)
    for c, matrix in enumerate(_matrices(_moments(X, y), "class_task", ridge=0.5)):
        n = (y == c).sum()
        own = np.cov(X[y == c].T, bias=True)
        expected = n / (n + 1) * own + total / (n + 1) + 0.5 * np.eye(6)
        np.testing.assert_allclose(matrix, expected)


def test_class_and_task_takes_classes_of_one_row():
    X = np.array([[0.0, 0.0], [2.0, 4.0]])
    for ddof, total in ((0, np.cov(X.T, bias=True)), (1, np.cov(X.T))):
        for matrix in _matrices(_moments(X, [0, 1]), "class_task", ddof=ddof):
            np.testing.assert_allclose(matrix, total / 2 + np.eye(2))


def test_correlations_are_those_of_numpy():
    X, y = _data()
    for c, matrix in enumerate(_matrices(_moments(X, y), correlation=True)):
        np.testing.assert_allclose(matrix, np.corrcoef(X[y == c].T), atol=1e-12)


def test_small_classes_take_the_pooled_one():
    X, y = _data()
    moments = _moments(np.vstack([X, X[:1]]), [*y, 9])
    pooled = covariance_from_moments(moments, "shared", shrinkage="oas")
    *_, single = class_covariances(moments, shrinkage="oas", blend=0.2)
    np.testing.assert_allclose(single.matrix, pooled.matrix)
    fewer = list(class_covariances(moments, min_count=len(X)))
    plain = covariance_from_moments(moments, "shared").matrix
    assert all(np.allclose(found.matrix, plain) for found in fewer)


def test_fewest_rows_are_a_tenth_of_the_features():
    X = np.random.default_rng(0).normal(size=(9, 40))
    few, enough = _matrices(_moments(X, np.repeat([0, 1], [4, 5])), min_count=None, blend=0.0)[:2]
    few_is_own = np.allclose(few, np.cov(X[:4].T, bias=True))
    assert few_is_own and np.allclose(enough, np.cov(X[4:].T, bias=True))
    few, _ = _matrices(_moments(X, np.repeat([0, 1], [3, 6])))
    assert not np.allclose(few, np.cov(X[:3].T, bias=True))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    share=st.floats(1e-3, 1.0),
    blend=st.sampled_from([0.0, 0.4, 1.0]),
    n=st.integers(4, 30),
)
def test_positive_definite_for_every_shrinkage(seed, share, blend, n):
    X = np.random.default_rng(seed).normal(size=(n, 8))
    moments = _moments(X, np.arange(n) % 2)
    for matrix in _matrices(moments, shrinkage=share, blend=blend):
        assert np.linalg.eigvalsh(matrix)[0] > 0


def test_matrices_are_new_and_leave_the_moments_alone():
    X, y = _data()
    moments = _moments(X, y)
    before = moments.to_arrays()
    for options in ({}, {"blend": 1.0}, {"shrinkage": ("additive", 0.0, 0.0)}):
        for matrix in _matrices(moments, **options):
            matrix[:] = np.nan
    after = moments.to_arrays()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_variances_are_those_of_numpy_blended_shrunk_and_floored():
    X, y = _data()
    X[:, 1] = 3.0
    own = np.array([X[y == c].var(axis=0) for c in range(3)])
    mixed = 0.8 * own + 0.2 * (_within(X, y) ** 2).mean(axis=0)
    mixed[:, 1] = 1e-6 * mixed.mean()
    for moments in (_moments(X, y), ClassMoments("diag").update(X, y)):
        np.testing.assert_allclose(class_variances(moments, blend=0.2), mixed)
        shrunk = class_variances(moments, blend=0.2, shrinkage=0.3)
        np.testing.assert_allclose(shrunk, 0.7 * mixed + 0.3 * mixed.mean(axis=1)[:, None])


def test_oas_of_one_feature_shrinks_nothing():
    assert oas_shrinkage(np.array([[2.0]]), 5) == 0.0


@pytest.mark.parametrize(
    "shrinkage", ["textbook", 1.5, -0.1, True, ("additive", 1.0), ("additive", -1.0, 0.0), ("a",)]
)
def test_bad_shrinkage_is_refused(shrinkage):
    with pytest.raises(ValueError, match="shrinkage"):
        list(class_covariances(_moments(*_data()), shrinkage=shrinkage))


def test_what_moments_do_not_hold_is_refused():
    X, y = _data()
    with pytest.raises(ValueError, match='scatter="per_class"'):
        list(class_covariances(ClassMoments("shared").update(X, y)))
    with pytest.raises(ValueError, match="fourth_order"):
        list(class_covariances(_moments(X, y), shrinkage="ledoit_wolf"))
    with pytest.raises(ValueError, match='scatter="diag"'):
        class_variances(ClassMoments("shared").update(X, y))
    with pytest.raises(ValueError, match="full matrices"):
        class_variances(_moments(X, y), shrinkage="oas")
    with pytest.raises(ValueError, match="class 0 with ddof=200"):
        list(class_covariances(_moments(X, y), ddof=200))


# From matrices to distances.


def _oracle(X, means, matrices):
    distances = [
        cdist(X, m[None], "mahalanobis", VI=np.linalg.inv(S))[:, 0] ** 2
        for m, S in zip(means, matrices, strict=True)
    ]
    return np.array(distances).T


@pytest.mark.parametrize("kind", ["per_class", "class_task", "shared"])
@pytest.mark.parametrize("d", [1, 6, 200])
def test_distances_and_determinants_are_those_of_the_matrices(kind, d):
    X, y = _data(n=500, d=d)
    moments = _moments(X, y)
    options = {"shrinkage": 0.1, "blend": 0.2}
    matrices = _matrices(moments, kind, **options) * (3 if kind == "shared" else 1)
    distances = class_distances(moments, kind, **options)
    expected = _oracle(X, moments.means_, matrices)
    np.testing.assert_allclose(distances.squared(torch.from_numpy(X)), expected, rtol=1e-9)
    determinants = np.linalg.slogdet(np.array(matrices))[1]
    np.testing.assert_allclose(distances.log_determinants, determinants, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(distances.matrix(1), matrices[1], rtol=1e-8, atol=1e-10)


def test_distances_by_variances_alone():
    X, y = _data()
    moments = ClassMoments("diag").update(X, y)
    distances = class_distances(moments, "diag", shrinkage=0.1)
    variances = class_variances(moments, shrinkage=0.1)
    expected = [((X - m) ** 2 / v).sum(1) for m, v in zip(moments.means_, variances, strict=True)]
    np.testing.assert_allclose(
        distances.squared(torch.from_numpy(X)), np.array(expected).T, rtol=1e-10
    )
    np.testing.assert_allclose(distances.log_determinants, np.log(variances).sum(1))


def test_low_rank_is_the_gaussian_of_probabilistic_pca():
    X, y = _data(n=300, d=10)
    distances = class_distances(_moments(X, y), "low_rank", rank=4, ddof=1)
    found = distances.squared(torch.from_numpy(X)) + distances.log_determinants
    for c in range(3):
        pca = PCA(4, svd_solver="full").fit(X[y == c])
        np.testing.assert_allclose(distances.matrix(c), pca.get_covariance(), atol=1e-10)
        expected = -2 * pca.score_samples(X) - 10 * np.log(2 * np.pi)
        np.testing.assert_allclose(found[:, c], expected, rtol=1e-9)


@pytest.mark.parametrize("rank", [6, 50])
def test_whole_rank_equals_full_matrices(rank):
    X, y = _data()
    options = {"shrinkage": 0.05, "blend": 0.1}
    full = class_distances(_moments(X, y), "per_class", **options)
    low = class_distances(_moments(X, y), "low_rank", rank=rank, **options)
    rows = torch.from_numpy(X)
    np.testing.assert_allclose(low.squared(rows), full.squared(rows), rtol=1e-9)
    np.testing.assert_allclose(low.log_determinants, full.log_determinants, rtol=1e-9)


@pytest.mark.parametrize("kind", [*FULL_KINDS, "diag"])
def test_blocks_of_rows_and_classes_change_nothing(kind):
    # More rows and classes than one product takes.
    X, y = _data(n=2600, d=20, classes=70)
    moments = _moments(X, y)
    distances = class_distances(moments, kind, shrinkage=0.1, rank=5)
    rows = torch.from_numpy(X)
    found = distances.squared(rows)
    for k in (0, 33, 69):
        S = np.diag(distances.variances[k]) if kind == "diag" else distances.matrix(k)
        expected = _oracle(X, moments.means_[[k]], [S])
        np.testing.assert_allclose(found[:, [k]], expected, rtol=1e-8)


def _conditioned(log_condition: float, d: int = 64):
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    scales = np.logspace(0, -log_condition / 2, d)
    y = np.repeat(np.arange(4), 200)
    X = (rng.normal(size=(len(y), d)) * scales) @ basis + 0.3 * rng.normal(size=(4, d))[y]
    return X.astype(np.float32), y


@pytest.mark.parametrize("log_condition", [0, 2, 4, 6, 8, 10])
@pytest.mark.parametrize("kind", [*FULL_KINDS, "diag"])
def test_single_precision_rows_are_near_double(kind, log_condition):
    X, y = _conditioned(log_condition)
    distances = class_distances(_moments(X.astype(np.float64), y), kind, rank=16)
    rows = torch.from_numpy(X)
    exact = distances.squared(rows.double())
    np.testing.assert_allclose(distances.squared(rows), exact, rtol=1e-5)


def test_float32_products_serve_where_they_are_exact_enough(monkeypatch):
    used = []
    plain = torch.addmm
    monkeypatch.setattr(
        torch, "addmm", lambda a, *o, **k: used.append(a.dtype) or plain(a, *o, **k)
    )
    for log_condition, dtype in ((2, torch.float32), (10, torch.float64)):
        X, y = _conditioned(log_condition)
        class_distances(_moments(X.astype(np.float64), y)).squared(torch.from_numpy(X))
        assert set(used) == {dtype}
        used.clear()


@pytest.mark.parametrize("kind", [*FULL_KINDS, "diag"])
def test_a_large_mean_costs_no_digits(kind):
    X, y = _data()
    near = class_distances(_moments(X, y), kind, rank=3).squared(torch.from_numpy(X))
    far = class_distances(_moments(X + 1e6, y), kind, rank=3).squared(torch.from_numpy(X + 1e6))
    np.testing.assert_allclose(far, near, rtol=1e-6)


@pytest.mark.parametrize("kind", [*FULL_KINDS, "diag"])
def test_coloured_rows_have_the_covariance(kind):
    X, y = _data()
    moments = _moments(X, y)
    distances = class_distances(moments, kind, shrinkage=0.1, rank=3)
    Z = np.random.default_rng(0).normal(size=(9, 6))
    # The distance of a coloured row from the mean is the norm of the row before it.
    rows = torch.from_numpy(distances.colored(2, Z) + moments.means_[2])
    np.testing.assert_allclose(distances.squared(rows)[:, 2], (Z**2).sum(1), rtol=1e-9)


def test_scales_of_features_do_not_make_a_covariance_singular():
    X, y = _data()
    scales = np.logspace(-12, 12, 6)
    plain = class_distances(_moments(X, y)).squared(torch.from_numpy(X))
    scaled = class_distances(_moments(X * scales, y)).squared(torch.from_numpy(X * scales))
    np.testing.assert_allclose(scaled, plain, rtol=1e-7)


@pytest.mark.parametrize("kind", ["per_class", "low_rank"])
def test_a_singular_class_is_named(kind):
    X, y = _data()
    X[y == 1, 4] = X[y == 1, 2]
    with pytest.raises(ValueError, match=r"class 1 is singular; raise shrinkage"):
        class_distances(_moments(X, y), kind, rank=5)
    assert np.isfinite(
        class_distances(_moments(X, y), kind, rank=5, shrinkage=0.1).log_determinants
    ).all()


def test_a_singular_shared_covariance_is_refused():
    X, y = _data()
    X[:, 4] = X[:, 2]
    with pytest.raises(ValueError, match="all classes together is singular"):
        class_distances(_moments(X, y), "shared")


def test_rows_of_one_point_are_refused():
    with pytest.raises(ValueError, match="no covariance"):
        class_distances(_moments(np.eye(2), [0, 1]))


def test_factors_take_little_more_than_half_a_stack_and_no_second_one_on_the_way():
    C, d = 12, 384
    X = np.random.default_rng(0).normal(size=(C * 50, d))
    moments = _moments(X, np.repeat(np.arange(C), 50))
    stack = 8 * C * d * d
    tracemalloc.start()
    distances = class_distances(moments, shrinkage=0.1)
    _, peak = tracemalloc.get_traced_memory()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 0.65 * stack
    assert peak < 0.95 * stack
    assert np.isfinite(distances.log_determinants).all()


# Not "class_task": what it adds to the diagonal has a scale of its own.
@pytest.mark.parametrize("kind", ["per_class", "shared", "low_rank", "diag"])
def test_rows_out_of_the_range_of_float32_are_as_far(kind):
    X, y = _data()
    options = {"rank": 3, "shrinkage": 0.1}
    near = class_distances(_moments(X, y), kind, **options).squared(torch.from_numpy(X))
    far = class_distances(_moments(1e60 * X, y), kind, **options)
    np.testing.assert_allclose(far.squared(torch.from_numpy(1e60 * X)), near, rtol=1e-9)
