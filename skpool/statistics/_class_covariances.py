# SPDX-License-Identifier: BSD-3-Clause
"""A covariance for every class: from moments to regularised matrices, one class at a time.

Matrices are blended, shrunk and handed on one after the other, so that whoever factors them holds
no second stack of them beside the scatters in the moments; see `_class_distances`.
"""

import math
from collections.abc import Iterator
from numbers import Real
from typing import NamedTuple

import numpy as np

from skpool.statistics._checks import check_option
from skpool.statistics._class_moments import ClassMoments
from skpool.statistics._covariance import (
    Covariance,
    covariance_from_moments,
    oas_shrinkage,
)

__all__ = ["Shrinkage", "class_covariances", "class_variances"]

# Variances below this share of their mean are raised to it, so that they can be divided by.
_VARIANCE_FLOOR = 1e-6

_NAMED = ("oas", "ledoit_wolf")

Shrinkage = float | str | tuple | None


class _Base(NamedTuple):
    """What is regularised: a covariance and how well it is known."""

    matrix: np.ndarray
    n: float  # rows behind it
    noise: float | None  # expected squared error, where Ledoit-Wolf needs it


def _check_share(shrinkage: Shrinkage) -> None:
    if shrinkage is None or (isinstance(shrinkage, str) and shrinkage in _NAMED):
        return
    if isinstance(shrinkage, tuple):
        parts = shrinkage[1:]
        numbers = all(isinstance(g, Real) and 0 <= g < math.inf for g in parts)
        if shrinkage[:1] == ("additive",) and len(parts) == 2 and numbers:
            return
    elif isinstance(shrinkage, Real) and not isinstance(shrinkage, bool) and 0 <= shrinkage <= 1:
        return
    raise ValueError(
        f'shrinkage={shrinkage!r} is not valid; give a number from 0 to 1, "oas", "ledoit_wolf", '
        'or ("additive", g1, g2) with numbers of at least 0.'
    )


def _share(base: _Base, shrinkage: float | str | None) -> float:
    if shrinkage == "oas":
        return oas_shrinkage(base.matrix, base.n)
    if shrinkage != "ledoit_wolf":
        return float(shrinkage or 0.0)
    spread = float((base.matrix**2).sum()) - float(np.trace(base.matrix)) ** 2 / len(base.matrix)
    return min(1.0, max(base.noise, 0.0) / spread) if spread > 0 else 0.0


def _regularized(base: _Base, shrinkage: Shrinkage, correlation: bool) -> Covariance:
    B, d, share = base.matrix, len(base.matrix), 0.0
    level = float(np.trace(B)) / d
    if isinstance(shrinkage, tuple):
        _, g1, g2 = shrinkage
        off = (float(B.sum()) - d * level) / (d * (d - 1)) if d > 1 else 0.0
        matrix = B + g2 * off
        matrix.flat[:: d + 1] += g1 * level - g2 * off
    else:
        share = _share(base, shrinkage)
        matrix = (1 - share) * B
        matrix.flat[:: d + 1] += share * level
    if correlation:
        scale = np.sqrt(np.maximum(np.diagonal(matrix), 0.0))
        # A constant feature has no correlation; its zeros are found by the factor.
        scale = np.where(scale > 0, scale, 1.0)
        matrix /= scale
        matrix /= scale[:, None]
    return Covariance(matrix, share, base.n)


def _effective(moments: ClassMoments) -> tuple[np.ndarray, float]:
    """Rows behind each class and all of them, as effective numbers where weights differ."""
    counts, squares = moments.counts_, moments.counts_sq_
    return counts**2 / squares, float(counts.sum() ** 2 / squares.sum())


def _blends(moments: ClassMoments, blend: float, min_count: float | None) -> np.ndarray:
    """Share of the pooled covariance in each class, 1 for a class of too few rows."""
    least = max(2.0, moments.n_features_in_ / 10) if min_count is None else min_count
    return np.where(moments.counts_ < least, 1.0, blend)


def _divisors(moments: ClassMoments, needed: np.ndarray, ddof: float) -> np.ndarray:
    counts = moments.counts_
    few = needed & (counts <= ddof)
    if few.any():
        raise ValueError(
            f"The covariance of class {moments.classes_[few][0].item()!r} with ddof={ddof} needs "
            f"more than {ddof} rows of it; give more, or raise blend or min_count."
        )
    return np.where(needed, counts - ddof, 1.0)


def _scatters(moments: ClassMoments, kind: str) -> list[np.ndarray]:
    if moments.scatter != "per_class":
        raise ValueError(
            f"kind={kind!r} cannot be computed from moments with scatter={moments.scatter!r}; keep "
            'scatter="per_class".'
        )
    # `scatter_` would stack them, which is a copy of all.
    return moments._state.scatter


def _noise(S: np.ndarray, fourth: float, count: float, n: float, ddof: float) -> float:
    """Expected squared error of a covariance, as Ledoit and Wolf estimate it."""
    C = S / count
    return (fourth / count - float((C**2).sum())) / n * (count / (count - ddof)) ** 2


def _pooled(moments: ClassMoments, ddof: float, noisy: bool) -> _Base:
    counts, n = moments.counts_, _effective(moments)[1]
    if counts.sum() <= ddof:
        raise ValueError(f"ddof={ddof} needs more rows, and {counts.sum():g} are held.")
    if moments.scatter != "per_class" and not noisy:
        return _Base(covariance_from_moments(moments, "shared", ddof=ddof).matrix, n, None)
    scatters = _scatters(moments, "shared")
    S, noise = sum(scatters[1:], start=scatters[0]), None
    if noisy:
        noise = _noise(S, float(_fourth(moments).sum()), counts.sum(), n, ddof)
    return _Base(S / (counts.sum() - ddof), n, noise)


def _fourth(moments: ClassMoments) -> np.ndarray:
    if moments.fourth_ is None:
        raise ValueError(
            'shrinkage="ledoit_wolf" needs fourth moments: keep ClassMoments("per_class", '
            'fourth_order=True), or take "oas".'
        )
    return moments.fourth_


def _blended(
    moments: ClassMoments, blend: float, min_count: float | None, ddof: float, noisy: bool
) -> Iterator[_Base]:
    """Yield the covariance of each class, mixed with the pooled one."""
    scatters, counts = _scatters(moments, "per_class"), moments.counts_
    n, shares = _effective(moments)[0], _blends(moments, blend, min_count)
    divisors = _divisors(moments, shares < 1, ddof)
    pooled = _pooled(moments, ddof, noisy) if shares.any() else None
    for k, (S, share) in enumerate(zip(scatters, shares, strict=True)):
        if share == 1:
            yield pooled
            continue
        noise = _noise(S, _fourth(moments)[k], counts[k], n[k], ddof) if noisy else None
        base = _Base(S * ((1 - share) / divisors[k]), n[k], noise)
        yield _mixed(base, pooled, share) if share else base


def _mixed(part: _Base, pooled: _Base, share: float) -> _Base:
    """Add the pooled covariance to that of a class, which is in it too."""
    # Errors of the class count by the square of its share, and what is left is the pooled one's.
    own = (1 - share) ** 2
    n = 1 / (own / part.n + (1 - own) / pooled.n)
    noise = None if part.noise is None else own * part.noise + (1 - own) * pooled.noise
    return _Base(part.matrix + share * pooled.matrix, n, noise)


def _class_task(moments: ClassMoments, ddof: float, ridge: float) -> Iterator[_Base]:
    scatters, n = _scatters(moments, "class_task"), _effective(moments)[0]
    n_all, _, total = moments.total()
    total = total / max(n_all - ddof, 1.0)
    for k, (S, count) in enumerate(zip(scatters, moments.counts_, strict=True)):
        # One row has no scatter, whatever it is divided by.
        own = S / (count - ddof) if count > ddof else np.zeros_like(S)
        matrix = (count * own + total) / (count + 1)
        matrix.flat[:: len(matrix) + 1] += ridge
        yield _Base(matrix, n[k], None)


def class_covariances(
    moments: ClassMoments,
    kind: str = "per_class",
    *,
    shrinkage: Shrinkage = None,
    blend: float = 0.0,
    min_count: float | None = None,
    correlation: bool = False,
    ddof: float = 0,
    ridge: float = 1.0,
) -> Iterator[Covariance]:
    r"""Yield the covariance of one class after the other, regularised.

    With the covariance :math:`C_c` of a class, the pooled one :math:`C` and the blend :math:`a`,
    "per_class" starts from :math:`B = (1 - a) C_c + a C`, which is then shrunk. "class_task" gives
    :math:`\frac{n_c}{n_c + 1} C_c + \frac{1}{n_c + 1} C_{\text{total}} + \rho I` [1]_.

    Parameters
    ----------
    moments : ClassMoments
        With ``scatter="per_class"``; also "shared" for ``kind="shared"``.
    kind : {"per_class", "class_task", "shared"}, default="per_class"
        A covariance per class, or one that is pooled over the classes.
    shrinkage : float, "oas", "ledoit_wolf", tuple or None, default=None
        A share :math:`s` gives :math:`(1 - s) B + s \frac{\operatorname{tr} B}{d} I`; "oas" [2]_
        and "ledoit_wolf" [3]_ compute it for each class, the latter from moments with
        ``fourth_order=True``; ``("additive", g1, g2)`` adds g1 times the mean variance to the
        diagonal and g2 times the mean covariance to the rest [4]_. None is 0. Not used by
        "class_task".
    blend : float, default=0.0
        Share of the pooled covariance, see above. For "per_class".
    min_count : float or None, default=None
        A class of fewer rows takes the pooled covariance. None is a tenth of the features, at
        least 2. For "per_class".
    correlation : bool, default=False
        Whether the result is divided by its standard deviations, as [4]_ does.
    ddof : float, default=0
        Subtracted from the numbers of rows in the divisors.
    ridge : float, default=1.0
        The :math:`\rho` of "class_task".

    Yields
    ------
    covariance : Covariance
        A new matrix each time; of the classes in their order, or one for "shared".

    Notes
    -----
    The error of a blend, which "oas" reads from a number of rows and "ledoit_wolf" from fourth
    moments, is :math:`(1 - a)^2` times that of the class and :math:`1 - (1 - a)^2` times that of
    the pooled covariance. Memory: one matrix at a time, and the pooled one.

    References
    ----------
    .. [1] P. Bateni, R. Goyal, V. Masrani, F. Wood, L. Sigal, Improved Few-Shot Visual
       Classification, 2020. <https://arxiv.org/abs/1912.03432>
    .. [2] Y. Chen, A. Wiesel, Y. C. Eldar, A. O. Hero, Shrinkage Algorithms for MMSE Covariance
       Estimation, 2010.
    .. [3] O. Ledoit, M. Wolf, A well-conditioned estimator for large-dimensional covariance
       matrices, 2004.
    .. [4] D. Goswami, Y. Liu, B. Twardowski, J. van de Weijer, FeCAM: Exploiting the Heterogeneity
       of Class Distributions in Exemplar-Free Continual Learning, 2023.
       <https://arxiv.org/abs/2309.14062>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import ClassMoments, class_covariances
    >>> X = np.array([[0.0, 0.0], [2.0, 2.0], [5.0, 0.0], [5.0, 4.0]])
    >>> moments = ClassMoments("per_class").update(X, [0, 0, 1, 1])
    >>> [found.matrix.tolist() for found in class_covariances(moments)]
    [[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 4.0]]]
    """
    check_option("kind", kind, ("per_class", "class_task", "shared"))
    _check_share(shrinkage)
    if kind == "class_task":
        bases, shrinkage = _class_task(moments, ddof, ridge), None
    elif kind == "shared":
        bases = [_pooled(moments, ddof, shrinkage == "ledoit_wolf")]
    else:
        bases = _blended(moments, blend, min_count, ddof, shrinkage == "ledoit_wolf")
    for base in bases:
        yield _regularized(base, shrinkage, correlation)


def class_variances(
    moments: ClassMoments,
    *,
    shrinkage: float | None = None,
    blend: float = 0.0,
    min_count: float | None = None,
    ddof: float = 0,
) -> np.ndarray:
    """Return the variances of the features in each class, blended and shrunk.

    Parameters
    ----------
    moments : ClassMoments
        With ``scatter="diag"`` or "per_class".
    shrinkage : float or None, default=None
        Share of the mean over the features.
    blend : float, default=0.0
        Share of the variances pooled over the classes.
    min_count : float or None, default=None
        A class of fewer rows takes the pooled variances. None is a tenth of the features, at
        least 2.
    ddof : float, default=0
        Subtracted from the numbers of rows in the divisors.

    Returns
    -------
    variances : ndarray of shape (n_classes, n_features)
        Raised to 1e-6 of their mean over features and classes before they are shrunk.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import ClassMoments, class_variances
    >>> moments = ClassMoments("diag").update(np.array([[0.0, 1.0], [2.0, 5.0]]), [0, 0])
    >>> class_variances(moments)
    array([[1., 4.]])
    """
    _check_share(shrinkage)
    if shrinkage is not None and not isinstance(shrinkage, Real):
        raise ValueError(f"shrinkage={shrinkage!r} is for full matrices; give a number or None.")
    if moments.scatter == "per_class":
        held = np.stack([np.diagonal(S) for S in _scatters(moments, "diag")])
    elif moments.scatter == "diag":
        held = moments.scatter_
    else:
        raise ValueError(
            f'kind="diag" cannot be computed from moments with scatter={moments.scatter!r}; keep '
            'scatter="diag".'
        )
    shares = _blends(moments, blend, min_count)
    own = held / _divisors(moments, shares < 1, ddof)[:, None]
    pooled = held.sum(axis=0) / max(moments.counts_.sum() - ddof, 1.0)
    variances = (1 - shares)[:, None] * own + shares[:, None] * pooled
    variances = np.maximum(variances, _VARIANCE_FLOOR * variances.mean())
    share = float(shrinkage or 0.0)
    return (1 - share) * variances + share * variances.mean(axis=1, keepdims=True)
