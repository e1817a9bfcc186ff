# SPDX-License-Identifier: BSD-3-Clause
"""Nearest codes, the same for a row alone and in any block, and codes that are learned.

A memory that is written under a code must be found under it again, so the code of a row must not
depend on the rows beside it: products are computed in float64, and keys that are equally near to
rounding count as ties, of which the first is taken.
"""

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import gen_batches

from skpool.neighbors._kernels import working_bytes

__all__ = ["lloyd", "nearest_codes"]

# Relative difference of scores below which two keys are equally near: far above the rounding of
# products in float64, far below what tells keys apart.
_TIE = 1e-10


def nearest_codes(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the nearest key of every row in every codebook.

    Parameters
    ----------
    rows : ndarray of shape (n_codebooks, n_samples, width)
        float64.
    keys : ndarray of shape (n_codebooks, n_keys, width)
        float64.

    Returns
    -------
    codes : ndarray of shape (n_samples, n_codebooks)
        int32; of equally near keys the first.
    """
    z, k = torch.from_numpy(rows), torch.from_numpy(keys)
    # Around the mean key: far from 0, products would lose the digits that tell keys apart.
    center = k.mean(dim=1, keepdim=True)
    k = k - center
    half = k.square().sum(dim=2)[:, None, :] / 2
    largest = k.square().sum(dim=2).amax(dim=1).sqrt()[:, None, None]
    codes = np.empty((rows.shape[1], rows.shape[0]), dtype=np.int32)
    # A block holds its scores, what is compared with the best, and the result of it.
    height = max(1, working_bytes() // (32 * keys.shape[0] * keys.shape[1]))
    for block in gen_batches(rows.shape[1], height):
        part = z[:, block] - center
        scores = torch.bmm(part, k.mT).sub_(half)
        size = part.square().sum(dim=2, keepdim=True).sqrt() * largest + largest.square()
        near = scores >= scores.amax(dim=2, keepdim=True) - _TIE * size
        codes[block] = near.to(torch.uint8).argmax(dim=2).T.numpy()
    return codes


def lloyd(
    rows: np.ndarray, n_codes: int, *, max_iter: int, random_state: np.random.RandomState
) -> np.ndarray:
    """Return centers by k-means from rows drawn at random.

    Parameters
    ----------
    rows : ndarray of shape (n_samples, width)
        At least `n_codes`.
    n_codes : int
        Number of centers.
    max_iter : int
        Iterations at most.
    random_state : RandomState
        Draws the start.

    Returns
    -------
    centers : ndarray of shape (n_codes, width)
        float64.
    """
    start = rows[random_state.permutation(len(rows))[:n_codes]]
    model = KMeans(n_codes, init=start, n_init=1, max_iter=max_iter, random_state=random_state)
    with warnings.catch_warnings():
        # Fewer distinct rows than centers: some centers are equal, which does no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(rows).cluster_centers_
