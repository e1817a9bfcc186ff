# SPDX-License-Identifier: BSD-3-Clause
"""Text networks from Hugging Face: ``hf:intfloat/e5-small-v2`` or ``hf:a/local/directory``.

transformers finds and reads the files and runs the tokenizer; code that comes with a model is never
run, nor are pickles read. Where the blocks end and whether a norm follows them is found by looking
at one short text, so that no list of architectures is needed.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from skpool.backbones._hf import _quiet, _settings, _split_revision
from skpool.backbones._network import first_tensor
from skpool.backbones._source import explained
from skpool.backbones._text_network import TextNetwork, Tokenizer
from skpool.backbones._text_recipe import TextRecipe
from skpool.backbones._text_recipes import recipe_for
from skpool.exceptions import BackboneError
from skpool.utils import fingerprint, import_optional

__all__ = ["REMEDY", "HFTokenizer", "is_text_model", "open_hf_text", "open_text_network"]

# Larger ones are how tokenizers write that there is no limit.
_LARGEST_LENGTH = 10**9
_TOKENIZER_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError)
REMEDY = (
    "check the name, or download it once where there is a network and give the local directory."
)
_NO_IMAGES = ("preprocessor_config.json", "processor_config.json")
_TEXTS = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "spiece.model", "vocab.json")


class HFTokenizer(Tokenizer):
    """A tokenizer of transformers.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    """

    def __init__(self, tokenizer: object):
        self._tokenizer = tokenizer
        lead, trail = self._surroundings()
        known = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0]
        first_known = next(i for i in known if i is not None)
        padding = [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]
        limit = tokenizer.model_max_length
        super().__init__(
            None,
            lead=lead,
            trail=trail,
            fallback=first_known,
            eos=tokenizer.eos_token_id,
            padding=next(i for i in padding if i is not None),
            has_cls=bool(lead) and lead[0] == tokenizer.cls_token_id,
            max_length=int(limit) if limit and limit < _LARGEST_LENGTH else None,
            name=self._content(),
        )

    def _surroundings(self) -> tuple[list[int], list[int]]:
        """Special tokens before and after a text."""
        encoding = self._tokenizer("a", return_special_tokens_mask=True)
        ids, special = encoding["input_ids"], encoding["special_tokens_mask"]
        places = [i for i, is_special in enumerate(special) if not is_special]
        if not places:
            return list(ids), []
        return list(ids[: places[0]]), list(ids[places[-1] + 1 :])

    def _content(self) -> str:
        """Everything that decides the ids of a text."""
        if not self._tokenizer.is_fast:
            kind = type(self._tokenizer).__qualname__
            return fingerprint(kind, sorted(self._tokenizer.get_vocab().items()))
        backend = self._tokenizer.backend_tokenizer
        # What an earlier user left there is no part of it, and is not used here.
        backend.no_truncation()
        backend.no_padding()
        return fingerprint(backend.to_str())

    def _call(self, texts: Sequence[str], **options: object) -> dict:
        return self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the texts, without special tokens."""
        return self._call(texts)["input_ids"]

    def after(
        self, parts: Sequence[str], texts: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """Ids of the parts and a text in one, and where each of them ends in it, in characters."""
        if not self._tokenizer.is_fast:
            return super().after(parts, texts)
        before = "".join(parts)
        found = self._call([before + text for text in texts], return_offsets_mapping=True)
        ends = [[end for _, end in spans] for spans in found["offset_mapping"]]
        return list(zip(found["input_ids"], ends, strict=True))


@contextmanager
def _without_code(spec: str) -> Iterator[None]:
    """Say plainly that code which comes with a model is not run."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error) and "custom code" not in str(error):
            raise
        raise BackboneError(
            f"'{spec}' consists of code beside weights, which is never run; build the module "
            "yourself and give it to Backbone.from_module."
        ) from error


def is_text_model(name: str) -> bool:
    """Whether a model has a tokenizer and nothing that prepares images.

    Parameters
    ----------
    name : str
        Name on the hub, or a local directory.

    Returns
    -------
    is_text : bool
        False also for what cannot be found.
    """
    transformers = import_optional("transformers", extra="hf", purpose=f"The backbone 'hf:{name}'")
    name, revision = _split_revision(name)

    def find(filename: str) -> str | None:
        return transformers.utils.cached_file(
            name, filename, revision=revision, _raise_exceptions_for_missing_entries=False
        )

    try:
        if any(map(find, _NO_IMAGES)):
            return False
        if any(map(find, _TEXTS)):
            return True
        path = find("config.json")
        kind = json.loads(Path(path).read_text()).get("model_type") if path else None
    except (OSError, ValueError):
        return False
    # A model of texts whose tokenizer was forgotten is told so by the loader of texts.
    names = transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING_NAMES
    return kind in names


def _load_module(
    transformers: ModuleType, name: str, spec: str, options: dict[str, Any]
) -> nn.Module:
    config = transformers.AutoConfig.from_pretrained(name, **options)
    # Only the encoder of a pair is used, and often only the encoder was published.
    encoders = transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    alone = str(encoders.get(config.model_type)).endswith("EncoderModel")
    loader = transformers.AutoModelForTextEncoding if alone else transformers.AutoModel
    module, info = loader.from_pretrained(
        name, config=config, dtype=torch.float32, output_loading_info=True, **options
    )
    # A pooler is never used here; anything else that is absent would be random numbers.
    missing = [key for key in info["missing_keys"] if "pooler" not in key]
    if missing or info["mismatched_keys"]:
        raise BackboneError(
            f"The weights of '{spec}' do not fill the model (missing or of another shape: "
            f"{sorted(map(str, [*missing, *info['mismatched_keys']]))[:5]}); give a complete model."
        )
    return module.get_encoder() if config.is_encoder_decoder and not alone else module


def _load_tokenizer(
    transformers: ModuleType, name: str, spec: str, options: dict[str, Any]
) -> object:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
    except _TOKENIZER_ERRORS as error:
        if "custom code" in str(error) or "trust_remote_code" in str(error):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise BackboneError(
            f"'{spec}' has no tokenizer that can be loaded ({reason}); save it beside the model: "
            "tokenizer.save_pretrained(directory)."
        ) from error
    if not len(tokenizer.get_vocab()) > len(tokenizer.all_special_tokens):
        raise BackboneError(
            f"'{spec}' has no tokenizer files; save it beside the model: "
            "tokenizer.save_pretrained(directory)."
        )
    return tokenizer


def _lower(tokenizer: object) -> None:
    """Put lower case before everything else that a tokenizer does."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    steps = [normalizers.Lowercase()]
    if backend.normalizer is not None:
        steps.append(backend.normalizer)
    backend.normalizer = normalizers.Sequence(steps)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks, one for each layer; none where one block serves for several layers."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m)]
    n_layers = getattr(module.config, "num_hidden_layers", None)
    return list(lists[0]) if lists and len(lists[0]) == n_layers else []


@torch.no_grad()
def _final_norm(
    module: nn.Module, blocks: Sequence[nn.Module], run: Callable[[], object]
) -> nn.Module | None:
    """The norm that makes the module's output of the last block's, if there is one."""
    if not blocks:
        return None
    kept: list[torch.Tensor] = []
    handle = blocks[-1].register_forward_hook(
        lambda block, args, output: kept.append(first_tensor(output).clone())
    )
    try:
        own = first_tensor(run())
    finally:
        handle.remove()
    if torch.allclose(kept[0], own, rtol=1e-4, atol=1e-5):
        return None
    inside = {id(m) for block in blocks for m in block.modules()}
    for child in reversed(list(module.modules())):
        # Normalisations of every name have one weight as wide as a token.
        shapes = [tuple(p.shape) for p in child.parameters()]
        if id(child) in inside or not shapes or set(shapes) != {(own.shape[-1],)}:
            continue
        if torch.allclose(child(kept[0]), own, rtol=1e-4, atol=1e-5):
            return child
    return None


def _positions(module: nn.Module) -> int | None:
    """Most tokens that there are positions for; some tables begin with places for padding."""
    positions = getattr(module.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    for name, child in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(child, nn.Embedding):
            reserved = child.padding_idx
            return positions if reserved is None else child.num_embeddings - reserved - 1
    return positions


def _call(module: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> object:
    return module(input_ids=ids, attention_mask=mask)


def open_text_network(
    name: str,
    recipe: TextRecipe,
    *,
    spec: str,
    subfolder: str = "",
    lower_case: bool = False,
) -> TextNetwork:
    """Load a text model of transformers and its tokenizer.

    Parameters
    ----------
    name : str
        Name on the hub, with "@" and a commit or branch where one is wanted, or a local directory.
    recipe : TextRecipe
    spec : str
        What the user wrote, for error messages.
    subfolder : str, default=""
        Where the model lies within the repository.
    lower_case : bool, default=False
        Whether texts are lowered before all else.

    Returns
    -------
    network : TextNetwork

    Raises
    ------
    BackboneError
        The model cannot be loaded, is incomplete, has no tokenizer, or needs code of its own.
    """
    transformers = import_optional("transformers", extra="hf", purpose=f"The backbone '{spec}'")
    name, revision = _split_revision(name)
    options = {"revision": revision, "subfolder": subfolder, "trust_remote_code": False}
    if Path(name).exists() and not Path(name, subfolder, "config.json").is_file():
        raise BackboneError(
            f"'{spec}' is not a model directory: it holds no config.json; give a directory "
            "written by save_pretrained, or a name on the hub."
        )
    with explained(spec, REMEDY), _without_code(spec), _quiet(transformers):
        raw = _load_tokenizer(transformers, name, spec, options)
        module = _load_module(transformers, name, spec, options).eval()
    if lower_case:
        _lower(raw)
    tokenizer = HFTokenizer(raw)
    n_tokens = module.get_input_embeddings().num_embeddings
    if not tokenizer.padding < n_tokens:
        # A padding token that was added without a row of its own; the mask hides any other.
        tokenizer.padding = tokenizer.fallback
    module.config.use_cache = False
    blocks = _blocks(module)

    def run() -> object:
        ids = [*tokenizer.lead, *tokenizer.ids(["a"])[0], *tokenizer.trail] or [tokenizer.fallback]
        batch = torch.tensor([ids])
        return _call(module, batch, torch.ones_like(batch))

    return TextNetwork(
        module,
        recipe,
        tokenizer=tokenizer,
        positions=_positions(module),
        call=_call,
        blocks=blocks,
        final_norm=_final_norm(module, blocks, run),
        revision=getattr(module.config, "_commit_hash", None),
        settings=_settings(module.config),
        only_saved=True,
    )


def open_hf_text(name: str, recipe: TextRecipe | None) -> TextNetwork:
    """Load a text model by its name on the hub or its directory.

    Parameters
    ----------
    name : str
    recipe : TextRecipe or None
        None takes that of the table.

    Returns
    -------
    network : TextNetwork
    """
    return open_text_network(name, recipe or recipe_for(name), spec=f"hf:{name}")
