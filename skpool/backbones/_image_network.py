# SPDX-License-Identifier: BSD-3-Clause
"""A frozen network of images: pixels in, tokens with their prefix and grid out.

Maps of a convolutional network become tokens row by row here, and one pass of a blank image tells
how the tokens of a layer are laid out.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from skpool.backbones._network import Layout, Network, first_tensor
from skpool.backbones._recipe import ImageRecipe
from skpool.exceptions import BackboneError

__all__ = ["ImageNetwork"]


def _square_grid(n_tokens: int) -> tuple[int, int] | None:
    side = int(n_tokens**0.5 + 0.5)
    return (side, side) if side * side == n_tokens and n_tokens > 1 else None


class _Tokens(NamedTuple):
    """Tokens (n, L, d), and what the shape of the layer's output said of them."""

    values: torch.Tensor
    grid: tuple[int, int] | None = None
    is_vector: bool = False


class ImageNetwork(Network):
    """A network of images.

    Parameters
    ----------
    module : torch.nn.Module
        Returns tokens, a map or vectors for normalised images. It is frozen in place.
    recipe : ImageRecipe
        How its images are prepared.
    patch_size : int or None
        Side of a patch in pixels, from which the grid follows; None where it must be inferred.
    n_prefix_tokens : int or None
        Tokens before the patches; None infers it from the number of tokens and the grid.
    has_cls : bool
        Whether the first of the prefix tokens, if there are any, is a class token.
    maps : {"channels_first", "channels_last"}
        Which axis of a 4-D output holds the features, where its shape does not tell.
    call : callable or None
        Called as ``call(module, images)`` in place of ``module(images)``.
    fixed_size : int or None
        The only side of images that is accepted.
    **options
        As in `Network`: the blocks, the final norm, and so on.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: ImageRecipe,
        *,
        patch_size: int | None = None,
        n_prefix_tokens: int | None = None,
        has_cls: bool = True,
        maps: str = "channels_first",
        call: Callable[[nn.Module, torch.Tensor], object] | None = None,
        fixed_size: int | None = None,
        **options: Any,
    ):
        super().__init__(module, **options)
        self.recipe = recipe
        self.patch_size = patch_size
        self.n_prefix_tokens = n_prefix_tokens
        self.has_cls = has_cls
        self.maps = maps
        self.fixed_size = fixed_size
        self._call = call
        self._layouts: dict[tuple[int, int], Layout] = {}
        # Convolutions of a whole network are faster in this order; one patch embedding is not.
        convolutions = sum(isinstance(m, nn.Conv2d) for m in module.modules())
        self.memory_format = torch.channels_last if convolutions > 4 else torch.contiguous_format
        module.to(memory_format=self.memory_format)

    def prepare(self, samples: Sequence[Image.Image], size: int | None = None) -> torch.Tensor:
        """Resize and crop images into one batch (n, size, size, 3), uint8, on the host."""
        return torch.from_numpy(np.stack([self.recipe.prepare(image, size) for image in samples]))

    def forward(
        self, pixels: torch.Tensor, layers: Sequence[int], norm: str = "final"
    ) -> list[torch.Tensor]:
        """Tokens (n, L, d) of the layers asked for, in one pass.

        Parameters
        ----------
        pixels : tensor of shape (n, height, width, 3), uint8
            On the device of the weights.
        layers : sequence of int
        norm : {"final", "all", "none"}, default="final"
            Which layers pass the final norm.

        Returns
        -------
        tokens : list of tensors, one per layer
        """
        return [tokens.values for tokens in self._tokens(pixels, layers, norm)]

    def _tokens(
        self, pixels: torch.Tensor, layers: Sequence[int], norm: str = "final"
    ) -> list[_Tokens]:
        images = self.recipe.normalize(pixels).contiguous(memory_format=self.memory_format)

        def call() -> object:
            return self._call(self.module, images) if self._call else self.module(images)

        return [self._as_tokens(output) for output in self.outputs(call, layers, norm)]

    def _as_tokens(self, output: object) -> _Tokens:
        tensor = first_tensor(output)
        if tensor.ndim == 4 and self._channels_last(tensor.shape):
            return _Tokens(tensor.flatten(1, 2), tuple(tensor.shape[1:3]))
        if tensor.ndim == 4:
            return _Tokens(tensor.flatten(2).transpose(1, 2), tuple(tensor.shape[2:]))
        if tensor.ndim == 3:
            return _Tokens(tensor)
        if tensor.ndim == 2:
            return _Tokens(tensor[:, None], is_vector=True)
        raise BackboneError(
            f"A layer returned a tensor of shape {tuple(tensor.shape)}; tokens (n, L, d), maps "
            "(n, d, h, w) or vectors (n, d) are understood."
        )

    def _channels_last(self, shape: torch.Size) -> bool:
        """Whether the features of a map stand last; some networks change that between layers.

        Images are square and so are their maps, which tells it unless all sides are equal.
        """
        rows_first, rows_last = shape[1] == shape[2], shape[2] == shape[3]
        return self.maps == "channels_last" if rows_first == rows_last else rows_first

    def layout(self, layer: int, size: int | None = None) -> Layout:
        """Numbers of tokens and features and the grid, found by one pass of a blank image."""
        size = self.recipe.input_size if size is None else size
        key = (self.layer_index(layer), size)
        if key not in self._layouts:
            self._check_size(size)
            self._layouts[key] = self._describe(self._blank(layer, size), size)
        return self._layouts[key]

    def _check_size(self, size: int) -> None:
        if self.fixed_size not in (None, size):
            raise BackboneError(
                f"image_size={size} is not possible: this backbone takes images of side "
                f"{self.fixed_size} only; leave image_size=None, or give a recipe with "
                f"input_size={self.fixed_size}."
            )
        if self.patch_size is not None and size % self.patch_size:
            raise BackboneError(
                f"image_size={size} is not a multiple of the patch size {self.patch_size}; "
                f"use {size // self.patch_size * self.patch_size or self.patch_size}."
            )

    def _blank(self, layer: int, size: int) -> _Tokens:
        """The tokens of a blank image, or a sentence where the network cannot take the size."""
        pixels = torch.zeros((1, size, size, 3), dtype=torch.uint8, device=self.device)
        try:
            return self._tokens(pixels, [layer])[0]
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            if isinstance(error, (BackboneError, torch.OutOfMemoryError)):
                raise
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise BackboneError(
                f"image_size={size} is not possible: this backbone refuses images of that side "
                f"({reason}); use the size that it was trained with."
            ) from error

    def _describe(self, tokens: _Tokens, size: int) -> Layout:
        _, n_tokens, n_features = tokens.values.shape
        if tokens.is_vector:
            return Layout(n_tokens, n_features, 0, None)
        prefix, grid = self.n_prefix_tokens, tokens.grid
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
        return Layout(n_tokens, n_features, prefix, grid, 0 if prefix and self.has_cls else None)
