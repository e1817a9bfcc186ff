# SPDX-License-Identifier: BSD-3-Clause
"""StreamCurveDisplay: accuracy over the rows of a stream, with the arrivals of classes.

It stands at the end of a stream: rows came in small batches, the model was tested every so often
(`stream_evaluate`), and the picture shows when classes arrived, what their arrival cost, and
what the forgetting of a class on request changed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skpool.inspection._checks import check_fractions, check_results
from skpool.inspection._session_curves import limits
from skpool.inspection._style import axes_to_draw_on, draw_lines, light_frame, name_lines

__all__ = ["StreamCurveDisplay"]

_SIZE = (9.0, 4.6)
_TICKS = {"color": "0.35", "linewidth": 1.0, "clip_on": False}
_FORGOTTEN = {"color": "0.2", "linestyle": (0, (4, 3)), "linewidth": 1.2, "zorder": 1}


class StreamCurveDisplay:
    """Accuracy on the classes seen, over the rows seen, for several methods.

    Ticks on the lower edge mark the arrival of classes, dashed lines classes that were forgotten
    on request. Use `from_results` rather than this constructor.

    Parameters
    ----------
    names : sequence of str of length n_methods
        Names of the methods.
    times : ndarray of shape (n_times,)
        Rows seen at every evaluation, increasing.
    accuracy : ndarray of shape (n_methods, n_times)
        Accuracy on held-out rows of the classes known then, a fraction.
    arrivals : ndarray of shape (n_arrivals,), default=()
        Rows seen when a class arrived, one entry per class.
    forgotten : dict of {str: float}, default=None
        Names of classes that were forgotten, and the rows seen by then.

    Attributes
    ----------
    mean_accuracy : ndarray of shape (n_methods,)
        Mean of `accuracy` over the evaluations, "mean" in the picture; where every row counts
        alike, the "anytime_accuracy_rows" of `StreamResult.summary`.
    last_accuracy : ndarray of shape (n_methods,)
        Accuracy at the last evaluation, "last" in the picture.
    figure_ : matplotlib Figure
        The figure; after `plot`.
    ax_ : matplotlib Axes
        The axes; after `plot`.
    lines_ : list of matplotlib Line2D
        One per method; after `plot`.

    See Also
    --------
    SessionCurvesDisplay : The same by sessions.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.inspection import StreamCurveDisplay
    >>> display = StreamCurveDisplay(
    ...     names=["ridge"], times=np.array([50, 100]), accuracy=np.array([[0.9, 0.8]])
    ... )
    >>> display.mean_accuracy
    array([0.85])
    >>> [text.get_text() for text in display.plot().ax_.texts]
    ['ridge: mean 85.0, last 80.0']
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        times: np.ndarray,
        accuracy: np.ndarray,
        arrivals: np.ndarray | Sequence[float] = (),
        forgotten: Mapping[str, float] | None = None,
    ):
        self.names = names
        self.times = times
        self.accuracy = accuracy
        self.arrivals = arrivals
        self.forgotten = forgotten

    @property
    def mean_accuracy(self) -> np.ndarray:
        """Mean over the evaluations that were made."""
        return np.nanmean(self.accuracy, axis=1)

    @property
    def last_accuracy(self) -> np.ndarray:
        """At the last evaluation."""
        return self.accuracy[:, -1]

    @classmethod
    def from_results(
        cls,
        results: Mapping[str, Any],
        *,
        arrivals: np.ndarray | Sequence[float] | None = None,
        forgotten: Mapping[str, float] | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> "StreamCurveDisplay":
        """Draw what `stream_evaluate` returned for several methods.

        Parameters
        ----------
        results : dict of {str: StreamResult}
            Results of the same stream, by name.
        arrivals : array-like of shape (n_arrivals,), default=None
            Rows seen when a class arrived; None for the first evaluations in which a class of
            the first result was tested.
        forgotten : dict of {str: float}, default=None
            Classes that were forgotten, and the rows seen by then.
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : StreamCurveDisplay
        """
        results = check_results(results, "StreamResult")
        first, *others = results.values()
        times = np.asarray(first.times)
        if any(not np.array_equal(times, result.times) for result in others):
            raise ValueError(
                f"results were evaluated at different times, {list(results)}; draw those of one "
                "stream with one eval_every."
            )
        if arrivals is None:
            arrivals = _arrivals(times, np.asarray(first.per_class_accuracy, dtype=np.float64))
        display = cls(
            names=list(results),
            times=times,
            accuracy=check_fractions([r.accuracy for r in results.values()], "accuracy"),
            arrivals=np.asarray(arrivals),
            forgotten=dict(forgotten or {}),
        )
        return display.plot(ax=ax, **kwargs)

    def plot(self, ax: Any = None, *, title: str | None = None) -> "StreamCurveDisplay":
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure. The names of the lines stand to its right.
        title : str, default=None
            Stands above.

        Returns
        -------
        display : StreamCurveDisplay
            This one.
        """
        ax = axes_to_draw_on(ax, "StreamCurveDisplay", _SIZE)
        self.ax_, self.figure_ = ax, ax.figure
        self.lines_ = draw_lines(ax, self.times, self.accuracy)
        ax.set(xlabel="rows seen", ylabel="accuracy on the classes known (%)")
        ax.set_xlim(min([*self.times, *self.arrivals]), self.times[-1])
        ax.set_ylim(*limits(self.lines_))
        light_frame(ax)
        if title is not None:
            ax.set_title(title, loc="left")
        _mark_arrivals(ax, np.asarray(self.arrivals))
        for name, time in (self.forgotten or {}).items():
            _mark_forgotten(ax, name, time)
        names = [
            f"{name}: mean {100 * mean:.1f}, last {100 * last:.1f}"
            for name, mean, last in zip(
                self.names, self.mean_accuracy, self.last_accuracy, strict=True
            )
        ]
        name_lines(ax, self.lines_, names)
        return self


def _arrivals(times: np.ndarray, per_class: np.ndarray) -> np.ndarray:
    """The first evaluation at which each class was tested; classes never tested are left out."""
    tested = np.isfinite(per_class)
    return np.sort(times[tested.argmax(axis=0)[tested.any(axis=0)]])


def _mark_arrivals(ax: Any, arrivals: np.ndarray) -> None:
    """A tick per moment, the higher the more classes arrived in it."""
    moments, counts = np.unique(arrivals, return_counts=True)
    if not len(moments):
        return
    heights = 0.02 + 0.03 * counts / counts.max()
    ax.vlines(moments, 0, heights, transform=ax.get_xaxis_transform(), **_TICKS)
    each = "" if counts.max() == 1 else f" (at most {counts.max()} at once)"
    ax.set_xlabel(f"rows seen; ticks: a class arrives{each}")


def _mark_forgotten(ax: Any, name: str, time: float) -> None:
    ax.axvline(time, **_FORGOTTEN)
    ax.annotate(
        f"{name} forgotten",
        xy=(time, 1),
        xycoords=ax.get_xaxis_transform(),
        xytext=(4, -2),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
    )
