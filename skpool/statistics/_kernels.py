# SPDX-License-Identifier: BSD-3-Clause
"""Block-centred sums and products: the one place where rows become moments.

A block of rows is centred on a reference point near the mean of each row's class before anything
is multiplied, so that a mean of a thousand standard deviations costs no digits; the products run
in the product type where the data lie, and their results are added up in float64.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse
import torch

from skpool.utils import ArrayLike, as_tensor, check_finite, full_float32

__all__ = [
    "batch_moments",
    "fourth_moment",
    "outer_sum",
    "resolve_product_dtype",
]

# More rows than this in one product round worse than the block-wise sums promise.
_MAX_FLOAT32_ROWS = 16384
# Up to this width float64 products cost next to nothing, and float32 products round worst.
_NARROW = 256
# Rows per product on a CPU, whose float32 products add up one after the other: 512 rows keep the
# scatter within 1e-7 (8192 rows: 2e-7) for a fifth of the time, and stay in the cache. Wide rows
# take more at once, where adding up the d x d results would cost as much as the products.
_CHUNK_ROWS = 512


def resolve_product_dtype(
    product_dtype: str, dtype: torch.dtype, *, n_features: int, block_rows: int
) -> torch.dtype:
    """Return the type in which blocks of `dtype` are centred and multiplied."""
    if product_dtype != "auto":
        return getattr(torch, product_dtype)
    exact = dtype == torch.float64 or n_features <= _NARROW or block_rows > _MAX_FLOAT32_ROWS
    return torch.float64 if exact else torch.float32


def outer_sum(rows: np.ndarray, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """Return ``rows.T @ rows`` in float64, multiplied in `dtype` where that saves time."""
    if len(rows) <= _CHUNK_ROWS:
        dtype = torch.float64
    rows = rows.astype(np.float32 if dtype == torch.float32 else np.float64, copy=False)
    # numpy calls the symmetric rank-k product of the BLAS here: half the work, exact symmetry.
    return (rows.T @ rows).astype(np.float64, copy=False)


def _wide(device: torch.device) -> torch.dtype:
    # Apple's GPUs have no float64.
    return torch.float32 if device.type == "mps" else torch.float64


def _add_by_class(out: torch.Tensor, codes: np.ndarray, rows: torch.Tensor) -> None:
    if len(out) == 1:
        out[0] += rows.sum(dim=0)
        return
    labels, inverse = np.unique(codes, return_inverse=True)
    if out.device.type == "cpu":
        # One entry per column: a scatter-add in one thread, without the many barriers that
        # index_add_ waits at when other processes use the processor too.
        entries = (np.ones(len(codes)), inverse, np.arange(len(codes) + 1))
        members = scipy.sparse.csc_array(entries, shape=(len(labels), len(codes)))
        out.numpy()[labels] += members @ rows.numpy()
        return
    # index_add_ uses atomics on a GPU, whose order (and last bits) change from run to run.
    order = torch.from_numpy(np.argsort(inverse, kind="stable")).to(out.device)
    lengths = torch.from_numpy(np.bincount(inverse)).to(out.device)
    sums = torch.segment_reduce(rows[order], "sum", lengths=lengths, axis=0)
    out[torch.from_numpy(labels).to(out.device)] += sums


def _chunk_rows(block: torch.Tensor) -> int:
    if block.device.type != "cpu":
        return len(block)
    return max(_CHUNK_ROWS, block.shape[1] // 2)


def _blocks(codes: np.ndarray, scatter: str, block_rows: int) -> Iterator[slice | np.ndarray]:
    """Yield which rows to take together: neighbours, or those of one class for its own product."""
    if scatter != "per_class":
        for start in range(0, len(codes), block_rows):
            yield slice(start, start + block_rows)
        return
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order])) + 1
    for members in np.split(order, starts):
        for start in range(0, len(members), block_rows):
            yield members[start : start + block_rows]


def _product(rows: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    weighted = rows if weights is None else rows * weights[:, None].to(rows.dtype)
    return rows.T @ weighted


class _Accumulator:
    """Sums of one call over its blocks, around fixed reference points, on the data's device."""

    def __init__(
        self,
        n_classes: int,
        reference: np.ndarray,
        scatter: str,
        dtype: torch.dtype,
        device: torch.device,
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
        self.squares = self.gram = None
        if scatter in ("diag", "shared_diag"):
            rows = 1 if scatter == "shared_diag" else n_classes
            self.squares = torch.zeros(rows, d, dtype=wide, device=device)
        elif scatter == "shared":
            self.gram = torch.zeros(d, d, dtype=wide, device=device)
        elif scatter == "per_class":
            self.gram = torch.zeros(n_classes, d, d, dtype=wide, device=device)

    def _complete_reference(self, block: torch.Tensor, codes: np.ndarray) -> None:
        new = np.flatnonzero(~self.known[codes])
        if not new.size:
            return
        labels, inverse = np.unique(codes[new], return_inverse=True)
        rows = block[torch.from_numpy(new).to(block.device)].to(self.sums.dtype)
        means = torch.zeros(len(labels), rows.shape[1], dtype=rows.dtype, device=rows.device)
        _add_by_class(means, inverse, rows)
        means /= torch.from_numpy(np.bincount(inverse)).to(means.device)[:, None]
        self.reference[torch.from_numpy(labels).to(block.device)] = means.to(self.dtype)
        self.known[labels] = True

    def add(self, block: torch.Tensor, codes: np.ndarray, weights: torch.Tensor | None) -> None:
        index = torch.from_numpy(codes).to(block.device)
        if self.kind != "none":
            self._complete_reference(block, codes)
        step = _chunk_rows(block)
        for start in range(0, len(block), step):
            part = slice(start, start + step)
            rows = block[part].to(self.dtype)
            if self.kind != "none":
                one = len(self.reference) == 1
                rows = rows - (self.reference if one else self.reference[index[part]])
            w = None if weights is None else weights[part]
            self._add_sums(rows, codes[part], w)
            if self.kind == "shared":
                self.gram += _product(rows, w)
            elif self.kind == "per_class":
                # Blocks are of one class each, see `_blocks`.
                self.gram[codes[0]] += _product(rows, w)

    def _add_sums(
        self, rows: torch.Tensor, codes: np.ndarray, weights: torch.Tensor | None
    ) -> None:
        plain = rows.to(self.sums.dtype)
        weighted = plain if weights is None else plain * weights[:, None]
        _add_by_class(self.sums, codes, weighted)
        if self.squares is not None:
            _add_by_class(self.squares, codes, weighted * plain)

    def is_finite(self) -> bool:
        parts = [p for p in (self.sums, self.squares, self.gram) if p is not None]
        return all(bool(torch.isfinite(part.sum())) for part in parts)

    def finish(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray | list | None]:
        """Return the means, and the scatter around them instead of around the reference."""
        # A class whose rows all weigh nothing has count 0; its mean is never used.
        divisor = np.maximum(counts, np.finfo(np.float64).tiny)[:, None]
        sums = self.sums.cpu().numpy().astype(np.float64, copy=False)
        shift = sums / divisor
        means = self.reference.cpu().double().numpy() + shift
        return means, self._scatter(sums, shift, divisor)

    def _scatter(
        self, sums: np.ndarray, shift: np.ndarray, divisor: np.ndarray
    ) -> np.ndarray | list | None:
        if self.kind == "none":
            return None
        held = self.gram if self.gram is not None else self.squares
        held = held.cpu().numpy().astype(np.float64, copy=False)
        if self.kind == "shared":
            return (held + held.T) / 2 - outer_sum(sums / np.sqrt(divisor), self.dtype)
        if self.kind == "per_class":
            return [
                (g + g.T) / 2 - np.outer(s, m) for g, s, m in zip(held, sums, shift, strict=True)
            ]
        excess = sums * shift
        return held[0] - excess.sum(axis=0) if self.kind == "shared_diag" else held - excess


def batch_moments(
    X: ArrayLike,
    codes: np.ndarray,
    *,
    reference: np.ndarray,
    weights: np.ndarray | None = None,
    scatter: str = "shared",
    dtype: torch.dtype = torch.float64,
    block_rows: int = 8192,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | list | None]:
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
    scatter : ndarray, list of ndarray or None

    Raises
    ------
    ValueError
        NaN or infinity in X, or products that overflow.
    """
    tensor = as_tensor(X)
    dtype = _wide(tensor.device) if dtype == torch.float64 else dtype
    sums = _Accumulator(len(reference), reference, scatter, dtype, tensor.device)
    w = None
    if weights is not None:
        w = as_tensor(weights).to(device=tensor.device, dtype=sums.sums.dtype)
    with full_float32():
        for part in _blocks(codes, scatter, block_rows):
            sums.add(tensor[part], codes[part], None if w is None else w[part])
    if not sums.is_finite():
        # One NaN or infinity reaches the sums, so good rows are never looked at twice.
        check_finite(X)
        remedy = ', or set product_dtype="float64"' if dtype == torch.float32 else ""
        raise ValueError(
            f"The products of X overflow in {str(dtype).removeprefix('torch.')}; scale X "
            f"down{remedy}."
        )
    counts = np.bincount(codes, weights=weights, minlength=len(reference)).astype(np.float64)
    return (counts, *sums.finish(counts))


def fourth_moment(X: torch.Tensor, codes: np.ndarray, means: np.ndarray) -> float:
    """Return the sum over rows of the fourth power of the distance to the class mean."""
    wide = _wide(X.device)
    centres = torch.tensor(means, dtype=wide, device=X.device)
    index = torch.from_numpy(codes).to(X.device)
    total, step = 0.0, _chunk_rows(X)
    for start in range(0, len(X), step):
        part = slice(start, start + step)
        total += float((X[part].to(wide) - centres[index[part]]).square().sum(1).square().sum())
    return total
