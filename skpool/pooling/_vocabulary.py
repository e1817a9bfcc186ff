# SPDX-License-Identifier: BSD-3-Clause
"""Vocabularies of tokens: how words are learned from a sample, and which word a token belongs to.

VLAD, Fisher vectors and bags of features describe a sample by the words near its tokens. Learning
works on a bounded sample of tokens on the host; assignment works on blocks of tokens where they
lie, by one product with all words.
"""

import warnings
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.parallel import _threadpool_controller_decorator

from skpool.statistics import RunningMoments
from skpool.stores import TokenArray
from skpool.utils import all_finite, as_tensor, full_float32, widened

__all__ = [
    "Words",
    "assign_hard",
    "assign_soft",
    "check_enough_tokens",
    "check_range",
    "drawn_features",
    "fit_vocabulary",
    "inner_tokens",
    "mean_gap",
    "mean_smallest_distance",
    "principal_axes",
    "rotated",
    "window_means",
    "word_scores",
]

# Up to so many tokens every step of k-means sees all of them; above, mini-batches do.
_ALL_AT_ONCE = 2**14
_BATCH = 4096
# Bytes of scores that are held at a time while a sample is compared with the words.
_SCORE_BYTES = 2**25


class Words(NamedTuple):
    """Words as products with tokens need them.

    Attributes
    ----------
    columns : tensor of shape (d, K)
        Twice the words.
    bias : tensor of shape (K,)
        Minus their squared norms.
    """

    columns: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, words: torch.Tensor) -> "Words":
        """Prepare words, a tensor of shape (K, d)."""
        return cls((2 * words).T.contiguous(), -words.square().sum(dim=1))


def word_scores(
    tokens: torch.Tensor, words: Words, *, scale: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Nearness of tokens and words, :math:`2 \langle x, c\rangle - |c|^2`.

    It is the negative squared distance but for :math:`|x|^2`, which all words share.

    Parameters
    ----------
    tokens : tensor of shape (..., d)
    words : Words
        K of them.
    scale : tensor of shape (..., 1), default=None
        What tokens are to be multiplied by.

    Returns
    -------
    scores : tensor of shape (..., K)
    """
    flat = tokens.flatten(0, -2)
    if scale is None:
        scores = torch.addmm(words.bias, flat, words.columns)
    else:
        products = torch.mm(flat, words.columns)
        scores = torch.addcmul(words.bias, products, scale.flatten(0, -2), out=products)
    return scores.unflatten(0, tokens.shape[:-1])


def check_range(values: torch.Tensor) -> None:
    """Refuse tokens that have made results infinite or NaN.

    Parameters
    ----------
    values : tensor
        What was computed of finite tokens.

    Raises
    ------
    ValueError
        A value is infinite or NaN.
    """
    if not all_finite(values):
        dtype = str(values.dtype).removeprefix("torch.")
        raise ValueError(
            f"Tokens of X are too large for products in {dtype}; scale them down, for example to "
            "unit length by L2Normalizer."
        )


def assign_hard(scores: torch.Tensor) -> torch.Tensor:
    """One for the word of the highest score, the first of equal ones, and zero for the others.

    Parameters
    ----------
    scores : tensor of shape (..., K)

    Returns
    -------
    codes : tensor of shape (..., K)

    Raises
    ------
    ValueError
        The scores do not tell, because they are infinite or NaN.
    """
    best = scores.amax(dim=-1, keepdim=True)
    codes = torch.ge(scores, best, out=torch.empty_like(scores))
    if float(codes.sum()) != best.numel():
        # Several words are equally near; to search for the first takes ten times as long.
        check_range(best)
        codes.zero_().scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
    return codes


def assign_soft(scores: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """Softmax of the scores times `alpha`; `scores` is overwritten.

    Parameters
    ----------
    scores : tensor of shape (..., K)
    alpha : float
        Any positive number; so large a one that it overflows gives all weight to the best word.

    Returns
    -------
    codes : tensor of shape (..., K)
        The memory of `scores`.
    """
    # The largest score is taken off first: infinity times a difference of zero is no number.
    scores.sub_(scores.amax(dim=-1, keepdim=True)).mul_(min(alpha, torch.finfo(scores.dtype).max))
    scores.exp_()
    return scores.div_(scores.sum(dim=-1, keepdim=True))


def check_enough_tokens(name: str, n_words: int, n_tokens: int) -> None:
    """Refuse a vocabulary that is larger than the sample which it is learned from.

    Parameters
    ----------
    name : str
        The parameter that says how many words there shall be.
    n_words, n_tokens : int

    Raises
    ------
    ValueError
        There are fewer tokens than words.
    """
    if n_words > n_tokens:
        raise ValueError(
            f"{name}={n_words} is more than the {n_tokens} sampled tokens of X; ask for fewer, "
            "give more samples, or raise max_tokens."
        )


def principal_axes(sample: torch.Tensor, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a sample of tokens, and its leading principal axes.

    Parameters
    ----------
    sample : tensor of shape (n, d)
    n_components : int
        Axes at most: there are no more than `d`, nor than the rank of the sample.

    Returns
    -------
    mean : ndarray of shape (d,)
    axes : ndarray of shape (k, d)
        Orthonormal, by descending variance, the largest loading of each positive.

    Notes
    -----
    Moments are summed and decomposed in float64, so a mean far from zero costs no digits.
    """
    moments = RunningMoments(product_dtype="float64").update(sample)
    values, vectors = scipy.linalg.eigh(moments.covariance())
    tolerance = max(sample.shape) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    k = min(n_components, max(1, int((values > tolerance).sum())))
    axes = vectors[:, ::-1][:, :k].T
    # A decomposition leaves the sign of an axis open.
    largest = axes[np.arange(k), np.abs(axes).argmax(axis=1)]
    return moments.mean_, axes * np.where(largest < 0, -1.0, 1.0)[:, None]


def rotated(sample: torch.Tensor, mean: np.ndarray, axes: np.ndarray) -> torch.Tensor:
    """Tokens on principal axes.

    Parameters
    ----------
    sample : tensor of shape (n, d)
    mean : ndarray of shape (d,)
    axes : ndarray of shape (k, d)

    Returns
    -------
    rotated : tensor of shape (n, k)
    """
    matrix = as_tensor(axes).to(sample).T
    with full_float32():
        return (sample - as_tensor(mean).to(sample)) @ matrix


# Partial sums of several threads would be added in the order in which the threads end.
@_threadpool_controller_decorator(limits=1, user_api="openmp")
def _lloyd(rows: np.ndarray, **params: object) -> np.ndarray:
    return KMeans(n_init=1, **params).fit(rows).cluster_centers_


def _mini_batches(rows: np.ndarray, *, n_clusters: int, random_state: object) -> np.ndarray:
    kmeans = MiniBatchKMeans(
        n_clusters, batch_size=max(_BATCH, 2 * n_clusters), n_init=1, random_state=random_state
    )
    words = kmeans.fit(rows).cluster_centers_
    if _n_distinct(words) < n_clusters:
        # Batches hold some tokens twice, from which words may start; a step with all tokens gives
        # the words that have none another place.
        words = _lloyd(rows, n_clusters=n_clusters, init=words, max_iter=1)
    return words


def _n_distinct(words: np.ndarray) -> int:
    return len(np.unique(words.astype(np.float32), axis=0))


def fit_vocabulary(sample: torch.Tensor, *, n_words: int, random_state: object) -> np.ndarray:
    """Words of a sample of tokens, by k-means in float32.

    Parameters
    ----------
    sample : tensor of shape (n, d)
        At least `n_words` tokens, which are not changed.
    n_words : int
    random_state : int, RandomState or None

    Returns
    -------
    words : ndarray of shape (n_words, d), float32

    Warns
    -----
    UserWarning
        The tokens are too much alike for so many words; some words are the same then, and
        nothing is assigned to the later ones.

    Notes
    -----
    Lloyd's algorithm for up to 16384 tokens, mini-batches for more, from one k-means++ start.
    Memory: two copies of the sample in float32.
    """
    mean = sample.mean(dim=0, keepdim=True, dtype=torch.float64)
    # Distances are differences of squares; a mean far from zero would leave them few digits.
    rows = (sample - mean.to(sample)).cpu()
    scale = float(rows.abs().max()) or 1.0
    rows = rows.div_(scale).float().numpy()
    fit = _lloyd if len(rows) <= _ALL_AT_ONCE else _mini_batches
    with warnings.catch_warnings():
        # It says that tokens are duplicates, which is said below for both algorithms.
        warnings.simplefilter("ignore", ConvergenceWarning)
        words = fit(rows, n_clusters=n_words, random_state=random_state).astype(np.float64)
    n_distinct = _n_distinct(words)
    if n_distinct < n_words:
        warnings.warn(
            f"Only {n_distinct} of the {n_words} words are distinct, as the sampled tokens are too "
            "much alike; ask for fewer words.",
            UserWarning,
            stacklevel=2,
        )
    return (words * scale + mean.cpu().numpy()).astype(np.float32)


def _best_scores(sample: torch.Tensor, words: np.ndarray, n_best: int) -> torch.Tensor:
    """The highest scores of every token as minus squared distances, (n, n_best)."""
    center = words.mean(axis=0, dtype=np.float64)
    near = Words.of(as_tensor(words - center).to(sample))
    shift = as_tensor(center).to(sample)
    rows = max(1, _SCORE_BYTES // (len(words) * sample.element_size()))
    best = []
    with full_float32():
        for part in sample.split(rows):
            x = part - shift
            scores = word_scores(x, near).topk(n_best, dim=1).values
            best.append(scores - x.square().sum(dim=1, keepdim=True))
    return torch.cat(best)


def mean_gap(sample: torch.Tensor, words: np.ndarray) -> float:
    """Mean difference of the two smallest squared distances of tokens to words.

    Parameters
    ----------
    sample : tensor of shape (n, d)
    words : ndarray of shape (K, d)
        Two at least.

    Returns
    -------
    gap : float
    """
    best = _best_scores(sample, words, 2).cpu().double()
    return float((best[:, 0] - best[:, 1]).mean())


def mean_smallest_distance(sample: torch.Tensor, words: np.ndarray) -> float:
    """Mean squared distance of tokens to the nearest of the words.

    Parameters
    ----------
    sample : tensor of shape (n, d)
    words : ndarray of shape (K, d)

    Returns
    -------
    distance : float
    """
    # A token that is a word may come out a little below zero.
    return float(-_best_scores(sample, words, 1).cpu().double().clamp_max(0.0).mean())


# Words from places on a grid: what the queue of `BagOfFeaturesPooling` takes.


def inner_tokens(tokens: TokenArray, border: int) -> TokenArray:
    """The patches without rows and columns at the edges of their grid, as lazy as before.

    Parameters
    ----------
    tokens : TokenArray
    border : int
        Rows and columns at each edge; 0 gives the tokens as they are.

    Returns
    -------
    inner : TokenArray

    Raises
    ------
    ValueError
        The tokens have no grid, or nothing would be left of it.
    """
    if border == 0:
        return tokens
    if tokens.grid is None:
        raise ValueError(
            f"border={border} needs tokens on a grid, and these have none; give maps (n_samples, "
            "height, width, n_features), or border=0."
        )
    height, width = tokens.grid
    if 2 * border >= min(height, width):
        raise ValueError(
            f"border={border} leaves nothing of a grid of {height} x {width}; give a smaller one."
        )
    rows, columns = np.arange(border, height - border), np.arange(border, width - border)
    inside = torch.from_numpy((rows[:, None] * width + columns).ravel())
    return tokens.patches.map(
        lambda values, mask: values[:, inside.to(values.device)],
        n_tokens=len(inside),
        remask=lambda mask: mask[:, inside.to(mask.device)],
        grid=(len(rows), len(columns)),
    )


def _windows(tokens: TokenArray, n_tokens: int, side: int) -> np.ndarray:
    """Numbers of the tokens of every window, (n_windows, side ** 2)."""
    if side == 1:
        return np.arange(n_tokens)[:, None]
    if tokens.grid is None:
        raise ValueError(
            f"local_average={side} needs tokens on a grid, and these have none; give maps "
            "(n_samples, height, width, n_features), or local_average=1."
        )
    if side > min(tokens.grid):
        raise ValueError(
            f"local_average={side} is larger than the grid of {tokens.grid[0]} x "
            f"{tokens.grid[1]}; give a smaller one."
        )
    numbers = np.arange(tokens.grid[0] * tokens.grid[1]).reshape(tokens.grid)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, (side, side))
    return windows.reshape(-1, side**2) + tokens.n_prefix_tokens


def window_means(
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    windows: torch.Tensor,
    places: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the real tokens of one window of every sample.

    Parameters
    ----------
    tokens : tensor of shape (n, L, d)
    mask : tensor of shape (n, L), bool, or None
    windows : tensor of shape (n_windows, m), int
        Numbers of the tokens of every window.
    places : tensor of shape (n,)
        Between 0 and 1: which of the windows that have a real token it is.

    Returns
    -------
    means : tensor of shape (n, d)
    known : tensor of shape (n,), bool
        Whether there was such a window.
    """
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    usable = mask[:, windows].any(dim=2)
    n_usable = usable.sum(dim=1)
    number = (places * n_usable).long()
    chosen = (usable.cumsum(dim=1) > number[:, None]).int().argmax(dim=1)
    inside = windows[chosen]
    samples = torch.arange(len(tokens), device=tokens.device)[:, None]
    real = mask[samples, inside][..., None]
    values = widened(tokens[samples, inside]).where(real, 0.0)
    return values.sum(dim=1) / real.sum(dim=1).clamp_min(1), n_usable > 0


def drawn_features(
    tokens: TokenArray, places: np.ndarray, *, side: int, batch_size: int | None = None
) -> np.ndarray:
    """One feature of every sample that has a real token, in the order of the samples.

    Parameters
    ----------
    tokens : TokenArray
    places : ndarray of shape (n_samples,)
        Between 0 and 1: where in a sample its feature is taken.
    side : int
        Of the windows whose mean is a feature.
    batch_size : int, default=None
        Rows of an array that are read at a time.

    Returns
    -------
    features : ndarray of shape (n_features_found, n_features)
    """
    found: dict[int, np.ndarray] = {}
    for positions, values, mask in tokens.iter_batches(batch_size):
        windows = torch.from_numpy(_windows(tokens, values.shape[1], side)).to(values.device)
        means, known = window_means(
            values,
            mask,
            windows=windows,
            places=torch.from_numpy(places[positions]).to(values.device),
        )
        # A network may give NaN for what it could not read.
        known &= torch.isfinite(means).all(dim=1)
        kept = known.cpu().numpy()
        found.update(zip(positions[kept].tolist(), means.cpu().numpy()[kept], strict=True))
    return np.array([found[i] for i in sorted(found)]).reshape(len(found), tokens.shape[2])
