# SPDX-License-Identifier: BSD-3-Clause
"""What the splitters into stages have in common: a stage, what is held out, the order of classes.

All randomness is from `numpy.random.RandomState`, whose streams NumPy has frozen, so that one seed
gives one protocol for good.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedGroupKFold

from skpool.utils import check_labels

__all__ = [
    "HeldOut",
    "Stage",
    "check_groups",
    "check_test_size",
    "chunk_classes",
    "hold_out",
    "order_of_classes",
    "rows_by_code",
    "stages_of_classes",
]


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a protocol: what is learned in it, and what is asked after it.

    Parameters
    ----------
    index : int
        Number of the stage, from 0.
    train : ndarray of shape (n_train,)
        Rows to learn.
    test : ndarray of shape (n_test,)
        Held-out rows of everything seen so far.
    task_test : ndarray of shape (n_task_test,)
        Held-out rows of this stage alone.
    classes : ndarray of shape (n_classes,)
        Labels of this stage, sorted.
    seen_classes : ndarray of shape (n_seen,)
        Labels of this stage and all before it, sorted.
    domain : object, default=None
        Label of the domain, where stages are domains.

    Examples
    --------
    >>> from skpool.model_selection import ClassIncrementalSplit
    >>> stages = ClassIncrementalSplit(increment=1).stages(list("aaabbb"))
    >>> [(stage.index, stage.classes.tolist(), len(stage.train)) for stage in stages]
    [(0, ['a'], 2), (1, ['b'], 2)]
    """

    index: int
    train: np.ndarray
    test: np.ndarray
    task_test: np.ndarray
    classes: np.ndarray
    seen_classes: np.ndarray
    domain: Any = None


class HeldOut(NamedTuple):
    """Labels, rows to learn, and rows to test on with the labels that these point into."""

    y: np.ndarray
    train: np.ndarray
    y_test: np.ndarray
    test: np.ndarray


def check_test_size(test_size: object) -> None:
    """Refuse a share that leaves nothing to learn or to test.

    Parameters
    ----------
    test_size : object
    """
    if not isinstance(test_size, (int, float)) or not 0 < test_size < 1:
        raise ValueError(f"test_size must be a share between 0 and 1, got {test_size!r}.")


def check_groups(groups: ArrayLike, n_samples: int, *, name: str = "groups") -> np.ndarray:
    """Check one group per row.

    Parameters
    ----------
    groups : array-like of shape (n_samples,)
    n_samples : int
    name : str, default="groups"

    Returns
    -------
    groups : ndarray
    """
    groups = np.asarray(groups)
    if groups.shape != (n_samples,):
        raise ValueError(
            f"{name} must hold one label for each of the {n_samples} rows, got the shape "
            f"{groups.shape}."
        )
    return groups


def rows_by_code(codes: np.ndarray, n_codes: int) -> list[np.ndarray]:
    """Positions of every code, ascending.

    Parameters
    ----------
    codes : ndarray of int of shape (n,)
        From 0 to `n_codes` - 1.
    n_codes : int

    Returns
    -------
    rows : list of ndarray
    """
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes, minlength=n_codes))[:-1])


def hold_out(
    y: ArrayLike,
    y_test: ArrayLike | None,
    *,
    test_size: float,
    seed: int,
    who: str,
    domains: np.ndarray | None = None,
    groups: ArrayLike | None = None,
) -> HeldOut:
    """Say which rows are learned and which are held out.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
    y_test : array-like of shape (n_test,) or None
        Where given, it is what is held out, and all rows of y are learned.
    test_size : float
        Share held out, of every class (in every domain).
    seed : int
    who : str
        For messages.
    domains : ndarray of int of shape (n_samples,), default=None
        Codes of the domains, within which classes are held out.
    groups : array-like of shape (n_samples,), default=None
        Groups of rows that stay on one side.

    Returns
    -------
    held_out : HeldOut
    """
    y = check_labels(y, n_samples=len(y), who=who)
    everything = np.arange(len(y))
    if y_test is not None:
        y_test = check_labels(y_test, n_samples=len(y_test), who=who)
        unknown = np.setdiff1d(y_test, y).tolist()
        if unknown:
            raise ValueError(
                f"y_test holds the label {unknown[0]!r}, which y does not; leave out the rows of "
                "classes that are never learned."
            )
        return HeldOut(y, everything, y_test, np.arange(len(y_test)))
    strata = np.unique(y, return_inverse=True)[1]
    if domains is not None:
        strata = np.unique(np.stack([domains, strata]), axis=1, return_inverse=True)[1].ravel()
    if groups is not None:
        groups = check_groups(groups, len(y))
        folds = StratifiedGroupKFold(max(2, round(1 / test_size)), shuffle=True, random_state=seed)
        test = next(folds.split(everything, strata, groups))[1]
    else:
        test = _held_out_of_each(strata, test_size, np.random.RandomState(seed))
    return HeldOut(y, np.setdiff1d(everything, test), y, test)


def _held_out_of_each(
    strata: np.ndarray, test_size: float, rng: np.random.RandomState
) -> np.ndarray:
    """A share of every stratum: one row at least, and never the only one."""
    chosen = []
    for rows in rows_by_code(strata, strata.max() + 1):
        n_test = min(max(round(test_size * len(rows)), 1), len(rows) - 1)
        chosen.append(rng.permutation(rows)[:n_test])
    return np.sort(np.concatenate(chosen))


def order_of_classes(
    classes: np.ndarray, class_order: str | Sequence[Any] | np.ndarray, seed: int
) -> np.ndarray:
    """Bring sorted labels into the order of a protocol.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Sorted.
    class_order : {"sorted", "shuffled"} or array-like of shape (n_classes,)
    seed : int

    Returns
    -------
    order : ndarray of shape (n_classes,)
        Labels.
    """
    if isinstance(class_order, str):
        if class_order == "sorted":
            return classes
        if class_order == "shuffled":
            return classes[np.random.RandomState(seed).permutation(len(classes))]
        raise ValueError(
            "class_order must be 'sorted', 'shuffled' or all labels in the order wanted, got "
            f"{class_order!r}."
        )
    order = np.asarray(class_order)
    if order.shape != classes.shape or (np.sort(order) != classes).any():
        raise ValueError(
            f"class_order must hold each of the {len(classes)} labels of y once, got "
            f"{len(order)} labels of which {len(np.intersect1d(order, classes))} are labels of y."
        )
    return order


def chunk_classes(order: np.ndarray, first: int, size: int, *, name: str) -> list[np.ndarray]:
    """Cut an order of classes into a first part and parts of one size, the last maybe smaller.

    Parameters
    ----------
    order : ndarray of shape (n_classes,)
    first : int
    size : int
    name : str
        The argument that is `first`, for messages.

    Returns
    -------
    parts : list of ndarray
    """
    if first > len(order):
        raise ValueError(f"{name}={first} is more than the {len(order)} classes of y; give fewer.")
    return np.split(order, range(first, len(order), size))


def stages_of_classes(parts: list[np.ndarray], held_out: HeldOut) -> list[Stage]:
    """Stages that each bring classes which never come again.

    Parameters
    ----------
    parts : list of ndarray
        Labels of the stages, which together are all of them.
    held_out : HeldOut

    Returns
    -------
    stages : list of Stage
    """
    order = np.concatenate(parts)
    stage_of_order = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    by_label = np.argsort(order)

    def of_stages(y: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
        codes = np.searchsorted(order[by_label], y[rows])
        stage = stage_of_order[by_label[codes]]
        return [rows[chosen] for chosen in rows_by_code(stage, len(parts))]

    return build_stages(
        parts,
        of_stages(held_out.y, held_out.train),
        of_stages(held_out.y_test, held_out.test),
        domains=[None] * len(parts),
    )


def build_stages(
    classes: list[np.ndarray],
    train: list[np.ndarray],
    task_test: list[np.ndarray],
    *,
    domains: Sequence[Any],
) -> list[Stage]:
    """Stages with all that was seen by them; one without test rows is told of.

    Parameters
    ----------
    classes, train, task_test : list of ndarray
        Of every stage.
    domains : sequence

    Returns
    -------
    stages : list of Stage
    """
    empty = [index for index, rows in enumerate(task_test) if len(rows) == 0]
    if empty:
        warnings.warn(
            f"Stage {empty[0]} has no test rows, and {len(empty)} of {len(task_test)} stages have "
            "none; their accuracy is not defined.",
            stacklevel=4,
        )
    stages = []
    seen, test = classes[0], np.empty(0, dtype=np.intp)
    for index, (labels, rows, own) in enumerate(zip(classes, train, task_test, strict=True)):
        seen, test = np.union1d(seen, labels), np.union1d(test, own).astype(np.intp)
        stages.append(Stage(index, rows, test, own, np.unique(labels), seen, domains[index]))
    return stages
