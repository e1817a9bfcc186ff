# SPDX-License-Identifier: BSD-3-Clause
"""Random-feature ridge against ridge and kernel ridge on the features, made all at once."""

import pickle

import numpy as np
import pytest
import sklearn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

import skpool
from skpool.linear_model import RandomFeatureRidgeClassifier, RidgeHeadClassifier
from skpool.preprocessing import RandomFeatures
from skpool.statistics import ClassMoments


def _data(n: int = 90, d: int = 5, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, size=n - classes)])
    return rng.normal(size=(n, d)) + 1.5 * rng.normal(size=(classes, d))[y], y


def _xor(n: int, seed: int):
    X = np.random.default_rng(seed).normal(size=(n, 2))
    return X, (X[:, 0] * X[:, 1] > 0).astype(int)


def _features(clf, X):
    return RandomFeatures(
        clf.n_components, activation=clf.activation, bias=clf.bias, random_state=clf.random_state
    ).fit_transform(X)


@pytest.mark.parametrize("activation", ["relu", "erf", "sign", None])
def test_scores_are_ridge_regression_on_random_features(activation):
    X, y = _data()
    clf = RandomFeatureRidgeClassifier(30, activation=activation, alpha=0.2, relative=False)
    Z = _features(clf.fit(X, y), X)
    expected = Ridge(alpha=0.2).fit(Z, np.eye(3)[y])
    np.testing.assert_allclose(clf.class_scores(X), expected.predict(Z), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("parameters", [{}, {"alpha": 0.1}, {"class_weight": "balanced"}])
def test_pipeline_of_its_two_steps_gives_the_same(parameters):
    X, y = _data()
    clf = RandomFeatureRidgeClassifier(40, bias=True, random_state=3, **parameters).fit(X, y)
    steps = RandomFeatures(40, bias=True, random_state=3), RidgeHeadClassifier(**parameters)
    pipeline = make_pipeline(*steps).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), pipeline.predict_proba(X), rtol=1e-8)
    assert clf.alpha_ == pipeline[-1].alpha_


def test_square_orthogonal_projection_is_ridge_of_the_rows(monkeypatch):
    X, y = _data(d=6)
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0] * np.sqrt(6)
    monkeypatch.setattr(
        "skpool.preprocessing._random_features.random_weights",
        lambda seed, **_: iter([(Q, None)]),
    )
    clf = RandomFeatureRidgeClassifier(6, activation=None, alpha=0.5, relative=False).fit(X, y)
    expected = Ridge(alpha=0.5).fit(X, np.eye(3)[y])
    np.testing.assert_allclose(clf.class_scores(X), expected.predict(X), rtol=1e-7, atol=1e-9)


def test_kernel_form_gives_the_same():
    X, y = _data(n=40)
    clf = RandomFeatureRidgeClassifier(300, alpha=0.3, relative=False).fit(X, y)
    Z = _features(clf, X)
    Z -= Z.mean(axis=0)
    Y = np.eye(3)[y]
    dual = KernelRidge(alpha=0.3, kernel="linear").fit(Z, Y - Y.mean(axis=0))
    np.testing.assert_allclose(clf.class_scores(X), dual.predict(Z) + Y.mean(axis=0), atol=1e-7)


@pytest.mark.parametrize("alpha", ["gcv", "loo", 0.1])
def test_few_rows_are_decomposed_by_their_gram_matrix(alpha, monkeypatch):
    X, y = _data(n=40)
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: sizes.append(len(A)) or eigh(A))
    clf = RandomFeatureRidgeClassifier(300, alpha=alpha).fit(X, y)
    assert max(sizes) < 50
    Z = _features(clf, X)
    penalty = clf.alpha_ * ((Z - Z.mean(axis=0)) ** 2).sum() / 300
    expected = Ridge(alpha=penalty, solver="svd").fit(Z, np.eye(3)[y])
    np.testing.assert_allclose(clf.class_scores(X), expected.predict(Z), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n", [40, 20])
@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 2: 0.5}])
def test_leave_one_out_choice_weighs_classes(n, class_weight):
    X, y = _data(n=n)
    factors = len(y) / (3 * np.bincount(y)) if class_weight == "balanced" else [3.0, 1.0, 0.5]
    weights, alphas = np.asarray(factors)[y], [1e-2, 0.3, 10.0]
    options = {"alpha": "loo", "alphas": alphas, "relative": False}
    clf = RandomFeatureRidgeClassifier(30, class_weight=class_weight, **options).fit(X, y)
    given = RandomFeatureRidgeClassifier(30, **options).fit(X, y, weights)
    np.testing.assert_allclose(clf.scores_, given.scores_)
    np.testing.assert_allclose(clf.class_scores(X), given.class_scores(X), atol=1e-8)


def test_many_features_and_no_penalty_interpolate():
    X, y = _data(n=40)
    clf = RandomFeatureRidgeClassifier(400, bias=True, alpha=1e-9).fit(X, y)
    np.testing.assert_allclose(clf.class_scores(X), np.eye(3)[y], atol=1e-4)


@pytest.mark.filterwarnings("ignore:The projections of X")
@pytest.mark.parametrize("activation", ["relu", "sign", None])
@pytest.mark.parametrize("offset", [1e3, 1e6])
@pytest.mark.parametrize("one_by_one", [False, True], ids=["batch", "row by row"])
def test_offsets_cost_float32_rows_no_digits(activation, offset, one_by_one):
    X, y = _data()
    X = (X + offset).astype(np.float32)
    clf = RandomFeatureRidgeClassifier(100, activation=activation, alpha=1e-2)
    wide = clone(clf).fit(X.astype(np.float64), y).class_scores(X.astype(np.float64))
    if one_by_one:
        for row in range(len(X)):
            clf.partial_fit(X[row : row + 1], y[row : row + 1])
        scores = np.concatenate([clf.class_scores(X[row : row + 1]) for row in range(len(X))])
    else:
        scores = clf.fit(X, y).class_scores(X)
    np.testing.assert_allclose(scores, wide, atol=1e-6)


def test_it_learns_what_no_linear_head_can():
    X, y = _xor(400, seed=0)
    Z, t = _xor(400, seed=1)
    wide = RandomFeatureRidgeClassifier(300).fit(X, y).score(Z, t)
    assert wide > 0.9 > RidgeHeadClassifier().fit(X, y).score(Z, t)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(1, 89), max_size=4, unique=True))
def test_any_order_and_partition_equals_one_fit(seed, cuts):
    X, y = _data()
    order = np.random.default_rng(seed).permutation(len(X))
    stream = RandomFeatureRidgeClassifier(30)
    for rows in np.split(order, sorted(cuts)):
        stream.partial_fit(X[rows], y[rows])
    whole = RandomFeatureRidgeClassifier(30).fit(X, y)
    assert stream.alpha_ == whole.alpha_
    np.testing.assert_allclose(stream.class_scores(X), whole.class_scores(X), rtol=1e-7, atol=1e-9)


def test_order_of_classes_does_not_matter():
    X, y = _data(classes=4)
    expected = RandomFeatureRidgeClassifier(30).fit(X, y).class_scores(X)
    for order in ((2, 0, 3, 1), (3, 2, 1, 0)):
        stream = RandomFeatureRidgeClassifier(30)
        for label in order:
            stream.partial_fit(X[y == label], y[y == label])
        np.testing.assert_allclose(stream.class_scores(X), expected, rtol=1e-8, atol=1e-10)


def test_forgetting_and_merging_equal_a_fit_on_the_rest():
    X, y = _data()
    base = RandomFeatureRidgeClassifier(30)
    part = clone(base).fit(X[:50], y[:50])
    forgotten = clone(base).fit(X, y).forget(X[50:], y[50:])
    np.testing.assert_allclose(forgotten.class_scores(X), part.class_scores(X), atol=1e-8)
    merged = part.merge(clone(base).fit(X[50:], y[50:]))
    whole = clone(base).fit(X, y)
    np.testing.assert_allclose(merged.class_scores(X), whole.class_scores(X), atol=1e-9)


@pytest.mark.parametrize("other", [{"random_state": 1}, {"activation": "erf"}, {"bias": True}])
def test_another_projection_is_not_merged(other):
    X, y = _data()
    clf = RandomFeatureRidgeClassifier(30).fit(X, y)
    before = clf.moments_
    with pytest.raises(ValueError, match="one projection"):
        clf.merge(RandomFeatureRidgeClassifier(30, **other).fit(X, y))
    assert clf.moments_ is before


def test_a_stored_classifier_draws_the_same_projection():
    X, y = _data(d=40)
    for random_state in (5, np.random.RandomState(5), None):
        clf = RandomFeatureRidgeClassifier(400, random_state=random_state)
        stored = pickle.dumps(clf.partial_fit(X[:5], y[:5]).projection_)
        assert len(stored) < 2000
        again = pickle.loads(stored)
        np.testing.assert_array_equal(again.transform(X), clf.projection_.transform(X))


def test_blocks_of_features_equal_all_at_once():
    X, y = _data(n=300)
    whole = RandomFeatureRidgeClassifier(1024, alpha=0.1).fit(X, y)
    with sklearn.config_context(working_memory=1):
        blocks = RandomFeatureRidgeClassifier(1024, alpha=0.1).fit(X, y)
        scores = blocks.class_scores(X)
    np.testing.assert_allclose(scores, whole.class_scores(X), rtol=1e-7, atol=1e-9)


def test_no_more_rows_are_projected_at_a_time_than_memory_holds(monkeypatch):
    X, y = _data(n=300)
    sizes, transform = [], RandomFeatures.transform
    monkeypatch.setattr(
        RandomFeatures, "transform", lambda self, X: sizes.append(len(X)) or transform(self, X)
    )
    with sklearn.config_context(working_memory=1):
        RandomFeatureRidgeClassifier(1024, alpha=0.1).fit(X, y).predict(X)
    assert max(sizes) == 2**20 // (8 * 1024) and sum(sizes) == 600


def test_one_decomposition_serves_all_penalties_predictions_and_probabilities(monkeypatch):
    X, y = _data()
    calls, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: calls.append(1) or eigh(A))
    clf = RandomFeatureRidgeClassifier(30).fit(X, y)
    clf.predict_proba(X)
    assert len(clf.scores_) == 17 and len(calls) == 1


def test_scores_of_penalties_are_generalized_cross_validation():
    X, y = _data()
    alphas = [1e-3, 0.1, 10.0]
    clf = RandomFeatureRidgeClassifier(30, alphas=alphas, relative=False).fit(X, y)
    Z = _features(clf, X)
    Z -= Z.mean(axis=0)
    n, Y = len(X), np.eye(3)[y]
    for alpha, score in zip(alphas, clf.scores_, strict=True):
        hat = Z @ np.linalg.solve(Z.T @ Z + alpha * np.eye(30), Z.T) + 1 / n
        gcv = n * ((Y - hat @ Y) ** 2).sum() / (n - np.trace(hat)) ** 2
        assert score == pytest.approx(-gcv, rel=1e-6)


@pytest.mark.parametrize(("n", "weighted"), [(40, False), (25, False), (40, True)])
def test_leave_one_out_choice_equals_refits(n, weighted):
    X, y = _data(n=n)
    weights = np.random.default_rng(1).uniform(0.5, 2, n) if weighted else np.ones(n)
    alphas = [1e-2, 0.3, 10.0]
    clf = RandomFeatureRidgeClassifier(30, alpha="loo", alphas=alphas, relative=False)
    with sklearn.config_context(working_memory=0.002):
        clf.fit(X, y, weights if weighted else None)
    Z = _features(clf, X)
    for alpha, score in zip(alphas, clf.scores_, strict=True):
        hits = []
        for i in range(n):
            rest = np.arange(n) != i
            model = Ridge(alpha=alpha).fit(Z[rest], np.eye(3)[y[rest]], weights[rest])
            hits.append(model.predict(Z[i : i + 1]).argmax() == y[i])
        assert score == pytest.approx(np.average(hits, weights=weights))
    assert clf.alpha_ == max(
        a for a, s in zip(alphas, clf.scores_, strict=True) if s == max(clf.scores_)
    )
    assert not hasattr(clf, "partial_fit")


def test_rows_that_nearly_repeat_mislead_generalized_cross_validation_alone():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(120, 8)), rng.integers(0, 2, 120)
    X[:, 0] += y
    X[110:], y[110:] = X[:10] + 1e-4 * rng.normal(size=(10, 8)), y[:10]
    gcv = RandomFeatureRidgeClassifier(400).fit(X, y)
    loo = RandomFeatureRidgeClassifier(400, alpha="loo").fit(X, y)
    assert gcv.alpha_ < 1e-3 < loo.alpha_


@pytest.mark.parametrize("relative", [True, False])
def test_widths_equal_classifiers_of_those_widths(relative):
    X, y = _data()
    widths, alphas = [5, 20, 60], [1e-3, 1e-1, 10.0]
    clf = RandomFeatureRidgeClassifier(60, widths=widths, alphas=alphas, relative=relative)
    clf.fit(X, y)
    alone = [
        RandomFeatureRidgeClassifier(w, alphas=alphas, relative=relative).fit(X, y) for w in widths
    ]
    best = [one.scores_.max() for one in alone]
    np.testing.assert_allclose(clf.width_scores_, best, rtol=1e-6)
    chosen = alone[int(np.argmax(best))]
    assert clf.n_components_ == chosen.n_components
    np.testing.assert_allclose(clf.class_scores(X), chosen.class_scores(X), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(clf.coef_, chosen.coef_, rtol=1e-5, atol=1e-8)


def test_too_few_features_are_not_chosen():
    X, y = _xor(300, seed=0)
    clf = RandomFeatureRidgeClassifier(200, widths=(2, 200)).fit(X, y)
    assert clf.n_components_ == 200


@pytest.mark.parametrize(
    "wrong", [{"widths": [10, 31]}, {"widths": []}, {"widths": [10], "alpha": 1.0}]
)
def test_widths_that_cannot_be_chosen_are_refused(wrong):
    with pytest.raises(ValueError, match="widths"):
        RandomFeatureRidgeClassifier(30, **wrong).fit(*_data())


def test_moments_of_random_features_give_what_rows_give():
    X, y = _data()
    Z = RandomFeatures(30, random_state=0).fit_transform(X)
    moments = ClassMoments().update(Z, y)
    clf = RandomFeatureRidgeClassifier(30).fit_moments(moments, n_features=5)
    expected = RandomFeatureRidgeClassifier(30).fit(X, y)
    np.testing.assert_allclose(clf.class_scores(X), expected.class_scores(X), atol=1e-9)
    clf.partial_fit(X, y)
    with pytest.raises(ValueError, match="n_features is not known"):
        RandomFeatureRidgeClassifier(30).fit_moments(moments)
    with pytest.raises(ValueError, match="n_components=20"):
        RandomFeatureRidgeClassifier(20).fit_moments(moments, n_features=5)


def test_products_above_the_limit_are_refused_with_their_size():
    X, y = _data()
    with skpool.config_context(max_array_bytes=10**6):
        with pytest.raises(ValueError, match=r"1000 features take 0\.008 GB.*max_array_bytes"):
            RandomFeatureRidgeClassifier(1000).fit(X, y)
        RandomFeatureRidgeClassifier(300).fit(X, y)
        with pytest.raises(ValueError, match="of 3 classes"):
            RandomFeatureRidgeClassifier(300, class_weight="balanced").fit(X, y)


def test_huge_projections_are_warned_of_where_they_matter():
    X, y = _data()
    with pytest.warns(UserWarning, match="median magnitude"):
        RandomFeatureRidgeClassifier(30, bias=True).fit(1e4 * X, y)
    small = RandomFeatureRidgeClassifier(30).fit(X, y)
    large = RandomFeatureRidgeClassifier(30).fit(1e4 * X, y)
    np.testing.assert_allclose(large.class_scores(1e4 * X), small.class_scores(X), atol=1e-7)


def test_random_features_are_not_mapped():
    clf = RandomFeatureRidgeClassifier(30).fit(*_data())
    assert not hasattr(clf, "affine")
    assert clf.certify(*_data()) < 1e-12


def test_variance_is_the_leverage_of_the_random_features():
    X, y = _data()
    clf = RandomFeatureRidgeClassifier(30, alpha=0.2, relative=False).fit(X, y)
    Z = _features(clf, X)
    Z -= Z.mean(axis=0)
    hat = Z @ np.linalg.solve(Z.T @ Z + 0.2 * np.eye(30), Z.T) + 1 / len(X)
    np.testing.assert_allclose(clf.predict_variance(X), np.diag(hat), rtol=1e-6)
