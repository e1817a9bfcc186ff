# SPDX-License-Identifier: BSD-3-Clause
import pickle

import numpy as np
import pytest
import torch
from nets import RECIPE, TokenNet, counting_backbone, token_backbone
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline

import skpool
from skpool.backbones import Backbone
from skpool.extraction import FeatureExtractor
from skpool.inputs import ImageSequence
from skpool.pooling import GeMPooling, TokenPooling
from skpool.stores import FeatureStore, TokenArray, default_cache


@pytest.fixture(autouse=True)
def clean_cache():
    default_cache().clear()
    yield
    default_cache().clear()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (23, 18, 18, 3), dtype=np.uint8)


@pytest.fixture
def paths(pixels, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    names = [str(folder / f"{i:02}.png") for i in range(len(pixels))]
    for name, array in zip(names, pixels, strict=True):
        Image.fromarray(array).save(name)
    return names


def _tokens_by_hand(backbone, pixels):
    return backbone.forward(backbone.prepare([Image.fromarray(p) for p in pixels]))[0][0].numpy()


@pytest.mark.parametrize("kind", ["paths", "pil", "array", "series", "sequence", "objects"])
def test_every_form_of_images_gives_the_same_tokens(kind, pixels, paths):
    forms = {
        "paths": lambda: paths,
        "pil": lambda: [Image.fromarray(p) for p in pixels],
        "array": lambda: pixels,
        "series": lambda: pytest.importorskip("pandas").Series(paths, index=range(100, 123)),
        "sequence": lambda: ImageSequence(paths),
        "objects": lambda: np.array(paths, dtype=object),
    }
    backbone = token_backbone()
    got = FeatureExtractor(backbone).fit_transform(forms[kind]())
    np.testing.assert_allclose(np.asarray(got), _tokens_by_hand(backbone, pixels), atol=1e-5)


def test_order_of_images_is_the_order_of_tokens(pixels):
    order = np.random.default_rng(1).permutation(len(pixels))
    extractor = FeatureExtractor(token_backbone(), batch_size=4)
    plain = np.asarray(extractor.transform(pixels))
    default_cache().clear()
    extractor.transform(pixels[::2]).reduce(lambda tokens, mask: tokens[:, 0])
    # Now half of the images are cached, and the others are computed.
    np.testing.assert_allclose(
        np.asarray(extractor.transform(pixels[order])), plain[order], atol=1e-5
    )


@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_batches_and_threads_do_not_change_tokens(batch_size, n_workers, pixels):
    backbone = token_backbone()
    with skpool.config_context(cache_bytes=0):
        extractor = FeatureExtractor(backbone, batch_size=batch_size, n_workers=n_workers)
        got = np.asarray(extractor.transform(pixels))
    np.testing.assert_allclose(got, _tokens_by_hand(backbone, pixels), atol=1e-5)


def test_transform_computes_nothing_until_tokens_are_used(pixels, tmp_path):
    count = tmp_path / "count"
    tokens = FeatureExtractor(counting_backbone(count)).fit_transform(pixels)
    assert tokens.shape == (23, 17, 6)
    assert not count.exists() or count.stat().st_size == 0
    np.asarray(tokens[:5])
    assert count.stat().st_size == 5


def test_equal_images_in_one_list_are_computed_once(pixels, tmp_path):
    count = tmp_path / "count"
    repeated = np.concatenate([pixels[:3], pixels[:3], pixels[2:3]])
    backbone = counting_backbone(count)
    tokens = np.asarray(FeatureExtractor(backbone).fit_transform(repeated))
    assert count.stat().st_size == 3
    np.testing.assert_allclose(tokens, _tokens_by_hand(backbone, repeated), atol=1e-5)


def test_patch_and_cls_are_parts_of_all(pixels):
    backbone = token_backbone()
    whole = np.asarray(FeatureExtractor(backbone).transform(pixels))
    patches = FeatureExtractor(backbone, tokens="patch").transform(pixels)
    cls = FeatureExtractor(backbone, tokens="cls").transform(pixels)
    assert patches.n_prefix_tokens == 0
    assert patches.grid == (4, 4)
    np.testing.assert_array_equal(np.asarray(patches), whole[:, 1:])
    np.testing.assert_array_equal(cls, whole[:, 0])


def test_cls_keeps_no_other_token(pixels):
    FeatureExtractor(token_backbone(), tokens="cls").transform(pixels)
    assert default_cache().nbytes < pixels.shape[0] * 6 * 4 * 2


def test_layers_and_image_size_reach_the_network(pixels):
    backbone = token_backbone()
    images = [Image.fromarray(p) for p in pixels]
    first = np.asarray(FeatureExtractor(backbone, layers=1).transform(pixels))
    np.testing.assert_allclose(
        first, backbone.forward(backbone.prepare(images), [1])[0][0], atol=1e-5
    )
    large = FeatureExtractor(backbone, image_size=24).transform(pixels)
    assert large.grid == (6, 6)
    expected = backbone.forward(backbone.prepare(images, size=24))[0][0]
    np.testing.assert_allclose(np.asarray(large), expected, atol=1e-5)


def test_float16_tokens_are_the_rounded_float32_ones(pixels):
    backbone = token_backbone()
    full = np.asarray(FeatureExtractor(backbone).transform(pixels))
    half = FeatureExtractor(backbone, dtype="float16").transform(pixels)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(np.asarray(half), full.astype(np.float16))
    # Poolings widen, so that sums neither overflow nor round.
    assert TokenPooling("mean").fit_transform(half).dtype == np.float32


def test_torch_output_gives_tensors_to_the_next_step(pixels):
    extractor = FeatureExtractor(token_backbone(), output="torch")
    vectors = TokenPooling("mean").fit_transform(extractor.transform(pixels))
    assert isinstance(vectors, torch.Tensor)
    plain = TokenPooling("mean").fit_transform(FeatureExtractor(token_backbone()).transform(pixels))
    np.testing.assert_array_equal(vectors.numpy(), plain)


def test_set_params_of_the_backbone_takes_effect(pixels):
    extractor = FeatureExtractor(token_backbone(0)).fit(pixels)
    before = np.asarray(extractor.transform(pixels))
    after = np.asarray(extractor.set_params(backbone=token_backbone(1)).transform(pixels))
    assert np.abs(before - after).max() > 0.1


def test_clone_shares_the_backbone_and_pickles_are_small(pixels, tmp_path):
    extractor = FeatureExtractor("glyph", store=tmp_path / "store").fit(pixels)
    assert len(pickle.dumps(extractor)) < 2000
    backbone = Backbone("glyph")
    assert clone(FeatureExtractor(backbone)).backbone is backbone
    restored = pickle.loads(pickle.dumps(extractor)).transform(pixels)
    np.testing.assert_array_equal(np.asarray(restored), np.asarray(extractor.transform(pixels)))


def test_lazy_tokens_pickle_and_keep_working(pixels):
    tokens = FeatureExtractor("glyph").transform(pixels)[3:9]
    np.testing.assert_array_equal(
        np.asarray(pickle.loads(pickle.dumps(tokens))), np.asarray(tokens)
    )


def test_set_output_of_a_pipeline_reaches_the_pooling(pixels):
    pytest.importorskip("pandas")
    pipeline = Pipeline([("features", FeatureExtractor("glyph")), ("pool", GeMPooling())])
    frame = pipeline.set_output(transform="pandas").fit_transform(pixels)
    assert list(frame.columns[:2]) == ["gempooling0", "gempooling1"]
    assert list(pipeline.get_feature_names_out()) == list(frame.columns)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": 9}, "layers=9 does not exist"),
        ({"image_size": 18}, "image_size=18 is not a multiple"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used"),
        ({"batch_size": 0}, "batch_size"),
        ({"tokens": "CLS"}, "tokens"),
        ({"on_error": "skip"}, "on_error"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_bad_parameters_are_refused_by_fit_and_transform(options, match, pixels):
    extractor = FeatureExtractor(token_backbone()).set_params(**options)
    with pytest.raises(ValueError, match=match):
        extractor.fit(pixels)
    with pytest.raises(ValueError, match=match):
        extractor.transform(pixels)


def test_cls_of_a_network_without_class_token_is_refused(pixels):
    backbone = Backbone.from_module(torch.nn.Conv2d(3, 5, 4, 4), recipe=RECIPE)
    with pytest.raises(ValueError, match=r"tokens='cls' needs a class token"):
        FeatureExtractor(backbone, tokens="cls").fit(pixels)


@pytest.mark.parametrize("bad", [[], np.zeros((4, 4)), np.zeros((2, 4, 4, 3)), "one.png"])
def test_bad_kinds_of_x_are_refused_at_once(bad):
    extractor = FeatureExtractor(token_backbone())
    with pytest.raises((ValueError, TypeError)):
        extractor.fit(bad)
    with pytest.raises((ValueError, TypeError)):
        extractor.transform(bad)


def test_tokens_used_inside_an_iteration_over_them_do_not_wait_for_it(pixels):
    # The outer iteration has announced all rows and waits for its consumer.
    backbone = token_backbone()
    tokens = FeatureExtractor(backbone, batch_size=2).transform(pixels)
    next(tokens.iter_batches())
    batches = tokens.iter_batches()
    next(batches)
    inner = np.asarray(tokens[-3:])
    np.testing.assert_allclose(inner, _tokens_by_hand(backbone, pixels[-3:]), atol=1e-5)
    assert sum(len(batch.positions) for batch in batches) == len(pixels) - 2


# One pass over the inputs.

POOLINGS = [
    TokenPooling("mean"),
    TokenPooling("max"),
    TokenPooling("cls"),
    TokenPooling(("cls", "mean")),
    GeMPooling(),
    GeMPooling(negative="shift"),
]


def _search(backbone, store, n_jobs):
    pipeline = Pipeline(
        [
            ("features", FeatureExtractor(backbone, store=store)),
            ("pool", TokenPooling()),
            ("clf", LogisticRegression()),
        ]
    )
    folds = KFold(5, shuffle=True, random_state=0)
    return GridSearchCV(pipeline, {"pool": POOLINGS}, cv=folds, n_jobs=n_jobs, error_score="raise")


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search_runs_the_network_once_per_image(n_jobs, paths, tmp_path):
    count = tmp_path / "count"
    backbone = counting_backbone(count)
    store = tmp_path / "store" if n_jobs == 2 else None
    y = np.arange(len(paths)) % 2
    _search(backbone, store, n_jobs).fit(paths, y)
    assert count.stat().st_size == len(paths)
    order = np.random.default_rng(3).permutation(len(paths))
    _search(backbone, store, n_jobs).fit([paths[i] for i in order], y[order])
    assert count.stat().st_size == len(paths)


def test_a_later_session_reads_the_store(paths, tmp_path):
    count = tmp_path / "count"
    extractor = FeatureExtractor(counting_backbone(count), store=tmp_path / "store")
    first = TokenPooling("mean").fit_transform(extractor.transform(paths))
    seen = count.stat().st_size
    with FeatureStore(tmp_path / "store") as store:
        again = extractor.set_params(store=store).transform(paths[::-1])
        second = TokenPooling("mean").fit_transform(again)
        maximum = TokenPooling("max").fit_transform(again)
    assert count.stat().st_size == seen
    np.testing.assert_array_equal(second, first[::-1])
    np.testing.assert_allclose(maximum, np.asarray(again)[:, 1:].max(1))


def test_another_setting_is_a_miss(paths, tmp_path):
    count = tmp_path / "count"
    backbone = counting_backbone(count)
    for n, options in enumerate([{}, {"image_size": 24}, {"dtype": "float16"}], start=1):
        extractor = FeatureExtractor(backbone, store=tmp_path / "store", **options)
        TokenPooling().fit_transform(extractor.transform(paths))
        assert count.stat().st_size == n * len(paths)


def test_pooled_results_alone_save_the_pass(pixels, tmp_path):
    # No room for tokens, but for vectors: each pooling costs one pass, and then none.
    count = tmp_path / "count"
    extractor = FeatureExtractor(counting_backbone(count))
    with skpool.config_context(cache_bytes=len(pixels) * 6 * 4 * 2):
        for _ in range(3):
            TokenPooling("mean").fit_transform(extractor.transform(pixels))
    assert count.stat().st_size == len(pixels)


def test_result_is_a_token_array(pixels):
    tokens = FeatureExtractor("glyph").fit_transform(pixels)
    assert isinstance(tokens, TokenArray)
    assert tokens.cls_index == 0
    np.testing.assert_array_equal(tokens.cls, np.asarray(tokens)[:, 0])
    assert tokens.to_map().shape == (23, 8, 8, 128)


class _SmallMemory(TokenNet):
    """Runs out of memory for more than three images."""

    def forward(self, images):
        if len(images) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(images)


class _NoMemory(TokenNet):
    def forward(self, images):
        if bool((images != images.flatten()[0]).any()):
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(images)


def test_batch_that_does_not_fit_is_halved(pixels):
    backbone = Backbone.from_module(_SmallMemory(), recipe=RECIPE, patch_size=4)
    tokens = np.asarray(FeatureExtractor(backbone, batch_size=16).transform(pixels))
    np.testing.assert_allclose(tokens, _tokens_by_hand(token_backbone(), pixels), atol=1e-5)


def test_one_image_that_does_not_fit_is_an_error(pixels):
    backbone = Backbone.from_module(_NoMemory(), recipe=RECIPE, patch_size=4)
    with pytest.raises(torch.OutOfMemoryError):
        np.asarray(FeatureExtractor(backbone).transform(pixels))
