# SPDX-License-Identifier: BSD-3-Clause
"""AttentionPoolingClassifier: `AttentionPooling` with the head that was trained along."""

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._attention import ATTENTION_CONSTRAINTS, AttentionPooling, layers_as_tokens
from skpool.stores import TokenArray, validate_tokens
from skpool.training import class_numbers
from skpool.utils import ArrayLike, check_scores, unchanged_on_error

__all__ = ["AttentionPoolingClassifier"]


class AttentionPoolingClassifier(ClassifierMixin, BaseEstimator):
    r"""Attention over tokens and a softmax head, trained together.

    The attentive probe of a frozen network: `AttentionPooling` gives a vector :math:`z`, and the
    linear head that was trained with it the probabilities :math:`\mathrm{softmax}(Wz + b)`.

    Parameters
    ----------
    kind : {"gated", "query", "latent", "multilayer", "simpool"}, default="gated"
        The module, see :class:`AttentionPooling`, as for all that follows.
    n_queries : int, default=1
        Queries of "query" and "multilayer".
    query_pool : {"mean", "concat"}, default="mean"
        What is made of the queries of "query".
    n_latents : int, default=64
        Learned vectors of "latent".
    n_heads : int, default=8
        Heads of all kinds but "gated"; must divide the number of features.
    hidden_dim : int, default=128
        Width of V and U of "gated", and between the two layers of "latent".
    layer_embedding : bool, default=True
        Whether "multilayer" tells layers apart by their place.
    residual : bool, default=True
        Whether "latent" adds what a token finds to the token.
    gamma : float, default=None
        Exponent of "simpool"; None for the weighted mean.
    standardize : bool, default=True
        Whether the module sees tokens of mean 0 and variance 1 per feature.
    lr : float, default=1e-3
        First step size of AdamW; it falls to 0 as a cosine.
    weight_decay : float, default=0.05
        Of matrices.
    epochs : int, default=30
        Passes over the training tokens.
    minibatch_size : int, default=64
        Samples per step.
    validation_fraction : float, default=0.1
        Part of the samples of every class that is kept back to choose the best epoch.
    device : str, default="auto"
        Where to train; "auto" is a CUDA device where there is one.
    random_state : int, RandomState or None, default=0
        First weights, order of the samples and validation part.
    scope : {"patch", "all"}, default="patch"
        Whether the class token and registers are left out.
    batch_size : int, default=256
        Rows of a plain array that are read at a time.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a token.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X was a table with text column names.
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    pooling_ : AttentionPooling
        The fitted pooling, with the head in `coef_` and `intercept_`.
    n_iter_ : int
        Epochs that were run.

    See Also
    --------
    AttentionPooling : The pooling alone, for any classifier behind it.

    Notes
    -----
    Cost and memory are those of `AttentionPooling`. The head is an unpenalised softmax head that
    saw as many steps as the module; a closed-form or cross-validated classifier behind
    `AttentionPooling` is often the better one for few samples.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import AttentionPoolingClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = np.array(["left", "right"])[np.arange(60) % 2]
    >>> tokens = rng.normal(size=(60, 9, 4))
    >>> tokens[:, 3, 0] += np.where(y == "left", -4, 4)
    >>> AttentionPoolingClassifier(lr=0.03).fit(tokens, y).score(tokens, y) > 0.9
    True
    """

    _parameter_constraints: dict = ATTENTION_CONSTRAINTS

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
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        epochs: int = 30,
        minibatch_size: int = 64,
        validation_fraction: float = 0.1,
        device: str = "auto",
        random_state=0,
        scope: str = "patch",
        batch_size: int = 256,
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
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.minibatch_size = minibatch_size
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state
        self.scope = scope
        self.batch_size = batch_size

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y):
        """Train the module and the head.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As for `AttentionPooling`.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.

        Returns
        -------
        self : AttentionPoolingClassifier
        """
        with unchanged_on_error(self):
            tokens = self._check(X, reset=True)
            n, who = len(tokens), type(self).__name__
            classes, codes = class_numbers(y, n, np.arange(n), who)
            self.pooling_ = AttentionPooling(**self.get_params()).fit(tokens, classes[codes])
            self.classes_, self.n_iter_ = self.pooling_.classes_, self.pooling_.n_iter_
        return self

    def decision_function(self, X) -> np.ndarray:
        """Return the outputs of the head.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes) or (n_samples,)
            One column per class; for two classes the second score minus the first.
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict_proba(self, X) -> np.ndarray:
        """Return the probability of every class.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Rows sum to 1; columns in the order of `classes_`.
        """
        return softmax(self._scores(X), axis=1)

    def predict(self, X) -> np.ndarray:
        """Return the most probable class.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        y : ndarray of shape (n_samples,)
        """
        best = self._scores(X).argmax(axis=1)
        return self.classes_[best]

    def attention(self, X) -> ArrayLike:
        """Return the weights of the tokens, the mean over the heads.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        weights : ndarray of shape (n_samples, n_queries, n_tokens)
            As of `AttentionPooling`.
        """
        check_is_fitted(self)
        return self.pooling_.attention(self._check(X, reset=False))

    def _check(self, X: object, *, reset: bool) -> TokenArray:
        if self.kind == "multilayer":
            X = layers_as_tokens(X, self.scope)
        return validate_tokens(self, X, reset=reset)

    def _scores(self, X: object) -> np.ndarray:
        """Outputs of the head, (n_samples, n_classes), in float64."""
        check_is_fitted(self)
        vectors = self.pooling_.transform(self._check(X, reset=False))
        vectors = torch.as_tensor(vectors).cpu().numpy().astype(np.float64)
        unread = np.flatnonzero(np.isnan(vectors).any(axis=1))
        if len(unread):
            raise ValueError(
                f"Input X contains {len(unread)} sample(s) that could not be read, the first at "
                f"position {unread[0]}; leave them out."
            )
        return check_scores(vectors @ self.pooling_.coef_.T + self.pooling_.intercept_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
