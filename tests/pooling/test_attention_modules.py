# SPDX-License-Identifier: BSD-3-Clause
"""The modules of AttentionPooling against their formulas and torch, and the laws that all keep."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from skpool.pooling._attention_modules import ModuleSpec, make_module

N, L, D = 12, 5, 8
# One form of every module, and of those with a choice the other one too.
SPECS = {
    "gated": ModuleSpec("gated", D, hidden_dim=6),
    "latent": ModuleSpec("latent", D, n_latents=3, n_heads=2, hidden_dim=6),
    "latent, plain": ModuleSpec("latent", D, n_latents=3, n_heads=2, hidden_dim=6, residual=False),
    "multilayer": ModuleSpec("multilayer", D, n_queries=2, n_heads=2, layer_embedding=False),
    "query": ModuleSpec("query", D, n_queries=3, n_heads=2),
    "query, concat": ModuleSpec("query", D, n_queries=3, n_heads=4, query_pool="concat"),
    "simpool": ModuleSpec("simpool", D, n_heads=2),
    "simpool, gamma": ModuleSpec("simpool", D, n_heads=1, gamma=1.5),
}
EMBEDDED = ModuleSpec("multilayer", D, n_tokens=L, n_queries=2, n_heads=2)


def drawn(spec: ModuleSpec, seed: int = 0):
    """A module far from where training starts: no weight is zero, none the identity."""
    module, generator = make_module(spec), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
        module.mean.normal_(generator=generator)
        module.scale.uniform_(0.5, 2.0, generator=generator)
    return module


def tokens_of(n: int = N, length: int = L, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, length, D, dtype=torch.float64, generator=generator)


def layer_norm(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()


@pytest.fixture
def x():
    return tokens_of()


@pytest.fixture
def mask():
    return torch.arange(L) < torch.tensor([5, 1, 3, 2, 4, 5, 2, 1, 3, 4, 2, 5])[:, None]


# The modules against their formulas.


def test_gated_starts_as_the_mean(x):
    module = make_module(SPECS["gated"], torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(x, None), x.mean(dim=1), rtol=1e-12, atol=1e-14)


def test_gated_with_score_zero_is_mean_pooling(x, mask):
    module = drawn(SPECS["gated"])
    with torch.no_grad():
        module.score.weight.zero_()
    torch.testing.assert_close(module(x, None), x.mean(dim=1), rtol=1e-12, atol=1e-14)
    means = torch.stack([row[real].mean(dim=0) for row, real in zip(x, mask, strict=True)])
    torch.testing.assert_close(module(x, mask), means, rtol=1e-12, atol=1e-14)


def test_gated_equals_its_formula(x):
    module = drawn(SPECS["gated"])
    V, U, w = (layer.weight.detach().numpy() for layer in (module.value, module.gate, module.score))
    units = ((x - module.mean) / module.scale).numpy()
    for row, unit, actual in zip(x.numpy(), units, module(x, None), strict=True):
        gate = 1 / (1 + np.exp(-(unit @ U.T + module.gate.bias.detach().numpy())))
        scores = (np.tanh(unit @ V.T + module.value.bias.detach().numpy()) * gate) @ w[0]
        a = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(actual.detach(), a @ row, rtol=1e-10)


def torch_attention(cross) -> nn.MultiheadAttention:
    """Torch's own multi-head attention with the same weights."""
    reference = nn.MultiheadAttention(D, cross.n_heads, batch_first=True, dtype=torch.float64)
    state = {
        "in_proj_weight": torch.cat([cross.query.weight, cross.key.weight, cross.value.weight]),
        "in_proj_bias": torch.cat([torch.zeros(2 * D, dtype=torch.float64), cross.value.bias]),
        "out_proj.weight": cross.out.weight,
        "out_proj.bias": cross.out.bias,
    }
    reference.load_state_dict(state)
    return reference


@pytest.mark.parametrize("with_mask", [False, True])
def test_query_equals_attention_of_torch(x, mask, with_mask):
    mask = mask if with_mask else None
    module = drawn(SPECS["query"])
    keys = layer_norm((x - module.mean) / module.scale)
    queries = module.queries.expand(len(x), -1, -1)
    padding = None if mask is None else ~mask
    vectors, weights = torch_attention(module.cross)(queries, keys, keys, key_padding_mask=padding)
    torch.testing.assert_close(module(x, mask), vectors.mean(dim=1), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(module.attend(x, mask), weights, rtol=1e-9, atol=1e-11)


def test_query_concat_puts_queries_side_by_side(x):
    module = drawn(SPECS["query, concat"])
    keys = layer_norm((x - module.mean) / module.scale)
    queries = module.queries.expand(len(x), -1, -1)
    vectors, _ = torch_attention(module.cross)(queries, keys, keys)
    torch.testing.assert_close(module(x, None), vectors.flatten(1), rtol=1e-9, atol=1e-11)


def test_zero_queries_give_the_mean_of_the_projected_values(x):
    module = drawn(SPECS["query"])
    with torch.no_grad():
        module.queries.zero_()
    values = layer_norm((x - module.mean) / module.scale)
    cross = module.cross
    values = values @ cross.value.weight.T + cross.value.bias
    mean = values.mean(dim=1) @ cross.out.weight.T + cross.out.bias
    torch.testing.assert_close(module(x, None), mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(module.attend(x, None), torch.full((N, 3, L), 1 / L).double())


def test_multilayer_equals_its_formula(x):
    module = drawn(EMBEDDED)
    keys = layer_norm((x - module.mean) / module.scale + module.embedding)
    queries = module.queries.expand(N, -1, -1)
    found, _ = torch_attention(module.cross)(layer_norm(queries), keys, keys)
    z = queries + found
    hidden = layer_norm(z) @ module.widen.weight.T + module.widen.bias
    assert hidden.shape[-1] == 2 * 4 * D
    hidden = hidden[..., : 4 * D] * F.gelu(hidden[..., 4 * D :])
    z = (z + hidden @ module.narrow.weight.T + module.narrow.bias).mean(dim=1)
    expected = z / z.norm(dim=1, keepdim=True)
    torch.testing.assert_close(module(x, None), expected, rtol=1e-9, atol=1e-11)


def latents_of_heads(queries: torch.Tensor, latents: torch.Tensor, n_heads: int) -> torch.Tensor:
    """softmax(X K' / sqrt(d_h)) K for every head, written out."""
    parts = []
    for q, k in zip(queries.chunk(n_heads, -1), latents.chunk(n_heads, -1), strict=True):
        parts.append((q @ k.T / k.shape[1] ** 0.5).softmax(-1) @ k)
    return torch.cat(parts, dim=-1)


def network(module, x: torch.Tensor) -> torch.Tensor:
    hidden = F.gelu(x @ module.widen.weight.T + module.widen.bias)
    return hidden @ module.narrow.weight.T + module.narrow.bias


def test_latent_equals_its_formula(x):
    module = drawn(SPECS["latent, plain"])
    o = latents_of_heads((x - module.mean) / module.scale, module.latents, 2)
    torch.testing.assert_close(module(x, None), network(module, o).mean(dim=1))


def test_latent_with_residuals_equals_its_formula(x):
    module = drawn(SPECS["latent"])
    units = (x - module.mean) / module.scale
    units = units + latents_of_heads(layer_norm(units), layer_norm(module.latents), 2)
    expected = (units + network(module, layer_norm(units))).mean(dim=1)
    torch.testing.assert_close(module(x, None), expected)


@pytest.mark.parametrize("residual", [False, True])
def test_one_latent_is_found_by_every_token(x, residual):
    spec = SPECS["latent"]._replace(n_latents=1, residual=residual)
    found = drawn(spec).found(x)
    torch.testing.assert_close(found, found[:1, :1].expand_as(found), rtol=1e-12, atol=1e-12)
    if not residual:
        pooled = drawn(spec)(x, None)
        torch.testing.assert_close(pooled, pooled[:1].expand_as(pooled))


def test_simpool_equals_its_formula(x):
    module = drawn(SPECS["simpool"])
    units = (x - module.mean) / module.scale
    values = layer_norm(units)
    query = units.mean(dim=1) @ module.query.weight.T
    parts = []
    for q, key, value in zip(
        query.chunk(2, -1), module.key.weight.chunk(2), values.chunk(2, -1), strict=True
    ):
        scores = torch.einsum("ne,nle->nl", q, values @ key.T) / (D / 2) ** 0.5
        parts.append(torch.einsum("nl,nle->ne", scores.softmax(1), value))
    torch.testing.assert_close(module(x, None), torch.cat(parts, dim=1))


def test_simpool_starts_without_parameters(x):
    spec = ModuleSpec("simpool", D, n_heads=1)
    module = make_module(spec, torch.Generator().manual_seed(0))
    values = layer_norm(x)
    weights = torch.einsum("nd,nld->nl", x.mean(dim=1), values).div(D**0.5).softmax(dim=1)
    torch.testing.assert_close(module(x, None), torch.einsum("nl,nld->nd", weights, values))


def test_simpool_gamma_is_a_weighted_power_mean_above_the_minimum(x):
    module = drawn(SPECS["simpool, gamma"])
    values = layer_norm((x - module.mean) / module.scale)
    shifted = values - values.amin(dim=1, keepdim=True) + 1e-6
    weights = module.attend(x, None)[:, 0, :, None]
    expected = (weights * shifted**1.5).sum(dim=1) ** (1 / 1.5)
    torch.testing.assert_close(module(x, None), expected)


# Laws of all modules.


@pytest.mark.parametrize("name", SPECS)
@given(seed=st.integers(0, 2**31), order=st.permutations(range(L)))
@settings(deadline=None, max_examples=10)
def test_order_of_the_tokens_does_not_matter(name, seed, order):
    module, x = drawn(SPECS[name], seed), tokens_of(3, seed=seed)
    torch.testing.assert_close(module(x[:, order], None), module(x, None), rtol=1e-8, atol=1e-9)


def test_layers_are_told_apart_by_their_place(x):
    module = drawn(EMBEDDED)
    assert (module(x.flip(1), None) - module(x, None)).abs().max() > 1e-3


@pytest.mark.parametrize("name", SPECS)
def test_repeated_tokens_change_nothing(name, x):
    module = drawn(SPECS[name])
    torch.testing.assert_close(module(x.repeat(1, 3, 1), None), module(x, None))


@pytest.mark.parametrize("name", [*SPECS, "embedded"])
@pytest.mark.parametrize("garbage", [0.0, 1e30, torch.nan, torch.inf])
def test_masked_tokens_are_not_seen(name, garbage, x, mask):
    module = drawn(SPECS.get(name, EMBEDDED))
    dirty = x.where(mask[..., None], garbage)
    actual = module(dirty, mask)
    for i, real in enumerate(mask):
        torch.testing.assert_close(actual[[i]], module(x[[i]][:, real], None))


@pytest.mark.parametrize("name", [name for name in SPECS if "latent" not in name])
def test_weights_of_a_sample_sum_to_one(name, x, mask):
    weights = drawn(SPECS[name]).attend(x, mask)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(weights.shape[:2]).double())
    assert (weights >= 0).all() and (weights.where(mask[:, None], 0.0) == weights).all()


@pytest.mark.parametrize("name", [*SPECS, "embedded"])
def test_gradient_is_right(name, mask):
    spec = SPECS.get(name, EMBEDDED)._replace(n_features=4)
    module, x = drawn(spec), tokens_of(2)[:, :, :4].requires_grad_()
    names, values = zip(*module.named_parameters(), strict=True)
    values = [value.detach().clone().requires_grad_() for value in values]

    def pooled(x, *values):
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, state, (x, mask[1:3]))

    assert torch.autograd.gradcheck(pooled, (x, *values))


@pytest.mark.parametrize("name", [*SPECS, "embedded"])
def test_weights_are_the_same_numbers_in_every_run(name):
    before = torch.get_rng_state()
    spec = SPECS.get(name, EMBEDDED)
    one, two = (make_module(spec, torch.Generator().manual_seed(3)) for _ in range(2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b) and torch.isfinite(a).all()
    assert torch.equal(torch.get_rng_state(), before)
