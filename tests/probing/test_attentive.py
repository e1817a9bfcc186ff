# SPDX-License-Identifier: BSD-3-Clause
"""AttentiveProbeClassifier and its module: against numpy and torch, limits, tokens of all kinds."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from torch import nn
from torch.nn import functional as F

from skpool.probing import AttentiveProbeClassifier
from skpool.probing._attentive_modules import AttentiveSpec, head_count, make_attentive_head
from skpool.stores import TokenArray

N, L, D, C = 6, 5, 8, 3


def head_of(**options):
    """A module with weights that are nothing special, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    head = make_attentive_head(AttentiveSpec(D, C, **options), generator)
    with torch.no_grad():
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
    return head.eval()


def normed(X):
    return (X - X.mean(axis=-1, keepdims=True)) / np.sqrt(X.var(axis=-1, keepdims=True) + 1e-5)


def arrays(head):
    return {name: value.detach().numpy() for name, value in head.state_dict().items()}


def scores_of(head, tokens, mask=None):
    mask = None if mask is None else torch.as_tensor(mask)
    return head(torch.as_tensor(tokens), mask).detach().numpy()


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(N, L, D))


@pytest.fixture
def data():
    """One token of six tells the class."""
    rng = np.random.default_rng(0)
    y = np.array(["left", "right"])[np.arange(120) % 2]
    X = rng.normal(size=(120, 6, 8))
    X[:, 2, :2] += np.c_[np.where(y == "left", 3, -3), np.full(120, 5)]
    return X, y


FAST = {"epochs": 3, "lr": 0.01, "batch_size": 32}


# The module.


def test_one_head_without_block_is_an_explicit_softmax_pooling(tokens):
    head = head_of()
    w, u = arrays(head), normed(tokens)
    query = w["queries"][0] @ w["cross.query.weight"].T
    weights = softmax(u @ w["cross.key.weight"].T @ query / np.sqrt(D), axis=1)
    values = u @ w["cross.value.weight"].T + w["cross.value.bias"]
    pooled = np.einsum("nl,nld->nd", weights, values)
    pooled = pooled @ w["cross.out.weight"].T + w["cross.out.bias"]
    expected = pooled @ w["head.weight"].T + w["head.bias"]
    np.testing.assert_allclose(scores_of(head, tokens), expected, rtol=1e-10)
    maps = head.attend(torch.as_tensor(tokens)).detach()
    np.testing.assert_allclose(maps[:, 0, 0], weights, rtol=1e-10)


@pytest.mark.parametrize("n_queries", [1, 3])
def test_heads_equal_the_attention_of_torch(tokens, n_queries):
    head = head_of(n_heads=4, n_queries=n_queries)
    cross, u = head.cross, torch.as_tensor(normed(tokens))
    theirs = nn.MultiheadAttention(D, 4, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(
            torch.cat([cross.query.weight, cross.key.weight, cross.value.weight])
        )
        theirs.in_proj_bias.copy_(torch.cat([torch.zeros(2 * D), cross.value.bias]))
        theirs.out_proj.load_state_dict(cross.out.state_dict())
        found, maps = theirs(head.queries.expand(N, -1, -1), u, u, average_attn_weights=False)
        expected = head.head(found.flatten(1))
        torch.testing.assert_close(head(torch.as_tensor(tokens)), expected)
        torch.testing.assert_close(head.attend(torch.as_tensor(tokens)), maps)


def test_queries_of_zeros_average_the_values(tokens):
    head = head_of(n_heads=2)
    with torch.no_grad():
        head.queries.zero_()
    w = arrays(head)
    values = normed(tokens).mean(axis=1) @ w["cross.value.weight"].T + w["cross.value.bias"]
    pooled = values @ w["cross.out.weight"].T + w["cross.out.bias"]
    expected = pooled @ w["head.weight"].T + w["head.bias"]
    np.testing.assert_allclose(scores_of(head, tokens), expected, rtol=1e-10)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_single_token_gives_the_head_of_its_value(tokens, qk_norm):
    head = head_of(n_heads=2, qk_norm=qk_norm)
    w, u = arrays(head), normed(tokens[:, 0])
    values = u @ w["cross.value.weight"].T + w["cross.value.bias"]
    pooled = values @ w["cross.out.weight"].T + w["cross.out.bias"]
    expected = pooled @ w["head.weight"].T + w["head.bias"]
    np.testing.assert_allclose(scores_of(head, tokens[:, :1]), expected, rtol=1e-10)


def test_normed_queries_and_keys_follow_their_formula(tokens):
    head = head_of(n_heads=2, qk_norm=True)
    w, width = arrays(head), D // 2
    query = (w["queries"][0] @ w["cross.query.weight"].T).reshape(2, width)
    keys = (normed(tokens) @ w["cross.key.weight"].T).reshape(N, L, 2, width)

    def scaled(x):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True))

    scores = np.einsum("he,nlhe->nhl", scaled(query), scaled(keys)) / np.sqrt(width)
    maps = head.attend(torch.as_tensor(tokens)).detach()[:, :, 0]
    np.testing.assert_allclose(maps, softmax(scores, axis=2), rtol=1e-6)


def test_residual_block_follows_its_formula(tokens):
    head = head_of(mlp_ratio=2.0)
    assert head.widen.weight.shape == (2 * D, D)
    w, plain = arrays(head), head_of()
    plain.load_state_dict(head.state_dict(), strict=False)
    plain.head = nn.Identity()
    v = scores_of(plain, tokens)
    hidden = normed(v) @ w["widen.weight"].T + w["widen.bias"]
    hidden = F.gelu(torch.as_tensor(hidden)).numpy()
    v = v + hidden @ w["narrow.weight"].T + w["narrow.bias"]
    expected = v @ w["head.weight"].T + w["head.bias"]
    np.testing.assert_allclose(scores_of(head, tokens), expected, rtol=1e-9)


VARIANTS = [
    {},
    {"n_heads": 4, "n_queries": 2, "mlp_ratio": 4.0},
    {"n_heads": 2, "qk_norm": True, "dropout": 0.5},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(L)))
def test_order_of_tokens_plays_no_part(options, order):
    head, tokens = head_of(**options), np.random.default_rng(1).normal(size=(N, L, D))
    expected = scores_of(head, tokens)
    np.testing.assert_allclose(scores_of(head, tokens[:, list(order)]), expected, rtol=1e-9)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_masked_tokens_are_never_read(options, tokens):
    head, expected = head_of(**options), scores_of(head_of(**options), tokens[:, :3])
    mask = np.arange(L) < 3
    for garbage in (np.nan, np.inf, 1e30):
        X = np.where(mask[:, None], tokens, garbage)
        np.testing.assert_allclose(scores_of(head, X, np.tile(mask, (N, 1))), expected, rtol=1e-9)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_gradients_are_those_of_differences(options, tokens):
    head, X = head_of(**options), torch.as_tensor(tokens[:2, :3])
    parameters = tuple(head.parameters())
    assert torch.autograd.gradcheck(lambda *_: head(X).square().sum(), parameters)


def test_first_weights_score_all_classes_alike_and_see_the_mean(tokens):
    generator = torch.Generator().manual_seed(0)
    before = torch.get_rng_state()
    head = make_attentive_head(AttentiveSpec(D, C, n_heads=2, mlp_ratio=4.0), generator).eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert not scores_of(head, tokens).any()
    head.head = nn.Identity()
    np.testing.assert_allclose(scores_of(head, tokens), normed(tokens).mean(axis=1), atol=0.1)


def test_number_of_weights_is_as_documented():
    head = make_attentive_head(AttentiveSpec(768, 1000, n_heads=12))
    n, d, q, c = sum(p.numel() for p in head.parameters()), 768, 1, 1000
    assert n == 4 * d**2 + 2 * d + q * d + q * d * c + c
    assert n == pytest.approx(3.1e6, rel=0.01)


def test_automatic_heads_have_64_features_or_more():
    assert head_count(768, "auto") == 12
    assert head_count(1000, "auto") == 10
    assert head_count(127, "auto") == 1


def test_heads_that_do_not_divide_are_refused(data):
    with pytest.raises(ValueError, match=r"n_heads=3 does not divide the 8 .*\[1, 2, 4, 8\]"):
        AttentiveProbeClassifier(n_heads=3).fit(*data)


# The classifier.


def test_it_finds_the_token_that_counts(data):
    X, y = data
    probe = AttentiveProbeClassifier(lr=0.01, batch_size=20).fit(X[:80], y[:80])
    assert probe.score(X[80:], y[80:]) > 0.9
    maps = probe.attention_maps(X[80:])
    np.testing.assert_allclose(maps.sum(axis=3), 1)
    assert maps[:, 0, 0, 2].mean() > 0.5


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_form_learns(data, options):
    X, y = data
    probe = AttentiveProbeClassifier(lr=0.01, batch_size=20, epochs=20).set_params(**options)
    probe.fit(X[:80], y[:80])
    assert probe.score(X[80:], y[80:]) > 0.8
    shape = (40, options.get("n_heads", 1), options.get("n_queries", 1), 6)
    assert probe.attention_maps(X[80:]).shape == shape


def test_dropout_plays_no_part_in_predictions(data):
    X, y = data
    probe = AttentiveProbeClassifier(dropout=0.5, **FAST).fit(X, y)
    np.testing.assert_array_equal(probe.class_scores(X), probe.class_scores(X))
    before = torch.get_rng_state()
    clone(probe).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_standardised_tokens_do_not_depend_on_units(data):
    X, y = data
    scale, shift = 10.0 ** np.arange(-3, 5), np.arange(8) * 100.0
    probe = AttentiveProbeClassifier(**FAST)
    expected = clone(probe).fit(X, y).class_scores(X)
    found = clone(probe).fit(X * scale + shift, y).class_scores(X * scale + shift)
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("standardize", [True, False])
def test_half_precision_of_any_scale_is_learned(data, standardize):
    X, y = data
    # Squares of such numbers are far from float16.
    X = (6e4 * X / np.abs(X).max()).astype(np.float16)
    probe = AttentiveProbeClassifier(standardize=standardize, lr=0.01, batch_size=20).fit(X, y)
    assert probe.score(X, y) > 0.9
    assert np.isfinite(probe.history_[:, 0]).all()


def test_ragged_lists_equal_masked_arrays(data):
    X, y = data
    lengths = 3 + np.arange(len(X)) % 4
    mask = np.arange(6) < lengths[:, None]
    ragged = [x[:n] for x, n in zip(X, lengths, strict=True)]
    masked = TokenArray.from_array(np.where(mask[..., None], X, np.nan), mask=mask)
    probe = AttentiveProbeClassifier(**FAST)
    first, second = clone(probe).fit(ragged, y), clone(probe).fit(masked, y)
    np.testing.assert_allclose(first.class_scores(ragged), second.class_scores(masked), rtol=1e-9)
    maps = first.attention_maps(ragged)
    assert not maps[:, 0, 0][~mask].any()
    np.testing.assert_allclose(maps.sum(axis=3), 1)


def test_vectors_count_as_one_token(data):
    X, y = data[0][:, 2], data[1]
    probe = AttentiveProbeClassifier(**FAST)
    flat, deep = clone(probe).fit(X, y), clone(probe).fit(X[:, None], y)
    np.testing.assert_array_equal(flat.class_scores(X), deep.class_scores(X[:, None]))
    np.testing.assert_array_equal(flat.attention_maps(X), np.ones((120, 1, 1, 1)))


def test_prefix_tokens_are_left_out_on_request(data):
    X, y = data
    prefixed = TokenArray.from_array(X, n_prefix_tokens=2)
    every = AttentiveProbeClassifier(**FAST).fit(prefixed, y)
    patches = AttentiveProbeClassifier(scope="patch", **FAST).fit(prefixed, y)
    without = AttentiveProbeClassifier(**FAST).fit(X[:, 2:], y)
    np.testing.assert_array_equal(patches.class_scores(prefixed), without.class_scores(X[:, 2:]))
    assert every.attention_maps(prefixed).shape[3] == 6
    assert patches.attention_maps(prefixed).shape[3] == 4
    with pytest.raises(ValueError, match="scope='all'"):
        clone(patches).fit(TokenArray.from_array(X, n_prefix_tokens=6), y)


def test_tensors_give_tensors(data):
    X = torch.as_tensor(data[0]).float()
    maps = AttentiveProbeClassifier(**FAST).fit(X, data[1]).attention_maps(X)
    assert isinstance(maps, torch.Tensor)
    assert maps.shape == (120, 1, 1, 6)


def test_one_class_is_always_predicted(data):
    probe = AttentiveProbeClassifier(**FAST).fit(data[0], ["only"] * 120)
    np.testing.assert_array_equal(probe.predict(data[0]), ["only"] * 120)


def test_classes_of_one_sample_are_learned(data):
    probe = AttentiveProbeClassifier(epochs=100, lr=0.01).fit(data[0][:4], [2, 0, 3, 1])
    np.testing.assert_array_equal(probe.predict(data[0][:4]), [2, 0, 3, 1])


def test_samples_without_a_token_are_refused(data):
    X, y = data
    mask = np.ones((120, 6), dtype=bool)
    mask[7] = False
    with pytest.raises(ValueError, match="Sample 7 has no real token"):
        AttentiveProbeClassifier(**FAST).fit(TokenArray.from_array(X, mask=mask), y)


def test_nan_of_real_tokens_is_refused(data):
    X, y = data[0].copy(), data[1]
    X[4, 1, 1] = np.nan
    with pytest.raises(ValueError, match="sample 4"):
        AttentiveProbeClassifier(**FAST).fit(X, y)


def test_classes_may_arrive_later(data):
    X, y = data
    probe = AttentiveProbeClassifier(epochs_partial=20, lr=0.01, batch_size=20)
    left = y == "left"
    probe.partial_fit(X[left], y[left]).partial_fit(X, y)
    np.testing.assert_array_equal(probe.classes_, ["left", "right"])
    assert probe.score(X, y) > 0.9


def test_pickles_predict_alike(data):
    X, y = data
    probe = AttentiveProbeClassifier(2, mlp_ratio=1, qk_norm=True, **FAST).fit(X, y)
    again = pickle.loads(pickle.dumps(probe))
    np.testing.assert_array_equal(again.predict_proba(X), probe.predict_proba(X))
    np.testing.assert_array_equal(again.attention_maps(X), probe.attention_maps(X))


def test_cross_validation_in_two_processes(data):
    probe = AttentiveProbeClassifier(**FAST)
    alone, together = (cross_val_score(probe, *data, cv=3, n_jobs=n) for n in (None, 2))
    np.testing.assert_array_equal(together, alone)
