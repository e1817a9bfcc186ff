# SPDX-License-Identifier: BSD-3-Clause
"""RandomFeatures: a wide random layer, so that a linear head after it is a kernel machine."""

import warnings
from collections.abc import Iterable, Iterator
from numbers import Integral

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.preprocessing._base import BaseRowMap, rows_of
from skpool.preprocessing._kernels import RANDOM_ACTIVATIONS, random_features, random_weights
from skpool.stores import TokenArray
from skpool.utils import ArrayLike

__all__ = ["RandomFeatures"]

# Weights of at most this many bytes are held; others are drawn anew by every call.
_HELD_BYTES = 2**26
# Columns of held weights per product, and rows that tell whether activations saturate.
_COLUMNS, _TRIED_ROWS = 2048, 1024
_SATURATED = 10.0


class RandomFeatures(ClassNamePrefixFeaturesOutMixin, BaseRowMap):
    r"""Project rows on random directions and apply a nonlinearity.

    .. math:: z = \phi(x W + b) / \sqrt{k}, \qquad W_{ij} \sim \mathcal{N}(0, 1)

    Inner products of the k outputs tend to a kernel as k grows, so a ridge classifier on them,
    which learns in parts exactly, comes near the kernel machine [1]_ [2]_. Rows are vectors, or
    the tokens of each sample.

    Parameters
    ----------
    n_components : int, default=10000
        Number k of outputs. Fewer are the first of more, up to the factor.
    activation : {"relu", "erf", "cos", "sign"} or None, default="relu"
        The nonlinearity: kernels are the arc-cosine one of order 1 for "relu", the arc-sine one
        for "erf", that of the angle for "sign". With "cos" and `bias` twice the inner product
        tends to the Gaussian kernel :math:`\exp(-|x - y|^2 / 2)`. None is a random projection,
        which keeps inner products.
    bias : bool, default=False
        Whether offsets b are added: uniform on the circle for "cos", else standard normal, which
        amounts to one more feature of value 1.
    normalize : bool, default=True
        Whether outputs are divided by :math:`\sqrt{k}`.
    orthogonal : bool, default=False
        Whether the columns of W are orthogonal within blocks of as many as there are features, at
        unchanged lengths, which lowers the variance of the kernel.
    random_state : int, RandomState instance or None, default=0
        Draws the seed of W in `fit`.

    Attributes
    ----------
    seed_ : int
        What W is made from.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    sklearn.kernel_approximation.RBFSampler : The Gaussian kernel with a width.
    sklearn.random_projection.GaussianRandomProjection : ``activation=None``.

    Notes
    -----
    Nothing is learned from X but its width. W comes from the seed, in blocks of columns with a
    seed each, by a generator whose numbers do not change between versions of numpy; it is the same
    for every float type, and pickles do not carry it. Up to 64 MiB (of float32) it is held, beyond
    that every call of `transform` draws it again block by block.

    Without `bias`, "relu" is homogeneous: on rows of unit length its features span even and linear
    functions only. Scales matter to "erf" and "cos": `fit` warns where they are far off. RanPAC is
    ``RandomFeatures(10_000)`` on raw features [2]_.

    Cost: O(n d k) time, O(n k) memory for the result; drawing takes about 20 ns per weight.

    References
    ----------
    .. [1] J. B. Simon, D. Karkada, N. Ghosh, M. Belkin, More is Better in Modern Machine Learning,
       2024. <https://arxiv.org/abs/2311.14646>
    .. [2] M. D. McDonnell et al., RanPAC: Random Projections and Pre-trained Models for Continual
       Learning, 2023. <https://arxiv.org/abs/2307.02251>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import RandomFeatures
    >>> X = np.array([[3.0, 4.0]])
    >>> Z = RandomFeatures(100_000, activation=None).fit_transform(X)
    >>> (Z @ Z.T).round()
    array([[25.]])
    """

    _parameter_constraints = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(RANDOM_ACTIVATIONS) - {None}), None],
        "bias": ["boolean"],
        "normalize": ["boolean"],
        "orthogonal": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 10_000,
        *,
        activation: str | None = "relu",
        bias: bool = False,
        normalize: bool = True,
        orthogonal: bool = False,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.n_components = n_components
        self.activation = activation
        self.bias = bias
        self.normalize = normalize
        self.orthogonal = orthogonal
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "seed_")

    def __getstate__(self) -> dict:
        state = super().__getstate__()
        return state | {"_weights": None} if "_weights" in state else state

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if "seed_" in state:
            self._weights = self._drawn()

    @property
    def _n_features_out(self) -> int:
        return self.n_components

    def _n_features_of(self, n_features: int) -> int:
        return self.n_components

    def _check_ready(self) -> None:
        check_is_fitted(self)

    def _learn(self, X: ArrayLike | TokenArray) -> None:
        rng = check_random_state(self.random_state)
        self.seed_ = int(rng.randint(np.iinfo(np.int32).max))
        self._weights = self._drawn()
        if self.activation in ("erf", "cos"):
            self._warn_of_scale(X)

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Draw the weights and offsets, block by block."""
        bias = None
        if self.bias:
            bias = "angle" if self.activation == "cos" else "normal"
        return random_weights(
            self.seed_,
            n_features=self.n_features_in_,
            n_components=self.n_components,
            bias=bias,
            orthogonal=self.orthogonal,
        )

    def _drawn(self) -> tuple[np.ndarray, np.ndarray | None] | None:
        """All weights and offsets, where they are small enough to be held."""
        if 4 * self.n_features_in_ * self.n_components > _HELD_BYTES:
            return None
        W, b = zip(*self._blocks(), strict=True)
        return np.concatenate(W, axis=1), np.concatenate(b) if self.bias else None

    def _parts(self) -> Iterable[tuple[np.ndarray, np.ndarray | None]]:
        if self._weights is None:
            return self._blocks()
        W, b = self._weights
        starts = range(0, self.n_components, _COLUMNS)
        parts = (slice(start, start + _COLUMNS) for start in starts)
        return ((W[:, part], None if b is None else b[part]) for part in parts)

    def _warn_of_scale(self, X: ArrayLike | TokenArray) -> None:
        part = next(iter(self._parts()))
        rows = next(rows_of(X), None)
        if rows is None:
            return
        projected = random_features(
            rows[:_TRIED_ROWS], [part], n_components=part[0].shape[1], activation=None
        )
        typical = float(projected.abs().median())
        if typical > _SATURATED:
            warnings.warn(
                f"The projections of X have a median magnitude of {typical:.3g}, where "
                f"activation={self.activation!r} tells hardly more than their sign or repeats "
                "itself; divide X by about that, or scale its rows with L2Normalizer.",
                UserWarning,
                stacklevel=5,
            )

    def _map(self, rows: torch.Tensor) -> torch.Tensor:
        return random_features(
            rows,
            self._parts(),
            n_components=self.n_components,
            activation=self.activation,
            scale=self.n_components**-0.5 if self.normalize else 1.0,
        )
