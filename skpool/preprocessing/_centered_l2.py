# SPDX-License-Identifier: BSD-3-Clause
"""CenteredL2Normalizer: directions seen from the middle of the data instead of from zero."""

from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from sklearn.base import OneToOneFeatureMixin
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.preprocessing._base import rows_of
from skpool.preprocessing._kernels import center_rows, l2_normalize
from skpool.preprocessing._moment_map import BaseMomentMap
from skpool.statistics import RunningMoments
from skpool.stores import TokenArray
from skpool.utils import ArrayLike

__all__ = ["CenteredL2Normalizer"]


class CenteredL2Normalizer(OneToOneFeatureMixin, BaseMomentMap):
    r"""Subtract a centre from every row and scale what is left to unit length.

    .. math:: z = (x - \mu) / \max(|x - \mu|_2, \epsilon)

    Features of a network fill a narrow cone, in which all cosines are near 1; seen from their
    mean they differ. This is the CL2N of few-shot learning [1]_ and the L2NC of nearest
    neighbours [2]_. Rows are vectors, or the tokens of each sample.

    Parameters
    ----------
    center : {"mean", "median"}, array-like of shape (n_features,) or None, default="mean"
        What is subtracted: the mean or the median of each feature over the training rows, a
        vector of your own (of other data, such as the base classes), or nothing. The median needs
        all rows at once, hence `fit`.
    pre_l2 : bool, default=False
        Scale rows to unit length before they are centred too, in training as in use, so that all
        weigh alike in the centre.
    eps : float, default=1e-12
        Smallest length that is divided by.
    transductive : bool, default=False
        Whether `transform` subtracts the mean (or median) of the vectors that it is given instead
        of `center_`. The result for a row then depends on the rows beside it: use it for a set
        that is judged as a whole, such as the queries of an episode.

    Attributes
    ----------
    center_ : ndarray of shape (n_features,)
        What is subtracted.
    moments_ : RunningMoments
        Count, mean and squares of the training rows, after `pre_l2`.
    n_samples_seen_ : int
        Rows learned from.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    L2Normalizer : The same around zero.
    Whitening : Also takes the correlations away.

    Notes
    -----
    With ``center="mean"``, `partial_fit` in any partition gives what one `fit` gives, to rounding;
    it is no affine map, so an `IncrementalPipeline` takes it with ``refresh="frozen"``. A row
    equal to the centre becomes zero. On the unit rows that come out, Euclidean neighbours with a
    temperature T, weighted by ``exp(-|q - x|^2 / T)``, are cosine neighbours with the temperature
    T / 2. Cost: one pass, O(n d); memory O(d), for the median all training rows.

    References
    ----------
    .. [1] Y. Wang, W.-L. Chao, K. Q. Weinberger, L. van der Maaten, SimpleShot: Revisiting
       Nearest-Neighbor Classification for Few-Shot Learning, 2019.
       <https://arxiv.org/abs/1911.04623>
    .. [2] M. Jia et al., Rethinking Nearest Neighbors for Visual Classification, 2021.
       <https://arxiv.org/abs/2112.08459>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import CenteredL2Normalizer
    >>> X = np.array([[11.0, 10.0], [9.0, 10.0], [10.0, 13.0], [10.0, 7.0]])
    >>> CenteredL2Normalizer().fit_transform(X)
    array([[ 1.,  0.],
           [-1.,  0.],
           [ 0.,  1.],
           [ 0., -1.]])
    """

    _parameter_constraints = {
        "center": [StrOptions({"mean", "median"}), "array-like", None],
        "pre_l2": ["boolean"],
        "eps": [Interval(Real, 0, None, closed="left")],
        "transductive": ["boolean"],
    }
    _scatter = "diag"
    _min_samples = 1
    _moment_parameters = ("pre_l2",)

    def __init__(
        self,
        center: str | Sequence[float] | np.ndarray | None = "mean",
        *,
        pre_l2: bool = False,
        eps: float = 1e-12,
        transductive: bool = False,
    ):
        self.center = center
        self.pre_l2 = pre_l2
        self.eps = eps
        self.transductive = transductive

    @property
    def center_(self) -> np.ndarray:
        """What is subtracted from every row."""
        self._held("center_")
        return self._solved

    def _check_parameters(self, n_features: int) -> None:
        learned = isinstance(self.center, str)
        if self.transductive and not learned:
            raise ValueError(
                "transductive=True centres each set by its own mean or median, so the vector "
                f"center={self.center!r} has no part in it; set center to 'mean' or 'median'."
            )
        if learned or self.center is None:
            return
        center = np.asarray(self.center, dtype=np.float64)
        if center.shape != (n_features,) or not np.isfinite(center).all():
            raise ValueError(
                f"center has shape {center.shape}; give one finite number for each of the "
                f"{n_features} features of X."
            )

    def _check_mappable(self, X: ArrayLike | TokenArray) -> None:
        super()._check_mappable(X)
        if self.transductive and isinstance(X, TokenArray):
            raise ValueError(
                "transductive=True centres a set of vectors, and X holds tokens, which are read "
                "in parts; pool them first, or set transductive=False."
            )

    def _refuse_parts(self) -> None:
        if self._is_median():
            raise AttributeError(
                'center="median" needs all rows at once; call fit, or set center="mean".'
            )

    def _learn(self, X: ArrayLike | TokenArray) -> None:
        parts = list(rows_of(X)) if isinstance(X, TokenArray) and self._is_median() else []
        # Tokens of a network are computed once, though moments and median are both taken of them.
        super()._learn(torch.cat(parts) if parts else X)

    def _is_median(self) -> bool:
        return isinstance(self.center, str) and self.center == "median"

    def _observed(self, rows: torch.Tensor) -> torch.Tensor:
        return l2_normalize(rows, eps=self.eps) if self.pre_l2 else rows

    def _solve(self, X: ArrayLike | TokenArray | None) -> np.ndarray:
        if self.center is None:
            return np.zeros(self.n_features_in_)
        if not isinstance(self.center, str):
            return np.array(self.center, dtype=np.float64)
        if self.center == "mean":
            return self.moments_.mean_
        return _median(torch.cat([self._observed(rows) for rows in rows_of(X)]))

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        rows = self._observed(rows)
        center = self._solved
        if self.transductive:
            middle = _mean if self.center == "mean" else _median
            center = middle(rows)
        centered = center_rows(rows, center)
        return l2_normalize(centered, eps=self.eps, out=centered)


def _mean(rows: torch.Tensor) -> np.ndarray:
    return RunningMoments("diag").update(rows).mean_


def _median(rows: torch.Tensor) -> np.ndarray:
    # The mean of the two middle values, where torch would take the lower one.
    return np.median(rows.cpu().numpy(), axis=0).astype(np.float64)
