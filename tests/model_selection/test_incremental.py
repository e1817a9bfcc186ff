# SPDX-License-Identifier: BSD-3-Clause
"""Learning in stages against loops over scikit-learn's estimators, fitted again from scratch."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import balanced_accuracy_score, zero_one_loss
from sklearn.naive_bayes import BernoulliNB, GaussianNB, MultinomialNB
from sklearn.neighbors import NearestCentroid
from sklearn.utils.validation import check_is_fitted

from skpool.discriminant import LinearDiscriminantClassifier
from skpool.linear_model import RidgeHeadClassifier
from skpool.metrics import forgetting, forward_transfer, seen_accuracy
from skpool.model_selection import (
    ClassIncrementalSplit,
    DomainIncrementalSplit,
    FewShotIncrementalSplit,
    Stage,
    incremental_evaluate,
)
from skpool.neighbors import WeightedKNNClassifier
from skpool.pipeline import make_incremental_pipeline
from skpool.prototypes import NearestClassMeanClassifier

NCM = NearestClassMeanClassifier("euclidean")


class Constant(ClassifierMixin, BaseEstimator):
    """Predicts the first label that it ever saw."""

    def partial_fit(self, X, y):
        self.first_ = getattr(self, "first_", y[0])
        self.classes_ = np.union1d(getattr(self, "classes_", y), y)
        return self

    def predict(self, X):
        return np.full(len(X), self.first_)


@pytest.fixture(scope="module")
def data():
    """Six unequal classes that overlap."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(6), [20, 30, 40, 50, 30, 25]))
    return 1.5 * np.eye(6, 8)[y] + rng.normal(size=(len(y), 8)), y


def looped(model, stages, X, y):
    """The matrix of a model that is fitted again on all rows so far."""
    R = np.full((len(stages), len(stages)), np.nan)
    for t in range(len(stages)):
        rows = np.concatenate([stage.train for stage in stages[: t + 1]])
        fitted = clone(model).fit(X[rows], y[rows])
        for j in range(t + 1):
            R[t, j] = fitted.score(X[stages[j].task_test], y[stages[j].task_test])
    return R


def test_matrix_of_class_means_is_that_of_scikit_learn(data):
    X, y = data
    splitter = ClassIncrementalSplit(increment=2, class_order="shuffled")
    result = incremental_evaluate(NCM, splitter, X, y)
    np.testing.assert_array_equal(
        result.accuracy_matrix, looped(NearestCentroid(), splitter.stages(y), X, y)
    )


def test_seen_accuracy_is_that_of_the_rows_of_the_matrix(data):
    X, y = data
    result = incremental_evaluate(NCM, ClassIncrementalSplit(increment=2), X, y)
    expected = seen_accuracy(result.accuracy_matrix, result.test_counts)
    np.testing.assert_allclose(result.seen_accuracy, expected)


def test_result_says_what_the_stages_were(data):
    X, y = data
    splitter = ClassIncrementalSplit(3, increment=2)
    result = incremental_evaluate(NCM, splitter, X, y)
    assert [labels.tolist() for labels in result.stages] == [[0, 1, 2], [3, 4], [5]]
    assert result.test_counts.tolist() == [len(stage.task_test) for stage in splitter.stages(y)]
    np.testing.assert_array_equal(result.stage_accuracy, np.diag(result.accuracy_matrix))


@pytest.mark.parametrize(
    "estimator",
    [NCM, LinearDiscriminantClassifier(), RidgeHeadClassifier(1.0), WeightedKNNClassifier(3)],
    ids=lambda one: type(one).__name__,
)
def test_last_accuracy_of_exact_learners_does_not_depend_on_the_order_of_classes(data, estimator):
    X, y = data
    y_test = y[:60]
    last = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 0, 4, 1, 3], [3, 4, 5, 0, 1, 2]):
        for increment in (1, 4):
            splitter = ClassIncrementalSplit(increment=increment, class_order=order)
            result = incremental_evaluate(
                estimator, splitter, X[60:], y[60:], X_test=X[:60], y_test=y_test
            )
            last.append(result.seen_accuracy[-1])
    assert last == [clone(estimator).fit(X[60:], y[60:]).score(X[:60], y_test)] * 6


def test_a_constant_predictor_knows_its_class_alone(data):
    X, y = data
    result = incremental_evaluate(Constant(), ClassIncrementalSplit(increment=1), X, y)
    expected = np.eye(1, 6).repeat(6, axis=0)
    expected[np.triu_indices(6, k=1)] = np.nan
    np.testing.assert_array_equal(result.accuracy_matrix, expected)
    assert result.base_accuracy.tolist() == [1.0] * 6
    np.testing.assert_array_equal(result.novel_accuracy, [np.nan, 0, 0, 0, 0, 0])
    assert result.summary()["last_harmonic_mean_accuracy"] == 0.0
    assert result.summary()["forgetting_max"] == 0.0


def test_base_and_novel_accuracy_are_those_of_their_rows(data):
    X, y = data
    splitter = ClassIncrementalSplit(2, increment=2)
    result = incremental_evaluate(NCM, splitter, X, y)
    counts, last = result.test_counts, result.accuracy_matrix[-1]
    assert result.base_accuracy[-1] == pytest.approx(last[0])
    novel = np.average(last[1:], weights=counts[1:])
    assert result.novel_accuracy[-1] == pytest.approx(novel)


def test_macro_average_is_the_mean_over_classes(data):
    X, y = data
    splitter = ClassIncrementalSplit(increment=3)
    result = incremental_evaluate(NCM, splitter, X, y, average="macro", return_predictions=True)
    for t, (_, y_true, y_pred) in enumerate(result.predictions):
        assert result.seen_accuracy[t] == pytest.approx(balanced_accuracy_score(y_true, y_pred))
    assert "last_accuracy_classes" in result.summary()


def test_macro_is_micro_on_balanced_test_rows(data):
    X, y = data
    balanced = np.concatenate([np.flatnonzero(y == c)[:7] for c in range(6)])
    given = {"X_test": X[balanced], "y_test": y[balanced]}
    splitter = ClassIncrementalSplit(increment=2)
    micro, macro = (
        incremental_evaluate(NCM, splitter, X, y, average=average, **given)
        for average in ("micro", "macro")
    )
    np.testing.assert_allclose(micro.accuracy_matrix, macro.accuracy_matrix)
    np.testing.assert_allclose(micro.seen_accuracy, macro.seen_accuracy)


def test_predictions_are_of_the_test_rows_of_seen_classes(data):
    X, y = data
    splitter = ClassIncrementalSplit(increment=2)
    result = incremental_evaluate(NCM, splitter, X, y, return_predictions=True)
    for stage, accuracy, found in zip(
        splitter.stages(y), result.seen_accuracy, result.predictions, strict=True
    ):
        np.testing.assert_array_equal(found.index, stage.test)
        np.testing.assert_array_equal(found.y_true, y[stage.test])
        assert np.mean(found.y_pred == found.y_true) == pytest.approx(accuracy)
        assert np.isin(found.y_pred, stage.seen_classes).all()


@pytest.mark.parametrize(
    "estimator", [GaussianNB(), BernoulliNB(), SGDClassifier(random_state=0)], ids=str
)
@pytest.mark.parametrize("increment", [1, 2])
def test_estimators_of_scikit_learn_are_asked_among_seen_classes(data, estimator, increment):
    X, y = data
    splitter = ClassIncrementalSplit(increment=increment)
    result = incremental_evaluate(estimator, splitter, X, y, return_predictions=True)
    for stage, found in zip(splitter.stages(y), result.predictions, strict=True):
        assert np.isin(found.y_pred, stage.seen_classes).all()
    assert result.accuracy_matrix[0, 0] > 1 / increment - 0.1


def test_naive_bayes_in_stages_is_naive_bayes_of_seen_classes(data):
    X, y = data
    splitter = ClassIncrementalSplit(increment=2)
    result = incremental_evaluate(GaussianNB(), splitter, X, y)
    np.testing.assert_allclose(
        result.accuracy_matrix, looped(GaussianNB(), splitter.stages(y), X, y)
    )


def test_two_classes_in_two_stages_have_a_decision_in_one_column(data):
    X, y = data
    X, y = X[y < 2], y[y < 2]
    splitter = ClassIncrementalSplit(increment=1)
    model = SGDClassifier(random_state=0)
    result = incremental_evaluate(model, splitter, X, y, return_predictions=True)
    stages = splitter.stages(y)
    model.partial_fit(X[stages[0].train], y[stages[0].train], classes=[0, 1])
    model.partial_fit(X[stages[1].train], y[stages[1].train])
    assert (result.predictions[0].y_pred == 0).all()
    np.testing.assert_array_equal(result.predictions[1].y_pred, model.predict(X[stages[1].test]))


def test_texts_go_through_a_pipeline_of_scikit_learn():
    words = ["sun moon", "tree leaf", "fish sea"]
    y = np.arange(60) % 3
    texts = [f"{words[c]} number {i}" for i, c in enumerate(y)]
    pipeline = make_incremental_pipeline(
        HashingVectorizer(n_features=64, alternate_sign=False), MultinomialNB()
    )
    result = incremental_evaluate(pipeline, ClassIncrementalSplit(increment=1), texts, y)
    assert result.seen_accuracy.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("estimator", [NCM, GaussianNB()], ids=str)
def test_told_the_task_answers_are_the_best_of_its_classes(data, estimator):
    X, y = data
    splitter = ClassIncrementalSplit(increment=2)
    result = incremental_evaluate(
        estimator, splitter, X, y, scenario="task", return_predictions=True
    )
    stages = splitter.stages(y)
    learned = np.concatenate([stage.train for stage in stages])
    reference = NearestCentroid() if estimator is NCM else GaussianNB()
    for j, stage in enumerate(stages):
        rows = learned[np.isin(y[learned], stage.classes)]
        own = clone(reference).fit(X[rows], y[rows])
        # These learners do not change what they know of a class by learning others.
        expected = own.score(X[stage.task_test], y[stage.task_test])
        np.testing.assert_allclose(result.accuracy_matrix[j:, j], expected)
    assert forgetting(result.accuracy_matrix) == pytest.approx(0)


def test_stages_to_come_are_asked_of_on_request(data):
    X, y = data
    splitter = ClassIncrementalSplit(increment=2)
    result = incremental_evaluate(NCM, splitter, X, y, eval_future=True)
    assert (result.accuracy_matrix[np.triu_indices(3, k=1)] == 0).all()
    task = incremental_evaluate(NCM, splitter, X, y, eval_future=True, scenario="task")
    assert np.isnan(task.accuracy_matrix[np.triu_indices(3, k=1)]).all()


@pytest.fixture(scope="module")
def domains(data):
    X, y = data
    groups = np.random.default_rng(1).integers(0, 3, len(y))
    return X + 0.5 * groups[:, None], y, np.array(["art", "photo", "sketch"])[groups]


def test_domains_by_pooled_statistics_end_with_the_joint_fit(domains):
    X, y, groups = domains
    splitter = DomainIncrementalSplit(["sketch", "art", "photo"])
    result = incremental_evaluate(NCM, splitter, X, y, groups=groups, scenario="domain")
    stages = splitter.stages(y, groups=groups)
    np.testing.assert_allclose(result.accuracy_matrix, looped(NearestCentroid(), stages, X, y))
    assert result.stage_names == ["sketch", "art", "photo"]


def test_transfer_ahead_is_against_a_learner_without_features(domains):
    X, y, groups = domains
    splitter = DomainIncrementalSplit()
    dummy = DummyClassifier(strategy="most_frequent")
    result = incremental_evaluate(
        NCM,
        splitter,
        X,
        y,
        groups=groups,
        scenario="domain",
        eval_future=True,
        random_reference=dummy,
    )
    stages = splitter.stages(y, groups=groups)
    learned = y[np.concatenate([stage.train for stage in stages])]
    most = np.bincount(learned).argmax()
    expected = [np.mean(y[stage.task_test] == most) for stage in stages]
    np.testing.assert_allclose(result.random_accuracy, expected)
    R = result.accuracy_matrix
    expected = (R[0, 1] - expected[1] + R[1, 2] - expected[2]) / 2
    assert result.summary()["forward_transfer"] == pytest.approx(expected)
    assert forward_transfer(R, result.random_accuracy, scenario="domain") == pytest.approx(expected)


def test_an_order_free_learner_is_its_own_joint_reference(data):
    X, y = data
    result = incremental_evaluate(
        NCM, ClassIncrementalSplit(increment=2), X, y, joint_reference=NearestCentroid()
    )
    np.testing.assert_array_equal(result.joint_accuracy, result.seen_accuracy)
    np.testing.assert_array_equal(result.joint_stage_accuracy, result.stage_accuracy)
    assert result.summary()["omega_all"] == pytest.approx(1)
    assert result.summary()["intransigence"] == pytest.approx(0)


def test_a_joint_reference_is_fitted_on_all_rows_so_far(data):
    X, y = data
    splitter = ClassIncrementalSplit(increment=2)
    joint = LinearDiscriminantAnalysis()
    result = incremental_evaluate(NCM, splitter, X, y, joint_reference=joint)
    R = looped(joint, splitter.stages(y), X, y)
    np.testing.assert_allclose(result.joint_stage_accuracy, np.diag(R))
    np.testing.assert_allclose(result.joint_accuracy, seen_accuracy(R, result.test_counts))


def test_references_may_be_numbers(data):
    X, y = data
    result = incremental_evaluate(
        NCM,
        ClassIncrementalSplit(increment=3),
        X,
        y,
        joint_reference=[1.0, 0.8],
        random_reference=0.25,
    )
    assert result.joint_accuracy.tolist() == [1.0, 0.8]
    assert result.random_accuracy.tolist() == [0.25, 0.25]
    expected = (result.seen_accuracy / [1.0, 0.8]).mean()
    assert result.summary()["omega_all"] == pytest.approx(expected)
    assert "intransigence" not in result.summary()


def test_scoring_may_be_a_function(data):
    X, y = data
    splitter = ClassIncrementalSplit(increment=3)
    loss = incremental_evaluate(NCM, splitter, X, y, scoring=zero_one_loss)
    accuracy = incremental_evaluate(NCM, splitter, X, y)
    np.testing.assert_allclose(loss.accuracy_matrix, 1 - accuracy.accuracy_matrix)


def test_parameters_of_fit_are_cut_to_the_rows_of_a_stage(data):
    X, y = data
    weight = np.where(np.arange(len(y)) % 3 == 0, 0.0, 1.0)
    splitter = ClassIncrementalSplit(increment=2)
    result = incremental_evaluate(NCM, splitter, X, y, fit_params={"sample_weight": weight})
    stages = splitter.stages(y)
    kept = [replace(stage, train=stage.train[weight[stage.train] > 0]) for stage in stages]
    expected = incremental_evaluate(NCM, kept, X, y)
    np.testing.assert_array_equal(result.accuracy_matrix, expected.accuracy_matrix)


def test_stages_of_ones_own_may_repeat_classes(data):
    X, y = data
    rows = np.arange(len(y))
    train, test = rows[:120], rows[120:]
    classes = [[0, 1], [1, 2, 3], [0, 4, 5]]
    stages, seen = [], np.empty(0, int)
    for t, labels in enumerate(classes):
        seen = np.union1d(seen, labels)
        own, parts = np.isin(y[train], labels), train % 3 == t
        held_out = [test[np.isin(y[test], c)] for c in (seen, labels)]
        stages.append(Stage(t, train[own & parts], *held_out, np.array(labels), seen))
    result = incremental_evaluate(NCM, stages, X, y)
    learned = np.concatenate([stage.train for stage in stages])
    model = NearestCentroid().fit(X[learned], y[learned])
    expected = [model.score(X[s.task_test], y[s.task_test]) for s in stages]
    np.testing.assert_allclose(result.accuracy_matrix[-1], expected)
    assert result.seen_accuracy[-1] == pytest.approx(model.score(X[test], y[test]))


def test_a_class_missing_from_the_test_rows_takes_no_part(data):
    X, y = data
    kept = y != 3
    with pytest.warns(UserWarning, match="Stage 3 has no test rows"):
        result = incremental_evaluate(
            NCM, ClassIncrementalSplit(increment=1), X, y, X_test=X[kept], y_test=y[kept]
        )
    assert np.isnan(result.accuracy_matrix[:, 3]).all()
    assert result.test_counts[3] == 0
    assert not np.isnan(result.seen_accuracy).any()
    assert not np.isnan(list(result.summary().values())).any()


class Watched:
    """Rows that tell how many were taken at a time."""

    def __init__(self, X):
        self.X, self.shape, self.taken = X, X.shape, []

    def __len__(self):
        return len(self.X)

    def __getitem__(self, key):
        rows = self.X[key[0] if isinstance(key, tuple) else key]
        self.taken.append(len(rows))
        return rows


def test_rows_to_learn_are_taken_once_and_never_all(data):
    X, y = data
    watched = Watched(X)
    splitter = ClassIncrementalSplit(increment=2)
    given = {"X_test": X[:50], "y_test": y[:50]}
    result = incremental_evaluate(NCM, splitter, watched, y, **given)
    assert watched.taken == [50, 90, 55]
    expected = incremental_evaluate(NCM, splitter, X, y, **given)
    np.testing.assert_array_equal(result.accuracy_matrix, expected.accuracy_matrix)


def test_progress_is_the_result_so_far(data):
    X, y = data
    seen = []
    result = incremental_evaluate(
        NCM, ClassIncrementalSplit(increment=2), X, y, eval_future=True, on_stage=seen.append
    )
    assert [len(one.seen_accuracy) for one in seen] == [1, 2, 3]
    for t, one in enumerate(seen, start=1):
        np.testing.assert_array_equal(one.accuracy_matrix, result.accuracy_matrix[:t, :t])
        assert set(one.summary()) <= set(result.summary())


def test_the_estimator_given_stays_as_it_was(data):
    X, y = data
    model = NearestClassMeanClassifier()
    incremental_evaluate(model, ClassIncrementalSplit(increment=3), X, y)
    with pytest.raises(ValueError, match="not fitted"):
        check_is_fitted(model)


def test_state_is_what_the_methods_are_known_to_keep(data):
    X, y = data
    splitter = ClassIncrementalSplit(increment=2)
    means = incremental_evaluate(NCM, splitter, X, y).state_bytes
    stored = incremental_evaluate(WeightedKNNClassifier(1), splitter, X, y).state_bytes
    # Class means grow by one vector of 8 features and a few scalars a class; neighbours by rows.
    assert 2 * 8 * 8 <= means[1] - means[0] <= 2 * 8 * 8 * 3
    n_learned = np.cumsum([len(stage.train) for stage in splitter.stages(y)])
    assert (stored >= n_learned * 8 * 4).all()
    assert stored[2] > means[2]


def test_few_shot_stages_are_learned(data):
    X, y = data
    splitter = FewShotIncrementalSplit(3, way=2, shot=4)
    result = incremental_evaluate(NCM, splitter, X, y)
    np.testing.assert_allclose(
        result.accuracy_matrix, looped(NearestCentroid(), splitter.stages(y), X, y)
    )


def test_summary_and_table_name_every_number(data):
    X, y = data
    result = incremental_evaluate(
        NCM, ClassIncrementalSplit(increment=2), X, y, joint_reference=NearestCentroid()
    )
    R, numbers = result.accuracy_matrix, result.summary()
    assert numbers["average_incremental_accuracy_rows"] == pytest.approx(
        np.mean(result.seen_accuracy)
    )
    tasks = np.mean([np.mean(R[t, : t + 1]) for t in range(3)])
    assert numbers["average_incremental_accuracy_tasks"] == pytest.approx(tasks)
    assert numbers["forgetting_max_all_row_weighted"] == pytest.approx(
        forgetting(R, kind="max_all", test_counts=result.test_counts)
    )
    pytest.importorskip("pandas")
    table = result.to_dataframe()
    assert table.index.name == "stage"
    np.testing.assert_array_equal(table["seen_accuracy"], result.seen_accuracy)
    assert "joint_accuracy" in table
    assert "random_accuracy" not in table


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scenario": "online"}, ValueError, "scenario must be one of"),
        ({"average": "weighted"}, ValueError, "average must be one of"),
        ({"scoring": "f1"}, ValueError, "scoring must be 'accuracy' or a function"),
        ({"X_test": np.zeros((2, 8))}, ValueError, "X_test is given and y_test is None"),
        ({"joint_reference": [0.5]}, ValueError, "joint_reference must be a classifier or 3"),
        ({"random_reference": [0.5]}, ValueError, "random_reference must be a classifier"),
        ({"estimator": LogisticRegression()}, TypeError, "has no partial_fit"),
        ({"splitter": 5}, TypeError, "has no method stages"),
        ({"splitter": []}, ValueError, "gives no stage"),
        ({"y": [0, 1]}, ValueError, "inconsistent numbers of samples"),
        ({"groups": [0, 1]}, ValueError, "groups must hold one label for each"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(data, options, error, message):
    X, y = data
    arguments = {
        "estimator": NCM,
        "splitter": ClassIncrementalSplit(increment=2),
        "X": X,
        "y": y,
    } | options
    with pytest.raises(error, match=message):
        incremental_evaluate(**arguments)
