# SPDX-License-Identifier: BSD-3-Clause
"""AllButTheTop: vectors without the few directions that they all share."""

from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import OneToOneFeatureMixin
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions

from skpool.preprocessing._kernels import (
    PrincipalAxes,
    principal_axes,
    remove_directions,
    share_index,
)
from skpool.preprocessing._moment_map import BaseMomentMap
from skpool.stores import TokenArray
from skpool.utils import ArrayLike

__all__ = ["AllButTheTop"]


class _Removed(NamedTuple):
    """Directions (k, d) that are taken away, and the variances along them (k,)."""

    directions: np.ndarray
    variances: np.ndarray


class AllButTheTop(OneToOneFeatureMixin, BaseMomentMap):
    r"""Subtract the mean, and take away the leading principal directions.

    With the first D principal directions V of the training rows and their mean :math:`\mu`,

    .. math:: z = (x - \mu) - V V^\top (x - \mu) .

    Embeddings often share a large common direction that says little about any one of them, so
    all cosines are near 1 [1]_. Keeping the leading directions and dropping the rest is PCA;
    `NegatedPCA` drops the leading ones too, but gives scores instead of vectors in the same space.
    Rows are vectors, or the tokens of each sample.

    Parameters
    ----------
    n_remove : "auto", int or float, default="auto"
        How many directions are taken away: a number; or, as a float above 0 and below 1, the
        fewest that explain at least this share of the variance; or "auto", one for every hundred
        features but at least one, as its authors propose. 0 only subtracts the mean. A number
        must be below the rank of the covariance.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
        Mean of the training rows.
    components_ : ndarray of shape (n_removed, n_features)
        The directions that are taken away, of unit length, leading first.
    explained_variance_ : ndarray of shape (n_removed,)
        Variances along them, with divisor n - 1.
    moments_ : RunningMoments
        Count, mean and scatter of the training rows; everything above follows from it.
    n_samples_seen_ : int
        Rows learned from.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    NegatedPCA : Scores along the trailing directions.
    Whitening : Evens out all directions instead of dropping some.

    Notes
    -----
    Where the leading direction separates classes, their signal goes with it: choose `n_remove` by
    a search that tries 0 too. `partial_fit` in any order and partition gives what one `fit` gives,
    to rounding. Cost: O(n d^2) for the moments, O(d^3) per solve, O(n d D) to transform.

    References
    ----------
    .. [1] J. Mu, P. Viswanath, All-but-the-Top: Simple and Effective Postprocessing for Word
       Representations, 2018. <https://arxiv.org/abs/1702.01417>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import AllButTheTop
    >>> X = np.random.default_rng(0).normal(size=(50, 4)) + 10 * np.arange(50)[:, None]
    >>> model = AllButTheTop(1).fit(X)
    >>> bool(abs(model.transform(X) @ model.components_.T).max() < 1e-12)
    True
    """

    _parameter_constraints = {
        "n_remove": [
            StrOptions({"auto"}),
            Interval(Integral, 0, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="neither"),
        ],
    }

    def __init__(self, n_remove: str | int | float = "auto"):
        self.n_remove = n_remove

    @property
    def mean_(self) -> np.ndarray:
        """Mean of the training rows."""
        return self._held("mean_").mean_

    @property
    def components_(self) -> np.ndarray:
        """The directions that are taken away."""
        self._held("components_")
        return self._solved.directions

    @property
    def explained_variance_(self) -> np.ndarray:
        """Variances along the directions that are taken away."""
        self._held("explained_variance_")
        return self._solved.variances

    def as_affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the map as a matrix and an offset, ``z = x @ A + b``.

        Returns
        -------
        A : ndarray of shape (n_features, n_features)
        b : ndarray of shape (n_features,)
        """
        V = self._solved.directions
        A = np.eye(V.shape[1]) - V.T @ V
        return A, -(self.mean_ @ A)

    def _solve(self, X: ArrayLike | TokenArray | None) -> _Removed:
        axes = principal_axes(self.moments_.scatter_, n_samples=self.moments_.n_samples)
        k = self._n_removed(axes)
        return _Removed(axes.vectors[:, :k].T.copy(), axes.variances[:k])

    def _n_removed(self, axes: PrincipalAxes) -> int:
        if self.n_remove == 0:
            return 0
        if axes.rank == 0:
            raise ValueError(
                "All rows of X are equal, so there is no direction to remove; give rows that "
                "differ, or set n_remove=0."
            )
        if self.n_remove == "auto":
            return min(max(1, round(len(axes.vectors) / 100)), axes.rank - 1)
        whole = isinstance(self.n_remove, Integral)
        k = self.n_remove if whole else share_index(axes.variances, self.n_remove) + 1
        if k >= axes.rank:
            raise ValueError(
                f"n_remove={self.n_remove!r} takes away {k} directions of X with n_features="
                f"{len(axes.vectors)}, and its covariance has no more (rank {axes.rank}); give a "
                "smaller one, or more rows."
            )
        return int(k)

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        directions = self._solved.directions
        return remove_directions(rows, center=self.moments_.mean_, directions=directions)
