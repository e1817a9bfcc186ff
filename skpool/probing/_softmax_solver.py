# SPDX-License-Identifier: BSD-3-Clause
r"""Softmax regression with a quadratic penalty, along a path of penalties.

The kernel under `LinearProbeClassifier`. Problems that differ in the weights of the rows, as folds
do, are solved side by side: a block of rows is read once for all of them. L-BFGS starts from a
model of the Hessian (`_softmax_terms.Curvature`), whose first step is a closed form; steps are
minimised along exactly, which needs no products, because scores are linear in the parameters; and
what was learned about the Hessian at one penalty serves the next one, because the penalty enters
it in a known way. A penalty starts towards where the solutions before it point.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn import get_config

from skpool.probing._softmax_terms import Curvature, ScaledRows, add_residuals, line_derivatives
from skpool.utils import full_float32

__all__ = ["SoftmaxPath", "softmax_path"]

# Steps that L-BFGS remembers.
_MEMORY = 30
# Solutions through which the first step at the next penalty is extrapolated.
_EXTRAPOLATED = 4
# Rows on which the length of a step is computed; the slope at its start is that of all rows.
_LINE_ROWS = 4096
_LINE_STEPS = 12
# Relative decreases of the objective below this are rounding of float32 products.
_FLOAT32_DECREASE = 1e-8
# Problems below this many multiply-adds per product are computed in float64.
_FEW_PRODUCTS = 2e8
# Iterations at which the curvature is taken anew, and then every so many.
_FOLLOWED = 16
# Log-prior of a class without samples.
_NO_PRIOR = -30.0
# Smallest penalty, and one over the largest: what lies beyond makes no difference to numbers.
_LEAST_PENALTY = 1e-100
# Relative changes of the objective that may be rounding, and steps that may pass without progress
# where they promise no more than that.
_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}
_MOST_IDLE = 20


@dataclass(frozen=True, eq=False)
class SoftmaxPath:
    """Solutions of all problems at all penalties, and what they took.

    Attributes
    ----------
    coef : ndarray of shape (n_problems, n_penalties, n_classes, d)
    intercept : ndarray of shape (n_problems, n_penalties, n_classes)
        With mean 0.
    objective : ndarray of shape (n_problems, n_penalties)
    n_iter : ndarray of shape (n_problems, n_penalties)
    converged : ndarray of shape (n_problems, n_penalties)
        Whether the tolerance was reached.
    center : ndarray of shape (d,)
        Mean of the rows, around which products keep their digits; 0 without intercepts.
    n_passes : float
        Products with all rows; two of them, for scores and a gradient, are one pass.
    """

    coef: np.ndarray
    intercept: np.ndarray
    objective: np.ndarray
    n_iter: np.ndarray
    converged: np.ndarray
    center: np.ndarray
    n_passes: float


def softmax_path(
    X: torch.Tensor,
    codes: torch.Tensor,
    weights: torch.Tensor,
    penalties: np.ndarray,
    *,
    n_classes: int,
    fit_intercept: bool = True,
    tol: float = 1e-7,
    max_iter: int = 1000,
) -> SoftmaxPath:
    r"""Minimise penalised cross-entropies along a path of penalties.

    .. math:: \frac{\sum_i w_i \, \mathrm{CE}(W x_i + b, y_i)}{\sum_i w_i}
              + \frac{\lambda}{2} \|W\|^2

    Parameters
    ----------
    X : tensor of shape (n, d)
        Of any float type; products are computed where it lies.
    codes : tensor of shape (n,)
        Class numbers from 0.
    weights : tensor of shape (n_problems, n)
        Weights of the rows in every problem, at least 0.
    penalties : ndarray of shape (n_problems, n_penalties)
        Of every problem, in the order in which they are solved; descending is fastest.
    n_classes : int
    fit_intercept : bool, default=True
    tol : float, default=1e-7
        A problem is solved when the decrease that the next step promises is at most this part of
        the objective. The decrease that is left in all was five to twenty times as large in what
        was tried.
    max_iter : int, default=1000
        Most steps per penalty.

    Returns
    -------
    path : SoftmaxPath

    Notes
    -----
    Small problems are computed in float64, others in float32 with sums in float64 down to a
    relative decrease of 1e-8, and in float64 where `tol` is below that.

    Cost: a pass, 4 n d n_classes multiplications and additions per problem, for every step;
    memory 2 n n_classes numbers per problem, beside blocks of rows.
    """
    n_problems, n = weights.shape
    held = 2 * 8 * n * n_classes
    # Scores and their changes.
    at_once = max(1, int(get_config()["working_memory"] * 2**20) // held)
    rows = ScaledRows(X, fit_intercept=fit_intercept)
    curvature = None
    parts = []
    with full_float32(), torch.no_grad():
        for start in range(0, n_problems, at_once):
            chosen = slice(start, start + at_once)
            solver = _Solver(rows, codes, weights[chosen], n_classes, tol, max_iter, curvature)
            curvature = solver.curvature
            parts.append(solver.path(penalties[chosen]))
    joined = [np.concatenate(part) for part in zip(*parts, strict=True)]
    center = rows.center.cpu().double().numpy()
    return SoftmaxPath(*joined, center=center, n_passes=rows.n_passes)


@dataclass(eq=False)
class _Pair:
    """A step, and how the gradient changed along it."""

    step: torch.Tensor
    bend: torch.Tensor  # of the gradient of the loss
    change: torch.Tensor | None = None  # of the whole gradient
    curve: float = 0.0

    def at(self, penalty: float, d: int) -> None:
        """Take another penalty, whose part of the Hessian is known."""
        self.change = self.bend.clone()
        self.change[:, :d].add_(self.step[:, :d], alpha=penalty)
        self.curve = float(torch.sum(self.step * self.change))


@dataclass(eq=False)
class _Problem:
    """Where one problem stands: the parameters, the objective without penalty, the memory."""

    P: torch.Tensor
    loss: float = 0.0
    gradient: torch.Tensor | None = None  # of the loss
    steps: list = field(default_factory=list)  # of `_Pair`
    past: list = field(default_factory=list)  # pairs (logarithm of the penalty, parameters)
    n_iter: int = 0
    done: bool = False
    converged: bool = False
    promise: float = math.inf  # of the next step, the least so far
    n_idle: int = 0  # directions since then

    def restart(self) -> None:
        """Begin with another penalty or type of products."""
        self.done, self.promise, self.n_idle = False, math.inf, 0

    def stalls(self, promise: float, rounding: float) -> bool:
        """Tell whether steps have come to promise nothing but rounding."""
        self.n_idle = 0 if promise < self.promise else self.n_idle + 1
        self.promise = min(promise, self.promise)
        return self.n_idle >= _MOST_IDLE and promise <= rounding


class _Solver:
    """Problems with the same rows, in lockstep along their penalties."""

    def __init__(self, rows, codes, weights, n_classes, tol, max_iter, curvature):
        self.rows, self.y, self.n_classes = rows, codes, n_classes
        self.tol, self.max_iter = tol, max_iter
        weights = weights.to(rows.wide)
        self.weights = weights / weights.sum(dim=1, keepdim=True)
        generator = torch.Generator().manual_seed(0)
        self.dtypes = self._types()
        self.dtype = self.dtypes[0]
        self.curvature = curvature or Curvature(rows, self.weights[0], generator, self.dtype)
        line = torch.randperm(rows.n, generator=generator)[:_LINE_ROWS].sort().values
        self.line = line.to(codes.device)
        self.problems = [_Problem(self._start(w)) for w in self.weights]
        self._forward()

    def _types(self) -> list[torch.dtype]:
        """Types of the products, in the order in which they are used."""
        few = self.rows.n * self.rows.d * self.n_classes <= _FEW_PRODUCTS
        if self.rows.wide == torch.float32:
            return [torch.float32]
        if few:
            return [torch.float64]
        return [torch.float32, torch.float64] if self.tol < _FLOAT32_DECREASE else [torch.float32]

    def _start(self, w: torch.Tensor) -> torch.Tensor:
        """No weights, and the logarithms of the priors as intercepts."""
        shape = self.n_classes, self.rows.width
        P = torch.zeros(shape, dtype=self.rows.wide, device=w.device)
        if self.rows.fit_intercept:
            prior = torch.zeros_like(P[:, -1]).index_add_(0, self.y, w)
            P[:, -1] = prior.log().clamp_min(_NO_PRIOR)
        return P

    def path(self, penalties: np.ndarray) -> tuple:
        """Solve all penalties; what `SoftmaxPath` holds of these problems."""
        found = []
        for column in penalties.T:
            self._solve([float(penalty) for penalty in column])
            P = torch.stack([problem.P for problem in self.problems])
            objective = [
                self._objective(problem, penalty)
                for problem, penalty in zip(self.problems, column, strict=True)
            ]
            found.append(
                (
                    *(part.cpu().double().numpy() for part in self.rows.unscaled(P)),
                    np.array(objective),
                    np.array([problem.n_iter for problem in self.problems]),
                    np.array([problem.converged for problem in self.problems]),
                )
            )
        return tuple(np.stack(part, axis=1) for part in zip(*found, strict=True))

    def _solve(self, penalties: list[float]) -> None:
        """All problems at one penalty each."""
        # In units of the scaled rows.
        self.penalties = [self._in_units(penalty) for penalty in penalties]
        for problem, penalty in zip(self.problems, self.penalties, strict=True):
            problem.n_iter, problem.converged = 0, False
            problem.restart()
            for pair in problem.steps:
                pair.at(penalty, self.rows.d)
            problem.steps = [pair for pair in problem.steps if pair.curve > 0]
        ahead = self._extrapolations()
        if ahead:
            self._move(ahead)
        step = 0
        while True:
            if step % _FOLLOWED == 0 or step in (1, 2, 4, 8):
                self.curvature.follow(self.problems[0].P)
            moving = self._directions()
            if moving:
                self._move(moving)
            elif not self._refine():
                break
            step += 1
        for problem, penalty in zip(self.problems, self.penalties, strict=True):
            problem.past = [*problem.past, (math.log(penalty), problem.P)][-_EXTRAPOLATED:]

    def _extrapolations(self) -> dict[int, tuple[torch.Tensor, float]]:
        """Directions to where the solutions before would go on, where that is downhill."""
        ahead = {}
        for j, (problem, penalty) in enumerate(zip(self.problems, self.penalties, strict=True)):
            if len(problem.past) < 2 or self.max_iter < 2:
                continue
            at = np.array([place for place, _ in problem.past])
            if len(np.unique([*at, math.log(penalty)])) <= len(at):
                continue
            D = -problem.P
            for i, (place, P) in enumerate(problem.past):
                others = np.delete(at, i)
                D = D + float(np.prod((math.log(penalty) - others) / (place - others))) * P
            slope = float((self._total_gradient(problem, penalty) * D).sum())
            if slope < 0:
                ahead[j] = D, slope
        return ahead

    def _directions(self) -> dict[int, tuple[torch.Tensor, float]]:
        """Directions of the problems that go on, and their slopes; others are done."""
        precise = self.dtype == self.dtypes[-1]
        least = self.tol if precise else _FLOAT32_DECREASE
        moving = {}
        for j, problem in enumerate(self.problems):
            if problem.done:
                continue
            penalty = self.penalties[j]
            G = self._total_gradient(problem, penalty)
            D = -self._inverse_hessian(problem, penalty, G)
            D -= D.mean(dim=0)
            slope = float((G * D).sum())
            promise = -slope / 2 / self._objective(problem, penalty, scaled=True)
            small = promise <= least or problem.stalls(promise, _ROUNDING[self.dtype])
            if small or problem.n_iter >= self.max_iter:
                problem.done, problem.converged = True, small and precise
            else:
                moving[j] = D, slope
        return moving

    def _refine(self) -> bool:
        """Go on in the next type of products, if there is one."""
        if self.dtype == self.dtypes[-1]:
            return False
        going_on = [problem for problem in self.problems if problem.n_iter < self.max_iter]
        if not going_on:
            return False
        self.dtype = self.dtypes[-1]
        self._forward()
        for problem in going_on:
            problem.restart()
        return True

    def _forward(self) -> None:
        """Scores, losses and gradients of all problems, in the type of the products."""
        self.Z = list(self.rows.scores(torch.stack([p.P for p in self.problems]), self.dtype))
        self.w = self.weights.to(self.dtype)
        everyone = range(len(self.problems))
        for j, (loss, gradient) in zip(everyone, self._gradients(list(everyone)), strict=True):
            self.problems[j].loss, self.problems[j].gradient = loss, gradient

    def _gradients(self, chosen: list[int]) -> list[tuple[float, torch.Tensor]]:
        """Losses and their gradients at the scores as they stand."""
        losses = [0.0] * len(chosen)

        def residuals():
            for part in self.rows.parts():
                blocks = []
                for i, j in enumerate(chosen):
                    loss, block = add_residuals(self.Z[j][part], self.y[part], self.w[j, part])
                    losses[i] += loss
                    blocks.append(block)
                yield part, blocks

        shape = len(chosen), self.n_classes, self.rows.width
        gradients = self.rows.gradients(residuals(), shape, self.dtype)
        return list(zip(losses, gradients, strict=True))

    def _move(self, moving: dict[int, tuple[torch.Tensor, float]]) -> None:
        """One step of every problem that goes on."""
        chosen = list(moving)
        scores = self.rows.scores(torch.stack([moving[j][0] for j in chosen]), self.dtype)
        lengths = []
        for j, change in zip(chosen, scores, strict=True):
            lengths.append(self._step_length(j, change, *moving[j]))
            self.Z[j].add_(change, alpha=lengths[-1])
        for j, length, change, (loss, gradient) in zip(
            chosen, lengths, scores, self._gradients(chosen), strict=True
        ):
            self._arrive(j, length, moving[j][0], change, loss, gradient)

    def _arrive(self, j, length, D, change, loss, gradient) -> None:
        """Take a step, or half of it as long as it leads uphill."""
        problem, penalty = self.problems[j], self.penalties[j]
        before = self._objective(problem, penalty, scaled=True)
        allowed = before * (1 + _ROUNDING[self.dtype])
        while True:
            step = length * D
            after = loss + self._penalty(problem.P + step, penalty)
            if after <= allowed or length < 1e-9:
                break
            self.Z[j].add_(change, alpha=-length / 2)
            length /= 2
            ((loss, gradient),) = self._gradients([j])
        self._remember(problem, penalty, step, gradient - problem.gradient)
        problem.P, problem.loss, problem.gradient = problem.P + step, loss, gradient
        problem.n_iter += 1

    def _step_length(self, j: int, change: torch.Tensor, D: torch.Tensor, slope: float) -> float:
        """Where the objective is least along a direction, by Newton's method on some rows."""
        d, penalty = self.rows.d, self.penalties[j]
        curve = penalty * float(D[:, :d].square().sum())
        everything = len(self.line) == self.rows.n
        Z, change = (self.Z[j], change) if everything else (self.Z[j][self.line], change[self.line])
        w = self.w[j] if everything else self.w[j, self.line]
        w = w / w.sum() if bool(w.sum() > 0) else w
        first, second = line_derivatives(Z, change, w, 0.0)
        # What does not depend on t, and what the rows left out, are in the slope at the start.
        offset = slope - first
        t, low, high = 0.0, 0.0, np.inf
        for _ in range(_LINE_STEPS):
            value = first + offset + curve * t
            low, high = (t, high) if value < 0 else (low, t)
            bend = second + curve
            new = t - value / bend if bend > 0 else 2 * t + 1.0
            new = min(new, 4 * t if t > 0 else 4.0)
            if not low < new < high:
                new = (low + high) / 2
            if abs(new - t) <= 0.03 * new:
                return new
            t = new
            first, second = line_derivatives(Z, change, w, t)
        return t

    # What follows from the penalty, which the loss and its gradient leave out.

    def _in_units(self, penalty: float) -> float:
        """A penalty of weights for the scaled rows."""
        return min(max(penalty * self.rows.scale**2, _LEAST_PENALTY), 1 / _LEAST_PENALTY)

    def _penalty(self, P: torch.Tensor, penalty: float) -> float:
        return penalty / 2 * float(P[:, : self.rows.d].square().sum())

    def _objective(self, problem: _Problem, penalty: float, *, scaled: bool = False) -> float:
        penalty = penalty if scaled else self._in_units(penalty)
        return problem.loss + self._penalty(problem.P, penalty)

    def _total_gradient(self, problem: _Problem, penalty: float) -> torch.Tensor:
        G = problem.gradient.clone()
        G[:, : self.rows.d] += penalty * problem.P[:, : self.rows.d]
        return G

    def _remember(self, problem: _Problem, penalty: float, step, bend) -> None:
        """Keep a step and the change of the gradient of the loss along it."""
        # A memory of few digits serves as well: it only shapes the next steps.
        step, bend = step.to(self.dtypes[0]), bend.to(self.dtypes[0])
        pair = _Pair(step, bend)
        pair.at(penalty, self.rows.d)
        if pair.curve > 0:
            problem.steps = [*problem.steps, pair][-_MEMORY:]

    def _inverse_hessian(self, problem: _Problem, penalty: float, G: torch.Tensor) -> torch.Tensor:
        """Product with L-BFGS's inverse Hessian, whose start is the model of the curvature."""
        G, parts = G.to(self.dtypes[0], copy=True), []
        for pair in reversed(problem.steps):
            part = float(torch.sum(pair.step * G)) / pair.curve
            G.sub_(pair.change, alpha=part)
            parts.append(part)
        D = self.curvature.divide(G, penalty)
        for pair, part in zip(problem.steps, reversed(parts), strict=True):
            D.add_(pair.step, alpha=part - float(torch.sum(pair.change * D)) / pair.curve)
        return D.to(self.rows.wide)
