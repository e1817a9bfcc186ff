# SPDX-License-Identifier: BSD-3-Clause
"""Patches of images against a dictionary: pure functions under `PatchDictionaryExtractor`.

Patches are rows of 3 * patch * patch numbers, channel by channel, row by row. Everything works on
strips of an image at a time, so that memory does not grow with the image or the dictionary.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch.nn import functional

__all__ = [
    "ENCODINGS",
    "contrast_normalize",
    "distances",
    "encode_maps",
    "encode_pooled",
    "extract_patches",
    "grid_of",
    "images_at_once",
    "pool_bounds",
    "zca_matrix",
]

# Numbers of encoded patches that are in memory at a time, in float32: 32 MB.
_STRIP_NUMBERS = 2**23


def grid_of(height: int, width: int, *, patch: int, stride: int) -> tuple[int, int]:
    """Rows and columns of patches of an image."""
    return (height - patch) // stride + 1, (width - patch) // stride + 1


def extract_patches(images: torch.Tensor, *, patch: int, stride: int) -> torch.Tensor:
    """Cut images (n, c, h, w) into patches (n, rows * columns, c * patch * patch)."""
    return functional.unfold(images, patch, stride=stride).transpose(1, 2)


def contrast_normalize(patches: torch.Tensor, *, eps: float) -> torch.Tensor:
    """Subtract the mean of every patch and divide by the root of its variance plus `eps`.

    The variance has divisor d. A constant patch becomes zero, also with ``eps=0``.
    """
    centred = patches - patches.mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return centred / torch.where(scale > 0, scale, 1.0)


def zca_matrix(covariance: torch.Tensor, *, eps: float) -> torch.Tensor:
    """Symmetric inverse root of ``covariance + eps I``, (d, d) in float64.

    Directions in which patches in float32 have no more than rounding errors are dropped where
    ``eps=0`` would make these as large as all else.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(0.0)
    floor = values[-1] * (len(values) * torch.finfo(torch.float32).eps) ** 2
    roots = torch.where(values + eps > floor, values + eps, torch.inf).rsqrt()
    return (vectors * roots) @ vectors.T


def distances(points: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """Euclidean distances (n, n_atoms), by one matrix product."""
    squares = points.square().sum(dim=1, keepdim=True) + atoms.square().sum(dim=1)
    return torch.addmm(squares, points, atoms.T, alpha=-2).clamp_min_(0.0).sqrt_()


def encode_triangle(distance: torch.Tensor, variance: float | None = None) -> torch.Tensor:
    """How much nearer than the mean distance every atom is, and 0 for those that are not."""
    return (distance.mean(dim=1, keepdim=True) - distance).clamp_min_(0.0)


def encode_soft(distance: torch.Tensor, variance: float) -> torch.Tensor:
    """Responsibilities of Gaussians of one variance around the atoms."""
    return distance.square().mul_(-0.5 / variance).softmax(dim=1)


def encode_hard(distance: torch.Tensor, variance: float | None = None) -> torch.Tensor:
    """One for the nearest atom (the first of equals), zero for the others."""
    nearest = distance.argmin(dim=1, keepdim=True)
    return torch.zeros_like(distance).scatter_(1, nearest, 1.0)


ENCODINGS: dict[str, Callable[..., torch.Tensor]] = {
    "hard": encode_hard,
    "soft": encode_soft,
    "triangle": encode_triangle,
}


def pool_bounds(length: int, pool: int) -> list[int]:
    """Where `length` rows of patches are cut into `pool` parts, whose sizes differ by at most 1."""
    return [k * length // pool for k in range(pool + 1)]


def images_at_once(width: int, *, patch: int, stride: int, n_atoms: int) -> int:
    """How many images may share a strip of one row of patches within the bound on memory."""
    n_columns = grid_of(patch, width, patch=patch, stride=stride)[1]
    return max(1, _STRIP_NUMBERS // (n_columns * n_atoms))


def _strips(
    images: torch.Tensor,
    encode: Callable,
    *,
    patch: int,
    stride: int,
    n_atoms: int,
    cuts: list[int],
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Encode rows of patches, a few at a time, no strip across a cut.

    Yields the first row, the row after the last, and codes (n, rows, columns, n_atoms).
    """
    n_columns = grid_of(*images.shape[2:], patch=patch, stride=stride)[1]
    height = max(1, _STRIP_NUMBERS // (len(images) * n_columns * n_atoms))
    for low, high in pairwise(cuts):
        for start in range(low, high, height):
            stop = min(start + height, high)
            strip = images[:, :, start * stride : (stop - 1) * stride + patch]
            patches = extract_patches(strip, patch=patch, stride=stride)
            codes = encode(patches.reshape(-1, patches.shape[2]))
            yield start, stop, codes.view(len(images), stop - start, n_columns, n_atoms)


def encode_pooled(
    images: torch.Tensor,
    encode: Callable[[torch.Tensor], torch.Tensor],
    *,
    patch: int,
    stride: int,
    n_atoms: int,
    pool: int,
) -> torch.Tensor:
    """Sum the codes of the patches over a grid of pool x pool cells.

    Parameters
    ----------
    images : tensor of shape (n, c, height, width)
        Float; of at least `pool` rows and columns of patches.
    encode : callable
        Patches (m, c * patch * patch) to codes (m, n_atoms).
    patch, stride, n_atoms, pool : int

    Returns
    -------
    features : tensor of shape (n, pool * pool * n_atoms)
        Cell by cell, row by row; the atoms of a cell stand side by side.
    """
    n_rows, n_columns = grid_of(*images.shape[2:], patch=patch, stride=stride)
    rows, columns = pool_bounds(n_rows, pool), pool_bounds(n_columns, pool)
    sums = images.new_zeros((len(images), pool, pool, n_atoms))
    strips = _strips(images, encode, patch=patch, stride=stride, n_atoms=n_atoms, cuts=rows)
    for start, _, codes in strips:
        row = next(k for k in range(pool) if rows[k] <= start < rows[k + 1])
        for column in range(pool):
            cell = codes[:, :, columns[column] : columns[column + 1]]
            sums[:, row, column] += cell.sum(dim=(1, 2))
    return sums.flatten(1)


def encode_maps(
    images: torch.Tensor,
    encode: Callable[[torch.Tensor], torch.Tensor],
    *,
    patch: int,
    stride: int,
    n_atoms: int,
) -> torch.Tensor:
    """Codes of all patches in their places, (n, rows, columns, n_atoms)."""
    n_rows, n_columns = grid_of(*images.shape[2:], patch=patch, stride=stride)
    maps = images.new_empty((len(images), n_rows, n_columns, n_atoms))
    cuts = [0, n_rows]
    for start, stop, codes in _strips(
        images, encode, patch=patch, stride=stride, n_atoms=n_atoms, cuts=cuts
    ):
        maps[:, start:stop] = codes
    return maps
