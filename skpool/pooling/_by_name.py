# SPDX-License-Identifier: BSD-3-Clause
"""Poolings by name: one estimator whose kind is a parameter, so that a grid can list kinds.

Everything is done by the pooling that the name stands for; this one builds it from its parameters,
keeps it once it is fitted, and hands every question on.
"""

import inspect
from typing import Self

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils import Tags
from sklearn.utils.metaestimators import available_if

from skpool.pooling._attention import AttentionPooling
from skpool.pooling._bag_of_features import BagOfFeaturesPooling
from skpool.pooling._base import BasePooling, Plan
from skpool.pooling._compact_bilinear import CompactBilinearPooling
from skpool.pooling._covariance import BilinearPooling, CovariancePooling
from skpool.pooling._fisher import FisherVectorPooling
from skpool.pooling._gem import GeMPooling, GroupGeMPooling
from skpool.pooling._log_sum_exp import LogSumExpPooling
from skpool.pooling._moment import CrossCovariancePooling, MomentPooling
from skpool.pooling._pyramid import SpatialPyramidPooling, TemporalPyramidPooling
from skpool.pooling._rmac import RMACPooling
from skpool.pooling._token import STRATEGIES, TokenPooling
from skpool.pooling._vlad import VLADPooling
from skpool.stores import Job, TokenArray
from skpool.utils import ArrayLike

__all__ = ["Pooling"]

# What a name stands for: a class, and those of its parameters that the name decides.
_KINDS: dict[str, tuple[type[BasePooling], dict]] = {
    **{name: (TokenPooling, {"strategy": name}) for name in STRATEGIES},
    "gem": (GeMPooling, {}),
    "group_gem": (GroupGeMPooling, {}),
    "lse": (LogSumExpPooling, {}),
    "spatial_pyramid": (SpatialPyramidPooling, {}),
    "temporal_pyramid": (TemporalPyramidPooling, {}),
    "rmac": (RMACPooling, {}),
    "moment": (MomentPooling, {}),
    "cross_covariance": (CrossCovariancePooling, {}),
    "covariance": (CovariancePooling, {}),
    "bilinear": (BilinearPooling, {}),
    "compact_bilinear": (CompactBilinearPooling, {}),
    "vlad": (VLADPooling, {}),
    "fisher_vector": (FisherVectorPooling, {}),
    "bag_of_features": (BagOfFeaturesPooling, {}),
    "attention": (AttentionPooling, {}),
}


def _learns_in_parts(pooling: "Pooling") -> bool:
    return hasattr(pooling._built(), "partial_fit")


class Pooling(BasePooling):
    """A pooling by its name.

    ``Pooling("gem", p=4.6)`` is ``GeMPooling(p=4.6)``: it gives the same vectors, and stores keep
    them under one name. It exists so that the kind of pooling can be a parameter of a search, as
    in ``{"pool__kind": ["cls", "mean", "gem"]}``.

    Parameters
    ----------
    kind : str, default="mean"
        ================================ =======================================================
        a strategy of `TokenPooling`     "avgmax", "cls", "first", "last", "max", "mean",
                                         "mean_sqrt_len", "min", "std", "sum", "weighted_mean"
        "gem", "group_gem"               `GeMPooling`, `GroupGeMPooling`
        "lse"                            `LogSumExpPooling`
        "spatial_pyramid", "rmac"        `SpatialPyramidPooling`, `RMACPooling`
        "temporal_pyramid"               `TemporalPyramidPooling`
        "moment", "cross_covariance"     `MomentPooling`, `CrossCovariancePooling`
        "covariance", "bilinear"         `CovariancePooling`, `BilinearPooling`
        "compact_bilinear"               `CompactBilinearPooling`
        "vlad", "fisher_vector"          `VLADPooling`, `FisherVectorPooling`
        "bag_of_features"                `BagOfFeaturesPooling`
        "attention"                      `AttentionPooling`
        ================================ =======================================================

    **params : dict
        Parameters of that pooling; what is not given has its default. The `kind` that a pooling
        itself has is given as ``covariance_kind`` and ``attention_kind``. A parameter that the
        pooling does not have is refused by `fit` and `transform`.

    Attributes
    ----------
    pooling_ : estimator
        The pooling that was fitted; its fitted attributes are those of this one too.
    n_features_in_ : int
        Number of features of a token.

    See Also
    --------
    TokenPooling : The simple poolings, several of which can stand side by side.

    Notes
    -----
    Poolings that learn nothing need no fit under their name either. Cost and memory are those of
    the pooling. In a grid, kinds with parameters of their own go into a dict of their own:
    ``[{"pool__kind": ["cls", "mean"]}, {"pool__kind": ["gem"], "pool__p": [2, 3]}]``.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import Pooling
    >>> tokens = np.array([[[1.0, 4.0], [3.0, 0.0]]])
    >>> Pooling("max").fit_transform(tokens)
    array([[3., 4.]])
    >>> Pooling("gem", p=np.inf, negative="signed")
    Pooling(kind='gem', negative='signed', p=inf)
    """

    _parameter_constraints: dict = {"kind": [str], "params": "no_validation"}

    def __init__(self, kind: str = "mean", **params):
        self.kind = kind
        self._params = params

    def __getattr__(self, name: str) -> object:
        # Asked for what is not here: a parameter, or what the pooling has learned.
        own = vars(self)
        if name in own.get("_params", ()):
            return own["_params"][name]
        if "pooling_" in own and name.endswith("_") and not name.startswith("_"):
            return getattr(own["pooling_"], name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def out_dtype(self) -> str | None:
        """Float type of the vectors, where it was given."""
        # The base class has a default under this name, which would hide the parameter.
        return self._params.get("out_dtype")

    def get_params(self, deep: bool = True) -> dict:
        """Get the kind and the parameters that were given.

        Parameters
        ----------
        deep : bool, default=True
            Whether the parameters of parameters that are estimators come too.

        Returns
        -------
        params : dict
        """
        params = {"kind": self.kind, **self._params}
        if not deep:
            return params
        parts = {
            name: value
            for name, value in params.items()
            if hasattr(value, "get_params") and not isinstance(value, type)
        }
        nested = {
            f"{name}__{inner}": value
            for name, part in parts.items()
            for inner, value in part.get_params().items()
        }
        return nested | params

    def set_params(self, **params) -> Self:
        """Set the kind or parameters of the pooling.

        Parameters
        ----------
        **params : dict
            Whether the kind has a parameter of that name is checked by `fit` and `transform`,
            since a search may set it before the kind.

        Returns
        -------
        self : estimator
        """
        nested = {name: value for name, value in params.items() if "__" in name}
        own = {name: value for name, value in params.items() if "__" not in name}
        self.kind = own.pop("kind", self.kind)
        self._params = self._params | own
        return super().set_params(**nested)

    def _built(self) -> BasePooling:
        """The pooling that the parameters ask for, not fitted."""
        if not isinstance(self.kind, str) or self.kind not in _KINDS:
            raise ValueError(f"kind={self.kind!r} is no pooling; choose from {sorted(_KINDS)}.")
        cls, decided = _KINDS[self.kind]
        free = [name for name in inspect.signature(cls).parameters if name not in decided]
        # `kind` is taken, so a kind that the pooling itself has goes by a name of its own.
        own = {f"{self.kind}_kind" if name == "kind" else name: name for name in free}
        unknown = sorted(set(self._params) - set(own))
        if unknown:
            raise ValueError(
                f"Pooling(kind={self.kind!r}) has no parameter {unknown[0]!r}; those of "
                f"{cls.__name__} are {sorted(own)}."
            )
        return cls(**decided, **{own[name]: value for name, value in self._params.items()})

    def _ready(self) -> BasePooling:
        """The pooling that was fitted, with the parameters of now; else one that is not fitted."""
        pooling, fitted = self._built(), vars(self).get("pooling_")
        if type(fitted) is not type(pooling):
            return pooling
        return fitted.set_params(**pooling.get_params(deep=False))

    # The parameters are checked by the pooling itself.
    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None) -> Self:
        """Fit the pooling that the parameters ask for.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As the pooling takes it.
        y : array-like of shape (n_samples,), default=None
            Labels, for the poolings that learn from them.

        Returns
        -------
        self : estimator
        """
        self.pooling_ = self._built().fit(X, y)
        return self

    @available_if(_learns_in_parts)
    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(self, X, y=None) -> Self:
        """Add tokens to those learned from, where the pooling can.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.
        y : array-like of shape (n_samples,), default=None
            As in `fit`.

        Returns
        -------
        self : estimator
        """
        self.pooling_ = self._ready().partial_fit(X, y)
        return self

    def transform(self, X) -> ArrayLike:
        """Pool the tokens of every sample.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        vectors : ndarray of shape (n_samples, n_features_out)
            A tensor where X was a tensor.
        """
        return self._ready().transform(X)

    def job(self, X: TokenArray) -> Job | None:
        """What `transform` would compute of lazy tokens, to be done together with other poolings.

        Parameters
        ----------
        X : TokenArray

        Returns
        -------
        job : Job, or None
            That of the pooling.
        """
        return self._ready().job(X)

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Names of the outputs.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Not used.

        Returns
        -------
        names : ndarray of shape (n_features_out,)
            As the pooling names them.
        """
        return self._ready().get_feature_names_out(input_features)

    def _plan(self, tokens: TokenArray) -> Plan:
        return self._ready()._plan(tokens)

    def _fingerprint(self) -> str | None:
        return self._ready()._fingerprint()

    def __sklearn_tags__(self) -> Tags:
        try:
            pooling = self._built()
        except ValueError:
            # What is wrong with the parameters is said where they are used.
            return super().__sklearn_tags__()
        return pooling.__sklearn_tags__()
