# SPDX-License-Identifier: BSD-3-Clause
"""Tokens of one layer that are made of those of several while they are read.

What `LayerAggregator` gives where the tokens are kept: nothing is computed before a pooling
streams it, and what the pooling makes of it is kept in the store of the tokens below.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from skpool.stores import Reduction, RowSource, TokenArray, TokenBatch
from skpool.utils import ArrayLike
from skpool.utils import fingerprint as fingerprint_of

__all__ = ["AggregatedSource"]


class AggregatedSource(RowSource):
    """One layer of tokens, (n_samples, n_tokens, n_out), computed on the fly.

    Parameters
    ----------
    layers : TokenArray of shape (n_samples, n_layers, n_tokens, n_features)
    combine : callable
        From tokens (batch, n_layers, n_tokens, n_features) to (batch, n_tokens, n_out).
    n_out : int
    name : str
        Fingerprint of `combine`.
    """

    def __init__(
        self,
        layers: TokenArray,
        combine: Callable[[torch.Tensor], torch.Tensor],
        n_out: int,
        name: str,
    ):
        self._layers, self._combine, self._name = layers, combine, name
        self.n_rows = len(layers)
        self.row_shape = (layers.shape[2], n_out)
        self.dtype = np.promote_types(layers.dtype, np.float32)
        self.in_memory = layers.in_memory
        self.n_prefix_tokens = layers.n_prefix_tokens
        self.grid = layers.grid

    @property
    def cls_index(self) -> int | None:
        """Position of the class token in the layers."""
        return self._layers.cls_index

    def mask(self, rows: np.ndarray) -> np.ndarray | None:
        """Real tokens of the rows."""
        return self._layers[rows].mask

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Yield the rows as the layers come."""
        for positions, tokens, mask in self._layers[rows].iter_batches(batch_size):
            yield TokenBatch(positions, self._combine(tokens), mask)

    def reduce(
        self,
        rows: np.ndarray,
        function: Reduction,
        *,
        fingerprint: str | None = None,
        batch_size: int | None = None,
    ) -> ArrayLike:
        """Turn every row into a vector."""
        name = None if fingerprint is None else fingerprint_of(self._name, fingerprint)
        return self._layers[rows].reduce(
            lambda tokens, mask: function(self._combine(tokens), mask),
            fingerprint=name,
            batch_size=batch_size,
        )
