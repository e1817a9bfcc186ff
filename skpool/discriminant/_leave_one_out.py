# SPDX-License-Identifier: BSD-3-Clause
"""Leave-one-out of linear discriminants in closed form: no refit, one product for all rows.

Taking a row away moves the mean of its class and changes the scatter by a matrix of rank one, so
distances under the smaller set follow from those under the whole (Sherman and Morrison). In
coordinates in which the covariance is diagonal this needs dot products alone, for any number of
shrinkages.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from skpool.statistics import symmetric_eigen
from skpool.utils import ArrayLike, as_tensor, row_batches

__all__ = ["LeftOut", "leave_one_out_distances", "loo_accuracies"]

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
        for part in row_batches(len(self.own), 8 * (4 * d + 4 * C)):
            yield part, as_tensor(self.X[part]).cpu().double().numpy() - center


def leave_one_out_distances(
    rows: LeftOut,
    part: slice,
    Z: np.ndarray,
    means: np.ndarray,
    spectra: np.ndarray,
    pulls: np.ndarray,
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
    shift, precisions = Z - means[own], 1 / spectra
    # Norms of rows, of their ways from their own means, and dot products of the two.
    norms, along, toward = (A @ precisions.T for A in (Z**2, shift**2, Z * shift))
    for k, (precision, pull) in enumerate(zip(precisions, pulls, strict=True)):
        scaled = (means * precision).T
        cross, gram = Z @ scaled, means @ scaled
        rest = 1 - pull * lost * along[:, k]
        rest[rest <= _MIN_REST] = np.nan
        distances = np.maximum(norms[:, [k]] + np.diagonal(gram) - 2 * cross, 0.0)
        products = toward[:, [k]] - cross + gram[own]
        distances += (pull * lost / rest)[:, None] * products**2
        nearest = np.where(alone, np.inf, grown**2 * along[:, k] / rest)
        distances[np.arange(len(own)), own] = nearest
        yield distances * ((n - w) / n)[:, None]


def _spectra(
    scatter: np.ndarray, n: float, target: str, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A basis that makes the covariance diagonal for every share, and what it is there."""
    covariance, scale = scatter / n, np.ones(len(scatter))
    if target == "diag":
        # Of the correlations, since their target is the identity.
        variances = np.diagonal(covariance)
        scale = np.sqrt(np.maximum(variances, np.finfo(np.float64).tiny))
        covariance = covariance / scale / scale[:, None]
    values, vectors = symmetric_eigen(covariance)
    level = values.mean() if target == "identity" else 1.0
    shares = shares[:, None]
    spectra = (1 - shares) * np.maximum(values, 0.0) + shares * level
    floor = len(values) * np.finfo(np.float64).eps * spectra.max(axis=1, keepdims=True)
    return vectors / scale[:, None], np.maximum(spectra, floor)


def loo_accuracies(
    rows: LeftOut, scatter: np.ndarray, *, target: str, shares: np.ndarray, priors: object
) -> np.ndarray:
    """Return the share of rows that are classified rightly when left out, for every shrinkage.

    Parameters
    ----------
    rows : LeftOut
    scatter : ndarray of shape (n_features, n_features)
        Pooled over the classes.
    target : {"identity", "unit", "diag"}
        What is shrunk towards.
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
    class means for each.
    """
    n = rows.counts.sum()
    basis, spectra = _spectra(scatter, n, target, shares)
    means = (rows.means - rows.center) @ basis
    right = np.zeros(len(shares))
    for part, block in rows.blocks():
        own, weights = rows.own[part], rows.weights[part]
        found = leave_one_out_distances(rows, part, block @ basis, means, spectra, (1 - shares) / n)
        for k, distances in enumerate(found):
            scores = -0.5 * distances
            priors(scores, part)
            # A row whose scores are not known is wrong.
            known = ~np.isnan(scores).any(axis=1)
            right[k] += weights[known & (scores.argmax(axis=1) == own)].sum()
    return right / rows.weights.sum()
