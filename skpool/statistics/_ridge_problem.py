# SPDX-License-Identifier: BSD-3-Clause
"""What a ridge path needs of its data: centred sums, and the spectrum of the scatter of the rows.

`RidgePath` builds one of these from rows or from moments and works on it alone. From rows, or a
factor of the scatter, that are fewer than the features, it comes by their Gram matrix: the same
numbers, and nothing as large as the square of the width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from skpool.statistics._class_moments import ClassMoments
from skpool.statistics._running_moments import RunningMoments
from skpool.statistics._symmetric_factor import product, symmetric_eigen
from skpool.utils import ArrayLike, as_tensor

__all__ = [
    "FewRows",
    "RidgeProblem",
    "class_factors",
    "null_below",
    "problem_of_classes",
    "problem_of_joined",
    "problem_of_rows",
]

_BLOCK_ROWS = 4096
# A row with more of its length than this, squared, where nothing varies has a twin.
_TWIN = 1e-10


def null_below(values: np.ndarray, width: int) -> float:
    """Return below what an eigenvalue of sums of products is rounding."""
    return (max(values[-1], 0.0) if len(values) else 0.0) * width * np.finfo(np.float64).eps


@dataclass(frozen=True)
class FewRows:
    """The Gram matrix of centred rows, fewer than their features, decomposed.

    The direction in which all rows are alike is left out, since it belongs to the intercept.
    """

    roots: np.ndarray  # (n,), of the weights, all above 0
    values: np.ndarray  # (k,), ascending; k is n, or n - 1 with an intercept
    left: np.ndarray  # (n, k), eigenvectors
    targets: np.ndarray  # (k, m), centred targets along them
    width: int

    @property
    def null(self) -> np.ndarray:
        """Which directions hold nothing but rounding."""
        return self.values <= null_below(self.values, self.width)

    def residuals(self, penalty: float) -> np.ndarray:
        """What every row lacks to its targets, predicted by the fit without it, (n, m).

        Both what a row lacks in the fit with it and one minus its leverage are sums of
        ``penalty / (values + penalty)`` along the directions, so the penalty cancels: no digits
        are lost where it is small, and none at all is the limit.
        """
        if penalty > null_below(self.values, self.width):
            apart, share = self._sums(1.0 / (np.maximum(self.values, 0.0) + penalty))
        else:
            # Rows with twins follow these alone; the others never saw them.
            null = self.null
            apart, share = self._sums(
                np.divide(1.0, self.values, out=np.zeros_like(self.values), where=~null)
            )
            of_twins, alike = self._sums(null.astype(np.float64))
            twins = alike > _TWIN
            apart[twins], share[twins] = of_twins[twins], alike[twins]
        with np.errstate(divide="ignore", invalid="ignore"):
            return apart / (share * self.roots)[:, None]

    def _sums(self, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return product(self.left, factors[:, None] * self.targets), self.left**2 @ factors

    def are(self, rows: np.ndarray, problem: "RidgeProblem") -> bool:
        """Tell whether centred rows, in the coordinates of the problem, are these."""
        if len(rows) != len(self.roots):
            return False
        expected = self.left[:, ~self.null] * np.sqrt(problem.values)
        apart = np.abs(self.roots[:, None] * rows - expected).max(initial=0.0)
        return bool(apart <= 1e-6 * np.sqrt(problem.values.max(initial=0.0)))


@dataclass(frozen=True)
class RidgeProblem:
    """Centred sums of a regression, and the spectrum of the scatter of its rows."""

    n: float
    squared: float  # sum of the squared weights
    mean: np.ndarray  # (d,)
    target_mean: np.ndarray  # (m,)
    target_squares: float  # of the centred targets, of all together
    values: np.ndarray  # (r,), eigenvalues of the scatter
    vectors: np.ndarray  # (d, r)
    projected: np.ndarray  # (r, m), cross-products of rows and targets along the eigenvectors
    trace: float
    few: FewRows | None = None

    @property
    def n_rows(self) -> float:
        """How many rows there are: as many as they weigh, and more where they weigh less than 1."""
        return max(self.n, self.n**2 / self.squared)


def _decomposed(
    n: float,
    squared: float,
    mean: np.ndarray,
    scatter: np.ndarray,
    cross: np.ndarray,
    target_mean: np.ndarray,
    target_squares: float,
) -> RidgeProblem:
    values, vectors = symmetric_eigen(scatter)
    values = np.maximum(values, 0.0)
    trace = float(np.trace(scatter))
    projected = product(vectors.T, cross)
    spectrum = values, vectors, projected
    return RidgeProblem(n, squared, mean, target_mean, target_squares, *spectrum, trace)


# From rows.


def problem_of_rows(
    X: ArrayLike, targets: np.ndarray, weights: np.ndarray | None, *, centred: bool
) -> RidgeProblem:
    """Return the problem of rows and targets, by the smaller of the two squares.

    Parameters
    ----------
    X : ndarray or tensor of shape (n_samples, n_features)
    targets : ndarray of shape (n_samples, n_targets)
    weights : ndarray of shape (n_samples,) or None
    centred : bool
        Whether there is an intercept.

    Returns
    -------
    problem : RidgeProblem
    """
    ones = np.ones(len(X)) if weights is None else weights
    n, squared = float(ones.sum()), float(ones @ ones)
    if len(X) < X.shape[1]:
        return _of_few_rows(X, targets, ones, centred=centred)
    if not centred:
        zero, none = np.zeros(X.shape[1]), np.zeros(targets.shape[1])
        weighted = targets * ones[:, None]
        cross, squares = _cross(X, zero, weighted), float((weighted * targets).sum())
        return _decomposed(n, squared, zero, _gram(X, ones), cross, none, squares)
    moments = RunningMoments().update(X, sample_weight=weights)
    target_mean = ones @ targets / ones.sum()
    shifted = targets - target_mean
    weighted = shifted * ones[:, None]
    cross, squares = _cross(X, moments.mean_, weighted), float((weighted * shifted).sum())
    mean, scatter = moments.mean_, moments.scatter_
    return _decomposed(n, squared, mean, scatter, cross, target_mean, squares)


def _of_few_rows(
    X: ArrayLike, targets: np.ndarray, weights: np.ndarray, *, centred: bool
) -> RidgeProblem:
    # Rows that weigh nothing would span directions of their own.
    held = weights > 0
    rows, targets = as_tensor(X).cpu().double().numpy()[held], targets[held]
    n, roots = float(weights.sum()), np.sqrt(weights[held])
    mean, target_mean = np.zeros(rows.shape[1]), np.zeros(targets.shape[1])
    if centred:
        mean, target_mean = roots**2 @ rows / n, roots**2 @ targets / n
    rows = roots[:, None] * (rows - mean)
    shifted = roots[:, None] * (targets - target_mean)
    gram = product(rows, rows.T)
    basis = _all_but(roots) if centred else np.eye(len(roots))
    values, turned = symmetric_eigen(product(basis.T, product(gram, basis)))
    left = product(basis, turned)
    few = FewRows(roots, values, left, left.T @ shifted, rows.shape[1])
    squares, trace = float((shifted**2).sum()), float(np.trace(gram))
    spectrum = _spectrum(rows, values, left, few.targets)
    heads = n, float(weights @ weights), mean, target_mean, squares
    return RidgeProblem(*heads, *spectrum, trace, few)


def _spectrum(
    rows: np.ndarray, values: np.ndarray, left: np.ndarray, along: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectrum of the scatter of rows from that of their Gram matrix, and the cross-products."""
    keep = values > null_below(values, rows.shape[1])
    values, left = values[keep], left[:, keep]
    vectors = product(rows.T, left / np.sqrt(values))
    return values, vectors, np.sqrt(values)[:, None] * along[keep]


def _of_factor(
    n: float,
    squared: float,
    mean: np.ndarray,
    rows: np.ndarray,
    targets: np.ndarray,
    target_mean: np.ndarray,
    target_squares: float,
) -> RidgeProblem:
    """The problem of the scatter ``rows.T @ rows`` and the cross-products ``rows.T @ targets``."""
    gram = product(rows, rows.T)
    values, left = symmetric_eigen(gram)
    spectrum = _spectrum(rows, values, left, product(left.T, targets))
    trace = float(np.trace(gram))
    return RidgeProblem(n, squared, mean, target_mean, target_squares, *spectrum, trace)


def _all_but(direction: np.ndarray) -> np.ndarray:
    """Orthonormal directions at right angles to one, (n, n - 1), by a reflection."""
    axis = direction / np.linalg.norm(direction)
    axis[0] += np.copysign(1.0, axis[0])
    reflection = np.eye(len(axis)) - np.outer(axis, axis) * (2.0 / (axis @ axis))
    return reflection[:, 1:]


def _cross(X: ArrayLike, mean: np.ndarray, weighted: np.ndarray) -> np.ndarray:
    """Sum of products of centred rows and weighted targets, in float64."""
    tensor, total = as_tensor(X), np.zeros((X.shape[1], weighted.shape[1]))
    for start in range(0, len(X), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        total += (tensor[part].cpu().double().numpy() - mean).T @ weighted[part]
    return total


def _gram(X: ArrayLike, weights: np.ndarray) -> np.ndarray:
    """Sum of weighted products of rows, not centred, in float64."""
    tensor, total = as_tensor(X), np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, len(X), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        rows = tensor[part].cpu().double().numpy() * np.sqrt(weights[part])[:, None]
        total += rows.T @ rows
    return total


# From moments.


def problem_of_classes(moments: ClassMoments) -> RidgeProblem:
    """Return the problem of one-hot targets, in the order of the classes held."""
    counts = moments.counts_
    rows, squared = moments.total_factor(), float(moments.counts_sq_.sum())
    if rows is not None:
        n = float(counts.sum())
        mean, squares = counts / n @ moments.means_, float((counts - counts**2 / n).sum())
        targets = np.zeros((len(rows), len(counts)))
        targets[-len(counts) :] = np.diag(np.sqrt(counts))
        return _of_factor(n, squared, mean, rows, targets, counts / n, squares)
    n, mean, scatter = moments.total()
    if scatter is None or scatter.ndim != 2:
        raise ValueError(
            f"A ridge path needs products between features, and these moments have "
            f'scatter={moments.scatter!r}; use scatter="shared".'
        )
    cross = (counts[:, None] * (moments.means_ - mean)).T
    squares = float((counts - counts**2 / n).sum())
    return _decomposed(n, squared, mean, scatter, cross, counts / n, squares)


def problem_of_joined(moments: RunningMoments, n_targets: int | None) -> RidgeProblem:
    """Return the problem of rows with their targets joined to them."""
    width = moments.n_features_in_ or 0
    if n_targets is None or not 0 < n_targets < width or moments.scatter != "full":
        raise ValueError(
            f"n_targets={n_targets!r} is not valid for moments of {width} columns with "
            f"scatter={moments.scatter!r}; give how many of the last columns are targets, and keep "
            'scatter="full".'
        )
    d = width - n_targets
    mean, rows, n = moments.mean_, moments.factor(), moments.n_samples
    squared = float(moments.as_class_moments().counts_sq_.sum())
    if rows is not None and len(rows) < d:
        few, targets = rows[:, :d], rows[:, d:]
        squares = float((targets**2).sum())
        return _of_factor(n, squared, mean[:d], few, targets, mean[d:], squares)
    scatter = moments.scatter_
    squares = float(np.diagonal(scatter)[d:].sum())
    cross = scatter[:d, d:]
    return _decomposed(n, squared, mean[:d], scatter[:d, :d], cross, mean[d:], squares)


# Weights of classes.


def class_factors(
    class_weight: Mapping | str | None, classes: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return what the weights of the rows of every class are multiplied by.

    Parameters
    ----------
    class_weight : {"balanced"}, mapping of label to factor, or None
    classes : ndarray of shape (n_classes,)
        Labels.
    counts : ndarray of shape (n_classes,)
        Sums of weights.

    Returns
    -------
    factors : ndarray of shape (n_classes,)
        "balanced" makes the sums of weights equal and leaves their sum.
    """
    if class_weight is None:
        return np.ones(len(classes))
    if isinstance(class_weight, str):
        held = counts > 0
        return counts.sum() / np.where(held, held.sum() * counts, np.inf)
    unknown = [label for label in class_weight if label not in classes.tolist()]
    factors = np.array([class_weight.get(label, 1.0) for label in classes.tolist()], float)
    if unknown or not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ValueError(
            f"class_weight={class_weight!r} is not valid; give numbers above 0 for labels among "
            f"the {len(classes)} classes."
        )
    return factors
