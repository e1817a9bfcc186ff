# SPDX-License-Identifier: BSD-3-Clause
"""Views of images through an extractor, against the extractor on images cut by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import counting_backbone, token_backbone
from PIL import Image, ImageOps
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import skpool
from skpool.exceptions import UnreadableInputError
from skpool.extraction import FeatureExtractor, TestTimeAugmentation
from skpool.inputs import ImageSequence, image_views
from skpool.pooling import GeMPooling, TokenPooling, ViewAggregator, ViewAveragingClassifier
from skpool.prototypes import NearestClassMeanClassifier
from skpool.stores import default_cache


@pytest.fixture(autouse=True)
def clean_cache():
    default_cache().clear()
    yield
    default_cache().clear()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 24, 20, 3), dtype=np.uint8)


@pytest.fixture
def files(tmp_path, images):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(len(images))]


def cls_extractor(backbone=None, **options):
    options = {"tokens": "cls", "n_workers": 0} | options
    return FeatureExtractor(backbone or token_backbone(), **options)


@pytest.mark.parametrize("views", ["flip", "ten_crop", "sixteen_view", "multi_scale"])
def test_views_equal_the_extractor_on_images_cut_by_hand(views, images):
    XV = TestTimeAugmentation(cls_extractor(), views=views).fit_transform(images)
    pictures = [Image.fromarray(image) for image in images]
    for v, view in enumerate(image_views(views)):
        expected = cls_extractor().fit_transform([view.apply(picture) for picture in pictures])
        np.testing.assert_allclose(XV[:, v], expected, atol=1e-5)


def test_identical_views_are_the_plain_extractor_exactly(images):
    plain = cls_extractor().fit_transform(images)
    views = [lambda image: image] * 3
    XV = TestTimeAugmentation(cls_extractor(), views=views).fit_transform(images)
    for v in range(3):
        np.testing.assert_array_equal(XV[:, v], plain)
    mean = ViewAggregator().fit_transform(XV)
    np.testing.assert_allclose(mean, plain, rtol=1e-6)


def test_flip_of_symmetric_images_gives_equal_views(images):
    symmetric = np.concatenate([images, images[:, :, ::-1]], axis=2)
    with skpool.config_context(cache_bytes=0):
        XV = TestTimeAugmentation(cls_extractor()).fit_transform(symmetric)
    np.testing.assert_allclose(XV[:, 0], XV[:, 1], rtol=1e-6, atol=1e-6)
    sixteen = TestTimeAugmentation(cls_extractor(), views="sixteen_view").fit_transform(symmetric)
    np.testing.assert_allclose(sixteen[:, 5], sixteen[:, 13], rtol=1e-6, atol=1e-6)


def test_pipeline_with_a_pooling_is_an_extractor(images):
    pipeline = make_pipeline(FeatureExtractor(token_backbone(), n_workers=0), GeMPooling())
    XV = TestTimeAugmentation(pipeline).fit_transform(images)
    np.testing.assert_allclose(XV[:, 0], pipeline.fit_transform(images), rtol=1e-6)
    np.testing.assert_allclose(XV[:, 1], pipeline.transform(images[:, :, ::-1].copy()), rtol=1e-5)


def test_pooling_that_learns_is_fitted_on_the_views(images):
    pipeline = make_pipeline(
        FeatureExtractor(token_backbone(), n_workers=0), GeMPooling(negative="shift")
    )
    model = TestTimeAugmentation(pipeline)
    with pytest.raises(NotFittedError):
        model.transform(images)
    model.fit(images)
    both = np.concatenate([images, images[:, :, ::-1]])
    expected = clone(pipeline).fit(both)[-1].channel_min_
    np.testing.assert_allclose(model.extractor_[-1].channel_min_, expected, rtol=1e-5)
    assert not hasattr(pipeline[-1], "channel_min_")


def test_tokens_without_pooling_are_refused(images):
    model = TestTimeAugmentation(FeatureExtractor(token_backbone(), n_workers=0))
    with pytest.raises(ValueError, match="tokens='cls'"):
        model.fit(images).transform(images)


def test_extractor_of_tensors_gives_tensors(images):
    XV = TestTimeAugmentation(cls_extractor(output="torch")).fit_transform(images)
    assert isinstance(XV, torch.Tensor) and XV.shape == (6, 2, 6)


def test_layer_of_the_extractor_is_a_parameter_of_the_whole(images):
    model = TestTimeAugmentation(cls_extractor())
    first = model.fit_transform(images)
    second = model.set_params(extractor__layers=1).fit_transform(images)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(
    "params, match",
    [({"views": "nine"}, "views"), ({"angle": 90.0}, "angle"), ({"crop_area": 0}, "crop_area")],
)
def test_bad_parameters_are_refused_by_name(params, match, images):
    with pytest.raises(ValueError, match=match):
        TestTimeAugmentation(cls_extractor(), **params).fit(images)


# One pass, and what a store remembers of it.


def seen(path: Path) -> int:
    return len(path.read_bytes()) if path.exists() else 0


def test_each_view_is_computed_once_and_shared_between_sets(files, tmp_path):
    count = tmp_path / "count"
    extractor = cls_extractor(counting_backbone(count), store=tmp_path / "store")
    extractor.fit_transform(files)
    assert seen(count) == 6
    # The image itself is known already, its mirror image is not.
    TestTimeAugmentation(extractor, views="flip").fit_transform(files)
    assert seen(count) == 12
    TestTimeAugmentation(extractor, views="five_crop").fit_transform(files)
    assert seen(count) == 42
    TestTimeAugmentation(extractor, views="ten_crop").fit_transform(ImageSequence(files)[::-1])
    assert seen(count) == 72
    TestTimeAugmentation(extractor, views="sixteen_view").fit_transform(files)
    assert seen(count) == 72 + 6 * 4
    TestTimeAugmentation(extractor, views="five_crop", crop_area=0.5).fit_transform(files)
    assert seen(count) == 96 + 30


def test_views_fill_batches_across_images(images, tmp_path):
    sizes = []
    model = TestTimeAugmentation(cls_extractor(batch_size=8), views="ten_crop")
    backbone = model.extractor.backbone
    handle = backbone.network().module.register_forward_pre_hook(
        lambda module, args: sizes.append(len(args[0]))
    )
    try:
        with skpool.config_context(cache_bytes=0):
            model.fit_transform(images)
    finally:
        handle.remove()
    assert [size for size in sizes if size > 1] == [8] * 7 + [4]


level = 10


def brightened(image):
    return image.point(lambda value: min(255, value + level))


def test_store_is_not_fooled_by_a_callable_whose_globals_changed(files, tmp_path, monkeypatch):
    model = TestTimeAugmentation(cls_extractor(store=tmp_path / "store"), views=[brightened])
    model.fit_transform(files)
    monkeypatch.setitem(globals(), "level", 90)
    expected = cls_extractor().fit_transform(
        [brightened(Image.open(path).convert("RGB")) for path in files]
    )
    np.testing.assert_allclose(model.transform(files)[:, 0], expected, rtol=1e-5, atol=1e-6)


# Inputs that cannot be read.


@pytest.mark.parametrize("views", ["five_crop", [ImageOps.mirror, ImageOps.flip]])
def test_one_error_names_the_images_and_not_their_views(views, files):
    Path(files[1]).write_bytes(b"no image")
    Path(files[4]).unlink()
    model = TestTimeAugmentation(cls_extractor(), views=views).fit(files)
    with pytest.raises(UnreadableInputError) as caught:
        model.transform(files)
    assert [(row, name) for row, name, _ in caught.value.failures] == [(1, files[1]), (4, files[4])]
    assert "2 inputs could not be read" in str(caught.value)


def test_views_of_an_unreadable_image_are_nan_and_listed_by_image(files):
    expected = TestTimeAugmentation(cls_extractor(), views="five_crop").fit_transform(files)
    Path(files[2]).write_bytes(b"no image")
    for extractor in (
        cls_extractor(on_error="nan"),
        make_pipeline(
            FeatureExtractor(token_backbone(), on_error="nan"), TokenPooling("cls", scope="all")
        ),
    ):
        model = TestTimeAugmentation(extractor, views="five_crop")
        XV = model.fit_transform(files)
        assert np.isnan(XV[2]).all()
        rest = [0, 1, 3, 4, 5]
        np.testing.assert_allclose(XV[rest], expected[rest], rtol=1e-5, atol=1e-6)
        assert [(row, name) for row, name, _ in model.failed_] == [(2, files[2])]


def test_failed_is_unknown_before_transform():
    with pytest.raises(AttributeError, match="failed_"):
        _ = TestTimeAugmentation(cls_extractor()).failed_


# In scikit-learn.


def test_search_over_views_splits_images(files):
    y = np.array([0, 1, 0, 1, 0, 1])
    model = make_pipeline(
        TestTimeAugmentation(cls_extractor()),
        ViewAggregator(),
        NearestClassMeanClassifier("euclidean"),
    )
    grid = {
        "testtimeaugmentation__views": ["flip", "five_crop"],
        "viewaggregator__method": ["mean", "concat", "gem"],
    }
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(files, y)
    assert len(search.cv_results_["params"]) == 6
    assert search.predict(files).shape == (6,)


def test_classifier_on_views_follows_in_a_pipeline(files):
    y = np.array([0, 1, 0, 1, 0, 1])
    model = make_pipeline(
        TestTimeAugmentation(cls_extractor(), views="five_crop"),
        ViewAveragingClassifier(NearestClassMeanClassifier("euclidean")),
    )
    assert model.fit(files, y).predict(files).shape == (6,)
