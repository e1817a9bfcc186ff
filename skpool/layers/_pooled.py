# SPDX-License-Identifier: BSD-3-Clause
"""Layers of tokens to layers of vectors: one pass, whatever the number of layers.

Between the check of X and the aggregation or selection of layers. A pooling that learns nothing
serves all layers, and what it gives for all of them is kept in the store of the tokens, so that
every later choice of layers reads vectors and no network runs again. A pooling that learns has a
copy per layer.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags

from skpool import __version__
from skpool.layers._validation import Layers
from skpool.pooling import POOLINGS, BasePooling, TokenPooling
from skpool.stores import ArraySource, Reduction, TokenArray
from skpool.utils import ArrayLike, as_tensor, fingerprint

__all__ = ["TOKEN_POOLS", "LayerPooling"]

# Names that stand for `TokenPooling` of that name.
TOKEN_POOLS = tuple(sorted(set(POOLINGS) - {"gem"}))


class _Batch(ArraySource):
    """Tokens of a batch of one layer, which a pooling must not read twice."""

    in_memory = False

    def __init__(self, values: torch.Tensor, mask: torch.Tensor | None, whole: TokenArray):
        super().__init__(values, mask=mask, n_prefix_tokens=whole.n_prefix_tokens)
        self._cls_index = whole.cls_index
        # Ragged tokens are as many as the longest of the batch has, and have no grid.
        self.grid = whole.grid if mask is None else None

    @property
    def cls_index(self) -> int | None:
        """As the tokens of all samples have it."""
        return self._cls_index


class LayerPooling:
    """The poolings of some layers.

    Parameters
    ----------
    poolings : sequence of estimators
        Fitted, one per place; or one for all, which needs no fit.
    places : sequence of int
        Layers on their axis.
    with_patches : bool, default=False
        Whether the mean of the patches of the last place is given too.
    """

    def __init__(
        self, poolings: Sequence[BaseEstimator], places: Sequence[int], with_patches: bool = False
    ):
        self.poolings = list(poolings)
        self.places = list(places)
        self.with_patches = with_patches

    @classmethod
    def fitted(
        cls,
        token_pool: str | BaseEstimator,
        layers: Layers,
        places: Sequence[int],
        y: object = None,
        *,
        with_patches: bool = False,
    ) -> "LayerPooling":
        """Fit what has to be fitted: a copy per place where the pooling learns.

        Parameters
        ----------
        token_pool : str or estimator
        layers : Layers
        places : sequence of int
        y : array-like, default=None
            Handed on to the poolings.
        with_patches : bool, default=False

        Returns
        -------
        pooling : LayerPooling
        """
        prototype = TokenPooling(token_pool) if isinstance(token_pool, str) else token_pool
        if layers.pooled:
            poolings = []
        elif get_tags(prototype).requires_fit:
            poolings = [clone(prototype).fit(layers.rows.layer(p), y) for p in places]
        else:
            # Learns nothing but widths, which one sample shows.
            poolings = [clone(prototype).fit(layers.rows[:1].layer(0))]
        return cls(poolings, places, with_patches)

    def vectors(self, layers: Layers) -> tuple[ArrayLike, ArrayLike | None]:
        """Pool the layers at the places.

        Parameters
        ----------
        layers : Layers

        Returns
        -------
        vectors : ndarray or tensor of shape (n_samples, n_places, n_out)
        patches : ndarray or tensor of shape (n_samples, n_features), or None
            Means of the patches of the last place.
        """
        if layers.pooled:
            return layers.rows.reduce(lambda rows, mask: rows[:, self.places]), None
        self._check_masks(layers.rows)
        # Where nothing is kept, layers that nobody asked for are not pooled.
        name = None if layers.rows.in_memory else self._name
        places = self.places if name is None else list(range(layers.n_layers))
        flat = layers.rows.reduce(self._function(places, layers.rows), fingerprint=name)
        n_patches = layers.n_features if self.with_patches else 0
        width = flat.shape[1] - n_patches
        vectors = flat[:, :width].reshape(len(flat), len(places), -1)
        if name is not None and places != self.places:
            vectors = vectors[:, self.places]
        return vectors, flat[:, width:] if n_patches else None

    @cached_property
    def _name(self) -> str | None:
        """Names what is kept; None where the parameters of a pooling do not decide it."""
        pooling = self.poolings[0]
        if get_tags(pooling).requires_fit or not isinstance(pooling, BasePooling):
            return None
        name = pooling._fingerprint()
        patches_of = self.places[-1] if self.with_patches else None
        return name and fingerprint("layers", __version__, name, patches_of)

    def _function(self, places: list[int], whole: TokenArray) -> Reduction:
        """From tokens (n, k, L, d) to the vectors of the places, flattened."""
        poolings = self.poolings * (len(places) if len(self.poolings) == 1 else 1)
        mean = TokenPooling("mean")

        def pool(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            def pooled(pooling: BaseEstimator, place: int) -> torch.Tensor:
                batch = TokenArray(_Batch(tokens[:, place], mask, whole))
                return as_tensor(pooling.transform(batch))

            parts = [pooled(*pair) for pair in zip(poolings, places, strict=True)]
            if len({part.shape[1] for part in parts}) > 1:
                raise ValueError(
                    f"token_pool={self.poolings[0]!r} gives layers of unequal widths "
                    f"{[part.shape[1] for part in parts]}; give it a fixed width."
                )
            if self.with_patches:
                parts.append(pooled(mean, self.places[-1]))
            return torch.cat(parts, dim=1)

        return pool

    def _check_masks(self, rows: TokenArray) -> None:
        """Let the pooling refuse a sample without a real token before batches lose its number."""
        if rows.mask is not None and isinstance(self.poolings[0], BasePooling):
            self.poolings[0]._plan(rows.layer(0))
