# SPDX-License-Identifier: BSD-3-Clause
"""From neighbours to votes: how much each neighbour counts, and what each class collects.

Pure functions on numpy arrays of shape (n_queries, n_neighbors), shared by the classifiers of
this room. `WEIGHTS` names the ways to weigh.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["WEIGHTS", "neighbor_weights", "vote_probabilities"]


def weights_exp(distances: np.ndarray, *, metric: str, temperature: float) -> np.ndarray:
    """Weigh by exp(similarity / temperature), divided by that of the nearest.

    The similarity is the cosine, the dot product, or minus the squared Euclidean distance.
    """
    energy = distances**2 if metric == "euclidean" else distances
    # The nearest weighs 1, so nothing overflows and not all can underflow.
    return np.exp((energy[:, :1] - energy) / temperature)


def weights_uniform(distances: np.ndarray, *, metric: str, temperature: float) -> np.ndarray:
    """Weigh every neighbour 1."""
    return np.ones_like(distances)


def weights_distance(distances: np.ndarray, *, metric: str, temperature: float) -> np.ndarray:
    """Weigh by the inverse distance; where some are 0, these alone, equally."""
    if metric == "dot":
        raise ValueError(
            "weights='distance' has no meaning with metric='dot', whose distances are minus the "
            "product; use weights='exp' or 'rank'."
        )
    zero = distances == 0
    inverse = 1 / np.where(zero, 1.0, distances)
    return np.where(zero.any(axis=1, keepdims=True), zero.astype(np.float64), inverse)


def weights_rank(distances: np.ndarray, *, metric: str, temperature: float) -> np.ndarray:
    """Weigh the nearest k, the next k - 1, and the last 1."""
    k = distances.shape[1]
    return np.broadcast_to(np.arange(k, 0, -1, dtype=np.float64), distances.shape)


WEIGHTS: dict[str, Callable[..., np.ndarray]] = {
    "distance": weights_distance,
    "exp": weights_exp,
    "rank": weights_rank,
    "uniform": weights_uniform,
}


def neighbor_weights(
    distances: np.ndarray, weights: str | Callable, *, metric: str, temperature: float
) -> np.ndarray:
    """Return how much each neighbour counts.

    Parameters
    ----------
    distances : ndarray of shape (n_queries, n_neighbors)
        Ascending.
    weights : {"exp", "uniform", "distance", "rank"} or callable
        A callable takes the distances and returns weights of the same shape.
    metric : {"cosine", "euclidean", "dot"}
        What the distances are.
    temperature : float
        For "exp".

    Returns
    -------
    weights : ndarray of shape (n_queries, n_neighbors)
        At least 0 and not all 0 for any query.

    Raises
    ------
    ValueError
        A callable returned anything else.
    """
    if not callable(weights):
        return WEIGHTS[weights](distances, metric=metric, temperature=temperature)
    result = np.asarray(weights(distances), dtype=np.float64)
    if result.shape != distances.shape:
        raise ValueError(
            f"The callable given as weights returned shape {result.shape} for distances of shape "
            f"{distances.shape}; return one weight per distance."
        )
    if not np.isfinite(result).all() or (result < 0).any() or not result.any(axis=1).all():
        raise ValueError(
            "The callable given as weights returned weights that are negative, infinite, NaN, or "
            "0 for all neighbours of a query; return finite weights of at least 0."
        )
    return result


def vote_probabilities(
    codes: np.ndarray, weights: np.ndarray, n_classes: int, *, class_sizes: np.ndarray | float
) -> np.ndarray:
    """Return the share of the votes that each class collects.

    Parameters
    ----------
    codes : ndarray of shape (n_queries, n_neighbors)
        Class of each neighbour, 0 to n_classes - 1.
    weights : ndarray of shape (n_queries, n_neighbors)
        Its weight.
    n_classes : int
        Number of classes.
    class_sizes : ndarray broadcast to (n_queries, n_classes), or float
        The votes of a class are divided by its size.

    Returns
    -------
    probabilities : ndarray of shape (n_queries, n_classes)
        Rows sum to 1.
    """
    m = len(codes)
    cells = (codes + n_classes * np.arange(m)[:, None]).ravel()
    votes = np.bincount(cells, weights=weights.ravel(), minlength=m * n_classes)
    votes = votes.reshape(m, n_classes) / class_sizes
    return votes / votes.sum(axis=1, keepdims=True)
