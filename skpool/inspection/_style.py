# SPDX-License-Identifier: BSD-3-Clause
"""What the displays share: colours, new axes, names at the ends of lines, maps with numbers.

Colour is never the only sign: lines have markers and their names beside them, cells have numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.isotonic import isotonic_regression

from skpool.utils import import_optional

__all__ = [
    "COLORS",
    "MARKERS",
    "axes_to_draw_on",
    "draw_cells",
    "draw_lines",
    "import_pyplot",
    "light_frame",
    "name_lines",
    "session_labels",
    "signs",
    "write_columns",
    "write_rows",
]

# Okabe and Ito's palette, which people with any colour vision can tell apart.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
MARKERS = ("o", "D", "^", "s", "v", "P", "X", "*")
# A yellow line is lost on white paper.
_LINE_COLORS = tuple(color for color in COLORS if color != "#F0E442")
_STYLES = ("-", "--", ":", "-.")
_POINTS_PER_INCH = 72
_FEW_POINTS = 25
# Where names begin, as a share of the width of the axes, and the room for a line of text.
_NAMES, _LINE_HEIGHT, _FONT = 1.045, 1.35, 9.0
# Where the margins of a map stand, in points from its edge.
_FIRST_BESIDE, _STEP_BESIDE, _FIRST_BELOW, _STEP_BELOW = 26, 44, 28, 16
# A number has this share of its cell and is left out where nobody could read it.
_SHARE_OF_CELL, _SMALLEST_FONT = 0.42, 4.5


def import_pyplot(name: str) -> Any:
    """matplotlib.pyplot, or an error that says how to install it."""
    return import_optional("matplotlib.pyplot", extra="plot", purpose=f"Drawing a {name}")


def axes_to_draw_on(ax: Any, name: str, size: tuple[float, float]) -> Any:
    """The given axes, or those of a new figure."""
    plt = import_pyplot(name)
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def signs(n: int) -> list[dict[str, str]]:
    """Colour, marker and dashes of the i-th of n lines; no two of the first 28 agree."""
    n_colors = len(_LINE_COLORS)
    return [
        {
            "color": _LINE_COLORS[i % n_colors],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": _STYLES[i // n_colors % len(_STYLES)],
        }
        for i in range(n)
    ]


def light_frame(ax: Any) -> None:
    """Horizontal guides and no box."""
    ax.grid(axis="y", color="0.88", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def draw_lines(ax: Any, x: np.ndarray, lines: np.ndarray) -> list[Any]:
    """One line of percents per row of fractions, with the signs of its place."""
    style = {
        "linewidth": 1.8,
        "markersize": 4.5,
        # Markers on many points would hide the lines; the last one stands beside the name.
        "markevery": 1 if len(x) <= _FEW_POINTS else [-1],
        "clip_on": False,
        "zorder": 3,
    }
    return [
        ax.plot(x, 100 * line, **sign, **style)[0]
        for line, sign in zip(lines, signs(len(lines)), strict=True)
    ]


def name_lines(ax: Any, lines: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Write the name of every line to the right of the axes, as near to its end as there is room.

    The limits of the y axis must stand. The last finite point of a line is its end; a line
    without one is not named.
    """
    ends = [_end(line) for line in lines]
    known = [i for i, end in enumerate(ends) if end is not None]
    known.sort(key=lambda i: ends[i][1])
    low, high = ax.get_ylim()
    points = ax.get_window_extent().height / ax.figure.dpi * _POINTS_PER_INCH
    gap = _LINE_HEIGHT * _FONT / points * (high - low)
    heights = _spread(np.array([ends[i][1] for i in known]), gap)
    return [
        ax.annotate(
            names[i],
            xy=ends[i],
            xytext=(_NAMES, height),
            textcoords=ax.get_yaxis_transform(),
            fontsize=_FONT,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": lines[i].get_color(),
                "linewidth": 0.9,
                "shrinkA": 1.5,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )
        for i, height in zip(known, heights, strict=True)
    ]


def _end(line: Any) -> tuple[float, float] | None:
    x, y = (np.asarray(values, dtype=float) for values in line.get_data())
    finite = np.flatnonzero(np.isfinite(y))
    return (x[finite[-1]], y[finite[-1]]) if len(finite) else None


def _spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """The nearest heights, by least squares, of which neighbours lie a gap apart."""
    if not len(heights):
        return heights
    steps = gap * np.arange(len(heights))
    return isotonic_regression(heights - steps) + steps


def draw_cells(ax: Any, table: np.ndarray, *, cmap: str, values_format: str) -> Any:
    """A map of fractions between 0 and 1 with the percents in its cells; NaN stays white."""
    n_rows, n_columns = table.shape
    image = ax.imshow(table, cmap=cmap, vmin=0, vmax=1, aspect="equal", interpolation="nearest")
    ax.set_xticks(np.arange(n_columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(n_rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    font = _font_of_cells(ax, n_rows)
    if font >= _SMALLEST_FONT:
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                color = "white" if _is_dark(image.cmap(image.norm(value))) else "black"
                place = {"ha": "center", "va": "center", "color": color, "fontsize": font}
                ax.text(column, row, format(100 * value, values_format), **place)
    return image


def session_labels(names: Sequence[str] | None, n_sessions: int) -> list[str]:
    """The names given, one per session, or numbers from 1."""
    if names is None:
        return [str(i + 1) for i in range(n_sessions)]
    if len(names) != n_sessions:
        raise ValueError(
            f"session_names has {len(names)} names for {n_sessions} sessions; give one for each."
        )
    return [str(name) for name in names]


def _font_of_cells(ax: Any, n_rows: int) -> float:
    """Points of a number that fits into one of so many rows."""
    points = ax.get_window_extent().height / ax.figure.dpi * _POINTS_PER_INCH
    return min(_FONT, _SHARE_OF_CELL * points / max(n_rows, 1))


def _is_dark(color: tuple[float, ...]) -> bool:
    red, green, blue = color[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5


def write_columns(ax: Any, columns: Mapping[str, np.ndarray], values_format: str) -> None:
    """Columns of percents to the right of a map, each under its title."""
    right, bottom = ax.get_xlim()[1], ax.get_ylim()[0]
    font = max(_font_of_cells(ax, bottom + 0.5), _SMALLEST_FONT)
    for i, (title, values) in enumerate(columns.items()):
        beside = _FIRST_BESIDE + _STEP_BESIDE * i
        _write(ax, title, (right, -0.5), (beside, 4), ha="center")
        for row in np.flatnonzero(np.isfinite(values)):
            text = format(100 * values[row], values_format)
            _write(ax, text, (right, row), (beside, 0), ha="center", va="center", fontsize=font)


def write_rows(ax: Any, rows: Mapping[str, np.ndarray], values_format: str) -> None:
    """Rows of percents between a map and the label of its columns, each after its title."""
    bottom = ax.get_ylim()[0]
    font = max(_font_of_cells(ax, bottom + 0.5), _SMALLEST_FONT)
    for i, (title, values) in enumerate(rows.items()):
        below = -_FIRST_BELOW - _STEP_BELOW * i
        _write(ax, title, (-0.5, bottom), (-4, below), ha="right", va="center")
        for column in np.flatnonzero(np.isfinite(values)):
            text = format(100 * values[column], values_format)
            _write(ax, text, (column, bottom), (0, below), ha="center", va="center", fontsize=font)
    ax.xaxis.labelpad = 9 + _STEP_BELOW * len(rows)


def _write(
    ax: Any, text: str, xy: tuple[float, float], points: tuple[float, float], **style: Any
) -> None:
    """Text so many points from a place, wherever the axes end."""
    style = {"fontsize": _FONT, **style}
    place = {"xytext": points, "textcoords": "offset points", "annotation_clip": False}
    ax.annotate(text, xy=xy, **place, **style)
