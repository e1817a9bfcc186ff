# SPDX-License-Identifier: BSD-3-Clause
"""Weights of tokens: for all samples, by a callable, or a row for each sample."""

import numpy as np
import pytest
import torch

from skpool.pooling import TokenPooling
from skpool.stores import RowSource, TokenArray, TokenBatch, assemble

N, L, D = 6, 5, 4


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(N, L, D))


@pytest.fixture
def masked(tokens):
    """Tokens with NaN under a mask, and the mask."""
    mask = np.random.default_rng(1).random((N, L)) < 0.6
    mask[:, 2] = True
    return np.where(mask[..., None], tokens, np.nan), mask


class ComputedSource(RowSource):
    """Stands for a network: tokens in pieces of its own size, last samples first."""

    n_prefix_tokens = 1
    grid = None
    dtype = np.dtype("float64")

    def __init__(self, values):
        self.values = torch.from_numpy(values)
        self.n_rows, *self.row_shape = values.shape

    def stream(self, rows, batch_size=None):
        for start in reversed(range(0, len(rows), 4)):
            positions = np.arange(start, min(start + 4, len(rows)))
            yield TokenBatch(positions, self.values[rows[positions]], None)

    def reduce(self, rows, function, *, fingerprint=None, batch_size=None):
        return assemble(
            ((positions, function(x, mask)) for positions, x, mask in self.stream(rows)),
            len(rows),
            lambda: function(torch.zeros((1, *self.row_shape)), None),
        ).numpy()


# One row for all samples.


@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor])
def test_weights_give_the_weighted_average(tokens, kind):
    weights = [0.1, 0.0, 2.0, 0.3, 1.0]
    vectors = TokenPooling("weighted_mean", weights=kind(weights)).fit_transform(tokens)
    expected = np.average(tokens, axis=1, weights=weights)
    np.testing.assert_allclose(vectors, expected, rtol=1e-6 if kind is torch.as_tensor else 1e-12)


def test_callable_weights_are_given_the_number_of_tokens(tokens):
    pooling = TokenPooling("weighted_mean", weights=lambda n_tokens: 0.5 ** np.arange(n_tokens))
    expected = np.average(tokens, axis=1, weights=0.5 ** np.arange(L))
    np.testing.assert_allclose(pooling.fit_transform(tokens), expected, rtol=1e-12)


def test_scale_of_the_weights_does_not_matter(tokens):
    X, weights = tokens.astype(np.float32), np.arange(1.0, L + 1)
    expected = TokenPooling("weighted_mean", weights=weights).fit_transform(X)
    for scale in (1e-200, 1e200):
        scaled = TokenPooling("weighted_mean", weights=weights * scale).fit_transform(X)
        np.testing.assert_allclose(scaled, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "weights",
    [
        [1.0, 2.0],
        [1.0, 1.0, 1.0, 1.0, -1.0],
        [0.0] * L,
        [1.0, 1.0, 1.0, 1.0, np.nan],
        [1.0, 1.0, 1.0, 1.0, np.inf],
        np.ones((L, 1)),
        lambda n_tokens: np.ones(n_tokens + 1),
    ],
)
def test_bad_weights_are_refused(tokens, weights):
    with pytest.raises(ValueError, match="weights"):
        TokenPooling("weighted_mean", weights=weights).fit_transform(tokens)


def test_weights_that_are_zero_for_all_real_tokens_of_a_sample_are_refused(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[3, 4:] = False
    pooling = TokenPooling("weighted_mean", weights=[0, 0, 0, 0, 1])
    with pytest.raises(ValueError, match="weights are 0"):
        pooling.fit_transform(TokenArray.from_array(tokens, mask=mask))


def test_weights_that_do_not_fit_are_refused_by_fit(tokens):
    with pytest.raises(ValueError, match=r"weights has shape \(3,\); give 5 numbers"):
        TokenPooling("weighted_mean", weights=[1.0, 2.0, 3.0]).fit(tokens)


def test_callable_weights_see_all_tokens_whatever_the_batch_holds():
    class Ragged(ComputedSource):
        """Pieces as long as their longest sample."""

        n_prefix_tokens = 0
        lengths = np.array([2, 5, 1, 4, 3, 2])

        def stream(self, rows, batch_size=None):
            for at in range(len(rows)):
                n = self.lengths[rows[at]]
                mask = torch.ones((1, n), dtype=torch.bool)
                yield TokenBatch(np.array([at]), self.values[rows[[at]], :n], mask)

        def mask(self, rows):
            return np.arange(L) < self.lengths[rows][:, None]

    values = np.random.default_rng(0).normal(size=(N, L, D))
    falling = TokenPooling("weighted_mean", weights=lambda n_tokens: np.arange(n_tokens, 0, -1))
    vectors = falling.fit_transform(TokenArray(Ragged(values)))
    for x, n, vector in zip(values, Ragged.lengths, vectors, strict=True):
        expected = np.average(x[:n], axis=0, weights=np.arange(L, 0, -1)[:n])
        np.testing.assert_allclose(vector, expected, rtol=1e-12)


@pytest.fixture
def weights():
    """A row of weights per sample, some of them 0."""
    weights = np.random.default_rng(3).random((N, L)) * np.arange(1, N + 1)[:, None]
    weights[1, 2:] = 0.0
    return weights


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, np.ndarray.tolist])
def test_weights_of_each_sample_give_its_weighted_average(tokens, weights, kind):
    expected = [np.average(x, axis=0, weights=w) for x, w in zip(tokens, weights, strict=True)]
    for X in (tokens, torch.from_numpy(tokens), TokenArray.from_array(tokens), list(tokens)):
        pooling = TokenPooling("weighted_mean", weights=kind(weights)).fit(X)
        vectors = pooling.transform(X)
        assert isinstance(vectors, torch.Tensor) == isinstance(X, torch.Tensor)
        np.testing.assert_allclose(vectors, expected, rtol=1e-12)


def test_weights_of_each_sample_leave_masked_tokens_out(masked, weights):
    X, mask = masked
    weights[1] = 1.0
    expected = [
        np.average(x[real], axis=0, weights=w[real])
        for x, real, w in zip(X, mask, weights, strict=True)
    ]
    vectors = TokenPooling("weighted_mean", weights=weights).fit_transform(
        TokenArray.from_array(X, mask=mask)
    )
    np.testing.assert_allclose(vectors, expected, rtol=1e-12)


def test_weights_of_each_sample_follow_tokens_that_come_out_of_order(tokens, weights):
    X = TokenArray(ComputedSource(tokens))
    pooling = TokenPooling("weighted_mean", weights=weights[:, 1:] + 0.1).fit(X)
    expected = [
        np.average(x[1:], axis=0, weights=w[1:] + 0.1) for x, w in zip(tokens, weights, strict=True)
    ]
    np.testing.assert_allclose(pooling.transform(X), expected, rtol=1e-12)


def test_weights_of_each_sample_stand_beside_other_strategies(tokens, weights):
    X = TokenArray.from_array(tokens, n_prefix_tokens=1)
    pooling = TokenPooling(("cls", "weighted_mean", "max"), weights=weights[:, 1:] + 1)
    average = [
        np.average(x[1:], axis=0, weights=w[1:] + 1) for x, w in zip(tokens, weights, strict=True)
    ]
    expected = np.hstack([tokens[:, 0], average, tokens[:, 1:].max(1)])
    for batch_size in (1, 4, 256):
        vectors = pooling.set_params(batch_size=batch_size).fit_transform(X)
        np.testing.assert_allclose(vectors, expected, rtol=1e-12)
    assert len(pooling.get_feature_names_out()) == 3 * D


def test_weights_of_each_sample_keep_type_empty_rows_and_frames(tokens, weights):
    X = tokens.astype(np.float16)
    mask = np.ones((N, L), dtype=bool)
    mask[4] = False
    pooling = TokenPooling("weighted_mean", weights=weights, empty="zero", out_dtype="float64")
    vectors = pooling.fit_transform(TokenArray.from_array(X, mask=mask))
    assert vectors.dtype == np.float64
    np.testing.assert_array_equal(vectors[4], 0.0)
    assert TokenPooling("weighted_mean", weights=weights).fit_transform(X).dtype == np.float32
    pytest.importorskip("pandas")
    frame = TokenPooling("weighted_mean", weights=weights).set_output(transform="pandas")
    assert list(frame.fit_transform(X).columns) == [f"tokenpooling{i}" for i in range(D)]


def test_scale_of_the_weights_of_a_sample_does_not_matter(tokens, weights):
    X = tokens.astype(np.float32)
    expected = TokenPooling("weighted_mean", weights=weights).fit_transform(X)
    scaled = weights * np.array([1e-300, 1e-30, 1.0, 1e3, 1e30, 1e290])[:, None]
    vectors = TokenPooling("weighted_mean", weights=scaled).fit_transform(X)
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)


@pytest.mark.parametrize("rows", [[0], [0, 1, 2], [0, 1, 2, 3, 4, 5, 0]])
def test_weights_of_other_samples_are_refused(tokens, weights, rows):
    pooling = TokenPooling("weighted_mean", weights=weights)
    message = rf"weights has shape \(6, 5\), and X has {len(rows)} samples of 5 tokens"
    with pytest.raises(ValueError, match=message):
        pooling.fit(tokens[rows])
    with pytest.raises(ValueError, match=message):
        pooling.fit(tokens).transform(tokens[rows])


def test_weights_of_each_sample_that_are_all_zero_are_refused(tokens, weights):
    weights[3] = 0.0
    with pytest.raises(ValueError, match="weights are 0 for all real tokens"):
        TokenPooling("weighted_mean", weights=weights).fit_transform(tokens)


def test_weights_of_each_sample_have_no_name_in_stores(tokens, weights):
    pooling = TokenPooling("weighted_mean", weights=weights)
    assert pooling._fingerprint() is None
    assert pooling.job(TokenArray.from_array(tokens)) is None
    assert TokenPooling("weighted_mean", weights=weights[0])._fingerprint() is not None
    assert TokenPooling("mean", weights=weights)._fingerprint() is not None


def test_weights_that_no_strategy_uses_are_not_looked_at(tokens):
    vectors = TokenPooling("mean", weights=np.ones((2, 2))).fit_transform(tokens)
    np.testing.assert_allclose(vectors, tokens.mean(1), rtol=1e-12)
