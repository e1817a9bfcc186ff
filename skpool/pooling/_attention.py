# SPDX-License-Identifier: BSD-3-Clause
"""AttentionPooling: token weights that are learned from labels.

The modules stand in `_attention_modules`, what is minimised in `_linear_objective`; here are the
parameters, the labels, and the way from fitted arrays back to a module, which is built anew for
every call. `_attention_classifier` puts a classifier on top.
"""

from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._attention_modules import MODULES, ModuleSpec, TokenAttention, make_module
from skpool.pooling._base import BasePooling, Plan
from skpool.pooling._kernels import _in_blocks, pool_mean
from skpool.pooling._linear_objective import LOSSES, train_pooling
from skpool.stores import TokenArray, validate_tokens
from skpool.training import TokenRows, class_numbers
from skpool.utils import ArrayLike, widened

__all__ = ["ATTENTION_CONSTRAINTS", "AttentionPooling", "layers_as_tokens"]

Mask = torch.Tensor | None

_POSITIVE = [Interval(Integral, 1, None, closed="left")]
# Of the parameters that the pooling and its classifier share.
ATTENTION_CONSTRAINTS: dict = {
    "kind": [StrOptions(set(MODULES))],
    "n_queries": _POSITIVE,
    "query_pool": [StrOptions({"mean", "concat"})],
    "n_latents": _POSITIVE,
    "n_heads": _POSITIVE,
    "hidden_dim": _POSITIVE,
    "layer_embedding": ["boolean"],
    "residual": ["boolean"],
    "gamma": [Interval(Real, 0, None, closed="neither"), None],
    "standardize": ["boolean"],
    "lr": [Interval(Real, 0, None, closed="neither")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "epochs": _POSITIVE,
    "minibatch_size": _POSITIVE,
    "validation_fraction": [Interval(Real, 0, 1, closed="left")],
    "device": [str],
    "random_state": ["random_state"],
    "scope": BasePooling._parameter_constraints["scope"],
    "batch_size": BasePooling._parameter_constraints["batch_size"],
}


def layers_as_tokens(X: object, scope: str) -> object:
    """Tokens of several layers as one token per layer, the mean of its tokens; else X itself."""
    if not isinstance(X, TokenArray) or X.n_layers is None:
        return X
    n_layers, first = X.n_layers, X.n_prefix_tokens if scope == "patch" else 0
    if first == X.shape[2]:
        raise ValueError(
            f"All {first} tokens of a layer are prefix tokens, which scope='patch' leaves out; set "
            "scope='all'."
        )

    def pooled(tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        rows = tokens[:, :, first:].flatten(0, 1)
        mask = None if mask is None else mask[:, first:].repeat_interleave(n_layers, dim=0)
        return pool_mean(rows, mask).unflatten(0, (-1, n_layers))

    def remask(mask: torch.Tensor) -> torch.Tensor:
        return mask[:, first:].any(dim=1, keepdim=True).expand(-1, n_layers)

    if not X.in_memory:
        return X.map(pooled, n_tokens=n_layers, remask=remask, n_prefix_tokens=0, grid=None)
    # Read once here rather than in every epoch.
    means = X.reduce(lambda tokens, mask: pooled(tokens, mask).flatten(1))
    mask = None if X.mask is None else remask(torch.from_numpy(X.mask)).numpy()
    return TokenArray.from_array(means.reshape(len(X), n_layers, -1), mask=mask)


def _numbers(y: object, n_samples: int, who: str) -> np.ndarray:
    """Targets (n, k) of a regression."""
    if y is None:
        raise ValueError(
            f"{who} with loss='mse' requires y to be passed, but the target y is None; give "
            "numbers, one row per row of X."
        )
    y = y.cpu().numpy() if isinstance(y, torch.Tensor) else y
    y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
    if len(y) != n_samples:
        raise ValueError(f"X has {n_samples} rows and y has {len(y)}; give one target per row.")
    return y.reshape(len(y), -1)


class AttentionPooling(BasePooling):
    r"""Weighted mean of tokens, with weights that are learned from labels.

    A small module gives every token :math:`x_l` a weight :math:`a_l` (the weights of a sample sum
    to 1) and is trained together with a linear head on the pooled vector. The kinds are

    - "gated": :math:`a = \mathrm{softmax}_l\, w^\top(\tanh V\hat x_l \odot \sigma(U \hat x_l))`
      and :math:`z = \sum_l a_l x_l`: the tokens as they are, in a weighted mean [1]_. With
      :math:`w = 0`, from where training starts, it is mean pooling.
    - "query": `n_queries` learned queries in multi-head cross-attention over the normed tokens, and
      the mean of what they give, or one after the other (`query_pool`) [2]_.
    - "latent": every token attends to `n_latents` learned vectors,
      :math:`o_l = \mathrm{softmax}(\hat x_l K^\top / \sqrt{d_h}) K`, then a network of two
      layers, then the mean over the tokens [3]_.
    - "multilayer": the tokens are layers of a network, with a learned embedding of their place;
      cross-attention and a feed-forward block, both with residuals, the mean over the queries, and
      unit length [4]_.
    - "simpool": the mean of the tokens is the query, and the normed tokens are averaged without a
      projection [5]_; a power mean with the exponent `gamma`, if it is given.

    Parameters
    ----------
    kind : {"gated", "query", "latent", "multilayer", "simpool"}, default="gated"
        The module.
    n_queries : int, default=1
        Queries of "query" and "multilayer".
    query_pool : {"mean", "concat"}, default="mean"
        What is made of the queries of "query": n_features values, or n_queries times as many.
    n_latents : int, default=64
        Learned vectors of "latent".
    n_heads : int, default=8
        Heads of all kinds but "gated"; must divide the number of features.
    hidden_dim : int, default=128
        Width of V and U of "gated", and between the two layers of "latent".
    layer_embedding : bool, default=True
        Whether "multilayer" tells layers apart by their place, so that all samples have as many.
    residual : bool, default=True
        Whether "latent" adds what a token finds, and what the network makes of it, to the token,
        each after a LayerNorm, as the released model does; False is the published formula.
    gamma : float, default=None
        Exponent of "simpool", of values above the smallest of their feature in the sample; None
        for the weighted mean.
    standardize : bool, default=True
        Whether the module sees :math:`\hat x`, tokens brought to mean 0 and variance 1 per feature
        over the training tokens, whatever the scale of the network and however large single
        features are; with False :math:`\hat x = x`.
    loss : {"cross_entropy", "supcon", "mse"}, default="cross_entropy"
        Softmax on a linear head; supervised contrastive loss of the unit vectors in a minibatch
        with temperature 0.1, without a head [6]_; or the squared error of a linear head, for
        numbers (n_samples,) or (n_samples, n_targets) as y, each target in units of its standard
        deviation.
    lr : float, default=1e-3
        First step size of AdamW; it falls to 0 as a cosine.
    weight_decay : float, default=0.05
        Of matrices; biases, queries, latents and embeddings do not decay.
    epochs : int, default=30
        Passes over the training tokens.
    minibatch_size : int, default=64
        Samples per step.
    validation_fraction : float, default=0.1
        Part of the samples of every class that is kept back: the weights after the epoch with
        their lowest loss are taken, and training ends when ten epochs were no better. None are
        kept back where that is fewer than one sample per class.
    device : str, default="auto"
        Where to train; "auto" is a CUDA device where there is one. Pooling happens where the
        tokens are.
    random_state : int, RandomState or None, default=0
        First weights, order of the samples and validation part. Torch's own generator is not used.
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
    weights_ : dict of str to ndarray
        Parameters of the module, by name.
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted; with "cross_entropy".
    coef_ : ndarray of shape (n_outputs, n_features_out)
        Of the head that was trained along, for vectors as `transform` gives them: a row per class
        or target; not with "supcon".
    intercept_ : ndarray of shape (n_outputs,)
        Of the same head.
    n_iter_ : int
        Epochs that were run.
    history_ : ndarray of shape (n_iter_, 2)
        Loss on the training samples and on those kept back (NaN without), after every epoch.

    See Also
    --------
    AttentionPoolingClassifier : The same with its head, as a classifier.
    TokenPooling : Mean, maximum or one chosen token; learns nothing.

    Notes
    -----
    X of "multilayer" are the stacked layers of ``LayerAggregator(layer_pool="stack")`` or any
    (n_samples, n_layers, n_features); of a TokenArray of several layers the tokens of every layer
    are averaged first.

    Training on embeddings of a good network is no sure gain over the mean: [4]_ finds none in
    classification. Compare by cross-validation.

    Cost: per epoch O(n L d h) for "gated" (h is `hidden_dim`), O(n L d Q n_heads) for "query"
    and "multilayer", O(n L d n_heads) for "simpool" and O(n L d (n_latents + h)) for "latent". It
    runs in the float type of the tokens, float32 for half precision.

    Tokens in arrays, memory maps included, are read a minibatch at a time, and what a step before
    the pooling does to them is done again in every epoch. Tokens of a network are read once and
    kept in their own float type, n * L * d numbers, unless they exceed the option
    `max_array_bytes` (see `skpool.set_config`): those are asked for again in every epoch, so that
    the extractor should have a store. The fit is the same, to the bit, in all cases.

    References
    ----------
    .. [1] Ilse, Tomczak, Welling, Attention-based Deep Multiple Instance Learning, ICML 2018.
       <https://arxiv.org/abs/1802.04712>
    .. [2] Lee et al., Set Transformer, ICML 2019. <https://arxiv.org/abs/1810.00825>
    .. [3] Lee et al., NV-Embed: Improved Techniques for Training LLMs as Generalist Embedding
       Models, ICLR 2025. <https://arxiv.org/abs/2405.17428>
    .. [4] Tang and Yang, Pooling And Attention: What Are Effective Designs For LLM-Based Embedding
       Models?, 2024. <https://arxiv.org/abs/2409.02727>
    .. [5] Psomas et al., Keep It SimPool: Who Said Supervised Transformers Suffer from Attention
       Deficit?, ICCV 2023. <https://arxiv.org/abs/2309.06891>
    .. [6] Khosla et al., Supervised Contrastive Learning, NeurIPS 2020.
       <https://arxiv.org/abs/2004.11362>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import AttentionPooling
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(60) % 2
    >>> tokens = rng.normal(size=(60, 9, 4))
    >>> tokens[:, 3, :2] += 4 * np.eye(2)[y]  # one token of nine knows the class
    >>> pooling = AttentionPooling(lr=0.03).fit(tokens, y)
    >>> pooling.transform(tokens).shape
    (60, 4)
    >>> int(pooling.attention(tokens).mean(axis=(0, 1)).argmax())
    3
    """

    _parameter_constraints: dict = {
        **ATTENTION_CONSTRAINTS,
        **BasePooling._parameter_constraints,
        "loss": [StrOptions(set(LOSSES))],
    }

    def __init__(
        self,
        kind: str = "gated",
        *,
        n_queries: int = 1,
        query_pool: str = "mean",
        n_latents: int = 64,
        n_heads: int = 8,
        hidden_dim: int = 128,
        layer_embedding: bool = True,
        residual: bool = True,
        gamma: float | None = None,
        standardize: bool = True,
        loss: str = "cross_entropy",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        epochs: int = 30,
        minibatch_size: int = 64,
        validation_fraction: float = 0.1,
        device: str = "auto",
        random_state=0,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.kind = kind
        self.n_queries = n_queries
        self.query_pool = query_pool
        self.n_latents = n_latents
        self.n_heads = n_heads
        self.hidden_dim = hidden_dim
        self.layer_embedding = layer_embedding
        self.residual = residual
        self.gamma = gamma
        self.standardize = standardize
        self.loss = loss
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.minibatch_size = minibatch_size
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Train the module.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            Also maps (n_samples, height, width, n_features), lists of (n_tokens_i, n_features),
            and (n_samples, n_features), which counts as one token per sample; with
            ``kind="multilayer"`` layers in place of tokens, or a TokenArray of several layers.
        y : array-like of shape (n_samples,), default=None
            Class labels; with ``loss="mse"`` numbers, also (n_samples, n_targets). Required.

        Returns
        -------
        self : AttentionPooling
        """
        return super().fit(self._tokens(X), y)

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
        return super().transform(self._tokens(X))

    def attention(self, X) -> ArrayLike:
        """Return the weights of the tokens, the mean over the heads.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        weights : ndarray of shape (n_samples, n_queries, n_tokens)
            For every token in `scope`; they sum to 1, and are 0 for masked tokens. One query for
            "gated" and "simpool"; a tensor where X was a tensor.
        """
        self._check_ready()
        if self.kind == "latent":
            raise ValueError(
                "kind='latent' has no weights of tokens: tokens attend to latents, and all weigh "
                "the same; use kind='gated' or 'query'."
            )
        plan = self._plan(validate_tokens(self, self._tokens(X), reset=False))
        module, n_tokens = self._module(), plan.tokens.shape[1]
        attend = _applied(module, module.attend)

        def weights(tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
            found = attend(tokens, mask)
            # Ragged tokens are as many as the longest of the batch has.
            return torch.nn.functional.pad(found, (0, n_tokens - found.shape[2])).flatten(1)

        guarded = self._guarded(Plan(plan.tokens, weights))
        flat = plan.tokens.reduce(guarded, batch_size=self.batch_size)
        return flat.reshape(len(flat), -1, n_tokens)

    def _tokens(self, X: object) -> object:
        return layers_as_tokens(X, self.scope) if self.kind == "multilayer" else X

    def _check_parameters(self, n_features: int) -> None:
        if self.kind != "gated" and n_features % self.n_heads:
            raise ValueError(
                f"n_heads={self.n_heads} does not divide the {n_features} features of a token; "
                "give a divisor."
            )

    def _check_ready(self) -> None:
        check_is_fitted(self, "weights_")

    def _fingerprint(self) -> str | None:
        # The weights are learned, so parameters do not name the result.
        return None

    def _spec(self, n_features: int, n_tokens: int) -> ModuleSpec:
        return ModuleSpec(
            kind=self.kind,
            n_features=n_features,
            n_tokens=n_tokens,
            n_queries=self.n_queries,
            query_pool=self.query_pool,
            n_latents=self.n_latents,
            n_heads=self.n_heads,
            hidden_dim=self.hidden_dim,
            layer_embedding=self.layer_embedding,
            residual=self.residual,
            gamma=self.gamma,
        )

    def _targets(self, y: object, n_samples: int, numbers: np.ndarray) -> np.ndarray:
        """Class numbers or targets of the samples that are learned from."""
        who = type(self).__name__
        for stale in ("classes_", "coef_", "intercept_"):
            vars(self).pop(stale, None)
        if self.loss == "mse":
            return _numbers(y, n_samples, who)[numbers]
        classes, codes = class_numbers(y, n_samples, numbers, who)
        if self.loss == "cross_entropy":
            self.classes_ = classes
        return codes

    def _fit_tokens(self, tokens: TokenArray, y: object) -> None:
        rows = TokenRows(tokens, batch_size=self.batch_size)
        targets = self._targets(y, len(tokens), rows.numbers)
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        generator = torch.Generator().manual_seed(seed)
        module = make_module(self._spec(tokens.shape[2], tokens.shape[1]), generator)
        if self.standardize:
            module.mean, module.scale = rows.moments()
        trained = train_pooling(
            module,
            rows,
            targets,
            loss=self.loss,
            lr=self.lr,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            batch_size=self.minibatch_size,
            validation_fraction=self.validation_fraction,
            device=self.device,
            seed=seed,
        )
        self.weights_ = {name: value.numpy() for name, value in module.state_dict().items()}
        self.history_, self.n_iter_ = trained.history, len(trained.history)
        if self.loss != "supcon":
            self.coef_, self.intercept_ = trained.coef, trained.intercept

    def _module(self) -> TokenAttention:
        """The fitted module."""
        weights = {name: torch.from_numpy(value) for name, value in self.weights_.items()}
        n_tokens = len(weights.get("embedding", ()))
        module = make_module(self._spec(self.n_features_in_, n_tokens))
        module.load_state_dict(weights, assign=True)
        return module

    def _bind(self, tokens: TokenArray) -> Plan:
        plan = super()._bind(tokens)
        if not hasattr(self, "weights_"):
            return plan
        n_layers = len(self.weights_.get("embedding", ()))
        if n_layers and plan.tokens.shape[1] != n_layers:
            raise ValueError(
                f"X has {plan.tokens.shape[1]} layers, but {type(self).__name__} was fitted on "
                f"{n_layers}; give as many, or fit with layer_embedding=False."
            )
        module = self._module()
        return plan._replace(pool=_applied(module, module))

    @property
    def _n_features_out(self) -> int:
        concat = self.kind == "query" and self.query_pool == "concat"
        return self.n_features_in_ * (self.n_queries if concat else 1)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        tags.target_tags.required = True
        return tags


def _applied(
    module: TokenAttention, function: Callable[[torch.Tensor, Mask], torch.Tensor]
) -> Callable[[torch.Tensor, Mask], torch.Tensor]:
    """A function of the module, where the tokens are and in their float type, a block at a time."""

    @_in_blocks()
    @torch.no_grad()
    def apply(tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        tokens = widened(tokens)
        module.to(tokens.device, tokens.dtype)
        return function(tokens, mask)

    return apply
