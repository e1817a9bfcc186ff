# SPDX-License-Identifier: BSD-3-Clause
"""A source of layers as a network is one: late, out of order, keeping vectors, counting passes."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from skpool.stores import RowSource, TokenBatch, assemble


class ComputedLayers(RowSource):
    """Tokens (n, k, L, d) that come backwards in batches of three; some never come.

    Attributes
    ----------
    kept : dict
        Vectors by the fingerprint of their function.
    n_streamed : int
        Rows that were computed so far.
    """

    def __init__(self, values: np.ndarray, n_prefix_tokens: int = 0, missing: tuple = ()):
        self.values, self.missing = values, missing
        self.n_rows, self.row_shape = len(values), values.shape[1:]
        self.dtype = values.dtype
        self.n_prefix_tokens = n_prefix_tokens
        self.kept: dict[str, np.ndarray] = {}
        self.n_streamed = 0

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        order = [p for p in range(len(rows))[::-1] if rows[p] not in self.missing]
        for start in range(0, len(order), 3):
            positions = np.array(order[start : start + 3])
            self.n_streamed += len(positions)
            yield TokenBatch(positions, torch.from_numpy(self.values[rows[positions]]), None)

    def one_layer(self, place: int) -> "ComputedLayers":
        return ComputedLayers(self.values[:, place], self.n_prefix_tokens, self.missing)

    def reduce(self, rows, function, *, fingerprint=None, batch_size=None) -> np.ndarray:
        def computed(which: np.ndarray) -> np.ndarray:
            parts = ((b.positions, function(b.tokens, b.mask)) for b in self.stream(which))
            blank = torch.zeros(1, *self.row_shape)
            return assemble(parts, len(which), lambda: function(blank, None)).numpy()

        if fingerprint is None:
            return computed(rows)
        if fingerprint not in self.kept:
            self.kept[fingerprint] = computed(np.arange(self.n_rows))
        return self.kept[fingerprint][rows]


@pytest.fixture
def computed_layers() -> type[ComputedLayers]:
    """The source, to be made from values."""
    return ComputedLayers
