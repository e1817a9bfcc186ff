# SPDX-License-Identifier: BSD-3-Clause
"""The torch module of moment probing: a linear head on the first moment and one on the second.

Between tokens and logits, without an estimator. The second moments are the maps of
`pool_cross_covariance`, through which gradients pass; what is learned stands before them (a
projection, a norm of the heads) and behind them (strided convolutions, a linear head).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from skpool.pooling import POOLINGS, cross_pairs, pool_cross_covariance
from skpool.statistics import RunningMoments

__all__ = ["MomentHead", "MomentSpec", "conv_side", "make_moment_head", "most_convolutions"]

Mask = torch.Tensor | None

# Side and stride of the convolutions.
_KERNEL, _STRIDE = 3, 2
# Of the norm of the pooled mean, as published; that of the heads has torch's own.
_MEAN_EPS = 1e-6


class MomentSpec(NamedTuple):
    """All that decides the form of a head.

    Attributes
    ----------
    n_features, n_outputs : int
        Width of a token; number of classes.
    proj_dim : int or None
        Width after the projection; None for no projection.
    n_heads : int
    head_layout : {"contiguous", "interleaved"}
    cross : {"near", "one", "half", "all"}
    center : {"token", "scalar"} or None
    head_norm : {"layernorm"} or None
    normalize : {"column", "frobenius"} or None
    conv_layers : int
        Convolutions that the maps are wide enough for.
    first : {"cls", "mean", "mean_norm"}
    n_prefix : int
        Leading tokens that are no patches.
    combine : tuple of 2 floats
        Weights of the two linear heads; a branch of weight 0 is not built.
    """

    n_features: int
    n_outputs: int
    proj_dim: int | None = 512
    n_heads: int = 4
    head_layout: str = "contiguous"
    cross: str = "near"
    center: str | None = "token"
    head_norm: str | None = "layernorm"
    normalize: str | None = "column"
    conv_layers: int = 2
    first: str = "cls"
    n_prefix: int = 1
    combine: tuple[float, float] = (0.5, 0.5)

    @property
    def side(self) -> int:
        """Width of a head, which is the side of a map."""
        return (self.proj_dim or self.n_features) // self.n_heads

    @property
    def n_maps(self) -> int:
        """Pairs of heads."""
        return len(cross_pairs(self.cross, self.n_heads))

    @property
    def n_second(self) -> int:
        """Second-order features, behind the convolutions."""
        return self.n_maps * conv_side(self.side, self.conv_layers) ** 2


def conv_side(side: int, conv_layers: int) -> int:
    """Side of a map behind some convolutions; 0 or less where it is too small for them."""
    for _ in range(conv_layers):
        side = (side - _KERNEL) // _STRIDE + 1
    return side


def most_convolutions(side: int, conv_layers: int) -> int:
    """How many of the convolutions a map of this side can pass."""
    return max(k for k in range(conv_layers + 1) if k == 0 or conv_side(side, k) > 0)


def _uniform_(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    """Draw weights and offsets between plus and minus the inverse root of the inputs."""
    bound = layer.weight[0].numel() ** -0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)


def _unset(kind: type[nn.Module], *sizes: int, **options: object) -> nn.Module:
    """A layer whose constructor draws nothing from torch."""
    return nn.utils.skip_init(kind, *sizes, dtype=torch.float64, **options)


class MomentHead(nn.Module):
    """Moments of tokens, and the weighted sum of a linear head on each of both orders.

    Parameters
    ----------
    spec : MomentSpec

    Attributes
    ----------
    first_mean, first_scale, token_mean, token_scale : tensor of shape (d,)
        What the first moment and the tokens are standardised by; 0 and 1 until they are set.
    """

    def __init__(self, spec: MomentSpec):
        super().__init__()
        self.spec = spec
        d = spec.n_features
        for name in ("first", "token"):
            self.register_buffer(f"{name}_mean", torch.zeros(d, dtype=torch.float64))
            self.register_buffer(f"{name}_scale", torch.ones(d, dtype=torch.float64))
        if spec.combine[0]:
            if spec.first == "mean_norm":
                self.mean_norm = nn.LayerNorm(d, eps=_MEAN_EPS, dtype=torch.float64)
            self.first = _unset(nn.Linear, d, spec.n_outputs)
        if spec.combine[1]:
            self._build_second(spec)

    def _build_second(self, spec: MomentSpec) -> None:
        if spec.proj_dim is not None:
            self.projection = _unset(nn.Linear, spec.n_features, spec.proj_dim)
        if spec.head_norm == "layernorm":
            self.head_norm = nn.LayerNorm(spec.side, dtype=torch.float64)
        maps = spec.n_maps
        self.convolutions = nn.ModuleList(
            _unset(nn.Conv2d, maps, maps, _KERNEL, stride=_STRIDE, bias=False)
            for _ in range(spec.conv_layers)
        )
        self.second = _unset(nn.Linear, spec.n_second, spec.n_outputs)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the layers before the linear heads, which start at zero: equal scores."""
        for name, layer in self.named_modules():
            if name in ("first", "second"):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, (nn.Linear, nn.Conv2d)):
                _uniform_(layer, generator)

    # Moments.

    def raw_first(self, values: torch.Tensor, mask: Mask) -> torch.Tensor:
        """The class token, or the mean of the patches, in its own units."""
        if self.spec.first == "cls":
            return values[:, 0]
        return POOLINGS["mean"](*self._patches(values, mask))

    def _patches(self, values: torch.Tensor, mask: Mask) -> tuple[torch.Tensor, Mask]:
        start = self.spec.n_prefix
        return values[:, start:], None if mask is None else mask[:, start:]

    def moments(
        self, values: torch.Tensor, mask: Mask = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What the two linear heads see; None for a branch that was not built.

        Parameters
        ----------
        values : tensor of shape (n, L, d)
        mask : tensor of shape (n, L), bool, default=None

        Returns
        -------
        first : tensor of shape (n, d) or None
        second : tensor of shape (n, m) or None
        """
        if mask is not None:
            # Before anything is multiplied: what stands under a mask may be NaN.
            values = values.where(mask[..., None], 0.0)
        first = second = None
        if self.spec.combine[0]:
            first = (self.raw_first(values, mask) - self.first_mean) / self.first_scale
            first = self.mean_norm(first) if self.spec.first == "mean_norm" else first
        if self.spec.combine[1]:
            second = self._second(*self._patches(values, mask))
        return first, second

    def maps(self, patches: torch.Tensor, mask: Mask = None) -> torch.Tensor:
        """Normalised cross moments (n, maps, side, side) of tokens without the prefix."""
        spec = self.spec
        x = patches - self.token_mean
        if spec.proj_dim is None:
            x = x / self.token_scale
        else:
            # The weights are fewer than the tokens.
            x = F.linear(x, self.projection.weight / self.token_scale, self.projection.bias)
        if spec.head_layout == "interleaved":
            heads = x.unflatten(2, (spec.side, spec.n_heads)).transpose(2, 3)
        else:
            heads = x.unflatten(2, (spec.n_heads, spec.side))
        heads = self.head_norm(heads) if spec.head_norm == "layernorm" else heads
        flat = pool_cross_covariance(
            heads.flatten(2),
            mask,
            n_heads=spec.n_heads,
            cross=spec.cross,
            center=spec.center,
            normalize=spec.normalize,
        )
        return flat.unflatten(1, (spec.n_maps, spec.side, spec.side))

    def _second(self, patches: torch.Tensor, mask: Mask) -> torch.Tensor:
        x = self.maps(patches, mask)
        for number, convolution in enumerate(self.convolutions):
            x = convolution(F.gelu(x) if number else x)
        return x.flatten(1)

    def forward(self, values: torch.Tensor, mask: Mask = None) -> torch.Tensor:
        """Logits (n, n_outputs)."""
        moments = self.moments(values, mask)
        heads = (getattr(self, name, None) for name in ("first", "second"))
        parts = [
            weight * head(moment)
            for weight, head, moment in zip(self.spec.combine, heads, moments, strict=True)
            if head is not None
        ]
        return sum(parts[1:], start=parts[0])

    # Units.

    def set_units(self, blocks: Iterable[tuple[torch.Tensor, Mask]]) -> None:
        """Standardise what both branches see by the statistics of these tokens.

        Parameters
        ----------
        blocks : iterable of (values, mask)
        """
        first, tokens = RunningMoments("diag"), RunningMoments("diag")
        for values, mask in blocks:
            values = values if mask is None else values.where(mask[..., None], 0.0)
            patches, real = self._patches(values, mask)
            first.update(self.raw_first(values, mask))
            tokens.update(patches.flatten(0, 1) if real is None else patches[real])
        self.token_mean, self.token_scale = _units(tokens, like=self.token_mean)
        mean, scale = _units(first, like=self.first_mean)
        if self.spec.first == "mean_norm":
            # One number for all: the norm that follows undoes it, but for its epsilon.
            squares = first.scatter_ / first.n_samples + first.mean_**2
            size = float(np.sqrt(squares.mean()))
            mean, scale = torch.zeros_like(mean), torch.full_like(scale, size if size > 0 else 1.0)
        self.first_mean, self.first_scale = mean, scale


def _units(moments: RunningMoments, *, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of features; 1 for the deviation of a constant one."""
    mean, variance = moments.mean_, moments.scatter_ / moments.n_samples
    # What is left of a constant feature is rounding of its mean.
    scale = np.sqrt(np.where(variance > (1e-7 * np.abs(mean)) ** 2, variance, 1.0))
    return torch.tensor(mean).to(like), torch.tensor(scale).to(like)


def make_moment_head(spec: MomentSpec, generator: torch.Generator | None = None) -> MomentHead:
    """Build a head, in float64, with drawn weights or with unset ones.

    Parameters
    ----------
    spec : MomentSpec
    generator : torch.Generator, default=None
        Draws the weights; None leaves them to `load_state_dict`.

    Returns
    -------
    head : MomentHead
    """
    head = MomentHead(spec)
    if generator is not None:
        with torch.no_grad():
            head.initialise(generator)
    return head
