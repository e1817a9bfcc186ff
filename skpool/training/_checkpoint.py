# SPDX-License-Identifier: BSD-3-Clause
"""A training on disk: arrays in safetensors, facts in json, no pickle.

A directory holds ``state.json`` and the file of arrays that it names with its digest. The arrays
are written first, under a name of their own, and `state.json` is replaced in one step; whenever a
process is killed, the directory holds the last epoch that was written wholly.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

__all__ = ["FORMAT", "Checkpoint", "Saved"]

# Of the files; another number is refused.
FORMAT = 1
_STATE = "state.json"


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes
    ----------
    arrays : dict of str to ndarray
    facts : dict
        Plain values.
    """

    arrays: dict[str, np.ndarray]
    facts: dict


def _replaced(path: Path, content: bytes) -> None:
    """Write a file wholly or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Checkpoint:
    """The directory of one training.

    Parameters
    ----------
    path : path-like
        Made where it is missing.
    fingerprint : str
        Of the training; a directory that holds another one is refused.
    """

    def __init__(self, path: str | os.PathLike, fingerprint: str):
        self.path, self.fingerprint = Path(path), fingerprint

    def _damaged(self, what: str) -> ValueError:
        return ValueError(
            f"checkpoint={str(self.path)!r} is damaged: {what}; delete the directory to start anew."
        )

    def load(self) -> Saved | None:
        """What was saved, or None where nothing was.

        Returns
        -------
        saved : Saved or None

        Raises
        ------
        ValueError
            The directory holds another training, another format, or damaged files.
        """
        try:
            state = json.loads((self.path / _STATE).read_text("utf-8"))
            form, fingerprint = state["format"], state["fingerprint"]
            name, digest, facts = state["arrays"], state["sha256"], state["facts"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{_STATE} cannot be read") from error
        if form != FORMAT:
            raise ValueError(
                f"checkpoint={str(self.path)!r} has format {form}, and this version of skpool "
                f"reads format {FORMAT}; give another directory."
            )
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"checkpoint={str(self.path)!r} holds another training, of other settings, data or "
                "first weights; give another directory, or delete this one."
            )
        return Saved(self._arrays(name, digest), facts)

    def _arrays(self, name: str, digest: str) -> dict[str, np.ndarray]:
        try:
            # The name comes from a file: nothing outside of the directory is read.
            content = (self.path / Path(name).name).read_bytes()
        except OSError as error:
            raise self._damaged(f"{name} cannot be read") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise self._damaged(f"{name} is not as it was written")
        try:
            return load(content)
        except SafetensorError as error:
            raise self._damaged(f"{name} holds no arrays") from error

    def save(self, saved: Saved) -> None:
        """Replace what was saved.

        Parameters
        ----------
        saved : Saved
            Its facts have a whole number ``"epoch"``.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        content = save({k: np.asarray(v, order="C") for k, v in saved.arrays.items()})
        name = f"epoch-{saved.facts['epoch']:06d}.safetensors"
        _replaced(self.path / name, content)
        state = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "arrays": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "facts": saved.facts,
        }
        _replaced(self.path / _STATE, json.dumps(state, indent=1).encode())
        for old in self.path.glob("epoch-*.safetensors*"):
            if old.name != name:
                old.unlink()
