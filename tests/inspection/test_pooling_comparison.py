# SPDX-License-Identifier: BSD-3-Clause
"""PoolingComparisonDisplay: the numbers of the search, read by hand, and what is drawn of them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import Pipeline

import skpool
from skpool.exceptions import MissingDependencyError
from skpool.inspection import PoolingComparisonDisplay
from skpool.pooling import GeMPooling, TokenPooling
from skpool.preprocessing import Whitening
from skpool.prototypes import NearestClassMeanClassifier

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

POOLINGS = [TokenPooling("max"), TokenPooling(("first", "mean")), GeMPooling(4.6)]
WHITENINGS = [None, Whitening(shrinkage=0.1)]
CLASSIFIERS = [NearestClassMeanClassifier(), RidgeClassifier(3.0)]
NAMES = (
    ["max", "first + mean", "GeM, p=4.6"],
    ["none", "Whitening, shrinkage=0.1"],
    ["NearestClassMean", "Ridge, alpha=3"],
)
N_SPLITS = 4


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    """A test closes what its display opened; nothing else may have been opened."""
    assert plt.get_fignums() == []
    settings = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == settings


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = np.arange(48) % 3
    X = rng.normal(size=(48, 5, 6))
    X[:, :, :3] += 1.2 * np.eye(3)[y][:, None]
    return X, y


def make_pipeline():
    return Pipeline([("pool", POOLINGS[0]), ("whiten", None), ("clf", CLASSIFIERS[0])])


@pytest.fixture(scope="module")
def search(data):
    grid = {"pool": POOLINGS, "whiten": WHITENINGS, "clf": CLASSIFIERS}
    return GridSearchCV(make_pipeline(), grid, cv=N_SPLITS).fit(*data)


@pytest.fixture(scope="module")
def cv_results(search):
    return search.cv_results_


def made(scores, params, seconds=None):
    """A table as a search leaves it, from scores (n_candidates, n_splits)."""
    scores = np.asarray(scores, dtype=float)
    seconds = np.ones(len(params)) if seconds is None else np.asarray(seconds, dtype=float)
    return {
        "params": params,
        **{f"split{i}_test_score": column for i, column in enumerate(scores.T)},
        "mean_test_score": scores.mean(axis=1),
        "mean_fit_time": 0.75 * seconds,
        "mean_score_time": 0.25 * seconds,
    }


def drawn(cv_results, **options):
    return PoolingComparisonDisplay.from_cv_results(cv_results, **options)


def only_pooling(cv_results, **options):
    return drawn(cv_results, whitening=None, classifier=None, **options)


def place(display, pooling, whitening="", classifier=""):
    return (
        display.poolings.index(pooling),
        display.whitenings.index(whitening),
        display.classifiers.index(classifier),
    )


# The numbers.


def test_every_candidate_is_at_its_place_with_its_numbers(cv_results):
    display = drawn(cv_results)
    for i, chosen in enumerate(cv_results["params"]):
        pooling, whitening, classifier = (
            names[values.index(chosen[key])]
            for key, values, names in zip(
                ("pool", "whiten", "clf"), (POOLINGS, WHITENINGS, CLASSIFIERS), NAMES, strict=True
            )
        )
        cell = place(display, pooling, whitening, classifier)
        scores = [cv_results[f"split{k}_test_score"][i] for k in range(N_SPLITS)]
        mean = sum(scores) / N_SPLITS
        deviation = (sum((s - mean) ** 2 for s in scores) / (N_SPLITS - 1)) ** 0.5
        assert display.mean[cell] == pytest.approx(cv_results["mean_test_score"][i])
        assert display.standard_error[cell] == pytest.approx(deviation / N_SPLITS**0.5)
        seconds = cv_results["mean_fit_time"][i] + cv_results["mean_score_time"][i]
        assert display.cost[cell] == pytest.approx(seconds)
    assert (display.n_candidates == 1).all() and (display.n_failed == 0).all()


def test_names_are_those_of_the_grid(cv_results):
    display = drawn(cv_results)
    assert sorted(display.poolings) == sorted(NAMES[0])
    assert display.whitenings == NAMES[1] and display.classifiers == NAMES[2]


def test_poolings_are_sorted_by_their_best_mean(cv_results):
    display = drawn(cv_results)
    best = {
        name: max(
            mean
            for mean, chosen in zip(
                cv_results["mean_test_score"], cv_results["params"], strict=True
            )
            if chosen["pool"] is pooling
        )
        for pooling, name in zip(POOLINGS, NAMES[0], strict=True)
    }
    means = [best[name] for name in display.poolings]
    assert means == sorted(means, reverse=True)


def test_standard_error_of_one_split_is_unknown():
    display = only_pooling(made([[0.5], [0.7]], [{"pool": "mean"}, {"pool": "max"}]))
    assert display.poolings == ["max", "mean"]
    assert np.isnan(display.standard_error).all()
    assert "no standard error" in display.ax_.get_xlabel()


def test_more_than_nine_splits_are_all_read():
    scores = np.random.default_rng(0).random((1, 12))
    display = only_pooling(made(scores, [{"pool": "mean"}]))
    assert display.n_splits == 12
    assert display.mean[0, 0, 0] == pytest.approx(scores.mean())
    assert display.standard_error[0, 0, 0] == pytest.approx(scores.std(ddof=1) / 12**0.5)


def test_cell_of_several_candidates_has_the_best_of_them():
    params = [{"pool": "mean", "clf__alpha": alpha} for alpha in (1, 2, 3)]
    display = only_pooling(made([[0.1, 0.2], [0.6, 0.8], [np.nan, 0.9]], params, [1, 5, 9]))
    assert display.mean[0, 0, 0] == pytest.approx(0.7)
    assert display.cost[0, 0, 0] == pytest.approx(5)
    assert display.n_candidates[0, 0, 0] == 3 and display.n_failed[0, 0, 0] == 0
    assert display.best_of == ["clf__alpha"]
    assert "the best over clf__alpha" in display.ax_.get_xlabel()


def test_combination_that_was_not_tried_is_empty():
    params = [{"pool": "mean", "whiten": None}, {"pool": "max", "whiten": Whitening()}]
    display = drawn(made([[0.5, 0.6], [0.7, 0.9]], params), classifier=None)
    assert display.poolings == ["max", "mean"]
    np.testing.assert_allclose(display.mean[..., 0], [[np.nan, 0.8], [0.55, np.nan]])
    np.testing.assert_array_equal(display.n_candidates[..., 0], [[0, 1], [1, 0]])
    np.testing.assert_array_equal(display.n_failed, 0)


def test_grids_of_several_dicts_are_one_picture():
    params = [{"pool": "mean"}, {"pool": "gem", "pool__p": 3.0}, {"pool": "gem", "pool__p": 5.0}]
    display = only_pooling(
        made([[0.5, 0.5], [0.6, 0.6], [0.7, 0.7]], params), pooling=("pool", "pool__p")
    )
    assert display.poolings == ["gem, p=5", "gem, p=3", "mean"]
    assert display.best_of == []


# Failures.


def test_failed_fit_is_shown_as_failed():
    params = [{"pool": "mean"}, {"pool": "max"}, {"pool": "min"}]
    scores = [[0.8, np.nan, 0.9], [0.1, 0.2, 0.3], [np.nan] * 3]
    display = only_pooling(made(scores, params))
    assert display.poolings[0] == "max"
    assert [display.n_failed[place(display, name)] for name in ("mean", "max", "min")] == [1, 0, 3]
    assert np.isnan(display.mean[place(display, "mean")])
    texts = [text.get_text() for text in display.ax_.texts]
    assert "failed on 1 of 3" in texts and "failed on 3 of 3" in texts
    assert texts.count("failed") == 2


def test_search_of_which_all_fits_failed_is_drawn():
    display = only_pooling(made([[np.nan, np.nan]], [{"pool": "mean"}]))
    display.figure_.canvas.draw()
    assert np.isnan(display.mean).all() and display.n_failed[0, 0, 0] == 2


class _Fails(TransformerMixin, BaseEstimator):
    def fit(self, X, y=None):
        raise ValueError("not today")


@pytest.mark.filterwarnings("ignore")
def test_failures_of_a_real_search_are_counted(data):
    grid = {"pool": [TokenPooling(), _Fails()]}
    search = GridSearchCV(make_pipeline(), grid, cv=3).fit(*data)
    display = PoolingComparisonDisplay.from_search(search, whitening=None, classifier=None)
    assert display.poolings == ["mean", "_Fails"]
    np.testing.assert_array_equal(display.n_failed.ravel(), [0, 3])


# From a search.


def test_from_search_is_from_its_results(search):
    one = PoolingComparisonDisplay.from_search(search)
    other = drawn(search.cv_results_)
    np.testing.assert_array_equal(one.mean, other.mean)
    assert one.poolings == other.poolings
    assert one.score_name == "accuracy" and other.score_name == "score"


def test_search_that_is_not_fitted_is_refused():
    with pytest.raises(NotFittedError):
        PoolingComparisonDisplay.from_search(GridSearchCV(make_pipeline(), {"pool": POOLINGS}))


@pytest.mark.parametrize(
    ("scoring", "expected"),
    [(None, "accuracy"), ("f1_macro", "f1_macro"), (lambda model, X, y: 0.5, "score")],
)
def test_score_is_called_by_its_scorer(data, scoring, expected):
    grid = {"pool": POOLINGS[:2]}
    search = GridSearchCV(make_pipeline(), grid, cv=2, scoring=scoring).fit(*data)
    options = {"whitening": None, "classifier": None}
    display = PoolingComparisonDisplay.from_search(search, **options)
    assert display.ax_.get_xlabel().startswith(f"{expected}, mean of 2 splits")
    display = PoolingComparisonDisplay.from_search(search, score_name="recall", **options)
    assert display.ax_.get_xlabel().startswith("recall, ")


def test_of_several_scorers_the_one_refitted_by_is_drawn(data):
    search = RandomizedSearchCV(
        make_pipeline(),
        {"pool": POOLINGS[:2]},
        n_iter=2,
        cv=2,
        scoring=["accuracy", "neg_log_loss"],
        refit="neg_log_loss",
    ).fit(*data)
    options = {"whitening": None, "classifier": None}
    display = PoolingComparisonDisplay.from_search(search, **options)
    expected = np.sort(search.cv_results_["mean_test_neg_log_loss"])[::-1]
    np.testing.assert_allclose(display.mean.ravel(), expected)
    display = PoolingComparisonDisplay.from_search(search, score="accuracy", **options)
    expected = np.sort(search.cv_results_["mean_test_accuracy"])[::-1]
    np.testing.assert_allclose(display.mean.ravel(), expected)


def test_several_scorers_and_no_refit_need_a_choice(data):
    search = GridSearchCV(
        make_pipeline(), {"pool": POOLINGS[:2]}, cv=2, scoring=["accuracy", "f1_macro"], refit=False
    ).fit(*data)
    with pytest.raises(ValueError, match="score=None and refit=False do not say"):
        PoolingComparisonDisplay.from_search(search, whitening=None, classifier=None)


# Refusals.


@pytest.mark.parametrize("role", ["pooling", "whitening", "classifier"])
def test_wrong_parameter_name_is_refused_in_one_sentence(cv_results, role):
    with pytest.raises(ValueError) as caught:
        drawn(cv_results, **{role: "pooler"})
    message = str(caught.value)
    assert message.startswith(f"{role}='pooler' is no parameter of this search")
    assert "['clf', 'pool', 'whiten']" in message
    assert message.count(".") == 1 and message.endswith(".")
    assert plt.get_fignums() == []


def test_default_name_that_the_search_did_not_vary_says_to_give_none():
    with pytest.raises(ValueError, match="or whitening=None if none of them chose it"):
        drawn(made([[0.5, 0.6]], [{"pool": "mean"}]))


@pytest.mark.parametrize("pooling", [None, ()])
def test_picture_without_a_pooling_is_refused(cv_results, pooling):
    with pytest.raises(ValueError, match="names no parameter"):
        drawn(cv_results, pooling=pooling)


def test_unknown_scorer_is_refused(cv_results):
    with pytest.raises(ValueError, match=r"score='f1' is not in cv_results; .* \['score'\]"):
        drawn(cv_results, score="f1")


def test_something_else_than_results_is_refused():
    with pytest.raises(ValueError, match="no 'params'"):
        drawn({"mean_test_score": np.ones(3)})


def test_reference_that_is_no_number_opens_no_figure(cv_results):
    with pytest.raises(ValueError, match="could not convert"):
        drawn(cv_results, reference={"chance": "a third"})
    assert plt.get_fignums() == []


# Other names.


def test_names_can_be_given(cv_results):
    names = {"retrieval": POOLINGS[2], "whitened": WHITENINGS[1], "raw": None}
    display = drawn(cv_results, names=names)
    assert sorted(display.poolings) == ["first + mean", "max", "retrieval"]
    assert display.whitenings == ["raw", "whitened"]
    assert display.classifiers == NAMES[2]
    assert "retrieval" in [label.get_text() for label in display.ax_.get_yticklabels()]


def test_name_of_a_value_that_was_not_tried_is_refused(cv_results):
    with pytest.raises(ValueError, match=r"names has 'mine' for GeMPooling\(p=2.0\), which the"):
        drawn(cv_results, names={"mine": GeMPooling(2.0)})


# The picture.


def test_points_and_bars_stand_at_the_numbers(cv_results):
    display = drawn(cv_results)
    for bars, (i, j) in zip(display.ax_.containers, np.ndindex(2, 2), strict=True):
        line, _, (segments,) = bars.lines
        mean, error = display.mean[:, i, j], display.standard_error[:, i, j]
        np.testing.assert_allclose(line.get_xdata(), mean)
        ends = np.array([segment[:, 0] for segment in segments.get_segments()])
        np.testing.assert_allclose(ends, np.stack([mean - error, mean + error], axis=1))
        rows = np.round(line.get_ydata()).astype(int)
        np.testing.assert_array_equal(rows, [0, 1, 2])


def test_rows_are_labelled_from_top_to_bottom(cv_results):
    display = drawn(cv_results)
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == list(display.poolings)
    bottom, top = display.ax_.get_ylim()
    assert bottom > top


def test_no_two_points_share_a_height(cv_results):
    display = drawn(cv_results)
    heights = np.concatenate([bars.lines[0].get_ydata() for bars in display.ax_.containers])
    assert len(np.unique(heights)) == display.mean.size
    assert np.diff(np.sort(heights)).min() > 0.1


def test_axis_says_what_the_bars_are(cv_results):
    label = drawn(cv_results, score_name="accuracy").ax_.get_xlabel()
    assert "mean of 4 splits" in label
    assert "standard error (standard deviation / √4)" in label


def test_cost_is_drawn_beside_the_scores(cv_results):
    display = drawn(cv_results)
    drawn_cost = np.stack([line.get_xdata() for line in display.cost_ax_.lines], axis=1)
    np.testing.assert_allclose(drawn_cost, display.cost.reshape(3, 4))
    assert display.cost_ax_.get_ylim() == display.ax_.get_ylim()
    assert display.cost_ax_.get_xscale() == "log"


@pytest.mark.parametrize("longest", [3.0, 20.0, 5e3])
def test_scale_of_the_cost_has_some_numbers_and_not_too_many(longest):
    params = [{"pool": "mean"}, {"pool": "max"}]
    display = only_pooling(made([[0.5, 0.6], [0.7, 0.7]], params, [0.4, longest]))
    display.figure_.canvas.draw()
    low, high = display.cost_ax_.get_xlim()
    ticks = display.cost_ax_.get_xticks()
    assert 2 <= ((ticks >= low) & (ticks <= high)).sum() <= 6


def test_cost_of_nothing_is_drawn_without_a_warning():
    display = only_pooling(made([[0.5, 0.6]], [{"pool": "mean"}], [0.0]))
    display.figure_.canvas.draw()


def test_cost_and_values_can_be_left_out(cv_results):
    display = drawn(cv_results, cost=False, values=False)
    assert display.cost_ax_ is None and len(display.figure_.axes) == 1
    assert [text.get_text() for text in display.ax_.texts] == []


def test_best_value_of_every_row_is_written(cv_results):
    display = drawn(cv_results)
    written = [text.get_text() for text in display.ax_.texts]
    best = display.mean.max(axis=(1, 2))
    assert written == [*(f"{value:.3f}" for value in best), "best"]


def test_legend_names_what_was_varied(cv_results):
    display = drawn(cv_results, reference={"chance": 1 / 3})
    (legend,) = display.figure_.legends
    texts = {text.get_text() for text in legend.get_texts()}
    assert texts >= {*NAMES[1], *NAMES[2], "chance", "best"}
    display = only_pooling(cv_results)
    (legend,) = display.figure_.legends
    assert "classifier:" not in {text.get_text() for text in legend.get_texts()}


def test_title_stands_above_the_legend(cv_results):
    display = drawn(cv_results, title="Ten kinds of garments")
    (legend,) = display.figure_.legends
    assert legend.get_title().get_text() == "Ten kinds of garments"


def test_reference_is_a_line_at_its_score(cv_results):
    display = drawn(cv_results, reference={"chance": 0.125})
    at = [line.get_xdata() for line in display.ax_.lines if line.get_linestyle() == ":"]
    np.testing.assert_array_equal(at, [[0.125, 0.125]])


def test_colours_and_markers_differ(cv_results):
    lines = [bars.lines[0] for bars in drawn(cv_results).ax_.containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 4
    assert len({line.get_color() for line in lines}) == 2


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_given_axes_are_drawn_on(cv_results, layout):
    figure, (left, right) = plt.subplots(1, 2, layout=layout)
    display = drawn(cv_results, ax=right)
    assert display.ax_ is right and display.figure_ is figure
    assert plt.get_fignums() == [figure.number]
    assert left.lines[:] == [] and figure.legends == []
    figure.canvas.draw()


def test_one_figure_is_opened_and_it_is_that_of_the_display(cv_results):
    display = drawn(cv_results)
    assert plt.get_fignums() == [display.figure_.number]
    assert display.ax_.figure is display.figure_
    plt.close(display.figure_)


def test_plot_gives_the_display_and_can_be_repeated(cv_results):
    display = drawn(cv_results)
    first = display.ax_
    assert display.plot() is display
    assert display.ax_ is not first


@pytest.mark.parametrize("n_poolings", [12, 20])
def test_no_text_covers_another_in_a_large_grid(n_poolings):
    rng = np.random.default_rng(0)
    poolings = [f"a pooling of the longer sort, number {i}" for i in range(n_poolings)]
    whitenings = [None, Whitening(shrinkage="oas"), Whitening(128, shrinkage="oas", l2=True)]
    params = [
        {"pool": pooling, "whiten": whitening, "clf": classifier}
        for pooling in poolings
        for whitening in whitenings
        for classifier in CLASSIFIERS
    ]
    display = drawn(made(rng.uniform(0.7, 0.8, (len(params), 5)), params, rng.random(len(params))))
    display.figure_.canvas.draw()
    labels = display.ax_.get_yticklabels() + display.ax_.texts
    (legend,) = display.figure_.legends
    boxes = [text.get_window_extent() for text in labels]
    boxes += [legend.get_window_extent(), display.cost_ax_.get_window_extent()]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    whole = display.figure_.bbox
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 for box in boxes)
    assert all(whole.y0 <= box.y0 and box.y1 <= whole.y1 for box in boxes)


# Without matplotlib, and without a display.


def test_missing_matplotlib_is_named_with_its_extra(cv_results, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingDependencyError, match=r"skpool\[plot\]"):
        drawn(cv_results)


def test_works_in_a_process_without_a_display(tmp_path):
    script = f"""
import numpy as np
from skpool.inspection import PoolingComparisonDisplay
table = {{
    "params": [{{"pool": "mean"}}, {{"pool": "max"}}],
    "split0_test_score": np.array([0.5, 0.6]),
    "split1_test_score": np.array([0.7, 0.6]),
    "mean_fit_time": np.ones(2),
    "mean_score_time": np.ones(2),
}}
display = PoolingComparisonDisplay.from_cv_results(table, whitening=None, classifier=None)
display.figure_.savefig({str(tmp_path / "picture.png")!r})
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    root = Path(skpool.__file__).parents[1]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, env=environment)
    assert (tmp_path / "picture.png").stat().st_size > 1000
