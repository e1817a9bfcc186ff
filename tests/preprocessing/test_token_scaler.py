# SPDX-License-Identifier: BSD-3-Clause
"""TokenStandardScaler against scikit-learn's StandardScaler on the tokens laid out as rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from skpool.pooling import TokenPooling
from skpool.preprocessing import TokenStandardScaler
from skpool.stores import TokenArray

N, L, D = 10, 5, 4


def make(n=N, seed=0):
    rng = np.random.default_rng(seed)
    position = rng.normal(size=(L, D)) * 3
    return position + rng.normal(size=(n, L, D)) * (1 + np.arange(D)) + 2.0


@pytest.fixture
def tokens():
    return make()


def masked(tokens, garbage=np.nan, lengths=None):
    lengths = 1 + np.arange(len(tokens)) % L if lengths is None else lengths
    mask = np.arange(L) < np.asarray(lengths)[:, None]
    X = TokenArray.from_array(np.where(mask[..., None], tokens, garbage), mask=mask)
    return X, mask


# --- all positions alike ---------------------------------------------------------------------


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("with_std", [True, False])
def test_equals_scikit_learn_on_the_tokens_as_rows(tokens, with_mean, with_std):
    model = TokenStandardScaler(with_mean=with_mean, with_std=with_std).fit(tokens)
    want = StandardScaler(with_mean=with_mean, with_std=with_std).fit(tokens.reshape(-1, D))
    new = make(seed=1)
    got = model.transform(new).reshape(-1, D)
    np.testing.assert_allclose(got, want.transform(new.reshape(-1, D)), atol=1e-12)
    if with_mean or with_std:
        np.testing.assert_allclose(model.mean_, want.mean_, rtol=1e-12)
    np.testing.assert_allclose(model.scale_, want.scale_ if with_std else 1.0, rtol=1e-12)


@pytest.mark.parametrize("per_position", [False, True])
def test_one_token_equals_standard_scaler(tokens, per_position):
    rows, new = tokens[:, 0], make(seed=1)[:, 0]
    want = StandardScaler().fit(rows).transform(new)
    model = TokenStandardScaler(per_position=per_position)
    np.testing.assert_allclose(model.fit(rows).transform(new), want, atol=1e-12)
    got = model.fit(rows[:, None]).transform(new[:, None])
    np.testing.assert_allclose(got[:, 0], want, atol=1e-12)


def test_training_tokens_get_mean_0_and_variance_1(tokens):
    Z = TokenStandardScaler().fit_transform(tokens).reshape(-1, D)
    np.testing.assert_allclose(Z.mean(axis=0), 0.0, atol=1e-13)
    np.testing.assert_allclose(Z.var(axis=0), 1.0, rtol=1e-12)


def test_masked_training_tokens_get_mean_0_and_variance_1(tokens):
    X, mask = masked(tokens)
    Z = np.asarray(TokenStandardScaler().fit_transform(X))[mask]
    np.testing.assert_allclose(Z.mean(axis=0), 0.0, atol=1e-13)
    np.testing.assert_allclose(Z.var(axis=0), 1.0, rtol=1e-12)


@pytest.mark.parametrize("mask", [False, True])
def test_mean_pooling_changes_places_with_it(tokens, mask):
    X = masked(tokens)[0] if mask else TokenArray.from_array(tokens)
    model = TokenStandardScaler().fit(X)
    pooling = TokenPooling("mean", scope="all")
    before = pooling.fit_transform(model.transform(X))
    after = model.transform(pooling.fit_transform(X))
    np.testing.assert_allclose(before, after, atol=1e-12)


def test_pooled_vectors_are_not_standardised(tokens):
    Z = TokenStandardScaler().fit_transform(tokens).mean(axis=1)
    assert (Z.var(axis=0) < 0.9).all()


@pytest.mark.parametrize("value", [0.1, 0.0, 1e6, -3.3e-7])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("per_position", [False, True])
def test_channel_of_equal_values_is_not_divided(tokens, value, dtype, per_position):
    tokens[..., 2] = value
    tokens = tokens.astype(dtype)
    model = TokenStandardScaler(per_position=per_position)
    for part in np.split(tokens, 5):
        model.partial_fit(part)
    assert (model.scale_[..., 2] == 1).all()
    assert (np.delete(model.scale_, 2, axis=-1) > 0.1).all()
    np.testing.assert_allclose(model.transform(tokens)[..., 2], 0.0, atol=1e-9)
    other = tokens + np.float64(0.5).astype(dtype)
    np.testing.assert_allclose(
        model.transform(other)[..., 2], other[..., 2].astype(float) - float(dtype(value)), rtol=1e-5
    )


@pytest.mark.parametrize("value", [0.1, -3e8])
def test_channel_that_differs_by_rounding_alone_is_not_divided(tokens, value):
    tokens[..., 2] = value
    tokens[::2, :, 2] = np.nextafter(value, np.inf)
    want = StandardScaler().fit(tokens.reshape(-1, D))
    assert want.scale_[2] == 1
    np.testing.assert_allclose(TokenStandardScaler().fit(tokens).scale_, want.scale_, rtol=1e-12)


def test_float32_tokens_far_from_zero_keep_their_digits(tokens):
    far = (tokens + 1e5 / 3).astype(np.float32)
    want = StandardScaler().fit_transform(far.reshape(-1, D).astype(np.float64))
    got = TokenStandardScaler().fit_transform(far).reshape(-1, D)
    # The mean lies between two float32 numbers, 4e-3 apart.
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_small_deviations_are_divided_by_eps(tokens):
    small = (tokens - tokens.mean(axis=(0, 1))) * 1e-6
    model = TokenStandardScaler(eps=1e-3).fit(small)
    np.testing.assert_array_equal(model.scale_, 1e-3)
    np.testing.assert_allclose(model.transform(small), small / 1e-3, atol=1e-12)


# --- each position by itself -----------------------------------------------------------------


def test_each_position_equals_a_scaler_of_its_own(tokens):
    model = TokenStandardScaler(per_position=True).fit(tokens)
    new = make(seed=1)
    got = model.transform(new)
    assert model.mean_.shape == model.scale_.shape == (L, D)
    for place in range(L):
        want = StandardScaler().fit(tokens[:, place])
        np.testing.assert_allclose(got[:, place], want.transform(new[:, place]), atol=1e-12)


def test_each_position_of_masked_tokens_equals_a_scaler_of_its_own(tokens):
    X, mask = masked(tokens)
    model = TokenStandardScaler(per_position=True).fit(X)
    got = np.asarray(model.transform(X))
    for place in range(L):
        real = tokens[mask[:, place], place]
        want = StandardScaler().fit_transform(real)
        np.testing.assert_allclose(got[mask[:, place], place], want, atol=1e-12)
    assert model.n_samples_seen_ == mask.sum()


def test_maps_have_positions_too(tokens):
    maps = tokens[:, :4].reshape(N, 2, 2, D)
    got = TokenStandardScaler(per_position=True).fit_transform(maps)
    np.testing.assert_allclose(got.mean(axis=0), 0.0, atol=1e-13)
    np.testing.assert_allclose(got.var(axis=0), 1.0, rtol=1e-12)


@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_tokens_is_refused(tokens, change):
    model = TokenStandardScaler(per_position=True).fit(tokens[:, : L - 1])
    other = tokens[:, : L - 1 + change]
    for X in (other, torch.from_numpy(other), TokenArray.from_array(other)):
        with pytest.raises(ValueError, match=f"{L - 1 + change} tokens.*fitted on {L - 1}"):
            model.transform(X)
        with pytest.raises(ValueError, match="tokens"):
            model.partial_fit(X)
    with pytest.raises(ValueError, match="1 tokens"):
        model.transform(tokens[:, 0])


def test_shorter_ragged_samples_are_accepted_and_longer_ones_refused(tokens):
    model = TokenStandardScaler(per_position=True).fit(tokens[:, :4])
    got = model.transform([sample[:2] for sample in tokens])
    np.testing.assert_allclose(np.asarray(got), model.transform(tokens[:, :4])[:, :2], atol=1e-13)
    with pytest.raises(ValueError, match="5 tokens"):
        model.transform(list(tokens))


def test_padding_beyond_the_positions_of_training_is_no_token(tokens):
    X, _ = masked(tokens, lengths=[3] * N)
    model = TokenStandardScaler(per_position=True).fit(tokens[:, :3])
    got = np.asarray(model.transform(X))
    np.testing.assert_allclose(got[:, :3], model.transform(tokens[:, :3]), atol=1e-13)
    np.testing.assert_allclose(
        TokenStandardScaler(per_position=True).fit(X).mean_, model.mean_, rtol=1e-13
    )


def test_position_without_a_token_takes_the_statistics_of_all(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[:, 1] = False
    model = TokenStandardScaler(per_position=True).fit(TokenArray.from_array(tokens, mask=mask))
    want = StandardScaler().fit(tokens[mask])
    np.testing.assert_allclose(model.mean_[1], want.mean_, rtol=1e-12)
    np.testing.assert_allclose(model.scale_[1], want.scale_, rtol=1e-12)


@settings(deadline=None, max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 30), max_size=4), seed=st.integers(0, 100), ragged=st.booleans()
)
def test_partial_fit_by_position_equals_fit(cuts, seed, ragged):
    X = make(30, seed)
    samples = [x[: 1 + i % L] for i, x in enumerate(X)] if ragged else list(X)
    order = np.random.default_rng(seed).permutation(30)
    model = TokenStandardScaler(per_position=True)
    for part in np.split(order, sorted(cuts)):
        if len(part):
            given_ = [samples[i] for i in part]
            model.partial_fit(given_ if ragged else np.stack(given_))
    want = TokenStandardScaler(per_position=True).fit(samples)
    np.testing.assert_allclose(model.mean_, want.mean_, atol=1e-12)
    np.testing.assert_allclose(model.scale_, want.scale_, rtol=1e-10)


def test_forget_and_merge_by_position(tokens):
    scaler = TokenStandardScaler(per_position=True)
    whole = make(30)
    want = TokenStandardScaler(per_position=True).fit(whole[:20])
    forgotten = scaler.fit(whole).forget(whole[20:])
    np.testing.assert_allclose(forgotten.scale_, want.scale_, rtol=1e-10)
    one = TokenStandardScaler(per_position=True).fit(whole[:8])
    one.merge(TokenStandardScaler(per_position=True).fit(whole[8:20]))
    np.testing.assert_allclose(one.mean_, want.mean_, atol=1e-12)
    assert one.n_samples_seen_ == 20 * L


def test_positions_have_no_one_affine_map(tokens):
    model = TokenStandardScaler(per_position=True).fit(tokens)
    assert not hasattr(model, "as_affine")
    assert hasattr(TokenStandardScaler().fit(tokens), "as_affine")


@pytest.mark.parametrize("name", ["with_mean", "with_std", "per_position"])
def test_options_are_booleans(tokens, name):
    with pytest.raises(ValueError, match=name):
        TokenStandardScaler(**{name: "yes"}).fit(tokens)
