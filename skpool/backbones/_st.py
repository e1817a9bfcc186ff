# SPDX-License-Identifier: BSD-3-Clause
"""Text networks in the format of sentence-transformers: ``st:all-MiniLM-L6-v2`` or a directory.

The format is a list of modules: a transformer, a pooling, perhaps a normalisation. The transformer
is read by transformers and the rest becomes the recipe, so sentence-transformers itself is not
needed. A module that would change the vectors in another way is refused by name.
"""

import json
from dataclasses import replace
from pathlib import Path

from skpool.backbones._hf import _split_revision
from skpool.backbones._hf_text import REMEDY, open_text_network
from skpool.backbones._source import explained
from skpool.backbones._text_network import TextNetwork
from skpool.backbones._text_recipe import TextRecipe
from skpool.exceptions import BackboneError
from skpool.utils import import_optional

__all__ = ["open_st"]

# Newer files name the pooling, older ones have a switch for each.
_POOLINGS = {
    "cls": "cls",
    "lasttoken": "last",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
}
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
# The file has had the name of the architecture.
_TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


class _Files:
    """The JSON files of one model, local or on the hub."""

    def __init__(self, name: str):
        self.spec = f"st:{name}"
        self._transformers = import_optional(
            "transformers", extra="hf", purpose=f"The backbone '{self.spec}'"
        )
        local = Path(name).exists()
        self.name = name if local or "/" in name else f"sentence-transformers/{name}"
        self._path, self._revision = _split_revision(self.name)

    def read(self, *path: str) -> object | None:
        """The content of a file, None where there is none."""
        with explained(self.spec, REMEDY):
            found = self._transformers.utils.cached_file(
                self._path,
                "/".join(filter(None, path)),
                revision=self._revision,
                _raise_exceptions_for_missing_entries=False,
            )
            return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


def _pooling(config: dict, spec: str) -> str:
    """The one pooling that a configuration names, in either of its forms."""
    switched = [mode for switch, mode in _SWITCHES.items() if config.get(switch)]
    modes = config.get("pooling_mode") or switched or "mean"
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise BackboneError(
            f"'{spec}' pools by {modes}, and one of {sorted(_POOLINGS)} is understood; take its "
            "tokens with 'hf:' and pooling=None, and a TokenPooling."
        )
    return _POOLINGS[modes[0]]


def _kind(module: dict) -> str:
    """The class of a module; of other packages in full, since theirs may do anything."""
    name = str(module.get("type"))
    return name.rsplit(".", 1)[-1] if name.startswith("sentence_transformers.") else name


def _modules(files: _Files) -> list[tuple[str, str]]:
    """Kind and path of every module, in order."""
    listed = files.read("modules.json")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise BackboneError(
            f"'{files.spec}' has no modules.json, so it is not in the format of "
            f"sentence-transformers; write 'hf:{files.spec.removeprefix('st:')}'."
        )
    modules = [(_kind(entry), str(entry.get("path", ""))) for entry in listed]
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise BackboneError(
            f"'{files.spec}' consists of the modules {kinds}; a Transformer, a Pooling and perhaps "
            "a Normalize are understood: take its tokens with 'hf:' and do the rest yourself."
        )
    return modules


def open_st(name: str, recipe: TextRecipe | None) -> TextNetwork:
    """Load a model in the format of sentence-transformers.

    Parameters
    ----------
    name : str
        Name on the hub (without a slash one of the organisation sentence-transformers), or a
        local directory.
    recipe : TextRecipe or None
        None takes what the model itself says.

    Returns
    -------
    network : TextNetwork

    Raises
    ------
    BackboneError
        The model cannot be loaded, or has modules that are not understood.
    """
    files = _Files(name)
    modules = _modules(files)
    folder = modules[0][1]
    options = next(filter(None, (files.read(folder, file) for file in _TRANSFORMER_FILES)), {})
    if recipe is None:
        prompts = (files.read("config_sentence_transformers.json") or {}).get("prompts") or {}
        recipe = TextRecipe(
            pooling=_pooling(files.read(modules[1][1], "config.json") or {}, files.spec),
            normalize=len(modules) == 3,
            prompts=tuple((str(k), str(v)) for k, v in prompts.items() if v),
        )
    if recipe.max_length is None:
        recipe = replace(recipe, max_length=options.get("max_seq_length"))
    return open_text_network(
        files.name,
        recipe,
        spec=files.spec,
        subfolder=folder,
        lower_case=bool(options.get("do_lower_case")),
    )
