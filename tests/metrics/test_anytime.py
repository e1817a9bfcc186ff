# SPDX-License-Identifier: BSD-3-Clause
"""Accuracy at all times on histories worked out by hand."""

import numpy as np
import pytest

from skpool.metrics import anytime_accuracy, min_accuracy, worst_case_accuracy

NAN = np.nan
# Two evaluations per task; the second follows the end of the task.
HISTORY = np.array(
    [
        [0.8, NAN, NAN],
        [0.9, NAN, NAN],
        [0.2, 0.6, NAN],
        [0.7, 0.8, NAN],
        [0.5, 0.1, 0.3],
        [0.6, 0.7, 0.9],
    ]
)
LEARNED = [1, 3, 5]


def test_anytime_accuracy_is_the_mean_of_means_over_seen_tasks():
    rows = [0.8, 0.9, 0.4, 0.75, 0.3, 2.2 / 3]
    assert anytime_accuracy(HISTORY) == pytest.approx(np.mean(rows))


def test_anytime_accuracy_leaves_out_times_before_the_first_task():
    padded = np.vstack([np.full((2, 3), NAN), HISTORY])
    assert anytime_accuracy(padded) == pytest.approx(anytime_accuracy(HISTORY))


def test_min_accuracy_is_the_mean_of_lowest_values_since_learned():
    assert min_accuracy(HISTORY, LEARNED) == pytest.approx((0.2 + 0.1) / 2)


def test_min_accuracy_between_stages_sees_what_the_matrix_does_not():
    matrix = HISTORY[LEARNED]
    assert min_accuracy(matrix) == pytest.approx((0.6 + 0.7) / 2)
    assert min_accuracy(HISTORY, LEARNED) < min_accuracy(matrix)


def test_min_accuracy_does_not_read_what_came_before_a_task_was_learned():
    before = HISTORY.copy()
    before[:2, 1:] = before[:4, 2:] = 0.0
    assert min_accuracy(before, LEARNED) == min_accuracy(HISTORY, LEARNED)


def test_min_accuracy_leaves_out_a_task_without_test_rows():
    assert min_accuracy([[0.5, NAN], [0.4, NAN]]) == pytest.approx(0.4)


def test_worst_case_accuracy_weighs_the_newest_task_once():
    expected = 0.9 / 3 + 2 / 3 * 0.15
    assert worst_case_accuracy(HISTORY, LEARNED) == pytest.approx(expected)


def test_worst_case_accuracy_takes_the_task_that_was_learned_last_as_the_newest():
    reordered = HISTORY[:, [2, 0, 1]]
    found = worst_case_accuracy(reordered, [5, 1, 3])
    assert found == pytest.approx(worst_case_accuracy(HISTORY, LEARNED))


def test_of_one_task_nothing_is_old():
    assert np.isnan(min_accuracy([[0.5]]))
    assert worst_case_accuracy([[0.5]]) == 0.5


@pytest.mark.parametrize(
    ("learned", "message"),
    [(None, "learned is None"), ([0, 1], "3 row numbers"), ([0, 1, 6], "below 6")],
)
def test_learned_that_does_not_fit_is_refused(learned, message):
    with pytest.raises(ValueError, match=message):
        min_accuracy(HISTORY, learned)
