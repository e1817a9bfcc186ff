# SPDX-License-Identifier: BSD-3-Clause
"""Block-centred sums and products: the one place where rows become moments.

A block of rows is centred on a reference point near the mean of each row's class before anything
is multiplied, so that a mean of a thousand standard deviations costs no digits; the products run
in the product type where the data lie, and their results are added up in float64.
"""

from copy import copy

import numpy as np
import scipy.sparse
import torch

from skpool.statistics._open_scatter import OpenScatter
from skpool.statistics._symmetric_products import add_outer, add_product, panels
from skpool.utils import ArrayLike, as_tensor, check_finite, full_float32, side_by_side, widened

__all__ = [
    "batch_moments",
    "higher_moments",
    "resolve_product_dtype",
]

# More rows than this in one product round worse than the block-wise sums promise.
_MAX_FLOAT32_ROWS = 16384
# Up to this width float64 products cost next to nothing, and float32 products round worst.
_NARROW = 256
# Centred rows that a CPU multiplies at once: few enough to stay in its caches, in which they are
# summed up too, and enough to keep its threads busy. Wide rows take more, since the d x d sums are
# read and written every time.
_CHUNK_BYTES = 3 * 2**20
# Sums of squares below this are of numbers whose squares float32 may have rounded away.
_LEAST_SQUARES = 1e-25
# Numbers below this have squares that float64 rounds away.
_NO_SQUARES = 1e-140
# From so many blocks on, a CPU takes some in each thread; for fewer it is not worth the memory.
_MANY_BLOCKS = 4
# Rows that the reference point of a single class is the mean of, taken from all over the batch.
_REFERENCE_ROWS = 1024


def resolve_product_dtype(
    product_dtype: str, dtype: torch.dtype, *, n_features: int, block_rows: int
) -> torch.dtype:
    """Return the type in which blocks of `dtype` are centred and multiplied."""
    if product_dtype != "auto":
        return getattr(torch, product_dtype)
    exact = dtype == torch.float64 or n_features <= _NARROW or block_rows > _MAX_FLOAT32_ROWS
    return torch.float64 if exact else torch.float32


def _wide(device: torch.device) -> torch.dtype:
    # Apple's GPUs have no float64.
    return torch.float32 if device.type == "mps" else torch.float64


def _widened(rows: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    if rows.device.type != "cpu":
        return rows.to(wide)
    # By numpy, in one thread: torch's threads would wait for each other at every chunk.
    return torch.from_numpy(rows.numpy().astype(np.float64, copy=False))


def _less_centres(
    rows: torch.Tensor, centres: torch.Tensor, index: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Rows less the centre of the class of each, in the memory of `out`."""
    if len(centres) == 1:
        return torch.sub(rows, centres, out=out)
    torch.index_select(centres, 0, index, out=out)
    return torch.sub(rows, out, out=out)


def _add_by_class(out: torch.Tensor, codes: np.ndarray, rows: torch.Tensor) -> None:
    if len(out) == 1:
        out[0] += rows.sum(dim=0)
        return
    labels, inverse = np.unique(codes, return_inverse=True)
    if out.device.type == "cpu":
        # One entry per column: a scatter-add in one thread, without the many barriers that
        # index_add_ waits at when other processes use the processor too.
        rows = rows.numpy()
        entries = (np.ones(len(codes), rows.dtype), inverse, np.arange(len(codes) + 1))
        members = scipy.sparse.csc_array(entries, shape=(len(labels), len(codes)))
        out.numpy()[labels] += members @ rows
        return
    # index_add_ uses atomics on a GPU, whose order (and last bits) change from run to run.
    order = torch.from_numpy(np.argsort(inverse, kind="stable")).to(out.device)
    lengths = torch.from_numpy(np.bincount(inverse)).to(out.device)
    sums = torch.segment_reduce(rows[order], "sum", lengths=lengths, axis=0)
    out[torch.from_numpy(labels).to(out.device)] += sums


def _chunk_rows(block: torch.Tensor, dtype: torch.dtype) -> int:
    d = block.shape[1]
    if block.device.type != "cpu":
        return len(block)
    return max(_CHUNK_BYTES // (d * dtype.itemsize), d // 2, 1)


def _slices(part: slice, block_rows: int) -> list[slice]:
    starts = range(part.start, part.stop, block_rows)
    return [slice(start, min(start + block_rows, part.stop)) for start in starts]


def _members(codes: np.ndarray, block_rows: int) -> list[np.ndarray]:
    """Which rows to take together for the products of every class by itself."""
    order = np.argsort(codes, kind="stable")
    classes = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    return [
        members[start : start + block_rows]
        for members in classes
        for start in range(0, len(members), block_rows)
    ]


class _Panels:
    """The product of one buffer of rows with itself, again and again into one matrix.

    Its views are cut once: for a chunk of rows, cutting them takes a tenth of the product's time.
    """

    def __init__(self, gram: torch.Tensor, rows: torch.Tensor):
        self.gram, self.rows = gram, rows
        self._views = [
            (gram[above, right], rows[:, above].T, rows[:, right])
            for above, right in panels(rows.shape[1], rows.device)
        ]

    def are_of(self, gram: torch.Tensor, rows: torch.Tensor) -> bool:
        """Tell whether the views are of these very numbers."""
        same = rows.data_ptr() == self.rows.data_ptr() and rows.shape == self.rows.shape
        return same and gram.data_ptr() == self.gram.data_ptr()

    def add(self) -> None:
        """Add ``rows.T @ rows`` to the upper triangle."""
        for target, left, right in self._views:
            target.addmm_(left, right)


class _Accumulator:
    """Sums of one call over its blocks, around fixed reference points, on the data's device."""

    def __init__(
        self,
        n_classes: int,
        reference: np.ndarray,
        scatter: str,
        dtype: torch.dtype,
        device: torch.device,
        n_blocks: int,
    ):
        wide = _wide(device)
        d = reference.shape[1]
        self.kind, self.dtype = scatter, dtype
        self.known = ~np.isnan(reference[:, 0])
        # Plain sums in float64 need no reference; only products of centred rows do.
        if scatter == "none":
            reference, self.known = np.zeros_like(reference), np.ones(n_classes, dtype=bool)
        self.reference = torch.from_numpy(reference).to(device=device, dtype=dtype)
        self.sums = torch.zeros(n_classes, d, dtype=wide, device=device)
        self.squares = self.gram = self.diagonal = None
        self._room = self._panels = self._partial = None
        if scatter in ("diag", "shared_diag"):
            rows = 1 if scatter == "shared_diag" else n_classes
            self.squares = torch.zeros(rows, d, dtype=wide, device=device)
        elif scatter in ("shared", "per_class"):
            matrices = 1 if scatter == "shared" else n_classes
            # Products of one block are added up in their own type anyway.
            summed = dtype if n_blocks == 1 else wide
            self.gram = torch.zeros(matrices, d, d, dtype=summed, device=device)
            if dtype != wide:
                # Squares all have one sign, and float32 rounds their sums worse than those of
                # products; they are few, so they are added up by themselves.
                self.diagonal = torch.zeros(matrices, d, dtype=wide, device=device)

    def start(self, tensor: torch.Tensor) -> None:
        """Take the reference of a single new class from all over the batch."""
        if len(self.known) == 1 and not self.known[0]:
            rows = tensor[:: -(-len(tensor) // _REFERENCE_ROWS)]
            self.reference[0] = rows.to(self.sums.dtype).mean(dim=0).to(self.dtype)
            self.known[0] = True

    def empty(self) -> "_Accumulator":
        """Return sums of nothing around the same reference."""
        new = copy(self)
        new._room = new._panels = new._partial = None
        for name in ("sums", "squares", "gram", "diagonal"):
            held = getattr(self, name)
            setattr(new, name, None if held is None else torch.zeros_like(held))
        return new

    def merge(self, other: "_Accumulator") -> None:
        """Add sums around the same reference."""
        for name in ("sums", "squares", "gram", "diagonal"):
            if getattr(self, name) is not None:
                getattr(self, name).add_(getattr(other, name))

    def complete_reference(self, block: torch.Tensor, codes: np.ndarray) -> None:
        """Take the mean of the first rows of every new class as its reference."""
        new = np.flatnonzero(~self.known[codes])
        if not new.size:
            return
        labels, inverse = np.unique(codes[new], return_inverse=True)
        rows = block if len(new) == len(block) else block[torch.from_numpy(new).to(block.device)]
        # A point near the mean will do, so float32 is exact enough.
        rows = widened(rows)
        shape = len(labels), rows.shape[1]
        means = torch.zeros(shape, dtype=self.sums.dtype, device=rows.device)
        _add_by_class(means, inverse, rows)
        means /= torch.from_numpy(np.bincount(inverse)).to(means.device)[:, None]
        self.reference[torch.from_numpy(labels).to(block.device)] = means.to(self.dtype)
        self.known[labels] = True

    def add(self, block: torch.Tensor, codes: np.ndarray, weights: torch.Tensor | None) -> None:
        index = torch.from_numpy(codes).to(block.device)
        if self.kind != "none":
            self.complete_reference(block, codes)
        step = _chunk_rows(block, self.dtype)
        # Blocks of "per_class" are of one class each, see `_members`.
        at = int(codes[0]) if self.kind == "per_class" else 0
        room = self._rows_room(min(step, len(block)))
        for start in range(0, len(block), step):
            part = slice(start, start + step)
            rows = block[part]
            if self.kind == "none":
                rows = rows.to(self.dtype)
            else:
                rows = _less_centres(rows, self.reference, index[part], room[: len(rows)])
            w = None if weights is None else weights[part]
            self._add_sums(rows, codes[part], w)
            if self.gram is not None:
                self._add_products(at, rows, w, several=len(block) > step)
        if self._partial is not None:
            for above, right in panels(len(self._partial), block.device):
                self.gram[at, above, right] += self._partial[above, right]
            self._partial.zero_()

    def _rows_room(self, n_rows: int) -> torch.Tensor:
        """Memory for centred rows, the same for every chunk."""
        if self._room is None or len(self._room) < n_rows:
            self._room = self.reference.new_empty(n_rows, self.reference.shape[1])
        return self._room[:n_rows]

    def _add_products(
        self, at: int, rows: torch.Tensor, weights: torch.Tensor | None, *, several: bool
    ) -> None:
        """Add the products of centred rows, which are not used any more after that."""
        gram = self.gram[at]
        if several and gram.dtype != self.dtype:
            # The products of several chunks add up in their own type first.
            if self._partial is None:
                self._partial = torch.zeros_like(gram, dtype=self.dtype)
            gram = self._partial
        weighted = rows if weights is None else rows * weights[:, None].to(rows.dtype)
        if weights is not None or gram.dtype != rows.dtype:
            add_product(gram, rows, weighted)
        else:
            if self._panels is None or not self._panels.are_of(gram, rows):
                self._panels = _Panels(gram, rows)
            self._panels.add()
        if self.diagonal is not None:
            self.diagonal[at] += rows.mul_(weighted).sum(dim=0)

    def _add_sums(
        self, rows: torch.Tensor, codes: np.ndarray, weights: torch.Tensor | None
    ) -> None:
        if len(self.sums) == 1 and self.gram is not None:
            ones = torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
            self.sums[0] += rows.T @ (ones if weights is None else weights.to(rows.dtype))
            return
        # Centred rows of a chunk add up in their own type, the chunks in float64; plain rows of
        # "none" may lie anywhere, and squares have one sign.
        centred = self.gram is not None and self.dtype != self.sums.dtype
        plain = rows if centred else _widened(rows, self.sums.dtype)
        weights = weights if weights is None or not centred else weights.to(rows.dtype)
        weighted = plain if weights is None else plain * weights[:, None]
        _add_by_class(self.sums, codes, weighted)
        if self.squares is not None:
            _add_by_class(self.squares, codes, weighted * plain)

    def is_in_range(self) -> bool:
        """Tell whether squares in float32 have kept their digits, as far as their sums say."""
        if self.diagonal is None:
            return True
        return _LEAST_SQUARES < self.total() < np.inf

    def total(self) -> float:
        """Sum of all squares."""
        if self.diagonal is not None:
            return float(self.diagonal.sum())
        if self.gram is None:
            return float(self.squares.sum())
        return float(self.gram.diagonal(dim1=1, dim2=2).sum())

    def is_finite(self) -> bool:
        parts = (self.sums, self.squares, self.gram, self.diagonal)
        parts = [part for part in parts if part is not None]
        return all(bool(torch.isfinite(part.sum())) for part in parts)

    def finish(
        self, counts: np.ndarray
    ) -> tuple[np.ndarray, OpenScatter | np.ndarray | list | None]:
        """Return the means, and the scatter around them instead of around the reference."""
        # A class whose rows all weigh nothing has count 0; its mean is never used.
        divisor = np.maximum(counts, np.finfo(np.float64).tiny)[:, None]
        sums = self.sums.cpu().numpy().astype(np.float64, copy=False)
        shift = sums / divisor
        means = self.reference.cpu().double().numpy() + shift
        return means, self._scatter(sums, shift, divisor)

    def _scatter(
        self, sums: np.ndarray, shift: np.ndarray, divisor: np.ndarray
    ) -> OpenScatter | np.ndarray | list | None:
        if self.kind == "none":
            return None
        if self.kind == "shared":
            gram = self.gram[0].cpu()
            diagonal = None if self.diagonal is None else self.diagonal[0].cpu()
            return OpenScatter(gram, diagonal, self.reference.cpu().double().numpy())
        if self.gram is None:
            held = self.squares.cpu().numpy().astype(np.float64, copy=False)
            excess = sums * shift
            return held[0] - excess.sum(axis=0) if self.kind == "shared_diag" else held - excess
        held = [gram.cpu().double().numpy() for gram in self.gram]
        if self.diagonal is not None:
            for g, squares in zip(held, self.diagonal.cpu().numpy(), strict=True):
                np.fill_diagonal(g, squares)
        for g, e in zip(held, sums / np.sqrt(divisor), strict=True):
            add_outer(g, e[None], sign=-1.0)
        return held


def _summed(
    tensor: torch.Tensor,
    codes: np.ndarray,
    reference: np.ndarray,
    weights: np.ndarray | None,
    scatter: str,
    dtype: torch.dtype,
    block_rows: int,
) -> _Accumulator:
    n = len(tensor)
    whole = slice(0, n)
    blocks = _members(codes, block_rows) if scatter == "per_class" else _slices(whole, block_rows)
    total = _Accumulator(len(reference), reference, scatter, dtype, tensor.device, len(blocks))
    w = None
    if weights is not None:
        w = as_tensor(weights).to(device=tensor.device, dtype=total.sums.dtype)

    def add(sums: _Accumulator, parts: list) -> None:
        for part in parts:
            sums.add(tensor[part], codes[part], None if w is None else w[part])

    with full_float32():
        total.start(tensor)
        # A matrix per class is not to be held twice.
        is_small = len(blocks) < _MANY_BLOCKS or scatter == "per_class"
        if tensor.device.type != "cpu" or is_small:
            add(total, blocks)
            return total
        if scatter != "none":
            for part in blocks:
                total.complete_reference(tensor[part], codes[part])
        others = {}

        def work(part: slice) -> None:
            if part.start:
                others[part.start] = total.empty()
            add(others.get(part.start, total), _slices(part, block_rows))

        side_by_side(work, n)
    for _, other in sorted(others.items()):
        total.merge(other)
    return total


def batch_moments(
    X: ArrayLike,
    codes: np.ndarray,
    *,
    reference: np.ndarray,
    weights: np.ndarray | None = None,
    scatter: str = "shared",
    dtype: torch.dtype = torch.float64,
    block_rows: int = 8192,
) -> tuple[np.ndarray, np.ndarray, OpenScatter | np.ndarray | list | None]:
    """Return counts, means and scatter of the classes of one batch.

    Parameters
    ----------
    X : ndarray or tensor of shape (n_samples, n_features)
        Read block by block, computed where it lies.
    codes : ndarray of shape (n_samples,)
        Class of each row, 0 to n_classes - 1.
    reference : ndarray of shape (n_classes, n_features)
        A point near the mean of each class; NaN rows are replaced by the mean of the class's rows
        in the first block that holds any.
    weights : ndarray of shape (n_samples,), default=None
        Weights of the rows.
    scatter : {"none", "shared", "per_class", "diag", "shared_diag"}, default="shared"
        What to sum up around the class means.
    dtype : torch.dtype, default=torch.float64
        Type of the products, see `resolve_product_dtype`.
    block_rows : int, default=8192
        Rows per product.

    Returns
    -------
    counts : ndarray of shape (n_classes,)
    means : ndarray of shape (n_classes, n_features)
    scatter : OpenScatter for "shared", else ndarray, list of ndarray or None

    Raises
    ------
    ValueError
        NaN or infinity in X, or products that overflow.
    """
    tensor = as_tensor(X)
    wide = _wide(tensor.device)
    dtype = wide if dtype == torch.float64 else dtype
    sums = _summed(tensor, codes, reference, weights, scatter, dtype, block_rows)
    if dtype != wide and not sums.is_in_range():
        # Squares of numbers below 1e-19 are nothing in float32, and of those above 1e19 infinite.
        sums = _summed(tensor, codes, reference, weights, scatter, wide, block_rows)
    if not sums.is_finite():
        # One NaN or infinity reaches the sums, so good rows are never looked at twice.
        check_finite(X)
        name = str(sums.sums.dtype).removeprefix("torch.")
        raise ValueError(f"The products of X overflow in {name}; scale X down.")
    if scatter != "none" and sums.total() < _NO_SQUARES:
        # Equal rows have no squares either, but are not that small.
        peak = float(tensor.abs().max())
        if 0 < peak < _NO_SQUARES:
            raise ValueError(
                f"The values of X are at most {peak:.3g}, and their squares are 0 in float64; "
                "scale X up."
            )
    counts = np.bincount(codes, weights=weights, minlength=len(reference)).astype(np.float64)
    return (counts, *sums.finish(counts))


def higher_moments(
    X: torch.Tensor, codes: np.ndarray, means: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return sums over the rows of each class, with v a row less the mean of its class.

    Parameters
    ----------
    X : tensor of shape (n_samples, n_features)
    codes : ndarray of shape (n_samples,)
        Class of each row, 0 to n_classes - 1.
    means : ndarray of shape (n_classes, n_features)
    weights : ndarray of shape (n_samples,), default=None

    Returns
    -------
    third : ndarray of shape (n_classes, n_features)
        Sums of ``|v|^2 v``.
    fourth : ndarray of shape (n_classes,)
        Sums of ``|v|^4``.
    """
    wide = _wide(X.device)
    centres = torch.tensor(means, dtype=wide, device=X.device)
    third, fourth = torch.zeros_like(centres), np.zeros(len(means))
    step = _chunk_rows(X, wide)
    for start in range(0, len(X), step):
        part = slice(start, start + step)
        index = torch.from_numpy(codes[part]).to(X.device)
        rows = X[part].to(wide) - centres[index]
        squares = rows.square().sum(dim=1)
        w = torch.ones_like(squares) if weights is None else as_tensor(weights[part]).to(squares)
        _add_by_class(third, codes[part], rows * (w * squares)[:, None])
        powers = (w * squares.square()).cpu().double().numpy()
        fourth += np.bincount(codes[part], weights=powers, minlength=len(means))
    return third.cpu().double().numpy(), fourth
