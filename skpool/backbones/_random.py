# SPDX-License-Identifier: BSD-3-Clause
"""Networks that nobody trained: the baseline without weights, and a backbone that needs no file.

A random network is determined by its name, ``"random:conv?width=64&depth=3&seed=0"``. Generators of
its own draw the weights, so that no global state is read or changed. Its pre-activations can be
brought to mean 0 and deviation 1 on given images (`RandomNetwork.calibrate`); those numbers are
constants afterwards, where a batch norm would look at the other images of a batch.
"""

import math
from collections.abc import Callable, Iterable
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from skpool.backbones._module import open_module
from skpool.backbones._network import Network
from skpool.backbones._recipe import ImageRecipe
from skpool.exceptions import BackboneError

__all__ = ["RandomNetwork", "open_random", "random_network", "random_recipe"]

INITS = ("kaiming", "orthogonal")
# For the names of random networks, where a number is left out.
_DEFAULTS = {"width": 64, "depth": 3, "patch_size": 8, "input_size": 32, "seed": 0}


class Standardise(nn.Module):
    """Subtract a constant mean from every channel and divide by a constant deviation."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Channels stand second in maps (n, d, h, w), last in all else."""
        shape = (-1, 1, 1) if values.ndim == 4 else (-1,)
        return (values - self.mean.view(shape)) / self.scale.view(shape)


class _ConvBlock(nn.Module):
    """Convolution, standardisation, ReLU, and the maximum of 2 x 2."""

    def __init__(self, n_in: int, width: int):
        super().__init__()
        self.conv = nn.Conv2d(n_in, width, 3, padding=1, bias=False)
        self.norm = Standardise(width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps (n, n_in, h, w) to (n, width, h / 2, w / 2)."""
        return functional.max_pool2d(functional.relu(self.norm(self.conv(images))), 2)


class _DenseBlock(nn.Module):
    """Linear map, standardisation, ReLU."""

    def __init__(self, n_in: int, width: int):
        super().__init__()
        self.linear = nn.Linear(n_in, width, bias=False)
        self.norm = Standardise(width)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors (n, n_in) to (n, width)."""
        return functional.relu(self.norm(self.linear(vectors)))


class _TransformerBlock(nn.Module):
    """Pre-norm block, whose hidden layer is standardised."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.n_heads = width, math.gcd(width, 4)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.norm = Standardise(4 * width)
        self.out = nn.Linear(4 * width, width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (n, L, width) to tokens of the same shape."""
        n, length, _ = tokens.shape
        qkv = self.qkv(functional.layer_norm(tokens, (self.width,)))
        query, key, value = qkv.view(n, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.projection(mixed.transpose(1, 2).reshape(n, length, -1))
        hidden = self.norm(self.hidden(functional.layer_norm(tokens, (self.width,))))
        return tokens + self.out(functional.gelu(hidden))


class _Captured(Exception):
    """Ends a forward pass at the layer that is being calibrated."""


class RandomNetwork(nn.Module):
    """Base of the random networks.

    Attributes
    ----------
    layer_paths : tuple of str
        Names of the blocks, in order.
    patch_size, n_prefix_tokens : int or None
        As `Backbone.from_module` takes them.
    """

    layer_paths: tuple[str, ...]
    patch_size: int | None = None
    n_prefix_tokens: int | None = 0

    @property
    def norms(self) -> list[Standardise]:
        """The layers that can be calibrated, in the order in which an image meets them."""
        return [module for module in self.modules() if isinstance(module, Standardise)]

    @property
    def calibration(self) -> list[np.ndarray]:
        """Means and deviations of every layer, arrays of shape (2, width)."""
        return [torch.stack([norm.mean, norm.scale]).cpu().numpy() for norm in self.norms]

    @calibration.setter
    def calibration(self, values: Iterable[np.ndarray]) -> None:
        for norm, (mean, scale) in zip(self.norms, values, strict=True):
            norm.mean.copy_(torch.as_tensor(mean))
            norm.scale.copy_(torch.as_tensor(scale))

    @torch.no_grad()
    def calibrate(self, batches: Callable[[], Iterable[torch.Tensor]]) -> "RandomNetwork":
        """Bring the pre-activations of every layer to mean 0 and deviation 1, in place.

        Parameters
        ----------
        batches : callable
            Each call yields the same normalised images (n, 3, h, w), batch by batch. It is called
            once per layer, since a layer sees what the layers before make of the images.

        Returns
        -------
        self : RandomNetwork
        """
        for norm in self.norms:
            norm.mean.zero_()
            norm.scale.fill_(1.0)
        for norm in self.norms:
            mean, scale = self._moments(norm, batches())
            norm.mean.copy_(mean)
            # A channel without variation stays as it is.
            norm.scale.copy_(torch.where(scale > 0, scale, 1.0))
        return self

    def _moments(
        self, norm: Standardise, batches: Iterable[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the channels that a layer reads, over all batches."""
        caught: list[torch.Tensor] = []

        def catch(module: nn.Module, args: tuple) -> None:
            caught.append(args[0])
            raise _Captured

        count, mean, square = 0, 0.0, 0.0
        handle = norm.register_forward_pre_hook(catch)
        try:
            for images in batches:
                try:
                    self(images)
                except _Captured:
                    values = caught.pop()
                    values = values.transpose(1, -1) if values.ndim == 4 else values
                    rows = values.reshape(-1, values.shape[-1]).double()
                # Merged by deviations from the means, which no offset of the channels spoils.
                part, deviation = rows.mean(0), rows.var(0, unbiased=False) * len(rows)
                total = count + len(rows)
                delta = part - mean
                square = square + deviation + delta.square() * (count * len(rows) / total)
                mean = mean + delta * (len(rows) / total)
                count = total
        finally:
            handle.remove()
        return mean, (square / count).sqrt()


class _RandomConv(RandomNetwork):
    """Blocks of convolution and pooling; the tokens are the last map."""

    def __init__(self, *, width: int, depth: int, patch_size: int, input_size: int):
        super().__init__()
        if input_size >> depth < 1:
            raise BackboneError(
                f"depth={depth} halves an image of side {input_size} to nothing; use at most "
                f"depth={input_size.bit_length() - 1}."
            )
        widths = [3] + [width] * depth
        self.blocks = nn.Sequential(*map(_ConvBlock, widths[:-1], widths[1:]))
        self.layer_paths = tuple(f"blocks.{k}" for k in range(depth))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, h, w) to a map (n, width, h / 2^depth, w / 2^depth)."""
        return self.blocks(images)


class _RandomMLP(RandomNetwork):
    """Dense layers on the pixels; one vector per image."""

    def __init__(self, *, width: int, depth: int, patch_size: int, input_size: int):
        super().__init__()
        self.input_size = input_size
        widths = [3 * input_size**2] + [width] * depth
        self.blocks = nn.Sequential(*map(_DenseBlock, widths[:-1], widths[1:]))
        self.layer_paths = tuple(f"blocks.{k}" for k in range(depth))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, input_size, input_size) to vectors (n, width)."""
        if images.shape[-1] != self.input_size:
            raise BackboneError(
                f"image_size={images.shape[-1]} is not possible: a random 'mlp' takes images of "
                f"side {self.input_size} only; build it with input_size={images.shape[-1]}."
            )
        return self.blocks(images.flatten(1))


class _RandomViT(RandomNetwork):
    """Vision transformer with fixed positions; a class token, then the patches."""

    n_prefix_tokens = 1

    def __init__(self, *, width: int, depth: int, patch_size: int, input_size: int):
        super().__init__()
        if width % 4:
            raise BackboneError(
                f"width={width} must be a multiple of 4 for arch='vit', whose positions are sines "
                f"and cosines of rows and columns; use width={max(4, width - width % 4)}."
            )
        if input_size % patch_size:
            raise BackboneError(
                f"patch_size={patch_size} does not divide input_size={input_size}; use a divisor."
            )
        self.width, self.patch_size = width, patch_size
        self.embed = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.norm = Standardise(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(_TransformerBlock(width) for _ in range(depth))
        self.layer_paths = tuple(f"blocks.{k}" for k in range(depth))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, h, w) to tokens (n, 1 + L, width)."""
        patches = self.embed(images)
        height, width = patches.shape[2:]
        positions = sine_positions(height, width, self.width).to(patches)
        patches = self.norm(patches.flatten(2).transpose(1, 2)) + positions
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1).to(patches), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return functional.layer_norm(tokens, (self.width,))


def sine_positions(height: int, width: int, n_features: int) -> torch.Tensor:
    """Fixed position embedding of a grid.

    Parameters
    ----------
    height, width : int
    n_features : int
        A multiple of 4.

    Returns
    -------
    positions : tensor of shape (height * width, n_features)
        Sines and cosines of the row, then of the column, with frequencies from 1 to 1/10000.
    """
    frequencies = 10_000.0 ** -torch.linspace(0, 1, n_features // 4)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (row, column)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


ARCHITECTURES: dict[str, type[RandomNetwork]] = {
    "conv": _RandomConv,
    "mlp": _RandomMLP,
    "vit": _RandomViT,
}


def _draw(network: RandomNetwork, init: str, seed: int) -> None:
    """Give all parameters their random values, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(network.named_parameters()):
        if parameter.ndim < 2 or name == "cls_token":
            nn.init.normal_(parameter, generator=generator)
        elif init == "orthogonal":
            nn.init.orthogonal_(parameter, gain=math.sqrt(2), generator=generator)
        else:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)


def random_network(
    arch: str = "conv",
    *,
    width: int = 64,
    depth: int = 3,
    patch_size: int = 8,
    input_size: int = 32,
    init: str = "orthogonal",
    seed: int = 0,
) -> RandomNetwork:
    """Build a network of random weights, on the host, without touching torch's global generator.

    Parameters
    ----------
    arch : {"conv", "vit", "mlp"}, default="conv"
        Convolutions with pooling, a vision transformer, or dense layers on the pixels.
    width : int, default=64
        Channels of every layer.
    depth : int, default=3
        Number of blocks.
    patch_size : int, default=8
        Side of a patch of "vit".
    input_size : int, default=32
        Side of the images.
    init : {"orthogonal", "kaiming"}, default="orthogonal"
        How weights are drawn.
    seed : int, default=0
        Of the generator.

    Returns
    -------
    network : torch.nn.Module

    Examples
    --------
    >>> import torch
    >>> from skpool.backbones import random_network
    >>> random_network("vit", width=16)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 17, 16])
    """
    if arch not in ARCHITECTURES:
        raise BackboneError(f"arch={arch!r} is unknown; choose one of {sorted(ARCHITECTURES)}.")
    if init not in INITS:
        raise BackboneError(f"init={init!r} is unknown; choose one of {sorted(INITS)}.")
    numbers = {"width": width, "depth": depth, "patch_size": patch_size, "input_size": input_size}
    low = {name: value for name, value in numbers.items() if value < 1}
    if low or seed < 0:
        raise BackboneError(f"{low or {'seed': seed}} must be at least {1 if low else 0}.")
    # On the meta device the layers' own initialisers draw nothing.
    with torch.device("meta"):
        network = ARCHITECTURES[arch](**numbers)
    network.to_empty(device="cpu")
    _draw(network, init, seed)
    for norm in network.norms:
        norm.mean.zero_()
        norm.scale.fill_(1.0)
    return network.eval().requires_grad_(False)


def random_recipe(input_size: int) -> ImageRecipe:
    """Return the preprocessing of a random network.

    Parameters
    ----------
    input_size : int
        Side of the images.

    Returns
    -------
    recipe : ImageRecipe
        Both sides are resized, and pixels brought to [-1, 1].

    Examples
    --------
    >>> from skpool.backbones import random_recipe
    >>> random_recipe(32).fit
    'squash'
    """
    return ImageRecipe(input_size=input_size, mean=(0.5,) * 3, std=(0.5,) * 3, fit="squash")


def open_random(name: str, recipe: ImageRecipe | None) -> Network:
    """Build the random network of a name such as "conv?width=64&depth=3&seed=0"."""
    arch, _, query = name.partition("?")
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
        init = options.pop("init", "orthogonal")
        unknown = sorted(set(options) - set(_DEFAULTS))
        numbers = _DEFAULTS | {key: int(value) for key, value in options.items()}
    except ValueError:
        unknown = [query]
    if unknown:
        raise BackboneError(
            f"'random:{name}' cannot be read at {unknown[0]!r}; write "
            "'random:conv?width=64&depth=3&seed=0', with numbers among "
            f"{sorted(_DEFAULTS)} and init among {sorted(INITS)}."
        )
    network = random_network(arch, init=init, **numbers)
    return open_module(
        network,
        recipe or random_recipe(numbers["input_size"]),
        layer_paths=network.layer_paths,
        patch_size=network.patch_size,
        n_prefix_tokens=network.n_prefix_tokens,
    )
