# SPDX-License-Identifier: BSD-3-Clause
"""How PoolingComparisonDisplay puts its arrays on paper.

A row of the picture is a pooling; within the row every whitening and classifier has its own
height, so that no point covers another. Colour is never the only sign: the order within a row is
that of the legend.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from skpool.inspection._style import COLORS, MARKERS
from skpool.utils import import_optional

if TYPE_CHECKING:
    from skpool.inspection._pooling_comparison import PoolingComparisonDisplay

__all__ = ["draw_comparison"]

# Grey is for what was left out.
_NO_COLOR = "#666666"
# Share of a row that its points spread over, and inches.
_SPREAD, _INCHES_PER_POINT, _INCHES_PER_ROW, _INCHES_PER_LINE = 0.72, 0.07, 0.14, 0.17
_WIDTH, _GAP, _GAP_WITH_VALUES, _INCHES_PER_LETTER = 10.5, 0.12, 0.55, 0.066
_LONGEST_LINE = 36
# Ratio of the ends of a scale that powers of ten divide well enough.
_LONG = 50
_SHADE = "#F3F3F3"
_POINTS, _RING = 4, 5
_BAND = {"color": "#56B4E9", "alpha": 0.22, "linewidth": 0}
_REFERENCE = {"color": "0.3", "linewidth": 1.2}
_LINES = (":", "--", "-.")
_ABOVE_AXES = {"loc": "lower left", "bbox_to_anchor": (0, 1.0)}
_LEGEND = {
    "frameon": False,
    "fontsize": 8.5,
    "title_fontsize": 12,
    "alignment": "left",
    "borderaxespad": 0.6,
    "handletextpad": 0.4,
}


def draw_comparison(
    display: "PoolingComparisonDisplay",
    ax: Any,
    *,
    cost: bool,
    values: bool,
    reference: Mapping[str, float],
    title: str | None,
) -> tuple[Any, Any]:
    """Draw a comparison on given or new axes; return those of the scores and of the cost."""
    plt = import_optional(
        "matplotlib.pyplot", extra="plot", purpose="Drawing a PoolingComparisonDisplay"
    )
    of_its_own = ax is None
    if of_its_own:
        figure = plt.figure(figsize=(_WIDTH, _height(display)), layout="constrained")
        ax, cost_ax = _own_axes(figure, cost=cost)
    else:
        cost_ax = _beside(ax, gap=_GAP_WITH_VALUES if values else _GAP) if cost else None
    _draw_rows(display, ax)
    _draw_scores(display, ax)
    _draw_best(display, ax)
    for score, style in zip(reference.values(), cycle(_LINES)):
        ax.axvline(score, linestyle=style, zorder=1, **_REFERENCE)
    ax.set_xlabel(_label_of_scores(display))
    if values:
        _write_values(display, ax)
    if cost_ax is not None:
        _draw_cost(display, cost_ax)
    _add_legend(display, ax, reference, title, above_figure=of_its_own)
    return ax, cost_ax


def _own_axes(figure: Any, *, cost: bool) -> tuple[Any, Any]:
    """The axes of a new figure: wide ones, and narrow ones for the cost."""
    if not cost:
        return figure.subplots(), None
    return tuple(figure.subplots(1, 2, sharey=True, width_ratios=[4, 1]))


def _beside(ax: Any, *, gap: float) -> Any:
    """Narrow axes in the right part of given ones."""
    from mpl_toolkits.axes_grid1 import make_axes_locatable

    return make_axes_locatable(ax).append_axes("right", size="22%", pad=gap, sharey=ax)


def _inches(ax: Any) -> float:
    return ax.get_window_extent().width / ax.figure.dpi


def _height(display: "PoolingComparisonDisplay") -> float:
    """Inches that keep points and lines of text apart."""
    n_rows, *per_row = display.mean.shape
    n_lines = max(_wrapped(name).count("\n") + 1 for name in display.poolings)
    points = _INCHES_PER_ROW + _INCHES_PER_POINT * np.prod(per_row)
    lines = _INCHES_PER_ROW + _INCHES_PER_LINE * n_lines
    return 1.6 + _INCHES_PER_LINE * max(per_row) + max(points, lines) * n_rows


def _wrapped(name: str) -> str:
    return "\n".join(wrap(name, _LONGEST_LINE)) or name


def _heights(display: "PoolingComparisonDisplay") -> np.ndarray:
    """Where each point stands, (n_poolings, n_whitenings, n_classifiers)."""
    n_rows, n_whitenings, n_classifiers = display.mean.shape
    n = n_whitenings * n_classifiers
    # Classifier after classifier, so that the whitenings of one lie side by side.
    within = (np.arange(n).reshape(n_classifiers, n_whitenings).T + 0.5) / n - 0.5
    return np.arange(n_rows)[:, None, None] + _SPREAD * within


def _draw_rows(display: "PoolingComparisonDisplay", ax: Any) -> None:
    n_rows = len(display.poolings)
    _shade_rows(display, ax)
    ax.set_yticks(range(n_rows), [_wrapped(name) for name in display.poolings])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(n_rows - 0.5, -0.5)


def _shade_rows(display: "PoolingComparisonDisplay", ax: Any) -> None:
    for row in range(0, len(display.poolings), 2):
        ax.axhspan(row - 0.5, row + 0.5, color=_SHADE, linewidth=0, zorder=0)
    ax.grid(axis="x", color="0.85", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _colors(whitenings: Sequence[str]) -> list[str]:
    palette = cycle(COLORS)
    return [_NO_COLOR if name == "none" else next(palette) for name in whitenings]


def _markers(classifiers: Sequence[str]) -> list[str]:
    return [marker for _, marker in zip(classifiers, cycle(MARKERS))]


def _draw_scores(display: "PoolingComparisonDisplay", ax: Any) -> None:
    heights, colors = _heights(display), _colors(display.whitenings)
    markers = _markers(display.classifiers)
    for i, j in np.ndindex(display.mean.shape[1:]):
        mean, error = display.mean[:, i, j], display.standard_error[:, i, j]
        shown = np.isfinite(mean)
        ax.errorbar(
            mean[shown],
            heights[shown, i, j],
            xerr=np.nan_to_num(error[shown]),
            fmt=markers[j],
            color=colors[i],
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.4,
            elinewidth=1.3,
            zorder=_POINTS,
        )
    if not np.isfinite(display.mean).any():
        ax.set_xlim(0, 1)
    _draw_failures(display, ax, heights)


def _draw_failures(display: "PoolingComparisonDisplay", ax: Any, heights: np.ndarray) -> None:
    """A cross at the left edge, with the number of splits that failed."""
    edge, colors = ax.get_yaxis_transform(), _colors(display.whitenings)
    for cell in zip(*np.nonzero(display.n_failed), strict=True):
        color, height = colors[cell[1]], heights[cell]
        ax.plot(0.012, height, "x", color=color, markersize=4.5, transform=edge, zorder=_POINTS)
        text = f"failed on {display.n_failed[cell]} of {display.n_splits}"
        ax.text(0.025, height, text, color=color, fontsize=6.5, va="center", transform=edge)


def _best(display: "PoolingComparisonDisplay") -> tuple | None:
    if not np.isfinite(display.mean).any():
        return None
    return np.unravel_index(np.nanargmax(display.mean), display.mean.shape)


def _draw_best(display: "PoolingComparisonDisplay", ax: Any) -> None:
    """A ring around the best point, and how far below it one standard error reaches."""
    best = _best(display)
    if best is None:
        return
    mean, error = display.mean[best], display.standard_error[best]
    ax.plot(
        mean,
        _heights(display)[best],
        "o",
        markersize=10,
        fillstyle="none",
        color="black",
        zorder=_RING,
    )
    if np.isfinite(error):
        ax.axvspan(mean - error, mean, zorder=1, **_BAND)


def _label_of_scores(display: "PoolingComparisonDisplay") -> str:
    n = display.n_splits
    if n == 1:
        return f"{display.score_name} on one split (no standard error)"
    label = (
        f"{display.score_name}, mean of {n} splits\n± standard error (standard deviation / √{n})"
    )
    if display.best_of:
        label += f"; the best over {', '.join(display.best_of)}"
    return label


def _write_values(display: "PoolingComparisonDisplay", ax: Any) -> None:
    """The best mean of every row on the right, where a column of numbers is read at a glance."""
    best = _best(display)
    beside = ax.get_yaxis_transform()
    for row, means in enumerate(display.mean):
        known = means[np.isfinite(means)]
        text = f"{known.max():.3f}" if len(known) else "failed"
        weight = "bold" if best is not None and row == best[0] else "normal"
        ax.text(
            1.012, row, text, fontsize=8.5, weight=weight, va="center", ha="left", transform=beside
        )
    ax.text(1.012, 1.0, "best", fontsize=8.5, va="bottom", ha="left", transform=ax.transAxes)


def _draw_cost(display: "PoolingComparisonDisplay", ax: Any) -> None:
    """The seconds of a split, on a scale of factors."""
    from matplotlib.ticker import LogLocator

    _shade_rows(display, ax)
    heights, colors = _heights(display), _colors(display.whitenings)
    markers = _markers(display.classifiers)
    for i, j in np.ndindex(display.mean.shape[1:]):
        seconds = display.cost[:, i, j]
        shown = seconds > 0
        ax.plot(
            seconds[shown],
            heights[shown, i, j],
            markers[j],
            color=colors[i],
            markersize=3.2,
            zorder=_POINTS,
        )
    known = display.cost[display.cost > 0]
    if len(known):
        # Powers of ten alone would leave a short axis with one number.
        numbers = (1.0,) if known.max() > _LONG * known.min() else (1.0, 2.0, 5.0)
        ax.set_xscale("log", subs=[2, 5])
        ax.xaxis.set_major_locator(LogLocator(subs=numbers))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
    ax.set_xlabel("seconds per split\n(fit + score)")
    ax.tick_params(axis="y", left=False, labelleft=False)


def _add_legend(
    display: "PoolingComparisonDisplay",
    ax: Any,
    reference: Mapping[str, float],
    title: str | None,
    *,
    above_figure: bool,
) -> None:
    """On top: the title, then a column of colours, one of markers, one of other signs."""
    colors, markers = _colors(display.whitenings), _markers(display.classifiers)
    columns = [
        _column(display.whitenings, [_sign(color=c, marker="o") for c in colors], "whitening"),
        _column(display.classifiers, [_sign(color="0.3", marker=m) for m in markers], "classifier"),
        _signs(display, reference),
    ]
    columns = [column for column in columns if column] or [[]]
    widths = [max((len(name) for _, name in column), default=0) + 6 for column in columns]
    if sum(widths) * _INCHES_PER_LETTER > (_WIDTH if above_figure else _inches(ax)):
        columns = [[entry for column in columns for entry in column]]
    length = max(map(len, columns))
    blank = _sign(), ""
    entries = [entry for column in columns for entry in column + [blank] * (length - len(column))]
    handles, labels = zip(*(entries or [blank]), strict=True)
    place = {"loc": "outside upper left"} if above_figure else _ABOVE_AXES
    owner = ax.figure if above_figure else ax
    # The title is the legend's, since one of the axes would lie under the legend.
    owner.legend(handles, labels, ncols=len(columns), title=title, **place, **_LEGEND)


def _sign(**style: object) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"linestyle": "none", "markersize": 5.5, **style})


def _column(names: Sequence[str], signs: list[Any], title: str) -> list[tuple]:
    """A title and its entries; nothing where the search did not vary it."""
    entries = [(sign, name) for sign, name in zip(signs, names, strict=True) if name]
    return [(_sign(), f"{title}:"), *entries] if entries else []


def _signs(display: "PoolingComparisonDisplay", reference: Mapping[str, float]) -> list[tuple]:
    """The ring, the band and the lines."""
    from matplotlib.patches import Patch

    entries: list[tuple] = []
    if (best := _best(display)) is not None:
        ring = {"color": "black", "marker": "o", "fillstyle": "none", "markersize": 8}
        entries.append((_sign(**ring), "best"))
        if np.isfinite(display.standard_error[best]):
            entries.append((Patch(**_BAND), "at most its standard error below"))
    styles = zip(reference, cycle(_LINES))
    return entries + [(_sign(**_REFERENCE, linestyle=style), name) for name, style in styles]
