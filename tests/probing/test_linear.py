# SPDX-License-Identifier: BSD-3-Clause
"""LinearProbeClassifier beside scikit-learn's logistic regressions, and at its limits."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from skpool.probing import LinearProbeClassifier, linear_probe_path


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:600], y[:600]


def peer(X, y, sample_weight=None, **options):
    model = LogisticRegression(solver="newton-cg", tol=1e-10, max_iter=10000, **options)
    with warnings.catch_warnings():
        # Its line search ends in rounding.
        warnings.simplefilter("ignore")
        return model.fit(X, y, sample_weight)


def assert_same_weights(ours, theirs, rtol=1e-6):
    scale = abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.coef_ / scale, theirs.coef_ / scale, atol=rtol)
    assert ours.coef_.shape == theirs.coef_.shape
    assert ours.intercept_.shape == theirs.intercept_.shape


@pytest.mark.parametrize("C", [1e-4, 1e-2, 0.1])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0, 5: 0.2}])
def test_weights_are_those_of_scikit_learn(digits, C, class_weight):
    X, y = digits
    ours = LinearProbeClassifier(C, class_weight=class_weight, tol=1e-15).fit(X, y)
    theirs = peer(X, y, C=C, class_weight=class_weight)
    assert_same_weights(ours, theirs)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_sample_weights_are_those_of_scikit_learn(digits, fit_intercept, class_weight):
    X, y = digits
    w = np.random.default_rng(0).exponential(size=len(X))
    options = {"C": 0.01, "fit_intercept": fit_intercept, "class_weight": class_weight}
    assert_same_weights(
        LinearProbeClassifier(**options, tol=1e-15).fit(X, y, w), peer(X, y, w, **options)
    )


@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_two_classes_are_one_row_of_weights(C):
    X, y = make_classification(200, 10, flip_y=0.1, random_state=0)
    ours = LinearProbeClassifier(C, tol=1e-16).fit(X + 5, y)
    theirs = peer(X + 5, y, C=C)
    assert_same_weights(ours, theirs)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-5)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-4)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)


def test_default_tolerance_is_no_worse_than_scikit_learns_minimum(digits):
    X, y = digits
    for C in (1e-3, 1.0):
        path = LinearProbeClassifier(C).fit(X, y)
        log_p = -peer(X, y, C=C).predict_log_proba(X)[np.arange(len(y)), y]
        theirs = log_p.mean() + (peer(X, y, C=C).coef_ ** 2).sum() / (2 * C * len(X))
        assert path.objective_path_[0] < theirs * (1 + 1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss"])
def test_choice_and_scores_are_those_of_scikit_learn(digits, scoring, weighted):
    X, y = digits
    Cs, cv = np.logspace(-5, -1, 5), StratifiedKFold(3)
    w = np.random.default_rng(0).exponential(size=len(X)) if weighted else None
    ours = LinearProbeClassifier("cv", Cs=Cs, cv=cv, scoring=scoring, tol=1e-13).fit(X, y, w)
    theirs = LogisticRegressionCV(
        Cs=Cs,
        cv=cv,
        l1_ratios=(0.0,),
        scoring=scoring,
        tol=1e-10,
        max_iter=20000,
        use_legacy_attributes=False,
        solver="newton-cg",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(X, y, w)
    np.testing.assert_allclose(ours.scores_, theirs.scores_[:, 0], atol=1e-6)
    assert ours.C_ == theirs.C_
    assert_same_weights(ours, theirs, rtol=1e-5)


def test_folds_are_those_fitted_one_by_one(digits):
    X, y = digits
    cv = StratifiedKFold(3)
    ours = LinearProbeClassifier("cv", Cs=[1e-4, 1e-2], cv=cv, tol=1e-10).fit(X, y)
    for scores, (train, test) in zip(ours.scores_, cv.split(X, y), strict=True):
        for score, C in zip(scores, ours.Cs_, strict=True):
            alone = LinearProbeClassifier(C, tol=1e-10).fit(X[train], y[train])
            assert score == alone.score(X[test], y[test])


def test_folds_given_as_rows_count_rows_of_no_weight(digits):
    X, y = digits
    w = np.ones(len(X))
    w[::7] = 0
    splits = list(StratifiedKFold(3).split(X, y))
    ours = LinearProbeClassifier("cv", Cs=[1e-4, 1e-2], cv=splits).fit(X, y, w)
    train, test = splits[1]
    alone = LinearProbeClassifier(1e-4).fit(X[train][w[train] > 0], y[train][w[train] > 0])
    kept = test[w[test] > 0]
    assert ours.scores_[1, 0] == pytest.approx(alone.score(X[kept], y[kept]), abs=1e-12)


def test_of_equally_good_candidates_the_smallest_is_chosen():
    X = np.array([[-3.0], [-2.0], [2.0], [3.0]] * 3)
    clf = LinearProbeClassifier("cv", Cs=[10.0, 0.1, 1.0], cv=3).fit(X, X[:, 0] > 0)
    assert (clf.scores_ == 1).all()
    assert clf.C_ == 0.1
    np.testing.assert_array_equal(clf.Cs_, [0.1, 1.0, 10.0])


def test_path_holds_what_single_fits_find(digits):
    X, y = digits
    path = linear_probe_path(X, y, [1e-4, 1e-3, 1e-1], tol=1e-13)
    for C, coef, intercept in zip(path.Cs, path.coef, path.intercept, strict=True):
        alone = LinearProbeClassifier(C, tol=1e-13).fit(X, y)
        np.testing.assert_allclose(coef, alone.coef_, atol=1e-6)
        np.testing.assert_allclose(intercept, alone.intercept_, atol=1e-5)


def test_chosen_weights_are_those_of_the_path(digits):
    X, y = digits
    clf = LinearProbeClassifier("cv", Cs=[1e-5, 1e-3], cv=3).fit(X, y)
    at = clf.Cs_.tolist().index(clf.C_)
    np.testing.assert_array_equal(clf.coef_, clf.coef_path_[at])
    np.testing.assert_array_equal(clf.intercept_, clf.intercept_path_[at])
    assert clf.n_iter_.shape == clf.objective_path_.shape == (2,)


def test_constant_added_to_the_features_leaves_predictions(digits):
    X, y = digits
    plain = LinearProbeClassifier(0.01, tol=1e-13).fit(X, y)
    moved = LinearProbeClassifier(0.01, tol=1e-13).fit(X + 1e4, y)
    np.testing.assert_allclose(moved.coef_, plain.coef_, atol=1e-7)
    np.testing.assert_allclose(moved.predict_proba(X + 1e4), plain.predict_proba(X), atol=1e-6)


def test_strong_penalty_predicts_the_priors():
    X, y = load_iris(return_X_y=True)
    X, y = X[20:], y[20:]
    proba = LinearProbeClassifier(1e-12).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(proba, np.tile(np.bincount(y) / len(y), (len(X), 1)), atol=1e-6)


def test_constant_columns_get_no_weight():
    X, y = load_iris(return_X_y=True)
    wide = np.hstack([X, np.full((len(X), 1), 1e8), np.zeros((len(X), 1))])
    clf = LinearProbeClassifier(tol=1e-12).fit(wide, y)
    np.testing.assert_allclose(clf.coef_[:, 4:], 0, atol=1e-12)
    np.testing.assert_allclose(
        clf.coef_[:, :4], LinearProbeClassifier(tol=1e-12).fit(X, y).coef_, atol=1e-5
    )


def test_columns_that_are_all_constant_predict_the_priors():
    y = np.array([0, 0, 0, 1])
    proba = LinearProbeClassifier().fit(np.ones((4, 3)), y).predict_proba(np.ones((1, 3)))
    np.testing.assert_allclose(proba, [[0.75, 0.25]], atol=1e-6)


@pytest.mark.parametrize("C", [1.0, "cv"])
def test_one_class_is_predicted_always(C):
    with warnings.catch_warnings():
        # Folds of one class are stratified anyway.
        warnings.simplefilter("ignore", UserWarning)
        clf = LinearProbeClassifier(C, Cs=3).fit(np.eye(6), ["a"] * 6)
    assert clf.predict(np.eye(6)).tolist() == ["a"] * 6
    np.testing.assert_array_equal(clf.predict_proba(np.eye(6)), np.ones((6, 1)))


def test_separable_classes_without_penalty_warn():
    X, y = load_iris(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="max_iter=3 steps did not reach tol=1e-06"):
        clf = LinearProbeClassifier(1e12, max_iter=3).fit(X, y > 0)
    assert np.isfinite(clf.coef_).all()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 4000.0])
def test_half_precision_is_its_single_precision_copy(scale):
    X, y = load_iris(return_X_y=True)
    half = (scale * StandardScaler().fit_transform(X)).astype(np.float16)
    C = 1.0 / scale**2
    given, wide = (
        LinearProbeClassifier(C, tol=1e-12).fit(rows, y) for rows in (half, half.astype(np.float32))
    )
    np.testing.assert_allclose(given.coef_ * scale, wide.coef_ * scale, atol=1e-5)


def test_tensors_and_memory_maps_are_arrays(tmp_path, digits):
    X, y = digits
    X = X.astype(np.float32)
    np.save(tmp_path / "X.npy", X)
    plain = LinearProbeClassifier(0.01).fit(X, y)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    for given in (mapped, torch.from_numpy(X)):
        np.testing.assert_array_equal(LinearProbeClassifier(0.01).fit(given, y).coef_, plain.coef_)


def test_pickle_predicts_the_same(digits):
    X, y = digits
    clf = LinearProbeClassifier("cv", Cs=2, cv=3, max_iter=5000).fit(X, y)
    copy = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(copy.predict_proba(X), clf.predict_proba(X))


def test_grid_search_in_two_processes(digits):
    X, y = digits
    search = GridSearchCV(LinearProbeClassifier(), {"C": [1e-4, 1e-2]}, cv=3, n_jobs=2).fit(X, y)
    chosen = LinearProbeClassifier("cv", Cs=[1e-4, 1e-2], cv=3).fit(X, y)
    assert search.best_params_["C"] == chosen.C_
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], chosen.scores_.mean(axis=0), atol=1e-12
    )


def test_failed_fit_leaves_the_estimator(digits):
    X, y = digits
    clf = LinearProbeClassifier(0.01).fit(X, y)
    before = clf.predict(X)
    with pytest.raises(ValueError, match="at least one non-zero"):
        clf.fit(X[:10], y[:10], np.zeros(10))
    np.testing.assert_array_equal(clf.predict(X), before)


@pytest.mark.parametrize("Cs", [[], [0.0, 1.0], [[1.0]], [np.nan]])
def test_candidates_that_are_none_are_refused(Cs):
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match="Cs="):
        LinearProbeClassifier("cv", Cs=Cs).fit(X, y)


def test_path_of_one_class_is_refused():
    with pytest.raises(ValueError, match="linear_probe_path needs two"):
        linear_probe_path(np.eye(3), [1, 1, 1])
