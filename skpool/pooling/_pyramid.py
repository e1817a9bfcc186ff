# SPDX-License-Identifier: BSD-3-Clause
"""Pyramid poolings: a map or a sequence cut into ever smaller bins, one vector per bin.

They keep roughly where something is, which a single vector per sample does not. Regions of a map
that somebody else proposes (boxes of objects) are pooled by the same bins.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.pooling._base import BasePooling, Plan
from skpool.pooling._map_pooling import BaseMapPooling, grid_of
from skpool.pooling._spatial_kernels import (
    cut_windows,
    pool_pyramid,
    pool_temporal_pyramid,
    pyramid_lattices,
)
from skpool.stores import TokenBatch, assemble, validate_tokens
from skpool.utils import ArrayLike

__all__ = ["SpatialPyramidPooling", "TemporalPyramidPooling"]

# Values of the windows that are cut out of maps at a time.
_WINDOW_VALUES = 2**22

_PYRAMID_CONSTRAINTS: dict = {
    "levels": ["array-like"],
    "reduce": [StrOptions({"max", "mean", "gem"})],
    "p": [Interval(Real, 0, None, closed="neither")],
    "normalize_levels": [StrOptions({"l2"}), None],
    "level_weights": ["array-like", None],
}


def _check_levels(levels: object, weights: object) -> None:
    """Levels are whole numbers from 1 on; weights, if any, are as many and not negative."""
    found = list(levels)
    if not found or not all(isinstance(level, Integral) and level > 0 for level in found):
        raise ValueError(
            f"levels={levels!r} must be whole numbers above 0, at least one, e.g. (1, 2, 4)."
        )
    if weights is None:
        return
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (len(found),) or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            f"level_weights={weights!r} must be {len(found)} finite numbers of at least 0, one "
            "for each of the levels."
        )


class SpatialPyramidPooling(BaseMapPooling):
    r"""Concatenate what the bins of ever finer grids hold, so that places stay apart.

    A map of any size is cut into :math:`n \times n` bins for every level n, and the cells of each
    bin are reduced to one vector [1]_; the result has :math:`d \sum_n n^2` features, by level,
    row, column and feature. ``levels=(1,)`` is global pooling.

    Parameters
    ----------
    levels : sequence of int, default=(1, 2, 3, 6)
        Bins along either side, level by level.
    reduce : {"max", "mean", "gem"}, default="max"
        What becomes of the cells of a bin; "gem" is the power mean of the values, raised to
        at least 1e-6, as in `GeMPooling`.
    p : float, default=3.0
        Exponent of "gem", above 0.
    grid : {"adaptive", "window"}, default="adaptive"
        Rule for the bins of H rows (and likewise columns). "adaptive": bin i (from 0) holds the
        rows from :math:`\lfloor iH/n \rfloor` to :math:`\lceil (i+1)H/n \rceil - 1`, for any H.
        "window": windows of :math:`\lceil H/n \rceil` rows every :math:`\lfloor H/n \rfloor`, the
        rule by which the authors trained, refused where it does not give n bins (11 rows, 6 bins).
    normalize_levels : {"l2"} or None, default=None
        Whether the bins of a level are brought to unit length together.
    level_weights : array-like of shape (n_levels,), default=None
        Factors of the levels, after that; None for 1.
    scope : {"patch", "all"}, default="patch"
        Whether the class token and registers are left out. They have no place on a map, so "all"
        is refused where there are some.
    empty : {"raise", "zero", "nan"}, default="raise"
        What a sample without a real token gives.
    batch_size : int, default=256
        Rows of a plain array that are read at a time.
    out_dtype : {"float16", "float32", "float64"}, default=None
        Float type of the vectors; None for that of the tokens, float32 for half precision.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a token.

    See Also
    --------
    TemporalPyramidPooling : The same over the order of tokens.
    RMACPooling : Sum of overlapping regions, which forgets places again.

    Notes
    -----
    Maps, tokens with a grid, and lists of maps (height_i, width_i, n_features) of any sizes are
    taken; vectors (n_samples, n_features) count as maps of one cell. A map smaller than a level
    repeats cells ("adaptive"). A cell under a False mask is absent, and a bin without a real cell
    is a zero vector, whatever `reduce`.

    Cost: O(n H W d) per level and memory of a block of rows: rows of cells are reduced before
    columns. Nothing is learned, so results are kept in the store of the tokens. Powers of "gem" are
    taken of values over the largest of their feature and map, so none overflows; above p = 4 in
    float64, where values below :math:`10^{-308/p}` of the largest count as 0.

    References
    ----------
    .. [1] He, Zhang, Ren, Sun, Spatial Pyramid Pooling in Deep Convolutional Networks for Visual
       Recognition, ECCV 2014. <https://arxiv.org/abs/1406.4729>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import SpatialPyramidPooling
    >>> maps = np.arange(4.0).reshape(1, 2, 2, 1)
    >>> SpatialPyramidPooling((1, 2)).fit_transform(maps)
    array([[3., 0., 1., 2., 3.]])
    """

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        **_PYRAMID_CONSTRAINTS,
        "grid": [StrOptions({"adaptive", "window"})],
    }

    def __init__(
        self,
        levels: Sequence[int] = (1, 2, 3, 6),
        *,
        reduce: str = "max",
        p: float = 3.0,
        grid: str = "adaptive",
        normalize_levels: str | None = None,
        level_weights=None,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.levels = levels
        self.reduce = reduce
        self.p = p
        self.grid = grid
        self.normalize_levels = normalize_levels
        self.level_weights = level_weights
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def pool_regions(self, X, boxes, *, spatial_scale: float = 1.0) -> ArrayLike:
        """Pool parts of maps, each by its own pyramid.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, height, width, n_features)
            Maps of one size, as in `transform`.
        boxes : array-like of shape (n_boxes, 5)
            Index of the sample, left, top, right and bottom. A box takes every cell that it
            touches, at least one.
        spatial_scale : float, default=1.0
            Cells per unit of the boxes: 1 for boxes in cells, 1/16 for boxes in pixels of an
            image whose patches have 16 pixels.

        Returns
        -------
        vectors : ndarray of shape (n_boxes, n_features_out)
            A tensor where X was a tensor. Boxes without a real token are treated as samples
            without one, see `empty`.
        """
        self._check_ready()
        tokens = validate_tokens(self, X, reset=False)
        plan = self._plan(tokens)
        grid = grid_of(tokens, type(self).__name__)
        samples, cells = _cells_of(boxes, len(tokens), grid, spatial_scale)
        results = (
            part
            for batch in plan.tokens.iter_batches(self.batch_size)
            for part in self._pool_windows(plan, batch, samples, cells, grid)
        )
        width = tokens.shape[2] * int(np.square(self.levels).sum())
        vectors = assemble(results, len(samples), lambda: torch.empty(0, width))
        return vectors if isinstance(X, torch.Tensor) else vectors.cpu().numpy()

    def _pool_windows(
        self,
        plan: Plan,
        batch: TokenBatch,
        samples: np.ndarray,
        cells: np.ndarray,
        grid: tuple[int, int],
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Numbers of the boxes in a batch of maps, with their vectors; boxes of a size together."""
        row_of = np.full(max(samples.max(), batch.positions.max()) + 1, -1)
        row_of[batch.positions] = np.arange(len(batch.positions))
        mine = np.flatnonzero(row_of[samples] >= 0)
        sizes, size_of = np.unique(cells[mine, 2:], axis=0, return_inverse=True)
        for number, size in enumerate(map(tuple, sizes.tolist())):
            chosen = mine[size_of.ravel() == number]
            count = max(1, _WINDOW_VALUES // (size[0] * size[1] * batch.tokens.shape[2]))
            for boxes in np.split(chosen, range(count, len(chosen), count)):
                places = np.stack([row_of[samples[boxes]], *cells[boxes, :2].T])
                places = torch.from_numpy(places).to(batch.tokens.device)
                windows = cut_windows(*batch[1:], grid=grid, places=places, size=size)
                self._refuse_empty(windows[1], boxes)
                pool = plan._replace(pool=partial(self._pool_map, grid=size))
                yield boxes, self._guarded(pool)(*windows)

    def _refuse_empty(self, mask: torch.Tensor | None, boxes: np.ndarray) -> None:
        if self.empty == "raise" and mask is not None and not bool(mask.any(dim=1).all()):
            box = boxes[int((~mask.any(dim=1)).nonzero()[0])]
            raise ValueError(
                f"Box {box} holds no real token; remove it, or set empty='zero' or empty='nan'."
            )

    def _check_parameters(self, n_features: int) -> None:
        _check_levels(self.levels, self.level_weights)

    def _check_grid(self, grid: tuple[int, int]) -> None:
        pyramid_lattices(grid, levels=self.levels, bins=self.grid)

    def _pool_map(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, *, grid: tuple[int, int]
    ) -> torch.Tensor:
        return pool_pyramid(
            tokens,
            mask,
            grid=grid,
            levels=self.levels,
            reduce=self.reduce,
            p=self.p,
            bins=self.grid,
            normalize=self.normalize_levels,
            weights=self.level_weights,
        )

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_ * int(np.square(self.levels).sum())


def _cells_of(
    boxes: object, n_samples: int, grid: tuple[int, int], spatial_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Samples (m,) of the boxes, and their first row, first column, rows and columns (m, 4)."""
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 5 or not len(boxes):
        raise ValueError(
            f"boxes has shape {boxes.shape}; give (n_boxes, 5): index of the sample, left, top, "
            "right, bottom."
        )
    index, left, top, right, bottom = boxes.T
    wrong = ~np.isin(index, np.arange(n_samples))
    if wrong.any():
        raise ValueError(
            f"Box {np.flatnonzero(wrong)[0]} is of sample {index[wrong][0]:g}, and X has samples "
            f"0 to {n_samples - 1}; give the index of one of them."
        )
    corners = np.stack([top, left, bottom, right], axis=1) * spatial_scale
    first = np.maximum(np.floor(corners[:, :2]), 0)
    last = np.minimum(np.ceil(corners[:, 2:]), grid)
    # Written so that NaN is wrong too.
    wrong = ~((corners[:, 2:] > corners[:, :2]) & (last > first)).all(axis=1)
    if wrong.any():
        box = np.flatnonzero(wrong)[0]
        raise ValueError(
            f"Box {box}, {boxes[box].tolist()}, holds no cell of a map of {grid[0]} x {grid[1]} "
            f"cells at spatial_scale={spatial_scale:g}; give left < right and top < bottom inside "
            "the map."
        )
    return index.astype(np.int64), np.hstack([first, last - first]).astype(np.int64)


class TemporalPyramidPooling(BasePooling):
    r"""Concatenate what the bins of a sequence hold, level by level.

    The T tokens of a sample (frames of a video, words of a text) are cut into n bins for every
    level n, and every bin is reduced to one vector; the result has :math:`d \sum_n n` features, by
    level, bin and feature. ``levels=(1,)`` pools the sequence as a whole. It is spatial pyramid
    pooling [1]_ along one axis.

    Parameters
    ----------
    levels : sequence of int, default=(1, 2, 4)
        Number of bins, level by level. Bin i (from 0) holds the tokens from
        :math:`\lfloor iT/n \rfloor` to :math:`\lceil (i+1)T/n \rceil - 1`.
    reduce : {"max", "mean", "gem"}, default="max"
        What becomes of the tokens of a bin; "gem" is the power mean of the values, raised to
        at least 1e-6, as in `GeMPooling`.
    p : float, default=3.0
        Exponent of "gem", above 0.
    normalize_levels : {"l2"} or None, default=None
        Whether the bins of a level are brought to unit length together.
    level_weights : array-like of shape (n_levels,), default=None
        Factors of the levels, after that; None for 1.
    scope : {"patch", "all"}, default="patch"
        Whether the class token and registers are left out.
    empty : {"raise", "zero", "nan"}, default="raise"
        What a sample without a real token gives.
    batch_size : int, default=256
        Rows of a plain array that are read at a time.
    out_dtype : {"float16", "float32", "float64"}, default=None
        Float type of the vectors; None for that of the tokens, float32 for half precision.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a token.

    See Also
    --------
    SpatialPyramidPooling : The same on maps.

    Notes
    -----
    No grid is needed: the order of the tokens is their time. Masked tokens are left out and the
    real ones close ranks, so a padded sequence gives what it gives alone. A sequence shorter than
    a level repeats tokens.

    Cost: O(n T d) per level, and per bin where tokens are masked. Nothing is learned, so results
    are kept in the store of the tokens.

    References
    ----------
    .. [1] He, Zhang, Ren, Sun, Spatial Pyramid Pooling in Deep Convolutional Networks for Visual
       Recognition, ECCV 2014. <https://arxiv.org/abs/1406.4729>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import TemporalPyramidPooling
    >>> frames = np.array([[[1.0], [2.0], [6.0], [4.0]]])
    >>> TemporalPyramidPooling((1, 2), reduce="mean").fit_transform(frames)
    array([[3.25, 1.5 , 5.  ]])
    """

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        **_PYRAMID_CONSTRAINTS,
    }

    def __init__(
        self,
        levels: Sequence[int] = (1, 2, 4),
        *,
        reduce: str = "max",
        p: float = 3.0,
        normalize_levels: str | None = None,
        level_weights=None,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.levels = levels
        self.reduce = reduce
        self.p = p
        self.normalize_levels = normalize_levels
        self.level_weights = level_weights
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _check_parameters(self, n_features: int) -> None:
        _check_levels(self.levels, self.level_weights)

    def _pool(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return pool_temporal_pyramid(
            tokens,
            mask,
            levels=self.levels,
            reduce=self.reduce,
            p=self.p,
            normalize=self.normalize_levels,
            weights=self.level_weights,
        )

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_ * int(np.sum(self.levels))
