# SPDX-License-Identifier: BSD-3-Clause
"""Learning a stream against a loop that fits again on every prefix."""

import numpy as np
import pytest
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import NearestCentroid

from skpool.model_selection import StreamSplit, stream_evaluate
from skpool.prototypes import NearestClassMeanClassifier

NCM = NearestClassMeanClassifier("euclidean")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(4), [60, 40, 50, 30]))
    X = 1.2 * np.eye(4, 6)[y] + rng.normal(size=(len(y), 6))
    return X[60:], y[60:], X[:60], y[:60]


@pytest.mark.parametrize("kind", ["iid", "class_iid", "blurry", "gaussian"])
@pytest.mark.parametrize(("model", "oracle"), [(NCM, NearestCentroid()), (GaussianNB(),) * 2])
def test_accuracies_are_those_of_the_rows_so_far(data, kind, model, oracle):
    X, y, X_test, y_test = data
    splitter = StreamSplit(kind, n_tasks=2, batch_size=8)
    result = stream_evaluate(model, splitter.stream(X, y), X_test, y_test, eval_every=24)
    assert result.times.tolist() == [24, 48, 72, 96, 120]
    order = splitter.order(y)
    for t, n_seen in enumerate(result.times):
        rows = order[:n_seen]
        seen = np.isin(y_test, y[rows])
        if len(np.unique(y[rows])) == 1:
            assert result.accuracy[t] == 1.0
            continue
        right = oracle.fit(X[rows], y[rows]).predict(X_test) == y_test
        assert result.accuracy[t] == pytest.approx(right[seen].mean())
        for c in range(4):
            expected = right[y_test == c].mean() if c in y[rows] else np.nan
            np.testing.assert_allclose(result.per_class_accuracy[t, c], expected)


def test_evaluations_come_after_the_batch_that_completes_them(data):
    X, y, X_test, y_test = data
    stream = StreamSplit(batch_size=50).stream(X, y)
    result = stream_evaluate(NCM, stream, X_test, y_test, eval_every=40)
    assert result.times.tolist() == [50, 100, 120]


def test_the_end_is_evaluated_once(data):
    X, y, X_test, y_test = data
    result = stream_evaluate(NCM, [(X, y)], X_test, y_test, eval_every=120)
    assert result.times.tolist() == [120]
    expected = NearestCentroid().fit(X, y).score(X_test, y_test)
    assert result.accuracy.tolist() == [pytest.approx(expected)]


def test_classes_without_test_rows_are_learned_and_not_asked(data):
    X, y, X_test, y_test = data
    kept = y_test != 2
    result = stream_evaluate(NCM, [(X, y)], X_test[kept], y_test[kept])
    assert result.classes.tolist() == [0, 1, 3]
    right = NearestCentroid().fit(X, y).predict(X_test[kept]) == y_test[kept]
    assert result.accuracy[-1] == pytest.approx(right.mean())


def test_before_a_class_with_test_rows_nothing_is_measured(data):
    X, y, X_test, y_test = data
    stream = StreamSplit("class_iid", class_order="sorted", batch_size=5).stream(X, y)
    last = y_test == 3
    result = stream_evaluate(NCM, stream, X_test[last], y_test[last], eval_every=10)
    unseen = np.isnan(result.accuracy)
    assert unseen[0] and not unseen[-1]
    assert result.anytime_accuracy == pytest.approx(np.mean(result.accuracy[~unseen]))


def test_summary_is_by_rows_and_by_classes(data):
    X, y, X_test, y_test = data
    stream = StreamSplit("class_iid").stream(X, y)
    result = stream_evaluate(NCM, stream, X_test, y_test, eval_every=10)
    numbers = result.summary()
    means = [np.nanmean(row) for row in result.per_class_accuracy]
    assert numbers["anytime_accuracy_classes"] == pytest.approx(np.mean(means))
    assert numbers["anytime_accuracy_rows"] == pytest.approx(np.mean(result.accuracy))
    assert numbers["last_accuracy_classes"] == pytest.approx(means[-1])
    lowest = []
    for column in result.per_class_accuracy.T:
        measured = column[~np.isnan(column)]
        lowest += [measured[1:].min()] if len(measured) > 1 else []
    assert numbers["min_accuracy_classes"] == pytest.approx(np.mean(lowest))


def test_table_has_a_row_per_evaluation(data):
    pytest.importorskip("pandas")
    X, y, X_test, y_test = data
    result = stream_evaluate(NCM, StreamSplit().stream(X, y), X_test, y_test, eval_every=30)
    table = result.to_dataframe()
    assert table.index.tolist() == [30, 60, 90, 120]
    np.testing.assert_array_equal(table["accuracy"], result.accuracy)


def test_state_of_class_means_does_not_grow_once_all_classes_came(data):
    X, y, X_test, y_test = data
    result = stream_evaluate(NCM, StreamSplit().stream(X, y), X_test, y_test, eval_every=30)
    assert len(np.unique(result.state_bytes)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_every": 0}, "eval_every must be at least 1"),
        ({"stream": []}, "stream has no batch"),
        ({"y_test": [0]}, "inconsistent numbers of samples"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(data, options, message):
    X, y, X_test, y_test = data
    given = {"stream": [(X, y)], "X_test": X_test, "y_test": y_test} | options
    with pytest.raises(ValueError, match=message):
        stream_evaluate(NCM, **given)
