# SPDX-License-Identifier: BSD-3-Clause
"""Tokens made of other tokens while they are read, and tokens given back in the form that came."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nets import counting_backbone

import skpool
from skpool.extraction import FeatureExtractor
from skpool.pooling import GeMPooling, TokenPooling
from skpool.stores import (
    ArraySource,
    RowSource,
    TokenArray,
    TokenBatch,
    as_given,
    assemble,
    keep_together,
)

N, L, D = 8, 5, 3
VALUES = np.random.default_rng(0).normal(size=(N, L, D))


@pytest.fixture
def tokens():
    return TokenArray.from_array(VALUES, n_prefix_tokens=1, grid=(2, 2))


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


# Tokens made of tokens.


def twice_and_one(tokens, mask):
    return 2 * tokens + 1


class Counted(ArraySource):
    """Counts how often its rows are asked for; keeps vectors by name, as a store does."""

    def __init__(self, values, **facts):
        super().__init__(values, **facts)
        self.n_reads, self.kept = 0, {}

    def stream(self, rows, batch_size=None):
        self.n_reads += 1
        return super().stream(rows, batch_size)

    def reduce(self, rows, function, *, fingerprint=None, batch_size=None):
        if fingerprint is None:
            return super().reduce(rows, function, batch_size=batch_size)
        if fingerprint not in self.kept:
            self.kept[fingerprint] = super().reduce(np.arange(self.n_rows), function)
        return self.kept[fingerprint][rows]


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_mapped_tokens_index_as_the_mapped_array(data):
    expected = 2 * VALUES + 1
    mapped = TokenArray.from_array(VALUES).map(twice_and_one)
    first = data.draw(keys(N))
    np.testing.assert_array_equal(np.asarray(mapped[first]), expected[first])
    before = TokenArray.from_array(VALUES)[first].map(twice_and_one)
    np.testing.assert_array_equal(np.asarray(before), expected[first])
    second = data.draw(keys(len(expected[first])))
    np.testing.assert_array_equal(np.asarray(before[second]), expected[first][second])


def test_mapping_reads_nothing_before_it_is_read():
    source = Counted(VALUES, n_prefix_tokens=1, grid=(2, 2))
    mapped = TokenArray(source).map(twice_and_one)[2:].patches.map(twice_and_one)
    assert (mapped.shape, mapped.grid, mapped.dtype) == ((6, 4, D), (2, 2), np.float64)
    assert mapped.mask is None and "(6, 4, 3)" in repr(mapped)
    assert source.n_reads == 0
    np.testing.assert_array_equal(np.asarray(mapped), 4 * VALUES[2:, 1:] + 3)
    assert source.n_reads == 1


def test_mapped_tokens_are_computed_once_to_be_pooled():
    calls = []

    def count(tokens, mask):
        calls.append(len(tokens))
        return tokens

    mapped = TokenArray.from_array(VALUES).map(count).map(count)
    assert not mapped.in_memory
    TokenPooling().transform(mapped)
    assert calls == [N, N]


def test_mapped_tokens_keep_what_they_have_beside_their_values(tokens):
    mapped = tokens.map(twice_and_one)
    assert (mapped.n_prefix_tokens, mapped.cls_index, mapped.grid) == (1, 0, (2, 2))
    assert mapped.ndim == 3 and mapped.n_layers is None
    np.testing.assert_array_equal(mapped.cls, 2 * VALUES[:, 0] + 1)
    np.testing.assert_array_equal(np.asarray(mapped.patches), 2 * VALUES[:, 1:] + 1)
    np.testing.assert_array_equal(mapped.to_map(), 2 * VALUES[:, 1:].reshape(N, 2, 2, D) + 1)
    np.testing.assert_array_equal(mapped[3], 2 * VALUES[3] + 1)


def test_patches_before_and_after_mapping_are_the_same(tokens):
    after, before = tokens.map(twice_and_one).patches, tokens.patches.map(twice_and_one)
    np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    assert before.n_prefix_tokens == after.n_prefix_tokens == 0
    assert before.cls_index is after.cls_index is None


def test_registers_of_mapped_tokens():
    mapped = TokenArray.from_array(VALUES, n_prefix_tokens=3).map(twice_and_one)
    np.testing.assert_array_equal(mapped.registers, 2 * VALUES[:, 1:3] + 1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("float16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_mapped_tokens_are_of_float32_at_least(given, expected):
    values = VALUES.astype(given)
    mapped = TokenArray.from_array(values).map(lambda x, mask: 2 * x.to(getattr(torch, expected)))
    assert mapped.dtype == expected
    np.testing.assert_array_equal(np.asarray(mapped), 2 * values.astype(expected))


def test_shape_of_the_result_may_be_another(tokens):
    def ends(tokens, mask):
        return torch.cat([tokens[:, :1], tokens[:, -2:]], 1).repeat(1, 1, 2)

    mapped = tokens.map(ends, n_tokens=3, n_features=2 * D, grid=(1, 2))
    assert (mapped.shape, mapped.nbytes) == ((N, 3, 2 * D), N * 3 * 2 * D * 8)
    assert mapped.grid == (1, 2) and mapped.patches.shape == (N, 2, 2 * D)
    expected = np.tile(VALUES[:, [0, -2, -1]], 2)
    np.testing.assert_array_equal(np.asarray(mapped), expected)
    assert tokens.map(ends, n_tokens=3, grid=None).grid is None


def test_prefix_of_the_result_may_be_another(tokens):
    mapped = tokens.map(twice_and_one, n_prefix_tokens=0, grid=None)
    assert (mapped.n_prefix_tokens, mapped.cls_index) == (0, None)
    with pytest.raises(ValueError, match="no class token"):
        _ = mapped.cls
    assert mapped.patches.shape == (N, L, D)


@pytest.fixture
def masked():
    mask = np.random.default_rng(1).random((N, L)) < 0.6
    mask[:, 0] = True
    return TokenArray.from_array(VALUES, mask=mask, n_prefix_tokens=1), mask


def test_mask_stays_where_tokens_stay(masked):
    tokens, mask = masked
    seen = []

    def look(x, real):
        seen.append(real.numpy())
        return x

    mapped = tokens.map(look)
    np.testing.assert_array_equal(mapped.mask, mask)
    np.testing.assert_array_equal(mapped[[5, 2]].patches.mask, mask[[5, 2], 1:])
    batches = list(mapped[[5, 2, 7]].iter_batches(2))
    np.testing.assert_array_equal(np.concatenate(seen), mask[[5, 2, 7]])
    np.testing.assert_array_equal(torch.cat([b.mask for b in batches]), mask[[5, 2, 7]])


def test_mask_follows_tokens_that_move(masked):
    tokens, mask = masked
    mapped = tokens.map(
        lambda x, real: x.flip(1)[:, :4],
        n_tokens=4,
        remask=lambda real: real.flip(1)[:, :4],
        n_prefix_tokens=0,
    )
    np.testing.assert_array_equal(mapped.mask, mask[:, :0:-1])
    np.testing.assert_array_equal(np.asarray(mapped), VALUES[:, :0:-1])
    again = mapped[[3, 1]].map(lambda x, real: x[:, 1:], n_tokens=3, remask=lambda m: m[:, 1:])
    np.testing.assert_array_equal(again.mask, mask[[3, 1], -2:0:-1])
    pooled = TokenPooling("max", empty="zero").fit_transform(mapped)
    expected = [
        x[1:][real[1:]].max(0, initial=-np.inf) for x, real in zip(VALUES, mask, strict=True)
    ]
    np.testing.assert_array_equal(pooled, np.where(np.isinf(expected), 0.0, expected))


def test_remask_is_not_asked_where_all_tokens_are_real(tokens):
    def remask(mask):
        raise RuntimeError("there is no mask")

    mapped = tokens.map(lambda x, mask: x[:, :3], n_tokens=3, remask=remask, grid=None)
    assert mapped.mask is None
    np.testing.assert_array_equal(np.asarray(mapped), VALUES[:, :3])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_pooling_of_mapped_tokens_is_that_of_their_array(kind):
    mapped = TokenArray.from_array(kind(VALUES)).map(twice_and_one)
    vectors = TokenPooling(("mean", "max")).fit_transform(mapped)
    assert isinstance(vectors, torch.Tensor) == (kind is torch.as_tensor)
    expected = 2 * np.hstack([VALUES.mean(1), VALUES.max(1)]) + 1
    np.testing.assert_allclose(vectors, expected, rtol=1e-12)


def test_mapped_tensors_give_an_array_of_no_rows_too():
    mapped = TokenArray.from_array(torch.from_numpy(VALUES), n_prefix_tokens=1).map(twice_and_one)
    assert np.asarray(mapped[[]]).shape == (0, L, D)
    assert mapped[[]].cls.shape == (0, D)


def test_vectors_of_named_maps_are_kept_under_the_names_of_all():
    source = Counted(VALUES)
    tokens = TokenArray(source)
    maps = [
        (tokens, VALUES),
        (tokens.map(twice_and_one, fingerprint="a"), 2 * VALUES + 1),
        (tokens.map(lambda x, mask: -x, fingerprint="b"), -VALUES),
        (
            tokens.map(twice_and_one, fingerprint="a").map(lambda x, mask: -x, fingerprint="b"),
            -2 * VALUES - 1,
        ),
        (
            tokens.map(lambda x, mask: -x, fingerprint="b").map(twice_and_one, fingerprint="a"),
            1 - 2 * VALUES,
        ),
    ]
    for mapped, values in maps:
        np.testing.assert_allclose(TokenPooling().fit_transform(mapped), values.mean(1))
    assert len(source.kept) == len(maps)
    for mapped, values in maps:
        np.testing.assert_allclose(TokenPooling("max").fit_transform(mapped), values.max(1))
        rows = mapped[[4, 4, 0]]
        np.testing.assert_allclose(TokenPooling().fit_transform(rows), values[[4, 4, 0]].mean(1))
    assert len(source.kept) == 2 * len(maps)


@pytest.mark.parametrize("names", [("a", None), (None, "a"), (None, None)])
def test_vectors_of_maps_without_a_name_are_not_kept(names):
    source = Counted(VALUES)
    mapped = TokenArray(source)
    for name in names:
        mapped = mapped.map(twice_and_one, fingerprint=name)
    TokenPooling().fit_transform(mapped)
    assert source.kept == {}


def test_patches_of_mapped_tokens_have_a_name_of_their_own():
    source = Counted(VALUES, n_prefix_tokens=1)
    mapped = TokenArray(source).map(twice_and_one, fingerprint="a")
    whole = TokenPooling(scope="all").fit_transform(mapped)
    patches = TokenPooling().fit_transform(mapped)
    below = TokenPooling().fit_transform(
        TokenArray(source).patches.map(twice_and_one, fingerprint="a")
    )
    np.testing.assert_allclose(whole, 2 * VALUES.mean(1) + 1)
    np.testing.assert_allclose(patches, 2 * VALUES[:, 1:].mean(1) + 1)
    np.testing.assert_allclose(below, patches)


class Late(RowSource):
    """Rows that come in pieces, last first, as long as the longest of the piece; row 2 never."""

    dtype = np.dtype("float64")
    n_rows, row_shape = N, (L, D)
    lengths = np.array([2, 5, 4, 1, 3, 3, 5, 1])

    def stream(self, rows, batch_size=None):
        order = [p for p in range(len(rows))[::-1] if rows[p] != 2]
        for start in range(0, len(order), 2):
            at = np.array(order[start : start + 2])
            lengths = self.lengths[rows[at]]
            longest = lengths.max()
            mask = torch.arange(longest) < torch.from_numpy(lengths)[:, None]
            yield TokenBatch(at, torch.from_numpy(VALUES[rows[at]][:, :longest]), mask)

    def mask(self, rows):
        return np.arange(L) < self.lengths[rows][:, None]

    def reduce(self, rows, function, *, fingerprint=None, batch_size=None):
        parts = ((at, function(x, mask)) for at, x, mask in self.stream(rows))
        return assemble(parts, len(rows), lambda: torch.zeros(1, D)).numpy()


def test_mapped_tokens_may_come_late_in_pieces_and_not_at_all():
    mapped = TokenArray(Late()).map(lambda x, mask: 2 * x.where(mask[..., None], 0.0) + 1)
    assert not mapped.in_memory
    values = np.asarray(mapped)
    for i, length in enumerate(Late.lengths):
        expected = 2 * VALUES[i, :length] + 1 if i != 2 else np.nan
        np.testing.assert_array_equal(values[i, :length], expected)
    vectors = TokenPooling().fit_transform(mapped)
    assert np.isnan(vectors[2]).all()
    expected = [2 * x[:n].mean(0) + 1 for x, n in zip(VALUES, Late.lengths, strict=True)]
    others = np.arange(N) != 2
    np.testing.assert_allclose(vectors[others], np.array(expected)[others], rtol=1e-12)


def test_layers_may_be_mapped_to_one():
    layers = np.random.default_rng(0).normal(size=(N, 3, L, D))
    mapped = TokenArray.from_layers(layers, n_prefix_tokens=1, grid=(2, 2)).map(
        lambda x, mask: x.mean(1)
    )
    assert (mapped.shape, mapped.n_layers, mapped.grid) == ((N, L, D), None, (2, 2))
    np.testing.assert_allclose(np.asarray(mapped), layers.mean(1))
    np.testing.assert_allclose(TokenPooling().fit_transform(mapped), layers[:, :, 1:].mean((1, 2)))


def test_mapped_tokens_are_pickled_with_their_function(masked):
    tokens, mask = masked
    mapped = pickle.loads(pickle.dumps(tokens.map(twice_and_one)[[5, 2]]))
    np.testing.assert_array_equal(np.asarray(mapped), 2 * VALUES[[5, 2]] + 1)
    np.testing.assert_array_equal(mapped.mask, mask[[5, 2]])


def test_mapped_tokens_above_the_limit_are_refused(tokens):
    mapped = tokens.map(lambda x, mask: x.repeat(1, 1, 2), n_features=2 * D)
    with skpool.config_context(max_array_bytes=mapped.nbytes - 1):
        with pytest.raises(ValueError, match="max_array_bytes"):
            np.asarray(mapped)


def test_jobs_on_mapped_tokens_share_the_pass_of_the_network_below(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    extractor = FeatureExtractor(
        counting_backbone(tmp_path / "count"), store=tmp_path / "store", keep_tokens=False
    )
    tokens = extractor.transform(images)
    mapped = tokens.map(twice_and_one, fingerprint="a").map(twice_and_one, fingerprint="a")
    poolings = [TokenPooling(), TokenPooling("cls"), GeMPooling()]
    jobs = [pooling.job(X) for pooling in poolings for X in (tokens, mapped)] + [mapped.job()]
    assert keep_together(jobs, keep_tokens=False) == 1
    mean = 4 * TokenPooling().fit_transform(tokens) + 3
    np.testing.assert_allclose(TokenPooling().fit_transform(mapped), mean, rtol=1e-5)
    cls = 4 * TokenPooling("cls").fit_transform(tokens) + 3
    np.testing.assert_allclose(mapped.cls, cls, rtol=1e-5)
    GeMPooling().fit_transform(mapped[[3, 0]])
    assert (tmp_path / "count").stat().st_size == len(images)


def test_maps_without_a_name_make_no_jobs(tokens):
    assert TokenPooling().job(tokens.map(twice_and_one)) is None
    assert tokens.map(twice_and_one, fingerprint="a").map(twice_and_one).job() is None


# Back in the form that came.


def mapped_of(X, **options):
    """What a step would make of X, checked as steps check it."""
    if isinstance(X, TokenArray):
        tokens = X
    elif isinstance(X, list):
        tokens = TokenArray.from_list(X)
    elif X.ndim == 4:
        tokens = TokenArray.from_map(X)
    else:
        tokens = TokenArray.from_array(X if X.ndim == 3 else X[:, None])
    return tokens.map(twice_and_one, **options)


@pytest.mark.parametrize("shape", [(N, L, D), (N, 2, 3, D), (N, D)])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_come_back_as_they_were(shape, kind, dtype):
    values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    X = kind(values)
    wide = "float32" if dtype == "float16" else dtype
    tokens = mapped_of(X).map(lambda x, mask: x.to(getattr(torch, wide)))
    out = as_given(tokens, X)
    assert type(out) is type(X) and tuple(out.shape) == shape
    assert str(out.dtype).removeprefix("torch.") == wide
    np.testing.assert_allclose(np.asarray(out), 2 * values.astype(wide) + 1, rtol=2e-3)


def test_memory_map_comes_back_as_an_array(tmp_path):
    np.save(tmp_path / "tokens.npy", VALUES)
    X = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    out = as_given(mapped_of(X), X)
    assert type(out) is np.ndarray and out.flags.writeable
    np.testing.assert_array_equal(out, 2 * VALUES + 1)


def test_token_array_comes_back_lazy():
    source = Counted(VALUES)
    X = TokenArray(source)
    tokens = mapped_of(X)
    assert as_given(tokens, X) is tokens and source.n_reads == 0


@pytest.mark.parametrize("container", [list, tuple, "object"])
def test_lists_of_samples_come_back_as_tokens(container):
    samples = [VALUES[0, :2], VALUES[1]]
    tokens = mapped_of(samples)
    if container == "object":
        X = np.empty(2, dtype=object)
        X[:] = samples
    else:
        X = container(samples)
    assert as_given(tokens, X) is tokens


def test_nested_lists_of_numbers_come_back_as_arrays():
    X = VALUES[:, 0].tolist()
    np.testing.assert_array_equal(as_given(mapped_of(VALUES[:, 0]), X), 2 * VALUES[:, 0] + 1)
    maps = VALUES[:, :4].reshape(N, 2, 2, D)
    out = as_given(mapped_of(maps), maps.tolist())
    np.testing.assert_array_equal(out, 2 * maps + 1)


def test_map_without_its_grid_comes_back_as_tokens():
    X = np.random.default_rng(0).normal(size=(N, 2, 3, D))
    out = as_given(TokenArray.from_map(X).map(lambda x, m: x[:, :4], n_tokens=4, grid=None), X)
    np.testing.assert_array_equal(out, X.reshape(N, 6, D)[:, :4])
    smaller = TokenArray.from_map(X).map(lambda x, m: x[:, :2], n_tokens=2, grid=(1, 2))
    np.testing.assert_array_equal(as_given(smaller, X), X[:, :1, :2])


def test_map_to_which_a_class_token_was_added_comes_back_as_tokens():
    X = np.random.default_rng(0).normal(size=(N, 2, 3, D))
    tokens = TokenArray.from_map(X).map(
        lambda x, mask: torch.cat([x.mean(1, keepdim=True), x], dim=1),
        n_tokens=7,
        n_prefix_tokens=1,
    )
    out = as_given(tokens, X)
    assert out.shape == (N, 7, D)
    np.testing.assert_array_equal(out[:, 1:], X.reshape(N, 6, D))


def test_map_of_other_width_comes_back_on_its_grid():
    X = np.random.default_rng(0).normal(size=(N, 2, 3, D))
    wide = TokenArray.from_map(X).map(lambda x, mask: x.repeat(1, 1, 2), n_features=2 * D)
    np.testing.assert_array_equal(as_given(wide, X), np.tile(X, 2))


def test_vectors_of_which_several_tokens_were_made_come_back_as_tokens():
    X = VALUES[:, 0]
    tokens = TokenArray.from_array(X[:, None]).map(lambda x, m: x.repeat(1, 3, 1), n_tokens=3)
    np.testing.assert_array_equal(as_given(tokens, X), np.repeat(X[:, None], 3, axis=1))
