# SPDX-License-Identifier: BSD-3-Clause
"""PowerNormalizer: a signed power, which evens out bursts of large activations."""

from numbers import Real

import torch
from sklearn.base import OneToOneFeatureMixin
from sklearn.utils._param_validation import Interval

from skpool.preprocessing._base import BaseRowMap
from skpool.preprocessing._kernels import (
    l1_normalize,
    l2_normalize,
    peak_normalize,
    signed_power,
)
from skpool.utils import all_finite

__all__ = ["PowerNormalizer"]


class PowerNormalizer(OneToOneFeatureMixin, BaseRowMap):
    r"""Raise the magnitude of every feature to a power and keep its sign.

    .. math:: z_j = \operatorname{sign}(x_j) |x_j|^p

    A power of 1/2 is the signed square root of retrieval [1]_; after division by the L1 norm it
    is the Hellinger mapping (RootSIFT), whose rows have unit Euclidean length. The power of Tukey
    is that of features that are not negative, see `clip`. Rows are vectors, or the tokens of each
    sample.

    Parameters
    ----------
    power : float, default=0.5
        The exponent, above 0; 1 leaves rows as they are.
    l2 : bool, default=False
        Scale rows to unit Euclidean length afterwards.
    l1_first : bool, default=False
        Divide rows by their L1 norm first, after `clip`.
    clip : bool, default=False
        Set values below 0 to 0 before anything else, as an unsigned power needs (Tukey's); those
        of a transformer are below 0 about as often as above, and are lost.

    Attributes
    ----------
    n_features_in_ : int
        Number of features seen by `fit`.

    See Also
    --------
    L2Normalizer : Unit length alone.
    Whitening : Acts on all features together; a power acts in the given basis, so the order of
        the two matters.

    Notes
    -----
    Stateless: `transform` works without `fit`. Tokens are mapped one by one. A result that is too
    large for the float type of X is refused. Arrays and tensors come back as they came, half
    precision as float32. Cost: one pass, O(n d).

    References
    ----------
    .. [1] F. Perronnin, J. Sanchez, T. Mensink, Improving the Fisher Kernel for Large-Scale Image
       Classification, 2010.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import PowerNormalizer
    >>> PowerNormalizer().fit_transform(np.array([[4.0, -9.0]]))
    array([[ 2., -3.]])
    """

    _parameter_constraints = {
        "power": [Interval(Real, 0, None, closed="neither")],
        "l2": ["boolean"],
        "l1_first": ["boolean"],
        "clip": ["boolean"],
    }

    def __init__(
        self,
        power: float = 0.5,
        *,
        l2: bool = False,
        l1_first: bool = False,
        clip: bool = False,
    ):
        self.power = power
        self.l2 = l2
        self.l1_first = l1_first
        self.clip = clip

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        if self.clip:
            rows = rows.clamp(min=0.0)
        if self.l1_first:
            rows = l1_normalize(rows)
        elif self.l2:
            # The scale of a row falls out at the end, so it is taken off before it can overflow.
            rows = peak_normalize(rows)
        rows = signed_power(rows, power=self.power)
        if self.power > 1 and not all_finite(rows):
            raise ValueError(
                f"|x| ** {self.power} is too large for {str(rows.dtype).removeprefix('torch.')}; "
                "set l2=True, take a smaller power, or scale X down."
            )
        return l2_normalize(rows) if self.l2 else rows
