# SPDX-License-Identifier: BSD-3-Clause
"""EpisodeIntervalsDisplay: order, intervals and numbers of results."""

from types import SimpleNamespace

import numpy as np
import pytest

from skpool.inspection import EpisodeIntervalsDisplay

pytestmark = pytest.mark.usefixtures("plt")


def result(mean, ci95, n_episodes=600):
    return SimpleNamespace(mean=mean, ci95=ci95, n_episodes=n_episodes)


FLAT = {"means": result(0.75, 0.02), "best": result(0.85, 0.01), "worst": result(0.5, 0.03)}
NESTED = {
    "means": {"balanced": result(0.75, 0.02), "unbalanced": result(0.76, 0.02)},
    "transport": {"balanced": result(0.85, 0.01), "unbalanced": result(0.65, 0.03)},
    "half": {"balanced": result(0.8, 0.01)},
}


def drawn(results=FLAT, **options):
    return EpisodeIntervalsDisplay.from_results(results, **options)


def texts(display):
    return [text.get_text() for text in display.ax_.texts]


def test_methods_are_sorted_with_their_numbers():
    display = drawn()
    assert display.names == ["best", "means", "worst"]
    np.testing.assert_array_equal(display.mean, [[0.85], [0.75], [0.5]])
    np.testing.assert_array_equal(display.ci95, [[0.01], [0.02], [0.03]])


def test_groups_are_sorted_by_the_first():
    display = drawn(NESTED)
    assert display.names == ["transport", "half", "means"]
    assert display.groups == ["balanced", "unbalanced"]
    np.testing.assert_array_equal(display.mean, [[0.85, 0.65], [0.8, np.nan], [0.75, 0.76]])


def test_bars_span_the_intervals():
    display = drawn()
    (bars,) = display.ax_.containers
    segments = bars.lines[2][0].get_segments()
    ends = [sorted(segment[:, 0]) for segment in segments]
    np.testing.assert_allclose(ends, [[84, 86], [73, 77], [47, 53]])


def test_values_are_written_with_the_best_in_bold():
    display = drawn(NESTED)
    assert {"85.0 ± 1.0", "65.0 ± 3.0", "80.0 ± 1.0", "76.0 ± 2.0"} <= set(texts(display))
    bold = {t.get_text() for t in display.ax_.texts if t.get_weight() == "bold"}
    assert bold == {"85.0 ± 1.0", "76.0 ± 2.0"}
    assert texts(drawn(NESTED, values=False)) == []


def test_number_of_episodes_is_named_where_all_agree():
    assert "600 episodes" in drawn().ax_.get_xlabel()
    mixed = drawn(FLAT | {"more": result(0.6, 0.01, 1000)})
    assert mixed.n_episodes is None and "over episodes" in mixed.ax_.get_xlabel()


def test_legend_is_there_for_several_groups_alone():
    assert drawn().ax_.get_legend() is None
    legend = drawn(NESTED).ax_.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["balanced", "unbalanced"]
    assert drawn(NESTED, legend=False).ax_.get_legend() is None


def test_can_be_drawn_twice_on_given_axes(plt):
    figure, ax = plt.subplots()
    display = drawn(NESTED, ax=ax)
    assert display.plot(ax, title="again") is display and display.ax_ is ax
    assert plt.get_fignums() == [figure.number]


def test_no_text_covers_another_or_leaves_the_paper():
    long = {
        name: {"all classes alike": r["balanced"], "some classes more": r["balanced"]}
        for name, r in NESTED.items()
    }
    display = drawn(long, title="One shot")
    display.figure_.canvas.draw()
    boxes = [text.get_window_extent() for text in display.ax_.texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.x1 <= display.figure_.bbox.x1


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="results must map names to FewShotResult"):
        drawn({})
