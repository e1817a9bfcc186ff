# SPDX-License-Identifier: BSD-3-Clause
"""What a softmax regression is made of: products with the rows, losses, and a model of curvature.

Between rows as they lie in memory and `_softmax_solver`. Parameters are one row per class, in units
in which features have mean 0 and, on average, variance 1, with the intercept as last column.
"""

import math
from collections.abc import Iterator

import torch

from skpool.utils import widened

__all__ = ["Curvature", "ScaledRows", "add_residuals", "line_derivatives", "wide_type"]

# Rows whose products are taken at once: they stay in the cache from the scores to the gradient.
_BLOCK_ROWS = 2048
_BLOCK_ROWS_GPU = 65536
# Means of at most so many standard deviations cost float32 products no digits that matter, so that
# rows are multiplied as they lie and the mean is subtracted from the results.
_SMALL_MEAN = 4.0
# Rows per feature from which curvatures are estimated.
_ROWS_PER_FEATURE = 8
# Wider rows keep their own axes: a decomposition would take longer than what it saves.
_MAX_ROTATED = 2048
# Share of the largest curvature below which float32 knows none.
_LEAST_CURVATURE = 1e-7
# What stands for a curvature that is rounded to nothing.
_NO_CURVATURE = 1e-30
# Sums of squares below this are of numbers whose squares float32 may have rounded away.
_NO_SQUARES = 1e-25


def wide_type(device: torch.device) -> torch.dtype:
    """The type of sums; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


class ScaledRows:
    """Rows, less their mean, in units of their mean standard deviation, never copied as a whole.

    Parameters
    ----------
    X : tensor of shape (n, d)
        Of any float type and magnitude, read block by block.
    fit_intercept : bool
        Whether parameters have an intercept as last column; without one, nothing is subtracted.

    Attributes
    ----------
    center : tensor of shape (d,)
    scale : float
        What centred rows are multiplied by.
    width : int
        Columns of the parameters.
    n_passes : float
        Passes so far: products with all rows, two of which, for scores and a gradient, make one.
    """

    def __init__(self, X: torch.Tensor, *, fit_intercept: bool):
        self.X, self.fit_intercept = X, fit_intercept
        self.n, self.d = X.shape
        self.width = self.d + int(fit_intercept)
        self.wide = wide_type(X.device)
        self.n_passes = 0.0
        total = torch.zeros(self.d, dtype=self.wide, device=X.device)
        for part in self.parts():
            total += X[part].sum(dim=0, dtype=self.wide)
        self.center = total / self.n if fit_intercept else torch.zeros_like(total)
        root = self._root_mean_square()
        self.scale = 1.0 / root if root > 0 else 1.0
        far = float(self.center.square().mean().sqrt()) * self.scale
        self._near = far <= _SMALL_MEAN and 1e-6 < self.scale < 1e6

    def _root_mean_square(self) -> float:
        """Of the centred features."""

        def total(dtype: torch.dtype, unit: float) -> float:
            center = self.center.to(dtype)
            squares = (((self.X[p].to(dtype) - center) / unit).square() for p in self.parts())
            return sum(float(block.sum(dtype=self.wide)) for block in squares)

        value, unit = total(widened(self.X[:0]).dtype, 1.0), 1.0
        if not _NO_SQUARES < value < math.inf:
            # Squares that overflow or vanish: the largest value is the unit.
            unit = max(
                float((self.X[part].to(self.wide) - self.center).abs().max())
                for part in self.parts()
            )
            value = total(self.wide, unit) if unit > 0 else 0.0
        return unit * math.sqrt(value / (self.n * self.d))

    def parts(self) -> Iterator[slice]:
        """Slices of rows."""
        step = _BLOCK_ROWS if self.X.device.type == "cpu" else _BLOCK_ROWS_GPU
        for start in range(0, self.n, step):
            yield slice(start, min(start + step, self.n))

    def scaled(self, index: slice | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Some rows, centred and scaled.

        Parameters
        ----------
        index : slice or tensor of shape (m,)
        dtype : torch.dtype

        Returns
        -------
        rows : tensor of shape (m, d)
        """
        rows = self.X[index].to(self.wide) if dtype == self.wide else widened(self.X[index])
        return (rows - self.center.to(rows.dtype)).mul_(self.scale).to(dtype)

    def _as_they_lie(self, dtype: torch.dtype) -> bool:
        return self._near and self.X.dtype == dtype

    def _block(self, part: slice, dtype: torch.dtype) -> torch.Tensor:
        return self.X[part] if self._as_they_lie(dtype) else self.scaled(part, dtype)

    def _for_rows(self, P: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and offsets for rows as `_block` gives them."""
        W = P[..., : self.d]
        b = P[..., self.d] if self.fit_intercept else P.new_zeros(P.shape[:-1])
        if self._as_they_lie(dtype):
            W = W * self.scale
            b = b - W @ self.center
        return W.to(dtype), b.to(dtype)

    def scores(self, P: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Products of all rows with parameters of several problems: half a pass.

        Parameters
        ----------
        P : tensor of shape (n_problems, n_classes, width)
        dtype : torch.dtype

        Returns
        -------
        scores : tensor of shape (n_problems, n, n_classes)
        """
        W, b = self._for_rows(P, dtype)
        out = torch.empty(len(P), self.n, P.shape[1], dtype=dtype, device=self.X.device)
        for part in self.parts():
            rows = self._block(part, dtype)
            for j in range(len(P)):
                torch.addmm(b[j], rows, W[j].T, out=out[j, part])
        self.n_passes += 0.5 * len(P)
        return out

    def gradients(
        self, residuals: Iterator[tuple[slice, list[torch.Tensor]]], shape: tuple, dtype
    ) -> torch.Tensor:
        """Products of residuals with all rows: the other half of a pass.

        Parameters
        ----------
        residuals : iterator of (slice, list of tensors of shape (rows, n_classes))
            One tensor per problem.
        shape : tuple
            Of the gradients: (n_problems, n_classes, width).
        dtype : torch.dtype

        Returns
        -------
        gradients : tensor of shape (n_problems, n_classes, width)
        """
        total = torch.zeros(shape, dtype=self.wide, device=self.X.device)
        sums = torch.zeros(shape[:2], dtype=self.wide, device=self.X.device)
        for part, blocks in residuals:
            rows = self._block(part, dtype)
            for j, block in enumerate(blocks):
                total[j, :, : self.d] += block.T @ rows
                sums[j] += block.sum(dim=0)
        if self._as_they_lie(dtype):
            features = total[..., : self.d]
            features -= sums[..., None] * self.center
            features *= self.scale
        if self.fit_intercept:
            total[..., self.d] = sums
        self.n_passes += 0.5 * shape[0]
        return total

    def unscaled(self, P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and intercepts for the rows as they came.

        Parameters
        ----------
        P : tensor of shape (..., n_classes, width)

        Returns
        -------
        coef : tensor of shape (..., n_classes, d)
        intercept : tensor of shape (..., n_classes)
        """
        # Shifting all classes alike changes nothing; of the intercepts the mean is 0.
        P = P - P.mean(dim=-2, keepdim=True)
        coef = P[..., : self.d] * self.scale
        if not self.fit_intercept:
            return coef, P.new_zeros(P.shape[:-1])
        return coef, P[..., self.d] - coef @ self.center


def add_residuals(Z: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> tuple[float, torch.Tensor]:
    r"""Weighted cross-entropy of scores, and its derivative in them.

    Parameters
    ----------
    Z : tensor of shape (n, n_classes)
    y : tensor of shape (n,)
        Class numbers.
    w : tensor of shape (n,)

    Returns
    -------
    loss : float
        Sum, in float64 where there is one.
    residuals : tensor of shape (n, n_classes)
        Probabilities less the one-hot targets, times the weights.
    """
    y, w = y[:, None], w[:, None]
    top = Z.amax(dim=1, keepdim=True)
    target = Z.gather(1, y) - top
    E = (Z - top).exp_()
    at_target = target.exp()
    # The others are summed by themselves: 1 - p of a sure row would lose its digits.
    E.scatter_(1, y, 0.0)
    others = E.sum(dim=1, keepdim=True)
    loss = torch.where(target == 0, others.log1p(), (others + at_target).log() - target)
    share = w / (others + at_target)
    E.mul_(share).scatter_(1, y, -others * share)
    return float((loss * w).sum(dtype=wide_type(Z.device))), E


def line_derivatives(
    Z: torch.Tensor, D: torch.Tensor, w: torch.Tensor, t: float
) -> tuple[float, float]:
    """First and second derivative in t of the log-partition terms at the scores Z + t D.

    Parameters
    ----------
    Z, D : tensor of shape (n, n_classes)
    w : tensor of shape (n,)
    t : float

    Returns
    -------
    first, second : float
    """
    P = torch.softmax(torch.add(Z, D, alpha=t), dim=1)
    PD = P.mul_(D)
    mean = PD.sum(dim=1)
    variance = PD.mul_(D).sum(dim=1) - mean.square()
    wide = wide_type(Z.device)
    return float((mean * w).sum(dtype=wide)), float((variance * w).sum(dtype=wide))


class Curvature:
    r"""A diagonal model of the Hessian, on axes on which it is nearly diagonal.

    The Hessian :math:`\sum_i w_i (\mathrm{diag}(p_i) - p_i p_i^\top) \otimes x_i x_i^\top` is
    replaced by its diagonal on the axes :math:`u_k \otimes q_j`, with :math:`q_j` the
    eigenvectors of the covariance of the features and :math:`u_k` those of the mean of the first
    factor [1]_. A sample of the rows serves; the features are rotated once, and following the
    probabilities costs products with the sample.

    Parameters
    ----------
    rows : ScaledRows
    weights : tensor of shape (n,)
    generator : torch.Generator
        Draws the sample.
    dtype : torch.dtype
        Of the axes and what is divided.

    References
    ----------
    .. [1] George et al., "Fast Approximate Natural Gradient Descent in a Kronecker-factored
       Eigenbasis", NeurIPS 2018. <https://arxiv.org/abs/1806.03884>
    """

    def __init__(
        self,
        rows: ScaledRows,
        weights: torch.Tensor,
        generator: torch.Generator,
        dtype: torch.dtype,
    ):
        size = min(rows.n, max(_ROWS_PER_FEATURE * rows.d, 1024))
        index = torch.randperm(rows.n, generator=generator)[:size].sort().values
        index = index.to(rows.X.device)
        self.d, self.wide, self.dtype = rows.d, rows.wide, dtype
        sample = rows.scaled(index, torch.float32)
        self.w = weights[index].float()
        self.w /= self.w.sum()
        self.Q = None
        if rows.d <= _MAX_ROTATED:
            axes = _eigenvectors((sample.T @ sample).to(self.wide))
            self.Q = axes.to(dtype)
            sample = sample @ axes.float()
        if rows.fit_intercept:
            sample = torch.cat([sample, torch.ones_like(sample[:, :1])], dim=1)
        self.sample, self.squares = sample, sample.square()

    def _rotated(self, P: torch.Tensor, *, back: bool = False) -> torch.Tensor:
        if self.Q is None:
            return P
        turned = P[..., : self.d] @ (self.Q.T if back else self.Q)
        return torch.cat([turned, P[..., self.d :]], dim=-1)

    def follow(self, P: torch.Tensor) -> None:
        """Take the curvature at these parameters.

        Parameters
        ----------
        P : tensor of shape (n_classes, width)
        """
        p = torch.softmax(self.sample @ self._rotated(P.to(self.dtype)).float().T, dim=1)
        wp = p * self.w[:, None]
        axes = _eigenvectors((torch.diag(wp.sum(dim=0)) - p.T @ wp).to(self.wide))
        self.U, U = axes.to(self.dtype), axes.float()
        shares = (wp @ U.square()) - self.w[:, None] * (p @ U).square()
        D = (shares.T @ self.squares).to(self.dtype)
        self.D = D.clamp_min(max(float(D.max()) * _LEAST_CURVATURE, _NO_CURVATURE))

    def divide(self, G: torch.Tensor, penalty: float) -> torch.Tensor:
        """Divide by the curvature and the penalty, which intercepts do not have.

        Parameters
        ----------
        G : tensor of shape (n_classes, width)
            Of the type of the axes.
        penalty : float

        Returns
        -------
        P : tensor of shape (n_classes, width)
        """
        T = self._rotated(self.U.T @ G)
        T[:, : self.d] /= self.D[:, : self.d] + penalty
        T[:, self.d :] /= self.D[:, self.d :]
        return self._rotated(self.U @ T, back=True)


def _eigenvectors(A: torch.Tensor) -> torch.Tensor:
    if A.device.type == "mps":
        return torch.linalg.eigh(A.cpu())[1].to(A.device)
    return torch.linalg.eigh(A)[1]
