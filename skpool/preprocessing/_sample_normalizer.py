# SPDX-License-Identifier: BSD-3-Clause
"""SampleNormalizer: one of the normalisations of a row by itself, by name."""

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.preprocessing._base import BaseRowMap
from skpool.preprocessing._frozen_layer import FrozenStdLayerNormalizer
from skpool.preprocessing._row_normalizers import (
    EPS,
    VECTOR,
    CompressedRMSNormalizer,
    GroupNormalizer,
    LayerNormalizer,
    RMSNormalizer,
    Vector,
)
from skpool.stores import TokenArray
from skpool.utils import ArrayLike

__all__ = ["SampleNormalizer"]

_CLASSES = {
    "crms": CompressedRMSNormalizer,
    "frozen_layer": FrozenStdLayerNormalizer,
    "group": GroupNormalizer,
    "layer": LayerNormalizer,
    "rms": RMSNormalizer,
}


class SampleNormalizer(BaseRowMap):
    """Normalise every row by itself, in a way chosen by name.

    The same as the class of that name, for searches over the way. What a class offers beside
    `fit` and `transform` (an inverse, learning in parts, folding into a head) is reached through
    `normalizer_`.

    Parameters
    ----------
    method : {"layer", "rms", "group", "crms", "frozen_layer"}, default="layer"
        `LayerNormalizer`, `RMSNormalizer`, `GroupNormalizer`, `CompressedRMSNormalizer` or
        `FrozenStdLayerNormalizer`.
    eps : float, default=1e-5
        Added to variances; without effect on "frozen_layer".
    n_groups : int, default=32
        Number of groups, of "group".
    weight : array-like of shape (n_features,) or None, default=None
        Factors applied after it; not for "crms".
    bias : array-like of shape (n_features,) or None, default=None
        Added last; not for "crms".
    activation : {"swish"} or None, default=None
        Gate of "group", and of no other.

    Attributes
    ----------
    normalizer_ : estimator
        The step that `method` names, fitted.
    n_features_in_ : int
        Number of features seen by `fit`.

    See Also
    --------
    L2Normalizer : Unit length.

    Notes
    -----
    All but "frozen_layer" are stateless: `transform` works without `fit`. Cost: that of the class.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import SampleNormalizer
    >>> SampleNormalizer("rms", eps=0.0).fit_transform(np.array([[1.0, 7.0]]))
    array([[0.2, 1.4]])
    """

    _parameter_constraints = {
        "method": [StrOptions(set(_CLASSES))],
        "eps": EPS,
        "n_groups": [Interval(Integral, 1, None, closed="left")],
        "weight": VECTOR,
        "bias": VECTOR,
        "activation": [StrOptions({"swish"}), None],
    }

    def __init__(
        self,
        method: str = "layer",
        *,
        eps: float = 1e-5,
        n_groups: int = 32,
        weight: Vector = None,
        bias: Vector = None,
        activation: str | None = None,
    ):
        self.method = method
        self.eps = eps
        self.n_groups = n_groups
        self.weight = weight
        self.bias = bias
        self.activation = activation

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = self.method == "frozen_layer"
        return tags

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> np.ndarray:
        """Return the names of the outputs, as the class that `method` names gives them.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the features; None for those seen by `fit`.

        Returns
        -------
        names : ndarray of str
        """
        check_is_fitted(self, "normalizer_")
        return self.normalizer_.get_feature_names_out(input_features)

    def _made(self) -> BaseRowMap:
        """The step that `method` names, not fitted."""
        kind = _CLASSES[self.method]
        params = self.get_params(deep=False)
        for name in ("weight", "bias", "activation"):
            if params[name] is not None and name not in kind._parameter_constraints:
                raise ValueError(
                    f"{name} is not defined for method={self.method!r}; set {name}=None."
                )
        return kind(**{name: params[name] for name in kind._parameter_constraints})

    def _step(self) -> BaseRowMap:
        return self.normalizer_ if self.__sklearn_tags__().requires_fit else self._made()

    def _check_parameters(self, n_features: int) -> None:
        self._made()._check_parameters(n_features)

    def _check_ready(self) -> None:
        if self.__sklearn_tags__().requires_fit:
            check_is_fitted(self)

    def _learn(self, X: ArrayLike | TokenArray) -> None:
        self.normalizer_ = self._made().fit(X)
        if hasattr(self, "feature_names_in_"):
            self.normalizer_.feature_names_in_ = self.feature_names_in_

    def _n_features_of(self, n_features: int) -> int:
        return self._step()._n_features_of(n_features)

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        return self._step()._map(rows)
