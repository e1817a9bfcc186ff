# SPDX-License-Identifier: BSD-3-Clause
"""Log-sum-exp pooling: between the mean and the maximum for tokens of either sign.

Where the generalized mean needs a rule for values below zero, this family needs none: it follows
shifts of the tokens. Its sharpness is in the units of the tokens, hence the fitted scale.
"""

from numbers import Real

import numpy as np
import torch
from sklearn.utils import Tags
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._base import BasePooling
from skpool.pooling._kernels import Mask, _in_blocks, pool_max, pool_mean, pool_min
from skpool.pooling._learning import real_tokens
from skpool.statistics import RunningMoments
from skpool.stores import TokenArray
from skpool.utils import as_tensor, widened

__all__ = ["LogSumExpPooling", "pool_log_sum_exp"]

# Sharpness below which the result is the mean to every digit.
_BLUNT = 1e-20


def _log_mean_exp(z: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Logarithm of the mean of exp(z) over the real tokens, where z is at most 0 and once 0."""
    mean = pool_mean(z.exp(), mask)
    log = mean.log()
    # A mean near 1 has lost the digits that its logarithm consists of. Few features have that,
    # such as constant ones, unless the sharpness is small.
    columns = (mean > 0.5).any(dim=0)
    if bool(columns.any()):
        exact = pool_mean(z[..., columns].expm1(), mask).log1p()
        log[:, columns] = torch.where(mean[:, columns] > 0.5, exact, log[:, columns])
    return log


@_in_blocks()
def pool_log_sum_exp(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    r: float = 10.0,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logarithm of the mean exponential over the real tokens, per feature.

    Parameters
    ----------
    tokens : tensor of shape (n, L, d)
    mask : tensor of shape (n, L), bool, default=None
    r : float, default=10.0
        Sharpness: 0 is the mean, infinity the maximum, minus infinity the minimum.
    scale : tensor of shape (d,), default=None
        Unit of each feature, above 0, in which `r` acts.

    Returns
    -------
    vectors : tensor of shape (n, d)
    """
    tokens = widened(tokens)
    if abs(r) < _BLUNT:
        return pool_mean(tokens, mask)
    extreme = pool_max(tokens, mask) if r > 0 else pool_min(tokens, mask)
    limits = torch.finfo(tokens.dtype)
    if abs(r) > limits.max:
        return extreme
    unit = 1.0 if scale is None else scale.to(tokens).clamp_min(limits.tiny)
    # Divided before it is multiplied, so that 0 stays 0 whatever the unit.
    z = (tokens - extreme[:, None]).div_(unit).mul_(r)
    return extreme + _log_mean_exp(z, mask).div_(r).mul_(unit)


def _channel_scale(tokens: TokenArray) -> np.ndarray:
    """Standard deviation of every feature over all real tokens; 1 for constant features."""
    moments = RunningMoments("diag", product_dtype="float64")
    # The batches of the source, whatever `batch_size`: sums then have one order.
    for _, values, mask in tokens.iter_batches():
        found = real_tokens(values, mask)
        found = found[torch.isfinite(found).all(dim=1)]
        if len(found):
            moments.update(found)
    if not moments.n_samples:
        raise ValueError("X has no sample with a real token to learn the scale from.")
    deviation = np.sqrt(moments.covariance())
    # What a mean of equal values is off by is no spread.
    spread = deviation > 10 * np.finfo(np.float64).eps * np.abs(moments.mean_)
    return np.where(spread, deviation, 1.0)


class LogSumExpPooling(BasePooling):
    r"""Log-sum-exp pooling of tokens, a smooth path from the mean to the maximum.

    Each feature is pooled over the T tokens of a sample by

    .. math:: z_j = \frac{\sigma_j}{r} \log \frac1T \sum_{t=1}^{T} \exp(r\, x_{tj} / \sigma_j),

    which tends to the mean as `r` goes to 0, to the maximum as it grows, and to the minimum as it
    goes to minus infinity [1]_. Tokens may have either sign, and adding a constant to all of them
    adds it to the result; `GeMPooling` has neither property.

    Parameters
    ----------
    r : float, default=10.0
        Sharpness; any number, infinite ones too. 0 is the mean.
    scale : {"std"} or None, default="std"
        Unit in which `r` acts: "std" learns the standard deviation :math:`\sigma_j` of each
        feature over the tokens that `fit` sees, so that one `r` suits features of all sizes.
        None takes the tokens as they are, :math:`\sigma_j = 1`, and learns nothing.
    scope : {"patch", "all"}, default="patch"
        Whether the class token and registers are left out.
    empty : {"raise", "zero", "nan"}, default="raise"
        What a sample without a real token gives.
    batch_size : int, default=256
        Rows of a plain array that are read at a time.
    out_dtype : {"float16", "float32", "float64"}, default=None
        Float type of the vectors; None for that of the tokens, float32 for half precision.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a token.
    channel_scale_ : ndarray of shape (n_features,)
        Standard deviation of each feature, 1 where it is constant; with `scale="std"`.

    See Also
    --------
    GeMPooling : The power mean, from the mean to the maximum of positive values.

    Notes
    -----
    It is the logarithm of a mean, not of a sum, so neither the number of tokens nor their
    repetition matters. Cost: O(n T d) with one exponential per value, in blocks of rows; the
    extreme of the tokens is taken off first, so no `r` overflows. `fit` reads the tokens once for
    `scale="std"`. With `scale=None` results are kept in the store of the tokens.

    References
    ----------
    .. [1] Pinheiro, Collobert, From Image-level to Pixel-level Labeling with Convolutional
       Networks, CVPR 2015. <https://arxiv.org/abs/1411.6228>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import LogSumExpPooling
    >>> tokens = np.array([[[1.0, -4.0], [3.0, -4.0]]])
    >>> LogSumExpPooling(r=np.inf, scale=None).fit_transform(tokens)
    array([[ 3., -4.]])
    >>> LogSumExpPooling(r=0).fit_transform(tokens)
    array([[ 2., -4.]])
    """

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        "r": [Real],
        "scale": [StrOptions({"std"}), None],
    }

    def __init__(
        self,
        r: float = 10.0,
        *,
        scale: str | None = "std",
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.r = r
        self.scale = scale
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _check_parameters(self, n_features: int) -> None:
        if np.isnan(self.r):
            raise ValueError(f"r={self.r!r} is not a number; give a sharpness, e.g. 10.0.")

    def _fit_tokens(self, tokens: TokenArray, y: object) -> None:
        if self.scale == "std":
            self.channel_scale_ = _channel_scale(tokens)

    def _check_ready(self) -> None:
        if self.scale == "std":
            check_is_fitted(self, "channel_scale_")

    def _fingerprint(self) -> str | None:
        # The scale is learned, so parameters alone do not name the result.
        return None if self.scale == "std" else super()._fingerprint()

    def _pool(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        scale = as_tensor(self.channel_scale_) if self.scale == "std" else None
        return pool_log_sum_exp(tokens, mask, r=float(self.r), scale=scale)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = self.scale == "std"
        return tags
