# SPDX-License-Identifier: BSD-3-Clause
"""From moments to covariances: one place for divisors, shrinkage and floors.

Whitening, Mahalanobis distances and discriminants all start from what this returns.
"""

import warnings
from dataclasses import dataclass
from numbers import Real

import numpy as np

from skpool.statistics._checks import check_option, check_rows
from skpool.statistics._class_moments import ClassMoments
from skpool.statistics._kernels import higher_moments
from skpool.statistics._running_moments import RunningMoments
from skpool.utils import ArrayLike, as_tensor, check_finite, check_labels

__all__ = ["Covariance", "covariance_from_moments", "oas_shrinkage"]

_KINDS = ("shared", "shared_diag", "diag")
# Variances below this share of their mean are raised to it, so that they can be divided by.
_VARIANCE_FLOOR = 1e-6


@dataclass(frozen=True)
class Covariance:
    """A covariance and how it was regularised.

    Attributes
    ----------
    matrix : ndarray of shape (n_features, n_features), (n_features,) or (n_classes, n_features)
        The covariance, or variances.
    shrinkage : float
        Share of the target in it.
    n_samples : float
        Rows behind it, as an effective number where weights differ.
    """

    matrix: np.ndarray
    shrinkage: float
    n_samples: float


def covariance_from_moments(
    moments: ClassMoments | RunningMoments,
    kind: str = "shared",
    *,
    shrinkage: float | str | None = None,
    ddof: float = 0,
    X: ArrayLike | None = None,
    y: ArrayLike | None = None,
) -> Covariance:
    r"""Return the covariance around the class means, shrunk towards a multiple of the identity.

    With the scatter :math:`S` pooled over the classes, :math:`C = S / (n - \mathrm{ddof})` and
    the shrinkage :math:`s`, the result is

    .. math:: (1 - s)\, C + s\, \frac{\operatorname{tr} C}{d} I .

    Parameters
    ----------
    moments : ClassMoments or RunningMoments
        Holding at least one row.
    kind : {"shared", "shared_diag", "diag"}, default="shared"
        One matrix, one row of variances, or one row of variances per class.
    shrinkage : float, {"oas", "ledoit_wolf"} or None, default=None
        Share of the target, between 0 and 1. ``"oas"`` computes it from the moments [1]_ (in
        scikit-learn's form), ``"ledoit_wolf"`` from moments with ``fourth_order=True`` or from
        the rows, which `X` must then give [2]_. Both are for ``kind="shared"``. None is 0.
    ddof : float, default=0
        Subtracted from the number of rows in the divisor; the shrinkage does not depend on it.
    X : ndarray or tensor of shape (n_samples, n_features), default=None
        For Ledoit-Wolf: the rows behind the moments, each of weight 1.
    y : array-like of shape (n_samples,), default=None
        Their labels; not needed for one class.

    Returns
    -------
    covariance : Covariance

    Notes
    -----
    Variances of the diagonal kinds are raised to 1e-6 of their mean over features and classes.
    Cost: O(d^2); with Ledoit-Wolf one more pass over the rows, O(n d).

    References
    ----------
    .. [1] Y. Chen, A. Wiesel, Y. C. Eldar, A. O. Hero, Shrinkage Algorithms for MMSE Covariance
       Estimation, 2010.
    .. [2] O. Ledoit, M. Wolf, A well-conditioned estimator for large-dimensional covariance
       matrices, 2004.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import RunningMoments, covariance_from_moments
    >>> moments = RunningMoments().update(np.array([[0.0, 0.0], [2.0, 2.0]]))
    >>> covariance_from_moments(moments, shrinkage=0.5).matrix
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    check_option("kind", kind, _KINDS)
    if isinstance(moments, RunningMoments):
        moments = moments.as_class_moments()
    if not len(moments.counts_):
        raise ValueError("The moments hold no rows; call update first.")
    if kind == "diag":
        return _class_variances(moments, _fixed(shrinkage, kind), ddof)
    n = float(moments.counts_.sum())
    if n <= ddof:
        raise ValueError(f"ddof={ddof} needs more than {ddof} rows, and {n:g} are held.")
    scatter = _pooled(moments, kind)
    if not np.any(scatter):
        warnings.warn(
            "All rows equal their class mean, so the covariance is zero; give more rows per class.",
            UserWarning,
            stacklevel=2,
        )
    n_effective = n**2 / float(moments.counts_sq_.sum())
    if kind == "shared_diag":
        share = _fixed(shrinkage, kind)
        variances = _floored(scatter / (n - ddof))
        return Covariance((1 - share) * variances + share * variances.mean(), share, n_effective)
    share = _share(moments, scatter / n, shrinkage, n_effective, X, y)
    matrix = (1 - share) * scatter / (n - ddof)
    matrix.flat[:: len(matrix) + 1] += share * np.trace(scatter) / (n - ddof) / len(matrix)
    return Covariance(matrix, share, n_effective)


def _pooled(moments: ClassMoments, kind: str) -> np.ndarray:
    # Not `scatter_`, which would stack matrices that are added up here.
    held = moments._state.scatter
    full = moments.scatter in ("shared", "per_class")
    if held is None or (kind == "shared" and not full):
        raise ValueError(
            f"kind={kind!r} cannot be computed from moments with scatter={moments.scatter!r}."
        )
    if moments.scatter in ("per_class", "diag"):
        held = sum(held[1:], start=held[0])
    return np.diagonal(held) if full and kind == "shared_diag" else held


def _floored(variances: np.ndarray) -> np.ndarray:
    return np.maximum(variances, _VARIANCE_FLOOR * variances.mean())


def _class_variances(moments: ClassMoments, share: float, ddof: float) -> Covariance:
    if moments.scatter not in ("per_class", "diag"):
        raise ValueError(
            f'kind="diag" cannot be computed from moments with scatter={moments.scatter!r}; keep '
            'scatter="diag".'
        )
    held, counts = moments.scatter_, moments.counts_
    if moments.scatter == "per_class":
        held = np.diagonal(held, axis1=1, axis2=2)
    if (counts <= ddof).any():
        few = moments.classes_[counts <= ddof][0].item()
        raise ValueError(
            f"Variances of class {few!r} with ddof={ddof} need more than {ddof} rows of it; give "
            'more, or take kind="shared_diag".'
        )
    variances = _floored(held / (counts - ddof)[:, None])
    variances = (1 - share) * variances + share * variances.mean(axis=1, keepdims=True)
    n_effective = float(counts.sum() ** 2 / moments.counts_sq_.sum())
    return Covariance(variances, share, n_effective)


def _fixed(shrinkage: float | str | None, kind: str) -> float:
    if isinstance(shrinkage, str):
        raise ValueError(
            f"shrinkage={shrinkage!r} is for full matrices; with kind={kind!r} give a number "
            "between 0 and 1, or None."
        )
    share = 0.0 if shrinkage is None else shrinkage
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share <= 1:
        raise ValueError(f"shrinkage={shrinkage!r} is not valid; give a number from 0 to 1.")
    return float(share)


def oas_shrinkage(C: np.ndarray, n: float) -> float:
    """Return the share of the identity that the oracle approximating shrinkage gives.

    Parameters
    ----------
    C : ndarray of shape (n_features, n_features)
        Covariance, times any factor.
    n : float
        Rows behind it.

    Returns
    -------
    share : float
        Between 0 and 1, in scikit-learn's form of the formula.
    """
    d = len(C)
    if d == 1:
        return 0.0
    squares, mean = float((C**2).sum()) / d**2, float(np.trace(C)) / d
    below = (n + 1) * (squares - mean**2 / d)
    return 1.0 if below <= 0 else min(1.0, (squares + mean**2) / below)


def _share(
    moments: ClassMoments,
    C: np.ndarray,
    shrinkage: float | str | None,
    n: float,
    X: ArrayLike | None,
    y: ArrayLike | None,
) -> float:
    if not isinstance(shrinkage, str):
        return _fixed(shrinkage, "shared")
    check_option("shrinkage", shrinkage, ("oas", "ledoit_wolf"))
    d = len(C)
    if d == 1:
        return 0.0
    squares, mean = float((C**2).sum()), float(np.trace(C)) / d
    if shrinkage == "oas":
        return oas_shrinkage(C, n)
    spread = squares / d - mean**2
    fourth = _fourth(moments, X, y)
    error = min(spread, (fourth / n - squares) / (n * d))
    return 0.0 if error <= 0 else error / spread


def _fourth(moments: ClassMoments, X: ArrayLike | None, y: ArrayLike | None) -> float:
    if moments.fourth_ is not None:
        return float(moments.fourth_.sum())
    if X is None:
        raise ValueError(
            'shrinkage="ledoit_wolf" needs more than these moments: give the rows behind them as X '
            '(and y), keep moments with fourth_order=True, or take "oas".'
        )
    X = check_rows(X, moments.n_features_in_)
    check_finite(X)
    classes = moments.classes_
    if y is None and len(classes) > 1:
        raise ValueError("y is needed: the moments hold more than one class.")
    y = np.full(X.shape[0], classes[0]) if y is None else check_labels(y, n_samples=X.shape[0])
    codes = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    held = np.bincount(codes, minlength=len(classes))
    if (classes[codes] != y).any() or (held != moments.counts_).any():
        raise ValueError(
            "X and y are not the rows behind the moments: the numbers of rows per class differ."
        )
    return float(higher_moments(as_tensor(X), codes, moments.means_)[1].sum())
