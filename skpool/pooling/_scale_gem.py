# SPDX-License-Identifier: BSD-3-Clause
"""ScaleGeM: one vector of unit length from the vectors of an image at several scales.

Its input are views, as those of `ViewAggregator`: a view in place of a token, and a view that is
missing under a False mask.
"""

from numbers import Real

import torch
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval

from skpool.pooling._base import BasePooling
from skpool.pooling._spatial_kernels import pool_scale_gem
from skpool.pooling._view_aggregator import _masked
from skpool.utils import ArrayLike

__all__ = ["ScaleGeM"]


class ScaleGeM(BasePooling):
    r"""Pool the vectors of several scales of an image by a generalized mean.

    With :math:`x_1, \dots, x_V` the vectors of a sample and :math:`u(x) = x / |x|`, the result is

    .. math:: z = u\big(\max_v u(x_v)\big) \quad (p = \infty), \qquad
        z = u\Big(\Big(\frac1V \sum_v (x_v - g)^p\Big)^{1/p} + g\Big)

    feature by feature, where g is the smallest value of the sample's vectors, which makes powers
    of signed features possible [1]_. One scale gives :math:`u(x_1)`.

    Parameters
    ----------
    p : float, default=inf
        Exponent, above 0. Infinite takes the maximum of views of unit length; the finite form
        takes views as they are, 10 in the paper.
    eps : float, default=0.0
        Smallest distance from g that is raised to a finite power.
    scope : {"patch", "all"}, default="patch"
        Whether the class token and registers are left out, where tokens stand in place of views.
    empty : {"raise", "zero", "nan"}, default="raise"
        What a sample without a view gives.
    batch_size : int, default=256
        Rows of a plain array that are read at a time.
    out_dtype : {"float16", "float32", "float64"}, default=None
        Float type of the vectors; None for that of the views, float32 for half precision.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a view.

    See Also
    --------
    ViewAggregator : Mean, maximum, median and signed power mean of views.
    RegionalGeM : The same idea within one map.

    Notes
    -----
    The paper takes the scales 0.7071, 1 and 1.4142, and 0.5 and 2 beside them in its larger form,
    and pools after whitening. Its code subtracts the smallest value of a whole batch; here g is
    that of the sample, so that rows do not depend on each other.

    A view that holds a NaN is missing and left out. Vectors (n_samples, n_features) count as one
    view. Cost: O(n V d); nothing is learned.

    References
    ----------
    .. [1] Shao et al., Global Features are All You Need for Image Retrieval and Reranking,
       ICCV 2023. <https://arxiv.org/abs/2308.06954>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import ScaleGeM
    >>> scales = np.array([[[3.0, 0.0, 4.0], [0.0, 6.0, 8.0]]])
    >>> ScaleGeM().fit_transform(scales).round(3)
    array([[0.514, 0.514, 0.686]])
    """

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        "p": [Interval(Real, 0, None, closed="right")],
        "eps": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        p: float = float("inf"),
        *,
        eps: float = 0.0,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.p = p
        self.eps = eps
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the views.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_views, n_features)
            Also (n_samples, n_features), which counts as one view.
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
        """
        return super().fit(_masked(X), y)

    def transform(self, X) -> ArrayLike:
        """Make one vector of the views of every sample.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_views, n_features)
            As in `fit`; of any number of views.

        Returns
        -------
        vectors : ndarray or tensor of shape (n_samples, n_features)
            Of unit length.
        """
        return super().transform(_masked(X))

    def _pool(self, views: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return pool_scale_gem(views, mask, p=float(self.p), eps=self.eps)
