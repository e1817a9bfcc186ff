# SPDX-License-Identifier: BSD-3-Clause
"""What the steps share that keep the token axis: tokens in, tokens out, as lazy as they came.

They stand between extraction and a pooling: a chosen part of the tokens, tokens without their
position, maps smoothed before they are pooled.
"""

from numbers import Integral

import torch
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval

from skpool.stores import TokenArray, as_given, validate_tokens
from skpool.utils import ArrayLike, estimator_fingerprint, unchanged_on_error

__all__ = ["BaseTokenTransformer"]


class BaseTokenTransformer(TransformerMixin, BaseEstimator):
    """Base of the steps from tokens to tokens.

    A subclass has the parameter `batch_size` and writes `_map` where the result has the shape of
    the tokens, or `_mapped`; one that learns writes `_fit_tokens` too.
    """

    _parameter_constraints: dict = {
        "batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the tokens and learn what the step needs, if anything.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            Also maps (n_samples, height, width, n_features) and lists of
            (n_tokens_i, n_features).
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
        """
        with unchanged_on_error(self):
            tokens = validate_tokens(self, X, reset=True)
            self._check_parameters(tokens)
            self._fit_tokens(tokens)
        return self

    def transform(self, X) -> TokenArray | ArrayLike:
        """Make tokens of tokens.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        tokens : TokenArray, ndarray or tensor
            As X came: a TokenArray stays lazy, arrays and tensors come back as such. Half
            precision becomes float32.
        """
        self._check_ready()
        tokens = validate_tokens(self, X, reset=False)
        self._check_parameters(tokens)
        return as_given(self._mapped(tokens), X)

    def set_output(self, *, transform=None) -> "BaseTokenTransformer":
        """Accept scikit-learn's choice of a container, which tokens do not have.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, default=None
            Without effect: tokens are no table.

        Returns
        -------
        self : estimator
        """
        return self

    def _fingerprint(self) -> str | None:
        """Name of the step for stores; None where parameters do not decide it all."""
        return None if self.__sklearn_tags__().requires_fit else estimator_fingerprint(self)

    # For subclasses.

    def _check_parameters(self, tokens: TokenArray) -> None:
        """Refuse parameters that do not fit the tokens."""

    def _check_ready(self) -> None:
        """Refuse to transform before `fit` where something is learned."""

    def _fit_tokens(self, tokens: TokenArray) -> None:
        """Learn from the tokens."""

    def _mapped(self, tokens: TokenArray) -> TokenArray:
        """The lazy result."""
        return tokens.map(self._map, fingerprint=self._fingerprint())

    def _map(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Tokens (n, L, d) of tokens (n, L, d)."""
        raise NotImplementedError

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags
