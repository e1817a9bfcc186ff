# SPDX-License-Identifier: BSD-3-Clause
"""Sketches of products of two vectors, and of the second moments of tokens.

A sketch keeps inner products on average, <s(x, y), s(x', y')> = <x, x'> <y, y'>, in a width that
is chosen freely, where the product itself would have the square of the width of the vectors.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch

from skpool.pooling._kernels import Mask
from skpool.pooling._second_order_kernels import (
    signed_sqrt_,
    token_rows,
    triangle_width,
    unit_rows_,
    upper_second_moment,
)
from skpool.utils import as_tensor, full_float32, widened

__all__ = [
    "CountSketch",
    "draw_count_sketch",
    "draw_signs",
    "normalize_",
    "pool_compact_bilinear",
    "random_maclaurin",
    "tensor_sketch",
]

# Numbers that are worked on at a time.
_BLOCK_NUMBERS = 2**22
# What a Fourier transform costs per number, in sums of products.
_TRANSFORM_COST = 8


class CountSketch(NamedTuple):
    """Two hash functions from features to places, and their signs.

    Attributes
    ----------
    places : tuple of two ndarrays of shape (d,)
        From 0 to n_components - 1; the widths d of the two may differ.
    signs : tuple of two ndarrays of shape (d,)
        -1 or 1.
    n_components : int
    """

    places: tuple[np.ndarray, np.ndarray]
    signs: tuple[np.ndarray, np.ndarray]
    n_components: int


def draw_count_sketch(widths: tuple[int, int], n_components: int, *, seed: int) -> CountSketch:
    """Hash functions for vectors of two widths; the same for the same seed."""
    rng = np.random.RandomState(seed)
    drawn = [
        (rng.randint(n_components, size=width), 2 * rng.randint(2, size=width) - 1)
        for width in widths
    ]
    places, signs = zip(*drawn, strict=True)
    return CountSketch(places, signs, n_components)


def draw_signs(
    widths: tuple[int, int], n_components: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices (d, n_components) of -1 and 1; the same for the same seed."""
    rng = np.random.RandomState(seed)
    left, right = (
        (2 * rng.randint(2, size=(width, n_components)) - 1).astype(np.int8) for width in widths
    )
    return left, right


def _count_sketch(x: torch.Tensor, sketch: CountSketch, which: int) -> torch.Tensor:
    """One count sketch of vectors (..., d): each entry, signed, is added to its place."""
    places = as_tensor(sketch.places[which]).to(x.device)
    signs = as_tensor(sketch.signs[which]).to(x)
    if x.device.type == "cpu":
        out = x.new_zeros((*x.shape[:-1], sketch.n_components))
        return out.index_add_(-1, places, x * signs)
    # index_add_ uses atomics on a GPU, whose order (and last bits) change from run to run.
    table = x.new_zeros((len(signs), sketch.n_components))
    table[torch.arange(len(signs), device=x.device), places] = signs
    with full_float32():
        return x @ table


def tensor_sketch(x: torch.Tensor, y: torch.Tensor, *, sketch: CountSketch) -> torch.Tensor:
    """Sketch of the product of two vectors, the circular convolution of their count sketches.

    Parameters
    ----------
    x, y : tensors of shape (..., d) and (..., e)
    sketch : CountSketch

    Returns
    -------
    products : tensor of shape (..., n_components)
    """
    return torch.fft.irfft(_spectrum(x, y, sketch), n=sketch.n_components)


def _spectrum(x: torch.Tensor, y: torch.Tensor, sketch: CountSketch) -> torch.Tensor:
    """Fourier transform of the sketch of a product."""
    return torch.fft.rfft(_count_sketch(x, sketch, 0)) * torch.fft.rfft(_count_sketch(y, sketch, 1))


def random_maclaurin(
    x: torch.Tensor, y: torch.Tensor, *, signs: tuple[np.ndarray, np.ndarray]
) -> torch.Tensor:
    """Sketch of the product of two vectors, products of random sums of their entries.

    Parameters
    ----------
    x, y : tensors of shape (..., d) and (..., e)
    signs : tuple of two ndarrays of shape (d, n_components) and (e, n_components)

    Returns
    -------
    products : tensor of shape (..., n_components)
    """
    left, right = (as_tensor(part).to(x) for part in signs)
    with full_float32():
        return (x @ left).mul_(y @ right).div_(left.shape[1] ** 0.5)


@lru_cache(maxsize=4)
def _on_triangles(key: bytes, width: int, n_components: int) -> scipy.sparse.csr_array:
    """The tensor sketch as a map from weighted triangles; `key` holds places and signs."""
    table = np.frombuffer(key, dtype=np.int64).reshape(2, 2, width)
    row, column = np.triu_indices(width)
    off = row != column
    # An entry off the diagonal stands for two products, and carries sqrt(2).
    first = np.concatenate([row, column[off]])
    second = np.concatenate([column, row[off]])
    entry = np.concatenate([np.arange(len(row)), np.flatnonzero(off)])
    places = (table[0, 0, first] + table[0, 1, second]) % n_components
    values = table[1, 0, first] * table[1, 1, second] * np.where(first == second, 1.0, 0.5**0.5)
    shape = (n_components, len(row))
    return scipy.sparse.coo_array((values, (places, entry)), shape=shape).tocsr()


def _sketch_by_moments(tokens: torch.Tensor, mask: Mask, sketch: CountSketch) -> torch.Tensor:
    """Mean over the tokens of their tensor sketches, which is a sketch of their second moment."""
    rows, scale = token_rows(tokens, mask, kind="second_moment")
    moments = upper_second_moment(rows, scale).numpy()
    key = np.stack([np.stack(sketch.places), np.stack(sketch.signs)]).astype(np.int64).tobytes()
    matrix = _on_triangles(key, tokens.shape[2], sketch.n_components).astype(moments.dtype)
    return torch.from_numpy(np.stack([matrix @ moment for moment in moments]))


def _sketch_by_tokens(
    tokens: torch.Tensor, mask: Mask, sketch: CountSketch | tuple[np.ndarray, np.ndarray]
) -> torch.Tensor:
    """Mean over the tokens of their sketches; those of tensors are added up as spectra."""
    rows, scale = token_rows(tokens, mask, kind="second_moment")
    if isinstance(sketch, CountSketch):
        total = torch.fft.irfft(_spectrum(rows, rows, sketch).sum(dim=1), n=sketch.n_components)
    else:
        total = random_maclaurin(rows, rows, signs=sketch).sum(dim=1)
    return total * scale[:, None]


def _moments_are_cheaper(tokens: torch.Tensor, sketch: object) -> bool:
    """Whether d^2 sums of products cost less than a Fourier transform for every token."""
    if tokens.device.type != "cpu" or not isinstance(sketch, CountSketch):
        return False
    n_tokens, d = tokens.shape[1:]
    return d * d <= _TRANSFORM_COST * n_tokens * sketch.n_components


def pool_compact_bilinear(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    sketch: CountSketch | tuple[np.ndarray, np.ndarray],
    power_norm: bool = True,
    l2: bool = True,
) -> torch.Tensor:
    """Mean over the real tokens of the sketches of their products with themselves.

    Parameters
    ----------
    tokens : tensor of shape (n, L, d)
    mask : tensor of shape (n, L), bool, default=None
    sketch : CountSketch, or tuple of two ndarrays of shape (d, n_components)
        For a tensor sketch or for random Maclaurin features.
    power_norm : bool, default=True
        Whether signed square roots are taken.
    l2 : bool, default=True
        Whether vectors are divided by their norm.

    Returns
    -------
    vectors : tensor of shape (n, n_components)
    """
    is_count = isinstance(sketch, CountSketch)
    n_components = sketch.n_components if is_count else sketch[0].shape[1]
    out = widened(tokens[:0]).new_empty((len(tokens), n_components))
    by_moments = _moments_are_cheaper(tokens, sketch)
    pool = _sketch_by_moments if by_moments else _sketch_by_tokens
    numbers = triangle_width(tokens.shape[2]) if by_moments else tokens.shape[1] * n_components
    step = max(1, _BLOCK_NUMBERS // numbers)
    for start in range(0, len(tokens), step):
        part = slice(start, start + step)
        out[part] = pool(widened(tokens[part]), None if mask is None else mask[part], sketch)
    return normalize_(out, power_norm=power_norm, l2=l2)


def normalize_(vectors: torch.Tensor, *, power_norm: bool, l2: bool) -> torch.Tensor:
    """Signed square roots and unit length of vectors, in place."""
    vectors = signed_sqrt_(vectors) if power_norm else vectors
    return unit_rows_(vectors) if l2 else vectors
