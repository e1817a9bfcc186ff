# SPDX-License-Identifier: BSD-3-Clause
"""RegionalGeM: a map whose every cell is mixed with the generalized mean of its surroundings.

It gives a map of a map and stands before a pooling; `ScaleGeM` stands at the other end of the same
retrieval pipeline, after the vectors of several scales.
"""

from functools import partial
from numbers import Integral, Real

import torch
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.pooling._map_pooling import grid_of
from skpool.pooling._spatial_kernels import regional_gem
from skpool.pooling._token_transformer import BaseTokenTransformer
from skpool.stores import TokenArray
from skpool.utils import widened

__all__ = ["RegionalGeM"]


class RegionalGeM(BaseTokenTransformer):
    r"""Mix every cell of a map with the generalized mean of the window around it.

    .. math:: z_c = (1 - m)\, x_c
        + m \Big(\frac{1}{s^2} \sum_{c' \in w(c)} \max(x_{c'}, 0)^p\Big)^{1/p}

    for the windows w of s x s cells around c and a share m [1]_. It smooths maps before they are
    pooled, usually by `GeMPooling`. ``mix=0`` changes nothing.

    Parameters
    ----------
    p : float, default=2.5
        Exponent, above 0.
    size : int, default=5
        Side of the window in cells, odd.
    mix : float, default=0.5
        Share of the mean.
    pad : {"reflect", "replicate"}, default="reflect"
        How a map goes on beyond its border. Along a side of at most (size - 1) / 2 cells, which
        has too few to reflect, the border is replicated.
    batch_size : int, default=256
        Rows of a plain array that are read at a time.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a token.

    See Also
    --------
    GeMPooling : The usual next step.
    ScaleGeM : Puts the vectors of several scales together.

    Notes
    -----
    Maps and tokens with a grid are taken; a single token is a map of one cell. Negative values
    count as 0 in the mean, since their fractional powers do not exist, and stand as they are
    beside it. Class tokens and registers pass unchanged. A cell under a False mask is absent: it
    is left out of the means of others.

    Cost: O(n H W d size), over rows and then over columns, in blocks of rows. Values are scaled by
    the largest of their feature and map, so no power overflows; above p = 4 powers are taken in
    float64, where values below :math:`10^{-308/p}` of the largest count as 0. Nothing is learned.

    References
    ----------
    .. [1] Shao et al., Global Features are All You Need for Image Retrieval and Reranking,
       ICCV 2023. <https://arxiv.org/abs/2308.06954>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import RegionalGeM
    >>> maps = np.array([0.0, 0.0, 6.0]).reshape(1, 1, 3, 1)
    >>> RegionalGeM(p=1, size=3, mix=1.0).fit_transform(maps).ravel()
    array([0., 2., 2.])
    """

    _parameter_constraints: dict = {
        **BaseTokenTransformer._parameter_constraints,
        "p": [Interval(Real, 0, None, closed="neither")],
        "size": [Interval(Integral, 1, None, closed="left")],
        "mix": [Interval(Real, 0, 1, closed="both")],
        "pad": [StrOptions({"reflect", "replicate"})],
    }

    def __init__(
        self,
        p: float = 2.5,
        *,
        size: int = 5,
        mix: float = 0.5,
        pad: str = "reflect",
        batch_size: int = 256,
    ):
        self.p = p
        self.size = size
        self.mix = mix
        self.pad = pad
        self.batch_size = batch_size

    def _check_parameters(self, tokens: TokenArray) -> None:
        if self.size % 2 == 0:
            raise ValueError(
                f"size={self.size} has no cell in the middle; give an odd number, e.g. "
                f"{self.size + 1}."
            )
        grid_of(tokens, type(self).__name__)

    def _mapped(self, tokens: TokenArray) -> TokenArray:
        smooth = partial(
            self._smoothed,
            grid=grid_of(tokens, type(self).__name__),
            first=tokens.n_prefix_tokens,
        )
        return tokens.map(smooth, fingerprint=self._fingerprint())

    def _smoothed(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        grid: tuple[int, int],
        first: int,
    ) -> torch.Tensor:
        """Smooth the patches behind the prefix tokens."""
        patches = regional_gem(
            tokens[:, first:],
            None if mask is None else mask[:, first:],
            grid=grid,
            p=self.p,
            size=self.size,
            mix=self.mix,
            pad=self.pad,
        )
        return torch.cat([widened(tokens[:, :first]), patches], dim=1) if first else patches
