# SPDX-License-Identifier: BSD-3-Clause
"""Protocols of learning in stages: new classes, few examples of new classes, new domains.

A splitter says which rows are learned in which stage and which are asked after it. It is a `cv=` of
scikit-learn as well, whose splits are the stages one by one; `incremental_evaluate` is what learns
them one after the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skpool.model_selection._stages import (
    HeldOut,
    Stage,
    build_stages,
    check_groups,
    check_test_size,
    chunk_classes,
    hold_out,
    order_of_classes,
    rows_by_code,
    stages_of_classes,
)

__all__ = ["ClassIncrementalSplit", "DomainIncrementalSplit", "FewShotIncrementalSplit"]

Pair = tuple[np.ndarray, np.ndarray]


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}.")


@dataclass(frozen=True, eq=False)
class ClassIncrementalSplit:
    """Stages of new classes: ``B{m}-Inc{n}``, m classes first and then n at a time.

    Parameters
    ----------
    init_classes : int, default=0
        Classes of the first stage; 0 for as many as `increment`.
    increment : int, default=10
        Classes of each later stage; the last may have fewer.
    class_order : {"sorted", "shuffled"} or array-like of shape (n_classes,), default="sorted"
        - "sorted": as `numpy.unique` sorts the labels.
        - "shuffled": ``numpy.random.RandomState(seed).permutation(n_classes)``, the habit of the
          field, with the seed 1993.
        - array-like: all labels in the order wanted.
    test_size : float, default=0.2
        Share of the rows of every class that is held out, one row at least, where no labels of
        test rows are given.
    seed : int, default=1993
        Of the order of the classes and of what is held out.

    See Also
    --------
    FewShotIncrementalSplit : Few rows of every later class.
    incremental_evaluate : Learns the stages and measures.

    Notes
    -----
    Groups, such as the video that a frame comes from, are kept on one side; then about `test_size`
    of the groups are held out. Averages over the stages of protocols with different m do not
    compare: report both m and n.

    References
    ----------
    .. [1] Rebuffi et al., iCaRL: Incremental Classifier and Representation Learning, CVPR 2017.
       <https://arxiv.org/abs/1611.07725>
    .. [2] Zhou et al., Class-Incremental Learning: A Survey, TPAMI 2024.
       <https://arxiv.org/abs/2302.03648>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import ClassIncrementalSplit
    >>> y = np.repeat(np.arange(5), 10)
    >>> for stage in ClassIncrementalSplit(increment=2).stages(y):
    ...     print(stage.classes, len(stage.train), len(stage.task_test), len(stage.test))
    [0 1] 16 4 4
    [2 3] 16 4 8
    [4] 8 2 10
    """

    init_classes: int = 0
    _: KW_ONLY
    increment: int = 10
    class_order: str | Sequence[Any] | np.ndarray = "sorted"
    test_size: float = 0.2
    seed: int = 1993

    def __post_init__(self):
        _check_whole("init_classes", self.init_classes, 0)
        _check_whole("increment", self.increment, 1)
        check_test_size(self.test_size)

    def stages(
        self, y: ArrayLike, *, y_test: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> list[Stage]:
        """Return the stages.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Labels.
        y_test : array-like of shape (n_test,), default=None
            Labels of rows kept apart; then all rows of y are learned, and test rows number these.
        groups : array-like of shape (n_samples,), default=None
            Groups of rows that are never both learned and tested on.

        Returns
        -------
        stages : list of Stage
        """
        who = type(self).__name__
        held_out = hold_out(
            y, y_test, test_size=self.test_size, seed=self.seed, who=who, groups=groups
        )
        return stages_of_classes(self._parts(held_out.y), held_out)

    def split(self, X: object, y: ArrayLike, groups: ArrayLike | None = None) -> Iterator[Pair]:
        """Generate the rows to learn and the rows of all seen classes to test on, by stage.

        Parameters
        ----------
        X : object
            Not used.
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,), default=None
            Groups of rows that are never both learned and tested on.

        Yields
        ------
        train : ndarray
            Rows of one stage.
        test : ndarray
            Held-out rows of this stage and all before it.
        """
        for stage in self.stages(y, groups=groups):
            yield stage.train, stage.test

    def get_n_splits(self, X: object = None, y: ArrayLike = None, groups: object = None) -> int:
        """Return the number of stages.

        Parameters
        ----------
        X : object, default=None
            Not used.
        y : array-like of shape (n_samples,)
            Labels.
        groups : object, default=None
            Not used.

        Returns
        -------
        n_splits : int
        """
        return len(self._parts(_labels_for_number(y)))

    def _parts(self, y: np.ndarray) -> list[np.ndarray]:
        order = order_of_classes(np.unique(y), self.class_order, self.seed)
        # Fewer classes than one increment are one stage, which is smaller like any last one.
        first = self.init_classes or min(self.increment, len(order))
        return chunk_classes(order, first, self.increment, name="init_classes")


@dataclass(frozen=True, eq=False)
class FewShotIncrementalSplit:
    """A large first stage, then stages of a few rows each of a few new classes.

    Parameters
    ----------
    base_classes : int, default=60
        Classes of the first stage, which has all rows of theirs.
    way : int, default=5
        New classes of each later stage; the last may have fewer.
    shot : int, default=5
        Rows of every new class.
    class_order : {"sorted", "shuffled"} or array-like of shape (n_classes,), default="sorted"
        As for :class:`ClassIncrementalSplit`.
    test_size : float, default=0.2
        Share of the rows of every class that is held out, where no labels of test rows are given.
    seed : int, default=1993
        Of the order of the classes, of what is held out, and of the draw of rows.
    n_repeats : int, default=1
        Draws of the rows of new classes; `split` goes through the stages of all of them.

    See Also
    --------
    ClassIncrementalSplit : All rows of every class.

    Notes
    -----
    CIFAR-100 and miniImageNet are split 60 + 8 x (5-way 5-shot), CUB-200 100 + 10 x (10-way
    5-shot). Rows of new classes that are neither drawn nor held out are not used.

    References
    ----------
    .. [1] Tao et al., Few-Shot Class-Incremental Learning, CVPR 2020.
       <https://arxiv.org/abs/2004.10956>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import FewShotIncrementalSplit
    >>> y = np.repeat(np.arange(5), 10)
    >>> for stage in FewShotIncrementalSplit(3, way=1, shot=2).stages(y):
    ...     print(stage.classes, len(stage.train), len(stage.task_test), len(stage.test))
    [0 1 2] 24 6 6
    [3] 2 2 8
    [4] 2 2 10
    """

    base_classes: int = 60
    _: KW_ONLY
    way: int = 5
    shot: int = 5
    class_order: str | Sequence[Any] | np.ndarray = "sorted"
    test_size: float = 0.2
    seed: int = 1993
    n_repeats: int = 1

    def __post_init__(self):
        for name in ("base_classes", "way", "shot", "n_repeats"):
            _check_whole(name, getattr(self, name), 1)
        check_test_size(self.test_size)

    def stages(
        self,
        y: ArrayLike,
        *,
        y_test: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        repeat: int = 0,
    ) -> list[Stage]:
        """Return the stages of one draw.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Labels.
        y_test : array-like of shape (n_test,), default=None
            Labels of rows kept apart; then test rows number these.
        groups : array-like of shape (n_samples,), default=None
            Groups of rows that are never both learned and tested on.
        repeat : int, default=0
            Which draw. Classes and held-out rows are the same in all of them.

        Returns
        -------
        stages : list of Stage
        """
        who = type(self).__name__
        held_out = hold_out(
            y, y_test, test_size=self.test_size, seed=self.seed, who=who, groups=groups
        )
        parts = self._parts(held_out.y)
        return stages_of_classes(parts, self._few(held_out, parts, repeat))

    def split(self, X: object, y: ArrayLike, groups: ArrayLike | None = None) -> Iterator[Pair]:
        """Generate the rows to learn and the rows of all seen classes to test on, by stage.

        Parameters
        ----------
        X : object
            Not used.
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,), default=None
            Groups of rows that are never both learned and tested on.

        Yields
        ------
        train : ndarray
            Rows of one stage.
        test : ndarray
            Held-out rows of this stage and all before it.
        """
        for repeat in range(self.n_repeats):
            for stage in self.stages(y, groups=groups, repeat=repeat):
                yield stage.train, stage.test

    def get_n_splits(self, X: object = None, y: ArrayLike = None, groups: object = None) -> int:
        """Return the number of stages of all draws.

        Parameters
        ----------
        X : object, default=None
            Not used.
        y : array-like of shape (n_samples,)
            Labels.
        groups : object, default=None
            Not used.

        Returns
        -------
        n_splits : int
        """
        return self.n_repeats * len(self._parts(_labels_for_number(y)))

    def _parts(self, y: np.ndarray) -> list[np.ndarray]:
        order = order_of_classes(np.unique(y), self.class_order, self.seed)
        return chunk_classes(order, self.base_classes, self.way, name="base_classes")

    def _few(self, held_out: HeldOut, parts: list[np.ndarray], repeat: int) -> HeldOut:
        """Keep all rows of the base classes and a few of every other."""
        rng = np.random.RandomState([self.seed, repeat])
        labels = held_out.y[held_out.train]
        kept = [held_out.train[np.isin(labels, parts[0])]]
        for label in np.concatenate(parts)[len(parts[0]) :]:
            rows = held_out.train[labels == label]
            if len(rows) < self.shot:
                raise ValueError(
                    f"The class {label.item()!r} has {len(rows)} rows to learn, and "
                    f"shot={self.shot}; give a smaller shot or more rows."
                )
            kept.append(rng.permutation(rows)[: self.shot])
        return held_out._replace(train=np.sort(np.concatenate(kept)))


@dataclass(frozen=True, eq=False)
class DomainIncrementalSplit:
    """Stages of new domains, each with all its classes; `groups` names the domains.

    Parameters
    ----------
    order : array-like of shape (n_domains,), default=None
        All domains in the order wanted; None for sorted.
    test_size : float, default=0.2
        Share of the rows of every class in every domain that is held out, where no labels of test
        rows are given.
    seed : int, default=1993
        Of what is held out.

    See Also
    --------
    ClassIncrementalSplit : New classes in place of new domains.

    Notes
    -----
    Frames of one video must not be on both sides: with such data hold rows out by video, and give
    their labels and domains as `y_test` and `groups_test`.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import DomainIncrementalSplit
    >>> y = np.tile([0, 1], 20)
    >>> groups = np.repeat(["photo", "sketch"], 20)
    >>> for stage in DomainIncrementalSplit().stages(y, groups=groups):
    ...     print(stage.domain, stage.classes, len(stage.train), len(stage.test))
    photo [0 1] 16 4
    sketch [0 1] 16 8
    """

    order: Sequence[Any] | np.ndarray | None = None
    _: KW_ONLY
    test_size: float = 0.2
    seed: int = 1993

    def __post_init__(self):
        check_test_size(self.test_size)

    def stages(
        self,
        y: ArrayLike,
        *,
        y_test: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        groups_test: ArrayLike | None = None,
    ) -> list[Stage]:
        """Return the stages.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Labels.
        y_test : array-like of shape (n_test,), default=None
            Labels of rows kept apart; then test rows number these.
        groups : array-like of shape (n_samples,)
            Domains of the rows.
        groups_test : array-like of shape (n_test,), default=None
            Domains of the rows kept apart.

        Returns
        -------
        stages : list of Stage
        """
        groups = self._check_domains("groups", groups, len(y))
        domains = self._domains(groups)
        codes = _codes(domains, groups)
        who = type(self).__name__
        held_out = hold_out(
            y, y_test, test_size=self.test_size, seed=self.seed, who=who, domains=codes
        )
        test_codes = codes
        if y_test is not None:
            groups_test = self._check_domains("groups_test", groups_test, len(held_out.y_test))
            unknown = np.setdiff1d(groups_test, domains).tolist()
            if unknown:
                raise ValueError(
                    f"groups_test holds the domain {unknown[0]!r}, which groups does not; leave "
                    "out the rows of domains that are never learned."
                )
            test_codes = _codes(domains, groups_test)
        train = _rows_of(codes, held_out.train, len(domains))
        return build_stages(
            [np.unique(held_out.y[rows]) for rows in train],
            train,
            _rows_of(test_codes, held_out.test, len(domains)),
            domains=domains.tolist(),
        )

    def split(self, X: object, y: ArrayLike, groups: ArrayLike | None = None) -> Iterator[Pair]:
        """Generate the rows to learn and the rows of all seen domains to test on, by stage.

        Parameters
        ----------
        X : object
            Not used.
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,)
            Domains of the rows.

        Yields
        ------
        train : ndarray
            Rows of one domain.
        test : ndarray
            Held-out rows of this domain and all before it.
        """
        for stage in self.stages(y, groups=groups):
            yield stage.train, stage.test

    def get_n_splits(
        self, X: object = None, y: object = None, groups: ArrayLike | None = None
    ) -> int:
        """Return the number of domains.

        Parameters
        ----------
        X : object, default=None
            Not used.
        y : object, default=None
            Not used.
        groups : array-like of shape (n_samples,)
            Domains of the rows.

        Returns
        -------
        n_splits : int
        """
        n_samples = 0 if groups is None else len(groups)
        return len(self._domains(self._check_domains("groups", groups, n_samples)))

    @staticmethod
    def _check_domains(name: str, groups: ArrayLike | None, n_samples: int) -> np.ndarray:
        if groups is None:
            raise ValueError(f"{name} is None; give the domain of every row.")
        return check_groups(groups, n_samples, name=name)

    def _domains(self, groups: np.ndarray) -> np.ndarray:
        known = np.unique(groups)
        if self.order is None:
            return known
        order = np.asarray(self.order)
        if order.shape != known.shape or (np.sort(order) != known).any():
            raise ValueError(
                f"order must hold each of the {len(known)} domains of groups once, got "
                f"{order.tolist()}."
            )
        return order


def _labels_for_number(y: ArrayLike | None) -> np.ndarray:
    if y is None:
        raise ValueError("y is None; the number of stages follows from the labels.")
    return np.asarray(y)


def _codes(domains: np.ndarray, groups: np.ndarray) -> np.ndarray:
    by_label = np.argsort(domains)
    return by_label[np.searchsorted(domains[by_label], groups)]


def _rows_of(codes: np.ndarray, rows: np.ndarray, n_codes: int) -> list[np.ndarray]:
    return [rows[chosen] for chosen in rows_by_code(codes[rows], n_codes)]
