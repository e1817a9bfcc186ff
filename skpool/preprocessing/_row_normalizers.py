# SPDX-License-Identifier: BSD-3-Clause
"""Normalisations of every vector by its own mean and deviation, as networks have them inside.

They are stateless; `SampleNormalizer` makes one of them by name, for searches.
"""

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, OneToOneFeatureMixin
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.preprocessing._base import BaseRowMap
from skpool.preprocessing._kernels import (
    layer_normalize,
    rms_normalize,
    scale_and_shift,
    swish_normalize,
)
from skpool.stores import TokenArray
from skpool.utils import ArrayLike

__all__ = [
    "EPS",
    "VECTOR",
    "CompressedRMSNormalizer",
    "GroupNormalizer",
    "LayerNormalizer",
    "RMSNormalizer",
    "Vector",
    "Weighted",
]

Vector = Sequence[float] | np.ndarray | None

EPS = [Interval(Real, 0, None, closed="left")]
VECTOR = ["array-like", None]


class Weighted:
    """Adds `weight` and `bias`, one number per feature, to a normalisation."""

    weight: Vector
    bias: Vector

    def _check_parameters(self, n_features: int) -> None:
        for name in ("weight", "bias"):
            value = _vector(getattr(self, name), n_features, fill=0.0)
            if value.shape != (n_features,) or not np.isfinite(value).all():
                raise ValueError(
                    f"{name} has shape {value.shape}; give one finite number for each of the "
                    f"{n_features} features of X."
                )

    def _weighted(self, rows: torch.Tensor) -> torch.Tensor:
        if self.weight is None and self.bias is None:
            return rows
        weight, bias = self._vectors(rows.shape[1])
        return scale_and_shift(rows, scale=weight, shift=bias)

    def _vectors(self, n_features: int) -> tuple[np.ndarray, np.ndarray]:
        return _vector(self.weight, n_features, fill=1.0), _vector(self.bias, n_features, fill=0.0)


def _vector(value: Vector, n_features: int, *, fill: float) -> np.ndarray:
    return np.full(n_features, fill) if value is None else np.asarray(value, dtype=np.float64)


class LayerNormalizer(Weighted, OneToOneFeatureMixin, BaseRowMap):
    r"""Give every row mean 0 and variance 1 over its features (layer normalisation).

    .. math:: z = \frac{x - \bar x}{\sqrt{\operatorname{var}(x) + \epsilon}} \odot w + b

    The result does not change when a row is multiplied by a positive number or shifted as a whole
    [1]_. With `eps=0` it is :math:`\sqrt d` times the unit vector along the centred row, so inner
    products are d times the correlation of Pearson. Rows are vectors, or the tokens of each
    sample.

    Parameters
    ----------
    eps : float, default=1e-5
        Added to the variance, which matters for rows of small values.
    weight : array-like of shape (n_features,) or None, default=None
        Factors applied after it. Those of a checkpoint belong to the backbone.
    bias : array-like of shape (n_features,) or None, default=None
        Added last.

    Attributes
    ----------
    n_features_in_ : int
        Number of features seen by `fit`.

    See Also
    --------
    RMSNormalizer : Without the mean.
    FrozenStdLayerNormalizer : With one deviation for all rows, hence linear.
    TokenStandardScaler : Mean and deviation of channels over the data instead of over a row.

    Notes
    -----
    Stateless: `transform` works without `fit`. Rows of equal values become 0 (the bias). Values
    whose squares overflow are divided by their largest first. Cost: two passes, O(n d).

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros, G. E. Hinton, Layer Normalization, 2016.
       <https://arxiv.org/abs/1607.06450>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import LayerNormalizer
    >>> LayerNormalizer(eps=0.0).fit_transform(np.array([[1.0, 1.0, 5.0, 5.0]]))
    array([[-1., -1.,  1.,  1.]])
    """

    _parameter_constraints = {"eps": EPS, "weight": VECTOR, "bias": VECTOR}

    def __init__(self, *, eps: float = 1e-5, weight: Vector = None, bias: Vector = None):
        self.eps = eps
        self.weight = weight
        self.bias = bias

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        return self._weighted(layer_normalize(rows, eps=self.eps))


class RMSNormalizer(Weighted, OneToOneFeatureMixin, BaseRowMap):
    r"""Divide every row by its root mean square.

    .. math:: z = \frac{x}{\sqrt{\frac{1}{d} \sum_j x_j^2 + \epsilon}} \odot w + b

    On rows of mean 0 it equals layer normalisation [1]_; with `eps=0` it is :math:`\sqrt d` times
    the unit vector. Rows are vectors, or the tokens of each sample.

    Parameters
    ----------
    eps : float, default=1e-5
        Added to the mean square, which matters for rows of small values.
    weight : array-like of shape (n_features,) or None, default=None
        Factors applied after it. Those of a checkpoint belong to the backbone.
    bias : array-like of shape (n_features,) or None, default=None
        Added last.

    Attributes
    ----------
    n_features_in_ : int
        Number of features seen by `fit`.

    See Also
    --------
    L2Normalizer : Unit length instead of unit mean square.
    CompressedRMSNormalizer : On centred rows, without the entry that the others determine.

    Notes
    -----
    Stateless: `transform` works without `fit`. Zero rows stay 0 (the bias). Values whose squares
    overflow are divided by their largest first. Cost: two passes, O(n d).

    References
    ----------
    .. [1] Z. Jiang, J. Gu, H. Zhu, D. Z. Pan, Pre-RMSNorm and Pre-CRMSNorm Transformers:
       Equivalent and Efficient Pre-LN Transformers, 2023. <https://arxiv.org/abs/2305.14858>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import RMSNormalizer
    >>> RMSNormalizer(eps=0.0).fit_transform(np.array([[1.0, 7.0]]))
    array([[0.2, 1.4]])
    """

    _parameter_constraints = {"eps": EPS, "weight": VECTOR, "bias": VECTOR}

    def __init__(self, *, eps: float = 1e-5, weight: Vector = None, bias: Vector = None):
        self.eps = eps
        self.weight = weight
        self.bias = bias

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        return self._weighted(rms_normalize(rows, eps=self.eps))


class GroupNormalizer(Weighted, OneToOneFeatureMixin, BaseRowMap):
    r"""Layer normalisation inside each of several groups of consecutive features.

    With ``activation="swish"`` every feature is gated instead of centred,

    .. math:: z = \frac{x \operatorname{sigmoid}(x)}{\sqrt{\operatorname{var}_g(x) + \epsilon}}
        \odot w + b

    with the variance of its group: the EvoNorm-S0 of networks without batch statistics [1]_. Rows
    are vectors, or the tokens of each sample.

    Parameters
    ----------
    n_groups : int, default=32
        Number of groups of equally many features, which must divide the number of features. 1 is
        `LayerNormalizer`.
    eps : float, default=1e-5
        Added to the variances.
    weight : array-like of shape (n_features,) or None, default=None
        Factors applied after it. Those of a checkpoint belong to the backbone.
    bias : array-like of shape (n_features,) or None, default=None
        Added last.
    activation : {"swish"} or None, default=None
        Whether values are gated.

    Attributes
    ----------
    n_features_in_ : int
        Number of features seen by `fit`.

    See Also
    --------
    LayerNormalizer : One group.
    L2Normalizer : Its `blocks` are groups of any width.

    Notes
    -----
    Stateless: `transform` works without `fit`. Cost: two passes, O(n d).

    References
    ----------
    .. [1] H. Liu, A. Brock, K. Simonyan, Q. V. Le, Evolving Normalization-Activation Layers, 2020.
       <https://arxiv.org/abs/2004.02967>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import GroupNormalizer
    >>> GroupNormalizer(2, eps=0.0).fit_transform(np.array([[1.0, 3.0, 50.0, 10.0]]))
    array([[-1.,  1.,  1., -1.]])
    """

    _parameter_constraints = {
        "n_groups": [Interval(Integral, 1, None, closed="left")],
        "eps": EPS,
        "weight": VECTOR,
        "bias": VECTOR,
        "activation": [StrOptions({"swish"}), None],
    }

    def __init__(
        self,
        n_groups: int = 32,
        *,
        eps: float = 1e-5,
        weight: Vector = None,
        bias: Vector = None,
        activation: str | None = None,
    ):
        self.n_groups = n_groups
        self.eps = eps
        self.weight = weight
        self.bias = bias
        self.activation = activation

    def _check_parameters(self, n_features: int) -> None:
        super()._check_parameters(n_features)
        if n_features % self.n_groups:
            raise ValueError(
                f"n_groups={self.n_groups} does not divide the n_features={n_features} of X; give "
                "a divisor."
            )

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        groups = rows.unflatten(1, (self.n_groups, -1))
        kernel = layer_normalize if self.activation is None else swish_normalize
        return self._weighted(kernel(groups, eps=self.eps).flatten(1))


class CompressedRMSNormalizer(ClassNamePrefixFeaturesOutMixin, BaseRowMap):
    r"""Layer normalisation without the last entry, which the others determine.

    A centred row is given by its first d - 1 entries u, the last being minus their sum, and

    .. math:: z = \frac{u}{\sqrt{\frac{1}{d} \big(\sum_j u_j^2 + (\sum_j u_j)^2\big) + \epsilon}}

    are the first entries of its layer normalisation [1]_. `inverse_transform` gives the last one
    back. Rows are vectors, or the tokens of each sample.

    Parameters
    ----------
    eps : float, default=1e-5
        Added to the mean square.

    Attributes
    ----------
    n_features_in_ : int
        Number of features seen by `fit`, at least 2.

    See Also
    --------
    LayerNormalizer : All entries.

    Notes
    -----
    Stateless: `transform` works without `fit`. Without the last entry inner products differ from
    those of all entries; restore rows before comparing them. Cost: two passes, O(n d).

    References
    ----------
    .. [1] Z. Jiang, J. Gu, H. Zhu, D. Z. Pan, Pre-RMSNorm and Pre-CRMSNorm Transformers:
       Equivalent and Efficient Pre-LN Transformers, 2023. <https://arxiv.org/abs/2305.14858>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import CompressedRMSNormalizer
    >>> model = CompressedRMSNormalizer(eps=0.0)
    >>> Z = model.fit_transform(np.array([[1.0, 1.0, 5.0, 5.0]]))
    >>> Z
    array([[-1., -1.,  1.]])
    >>> model.inverse_transform(Z)
    array([[-1., -1.,  1.,  1.]])
    """

    _parameter_constraints = {"eps": EPS}

    def __init__(self, *, eps: float = 1e-5):
        self.eps = eps

    def _check_parameters(self, n_features: int) -> None:
        if n_features < 2:
            raise ValueError(
                f"X has n_features={n_features}; a row needs at least 2 features to be compressed."
            )

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_ - 1

    def _n_features_of(self, n_features: int) -> int:
        return n_features - 1

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        # The mean square of a centred row is its variance, whose kernel never overflows.
        return layer_normalize(rows, eps=self.eps)[:, :-1]

    def inverse_transform(self, X: ArrayLike | TokenArray) -> ArrayLike | TokenArray:
        """Give every row its last entry back.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features - 1)
            Vectors, or tokens, that `transform` gave.

        Returns
        -------
        Z : ndarray, tensor or TokenArray
            The layer normalisation of the rows; as X came, of the same rank.
        """
        restorer = _Restorer()
        if hasattr(self, "n_features_in_"):
            restorer.n_features_in_ = self._n_features_out
        return restorer.transform(X)


class _Restorer(BaseRowMap):
    """Adds the last entry of rows that sum to zero."""

    def _n_features_of(self, n_features: int) -> int:
        return n_features + 1

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows, -rows.sum(dim=1, keepdim=True)], dim=1)
