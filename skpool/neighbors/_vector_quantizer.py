# SPDX-License-Identifier: BSD-3-Clause
"""VectorQuantizer: rows as the number of their nearest code; the codes may follow the data."""

import warnings
from numbers import Integral, Real
from typing import ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.neighbors._quantizer_kernels import lloyd, nearest_codes
from skpool.utils import ArrayLike, as_tensor, unchanged_on_error, unit_rows, validate_vectors

__all__ = ["VectorQuantizer"]

_MAX_ITER = 100
# Share of the mean mass below which a code is dead and starts anew at a row of the batch.
_DEAD = 0.01


def clipped(name: str, wanted: int, n_samples: int) -> int:
    """Return how many codes there can be, with a warning where it is fewer than wanted."""
    if wanted > n_samples:
        warnings.warn(
            f"{name}={wanted} codes were asked for, but there are n_samples={n_samples}; every "
            "sample becomes a code.",
            UserWarning,
            stacklevel=4,
        )
    return min(wanted, n_samples)


class VectorQuantizer(TransformerMixin, BaseEstimator):
    """Codebook of vectors, which stand for the rows near them.

    Parameters
    ----------
    n_codes : int, default=256
        Number of codes; at most the number of rows.
    init : {"kmeans", "sample"}, default="kmeans"
        Whether `fit` takes centers by k-means or rows drawn at random.
    metric : {"euclidean", "cosine"}, default="euclidean"
        "cosine" divides rows and codes by their norms.
    update : {"kmeans", "ema"}, default="kmeans"
        What `partial_fit` does: codes are the means of all rows that were ever assigned to them,
        or moving averages, which forget, and which start anew where no rows come.
    decay : float, default=0.99
        Share of the past in the moving averages, per batch.
    affine : bool, default=False
        Whether all codes follow the mean and the spread of the batches together [1]_, with a
        moving average by `decay`, so that codes without rows keep up.
    random_state : int, RandomState instance or None, default=None
        Draws rows.

    Attributes
    ----------
    codebook_ : ndarray of shape (n_codes, n_features)
        The codes.
    mass_ : ndarray of shape (n_codes,)
        Rows of each code, or their moving average.
    perplexity_ : float
        Codes in use: the exponential of the entropy of `mass_`.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X had text column names.

    See Also
    --------
    KeyQuantizer : Many small codebooks over projections.
    sklearn.cluster.KMeans : The same codes, without following the data.

    Notes
    -----
    Cost of `transform`: one product of n_samples * n_codes * n_features in float64, in blocks.
    The code of a row does not depend on the rows beside it.

    References
    ----------
    .. [1] M. Huh, B. Cheung, P. Agrawal, P. Isola, Straightening Out the Straight-Through
       Estimator: Overcoming Optimization Challenges in Vector Quantized Networks, 2023.
       <https://arxiv.org/abs/2305.08842>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.neighbors import VectorQuantizer
    >>> X = np.array([[0.0], [0.2], [5.0], [5.2]])
    >>> vq = VectorQuantizer(n_codes=2, random_state=0).fit(X)
    >>> codes = vq.transform(X)
    >>> vq.inverse_transform(codes).ravel()
    array([0.1, 0.1, 5.1, 5.1])
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_codes": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"kmeans", "sample"})],
        "metric": [StrOptions({"euclidean", "cosine"})],
        "update": [StrOptions({"kmeans", "ema"})],
        "decay": [Interval(Real, 0, 1, closed="left")],
        "affine": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_codes: int = 256,
        *,
        init: str = "kmeans",
        metric: str = "euclidean",
        update: str = "kmeans",
        decay: float = 0.99,
        affine: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_codes = n_codes
        self.init = init
        self.metric = metric
        self.update = update
        self.decay = decay
        self.affine = affine
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Choose codes from these rows alone.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Rows.
        y : object, default=None
            Ignored.

        Returns
        -------
        self : VectorQuantizer
            The fitted quantizer.
        """
        with unchanged_on_error(self):
            self._start(self._rows(validate_vectors(self, X, squares=True)))
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: object = None) -> Self:
        """Move the codes towards these rows; the first call is `fit`.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Rows.
        y : object, default=None
            Ignored.

        Returns
        -------
        self : VectorQuantizer
            The updated quantizer. If the call fails, it stays as it was.
        """
        with unchanged_on_error(self):
            first = not hasattr(self, "codebook_")
            rows = self._rows(validate_vectors(self, X, reset=first, squares=True))
            if first:
                self._start(rows)
            else:
                self._move(rows)
        return self

    def _rows(self, X: ArrayLike) -> np.ndarray:
        rows = as_tensor(X).cpu().double()
        return (unit_rows(rows) if self.metric == "cosine" else rows).numpy()

    def _start(self, rows: np.ndarray) -> None:
        self._generator = check_random_state(self.random_state)
        n_codes = clipped("n_codes", self.n_codes, len(rows))
        if self.init == "kmeans":
            codes = lloyd(rows, n_codes, max_iter=_MAX_ITER, random_state=self._generator)
        else:
            codes = rows[self._generator.permutation(len(rows))[:n_codes]]
        self._set(codes)
        self.mass_ = np.bincount(self._codes_of(rows), minlength=n_codes).astype(np.float64)
        self._frame = rows.mean(axis=0), rows.std(axis=0)

    def _set(self, codes: np.ndarray) -> None:
        codes = as_tensor(np.ascontiguousarray(codes))
        self.codebook_ = (unit_rows(codes) if self.metric == "cosine" else codes).numpy()

    def _codes_of(self, rows: np.ndarray) -> np.ndarray:
        return nearest_codes(rows[None], self.codebook_[None])[:, 0]

    def _move(self, rows: np.ndarray) -> None:
        if self.affine:
            self._follow(rows)
        codes = self._codes_of(rows)
        n_codes = len(self.codebook_)
        counts = np.bincount(codes, minlength=n_codes).astype(np.float64)
        sums = np.zeros_like(self.codebook_)
        np.add.at(sums, codes, rows)
        keep, gain = (self.decay, 1 - self.decay) if self.update == "ema" else (1.0, 1.0)
        mass = keep * self.mass_ + gain * counts
        moved = keep * self.mass_[:, None] * self.codebook_ + gain * sums
        moved /= np.where(mass > 0, mass, 1)[:, None]
        moved = np.where(mass[:, None] > 0, moved, self.codebook_)
        if self.update == "ema":
            dead = np.flatnonzero(mass < _DEAD * mass.mean())
            moved[dead] = rows[self._generator.randint(len(rows), size=len(dead))]
            mass[dead] = mass.mean()
        self.mass_ = mass
        self._set(moved)

    def _follow(self, rows: np.ndarray) -> None:
        """Shift and stretch all codes as the mean and the spread of the rows have moved."""
        mean, spread = self._frame
        share = 1 - self.decay
        new_mean = mean + share * (rows.mean(axis=0) - mean)
        new_spread = spread + share * (rows.std(axis=0) - spread)
        ratio = np.where(spread > 0, new_spread / np.where(spread > 0, spread, 1), 1)
        self._set((self.codebook_ - mean) * ratio + new_mean)
        self._frame = new_mean, new_spread

    @property
    def perplexity_(self) -> float:
        """Number of codes in use: exp of the entropy of their shares of the mass."""
        # Fitted attributes do not exist before fit: hasattr must say so.
        if not hasattr(self, "mass_"):
            raise AttributeError("This VectorQuantizer is not fitted, so has no 'perplexity_'.")
        shares = self.mass_[self.mass_ > 0] / self.mass_.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Return the numbers of the nearest codes.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        codes : ndarray of shape (n_samples,)
            int32; of equally near codes the first.
        """
        check_is_fitted(self)
        return self._codes_of(self._rows(validate_vectors(self, X, reset=False, squares=True)))

    def inverse_transform(self, X: ArrayLike) -> np.ndarray:
        """Return the vectors that codes stand for.

        Parameters
        ----------
        X : array-like of shape (n_samples,)
            Numbers of codes.

        Returns
        -------
        rows : ndarray of shape (n_samples, n_features)
            The codes.
        """
        check_is_fitted(self)
        codes = np.asarray(X)
        if codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= len(self.codebook_):
            raise ValueError(
                f"X holds {codes.min()} to {codes.max()} of dtype {codes.dtype}; give numbers of "
                f"codes, 0 to {len(self.codebook_) - 1}."
            )
        return self.codebook_[codes]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # Codes are whole numbers, whatever came in.
        tags.transformer_tags.preserves_dtype = []
        return tags
