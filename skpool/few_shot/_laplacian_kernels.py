# SPDX-License-Identifier: BSD-3-Clause
"""Soft assignments of queries to prototypes that neighbours pull towards one another.

The energy of one episode, with D the distances divided by the temperature and W a graph,

    E(S) = sum s_pk D_pk - (lam / 2) sum w_pq <s_p, s_q> + sum s_pk log s_pk,

is lowered by parallel steps. `TransductivePrototypeClassifier` alternates them with prototypes.
"""

from typing import NamedTuple

import torch

__all__ = ["Pull", "assign", "damping_of"]


class Pull(NamedTuple):
    """How neighbours pull at a query."""

    # (E, n_q, n_q), among the queries; column p holds the weights of p's, as products want them.
    graph: torch.Tensor
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


def _scores(proba: torch.Tensor, costs: torch.Tensor, pull: Pull) -> torch.Tensor:
    """Return what the neighbours add to minus the costs, (E, N, n_q)."""
    return torch.baddbmm(costs, proba, pull.graph, beta=-1, alpha=pull.weight)


def _energy(
    log_proba: torch.Tensor, proba: torch.Tensor, costs: torch.Tensor, scores: torch.Tensor
) -> torch.Tensor:
    """Return the part of the energy that assignments decide, (E,); `proba` is 0 for padding.

    Half of the pull is half of the scores and the costs.
    """
    inner = torch.add(log_proba, costs - scores, alpha=0.5)
    return torch.linalg.vecdot(proba.flatten(1), inner.flatten(1))


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
    padded = not bool(weights.all())

    def probabilities(log_proba: torch.Tensor) -> torch.Tensor:
        return log_proba.exp().mul_(weights) if padded else log_proba.exp()

    if pull is None:
        alone = (-costs).log_softmax(dim=1)
        return alone, [_energy(alone, probabilities(alone), costs, -costs)]
    log_proba = (-costs).log_softmax(dim=1) if start is None else start
    proba = probabilities(log_proba)
    scores = _scores(proba, costs, pull)
    energies = [_energy(log_proba, proba, costs, scores)]
    held_back = bool((pull.damping > 0).any())
    found, moving = torch.empty_like(costs), torch.ones_like(energies[0], dtype=torch.bool)
    at = torch.arange(len(costs), device=costs.device)
    for step in range(max_iter):
        if held_back:
            scores = (scores + pull.damping * log_proba) / (1 + pull.damping)
        log_proba = scores.log_softmax(dim=1)
        proba = probabilities(log_proba)
        scores = _scores(proba, costs, pull)
        before = energies[-1]
        value = torch.where(moving, _energy(log_proba, proba, costs, scores), before[at])
        energies.append(before.index_copy(0, at, value))
        goes_on = moving & ((value - before[at]).abs() > tol * before[at].abs())
        stops = moving & ~goes_on if step + 1 < max_iter else moving
        found[at[stops]] = log_proba[stops]
        moving = goes_on
        n_moving = int(moving.sum())
        if not n_moving:
            break
        if 2 * n_moving <= len(at):
            # Steps are taken for those alone that still move.
            at, costs, scores, log_proba, weights = (
                part[moving] for part in (at, costs, scores, log_proba, weights)
            )
            pull = pull._replace(graph=pull.graph[moving], damping=pull.damping[moving])
            moving = moving[moving]
    return found, energies
