# SPDX-License-Identifier: BSD-3-Clause
"""LayerSelector: the layer of a network that serves a task best, as a step of a pipeline.

It follows an extractor that takes several layers, or a `LayerAggregator` that stacks them.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool import __version__
from skpool.layers._criteria import CRITERIA
from skpool.layers._kernels import concatenate_layers
from skpool.layers._pooled import TOKEN_POOLS, LayerPooling
from skpool.layers._scoring import BaseBlockSelector
from skpool.layers._validation import Layers, validate_layers
from skpool.utils import ArrayLike, as_tensor, fingerprint, numpy_or_tensor, unchanged_on_error

__all__ = ["LayerSelector"]


class LayerSelector(BaseBlockSelector):
    r"""Choose the layers of a network by a score on the training samples.

    ================ =========================================================================
    "knn"            accuracy of the min(20, n / 4) nearest neighbours by cosine, over `cv`
    "ridge"          accuracy of a ridge classifier, over `cv`
    "ncm"            accuracy of the nearest class mean by cosine, over `cv`
    "rankme"         effective rank :math:`\exp(-\sum p_i \log p_i)` of the shares of the
                     singular values [1]_; no labels
    "lidar"          effective rank of the scatter between groups in units of that within; y
                     names the groups: the image that a row is a view of [2]_, or the class
    "prompt_entropy" mean entropy of the spectrum of a sample's tokens [3]_; no labels, needs
                     tokens, lower is better
    ================ =========================================================================

    Parameters
    ----------
    criterion : str or callable, default="knn"
        One of the names above, or ``f(X_layer, y)`` from (n_samples, n_features) to a number,
        larger for better.
    rule : {"best", "top_k", "above_chance"}, default="best"
        "best" takes the layer of the best score, of equal ones the lowest; "top_k" the `k` best
        side by side; "above_chance" the mean of all layers whose accuracy labels at random hardly
        reach (one search in about thirty), or the last layer with a warning where there is none
        [4]_.
    k : int, default=1
        Layers of "top_k".
    cv : int, splitter or iterable, default=3
        Splits of the accuracies; the same for all layers. An integer is that of
        :class:`~sklearn.model_selection.StratifiedKFold`.
    token_pool : str or pooling, default="mean"
        How the tokens of a layer become a vector, as in `LayerAggregator`; not used where X holds
        vectors.
    greater_is_better : bool or "auto", default="auto"
        Whether larger scores are better; "auto" knows of the named criteria, and takes a callable
        to be so.
    max_samples : int, default=5000
        Most rows that the score is computed on, drawn in proportion to the classes.
    random_state : int, RandomState or None, default=0
        Of the draw.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a layer of X.
    n_layers_in_ : int
        Number of layers of X.
    scores_ : ndarray of shape (n_layers,)
        The criterion of every layer.
    best_layer_ : int
        Position of the best score on the axis of the layers.
    selected_ : ndarray of int
        Positions of the selected layers, ascending.
    poolings_ : list of estimators
        The fitted poolings: one that serves all layers, or one per selected layer where the
        pooling learns. Empty where X had no tokens.

    See Also
    --------
    LayerAggregator : Puts layers together without a choice.
    BackboneSelector : The same for features of different networks.
    layerwise_probe : Scores of any estimator on every layer.

    Notes
    -----
    A layer that is chosen on all samples and then cross-validated has seen the test samples: use
    the selector as a step of the pipeline. Accuracies above are optimistic for the same reason. A
    layer whose rows are all equal has the accuracy of chance, the share of the largest class.

    `rankme` and `prompt_entropy` compare layers of one kind alone: a layer behind a final norm or
    a projection has another spectrum for reasons of its own. `lidar` weighs all groups equally.
    Whether a lower entropy is better was seen on language models, and is no law: check it on
    labels.

    Cost: one pass over the tokens; then for n drawn rows and every layer O(n^2 d) for "knn",
    O(n d^2) for "ridge", "rankme" and "lidar", O(n d n_classes) for "ncm", and O(n L^2 (L + d))
    for "prompt_entropy". Of lazy tokens the pooled vectors of all layers are kept, as in
    `LayerAggregator`.

    References
    ----------
    .. [1] Garrido et al., RankMe: Assessing the Downstream Performance of Pretrained
       Self-Supervised Representations by Their Rank, ICML 2023. <https://arxiv.org/abs/2210.02885>
    .. [2] Thilak et al., LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL
       Architectures, ICLR 2024. <https://arxiv.org/abs/2312.04000>
    .. [3] Skean et al., Layer by Layer: Uncovering Hidden Representations in Language Models,
       ICML 2025. <https://arxiv.org/abs/2502.02013>
    .. [4] Yadav, Bansal, Exclusive Supermask Subnetwork Training for Continual Learning,
       Findings of ACL 2023. <https://arxiv.org/abs/2210.10209>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.layers import LayerSelector
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(60) % 3
    >>> layers = rng.normal(size=(60, 4, 5))
    >>> layers[:, 2, :3] += 3 * np.eye(3)[y]
    >>> selector = LayerSelector().fit(layers, y)
    >>> selector.best_layer_
    2
    >>> selector.transform(layers).shape
    (60, 5)
    """

    _parameter_constraints: dict = {
        **BaseBlockSelector._parameter_constraints,
        "token_pool": [StrOptions(set(TOKEN_POOLS)), HasMethods(["fit", "transform"])],
    }

    def __init__(
        self,
        criterion: str | Callable = "knn",
        *,
        rule: str = "best",
        k: int = 1,
        cv=3,
        token_pool: str | BaseEstimator = "mean",
        greater_is_better: bool | str = "auto",
        max_samples: int = 5000,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.criterion = criterion
        self.rule = rule
        self.k = k
        self.cv = cv
        self.token_pool = token_pool
        self.greater_is_better = greater_is_better
        self.max_samples = max_samples
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Score the layers and choose.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_layers, n_tokens, n_features)
            Also (n_samples, n_layers, n_features), layers that are vectors already.
        y : array-like of shape (n_samples,), default=None
            Class labels, groups for "lidar", or what a callable takes. "rankme" and
            "prompt_entropy" do not look at it.

        Returns
        -------
        self : estimator
        """
        with unchanged_on_error(self):
            layers = validate_layers(self, X, reset=True)
            self._check_rule(layers.n_layers)
            y = self._labels(y, len(layers))
            rows = self._drawn(len(layers), y)
            pooling = LayerPooling.fitted(self.token_pool, layers, range(layers.n_layers), y)
            if self._needs == "tokens":
                self._choose(self._entropies(layers[rows]))
            else:
                drawn = layers if len(rows) == len(layers) else layers[rows]
                self._score_vectors(pooling.vectors(drawn)[0], None if y is None else y[rows])
            self.best_layer_ = self._best
            self.poolings_ = pooling.poolings
            if len(self.poolings_) > 1:
                self.poolings_ = [self.poolings_[place] for place in self.selected_]
        return self

    def transform(self, X) -> ArrayLike:
        """Give the selected layers as vectors.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_layers, n_tokens, n_features)
            As in `fit`, with all layers.

        Returns
        -------
        vectors : ndarray of shape (n_samples, n_features_out)
            Of one layer; of `k` layers side by side for "top_k". A tensor where X was a tensor.
            Rows of unreadable inputs are NaN.
        """
        check_is_fitted(self, "selected_")
        layers = validate_layers(self, X, reset=False)
        places = self.selected_.tolist()
        if self.poolings_ or layers.pooled:
            pooling = LayerPooling(self.poolings_, places)
        else:
            pooling = LayerPooling.fitted(self.token_pool, layers, places)
        selected, restore = numpy_or_tensor(pooling.vectors(layers)[0])
        averaged = self.rule == "above_chance"
        return restore(selected.mean(dim=1) if averaged else concatenate_layers(selected))

    def _score_vectors(self, vectors: ArrayLike, y: np.ndarray | None) -> None:
        vectors = numpy_or_tensor(vectors)[0].cpu().numpy()
        # Unreadable inputs have no say.
        known = np.isfinite(vectors).all(axis=(1, 2))
        if not known.all():
            vectors, y = vectors[known], None if y is None else y[known]
        places = range(vectors.shape[1])
        self._score((np.ascontiguousarray(vectors[:, place]) for place in places), y)

    def _entropies(self, layers: Layers) -> np.ndarray:
        """Entropy of every layer, the mean over the samples."""
        if layers.pooled:
            raise ValueError(
                "criterion='prompt_entropy' needs tokens, and X holds vectors of shape "
                f"{layers.rows.shape}; give the tokens of the layers, or use 'rankme'."
            )
        rows = layers.rows
        patches = rows.patches if 0 < rows.n_prefix_tokens < rows.shape[2] else rows
        # Other criteria over the same protocol have other names in the store.
        function = CRITERIA[self.criterion].function
        name = fingerprint("layers", __version__, self.criterion)
        entropies = as_tensor(patches.reduce(function, fingerprint=name))
        known = torch.isfinite(entropies).all(dim=1)
        return entropies[known].mean(dim=0).cpu().numpy().astype(np.float64)

    @property
    def _n_features_out(self) -> int:
        width = self.n_features_in_
        if self.poolings_:
            width = len(self.poolings_[0].get_feature_names_out())
        return width * (1 if self.rule == "above_chance" else len(self.selected_))
