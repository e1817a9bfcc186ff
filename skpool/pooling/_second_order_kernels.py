# SPDX-License-Identifier: BSD-3-Clause
"""Second moments of tokens and functions of them, as vectors: the core of second-order pooling.

Everything here goes from rows (n, L, k), the tokens of a sample after centring and the like, to
the matrix of a sample and on to its upper triangle. A matrix is kept as a factor Z with
Z^T Z = matrix for as long as possible, so one product serves them all; on the CPU it takes half
the work of a general one, sample by sample in the cache, samples side by side in threads.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import get_lapack_funcs

from skpool.pooling._kernels import Mask, pool_first, pool_mean
from skpool.pooling._spd_functions import approximate_sqrt, spd_factor
from skpool.utils import full_float32, side_by_side, unit_rows, widened

__all__ = [
    "TokenRows",
    "blocks_of",
    "empty_vectors",
    "inverse_vectorize",
    "matrix_function",
    "pool_covariance",
    "signed_sqrt_",
    "token_counts",
    "token_rows",
    "triangle_width",
    "unit_rows_",
    "upper_second_moment",
    "vectorize_symmetric",
    "write_covariances",
]

# Bytes of tokens or matrices that are worked on at a time on the CPU.
_BLOCK_BYTES = 2**24
# Eigenvectors take far longer than reading their tokens again, so here it is the threads, started
# for every block, that decide.
_EXACT_BLOCK_BYTES = 2**27
# Matrices narrower than this are multiplied in one batch, wider ones one by one, in panels of rows
# of the upper triangle; a panel this high is still a fast product.
_WIDE, _PANEL = 128, 96
# Tokens beyond which the mean of the deviations is taken off too: long sums round.
_LONG = 512
# Norms whose squares neither overflow nor vanish in float32.
_SAFE_NORMS = (1e-15, 1e15)


def empty_vectors(n: int, width: int, *, like: torch.Tensor) -> torch.Tensor:
    """Room for vectors (n, width) of the float type of `like`, float32 for half precision."""
    like = widened(like[:0])
    if like.device.type != "cpu":
        return like.new_empty((n, width))
    # Arrays of numpy ask the system for large pages, which are ready several times sooner.
    return torch.from_numpy(np.empty((n, width), dtype=str(like.dtype).removeprefix("torch.")))


def blocks_of(tokens: torch.Tensor, width: int, n_bytes: int = _BLOCK_BYTES) -> Iterator[slice]:
    """Samples to take at a time so that tokens and (width, width) matrices stay in the cache."""
    n, n_tokens, n_features = tokens.shape
    row_bytes = 4 * max(n_tokens * n_features, width * width)
    step = max(1, n_bytes // row_bytes) if tokens.device.type == "cpu" else max(n, 1)
    for start in range(0, n, step):
        yield slice(start, start + step)


# Matrices and vectors.


@lru_cache(maxsize=8)
def _triangle(width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flat places of the upper triangle, its weights, and which of its entries are diagonal."""
    row, column = torch.triu_indices(width, width)
    weights = torch.full((len(row),), math.sqrt(2), dtype=torch.float64)
    weights[row == column] = 1.0
    return row * width + column, weights, (row == column).nonzero()[:, 0]


def triangle_width(width: int) -> int:
    """Entries of the upper triangle of a matrix."""
    return width * (width + 1) // 2


def vectorize_symmetric(matrices: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Upper triangles, row by row, with sqrt(2) off the diagonal.

    Inner products of the vectors are then Frobenius products of the matrices.

    Parameters
    ----------
    matrices : tensor of shape (n, k, k)
        Symmetric; the part below the diagonal is not read.
    out : tensor of shape (n, k (k + 1) / 2), default=None
        Where to write.

    Returns
    -------
    vectors : tensor of shape (n, k (k + 1) / 2)
    """
    places, weights, _ = _triangle(matrices.shape[1])
    entries = matrices.flatten(1).index_select(1, places.to(matrices.device))
    return torch.mul(entries, weights.to(entries), out=out)


def inverse_vectorize(vectors: torch.Tensor, *, vectorize: str = "upper") -> torch.Tensor:
    """Symmetric matrices of their vectors.

    Parameters
    ----------
    vectors : tensor of shape (n, k (k + 1) / 2) or (n, k^2)
    vectorize : {"upper", "full"}, default="upper"
        Whether the vectors hold weighted upper triangles or all entries.

    Returns
    -------
    matrices : tensor of shape (n, k, k)

    Raises
    ------
    ValueError
        The width of the vectors is no triangular (or square) number.
    """
    n, m = vectors.shape
    k = math.isqrt(m) if vectorize == "full" else (math.isqrt(8 * m + 1) - 1) // 2
    if m != (k * k if vectorize == "full" else triangle_width(k)):
        raise ValueError(
            f"vectors have {m} features, which is no {vectorize} form of a square matrix; give "
            "what the pooling returned, with the same `vectorize`."
        )
    if vectorize == "full":
        return vectors.reshape(n, k, k)
    places, weights, _ = _triangle(k)
    flat = vectors.new_zeros((n, k * k))
    flat[:, places.to(vectors.device)] = vectors / weights.to(vectors)
    upper = flat.view(n, k, k)
    return upper + upper.triu(1).transpose(1, 2)


def signed_sqrt_(vectors: torch.Tensor, *, triangle: int | None = None) -> torch.Tensor:
    """Square roots of magnitudes with their signs, in place.

    `triangle` is the width of the matrices whose weighted triangles the vectors are: the root is
    taken of the entries, not of their weights.
    """
    root = vectors.abs().sqrt_().copysign_(vectors)
    if triangle is None:
        return vectors.copy_(root)
    return torch.mul(root, _triangle(triangle)[1].sqrt().to(root), out=vectors)


def unit_rows_(vectors: torch.Tensor) -> torch.Tensor:
    """Divide vectors by their Euclidean norm, in place; zero vectors stay zero."""
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    usual = (norms > _SAFE_NORMS[0]) & (norms < _SAFE_NORMS[1])
    vectors.div_(torch.where(usual, norms, 1.0))
    if not bool(usual.all()):
        rare = ~usual[:, 0]
        vectors[rare] = unit_rows(vectors[rare])
    return vectors


# The product.


def _upper_on_host(rows: np.ndarray, scale: np.ndarray, out: np.ndarray, *, center: bool) -> None:
    """The same as `upper_second_moment`, sample by sample."""
    n_tokens, width = rows.shape[1:]
    (pack,) = get_lapack_funcs(("trttp",), dtype=rows.dtype)
    share = np.full(n_tokens, 1 / n_tokens, dtype=rows.dtype)
    root_2, root_half = rows.dtype.type(math.sqrt(2)), rows.dtype.type(math.sqrt(0.5))

    def work(part: slice) -> None:
        centred = np.empty((n_tokens, width), dtype=rows.dtype)
        product = np.empty((width, width), dtype=rows.dtype)
        diagonal = product.reshape(-1)[:: width + 1]
        for x, factor, vector in zip(rows[part], scale[part], out[part], strict=True):
            if center:
                x = np.subtract(x, share @ x, out=centred)
                if n_tokens > _LONG:
                    x -= share @ x
            # The symmetric product of scipy keeps other threads waiting, that of numpy writes
            # both triangles; panels of the upper one cost what the symmetric product costs.
            for a in range(0, width, _PANEL):
                b = min(a + _PANEL, width)
                np.matmul(x[:, a:b].T, x[:, a:], out=product[a:b, a:])
            diagonal *= root_half
            np.multiply(pack(product.T, uplo="L")[0], factor * root_2, out=vector)

    side_by_side(work, len(rows))


def upper_second_moment(
    rows: torch.Tensor,
    scale: torch.Tensor,
    *,
    center: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Vectorised ``scale * rows^T rows`` of every sample, see `vectorize_symmetric`.

    Parameters
    ----------
    rows : tensor of shape (n, L, k)
        Of float32 or float64.
    scale : tensor of shape (n,)
        One over the number of tokens, as a rule.
    center : bool, default=False
        Whether the mean over the rows is subtracted first.
    out : tensor of shape (n, k (k + 1) / 2), default=None
        Where to write; its rows must be contiguous.

    Returns
    -------
    vectors : tensor of shape (n, k (k + 1) / 2)

    Notes
    -----
    Cost: half of a general product, n L k^2 operations; one (k, k) matrix per thread on the CPU,
    the matrices of all samples elsewhere.
    """
    n, _, width = rows.shape
    if out is None:
        out = rows.new_empty((n, triangle_width(width)))
    if rows.device.type == "cpu" and width >= _WIDE:
        rows = rows if rows.stride()[1:] == (width, 1) else rows.contiguous()
        arrays = (rows.numpy(), scale.to(rows.dtype).numpy(), out.numpy())
        _upper_on_host(*arrays, center=center)
        return out
    if center:
        rows = rows - rows.mean(dim=1, keepdim=True)
    with full_float32():
        product = torch.bmm(rows.transpose(1, 2), rows)
    return vectorize_symmetric(product.mul_(scale[:, None, None]), out=out)


# From tokens to rows.


class TokenRows(NamedTuple):
    """Rows whose second moment is the matrix of a sample.

    Attributes
    ----------
    rows : tensor of shape (n, L, k)
        Zero under the mask.
    scale : tensor of shape (n,)
        What their products are multiplied by.
    """

    rows: torch.Tensor
    scale: torch.Tensor


def _is_rounding(variance: torch.Tensor, value: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """Whether deviations of this mean square are no more than what a mean of `value` may round."""
    rounding = min(n_tokens, _LONG) * torch.finfo(variance.dtype).eps / 2
    return variance <= (rounding * value) ** 2


def _equal_tokens(spread: torch.Tensor, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Samples, as (n,) bool, whose tokens are all equal, by their summed variances (n,)."""
    size = torch.linalg.vector_norm(pool_first(tokens, mask), dim=1)
    return _is_rounding(spread, size, tokens.shape[1])


def _clear(values: torch.Tensor, samples: torch.Tensor) -> None:
    """Set what these samples have to zero."""
    if bool(samples.any()):
        values[samples] = 0.0


def token_counts(tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Real tokens of a sample, (n,), at least 1."""
    if mask is None:
        return tokens.new_full((len(tokens),), tokens.shape[1])
    return mask.sum(dim=1).clamp_min(1).to(tokens.dtype)


def token_rows(tokens: torch.Tensor, mask: Mask = None, *, kind: str = "covariance") -> TokenRows:
    """Prepare tokens so that their second moment is the matrix of this kind.

    Parameters
    ----------
    tokens : tensor of shape (n, L, d)
        Of float32 or float64.
    mask : tensor of shape (n, L), bool, default=None
    kind : {"covariance", "second_moment", "correlation", "gaussian"}, default="covariance"

    Returns
    -------
    rows : TokenRows
        Of width d, or d + 1 for "gaussian".
    """
    scale = 1 / token_counts(tokens, mask)
    if kind in ("second_moment", "gaussian"):
        if kind == "gaussian":
            tokens = torch.nn.functional.pad(tokens, (0, 1), value=1.0)
        return TokenRows(tokens if mask is None else tokens.where(mask[..., None], 0.0), scale)
    rows = tokens - pool_mean(tokens, mask)[:, None]
    rows = rows if mask is None else rows.where(mask[..., None], 0.0)
    if kind == "covariance":
        spread = torch.linalg.vector_norm(rows.flatten(1), dim=1).square() * scale
        _clear(rows, _equal_tokens(spread, tokens, mask))
        return TokenRows(rows, scale)
    variance = rows.square().sum(dim=1) * scale[:, None]
    constant = _is_rounding(variance, pool_first(tokens, mask), tokens.shape[1])
    rows = rows * torch.where(constant, 0.0, variance.rsqrt())[:, None]
    return TokenRows(rows, scale)


# Functions of matrices.


def matrix_function(
    rows: torch.Tensor,
    scale: torch.Tensor,
    *,
    out: torch.Tensor,
    function: str | None = None,
    n_iter: int = 5,
    shrinkage: float = 0.0,
    center: bool = False,
    **options: float,
) -> torch.Tensor:
    """Write the vectorised function of ``scale * rows^T rows`` to `out`.

    Parameters
    ----------
    rows : tensor of shape (n, L, k)
    scale : tensor of shape (n,)
    out : tensor of shape (n, k (k + 1) / 2)
    function : {"sqrtm", "isqrt", "power", "log"} or None, default=None
    n_iter : int, default=5
        Steps of "isqrt".
    shrinkage : float, default=0.0
    center : bool, default=False
        Whether the rows are centred here; for `function=None` only.
    **options
        `alpha` and `eps` of `spd_factor`.

    Returns
    -------
    out : tensor of shape (n, k (k + 1) / 2)
    """
    diagonal = _triangle(rows.shape[2])[2].to(rows.device)
    if function == "isqrt":
        root = approximate_sqrt(rows, scale, n_iter=n_iter, shrinkage=shrinkage)
        return vectorize_symmetric(root, out=out)
    if function is None:
        upper_second_moment(rows, scale, center=center, out=out)
        if shrinkage:
            mean = out[:, diagonal].mean(dim=1, keepdim=True)
            out.mul_(1 - shrinkage)
            out[:, diagonal] += shrinkage * mean
        return out
    factor, constant = spd_factor(rows, scale, function=function, shrinkage=shrinkage, **options)
    upper_second_moment(factor, torch.ones_like(scale), out=out)
    out[:, diagonal] += constant[:, None]
    return out


def write_covariances(
    tokens: torch.Tensor,
    mask: Mask,
    out: torch.Tensor,
    *,
    kind: str = "covariance",
    function: str | None = None,
    shrinkage: float = 0.0,
    **options: float,
) -> None:
    """Write the vectorised functions of the matrices of some samples to `out`.

    Parameters
    ----------
    tokens : tensor of shape (n, L, k)
        Of float32 or float64.
    mask : tensor of shape (n, L), bool, or None
    out : tensor of shape (n, k (k + 1) / 2)
        k is one more for "gaussian".
    kind, function, shrinkage, **options
        As in `CovariancePooling`.
    """
    entrywise = function in (None, "signed_sqrt")
    if entrywise and mask is None and kind == "covariance":
        # Centred while it is multiplied: the deviations of a sample never leave the cache.
        scale = 1 / token_counts(tokens, mask)
        matrix_function(tokens, scale, center=True, out=out, shrinkage=shrinkage)
        spread = out[:, _triangle(tokens.shape[2])[2].to(out.device)].sum(dim=1)
        _clear(out, _equal_tokens(spread, tokens, mask))
    else:
        rows, scale = token_rows(tokens, mask, kind=kind)
        named = None if entrywise else function
        matrix_function(rows, scale, function=named, out=out, shrinkage=shrinkage, **options)
    if function == "signed_sqrt":
        signed_sqrt_(out, triangle=tokens.shape[2] + (kind == "gaussian"))


def pool_covariance(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    project: Callable[[torch.Tensor], torch.Tensor] | None = None,
    kind: str = "covariance",
    function: str | None = "sqrtm",
    alpha: float = 0.5,
    n_iter: int = 5,
    eps: float = 1e-3,
    shrinkage: float = 0.0,
    vectorize: str = "upper",
    l2: bool = True,
) -> torch.Tensor:
    """Covariance of the real tokens, or a function of it, as a vector.

    Parameters
    ----------
    tokens : tensor of shape (n, L, d)
    mask : tensor of shape (n, L), bool, default=None
    project : callable, default=None
        Takes tokens (m, L, d) to (m, L, k) first.
    kind : {"covariance", "second_moment", "correlation", "gaussian"}, default="covariance"
    function : {"sqrtm", "isqrt", "power", "log", "signed_sqrt"} or None, default="sqrtm"
    alpha, n_iter, eps, shrinkage
        As in `CovariancePooling`.
    vectorize : {"upper", "full"}, default="upper"
    l2 : bool, default=True

    Returns
    -------
    vectors : tensor of shape (n, k (k + 1) / 2) or (n, k^2)
        k is one more for "gaussian".
    """
    # Plain products of whole tokens make no copy of a block, so threads start once for all.
    whole = project is None and mask is None and function in (None, "signed_sqrt")
    whole = whole and kind in ("covariance", "second_moment") and tokens.element_size() >= 4
    project = project or (lambda block: block)
    width = project(widened(tokens[:1, :1])).shape[2] + (kind == "gaussian")
    options = {"alpha": alpha, "n_iter": n_iter, "eps": eps, "shrinkage": shrinkage}
    upper = vectorize == "upper"
    n_out = triangle_width(width)
    out = empty_vectors(len(tokens), n_out if upper else width * width, like=tokens)
    exact = function in ("sqrtm", "power", "log")
    blocks = blocks_of(tokens, width, _EXACT_BLOCK_BYTES if exact else _BLOCK_BYTES)
    for part in [slice(None)] if whole and upper else blocks:
        x = project(widened(tokens[part]))
        vectors = out[part] if upper else out.new_empty((len(x), n_out))
        real = None if mask is None else mask[part]
        write_covariances(x, real, vectors, kind=kind, function=function, **options)
        if l2:
            unit_rows_(vectors)
        if not upper:
            out[part] = inverse_vectorize(vectors).flatten(1)
    return out
