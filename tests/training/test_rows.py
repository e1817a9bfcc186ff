# SPDX-License-Identifier: BSD-3-Clause
"""Rows by number: what a trainer reads of vectors and tokens, wherever they lie."""

import numpy as np
import pytest
import torch
from lazy_tokens import LazySource

import skpool
from skpool.stores import TokenArray
from skpool.training import TokenRows, VectorRows, class_numbers

N, L, D = 11, 5, 3


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(N, L, D))


@pytest.fixture
def lengths_mask():
    return np.arange(L) < np.array([1, 3, 2, 4, 1, 2, 3, 2, 1, 4, 3])[:, None]


def rows_of(tokens: TokenArray) -> TokenRows:
    return TokenRows(tokens, batch_size=4)


# Tokens.


def test_rows_are_those_of_the_array(values):
    tokens, mask = rows_of(TokenArray.from_array(values)).take(np.array([1, 4, 7]))
    np.testing.assert_array_equal(tokens, values[[1, 4, 7]])
    assert mask is None


def test_half_precision_is_widened_row_by_row(values):
    tokens, _ = rows_of(TokenArray.from_array(values.astype(np.float16))).take(np.array([0]))
    assert tokens.dtype == torch.float32


def test_trailing_padding_is_cut_off(values, lengths_mask):
    rows = rows_of(TokenArray.from_array(values, mask=lengths_mask))
    tokens, mask = rows.take(np.array([0, 1]))
    np.testing.assert_array_equal(tokens, values[:2, :3])
    np.testing.assert_array_equal(mask, lengths_mask[:2, :3])


def test_mask_without_false_is_no_mask(values):
    rows = rows_of(TokenArray.from_array(values, mask=np.ones((N, L), dtype=bool)))
    assert rows.take(np.arange(N))[1] is None


def test_samples_without_token_or_reading_are_left_out(values, lengths_mask):
    lengths_mask[3] = False
    rows = rows_of(TokenArray(LazySource(values, lengths_mask, missing=(5,))))
    np.testing.assert_array_equal(rows.numbers, np.delete(np.arange(N), [3, 5]))
    np.testing.assert_array_equal(rows.take(np.array([3]))[0], values[[4], :1])


def test_nothing_to_learn_from_is_refused(values):
    tokens = TokenArray.from_array(values, mask=np.zeros((N, L), dtype=bool))
    with pytest.raises(ValueError, match="no sample with a real token"):
        rows_of(tokens).take(np.arange(1))


def test_bad_token_of_a_network_names_its_sample(values):
    values[6, 1, 1] = np.inf
    with pytest.raises(ValueError, match=r"computed tokens of sample 6\b"):
        len(rows_of(TokenArray(LazySource(values))))


def test_tokens_of_a_network_are_read_once(values):
    source = LazySource(values)
    rows = rows_of(TokenArray(source))
    for _ in range(3):
        rows.take(np.arange(N))
    assert source.n_read == N


def test_tokens_beyond_the_limit_are_read_again(values):
    source = LazySource(values)
    with skpool.config_context(max_array_bytes=values.nbytes - 1):
        tokens, _ = rows_of(TokenArray(source)).take(np.array([2, 8, 9]))
    np.testing.assert_array_equal(tokens, values[[2, 8, 9]])
    assert source.n_read == N + 3


def test_sample_that_is_lost_between_epochs_is_refused(values):
    source = LazySource(values)
    with skpool.config_context(max_array_bytes=0):
        rows = rows_of(TokenArray(source))
        assert len(rows) == N
    source.missing = (8,)
    with pytest.raises(ValueError, match="1 sample"):
        rows.take(np.array([2, 8]))


def test_moments_are_those_of_the_real_tokens(values, lengths_mask):
    values = values * [1.0, 100.0, 1e-3] + [0.0, 1e6, 5.0]
    garbage = np.where(lengths_mask[..., None], values, np.nan)
    mean, scale = rows_of(TokenArray.from_array(garbage, mask=lengths_mask)).moments()
    np.testing.assert_allclose(mean, values[lengths_mask].mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale, values[lengths_mask].std(0), rtol=1e-8)


def test_scale_of_a_constant_feature_is_one():
    mean, scale = rows_of(TokenArray.from_array(np.full((N, L, 1), 0.1))).moments()
    assert float(scale) == 1.0
    np.testing.assert_allclose(mean, [0.1])


# Labels.


def test_class_numbers_are_those_of_the_chosen_samples():
    classes, codes = class_numbers(["b", "a", "c", "b"], 4, np.array([0, 2, 3]), "It")
    assert classes.tolist() == ["b", "c"] and codes.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "It requires y to be passed, but the target y is None"),
        ([1, 1, 1], "one class"),
        ([1, 2], "inconsistent numbers of samples"),
        ([1, None, 2], "NaN or None"),
    ],
)
def test_bad_labels_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        class_numbers(y, 3, np.arange(3), "It")


def test_one_class_is_welcome_where_the_caller_says_so():
    classes, codes = class_numbers([7, 7], 2, np.arange(2), "It", min_classes=1)
    assert classes.tolist() == [7] and codes.tolist() == [0, 0]


# Some of the rows, and all samples at once.


def test_some_of_the_rows_are_those_of_the_array(values, lengths_mask):
    lengths_mask[3] = False
    rows = rows_of(TokenArray.from_array(values, mask=lengths_mask)).among(np.array([0, 3, 5]))
    np.testing.assert_array_equal(rows.numbers, [0, 4, 6])
    np.testing.assert_array_equal(rows.take(np.array([1]))[0], values[[4], :1])


def test_samples_are_reduced_in_one_pass_and_in_order(values, lengths_mask):
    source = LazySource(values, lengths_mask)
    rows = rows_of(TokenArray(source))

    def total(tokens, mask):
        return tokens.where(mask[..., None], 0.0).sum(dim=1)

    desired = (values * lengths_mask[..., None]).sum(axis=1)
    np.testing.assert_allclose(rows.reduce(total), desired, rtol=1e-12)
    assert source.n_read == N and rows.n_samples == N


def test_reducing_refuses_samples_without_a_token(values, lengths_mask):
    lengths_mask[[3, 7]] = False
    rows = rows_of(TokenArray.from_array(values, mask=lengths_mask))
    with pytest.raises(ValueError, match=r"2 sample\(s\) without a real token.*position 3"):
        rows.reduce(lambda tokens, mask: tokens[:, 0])


def test_reducing_refuses_samples_that_cannot_be_read(values):
    rows = rows_of(TokenArray(LazySource(values, missing=(5,))))
    with pytest.raises(ValueError, match=r"1 sample\(s\) that could not be read.*position 5"):
        rows.reduce(lambda tokens, mask: tokens[:, 0])


# Vectors.


@pytest.mark.parametrize("kind", ["array", "memmap", "tensor"])
def test_vectors_are_those_of_the_array(kind, tmp_path):
    X = np.random.default_rng(0).normal(size=(9000, 3)).astype(np.float32)
    given = {"array": X, "tensor": torch.from_numpy(X)}.get(kind)
    if kind == "memmap":
        np.save(tmp_path / "X.npy", X)
        given = np.load(tmp_path / "X.npy", mmap_mode="r")
    rows = VectorRows(given)
    values, mask = rows.take(np.array([0, 4, 8999]))
    np.testing.assert_array_equal(values, X[[0, 4, 8999]])
    np.testing.assert_array_equal(torch.cat([block for block, _ in rows.blocks()]), X)
    np.testing.assert_array_equal(rows.reduce(lambda values, mask: 2 * values), 2 * X)
    assert mask is None and len(rows) == 9000


def test_some_of_the_vectors_are_those_of_the_array():
    X = np.arange(12.0).reshape(6, 2)
    rows = VectorRows(X).among(np.array([1, 3, 4])).among(np.array([0, 2]))
    np.testing.assert_array_equal(rows.numbers, [1, 4])
    np.testing.assert_array_equal(rows.take(np.array([1]))[0], X[[4]])
    np.testing.assert_array_equal(next(rows.blocks())[0], X[[1, 4]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors_are_widened(dtype):
    values, _ = VectorRows(torch.ones(3, 2, dtype=dtype)).take(np.array([1]))
    assert values.dtype == torch.float32


def test_moments_of_vectors_are_those_of_the_array():
    X = np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 100.0, 1e-3] + [0.0, 1e6, 5.0]
    mean, scale = VectorRows(X).moments()
    np.testing.assert_allclose(mean, X.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scale, X.std(axis=0), rtol=1e-8)
