# SPDX-License-Identifier: BSD-3-Clause
"""One loaded, frozen module: its layers, taken in one pass that ends after the last one wanted.

A source of models (one file each) only has to find the module, its blocks, its final norm and how
its samples are prepared; taking the output of any layer, norms and early stop happen here, once
for all sources. What a sample is, images or texts, is said by the subclasses.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from skpool.exceptions import BackboneError

__all__ = ["TOKEN_NORMS", "Layout", "Network", "first_tensor"]

TOKEN_NORMS = ("final", "all", "none")


class _LastLayerReached(Exception):
    """Ends a forward pass whose remaining layers nobody wants."""


@dataclass(frozen=True)
class Layout:
    """What the tokens of one layer look like at one image size."""

    n_tokens: int
    n_features: int
    n_prefix_tokens: int
    grid: tuple[int, int] | None
    cls_index: int | None = None


def first_tensor(output: object) -> torch.Tensor:
    """The tokens in what a module returns: a tensor, a tuple or a transformers output."""
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


class Network:
    """A module in evaluation mode without gradients, with numbered layers.

    Parameters
    ----------
    module : torch.nn.Module
        Frozen in place.
    blocks : sequence of torch.nn.Module
        Layer k is the output of block k - 1, layer 0 the input of the first block. The last layer
        is the module's own output, which for a transformer has passed its final norm.
    final_norm : torch.nn.Module or None
        The norm that a transformer applies to the output of its last block.
    ends_normed : bool
        Whether the module's own output has passed the final norm; CLIP in transformers, for
        example, norms only what it pools.
    same_width : bool
        Whether every layer is as wide as the final norm.
    own_layer : bool
        Whether the module's own output is a layer after the last block's, as where a convolution
        follows the blocks; else it stands in its place.
    pooling : str, tuple of str or None
        How the authors of the network pool its tokens, as `TokenPooling` names it.
    revision : str or None
        Version of the weights, where the source has one.
    settings : str
        Whatever beside the weights decides the outputs; part of the fingerprint.
    only_saved : bool
        Whether buffers that are not saved with the weights follow from the settings, so that the
        fingerprint leaves them out. They change between versions of a library.
    """

    modality = "image"

    def __init__(
        self,
        module: nn.Module,
        *,
        blocks: Sequence[nn.Module] = (),
        final_norm: nn.Module | None = None,
        ends_normed: bool = True,
        same_width: bool = True,
        own_layer: bool = False,
        pooling: str | tuple[str, ...] | None = None,
        revision: str | None = None,
        settings: str = "",
        only_saved: bool = False,
    ):
        self.module = module.eval().requires_grad_(False)
        self.blocks = list(blocks)
        self.final_norm = final_norm
        self.ends_normed = ends_normed
        self.same_width = same_width
        self.own_layer = own_layer
        self.pooling = pooling
        self.only_saved = only_saved
        self.revision = revision
        self.settings = settings
        # Hooks belong to one pass at a time.
        self._lock = threading.Lock()

    @property
    def n_layers(self) -> int:
        """Index of the last layer."""
        return len(self.blocks) + self.own_layer

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, buffers and settings."""
        digest = hashlib.sha256(f"{type(self.module).__qualname__}\0{self.settings}".encode())
        tensors = [*self.module.named_parameters(), *self.module.named_buffers()]
        saved = self.module.state_dict() if self.only_saved else dict(tensors)
        for name, tensor in tensors:
            if name not in saved:
                continue
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name}{values.dtype}{tuple(values.shape)}".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]

    def compile(self) -> None:
        """Compile the blocks one by one, so that layers can still be taken between them."""
        for block in self.blocks:
            block.forward = torch.compile(block.forward)
        if not self.blocks:
            self.module.forward = torch.compile(self.module.forward)

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

    def check_norm(self, norm: str) -> None:
        """Refuse a norm on every layer where there is none that fits."""
        if norm == "all" and self.final_norm is None:
            raise BackboneError(
                "token_norm='all' applies the final norm of a transformer to every layer, and this "
                "backbone has none; use token_norm='final'."
            )
        if norm == "all" and not self.same_width:
            raise BackboneError(
                "token_norm='all' applies the final norm to every layer, and the layers of this "
                "backbone differ in width; use token_norm='final'."
            )

    def normed(self, layer: int, norm: str) -> bool:
        """Whether a layer's tokens have passed the final norm."""
        if self.final_norm is None or norm == "none":
            return False
        last = self.layer_index(layer) == self.n_layers
        return norm == "all" or (last and self.ends_normed)

    def mask(self, batch: torch.Tensor) -> torch.Tensor | None:
        """Real tokens of a batch, (n, L) bool, or None where all are."""
        return None

    @torch.no_grad()
    def outputs(
        self, call: Callable[[], object], layers: Sequence[int], norm: str = "final"
    ) -> list[object]:
        """What the layers put out in one pass, as the module itself returns it.

        Parameters
        ----------
        call : callable
            Runs the module.
        layers : sequence of int
        norm : {"final", "all", "none"}, default="final"
            Which layers pass the final norm: the last alone, every one, or none.

        Returns
        -------
        outputs : list, one per layer
        """
        self.check_norm(norm)
        wanted = [self.layer_index(layer) for layer in layers]
        # Without its norm the last layer is the output of the last block.
        tap_last = norm == "none" and self.final_norm is not None and self.ends_normed
        hooked = {i for i in wanted if i <= len(self.blocks) and (i < self.n_layers or tap_last)}
        end = None if len(hooked) < len(set(wanted)) else max(hooked)
        kept: dict[int, object] = {}

        def keep(index: int, output: object) -> None:
            if index == end:
                kept[index] = output
                raise _LastLayerReached
            # A copy, because what follows in the network may write into it.
            kept[index] = first_tensor(output).clone()

        with self._lock:
            handles = [self._hook(index, keep) for index in hooked]
            try:
                kept.setdefault(self.n_layers, call())
            except _LastLayerReached:
                pass
            finally:
                for handle in handles:
                    handle.remove()
        return [self._normed(kept[index], index, norm) for index in wanted]

    def _normed(self, output: object, index: int, norm: str) -> object:
        """Apply the final norm where it was asked for and the module has not done so."""
        if norm != "all" or (index == self.n_layers and self.ends_normed):
            return output
        return self.final_norm(first_tensor(output))

    def _hook(self, index: int, keep: Callable[[int, object], None]):
        if index == 0:
            return self.blocks[0].register_forward_pre_hook(
                lambda module, args, kwargs: keep(0, [*args, *kwargs.values()][0]),
                with_kwargs=True,
            )
        return self.blocks[index - 1].register_forward_hook(
            lambda module, args, output: keep(index, output)
        )
