# SPDX-License-Identifier: BSD-3-Clause
"""How well will ridge regression on random features do? Answers from spectra, without a test set.

Pure functions beside `RandomFeatureRidgeClassifier`: what its error will be for a number of rows,
of features and a penalty, and which penalty is therefore best.
"""

from collections.abc import Callable
from numbers import Integral

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.spatial.distance import cdist
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_array, check_random_state

from skpool.utils import ArrayLike, check_labels

__all__ = ["kernel_risk", "random_feature_risk", "suggest_ridge"]


def random_feature_risk(
    eigenvalues: ArrayLike,
    coefs: ArrayLike,
    *,
    n_samples: float,
    n_components: float,
    ridge: float,
    noise: float = 0.0,
) -> float:
    r"""Return the expected squared error of ridge regression on random features.

    Parameters
    ----------
    eigenvalues : array-like of shape (n_modes,)
        Of the kernel that the inner products of the features tend to, as an operator on the
        distribution of the rows; at least 0.
    coefs : array-like of shape (n_modes,)
        Of the target function, along the orthonormal eigenfunctions.
    n_samples : float
        Rows that are learned from.
    n_components : float
        Random features, normalised as by :class:`~skpool.preprocessing.RandomFeatures`; may be
        infinite.
    ridge : float
        Penalty, at least 0: what is added to the n x n matrix of products, or as well to the k x
        k one.
    noise : float, default=0.0
        Variance of the noise of the targets.

    Returns
    -------
    risk : float
        Mean squared error on new rows, their noise included; infinite where features and rows are
        equally many and nothing is penalised.

    Notes
    -----
    The deterministic equivalent of [1]_, exact as rows and features grow in proportion. With the
    eigenvalues :math:`\lambda_i` and coefficients :math:`v_i`, the pair
    :math:`(\kappa, \gamma)` solves :math:`\sum_i \frac{\lambda_i}{\lambda_i + \gamma} +
    \frac{\delta}{\kappa} = n` and :math:`\sum_i \frac{\lambda_i}{\lambda_i + \gamma} +
    \frac{k \kappa}{\gamma} = k`. With z the sum in both and
    :math:`q = \sum_i (\frac{\lambda_i}{\lambda_i + \gamma})^2`,

    .. math:: R = \frac{\sum_i \left( \frac{\gamma}{\lambda_i + \gamma} - \frac{\kappa \lambda_i}
        {(\lambda_i + \gamma)^2} \frac{k}{k - q} \right) v_i^2 + \sigma^2}
        {1 - \frac{q (k - 2 z) + z^2}{n (k - q)}} .

    References
    ----------
    .. [1] J. B. Simon, D. Karkada, N. Ghosh, M. Belkin, More is Better in Modern Machine Learning:
       when Infinite Overparameterization is Optimal and Overfitting is Obligatory, 2024.
       <https://arxiv.org/abs/2311.14646>

    Examples
    --------
    >>> from skpool.linear_model import random_feature_risk
    >>> for k in (10, 100, 1000):
    ...     risk = random_feature_risk([1.0] * 50, [1.0] + [0.0] * 49, n_samples=100,
    ...                                n_components=k, ridge=1.0)
    ...     print(k, round(risk, 3))
    10 0.888
    100 0.005
    1000 0.001
    """
    values, powers = _checked(eigenvalues, coefs, n_samples, ridge, noise)
    n, k = float(n_samples), float(n_components)
    if not k > 0:
        raise ValueError(f"n_components={n_components!r} is not valid; give a number above 0.")
    kappa, gamma = _effective_ridges(values, n, k, ridge)
    learned, unlearned = _shares(values, gamma)
    z, q = learned.sum(), (learned**2).sum()
    if kappa == gamma:
        return _over((unlearned**2) @ powers + noise, 1.0 - q / n)
    if kappa == 0 and gamma > 0:
        return _over(unlearned @ powers + noise, 1.0 - k / n)
    # learned / (values + gamma) is the slope of what is learned, 0 where gamma is.
    slope = learned * (unlearned / gamma if gamma > 0 else 0.0)
    kept = (unlearned - kappa * slope * (k / (k - q))) @ powers
    return _over(kept + noise, 1.0 - (q * (k - 2 * z) + z**2) / (n * (k - q)))


def kernel_risk(
    eigenvalues: ArrayLike,
    coefs: ArrayLike,
    *,
    n_samples: float,
    ridge: float,
    noise: float = 0.0,
) -> float:
    r"""Return the expected squared error of kernel ridge regression.

    Parameters
    ----------
    eigenvalues : array-like of shape (n_modes,)
        Of the kernel, as an operator on the distribution of the rows; at least 0.
    coefs : array-like of shape (n_modes,)
        Of the target function, along the orthonormal eigenfunctions.
    n_samples : float
        Rows that are learned from.
    ridge : float
        What is added to the diagonal of the n x n kernel matrix, at least 0.
    noise : float, default=0.0
        Variance of the noise of the targets.

    Returns
    -------
    risk : float
        Mean squared error on new rows, their noise included.

    See Also
    --------
    random_feature_risk : For finitely many features, with the formula.

    Notes
    -----
    With :math:`\sum_i \frac{\lambda_i}{\lambda_i + \kappa} + \frac{\delta}{\kappa} = n` and q as
    there, :math:`R = \frac{1}{1 - q/n} \left( \sum_i (\frac{\kappa}{\lambda_i + \kappa})^2 v_i^2
    + \sigma^2 \right)`.

    Examples
    --------
    Without a penalty, n rows learn n of M equal directions:

    >>> from skpool.linear_model import kernel_risk
    >>> round(kernel_risk([1.0] * 50, [1.0] + [0.0] * 49, n_samples=20, ridge=0.0), 6)
    0.6
    """
    return random_feature_risk(
        eigenvalues, coefs, n_samples=n_samples, n_components=np.inf, ridge=ridge, noise=noise
    )


def _checked(
    eigenvalues: ArrayLike, coefs: ArrayLike, n_samples: float, ridge: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    values, coefs = np.asarray(eigenvalues, np.float64), np.asarray(coefs, np.float64)
    if values.ndim != 1 or values.shape != coefs.shape or not len(values):
        raise ValueError(
            f"eigenvalues has shape {values.shape} and coefs {coefs.shape}; give one coefficient "
            "per eigenvalue."
        )
    if not (np.isfinite(values).all() and np.isfinite(coefs).all() and (values >= 0).all()):
        raise ValueError("eigenvalues and coefs must be finite, and eigenvalues at least 0.")
    for name, value in (("ridge", ridge), ("noise", noise)):
        if not value >= 0:
            raise ValueError(f"{name}={value!r} is not valid; give a number of at least 0.")
    if not n_samples > 0:
        raise ValueError(f"n_samples={n_samples!r} is not valid; give a number above 0.")
    return values, coefs**2


def _shares(values: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """What is learned and what is not of every mode; a mode of eigenvalue 0 never is."""
    total = values + gamma
    learned = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    return learned, 1.0 - learned


def _over(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else np.inf


def _effective_ridges(values: np.ndarray, n: float, k: float, ridge: float) -> tuple[float, float]:
    """Solve for kappa and gamma, by one root in gamma."""
    rank = int((values > 0).sum())

    def learned(gamma: float) -> float:
        return float(_shares(values, gamma)[0].sum())

    def kappa(gamma: float) -> float:
        return gamma if np.isinf(k) else max(k - learned(gamma), 0.0) * gamma / k

    # Fewer features than modes cannot learn more than themselves, which bounds gamma below.
    least = _root(lambda gamma: learned(gamma) - k, 0.0, values) if rank > k else 0.0
    if ridge == 0 and n >= min(k, rank):
        return 0.0, least

    def excess(gamma: float) -> float:
        held = kappa(gamma)
        penalty = 0.0 if ridge == 0 else (ridge / held if held > 0 else np.inf)
        return learned(gamma) + penalty - n

    gamma = _root(excess, least, values)
    return kappa(gamma), gamma


def _root(falling: Callable[[float], float], least: float, values: np.ndarray) -> float:
    """Where a falling function is 0, above `least`."""
    scale = float(values.sum()) or 1.0
    low = high = np.log(scale)
    while falling(least + np.exp(high)) > 0:
        high += 5.0
    while falling(least + np.exp(low)) < 0 and low > -700:
        low -= 5.0

    def limited(t: float) -> float:
        # Finite, so that the root finder can interpolate.
        return min(falling(least + np.exp(t)), 1e300)

    return least + float(np.exp(brentq(limited, low, high, xtol=1e-13, rtol=1e-14)))


# From data.


def _limit_kernel(X: np.ndarray, activation: str | None, bias: bool) -> np.ndarray:
    """What inner products of many random features tend to, (n, n)."""
    if activation == "cos":
        apart = np.exp(-0.5 * cdist(X, X, "sqeuclidean"))
        return 0.5 * (apart if bias else apart + np.exp(-0.5 * cdist(X, -X, "sqeuclidean")))
    if bias:
        # A normal offset amounts to one more feature of value 1.
        X = np.hstack([X, np.ones((len(X), 1))])
    products = X @ X.T
    if activation is None:
        return products
    lengths = np.sqrt(np.diagonal(products))
    if activation == "erf":
        spread = np.sqrt(1.0 + 2.0 * lengths**2)
        return 2 / np.pi * np.arcsin(2.0 * products / np.outer(spread, spread))
    both = np.outer(lengths, lengths)
    cosine = np.divide(products, both, out=np.zeros_like(both), where=both > 0).clip(-1.0, 1.0)
    if activation == "sign":
        return 2 / np.pi * np.arcsin(cosine)
    angle = np.arccos(cosine)
    return both / (2 * np.pi) * (np.sin(angle) + (np.pi - angle) * cosine)


def _residual_variance(values: np.ndarray, powers: np.ndarray) -> float:
    """Noise of the targets, by kernel ridge with the penalty that cross-validation chooses."""
    n, tried = len(values), []
    for ridge in values.max() * np.logspace(-8, 2, 41):
        rest = ridge / (values + ridge)
        # The direction that centring took is no error, and no row is left over for it.
        squares, freedom = n * float(rest**2 @ powers), rest.sum() - 1.0
        tried.append((squares / freedom**2, squares / freedom))
    return min(tried)[1]


def suggest_ridge(
    X: ArrayLike,
    y: ArrayLike,
    n_components: int,
    *,
    activation: str | None = "relu",
    bias: bool = False,
    n_samples: int | None = None,
    max_rows: int = 2000,
    random_state: int | np.random.RandomState | None = 0,
) -> float:
    r"""Return the penalty of the smallest expected error on random features.

    Parameters
    ----------
    X : array-like of shape (n_rows, n_features)
        Feature vectors such as will be learned.
    y : array-like of shape (n_rows,) or (n_rows, n_targets)
        Their class labels, or real targets in columns.
    n_components : int
        Random features that will be used.
    activation : {"relu", "erf", "cos", "sign"} or None, default="relu"
        Their nonlinearity.
    bias : bool, default=False
        Whether offsets are added before it.
    n_samples : int, default=None
        Rows that will be learned; None for as many as X has. More than the spectrum is estimated
        from count as that many.
    max_rows : int, default=2000
        Rows that the spectrum is estimated from, drawn from X.
    random_state : int, RandomState instance or None, default=0
        Draws them.

    Returns
    -------
    ridge : float
        For ``RandomFeatureRidgeClassifier(n_components, alpha=ridge, relative=False)`` with the
        same `activation` and `bias`.

    Notes
    -----
    The eigenvalues of the exact limit kernel of the rows and the targets' coefficients along its
    eigenvectors stand for those of the distribution; the noise is the residual variance of kernel
    ridge regression at the penalty of its best generalized cross-validation. Then
    `random_feature_risk` is minimised. Cost: O(max_rows^3), whatever `n_components` and
    `n_samples` are: it says what a fit will do before it is paid for.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.linear_model import suggest_ridge
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 3))
    >>> clean = X[:, :1] > 0
    >>> noisy = clean ^ (rng.random((200, 1)) < 0.3)
    >>> suggest_ridge(X, clean.ravel(), 300) < suggest_ridge(X, noisy.ravel(), 300)
    True
    """
    if activation not in ("relu", "erf", "cos", "sign", None):
        raise ValueError(
            f"activation={activation!r} is not valid; give 'relu', 'erf', 'cos', 'sign' or None."
        )
    for name, value in (("n_components", n_components), ("max_rows", max_rows)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r} is not valid; give a whole number above 0.")
    X = check_array(X, dtype=np.float64, ensure_min_samples=3)
    Y = _targets(y, len(X))
    n = len(X) if n_samples is None else n_samples
    if len(X) > max_rows:
        taken = check_random_state(random_state).choice(len(X), max_rows, replace=False)
        X, Y = X[taken], Y[taken]
    K = _limit_kernel(X, activation, bias)
    # Centred, as rows and targets are where the intercept is not penalised.
    K -= K.mean(axis=0)
    K -= K.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(K / len(K))
    values = np.maximum(values, 0.0)
    if not values.max() > 0:
        raise ValueError("All rows of X have the same random features; give rows that differ.")
    powers = ((vectors.T @ (Y - Y.mean(axis=0))) ** 2).sum(axis=1) / len(K)
    noise = _residual_variance(values, powers)
    coefs = np.sqrt(np.maximum(powers - noise / len(K), 0.0))

    def risk(log_ridge: float) -> float:
        return random_feature_risk(
            values,
            coefs,
            # Beyond its own rows a spectrum has no modes left to learn.
            n_samples=min(n, len(K)),
            n_components=n_components,
            ridge=float(np.exp(log_ridge)),
            noise=noise,
        )

    # Relative to the trace of the kernel matrix.
    tried = np.log(len(K) * values.sum()) + np.linspace(np.log(1e-10), np.log(1e2), 49)
    best = tried[int(np.argmin([risk(t) for t in tried]))]
    step = tried[1] - tried[0]
    found = minimize_scalar(risk, bounds=(best - step, best + step), method="bounded")
    return float(np.exp(found.x))


def _targets(y: ArrayLike, n_rows: int) -> np.ndarray:
    if np.ndim(y) == 2:
        Y = check_array(y, dtype=np.float64)
        if len(Y) != n_rows:
            raise ValueError(f"y has {len(Y)} rows and X has {n_rows}; give one per row of X.")
        return Y
    labels = check_labels(y, n_samples=n_rows)
    one_hot = LabelBinarizer().fit_transform(labels).astype(np.float64)
    # Of two classes one column is given; the other mirrors it.
    return one_hot if one_hot.shape[1] > 1 else np.hstack([1.0 - one_hot, one_hot])
