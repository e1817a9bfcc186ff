# SPDX-License-Identifier: BSD-3-Clause
"""WhiteningColoring: rows of one domain with the mean and covariance of another.

A classifier learns on one domain (the source) and is asked about another (the target), whose
features have moved. Both domains are known by their moments, and what maps one Gaussian onto the
other maps the rows: whitened by the target's covariance, coloured by the source's.
"""

import warnings
from numbers import Integral, Real

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, _fit_context
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.preprocessing._whitening_kernels import Spectrum, coloring_matrix, spectrum_of
from skpool.statistics import RunningMoments, covariance_from_moments
from skpool.utils import (
    ArrayLike,
    apply_affine,
    as_tensor,
    numpy_or_tensor,
    unchanged_on_error,
    validate_vectors,
)

__all__ = ["WhiteningColoring"]


class WhiteningColoring(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    r"""Give the rows of one domain the mean and covariance of another (CORAL).

    With means :math:`\mu_s, \mu_t` and covariances :math:`S_s, S_t` of source and target, rows of
    the target become

    .. math:: z = (x - \mu_t) A + \mu_s, \qquad A = S_t^{-1/2} S_s^{1/2},

    correlation alignment [1]_; or, with ``method="ot"``, the symmetric matrix
    :math:`A = S_t^{-1/2} (S_t^{1/2} S_s S_t^{1/2})^{1/2} S_t^{-1/2}`, which does the same and moves
    rows least: the optimal transport between two Gaussians.

    Parameters
    ----------
    n_groups : int, default=1
        Align this many consecutive groups of equally many features, each on its own [2]_. With as
        many groups as features every feature is standardised again.
    method : {"zca", "ot"}, default="zca"
        Which of the matrices.
    shrinkage : float, "oas" or None, default=1e-3
        Share of the mean variance mixed into both covariances, see
        :func:`~skpool.statistics.covariance_from_moments`. None is 0.
    direction : {"target_to_source", "source_to_target"}, default="target_to_source"
        Which rows `transform` takes: those of the target, for a classifier that was fitted to the
        source; or those of the source, to fit a classifier that is asked about the target.

    Attributes
    ----------
    source_mean_, target_mean_ : ndarray of shape (n_features,)
        Means; the target's after `adapt`.
    matrix_ : ndarray of shape (n_features, n_features)
        The matrix A, after `adapt`.
    source_moments_, target_moments_ : RunningMoments
        Count, mean and scatter of both.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    GroupStandardScaler : Several known domains at once, feature by feature.
    Whitening : Decorrelates one domain.

    Notes
    -----
    `fit` learns the source, `adapt` the target, as often as there are new targets; `transform`
    before `adapt` raises `NotFittedError`. In a pipeline, which calls `fit_transform`, the rows of
    the source are handed on as they are, since they have the statistics of the source already::

        model = make_pipeline(WhiteningColoring(), classifier).fit(X_source, y_source)
        model[0].adapt(X_target)
        model.predict(X_target)

    With ``direction="source_to_target"``, `fit_transform` fits, and needs a target too: call `fit`,
    `adapt` and `transform`.

    Shrinkage is in both covariances, so the result has the source's covariance exactly only
    without it. A target of fewer rows than features needs it: else directions without variance
    in the target stay without, with a warning. Labels play no part, so classes that are more
    frequent in one domain than in the other are aligned away with it.

    Cost: O(n d^2) for the moments, O(d^3) to solve, memory O(d^2). Arrays and tensors come back
    as they came, half precision as float32.

    References
    ----------
    .. [1] B. Sun, J. Feng, K. Saenko, Return of Frustratingly Easy Domain Adaptation, AAAI 2016.
       <https://arxiv.org/abs/1511.05547>
    .. [2] W. Cho, S. Choi, D. Park, I. Shin, J. Choo, Image-to-Image Translation via Group-wise
       Deep Whitening-and-Coloring Transformation, CVPR 2019. <https://arxiv.org/abs/1812.09912>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import WhiteningColoring
    >>> rng = np.random.default_rng(0)
    >>> source, target = rng.normal(size=(50, 3)), 5 * rng.normal(size=(40, 3)) + 7
    >>> Z = WhiteningColoring(shrinkage=None).fit(source).adapt(target).transform(target)
    >>> bool(np.allclose(np.cov(Z.T), np.cov(source.T)))
    True
    """

    _parameter_constraints: dict = {
        "n_groups": [Interval(Integral, 1, None, closed="left")],
        "method": [StrOptions({"zca", "ot"})],
        "shrinkage": [StrOptions({"oas"}), Interval(Real, 0, 1, closed="both"), None],
        "direction": [StrOptions({"target_to_source", "source_to_target"})],
    }

    def __init__(
        self,
        n_groups: int = 1,
        *,
        method: str = "zca",
        shrinkage: float | str | None = 1e-3,
        direction: str = "target_to_source",
    ):
        self.n_groups = n_groups
        self.method = method
        self.shrinkage = shrinkage
        self.direction = direction

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "source_moments_")

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object = None) -> "WhiteningColoring":
        """Learn the source, forgetting what was learned before, the target too.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            At least two rows of the source.
        y : ignored
            Present for the API.

        Returns
        -------
        self : WhiteningColoring
        """
        with unchanged_on_error(self):
            moments = self._moments_of(X, reset=True)
            _check_two(moments, "source")
            for name in ("target_moments_", "matrix_"):
                vars(self).pop(name, None)
            self.source_moments_ = moments
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: object = None) -> "WhiteningColoring":
        """Add rows of the source to those learned from.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Rows of the source; two in all before a target can be adapted to.
        y : ignored
            Present for the API.

        Returns
        -------
        self : WhiteningColoring
            If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            first = not hasattr(self, "source_moments_")
            new = self._moments_of(X, reset=first)
            self.source_moments_ = new if first else self.source_moments_ + new
            if hasattr(self, "target_moments_"):
                self._solve()
        return self

    def adapt(self, X: ArrayLike) -> "WhiteningColoring":
        """Learn the target, forgetting an earlier one.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            At least two rows of the target.

        Returns
        -------
        self : WhiteningColoring
            If the call fails, the estimator stays as it was.
        """
        check_is_fitted(self)
        with unchanged_on_error(self):
            self._validate_params()
            self.target_moments_ = self._moments_of(X, reset=False)
            _check_two(self.target_moments_, "target")
            self._solve()
        return self

    def fit_transform(self, X: ArrayLike, y: object = None) -> ArrayLike:
        """Learn the source and return its rows, which have the source's statistics already.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Rows of the source.
        y : ignored
            Present for the API.

        Returns
        -------
        Z : ndarray or tensor of shape (n_samples, n_features)
            X, half precision as float32.
        """
        self.fit(X)
        if self.direction == "source_to_target":
            return self.transform(X)
        rows, restore = numpy_or_tensor(validate_vectors(self, X, reset=False))
        return restore(rows)

    def transform(self, X: ArrayLike) -> ArrayLike:
        """Give rows of one domain the statistics of the other.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Rows of the target; of the source with ``direction="source_to_target"``.

        Returns
        -------
        Z : ndarray or tensor of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        if not hasattr(self, "matrix_"):
            raise NotFittedError(
                "This WhiteningColoring knows the source and no target; call adapt(X_target) "
                "before transform."
            )
        X = validate_vectors(self, X, reset=False)
        narrow, restore = numpy_or_tensor(X[:1])
        moving, fixed = self.target_mean_, self.source_mean_
        if self.direction == "source_to_target":
            moving, fixed = fixed, moving
        Z = apply_affine(
            as_tensor(X), shift=moving, matrix=self.matrix_, offset=fixed, dtype=narrow.dtype
        )
        return restore(Z)

    def _moments_of(self, X: ArrayLike, *, reset: bool) -> RunningMoments:
        X = validate_vectors(self, X, reset=reset)
        if X.shape[1] % self.n_groups:
            raise ValueError(
                f"n_groups={self.n_groups} does not divide the {X.shape[1]} features of X."
            )
        return RunningMoments(product_dtype="float64").update(X)

    @property
    def source_mean_(self) -> np.ndarray:
        """Mean of the source."""
        return _mean_of(self, "source")

    @property
    def target_mean_(self) -> np.ndarray:
        """Mean of the target."""
        return _mean_of(self, "target")

    def _solve(self) -> None:
        source, target = self.source_moments_, self.target_moments_
        _check_two(source, "source")
        back = self.direction == "source_to_target"
        moving, fixed = (source, target) if back else (target, source)
        d = self.n_features_in_
        matrix, rank = np.zeros((d, d)), 0
        for start in range(0, d, d // self.n_groups):
            group = slice(start, start + d // self.n_groups)
            spectrum = self._spectrum(moving, group)
            rank += spectrum.rank(spectrum.values)
            matrix[group, group] = coloring_matrix(
                spectrum, self._spectrum(fixed, group), method=self.method
            )
        if rank < d:
            warnings.warn(
                f"The covariance of {moving.n_samples:g} rows of the "
                f"{'source' if back else 'target'} in {d} features has rank {rank}: directions "
                "without variance stay without; set shrinkage=1e-3 or more.",
                UserWarning,
                stacklevel=3,
            )
        self.matrix_ = matrix

    def _spectrum(self, moments: RunningMoments, group: slice) -> Spectrum:
        covariance = covariance_from_moments(moments, shrinkage=self.shrinkage, ddof=1).matrix
        return spectrum_of(covariance[group, group], n_samples=moments.n_samples)


def _mean_of(estimator: WhiteningColoring, domain: str) -> np.ndarray:
    moments = vars(estimator).get(f"{domain}_moments_")
    if moments is None:
        raise AttributeError(f"This WhiteningColoring knows no {domain} yet.")
    return moments.mean_


def _check_two(moments: RunningMoments, domain: str) -> None:
    if moments.n_samples < 2:
        raise ValueError(
            f"The {domain} has n_samples={moments.n_samples:g}, and a covariance needs at least 2; "
            "give more rows."
        )
