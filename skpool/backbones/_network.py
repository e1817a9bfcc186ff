# SPDX-License-Identifier: BSD-3-Clause
"""One loaded, frozen module and the two things a backbone asks of it: layers and their layout.

A source of models (one file each) only has to find the module, its blocks and its recipe; taking
the output of any layer, stopping after the last one wanted, and turning maps into tokens happen
here, once for all sources.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from skpool.backbones._recipe import ImageRecipe
from skpool.exceptions import BackboneError

__all__ = ["Layout", "Network"]


class _LastLayerReached(Exception):
    """Ends a forward pass whose remaining layers nobody wants."""


@dataclass(frozen=True)
class Layout:
    """What the tokens of one layer look like at one image size."""

    n_tokens: int
    n_features: int
    n_prefix_tokens: int
    grid: tuple[int, int] | None


def _first_tensor(output: object) -> torch.Tensor:
    """The tokens in what a module returns: a tensor, a tuple or a transformers output."""
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


def _as_tokens(output: object) -> tuple[torch.Tensor, tuple[int, int] | None]:
    """Tokens (n, L, d), and the grid when the output was a map (n, d, h, w)."""
    tensor = _first_tensor(output)
    if tensor.ndim == 4:
        return tensor.flatten(2).transpose(1, 2), tuple(tensor.shape[2:])
    if tensor.ndim == 2:
        return tensor[:, None], None
    if tensor.ndim == 3:
        return tensor, None
    raise BackboneError(
        f"A layer returned a tensor of shape {tuple(tensor.shape)}; tokens (n, L, d), maps "
        "(n, d, h, w) or vectors (n, d) are understood."
    )


def _square_grid(n_tokens: int) -> tuple[int, int] | None:
    side = int(n_tokens**0.5 + 0.5)
    return (side, side) if side * side == n_tokens and n_tokens > 1 else None


class Network:
    """A module in evaluation mode without gradients, with named layers.

    Parameters
    ----------
    module : torch.nn.Module
        Returns tokens, a map or vectors for normalised images. It is frozen in place.
    recipe : ImageRecipe
        How its images are prepared.
    blocks : sequence of torch.nn.Module
        Layer k is the output of block k - 1, layer 0 the input of the first block. The last layer
        is the module's own output, which for a transformer has passed its final norm.
    patch_size : int or None
        Side of a patch in pixels, from which the grid follows; None where it must be inferred.
    n_prefix_tokens : int or None
        Tokens before the patches; None infers it from the number of tokens and the grid.
    call : callable or None
        Called as ``call(module, images)`` in place of ``module(images)``.
    fixed_size : bool
        Whether only `recipe.input_size` is accepted.
    revision : str or None
        Version of the weights, where the source has one.
    settings : str
        Whatever beside the weights decides the outputs; part of the fingerprint.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: ImageRecipe,
        *,
        blocks: Sequence[nn.Module] = (),
        patch_size: int | None = None,
        n_prefix_tokens: int | None = None,
        call: Callable[[nn.Module, torch.Tensor], object] | None = None,
        fixed_size: bool = False,
        revision: str | None = None,
        settings: str = "",
    ):
        self.module = module.eval().requires_grad_(False)
        self.recipe = recipe
        self.blocks = list(blocks)
        self.patch_size = patch_size
        self.n_prefix_tokens = n_prefix_tokens
        self.fixed_size = fixed_size
        self.revision = revision
        self.settings = settings
        self._call = call
        # Hooks belong to one pass at a time.
        self._lock = threading.Lock()
        self._layouts: dict[tuple[int, int], Layout] = {}

    @property
    def n_layers(self) -> int:
        """Index of the last layer."""
        return len(self.blocks)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, buffers and settings."""
        digest = hashlib.sha256(f"{type(self.module).__qualname__}\0{self.settings}".encode())
        for name, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]:
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name}{values.dtype}{tuple(values.shape)}".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    def layer_index(self, layer: int) -> int:
        """Turn a negative index into a positive one, or say which there are."""
        index = layer + self.n_layers + 1 if layer < 0 else layer
        if not 0 <= index <= self.n_layers:
            raise BackboneError(
                f"layers={layer} does not exist; this backbone has layers 0 to {self.n_layers} "
                f"(or -{self.n_layers + 1} to -1)."
            )
        return index

    def forward(self, pixels: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Tokens (n, L, d) of the layers asked for, in one pass.

        Parameters
        ----------
        pixels : tensor of shape (n, height, width, 3), uint8
            On the device of the weights.
        layers : sequence of int

        Returns
        -------
        tokens : list of tensors, one per layer
        """
        return [tokens for tokens, _ in self._outputs(pixels, layers)]

    @torch.no_grad()
    def _outputs(
        self, pixels: torch.Tensor, layers: Sequence[int]
    ) -> list[tuple[torch.Tensor, tuple[int, int] | None]]:
        wanted = [self.layer_index(layer) for layer in layers]
        kept: dict[int, object] = {}
        last = max(wanted)

        def keep(index: int, output: object) -> None:
            kept[index] = output
            if index == last:
                raise _LastLayerReached

        images = self.recipe.normalize(pixels)
        with self._lock:
            handles = [self._hook(index, keep) for index in set(wanted) if index < self.n_layers]
            try:
                output = self._call(self.module, images) if self._call else self.module(images)
                kept[self.n_layers] = output
            except _LastLayerReached:
                pass
            finally:
                for handle in handles:
                    handle.remove()
        return [_as_tokens(kept[index]) for index in wanted]

    def _hook(self, index: int, keep: Callable[[int, object], None]):
        if index == 0:
            return self.blocks[0].register_forward_pre_hook(
                lambda module, args, kwargs: keep(0, args[0] if args else kwargs),
                with_kwargs=True,
            )
        return self.blocks[index - 1].register_forward_hook(
            lambda module, args, output: keep(index, output)
        )

    def layout(self, layer: int, size: int | None = None) -> Layout:
        """Numbers of tokens and features and the grid, found by one pass of a blank image."""
        size = self.recipe.input_size if size is None else size
        if self.fixed_size and size != self.recipe.input_size:
            raise BackboneError(
                f"image_size={size} is not possible: this backbone takes images of side "
                f"{self.recipe.input_size} only; leave image_size=None."
            )
        if self.patch_size is not None and size % self.patch_size:
            raise BackboneError(
                f"image_size={size} is not a multiple of the patch size {self.patch_size}; "
                f"use {size // self.patch_size * self.patch_size or self.patch_size}."
            )
        key = (self.layer_index(layer), size)
        if key not in self._layouts:
            blank = torch.zeros((1, size, size, 3), dtype=torch.uint8, device=self.device)
            tokens, grid = self._outputs(blank, [layer])[0]
            self._layouts[key] = self._describe(tuple(tokens.shape[1:]), grid, size)
        return self._layouts[key]

    def _describe(self, shape: tuple[int, int], grid: tuple[int, int] | None, size: int) -> Layout:
        n_tokens, n_features = shape
        prefix = self.n_prefix_tokens
        if grid is None and self.patch_size is not None:
            grid = (size // self.patch_size, size // self.patch_size)
        elif grid is None and prefix is not None:
            grid = _square_grid(n_tokens - prefix)
        elif grid is None:
            # A square number of tokens is taken as patches alone, one more as a CLS token first.
            grid = _square_grid(n_tokens) or _square_grid(n_tokens - 1)
        if prefix is None:
            prefix = n_tokens - grid[0] * grid[1] if grid else 0
        if prefix < 0 or (grid and prefix + grid[0] * grid[1] != n_tokens):
            raise BackboneError(
                f"{n_tokens} tokens do not fit a grid of {grid} and {prefix} prefix tokens; "
                "give n_prefix_tokens and patch_size."
            )
        return Layout(n_tokens, n_features, prefix, grid)
