# SPDX-License-Identifier: BSD-3-Clause
"""Backbones from timm: ``timm:vit_small_patch14_dinov2.lvd142m``, a hub name, or a local directory.

timm finds and reads the files and checks that they fill the model (it is strict as long as the
classifier is asked for, so that is cut off afterwards); which modules are layers is what its
`feature_info` says, the tokens are those of `forward_features`.
"""

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from skpool.backbones._image_network import ImageNetwork
from skpool.backbones._recipe import ImageRecipe
from skpool.backbones._recipes import usual_pooling
from skpool.backbones._source import explained, hub_revision, near, split_options
from skpool.exceptions import BackboneError
from skpool.utils import import_optional

__all__ = ["global_pool", "open_timm", "timm_facts"]

# Options that let a network take images of another size; the first that it knows is used. At the
# size that it was trained with, they change nothing.
_SIZE_OPTIONS: tuple[dict[str, bool], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False},
)
# Classes whose `norm` is what turns the output of the last block into that of `forward_features`.
_NORMED = {
    "Beit",
    "Eva",
    "MlpMixer",
    "SwinTransformer",
    "SwinTransformerV2",
    "VisionTransformer",
    "VisionTransformerDistilled",
    "VisionTransformerRelPos",
}
# Hiera's blocks see the patches in another order than row by row, CrossViT's two sets of them.
_WITHOUT_LAYERS = {"CrossVit", "Hiera"}
_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")


def _architecture(timm: ModuleType, name: str) -> str:
    """The name as timm wants it: a registered one with its tag, or with the prefix of a source."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return name
    if Path(name).is_dir():
        return f"local-dir:{name}"
    if "/" in name:
        return f"hf-hub:{name}"
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        raise BackboneError(
            f"'timm:{name}' names no architecture of timm {timm.__version__}; "
            f"{near(model, timm.list_models())}"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{model}.*")]
    if tag and tag not in tags:
        raise BackboneError(
            f"'timm:{name}' names no weights of {model!r} in timm {timm.__version__}; it has "
            f"{', '.join(map(repr, tags)) or 'none'}."
        )
    return name


def _create(timm: ModuleType, name: str, weights: str | None) -> nn.Module:
    """Build the model and fill it, with the classifier that its files have."""
    options: dict[str, Any] = {"pretrained": True}
    if weights is not None:
        file = {"file": weights, "custom_load": weights.endswith((".npz", ".npy"))}
        # Only a file may answer: no download in place of one that is not there.
        options["pretrained_cfg_overlay"] = {**file, "hf_hub_id": None, "url": None}
    for extra in _SIZE_OPTIONS:
        try:
            return timm.create_model(name, **options, **extra)
        except TypeError as error:
            if next(iter(extra)) not in str(error):
                raise
    return timm.create_model(name, **options)


def _recipe(config: dict[str, Any], spec: str) -> ImageRecipe:
    """The preprocessing that timm's own evaluation uses for these weights."""
    channels, height, width = config["input_size"]
    mode = config.get("crop_mode") or "center"
    if channels != 3 or height != width or mode not in ("center", "squash"):
        raise BackboneError(
            f"'{spec}' wants images of shape {config['input_size']} with crop_mode={mode!r}, and "
            "only squares of 3 channels that are cropped or squashed are understood; pass "
            "recipe=ImageRecipe(...)."
        )
    # timm rounds the side before the crop down.
    before = math.floor(height / config["crop_pct"])
    return ImageRecipe(
        input_size=height,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_pct=min(1.0, height / before),
        interpolation=config["interpolation"],
        fit="squash" if mode == "squash" else "crop",
        crop_rounding="even",
    )


def _layers(module: nn.Module) -> tuple[list[nn.Module], set[int]]:
    """The modules that timm calls features, and their strides."""
    info = getattr(module, "feature_info", None)
    if not isinstance(info, list) or type(module).__name__ in _WITHOUT_LAYERS:
        return [], set()
    try:
        blocks = [module.get_submodule(entry["module"]) for entry in info]
    except (AttributeError, KeyError, TypeError):
        return [], set()
    return blocks, {entry["reduction"] for entry in info}


def _final_norm(module: nn.Module) -> tuple[nn.Module | None, bool]:
    """The norm after the last block, and whether `forward_features` applies it.

    Where the mean of the patches is classified, timm moves the norm behind the mean.
    """
    if type(module).__name__ not in _NORMED:
        return None, True
    for name, applied in (("norm", True), ("fc_norm", False)):
        norm = getattr(module, name, None)
        if norm is not None and not isinstance(norm, nn.Identity):
            return norm, applied
    return None, True


def global_pool(module: nn.Module) -> str | None:
    """The pooling of a timm model's own classifier: a name, or in one of two modules."""
    pool = getattr(module, "global_pool", None)
    if pool is None:
        pool = getattr(getattr(module, "head", None), "global_pool", None)
    return getattr(pool, "pool_type", pool) if not isinstance(pool, str) else pool


def timm_facts(module: nn.Module) -> dict[str, Any]:
    """Describe the tokens of a timm model to `ImageNetwork`.

    Parameters
    ----------
    module : torch.nn.Module
        Any model of timm.

    Returns
    -------
    facts : dict
        Keyword arguments of `ImageNetwork`.
    """
    blocks, strides = _layers(module)
    norm, applied = _final_norm(module)
    last_width = module.feature_info[-1]["num_chs"] if blocks else None
    maps = "channels_last" if getattr(module, "output_fmt", None) == "NHWC" else "channels_first"
    # Layers of one stride that know of prefix tokens are tokens, with the patches after the prefix.
    tokens = len(strides) == 1 and hasattr(module, "num_prefix_tokens")
    return {
        "blocks": blocks,
        "final_norm": norm,
        "ends_normed": applied,
        "same_width": len(strides) == 1,
        "own_layer": bool(blocks) and last_width != module.num_features,
        "patch_size": strides.pop() if tokens else None,
        "has_cls": getattr(module, "cls_token", None) is not None,
        "maps": maps,
    }


def _settings(name: str, architecture: str) -> str:
    """What beside the weights decides the tokens: the architecture and its saved arguments."""
    arguments: dict[str, Any] = {}
    if name.startswith("local-dir:"):
        directory = Path(name.removeprefix("local-dir:"))
        arguments = json.loads((directory / "config.json").read_text()).get("model_args", {})
    elif name.startswith("hf-hub:"):
        from timm.models import load_model_config_from_hf

        arguments = load_model_config_from_hf(name.removeprefix("hf-hub:"))[2]
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
    return json.dumps([architecture, arguments], sort_keys=True, default=str)


def _forward_features(module: nn.Module, images: torch.Tensor) -> object:
    return module.forward_features(images)


def open_timm(name: str, recipe: ImageRecipe | None) -> ImageNetwork:
    """Load a model of timm.

    Parameters
    ----------
    name : str
        Name of an architecture with or without the tag of its weights, ``hf-hub:<name>[@revision]``
        or a name with a slash, ``local-dir:<directory>`` or a directory; with
        ``?weights=<file>`` after an architecture, weights of one's own.
    recipe : ImageRecipe or None
        Preprocessing; None takes timm's for these weights.

    Returns
    -------
    network : ImageNetwork

    Raises
    ------
    BackboneError
        The name is unknown, or the weights cannot be read or do not fill the model.
    """
    spec = f"timm:{name}"
    timm = import_optional("timm", extra="timm", purpose=f"The backbone '{spec}'")
    name, options = split_options("timm", name, ["weights"])
    name = _architecture(timm, name)
    weights = options.get("weights")
    if weights is not None and not Path(weights).is_file():
        raise BackboneError(f"'{spec}' names no file: {weights!r} does not exist; check the path.")
    remedy = (
        "check the name and that the weights are of this architecture; without a network, give a "
        "local directory or ?weights=<file>."
    )
    with explained(spec, remedy):
        module = _create(timm, name, weights)
    config = module.pretrained_cfg
    if getattr(module, "num_classes", None) != config.get("num_classes"):
        # With another classifier timm also forgives absent weights of the trunk.
        raise BackboneError(
            f"'{spec}' declares {config.get('num_classes')} classes for its weights and "
            f"{getattr(module, 'num_classes', None)} for the model; correct its config.json."
        )
    pooling = usual_pooling(config["architecture"], global_pool(module))
    recipe = recipe or _recipe(config, spec)
    facts = timm_facts(module)
    if hasattr(module, "reset_classifier"):
        module.reset_classifier(0)
    return ImageNetwork(
        module.float(),
        recipe,
        call=_forward_features,
        pooling=pooling,
        revision=hub_revision(config.get("hf_hub_id") if not weights else None, _HUB_FILES),
        settings=_settings(name, config["architecture"]),
        only_saved=True,
        **facts,
    )
