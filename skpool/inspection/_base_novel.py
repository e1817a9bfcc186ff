# SPDX-License-Identifier: BSD-3-Clause
"""BaseNovelDisplay: what is kept of the first classes against what is learned of later ones.

It belongs to few-shot class-incremental learning, where many base classes come first and a few
samples of new ones follow. An accuracy on all classes hides a method that never answers with a
new class; the two parts and their harmonic mean show it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skpool import metrics
from skpool.inspection._checks import check_fractions, check_results, check_same_length
from skpool.inspection._session_curves import classes_seen
from skpool.inspection._style import draw_lines, import_pyplot, light_frame, name_lines

__all__ = ["BaseNovelDisplay"]

_SIZE = (12.5, 4.2)
_TITLES = ("base classes", "novel classes", "harmonic mean of the two")


class BaseNovelDisplay:
    """Accuracy on base and on novel classes and their harmonic mean, session by session.

    Three panels with one line per method, named at its end in the last panel. Use `from_results`
    rather than this constructor.

    Parameters
    ----------
    names : sequence of str of length n_methods
        Names of the methods.
    base_accuracy : ndarray of shape (n_methods, n_sessions)
        Accuracy on the held-out rows of the classes of the first session, a fraction.
    novel_accuracy : ndarray of shape (n_methods, n_sessions)
        Accuracy on those of all later classes seen; NaN after the first session.
    n_seen_classes : ndarray of shape (n_sessions,)
        Classes seen by the end of each session.

    Attributes
    ----------
    harmonic_mean_accuracy : ndarray of shape (n_methods, n_sessions)
        2 b n / (b + n) of the two accuracies, 0 where both are 0, NaN where one is unknown.
    figure_ : matplotlib Figure
        The figure; after `plot`.
    axes_ : ndarray of 3 matplotlib Axes
        Base, novel, harmonic mean; after `plot`.
    lines_ : list of 3 lists of matplotlib Line2D
        The lines of each panel; after `plot`.

    See Also
    --------
    SessionCurvesDisplay : Base and novel classes together.

    Notes
    -----
    The candidates of a prediction are all classes seen, in every panel: the accuracy on novel
    classes counts a novel row that is taken for a base class as an error.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.inspection import BaseNovelDisplay
    >>> display = BaseNovelDisplay(
    ...     names=["nearest mean"],
    ...     base_accuracy=np.array([[0.8, 0.6]]),
    ...     novel_accuracy=np.array([[np.nan, 0.3]]),
    ...     n_seen_classes=np.array([60, 65]),
    ... )
    >>> display.harmonic_mean_accuracy
    array([[nan, 0.4]])
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        base_accuracy: np.ndarray,
        novel_accuracy: np.ndarray,
        n_seen_classes: np.ndarray,
    ):
        self.names = names
        self.base_accuracy = base_accuracy
        self.novel_accuracy = novel_accuracy
        self.n_seen_classes = n_seen_classes

    @property
    def harmonic_mean_accuracy(self) -> np.ndarray:
        """Near the smaller of the two accuracies."""
        return metrics.harmonic_mean_accuracy(self.base_accuracy, self.novel_accuracy)

    @classmethod
    def from_results(
        cls, results: Mapping[str, Any], *, axes: Any = None, **kwargs: Any
    ) -> "BaseNovelDisplay":
        """Draw what `incremental_evaluate` returned for several methods.

        Parameters
        ----------
        results : dict of {str: IncrementalResult}
            Results on the same sessions, by name.
        axes : sequence of 3 matplotlib Axes, default=None
            Where to draw; None for a new figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : BaseNovelDisplay
        """
        results = check_results(results, "IncrementalResult")
        parts = [
            check_fractions(
                check_same_length({n: getattr(r, part) for n, r in results.items()}, "sessions"),
                part,
            )
            for part in ("base_accuracy", "novel_accuracy")
        ]
        display = cls(
            names=list(results),
            base_accuracy=parts[0],
            novel_accuracy=parts[1],
            n_seen_classes=classes_seen(results),
        )
        return display.plot(axes, **kwargs)

    def plot(self, axes: Any = None, *, title: str | None = None) -> "BaseNovelDisplay":
        """Draw the three panels.

        Parameters
        ----------
        axes : sequence of 3 matplotlib Axes, default=None
            Where to draw; None for a new figure.
        title : str, default=None
            Stands above the first panel.

        Returns
        -------
        display : BaseNovelDisplay
            This one.
        """
        plt = import_pyplot("BaseNovelDisplay")
        if axes is None:
            axes = plt.subplots(1, 3, figsize=_SIZE, sharex=True, layout="constrained")[1]
        self.axes_ = np.asarray(axes, dtype=object)
        if self.axes_.shape != (3,):
            raise ValueError(
                f"axes must be three matplotlib Axes, got shape {self.axes_.shape}; give those of "
                "base, novel and harmonic mean."
            )
        self.figure_ = self.axes_[0].figure
        tables = self.base_accuracy, self.novel_accuracy, self.harmonic_mean_accuracy
        self.lines_ = [
            draw_lines(ax, self.n_seen_classes, table)
            for ax, table in zip(self.axes_, tables, strict=True)
        ]
        for ax, name in zip(self.axes_, _TITLES, strict=True):
            ax.set(xlabel="classes seen", ylim=(0, 100), title=name)
            light_frame(ax)
        self.axes_[0].set_ylabel("accuracy (%)")
        if title is not None:
            self.figure_.suptitle(title)
        ends = 100 * tables[-1][:, -1]
        names = [f"{name}: last {end:.1f}" for name, end in zip(self.names, ends, strict=True)]
        name_lines(self.axes_[-1], self.lines_[-1], names)
        return self
