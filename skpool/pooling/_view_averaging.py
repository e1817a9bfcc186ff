# SPDX-License-Identifier: BSD-3-Clause
"""ViewAveragingClassifier: any classifier on several views of a sample, its decisions averaged.

The other way from views to one answer: `ViewAggregator` averages what the classifier reads, this
averages what it says. Either keeps one row per sample, so that cross-validation cannot put one view
of an image into training and another into the test.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    _fit_context,
    clone,
)
from sklearn.utils import Bunch, Tags
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.metadata_routing import (
    MetadataRouter,
    MethodMapping,
    _raise_for_params,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from skpool.pooling._view_aggregator import missing_views
from skpool.stores import TokenArray
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_labels,
    numpy_or_tensor,
    unchanged_on_error,
    validate_vectors,
)

__all__ = ["ViewAveragingClassifier"]


def _gives(method: str) -> Callable[["ViewAveragingClassifier"], bool]:
    """Whether a response method is there: the one that is averaged, or any after the features."""

    def check(self: "ViewAveragingClassifier") -> bool:
        if self.response not in (method, "feature"):
            raise AttributeError(
                f"response={self.response!r} gives no {method}; set response={method!r}."
            )
        getattr(getattr(self, "estimator_", self.estimator), method)
        return True

    return check


class ViewAveragingClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    r"""Average the decisions of a classifier over the views of a sample.

    The classifier is fitted on all views, each with the label of its sample; for a new sample its
    responses to the V views are averaged,

    .. math:: f(x) = \frac1V \sum_{v=1}^{V} f(x_v),

    and the class of the highest average is predicted [1]_.

    Parameters
    ----------
    estimator : classifier
        Cloned and fitted on vectors (n_samples * n_views, n_features).
    response : {"decision_function", "predict_proba", "feature"}, default="decision_function"
        What is averaged: decisions (logits), probabilities, or the vectors themselves, in front of
        the classifier. The three differ; the mean decision and the decision of the mean vector are
        equal for linear classifiers.
    reduce : {"mean", "sum"}, default="mean"
        Whether `decision_function` (and a vector, with ``response="feature"``) is the mean or the
        sum over the views. Probabilities are always the mean.
    train_views : {"all", "first"}, default="all"
        Which views `estimator` is fitted on.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    estimator_ : classifier
        The fitted clone.
    n_features_in_ : int
        Number of features of a view.

    See Also
    --------
    ViewAggregator : Averages features, as a transformer.
    skpool.extraction.TestTimeAugmentation : Makes the views of images.

    Notes
    -----
    The number of views may differ from call to call. A view that holds a NaN is missing and left
    out; a sample without any other view is refused by name. Vectors (n_samples, n_features) count
    as one view, with which this is `estimator`.

    `sample_weight`, and any other metadata with one value per sample, is repeated for the views. An
    estimator whose penalty weighs against a sum over samples (as ``C`` of scikit-learn's
    `LogisticRegression` does) sees n_views times as many of them.

    `decision_function` and `predict_proba` exist where `response` is that method; with "feature",
    where `estimator` has them. Cost: `estimator` on n_views times as many rows, in one call.

    References
    ----------
    .. [1] A. S. Razavian, H. Azizpour, J. Sullivan, S. Carlsson, CNN Features off-the-shelf: an
       Astounding Baseline for Recognition, 2014. <https://arxiv.org/abs/1403.6382>

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skpool.pooling import ViewAveragingClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(40) % 2
    >>> views = y[:, None, None] + rng.normal(size=(40, 8, 2))
    >>> model = ViewAveragingClassifier(LogisticRegression()).fit(views, y)
    >>> model.score(views, y) > model.score(views[:, :1], y)
    True
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit", "predict"])],
        "response": [StrOptions({"decision_function", "predict_proba", "feature"})],
        "reduce": [StrOptions({"mean", "sum"})],
        "train_views": [StrOptions({"all", "first"})],
    }

    def __init__(
        self,
        estimator: BaseEstimator,
        *,
        response: str = "decision_function",
        reduce: str = "mean",
        train_views: str = "all",
    ):
        self.estimator = estimator
        self.response = response
        self.reduce = reduce
        self.train_views = train_views

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y, sample_weight=None, **fit_params):
        """Fit the classifier on the views.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_views, n_features)
            Views; also (n_samples, n_features).
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, which each of their views gets.
        **fit_params : dict
            Metadata for `estimator`, by scikit-learn's metadata routing.

        Returns
        -------
        self : estimator
        """
        _raise_for_params(fit_params, self, "fit")
        with unchanged_on_error(self):
            views, missing = self._check(X, reset=True)
            y = check_labels(y, n_samples=len(views))
            y = np.array(y.tolist()) if y.dtype.kind == "O" else y
            self._check_response()
            if sample_weight is not None:
                fit_params["sample_weight"] = _check_sample_weight(sample_weight, y)
            if self.train_views == "first":
                views, missing = views[:, :1], missing[:, :1]
                self._check_first(missing)
            rows, sample = _real_rows(views, missing)
            repeated = _repeated(self._routed(fit_params), sample, len(views))
            self.estimator_ = clone(self.estimator).fit(rows, y[sample], **repeated)
            self.classes_ = self.estimator_.classes_
        return self

    def _check_response(self) -> None:
        if self.response == "feature" or hasattr(self.estimator, self.response):
            return
        other = {"decision_function": "predict_proba", "predict_proba": "decision_function"}
        raise ValueError(
            f"response={self.response!r} and {type(self.estimator).__name__} has no such method; "
            f"set response={other[self.response]!r} or 'feature'."
        )

    def _check_first(self, missing: np.ndarray) -> None:
        if missing.all(axis=1).any():
            row = int(np.flatnonzero(missing.all(axis=1))[0])
            raise ValueError(
                f"Input X contains NaN in the first view of sample {row}, which train_views="
                "'first' is fitted on; leave the sample out, or use train_views='all'."
            )

    def _routed(self, fit_params: dict) -> dict:
        if not _routing_enabled():
            return fit_params
        return process_routing(self, "fit", **fit_params).estimator.fit

    def _check(self, X: object, *, reset: bool) -> tuple[ArrayLike, np.ndarray]:
        """Views (n, V, d), of a float type to compute with, and which of them are missing."""
        if isinstance(X, TokenArray):
            X = np.where(True if X.mask is None else X.mask[..., None], np.asarray(X), np.nan)
        elif not hasattr(X, "shape"):
            X = np.asarray(X)
        if len(X.shape) != 3:
            views, restore = numpy_or_tensor(validate_vectors(self, X, reset=reset))
            return restore(views[:, None]), np.zeros((len(X), 1), dtype=bool)
        if 0 in X.shape:
            raise ValueError(
                f"Found array with shape {tuple(X.shape)} while a minimum of 1 sample, 1 view and "
                f"1 feature is required by {type(self).__name__}."
            )
        views, restore = numpy_or_tensor(X if isinstance(X, torch.Tensor) else _as_floats(X))
        missing = missing_views(views).cpu().numpy()
        if missing.all(axis=1).any():
            rows = np.flatnonzero(missing.all(axis=1))
            raise ValueError(
                f"Input X contains NaN in every view of sample {rows[0]} ({len(rows)} such "
                "samples), as those of an unreadable image; leave these samples out."
            )
        views = restore(views)
        # One view stands for all: the width is checked and remembered, and infinity refused.
        validate_vectors(self, _real_rows(views, missing)[0], reset=reset)
        return views, missing

    def predict(self, X) -> np.ndarray:
        """Return the class of the highest averaged response.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_views, n_features)
            Views; also (n_samples, n_features).

        Returns
        -------
        y : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        if self.response == "feature":
            return _host(self.estimator_.predict(self._mean_vectors(X)))
        scores = self._averaged(X, self.response)
        best = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[best]

    @available_if(_gives("decision_function"))
    def decision_function(self, X) -> np.ndarray:
        """Return the averaged (or summed) decisions.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_views, n_features)
            Views; also (n_samples, n_features).

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes) or (n_samples,)
        """
        check_is_fitted(self)
        if self.response == "feature":
            return _host(self.estimator_.decision_function(self._mean_vectors(X)))
        return self._averaged(X, "decision_function", total=self.reduce == "sum")

    @available_if(_gives("predict_proba"))
    def predict_proba(self, X) -> np.ndarray:
        """Return the averaged probabilities.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_views, n_features)
            Views; also (n_samples, n_features).

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        if self.response == "feature":
            return _host(self.estimator_.predict_proba(self._mean_vectors(X)))
        return self._averaged(X, "predict_proba")

    def _averaged(self, X: object, method: str, *, total: bool = False) -> np.ndarray:
        """Mean (or sum) over the views of a response to all of them, asked for in one call."""
        views, missing = self._check(X, reset=False)
        rows, sample = _real_rows(views, missing)
        responses = _host(getattr(self.estimator_, method)(rows))
        sums = np.zeros((len(views), *responses.shape[1:]), dtype=responses.dtype)
        np.add.at(sums, sample, responses)
        count = (~missing).sum(axis=1).reshape(-1, *[1] * (sums.ndim - 1))
        return sums if total else sums / count.astype(sums.dtype)

    def _mean_vectors(self, X: object) -> ArrayLike:
        views, missing = self._check(X, reset=False)
        tensor, restore = numpy_or_tensor(views)
        real = torch.from_numpy(~missing).to(tensor.device)
        sums = tensor.where(real[..., None], 0.0).sum(dim=1)
        return restore(sums if self.reduce == "sum" else sums / real.sum(dim=1, keepdim=True))

    def get_metadata_routing(self) -> MetadataRouter:
        """Say which metadata goes where.

        Returns
        -------
        routing : MetadataRouter
        """
        mapping = MethodMapping().add(caller="fit", callee="fit")
        router = MetadataRouter(owner=self)
        return router.add(estimator=self.estimator, method_mapping=mapping)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def _as_floats(X: object) -> np.ndarray:
    X = np.asarray(X)
    if X.dtype.kind not in "biuf":
        raise ValueError(f"X has dtype {X.dtype}; views are numbers.")
    return X if X.dtype.kind == "f" else X.astype(np.float64)


def _real_rows(views: ArrayLike, missing: np.ndarray) -> tuple[ArrayLike, np.ndarray]:
    """The views that are there, (n_rows, d), and the sample of each."""
    sample, view = np.nonzero(~missing)
    if not missing.any():
        return views.reshape(-1, views.shape[2]), sample
    if isinstance(views, torch.Tensor):
        index = (torch.from_numpy(part).to(views.device) for part in (sample, view))
        return views[tuple(index)], sample
    return views[sample, view], sample


def _repeated(params: Bunch | dict, sample: np.ndarray, n_samples: int) -> dict:
    """Metadata with what has one value per sample repeated for the views."""
    repeated = {}
    for name, value in params.items():
        sized = not isinstance(value, (str, bytes, dict)) and hasattr(value, "__len__")
        whole = sized and len(value) == n_samples
        repeated[name] = np.asarray(value)[sample] if whole else value
    return repeated


def _host(values: object) -> np.ndarray:
    return as_tensor(values).cpu().numpy() if isinstance(values, torch.Tensor) else values
