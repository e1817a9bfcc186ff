# SPDX-License-Identifier: BSD-3-Clause
"""How near rows are to prototypes: one function per metric, larger is nearer.

Pure functions on tensors, on any device. `METRICS` names them. All take leading batch axes, so
one prototype per row can be scored too.
"""

from collections.abc import Callable

import torch

from skpool.utils import unit_rows

__all__ = [
    "METRICS",
    "scores_cosine",
    "scores_dot",
    "scores_euclidean",
    "scores_mahalanobis",
    "scores_manhattan",
]


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
    return unit_rows(X) @ unit_rows(prototypes).to(X.dtype).mT


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
        Of the type of X.
    """
    return X @ prototypes.to(X.dtype).mT


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
        Of the type of X.
    """
    X, prototypes = _centered(X, prototypes)
    prototypes = prototypes.to(X.dtype)
    norms = X.square().sum(dim=-1)[..., :, None] + prototypes.square().sum(dim=-1)[..., None, :]
    return (X @ prototypes.mT - norms / 2).clamp(max=0)


def scores_mahalanobis(
    X: torch.Tensor, prototypes: torch.Tensor, *, cholesky: torch.Tensor
) -> torch.Tensor:
    """Return minus half the squared Mahalanobis distances.

    Parameters
    ----------
    X : tensor of shape (..., n, d)
        float32 or float64.
    prototypes : tensor of shape (..., C, d)
        On the same device, of the same or a wider type.
    cholesky : tensor of shape (d, d)
        Lower Cholesky factor of the covariance, of the type of the prototypes.

    Returns
    -------
    scores : tensor of shape (..., n, C)
        Of the type of X; rows and prototypes are mapped in the type of the factor.
    """
    rows, means = _centered(X, prototypes)
    # x L^-T, so that Euclidean distances of the mapped rows are Mahalanobis distances.
    rows, means = (
        torch.linalg.solve_triangular(cholesky.mT, part.to(cholesky.dtype), upper=True, left=False)
        for part in (rows, means)
    )
    return scores_euclidean(rows, means).to(X.dtype)


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
