# SPDX-License-Identifier: BSD-3-Clause
"""NegatedPCA: scores along the directions in which normal data hardly vary."""

import warnings
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.preprocessing._kernels import principal_axes, share_index
from skpool.preprocessing._moment_map import BaseMomentMap
from skpool.stores import TokenArray
from skpool.utils import ArrayLike, apply_affine

__all__ = ["NegatedPCA"]


class _Kept(NamedTuple):
    """Directions (k, d) that are kept, their variances (k,), and the index that parts them."""

    directions: np.ndarray
    variances: np.ndarray
    boundary: int


class NegatedPCA(ClassNamePrefixFeaturesOutMixin, BaseMomentMap):
    r"""Keep the principal components that explain least of the variance.

    Components are ordered by variance, and the first index j at which their cumulative share
    exceeds a threshold parts them. PCA would keep those up to j; this keeps the rest: where
    normal data hardly vary, an anomaly shows [1]_. Rows are vectors, or the tokens of each sample.

    Parameters
    ----------
    variance_threshold : float, default=0.99
        Share of the variance that parts the components, above 0 and at most 1; 1 makes j the last
        of them.
    keep : {"low", "high"}, default="low"
        The trailing components, or the leading ones, 0 to j.
    overlap : bool, default=True
        Whether the trailing components begin at j - 1 (at 0 where j is 0), as in the method's
        reference, so that two components are in both parts; or at j + 1, so that the parts are
        disjoint. Without effect on the leading ones.
    whiten : bool, default=False
        Divide scores by the standard deviations along the components. Components without variance
        are dropped then.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
        Mean of the training rows.
    components_ : ndarray of shape (n_components, n_features)
        The directions that are kept, of unit length, by falling variance.
    explained_variance_ : ndarray of shape (n_components,)
        Variances along them, with divisor n - 1.
    boundary_ : int
        The index j.
    moments_ : RunningMoments
        Count, mean and scatter of the training rows; everything above follows from it.
    n_samples_seen_ : int
        Rows learned from.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    AllButTheTop : Drops leading directions and stays in the space of the features.
    Whitening : Keeps leading components and divides by their deviations.

    Notes
    -----
    With `whiten` and without `overlap` the squared lengths of the two parts add up to the squared
    Mahalanobis distance. `partial_fit` in any order and partition gives what one `fit` gives, to
    rounding. Cost: O(n d^2) for the moments, O(d^3) per solve, O(n d k) to transform.

    References
    ----------
    .. [1] O. Rippel, P. Mertens, D. Merhof, Modeling the Distribution of Normal Data in
       Pre-Trained Deep Features for Anomaly Detection, 2020. <https://arxiv.org/abs/2005.14140>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import NegatedPCA
    >>> X = np.random.default_rng(0).normal(size=(200, 3)) * [10.0, 1.0, 0.1]
    >>> model = NegatedPCA(0.9, overlap=False, whiten=True).fit(X)
    >>> normal, odd = ((model.transform(Z) ** 2).sum(axis=1).max() for Z in (X, [[0, 0, 1.0]]))
    >>> bool(odd > 5 * normal)
    True
    """

    _parameter_constraints = {
        "variance_threshold": [Interval(Real, 0, 1, closed="right")],
        "keep": [StrOptions({"low", "high"})],
        "overlap": ["boolean"],
        "whiten": ["boolean"],
    }

    def __init__(
        self,
        variance_threshold: float = 0.99,
        *,
        keep: str = "low",
        overlap: bool = True,
        whiten: bool = False,
    ):
        self.variance_threshold = variance_threshold
        self.keep = keep
        self.overlap = overlap
        self.whiten = whiten

    @property
    def mean_(self) -> np.ndarray:
        """Mean of the training rows."""
        return self._held("mean_").mean_

    @property
    def components_(self) -> np.ndarray:
        """The directions that are kept."""
        self._held("components_")
        return self._solved.directions

    @property
    def explained_variance_(self) -> np.ndarray:
        """Variances along the directions that are kept."""
        self._held("explained_variance_")
        return self._solved.variances

    @property
    def boundary_(self) -> int:
        """Index that parts the components."""
        self._held("boundary_")
        return self._solved.boundary

    def as_affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the map as a matrix and an offset, ``z = x @ A + b``.

        Returns
        -------
        A : ndarray of shape (n_features, n_components)
        b : ndarray of shape (n_components,)
        """
        A = self._matrix()
        return A, -(self.mean_ @ A)

    @property
    def _n_features_out(self) -> int:
        return len(self._solved.directions)

    def _n_features_of(self, n_features: int) -> int:
        return self._n_features_out

    def _solve(self, X: ArrayLike | TokenArray | None) -> _Kept:
        axes = principal_axes(self.moments_.scatter_, n_samples=self.moments_.n_samples)
        d = len(axes.variances)
        if axes.rank == 0:
            raise ValueError("All rows of X are equal; give rows that differ.")
        j = share_index(axes.variances, self.variance_threshold, strictly=True)
        first, last = 0, j + 1
        if self.keep == "low":
            first, last = (max(j - 1, 0) if self.overlap else j + 1), d
        if self.whiten and axes.rank < last:
            last = axes.rank
            warnings.warn(
                f"The covariance of {self.n_samples_seen_} samples in {d} features has rank "
                f"{axes.rank}: components without variance are left out.",
                UserWarning,
                stacklevel=5,
            )
        if first >= last:
            raise ValueError(
                f"variance_threshold={self.variance_threshold} leaves no component of n_features="
                f"{d} (rank {axes.rank}); give a smaller one, or set overlap=True, whiten=False."
            )
        return _Kept(axes.vectors[:, first:last].T.copy(), axes.variances[first:last], j)

    def _matrix(self) -> np.ndarray:
        kept = self._solved
        return kept.directions.T / (np.sqrt(kept.variances) if self.whiten else 1.0)

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        A = self._matrix()
        offset = np.zeros(A.shape[1])
        return apply_affine(
            rows, shift=self.moments_.mean_, matrix=A, offset=offset, dtype=rows.dtype
        )
