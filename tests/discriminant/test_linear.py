# SPDX-License-Identifier: BSD-3-Clause
"""Linear discriminants against scikit-learn's, against each other, and over any stream."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS, LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from skpool.discriminant import LinearDiscriminantClassifier, make_slda
from skpool.prototypes import NearestClassMeanClassifier
from skpool.statistics import ClassMoments


def _data(n: int = 90, d: int = 6, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, size=n - classes)])
    mixing = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)) @ mixing + 2 * rng.normal(size=(classes, d))[y], y


def _relative(scores: np.ndarray) -> np.ndarray:
    """Scores up to what is common to the classes of a sample."""
    return scores - scores.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.7, 1.0])
def test_decisions_equal_scikit_learn_at_fixed_shrinkage(shrinkage):
    X, y = _data()
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y)
    clf = LinearDiscriminantClassifier(shrinkage).fit(X, y)
    np.testing.assert_allclose(
        _relative(clf.class_scores(X)), _relative(expected.decision_function(X)), atol=1e-9
    )
    np.testing.assert_allclose(clf.predict_proba(X), expected.predict_proba(X), atol=1e-9)


def test_weights_and_offsets_are_the_scores():
    X, y = _data()
    clf = LinearDiscriminantClassifier(0.1).fit(X, y)
    np.testing.assert_allclose(
        _relative(X @ clf.coef_.T + clf.intercept_), _relative(clf.class_scores(X)), rtol=1e-8
    )


def test_given_priors_move_the_scores_and_nothing_else():
    X, y = _data()
    priors = np.array([0.2, 0.5, 0.3])
    moved = LinearDiscriminantClassifier(0.1, priors=priors).fit(X, y).class_scores(X)
    plain = LinearDiscriminantClassifier(0.1, priors="uniform").fit(X, y).class_scores(X)
    np.testing.assert_allclose(moved - plain, np.tile(np.log(priors), (len(X), 1)), atol=1e-10)


def _within(X, y):
    return X - np.array([X[y == c].mean(0) for c in np.unique(y)])[y]


@pytest.mark.parametrize("shrinkage, estimator", [("oas", OAS), ("ledoit_wolf", LedoitWolf)])
def test_named_shrinkage_is_that_of_the_pooled_rows(shrinkage, estimator):
    X, y = _data()
    expected = estimator(assume_centered=True).fit(_within(X, y))
    clf = LinearDiscriminantClassifier(shrinkage).fit(X, y)
    assert clf.shrinkage_ == pytest.approx(expected.shrinkage_, rel=1e-9)
    np.testing.assert_allclose(clf.covariance_, expected.covariance_, rtol=1e-9)


@pytest.mark.parametrize("target", ["unit", "diag"])
def test_targets_by_hand(target):
    X, y = _data()
    C = np.cov(_within(X, y).T, bias=True)
    aim = np.eye(6) if target == "unit" else np.diag(np.diag(C))
    clf = LinearDiscriminantClassifier(0.3, target=target).fit(X, y)
    np.testing.assert_allclose(clf.covariance_, 0.7 * C + 0.3 * aim, rtol=1e-9)
    inverse = np.linalg.inv(0.7 * C + 0.3 * aim)
    forms = [np.einsum("nd,de,ne->n", X - m, inverse, X - m) for m in clf.means_]
    expected = -0.5 * np.array(forms).T + np.log(np.bincount(y) / len(y))
    np.testing.assert_allclose(_relative(clf.class_scores(X)), _relative(expected), rtol=1e-7)


def test_variances_alone_are_naive_bayes_with_one_variance():
    X, y = _data()
    clf = LinearDiscriminantClassifier(0.0, covariance="shared_diag", priors="uniform").fit(X, y)
    variances = (_within(X, y) ** 2).mean(0)
    expected = [-0.5 * ((X - m) ** 2 / variances).sum(1) for m in clf.means_]
    np.testing.assert_allclose(
        _relative(clf.class_scores(X)), _relative(np.array(expected).T), rtol=1e-8
    )


def test_scores_equal_mahalanobis_distances_to_the_means():
    X, y = _data()
    means = NearestClassMeanClassifier("mahalanobis", shrinkage=0.2).fit(X, y)
    clf = LinearDiscriminantClassifier(0.2, priors="uniform").fit(X, y)
    assert (clf.predict(X) == means.predict(X)).all()


def test_whole_shrinkage_is_the_nearest_euclidean_mean():
    X, y = _data()
    clf = LinearDiscriminantClassifier(1.0, priors="uniform").fit(X, y)
    means = NearestClassMeanClassifier("euclidean").fit(X, y)
    np.testing.assert_array_equal(clf.predict(X), means.predict(X))


def test_two_classes_point_where_ridge_regression_points():
    X, y = _data(classes=2)
    n, kappa = len(X), 3.0
    # The unit target with s / (1 - s) * n = kappa on the scatter.
    s = kappa / (n + kappa)
    clf = LinearDiscriminantClassifier(s, target="unit").fit(X, y)
    direction = clf.coef_[1] - clf.coef_[0]
    ridge = Ridge(alpha=kappa).fit(X, y).coef_
    cosine = direction @ ridge / np.linalg.norm(direction) / np.linalg.norm(ridge)
    assert cosine == pytest.approx(1.0, abs=1e-10)


def test_invertible_maps_change_nothing_without_shrinkage():
    X, y = _data()
    A = np.random.default_rng(5).normal(size=(6, 6))
    plain = LinearDiscriminantClassifier(0.0).fit(X, y).class_scores(X)
    mapped = LinearDiscriminantClassifier(0.0).fit(X @ A + 3, y).class_scores(X @ A + 3)
    np.testing.assert_allclose(_relative(mapped), _relative(plain), rtol=1e-6, atol=1e-8)


def test_transform_has_unit_variance_within_and_reproduces_predictions():
    X, y = _data(classes=4)
    clf = LinearDiscriminantClassifier(0.0, priors="uniform").fit(X, y)
    Z = clf.transform(X)
    assert Z.shape == (len(X), 3)
    np.testing.assert_allclose(np.cov(_within(Z, y).T, bias=True), np.eye(3), atol=1e-9)
    nearest = NearestClassMeanClassifier("euclidean").fit(Z, y).predict(Z)
    np.testing.assert_array_equal(nearest, clf.predict(X))
    assert clf.explained_variance_ratio_.sum() == pytest.approx(1.0)


def test_transform_spans_what_scikit_learn_finds():
    X, y = _data(classes=4)
    ours = LinearDiscriminantClassifier(0.0, n_components=2).fit(X, y)
    theirs = LinearDiscriminantAnalysis(solver="eigen", n_components=2).fit(X, y)
    a, b = ours.transform(X), theirs.transform(X)
    correlation = np.abs(np.corrcoef(a.T, b.T)[:2, 2:])
    np.testing.assert_allclose(np.diag(correlation), 1, atol=1e-8)
    np.testing.assert_allclose(
        ours.explained_variance_ratio_ * 1.0, theirs.explained_variance_ratio_[:2], rtol=1e-8
    )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(1, 89), max_size=6, unique=True))
def test_any_order_and_partition_equals_one_fit(seed, cuts):
    X, y = _data()
    order = np.random.default_rng(seed).permutation(len(X))
    stream = LinearDiscriminantClassifier()
    for rows in np.split(order, sorted(cuts)):
        stream.partial_fit(X[rows], y[rows])
    whole = LinearDiscriminantClassifier().fit(X, y)
    np.testing.assert_allclose(stream.class_scores(X), whole.class_scores(X), rtol=1e-9)


def test_row_by_row_equals_fit():
    X, y = _data()
    stream = make_slda(1e-2)
    for row, label in zip(X, y, strict=True):
        stream.partial_fit(row[None], [label])
    np.testing.assert_allclose(
        stream.class_scores(X), make_slda(1e-2).fit(X, y).class_scores(X), rtol=1e-9
    )


def test_forgetting_and_merging_equal_a_fit_on_the_rest():
    X, y = _data()
    part = LinearDiscriminantClassifier(0.1).fit(X[:60], y[:60])
    forgotten = LinearDiscriminantClassifier(0.1).fit(X, y).forget(X[60:], y[60:])
    np.testing.assert_allclose(forgotten.class_scores(X), part.class_scores(X), rtol=1e-8)
    merged = part.merge(LinearDiscriminantClassifier(0.1).fit(X[60:], y[60:]))
    whole = LinearDiscriminantClassifier(0.1).fit(X, y)
    np.testing.assert_allclose(merged.class_scores(X), whole.class_scores(X), rtol=1e-9)


def test_moments_give_what_rows_give():
    X, y = _data()
    moments = ClassMoments("per_class").update(X, y)
    with pytest.raises(ValueError, match="scatter"):
        LinearDiscriminantClassifier(0.1).fit_moments(ClassMoments("none").update(X, y))
    clf = LinearDiscriminantClassifier().fit_moments(moments)
    np.testing.assert_allclose(
        clf.class_scores(X), LinearDiscriminantClassifier().fit(X, y).class_scores(X), rtol=1e-9
    )
    with pytest.raises(TypeError, match="ClassMoments"):
        clf.fit_moments(X)
    with pytest.raises(ValueError, match="no rows"):
        clf.fit_moments(ClassMoments())


def test_affine_equals_learning_mapped_rows():
    X, y = _data()
    rng = np.random.default_rng(1)
    A, b = rng.normal(size=(6, 4)), rng.normal(size=4)
    mapped = LinearDiscriminantClassifier(0.2).fit(X, y).affine(A, b)
    expected = LinearDiscriminantClassifier(0.2).fit(X @ A + b, y)
    Z = X @ A + b
    np.testing.assert_allclose(mapped.class_scores(Z), expected.class_scores(Z), rtol=1e-8)


def test_announced_class_scores_nothing_and_is_never_predicted():
    X, y = _data()
    clf = LinearDiscriminantClassifier().partial_fit(X, y, classes=[0, 1, 2, 9])
    assert clf.classes_.tolist() == [0, 1, 2, 9]
    assert (clf.class_scores(X)[:, 3] == -np.inf).all()
    assert np.isnan(clf.coef_[3]).all()
    assert (clf.predict_proba(X)[:, 3] == 0).all()


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_a_large_mean_costs_no_digits(offset):
    X, y = _data()
    near = LinearDiscriminantClassifier(0.1).fit(X, y)
    far = LinearDiscriminantClassifier(0.1).fit(X + offset, y)
    np.testing.assert_allclose(
        _relative(far.class_scores(X + offset)), _relative(near.class_scores(X)), atol=1e-6
    )


def test_single_precision_with_a_large_mean_is_near_double():
    X, y = _data(d=6)
    X32 = (X + 1000).astype(np.float32)
    clf = LinearDiscriminantClassifier(0.1).fit(X32, y)
    double = LinearDiscriminantClassifier(0.1).fit(X32.astype(np.float64), y)
    assert clf.class_scores(X32).dtype == np.float32
    np.testing.assert_allclose(
        _relative(clf.class_scores(X32)),
        _relative(double.class_scores(X32.astype(np.float64))),
        atol=1e-3,
    )


def test_tensor_gives_tensor_from_transform_and_arrays_from_scores():
    X, y = _data()
    clf = LinearDiscriminantClassifier().fit(torch.from_numpy(X), y)
    assert isinstance(clf.transform(torch.from_numpy(X)), torch.Tensor)
    assert isinstance(clf.class_scores(torch.from_numpy(X)), np.ndarray)


def test_constant_features_are_lifted_by_the_target():
    X, y = _data()
    X[:, 2] = 5.0
    scores = LinearDiscriminantClassifier(0.1).fit(X, y).class_scores(X)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("target", ["unit", "diag"])
@pytest.mark.parametrize("covariance", ["shared", "shared_diag"])
def test_constant_features_take_no_part(target, covariance):
    X, y = _data()
    clf = LinearDiscriminantClassifier(0.1, target=target, covariance=covariance)
    expected = clf.fit(X, y).class_scores(X)
    wide = np.column_stack([X, np.full(len(X), 5.0)])
    found = clf.fit(wide, y).class_scores(wide)
    np.testing.assert_allclose(_relative(found), _relative(expected), rtol=1e-6)


def test_more_features_than_samples():
    X, y = _data(n=20, d=50)
    clf = LinearDiscriminantClassifier(0.3).fit(X, y)
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(X, y)
    np.testing.assert_allclose(
        _relative(clf.class_scores(X)), _relative(expected.decision_function(X)), atol=1e-8
    )


def test_ledoit_wolf_needs_one_fit():
    X, y = _data()
    clf = LinearDiscriminantClassifier("ledoit_wolf").fit(X, y)
    for name in ("partial_fit", "forget", "merge", "affine"):
        assert not hasattr(clf, name)
    with pytest.raises(AttributeError) as refused:
        clf.partial_fit(X, y)
    assert "oas" in str(refused.value.__cause__)
    with pytest.raises(ValueError, match="sample_weight"):
        clf.fit(X, y, np.ones(len(X)))


@pytest.mark.parametrize(
    "how", [{"target": "unit"}, {"target": "diag"}, {"covariance": "shared_diag"}]
)
def test_named_shrinkage_is_refused_where_it_is_not_defined(how):
    with pytest.raises(ValueError, match="give a number"):
        LinearDiscriminantClassifier("oas", **how).fit(*_data())


@pytest.mark.parametrize("priors", [[0.5, 0.5], [0.5, 0.6, 0.2], [-0.1, 0.6, 0.5]])
def test_bad_priors_are_refused(priors):
    with pytest.raises(ValueError, match="priors"):
        LinearDiscriminantClassifier(priors=priors).fit(*_data())


def test_a_class_with_samples_of_one_point_is_refused_in_fit_and_waited_for_in_a_stream():
    with pytest.raises(ValueError, match="no covariance"):
        LinearDiscriminantClassifier().fit(np.eye(2), [0, 1])
    clf = LinearDiscriminantClassifier().partial_fit(np.eye(2), [0, 1])
    assert clf.partial_fit(-np.eye(2), [0, 1]).predict([[1.0, 0.0]]).shape == (1,)


@pytest.mark.parametrize("case", ["few rows", "constant feature"])
def test_no_shrinkage_of_a_singular_covariance_is_refused(case):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 8)), np.arange(60) % 3
    if case == "few rows":
        X, y = X[:10], y[:10]
    else:
        X[:, 2] = 5.0
    with pytest.raises(ValueError, match="is singular, and shrinkage=0 needs its inverse"):
        LinearDiscriminantClassifier(0.0).fit(X, y)
    assert LinearDiscriminantClassifier(1e-3).fit(X, y).score(X, y) > 0.3
