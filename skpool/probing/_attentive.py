# SPDX-License-Identifier: BSD-3-Clause
"""AttentiveProbeClassifier: learned queries attend to frozen tokens, and a linear head follows.

Parameters and checks of `AttentiveHead`; training and predictions are those of `TorchHeadMixin`.
"""

from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.probing._attentive_modules import (
    AttentiveHead,
    AttentiveSpec,
    head_count,
    make_attentive_head,
)
from skpool.probing._base import TRAINER_CONSTRAINTS, TorchHeadMixin
from skpool.stores import TokenArray, validate_tokens
from skpool.training import Rows, TokenRows
from skpool.utils import ArrayLike

__all__ = ["AttentiveProbeClassifier"]

Mask = torch.Tensor | None

# Samples that are read at a time where nothing is learned.
_BLOCK = 256


class AttentiveProbeClassifier(TorchHeadMixin, ClassifierMixin, BaseEstimator):
    r"""Attentive probe: cross-attention of learned queries over tokens, and a linear head.

    The mean of the tokens weighs the object and its background alike. Here a query, that is
    learned, says which tokens count [1]_ [2]_. With :math:`u_t = \mathrm{LN}(x_t)` the normed
    token, every head h of a query q gives

    .. math:: a_t \propto \exp\Big(\frac{(W_Q q)_h^\top (W_K u_t)_h}{\sqrt{d / H}}\Big), \qquad
              o_h = \sum_t a_t (W_V u_t + b_V)_h ,

    the heads are joined by :math:`v = W_O [o_1 \dots o_H] + b_O`, optionally a block
    :math:`v + \mathrm{MLP}(\mathrm{LN}(v))` follows, and a linear map of the vectors of all
    queries gives the logits.

    It starts as a linear probe of the mean normed token: queries are small, W_V and W_O the
    identity, and the block adds nothing. A query of zeros weighs all tokens alike. The order of
    the tokens plays no part.

    Parameters
    ----------
    n_queries : int, default=1
        Learned queries, whose vectors the head sees side by side.
    n_heads : int or "auto", default="auto"
        Heads H; must divide the number of features. "auto" is the largest number of at most
        n_features / 64, and 1 at least, that does.
    mlp_ratio : float, default=0.0
        Width of the residual block over that of a token, 4 in transformers; 0 for no block.
    dropout : float, default=0.0
        Part of the inputs of the head, and of the block's hidden units, that a step leaves out.
    qk_norm : bool, default=False
        Whether queries and keys are scaled to a root mean square of 1 in every head, which bounds
        the scores; then a query of any size counts, and a token is projected, O(d^2) each.
    standardize : bool, default=True
        Whether tokens are brought to mean 0 and variance 1 per feature, by the statistics of the
        first samples learned from, before they are normed.
    scope : {"all", "patch"}, default="all"
        Whether the class token and registers are among the tokens.
    lr : float, default=1e-3
        Step size of AdamW after the warm-up.
    weight_decay : float, default=0.05
        Of matrices.
    epochs : int, default=30
        Passes over the samples, the warm-up included.
    warmup_epochs : int, default=0
        Passes in which the step size rises linearly.
    schedule : {"cosine", "constant", "step"}, default="cosine"
        How the step size falls afterwards.
    min_lr : float, default=0.0
        Least step size after the warm-up.
    batch_size : int, default=256
        Samples per step.
    mixup : float, default=0.0
        Of the Beta distribution by which samples are mixed; 0 for none.
    label_smoothing : float, default=0.0
        Share of a target that is spread over all classes.
    class_weight : {"balanced", "effective"}, dict or None, default=None
        Weights of the classes in the loss; "balanced" weighs classes alike, "effective" by their
        effective number of samples.
    ema : float, default=None
        Of an exponential average of the weights; None for none.
    validation_fraction : float, default=0.0
        Part of the samples of every class that is kept back to choose the best epoch.
    early_stopping : bool, default=False
        Whether training ends when `patience` epochs were no better than the best.
    patience : int, default=10
        Epochs that are waited for a better one.
    epochs_partial : int, default=1
        Passes of `partial_fit` over its samples.
    device : str, default="auto"
        Where to train; "auto" is a CUDA device where there is one.
    amp : bool, default=False
        Whether a CUDA device computes products in bfloat16.
    checkpoint : path-like, default=None
        Directory from which an interrupted training goes on.
    random_state : int, RandomState or None, default=0
        First weights, order of the samples and validation part.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a token.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X was a table with text column names.
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    weights_ : dict of str to ndarray
        Weights of the module by name.
    module_ : torch.nn.Module
        The trained module, made anew of `weights_`; ``module_(values, mask)`` gives logits.
    history_ : ndarray of shape (n_iter_, 2)
        Loss on the training samples and on those kept back (NaN without), of every epoch.
    n_iter_ : int
        Epochs that were run.

    See Also
    --------
    skpool.pooling.AttentionPooling : Attention as a step before any classifier, of several kinds.
    skpool.pooling.AttentionPoolingClassifier : These kinds with the head they were trained with.
    MomentProbingClassifier : Second moments of the tokens in place of weights.

    Notes
    -----
    Weights: 4 d^2 + (2 + Q) d for the attention, (Q d + 1) C for the head, and about 2 r d^2 for a
    block of ratio r; for d = 768, one query and 1000 classes 3.1 million, four times those of a
    linear probe: compare the two at equal effort of validation.

    Cost of an epoch: O(n L d Q H), as tokens are not projected (O(n L d^2) with `qk_norm`), and
    O(n d^2) for the rest, three times over with the gradients; memory O(b L d) for a batch of b.
    Tokens are read a batch at a time, in their own float type.

    LayerNorms have no factors of their own, which the linear maps behind them have. The attention
    is that of ``AttentionPooling("query")``; the trainer, weights of samples and classes, classes
    that arrive later and one class alone are what differs from `AttentionPoolingClassifier`.

    References
    ----------
    .. [1] X. Chen et al., Context Autoencoder for Self-Supervised Representation Learning, IJCV
       2024. <https://arxiv.org/abs/2202.03026>
    .. [2] A. Bardes et al., Revisiting Feature Prediction for Learning Visual Representations from
       Video, 2024. <https://arxiv.org/abs/2404.08471>

    Examples
    --------
    One token of nine says which class it is, and can be told from the others:

    >>> import numpy as np
    >>> from skpool.probing import AttentiveProbeClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(100) % 2
    >>> tokens = rng.normal(size=(100, 9, 8))
    >>> tokens[:, 3, :2] += np.c_[np.where(y, 2, -2), np.full(100, 4)]
    >>> probe = AttentiveProbeClassifier(lr=0.01, batch_size=20).fit(tokens, y)
    >>> maps = probe.attention_maps(tokens)
    >>> maps.shape
    (100, 1, 1, 9)
    >>> maps.mean(axis=(0, 1, 2)).argmax()
    np.int64(3)
    """

    _parameter_constraints: ClassVar[dict] = {
        **TRAINER_CONSTRAINTS,
        "n_queries": [Interval(Integral, 1, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "mlp_ratio": [Interval(Real, 0, None, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "qk_norm": ["boolean"],
        "standardize": ["boolean"],
        "scope": [StrOptions({"all", "patch"})],
    }

    def __init__(
        self,
        n_queries: int = 1,
        *,
        n_heads: int | str = "auto",
        mlp_ratio: float = 0.0,
        dropout: float = 0.0,
        qk_norm: bool = False,
        standardize: bool = True,
        scope: str = "all",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        epochs: int = 30,
        warmup_epochs: int = 0,
        schedule: str = "cosine",
        min_lr: float = 0.0,
        batch_size: int = 256,
        mixup: float = 0.0,
        label_smoothing: float = 0.0,
        class_weight: str | dict | None = None,
        ema: float | None = None,
        validation_fraction: float = 0.0,
        early_stopping: bool = False,
        patience: int = 10,
        epochs_partial: int = 1,
        device: str = "auto",
        amp: bool = False,
        checkpoint: object = None,
        random_state: object = 0,
    ):
        self.n_queries = n_queries
        self.n_heads = n_heads
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.qk_norm = qk_norm
        self.standardize = standardize
        self.scope = scope
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.schedule = schedule
        self.min_lr = min_lr
        self.batch_size = batch_size
        self.mixup = mixup
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.ema = ema
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.patience = patience
        self.epochs_partial = epochs_partial
        self.device = device
        self.amp = amp
        self.checkpoint = checkpoint
        self.random_state = random_state

    def attention_maps(self, X: object) -> ArrayLike:
        """Return the weights of the tokens, head by head.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        weights : ndarray of shape (n_samples, n_heads, n_queries, n_tokens)
            For every token in `scope`, in their order; they sum to 1, and are 0 for masked tokens.
            A tensor where X was a tensor.
        """
        check_is_fitted(self)
        tokens = self._tokens(X, reset=False)
        longest = tokens.shape[1]

        def weights(head: AttentiveHead, values: torch.Tensor, mask: Mask) -> torch.Tensor:
            found = head.attend(values, mask)
            # Tokens of a network are as many as the longest sample of the batch has.
            return torch.nn.functional.pad(found, (0, longest - found.shape[-1])).flatten(1)

        flat = tokens.reduce(self._applied(weights), batch_size=_BLOCK)
        n_heads = head_count(self.n_features_in_, self.n_heads)
        return flat.reshape(len(flat), n_heads, self.n_queries, longest)

    # What the mixin asks for.

    def _tokens(self, X: object, *, reset: bool) -> TokenArray:
        tokens = validate_tokens(self, X, reset=reset)
        if self.scope == "patch" and tokens.n_prefix_tokens:
            if tokens.n_prefix_tokens == tokens.shape[1]:
                raise ValueError(
                    f"All {tokens.shape[1]} tokens of a sample are prefix tokens, which "
                    "scope='patch' leaves out; set scope='all'."
                )
            tokens = tokens.patches
        if tokens.mask is not None and not tokens.mask.any(axis=1).all():
            empty = np.flatnonzero(~tokens.mask.any(axis=1))
            raise ValueError(
                f"Sample {empty[0]} has no real token ({len(empty)} such samples); remove them."
            )
        return tokens

    def _rows(self, X: object, *, reset: bool) -> TokenRows:
        return TokenRows(self._tokens(X, reset=reset), batch_size=_BLOCK)

    def _make_module(
        self, n_features: int, n_outputs: int, generator: torch.Generator, rows: Rows | None
    ) -> AttentiveHead:
        spec = AttentiveSpec(
            n_features,
            n_outputs,
            n_queries=self.n_queries,
            n_heads=head_count(n_features, self.n_heads),
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            qk_norm=self.qk_norm,
        )
        head = make_attentive_head(spec, generator)
        if rows is not None and self.standardize:
            head.mean, head.scale = rows.moments()
        return head

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
