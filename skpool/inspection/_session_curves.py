# SPDX-License-Identifier: BSD-3-Clause
"""SessionCurvesDisplay: several methods by their accuracy on all that was seen so far.

It stands beside the table of a comparison: `incremental_evaluate` was called once per method on
the same sessions, and one line per method shows where they part.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skpool.inspection._checks import check_fractions, check_results, check_same_length
from skpool.inspection._style import axes_to_draw_on, draw_lines, light_frame, name_lines

__all__ = ["SessionCurvesDisplay", "classes_seen", "limits"]

_SIZE = (8.5, 4.8)
_REFERENCE = {"color": "0.35", "linestyle": (0, (1, 1.5)), "linewidth": 1.6, "marker": ""}
_FEW_TICKS = 12
# Share of the spread of all values that is kept free above and below them.
_ROOM = 0.06


class SessionCurvesDisplay:
    """Accuracy on all classes seen so far, session by session, for several methods.

    Each line carries its name, its average and its last accuracy at its end. A dotted line may
    show the joint fit: what learning everything at once would reach. Use `from_results` rather
    than this constructor.

    Parameters
    ----------
    names : sequence of str of length n_methods
        Names of the methods.
    seen_accuracy : ndarray of shape (n_methods, n_sessions)
        Accuracy on all held-out rows of the classes seen, a fraction.
    n_seen_classes : ndarray of shape (n_sessions,)
        Classes seen by the end of each session.
    joint_accuracy : ndarray of shape (n_sessions,), default=None
        The same of a model that learns all sessions seen at once; NaN where unknown.

    Attributes
    ----------
    average_incremental_accuracy : ndarray of shape (n_methods,)
        Mean of `seen_accuracy` over the sessions, "average" in the picture.
    last_accuracy : ndarray of shape (n_methods,)
        `seen_accuracy` after the last session, "last" in the picture.
    figure_ : matplotlib Figure
        The figure; after `plot`.
    ax_ : matplotlib Axes
        The axes; after `plot`.
    lines_ : list of matplotlib Line2D
        One per method, and the joint fit where there is one; after `plot`.

    See Also
    --------
    AccuracyMatrixDisplay : One method, session by session.
    BaseNovelDisplay : First classes and later ones apart.

    Notes
    -----
    The accuracy after session t is over all held-out rows of the classes seen, so that large
    sessions weigh more; it is not the mean of a row of the accuracy matrix. Averages of protocols
    whose first sessions differ in size cannot be compared.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.inspection import SessionCurvesDisplay
    >>> display = SessionCurvesDisplay(
    ...     names=["nearest mean", "ridge"],
    ...     seen_accuracy=np.array([[0.9, 0.7], [0.9, 0.8]]),
    ...     n_seen_classes=np.array([10, 20]),
    ... )
    >>> display.average_incremental_accuracy, display.last_accuracy
    (array([0.8 , 0.85]), array([0.7, 0.8]))
    >>> [text.get_text() for text in display.plot().ax_.texts]
    ['nearest mean: average 80.0, last 70.0', 'ridge: average 85.0, last 80.0']
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        seen_accuracy: np.ndarray,
        n_seen_classes: np.ndarray,
        joint_accuracy: np.ndarray | None = None,
    ):
        self.names = names
        self.seen_accuracy = seen_accuracy
        self.n_seen_classes = n_seen_classes
        self.joint_accuracy = joint_accuracy

    @property
    def average_incremental_accuracy(self) -> np.ndarray:
        """Mean over the sessions."""
        return self.seen_accuracy.mean(axis=1)

    @property
    def last_accuracy(self) -> np.ndarray:
        """After the last session."""
        return self.seen_accuracy[:, -1]

    @classmethod
    def from_results(
        cls,
        results: Mapping[str, Any],
        *,
        joint_accuracy: float | np.ndarray | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> "SessionCurvesDisplay":
        """Draw what `incremental_evaluate` returned for several methods.

        Parameters
        ----------
        results : dict of {str: IncrementalResult}
            Results on the same sessions, by name.
        joint_accuracy : float or array-like of shape (n_sessions,), default=None
            Accuracy of a joint fit: of the last session, or of all.
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : SessionCurvesDisplay
        """
        results = check_results(results, "IncrementalResult")
        curves = {name: result.seen_accuracy for name, result in results.items()}
        accuracy = check_fractions(check_same_length(curves, "sessions"), "seen_accuracy")
        display = cls(
            names=list(results),
            seen_accuracy=accuracy,
            n_seen_classes=classes_seen(results),
            joint_accuracy=_joint(joint_accuracy, accuracy.shape[1]),
        )
        return display.plot(ax=ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        title: str | None = None,
        joint_name: str = "joint fit",
    ) -> "SessionCurvesDisplay":
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure. The names of the lines stand to its right.
        title : str, default=None
            Stands above.
        joint_name : str, default="joint fit"
            What the reference is called.

        Returns
        -------
        display : SessionCurvesDisplay
            This one.
        """
        ax = axes_to_draw_on(ax, "SessionCurvesDisplay", _SIZE)
        self.ax_, self.figure_ = ax, ax.figure
        x, x_label = _places(self.n_seen_classes)
        self.lines_ = draw_lines(ax, x, self.seen_accuracy)
        names = [
            f"{name}: average {100 * average:.1f}, last {100 * last:.1f}"
            for name, average, last in zip(
                self.names, self.average_incremental_accuracy, self.last_accuracy, strict=True
            )
        ]
        if self.joint_accuracy is not None:
            self.lines_ += _draw_joint(ax, x, self.joint_accuracy)
            names.append(f"{joint_name}: last {100 * self.joint_accuracy[-1]:.1f}")
        ax.set(xlabel=x_label, ylabel="accuracy on all classes seen (%)")
        if len(x) <= _FEW_TICKS:
            ax.set_xticks(x)
        ax.set_ylim(*limits(self.lines_))
        light_frame(ax)
        if title is not None:
            ax.set_title(title, loc="left")
        name_lines(ax, self.lines_, names)
        return self


def classes_seen(results: Mapping[str, Any]) -> np.ndarray:
    """Number of different classes by the end of every session, which results must share."""
    counts = {}
    for name, result in results.items():
        seen: set = set()
        counts[name] = []
        for classes in result.stages:
            seen |= set(np.asarray(classes).tolist())
            counts[name].append(len(seen))
    table = check_same_length(counts, "sessions").astype(int)
    if (table != table[0]).any():
        raise ValueError(
            f"results differ in the classes of their sessions, {counts}; draw those of one "
            "protocol."
        )
    return table[0]


def _joint(joint: float | np.ndarray | None, n_sessions: int) -> np.ndarray | None:
    """A curve, of which a single number is the end."""
    if joint is None:
        return None
    joint = check_fractions(joint, "joint_accuracy")
    if joint.ndim == 0:
        return np.append(np.full(n_sessions - 1, np.nan), joint)
    if joint.shape != (n_sessions,):
        raise ValueError(
            f"joint_accuracy has shape {joint.shape} for {n_sessions} sessions; give one number, "
            "or one per session."
        )
    return joint


def _places(n_seen_classes: np.ndarray) -> tuple[np.ndarray, str]:
    """Where the sessions stand: by their classes, or by number where no class is new."""
    if (np.diff(n_seen_classes) > 0).all():
        return np.asarray(n_seen_classes), "classes seen"
    return np.arange(1, len(n_seen_classes) + 1), "sessions seen"


def _draw_joint(ax: Any, x: np.ndarray, joint: np.ndarray) -> list[Any]:
    """A dotted curve; a level where the end alone is known."""
    known = joint if np.isfinite(joint[:-1]).any() else np.full(len(joint), joint[-1])
    return ax.plot(x, 100 * known, **_REFERENCE)


def limits(lines: Sequence[Any]) -> tuple[float, float]:
    """Ends of an axis of percents that shows all lines and little more."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in lines])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 100.0
    room = max(_ROOM * (values.max() - values.min()), 0.5)
    return max(values.min() - room, -room), min(values.max() + room, 100 + room)
