# SPDX-License-Identifier: BSD-3-Clause
"""CacheAdapterClassifier: text embeddings of the classes, and a cache of a few labelled images.

Scores of a model of images and texts, corrected by the similarity to the rows in the cache. The
rows are the state; what depends on all of them, such as weights that are chosen and keys that are
trained, is computed from the rows when it is needed, so that rows can come and go.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.training import HeadTrainer, VectorRows, get_loss
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_labels,
    full_float32,
    joined_labels,
    row_batches,
    unchanged_on_error,
    unit_rows,
    validate_vectors,
    widened,
)

__all__ = ["CacheAdapterClassifier"]

# What "cv" tries, in the ranges of the released code.
_ALPHAS = np.linspace(0.1, 3.0, 20)
_BETAS = np.linspace(0.1, 7.0, 200)
# The released code trains with epsilon = 1e-4 in AdamW. Its steps are those of epsilon = 1e-8, to
# which torch defaults, on a loss that is multiplied by the quotient.
_LOSS_SCALE = 1e-4
_WEIGHT_DECAY = 0.01


def cache_scores(cosines: torch.Tensor, onehot: torch.Tensor, beta: float) -> torch.Tensor:
    """Return ``exp(-beta (1 - cosine))``, summed into classes.

    Parameters
    ----------
    cosines : tensor of shape (n, n_keys)
    onehot : tensor of shape (n_keys, n_classes)
        Classes of the keys.
    beta : float

    Returns
    -------
    scores : tensor of shape (n, n_classes)
    """
    return (beta * (cosines - 1)).exp() @ onehot


def class_scales(counts: np.ndarray) -> np.ndarray:
    """Return the mean number of rows of the classes that have some, over that of each.

    Parameters
    ----------
    counts : ndarray of shape (..., n_classes)

    Returns
    -------
    scales : ndarray of shape (..., n_classes)
    """
    held = np.maximum((counts > 0).sum(axis=-1, keepdims=True), 1)
    return counts.sum(axis=-1, keepdims=True) / held / np.maximum(counts, 1)


class _Cache(NamedTuple):
    """What predictions are made of."""

    keys: np.ndarray  # (n, d), unit rows, or trained
    onehot: np.ndarray  # (n, C), of classes with a text, or with rows where there are no texts
    scale: np.ndarray  # (C,), alpha times what makes classes alike
    alpha: float
    beta: float


class _KeysObjective(nn.Module):
    """Cross entropy as a function of the keys."""

    def __init__(self, cache: _Cache, texts: np.ndarray | None, logit_scale: float):
        super().__init__()
        self.keys = nn.Parameter(torch.from_numpy(cache.keys))
        self.register_buffer("onehot", torch.from_numpy(cache.onehot))
        self.register_buffer("scale", torch.from_numpy(cache.scale))
        self.register_buffer("texts", None if texts is None else torch.from_numpy(texts))
        self.beta, self.logit_scale = cache.beta, logit_scale
        self.loss = get_loss("cross_entropy")

    def forward(self, values, mask, target, weight=None):
        scores = self.scale * cache_scores(values @ self.keys.T, self.onehot, self.beta)
        if self.texts is not None:
            scores = scores + self.logit_scale * (values @ self.texts.T)
        return _LOSS_SCALE * self.loss(scores, target).mean()


class CacheAdapterClassifier(ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator):
    r"""Zero-shot scores by text embeddings, corrected by a cache of labelled rows: Tip-Adapter.

    With unit rows :math:`x`, unit text embeddings :math:`t_c`, and the unit rows :math:`k_i` of
    the cache, a class scores

    .. math:: s_c(x) = \gamma\, x^\top t_c
        + \alpha \sum_{i : y_i = c} e^{-\beta (1 - x^\top k_i)} .

    Parameters
    ----------
    class_embeddings : mapping, array-like of shape (n_classes, n_features) or None, default=None
        Embeddings of the texts of the classes, by label; the row of an array is that of the label
        of its number. They are scaled to unit length. None leaves out the text: a kernel
        classifier of all rows in the cache.
    alpha : float or "cv", default=1.0
        Weight of the cache. "cv" takes the most accurate of 20 numbers from 0.1 to 3.
    beta : float or "cv", default=1.0
        How fast similarity falls with the distance. "cv" takes the most accurate of 200 numbers
        from 0.1 to 7.
    logit_scale : float, default=100.0
        Factor :math:`\gamma` of the text.
    normalize_cache : bool, default=True
        Whether the part of a class is divided by the number of its rows, relative to their mean
        number: classes with more rows would be preferred. With as many rows of every class this
        changes nothing.
    train_keys : bool, default=False
        Whether the rows of the cache are trained, from where they are, on their own labels by
        cross entropy: Tip-Adapter-F.
    lr : float, default=1e-3
        Step size of AdamW, which falls as a half cosine.
    epochs : int, default=20
        Passes over the cache; with 0 the keys are the rows.
    batch_size : int, default=256
        Rows of a step.
    random_state : int, RandomState instance or None, default=0
        Order of the rows in the training.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels with a text, with rows or announced, sorted.
    cache_rows_ : ndarray of shape (n_rows, n_features)
        The rows as they came.
    cache_labels_ : ndarray of shape (n_rows,)
        Their labels.
    keys_ : ndarray of shape (n_rows, n_features)
        What queries are compared with: the unit rows, or what training made of them.
    alpha_ : float
        The weight of the cache in use.
    beta_ : float
        How fast similarity falls, as in use.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.

    See Also
    --------
    skpool.neighbors.WeightedKNNClassifier : The nearest rows alone, of many.

    Notes
    -----
    "cv" leaves one row out: each is scored by the others and the text, over the whole grid at
    once; a class of one row is not judged by, since without the row it has no cache. Of equally
    accurate numbers the smallest `alpha` and then the smallest `beta` are taken. Nothing else than
    the rows in the cache is looked at, while the released code selects on the test set. With
    `train_keys` the numbers are chosen before the training.

    Views of an image are averaged before they come here. Learning in parts equals learning at
    once; trained keys are trained anew from all rows, in an order of their own, when a prediction
    needs them after a change. Cost per query O((n_rows + n_classes) n_features); "cv" takes
    O(n_rows^2 (n_features + 200 n_classes)) and a pass over the grid for 20 `alpha`.

    References
    ----------
    .. [1] R. Zhang, R. Fang, W. Zhang, P. Gao, K. Li, J. Dai, Y. Qiao, H. Li, Tip-Adapter:
       Training-free Adaption of CLIP for Few-shot Classification, 2022.
       <https://arxiv.org/abs/2207.09519>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.few_shot import CacheAdapterClassifier
    >>> texts = {"cat": [1.0, 0.1, 0.0], "dog": [1.0, 0.0, 0.1]}
    >>> clf = CacheAdapterClassifier(texts, alpha=3.0, beta=5.0, logit_scale=1.0)
    >>> clf.fit([[0.1, 0.9, 0.1], [0.0, 0.2, 0.9]], ["cat", "dog"]).predict([[0.2, 0.9, 0.3]])
    array(['cat'], dtype='<U3')
    """

    _parameter_constraints: ClassVar[dict] = {
        "class_embeddings": [Mapping, "array-like", None],
        "alpha": [StrOptions({"cv"}), Interval(Real, 0, None, closed="left")],
        "beta": [StrOptions({"cv"}), Interval(Real, 0, None, closed="left")],
        "logit_scale": [Interval(Real, 0, None, closed="left")],
        "normalize_cache": ["boolean"],
        "train_keys": ["boolean"],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "epochs": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        class_embeddings: object = None,
        *,
        alpha: float | str = 1.0,
        beta: float | str = 1.0,
        logit_scale: float = 100.0,
        normalize_cache: bool = True,
        train_keys: bool = False,
        lr: float = 1e-3,
        epochs: int = 20,
        batch_size: int = 256,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.class_embeddings = class_embeddings
        self.alpha = alpha
        self.beta = beta
        self.logit_scale = logit_scale
        self.normalize_cache = normalize_cache
        self.train_keys = train_keys
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state

    # Learning.

    def fit(self, X: ArrayLike, y: object) -> Self:
        """Keep these rows alone.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors; they are copied to the host.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.

        Returns
        -------
        self : CacheAdapterClassifier
            The fitted classifier. If the call fails, it stays as it was.
        """
        with unchanged_on_error(self):
            super().fit(X, y)
            _ = self._solved
        return self

    def partial_fit(self, X: ArrayLike, y: object, classes: object = None) -> Self:
        """Keep these rows beside all earlier ones.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels; labels never seen before are welcome in any call, if they have texts or
            no class has.
        classes : array-like of shape (n_classes,), default=None
            Labels to announce before they have samples. They are listed in `classes_`. Not
            required.

        Returns
        -------
        self : CacheAdapterClassifier
            The updated classifier. If the call fails, it stays as it was.
        """
        return super().partial_fit(X, y, classes)

    def forget(self, X: ArrayLike, y: object) -> Self:
        """Remove rows from the cache.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            The feature vectors exactly as they were learned; of equal ones as many are removed as
            are given.
        y : array-like of shape (n_samples,)
            Their labels.

        Returns
        -------
        self : CacheAdapterClassifier
            The updated classifier. If the call fails, it stays as it was.
        """
        return super().forget(X, y)

    def _can_map(self) -> bool:
        return False

    def _reset(self) -> None:
        self.cache_rows_ = np.empty((0, self.n_features_in_), dtype=np.float32)
        self.cache_labels_ = None

    def _seen_classes(self) -> np.ndarray:
        return np.unique(self.cache_labels_)

    def _keep(self, rows: np.ndarray, labels: np.ndarray) -> None:
        if not len(self.cache_rows_):
            self.cache_rows_, self.cache_labels_ = rows.copy(), labels.copy()
            return
        self.cache_rows_ = np.concatenate([self.cache_rows_, rows])
        self.cache_labels_ = np.concatenate([self.cache_labels_, labels])

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: None) -> None:
        self._keep(widened(as_tensor(X)).cpu().numpy(), y)

    def _drop(self, positions: np.ndarray | list[int]) -> None:
        self.cache_rows_ = np.delete(self.cache_rows_, positions, axis=0)
        self.cache_labels_ = np.delete(self.cache_labels_, positions)

    def _forget(self, X: ArrayLike, y: np.ndarray, sample_weight: None) -> None:
        rows, left = as_tensor(X).cpu().double().numpy(), np.ones(len(self.cache_rows_), bool)
        for i, (row, label) in enumerate(zip(rows, y, strict=True)):
            same = left & (self.cache_labels_ == label)
            same[same] = (self.cache_rows_[same] == row).all(axis=1)
            if not same.any():
                raise ValueError(
                    f"Row {i} of X with label {label.item()!r} is not stored, or not as often as "
                    "it is given; forget takes samples exactly as they were learned."
                )
            left[np.flatnonzero(same)[-1]] = False
        self._drop(np.flatnonzero(~left))

    def _forget_class(self, label: object) -> None:
        self._drop(np.flatnonzero(self.cache_labels_ == label))

    def _merge(self, other: Self) -> None:
        self._keep(other.cache_rows_, other.cache_labels_)

    def _refresh(self) -> None:
        super()._refresh()
        self._solution = None
        found = self._texts()
        if found is None:
            return
        labels, texts = found
        joined_labels(labels, self.classes_)
        unknown = np.setdiff1d(self.classes_, labels).tolist()
        if unknown:
            raise ValueError(
                f"The label {unknown[0]!r} has no embedding among the {len(labels)} of "
                "class_embeddings; give one for every label."
            )
        if texts.shape[1] != self.n_features_in_:
            raise ValueError(
                f"class_embeddings have {texts.shape[1]} features and X has "
                f"{self.n_features_in_}; give embeddings of the space of the rows."
            )
        self.classes_ = labels

    def _texts(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Labels, sorted, and their unit embeddings in float64."""
        given = self.class_embeddings
        if given is None:
            return None
        keys = list(given) if isinstance(given, Mapping) else list(range(len(given)))
        labels = check_labels(keys, n_samples=len(keys))
        rows = [given[key] for key in keys] if isinstance(given, Mapping) else given
        texts = torch.from_numpy(np.array(rows, dtype=np.float64))
        order = np.argsort(labels)
        return labels[order], unit_rows(texts).numpy()[order]

    # What follows from the cache.

    @property
    def _solved(self) -> _Cache:
        if self._solution is None:
            self._solution = self._solve()
        return self._solution

    def _solve(self) -> _Cache:
        order = np.arange(len(self.cache_rows_))
        if self.train_keys:
            # In an order of their own: what is trained must not depend on how the rows came.
            order = np.lexsort([*self.cache_rows_.T, self.cache_labels_])
        found = self._texts()
        known = self._seen_classes() if found is None else found[0]
        codes = np.searchsorted(known, self.cache_labels_[order])
        keys = unit_rows(torch.from_numpy(self.cache_rows_[order])).numpy()
        onehot = np.eye(len(known), dtype=keys.dtype)[codes]
        texts = None if found is None else found[1].astype(keys.dtype)
        alpha, beta = self._chosen(keys, codes, onehot, texts)
        scale = (alpha * self._scales(onehot.sum(axis=0))).astype(keys.dtype)
        cache = _Cache(keys, onehot, scale, alpha, beta)
        if self.train_keys and self.epochs:
            cache = cache._replace(keys=self._trained(cache, codes, texts))
        # As they came, beside their labels.
        back = np.argsort(order)
        return cache._replace(keys=cache.keys[back], onehot=onehot[back])

    def _scales(self, counts: np.ndarray) -> np.ndarray:
        return class_scales(counts) if self.normalize_cache else np.ones_like(counts)

    def _trained(self, cache: _Cache, codes: np.ndarray, texts: np.ndarray | None) -> np.ndarray:
        objective = _KeysObjective(cache, texts, self.logit_scale)
        trainer = HeadTrainer(
            lr=self.lr,
            epochs=self.epochs,
            batch_size=self.batch_size,
            weight_decay=_WEIGHT_DECAY,
            device="cpu",
        )
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        trainer.train(
            objective,
            VectorRows(cache.keys.copy()),
            codes,
            seed=seed,
            n_outputs=cache.onehot.shape[1],
        )
        return objective.keys.detach().numpy()

    def _chosen(
        self, keys: np.ndarray, codes: np.ndarray, onehot: np.ndarray, texts: np.ndarray | None
    ) -> tuple[float, float]:
        """Weights of the cache, the most accurate on rows that are left out where "cv" asks."""
        alphas = _ALPHAS if self.alpha == "cv" else [self.alpha]
        betas = _BETAS if self.beta == "cv" else [self.beta]
        if len(alphas) == len(betas) == 1:
            return float(self.alpha), float(self.beta)
        judged = np.flatnonzero(np.bincount(codes)[codes] > 1)
        if not len(judged):
            raise ValueError(
                f"alpha={self.alpha!r} and beta={self.beta!r} leave rows out, and n_samples="
                f"{len(codes)} hold no two rows of one class; give numbers, or more rows."
            )
        cosines = keys[judged] @ keys.T
        cosines[np.arange(len(judged)), judged] = -np.inf
        # What each row is scored by when it is not there.
        scales = torch.from_numpy(self._scales(onehot.sum(axis=0) - onehot[judged]))
        zero_shot = np.zeros((len(judged), onehot.shape[1]), dtype=keys.dtype)
        if texts is not None:
            zero_shot = self.logit_scale * (keys[judged] @ texts.T)
        cosines, zero_shot, onehot, target = map(
            torch.from_numpy, (cosines, zero_shot, onehot, codes[judged])
        )
        right = np.empty((len(alphas), len(betas)))
        for j, beta in enumerate(betas):
            # A row that is left out counts nothing, also where beta is 0.
            part = scales * cache_scores(cosines, onehot, max(beta, 1e-9))
            for i, alpha in enumerate(alphas):
                right[i, j] = ((zero_shot + alpha * part).argmax(dim=1) == target).sum()
        i, j = np.unravel_index(right.argmax(), right.shape)
        return float(alphas[i]), float(betas[j])

    @property
    def keys_(self) -> np.ndarray:
        """What queries are compared with."""
        return self._of_cache("keys_").keys

    @property
    def alpha_(self) -> float:
        """The weight of the cache in use."""
        return self._of_cache("alpha_").alpha

    @property
    def beta_(self) -> float:
        """How fast similarity falls, as in use."""
        return self._of_cache("beta_").beta

    def _of_cache(self, name: str) -> _Cache:
        # Fitted attributes do not exist before fit: hasattr must say so.
        if not hasattr(self, "cache_rows_"):
            raise AttributeError(f"This {type(self).__name__} is not fitted, so has no {name!r}.")
        return self._solved

    # Predictions.

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the score of every class.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; -inf for a class with neither text nor rows.
        """
        check_is_fitted(self)
        X = as_tensor(validate_vectors(self, X, reset=False))
        cache, found = self._solved, self._texts()
        like = widened(X[:0])
        keys, onehot, scale = (
            torch.from_numpy(part).to(like) for part in (cache.keys, cache.onehot, cache.scale)
        )
        texts = None if found is None else torch.from_numpy(found[1]).to(like)
        out = torch.empty(len(X), onehot.shape[1], dtype=like.dtype, device=X.device)
        with full_float32():
            for part in row_batches(len(X), 8 * (3 * X.shape[1] + 3 * len(keys))):
                rows = unit_rows(widened(X[part]))
                out[part] = scale * cache_scores(rows @ keys.T, onehot, cache.beta)
                if texts is not None:
                    out[part] += self.logit_scale * (rows @ texts.T)
        known = self._seen_classes() if found is None else found[0]
        return spread_columns(out.cpu().numpy(), known, self.classes_, fill=-np.inf)
