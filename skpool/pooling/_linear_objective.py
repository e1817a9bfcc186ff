# SPDX-License-Identifier: BSD-3-Clause
"""Training a pooling together with a linear head on its vectors.

Between a `torch.nn.Module` that pools and `skpool.training`: the head works in standard units of
the vectors of the untrained pooling, and the losses are of vectors as well as of what the head
makes of them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from skpool.training import HeadTrainer, TokenRows, can_split, moments_of, objective_on

__all__ = ["LOSSES", "LinearObjective", "PooledHead", "train_pooling"]

Mask = torch.Tensor | None

# Of the similarities of "supcon".
_TEMPERATURE = 0.1


def _supcon(vectors: torch.Tensor, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Supervised contrastive loss: every sample against those of its class in the minibatch."""
    vectors = F.normalize(vectors, dim=1)
    oneself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    similarity = (vectors @ vectors.T / _TEMPERATURE).masked_fill(oneself, -torch.inf)
    log_p = similarity - similarity.logsumexp(dim=1, keepdim=True)
    alike = (y[:, None] == y) & ~oneself
    anchors = alike.any(dim=1)
    if not bool(anchors.any()):
        return vectors.sum() * 0.0
    per_anchor = log_p.where(alike, 0.0).sum(dim=1)[anchors] / alike.sum(dim=1)[anchors]
    return -per_anchor.mean()


# Of the vectors, what the head makes of them, and the targets.
LOSSES = {
    "cross_entropy": lambda vectors, outputs, y: F.cross_entropy(outputs, y),
    "mse": lambda vectors, outputs, y: F.mse_loss(outputs, y),
    "supcon": _supcon,
}


class PooledHead(NamedTuple):
    """A head for vectors as the pooling gives them, and the `history` of `Trained`."""

    coef: np.ndarray
    intercept: np.ndarray
    history: np.ndarray


class LinearObjective(nn.Module):
    """A pooling, a linear head on its vectors in standard units, and a loss."""

    def __init__(self, pooling: nn.Module, moments: tuple, n_outputs: int, loss: str):
        super().__init__()
        self.pooling, self.loss = pooling, LOSSES[loss]
        self.register_buffer("center", moments[0])
        self.register_buffer("scale", moments[1])
        # Heads start at zero: equal scores for all classes.
        self.coef = nn.Parameter(torch.zeros(n_outputs, len(self.center)))
        self.intercept = nn.Parameter(torch.zeros(n_outputs))

    def forward(self, tokens: torch.Tensor, mask: Mask, y: torch.Tensor, _=None) -> torch.Tensor:
        """The loss of a minibatch; samples of poolings have no weights."""
        vectors = (self.pooling(tokens, mask) - self.center) / self.scale
        return self.loss(vectors, F.linear(vectors, self.coef, self.intercept), y)

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """The head for vectors in their own units."""
        coef, intercept, center, scale = (
            value.detach().cpu().double()
            for value in (self.coef, self.intercept, self.center, self.scale)
        )
        coef = coef / scale
        return coef.numpy(), (intercept - coef @ center).numpy()


def _standard_targets(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets (n, k) with mean 0 and variance 1, their offset and unit; class numbers stay."""
    if y.ndim == 1:
        return y, np.zeros(1), np.ones(1)
    offset, unit = y.mean(axis=0), y.std(axis=0)
    unit = np.where(unit > 0, unit, 1.0)
    return (y - offset) / unit, offset, unit


def _moments(pooling: nn.Module, rows: TokenRows, device: str) -> tuple:
    """Mean and scale of the vectors of a pooling, which is left where it will be trained."""
    place, dtype = objective_on(pooling, rows, device)

    def pooled() -> Iterator[torch.Tensor]:
        for tokens, mask in rows.blocks():
            yield pooling(tokens.to(place, dtype), None if mask is None else mask.to(place))

    with torch.no_grad():
        return moments_of(pooled())


def train_pooling(
    pooling: nn.Module,
    rows: TokenRows,
    y: np.ndarray,
    *,
    loss: str = "cross_entropy",
    validation_fraction: float = 0.0,
    device: str = "auto",
    seed: int,
    **settings: float,
) -> PooledHead:
    """Train a pooling and a linear head by AdamW, with a rate that falls to 0 as a cosine.

    Parameters
    ----------
    pooling : module
        ``pooling(tokens, mask)`` gives vectors (batch, n_features_out). It is trained in place,
        and left on the host.
    rows : TokenRows
    y : ndarray of shape (n_rows,) or (n_rows, n_outputs)
        Of class numbers from 0 for "cross_entropy" and "supcon"; of targets for "mse", whose loss
        is that of targets with variance 1.
    loss : {"cross_entropy", "supcon", "mse"}, default="cross_entropy"
    validation_fraction : float, default=0.0
        Part of the samples that is kept back: of every class, or none where that cannot be. The
        weights after its best epoch are kept, and training ends when ten epochs were no better.
    device : str, default="auto"
    seed : int
        Of the order of the samples and of the validation part.
    **settings : float
        Of `HeadTrainer`.

    Returns
    -------
    head : PooledHead
    """
    n_outputs = int(y.max()) + 1 if y.ndim == 1 else y.shape[1]
    y, offset, unit = _standard_targets(y)
    kept_back = validation_fraction if can_split(y, validation_fraction) else 0.0
    settings |= {"validation_fraction": kept_back, "early_stopping": kept_back > 0}
    objective = LinearObjective(pooling, _moments(pooling, rows, device), n_outputs, loss)
    trained = HeadTrainer(device=device, **settings).train(objective, rows, y, seed=seed)
    coef, intercept = objective.folded()
    return PooledHead(unit[:, None] * coef, unit * intercept + offset, trained.history)
