# SPDX-License-Identifier: BSD-3-Clause
"""Whitening: decorrelated features of unit variance, learned from moments.

The estimator keeps the exact moments of its rows and derives everything else from them, so it can
learn in parts, merge with another and forget rows; the matrix is solved for when it is needed. The
decomposition is kept beside the moments, and other numbers of components are cut from it.
"""

import copy
import warnings
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, _fit_context
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpool.preprocessing._base import is_tokens, rows_of
from skpool.preprocessing._kernels import l2_normalize
from skpool.preprocessing._moment_map import BaseMomentMap
from skpool.preprocessing._whitening_kernels import (
    WHITENING_METHODS,
    Spectrum,
    WhiteningMap,
    block_diagonal,
    check_n_components,
    spectrum_of,
    whitening_map,
)
from skpool.statistics import ClassMoments, RunningMoments, covariance_from_moments
from skpool.stores import TokenArray
from skpool.utils import (
    ArrayLike,
    apply_affine,
    as_tensor,
    numpy_or_tensor,
    unchanged_on_error,
    validate_vectors,
)

__all__ = ["Whitening"]

# From so many rows on, float32 rows are multiplied in float32, in blocks: their rounding falls
# with the root of their number, and float64 takes twice the time.
_FLOAT32_ROWS = 65_536
# From so many features on, fewer rows than features keep no products of features, which would
# take more memory than all else and which nothing needs as long as the rows are at hand.
_WIDE = 4096
# Parameters that a map is made for; the others act in `transform`.
_OPTIONS = ("n_components", "method", "power", "shrinkage", "eps", "n_groups", "solver")


def _learns_from_moments(estimator: "Whitening") -> bool:
    estimator._refuse_parts()
    return True


@dataclass(frozen=True)
class _Solution:
    """The map in use, and what other maps of the same moments can be made from."""

    map: WhiteningMap
    options: dict[str, tuple]  # the parameters of the map, with their types: 1 is not 1.0
    share: float  # of the mean variance in the covariance
    spectra: dict[str, list[Spectrum]]  # of the groups, by what they depend on


class Whitening(ClassNamePrefixFeaturesOutMixin, BaseMomentMap):
    r"""Decorrelate features and give them unit variance.

    With the covariance :math:`S = V \Lambda V^\top` of the training rows and their mean
    :math:`\mu`, rows become

    .. math:: z = (x - \mu) W, \qquad
        W = V (\Lambda + \epsilon \bar\lambda I)^{-p/2} \text{ or } W V^\top ,

    for "pca" and "zca" [1]_. A power p below 1 whitens partially; 0 only rotates.

    Parameters
    ----------
    n_components : int, float, str or None, default=None
        Leading components to keep: a number, or the share of the variance they must explain,
        above 0 and at most 1. Text such as "auto256" keeps that many where there are as many, and
        never more than ``min(n_samples, n_features) - 1`` or the rank, where a number is refused:
        for searches, whose folds are smaller than the data. None keeps all that the rank allows.
        The methods "zca" keep all features, which then span these components only. Not for
        "cholesky" or several groups.
    method : {"pca", "zca", "zca_cor", "pca_cor", "cholesky"}, default="pca"
        Principal components; the rotation nearest to the input; the two of them on the
        correlation matrix; or the triangular one, whose output j uses features up to j only. All
        are rotations of each other, so distances, cosines and linear classifiers after them agree
        unless components are cut or a later step acts feature by feature.
    power : float, default=1.0
        Share of the whitening, in the exponent; 1 only for "cholesky".
    shrinkage : float, {"oas", "ledoit_wolf"} or None, default=None
        Share of the mean variance mixed into the covariance, see
        :func:`~skpool.statistics.covariance_from_moments`. "ledoit_wolf" keeps more sums of the
        rows, so it must be set when rows are learned.
    eps : float, default=1e-6
        Added to the eigenvalues, as a share of their mean.
    center : bool, default=True
        Subtract the mean. The covariance is taken around the mean either way.
    n_groups : int, default=1
        Whiten this many consecutive groups of equally many features, each on its own.
    l2 : bool, default=False
        Scale rows to unit length afterwards, as a cosine needs.
    solver : {"auto", "cov", "svd", "gram"}, default="auto"
        Eigenvectors of the covariance; or singular vectors of the rows; or eigenvectors of the
        products between rows. All give the same; the latter two are cheaper where rows are fewer
        than features, need the rows, hence `fit`, and no shrinkage. "gram" is two to three times
        as fast as "svd", which is more exact in directions of little variance. "auto" is "gram"
        when it can be and there are fewer rows than features, else "cov".

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
    LearnedWhitening : Whitens the differences of matching rows, learned from labels or pairs.
    sklearn.decomposition.PCA : ``whiten=True`` is ``Whitening(eps=0)``, up to signs.

    Notes
    -----
    `partial_fit` in any order and partition gives what one `fit` gives, to rounding. It only adds
    to the moments; the matrix is solved for when it is next used. Directions without variance
    (constant features, at most as many rows as features) are dropped, or set to 0 where the
    output keeps all features, with a warning. Fewer rows than features whiten onto a simplex: all
    training rows are equally far apart then, which is why shrinkage is proposed.

    Where 4,096 features or more outnumber the rows of a `fit`, their covariance, the largest thing
    by far, is neither computed nor kept: ``solver="cov"`` has it, for `partial_fit` after `fit` and
    for shrinkage set later.

    Parameters set after `fit` are followed when the map is next used. Only another shrinkage of
    the methods "_cor", another `n_groups`, or the change to or from the methods "_cor" needs
    another decomposition; see also `truncated`. Decompositions are remembered beyond that, in all
    at most 192 MiB of them in a process, so a grid search over `n_components`, `power`, `eps` or
    `shrinkage` decomposes once per fold; what is remembered is what would be computed.

    All methods of full rank are rotations of each other, so a search over `method` finds
    differences only together with `n_components`, `n_groups`, or a later step that acts feature by
    feature. An exponent of the eigenvalues themselves, as in some retrieval codes, is half of
    `power`. Codes that whiten the very rows they are tested on do ``fit_transform(queries)``.
    Tokens are whitened one by one.

    Products of rows are taken in float64, since a whitening divides by the smallest of them; but
    65,536 rows or more of float32 at once (of more than 256 features) in float32, in blocks that
    are added up in float64, which moves variances by about 1e-8 of their mean. `transform`
    subtracts the mean before it multiplies, in the float type of X and where X lies; arrays and
    tensors come back as they came, half precision as float32. Cost: O(n d^2) for the moments,
    O(d^3) per decomposition, memory O(d^2) beside X.

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
            str,
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
        "solver": [StrOptions({"auto", "cov", "svd", "gram"})],
    }

    def __init__(
        self,
        n_components: int | float | str | None = None,
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

    @available_if(_learns_from_moments)
    @_fit_context(prefer_skip_nested_validation=True)
    def fit_moments(self, moments: RunningMoments | ClassMoments) -> "Whitening":
        """Learn from the moments of rows, forgetting what was learned before.

        Parameters
        ----------
        moments : RunningMoments or ClassMoments
            Of at least two rows, with their full scatter; labels play no part.

        Returns
        -------
        self : Whitening
            As `fit` on the rows behind the moments.
        """
        with unchanged_on_error(self):
            if isinstance(moments, ClassMoments):
                moments = RunningMoments.of_classes(moments)
            if not isinstance(moments, RunningMoments):
                raise TypeError(
                    "moments must be RunningMoments or ClassMoments, got "
                    f"{type(moments).__name__}; use fit for rows."
                )
            if moments.scatter != "full" or moments.n_features_in_ is None:
                raise ValueError(
                    f"A whitening needs moments with their full scatter, got {moments!r}; build "
                    'them with RunningMoments("full") or ClassMoments("shared").'
                )
            self.n_features_in_ = moments.n_features_in_
            vars(self).pop("feature_names_in_", None)
            self.moments_, self._solution = moments.copy(), None
            self._solution = self._solve_now()
        return self

    def truncated(self, n_components: int | float | str | None) -> "Whitening":
        """Return a fitted whitening with another number of components, from what was solved.

        Parameters
        ----------
        n_components : int, float, str or None
            As the parameter.

        Returns
        -------
        other : Whitening
            Fitted to the same rows; it shares the decomposition and goes its own way from here.
        """
        other = copy.copy(self)
        other.n_components = n_components
        other._validate_params()
        check_is_fitted(other)
        other._solved  # noqa: B018 - what cannot be cut is refused here
        return other

    def _validate_params(self) -> None:
        super()._validate_params()
        check_n_components(self.n_components)

    def _check_parameters(self, n_features: int) -> None:
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
        if self.solver in ("svd", "gram") and (self.shrinkage or self.method == "cholesky"):
            raise ValueError(
                f'solver="{self.solver}" knows no direction outside the rows, which shrinkage and '
                'method="cholesky" need; set solver="auto".'
            )

    def _refuse_parts(self) -> None:
        if self.solver in ("svd", "gram"):
            raise AttributeError(
                f'solver={self.solver!r} needs all rows at once; call fit, or set solver="auto".'
            )

    # Learning: moments, then the decomposition of their covariance, then the map.

    def _checked_to_learn(self, X: object, *, reset: bool) -> ArrayLike | TokenArray:
        if is_tokens(X):
            return self._checked(X, reset=reset)
        # The moments of rows show NaN, without another read of the rows.
        return validate_vectors(self, X, reset=reset, finite=False)

    def _moments_of(self, X: ArrayLike | TokenArray, scatter: str = "full") -> RunningMoments:
        lazy = isinstance(X, TokenArray)
        many = not lazy and len(X) >= _FLOAT32_ROWS
        moments = RunningMoments(
            scatter,
            product_dtype="auto" if many else "float64",
            fourth_order=self.shrinkage == "ledoit_wolf",
        )
        for rows in rows_of(X) if lazy else [X]:
            moments.update(rows)
        return moments

    def _rows_suffice(self, n: int, d: int) -> bool:
        """Whether the rows of one fit say all, at a fraction of the cost of their covariance."""
        apart = self.n_groups == 1 and self.method != "cholesky" and not self.shrinkage
        return apart and self.solver != "cov" and d >= _WIDE and n < d

    def _check_more(self, X: ArrayLike | TokenArray) -> None:
        if self.moments_.scatter == "diag":
            raise ValueError(
                f"This whitening learned {self.n_samples_seen_} samples of {self.n_features_in_} "
                'features at once, without their covariance; set solver="cov" and fit again to '
                "learn in parts."
            )

    def _learn(self, X: ArrayLike | TokenArray) -> None:
        lean = not isinstance(X, TokenArray) and self._rows_suffice(*X.shape)
        self._solution = None
        self.moments_ = self._moments_of(X, "diag" if lean else "full")
        self._solution = self._solve_now(X)

    @property
    def _solved(self) -> _Solution:
        check_is_fitted(self)
        if self._solution is None or self._solution.options != self._options():
            self._validate_params()
            self._check_parameters(self.n_features_in_)
            self._solution = self._solve_now()
        return self._solution

    def _options(self) -> dict[str, tuple]:
        values = {name: getattr(self, name) for name in _OPTIONS}
        return {name: (type(value).__name__, value) for name, value in values.items()}

    def _solve(self, X: ArrayLike | TokenArray | None) -> _Solution:
        if not self.moments_.scatter_.any():
            raise ValueError("All rows of X are equal; a whitening needs rows that differ.")
        # Of the same moments with other parameters, or None.
        held, options = self._solution, self._options()
        same = held is not None and held.options["shrinkage"] == options["shrinkage"]
        share = held.share if same else self._share()
        spectra = {} if held is None else held.spectra
        key = self._key(share, X, spectra)
        # By text, which every store of estimators takes for a key.
        if str(key) not in spectra:
            spectra = spectra | {str(key): self._decompose(*key, X)}
        whitening = block_diagonal(self._maps(spectra[str(key)], share))
        if held is None:
            self._warn_of_rank(whitening.rank)
        return _Solution(whitening, options, share, spectra)

    def _share(self) -> float:
        if not self.shrinkage:
            return 0.0
        if self.shrinkage == "ledoit_wolf" and not self.moments_.fourth_order:
            raise ValueError(
                'shrinkage="ledoit_wolf" must be set before rows are learned; fit again, or set '
                '"oas".'
            )
        return covariance_from_moments(self.moments_, shrinkage=self.shrinkage).shrinkage

    def _key(
        self, share: float, X: ArrayLike | TokenArray | None, spectra: dict[str, object]
    ) -> tuple:
        """What a decomposition depends on; eigenvectors do not depend on the shrinkage."""
        correlation = self.method.endswith("_cor")
        key = (self.n_groups, correlation, share if correlation else 0.0)
        if self.solver != "auto":
            return (*key, self.solver)
        if share > 0 or self.method == "cholesky":
            # These need the directions without variance too.
            return (*key, "cov")
        few = X is not None and self.moments_.n_samples < self.n_features_in_ // self.n_groups
        return (*key, "gram" if few or str((*key, "gram")) in spectra else "cov")

    def _groups(self, n_groups: int) -> list[slice]:
        width = self.n_features_in_ // n_groups
        return [slice(i * width, (i + 1) * width) for i in range(n_groups)]

    def _decompose(
        self,
        n_groups: int,
        correlation: bool,
        share: float,
        solver: str,
        X: ArrayLike | TokenArray | None,
    ) -> list[Spectrum]:
        if solver != "cov":
            if X is None:
                raise ValueError(
                    f"solver={solver!r} needs the rows for these parameters; call fit, or set "
                    'solver="auto".'
                )
            rows = as_tensor(_all_rows(X)).cpu().double().numpy() - self.moments_.mean_
        by_rows = self.moments_.scatter == "diag"
        covariance = None if by_rows else self._covariance(share)
        return [
            spectrum_of(
                self.moments_.covariance(ddof=1) if by_rows else covariance[group, group],
                n_samples=self.moments_.n_samples,
                correlation=correlation,
                solver=solver,
                rows=None if solver == "cov" else rows[:, group],
            )
            for group in self._groups(n_groups)
        ]

    def _maps(self, spectra: list[Spectrum], share: float) -> list[WhiteningMap]:
        covariance = self._covariance(share) if self.method == "cholesky" else None
        return [
            whitening_map(
                spectrum,
                method=self.method,
                n_components=self.n_components,
                power=self.power,
                eps=self.eps,
                # A correlation matrix is of a covariance that was shrunk before.
                shrinkage=0.0 if self.method.endswith("_cor") else share,
                covariance=None if covariance is None else covariance[group, group],
            )
            for spectrum, group in zip(spectra, self._groups(self.n_groups), strict=True)
        ]

    def _covariance(self, share: float) -> np.ndarray:
        return covariance_from_moments(self.moments_, shrinkage=share, ddof=1).matrix

    def _warn_of_rank(self, rank: int) -> None:
        if rank < self.n_features_in_ and self.n_components is None:
            warnings.warn(
                f"The covariance of {self.n_samples_seen_} samples in {self.n_features_in_} "
                f"features has rank {rank}: the directions without variance are left out; set "
                'shrinkage="oas" to keep all.',
                UserWarning,
                stacklevel=7,
            )

    @property
    def mean_(self) -> np.ndarray:
        """Mean of the training rows."""
        return self._held("mean_").mean_

    @property
    def components_(self) -> np.ndarray:
        """The transposed whitening matrix."""
        self._held("components_")
        return self._solved.map.forward.T

    @property
    def eigenvalues_(self) -> np.ndarray:
        """Variances along the components before whitening."""
        self._held("eigenvalues_")
        return self._solved.map.eigenvalues

    @property
    def covariance_(self) -> np.ndarray:
        """Covariance of the training rows, shrinkage included."""
        if self._held("covariance_").scatter == "diag":
            raise AttributeError(
                f"The covariance of {self.n_features_in_} features was not computed, which fewer "
                'samples do not need; set solver="cov" to have it.'
            )
        return self._covariance(self._solved.share)

    @property
    def shrinkage_(self) -> float:
        """Share of the mean variance in the covariance."""
        self._held("shrinkage_")
        return self._solved.share

    @property
    def _n_features_out(self) -> int:
        return self._solved.map.forward.shape[1]

    def _n_features_of(self, n_features: int) -> int:
        return self._n_features_out

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
        A = self._solved.map.forward
        return A, -(self._shift() @ A)

    def _shift(self) -> np.ndarray:
        mean = self.moments_.mean_
        return mean if self.center else np.zeros_like(mean)

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        A = self._solved.map.forward
        zero = np.zeros(A.shape[1])
        Z = apply_affine(rows, shift=self._shift(), matrix=A, offset=zero, dtype=rows.dtype)
        return l2_normalize(Z) if self.l2 else Z

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
        B = self._solved.map.backward
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


def _all_rows(X: ArrayLike | TokenArray) -> ArrayLike:
    return torch.cat(list(rows_of(X))) if isinstance(X, TokenArray) else X


class _Width(BaseEstimator):
    """Stands for the whitened side in the check of its rows."""

    def __init__(self, n_features_in_: int):
        self.n_features_in_ = n_features_in_
