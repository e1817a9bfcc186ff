# SPDX-License-Identifier: BSD-3-Clause
"""The first line of every step on tokens: any accepted form becomes a `TokenArray`, and back."""

import numpy as np
import torch
from sklearn.base import BaseEstimator

from skpool.stores._row_source import as_array, assemble
from skpool.stores._token_array import TokenArray
from skpool.utils import ArrayLike, all_finite, validate_vectors

__all__ = ["as_given", "check_tokens_finite", "validate_tokens"]


def _check_width(estimator: BaseEstimator, width: int, *, reset: bool) -> None:
    if reset:
        estimator.n_features_in_ = width
        if hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
    elif getattr(estimator, "n_features_in_", width) != width:
        raise ValueError(
            f"X has tokens of {width} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input."
        )


def _is_ragged(X: object) -> bool:
    """Whether X is a list of samples (n_tokens_i, n_features) rather than of rows of numbers."""
    is_list = isinstance(X, (list, tuple))
    if not is_list and not (isinstance(X, np.ndarray) and X.dtype.hasobject and X.ndim == 1):
        return False
    return len(X) > 0 and np.ndim(X[0]) == 2


def _wrap(X: object, who: str) -> TokenArray:
    """Arrays of rank 3 and 4 and lists of (n_tokens_i, n_features)."""
    if _is_ragged(X):
        return TokenArray.from_list(list(X))
    if not isinstance(X, torch.Tensor):
        X = np.asarray(X)
    if X.ndim not in (3, 4):
        raise ValueError(
            f"{who} expected tokens (n_samples, n_tokens, n_features) or maps (n_samples, height, "
            f"width, n_features), got shape {tuple(X.shape)}."
        )
    return TokenArray.from_map(X) if X.ndim == 4 else TokenArray.from_array(X)


def check_tokens_finite(tokens: TokenArray) -> None:
    """Real tokens must be finite; what stands under a False mask is nobody's business."""
    for positions, values, mask in tokens.iter_batches():
        real = values if mask is None else values.where(mask[..., None], 0.0)
        if all_finite(real):
            continue
        bad = ~torch.isfinite(real).flatten(1).all(dim=1)
        raise ValueError(
            f"Input X contains NaN or infinity in the tokens of sample "
            f"{int(positions[int(bad.nonzero()[0])])}; remove it or mask these tokens."
        )


def validate_tokens(
    estimator: BaseEstimator, X: object, *, reset: bool, finite: bool = True
) -> TokenArray:
    """Check tokens and remember or compare the number of features.

    Parameters
    ----------
    estimator : estimator
        Whose `n_features_in_` is set (`reset=True`) or compared.
    X : TokenArray, array or tensor of rank 2, 3 or 4, or list of (n_tokens_i, n_features)
        Rank 2 counts as one token per sample, rank 4 as maps (n, height, width, d).
    reset : bool
        Whether this call defines the width.
    finite : bool, default=True
        Whether tokens in memory are checked, which is a read of all of them; without it the caller
        sees what is not finite in what it computes, and calls `check_tokens_finite` to say where.

    Returns
    -------
    tokens : TokenArray
        Finite where it is in memory; tokens that a network has yet to compute are not read here.
    """
    if not isinstance(X, TokenArray):
        if not _is_ragged(X) and getattr(X, "ndim", 2) <= 2:
            X = validate_vectors(estimator, X, reset=reset)
            return TokenArray.from_array(X[:, None])
        X = _wrap(X, type(estimator).__name__)
    if X.ndim == 4:
        raise ValueError(
            f"X holds tokens of {X.n_layers} layers; {type(estimator).__name__} pools one layer: "
            "use LayerAggregator, or X.layer(i)."
        )
    if 0 in X.shape:
        raise ValueError(
            f"Found array with {len(X)} sample(s) of shape {X.shape[1:]} while a minimum of 1 "
            f"sample, 1 token and 1 feature is required by {type(estimator).__name__}."
        )
    if finite and X.in_memory:
        check_tokens_finite(X)
    _check_width(estimator, X.shape[2], reset=reset)
    return X


def as_given(tokens: TokenArray, X: object) -> TokenArray | ArrayLike:
    """Give tokens back in the form in which X came.

    Parameters
    ----------
    tokens : TokenArray
        Made of X, of as many samples.
    X : TokenArray, array or tensor of rank 2, 3 or 4, or list of (n_tokens_i, n_features)
        What the user gave.

    Returns
    -------
    tokens : TokenArray, or ndarray or tensor of the rank of X
        Lazy where X was lazy or a list; (n_samples, n_tokens, n_features) where X was a map and
        `tokens` have no grid, or where X was vectors and there are several tokens.
    """
    if isinstance(X, TokenArray) or _is_ragged(X):
        return tokens
    batches = ((batch.positions, batch.tokens) for batch in tokens.iter_batches())
    blank = torch.zeros((0, *tokens.shape[1:]), dtype=torch.float64)
    values = assemble(batches, len(tokens), lambda: blank)
    rank = np.ndim(X)
    if rank == 4 and tokens.grid is not None and not tokens.n_prefix_tokens:
        values = values.reshape(len(values), *tokens.grid, values.shape[-1])
    elif rank == 2 and values.shape[1] == 1:
        values = values[:, 0]
    return values if isinstance(X, torch.Tensor) else as_array(values)
