# SPDX-License-Identifier: BSD-3-Clause
"""Where the rows of a token array come from.

A consumer of tokens knows two verbs: `stream` gives them batch by batch on the device where they
are, `reduce` turns every row into a vector and gives one array back. An array in memory answers
both directly (`ArraySource`); a backbone answers by running the network for the rows that no store
holds (in the room `extraction`). A pooling cannot tell which it has.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from skpool.utils import ArrayLike, as_tensor

__all__ = ["ArraySource", "Reduction", "RowSource", "TokenBatch", "as_array", "assemble"]

Reduction = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


class TokenBatch(NamedTuple):
    """Some rows of a token array.

    Attributes
    ----------
    positions : ndarray of shape (batch,)
        Which of the rows asked for these are.
    tokens : tensor of shape (batch, n_tokens, n_features)
        Of several layers (batch, n_layers, n_tokens, n_features). Ragged tokens are as many as
        the longest of the batch has.
    mask : tensor of shape (batch, n_tokens), bool, or None
        True for real tokens; None where all are.
    """

    positions: np.ndarray
    tokens: torch.Tensor
    mask: torch.Tensor | None


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array on the host; bfloat16, which numpy lacks, as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def assemble(
    results: Iterable[tuple[np.ndarray, torch.Tensor]],
    n_rows: int,
    blank: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """Put vectors that come with their positions in order.

    Parameters
    ----------
    results : iterable of (positions, vectors)
    n_rows : int
    blank : callable
        Gives vectors of the right width and type where `results` is empty.

    Returns
    -------
    vectors : tensor of shape (n_rows, n_out)
        NaN where no result came.
    """
    out, missing = None, np.ones(n_rows, dtype=bool)
    for positions, vectors in results:
        if out is None:
            out = vectors.new_empty((n_rows, *vectors.shape[1:]))
        out[_rows_at(positions, out.device)] = vectors
        missing[positions] = False
    if out is None:
        vectors = blank()
        out = vectors.new_empty((n_rows, *vectors.shape[1:]))
    if missing.any():
        out[torch.as_tensor(missing, device=out.device)] = torch.nan
    return out


def _rows_at(positions: np.ndarray, device: torch.device) -> slice | torch.Tensor:
    """The positions as a slice where they follow one another, which is written in one copy."""
    first, n = int(positions[0]) if len(positions) else 0, len(positions)
    if n and (positions == np.arange(first, first + n)).all():
        return slice(first, first + n)
    return torch.as_tensor(positions, device=device)


class RowSource:
    """Base of all sources; a subclass writes `stream` and sets the attributes.

    Attributes
    ----------
    n_rows : int
    row_shape : tuple of 2 or 3 ints
        (n_tokens, n_features), after the number of layers where there are several.
    dtype : numpy dtype
    n_prefix_tokens : int
    grid : tuple of 2 ints or None
    in_memory : bool
        Whether the tokens are there already, so that reading them twice costs little.
    """

    n_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype
    in_memory: bool = False
    n_prefix_tokens: int = 0
    grid: tuple[int, int] | None = None

    @property
    def cls_index(self) -> int | None:
        """Position of the class token: the first of the prefix tokens."""
        return 0 if self.n_prefix_tokens else None

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Yield the rows in batches, in the order in which they are ready."""
        raise NotImplementedError

    def mask(self, rows: np.ndarray) -> np.ndarray | None:
        """Real tokens of the rows, (len(rows), n_tokens) bool, or None where all are."""
        return None

    def one_layer(self, place: int) -> "RowSource":
        """The tokens of one of several layers; a source that can give it alone overrides this."""
        return OneLayer(self, place)

    def reduce(
        self,
        rows: np.ndarray,
        function: Reduction,
        *,
        fingerprint: str | None = None,
        batch_size: int | None = None,
    ) -> ArrayLike:
        """Turn every row into a vector; `fingerprint` names the function for a store."""
        raise NotImplementedError


class OneLayer(RowSource):
    """One layer of a source that gives several at once."""

    def __init__(self, whole: RowSource, place: int):
        self.whole = whole
        self.place = place
        self.n_rows = whole.n_rows
        self.row_shape = whole.row_shape[1:]
        self.dtype = whole.dtype
        self.in_memory = whole.in_memory
        self.n_prefix_tokens = whole.n_prefix_tokens
        self.grid = whole.grid

    def mask(self, rows: np.ndarray) -> np.ndarray | None:
        """Real tokens of the rows."""
        return self.whole.mask(rows)

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Yield the layer of every batch."""
        for positions, tokens, mask in self.whole.stream(rows, batch_size):
            yield TokenBatch(positions, tokens[:, self.place], mask)

    def reduce(
        self,
        rows: np.ndarray,
        function: Reduction,
        *,
        fingerprint: str | None = None,
        batch_size: int | None = None,
    ) -> ArrayLike:
        """Turn the layer of every row into a vector."""
        name = None if fingerprint is None else f"{fingerprint} of layer {self.place}"
        return self.whole.reduce(
            rows,
            lambda tokens, mask: function(tokens[:, self.place], mask),
            fingerprint=name,
            batch_size=batch_size,
        )


class ArraySource(RowSource):
    """Tokens that are there already: an array, a memory map or a tensor."""

    in_memory = True

    def __init__(
        self,
        values: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        n_prefix_tokens: int = 0,
        grid: tuple[int, int] | None = None,
    ):
        self.values = values
        self.row_mask = mask
        self.n_rows = len(values)
        self.row_shape = tuple(values.shape[1:])
        self.n_prefix_tokens = n_prefix_tokens
        self.grid = grid
        self.dtype = as_array(self._blank(0)).dtype

    def _blank(self, n_rows: int) -> torch.Tensor:
        return as_tensor(self.values[:0]).new_zeros((n_rows, *self.row_shape))

    def mask(self, rows: np.ndarray) -> np.ndarray | None:
        """Real tokens of the rows."""
        return None if self.row_mask is None else as_tensor(self.row_mask).cpu().numpy()[rows]

    def one_layer(self, place: int) -> "ArraySource":
        """The tokens of one of several layers, a view."""
        return ArraySource(
            self.values[:, place],
            mask=self.row_mask,
            n_prefix_tokens=self.n_prefix_tokens,
            grid=self.grid,
        )

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Yield the rows in order; neighbouring rows are views, not copies."""
        batch_size = batch_size or 256
        contiguous = len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
        for start in range(0, len(rows), batch_size):
            positions = np.arange(start, min(start + batch_size, len(rows)))
            chosen = rows[positions]
            index = slice(chosen[0], chosen[-1] + 1) if contiguous else chosen
            tokens = as_tensor(self.values[index])
            mask = None if self.row_mask is None else as_tensor(self.row_mask[index])
            yield TokenBatch(positions, tokens, None if mask is None else mask.to(tokens.device))

    def reduce(
        self,
        rows: np.ndarray,
        function: Reduction,
        *,
        fingerprint: str | None = None,
        batch_size: int | None = None,
    ) -> ArrayLike:
        """Turn every row into a vector: ndarray for an array, tensor for a tensor."""
        batches = self.stream(rows, batch_size)
        result = assemble(
            ((batch.positions, function(batch.tokens, batch.mask)) for batch in batches),
            len(rows),
            lambda: function(self._blank(1), None),
        )
        return result if isinstance(self.values, torch.Tensor) else as_array(result)
