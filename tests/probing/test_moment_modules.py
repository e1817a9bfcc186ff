# SPDX-License-Identifier: BSD-3-Clause
"""The module of moment probing against the formulas of the paper, numpy, and finite differences."""

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn

from skpool.probing._moment_modules import (
    MomentSpec,
    conv_side,
    make_moment_head,
    most_convolutions,
)

N, L, D, C = 5, 9, 12, 4

# Small, and with every part of the released one.
SMALL = {"proj_dim": 32, "n_heads": 4, "conv_layers": 1}
# The cross moments of the tokens as they are.
BARE = {"proj_dim": None, "n_heads": 2, "head_norm": None, "normalize": None, "conv_layers": 0}


def head_of(seed=0, **options):
    """A head all of whose parameters are drawn, so that none hides behind a zero or a one."""
    head = make_moment_head(
        MomentSpec(D, C, **{**SMALL, **options}), torch.Generator().manual_seed(seed)
    )
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).double() / 5)
    return head


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(N, L, D)) @ rng.normal(size=(D, D)) + 1)


# The formulas of the paper, on plain arrays.


def layer_norm(x, weight, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def convolved(maps, weight):
    side = (maps.shape[2] - 3) // 2 + 1
    out = np.zeros((len(maps), len(weight), side, side))
    for a in range(3):
        for b in range(3):
            window = maps[:, :, a : a + 2 * side - 1 : 2, b : b + 2 * side - 1 : 2]
            out += np.einsum("nchw,oc->nohw", window, weight[:, :, a, b])
    return out


PAIRS = {
    "near": [(0, 1), (1, 2), (2, 3)],
    "one": [(0, 1), (0, 2), (0, 3)],
    "half": [(0, 2), (1, 3)],
    "all": [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)],
}


def centred(H, center):
    if center == "token":
        return H - H.mean(1, keepdims=True)
    return H - H.mean((1, 2), keepdims=True) if center == "scalar" else H


def expected_logits(head, tokens):
    spec, p = head.spec, {k: v.detach().numpy() for k, v in head.named_parameters()}
    x = tokens.numpy()
    patches = x[:, spec.n_prefix :]
    z = np.einsum("nld,kd->nlk", patches, p["projection.weight"]) + p["projection.bias"]
    if spec.head_layout == "contiguous":
        heads = np.split(z, spec.n_heads, axis=2)
    else:
        heads = [z[:, :, i :: spec.n_heads] for i in range(spec.n_heads)]
    norm = p["head_norm.weight"], p["head_norm.bias"], 1e-5
    heads = [centred(layer_norm(H, *norm), spec.center) for H in heads]
    maps = []
    for i, j in PAIRS[spec.cross]:
        M = np.einsum("nla,nlb->nab", heads[i], heads[j]) / patches.shape[1]
        if spec.normalize == "column":
            M = M / np.sqrt(np.square(M).sum(axis=1, keepdims=True))
        elif spec.normalize == "frobenius":
            M = M / np.sqrt(np.square(M).sum(axis=(1, 2), keepdims=True))
        maps.append(M)
    maps = np.stack(maps, axis=1)
    for k in range(spec.conv_layers):
        maps = convolved(gelu(maps) if k else maps, p[f"convolutions.{k}.weight"])
    first = x[:, 0] if spec.first == "cls" else patches.mean(1)
    if spec.first == "mean_norm":
        first = layer_norm(first, p["mean_norm.weight"], p["mean_norm.bias"], 1e-6)
    a, b = spec.combine
    one = np.einsum("nd,cd->nc", first, p["first.weight"]) + p["first.bias"]
    flat = maps.reshape(len(maps), -1)
    two = np.einsum("nd,cd->nc", flat, p["second.weight"]) + p["second.bias"]
    return a * one + b * two


@pytest.mark.parametrize("cross", sorted(PAIRS))
@pytest.mark.parametrize("center", ["token", "scalar", None])
def test_logits_are_those_of_the_formulas(tokens, cross, center):
    head = head_of(cross=cross, center=center)
    np.testing.assert_allclose(
        head(tokens).detach(), expected_logits(head, tokens), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize(
    "options",
    [
        {"head_layout": "interleaved", "first": "mean_norm", "n_prefix": 0},
        {"first": "mean", "combine": (0.3, 0.9)},
        {"normalize": "frobenius", "n_prefix": 3},
        {"normalize": None, "conv_layers": 0},
        {"proj_dim": 64, "conv_layers": 2},
    ],
    ids=str,
)
def test_other_forms_are_those_of_the_formulas(tokens, options):
    head = head_of(**options)
    np.testing.assert_allclose(
        head(tokens).detach(), expected_logits(head, tokens), rtol=1e-9, atol=1e-11
    )


# Sizes.


def test_released_configuration_has_the_sizes_of_the_paper():
    head = make_moment_head(MomentSpec(768, 1000), torch.Generator().manual_seed(0))
    sizes = {}
    for name, parameter in head.named_parameters():
        part = name.split(".")[0]
        sizes[part] = sizes.get(part, 0) + parameter.numel()
    assert sizes == {
        "first": 769_000,
        "projection": 393_728,
        "head_norm": 256,
        "convolutions": 162,
        "second": 2_884_000,
    }
    assert sum(sizes.values()) == 4_047_146
    x = torch.zeros(1, 5, 768, dtype=torch.float64)
    assert head.maps(x).shape == (1, 3, 128, 128)
    assert head.moments(x)[1].shape == (1, 2883)


@pytest.mark.parametrize("side", range(1, 40))
@pytest.mark.parametrize("conv_layers", [0, 1, 2, 3])
def test_maps_pass_as_many_convolutions_as_torch_lets_them(side, conv_layers):
    x, passed = torch.zeros(1, 1, side, side), 0
    for _ in range(conv_layers):
        if x.shape[2] < 3:
            break
        x = nn.functional.conv2d(x, torch.zeros(1, 1, 3, 3), stride=2)
        passed += 1
    assert most_convolutions(side, conv_layers) == passed
    assert conv_side(side, passed) == x.shape[2]


# What it is a moment of.


def test_bare_second_moment_is_the_cross_block_of_the_covariance(tokens):
    head = make_moment_head(MomentSpec(D, C, **BARE, n_prefix=0))
    blocks = [np.cov(x.T, bias=True)[: D // 2, D // 2 :] for x in tokens.numpy()]
    second = head.moments(tokens)[1].reshape(N, D // 2, D // 2)
    np.testing.assert_allclose(second, blocks, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("first", ["cls", "mean", "mean_norm"])
@pytest.mark.parametrize("center", ["token", "scalar", None])
def test_order_and_repetition_of_tokens_do_not_matter(tokens, first, center):
    head = head_of(first=first, center=center)
    expected = head(tokens).detach()
    order = torch.from_numpy(np.random.default_rng(1).permutation(np.arange(1, L)))
    shuffled = torch.cat([tokens[:, :1], tokens[:, order]], dim=1)
    doubled = torch.cat([tokens, tokens[:, 1:]], dim=1)
    for again in (shuffled, doubled):
        np.testing.assert_allclose(head(again).detach(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("center", ["token", "scalar", None])
def test_what_stands_under_the_mask_changes_nothing(tokens, center):
    head, mask = head_of(center=center), torch.ones(N, L, dtype=torch.bool)
    mask[:, 6:] = False
    expected = head(tokens[:, :6]).detach()
    for filler in (torch.nan, torch.inf, 1e30):
        dirty = tokens.where(mask[..., None], filler)
        np.testing.assert_allclose(head(dirty, mask).detach(), expected, rtol=1e-9, atol=1e-11)


def test_gradients_are_finite_under_a_mask(tokens):
    head, mask = head_of(), torch.ones(N, L, dtype=torch.bool)
    mask[:, 6:] = False
    head(tokens.where(mask[..., None], torch.nan), mask).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("center", ["token", "scalar", None])
@pytest.mark.parametrize("normalize", ["column", "frobenius", None])
def test_gradients_are_those_of_finite_differences(tokens, center, normalize):
    head = head_of(center=center, normalize=normalize, proj_dim=12, n_heads=3, conv_layers=1)
    names = [name for name, _ in head.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in head.parameters())
    x = tokens[:2, :5]

    def logits(*parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(logits, values)


def test_equal_tokens_give_zero_maps_and_finite_gradients(tokens):
    head = head_of()
    same = tokens[:, 1:2].expand(-1, 7, -1)
    logits = head(torch.cat([tokens[:, :1], same], dim=1))
    logits.sum().backward()
    assert not head.maps(same).any()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


# Branches.


@pytest.mark.parametrize("first", ["cls", "mean", "mean_norm"])
def test_without_the_second_branch_it_is_its_linear_head(tokens, first):
    head = head_of(first=first, combine=(1.0, 0.0))
    x = tokens[:, 0] if first == "cls" else tokens[:, 1:].mean(1)
    if first == "mean_norm":
        x = head.mean_norm(x)
    expected = nn.functional.linear(x, head.first.weight, head.first.bias)
    assert torch.equal(head(tokens), expected)
    assert {name.split(".")[0] for name, _ in head.named_parameters()} <= {"first", "mean_norm"}


def test_without_the_first_branch_only_maps_count(tokens):
    head = head_of(combine=(0.0, 1.0))
    other = torch.cat([tokens[:, :1] + 5, tokens[:, 1:]], dim=1)
    assert torch.equal(head(other), head(tokens))
    assert head.moments(tokens)[0] is None


# Drawing and units.


def test_drawing_leaves_the_generator_of_torch_alone():
    before = torch.get_rng_state()
    a, b = (make_moment_head(MomentSpec(D, C), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)
    assert not any(p.any() for linear in (a.first, a.second) for p in linear.parameters())


def test_layers_are_drawn_with_the_spread_of_torch():
    drawn = make_moment_head(MomentSpec(400, C), torch.Generator().manual_seed(0))
    ours, theirs = drawn.projection.weight.detach(), nn.Linear(400, 512).weight.detach()
    np.testing.assert_allclose(float(ours.std()), float(theirs.std()), rtol=0.02)
    bound = 1 / np.sqrt(3 * 9)
    largest = float(drawn.convolutions[0].weight.detach().abs().max())
    assert 0.9 * bound < largest <= bound


def test_units_are_mean_and_deviation_of_real_tokens(tokens):
    head, mask = head_of(), torch.ones(N, L, dtype=torch.bool)
    mask[1, 4:] = False
    dirty = tokens.where(mask[..., None], torch.nan)
    head.set_units([(dirty[:2], mask[:2]), (dirty[2:], mask[2:])])
    real = tokens[:, 1:][mask[:, 1:]].numpy()
    for found, expected in (
        (head.token_mean, real.mean(0)),
        (head.token_scale, real.std(0)),
        (head.first_mean, tokens[:, 0].mean(0)),
        (head.first_scale, tokens[:, 0].numpy().std(0)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("first", ["cls", "mean", "mean_norm"])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_units_make_logits_free_of_scale(tokens, first, scale):
    head = head_of(first=first)
    head.set_units([(tokens, None)])
    expected = head(tokens).detach()
    head.set_units([(scale * tokens, None)])
    np.testing.assert_allclose(head(scale * tokens).detach(), expected, rtol=1e-7, atol=1e-9)


def test_constant_features_keep_their_scale(tokens):
    head = head_of()
    constant = tokens.clone()
    constant[..., 3] = 7.0
    head.set_units([(constant, None)])
    assert head.token_scale[3] == head.first_scale[3] == 1.0
    assert torch.isfinite(head(constant)).all()
