# SPDX-License-Identifier: BSD-3-Clause
"""CovariancePooling and BilinearPooling: how the features of a sample's tokens vary together.

Thin over `pool_covariance`; they add the projection that is learned from all tokens, and give
matrices back from vectors.
"""

from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._base import BasePooling
from skpool.pooling._learning import token_moments
from skpool.pooling._projection import check_n_components, principal_axes, project_tokens
from skpool.pooling._second_order_kernels import (
    inverse_vectorize,
    pool_covariance,
    triangle_width,
)
from skpool.stores import TokenArray
from skpool.utils import ArrayLike, numpy_or_tensor

__all__ = ["BilinearPooling", "CovariancePooling"]


class _BaseCovariance(BasePooling):
    """The projection, the call of the kernel, and the way back to matrices."""

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "vectorize": [StrOptions({"upper", "full"})],
        "l2": ["boolean"],
    }

    def _options(self) -> dict:
        """Options of the kernel."""
        raise NotImplementedError

    def _check_parameters(self, n_features: int) -> None:
        if self.n_components is not None:
            check_n_components(self.n_components, n_features)

    def _fit_tokens(self, tokens: TokenArray, y: object) -> None:
        if self.n_components is None:
            vars(self).pop("components_", None)
            vars(self).pop("mean_", None)
            return
        moments = token_moments(tokens)
        self.components_ = principal_axes(moments, self.n_components)
        self.mean_ = moments.mean_

    def _check_ready(self) -> None:
        if self.n_components is not None:
            check_is_fitted(self, "components_")

    def _fingerprint(self) -> str | None:
        # Axes are learned, so parameters alone do not name the result.
        return super()._fingerprint() if self.n_components is None else None

    def _pool(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        project = None
        if self.n_components is not None:
            project = partial(project_tokens, components=self.components_, mean=self.mean_)
        return pool_covariance(
            tokens, mask, project=project, vectorize=self.vectorize, l2=self.l2, **self._options()
        )

    def inverse_vectorize(self, X) -> ArrayLike:
        """Symmetric matrices of vectors that `transform` returned.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features_out)
            Vectors, or averages and other linear combinations of them.

        Returns
        -------
        matrices : ndarray or tensor of shape (n_samples, k, k)
            Divided by their Frobenius norm where `l2` is set.
        """
        vectors, restore = numpy_or_tensor(X if isinstance(X, torch.Tensor) else np.asarray(X))
        return restore(inverse_vectorize(vectors, vectorize=self.vectorize))

    @property
    def _width(self) -> int:
        """Order of the matrices."""
        return self.n_components or self.n_features_in_

    @property
    def _n_features_out(self) -> int:
        k = self._width
        return k * k if self.vectorize == "full" else triangle_width(k)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = self.n_components is not None
        return tags


class CovariancePooling(_BaseCovariance):
    r"""Covariance of the tokens, or a function of that matrix.

    With the tokens :math:`x_1, \dots, x_T` of a sample (masked ones left out) and their mean
    :math:`\mu`,

    .. math:: C = \frac1T \sum_t (x_t - \mu)(x_t - \mu)^\top ,

    of which the upper triangle is returned, with :math:`\sqrt2` off the diagonal: inner products of
    vectors are Frobenius products of matrices. The square root, the default, evens out the few
    directions of large variance [1]_ [2]_.

    Parameters
    ----------
    kind : {"covariance", "second_moment", "correlation", "gaussian"}, default="covariance"
        The matrix: C; the same without subtracting the mean; C of features scaled to unit
        variance in the sample (0 for features that are constant in it); or the matrix
        :math:`[[C + \mu\mu^\top, \mu], [\mu^\top, 1]]` of the normal distribution, one wider.
    n_components : int, default=None
        Principal components of all training tokens to which tokens are reduced first. None takes
        all features, without learning: 768 of them make vectors of 295,296.
    function : {"sqrtm", "isqrt", "power", "log", "signed_sqrt"}, default="sqrtm"
        "sqrtm" is the square root of the matrix, "power" its power `alpha`, "log" its logarithm
        (log-Euclidean [3]_). "isqrt" takes `n_iter` Newton-Schulz steps towards the square root
        [1]_: at the published 5 it is a function of its own, 0.2 to 0.4 away from the root for the
        uneven spectra of real tokens. "signed_sqrt" is taken of every entry. None leaves C as it
        is.
    alpha : float, default=0.5
        Exponent for "power", above 0.
    n_iter : int, default=5
        Steps for "isqrt".
    eps : float, default=1e-3
        Added to the eigenvalues before the logarithm, as a share of their mean; a matrix of zeros
        counts as one of mean 1.
    shrinkage : float, default=0.0
        Share of the mean eigenvalue that is mixed into the matrix of this kind.
    vectorize : {"upper", "full"}, default="upper"
        Weighted upper triangle, row by row, or all entries.
    l2 : bool, default=True
        Whether vectors are scaled to unit length; a matrix of zeros stays 0.
    scope : {"patch", "all"}, default="patch"
        Whether the class token and registers are left out.
    empty : {"raise", "zero", "nan"}, default="raise"
        What a sample without a real token gives.
    batch_size : int, default=256
        Rows of a plain array that are read at a time.
    out_dtype : {"float16", "float32", "float64"}, default=None
        Float type of the vectors; None for that of the tokens, float32 for half precision.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a token.
    components_ : ndarray of shape (n_components, n_features)
        Principal axes of the training tokens; with `n_components`.
    mean_ : ndarray of shape (n_features,)
        Mean of the training tokens; with `n_components`.

    See Also
    --------
    BilinearPooling : Second moments under a signed square root.
    MomentPooling : The mean beside a covariance of few components.
    CompactBilinearPooling : A sketch of the second moments in a chosen width.

    Notes
    -----
    Cost: O(n T k^2) for k features, at half the operations of a general product. Functions of the
    matrix decompose its T x T or k x k form, whichever is smaller, in float64: O(n min(T, k)^3).
    Memory: the vectors, and a cache-sized block of samples. One token, or equal ones, have the
    covariance 0, of which root and powers are 0.

    Without `n_components` nothing is learned, and results are kept in the store of the tokens.

    References
    ----------
    .. [1] Li, Xie, Wang, Gao, Towards Faster Training of Global Covariance Pooling Networks by
       Iterative Matrix Square Root Normalization, CVPR 2018. <https://arxiv.org/abs/1712.01034>
    .. [2] Li, Xie, Wang, Zuo, Is Second-order Information Helpful for Large-scale Visual
       Recognition?, ICCV 2017. <https://arxiv.org/abs/1703.08050>
    .. [3] Carreira, Caseiro, Batista, Sminchisescu, Semantic Segmentation with Second-Order
       Pooling, ECCV 2012.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import CovariancePooling
    >>> tokens = np.array([[[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, -3.0]]])
    >>> pooling = CovariancePooling(l2=False)
    >>> vectors = pooling.fit_transform(tokens)
    >>> pooling.inverse_vectorize(vectors).round(3)
    array([[[0.707, 0.   ],
            [0.   , 2.121]]])
    """

    _parameter_constraints: dict = {
        **_BaseCovariance._parameter_constraints,
        "kind": [StrOptions({"covariance", "second_moment", "correlation", "gaussian"})],
        "function": [StrOptions({"sqrtm", "isqrt", "power", "log", "signed_sqrt"}), None],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "n_iter": [Interval(Integral, 1, None, closed="left")],
        "eps": [Interval(Real, 0, None, closed="neither")],
        "shrinkage": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        kind: str = "covariance",
        *,
        n_components: int | None = None,
        function: str | None = "sqrtm",
        alpha: float = 0.5,
        n_iter: int = 5,
        eps: float = 1e-3,
        shrinkage: float = 0.0,
        vectorize: str = "upper",
        l2: bool = True,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.kind = kind
        self.n_components = n_components
        self.function = function
        self.alpha = alpha
        self.n_iter = n_iter
        self.eps = eps
        self.shrinkage = shrinkage
        self.vectorize = vectorize
        self.l2 = l2
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _options(self) -> dict:
        names = ("kind", "function", "alpha", "n_iter", "eps", "shrinkage")
        return {name: getattr(self, name) for name in names}

    @property
    def _width(self) -> int:
        return super()._width + (self.kind == "gaussian")


class BilinearPooling(_BaseCovariance):
    r"""Second moments of the tokens under a signed square root.

    The upper triangle of :math:`\frac1T \sum_t x_t x_t^\top`, with :math:`\operatorname{sign}(m)
    \sqrt{|m|}` of every entry and then unit length [1]_; entries off the diagonal weigh
    :math:`\sqrt2`. It is `CovariancePooling` with `kind="second_moment"` and
    `function="signed_sqrt"`.

    Parameters
    ----------
    n_components : int, default=None
        Principal components of all training tokens to which tokens are reduced first. None takes
        all features, without learning.
    vectorize : {"upper", "full"}, default="upper"
        Weighted upper triangle, row by row, or all entries.
    l2 : bool, default=True
        Whether vectors are scaled to unit length.
    scope : {"patch", "all"}, default="patch"
        Whether the class token and registers are left out.
    empty : {"raise", "zero", "nan"}, default="raise"
        What a sample without a real token gives.
    batch_size : int, default=256
        Rows of a plain array that are read at a time.
    out_dtype : {"float16", "float32", "float64"}, default=None
        Float type of the vectors; None for that of the tokens, float32 for half precision.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a token.
    components_ : ndarray of shape (n_components, n_features)
        Principal axes of the training tokens; with `n_components`.
    mean_ : ndarray of shape (n_features,)
        Mean of the training tokens, which is subtracted before the projection; with
        `n_components`.

    See Also
    --------
    CovariancePooling : Other matrices and functions of them.
    CompactBilinearPooling : A sketch of the same in a chosen width.

    Notes
    -----
    Cost: O(n T k^2) for k features, at half the operations of a general product. Without
    `n_components` nothing is learned, and results are kept in the store of the tokens.

    References
    ----------
    .. [1] Lin, RoyChowdhury, Maji, Bilinear CNN Models for Fine-grained Visual Recognition,
       ICCV 2015. <https://arxiv.org/abs/1504.07889>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import BilinearPooling
    >>> tokens = np.array([[[4.0, 1.0]], [[0.0, -2.0]]])
    >>> BilinearPooling(vectorize="full", l2=False).fit_transform(tokens)
    array([[4., 2., 2., 1.],
           [0., 0., 0., 2.]])
    """

    _parameter_constraints: dict = {**_BaseCovariance._parameter_constraints}

    def __init__(
        self,
        n_components: int | None = None,
        *,
        vectorize: str = "upper",
        l2: bool = True,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.n_components = n_components
        self.vectorize = vectorize
        self.l2 = l2
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _options(self) -> dict:
        return {"kind": "second_moment", "function": "signed_sqrt"}
