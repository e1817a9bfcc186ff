# SPDX-License-Identifier: BSD-3-Clause
"""RMACPooling: regional maximum activations, the sum of overlapping squares of a map.

The descriptor of image retrieval before generalized means: every region is brought to unit length,
optionally whitened, and the sum of them stands for the image.
"""

import warnings
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils import Tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._base import BasePooling
from skpool.pooling._map_pooling import BaseMapPooling, grid_of
from skpool.pooling._spatial_kernels import pool_rmac, rmac_lattices, rmac_side, rmac_vectors
from skpool.stores import TokenArray
from skpool.utils import as_tensor

__all__ = ["RMACPooling"]


class RMACPooling(BaseMapPooling):
    r"""Sum the vectors of overlapping square regions of a map (R-MAC).

    Level l lays squares of side :math:`s = \lfloor 2 \min(H, W) / (l + 1) \rfloor` over the map,
    l of them along the shorter side and as many more along the longer one as bring the overlap of
    neighbours nearest to `overlap` (l x l on a square map). With :math:`r_1, r_2, \dots` the
    vectors of all regions of all levels [1]_,

    .. math:: z = u\Big(\sum_i u(r_i)\Big), \qquad u(x) = x / |x|,

    or :math:`u(T(u(r_i)))` in place of :math:`u(r_i)` with a `region_transform` T.

    Parameters
    ----------
    levels : int, default=3
        Sizes of regions.
    overlap : float, default=0.4
        Share of a region that its neighbour along the longer side covers too; 2 to 7 regions are
        tried there.
    include_global : bool, default=True
        Whether the whole map is one more region, as in the authors' code but not in the paper. A
        square map is its only region of level 1 too, and then counts twice.
    reduce : {"max", "mean", "gem"}, default="max"
        What becomes of the cells of a region; "gem" is the power mean of the values, raised to
        at least 1e-6, as in `GeMPooling`.
    p : float, default=3.0
        Exponent of "gem", above 0.
    region_transform : transformer or None, default=None
        Fitted on the region vectors of the training maps and applied to every region, such as
        `Whitening`, or a fitted one in a `sklearn.frozen.FrozenEstimator`.
    eps : float, default=1e-6
        Added to the length of a region's vector before division.
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
    region_transform_ : transformer
        The fitted `region_transform`, where one was given.

    See Also
    --------
    SpatialPyramidPooling : Keeps the regions side by side.
    GeMPooling : One region, between the mean and the maximum.

    Notes
    -----
    Maps, tokens with a grid, and lists of maps (height_i, width_i, n_features) of any sizes are
    taken; vectors (n_samples, n_features) count as maps of one cell. A level whose squares would
    have no cell is left out with a warning. A cell under a False mask is absent; a region that is
    zero in all features, as one without a real cell, contributes nothing and teaches nothing.

    Cost: O(n H W d) per level, rows of cells reduced before columns. A `region_transform` is
    fitted on all regions together, 14 of d features and the map itself per square map at
    `levels=3`. Without one nothing is learned, and results are kept in the store of the tokens.

    References
    ----------
    .. [1] Tolias, Sicre, Jégou, Particular Object Retrieval with Integral Max-Pooling of CNN
       Activations, ICLR 2016. <https://arxiv.org/abs/1511.05879>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import RMACPooling
    >>> maps = np.zeros((1, 2, 2, 2))
    >>> maps[0, 0] = [3.0, 4.0]
    >>> RMACPooling(1).fit_transform(maps)
    array([[0.6, 0.8]])
    >>> RMACPooling(2).regions(3, 3)
    [(0, 0, 3, 3), (0, 0, 2, 2), (0, 1, 2, 2), (1, 0, 2, 2), (1, 1, 2, 2)]
    """

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        "levels": [Interval(Integral, 1, None, closed="left")],
        "overlap": [Interval(Real, 0, 1, closed="left")],
        "include_global": ["boolean"],
        "reduce": [StrOptions({"max", "mean", "gem"})],
        "p": [Interval(Real, 0, None, closed="neither")],
        "region_transform": [HasMethods(["fit", "transform"]), None],
        "eps": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        levels: int = 3,
        *,
        overlap: float = 0.4,
        include_global: bool = True,
        reduce: str = "max",
        p: float = 3.0,
        region_transform: BaseEstimator | None = None,
        eps: float = 1e-6,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.levels = levels
        self.overlap = overlap
        self.include_global = include_global
        self.reduce = reduce
        self.p = p
        self.region_transform = region_transform
        self.eps = eps
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def regions(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Tell which squares of a map are pooled, beside the whole of it.

        Parameters
        ----------
        height, width : int
            Rows and columns of the map.

        Returns
        -------
        regions : list of (y, x, side, side)
            First row, first column and size, level by level and row by row.
        """
        lattices = rmac_lattices((height, width), levels=self.levels, overlap=self.overlap)
        return [
            (top, left, bottom - top, right - left)
            for lattice in lattices
            for top, bottom in lattice.rows
            for left, right in lattice.columns
        ]

    def _options(self) -> dict[str, object]:
        names = ("levels", "overlap", "include_global", "reduce", "p", "eps")
        return {name: getattr(self, name) for name in names}

    def _check_grid(self, grid: tuple[int, int]) -> None:
        skipped = [level for level in range(1, self.levels + 1) if not rmac_side(grid, level)]
        if skipped:
            warnings.warn(
                f"levels={self.levels}: a map of {grid[0]} x {grid[1]} cells is too small for "
                f"regions of level {skipped[0]} on, which are left out; set "
                f"levels={skipped[0] - 1}.",
                UserWarning,
                stacklevel=7,
            )

    def _fit_maps(self, maps: list[TokenArray]) -> None:
        if self.region_transform is None:
            return
        rows = torch.cat([self._regions_of(tokens) for tokens in maps])
        # Neither unreadable samples (NaN) nor regions without anything.
        known = torch.isfinite(rows).all(dim=1) & (rows != 0).any(dim=1)
        if not bool(known.any()):
            raise ValueError("X has no region to fit region_transform on; all maps are empty.")
        self.region_transform_ = clone(self.region_transform).fit(rows[known].numpy(), None)

    def _regions_of(self, tokens: TokenArray) -> torch.Tensor:
        """Vectors of all regions of some maps, on the host."""
        kernel = partial(rmac_vectors, grid=grid_of(tokens, type(self).__name__), **self._options())
        flat = tokens.reduce(lambda *batch: kernel(*batch).flatten(1), batch_size=self.batch_size)
        return as_tensor(flat).cpu().reshape(-1, self.n_features_in_)

    def _check_ready(self) -> None:
        if self.region_transform is not None:
            check_is_fitted(self, "region_transform_")

    def _fingerprint(self) -> str | None:
        # What a transform has learned is no parameter.
        return None if self.region_transform is not None else super()._fingerprint()

    def _transformed(self, rows: torch.Tensor) -> torch.Tensor:
        changed = np.asarray(self.region_transform_.transform(rows.cpu().numpy()))
        return as_tensor(changed).to(rows)

    def _pool_map(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, *, grid: tuple[int, int]
    ) -> torch.Tensor:
        transform = None if self.region_transform is None else self._transformed
        return pool_rmac(tokens, mask, grid=grid, transform=transform, **self._options())

    @property
    def _n_features_out(self) -> int:
        if self.region_transform is None:
            return self.n_features_in_
        return self._transformed(torch.zeros(1, self.n_features_in_)).shape[1]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = self.region_transform is not None
        return tags
