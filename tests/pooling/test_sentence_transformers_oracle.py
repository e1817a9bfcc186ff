# SPDX-License-Identifier: BSD-3-Clause
"""TokenPooling against the pooling module of sentence-transformers, on masked random tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skpool.pooling import TokenPooling
from skpool.stores import TokenArray

Oracle = pytest.importorskip(
    "sentence_transformers.sentence_transformer.modules",
    reason="sentence-transformers 6 is not installed",
).Pooling

D = 8
# Our names and theirs. Their "cls" is the first real token, which is ours to call "first"; our
# "cls" is the token at position 0, the same where padding stands on the right.
MODES = {
    "first": "cls",
    "last": "lasttoken",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "weighted_mean": "weightedmean",
}
every_mode = pytest.mark.parametrize("strategy", MODES)
SIDES = ("left", "right")


def padded(seed, lengths, side, dtype=np.float64):
    """Random tokens of these lengths, with large numbers where the padding is, and the mask."""
    width = max(lengths) + 2
    places = np.arange(width)
    starts = np.array([width - n if side == "left" else 0 for n in lengths])[:, None]
    mask = (places >= starts) & (places < starts + np.array(lengths)[:, None])
    rng = np.random.default_rng(seed)
    tokens = rng.normal(1.0, 2.0, size=(len(lengths), width, D))
    return np.where(mask[..., None], tokens, 1e3).astype(dtype), mask


def oracle(mode, tokens, mask):
    features = {
        "token_embeddings": torch.from_numpy(tokens),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
    }
    return Oracle(tokens.shape[2], mode)(features)["sentence_embedding"].numpy()


def test_every_mode_of_the_oracle_is_compared():
    assert set(MODES.values()) == set(Oracle.POOLING_MODES)


@every_mode
@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    side=st.sampled_from(SIDES),
)
def test_masked_tokens_give_the_vectors_of_the_oracle(strategy, seed, lengths, side):
    tokens, mask = padded(seed, lengths, side)
    actual = TokenPooling(strategy).fit_transform(TokenArray.from_array(tokens, mask=mask))
    np.testing.assert_allclose(actual, oracle(MODES[strategy], tokens, mask), rtol=1e-12)


@every_mode
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_floats_give_the_vectors_of_the_oracle(strategy, dtype):
    tokens, mask = padded(0, [3, 1, 7, 5], "right", dtype)
    actual = TokenPooling(strategy).fit_transform(TokenArray.from_array(tokens, mask=mask))
    expected = oracle(MODES[strategy], tokens, mask)
    # Theirs comes back in half precision.
    np.testing.assert_allclose(actual, expected, rtol=2 * np.finfo(dtype).eps, atol=1e-6)


@every_mode
def test_tokens_without_a_mask_give_the_vectors_of_the_oracle(strategy):
    tokens, _ = padded(1, [6, 6, 6], "right")
    mask = np.ones(tokens.shape[:2], dtype=bool)
    actual = TokenPooling(strategy).fit_transform(tokens)
    np.testing.assert_allclose(actual, oracle(MODES[strategy], tokens, mask), rtol=1e-12)


def test_ragged_sentences_give_the_vectors_of_the_oracle():
    tokens, mask = padded(2, [4, 2, 9], "right")
    sentences = [row[real] for row, real in zip(tokens, mask, strict=True)]
    strategies = tuple(MODES)
    actual = TokenPooling(strategies).fit_transform(sentences)
    expected = oracle(tuple(MODES[name] for name in strategies), tokens, mask)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_class_token_is_that_of_the_oracle_where_padding_stands_on_the_right():
    tokens, mask = padded(3, [4, 2, 9], "right")
    X = TokenArray.from_array(tokens, mask=mask, n_prefix_tokens=1)
    np.testing.assert_array_equal(TokenPooling("cls").fit_transform(X), oracle("cls", tokens, mask))


def test_mean_without_the_prefix_is_that_of_the_oracle_without_the_prompt():
    tokens, mask = padded(4, [4, 3, 9], "right")
    X = TokenArray.from_array(tokens, mask=mask, n_prefix_tokens=2)
    features = {
        "token_embeddings": torch.from_numpy(tokens),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        "prompt_length": 2,
    }
    expected = Oracle(D, "mean", include_prompt=False)(features)["sentence_embedding"]
    np.testing.assert_allclose(TokenPooling("mean").fit_transform(X), expected, rtol=1e-12)
