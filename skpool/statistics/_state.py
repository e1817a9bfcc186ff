# SPDX-License-Identifier: BSD-3-Clause
"""The algebra of moments: adding and taking away, as pure functions on an immutable record.

`ClassMoments` computes the record of a batch, combines it with its own here, and swaps the result
in as its last act; whatever fails before that has changed nothing.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import torch

from skpool.statistics._open_scatter import OpenScatter
from skpool.statistics._row_scatter import RowScatter
from skpool.statistics._symmetric_products import add_outer, outer_sum

__all__ = [
    "Moments",
    "close_moments",
    "empty_moments",
    "map_moments",
    "merge_moments",
    "open_moments",
    "regroup_moments",
    "reweigh_moments",
    "subtract_moments",
    "take_moments",
]

# Relative rounding of a sum of weights; a class is gone when less than this of it remains.
_COUNT_RTOL = 1e-12
# Relative rounding of float32 products, against the scatter before a removal.
_SCATTER_RTOL = 1e-6
# The mean of what is left of a class, of which much was removed, against its length.
_MEAN_RTOL = 1e-2


@dataclass(frozen=True)
class Moments:
    """Sorted classes with their counts, means and scatter; never changed once built."""

    classes: np.ndarray
    counts: np.ndarray
    counts_sq: np.ndarray
    means: np.ndarray
    # (d, d) "shared" | (d,) "shared_diag" | (C, d) "diag" | C arrays (d, d) "per_class" | None.
    # Per-class matrices are separate arrays, so that an update copies only those it touches.
    # Of the kind "shared" it may be open or rows; `close_moments` is for whoever needs the numbers.
    scatter: OpenScatter | RowScatter | np.ndarray | list | None
    # Sums of |v|^2 v, (C, d), and of |v|^4, (C,), with v a row less the mean of its class; kept
    # on demand, with "per_class".
    third: np.ndarray | None = None
    fourth: np.ndarray | None = None
    # Sums of hashes of the rows, (C,) uint64; kept on demand.
    fingerprints: np.ndarray | None = None


def empty_moments(
    n_features: int, scatter: str, *, fourth_order: bool = False, fingerprint: bool = False
) -> Moments:
    """Return the moments of no rows."""
    d = n_features
    zeros = {"none": None, "per_class": [], "shared": RowScatter((), d)}
    zeros |= {"diag": np.zeros((0, d)), "shared_diag": np.zeros(d)}
    none, rows = np.zeros(0), np.zeros((0, d))
    higher = (rows, none) if fourth_order else (None, None)
    prints = np.zeros(0, dtype=np.uint64) if fingerprint else None
    labels = np.zeros(0, dtype=np.int64)
    return Moments(labels, none, none, rows, zeros[scatter], *higher, prints)


def close_moments(held: Moments) -> Moments:
    """Return the same moments with a scatter that is around the means."""
    if isinstance(held.scatter, RowScatter):
        return replace(held, scatter=held.scatter.closed())
    if not isinstance(held.scatter, OpenScatter):
        return held
    return replace(held, scatter=held.scatter.closed(held.counts, held.means))


def open_moments(held: Moments, dtype: torch.dtype) -> Moments:
    """Return the same moments without rows, in a form that products in `dtype` are added to."""
    if not isinstance(held.scatter, RowScatter) or not len(held.classes):
        return held
    return replace(held, scatter=held.scatter.opened(held.counts, held.means, dtype))


def _nothing_like(held: Moments, scatter: str) -> Moments:
    higher, prints = held.third is not None, held.fingerprints is not None
    return empty_moments(held.means.shape[1], scatter, fourth_order=higher, fingerprint=prints)


def _spread(values: np.ndarray, index: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros((n, *values.shape[1:]), dtype=values.dtype)
    out[index] = values
    return out


def _union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if not len(a) or not len(b):
        return a if len(a) else b
    if len(a) == len(b) and (a == b).all():
        return a
    return np.union1d(a, b)


def _moved(
    count: float, scatter: np.ndarray, third: np.ndarray, fourth: float, a: np.ndarray
) -> tuple[np.ndarray, float]:
    """Third and fourth sums around another point, from which the mean lies at `a`."""
    trace, square, along = np.trace(scatter), a @ a, scatter @ a
    moved = third + trace * a + 2.0 * along + count * square * a
    sums = fourth + 4.0 * (a @ along) + 4.0 * (a @ third)
    return moved, sums + 2.0 * square * trace + count * square**2


def _combined_higher(
    held: Moments, other: Moments, i: np.ndarray, j: np.ndarray, means: np.ndarray, sign: float
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Third and fourth sums of held plus or minus other, around the means of the result."""
    if held.third is None:
        return None, None
    third, fourth = np.zeros_like(means), np.zeros(len(means))
    for part, at, factor in ((held, i, 1.0), (other, j, sign)):
        for row, k in enumerate(at):
            a = part.means[row] - means[k]
            moved, sums = _moved(
                part.counts[row], part.scatter[row], part.third[row], part.fourth[row], a
            )
            third[k] += factor * moved
            fourth[k] += factor * sums
    return third, fourth


def _opened(
    held: Moments,
    batch: OpenScatter,
    i: np.ndarray,
    j: np.ndarray,
    counts: np.ndarray,
    means: np.ndarray,
) -> OpenScatter | None:
    """The scatter of both around the points of both, or None where it has to be closed."""
    if not len(held.classes):
        total = batch
    elif isinstance(held.scatter, OpenScatter):
        total = held.scatter.joined(batch, i, j, len(counts))
    else:
        return None
    return total if total is not None and total.is_near(counts, means) else None


def _shared_sum(
    held: Moments,
    other: Moments,
    i: np.ndarray,
    j: np.ndarray,
    after: tuple[np.ndarray, np.ndarray],
    between: np.ndarray,
    dtype: torch.dtype,
) -> OpenScatter | RowScatter | np.ndarray:
    """The scatter of both around the means of both, with `after` their counts and means.

    It stays rows where both are and are few, open where both are of the same points, and is added
    up otherwise; `between` are the rows from the means of one to those of the other.
    """
    if isinstance(held.scatter, RowScatter) and isinstance(other.scatter, RowScatter):
        total = held.scatter.joined(other.scatter, between)
        if total is not None:
            return total
    if isinstance(other.scatter, OpenScatter):
        total = _opened(held, other.scatter, i, j, *after)
        if total is not None:
            return total
        onto = close_moments(held).scatter
        return other.scatter.closed(other.counts, other.means, onto=onto, rows=between)
    total = close_moments(held).scatter + close_moments(other).scatter
    if len(between):
        add_outer(total, between, dtype=dtype)
    return total


def merge_moments(
    held: Moments, other: Moments, scatter: str, dtype: torch.dtype = torch.float64
) -> Moments:
    """Return the moments of both sets of rows together.

    Parameters
    ----------
    held, other : Moments
        Of equal width and scatter, with labels of one kind.
    scatter : str
        Kind of scatter.
    dtype : torch.dtype, default=torch.float64
        Type in which the terms between the means are multiplied.

    Returns
    -------
    moments : Moments
    """
    classes = _union(held.classes, other.classes)
    i, j = np.searchsorted(classes, held.classes), np.searchsorted(classes, other.classes)
    counts = _spread(held.counts, i, len(classes))
    counts_sq = _spread(held.counts_sq, i, len(classes))
    means = _spread(held.means, i, len(classes))
    n, m = counts[j], other.counts
    delta = other.means - means[j]
    pull = n * m / (n + m)
    means[j] += delta * (m / (n + m))[:, None]
    counts[j] += m
    counts_sq[j] += other.counts_sq
    if scatter == "none":
        total = None
    elif scatter == "shared":
        # A new class pulls nothing: its mean is its batch mean.
        old = pull > 0
        between = delta[old] * np.sqrt(pull[old])[:, None]
        total = _shared_sum(held, other, i, j, (counts, means), between, dtype)
    elif scatter == "shared_diag":
        total = held.scatter + other.scatter + pull @ delta**2
    elif scatter == "diag":
        total = _spread(held.scatter, i, len(classes))
        total[j] += other.scatter + pull[:, None] * delta**2
    else:
        total = [None] * len(classes)
        for k, S in zip(i, held.scatter, strict=True):
            total[k] = S
        for k, S, p, v in zip(j, other.scatter, pull, delta, strict=True):
            total[k] = S if total[k] is None else total[k] + S + p * np.outer(v, v)
    higher = _combined_higher(held, other, i, j, means, 1.0)
    prints = held.fingerprints
    if prints is not None:
        prints = _spread(prints, i, len(classes))
        prints[j] += other.fingerprints
    return Moments(classes, counts, counts_sq, means, total, *higher, prints)


def _positions(held: Moments, other: Moments) -> np.ndarray:
    missing = np.setdiff1d(other.classes, held.classes)
    if len(missing):
        raise ValueError(
            f"Cannot remove rows of class {missing[0].item()!r}: it is not held; only rows that "
            "were added can be removed."
        )
    j = np.searchsorted(held.classes, other.classes)
    more = other.counts > held.counts[j] * (1 + _COUNT_RTOL)
    if more.any():
        k = int(np.flatnonzero(more)[0])
        raise ValueError(
            f"Cannot remove {other.counts[k]:g} rows (sum of weights) of class "
            f"{other.classes[k].item()!r}, which holds {held.counts[j][k]:g}; only rows that were "
            "added can be removed."
        )
    return j


def _refuse_negative(after: np.ndarray, before: np.ndarray) -> None:
    """Refuse a scatter that no set of rows can have."""
    if after.ndim == 1:
        possible = (after >= -_SCATTER_RTOL * before.sum()).all()
    else:
        # Positive definite once rounding is allowed for: a factorisation tells, cheaper than
        # eigenvalues.
        slack = _SCATTER_RTOL * np.trace(before) + np.finfo(np.float64).tiny
        shifted = after + slack * np.eye(len(after))
        try:
            scipy.linalg.cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
            possible = True
        except np.linalg.LinAlgError:
            possible = False
    if not possible:
        raise ValueError(
            "The scatter left after this removal has negative variances, so rows were removed "
            "that had never been added; nothing was changed."
        )


def _refuse_other_mean(
    held: Moments, other: Moments, scatter: str, j: np.ndarray, gone: np.ndarray
) -> None:
    """Refuse rows that are as many as a class holds and have another mean.

    Where classes share a scatter, the wrong rows would leave it wrong, without a sign.
    """
    ours, theirs = held.means[j][gone], other.means[gone]
    apart = np.linalg.norm(ours - theirs, axis=1)
    lengths = np.linalg.norm(ours, axis=1) + np.linalg.norm(theirs, axis=1)
    # Means may cancel to nothing but rounding: then the spread says how far apart is far.
    if isinstance(other.scatter, list):
        squares = np.array([np.trace(S) for S in other.scatter])[gone] / other.counts[gone]
    elif scatter == "diag":
        squares = other.scatter[gone].sum(axis=1) / other.counts[gone]
    else:
        shared = other.scatter.sum() if other.scatter.ndim == 1 else np.trace(other.scatter)
        squares = shared / other.counts.sum()
    spread = np.sqrt(np.maximum(squares, 0.0))
    wrong = (apart > _MEAN_RTOL * lengths) & (apart > _MEAN_RTOL * spread)
    if wrong.any():
        raise ValueError(
            f"As many rows of class {other.classes[gone][wrong][0].item()!r} are to be removed as "
            "are held, but their mean is another, so they had never been added; nothing was "
            "changed."
        )


def _less_prints(
    held: Moments, other: Moments, j: np.ndarray, gone: np.ndarray
) -> np.ndarray | None:
    """Fingerprints of the rows left; of a class that goes nothing may be left."""
    if held.fingerprints is None:
        return None
    prints = held.fingerprints.copy()
    prints[j] -= other.fingerprints
    wrong = prints[gone] != 0
    if wrong.any():
        raise ValueError(
            f"The fingerprints of the rows removed from class "
            f"{held.classes[gone][wrong][0].item()!r} are not those of the rows added; remove the "
            "very rows, with their weights. Nothing was changed."
        )
    return prints


def subtract_moments(
    held: Moments, other: Moments, scatter: str, dtype: torch.dtype = torch.float64
) -> Moments:
    """Return the moments of the rows of `held` without those of `other`.

    Parameters
    ----------
    held, other : Moments
        Of equal width and scatter; the rows of `other` are among those of `held`.
    scatter : str
        Kind of scatter.
    dtype : torch.dtype, default=torch.float64
        Type in which the terms between the means are multiplied.

    Returns
    -------
    moments : Moments

    Raises
    ------
    ValueError
        More is to be removed than is held, or the result is impossible.
    """
    j = _positions(held, other)
    n, m = held.counts[j], other.counts
    rest = n - m
    gone = rest <= n * _COUNT_RTOL
    safe = np.where(gone, 1.0, rest)
    if scatter != "none":
        _refuse_other_mean(held, other, scatter, j, gone)
    delta = other.means - held.means[j]
    pull = np.where(gone, 0.0, n * m / safe)
    counts, counts_sq, means = held.counts.copy(), held.counts_sq.copy(), held.means.copy()
    counts[j] = rest
    counts_sq[j] = np.maximum(counts_sq[j] - other.counts_sq, 0.0)
    means[j] -= delta * np.where(gone, 0.0, m / safe)[:, None]
    prints = _less_prints(held, other, j, j[gone])
    keep = np.ones(len(counts), dtype=bool)
    keep[j[gone]] = False
    if not keep.any():
        none = _nothing_like(held, scatter)
        return replace(none, classes=held.classes[:0])
    if scatter == "none":
        total = None
    elif scatter == "shared":
        total = held.scatter - other.scatter
        add_outer(total, delta * np.sqrt(pull)[:, None], sign=-1.0, dtype=dtype)
        _refuse_negative(total, held.scatter)
    elif scatter == "shared_diag":
        total = held.scatter - other.scatter - pull @ delta**2
        _refuse_negative(total, held.scatter)
    elif scatter == "diag":
        total = held.scatter.copy()
        total[j] -= other.scatter + pull[:, None] * delta**2
        for k in j[~gone]:
            _refuse_negative(total[k], held.scatter[k])
    else:
        total = list(held.scatter)
        for k, S, p, v in zip(j, other.scatter, pull, delta, strict=True):
            total[k] = total[k] - S - p * np.outer(v, v)
        for k in j[~gone]:
            _refuse_negative(total[k], held.scatter[k])
    higher = _combined_higher(held, other, np.arange(len(means)), j, means, -1.0)
    after = Moments(held.classes, counts, counts_sq, means, total, *higher, prints)
    return take_moments(after, keep, scatter)


def regroup_moments(held: Moments, labels: np.ndarray, scatter: str) -> Moments:
    """Return the moments under new labels, classes of equal label made one.

    Parameters
    ----------
    held : Moments
        The classes to rename.
    labels : ndarray of shape (n_classes,)
        New label of each class.
    scatter : str
        Kind of scatter.

    Returns
    -------
    moments : Moments
    """
    classes, group = np.unique(labels, return_inverse=True)
    counts = np.bincount(group, weights=held.counts, minlength=len(classes))
    counts_sq = np.bincount(group, weights=held.counts_sq, minlength=len(classes))
    means = np.zeros((len(classes), held.means.shape[1]))
    np.add.at(means, group, held.means * (held.counts / counts[group])[:, None])
    delta = held.means - means[group]
    if scatter == "none":
        total = None
    elif scatter == "shared":
        total = held.scatter + outer_sum(delta * np.sqrt(held.counts)[:, None])
    elif scatter == "shared_diag":
        total = held.scatter + held.counts @ delta**2
    elif scatter == "diag":
        total = np.zeros_like(means)
        np.add.at(total, group, held.scatter + held.counts[:, None] * delta**2)
    else:
        total = [None] * len(classes)
        for g, S, n, v in zip(group, held.scatter, held.counts, delta, strict=True):
            part = S + n * np.outer(v, v)
            total[g] = part if total[g] is None else total[g] + part
    nothing = np.zeros(0, dtype=np.intp)
    higher = _combined_higher(held, _nothing_like(held, scatter), group, nothing, means, 1.0)
    prints = held.fingerprints
    if prints is not None:
        prints = np.zeros(len(classes), dtype=np.uint64)
        np.add.at(prints, group, held.fingerprints)
    return Moments(classes, counts, counts_sq, means, total, *higher, prints)


def take_moments(held: Moments, keep: np.ndarray, scatter: str) -> Moments:
    """Return the moments of the classes where `keep` is True; a shared scatter stays as it is."""
    if keep.all():
        return held
    total = held.scatter
    if scatter == "per_class":
        total = [S for S, kept in zip(total, keep, strict=True) if kept]
    elif scatter == "diag":
        total = total[keep]
    elif isinstance(total, OpenScatter):
        total = total.of(keep)
    parts = (held.classes, held.counts, held.counts_sq, held.means)
    kept = (held.third, held.fourth, held.fingerprints)
    higher = (None if part is None else part[keep] for part in kept)
    return Moments(*(part[keep] for part in parts), total, *higher)


def map_moments(held: Moments, A: np.ndarray, b: np.ndarray, scatter: str) -> Moments:
    """Return the moments of the rows mapped to ``x @ A + b``, or ``x * A + b`` for a vector A.

    Third and fourth sums are left behind, since lengths after a map do not follow from them, and
    so are fingerprints.
    """

    def mapped(S: np.ndarray) -> np.ndarray:
        if scatter in ("diag", "shared_diag"):
            return S * A**2
        product = S * np.outer(A, A) if A.ndim == 1 else A.T @ S @ A
        return (product + product.T) / 2

    means = (held.means * A if A.ndim == 1 else held.means @ A) + b
    total = held.scatter
    if total is not None:
        total = [mapped(S) for S in total] if scatter == "per_class" else mapped(total)
    return Moments(held.classes, held.counts, held.counts_sq, means, total)


def reweigh_moments(state: Moments, factors: np.ndarray, scatter: str) -> Moments:
    """Return the moments of rows whose weights are multiplied, class by class.

    Fingerprints, which the weights take part in, are left behind.
    """
    held = state.scatter
    if scatter == "per_class":
        held = [factor * matrix for factor, matrix in zip(factors, held, strict=True)]
    elif scatter == "diag":
        held = factors[:, None] * held
    higher = {}
    if state.third is not None:
        higher = {"third": factors[:, None] * state.third, "fourth": factors * state.fourth}
    counts, squares = state.counts * factors, state.counts_sq * factors**2
    none = {"fingerprints": None}
    return replace(state, counts=counts, counts_sq=squares, scatter=held, **higher, **none)
