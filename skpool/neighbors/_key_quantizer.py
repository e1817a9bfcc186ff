# SPDX-License-Identifier: BSD-3-Clause
"""KeyQuantizer: one row as a tuple of keys, the nearest in each of many small codebooks.

The frozen half of `DiscreteKeyValueClassifier`, which learns a value for every key.
"""

from numbers import Integral
from typing import ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils import Tags, check_random_state, gen_batches
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.neighbors._quantizer_kernels import lloyd, nearest_codes
from skpool.neighbors._vector_quantizer import VectorQuantizer, clipped
from skpool.utils import ArrayLike, as_tensor, unchanged_on_error, validate_vectors

__all__ = ["KeyQuantizer"]

_MAX_ITER = 10
# Rows per key that k-means looks at.
_ROWS_PER_KEY = 64
_EMA_BATCH, _EMA_PASSES, _EMA_DECAY = 256, 3, 0.9


class KeyQuantizer(TransformerMixin, BaseEstimator):
    """Codebooks of keys over projections of the features.

    Each codebook sees its own projection of a row to a few dimensions and names the nearest of
    its keys [1]_. Keys are learned without labels and do not move afterwards, so what is stored
    under them stays where it is.

    Parameters
    ----------
    n_codebooks : int, default=256
        Number of codebooks.
    n_keys : int, default=4096
        Keys per codebook; at most the number of rows.
    key_dim : int, default=8
        Dimensions of a key.
    projection : {"gaussian", "pca", "slice"}, default="gaussian"
        Random Gaussian directions, consecutive principal axes, or consecutive features. The
        last two need n_codebooks * key_dim of them.
    key_init : {"kmeans", "ema", "sample"}, default="kmeans"
        k-means within each codebook (10 iterations on at most 64 rows per key), moving averages
        from rows drawn at random, as published, or rows drawn at random.
    freeze : bool, default=True
        Whether keys must not be learned again once values are stored under them.
    random_state : int, RandomState instance or None, default=None
        Draws projections and rows.

    Attributes
    ----------
    projection_ : ndarray of shape (n_features, n_codebooks * key_dim)
        Directions, codebook after codebook.
    keys_ : ndarray of shape (n_codebooks, n_keys, key_dim)
        The keys.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X had text column names.

    See Also
    --------
    DiscreteKeyValueClassifier : Learns values under the keys.
    VectorQuantizer : One codebook over all features.

    Notes
    -----
    Cost of `transform`: products of n_samples * n_codebooks * key_dim with n_features and with
    n_keys, in float64 and in blocks that fit scikit-learn's `working_memory`. Fitting by k-means
    does the second as often as there are iterations. Keys of few classes place the rows of other
    classes coarsely: fit them on broad data, which need no labels.

    References
    ----------
    .. [1] F. Träuble et al., Discrete Key-Value Bottleneck, ICML 2023.
       <https://arxiv.org/abs/2207.11240>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.neighbors import KeyQuantizer
    >>> X = np.random.default_rng(0).standard_normal((50, 6))
    >>> KeyQuantizer(n_codebooks=3, n_keys=5, key_dim=2).fit_transform(X).shape
    (50, 3)
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_codebooks": [Interval(Integral, 1, None, closed="left")],
        "n_keys": [Interval(Integral, 1, None, closed="left")],
        "key_dim": [Interval(Integral, 1, None, closed="left")],
        "projection": [StrOptions({"gaussian", "pca", "slice"})],
        "key_init": [StrOptions({"kmeans", "ema", "sample"})],
        "freeze": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_codebooks: int = 256,
        *,
        n_keys: int = 4096,
        key_dim: int = 8,
        projection: str = "gaussian",
        key_init: str = "kmeans",
        freeze: bool = True,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_codebooks = n_codebooks
        self.n_keys = n_keys
        self.key_dim = key_dim
        self.projection = projection
        self.key_init = key_init
        self.freeze = freeze
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Choose projections and keys from these rows.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Rows.
        y : object, default=None
            Ignored.

        Returns
        -------
        self : KeyQuantizer
            The fitted quantizer.
        """
        with unchanged_on_error(self):
            X = validate_vectors(self, X, squares=True)
            generator = check_random_state(self.random_state)
            n_keys = clipped("n_keys", self.n_keys, len(X))
            rows = as_tensor(X).cpu()
            if self.key_init != "ema" and len(rows) > _ROWS_PER_KEY * n_keys:
                chosen = generator.permutation(len(rows))[: _ROWS_PER_KEY * n_keys]
                rows = rows[np.sort(chosen)]
            rows = rows.double().numpy()
            self.projection_ = self._directions(rows, generator)
            parts = self._projected(rows)
            self.keys_ = np.stack([self._keys(part, n_keys, generator) for part in parts])
        return self

    def _directions(self, rows: np.ndarray, generator: np.random.RandomState) -> np.ndarray:
        d, width = rows.shape[1], self.n_codebooks * self.key_dim
        if self.projection == "gaussian":
            return generator.standard_normal((d, width)) / np.sqrt(self.key_dim)
        if width > d:
            raise ValueError(
                f"projection={self.projection!r} needs n_codebooks * key_dim = {width} of the "
                f"n_features = {d}; lower them, or set projection='gaussian'."
            )
        if self.projection == "slice":
            return np.eye(d, width)
        centered = rows - rows.mean(axis=0)
        _, axes = np.linalg.eigh(centered.T @ centered)
        return np.ascontiguousarray(axes[:, ::-1][:, :width])

    def _projected(self, rows: np.ndarray) -> np.ndarray:
        parts = (rows @ self.projection_).reshape(len(rows), self.n_codebooks, self.key_dim)
        return np.ascontiguousarray(parts.transpose(1, 0, 2))

    def _keys(self, part: np.ndarray, n_keys: int, generator: np.random.RandomState) -> np.ndarray:
        if self.key_init == "kmeans":
            return lloyd(part, n_keys, max_iter=_MAX_ITER, random_state=generator)
        if self.key_init == "sample":
            return part[generator.permutation(len(part))[:n_keys]]
        quantizer = VectorQuantizer(
            n_keys, init="sample", update="ema", decay=_EMA_DECAY, random_state=generator
        ).fit(part)
        for _ in range(_EMA_PASSES):
            shuffled = part[generator.permutation(len(part))]
            for batch in gen_batches(len(part), _EMA_BATCH):
                quantizer.partial_fit(shuffled[batch])
        return quantizer.codebook_

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Return the nearest key in every codebook.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        codes : ndarray of shape (n_samples, n_codebooks)
            int32; of equally near keys the first.
        """
        check_is_fitted(self)
        X = as_tensor(validate_vectors(self, X, reset=False, squares=True))
        codes = [
            nearest_codes(self._projected(X[block].cpu().double().numpy()), self.keys_)
            for block in gen_batches(len(X), 4096)
        ]
        return np.concatenate(codes)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # Codes are whole numbers, whatever came in.
        tags.transformer_tags.preserves_dtype = []
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_codebooks

    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """Return names of the codebooks.

        Parameters
        ----------
        input_features : object, default=None
            Ignored.

        Returns
        -------
        names : ndarray of shape (n_codebooks,)
            "keyquantizer0" and so on.
        """
        check_is_fitted(self)
        return np.array([f"keyquantizer{i}" for i in range(self.n_codebooks)], dtype=object)
