# SPDX-License-Identifier: BSD-3-Clause
"""L2Normalizer: rows of unit length, so that dot products are cosines."""

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from sklearn.base import OneToOneFeatureMixin
from sklearn.utils._param_validation import Interval

from skpool.preprocessing._base import BaseRowMap
from skpool.preprocessing._kernels import l2_normalize

__all__ = ["L2Normalizer"]


class L2Normalizer(OneToOneFeatureMixin, BaseRowMap):
    r"""Scale every row to unit Euclidean length.

    .. math:: z = x / \max(|x|_2, \epsilon)

    After it, Euclidean and cosine neighbours agree. The rows of joined feature vectors can be
    scaled block by block, so that each backbone weighs the same. Rows are vectors, or the tokens
    of each sample.

    Parameters
    ----------
    blocks : list of int or None, default=None
        Widths of consecutive blocks of features, each scaled on its own; they must add up to the
        number of features. None scales the row as a whole.
    eps : float, default=1e-12
        Smallest length that is divided by.

    Attributes
    ----------
    n_features_in_ : int
        Number of features seen by `fit`.

    See Also
    --------
    CenteredL2Normalizer : Unit length after the mean was subtracted.
    PowerNormalizer : Signed power, optionally with unit length after it.

    Notes
    -----
    Stateless: `transform` works without `fit`. Tokens are scaled one by one, and stay lazy.
    Lengths are computed in float32 at least, after division by the largest magnitude of the row
    where squares would overflow or vanish; zero rows stay zero. Arrays and tensors come back as
    they came, half precision as float32. Cost: one pass, O(n d).

    References
    ----------
    .. [1] A. S. Razavian, H. Azizpour, J. Sullivan, S. Carlsson, CNN Features off-the-shelf: an
       Astounding Baseline for Recognition, 2014. <https://arxiv.org/abs/1403.6382>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import L2Normalizer
    >>> L2Normalizer().fit_transform(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """

    _parameter_constraints = {
        "blocks": ["array-like", None],
        "eps": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, *, blocks: Sequence[int] | None = None, eps: float = 1e-12):
        self.blocks = blocks
        self.eps = eps

    def _check_parameters(self, n_features: int) -> None:
        self._widths(n_features)

    def _widths(self, n_features: int) -> list[int]:
        if self.blocks is None:
            return [n_features]
        widths = list(self.blocks)
        whole = all(isinstance(w, Integral) and w > 0 for w in widths)
        if not whole or sum(widths) != n_features:
            raise ValueError(
                f"blocks={self.blocks!r} must be whole numbers above 0 that add up to the "
                f"{n_features} features of X."
            )
        return [int(w) for w in widths]

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        parts = rows.split(self._widths(rows.shape[1]), dim=1)
        scaled = [l2_normalize(part, eps=self.eps) for part in parts]
        return scaled[0] if len(scaled) == 1 else torch.cat(scaled, dim=1)
