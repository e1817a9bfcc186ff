# SPDX-License-Identifier: BSD-3-Clause
"""What the transductive classifiers share, for many episodes at once: distances, graphs, plans.

Pure functions on tensors, on any device. The first axis is that of the episodes, and classes come
before rows, (E, N, n): reductions over classes then run along whole vectors. Queries that only
pad an episode have weight 0 in all that is summed.
"""

import numpy as np
import torch

from skpool.model_selection import EpisodeBatch

__all__ = [
    "Distances",
    "nearest_neighbors",
    "normalized",
    "query_weights",
    "squared_distances",
    "support_weights",
    "transport_plan",
]

# Relative to the mean curvature: far above rounding in float32, far below what moves a class.
_RIDGE = 1e-6


def support_weights(batch: EpisodeBatch) -> torch.Tensor:
    """Return 1 where a support row has a class, of shape (E, N, n_s); padding has none."""
    numbers = torch.arange(batch.n_way, device=batch.ys.device)[:, None]
    return (batch.ys[:, None] == numbers).to(batch.dtype)


def query_weights(batch: EpisodeBatch) -> torch.Tensor:
    """Return 1 for queries and 0 for padding, of shape (E, 1, n_q)."""
    if batch.query_mask is None:
        return torch.ones(len(batch), 1, batch.n_query, dtype=batch.dtype, device=batch.ys.device)
    return batch.query_mask[:, None].to(batch.dtype)


def normalized(weights: torch.Tensor) -> torch.Tensor:
    """Divide weights by their sums over the last axis; all 0 stays so."""
    sums = weights.sum(dim=-1, keepdim=True)
    return weights / torch.where(sums > 0, sums, 1.0)


def squared_distances(X: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Return the squared distances (..., n, N) of rows to a few vectors."""
    # One rounded centre for both, so that it cancels: far from 0, products lose all digits.
    center = means.mean(dim=-2, keepdim=True)
    X, means = X - center, means - center
    squares = X.square().sum(dim=-1)[..., :, None] + means.square().sum(dim=-1)[..., None, :]
    return squares.sub_(X @ means.mT, alpha=2).clamp_(min=0)


class Distances:
    """Squared distances from the rows of episodes to weighted means of the same rows.

    Supports come first, then queries. They need the inner products of the rows alone, so that
    means can be moved again and again at no cost that grows with the width of the rows.

    Parameters
    ----------
    batch : EpisodeBatch
    """

    def __init__(self, batch: EpisodeBatch):
        self._batch = batch
        self._products = batch.centered_products()
        self._squares = self._products.diagonal(dim1=1, dim2=2)[:, None].contiguous()

    def order(self, rows: slice) -> torch.Tensor:
        """Return what is in the order of the distances from each of some rows, (E, n, n).

        The distances less what is the same for a row.
        """
        return torch.sub(self._squares[:, :, rows], self._products[:, rows, rows], alpha=2)

    def to_means(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the distances of all rows to means, whose weights (E, N, n) sum to 1 a class."""
        products = weights @ self._products
        squares = (products * weights).sum(dim=2, keepdim=True) + self._squares
        return squares.sub_(products, alpha=2).clamp_(min=0)

    def means(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the means themselves, of shape (E, N, d)."""
        n_s = self._batch.Xs.shape[1]
        return weights[:, :, :n_s] @ self._batch.Xs + weights[:, :, n_s:] @ self._batch.Xq


def nearest_neighbors(
    distances: torch.Tensor, n_neighbors: int, *, weights: torch.Tensor
) -> torch.Tensor:
    """Return a graph with 1 from every row to its nearest others; rows as near as the last too.

    Parameters
    ----------
    distances : tensor of shape (E, n, n)
        From each row to the others, or what is in their order; changed.
    n_neighbors : int
        As many as there are, where there are fewer.
    weights : tensor of shape (E, 1, n)
        0 for padding, which is nobody's neighbour and has none, 1 for other rows.

    Returns
    -------
    graph : tensor of shape (E, n, n)
        True for neighbours.
    """
    n = distances.shape[-1]
    k = min(n_neighbors, n - 1)
    if k < 1:
        return torch.zeros_like(distances, dtype=torch.bool)
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    real = weights > 0
    padded = not bool(real.all())
    if padded:
        distances.masked_fill_(~real, torch.inf)
    if distances.device.type == "cpu":
        # Several times as fast as torch's selection.
        farthest = torch.from_numpy(np.partition(distances.numpy(), k - 1)[..., k - 1])
    else:
        farthest = distances.kthvalue(k, dim=-1).values
    # With fewer neighbours than k, the last ones are infinitely far.
    farthest.clamp_(max=torch.finfo(distances.dtype).max)
    graph = distances <= farthest[..., None]
    return graph.logical_and_(real.mT) if padded else graph


def transport_plan(
    costs: torch.Tensor,
    totals: torch.Tensor,
    *,
    weights: torch.Tensor,
    tol: float = 1e-6,
    max_iter: int = 100,
    start: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return plans :math:`P_{kq} = u_q e^{v_k - c_{kq}}` with given sums, one an episode.

    Parameters
    ----------
    costs : tensor of shape (E, N, n)
        Costs, already multiplied by the regularisation.
    totals : tensor of shape (E, N)
        What each class sends out, greater than 0; scaled so that together they are the sum of the
        weights.
    weights : tensor of shape (E, 1, n)
        What each row takes in: 1, or 0 for padding.
    tol : float, default=1e-6
        Largest error of a class's sum, relative to the sum of all, where an episode stops; no
        smaller than rounding allows.
    max_iter : int, default=100
        Most steps.
    start : tensor of shape (E, N), default=None
        v to start from, such as that of costs that were about the same.

    Returns
    -------
    plan : tensor of shape (E, N, n)
        The sums of the rows are exact, those of the classes to `tol`.
    v : tensor of shape (E, N)

    Notes
    -----
    Newton's method for the N unknowns v, whose objective is concave. It is what Sinkhorn's
    iterations converge to, which take hundreds where a plan is nearly hard, and there in float32
    never arrive. A step of range r is shortened to log(1 + r), which for objectives made of
    logarithms of sums of exponentials converges from anywhere, and is the full step in the end.
    """
    v = torch.zeros_like(totals) if start is None else start
    n = costs.shape[2]
    totals = totals * (weights.sum(dim=2) / totals.sum(dim=1, keepdim=True))
    allowed = max(tol, 4 * torch.finfo(costs.dtype).eps * n) * weights.sum(dim=2).clamp_(min=1)
    plan = (v[:, :, None] - costs).softmax(dim=1).mul_(weights)
    for _ in range(max_iter):
        sums = plan.sum(dim=2)
        errors = totals - sums
        unfinished = errors.abs().amax(dim=1, keepdim=True) > allowed
        if not bool(unfinished.any()):
            break
        step = _newton_step(plan, sums, errors)
        v = torch.where(unfinished, v + step, v)
        plan = (v[:, :, None] - costs).softmax(dim=1).mul_(weights)
    return plan, v


def _newton_step(plan: torch.Tensor, sums: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
    """Return a shortened Newton step for plans whose rows sum to their weights."""
    curvature = torch.diag_embed(sums) - plan @ plan.mT
    # A constant in v changes nothing, so its direction is given a curvature; a plan that is all
    # but hard has next to none in others.
    scale = sums.mean(dim=1)[:, None, None]
    eye = torch.eye(sums.shape[1], dtype=sums.dtype, device=sums.device)
    curvature = curvature + scale * (1.0 / sums.shape[1] + _RIDGE * eye)
    step = torch.linalg.solve(curvature, errors)
    reach = step.amax(dim=1, keepdim=True) - step.amin(dim=1, keepdim=True)
    return step * (reach.log1p() / reach.clamp(min=torch.finfo(step.dtype).tiny))
