# SPDX-License-Identifier: BSD-3-Clause
"""AccuracyMatrixDisplay: how well each session is still known after each later one.

It stands at the end of a protocol: sessions were learned one after the other, each was tested
after each (`incremental_evaluate`), and the matrix of these accuracies is looked at.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skpool import metrics
from skpool.inspection._checks import check_fractions
from skpool.inspection._style import (
    axes_to_draw_on,
    draw_cells,
    session_labels,
    write_columns,
    write_rows,
)

__all__ = ["AccuracyMatrixDisplay"]

_ALL_SEEN, _MEAN = "all\nseen", "mean of\nsessions"
_INCHES_PER_CELL, _SMALLEST, _LARGEST, _MARGIN = 0.46, 3.2, 11.0, 2.2


class AccuracyMatrixDisplay:
    r"""Accuracy on every session after every session, as a map with numbers.

    Row i is the state after session i, column j the held-out rows of session j. What is learned
    in parts exactly shows columns that fade slowly; what forgets shows a bright diagonal over a
    dark triangle. To the right stands the accuracy on all sessions seen so far, below the
    forgetting of every session at the end. Use `from_result` or `from_matrix` rather than this
    constructor.

    Parameters
    ----------
    accuracy_matrix : ndarray of shape (n_sessions, n_sessions)
        Entry (i, j) is the accuracy on session j after session i, a fraction; NaN where not
        tested.
    seen_accuracy : ndarray of shape (n_sessions,)
        Accuracy on all sessions seen, after each.
    seen_name : str
        What `seen_accuracy` is called in the picture.
    forgetting : ndarray of shape (n_sessions, n_sessions)
        Entry (i, j) is what of session j was lost by session i, see Notes.
    session_names : sequence of str of length n_sessions, default=None
        Names of the sessions; None for their numbers from 1.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure; after `plot`.
    ax_ : matplotlib Axes
        The axes; after `plot`.
    im_ : matplotlib AxesImage
        The map; after `plot`.

    See Also
    --------
    SessionCurvesDisplay : Several methods by their accuracy on all that was seen.
    SessionConfusionDisplay : In which session the errors end.

    Notes
    -----
    Forgetting of session j by session i > j is

    .. math:: f_{ij} = \max_{j \le l < i} R_{lj} - R_{ij},

    negative where later sessions helped, and not defined (NaN) for the newest session itself.
    Other conventions let the maximum include session i, or start from :math:`R_{jj}`.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.inspection import AccuracyMatrixDisplay
    >>> R = np.array([[0.9, np.nan], [0.6, 0.8]])
    >>> display = AccuracyMatrixDisplay.from_matrix(R, test_counts=[300, 100])
    >>> display.seen_accuracy.round(2), display.forgetting[1, 0].round(2)
    (array([0.9 , 0.65]), np.float64(0.3))
    """

    def __init__(
        self,
        *,
        accuracy_matrix: np.ndarray,
        seen_accuracy: np.ndarray,
        seen_name: str,
        forgetting: np.ndarray,
        session_names: Sequence[str] | None = None,
    ):
        self.accuracy_matrix = accuracy_matrix
        self.seen_accuracy = seen_accuracy
        self.seen_name = seen_name
        self.forgetting = forgetting
        self.session_names = session_names

    @classmethod
    def from_result(
        cls,
        result: Any,
        *,
        session_names: Sequence[str] | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> "AccuracyMatrixDisplay":
        """Draw what `incremental_evaluate` returned.

        Parameters
        ----------
        result : IncrementalResult
            Its `accuracy_matrix` and `seen_accuracy` are drawn.
        session_names : sequence of str of length n_sessions, default=None
            Names of the sessions; None for the result's `stage_names`, or numbers from 1.
        ax, **kwargs
            As in `from_matrix`.

        Returns
        -------
        display : AccuracyMatrixDisplay
        """
        matrix = _checked(result.accuracy_matrix)
        display = cls(
            accuracy_matrix=matrix,
            seen_accuracy=np.asarray(result.seen_accuracy, dtype=np.float64),
            seen_name=_ALL_SEEN,
            forgetting=_forgetting(matrix),
            session_names=result.stage_names if session_names is None else session_names,
        )
        return display.plot(ax=ax, **kwargs)

    @classmethod
    def from_matrix(
        cls,
        accuracy_matrix: np.ndarray,
        *,
        test_counts: np.ndarray | None = None,
        session_names: Sequence[str] | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> "AccuracyMatrixDisplay":
        """Draw a matrix of accuracies.

        Parameters
        ----------
        accuracy_matrix : array-like of shape (n_sessions, n_sessions)
            Fractions, with NaN where not tested.
        test_counts : array-like of shape (n_sessions,), default=None
            Held-out rows of every session, for the accuracy on all rows seen; None for the mean
            over the sessions seen.
        session_names : sequence of str of length n_sessions, default=None
            Names of the sessions; None for their numbers from 1.
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : AccuracyMatrixDisplay
        """
        matrix = _checked(accuracy_matrix)
        display = cls(
            accuracy_matrix=matrix,
            seen_accuracy=metrics.seen_accuracy(
                matrix, test_counts, kind="tasks" if test_counts is None else "rows"
            ),
            seen_name=_MEAN if test_counts is None else _ALL_SEEN,
            forgetting=_forgetting(matrix),
            session_names=session_names,
        )
        return display.plot(ax=ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        cmap: str = "viridis",
        values_format: str = ".0f",
        margins: bool = True,
        colorbar: bool = False,
        title: str | None = None,
    ) -> "AccuracyMatrixDisplay":
        """Draw the matrix.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure.
        cmap : str, default="viridis"
            Colour map from 0 to 100 %.
        values_format : str, default=".0f"
            Format of the percents in the cells, which are left out where cells are too small.
        margins : bool, default=True
            Write the accuracy on all that was seen to the right, and the forgetting below.
        colorbar : bool, default=False
            Draw a scale of the colours.
        title : str, default=None
            Stands above.

        Returns
        -------
        display : AccuracyMatrixDisplay
            This one.
        """
        n_sessions = len(self.accuracy_matrix)
        side = float(np.clip(_INCHES_PER_CELL * n_sessions, _SMALLEST, _LARGEST))
        ax = axes_to_draw_on(ax, "AccuracyMatrixDisplay", (side + _MARGIN, side + 0.7 * _MARGIN))
        self.ax_, self.figure_ = ax, ax.figure
        self.im_ = draw_cells(ax, self.accuracy_matrix, cmap=cmap, values_format=values_format)
        names = session_labels(self.session_names, n_sessions)
        ax.set_xticks(range(n_sessions), names)
        ax.set_yticks(range(n_sessions), names)
        ax.set_ylabel("after session")
        ax.set_xlabel("accuracy (%) on the held-out rows of session")
        if margins:
            write_columns(ax, {self.seen_name: self.seen_accuracy}, values_format)
        if margins and n_sessions > 1:
            write_rows(ax, {"forgotten": self.forgetting[-1]}, values_format)
        if title is not None:
            ax.set_title(title, loc="left")
        if colorbar:
            self.figure_.colorbar(self.im_, ax=ax, label="accuracy", format="{x:.0%}", shrink=0.8)
        return self


def _checked(matrix: np.ndarray) -> np.ndarray:
    """A square matrix of fractions."""
    matrix = check_fractions(matrix, "accuracy_matrix")
    if matrix.ndim != 2 or len(set(matrix.shape)) != 1 or not len(matrix):
        raise ValueError(
            f"accuracy_matrix must be square, (n_sessions, n_sessions), got shape {matrix.shape}; "
            "give one row and one column per session."
        )
    return matrix


def _forgetting(matrix: np.ndarray) -> np.ndarray:
    """Best accuracy since a session was learned, less the present one."""
    learned = np.where(np.tril(np.ones(matrix.shape, bool)), matrix, np.nan)
    best = np.fmax.accumulate(learned, axis=0)
    forgetting = np.full_like(matrix, np.nan)
    forgetting[1:] = best[:-1] - learned[1:]
    return forgetting
