# SPDX-License-Identifier: BSD-3-Clause
"""FisherVectorPooling: how the tokens of a sample would move a mixture of Gaussians."""

import warnings
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._base import BasePooling
from skpool.pooling._learning import sample_tokens
from skpool.pooling._vocabulary import check_enough_tokens, principal_axes, rotated
from skpool.pooling._vocabulary_kernels import pool_fisher
from skpool.stores import TokenArray
from skpool.utils import as_tensor

__all__ = ["FisherVectorPooling"]

_PARTS = ("mean", "variance")
# A component that explains less than this many of the sampled tokens has collapsed.
_FEWEST_TOKENS = 0.5


class FisherVectorPooling(BasePooling):
    r"""Gradient of the log-likelihood of the tokens under a mixture of Gaussians.

    A mixture of K Gaussians with weights :math:`\pi_k`, means :math:`\mu_k` and diagonal
    variances :math:`\sigma_k^2` is fitted to a sample of tokens on their principal axes. With the
    posteriors :math:`q_{tk}` of the components, a sample with tokens :math:`x_1, \dots, x_T`
    becomes

    .. math::
        u_k = \frac{1}{T \sqrt{\pi_k}} \sum_t q_{tk} \frac{x_t - \mu_k}{\sigma_k}, \qquad
        v_k = \frac{1}{T \sqrt{2 \pi_k}} \sum_t q_{tk}
              \Big(\frac{(x_t - \mu_k)^2}{\sigma_k^2} - 1\Big),

    all the :math:`u_k` and then all the :math:`v_k`: the gradient of the mean log-likelihood with
    respect to the means and the standard deviations, divided by the square root of the diagonal
    Fisher information. Then the magnitudes are raised to a power with their sign kept, and the
    vector is scaled to unit length, which is the improved Fisher vector [1]_.

    Parameters
    ----------
    n_components : int, default=64
        Number of Gaussians; at most the number of sampled tokens.
    parts : tuple of {"mean", "variance"}, default=("mean", "variance")
        The blocks of the vector, in this order.
    pca_dim : int or None, default=64
        Project tokens to their leading principal axes, at most so many: there are no more than
        features, nor than the rank of the sampled tokens. Diagonal variances describe tokens
        whose features are uncorrelated. None leaves tokens as they are.
    power : float or None, default=0.5
        Exponent of the magnitudes, above 0 and at most 1; None leaves them.
    l2 : bool, default=True
        Whether the vector is scaled to unit length.
    max_tokens : int, default=500000
        Tokens that are drawn at random to learn from.
    reg_covar : float, default=1e-6
        Added to the variances, in squared units of the tokens.
    random_state : int, RandomState instance or None, default=0
        Draws the tokens and the start of the mixture.
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
    weights_ : ndarray of shape (n_kept,)
        Weights of the components that were kept.
    means_ : ndarray of shape (n_kept, n_axes)
        Their means.
    covariances_ : ndarray of shape (n_kept, n_axes)
        Their variances, `reg_covar` included.
    pca_mean_ : ndarray of shape (n_features,) or None
        Mean of the tokens, with `pca_dim`.
    pca_components_ : ndarray of shape (n_axes, n_features) or None
        Their principal axes, with `pca_dim`.
    converged_ : bool
        Whether the mixture stopped to change within the 100 steps that it is given.

    See Also
    --------
    VLADPooling : Differences to words of a vocabulary, without variances.
    skpool.preprocessing.L2Normalizer : Scales tokens to unit length first, which keeps posteriors
        of tokens of very different norms from being all 0 or 1.

    Notes
    -----
    A component that explains less than half a token of the sample is dropped, with a warning; the
    vector is shorter then. Any mixture gives a valid vector, and its last steps hardly move it,
    so there is no warning where it has not converged: see `converged_`.

    Cost: per sample a product of T d k for the axes and two of 2 T K k, in blocks that stay in
    cache. `fit` reads all tokens once; each step of the mixture takes four products of n K k and
    holds 2 n K numbers in float64 for n sampled tokens, so `max_tokens` decides what it costs. The
    result has len(parts) K k features. The fit depends on the samples and `random_state` alone,
    not on how they are read.

    References
    ----------
    .. [1] Perronnin, Sánchez, Mensink, Improving the Fisher Kernel for Large-Scale Image
       Classification, ECCV 2010.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import FisherVectorPooling
    >>> tokens = np.array([[[1.0], [3.0]], [[5.0], [7.0]]])
    >>> pooling = FisherVectorPooling(1, parts=("mean",), power=None, l2=False)
    >>> pooling.fit_transform(tokens).round(3)
    array([[-0.894],
           [ 0.894]])
    """

    _refuses_bad_tokens = True
    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "parts": [tuple],
        "pca_dim": [Interval(Integral, 1, None, closed="left"), None],
        "power": [Interval(Real, 0, 1, closed="right"), None],
        "l2": ["boolean"],
        "max_tokens": [Interval(Integral, 1, None, closed="left")],
        "reg_covar": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 64,
        *,
        parts: tuple[str, ...] = _PARTS,
        pca_dim: int | None = 64,
        power: float | None = 0.5,
        l2: bool = True,
        max_tokens: int = 500_000,
        reg_covar: float = 1e-6,
        random_state: int | np.random.RandomState | None = 0,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.n_components = n_components
        self.parts = parts
        self.pca_dim = pca_dim
        self.power = power
        self.l2 = l2
        self.max_tokens = max_tokens
        self.reg_covar = reg_covar
        self.random_state = random_state
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _check_parameters(self, n_features: int) -> None:
        named = [part for part in self.parts if part in _PARTS]
        if not named or len(set(named)) != len(self.parts):
            raise ValueError(
                f"parts={self.parts!r} must hold 'mean', 'variance' or both, each once."
            )

    def _fit_tokens(self, tokens: TokenArray, y: object) -> None:
        random = check_random_state(self.random_state)
        sample = sample_tokens(
            tokens, max_tokens=self.max_tokens, random_state=random, batch_size=self.batch_size
        )
        check_enough_tokens("n_components", max(2, self.n_components), len(sample))
        # Variances are differences of squares; they need the digits.
        sample = sample.cpu().double()
        self.pca_mean_ = self.pca_components_ = None
        if self.pca_dim is not None:
            self.pca_mean_, self.pca_components_ = principal_axes(sample, self.pca_dim)
            sample = rotated(sample, self.pca_mean_, self.pca_components_)
        self._fit_mixture(sample.numpy(), random)

    def _fit_mixture(self, sample: np.ndarray, random: np.random.RandomState) -> None:
        mixture = GaussianMixture(
            self.n_components,
            covariance_type="diag",
            reg_covar=self.reg_covar,
            random_state=random,
        )
        with warnings.catch_warnings():
            # Of steps that were too few, and of duplicates, from which components collapse.
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(sample)
        kept = mixture.weights_ * len(sample) >= _FEWEST_TOKENS
        if not kept.all():
            warnings.warn(
                f"{int((~kept).sum())} of the n_components={self.n_components} components have "
                "collapsed (they explain no token) and are dropped; ask for fewer.",
                UserWarning,
                stacklevel=2,
            )
        self.weights_ = mixture.weights_[kept] / mixture.weights_[kept].sum()
        self.means_ = mixture.means_[kept]
        self.covariances_ = mixture.covariances_[kept]
        self.converged_ = bool(mixture.converged_)

    def _check_ready(self) -> None:
        check_is_fitted(self, "weights_")

    def _fingerprint(self) -> str | None:
        # The mixture is learned, so parameters alone do not name the result.
        return None

    def _pool(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        projection = None
        if self.pca_components_ is not None:
            projection = as_tensor(self.pca_mean_), as_tensor(self.pca_components_).T
        return pool_fisher(
            tokens,
            mask,
            weights=as_tensor(self.weights_),
            means=as_tensor(self.means_),
            variances=as_tensor(self.covariances_),
            projection=projection,
            parts=self.parts,
            power=self.power,
            l2=self.l2,
        )

    @property
    def _n_features_out(self) -> int:
        return len(self.parts) * self.means_.size

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        return tags
