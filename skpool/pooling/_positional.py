# SPDX-License-Identifier: BSD-3-Clause
"""Taking position out of tokens, before they are pooled or compared.

Tokens of a transformer say where they are as well as what they are. `PositionalDebias` removes the
directions from which position can be read; `PositionalMeanRemoval` subtracts what all samples have
in common at a place. Both learn from sums over all tokens, and act on patches alone.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.pooling._kernels import Mask, _filled
from skpool.pooling._token_transformer import BaseTokenTransformer
from skpool.statistics import RunningMoments
from skpool.stores import TokenArray
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_finite,
    full_float32,
    numpy_or_tensor,
    widened,
)

__all__ = ["PositionalDebias", "PositionalMeanRemoval", "position_context_decomposition"]

# Rows of the products that are summed, whatever the batches in which tokens come.
_BLOCK_ROWS = 8192


# What position and tokens have to do with each other, from sums alone.


class _Sums(NamedTuple):
    """Sums of products around the means, over all tokens.

    Attributes
    ----------
    tokens : ndarray of shape (d, d)
    cross : ndarray of shape (d, p)
        Of tokens with positions.
    positions : ndarray of shape (p,)
        Squares of the positions.
    """

    tokens: np.ndarray
    cross: np.ndarray
    positions: np.ndarray


def _spectrum(scatter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues above rounding and their eigenvectors, (r,) and (d, r)."""
    values, vectors = scipy.linalg.eigh(scatter)
    keep = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return values[keep], vectors[:, keep]


def _regression(sums: _Sums, alpha: float) -> tuple[np.ndarray, float]:
    """Least squares of position on tokens, (d, p), and its R^2, the mean over the coordinates."""
    values, vectors = _spectrum(sums.tokens)
    ridge = alpha * np.trace(sums.tokens) / len(sums.tokens)
    weights = vectors @ ((vectors.T @ sums.cross) / (values + ridge)[:, None])
    explained = 2 * (weights * sums.cross).sum(0) - (weights * (sums.tokens @ weights)).sum(0)
    return weights, float((explained / sums.positions).mean())


def _without(matrix: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The rows of a matrix (d, k) less their part in the span of an orthonormal basis (d, r)."""
    return matrix - basis @ (basis.T @ matrix)


def rasa_projection(
    sums: _Sums, *, n_iter: int = 9, tol: float = 1e-3, alpha: float = 1e-6
) -> tuple[np.ndarray, list[float]]:
    """Remove the directions that predict position, and again, until it cannot be predicted.

    Parameters
    ----------
    sums : _Sums
    n_iter : int, default=9
        Most rounds; each removes as many directions as there are coordinates.
    tol : float, default=1e-3
        R^2 below which no further round is made.
    alpha : float, default=1e-6
        Ridge of the regression, as a share of the mean variance.

    Returns
    -------
    projection : ndarray of shape (d, d)
        Symmetric; rows are multiplied by it.
    r2 : list of float
        Before the first round, and after each.
    """
    basis = np.zeros((len(sums.tokens), 0))
    weights, first = _regression(sums, alpha)
    r2 = [first]
    while r2[-1] >= tol and len(r2) <= n_iter and basis.shape[1] < len(basis):
        # Against those removed before, so that the product of all rounds stays a projection.
        found = scipy.linalg.orth(_without(weights, basis))[:, : len(basis) - basis.shape[1]]
        if not found.shape[1]:
            break
        basis = np.hstack([basis, found])
        rest = _without(_without(sums.tokens, basis).T, basis)
        left = _Sums(rest, _without(sums.cross, basis), sums.positions)
        weights, after = _regression(left, alpha)
        r2.append(after)
    return np.eye(len(basis)) - basis @ basis.T, r2


def leace_projection(sums: _Sums) -> tuple[np.ndarray, list[float]]:
    """Remove every linear trace of position with the least change of the tokens.

    Parameters
    ----------
    sums : _Sums

    Returns
    -------
    projection : ndarray of shape (d, d)
        Not symmetric; rows less their mean are multiplied by it.
    r2 : list of float
        Before and after.
    """
    values, vectors = _spectrum(sums.tokens)
    whiten, colour = vectors / np.sqrt(values), vectors * np.sqrt(values)
    found = scipy.linalg.orth(whiten.T @ sums.cross)
    projection = np.eye(len(vectors)) - (whiten @ found) @ (colour @ found).T
    left = _Sums(projection.T @ sums.tokens @ projection, projection.T @ sums.cross, sums.positions)
    return projection, [_regression(sums, 0.0)[1], _regression(left, 0.0)[1]]


# Reading tokens with their positions.


def _grid_positions(grid: tuple[int, int]) -> np.ndarray:
    """Rows and columns of a grid from 0 to 1, (height * width, 2)."""
    axes = [np.arange(n) / max(n - 1, 1) for n in grid]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def _in_blocks_of(parts: Iterable[torch.Tensor], n_rows: int) -> Iterator[torch.Tensor]:
    """The same rows in blocks whose bounds do not depend on how they came."""
    rest = None
    for part in parts:
        rest = part if rest is None else torch.cat([rest, part])
        *blocks, rest = rest.split(n_rows)
        yield from blocks
    if rest is not None and len(rest):
        yield rest


def _known(tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Which tokens are real and finite, (n, L); those of a network may be neither."""
    finite = torch.isfinite(tokens).all(dim=2)
    return finite if mask is None else finite & mask


def _with_positions(
    tokens: TokenArray, positions: np.ndarray, batch_size: int
) -> Iterator[torch.Tensor]:
    """Real tokens with their positions beside them, (m, d + p), in the widest float type."""
    for _, values, mask in tokens.iter_batches(batch_size):
        wide = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
        places = as_tensor(positions[: wide.shape[1]]).to(wide).expand(len(wide), -1, -1)
        yield torch.cat([wide, places], dim=2)[_known(values, mask)]


def _patches_of(tokens: TokenArray) -> TokenArray:
    if tokens.shape[1] == tokens.n_prefix_tokens:
        raise ValueError(
            f"All {tokens.shape[1]} tokens of a sample are prefix tokens, which have no position; "
            "give tokens of patches."
        )
    return tokens.patches if tokens.n_prefix_tokens else tokens


class _PositionStep(BaseTokenTransformer):
    """Acts on the patches and leaves the class token and registers as they are."""

    def _check_ready(self) -> None:
        check_is_fitted(self)

    def _on_patches(self, patches: torch.Tensor, **options) -> torch.Tensor:
        """Patches (n, L, d) without their position."""
        raise NotImplementedError

    def _map(self, tokens: torch.Tensor, mask: Mask, *, first: int = 0, **options) -> torch.Tensor:
        tokens = _filled(widened(tokens), mask, 0.0)
        patches = self._on_patches(tokens[:, first:], **options)
        return torch.cat([tokens[:, :first], patches], dim=1) if first else patches

    def _mapped(self, tokens: TokenArray) -> TokenArray:
        return tokens.map(partial(self._map, first=tokens.n_prefix_tokens))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        return tags


class PositionalDebias(_PositionStep):
    r"""Remove from tokens the directions in which their position can be read.

    The positions p of patches, rows and columns from 0 to 1, are predicted from the tokens x by
    least squares. "rasa" [1]_ removes the directions used, which leaves others that predict less
    well, and repeats:

    .. math:: W = G^{-1} B, \quad Q = \mathrm{orth}(W), \quad x \leftarrow x (I - Q Q^\top),

    with the scatter G of the tokens and their products B with the positions. "leace" [2]_ removes
    every linear trace of position in one step with the least change of the tokens,

    .. math:: x \leftarrow m + (x - m)(I - S^{-1/2} Q Q^\top S^{1/2}), \quad
        Q = \mathrm{orth}(S^{-1/2} S_{xp}) .

    Parameters
    ----------
    method : {"rasa", "leace"}, default="rasa"
        An orthogonal projection of lower rank, round after round; or the oblique one of least
        change.
    n_iter : int, default=9
        Most rounds of "rasa", each of which costs as many directions as there are coordinates.
    tol : float, default=1e-3
        Share of the variance of the position (R^2) below which "rasa" stops.
    alpha : float, default=1e-6
        Ridge of the regressions of "rasa", as a share of the mean variance of the tokens.
    positions : array-like of shape (n_patches,) or (n_patches, n_coordinates), default=None
        Positions of the patches. None takes those on the grid.
    batch_size : int, default=256
        Rows of a plain array that are read at a time.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a token.
    projection_ : ndarray of shape (n_features, n_features)
        What rows are multiplied by, after `mean_` is taken off for "leace".
    mean_ : ndarray of shape (n_features,)
        Mean of the tokens.
    positional_r2_ : ndarray of shape (n_rounds + 1,)
        Share of the variance of the position that the tokens predict, mean over the coordinates:
        before the first round and after each.

    See Also
    --------
    PositionalMeanRemoval : Subtracts what all samples have in common at a place.

    Notes
    -----
    Every direction that is removed carries content too: let `tol` choose the rounds rather than
    `n_iter`, whose default is the published one. Position that enters the tokens non-linearly
    needs more rounds. Class token and registers are neither learned from nor changed. One pass
    over the tokens gathers all sums in float64, O(n T d^2); each round solves for d^3, and
    `transform` is one product, O(n T d^2), while the tokens are read.

    References
    ----------
    .. [1] Venkataramanan et al., Franca: Nested Matryoshka Clustering for Scalable Visual
       Representation Learning, 2025. <https://arxiv.org/abs/2507.14137>
    .. [2] Belrose et al., LEACE: Perfect Linear Concept Erasure in Closed Form, NeurIPS 2023.
       <https://arxiv.org/abs/2306.03819>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import PositionalDebias
    >>> maps = np.random.default_rng(0).normal(size=(200, 3, 3, 4))
    >>> maps[..., 0] += 10 * np.arange(3)  # the column
    >>> debias = PositionalDebias(tol=0.1).fit(maps)
    >>> debias.positional_r2_.round(1)
    array([0.5, 0. ])
    >>> bool(abs(debias.transform(maps)[..., 0]).max() < 1)
    True
    """

    _parameter_constraints: dict = {
        **BaseTokenTransformer._parameter_constraints,
        "method": [StrOptions({"rasa", "leace"})],
        "n_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "positions": ["array-like", None],
    }

    def __init__(
        self,
        method: str = "rasa",
        *,
        n_iter: int = 9,
        tol: float = 1e-3,
        alpha: float = 1e-6,
        positions=None,
        batch_size: int = 256,
    ):
        self.method = method
        self.n_iter = n_iter
        self.tol = tol
        self.alpha = alpha
        self.positions = positions
        self.batch_size = batch_size

    def _positions_of(self, patches: TokenArray) -> np.ndarray:
        """Coordinates of the patches that differ between them, (n_patches, n_coordinates)."""
        if self.positions is None and patches.grid is None:
            raise ValueError(
                "These tokens have no grid to take positions from; give positions, or maps "
                "(n_samples, height, width, n_features)."
            )
        if self.positions is None:
            positions = _grid_positions(patches.grid)
        else:
            positions = np.asarray(self.positions, dtype=np.float64)
            positions = positions[:, None] if positions.ndim == 1 else positions
            fits = len(positions) == patches.shape[1]
            # The longest sample differs from fold to fold.
            fits |= patches.mask is not None and len(positions) > patches.shape[1]
            if positions.ndim != 2 or not fits or not np.isfinite(positions).all():
                raise ValueError(
                    f"positions has shape {np.shape(self.positions)}; give finite positions of "
                    f"the {patches.shape[1]} patches, a number or a row of coordinates each."
                )
        varies = np.ptp(positions[: patches.shape[1]], axis=0) > 0
        if not varies.any():
            raise ValueError("All positions are equal; give tokens of more than one place.")
        return positions[:, varies]

    def _fit_tokens(self, tokens: TokenArray) -> None:
        patches = _patches_of(tokens)
        positions = self._positions_of(patches)
        d = patches.shape[2]
        moments = RunningMoments(product_dtype="float64")
        rows = _with_positions(patches, positions, self.batch_size)
        for block in _in_blocks_of(rows, _BLOCK_ROWS):
            moments.update(block)
        if not moments.n_samples:
            raise ValueError("X has no real token to learn from; give samples that have some.")
        scatter = moments.scatter_
        spread = np.diag(scatter)[d:]
        # What a mean of equal positions is off by is no spread.
        spread = np.where(spread > 1e-20 * moments.n_samples * moments.mean_[d:] ** 2, spread, 0.0)
        if not spread.any():
            raise ValueError("All real tokens stand at one place; give tokens of several places.")
        sums = _Sums(scatter[:d, :d], scatter[:d, d:], np.where(spread > 0, spread, np.inf))
        if self.method == "leace":
            self.projection_, r2 = leace_projection(sums)
        else:
            options = {"n_iter": self.n_iter, "tol": self.tol, "alpha": self.alpha}
            self.projection_, r2 = rasa_projection(sums, **options)
        self.mean_, self.positional_r2_ = moments.mean_[:d].copy(), np.array(r2)

    def _on_patches(self, patches: torch.Tensor, **options) -> torch.Tensor:
        projection = as_tensor(self.projection_).to(patches)
        with full_float32():
            if self.method == "rasa":
                return patches @ projection
            mean = as_tensor(self.mean_).to(patches)
            return (patches - mean) @ projection + mean


# What tokens at one place have in common.


class PositionContext(NamedTuple):
    """The parts of tokens that `position_context_decomposition` tells apart; they add up to them.

    Attributes
    ----------
    mean : ndarray or tensor of shape (n_features,)
        Mean of all tokens.
    position : ndarray or tensor of shape (n_tokens, n_features)
        Mean of each place over the samples, less `mean`.
    context : ndarray or tensor of shape (n_samples, n_features)
        Mean of each sample over the places, less `mean`.
    residual : ndarray or tensor of shape (n_samples, n_tokens, n_features)
        What is left.
    """

    mean: ArrayLike
    position: ArrayLike
    context: ArrayLike
    residual: ArrayLike


def position_context_decomposition(H: ArrayLike) -> PositionContext:
    r"""Split tokens into a mean, their position, their context, and what is left.

    The two-way analysis of variance of [1]_: token t of sample c is

    .. math:: h_{ct} = \mu + \mathrm{pos}_t + \mathrm{ctx}_c + \mathrm{resid}_{ct},

    where the squares of the parts add up to those of :math:`h_{ct} - \mu` over all tokens.

    Parameters
    ----------
    H : array-like or tensor of shape (n_samples, n_tokens, n_features)
        Tokens without a mask.

    Returns
    -------
    parts : PositionContext
        Named tuple (mean, position, context, residual), in the float type of H.

    References
    ----------
    .. [1] Song, Zhong, Uncovering hidden geometry in Transformers via disentangling position and
       context, 2023. <https://arxiv.org/abs/2310.04861>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import position_context_decomposition
    >>> tokens = np.array([[[1.0], [2.0]], [[3.0], [6.0]]])
    >>> mean, position, context, residual = position_context_decomposition(tokens)
    >>> mean, position.ravel(), context.ravel()
    (array([3.]), array([-1.,  1.]), array([-1.5,  1.5]))
    """
    if not isinstance(H, torch.Tensor):
        H = np.asarray(H)
        H = H if H.dtype in (np.float16, np.float32, np.float64) else H.astype(np.float64)
    if H.ndim != 3 or 0 in H.shape:
        raise ValueError(
            f"H has shape {tuple(H.shape)}; give tokens (n_samples, n_tokens, n_features)."
        )
    check_finite(H, name="H")
    tokens, restore = numpy_or_tensor(H)
    places = tokens.mean(dim=0)
    mean = places.mean(dim=0)
    position, context = places - mean, tokens.mean(dim=1) - mean
    residual = tokens - mean - position - context[:, None]
    return PositionContext(*map(restore, (mean, position, context, residual)))


def _on_grid(means: np.ndarray, grid: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation of means (height * width, d) between the centres of the cells."""
    maps = torch.from_numpy(means.T.reshape(1, -1, *grid).copy())
    maps = torch.nn.functional.interpolate(maps, size=target, mode="bilinear", align_corners=False)
    return maps[0].flatten(1).T.numpy()


class PositionalMeanRemoval(_PositionStep):
    r"""Subtract from every token what the tokens at its place have in common.

    With the mean :math:`\mu` of all tokens and the mean :math:`\mu_t` of those at place t,

    .. math:: x_{ct} \leftarrow x_{ct} - \mu - (\mu_t - \mu) .

    Parameters
    ----------
    remove : tuple of {"mean", "position"} or one of them, default=("mean", "position")
        What to subtract: :math:`\mu`, :math:`\mu_t - \mu`, or both.
    batch_size : int, default=256
        Rows of a plain array that are read at a time.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a token.
    mean_ : ndarray of shape (n_features,)
        Mean of all tokens.
    position_means_ : ndarray of shape (n_patches, n_features)
        Mean at each place; `mean_` at places where no sample has a token.
    grid_ : tuple of 2 ints or None
        Rows and columns of the places.

    See Also
    --------
    PositionalDebias : Removes the directions that tell the position.
    position_context_decomposition : The parts of given tokens.

    Notes
    -----
    Tokens on another grid than the fitted one get the means interpolated bilinearly. Without a
    grid their number must be that of `fit`; ragged samples, whose places count from the left, may
    be shorter. Class token and registers are neither learned from nor changed. Cost: one pass over
    the tokens to learn, O(n T d), and one while they are read; memory O(T d).

    References
    ----------
    .. [1] Song, Zhong, Uncovering hidden geometry in Transformers via disentangling position and
       context, 2023. <https://arxiv.org/abs/2310.04861>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import PositionalMeanRemoval
    >>> tokens = np.array([[[1.0], [2.0]], [[3.0], [6.0]]])
    >>> PositionalMeanRemoval().fit_transform(tokens).ravel()
    array([-1., -2.,  1.,  2.])
    """

    _parameter_constraints: dict = {
        **BaseTokenTransformer._parameter_constraints,
        "remove": [StrOptions({"mean", "position"}), tuple],
    }

    def __init__(self, remove: tuple | str = ("mean", "position"), *, batch_size: int = 256):
        self.remove = remove
        self.batch_size = batch_size

    def _parts(self) -> tuple:
        return self.remove if isinstance(self.remove, tuple) else (self.remove,)

    def _check_parameters(self, tokens: TokenArray) -> None:
        if not self._parts() or not all(part in ("mean", "position") for part in self._parts()):
            raise ValueError(
                f"remove={self.remove!r} is not valid; give 'mean', 'position' or a tuple of them."
            )

    def _fit_tokens(self, tokens: TokenArray) -> None:
        patches = _patches_of(tokens)
        total, count = _place_sums(patches, self.batch_size)
        if not count.any():
            raise ValueError("X has no real token to learn from; give samples that have some.")
        self.mean_ = total.sum(axis=0) / count.sum()
        means = total / np.maximum(count, 1)[:, None]
        self.position_means_ = np.where(count[:, None] > 0, means, self.mean_)
        self.grid_ = patches.grid

    def _offsets(self, tokens: TokenArray) -> np.ndarray:
        """What is subtracted at each place, (n_patches, n_features)."""
        n_patches = tokens.shape[1] - tokens.n_prefix_tokens
        mean = self.mean_ if "mean" in self._parts() else np.zeros_like(self.mean_)
        if "position" not in self._parts():
            return np.broadcast_to(mean, (n_patches, len(mean))).copy()
        return self._means_of(n_patches, tokens) - self.mean_ + mean

    def _means_of(self, n_patches: int, tokens: TokenArray) -> np.ndarray:
        """The means at the places of the tokens."""
        if self.grid_ is not None and tokens.grid not in (None, self.grid_):
            return _on_grid(self.position_means_, self.grid_, tokens.grid)
        n_known = len(self.position_means_)
        if n_patches == n_known:
            return self.position_means_
        if n_patches < n_known and tokens.mask is not None and self.grid_ is None:
            return self.position_means_[:n_patches]
        raise ValueError(
            f"X has {n_patches} patches a sample, and PositionalMeanRemoval was fitted on "
            f"{n_known}; without a grid in both there is nothing to interpolate on: give as many, "
            "or maps (n_samples, height, width, n_features)."
        )

    def _mapped(self, tokens: TokenArray) -> TokenArray:
        first, offsets = tokens.n_prefix_tokens, as_tensor(self._offsets(tokens))
        return tokens.map(partial(self._map, first=first, offsets=offsets))

    def _on_patches(self, patches: torch.Tensor, **options) -> torch.Tensor:
        # Ragged tokens are as many as the longest of the batch has.
        return patches - options["offsets"][: patches.shape[1]].to(patches)


def _place_sums(patches: TokenArray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the real tokens at every place, (L, d), and their number, (L,)."""
    total = count = None
    for _, values, mask in patches.iter_batches(batch_size):
        wide = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
        if total is None:
            total = wide.new_zeros(patches.shape[1:])
            count = torch.zeros(len(total), dtype=torch.long, device=wide.device)
        known, n = _known(values, mask), values.shape[1]
        count[:n] += known.sum(dim=0)
        # One by one, so that the sum does not depend on the batches.
        for sample in _filled(wide, known, 0.0):
            total[:n] += sample
    if total is None:
        return np.zeros(patches.shape[1:]), np.zeros(patches.shape[1], dtype=np.int64)
    return total.cpu().numpy(), count.cpu().numpy()
