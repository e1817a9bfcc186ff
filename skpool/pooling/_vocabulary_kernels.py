# SPDX-License-Identifier: BSD-3-Clause
"""Poolings by a vocabulary as pure functions: tokens (n, L, d) and a mask in, vectors out.

Each compares the tokens of a block of samples with all words in one product, sums what belongs to
a word (by one product per sample where tokens have weights, by addition where they have a word),
and normalises in the memory of the result, while the block is still in cache. Half precision is
widened first, and masked tokens are replaced, never multiplied.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from skpool.pooling._vocabulary import (
    Words,
    assign_hard,
    assign_soft,
    check_range,
    word_scores,
)
from skpool.utils import full_float32, unit_rows, widened

__all__ = ["pool_bag_of_features", "pool_fisher", "pool_vlad"]

Mask = torch.Tensor | None
Projection = tuple[torch.Tensor, torch.Tensor] | None

# Bytes of the largest array of a block; no more than the caches of two or three cores hold.
_BLOCK_BYTES = 2**23
# Norms whose squares neither overflow nor vanish in float32; other tokens take a longer way.
_SAFE_NORMS = (1e-15, 1e15)
# A cluster without this much mass is empty: softmax gives every word a little of every token.
_EMPTY = 1e-12
# A center that is this many times farther away than words are from it is taken off token by token:
# products that are much larger than their difference lose its digits.
_FAR = 30.0
# Residuals that are smaller than this share of their word are what rounding to float32 leaves.
_ROUNDING = 32 * torch.finfo(torch.float32).eps


def _fill_blocks(
    fill: Callable[[torch.Tensor, Mask, torch.Tensor], None],
    tokens: torch.Tensor,
    mask: Mask,
    *,
    width: int,
    n_words: int,
) -> torch.Tensor:
    """Vectors (n, width), which ``fill(tokens, mask, out)`` writes for some rows at a time."""
    like = widened(tokens[:0])
    out = torch.empty((len(tokens), width), dtype=like.dtype, device=like.device)
    row_bytes = tokens.shape[1] * max(tokens.shape[2], n_words) * like.element_size()
    rows = max(1, _BLOCK_BYTES // max(1, row_bytes))
    if tokens.device.type != "cpu":
        rows = max(1, len(tokens))
    with full_float32():
        for start in range(0, len(tokens), rows):
            part = slice(start, start + rows)
            fill(tokens[part], None if mask is None else mask[part], out[part])
    return out


class _Space(NamedTuple):
    """Where tokens meet words: of unit length or as they are, around a center, and on some axes."""

    normalize: bool
    before: torch.Tensor | None  # (d,), taken off before the axes
    axes: torch.Tensor | None  # (d, k)
    after: torch.Tensor | None  # (k,), taken off after them

    @classmethod
    def of(
        cls,
        like: torch.Tensor,
        *,
        normalize: bool = False,
        center: torch.Tensor,
        axes: torch.Tensor | None = None,
        size: float = 0.0,
    ) -> "_Space":
        """Prepare a center and axes given in float64; `size` is how far from it tokens are."""
        if axes is None:
            # Of tokens of unit length nothing is taken off: they need not be copied then.
            return cls(normalize, None if normalize else center.to(like), None, None)
        columns = axes.to(like).contiguous()
        if normalize or float(center.norm()) <= _FAR * size:
            return cls(normalize, None, columns, (center @ axes).to(like))
        # What rounding leaves of the center is taken off afterwards.
        rest = center - _rounded(center, like)
        return cls(normalize, center.to(like), columns, (rest @ axes).to(like))

    def project(self, tokens: torch.Tensor, mask: Mask) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (n, L, k), zero where masked, and what they are to be multiplied by, or None."""
        x, scale = widened(tokens), None
        if self.normalize:
            x, scale = _unit_scale(x, mask)
        if self.before is not None:
            x = x - self.before
        if self.axes is not None:
            x = x @ self.axes
            x, scale = x if scale is None else x.mul_(scale), None
        if self.after is not None:
            x.sub_(self.after)
        return x if mask is None else x.masked_fill(~mask[..., None], 0.0), scale


def _unit_scale(x: torch.Tensor, mask: Mask) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens and the factors (n, L, 1) that give them unit length, or None where they have it."""
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    usual = (norms > _SAFE_NORMS[0]) & (norms < _SAFE_NORMS[1])
    if not bool((usual if mask is None else usual | ~mask[..., None]).all()):
        return unit_rows(x), None
    # What is masked is no number perhaps, which zero times a factor would be too.
    return x, torch.where(usual, 1 / norms, 1.0)


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """Parameters are prepared on the host in float64, and rounded once."""
    return tensor.detach().cpu().double()


def _rounded(center: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A center that tokens such as `like` can have, so that words lose the same as they do."""
    return center.to(like.dtype).double()


def _counts(x: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Real tokens of every row, (n, 1), at least 1."""
    if mask is None:
        return x.new_full((len(x), 1), x.shape[1])
    return mask.sum(dim=1, keepdim=True).clamp_min(1).to(x.dtype)


def _signed_power_(x: torch.Tensor, power: float | None) -> None:
    """Replace x by ``sign(x) |x| ** power``."""
    if power is not None and power != 1:
        x.div_(x.abs().clamp_min_(torch.finfo(x.dtype).tiny).pow_(1 - power))


def _unit_(x: torch.Tensor) -> None:
    """Divide the last axis by its norm; what is zero stays zero."""
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    x.div_(torch.where(norms > 0, norms, 1.0))


def _codes(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    mask: Mask,
    *,
    words: Words,
    assignment: str,
    alpha: float,
) -> torch.Tensor:
    """How much of every token belongs to every word, (n, L, K)."""
    scores = word_scores(x, words, scale=scale)
    codes = assign_hard(scores) if assignment == "hard" else assign_soft(scores, alpha=alpha)
    return codes if mask is None else codes.masked_fill_(~mask[..., None], 0.0)


def _residuals_by_product(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    codes: torch.Tensor,
    words: torch.Tensor,
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """Write the sums of residuals (n, K, k) to `out` and return their mass (n, K).

    The codes are overwritten.
    """
    mass = codes.sum(dim=1)
    torch.mul(mass[..., None], words, out=out)
    codes = codes if scale is None else codes.mul_(scale)
    out.baddbmm_(codes.transpose(1, 2), x, beta=-1)
    return mass


def _residuals_by_addition(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    codes: torch.Tensor,
    words: torch.Tensor,
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """The same for hard codes, of which a product would multiply the zeros too.

    On a CPU it takes less than half the time.
    """
    n, _, n_words = codes.shape
    # Word 0 is that of masked tokens, which have no code.
    labels = (codes @ torch.arange(1, n_words + 1, dtype=codes.dtype)).long()
    labels += torch.arange(0, n * (n_words + 1), n_words + 1)[:, None]
    order = labels.flatten().argsort(stable=True)
    counts = torch.bincount(labels.flatten(), minlength=n * (n_words + 1))
    sums = torch.nn.functional.embedding_bag(
        order,
        x.flatten(0, 1),
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=None if scale is None else scale.flatten()[order],
    )
    mass = counts.view(n, -1)[:, 1:].to(x.dtype)
    sums = sums.view(n, n_words + 1, -1)[:, 1:]
    torch.addcmul(sums, mass[..., None], words, value=-1, out=out)
    return mass


def pool_vlad(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    vocabulary: torch.Tensor,
    assignment: str = "hard",
    alpha: float = 1.0,
    normalize_tokens: bool = False,
    projection: Projection = None,
    mass_norm: bool = False,
    power: float | None = None,
    intra_norm: bool = True,
    l2: bool = True,
) -> torch.Tensor:
    """Sums of the residuals of tokens to their words, one after the other.

    Parameters
    ----------
    tokens : tensor of shape (n, L, d)
    mask : tensor of shape (n, L), bool, default=None
    vocabulary : tensor of shape (K, k)
        The words, of the width of the projected tokens.
    assignment : {"hard", "soft"}, default="hard"
        The nearest word, or the softmax of minus `alpha` times the squared distances.
    alpha : float, default=1.0
    normalize_tokens : bool, default=False
        Whether tokens are divided by their norm, before they are projected.
    projection : tuple of tensors of shape (d,) and (d, k), default=None
        What is subtracted from tokens, and the axes that they are projected to.
    mass_norm : bool, default=False
        Whether the sum of a word is divided by how much of the tokens belongs to it.
    power : float, default=None
        Exponent of the magnitudes.
    intra_norm : bool, default=True
        Whether the sum of every word is scaled to unit length.
    l2 : bool, default=True
        Whether the vector is scaled to unit length.

    Returns
    -------
    vectors : tensor of shape (n, K * k)
        Zero at words without tokens, and at words whose tokens equal them up to rounding to
        float32.
    """
    words, like = _exact(vocabulary), widened(tokens[:0])
    if projection is not None:
        center, axes = map(_exact, projection)
    else:
        center, axes = _rounded(words.mean(dim=0), like) * (not normalize_tokens), None
        words = words - center
    lengths = words.norm(dim=1)
    space = _Space.of(
        like, normalize=normalize_tokens, center=center, axes=axes, size=float(lengths.max())
    )
    # Of words among the tokens, far from which the center may lie.
    floors = _ROUNDING * torch.hypot(center.norm(), lengths).to(like)
    words = words.to(like)
    codes_of = partial(_codes, words=Words.of(words), assignment=assignment, alpha=alpha)
    is_quick = assignment == "hard" and tokens.device.type == "cpu"
    add_up = _residuals_by_addition if is_quick else _residuals_by_product

    def fill(block: torch.Tensor, real: Mask, out: torch.Tensor) -> None:
        x, scale = space.project(block, real)
        codes = codes_of(x, scale, real)
        sums = out.view(-1, *words.shape)
        mass = add_up(x, scale, codes, words, out=sums)
        norms = torch.linalg.vector_norm(sums, dim=2)
        check_range(norms)
        known = (mass > _EMPTY) & (norms > mass * floors)
        factors = torch.where(known, 1 / mass if mass_norm else 1.0, 0.0)
        _normalize_sums_(sums, factors, norms, power=power, intra_norm=intra_norm, l2=l2)

    return _fill_blocks(fill, tokens, mask, width=words.numel(), n_words=len(words))


def _normalize_sums_(
    sums: torch.Tensor,
    factors: torch.Tensor,
    norms: torch.Tensor,
    *,
    power: float | None,
    intra_norm: bool,
    l2: bool,
) -> None:
    """Multiply the sums (n, K, k) of norms (n, K) by factors (n, K), and normalise them."""
    if power is not None and power != 1:
        _signed_power_(sums.mul_(factors[..., None]), power)
        norms, factors = torch.linalg.vector_norm(sums, dim=2), torch.ones_like(norms)
    # What is left are factors again, so the sums are gone through once.
    if intra_norm:
        factors = torch.where((factors > 0) & (norms > 0), 1 / norms, 0.0)
    if l2:
        whole = torch.linalg.vector_norm(factors * norms, dim=1, keepdim=True)
        factors = factors / torch.where(whole > 0, whole, 1.0)
    sums.mul_(factors[..., None])


class _Mixture(NamedTuple):
    """A Gaussian mixture with diagonal covariances, as products with (x, x^2) need it.

    The gradient is a sum of the first and second moments of tokens under a component, and of its
    mass; the last five are the factors, which hold the inverted root of the Fisher information.
    """

    constants: torch.Tensor  # (K,)
    slopes: torch.Tensor  # (2 k, K)
    mean_of_first: torch.Tensor  # (K, k), like the following
    mean_of_mass: torch.Tensor
    variance_of_second: torch.Tensor
    variance_of_first: torch.Tensor
    variance_of_mass: torch.Tensor

    @classmethod
    def of(
        cls,
        weights: torch.Tensor,
        means: torch.Tensor,
        variances: torch.Tensor,
        like: torch.Tensor,
    ) -> "_Mixture":
        """Prepare a mixture given in float64 for tokens such as `like`."""
        roots = weights.sqrt()[:, None]
        per_mean = 1 / (roots * variances.sqrt())
        per_variance = 1 / (roots * variances * 2**0.5)
        terms = (
            weights.log() - 0.5 * (variances.log() + means.square() / variances).sum(dim=1),
            torch.cat([means / variances, -0.5 / variances], dim=1).T.contiguous(),
            per_mean,
            -means * per_mean,
            per_variance,
            -2 * means * per_variance,
            (means.square() - variances) * per_variance,
        )
        return cls(*(term.to(like) for term in terms))

    def posteriors(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities (n, L, K) of the components, given tokens and their squares."""
        logits = torch.addmm(self.constants, x.flatten(0, 1), self.slopes)
        return logits.unflatten(0, x.shape[:2]).softmax(dim=2)

    def gradient(
        self,
        posteriors: torch.Tensor,
        x: torch.Tensor,
        parts: tuple[str, ...],
        *,
        out: torch.Tensor,
    ) -> None:
        """Write the gradient (n, len(parts), K, k) to `out`; `posteriors` sum to 1 per sample."""
        mass = posteriors.sum(dim=1)[..., None]
        first, second = torch.bmm(posteriors.transpose(1, 2), x).chunk(2, dim=2)
        for number, part in enumerate(parts):
            if part == "mean":
                torch.mul(first, self.mean_of_first, out=out[:, number])
                out[:, number].addcmul_(mass, self.mean_of_mass)
            else:
                torch.mul(second, self.variance_of_second, out=out[:, number])
                out[:, number].addcmul_(first, self.variance_of_first)
                out[:, number].addcmul_(mass, self.variance_of_mass)


def pool_fisher(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    weights: torch.Tensor,
    means: torch.Tensor,
    variances: torch.Tensor,
    projection: Projection = None,
    parts: tuple[str, ...] = ("mean", "variance"),
    power: float | None = 0.5,
    l2: bool = True,
) -> torch.Tensor:
    """Gradient of the mean log-likelihood of the tokens, in units of its Fisher information.

    Parameters
    ----------
    tokens : tensor of shape (n, L, d)
    mask : tensor of shape (n, L), bool, default=None
    weights : tensor of shape (K,)
        Of the components of a Gaussian mixture.
    means, variances : tensors of shape (K, k)
        Of its components.
    projection : tuple of tensors of shape (d,) and (d, k), default=None
        What is subtracted from tokens, and the axes that they are projected to.
    parts : tuple of {"mean", "variance"}, default=("mean", "variance")
        With respect to which the gradient is taken.
    power : float, default=0.5
        Exponent of the magnitudes; None leaves them as they are.
    l2 : bool, default=True
        Whether the vector is scaled to unit length.

    Returns
    -------
    vectors : tensor of shape (n, len(parts) * K * k)
        Part by part, component by component.
    """
    weights, means, variances = map(_exact, (weights, means, variances))
    like = widened(tokens[:0])
    if projection is not None:
        center, axes = map(_exact, projection)
    else:
        center, axes = _rounded(weights @ means, like), None
        means = means - center
    # The gradient does not depend on the units of the tokens; in these, squares do not overflow.
    units = (weights @ (variances + means.square())).sqrt()
    mixture = _Mixture.of(weights, means / units, variances / units.square(), like)
    columns = None if axes is None else axes / units
    space = _Space.of(like, center=center, axes=columns, size=float(units.norm()))
    rescale = (1 / units).to(like) if axes is None else 1.0

    def fill(block: torch.Tensor, real: Mask, out: torch.Tensor) -> None:
        x, _ = space.project(block, real)
        x = x.mul_(rescale) if axes is None else x
        # First and second powers side by side, so that one product serves both.
        x = torch.cat([x, x.square()], dim=2)
        posteriors = mixture.posteriors(x)
        if real is not None:
            posteriors.masked_fill_(~real[..., None], 0.0)
        sums = out.view(-1, len(parts), *means.shape)
        mixture.gradient(posteriors.div_(_counts(x, real)[..., None]), x, parts, out=sums)
        check_range(out)
        _signed_power_(out, power)
        if l2:
            _unit_(out)

    width = len(parts) * means.numel()
    return _fill_blocks(fill, tokens, mask, width=width, n_words=len(weights))


def pool_bag_of_features(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    vocabulary: torch.Tensor,
    assignment: str = "hard",
    alpha: float = 1.0,
    pool: str = "mean",
    norm: str | None = "l1",
    idf: torch.Tensor | None = None,
) -> torch.Tensor:
    """How often every word occurs among the tokens.

    Parameters
    ----------
    tokens : tensor of shape (n, L, d)
    mask : tensor of shape (n, L), bool, default=None
    vocabulary : tensor of shape (K, d)
    assignment : {"hard", "soft"}, default="hard"
        The nearest word, or the softmax of minus `alpha` times the squared distances.
    alpha : float, default=1.0
    pool : {"mean", "max"}, default="mean"
        Over the tokens.
    norm : {"l1", "l2", "sqrt", None}, default="l1"
        What rows are divided by; "sqrt" is the square root of what "l1" gives.
    idf : tensor of shape (K,), default=None
        Weights of the words.

    Returns
    -------
    vectors : tensor of shape (n, K)
    """
    words, like = _exact(vocabulary), widened(tokens[:0])
    center = _rounded(words.mean(dim=0), like)
    space = _Space.of(like, center=center)
    words = (words - center).to(like)
    codes_of = partial(_codes, words=Words.of(words), assignment=assignment, alpha=alpha)
    idf = None if idf is None else _exact(idf).to(like)

    def fill(block: torch.Tensor, real: Mask, out: torch.Tensor) -> None:
        x, scale = space.project(block, real)
        codes = codes_of(x, scale, real)
        torch.amax(codes, 1, out=out) if pool == "max" else torch.sum(codes, 1, out=out)
        if pool == "mean":
            out.div_(_counts(x, real))
        check_range(out)
        if idf is not None:
            out.mul_(idf)
        _normalize_bag_(out, norm)

    return _fill_blocks(fill, tokens, mask, width=len(words), n_words=len(words))


def _normalize_bag_(bags: torch.Tensor, norm: str | None) -> None:
    if norm == "l2":
        _unit_(bags)
    elif norm is not None:
        total = bags.sum(dim=1, keepdim=True)
        bags.div_(torch.where(total > 0, total, 1.0))
        if norm == "sqrt":
            bags.sqrt_()
