# SPDX-License-Identifier: BSD-3-Clause
"""estimate_query_prior: how frequent the classes are among the queries, from what a model says.

`updated_prior` is the same rule for many episodes at once, as the transductive classifiers use
it; the function is for one set of posteriors.
"""

import numpy as np
import torch

from skpool.utils import ArrayLike, as_tensor, check_finite

__all__ = ["estimate_query_prior", "updated_prior"]

_METHODS = ("em", "count")


def updated_prior(
    proba: torch.Tensor, weights: torch.Tensor, *, pseudo_count: float
) -> torch.Tensor:
    """Return shares of the classes from posteriors of the queries.

    Parameters
    ----------
    proba : tensor of shape (E, N, n)
        Posteriors.
    weights : tensor of shape (E, 1, n)
        1 for queries, 0 for padding.
    pseudo_count : float
        Queries that every class is given beforehand.

    Returns
    -------
    prior : tensor of shape (E, N)
        Sums to 1.
    """
    counts = (proba * weights).sum(dim=2) + pseudo_count
    return counts / counts.sum(dim=1, keepdim=True)


def estimate_query_prior(
    P: ArrayLike,
    *,
    method: str = "em",
    pseudo_count: float = 2.0,
    prior: ArrayLike | None = None,
    max_iter: int = 1000,
    tol: float = 1e-8,
) -> np.ndarray:
    r"""Estimate how frequent the classes are among queries, from their posteriors.

    A model that was made for classes of some frequencies :math:`\pi^0` gives posteriors
    :math:`p_{qk}`; where the frequencies are :math:`\pi` instead, they are proportional to
    :math:`p_{qk} \pi_k / \pi^0_k`. Expectation maximisation [1]_ repeats

    .. math:: \pi_k \leftarrow \frac{a + \sum_q r_{qk}}{n_q + a N}, \qquad
              r_{qk} = \frac{p_{qk} \pi_k / \pi^0_k}{\sum_j p_{qj} \pi_j / \pi^0_j},

    which climbs to the one maximum of the likelihood times a symmetric Dirichlet prior of
    parameter a + 1.

    Parameters
    ----------
    P : array-like or tensor of shape (n_queries, n_classes)
        Posteriors; rows sum to 1.
    method : {"em", "count"}, default="em"
        "em" repeats the step until nothing changes; "count" does it once, from equal frequencies.
    pseudo_count : float, default=2.0
        a: queries that every class is given beforehand. 0 gives the most likely frequencies; with
        few queries these are often 0.
    prior : array-like of shape (n_classes,), default=None
        Frequencies that the posteriors were made for; None for equal ones.
    max_iter : int, default=1000
        Most steps.
    tol : float, default=1e-8
        Largest change of a frequency at which the steps end.

    Returns
    -------
    prior : ndarray of shape (n_classes,)
        Sums to 1.

    References
    ----------
    .. [1] M. Saerens, P. Latinne, C. Decaestecker, Adjusting the Outputs of a Classifier to New a
       Priori Probabilities: A Simple Procedure, Neural Computation 2002.
       <https://doi.org/10.1162/089976602753284446>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.few_shot import estimate_query_prior
    >>> P = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    >>> estimate_query_prior(P, method="count", pseudo_count=0).round(3)
    array([0.7, 0.3])
    >>> estimate_query_prior(P, pseudo_count=1).round(3)
    array([0.731, 0.269])
    """
    if method not in _METHODS:
        raise ValueError(f"method={method!r} is not valid; give one of {list(_METHODS)}.")
    if pseudo_count < 0:
        raise ValueError(f"pseudo_count={pseudo_count!r} is negative; give a number of at least 0.")
    P = _posteriors(P)
    ratios = P[None] if prior is None else (P / _frequencies(prior, len(P)))[None]
    weights = torch.ones_like(ratios[:, :1])
    found = torch.full_like(ratios[:, :, 0], 1 / ratios.shape[1])
    for _ in range(max_iter if method == "em" else 1):
        proba = ratios * found[:, :, None]
        proba /= proba.sum(dim=1, keepdim=True)
        before, found = found, updated_prior(proba, weights, pseudo_count=pseudo_count)
        if float((found - before).abs().max()) <= tol:
            break
    return found[0].numpy()


def _posteriors(P: ArrayLike) -> torch.Tensor:
    """Check posteriors; return them as (n_classes, n_queries) in float64."""
    P = as_tensor(P)
    if P.ndim != 2 or 0 in P.shape:
        raise ValueError(
            f"P has shape {tuple(P.shape)}; give posteriors of shape (n_queries, n_classes), with "
            "at least one row."
        )
    check_finite(P, name="P")
    P = P.to("cpu", torch.float64)
    if bool((P < 0).any()) or not torch.allclose(P.sum(dim=1), P.new_ones(()), atol=1e-3):
        raise ValueError(
            "P holds rows that are no distributions; give posteriors of at least 0 that sum to 1."
        )
    return P.T


def _frequencies(prior: ArrayLike, n_classes: int) -> torch.Tensor:
    prior = as_tensor(prior).to("cpu", torch.float64)
    if prior.shape != (n_classes,) or not bool((prior > 0).all()):
        raise ValueError(
            f"prior={prior.tolist()!r} is not valid; give {n_classes} positive frequencies, one "
            "per class."
        )
    return (prior / prior.sum())[:, None]
