# SPDX-License-Identifier: BSD-3-Clause
"""The attentive probe as a torch module: learned queries attend to tokens, a linear head follows.

Attention is that of the learned poolings, by which tokens are never projected; normed queries and
keys, dropout and the residual block are what is added here.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from skpool.pooling import CrossAttention, TokenAttention

__all__ = ["AttentiveHead", "AttentiveSpec", "head_count", "make_attentive_head"]

Mask = torch.Tensor | None

# Features of a head where nothing else is asked for.
_HEAD_WIDTH = 64


class AttentiveSpec(NamedTuple):
    """All that decides the form of a probe.

    Attributes
    ----------
    n_features, n_outputs : int
        Width of a token; number of classes.
    n_queries, n_heads : int
    mlp_ratio : float
        Width of the residual block, in features; 0 for none.
    dropout : float
    qk_norm : bool
    """

    n_features: int
    n_outputs: int
    n_queries: int = 1
    n_heads: int = 1
    mlp_ratio: float = 0.0
    dropout: float = 0.0
    qk_norm: bool = False


def head_count(n_features: int, n_heads: int | str) -> int:
    """Return the number of heads: "auto" is the largest divisor up to n_features / 64.

    Parameters
    ----------
    n_features : int
    n_heads : int or "auto"

    Returns
    -------
    n_heads : int

    Raises
    ------
    ValueError
        The heads do not divide the features.

    Examples
    --------
    >>> from skpool.probing._attentive_modules import head_count
    >>> head_count(384, "auto"), head_count(1000, "auto"), head_count(5, "auto")
    (6, 10, 1)
    """
    if n_heads == "auto":
        most = max(1, n_features // _HEAD_WIDTH)
        return next(n for n in range(most, 0, -1) if n_features % n == 0)
    if n_features % n_heads:
        divisors = [n for n in range(1, n_features + 1) if n_features % n == 0]
        raise ValueError(
            f"n_heads={n_heads} does not divide the {n_features} features of a token; choose one "
            f"of {divisors}, or 'auto'."
        )
    return n_heads


class _NormedCrossAttention(CrossAttention):
    """Cross attention whose queries and keys have a root mean square of 1 in every head.

    Scores are then at most sqrt(d / h). Keys are projected token by token, because their norms
    are needed.
    """

    def attend(self, queries: torch.Tensor, x: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Weights (n, Q, h, L) of tokens x for queries (Q, d)."""
        width = queries.shape[1] // self.n_heads
        asked, keys = (
            F.rms_norm(part.unflatten(-1, (self.n_heads, width)), (width,))
            for part in (self.query(queries), self.key(x))
        )
        scores = torch.einsum("qhe,nlhe->nqhl", asked, keys) / width**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        return scores.softmax(dim=-1)


def _unset(n_in: int, n_out: int) -> nn.Linear:
    """A linear map whose constructor draws nothing from torch."""
    return nn.utils.skip_init(nn.Linear, n_in, n_out)


class AttentiveHead(TokenAttention):
    """Scores of classes from what learned queries find among the tokens.

    Tokens are standardised, and normed each by itself. At first queries are small, values the
    normed tokens, the residual block nothing and the head zero: equal scores, from the mean.

    Parameters
    ----------
    spec : AttentiveSpec
    """

    def __init__(self, spec: AttentiveSpec):
        super().__init__(spec)
        d = spec.n_features
        self.queries = nn.Parameter(torch.zeros(spec.n_queries, d))
        attention = _NormedCrossAttention if spec.qk_norm else CrossAttention
        self.cross = attention(d, spec.n_heads)
        hidden = round(spec.mlp_ratio * d)
        self.widen = _unset(d, hidden) if hidden else None
        self.narrow = _unset(hidden, d) if hidden else None
        self.dropout = nn.Dropout(spec.dropout)
        self.head = _unset(spec.n_queries * d, spec.n_outputs)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the queries, the maps of queries and keys, and the first half of the block."""
        nn.init.normal_(self.queries, std=0.02, generator=generator)
        self.cross.initialise(generator)
        if self.widen is not None:
            nn.init.xavier_uniform_(self.widen.weight, generator=generator)
            nn.init.zeros_(self.widen.bias)
        for layer in (self.head, self.narrow):
            for parameter in () if layer is None else layer.parameters():
                nn.init.zeros_(parameter)

    def _normed(self, values: torch.Tensor, mask: Mask) -> torch.Tensor:
        return F.layer_norm(self.standardized(values, mask), values.shape[-1:])

    def attend(self, tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
        """Weights (n, n_heads, n_queries, L) of the tokens."""
        return self.cross.attend(self.queries, self._normed(tokens, mask), mask).transpose(1, 2)

    def forward(self, tokens: torch.Tensor, mask: Mask = None) -> torch.Tensor:
        """Scores (n, n_outputs) of tokens (n, L, d)."""
        vectors = self.cross(self.queries, self._normed(tokens, mask), mask)
        if self.widen is not None:
            hidden = F.gelu(self.widen(F.layer_norm(vectors, vectors.shape[-1:])))
            vectors = vectors + self.narrow(self.dropout(hidden))
        return self.head(self.dropout(vectors.flatten(1)))


def make_attentive_head(
    spec: AttentiveSpec, generator: torch.Generator | None = None
) -> AttentiveHead:
    """Build a probe, in float64, with drawn weights or with unset ones.

    Parameters
    ----------
    spec : AttentiveSpec
    generator : torch.Generator, default=None
        Draws the weights; None leaves them to `load_state_dict`.

    Returns
    -------
    head : AttentiveHead
    """
    head = AttentiveHead(spec).double()
    if generator is not None:
        with torch.no_grad():
            head.initialise(generator)
    return head
