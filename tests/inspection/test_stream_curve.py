# SPDX-License-Identifier: BSD-3-Clause
"""StreamCurveDisplay: means by hand, arrivals read from what was tested, marks."""

from types import SimpleNamespace

import numpy as np
import pytest

from skpool.inspection import StreamCurveDisplay

pytestmark = pytest.mark.usefixtures("plt")
NAN = np.nan


def result(*accuracy, times=(10, 20, 30), per_class=None):
    # Two classes from the start, one from the second evaluation, one that is never tested.
    default = [[0.9, 0.8, NAN, NAN], [0.9, 0.8, 0.7, NAN], [NAN, 0.8, 0.7, NAN]]
    return SimpleNamespace(
        times=np.array(times),
        accuracy=np.array(accuracy),
        per_class_accuracy=np.array(default if per_class is None else per_class),
    )


RESULTS = {"ridge": result(0.9, 0.8, 0.7), "means": result(0.9, 0.6, 0.6)}


def drawn(results=RESULTS, **options):
    return StreamCurveDisplay.from_results(results, **options)


def texts(display):
    return [text.get_text() for text in display.ax_.texts]


def test_mean_and_last_by_hand():
    display = drawn()
    np.testing.assert_allclose(display.mean_accuracy, [0.8, 0.7])
    np.testing.assert_allclose(display.last_accuracy, [0.7, 0.6])
    assert {"ridge: mean 80.0, last 70.0", "means: mean 70.0, last 60.0"} <= set(texts(display))


def test_lines_are_percents_over_rows_seen():
    display = drawn()
    np.testing.assert_array_equal(display.lines_[0].get_xdata(), [10, 20, 30])
    np.testing.assert_allclose(display.lines_[1].get_ydata(), [90, 60, 60])


def test_arrivals_are_read_from_what_was_tested():
    np.testing.assert_array_equal(drawn().arrivals, [10, 10, 20])


def test_given_arrivals_are_marked():
    display = drawn(arrivals=[1, 4, 17])
    (ticks,) = display.ax_.collections
    assert [segment[0, 0] for segment in ticks.get_segments()] == [1, 4, 17]
    assert display.ax_.get_xlim() == (1, 30)


def test_no_arrivals_no_ticks():
    assert len(drawn(arrivals=[]).ax_.collections) == 0


def test_forgotten_classes_are_named_at_their_time():
    display = drawn(forgotten={"owl": 20})
    assert "owl forgotten" in texts(display)
    assert [20, 20] in [list(line.get_xdata()) for line in display.ax_.lines]


def test_can_be_drawn_twice_on_given_axes(plt):
    figure, ax = plt.subplots()
    display = drawn(ax=ax)
    assert display.plot(ax, title="again") is display and display.ax_ is ax
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()


def test_results_of_other_times_are_refused():
    with pytest.raises(ValueError, match="evaluated at different times"):
        drawn({"a": result(0.9, 0.8, 0.7), "b": result(0.9, 0.8, 0.7, times=(5, 10, 15))})
