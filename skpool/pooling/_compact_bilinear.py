# SPDX-License-Identifier: BSD-3-Clause
"""CompactBilinearPooling: a sketch of the second moments of tokens, and its form for two inputs.

Thin over the sketches of `_sketch_kernels`. A seed decides the sketch, so nothing is learned.
"""

from numbers import Integral

import numpy as np
import torch
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._base import BasePooling, Plan
from skpool.pooling._sketch_kernels import (
    CountSketch,
    draw_count_sketch,
    draw_signs,
    normalize_,
    pool_compact_bilinear,
    random_maclaurin,
    tensor_sketch,
)
from skpool.stores import TokenArray
from skpool.utils import ArrayLike, check_finite, numpy_or_tensor

__all__ = ["CompactBilinearPooling", "fuse_compact_bilinear"]

_METHODS = ("tensor_sketch", "random_maclaurin")
_MAX_SEED = np.iinfo(np.int32).max


def _draw(
    method: str, widths: tuple[int, int], n_components: int, seed: int
) -> CountSketch | tuple[np.ndarray, np.ndarray]:
    """What the method needs to know of the random functions."""
    draw = draw_count_sketch if method == "tensor_sketch" else draw_signs
    return draw(widths, n_components, seed=seed)


class CompactBilinearPooling(BasePooling):
    r"""Sketch of the second moments of the tokens, in a width of choice.

    Bilinear pooling of d features has :math:`d^2` outputs. A sketch s has as many as wanted, and
    keeps inner products on average [1]_:

    .. math:: \mathbb{E}\,\langle s(x), s(y) \rangle = \langle x, y \rangle^2 .

    The mean of s over the tokens of a sample is followed by signed square roots and unit length.

    Parameters
    ----------
    n_components : int, default=4096
        Width D of the vectors.
    method : {"tensor_sketch", "random_maclaurin"}, default="tensor_sketch"
        Circular convolution of two count sketches, :math:`F^{-1}(F(S_1 x) F(S_2 x))` with the
        Fourier transform F; or :math:`(W_1 x)(W_2 x) / \sqrt D` with matrices of random signs.
    power_norm : bool, default=True
        Whether signed square roots are taken.
    l2 : bool, default=True
        Whether vectors are scaled to unit length.
    random_state : int, RandomState instance or None, default=0
        Draws the sketch.
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
    seed_ : int
        Seed of the sketch: `random_state`, or a number drawn from it.

    See Also
    --------
    BilinearPooling : All second moments.
    fuse_compact_bilinear : The same for two vectors per sample.
    sklearn.kernel_approximation.PolynomialCountSketch : The sketch of single vectors.

    Notes
    -----
    The mean of the sketches of tokens is a sketch of their second moment. Where it is cheaper, that
    is computed first, for O(n (T d^2 + d^2)) operations in place of O(n T (d + D log D)); at
    d = 384, T = 197 it is about ten times faster. Random Maclaurin takes O(n T d D). Memory: the
    vectors and some blocks.

    With an int as `random_state` nothing needs `fit`, and results are kept in the store of the
    tokens.

    References
    ----------
    .. [1] Gao, Beijbom, Zhang, Darrell, Compact Bilinear Pooling, CVPR 2016.
       <https://arxiv.org/abs/1511.06062>
    .. [2] Pham, Pagh, Fast and Scalable Polynomial Kernels via Explicit Feature Maps, KDD 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import CompactBilinearPooling
    >>> tokens = np.random.default_rng(0).normal(size=(3, 50, 8))
    >>> CompactBilinearPooling(n_components=32).fit_transform(tokens).shape
    (3, 32)
    """

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "method": [StrOptions(set(_METHODS))],
        "power_norm": ["boolean"],
        "l2": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 4096,
        *,
        method: str = "tensor_sketch",
        power_norm: bool = True,
        l2: bool = True,
        random_state=0,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.n_components = n_components
        self.method = method
        self.power_norm = power_norm
        self.l2 = l2
        self.random_state = random_state
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _is_seeded(self) -> bool:
        """Whether the parameters alone decide the sketch."""
        return isinstance(self.random_state, Integral)

    def _fit_tokens(self, tokens: TokenArray, y: object) -> None:
        if self._is_seeded():
            self.seed_ = int(self.random_state)
        else:
            self.seed_ = int(check_random_state(self.random_state).randint(_MAX_SEED))

    def _check_ready(self) -> None:
        if not self._is_seeded():
            check_is_fitted(self, "seed_")

    def _fingerprint(self) -> str | None:
        # Without a seed among the parameters they do not name the result.
        return super()._fingerprint() if self._is_seeded() else None

    def _bind(self, tokens: TokenArray) -> Plan:
        d = tokens.shape[2]
        seed = int(self.random_state) if self._is_seeded() else getattr(self, "seed_", 0)
        sketch = _draw(self.method, (d, d), self.n_components, seed)

        def pool(tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            return pool_compact_bilinear(
                tokens, mask, sketch=sketch, power_norm=self.power_norm, l2=self.l2
            )

        return Plan(self._in_scope(tokens), pool)

    @property
    def _n_features_out(self) -> int:
        return self.n_components

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = not self._is_seeded()
        return tags


def _check_vectors(X: ArrayLike, name: str) -> ArrayLike:
    X = X if isinstance(X, torch.Tensor) else np.asarray(X)
    if X.ndim != 2:
        raise ValueError(
            f"{name} has shape {tuple(X.shape)}; give one vector per sample, (n_samples, "
            "n_features)."
        )
    check_finite(X)
    return X


@validate_params(
    {
        "Xa": ["array-like", torch.Tensor],
        "Xb": ["array-like", torch.Tensor],
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "method": [StrOptions(set(_METHODS))],
        "power_norm": ["boolean"],
        "l2": ["boolean"],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def fuse_compact_bilinear(
    Xa: ArrayLike,
    Xb: ArrayLike,
    *,
    n_components: int = 4096,
    method: str = "tensor_sketch",
    power_norm: bool = True,
    l2: bool = True,
    random_state=0,
) -> ArrayLike:
    """Sketch of all products of the features of two vectors per sample.

    Known as multimodal compact bilinear pooling [1]_. Side by side, without products, two blocks of
    features mostly serve better [2]_.

    Parameters
    ----------
    Xa : array-like or tensor of shape (n_samples, n_features_a)
        Vectors of the first kind.
    Xb : array-like or tensor of shape (n_samples, n_features_b)
        Vectors of the second kind, of the same samples.
    n_components : int, default=4096
        Width of the result.
    method : {"tensor_sketch", "random_maclaurin"}, default="tensor_sketch"
        As in `CompactBilinearPooling`.
    power_norm : bool, default=True
        Whether signed square roots are taken.
    l2 : bool, default=True
        Whether vectors are scaled to unit length.
    random_state : int, RandomState instance or None, default=0
        Draws the sketch; the same number for vectors that are to be compared.

    Returns
    -------
    X : ndarray or tensor of shape (n_samples, n_components)
        In the container and float type of `Xa`, float32 for half precision.

    References
    ----------
    .. [1] Fukui et al., Multimodal Compact Bilinear Pooling for Visual Question Answering and
       Visual Grounding, EMNLP 2016. <https://arxiv.org/abs/1606.01847>
    .. [2] Winterbottom et al., Trying Bilinear Pooling in Video-QA, 2020.
       <https://arxiv.org/abs/2012.10285>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import fuse_compact_bilinear
    >>> images, texts = np.ones((3, 8)), np.ones((3, 5))
    >>> fuse_compact_bilinear(images, texts, n_components=32).shape
    (3, 32)
    """
    Xa, Xb = _check_vectors(Xa, "Xa"), _check_vectors(Xb, "Xb")
    if len(Xa) != len(Xb):
        raise ValueError(
            f"Xa has {len(Xa)} samples and Xb has {len(Xb)}; give two vectors of each sample."
        )
    a, restore = numpy_or_tensor(Xa)
    b = numpy_or_tensor(Xb)[0].to(a)
    seed = random_state
    if not isinstance(seed, Integral):
        seed = int(check_random_state(seed).randint(_MAX_SEED))
    sketch = _draw(method, (a.shape[1], b.shape[1]), n_components, int(seed))
    if method == "tensor_sketch":
        vectors = tensor_sketch(a, b, sketch=sketch)
    else:
        vectors = random_maclaurin(a, b, signs=sketch)
    return restore(normalize_(vectors, power_norm=power_norm, l2=l2))
