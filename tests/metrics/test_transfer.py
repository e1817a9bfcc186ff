# SPDX-License-Identifier: BSD-3-Clause
"""Forgetting and transfer: every convention against the loop of its definition and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skpool.metrics import backward_transfer, forgetting, forward_transfer

NAN = np.nan
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
MATRICES = st.integers(2, 5).flatmap(lambda n: arrays(np.float64, (n, n), elements=st.floats(0, 1)))


def looped_forgetting(R, *, last_included=False):
    T = len(R)
    total = 0.0
    for j in range(T - 1):
        best = max(R[stage, j] for stage in range(j, T if last_included else T - 1))
        total += best - R[T - 1, j]
    return total / (T - 1)


# By hand: what is lost of the four stages is .25, .30, -.05 (0 with the last row), .30 of bests
# .90, .85, .75, .90; since learned .25, .25, -.10, .30.
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.8 / 4),
        ({"kind": "max_all"}, 0.85 / 4),
        ({"kind": "first"}, 0.7 / 4),
        ({"kind": "relative"}, (0.25 / 0.9 + 0.3 / 0.85 - 0.05 / 0.75 + 0.3 / 0.9) / 4),
        ({"test_counts": COUNTS}, (2.5 + 6 - 1.5 + 12) / 100),
        ({"kind": "max_all", "test_counts": COUNTS}, (2.5 + 6 + 12) / 100),
    ],
)
def test_every_convention_of_forgetting_has_its_number(options, expected):
    assert forgetting(FIVE, **options) == pytest.approx(expected)


def test_every_convention_of_backward_transfer_has_its_number():
    # By hand: the columns of differences sum to -1.15, -.40, .15 and -.30.
    assert backward_transfer(FIVE) == pytest.approx(-0.7 / 4)
    assert backward_transfer(FIVE, kind="all_pairs") == pytest.approx(-1.7 / 10)


@given(MATRICES)
def test_forgetting_is_the_loop_of_its_definition(R):
    assert forgetting(R) == pytest.approx(looped_forgetting(R))
    assert forgetting(R, kind="max_all") == pytest.approx(looped_forgetting(R, last_included=True))


@given(MATRICES)
def test_backward_transfer_over_pairs_is_the_loop_of_its_definition(R):
    pairs = [R[i, j] - R[j, j] for i in range(len(R)) for j in range(i)]
    assert backward_transfer(R, kind="all_pairs") == pytest.approx(np.mean(pairs))


@given(MATRICES)
def test_forgetting_since_learned_is_minus_backward_transfer(R):
    assert forgetting(R, kind="first") == pytest.approx(-backward_transfer(R))


@given(MATRICES)
def test_the_maximum_over_all_is_never_negative_and_never_less(R):
    assert forgetting(R, kind="max_all") >= max(forgetting(R), 0) - 1e-12


@given(MATRICES)
def test_conventions_agree_on_two_stages(R):
    R = R[:2, :2]
    assert forgetting(R) == pytest.approx(forgetting(R, kind="first"))
    assert backward_transfer(R) == pytest.approx(backward_transfer(R, kind="all_pairs"))


def test_relative_forgetting_of_what_was_never_known_is_0():
    assert forgetting([[0.0, NAN], [0.0, 1.0]], kind="relative") == 0.0


def test_a_stage_without_test_rows_takes_no_part():
    R = FIVE.copy()
    R[:, 1] = NAN
    without = np.delete(np.delete(FIVE, 1, axis=0), 1, axis=1)
    # The row after the untested stage stays: it holds no best and no last value of the others.
    assert forgetting(R) == pytest.approx(forgetting(without))
    assert backward_transfer(R) == pytest.approx(backward_transfer(without))


def test_a_single_stage_forgets_and_transfers_nothing_defined():
    assert np.isnan(forgetting([[0.5]]))
    assert np.isnan(backward_transfer([[0.5]], kind="all_pairs"))
    assert np.isnan(forward_transfer([[0.5]], [0.1], scenario="domain"))


def test_forward_transfer_is_the_gain_just_before_a_stage():
    R = [[1.0, 0.5, 0.9], [0.9, 1.0, 0.3], [0.9, 0.9, 1.0]]
    found = forward_transfer(R, [0.7, 0.2, 0.4], scenario="domain")
    assert found == pytest.approx((0.3 - 0.1) / 2)


def test_forward_transfer_of_classes_is_not_defined():
    assert np.isnan(forward_transfer([[1.0, 0.0], [1.0, 1.0]], [0.5, 0.5], scenario="class"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: forgetting(FIVE, kind="last"), "kind must be one of"),
        (lambda: forgetting(FIVE, test_counts=[1, 2, 3, 4, -1]), "at least 0"),
        (lambda: backward_transfer(FIVE, kind="mean"), "kind must be one of"),
        (lambda: forward_transfer(FIVE, [0.1] * 5, scenario="task"), "eval_future=True"),
        (lambda: forward_transfer(FIVE, [0.1] * 4, scenario="task"), "must hold 5 values"),
        (lambda: forward_transfer(FIVE, [0.1] * 5, scenario="data"), "scenario must be one of"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
