# SPDX-License-Identifier: BSD-3-Clause
"""What holds for every step on rows: vectors and tokens alike, lazy, masked, in any container."""

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import OneToOneFeatureMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags

from skpool.pooling import TokenPooling
from skpool.preprocessing import (
    AllButTheTop,
    BaseRowMap,
    CenteredL2Normalizer,
    CompressedRMSNormalizer,
    FrozenStdLayerNormalizer,
    GroupNormalizer,
    L2Normalizer,
    LayerNormalizer,
    NegatedPCA,
    PowerNormalizer,
    RandomFeatures,
    RMSNormalizer,
    SampleNormalizer,
    TokenStandardScaler,
)
from skpool.preprocessing._base import rows_of
from skpool.stores import ArraySource, RowSource, TokenArray, TokenBatch, assemble

N, L, D = 16, 6, 12

STATELESS = [
    L2Normalizer(),
    L2Normalizer(blocks=[5, 7]),
    PowerNormalizer(),
    PowerNormalizer(0.3, l2=True, l1_first=True, clip=True),
    LayerNormalizer(weight=np.arange(12.0), bias=np.ones(12)),
    RMSNormalizer(eps=0.0),
    GroupNormalizer(4),
    GroupNormalizer(3, activation="swish"),
    CompressedRMSNormalizer(),
    SampleNormalizer("group", n_groups=2),
]
FITTED = [
    CenteredL2Normalizer(),
    CenteredL2Normalizer(pre_l2=True),
    CenteredL2Normalizer(np.arange(12.0)),
    TokenStandardScaler(),
    TokenStandardScaler(with_mean=False),
    FrozenStdLayerNormalizer(weight=np.arange(12.0)),
    AllButTheTop(2),
    AllButTheTop(0.6),
    NegatedPCA(0.7),
    NegatedPCA(0.7, overlap=False, whiten=True),
    CenteredL2Normalizer("median"),
    RandomFeatures(20),
    RandomFeatures(7, activation="cos", bias=True, orthogonal=True),
    SampleNormalizer("frozen_layer"),
]
ALL = STATELESS + FITTED
ids = {"ids": lambda value: " ".join(repr(value).split())[:60] if hasattr(value, "fit") else None}


def make(n=N, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, L, D)) * np.linspace(0.5, 2, D) + 1.0).astype(dtype)


@pytest.fixture
def tokens():
    return make()


class Late(RowSource):
    """Tokens that come late, backwards and two at a time, as those of a network may."""

    def __init__(self, values, missing=()):
        self.inner, self.missing = ArraySource(values), missing
        self.n_rows, self.row_shape = len(values), values.shape[1:]
        self.dtype = values.dtype
        self.n_read, self.kept = 0, {}

    def stream(self, rows, batch_size=None) -> Iterator[TokenBatch]:
        order = np.array([p for p in range(len(rows))[::-1] if rows[p] not in self.missing])
        for start in range(0, len(order), 2):
            positions = order[start : start + 2]
            self.n_read += len(positions)
            values = torch.from_numpy(self.inner.values[rows[positions]])
            yield TokenBatch(positions, values, None)

    def reduce(self, rows, function, *, fingerprint=None, batch_size=None):
        def computed():
            batches = self.stream(np.arange(self.n_rows))
            parts = ((batch.positions, function(batch.tokens, batch.mask)) for batch in batches)
            return assemble(parts, self.n_rows, lambda: None).numpy()

        if fingerprint is None:
            return computed()[rows]
        if fingerprint not in self.kept:
            self.kept[fingerprint] = computed()
        return self.kept[fingerprint][rows]


def values_of(result):
    return np.asarray(result if not isinstance(result, torch.Tensor) else result.numpy())


# --- vectors and tokens ----------------------------------------------------------------------


@pytest.mark.parametrize("step", ALL, **ids)
@pytest.mark.parametrize("container", [np.asarray, torch.from_numpy])
def test_tokens_are_mapped_as_their_vectors(step, tokens, container):
    rows = tokens.reshape(-1, D)
    want = clone(step).fit(rows).transform(rows).reshape(N, L, -1)
    got = clone(step).fit_transform(container(tokens))
    assert type(got) is type(container(tokens))
    np.testing.assert_allclose(values_of(got), want, atol=1e-9)


@pytest.mark.parametrize("step", ALL, **ids)
def test_maps_keep_their_grid(step, tokens):
    maps = tokens.reshape(N, 2, 3, D)
    want = clone(step).fit_transform(tokens)
    got = clone(step).fit_transform(maps)
    np.testing.assert_allclose(got, want.reshape(N, 2, 3, -1), atol=1e-12)


@pytest.mark.parametrize("step", ALL, **ids)
def test_ragged_samples_are_mapped_one_by_one(step, tokens):
    samples = [sample[: 1 + i % L] for i, sample in enumerate(tokens)]
    rows = np.concatenate(samples)
    model = clone(step).fit(samples)
    want = clone(step).fit(rows)
    got = model.transform(samples)
    assert isinstance(got, TokenArray)
    for i, sample in enumerate(samples):
        np.testing.assert_allclose(got[i][: len(sample)], want.transform(sample), atol=1e-9)


@pytest.mark.parametrize("step", ALL, **ids)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 1e30])
def test_masked_tokens_are_never_read(step, tokens, garbage):
    mask = np.arange(L) < (1 + np.arange(N) % L)[:, None]
    dirty = TokenArray.from_array(np.where(mask[..., None], tokens, garbage), mask=mask)
    want = clone(step).fit(tokens[mask]).transform(tokens[mask])
    got = clone(step).fit(dirty).transform(dirty)
    np.testing.assert_allclose(np.asarray(got)[mask], want, atol=1e-9)
    assert np.isfinite(np.asarray(got)).all()


@pytest.mark.parametrize("step", ALL, **ids)
def test_late_tokens_equal_their_array(step, tokens):
    model, want = clone(step).fit(TokenArray(Late(tokens))), clone(step).fit(tokens)
    got = np.asarray(model.transform(TokenArray(Late(tokens))))
    np.testing.assert_allclose(got, want.transform(tokens), atol=1e-9)


@pytest.mark.parametrize("step", ALL, **ids)
def test_transform_of_late_tokens_reads_nothing(step, tokens):
    model, source = clone(step).fit(tokens), Late(tokens)
    mapped = model.transform(TokenArray(source))
    assert source.n_read == 0
    np.testing.assert_allclose(mapped[3], model.transform(tokens)[3], atol=1e-12)
    assert source.n_read == 1


@pytest.mark.parametrize("step", STATELESS, **ids)
def test_fit_of_what_learns_nothing_reads_nothing(step, tokens):
    source = Late(tokens)
    clone(step).fit(TokenArray(source))
    assert source.n_read == 0


@pytest.mark.parametrize("step", [s for s in FITTED if not isinstance(s, RandomFeatures)], **ids)
def test_fit_reads_late_tokens_once(step, tokens):
    source = Late(tokens)
    clone(step).fit(TokenArray(source))
    assert source.n_read == N


@pytest.mark.parametrize("step", FITTED, **ids)
def test_tokens_that_a_network_lost_are_not_learned_from(step, tokens):
    lost = tokens.copy()
    lost[2], lost[4, 1], lost[5, 0, 3] = np.nan, np.inf, np.nan
    known = np.isfinite(lost).all(axis=2)
    model = clone(step).fit(TokenArray(Late(lost, missing=(7,))))
    known[7] = False
    want = clone(step).fit(tokens[known])
    np.testing.assert_allclose(model.transform(tokens[0]), want.transform(tokens[0]), atol=1e-9)


@pytest.mark.parametrize("step", ALL, **ids)
def test_float_type_is_kept_and_half_precision_widened(step, tokens):
    for given_, wanted in {
        "float64": "float64",
        "float32": "float32",
        "float16": "float32",
    }.items():
        X = tokens.astype(given_)
        for values in (X, X[:, 0], torch.from_numpy(X), TokenArray.from_array(X)):
            got = clone(step).fit_transform(values)
            assert str(got.dtype).removeprefix("torch.") == wanted


@pytest.mark.parametrize("step", ALL, **ids)
def test_half_precision_equals_its_float32_copy(step, tokens):
    half = tokens.astype(np.float16)
    wide = half.astype(np.float32)
    got = clone(step).fit(half).transform(half)
    np.testing.assert_allclose(got, clone(step).fit(wide).transform(wide), atol=1e-5)


def test_bfloat16_tokens_are_widened(tokens):
    X = torch.from_numpy(tokens).bfloat16()
    got = LayerNormalizer().transform(X)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, LayerNormalizer().transform(X.float()))


@pytest.mark.parametrize("step", ALL, **ids)
def test_input_is_left_alone(step, tokens):
    before = tokens.copy()
    for values in (tokens, tokens[:, 0], torch.from_numpy(tokens), TokenArray.from_array(tokens)):
        np.asarray(clone(step).fit_transform(values))
        np.testing.assert_array_equal(tokens, before)


# --- between extraction and pooling ----------------------------------------------------------


@pytest.mark.parametrize("step", ALL, **ids)
def test_pooling_after_it_pools_mapped_tokens(step, tokens):
    pipeline = make_pipeline(clone(step), TokenPooling("max", scope="all"))
    want = clone(step).fit_transform(tokens).max(axis=1)
    for X in (tokens, TokenArray.from_array(tokens), TokenArray(Late(tokens))):
        np.testing.assert_allclose(pipeline.fit(X).transform(X), want, atol=1e-9)


def test_prefix_and_grid_stay(tokens):
    X = TokenArray.from_array(tokens[:, :5], n_prefix_tokens=1, grid=(2, 2))
    got = L2Normalizer().transform(X)
    assert (got.n_prefix_tokens, got.grid, got.shape) == (1, (2, 2), (N, 5, D))


def test_store_keeps_what_is_pooled_of_stateless_steps_by_their_parameters(tokens):
    source = Late(tokens)
    pooling = TokenPooling("mean", scope="all")

    def pooled(step):
        return pooling.fit_transform(step.transform(TokenArray(source)))

    for step in (PowerNormalizer(0.5), PowerNormalizer(2.0), L2Normalizer(), PowerNormalizer(0.5)):
        want = step.transform(tokens).mean(axis=1)
        np.testing.assert_allclose(pooled(step), want, atol=1e-12)
    assert len(source.kept) == 3
    assert source.n_read == 3 * N


@pytest.mark.parametrize("step", FITTED, **ids)
def test_store_never_keeps_what_depends_on_training(step, tokens):
    source = Late(tokens)
    for training in (tokens, 1.5 * tokens[::-1] - 1):
        model = clone(step).fit(training)
        got = TokenPooling(scope="all").fit_transform(model.transform(TokenArray(source)))
        np.testing.assert_allclose(got, model.transform(tokens).mean(axis=1), atol=1e-9)
    assert source.kept == {}


def test_grid_search_over_steps_before_a_pooling(tokens):
    X, y = make(30), np.arange(30) % 2
    X[y == 1] += 1.0
    pipeline = make_pipeline(L2Normalizer(), TokenPooling(scope="all"), LogisticRegression())
    grid = {"l2normalizer": ["passthrough", LayerNormalizer(), TokenStandardScaler()]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise")
    search.fit(TokenArray.from_array(X), y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


# --- containers ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ALL, **ids)
def test_set_output_gives_frames_of_vectors_and_leaves_tokens(step, tokens):
    pd = pytest.importorskip("pandas")
    plain = clone(step).fit(tokens)
    model = clone(step).set_output(transform="pandas").fit(tokens)
    for X in (tokens, TokenArray.from_array(tokens)):
        np.testing.assert_array_equal(np.asarray(model.transform(X)), plain.transform(tokens))
    frame = model.transform(tokens[0])
    assert isinstance(frame, pd.DataFrame)
    np.testing.assert_array_equal(frame, plain.transform(tokens[0]))
    assert list(frame.columns) == list(model.get_feature_names_out())


def test_set_output_for_all_leaves_tokens(tokens):
    pytest.importorskip("pandas")
    with config_context(transform_output="pandas"):
        got = L2Normalizer().fit_transform(tokens)
        pipeline = make_pipeline(L2Normalizer(), TokenPooling(scope="all")).fit_transform(tokens)
    assert isinstance(got, np.ndarray)
    assert pipeline.shape == (N, D)


def test_names_of_columns_are_kept():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(make()[0], columns=[f"c{i}" for i in range(D)])
    for step in (LayerNormalizer(), AllButTheTop(), SampleNormalizer("rms")):
        assert list(step.fit(frame).get_feature_names_out()) == list(frame.columns)


@pytest.mark.parametrize("step", ALL, **ids)
def test_pickle_transforms_alike(step, tokens):
    model = clone(step).fit(tokens)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(tokens), model.transform(tokens))


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("step", ALL, **ids)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_token_names_its_sample_and_changes_nothing(step, tokens, bad):
    model = clone(step).fit(tokens)
    before = pickle.dumps(model)
    tokens[5, 2, 3] = bad
    for verb in (model.fit, model.transform):
        for X in (tokens, torch.from_numpy(tokens), TokenArray.from_array(tokens), list(tokens)):
            with pytest.raises(ValueError, match="sample 5"):
                verb(X)
    with pytest.raises(ValueError, match="row 5"):
        model.fit(tokens[:, 2])
    assert pickle.dumps(model) == before


@pytest.mark.parametrize(
    ("step", "refused"),
    [
        (L2Normalizer(blocks=[5, 7]), make()[..., :5]),
        (GroupNormalizer(4), make()[..., :5]),
        (LayerNormalizer(weight=np.ones(12)), make()[..., :5]),
        (CenteredL2Normalizer(np.ones(12)), make()[..., :5]),
        (AllButTheTop(2), make()[..., :2]),
        (NegatedPCA(1.0), np.ones((4, 5))),
        (SampleNormalizer("group", n_groups=4), make()[..., :5]),
    ],
    **ids,
)
def test_fit_refused_after_the_data_were_accepted_changes_nothing(step, refused, tokens):
    model = clone(step).fit(tokens)
    before = pickle.dumps(model)
    with pytest.raises(ValueError):
        model.fit(refused)
    assert pickle.dumps(model) == before
    fresh = clone(step)
    with pytest.raises(ValueError):
        fresh.fit(refused)
    assert set(vars(fresh)) == set(fresh.get_params())


@pytest.mark.parametrize("step", ALL, **ids)
def test_other_width_than_at_fit_is_refused(step, tokens):
    model = clone(step).fit(tokens[:, 0])
    for X in (tokens[..., :-1], TokenArray.from_array(tokens[..., :-1]), tokens[:, 0, :-1]):
        with pytest.raises(ValueError, match=r"(?s)11.*12"):
            model.transform(X)


@pytest.mark.parametrize("step", ALL, **ids)
def test_wrong_rank_is_refused(step, tokens):
    for X in (tokens[0, 0], tokens[None, None], tokens[:0], tokens[:, :0], "abc"):
        with pytest.raises((ValueError, TypeError)):
            clone(step).fit(X)


def test_tokens_of_several_layers_are_refused(tokens):
    layers = TokenArray.from_layers(np.stack([tokens, tokens], axis=1))
    with pytest.raises(ValueError, match="2 layers"):
        L2Normalizer().transform(layers)


@pytest.mark.parametrize("step", FITTED, **ids)
def test_what_learns_must_be_fitted_first(step, tokens):
    assert get_tags(step).requires_fit
    for X in (tokens[:, 0], tokens, TokenArray.from_array(tokens)):
        with pytest.raises(NotFittedError):
            clone(step).transform(X)


@pytest.mark.parametrize("step", STATELESS, **ids)
def test_what_is_stateless_needs_no_fit(step, tokens):
    assert not get_tags(step).requires_fit
    np.testing.assert_array_equal(
        clone(step).transform(tokens), clone(step).fit(tokens).transform(tokens)
    )


# Random features look at the width alone.
@pytest.mark.parametrize("step", [s for s in FITTED if not isinstance(s, RandomFeatures)], **ids)
def test_samples_without_a_real_token_teach_nothing(step, tokens):
    nothing = TokenArray.from_array(tokens, mask=np.zeros((N, L), dtype=bool))
    with pytest.raises(ValueError, match="n_samples=0"):
        clone(step).fit(nothing)


# --- a step of one's own ---------------------------------------------------------------------


class Doubled(OneToOneFeatureMixin, BaseRowMap):
    """A row map from outside the package."""

    def _map(self, rows):
        return 2 * rows


def test_own_step_maps_tokens_and_vectors(tokens):
    np.testing.assert_array_equal(Doubled().transform(tokens), 2 * tokens)
    np.testing.assert_array_equal(Doubled().transform(tokens[:, 0]), 2 * tokens[:, 0])


def test_store_does_not_keep_what_an_own_step_made(tokens):
    source = Late(tokens)
    TokenPooling(scope="all").fit_transform(Doubled().transform(TokenArray(source)))
    assert source.kept == {}


# --- reading what is to be learned -----------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_rows_come_in_blocks_that_make_up_the_whole(dtype):
    X = np.random.default_rng(0).normal(size=(20_000, 3)).astype(dtype)
    blocks = list(rows_of(X))
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate(blocks), X)
    assert blocks[0].dtype == (torch.float64 if dtype == "float64" else torch.float32)


def test_rows_of_tokens_are_the_real_ones(tokens):
    mask = np.random.default_rng(0).random((N, L)) < 0.5
    got = np.concatenate(list(rows_of(TokenArray.from_array(tokens, mask=mask))))
    np.testing.assert_array_equal(got, tokens[mask])
