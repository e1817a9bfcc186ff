# SPDX-License-Identifier: BSD-3-Clause
"""The first line of every method of the room: layers in any accepted form become `Layers`.

Tokens of several layers keep their axis of tokens, to be pooled; vectors of several layers are
streamed by the same container, with a layer where it expects a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from sklearn.base import BaseEstimator

from skpool.stores import TokenArray
from skpool.utils import all_finite

__all__ = ["Layers", "layer_places", "read_layers", "validate_layers"]


@dataclass(frozen=True)
class Layers:
    """Several layers of some samples.

    Attributes
    ----------
    rows : TokenArray
        (n_samples, n_layers, n_tokens, n_features), or (n_samples, n_layers, n_features).
    pooled : bool
        Whether the layers are vectors already.
    """

    rows: TokenArray
    pooled: bool

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> "Layers":
        return Layers(self.rows[rows], self.pooled)

    @property
    def n_layers(self) -> int:
        """Length of the axis of the layers."""
        return self.rows.shape[1]

    @property
    def n_features(self) -> int:
        """Width of a layer."""
        return self.rows.shape[-1]


def _stacked(X: Sequence, who: str) -> np.ndarray | torch.Tensor:
    """A list of samples as one array; unequal ones have no common axis of layers."""
    shapes = sorted({tuple(np.shape(sample)) for sample in X})
    if len(shapes) > 1:
        raise ValueError(
            f"{who} got a list of arrays of unequal shapes {shapes[:4]}; its layers have one "
            "width. Layers or backbones of unequal widths go side by side in a FeatureUnion, or "
            "to BackboneSelector."
        )
    if len(X) and isinstance(X[0], torch.Tensor):
        return torch.stack(list(X))
    return np.asarray(X)


def read_layers(X: object, who: str) -> Layers:
    """Bring layers into one form, without a look at their values.

    Parameters
    ----------
    X : TokenArray, array or tensor of rank 3 or 4, or list of samples of rank 2 or 3
    who : str
        The estimator's or function's name, for messages.

    Returns
    -------
    layers : Layers
    """
    if isinstance(X, TokenArray):
        if X.ndim == 3:
            raise ValueError(
                f"X holds tokens of one layer, shape {X.shape}, and {who} takes several: give "
                "`layers=[...]` to the extractor, or use a pooling alone."
            )
        layers = Layers(X, pooled=False)
    else:
        if isinstance(X, (list, tuple)):
            X = _stacked(X, who)
        elif not isinstance(X, torch.Tensor):
            X = np.asarray(X)
        if X.ndim not in (3, 4):
            raise ValueError(
                f"{who} expected layers (n_samples, n_layers, n_features) or (n_samples, "
                f"n_layers, n_tokens, n_features), got shape {tuple(X.shape)}."
            )
        make = TokenArray.from_array if X.ndim == 3 else TokenArray.from_layers
        layers = Layers(make(X), pooled=X.ndim == 3)
    if 0 in layers.rows.shape:
        raise ValueError(
            f"Found array with {len(layers)} sample(s) of shape {layers.rows.shape[1:]} while a "
            f"minimum of 1 in every axis is required by {who}."
        )
    return layers


def _check_finite(layers: Layers) -> None:
    """Refuse NaN and infinity, but not under a False mask."""
    for positions, values, mask in layers.rows.iter_batches():
        real = values if mask is None else values.where(mask[:, None, :, None], 0.0)
        if all_finite(real):
            continue
        bad = ~torch.isfinite(real).flatten(1).all(dim=1)
        raise ValueError(
            f"Input X contains NaN or infinity in the layers of sample "
            f"{int(positions[int(bad.nonzero()[0])])}; remove it or mask its tokens."
        )


def validate_layers(estimator: BaseEstimator, X: object, *, reset: bool) -> Layers:
    """Check layers and remember or compare their number and width.

    Parameters
    ----------
    estimator : estimator
        Whose `n_features_in_` and `n_layers_in_` are set (`reset=True`) or compared.
    X : TokenArray of several layers, array or tensor of rank 3 or 4, or list of samples
    reset : bool
        Whether this call defines number and width.

    Returns
    -------
    layers : Layers
        Finite where they are in memory; what a network has yet to compute is not read here.
    """
    who = type(estimator).__name__
    layers = read_layers(X, who)
    if layers.rows.in_memory:
        _check_finite(layers)
    if reset:
        estimator.n_features_in_ = layers.n_features
        estimator.n_layers_in_ = layers.n_layers
    elif getattr(estimator, "n_features_in_", layers.n_features) != layers.n_features:
        raise ValueError(
            f"X has layers of {layers.n_features} features, but {who} is expecting "
            f"{estimator.n_features_in_} features as input."
        )
    elif getattr(estimator, "n_layers_in_", layers.n_layers) != layers.n_layers:
        raise ValueError(
            f"X has {layers.n_layers} layers, but {who} was fitted on {estimator.n_layers_in_}; "
            "give the layers that it was fitted on."
        )
    return layers


def layer_places(layers: object, n_layers: int) -> list[int]:
    """Turn a choice of layers into positions on their axis.

    Parameters
    ----------
    layers : "all", slice, int or sequence of int
        Positions; negative ones count from the end.
    n_layers : int
        Length of the axis.

    Returns
    -------
    places : list of int
        From 0 to n_layers - 1, in the order given.
    """
    if isinstance(layers, str):
        if layers != "all":
            raise ValueError(f"layers={layers!r} is not valid; give 'all', a slice or positions.")
        return list(range(n_layers))
    if isinstance(layers, slice):
        places = list(range(n_layers)[layers])
    else:
        places = [layers] if isinstance(layers, Integral) else list(layers)
    if not places or not all(isinstance(p, Integral) and not isinstance(p, bool) for p in places):
        raise ValueError(
            f"layers={layers!r} names no layer of {n_layers}; give one or more whole numbers."
        )
    outside = [p for p in places if not -n_layers <= p < n_layers]
    if outside:
        raise ValueError(
            f"layers={layers!r} holds {outside[0]}, and X has {n_layers} layers; give positions "
            f"from {-n_layers} to {n_layers - 1} (not the numbers of a network's blocks)."
        )
    return [int(p) % n_layers for p in places]
