# SPDX-License-Identifier: BSD-3-Clause
"""The mixins, on the smallest estimator that can have them: one that counts labels."""

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.discriminant import LinearDiscriminantClassifier
from skpool.prototypes import NearestClassMeanClassifier


class CountClassifier(ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator):
    """Scores every class by the weight it has been given."""

    _parameter_constraints = {"fail": ["boolean"]}

    def __init__(self, fail=False):
        self.fail = fail

    def _reset(self):
        self.counts_ = {}

    def _add(self, y, sample_weight, sign):
        weights = np.ones(len(y)) if sample_weight is None else sample_weight
        counts = dict(self.counts_)
        for label, weight in zip(y.tolist(), weights, strict=True):
            counts[label] = counts.get(label, 0.0) + sign * weight
        self.counts_ = {label: count for label, count in counts.items() if count > 0}

    def _update(self, X, y, sample_weight):
        self._add(y, sample_weight, 1)

    def _forget(self, X, y, sample_weight):
        self._add(y, sample_weight, -1)

    def _forget_class(self, label):
        self.counts_ = {k: v for k, v in self.counts_.items() if k != label}

    def _merge(self, other):
        labels = np.array(list(other.counts_))
        self._add(labels, np.array(list(other.counts_.values())), 1)

    def _seen_classes(self):
        return np.array(sorted(self.counts_))

    def _refresh(self):
        super()._refresh()
        if self.fail:
            raise RuntimeError("asked to fail")

    def class_scores(self, X):
        check_is_fitted(self)
        seen = self._seen_classes()
        row = np.array([[self.counts_[label] for label in seen.tolist()]])
        return spread_columns(row.repeat(len(X), 0), seen, self.classes_, fill=-np.inf)


X = np.arange(8.0).reshape(4, 2)


def test_partial_fit_new_label_keeps_classes_sorted():
    clf = CountClassifier().partial_fit(X, [5, 5, 3, 9])
    assert clf.partial_fit(X[:1], [4]).classes_.tolist() == [3, 4, 5, 9]


def test_fit_after_partial_fit_starts_empty():
    clf = CountClassifier().partial_fit(X, [1, 1, 2, 3]).fit(X[:2, :1], ["a", "b"])
    assert clf.classes_.tolist() == ["a", "b"] and clf.n_features_in_ == 1


def test_announced_class_is_listed_and_never_predicted():
    clf = CountClassifier().partial_fit(X, [1, 1, 2, 2], classes=[0, 7])
    assert clf.classes_.tolist() == [0, 1, 2, 7]
    assert (clf.class_scores(X)[:, [0, 3]] == -np.inf).all()
    assert set(clf.predict(X)) == {1}
    assert (clf.predict_proba(X)[:, [0, 3]] == 0).all()


def test_announced_class_stays_when_its_samples_are_forgotten():
    clf = CountClassifier().partial_fit(X, [1, 1, 2, 2], classes=[1, 2])
    clf.forget(X[2:], [2, 2])
    assert clf.classes_.tolist() == [1, 2]
    assert clf.class_scores(X)[0].tolist() == [2.0, -np.inf]


def test_class_not_announced_goes_when_its_samples_are_forgotten():
    clf = CountClassifier().fit(X, [1, 1, 2, 2]).forget(X[2:], [2, 2])
    assert clf.classes_.tolist() == [1]


def test_forget_class_removes_announcement_too():
    clf = CountClassifier().partial_fit(X, [1, 1, 2, 2], classes=[2, 7])
    assert clf.forget_class(2).forget_class(7).classes_.tolist() == [1]


def test_forget_class_unknown_is_refused():
    clf = CountClassifier().fit(X, [1, 1, 2, 2])
    with pytest.raises(ValueError, match="label=3 is not a known class"):
        clf.forget_class(3)


def test_forgetting_everything_leaves_it_unfitted_and_usable():
    clf = CountClassifier().fit(X, [1, 1, 2, 2]).forget(X, [1, 1, 2, 2])
    with pytest.raises(NotFittedError):
        clf.predict(X)
    assert clf.partial_fit(X, ["a", "a", "b", "b"]).classes_.tolist() == ["a", "b"]


def test_forget_unknown_label_is_refused():
    clf = CountClassifier().fit(X, [1, 1, 2, 2])
    with pytest.raises(ValueError, match="label 3, of which no sample was learned"):
        clf.forget(X[:2], [1, 3])


def test_merge_adds_counts_and_announcements():
    a = CountClassifier().partial_fit(X, [1, 1, 2, 2], classes=[8])
    b = CountClassifier().partial_fit(X, [2, 3, 3, 3], classes=[9])
    a.merge(b)
    assert a.classes_.tolist() == [1, 2, 3, 8, 9]
    assert a.class_scores(X)[0, :3].tolist() == [2.0, 3.0, 3.0]


def test_merge_other_class_is_refused():
    with pytest.raises(TypeError, match="must be a CountClassifier, got BaseEstimator"):
        CountClassifier().fit(X, [1, 1, 2, 2]).merge(BaseEstimator())


def test_merge_other_width_is_refused():
    other = CountClassifier().fit(X[:, :1], [1, 1, 2, 2])
    with pytest.raises(ValueError, match="fitted on 1 features and this estimator on 2"):
        CountClassifier().fit(X, [1, 1, 2, 2]).merge(other)


BAD_CALLS = {
    "nan": ([[np.nan, 0.0]], [1], None),
    "width": ([[0.0]], [1], None),
    "empty": (np.empty((0, 2)), [], None),
    "lengths": (X, [1], None),
    "missing label": (X[:2], [1, None], None),
    "kind of label": (X[:1], ["a"], None),
    "no label": (X[:1], None, None),
    "negative weight": (X[:2], [1, 1], [1.0, -1.0]),
    "zero weights": (X[:2], [1, 1], [0.0, 0.0]),
}


@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
def test_failed_partial_fit_changes_nothing(call):
    clf = CountClassifier().partial_fit(X, [1, 1, 2, 2], classes=[9])
    before = joblib.hash(vars(clf))
    with pytest.raises(ValueError):
        clf.partial_fit(call[0], call[1], sample_weight=call[2])
    assert joblib.hash(vars(clf)) == before


@pytest.mark.parametrize("verb", ["fit", "partial_fit"])
def test_failure_after_the_update_changes_nothing(verb):
    clf = CountClassifier().fit(X, [1, 1, 2, 2]).set_params(fail=True)
    before = joblib.hash(vars(clf))
    with pytest.raises(RuntimeError, match="asked to fail"):
        getattr(clf, verb)(X[:, :1] if verb == "fit" else X, [3, 3, 4, 4])
    assert joblib.hash(vars(clf)) == before


def test_failed_first_call_leaves_it_unfitted():
    clf = CountClassifier()
    with pytest.raises(ValueError):
        clf.partial_fit(X, [1, 1, 2, None])
    assert vars(clf) == {"fail": False}


def test_announcing_the_other_kind_of_label_is_refused():
    with pytest.raises(ValueError, match="give text or numbers, not both"):
        CountClassifier().partial_fit(X, [1, 1, 2, 2], classes=["a"])


def test_sample_of_weight_zero_counts_as_absent():
    clf = CountClassifier().fit(X, [1, 1, 2, 3], sample_weight=[1, 2, 0, 4])
    assert clf.classes_.tolist() == [1, 3]
    assert clf.class_scores(X)[0].tolist() == [3.0, 4.0]


def test_weights_and_labels_may_be_tensors():
    clf = CountClassifier().fit(
        torch.from_numpy(X), torch.tensor([1, 1, 2, 2]), torch.tensor([1.0, 0.0, 3.0, 1.0])
    )
    assert clf.class_scores(X)[0].tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    "labels",
    [["b", "a", "b", "c"], [-1, 0, -1, 5], [True, False, True, True], [1.0, 2.0, 1.0, 3.0]],
    ids=["text", "minus one", "bool", "whole floats"],
)
def test_labels_come_back_in_their_kind(labels):
    clf = CountClassifier().fit(X, labels)
    expected = np.unique(labels)
    assert clf.classes_.dtype == expected.dtype and (clf.classes_ == expected).all()
    assert clf.predict(X).dtype == expected.dtype


def test_object_labels_are_stored_as_text():
    clf = CountClassifier().fit(X, np.array(["b", "a", "b", "a"], dtype=object))
    assert clf.classes_.dtype.kind == "U"


def test_decision_function_two_classes_is_second_minus_first():
    clf = CountClassifier().fit(X, [1, 2, 2, 2])
    assert clf.decision_function(X).tolist() == [2.0] * 4


@pytest.mark.parametrize("labels", [[7, 7, 7, 7], [1, 2, 3, 3]])
def test_decision_function_otherwise_has_a_column_per_class(labels):
    clf = CountClassifier().fit(X, labels)
    assert clf.decision_function(X).shape == (4, len(set(labels)))
    assert (clf.decision_function(X) == clf.class_scores(X)).all()


def test_predict_proba_is_the_softmax_of_the_scores():
    proba = CountClassifier().fit(X, [1, 2, 2, 2]).predict_proba(X[:1])
    assert proba[0] == pytest.approx(np.exp([1, 3]) / np.exp([1, 3]).sum())


def test_spread_columns_places_seen_columns():
    columns = np.array([[1.0, 2.0]])
    spread = spread_columns(columns, np.array([3, 5]), np.array([1, 3, 4, 5]), fill=0.0)
    assert spread.tolist() == [[0.0, 1.0, 0.0, 2.0]]


# --- blocks ----------------------------------------------------------------------------------


def blocks_of(X, y, w=None, size=17):
    for start in range(0, len(X), size):
        part = slice(start, start + size)
        yield (X[part], y[part]) if w is None else (X[part], y[part], w[part])


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_blocks_teach_what_all_rows_teach(n_jobs):
    rng = np.random.default_rng(0)
    X, y, w = rng.normal(size=(100, 4)), np.arange(100) // 25, rng.uniform(0, 2, 100)
    want = LinearDiscriminantClassifier().fit(X, y, w)
    got = LinearDiscriminantClassifier().fit(X[:9, :2], np.arange(9) % 2)
    got.fit_blocks(blocks_of(X, y, w), n_jobs=n_jobs)
    np.testing.assert_allclose(got.class_scores(X), want.class_scores(X), rtol=1e-11)
    assert got.certify(X, y, w) < 1e-13


def test_blocks_that_fail_change_nothing():
    X, y = np.eye(4) + 1.0, ["a", "a", "b", "b"]
    model = NearestClassMeanClassifier().fit(X, y)
    with pytest.raises(ValueError, match="blocks is empty"):
        model.fit_blocks([])
    with pytest.raises(ValueError, match="features"):
        model.fit_blocks([(X, y), (X[:, :2], y)])
    np.testing.assert_array_equal(model.predict(X), y)
