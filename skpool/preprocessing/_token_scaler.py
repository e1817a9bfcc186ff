# SPDX-License-Identifier: BSD-3-Clause
"""TokenStandardScaler: every channel of the tokens with mean 0 and variance 1 over the data."""

from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import OneToOneFeatureMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if

from skpool.preprocessing._base import placed_rows_of
from skpool.preprocessing._kernels import standardize
from skpool.preprocessing._moment_map import BaseMomentMap
from skpool.statistics import ClassMoments, RunningMoments
from skpool.stores import TokenArray
from skpool.utils import ArrayLike, widened

__all__ = ["TokenStandardScaler"]

# A deviation below this share of the mean is what rounding leaves of equal values.
_ROUNDING = 64 * np.finfo(np.float64).eps


class _Scaling(NamedTuple):
    """Means and divisors, (d,), or (L, d) by position."""

    mean: np.ndarray
    scale: np.ndarray


def _is_one_map(scaler: "TokenStandardScaler") -> bool:
    if scaler.per_position:
        raise AttributeError(
            "per_position=True maps each position in its own way, so there is no one affine map; "
            "set per_position=False."
        )
    return True


class TokenStandardScaler(OneToOneFeatureMixin, BaseMomentMap):
    r"""Give every channel of the tokens mean 0 and variance 1 over the training tokens.

    .. math:: z_{tj} = (x_{tj} - \mu_j) / \max(\sigma_j, \epsilon)

    with the mean and deviation of channel j over all real tokens of all samples, or over those at
    the same position. It stands before a pooling, where a few channels of large values would
    otherwise decide a maximum, a power mean or an attention. Vectors (n_samples, n_features) count
    as one token each, which makes it scikit-learn's `StandardScaler`.

    Parameters
    ----------
    with_mean : bool, default=True
        Whether means are subtracted.
    with_std : bool, default=True
        Whether channels are divided by their deviations.
    per_position : bool, default=False
        Whether tokens at different positions have means and deviations of their own, as a class
        token among patches needs. Samples then have as many tokens as in training; ragged ones
        (lists, or with a mask) have at most as many.
    eps : float, default=1e-8
        Smallest deviation that is divided by. Channels of equal values are not divided.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,) or (n_tokens, n_features)
        Means of the training tokens.
    scale_ : ndarray of shape (n_features,) or (n_tokens, n_features)
        What is divided by: deviations with divisor n, or 1.
    moments_ : RunningMoments or ClassMoments
        Counts, means and squares of the training tokens, with `per_position` by position.
    n_samples_seen_ : int
        Tokens learned from.
    n_features_in_ : int
        Number of features of a token.

    See Also
    --------
    sklearn.preprocessing.StandardScaler : The same for vectors.
    LayerNormalizer : Standardises every token by itself.

    Notes
    -----
    Standardising tokens is not standardising pooled vectors: the mean over correlated tokens
    varies less than one token. Mean pooling and the scaler can change places, other poolings
    cannot. Positions that held no real token in training take the mean and deviation over all.

    `partial_fit` in any order and partition gives what one `fit` gives, to rounding. Masked tokens
    are never read, and tokens stay lazy: `fit` reads them once. Cost: one pass, memory O(d), or
    O(L d) by position.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import TokenStandardScaler
    >>> tokens = np.array([[[1.0, 10.0], [3.0, 30.0]], [[5.0, 50.0], [7.0, 70.0]]])
    >>> Z = TokenStandardScaler().fit_transform(tokens)
    >>> Z.mean(axis=(0, 1)).round(6), Z.std(axis=(0, 1)).round(6)
    (array([0., 0.]), array([1., 1.]))
    """

    _parameter_constraints = {
        "with_mean": ["boolean"],
        "with_std": ["boolean"],
        "per_position": ["boolean"],
        "eps": [Interval(Real, 0, None, closed="left")],
    }
    _scatter = "diag"
    _min_samples = 1
    _moment_parameters = ("per_position",)

    def __init__(
        self,
        *,
        with_mean: bool = True,
        with_std: bool = True,
        per_position: bool = False,
        eps: float = 1e-8,
    ):
        self.with_mean = with_mean
        self.with_std = with_std
        self.per_position = per_position
        self.eps = eps

    @property
    def mean_(self) -> np.ndarray:
        """Means of the training tokens."""
        self._held("mean_")
        return self._solved.mean

    @property
    def scale_(self) -> np.ndarray:
        """What channels are divided by."""
        self._held("scale_")
        return self._solved.scale

    @property
    def n_samples_seen_(self) -> int:
        """Tokens learned from."""
        moments = self._held("n_samples_seen_")
        return round(float(moments.counts_.sum()) if self.per_position else moments.n_samples)

    @available_if(_is_one_map)
    def as_affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the map of a token as a matrix and an offset, ``z = x @ A + b``.

        Returns
        -------
        A : ndarray of shape (n_features, n_features)
        b : ndarray of shape (n_features,)
        """
        mean, scale = self._shift(), self._solved.scale
        return np.diag(1 / scale), -mean / scale

    def _shift(self) -> np.ndarray:
        mean = self._solved.mean
        return mean if self.with_mean else np.zeros_like(mean)

    def _moments_of(self, X: ArrayLike | TokenArray) -> RunningMoments | ClassMoments:
        if not self.per_position:
            return super()._moments_of(X)
        moments = ClassMoments("diag", product_dtype="float64")
        for rows, places in placed_rows_of(X):
            moments.update(rows, places)
        return moments

    def _solve(self, X: ArrayLike | TokenArray | None) -> _Scaling:
        if not self.per_position:
            moments = self.moments_
            return self._scaling(moments.mean_, moments.scatter_ / moments.n_samples)
        held = self.moments_
        n, mean, squares = held.total()
        # Positions without a token, in the gaps, take the statistics of all.
        positions = np.arange(held.classes_[-1] + 1)
        means, variances = (np.tile(v, (len(positions), 1)) for v in (mean, squares / n))
        means[held.classes_] = held.means_
        variances[held.classes_] = held.scatter_ / held.counts_[:, None]
        return self._scaling(means, variances)

    def _scaling(self, mean: np.ndarray, variance: np.ndarray) -> _Scaling:
        std = np.sqrt(np.maximum(variance, 0.0))
        varies = self.with_std & (std > _ROUNDING * np.abs(mean))
        return _Scaling(mean, np.where(varies, np.maximum(std, self.eps), 1.0))

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        return standardize(rows, mean=self._shift(), scale=self._solved.scale)

    # By position.

    def _check_mappable(self, X: ArrayLike | TokenArray) -> None:
        super()._check_mappable(X)
        if not self.per_position:
            return
        n, ragged = _positions_of(X)
        seen = len(self._solved.mean)
        if n > seen or (n < seen and not ragged):
            self._refuse_positions(n, seen)

    def _check_more(self, X: ArrayLike | TokenArray) -> None:
        if not self.per_position or not len(self.moments_.classes_):
            return
        n, ragged = _positions_of(X)
        seen = len(self._solved.mean)
        if n != seen and not ragged:
            self._refuse_positions(n, seen)

    def _refuse_positions(self, n: int, seen: int) -> None:
        raise ValueError(
            f"X has {n} tokens per sample and TokenStandardScaler was fitted on {seen}, each with "
            "a mean of its own; give as many, or set per_position=False."
        )

    def _map_tokens(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if not self.per_position:
            return super()._map_tokens(tokens, mask)
        tokens = widened(tokens)
        if mask is not None:
            tokens = tokens.where(mask[..., None], 0.0)
        # What is longer than all of training is padding.
        places = np.minimum(np.arange(tokens.shape[1]), len(self._solved.mean) - 1)
        return standardize(tokens, mean=self._shift()[places], scale=self._solved.scale[places])


def _positions_of(X: ArrayLike | TokenArray) -> tuple[int, bool]:
    """How many positions the samples take, and whether some may take fewer."""
    if not isinstance(X, TokenArray):
        return 1, False
    mask = X.mask
    if mask is None:
        return X.shape[1], False
    real = np.flatnonzero(mask.any(axis=0))
    return (int(real[-1]) + 1 if len(real) else 0), True
