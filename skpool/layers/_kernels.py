# SPDX-License-Identifier: BSD-3-Clause
"""From several layers to one: pure functions on tensors (n, k, ..., d), with the layers second.

They treat every sample by itself and run where the data lies, so they serve vectors of layers and
tokens of layers alike. `LAYER_POOLS` names those that nothing is learned for; the weights of the
weighted sum come from `fit_layer_weights`.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning

from skpool.utils import unit_rows, widened

__all__ = [
    "LAYER_POOLS",
    "NORMALIZATIONS",
    "LayerWeights",
    "combine_layers",
    "fit_layer_weights",
    "layer_weights_objective",
]

_EPS = 1e-5


def concatenate_layers(X: torch.Tensor) -> torch.Tensor:
    """The layers side by side on the last axis."""
    return X.movedim(1, -2).flatten(-2)


LAYER_POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "concat": concatenate_layers,
    "last": lambda X: X[:, -1],
    "max": lambda X: X.amax(dim=1),
    "mean": lambda X: X.mean(dim=1),
    "stack": lambda X: X,
    "sum": lambda X: X.sum(dim=1),
}


def _layer_norm(X: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1 over the features."""
    return torch.nn.functional.layer_norm(X, X.shape[-1:], eps=_EPS)


NORMALIZATIONS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    None: lambda X: X,
    "l2": unit_rows,
    "layernorm": _layer_norm,
}


def combine_layers(
    X: torch.Tensor,
    *,
    layer_pool: str = "mean",
    normalize: str | None = None,
    weights: torch.Tensor | np.ndarray | None = None,
) -> torch.Tensor:
    """Normalise every layer, and make one of them.

    Parameters
    ----------
    X : tensor of shape (n, k, ..., d)
    layer_pool : str, default="mean"
        A name in `LAYER_POOLS`, or "weighted".
    normalize : {"l2", "layernorm"}, default=None
        What is done to the features of every layer before.
    weights : array or tensor of shape (k,), default=None
        For "weighted".

    Returns
    -------
    combined : tensor of shape (n, ..., d), (n, ..., k * d) or (n, k, ..., d)
    """
    X = NORMALIZATIONS[normalize](widened(X))
    if layer_pool == "weighted":
        return torch.tensordot(torch.as_tensor(weights).to(X), X, dims=([0], [1]))
    return LAYER_POOLS[layer_pool](X)


class LayerWeights(NamedTuple):
    """What `fit_layer_weights` found.

    Attributes
    ----------
    weights : ndarray of shape (k,)
        Not negative, with sum 1.
    n_iter : int
        Iterations of L-BFGS.
    """

    weights: np.ndarray
    n_iter: int


def layer_weights_objective(
    parameters: np.ndarray, X: torch.Tensor, targets: torch.Tensor, alpha: float
) -> tuple[float, np.ndarray]:
    r"""Loss of a softmax head on a weighted sum of layers, and its gradient.

    .. math:: -\frac1n \sum_i \log p_{y_i}\Big(\sum_l w_l x_{il}\Big)
        + \frac{\alpha}{2} (\|V\|^2 + \|a\|^2), \qquad w = \mathrm{softmax}(a)

    Parameters
    ----------
    parameters : ndarray of shape (k + n_classes * d + n_classes,)
        a, the head's V and its offsets.
    X : tensor of shape (n, k, d)
    targets : tensor of shape (n, n_classes)
        One-hot, of the type of X.
    alpha : float

    Returns
    -------
    loss : float
    gradient : ndarray of the shape of `parameters`
    """
    n, k, d = X.shape
    theta = torch.from_numpy(parameters).to(X)
    a, head, offset = theta.split([k, targets.shape[1] * d, targets.shape[1]])
    head = head.view(-1, d)
    weights = a.softmax(dim=0)
    combined = torch.tensordot(weights, X, dims=([0], [1]))
    logp = torch.log_softmax(combined @ head.T + offset, dim=1)
    penalty = head.square().sum() + a.square().sum()
    loss = -(targets * logp).sum() / n + alpha / 2 * penalty
    errors = (logp.exp() - targets) / n
    # d loss / d w_l is the product of layer l with what the head sends back.
    of_weights = torch.tensordot(X, errors @ head, dims=([0, 2], [0, 1]))
    of_a = weights * (of_weights - weights @ of_weights) + alpha * a
    of_head = errors.T @ combined + alpha * head
    gradient = torch.cat([of_a, of_head.flatten(), errors.sum(dim=0)])
    return float(loss), gradient.double().cpu().numpy()


def fit_layer_weights(
    X: torch.Tensor, y: np.ndarray, *, alpha: float = 1e-3, max_iter: int = 200
) -> LayerWeights:
    """Learn the weights of layers together with a linear softmax head, by L-BFGS.

    The layers are centred and brought to a common scale first (one number for all, so that their
    proportions stay), and the weights start equal.

    Parameters
    ----------
    X : tensor of shape (n, k, d)
    y : ndarray of shape (n,)
        Class numbers from 0 on.
    alpha : float, default=1e-3
        Factor of the penalty on the squares of the head and of the logarithms of the weights.
    max_iter : int, default=200
        0 leaves the weights equal.

    Returns
    -------
    result : LayerWeights
    """
    k, d = X.shape[1:]
    n_classes = int(y.max()) + 1
    X = X.to(torch.float32 if X.device.type == "mps" else torch.float64)
    X = X - X.mean(dim=0)
    scale = float(X.square().mean().sqrt())
    if max_iter == 0 or k == 1 or scale == 0:
        return LayerWeights(np.full(k, 1 / k), 0)
    targets = torch.eye(n_classes, dtype=X.dtype, device=X.device)[torch.from_numpy(y).to(X.device)]
    found = minimize(
        layer_weights_objective,
        np.zeros(k + n_classes * (d + 1)),
        args=(X / scale, targets, alpha),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter, "maxfun": 10 * max_iter, "ftol": 1e-9, "gtol": 1e-5},
    )
    if found.status == 1:
        warnings.warn(
            f"The weights of the layers have not converged after max_iter={max_iter} iterations; "
            "raise max_iter or alpha, or normalise the layers.",
            ConvergenceWarning,
            stacklevel=2,
        )
    exponent = found.x[:k] - found.x[:k].max()
    return LayerWeights(np.exp(exponent) / np.exp(exponent).sum(), int(found.nit))
