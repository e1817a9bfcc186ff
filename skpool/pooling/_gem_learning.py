# SPDX-License-Identifier: BSD-3-Clause
"""Exponents of generalized-mean pooling that are learned from labels.

Two ways, both for one exponent per group of features: by gradient together with a softmax head
(`train_exponents`), and by a search over a few values with a ridge classifier as the judge
(`search_exponents`). `GeMPooling` and `GroupGeMPooling` call them in `fit`; what they pool with
afterwards is the kernel of the other exponents.
"""

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from skpool.pooling._kernels import pool_gem, pool_max, pool_mean
from skpool.pooling._linear_objective import train_pooling
from skpool.stores import TokenArray
from skpool.training import TokenRows, class_numbers
from skpool.utils import as_tensor, widened

__all__ = [
    "EXPONENTS",
    "LEAST_EXPONENT",
    "GeMOptions",
    "LearnedGeM",
    "power_mean_with_slope",
    "search_exponents",
    "train_exponents",
]

Mask = torch.Tensor | None
# Options of the kernel beside the exponent: `negative`, `eps`, `minimum`.
GeMOptions = dict[str, object]

# What the search chooses from.
EXPONENTS = (1.0, 2.0, 3.0, 4.0, 6.0, 10.0)
# Penalties per sample that the ridge classifier of the search chooses from.
_PENALTIES = np.logspace(-4, 1, 6)
_MAX_SWEEPS = 3
# Exponents stay above it.
LEAST_EXPONENT = 0.1
# Logarithm below which a ratio counts as zero, whatever its power.
_LOWEST = -1e4
# Signed sums nearer to zero than this have a slope that says nothing.
_LEAST_SUM = 1e-3
# Samples per step: the exponents move by at most `lr` in each.
_MINIBATCH = 64


def power_mean_with_slope(
    values: torch.Tensor, p: torch.Tensor, mask: Mask, *, signed: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Power mean F over the tokens, and its derivative by the exponent.

    With s the mean of z^p, F = s^(1/p) and dF/dp = F (mean(z^p ln z) / (p s) - ln(s) / p^2); z in
    units of its largest value changes neither, and keeps every power in [0, 1].

    Parameters
    ----------
    values : tensor of shape (n, L, d)
        Above 0 unless `signed`; finite everywhere.
    p : tensor of shape (d,)
        Exponents above 0.
    mask : tensor of shape (n, L), bool, or None
    signed : bool, default=False
        Whether powers keep the sign of their value.

    Returns
    -------
    mean, slope : tensor of shape (n, d)
    """
    size = values.abs() if signed else values
    peak = pool_max(size, mask)
    peak = torch.where(peak > 0, peak, 1.0)
    logs = (size / peak[:, None]).log_().clamp_min_(_LOWEST)
    powers = (p * logs).exp_()
    if signed:
        powers = powers.copysign_(values)
    s, t = pool_mean(powers, mask), pool_mean(powers * logs, mask)
    mean = peak * s.abs().pow(1 / p).copysign(s)
    known = s.abs() > _LEAST_SUM if signed else s > 0
    s = torch.where(known, s, 1.0)
    slope = mean * (t / (p * s) - s.abs().log() / p.square())
    return mean, torch.where(known, slope, 0.0)


class _PowerMean(torch.autograd.Function):
    """The power mean as a function of its exponents; keeps (n, d) numbers for the way back."""

    @staticmethod
    def forward(ctx, p, values, mask, signed):
        mean, slope = power_mean_with_slope(values, p, mask, signed=signed)
        ctx.save_for_backward(slope)
        return mean

    @staticmethod
    def backward(ctx, gradient):
        (slope,) = ctx.saved_tensors
        return (gradient * slope).sum(dim=0), None, None, None


class LearnedGeM(nn.Module):
    """Generalized mean whose exponents, 0.1 + softplus(theta), are parameters.

    Parameters
    ----------
    start : ndarray of shape (n_groups,)
        First exponents, finite and above 0.1.
    n_features : int
    options : dict
        `negative`, `eps` and `minimum` of the kernel.
    """

    def __init__(self, start: np.ndarray, n_features: int, options: GeMOptions):
        super().__init__()
        beyond = torch.from_numpy(start) - LEAST_EXPONENT
        self.theta = nn.Parameter(beyond + (-torch.expm1(-beyond)).log())
        self.width = n_features // len(start)
        self.negative, self.eps = options["negative"], options["eps"]
        self.register_buffer("minimum", options["minimum"])

    @property
    def exponents(self) -> torch.Tensor:
        """One exponent per group."""
        return LEAST_EXPONENT + F.softplus(self.theta)

    def forward(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Vectors (n, d) of the kernel with these exponents."""
        p = self.exponents.repeat_interleave(self.width)
        if mask is not None:
            tokens = tokens.where(mask[..., None], 0.0)
        if self.negative == "signed":
            return _PowerMean.apply(p, tokens, mask, True)
        if self.negative == "clamp":
            return _PowerMean.apply(p, tokens.clamp_min(self.eps), mask, False)
        values = (tokens - self.minimum).clamp_min_(0.0).add_(self.eps)
        return _PowerMean.apply(p, values, mask, False) + (self.minimum - self.eps)


class _InUnitsOfTheBatch(nn.Module):
    """Vectors brought to mean 0 and variance 1 per feature over the minibatch.

    A larger exponent makes larger vectors, too; without this it would rise for as long as the head
    is still small.
    """

    def __init__(self, pooling: LearnedGeM):
        super().__init__()
        self.pooling = pooling

    def forward(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        vectors = self.pooling(tokens, mask)
        centred = vectors - vectors.mean(dim=0)
        variance = centred.square().mean(dim=0)
        # A feature that the minibatch does not vary in stays zero.
        return centred / torch.where(variance > 0, variance, 1.0).sqrt()


def train_exponents(
    tokens: TokenArray,
    y: object,
    start: np.ndarray,
    options: GeMOptions,
    *,
    lr: float,
    epochs: int,
    seed: int,
    batch_size: int,
    who: str,
) -> np.ndarray:
    """Learn exponents by Adam together with a softmax head.

    Parameters
    ----------
    tokens : TokenArray of shape (n_samples, n_tokens, n_features)
    y : array-like of shape (n_samples,)
        Class labels.
    start : ndarray of shape (n_groups,)
        First exponents.
    options : dict
        Of the kernel.
    lr : float
        First step size.
    epochs, seed, batch_size : int
    who : str
        The estimator's name, for messages.

    Returns
    -------
    p : ndarray of shape (n_groups,)
    """
    rows = TokenRows(tokens, batch_size=batch_size)
    _, codes = class_numbers(y, len(tokens), rows.numbers, who)
    pooling = LearnedGeM(start, tokens.shape[2], options)
    in_units = _InUnitsOfTheBatch(pooling)
    train_pooling(in_units, rows, codes, lr=lr, epochs=epochs, batch_size=_MINIBATCH, seed=seed)
    return pooling.exponents.detach().double().numpy()


def search_exponents(
    tokens: TokenArray,
    y: object,
    n_groups: int,
    options: GeMOptions,
    *,
    batch_size: int,
    who: str,
) -> np.ndarray:
    """Search the exponents of the groups one after the other.

    The search starts from the best common exponent, and ends with a round that changes nothing, or
    the third. The score is the leave-one-out error of a ridge classifier on standardised vectors.

    Parameters
    ----------
    tokens : TokenArray of shape (n_samples, n_tokens, n_features)
    y : array-like of shape (n_samples,)
        Class labels.
    n_groups : int
    options : dict
        Of the kernel.
    batch_size : int
    who : str
        The estimator's name, for messages.

    Returns
    -------
    p : ndarray of shape (n_groups,)
        Values of `EXPONENTS`.
    """

    def all_exponents(tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        tokens = widened(tokens)
        return torch.cat([pool_gem(tokens, mask, p=p, **options) for p in EXPONENTS], dim=1)

    pooled = as_tensor(tokens.reduce(all_exponents, batch_size=batch_size)).cpu().double().numpy()
    usable = np.isfinite(pooled).all(axis=1)
    if tokens.mask is not None:
        usable &= tokens.mask.any(axis=1)
    _, codes = class_numbers(y, len(tokens), np.flatnonzero(usable), who)
    pooled = pooled[usable].reshape(len(codes), len(EXPONENTS), n_groups, -1)
    # (n_exponents, n_groups, n_samples, width), so that a choice takes whole blocks.
    blocks = np.ascontiguousarray(pooled.transpose(1, 2, 0, 3))
    scores: dict[tuple[int, ...], float] = {}

    def score(choice: tuple[int, ...]) -> float:
        if choice not in scores:
            scores[choice] = _ridge_score(np.hstack(blocks[choice, range(n_groups)]), codes)
        return scores[choice]

    choice = max(((k,) * n_groups for k in range(len(EXPONENTS))), key=score)
    for _ in range(_MAX_SWEEPS if n_groups > 1 else 0):
        before = choice
        for group in range(n_groups):
            others = [(*choice[:group], k, *choice[group + 1 :]) for k in range(len(EXPONENTS))]
            # The present choice comes first, so that it wins where nothing is better.
            choice = max([choice, *others], key=score)
        if choice == before:
            break
    return np.array([EXPONENTS[k] for k in choice])


def _ridge_score(vectors: np.ndarray, codes: np.ndarray) -> float:
    """Minus the least leave-one-out squared error over the penalties."""
    ridge = RidgeClassifierCV(alphas=_PENALTIES * len(vectors))
    return float(ridge.fit(StandardScaler().fit_transform(vectors), codes).best_score_)
