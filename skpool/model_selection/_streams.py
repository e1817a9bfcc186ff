# SPDX-License-Identifier: BSD-3-Clause
"""Orders in which the rows of a data set arrive one after the other, each once.

Stages with clear borders are one way for data to change. In a stream classes may come and go
slowly, share tasks, or arrive object by object; the order is all that differs, so it is all that
is decided here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import _safe_indexing

from skpool.model_selection._stages import check_groups, order_of_classes, rows_by_code
from skpool.utils import check_labels

__all__ = ["StreamSplit"]

_KINDS = ("iid", "disjoint", "blurry", "iblurry", "gaussian", "class_iid", "instance")


@dataclass(frozen=True, eq=False)
class StreamSplit:
    """Order of a stream: which rows arrive when, in one pass over small batches.

    Parameters
    ----------
    kind : {"iid", "disjoint", "blurry", "iblurry", "gaussian", "class_iid", "instance"}, \
            default="iid"
        - "iid": in random order.
        - "disjoint": tasks of classes that come in no other task.
        - "blurry": every task has classes of its own, of which the other tasks hold some rows:
          `blurry` per cent of the rows of a task are of the classes of others.
        - "iblurry": `disjoint_ratio` per cent of the classes come in one task alone, and the
          others as with "blurry" [1]_.
        - "gaussian": no tasks; every class has a time at which it is most frequent, and its rows
          arrive normally distributed around it.
        - "class_iid": one class after the other, its rows in random order.
        - "instance": one object (`groups`) after the other in random order, its rows as they are.
    n_tasks : int, default=5
        Tasks; where the order has none, the parts of equal size that `tasks` cuts it into.
    blurry : float, default=10
        Per cent of the rows of a task that are of classes of other tasks.
    disjoint_ratio : float, default=50
        Per cent of the classes that come in one task alone, for "iblurry".
    width : float, default=0.1
        Standard deviation of the arrival of a class in "gaussian", as a share of the stream.
    batch_size : int, default=10
        Rows that arrive together; the last batch may have fewer.
    class_order : {"shuffled", "sorted"} or array-like of shape (n_classes,), default="shuffled"
        As for :class:`ClassIncrementalSplit`.
    seed : int, default=1993
        Of all that is random.

    See Also
    --------
    stream_evaluate : Learns a stream and measures on the way.

    Notes
    -----
    A class whose rows are many more than those of all others together cannot give away as many as
    the share asks for; then fewer are exchanged.

    References
    ----------
    .. [1] Koh et al., Online Continual Learning on Class Incremental Blurry Task Configuration with
       Anytime Inference, ICLR 2022. <https://arxiv.org/abs/2110.10031>
    .. [2] Soutif-Cormerais et al., A Comprehensive Empirical Evaluation on Online Continual
       Learning, ICCV Workshops 2023. <https://arxiv.org/abs/2308.10328>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import StreamSplit
    >>> y = np.repeat([0, 1], 50)
    >>> for rows in StreamSplit("blurry", n_tasks=2, class_order="sorted").tasks(y):
    ...     print(np.bincount(y[rows]))
    [45  5]
    [ 5 45]
    """

    kind: str = "iid"
    _: KW_ONLY
    n_tasks: int = 5
    blurry: float = 10
    disjoint_ratio: float = 50
    width: float = 0.1
    batch_size: int = 10
    class_order: str | Sequence[Any] | np.ndarray = "shuffled"
    seed: int = 1993

    def __post_init__(self):
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {list(_KINDS)}, got {self.kind!r}.")
        for name in ("n_tasks", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}.")
        for name in ("blurry", "disjoint_ratio"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= value <= 100:
                raise ValueError(f"{name} must be per cent, from 0 to 100, got {value!r}.")
        if not isinstance(self.width, Real) or not self.width > 0:
            raise ValueError(f"width must be above 0, got {self.width!r}.")

    def order(self, y: ArrayLike, groups: ArrayLike | None = None) -> np.ndarray:
        """Return the rows in the order in which they arrive.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,), default=None
            Objects, for "instance".

        Returns
        -------
        rows : ndarray of shape (n_samples,)
        """
        return np.concatenate(self.tasks(y, groups))

    def tasks(self, y: ArrayLike, groups: ArrayLike | None = None) -> list[np.ndarray]:
        """Return the rows of every task in the order in which they arrive.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,), default=None
            Objects, for "instance".

        Returns
        -------
        tasks : list of ndarray
        """
        y = check_labels(y, n_samples=len(y), who=type(self).__name__)
        rng = np.random.RandomState(self.seed)
        if self.kind in ("disjoint", "blurry", "iblurry"):
            return [rng.permutation(rows) for rows in self._mixed(y, rng)]
        return np.array_split(self._without_tasks(y, groups, rng), self.n_tasks)

    def batches(self, y: ArrayLike, groups: ArrayLike | None = None) -> Iterator[np.ndarray]:
        """Generate the rows of every batch.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,), default=None
            Objects, for "instance".

        Yields
        ------
        rows : ndarray of at most `batch_size` rows
        """
        order = self.order(y, groups)
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def stream(
        self, X: Any, y: ArrayLike, groups: ArrayLike | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """Generate the batches of X and y.

        Parameters
        ----------
        X : indexable of length n_samples
            An array, paths, an `ImageSequence`; a batch is taken from it when it comes.
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,), default=None
            Objects, for "instance".

        Yields
        ------
        X_batch : indexable
            Rows of a batch.
        y_batch : array-like
            Their labels.
        """
        for rows in self.batches(y, groups):
            yield _safe_indexing(X, rows), _safe_indexing(y, rows)

    def _without_tasks(
        self, y: np.ndarray, groups: ArrayLike | None, rng: np.random.RandomState
    ) -> np.ndarray:
        shuffled = rng.permutation(len(y))
        if self.kind == "iid":
            return shuffled
        if self.kind == "instance":
            if groups is None:
                raise ValueError('kind="instance" needs groups, got None; name the object of rows.')
            codes = np.unique(check_groups(groups, len(y)), return_inverse=True)[1]
            objects = rows_by_code(codes, codes.max() + 1)
            return np.concatenate([objects[k] for k in rng.permutation(len(objects))])
        place, n_classes = self._places(y)
        if self.kind == "class_iid":
            return shuffled[np.argsort(place[shuffled], kind="stable")]
        arrival = (place + 0.5) / n_classes + self.width * rng.standard_normal(len(y))
        return np.argsort(arrival, kind="stable")

    def _places(self, y: np.ndarray) -> tuple[np.ndarray, int]:
        """Where the class of every row stands in the order of classes."""
        classes, codes = np.unique(y, return_inverse=True)
        order = order_of_classes(classes, self.class_order, self.seed)
        place = np.empty(len(classes), dtype=np.intp)
        place[np.searchsorted(classes, order)] = np.arange(len(classes))
        return place[codes], len(classes)

    def _mixed(self, y: np.ndarray, rng: np.random.RandomState) -> list[np.ndarray]:
        """Rows of every task, after the blurry classes have exchanged theirs."""
        place, n_classes = self._places(y)
        if n_classes < self.n_tasks:
            raise ValueError(
                f"n_tasks={self.n_tasks} is more than the {n_classes} classes of y; give fewer."
            )
        share = {"disjoint": 100, "blurry": 0, "iblurry": self.disjoint_ratio}[self.kind]
        n_disjoint = round(n_classes * share / 100)
        # Any classes will do for the disjoint ones: their order is random already.
        sizes, disjoint = _shares(n_classes, self.n_tasks), _shares(n_disjoint, self.n_tasks)
        tasks = np.arange(self.n_tasks)
        task_of_place = np.r_[np.repeat(tasks, disjoint), np.repeat(tasks, sizes - disjoint)]
        task = task_of_place[place]
        moved = [
            rng.permutation(rows)[: round(len(rows) * self.blurry / 100)]
            for rows in rows_by_code(place, n_classes)[n_disjoint:]
        ]
        if sum(map(len, moved)):
            moved = _without_surplus(rng.permutation(np.concatenate(moved)), task)
            task[moved] = _exchanged(task[moved], rng)
        return rows_by_code(task, self.n_tasks)


def _shares(n: int, n_tasks: int) -> np.ndarray:
    """How many of n things each task gets, as equal as can be."""
    return np.array([len(part) for part in np.array_split(np.arange(n), n_tasks)])


def _without_surplus(moved: np.ndarray, task: np.ndarray) -> np.ndarray:
    """Keep at home what a task would give beyond all that the others can give in return."""
    counts = np.bincount(task[moved])
    largest = int(counts.argmax())
    surplus = max(0, 2 * int(counts[largest]) - len(moved))
    return np.delete(moved, np.flatnonzero(task[moved] == largest)[:surplus])


def _exchanged(origin: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """New tasks: every task gets as many rows as it gives, none of them its own."""
    new = rng.permutation(origin)
    for i in np.flatnonzero(new == origin):
        if new[i] != origin[i]:
            continue
        # Trading with a row that neither comes from nor goes to this task mends this row and
        # spoils no other; there is one, since no task has more than half of all rows.
        partners = np.flatnonzero((origin != origin[i]) & (new != origin[i]))
        k = partners[rng.randint(len(partners))]
        new[i], new[k] = new[k], new[i]
    return new
