# SPDX-License-Identifier: BSD-3-Clause
"""Losses of class scores, by name: what the trainer minimises and the heads offer.

A loss takes scores (b, C) and the target of every row, and gives one number per row; the trainer
weights and sums them. Every softmax loss is a function of log-probabilities, and every sigmoid
loss of log-sigmoids, so that scores of any size give finite numbers and gradients.

A soft target is a distribution over the classes. The loss of it is sum_c t_c l_c, which is what
mixing rows asks for, where no margin or weight depends on the target too; a one-hot target is the
same as the number of its class.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, fields
from functools import partial
from numbers import Real
from typing import ClassVar, Self

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, validate_parameter_constraints
from torch.nn import functional as F

from skpool.training._class_weights import checked_counts
from skpool.utils import widened

__all__ = ["LOSSES", "Loss", "get_loss"]

_UNIT = [Interval(Real, 0, 1, closed="both")]
_BELOW_1 = [Interval(Real, 0, 1, closed="left")]
_NOT_NEGATIVE = [Interval(Real, 0, None, closed="left")]
_POSITIVE = [Interval(Real, 0, None, closed="neither")]
_NUMBER = [Interval(Real, None, None, closed="neither")]


# Of every loss.


@dataclass(kw_only=True)
class Loss:
    """Base of the losses: parameters that are checked, classes that may be counted.

    A subclass writes `_rows`; one that depends on how frequent the classes are writes `prepare`
    too.
    """

    constraints: ClassVar[dict] = {}

    def __post_init__(self) -> None:
        parameters = {name: getattr(self, name) for name in self.constraints}
        validate_parameter_constraints(
            self.constraints, parameters, caller_name=f"loss {type(self).__name__}"
        )

    def prepare(self, counts: np.ndarray) -> Self:
        """Bind what depends on the frequencies of the classes.

        Parameters
        ----------
        counts : array-like of shape (n_classes,)
            Samples, or sums of their weights, of every class.

        Returns
        -------
        loss : Loss
            Ready to be called; this one stays as it is.
        """
        return self

    def __call__(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Give the loss of every row.

        Parameters
        ----------
        logits : tensor of shape (n_rows, n_classes)
            Scores; half precision is widened.
        target : tensor of shape (n_rows,) or (n_rows, n_classes)
            Class numbers, or distributions over the classes.

        Returns
        -------
        losses : tensor of shape (n_rows,)
        """
        return self._rows(widened(logits), target)

    def _rows(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def _one_hot(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Targets (n_rows, n_classes) in the float type of the scores."""
    hard = target.ndim == 1
    return (F.one_hot(target.long(), logits.shape[1]) if hard else target).to(logits)


def _power(base: torch.Tensor, exponent: float) -> torch.Tensor:
    """A power of numbers of at least 0, whose slope is finite at 0 where the exponent is small."""
    return base.clamp_min(torch.finfo(base.dtype).tiny).pow(exponent)


@dataclass(kw_only=True)
class _CountedLoss(Loss):
    """Base of the losses that have to know how frequent the classes are."""

    _bound: torch.Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def prepare(self, counts: np.ndarray) -> Self:
        """Bind the frequencies of the classes.

        Parameters
        ----------
        counts : array-like of shape (n_classes,)
            Samples, or sums of their weights, of every class.

        Returns
        -------
        loss : Loss
            Ready to be called; this one stays as it is.
        """
        bound = copy(self)
        bound._bound = self._of_counts(checked_counts(counts))
        return bound

    def _of_counts(self, counts: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _per_class(self, logits: torch.Tensor) -> torch.Tensor:
        """What was bound, where the scores are."""
        if self._bound is None:
            raise ValueError(
                f"The loss {type(self).__name__} depends on how frequent the classes are; call "
                "its prepare(counts), and then what that returns."
            )
        if len(self._bound) != logits.shape[1]:
            raise ValueError(
                f"logits hold scores of {logits.shape[1]} classes, and prepare was given the "
                f"counts of {len(self._bound)}; prepare the loss again."
            )
        return self._bound.to(logits)


# One class of many: functions of the log-probability of the target.


@dataclass(kw_only=True)
class _SoftmaxLoss(Loss):
    """Base of the losses l(log p) of the log-probability of the target's class."""

    def _rows(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        log_p = logits.log_softmax(dim=1)
        if target.ndim == 1:
            return self._of_log_p(log_p.gather(1, target.long()[:, None])[:, 0])
        target = target.to(log_p)
        # A class that cannot be, with log p = -inf, must not make 0 * inf of a target of 0.
        return (target * self._of_log_p(log_p.where(target > 0, -1.0))).sum(dim=1)

    def _of_log_p(self, log_p: torch.Tensor) -> torch.Tensor:
        return -log_p


@dataclass(kw_only=True)
class CrossEntropy(_SoftmaxLoss):
    """Cross entropy, -log p_y, of targets (1 - e) y + e / C."""

    label_smoothing: float = 0.0

    constraints: ClassVar[dict] = {"label_smoothing": _UNIT}

    def _rows(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses, e = super()._rows(logits, target), self.label_smoothing
        if e == 0:
            return losses
        return (1 - e) * losses - e * logits.log_softmax(dim=1).mean(dim=1)


@dataclass(kw_only=True)
class GeneralizedCrossEntropy(_SoftmaxLoss):
    """(1 - p_y^q) / q, between cross entropy (q = 0) and the absolute error 1 - p_y (q = 1).

    Wrong labels, whose p_y stays small, pull less the larger q is. It is flat where p_y is small,
    also at the beginning of a training: start it from a head that was fitted, or with a larger
    step.
    """

    q: float = 0.7

    constraints: ClassVar[dict] = {"q": _UNIT}

    def _of_log_p(self, log_p: torch.Tensor) -> torch.Tensor:
        return -log_p if self.q == 0 else -torch.expm1(self.q * log_p) / self.q


@dataclass(kw_only=True)
class SymmetricCrossEntropy(_SoftmaxLoss):
    """alpha CE - beta A (1 - p_y): cross entropy and its reverse, in which log 0 counts as A."""

    alpha: float = 0.1
    beta: float = 1.0
    A: float = -4.0

    constraints: ClassVar[dict] = {
        "alpha": _NOT_NEGATIVE,
        "beta": _NOT_NEGATIVE,
        "A": [Interval(Real, None, 0, closed="right")],
    }

    def _of_log_p(self, log_p: torch.Tensor) -> torch.Tensor:
        return -self.alpha * log_p + self.beta * self.A * torch.expm1(log_p)


@dataclass(kw_only=True)
class Focal(_SoftmaxLoss):
    """-(1 - p_y)^gamma log p_y: rows that are right already count less."""

    gamma: float = 2.0

    constraints: ClassVar[dict] = {"gamma": _NOT_NEGATIVE}

    def _of_log_p(self, log_p: torch.Tensor) -> torch.Tensor:
        return -_power(-torch.expm1(log_p), self.gamma) * log_p


@dataclass(kw_only=True)
class Poly(_SoftmaxLoss):
    """CE + epsilon (1 - p_y): the first term of the series of the logarithm with another weight."""

    epsilon: float = 1.0

    constraints: ClassVar[dict] = {"epsilon": [Interval(Real, -1, None, closed="left")]}

    def _of_log_p(self, log_p: torch.Tensor) -> torch.Tensor:
        return -log_p - self.epsilon * torch.expm1(log_p)


@dataclass(kw_only=True)
class Encouraging(_SoftmaxLoss):
    """-log p_y + g(p_y), g(p) = log(1 - p): rows that are right keep pulling.

    Above `threshold` t, g goes on as its tangent, log(1 - t) - (p - t) / (1 - t). With t = 1 it
    has none, and 1 - p is at least 1e-5.
    """

    threshold: float = 0.75

    constraints: ClassVar[dict] = {"threshold": _UNIT}

    def _of_log_p(self, log_p: torch.Tensor) -> torch.Tensor:
        t = self.threshold
        if t == 1:
            return -log_p + (-torch.expm1(log_p)).clamp_min(1e-5).log()
        # Both branches are computed everywhere; the first is kept away from log 0.
        rest = (-torch.expm1(log_p)).clamp_min(1 - t)
        beyond = (log_p.exp() - t).clamp_min(0.0) / (1 - t)
        return -log_p + rest.log() - beyond


# Of classes that are not equally frequent.


@dataclass(kw_only=True)
class LogitAdjusted(_CountedLoss):
    """Cross entropy of z + tau log pi, with pi the frequencies of the classes.

    The scores z themselves are then those of classes that are equally frequent. A class without
    samples takes no part. Draw minibatches as they come: balanced ones would correct twice.
    """

    tau: float = 1.0

    constraints: ClassVar[dict] = {"tau": _NUMBER}

    def _of_counts(self, counts: torch.Tensor) -> torch.Tensor:
        log_prior = self.tau * (counts / counts.sum()).log()
        return log_prior.where(counts > 0, -torch.inf)

    def _rows(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return CrossEntropy()._rows(logits + self._per_class(logits), target)


@dataclass(kw_only=True)
class BalancedSoftmax(LogitAdjusted):
    """Cross entropy of z + log pi: `LogitAdjusted` with tau = 1."""

    tau: float = field(default=1.0, init=False)


@dataclass(kw_only=True)
class LabelDistributionAwareMargin(_CountedLoss):
    """Cross entropy of scale (z - m_y), with margins m_c proportional to n_c^(-1/4).

    The scores are cosines; the rarest class has the margin `max_margin`, and one without samples
    too. From a soft target every class has its part of its margin.
    """

    max_margin: float = 0.5
    scale: float = 30.0

    constraints: ClassVar[dict] = {"max_margin": _NOT_NEGATIVE, "scale": _POSITIVE}

    def _of_counts(self, counts: torch.Tensor) -> torch.Tensor:
        rarest = counts[counts > 0].min()
        return self.max_margin * (rarest / counts.clamp_min(rarest)).pow(0.25)

    def _rows(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        margins = _one_hot(target, logits) * self._per_class(logits)
        return CrossEntropy()._rows(self.scale * (logits - margins), target)


# Any number of classes at once: every class is a question of its own.


@dataclass(kw_only=True)
class BinaryCrossEntropy(Loss):
    """Mean over the classes of the cross entropy of sigmoid(z_c)."""

    def _rows(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        target = _one_hot(target, logits)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)


@dataclass(kw_only=True)
class Asymmetric(Loss):
    """Mean over the classes of the asymmetric loss of p = sigmoid(z).

    A class that is present costs -(1 - p)^gamma_positive log p, one that is absent
    -p_m^gamma_negative log(1 - p_m) with p_m = max(p - clip, 0): absent classes that are found
    unlikely, which are most of them, cost nothing.
    """

    gamma_positive: float = 0.0
    gamma_negative: float = 4.0
    clip: float = 0.05

    constraints: ClassVar[dict] = {
        "gamma_positive": _NOT_NEGATIVE,
        "gamma_negative": _NOT_NEGATIVE,
        "clip": _BELOW_1,
    }

    def _rows(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        target, p, rest = _one_hot(target, logits), logits.sigmoid(), (-logits).sigmoid()
        present = -_power(rest, self.gamma_positive) * F.logsigmoid(logits)
        if self.clip == 0:
            log_rest = F.logsigmoid(-logits)
        else:
            log_rest = (rest + self.clip).clamp_max(1.0).log()
        absent = -_power((p - self.clip).clamp_min(0.0), self.gamma_negative) * log_rest
        return (target * present + (1 - target) * absent).mean(dim=1)


@dataclass(kw_only=True)
class DistributionBalanced(_CountedLoss):
    """Binary cross entropy with weights for classes that come together, tolerant of negatives.

    With z' = z - (bias / negative_scale) log(n / n_c - 1), a class that is present costs
    -log sigmoid(z') and one that is absent -log sigmoid(-s z') / s, s = `negative_scale`, both
    times alpha + sigmoid(beta (r_c - mu)), r_c = (1 / n_c) / sum_j t_j / n_j; the mean over the
    classes. n are the samples, and n_c of them hold class c, taken as at least 1/2 and at most
    n - 1/2.
    """

    negative_scale: float = 2.0
    bias: float = 0.05
    alpha: float = 0.1
    beta: float = 10.0
    mu: float = 0.2

    constraints: ClassVar[dict] = {
        "negative_scale": _POSITIVE,
        "bias": _NOT_NEGATIVE,
        "alpha": _NOT_NEGATIVE,
        "beta": _NOT_NEGATIVE,
        "mu": _NUMBER,
    }

    def prepare(self, counts: np.ndarray, n_samples: float | None = None) -> Self:
        """Bind the frequencies of the classes.

        Parameters
        ----------
        counts : array-like of shape (n_classes,)
            Samples that hold a class.
        n_samples : float, default=None
            Samples in all; None where every sample holds one class.

        Returns
        -------
        loss : Loss
            Ready to be called; this one stays as it is.
        """
        bound = super().prepare(counts)
        n = float(bound._bound.sum()) if n_samples is None else n_samples
        bound._bound = bound._bound.clamp(0.5, max(n - 0.5, 0.5)) / n
        return bound

    def _of_counts(self, counts: torch.Tensor) -> torch.Tensor:
        return counts

    def _rows(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        target, part, scale = _one_hot(target, logits), self._per_class(logits), self.negative_scale
        shifted = logits - self.bias / scale * (1 / part - 1).clamp_min(1e-6).log()
        # Without a class that is present the ratio is as good as infinite.
        together = (target / part).sum(dim=1, keepdim=True).clamp_min(1e-30)
        weight = self.alpha + (self.beta * (1 / part / together - self.mu)).sigmoid()
        absent = F.logsigmoid(-scale * shifted) / scale
        losses = target * F.logsigmoid(shifted) + (1 - target) * absent
        return -(weight * losses).mean(dim=1)


# By name.


@dataclass(kw_only=True)
class _Given(Loss):
    """A function of the user."""

    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def __repr__(self) -> str:
        # The same in every process, since checkpoints name their loss by it.
        bare = self.function.func if isinstance(self.function, partial) else self.function
        options = self.function.keywords if isinstance(self.function, partial) else {}
        return f"{getattr(bare, '__qualname__', type(bare).__qualname__)}({options})"

    def _rows(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.function(logits, target)


LOSSES: dict[str, type[Loss]] = {
    "asl": Asymmetric,
    "balanced_softmax": BalancedSoftmax,
    "bce": BinaryCrossEntropy,
    "cross_entropy": CrossEntropy,
    "distribution_balanced": DistributionBalanced,
    "encouraging": Encouraging,
    "focal": Focal,
    "gce": GeneralizedCrossEntropy,
    "ldam": LabelDistributionAwareMargin,
    "logit_adjusted": LogitAdjusted,
    "poly": Poly,
    "sce": SymmetricCrossEntropy,
}


def get_loss(loss: str | Loss | Callable, **params: float) -> Loss:
    """Return a loss by its name.

    Parameters
    ----------
    loss : str, Loss or callable
        A name in `LOSSES`; a loss, which is returned as it is; or a function of scores and
        targets that gives one number per row.
    **params : float
        Parameters of the loss that is named, or further arguments of the function.

    Returns
    -------
    loss : Loss
        Called as ``loss.prepare(counts)(logits, target)``.

    Raises
    ------
    ValueError
        There is no such loss, or it has no such parameter or not with such a value.

    Notes
    -----
    With p the softmax of the scores z, y the class of a row and n_c the samples of class c:

    - "cross_entropy" (`label_smoothing` e): -log p_y, of targets (1 - e) y + e / C.
    - "gce" (`q` = 0.7) [1]_: (1 - p_y^q) / q. "sce" (`alpha` = 0.1, `beta` = 1, `A` = -4) [2]_:
      alpha CE - beta A (1 - p_y). Both for labels of which some are wrong.
    - "focal" (`gamma` = 2) [3]_: -(1 - p_y)^gamma log p_y. "poly" (`epsilon` = 1) [4]_:
      CE + epsilon (1 - p_y). "encouraging" (`threshold` = 0.75) [5]_: CE + log(1 - p_y), linear
      above the threshold.
    - "logit_adjusted" (`tau` = 1) [6]_: CE of z + tau log pi; "balanced_softmax" [7]_ is tau = 1.
      "ldam" (`max_margin` = 0.5, `scale` = 30) [8]_: CE of scale (z - m_y) with margins
      proportional to n_c^(-1/4), for scores that are cosines.
    - "bce", "asl" (`gamma_positive` = 0, `gamma_negative` = 4, `clip` = 0.05) [9]_ and
      "distribution_balanced" (`negative_scale` = 2, `bias` = 0.05, `alpha` = 0.1, `beta` = 10,
      `mu` = 0.2) [10]_: any number of classes at once; the mean over the classes.

    Those of [6]_, [7]_, [8]_ and [10]_ have to be prepared with the counts of the classes. Scores
    of float16 and bfloat16 are widened. Cost: a few passes over the scores.

    References
    ----------
    .. [1] Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks
       with Noisy Labels", NeurIPS 2018. <https://arxiv.org/abs/1805.07836>
    .. [2] Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019.
       <https://arxiv.org/abs/1908.06112>
    .. [3] Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
       <https://arxiv.org/abs/1708.02002>
    .. [4] Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss
       Functions", ICLR 2022. <https://arxiv.org/abs/2204.12511>
    .. [5] Zhao et al., "Well-classified Examples are Underestimated in Classification with Deep
       Neural Networks", AAAI 2022. <https://arxiv.org/abs/2110.06537>
    .. [6] Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.
       <https://arxiv.org/abs/2007.07314>
    .. [7] Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020.
       <https://arxiv.org/abs/2007.10740>
    .. [8] Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
       NeurIPS 2019. <https://arxiv.org/abs/1906.07413>
    .. [9] Ridnik et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021.
       <https://arxiv.org/abs/2009.14119>
    .. [10] Wu et al., "Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
       Datasets", ECCV 2020. <https://arxiv.org/abs/2007.09654>

    Examples
    --------
    >>> import torch
    >>> from skpool.training import get_loss
    >>> loss = get_loss("logit_adjusted", tau=1.0).prepare([90, 10])
    >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]))
    tensor([0.1054, 2.3026])
    """
    if isinstance(loss, Loss):
        if params:
            raise ValueError(
                f"loss={loss!r} has its parameters, and {sorted(params)} were given too; give its "
                "name with them."
            )
        return loss
    if callable(loss):
        return _Given(function=partial(loss, **params) if params else loss)
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"loss={loss!r} is not valid; choose one of {sorted(LOSSES)}.")
    known = [parameter.name for parameter in fields(LOSSES[loss]) if parameter.init]
    unknown = sorted(set(params) - set(known))
    if unknown:
        offer = f"its parameters are {known}" if known else "it has none"
        raise ValueError(f"The loss {loss!r} has no parameter {unknown[0]!r}; {offer}.")
    return LOSSES[loss](**params)
