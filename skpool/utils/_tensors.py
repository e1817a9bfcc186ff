# SPDX-License-Identifier: BSD-3-Clause
"""Between numpy and torch without copies: kernels see tensors, users get back what they gave.

Every kernel of the package works on tensors. An estimator turns its input into a tensor here
(sharing memory where it can), computes where the data lies, and gives the result back in the
container and float type that came in.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["ArrayLike", "as_tensor", "full_float32", "numpy_or_tensor", "unit_rows", "widened"]

ArrayLike = np.ndarray | torch.Tensor


def as_tensor(X: ArrayLike) -> torch.Tensor:
    """Return a tensor that shares memory with X wherever torch can read X's memory.

    Parameters
    ----------
    X : ndarray or tensor
        Any shape. Read-only arrays (memory maps) are fine; nothing is ever written to them.

    Returns
    -------
    tensor : tensor

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.utils import as_tensor
    >>> as_tensor(np.ones((2, 3), dtype=np.float32)).dtype
    torch.float32
    """
    if isinstance(X, torch.Tensor):
        return X.detach()
    X = np.asarray(X)
    # Negative strides end the process inside from_dlpack, and foreign byte orders are refused.
    if any(stride < 0 for stride in X.strides) or not X.dtype.isnative:
        X = np.ascontiguousarray(X, dtype=X.dtype.newbyteorder("="))
    # from_dlpack takes read-only memory, about which from_numpy warns.
    return torch.from_dlpack(X)


def numpy_or_tensor(X: ArrayLike) -> tuple[torch.Tensor, Callable[[torch.Tensor], ArrayLike]]:
    """Return X as a tensor to compute with, and the function that gives results back.

    Parameters
    ----------
    X : ndarray or tensor
        Floating-point data.

    Returns
    -------
    tensor : tensor
        Half precision is widened to float32; float32 and float64 stay as they are.
    restore : callable
        Turns a tensor into the container of X (ndarray, or tensor on the device of X) with the
        float type of `tensor`, so that half precision comes back as float32.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.utils import numpy_or_tensor
    >>> tensor, restore = numpy_or_tensor(np.ones((2, 3), dtype=np.float16))
    >>> restore(2 * tensor).dtype
    dtype('float32')
    """
    tensor = widened(as_tensor(X))
    dtype = tensor.dtype
    if isinstance(X, torch.Tensor):
        return tensor, lambda result: result.to(dtype)
    return tensor, lambda result: result.to(dtype).cpu().numpy()


def widened(X: torch.Tensor) -> torch.Tensor:
    """Return X in float32 where it came in half precision.

    Parameters
    ----------
    X : tensor

    Returns
    -------
    X : tensor
        The same tensor in any other type.

    Examples
    --------
    >>> import torch
    >>> from skpool.utils import widened
    >>> widened(torch.ones(2, dtype=torch.float16)).dtype
    torch.float32
    """
    return X.float() if X.dtype in (torch.float16, torch.bfloat16) else X


# Lengths whose squares neither overflow nor vanish in float32.
_SAFE_NORMS = (1e-15, 1e15)


def unit_rows(X: torch.Tensor) -> torch.Tensor:
    """Return X with its last axis divided by its Euclidean norm.

    Parameters
    ----------
    X : tensor of shape (..., n_features)
        Of float32 or float64, of any magnitude.

    Returns
    -------
    X : tensor of shape (..., n_features)
        Zero vectors stay zero.

    Examples
    --------
    >>> import torch
    >>> from skpool.utils import unit_rows
    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    if X.dtype == torch.float32 and X.device.type == "cpu":
        # Squares of usual lengths fit into float32, in a fraction of the time.
        norms = torch.linalg.vector_norm(X, dim=-1, keepdim=True)
        if bool(((norms > _SAFE_NORMS[0]) & (norms < _SAFE_NORMS[1])).all()):
            return X / norms
    wide = torch.float32 if X.device.type == "mps" else torch.float64
    if X.dtype == wide:
        # Squares of float32 fit into float64; squares of float64 fit into nothing wider.
        peak = X.abs().amax(dim=-1, keepdim=True)
        X = X / torch.where(peak > 0, peak, 1.0)
    norms = torch.linalg.vector_norm(X, dim=-1, keepdim=True, dtype=wide)
    return X / torch.where(norms > 0, norms, 1.0).to(X.dtype)


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep float32 products in float32: TensorFloat-32 has 10 bits of mantissa.

    Examples
    --------
    >>> import torch
    >>> from skpool.utils import full_float32
    >>> with full_float32():
    ...     torch.get_float32_matmul_precision()
    'highest'
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        # The user has set torch's newer switch, beside which the older one refuses to answer.
        switch = torch.backends.cuda.matmul
        newer, switch.fp32_precision = switch.fp32_precision, "ieee"
        try:
            yield
        finally:
            switch.fp32_precision = newer
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
