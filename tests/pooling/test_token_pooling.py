# SPDX-License-Identifier: BSD-3-Clause
"""TokenPooling, and what all poolings share: containers, scope, empty samples, refusals."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.pooling import POOLINGS, GeMPooling, GroupGeMPooling, TokenPooling, _token
from skpool.stores import RowSource, TokenArray, TokenBatch, assemble

N, L, D = 6, 5, 4
STRATEGIES = sorted(_token.STRATEGIES)


@parametrize_with_checks([TokenPooling(), TokenPooling(("mean", "max"))])
def test_scikit_learn_check_passes(estimator, check):
    check(estimator)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(N, L, D))


@pytest.fixture
def masked(tokens):
    """Tokens with NaN under a mask, and the mask."""
    mask = np.random.default_rng(1).random((N, L)) < 0.6
    mask[:, 2] = True
    return np.where(mask[..., None], tokens, np.nan), mask


@pytest.fixture(params=["mean", "gem", "group gem"])
def pooling(request):
    """One pooling of each class."""
    if request.param == "mean":
        return TokenPooling()
    return GeMPooling() if request.param == "gem" else GroupGeMPooling(2, p=[1.0, 3.0])


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


# Containers.


def test_token_array_gives_the_vectors_of_the_plain_array(tokens, pooling):
    expected = pooling.fit_transform(tokens)
    np.testing.assert_array_equal(pooling.transform(TokenArray.from_array(tokens)), expected)


def test_memory_map_gives_the_vectors_of_the_plain_array(tokens, pooling, tmp_path):
    np.save(tmp_path / "tokens.npy", tokens)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    np.testing.assert_array_equal(pooling.fit_transform(mapped), pooling.fit_transform(tokens))


def test_tensor_gives_a_tensor(tokens, pooling):
    vectors = pooling.fit_transform(torch.from_numpy(tokens))
    assert isinstance(vectors, torch.Tensor) and not vectors.requires_grad
    np.testing.assert_array_equal(vectors.numpy(), pooling.fit_transform(tokens))


def test_tensor_that_requires_grad_gives_vectors_without_grad(tokens, pooling):
    vectors = pooling.fit_transform(torch.from_numpy(tokens).requires_grad_())
    assert not vectors.requires_grad


def test_list_of_tensors_gives_a_tensor(tokens):
    vectors = TokenPooling().fit_transform([torch.from_numpy(row) for row in tokens])
    assert isinstance(vectors, torch.Tensor)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_maps_are_read_as_their_cells(tokens, pooling, kind):
    maps = kind(np.random.default_rng(2).normal(size=(N, 2, 3, D)))
    expected = pooling.fit_transform(maps.reshape(N, 6, D))
    np.testing.assert_array_equal(pooling.fit_transform(maps), expected)


@pytest.mark.parametrize("as_object", [False, True])
def test_ragged_list_equals_the_samples_alone(pooling, as_object):
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(length, D)) for length in (3, 1, 5)]
    X = samples
    if as_object:
        X = np.empty(3, dtype=object)
        X[:] = samples
    pooling.fit(X)
    expected = np.concatenate([pooling.transform(sample[None]) for sample in samples])
    np.testing.assert_allclose(pooling.transform(X), expected, rtol=1e-12)


def test_ragged_list_of_whole_numbers_is_pooled_as_floats():
    vectors = TokenPooling().fit_transform([np.array([[1, 2], [2, 4]]), np.array([[5, 6]])])
    np.testing.assert_array_equal(vectors, [[1.5, 3.0], [5.0, 6.0]])


def test_nested_python_lists_are_tokens():
    vectors = TokenPooling().fit_transform([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]])
    np.testing.assert_array_equal(vectors, [[2.0, 3.0], [5.0, 6.0]])


def test_vectors_count_as_one_token():
    X = abs(np.random.default_rng(0).normal(size=(N, D))) + 0.1
    np.testing.assert_array_equal(TokenPooling().fit_transform(X), X)
    np.testing.assert_array_equal(TokenPooling("cls").fit_transform(X), X)
    np.testing.assert_allclose(GeMPooling(p=7).fit_transform(X), X, rtol=1e-12)


def test_python_lists_of_numbers_count_as_one_token():
    np.testing.assert_array_equal(TokenPooling().fit_transform([[1, 2], [3, 4]]), [[1, 2], [3, 4]])


def test_rows_that_are_read_at_a_time_do_not_matter(tokens, pooling):
    whole = pooling.fit_transform(tokens)
    for batch_size in (1, 4, N):
        parts = clone(pooling).set_params(batch_size=batch_size).fit_transform(tokens)
        # Where a value stands in a processor's vector decides the last bit of a power.
        np.testing.assert_array_max_ulp(parts, whole, maxulp=2)


@pytest.mark.parametrize("flip", [np.s_[::-1], np.s_[:, ::-1], np.s_[:, :, ::-1]])
def test_arrays_with_negative_strides_are_pooled(tokens, pooling, flip):
    expected = pooling.fit_transform(np.ascontiguousarray(tokens[flip]))
    np.testing.assert_array_equal(pooling.fit_transform(tokens[flip]), expected)


def test_input_is_not_modified(tokens, pooling):
    before = tokens.copy()
    pooling.fit_transform(tokens)
    np.testing.assert_array_equal(tokens, before)


# Types.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        (">f4", "float32"),
        ("int64", "float64"),
        ("uint8", "float64"),
        ("longdouble", "float64"),
        ("object", "float64"),
    ],
)
def test_vectors_have_the_float_type_of_the_tokens(tokens, pooling, given, expected):
    X = abs(tokens * 4).astype("int8").astype(given)
    vectors = pooling.fit_transform(X)
    assert vectors.dtype == expected
    np.testing.assert_allclose(vectors, pooling.fit_transform(X.astype("float64")), rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
        (torch.int32, torch.float64),
    ],
)
def test_tensors_have_the_float_type_of_the_tokens(tokens, pooling, given, expected):
    assert pooling.fit_transform(torch.from_numpy(tokens * 4).to(given)).dtype == expected


def test_normalised_tokens_keep_double_precision(tokens):
    vectors = TokenPooling(normalize_tokens=True).fit_transform(tokens)
    expected = (tokens / np.linalg.norm(tokens, axis=2, keepdims=True)).mean(1)
    assert vectors.dtype == np.float64
    np.testing.assert_allclose(vectors, expected, rtol=1e-13)


def test_normalised_half_precision_tokens_do_not_overflow(tokens):
    X = (tokens * 2e4).astype(np.float16)
    wide = X.astype(np.float64)
    expected = (wide / np.linalg.norm(wide, axis=2, keepdims=True)).mean(1)
    actual = TokenPooling(normalize_tokens=True).fit_transform(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [complex, "U3", "M8[s]"])
def test_tokens_that_are_no_numbers_are_refused(tokens, dtype):
    with pytest.raises(ValueError, match="dtype"):
        TokenPooling().fit(np.zeros((N, L, D)).astype(dtype))


# Scope and the class token.


def test_prefix_tokens_are_left_out_by_default(tokens, pooling):
    X = TokenArray.from_array(tokens, n_prefix_tokens=2)
    expected = pooling.fit_transform(tokens[:, 2:])
    np.testing.assert_array_equal(pooling.fit_transform(X), expected)


def test_scope_all_takes_the_prefix_in(tokens, pooling):
    X = TokenArray.from_array(tokens, n_prefix_tokens=2)
    expected = pooling.fit_transform(tokens)
    np.testing.assert_array_equal(pooling.set_params(scope="all").fit_transform(X), expected)


@pytest.mark.parametrize("scope", ["patch", "all"])
def test_cls_is_the_class_token_whatever_the_scope(tokens, scope):
    X = TokenArray.from_array(tokens, n_prefix_tokens=2)
    vectors = TokenPooling("cls", scope=scope).fit_transform(X)
    np.testing.assert_array_equal(vectors, tokens[:, 0])


def test_cls_beside_the_mean_of_the_patches(tokens):
    X = TokenArray.from_array(tokens, n_prefix_tokens=2)
    vectors = TokenPooling(("cls", "mean", "first")).fit_transform(X)
    expected = np.hstack([tokens[:, 0], tokens[:, 2:].mean(1), tokens[:, 2]])
    np.testing.assert_allclose(vectors, expected, rtol=1e-12)


def test_cls_beside_the_mean_of_all_tokens(tokens):
    X = TokenArray.from_array(tokens, n_prefix_tokens=2)
    vectors = TokenPooling(("cls", "mean"), scope="all").fit_transform(X)
    np.testing.assert_allclose(vectors, np.hstack([tokens[:, 0], tokens.mean(1)]), rtol=1e-12)


@pytest.mark.parametrize("strategy", ["cls", ("mean", "cls")])
def test_cls_without_a_class_token_is_refused_by_fit(tokens, strategy):
    with pytest.raises(ValueError, match="class token"):
        TokenPooling(strategy).fit(tokens)


def test_tokens_that_are_all_prefix_are_refused(tokens, pooling):
    X = TokenArray.from_array(tokens, n_prefix_tokens=L)
    with pytest.raises(ValueError, match="scope='all'"):
        pooling.fit(X)
    with pytest.raises(ValueError, match="scope='all'"):
        TokenPooling("max").transform(X)


def test_cls_alone_needs_no_patches(tokens):
    X = TokenArray.from_array(tokens, n_prefix_tokens=L)
    np.testing.assert_array_equal(TokenPooling("cls").fit_transform(X), tokens[:, 0])


# Strategies.


def test_every_strategy_is_a_kernel_of_the_registry():
    assert set(STRATEGIES) <= set(POOLINGS)


def test_tuple_of_strategies_stands_side_by_side(tokens):
    names = tuple(name for name in STRATEGIES if name != "cls")
    expected = np.hstack([TokenPooling(name).fit_transform(tokens) for name in names])
    np.testing.assert_array_equal(TokenPooling(names).fit_transform(tokens), expected)


def test_callable_is_given_tokens_and_mask(masked):
    def share(tokens, mask):
        return mask.float().mean(dim=1, keepdim=True).repeat(1, 3)

    X, mask = masked
    vectors = TokenPooling(share).fit_transform(TokenArray.from_array(X, mask=mask))
    np.testing.assert_allclose(vectors, np.repeat(mask.mean(1)[:, None], 3, axis=1), rtol=1e-6)


def test_callable_beside_a_name(tokens):
    pooling = TokenPooling(("mean", lambda tokens, mask: tokens.median(dim=1).values))
    expected = np.hstack([tokens.mean(1), np.median(tokens, axis=1)])
    np.testing.assert_allclose(pooling.fit_transform(tokens), expected, rtol=1e-12)


def test_callable_that_gives_whole_numbers_is_taken_as_floats(tokens):
    vectors = TokenPooling(lambda tokens, mask: tokens.argmax(dim=1)).fit_transform(tokens)
    np.testing.assert_array_equal(vectors, tokens.argmax(1))


@pytest.mark.parametrize(
    "function", [lambda x, m: x.sum((1, 2)), lambda x, m: x, lambda x, m: x.mean(1).numpy()]
)
def test_callable_that_gives_no_vectors_is_refused(tokens, function):
    with pytest.raises(ValueError, match="must give a tensor"):
        TokenPooling(function).fit_transform(tokens)


@pytest.mark.parametrize("strategy", ["median", "gem", ["mean", "max"], None, 3])
def test_unknown_strategy_is_refused(tokens, strategy):
    with pytest.raises(InvalidParameterError, match="strategy"):
        TokenPooling(strategy).fit(tokens)


@pytest.mark.parametrize("strategy", [("mean", "median"), ("mean", ["max"]), ()])
def test_tuple_with_an_unknown_strategy_is_refused(tokens, strategy):
    with pytest.raises(ValueError, match="strategy="):
        TokenPooling(strategy).fit(tokens)


@pytest.mark.parametrize(
    "parameters", [{"scope": "cls"}, {"empty": "drop"}, {"batch_size": 0}, {"weights": 3}]
)
def test_bad_parameter_is_refused(tokens, parameters):
    with pytest.raises(InvalidParameterError, match=next(iter(parameters))):
        TokenPooling(**parameters).fit(tokens)


# Samples without a real token.


@pytest.fixture
def with_empty(masked):
    """Tokens of which sample 4 is masked wholly."""
    X, mask = masked
    mask = mask.copy()
    mask[4] = False
    return TokenArray.from_array(X, mask=mask)


def test_empty_sample_is_refused_by_its_index(with_empty, pooling):
    pooling.set_params(batch_size=3)
    with pytest.raises(ValueError, match="Sample 4 has no real token"):
        pooling.fit(with_empty)
    with pytest.raises(ValueError, match="Sample 1 has no real token"):
        pooling.fit(with_empty[:4]).transform(with_empty[[0, 4]])


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "cls"])
@pytest.mark.parametrize(("empty", "value"), [("zero", 0.0), ("nan", np.nan)])
def test_empty_sample_gives_the_chosen_value(with_empty, strategy, empty, value):
    vectors = TokenPooling(strategy, empty=empty).fit_transform(with_empty)
    np.testing.assert_array_equal(vectors[4], value)
    others = [0, 1, 2, 3, 5]
    expected = TokenPooling(strategy).fit_transform(with_empty[others])
    np.testing.assert_array_equal(vectors[others], expected)


def test_list_may_hold_samples_without_tokens():
    samples = [np.zeros((0, 2)), np.ones((2, 2))]
    pooling = TokenPooling(empty="zero").fit(samples)
    np.testing.assert_array_equal(pooling.transform(samples), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(pooling.transform(samples[:1]), [[0, 0]])


def test_sample_with_a_class_token_but_no_patch_is_empty_for_the_patches(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[2, 1:] = False
    X = TokenArray.from_array(tokens, mask=mask, n_prefix_tokens=1)
    with pytest.raises(ValueError, match="Sample 2 has no real token"):
        TokenPooling(("cls", "mean")).fit_transform(X)
    np.testing.assert_array_equal(TokenPooling("cls").fit_transform(X), tokens[:, 0])


# Refusals.


def test_wrong_width_after_fit_is_refused(tokens, pooling):
    pooling.fit(tokens)
    with pytest.raises(ValueError, match=f"2 features, but .* expecting {D} features"):
        pooling.transform(tokens[:, :, :2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor, TokenArray.from_array, list])
def test_tokens_that_are_not_finite_are_refused_by_the_index_of_the_sample(tokens, value, wrap):
    tokens[3, 1, 2] = value
    for method in ("fit", "transform"):
        with pytest.raises(ValueError, match="sample 3"):
            getattr(TokenPooling("max", batch_size=2), method)(wrap(tokens))


def test_index_of_the_sample_counts_rows_of_the_view(tokens):
    tokens[3, 1, 2] = np.nan
    with pytest.raises(ValueError, match="sample 1"):
        TokenPooling().fit(TokenArray.from_array(tokens)[[0, 3, 5]])


def test_nan_under_the_mask_is_accepted(masked, pooling):
    X, mask = masked
    zeros = TokenArray.from_array(np.where(mask[..., None], X, 0.0), mask=mask)
    expected = pooling.fit_transform(zeros)
    np.testing.assert_array_equal(
        pooling.fit_transform(TokenArray.from_array(X, mask=mask)), expected
    )


def test_nan_beside_empty_samples_is_refused(with_empty):
    X = np.nan_to_num(np.asarray(with_empty))
    X[2] = np.nan
    both = TokenArray.from_array(X, mask=with_empty.mask)
    with pytest.raises(ValueError, match="sample 2"):
        TokenPooling(empty="zero").fit_transform(both)


def test_computed_tokens_come_in_the_order_of_the_samples(tokens, pooling):
    expected = pooling.fit_transform(tokens[:, 1:])
    np.testing.assert_array_equal(
        pooling.fit_transform(TokenArray(ComputedSource(tokens))), expected
    )


def test_computed_tokens_that_are_not_finite_are_refused(tokens, pooling):
    tokens[3, 2] = np.nan
    X = TokenArray(ComputedSource(tokens))
    with pytest.raises(ValueError, match="NaN or infinity in the computed tokens"):
        pooling.fit(X).transform(X)


def test_fit_does_not_compute_tokens_where_nothing_is_learned(tokens):
    class Never(ComputedSource):
        def stream(self, rows, batch_size=None):
            raise RuntimeError("the network ran")

        reduce = stream

    X = TokenArray(Never(tokens))
    assert TokenPooling(("cls", "mean")).fit(X).n_features_in_ == D
    assert GeMPooling().fit(X).n_features_in_ == D


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((0, L, D)),
        np.zeros((N, 0, D)),
        np.zeros((N, L, 0)),
        np.zeros((N, 0, 2, D)),
        np.zeros((0, D)),
        torch.zeros((0, L, D)),
        TokenArray.from_array(np.zeros((0, L, D))),
        [],
    ],
)
def test_empty_input_is_refused(X, pooling):
    with pytest.raises(ValueError, match=r"minimum of 1|Expected 2D array"):
        pooling.fit(X)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2, 2, 2)])
@pytest.mark.parametrize("kind", [np.ones, torch.ones])
def test_arrays_of_other_ranks_are_refused(shape, kind, pooling):
    with pytest.raises(ValueError, match=r"expected|Expected"):
        pooling.fit(kind(shape))


# What scikit-learn needs.


@pytest.mark.parametrize(
    "parameters",
    [
        *[{"strategy": name, "scope": "all"} for name in STRATEGIES],
        {"strategy": ("cls", "mean", "max")},
        {"strategy": lambda tokens, mask: tokens[:, :, :3].flatten(1)},
        {"strategy": ("mean", lambda tokens, mask: tokens[:, 2])},
        {"strategy": "weighted_mean", "weights": [1.0, 2.0, 3.0, 4.0]},
        {"strategy": ("cls", "weighted_mean"), "weights": np.arange},
    ],
)
def test_there_is_a_name_for_each_output(tokens, parameters):
    X = TokenArray.from_array(tokens, n_prefix_tokens=1)
    pooling = TokenPooling(**parameters).fit(X)
    names = pooling.get_feature_names_out()
    assert len(names) == pooling.transform(X).shape[1]
    assert names[0] == "tokenpooling0"


def test_pandas_output_has_the_names_of_the_outputs(tokens):
    pooling = TokenPooling(("mean", "max")).set_output(transform="pandas")
    frame = pooling.fit_transform(tokens)
    assert list(frame.columns) == list(pooling.get_feature_names_out())
    np.testing.assert_allclose(frame, np.hstack([tokens.mean(1), tokens.max(1)]), rtol=1e-12)


def test_transform_needs_no_fit_where_nothing_is_learned(tokens):
    np.testing.assert_array_equal(
        TokenPooling().transform(tokens), TokenPooling().fit_transform(tokens)
    )


def test_clone_and_pickle_give_the_same_vectors(tokens):
    pooling = TokenPooling(("mean", "weighted_mean"), weights=np.arange(L)).fit(tokens)
    expected = pooling.transform(tokens)
    for copy in (clone(pooling), pickle.loads(pickle.dumps(pooling))):
        np.testing.assert_array_equal(copy.transform(tokens), expected)


def test_search_over_poolings_finds_the_one_that_tells_the_classes_apart():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 8, 3)), np.arange(60) % 2
    # Only the spread of the tokens differs between the classes.
    X[y == 1] *= 3
    search = GridSearchCV(
        make_pipeline(TokenPooling(), LogisticRegression()),
        {"tokenpooling": [TokenPooling("mean"), TokenPooling("std"), GeMPooling(p=1e-3)]},
        cv=3,
        error_score="raise",
    ).fit(X, y)
    assert search.best_params_["tokenpooling"].get_params()["strategy"] == "std"
    assert search.best_score_ > 0.95
