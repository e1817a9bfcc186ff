# SPDX-License-Identifier: BSD-3-Clause
"""Tokens that are made of other tokens while they are read.

What `TokenArray.map` gives: steps that keep the token axis (aggregated layers, normalised tokens,
chosen ones) stay lazy. Nothing is computed before a pooling streams it, and what the pooling makes
of it is kept in the store of the tokens below.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from skpool.stores._row_source import Reduction, RowSource, TokenBatch
from skpool.utils import ArrayLike
from skpool.utils import fingerprint as fingerprint_of

if TYPE_CHECKING:
    from skpool.stores._token_array import TokenArray

__all__ = ["MappedSource"]

Mask = torch.Tensor | None


class MappedSource(RowSource):
    """Tokens computed on the fly, a batch at a time.

    Parameters
    ----------
    tokens : TokenArray
        What is read.
    function : callable
        From tokens (batch, L, d), or of several layers (batch, k, L, d), and their mask to
        tokens (batch, L', d').
    row_shape : tuple of 2 ints
        L' and d'.
    remask : callable or None
        From a mask (batch, L) to a mask (batch, L'); None where tokens keep their places.
    n_prefix_tokens : int
        Leading tokens of the result that are no patches.
    grid : tuple of 2 ints or None
    fingerprint : str or None
        Names the function for stores; None keeps nothing of what is made of its results.
    """

    # Also over an array: to read the result twice is to compute it twice.
    in_memory = False

    def __init__(
        self,
        tokens: "TokenArray",
        function: Reduction,
        *,
        row_shape: tuple[int, int],
        remask: Callable[[torch.Tensor], torch.Tensor] | None,
        n_prefix_tokens: int,
        grid: tuple[int, int] | None,
        fingerprint: str | None,
    ):
        self._tokens, self._function, self._remask = tokens, function, remask
        self._name = fingerprint
        self.n_rows = len(tokens)
        self.row_shape = row_shape
        # Kernels widen half precision.
        self.dtype = np.promote_types(tokens.dtype, np.float32)
        self.n_prefix_tokens = n_prefix_tokens
        self.grid = grid

    @property
    def cls_index(self) -> int | None:
        """Position of the class token, if it is still there."""
        return self._tokens.cls_index if self.n_prefix_tokens else None

    def _masked(self, mask: Mask) -> Mask:
        return mask if mask is None or self._remask is None else self._remask(mask)

    def mask(self, rows: np.ndarray) -> np.ndarray | None:
        """Real tokens of the rows."""
        mask = self._tokens[rows].mask
        return None if mask is None else self._masked(torch.from_numpy(mask)).numpy()

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Yield the rows as the tokens below come."""
        for positions, tokens, mask in self._tokens[rows].iter_batches(batch_size):
            yield TokenBatch(positions, self._function(tokens, mask), self._masked(mask))

    def below(
        self, function: Reduction, fingerprint: str | None
    ) -> tuple["TokenArray", Reduction, str | None]:
        """Return what is read, and a function of the result as a function of that, with its name.

        Parameters
        ----------
        function : callable
            From tokens of the result and their mask to vectors.
        fingerprint : str or None

        Returns
        -------
        tokens : TokenArray
        function : callable
        fingerprint : str or None
            None where either part has no name.
        """

        def whole(tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
            return function(self._function(tokens, mask), self._masked(mask))

        known = self._name is not None and fingerprint is not None
        return self._tokens, whole, fingerprint_of(self._name, fingerprint) if known else None

    def reduce(
        self,
        rows: np.ndarray,
        function: Reduction,
        *,
        fingerprint: str | None = None,
        batch_size: int | None = None,
    ) -> ArrayLike:
        """Turn every row into a vector."""
        tokens, whole, name = self.below(function, fingerprint)
        return tokens[rows].reduce(whole, fingerprint=name, batch_size=batch_size)
