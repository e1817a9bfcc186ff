# SPDX-License-Identifier: BSD-3-Clause
"""VLADPooling: what the tokens of a sample have beyond the words of a vocabulary."""

from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._base import BasePooling
from skpool.pooling._learning import sample_tokens
from skpool.pooling._vocabulary import (
    check_enough_tokens,
    fit_vocabulary,
    mean_gap,
    principal_axes,
    rotated,
)
from skpool.pooling._vocabulary_kernels import pool_vlad
from skpool.stores import TokenArray
from skpool.utils import as_tensor, unit_rows

__all__ = ["VLADPooling"]


class VLADPooling(BasePooling):
    r"""Vector of locally aggregated descriptors: sums of residuals to the words of a vocabulary.

    k-means on a sample of tokens gives words :math:`c_1, \dots, c_K`. A sample with tokens
    :math:`x_1, \dots, x_T` becomes the K sums

    .. math:: v_k = \sum_t a_{tk}\, (x_t - c_k)

    one after the other, where :math:`a_{tk}` is 1 for the nearest word and 0 for the others [1]_,
    or the softmax over the words of :math:`-\alpha |x_t - c_k|^2` [3]_. Then, in this order: the
    sums may be divided by their mass :math:`\sum_t a_{tk}`, raised to a power with their sign
    kept, each scaled to unit length (intra-normalisation [2]_), and the whole scaled to unit
    length. With one word it is the direction of the mean from the mean of all tokens.

    Parameters
    ----------
    n_clusters : int, default=64
        Number of words; at most the number of sampled tokens.
    assignment : {"hard", "soft"}, default="hard"
        To which words a token belongs.
    alpha : float or "auto", default="auto"
        How sharply "soft" decides. "auto" is :math:`-\ln 0.01` over the mean difference of the
        two smallest squared distances of a sampled token to words, so that the second word has
        about 1 % of the weight of the first.
    normalize_tokens : bool, default=True
        Whether every token is divided by its Euclidean norm first.
    mass_norm : bool, default=False
        Whether sums are divided by their mass, so that frequent words do not outweigh.
    power : float, default=None
        Exponent of the magnitudes, above 0 and at most 1, such as 0.5; None leaves them.
    intra_norm : bool, default=True
        Whether the sum of every word is scaled to unit length.
    l2 : bool, default=True
        Whether the vector is scaled to unit length.
    n_components : int, default=None
        Project tokens to their leading principal axes first, at most so many: there are no more
        than features, nor than the rank of the sampled tokens. None does not project.
    max_tokens : int, default=500000
        Tokens that are drawn at random to learn from.
    random_state : int, RandomState instance or None, default=0
        Draws the tokens and the starts of k-means.
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
    vocabulary_ : ndarray of shape (n_clusters, n_features), float32
        The words; of the width of the projected tokens where tokens are projected.
    alpha_ : float
        The sharpness, with `assignment="soft"`.
    pca_mean_ : ndarray of shape (n_features,) or None
        Mean of the tokens, with `n_components`.
    pca_components_ : ndarray of shape (n_components, n_features) or None
        Their principal axes, with `n_components`.

    See Also
    --------
    FisherVectorPooling : Adds variances, with a mixture of Gaussians for a vocabulary.
    BagOfFeaturesPooling : Counts words only.

    Notes
    -----
    The nearest word is meant in Euclidean distance, also for tokens of unit length, whose mean is
    shorter. A word without tokens gives zeros, and so do tokens that equal their word up to
    rounding to float32, in which the vocabulary is learned.

    Cost: a product of T K d per sample (two for "soft"), in blocks that stay in cache; `fit` reads
    all tokens once, and holds the sample (`max_tokens` times d numbers) three times. The result
    has K d features. The fit depends on the samples and `random_state` alone, not on how they are
    read.

    References
    ----------
    .. [1] Jégou, Douze, Schmid, Pérez, Aggregating Local Descriptors into a Compact Image
       Representation, CVPR 2010.
    .. [2] Arandjelović, Zisserman, All About VLAD, CVPR 2013.
    .. [3] Arandjelović et al., NetVLAD: CNN Architecture for Weakly Supervised Place Recognition,
       CVPR 2016. <https://arxiv.org/abs/1511.07247>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import VLADPooling
    >>> tokens = np.array([[[0.0, 2.0], [0.0, 4.0]], [[8.0, 0.0], [6.0, 0.0]]])
    >>> pooling = VLADPooling(1, normalize_tokens=False, l2=False, intra_norm=False)
    >>> pooling.fit_transform(tokens)
    array([[-7.,  3.],
           [ 7., -3.]])
    """

    _refuses_bad_tokens = True
    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "assignment": [StrOptions({"hard", "soft"})],
        "alpha": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "normalize_tokens": ["boolean"],
        "mass_norm": ["boolean"],
        "power": [Interval(Real, 0, 1, closed="right"), None],
        "intra_norm": ["boolean"],
        "l2": ["boolean"],
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "max_tokens": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int = 64,
        *,
        assignment: str = "hard",
        alpha: float | str = "auto",
        normalize_tokens: bool = True,
        mass_norm: bool = False,
        power: float | None = None,
        intra_norm: bool = True,
        l2: bool = True,
        n_components: int | None = None,
        max_tokens: int = 500_000,
        random_state: int | np.random.RandomState | None = 0,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.n_clusters = n_clusters
        self.assignment = assignment
        self.alpha = alpha
        self.normalize_tokens = normalize_tokens
        self.mass_norm = mass_norm
        self.power = power
        self.intra_norm = intra_norm
        self.l2 = l2
        self.n_components = n_components
        self.max_tokens = max_tokens
        self.random_state = random_state
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _fit_tokens(self, tokens: TokenArray, y: object) -> None:
        random = check_random_state(self.random_state)
        sample = sample_tokens(
            tokens, max_tokens=self.max_tokens, random_state=random, batch_size=self.batch_size
        )
        check_enough_tokens("n_clusters", self.n_clusters, len(sample))
        if self.normalize_tokens:
            sample = unit_rows(sample)
        self.pca_mean_ = self.pca_components_ = None
        if self.n_components is not None:
            self.pca_mean_, self.pca_components_ = principal_axes(sample, self.n_components)
            sample = rotated(sample, self.pca_mean_, self.pca_components_)
        self.vocabulary_ = fit_vocabulary(sample, n_words=self.n_clusters, random_state=random)
        if self.assignment == "soft":
            self.alpha_ = self._sharpness(sample)

    def _sharpness(self, sample: torch.Tensor) -> float:
        if self.alpha != "auto":
            return float(self.alpha)
        gap = mean_gap(sample, self.vocabulary_) if self.n_clusters > 1 else 1.0
        # Words that are all the same have no gap.
        return -np.log(0.01) / gap if gap > 0 else np.finfo(np.float64).max

    def _check_ready(self) -> None:
        check_is_fitted(self, ["vocabulary_", "alpha_"][: 1 + (self.assignment == "soft")])

    def _fingerprint(self) -> str | None:
        # The vocabulary is learned, so parameters alone do not name the result.
        return None

    def _pool(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        projection = None
        if self.pca_components_ is not None:
            projection = as_tensor(self.pca_mean_), as_tensor(self.pca_components_).T
        return pool_vlad(
            tokens,
            mask,
            vocabulary=as_tensor(self.vocabulary_),
            assignment=self.assignment,
            alpha=self.alpha_ if self.assignment == "soft" else 1.0,
            normalize_tokens=self.normalize_tokens,
            projection=projection,
            mass_norm=self.mass_norm,
            power=self.power,
            intra_norm=self.intra_norm,
            l2=self.l2,
        )

    @property
    def _n_features_out(self) -> int:
        return self.vocabulary_.size

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        return tags
