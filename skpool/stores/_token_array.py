# SPDX-License-Identifier: BSD-3-Clause
"""Tokens that need not exist yet: what extraction gives and pooling takes.

A `TokenArray` looks like an array (n_samples, n_tokens, n_features) to scikit-learn: it has a
shape, splits and indexes. It holds a source of rows and the numbers of the rows it stands for, so
a fold is a view, and nothing is computed or copied before a pooling streams it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Literal, NamedTuple

import numpy as np
import torch

from skpool._config import get_config
from skpool.stores._mapped_source import MappedSource
from skpool.stores._row_source import (
    ArraySource,
    Reduction,
    RowSource,
    TokenBatch,
    as_array,
)
from skpool.utils import ArrayLike, as_tensor
from skpool.utils import fingerprint as fingerprint_of

__all__ = ["Job", "TokenArray", "keep_together"]


class TokenArray:
    """Lazy array of tokens, (n_samples, n_tokens, n_features).

    Made by `FeatureExtractor.transform`, or by `from_array`, `from_list` and `from_map`. Tokens of
    several layers have a second axis for them, (n_samples, n_layers, n_tokens, n_features).

    Parameters
    ----------
    source : RowSource
        Gives the rows.
    rows : ndarray of shape (n_samples,), default=None
        Rows of the source that this array stands for; None for all.
    drop_prefix : bool, default=False
        Whether the prefix tokens are left out.

    Attributes
    ----------
    shape : tuple of 3 or 4 ints
    ndim : int
        3, or 4 for several layers.
    dtype : numpy dtype
    n_prefix_tokens : int
        Leading tokens that are no patches (class token and registers).
    cls_index : int or None
        Position of the class token, the first of the prefix tokens.
    n_layers : int or None
        Layers of the second axis; None where there is one layer and no axis for it.
    grid : tuple of 2 ints or None
        Rows and columns of the patches, which follow row by row.
    in_memory : bool
        Whether the tokens are there already; if not, a network may have to compute them.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.stores import TokenArray
    >>> tokens = TokenArray.from_array(np.zeros((4, 5, 3)), n_prefix_tokens=1, grid=(2, 2))
    >>> tokens[[0, 2]].patches.shape
    (2, 4, 3)
    """

    def __init__(
        self, source: RowSource, rows: np.ndarray | None = None, *, drop_prefix: bool = False
    ):
        self._source = source
        self._rows = np.arange(source.n_rows) if rows is None else rows
        self._first = source.n_prefix_tokens if drop_prefix else 0

    @classmethod
    def from_array(
        cls,
        X: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        n_prefix_tokens: int = 0,
        grid: tuple[int, int] | None = None,
    ) -> "TokenArray":
        """Wrap tokens that are there already.

        Parameters
        ----------
        X : ndarray, memmap or tensor of shape (n_samples, n_tokens, n_features)
            Floating-point; other numbers are copied to float64.
        mask : array of shape (n_samples, n_tokens), default=None
            True (or 1) for real tokens; what stands under False is never read.
        n_prefix_tokens : int, default=0
        grid : tuple of 2 ints, default=None

        Returns
        -------
        tokens : TokenArray
        """
        X = _as_floats(X)
        if X.ndim != 3:
            raise ValueError(
                f"X has shape {tuple(X.shape)}; tokens have (n_samples, n_tokens, n_features)."
            )
        return cls(_array_source(X, mask, n_prefix_tokens, grid))

    @classmethod
    def from_layers(
        cls,
        X: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        n_prefix_tokens: int = 0,
        grid: tuple[int, int] | None = None,
    ) -> "TokenArray":
        """Wrap tokens of several layers that are there already.

        Parameters
        ----------
        X : ndarray, memmap or tensor of shape (n_samples, n_layers, n_tokens, n_features)
        mask, n_prefix_tokens, grid
            As in `from_array`; the same for all layers.

        Returns
        -------
        tokens : TokenArray
        """
        X = _as_floats(X)
        if X.ndim != 4:
            raise ValueError(
                f"X has shape {tuple(X.shape)}; tokens of several layers have (n_samples, "
                "n_layers, n_tokens, n_features)."
            )
        return cls(_array_source(X, mask, n_prefix_tokens, grid))

    @classmethod
    def from_list(cls, X: Sequence[ArrayLike]) -> "TokenArray":
        """Pad samples of unequal length on the right, with a mask.

        Parameters
        ----------
        X : sequence of arrays or tensors of shape (n_tokens_i, n_features)
            Of the widest float type among them.

        Returns
        -------
        tokens : TokenArray
            At least one token wide, so that samples without any can stand alone.
        """
        rows = [as_tensor(_as_floats(row)) for row in X]
        shapes = {tuple(row.shape) for row in rows}
        if {len(shape) for shape in shapes} != {2} or len({shape[1] for shape in shapes}) != 1:
            raise ValueError(
                f"X holds samples of shapes {sorted(shapes)[:5]}; each must be "
                "(n_tokens_i, n_features) with one n_features."
            )
        lengths = torch.tensor([len(row) for row in rows])
        padded = rows[0].new_zeros(
            (len(rows), max(1, int(lengths.max())), rows[0].shape[1]),
            dtype=reduce(torch.promote_types, (row.dtype for row in rows)),
        )
        for sample, row in zip(padded, rows, strict=True):
            sample[: len(row)] = row
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        if isinstance(X[0], torch.Tensor):
            return cls.from_array(padded, mask=mask.to(padded.device))
        return cls.from_array(padded.numpy(), mask=mask.numpy())

    @classmethod
    def from_map(cls, X: ArrayLike) -> "TokenArray":
        """Read maps row by row as tokens with a grid.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, height, width, n_features)

        Returns
        -------
        tokens : TokenArray
        """
        if X.ndim != 4:
            raise ValueError(
                f"X has shape {tuple(X.shape)}; maps have (n_samples, height, width, n_features)."
            )
        n, height, width, d = X.shape
        return cls.from_array(X.reshape(n, height * width, d), grid=(height, width))

    # What makes it an array to scikit-learn.

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples, (layers,) tokens, features."""
        *layers, n_tokens, n_features = self._source.row_shape
        return len(self._rows), *layers, n_tokens - self._first, n_features

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._source.row_shape) + 1

    @property
    def dtype(self) -> np.dtype:
        """Float type of the tokens."""
        return self._source.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the array would take if it were materialised."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"TokenArray(shape={self.shape}, dtype={self.dtype}, grid={self.grid})"

    def __getitem__(self, key: object) -> "TokenArray | np.ndarray":
        if isinstance(key, tuple):
            if not 1 <= len(key) <= self.ndim or not all(_is_everything(part) for part in key[1:]):
                raise IndexError("A TokenArray is indexed by samples; use np.asarray first.")
            key = key[0]
        rows = self._rows[key]
        if np.ndim(rows) > 1:
            raise IndexError("The index of a TokenArray has one axis: the samples.")
        view = TokenArray(self._source, np.atleast_1d(rows))
        view._first = self._first
        return view if np.ndim(rows) else np.asarray(view)[0]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        limit = get_config()["max_array_bytes"]
        if self.nbytes > limit:
            raise ValueError(
                f"This TokenArray of shape {self.shape} takes {self.nbytes:,} bytes as an array, "
                f"more than max_array_bytes={limit:,}; pool it, index fewer samples, or raise the "
                "limit with skpool.set_config(max_array_bytes=...)."
            )
        if copy is False:
            raise ValueError("A lazy TokenArray cannot become an array without a copy.")
        out = np.full(self.shape, np.nan, dtype=self.dtype)
        for positions, tokens, mask in self.iter_batches():
            if mask is not None:
                # Padding that nobody computed.
                out[positions] = 0
            out[positions, ..., : tokens.shape[-2], :] = as_array(tokens)
        return out if dtype is None else out.astype(dtype, copy=False)

    # What tokens have beside their values.

    @property
    def in_memory(self) -> bool:
        """Whether the tokens are there already."""
        return self._source.in_memory

    @property
    def n_prefix_tokens(self) -> int:
        """Leading tokens that are no patches."""
        return self._source.n_prefix_tokens - self._first

    @property
    def cls_index(self) -> int | None:
        """Position of the class token."""
        return None if self._first else self._source.cls_index

    @property
    def n_layers(self) -> int | None:
        """Layers of the second axis."""
        return self.shape[1] if self.ndim == 4 else None

    def layer(self, place: int) -> "TokenArray":
        """The tokens of one of several layers, as lazy as before.

        Parameters
        ----------
        place : int
            Position on the axis of the layers; negative ones count from its end.

        Returns
        -------
        tokens : TokenArray of shape (n_samples, n_tokens, n_features)
        """
        if self.n_layers is None:
            raise ValueError("These tokens are of one layer; give several to `layers`.")
        place = range(self.n_layers)[place]
        return TokenArray(self._source.one_layer(place), self._rows, drop_prefix=bool(self._first))

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches."""
        return self._source.grid

    @property
    def mask(self) -> np.ndarray | None:
        """Real tokens, (n_samples, n_tokens) bool, or None where all are real."""
        mask = self._source.mask(self._rows)
        return None if mask is None else mask[:, self._first :]

    @property
    def patches(self) -> "TokenArray":
        """The tokens after the prefix, as lazy as before."""
        return TokenArray(self._source, self._rows, drop_prefix=True)

    @property
    def cls(self) -> ArrayLike:
        """The class token of every sample, (n_samples, (n_layers,) n_features)."""
        function, name = self._cls()
        return self.reduce(function, fingerprint=name)

    def _cls(self) -> tuple[Reduction, str]:
        """What takes the class token, and its name in stores."""
        index = self.cls_index
        if index is None:
            raise ValueError("These tokens have no class token.")
        return lambda tokens, mask: tokens[..., index, :], "cls"

    @property
    def registers(self) -> np.ndarray:
        """The prefix tokens beside the class token, (n_samples, (n_layers,) n_registers, d)."""
        start = 0 if self.cls_index is None else 1
        stop = self.n_prefix_tokens
        if start >= stop:
            raise ValueError("These tokens have no registers.")
        n = stop - start
        flat = self.reduce(
            lambda tokens, mask: tokens[..., start:stop, :].flatten(1), fingerprint="registers"
        )
        return flat.reshape(len(self), *self.shape[1:-2], n, self.shape[-1])

    def to_map(self) -> np.ndarray:
        """The patches on their grid, (n_samples, height, width, n_features)."""
        if self.grid is None or self.ndim == 4:
            raise ValueError("These tokens have no grid, or are of several layers: take `layer`.")
        patches = np.asarray(self.patches)
        return patches.reshape(len(self), *self.grid, self.shape[-1])

    def map(
        self,
        function: Reduction,
        *,
        n_tokens: int | None = None,
        n_features: int | None = None,
        remask: Callable[[torch.Tensor], torch.Tensor] | None = None,
        n_prefix_tokens: int | None = None,
        grid: tuple[int, int] | Literal["same"] | None = "same",
        fingerprint: str | None = None,
    ) -> "TokenArray":
        """Tokens made of these while they are read, as lazy as these.

        Parameters
        ----------
        function : callable
            ``function(tokens, mask)`` turns a batch of tokens (batch, n_tokens, n_features) into
            another, in float32 at least; it must treat every row by itself.
        n_tokens, n_features : int, default=None
            Shape of the result; None for that of these tokens.
        remask : callable, default=None
            Turns a mask (batch, n_tokens), a tensor, into that of the result; None where tokens
            keep their places.
        n_prefix_tokens : int, default=None
            Leading tokens of the result that are no patches; None for as many as here.
        grid : tuple of 2 ints or None, default="same"
            Rows and columns of the patches of the result.
        fingerprint : str, default=None
            Names the function, so that stores keep what is made of the result.

        Returns
        -------
        tokens : TokenArray of shape (n_samples, n_tokens, n_features)

        Examples
        --------
        >>> import numpy as np
        >>> from skpool.stores import TokenArray
        >>> tokens = TokenArray.from_array(np.ones((2, 4, 3)))
        >>> doubled = tokens.map(lambda tokens, mask: 2 * tokens)
        >>> float(np.asarray(doubled)[0, 0, 0])
        2.0
        """
        source = MappedSource(
            self,
            function,
            row_shape=(n_tokens or self.shape[-2], n_features or self.shape[-1]),
            remask=remask,
            n_prefix_tokens=self.n_prefix_tokens if n_prefix_tokens is None else n_prefix_tokens,
            grid=self.grid if grid == "same" else grid,
            fingerprint=fingerprint,
        )
        return TokenArray(source)

    # How consumers read it.

    def iter_batches(self, batch_size: int | None = None) -> Iterator[TokenBatch]:
        """Yield the tokens in batches, on the device where they are.

        Parameters
        ----------
        batch_size : int, default=None
            Rows of an array at a time; None leaves the choice to the source. A backbone keeps to
            the batches of its extractor.

        Yields
        ------
        batch : TokenBatch
            With `positions` (rows of this array), `tokens` and `mask`. Rows that are stored come
            before rows that the network must compute; unreadable rows never come.
        """
        for positions, tokens, mask in self._source.stream(self._rows, batch_size):
            mask = None if mask is None else mask[:, self._first :]
            yield TokenBatch(positions, tokens[..., self._first :, :], mask)

    def reduce(
        self,
        function: Reduction,
        *,
        fingerprint: str | None = None,
        batch_size: int | None = None,
    ) -> ArrayLike:
        """Turn the tokens of every sample into a vector, batch by batch.

        Parameters
        ----------
        function : callable
            ``function(tokens, mask)`` gives a tensor (batch, n_out) for a batch; it must treat
            every row by itself.
        fingerprint : str, default=None
            Names the function, so that a store keeps and finds its results; None keeps nothing.
        batch_size : int, default=None
            Rows of an array at a time; None leaves the choice to the source. A backbone keeps to
            the batches of its extractor.

        Returns
        -------
        vectors : ndarray of shape (n_samples, n_out)
            A tensor where the tokens were given as a tensor. Unreadable rows are NaN.
        """
        function, fingerprint = self.on_source(function, fingerprint)
        return self._source.reduce(
            self._rows, function, fingerprint=fingerprint, batch_size=batch_size
        )

    def job(
        self, function: Reduction | None = None, fingerprint: str | None = None
    ) -> "Job | None":
        """Something to be computed of the tokens, to be done together with other jobs.

        Parameters
        ----------
        function, fingerprint
            As in `reduce`; without a function, the class token is taken.

        Returns
        -------
        job : Job, or None
            Of the tokens below where these are made of others; None where what makes them has no
            name, so that no store could keep the result.
        """
        if function is None:
            function, fingerprint = self._cls()
        function, fingerprint = self.on_source(function, fingerprint)
        if isinstance(self._source, MappedSource):
            tokens, function, fingerprint = self._source.below(function, fingerprint)
            return None if fingerprint is None else tokens.job(function, fingerprint)
        return Job(self._source, function, fingerprint)

    def on_source(
        self, function: Reduction, fingerprint: str | None
    ) -> tuple[Reduction, str | None]:
        """The same function for tokens that still have the prefix, and its fingerprint."""
        first = self._first
        if not first:
            return function, fingerprint

        def whole(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            return function(tokens[..., first:, :], None if mask is None else mask[:, first:])

        return whole, None if fingerprint is None else fingerprint_of(fingerprint, first)


class Job(NamedTuple):
    """A vector of every sample of a source, and its name in the store."""

    source: RowSource
    function: Reduction
    fingerprint: str | None


def keep_together(jobs: Sequence[Job], *, keep_tokens: bool) -> int:
    """Compute several vectors of the same samples in as few passes as possible, and keep them.

    Parameters
    ----------
    jobs : sequence of Job
        Of sources that compute their rows. Those under the same network and samples share a pass,
        whatever their layers.
    keep_tokens : bool
        Whether tokens are kept too, as the extractor would.

    Returns
    -------
    n_passes : int
        Passes of a network over those samples that were not stored.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.source.pass_key, []).append(job)
    n_passes = 0
    for group in groups.values():
        layers = tuple(dict.fromkeys(layer for job in group for layer in job.source.layers))
        source = group[0].source.with_layers(layers, keep_tokens=keep_tokens)
        parts = {
            (job.source.layers, job.fingerprint): (
                layers.index(job.source.layers[0]),
                job.function,
                job.fingerprint,
            )
            for job in group
        }
        n_passes += source.keep_reductions(list(parts.values())) > 0
    return n_passes


def _array_source(
    X: ArrayLike,
    mask: ArrayLike | None,
    n_prefix_tokens: int,
    grid: tuple[int, int] | None,
) -> ArraySource:
    """Check what is said about tokens against their number."""
    n_tokens = X.shape[-2]
    if not 0 <= n_prefix_tokens <= n_tokens:
        raise ValueError(
            f"n_prefix_tokens={n_prefix_tokens} must lie between 0 and the {n_tokens} tokens "
            "of a sample."
        )
    if grid is not None and grid[0] * grid[1] != n_tokens - n_prefix_tokens:
        raise ValueError(
            f"grid={tuple(grid)} does not hold the {n_tokens - n_prefix_tokens} tokens after "
            f"n_prefix_tokens={n_prefix_tokens}."
        )
    mask = None if mask is None else _check_mask(mask, (X.shape[0], n_tokens))
    return ArraySource(X, mask=mask, n_prefix_tokens=n_prefix_tokens, grid=grid)


def _is_everything(key: object) -> bool:
    return key is Ellipsis or (isinstance(key, slice) and key == slice(None))


def _as_floats(X: ArrayLike) -> ArrayLike:
    """Arrays of a float type that numpy and torch share stay; other numbers become float64."""
    if isinstance(X, torch.Tensor):
        wide = torch.float32 if X.device.type == "mps" else torch.float64
        return X if X.is_floating_point() else X.to(wide)
    X = np.asarray(X)
    if X.dtype.newbyteorder("=") in (np.float16, np.float32, np.float64):
        return X
    if X.dtype.kind not in "biufO":
        raise ValueError(f"X has dtype {X.dtype}; tokens are floating-point numbers.")
    return X.astype(np.float64)


def _check_mask(mask: ArrayLike, shape: tuple[int, int]) -> ArrayLike:
    """A boolean mask of the right shape; 0 and 1 are accepted, other numbers are not."""
    if not isinstance(mask, torch.Tensor):
        mask = np.asarray(mask)
    if tuple(mask.shape) != shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; the tokens need {shape}.")
    if mask.dtype in (bool, torch.bool):
        return mask
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask holds values other than 0 and 1; give True for real tokens.")
    return mask == 1
