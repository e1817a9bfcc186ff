# SPDX-License-Identifier: BSD-3-Clause
"""MomentPooling and CrossCovariancePooling: first and second moments of projected tokens.

Thin over `pool_cross_covariance`; they learn the projection, which can also come in parts.
"""

import warnings
from functools import partial
from numbers import Integral

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._base import BasePooling, Plan
from skpool.pooling._kernels import pool_cls, pool_mean
from skpool.pooling._learning import token_moments
from skpool.pooling._moment_kernels import cross_pairs, cross_width, pool_cross_covariance
from skpool.pooling._projection import (
    check_n_components,
    principal_axes,
    project_tokens,
    random_axes,
)
from skpool.pooling._second_order_kernels import blocks_of, empty_vectors, unit_rows_
from skpool.stores import TokenArray, validate_tokens
from skpool.utils import unchanged_on_error, widened

__all__ = ["CrossCovariancePooling", "MomentPooling"]

# Components by default, where tokens have as many features.
_N_COMPONENTS = 64


class _BaseMoment(BasePooling):
    """The projection and the second-order block; a subclass says which orders there are."""

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        "n_components": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "projection": [StrOptions({"pca", "random"}), "array-like", None],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "cross": [StrOptions({"full", "near", "one", "half", "all"})],
        "center": [StrOptions({"token", "scalar"}), None],
        "head_norm": [StrOptions({"layernorm"}), None],
        "normalize": [StrOptions({"power", "column", "frobenius", "sqrtm"}), None],
        "downsample": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
    }

    # What a subclass may have as parameters.
    orders: tuple = (2,)
    first: str = "mean"
    order_weights: str | None = None

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None):
        """Learn the principal axes from these tokens on top of all earlier ones.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
            With the axes that one `fit` on all tokens would give, to rounding. If the call fails,
            the estimator stays as it was.
        """
        with unchanged_on_error(self):
            first = not hasattr(self, "n_features_in_")
            tokens = self._plan(validate_tokens(self, X, reset=first)).tokens
            self._learn(tokens, None if first else getattr(self, "moments_", None))
        return self

    def _fit_tokens(self, tokens: TokenArray, y: object) -> None:
        for stale in ("moments_", "mean_", "components_"):
            vars(self).pop(stale, None)
        self._learn(tokens, None)

    def _learn(self, tokens: TokenArray, earlier: object) -> None:
        """Learn the projection from the moments of these tokens and of earlier ones."""
        if 2 not in self.orders:
            return
        tokens = self._in_scope(tokens)
        if tokens.shape[1] == 1 and self.center == "token":
            warnings.warn(
                "Every sample has one token, whose covariance is zero; set center=None to pool "
                "its products, or use vectors as they are.",
                UserWarning,
                stacklevel=4,
            )
        k = self._n_components(tokens.shape[2])
        if self._kind == "pca":
            moments = token_moments(tokens)
            self.moments_ = moments if earlier is None else earlier + moments
            self.mean_ = self.moments_.mean_
            self.components_ = principal_axes(self.moments_, k)
        elif self._kind == "random" and not hasattr(self, "components_"):
            self.components_ = random_axes(k, tokens.shape[2], random_state=self.random_state)

    @property
    def _kind(self) -> str | None:
        """Name of the projection that is learned or drawn, None for one that is given or none."""
        return self.projection if isinstance(self.projection, str) else None

    def _given_axes(self, n_features: int) -> np.ndarray:
        axes = np.asarray(self.projection, dtype=np.float64)
        if axes.ndim != 2 or axes.shape[1] != n_features or not np.isfinite(axes).all():
            raise ValueError(
                f"projection has shape {axes.shape}; give finite numbers of shape (n_components, "
                f"{n_features}), a row for each component."
            )
        return axes

    def _n_components(self, n_features: int) -> int:
        """Width of the projected tokens."""
        if self.projection is None:
            return n_features
        if self._kind is None:
            return len(self._given_axes(n_features))
        if self.n_components != "auto":
            return check_n_components(self.n_components, n_features)
        k = min(_N_COMPONENTS, n_features)
        return max(k - k % self.n_heads, 1)

    def _settings(self) -> dict:
        """Options of the kernel that decide the width of the result."""
        names = ("n_heads", "cross", "normalize", "downsample")
        return {name: getattr(self, name) for name in names}

    def _check_parameters(self, n_features: int) -> None:
        if 2 not in self.orders:
            return
        k = self._n_components(n_features)
        if k % self.n_heads:
            raise ValueError(
                f"n_heads={self.n_heads} does not divide the {k} projected features; give a "
                "divisor."
            )
        self._check_cross()
        side = k // self.n_heads
        if self.downsample is not None and self.downsample > side:
            raise ValueError(
                f"downsample={self.downsample} is above the side {side} of a map; give at most "
                f"{side}."
            )

    def _check_cross(self) -> None:
        if self.cross == "full" and self.n_heads > 1:
            raise ValueError(
                f"cross='full' is one map of all features, and n_heads={self.n_heads}; set "
                "n_heads=1, or cross='near', 'one', 'half' or 'all'."
            )
        if not cross_pairs(self.cross, self.n_heads) or (self.cross == "half" and self.n_heads % 2):
            needed = "an even number of" if self.cross == "half" else "at least 2"
            raise ValueError(
                f"cross={self.cross!r} needs {needed} heads, and n_heads={self.n_heads}; set "
                "another, or cross='full' for one head."
            )
        if self.normalize == "sqrtm" and self.cross != "full":
            raise ValueError(
                f"normalize='sqrtm' is a function of one symmetric map, and cross={self.cross!r} "
                "gives others; set cross='full' with n_heads=1."
            )

    def _learns(self) -> bool:
        return 2 in self.orders and self._kind is not None

    def _check_ready(self) -> None:
        if self._learns():
            check_is_fitted(self, "components_")

    def _fingerprint(self) -> str | None:
        # Axes are learned, so parameters alone do not name the result.
        return None if self._learns() else super()._fingerprint()

    def _projected(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.projection is None:
            return tokens
        if self._kind is None:
            return project_tokens(tokens, components=self._given_axes(tokens.shape[2]))
        mean = self.mean_ if self._kind == "pca" else None
        return project_tokens(tokens, components=self.components_, mean=mean)

    def _first(
        self, tokens: torch.Tensor, scoped: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The first-order block."""
        if self.first == "mean":
            return pool_mean(scoped, mask)
        cls = pool_cls(tokens)
        return cls if self.first == "cls" else torch.cat([cls, pool_mean(scoped, mask)], dim=1)

    def _pool(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return self._moments(tokens, mask, first=0)

    def _moments(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, *, first: int
    ) -> torch.Tensor:
        """All blocks, a cache-sized part of the samples at a time."""
        widths = self._widths(tokens.shape[2])
        out = empty_vectors(len(tokens), sum(widths), like=tokens)
        for part in blocks_of(tokens, self._n_components(tokens.shape[2])):
            real = None if mask is None else mask[part, first:]
            whole, vectors = widened(tokens[part]), out[part].split(widths, dim=1)
            for order, vector in zip(self.orders, vectors, strict=True):
                if order == 1:
                    vector.copy_(self._first(whole, whole[:, first:], real))
                else:
                    self._second(whole[:, first:], real, vector)
                if self.order_weights == "balanced" and len(widths) > 1:
                    unit_rows_(vector)
        return out

    def _second(self, tokens: torch.Tensor, mask: torch.Tensor | None, out: torch.Tensor) -> None:
        """Write the second-order block."""
        options = {"center": self.center, "head_norm": self.head_norm, **self._settings()}
        pool_cross_covariance(self._projected(tokens), mask, out=out, **options)

    def _widths(self, n_features: int) -> list[int]:
        """Widths of the blocks."""
        of_first = n_features * (2 if self.first == "both" else 1)
        return [
            of_first
            if order == 1
            else cross_width(self._n_components(n_features), **self._settings())
            for order in self.orders
        ]

    @property
    def _n_features_out(self) -> int:
        return sum(self._widths(self.n_features_in_))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = self._learns()
        return tags


class MomentPooling(_BaseMoment):
    r"""Mean of the tokens beside covariances of their projection.

    Tokens are projected to k features, which are cut into h heads :math:`H_1, \dots, H_h` of shape
    (T, k / h); a map is the covariance of two of them, or of one with itself [1]_,

    .. math:: C_{ij} = \frac1T H_i^\top H_j .

    The maps, normalised, stand behind the mean or class token. Two classes with equal means can
    still differ in how features vary together.

    Parameters
    ----------
    orders : tuple of int, default=(1, 2)
        Moments to put side by side: 1, 2 or both.
    first : {"mean", "cls", "both"}, default="mean"
        What the first order is: the mean of the tokens in scope, the class token of the backbone,
        or the class token and then the mean. It is not projected.
    n_components : int or "auto", default="auto"
        Features k after the projection; "auto" takes 64, or as many as there are, as a multiple
        of `n_heads`. Not used where the projection is given or None.
    projection : {"pca", "random"} or array-like of shape (n_components, n_features), default="pca"
        Principal axes of all training tokens, whose mean is subtracted; a Gaussian matrix; or
        these axes. None leaves tokens as they are.
    n_heads : int, default=1
        Heads h; must divide k.
    cross : {"full", "near", "one", "half", "all"}, default="full"
        Pairs of heads: "full" is the one head with itself, "near" (i, i + 1), "one" (0, i), "half"
        (i, i + h / 2), "all" every i < j.
    center : {"token", "scalar"}, default="token"
        Whether the mean over the tokens is subtracted from each feature, or one number, the mean of
        all entries, from each head of a sample, as the published code does. None subtracts nothing.
    head_norm : {"layernorm"}, default=None
        Whether each token is scaled to mean 0 and variance 1 within each head first.
    normalize : {"power", "column", "frobenius", "sqrtm"}, default="power"
        Signed square roots of the entries and then unit length of the whole block; unit columns,
        as published; unit Frobenius norm of each map; or the square root of the matrix, for
        cross="full". None leaves maps as they are.
    downsample : int, default=None
        Side to which each map is averaged, block by block.
    order_weights : {"balanced"}, default="balanced"
        Whether each order is scaled to unit length where there are two: else the thousands of
        numbers of the second drown the first. None leaves the blocks as they are.
    random_state : int, RandomState instance or None, default=0
        Draws the axes of projection="random".
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
    components_ : ndarray of shape (n_components, n_features)
        Axes of the projection, learned or drawn.
    mean_ : ndarray of shape (n_features,)
        Mean of the training tokens; with projection="pca".
    moments_ : RunningMoments
        Count, mean and scatter of the training tokens; with projection="pca".

    See Also
    --------
    CrossCovariancePooling : The second order alone.
    CovariancePooling : Other matrices, and functions of them.

    Notes
    -----
    Cost: one pass over the tokens, O(n T d k) for the projection and O(n T k^2) for the maps; the
    principal axes take one more pass, O(n T d^2), and O(d^2) memory. A symmetric map is returned
    as its upper triangle with sqrt(2) off the diagonal, other maps row by row: k = 64 with one
    head gives 2080 numbers. The published head has k = 512, h = 4, "near", layernorm, "scalar" and
    "column"; `downsample=31` brings its 3 maps of 128 x 128 to its 2883 numbers, by averages in
    place of its two trained convolutions.

    References
    ----------
    .. [1] Gao et al., Tuning Pre-trained Model via Moment Probing, ICCV 2023.
       <https://arxiv.org/abs/2307.11342>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import MomentPooling
    >>> tokens = np.array([[[1.0, 0.0], [3.0, 2.0]], [[2.0, 2.0], [2.0, 0.0]]])
    >>> pooling = MomentPooling(projection=None, normalize=None, order_weights=None)
    >>> pooling.fit_transform(tokens).round(3)
    array([[2.   , 1.   , 1.   , 1.414, 1.   ],
           [2.   , 1.   , 0.   , 0.   , 1.   ]])
    """

    _parameter_constraints: dict = {
        **_BaseMoment._parameter_constraints,
        "orders": [tuple, list],
        "first": [StrOptions({"mean", "cls", "both"})],
        "order_weights": [StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        orders: tuple = (1, 2),
        *,
        first: str = "mean",
        n_components: int | str = "auto",
        projection="pca",
        n_heads: int = 1,
        cross: str = "full",
        center: str | None = "token",
        head_norm: str | None = None,
        normalize: str | None = "power",
        downsample: int | None = None,
        order_weights: str | None = "balanced",
        random_state=0,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.orders = orders
        self.first = first
        self.n_components = n_components
        self.projection = projection
        self.n_heads = n_heads
        self.cross = cross
        self.center = center
        self.head_norm = head_norm
        self.normalize = normalize
        self.downsample = downsample
        self.order_weights = order_weights
        self.random_state = random_state
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _check_parameters(self, n_features: int) -> None:
        orders = tuple(self.orders)
        if orders not in ((1,), (2,), (1, 2), (2, 1)):
            raise ValueError(f"orders={self.orders!r} must hold 1, 2 or both, once each.")
        super()._check_parameters(n_features)

    def _bind(self, tokens: TokenArray) -> Plan:
        if 1 not in self.orders or self.first == "mean":
            return super()._bind(tokens)
        # The class token stands in the prefix that the other blocks may have to leave out.
        if tokens.cls_index is None and tokens.shape[1] > 1:
            raise ValueError(
                f"first={self.first!r} needs a class token, and these tokens have none "
                "(n_prefix_tokens is 0); set first='mean' or use another backbone."
            )
        alone = self.first == "cls" and 2 not in self.orders
        first = 0 if alone else tokens.shape[1] - self._in_scope(tokens).shape[1]
        return Plan(tokens, partial(self._moments, first=first), first)


class CrossCovariancePooling(_BaseMoment):
    r"""Covariances of heads of the projected tokens.

    The second order of `MomentPooling`: tokens are projected to k features, which are cut into h
    heads :math:`H_1, \dots, H_h` of shape (T, k / h), and :math:`C_{ij} = \frac1T H_i^\top H_j` of
    chosen pairs of heads are returned as one vector [1]_.

    Parameters
    ----------
    n_heads : int, default=1
        Heads h; must divide k.
    cross : {"full", "near", "one", "half", "all"}, default="full"
        Pairs of heads: "full" is the one head with itself, "near" (i, i + 1), "one" (0, i), "half"
        (i, i + h / 2), "all" every i < j.
    n_components : int or "auto", default="auto"
        Features k after the projection; "auto" takes 64, or as many as there are, as a multiple
        of `n_heads`. Not used where the projection is given or None.
    projection : {"pca", "random"} or array-like of shape (n_components, n_features), default="pca"
        Principal axes of all training tokens, whose mean is subtracted; a Gaussian matrix; or
        these axes. None leaves tokens as they are.
    center : {"token", "scalar"}, default="token"
        Whether the mean over the tokens is subtracted from each feature, or one number, the mean of
        all entries, from each head of a sample, as the published code does. None subtracts nothing.
    head_norm : {"layernorm"}, default=None
        Whether each token is scaled to mean 0 and variance 1 within each head first.
    normalize : {"power", "column", "frobenius", "sqrtm"}, default="power"
        Signed square roots of the entries and then unit length of the whole vector; unit columns,
        as published; unit Frobenius norm of each map; or the square root of the matrix, for
        cross="full". None leaves maps as they are.
    downsample : int, default=None
        Side to which each map is averaged, block by block.
    random_state : int, RandomState instance or None, default=0
        Draws the axes of projection="random".
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
    components_ : ndarray of shape (n_components, n_features)
        Axes of the projection, learned or drawn.
    mean_ : ndarray of shape (n_features,)
        Mean of the training tokens; with projection="pca".
    moments_ : RunningMoments
        Count, mean and scatter of the training tokens; with projection="pca".

    See Also
    --------
    MomentPooling : The mean or class token beside these.
    CovariancePooling : Other matrices, and functions of them.

    Notes
    -----
    Cost: one pass over the tokens, O(n T d k) for the projection and O(n T k^2) for the maps; the
    principal axes take one more pass, O(n T d^2), and O(d^2) memory. A symmetric map is returned
    as its upper triangle with sqrt(2) off the diagonal, other maps row by row.

    References
    ----------
    .. [1] Gao et al., Tuning Pre-trained Model via Moment Probing, ICCV 2023.
       <https://arxiv.org/abs/2307.11342>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import CrossCovariancePooling
    >>> tokens = np.array([[[1.0, 0.0], [3.0, 4.0]]])
    >>> pooling = CrossCovariancePooling(2, cross="near", projection=None, normalize=None)
    >>> pooling.fit_transform(tokens)
    array([[2.]])
    """

    _parameter_constraints: dict = {**_BaseMoment._parameter_constraints}

    def __init__(
        self,
        n_heads: int = 1,
        *,
        cross: str = "full",
        n_components: int | str = "auto",
        projection="pca",
        center: str | None = "token",
        head_norm: str | None = None,
        normalize: str | None = "power",
        downsample: int | None = None,
        random_state=0,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.n_heads = n_heads
        self.cross = cross
        self.n_components = n_components
        self.projection = projection
        self.center = center
        self.head_norm = head_norm
        self.normalize = normalize
        self.downsample = downsample
        self.random_state = random_state
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype
