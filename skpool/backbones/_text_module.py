# SPDX-License-Identifier: BSD-3-Clause
"""Text backbones from a module and a tokenizer that the user built.

The counterpart of `_module.py`: what has no name is known by its weights, its settings, its code,
and what its tokenizer does.
"""

from collections.abc import Callable, Sequence
from types import FunctionType

from torch import nn

from skpool.backbones._hf_text import HFTokenizer
from skpool.backbones._module import behaviour, code_of
from skpool.backbones._text_network import TextNetwork, Tokenizer
from skpool.backbones._text_recipe import TextRecipe
from skpool.exceptions import BackboneError
from skpool.utils import fingerprint

__all__ = ["open_text_module"]


def _tokenizer(tokenizer: object) -> Tokenizer:
    """A function from text to numbers, or a tokenizer of transformers, in one form."""
    if hasattr(tokenizer, "all_special_ids"):
        return HFTokenizer(tokenizer)
    if isinstance(tokenizer, FunctionType):
        return Tokenizer(tokenizer, name=fingerprint("function", code_of(tokenizer)))
    # What is written in C, such as `str.encode`, is known by its name.
    if callable(tokenizer) and hasattr(tokenizer, "__qualname__"):
        return Tokenizer(tokenizer, name=fingerprint("built-in", tokenizer.__qualname__))
    raise TypeError(
        f"tokenizer={tokenizer!r:.80} is of type {type(tokenizer).__name__}; give a function from "
        "a text to its token ids, or a tokenizer of transformers."
    )


def open_text_module(
    module: nn.Module,
    recipe: TextRecipe,
    *,
    tokenizer: Callable[[str], Sequence[int]] | object,
    layer_paths: Sequence[str],
) -> TextNetwork:
    """Freeze a module and find its layers.

    Parameters
    ----------
    module : torch.nn.Module
        Put in evaluation mode in place.
    recipe : TextRecipe
    tokenizer : callable or tokenizer of transformers
    layer_paths : sequence of str
        Dotted names of the submodules that are layers 1, 2, ...

    Returns
    -------
    network : TextNetwork
    """
    try:
        blocks = [module.get_submodule(path) for path in layer_paths]
    except AttributeError as error:
        raise BackboneError(
            f"layer_paths={list(layer_paths)!r}: {error}; give dotted names of submodules."
        ) from None
    return TextNetwork(
        module,
        recipe,
        tokenizer=_tokenizer(tokenizer),
        blocks=blocks,
        settings=fingerprint(behaviour(module), list(layer_paths)),
    )
