# SPDX-License-Identifier: BSD-3-Clause
"""Rows by number: what a trainer learns from, wherever they lie.

Between arrays, memory maps or lazy tokens and minibatches: `VectorRows` gives feature vectors,
`TokenRows` the tokens of those samples that can be learned from. Both widen half precision a
minibatch at a time, and both are read in order, because memory maps are faster so.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import torch

from skpool._config import get_config
from skpool.stores import TokenArray
from skpool.utils import (
    ArrayLike,
    all_finite,
    as_tensor,
    check_labels,
    check_squares,
    widened,
)

__all__ = ["Rows", "TokenRows", "VectorRows", "class_numbers", "moments_of"]

Mask = torch.Tensor | None
Batch = tuple[torch.Tensor, Mask]
# Of values and mask: one vector per row.
Function = Callable[[torch.Tensor, Mask], torch.Tensor]

# Rows of a block, whatever the batch size, because sums over the blocks depend on it.
_BLOCK_VECTORS = 4096
_BLOCK_TOKENS = 256
# Part of the free memory of a device that rows may fill.
_RESIDENT_SHARE = 0.5


class Rows(Protocol):
    """What a trainer asks of its data.

    Attributes
    ----------
    numbers : ndarray of shape (n_rows,)
        The samples that the rows are.
    n_samples : int
        Samples in all.

    Notes
    -----
    Values are of float32 or float64; a mask (batch, n_tokens) is None where all tokens are real.
    """

    numbers: np.ndarray
    n_samples: int

    def __len__(self) -> int: ...

    def among(self, index: np.ndarray) -> Self:
        """Some of the rows, without a copy; `index` is sorted."""

    def take(self, index: np.ndarray) -> Batch:
        """Values and mask of some rows; `index` is sorted."""

    def blocks(self) -> Iterator[Batch]:
        """Values and mask of all rows, in order, some rows at a time."""

    def reduce(self, function: Function) -> torch.Tensor:
        """Turn every sample into a vector, block by block."""

    def on(self, device: torch.device) -> Self:
        """The same rows on a device if they fit there, else as they are."""


def _fits(n_bytes: int, device: torch.device) -> bool:
    """Whether so many bytes leave enough of a device's memory to compute in."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return n_bytes <= _RESIDENT_SHARE * free


class VectorRows:
    """Feature vectors by number.

    Parameters
    ----------
    X : ndarray, memmap or tensor of shape (n_samples, n_features)
        Of floats.
    numbers : ndarray of shape (n_rows,), default=None
        The samples that the rows are, sorted; None for all.

    Attributes
    ----------
    numbers : ndarray of shape (n_rows,)
    n_samples : int
        Samples of X, those that are no rows included.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.training import VectorRows
    >>> values, mask = VectorRows(np.ones((5, 3), dtype=np.float16)).take(np.array([0, 4]))
    >>> values.shape, values.dtype
    (torch.Size([2, 3]), torch.float32)
    """

    def __init__(self, X: ArrayLike, *, numbers: np.ndarray | None = None):
        self._X = X
        self.n_samples = len(X)
        self.numbers = np.arange(len(X)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def among(self, index: np.ndarray) -> "VectorRows":
        """Some of the rows, without a copy.

        Parameters
        ----------
        index : ndarray of shape (n_rows,)
            Sorted.

        Returns
        -------
        rows : VectorRows
        """
        return VectorRows(self._X, numbers=self.numbers[index])

    def take(self, index: np.ndarray) -> Batch:
        """The vectors of some rows, in float32 at least, and None.

        Parameters
        ----------
        index : ndarray of shape (batch,)
            Sorted.

        Returns
        -------
        values : tensor of shape (batch, n_features)
        mask : None
        """
        numbers = self.numbers[index]
        if isinstance(self._X, torch.Tensor):
            numbers = torch.from_numpy(numbers).to(self._X.device)
        return widened(as_tensor(self._X[numbers])), None

    def blocks(self) -> Iterator[Batch]:
        """The vectors of all rows, in order, some rows at a time.

        Yields
        ------
        values : tensor of shape (batch, n_features)
        mask : None
        """
        for start in range(0, len(self), _BLOCK_VECTORS):
            yield self.take(np.arange(start, min(start + _BLOCK_VECTORS, len(self))))

    def reduce(self, function: Function) -> torch.Tensor:
        """Turn every row into a vector, block by block.

        Parameters
        ----------
        function : callable
            ``function(values, None)`` gives a tensor (batch, n_out).

        Returns
        -------
        vectors : tensor of shape (n_samples, n_out)
        """
        return torch.cat([function(values, mask) for values, mask in self.blocks()])

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of every feature, in float64.

        Returns
        -------
        mean, scale : tensor of shape (n_features,)
            The scale of a constant feature is 1.
        """
        return moments_of(values for values, _ in self.blocks())

    def on(self, device: torch.device) -> "VectorRows":
        """The same rows on a device if they fit there, in their own float type.

        Parameters
        ----------
        device : torch.device

        Returns
        -------
        rows : VectorRows
        """
        tensor = as_tensor(self._X)
        if tensor.device == device or not _fits(tensor.nbytes, device):
            return self
        return VectorRows(tensor.to(device), numbers=self.numbers)


def _check_read(tokens: torch.Tensor, mask: Mask, positions: np.ndarray) -> None:
    """Tokens of a network are checked when they are read; those of an array were before."""
    real = tokens if mask is None else tokens.where(mask[..., None], 0.0)
    if all_finite(real):
        return
    bad = int((~torch.isfinite(real).flatten(1).all(dim=1)).nonzero()[0])
    raise ValueError(
        f"Input X contains NaN or infinity in the computed tokens of sample {int(positions[bad])};"
        " leave it out, or let the network compute in float32."
    )


def _read_once(tokens: TokenArray, batch_size: int | None) -> tuple[np.ndarray, TokenArray]:
    """Which samples could be read, and their tokens, kept if they fit into `max_array_bytes`."""
    keep = tokens.nbytes <= get_config()["max_array_bytes"]
    came, kept = np.zeros(len(tokens), dtype=bool), None
    for positions, values, mask in tokens.iter_batches(batch_size):
        _check_read(values, mask, positions)
        came[positions] = True
        if keep and kept is None:
            kept = values.new_zeros(tokens.shape)
        if keep:
            kept[torch.from_numpy(positions), : values.shape[1]] = values
    return came, tokens if kept is None else TokenArray.from_array(kept, mask=tokens.mask)


class TokenRows:
    """The samples that can be learned from: readable, and with a real token.

    Tokens that lie in an array are taken from there. Those of a network are read once, when the
    first row is asked for, and kept in their own float type, where they are computed, if they take
    no more than the option `max_array_bytes`; more than that are asked for again whenever a
    minibatch needs them, which the store or cache of the extractor answers.

    Parameters
    ----------
    tokens : TokenArray of shape (n_samples, n_tokens, n_features)
    batch_size : int, default=None
        Rows of a plain array that are read at a time; None leaves the choice to the tokens.

    Attributes
    ----------
    numbers : ndarray of shape (n_rows,)
        The samples that the rows are.
    n_samples : int
        Samples in all.
    """

    def __init__(self, tokens: TokenArray, *, batch_size: int | None = None):
        self._source = tokens
        self._batch_size = batch_size
        self.n_samples = len(tokens)

    @cached_property
    def _read(self) -> tuple[np.ndarray, TokenArray]:
        tokens = self._source
        usable = np.ones(len(tokens), dtype=bool)
        if tokens.mask is not None:
            usable = tokens.mask.any(axis=1)
        if not tokens.in_memory:
            came, tokens = _read_once(tokens, self._batch_size)
            usable &= came
        numbers = np.flatnonzero(usable)
        if not len(numbers):
            raise ValueError("X has no sample with a real token to learn from.")
        return numbers, tokens

    @property
    def numbers(self) -> np.ndarray:
        """The samples that the rows are."""
        return self._read[0]

    def __len__(self) -> int:
        return len(self.numbers)

    def _like(self, numbers: np.ndarray, tokens: TokenArray) -> "TokenRows":
        """Rows of tokens that were read."""
        rows = TokenRows(self._source, batch_size=self._batch_size)
        rows._read = numbers, tokens
        return rows

    def among(self, index: np.ndarray) -> "TokenRows":
        """Some of the rows, without a copy.

        Parameters
        ----------
        index : ndarray of shape (n_rows,)
            Sorted.

        Returns
        -------
        rows : TokenRows
        """
        numbers, tokens = self._read
        return self._like(numbers[index], tokens)

    def take(self, index: np.ndarray) -> Batch:
        """The tokens of some rows, in float32 at least, and their mask.

        Trailing places that no row fills are cut off, and a mask without a False is None.

        Parameters
        ----------
        index : ndarray of shape (batch,)

        Returns
        -------
        values : tensor of shape (batch, n_tokens, n_features)
        mask : tensor of shape (batch, n_tokens), bool, or None
        """
        numbers, tokens = self._read
        chosen = tokens[numbers[index]]
        if tokens.in_memory:
            _, values, mask = next(chosen.iter_batches(len(index)))
        else:
            values, mask = _gathered(chosen)
        values = widened(values)
        if mask is None or bool(mask.all()):
            return values, None
        length = int(mask.any(dim=0).nonzero()[-1]) + 1
        return values[:, :length], mask[:, :length]

    def blocks(self) -> Iterator[Batch]:
        """The tokens of all rows, in order, some rows at a time.

        Yields
        ------
        values, mask
            As of `take`.
        """
        for start in range(0, len(self), _BLOCK_TOKENS):
            yield self.take(np.arange(start, min(start + _BLOCK_TOKENS, len(self))))

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of every feature over the real tokens, in float64.

        Returns
        -------
        mean, scale : tensor of shape (n_features,)
            The scale of a constant feature is 1.
        """
        return moments_of(
            values.flatten(0, 1) if mask is None else values[mask] for values, mask in self.blocks()
        )

    def reduce(self, function: Function) -> torch.Tensor:
        """Turn every sample into a vector, in one pass that keeps no tokens.

        Parameters
        ----------
        function : callable
            ``function(values, mask)`` gives a tensor (batch, n_out).

        Returns
        -------
        vectors : tensor of shape (n_samples, n_out)
            Of all samples, those that are no rows included.

        Raises
        ------
        ValueError
            A sample has no real token or could not be read.
        """
        tokens = self._source
        if tokens.mask is not None and not tokens.mask.any(axis=1).all():
            empty = np.flatnonzero(~tokens.mask.any(axis=1))
            raise ValueError(
                f"X has {len(empty)} sample(s) without a real token, the first at position "
                f"{empty[0]}; leave them out."
            )

        def wide(values: torch.Tensor, mask: Mask) -> torch.Tensor:
            return function(widened(values), mask).to(values.device)

        vectors = as_tensor(tokens.reduce(wide, batch_size=self._batch_size or _BLOCK_TOKENS))
        unread = vectors.isnan().any(dim=1).nonzero()
        if len(unread) and not tokens.in_memory:
            raise ValueError(
                f"Input X contains {len(unread)} sample(s) that could not be read, the first at "
                f"position {int(unread[0])}; leave them out."
            )
        return vectors

    def on(self, device: torch.device) -> "TokenRows":
        """The same rows on a device if they fit there, in their own float type.

        Parameters
        ----------
        device : torch.device

        Returns
        -------
        rows : TokenRows
        """
        numbers, tokens = self._read
        if not tokens.in_memory or not _fits(tokens.nbytes, device):
            return self
        kept = None
        for positions, values, _ in tokens.iter_batches(_BLOCK_TOKENS):
            if kept is None:
                kept = torch.zeros(tokens.shape, dtype=values.dtype, device=device)
            kept[torch.from_numpy(positions).to(device), : values.shape[1]] = values.to(device)
        return self._like(numbers, TokenArray.from_array(kept, mask=tokens.mask))


def _gathered(chosen: TokenArray) -> Batch:
    """Tokens that come in any order, in the order in which they were asked for."""
    values, n_read = None, 0
    for positions, part, _ in chosen.iter_batches():
        values = part.new_zeros(chosen.shape) if values is None else values
        values[torch.from_numpy(positions), : part.shape[1]] = part
        n_read += len(positions)
    if n_read < len(chosen):
        raise ValueError(
            f"{len(chosen) - n_read} sample(s) could be read once and not again; keep the inputs "
            "in place during training, or give the extractor a store."
        )
    mask = chosen.mask
    return values, None if mask is None else torch.from_numpy(mask).to(values.device)


def moments_of(blocks: Iterator[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of columns, in float64.

    Parameters
    ----------
    blocks : iterator of tensors of shape (n, n_features)

    Returns
    -------
    mean, scale : tensor of shape (n_features,)
        On the host; the scale of a constant column is 1.

    Raises
    ------
    ValueError
        A value is NaN or infinite, or squares leave the range of float64.
    """
    n, shift = 0, None
    for block in blocks:
        # Apple's GPUs have no float64.
        block = (block.cpu() if block.device.type == "mps" else block).double()
        check_squares(block)
        if shift is None:
            # Sums about a mean of the data keep their digits.
            shift = block.mean(dim=0)
            first, second = torch.zeros_like(shift), torch.zeros_like(shift)
        block = block - shift
        n += len(block)
        first += block.sum(dim=0)
        second += block.square().sum(dim=0)
    variance = (second / n - (first / n).square()).clamp_min(0.0)
    mean = shift + first / n
    # What is left of a constant column is rounding of its mean.
    floor = (mean.abs() * 1e-7).square()
    return mean.cpu(), torch.where(variance > floor, variance, 1.0).sqrt().cpu()


def class_numbers(
    y: object, n_samples: int, chosen: np.ndarray, who: str, *, min_classes: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """The classes of the chosen samples, and the number of the class of each.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels: integers, booleans or text.
    n_samples : int
    chosen : ndarray of shape (n_rows,)
        Positions of the samples that are learned from.
    who : str
        The estimator's name, for messages.
    min_classes : int, default=2
        Fewest classes accepted.

    Returns
    -------
    classes : ndarray of shape (n_classes,)
        Sorted.
    codes : ndarray of shape (n_rows,)
    """
    classes, codes = np.unique(
        check_labels(y, n_samples=n_samples, who=who)[chosen], return_inverse=True
    )
    if len(classes) < min_classes:
        raise ValueError(f"y holds one class, {classes.tolist()}; {who} needs two.")
    return classes, codes
