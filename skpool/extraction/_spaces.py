# SPDX-License-Identifier: BSD-3-Clause
"""What is computed together, kept apart: one or several spaces of a store, seen as one.

A pass of the network gives several layers, and a pass over tokens several pooled vectors. Each of
them has its own space in the store, so that whoever asks for one of them later finds it; a sample
counts as stored here when all of its spaces have it, and is claimed once for all of them.
"""

from typing import NamedTuple

import numpy as np
import torch

from skpool.stores import HELD, MINE
from skpool.utils import ArrayLike, as_tensor, fingerprint

__all__ = ["Rows", "Spaces", "UnkeptSpaces"]


class Rows(NamedTuple):
    """Values of some rows: one array or tensor per space, and the lengths of ragged rows."""

    rows: np.ndarray
    values: list[ArrayLike]
    lengths: np.ndarray | None = None

    @classmethod
    def none(cls) -> "Rows":
        """No rows: a sign of life."""
        return cls(np.empty(0, dtype=np.int64), [])

    def select(self, chosen: np.ndarray) -> "Rows":
        """Some of the rows, by a boolean mask."""
        index = torch.from_numpy(np.flatnonzero(chosen))
        values = [v[index.to(v.device)] for v in map(as_tensor, self.values)]
        return Rows(
            self.rows[chosen], values, None if self.lengths is None else self.lengths[chosen]
        )


def _on_host(values: ArrayLike) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


class Spaces:
    """Some spaces of a store, with the store's protocol over all of them at once.

    Parameters
    ----------
    store : FeatureStore or MemoryCache
    names : sequence of str
        Fingerprints of what is computed.

    Attributes
    ----------
    name : str
        Fingerprint of the set; of a single space its own.
    """

    def __init__(self, store: object, names: list[str]):
        self.store = store
        self.names = names
        self.name = names[0] if len(names) == 1 else fingerprint("together", names)
        self._put: list[np.ndarray] = []

    def held(self, keys: np.ndarray) -> np.ndarray:
        """Which samples are stored in every space."""
        return np.all([self.store.held(name, keys) for name in self.names], axis=0)

    def read(self, keys: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None]:
        """Which samples are stored in every space, their rows per space, and their lengths."""
        if len(self.names) == 1:
            found, rows, lengths = self.store.read(self.name, keys)
            return found, [rows], lengths
        parts = [self.store.read(name, keys) for name in self.names]
        found = np.all([has for has, _, _ in parts], axis=0)
        chosen = [found[has] for has, _, _ in parts]
        values = [rows[c] for (_, rows, _), c in zip(parts, chosen, strict=True)]
        lengths = parts[0][2]
        return found, values, None if lengths is None else lengths[chosen[0]]

    def claim(self, keys: np.ndarray) -> np.ndarray:
        """Announce what the caller is about to compute: HELD, MINE or BUSY per sample."""
        status = self.store.claim(self.name, keys)
        if len(self.names) > 1:
            # The set has no rows of its own that the store could know of.
            mine = np.flatnonzero(status == MINE)
            done = mine[self.held(keys[mine])]
            status[done] = HELD
            self.store.release(self.name, keys[done])
        return status

    def put(self, keys: np.ndarray, values: list[ArrayLike], lengths: np.ndarray | None) -> None:
        """Keep rows, each space those that it lacks."""
        if len(self.names) == 1:
            self.store.put(self.name, keys, _on_host(values[0]), lengths)
            return
        for name, rows in zip(self.names, values, strict=True):
            lacks = ~self.store.held(name, keys)
            if lacks.any():
                some = None if lengths is None else lengths[lacks]
                self.store.put(name, keys[lacks], _on_host(rows)[lacks], some)
        # Others must not look before they can see: the claims end when the rows are flushed.
        self._put.append(keys)

    def release(self, keys: np.ndarray) -> None:
        """Give back claims on what was not computed."""
        self.store.release(self.name, keys)

    def flush(self) -> None:
        """Make everything that was put durable, and end the claims on it."""
        self.store.flush()
        for keys in self._put:
            self.store.release(self.name, keys)
        self._put.clear()

    def wait(self, keys: np.ndarray) -> None:
        """Wait until nobody computes any of the samples."""
        self.store.wait(self.name, keys)


class UnkeptSpaces(Spaces):
    """Spaces that are only read: what is computed is nobody's but the caller's."""

    def claim(self, keys: np.ndarray) -> np.ndarray:
        """Everything that is not stored is the caller's."""
        return np.full(len(keys), MINE, dtype=np.uint8)

    def put(self, keys: np.ndarray, values: list[ArrayLike], lengths: np.ndarray | None) -> None:
        """Keep nothing."""

    def release(self, keys: np.ndarray) -> None:
        """Nothing was claimed."""

    def flush(self) -> None:
        """Nothing was put."""

    def wait(self, keys: np.ndarray) -> None:
        """Nobody else computes anything."""
