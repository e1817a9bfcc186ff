# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import pytest
import torch
from PIL import Image

from skpool.backbones import ImageRecipe


def _gradient(width, height):
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, (x + y) / 2], -1).round().astype(np.uint8))


@pytest.mark.parametrize("size", [(80, 60), (60, 80), (64, 64), (3, 200), (1, 1)])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_prepare_gives_the_square_asked_for(size, fit):
    recipe = ImageRecipe(input_size=24, fit=fit)
    for wanted in (None, 40):
        pixels = recipe.prepare(_gradient(*size), wanted)
        assert pixels.shape == (wanted or 24, wanted or 24, 3)
        assert pixels.dtype == np.uint8


def test_crop_takes_the_middle_without_resizing_when_sizes_fit():
    image = _gradient(40, 32)
    recipe = ImageRecipe(input_size=28, crop_pct=28 / 32)
    np.testing.assert_array_equal(recipe.prepare(image), np.asarray(image)[2:30, 6:34])


@pytest.mark.parametrize(("rounding", "left"), [("down", 3), ("even", 4)])
def test_half_a_pixel_in_the_middle_is_rounded_as_asked(rounding, left):
    # 7 pixels too many: 3.5 on the left, of which torchvision makes round(3.5) = 4.
    image = _gradient(35, 28)
    recipe = ImageRecipe(input_size=28, crop_pct=1.0, crop_rounding=rounding)
    np.testing.assert_array_equal(recipe.prepare(image), np.asarray(image)[:, left : left + 28])


def test_squash_with_a_crop_equals_pillows_resize_and_crop():
    image = _gradient(50, 30)
    recipe = ImageRecipe(input_size=20, fit="squash", crop_pct=20 / 24)
    expected = image.resize((24, 24), Image.Resampling.BICUBIC).crop((2, 2, 22, 22))
    difference = recipe.prepare(image).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1


def test_crop_share_left_out_is_the_usual_one_of_the_fit():
    assert ImageRecipe() == ImageRecipe(crop_pct=0.875)
    assert ImageRecipe(fit="squash") == ImageRecipe(fit="squash", crop_pct=1.0)


def test_squash_equals_pillows_resize():
    image = _gradient(50, 30)
    recipe = ImageRecipe(input_size=20, fit="squash", interpolation="bilinear")
    expected = np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(recipe.prepare(image), expected)


def test_normalize_is_the_published_formula():
    recipe = ImageRecipe()
    pixels = torch.randint(0, 256, (2, 5, 5, 3), dtype=torch.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((pixels.numpy() / 255 - mean) / std).transpose(0, 3, 1, 2)
    got = recipe.normalize(pixels)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"interpolation": "cubic"},
        {"fit": "pad"},
        {"crop_rounding": "up"},
        {"input_size": 0},
        {"crop_pct": 1.5},
        {"std": (0.0, 1.0, 1.0)},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError):
        ImageRecipe(**options)
