# SPDX-License-Identifier: BSD-3-Clause
"""Arithmetic of the preprocessing steps, without state.

Row-wise maps work on tensors where the data lie; whitening matrices are small float64 solves on
the host, applied to the data by one product.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from skpool.utils import as_tensor, full_float32

__all__ = [
    "WHITENING_METHODS",
    "WhiteningMap",
    "apply_affine",
    "l1_normalize",
    "l2_normalize",
    "peak_normalize",
    "signed_power",
    "whitening_matrix",
]

WHITENING_METHODS = ("pca", "zca", "zca_cor", "pca_cor", "cholesky")
# Rows per product: the centred copy of a block is all the memory that a transform needs.
_BLOCK_ROWS = 4096
# Norms whose squares neither overflow nor vanish in float32; other rows take a longer way.
_SAFE_NORMS = (1e-15, 1e15)


def peak_normalize(X: torch.Tensor) -> torch.Tensor:
    """Return rows divided by their largest magnitude; zero rows stay zero."""
    peak = _norm(X, torch.inf)
    return X / torch.where(peak > 0, peak, 1.0)


def l2_normalize(X: torch.Tensor, *, eps: float = 1e-12) -> torch.Tensor:
    """Return ``x / max(|x|_2, eps)`` for every row, without overflow at any magnitude."""
    return _normalize(X, eps, order=2)


def l1_normalize(X: torch.Tensor, *, eps: float = 1e-12) -> torch.Tensor:
    """Return ``x / max(|x|_1, eps)`` for every row, without overflow at any magnitude."""
    return _normalize(X, eps, order=1)


def _norm(X: torch.Tensor, order: float) -> torch.Tensor:
    return torch.linalg.vector_norm(X, ord=order, dim=-1, keepdim=True)


def _normalize(X: torch.Tensor, eps: float, *, order: int) -> torch.Tensor:
    norm = _norm(X, order)
    usual = (norm > _SAFE_NORMS[0]) & (norm < _SAFE_NORMS[1])
    out = X / torch.where(usual, norm.clamp(min=eps), 1.0)
    if not bool(usual.all()):
        rare = ~usual.squeeze(-1)
        out[rare] = _normalize_any(X[rare], eps, order)
    return out


def _normalize_any(X: torch.Tensor, eps: float, order: int) -> torch.Tensor:
    scaled = peak_normalize(X)
    # At least 1 in every row but zero rows, hence safe to divide by.
    norm = _norm(scaled, order).clamp(min=1.0)
    unit = scaled / norm
    # x / eps where the norm is below eps, written so that neither factor overflows.
    return unit * (_norm(X, torch.inf) / eps * norm).clamp(max=1.0) if eps > 0 else unit


def signed_power(X: torch.Tensor, *, power: float = 0.5) -> torch.Tensor:
    """Return ``sign(x) |x|^power`` element by element."""
    return X.abs().pow(power).copysign(X)


def apply_affine(
    X: torch.Tensor,
    *,
    shift: np.ndarray,
    matrix: np.ndarray,
    offset: np.ndarray,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return ``(x - shift) @ matrix + offset`` in `dtype`, where the rows lie.

    The shift is taken off before the product, and what its rounding to `dtype` leaves over goes
    into the offset: a mean of a thousand standard deviations costs no digits.
    """
    near = as_tensor(shift).to(dtype)
    rest = shift - near.double().numpy()
    near = near.to(X.device)
    A = as_tensor(matrix).to(dtype).to(X.device)
    b = as_tensor(offset - rest @ matrix).to(dtype).to(X.device)
    out = torch.empty(len(X), A.shape[1], dtype=dtype, device=X.device)
    with full_float32():
        for start in range(0, len(X), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            torch.addmm(b, X[part].to(dtype) - near, A, out=out[part])
    return out


@dataclass(frozen=True)
class WhiteningMap:
    """A whitening matrix, its inverse on the space it keeps, and where they come from."""

    forward: np.ndarray  # (d, k)
    backward: np.ndarray  # (k, d)
    eigenvalues: np.ndarray  # (r,), descending
    rank: int


def whitening_matrix(
    covariance: np.ndarray,
    *,
    n_samples: float,
    method: str = "pca",
    n_components: int | float | None = None,
    power: float = 1.0,
    eps: float = 1e-6,
    rows: np.ndarray | None = None,
) -> WhiteningMap:
    """Return the matrix W for which ``(x - mean) @ W`` has identity covariance.

    Parameters
    ----------
    covariance : ndarray of shape (n_features, n_features)
        In float64.
    n_samples : float
        Rows behind it; enters the tolerance below which an eigenvalue counts as zero.
    method : {"pca", "zca", "zca_cor", "pca_cor", "cholesky"}, default="pca"
        Which of the whitening matrices, all rotations of each other.
    n_components : int, float or None, default=None
        Leading components to keep, or the share of the variance that they must explain.
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
    d = len(covariance)
    tolerance = max(n_samples, d) * np.finfo(np.float64).eps
    scale = np.ones(d)
    if method.endswith("_cor"):
        scale = np.sqrt(np.maximum(np.diagonal(covariance), 0.0))
        scale[scale**2 <= tolerance * scale.max() ** 2] = 0.0
    inverse = np.divide(1.0, scale, out=np.zeros(d), where=scale > 0)
    if rows is None:
        values, vectors = scipy.linalg.eigh(covariance * np.outer(inverse, inverse))
        values, vectors = values[::-1], vectors[:, ::-1]
    else:
        singular, vectors = np.linalg.svd(rows * inverse, full_matrices=False)[1:]
        values, vectors = singular**2 / (n_samples - 1), vectors.T
    rank = int((values > max(tolerance * values[0], 0.0)).sum())
    ridge = eps * float((np.diagonal(covariance) * inverse**2).mean())
    if method == "cholesky":
        return _cholesky(covariance, values, rank, ridge)
    k = _n_kept(values, rank, n_components)
    values, vectors = values[:k], _signed(vectors[:, :k])
    roots = (values + ridge) ** (power / 2)
    forward, backward = vectors / roots, (vectors * roots).T
    if method.startswith("zca"):
        forward, backward = forward @ vectors.T, vectors @ backward
    return WhiteningMap(forward * inverse[:, None], backward * scale, values, rank)


def _signed(vectors: np.ndarray) -> np.ndarray:
    """Make the largest loading of each component positive: a decomposition leaves it open."""
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)


def _n_kept(values: np.ndarray, rank: int, n_components: int | float | None) -> int:
    if n_components is None:
        return rank
    if isinstance(n_components, (int, np.integer)):
        if n_components > rank:
            raise ValueError(
                f"n_components={n_components} is above the rank {rank} of the covariance; ask for "
                f"at most {rank}, give more rows, or set shrinkage."
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
