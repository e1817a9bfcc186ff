# SPDX-License-Identifier: BSD-3-Clause
"""Backbones from open_clip: ``clip:ViT-B-32/laion2b_s34b_b79k``, its image tower alone.

open_clip's tower returns one projected embedding. Here its tokens are taken before pooling and
projection, after the last norm where the tower applies it to tokens; ``?output=embedding`` keeps
the embedding as the last layer.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from skpool.backbones._image_network import ImageNetwork
from skpool.backbones._recipe import ImageRecipe
from skpool.backbones._recipes import usual_pooling
from skpool.backbones._source import explained, hub_revision, near, split_options
from skpool.backbones._timm import global_pool, timm_facts
from skpool.exceptions import BackboneError
from skpool.utils import import_optional

__all__ = ["open_clip_tower"]

_PREFIXES = ("hf-hub:", "local-dir:")
_OUTPUTS = ("tokens", "embedding")
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def _parts(library: ModuleType, name: str, file: str | None) -> tuple[str, str | None]:
    """The model, and the tag or file of its weights."""
    if name.startswith(_PREFIXES):
        return name, None
    if Path(name).is_dir():
        return f"local-dir:{name}", None
    model, _, weights = name.partition("/")
    if model not in library.list_models():
        raise BackboneError(
            f"'clip:{name}' names no model of open_clip {library.__version__}; "
            f"{near(model, library.list_models())}"
        )
    weights = file or weights
    tags = library.list_pretrained_tags_by_model(model)
    if not library.is_pretrained_cfg(model, weights) and not Path(weights).is_file():
        raise BackboneError(
            f"'clip:{name}' names neither a file nor weights of {model!r}; write "
            f"'clip:{model}/<one of {tags}>' or 'clip:{model}?weights=<file>'."
        )
    return model, weights


def _activation(library: ModuleType, model: str, weights: str | None) -> dict[str, bool]:
    """Build the activation that the weights were trained with, which open_clip only warns of.

    OpenAI's weights were trained with a fast approximation of GELU that the plain names of models
    do not build; its features with the other one are wrong, and look right.
    """
    if weights is None or not library.is_pretrained_cfg(model, weights):
        return {}
    built = library.get_model_config(model).get("quick_gelu", False)
    trained = library.get_pretrained_cfg(model, weights).get("quick_gelu", False)
    if built and not trained:
        raise BackboneError(
            f"'clip:{model}/{weights}': these weights were not trained with QuickGELU; write "
            f"'clip:{model.removesuffix('-quickgelu')}/{weights}'."
        )
    return {"force_quick_gelu": True} if trained else {}


def _sides(config: dict[str, Any]) -> tuple[int, int]:
    size = config["size"]
    return (size, size) if isinstance(size, int) else tuple(size)


def _recipe(config: dict[str, Any], spec: str) -> ImageRecipe:
    height, width = _sides(config)
    mode = config["resize_mode"]
    if height != width or mode not in ("shortest", "squash"):
        raise BackboneError(
            f"'{spec}' wants images of {height} x {width} with resize_mode={mode!r}, and only "
            "squares that are cropped or squashed are understood; pass recipe=ImageRecipe(...)."
        )
    return ImageRecipe(
        input_size=height,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_pct=1.0,
        # As open_clip does: anything but bilinear is bicubic.
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        fit="squash" if mode == "squash" else "crop",
        crop_rounding="even",
    )


class _Caught(Exception):
    """Ends a pass whose tokens were caught."""


def _output_of(path: str) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """Run a tower up to one of its submodules, whose output is wanted."""

    def call(tower: nn.Module, images: torch.Tensor) -> torch.Tensor:
        caught = []

        def catch(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            caught.append(output)
            raise _Caught

        handle = tower.get_submodule(path).register_forward_hook(catch)
        try:
            tower(images)
        except _Caught:
            pass
        finally:
            handle.remove()
        return caught[0]

    return call


def _transformer(tower: nn.Module) -> dict[str, Any]:
    if not tower.transformer.batch_first:
        raise BackboneError("This open_clip is too old: tokens stand first; install 3.0 or later.")
    # An attention pool, or a norm after the pooling, leaves tokens without a norm.
    normed = tower.attn_pool is None and not tower.final_ln_after_pool
    return {
        "blocks": list(tower.transformer.resblocks),
        "final_norm": tower.ln_post if tower.attn_pool is None else None,
        "ends_normed": normed,
        "patch_size": tower.patch_size[0],
        "n_prefix_tokens": 1,
        "fixed_size": tower.image_size[0],
        "call": _output_of("ln_post" if normed else "transformer"),
        "pooling": {"tok": "cls", "avg": "mean"}.get(tower.pool_type) if normed else None,
    }


def _describe(tower: nn.Module) -> dict[str, Any]:
    """The layers and tokens of one of open_clip's three kinds of image towers."""
    kind = type(tower).__name__
    if kind == "VisionTransformer":
        return _transformer(tower)
    if kind == "ModifiedResNet":
        blocks = [tower.layer1, tower.layer2, tower.layer3, tower.layer4]
        return {"blocks": blocks, "call": _output_of("layer4")}
    if kind == "TimmModel":
        return {
            **timm_facts(tower.trunk),
            "call": lambda module, images: module.trunk.forward_features(images),
            "pooling": usual_pooling("", global_pool(tower.trunk)),
        }
    raise BackboneError(f"open_clip's image tower {kind} is not known; use Backbone.from_module.")


def _strip(tower: nn.Module) -> None:
    """Take off what only the embedding needs, so that it does not tell two backbones apart."""
    if hasattr(tower, "proj"):
        tower.proj = None
    for name in ("attnpool", "head"):
        if hasattr(tower, name):
            setattr(tower, name, nn.Identity())


def _revision(library: ModuleType, model: str, weights: str | None) -> str | None:
    """The commit of weights from the hub."""
    if model.startswith("hf-hub:"):
        return hub_revision(model.removeprefix("hf-hub:"), _HUB_FILES)
    place = library.get_pretrained_cfg(model, weights or "").get("hf_hub", "")
    repository, _, file = place.rpartition("/")
    return hub_revision(repository, [file] if file else _HUB_FILES)


def _embedding(tower: nn.Module, images: torch.Tensor) -> torch.Tensor:
    output = tower(images)
    return output[0] if isinstance(output, tuple) else output


def open_clip_tower(name: str, recipe: ImageRecipe | None) -> ImageNetwork:
    """Load the image tower of a model of open_clip.

    Parameters
    ----------
    name : str
        ``<model>/<tag of its weights>`` or ``<model>?weights=<file>``; ``hf-hub:<name>``,
        ``local-dir:<directory>`` or a directory; ``?output=embedding`` makes the projected
        embedding the last layer.
    recipe : ImageRecipe or None
        Preprocessing; None takes open_clip's for these weights.

    Returns
    -------
    network : ImageNetwork

    Raises
    ------
    BackboneError
        The name is unknown, or the weights cannot be read or do not fill the model.
    """
    spec = f"clip:{name}"
    library = import_optional("open_clip", extra="clip", purpose=f"The backbone '{spec}'")
    name, options = split_options("clip", name, ["weights", "output"])
    output = options.get("output", "tokens")
    if output not in _OUTPUTS:
        raise BackboneError(f"'{spec}': output={output!r} is unknown; choose one of {_OUTPUTS}.")
    model, weights = _parts(library, name, options.get("weights"))
    remedy = (
        "check the name and that the weights are of this model; without a network, give "
        "?weights=<file> or a local directory."
    )
    with explained(spec, remedy):
        activation = _activation(library, model, weights)
        # The tower for texts is built and dropped: open_clip checks the weights of both together.
        tower = library.create_model(
            model,
            weights,
            precision="fp32",
            weights_only=True,
            require_pretrained=True,
            **activation,
        ).visual
        config = library.get_model_config(model)
    facts = _describe(tower)
    if output == "embedding":
        # The size of an attention pool's positions is fixed too.
        side = _sides(tower.preprocess_cfg)[0]
        facts |= {"call": _embedding, "own_layer": True, "fixed_size": side}
    else:
        _strip(tower)
    decides = [config["vision_cfg"], config.get("quick_gelu", False) or bool(activation), output]
    return ImageNetwork(
        tower.float(),
        recipe or _recipe(tower.preprocess_cfg, spec),
        revision=_revision(library, model, weights),
        settings=json.dumps(decides, sort_keys=True, default=str),
        only_saved=True,
        **facts,
    )
