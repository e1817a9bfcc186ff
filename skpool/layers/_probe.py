# SPDX-License-Identifier: BSD-3-Clause
"""layerwise_probe: the cross-validated scores of one estimator on every layer of a network.

The curve behind a choice of layer: its spread over the folds says whether the choice means
anything.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.base import BaseEstimator, is_classifier
from sklearn.model_selection import check_cv, cross_val_score
from sklearn.utils import get_tags

from skpool.layers._pooled import LayerPooling
from skpool.layers._validation import read_layers
from skpool.utils import ArrayLike, numpy_or_tensor

__all__ = ["layerwise_probe"]


def layerwise_probe(
    X: object,
    y: ArrayLike,
    estimator: BaseEstimator,
    *,
    cv=5,
    token_pool: str | BaseEstimator = "mean",
    scoring: str | Callable | None = None,
    n_jobs: int | None = None,
) -> np.ndarray:
    """Score an estimator on every layer, on the same splits.

    Parameters
    ----------
    X : TokenArray or array-like of shape (n_samples, n_layers, n_tokens, n_features)
        Also (n_samples, n_layers, n_features), layers that are vectors already.
    y : array-like of shape (n_samples,)
        Targets.
    estimator : estimator
        Takes the vectors of a layer; cloned for every layer and split.
    cv : int, splitter or iterable, default=5
        Splits; an integer is that of :func:`~sklearn.model_selection.cross_val_score`.
    token_pool : str or pooling, default="mean"
        How the tokens of a layer become a vector, as in `LayerAggregator`. A pooling that learns
        is refused: it would see the test samples; put it into a pipeline over ``X.layer(i)``.
    scoring : str or callable, default=None
        As in :func:`~sklearn.model_selection.cross_val_score`.
    n_jobs : int, default=None
        Processes that the splits of a layer are shared by.

    Returns
    -------
    scores : ndarray of shape (n_layers, n_splits)

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from skpool.layers import layerwise_probe
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(60) % 3
    >>> layers = rng.normal(size=(60, 4, 5))
    >>> layers[:, 2, :3] += 3 * np.eye(3)[y]
    >>> scores = layerwise_probe(layers, y, KNeighborsClassifier())
    >>> scores.shape, scores.mean(axis=1).argmax()
    ((4, 5), np.int64(2))
    """
    layers = read_layers(X, "layerwise_probe")
    y = y.cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if len(y) != len(layers):
        raise ValueError(f"X has {len(layers)} rows and y has {len(y)}; give one target per row.")
    if hasattr(token_pool, "transform") and get_tags(token_pool).requires_fit:
        raise ValueError(
            f"token_pool={token_pool!r} learns, and would learn from the test samples; put it into "
            "a pipeline and cross-validate that on X.layer(i)."
        )
    pooling = LayerPooling.fitted(token_pool, layers, range(layers.n_layers))
    vectors = numpy_or_tensor(pooling.vectors(layers)[0])[0].cpu().numpy()
    splitter = check_cv(cv, y, classifier=is_classifier(estimator))
    splits = list(splitter.split(np.zeros((len(y), 1)), y))
    return np.stack(
        [
            cross_val_score(
                estimator,
                np.ascontiguousarray(vectors[:, place]),
                y,
                cv=splits,
                scoring=scoring,
                n_jobs=n_jobs,
                error_score="raise",
            )
            for place in range(vectors.shape[1])
        ]
    )
