# SPDX-License-Identifier: BSD-3-Clause
"""AccuracyMatrixDisplay: the numbers of matrices made by hand, and what is written of them."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpool.inspection import AccuracyMatrixDisplay

NAN = np.nan
BY_HAND = [[0.9, NAN, NAN], [0.6, 0.8, NAN], [0.7, 0.5, 1.0]]

pytestmark = pytest.mark.usefixtures("plt")


def drawn(matrix=BY_HAND, **options):
    return AccuracyMatrixDisplay.from_matrix(matrix, **options)


def texts(display):
    return [text.get_text() for text in display.ax_.texts]


def test_seen_accuracy_of_equal_sessions_is_the_mean_of_a_row():
    np.testing.assert_allclose(drawn().seen_accuracy, [0.9, 0.7, 2.2 / 3])


def test_counts_weight_the_seen_accuracy():
    display = drawn(test_counts=[10, 30, 60])
    expected = [0.9, (6 + 24) / 40, (7 + 15 + 60) / 100]
    np.testing.assert_allclose(display.seen_accuracy, expected)


def test_session_without_rows_has_no_weight():
    np.testing.assert_allclose(drawn(test_counts=[10, 0, 10]).seen_accuracy, [0.9, 0.6, 0.85])


def test_forgetting_by_hand():
    expected = [[NAN, NAN, NAN], [0.3, NAN, NAN], [0.2, 0.3, NAN]]
    np.testing.assert_allclose(drawn().forgetting, expected)


def test_forgetting_is_negative_where_later_sessions_helped():
    assert drawn([[0.5, NAN], [0.75, 0.8]]).forgetting[1, 0] == -0.25


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(0, 10**6), st.booleans())
def test_forgetting_follows_its_definition(n_sessions, seed, future):
    rng = np.random.default_rng(seed)
    matrix = rng.random((n_sessions, n_sessions))
    if not future:
        matrix[np.triu_indices(n_sessions, 1)] = NAN
    from skpool.inspection._accuracy_matrix import _forgetting

    found = _forgetting(matrix)
    for i in range(n_sessions):
        for j in range(n_sessions):
            if j < i:
                best = max(matrix[k, j] for k in range(j, i))
                assert found[i, j] == pytest.approx(best - matrix[i, j])
            else:
                assert np.isnan(found[i, j])


def test_future_sessions_are_drawn_and_do_not_count_as_seen():
    matrix = np.array([[0.9, 0.1], [0.6, 0.8]])
    display = drawn(matrix)
    np.testing.assert_allclose(display.seen_accuracy, [0.9, 0.7])
    assert "10" in texts(display)


def test_result_gives_its_own_seen_accuracy():
    result = SimpleNamespace(
        accuracy_matrix=np.array(BY_HAND), seen_accuracy=[0.9, 0.65, 0.6], stage_names=list("abc")
    )
    display = AccuracyMatrixDisplay.from_result(result)
    np.testing.assert_array_equal(display.seen_accuracy, [0.9, 0.65, 0.6])
    np.testing.assert_array_equal(display.accuracy_matrix, BY_HAND)
    assert display.session_names == ["a", "b", "c"] and "all\nseen" in texts(display)


def test_cells_and_margins_are_written_as_percents():
    written = texts(drawn(values_format=".1f"))
    assert written[:6] == ["90.0", "60.0", "80.0", "70.0", "50.0", "100.0"]
    assert {"mean of\nsessions", "73.3", "forgotten", "20.0", "30.0"} <= set(written)


def test_margins_can_be_left_out():
    assert texts(drawn(margins=False)) == ["90", "60", "80", "70", "50", "100"]


def test_single_session_has_nothing_to_forget():
    display = drawn([[0.5]])
    assert np.isnan(display.forgetting).all() and "forgotten" not in texts(display)


def test_names_of_sessions_stand_on_both_axes():
    display = drawn(session_names=["photos", "sketches", "cartoons"])
    for axis in (display.ax_.xaxis, display.ax_.yaxis):
        assert [t.get_text() for t in axis.get_ticklabels()] == ["photos", "sketches", "cartoons"]


def test_numbers_are_left_out_where_cells_are_too_small():
    n = 120
    matrix = np.where(np.tril(np.ones((n, n))), 0.5, NAN)
    assert texts(drawn(matrix, margins=False)) == []


def test_can_be_drawn_twice_on_given_axes(plt):
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    display = drawn(ax=right)
    assert display.plot(right) is display
    assert display.ax_ is right and display.figure_ is figure and not left.images
    figure.canvas.draw()
    assert plt.get_fignums() == [figure.number]


def test_colorbar_and_title():
    display = drawn(colorbar=True, title="Ridge")
    assert display.ax_.get_title(loc="left") == "Ridge" and len(display.figure_.axes) == 2


def test_no_text_covers_another():
    display = drawn(test_counts=[10, 30, 60], title="Ridge")
    display.figure_.canvas.draw()
    ax = display.ax_
    artists = [*ax.texts, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels()]
    boxes = [artist.get_window_extent() for artist in artists]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert display.figure_.bbox.x0 <= box.x0 and box.x1 <= display.figure_.bbox.x1
        assert display.figure_.bbox.y0 <= box.y0 and box.y1 <= display.figure_.bbox.y1


def test_percents_are_refused():
    with pytest.raises(ValueError, match=r"fractions between 0 and 1.* divide percents by 100"):
        drawn([[90.0, NAN], [60.0, 80.0]])


@pytest.mark.parametrize("shape", [(2,), (2, 3), (0, 0)])
def test_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(ValueError, match="accuracy_matrix must be square"):
        drawn(np.zeros(shape))


def test_wrong_names_and_counts_are_refused():
    with pytest.raises(ValueError, match="2 names for 3 sessions"):
        drawn(session_names=["a", "b"])
    with pytest.raises(ValueError, match="test_counts"):
        drawn(test_counts=[1, 2])
