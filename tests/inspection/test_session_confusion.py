# SPDX-License-Identifier: BSD-3-Clause
"""SessionConfusionDisplay: counts by hand and against scikit-learn's confusion matrix."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from skpool.inspection import SessionConfusionDisplay

pytestmark = pytest.mark.usefixtures("plt")
SESSIONS = [["cat", "dog"], ["owl"], ["eel", "fly"]]
# Of four cats one is right, one is a dog, two are of the last session; both owls are right.
TRUE = ["cat"] * 4 + ["owl"] * 2 + ["eel"] * 4
PREDICTED = ["cat", "dog", "fly", "eel", "owl", "owl", "eel", "fly", "fly", "owl"]


def drawn(true=TRUE, predicted=PREDICTED, sessions=SESSIONS, **options):
    return SessionConfusionDisplay.from_predictions(true, predicted, sessions, **options)


def texts(display):
    return [text.get_text() for text in display.ax_.texts]


def test_counts_and_shares_by_hand():
    display = drawn()
    np.testing.assert_array_equal(display.counts, [[2, 0, 2], [0, 2, 0], [0, 1, 3]])
    np.testing.assert_allclose(display.confusion, [[0.5, 0, 0.5], [0, 1, 0], [0, 0.25, 0.75]])
    np.testing.assert_allclose(display.accuracy, [0.25, 1, 0.25])
    np.testing.assert_allclose(display.inside_errors, [1 / 3, np.nan, 2 / 3])
    np.testing.assert_allclose(display.true_share, [0.4, 0.2, 0.4])
    np.testing.assert_allclose(display.predicted_share, [0.2, 0.3, 0.5])


def test_counts_are_those_of_scikit_learn_on_session_labels():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 12, (2, 500))
    sessions = np.split(rng.permutation(12), [3, 8])
    session_of = {label: i for i, labels in enumerate(sessions) for label in labels.tolist()}
    expected = confusion_matrix(
        [session_of[label] for label in true.tolist()],
        [session_of[label] for label in predicted.tolist()],
    )
    display = drawn(true, predicted, sessions)
    np.testing.assert_array_equal(display.counts, expected)
    np.testing.assert_allclose(display.confusion.sum(axis=1), 1)


def test_class_that_comes_again_belongs_to_its_first_session():
    display = drawn(["a", "b"], ["b", "b"], [["a", "b"], ["b"]])
    np.testing.assert_array_equal(display.counts, [[2, 0], [0, 0]])


def test_session_without_rows_has_no_shares():
    display = drawn(["cat"], ["owl"])
    np.testing.assert_allclose(display.confusion[0], [0, 1, 0])
    assert np.isnan(display.confusion[1:]).all() and np.isnan(display.accuracy[1:]).all()
    display.figure_.canvas.draw()


def test_single_session_has_all_errors_inside():
    display = drawn(["cat", "dog"], ["dog", "dog"], [["cat", "dog"]])
    assert display.confusion.tolist() == [[1.0]] and display.inside_errors.tolist() == [1.0]


def test_margins_are_written():
    written = texts(drawn())
    assert {"right", "errors\ninside", "predicted", "true", "33", "67"} <= set(written)
    assert texts(drawn(margins=False)) == ["50", "0", "50", "0", "100", "0", "0", "25", "75"]


def test_no_text_covers_another():
    display = drawn(title="Gradient steps")
    display.figure_.canvas.draw()
    ax = display.ax_
    artists = [*ax.texts, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels()]
    boxes = [artist.get_window_extent() for artist in artists]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_can_be_drawn_twice_on_given_axes(plt):
    figure, ax = plt.subplots()
    display = drawn(ax=ax)
    assert display.plot(ax) is display and display.ax_ is ax
    assert plt.get_fignums() == [figure.number]


def test_class_of_no_session_is_refused():
    with pytest.raises(ValueError, match=r"y_pred holds \['gnu'\], of no session"):
        drawn(["cat"], ["gnu"])
    with pytest.raises(ValueError, match="sessions holds no class"):
        drawn(["cat"], ["cat"], [])


def test_result_is_drawn_after_the_session_asked_for():
    first = SimpleNamespace(y_true=["cat", "dog"], y_pred=["cat", "cat"])
    last = SimpleNamespace(y_true=["cat", "owl"], y_pred=["owl", "owl"])
    result = SimpleNamespace(stages=SESSIONS[:2], predictions=[first, last])
    assert SessionConfusionDisplay.from_result(result).counts.tolist() == [[0, 1], [0, 1]]
    assert SessionConfusionDisplay.from_result(result, session=0).counts.tolist() == [[2]]


def test_result_without_predictions_is_refused():
    with pytest.raises(ValueError, match="return_predictions=True"):
        SessionConfusionDisplay.from_result(SimpleNamespace(predictions=None))


def test_labels_of_different_rows_are_refused():
    with pytest.raises(ValueError, match="must be one label per row"):
        drawn(["cat"], ["cat", "dog"])
