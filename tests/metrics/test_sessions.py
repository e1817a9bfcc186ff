# SPDX-License-Identifier: BSD-3-Clause
"""Scores over sessions on small matrices, worked out by hand or by the loop of the definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skpool.metrics import (
    accuracy_memory_auc,
    average_accuracy,
    average_incremental_accuracy,
    intransigence,
    last_accuracy,
    learning_accuracy,
    omega_all,
    performance_drop,
    seen_accuracy,
)

NAN = np.nan
THREE = np.array([[0.9, NAN, NAN], [0.7, 0.6, NAN], [0.5, 0.8, 0.4]])
FIVE = np.array(
    [
        [0.90, NAN, NAN, NAN, NAN],
        [0.60, 0.80, NAN, NAN, NAN],
        [0.70, 0.85, 0.70, NAN, NAN],
        [0.50, 0.60, 0.75, 0.90, NAN],
        [0.65, 0.55, 0.80, 0.60, 0.95],
    ]
)
COUNTS = [10, 20, 30, 40, 50]
MATRICES = arrays(np.float64, (4, 4), elements=st.floats(0, 1))


def test_seen_accuracy_by_rows_is_that_of_pooled_rows():
    rng = np.random.default_rng(0)
    counts = [3, 1, 7]
    right = [[rng.integers(0, 2, counts[j]) for j in range(3)] for _ in range(3)]
    R = np.array([[hits.mean() for hits in row] for row in right])
    pooled = [np.concatenate(right[t][: t + 1]).mean() for t in range(3)]
    np.testing.assert_allclose(seen_accuracy(R, counts), pooled)


def test_seen_accuracy_by_tasks_is_the_mean_of_the_row():
    np.testing.assert_allclose(seen_accuracy(THREE, kind="tasks"), [0.9, 0.65, 1.7 / 3])


@given(MATRICES, st.integers(1, 9))
def test_seen_accuracy_of_equal_stages_is_the_same_by_rows_and_tasks(R, count):
    by_rows = seen_accuracy(R, [count] * 4)
    np.testing.assert_allclose(by_rows, seen_accuracy(R, kind="tasks"))


def test_seen_accuracy_leaves_out_a_stage_without_test_rows():
    R = THREE.copy()
    R[:, 0] = NAN
    expected = [NAN, 0.6, (3 * 0.8 + 1 * 0.4) / 4]
    np.testing.assert_allclose(seen_accuracy(R, [0, 3, 1]), expected)


def test_seen_accuracy_ignores_what_is_above_the_diagonal():
    filled = np.where(np.isnan(FIVE), 0.123, FIVE)
    np.testing.assert_array_equal(seen_accuracy(filled, COUNTS), seen_accuracy(FIVE, COUNTS))


@pytest.mark.parametrize(
    ("kind", "average", "last"), [("rows", 3.8916666667 / 5, 113 / 150), ("tasks", 0.7495, 0.71)]
)
def test_every_convention_of_the_average_has_its_number(kind, average, last):
    # By hand: rows (9 / 10, 22 / 30, 45 / 60, 75.5 / 100, 113 / 150), tasks (.9 .7 .75 .6875 .71).
    seen = seen_accuracy(FIVE, COUNTS, kind=kind)
    assert average_incremental_accuracy(seen) == pytest.approx(average)
    assert last_accuracy(seen) == pytest.approx(last)


def test_average_accuracy_is_the_mean_of_the_last_row():
    assert average_accuracy(FIVE) == pytest.approx(3.55 / 5)
    assert average_accuracy(THREE) == pytest.approx(1.7 / 3)


def test_learning_accuracy_is_the_mean_of_the_diagonal():
    assert learning_accuracy(FIVE) == pytest.approx(4.25 / 5)
    assert learning_accuracy(THREE) == pytest.approx(1.9 / 3)


def test_performance_drop_is_first_less_last():
    assert performance_drop(seen_accuracy(THREE, kind="tasks")) == pytest.approx(0.9 - 1.7 / 3)


def test_intransigence_is_the_mean_loss_on_new_stages():
    assert intransigence(THREE, [0.9, 0.8, 0.7]) == pytest.approx((0 + 0.2 + 0.3) / 3)


def test_omega_all_is_the_mean_share():
    assert omega_all([0.9, 0.6, 0.4], [0.9, 0.8, 0.8]) == pytest.approx((1 + 0.75 + 0.5) / 3)


def test_memory_auc_is_the_mean_of_the_curve():
    grid = np.linspace(10, 40, 3001)
    curve = np.interp(grid, [10, 20, 40], [0.2, 0.6, 0.7])
    found = accuracy_memory_auc([0.6, 0.7, 0.2], memory=[20, 40, 10])
    assert found == pytest.approx(curve.mean(), abs=1e-4)


@pytest.mark.parametrize("unit", [1, 1024])
def test_memory_auc_does_not_depend_on_the_unit(unit):
    found = accuracy_memory_auc([0.5, 1.0], memory=np.array([1, 3]) * unit)
    assert found == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: seen_accuracy(THREE), "needs test_counts"),
        (lambda: seen_accuracy(THREE, kind="mean"), "kind must be one of"),
        (lambda: seen_accuracy(THREE, [1, 2]), "must hold 3 numbers"),
        (lambda: seen_accuracy(THREE[:2], kind="tasks"), "must be square"),
        (lambda: learning_accuracy([[0.5, 0.5], [NAN, 0.5]]), "NaN on or below its diagonal"),
        (lambda: average_accuracy([0.5, 0.5]), "a row per evaluation"),
        (lambda: omega_all([0.5, 0.5], [0.0, 0.5]), "above 0"),
        (lambda: omega_all([0.5, 0.5], [0.5]), "must hold 2 values"),
        (lambda: accuracy_memory_auc([0.5, 0.6], [3, 3]), "span a range"),
        (lambda: last_accuracy([]), "one value per stage"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
