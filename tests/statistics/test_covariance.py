# SPDX-License-Identifier: BSD-3-Clause
"""covariance_from_moments against sklearn.covariance."""

import numpy as np
import pytest
from sklearn.covariance import OAS, EmpiricalCovariance, LedoitWolf, shrunk_covariance

from skpool.statistics import ClassMoments, RunningMoments, covariance_from_moments


@pytest.fixture(params=[(300, 40), (20, 40), (50, 1)])
def X(request):
    n, d = request.param
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d)) * np.linspace(1, 3, d) + 5.0


def labelled(X):
    y = np.arange(len(X)) % 3
    means = np.stack([X[y == c].mean(0) for c in range(3)])
    return y, X - means[y]


def test_no_shrinkage_equals_empirical_covariance(X):
    got = covariance_from_moments(RunningMoments().update(X))
    np.testing.assert_allclose(got.matrix, EmpiricalCovariance().fit(X).covariance_, atol=1e-11)
    assert got.shrinkage == 0
    assert got.n_samples == len(X)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_fixed_shrinkage_equals_scikit_learn(X, shrinkage):
    got = covariance_from_moments(RunningMoments().update(X), shrinkage=shrinkage, ddof=1)
    want = shrunk_covariance(np.atleast_2d(np.cov(X.T)), shrinkage=shrinkage)
    np.testing.assert_allclose(got.matrix, want, atol=1e-11)


def test_oas_equals_scikit_learn(X):
    got = covariance_from_moments(RunningMoments().update(X), shrinkage="oas")
    want = OAS().fit(X)
    np.testing.assert_allclose(got.shrinkage, want.shrinkage_, rtol=1e-10)
    np.testing.assert_allclose(got.matrix, want.covariance_, atol=1e-10)


def test_ledoit_wolf_equals_scikit_learn(X):
    got = covariance_from_moments(RunningMoments().update(X), shrinkage="ledoit_wolf", X=X)
    want = LedoitWolf().fit(X)
    np.testing.assert_allclose(got.shrinkage, want.shrinkage_, rtol=1e-9)
    np.testing.assert_allclose(got.matrix, want.covariance_, atol=1e-10)


@pytest.mark.parametrize("scatter", ["shared", "per_class"])
def test_pooled_shrinkage_equals_scikit_learn_on_centred_rows(X, scatter):
    y, centred = labelled(X)
    moments = ClassMoments(scatter).update(X, y)
    oas = covariance_from_moments(moments, shrinkage="oas")
    wolf = covariance_from_moments(moments, shrinkage="ledoit_wolf", X=X, y=y)
    np.testing.assert_allclose(oas.matrix, OAS(assume_centered=True).fit(centred).covariance_)
    want = LedoitWolf(assume_centered=True).fit(centred)
    np.testing.assert_allclose(wolf.matrix, want.covariance_, atol=1e-10)


def test_merged_moments_give_the_same_shrinkage(X):
    whole = covariance_from_moments(RunningMoments().update(X), shrinkage="oas")
    parts = RunningMoments().update(X[:7]) + RunningMoments().update(X[7:])
    merged = covariance_from_moments(parts, shrinkage="oas")
    np.testing.assert_allclose(merged.shrinkage, whole.shrinkage, rtol=1e-11)


def test_divisor_scales_the_matrix_and_not_the_shrinkage(X):
    moments = RunningMoments().update(X)
    zero = covariance_from_moments(moments, shrinkage="oas")
    one = covariance_from_moments(moments, shrinkage="oas", ddof=1)
    assert one.shrinkage == zero.shrinkage
    np.testing.assert_allclose(one.matrix * (len(X) - 1), zero.matrix * len(X), rtol=1e-12)


@pytest.mark.parametrize("shrinkage", [1e-3, 0.5, 1.0])
def test_any_shrinkage_is_positive_definite_when_rows_are_few(shrinkage):
    X = np.random.default_rng(0).standard_normal((5, 30))
    got = covariance_from_moments(RunningMoments().update(X), shrinkage=shrinkage)
    assert np.linalg.eigvalsh(got.matrix)[0] > 0.9 * shrinkage * X.var(0).mean()


@pytest.mark.parametrize("scatter", ["shared", "per_class", "diag", "shared_diag"])
def test_shared_diag_equals_pooled_variances(scatter):
    X = np.random.default_rng(0).standard_normal((60, 4)) * [1, 2, 3, 4]
    y, centred = labelled(X)
    got = covariance_from_moments(ClassMoments(scatter).update(X, y), "shared_diag", ddof=3)
    np.testing.assert_allclose(got.matrix, (centred**2).sum(0) / (len(X) - 3), rtol=1e-11)
    shrunk = covariance_from_moments(
        ClassMoments(scatter).update(X, y), "shared_diag", ddof=3, shrinkage=0.25
    )
    np.testing.assert_allclose(
        shrunk.matrix, np.diag(shrunk_covariance(np.diag(got.matrix), shrinkage=0.25)), rtol=1e-11
    )


@pytest.mark.parametrize("scatter", ["per_class", "diag"])
def test_diag_equals_the_variances_of_each_class(scatter):
    X = np.random.default_rng(0).standard_normal((60, 4)) * [1, 2, 3, 4]
    y, _ = labelled(X)
    got = covariance_from_moments(ClassMoments(scatter).update(X, y), "diag", ddof=1)
    want = np.stack([X[y == c].var(0, ddof=1) for c in range(3)])
    np.testing.assert_allclose(got.matrix, want, rtol=1e-11)


@pytest.mark.parametrize(("kind", "scatter"), [("shared_diag", "shared_diag"), ("diag", "diag")])
def test_variances_of_constant_features_are_floored(kind, scatter):
    X = np.random.default_rng(0).standard_normal((60, 4))
    X[:, 2] = 7.0
    got = covariance_from_moments(ClassMoments(scatter).update(X, labelled(X)[0]), kind)
    floored = np.atleast_2d(got.matrix)[:, 2]
    assert (floored > 0).all()
    assert (floored < 1e-5).all()


def test_unequal_weights_enter_as_the_effective_number_of_rows():
    X = np.random.default_rng(0).standard_normal((100, 10))
    # Weight 0 for half the rows and 3 for the others is 50 rows, however it is scaled.
    w = np.where(np.arange(100) < 50, 3.0, 0.0)
    got = covariance_from_moments(RunningMoments().update(X, w), shrinkage="oas")
    want = OAS().fit(X[:50])
    assert got.n_samples == pytest.approx(50)
    np.testing.assert_allclose(got.matrix, want.covariance_, rtol=1e-9, atol=1e-12)


def test_single_rows_warn_and_give_zero():
    moments = ClassMoments().update(np.eye(3), [0, 1, 2])
    with pytest.warns(UserWarning, match="covariance is zero"):
        got = covariance_from_moments(moments, shrinkage=0.5)
    assert not got.matrix.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "full"}, "kind='full'"),
        ({"shrinkage": 1.5}, "from 0 to 1"),
        ({"shrinkage": "auto"}, "shrinkage='auto'"),
        ({"shrinkage": "ledoit_wolf"}, "give the rows behind them"),
        ({"shrinkage": "ledoit_wolf", "X": np.ones((4, 3))}, "y is needed"),
        ({"shrinkage": "ledoit_wolf", "X": np.ones((4, 3)), "y": [0, 0, 0, 1]}, "not the rows"),
        ({"kind": "diag"}, 'scatter="diag"'),
        ({"kind": "shared_diag", "shrinkage": "oas"}, "full matrices"),
        ({"ddof": 6}, "ddof=6"),
    ],
)
def test_bad_requests_are_refused(options, message):
    X = np.random.default_rng(0).standard_normal((6, 3))
    moments = ClassMoments().update(X, [0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match=message):
        covariance_from_moments(moments, **options)


def test_empty_moments_are_refused():
    with pytest.raises(ValueError, match="hold no rows"):
        covariance_from_moments(ClassMoments())


def test_full_matrix_from_diagonals_is_refused():
    moments = ClassMoments("diag").update(np.eye(3), [0, 1, 1])
    with pytest.raises(ValueError, match="cannot be computed"):
        covariance_from_moments(moments, "shared")
