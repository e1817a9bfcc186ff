# SPDX-License-Identifier: BSD-3-Clause
"""Poolings as pure functions: tokens (n, L, d) and a mask in, vectors (n, d) out.

They run on the device where the tokens are and treat every row by itself. Masked tokens are
replaced (`torch.where`), never multiplied by zero: zero times NaN is NaN. Half precision is
widened to float32 before any sum.
"""

import math
from collections.abc import Callable
from functools import wraps

import torch

from skpool.utils import widened

__all__ = [
    "POOLINGS",
    "pool_avgmax",
    "pool_cls",
    "pool_first",
    "pool_gem",
    "pool_last",
    "pool_max",
    "pool_mean",
    "pool_mean_sqrt_len",
    "pool_min",
    "pool_std",
    "pool_sum",
    "pool_weighted_mean",
]

Mask = torch.Tensor | None

# Bytes that a kernel with several steps works on at a time: what the caches next to the cores hold,
# so that the second step need not go to memory.
_BLOCK_BYTES = 5 * 2**19
# Exponents below these in magnitude: the geometric mean, and those that need another formula.
_GEOMETRIC, _SMALL = 1e-20, 0.1
# Exponents that are multiplications.
_WHOLE = (1, 2, 3, 4, 5)
# Means of powers above it lost nothing that mattered to underflow, in float32 as in float64.
_FAINT = 1e-25


def _on_host(tokens: torch.Tensor) -> bool:
    return tokens.device.type == "cpu"


def _block_rows(tokens: torch.Tensor) -> int:
    """Samples that fill a block."""
    row_bytes = max(1, tokens.shape[1] * tokens.shape[2]) * max(4, tokens.element_size())
    return max(1, _BLOCK_BYTES // row_bytes)


def _in_blocks(*, single_pass: bool = False) -> Callable[[Callable], Callable]:
    """Let a kernel of several steps work on some rows at a time, which is several times as fast.

    A kernel that reads the tokens once, unless they must be masked or widened, is `single_pass`.
    """

    def decorate(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @wraps(kernel)
        def pool(tokens: torch.Tensor, mask: Mask = None, **options) -> torch.Tensor:
            plain = mask is None and tokens.element_size() >= 4
            rows = _block_rows(tokens)
            if len(tokens) <= rows or not _on_host(tokens) or (plain and single_pass):
                return kernel(tokens, mask, **options)
            blocks = tokens.split(rows)
            masks = [None] * len(blocks) if mask is None else mask.split(rows)
            return torch.cat(
                [kernel(*block, **options) for block in zip(blocks, masks, strict=True)]
            )

        return pool

    return decorate


def _filled(tokens: torch.Tensor, mask: Mask, value: float) -> torch.Tensor:
    """The tokens with `value` where the mask is False."""
    return tokens if mask is None else tokens.where(mask[..., None], value)


def _counts(tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Real tokens per row, (n, 1); at least 1, so that an empty row divides by something."""
    if mask is None:
        return tokens.new_full((len(tokens), 1), tokens.shape[1])
    return mask.sum(dim=1, keepdim=True).clamp_min(1).to(tokens.dtype)


def _take(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return tokens[torch.arange(len(tokens), device=tokens.device), index]


@_in_blocks(single_pass=True)
def pool_sum(tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Sum over the real tokens."""
    return _filled(widened(tokens), mask, 0.0).sum(dim=1)


@_in_blocks(single_pass=True)
def pool_mean(tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Mean over the real tokens."""
    tokens = widened(tokens)
    if mask is None:
        return tokens.mean(dim=1)
    return pool_sum(tokens, mask) / _counts(tokens, mask)


@_in_blocks(single_pass=True)
def pool_mean_sqrt_len(tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Sum over the real tokens, divided by the square root of their number."""
    tokens = widened(tokens)
    return pool_sum(tokens, mask) / _counts(tokens, mask).sqrt()


def _in_groups(
    tokens: torch.Tensor,
    larger: Callable[..., torch.Tensor],
    extreme: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Extremes over the tokens on the CPU, in little more time than it takes to read them.

    Long rows of numbers are compared faster than the columns of a table, so groups of tokens are
    compared with one another as one row each, into memory that stays in the cache.
    """
    n, n_tokens, d = tokens.shape
    n_groups = math.isqrt(n_tokens)
    size = n_tokens // n_groups
    whole, rows = n_groups * size, n_groups * _block_rows(tokens)
    out, scratch = tokens.new_empty((n, d)), tokens.new_empty((min(rows, n), size * d))
    for start in range(0, n, rows):
        block, found = tokens[start : start + rows], out[start : start + rows]
        folded = scratch[: len(block)]
        extreme(block[:, :whole].reshape(len(block), n_groups, -1), dim=1, out=folded)
        extreme(folded.view(-1, size, d), dim=1, out=found)
        if whole < n_tokens:
            larger(found, extreme(block[:, whole:], dim=1), out=found)
    return out


def _extreme(
    tokens: torch.Tensor,
    mask: Mask,
    fill: float,
    larger: Callable[..., torch.Tensor],
    extreme: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Maximum or minimum over the real tokens."""
    plain = mask is None and tokens.element_size() >= 4 and not tokens.requires_grad
    if plain and tokens.shape[1] > 3 and _on_host(tokens):
        return _in_groups(tokens, larger, extreme)
    return extreme(_filled(widened(tokens), mask, fill), dim=1)


@_in_blocks(single_pass=True)
def pool_max(tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Maximum over the real tokens."""
    return _extreme(tokens, mask, -torch.inf, torch.maximum, torch.amax)


@_in_blocks(single_pass=True)
def pool_min(tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Minimum over the real tokens."""
    return _extreme(tokens, mask, torch.inf, torch.minimum, torch.amin)


@_in_blocks(single_pass=True)
def pool_avgmax(tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Half the mean plus half the maximum."""
    return (pool_mean(tokens, mask) + pool_max(tokens, mask)) / 2


@_in_blocks()
def pool_std(tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Standard deviation over the real tokens, with divisor L, in two passes."""
    tokens = widened(tokens)
    deviations = _filled(tokens - pool_mean(tokens, mask)[:, None], mask, 0.0)
    return (deviations.square().sum(dim=1) / _counts(tokens, mask)).sqrt()


def pool_cls(tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """The token at position 0, whatever the mask says."""
    return widened(tokens[:, 0])


def pool_first(tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """The first real token."""
    if mask is None:
        return widened(tokens[:, 0])
    return widened(_take(tokens, mask.int().argmax(dim=1)))


def pool_last(tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """The last real token, on whichever side the padding stands."""
    if mask is None:
        return widened(tokens[:, -1])
    return widened(_take(tokens, mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)))


@_in_blocks()
def pool_weighted_mean(
    tokens: torch.Tensor, mask: Mask = None, *, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted mean; without `weights` (L,) a token weighs its rank among the real tokens."""
    tokens = widened(tokens)
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if weights is None:
        # The rank, not the position: left and right padding then give the same vector.
        weights = mask.cumsum(dim=1)
    weights = weights.to(tokens) * mask
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(tokens.dtype).tiny)
    return torch.einsum("nl,nld->nd", weights, _filled(tokens, mask, 0.0))


def _raised(z: torch.Tensor, p: float) -> torch.Tensor:
    """Values of at least 0 to the power p; `z` is overwritten.

    As exp(p log z), which takes a third of the time of pow and is as exact near 1, where the terms
    lie that matter to a mean of values of at most 1.
    """
    if p not in _WHOLE:
        return z.log_().mul_(p).exp_()
    # torch multiplies for whole exponents up to 3 only.
    if p == 4:
        return z.square_().square_()
    if p == 5:
        return z.square().square_().mul_(z)
    return z.pow_(p)


def _stable_power_mean(z: torch.Tensor, p: float, mask: Mask) -> torch.Tensor:
    """Power mean of positive values over the tokens, without overflow; `z` is overwritten.

    The values are divided by their largest (for negative p, smallest) first, so every power lies
    in [0, 1], and what underflows could not have been seen in the sum.
    """
    if abs(p) < _GEOMETRIC:
        return pool_mean(z.log_(), mask).exp()
    extreme = pool_max(z, mask) if p > 0 else pool_min(z, mask)
    if abs(p) == torch.inf:
        return extreme
    ratio = z.div_(extreme[:, None])
    if abs(p) < _SMALL:
        # Powers near 1 would lose their digits, which the root then enlarges by 1 / p.
        return extreme * pool_mean(ratio.log_().mul_(p).expm1_(), mask).log1p().div(p).exp()
    return extreme * pool_mean(_raised(ratio, p), mask).pow(1.0 / p)


def _power_mean(
    tokens: torch.Tensor,
    p: float,
    mask: Mask,
    positive: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Power mean over the tokens of the positive values that `positive` makes of them, anew."""
    if p not in _WHOLE:
        return _stable_power_mean(positive(tokens), p, mask)
    mean = pool_mean(_raised(positive(tokens), p), mask)
    vectors = mean.pow(1.0 / p)
    # Seldom, and then for these rows alone, the largest value must be taken out first.
    rows = ~(torch.isfinite(mean) & (mean > _FAINT)).all(dim=1)
    if bool(rows.any()):
        some = None if mask is None else mask[rows]
        vectors[rows] = _stable_power_mean(positive(tokens[rows]), p, some)
    return vectors


def _signed_power_mean(x: torch.Tensor, p: float, mask: Mask) -> torch.Tensor:
    """Root of the mean of sign(x) |x| ** p, of values that are 0 where the mask is False.

    For p = inf it is the value of largest magnitude; where both signs have it, the more frequent.
    """
    scale = torch.maximum(x.amax(dim=1), -x.amin(dim=1))
    ratio = x / torch.where(scale > 0, scale, 1.0)[:, None]
    if p == torch.inf:
        return scale * ratio.trunc().sum(dim=1).sign()
    mean = pool_mean(_raised(ratio.abs(), p).copysign_(ratio), mask)
    return scale * mean.abs().pow(1.0 / p).copysign(mean)


@_in_blocks()
def _gem(
    tokens: torch.Tensor,
    mask: Mask,
    *,
    p: float,
    negative: str,
    eps: float,
    minimum: torch.Tensor | None,
) -> torch.Tensor:
    """Generalized mean with one exponent."""
    tokens = _filled(widened(tokens), mask, 0.0)
    if negative == "signed":
        return _signed_power_mean(tokens, p, mask)
    if negative == "shift":
        low = minimum.to(tokens)
        above = _power_mean(tokens, p, mask, lambda x: (x - low).clamp_min_(0.0).add_(eps))
        return above + (low - eps)
    return _power_mean(tokens, p, mask, lambda x: x.clamp_min(eps))


def pool_gem(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    p: float | torch.Tensor = 3.0,
    negative: str = "clamp",
    eps: float = 1e-6,
    minimum: torch.Tensor | None = None,
) -> torch.Tensor:
    """Generalized mean over the real tokens, per feature.

    Parameters
    ----------
    tokens : tensor of shape (n, L, d)
    mask : tensor of shape (n, L), bool, default=None
    p : float or tensor of shape (d,), default=3.0
        Exponent, one for all features or one each.
    negative : {"clamp", "shift", "signed"}, default="clamp"
        What is done with values below zero.
    eps : float, default=1e-6
        Smallest value that is raised to a power.
    minimum : tensor of shape (d,), default=None
        Subtracted from the tokens before, added to the result after; for "shift".

    Returns
    -------
    vectors : tensor of shape (n, d)
    """
    options = {"negative": negative, "eps": eps}
    if not isinstance(p, torch.Tensor) or p.ndim == 0:
        return _gem(tokens, mask, p=float(p), minimum=minimum, **options)
    exponents, widths = p.cpu().unique_consecutive(return_counts=True)
    widths = widths.tolist()
    minima = [None] * len(widths) if minimum is None else minimum.split(widths)
    groups = zip(tokens.split(widths, dim=2), exponents.tolist(), minima, strict=True)
    return torch.cat([_gem(x, mask, p=q, minimum=low, **options) for x, q, low in groups], dim=1)


POOLINGS: dict[str, Callable[..., torch.Tensor]] = {
    "avgmax": pool_avgmax,
    "cls": pool_cls,
    "first": pool_first,
    "gem": pool_gem,
    "last": pool_last,
    "max": pool_max,
    "mean": pool_mean,
    "mean_sqrt_len": pool_mean_sqrt_len,
    "min": pool_min,
    "std": pool_std,
    "sum": pool_sum,
    "weighted_mean": pool_weighted_mean,
}
