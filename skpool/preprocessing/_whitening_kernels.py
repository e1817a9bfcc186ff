# SPDX-License-Identifier: BSD-3-Clause
"""From covariances to whitening matrices: one decomposition, and all that follows from it.

Small float64 solves on the host, without state. What depends on a decomposition alone (how many
components, which power, which rotation) is kept apart from it, so that a sweep solves once.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from skpool.preprocessing._kernels import signed_vectors
from skpool.preprocessing._memo import remembered
from skpool.statistics import symmetric_eigen

__all__ = [
    "WHITENING_METHODS",
    "Spectrum",
    "WhiteningMap",
    "block_diagonal",
    "check_n_components",
    "coloring_matrix",
    "learned_whitening",
    "n_kept",
    "pair_scatter",
    "spectrum_of",
    "spectrum_power",
    "whitening_map",
    "whitening_matrix",
]

WHITENING_METHODS = ("pca", "zca", "zca_cor", "pca_cor", "cholesky")
# Pairs whose differences are held at once.
_BLOCK_PAIRS = 4096
# Where a shrinkage of 0 is too little, it is raised from here.
_FIRST_SHRINKAGE = 1e-10

Axes = tuple[np.ndarray, np.ndarray]


def _eigen_axes(matrix: np.ndarray) -> Axes:
    """Eigenvalues, descending, and eigenvectors."""
    values, vectors = symmetric_eigen(matrix)
    return values[::-1].copy(), signed_vectors(vectors[:, ::-1])


def _singular_axes(rows: np.ndarray) -> Axes:
    """The same of ``rows.T @ rows``, as far as the rows reach, by a singular value decomposition.

    Small eigenvalues keep twice the digits that a product would leave them.
    """
    singular, vectors = np.linalg.svd(rows, full_matrices=False)[1:]
    return singular**2, signed_vectors(vectors.T)


def _gram_axes(rows: np.ndarray) -> Axes:
    """The same by the small matrix ``rows @ rows.T``, the fastest where rows are few."""
    values, left = symmetric_eigen(rows @ rows.T)
    values, left = values[::-1], left[:, ::-1]
    reached = values > values[0] * max(rows.shape) * np.finfo(np.float64).eps
    vectors = rows.T @ left[:, reached]
    return values[reached], signed_vectors(vectors / np.linalg.norm(vectors, axis=0))


_SOLVERS = {"cov": _eigen_axes, "svd": _singular_axes, "gram": _gram_axes}


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and eigenvectors of a covariance, and how to tell which of them are zero."""

    values: np.ndarray  # (r,), descending, before shrinkage
    vectors: np.ndarray  # (d, r)
    scale: np.ndarray | None  # (d,), what features were divided by for the correlation matrix
    mean: float  # mean variance: what shrinkage mixes in, and the unit of eps
    n_samples: float

    def shrunk(self, share: float) -> np.ndarray:
        """Eigenvalues with a share of the mean variance in place of their own."""
        return (1 - share) * self.values + share * self.mean

    def rank(self, values: np.ndarray) -> int:
        """How many of the (shrunk) eigenvalues are above rounding."""
        tolerance = max(self.n_samples, len(self.vectors)) * np.finfo(np.float64).eps
        return int((values > max(tolerance * values[0], 0.0)).sum())


def spectrum_of(
    covariance: np.ndarray,
    *,
    n_samples: float,
    correlation: bool = False,
    solver: str = "cov",
    rows: np.ndarray | None = None,
) -> Spectrum:
    """Decompose a covariance, or the correlation matrix that belongs to it.

    Shrinkage towards the mean variance leaves eigenvectors as they are, so it is left to what
    uses the spectrum; that of a correlation matrix is done to the covariance before.

    Parameters
    ----------
    covariance : ndarray of shape (n_features, n_features) or (n_features,)
        In float64, with divisor ``n_samples - 1``; its diagonal is enough for "svd" and "gram".
    n_samples : float
        Rows behind it; enters the tolerance below which an eigenvalue counts as zero.
    correlation : bool, default=False
        Divide features by their standard deviations first; constant ones become 0.
    solver : {"cov", "svd", "gram"}, default="cov"
        Eigenvectors of the covariance; singular vectors of `rows`; or eigenvectors of the
        products between rows, which are the same to rounding and cheaper where rows are few.
    rows : ndarray of shape (n_samples, n_features), default=None
        Centred rows behind the covariance, for "svd" and "gram".

    Returns
    -------
    spectrum : Spectrum
        For "svd" and "gram" of the space of the rows only.
    """
    variances = covariance if covariance.ndim == 1 else np.diagonal(covariance)
    scale = None
    if correlation:
        scale = np.sqrt(np.maximum(variances, 0.0))
        tolerance = max(n_samples, len(covariance)) * np.finfo(np.float64).eps
        scale[scale**2 <= tolerance * scale.max() ** 2] = 0.0
        inverse = _inverse(scale)
        variances = variances * inverse**2
    if solver == "cov":
        matrix = covariance if scale is None else covariance * np.outer(inverse, inverse)
        values, vectors = remembered(_eigen_axes, matrix)
    else:
        rows = rows if scale is None else rows * inverse
        values, vectors = remembered(_SOLVERS[solver], rows)
        values = values / (n_samples - 1)
    return Spectrum(values, vectors, scale, float(variances.mean()), n_samples)


def _inverse(scale: np.ndarray) -> np.ndarray:
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)


@dataclass(frozen=True)
class WhiteningMap:
    """A whitening matrix, its inverse on the space it keeps, and where they come from."""

    forward: np.ndarray  # (d, k)
    backward: np.ndarray  # (k, d)
    eigenvalues: np.ndarray  # (r,), descending
    rank: int


def whitening_map(
    spectrum: Spectrum,
    *,
    method: str = "pca",
    n_components: int | float | str | None = None,
    power: float = 1.0,
    eps: float = 1e-6,
    shrinkage: float = 0.0,
    covariance: np.ndarray | None = None,
) -> WhiteningMap:
    """Return what one decomposition gives for these options, at the cost of a product at most.

    `covariance` (shrunk) is for the method "cholesky"; the others are as in `whitening_matrix`.
    """
    values = spectrum.shrunk(shrinkage)
    rank = spectrum.rank(values)
    ridge = eps * spectrum.mean
    if method == "cholesky":
        return _cholesky(covariance, values, rank, ridge)
    k = n_kept(values, rank, n_components, n_samples=spectrum.n_samples, d=len(spectrum.vectors))
    values, vectors = values[:k], spectrum.vectors[:, :k]
    roots = (values + ridge) ** (power / 2)
    forward, backward = vectors / roots, (vectors * roots).T
    if method.startswith("zca"):
        forward, backward = forward @ vectors.T, vectors @ backward
    if spectrum.scale is not None:
        forward = forward * _inverse(spectrum.scale)[:, None]
        backward = backward * spectrum.scale
    return WhiteningMap(forward, backward, values, rank)


def whitening_matrix(
    covariance: np.ndarray,
    *,
    n_samples: float,
    method: str = "pca",
    n_components: int | float | str | None = None,
    power: float = 1.0,
    eps: float = 1e-6,
    rows: np.ndarray | None = None,
) -> WhiteningMap:
    """Return the matrix W for which ``(x - mean) @ W`` has identity covariance.

    Parameters
    ----------
    covariance : ndarray of shape (n_features, n_features)
        In float64, shrunk where it shall be.
    n_samples : float
        Rows behind it; enters the tolerance below which an eigenvalue counts as zero.
    method : {"pca", "zca", "zca_cor", "pca_cor", "cholesky"}, default="pca"
        Which of the whitening matrices, all rotations of each other.
    n_components : int, float, str or None, default=None
        Leading components to keep, the share of the variance that they must explain, or "auto"
        and a number to keep if there are as many.
    power : float, default=1.0
        Eigenvalues become ``eigenvalues ** (1 - power)``.
    eps : float, default=1e-6
        Added to the eigenvalues, as a share of their mean.
    rows : ndarray of shape (n_samples, n_features), default=None
        Centred rows behind the covariance; when given, the eigenvectors come from their singular
        value decomposition, cheaper where rows are few.

    Returns
    -------
    map : WhiteningMap

    Raises
    ------
    ValueError
        More components than the rank, or a rank too low for the method.
    """
    spectrum = spectrum_of(
        covariance,
        n_samples=n_samples,
        correlation=method.endswith("_cor"),
        solver="cov" if rows is None else "svd",
        rows=rows,
    )
    options = {"n_components": n_components, "power": power, "eps": eps}
    return whitening_map(spectrum, method=method, covariance=covariance, **options)


def check_n_components(n_components: int | float | str | None) -> None:
    """Refuse text that is not "auto" and a number."""
    if isinstance(n_components, str):
        number = n_components.removeprefix("auto")
        if not (n_components.startswith("auto") and number.isdecimal() and int(number) > 0):
            raise ValueError(
                f"n_components={n_components!r} is not valid; give a number, a share of the "
                'variance, or the most components wanted as text, such as "auto256".'
            )


def n_kept(
    values: np.ndarray,
    rank: int,
    n_components: int | float | str | None,
    *,
    n_samples: float,
    d: int,
) -> int:
    """Return how many leading components are kept."""
    if n_components is None:
        return rank
    if isinstance(n_components, str):
        check_n_components(n_components)
        most = max(1, int(min(n_samples, d)) - 1)
        return min(int(n_components.removeprefix("auto")), most, rank)
    if isinstance(n_components, (int, np.integer)):
        if n_components > rank:
            raise ValueError(
                f"n_components={n_components} is above the rank {rank} of the covariance; ask for "
                f'at most {rank}, or for as many as there are by n_components="auto{n_components}"'
                ", give more rows, or set shrinkage."
            )
        return int(n_components)
    explained = np.cumsum(values[:rank]) / values[:rank].sum()
    return min(rank, int(np.searchsorted(explained, n_components)) + 1)


def _cholesky(covariance: np.ndarray, values: np.ndarray, rank: int, ridge: float) -> WhiteningMap:
    d = len(covariance)
    if rank < d:
        raise ValueError(
            f'method="cholesky" needs a covariance of full rank {d}, and its rank is {rank}; set '
            'shrinkage, or take method="zca".'
        )
    lower = np.linalg.cholesky(covariance + ridge * np.eye(d))
    forward = scipy.linalg.solve_triangular(lower, np.eye(d), lower=True).T
    return WhiteningMap(forward, lower.T, values, rank)


def block_diagonal(maps: list[WhiteningMap]) -> WhiteningMap:
    """Return the map that acts on consecutive groups of features, each by its own map."""
    if len(maps) == 1:
        return maps[0]
    forward = scipy.linalg.block_diag(*(part.forward for part in maps))
    backward = scipy.linalg.block_diag(*(part.backward for part in maps))
    eigenvalues = np.concatenate([part.eigenvalues for part in maps])
    return WhiteningMap(forward, backward, eigenvalues, sum(part.rank for part in maps))


def spectrum_power(spectrum: Spectrum, power: float) -> np.ndarray:
    """Return the symmetric power of a covariance; directions without variance stay without."""
    k = spectrum.rank(spectrum.values)
    vectors = spectrum.vectors[:, :k]
    return (vectors * spectrum.values[:k] ** power) @ vectors.T


def coloring_matrix(moving: Spectrum, fixed: Spectrum, *, method: str = "zca") -> np.ndarray:
    """Return the matrix A for which ``(x - mean) @ A`` has the covariance of other rows.

    Parameters
    ----------
    moving, fixed : Spectrum
        Of the covariances of x, and of the other rows.
    method : {"zca", "ot"}, default="zca"
        Whiten and colour by symmetric roots; or the symmetric matrix, which moves x least.

    Returns
    -------
    A : ndarray of shape (n_features, n_features)
    """
    inverse = spectrum_power(moving, -0.5)
    if method == "zca":
        return inverse @ spectrum_power(fixed, 0.5)
    # The root of M.T @ M from the singular values of M, which keeps the digits that a square loses.
    M = spectrum_power(fixed, 0.5) @ spectrum_power(moving, 0.5)
    values, vectors = np.linalg.svd(M)[1:]
    A = inverse @ (vectors.T * values) @ vectors @ inverse
    return (A + A.T) / 2


def pair_scatter(X: torch.Tensor, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of products of the differences of pairs of rows, and the mean of the first.

    Parameters
    ----------
    X : tensor of shape (n_samples, n_features)
    pairs : ndarray of shape (n_pairs, 2)
        Positions in X.

    Returns
    -------
    scatter : ndarray of shape (n_features, n_features)
    mean : ndarray of shape (n_features,)
        Of the rows that stand first, each as often as it does.
    """
    d = X.shape[1]
    scatter, total = np.zeros((d, d)), np.zeros(d)
    for start in range(0, len(pairs), _BLOCK_PAIRS):
        block = torch.from_numpy(pairs[start : start + _BLOCK_PAIRS].astype(np.int64)).to(X.device)
        first, second = (X[block[:, side]].cpu().double().numpy() for side in (0, 1))
        total += first.sum(axis=0)
        difference = first - second
        scatter += difference.T @ difference
    return scatter, total / len(pairs)


def learned_whitening(
    within: np.ndarray, total: np.ndarray, *, n_samples: float, shrinkage: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the directions W of most variance for which ``W.T @ within @ W`` is the identity.

    Parameters
    ----------
    within : ndarray of shape (n_features, n_features)
        Mean product of the differences of matching rows; not zero.
    total : ndarray of shape (n_features, n_features)
        Covariance of all rows.
    n_samples : float
        Rows behind it.
    shrinkage : float
        Share of the mean of the diagonal added to `within`; raised tenfold until a factor exists.

    Returns
    -------
    directions : ndarray of shape (n_features, rank)
        Solutions of ``total @ w = value * within @ w``, as many as rows have directions.
    values : ndarray of shape (rank,)
        Descending.
    shrinkage : float
        What was added.
    """
    d, mean = len(within), float(np.diagonal(within).mean())
    added = shrinkage
    while not _is_definite(shifted := within + added * mean * np.eye(d)):
        added = max(10 * added, _FIRST_SHRINKAGE)
    values, vectors = scipy.linalg.eigh(total, shifted, check_finite=False)
    rank = _rank(total, n_samples)
    return signed_vectors(vectors[:, ::-1][:, :rank]), values[::-1][:rank].copy(), added


def _rank(covariance: np.ndarray, n_samples: float) -> int:
    """How many directions have variance, whatever the scale of the features."""
    inverse = _inverse(np.sqrt(np.maximum(np.diagonal(covariance), 0.0)))
    correlation = covariance * np.outer(inverse, inverse)
    values = scipy.linalg.eigvalsh(correlation, check_finite=False)
    tolerance = max(n_samples, len(covariance)) * np.finfo(np.float64).eps
    return int((values > tolerance * values[-1]).sum())


def _is_definite(matrix: np.ndarray) -> bool:
    """Whether Cholesky's factor exists beyond rounding, whatever the scale of the features."""
    scale = np.sqrt(np.diagonal(matrix))
    if not (scale > 0).all():
        return False
    lower, info = scipy.linalg.lapack.dpotrf(matrix / np.outer(scale, scale), lower=1)
    smallest = len(matrix) * np.finfo(np.float64).eps
    return info == 0 and bool((np.diagonal(lower) ** 2 > smallest).all())
