# SPDX-License-Identifier: BSD-3-Clause
"""Attention over tokens as torch modules: what `AttentionPooling` trains and applies.

A module takes tokens (n, L, d) in float32 or float64 and a mask (n, L), and gives vectors; the
weights of the tokens are `attend`. Masked tokens are replaced before anything else, and score
minus infinity. Weights are drawn in float64 from a generator that is handed in, so that they are
the same numbers in every float type and torch's global generator is left alone.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

__all__ = [
    "MODULES",
    "CrossAttention",
    "GatedAttention",
    "LatentAttention",
    "LayerAttention",
    "ModuleSpec",
    "QueryAttention",
    "SimPoolAttention",
    "TokenAttention",
    "make_module",
]

Mask = torch.Tensor | None


class ModuleSpec(NamedTuple):
    """All that decides the form of a module.

    Attributes
    ----------
    kind : str
        A name in `MODULES`.
    n_features, n_tokens : int
        Width of a token; tokens that a sample has at most.
    n_queries, n_latents, n_heads, hidden_dim : int
    query_pool : {"mean", "concat"}
    layer_embedding, residual : bool
    gamma : float or None
    """

    kind: str
    n_features: int
    n_tokens: int = 1
    n_queries: int = 1
    query_pool: str = "mean"
    n_latents: int = 64
    n_heads: int = 1
    hidden_dim: int = 128
    layer_embedding: bool = True
    residual: bool = True
    gamma: float | None = None


# Parts.


class _Linear(nn.Linear):
    """A linear map that is left unset by its constructor, which would draw from torch."""

    def reset_parameters(self) -> None:
        """Wait for `initialise`."""

    def initialise(self, generator: torch.Generator, *, like: str = "uniform") -> None:
        """Draw the weights ("uniform"), or set them to the "identity" or to "zero"."""
        if like == "uniform":
            nn.init.xavier_uniform_(self.weight, generator=generator)
        elif like == "identity":
            nn.init.eye_(self.weight)
        else:
            nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _normed(x: torch.Tensor) -> torch.Tensor:
    """LayerNorm; its learned factor and shift are left to the linear maps that follow."""
    return F.layer_norm(x, x.shape[-1:])


def _filled(x: torch.Tensor, mask: Mask) -> torch.Tensor:
    return x if mask is None else x.where(mask[..., None], 0.0)


def _softmax(scores: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Softmax over the last axis, the tokens, of scores (n, ..., L)."""
    if mask is not None:
        mask = mask.reshape(len(mask), *[1] * (scores.ndim - 2), -1)
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1)


def _mean(x: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Mean over the real tokens, of values that are finite everywhere."""
    if mask is None:
        return x.mean(dim=1)
    count = mask.sum(dim=1, keepdim=True).clamp_min(1)
    return x.where(mask[..., None], 0.0).sum(dim=1) / count


class CrossAttention(nn.Module):
    """Multi-head attention of queries over tokens.

    Tokens are never projected: keys are folded into the queries, and values are projected after
    they were averaged, which are the same numbers for O(Q h d) in place of O(d^2) a token.
    """

    def __init__(self, n_features: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.query = _Linear(n_features, n_features, bias=False)
        # A bias of the keys adds the same to the scores of all tokens.
        self.key = _Linear(n_features, n_features, bias=False)
        self.value = _Linear(n_features, n_features)
        self.out = _Linear(n_features, n_features)

    def initialise(self, generator: torch.Generator) -> None:
        """Values and output start as the identity: small queries give the mean of the tokens."""
        self.query.initialise(generator)
        self.key.initialise(generator)
        self.value.initialise(generator, like="identity")
        self.out.initialise(generator, like="identity")

    def attend(self, queries: torch.Tensor, x: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Weights (n, Q, h, L) of tokens x for queries (Q, d)."""
        width = queries.shape[1] // self.n_heads
        heads = self.query(queries).unflatten(1, (self.n_heads, width))
        keys = self.key.weight.unflatten(0, (self.n_heads, width))
        folded = torch.einsum("qhe,hed->qhd", heads, keys) / width**0.5
        scores = x @ folded.flatten(0, 1).T
        return _softmax(scores.transpose(1, 2).unflatten(1, folded.shape[:2]), mask)

    def forward(self, queries: torch.Tensor, x: torch.Tensor, mask: Mask) -> torch.Tensor:
        """One vector (n, Q, d) for every query."""
        weights = self.attend(queries, x, mask)
        means = (weights.flatten(1, 2) @ x).unflatten(1, weights.shape[1:3])
        width = x.shape[2] // self.n_heads
        values = self.value.weight.unflatten(0, (self.n_heads, width))
        heads = torch.einsum("nqhd,hed->nqhe", means, values).flatten(2)
        return self.out(heads + self.value.bias)


# Poolings.


class TokenAttention(nn.Module):
    """Base of all kinds: tokens in standard units, weights drawn from a generator.

    Attributes
    ----------
    mean, scale : tensor of shape (d,)
        What tokens are standardised by; 0 and 1 until they are set.
    """

    def __init__(self, spec: ModuleSpec):
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.zeros(spec.n_features))
        self.register_buffer("scale", torch.ones(spec.n_features))

    @property
    def undecayed(self) -> tuple[nn.Parameter, ...]:
        """Parameters of several axes that are no matrices, so that they do not decay."""
        names = {"queries", "latents", "embedding"}
        return tuple(p for name, p in self.named_parameters() if name in names)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights."""
        raise NotImplementedError

    def standardized(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Tokens in standard units; finite where they are masked."""
        return (_filled(tokens, mask) - self.mean) / self.scale

    def attend(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Weights of the tokens, (n, Q, L), the mean over the heads."""
        raise NotImplementedError


class GatedAttention(TokenAttention):
    """One weight per token from a small network with a gate; the tokens are averaged as they are.

    The weights start equal.
    """

    def __init__(self, spec: ModuleSpec):
        super().__init__(spec)
        self.value = _Linear(spec.n_features, spec.hidden_dim)
        self.gate = _Linear(spec.n_features, spec.hidden_dim)
        self.score = _Linear(spec.hidden_dim, 1, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the branches."""
        self.value.initialise(generator)
        self.gate.initialise(generator)
        self.score.initialise(generator, like="zero")

    def attend(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Weights of the tokens, (n, 1, L)."""
        x = self.standardized(tokens, mask)
        hidden = self.value(x).tanh() * self.gate(x).sigmoid()
        return _softmax(self.score(hidden).transpose(1, 2), mask)

    def forward(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Weighted mean of the tokens, (n, d)."""
        return (self.attend(tokens, mask) @ _filled(tokens, mask))[:, 0]


class QueryAttention(TokenAttention):
    """Learned queries that attend to the normed tokens."""

    def __init__(self, spec: ModuleSpec):
        super().__init__(spec)
        self.queries = nn.Parameter(torch.zeros(spec.n_queries, spec.n_features))
        self.cross = CrossAttention(spec.n_features, spec.n_heads)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw small queries."""
        nn.init.normal_(self.queries, std=0.02, generator=generator)
        self.cross.initialise(generator)

    def attend(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Weights of the tokens, (n, Q, L)."""
        x = _normed(self.standardized(tokens, mask))
        return self.cross.attend(self.queries, x, mask).mean(dim=2)

    def forward(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Mean over the queries (n, d), or one after the other (n, Q * d)."""
        vectors = self.cross(self.queries, _normed(self.standardized(tokens, mask)), mask)
        return vectors.mean(dim=1) if self.spec.query_pool == "mean" else vectors.flatten(1)


class LayerAttention(TokenAttention):
    """Queries over the layers of a network, each a token, with a feed-forward block; unit length.

    Layers are told apart by a learned embedding of their place.
    """

    def __init__(self, spec: ModuleSpec):
        super().__init__(spec)
        d = spec.n_features
        self.queries = nn.Parameter(torch.zeros(spec.n_queries, d))
        if spec.layer_embedding:
            self.embedding = nn.Parameter(torch.zeros(spec.n_tokens, d))
        self.cross = CrossAttention(d, spec.n_heads)
        self.widen = _Linear(d, 8 * d)
        self.narrow = _Linear(4 * d, d)

    def initialise(self, generator: torch.Generator) -> None:
        """The feed-forward block starts as nothing beside its residual."""
        nn.init.normal_(self.queries, std=0.02, generator=generator)
        if self.spec.layer_embedding:
            nn.init.normal_(self.embedding, std=0.02, generator=generator)
        self.cross.initialise(generator)
        self.widen.initialise(generator)
        self.narrow.initialise(generator, like="zero")

    def _inputs(self, tokens: torch.Tensor, mask: Mask) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.standardized(tokens, mask)
        if self.spec.layer_embedding:
            x = x + self.embedding[: x.shape[1]]
        return _normed(self.queries), _normed(x)

    def attend(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Weights of the layers, (n, Q, L)."""
        queries, x = self._inputs(tokens, mask)
        return self.cross.attend(queries, x, mask).mean(dim=2)

    def forward(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Unit vectors (n, d)."""
        queries, x = self._inputs(tokens, mask)
        vectors = self.queries + self.cross(queries, x, mask)
        values, gate = self.widen(_normed(vectors)).chunk(2, dim=-1)
        vectors = vectors + self.narrow(values * F.gelu(gate))
        return F.normalize(vectors.mean(dim=1), dim=-1)


class LatentAttention(TokenAttention):
    """Every token attends to learned latents, keys and values at once; then the mean of all.

    With `residual`, what a token finds is added to it, and so is what a small network makes of
    the sum.
    """

    def __init__(self, spec: ModuleSpec):
        super().__init__(spec)
        d = spec.n_features
        self.latents = nn.Parameter(torch.zeros(spec.n_latents, d))
        self.widen = _Linear(d, spec.hidden_dim)
        self.narrow = _Linear(spec.hidden_dim, d)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the latents."""
        nn.init.normal_(self.latents, generator=generator)
        self.widen.initialise(generator)
        self.narrow.initialise(generator)

    def found(self, x: torch.Tensor) -> torch.Tensor:
        """What every token finds among the latents, (n, L, d)."""
        latents = _normed(self.latents) if self.spec.residual else self.latents
        n_heads = self.spec.n_heads

        def heads(values: torch.Tensor) -> torch.Tensor:
            return values.unflatten(1, (n_heads, -1)).transpose(0, 1)[None]

        # The tokens of all samples ask the same latents, so they are one long sequence.
        keys = heads(latents)
        found = F.scaled_dot_product_attention(heads(x.flatten(0, 1)), keys, keys)
        return found[0].transpose(0, 1).flatten(1).unflatten(0, x.shape[:2])

    def forward(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Mean over the real tokens, (n, d)."""
        x = self.standardized(tokens, mask)
        if not self.spec.residual:
            return _mean(self._network(self.found(x)), mask)
        x = x + self.found(_normed(x))
        return _mean(x + self._network(_normed(x)), mask)

    def _network(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(F.gelu(self.widen(x)))


class SimPoolAttention(TokenAttention):
    """The mean of the tokens attends to the normed tokens, which are averaged unprojected."""

    def __init__(self, spec: ModuleSpec):
        super().__init__(spec)
        self.query = _Linear(spec.n_features, spec.n_features, bias=False)
        self.key = _Linear(spec.n_features, spec.n_features, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Start from the form without parameters."""
        self.query.initialise(generator, like="identity")
        self.key.initialise(generator, like="identity")

    def _weights(self, x: torch.Tensor, normed: torch.Tensor, mask: Mask) -> torch.Tensor:
        n_heads, width = self.spec.n_heads, x.shape[2] // self.spec.n_heads
        query = self.query(_mean(x, mask)).unflatten(1, (n_heads, width))
        keys = self.key.weight.unflatten(0, (n_heads, width))
        folded = torch.einsum("nhe,hed->nhd", query, keys) / width**0.5
        return _softmax(folded @ normed.transpose(1, 2), mask)

    def attend(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Weights of the tokens, (n, 1, L)."""
        x = self.standardized(tokens, mask)
        return self._weights(x, _normed(x), mask).mean(dim=1, keepdim=True)

    def forward(self, tokens: torch.Tensor, mask: Mask) -> torch.Tensor:
        """Weighted mean, or with `gamma` weighted power mean, of the normed tokens (n, d)."""
        x = self.standardized(tokens, mask)
        normed = _normed(x)
        weights = self._weights(x, normed, mask)
        gamma = self.spec.gamma
        if gamma is not None:
            real = normed if mask is None else normed.where(mask[..., None], torch.inf)
            normed = (_filled(normed - real.amin(dim=1, keepdim=True), mask) + 1e-6).pow(gamma)
        heads = normed.unflatten(2, (self.spec.n_heads, -1))
        vectors = torch.einsum("nhl,nlhe->nhe", weights, heads).flatten(1)
        return vectors if gamma is None else vectors.pow(1 / gamma)


MODULES: dict[str, type[TokenAttention]] = {
    "gated": GatedAttention,
    "latent": LatentAttention,
    "multilayer": LayerAttention,
    "query": QueryAttention,
    "simpool": SimPoolAttention,
}


def make_module(spec: ModuleSpec, generator: torch.Generator | None = None) -> TokenAttention:
    """Build a module, in float64, with drawn weights or with unset ones.

    Parameters
    ----------
    spec : ModuleSpec
    generator : torch.Generator, default=None
        Draws the weights; None leaves them to `load_state_dict`.

    Returns
    -------
    module : TokenAttention
    """
    module = MODULES[spec.kind](spec).double()
    if generator is not None:
        with torch.no_grad():
            module.initialise(generator)
    return module
