# SPDX-License-Identifier: BSD-3-Clause
"""BagOfFeaturesPooling: how often the words of a vocabulary occur among the tokens of a sample."""

from numbers import Integral, Real

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.base import _fit_context
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._base import BasePooling, Plan
from skpool.pooling._learning import sample_tokens
from skpool.pooling._vocabulary import (
    check_enough_tokens,
    drawn_features,
    fit_vocabulary,
    inner_tokens,
    mean_smallest_distance,
)
from skpool.pooling._vocabulary_kernels import pool_bag_of_features
from skpool.stores import TokenArray, validate_tokens
from skpool.utils import ArrayLike, as_tensor, unchanged_on_error

__all__ = ["BagOfFeaturesPooling"]

# Share of the past in the running mean of the smallest distances.
_MOMENTUM = 0.99


def _has_queue(pooling: "BagOfFeaturesPooling") -> bool:
    return isinstance(pooling.vocabulary, str) and pooling.vocabulary == "queue"


class BagOfFeaturesPooling(BasePooling):
    r"""Histogram of the words of a vocabulary over the tokens of a sample.

    With words :math:`c_1, \dots, c_K`, every token has a code over the words: 1 for the nearest
    and 0 for the others, or

    .. math:: a_{tk} = \operatorname{softmax}_k
              \Big(-\frac{\text{inv\_delta}}{\mu}\, |x_t - c_k|^2\Big),

    where :math:`\mu` is the mean squared distance of tokens to their nearest word. The codes are
    averaged over the tokens (the bag of visual words [2]_), or their maximum is taken, and the
    result is normalised. The words are those of k-means, given, or a queue of features of the
    latest samples (OBoW [1]_).

    Parameters
    ----------
    n_words : int, default=512
        Number of words; not used where `vocabulary` gives them.
    assignment : {"hard", "soft"}, default="hard"
        Which codes tokens have.
    inv_delta : float, default=15
        How sharply "soft" decides.
    adaptive : bool, default=True
        Whether distances are divided by :math:`\mu`, which makes "soft" independent of the scale
        of the tokens; if not, :math:`\mu` is 1.
    pool : {"mean", "max"}, default="mean"
        How codes are reduced over the tokens. With "max" only `norm` makes samples comparable.
    norm : {"l1", "l2", "sqrt"} or None, default="l1"
        Sum 1, unit length, or the square root of what "l1" gives (Hellinger), also unit length.
    tfidf : bool, default=False
        Whether words are weighted by :math:`\ln\frac{1 + n}{1 + n_k} + 1` before they are
        normalised, :math:`n_k` of the n samples of `fit` having a token nearest to word k.
    vocabulary : {"kmeans", "queue"} or array-like of shape (n_words, n_features), default="kmeans"
        The words, or where they come from. "queue" takes one feature from a random place of every
        sample; the oldest gives way to the newest.
    local_average : int, default=1
        Side of the window whose mean is a feature of the "queue", 3 in [1]_; above 1 tokens must
        have a grid.
    border : int, default=0
        Rows and columns of tokens at each edge of the grid that are left out everywhere, 1 in
        [1]_; so is then what stands before the patches.
    max_tokens : int, default=500000
        Tokens that are drawn at random to learn from.
    sparse_output : bool, default=False
        Whether bags of "hard" codes with `pool="mean"` come as a SciPy CSR array, which few steps
        behind a pooling take.
    random_state : int, RandomState instance or None, default=0
        Draws tokens, the start of k-means, and the places of the "queue".
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
    vocabulary_ : ndarray of shape (n_words, n_features), float32
        The words; with "queue" as many as have come so far.
    mu_ : float
        Mean smallest squared distance, with "soft" and `adaptive`; after `partial_fit` the
        running mean over calls, with momentum 0.99.
    idf_ : ndarray of shape (n_words,)
        Weights of the words, with `tfidf`.
    n_samples_seen_ : int
        Samples that the "queue" has seen, unreadable ones included.
    n_drawn_ : int
        Features that have entered the "queue".

    See Also
    --------
    VLADPooling : Also says where tokens lie around their word.

    Notes
    -----
    The result is dense for "soft", for `pool="max"`, and where X is a tensor or `set_output` asks
    for a frame. Rows of unreadable inputs are NaN, in a CSR array too. For bags at several
    resolutions, put several of these side by side with scikit-learn's FeatureUnion.

    Cost: one product of T K d per sample, in blocks that stay in cache; `fit` reads all tokens
    once (twice with `tfidf`), and holds the sample (`max_tokens` times d numbers) three times.
    The fit depends on the samples and `random_state` alone, not on how they are read; the queue
    of `fit` is that of `partial_fit` on any parts of the samples in turn.

    References
    ----------
    .. [1] Gidaris et al., OBoW: Online Bag-of-Visual-Words Generation for Self-Supervised
       Learning, CVPR 2021. <https://arxiv.org/abs/2012.11552>
    .. [2] Verma, Berger, Attention is All You Need? Good Embeddings with Statistics are enough,
       2021. <https://arxiv.org/abs/2110.03183>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import BagOfFeaturesPooling
    >>> tokens = np.array([[[0.0], [1.0], [9.0], [0.0]]])
    >>> BagOfFeaturesPooling(vocabulary=[[0.0], [10.0]]).fit_transform(tokens)
    array([[0.75, 0.25]])
    """

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        "n_words": [Interval(Integral, 1, None, closed="left")],
        "assignment": [StrOptions({"hard", "soft"})],
        "inv_delta": [Interval(Real, 0, None, closed="neither")],
        "adaptive": ["boolean"],
        "pool": [StrOptions({"mean", "max"})],
        "norm": [StrOptions({"l1", "l2", "sqrt"}), None],
        "tfidf": ["boolean"],
        "vocabulary": [StrOptions({"kmeans", "queue"}), "array-like"],
        "local_average": [Interval(Integral, 1, None, closed="left")],
        "border": [Interval(Integral, 0, None, closed="left")],
        "max_tokens": [Interval(Integral, 1, None, closed="left")],
        "sparse_output": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_words: int = 512,
        *,
        assignment: str = "hard",
        inv_delta: float = 15,
        adaptive: bool = True,
        pool: str = "mean",
        norm: str | None = "l1",
        tfidf: bool = False,
        vocabulary="kmeans",
        local_average: int = 1,
        border: int = 0,
        max_tokens: int = 500_000,
        sparse_output: bool = False,
        random_state: int | np.random.RandomState | None = 0,
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.n_words = n_words
        self.assignment = assignment
        self.inv_delta = inv_delta
        self.adaptive = adaptive
        self.pool = pool
        self.norm = norm
        self.tfidf = tfidf
        self.vocabulary = vocabulary
        self.local_average = local_average
        self.border = border
        self.max_tokens = max_tokens
        self.sparse_output = sparse_output
        self.random_state = random_state
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    @available_if(_has_queue)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None):
        """Let features of these samples enter the queue; only with ``vocabulary="queue"``.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.
        y : ignored
            Present for the API.

        Returns
        -------
        self : estimator
            Ready to transform once the queue holds `n_words` features.
        """
        if self.tfidf:
            raise ValueError(
                "tfidf=True counts the samples in which a word occurs, and words of a queue come "
                "and go; use fit, or tfidf=False."
            )
        with unchanged_on_error(self):
            first = not getattr(self, "n_samples_seen_", 0)
            tokens = self._plan(validate_tokens(self, X, reset=first)).tokens
            if first:
                self._empty_queue()
            was_full = self._is_full()
            if was_full:
                self._track_distance(tokens)
            self._enqueue(tokens)
            if self._is_full() and not was_full:
                self._track_distance(tokens)
        return self

    def transform(self, X) -> ArrayLike | csr_array:
        """Count the words of every sample.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        bags : CSR array or ndarray of shape (n_samples, n_words)
            Of the float type of the tokens (float32 for half precision) or of `out_dtype`; a
            tensor where X was a tensor. Rows of unreadable inputs are NaN.
        """
        bags = super().transform(X)
        is_sparse = self.sparse_output and self.assignment == "hard" and self.pool == "mean"
        return csr_array(bags) if is_sparse and isinstance(bags, np.ndarray) else bags

    def _bind(self, tokens: TokenArray) -> Plan:
        return Plan(inner_tokens(self._in_scope(tokens), self.border), self._pool)

    def _fit_tokens(self, tokens: TokenArray, y: object) -> None:
        self.n_samples_seen_ = self.n_drawn_ = 0
        random = check_random_state(self.random_state)
        sample = None
        if _has_queue(self):
            self._fill_queue(tokens)
        elif isinstance(self.vocabulary, str):
            sample = self._sampled(tokens, random)
            check_enough_tokens("n_words", self.n_words, len(sample))
            self.vocabulary_ = fit_vocabulary(sample, n_words=self.n_words, random_state=random)
        else:
            self.vocabulary_ = self._given_words()
        if self._needs_distance():
            sample = self._sampled(tokens, random) if sample is None else sample
            self.mu_ = mean_smallest_distance(sample, self.vocabulary_)
        if self.tfidf:
            self.idf_ = self._inverse_frequencies(tokens)

    def _sampled(self, tokens: TokenArray, random: np.random.RandomState | int) -> torch.Tensor:
        return sample_tokens(
            tokens, max_tokens=self.max_tokens, random_state=random, batch_size=self.batch_size
        )

    def _given_words(self) -> np.ndarray:
        words = check_array(self.vocabulary, dtype=np.float32, input_name="vocabulary")
        if words.shape[1] != self.n_features_in_:
            raise ValueError(
                f"vocabulary has words of {words.shape[1]} features, and the tokens of X have "
                f"{self.n_features_in_}; give words of that width."
            )
        return words.copy()

    def _inverse_frequencies(self, tokens: TokenArray) -> np.ndarray:
        """Weights of the words by the number of samples that have them."""
        n_samples, n_with = 0, np.zeros(len(self.vocabulary_))
        for _, values, mask in tokens.iter_batches(self.batch_size):
            found = pool_bag_of_features(
                values, mask, vocabulary=as_tensor(self.vocabulary_), pool="max", norm=None
            )
            # Samples without a real token say nothing of words.
            n_samples += int(found.any(dim=1).sum())
            n_with += found.sum(dim=0, dtype=torch.float64).cpu().numpy()
        return np.log((1 + n_samples) / (1 + n_with)) + 1

    # The queue, a ring: word k is overwritten by every n_words-th feature, so others keep their
    # place among the outputs.

    def _empty_queue(self) -> None:
        vars(self).pop("mu_", None)
        self.n_samples_seen_ = self.n_drawn_ = 0
        self.vocabulary_ = np.empty((0, self.n_features_in_), dtype=np.float32)
        self._seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _fill_queue(self, tokens: TokenArray) -> None:
        self._empty_queue()
        self._enqueue(tokens)
        if not self._is_full():
            raise ValueError(
                f"n_words={self.n_words} is more than the {self.n_drawn_} samples of X, each of "
                "which gives one word to the queue; ask for fewer, or give more samples."
            )

    def _enqueue(self, tokens: TokenArray) -> None:
        # Sample i of all that ever came has the i-th number, however they are cut into calls.
        numbers = np.random.PCG64(self._seed).advance(self.n_samples_seen_)
        places = np.random.Generator(numbers).random(len(tokens))
        features = drawn_features(
            tokens, places, side=self.local_average, batch_size=self.batch_size
        )
        slots = (self.n_drawn_ + np.arange(len(features))) % self.n_words
        n_words = min(self.n_words, self.n_drawn_ + len(features))
        words = np.empty((n_words, self.n_features_in_), dtype=np.float32)
        words[: len(self.vocabulary_)] = self.vocabulary_
        words[slots[-self.n_words :]] = features[-self.n_words :]
        self.vocabulary_ = words
        self.n_samples_seen_ += len(tokens)
        self.n_drawn_ += len(features)

    def _is_full(self) -> bool:
        return len(self.vocabulary_) >= self.n_words

    def _track_distance(self, tokens: TokenArray) -> None:
        """Let the distances of these tokens enter the running mean."""
        if not self._needs_distance():
            return
        new = mean_smallest_distance(self._sampled(tokens, self._seed), self.vocabulary_)
        before = getattr(self, "mu_", None)
        self.mu_ = new if before is None else _MOMENTUM * before + (1 - _MOMENTUM) * new

    # The codes.

    def _needs_distance(self) -> bool:
        return self.assignment == "soft" and self.adaptive

    def _sharpness(self) -> float:
        mu = self.mu_ if self._needs_distance() else 1.0
        # Where all tokens are words, the nearest one takes all.
        return self.inv_delta / mu if mu > 0 else np.finfo(np.float64).max

    def __sklearn_is_fitted__(self) -> bool:
        wanted = ["vocabulary_", "mu_", "idf_"]
        needed = [True, self._needs_distance(), self.tfidf]
        if not all(hasattr(self, w) for w, n in zip(wanted, needed, strict=True) if n):
            return False
        return not _has_queue(self) or self._is_full()

    def _check_ready(self) -> None:
        if _has_queue(self) and hasattr(self, "vocabulary_") and not self._is_full():
            raise NotFittedError(
                f"This {type(self).__name__} holds {len(self.vocabulary_)} of the n_words="
                f"{self.n_words} features of its queue; call partial_fit with more samples."
            )
        check_is_fitted(self)

    def _fingerprint(self) -> str | None:
        # The vocabulary is learned, so parameters alone do not name the result.
        return None

    def _pool(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return pool_bag_of_features(
            tokens,
            mask,
            vocabulary=as_tensor(self.vocabulary_),
            assignment=self.assignment,
            alpha=self._sharpness(),
            pool=self.pool,
            norm=self.norm,
            idf=as_tensor(self.idf_) if self.tfidf else None,
        )

    @property
    def _n_features_out(self) -> int:
        return len(self.vocabulary_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        return tags
