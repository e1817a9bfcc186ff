# SPDX-License-Identifier: BSD-3-Clause
"""BaseNovelDisplay: the harmonic mean by hand, three panels."""

from types import SimpleNamespace

import numpy as np
import pytest

from skpool.inspection import BaseNovelDisplay

pytestmark = pytest.mark.usefixtures("plt")
NAN = np.nan
STAGES = [list(range(60)), list(range(60, 65)), list(range(65, 70))]


def result(base, novel):
    return SimpleNamespace(base_accuracy=base, novel_accuracy=novel, stages=STAGES)


RESULTS = {
    "means": result([0.8, 0.6, 0.5], [NAN, 0.3, 0.5]),
    "never new": result([0.8, 0.8, 0.8], [NAN, 0.0, 0.0]),
    "nothing": result([0.0, 0.0, 0.0], [NAN, 0.0, 0.0]),
}


def drawn(results=RESULTS, **options):
    return BaseNovelDisplay.from_results(results, **options)


def test_harmonic_mean_by_hand():
    expected = [[NAN, 0.4, 0.5], [NAN, 0.0, 0.0], [NAN, 0.0, 0.0]]
    np.testing.assert_allclose(drawn().harmonic_mean_accuracy, expected)


def test_panels_show_base_novel_and_harmonic_mean():
    display = drawn()
    tables = display.base_accuracy, display.novel_accuracy, display.harmonic_mean_accuracy
    for lines, table in zip(display.lines_, tables, strict=True):
        np.testing.assert_allclose([line.get_ydata() for line in lines], 100 * table)
        assert all(line.get_xdata().tolist() == [60, 65, 70] for line in lines)


def test_lines_are_named_in_the_last_panel():
    texts = {text.get_text() for text in drawn().axes_[-1].texts}
    assert texts == {"means: last 50.0", "never new: last 0.0", "nothing: last 0.0"}


def test_can_be_drawn_twice_on_given_axes(plt):
    figure, axes = plt.subplots(1, 3, layout="constrained")
    display = drawn(axes=axes)
    assert display.plot(axes, title="again") is display
    assert list(display.axes_) == list(axes) and plt.get_fignums() == [figure.number]
    figure.canvas.draw()


def test_another_number_of_axes_is_refused(plt):
    with pytest.raises(ValueError, match="axes must be three"):
        drawn(axes=plt.subplots(1, 2)[1])
