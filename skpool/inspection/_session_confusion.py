# SPDX-License-Identifier: BSD-3-Clause
"""SessionConfusionDisplay: in which session the errors end.

A model that learned in sessions can be wrong in two ways: it confuses classes that came together,
or it answers with classes of another time, most often the last. The confusion matrix of single
classes hides which; that of sessions shows it at a glance.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skpool.inspection._style import (
    axes_to_draw_on,
    draw_cells,
    session_labels,
    write_columns,
    write_rows,
)

__all__ = ["SessionConfusionDisplay"]

_INCHES_PER_CELL, _SMALLEST, _LARGEST, _MARGIN = 0.46, 3.2, 11.0, 2.6


class SessionConfusionDisplay:
    """Where the held-out rows of every session are predicted to belong.

    Row i has the rows whose class came in session i, column j the share of them that is predicted
    as a class of session j. A dark last column is recency bias. To the right stand the share of
    right answers, and the share of the errors that stay inside the session; below, the share of
    all predictions that each session gets, to be held against its share of the rows. Use
    `from_predictions` rather than this constructor.

    Parameters
    ----------
    counts : ndarray of shape (n_sessions, n_sessions)
        Rows of session i predicted as a class of session j.
    right : ndarray of shape (n_sessions,)
        Rows of session i whose class is predicted.
    session_names : sequence of str of length n_sessions, default=None
        Names of the sessions; None for their numbers from 1.

    Attributes
    ----------
    confusion : ndarray of shape (n_sessions, n_sessions)
        `counts` with rows that sum to 1; NaN for a session without rows.
    accuracy : ndarray of shape (n_sessions,)
        Share of right answers per session.
    inside_errors : ndarray of shape (n_sessions,)
        Share of the errors of a session that are another class of that session; NaN without
        errors.
    true_share, predicted_share : ndarray of shape (n_sessions,)
        Share of all rows that belong to a session, and that are predicted to.
    figure_ : matplotlib Figure
        The figure; after `plot`.
    ax_ : matplotlib Axes
        The axes; after `plot`.
    im_ : matplotlib AxesImage
        The map; after `plot`.

    See Also
    --------
    AccuracyMatrixDisplay : Accuracy by session, over time.
    sklearn.metrics.ConfusionMatrixDisplay : Class by class.

    Examples
    --------
    >>> from skpool.inspection import SessionConfusionDisplay
    >>> display = SessionConfusionDisplay.from_predictions(
    ...     ["cat", "cat", "dog", "owl"], ["cat", "dog", "owl", "owl"], [["cat", "dog"], ["owl"]]
    ... )
    >>> display.counts
    array([[2, 1],
           [0, 1]])
    >>> display.inside_errors
    array([0.5, nan])
    """

    def __init__(
        self,
        *,
        counts: np.ndarray,
        right: np.ndarray,
        session_names: Sequence[str] | None = None,
    ):
        self.counts = counts
        self.right = right
        self.session_names = session_names

    @property
    def confusion(self) -> np.ndarray:
        """Rows that sum to 1."""
        return _ratio(self.counts, self.counts.sum(axis=1, keepdims=True))

    @property
    def accuracy(self) -> np.ndarray:
        """Share of right answers per session."""
        return _ratio(self.right, self.counts.sum(axis=1))

    @property
    def inside_errors(self) -> np.ndarray:
        """Share of the errors of a session that stay in it."""
        inside = np.diag(self.counts) - self.right
        return _ratio(inside, self.counts.sum(axis=1) - self.right)

    @property
    def true_share(self) -> np.ndarray:
        """Share of all rows that belong to each session."""
        return _ratio(self.counts.sum(axis=1), self.counts.sum())

    @property
    def predicted_share(self) -> np.ndarray:
        """Share of all rows that are predicted to belong to each session."""
        return _ratio(self.counts.sum(axis=0), self.counts.sum())

    @classmethod
    def from_result(
        cls,
        result: Any,
        *,
        session: int = -1,
        session_names: Sequence[str] | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> "SessionConfusionDisplay":
        """Draw the state after a session of `incremental_evaluate`.

        Parameters
        ----------
        result : IncrementalResult
            Made with `return_predictions=True`.
        session : int, default=-1
            After which session, from 0; the last by default.
        session_names, ax, **kwargs
            As in `from_predictions`.

        Returns
        -------
        display : SessionConfusionDisplay
            Of the sessions seen by then.
        """
        if result.predictions is None:
            raise ValueError(
                "result.predictions is None; call incremental_evaluate with "
                "return_predictions=True."
            )
        last = range(len(result.stages))[session]
        found = result.predictions[session]
        sessions = result.stages[: last + 1]
        return cls.from_predictions(
            found.y_true,
            found.y_pred,
            sessions,
            session_names=session_names,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: np.ndarray,
        y_pred: np.ndarray,
        sessions: Sequence[Sequence],
        *,
        session_names: Sequence[str] | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> "SessionConfusionDisplay":
        """Draw true against predicted sessions.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            Labels.
        y_pred : array-like of shape (n_samples,)
            Predicted labels.
        sessions : sequence of array-like
            The new classes of each session, such as `IncrementalResult.stages`. A class that
            comes again belongs to the session in which it came first.
        session_names : sequence of str of length n_sessions, default=None
            Names of the sessions; None for their numbers from 1.
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : SessionConfusionDisplay
        """
        y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
        if y_true.shape != y_pred.shape or y_true.ndim != 1:
            raise ValueError(
                f"y_true and y_pred must be one label per row, got shapes {y_true.shape} and "
                f"{y_pred.shape}; give the labels of the same rows."
            )
        session_of = _session_of(sessions)
        true, predicted = (
            _sessions(labels, session_of, name)
            for labels, name in ((y_true, "y_true"), (y_pred, "y_pred"))
        )
        counts = np.zeros((len(sessions), len(sessions)), dtype=int)
        np.add.at(counts, (true, predicted), 1)
        right = np.bincount(true[y_true == y_pred], minlength=len(sessions))
        display = cls(counts=counts, right=right, session_names=session_names)
        return display.plot(ax=ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        cmap: str = "Blues",
        values_format: str = ".0f",
        margins: bool = True,
        title: str | None = None,
    ) -> "SessionConfusionDisplay":
        """Draw the matrix.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure.
        cmap : str, default="Blues"
            Colour map from 0 to 100 %.
        values_format : str, default=".0f"
            Format of the percents in the cells, which are left out where cells are too small.
        margins : bool, default=True
            Write accuracy and errors inside the session to the right, shares below.
        title : str, default=None
            Stands above.

        Returns
        -------
        display : SessionConfusionDisplay
            This one.
        """
        n_sessions = len(self.counts)
        side = float(np.clip(_INCHES_PER_CELL * n_sessions, _SMALLEST, _LARGEST))
        ax = axes_to_draw_on(ax, "SessionConfusionDisplay", (side + _MARGIN, side + 0.7 * _MARGIN))
        self.ax_, self.figure_ = ax, ax.figure
        self.im_ = draw_cells(ax, self.confusion, cmap=cmap, values_format=values_format)
        names = session_labels(self.session_names, n_sessions)
        ax.set_xticks(range(n_sessions), names)
        ax.set_yticks(range(n_sessions), names)
        ax.set_ylabel("true session")
        ax.set_xlabel("share (%) predicted as session")
        if margins:
            self._write_margins(ax, values_format)
        if title is not None:
            ax.set_title(title, loc="left")
        return self

    def _write_margins(self, ax: Any, values_format: str) -> None:
        beside = {"right": self.accuracy, "errors\ninside": self.inside_errors}
        below = {"predicted": self.predicted_share, "true": self.true_share}
        write_columns(ax, beside, values_format)
        write_rows(ax, below, values_format)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _session_of(sessions: Sequence[Sequence]) -> dict[Any, int]:
    """The session in which each class came first."""
    session_of: dict[Any, int] = {}
    for i, classes in enumerate(sessions):
        for label in np.asarray(classes).ravel().tolist():
            session_of.setdefault(label, i)
    if not session_of:
        raise ValueError("sessions holds no class; give the new classes of each session.")
    return session_of


def _sessions(labels: np.ndarray, session_of: dict[Any, int], name: str) -> np.ndarray:
    """The session of every label."""
    unknown = sorted(set(labels.tolist()) - session_of.keys())
    if unknown:
        raise ValueError(
            f"{name} holds {unknown[:5]}, of no session; list every class in `sessions`."
        )
    return np.array([session_of[label] for label in labels.tolist()], dtype=int)
