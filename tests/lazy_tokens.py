# SPDX-License-Identifier: BSD-3-Clause
"""Tokens that are made late, as those of a network are, for tests of what streams them."""

from collections.abc import Iterator

import numpy as np
import torch

from skpool.stores import RowSource, TokenBatch, assemble

__all__ = ["LazySource"]


class LazySource(RowSource):
    """Rows that come backwards, in pairs, as a network would compute them; some never."""

    def __init__(self, values: np.ndarray, mask: np.ndarray | None = None, missing=()):
        self.values, self.row_mask, self.missing = values, mask, missing
        self.n_rows, self.row_shape, self.dtype = len(values), values.shape[1:], values.dtype
        self.n_read = 0

    def mask(self, rows: np.ndarray) -> np.ndarray | None:
        return None if self.row_mask is None else self.row_mask[rows]

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        order = np.array([p for p in range(len(rows))[::-1] if rows[p] not in self.missing])
        for start in range(0, len(order), 2):
            positions = order[start : start + 2]
            tokens, mask = self.values[rows[positions]], self.mask(rows[positions])
            if mask is not None:
                length = mask.sum(axis=1).max()
                tokens, mask = tokens[:, :length], torch.from_numpy(mask[:, :length].copy())
            self.n_read += len(positions)
            yield TokenBatch(positions, torch.from_numpy(tokens.copy()), mask)

    def reduce(self, rows, function, *, fingerprint=None, batch_size=None) -> np.ndarray:
        batches = self.stream(rows)
        parts = ((batch.positions, function(batch.tokens, batch.mask)) for batch in batches)
        blank = torch.zeros(1, *self.row_shape, dtype=torch.from_numpy(self.values[:0]).dtype)
        return assemble(parts, len(rows), lambda: function(blank, None)).numpy()
