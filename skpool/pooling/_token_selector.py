# SPDX-License-Identifier: BSD-3-Clause
"""Choosing tokens: the few patches of a sample that score highest, and their mean.

`TokenSelector` gives tokens, for whatever pooling follows; `SelectedTokenPooling` gives vectors.
A choice is not continuous, so everything here is about equal scores: they are computed in float64,
compared in float32 and tied by position, which makes every float type choose alike.
"""

from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions

from skpool.pooling._base import BasePooling, Plan
from skpool.pooling._kernels import Mask, _filled, _in_blocks, pool_cls, pool_mean
from skpool.pooling._token_transformer import BaseTokenTransformer
from skpool.stores import TokenArray, validate_tokens
from skpool.utils import as_tensor, unit_rows, widened

__all__ = ["SelectedTokenPooling", "TokenSelector", "select_tokens", "token_scores"]

# A share of 30 tokens by 0.1 is 3, although 0.1 * 30 rounds to a little more.
_SLACK = 1e-9


def _cosine(tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    norms = torch.linalg.vector_norm(tokens, dim=-1)
    products = torch.einsum("nld,nd->nl", tokens, unit_rows(reference))
    return products / torch.where(norms > 0, norms, 1.0)


def _minus_l1(tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return -(tokens - reference[:, None]).abs().sum(dim=-1)


def _minus_l2(tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return -torch.linalg.vector_norm(tokens - reference[:, None], dim=-1)


def _norm(tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(tokens, dim=-1)


_SCORES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls_cosine": _cosine,
    "cls_l1": _minus_l1,
    "cls_l2": _minus_l2,
    "norm": _norm,
    "query": _cosine,
}


@_in_blocks()
def token_scores(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    criterion: str = "cls_cosine",
    first: int = 0,
    query: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score of every token after the first ones; that of masked tokens means nothing.

    Parameters
    ----------
    tokens : tensor of shape (n, L, d)
        With the class token at position 0 for the scores that need it.
    mask : tensor of shape (n, L), bool, default=None
    criterion : {"cls_cosine", "cls_l1", "cls_l2", "norm", "query"}, default="cls_cosine"
        Distances are negated, so that more is nearer.
    first : int, default=0
        Leading tokens without a score.
    query : tensor of shape (d,), default=None
        What "query" compares with.

    Returns
    -------
    scores : tensor of shape (n, L - first)
        Finite, in float64 (float32 where the device has no wider type).
    """
    wide = tokens.to(torch.float32 if tokens.device.type == "mps" else torch.float64)
    reference = wide[:, 0] if query is None else query.to(wide).expand(len(wide), -1)
    return _SCORES[criterion](wide[:, first:], reference).nan_to_num_()


def _n_kept(k: int | float, counts: torch.Tensor) -> torch.Tensor:
    """Tokens to keep of so many real ones: k of them, or the share k, rounded up."""
    if isinstance(k, Integral):
        return counts.clamp_max(int(k))
    # On the host, since not every device has float64.
    share = (counts.cpu().double() * k - _SLACK).ceil().long().clamp_min(1)
    return torch.minimum(share.to(counts.device), counts)


def _width(k: int | float, n_tokens: int) -> int:
    """Most tokens that are kept of `n_tokens`."""
    return int(_n_kept(k, torch.tensor(n_tokens)))


class _Ranking(NamedTuple):
    """Tokens of every row from the best to the worst, masked ones last.

    Attributes
    ----------
    scores : tensor of shape (n, T)
        Scores in that order, negated where the lowest are kept.
    order : tensor of shape (n, T)
        Places in that order.
    counts, kept : tensor of shape (n, 1)
        Real tokens, and how many of them are kept.
    """

    scores: torch.Tensor
    order: torch.Tensor
    counts: torch.Tensor
    kept: torch.Tensor

    @property
    def ranks(self) -> torch.Tensor:
        """0, 1, 2, ..."""
        return torch.arange(self.order.shape[1], device=self.order.device)

    def in_place(self, values: torch.Tensor) -> torch.Tensor:
        """What is given from best to worst, (n, T), in the order of the tokens."""
        return torch.zeros_like(values).scatter_(1, self.order, values)


def _ranked(scores: torch.Tensor, mask: Mask, *, k: int | float, keep: str) -> _Ranking:
    scores = scores if keep == "highest" else -scores
    # Sums that are equal but for their rounding are equal in float32.
    key = scores.float().nan_to_num()
    if mask is None:
        counts = torch.full_like(key[:, :1], key.shape[1], dtype=torch.long)
    else:
        counts = mask.sum(dim=1, keepdim=True)
        key = key.masked_fill(~mask, -torch.inf)
    # A stable sort takes equal scores by their position.
    order = key.argsort(dim=1, descending=True, stable=True)
    return _Ranking(scores.gather(1, order), order, counts, _n_kept(k, counts))


def selected_mask(
    mask: torch.Tensor, *, k: int | float, first: int = 0, fuse_rest: bool = False
) -> torch.Tensor:
    """Tell which of the tokens that `select_tokens` gives are real.

    Parameters
    ----------
    mask : tensor of shape (n, L), bool
        Of the tokens that are chosen from.
    k, first, fuse_rest
        As in `select_tokens`.

    Returns
    -------
    mask : tensor of shape (n, first + n_kept), bool, or one more with a fused token
    """
    n_patches = mask.shape[1] - first
    counts = mask[:, first:].sum(dim=1, keepdim=True)
    kept, width = _n_kept(k, counts), _width(k, n_patches)
    parts = [mask[:, :first], torch.arange(width, device=mask.device) < kept]
    if fuse_rest and width < n_patches:
        parts.append(counts > kept)
    return torch.cat(parts, dim=1)


def _fused(patches: torch.Tensor, mask: Mask, ranking: _Ranking) -> torch.Tensor:
    """Mean of the tokens left out, weighted by the softmax of their scores; 0 where none is."""
    rest = (ranking.ranks >= ranking.kept) & (ranking.ranks < ranking.counts)
    weights = ranking.scores.masked_fill(~rest, -torch.inf).softmax(dim=1).nan_to_num()
    weights = ranking.in_place(weights).to(patches)
    return torch.einsum("nl,nld->nd", weights, _filled(patches, mask, 0.0))[:, None]


@_in_blocks()
def select_tokens(
    tokens: torch.Tensor,
    mask: Mask = None,
    *,
    scorer: Callable[..., torch.Tensor] = token_scores,
    k: int | float = 8,
    keep: str = "highest",
    first: int = 0,
    fuse_rest: bool = False,
) -> torch.Tensor:
    """Take the tokens that score highest, highest first, after the first ones as they are.

    Parameters
    ----------
    tokens : tensor of shape (n, L, d)
    mask : tensor of shape (n, L), bool, default=None
    scorer : callable, default=token_scores
        ``scorer(tokens, mask, first=first)`` gives finite scores (n, L - first).
    k : int or float, default=8
        Tokens to keep, or the share of the real tokens of each row, rounded up.
    keep : {"highest", "lowest"}, default="highest"
    first : int, default=0
        Leading tokens that are kept and do not compete.
    fuse_rest : bool, default=False
        Whether one token more holds the weighted mean of those left out.

    Returns
    -------
    tokens : tensor of shape (n, first + n_kept, d), or one more with a fused token
        Zeros where a row has fewer; `selected_mask` tells which are real.
    """
    wide = _filled(widened(tokens), mask, 0.0)
    prefix, patches = wide[:, :first], wide[:, first:]
    real = None if mask is None else mask[:, first:]
    ranking = _ranked(scorer(tokens, mask, first=first), real, k=k, keep=keep)
    width = _width(k, patches.shape[1])
    index = ranking.order[:, :width, None].expand(-1, -1, patches.shape[2])
    chosen = _filled(patches.gather(1, index), ranking.ranks[:width] < ranking.kept, 0.0)
    parts = [prefix, chosen]
    if fuse_rest and width < patches.shape[1]:
        parts.append(_fused(patches, real, ranking))
    return torch.cat(parts, dim=1)


def _call(
    function: Callable, tokens: torch.Tensor, mask: Mask = None, *, first: int
) -> torch.Tensor:
    """Scores by a function of the user's, checked."""
    tokens, mask = tokens[:, first:], None if mask is None else mask[:, first:]
    scores = function(tokens, mask)
    shape = tuple(getattr(scores, "shape", ()))
    if not isinstance(scores, torch.Tensor) or shape != tuple(tokens.shape[:2]):
        raise ValueError(
            f"criterion={function!r} gives {type(scores).__name__} of shape {shape} for tokens "
            f"{tuple(tokens.shape)}; it must give a tensor (n_samples, n_tokens)."
        )
    unknown = scores.isnan() if mask is None else scores.isnan() & mask
    if bool(unknown.any()):
        raise ValueError(f"criterion={function!r} gives NaN for a real token; give it a number.")
    return (scores if scores.is_floating_point() else scores.float()).nan_to_num()


class _Choice:
    """What the two steps share: the choice by their parameters."""

    _choice_constraints: dict = {
        "k": [
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="right"),
        ],
        "criterion": [StrOptions(set(_SCORES)), callable],
        "query": ["array-like", None],
        "keep": [StrOptions({"highest", "lowest"})],
        "fuse_rest": ["boolean"],
    }

    def _check_query(self, n_features: int) -> None:
        if callable(self.criterion) or self.criterion != "query":
            return
        if self.query is None:
            raise ValueError("criterion='query' needs a vector to compare with; give query.")
        query = np.asarray(self.query, dtype=np.float64)
        if query.shape != (n_features,):
            raise ValueError(
                f"query has shape {query.shape}; give the {n_features} features of a token."
            )
        if not np.isfinite(query).all() or not query.any():
            raise ValueError("query is zero or not finite; give a vector with a direction.")

    def _check_class_token(self, tokens: TokenArray, *, needed: bool = False) -> None:
        """Refuse to go by a class token where there is none; a single token is its own."""
        by_cls = not callable(self.criterion) and self.criterion.startswith("cls")
        if (by_cls or needed) and tokens.cls_index is None and tokens.shape[1] > 1:
            asked = f"criterion={self.criterion!r}" if by_cls else "output='concat_cls'"
            raise ValueError(
                f"{asked} needs a class token, and these tokens have none (n_prefix_tokens is 0); "
                "choose another, such as criterion='norm', or another backbone."
            )

    def _scorer(self) -> Callable[..., torch.Tensor]:
        if callable(self.criterion):
            return partial(_call, self.criterion)
        query = as_tensor(np.asarray(self.query, np.float64)) if self.criterion == "query" else None
        return partial(token_scores, criterion=self.criterion, query=query)

    def _selection(self, first: int) -> Callable[..., torch.Tensor]:
        """The kernel with everything but the tokens."""
        options = {"k": self.k, "keep": self.keep, "fuse_rest": self.fuse_rest}
        return partial(select_tokens, scorer=self._scorer(), first=first, **options)


class TokenSelector(_Choice, BaseTokenTransformer):
    r"""Keep the patches of a sample that score highest, in the order of their scores.

    Parameters
    ----------
    k : int or float, default=8
        Patches to keep; a float above 0 and at most 1 is a share of the real patches of each
        sample, rounded up. Samples with fewer keep all they have.
    criterion : str or callable, default="cls_cosine"
        - "cls_cosine": cosine of the patch and the class token, as in GLSim [1]_.
        - "cls_l1", "cls_l2": the distance of the two, negated.
        - "norm": Euclidean norm of the patch.
        - "query": cosine of the patch and `query`.
        - A callable ``f(patches, mask)`` from tensors (n, T, d) and (n, T) or None to (n, T).
    query : array-like of shape (n_features,), default=None
        What "query" compares with.
    keep : {"highest", "lowest"}, default="highest"
        Which end of the scores to keep.
    fuse_rest : bool, default=False
        Whether one token more follows: the mean of the patches left out, weighted by the softmax
        of their scores (negated for "lowest").
    batch_size : int, default=256
        Rows of a plain array that are read at a time by `mask`.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of a token.

    See Also
    --------
    SelectedTokenPooling : The mean of the same tokens.

    Notes
    -----
    The class token and registers stay in front and do not compete; scores with "cls" need them.
    The result has k patches, fewer where the tokens of X are fewer, and no grid. Samples with
    fewer real patches than k are padded and masked.

    A choice is not continuous. So scores are computed in float64 and compared in float32, and
    equal ones are taken by their position: float16, float32 and float64 copies of the same values
    give the same tokens. Nothing is learned and tokens stay lazy. Cost: one pass over the tokens,
    O(n T d), and a sort of the scores.

    References
    ----------
    .. [1] Rios, Hu, Lai, Global-Local Similarity for Efficient Fine-Grained Image Recognition with
       Vision Transformers, 2024. <https://arxiv.org/abs/2407.12891>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import TokenSelector
    >>> tokens = np.array([[[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]]])
    >>> TokenSelector(k=2, criterion="norm").fit_transform(tokens)
    array([[[3., 4.],
            [0., 2.]]])
    >>> TokenSelector(k=2, criterion="norm").mask(tokens)
    array([[False,  True,  True]])
    """

    _parameter_constraints: dict = {
        **BaseTokenTransformer._parameter_constraints,
        **_Choice._choice_constraints,
    }

    def __init__(
        self,
        k: int | float = 8,
        *,
        criterion: str | Callable = "cls_cosine",
        query=None,
        keep: str = "highest",
        fuse_rest: bool = False,
        batch_size: int = 256,
    ):
        self.k = k
        self.criterion = criterion
        self.query = query
        self.keep = keep
        self.fuse_rest = fuse_rest
        self.batch_size = batch_size

    def mask(self, X) -> np.ndarray:
        """Tell which tokens are kept, in the places that they have in X.

        Parameters
        ----------
        X : TokenArray or array-like of shape (n_samples, n_tokens, n_features)
            As in `fit`.

        Returns
        -------
        mask : ndarray of shape (n_samples, n_tokens), bool
            True for the class token and registers too; all False for unreadable inputs.
        """
        tokens = validate_tokens(self, X, reset=False)
        self._check_parameters(tokens)
        first, n_tokens = tokens.n_prefix_tokens, tokens.shape[1]
        scorer = self._scorer()

        def chosen(batch: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            real = None if mask is None else mask[:, first:]
            scores = scorer(batch, mask, first=first)
            ranking = _ranked(scores, real, k=self.k, keep=self.keep)
            kept = ranking.in_place((ranking.ranks < ranking.kept).float())
            flags = kept.new_zeros((len(batch), n_tokens))
            flags[:, :first] = 1.0 if mask is None else mask[:, :first].float()
            # Ragged tokens are as many as the longest of the batch has.
            flags[:, first : batch.shape[1]] = kept
            return flags

        flags = tokens.reduce(chosen, batch_size=self.batch_size)
        return as_tensor(flags).cpu().numpy() > 0

    def _check_parameters(self, tokens: TokenArray) -> None:
        self._check_query(tokens.shape[2])
        self._check_class_token(tokens)
        if tokens.shape[1] == tokens.n_prefix_tokens:
            raise ValueError(
                f"All {tokens.shape[1]} tokens of a sample are prefix tokens, so there is no "
                "patch to choose."
            )

    def _mapped(self, tokens: TokenArray) -> TokenArray:
        first = tokens.n_prefix_tokens
        n_patches = tokens.shape[1] - first
        width = _width(self.k, n_patches)
        return tokens.map(
            self._selection(first),
            n_tokens=first + width + (self.fuse_rest and width < n_patches),
            remask=partial(selected_mask, k=self.k, first=first, fuse_rest=self.fuse_rest),
            grid=None,
            fingerprint=self._fingerprint(),
        )


class SelectedTokenPooling(_Choice, BasePooling):
    r"""Mean of the patches of a sample that score highest, alone or beside the class token.

    Parameters
    ----------
    k : int or float, default=8
        Patches to keep; a float above 0 and at most 1 is a share of the real patches of each
        sample, rounded up. Samples with fewer keep all they have.
    criterion : str or callable, default="cls_cosine"
        How patches are scored: "cls_cosine", "cls_l1", "cls_l2", "norm", "query" or a callable, as
        in `TokenSelector`.
    query : array-like of shape (n_features,), default=None
        What "query" compares with.
    keep : {"highest", "lowest"}, default="highest"
        Which end of the scores to keep.
    fuse_rest : bool, default=False
        Whether the weighted mean of the patches left out counts as one patch more.
    output : {"mean", "concat_cls"}, default="mean"
        The mean of the patches that are kept, or the class token and that mean side by side.
    scope : {"patch", "all"}, default="patch"
        Whether the class token and registers are left out of the choice.
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

    See Also
    --------
    TokenSelector : Gives the tokens themselves, and tells which they are.

    Notes
    -----
    With k of at least the number of patches it is the plain mean. Equal scores are taken by
    position, as `TokenSelector` says. Nothing is learned, so results are kept in the store of the
    tokens (unless a callable is involved, which has no stable name). Cost: one pass over the
    tokens, O(n T d), and a sort of the scores.

    References
    ----------
    .. [1] Rios, Hu, Lai, Global-Local Similarity for Efficient Fine-Grained Image Recognition with
       Vision Transformers, 2024. <https://arxiv.org/abs/2407.12891>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pooling import SelectedTokenPooling
    >>> tokens = np.array([[[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]]])
    >>> SelectedTokenPooling(k=2, criterion="norm").fit_transform(tokens)
    array([[1.5, 3. ]])
    """

    _parameter_constraints: dict = {
        **BasePooling._parameter_constraints,
        **_Choice._choice_constraints,
        "output": [StrOptions({"mean", "concat_cls"})],
    }

    def __init__(
        self,
        k: int | float = 8,
        *,
        criterion: str | Callable = "cls_cosine",
        query=None,
        keep: str = "highest",
        fuse_rest: bool = False,
        output: str = "mean",
        scope: str = "patch",
        empty: str = "raise",
        batch_size: int = 256,
        out_dtype: str | None = None,
    ):
        self.k = k
        self.criterion = criterion
        self.query = query
        self.keep = keep
        self.fuse_rest = fuse_rest
        self.output = output
        self.scope = scope
        self.empty = empty
        self.batch_size = batch_size
        self.out_dtype = out_dtype

    def _check_parameters(self, n_features: int) -> None:
        self._check_query(n_features)

    def _bind(self, tokens: TokenArray) -> Plan:
        # The class token stands in the prefix, which the choice may have to leave out.
        self._check_class_token(tokens, needed=self.output == "concat_cls")
        first = tokens.shape[1] - self._in_scope(tokens).shape[1]
        return Plan(tokens, partial(self._pool_selected, first=first), first)

    def _pool_selected(self, tokens: torch.Tensor, mask: Mask, *, first: int) -> torch.Tensor:
        selected = self._selection(first)(tokens, mask)[:, first:]
        if mask is not None:
            mask = selected_mask(mask, k=self.k, first=first, fuse_rest=self.fuse_rest)[:, first:]
        mean = pool_mean(selected, mask)
        return mean if self.output == "mean" else torch.cat([pool_cls(tokens), mean], dim=1)

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_ * (2 if self.output == "concat_cls" else 1)
