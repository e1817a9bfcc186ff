# SPDX-License-Identifier: BSD-3-Clause
"""MomentProbingClassifier: a trained head on the first and second moments of frozen tokens.

Parameters and checks of `MomentHead`; training and predictions are those of `TorchHeadMixin`.
"""

import warnings
from numbers import Integral

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skpool.probing._base import TRAINER_CONSTRAINTS, TorchHeadMixin, grown_linear
from skpool.probing._moment_modules import (
    MomentHead,
    MomentSpec,
    make_moment_head,
    most_convolutions,
)
from skpool.stores import TokenArray, validate_tokens
from skpool.training import SETTINGS_CONSTRAINTS, TokenRows
from skpool.utils import ArrayLike

__all__ = ["MomentProbingClassifier"]

# Samples whose maps are made at a time where nothing is learned.
_BLOCK = 64


class MomentProbingClassifier(
    TorchHeadMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    ClassifierMixin,
    BaseEstimator,
):
    r"""Moment probing: linear heads on the mean and on cross-covariances of tokens, trained.

    A linear probe sees the class token or the mean of the tokens, their first moment. Moment
    probing (MP, with multi-head convolutional cross-covariance MHC\ :sup:`3` [1]_) adds the
    second: tokens :math:`X` of shape (L, d) are projected and cut into h heads, which one
    LayerNorm scales,

    .. math:: H_i = \mathrm{LN}\big((X P + b)_{[i]}\big), \qquad
              C_{ij} = \frac1L\, \bar H_i^\top \bar H_j ,

    with :math:`\bar H` after centring. The columns of the maps of some pairs of heads are scaled to
    unit length, strided convolutions with GELU between them make the maps smaller, and

    .. math:: z = \tfrac12 (W_1 m + b_1) + \tfrac12 (W_2 \operatorname{vec}(\mathrm{conv}(C)) + b_2)

    are the logits, where m is the class token or the mean. The class is decided by the distribution
    of the tokens: to second order, :math:`\log \mathrm{E}\, e^{i t^\top x} = i t^\top \mu -
    \tfrac12 t^\top \Sigma t`.

    Parameters
    ----------
    proj_dim : int or None, default=512
        Features of a token after the projection; None for no projection.
    n_heads : int, default=4
        Heads h, at least 2; must divide the projected features.
    cross : {"near", "one", "half", "all"}, default="near"
        Pairs of heads: "near" (i, i + 1), "one" (0, i), "half" (i, i + h / 2), "all" every i < j.
    center : {"token", "scalar"} or None, default="token"
        Whether the mean over the tokens is subtracted from each feature, which makes maps
        covariances; or one number, the mean of all entries, from each head of a sample, as the
        published code does. None subtracts nothing.
    normalize : {"column", "frobenius"} or None, default="column"
        Unit columns, as published, or unit Frobenius norm of each map. None leaves maps as they
        are.
    conv_layers : int, default=2
        Convolutions of side 3 and stride 2. Maps too small for them pass fewer, with a warning.
    first : {"auto", "cls", "mean", "mean_norm"}, default="auto"
        The first moment: the class token; the mean of the patches; or this mean behind a
        LayerNorm, which is published for networks without a class token. "auto" is the class
        token where there is one and the mean elsewhere.
    combine : tuple of 2 floats, default=(0.5, 0.5)
        Weights of the two linear heads. A branch of weight 0 is left out: (1, 0) is a linear
        probe.
    head_layout : {"contiguous", "interleaved"}, default="contiguous"
        Whether a head is a run of projected features or every h-th of them, as published for
        networks without a class token.
    head_norm : {"layernorm"} or None, default="layernorm"
        Whether one LayerNorm is applied to every head.
    standardize : bool, default=True
        Whether tokens, and the first moment, are brought to mean 0 and variance 1 per feature by
        the statistics of the first samples learned from. The set of functions stays the same; with
        it, training does not depend on the scale of the tokens. Before a "mean_norm", one number
        scales all features. False is the published form.
    label_smoothing : float, default=0.0
        Share of a target that is spread over all classes.
    class_weight : {"balanced", "effective"}, dict or None, default=None
        Weights of the classes in the loss; "balanced" weighs classes alike, "effective" by their
        effective number of samples.
    optimizer : {"adamw", "adam", "sgd", "lbfgs"}, default="adamw"
        See :class:`~skpool.training.HeadTrainer`, as for all that follows.
    lr : float, default=1e-4
        Step size after the warm-up.
    weight_decay : float, default=0.05
        Of matrices.
    epochs : int, default=30
        Passes over the samples, the warm-up included.
    warmup_epochs : int, default=5
        Passes in which the step size rises linearly.
    schedule : {"cosine", "constant", "step"}, default="cosine"
        How the step size falls afterwards.
    min_lr : float, default=1e-8
        Least step size after the warm-up.
    ema : float, default=None
        Of an exponential average of the weights; None for none.
    batch_size : int, default=256
        Samples per step.
    mixup : float, default=0.0
        Of the Beta distribution by which samples are mixed; 0 for none.
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
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    first_ : str
        What the first moment is: "cls", "mean" or "mean_norm".
    n_prefix_tokens_ : int
        Leading tokens that are no patches.
    weights_ : dict of str to ndarray
        Weights of the module by name.
    module_ : torch.nn.Module
        The trained module, made anew of `weights_`; ``module_(values, mask)`` gives logits.
    history_ : ndarray of shape (n_iter_, 2)
        Loss on the training samples and on those kept back (NaN without), of every epoch.
    n_iter_ : int
        Epochs that were run.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X was a table with text column names.

    See Also
    --------
    make_moment_ridge : Moments and a ridge in closed form, in seconds.
    skpool.pooling.MomentPooling : The moments, without training.

    Notes
    -----
    With ``center="scalar"`` and ``standardize=False`` it is the released head for vision
    transformers, and with ``first="mean_norm"`` and ``head_layout="interleaved"`` the one for other
    networks. The published "remove mean" is an average over tokens and features, about 0 behind a
    LayerNorm, so that its maps are second moments; the default here subtracts the mean of each
    feature. On 1287 token maps of DeiT-tiny, 64 features in two heads, the three ways of centring
    were equally accurate: 84.3 % each, with a standard error of 0.9 over 5 seeds. The number of
    heads, of maps behind "half" and "all", and the sizes of the last layer are fixed in the
    released code, and free here. Linear heads start at zero, so that all classes score alike.

    The defaults are those of the paper for a million images; for a thousand, smaller batches and
    larger steps train in as many epochs, such as ``proj_dim=64, n_heads=2, conv_layers=0,
    batch_size=64, lr=1e-3``.

    Sizes at d = 768 and 1000 classes: 3 maps of 128 x 128, which become 31 x 31, so 2883 features;
    393,728 weights in the projection, 256 in the LayerNorm, 162 in the convolutions, 769,000 and
    2,884,000 in the linear heads, 4,047,146 in all.

    Cost of an epoch: O(n L d k) for the projection to k features and O(n L k^2 / h) for the maps,
    three times over with the gradients; memory O(b (L k + k^2 / h)) for a batch of b. Tokens are
    read a batch at a time, in their own float type.

    References
    ----------
    .. [1] Gao et al., Tuning Pre-trained Model via Moment Probing, ICCV 2023.
       <https://arxiv.org/abs/2307.11342>

    Examples
    --------
    Classes with the same mean, which differ in how two features vary together:

    >>> import numpy as np
    >>> from skpool.probing import MomentProbingClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(80) % 2
    >>> tokens = rng.normal(size=(80, 50, 4))
    >>> tokens[y == 1, :, 1] += tokens[y == 1, :, 0]
    >>> probe = MomentProbingClassifier(16, n_heads=2, conv_layers=1, lr=0.02, batch_size=16)
    >>> probe.fit(tokens[:40], y[:40]).score(tokens[40:], y[40:]) > 0.9
    True
    >>> probe.transform(tokens).shape
    (80, 13)
    """

    _parameter_constraints: dict = {
        **TRAINER_CONSTRAINTS,
        "proj_dim": [Interval(Integral, 1, None, closed="left"), None],
        "n_heads": [Interval(Integral, 2, None, closed="left")],
        "cross": [StrOptions({"near", "one", "half", "all"})],
        "center": [StrOptions({"token", "scalar"}), None],
        "normalize": [StrOptions({"column", "frobenius"}), None],
        "conv_layers": [Interval(Integral, 0, None, closed="left")],
        "first": [StrOptions({"auto", "cls", "mean", "mean_norm"})],
        "combine": [tuple, list],
        "head_layout": [StrOptions({"contiguous", "interleaved"})],
        "head_norm": [StrOptions({"layernorm"}), None],
        "standardize": ["boolean"],
        "optimizer": SETTINGS_CONSTRAINTS["optimizer"],
    }

    def __init__(
        self,
        proj_dim: int | None = 512,
        *,
        n_heads: int = 4,
        cross: str = "near",
        center: str | None = "token",
        normalize: str | None = "column",
        conv_layers: int = 2,
        first: str = "auto",
        combine: tuple[float, float] = (0.5, 0.5),
        head_layout: str = "contiguous",
        head_norm: str | None = "layernorm",
        standardize: bool = True,
        label_smoothing: float = 0.0,
        class_weight: dict | str | None = None,
        optimizer: str = "adamw",
        lr: float = 1e-4,
        weight_decay: float = 0.05,
        epochs: int = 30,
        warmup_epochs: int = 5,
        schedule: str = "cosine",
        min_lr: float = 1e-8,
        ema: float | None = None,
        batch_size: int = 256,
        mixup: float = 0.0,
        validation_fraction: float = 0.0,
        early_stopping: bool = False,
        patience: int = 10,
        epochs_partial: int = 1,
        device: str = "auto",
        amp: bool = False,
        checkpoint=None,
        random_state=0,
    ):
        self.proj_dim = proj_dim
        self.n_heads = n_heads
        self.cross = cross
        self.center = center
        self.normalize = normalize
        self.conv_layers = conv_layers
        self.first = first
        self.combine = combine
        self.head_layout = head_layout
        self.head_norm = head_norm
        self.standardize = standardize
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.schedule = schedule
        self.min_lr = min_lr
        self.ema = ema
        self.batch_size = batch_size
        self.mixup = mixup
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.patience = patience
        self.epochs_partial = epochs_partial
        self.device = device
        self.amp = amp
        self.checkpoint = checkpoint
        self.random_state = random_state

    def transform(self, X) -> ArrayLike:
        """Return the moments that the two linear heads see.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        moments : ndarray of shape (n_samples, n_features + n_second)
            The first moment, standardised as the head has it, and the trained second-order
            features; without those of a branch that `combine` leaves out. Of the float type of the
            tokens (float32 for half precision); a tensor where X was a tensor.
        """
        check_is_fitted(self)

        def moments(
            head: MomentHead, values: torch.Tensor, mask: torch.Tensor | None
        ) -> torch.Tensor:
            return torch.cat([x for x in head.moments(values, mask) if x is not None], dim=1)

        tokens = self._tokens(X, reset=False)
        return tokens.reduce(self._applied(moments), batch_size=_BLOCK)

    @property
    def _n_features_out(self) -> int:
        spec = self._spec(1)
        return sum(
            width
            for width, weight in zip((spec.n_features, spec.n_second), spec.combine, strict=True)
            if weight
        )

    # Tokens.

    def _tokens(self, X: object, *, reset: bool) -> TokenArray:
        """Check X, and remember or compare where the class token and the patches are."""
        tokens = validate_tokens(self, X, reset=reset)
        if reset:
            self.first_ = self._first_of(tokens)
            self.n_prefix_tokens_ = tokens.n_prefix_tokens
        elif tokens.n_prefix_tokens != self.n_prefix_tokens_:
            raise ValueError(
                f"X has {tokens.n_prefix_tokens} prefix token(s), and {type(self).__name__} was "
                f"fitted with {self.n_prefix_tokens_}; give tokens of the same backbone."
            )
        n_prefix, mask = self.n_prefix_tokens_, tokens.mask
        if tokens.shape[1] == n_prefix:
            raise ValueError(
                f"All {n_prefix} tokens of a sample are prefix tokens; moment probing needs "
                "patches."
            )
        if mask is not None and not mask[:, n_prefix:].any(axis=1).all():
            rows = np.flatnonzero(~mask[:, n_prefix:].any(axis=1))
            raise ValueError(
                f"Sample {rows[0]} has no real token ({len(rows)} such samples); remove them."
            )
        if reset:
            self._warn_of_single_tokens(tokens)
        return tokens

    def _first_of(self, tokens: TokenArray) -> str:
        if self.first == "auto":
            return "mean" if tokens.cls_index is None else "cls"
        if self.first == "cls" and tokens.cls_index is None and tokens.shape[1] > 1:
            raise ValueError(
                "first='cls' needs a class token, and these tokens have none (n_prefix_tokens is "
                "0); set first='auto', 'mean' or 'mean_norm', or use "
                "TokenArray.from_array(X, n_prefix_tokens=1)."
            )
        return self.first

    def _rows(self, X: object, *, reset: bool) -> TokenRows:
        return TokenRows(self._tokens(X, reset=reset), batch_size=_BLOCK)

    # The module.

    def _make_module(
        self,
        n_features: int,
        n_outputs: int,
        generator: torch.Generator,
        rows: TokenRows | None,
    ) -> MomentHead:
        if rows is None:
            return make_moment_head(self._spec(n_outputs))
        self._form = self._checked_form(n_features)
        head = make_moment_head(self._spec(n_outputs), generator)
        if self.standardize:
            head.set_units(rows.blocks())
        return head

    def _spec(self, n_outputs: int) -> MomentSpec:
        return MomentSpec(n_outputs=n_outputs, **self._form)

    def _checked_form(self, n_features: int) -> dict[str, object]:
        """What decides the form of the module, beside the number of classes."""
        names = ("n_heads", "head_layout", "cross", "center", "head_norm", "normalize", "proj_dim")
        form = {name: getattr(self, name) for name in names}
        form |= {"n_features": n_features, "first": self.first_, "n_prefix": self.n_prefix_tokens_}
        form |= {"conv_layers": self.conv_layers, "combine": self._checked_weights()}
        if not form["combine"][1]:
            return form
        self._check_heads(self.proj_dim or n_features)
        side = (self.proj_dim or n_features) // self.n_heads
        form["conv_layers"] = most_convolutions(side, self.conv_layers)
        if form["conv_layers"] < self.conv_layers:
            warnings.warn(
                f"Maps of {side} x {side} pass {form['conv_layers']} of conv_layers="
                f"{self.conv_layers} convolutions; set that many, a larger proj_dim or fewer "
                "heads.",
                UserWarning,
                stacklevel=2,
            )
        return form

    def _checked_weights(self) -> tuple[float, float]:
        weights = np.asarray(self.combine, dtype=np.float64)
        valid = weights.shape == (2,) and np.isfinite(weights).all()
        if not (valid and (weights >= 0).all() and weights.any()):
            raise ValueError(
                f"combine={self.combine!r} is not valid; give two numbers of at least 0, not both "
                "0."
            )
        return float(weights[0]), float(weights[1])

    def _check_heads(self, width: int) -> None:
        if width % self.n_heads:
            name = "the number of features" if self.proj_dim is None else "proj_dim"
            raise ValueError(
                f"n_heads={self.n_heads} does not divide {name}, which is {width}; give a divisor."
            )
        if self.cross == "half" and self.n_heads % 2:
            raise ValueError(
                f"cross='half' needs an even number of heads, and n_heads={self.n_heads}; set "
                "another."
            )

    def _warn_of_single_tokens(self, tokens: TokenArray) -> None:
        start, mask = self.n_prefix_tokens_, tokens.mask
        most = tokens.shape[1] - start if mask is None else mask[:, start:].sum(axis=1).max()
        if most == 1 and self.center == "token" and self._checked_weights()[1]:
            warnings.warn(
                "Every sample has one token, whose covariance is zero; set center=None to probe "
                "its products, or combine=(1, 0) for a linear probe.",
                UserWarning,
                stacklevel=2,
            )

    def _grow(self, module: MomentHead, n_new: int) -> None:
        for name in ("first", "second"):
            if hasattr(module, name):
                setattr(module, name, grown_linear(getattr(module, name), n_new))

    def _as_of_now(self, module: nn.Module) -> dict[str, object]:
        held = {name: getattr(self, name) for name in ("_form", "first_", "n_prefix_tokens_")}
        return super()._as_of_now(module) | held

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
