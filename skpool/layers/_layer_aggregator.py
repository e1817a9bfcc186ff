# SPDX-License-Identifier: BSD-3-Clause
"""LayerAggregator: one vector, or one layer of tokens, from several layers of a network.

It follows an extractor that takes several layers, pools the tokens of each by a pooling of the
package, and puts the layers together.
"""

from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import Tags, get_tags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpool import __version__
from skpool.layers._kernels import LAYER_POOLS, combine_layers, fit_layer_weights
from skpool.layers._pooled import TOKEN_POOLS, LayerPooling
from skpool.layers._validation import Layers, layer_places, validate_layers
from skpool.stores import TokenArray
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_labels,
    fingerprint,
    numpy_or_tensor,
    unchanged_on_error,
)

__all__ = ["LayerAggregator"]

# Only these keep a layer that is taken twice apart.
_SIDE_BY_SIDE = ("concat", "stack")


def _gives_vectors(estimator: "LayerAggregator") -> bool:
    return estimator.token_pool is not None and estimator.layer_pool != "stack"


class LayerAggregator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Several layers of a network as one vector per sample.

    The tokens of every layer are pooled, every layer is normalised if asked for, and the layers
    :math:`h_1, \dots, h_k` are put together:

    ========== ====================================================================
    "mean"     :math:`\frac1k \sum_l h_l`
    "sum"      :math:`\sum_l h_l`
    "max"      per feature, over the layers
    "last"     :math:`h_k`, the last of those chosen
    "concat"   the layers side by side
    "weighted" :math:`\sum_l w_l h_l` with weights :math:`w = \mathrm{softmax}(a)` that
               are learned together with a linear softmax head
    "stack"    no aggregation: (n_samples, n_layers, n_features), for `LayerSelector`
    ========== ====================================================================

    Parameters
    ----------
    layers : "all", slice, int or sequence of int, default="all"
        Positions on the axis of the layers of X, not the numbers of the network's blocks; negative
        ones count from the end. A position twice is for "concat" and "stack" alone.
    token_pool : str, pooling or None, default="mean"
        How the tokens of a layer become a vector: "mean", "max", "cls" or another strategy of
        :class:`~skpool.pooling.TokenPooling`, or any pooling. Class token and registers are left
        out of all but "cls", unless a pooling with ``scope="all"`` is given. A pooling that learns
        has a copy for every layer. None keeps the tokens: the layers are put together token by
        token, and the result is a lazy `TokenArray` of one layer.
    layer_pool : {"mean", "sum", "max", "last", "concat", "weighted", "stack"}, default="mean"
        How the layers are put together.
    normalize : {"l2", "layernorm"}, default=None
        What is done to the features of every layer before: unit length, or mean 0 and variance 1
        over the features. Norms differ between layers by orders of magnitude, and without it the
        layers with the largest decide a mean or sum.
    append_patch_mean : bool, default=False
        Whether the mean of the patches of the last chosen layer, normalised as the layers are,
        follows the result.
    alpha : float, default=1e-3
        For "weighted": factor of half the squared norm of the head and of a. Features are brought
        to a common scale for it.
    max_iter : int, default=200
        For "weighted": most iterations of L-BFGS; 0 leaves the weights equal.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a layer of X.
    n_layers_in_ : int
        Number of layers of X.
    poolings_ : list of estimators
        The fitted poolings: one that serves all layers, or one per chosen layer where the pooling
        learns. Empty where X had no tokens.
    layer_weights_ : ndarray of shape (n_chosen_layers,)
        With sum 1; for "weighted".
    n_iter_ : int
        Iterations of L-BFGS; for "weighted".

    See Also
    --------
    LayerSelector : Chooses layers by a score.
    skpool.pooling.TokenPooling : Pools the tokens of one layer.

    Notes
    -----
    X with vectors in place of tokens, (n_samples, n_layers, n_features), has nothing to pool, and
    `token_pool` is not used. Whether a layer that is cut out has passed the network's final norm
    is decided by the `token_norm` of the extractor, never here.

    Cost: one pass over the tokens, O(n k L d). Of lazy tokens the pooled vectors of all k layers
    are held, n * k * d numbers, and kept in the store of the tokens where the pooling learns
    nothing; other choices of `layers`, `layer_pool` and `normalize` then run no network.
    "weighted" adds O(n k d) for each iteration, in float64, and does not depend on a random state.
    With ``token_pool=None`` its weights are learned on the means of the patches.

    Recipes: the evaluation of DINO concatenates the class tokens of the last four layers [1]_;
    that of DINOv2 the class tokens of the last one or four layers after the final norm and the
    mean of the last patches [2]_; WhiteningBERT averages the tokens of the first and last layers
    [3]_; EarlyBIRD searches over early layers, their maximum and their weighted sum [4]_.

    References
    ----------
    .. [1] Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021.
       <https://arxiv.org/abs/2104.14294>
    .. [2] Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024.
       <https://arxiv.org/abs/2304.07193>
    .. [3] Huang et al., WhiteningBERT: An Easy Unsupervised Sentence Embedding Approach, Findings
       of EMNLP 2021. <https://arxiv.org/abs/2104.01767>
    .. [4] Grishina, Hort, Moonen, The EarlyBIRD Catches the Bug: On Exploiting Early Layers of
       Encoder Models for More Efficient Code Classification, ESEC/FSE 2023.
       <https://arxiv.org/abs/2305.04940>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.layers import LayerAggregator
    >>> layers = np.array([[[1.0, 2.0], [3.0, 6.0]]])  # one sample, two layers, two features
    >>> LayerAggregator().fit_transform(layers)
    array([[2., 4.]])
    >>> LayerAggregator([-1, 0], layer_pool="concat").fit_transform(layers)
    array([[3., 6., 1., 2.]])
    """

    _parameter_constraints: dict = {
        "layers": [StrOptions({"all"}), slice, Integral, "array-like"],
        "token_pool": [StrOptions(set(TOKEN_POOLS)), HasMethods(["fit", "transform"]), None],
        "layer_pool": [StrOptions({*LAYER_POOLS, "weighted"})],
        "normalize": [StrOptions({"l2", "layernorm"}), None],
        "append_patch_mean": ["boolean"],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        layers: str | slice | int | Sequence[int] = "all",
        *,
        token_pool: str | BaseEstimator | None = "mean",
        layer_pool: str = "mean",
        normalize: str | None = None,
        append_patch_mean: bool = False,
        alpha: float = 1e-3,
        max_iter: int = 200,
    ):
        self.layers = layers
        self.token_pool = token_pool
        self.layer_pool = layer_pool
        self.normalize = normalize
        self.append_patch_mean = append_patch_mean
        self.alpha = alpha
        self.max_iter = max_iter

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the layers and learn what is to be learned, if anything.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_layers, n_tokens, n_features)
            Also (n_samples, n_layers, n_features), layers that are vectors already.
        y : array-like of shape (n_samples,), default=None
            Class labels, for ``layer_pool="weighted"``; handed on to a pooling that learns.

        Returns
        -------
        self : estimator
        """
        with unchanged_on_error(self):
            layers = validate_layers(self, X, reset=True)
            places = self._places(layers)
            pooling = self._fit_pooling(layers, places, y)
            self.poolings_ = pooling.poolings if self.token_pool is not None else []
            if self.layer_pool == "weighted":
                self._fit_weights(pooling.vectors(layers)[0], y)
        return self

    def transform(self, X) -> ArrayLike | TokenArray:
        """Put the layers of every sample together.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_layers, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        vectors : ndarray of shape (n_samples, n_features_out)
            A tensor where X was a tensor. With ``layer_pool="stack"`` (n_samples, n_chosen_layers,
            n_features_out); with ``token_pool=None`` a TokenArray. Rows of unreadable inputs are
            NaN.
        """
        if get_tags(self).requires_fit:
            check_is_fitted(self, "n_layers_in_")
        layers = validate_layers(self, X, reset=False)
        places = self._places(layers)
        if self.token_pool is None and not layers.pooled:
            return self._tokens(layers.rows, places)
        return self._vectors(layers, self._pooling(layers, places))

    def _places(self, layers: Layers) -> list[int]:
        """The chosen layers, and that the parameters go with them."""
        places = layer_places(self.layers, layers.n_layers)
        if len(set(places)) < len(places) and self.layer_pool not in _SIDE_BY_SIDE:
            raise ValueError(
                f"layers={self.layers!r} holds a layer twice, which layer_pool="
                f"{self.layer_pool!r} would count twice; use layer_pool='concat'."
            )
        if self.append_patch_mean and (layers.pooled or not _gives_vectors(self)):
            raise ValueError(
                "append_patch_mean=True appends a mean of tokens to a vector; give tokens as X, a "
                "token_pool, and a layer_pool other than 'stack'."
            )
        if self.token_pool is None and self.layer_pool == "stack":
            raise ValueError(
                "token_pool=None with layer_pool='stack' would leave X as it is; choose a "
                "token_pool or another layer_pool."
            )
        return places

    def _fit_pooling(self, layers: Layers, places: list[int], y: object) -> LayerPooling:
        # Tokens that are kept have their weights learned on the means of the patches.
        token_pool = "mean" if self.token_pool is None else self.token_pool
        return LayerPooling.fitted(
            token_pool, layers, places, y, with_patches=self.append_patch_mean
        )

    def _pooling(self, layers: Layers, places: list[int]) -> LayerPooling:
        """The fitted poolings; those that learn nothing are made where there was no fit."""
        if not getattr(self, "poolings_", []):
            return self._fit_pooling(layers, places, None)
        return LayerPooling(self.poolings_, places, self.append_patch_mean)

    def _fit_weights(self, vectors: ArrayLike, y: object) -> None:
        if y is None:
            raise ValueError(
                "layer_pool='weighted' requires y to be passed, but the target y is None; give "
                "class labels, or use layer_pool='mean'."
            )
        y = y.cpu().numpy() if isinstance(y, torch.Tensor) else y
        classes, codes = np.unique(check_labels(y, n_samples=len(vectors)), return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"y holds one class, {classes.tolist()[0]!r}; layer_pool='weighted' needs two."
            )
        X = combine_layers(as_tensor(vectors), layer_pool="stack", normalize=self.normalize)
        # Unreadable inputs teach nothing.
        known = torch.isfinite(X).flatten(1).all(dim=1)
        self.layer_weights_, self.n_iter_ = fit_layer_weights(
            X[known], codes[known.cpu().numpy()], alpha=self.alpha, max_iter=self.max_iter
        )

    def _combine(self) -> partial:
        """The kernel with its options, which makes one layer of several."""
        weights = self.layer_weights_ if self.layer_pool == "weighted" else None
        return partial(
            combine_layers, layer_pool=self.layer_pool, normalize=self.normalize, weights=weights
        )

    def _vectors(self, layers: Layers, pooling: LayerPooling) -> ArrayLike:
        vectors, patches = pooling.vectors(layers)
        X, restore = numpy_or_tensor(vectors)
        result = self._combine()(X)
        if patches is not None:
            last = as_tensor(patches)[:, None].to(X)
            mean = combine_layers(last, layer_pool="last", normalize=self.normalize)
            result = torch.cat([result, mean], dim=1)
        return restore(result)

    def _tokens(self, rows: TokenArray, places: list[int]) -> TokenArray:
        combine = self._combine()
        keywords = combine.keywords
        name = fingerprint("LayerAggregator", __version__, places, list(keywords.items()))
        n_out = rows.shape[-1] * (len(places) if self.layer_pool == "concat" else 1)

        def chosen(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            return combine(tokens[:, places])

        return rows.map(chosen, n_features=n_out, fingerprint=name)

    @available_if(_gives_vectors)
    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Names of the features of the result.

        Parameters
        ----------
        input_features : ignored
            Present for the API.

        Returns
        -------
        names : ndarray of str
        """
        return super().get_feature_names_out(input_features)

    def set_output(self, *, transform=None) -> "LayerAggregator":
        """Choose the container of vectors; stacked layers and tokens are no tables.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, default=None
            As in scikit-learn; without effect where the result is not (n_samples, n_features).

        Returns
        -------
        self : estimator
        """
        return super().set_output(transform=transform) if _gives_vectors(self) else self

    @property
    def _n_features_out(self) -> int:
        width = self.n_features_in_
        if self.poolings_:
            width = len(self.poolings_[0].get_feature_names_out())
        if self.layer_pool == "concat":
            width *= len(layer_places(self.layers, self.n_layers_in_))
        return width + (self.n_features_in_ if self.append_patch_mean else 0)

    def _pooling_learns(self) -> bool:
        is_estimator = hasattr(self.token_pool, "transform")
        return is_estimator and get_tags(self.token_pool).requires_fit

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        weighted = self.layer_pool == "weighted"
        tags.requires_fit = weighted or self._pooling_learns()
        tags.target_tags.required = weighted
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags
