# SPDX-License-Identifier: BSD-3-Clause
"""Backbones from Hugging Face: ``hf:facebook/dinov2-small`` or ``hf:a/local/directory``.

transformers finds and reads the files (safetensors, or torch files read with weights_only); the
preprocessing is our own, from the numbers in ``preprocessor_config.json``, because it must run
without torchvision.
"""

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from skpool.backbones._image_network import ImageNetwork
from skpool.backbones._recipe import ImageRecipe
from skpool.backbones._recipes import FamilyRecipe, family_of
from skpool.backbones._source import explained
from skpool.exceptions import BackboneError, MissingDependencyError
from skpool.utils import import_optional

__all__ = ["open_hf"]

_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_BLOCK_LISTS = {"block", "blocks", "layer", "layers", "stages"}


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
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


class _NoPooler(nn.Module):
    """Stands where a model has a pooler, and pools nothing."""

    def forward(self, *args: object, **options: object) -> None:
        return None


def _split_revision(name: str) -> tuple[str, str | None]:
    """A hub name and the commit or branch after its "@"; a path is left whole."""
    if Path(name).exists() or "@" not in name:
        return name, None
    name, _, revision = name.rpartition("@")
    return name, revision


def _load_module(transformers: ModuleType, name: str, revision: str | None) -> nn.Module:
    if Path(name).exists() and not Path(name, "config.json").is_file():
        raise BackboneError(
            f"'hf:{name}' is not a model directory: it holds no config.json; give a directory "
            "written by save_pretrained, or a name on the hub."
        )
    remedy = (
        "check the name, or download it once where there is a network and give the local directory."
    )
    with explained(f"hf:{name}", remedy), _quiet(transformers), _without_broken_torchvision():
        module, info = transformers.AutoModel.from_pretrained(
            name,
            revision=revision,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
    # A pooler is never used here; anything else that is absent would be random numbers.
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing or info["mismatched_keys"]:
        raise BackboneError(
            f"The weights of 'hf:{name}' do not fill the model (missing or of another shape: "
            f"{sorted(map(str, [*missing, *info['mismatched_keys']]))[:5]}); give a complete model."
        )
    pooler = getattr(module, "pooler", None)
    if pooler is not None and next(pooler.parameters(), None) is not None:
        # Where the files have none it is random, and would give every process its own fingerprint.
        module.pooler = _NoPooler()
    # Models of pictures and text keep the part that sees pictures.
    return getattr(module, "vision_model", module)


@contextmanager
def _without_broken_torchvision() -> Iterator[None]:
    """Say what is wrong where an installed torchvision keeps transformers from its own models."""
    try:
        yield
    except (ImportError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and "torchvision" not in str(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise MissingDependencyError(
            f"transformers cannot import its image models, because the installed torchvision does "
            f"not fit the installed torch {torch.__version__} ({cause}); install torchvision from "
            "the index that torch came from, or uninstall it: skpool does not need it here."
        ) from error


def _sizes(config: dict[str, Any]) -> tuple[int | None, int | None, bool]:
    """Side before the crop, side after it, and whether both sides are resized alike."""
    resize, crop = config.get("size", 224), config.get("crop_size")
    if isinstance(crop, dict):
        crop = crop.get("height")
    crop = crop if config.get("do_center_crop", crop is not None) else None
    edge = resize.get("shortest_edge") if isinstance(resize, dict) else resize
    if "crop_pct" in config and crop is None and isinstance(edge, int):
        # As ConvNextImageProcessor does: small images are cropped, large ones squashed.
        return (int(edge / config["crop_pct"]), edge, False) if edge < 384 else (edge, edge, True)
    squash = crop is None and isinstance(resize, dict) and "shortest_edge" not in resize
    side = edge or resize.get("height")
    return side, crop or side, squash


def _read_recipe(transformers: ModuleType, name: str, revision: str | None) -> ImageRecipe | None:
    path = transformers.utils.cached_file(
        name,
        "preprocessor_config.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
    )
    if path is None:
        return None
    config = json.loads(Path(path).read_text())
    before, side, squash = _sizes(config)
    if not isinstance(side, int) or not isinstance(before, int):
        raise BackboneError(
            f"The preprocessor_config.json of 'hf:{name}' gives size={config.get('size')!r}, which "
            "is not understood; pass recipe=ImageRecipe(...)."
        )
    normalize = config.get("do_normalize", True)
    return ImageRecipe(
        input_size=side,
        mean=tuple(config.get("image_mean", (0.5, 0.5, 0.5))) if normalize else (0.0,) * 3,
        std=tuple(config.get("image_std", (0.5, 0.5, 0.5))) if normalize else (1.0,) * 3,
        crop_pct=min(1.0, side / before),
        interpolation=_INTERPOLATION.get(config.get("resample", 2), "bilinear"),
        fit="squash" if squash else "crop",
    )


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost list of blocks, under one of the names that transformers gives it."""
    for name, child in module.named_modules():
        if name.rpartition(".")[2] in _BLOCK_LISTS and isinstance(child, nn.ModuleList):
            # A list of lists is no list of blocks.
            return [] if any(isinstance(block, nn.ModuleList) for block in child) else list(child)
    return []


def _family_facts(module: nn.Module, family: FamilyRecipe) -> dict[str, Any]:
    # BEiT has its say in the configuration.
    reads_cls = getattr(module.config, "use_mean_pooling", None) is False
    norm = getattr(module, family.final_norm, None) if family.final_norm else None
    return {
        "final_norm": None if isinstance(norm, nn.Identity) else norm,
        "ends_normed": family.ends_normed,
        "same_width": family.same_width,
        "own_layer": family.head_convolution,
        "has_cls": family.has_cls,
        "pooling": "cls" if reads_cls else family.pooling,
    }


def _patch_size(config: object) -> int | None:
    size = getattr(config, "patch_size", None)
    hierarchical = hasattr(config, "depths")
    return size if isinstance(size, int) and not hierarchical else None


def _settings(config: object) -> str:
    """The configuration without what names files, versions and labels."""
    values = config.to_diff_dict()
    unimportant = {"transformers_version", "dtype", "architectures", "id2label", "label2id"}
    kept = {k: v for k, v in values.items() if k not in unimportant and not k.startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str)


def _caller(module: nn.Module) -> Callable[[nn.Module, torch.Tensor], object]:
    """How the module is called with images, whatever their size."""
    config = module.config
    trained_size = getattr(config, "image_size", None)
    accepted = inspect.signature(module.forward).parameters
    if config.model_type == "vit_mae":
        # For pretraining it hides and shuffles patches; in rising order all stay where they are.
        config.mask_ratio = 0.0

    def call(model: nn.Module, images: torch.Tensor) -> object:
        options: dict[str, Any] = {}
        if "interpolate_pos_encoding" in accepted and images.shape[-1] != trained_size:
            options["interpolate_pos_encoding"] = True
        if config.model_type == "vit_mae":
            n_patches = (images.shape[-1] // config.patch_size) ** 2
            order = torch.arange(n_patches, dtype=torch.float32, device=images.device)
            options["noise"] = order.expand(len(images), -1)
        return model(images, **options)

    return call


def open_hf(name: str, recipe: ImageRecipe | None) -> ImageNetwork:
    """Load a vision model of transformers.

    Parameters
    ----------
    name : str
        Name on the hub, with "@" and a commit or branch where one is wanted, or a local directory.
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
    path, revision = _split_revision(name)
    module = _load_module(transformers, path, revision)
    config = module.config
    family = family_of(config.model_type)
    recipe = (
        recipe
        or _read_recipe(transformers, path, revision)
        or family.recipe(getattr(config, "image_size", None))
    )
    if recipe is None:
        raise BackboneError(
            f"'hf:{name}' has no preprocessor_config.json, so its preprocessing is unknown; pass "
            f"it: Backbone('hf:{name}', recipe=ImageRecipe(input_size=..., mean=..., std=...))."
        )
    # Before the calls, which set what a pretraining model would hide.
    settings = _settings(config)
    return ImageNetwork(
        module,
        recipe,
        blocks=_blocks(module),
        patch_size=_patch_size(config),
        call=_caller(module),
        revision=getattr(config, "_commit_hash", None),
        settings=settings,
        only_saved=True,
        **_family_facts(module, family),
    )
