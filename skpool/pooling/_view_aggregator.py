# SPDX-License-Identifier: BSD-3-Clause
"""ViewAggregator: one vector from the vectors of several views of a sample.

It follows test-time augmentation, whose result has the form of tokens with a view in place of a
token: the poolings' kernels and their base class serve, and a view that is missing is a token
under a False mask.
"""

from collections.abc import Callable
from functools import partial
from numbers import Real

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.pooling._base import BasePooling, Plan
from skpool.pooling._kernels import pool_gem, pool_max, pool_mean
from skpool.stores import TokenArray, validate_tokens
from skpool.utils import ArrayLike, unchanged_on_error, unit_rows, widened

__all__ = ["AGGREGATIONS", "ViewAggregator", "missing_views"]

Mask = torch.Tensor | None


def aggregate_median(views: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Median over the real views, the mean of the middle two where their number is even."""
    views = widened(views)
    if mask is None:
        mask = torch.ones(views.shape[:2], dtype=torch.bool, device=views.device)
    # Masked views sort behind all others.
    ordered = views.where(mask[..., None], torch.inf).sort(dim=1).values
    count = mask.sum(dim=1).clamp_min(1)
    rows = torch.arange(len(views), device=views.device)
    low, high = ordered[rows, (count - 1) // 2], ordered[rows, count // 2]
    return low + (high - low) / 2


def aggregate_l2mean(views: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Mean over the real views, brought to unit length."""
    return unit_rows(pool_mean(views, mask))


def aggregate_concat(views: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """The views side by side, first view first."""
    return widened(views).flatten(1)


AGGREGATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "concat": aggregate_concat,
    "gem": partial(pool_gem, negative="signed"),
    "l2mean": aggregate_l2mean,
    "max": pool_max,
    "mean": pool_mean,
    "median": aggregate_median,
}


def missing_views(X: ArrayLike) -> ArrayLike:
    """Tell which views hold a NaN, as the views of an unreadable image do.

    Parameters
    ----------
    X : ndarray or tensor of shape (n_samples, n_views, n_features)

    Returns
    -------
    missing : bool ndarray or tensor of shape (n_samples, n_views)
    """
    return (X != X).any(-1)


class ViewAggregator(BasePooling):
    r"""One vector from several views of a sample.

    Parameters
    ----------
    method : {"mean", "l2mean", "max", "median", "gem", "concat"}, default="mean"
        - "mean": :math:`z = \frac1V \sum_v x_v`, the usual choice.
        - "l2mean": the mean, scaled to unit length.
        - "max", "median": of every feature over the views.
        - "gem": the power mean of every feature over the views, with the sign kept:
          :math:`m = \frac1V \sum_v \mathrm{sign}(x_v) |x_v|^p`,
          :math:`z = \mathrm{sign}(m) |m|^{1/p}`; the mean for `p=1` [2]_.
        - "concat": the views side by side, of n_views * n_features values.
    p : float, default=3.0
        Exponent of "gem", above 0.
    normalize_views : bool, default=False
        Whether every view is scaled to unit length first; with "l2mean" this is the bidirectional
        mean feature normalisation of [1]_ for two views.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a view.
    n_views_ : int
        Number of views that `fit` saw; another number is refused by "concat" alone.

    See Also
    --------
    ViewAveragingClassifier : Averages decisions in place of features.
    skpool.extraction.TestTimeAugmentation : Makes the views of images.

    Notes
    -----
    A view that holds a NaN is missing: it is left out, and a sample without any other view is
    refused by name. "concat" has nothing to put in its place and refuses it. Vectors of shape
    (n_samples, n_features) count as one view. The order of the views matters to "concat" alone.

    Cost: O(n V d). Nothing is learned but the number of views. Half precision is widened to
    float32, and arrays and tensors come back as they came.

    References
    ----------
    .. [1] T. T. Nguyen et al., CORE-ReID: Comprehensive Optimization and Refinement through
       Ensemble fusion in Domain Adaptation for person re-identification, 2024.
    .. [2] S. Shao et al., Global Features are All You Need for Image Retrieval and Reranking,
       ICCV 2023. <https://arxiv.org/abs/2308.06954>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import ViewAggregator
    >>> views = np.array([[[1.0, 4.0], [3.0, 0.0]]])
    >>> ViewAggregator().fit_transform(views)
    array([[2., 2.]])
    >>> ViewAggregator("concat").fit_transform(views)
    array([[1., 4., 3., 0.]])
    """

    _parameter_constraints: dict = {
        "method": [StrOptions(set(AGGREGATIONS))],
        "p": [Interval(Real, 0, None, closed="neither")],
        "normalize_views": ["boolean"],
    }

    # What the base class would ask a user: no view is a prefix token, and none may be lacking.
    scope = "all"
    empty = "raise"
    batch_size = 256

    def __init__(self, method: str = "mean", *, p: float = 3.0, normalize_views: bool = False):
        self.method = method
        self.p = p
        self.normalize_views = normalize_views

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the views and remember their number and width.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_views, n_features)
            Also a TokenArray, and (n_samples, n_features), which counts as one view.
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
        """
        with unchanged_on_error(self):
            tokens = validate_tokens(self, _masked(X), reset=True)
            self.n_views_ = tokens.shape[1]
            self._plan(tokens)
        return self

    def transform(self, X) -> ArrayLike:
        """Make one vector of the views of every sample.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_views, n_features)
            As in `fit`; of any number of views, unless ``method="concat"``.

        Returns
        -------
        vectors : ndarray or tensor of shape (n_samples, n_features_out)
        """
        return super().transform(_masked(X))

    def _plan(self, tokens: TokenArray) -> Plan:
        """Check the mask and the number of views against the method."""
        n_views = getattr(self, "n_views_", tokens.shape[1])
        if self.method == "concat" and n_views != tokens.shape[1]:
            raise ValueError(
                f"X has {tokens.shape[1]} views and method='concat' was fitted on {n_views}; give "
                "as many, or use method='mean', which takes any number."
            )
        mask = tokens.mask
        if mask is not None and not mask.any(axis=1).all():
            rows = np.flatnonzero(~mask.any(axis=1))
            raise ValueError(
                f"Input X contains NaN in every view of sample {rows[0]} ({len(rows)} such "
                "samples), as those of an unreadable image; leave these samples out."
            )
        if mask is not None and self.method == "concat" and not mask.all():
            row = int(np.flatnonzero(~mask.all(axis=1))[0])
            raise ValueError(
                f"Input X contains NaN in a view of sample {row}, and method='concat' needs all "
                "views; leave the sample out, or use method='mean'."
            )
        return super()._plan(tokens)

    def _pool(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        if self.normalize_views:
            tokens = unit_rows(widened(tokens))
        options = {"p": self.p} if self.method == "gem" else {}
        return AGGREGATIONS[self.method](tokens, mask, **options)

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_ * (self.n_views_ if self.method == "concat" else 1)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # `fit` remembers the number of views, for names and for "concat", and nothing else.
        tags.requires_fit = False
        return tags


def _masked(X: object) -> object:
    """Plain views with missing ones under a False mask; everything else as it is."""
    if isinstance(X, (list, tuple)) and len(X) and np.ndim(X[0]) == 2:
        shapes = {np.shape(sample) for sample in X}
        if len(shapes) > 1:
            return X
        X = torch.stack(list(X)) if isinstance(X[0], torch.Tensor) else np.stack(X)
    elif isinstance(X, (list, tuple)):
        X = np.asarray(X)
    if getattr(X, "ndim", 0) != 3 or isinstance(X, TokenArray) or 0 in X.shape:
        return X
    tensor = X if isinstance(X, torch.Tensor) else np.asarray(X)
    missing = missing_views(tensor) if _may_hold_nan(tensor) else None
    if missing is None or not bool(missing.any()):
        return X
    return TokenArray.from_array(tensor, mask=~missing)


def _may_hold_nan(X: ArrayLike) -> bool:
    return X.is_floating_point() if isinstance(X, torch.Tensor) else X.dtype.kind == "f"
