# SPDX-License-Identifier: BSD-3-Clause
"""few_shot_score against loops of scikit-learn, and its interval against scipy's."""

import numpy as np
import pytest
import torch
from joblib import parallel_config
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from skpool.model_selection import (
    EpisodeSplit,
    FewShotResult,
    compare_few_shot,
    few_shot_score,
    transductive_accuracy,
)
from skpool.pipeline import make_simpleshot
from skpool.preprocessing import CenteredL2Normalizer, L2Normalizer
from skpool.prototypes import NearestClassMeanClassifier

RNG = np.random.default_rng(0)
Y = np.repeat(["e", "b", "d", "a", "c", "f"], 20)
X = RNG.normal(size=(120, 12)) + 1.3 * np.repeat(RNG.normal(size=(6, 12)), 20, axis=0)
BASE, BASE_Y = RNG.normal(size=(50, 12)) + 1.0, np.arange(50) % 3
CV = EpisodeSplit(4, 2, 6, n_episodes=30)


class Shifted(ClassifierMixin, BaseEstimator):
    """Nearest mean after the queries were moved as a set; `shift` is how far."""

    def __init__(self, shift=1.0):
        self.shift = shift

    def fit(self, X, y):
        self.center_ = X.mean(axis=0)
        self.nearest_ = NearestClassMeanClassifier("euclidean").fit(X, y)
        return self

    def predict(self, X):
        return self.nearest_.predict(X)

    def predict_transductive(self, X):
        return self.predict(X + self.shift * (self.center_ - X.mean(axis=0)))


class BatchShifted(Shifted):
    """The same for many episodes at once."""

    def predict_episodes(self, batch):
        move = batch.Xs.mean(dim=1, keepdim=True) - batch.Xq.mean(dim=1, keepdim=True)
        return batch.with_rows(batch.Xs, batch.Xq + self.shift * move).distances().argmin(dim=-1)


class Counting(TransformerMixin, BaseEstimator):
    """A step that needs a fit, and notes every call."""

    calls = []

    def fit(self, X, y=None):
        self.calls.append(("fit", len(X), None if y is None else len(y)))
        self.mean_ = X.mean(axis=0)
        return self

    def transform(self, X):
        self.calls.append(("transform", len(X)))
        return X - self.mean_


def one_by_one(estimator, X, cv=CV, y=Y, predict="predict"):
    scores = []
    for support, query in cv.split(X, y):
        fitted = clone(estimator).fit(X[support], y[support])
        scores.append(np.mean(getattr(fitted, predict)(X[query]) == y[query]))
    return np.array(scores)


def test_scores_are_those_of_cross_validation():
    found = few_shot_score(KNeighborsClassifier(1), X, Y, CV)
    want = cross_val_score(KNeighborsClassifier(1), X, Y, cv=CV)
    np.testing.assert_allclose(found.scores, want)


def test_interval_is_that_of_student():
    found = few_shot_score(NearestClassMeanClassifier(), X, Y, CV)
    low, high = stats.t.interval(0.95, 29, loc=found.scores.mean(), scale=stats.sem(found.scores))
    assert found.mean - found.ci95 == pytest.approx(low)
    assert found.mean + found.ci95 == pytest.approx(high)
    assert found.n_episodes == 30 and found.seconds > 0
    assert str(found).startswith(f"{100 * found.mean:.2f} +- {100 * found.ci95:.2f} %")


def test_one_episode_has_no_interval():
    found = FewShotResult.from_scores(np.array([0.5]))
    assert found.mean == 0.5 and np.isnan(found.ci95) and np.isnan(found.std)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shot_distribution": (1, 4)},
        {"query_distribution": "dirichlet"},
        {"query_distribution": "all", "shot_distribution": (1, 4)},
    ],
)
@pytest.mark.parametrize("batch_size", [7, 200])
def test_batched_equals_one_by_one(options, batch_size):
    cv = EpisodeSplit(4, 2, 6, n_episodes=30, **options)
    nearest = NearestClassMeanClassifier("euclidean")
    found = few_shot_score(nearest, X, Y, cv, batch_size=batch_size)
    np.testing.assert_allclose(found.scores, one_by_one(nearest, X, cv))


def test_macro_average_is_balanced_accuracy():
    cv = EpisodeSplit(4, 2, 6, n_episodes=20, query_distribution="dirichlet", dirichlet_alpha=0.5)
    found = few_shot_score(KNeighborsClassifier(1), X, Y, cv, average="macro").scores
    for score, (support, query) in zip(found, cv.split(X, Y), strict=True):
        predicted = KNeighborsClassifier(1).fit(X[support], Y[support]).predict(X[query])
        # The classes without a query have no part in either.
        kept = np.isin(predicted, Y[query])
        hits = [np.mean(predicted[Y[query] == c] == c) for c in np.unique(Y[query])]
        assert score == pytest.approx(np.mean(hits))
        if kept.all():
            assert score == pytest.approx(balanced_accuracy_score(Y[query], predicted))


def test_number_of_jobs_changes_nothing():
    with parallel_config(backend="threading"):
        one, two = (
            few_shot_score(KNeighborsClassifier(1), X, Y, CV, n_jobs=jobs).scores for jobs in (1, 2)
        )
    np.testing.assert_array_equal(one, two)


def test_steps_are_fitted_to_base_rows_once():
    Counting.calls.clear()
    pipeline = make_pipeline(Counting(), NearestClassMeanClassifier("euclidean"))
    few_shot_score(pipeline, X, Y, CV, X_base=BASE, y_base=BASE_Y)
    calls = [("fit", 50, 50), ("transform", 50), ("transform", 120)]
    assert Counting.calls == calls
    assert not hasattr(pipeline[0], "mean_")


@pytest.mark.parametrize("final", [NearestClassMeanClassifier("euclidean"), LogisticRegression()])
def test_pipeline_with_base_rows_is_its_steps_by_hand(final):
    pipeline = make_pipeline(StandardScaler(), PCA(5, random_state=0), final)
    found = few_shot_score(pipeline, X, Y, CV, X_base=BASE)
    mapped = pipeline[:-1].fit(BASE).transform(X)
    np.testing.assert_allclose(found.scores, one_by_one(final, mapped))


def test_simpleshot_takes_its_center_from_base_rows():
    found = few_shot_score(make_simpleshot(), X, Y, CV, X_base=BASE)
    unit = (X - BASE.mean(axis=0)) / np.linalg.norm(X - BASE.mean(axis=0), axis=1, keepdims=True)
    for score, (support, query) in zip(found.scores, CV.split(X, Y), strict=True):
        classes = np.unique(Y[support])
        means = np.stack([unit[support][Y[support] == c].mean(axis=0) for c in classes])
        nearest = ((unit[query][:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
        assert score == pytest.approx(np.mean(classes[nearest] == Y[query]))


def test_steps_without_fit_are_applied_once():
    class Once(Normalizer):
        calls = []

        def transform(self, X, copy=None):
            self.calls.append(len(X))
            return super().transform(X)

    nearest = NearestClassMeanClassifier("euclidean")
    found = few_shot_score(make_pipeline(Once(), "passthrough", nearest), X, Y, CV)
    assert Once.calls == [120]
    np.testing.assert_allclose(found.scores, one_by_one(nearest, Normalizer().transform(X)))


def test_frozen_steps_are_applied_once():
    frozen = FrozenEstimator(CenteredL2Normalizer().fit(BASE))
    nearest = NearestClassMeanClassifier("euclidean")
    found = few_shot_score(make_pipeline(frozen, nearest), X, Y, CV)
    np.testing.assert_allclose(found.scores, one_by_one(nearest, frozen.transform(X)))


def test_steps_that_need_a_fit_see_the_supports_of_each_episode():
    pipeline = make_pipeline(
        L2Normalizer(), StandardScaler(), NearestClassMeanClassifier("euclidean")
    )
    found = few_shot_score(pipeline, X, Y, CV)
    np.testing.assert_allclose(found.scores, one_by_one(pipeline, X))


def test_step_that_centres_sets_never_sees_all_rows():
    step = CenteredL2Normalizer(transductive=True)
    pipeline = make_pipeline(step, NearestClassMeanClassifier("euclidean"))
    for base in (None, BASE):
        found = few_shot_score(pipeline, X, Y, CV, X_base=base)
        np.testing.assert_allclose(found.scores, one_by_one(pipeline, X))


@pytest.mark.parametrize("estimator", [Shifted(), BatchShifted()])
def test_transductive_classifiers_are_recognised(estimator):
    found = few_shot_score(estimator, X, Y, CV)
    np.testing.assert_allclose(
        found.scores, one_by_one(Shifted(), X, predict="predict_transductive")
    )


@pytest.mark.parametrize("estimator", [Shifted(), BatchShifted()])
def test_transductive_classifiers_can_be_asked_row_by_row(estimator):
    found = few_shot_score(estimator, X, Y, CV, transductive=False)
    np.testing.assert_allclose(found.scores, one_by_one(Shifted(), X))


def test_transductive_final_step_is_asked_behind_a_fitted_step():
    found = few_shot_score(make_pipeline(StandardScaler(), Shifted()), X, Y, CV)
    for score, (support, query) in zip(found.scores, CV.split(X, Y), strict=True):
        scaler = StandardScaler().fit(X[support])
        fitted = Shifted().fit(scaler.transform(X[support]), Y[support])
        predicted = fitted.predict_transductive(scaler.transform(X[query]))
        assert score == pytest.approx(np.mean(predicted == Y[query]))


def test_scorer_searches_transductive_parameters():
    search = GridSearchCV(
        Shifted(), {"shift": [0.0, 50.0]}, cv=CV, scoring=transductive_accuracy
    ).fit(X, Y)
    want = [one_by_one(Shifted(s), X, predict="predict_transductive").mean() for s in (0.0, 50.0)]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], want)


def test_scorer_takes_pipelines():
    support, query = next(CV.split(X, Y))
    pipeline = make_pipeline(StandardScaler(), Shifted()).fit(X[support], Y[support])
    alone = Shifted().fit(pipeline[:-1].transform(X[support]), Y[support])
    want = np.mean(alone.predict_transductive(pipeline[:-1].transform(X[query])) == Y[query])
    assert transductive_accuracy(pipeline, X[query], Y[query]) == pytest.approx(want)


def test_difference_is_the_paired_interval_of_scipy():
    a = few_shot_score(NearestClassMeanClassifier("euclidean"), X, Y, CV)
    b = few_shot_score(KNeighborsClassifier(1), X, Y, CV)
    found = compare_few_shot(a, b)
    interval = stats.ttest_rel(a.scores, b.scores).confidence_interval(0.95)
    assert found.mean - found.ci95 == pytest.approx(interval.low)
    assert found.mean + found.ci95 == pytest.approx(interval.high)


def test_difference_is_narrower_than_two_intervals():
    a = few_shot_score(NearestClassMeanClassifier("euclidean"), X, Y, CV)
    b = few_shot_score(NearestClassMeanClassifier("cosine"), X, Y, CV)
    assert compare_few_shot(a, b).ci95 < np.hypot(a.ci95, b.ci95)


def test_other_episodes_are_not_compared():
    nearest = NearestClassMeanClassifier()
    a = few_shot_score(nearest, X, Y, CV)
    for cv in (EpisodeSplit(4, 2, 6, n_episodes=30, random_state=1), EpisodeSplit(4, n_episodes=9)):
        with pytest.raises(ValueError, match="different episodes"):
            compare_few_shot(a, few_shot_score(nearest, X, Y, cv))


def test_drawn_episodes_can_be_given():
    index = CV.episodes(Y)
    nearest = NearestClassMeanClassifier()
    np.testing.assert_array_equal(
        few_shot_score(nearest, X, Y, index).scores, few_shot_score(nearest, X, Y, CV).scores
    )
    with pytest.raises(ValueError, match="groups decide"):
        few_shot_score(nearest, X, Y, index, groups=Y)


def test_groups_reach_the_split():
    groups = np.arange(120) % 3
    found = few_shot_score(NearestClassMeanClassifier(), X, Y, CV, groups=groups).index
    assert not (groups[found.support][:, :, None] == groups[found.query][:, None]).any()


@pytest.mark.parametrize("transductive", [None, False])
def test_tensors_score_as_arrays(transductive):
    nearest = NearestClassMeanClassifier("euclidean")
    found = few_shot_score(nearest, torch.from_numpy(X), Y, CV, transductive=transductive)
    np.testing.assert_array_equal(found.scores, few_shot_score(nearest, X, Y, CV).scores)


def test_tensors_are_learned_one_by_one_too():
    pipeline = make_pipeline(CenteredL2Normalizer(), NearestClassMeanClassifier("euclidean"))
    found = few_shot_score(pipeline, torch.from_numpy(X), Y, CV)
    np.testing.assert_array_equal(found.scores, few_shot_score(pipeline, X, Y, CV).scores)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"average": "mean"}, "average='mean' is not valid"),
        ({"transductive": True}, "has no method predict_transductive"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        few_shot_score(NearestClassMeanClassifier(), X, Y, CV, **options)


def test_splitters_without_episodes_are_refused():
    with pytest.raises(TypeError, match="draws no episodes"):
        few_shot_score(NearestClassMeanClassifier(), X, Y, 5)


def test_rows_that_are_not_finite_are_refused():
    bad = X.copy()
    bad[3, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        few_shot_score(NearestClassMeanClassifier(), bad, Y, CV)
