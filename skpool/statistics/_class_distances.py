# SPDX-License-Identifier: BSD-3-Clause
"""Mahalanobis distances to classes, each with its own covariance, from factors that are kept.

Gaussian classifiers and Mahalanobis detectors score with these. A factor is kept in panels below
its diagonal, so that all of them take little more than half of a stack of matrices.
"""

import math
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import scipy.linalg
import torch
from sklearn.utils import gen_batches

from skpool.statistics._checks import check_option
from skpool.statistics._class_covariances import Shrinkage, class_covariances, class_variances
from skpool.statistics._class_moments import ClassMoments
from skpool.statistics._covariance import Covariance
from skpool.utils import as_tensor, full_float32

__all__ = ["ClassDistances", "class_distances"]

_KINDS = ("per_class", "class_task", "shared", "diag", "low_rank")
# Rows of a triangular factor that are multiplied together: with eight panels of 768 features, 44 %
# of the square product is left out, and each panel is still wide enough for the BLAS.
_PANEL = 96
# Rows of X per product, and numbers that a product may give: they are squared and summed up while
# they lie in the caches.
_BLOCK_ROWS = 1024
_BLOCK_NUMBERS = 2**20
# Relative error of a distance, as foreseen, from which on float32 is not good enough.
_SINGLE_RTOL = 1e-5


def _wide(device: torch.device) -> torch.dtype:
    # Apple's GPUs have no float64.
    return torch.float32 if device.type == "mps" else torch.float64


def _center(means: np.ndarray) -> np.ndarray:
    """A point amid the means that float32 holds exactly, so that every type subtracts the same."""
    limits = np.finfo(np.float32)
    near = np.clip(means.mean(axis=0), limits.min, limits.max)
    return near.astype(np.float32).astype(np.float64)


def _refuse_singular(who: str) -> None:
    raise ValueError(
        f"The covariance of {who} is singular; raise shrinkage or blend, take fewer features, or "
        "give more rows."
    )


def _lower_factor(matrix: np.ndarray, who: str) -> np.ndarray:
    """Return Cholesky's factor of a matrix that may be overwritten."""
    variances = np.diagonal(matrix).copy()
    lower, info = scipy.linalg.lapack.dpotrf(matrix.T, lower=1, clean=1, overwrite_a=1)
    # What a feature varies by when those before it are known; scales of features do not matter.
    alone = np.square(np.diagonal(lower)) / np.where(variances > 0, variances, np.inf)
    if info or (alone <= len(lower) * np.finfo(np.float64).eps).any():
        _refuse_singular(who)
    return lower


class ClassDistances:
    """Squared Mahalanobis distances to the means of classes, from factored covariances.

    Attributes
    ----------
    log_determinants : ndarray of shape (n_classes,)
        Of the covariances.
    shrinkage : ndarray of shape (n_classes,)
        Share of the identity in each covariance.

    See Also
    --------
    class_distances : Builds them from moments.
    """

    log_determinants: np.ndarray
    shrinkage: np.ndarray

    def __init__(self, means: np.ndarray):
        self.means = means
        self._middle = _center(means)

    def squared(self, X: torch.Tensor) -> np.ndarray:
        """Return the squared distances of rows, block by block where the rows lie.

        Parameters
        ----------
        X : tensor of shape (n_samples, n_features)
            Of float32 or float64.

        Returns
        -------
        distances : ndarray of shape (n_samples, n_classes)
            float64, at least 0.
        """
        wide = _wide(X.device)
        out = torch.empty(len(X), len(self.means), dtype=wide, device=X.device)
        with full_float32():
            self._fill(X, out)
        return out.cpu().double().numpy()

    def _fill(self, X: torch.Tensor, out: torch.Tensor) -> None:
        center = self._on(self._middle, out)
        for part in gen_batches(len(X), _BLOCK_ROWS):
            out[part] = self._block(X[part].to(out.dtype) - center).clamp_(min=0)

    def _block(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the distances of few centred rows, in their type."""
        raise NotImplementedError

    def colored(self, k: int, Z: np.ndarray) -> np.ndarray:
        """Return rows with the covariance of class k, from rows with the identity.

        Parameters
        ----------
        k : int
            Position of the class.
        Z : ndarray of shape (n_samples, n_features)
            Such as independent standard normal numbers.

        Returns
        -------
        rows : ndarray of shape (n_samples, n_features)
            Around 0.
        """
        raise NotImplementedError

    def matrix(self, k: int) -> np.ndarray:
        """Return the covariance of a class, computed from its factor.

        Parameters
        ----------
        k : int
            Position of the class.

        Returns
        -------
        covariance : ndarray of shape (n_features, n_features)
        """
        root = self.colored(k, np.eye(self.means.shape[1]))
        return root.T @ root

    @staticmethod
    def _on(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        return as_tensor(values).to(dtype=like.dtype).to(like.device)


class _Panelled(ClassDistances):
    """Full covariances, as inverse Cholesky factors in panels: all classes of a panel together."""

    def __init__(self, covariances: Iterable[Covariance], means: np.ndarray, names: list):
        super().__init__(means)
        C, d = means.shape
        self._starts = list(range(0, d, _PANEL))
        ends = [min(start + _PANEL, d) for start in self._starts]
        self._panels = [np.empty((C, e - s, e)) for s, e in zip(self._starts, ends, strict=True)]
        self._mapped_means = np.empty((C, d))
        self.log_determinants, self.shrinkage = np.empty(C), np.empty(C)
        self._rounding = np.empty(C)
        for k, found in enumerate(covariances):
            variances = np.diagonal(found.matrix).copy()
            lower = _lower_factor(found.matrix, f"class {names[k]!r}")
            self.log_determinants[k] = 2 * np.log(np.diagonal(lower)).sum()
            self.shrinkage[k] = found.shrinkage
            inverse, _ = scipy.linalg.lapack.dtrtri(lower, lower=1, overwrite_c=1)
            self._keep(k, inverse, variances)

    def _keep(self, k: int, inverse: np.ndarray, variances: np.ndarray) -> None:
        for start, panel in zip(self._starts, self._panels, strict=True):
            panel[k] = inverse[start : start + panel.shape[1], : panel.shape[2]]
        shift = self.means[k] - self._middle
        self._mapped_means[k] = inverse @ shift
        # Rounding x moves its distance by sqrt(sum of x^2 diag(precision) / d) relative to it.
        moved = (variances + shift**2) @ np.square(inverse).sum(axis=0) / len(shift)
        self._rounding[k] = 2 * math.sqrt(moved)

    @cached_property
    def _single(self) -> list[np.ndarray]:
        return [panel.astype(np.float32) for panel in self._panels]

    def _fill(self, X: torch.Tensor, out: torch.Tensor) -> None:
        wide, width = out.dtype, min(_PANEL, self.means.shape[1])
        fitting = max(1, _BLOCK_NUMBERS // (min(_BLOCK_ROWS, len(X)) * width))
        for chunk in gen_batches(len(self.means), fitting):
            rounding = self._rounding[chunk].max() * np.finfo(np.float32).eps
            single = X.dtype == torch.float32 and rounding < _SINGLE_RTOL
            self._fill_classes(X, out, chunk, torch.float32 if single else wide)

    def _fill_classes(
        self, X: torch.Tensor, out: torch.Tensor, chunk: slice, dtype: torch.dtype
    ) -> None:
        like = torch.empty(0, dtype=dtype, device=X.device)
        panels = self._single if dtype == torch.float32 else self._panels
        factors = [self._on(panel[chunk], like).flatten(0, 1).mT for panel in panels]
        mapped = self._on(self._mapped_means[chunk], like)
        center = self._on(self._middle, like)
        for part in gen_batches(len(X), _BLOCK_ROWS):
            rows = X[part].to(dtype) - center
            total = 0.0
            for start, factor in zip(self._starts, factors, strict=True):
                width = factor.shape[1] // len(mapped)
                offset = mapped[:, start : start + width].flatten()
                product = torch.addmm(offset, rows[:, : factor.shape[0]], factor, beta=-1)
                squares = product.square_().view(len(rows), len(mapped), width).sum(dim=2)
                total = total + squares.to(out.dtype)
            out[part, chunk] = total

    def colored(self, k: int, Z: np.ndarray) -> np.ndarray:
        d = self.means.shape[1]
        inverse = np.zeros((d, d))
        for start, panel in zip(self._starts, self._panels, strict=True):
            inverse[start : start + panel.shape[1], : panel.shape[2]] = panel[k]
        return scipy.linalg.solve_triangular(inverse, Z.T, lower=True, check_finite=False).T


def _expanded(rows: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances of centred rows by one product."""
    norms = rows.square().sum(dim=1)[:, None] + means.square().sum(dim=1)
    return torch.addmm(norms, rows, means.mT, alpha=-2)


class _Shared(ClassDistances):
    """One full covariance: rows are mapped once, and distances are Euclidean after it."""

    def __init__(self, covariance: Covariance, means: np.ndarray):
        super().__init__(means)
        self._lower = _lower_factor(covariance.matrix, "all classes together")
        logarithm = 2 * np.log(np.diagonal(self._lower)).sum()
        self.log_determinants = np.full(len(means), logarithm)
        self.shrinkage = np.full(len(means), covariance.shrinkage)

    def _block(self, rows: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self._on(self.means - self._middle, rows), rows])
        lower = self._on(self._lower, rows)
        mapped = torch.linalg.solve_triangular(lower, both.mT, upper=False).mT
        return _expanded(mapped[len(self.means) :], mapped[: len(self.means)])

    def colored(self, k: int, Z: np.ndarray) -> np.ndarray:
        return Z @ self._lower.T


class _Diagonal(ClassDistances):
    """Variances per class: distances are two products, of the rows and of their squares."""

    def __init__(self, variances: np.ndarray, means: np.ndarray, names: list, share: float):
        super().__init__(means)
        zero = ~(variances > 0).all(axis=1)
        if zero.any():
            _refuse_singular(f"class {names[int(zero.argmax())]!r}")
        self.variances = variances
        self.log_determinants = np.log(variances).sum(axis=1)
        self.shrinkage = np.full(len(means), share)

    def _block(self, rows: torch.Tensor) -> torch.Tensor:
        shift = self.means - self._middle
        slopes = self._on(shift / self.variances, rows)
        constants = self._on((shift**2 / self.variances).sum(axis=1), rows)
        squares = rows.square() @ self._on(1 / self.variances, rows).mT
        return squares.addmm_(rows, slopes.mT, alpha=-2).add_(constants)

    def colored(self, k: int, Z: np.ndarray) -> np.ndarray:
        return Z * np.sqrt(self.variances[k])


class _LowRank(ClassDistances):
    """The largest eigenpairs of each covariance, and one variance for the rest of the space.

    By Woodbury's identity the distance is that within the space of the eigenvectors, eigenvalue
    by eigenvalue, plus what is left of the Euclidean one over the variance of the rest.
    """

    def __init__(
        self, covariances: Iterable[Covariance], means: np.ndarray, names: list, rank: int
    ):
        super().__init__(means)
        C, d = means.shape
        r = min(rank, d)
        self._axes, self._values = np.empty((C, r, d)), np.empty((C, r))
        self._rest, self.shrinkage = np.zeros(C), np.empty(C)
        for k, found in enumerate(covariances):
            total, self.shrinkage[k] = float(np.trace(found.matrix)), found.shrinkage
            values, vectors = scipy.linalg.eigh(
                found.matrix, subset_by_index=[d - r, d - 1], check_finite=False
            )
            if r < d:
                self._rest[k] = (total - values.sum()) / (d - r)
            smallest = self._rest[k] if r < d else values[0]
            if smallest <= d * np.finfo(np.float64).eps * values[-1]:
                _refuse_singular(f"class {names[k]!r}")
            self._axes[k], self._values[k] = vectors.T, values
        self.log_determinants = np.log(self._values).sum(axis=1)
        if r < d:
            self.log_determinants += (d - r) * np.log(self._rest)

    def _block(self, rows: torch.Tensor) -> torch.Tensor:
        shift = self.means - self._middle
        C, r, _ = self._axes.shape
        distances = _expanded(rows, self._on(shift, rows))
        weights = self._on(1 / self._values, rows)
        # Without a rest, what is left of the distance is rounding.
        rest = np.divide(1.0, self._rest, out=np.zeros(C), where=self._rest > 0)
        rest = self._on(rest, rows)
        mapped = self._on(np.einsum("krd,kd->kr", self._axes, shift), rows)
        for chunk in gen_batches(C, max(1, _BLOCK_NUMBERS // (len(rows) * r))):
            axes = self._on(self._axes[chunk], rows).flatten(0, 1)
            parts = torch.addmm(mapped[chunk].flatten(), rows, axes.mT, beta=-1).square_()
            parts = parts.view(len(rows), -1, r)
            left = (distances[:, chunk] - parts.sum(dim=2)).clamp_(min=0)
            distances[:, chunk] = left * rest[chunk] + (parts * weights[chunk]).sum(dim=2)
        return distances

    def colored(self, k: int, Z: np.ndarray) -> np.ndarray:
        axes, rest = self._axes[k], math.sqrt(self._rest[k])
        return rest * Z + ((Z @ axes.T) * (np.sqrt(self._values[k]) - rest)) @ axes


def _refuse_no_spread(moments: ClassMoments) -> None:
    held = moments._state.scatter
    if held is not None and not any(np.any(S) for S in held):
        raise ValueError(
            f"All n_samples={moments.counts_.sum():g} with n_features={moments.n_features_in_} "
            "equal the mean of their class, so there is no covariance; give classes with more than "
            "one distinct sample."
        )


def class_distances(
    moments: ClassMoments,
    kind: str = "per_class",
    *,
    shrinkage: Shrinkage = None,
    blend: float = 0.0,
    min_count: float | None = None,
    rank: int = 32,
    correlation: bool = False,
    ddof: float = 0,
) -> ClassDistances:
    """Return the factored covariances of the classes, for distances to their means.

    Parameters
    ----------
    moments : ClassMoments
        With ``scatter="per_class"``; "shared" and "diag" will do for the kinds of that name.
    kind : {"per_class", "class_task", "shared", "diag", "low_rank"}, default="per_class"
        A full covariance per class, one of class and task, one for all classes, variances per
        class, or the largest eigenpairs per class with one variance for the rest of the space
        (the Gaussian of probabilistic principal components [1]_).
    shrinkage : float, "oas", "ledoit_wolf", tuple or None, default=None
        See :func:`class_covariances`.
    blend : float, default=0.0
        Share of the pooled covariance.
    min_count : float or None, default=None
        A class of fewer rows takes the pooled covariance.
    rank : int, default=32
        Eigenpairs of "low_rank".
    correlation : bool, default=False
        Whether covariances are divided by their standard deviations.
    ddof : float, default=0
        Subtracted from the numbers of rows in the divisors.

    Returns
    -------
    distances : ClassDistances

    Raises
    ------
    ValueError
        A covariance is singular; the class is named.

    Notes
    -----
    Memory of the factors, beside the moments, in bytes for C classes and d features: about
    4.5 C d^2 for "per_class" and "class_task", and half of that again once rows of float32 were
    scored; 8 C d rank for "low_rank". Distances of n rows cost n C d^2 operations (a product with
    a triangular factor, half of a full one), 2 n C d rank for "low_rank", and 2 n C d after one
    map of the rows for "shared".

    Rows of float32 are multiplied in float32 where the covariance is well enough conditioned for
    the foreseen error of a distance to stay below 1e-5 of it, and in float64 otherwise.

    References
    ----------
    .. [1] M. E. Tipping, C. M. Bishop, Probabilistic Principal Component Analysis, 1999.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skpool.statistics import ClassMoments, class_distances
    >>> X = np.array([[0.0, 0.0], [2.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    >>> distances = class_distances(ClassMoments("per_class").update(X, [0, 0, 0, 0]))
    >>> distances.squared(torch.tensor([[1.0, 4.0]]))
    array([[9.]])
    """
    check_option("kind", kind, _KINDS)
    if kind != "class_task":
        _refuse_no_spread(moments)
    means, names = moments.means_, moments.classes_.tolist()
    if kind == "diag":
        options = {"blend": blend, "min_count": min_count, "ddof": ddof}
        variances = class_variances(moments, shrinkage=shrinkage, **options)
        variances = np.ones_like(variances) if correlation else variances
        return _Diagonal(variances, means, names, float(shrinkage or 0.0))
    found = class_covariances(
        moments,
        "per_class" if kind == "low_rank" else kind,
        shrinkage=shrinkage,
        blend=blend,
        min_count=min_count,
        correlation=correlation,
        ddof=ddof,
    )
    if kind == "shared":
        return _Shared(next(found), means)
    if kind == "low_rank":
        return _LowRank(found, means, names, rank)
    return _Panelled(found, means, names)
