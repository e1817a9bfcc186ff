# SPDX-License-Identifier: BSD-3-Clause
"""FoldMoments: moments of classes by fold, so that cross-validation needs no second pass.

Every row belongs to one fold, so the moments of all folds cost what one fit costs, and those of a
training set are the sum of the others. On a stream, rows find their fold by their own content,
and the errors of a ridge regression follow when the rows are gone.
"""

import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from sklearn.model_selection import BaseCrossValidator, check_cv

from skpool.statistics._checks import check_rows, check_weights
from skpool.statistics._class_moments import ClassMoments
from skpool.statistics._combining import merge_all
from skpool.statistics._symmetric_factor import product, symmetric_eigen
from skpool.utils import ArrayLike, as_tensor, check_finite

__all__ = ["FoldMoments", "fold_indices", "fold_moments", "ridge_fold_errors"]

# Rows taken out of X at a time.
_BLOCK_ROWS = 8192


class FoldMoments:
    """Moments of classes, one set per fold, exact under adding, removing and merging.

    Parameters
    ----------
    n_folds : int, default=3
        Folds, at least 2.
    scatter : {"none", "shared", "per_class", "diag", "shared_diag"}, default="shared"
        See :class:`ClassMoments`.
    product_dtype : {"auto", "float32", "float64"}, default="auto"
        See :class:`ClassMoments`.

    Attributes
    ----------
    parts_ : list of ClassMoments
        Moments of the folds.
    total_ : ClassMoments
        Moments of all rows.
    classes_ : ndarray of shape (n_classes,)
        Labels held, sorted.
    n_features_in_ : int or None
        Width of the rows; None before the first.

    See Also
    --------
    fold_moments : The same for folds that a splitter chooses.
    ridge_fold_errors : Errors of held-out folds, from these moments alone.

    Notes
    -----
    `update` gives a row to the fold that a checksum of its values in float32 names (or of its
    group), so it does not depend on the order or the machine, equal rows share a fold, and
    `downdate` finds them again. Memory: that of `ClassMoments` once per fold.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import FoldMoments
    >>> X, y = np.arange(12.0).reshape(6, 2), [0, 0, 0, 1, 1, 1]
    >>> folds = FoldMoments(2).update(X[:2], y[:2]).update(X[2:], y[2:])
    >>> folds.total_.means_
    array([[2., 3.],
           [8., 9.]])
    """

    def __init__(self, n_folds: int = 3, scatter: str = "shared", *, product_dtype: str = "auto"):
        if isinstance(n_folds, bool) or not isinstance(n_folds, (int, np.integer)) or n_folds < 2:
            raise ValueError(
                f"n_folds={n_folds!r} is not valid; give a whole number of at least 2."
            )
        self._parts = [ClassMoments(scatter, product_dtype=product_dtype) for _ in range(n_folds)]

    def __repr__(self) -> str:
        return f"FoldMoments(n_folds={len(self._parts)}, scatter={self.scatter!r})"

    @classmethod
    def of_parts(cls, parts: list[ClassMoments]) -> "FoldMoments":
        """Take moments that were computed fold by fold.

        Parameters
        ----------
        parts : list of ClassMoments
            Of one kind; not changed.

        Returns
        -------
        folds : FoldMoments
        """
        new = cls(len(parts), parts[0].scatter)
        new._parts = [part.copy() for part in parts]
        return new

    def copy(self) -> "FoldMoments":
        """Return an independent object with the same moments.

        Returns
        -------
        folds : FoldMoments
        """
        return FoldMoments.of_parts(self._parts)

    @property
    def scatter(self) -> str:
        """Which products are kept."""
        return self._parts[0].scatter

    @property
    def product_dtype(self) -> str:
        """Type in which rows are multiplied."""
        return self._parts[0].product_dtype

    @property
    def parts_(self) -> list[ClassMoments]:
        """Moments of the folds."""
        return [part.copy() for part in self._parts]

    @property
    def total_(self) -> ClassMoments:
        """Moments of all rows."""
        return merge_all(self._parts)

    @property
    def classes_(self) -> np.ndarray:
        """Labels held, sorted."""
        held = [part.classes_ for part in self._parts if len(part.classes_)]
        return np.unique(np.concatenate(held)) if held else self._parts[0].classes_

    @property
    def n_features_in_(self) -> int | None:
        """Width of the rows, None before the first."""
        return next((p.n_features_in_ for p in self._parts if p.n_features_in_), None)

    def leave_out(self, fold: int) -> ClassMoments:
        """Return the moments of all folds but one: those of its training set.

        Parameters
        ----------
        fold : int

        Returns
        -------
        moments : ClassMoments
            Added up from the others: no digit of a row left out is in it.
        """
        return merge_all(self._parts[:fold] + self._parts[fold + 1 :])

    def _changed(
        self, method: str, X: ArrayLike, y: ArrayLike, sample_weight: object, groups: object
    ) -> "FoldMoments":
        X = check_rows(X, self.n_features_in_)
        # A fold would name the row by its place in the fold.
        check_finite(X)
        y = _on_host(y)
        weights = check_weights(sample_weight, len(X))
        folds = _named_folds(X, groups, len(self._parts))
        if len(y) != len(X):
            raise ValueError(f"X has {len(X)} rows and y has {len(y)} labels.")
        parts = [part.copy() for part in self._parts]
        for k, part in enumerate(parts):
            for rows in _blocks(np.flatnonzero(folds == k)):
                w = None if weights is None else weights[rows]
                getattr(part, method)(_taken(X, rows), y[rows], w)
        # Labels and widths that do not go together are refused here, before anything is changed.
        merge_all(parts)
        self._parts = parts
        return self

    def update(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
    ) -> "FoldMoments":
        """Add rows, each to the fold that its content or its group names.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of at least 0.
        groups : array-like of shape (n_samples,), default=None
            Names; rows of one group (views of one image) share a fold.

        Returns
        -------
        self : FoldMoments
        """
        return self._changed("update", X, y, sample_weight, groups)

    def downdate(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
    ) -> "FoldMoments":
        """Remove rows that were added.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights that they were added with.
        groups : array-like of shape (n_samples,), default=None
            Their groups, where they were added with groups.

        Returns
        -------
        self : FoldMoments
        """
        return self._changed("downdate", X, y, sample_weight, groups)

    def merge(self, other: "FoldMoments") -> "FoldMoments":
        """Add the moments of other rows, fold by fold.

        Parameters
        ----------
        other : FoldMoments
            With equally many folds of the same kind.

        Returns
        -------
        self : FoldMoments
        """
        if not isinstance(other, FoldMoments):
            raise TypeError(
                f"other must be a FoldMoments, got {type(other).__name__}; use update for rows."
            )
        if len(other._parts) != len(self._parts):
            raise ValueError(
                f"other has {len(other._parts)} folds and these moments {len(self._parts)}; only "
                "equally many combine."
            )
        self._parts = [a + b for a, b in zip(self._parts, other._parts, strict=True)]
        return self

    def __add__(self, other: object) -> "FoldMoments":
        return self.copy().merge(other) if isinstance(other, FoldMoments) else NotImplemented

    def forget_class(self, c: object) -> "FoldMoments":
        """Remove one class.

        Parameters
        ----------
        c : label
            A class that is held.

        Returns
        -------
        self : FoldMoments
        """
        self._parts = [
            part.copy().forget_class(c) if c in part.classes_.tolist() else part
            for part in self._parts
        ]
        return self

    def reweighted(self, class_weight: Mapping) -> "FoldMoments":
        """Return the moments of the same rows with the weights of some classes multiplied.

        Parameters
        ----------
        class_weight : dict
            Label to factor, above 0; classes that are not in it keep their weights.

        Returns
        -------
        folds : FoldMoments
            A new object.
        """
        parts = []
        for part in self._parts:
            held = set(part.classes_.tolist())
            parts.append(part.reweighted({c: w for c, w in class_weight.items() if c in held}))
        return FoldMoments.of_parts(parts)

    def affine(self, A: ArrayLike, b: ArrayLike | None = None) -> "FoldMoments":
        """Return the moments of the rows mapped to ``x @ A + b``.

        Parameters
        ----------
        A : array-like of shape (n_features, n_outputs)
        b : array-like of shape (n_outputs,), default=None

        Returns
        -------
        folds : FoldMoments
            A new object. Rows that come later go to the folds of their mapped values.
        """
        return FoldMoments.of_parts(
            [part.affine(A, b) if len(part.classes_) else part for part in self._parts]
        )


def _named_folds(X: ArrayLike, groups: object, n_folds: int) -> np.ndarray:
    """The fold of every row, by a checksum of its group or its values."""
    if groups is not None:
        names = np.asarray(groups).tolist()
        if len(names) != len(X):
            raise ValueError(f"groups has {len(names)} names for {len(X)} rows; give one per row.")
        sums = [zlib.crc32(repr(name).encode()) for name in names]
        return np.array(sums, dtype=np.int64) % n_folds
    folds = np.empty(len(X), dtype=np.int64)
    for start in range(0, len(X), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        # Zero has two signs; adding one of them leaves one.
        rows = np.ascontiguousarray(as_tensor(X[part]).cpu().float().numpy() + np.float32(0))
        folds[part] = [zlib.crc32(row) % n_folds for row in rows]
    return folds


def _on_host(y: object) -> np.ndarray:
    return y.cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _BLOCK_ROWS):
        yield rows[start : start + _BLOCK_ROWS]


def _taken(X: ArrayLike, rows: np.ndarray) -> ArrayLike:
    return X[torch.from_numpy(rows).to(X.device) if isinstance(X, torch.Tensor) else rows]


def fold_indices(
    cv: int | BaseCrossValidator, y: np.ndarray, groups: ArrayLike | None = None
) -> list[np.ndarray]:
    """Return the rows of every fold of a splitter that leaves every row out once.

    Parameters
    ----------
    cv : int, splitter or iterable
        As in scikit-learn; an integer stratifies by class.
    y : ndarray of shape (n_samples,)
        Labels.
    groups : array-like of shape (n_samples,), default=None
        For splitters that keep groups together.

    Returns
    -------
    folds : list of ndarray
        Indices, ascending.

    Raises
    ------
    ValueError
        A row is left out never, or more than once.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import fold_indices
    >>> fold_indices(2, np.array([0, 1, 0, 1]))
    [array([0, 1]), array([2, 3])]
    """
    splitter = check_cv(cv, y, classifier=True)
    folds = [np.sort(test) for _, test in splitter.split(np.zeros(len(y)), y, groups)]
    times = np.bincount(np.concatenate(folds), minlength=len(y))
    if (times != 1).any():
        row = int(np.flatnonzero(times != 1)[0])
        raise ValueError(
            f"cv={cv!r} leaves row {row} out {times[row]} times, and moments of folds need every "
            "row left out once; take a K-fold splitter, or cross_validate of scikit-learn."
        )
    return folds


def fold_moments(
    X: ArrayLike,
    y: ArrayLike,
    cv: int | BaseCrossValidator = 5,
    *,
    groups: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    scatter: str = "shared",
) -> FoldMoments:
    """Compute the moments of every fold, at the cost of one fit.

    Parameters
    ----------
    X : ndarray or tensor of shape (n_samples, n_features)
    y : array-like of shape (n_samples,)
        Labels.
    cv : int, splitter or iterable, default=5
        As in scikit-learn; an integer stratifies by class. Every row must be left out once.
    groups : array-like of shape (n_samples,), default=None
        For splitters that keep groups together.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of at least 0.
    scatter : str, default="shared"
        See :class:`ClassMoments`.

    Returns
    -------
    folds : FoldMoments
        In the order of the splitter.

    Notes
    -----
    Exact cross-validation of everything after `X`; a step before that learned from all rows, such
    as a whitening, still leaks.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import fold_moments
    >>> folds = fold_moments(np.arange(8.0).reshape(4, 2), [0, 1, 0, 1], cv=2)
    >>> folds.leave_out(0).means_
    array([[4., 5.],
           [6., 7.]])
    """
    X, y = check_rows(X, None), _on_host(y)
    weights = check_weights(sample_weight, len(X))
    parts = []
    for fold in fold_indices(cv, y, groups):
        part = ClassMoments(scatter)
        for rows in _blocks(fold):
            part.update(_taken(X, rows), y[rows], None if weights is None else weights[rows])
        parts.append(part)
    return FoldMoments.of_parts(parts)


def ridge_fold_errors(
    folds: FoldMoments, lambdas: ArrayLike, *, relative: bool = True
) -> np.ndarray:
    r"""Return the squared errors of ridge regression on every fold, fitted on the others.

    With the weights :math:`W` of the others, and the centred sums of the fold, the sum over its
    rows is

    .. math:: n_k |\bar r|^2 + |Y_k|^2 - 2 \operatorname{tr}(W^\top Q_k)
        + \operatorname{tr}(W^\top T_k W),

    where :math:`\bar r` is what is left of the fold's mean. No row is needed.

    Parameters
    ----------
    folds : FoldMoments
        With full scatters.
    lambdas : array-like of shape (n_alphas,)
        Penalties, above 0.
    relative : bool, default=True
        Whether a penalty is this many times the mean eigenvalue of the training set's scatter.

    Returns
    -------
    errors : ndarray of shape (n_folds, n_alphas)
        Sums over the rows of a fold and the one-hot targets; an empty fold has 0.

    Notes
    -----
    Cost: one decomposition and two products of d^3 per fold, whatever the number of penalties.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import fold_moments, ridge_fold_errors
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(60, 3)), np.arange(60) % 2
    >>> ridge_fold_errors(fold_moments(X, y, cv=3), [0.1, 10.0]).shape
    (3, 2)
    """
    lambdas = np.atleast_1d(np.asarray(lambdas, dtype=np.float64))
    if not (np.isfinite(lambdas).all() and (lambdas > 0).all()):
        raise ValueError(f"lambdas={lambdas.tolist()} are not valid; give numbers above 0.")
    if folds.scatter not in ("shared", "per_class"):
        raise ValueError(
            f"A ridge regression needs products between features, and these moments have "
            f'scatter={folds.scatter!r}; use scatter="shared".'
        )
    classes = folds.classes_
    errors = np.zeros((len(folds.parts_), len(lambdas)))
    for k, part in enumerate(folds.parts_):
        rest = folds.leave_out(k)
        if len(part.classes_) and len(rest.classes_):
            errors[k] = _held_out_errors(rest, part, classes, lambdas, relative)
    return errors


def _regression(
    moments: ClassMoments, classes: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean, scatter, cross-products (d, C) with one-hot targets, and mean of these."""
    n, mean, scatter = moments.total()
    at = np.searchsorted(classes, moments.classes_)
    cross, share = np.zeros((len(mean), len(classes))), np.zeros(len(classes))
    cross[:, at] = (moments.counts_[:, None] * (moments.means_ - mean)).T
    share[at] = moments.counts_ / n
    return n, mean, scatter, cross, share


def _held_out_errors(
    rest: ClassMoments,
    part: ClassMoments,
    classes: np.ndarray,
    lambdas: np.ndarray,
    relative: bool,
) -> np.ndarray:
    _, mean, scatter, cross, share = _regression(rest, classes)
    count, part_mean, part_scatter, part_cross, part_share = _regression(part, classes)
    values, vectors = symmetric_eigen(scatter)
    scale = np.trace(scatter) / len(mean) if relative else 1.0
    inverse = 1.0 / (np.maximum(values, 0.0) + lambdas[:, None] * scale)
    weights = product(vectors.T, cross)
    # Everything below in the eigenvectors' coordinates, where W is `inverse` times `weights`.
    linear = (weights * product(vectors.T, part_cross)).sum(axis=1)
    squared = product(vectors.T, product(part_scatter, vectors)) * product(weights, weights.T)
    offset = (vectors.T @ (part_mean - mean))[:, None] * weights
    left = (part_share - share) - inverse @ offset
    spread = count * (1.0 - (part_share**2).sum())
    explained = 2.0 * inverse @ linear - np.einsum("ki,ij,kj->k", inverse, squared, inverse)
    return count * (left**2).sum(axis=1) + spread - explained
