# SPDX-License-Identifier: BSD-3-Clause
"""Linear heads of many episodes at once, solved exactly in the span of the few labelled rows.

Pure functions on batches. The weights of a head with an L2 penalty are sums of the rows that it
was trained on, W = A' X, so what is solved for are A, as many numbers per class as there are rows,
and the intercepts, which are not penalised. All three heads are (iterated) weighted ridge
regressions, and all they need of the rows is K = X X'. A row of weight 0 takes no part.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from torch.nn import functional as F

__all__ = ["HEADS", "Head", "solve_logistic", "solve_ridge", "solve_svm"]

_MAX_ITER = 100
# Halvings of a step before it is left out.
_MAX_HALVINGS = 40
# Change of the scores, relative to the largest, at which a solution is one.
_TOL = 1e-9
# Classes that are all but impossible keep the systems from being solved.
_SMALLEST_CURVATURE = 1e-14


class Head(NamedTuple):
    """What scores are made of: ``rows @ X' @ dual + intercept``.

    Attributes
    ----------
    dual : tensor of shape (E, n, N)
    intercept : tensor of shape (E, N)
    """

    dual: torch.Tensor
    intercept: torch.Tensor


Step = Callable[[Head, torch.Tensor], Head]
Objective = Callable[[Head, torch.Tensor], torch.Tensor]


def _scores(K: torch.Tensor, head: Head) -> torch.Tensor:
    return K @ head.dual + head.intercept[:, None]


def _precisions(K: torch.Tensor, D: torch.Tensor) -> torch.Tensor:
    """Return (K + diag(1 / D))^-1, zero where D is: of shape (..., n, n) for D (..., n)."""
    root = D.sqrt()
    system = root[..., None] * K * root[..., None, :]
    system.diagonal(dim1=-2, dim2=-1).add_(1)
    half = torch.linalg.solve_triangular(
        torch.linalg.cholesky(system), torch.diag_embed(root), upper=False
    )
    return half.mT @ half


def _weighted_ridge(K: torch.Tensor, targets: torch.Tensor, D: torch.Tensor) -> Head:
    """Minimise sum_i D_i (t_i - f_i)^2 / 2 + |W|^2 / 2 for each class; D is (E, N, n)."""
    precisions = _precisions(K[:, None], D)
    sums = precisions.sum(dim=-1)
    weighted = (precisions @ targets.mT[..., None])[..., 0]
    # Without a row that counts, any intercept will do.
    total = sums.sum(dim=-1)
    intercept = weighted.sum(dim=-1) / torch.where(total > 0, total, 1.0)
    return Head((weighted - sums * intercept[..., None]).mT, intercept)


def _penalty(K: torch.Tensor, head: Head) -> torch.Tensor:
    return (head.dual * (K @ head.dual)).sum(dim=(1, 2)) / 2


def _between(old: Head, new: Head, share: torch.Tensor) -> Head:
    parts = zip(old, new, strict=True)
    return Head(*(torch.lerp(a, b, share.reshape(-1, *[1] * (a.ndim - 1))) for a, b in parts))


def _shortened(
    K: torch.Tensor, old: Head, new: Head, objective: Objective
) -> tuple[Head, torch.Tensor]:
    """Halve the steps of those episodes that they lead upwards; the heads, and their scores."""
    before = objective(old, _scores(K, old))
    rounding = 1e-12 * before.abs() + 1e-300
    share = torch.ones_like(before)
    for _ in range(_MAX_HALVINGS):
        head = _between(old, new, share)
        scores = _scores(K, head)
        upwards = ~(objective(head, scores) <= before + rounding)
        if not upwards.any():
            return head, scores
        share = torch.where(upwards, share / 2, share)
    return old, _scores(K, old)


def _newton(K: torch.Tensor, start: Head, step: Step, objective: Objective) -> Head:
    """Take Newton steps, each to the minimum of a weighted ridge regression."""
    head, scores = start, _scores(K, start)
    for _ in range(_MAX_ITER):
        head, new = _shortened(K, head, step(head, scores), objective)
        moved, scores = (new - scores).abs().amax(dim=(1, 2)), new
        if bool((moved <= _TOL * scores.abs().amax(dim=(1, 2)).clamp_min(1)).all()):
            return head
    warnings.warn(
        f"A linear head did not converge in {_MAX_ITER} Newton steps; scale the rows, or lower C.",
        ConvergenceWarning,
        stacklevel=4,
    )
    return head


def _signs(onehot: torch.Tensor) -> torch.Tensor:
    return 2 * onehot - 1


def _halved(head: Head, n_classes: int) -> Head:
    """Of two classes, whose scores are opposite: the difference is what one column would be."""
    return Head(head.dual / 2, head.intercept / 2) if n_classes == 2 else head


def solve_ridge(K: torch.Tensor, onehot: torch.Tensor, weights: torch.Tensor, *, C: float) -> Head:
    r"""Solve ridge regressions onto targets of +1 and -1, one per class.

    Parameters
    ----------
    K : tensor of shape (E, n, n)
        Products of the rows of every episode, in float64.
    onehot : tensor of shape (E, n, N)
        Their classes.
    weights : tensor of shape (E, n)
        Of the rows, at least 0.
    C : float
        Weight of the errors :math:`\tfrac C2 \sum_i (t_i - f_i)^2`; the penalty is
        :math:`\tfrac12 |w|^2`.

    Returns
    -------
    head : Head
    """
    D = (C * weights)[:, None].expand(onehot.mT.shape)
    return _halved(_weighted_ridge(K, _signs(onehot), D), onehot.shape[2])


def solve_svm(K: torch.Tensor, onehot: torch.Tensor, weights: torch.Tensor, *, C: float) -> Head:
    r"""Solve support vector machines with squared hinges, one per class against the others.

    A Newton step is a ridge regression on the rows within the margin.

    Parameters
    ----------
    K : tensor of shape (E, n, n)
    onehot : tensor of shape (E, n, N)
    weights : tensor of shape (E, n)
    C : float
        Weight of the errors :math:`C \sum_i \max(0, 1 - t_i f_i)^2`; the penalty is
        :math:`\tfrac12 |w|^2`.

    Returns
    -------
    head : Head
    """
    N = onehot.shape[2]
    # One problem per class, so that each has a step length of its own.
    K = K.repeat_interleave(N, dim=0)
    signs = _signs(onehot).mT.reshape(len(K), -1, 1)
    weights = weights.repeat_interleave(N, dim=0)[..., None]

    def slack(scores: torch.Tensor) -> torch.Tensor:
        return (1 - signs * scores).clamp_min(0)

    def objective(head: Head, scores: torch.Tensor) -> torch.Tensor:
        return _penalty(K, head) + C * (weights * slack(scores).square()).sum(dim=(1, 2))

    def step(head: Head, scores: torch.Tensor) -> Head:
        within = slack(scores) > 0
        return _weighted_ridge(K, signs, (2 * C * weights * within).mT)

    start = Head(torch.zeros_like(signs), torch.zeros_like(signs[:, 0]))
    found = _newton(K, start, step, objective)
    dual = found.dual[..., 0].reshape(-1, N, onehot.shape[1]).mT
    return _halved(Head(dual, found.intercept.reshape(-1, N)), N)


def solve_logistic(
    K: torch.Tensor, onehot: torch.Tensor, weights: torch.Tensor, *, C: float
) -> Head:
    r"""Solve softmax regressions by Newton steps.

    The curvature of a row's loss is :math:`\operatorname{diag}(p) - p p^\top`, whose systems come
    apart into one of n unknowns per class and one that joins them [1]_.

    Parameters
    ----------
    K : tensor of shape (E, n, n)
    onehot : tensor of shape (E, n, N)
    weights : tensor of shape (E, n)
    C : float
        Weight of the errors :math:`-C \sum_i \log p_{i y_i}`; the penalty is
        :math:`\tfrac12 |W|^2`. Two classes are one logistic regression, of the difference of
        their scores.

    Returns
    -------
    head : Head
        With intercepts that sum to 0.

    References
    ----------
    .. [1] C. E. Rasmussen, C. K. I. Williams, Gaussian Processes for Machine Learning, 2006,
       algorithm 3.3.
    """
    # The penalty of the difference is twice the sum of those of both.
    weights = weights[..., None] * (C / 2 if onehot.shape[2] == 2 else C)

    def objective(head: Head, scores: torch.Tensor) -> torch.Tensor:
        losses = -(onehot * F.log_softmax(scores, dim=2)).sum(dim=2, keepdim=True)
        return _penalty(K, head) + (weights * losses).sum(dim=(1, 2))

    def step(head: Head, scores: torch.Tensor) -> Head:
        p = scores.softmax(dim=2)
        tilt = p * (scores - (p * scores).sum(dim=2, keepdim=True)) + onehot - p
        return _softmax_step(K, weights * p.clamp_min(_SMALLEST_CURVATURE), weights * tilt)

    start = Head(torch.zeros_like(onehot), torch.zeros_like(onehot[:, 0]))
    return _newton(K, start, step, objective)


def _softmax_step(K: torch.Tensor, D: torch.Tensor, rhs: torch.Tensor) -> Head:
    """Solve A = rhs - W (K A + 1 b'), 1'A = 0, with W = diag(D) - D D' / sum_c D of a row."""
    precisions = _precisions(K[:, None], D.mT)
    joint = precisions.sum(dim=1)
    # Rows of weight 0 are nowhere else.
    joint.diagonal(dim1=-2, dim2=-1).add_((D.sum(dim=2) == 0).to(K))
    factor = torch.linalg.cholesky(joint)
    pulled = (precisions @ (K @ rhs).mT[..., None])[..., 0]
    common = torch.cholesky_solve(pulled.sum(dim=1)[..., None], factor)
    without = rhs - (pulled - (precisions @ common[:, None])[..., 0]).mT
    # The intercepts, up to one number for all classes, make the columns sum to 0.
    sums = precisions.sum(dim=-1)
    shared = torch.cholesky_solve(sums.mT, factor)
    system = torch.diag_embed(sums.sum(dim=-1)) - sums @ shared + 1 / D.shape[2]
    intercept = torch.linalg.solve(system, without.sum(dim=1))
    moved = (
        sums * intercept[..., None]
        - (precisions @ (shared @ intercept[..., None])[:, None])[..., 0]
    )
    return Head(without - moved.mT, intercept)


HEADS: dict[str, Callable[..., Head]] = {
    "logistic": solve_logistic,
    "ridge": solve_ridge,
    "svm": solve_svm,
}
