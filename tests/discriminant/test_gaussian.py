# SPDX-License-Identifier: BSD-3-Clause
"""Gaussian classifiers against scikit-learn's, scipy's densities, numpy, and over any stream."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.naive_bayes import GaussianNB

from skpool.discriminant import (
    GaussianClassifier,
    LinearDiscriminantClassifier,
    _gaussian,
    make_fecam,
)
from skpool.prototypes import NearestClassMeanClassifier
from skpool.statistics import ClassMoments

KINDS = ("per_class", "shared", "diag", "low_rank", "class_task")


def _data(n: int = 120, d: int = 5, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.concatenate(
        [np.repeat(np.arange(classes), 9), rng.integers(0, classes, n - 9 * classes)]
    )
    mixing = rng.normal(size=(classes, d, d))
    X = np.einsum("nd,nde->ne", rng.normal(size=(n, d)), mixing[y])
    return X + 2 * rng.normal(size=(classes, d))[y], y


def _make(covariance: str, **options) -> GaussianClassifier:
    return GaussianClassifier(covariance, **{"shrinkage": 0.1, "rank": 2, **options})


def _relative(scores: np.ndarray) -> np.ndarray:
    """Scores up to what is common to the classes of a sample."""
    return scores - scores.mean(axis=1, keepdims=True)


# Scores.


def test_decisions_equal_quadratic_discriminant_analysis():
    X, y = _data()
    expected = QuadraticDiscriminantAnalysis().fit(X, y)
    clf = GaussianClassifier(shrinkage=0.0, blend=0.0).fit(X, y)
    found = _relative(clf.decision_function(X))
    np.testing.assert_allclose(found, _relative(expected.decision_function(X)), rtol=1e-8)
    np.testing.assert_allclose(clf.predict_proba(X), expected.predict_proba(X), atol=1e-10)


@pytest.mark.parametrize("shrinkage", [0.1, 0.7, 1.0])
def test_decisions_equal_shrunk_quadratic_discriminant_analysis(shrinkage):
    X, y = _data()
    expected = QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage).fit(X, y)
    clf = GaussianClassifier(shrinkage=shrinkage, blend=0.0).fit(X, y)
    found = _relative(clf.decision_function(X))
    np.testing.assert_allclose(found, _relative(expected.decision_function(X)), rtol=1e-8)


@pytest.mark.parametrize("shrinkage", [0.0, 0.2, "oas", "ledoit_wolf"])
@pytest.mark.parametrize("how", [{"blend": 1.0}, {"covariance": "shared"}])
def test_one_covariance_is_linear_discriminant_analysis(shrinkage, how):
    X, y = _data()
    expected = LinearDiscriminantClassifier(shrinkage).fit(X, y)
    clf = GaussianClassifier(shrinkage=shrinkage, **how).fit(X, y)
    np.testing.assert_allclose(
        _relative(clf.class_scores(X)), _relative(expected.class_scores(X)), atol=1e-8
    )
    np.testing.assert_allclose(clf.shrinkage_, expected.shrinkage_)


def test_variances_alone_are_gaussian_naive_bayes():
    X, y = _data()
    expected = GaussianNB(var_smoothing=0.0).fit(X, y)
    clf = GaussianClassifier("diag", shrinkage=0.0, blend=0.0).fit(X, y)
    np.testing.assert_allclose(clf.covariance_, expected.var_, rtol=1e-9)
    np.testing.assert_allclose(
        clf.class_scores(X) - 2.5 * np.log(2 * np.pi), expected.predict_joint_log_proba(X)
    )


def test_identity_covariances_are_nearest_class_means():
    X, y = _data()
    for c in range(3):
        # Rows of every class with exactly the identity as covariance.
        values, vectors = np.linalg.eigh(np.cov(X[y == c].T, bias=True))
        mean = X[y == c].mean(axis=0)
        X[y == c] = (X[y == c] - mean) @ vectors / np.sqrt(values) + mean
    clf = GaussianClassifier(shrinkage=0.0, blend=0.0, priors="uniform").fit(X, y)
    means = NearestClassMeanClassifier("euclidean").fit(X, y)
    np.testing.assert_allclose(clf.class_scores(X), means.class_scores(X), rtol=1e-8, atol=1e-10)


def test_ddof_is_that_of_numpy():
    X, y = _data()
    clf = GaussianClassifier(shrinkage=0.0, blend=0.0, ddof=1).fit(X, y)
    expected = [multivariate_normal(X[y == c].mean(axis=0), np.cov(X[y == c].T)) for c in range(3)]
    found = clf.log_likelihood(X)
    np.testing.assert_allclose(found, np.array([one.logpdf(X) for one in expected]).T, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihoods_are_densities_of_scipy(kind):
    X, y = _data()
    clf = _make(kind).fit(X, y)
    matrices = clf.covariance_
    for c in range(3):
        S = np.diag(matrices[c]) if kind == "diag" else matrices[c]
        S = matrices if kind == "shared" else S
        expected = multivariate_normal(X[y == c].mean(axis=0), S).logpdf(X)
        np.testing.assert_allclose(clf.log_likelihood(X)[:, c], expected, rtol=1e-9)


def test_determinants_can_be_left_out():
    X, y = _data()
    plain = _make("per_class", log_det=False, priors="uniform").fit(X, y)
    np.testing.assert_allclose(plain.class_scores(X), -0.5 * plain.mahalanobis(X))
    logged = _make("per_class", priors="uniform").fit(X, y)
    apart = 2 * (plain.class_scores(X) - logged.class_scores(X))
    expected = np.linalg.slogdet(logged.covariance_)[1]
    np.testing.assert_allclose(apart, np.tile(expected, (len(X), 1)), rtol=1e-9)


def test_given_priors_move_the_scores_and_nothing_else():
    X, y = _data()
    moved = _make("per_class", priors=[0.2, 0.5, 0.3]).fit(X, y).class_scores(X)
    plain = _make("per_class", priors="uniform").fit(X, y).class_scores(X)
    expected = np.tile(np.log([0.2, 0.5, 0.3]), (len(X), 1))
    np.testing.assert_allclose(moved - plain, expected, atol=1e-10)


def test_whole_rank_equals_full_covariances():
    X, y = _data()
    low, full = _make("low_rank", rank=5).fit(X, y), _make("per_class").fit(X, y)
    np.testing.assert_allclose(low.class_scores(X), full.class_scores(X), rtol=1e-9)


def test_invertible_maps_change_nothing_without_shrinkage():
    X, y = _data()
    A = np.random.default_rng(5).normal(size=(5, 5))
    options = {"shrinkage": 0.0, "blend": 0.3}
    plain = GaussianClassifier(**options).fit(X, y)
    mapped = GaussianClassifier(**options).fit(X @ A + 3, y)
    np.testing.assert_allclose(mapped.mahalanobis(X @ A + 3), plain.mahalanobis(X), rtol=1e-7)
    np.testing.assert_allclose(
        _relative(mapped.class_scores(X @ A + 3)), _relative(plain.class_scores(X)), rtol=1e-6
    )


def test_correlations_do_not_see_the_scales_of_features():
    X, y = _data()
    scales = np.logspace(-3, 3, 5)
    options = {"shrinkage": 0.0, "blend": 0.0, "correlation": True}
    plain = GaussianClassifier(**options).fit(X, y)
    scaled = GaussianClassifier(**options).fit(X * scales, y)
    np.testing.assert_allclose(scaled.covariance_, plain.covariance_, atol=1e-12)
    # The same way from a mean is as far.
    away = np.random.default_rng(0).normal(size=(7, 5))
    for c in range(3):
        np.testing.assert_allclose(
            scaled.mahalanobis(away + scaled.means_[c])[:, c],
            plain.mahalanobis(away + plain.means_[c])[:, c],
            rtol=1e-8,
        )


def test_class_and_task_is_the_distance_of_simple_cnaps():
    X, y = _data()
    clf = GaussianClassifier("class_task", log_det=False, priors="uniform", ddof=1).fit(X, y)
    scores = []
    for c in range(3):
        rows = X[y == c]
        share = len(rows) / (len(rows) + 1)
        Q = share * np.cov(rows.T) + (1 - share) * np.cov(X.T) + np.eye(5)
        gap = X - rows.mean(axis=0)
        scores.append(-0.5 * (gap @ np.linalg.inv(Q) * gap).sum(axis=1))
    np.testing.assert_allclose(clf.class_scores(X), np.array(scores).T, rtol=1e-9)


def _fecam(X, y, g1, g2, power):
    """FeCAM by its formulas: Tukey's power, unit length, shrinkage, correlation, distance."""
    Z = X**power
    Z = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    distances = []
    for c in np.unique(y):
        S = np.cov(Z[y == c].T)
        d = len(S)
        off = (S.sum() - np.trace(S)) / (d * d - d)
        S = S + g1 * np.diag(S).mean() * np.eye(d) + g2 * off * (np.ones((d, d)) - np.eye(d))
        s = np.sqrt(np.diag(S))
        gap = Z - Z[y == c].mean(axis=0)
        distances.append((gap @ np.linalg.inv(S / np.outer(s, s)) * gap).sum(axis=1))
    return np.array(distances).T


@pytest.mark.parametrize("nonnegative", [True, False])
def test_fecam_by_its_formulas(nonnegative):
    X, y = _data()
    X = np.abs(X) if nonnegative else X
    clf = make_fecam(nonnegative).fit(X, y)
    g2, power = (1.0, 0.5) if nonnegative else (0.0, 1)
    expected = _fecam(X, y, 1.0, g2, power)
    np.testing.assert_allclose(clf.mahalanobis(X), expected, rtol=1e-8)
    np.testing.assert_array_equal(clf.predict(X), expected.argmin(axis=1))


def test_negative_features_with_a_power_are_refused_and_change_nothing():
    X, y = _data()
    clf = make_fecam().fit(np.abs(X), y)
    before = clf.class_scores(np.abs(X))
    for refused in (lambda: clf.fit(X, y), lambda: clf.predict(X), lambda: clf.partial_fit(X, y)):
        with pytest.raises(ValueError, match=r"power=0\.5 is for features of at least 0"):
            refused()
    np.testing.assert_array_equal(clf.class_scores(np.abs(X)), before)


def test_unit_length_makes_scales_of_rows_irrelevant():
    X, y = _data()
    factors = np.random.default_rng(1).uniform(0.1, 10, (len(X), 1))
    plain = _make("per_class", normalize="l2").fit(X, y)
    scaled = _make("per_class", normalize="l2").fit(X * factors, y)
    np.testing.assert_allclose(scaled.class_scores(X), plain.class_scores(X), rtol=1e-8)


# Few samples.


def test_small_classes_take_the_pooled_covariance():
    X, y = _data()
    X, y = np.vstack([X, X[:1] + 1]), np.append(y, 9)
    clf = GaussianClassifier(blend=0.2).fit(X, y)
    shared = LinearDiscriminantClassifier("oas").fit(X, y)
    np.testing.assert_allclose(clf.covariance_[3], shared.covariance_, rtol=1e-9)
    assert not np.allclose(clf.covariance_[0], shared.covariance_)
    whole = GaussianClassifier(blend=0.2, min_count=1000).fit(X, y)
    np.testing.assert_allclose(
        _relative(whole.class_scores(X)), _relative(shared.class_scores(X)), atol=1e-8
    )


def test_a_singular_class_is_named_and_shrinkage_helps():
    X, y = _data()
    X[y == 1, 4] = 0.0
    with pytest.raises(ValueError, match=r"class 1 is singular; raise shrinkage"):
        GaussianClassifier(shrinkage=0.0, blend=0.0).fit(X, y)
    assert np.isfinite(GaussianClassifier(blend=0.0).fit(X, y).class_scores(X)).all()


def test_fewer_samples_than_features_need_shrinkage():
    X, y = _data(n=30, d=40)
    with pytest.raises(ValueError, match="singular"):
        GaussianClassifier(shrinkage=0.0, blend=0.0, min_count=2).fit(X, y)
    clf = GaussianClassifier(shrinkage=0.3, blend=0.0, min_count=2).fit(X, y)
    expected = QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=0.3).fit(X, y)
    np.testing.assert_allclose(
        _relative(clf.class_scores(X)), _relative(expected.decision_function(X)), rtol=1e-7
    )


def test_constant_features_of_variances_alone_are_floored():
    X, y = _data()
    X[:, 2] = 5.0
    scores = GaussianClassifier("diag", shrinkage=0.0).fit(X, y).class_scores(X)
    assert np.isfinite(scores).all()


# Streams.


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(1, 119), max_size=6, unique=True))
def test_any_order_and_partition_equals_one_fit(kind, seed, cuts):
    X, y = _data()
    stream, order = _make(kind), np.random.default_rng(seed).permutation(len(X))
    for rows in np.split(order, sorted(cuts)):
        stream.partial_fit(X[rows], y[rows])
    whole = _make(kind).fit(X, y)
    np.testing.assert_allclose(stream.class_scores(X), whole.class_scores(X), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_and_merging_equal_a_fit_on_the_rest(kind):
    X, y = _data()
    options = {"normalize": "l2"}
    part = _make(kind, **options).fit(X[:60], y[:60])
    forgotten = _make(kind, **options).fit(X, y).forget(X[60:], y[60:])
    np.testing.assert_allclose(
        forgotten.class_scores(X), part.class_scores(X), rtol=1e-7, atol=1e-7
    )
    assert forgotten.certify(X[:60], y[:60]) < 1e-11
    merged = part.merge(_make(kind, **options).fit(X[60:], y[60:]))
    whole = _make(kind, **options).fit(X, y)
    np.testing.assert_allclose(merged.class_scores(X), whole.class_scores(X), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["per_class", "diag", "low_rank", "class_task"])
def test_a_class_is_forgotten_without_its_rows(kind):
    X, y = _data()
    clf = _make(kind).fit(X, y).forget_class(1)
    rest = _make(kind).fit(X[y != 1], y[y != 1])
    np.testing.assert_allclose(clf.class_scores(X), rest.class_scores(X), rtol=1e-9, atol=1e-10)


def test_a_class_of_one_shared_covariance_needs_its_rows():
    with pytest.raises(ValueError, match="downdate"):
        _make("shared").fit(*_data()).forget_class(1)


def test_ledoit_wolf_is_exact_on_streams():
    X, y = _data()
    stream = GaussianClassifier(shrinkage="ledoit_wolf", blend=0.0)
    for rows in np.array_split(np.arange(len(X)), 7):
        stream.partial_fit(X[rows], y[rows])
    expected = [LedoitWolf().fit(X[y == c]).shrinkage_ for c in range(3)]
    np.testing.assert_allclose(stream.shrinkage_, expected, rtol=1e-9)
    part = GaussianClassifier(shrinkage="ledoit_wolf", blend=0.0).fit(X[:90], y[:90])
    stream.forget(X[90:], y[90:])
    np.testing.assert_allclose(stream.class_scores(X), part.class_scores(X), rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_give_what_rows_give(kind):
    X, y = _data()
    clf = _make(kind).fit_moments(ClassMoments("per_class").update(X, y))
    np.testing.assert_allclose(clf.class_scores(X), _make(kind).fit(X, y).class_scores(X))
    with pytest.raises(ValueError, match="scatter"):
        _make(kind).fit_moments(ClassMoments("none").update(X, y))


@pytest.mark.parametrize("kind", ["per_class", "shared", "low_rank", "class_task"])
def test_affine_equals_learning_mapped_rows(kind):
    X, y = _data()
    rng = np.random.default_rng(1)
    A, b = rng.normal(size=(5, 4)), rng.normal(size=4)
    mapped, Z = _make(kind).fit(X, y).affine(A, b), X @ A + b
    expected = _make(kind).fit(Z, y)
    np.testing.assert_allclose(mapped.class_scores(Z), expected.class_scores(Z), rtol=1e-8)


@pytest.mark.parametrize(
    "how",
    [{"normalize": "l2"}, {"power": 0.5}, {"covariance": "diag"}, {"shrinkage": "ledoit_wolf"}],
)
def test_affine_is_not_there_where_moments_do_not_tell(how):
    clf = GaussianClassifier(**{"shrinkage": 0.1, **how})
    assert not hasattr(clf, "affine")


def test_merging_other_preparations_is_refused():
    X, y = _data()
    clf = _make("per_class").fit(X, y)
    with pytest.raises(ValueError, match="normalize='l2'"):
        clf.merge(_make("per_class", normalize="l2").fit(X, y))


def test_announced_class_scores_nothing_and_is_never_predicted():
    X, y = _data()
    clf = _make("per_class").partial_fit(X, y, classes=[0, 1, 2, 9])
    assert (clf.class_scores(X)[:, 3] == -np.inf).all()
    assert (clf.mahalanobis(X)[:, 3] == np.inf).all()
    assert (clf.log_likelihood(X)[:, 3] == -np.inf).all()
    assert np.isnan(clf.means_[3]).all() and np.isnan(clf.covariance_[3]).all()
    assert np.isnan(clf.shrinkage_[3])
    assert (clf.predict_proba(X)[:, 3] == 0).all()
    with pytest.raises(ValueError, match="label=9"):
        clf.sample(9)


def test_many_scatters_are_announced_by_a_warning(monkeypatch):
    X, y = _data()
    monkeypatch.setattr(_gaussian, "_MANY_BYTES", 8 * 2 * 5**2)
    with pytest.warns(UserWarning, match=r"3 classes.*'low_rank'.*'diag'"):
        clf = GaussianClassifier().fit(X, y)
    # Nothing grows here, and variances are few.
    clf.partial_fit(X, y)
    GaussianClassifier("diag", shrinkage=0.1).fit(X, y)


# Densities.


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_moments_of_the_class(kind):
    X, y = _data()
    clf = _make(kind).fit(X, y)
    drawn = clf.sample(2, 40_000, random_state=0)
    np.testing.assert_allclose(drawn.mean(axis=0), clf.means_[2], atol=0.1)
    S = clf.covariance_ if kind == "shared" else clf.covariance_[2]
    S = np.diag(S) if kind == "diag" else S
    np.testing.assert_allclose(np.cov(drawn.T), S, atol=0.04 * S.max())
    np.testing.assert_array_equal(drawn, clf.sample(2, 40_000, random_state=0))


def test_correlations_are_no_densities():
    X, y = _data()
    clf = _make("per_class", correlation=True).fit(X, y)
    for refused in (lambda: clf.sample(0), lambda: clf.log_likelihood(X)):
        with pytest.raises(ValueError, match="correlation=False"):
            refused()


# Types of rows, bad parameters.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_single_precision_is_near_double(kind, offset):
    X, y = _data()
    X32 = (X + offset).astype(np.float32)
    single, double = _make(kind).fit(X32, y), _make(kind).fit(X32.astype(np.float64), y)
    found, expected = single.mahalanobis(X32), double.mahalanobis(X32.astype(np.float64))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_blocks_of_rows_change_nothing():
    from sklearn import config_context

    X, y = _data()
    clf = make_fecam(False).fit(X, y)
    whole = clf.class_scores(X)
    with config_context(working_memory=0):
        np.testing.assert_allclose(clf.class_scores(X), whole, rtol=1e-12)
        again = make_fecam(False).fit(torch.from_numpy(X), y)
    np.testing.assert_allclose(again.class_scores(torch.from_numpy(X)), whole, rtol=1e-8)


@pytest.mark.parametrize("shrinkage", ["oas", "ledoit_wolf", ("additive", 1.0, 1.0)])
def test_variances_alone_need_a_number(shrinkage):
    with pytest.raises(ValueError, match="give a number"):
        GaussianClassifier("diag", shrinkage=shrinkage).fit(*_data())


@pytest.mark.parametrize(
    "shrinkage", [("additive", 1.0), ("additive", -1.0, 0.0), ("more", 1.0, 1.0), ()]
)
def test_bad_additive_shrinkage_is_refused(shrinkage):
    with pytest.raises(ValueError, match="additive"):
        GaussianClassifier(shrinkage=shrinkage).fit(*_data())


def test_rows_of_one_point_per_class_are_refused_in_fit_and_waited_for_in_a_stream():
    with pytest.raises(ValueError, match="no covariance"):
        GaussianClassifier().fit(np.eye(2), [0, 1])
    clf = GaussianClassifier().partial_fit(np.eye(2), [0, 1])
    clf.partial_fit(-np.eye(2), [0, 1])
    assert clf.predict([[1.0, 0.0]]).shape == (1,)


def test_forgetting_everything_leaves_nothing():
    X, y = _data()
    clf = _make("per_class").fit(X, y).forget(X, y)
    assert clf.classes_.size == 0
    np.testing.assert_allclose(
        clf.partial_fit(X, y).class_scores(X), _make("per_class").fit(X, y).class_scores(X)
    )
