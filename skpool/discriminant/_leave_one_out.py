# SPDX-License-Identifier: BSD-3-Clause
"""Leave-one-out of linear discriminants in closed form: no refit, one product for all rows.

Taking a row away moves the mean of its class and changes the scatter by a matrix of rank one, so
distances under the smaller set follow from those under the whole (Sherman and Morrison). In
coordinates in which the covariance is diagonal this needs dot products alone, for any number of
shrinkages. Variances alone change feature by feature, so every row has its own, and two products
more.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from skpool.statistics import SymmetricFactor, symmetric_eigen
from skpool.utils import ArrayLike, as_tensor, row_batches

__all__ = ["LeftOut", "distances_without", "loo_accuracies"]

# Below this share of itself, what is left of a direction without a row is rounding.
_MIN_REST = 1e-8


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Rows that were learned, which are left out one by one.

    Attributes
    ----------
    X : ndarray or tensor of shape (n_samples, n_features)
    own : ndarray of shape (n_samples,)
        Positions of their classes.
    weights : ndarray of shape (n_samples,)
        Weights that they were learned with.
    means, counts : ndarray of shape (n_classes, n_features), (n_classes,)
        Of the classes, all rows included.
    """

    X: ArrayLike
    own: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    counts: np.ndarray

    @property
    def center(self) -> np.ndarray:
        """The mean of all rows, around which nothing loses digits."""
        return self.counts @ self.means / self.counts.sum()

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows around the center, in float64, as many as the working memory holds."""
        center, (C, d) = self.center, self.means.shape
        for part in row_batches(len(self.own), 8 * (8 * d + 4 * C)):
            yield part, as_tensor(self.X[part]).cpu().double().numpy() - center


def _under_matrices(
    Z: np.ndarray,
    means: np.ndarray,
    own: np.ndarray,
    precisions: np.ndarray,
    removed: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Squared distances to all means without each row, and to its own mean with it."""
    shift = Z - means[own]
    # Norms of rows, of their ways from their own means, and dot products of the two.
    norms, along, toward = (A @ precisions.T for A in (Z**2, shift**2, Z * shift))
    for k, (precision, weight) in enumerate(zip(precisions, removed, strict=True)):
        scaled = (means * precision).T
        cross, gram = Z @ scaled, means @ scaled
        rest = 1 - weight * along[:, k]
        rest[rest <= _MIN_REST] = np.nan
        distances = np.maximum(norms[:, [k]] + np.diagonal(gram) - 2 * cross, 0.0)
        products = toward[:, [k]] - cross + gram[own]
        distances += (weight / rest)[:, None] * products**2
        yield distances, along[:, k] / rest


def _under_variances(
    Z: np.ndarray,
    means: np.ndarray,
    own: np.ndarray,
    precisions: np.ndarray,
    removed: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same where a row takes its square from every variance, and nothing between them."""
    shift = (Z - means[own]) ** 2
    for precision, weight in zip(precisions, removed, strict=True):
        rest = 1 - weight[:, None] * (shift * precision)
        rest[rest <= _MIN_REST] = np.nan
        own_precisions = precision / rest
        scaled = own_precisions * Z
        distances = own_precisions @ (means**2).T - 2 * (scaled @ means.T)
        distances += (scaled * Z).sum(axis=1, keepdims=True)
        yield np.maximum(distances, 0.0), (own_precisions * shift).sum(axis=1)


def _leave_one_out_distances(
    rows: LeftOut,
    part: slice,
    Z: np.ndarray,
    means: np.ndarray,
    spectra: np.ndarray,
    pulls: np.ndarray,
    *,
    variances: bool,
) -> Iterator[np.ndarray]:
    r"""Yield squared Mahalanobis distances of rows to the classes as they are without them.

    The covariance :math:`\Sigma = a S + K` of the scatter :math:`S` and a fixed matrix becomes
    :math:`\frac{n}{n - w} (a S_{-i} + K)` without row i of weight w: the divisor follows the rows
    that are left, and the multiple of the target that is added to the scatter stays.

    Parameters
    ----------
    rows : LeftOut
    part : slice
        Rows that Z holds.
    Z : ndarray of shape (m, n_features)
        Those rows, in coordinates in which the covariances are diagonal.
    means : ndarray of shape (n_classes, n_features)
        The means of the classes in these coordinates.
    spectra : ndarray of shape (n_covariances, n_features)
        The diagonals.
    pulls : ndarray of shape (n_covariances,)
        The factors a of the scatter.
    variances : bool
        Whether the scatter is diagonal for any rows, of which only squares are added up.

    Yields
    ------
    distances : ndarray of shape (m, n_classes)
        Under one covariance after the other; inf to the class of a row that was its only one, NaN
        where a row alone spans a direction.
    """
    own, w, n = rows.own[part], rows.weights[part], rows.counts.sum()
    held = rows.counts[own]
    # What is left of a count of 1 may be a rounding error.
    alone = held - w <= 1e-9 * held
    grown = held / np.where(alone, held, held - w)
    lost = np.where(alone, 0.0, w * grown)
    under = _under_variances if variances else _under_matrices
    for distances, along in under(Z, means, own, 1 / spectra, np.outer(pulls, lost)):
        distances[np.arange(len(own)), own] = np.where(alone, np.inf, grown**2 * along)
        yield distances * ((n - w) / n)[:, None]


def distances_without(
    rows: LeftOut, covariance: np.ndarray, pull: float
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield squared Mahalanobis distances of rows to the classes as they are without them.

    Parameters
    ----------
    rows : LeftOut
    covariance : ndarray of shape (n_features, n_features) or (n_features,)
        With all rows: a matrix, or variances.
    pull : float
        Factor of the scatter in it; what else is in it stays.

    Yields
    ------
    part : slice
        Rows, a block that fits the working memory.
    distances : ndarray of shape (m, n_classes)
        Theirs; inf to the class of a row that was its only one, NaN where a row alone spans a
        direction.
    """
    means, variances = rows.means - rows.center, covariance.ndim == 1
    factor = None if variances else SymmetricFactor(covariance)
    spectrum = covariance if factor is None else np.ones(len(covariance))
    means = means if factor is None else factor.half(means)
    for part, block in rows.blocks():
        Z = block if factor is None else factor.half(block)
        found = _leave_one_out_distances(
            rows, part, Z, means, spectrum[None], np.array([pull]), variances=variances
        )
        yield part, next(found)


def _spectra(
    covariance: np.ndarray, target: str, shares: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """A basis that makes the covariance diagonal for every share, and what it is there."""
    if covariance.ndim == 1:
        values, basis = covariance, None
    else:
        scale = np.ones(len(covariance))
        if target == "diag":
            # Of the correlations, since their target is the identity.
            variances = np.diagonal(covariance)
            scale = np.sqrt(np.maximum(variances, np.finfo(np.float64).tiny))
            covariance = covariance / scale / scale[:, None]
        values, vectors = symmetric_eigen(covariance)
        basis = vectors / scale[:, None]
    level = values.mean() if target == "identity" else 1.0
    shares = shares[:, None]
    spectra = (1 - shares) * np.maximum(values, 0.0) + shares * level
    floor = len(values) * np.finfo(np.float64).eps * spectra.max(axis=1, keepdims=True)
    return basis, np.maximum(spectra, floor)


def loo_accuracies(
    rows: LeftOut, covariance: np.ndarray, *, target: str, shares: np.ndarray, priors: object
) -> np.ndarray:
    """Return the share of rows that are classified rightly when left out, for every shrinkage.

    Parameters
    ----------
    rows : LeftOut
    covariance : ndarray of shape (n_features, n_features) or (n_features,)
        Pooled over the classes, not shrunk: a matrix, or variances.
    target : {"identity", "unit", "diag"}
        What is shrunk towards; "diag" is for a matrix.
    shares : ndarray of shape (n_shares,)
        Shrinkages.
    priors : callable
        Adds the logarithms of the priors to the scores of a part of the rows, in place.

    Returns
    -------
    accuracies : ndarray of shape (n_shares,)
        Weighted. A row that alone spans a direction counts as wrong.

    Notes
    -----
    One eigendecomposition and one map of the rows for all shrinkages, then one product with the
    class means for each; two for variances, which need neither of the first.
    """
    basis, spectra = _spectra(covariance, target, shares)
    pulls = (1 - shares) / rows.counts.sum()
    means = rows.means - rows.center
    means = means if basis is None else means @ basis
    right = np.zeros(len(shares))
    for part, block in rows.blocks():
        own, weights = rows.own[part], rows.weights[part]
        Z = block if basis is None else block @ basis
        found = _leave_one_out_distances(
            rows, part, Z, means, spectra, pulls, variances=basis is None
        )
        for k, distances in enumerate(found):
            scores = -0.5 * distances
            priors(scores, part)
            # A row whose scores are not known is wrong.
            known = ~np.isnan(scores).any(axis=1)
            right[k] += weights[known & (scores.argmax(axis=1) == own)].sum()
    return right / rows.weights.sum()
