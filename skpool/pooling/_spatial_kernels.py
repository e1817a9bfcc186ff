# SPDX-License-Identifier: BSD-3-Clause
"""Poolings that use where tokens lie, as pure functions: pyramids, R-MAC, local means of maps.

Tokens (n, H * W, d) follow their `grid` (H, W) row by row. Regions come as lattices, all pairs of
some spans of rows and some spans of columns, so rows of cells are reduced first, and columns of
what is left. A cell under a False mask is absent; a region without any cell is a zero vector.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

from skpool.pooling._kernels import (
    _filled,
    _in_blocks,
    _raised,
    pool_gem,
    pool_max,
    pool_mean,
)
from skpool.utils import full_float32, unit_rows, widened

__all__ = [
    "Lattice",
    "cut_windows",
    "pool_lattices",
    "pool_pyramid",
    "pool_rmac",
    "pool_scale_gem",
    "pool_temporal_pyramid",
    "pyramid_lattices",
    "regional_gem",
    "rmac_lattices",
    "rmac_side",
    "rmac_vectors",
]

Mask = torch.Tensor | None
Grid = tuple[int, int]
# The first of some neighbouring rows or columns, and one past the last.
Span = tuple[int, int]

# Smallest value of which generalized means over regions take powers.
_EPS = 1e-6
# Exponents between which float32 holds all powers that matter, and their roots lose no digits.
_FLOAT32_EXPONENTS = 0.5, 4.0
# Regions on the longer side among which R-MAC chooses.
_RMAC_STEPS = range(2, 8)


class Lattice(NamedTuple):
    """Regions of a map: all pairs of a span of rows and a span of columns, row by row."""

    rows: list[Span]
    columns: list[Span]


# Where the regions lie.


def _adaptive_spans(size: int, n: int) -> list[Span]:
    """n bins that cover all cells; neighbours share one where n does not divide the size."""
    return [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]


def _window_spans(size: int, n: int) -> list[Span]:
    """Windows of ceil(size / n) cells every floor(size / n) cells."""
    window, stride = -(-size // n), size // n
    found = range(0, size - window + 1, stride) if stride else ()
    if len(found) != n:
        raise ValueError(
            f"grid='window' does not give {n} bins of {size} rows or columns; set "
            "grid='adaptive', or choose other levels."
        )
    return [(start, start + window) for start in found]


def pyramid_lattices(grid: Grid, *, levels: Sequence[int], bins: str = "adaptive") -> list[Lattice]:
    """One lattice of level x level bins for every level of a pyramid."""
    spans = _adaptive_spans if bins == "adaptive" else _window_spans
    return [Lattice(*(spans(size, level) for size in grid)) for level in levels]


def rmac_side(grid: Grid, level: int) -> int:
    """Side of the square regions of a level of R-MAC; 0 where the map is too small for it."""
    return 2 * min(grid) // (level + 1)


def _extra_regions(short: int, long: int, overlap: float) -> int:
    """Regions that the longer side has more than the shorter one."""
    if short == long:
        return 0
    # Rounded, so that ties are ties; the first of them wins.
    misses = {m: round(abs(1 - (long - short) / (m - 1) / short - overlap), 6) for m in _RMAC_STEPS}
    return min(misses, key=misses.__getitem__) - 1


def _spread_spans(size: int, side: int, count: int) -> list[Span]:
    """Equal spans from one end to the other."""
    # Multiplied before it is divided: floors of multiples of a rounded stride move corners.
    starts = [j * (size - side) // max(count - 1, 1) for j in range(count)]
    return [(start, start + side) for start in starts]


def rmac_lattices(grid: Grid, *, levels: int, overlap: float) -> list[Lattice]:
    """Square regions of R-MAC, one lattice per level that the map is large enough for."""
    extra = _extra_regions(min(grid), max(grid), overlap)
    sides = {level: rmac_side(grid, level) for level in range(1, levels + 1)}
    return [
        Lattice(
            *(
                _spread_spans(size, side, level + (extra if size > min(grid) else 0))
                for size in grid
            )
        )
        for level, side in sides.items()
        if side
    ]


# What becomes of the cells of a region.


class _Averages(NamedTuple):
    """Matrices that average spans: all rows of all lattices at once, then columns by lattice."""

    rows: torch.Tensor
    columns: list[torch.Tensor]
    sizes: list[int]


def _averaging(spans: Sequence[Span], size: int, like: torch.Tensor) -> torch.Tensor:
    """1 / length where a cell (column) belongs to a span (row)."""
    cells = torch.arange(size)
    starts, stops = torch.tensor(spans).T[..., None]
    return (((cells >= starts) & (cells < stops)).double() / (stops - starts)).to(like)


def _averages(grid: Grid, lattices: Sequence[Lattice], like: torch.Tensor) -> _Averages:
    spans = [span for lattice in lattices for span in lattice.rows]
    return _Averages(
        _averaging(spans, grid[0], like),
        [_averaging(lattice.columns, grid[1], like) for lattice in lattices],
        [len(lattice.rows) for lattice in lattices],
    )


def _region_means(maps: torch.Tensor, seen: Mask, averages: _Averages) -> torch.Tensor:
    """Means of the real cells of the regions, (n, n_regions, d), by small products."""
    maps = _filled(maps, seen, 0.0)
    with full_float32():
        rows = (averages.rows.to(maps) @ maps.flatten(2)).unflatten(2, maps.shape[2:])
        parts = zip(averages.columns, rows.split(averages.sizes, dim=1), strict=True)
        means = torch.cat([(columns.to(maps) @ part).flatten(1, 2) for columns, part in parts], 1)
    if seen is None:
        return means
    share = _region_means(seen[..., None].to(maps.dtype), None, averages)
    return (means / share).where(share > 0, 0.0)


def _region_maxima(maps: torch.Tensor, seen: Mask, lattices: Sequence[Lattice]) -> torch.Tensor:
    """Largest values of the real cells of the regions, (n, n_regions, d)."""
    maps = _filled(maps, seen, -torch.inf)
    parts = []
    for lattice in lattices:
        rows = torch.stack([maps[:, a:b].amax(dim=1) for a, b in lattice.rows], dim=1)
        columns = [rows[:, :, a:b].amax(dim=2) for a, b in lattice.columns]
        parts.append(torch.stack(columns, dim=2).flatten(1, 2))
    maxima = torch.cat(parts, dim=1)
    if seen is None:
        return maxima
    return maxima.where(_region_maxima(seen[..., None], None, lattices), 0.0)


def _scaled_powers(z: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Powers of values of at least 0 over the largest of their map and feature, and that."""
    scale = z.amax(dim=(1, 2), keepdim=True)
    z = z / torch.where(scale > 0, scale, 1.0)
    low, high = _FLOAT32_EXPONENTS
    if not low <= p <= high and z.device.type != "mps":
        z = z.double()
    return _raised(z, p), scale


def _region_power_means(
    maps: torch.Tensor, seen: Mask, averages: _Averages, p: float
) -> torch.Tensor:
    powers, scale = _scaled_powers(_filled(maps, seen, 0.0).clamp_min(_EPS), p)
    means = _region_means(powers, seen, averages)
    return _raised(means, 1.0 / p).to(maps.dtype) * scale.flatten(1, 2)


@_in_blocks()
def _pool_block(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    grid: Grid,
    lattices: Sequence[Lattice],
    averages: _Averages | None,
    reduce: str,
    p: float,
) -> torch.Tensor:
    """What `pool_lattices` gives for some maps."""
    maps = widened(tokens).unflatten(1, grid)
    seen = None if mask is None else mask.unflatten(1, grid)
    if reduce == "max":
        return _region_maxima(maps, seen, lattices)
    if reduce == "mean":
        return _region_means(maps, seen, averages)
    return _region_power_means(maps, seen, averages, p)


def pool_lattices(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    grid: Grid,
    lattices: Sequence[Lattice],
    reduce: str = "max",
    p: float = 3.0,
) -> torch.Tensor:
    """One vector per region of a map.

    Parameters
    ----------
    tokens : tensor of shape (n, H * W, d)
    mask : tensor of shape (n, H * W), bool, default=None
    grid : tuple of 2 ints
        H and W.
    lattices : sequence of Lattice
    reduce : {"max", "mean", "gem"}, default="max"
        What becomes of the cells of a region; "gem" raises values to at least 1e-6.
    p : float, default=3.0
        Exponent of "gem", above 0.

    Returns
    -------
    vectors : tensor of shape (n, n_regions, d)
        Lattice by lattice; zeros for a region without a real cell.
    """
    averages = None if reduce == "max" else _averages(grid, lattices, widened(tokens[:0]))
    options = {"averages": averages, "reduce": reduce, "p": p}
    return _pool_block(tokens, mask, grid=grid, lattices=lattices, **options)


# Pyramids.


def _side_by_side(
    vectors: torch.Tensor,
    sizes: Sequence[int],
    *,
    normalize: str | None,
    weights: Sequence[float] | None,
) -> torch.Tensor:
    """Bins (n, n_bins, d) as one row, after what is done to every level as a whole."""
    if normalize is None and weights is None:
        return vectors.flatten(1)
    parts = [part.flatten(1) for part in vectors.split(list(sizes), dim=1)]
    if normalize == "l2":
        parts = [unit_rows(part) for part in parts]
    if weights is not None:
        parts = [part * float(weight) for part, weight in zip(parts, weights, strict=True)]
    return torch.cat(parts, dim=1)


def pool_pyramid(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    grid: Grid,
    levels: Sequence[int] = (1, 2, 3, 6),
    reduce: str = "max",
    p: float = 3.0,
    bins: str = "adaptive",
    normalize: str | None = None,
    weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """Bins of a spatial pyramid, by level, row, column and feature.

    Parameters
    ----------
    tokens, mask, grid, reduce, p
        As in `pool_lattices`.
    levels : sequence of int, default=(1, 2, 3, 6)
        Bins along either side.
    bins : {"adaptive", "window"}, default="adaptive"
        Rule for where bins lie.
    normalize : {"l2"} or None, default=None
        Whether every level is brought to unit length.
    weights : sequence of float, default=None
        One factor per level, after that.

    Returns
    -------
    vectors : tensor of shape (n, d * sum of level ** 2)
    """
    lattices = pyramid_lattices(grid, levels=levels, bins=bins)
    vectors = pool_lattices(tokens, mask, grid=grid, lattices=lattices, reduce=reduce, p=p)
    sizes = [level * level for level in levels]
    return _side_by_side(vectors, sizes, normalize=normalize, weights=weights)


def _time_bins(mask: torch.Tensor, level: int) -> list[torch.Tensor]:
    """Masks (n, T) of the bins of the real tokens of every row, whose number may differ."""
    rank, count = mask.cumsum(dim=1) - 1, mask.sum(dim=1, keepdim=True)
    starts = [i * count // level for i in range(level)]
    stops = [(i * count + level - 1) // level for i in range(1, level + 1)]
    return [
        mask & (rank >= start) & (rank < stop) for start, stop in zip(starts, stops, strict=True)
    ]


@_in_blocks()
def pool_temporal_pyramid(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    levels: Sequence[int] = (1, 2, 4),
    reduce: str = "max",
    p: float = 3.0,
    normalize: str | None = None,
    weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """Bins of a pyramid over the order of the tokens, by level, bin and feature.

    Parameters
    ----------
    tokens : tensor of shape (n, T, d)
    mask : tensor of shape (n, T), bool, default=None
        The real tokens of a row close ranks: bins are parts of their number.
    levels, reduce, p, normalize, weights
        As in `pool_pyramid`.

    Returns
    -------
    vectors : tensor of shape (n, d * sum of levels)
    """
    pool = {"max": pool_max, "mean": pool_mean, "gem": partial(pool_gem, p=p)}[reduce]
    tokens = widened(tokens)
    if mask is None:
        spans = (span for level in levels for span in _adaptive_spans(tokens.shape[1], level))
        bins = [pool(tokens[:, start:stop]) for start, stop in spans]
    else:
        bins = [pool(tokens, part) for level in levels for part in _time_bins(mask, level)]
    return _side_by_side(torch.stack(bins, dim=1), levels, normalize=normalize, weights=weights)


def cut_windows(
    tokens: torch.Tensor, mask: Mask = None, *, grid: Grid, places: torch.Tensor, size: Grid
) -> tuple[torch.Tensor, Mask]:
    """Windows of equal size out of maps, as tokens (m, h * w, d) and mask (m, h * w).

    Parameters
    ----------
    tokens, mask, grid
        As in `pool_lattices`.
    places : int tensor of shape (3, m)
        Which map, first row and first column of every window.
    size : tuple of 2 ints
        Rows h and columns w of a window.
    """
    samples, tops, lefts = places[..., None]
    rows = tops + torch.arange(size[0], device=tokens.device)
    columns = lefts + torch.arange(size[1], device=tokens.device)
    cells = samples, (rows[:, :, None] * grid[1] + columns[:, None]).flatten(1)
    return tokens[cells], None if mask is None else mask[cells]


# R-MAC.


def _shortened(vectors: torch.Tensor, eps: float) -> torch.Tensor:
    """Vectors divided by their length plus eps."""
    # Squares of float32 fit into float64.
    wide = torch.float32 if vectors.device.type == "mps" else torch.float64
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=wide)
    return vectors / (length.to(vectors.dtype) + eps)


def rmac_vectors(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    grid: Grid,
    levels: int = 3,
    overlap: float = 0.4,
    include_global: bool = True,
    reduce: str = "max",
    p: float = 3.0,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Vectors of the regions of R-MAC, (n, n_regions, d), of unit length up to `eps`."""
    lattices = rmac_lattices(grid, levels=levels, overlap=overlap)
    if include_global:
        lattices.insert(0, Lattice([(0, grid[0])], [(0, grid[1])]))
    vectors = pool_lattices(tokens, mask, grid=grid, lattices=lattices, reduce=reduce, p=p)
    return _shortened(vectors, eps)


def pool_rmac(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    grid: Grid,
    levels: int = 3,
    overlap: float = 0.4,
    include_global: bool = True,
    reduce: str = "max",
    p: float = 3.0,
    eps: float = 1e-6,
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Sum of the vectors of overlapping square regions.

    Parameters
    ----------
    tokens, mask, grid, reduce, p
        As in `pool_lattices`.
    levels : int, default=3
        Sizes of regions.
    overlap : float, default=0.4
        Share of a region of the first level that its neighbour covers too, as nearly as possible.
    include_global : bool, default=True
        Whether the whole map counts as one more region.
    eps : float, default=1e-6
        Added to lengths before division.
    transform : callable, default=None
        From region vectors (m, d) to (m, k), which are brought to unit length again.

    Returns
    -------
    vectors : tensor of shape (n, d) or (n, k)
        Of unit length.
    """
    options = {"levels": levels, "overlap": overlap, "include_global": include_global}
    regions = rmac_vectors(tokens, mask, grid=grid, reduce=reduce, p=p, eps=eps, **options)
    if transform is not None:
        # A region without a direction (absent, or zero in all features) gets none.
        known = (regions != 0).any(dim=-1, keepdim=True)
        changed = transform(regions.flatten(0, 1)).unflatten(0, regions.shape[:2])
        regions = _shortened(changed, eps).where(known, 0.0)
    return unit_rows(regions.sum(dim=1))


# Generalized means over windows and over scales.


def _box_mean(values: torch.Tensor, *, size: int, pad: str) -> torch.Tensor:
    """Mean of the size x size window around every cell, (n, H, W, d)."""
    half = size // 2
    x = values.permute(0, 3, 1, 2)
    for around, kernel, n in (
        ((half, half, 0, 0), (1, size), values.shape[2]),
        ((0, 0, half, half), (size, 1), values.shape[1]),
    ):
        mode = "reflect" if pad == "reflect" and n > half else "replicate"
        x = F.avg_pool2d(F.pad(x, around, mode=mode), kernel, stride=1)
    return x.permute(0, 2, 3, 1)


def _window_power_mean(
    maps: torch.Tensor, seen: Mask, *, p: float, size: int, pad: str
) -> torch.Tensor:
    """Power mean of the window around every cell, of maps that are 0 where absent."""
    powers, scale = _scaled_powers(maps.clamp_min(0.0), p)
    mean = _box_mean(powers, size=size, pad=pad)
    if seen is not None:
        share = _box_mean(seen[..., None].to(mean.dtype), size=size, pad=pad)
        mean = (mean / share).where(share > 0, 0.0)
    return _raised(mean, 1.0 / p).to(maps.dtype) * scale


@_in_blocks()
def regional_gem(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    grid: Grid,
    p: float = 2.5,
    size: int = 5,
    mix: float = 0.5,
    pad: str = "reflect",
) -> torch.Tensor:
    """Every cell mixed with the generalized mean of the cells around it.

    Parameters
    ----------
    tokens : tensor of shape (n, H * W, d)
    mask : tensor of shape (n, H * W), bool, default=None
        Absent cells are left out of the means, and are 0 in the result.
    grid : tuple of 2 ints
        H and W.
    p : float, default=2.5
        Exponent, above 0; negative values count as 0.
    size : int, default=5
        Side of the window, odd.
    mix : float, default=0.5
        Share of the mean.
    pad : {"reflect", "replicate"}, default="reflect"
        How the map goes on beyond its border.

    Returns
    -------
    tokens : tensor of shape (n, H * W, d)
    """
    maps = widened(tokens).unflatten(1, grid)
    seen = None if mask is None else mask.unflatten(1, grid)
    maps = _filled(maps, seen, 0.0)
    mean = _window_power_mean(maps, seen, p=p, size=size, pad=pad)
    return maps.lerp(mean, mix).flatten(1, 2)


def pool_scale_gem(
    views: torch.Tensor, mask: Mask = None, *, p: float = torch.inf, eps: float = 0.0
) -> torch.Tensor:
    """Vectors of several scales of a sample, pooled by a generalized mean, of unit length.

    Parameters
    ----------
    views : tensor of shape (n, V, d)
    mask : tensor of shape (n, V), bool, default=None
    p : float, default=inf
        Exponent; infinite takes the maximum of views of unit length.
    eps : float, default=0.0
        Smallest distance from the least value of a row that is raised to a finite power.

    Returns
    -------
    vectors : tensor of shape (n, d)
    """
    views = widened(views)
    if p == torch.inf:
        return unit_rows(pool_max(unit_rows(views), mask))
    low = _filled(views, mask, torch.inf).amin(dim=(1, 2))
    above = _filled(views - low[:, None, None], mask, 0.0).clamp_min(eps)
    return unit_rows(pool_gem(above, mask, p=p, negative="signed") + low[:, None])
