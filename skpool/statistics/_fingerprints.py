# SPDX-License-Identifier: BSD-3-Clause
"""Fingerprints of rows: numbers that add up over rows and tell which rows moments were made of.

Two sums of squares can be equal by chance or by rounding; the fingerprints of two sets of rows are
equal, in all likelihood, for equal sets alone.
"""

import hashlib

import numpy as np

from skpool.utils import ArrayLike, as_tensor

__all__ = ["row_fingerprints"]

_BLOCK_ROWS = 4096


def row_fingerprints(
    X: ArrayLike, codes: np.ndarray, n_classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return, per class, the sum modulo 2^64 of a hash of every row and its weight.

    Parameters
    ----------
    X : ndarray or tensor of shape (n_samples, n_features)
    codes : ndarray of shape (n_samples,)
        Class of each row, 0 to n_classes - 1.
    n_classes : int
    weights : ndarray of shape (n_samples,), default=None
        None is 1 for every row; a row that weighs nothing counts as absent.

    Returns
    -------
    fingerprints : ndarray of shape (n_classes,)
        Of type uint64. Rows of other types are hashed as float64, so that equal numbers are equal.
    """
    total = np.zeros(n_classes, dtype=np.uint64)
    weights = np.ones(len(X)) if weights is None else weights
    tensor = as_tensor(X)
    for start in range(0, len(X), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        rows = np.column_stack([tensor[part].cpu().double().numpy(), weights[part]])
        # There are two zeros, with different bytes.
        rows = np.ascontiguousarray(rows + 0.0)
        digests = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
        hashes = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
        hashes[weights[part] == 0] = 0
        np.add.at(total, codes[part], hashes)
    return total
