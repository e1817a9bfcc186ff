# SPDX-License-Identifier: BSD-3-Clause
"""An evaluation on disk: one file of arrays per finished stage, and what they are results of.

Files are written aside and renamed, so that a process that is killed leaves whole stages alone;
`run.json` says by a fingerprint which evaluation they belong to. No pickle.
"""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _num_samples

from skpool import __version__
from skpool.utils import fingerprint

__all__ = ["EvaluationFiles", "plain_values", "sample_of"]

# Of the files; another number is refused.
FORMAT = 1
_RUN = "run.json"
# Rows of X that stand for all of them.
_SAMPLED = 256


def plain_values(value: Any) -> Any:
    """Say what a parameter is in numbers, text and arrays, for a fingerprint.

    Parameters
    ----------
    value : object

    Returns
    -------
    plain : object
        Of a thing without values of its own, its name.
    """
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    if isinstance(value, BaseEstimator):
        return [_name(type(value)), plain_values(value.get_params(deep=False))]
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return plain_values(value.tolist())
    if value is None or isinstance(value, (str, bytes, int, float, np.generic, np.ndarray)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _name(value if hasattr(value, "__qualname__") else type(value))


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def sample_of(X: Any) -> Any:
    """Size and some rows of X, cheap whatever its size.

    Parameters
    ----------
    X : array-like

    Returns
    -------
    sample : list
    """
    n = _num_samples(X)
    rows = np.unique(np.linspace(0, n - 1, min(n, _SAMPLED)).astype(np.intp))
    if isinstance(X, (np.ndarray, torch.Tensor)):
        return [n, plain_values(X[rows])]
    if isinstance(X, (list, tuple)):
        return [n, plain_values([X[row] for row in rows])]
    return [n, _name(type(X))]


class EvaluationFiles:
    """The directory of one evaluation.

    Parameters
    ----------
    path : path-like
        Made where it is missing.
    facts : object
        Plain values that decide the results; a directory of others is refused.
    """

    def __init__(self, path: str | os.PathLike, facts: Any):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        mine = {"format": FORMAT, "fingerprint": fingerprint(__version__, facts)}
        try:
            found = json.loads((self.path / _RUN).read_text("utf-8"))
        except FileNotFoundError:
            self._replace(_RUN, lambda file: file.write(json.dumps(mine, indent=1).encode()))
            return
        except ValueError as error:
            raise self._damaged(_RUN) from error
        if found != mine:
            raise ValueError(
                f"checkpoint={str(self.path)!r} holds another evaluation, of other parameters, "
                "stages or data; give another directory, or delete this one."
            )

    def load(self, stage: int) -> dict[str, np.ndarray] | None:
        """Results of a stage, or None where it is not finished.

        Parameters
        ----------
        stage : int

        Returns
        -------
        arrays : dict of str to ndarray, or None
        """
        path = self.path / _file(stage)
        if not path.exists():
            return None
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged(path.name) from error

    def save(self, stage: int, arrays: dict[str, np.ndarray]) -> None:
        """Write the results of a stage.

        Parameters
        ----------
        stage : int
        arrays : dict of str to ndarray
        """
        self._replace(_file(stage), lambda file: np.savez(file, **arrays))

    def _replace(self, name: str, write: Callable[[Any], Any]) -> None:
        temporary = self.path / f"{name}.{os.getpid()}.part"
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / name)

    def _damaged(self, what: str) -> ValueError:
        return ValueError(
            f"checkpoint={str(self.path)!r} is damaged: {what} cannot be read; delete the "
            "directory to start anew."
        )


def _file(stage: int) -> str:
    return f"stage-{stage:05d}.npz"
