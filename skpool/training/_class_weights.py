# SPDX-License-Identifier: BSD-3-Clause
"""Weights of classes that are not equally frequent, from the numbers of their samples."""

import numpy as np
import torch

__all__ = ["checked_counts", "class_weights"]


def checked_counts(counts: np.ndarray) -> torch.Tensor:
    """Samples of every class, in float64; ValueError where they are none."""
    counts = torch.as_tensor(np.asarray(counts, dtype=np.float64))
    if counts.ndim != 1 or not bool((counts >= 0).all()) or not bool((counts > 0).any()):
        raise ValueError(
            f"counts={counts.tolist()} is not valid; give one number of at least 0 per class, not "
            "all of them 0."
        )
    return counts


def class_weights(
    counts: np.ndarray, kind: str = "balanced", *, beta: float = 0.9999
) -> np.ndarray:
    """Return weights that make up for how frequent the classes are.

    Parameters
    ----------
    counts : array-like of shape (n_classes,)
        Samples of every class.
    kind : {"balanced", "effective"}, default="balanced"
        Of a class of n_c samples among n of C classes: n / (C n_c); or
        (1 - beta) / (1 - beta^n_c), the inverse of the effective number of samples [1]_, divided
        by its mean over the classes.
    beta : float, default=0.9999
        Of "effective": 0 gives equal weights, and beta near 1 those of "balanced" up to a factor.

    Returns
    -------
    weights : ndarray of shape (n_classes,)
        0 for a class without samples, which is not counted in C either.

    References
    ----------
    .. [1] Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
       <https://arxiv.org/abs/1901.05555>

    Examples
    --------
    >>> from skpool.training import class_weights
    >>> class_weights([30, 10])
    array([0.66666667, 2.        ])
    """
    if kind not in ("balanced", "effective"):
        raise ValueError(f"kind={kind!r} is not valid; choose 'balanced' or 'effective'.")
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta!r} is not valid; give a number of at least 0 and below 1.")
    counts = checked_counts(counts).numpy()
    present = counts > 0
    weights, n_present = np.zeros(len(counts)), counts[present]
    if kind == "balanced":
        weights[present] = counts.sum() / (len(n_present) * n_present)
        return weights
    # 1 - beta^n without the cancellation near 1.
    effective = 1 / (1 - beta**n_present if beta == 0 else -np.expm1(n_present * np.log(beta)))
    weights[present] = effective / effective.mean()
    return weights
