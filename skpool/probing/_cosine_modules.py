# SPDX-License-Identifier: BSD-3-Clause
"""Cosine heads as torch modules: scores that are cosines, margins, scales and partial classes.

`CosineHead` gives the scores of all classes; `CosineObjective` is what it is trained by, in which
the cosine of a row with its own class is lowered by a margin, some of the other classes may be
left out, and the scale may follow the cosines.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from skpool.training import Loss, Rows
from skpool.utils import unit_rows

__all__ = [
    "MARGINS",
    "CosineHead",
    "CosineObjective",
    "CosineSpec",
    "adapted_scale",
    "class_directions",
    "first_adaptive_scale",
    "make_cosine_head",
]

Mask = torch.Tensor | None

# The slope of arccos is infinite at 1.
_LARGEST = 1 - 1e-7
# Of the cosines with the proxies of a class, whose mean by softmax is the score of the class.
_PROXY_SHARPNESS = 10.0
# Length of what is added to the unit class mean so that the proxies of a class part.
_PROXY_SPREAD = 0.1
# With two classes the rule of AdaCos gives 0, with which nothing is learned.
_SMALLEST_SCALE = 1.0


class CosineSpec(NamedTuple):
    """All that decides the form of a head.

    Attributes
    ----------
    n_features, n_outputs : int
        Width of a row; number of classes.
    n_components : int or None
        Width after the projection; None for no projection.
    n_proxies : int
        Unit vectors of a class.
    bias : bool
    scale : float, "adacos" or "learned"
    """

    n_features: int
    n_outputs: int
    n_components: int | None = None
    n_proxies: int = 1
    bias: bool = False
    scale: float | str = 16.0


# Margins, scales.


def margin_softmax(cosines: torch.Tensor, margin: float) -> torch.Tensor:
    """The cosines themselves."""
    return cosines


def margin_cosface(cosines: torch.Tensor, margin: float) -> torch.Tensor:
    """cos - m."""
    return cosines - margin


def margin_arcface(cosines: torch.Tensor, margin: float) -> torch.Tensor:
    """cos(theta + m); beyond theta = pi - m, where it would rise again, cos - m sin m."""
    theta = cosines.clamp(-_LARGEST, _LARGEST).acos()
    beyond = theta > math.pi - margin
    return torch.where(beyond, cosines - margin * math.sin(margin), (theta + margin).cos())


MARGINS = {"arcface": margin_arcface, "cosface": margin_cosface, "softmax": margin_softmax}


def first_adaptive_scale(n_classes: int) -> float:
    """Scale that AdaCos starts from: sqrt(2) log(C - 1), 1 at least."""
    return max(_SMALLEST_SCALE, math.sqrt(2) * math.log(max(n_classes - 1, 1)))


def adapted_scale(
    cosines: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, n_classes: int
) -> torch.Tensor:
    """Scale of AdaCos after a minibatch: log(B) / cos(min(pi / 4, median target angle)).

    Parameters
    ----------
    cosines : tensor of shape (n_rows, n_chosen)
        With the classes of the minibatch, or all.
    y : tensor of shape (n_rows,)
        Columns of the targets.
    scale : tensor of shape ()
        The scale so far, s.
    n_classes : int
        All classes. B is the mean over the rows of sum_{c != y} exp(s cos_c), which is taken from
        the chosen ones as (C - 1) times their mean.

    Returns
    -------
    scale : tensor of shape ()
        1 at least.
    """
    own = F.one_hot(y, cosines.shape[1]).bool()
    n_others = max(cosines.shape[1] - 1, 1)
    others = (scale * cosines).masked_fill(own, -torch.inf).flatten().logsumexp(dim=0)
    log_mean = others - math.log(len(y)) + math.log(max(n_classes - 1, 1) / n_others)
    # The median of torch is the lower of two middle ones; this is their mean.
    angle = cosines[own].clamp(-1.0, 1.0).acos().quantile(0.5)
    return (log_mean / angle.clamp_max(math.pi / 4).cos()).clamp_min(_SMALLEST_SCALE)


# The head.


class CosineHead(nn.Module):
    """Scores s cos(w_c, z) + b_c of rows z, or of their linear projections.

    Attributes
    ----------
    weight : tensor of shape (n_outputs, n_proxies, width)
        Vectors of any length, of which the direction counts.
    """

    def __init__(self, spec: CosineSpec):
        super().__init__()
        width = spec.n_features if spec.n_components is None else spec.n_components
        self.weight = nn.Parameter(torch.zeros(spec.n_outputs, spec.n_proxies, width))
        shape = (width, spec.n_features)
        self.projection = None if spec.n_components is None else nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(spec.n_outputs)) if spec.bias else None
        self.adaptive = spec.scale == "adacos"
        if spec.scale == "learned":
            self.log_scale = nn.Parameter(torch.tensor(math.log(16.0)))
        else:
            first = first_adaptive_scale(spec.n_outputs) if self.adaptive else spec.scale
            self.register_buffer("fixed_scale", torch.tensor(float(first)))

    @property
    def undecayed(self) -> tuple[nn.Parameter, ...]:
        """The directions: shorter ones are the same."""
        return (self.weight,)

    @property
    def scale(self) -> torch.Tensor:
        """Factor of the cosines."""
        return self.log_scale.exp() if hasattr(self, "log_scale") else self.fixed_scale

    def embed(self, values: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, width) of rows."""
        return unit_rows(values if self.projection is None else values @ self.projection.T)

    def cosines(
        self, z: torch.Tensor, chosen: torch.Tensor | slice, features: torch.Tensor | slice
    ) -> torch.Tensor:
        """Cosines (n, C) of unit vectors with chosen classes, in chosen features."""
        if not isinstance(features, slice):
            z = unit_rows(z[:, features])
        weight = unit_rows(self.weight[chosen][..., features])
        if weight.shape[1] == 1:
            return z @ weight[:, 0].T
        found = torch.einsum("nd,ckd->nck", z, weight)
        return ((_PROXY_SHARPNESS * found).softmax(dim=2) * found).sum(dim=2)

    def scores(self, cosines: torch.Tensor, chosen: torch.Tensor | slice) -> torch.Tensor:
        """What the softmax takes."""
        scores = self.scale * cosines
        return scores if self.bias is None else scores + self.bias[chosen]

    def forward(self, values: torch.Tensor, mask: Mask = None) -> torch.Tensor:
        """Scores (n, n_outputs) of rows (n, n_features)."""
        every = slice(None)
        return self.scores(self.cosines(self.embed(values), every, every), every)

    @torch.no_grad()
    def append(self, n_new: int) -> None:
        """Add classes behind the others, with the smallest bias of these."""
        zeros = self.weight.new_zeros(n_new, *self.weight.shape[1:])
        self.weight = nn.Parameter(torch.cat([self.weight, zeros]))
        if self.bias is not None:
            lowest = self.bias.min().expand(n_new)
            self.bias = nn.Parameter(torch.cat([self.bias, lowest]))

    @torch.no_grad()
    def place(self, directions: torch.Tensor, generator: torch.Generator) -> None:
        """Set the vectors of the last classes; several proxies are scattered about them.

        Parameters
        ----------
        directions : tensor of shape (n, width)
            Unit vectors.
        generator : torch.Generator
            Scatters the proxies.
        """
        last = self.weight[-len(directions) :]
        last.copy_(directions[:, None].expand_as(last))
        if last.shape[1] > 1:
            last += _PROXY_SPREAD * _random_directions(last.shape, generator).to(last)


def _random_directions(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return unit_rows(torch.randn(shape, generator=generator, dtype=torch.float64))


@torch.no_grad()
def class_directions(
    head: CosineHead, rows: Rows, codes: np.ndarray, weights: np.ndarray | None = None
) -> torch.Tensor:
    """Directions of the means of classes, as the head sees their rows.

    Parameters
    ----------
    head : CosineHead
    rows : Rows
        Of vectors.
    codes : ndarray of shape (n_rows,)
        Numbers of the classes, from 0.
    weights : ndarray of shape (n_rows,), default=None

    Returns
    -------
    directions : tensor of shape (n_classes, width)
        Unit vectors in float64.
    """
    codes = torch.as_tensor(codes)
    factors = None if weights is None else torch.as_tensor(weights)[:, None]
    # A projection is linear: the mean is projected in place of the rows.
    sums = torch.zeros(int(codes.max()) + 1, rows.take(np.arange(1))[0].shape[1]).double()
    start = 0
    for values, _ in rows.blocks():
        values = values.cpu().double()
        part = slice(start, start + len(values))
        sums.index_add_(0, codes[part], values if factors is None else factors[part] * values)
        start = part.stop
    if head.projection is not None:
        sums = sums @ head.projection.cpu().double().T
    return unit_rows(sums)


@torch.no_grad()
def make_cosine_head(spec: CosineSpec, generator: torch.Generator) -> CosineHead:
    """Build a head with random directions, in float64.

    Parameters
    ----------
    spec : CosineSpec
    generator : torch.Generator
        Draws the projection, of orthonormal rows, and the directions.

    Returns
    -------
    head : CosineHead
    """
    head = CosineHead(spec).double()
    if head.projection is not None:
        nn.init.orthogonal_(head.projection, generator=generator)
    head.weight.copy_(_random_directions(head.weight.shape, generator))
    return head


# What it is trained by.


class CosineObjective(nn.Module):
    """Weighted mean of the loss of a head's scores, the targets of which have a margin.

    Parameters
    ----------
    module : CosineHead
    loss : Loss
        Of scores.
    kind : {"softmax", "cosface", "arcface"}, default="softmax"
        A name in `MARGINS`.
    margin : float, default=0.0
    sample_ratio : float, default=1.0
        Part of the classes that a step computes: those of the minibatch, and of the others as
        many, drawn anew, as are missing from the part.
    feature_ratio : float, default=1.0
        Part of the features, drawn anew in every step, that cosines are computed in.
    seed : int, default=0
        Of what is drawn.

    Notes
    -----
    A target that is a mixture of classes lowers the cosine of each by its part of the margin.
    What a step draws follows from the seed and the number of the step, which is part of the state,
    so that a training that is resumed goes on as it would have.
    """

    def __init__(
        self,
        module: CosineHead,
        loss: Loss,
        *,
        kind: str = "softmax",
        margin: float = 0.0,
        sample_ratio: float = 1.0,
        feature_ratio: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        self.module, self.loss = module, loss
        self.kind, self.margin = kind, margin
        self.sample_ratio, self.feature_ratio, self.seed = sample_ratio, feature_ratio, seed
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))
        # So that the state tells trainings apart, and a checkpoint of another one is refused.
        facts = [sorted(MARGINS).index(kind), margin, sample_ratio, feature_ratio]
        self.register_buffer("facts", torch.tensor(facts, dtype=torch.float64))

    def forward(
        self,
        values: torch.Tensor,
        mask: Mask,
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of a minibatch."""
        head, generator = self.module, self._generator()
        chosen, target = self._chosen(target, generator)
        features = self._features(generator)
        cosines = head.cosines(head.embed(values), chosen, features)
        if self.training and head.adaptive:
            self._adapt(cosines.detach(), target)
        losses = self.loss(head.scores(self._lowered(cosines, target), chosen), target)
        return losses.mean() if weight is None else (weight * losses).sum() / weight.sum()

    def _generator(self) -> torch.Generator | None:
        """Of this step; None where nothing is drawn."""
        if not self.training or self.sample_ratio == self.feature_ratio == 1:
            return None
        step = int(self.n_steps)
        self.n_steps += 1
        numbers = np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(numbers[0] >> np.uint64(1)))

    def _chosen(
        self, target: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor | slice, torch.Tensor]:
        """Classes of this step, and the target in terms of them."""
        n = len(self.module.weight)
        if generator is None or self.sample_ratio == 1:
            return slice(None), target
        soft = target.ndim == 2
        present = (target > 0).any(dim=0) if soft else target.bincount(minlength=n) > 0
        # Classes of the minibatch come first, the others in an order that is drawn.
        order = torch.rand(n, generator=generator).to(target.device)
        order = order.masked_fill(present, -1.0).argsort()
        n_chosen = max(int(present.sum()), math.ceil(self.sample_ratio * n))
        chosen = order[:n_chosen].sort().values
        return chosen, target[:, chosen] if soft else torch.searchsorted(chosen, target)

    def _features(self, generator: torch.Generator | None) -> torch.Tensor | slice:
        width = self.module.weight.shape[2]
        if generator is None or self.feature_ratio == 1:
            return slice(None)
        order = torch.randperm(width, generator=generator)
        chosen = order[: math.ceil(self.feature_ratio * width)].sort().values
        return chosen.to(self.module.weight.device)

    def _lowered(self, cosines: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cosines, those with the target lowered by the margin."""
        if self.margin == 0 or self.kind == "softmax":
            return cosines
        lower = MARGINS[self.kind]
        if target.ndim == 2:
            return cosines + target.to(cosines) * (lower(cosines, self.margin) - cosines)
        own = cosines.gather(1, target[:, None])
        return cosines.scatter(1, target[:, None], lower(own, self.margin))

    @torch.no_grad()
    def _adapt(self, cosines: torch.Tensor, target: torch.Tensor) -> None:
        y = target.argmax(dim=1) if target.ndim == 2 else target
        scale = self.module.fixed_scale
        scale.copy_(adapted_scale(cosines, y, scale, len(self.module.weight)))
