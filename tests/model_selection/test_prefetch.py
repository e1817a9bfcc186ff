# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import pytest
from nets import counting_backbone
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, RandomizedSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline

import skpool
from skpool.exceptions import UnreadableInputError
from skpool.extraction import FeatureExtractor
from skpool.model_selection import prefetch
from skpool.pooling import GeMPooling, TokenPooling
from skpool.stores import FeatureStore, default_cache

POOLINGS = [
    TokenPooling(),
    TokenPooling("max"),
    TokenPooling("cls"),
    TokenPooling(("cls", "mean"), scope="all"),
    GeMPooling(p=2),
]


@pytest.fixture(autouse=True)
def clean_cache():
    default_cache().clear()
    yield
    default_cache().clear()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def y():
    return np.arange(40) % 2


@pytest.fixture
def count(tmp_path):
    return tmp_path / "count"


def _search(backbone, grid, **options):
    pipeline = Pipeline(
        [
            ("features", FeatureExtractor(backbone, **options)),
            ("pool", TokenPooling()),
            ("classify", LogisticRegression()),
        ]
    )
    return GridSearchCV(pipeline, grid, cv=KFold(3, shuffle=True, random_state=0))


def test_one_pass_serves_layers_times_poolings_without_keeping_tokens(pixels, y, count, tmp_path):
    grid = {"features__layers": [0, 1, -1], "pool": POOLINGS}
    store = FeatureStore(tmp_path / "store")
    search = _search(counting_backbone(count), grid, store=store, keep_tokens=False)
    done = prefetch(search, pixels)
    assert (done.n_vectors, done.n_passes, done.left_out) == (15, 1, ())
    assert count.stat().st_size == len(pixels)
    search.fit(pixels, y)
    assert count.stat().st_size == len(pixels)
    # Vectors alone: 15 spaces of one row per image.
    assert sorted(store.info()["n_rows"].values()) == [len(pixels)] * 15
    assert prefetch(search, pixels).n_passes == 0


def test_prefetched_vectors_are_those_of_a_plain_search(pixels, y, count, tmp_path):
    grid = {"features__layers": [0, -1], "pool": POOLINGS}
    backbone = counting_backbone(count)
    plain = _search(backbone, grid).fit(pixels, y)
    default_cache().clear()
    search = _search(backbone, grid, store=tmp_path / "store")
    prefetch(search, pixels)
    search.fit(pixels, y)
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )
    for layer in (0, -1):
        tokens = FeatureExtractor(backbone, layers=layer).fit_transform(pixels)
        ready = FeatureExtractor(backbone, layers=layer, store=tmp_path / "store").fit_transform(
            pixels
        )
        for pooling in POOLINGS:
            np.testing.assert_allclose(
                pooling.fit_transform(ready), pooling.fit_transform(tokens), atol=1e-6
            )


def test_class_tokens_of_an_extractor_are_prefetched(pixels, count):
    pipeline = make_pipeline(
        FeatureExtractor(counting_backbone(count), tokens="cls"), LogisticRegression()
    )
    search = GridSearchCV(pipeline, {"featureextractor__layers": [0, 1, 2]})
    assert prefetch(search, pixels).n_vectors == 3
    assert count.stat().st_size == len(pixels)
    for layer in range(3):
        FeatureExtractor(counting_backbone(count), tokens="cls", layers=layer).transform(pixels)
    assert count.stat().st_size == len(pixels)


def test_unions_and_single_pipelines_are_looked_through(pixels, count):
    backbone = counting_backbone(count)
    union = FeatureUnion(
        [
            ("low", make_pipeline(FeatureExtractor(backbone, layers=0), GeMPooling())),
            ("high", make_pipeline(FeatureExtractor(backbone), TokenPooling())),
        ]
    )
    assert prefetch(make_pipeline(union, LogisticRegression()), pixels).n_vectors == 2
    assert count.stat().st_size == len(pixels)
    union.fit_transform(pixels)
    assert count.stat().st_size == len(pixels)


def test_what_cannot_be_named_is_left_out_and_said(pixels, count):
    def spread(tokens, mask):
        return tokens.std(1)

    grid = {"pool": [TokenPooling(), TokenPooling(spread)]}
    done = prefetch(_search(counting_backbone(count), grid), pixels)
    assert done.n_vectors == 1
    assert len(done.left_out) == 1 and "spread" in done.left_out[0]


def test_broken_files_are_named_after_the_others_are_done(pixels, count, tmp_path):
    names = [str(tmp_path / f"{i}.png") for i in range(5)]
    for name, array in zip(names, pixels, strict=False):
        Image.fromarray(array).save(name)
    (tmp_path / "3.png").write_bytes(b"")
    search = _search(counting_backbone(count), {"pool": POOLINGS}, store=tmp_path / "store")
    with pytest.raises(UnreadableInputError, match=r"3\.png"):
        prefetch(search, names)
    assert count.stat().st_size == 4


def test_random_candidates_need_a_seed(pixels, count):
    pipeline = make_pipeline(FeatureExtractor(counting_backbone(count)), TokenPooling())
    search = RandomizedSearchCV(pipeline, {"tokenpooling__strategy": ["mean", "max"]}, n_iter=2)
    with pytest.raises(ValueError, match="random_state=None"):
        prefetch(search, pixels)
    search.set_params(random_state=0)
    with skpool.config_context(cache_bytes=2**20):
        assert prefetch(search, pixels).n_vectors == 2
