# SPDX-License-Identifier: BSD-3-Clause
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from skpool.backbones import Backbone, ImageRecipe, check_frozen
from skpool.exceptions import BackboneError, MissingDependencyError

transformers = pytest.importorskip("transformers")

TRANSFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 7,
}
STAGES = {"hidden_sizes": [4, 6, 8, 10], "depths": [1, 1, 1, 1]}


def _make(kind: str):
    """A small model with random weights, written by the real library."""
    configs = {
        "vit": (transformers.ViTConfig, transformers.ViTModel, TRANSFORMER),
        "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model, TRANSFORMER),
        "registers": (
            transformers.Dinov2WithRegistersConfig,
            transformers.Dinov2WithRegistersModel,
            TRANSFORMER,
        ),
        "clip": (transformers.CLIPVisionConfig, transformers.CLIPVisionModel, TRANSFORMER),
        "siglip": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel, TRANSFORMER),
        "convnext": (transformers.ConvNextConfig, transformers.ConvNextModel, STAGES),
        "resnet": (
            transformers.ResNetConfig,
            transformers.ResNetModel,
            {**STAGES, "embedding_size": 4},
        ),
    }
    config, model, options = configs[kind]
    torch.manual_seed(0)
    return model(config(**options)).eval()


def _save(model, directory, **preprocessor):
    model.save_pretrained(directory)
    defaults = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
        "size": {"height": 28, "width": 28},
        "resample": 2,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps({**defaults, **preprocessor}))
    return f"hf:{directory}"


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.mark.parametrize(
    ("kind", "n_prefix", "grid"),
    [
        ("vit", 1, (4, 4)),
        ("dinov2", 1, (4, 4)),
        ("registers", 5, (4, 4)),
        ("clip", 1, (4, 4)),
        ("siglip", 0, (4, 4)),
    ],
)
def test_transformer_tokens_equal_the_models_own(kind, n_prefix, grid, tmp_path, images):
    model = _make(kind)
    backbone = Backbone(_save(model, tmp_path))
    pixels = torch.stack(
        [torch.from_numpy((np.asarray(im) / 255 - 0.5) / 0.25).permute(2, 0, 1) for im in images]
    ).float()
    with torch.no_grad():
        own = model(pixels, output_hidden_states=True)
    wanted = [0, 1, 2, -1]
    got = backbone.forward(backbone.prepare(images), wanted)[0]
    expected = [own.hidden_states[0], own.hidden_states[1], own.hidden_states[2]]
    for tokens, theirs in zip(got, [*expected, own.last_hidden_state], strict=True):
        torch.testing.assert_close(tokens, theirs, rtol=1e-5, atol=1e-5)
    assert backbone.layers == range(4)
    assert backbone.n_prefix_tokens == n_prefix
    assert backbone.grid(28, 28) == grid
    check_frozen(backbone, images)


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_maps_of_convolutional_models_become_tokens(kind, tmp_path, images):
    model = _make(kind)
    backbone = Backbone(_save(model, tmp_path, size={"height": 64, "width": 64}))
    batch = backbone.prepare(images)
    pixels = (batch.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        own = model(pixels.permute(0, 3, 1, 2)).last_hidden_state
    tokens = backbone.forward(batch)[0][0]
    torch.testing.assert_close(tokens, own.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    assert backbone.n_prefix_tokens == 0
    assert backbone.grid(64, 64) == tuple(own.shape[2:])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"size": {"height": 30, "width": 30}, "resample": 3},
            ImageRecipe(30, (0.5,) * 3, (0.25,) * 3, 1.0, "bicubic", "squash"),
        ),
        (
            {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}},
            ImageRecipe(28, (0.5,) * 3, (0.25,) * 3, 28 / 32, "bilinear", "crop"),
        ),
        (
            {"size": {"shortest_edge": 32}, "crop_size": 28, "do_center_crop": False},
            ImageRecipe(32, (0.5,) * 3, (0.25,) * 3, 1.0, "bilinear", "crop"),
        ),
        ({"size": 35}, ImageRecipe(35, (0.5,) * 3, (0.25,) * 3, 1.0, "bilinear", "crop")),
    ],
)
def test_recipe_is_read_from_the_preprocessor_config(config, expected, tmp_path):
    assert Backbone(_save(_make("vit"), tmp_path, **config)).recipe == expected


def test_other_image_size_interpolates_positions(tmp_path, images):
    backbone = Backbone(_save(_make("vit"), tmp_path))
    assert backbone.layout(size=42).grid == (6, 6)
    assert backbone.layout(size=42).n_tokens == 37


def test_directory_without_preprocessing_asks_for_a_recipe(tmp_path):
    _make("vit").save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"no preprocessor_config.json.*recipe=ImageRecipe"):
        Backbone(f"hf:{tmp_path}").network()
    assert Backbone(f"hf:{tmp_path}", recipe=ImageRecipe(28)).layout().n_tokens == 17


def test_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"holds no config.json"):
        Backbone(f"hf:{tmp_path}").network()


def test_missing_weights_are_refused_and_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    spec = _save(_make("vit"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "layernorm" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="do not fill the model"):
        Backbone(spec).network()


def test_fingerprint_follows_the_weights_not_the_directory(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    model = _make("vit")
    one, two = Backbone(_save(model, first)), Backbone(_save(model, second))
    assert one.fingerprint == two.fingerprint
    with torch.no_grad():
        model.layernorm.weight[0] += 1e-3
    third = Backbone(_save(model, tmp_path / "c"))
    assert third.fingerprint != one.fingerprint


def test_missing_library_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'skpool\[hf\]'"):
        Backbone(f"hf:{tmp_path}").network()


# The real network.


@pytest.mark.data
def test_deit_equals_transformers_own_pass(deit):
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    model = transformers.ViTModel.from_pretrained(
        deit.spec.removeprefix("hf:"), add_pooling_layer=False
    ).eval()
    processor = {"image_mean": deit.recipe.mean, "image_std": deit.recipe.std}
    mean, std = (np.array(processor[k], np.float32) for k in ("image_mean", "image_std"))
    prepared = deit.prepare(photographs)
    for image, pixels in zip(photographs, prepared.numpy(), strict=True):
        scale = 256 / min(image.size)
        size = tuple(int(scale * side) if side != min(image.size) else 256 for side in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = ((side - 224) // 2 for side in image.size)
        in_turn = np.asarray(image.crop((left, top, left + 224, top + 224)), np.int16)
        # Resize and crop at once differ from the two in turn by the rounding of Pillow's boxes.
        assert np.abs(in_turn - pixels).max() <= 1
        assert (in_turn != pixels).mean() < 1e-3
    images = torch.from_numpy(((prepared.numpy() / np.float32(255) - mean) / std)).permute(
        0, 3, 1, 2
    )
    with torch.no_grad():
        expected = model(images.float()).last_hidden_state
    got = deit.forward(deit.prepare(photographs))[0][0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.data
def test_deit_names_the_sample_photographs(deit, data_dir):
    from safetensors.torch import load_file

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    weights = load_file(data_dir / "deit_tiny" / "deit_tiny_patch16_224.timm.fp16.safetensors")
    cls = deit.forward(deit.prepare(photographs))[0][0][:, 0]
    top = (cls @ weights["head.weight"].float().T + weights["head.bias"].float()).argmax(1)
    names = (data_dir / "imagenet_names" / "synset_words.txt").read_text().splitlines()
    assert "palace" in names[top[0]]
    assert "mushroom" in names[top[1]]
