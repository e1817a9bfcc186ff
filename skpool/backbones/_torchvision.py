# SPDX-License-Identifier: BSD-3-Clause
"""Backbones from torchvision: ``torchvision:resnet50``.

torchvision's models end in a classifier. For each family a few lines say what is left without it
and which modules are layers. The weights are read here and not by torchvision's builders, which
unpickle what lies in torch's download cache.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from skpool.backbones._image_network import ImageNetwork
from skpool.backbones._recipe import ImageRecipe
from skpool.backbones._source import explained, fill, near, read_weights, split_options
from skpool.exceptions import BackboneError
from skpool.utils import import_optional

__all__ = ["open_torchvision"]

# DenseNet's files are older than the rule that names of modules hold no dots.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


class _Family(NamedTuple):
    """A family of torchvision's models."""

    heads: tuple[str, ...]
    call: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    layers: Callable[[nn.Module], list[nn.Module]]
    facts: Callable[[nn.Module], dict[str, Any]] = lambda module: {}
    pooling: str = "mean"


def _in_turn(*names: str) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """Call the children of these names one after the other."""

    def call(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
        for name in names:
            images = module.get_submodule(name)(images)
        return images

    return call


def _children(*names: str) -> Callable[[nn.Module], list[nn.Module]]:
    return lambda module: [module.get_submodule(name) for name in names]


def _stages(module: nn.Module) -> list[nn.Module]:
    """All but the stem of `features`."""
    return list(module.features)[1:]


def _every_other_stage(module: nn.Module) -> list[nn.Module]:
    """The stages of `features`, without the downsampling between them."""
    return list(module.features)[1::2]


def _poolings(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.features if isinstance(child, nn.MaxPool2d)]


def _densenet(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return functional.relu(module.features(images))


def _vit(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    patches = module.conv_proj(images).flatten(2).transpose(1, 2)
    cls = module.class_token.expand(len(images), -1, -1)
    return module.encoder(torch.cat([cls, patches], dim=1))


def _vit_facts(module: nn.Module) -> dict[str, Any]:
    return {
        "final_norm": module.encoder.ln,
        "patch_size": module.patch_size,
        "n_prefix_tokens": 1,
        "fixed_size": module.image_size,
    }


def _swin_facts(module: nn.Module) -> dict[str, Any]:
    return {"final_norm": module.norm, "same_width": False, "maps": "channels_last"}


_FEATURES = _in_turn("features")
_RESNET = ("layer1", "layer2", "layer3", "layer4")
_SHUFFLENET = ("stage2", "stage3", "stage4", "conv5")

# By the class of the model.
_FAMILIES: dict[str, _Family] = {
    "AlexNet": _Family(("classifier.",), _FEATURES, _poolings),
    "ConvNeXt": _Family(("classifier.",), _FEATURES, _every_other_stage),
    "DenseNet": _Family(
        ("classifier.",),
        _densenet,
        _children(*(f"features.denseblock{k}" for k in (1, 2, 3, 4))),
        # Norm and ReLU follow the last block.
        lambda module: {"own_layer": True},
    ),
    "EfficientNet": _Family(("classifier.",), _FEATURES, _stages),
    "MobileNetV2": _Family(("classifier.",), _FEATURES, _stages),
    "MobileNetV3": _Family(("classifier.",), _FEATURES, _stages),
    "RegNet": _Family(
        ("fc.",), _in_turn("stem", "trunk_output"), lambda module: list(module.trunk_output)
    ),
    "ResNet": _Family(
        ("fc.",), _in_turn("conv1", "bn1", "relu", "maxpool", *_RESNET), _children(*_RESNET)
    ),
    "ShuffleNetV2": _Family(
        ("fc.",), _in_turn("conv1", "maxpool", *_SHUFFLENET), _children(*_SHUFFLENET)
    ),
    "SwinTransformer": _Family(
        ("head.",), _in_turn("features", "norm"), _every_other_stage, _swin_facts
    ),
    "VGG": _Family(("classifier.",), _FEATURES, _poolings),
    "VisionTransformer": _Family(
        ("heads.",), _vit, lambda module: list(module.encoder.layers), _vit_facts, "cls"
    ),
}


def _choose(torchvision: ModuleType, name: str, wanted: str | None) -> tuple[Any, Path | None]:
    """The entry of torchvision's table of weights, and the file where one was named.

    A file that bears the name of one of torchvision's is taken to be that one, which tells its
    preprocessing.
    """
    table = torchvision.models.get_model_weights(name)
    if wanted is None:
        return table.DEFAULT, None
    if wanted in table.__members__:
        return table[wanted], None
    path = Path(wanted)
    if not path.is_file():
        raise BackboneError(
            f"'torchvision:{name}?weights={wanted}' names neither a file nor weights of "
            f"torchvision, which has {sorted(table.__members__)} for this model."
        )
    known = [entry for entry in table if entry.url.rsplit("/", 1)[-1] == path.name]
    return (known[0] if known else None), path


def _read(entry: Any, path: Path | None) -> dict[str, torch.Tensor]:
    if path is not None:
        weights = read_weights(path)
    else:
        weights = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    return {_OLD_DENSENET.sub(r"\1\2.", key): value for key, value in weights.items()}


def _recipe(entry: Any, spec: str) -> ImageRecipe:
    if entry is None:
        raise BackboneError(
            f"'{spec}' names a file that is not one of torchvision's own, so its preprocessing is "
            "unknown; pass it: recipe=ImageRecipe(input_size=..., mean=..., std=...)."
        )
    preset = entry.transforms()
    return ImageRecipe(
        input_size=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        crop_pct=preset.crop_size[0] / preset.resize_size[0],
        interpolation=preset.interpolation.value,
        crop_rounding="even",
    )


def _build(torchvision: ModuleType, name: str, **options: Any) -> nn.Module:
    """The model without memory for its weights, which saves drawing them first."""
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options)


def _family(torchvision: ModuleType, name: str) -> _Family:
    models = torchvision.models.list_models(module=torchvision.models)
    if name not in models:
        raise BackboneError(
            f"'torchvision:{name}' names no model of torchvision {torchvision.__version__}; "
            f"{near(name, models)}"
        )
    kind = type(_build(torchvision, name)).__name__
    if kind not in _FAMILIES:
        raise BackboneError(
            f"'torchvision:{name}' is a {kind}, whose layers are not known here (known: "
            f"{', '.join(_FAMILIES)}); build it yourself and use Backbone.from_module."
        )
    return _FAMILIES[kind]


def _trunk(
    torchvision: ModuleType, name: str, family: _Family, options: dict[str, Any]
) -> nn.Module:
    """The model without its classifier; all that it holds is still to be filled."""
    module = _build(torchvision, name, **options)
    for head in family.heads:
        setattr(module, head.rstrip("."), nn.Identity())
    module.to_empty(device="cpu")
    for key, buffer in module.named_buffers():
        if key.endswith("num_batches_tracked"):
            buffer.zero_()
    return module


def open_torchvision(name: str, recipe: ImageRecipe | None) -> ImageNetwork:
    """Load a model of torchvision without its classifier.

    Parameters
    ----------
    name : str
        Name of a model, with torchvision's default weights; with ``?weights=IMAGENET1K_V1`` others
        of torchvision's, with ``?weights=<file>`` a state dict of one's own.
    recipe : ImageRecipe or None
        Preprocessing; None takes torchvision's for these weights.

    Returns
    -------
    network : ImageNetwork

    Raises
    ------
    BackboneError
        The name is unknown, or the weights cannot be read or do not fill the model.
    """
    spec = f"torchvision:{name}"
    purpose = f"The backbone '{spec}'"
    torchvision = import_optional("torchvision", extra="torchvision", purpose=purpose)
    name, options = split_options("torchvision", name, ["weights"])
    family = _family(torchvision, name)
    entry, path = _choose(torchvision, name, options.get("weights"))
    recipe = recipe or _recipe(entry, spec)
    # A transformer's positions are as many as its training images have patches.
    size = entry.meta["min_size"][0] if entry is not None else recipe.input_size
    sized = {"image_size": size} if family is _FAMILIES["VisionTransformer"] else {}
    with explained(spec, "check the file; without a network, give ?weights=<file>."):
        weights = _read(entry, path)
        module = _trunk(torchvision, name, family, sized)
    fill(module, weights, spec=spec, heads=family.heads)
    return ImageNetwork(
        module.float(),
        recipe,
        blocks=family.layers(module),
        call=family.call,
        pooling=family.pooling,
        revision=entry.name if entry is not None else None,
        settings=name,
        only_saved=True,
        **family.facts(module),
    )
