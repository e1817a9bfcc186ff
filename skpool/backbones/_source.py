# SPDX-License-Identifier: BSD-3-Clause
"""What the sources of models share: options in a name, near names, weights files, plain errors.

The libraries raise a dozen kinds of errors for a wrong name, an absent network, a file that is not
what it says. A user of skpool gets one kind, with the name and the remedy.
"""

import difflib
import pickle
import urllib.error
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from skpool.exceptions import BackboneError

__all__ = ["explained", "fill", "hub_revision", "near", "read_weights", "split_options"]

_FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    AssertionError,
    KeyError,
    TypeError,
    pickle.UnpicklingError,
    urllib.error.URLError,
    SafetensorError,
)


def split_options(source: str, name: str, known: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Take the options off a name such as ``"resnet50?weights=/a/file.safetensors"``.

    Parameters
    ----------
    source : str
        Source of models, for the error message.
    name : str
        What follows the source.
    known : iterable of str
        Options that there are.

    Returns
    -------
    name : str
    options : dict of str to str
    """
    name, mark, query = name.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&")) if mark else {}
    wrong = [key for key, value in options.items() if key not in set(known) or not value]
    if wrong:
        raise BackboneError(
            f"'{source}:{name}?{query}' cannot be read at {wrong[0]!r}; the options of '{source}' "
            f"are {', '.join(f'?{key}=...' for key in known)}."
        )
    return name, options


def near(name: str, names: Iterable[str]) -> str:
    """Names that are spelled alike, as the end of a sentence."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else "check its spelling."


@contextmanager
def explained(spec: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises while it loads into one sentence.

    Parameters
    ----------
    spec : str
        The name that was asked for.
    remedy : str
        What to do, as the end of a sentence.
    """
    try:
        with warnings.catch_warnings():
            # Of files that are refused in the next breath.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            yield
    except BackboneError:
        raise
    except _FAILURES as error:
        text = str(error).strip() or type(error).__name__
        reason = " ".join(text.split("\n")[0].split())[:300].rstrip(".")
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
            reason = "its file holds code beside weights, which is never run"
            remedy = "convert it to safetensors where you trust it."
        raise BackboneError(f"'{spec}' could not be loaded ({reason}); {remedy}") from error


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors by name from safetensors or a torch file, without running what is in it."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise BackboneError(f"'{path}' holds no table of weights; give a state dict.")
    return content


def fill(
    module: nn.Module, weights: dict[str, torch.Tensor], *, spec: str, heads: tuple[str, ...] = ()
) -> None:
    """Put weights into a module, all of them or none.

    Parameters
    ----------
    module : torch.nn.Module
        Without its classifier.
    weights : dict of str to tensor
    spec : str
        The name that was asked for.
    heads : tuple of str
        Beginnings of the names of weights that belong to the classifier and are left out.
    """
    wanted = module.state_dict()
    # Counters of batch norms came into torch later than some files.
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    wrong = sorted(
        {name for name in wanted if name not in weights and name not in counters}
        | {name for name in weights if name not in wanted and not name.startswith(heads)}
        | {n for n, value in weights.items() if n in wanted and value.shape != wanted[n].shape}
    )
    if wrong:
        raise BackboneError(
            f"The weights of '{spec}' do not fill the model (missing, unknown or of another shape: "
            f"{wrong[:5]}); give the weights of this very architecture."
        )
    module.load_state_dict({n: v for n, v in weights.items() if n in wanted}, strict=False)


def hub_revision(repository: str | None, filenames: Iterable[str]) -> str | None:
    """The commit from which a file of a hub model was taken, as the hub's own cache has it."""
    if not repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    for filename in filenames:
        path = try_to_load_from_cache(name, filename, revision=revision or None)
        if isinstance(path, str):
            return Path(path).parent.name
    return None
