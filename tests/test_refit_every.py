# SPDX-License-Identifier: BSD-3-Clause
"""Predictions that lag some rows behind: how often is solved, and what is never waited for."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone

from skpool.discriminant import GaussianClassifier, LinearDiscriminantClassifier
from skpool.linear_model import RandomFeatureRidgeClassifier, RidgeHeadClassifier

CLASSIFIERS = [
    LinearDiscriminantClassifier(0.1, priors="uniform"),
    GaussianClassifier(shrinkage=0.1, priors="uniform"),
    RidgeHeadClassifier(0.1),
    RandomFeatureRidgeClassifier(16, alpha=0.1),
]


@pytest.fixture(params=CLASSIFIERS, ids=lambda clf: type(clf).__name__)
def make(request, monkeypatch):
    """Makes a classifier with a list that grows by an entry whenever it solves."""
    kind, solves = type(request.param), []
    solve = kind._solve

    def counted(self):
        solves.append(len(solves))
        return solve(self)

    monkeypatch.setattr(kind, "_solve", counted)

    def made(refit_every):
        return clone(request.param).set_params(refit_every=refit_every), solves

    return made


def _data(n: int = 60, d: int = 4, classes: int = 3):
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    return rng.normal(size=(n, d)) + 2 * rng.normal(size=(classes, d))[y], y


@pytest.mark.parametrize("every, expected", [(None, 41), (1, 21), (7, 6), (1000, 1)])
def test_a_stream_that_learns_and_predicts_in_turn_solves_once_in_so_many_rows(
    make, every, expected
):
    X, y = _data()
    clf, solves = make(every)
    clf.partial_fit(X[:20], y[:20]).predict(X)
    for i in range(20, 60):
        clf.partial_fit(X[[i]], y[[i]]).predict(X)
    assert len(solves) == expected


def test_predictions_stay_for_so_many_rows_and_are_exact_after_them(make):
    X, y = _data()
    clf, _ = make(5)
    before = clf.fit(X[:40], y[:40]).class_scores(X)
    for rows in (slice(40, 42), slice(42, 45)):
        clf.partial_fit(X[rows], y[rows])
        np.testing.assert_array_equal(clf.class_scores(X), before)
    clf.partial_fit(X[[45]], y[[45]])
    expected = clone(clf).fit(X[:46], y[:46]).class_scores(X)
    np.testing.assert_allclose(clf.class_scores(X), expected, rtol=1e-8)


def test_what_is_learned_never_lags(make):
    X, y = _data()
    clf, _ = make(1000)
    clf.fit(X[:40], y[:40]).partial_fit(X[40:], y[40:])
    again = clone(clf).fit(X, y)
    np.testing.assert_allclose(clf.moments_.means_, again.moments_.means_)
    assert clf.certify(X, y) < 1e-12


def test_a_new_class_is_predicted_at_once(make):
    X, y = _data()
    clf, _ = make(1000)
    clf.partial_fit(X, y, classes=[0, 1, 2, 8]).predict(X)
    rng = np.random.default_rng(1)
    for label in (8, 9):
        new = 30.0 * label + rng.normal(size=(6, 4))
        assert (clf.partial_fit(new, [label] * 6).predict(new) == label).all()


def test_a_batch_of_old_and_new_classes_is_noticed_whole(make):
    X, y = _data()
    clf, _ = make(1000)
    clf.fit(X[:40], y[:40]).partial_fit(X[40:], np.where(y[40:] == 2, 5, y[40:]))
    expected = clone(clf).fit(X, np.r_[y[:40], np.where(y[40:] == 2, 5, y[40:])])
    np.testing.assert_allclose(clf.class_scores(X), expected.class_scores(X), rtol=1e-8)


@pytest.mark.parametrize("verb", ["forget", "merge", "fit", "fit_moments"])
def test_other_changes_are_noticed_at_once(make, verb):
    X, y = _data()
    clf, _ = make(1000)
    clf.fit(X[:30], y[:30]).partial_fit(X[30:50], y[30:50]).predict(X)
    if verb == "forget":
        found, rows = clf.forget(X[40:50], y[40:50]), slice(40)
    elif verb == "merge":
        found, rows = clf.merge(clone(clf).fit(X[50:], y[50:])), slice(60)
    elif verb == "fit":
        found, rows = clf.fit(X[20:], y[20:]), slice(20, 60)
    else:
        found, rows = clf.fit_moments(clone(clf).fit(X[20:], y[20:]).moments_), slice(20, 60)
    expected = clone(clf).fit(X[rows], y[rows]).class_scores(X)
    np.testing.assert_allclose(found.class_scores(X), expected, rtol=1e-8)


def test_a_forgotten_class_is_not_predicted():
    X, y = _data()
    clf = GaussianClassifier(shrinkage=0.1, refit_every=1000).fit(X, y)
    clf.partial_fit(X[:5], y[:5]).forget_class(1)
    assert not (clf.predict(X) == 1).any()


def test_a_call_that_fails_leaves_the_count_of_rows(make):
    X, y = _data()
    clf, solves = make(5)
    clf.fit(X[:40], y[:40]).partial_fit(X[40:44], y[40:44])
    bad = X[44:50].copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        clf.partial_fit(bad, y[44:50])
    clf.partial_fit(X[[44]], y[[44]]).predict(X)
    assert len(solves) == 1
    clf.partial_fit(X[[45]], y[[45]]).predict(X)
    assert len(solves) == 2


def test_a_pickle_lags_as_far_behind(make):
    X, y = _data()
    clf, solves = make(5)
    clf.fit(X[:40], y[:40]).partial_fit(X[40:44], y[40:44])
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.class_scores(X), clf.class_scores(X))
    again.partial_fit(X[44:46], y[44:46]).predict(X)
    assert len(solves) == 2


@pytest.mark.parametrize("covariance", ["shared", "shared_diag"])
def test_scores_that_leave_one_out_know_all_rows(covariance):
    X, y = _data()
    clf = LinearDiscriminantClassifier(0.1, covariance=covariance, refit_every=1000)
    clf.fit(X[:40], y[:40]).partial_fit(X[40:], y[40:])
    expected = clone(clf).fit(X, y).loo_scores(X, y)
    np.testing.assert_allclose(clf.loo_scores(X, y), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", [LinearDiscriminantClassifier, GaussianClassifier])
@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_no_number_of_rows_is_refused(kind, every):
    with pytest.raises(ValueError, match="refit_every"):
        kind(refit_every=every).fit(*_data())
