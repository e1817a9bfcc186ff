# SPDX-License-Identifier: BSD-3-Clause
"""Arithmetic of the preprocessing steps, without state.

Row-wise maps work on tensors where the data lie; what is solved for are small float64 matrices on
the host, applied to the data by one product. Those of whitenings are in `_whitening_kernels`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from skpool.utils import as_tensor, full_float32

__all__ = [
    "RANDOM_ACTIVATIONS",
    "PrincipalAxes",
    "center_rows",
    "l1_normalize",
    "l2_normalize",
    "layer_normalize",
    "peak_normalize",
    "principal_axes",
    "random_features",
    "random_weights",
    "remove_directions",
    "rms_normalize",
    "row_center",
    "row_std",
    "scale_and_shift",
    "share_index",
    "signed_power",
    "signed_vectors",
    "standardize",
    "standardize_by_group",
    "swish_normalize",
]

# Rows per product: the centred copy of a block is all the memory that a transform needs.
_BLOCK_ROWS = 4096
# Norms whose squares neither overflow nor vanish in float32; other rows take a longer way.
_SAFE_NORMS = (1e-15, 1e15)
# Columns of random weights that share a seed.
_RANDOM_COLUMNS = 256


def peak_normalize(X: torch.Tensor) -> torch.Tensor:
    """Return rows divided by their largest magnitude; zero rows stay zero."""
    peak = _norm(X, torch.inf)
    return X / torch.where(peak > 0, peak, 1.0)


def l2_normalize(
    X: torch.Tensor, *, eps: float = 1e-12, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``x / max(|x|_2, eps)`` for every row, without overflow at any magnitude."""
    return _normalize(X, eps, order=2, out=out)


def l1_normalize(X: torch.Tensor, *, eps: float = 1e-12) -> torch.Tensor:
    """Return ``x / max(|x|_1, eps)`` for every row, without overflow at any magnitude."""
    return _normalize(X, eps, order=1)


def _norm(X: torch.Tensor, order: float) -> torch.Tensor:
    return torch.linalg.vector_norm(X, ord=order, dim=-1, keepdim=True)


def _normalize(
    X: torch.Tensor, eps: float, *, order: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return rows of norm 1, in `out` where that is given, which may be X itself."""
    norm = _norm(X, order)
    usual = (norm > _SAFE_NORMS[0]) & (norm < _SAFE_NORMS[1])
    out = torch.div(X, torch.where(usual, norm.clamp(min=eps), 1.0), out=out)
    if not bool(usual.all()):
        # Divided by 1, these are in X still.
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


def signed_vectors(vectors: np.ndarray) -> np.ndarray:
    """Make the largest loading of each component positive: a decomposition leaves it open."""
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)


def _like(values: np.ndarray, X: torch.Tensor) -> torch.Tensor:
    # In this order: not every device has float64.
    return as_tensor(values).to(X.dtype).to(X.device)


def center_rows(X: torch.Tensor, center: np.ndarray) -> torch.Tensor:
    """Return ``x - center`` in the type of X, as exact as if the centre were not rounded to it."""
    return standardize(X, mean=center, scale=np.ones(1))


def standardize(X: torch.Tensor, *, mean: np.ndarray, scale: np.ndarray) -> torch.Tensor:
    """Return ``(x - mean) / scale`` in the type of X; rounding the mean to it costs no digits."""
    near = as_tensor(mean).to(X.dtype)
    rest = near.double().numpy() - mean
    out = X - near.to(X.device)
    return torch.addcmul(_like(rest / scale, X), out, _like(1 / scale, X), out=out)


def scale_and_shift(X: torch.Tensor, *, scale: np.ndarray, shift: np.ndarray) -> torch.Tensor:
    """Return ``x * scale + shift`` in the type of X."""
    return torch.addcmul(_like(shift, X), X, _like(scale, X))


def standardize_by_group(
    X: torch.Tensor, index: np.ndarray, *, means: np.ndarray, scales: np.ndarray
) -> torch.Tensor:
    """Return ``(x - means[g]) / scales[g]`` for rows of the groups g that `index` names."""
    near = as_tensor(means).to(X.dtype)
    rest = _like(means - near.double().numpy(), X)
    near, scales = near.to(X.device), _like(scales, X)
    at = torch.from_numpy(index).to(X.device)
    out = torch.empty_like(X)
    for start in range(0, len(X), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        rows = (X[part] - near[at[part]]).sub_(rest[at[part]])
        torch.div(rows, scales[at[part]], out=out[part])
    return out


@dataclass(frozen=True)
class PrincipalAxes:
    """Eigenvalues of a covariance, descending and none below 0, with their vectors."""

    variances: np.ndarray  # (d,)
    vectors: np.ndarray  # (d, d), one per column
    rank: int


def principal_axes(scatter: np.ndarray, *, n_samples: float) -> PrincipalAxes:
    """Return the principal axes of rows from the sums of their products around the mean.

    Parameters
    ----------
    scatter : ndarray of shape (n_features, n_features)
        In float64.
    n_samples : float
        Rows behind it, at least 2.

    Returns
    -------
    axes : PrincipalAxes
        With divisor ``n_samples - 1``; the largest loading of each vector is positive.
    """
    values, vectors = scipy.linalg.eigh(scatter)
    values = np.maximum(values[::-1], 0.0) / (n_samples - 1)
    tolerance = max(n_samples, len(values)) * np.finfo(np.float64).eps
    rank = int((values > tolerance * values[0]).sum())
    return PrincipalAxes(values, signed_vectors(vectors[:, ::-1]), rank)


def share_index(variances: np.ndarray, share: float, *, strictly: bool = False) -> int:
    """Return the first index at which components explain a share of the variance.

    With `strictly` they must explain more. The last index stands for a share that rounding keeps
    out of reach, and for 1.
    """
    last = len(variances) - 1
    if share >= 1:
        return last
    explained = np.cumsum(variances) / variances.sum()
    return min(last, int(np.searchsorted(explained, share, side="right" if strictly else "left")))


def remove_directions(
    X: torch.Tensor, *, center: np.ndarray, directions: np.ndarray
) -> torch.Tensor:
    """Return the rows minus `center` without their part along orthonormal `directions` (k, d)."""
    V = _like(directions, X)
    out = torch.empty_like(X)
    with full_float32():
        for start in range(0, len(X), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            rows = center_rows(X[part], center)
            torch.addmm(rows, rows @ V.T, V, alpha=-1.0, out=out[part])
    return out


def _unusual(X: torch.Tensor) -> torch.Tensor:
    """Rows whose squares overflow or vanish, and equal values, whose variance is rounding alone."""
    low, high = X.amin(dim=-1), X.amax(dim=-1)
    peak = torch.maximum(high, -low)
    return (peak < _SAFE_NORMS[0]) | (peak > _SAFE_NORMS[1]) | (low == high)


def _scaled(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows over a power of two near their largest magnitude, which costs no digit, and that."""
    peak = _norm(X, torch.inf)
    unit = torch.where(peak > 0, peak / (2 * torch.frexp(peak).mantissa), 1.0)
    return X / unit, unit


def _centered(X: torch.Tensor) -> torch.Tensor:
    """Rows minus their mean; equal values become exactly 0."""
    out = X - X.mean(dim=-1, keepdim=True)
    # The mean of what is left is the rounding of the mean, and itself free of rounding where all
    # values are equal.
    return out.sub_(out.mean(dim=-1, keepdim=True))


def _root_mean_square(X: torch.Tensor) -> torch.Tensor:
    return X.square().mean(dim=-1, keepdim=True).sqrt()


def _over_root(scaled: torch.Tensor, unit: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / sqrt(mean x^2 + eps)`` of rows x = scaled * unit, without a square that overflows."""
    # A number over a tensor would be the number times 1 / unit, which may be infinite.
    floor = unit.new_tensor(math.sqrt(eps)) / unit
    root = torch.hypot(_root_mean_square(scaled), floor)
    return scaled / torch.where(root > 0, root, 1.0)


def row_center(X: torch.Tensor) -> torch.Tensor:
    """Return ``x - mean(x)`` for every row; equal values become 0."""
    out = _centered(X)
    rare = _unusual(X)
    if bool(rare.any()):
        scaled, unit = _scaled(X[rare])
        out[rare] = _centered(scaled) * unit
    return out


def row_std(X: torch.Tensor, *, eps: float = 0.0) -> torch.Tensor:
    """Return ``sqrt(var(x) + eps)`` (..., 1) of every row, with divisor d, at any magnitude."""
    std = X.std(dim=-1, correction=0, keepdim=True)
    rare = _unusual(X)
    if bool(rare.any()):
        scaled, unit = _scaled(X[rare])
        std[rare] = _root_mean_square(_centered(scaled)) * unit
    return torch.hypot(std, std.new_tensor(math.sqrt(eps)))


def layer_normalize(X: torch.Tensor, *, eps: float = 1e-5) -> torch.Tensor:
    """Return ``(x - mean(x)) / sqrt(var(x) + eps)`` for every row; equal values become 0."""
    out = torch.nn.functional.layer_norm(X, X.shape[-1:], eps=eps)
    rare = _unusual(X)
    if bool(rare.any()):
        scaled, unit = _scaled(X[rare])
        out[rare] = _over_root(_centered(scaled), unit, eps)
    return out


def rms_normalize(X: torch.Tensor, *, eps: float = 1e-5) -> torch.Tensor:
    """Return ``x / sqrt(mean(x^2) + eps)`` for every row; zero rows stay zero."""
    out = torch.nn.functional.rms_norm(X, X.shape[-1:], eps=eps)
    rare = _unusual(X)
    if bool(rare.any()):
        out[rare] = _over_root(*_scaled(X[rare]), eps)
    return out


def swish_normalize(X: torch.Tensor, *, eps: float = 1e-5) -> torch.Tensor:
    """Return ``x * sigmoid(x) / sqrt(var(x) + eps)`` for every row: EvoNorm-S0 of one group."""
    std = row_std(X, eps=eps)
    return torch.nn.functional.silu(X) / torch.where(std > 0, std, 1.0)


RANDOM_ACTIVATIONS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda projected: projected,
    "cos": torch.Tensor.cos_,
    "erf": torch.Tensor.erf_,
    "relu": torch.Tensor.relu_,
    "sign": torch.Tensor.sign_,
}

Weights = tuple[np.ndarray, np.ndarray | None]


def random_weights(
    seed: int,
    *,
    n_features: int,
    n_components: int,
    bias: str | None = None,
    orthogonal: bool = False,
) -> Iterator[Weights]:
    """Yield random weights and offsets, some columns at a time.

    Every block of columns has a seed of its own, so fewer components are the first of more.

    Parameters
    ----------
    seed : int
    n_features, n_components : int
    bias : {"normal", "angle"} or None, default=None
        Distribution of the offsets: standard normal, or uniform on the circle.
    orthogonal : bool, default=False
        Whether columns are orthogonal within blocks of `n_features`; their lengths stay those of
        normal vectors.

    Yields
    ------
    W : ndarray of shape (n_features, n), float32
        Each column a standard normal vector.
    b : ndarray of shape (n,), float32, or None
    """
    width = _RANDOM_COLUMNS
    if orthogonal:
        width = n_features * math.ceil(width / n_features)
    for block, start in enumerate(range(0, n_components, width)):
        # The numbers of RandomState are the same in every version of numpy, as its authors
        # promise, and those of newer generators are not: a stored seed must outlive an update.
        rng = np.random.RandomState([seed, block])
        W = rng.standard_normal((n_features, width))
        if orthogonal:
            W = _orthogonal(W) * np.sqrt(rng.chisquare(n_features, width))
        b = None
        if bias is not None:
            angle = bias == "angle"
            b = rng.uniform(0, 2 * np.pi, width) if angle else rng.standard_normal(width)
            b = b[: n_components - start].astype(np.float32)
        yield W[:, : n_components - start].astype(np.float32), b


def _orthogonal(W: np.ndarray) -> np.ndarray:
    """Turn every square block of columns into a uniformly random rotation."""
    d = len(W)
    Q, R = np.linalg.qr(W.reshape(d, -1, d).swapaxes(0, 1))
    # A decomposition fixes signs by convention, which the rotation must not inherit.
    Q *= np.sign(np.diagonal(R, axis1=1, axis2=2))[:, None, :]
    return Q.swapaxes(0, 1).reshape(d, -1)


def random_features(
    X: torch.Tensor,
    weights: Iterable[Weights],
    *,
    n_components: int,
    activation: str | None = "relu",
    scale: float = 1.0,
) -> torch.Tensor:
    """Return ``scale * activation(x @ W + b)``, block of columns after block of columns."""
    activate = RANDOM_ACTIVATIONS[activation]
    out = X.new_empty(len(X), n_components)
    first = 0
    with full_float32():
        for W, b in weights:
            columns = slice(first, first := first + W.shape[1])
            W = _like(W, X)
            b = X.new_zeros(W.shape[1]) if b is None else _like(b, X)
            for start in range(0, len(X), _BLOCK_ROWS):
                part = slice(start, start + _BLOCK_ROWS)
                out[part, columns] = activate(torch.addmm(b, X[part], W)).mul_(scale)
    return out
