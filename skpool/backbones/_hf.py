# SPDX-License-Identifier: BSD-3-Clause
"""Backbones from Hugging Face: ``hf:facebook/dinov2-small`` or ``hf:a/local/directory``.

transformers finds and reads the files (safetensors, or torch files read with weights_only); the
preprocessing is our own, from the numbers in ``preprocessor_config.json``, because it must run
without torchvision.
"""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from skpool.backbones._image_network import ImageNetwork
from skpool.backbones._recipe import ImageRecipe
from skpool.exceptions import BackboneError
from skpool.utils import import_optional

__all__ = ["open_hf"]

_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@contextmanager
def _quiet(transformers) -> Iterator[None]:
    """Keep transformers from drawing a progress bar and a report at each load."""
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _load_module(transformers, name: str) -> nn.Module:
    if Path(name).exists() and not Path(name, "config.json").is_file():
        raise BackboneError(
            f"'hf:{name}' is not a model directory: it holds no config.json; give a directory "
            "written by save_pretrained, or a name on the hub."
        )
    try:
        with _quiet(transformers):
            module, info = transformers.AutoModel.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BackboneError(
            f"'hf:{name}' could not be loaded ({reason}); check the name, or download it once "
            "where there is a network and give the local directory."
        ) from error
    # A pooler is never used here; anything else that is absent would be random numbers.
    missing = [key for key in info["missing_keys"] if "pooler" not in key]
    if missing or info["mismatched_keys"]:
        raise BackboneError(
            f"The weights of 'hf:{name}' do not fill the model (missing or of another shape: "
            f"{sorted(map(str, [*missing, *info['mismatched_keys']]))[:5]}); give a complete model."
        )
    # Models of pictures and text keep the part that sees pictures.
    return getattr(module, "vision_model", module)


def _read_recipe(transformers, name: str) -> ImageRecipe | None:
    path = transformers.utils.cached_file(
        name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False
    )
    if path is None:
        return None
    config = json.loads(Path(path).read_text())
    resize, crop = config.get("size", 224), config.get("crop_size")
    if isinstance(crop, dict):
        crop = crop.get("height")
    crop = crop if config.get("do_center_crop", crop is not None) else None
    edge = resize.get("shortest_edge") if isinstance(resize, dict) else resize
    side = edge or resize.get("height")
    if not isinstance(side, int):
        raise BackboneError(
            f"The preprocessor_config.json of 'hf:{name}' gives size={resize!r}, which is not "
            "understood; pass recipe=ImageRecipe(...)."
        )
    squash = crop is None and isinstance(resize, dict) and "shortest_edge" not in resize
    return ImageRecipe(
        input_size=crop or side,
        mean=tuple(config.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(config.get("image_std", (0.5, 0.5, 0.5))),
        crop_pct=min(1.0, (crop or side) / side),
        interpolation=_INTERPOLATION.get(config.get("resample", 2), "bilinear"),
        fit="squash" if squash else "crop",
    )


def _trunk(module: nn.Module) -> list[nn.Module]:
    """The outermost list of blocks, which every vision model of transformers has."""
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child):
            return list(child)
    return []


def _patch_size(config: object) -> int | None:
    size = getattr(config, "patch_size", None)
    hierarchical = hasattr(config, "depths")
    return size if isinstance(size, int) and not hierarchical else None


def _settings(config: object) -> str:
    """The configuration without what names files, versions and labels."""
    values = config.to_diff_dict()
    for name in ("transformers_version", "_name_or_path", "dtype", "architectures", "id2label"):
        values.pop(name, None)
    values.pop("label2id", None)
    return json.dumps(values, sort_keys=True, default=str)


def open_hf(name: str, recipe: ImageRecipe | None) -> ImageNetwork:
    """Load a vision model of transformers.

    Parameters
    ----------
    name : str
        Name on the hub, or a local directory.
    recipe : ImageRecipe or None
        Preprocessing; None reads the model's own ``preprocessor_config.json``.

    Returns
    -------
    network : ImageNetwork

    Raises
    ------
    BackboneError
        The model cannot be loaded, is incomplete, or says nothing of its preprocessing.
    """
    transformers = import_optional("transformers", extra="hf", purpose=f"The backbone 'hf:{name}'")
    module = _load_module(transformers, name)
    recipe = recipe or _read_recipe(transformers, name)
    if recipe is None:
        raise BackboneError(
            f"'hf:{name}' has no preprocessor_config.json, so its preprocessing is unknown; pass "
            f"it: Backbone('hf:{name}', recipe=ImageRecipe(input_size=..., mean=..., std=...))."
        )
    interpolates = "interpolate_pos_encoding" in inspect.signature(module.forward).parameters
    trained_size = getattr(module.config, "image_size", None)

    def call(model: nn.Module, images: torch.Tensor) -> object:
        if interpolates and images.shape[-1] != trained_size:
            return model(images, interpolate_pos_encoding=True)
        return model(images)

    return ImageNetwork(
        module,
        recipe,
        blocks=_trunk(module),
        patch_size=_patch_size(module.config),
        call=call,
        revision=getattr(module.config, "_commit_hash", None),
        settings=_settings(module.config),
    )
