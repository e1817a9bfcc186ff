# SPDX-License-Identifier: BSD-3-Clause
"""FitOnce: a step that the first session fits and no later one changes.

The papers on sessions take a whitening, a centre or an adapter from the base session and keep it.
In an `IncrementalPipeline` this step says so, for one step and on purpose.
"""

from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin, TransformerMixin, _fit_context, clone
from sklearn.utils import Tags, get_tags
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

__all__ = ["FitOnce"]


def _names_features(self: "FitOnce") -> bool:
    return hasattr(getattr(self, "transformer_", self.transformer), "get_feature_names_out")


class FitOnce(MetaEstimatorMixin, TransformerMixin, BaseEstimator):
    """Transformer that an `IncrementalPipeline` fits in its first call and in no other.

    It hides the `partial_fit` of what it holds.

    Parameters
    ----------
    transformer : transformer
        What is fitted; a clone of it, this one stays as it is.

    Attributes
    ----------
    transformer_ : transformer
        The fitted clone.
    n_features_in_ : int
        Number of features, where the transformer tells it.

    See Also
    --------
    IncrementalPipeline : Its ``refresh="frozen"`` does this to all steps.
    sklearn.frozen.FrozenEstimator : A transformer that was fitted before.

    Notes
    -----
    The cost is that of the transformer, of `fit` in the first call alone.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pipeline import FitOnce, make_incremental_pipeline
    >>> from skpool.preprocessing import Whitening
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> X = np.random.default_rng(0).normal(size=(60, 4))
    >>> y = np.repeat([0, 1, 2], 20)
    >>> model = make_incremental_pipeline(FitOnce(Whitening(2)), NearestClassMeanClassifier())
    >>> first = model.partial_fit(X[:40], y[:40])[0].transform(X)
    >>> later = model.partial_fit(X[40:], y[40:])[0].transform(X)
    >>> bool((first == later).all())
    True
    """

    # `IncrementalPipeline` asks for it: such a step is fixed on purpose, so no warning is due.
    _fits_once = True

    _parameter_constraints: ClassVar[dict] = {"transformer": [HasMethods(["fit", "transform"])]}

    def __init__(self, transformer: BaseEstimator):
        self.transformer = transformer

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params) -> Self:
        """Fit the transformer, again where it was.

        Parameters
        ----------
        X : array-like
            Input of the transformer.
        y : array-like of shape (n_samples,), default=None
            Labels, for transformers that learn from them.
        **params : dict
            Parameters of its `fit`.

        Returns
        -------
        self : estimator
        """
        self.transformer_ = clone(self.transformer).fit(X, y, **params)
        return self

    def transform(self, X) -> Any:
        """Transform as the fitted transformer does.

        Parameters
        ----------
        X : array-like
            Input of the transformer.

        Returns
        -------
        Xt : array-like
        """
        check_is_fitted(self)
        return self.transformer_.transform(X)

    @available_if(_names_features)
    def get_feature_names_out(self, input_features: object = None) -> np.ndarray:
        """Return the names that the transformer gives to its outputs.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the inputs.

        Returns
        -------
        names : ndarray of str
        """
        check_is_fitted(self)
        return self.transformer_.get_feature_names_out(input_features)

    @property
    def n_features_in_(self) -> int:
        """Number of features of the transformer."""
        return self._of_transformer("n_features_in_")

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the features, if the first X had text column names."""
        return self._of_transformer("feature_names_in_")

    def _of_transformer(self, name: str) -> Any:
        if not hasattr(self, "transformer_"):
            raise AttributeError(f"This FitOnce is not fitted, so has no {name!r}.")
        return getattr(self.transformer_, name)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "transformer_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        own = get_tags(self.transformer)
        tags.input_tags, tags.target_tags = own.input_tags, own.target_tags
        tags.transformer_tags = own.transformer_tags
        tags.requires_fit = True
        return tags
