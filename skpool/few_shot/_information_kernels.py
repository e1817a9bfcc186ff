# SPDX-License-Identifier: BSD-3-Clause
"""The loss of transductive information maximisation, its gradient, and its closed-form steps.

For one episode, with logits z of supports and queries,

    L = l1 * mean_s CE(y_s, softmax z_s) - l2 * H(mean_q p_q) + l3 * mean_q H(p_q).

Functions of logits alone; `InformationMaximizationClassifier` makes logits of prototypes.
"""

from typing import NamedTuple

import torch

__all__ = ["Terms", "entropies", "entropy_slopes", "loss_and_slopes", "query_targets"]


class Terms(NamedTuple):
    """What the loss is made of."""

    supports: torch.Tensor  # (E, N, n_s), one-hot
    queries: torch.Tensor  # (E, 1, n_q), 1 or 0 for padding
    weights: tuple[float, float, float]
    alpha: float  # of Tsallis' entropy of the queries; 1 is Shannon's

    @property
    def n_supports(self) -> torch.Tensor:
        """Supports of the episodes, (E, 1, 1)."""
        return self.supports.sum(dim=(1, 2), keepdim=True)

    @property
    def n_queries(self) -> torch.Tensor:
        """Queries of the episodes, at least 1, (E, 1, 1)."""
        return self.queries.sum(dim=2, keepdim=True).clamp(min=1)


def entropies(proba: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return Tsallis' entropy over the classes (axis 1), Shannon's for 1."""
    if alpha == 1:
        return torch.special.entr(proba).sum(dim=1)
    return (1 - proba.pow(alpha).sum(dim=1)) / (alpha - 1)


def entropy_slopes(proba: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the derivatives of `entropies` by the probabilities."""
    if alpha == 1:
        return -1 - proba.clamp(min=torch.finfo(proba.dtype).tiny).log()
    return proba.pow(alpha - 1).mul_(-alpha / (alpha - 1))


def loss_and_slopes(logits: torch.Tensor, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses (E,) and their derivatives by the logits (E, N, n_s + n_q)."""
    n_s, (of_supports, of_mix, of_each) = terms.supports.shape[2], terms.weights
    log_proba = logits.log_softmax(dim=1)
    proba = log_proba.exp()
    hits = log_proba[:, :, :n_s] * terms.supports
    p_q, share = proba[:, :, n_s:], terms.queries / terms.n_queries
    mix = (p_q * share).sum(dim=2, keepdim=True)
    losses = (
        (of_each * (entropies(p_q, terms.alpha) * share[:, 0])).sum(dim=1)
        - of_mix * entropies(mix, terms.alpha)[:, 0]
        - of_supports * hits.sum(dim=(1, 2)) / terms.n_supports[:, 0, 0]
    )
    real = terms.supports.sum(dim=1, keepdim=True)
    slopes_s = (proba[:, :, :n_s] * real - terms.supports) * (of_supports / terms.n_supports)
    by_proba = of_each * entropy_slopes(p_q, terms.alpha) - of_mix * entropy_slopes(
        mix, terms.alpha
    )
    by_proba = by_proba * share
    slopes_q = p_q * (by_proba - (p_q * by_proba).sum(dim=1, keepdim=True))
    return losses, torch.cat([slopes_s, slopes_q], dim=2)


def query_targets(proba: torch.Tensor, terms: Terms) -> torch.Tensor:
    """Return the assignments (E, N, n_q) that are best for these posteriors (Shannon)."""
    _, of_mix, of_each = terms.weights
    powers = proba.pow(1 + of_each) * terms.queries
    totals = powers.sum(dim=2, keepdim=True).clamp_(min=torch.finfo(proba.dtype).tiny)
    targets = powers / totals.pow(of_mix / (of_mix + 1))
    sums = targets.sum(dim=1, keepdim=True)
    return targets / torch.where(sums > 0, sums, 1.0)
