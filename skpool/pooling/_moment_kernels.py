# SPDX-License-Identifier: BSD-3-Clause
"""Second moments within and across heads of the features, as vectors: the core of MomentPooling.

Features are cut into heads; the covariance of a head with itself or with another is one map.
"""

from itertools import combinations

import torch

from skpool.pooling._kernels import Mask, pool_mean
from skpool.pooling._second_order_kernels import (
    inverse_vectorize,
    signed_sqrt_,
    token_counts,
    token_rows,
    triangle_width,
    unit_rows_,
    vectorize_symmetric,
    write_covariances,
)
from skpool.utils import full_float32, widened

__all__ = ["cross_pairs", "cross_width", "pool_cross_covariance"]


def cross_pairs(cross: str, n_heads: int) -> list[tuple[int, int]]:
    """Which heads are multiplied with which."""
    if cross == "full":
        return [(0, 0)]
    if cross == "near":
        return [(i, i + 1) for i in range(n_heads - 1)]
    if cross == "one":
        return [(0, i) for i in range(1, n_heads)]
    if cross == "half":
        return [(i, i + n_heads // 2) for i in range(n_heads // 2)]
    return list(combinations(range(n_heads), 2))


def _is_symmetric(cross: str, normalize: str | None) -> bool:
    """Whether maps are symmetric; columns scaled one by one are not."""
    return cross == "full" and normalize != "column"


def cross_width(
    n_features: int, *, n_heads: int, cross: str, normalize: str | None, downsample: int | None
) -> int:
    """Numbers that `pool_cross_covariance` returns for tokens of `n_features`."""
    side = downsample or n_features // n_heads
    if _is_symmetric(cross, normalize):
        return triangle_width(side)
    return len(cross_pairs(cross, n_heads)) * side**2


def _centred(heads: torch.Tensor, mask: Mask, center: str | None) -> torch.Tensor:
    """Heads (n, L, h, w) less a mean of each sample, zero under the mask."""
    if center == "token":
        return token_rows(heads.flatten(2), mask).rows.unflatten(2, heads.shape[2:])
    if center == "scalar":
        mean = pool_mean(heads.flatten(2), mask).unflatten(1, heads.shape[2:])
        heads = heads - mean.mean(dim=2, keepdim=True)[:, None]
    return heads if mask is None else heads.where(mask[:, :, None, None], 0.0)


def _products(heads: torch.Tensor, mask: Mask, pairs: list[tuple[int, int]]) -> torch.Tensor:
    """Maps (n, pairs, w, w) of heads (n, L, h, w): means over the real tokens of products."""
    left, right = (list(side) for side in zip(*pairs, strict=True))
    heads = heads.transpose(1, 2)
    with full_float32():
        maps = heads[:, left].transpose(2, 3) @ heads[:, right]
    return maps / token_counts(heads.transpose(1, 2), mask)[:, None, None, None]


def _normalized(maps: torch.Tensor, normalize: str | None) -> torch.Tensor:
    """Maps (n, pairs, w, w), each by itself."""
    if normalize in ("column", "frobenius"):
        axes = 2 if normalize == "column" else (2, 3)
        norms = torch.linalg.vector_norm(maps, dim=axes, keepdim=True)
        return maps / torch.where(norms > 0, norms, 1.0)
    return maps


def pool_cross_covariance(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    n_heads: int = 1,
    cross: str = "full",
    center: str | None = "token",
    head_norm: str | None = None,
    normalize: str | None = "power",
    downsample: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Covariances of heads of the features over the real tokens, as one vector.

    Parameters
    ----------
    tokens : tensor of shape (n, L, k)
    mask : tensor of shape (n, L), bool, default=None
    n_heads, cross, center, head_norm, normalize, downsample
        As in `CrossCovariancePooling`.
    out : tensor of shape (n, m), default=None
        Where to write; its rows must be contiguous.

    Returns
    -------
    vectors : tensor of shape (n, m)
    """
    tokens = widened(tokens)
    if out is None:
        settings = {"n_heads": n_heads, "cross": cross, "normalize": normalize}
        n_out = cross_width(tokens.shape[2], downsample=downsample, **settings)
        out = tokens.new_empty((len(tokens), n_out))
    heads = tokens.unflatten(2, (n_heads, tokens.shape[2] // n_heads))
    if head_norm == "layernorm":
        heads = torch.nn.functional.layer_norm(heads, heads.shape[3:])
    if cross != "full":
        maps = _products(_centred(heads, mask, center), mask, cross_pairs(cross, n_heads))
        maps = signed_sqrt_(maps) if normalize == "power" else maps
    else:
        whole = normalize != "column" and downsample is None
        triangle = out if whole else out.new_empty((len(out), triangle_width(tokens.shape[2])))
        _write_triangle(heads, mask, triangle, center=center, normalize=normalize)
        if whole:
            return unit_rows_(out) if normalize in ("power", "frobenius") else out
        maps = inverse_vectorize(triangle)[:, None]
    maps = _normalized(maps, normalize)
    if downsample is not None:
        maps = torch.nn.functional.adaptive_avg_pool2d(maps, downsample)
    symmetric = _is_symmetric(cross, normalize)
    out.copy_(vectorize_symmetric(maps[:, 0]) if symmetric else maps.flatten(1))
    return unit_rows_(out) if normalize == "power" else out


def _write_triangle(
    heads: torch.Tensor, mask: Mask, out: torch.Tensor, *, center: str | None, normalize: str | None
) -> None:
    """Write the covariance of all features, or the root that `normalize` names, to `out`."""
    function = {"sqrtm": "sqrtm", "power": "signed_sqrt"}.get(normalize)
    kind = "covariance" if center == "token" else "second_moment"
    heads = heads if center == "token" else _centred(heads, mask, center)
    write_covariances(heads.flatten(2), mask, out, kind=kind, function=function)
