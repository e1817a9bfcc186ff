# SPDX-License-Identifier: BSD-3-Clause
"""k-means whose clusters hold at most so many rows: the clustering behind several prototypes.

Pure functions on arrays. `SubclassClustering` and `MultiPrototypeClassifier` cluster the rows of
one class at a time, so what comes in here is small.
"""

import numpy as np
import scipy.sparse
import torch
from sklearn.cluster import kmeans_plusplus

from skpool.utils import unit_rows

__all__ = ["assign_with_capacity", "capacity_kmeans", "cluster_means"]


def assign_with_capacity(distances: np.ndarray, capacity: int) -> np.ndarray:
    """Give rows to clusters, the nearest pairs first, with at most `capacity` rows in each.

    Parameters
    ----------
    distances : ndarray of shape (n, k)
        Of rows and cluster centres.
    capacity : int
        Rows per cluster, at least n / k.

    Returns
    -------
    labels : ndarray of shape (n,)
        What a walk through all pairs by distance gives that skips rows already given and clusters
        already full. Ties go to the first row, then to the first cluster.

    Notes
    -----
    Computed without the walk: rows ask for their nearest cluster, full clusters refuse the
    farthest who ask, and the refused ask for their next. Such a matching is stable, and the pairs
    have one order for both sides, for which only one stable matching exists.
    """
    n = len(distances)
    wishes = np.argsort(distances, axis=1, kind="stable")
    asked, everyone = np.zeros(n, dtype=np.intp), np.arange(n)
    while True:
        labels = wishes[everyone, asked]
        order = np.lexsort((distances[everyone, labels], labels))
        places = everyone - np.searchsorted(labels[order], labels[order])
        refused = order[places >= capacity]
        if not len(refused):
            return labels
        asked[refused] += 1


def cluster_means(
    rows: np.ndarray, labels: np.ndarray, *, n_clusters: int, unit: bool = False
) -> np.ndarray:
    """Return the means of clusters, scaled to unit length where asked; zeros for an empty one."""
    entries = (np.ones(len(rows)), labels, np.arange(len(rows) + 1))
    sums = scipy.sparse.csc_array(entries, shape=(n_clusters, len(rows))) @ rows
    means = sums / np.maximum(np.bincount(labels, minlength=n_clusters), 1)[:, None]
    return unit_rows(torch.from_numpy(means)).numpy() if unit else means


def _squared_distances(rows: np.ndarray, centers: np.ndarray) -> np.ndarray:
    norms = (rows**2).sum(axis=1)[:, None] + (centers**2).sum(axis=1)
    return np.maximum(norms - 2 * rows @ centers.T, 0.0)


def _one_run(
    rows: np.ndarray, n_clusters: int, capacity: int, max_iter: int, unit: bool, seed: int
) -> tuple[float, np.ndarray]:
    centers, _ = kmeans_plusplus(rows, n_clusters, random_state=seed)
    labels = np.full(len(rows), -1)
    for _ in range(max_iter):
        distances = _squared_distances(rows, centers)
        before, labels = labels, assign_with_capacity(distances, capacity)
        if (labels == before).all():
            break
        moved = cluster_means(rows, labels, n_clusters=n_clusters, unit=unit)
        held = np.bincount(labels, minlength=n_clusters) > 0
        centers = np.where(held[:, None], moved, centers)
    return float(((rows - centers[labels]) ** 2).sum()), labels


def capacity_kmeans(
    rows: np.ndarray,
    n_clusters: int,
    *,
    capacity: int | None = None,
    metric: str = "euclidean",
    n_init: int = 3,
    max_iter: int = 20,
    seed: int = 0,
) -> np.ndarray:
    """Cluster rows by k-means in which no cluster holds more than `capacity` of them.

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        In float64; of unit length for the cosine.
    n_clusters : int
        From 1 to n.
    capacity : int, default=None
        Rows per cluster, at least n / n_clusters; None for no limit.
    metric : {"cosine", "euclidean"}, default="euclidean"
        "cosine" scales centres to unit length.
    n_init : int, default=3
        Starts, of which the one with the smallest sum of squared distances counts.
    max_iter : int, default=20
        Iterations of a start, at most.
    seed : int, default=0
        Of the starts, which are k-means++.

    Returns
    -------
    labels : ndarray of shape (n,)
        From 0 on; a cluster left empty is not counted.

    Notes
    -----
    Of each iteration O(n k d + n k log k); memory O(n k).
    """
    capacity = len(rows) if capacity is None else capacity
    if n_clusters == 1:
        return np.zeros(len(rows), dtype=np.intp)
    # The centre of the rows has no part in distances, and far from zero it costs their digits.
    rows = rows if metric == "cosine" else rows - rows.mean(axis=0)
    seeds = np.random.default_rng(seed).integers(2**31, size=n_init).tolist()
    runs = [
        _one_run(rows, n_clusters, capacity, max_iter, metric == "cosine", one) for one in seeds
    ]
    best = min(range(n_init), key=lambda i: runs[i][0])
    return np.unique(runs[best][1], return_inverse=True)[1]
