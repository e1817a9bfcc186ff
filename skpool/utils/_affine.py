# SPDX-License-Identifier: BSD-3-Clause
"""One affine map of many rows: what whitenings, discriminants and ridge heads apply."""

import numpy as np
import torch

from skpool.utils._tensors import as_tensor, full_float32, widened

__all__ = ["apply_affine"]

# Rows per product: the centred copy of a block is all the memory that a map needs.
_BLOCK_ROWS = 4096


def apply_affine(
    X: torch.Tensor,
    *,
    shift: np.ndarray,
    matrix: np.ndarray,
    offset: np.ndarray,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return ``(x - shift) @ matrix + offset`` where the rows lie, block by block.

    The shift is taken off before the product, and what its rounding leaves over goes into the
    offset: a mean of a thousand standard deviations costs no digits.

    Parameters
    ----------
    X : tensor of shape (n_samples, n_features)
    shift : ndarray of shape (n_features,)
    matrix : ndarray of shape (n_features, n_outputs)
    offset : ndarray of shape (n_outputs,)
    dtype : torch.dtype, default=None
        Float type of the product; None for that of X, float32 for half precision.

    Returns
    -------
    Z : tensor of shape (n_samples, n_outputs)

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skpool.utils import apply_affine
    >>> X = torch.tensor([[2.0, 3.0]])
    >>> apply_affine(X, shift=np.ones(2), matrix=np.eye(2), offset=np.zeros(2))
    tensor([[1., 2.]])
    """
    dtype = widened(X[:0]).dtype if dtype is None else dtype
    near = as_tensor(shift).to(dtype)
    rest = shift - near.double().numpy()
    near = near.to(X.device)
    A = as_tensor(matrix).to(dtype).to(X.device)
    b = as_tensor(offset - rest @ matrix).to(dtype).to(X.device)
    out = torch.empty(len(X), A.shape[1], dtype=dtype, device=X.device)
    with full_float32():
        for start in range(0, len(X), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            torch.addmm(b, X[part].to(dtype) - near, A, out=out[part])
    return out
