# SPDX-License-Identifier: BSD-3-Clause
"""The value object that names a frozen network: the first thing in every pipeline.

A `Backbone` is to a network what a path is to a file. It is small, immutable and hashable, so it
can be a hyper-parameter: a grid search clones, pickles and compares it without touching weights.
The network itself is loaded at first use, once per process and device.
"""

import copy
import threading
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import nn

from skpool.backbones import _glyph
from skpool.backbones._hf import open_hf
from skpool.backbones._hf_text import is_text_model, open_hf_text
from skpool.backbones._image_network import ImageNetwork
from skpool.backbones._module import open_module
from skpool.backbones._network import Layout, Network
from skpool.backbones._open_clip import open_clip_tower
from skpool.backbones._random import open_random
from skpool.backbones._recipe import ImageRecipe
from skpool.backbones._st import open_st
from skpool.backbones._text_module import open_text_module
from skpool.backbones._text_recipe import TextRecipe
from skpool.backbones._timm import open_timm
from skpool.backbones._torchvision import open_torchvision
from skpool.exceptions import BackboneError
from skpool.utils import fingerprint

__all__ = ["SOURCES", "Backbone"]

Recipe = ImageRecipe | TextRecipe

# What is computed for a sample also depends on our own preprocessing: a change of its results
# must raise this number, so that no store serves the features of an older rule.
_PREPROCESSING = 2
# The same for texts.
_TOKENISATION = 1


def open_glyph(name: str, recipe: ImageRecipe | None) -> Network:
    """Load the small transformer that ships with the package."""
    if name:
        raise BackboneError(f"'glyph:{name}' does not exist; write 'glyph'.")
    module = _glyph.load_glyph()
    recipe = recipe or ImageRecipe(
        input_size=_glyph.INPUT_SIZE,
        mean=_glyph.MEAN,
        std=_glyph.STD,
        interpolation=_glyph.INTERPOLATION,
        fit="squash",
    )
    return ImageNetwork(
        module,
        recipe,
        blocks=list(module.blocks),
        final_norm=module.norm,
        patch_size=_glyph.PATCH_SIZE,
        n_prefix_tokens=_glyph.N_PREFIX_TOKENS,
        fixed_size=_glyph.INPUT_SIZE,
    )


def open_hf_any(name: str, recipe: Recipe | None) -> Network:
    """Load a model of images or of texts, whichever it or the recipe says."""
    if isinstance(recipe, TextRecipe) or (recipe is None and is_text_model(name)):
        return open_hf_text(name, recipe)
    return open_hf(name, recipe)


def _module_opener(recipe: Recipe) -> Callable[..., Network]:
    return open_text_module if isinstance(recipe, TextRecipe) else open_module


SOURCES: dict[str, Callable[[str, Recipe | None], Network]] = {
    "glyph": open_glyph,
    "clip": open_clip_tower,
    "hf": open_hf_any,
    "random": open_random,
    "st": open_st,
    "timm": open_timm,
    "torchvision": open_torchvision,
}
# Recipes that the networks of a source take; all others take those of images.
_RECIPES = {"hf": Recipe, "st": TextRecipe}

_loaded: dict[tuple, Network] = {}
_loading = threading.RLock()


class Backbone:
    """A frozen pretrained network, by name.

    Parameters
    ----------
    spec : str
        ``"glyph"`` (a small vision transformer that ships with skpool), or the name of a model
        after that of its library: ``"hf:facebook/dinov2-small"`` (transformers),
        ``"timm:vit_small_patch14_dinov2.lvd142m"``, ``"torchvision:resnet50"``,
        ``"clip:ViT-B-32/laion2b_s34b_b79k"`` (open_clip), ``"st:all-MiniLM-L6-v2"`` (texts, in the
        format of sentence-transformers). Local files and directories too; the guide has a page on
        the sources.
    recipe : ImageRecipe or TextRecipe, default=None
        How images are prepared, or texts pooled; None takes what the model itself says.

    Attributes
    ----------
    spec : str
        The name.
    recipe : ImageRecipe or TextRecipe
        Size, crop, interpolation, mean and deviation of its images; or pooling and prompts.
    fingerprint : str
        Hash of weights, preprocessing and layer naming; the same in every process.
    revision : str or None
        The commit of a hub model, where known.
    modality : {"image", "text"}
        What kind of samples it reads.
    recommended_pooling : str, tuple of str or None
        How the network's authors pool its tokens, as a strategy of `TokenPooling`; None where it
        is not known.
    n_features : int
        Width of a token of the last layer.
    n_prefix_tokens : int
        Tokens before the patches (class token and registers).
    layers : range
        The layers there are: 0 is the embedding, k the output of block k, and the last one (-1)
        the network's own output, after its final norm.

    Notes
    -----
    Cloning and deep-copying give the object itself. Pickles hold the name and not the weights
    (`Backbone.from_module`: the module, since it has no name).

    Examples
    --------
    >>> from skpool.backbones import Backbone
    >>> backbone = Backbone("glyph")
    >>> backbone.n_prefix_tokens, backbone.grid(32, 32)
    (1, (8, 8))
    """

    def __init__(self, spec: str, *, recipe: Recipe | None = None):
        source = str(spec).partition(":")[0]
        if source not in SOURCES:
            raise BackboneError(
                f"backbone={spec!r} names no known source; write one of "
                f"{sorted(s if s == 'glyph' else s + ':<name>' for s in SOURCES)}, or use "
                "Backbone.from_module."
            )
        if recipe is not None and not isinstance(recipe, _RECIPES.get(source, ImageRecipe)):
            raise BackboneError(
                f"recipe={recipe!r:.60} does not fit {spec!r}; give an ImageRecipe to a network of "
                "images and a TextRecipe to one of texts."
            )
        object.__setattr__(self, "spec", str(spec))
        object.__setattr__(self, "_recipe", recipe)

    def _open(self) -> Network:
        source, _, name = self.spec.partition(":")
        # Libraries draw initial weights before they read the real ones: the user's generator is
        # put back.
        with torch.random.fork_rng(devices=[]):
            return SOURCES[source](name, self._recipe)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        recipe: Recipe,
        tokenizer: Callable[[str], Sequence[int]] | object | None = None,
        layer_paths: Sequence[str] = (),
        patch_size: int | None = None,
        n_prefix_tokens: int | None = None,
    ) -> "Backbone":
        """Freeze a copy of a module of one's own.

        Parameters
        ----------
        module : torch.nn.Module
            For images (n, 3, h, w) it returns tokens (n, L, d), a map (n, d, h, w) or vectors
            (n, d), or a tuple or transformers output that begins with one of these. For texts it
            is called with ids (n, L) and, if it takes a second argument, a mask (n, L), and
            returns tokens (n, L, d).
        recipe : ImageRecipe or TextRecipe
            How its images are prepared, or its texts pooled; decides which of them it reads.
        tokenizer : callable or tokenizer of transformers, default=None
            For texts: a function from a text to its token ids.
        layer_paths : sequence of str, default=()
            Dotted names of the submodules whose outputs are layers 1, 2, ...; the module's own
            output is the last layer in place of the last submodule's.
        patch_size : int, default=None
            Side of a patch, from which the grid follows; None infers a square grid.
        n_prefix_tokens : int, default=None
            Tokens before the patches; None infers 0 or 1.

        Returns
        -------
        backbone : Backbone

        Examples
        --------
        >>> import torch
        >>> from skpool.backbones import Backbone, ImageRecipe
        >>> net = torch.nn.Conv2d(3, 5, kernel_size=8, stride=8)
        >>> backbone = Backbone.from_module(net, recipe=ImageRecipe(input_size=32))
        >>> backbone.n_features, backbone.grid(32, 32)
        (5, (4, 4))
        """
        # A copy, because a backbone is immutable: training the original later must not change
        # features under a fingerprint that was already given.
        options = {"layer_paths": tuple(layer_paths)}
        if isinstance(recipe, TextRecipe):
            options["tokenizer"] = tokenizer
        else:
            options |= {"patch_size": patch_size, "n_prefix_tokens": n_prefix_tokens}
        return _ModuleBackbone(copy.deepcopy(module), recipe, options)

    # A value: equal by content, unchangeable, its own clone.

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("A Backbone cannot be changed; build another one.")

    __delattr__ = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Backbone):
            return NotImplemented
        return (self.spec, self._recipe) == (other.spec, other._recipe)

    def __hash__(self) -> int:
        return hash((self.spec, self._recipe))

    def __repr__(self) -> str:
        recipe = "" if self._recipe is None else f", recipe={self._recipe}"
        return f"Backbone({self.spec!r}{recipe})"

    def __sklearn_clone__(self) -> "Backbone":
        return self

    def __copy__(self) -> "Backbone":
        return self

    def __deepcopy__(self, memo: dict) -> "Backbone":
        return self

    def __reduce__(self):
        return _rebuild, (self.spec, self._recipe)

    # The network behind the name.

    def network(self, device: torch.device | str = "cpu", *, compiled: bool = False) -> Network:
        """Return the frozen network on a device, loading it at the first call of the process.

        Parameters
        ----------
        device : torch.device or str, default="cpu"
        compiled : bool, default=False
            Whether its blocks go through `torch.compile`.

        Returns
        -------
        network : Network
        """
        key = (self.spec, self._recipe, str(torch.device(device)), compiled)
        with _loading:
            if key not in _loaded:
                network = self._open()
                network.module.to(device)
                if compiled:
                    network.compile()
                _loaded[key] = network
            return _loaded[key]

    def _any_network(self) -> Network:
        """The facts do not depend on the device: whichever copy is loaded knows them."""
        with _loading:
            for (spec, recipe, *_), network in _loaded.items():
                if (spec, recipe) == (self.spec, self._recipe):
                    return network
        return self.network()

    @property
    def recipe(self) -> Recipe:
        """How images are prepared, or texts pooled."""
        return self._recipe or self._any_network().recipe

    @property
    def fingerprint(self) -> str:
        """Hash of weights, preprocessing and layer naming."""
        content = self._any_network().fingerprint
        r = self.recipe
        if isinstance(r, TextRecipe):
            # It changes no token, and the tokenizer is part of the content.
            return fingerprint(_TOKENISATION, content)
        parts = (r.input_size, r.mean, r.std, r.crop_pct, r.interpolation, r.fit, r.draft)
        parts += (r.crop_rounding,)
        return fingerprint(_PREPROCESSING, content, parts)

    @property
    def revision(self) -> str | None:
        """The commit of a hub model, where known."""
        return self._any_network().revision

    @property
    def modality(self) -> str:
        """What kind of samples the network reads: "image" or "text"."""
        return self._any_network().modality

    @property
    def recommended_pooling(self) -> str | tuple[str, ...] | None:
        """How the authors of the network pool its tokens, as a strategy of `TokenPooling`."""
        return self._any_network().pooling

    @property
    def layers(self) -> range:
        """The layers that can be asked for."""
        return range(self._any_network().n_layers + 1)

    @property
    def n_features(self) -> int:
        """Width of a token of the last layer."""
        return self.layout().n_features

    @property
    def n_prefix_tokens(self) -> int:
        """Tokens before the patches, in the last layer."""
        return self.layout().n_prefix_tokens

    def layout(self, layer: int = -1, size: int | None = None) -> Layout:
        """Numbers of tokens and features, prefix and grid of a layer.

        Parameters
        ----------
        layer : int, default=-1
        size : int, default=None
            Side of the images; None for the recipe's.

        Returns
        -------
        layout : Layout
            With `n_tokens`, `n_features`, `n_prefix_tokens` and `grid`.
        """
        return self._any_network().layout(layer, size)

    def grid(self, height: int, width: int) -> tuple[int, int] | None:
        """Rows and columns of patches for a square image of this size.

        Parameters
        ----------
        height, width : int
            Equal sides in pixels.

        Returns
        -------
        grid : tuple of 2 ints, or None
            None where the network gives one vector.
        """
        if height != width:
            raise BackboneError(f"height={height} and width={width} differ; images are square.")
        return self.layout(size=height).grid

    def prepare(
        self, samples: Sequence[Image.Image | str], *, size: int | None = None
    ) -> torch.Tensor:
        """Resize and crop images, or tokenise texts, into one batch, on the host.

        Parameters
        ----------
        samples : sequence of PIL images, mode RGB, or of str
        size : int, default=None
            Side of the images, or most tokens of a text; None for the recipe's.

        Returns
        -------
        batch : tensor of shape (n, size, size, 3), uint8
            Of texts (n, longest), int64, with -1 where there is no token.
        """
        return self._any_network().prepare(samples, size)

    def forward(
        self, batch: torch.Tensor, layers: Sequence[int] = (-1,), *, norm: str = "final"
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Run one batch, on the device where it lies.

        Parameters
        ----------
        batch : tensor
            From `prepare`.
        layers : sequence of int, default=(-1,)
        norm : {"final", "all", "none"}, default="final"
            Which layers pass the network's final norm: the last alone, every one, or none.

        Returns
        -------
        tokens : list of tensors of shape (n, n_tokens, n_features)
            One per layer.
        mask : tensor of shape (n, n_tokens), bool, or None
            True for real tokens; None where all are, as in an image.
        """
        network = self.network(batch.device)
        return network.forward(batch, layers, norm), network.mask(batch)


def _rebuild(spec: str, recipe: Recipe | None) -> Backbone:
    return Backbone(spec, recipe=recipe)


class _ModuleBackbone(Backbone):
    """A backbone that is known by its content and carries its module in pickles."""

    def __init__(self, module: nn.Module, recipe: Recipe, options: dict):
        network = _module_opener(recipe)(module, recipe, **options)
        spec = f"module:{network.fingerprint}"
        with _loading:
            # Every unpickled copy in a process shares the first one's weights.
            network = _loaded.setdefault((spec, recipe, "cpu", False), network)
        for name, value in {
            "spec": spec,
            "_recipe": recipe,
            "_module": network.module,
            "_options": options,
        }.items():
            object.__setattr__(self, name, value)

    def _open(self) -> Network:
        opener = _module_opener(self._recipe)
        return opener(copy.deepcopy(self._module), self._recipe, **self._options)

    def __reduce__(self):
        return _ModuleBackbone, (self._module, self._recipe, self._options)
