# SPDX-License-Identifier: BSD-3-Clause
"""Soft assignments of queries to prototypes that neighbours pull towards one another.

The energy of one episode, with D the distances divided by the temperature and W a graph,

    E(S) = sum s_pk D_pk - (lam / 2) sum w_pq <s_p, s_q> + sum s_pk log s_pk,

is lowered by parallel steps. `TransductivePrototypeClassifier` alternates them with prototypes.
"""

from typing import NamedTuple

import torch

__all__ = ["Pull", "assign", "damping_of", "energy", "pulled"]


class Pull(NamedTuple):
    """How neighbours pull at a query."""

    graph: torch.Tensor  # (E, n_q, n_q), among the queries; row p holds the weights of p's
    weight: float  # lam
    damping: torch.Tensor  # (E, 1, 1)


def damping_of(graph: torch.Tensor, weight: float) -> torch.Tensor:
    r"""Return how much a step must be held back so that the energy cannot rise, (E, 1, 1).

    A step minimises the energy with the pull of the neighbours made linear, plus tau times the
    divergence from where it starts. It lowers E by the divergences, at least :math:`(1 + 2\tau)
    \|v\|^2` for a step v, less :math:`\text{lam} \, \rho / 2 \cdot \|v\|^2` at most, where
    :math:`\rho` bounds the size of the negative eigenvalues of a symmetric W.
    """
    degrees = graph.sum(dim=2, keepdim=True)
    if not graph.numel():
        return graph.new_zeros(len(graph), 1, 1)
    # The largest eigenvalue of a matrix without negative entries is at most this.
    ratio = (graph @ degrees) / degrees.clamp(min=torch.finfo(graph.dtype).tiny)
    bound = ratio.amax(dim=1, keepdim=True)
    return (weight * bound / 4 - 0.5).clamp_(min=0)


def pulled(proba: torch.Tensor, pull: Pull) -> torch.Tensor:
    """Return what the neighbours add to the scores (E, N, n_q)."""
    return pull.weight * (proba @ pull.graph.mT)


def energy(
    log_proba: torch.Tensor, proba: torch.Tensor, costs: torch.Tensor, pull: torch.Tensor | float
) -> torch.Tensor:
    """Return the part of the energy that assignments decide, (E,); `proba` is 0 for padding."""
    return (proba * (log_proba + costs - 0.5 * pull)).sum(dim=(1, 2))


def assign(
    costs: torch.Tensor,
    pull: Pull | None,
    *,
    weights: torch.Tensor,
    start: torch.Tensor | None = None,
    max_iter: int = 20,
    tol: float = 1e-6,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return logarithms of assignments, and the energy after each step.

    Parameters
    ----------
    costs : tensor of shape (E, N, n_q)
        D.
    pull : Pull or None
        None for no neighbours; one step is then exact.
    weights : tensor of shape (E, 1, n_q)
        1 for queries, 0 for padding.
    start : tensor of shape (E, N, n_q), default=None
        Logarithms of the assignments to start from; None for those without neighbours.
    max_iter : int, default=20
        Most steps.
    tol : float, default=1e-6
        Relative change of the energy at which an episode stops.

    Returns
    -------
    log_proba : tensor of shape (E, N, n_q)
    energies : list of tensors of shape (E,)
    """
    alone = (-costs).log_softmax(dim=1)
    if pull is None:
        return alone, [energy(alone, alone.exp() * weights, costs, 0.0)]
    log_proba = alone if start is None else start
    proba = log_proba.exp() * weights
    force = pulled(proba, pull)
    energies = [energy(log_proba, proba, costs, force)]
    moving = torch.ones_like(costs[:, :1, :1], dtype=torch.bool)
    held_back = bool((pull.damping > 0).any())
    for _ in range(max_iter):
        scores = force - costs
        if held_back:
            scores = (scores + pull.damping * log_proba) / (1 + pull.damping)
        log_proba = torch.where(moving, scores.log_softmax(dim=1), log_proba)
        proba = log_proba.exp() * weights
        force = pulled(proba, pull)
        energies.append(energy(log_proba, proba, costs, force))
        change = (energies[-1] - energies[-2]).abs() > tol * energies[-2].abs()
        moving = moving & change[:, None, None]
        if not bool(moving.any()):
            break
    return log_proba, energies
