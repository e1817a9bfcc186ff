# SPDX-License-Identifier: BSD-3-Clause
"""How near rows are to prototypes: one function per metric, larger is nearer.

Pure functions on tensors, on any device. `METRICS` names them. All take leading batch axes, so
one prototype per row can be scored too.
"""

from collections.abc import Callable

import torch

from skpool.utils import all_finite, check_squares, squares_fit, unit_rows

__all__ = [
    "METRICS",
    "scores_cosine",
    "scores_dot",
    "scores_euclidean",
    "scores_mahalanobis",
    "scores_manhattan",
]

# Of a vector whose squares neither overflow nor vanish in float32.
_SMALLEST_NORM = 1e-15


def scores_cosine(X: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Return cosines, 0 where either vector is zero.

    Parameters
    ----------
    X : tensor of shape (..., n, d)
        float32 or float64.
    prototypes : tensor of shape (..., C, d)
        On the same device, of the same or a wider type.

    Returns
    -------
    scores : tensor of shape (..., n, C)
        Of the type of X.
    """
    prototypes = unit_rows(prototypes).to(X.dtype)
    norms = torch.linalg.vector_norm(X, dim=-1, keepdim=True)
    lowest, highest = norms.aminmax()
    if _SMALLEST_NORM <= lowest and highest <= 1 / _SMALLEST_NORM:
        # Dividing the scores instead of the rows spares a copy of these.
        return (X @ prototypes.mT).div_(norms)
    return unit_rows(X) @ prototypes.mT


def _in_range(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    X: torch.Tensor,
    prototypes: torch.Tensor,
) -> torch.Tensor:
    """Return ``score(X, prototypes)`` in the type of X, or in a wider one that its squares need."""
    if X.dtype != prototypes.dtype:
        narrow = prototypes.to(X.dtype)
        scores = score(X, narrow) if squares_fit(narrow) else None
        if scores is not None and all_finite(scores):
            return scores
        X = X.to(prototypes.dtype)
    check_squares(prototypes)
    scores = score(X, prototypes)
    if not all_finite(scores):
        check_squares(X, vanishing=False)
    return scores


def scores_dot(X: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Return dot products.

    Parameters
    ----------
    X : tensor of shape (..., n, d)
        float32 or float64.
    prototypes : tensor of shape (..., C, d)
        On the same device, of the same or a wider type.

    Returns
    -------
    scores : tensor of shape (..., n, C)
        Of the type of X, or of the prototypes where products leave its range.
    """
    return _in_range(lambda X, prototypes: X @ prototypes.mT, X, prototypes)


def _centered(X: torch.Tensor, prototypes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Subtract the mean prototype from both: far from 0, products would lose all digits."""
    # One rounded centre for both, so that it cancels exactly.
    center = prototypes.mean(dim=-2, keepdim=True).to(X.dtype)
    return X - center, prototypes - center


def scores_euclidean(X: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Return minus half the squared Euclidean distances: Gaussian log-densities.

    Parameters
    ----------
    X : tensor of shape (..., n, d)
        float32 or float64.
    prototypes : tensor of shape (..., C, d)
        On the same device, of the same or a wider type.

    Returns
    -------
    scores : tensor of shape (..., n, C)
        Of the type of X, or of the prototypes where squares leave its range.
    """
    return _in_range(_half_squared_distances, *_centered(X, prototypes))


def _half_squared_distances(X: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    scores = X @ prototypes.mT
    scores -= torch.linalg.vector_norm(X, dim=-1).square()[..., :, None] / 2
    scores -= torch.linalg.vector_norm(prototypes, dim=-1).square()[..., None, :] / 2
    return scores.clamp_(max=0)


def scores_mahalanobis(
    X: torch.Tensor, prototypes: torch.Tensor, *, deviations: torch.Tensor
) -> torch.Tensor:
    """Return minus half the squared Mahalanobis distances.

    Parameters
    ----------
    X : tensor of shape (..., n, d)
        float32 or float64.
    prototypes : tensor of shape (..., C, d)
        On the same device, of the same or a wider type.
    deviations : tensor of shape (d, d) or (d,)
        Lower Cholesky factor of the covariance, or standard deviations where it is diagonal; of
        the type of the prototypes.

    Returns
    -------
    scores : tensor of shape (..., n, C)
        Of the type of X; rows and prototypes are mapped in the type of the factor.
    """
    rows, means = _centered(X, prototypes)
    rows, means = (_whitened(part.to(deviations.dtype), deviations) for part in (rows, means))
    return scores_euclidean(rows, means).to(X.dtype)


def _whitened(rows: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Return x L^-T: Euclidean distances of such rows are Mahalanobis distances."""
    if deviations.ndim == 1:
        return rows / deviations
    return torch.linalg.solve_triangular(deviations.mT, rows, upper=True, left=False)


def scores_manhattan(X: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Return minus the sums of absolute differences.

    Parameters
    ----------
    X : tensor of shape (..., n, d)
        float32 or float64.
    prototypes : tensor of shape (..., C, d)
        On the same device, of the same or a wider type.

    Returns
    -------
    scores : tensor of shape (..., n, C)
        Of the type of X.
    """
    X, prototypes = _centered(X, prototypes)
    return -torch.cdist(X, prototypes.to(X.dtype), p=1)


METRICS: dict[str, Callable[..., torch.Tensor]] = {
    "cosine": scores_cosine,
    "dot": scores_dot,
    "euclidean": scores_euclidean,
    "mahalanobis": scores_mahalanobis,
    "manhattan": scores_manhattan,
}
