# SPDX-License-Identifier: BSD-3-Clause
"""How good is a layer? Pure functions from the vectors of one layer to one number.

Accuracies of simple classifiers for those who have labels, and spectra for those who have none.
`CRITERIA` names them with what each needs; larger is better in all but the entropy of tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.special import entr
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

__all__ = [
    "CRITERIA",
    "Criterion",
    "knn_accuracy",
    "lidar",
    "ncm_accuracy",
    "prompt_entropy",
    "rankme",
    "ridge_accuracy",
]

Splits = Sequence[tuple[np.ndarray, np.ndarray]]

# Added to every share of a spectrum, as published.
_SPECTRUM_EPS = 1e-7
# Ridge penalties, in units of the mean square of the features.
_ALPHAS = np.logspace(-2, 4, 7)


def _exp_entropy(spectrum: np.ndarray) -> float:
    """Number of directions that a spectrum is spread over; 1 where there is nothing."""
    total = spectrum.sum()
    if total == 0:
        return 1.0
    return float(np.exp(entr(spectrum / total + _SPECTRUM_EPS).sum()))


def knn_accuracy(X: np.ndarray, y: np.ndarray, splits: Splits) -> float:
    """Mean accuracy of the cosine nearest neighbours, min(20, n / 4) of them.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    y : ndarray of shape (n,)
    splits : sequence of (train, test)

    Returns
    -------
    accuracy : float
    """
    model = KNeighborsClassifier(max(1, min(20, len(X) // 4)), metric="cosine")
    return float(cross_val_score(model, X, y, cv=splits).mean())


def ridge_accuracy(X: np.ndarray, y: np.ndarray, splits: Splits) -> float:
    """Mean accuracy of a ridge classifier, its penalty chosen within every training part.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    y : ndarray of shape (n,)
    splits : sequence of (train, test)

    Returns
    -------
    accuracy : float
    """
    # In units of the layer, so that layers of other norms see the same penalties.
    square = float(np.square(X - X.mean(axis=0), dtype=np.float64).mean())
    model = RidgeClassifierCV(_ALPHAS * square)
    return float(cross_val_score(model, X, y, cv=splits).mean())


def ncm_accuracy(X: np.ndarray, y: np.ndarray, splits: Splits) -> float:
    """Mean accuracy of the class mean of the largest cosine.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    y : ndarray of shape (n,)
    splits : sequence of (train, test)

    Returns
    -------
    accuracy : float
    """
    scores = []
    for train, test in splits:
        classes, codes = np.unique(y[train], return_inverse=True)
        # Sums have the direction of the means.
        sums = (codes == np.arange(len(classes))[:, None]).astype(X.dtype) @ X[train]
        nearest = (normalize(X[test]) @ normalize(sums).T).argmax(axis=1)
        scores.append(np.mean(classes[nearest] == y[test]))
    return float(np.mean(scores))


def rankme(X: np.ndarray) -> float:
    r"""Effective rank, :math:`\exp(-\sum_i p_i \log p_i)` of the shares of singular values.

    Parameters
    ----------
    X : ndarray of shape (n, d)

    Returns
    -------
    rank : float
        From 1 to min(n, d), to the 1e-7 that is added to every share.
    """
    return _exp_entropy(np.linalg.svd(X.astype(np.float64), compute_uv=False))


def lidar(X: np.ndarray, groups: np.ndarray, *, delta: float = 1e-4) -> float:
    r"""Effective rank of what tells groups apart, in units of the spread within them.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    groups : ndarray of shape (n,)
        The sample that a row is a view of; with class labels it is the rank of a linear
        discriminant analysis.
    delta : float, default=1e-4
        Added to the variances within groups.

    Returns
    -------
    rank : float
        From 1 to min(n_groups - 1, d), to the 1e-7 that is added to every share.
    """
    X = X.astype(np.float64)
    names, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < 2 or counts.min() < 2:
        raise ValueError(
            f"criterion='lidar' got {len(names)} group(s) in y, the smallest of {counts.min()} "
            "row(s); it needs two or more groups with two or more rows each."
        )
    means = np.stack([X[codes == code].mean(axis=0) for code in range(len(names))])
    between = means - means.mean(axis=0)
    within = X - means[codes]
    # As published, groups weigh the same, whatever their sizes.
    within /= np.sqrt(counts[codes] * len(names))[:, None]
    spread = within.T @ within + delta * np.eye(X.shape[1])
    spectrum = eigh(between.T @ between / len(names), spread, eigvals_only=True)
    return _exp_entropy(spectrum.clip(min=0))


def prompt_entropy(tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    r"""Entropy of the spectrum of the tokens' Gram matrix, of every sample and layer.

    Parameters
    ----------
    tokens : tensor of shape (n, ..., L, d)
    mask : tensor of shape (n, L), bool, default=None
        True for real tokens.

    Returns
    -------
    entropies : tensor of shape (n, ...)
        From 0 for tokens of one direction to log(min(L, d)); 0 where there is no token.
    """
    tokens = tokens.to(torch.float32 if tokens.device.type == "mps" else torch.float64)
    if mask is not None:
        shape = (len(mask), *[1] * (tokens.ndim - 3), mask.shape[1], 1)
        # Zero tokens add zero eigenvalues, which have no part in trace or entropy.
        tokens = tokens.where(mask.reshape(shape), 0.0)
    wide = tokens.shape[-2] < tokens.shape[-1]
    gram = tokens @ tokens.mT if wide else tokens.mT @ tokens
    eigenvalues = torch.linalg.eigvalsh(gram).clamp_min(0.0)
    total = eigenvalues.sum(dim=-1, keepdim=True)
    return torch.special.entr(eigenvalues / torch.where(total > 0, total, 1.0)).sum(dim=-1)


class Criterion(NamedTuple):
    """A function by which layers are compared.

    Attributes
    ----------
    function : callable
    needs : {"splits", "groups", "nothing", "tokens"}
        What is given beside the vectors: labels and splits, labels, or nothing; or tokens in
        place of vectors.
    greater_is_better : bool
    """

    function: Callable
    needs: str
    greater_is_better: bool = True


CRITERIA: dict[str, Criterion] = {
    "knn": Criterion(knn_accuracy, "splits"),
    "lidar": Criterion(lidar, "groups"),
    "ncm": Criterion(ncm_accuracy, "splits"),
    "prompt_entropy": Criterion(prompt_entropy, "tokens", False),
    "rankme": Criterion(rankme, "nothing"),
    "ridge": Criterion(ridge_accuracy, "splits"),
}
