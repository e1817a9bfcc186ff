# SPDX-License-Identifier: BSD-3-Clause
"""Whitening: decorrelated features of unit variance, learned from moments.

The estimator keeps the exact moments of its rows and derives everything else from them, so it can
learn in parts, merge with another and forget rows; the matrix is solved for when it is needed.
"""

import warnings
from numbers import Integral, Real

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpool.preprocessing._kernels import (
    WHITENING_METHODS,
    WhiteningMap,
    apply_affine,
    l2_normalize,
    whitening_matrix,
)
from skpool.statistics import Covariance, RunningMoments, covariance_from_moments
from skpool.utils import ArrayLike, as_tensor, numpy_or_tensor, unchanged_on_error, validate_vectors

__all__ = ["Whitening"]


def _learns_from_moments(estimator: "Whitening") -> bool:
    """Whether rows can come and go after `fit`, or in parts."""
    if estimator.shrinkage == "ledoit_wolf" or estimator.solver == "svd":
        raise AttributeError(
            f"shrinkage={estimator.shrinkage!r} with solver={estimator.solver!r} needs all rows at "
            'once; call fit, or set shrinkage="oas" (or a number) and solver="auto".'
        )
    return True


class Whitening(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Decorrelate features and give them unit variance.

    With the covariance :math:`S = V \Lambda V^\top` of the training rows and their mean
    :math:`\mu`, rows become

    .. math:: z = (x - \mu) W, \qquad
        W = V (\Lambda + \epsilon \bar\lambda I)^{-p/2} \text{ or } W V^\top ,

    for "pca" and "zca" [1]_. A power p below 1 whitens partially; 0 only rotates.

    Parameters
    ----------
    n_components : int, float or None, default=None
        Leading components to keep: a number, or the share of the variance they must explain,
        above 0 and at most 1. None keeps all that the rank allows. The methods "zca" keep all
        features, which then span these components only. Not for "cholesky" or several groups.
    method : {"pca", "zca", "zca_cor", "pca_cor", "cholesky"}, default="pca"
        Principal components; the rotation nearest to the input; the two of them on the
        correlation matrix; or the triangular one, whose output j uses features up to j only. All
        are rotations of each other, so distances, cosines and linear classifiers after them agree
        unless components are cut or a later step acts feature by feature.
    power : float, default=1.0
        Share of the whitening, in the exponent; 1 only for "cholesky".
    shrinkage : float, {"oas", "ledoit_wolf"} or None, default=None
        Share of the mean variance mixed into the covariance, see
        :func:`~skpool.statistics.covariance_from_moments`. "ledoit_wolf" needs all rows at once,
        hence `fit`.
    eps : float, default=1e-6
        Added to the eigenvalues, as a share of their mean.
    center : bool, default=True
        Subtract the mean. The covariance is taken around the mean either way.
    n_groups : int, default=1
        Whiten this many consecutive groups of equally many features, each on its own.
    l2 : bool, default=False
        Scale rows to unit length afterwards, as a cosine needs.
    solver : {"auto", "cov", "svd"}, default="auto"
        Eigenvectors of the covariance, or singular vectors of the rows, which is cheaper where
        rows are fewer than features and gives the same. "svd" needs the rows, hence `fit`, and no
        shrinkage. "auto" takes it when it can and there are fewer rows than features.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
        Mean of the training rows.
    components_ : ndarray of shape (n_components, n_features)
        The transposed whitening matrix.
    eigenvalues_ : ndarray of shape (n_components,)
        Variances along the components before whitening, shrinkage included; of the correlation
        matrix for the methods "_cor"; group after group.
    covariance_ : ndarray of shape (n_features, n_features)
        Of the training rows with divisor n - 1, shrinkage included.
    shrinkage_ : float
        Share of the mean variance in `covariance_`.
    n_samples_seen_ : int
        Rows learned from.
    moments_ : RunningMoments
        Count, mean and scatter of these rows; everything above follows from it.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    sklearn.decomposition.PCA : ``whiten=True`` is ``Whitening(eps=0)``, up to signs.

    Notes
    -----
    `partial_fit` in any order and partition gives what one `fit` gives, to rounding. It only adds
    to the moments; the matrix is solved for when it is next used. Directions without variance
    (constant features, at most as many rows as features) are dropped, or set to 0 where the
    output keeps all features, with a warning. Fewer rows than features whiten onto a simplex: all
    training rows are equally far apart then, which is why shrinkage is proposed.

    Products of rows are taken in float64, since a whitening divides by the smallest of them.
    `transform` subtracts the mean before it multiplies, in the float type of X and where X lies;
    arrays and tensors come back as they came, half precision as float32. Cost: O(n d^2) for the
    moments, O(d^3) per solve, memory O(d^2).

    References
    ----------
    .. [1] A. Kessy, A. Lewin, K. Strimmer, Optimal Whitening and Decorrelation, 2018.
       <https://arxiv.org/abs/1512.00809>
    .. [2] J. Huang et al., WhiteningBERT: An Easy Unsupervised Sentence Embedding Approach, 2021.
       <https://arxiv.org/abs/2104.01767>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import Whitening
    >>> X = np.random.default_rng(0).normal(size=(100, 3)) @ [[1, 2, 0], [0, 1, 5], [3, 0, 1]]
    >>> Z = Whitening(eps=0.0).fit_transform(X)
    >>> bool(np.allclose(np.cov(Z.T), np.eye(3)))
    True
    """

    _parameter_constraints = {
        "n_components": [
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="right"),
            None,
        ],
        "method": [StrOptions(set(WHITENING_METHODS))],
        "power": [Interval(Real, 0, 1, closed="both")],
        "shrinkage": [
            StrOptions({"oas", "ledoit_wolf"}),
            Interval(Real, 0, 1, closed="both"),
            None,
        ],
        "eps": [Interval(Real, 0, None, closed="left")],
        "center": ["boolean"],
        "n_groups": [Interval(Integral, 1, None, closed="left")],
        "l2": ["boolean"],
        "solver": [StrOptions({"auto", "cov", "svd"})],
    }

    def __init__(
        self,
        n_components: int | float | None = None,
        *,
        method: str = "pca",
        power: float = 1.0,
        shrinkage: float | str | None = None,
        eps: float = 1e-6,
        center: bool = True,
        n_groups: int = 1,
        l2: bool = False,
        solver: str = "auto",
    ):
        self.n_components = n_components
        self.method = method
        self.power = power
        self.shrinkage = shrinkage
        self.eps = eps
        self.center = center
        self.n_groups = n_groups
        self.l2 = l2
        self.solver = solver

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "moments_")

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object = None) -> "Whitening":
        """Learn the whitening of X, forgetting what was learned before.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            At least two feature vectors.
        y : None
            Ignored.

        Returns
        -------
        self : Whitening
        """
        with unchanged_on_error(self):
            X = validate_vectors(self, X, min_samples=2)
            self._check_options(X.shape[1])
            self.moments_ = RunningMoments(product_dtype="float64").update(X)
            self._solution = self._solve(X)
        return self

    @available_if(_learns_from_moments)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: object = None) -> "Whitening":
        """Add rows to those learned from.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            One feature vector or more; two in all before anything can be transformed.
        y : None
            Ignored.

        Returns
        -------
        self : Whitening
        """
        with unchanged_on_error(self):
            first = not hasattr(self, "moments_")
            X = validate_vectors(self, X, reset=first)
            self._check_options(X.shape[1])
            held = RunningMoments(product_dtype="float64") if first else self.moments_.copy()
            self.moments_, self._solution = held.update(X), None
        return self

    @available_if(_learns_from_moments)
    def forget(self, X: ArrayLike) -> "Whitening":
        """Remove rows from those learned from.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Rows that were given to `fit` or `partial_fit`.

        Returns
        -------
        self : Whitening
        """
        check_is_fitted(self)
        X = validate_vectors(self, X, reset=False)
        self.moments_, self._solution = self.moments_.copy().downdate(X), None
        return self

    @available_if(_learns_from_moments)
    def merge(self, other: "Whitening") -> "Whitening":
        """Add the rows that another whitening learned from.

        Parameters
        ----------
        other : Whitening
            Fitted to as many features.

        Returns
        -------
        self : Whitening
        """
        check_is_fitted(self)
        if not isinstance(other, Whitening):
            raise TypeError(f"other must be a Whitening, got {type(other).__name__}.")
        check_is_fitted(other)
        self.moments_, self._solution = self.moments_ + other.moments_, None
        return self

    def _check_options(self, n_features: int) -> None:
        cuts = self.n_components is not None
        if cuts and (self.n_groups > 1 or self.method == "cholesky"):
            raise ValueError(
                f"n_components={self.n_components!r} is not defined for method={self.method!r} "
                f"with n_groups={self.n_groups}; set n_components=None, or take one group and "
                'method="pca" or "zca".'
            )
        if n_features % self.n_groups:
            raise ValueError(
                f"n_groups={self.n_groups} does not divide the {n_features} features of X."
            )
        if self.method == "cholesky" and self.power != 1:
            raise ValueError(
                f'power={self.power} is not defined for method="cholesky"; set power=1, or take '
                'method="pca" or "zca".'
            )
        if self.solver == "svd" and (self.shrinkage or self.method == "cholesky"):
            raise ValueError(
                'solver="svd" knows no direction outside the rows, which shrinkage and '
                'method="cholesky" need; set solver="auto".'
            )

    def _solve(self, X: ArrayLike | None = None) -> tuple[WhiteningMap, Covariance]:
        """Return the map, block-diagonal over the groups, and the covariance behind it."""
        n, d = self.moments_.n_samples, self.n_features_in_
        if n < 2:
            raise ValueError(
                f"Whitening holds n_samples={n:g} and needs at least 2; give more rows to "
                "partial_fit."
            )
        if not self.moments_.scatter_.any():
            raise ValueError("All rows of X are equal; a whitening needs rows that differ.")
        covariance = covariance_from_moments(self.moments_, shrinkage=self.shrinkage, ddof=1, X=X)
        width = d // self.n_groups
        rows = None
        can = X is not None and covariance.shrinkage == 0 and self.method != "cholesky"
        if can and (self.solver == "svd" or (self.solver == "auto" and n < width)):
            rows = as_tensor(X).cpu().double().numpy() - self.moments_.mean_
        maps = []
        for start in range(0, d, width):
            group = slice(start, start + width)
            maps.append(
                whitening_matrix(
                    covariance.matrix[group, group],
                    n_samples=n,
                    method=self.method,
                    n_components=self.n_components,
                    power=self.power,
                    eps=self.eps,
                    rows=None if rows is None else rows[:, group],
                )
            )
        self._warn_of_rank(n, d, sum(part.rank for part in maps))
        return _block_diagonal(maps), covariance

    def _warn_of_rank(self, n: float, d: int, rank: int) -> None:
        if rank < d and self.n_components is None:
            warnings.warn(
                f"The covariance of {n:g} samples in {d} features has rank {rank}: the directions "
                'without variance are left out; set shrinkage="oas" to keep all.',
                UserWarning,
                stacklevel=5,
            )

    @property
    def _solved(self) -> tuple[WhiteningMap, Covariance]:
        check_is_fitted(self)
        if self._solution is None:
            self._solution = self._solve()
        return self._solution

    @property
    def mean_(self) -> np.ndarray:
        """Mean of the training rows."""
        self._require("mean_")
        return self.moments_.mean_

    @property
    def components_(self) -> np.ndarray:
        """The transposed whitening matrix."""
        self._require("components_")
        return self._solved[0].forward.T

    @property
    def eigenvalues_(self) -> np.ndarray:
        """Variances along the components before whitening."""
        self._require("eigenvalues_")
        return self._solved[0].eigenvalues

    @property
    def covariance_(self) -> np.ndarray:
        """Covariance of the training rows, shrinkage included."""
        self._require("covariance_")
        return self._solved[1].matrix

    @property
    def shrinkage_(self) -> float:
        """Share of the mean variance in the covariance."""
        self._require("shrinkage_")
        return self._solved[1].shrinkage

    @property
    def n_samples_seen_(self) -> int:
        """Rows learned from."""
        self._require("n_samples_seen_")
        return round(self.moments_.n_samples)

    @property
    def _n_features_out(self) -> int:
        return self._solved[0].forward.shape[1]

    def _require(self, name: str) -> None:
        # Fitted attributes do not exist before fit: hasattr must say so.
        if not hasattr(self, "moments_"):
            raise AttributeError(f"This Whitening is not fitted yet, so it has no {name!r}.")

    def _refuse_l2(self, what: str) -> None:
        if self.l2:
            raise ValueError(
                f"{what} does not exist with l2=True, which divides every row by its own length; "
                "set l2=False and let an L2Normalizer follow."
            )

    def as_affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the map as a matrix and an offset, ``z = x @ A + b``.

        Returns
        -------
        A : ndarray of shape (n_features, n_components)
        b : ndarray of shape (n_components,)
        """
        check_is_fitted(self)
        self._refuse_l2("as_affine")
        A = self._solved[0].forward
        return A, -(self._shift() @ A)

    def _shift(self) -> np.ndarray:
        mean = self.moments_.mean_
        return mean if self.center else np.zeros_like(mean)

    def transform(self, X: ArrayLike) -> ArrayLike:
        """Whiten rows.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        Z : ndarray or tensor of shape (n_samples, n_components)
        """
        check_is_fitted(self)
        X = validate_vectors(self, X, reset=False)
        A = self._solved[0].forward
        narrow, restore = numpy_or_tensor(X[:1])
        Z = apply_affine(
            as_tensor(X),
            shift=self._shift(),
            matrix=A,
            offset=np.zeros(A.shape[1]),
            dtype=narrow.dtype,
        )
        return restore(l2_normalize(Z) if self.l2 else Z)

    def inverse_transform(self, X: ArrayLike) -> ArrayLike:
        """Map whitened rows back; directions that were left out come back as the mean.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_components)
            Whitened rows.

        Returns
        -------
        X_original : ndarray or tensor of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        self._refuse_l2("inverse_transform")
        B = self._solved[0].backward
        X = validate_vectors(_Width(len(B)), X, reset=False)
        narrow, restore = numpy_or_tensor(X[:1])
        back = apply_affine(
            as_tensor(X),
            shift=np.zeros(len(B)),
            matrix=B,
            offset=self._shift(),
            dtype=narrow.dtype,
        )
        return restore(back)


class _Width(BaseEstimator):
    """Stands for the whitened side in the check of its rows."""

    def __init__(self, n_features_in_: int):
        self.n_features_in_ = n_features_in_


def _block_diagonal(maps: list[WhiteningMap]) -> WhiteningMap:
    if len(maps) == 1:
        return maps[0]
    d, k = (sum(part.forward.shape[axis] for part in maps) for axis in (0, 1))
    forward, backward = np.zeros((d, k)), np.zeros((k, d))
    row = column = 0
    for part in maps:
        rows = slice(row, row := row + part.forward.shape[0])
        columns = slice(column, column := column + part.forward.shape[1])
        forward[rows, columns], backward[columns, rows] = part.forward, part.backward
    eigenvalues = np.concatenate([part.eigenvalues for part in maps])
    return WhiteningMap(forward, backward, eigenvalues, sum(part.rank for part in maps))
