# SPDX-License-Identifier: BSD-3-Clause
"""What every pooling shares: checking tokens, streaming them, empty rows, names of the outputs.

A pooling on top of it says how tokens become vectors (`_pool`) and, if its kernel can be named by
its parameters alone, nothing more: results of such poolings are kept in the store of the tokens.
"""

from numbers import Integral
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.stores import Job, Reduction, TokenArray, check_tokens_finite, validate_tokens
from skpool.utils import ArrayLike, all_finite, estimator_fingerprint, unchanged_on_error

__all__ = ["BasePooling"]


_OUT_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


class Plan(NamedTuple):
    """What a pooling is about to do.

    Attributes
    ----------
    tokens : TokenArray
        What is streamed.
    pool : callable
        Turns a batch of it into vectors.
    first : int
        Leading tokens that are streamed without being in scope.
    """

    tokens: TokenArray
    pool: Reduction
    first: int = 0


def _check_computed(vectors: torch.Tensor) -> None:
    """Tokens of a network are not read twice; what is not finite shows in the result."""
    if not all_finite(vectors):
        bad = int((~torch.isfinite(vectors).all(dim=1)).sum())
        raise ValueError(
            f"Input X contains NaN or infinity in the computed tokens of {bad} sample(s) of a "
            "batch; leave these samples out, or let the network compute in float32."
        )


class BasePooling(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of all poolings.

    A subclass has the parameters `scope`, `empty`, `batch_size` and `out_dtype`, and writes
    `_pool`; one that learns writes `_fit_tokens` too.
    """

    # For poolings that leave the choice out.
    out_dtype: str | None = None
    # Whether the kernel raises where a token in scope is not finite: they are not read twice then.
    _refuses_bad_tokens: ClassVar[bool] = False

    _parameter_constraints: dict = {
        "scope": [StrOptions({"patch", "all"})],
        "empty": [StrOptions({"raise", "zero", "nan"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "out_dtype": [StrOptions(set(_OUT_DTYPES)), None],
    }

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the tokens and learn what the pooling needs, if anything.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            Also maps (n_samples, height, width, n_features), lists of (n_tokens_i, n_features),
            and (n_samples, n_features), which counts as one token per sample.
        y : array-like of shape (n_samples,), default=None
            Labels, for the poolings that learn from them; the others ignore it.

        Returns
        -------
        self : estimator
        """
        with unchanged_on_error(self):
            tokens = validate_tokens(self, X, reset=True)
            self._fit_tokens(self._plan(tokens).tokens, y)
        return self

    def transform(self, X) -> ArrayLike:
        """Pool the tokens of every sample.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        vectors : ndarray of shape (n_samples, n_features_out)
            Of the float type of the tokens (float32 for half precision) or of `out_dtype`; a
            tensor where X was a tensor. Rows of unreadable inputs are NaN.
        """
        self._check_ready()
        finite = not self._refuses_bad_tokens
        plan = self._plan(validate_tokens(self, X, reset=False, finite=finite))
        try:
            return plan.tokens.reduce(
                self._guarded(plan), fingerprint=self._fingerprint(), batch_size=self.batch_size
            )
        except ValueError:
            if not finite and plan.tokens.in_memory:
                check_tokens_finite(plan.tokens)
            raise

    def job(self, X: TokenArray) -> Job | None:
        """What `transform` would compute of lazy tokens, to be done together with other poolings.

        Parameters
        ----------
        X : TokenArray

        Returns
        -------
        job : Job, or None
            None where no store could keep the result: the pooling learns from tokens, or its
            parameters do not say all, as with a callable.
        """
        name = self._fingerprint()
        if self.__sklearn_tags__().requires_fit or name is None:
            return None
        plan = self._plan(X)
        return plan.tokens.job(self._guarded(plan), name)

    def _plan(self, tokens: TokenArray) -> Plan:
        """Check the parameters against the tokens, and that there is something to pool."""
        self._check_parameters(tokens.shape[2])
        plan = self._bind(tokens)
        if plan.tokens.shape[1] == plan.first:
            raise ValueError(
                f"All {tokens.shape[1]} tokens of a sample are prefix tokens, which scope='patch' "
                "leaves out; set scope='all'."
            )
        mask = plan.tokens.mask if self.empty == "raise" else None
        if mask is not None and not mask[:, plan.first :].any(axis=1).all():
            rows = np.flatnonzero(~mask[:, plan.first :].any(axis=1))
            raise ValueError(
                f"Sample {rows[0]} has no real token ({len(rows)} such samples); remove them, or "
                "set empty='zero' or empty='nan'."
            )
        return plan

    def _in_scope(self, tokens: TokenArray) -> TokenArray:
        return tokens.patches if self.scope == "patch" and tokens.n_prefix_tokens else tokens

    def _guarded(self, plan: Plan) -> Reduction:
        """The function that pools, with the rows that have no real token put right."""
        value = 0.0 if self.empty == "zero" else torch.nan
        dtype = _OUT_DTYPES.get(self.out_dtype)

        def guarded(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            vectors = plan.pool(tokens, mask)
            vectors = vectors if dtype is None else vectors.to(dtype)
            empty = None if mask is None else ~mask[:, plan.first :].any(dim=1)
            if not plan.tokens.in_memory:
                _check_computed(vectors if empty is None else vectors[~empty])
            if empty is None or not bool(empty.any()):
                return vectors
            return vectors.masked_fill(empty[:, None], value)

        return guarded

    def _fingerprint(self) -> str | None:
        """Name of the computation for stores; None where parameters do not decide it all."""
        return estimator_fingerprint(self)

    # For subclasses.

    def _bind(self, tokens: TokenArray) -> Plan:
        """The tokens to stream and the function that pools them."""
        return Plan(self._in_scope(tokens), self._pool)

    def _check_parameters(self, n_features: int) -> None:
        """Refuse parameters that do not fit the tokens."""

    def _check_ready(self) -> None:
        """Refuse to transform before `fit` where something is learned."""

    def _fit_tokens(self, tokens: TokenArray, y: object) -> None:
        """Learn from the tokens that will be streamed, and from labels where that is meant."""

    def _pool(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Vectors (n, n_features_out) of tokens (n, L, d)."""
        raise NotImplementedError

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.three_d_array = True
        return tags
