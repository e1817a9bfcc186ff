# SPDX-License-Identifier: BSD-3-Clause
"""Ridge regression for all penalties at once, with leave-one-out errors, from one decomposition.

The engine of the ridge classifiers. It needs the moments of the rows alone; where the rows are at
hand it also knows what each of them would have been predicted had it been left out.
"""

import warnings
from collections.abc import Iterator, Mapping
from numbers import Real

import numpy as np
import torch

from skpool.statistics._checks import check_option, check_rows, check_weights
from skpool.statistics._class_moments import ClassMoments
from skpool.statistics._ridge_problem import (
    RidgeProblem,
    class_factors,
    null_below,
    problem_of_classes,
    problem_of_joined,
    problem_of_rows,
)
from skpool.statistics._running_moments import RunningMoments
from skpool.statistics._symmetric_factor import product
from skpool.utils import ArrayLike, as_tensor, check_finite, full_float32, widened

__all__ = ["RidgePath"]

_SCORINGS = ("auto", "loo_accuracy", "loo_mse", "gcv")
_BLOCK_ROWS = 4096
# A row with less than this left of its own residual spans a direction alone.
_LEAST_REST = 1e-8
# What float32 leaves of one less a sum of squares, in units of its rounding.
_ROUNDED = 64
# A share of all squares that is none, and whose own square is still a number.
_NO_PENALTY = 1e-20


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


def _is_one_hot(targets: np.ndarray) -> bool:
    several = targets.shape[1] > 1 and ((targets == 0) | (targets == 1)).all()
    return bool(several and (targets.sum(axis=1) == 1).all())


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
    class_weight : {"balanced"}, dict or None, default=None
        What the weights of the rows of a class are multiplied by, where targets are one-hot: by
        column of the targets, or by label where moments are given. "balanced" makes the sums of
        weights of the classes equal. Moments need one scatter per class for it, or the rows.
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
    nothing of size n x n; memory O(d^2). Fewer rows than features, where they are given, are
    solved by their Gram matrix: O(n^2 d + n^3), and O(n^2 m) per penalty; nothing of size d x d;
    memory O(n d). There the errors of leaving one out keep all digits however small the penalty,
    and no penalty at all interpolates the targets with the smallest coefficients.

    Generalized cross-validation counts rows by their weights, or, where these are less, by the
    effective number ``sum(w)**2 / sum(w**2)``; so weights that sum to 1 choose as their multiples.

    A row that alone spans a direction has no prediction without itself where there is next to no
    penalty; it is not scored, which a warning tells if that penalty is chosen.

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
        class_weight: Mapping | str | None = None,
        scoring: str = "auto",
    ):
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.relative = relative
        if isinstance(class_weight, str):
            check_option("class_weight", class_weight, ("balanced",))
        self.class_weight = class_weight
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
        if self.class_weight is not None:
            if not _is_one_hot(targets):
                raise ValueError(
                    f"class_weight={self.class_weight!r} needs one-hot rows of targets; weigh the "
                    "rows by sample_weight instead."
                )
            weights = self._weighed(targets.argmax(axis=1), weights, np.arange(targets.shape[1]))
        problem = problem_of_rows(X, targets, weights, centred=self.fit_intercept)
        return self._solve(problem, (X, targets, weights))

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
            if self.class_weight is not None:
                raise ValueError(
                    f"class_weight={self.class_weight!r} needs classes, and RunningMoments have "
                    "none; give ClassMoments, or set class_weight=None."
                )
            return self._solve(problem_of_joined(moments, n_targets), None)
        if X is None:
            return self._solve(problem_of_classes(self._reweighted(moments)), None)
        X = check_rows(X, moments.n_features_in_)
        codes = np.searchsorted(moments.classes_, np.asarray(y))
        weights = check_weights(sample_weight, len(X))
        if self.class_weight is not None:
            weights = self._weighed(codes, weights, moments.classes_)
        by_rows = self.class_weight is not None and moments.scatter == "shared"
        if by_rows or len(X) < X.shape[1]:
            check_finite(X)
            one_hot = np.eye(len(moments.classes_))[codes]
            return self._solve(
                problem_of_rows(X, one_hot, weights, centred=True), (X, one_hot, weights)
            )
        problem = problem_of_classes(self._reweighted(moments))
        return self._solve(problem, (X, codes, weights))

    def _reweighted(self, moments: ClassMoments) -> ClassMoments:
        if self.class_weight is None:
            return moments
        factors = class_factors(self.class_weight, moments.classes_, moments.counts_)
        return moments.reweighted(dict(zip(moments.classes_.tolist(), factors, strict=True)))

    def _weighed(
        self, codes: np.ndarray, weights: np.ndarray | None, labels: np.ndarray
    ) -> np.ndarray:
        """The weights of rows, times those of their classes."""
        ones = np.ones(len(codes)) if weights is None else weights
        counts = np.bincount(codes, weights=ones, minlength=len(labels))
        return ones * class_factors(self.class_weight, labels, counts)[codes]

    # Choosing.

    def _solve(self, problem: RidgeProblem, rows: tuple | None) -> "RidgePath":
        self._held = problem
        self.alphas_ = self.sorted_alphas()
        scale = problem.trace / len(problem.mean) if self.relative else 1.0
        self.lambdas_ = self.alphas_ * scale
        self.scoring_ = self._resolved_scoring(rows)
        self.scores_, aside = self._scored(rows)
        finite = np.where(np.isnan(self.scores_), -np.inf, self.scores_)
        best = int(np.flatnonzero(finite == finite.max())[-1])
        self.alpha_ = float(self.alphas_[best])
        if aside[best]:
            warnings.warn(
                f"{aside[best]:.2%} of the rows (by weight) span a direction alone at alpha="
                f"{self.alpha_:g}, so what they would be predicted without themselves is not known "
                "and not scored; give larger alphas.",
                UserWarning,
                stacklevel=3,
            )
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
        one_hot = targets.ndim == 1 or _is_one_hot(targets)
        return "loo_accuracy" if one_hot else "loo_mse"

    def _scored(self, rows: tuple | None) -> tuple[np.ndarray, np.ndarray]:
        """Scores of all penalties, and the share of the weights that could not be scored."""
        if self.scoring_ == "gcv":
            return self._gcv(), np.zeros(len(self.lambdas_))
        X, targets, weights = rows
        ones = np.ones(len(X)) if weights is None else weights
        few = self._held.few is not None
        gained, counted = self._few_scores(targets, ones) if few else self._loo_scores(*rows)
        aside = 1.0 - counted / ones.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            return gained / counted, np.where(aside > _LEAST_REST, aside, 0.0)

    def _gcv(self) -> np.ndarray:
        p = self._held
        held = p.values > null_below(p.values, len(p.mean))
        values, projected = p.values[held], p.projected[held]
        reached = (projected**2).sum(axis=1) / values
        # No penalty is the limit of small ones.
        lambdas = np.maximum(self.lambdas_, p.trace * _NO_PENALTY)[:, None]
        missed = lambdas / (values + lambdas)
        beyond = p.n_rows - float(self.fit_intercept) - len(values)
        # Rows that span as many directions as they are reach any targets: the rest is rounding.
        exact = abs(beyond) <= _LEAST_REST * p.n_rows
        beyond = 0.0 if exact else beyond
        outside = 0.0 if exact else max(p.target_squares - reached.sum(), 0.0)
        rest = outside + missed**2 @ reached
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = rest * p.n_rows**2 / p.n
            return -rest / np.maximum(beyond + missed.sum(axis=1), 0.0) ** 2

    def _weights(self, lambdas: np.ndarray) -> np.ndarray:
        """Eigenvalues of the inverse for all penalties, (k, r); 0 where nothing can be divided."""
        values = self._held.values
        shifted = values + np.atleast_1d(lambdas)[:, None]
        some = shifted > null_below(values, len(self._held.mean))
        return np.divide(1.0, shifted, out=np.zeros_like(shifted), where=some)

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
        few, some = self._held.few, ones > 0
        exact = few is not None and few.are(rows[some], self._held)
        for penalty, inverse in zip(self.lambdas_, self._weights(self.lambdas_), strict=True):
            fitted = self._held.target_mean + rows @ (inverse[:, None] * self._held.projected)
            rest = 1.0 - ones * (self._constant_leverage + rows**2 @ inverse)
            rest[rest < _LEAST_REST] = np.nan
            lacking = (targets - fitted) / rest[:, None]
            if exact:
                lacking[some] = few.residuals(penalty)
            yield targets - lacking

    def _rotated(self, rows: torch.Tensor) -> np.ndarray:
        p = self._held
        return (rows.numpy() - p.mean) @ p.vectors

    def _few_scores(self, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Sums of scores and of weights for all penalties, (2, k), from the Gram matrix."""
        held = weights > 0
        targets, weights, sums = targets[held], weights[held], []
        for penalty in self.lambdas_:
            lacking = self._held.few.residuals(penalty)
            if self.scoring_ == "loo_accuracy":
                gained = (targets - lacking).argmax(axis=1) == targets.argmax(axis=1)
            else:
                gained = -(lacking**2).sum(axis=1)
            known = ~np.isnan(lacking[:, 0])
            sums.append((weights[known] @ gained[known], weights[known].sum()))
        return np.array(sums).T

    def _loo_scores(
        self, X: ArrayLike, targets: np.ndarray, weights: np.ndarray | None
    ) -> np.ndarray:
        """The same by blocks of rows, in the float type of X."""
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
        return sums

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
        known = leverage < 1 - max(_LEAST_REST, _ROUNDED * torch.finfo(leverage.dtype).eps)
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
