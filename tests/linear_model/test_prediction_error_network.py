# SPDX-License-Identifier: BSD-3-Clause
"""Students that imitate a teacher: what training may touch, and the error computed by hand."""

import numpy as np
import pytest
import torch
from scipy.special import erf

from skpool.linear_model import PredictionErrorNetworkClassifier

SMALL = {"hidden_dim": 8, "teacher_multiplier": 4, "output_dim": 6}


def _data(n: int = 90, seed: int = 0):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(9).normal(size=(3, 5))
    y = np.arange(n) % 3
    return centers[y] + 0.3 * rng.normal(size=(n, 5)), y


def _forward(weights, X):
    hidden = X @ weights["0.weight"].T + weights["0.bias"]
    hidden = hidden - hidden.mean(axis=1, keepdims=True)
    hidden /= np.sqrt((hidden**2).mean(axis=1, keepdims=True) + 1e-5)
    hidden = hidden * weights["1.weight"] + weights["1.bias"]
    hidden = 0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))
    return hidden @ weights["3.weight"].T + weights["3.bias"]


def test_scores_are_minus_the_mean_squared_distance_to_the_teacher():
    X, y = _data()
    clf = PredictionErrorNetworkClassifier(**SMALL).fit(X, y)
    wanted = _forward(clf.teacher_, X)
    for c, student in enumerate(clf.students_):
        expected = -((_forward(student, X) - wanted) ** 2).mean(axis=1)
        np.testing.assert_allclose(clf.class_scores(X)[:, c], expected, rtol=1e-9)


def test_sizes_are_those_asked_for():
    X, y = _data()
    clf = PredictionErrorNetworkClassifier(**SMALL).fit(X, y)
    assert clf.teacher_["0.weight"].shape == (32, 5) and clf.teacher_["3.weight"].shape == (6, 32)
    for student in clf.students_:
        assert student["0.weight"].shape == (8, 5) and student["3.weight"].shape == (6, 8)


def test_untrained_students_all_score_alike():
    X, y = _data()
    scores = PredictionErrorNetworkClassifier(**SMALL, lr=0.0).fit(X, y).class_scores(X)
    np.testing.assert_array_equal(scores, scores[:, :1] * np.ones(3))
    assert scores.std() > 0


def test_order_of_classes_changes_no_bit():
    X, y = _data()
    whole = PredictionErrorNetworkClassifier(**SMALL).fit(X, y).class_scores(X)
    for order in ((0, 1, 2), (2, 0, 1)):
        stream = PredictionErrorNetworkClassifier(**SMALL)
        for label in order:
            stream.partial_fit(X[y == label], y[y == label])
        np.testing.assert_array_equal(stream.class_scores(X), whole)


def test_training_touches_only_the_classes_present():
    X, y = _data()
    clf = PredictionErrorNetworkClassifier(**SMALL).fit(X, y)
    before, teacher = clf.students_, clf.teacher_
    clf.partial_fit(X[y == 1], y[y == 1])
    assert clf.teacher_ is teacher
    assert clf.students_[0] is before[0] and clf.students_[2] is before[2]
    assert (clf.students_[1]["0.weight"] != before[1]["0.weight"]).any()


def test_networks_tell_the_classes_apart():
    X, y = _data(n=600)
    Z, t = _data(n=300, seed=1)
    assert PredictionErrorNetworkClassifier(**SMALL).fit(X, y).score(Z, t) > 0.95


def test_first_step_of_adam_moves_every_weight_by_the_rate():
    X, y = _data()
    clf = PredictionErrorNetworkClassifier(**SMALL, lr=1e-3, batch_size=90).fit(X, 0 * y)
    start = PredictionErrorNetworkClassifier(**SMALL, lr=0.0).fit(X, 0 * y).students_[0]
    for name, weights in clf.students_[0].items():
        moved = np.abs(weights - start[name])
        assert moved.max() == pytest.approx(1e-3, rel=0.01)
        assert np.median(moved) == pytest.approx(1e-3, rel=0.01)


def test_rate_falls_to_zero_linearly():
    # One row again and again: the gradient keeps its sign, so that steps have the rate's size.
    X = np.repeat(_data()[0][:1], 4, axis=0)
    clf = PredictionErrorNetworkClassifier(**SMALL, lr=1e-5).fit(X, np.zeros(4, dtype=int))
    start = PredictionErrorNetworkClassifier(**SMALL, lr=0.0).fit(X, np.zeros(4, dtype=int))
    moved = np.abs(clf.students_[0]["3.bias"] - start.students_[0]["3.bias"])
    np.testing.assert_allclose(moved, 1e-5 * (1 + 0.75 + 0.5 + 0.25), rtol=0.02)


def test_a_forgotten_class_leaves_no_trace():
    X, y = _data()
    clf = PredictionErrorNetworkClassifier(**SMALL).fit(X, y).forget_class(1)
    kept = y != 1
    never = PredictionErrorNetworkClassifier(**SMALL).fit(X[kept], y[kept])
    np.testing.assert_array_equal(clf.class_scores(X), never.class_scores(X))
    with pytest.raises(ValueError, match="not among"):
        clf.forget_class(1)


def test_rows_cannot_be_taken_back():
    clf = PredictionErrorNetworkClassifier(**SMALL).fit(*_data())
    for name in ("forget", "merge", "affine", "fit_blocks"):
        assert not hasattr(clf, name)


def test_seed_decides_everything():
    X, y = _data()
    one, same, other = (
        PredictionErrorNetworkClassifier(**SMALL, random_state=seed).fit(X, y).class_scores(X)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01


def test_global_random_numbers_are_left_alone():
    X, y = _data()
    before = torch.random.get_rng_state()
    PredictionErrorNetworkClassifier(**SMALL).fit(X, y).predict(X)
    assert torch.equal(before, torch.random.get_rng_state())
