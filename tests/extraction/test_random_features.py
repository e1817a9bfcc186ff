# SPDX-License-Identifier: BSD-3-Clause
"""The extractor of random networks, against a FeatureExtractor on the same network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

import skpool
from skpool.backbones import Backbone, random_network, random_recipe
from skpool.exceptions import UnreadableInputError
from skpool.extraction import FeatureExtractor, RandomFeatureExtractor
from skpool.pooling import TokenPooling
from skpool.preprocessing import L2Normalizer

ARCHS = ("conv", "vit", "mlp")


def extractor(arch="conv", **options):
    return RandomFeatureExtractor(arch, **{"width": 16, "n_workers": 0} | options)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)


def textures(n=60, side=32):
    """Horizontal and vertical stripes of equal frequency, phase and noise; mean colours agree."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    waves = np.sin(2 * np.pi * (np.arange(side) / 6 + rng.random((n, 1))))
    stripes = [np.tile(wave, (side, 1)) for wave in waves]
    grey = np.stack([s.T if label else s for s, label in zip(stripes, y, strict=True)])
    noisy = 128 + 60 * grey[..., None] + 30 * rng.normal(size=(n, side, side, 3))
    return noisy.clip(0, 255).astype(np.uint8), y


def uncalibrated(arch, **options):
    network = random_network(arch, width=16, **options)
    return Backbone.from_module(
        network,
        recipe=random_recipe(32),
        layer_paths=network.layer_paths,
        patch_size=network.patch_size,
        n_prefix_tokens=network.n_prefix_tokens,
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_without_calibration_it_is_the_named_network(arch, images):
    tokens = extractor(arch, calibrate=False).transform(images)
    reference = FeatureExtractor(uncalibrated(arch), n_workers=0).transform(images)
    assert tokens.shape == reference.shape and tokens.n_prefix_tokens == reference.n_prefix_tokens
    np.testing.assert_array_equal(np.asarray(tokens), np.asarray(reference))


@pytest.mark.parametrize("arch", ARCHS)
def test_same_seed_gives_the_same_bytes_and_another_does_not(arch, images):
    with skpool.config_context(cache_bytes=0):
        first = np.asarray(extractor(arch).fit_transform(images))
        again = np.asarray(extractor(arch).fit_transform(images))
        other = np.asarray(extractor(arch, random_state=1).fit_transform(images))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_global_generators_are_unchanged(images):
    before, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    np.asarray(extractor().fit_transform(images))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], of_numpy)


@pytest.mark.parametrize("arch", ARCHS)
def test_image_alone_gives_what_it_gives_among_others(arch, images):
    model = extractor(arch).fit(images)
    with skpool.config_context(cache_bytes=0):
        together = np.asarray(model.transform(images))
        alone = np.concatenate([np.asarray(model.transform(images[[i]])) for i in range(9)])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)


def test_calibration_is_learned_in_fit_alone(images):
    model = extractor().fit(images)
    learned = [values.copy() for values in model.calibration_]
    model.transform(images[:2])
    for before, after in zip(learned, model.calibration_, strict=True):
        np.testing.assert_array_equal(before, after)
    other = clone(model).fit(255 - images // 2)
    assert np.abs(other.calibration_[0] - learned[0]).max() > 1e-3


def test_calibrated_extractor_must_be_fitted(images):
    with pytest.raises(NotFittedError):
        extractor().transform(images)
    assert extractor(calibrate=False).transform(images).shape == (9, 16, 16)


def test_calibration_sees_a_drawn_part_of_many_images(images, monkeypatch):
    monkeypatch.setattr("skpool.extraction._random_features._CALIBRATED_ON", 8)
    drawn = extractor(depth=1, random_state=3).fit(images).calibration_[0]
    # Eight of nine: one is left out.
    parts = [np.delete(images, i, axis=0) for i in range(9)]
    every = [extractor(depth=1, random_state=3).fit(part).calibration_[0] for part in parts]
    assert sum(np.allclose(drawn, one, rtol=1e-5) for one in every) == 1


def test_backbone_goes_through_any_extractor(images):
    model = extractor().fit(images)
    other = FeatureExtractor(model.backbone_, layers=1, n_workers=0)
    expected = np.asarray(extractor(layers=1).fit(images).transform(images))
    np.testing.assert_array_equal(np.asarray(other.transform(images)), expected)


def test_unreadable_images_are_left_out_of_calibration_or_named(images, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(9)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    Path(paths[4]).write_bytes(b"no image")
    with pytest.raises(UnreadableInputError, match=r"4\.png"):
        extractor().fit(paths)
    model = extractor(on_error="nan").fit(paths)
    good = extractor().fit(np.delete(images, 4, axis=0))
    np.testing.assert_allclose(model.calibration_[0], good.calibration_[0], rtol=1e-5, atol=1e-6)
    assert np.isnan(np.asarray(model.transform(paths))[4]).all()
    assert [row for row, *_ in model.failed_] == [4]
    with pytest.raises(UnreadableInputError):
        extractor(on_error="nan").fit(paths[4:5])


def test_refused_refit_keeps_the_calibration(images):
    model = extractor().fit(images)
    before = model.calibration_
    with pytest.raises(ValueError, match="halves"):
        model.set_params(depth=9).fit(images)
    assert model.calibration_ is before


def test_store_serves_another_fit_on_the_same_images(images, tmp_path):
    first = extractor(store=tmp_path / "store").fit(images)
    expected = np.asarray(first.transform(images))
    again = extractor(store=tmp_path / "store").fit(images)
    assert first.backbone_.fingerprint == again.backbone_.fingerprint
    np.testing.assert_array_equal(np.asarray(again.transform(images)), expected)


@pytest.mark.parametrize(
    "arch, width, least", [("conv", 16, 0.9), ("vit", 16, 0.9), ("mlp", 128, 0.6)]
)
def test_linear_probe_tells_textures_apart(arch, width, least):
    X, y = textures(60, 16)
    network = extractor(arch, width=width, depth=1, patch_size=4, input_size=16)
    model = make_pipeline(network, TokenPooling(), L2Normalizer(), LogisticRegression(C=100))
    assert cross_val_score(model, X, y, cv=3, error_score="raise").mean() > least


def test_search_over_networks_compares_networks():
    X, y = textures(30, 16)
    model = make_pipeline(extractor(input_size=16), TokenPooling(), LogisticRegression())
    grid = {
        "randomfeatureextractor__arch": ["conv", "mlp"],
        "randomfeatureextractor__depth": [1, 3],
    }
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(X, y)
    assert len(set(search.cv_results_["mean_test_score"])) > 1
