# SPDX-License-Identifier: BSD-3-Clause
"""What the poolings share that need to know where tokens lie: grids, and maps of many sizes.

They stand beside the other poolings and differ in two things: tokens without a grid are refused,
and a list of maps (H_i, W_i, d) is taken, which gives vectors of one width all the same.
"""

from collections.abc import Iterator
from functools import partial, reduce

import numpy as np
import torch
from sklearn.base import _fit_context

from skpool.pooling._base import BasePooling, Plan
from skpool.stores import TokenArray, assemble, validate_tokens
from skpool.utils import ArrayLike, all_finite, as_tensor, unchanged_on_error

__all__ = ["BaseMapPooling", "grid_of"]


def grid_of(tokens: TokenArray, who: str) -> tuple[int, int]:
    """Rows and columns of the patches; a single one is a map of one cell.

    Parameters
    ----------
    tokens : TokenArray
    who : str
        Name of the step, for the message.

    Returns
    -------
    grid : tuple of 2 ints

    Raises
    ------
    ValueError
        There are several patches and no grid.
    """
    n_patches = tokens.shape[1] - tokens.n_prefix_tokens
    if tokens.grid is None and n_patches > 1:
        raise ValueError(
            f"{who} needs to know where tokens lie, and these {n_patches} tokens per sample have "
            "no grid; give maps (n_samples, height, width, n_features), or "
            "TokenArray.from_array(X, grid=(height, width))."
        )
    return tokens.grid or (1, n_patches)


def _is_list_of_maps(X: object) -> bool:
    is_list = isinstance(X, (list, tuple)) or (
        isinstance(X, np.ndarray) and X.dtype.hasobject and X.ndim == 1
    )
    return is_list and len(X) > 0 and np.ndim(X[0]) == 3


def _as_floats(sample: object) -> torch.Tensor:
    """A map as a tensor; other numbers become float64, as in a `TokenArray`."""
    if not isinstance(sample, torch.Tensor):
        sample = np.asarray(sample)
        sample = sample if sample.dtype.kind == "f" else sample.astype(np.float64)
    tensor = as_tensor(sample)
    return tensor if tensor.is_floating_point() else tensor.double()


def _check_maps_finite(maps: torch.Tensor, rows: np.ndarray) -> None:
    if not all_finite(maps):
        bad = int((~torch.isfinite(maps).flatten(1).all(dim=1)).nonzero()[0])
        raise ValueError(
            f"Input X contains NaN or infinity in the map of sample {rows[bad]}; remove it."
        )


def _by_size(X: list) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Maps of one size together, with their places in the list."""
    shapes = [tuple(np.shape(sample)) for sample in X]
    if {len(shape) for shape in shapes} != {3} or len({shape[2] for shape in shapes}) != 1:
        raise ValueError(
            f"X holds samples of shapes {sorted(set(shapes))[:5]}; each must be "
            "(height_i, width_i, n_features) with one n_features."
        )
    maps = [_as_floats(sample) for sample in X]
    dtype = reduce(torch.promote_types, (sample.dtype for sample in maps))
    sizes, size_of = np.unique(shapes, axis=0, return_inverse=True)
    for size in range(len(sizes)):
        rows = np.flatnonzero(size_of.ravel() == size)
        same = torch.stack([maps[row].to(dtype) for row in rows])
        _check_maps_finite(same, rows)
        yield rows, same


class BaseMapPooling(BasePooling):
    """Base of the poolings of maps.

    A subclass writes `_pool_map`, which is given the grid; one that learns writes `_fit_maps` too.
    """

    # Tells the check suite to put its tokens on a grid.
    _needs_grid = True

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the maps and learn what the pooling needs, if anything.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, height, width, n_features)
            Maps, tokens with a grid, a list of maps (height_i, width_i, n_features) of any sizes,
            or (n_samples, n_features), which counts as maps of one cell.
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
        """
        with unchanged_on_error(self):
            given = [maps for _, maps in _by_size(X)] if _is_list_of_maps(X) else [X]
            plans = [self._plan(validate_tokens(self, maps, reset=True)) for maps in given]
            self._fit_maps([plan.tokens for plan in plans])
        return self

    def transform(self, X) -> ArrayLike:
        """Pool the map of every sample.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, height, width, n_features)
            As in `fit`; of any size.

        Returns
        -------
        vectors : ndarray of shape (n_samples, n_features_out)
            Of the float type of the maps (float32 for half precision) or of `out_dtype`; a tensor
            where X was a tensor or a list of tensors. Rows of unreadable inputs are NaN.
        """
        self._check_ready()
        if not _is_list_of_maps(X):
            return self._vectors(X)
        parts = [(rows, self._vectors(maps)) for rows, maps in _by_size(X)]
        vectors = assemble(parts, len(X), lambda: parts[0][1])
        return vectors if isinstance(X[0], torch.Tensor) else vectors.cpu().numpy()

    def _vectors(self, X: object) -> ArrayLike:
        plan = self._plan(validate_tokens(self, X, reset=False))
        return plan.tokens.reduce(
            self._guarded(plan), fingerprint=self._fingerprint(), batch_size=self.batch_size
        )

    def _bind(self, tokens: TokenArray) -> Plan:
        if self.scope == "all" and tokens.n_prefix_tokens:
            raise ValueError(
                f"scope='all' takes the {tokens.n_prefix_tokens} prefix tokens in, which have no "
                "place on the grid; set scope='patch'."
            )
        grid = grid_of(tokens, type(self).__name__)
        patches = self._in_scope(tokens)
        if patches.shape[1]:
            self._check_grid(grid)
        return Plan(patches, partial(self._pool_map, grid=grid))

    # For subclasses.

    def _check_grid(self, grid: tuple[int, int]) -> None:
        """Refuse parameters that do not fit maps of this size."""

    def _fit_maps(self, maps: list[TokenArray]) -> None:
        """Learn from maps, an array for every size."""

    def _pool_map(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, *, grid: tuple[int, int]
    ) -> torch.Tensor:
        """Vectors (n, n_features_out) of tokens (n, H * W, d)."""
        raise NotImplementedError
