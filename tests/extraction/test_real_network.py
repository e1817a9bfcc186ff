# SPDX-License-Identifier: BSD-3-Clause
"""DeiT-tiny on real photographs against features that were made without this package."""

import io

import numpy as np
import pytest
from PIL import Image

from skpool.backbones import Backbone, ImageRecipe
from skpool.extraction import FeatureExtractor

pytestmark = pytest.mark.data


def _photographs(data_dir, n):
    archive = np.load(data_dir / "clothing" / "clothing10_224.npz")
    starts, content = archive["offsets"], archive["jpeg"]
    images = [
        Image.open(io.BytesIO(content[starts[i] : starts[i + 1]].tobytes())) for i in range(n)
    ]
    return images, archive["name"][:n]


def _check(deit_directory, data_dir, n):
    images, names = _photographs(data_dir, n)
    # The pictures are the crops already: nothing is left to cut off.
    backbone = Backbone(f"hf:{deit_directory}", recipe=ImageRecipe(crop_pct=1.0))
    tokens = FeatureExtractor(backbone).fit_transform(images)
    stored = [
        np.load(data_dir / "features" / f"clothing_deit_tiny_tokens_{part}.npz")
        for part in range(2)
    ]
    step, mean = stored[0]["step"], stored[0]["mean"]
    q = np.concatenate([part["q"] for part in stored])[:n]
    np.testing.assert_array_equal(np.concatenate([s["index"] for s in stored])[:n], np.arange(n))
    cls = []
    for positions, values, _ in tokens.iter_batches():
        values = values.numpy()
        expected = q[positions] * step + mean
        # Stored as whole steps of 8 bits, after float16: half a step away at most, and the
        # rounding of float16, where the scale did not end.
        inside = np.abs(q[positions].astype(int)) < 127
        allowed = step / 2 + 2e-3 * np.abs(values) + 1e-3
        assert (np.abs(values - expected) / allowed)[inside].max() < 1
        cls.append((positions, values[:, 0]))
    order = np.argsort(np.concatenate([positions for positions, _ in cls]))
    return np.concatenate([values for _, values in cls])[order], names


def test_tokens_of_real_photographs_are_the_stored_ones(deit_directory, data_dir):
    _check(deit_directory, data_dir, 96)


@pytest.mark.slow
def test_all_2000_photographs_give_the_stored_features(deit_directory, data_dir):
    cls, names = _check(deit_directory, data_dir, 2000)
    # The class tokens in the other file come from the original pictures, before they were cut
    # and compressed again: the same picture is still the nearest of all 3781.
    bank = np.load(data_dir / "features" / "clothing_deit_tiny.npz")
    rows = bank["cls"].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = (cls / np.linalg.norm(cls, axis=1, keepdims=True)) @ rows.T
    row_of = {name: i for i, name in enumerate(bank["name"])}
    own = np.array([row_of[name] for name in names])
    assert (found.argmax(axis=1) == own).mean() > 0.97
    assert np.median(found[np.arange(len(own)), own]) > 0.98
