# SPDX-License-Identifier: BSD-3-Clause
"""EpisodeIntervalsDisplay: few-shot methods with the interval of each, the best on top.

It stands beside the table of a few-shot comparison: `few_shot_score` was called once per method,
and perhaps once more with queries of another mix of classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skpool.inspection._checks import check_results
from skpool.inspection._style import COLORS, axes_to_draw_on

__all__ = ["EpisodeIntervalsDisplay"]

_WIDTH, _INCHES_PER_ROW, _REST = 7.5, 0.36, 1.3
# Share of a row over which the points of its groups spread.
_SPREAD = 0.44
_MARKERS = ("o", "D", "^", "s")
# Points: the height and the width of letters, where numbers begin, and their width.
_FONT, _LETTER, _FIRST_COLUMN, _COLUMN = 8.5, 5.2, 8, 64


class EpisodeIntervalsDisplay:
    """Mean accuracy over episodes with its 95 % interval, a row per method, the best on top.

    Every method may have several points, such as one for balanced queries and a hollow one for
    unbalanced ones. Use `from_results` rather than this constructor.

    Parameters
    ----------
    names : sequence of str of length n_methods
        Names of the methods, the best first.
    groups : sequence of str of length n_groups
        Names of the points of a method; one empty name where there is one point only.
    mean : ndarray of shape (n_methods, n_groups)
        Mean accuracy over the episodes, a fraction; NaN where a method has no such result.
    ci95 : ndarray of shape (n_methods, n_groups)
        Half the width of the 95 % interval of the mean.
    n_episodes : int or None, default=None
        Episodes behind every point; None where they differ.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure; after `plot`.
    ax_ : matplotlib Axes
        The axes; after `plot`.

    See Also
    --------
    skpool.model_selection.few_shot_score : What gives the results.

    Notes
    -----
    The interval is that of the draw of episodes from one data set: it knows nothing of other
    networks or other data. Methods that saw the same episodes differ by less than two separate
    intervals suggest; `compare_few_shot` gives the interval of their difference.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.inspection import EpisodeIntervalsDisplay
    >>> display = EpisodeIntervalsDisplay(
    ...     names=["SimpleShot", "nearest mean"],
    ...     groups=[""],
    ...     mean=np.array([[0.78], [0.75]]),
    ...     ci95=np.array([[0.01], [0.02]]),
    ... )
    >>> [label.get_text() for label in display.plot().ax_.get_yticklabels()]
    ['SimpleShot', 'nearest mean']
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        groups: Sequence[str],
        mean: np.ndarray,
        ci95: np.ndarray,
        n_episodes: int | None = None,
    ):
        self.names = names
        self.groups = groups
        self.mean = mean
        self.ci95 = ci95
        self.n_episodes = n_episodes

    @classmethod
    def from_results(
        cls, results: Mapping[str, Any], *, ax: Any = None, **kwargs: Any
    ) -> "EpisodeIntervalsDisplay":
        """Draw what `few_shot_score` returned for several methods.

        Parameters
        ----------
        results : dict of {str: FewShotResult} or of {str: dict of {str: FewShotResult}}
            By name of the method; or by method and then by group, such as
            ``{"nearest mean": {"balanced": a, "unbalanced": b}}``.
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : EpisodeIntervalsDisplay
            Methods are sorted by their mean in the first group.
        """
        results = check_results(results, "FewShotResult")
        nested = {
            name: dict(result) if isinstance(result, Mapping) else {"": result}
            for name, result in results.items()
        }
        groups = list(dict.fromkeys(group for result in nested.values() for group in result))
        mean, ci95 = (_table(nested, groups, part) for part in ("mean", "ci95"))
        order = np.argsort(-np.nan_to_num(mean[:, 0], nan=-1), kind="stable")
        counts = {int(r.n_episodes) for result in nested.values() for r in result.values()}
        names = list(nested)
        display = cls(
            names=[names[i] for i in order],
            groups=groups,
            mean=mean[order],
            ci95=ci95[order],
            n_episodes=counts.pop() if len(counts) == 1 else None,
        )
        return display.plot(ax=ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        values: bool = True,
        legend: bool = True,
        title: str | None = None,
    ) -> "EpisodeIntervalsDisplay":
        """Draw the intervals.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure, as high as the number of methods asks for.
        values : bool, default=True
            Write mean and half width to the right of every row, a column per group.
        legend : bool, default=True
            Say what the markers of several groups are.
        title : str, default=None
            Stands above.

        Returns
        -------
        display : EpisodeIntervalsDisplay
            This one.
        """
        n_rows, n_groups = self.mean.shape
        ax = axes_to_draw_on(
            ax, "EpisodeIntervalsDisplay", (_WIDTH, _REST + _INCHES_PER_ROW * n_rows)
        )
        self.ax_, self.figure_ = ax, ax.figure
        heights = np.arange(n_rows)[:, None] + _SPREAD * (
            (np.arange(n_groups) + 0.5) / n_groups - 0.5
        )
        for j, group in enumerate(self.groups):
            _draw_group(ax, j, self.mean[:, j], self.ci95[:, j], heights[:, j], group)
        ax.set_yticks(range(n_rows), self.names)
        ax.set_ylim(n_rows - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color="0.88", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.set_xlabel(_label(self.n_episodes))
        if values:
            _write_values(ax, self.mean, self.ci95, self.groups)
        if legend and n_groups > 1:
            ax.legend(
                loc="lower left",
                bbox_to_anchor=(0, 1),
                ncols=n_groups,
                frameon=False,
                fontsize=_FONT,
                borderaxespad=0.2,
                handletextpad=0.3,
            )
        if title is not None:
            ax.set_title(title, loc="left", pad=24 if legend and n_groups > 1 else 8)
        return self


def _table(nested: Mapping[str, Mapping], groups: Sequence[str], part: str) -> np.ndarray:
    missing = float("nan")
    return np.array(
        [
            [float(getattr(result[g], part)) if g in result else missing for g in groups]
            for result in nested.values()
        ]
    )


def _draw_group(
    ax: Any, place: int, mean: np.ndarray, ci95: np.ndarray, heights: np.ndarray, name: str
) -> None:
    """One point per method; groups after the first are hollow."""
    color = COLORS[(0, 4, 2, 3)[place % 4]]
    ax.errorbar(
        100 * mean,
        heights,
        xerr=100 * np.nan_to_num(ci95),
        fmt=_MARKERS[place % len(_MARKERS)],
        color=color,
        markerfacecolor="white" if place else color,
        markersize=5.5,
        elinewidth=1.6,
        zorder=3,
        label=name,
    )


def _label(n_episodes: int | None) -> str:
    over = "episodes" if n_episodes is None else f"{n_episodes} episodes"
    return f"accuracy (%), mean over {over} with its 95 % interval"


def _write_values(ax: Any, mean: np.ndarray, ci95: np.ndarray, groups: Sequence[str]) -> None:
    """Columns of numbers to the right, the best of a column in bold."""
    place = _FIRST_COLUMN
    for j, group in enumerate(groups):
        column = mean[:, j]
        best = np.nanmax(column) if np.isfinite(column).any() else None
        _write(ax, -0.55, place, group, va="bottom")
        for row in np.flatnonzero(np.isfinite(column)):
            text = f"{100 * column[row]:.1f} ± {100 * ci95[row, j]:.1f}"
            weight = "bold" if column[row] == best else "normal"
            _write(ax, row, place, text, va="center", weight=weight)
        place += max(_COLUMN, _LETTER * (len(group) + 2))


def _write(ax: Any, height: float, place: float, text: str, **style: Any) -> None:
    ax.annotate(
        text,
        xy=(1, height),
        xycoords=ax.get_yaxis_transform(),
        xytext=(place, 0),
        textcoords="offset points",
        annotation_clip=False,
        fontsize=_FONT,
        **style,
    )
