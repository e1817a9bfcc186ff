# SPDX-License-Identifier: BSD-3-Clause
"""Square roots, powers and logarithms of the second moments of rows (n, L, k).

Few tokens span few dimensions: where L < k everything happens in the L x L products of the tokens
with each other, which have the same eigenvalues. An exact function is kept as a factor, so that
the one fast product of `upper_second_moment` makes the matrix of it.
"""

from typing import NamedTuple

import numpy as np
import torch

from skpool.utils import full_float32, side_by_side

__all__ = ["SpdFactor", "approximate_sqrt", "newton_schulz", "spd_factor"]

# Eigenvalues below this share of the largest count as zero.
_RANK_TOLERANCE = 1e-12


class SpdFactor(NamedTuple):
    """A symmetric matrix as ``rows^T rows + constant * I``.

    Attributes
    ----------
    rows : tensor of shape (n, m, k)
    constant : tensor of shape (n,)
    """

    rows: torch.Tensor
    constant: torch.Tensor


class _Function(NamedTuple):
    """A function of the eigenvalues, and what is mixed into these before."""

    name: str
    alpha: float
    eps: float
    shrinkage: float

    def gains(self, values: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the eigenvalues (n, m) of matrices of this width are above 0 turned into.

        Returns the function of each less that of 0, which is returned too, as (n, 1).
        """
        level = values.sum(dim=1, keepdim=True) / width
        kept = values > _RANK_TOLERANCE * values[:, -1:].clamp_min(0.0)
        floor = self.shrinkage * level
        shrunk = (1 - self.shrinkage) * values.where(kept, 0.0) + floor
        constant = self._of(floor, level)
        return (self._of(shrunk, level) - constant).clamp_min_(0.0), constant

    def _of(self, values: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        if self.name == "log":
            return (values + self.eps * torch.where(level > 0, level, 1.0)).log()
        return values.sqrt() if self.name == "sqrtm" else values.pow(self.alpha)


def _weights(values: torch.Tensor, gains: torch.Tensor, *, in_tokens: bool) -> torch.Tensor:
    """What eigenvectors are multiplied by, to be a factor, or to make one of the rows."""
    return (torch.where(gains > 0, gains / values, 0.0) if in_tokens else gains).sqrt()


def _factor_on_host(
    rows: np.ndarray, scale: np.ndarray, *, function: _Function
) -> tuple[np.ndarray, np.ndarray]:
    """Factors (n, m, k) and constants (n,), sample by sample: eigenvectors stay in the cache."""
    n, n_tokens, width = rows.shape
    in_tokens = n_tokens < width
    m = min(n_tokens, width)
    factors, constants = np.empty((n, m, width), dtype=rows.dtype), np.full(n, np.nan)
    roots = np.sqrt(scale, dtype=np.float64)

    def work(part: slice) -> None:
        wide, gram = np.empty((n_tokens, width)), np.empty((m, m))
        weighted = np.empty((m, m), dtype=rows.dtype)
        for x, root, i in zip(rows[part], roots[part], range(n)[part], strict=True):
            np.multiply(x, root, out=wide)
            left = wide if in_tokens else wide.T
            np.matmul(left, left.T, out=gram)
            if not np.isfinite(np.trace(gram)):
                factors[i] = np.nan
                continue
            # The library behind torch takes four fifths of the time of numpy's.
            values, vectors = torch.linalg.eigh(torch.from_numpy(gram))
            values, vectors = values[None], vectors.numpy()
            gains, constant = function.gains(values, width)
            weights = _weights(values, gains, in_tokens=in_tokens).numpy()
            constants[i] = constant.item()
            if in_tokens:
                np.multiply(vectors, weights * root, out=weighted)
                np.matmul(weighted.T, x, out=factors[i])
            else:
                factors[i] = (vectors * weights).T

    side_by_side(work, n)
    return factors, constants


def _factor_in_batch(
    rows: torch.Tensor, scale: torch.Tensor, *, function: _Function
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same on another device, for all samples at once."""
    in_tokens = rows.shape[1] < rows.shape[2]
    wide = rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)
    wide = wide * scale.to(wide).sqrt()[:, None, None]
    left = wide if in_tokens else wide.transpose(1, 2)
    with full_float32():
        gram = torch.bmm(left, left.transpose(1, 2))
    known = torch.isfinite(gram.diagonal(dim1=1, dim2=2).sum(dim=1))
    values, vectors = torch.linalg.eigh(gram.where(known[:, None, None], 0.0))
    gains, constants = function.gains(values, rows.shape[2])
    vectors = vectors * _weights(values, gains, in_tokens=in_tokens)[:, None]
    with full_float32():
        factors = torch.bmm(vectors.transpose(1, 2), wide) if in_tokens else vectors.transpose(1, 2)
    factors = factors.to(rows.dtype).where(known[:, None, None], torch.nan)
    return factors, constants[:, 0].where(known, torch.nan)


def spd_factor(
    rows: torch.Tensor,
    scale: torch.Tensor,
    *,
    function: str = "sqrtm",
    alpha: float = 0.5,
    eps: float = 1e-3,
    shrinkage: float = 0.0,
) -> SpdFactor:
    """Factor of a function of ``scale * rows^T rows``, by an exact eigen-decomposition.

    Parameters
    ----------
    rows : tensor of shape (n, L, k)
    scale : tensor of shape (n,)
    function : {"sqrtm", "power", "log"}, default="sqrtm"
        Increasing functions of the eigenvalues: root, power `alpha`, logarithm.
    alpha : float, default=0.5
    eps : float, default=1e-3
        Added to the eigenvalues before the logarithm, as a share of their mean.
    shrinkage : float, default=0.0
        Share of the mean eigenvalue in the matrix.

    Returns
    -------
    factor : SpdFactor
        Of the float type of the rows. Rows that are not finite give NaN.

    Notes
    -----
    Where L < k the eigenvectors are those of the L x L products of the rows with each other,
    which have the same eigenvalues. Those that are 0 make up the constant. Decompositions are in
    float64, however the rows come: the root of a rounded zero is 1e-4 in float32.
    """
    named = _Function(function, alpha, eps, shrinkage)
    if rows.device.type == "cpu":
        factors, constants = _factor_on_host(rows.numpy(), scale.numpy(), function=named)
        factors, constants = torch.from_numpy(factors), torch.from_numpy(constants)
    else:
        factors, constants = _factor_in_batch(rows, scale, function=named)
    return SpdFactor(factors, constants.to(rows.dtype))


def newton_schulz(matrices: torch.Tensor, *, n_iter: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Newton-Schulz iteration: Y tends to the square root of a matrix A and Z to its inverse.

    Parameters
    ----------
    matrices : tensor of shape (n, k, k)
        Symmetric, with eigenvalues from 0 to 1.
    n_iter : int
        Steps; Y and Z are polynomials of A, with Y = A Z after each.

    Returns
    -------
    Y, Z : tensors of shape (n, k, k)

    Notes
    -----
    The distance of Z Y to the identity falls in every step. A sample for which it no longer does
    has converged to rounding, and stays as it is: further steps would add rounding up.
    """
    eye = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
    Y, Z = matrices, eye.expand_as(matrices)
    last = matrices.new_full((len(matrices), 1, 1), torch.inf)
    for step in range(n_iter):
        product = matrices if step == 0 else torch.bmm(Z, Y)
        distance = torch.linalg.matrix_norm(eye - product, keepdim=True)
        moving = ~(distance >= last)
        if not bool(moving.any()):
            break
        T = (3 * eye - product) / 2
        nearer = torch.bmm(Y, T), (T if step == 0 else torch.bmm(T, Z))
        if not bool(moving.all()):
            nearer = torch.where(moving, nearer[0], Y), torch.where(moving, nearer[1], Z)
        Y, Z = nearer
        last = distance.where(moving, last)
    return Y, Z


def approximate_sqrt(
    rows: torch.Tensor, scale: torch.Tensor, *, n_iter: int, shrinkage: float
) -> torch.Tensor:
    """The published approximation of the square root of ``scale * rows^T rows``, (n, k, k)."""
    in_tokens = rows.shape[1] < rows.shape[2] and shrinkage == 0
    across = rows.transpose(1, 2)
    with full_float32():
        gram = torch.bmm(rows, across) if in_tokens else torch.bmm(across, rows)
        gram.mul_(scale[:, None, None])
        trace = gram.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
        if shrinkage:
            eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
            gram = (1 - shrinkage) * gram + shrinkage * trace / len(eye) * eye
        Y, Z = newton_schulz(gram / torch.where(trace == 0, 1.0, trace), n_iter=n_iter)
        if not in_tokens:
            return Y * trace.sqrt()
        # Y = A Z is a polynomial without a constant term, which passes from one side of the rows
        # to the other: p(R^T R) R^T R = R^T p(R R^T) R.
        weights = torch.where(trace == 0, 0.0, scale[:, None, None] / trace.sqrt())
        return torch.bmm(across, torch.bmm(Z * weights, rows))
