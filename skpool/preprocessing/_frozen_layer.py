# SPDX-License-Identifier: BSD-3-Clause
"""FrozenStdLayerNormalizer: layer normalisation that a linear head can take in."""

import numpy as np
import torch
from sklearn.base import OneToOneFeatureMixin
from sklearn.utils.validation import check_is_fitted

from skpool.preprocessing._kernels import row_center, row_std
from skpool.preprocessing._moment_map import BaseMomentMap
from skpool.preprocessing._row_normalizers import VECTOR, Vector, Weighted
from skpool.stores import TokenArray
from skpool.utils import ArrayLike

__all__ = ["FrozenStdLayerNormalizer"]


class FrozenStdLayerNormalizer(Weighted, OneToOneFeatureMixin, BaseMomentMap):
    r"""Layer normalisation with one deviation for all rows, which is linear.

    .. math:: z = \frac{x - \bar x}{\sigma} \odot w + b

    where :math:`\sigma` is the mean deviation of a row over the training rows [1]_. A linear head
    after it can take it in: `fold_into`. Rows are vectors, or the tokens of each sample.

    Parameters
    ----------
    weight : array-like of shape (n_features,) or None, default=None
        Factors applied after it. Those of a checkpoint belong to the backbone.
    bias : array-like of shape (n_features,) or None, default=None
        Added last.

    Attributes
    ----------
    sigma_ : float
        Mean deviation of the training rows over their features; 1 where all are 0.
    moments_ : RunningMoments
        Count, mean and squares of these deviations.
    n_samples_seen_ : int
        Rows learned from.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    LayerNormalizer : Divides every row by its own deviation.

    Notes
    -----
    `partial_fit` in any partition gives what one `fit` gives, to rounding. It equals layer
    normalisation (with `eps=0`) where all rows deviate alike. Cost: one pass, O(n d).

    References
    ----------
    .. [1] L. Baroni, G. Khara, J. Schaeffer, M. Subkhankulov, S. Heimersheim, Transformers Don't
       Need LayerNorm at Inference Time: Scaling LayerNorm Removal to GPT-2 XL and the Implications
       for Mechanistic Interpretability, 2025. <https://arxiv.org/abs/2507.02559>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import FrozenStdLayerNormalizer
    >>> X = np.array([[0.0, 2.0], [1.0, 7.0]])
    >>> model = FrozenStdLayerNormalizer().fit(X)
    >>> model.sigma_, model.transform(X).tolist()
    (2.0, [[-0.5, 0.5], [-1.5, 1.5]])
    >>> coef, intercept = model.fold_into([[1.0, 3.0]], [0.5])
    >>> (X @ coef.T + intercept).ravel().tolist()
    [1.5, 3.5]
    """

    _parameter_constraints = {"weight": VECTOR, "bias": VECTOR}
    _scatter = "diag"
    _min_samples = 1

    def __init__(self, *, weight: Vector = None, bias: Vector = None):
        self.weight = weight
        self.bias = bias

    @property
    def sigma_(self) -> float:
        """Mean deviation of a training row."""
        self._held("sigma_")
        return self._solved

    def fold_into(self, coef: ArrayLike, intercept: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return the linear head on raw rows that equals a head behind this step.

        Parameters
        ----------
        coef : array-like of shape (n_outputs, n_features) or (n_features,)
            Of a fitted linear estimator of scikit-learn.
        intercept : array-like of shape (n_outputs,) or float
            Its intercept.

        Returns
        -------
        coef : ndarray of the shape of `coef`
        intercept : ndarray of the shape of `intercept`
        """
        A, b = self.as_affine()
        coef = np.asarray(coef, dtype=np.float64)
        if coef.shape[-1:] != b.shape:
            raise ValueError(
                f"coef has shape {coef.shape}; its last axis must be the {len(b)} features."
            )
        return coef @ A.T, intercept + coef @ b

    def as_affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the map as a matrix and an offset, ``z = x @ A + b``.

        Returns
        -------
        A : ndarray of shape (n_features, n_features)
        b : ndarray of shape (n_features,)
        """
        check_is_fitted(self)
        d = self.n_features_in_
        weight, bias = self._vectors(d)
        return (np.eye(d) - 1 / d) * (weight / self.sigma_), bias.copy()

    def _observed(self, rows: torch.Tensor) -> torch.Tensor:
        return row_std(rows)

    def _solve(self, X: ArrayLike | TokenArray | None) -> float:
        return float(self.moments_.mean_[0]) or 1.0

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        return self._weighted(row_center(rows).div_(self._solved))
