# SPDX-License-Identifier: BSD-3-Clause
"""Ridge regression for all penalties at once, with leave-one-out errors, from one decomposition.

The engine of the ridge classifiers. It needs the moments of the rows alone; where the rows are at
hand it also knows what each of them would have been predicted had it been left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch

from skpool.statistics._checks import check_option, check_rows, check_weights
from skpool.statistics._class_moments import ClassMoments
from skpool.statistics._running_moments import RunningMoments
from skpool.statistics._symmetric_factor import product, symmetric_eigen
from skpool.utils import ArrayLike, as_tensor, check_finite, full_float32, widened

__all__ = ["RidgePath"]

_SCORINGS = ("auto", "loo_accuracy", "loo_mse", "gcv")
_BLOCK_ROWS = 4096
# A row with less than this left of its own residual spans a direction alone.
_LEAST_REST = 1e-8


@dataclass(frozen=True)
class _Problem:
    """Centred sums of a regression, and the spectrum of the scatter of its rows."""

    n: float
    mean: np.ndarray  # (d,)
    target_mean: np.ndarray  # (m,)
    target_squares: np.ndarray  # (m,), centred
    values: np.ndarray  # (r,), eigenvalues of the scatter
    vectors: np.ndarray  # (d, r)
    projected: np.ndarray  # (r, m), cross-products of rows and targets along the eigenvectors
    trace: float


def _decomposed(
    n: float,
    mean: np.ndarray,
    scatter: np.ndarray,
    cross: np.ndarray,
    target_mean: np.ndarray,
    target_squares: np.ndarray,
) -> _Problem:
    values, vectors = symmetric_eigen(scatter)
    values = np.maximum(values, 0.0)
    trace = float(np.trace(scatter))
    projected = product(vectors.T, cross)
    return _Problem(n, mean, target_mean, target_squares, values, vectors, projected, trace)


def _from_few_rows(rows: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> _Problem:
    """The same from fewer rows than features, by their Gram matrix."""
    n = float(weights.sum())
    mean, target_mean = weights @ rows / n, weights @ targets / n
    root = np.sqrt(weights)[:, None]
    centred, shifted = root * (rows - mean), root * (targets - target_mean)
    values, left = symmetric_eigen(centred @ centred.T)
    keep = values > max(values[-1], 0.0) * max(rows.shape) * np.finfo(np.float64).eps
    values, left = values[keep], left[:, keep]
    vectors = centred.T @ (left / np.sqrt(values))
    projected = np.sqrt(values)[:, None] * (left.T @ shifted)
    squares = (shifted**2).sum(axis=0)
    return _Problem(
        n, mean, target_mean, squares, values, vectors, projected, float((centred**2).sum())
    )


def _of_joined(moments: RunningMoments, n_targets: int | None) -> _Problem:
    """The same from the moments of rows with their targets joined to them."""
    width = moments.n_features_in_ or 0
    if n_targets is None or not 0 < n_targets < width or moments.scatter != "full":
        raise ValueError(
            f"n_targets={n_targets!r} is not valid for moments of {width} columns with "
            f"scatter={moments.scatter!r}; give how many of the last columns are targets, and keep "
            'scatter="full".'
        )
    d = width - n_targets
    scatter, mean = moments.scatter_, moments.mean_
    squares = np.diagonal(scatter)[d:]
    return _decomposed(
        moments.n_samples, mean[:d], scatter[:d, :d], scatter[:d, d:], mean[d:], squares
    )


def _targets_of(Y: object, n_rows: int) -> np.ndarray:
    Y = Y.detach().cpu().numpy() if isinstance(Y, torch.Tensor) else np.asarray(Y)
    Y = Y.astype(np.float64, copy=False)
    Y = Y[:, None] if Y.ndim == 1 else Y
    if Y.ndim != 2 or len(Y) != n_rows:
        raise ValueError(
            f"Y has shape {Y.shape}; give one row of targets for each of {n_rows} rows."
        )
    check_finite(Y, name="Y")
    return Y


class RidgePath:
    r"""Ridge regression for a whole path of penalties from one decomposition.

    With the scatter :math:`T` of the centred rows and their cross-products :math:`Q` with the
    centred targets, the coefficients of the penalty :math:`\lambda` are
    :math:`W = (T + \lambda I)^{-1} Q`; the intercept is not penalised. With :math:`T = V D V^\top`
    and :math:`Z = (X - \bar x) V`, the leverage of a row for every penalty is
    :math:`h = 1/n + \sum_j z_j^2 / (d_j + \lambda)`, and its prediction without itself is
    :math:`y - (y - \hat y) / (1 - h)` [1]_.

    Parameters
    ----------
    alphas : "auto" or array-like of shape (n_alphas,), default="auto"
        Penalties, at least 0; "auto" takes 17 from 1e-6 to 100.
    fit_intercept : bool, default=True
        Whether rows and targets are centred.
    relative : bool, default=True
        Whether a penalty is `alpha` times the mean eigenvalue of the scatter; else `alpha`.
    scoring : {"auto", "loo_accuracy", "loo_mse", "gcv"}, default="auto"
        By what the penalty is chosen: the share of rows whose largest prediction, made without
        them, is at their largest target; the mean squared error of such predictions; or
        generalized cross-validation [2]_, which needs the moments alone. "auto" takes the first
        where rows and one-hot targets are given, the second for other targets, and the last where
        there are moments only.

    Attributes
    ----------
    alphas_ : ndarray of shape (n_alphas,)
        The penalties, ascending, as given.
    lambdas_ : ndarray of shape (n_alphas,)
        What is added to the scatter.
    alpha_ : float
        The chosen one; of equally good ones the largest.
    scores_ : ndarray of shape (n_alphas,)
        Higher is better: an accuracy, or an error with its sign turned.
    scoring_ : str
        What `scores_` are.
    coef_ : ndarray of shape (n_targets, n_features)
    intercept_ : ndarray of shape (n_targets,)
        Of the chosen penalty.

    Notes
    -----
    Cost: O(n d^2) for the moments, O(d^3) once, and O(n d m) per penalty where rows are scored;
    nothing of size n x n. With fewer rows than features O(n^2 d + n^3). Memory O(d^2).

    References
    ----------
    .. [1] D. M. Allen, The Relationship between Variable Selection and Data Augmentation and a
       Method for Prediction, 1974.
    .. [2] G. H. Golub, M. Heath, G. Wahba, Generalized Cross-Validation as a Method for Choosing
       a Good Ridge Parameter, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import RidgePath
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(50, 3))
    >>> path = RidgePath().fit(X, X @ [1.0, 2.0, 3.0] + 4.0)
    >>> path.coef_.round(3), path.intercept_.round(3)
    (array([[1., 2., 3.]]), array([4.]))
    """

    def __init__(
        self,
        alphas: ArrayLike | str = "auto",
        *,
        fit_intercept: bool = True,
        relative: bool = True,
        scoring: str = "auto",
    ):
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.relative = relative
        self.scoring = check_option("scoring", scoring, _SCORINGS)

    # From rows, or from moments.

    def fit(
        self, X: ArrayLike, Y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> "RidgePath":
        """Decompose the rows and choose a penalty.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
        Y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets; one-hot rows for classes.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of at least 0.

        Returns
        -------
        self : RidgePath
        """
        X = check_rows(X, None)
        check_finite(X)
        targets = _targets_of(Y, len(X))
        weights = check_weights(sample_weight, len(X))
        return self._solve(self._problem(X, targets, weights), (X, targets, weights))

    def fit_moments(
        self,
        moments: ClassMoments | RunningMoments,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        n_targets: int | None = None,
    ) -> "RidgePath":
        """Decompose the moments of classes, whose targets are one-hot, or of rows and targets.

        Parameters
        ----------
        moments : ClassMoments or RunningMoments
            With full scatters. Of classes, columns of targets are in the order of
            ``moments.classes_``; of unlabelled rows, the last `n_targets` columns are targets.
        X : ndarray or tensor of shape (n_samples, n_features), default=None
            The rows behind the moments, for scores that need them.
        y : array-like of shape (n_samples,), default=None
            Their labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Their weights.
        n_targets : int, default=None
            For RunningMoments: the number of targets joined to the rows.

        Returns
        -------
        self : RidgePath
        """
        if not self.fit_intercept:
            raise ValueError(
                "fit_intercept=False is not possible with moments, which are centred; give rows "
                "to fit, or set fit_intercept=True."
            )
        if isinstance(moments, RunningMoments):
            return self._solve(_of_joined(moments, n_targets), None)
        n, mean, scatter = moments.total()
        if scatter is None or scatter.ndim != 2:
            raise ValueError(
                f"A ridge path needs products between features, and these moments have "
                f'scatter={moments.scatter!r}; use scatter="shared".'
            )
        counts = moments.counts_
        cross = (counts[:, None] * (moments.means_ - mean)).T
        squares = counts - counts**2 / n
        problem = _decomposed(n, mean, scatter, cross, counts / n, squares)
        if X is None:
            return self._solve(problem, None)
        X = check_rows(X, len(mean))
        codes = np.searchsorted(moments.classes_, np.asarray(y))
        return self._solve(problem, (X, codes, check_weights(sample_weight, len(X))))

    def _problem(self, X: ArrayLike, targets: np.ndarray, weights: np.ndarray | None) -> _Problem:
        ones = np.ones(len(X)) if weights is None else weights
        if not self.fit_intercept:
            return self._uncentred(X, targets, ones)
        if len(X) < X.shape[1]:
            rows = as_tensor(X).cpu().double().numpy()
            return _from_few_rows(rows, targets, ones)
        moments = RunningMoments().update(X, sample_weight=weights)
        target_mean = ones @ targets / ones.sum()
        shifted = targets - target_mean
        cross = _cross(X, moments.mean_, shifted * ones[:, None])
        squares = ones @ shifted**2
        return _decomposed(
            moments.n_samples, moments.mean_, moments.scatter_, cross, target_mean, squares
        )

    def _uncentred(self, X: ArrayLike, targets: np.ndarray, weights: np.ndarray) -> _Problem:
        zero = np.zeros(X.shape[1])
        weighted = targets * weights[:, None]
        scatter = _gram(X, weights)
        squares = (weighted * targets).sum(axis=0)
        none = np.zeros(targets.shape[1])
        cross = _cross(X, zero, weighted)
        return _decomposed(float(weights.sum()), zero, scatter, cross, none, squares)

    # Choosing.

    def _solve(self, problem: _Problem, rows: tuple | None) -> "RidgePath":
        self._held = problem
        self.alphas_ = self.sorted_alphas()
        scale = problem.trace / len(problem.mean) if self.relative else 1.0
        self.lambdas_ = self.alphas_ * scale
        self.scoring_ = self._resolved_scoring(rows)
        self.scores_ = self._gcv() if self.scoring_ == "gcv" else self._loo_scores(*rows)
        finite = np.where(np.isnan(self.scores_), -np.inf, self.scores_)
        best = int(np.flatnonzero(finite == finite.max())[-1])
        self.alpha_ = float(self.alphas_[best])
        self.coef_, self.intercept_ = self._coefficients(self.lambdas_[best])
        return self

    def sorted_alphas(self) -> np.ndarray:
        """Return the penalties that are tried, ascending.

        Returns
        -------
        alphas : ndarray of shape (n_alphas,)
        """
        if isinstance(self.alphas, str):
            check_option("alphas", self.alphas, ("auto",))
            return np.logspace(-6, 2, 17)
        alphas = np.unique(np.atleast_1d(np.asarray(self.alphas, dtype=np.float64)))
        if not len(alphas) or not np.isfinite(alphas).all() or (alphas < 0).any():
            raise ValueError(
                f"alphas={self.alphas!r} are not valid; give one or more numbers of at least 0."
            )
        return alphas

    def _resolved_scoring(self, rows: tuple | None) -> str:
        if rows is None:
            if self.scoring not in ("auto", "gcv"):
                raise ValueError(
                    f"scoring={self.scoring!r} needs the rows; give them, or set scoring='gcv'."
                )
            return "gcv"
        if self.scoring != "auto":
            return self.scoring
        targets = rows[1]
        if targets.ndim == 1:
            return "loo_accuracy"
        one_hot = targets.shape[1] > 1 and ((targets == 0) | (targets == 1)).all()
        return "loo_accuracy" if one_hot and (targets.sum(axis=1) == 1).all() else "loo_mse"

    def _gcv(self) -> np.ndarray:
        p = self._held
        weights = self._weights(self.lambdas_)
        freedom = float(self.fit_intercept) + (p.values * weights).sum(axis=1)
        gained = (p.projected**2).sum(axis=1)
        explained = (weights * (2.0 - p.values * weights)) @ gained
        rest = np.maximum(p.target_squares.sum() - explained, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return -p.n * rest / np.maximum(p.n - freedom, 0.0) ** 2

    def _weights(self, lambdas: np.ndarray) -> np.ndarray:
        """Eigenvalues of the inverse for all penalties, (k, r); 0 where nothing can be divided."""
        values = self._held.values
        largest = values[-1] if len(values) else 0.0
        tolerance = largest * len(self._held.mean) * np.finfo(np.float64).eps
        shifted = values + np.atleast_1d(lambdas)[:, None]
        return np.divide(1.0, shifted, out=np.zeros_like(shifted), where=shifted > tolerance)

    @property
    def _constant_leverage(self) -> float:
        """What the intercept gives every row of unit weight."""
        return 1.0 / self._held.n if self.fit_intercept else 0.0

    def _coefficients(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        p = self._held
        coef = product(p.vectors, self._weights(penalty)[0][:, None] * p.projected).T
        return coef, p.target_mean - coef @ p.mean

    def coef_path(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the coefficients of any penalty.

        Parameters
        ----------
        alpha : float
            At least 0, relative as the path is; it need not be one of `alphas_`.

        Returns
        -------
        coef : ndarray of shape (n_targets, n_features)
        intercept : ndarray of shape (n_targets,)
        """
        if isinstance(alpha, bool) or not isinstance(alpha, Real) or not alpha >= 0:
            raise ValueError(f"alpha={alpha!r} is not valid; give a number of at least 0.")
        scale = self._held.trace / len(self._held.mean) if self.relative else 1.0
        return self._coefficients(float(alpha) * scale)

    # Leaving one out.

    def loo_predictions(
        self, X: ArrayLike, Y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Iterator[np.ndarray]:
        """Yield, per penalty, what every row is predicted by the fit without it.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            The rows that were fitted.
        Y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Their targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Their weights.

        Yields
        ------
        predictions : ndarray of shape (n_samples, n_targets)
            In the order of `alphas_`; NaN for a row that alone spans a direction.
        """
        X = check_rows(X, len(self._held.mean))
        targets = _targets_of(Y, len(X))
        weights = check_weights(sample_weight, len(X))
        ones = np.ones(len(X)) if weights is None else weights
        rows = self._rotated(as_tensor(X).cpu().double())
        for inverse in self._weights(self.lambdas_):
            fitted = self._held.target_mean + rows @ (inverse[:, None] * self._held.projected)
            rest = 1.0 - ones * (self._constant_leverage + rows**2 @ inverse)
            rest[rest < _LEAST_REST] = np.nan
            yield targets - (targets - fitted) / rest[:, None]

    def _rotated(self, rows: torch.Tensor) -> np.ndarray:
        p = self._held
        return (rows.numpy() - p.mean) @ p.vectors

    def _loo_scores(
        self, X: ArrayLike, targets: np.ndarray, weights: np.ndarray | None
    ) -> np.ndarray:
        """Scores for all penalties, by blocks of rows, in the float type of X."""
        p, tensor = self._held, as_tensor(X)
        dtype = widened(tensor[:0]).dtype

        def there(array: np.ndarray) -> torch.Tensor:
            return as_tensor(array).to(tensor.device, dtype)

        mean, basis, projected = there(p.mean), there(p.vectors), there(p.projected)
        inverse, offset = there(self._weights(self.lambdas_)), there(p.target_mean)
        # What the rounding of the mean leaves over.
        shift = there((p.mean - mean.cpu().double().numpy()) @ p.vectors)
        ones = np.ones(len(X)) if weights is None else weights
        sums = np.zeros((2, len(self.lambdas_)))
        with full_float32():
            for start in range(0, len(X), _BLOCK_ROWS):
                part = slice(start, start + _BLOCK_ROWS)
                rows = (tensor[part].to(dtype) - mean) @ basis - shift
                leverage = self._constant_leverage + rows.square() @ inverse.T
                leverage *= there(ones[part])[:, None]
                sums += self._block_scores(
                    rows, projected, inverse, offset, leverage, targets[part], ones[part]
                )
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums[0] / sums[1]

    def _block_scores(
        self,
        rows: torch.Tensor,
        projected: torch.Tensor,
        inverse: torch.Tensor,
        offset: torch.Tensor,
        leverage: torch.Tensor,
        targets: np.ndarray,
        weights: np.ndarray,
    ) -> np.ndarray:
        """Sums of scores and of weights of one block, (2, k)."""
        accuracy = self.scoring_ == "loo_accuracy"
        known = leverage < 1 - _LEAST_REST
        w = torch.from_numpy(weights).to(rows.device)
        codes, Y = _codes_and_targets(targets, rows, projected.shape[1], accuracy)
        sums = []
        for k in range(len(inverse)):
            fitted = torch.addmm(offset, rows, inverse[k][:, None] * projected)
            if accuracy:
                # Dividing by 1 - h changes no order; the own column alone is moved.
                fitted[torch.arange(len(rows)), codes] -= leverage[:, k]
                gained = (fitted.argmax(dim=1) == codes).double()
            else:
                rest = (1 - leverage[:, k, None]).clamp_min(_LEAST_REST)
                gained = -((Y - fitted) / rest).square().sum(dim=1).double()
            counted = torch.where(known[:, k], w, 0.0)
            sums.append((float(counted @ gained), float(counted.sum())))
        return np.array(sums).T


def _codes_and_targets(
    targets: np.ndarray, rows: torch.Tensor, n_targets: int, accuracy: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Labels as numbers for accuracies, targets for errors."""
    if targets.ndim == 1:
        codes = torch.from_numpy(targets).to(rows.device)
        if accuracy:
            return codes, None
        one_hot = torch.nn.functional.one_hot(codes, n_targets)
        return None, one_hot.to(rows)
    Y = torch.from_numpy(targets).to(rows.device)
    return (Y.argmax(dim=1), None) if accuracy else (None, Y.to(rows))


def _cross(X: ArrayLike, mean: np.ndarray, weighted: np.ndarray) -> np.ndarray:
    """Sum of products of centred rows and weighted targets, in float64."""
    tensor, total = as_tensor(X), np.zeros((X.shape[1], weighted.shape[1]))
    for start in range(0, len(X), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        total += (tensor[part].cpu().double().numpy() - mean).T @ weighted[part]
    return total


def _gram(X: ArrayLike, weights: np.ndarray) -> np.ndarray:
    """Sum of weighted products of rows, not centred, in float64."""
    tensor, total = as_tensor(X), np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, len(X), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        rows = tensor[part].cpu().double().numpy() * np.sqrt(weights[part])[:, None]
        total += rows.T @ rows
    return total
