# SPDX-License-Identifier: BSD-3-Clause
"""Few-shot episodes as row numbers: which rows are supports, which are queries, of which classes.

`EpisodeSplit` draws them, for scikit-learn's searches one by one and for batched evaluation all at
once as an `EpisodeIndex`; `MetaClassSplit` says which classes episodes may be drawn from. Nothing
here sees features. The draws themselves are functions on arrays, for all episodes together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import numpy as np
from sklearn.model_selection import BaseCrossValidator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)

from skpool.model_selection._draws import (
    ClassRows,
    distinct,
    draw_between_groups,
    draw_rows,
    flattened,
    rounded_shares,
)
from skpool.utils import ArrayLike, check_labels

__all__ = ["EpisodeIndex", "EpisodeSplit", "MetaClassSplit"]


@dataclass(frozen=True, eq=False)
class EpisodeIndex:
    """Rows and labels of few-shot episodes.

    Parameters
    ----------
    support : ndarray of shape (n_episodes, n_support)
        Rows of the labelled samples, -1 for padding, which stands only where shots differ.
    query : ndarray of shape (n_episodes, n_query)
        Rows of the samples to be classified, -1 for padding at the end, which stands only where
        the numbers of queries differ.
    support_labels, query_labels : ndarray of shape (n_episodes, n_support), (n_episodes, n_query)
        Local numbers of the classes, from 0 to n_way - 1, -1 for padding.
    classes : ndarray of shape (n_episodes, n_way)
        Labels that the local numbers stand for, sorted within an episode.

    See Also
    --------
    EpisodeSplit : Draws them.
    EpisodeBatch : The features of some of them.

    Examples
    --------
    >>> from skpool.model_selection import EpisodeSplit
    >>> index = EpisodeSplit(2, 1, 3, n_episodes=4).episodes(["a", "b", "c"] * 5)
    >>> len(index), index.query.shape, len(index[:2])
    (4, (4, 6), 2)
    """

    support: np.ndarray
    query: np.ndarray
    support_labels: np.ndarray
    query_labels: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, episodes: slice | ArrayLike) -> "EpisodeIndex":
        """Return some of the episodes: a slice, numbers or a mask."""
        if isinstance(episodes, Integral):
            raise TypeError(
                f"One number, {episodes}, would leave an episode without the axis of episodes; "
                f"take [{episodes}:{episodes + 1}]."
            )
        return EpisodeIndex(*(getattr(self, field.name)[episodes] for field in fields(self)))


class EpisodeSplit(BaseCrossValidator):
    r"""Cross-validator whose folds are N-way K-shot episodes.

    Each episode has `n_way` random classes, `n_shot` random rows of each as support, the training
    set, and other random rows of the same classes as queries, the test set [1]_.

    Parameters
    ----------
    n_way : int, default=5
        Classes of an episode.
    n_shot : int, default=1
        Support rows of a class.
    n_query : int, default=15
        Queries of a class, on average over the classes. Where classes hold too few rows an
        episode has fewer.
    n_episodes : int, default=600
        Number of episodes.
    query_distribution : {"balanced", "dirichlet", "all"}, default="balanced"
        "balanced" takes `n_query` queries of every class; "dirichlet" ``n_way * n_query`` of
        which the proportions are drawn per episode [2]_, since real queries are not balanced;
        "all" every row of the classes that is no support.
    dirichlet_alpha : float, default=2.0
        Parameter of the symmetric Dirichlet distribution; small values make a few classes
        dominate.
    classes : array-like of shape (n_classes,), default=None
        Labels that may be drawn, such as the novel part of `MetaClassSplit`; None for all of y.
    shot_distribution : "fixed" or (int, int), default="fixed"
        A pair (lo, hi) draws the shots of every class of every episode between the two,
        inclusive, in place of `n_shot`.
    groups_disjoint : bool, default=True
        Whether `groups`, where they are given (videos, views, sessions), are kept whole: no group
        has supports and queries in one episode.
    random_state : int, RandomState instance or None, default=0
        An integer gives the same episodes in every call.

    See Also
    --------
    few_shot_score : Evaluates on all episodes at once.
    MetaClassSplit : Parts the classes.

    Notes
    -----
    Support and queries of a class are one draw without replacement, so that no query is a support.
    Dirichlet proportions are rounded by the largest remainder, so that their sum is exact, and
    what exceeds the rows of a class goes to the others. With groups, one random group of every
    class is kept for queries; supports are drawn from the rest, and the queries from the groups
    that no support came from.

    All episodes are drawn together, in O(n_episodes * n_way * (n_shot + n_query)^2) operations on
    arrays; with groups or "all", in time proportional to the rows of the classes drawn.

    References
    ----------
    .. [1] Y. Tian, Y. Wang, D. Krishnan, J. B. Tenenbaum, P. Isola, Rethinking Few-Shot Image
       Classification: a Good Embedding Is All You Need?, ECCV 2020.
       <https://arxiv.org/abs/2003.11539>
    .. [2] O. Veilleux, M. Boudiaf, P. Piantanida, I. Ben Ayed, Realistic Evaluation of
       Transductive Few-Shot Learning, NeurIPS 2021. <https://arxiv.org/abs/2204.11181>

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import cross_val_score
    >>> from skpool.model_selection import EpisodeSplit
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> y = np.repeat(np.arange(8), 20)
    >>> X = np.random.default_rng(0).normal(size=(160, 8)) + 8 * np.eye(8)[y]
    >>> cv = EpisodeSplit(n_way=5, n_shot=1, n_query=10, n_episodes=20)
    >>> cross_val_score(NearestClassMeanClassifier("euclidean"), X, y, cv=cv).shape
    (20,)
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_way": [Interval(Integral, 1, None, closed="left")],
        "n_shot": [Interval(Integral, 1, None, closed="left")],
        "n_query": [Interval(Integral, 1, None, closed="left")],
        "n_episodes": [Interval(Integral, 1, None, closed="left")],
        "query_distribution": [StrOptions({"balanced", "dirichlet", "all"})],
        "dirichlet_alpha": [Interval(Real, 0, None, closed="neither")],
        "classes": ["array-like", None],
        "shot_distribution": [StrOptions({"fixed"}), tuple, list],
        "groups_disjoint": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_way: int = 5,
        n_shot: int = 1,
        n_query: int = 15,
        *,
        n_episodes: int = 600,
        query_distribution: str = "balanced",
        dirichlet_alpha: float = 2.0,
        classes: ArrayLike | None = None,
        shot_distribution: str | tuple[int, int] = "fixed",
        groups_disjoint: bool = True,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.n_way = n_way
        self.n_shot = n_shot
        self.n_query = n_query
        self.n_episodes = n_episodes
        self.query_distribution = query_distribution
        self.dirichlet_alpha = dirichlet_alpha
        self.classes = classes
        self.shot_distribution = shot_distribution
        self.groups_disjoint = groups_disjoint
        self.random_state = random_state

    def get_n_splits(self, X: object = None, y: object = None, groups: object = None) -> int:
        """Return the number of episodes.

        Parameters
        ----------
        X, y, groups : object, default=None
            Not used.

        Returns
        -------
        n_splits : int
        """
        return self.n_episodes

    def split(
        self, X: object, y: ArrayLike, groups: ArrayLike | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows of one episode after the other.

        Parameters
        ----------
        X : object
            Not used.
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,), default=None
            What supports and queries may not share.

        Yields
        ------
        support : ndarray of shape (n_support,)
            Rows to train on.
        query : ndarray of shape (n_query,)
            Rows to test on.
        """
        index = self.episodes(y, groups)
        for support, query in zip(index.support, index.query, strict=True):
            yield support[support >= 0], query[query >= 0]

    def episodes(self, y: ArrayLike, groups: ArrayLike | None = None) -> EpisodeIndex:
        """Return all episodes at once, those that `split` yields.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,), default=None
            What supports and queries may not share.

        Returns
        -------
        index : EpisodeIndex
            Rows of y, and local numbers of the classes.
        """
        low, high = self._check_parameters()
        y = check_labels(y, n_samples=len(y), who="EpisodeSplit")
        rows = self._eligible(y, high)
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31, size=4))
        numbers = np.sort(distinct(rng, len(rows.labels), self.n_way, self.n_episodes), axis=1)
        shots = np.full(numbers.shape, low)
        if high > low:
            shots = rng.integers(low, high, size=numbers.shape, endpoint=True)
        shares = None
        if self.query_distribution == "dirichlet":
            alphas = np.full(self.n_way, float(self.dirichlet_alpha))
            shares = rng.dirichlet(alphas, size=self.n_episodes)

        def wanted(room: np.ndarray, episodes: slice) -> np.ndarray:
            return self._query_counts(room, None if shares is None else shares[episodes])

        if groups is not None and self.groups_disjoint:
            groups = np.unique(_checked_groups(groups, len(y)), return_inverse=True)[1]
            support, query = draw_between_groups(rng, rows, numbers, shots, groups, wanted)
        else:
            support, query = draw_rows(rng, rows, numbers, shots, wanted)
        (support, support_labels), (query, query_labels) = flattened(support), flattened(query)
        classes = rows.labels[numbers]
        return EpisodeIndex(support, query, support_labels, query_labels, classes)

    def _check_parameters(self) -> tuple[int, int]:
        """Refuse bad parameters; return the fewest and the most shots."""
        values = {name: getattr(self, name) for name in self._parameter_constraints}
        validate_parameter_constraints(self._parameter_constraints, values, "EpisodeSplit")
        if isinstance(self.shot_distribution, str):
            return self.n_shot, self.n_shot
        pair = tuple(self.shot_distribution)
        whole = all(isinstance(k, Integral) for k in pair)
        if len(pair) != 2 or not whole or not 1 <= pair[0] <= pair[1]:
            raise ValueError(
                f"shot_distribution={self.shot_distribution!r} is not valid; give 'fixed' or two "
                "whole numbers (lo, hi) with 1 <= lo <= hi."
            )
        return pair

    def _eligible(self, y: np.ndarray, shots: int) -> ClassRows:
        """The rows of the classes that may be drawn."""
        rows = ClassRows.of(y, self.classes)
        scarce = rows.labels[rows.counts < shots + 1]
        if len(scarce):
            raise ValueError(
                f"Classes {scarce.tolist()} hold fewer than {shots + 1} rows, {shots} for the "
                "support and one to be asked; leave them out of `classes`, or lower the shots."
            )
        if len(rows.labels) < self.n_way:
            raise ValueError(
                f"n_way={self.n_way}, but episodes can be drawn from {len(rows.labels)} classes "
                f"only: {rows.labels.tolist()}; lower n_way or give more classes."
            )
        return rows

    def _query_counts(self, room: np.ndarray, shares: np.ndarray | None) -> np.ndarray:
        """How many queries of every class, given how many there are."""
        if self.query_distribution == "all":
            return room
        if shares is None:
            return np.minimum(room, self.n_query)
        return rounded_shares(shares, self.n_way * self.n_query, room)


class MetaClasses(NamedTuple):
    """Rows of class-disjoint parts of a data set."""

    base: np.ndarray
    validation: np.ndarray
    novel: np.ndarray


class MetaClassSplit:
    """Split into base, validation and novel classes.

    Few-shot methods learn what they need on base classes, choose their parameters on episodes of
    validation classes and are judged on episodes of novel classes; no class is in two parts.

    Parameters
    ----------
    fractions : tuple of three floats, default=(0.64, 0.16, 0.2)
        Shares of the classes in the three parts; they add up to 1. The default is that of
        mini-ImageNet: 64, 16 and 20 of 100 classes.
    random_state : int, RandomState instance or None, default=0
        Which classes come into which part.

    See Also
    --------
    EpisodeSplit : Draws episodes from the classes of a part.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import MetaClassSplit
    >>> y = np.repeat(np.arange(25), 4)
    >>> base, validation, novel = MetaClassSplit().parts(y)
    >>> [len(np.unique(y[part])) for part in (base, validation, novel)]
    [16, 4, 5]
    """

    def __init__(
        self,
        fractions: Sequence[float] = (0.64, 0.16, 0.20),
        *,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.fractions = fractions
        self.random_state = random_state

    def parts(self, y: ArrayLike) -> MetaClasses:
        """Return the rows of the three parts.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
            Labels.

        Returns
        -------
        base, validation, novel : ndarray
            Sorted rows, as a named tuple.
        """
        y = check_labels(y, n_samples=len(y), who="MetaClassSplit")
        labels, numbers = np.unique(y, return_inverse=True)
        sizes = self._sizes(len(labels))
        order = check_random_state(self.random_state).permutation(len(labels))
        part_of = np.empty(len(labels), dtype=np.intp)
        part_of[order] = np.repeat(np.arange(3), sizes)
        return MetaClasses(*(np.flatnonzero(part_of[numbers] == part) for part in range(3)))

    def _sizes(self, n_classes: int) -> np.ndarray:
        shares = np.asarray(self.fractions, dtype=np.float64)
        if shares.shape != (3,) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
            raise ValueError(
                f"fractions={self.fractions!r} is not valid; give three numbers of at least 0 "
                "that add up to 1."
            )
        sizes = rounded_shares(shares[None], n_classes, np.full((1, 3), n_classes))[0]
        if ((sizes == 0) & (shares > 0)).any():
            raise ValueError(
                f"{n_classes} classes leave a part of fractions={self.fractions!r} without a "
                "class; give more classes or set that fraction to 0."
            )
        return sizes


def _checked_groups(groups: ArrayLike, n: int) -> np.ndarray:
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(
            f"groups has shape {groups.shape} and y has {n} labels; give one group per row."
        )
    return groups
