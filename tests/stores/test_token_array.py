# SPDX-License-Identifier: BSD-3-Clause
"""TokenArray: it indexes like numpy, stays lazy, and passes through scikit-learn's machinery."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, train_test_split
from sklearn.pipeline import FeatureUnion, make_pipeline

import skpool
from skpool.pooling import GeMPooling, TokenPooling
from skpool.stores import ArraySource, TokenArray

N, L, D = 8, 5, 3
VALUES = np.random.default_rng(0).normal(size=(N, L, D))


@pytest.fixture
def tokens():
    return TokenArray.from_array(VALUES, n_prefix_tokens=1, grid=(2, 2))


# Indexing.


def keys(n):
    """Indices of n samples that give samples: slices, integers, masks."""
    return st.one_of(
        st.just(Ellipsis),
        st.slices(n),
        arrays(np.int64, st.integers(0, 6), elements=st.integers(-n, n - 1)) if n else st.just([]),
        st.lists(st.integers(-n, n - 1), max_size=6) if n else st.just([]),
        arrays(np.bool_, n),
        st.lists(st.booleans(), min_size=n, max_size=n) if n else st.just([]),
    )


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_indexing_twice_equals_numpy(data):
    first = data.draw(keys(N))
    expected = VALUES[first]
    view = TokenArray.from_array(VALUES)[first]
    np.testing.assert_array_equal(np.asarray(view), expected)
    second = data.draw(keys(len(expected)))
    np.testing.assert_array_equal(np.asarray(view[second]), expected[second])


@pytest.mark.parametrize("key", [0, -1, N - 1, np.int64(2), np.array(3)])
def test_one_index_gives_the_tokens_of_a_sample(tokens, key):
    assert isinstance(tokens[key], np.ndarray)
    np.testing.assert_array_equal(tokens[key], VALUES[key])


@pytest.mark.parametrize("key", [[0, 2], slice(1, 4), np.arange(N) % 2 == 0, slice(None), []])
@pytest.mark.parametrize("rest", [(), (Ellipsis,), (slice(None),), (slice(None), slice(None))])
def test_tuple_index_of_scikit_learn_chooses_samples(tokens, key, rest):
    np.testing.assert_array_equal(np.asarray(tokens[(key, *rest)]), VALUES[key])


@pytest.mark.parametrize(
    "key",
    [
        N,
        -N - 1,
        [0, N],
        np.ones(N - 1, dtype=bool),
        [True, False],
        True,
        None,
        1.5,
        "a",
        np.array([[0, 1], [1, 2]]),
        np.ones((N, 1), dtype=bool),
        np.array([0.0, 1.0]),
        (0, 1),
        ([0], slice(1, 2)),
        ([0], np.array([0, 1])),
        (),
        (slice(None), slice(None), 0),
    ],
    ids=repr,
)
def test_index_that_chooses_no_samples_is_refused(tokens, key):
    with pytest.raises(IndexError):
        tokens[key]


def test_view_keeps_prefix_grid_and_type(tokens):
    view = tokens[[3, 1]]
    assert isinstance(view, TokenArray)
    assert (view.n_prefix_tokens, view.grid, view.dtype) == (1, (2, 2), np.float64)
    assert (len(view), view.ndim, view.shape) == (2, 3, (2, L, D))


def test_view_of_the_patches_stays_without_prefix(tokens):
    np.testing.assert_array_equal(np.asarray(tokens.patches[[3, 1]]), VALUES[[3, 1], 1:])
    np.testing.assert_array_equal(tokens.patches[2], VALUES[2, 1:])
    np.testing.assert_array_equal(np.asarray(tokens[[3, 1]].patches), VALUES[[3, 1], 1:])
    np.testing.assert_array_equal(np.asarray(tokens.patches.patches), VALUES[:, 1:])


def test_indexing_reads_nothing():
    class Unread(ArraySource):
        def stream(self, rows, batch_size=None):
            raise RuntimeError("rows were read")

    tokens = TokenArray(Unread(VALUES, n_prefix_tokens=1, grid=(2, 2)))
    view = tokens[1:][[0, 2]].patches
    assert (view.shape, view.nbytes) == ((2, 4, D), 2 * 4 * D * 8)
    assert "(2, 4, 3)" in repr(view)


def test_iteration_gives_every_sample_once(tokens):
    np.testing.assert_array_equal(np.stack(list(tokens)), VALUES)


# What tokens have beside their values.


def test_patches_and_class_token_are_parts_of_the_tokens(tokens):
    assert tokens.cls_index == 0
    np.testing.assert_array_equal(tokens.cls, VALUES[:, 0])
    assert tokens.patches.shape == (N, 4, D)
    assert (tokens.patches.n_prefix_tokens, tokens.patches.cls_index) == (0, None)
    np.testing.assert_array_equal(np.asarray(tokens.patches), VALUES[:, 1:])


def test_class_token_is_refused_where_there_is_none(tokens):
    with pytest.raises(ValueError, match="no class token"):
        _ = tokens.patches.cls


def test_to_map_puts_the_patches_on_their_grid(tokens):
    for X in (tokens, tokens.patches):
        np.testing.assert_array_equal(X.to_map(), VALUES[:, 1:].reshape(N, 2, 2, D))
    np.testing.assert_array_equal(tokens[[5]].to_map()[0, 1, 0], VALUES[5, 3])


def test_to_map_without_a_grid_is_refused():
    with pytest.raises(ValueError, match="no grid"):
        TokenArray.from_array(VALUES).to_map()


def test_from_map_and_to_map_are_inverse():
    maps = np.random.default_rng(0).normal(size=(4, 2, 3, D))
    tokens = TokenArray.from_map(maps)
    assert (tokens.shape, tokens.grid, tokens.cls_index) == ((4, 6, D), (2, 3), None)
    np.testing.assert_array_equal(tokens.to_map(), maps)
    np.testing.assert_array_equal(TokenArray.from_map(torch.from_numpy(maps)).to_map(), maps)


def test_mask_follows_the_samples_and_the_prefix():
    mask = np.random.default_rng(1).random((N, L)) < 0.5
    tokens = TokenArray.from_array(VALUES, mask=mask, n_prefix_tokens=2)
    np.testing.assert_array_equal(tokens[[4, 0]].mask, mask[[4, 0]])
    np.testing.assert_array_equal(tokens[2:].patches.mask, mask[2:, 2:])
    assert TokenArray.from_array(VALUES).mask is None


def test_batches_hold_the_tokens_and_the_mask_in_turn():
    mask = np.random.default_rng(1).random((N, L)) < 0.5
    view = TokenArray.from_array(VALUES, mask=mask, n_prefix_tokens=1).patches[[6, 0, 3, 3, 1]]
    batches = list(view.iter_batches(2))
    assert [len(batch.positions) for batch in batches] == [2, 2, 1]
    rows = [6, 0, 3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([b.positions for b in batches]), np.arange(5))
    np.testing.assert_array_equal(torch.cat([b.tokens for b in batches]), VALUES[rows, 1:])
    np.testing.assert_array_equal(torch.cat([b.mask for b in batches]), mask[rows, 1:])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_mask_may_be_an_array_beside_a_tensor_and_the_reverse(kind):
    other = torch.as_tensor if kind is np.asarray else np.asarray
    mask = np.random.default_rng(1).random((N, L)) < 0.5
    tokens = TokenArray.from_array(kind(VALUES), mask=other(mask))
    np.testing.assert_array_equal(tokens[[1, 2]].mask, mask[[1, 2]])
    batch = next(tokens.iter_batches())
    assert batch.mask.dtype == torch.bool and batch.mask.device == batch.tokens.device


def test_reduction_of_no_samples_has_the_width_and_type_of_the_others(tokens):
    assert tokens[[]].cls.shape == (0, D) and tokens[[]].cls.dtype == np.float64
    assert np.asarray(tokens[[]]).shape == (0, L, D)


# Types, containers and sizes.


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_array_has_the_type_and_values_of_the_tokens(dtype, kind):
    values = VALUES.astype(dtype)
    tokens = TokenArray.from_array(kind(values))
    assert tokens.dtype == dtype
    assert np.asarray(tokens).dtype == dtype
    np.testing.assert_array_equal(np.asarray(tokens), values)


def test_bfloat16_becomes_float32():
    values = torch.from_numpy(VALUES).to(torch.bfloat16)
    tokens = TokenArray.from_array(values, n_prefix_tokens=1)
    assert tokens.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(tokens), values.float().numpy())
    np.testing.assert_array_equal(tokens[1], values[1].float().numpy())


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_array_of_another_type_is_converted(tokens, dtype):
    converted = np.asarray(tokens, dtype=dtype)
    assert converted.dtype == dtype
    np.testing.assert_array_equal(converted, VALUES.astype(dtype))


@pytest.mark.parametrize("given", ["int64", "uint8", "bool", "longdouble", "object"])
def test_other_numbers_are_taken_as_float64(given):
    values = abs(VALUES * 3).astype("int8").astype(given)
    tokens = TokenArray.from_array(values)
    assert tokens.dtype == np.float64
    np.testing.assert_array_equal(np.asarray(tokens), values.astype(np.float64))


def test_foreign_byte_order_is_read():
    tokens = TokenArray.from_array(VALUES.astype(">f4"))
    assert tokens.dtype == np.float32 and tokens.dtype.isnative
    np.testing.assert_array_equal(np.asarray(tokens), VALUES.astype("f4"))


def test_array_without_a_copy_is_refused(tokens):
    with pytest.raises(ValueError, match="without a copy"):
        np.array(tokens, copy=False)


def test_array_is_a_copy(tokens):
    before = VALUES.copy()
    np.asarray(tokens)[:] = 0.0
    np.testing.assert_array_equal(VALUES, before)


def test_array_above_the_limit_is_refused(tokens):
    with skpool.config_context(max_array_bytes=tokens.nbytes - 1):
        with pytest.raises(ValueError, match="max_array_bytes"):
            np.asarray(tokens)
        assert np.asarray(tokens[1:]).shape == (N - 1, L, D)
        assert np.asarray(tokens.patches).shape == (N, L - 1, D)
    with skpool.config_context(max_array_bytes=tokens.nbytes):
        assert np.asarray(tokens).nbytes == tokens.nbytes


def test_memory_map_is_read_without_loading_it_whole(tmp_path):
    np.save(tmp_path / "tokens.npy", VALUES)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    batch = next(TokenArray.from_array(mapped)[2:5].iter_batches())
    assert batch.tokens.data_ptr() == mapped[2:].ctypes.data


# Constructors and their refusals.


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_from_list_pads_on_the_right_with_a_mask(kind):
    samples = [kind(VALUES[i, :length]) for i, length in enumerate((2, 4, 1))]
    tokens = TokenArray.from_list(samples)
    assert tokens.shape == (3, 4, D)
    np.testing.assert_array_equal(tokens.mask, np.arange(4) < np.array([[2], [4], [1]]))
    for i, sample in enumerate(samples):
        np.testing.assert_array_equal(tokens[i][tokens.mask[i]], sample)


def test_from_list_takes_the_widest_type():
    tokens = TokenArray.from_list([VALUES[0].astype("f4"), VALUES[1], np.ones((2, D), dtype=int)])
    assert tokens.dtype == np.float64
    np.testing.assert_array_equal(tokens[1], VALUES[1])


def test_from_list_accepts_samples_without_tokens():
    tokens = TokenArray.from_list([np.zeros((0, D)), np.zeros((0, D))])
    assert tokens.shape == (2, 1, D) and not tokens.mask.any()


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [np.ones((2, 3)), np.ones((2, 4))],
        [np.ones((2, 3)), np.ones(3)],
        [np.ones(3), np.ones(3)],
        [np.ones((1, 2, 3))],
    ],
)
def test_from_list_of_other_shapes_is_refused(samples):
    with pytest.raises(ValueError, match="one n_features"):
        TokenArray.from_list(samples)


@pytest.mark.parametrize(
    ("n_prefix_tokens", "grid"), [(0, (2, 2)), (1, (1, 5)), (2, (2, 2)), (0, (0, 0))]
)
def test_grid_that_does_not_hold_the_patches_is_refused(n_prefix_tokens, grid):
    with pytest.raises(ValueError, match="grid="):
        TokenArray.from_array(VALUES, n_prefix_tokens=n_prefix_tokens, grid=grid)


@pytest.mark.parametrize("n_prefix_tokens", [-1, L + 1])
def test_prefix_beyond_the_tokens_is_refused(n_prefix_tokens):
    with pytest.raises(ValueError, match="n_prefix_tokens"):
        TokenArray.from_array(VALUES, n_prefix_tokens=n_prefix_tokens)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2, 2)])
def test_from_array_of_another_rank_is_refused(shape):
    with pytest.raises(ValueError, match="n_samples, n_tokens, n_features"):
        TokenArray.from_array(np.ones(shape))


@pytest.mark.parametrize("shape", [(3,), (3, 2, 2), (3, 2, 2, 2, 2)])
def test_from_map_of_another_rank_is_refused(shape):
    with pytest.raises(ValueError, match="n_samples, height, width, n_features"):
        TokenArray.from_map(np.ones(shape))


@pytest.mark.parametrize("dtype", [bool, int, np.uint8, float])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, np.ndarray.tolist])
def test_mask_of_zeros_and_ones_is_accepted(dtype, kind):
    mask = np.random.default_rng(1).random((N, L)) < 0.5
    tokens = TokenArray.from_array(VALUES, mask=kind(mask.astype(dtype)))
    assert tokens.mask.dtype == bool
    np.testing.assert_array_equal(tokens.mask, mask)


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, np.nan])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_mask_of_other_numbers_is_refused(value, kind):
    mask = np.ones((N, L))
    mask[1, 2] = value
    with pytest.raises(ValueError, match="other than 0 and 1"):
        TokenArray.from_array(VALUES, mask=kind(mask))


@pytest.mark.parametrize("shape", [(N,), (N, L - 1), (N - 1, L), (N, L, D)])
def test_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="mask has shape"):
        TokenArray.from_array(VALUES, mask=np.ones(shape, dtype=bool))


# scikit-learn.


@pytest.fixture(scope="module")
def problem():
    """Tokens whose patches tell two classes apart, and whose class token misleads."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    values = rng.normal(size=(40, 7, 4)) + y[:, None, None]
    values[:, 0] = rng.normal(size=(40, 4))
    return TokenArray.from_array(values, n_prefix_tokens=1), values, y


def test_train_test_split_gives_views(problem):
    X, values, y = problem
    train, test, *_ = train_test_split(X, y, random_state=0)
    assert isinstance(train, TokenArray) and isinstance(test, TokenArray)
    plain_train, plain_test, *_ = train_test_split(values, y, random_state=0)
    np.testing.assert_array_equal(np.asarray(train), plain_train)
    np.testing.assert_array_equal(np.asarray(test), plain_test)


def test_cross_val_predict_equals_that_of_pooled_vectors(problem):
    X, values, y = problem
    pipeline = make_pipeline(TokenPooling(), LogisticRegression())
    expected = cross_val_predict(LogisticRegression(), values[:, 1:].mean(1), y, cv=4)
    np.testing.assert_array_equal(cross_val_predict(pipeline, X, y, cv=4), expected)


def test_search_in_two_processes_equals_that_of_pooled_vectors(problem):
    X, values, y = problem
    grid = {"tokenpooling__strategy": ["mean", "max", "cls"]}
    pipeline = make_pipeline(TokenPooling(), LogisticRegression())
    search = GridSearchCV(pipeline, grid, cv=4, n_jobs=2, error_score="raise").fit(X, y)
    pooled = [values[:, 1:].mean(1), values[:, 1:].max(1), values[:, 0]]
    expected = [
        GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=4).fit(vectors, y).best_score_
        for vectors in pooled
    ]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], expected)
    assert expected[0] > 0.9 > expected[2]


def test_feature_union_of_poolings_stands_side_by_side(problem):
    X, values, y = problem
    union = FeatureUnion([("mean", TokenPooling()), ("gem", GeMPooling(p=np.inf))])
    expected = np.hstack([values[:, 1:].mean(1), np.maximum(values[:, 1:].max(1), 1e-6)])
    np.testing.assert_allclose(union.fit_transform(X, y), expected, rtol=1e-12)
    assert len(union.get_feature_names_out()) == 8


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_pickle_keeps_the_view_its_mask_and_its_facts(kind):
    mask = np.random.default_rng(1).random((N, L)) < 0.5
    tokens = TokenArray.from_array(kind(VALUES), mask=mask, n_prefix_tokens=1, grid=(2, 2))
    view = tokens[[5, 2]].patches
    again = pickle.loads(pickle.dumps(view))
    np.testing.assert_array_equal(np.asarray(again), VALUES[[5, 2], 1:])
    np.testing.assert_array_equal(again.mask, view.mask)
    assert (again.grid, again.n_prefix_tokens, again.shape) == ((2, 2), 0, (2, 4, D))
