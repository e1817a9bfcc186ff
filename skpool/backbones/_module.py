# SPDX-License-Identifier: BSD-3-Clause
"""Backbones from a module that the user built.

Such a module has no name to be known by, so it is known by what it is: its weights and buffers,
its plain settings and the code of its forward methods. A change to any of them must be a new
fingerprint, or a store would serve features of the old network.
"""

from collections.abc import Sequence
from types import CodeType, FunctionType

from torch import nn

from skpool.backbones._image_network import ImageNetwork
from skpool.backbones._recipe import ImageRecipe
from skpool.exceptions import BackboneError
from skpool.utils import fingerprint

__all__ = ["behaviour", "code_of", "open_module"]


def _code_parts(code: CodeType) -> list[str]:
    """What a function does, without names of files and lines."""
    parts = [code.co_code.hex(), repr(code.co_names)]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            parts += _code_parts(constant)
        elif constant is None or isinstance(constant, (bool, int, float, str)):
            parts.append(repr(constant))
    return parts


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _plain_settings(module: nn.Module) -> list[str]:
    """The numbers, texts and tuples among a module's own attributes."""
    return [
        f"{name}={value!r}"
        for name, value in sorted(vars(module).items())
        if name != "training" and not name.startswith("_") and _is_plain(value)
    ]


def _closed_over(function: FunctionType) -> list[str]:
    """The plain values that a method took from the function around its class."""
    names = function.__code__.co_freevars
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    return [f"{n}={value!r}" for n, value in zip(names, cells, strict=True) if _is_plain(value)]


def code_of(function: FunctionType) -> list[str]:
    """What a function does, and the plain values around it."""
    return [*_code_parts(function.__code__), *_closed_over(function)]


def behaviour(module: nn.Module) -> list[list[str]]:
    """Per submodule its class, its settings, and the code of forward methods not torch's own."""
    described = []
    for name, child in module.named_modules():
        kind = type(child)
        lines = [name, kind.__qualname__, *_plain_settings(child)]
        if not kind.__module__.startswith("torch.") and hasattr(kind.forward, "__code__"):
            lines += code_of(kind.forward)
        described.append(lines)
    return described


def open_module(
    module: nn.Module,
    recipe: ImageRecipe,
    *,
    layer_paths: Sequence[str],
    patch_size: int | None,
    n_prefix_tokens: int | None,
) -> ImageNetwork:
    """Freeze a module and find its layers.

    Parameters
    ----------
    module : torch.nn.Module
        Put in evaluation mode in place.
    recipe : ImageRecipe
    layer_paths : sequence of str
        Dotted names of the submodules that are layers 1, 2, ...
    patch_size, n_prefix_tokens : int or None

    Returns
    -------
    network : ImageNetwork
    """
    try:
        blocks = [module.get_submodule(path) for path in layer_paths]
    except AttributeError as error:
        raise BackboneError(
            f"layer_paths={list(layer_paths)!r}: {error}; give dotted names of submodules."
        ) from None
    return ImageNetwork(
        module,
        recipe,
        blocks=blocks,
        patch_size=patch_size,
        n_prefix_tokens=n_prefix_tokens,
        settings=fingerprint(behaviour(module), list(layer_paths), patch_size, n_prefix_tokens),
    )
