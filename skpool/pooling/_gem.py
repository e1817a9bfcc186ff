# SPDX-License-Identifier: BSD-3-Clause
"""Generalized-mean poolings: one exponent between the mean and the maximum, or one per group."""

from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._base import BasePooling
from skpool.pooling._gem_learning import (
    LEAST_EXPONENT,
    GeMOptions,
    search_exponents,
    train_exponents,
)
from skpool.pooling._kernels import pool_gem, pool_min
from skpool.stores import TokenArray
from skpool.utils import as_tensor

__all__ = ["GeMPooling", "GroupGeMPooling"]


class _BaseGeM(BasePooling):
    """The exponents per feature, the fitted minimum, and the call of the kernel."""

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        "negative": [StrOptions({"clamp", "shift", "signed"})],
        "eps": [Interval(Real, 0, None, closed="neither")],
        "learn_p": ["boolean", StrOptions({"cv"})],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def _exponents(self, n_features: int) -> np.ndarray:
        """One exponent per group of features."""
        raise NotImplementedError

    def _check_parameters(self, n_features: int) -> None:
        exponents = self._exponents(n_features)
        if np.isnan(exponents).any():
            raise ValueError(f"p={self.p!r} is not a number; give an exponent, e.g. 3.0.")
        if self.negative == "signed" and (exponents <= 0).any():
            raise ValueError(
                f"p={self.p!r} with negative='signed' is not defined; give exponents above 0."
            )
        starts = (exponents > LEAST_EXPONENT) & np.isfinite(exponents)
        if self.learn_p and self.learn_p != "cv" and not starts.all():
            raise ValueError(
                f"p={self.p!r} is where learn_p=True starts from; give finite exponents "
                f"above {LEAST_EXPONENT}."
            )

    def _fit_tokens(self, tokens: TokenArray, y: object) -> None:
        self.p_ = self._exponents(tokens.shape[2])
        if self.negative == "shift":
            minima = as_tensor(tokens.reduce(pool_min, batch_size=self.batch_size)).cpu().numpy()
            # Unreadable inputs (NaN) and samples without tokens (inf) say nothing of the minimum.
            known = np.isfinite(minima).all(axis=1)
            if not known.any():
                raise ValueError("X has no sample with a real token to learn the minimum from.")
            self.channel_min_ = minima[known].min(axis=0)
        if self.learn_p:
            self.p_ = self._learn_exponents(tokens, y)

    def _learn_exponents(self, tokens: TokenArray, y: object) -> np.ndarray:
        common = {"batch_size": self.batch_size, "who": type(self).__name__}
        if self.learn_p == "cv":
            return search_exponents(tokens, y, len(self.p_), self._options(), **common)
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        return train_exponents(
            tokens,
            y,
            self.p_,
            self._options(),
            lr=self.lr,
            epochs=self.max_epochs,
            seed=seed,
            **common,
        )

    def _options(self) -> GeMOptions:
        """What the kernel is told beside the exponents."""
        minimum = torch.from_numpy(self.channel_min_) if self.negative == "shift" else None
        return {"negative": self.negative, "eps": self.eps, "minimum": minimum}

    def _learned(self) -> list[str]:
        """Fitted attributes without which there is no pooling."""
        learned = {"channel_min_": self.negative == "shift", "p_": bool(self.learn_p)}
        return [name for name, needed in learned.items() if needed]

    def _check_ready(self) -> None:
        if self._learned():
            check_is_fitted(self, self._learned())

    def _fingerprint(self) -> str | None:
        # Parameters alone do not name the result of what is learned.
        return None if self._learned() else super()._fingerprint()

    def _pool(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        n_features = tokens.shape[2]
        p = self.p_ if self.learn_p else self._exponents(n_features)
        if len(p) == 1:
            p = float(p[0])
        else:
            p = torch.from_numpy(p.repeat(n_features // len(p)))
        return pool_gem(tokens, mask, p=p, **self._options())

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = bool(self._learned())
        tags.target_tags.required = bool(self.learn_p)
        return tags


class GeMPooling(_BaseGeM):
    r"""Generalized-mean pooling of tokens.

    Each feature is pooled over the tokens of a sample by a power mean,

    .. math:: z_j = \Big(\frac{1}{T}\sum_{t=1}^{T} \max(x_{tj}, \epsilon)^p\Big)^{1/p},

    which is the mean for `p=1`, tends to the maximum as `p` grows, and to the geometric mean as
    `p` goes to 0 [1]_. Tokens of transformers are negative about half of the time, for which there
    are three rules (`negative`).

    Parameters
    ----------
    p : float, default=3.0
        Exponent; any number, infinite ones too.
    negative : {"clamp", "shift", "signed"}, default="clamp"
        "clamp" raises every value to at least `eps`, as in the paper; "shift" subtracts the
        smallest value of each feature seen in `fit` and adds it again, so that `p=1` is the mean;
        "signed" takes the mean of :math:`\mathrm{sign}(x)|x|^p` and its signed root, for `p > 0`.
    eps : float, default=1e-6
        Smallest value that is raised to a power.
    learn_p : bool or "cv", default=False
        Whether `fit` learns the exponent from class labels. True starts at `p` and trains
        :math:`p = 0.1 + \log(1 + e^\theta)` together with a softmax head by Adam; "cv" takes, of
        1, 2, 3, 4, 6 and 10, the one with the least leave-one-out error of a ridge classifier.
    lr : float, default=1e-2
        First step size of ``learn_p=True``; it falls to 0 as a cosine. No exponent moves by much
        more than this times half the number of steps, of 64 samples each.
    max_epochs : int, default=20
        Passes over the training tokens of ``learn_p=True``.
    random_state : int, RandomState or None, default=0
        Order of the samples of ``learn_p=True``.
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
    p_ : ndarray of shape (1,)
        The exponent, given or learned.
    channel_min_ : ndarray of shape (n_features,)
        Smallest value of each feature; with `negative="shift"`.

    See Also
    --------
    GroupGeMPooling : One exponent per group of features.
    TokenPooling : Mean, maximum or one chosen token.

    Notes
    -----
    Cost: O(n T d), a few passes over blocks of rows. Values are scaled by their largest before
    they are raised to a power, so no exponent overflows. Unless `negative="shift"` or `learn_p`
    nothing is learned, and results are kept in the store of the tokens.

    ``learn_p=True`` costs `max_epochs` such passes with a logarithm and an exponential each, and
    keeps the tokens of a network meanwhile, as `AttentionPooling` does. ``learn_p="cv"`` reads the
    tokens once, keeps 6 vectors per sample, and fits a ridge classifier, O(n d^2 + d^3), for each
    choice that it tries: 6 times, and up to 15 times the number of groups more.

    References
    ----------
    .. [1] Radenović, Tolias, Chum, Fine-tuning CNN Image Retrieval with No Human Annotation,
       TPAMI 2018. <https://arxiv.org/abs/1711.02512>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import GeMPooling
    >>> tokens = np.array([[[1.0, 4.0], [3.0, 4.0]]])
    >>> GeMPooling(p=1).fit_transform(tokens)
    array([[2., 4.]])
    """

    _parameter_constraints: dict = {**_BaseGeM._parameter_constraints, "p": [Real]}

    def __init__(
        self,
        p: float = 3.0,
        *,
        negative: str = "clamp",
        eps: float = 1e-6,
        learn_p: bool | str = False,
        lr: float = 1e-2,
        max_epochs: int = 20,
        random_state=0,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.p = p
        self.negative = negative
        self.eps = eps
        self.learn_p = learn_p
        self.lr = lr
        self.max_epochs = max_epochs
        self.random_state = random_state
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _exponents(self, n_features: int) -> np.ndarray:
        return np.array([self.p], dtype=np.float64)


class GroupGeMPooling(_BaseGeM):
    r"""Generalized-mean pooling with one exponent per group of features.

    Features are cut into `n_groups` contiguous groups of equal width (a transformer's heads), and
    group g is pooled with its own exponent :math:`p_g` [1]_. One group is `GeMPooling`.

    Parameters
    ----------
    n_groups : int, default=12
        Number of groups; must divide the number of features.
    p : float or array-like of shape (n_groups,), default=3.0
        Exponent of every group, or of each.
    negative : {"clamp", "shift", "signed"}, default="shift"
        What is done with values below zero, as in `GeMPooling`.
    eps : float, default=1e-6
        Smallest value that is raised to a power.
    learn_p : bool or "cv", default=False
        Whether `fit` learns the exponents from class labels. True starts at `p` and trains
        :math:`p = 0.1 + \log(1 + e^\theta)` together with a softmax head by Adam [1]_; "cv"
        takes for one group after the other, of 1, 2, 3, 4, 6 and 10, the one with the least
        leave-one-out error of a ridge classifier.
    lr : float, default=1e-2
        First step size of ``learn_p=True``; it falls to 0 as a cosine. No exponent moves by much
        more than this times half the number of steps, of 64 samples each.
    max_epochs : int, default=20
        Passes over the training tokens of ``learn_p=True``.
    random_state : int, RandomState or None, default=0
        Order of the samples of ``learn_p=True``.
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
    p_ : ndarray of shape (n_groups,)
        The exponents, given or learned.
    channel_min_ : ndarray of shape (n_features,)
        Smallest value of each feature; with `negative="shift"`.

    See Also
    --------
    GeMPooling : One exponent for all features.

    Notes
    -----
    Cost: as `GeMPooling`, with one run per group of equal exponents, also where they are learned.

    References
    ----------
    .. [1] Ko et al., Group Generalized Mean Pooling for Vision Transformer, 2022.
       <https://arxiv.org/abs/2212.04114>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import GroupGeMPooling
    >>> tokens = np.array([[[1.0, 4.0], [3.0, 0.0]]])
    >>> GroupGeMPooling(2, p=[1.0, np.inf], negative="signed").fit_transform(tokens)
    array([[2., 4.]])
    """

    _parameter_constraints: dict = {
        **_BaseGeM._parameter_constraints,
        "n_groups": [Interval(Integral, 1, None, closed="left")],
        "p": [Real, "array-like"],
    }

    def __init__(
        self,
        n_groups: int = 12,
        *,
        p=3.0,
        negative: str = "shift",
        eps: float = 1e-6,
        learn_p: bool | str = False,
        lr: float = 1e-2,
        max_epochs: int = 20,
        random_state=0,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.n_groups = n_groups
        self.p = p
        self.negative = negative
        self.eps = eps
        self.learn_p = learn_p
        self.lr = lr
        self.max_epochs = max_epochs
        self.random_state = random_state
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _exponents(self, n_features: int) -> np.ndarray:
        p = np.atleast_1d(np.asarray(self.p, dtype=np.float64))
        if p.shape not in ((1,), (self.n_groups,)):
            raise ValueError(
                f"p has shape {p.shape}; give one exponent, or one for each of the "
                f"n_groups={self.n_groups}."
            )
        if n_features % self.n_groups:
            raise ValueError(
                f"n_groups={self.n_groups} does not divide the {n_features} features of a token; "
                "give a divisor."
            )
        return np.broadcast_to(p, (self.n_groups,)).copy()
