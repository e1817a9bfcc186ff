# SPDX-License-Identifier: BSD-3-Clause
"""What the steps share that treat every feature vector by itself: vectors or tokens, as they came.

Such a step acts on the last axis. Between pooling and classifier it sees vectors (n, d); before a
pooling it sees tokens, whose every token is such a vector, and stays as lazy as they are.
"""

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils import Tags
from sklearn.utils._set_output import _wrap_data_with_container

from skpool.stores import TokenArray, as_given, validate_tokens
from skpool.utils import (
    ArrayLike,
    as_tensor,
    estimator_fingerprint,
    numpy_or_tensor,
    unchanged_on_error,
    validate_vectors,
    widened,
)

__all__ = ["BaseRowMap", "is_tokens", "placed_rows_of", "rows_of"]

# Rows of an array at a time, where something is learned: half precision is widened by the block.
_BLOCK_ROWS = 8192


def is_tokens(X: object) -> bool:
    """Whether X has an axis of tokens: a TokenArray, rank 3 or more, or a list of (L_i, d)."""
    if isinstance(X, TokenArray):
        return True
    listed = isinstance(X, (list, tuple))
    if listed or (isinstance(X, np.ndarray) and X.dtype.hasobject and X.ndim == 1):
        return len(X) > 0 and np.ndim(X[0]) >= 2
    return getattr(X, "ndim", 2) > 2


def placed_rows_of(X: ArrayLike | TokenArray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the vectors (m, d) of checked data in blocks, and the position of each token (m,).

    All real tokens come, and rows of vectors at position 0; half precision as float32. Tokens
    that a network computed as NaN, as an unreadable view's, are left out.
    """
    if not isinstance(X, TokenArray):
        for rows in as_tensor(X).split(_BLOCK_ROWS):
            yield widened(rows), torch.zeros(len(rows), dtype=torch.int64)
        return
    for _, tokens, mask in X.iter_batches():
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
        real = torch.ones_like(places, dtype=torch.bool) if mask is None else mask
        if not X.in_memory:
            real = real & torch.isfinite(tokens).all(dim=-1)
        whole = bool(real.all())
        rows = tokens.flatten(0, 1) if whole else tokens[real]
        if len(rows):
            yield widened(rows), places[real]


def rows_of(X: ArrayLike | TokenArray) -> Iterator[torch.Tensor]:
    """Yield the vectors (m, d) of checked data in blocks: rows, or all real tokens.

    Half precision comes as float32.
    """
    for rows, _ in placed_rows_of(X):
        yield rows


# Tokens have no table to be put in, so `transform` itself wraps vectors where that was asked for.
class BaseRowMap(TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):
    """Base of the steps that act on the last axis.

    A subclass writes `_map`; one that learns writes `_learn` and sets the tag `requires_fit`.
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike | TokenArray, y: object = None):
        """Check X, remember its width, and learn what the step needs, if anything.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors; also tokens (n_samples, n_tokens, n_features), a TokenArray, maps
            (n_samples, height, width, n_features), and lists of (n_tokens_i, n_features), whose
            every real token counts as a vector.
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
        """
        with unchanged_on_error(self):
            X = self._checked_to_learn(X, reset=True)
            self._check_parameters(self.n_features_in_)
            self._learn(X)
        return self

    def fit_transform(self, X: ArrayLike | TokenArray, y: object = None) -> ArrayLike | TokenArray:
        """Fit to X and map it.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Or tokens, as in `fit`.
        y : ignored
            Present for the API.

        Returns
        -------
        Z : ndarray, tensor or TokenArray
            As `transform` gives.
        """
        return self.fit(X, y).transform(X)

    def transform(self, X: ArrayLike | TokenArray) -> ArrayLike | TokenArray:
        """Map every vector.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Or tokens, as in `fit`.

        Returns
        -------
        Z : ndarray, tensor or TokenArray
            As X came, of the same rank, half precision as float32; a TokenArray stays lazy, and
            so is what a list becomes. `set_output` concerns vectors.
        """
        self._check_ready()
        given, X = X, self._checked(X, reset=False)
        self._check_mappable(X)
        if not isinstance(X, TokenArray):
            rows, restore = numpy_or_tensor(X)
            return _wrap_data_with_container("transform", restore(self._map(rows)), given, self)
        mapped = X.map(
            self._map_tokens,
            n_features=self._n_features_of(X.shape[-1]),
            fingerprint=self._fingerprint(),
        )
        return as_given(mapped, given)

    def _checked(self, X: object, *, reset: bool) -> ArrayLike | TokenArray:
        return (validate_tokens if is_tokens(X) else validate_vectors)(self, X, reset=reset)

    def _checked_to_learn(self, X: object, *, reset: bool) -> ArrayLike | TokenArray:
        """The same for rows to learn from; what they are learned by may see NaN by itself."""
        return self._checked(X, reset=reset)

    def _map_tokens(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        tokens = widened(tokens)
        if mask is not None:
            # What stands under a False mask may be NaN, which no step shall see.
            tokens = tokens.where(mask[..., None], 0.0)
        mapped = self._map(tokens.flatten(0, 1))
        return mapped.reshape(*tokens.shape[:-1], mapped.shape[-1])

    def _fingerprint(self) -> str | None:
        """Name of the step for stores; None where parameters do not decide it all."""
        return None if self.__sklearn_tags__().requires_fit else estimator_fingerprint(self)

    # For subclasses.

    def _check_parameters(self, n_features: int) -> None:
        """Refuse parameters that do not fit the width."""

    def _check_ready(self) -> None:
        """Refuse to transform before `fit` where something is learned."""

    def _check_mappable(self, X: ArrayLike | TokenArray) -> None:
        """Refuse checked data that the step cannot map."""
        self._check_parameters(X.shape[-1])

    def _learn(self, X: ArrayLike | TokenArray) -> None:
        """Learn from the vectors, which `rows_of` gives in blocks."""

    def _n_features_of(self, n_features: int) -> int:
        """Width of the result."""
        return n_features

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        """Vectors (m, k) of vectors (m, d) in float32 or float64, where they lie."""
        raise NotImplementedError

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
