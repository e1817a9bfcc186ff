# SPDX-License-Identifier: BSD-3-Clause
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import token_backbone
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from text_nets import (
    DECODERS,
    ENCODERS,
    TEXTS,
    LetterNet,
    counting_letters,
    letter_backbone,
    make_tokenizer,
    save_text_model,
)

import skpool
from skpool.backbones import Backbone, TextRecipe
from skpool.exceptions import BackboneError
from skpool.extraction import FeatureExtractor, TextFeatureExtractor
from skpool.inputs import TextSequence
from skpool.pooling import TokenPooling
from skpool.stores import FeatureStore, TokenArray, default_cache

MANY = [f"text number {i} of {'very ' * (i % 13)}many" for i in range(41)]


@pytest.fixture(autouse=True)
def clean_cache():
    default_cache().clear()
    yield
    default_cache().clear()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Name of a small random transformer, written when first asked for."""
    pytest.importorskip("transformers")
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = (f"hf:{folder}", *save_text_model(kind, folder))
        return made[kind]

    return get


def tokens_by_hand(backbone, text, layer=-1):
    """Tokens of one text by itself, (L, d)."""
    return backbone.forward(backbone.prepare([text]), [layer])[0][0][0].numpy()


def uncached(extractor, X):
    with skpool.config_context(cache_bytes=0):
        return extractor.transform(X)


# What the vectors are.

POOLED = {
    "mean": lambda x: x.mean(0),
    "cls": lambda x: x[0],
    "last": lambda x: x[-1],
    "max": lambda x: x.max(0),
    "mean_sqrt_len": lambda x: x.sum(0) / np.sqrt(len(x)),
    "weighted_mean": lambda x: np.average(x, axis=0, weights=np.arange(1, len(x) + 1)),
}


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_vector_is_the_pooling_of_the_tokens_of_one_text(pooling, kind, directory):
    backbone = Backbone(directory(kind)[0])
    got = TextFeatureExtractor(backbone, pooling=pooling, batch_size=3).fit_transform(TEXTS)
    expected = [POOLED[pooling](tokens_by_hand(backbone, text)) for text in TEXTS]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean", "weighted_mean"])
@pytest.mark.parametrize("kind", DECODERS)
def test_vectors_equal_those_of_a_left_padded_pass(pooling, kind, directory):
    name, model, tokenizer = directory(kind)
    texts = [text for text in TEXTS if text]
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    real = batch["attention_mask"].bool().numpy()
    assert not real[:, 0].all()
    with torch.no_grad():
        own = model(
            **{k: batch[k] for k in ("input_ids", "attention_mask")},
            position_ids=(batch["attention_mask"].cumsum(1) - 1).clamp_min(0),
        ).last_hidden_state.numpy()
    expected = [POOLED[pooling](row[mask]) for row, mask in zip(own, real, strict=True)]
    got = TextFeatureExtractor(name, pooling=pooling).fit_transform(texts)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_text_alone_and_beside_a_long_one_gives_the_same(kind, directory):
    extractor = TextFeatureExtractor(directory(kind)[0], pooling="mean", layers=[1, -1])
    together = uncached(extractor, TEXTS)
    for row, text in enumerate(TEXTS):
        alone = uncached(extractor, [text])[0]
        np.testing.assert_allclose(alone, together[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 1000, "auto"])
def test_order_of_texts_is_the_order_of_vectors(batch_size):
    backbone = letter_backbone()
    order = np.random.default_rng(0).permutation(len(MANY))
    texts = [MANY[i] for i in order]
    extractor = TextFeatureExtractor(backbone, batch_size=batch_size)
    extractor.transform(texts[::3])
    # Now a third of the texts are cached, and the others are computed.
    expected = [tokens_by_hand(backbone, text).mean(0) for text in texts]
    np.testing.assert_allclose(extractor.transform(texts), expected, rtol=1e-5, atol=1e-5)


def test_many_windows_of_sorting_keep_the_order(monkeypatch):
    from skpool.extraction import _exchange, _text_source

    monkeypatch.setattr(_exchange, "_CLAIMED_AT_ONCE", 4)
    monkeypatch.setattr(_text_source, "_SORTED_AT_ONCE", 10)
    backbone = letter_backbone()
    expected = [tokens_by_hand(backbone, text).mean(0) for text in MANY]
    got = TextFeatureExtractor(backbone).transform(MANY)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    tokens = TextFeatureExtractor(backbone, pooling=None, keep_tokens=False).transform(MANY)
    np.testing.assert_array_equal(tokens.mask.sum(1), [len(text) for text in MANY])


def test_texts_that_a_thread_tokenises_ahead_keep_their_order(monkeypatch):
    # As on a device that computes by itself.
    from skpool.extraction import _text_source

    monkeypatch.setattr(_text_source, "_SORTED_AT_ONCE", 10)
    plain = TextFeatureExtractor._settings
    monkeypatch.setattr(
        TextFeatureExtractor, "_settings", lambda self: replace(plain(self), n_threads=1)
    )
    backbone = letter_backbone()
    expected = [tokens_by_hand(backbone, text[:30]).mean(0) for text in MANY]
    with pytest.warns(UserWarning, match="not fit into 30 tokens") as told:
        got = TextFeatureExtractor(backbone, max_length=30).transform(MANY)
    assert len(told) == 1
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_tokens_in_a_store_serve_poolings_a_few_at_a_time(monkeypatch, tmp_path):
    from skpool.extraction import _text_source

    monkeypatch.setattr(_text_source, "_READ_BYTES", 2000)
    count = tmp_path / "count"
    extractor = TextFeatureExtractor(
        counting_letters(count), keep_tokens=True, store=str(tmp_path / "store")
    )
    extractor.transform(MANY)
    got = clone(extractor).set_params(pooling="last").transform(MANY[::-1])
    assert count.stat().st_size == len(MANY)
    expected = [tokens_by_hand(letter_backbone(), text)[-1] for text in MANY[::-1]]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_batches_are_bounded_by_their_tokens(monkeypatch):
    from skpool.extraction import _text_feature_extractor as module

    shapes = []
    run = LetterNet.forward

    def spy(self, ids, mask):
        shapes.append(tuple(ids.shape))
        return run(self, ids, mask)

    monkeypatch.setitem(module._TOKENS_PER_BATCH, "cpu", 200)
    backbone = letter_backbone(seed=5)
    extractor = TextFeatureExtractor(backbone).fit(MANY)
    monkeypatch.setattr(LetterNet, "forward", spy)
    extractor.transform([*MANY, "x" * 300])
    # The one that is longer than the bound stands alone, and first.
    assert shapes[0] == (1, 300)
    assert all(n * length <= 200 for n, length in shapes[1:])
    n_read = sum(n * length for n, length in shapes)
    assert n_read < 1.15 * (300 + sum(map(len, MANY)))


def test_every_container_of_texts_gives_the_same():
    extractor = TextFeatureExtractor(letter_backbone())
    expected = extractor.transform(TEXTS)
    forms = [tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object), TextSequence(TEXTS)]
    try:
        import pandas as pd
    except ImportError:
        pass
    else:
        forms.append(pd.Series(TEXTS, index=range(8, 0, -1)))
    for form in forms:
        np.testing.assert_array_equal(extractor.fit(form).transform(form), expected)


def test_empty_text_is_its_special_tokens(directory):
    for kind in ("bert", "gpt2"):
        vectors = TextFeatureExtractor(directory(kind)[0]).transform(["", "again"])
        assert np.isfinite(vectors).all()
    name, model, tokenizer = directory("bert")
    with torch.no_grad():
        expected = model(**tokenizer([""], return_tensors="pt")).last_hidden_state[0].mean(0)
    vector = TextFeatureExtractor(name, pooling="mean").transform([""])[0]
    np.testing.assert_allclose(vector, expected, rtol=1e-5, atol=1e-5)


# Recipes.


def test_recipe_decides_pooling_norm_and_end(directory):
    name, *_ = directory("llama")
    tokenizer = make_tokenizer("llama")
    recipe = TextRecipe("last", normalize=True, add_eos=True)
    got = TextFeatureExtractor(Backbone(name, recipe=recipe)).transform(["a network"])
    own = Backbone(name)
    ids = [*tokenizer("a network")["input_ids"], tokenizer.eos_token_id]
    last = own.forward(torch.tensor([ids]))[0][0][0, -1].numpy()
    np.testing.assert_allclose(got[0], last / np.linalg.norm(last), rtol=1e-5, atol=1e-6)
    plain = TextFeatureExtractor(
        Backbone(name, recipe=recipe), add_eos=False, normalize=False, pooling="mean"
    ).transform(["a network"])
    np.testing.assert_allclose(
        plain[0], tokens_by_hand(own, "a network").mean(0), rtol=1e-5, atol=1e-5
    )


def test_normalisation_makes_unit_vectors():
    plain = TextFeatureExtractor(letter_backbone()).transform(TEXTS)
    unit = TextFeatureExtractor(letter_backbone(), normalize=True).transform(TEXTS)
    assert np.abs(np.linalg.norm(plain, axis=1) - 1).max() > 0.1
    norms = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, plain / norms, rtol=1e-6)


def test_prefix_is_part_of_the_text():
    extractor = TextFeatureExtractor(letter_backbone())
    joined = extractor.transform([f"query: {text}" for text in TEXTS])
    prefixed = clone(extractor).set_params(prefix="query: ").transform(TEXTS)
    np.testing.assert_allclose(prefixed, joined, rtol=1e-6)


def test_instruction_is_read_and_left_out(directory):
    backbone = Backbone(directory("bert")[0])
    extractor = TextFeatureExtractor(backbone, pooling="mean", instruction="a key: ")
    for text in ("network", "every text"):
        tokens = tokens_by_hand(backbone, f"a key: {text}")
        n_text = len(tokens_by_hand(backbone, text)) - 2
        # The class token, and from the text on.
        counted = np.concatenate([tokens[:1], tokens[-n_text - 1 :]])
        np.testing.assert_allclose(
            extractor.transform([text])[0], counted.mean(0), rtol=1e-5, atol=1e-5
        )
    whole = clone(extractor).set_params(exclude_instruction=False).transform(["network"])
    expected = tokens_by_hand(backbone, "a key: network").mean(0)
    np.testing.assert_allclose(whole[0], expected, rtol=1e-5, atol=1e-5)


def test_class_token_is_kept_beside_an_instruction(directory):
    backbone = Backbone(directory("bert")[0])
    got = TextFeatureExtractor(backbone, pooling="cls", instruction="a key: ").transform(["text"])
    expected = tokens_by_hand(backbone, "a key: text")[0]
    np.testing.assert_allclose(got[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last"])
def test_empty_instruction_equals_none(pooling, directory):
    name, *_ = directory("bert")
    plain = TextFeatureExtractor(name, pooling=pooling).transform(TEXTS)
    empty = TextFeatureExtractor(name, pooling=pooling, instruction="").transform(TEXTS)
    np.testing.assert_array_equal(plain, empty)


def test_echo_pools_a_copy_that_has_seen_the_whole_text(directory):
    backbone = Backbone(directory("gpt2")[0])
    echo = TextFeatureExtractor(backbone, pooling="mean", echo=True)
    text = "every text has a key"
    tokens = tokens_by_hand(backbone, f"{text}\n{text}")
    n = len(tokens_by_hand(backbone, text))
    np.testing.assert_allclose(echo.transform([text])[0], tokens[-n:].mean(0), rtol=1e-5, atol=1e-5)
    # The first token of a decoder sees nothing of the text, unless it is read twice.
    tokens = TextFeatureExtractor(backbone, pooling=None).transform(["every text", "every key"])
    twice = TextFeatureExtractor(backbone, pooling=None, echo=True)
    twice = twice.transform(["every text", "every key"])
    first, again = np.asarray(tokens)[:, 0], np.asarray(twice)[:, 0]
    np.testing.assert_allclose(first[0], first[1], atol=1e-6)
    assert np.abs(again[0] - again[1]).max() > 1e-3


# Windows.

LONG = ["x" * 3, "abcdefghijklmnop" * 3, "short", "0123456789", ""]


class BagNet(torch.nn.Embedding):
    """No token looks at another one."""

    def forward(self, ids):
        return super().forward(ids)


def bag_backbone():
    torch.manual_seed(0)
    return Backbone.from_module(BagNet(256, 5), recipe=TextRecipe(), tokenizer=str.encode)


def test_length_weighted_windows_of_unconnected_tokens_are_the_token_mean():
    whole = TextFeatureExtractor(bag_backbone(), pooling="mean").transform(LONG)
    windows = TextFeatureExtractor(
        bag_backbone(), pooling="mean", chunk=7, chunk_pool="length_weighted"
    ).transform(LONG)
    np.testing.assert_allclose(windows, whole, rtol=1e-5, atol=1e-6)
    unweighted = TextFeatureExtractor(bag_backbone(), pooling="mean", chunk=7).transform(LONG)
    assert np.abs(unweighted - whole).max() > 1e-3


@pytest.mark.parametrize("chunk_pool", ["mean", "length_weighted", "max", "first"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_window_as_long_as_the_text_equals_no_window(chunk_pool, kind, directory):
    name, *_ = directory(kind)
    plain = TextFeatureExtractor(name, pooling="mean").transform(TEXTS)
    windows = TextFeatureExtractor(name, pooling="mean", chunk=60, chunk_pool=chunk_pool)
    np.testing.assert_allclose(windows.transform(TEXTS), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("chunk_pool", "combine"),
    [
        ("mean", lambda v, n: v.mean(0)),
        ("length_weighted", lambda v, n: np.average(v, axis=0, weights=n)),
        ("max", lambda v, n: v.max(0)),
        ("first", lambda v, n: v[0]),
    ],
)
@pytest.mark.parametrize("layers", [-1, [0, -1]])
def test_windows_are_combined_per_text(chunk_pool, combine, layers):
    backbone = letter_backbone()
    got = TextFeatureExtractor(
        backbone, layers=layers, chunk=7, chunk_overlap=2, chunk_pool=chunk_pool
    ).transform(LONG)
    for row, text in enumerate(LONG):
        starts = range(0, max(1, len(text) - 2), 5)
        pieces = [text[start : start + 7] for start in starts]
        assert len(pieces) == 1 or len(pieces[-1]) > 2
        for place, layer in enumerate(np.atleast_1d(layers)):
            vectors = [tokens_by_hand(backbone, piece, int(layer)).mean(0) for piece in pieces]
            expected = combine(np.array(vectors), [max(1, len(piece)) for piece in pieces])
            actual = got[row] if np.ndim(layers) == 0 else got[row, place]
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_first_window_alone_is_computed(tmp_path):
    count = tmp_path / "count"
    extractor = TextFeatureExtractor(counting_letters(count), chunk=4, chunk_pool="first")
    extractor.transform(LONG)
    assert count.stat().st_size == len(LONG)


def test_windows_are_computed_once(tmp_path):
    count = tmp_path / "count"
    extractor = TextFeatureExtractor(counting_letters(count), chunk=4)
    extractor.transform(LONG)
    seen = count.stat().st_size
    assert seen == sum(max(1, -(-len(text) // 4)) for text in LONG)
    for pool in ("max", "length_weighted"):
        clone(extractor).set_params(chunk_pool=pool).transform(LONG[::-1])
    assert count.stat().st_size == seen


def test_windows_read_what_would_be_cut_off():
    texts = ["a" * 600 + "z" * 20]
    extractor = TextFeatureExtractor(letter_backbone(), max_length=100)
    with pytest.warns(UserWarning, match="1 text does not fit into 100 tokens"):
        cut = extractor.transform(texts)
    whole = extractor.set_params(chunk=100, chunk_pool="max").transform(texts)
    assert (whole >= cut - 1e-6).all()
    assert np.abs(whole - cut).max() > 1e-3


# Lengths.


def test_texts_that_are_cut_off_are_counted_in_one_warning():
    texts = ["x" * 30, "y" * 11, "z" * 10, "short"]
    extractor = TextFeatureExtractor(letter_backbone(), max_length=10)
    with pytest.warns(UserWarning, match="2 texts do not fit into 10 tokens") as told:
        vectors = extractor.fit(texts).transform(texts)
    assert len(told) == 1
    np.testing.assert_allclose(
        vectors[0], tokens_by_hand(letter_backbone(), "x" * 10).mean(0), rtol=1e-5, atol=1e-6
    )


def test_lazy_tokens_warn_once():
    tokens = TextFeatureExtractor(letter_backbone(), max_length=4, pooling=None).transform(
        ["long text", "tiny"]
    )
    with pytest.warns(UserWarning, match="1 text does not fit into 4 ") as told:
        assert tokens.shape == (2, 4, 6)
        np.asarray(tokens)
        TokenPooling().fit_transform(tokens)
    assert len(told) == 1


def test_no_warning_where_all_fits():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TextFeatureExtractor(letter_backbone(), max_length=10).transform(["0123456789"])


def test_network_limits_the_length(directory):
    name, *_ = directory("roberta")
    with pytest.warns(UserWarning, match="not fit into 126 tokens"):
        vectors = TextFeatureExtractor(name).transform(["a " * 300])
    assert np.isfinite(vectors).all()


# Tokens.


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_without_pooling_the_tokens_are_lazy_and_ragged(kind, directory):
    backbone = Backbone(directory(kind)[0])
    tokens = TextFeatureExtractor(backbone, pooling=None).fit_transform(TEXTS)
    expected = [tokens_by_hand(backbone, text) for text in TEXTS]
    lengths = [len(rows) for rows in expected]
    assert isinstance(tokens, TokenArray)
    assert tokens.shape == (len(TEXTS), max(lengths), 16)
    assert tokens.n_prefix_tokens == 0
    assert tokens.cls_index == (0 if kind == "bert" else None)
    np.testing.assert_array_equal(tokens.mask.sum(1), lengths)
    values = np.asarray(tokens)
    for row, rows in enumerate(expected):
        np.testing.assert_allclose(values[row, : len(rows)], rows, rtol=1e-5, atol=1e-5)
        assert not values[row, len(rows) :].any()


@pytest.mark.parametrize("strategy", ["mean", "max", "std", "last", "weighted_mean"])
def test_pooling_of_lazy_tokens_equals_pooling_of_arrays(strategy):
    tokens = TextFeatureExtractor(letter_backbone(), pooling=None).transform(TEXTS)
    array = TokenArray.from_array(np.asarray(tokens), mask=tokens.mask)
    lazy = TokenPooling(strategy, scope="all").fit_transform(tokens)
    there = TokenPooling(strategy, scope="all").fit_transform(array)
    np.testing.assert_allclose(lazy, there, rtol=1e-5, atol=1e-6)


def test_pooling_inside_and_after_the_extractor_agree(directory):
    name, *_ = directory("bert")
    tokens = TextFeatureExtractor(name, pooling=None).transform(TEXTS)
    for pooling in ("mean", "cls", "last", "weighted_mean"):
        inside = TextFeatureExtractor(name, pooling=pooling).transform(TEXTS)
        after = TokenPooling(pooling).fit_transform(tokens)
        np.testing.assert_allclose(inside, after, rtol=1e-5, atol=1e-6)


def test_index_and_pickle_of_lazy_tokens_keep_working():
    tokens = TextFeatureExtractor(letter_backbone(), pooling=None).transform(TEXTS)
    rows = np.array([4, 2, 0])
    view = tokens[rows]
    np.testing.assert_allclose(np.asarray(view), np.asarray(tokens)[rows], rtol=1e-5, atol=1e-6)
    back = pickle.loads(pickle.dumps(view))
    np.testing.assert_array_equal(np.asarray(back), np.asarray(view))


def test_several_layers_have_an_axis_of_their_own():
    backbone = letter_backbone()
    vectors = TextFeatureExtractor(backbone, layers=[0, 1, -1]).transform(TEXTS)
    assert vectors.shape == (len(TEXTS), 3, 6)
    tokens = TextFeatureExtractor(backbone, layers=[0, 1, -1], pooling=None).transform(TEXTS)
    assert tokens.shape == (len(TEXTS), 3, max(len(text.encode()) for text in TEXTS), 6)
    for place, layer in enumerate((0, 1, 2)):
        one = TextFeatureExtractor(backbone, layers=layer).transform(TEXTS)
        np.testing.assert_allclose(vectors[:, place], one, rtol=1e-5, atol=1e-6)
        pooled = TokenPooling().fit_transform(tokens.layer(place))
        np.testing.assert_allclose(pooled, one, rtol=1e-5, atol=1e-6)
    expected = [tokens_by_hand(backbone, text, 1).mean(0) for text in TEXTS]
    np.testing.assert_allclose(vectors[:, 1], expected, rtol=1e-5, atol=1e-5)


def test_transform_without_pooling_computes_nothing(tmp_path):
    count = tmp_path / "count"
    tokens = TextFeatureExtractor(counting_letters(count), pooling=None).fit_transform(TEXTS)
    assert tokens.shape[0] == len(TEXTS)
    assert count.stat().st_size == 0
    np.asarray(tokens[:2])
    assert count.stat().st_size == 2


# One pass over the texts.


def test_equal_texts_are_computed_once(tmp_path):
    count = tmp_path / "count"
    extractor = TextFeatureExtractor(counting_letters(count))
    extractor.transform([*TEXTS, *TEXTS[::-1]])
    assert count.stat().st_size == len(set(TEXTS))


def test_vectors_are_kept_without_their_tokens(tmp_path):
    count = tmp_path / "count"
    backbone = counting_letters(count)
    with skpool.config_context(cache_bytes=6 * 4 * (len(MANY) + 1)):
        for _ in range(3):
            TextFeatureExtractor(backbone).transform(MANY)
    assert count.stat().st_size == len(MANY)


def test_search_over_poolings_runs_the_network_once(tmp_path):
    count = tmp_path / "count"
    y = np.arange(len(MANY)) % 2
    search = GridSearchCV(
        make_pipeline(TextFeatureExtractor(counting_letters(count)), LogisticRegression()),
        {"textfeatureextractor__pooling": ["mean", "last", "max", "weighted_mean"]},
        cv=KFold(4, shuffle=True, random_state=0),
        error_score="raise",
    )
    search.fit(MANY, y)
    search.fit(MANY[::-1], y)
    assert count.stat().st_size == len(MANY)


@pytest.mark.parametrize("pooling", ["mean", None])
def test_folds_in_two_processes_and_later_sessions_run_it_once(pooling, tmp_path):
    count = tmp_path / "count"
    y = np.arange(len(MANY)) % 2
    store = str(tmp_path / "store")
    extractor = TextFeatureExtractor(counting_letters(count), pooling=pooling, store=store)
    steps = [("text", extractor), ("clf", LogisticRegression())]
    if pooling is None:
        steps.insert(1, ("pool", TokenPooling()))
    grid = {"clf__C": [0.1, 1.0]}
    if pooling is None:
        grid["pool__strategy"] = ["mean", "max"]
    search = GridSearchCV(Pipeline(steps), grid, cv=3, n_jobs=2, error_score="raise")
    search.fit(MANY, y)
    assert count.stat().st_size == len(MANY)
    with FeatureStore(store) as later:
        again = clone(extractor).set_params(store=later).transform(MANY[::2])
        if pooling is None:
            again = TokenPooling().fit_transform(again)
    assert count.stat().st_size == len(MANY)
    expected = [tokens_by_hand(letter_backbone(), text).mean(0) for text in MANY[::2]]
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": "x"},
        {"instruction": "x"},
        {"instruction": "x", "exclude_instruction": False},
        {"echo": True},
        {"max_length": 9},
        {"layers": 1},
        {"chunk": 300},
        {"dtype": "float16"},
    ],
)
def test_another_setting_is_computed_anew(options, tmp_path):
    count = tmp_path / "count"
    backbone = Backbone.from_module(
        counting_letters(count)._module,
        recipe=TextRecipe(),
        tokenizer=str.encode,
        layer_paths=["blocks.0", "blocks.1"],
    )
    extractor = TextFeatureExtractor(backbone)
    extractor.transform(["one", "two"])
    before = count.stat().st_size
    clone(extractor).set_params(**options).transform(["one", "two"])
    assert count.stat().st_size == before + 2


def test_cross_validation_of_a_pipeline_equals_that_of_its_vectors():
    y = np.arange(len(MANY)) % 3
    pipeline = make_pipeline(TextFeatureExtractor(letter_backbone()), LogisticRegression())
    vectors = TextFeatureExtractor(letter_backbone()).transform(MANY)
    got = cross_val_predict(pipeline, MANY, y, cv=3, method="predict_proba")
    expected = cross_val_predict(LogisticRegression(), vectors, y, cv=3, method="predict_proba")
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


# Containers, types, clones.


def test_torch_output_gives_tensors():
    plain = TextFeatureExtractor(letter_backbone(), normalize=True)
    tensor = clone(plain).set_params(output="torch").transform(TEXTS)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), plain.transform(TEXTS))


def test_half_precision_tokens_give_float32_vectors():
    full = TextFeatureExtractor(letter_backbone())
    half = clone(full).set_params(dtype="float16")
    assert clone(half).set_params(pooling=None).transform(TEXTS).dtype == np.float16
    vectors = half.transform(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, full.transform(TEXTS), rtol=2e-3, atol=2e-3)


def test_clone_and_pickle_carry_the_name_alone(directory):
    extractor = TextFeatureExtractor(directory("bert")[0]).fit(TEXTS)
    vectors = extractor.transform(TEXTS)
    assert len(pickle.dumps(extractor)) < 2000
    back = pickle.loads(pickle.dumps(extractor))
    np.testing.assert_array_equal(back.transform(TEXTS), vectors)
    backbone = Backbone(directory("bert")[0])
    assert clone(TextFeatureExtractor(backbone)).backbone is backbone


def test_set_params_of_the_backbone_takes_effect():
    extractor = TextFeatureExtractor(letter_backbone(0)).fit(TEXTS)
    before = extractor.transform(TEXTS)
    after = extractor.set_params(backbone=letter_backbone(1)).transform(TEXTS)
    assert np.abs(before - after).max() > 0.1


def test_feature_names_count_the_width():
    names = TextFeatureExtractor(letter_backbone()).get_feature_names_out()
    assert list(names[[0, -1]]) == ["textfeatureextractor0", "textfeatureextractor5"]


def test_two_calls_give_identical_bytes():
    extractor = TextFeatureExtractor(letter_backbone())
    np.testing.assert_array_equal(uncached(extractor, MANY), uncached(extractor, MANY))


# What is refused.


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": 9}, "layers=9 does not exist"),
        ({"layers": []}, "layers"),
        ({"pooling": "gem"}, "pooling"),
        ({"pooling": "cls"}, "needs a class token"),
        ({"pooling": None, "chunk": 8}, "needs a pooling"),
        ({"chunk": 600}, r"chunk=600 is more than the 512"),
        ({"chunk": 8, "chunk_overlap": 8}, "chunk_overlap=8"),
        ({"max_length": 4, "instruction": "long"}, "leaves no token"),
        ({"add_eos": True}, "needs an end token"),
        ({"prefix": None}, "prefix"),
        ({"chunk_pool": "sum"}, "chunk_pool"),
        ({"token_norm": "all"}, "token_norm='all'"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used"),
        ({"batch_size": 0}, "batch_size"),
        ({"backbone": token_backbone()}, "is a network of images; use FeatureExtractor"),
    ],
)
def test_bad_parameters_are_refused_by_fit_and_transform(options, match):
    extractor = TextFeatureExtractor(letter_backbone()).set_params(**options)
    with pytest.raises(ValueError, match=match):
        extractor.fit(TEXTS)
    with pytest.raises(ValueError, match=match):
        extractor.transform(TEXTS)


def test_extractor_of_images_refuses_a_network_of_texts():
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"network of texts; use TextFeatureExtractor"):
        FeatureExtractor(letter_backbone()).fit(images)


@pytest.mark.parametrize("bad", [[], "one text", [1, 2], [None], ["a", float("nan")], [b"a"]])
def test_bad_kinds_of_x_are_refused_at_once(bad):
    extractor = TextFeatureExtractor(letter_backbone())
    with pytest.raises((ValueError, TypeError)):
        extractor.fit(bad)
    with pytest.raises((ValueError, TypeError)):
        extractor.transform(bad)


class _NaN(LetterNet):
    def forward(self, ids, mask):
        return super().forward(ids, mask) / 0


def test_values_that_are_not_finite_are_refused():
    backbone = Backbone.from_module(_NaN(), recipe=TextRecipe(), tokenizer=str.encode)
    with pytest.raises(ValueError, match="NaN or infinity"):
        TextFeatureExtractor(backbone).transform(["a text"])


class _Garbage(LetterNet):
    """NaN wherever there is no token."""

    def forward(self, ids, mask):
        return super().forward(ids, mask).where(mask[..., None], torch.nan)


@pytest.mark.parametrize("pooling", sorted(set(POOLED) - {"cls"}))
def test_what_stands_in_the_padding_is_never_read(pooling):
    backbone = Backbone.from_module(_Garbage(), recipe=TextRecipe(), tokenizer=str.encode)
    got = TextFeatureExtractor(backbone, pooling=pooling).transform(TEXTS)
    expected = TextFeatureExtractor(letter_backbone(), pooling=pooling).transform(TEXTS)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


class _SmallMemory(LetterNet):
    def forward(self, ids, mask):
        if len(ids) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(ids, mask)


@pytest.mark.parametrize("instruction", [None, "read: "])
def test_batch_that_does_not_fit_is_halved(instruction):
    backbone = Backbone.from_module(_SmallMemory(), recipe=TextRecipe(), tokenizer=str.encode)
    got = TextFeatureExtractor(backbone, instruction=instruction).transform(MANY)
    expected = TextFeatureExtractor(letter_backbone(), instruction=instruction).transform(MANY)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_tokenizer_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="give a function"):
        Backbone.from_module(LetterNet(), recipe=TextRecipe())


def test_layer_that_is_no_table_of_tokens_is_refused():
    class Pooled(LetterNet):
        def forward(self, ids, mask):
            return super().forward(ids, mask).mean(1)

    backbone = Backbone.from_module(Pooled(), recipe=TextRecipe(), tokenizer=str.encode)
    with pytest.raises(BackboneError, match=r"\(n, L, d\)"):
        TextFeatureExtractor(backbone).fit(TEXTS)
