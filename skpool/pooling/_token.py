# SPDX-License-Identifier: BSD-3-Clause
"""The simple poolings: mean, maximum, one chosen token, and concatenations of these."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from sklearn.utils._param_validation import StrOptions

from skpool.pooling._base import BasePooling, Plan
from skpool.pooling._kernels import POOLINGS, Mask, pool_cls, pool_weighted_mean
from skpool.stores import TokenArray, assemble, validate_tokens
from skpool.utils import ArrayLike, as_tensor, unit_rows, widened

__all__ = ["STRATEGIES", "TokenPooling"]

STRATEGIES = (
    "avgmax",
    "cls",
    "first",
    "last",
    "max",
    "mean",
    "mean_sqrt_len",
    "min",
    "std",
    "sum",
    "weighted_mean",
)


def _call(function: Callable, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Vectors by a function of the user's."""
    vectors = function(tokens, mask)
    if not isinstance(vectors, torch.Tensor) or vectors.ndim != 2 or len(vectors) != len(tokens):
        raise ValueError(
            f"strategy={function!r} gives {type(vectors).__name__} of shape "
            f"{tuple(getattr(vectors, 'shape', ()))} for {len(tokens)} samples; it must give a "
            "tensor (n_samples, n_features_out)."
        )
    return vectors if vectors.is_floating_point() else vectors.to(widened(tokens[:0]))


def _weighted_mean(tokens: torch.Tensor, mask: Mask, weights: np.ndarray) -> torch.Tensor:
    """Mean by weights (L,) of all samples, or (n, L) of each."""
    # Ragged tokens are as many as the longest of the batch has.
    weights = torch.from_numpy(weights[..., : tokens.shape[1]]).to(widened(tokens[:0]))
    real = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask
    if bool((real.any(1) & ~(real & (weights > 0)).any(1)).any()):
        raise ValueError(
            "weights are 0 for all real tokens of a sample; give weights that are above 0 for at "
            "least one of them."
        )
    if weights.ndim == 1:
        return pool_weighted_mean(tokens, mask, weights=weights)
    masks = [None] * len(tokens) if mask is None else mask.split(1)
    rows = zip(tokens.split(1), masks, weights, strict=True)
    return torch.cat([pool_weighted_mean(x, real, weights=row) for x, real, row in rows])


class TokenPooling(BasePooling):
    r"""Mean, maximum or one chosen token, or several of these side by side.

    For tokens :math:`x_1, \dots, x_T` of a sample (masked ones left out):

    ================ ==========================================================================
    "mean"           :math:`\frac1T \sum_t x_t`
    "cls"            the class token of the backbone, whatever `scope` says
    "max", "min"     per feature, over the tokens
    "sum"            :math:`\sum_t x_t`
    "mean_sqrt_len"  :math:`\sum_t x_t / \sqrt T`
    "avgmax"         half the mean plus half the maximum
    "std"            standard deviation per feature, with divisor :math:`T`
    "first", "last"  the first or last token
    "weighted_mean"  :math:`\sum_t t\, x_t / \sum_t t`, t the rank of the token, or by `weights`
    ================ ==========================================================================

    Parameters
    ----------
    strategy : str, callable, or tuple of these, default="mean"
        One of the names above, or ``f(tokens, mask)`` from tensors (n, T, d) and (n, T) or None
        to (n, d'). A tuple concatenates, e.g. ``("cls", "mean")``.
    weights : array-like of shape (n_tokens,) or (n_samples, n_tokens), or callable, default=None
        Weights of the tokens in scope for "weighted_mean", not negative. One row serves all
        samples; a callable is given T and returns it. A row per sample belongs to the very samples
        that `fit` and `transform` are given, in their order; another number of samples, as in a
        fold, is refused. None takes the rank.
    normalize_tokens : bool, default=False
        Whether every token is divided by its Euclidean norm first.
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
    GeMPooling : Between the mean and the maximum.

    Notes
    -----
    Cost: one pass over the tokens, O(n T d); nothing is learned, so results are kept in the store
    of the tokens (unless a callable is involved, which has no stable name, or weights per sample,
    which depend on its place in X).

    Weights that differ from sample to sample and are to be cross-validated must follow from the
    tokens themselves: a callable `strategy` sees tokens and mask.

    References
    ----------
    .. [1] Tang, Yang, Pooling And Attention: What Are Effective Designs For LLM-Based Embedding
       Models?, 2024. <https://arxiv.org/abs/2409.02727>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import TokenPooling
    >>> tokens = np.array([[[1.0, 4.0], [3.0, 0.0]]])
    >>> TokenPooling(("mean", "max")).fit_transform(tokens)
    array([[2., 2., 3., 4.]])
    """

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        "strategy": [StrOptions(set(STRATEGIES)), callable, tuple],
        "weights": ["array-like", callable, None],
        "normalize_tokens": ["boolean"],
    }

    def __init__(
        self,
        strategy: str | Callable | tuple = "mean",
        *,
        weights=None,
        normalize_tokens: bool = False,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.strategy = strategy
        self.weights = weights
        self.normalize_tokens = normalize_tokens
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _parts(self) -> tuple:
        return self.strategy if isinstance(self.strategy, tuple) else (self.strategy,)

    def _check_parameters(self, n_features: int) -> None:
        for part in self._parts():
            if not callable(part) and part not in STRATEGIES:
                raise ValueError(
                    f"strategy={self.strategy!r} holds {part!r}; choose from "
                    f"{list(STRATEGIES)} or give a callable."
                )
        if not self._parts():
            raise ValueError("strategy=() is empty; give at least one name.")

    def _fit_tokens(self, tokens: TokenArray, y: object) -> None:
        self._n_tokens = self._in_scope(tokens).shape[1]

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
        if not self._weighs_samples():
            return super().transform(X)
        plan = self._plan(validate_tokens(self, X, reset=False))
        weights = plan.pool.keywords["weights"]

        def pool(rows: np.ndarray) -> Callable[..., torch.Tensor]:
            chosen = partial(plan.pool, weights=weights[rows])
            return self._guarded(plan._replace(pool=chosen))

        # No samples at all show the container and the float type.
        blank = plan.tokens[:0].reduce(pool(np.array([0])))
        batches = plan.tokens.iter_batches(self.batch_size)
        results = ((batch.positions, pool(batch.positions)(*batch[1:])) for batch in batches)
        vectors = assemble(results, len(plan.tokens), lambda: as_tensor(blank))
        return vectors if isinstance(blank, torch.Tensor) else vectors.cpu().numpy()

    def _fingerprint(self) -> str | None:
        # What is kept is looked up by the sample, wherever it stands in X.
        return None if self._weighs_samples() else super()._fingerprint()

    def _bind(self, tokens: TokenArray) -> Plan:
        is_cls = [part == "cls" for part in self._parts()]
        if any(is_cls) and tokens.cls_index is None and tokens.shape[1] > 1:
            raise ValueError(
                "strategy='cls' needs a class token, and these tokens have none "
                "(n_prefix_tokens is 0); use another strategy or another backbone."
            )
        scoped = tokens if all(is_cls) else self._in_scope(tokens)
        weights = self._token_weights(len(scoped), scoped.shape[1])
        if not any(is_cls):
            return Plan(scoped, partial(self._concatenate, first=0, weights=weights))
        # The class token stands in the prefix that the other parts may have to leave out.
        first = tokens.shape[1] - scoped.shape[1]
        return Plan(tokens, partial(self._concatenate, first=first, weights=weights), first)

    def _concatenate(
        self, tokens: torch.Tensor, mask: Mask, *, first: int, weights: np.ndarray | None
    ) -> torch.Tensor:
        if self.normalize_tokens:
            tokens = unit_rows(widened(tokens))
        scoped = tokens[:, first:], None if mask is None else mask[:, first:]
        parts = [
            pool_cls(tokens) if part == "cls" else self._kernel(part, weights)(*scoped)
            for part in self._parts()
        ]
        return torch.cat(parts, dim=1)

    def _kernel(
        self, part: str | Callable, weights: np.ndarray | None
    ) -> Callable[..., torch.Tensor]:
        if callable(part):
            return partial(_call, part)
        if part == "weighted_mean" and weights is not None:
            return partial(_weighted_mean, weights=weights)
        return POOLINGS[part]

    def _uses_weights(self) -> bool:
        return self.weights is not None and "weighted_mean" in self._parts()

    def _weighs_samples(self) -> bool:
        """Whether there is a row of weights per sample."""
        return self._uses_weights() and not callable(self.weights) and np.ndim(self.weights) == 2

    def _token_weights(self, n_samples: int, n_tokens: int) -> np.ndarray | None:
        """The weights as numbers between 0 and 1, for all samples or each; None for ranks."""
        if not self._uses_weights():
            return None
        weights = self.weights(n_tokens) if callable(self.weights) else self.weights
        weights = np.asarray(weights, dtype=np.float64)
        if self._weighs_samples() and weights.shape != (n_samples, n_tokens):
            raise ValueError(
                f"weights has shape {weights.shape}, and X has {n_samples} samples of {n_tokens} "
                "tokens; rows of weights belong to the samples of X in their order: give one for "
                "each, or one row or a callable for all."
            )
        if not self._weighs_samples() and weights.shape != (n_tokens,):
            raise ValueError(f"weights has shape {weights.shape}; give {n_tokens} numbers.")
        if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
            raise ValueError(
                f"weights lie between {weights.min()} and {weights.max()}; give finite numbers of "
                "at least 0 that are not all 0."
            )
        peak = weights.max(axis=-1, keepdims=True)
        return weights / np.where(peak > 0, peak, 1.0)

    @property
    def _n_features_out(self) -> int:
        # A callable may give any width, so its width is found out on blank tokens.
        blank = torch.zeros((1, self._n_tokens, self.n_features_in_))
        return sum(
            _call(part, blank, None).shape[1] if callable(part) else self.n_features_in_
            for part in self._parts()
        )
