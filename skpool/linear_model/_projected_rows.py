# SPDX-License-Identifier: BSD-3-Clause
"""What the classifiers share that learn random features of the rows in place of the rows.

The features are made block by block and never stored; what is kept are the moments of them. So the
projection is a part of the state: it is drawn once, goes where the moments go, and moments of two
projections do not mix.
"""

from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from skpool._config import get_config
from skpool.base import MomentsMixin
from skpool.preprocessing import RandomFeatures
from skpool.utils import ArrayLike, as_tensor, unchanged_on_error, widened

__all__ = ["PROJECTION_CONSTRAINTS", "ProjectedRowsMixin"]

PROJECTION_CONSTRAINTS: dict = {
    "n_components": [Interval(Integral, 1, None, closed="left")],
    "activation": [StrOptions({"relu", "erf", "cos", "sign"}), None],
    "bias": ["boolean"],
    "random_state": ["random_state"],
}


# Rows further than so many standard deviations from the origin are projected in float64: of the
# seven digits of float32, their differences would keep fewer than five.
_FAR = 100.0


class ProjectedRowsMixin(MomentsMixin):
    """Mixin for classifiers that follow from the moments of random features.

    Attributes
    ----------
    seed_ : int
        What the projection is made from.
    projection_ : RandomFeatures
        Maps rows to what the moments are taken of.

    Notes
    -----
    The parameters are `n_components`, `activation`, `bias` and `random_state`. A subclass that can
    do without a projection says so by `_projects`. Rows of narrower types are projected in float64
    where they are far from the origin for their spread.
    """

    def fit_moments(self, moments: Any, *, n_features: int | None = None) -> Self:
        """Learn from moments of random features that were computed elsewhere.

        Parameters
        ----------
        moments : ClassMoments
            Of ``RandomFeatures(n_components, activation=activation, bias=bias,
            random_state=random_state)`` of the rows; not changed.
        n_features : int, default=None
            Features of a row before the projection, which moments do not tell; None for those
            known from an earlier fit.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        if not self._projects():
            return super().fit_moments(moments)
        width = getattr(self, "n_features_in_", None) if n_features is None else n_features
        if width is None:
            raise ValueError(
                "n_features is not known; give the number of features of a row before the "
                "projection."
            )
        with unchanged_on_error(self):
            self.n_features_in_ = width
            self._draw(np.zeros((1, width)))
            super().fit_moments(moments)
            if self.n_features_in_ != self.n_components:
                raise ValueError(
                    f"moments hold {self.n_features_in_} features, but "
                    f"n_components={self.n_components}; give moments of the random features."
                )
            self.n_features_in_ = width
        return self

    def _projects(self) -> bool:
        """Whether rows are projected at all."""
        return True

    def _projection(self, n_components: int) -> RandomFeatures:
        """The first components of the projection, or all; not fitted."""
        projection = RandomFeatures(
            n_components,
            activation=self.activation,
            bias=self.bias,
            random_state=self.seed_,
        )
        return projection.set_output(transform="default")

    def _draw(self, X: ArrayLike) -> None:
        given = self.random_state
        is_seed = isinstance(given, Integral)
        self.seed_ = int(given if is_seed else check_random_state(given).randint(2**31 - 1))
        self.projection_ = self._projection(self.n_components).fit(X)

    def _reset(self) -> None:
        super()._reset()
        for name in ("seed_", "projection_"):
            vars(self).pop(name, None)

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        self._check_memory(X, y)
        if self._projects() and not hasattr(self, "projection_"):
            self._draw(X)
        super()._update(X, y, sample_weight)

    def _check_memory(self, X: ArrayLike, y: np.ndarray) -> None:
        """Refuse more products of features than may be held, before they are computed."""
        moments = self.moments_
        matrices = 1
        if moments.scatter == "per_class":
            matrices = len(np.union1d(moments.classes_, y) if len(moments.classes_) else set(y))
        width = self.n_components if self._projects() else X.shape[1]
        needed, limit = 8 * matrices * width**2, get_config()["max_array_bytes"]
        if needed > limit:
            per_class = f" of {matrices} classes" if matrices > 1 else ""
            remedy = "n_components" if self._projects() else "features"
            raise ValueError(
                f"The products of {width} features{per_class} take {needed / 1e9:.3g} GB, above "
                f"the limit of {limit / 1e9:.3g} GB; take fewer {remedy}, or raise the limit with "
                "skpool.set_config(max_array_bytes=...)."
            )

    def _prepared(self, X: ArrayLike) -> ArrayLike:
        return self._features(X, self.projection_) if self._projects() else X

    def _features(self, X: ArrayLike, projection: RandomFeatures) -> ArrayLike:
        """Random features of rows, in float64 where float32 would lose the rows in their offset."""
        rows = as_tensor(X)
        if rows.dtype != torch.float64 and rows.device.type != "mps" and self._is_far(rows):
            rows = rows.double()
        return projection.transform(rows)

    def _is_far(self, rows: torch.Tensor) -> bool:
        """Whether rows, or features known of a row alone, are much smaller than their mean."""
        if len(rows) > 1:
            variances, means = torch.var_mean(widened(rows), dim=0, correction=0)
            spread, size = (float(part.double().sum()) for part in (variances, means.square()))
            return size > _FAR**2 * spread
        means, counts = self.moments_.means_, self.moments_.counts_
        if len(counts) < 2:
            return True
        center = np.average(means, axis=0, weights=counts)
        spread = np.average(np.square(means - center).sum(axis=1), weights=counts)
        return bool(np.square(center).sum() > _FAR**2 * spread)

    def _prepared_row_bytes(self) -> int:
        # In float64, the widest that they can be.
        return 8 * self.n_components if self._projects() else 0

    def _merge(self, other: Self) -> None:
        if self._projects():
            ours, theirs = (one.projection_.get_params() for one in (self, other))
            differing = [name for name in ours if ours[name] != theirs[name]]
            if differing:
                name = differing[0]
                raise ValueError(
                    f"other has random features of {name}={theirs[name]!r} and this estimator of "
                    f"{ours[name]!r}; merge estimators of one projection."
                )
        super()._merge(other)

    def _check_maps(self) -> bool:
        """Raise AttributeError where what was learned cannot be mapped."""
        if self._projects():
            raise AttributeError(
                "The random features of mapped rows do not follow from those of the rows; fit on "
                "the mapped rows."
            )
        return True
