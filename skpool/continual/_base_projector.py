# SPDX-License-Identifier: BSD-3-Clause
"""A projection of frozen features that leaves room for classes to come, trained on base classes.

Each base class gets a target direction out of more than there are classes, and rows are drawn to
the targets of their classes. `FewShotIncrementalClassifier` trains one in its first session.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F

from skpool.utils import apply_affine, unit_rows

__all__ = [
    "Projector",
    "TargetObjective",
    "assigned",
    "make_projector",
    "mixed_classes",
    "project",
    "supervised_contrastive",
]

# In place of minus infinity, of which a row without others would make a NaN.
_NO_PAIR = -1e9


def supervised_contrastive(z: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    r"""Return the supervised contrastive loss of every row [1]_.

    .. math:: L_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)} \log
        \frac{e^{z_i^\top z_p / t}}{\sum_{a \ne i} e^{z_i^\top z_a / t}}

    Parameters
    ----------
    z : tensor of shape (n, d)
        Unit rows.
    y : tensor of shape (n,)
        Class numbers; :math:`P(i)` are the other rows of the class of row i.
    temperature : float

    Returns
    -------
    losses : tensor of shape (n,)
        0 for a row that is alone in its class.

    References
    ----------
    .. [1] P. Khosla et al., Supervised Contrastive Learning, 2020.
       <https://arxiv.org/abs/2004.11362>
    """
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_p = (z @ z.T / temperature).masked_fill(itself, _NO_PAIR).log_softmax(dim=1)
    positive = (y[:, None] == y) & ~itself
    return -(log_p * positive).sum(dim=1) / positive.sum(dim=1).clamp_min(1)


class Projector(nn.Module):
    """Linear layers with rectifiers between, on rows that are centred and scaled.

    Parameters
    ----------
    center : ndarray of shape (n_features,)
    scale : float
    widths : list of int
        Of the outputs of the layers.
    """

    def __init__(self, center: np.ndarray, scale: float, widths: list[int]):
        super().__init__()
        self.register_buffer("center", torch.from_numpy(center))
        self.scale = scale
        sizes = [len(center), *widths]
        self.layers = nn.ModuleList(
            nn.Linear(*pair, dtype=torch.float64) for pair in pairwise(sizes)
        )

    def forward(self, values: torch.Tensor, mask: None) -> torch.Tensor:
        values = (values - self.center) / self.scale
        for i, layer in enumerate(self.layers):
            values = layer(values.relu() if i else values)
        return values

    def as_arrays(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Shift, matrix and offset of every layer, with which `project` does the same."""
        found = []
        for i, layer in enumerate(self.layers):
            matrix = layer.weight.detach().double().numpy().T / (1.0 if i else self.scale)
            shift = np.zeros(len(matrix)) if i else self.center.double().numpy()
            found.append((shift, matrix, layer.bias.detach().double().numpy()))
        return found


def make_projector(
    kind: str, center: np.ndarray, scale: float, n_components: int, generator: torch.Generator
) -> Projector:
    """Return a projector at its start.

    Parameters
    ----------
    kind : {"linear", "mlp"}
        "mlp" has one hidden layer, as wide as the rows, and starts at random. "linear" starts as
        the identity, or as random orthonormal directions where the width changes.
    center : ndarray of shape (n_features,)
    scale : float
    n_components : int
    generator : torch.Generator

    Returns
    -------
    projector : Projector
    """
    d = len(center)
    projector = Projector(center, scale, [n_components] if kind == "linear" else [d, n_components])
    with torch.no_grad():
        for layer in projector.layers:
            layer.bias.zero_()
            if kind == "mlp":
                nn.init.kaiming_normal_(layer.weight, generator=generator)
            elif n_components == d:
                nn.init.eye_(layer.weight)
            else:
                nn.init.orthogonal_(layer.weight, generator=generator)
    return projector


def project(
    rows: torch.Tensor, layers: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> torch.Tensor:
    """Apply what `Projector.as_arrays` gave.

    Parameters
    ----------
    rows : tensor of shape (n, n_features)
    layers : list of tuples of arrays

    Returns
    -------
    rows : tensor of shape (n, n_components)
    """
    for i, (shift, matrix, offset) in enumerate(layers):
        rows = apply_affine(rows.relu() if i else rows, shift=shift, matrix=matrix, offset=offset)
    return rows


class TargetObjective(nn.Module):
    """Cross entropy of the cosines with fixed targets, and the contrastive loss.

    Parameters
    ----------
    module : module
    targets : ndarray of shape (n_targets, n_components)
        Unit rows; those of classes come first, in their order.
    supcon_weight, temperature : float
    """

    def __init__(
        self, module: nn.Module, targets: np.ndarray, supcon_weight: float, temperature: float
    ):
        super().__init__()
        self.module = module
        self.register_buffer("targets", torch.from_numpy(targets))
        self.supcon_weight, self.temperature = supcon_weight, temperature

    def forward(
        self,
        values: torch.Tensor,
        mask: None,
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        z = F.normalize(self.module(values, mask), dim=1)
        losses = F.cross_entropy(z @ self.targets.T / self.temperature, target, reduction="none")
        if self.supcon_weight:
            contrast = supervised_contrastive(z, target, self.temperature)
            losses = losses + self.supcon_weight * contrast
        return losses.mean() if weight is None else (weight * losses).sum() / weight.sum()


def assigned(targets: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Reorder targets so that the first are those of the classes, by the largest sum of cosines.

    Parameters
    ----------
    targets : ndarray of shape (n_targets, n_components)
        Unit rows, at least as many as classes.
    means : ndarray of shape (n_classes, n_components)
        Of the projected rows of the classes.

    Returns
    -------
    targets : ndarray of shape (n_targets, n_components)
    """
    unit = unit_rows(torch.from_numpy(means)).numpy()
    taken = linear_sum_assignment(-unit @ targets.T)[1]
    return np.concatenate([targets[taken], np.delete(targets, taken, axis=0)])


class Mixed(NamedTuple):
    """Rows between classes, and the number of the pair that each is of."""

    rows: np.ndarray
    numbers: np.ndarray


def mixed_classes(
    X: np.ndarray, codes: np.ndarray, n_pairs: int, *, alpha: float, rng: np.random.RandomState
) -> Mixed:
    r"""Return rows :math:`\lambda x_a + (1 - \lambda) x_b` of pairs of classes.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    codes : ndarray of shape (n,)
        Class numbers from 0.
    n_pairs : int
        Different pairs, each of as many rows as a class has on average.
    alpha : float
        :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)`.
    rng : RandomState

    Returns
    -------
    mixed : Mixed
    """
    n_classes = int(codes.max()) + 1
    first, second = np.triu_indices(n_classes, k=1)
    if n_pairs > len(first):
        raise ValueError(
            f"n_pseudo_classes={n_pairs} asks for pairs of classes, and {n_classes} class(es) of "
            f"the first call make {len(first)}; give at most that."
        )
    n = max(1, round(len(X) / n_classes))
    rows = []
    for pair in rng.permutation(len(first))[:n_pairs]:
        a, b = (rng.choice(np.flatnonzero(codes == c), n) for c in (first[pair], second[pair]))
        share = rng.beta(alpha, alpha, size=(n, 1)).astype(X.dtype)
        rows.append(share * X[a] + (1 - share) * X[b])
    return Mixed(np.concatenate(rows), np.repeat(np.arange(n_pairs), n))
