# SPDX-License-Identifier: BSD-3-Clause
"""SessionCurvesDisplay: averages by hand, what stands at the ends of the lines."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpool.exceptions import MissingDependencyError
from skpool.inspection import SessionCurvesDisplay
from skpool.inspection._style import _spread, signs

pytestmark = pytest.mark.usefixtures("plt")
STAGES = [[0, 1, 2], [3, 4], [5]]


def result(*accuracy, stages=STAGES):
    return SimpleNamespace(
        seen_accuracy=np.array(accuracy), stages=[np.array(classes) for classes in stages]
    )


RESULTS = {"ridge": result(0.9, 0.8, 0.7), "nearest mean": result(0.9, 0.6, 0.3)}


def drawn(results=RESULTS, **options):
    return SessionCurvesDisplay.from_results(results, **options)


def texts(display):
    return [text.get_text() for text in display.ax_.texts]


def test_average_and_last_by_hand():
    display = drawn()
    np.testing.assert_allclose(display.average_incremental_accuracy, [0.8, 0.6])
    np.testing.assert_allclose(display.last_accuracy, [0.7, 0.3])


def test_lines_are_the_percents_over_the_classes_seen():
    display = drawn()
    for line, name in zip(display.lines_, RESULTS, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [3, 5, 6])
        np.testing.assert_allclose(line.get_ydata(), 100 * RESULTS[name].seen_accuracy)


def test_classes_that_come_again_are_counted_once():
    display = drawn({"ridge": result(0.9, 0.8, 0.7, stages=[[0, 1], [1, 2], [0, 3]])})
    np.testing.assert_array_equal(display.n_seen_classes, [2, 3, 4])


def test_sessions_without_new_classes_stand_by_number():
    display = drawn({"ridge": result(0.9, 0.8, 0.7, stages=[[0, 1]] * 3)})
    np.testing.assert_array_equal(display.lines_[0].get_xdata(), [1, 2, 3])
    assert display.ax_.get_xlabel() == "sessions seen"


def test_names_carry_average_and_last():
    assert set(texts(drawn())) == {
        "ridge: average 80.0, last 70.0",
        "nearest mean: average 60.0, last 30.0",
    }


def test_joint_fit_of_every_session_is_a_curve():
    display = drawn(joint_accuracy=[0.95, 0.9, 0.8])
    np.testing.assert_allclose(display.lines_[-1].get_ydata(), [95, 90, 80])
    assert "joint fit: last 80.0" in texts(display)


def test_joint_fit_of_the_last_session_is_a_level():
    display = drawn(joint_accuracy=0.75, joint_name="all at once")
    np.testing.assert_allclose(display.lines_[-1].get_ydata(), [75, 75, 75])
    np.testing.assert_array_equal(display.joint_accuracy, [np.nan, np.nan, 0.75])
    assert "all at once: last 75.0" in texts(display)


def test_names_of_lines_that_end_together_do_not_cover_each_other():
    names = ("a", "b", "c", "d", "e", "f", "g")
    results = {name: result(0.9, 0.5, 0.7 + 0.001 * i) for i, name in enumerate(names)}
    display = drawn(results, title="Seven methods")
    display.figure_.canvas.draw()
    from matplotlib.text import Text

    # Of an annotation the letters alone, without the line that leads to them.
    boxes = [Text.get_window_extent(text) for text in display.ax_.texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.x1 <= display.figure_.bbox.x1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.5))
def test_spread_heights_keep_their_order_their_mean_and_a_gap(heights, gap):
    heights = np.sort(heights)
    spread = _spread(heights, gap)
    assert (np.diff(spread) >= gap - 1e-9).all()
    assert spread.mean() == pytest.approx(heights.mean(), abs=1e-9)


def test_heights_that_lie_apart_stay():
    np.testing.assert_allclose(_spread(np.array([0.1, 0.5, 0.9]), 0.2), [0.1, 0.5, 0.9])


def test_signs_of_many_lines_differ():
    assert len({tuple(sign.values()) for sign in signs(28)}) == 28


def test_single_session_is_drawn():
    display = drawn({"ridge": result(0.8, stages=[[0, 1]])}, joint_accuracy=0.9)
    assert texts(display)[0] == "ridge: average 80.0, last 80.0"
    display.figure_.canvas.draw()


def test_can_be_drawn_twice_on_given_axes(plt):
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    display = drawn(ax=right)
    assert display.plot(right, title="again") is display
    assert display.ax_ is right and display.figure_ is figure and not left.lines
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()


def test_results_of_other_sessions_are_refused():
    with pytest.raises(ValueError, match="differ in their number of sessions"):
        drawn({"a": result(0.9, 0.8, stages=STAGES[:2]), "b": result(0.9, 0.8, 0.7)})
    with pytest.raises(ValueError, match="differ in the classes of their sessions"):
        drawn({"a": result(0.9, 0.8, 0.7), "b": result(0.9, 0.8, 0.7, stages=[[0], [1], [2]])})


@pytest.mark.parametrize("results", [{}, [result(0.5)]])
def test_what_is_no_dict_of_results_is_refused(results):
    with pytest.raises(ValueError, match="results must map names to IncrementalResult"):
        drawn(results)


def test_wrong_joint_fit_is_refused():
    with pytest.raises(ValueError, match="give one number, or one per session"):
        drawn(joint_accuracy=[0.9, 0.8])
    with pytest.raises(ValueError, match="divide percents by 100"):
        drawn(joint_accuracy=80.0)


def test_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingDependencyError, match=r"skpool\[plot\]"):
        drawn()
