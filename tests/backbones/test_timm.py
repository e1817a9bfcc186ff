# SPDX-License-Identifier: BSD-3-Clause
"""timm's own code, on small models written to disk in the form that its hub has."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images

from skpool.backbones import Backbone, ImageRecipe, check_frozen
from skpool.exceptions import BackboneError

try:
    import timm
except (ImportError, RuntimeError) as error:
    timm = None
    pytestmark = pytest.mark.skip(reason=f"timm cannot be imported: {error}")

CONFIG = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "squash",
}
VIT = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "depth": 3, "num_heads": 2}
SWIN = {
    "img_size": 128,
    "embed_dim": 8,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
}
# Name, architecture, arguments, side, number of classes.
MODELS = {
    "vit": ("vit_tiny_patch16_224", VIT, 28, 5),
    "registers": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 4}, 28, 0),
    "distilled": ("deit_tiny_distilled_patch16_224", VIT, 28, 5),
    "no_cls": ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg"}, 28, 5),
    "registers_alone": (
        "vit_tiny_patch16_224",
        {**VIT, "class_token": False, "reg_tokens": 4, "global_pool": "avg"},
        28,
        5,
    ),
    "dinov3": ("vit_small_patch16_dinov3", VIT, 28, 0),
    # Its norm follows the mean, and its positions are those of one size.
    "beit": ("beit_base_patch16_224", VIT, 28, 5),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 128, 5),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [4, 8, 12, 16]}, 64, 5),
    "resnet": ("resnet18", {"layers": [1, 1, 1, 1], "channels": [4, 8, 12, 16]}, 64, 5),
    "mobilenet": ("mobilenetv2_035", {}, 64, 5),
}
TRANSFORMERS = ["vit", "registers", "distilled", "no_cls", "registers_alone", "dinov3", "beit"]
CNNS = ["swin", "convnext", "resnet", "mobilenet"]


def _make(kind):
    name, arguments, _, n_classes = MODELS[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=n_classes, **arguments).eval()
    with torch.no_grad():
        # timm starts norms and class tokens at values that hide mistakes.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for key, buffer in model.named_buffers():
            if "running" in key:
                buffer.uniform_(0.5, 2)
    return model


def _save(kind, directory, model=None, **pretrained):
    model = model or _make(kind)
    name, arguments, side, n_classes = MODELS[kind]
    directory.mkdir(exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, directory / "model.safetensors"
    )
    config = {
        "architecture": name,
        "num_classes": n_classes,
        "model_args": arguments,
        "pretrained_cfg": {**CONFIG, "input_size": [3, side, side], **pretrained},
    }
    (directory / "config.json").write_text(json.dumps(config))
    return model, f"timm:{directory}"


def _pixels(batch):
    return ((batch.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_layers_of_transformers_equal_forward_intermediates(kind, tmp_path, images):
    model, spec = _save(kind, tmp_path / "m")
    backbone = Backbone(spec)
    batch = backbone.prepare(images)
    with torch.no_grad():
        own, pairs = model.forward_intermediates(
            _pixels(batch), output_fmt="NLC", return_prefix_tokens=True
        )
    if model.num_prefix_tokens == 0:
        blocks = pairs
    else:
        blocks = [torch.cat([prefix, patches], dim=1) for patches, prefix in pairs]
    got = backbone.forward(batch, range(4))[0]
    for k in (1, 2):
        torch.testing.assert_close(got[k], blocks[k - 1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[3], own, rtol=1e-5, atol=1e-5)
    without = backbone.forward(batch, norm="none")[0][0]
    torch.testing.assert_close(without, blocks[-1], rtol=1e-5, atol=1e-5)
    assert backbone.n_prefix_tokens == model.num_prefix_tokens
    assert backbone.grid(28, 28) == (4, 4)
    check_frozen(backbone, images)


@pytest.mark.parametrize(
    ("kind", "n_prefix", "cls_index", "pooling"),
    [
        ("vit", 1, 0, "cls"),
        ("registers", 5, 0, "cls"),
        ("distilled", 2, 0, "cls"),
        ("no_cls", 0, None, "mean"),
        ("registers_alone", 4, None, "mean"),
        ("dinov3", 5, 0, ("cls", "mean")),
    ],
)
def test_prefix_tokens_are_told_from_patches(kind, n_prefix, cls_index, pooling, tmp_path):
    backbone = Backbone(_save(kind, tmp_path / "m")[1])
    layout = backbone.layout()
    assert (layout.n_prefix_tokens, layout.cls_index, layout.n_tokens) == (
        n_prefix,
        cls_index,
        16 + n_prefix,
    )
    assert backbone.recommended_pooling == pooling


@pytest.mark.parametrize("kind", CNNS)
def test_layers_of_maps_equal_forward_intermediates(kind, tmp_path, images):
    model, spec = _save(kind, tmp_path / "m")
    backbone = Backbone(spec)
    batch = backbone.prepare(images)
    with torch.no_grad():
        maps = model.forward_intermediates(_pixels(batch), intermediates_only=True)
        own = model.forward_features(_pixels(batch))
    own = own.permute(0, 3, 1, 2) if kind == "swin" else own
    n = backbone.layers[-1]
    # A head convolution is a layer after the last stage.
    assert n == len(maps) + (kind == "mobilenet")
    got = backbone.forward(batch, range(1, n + 1))[0]
    for tokens, expected in zip(got, [*maps[: n - 1], own], strict=True):
        torch.testing.assert_close(tokens, expected.flatten(2).mT, rtol=1e-5, atol=1e-5)
    assert backbone.layout().grid == tuple(own.shape[2:])
    assert backbone.n_prefix_tokens == 0
    assert backbone.recommended_pooling == "mean"
    check_frozen(backbone, images)


def test_first_layer_is_the_embedding(tmp_path, images):
    model, spec = _save("vit", tmp_path / "m")
    backbone = Backbone(spec)
    batch = backbone.prepare(images)
    with torch.no_grad():
        patches = model.patch_embed.proj(_pixels(batch)).flatten(2).mT
        cls = model.cls_token.expand(len(images), -1, -1)
        expected = torch.cat([cls, patches], dim=1) + model.pos_embed
    torch.testing.assert_close(backbone.forward(batch, [0])[0][0], expected, rtol=1e-5, atol=1e-5)


def test_norm_behind_the_mean_is_applied_to_tokens_only_on_request(tmp_path, images):
    model, spec = _save("no_cls", tmp_path / "m")
    backbone = Backbone(spec)
    batch = backbone.prepare(images)
    assert isinstance(model.norm, torch.nn.Identity)
    with torch.no_grad():
        own = model.forward_features(_pixels(batch))
        normed = model.fc_norm(own)
    torch.testing.assert_close(backbone.forward(batch)[0][0], own, rtol=1e-5, atol=1e-5)
    got = backbone.forward(batch, norm="all")[0][0]
    torch.testing.assert_close(got, normed, rtol=1e-5, atol=1e-5)


def test_norm_on_every_layer_equals_timms(tmp_path, images):
    model, spec = _save("registers", tmp_path / "m")
    backbone = Backbone(spec)
    batch = backbone.prepare(images)
    with torch.no_grad():
        own = model.forward_intermediates(
            _pixels(batch), norm=True, output_fmt="NLC", intermediates_only=True
        )
    got = backbone.forward(batch, [1, 2, 3], norm="all")[0]
    for tokens, expected in zip(got, own, strict=True):
        torch.testing.assert_close(tokens[:, 5:], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "size", "grid"),
    [("vit", 42, (6, 6)), ("dinov3", 42, (6, 6)), ("swin", 160, (5, 5)), ("resnet", 96, (3, 3))],
)
def test_other_sizes_equal_timms_own(kind, size, grid, tmp_path, images):
    model, spec = _save(kind, tmp_path / "m")
    backbone = Backbone(spec)
    batch = backbone.prepare(images, size=size)
    if kind == "swin":
        name, arguments, _, n_classes = MODELS[kind]
        weights = model.state_dict()
        model = timm.create_model(name, num_classes=n_classes, **{**arguments, "img_size": size})
        model.load_state_dict(weights)
        model.eval()
    elif kind != "resnet":
        model.set_input_size(img_size=size)
    with torch.no_grad():
        own = model.forward_features(_pixels(batch))
    own = own.flatten(1, 2) if kind == "swin" else own.flatten(2).mT if kind == "resnet" else own
    torch.testing.assert_close(backbone.forward(batch)[0][0], own, rtol=1e-4, atol=1e-4)
    assert backbone.grid(size, size) == grid


def test_size_that_the_network_refuses_is_named(tmp_path):
    backbone = Backbone(_save("beit", tmp_path / "m")[1])
    assert backbone.layout().grid == (4, 4)
    with pytest.raises(BackboneError, match="image_size=42 is not possible: this"):
        backbone.layout(size=42)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224.augreg2_in21k_ft_in1k",
        "resnet50.a1_in1k",
        "convnext_tiny.fb_in22k",
        "vit_base_patch16_siglip_224.webli",
        "dm_nfnet_f0.dm_in1k",
        "vit_small_patch14_dinov2.lvd142m",
        "swin_tiny_patch4_window7_224.ms_in1k",
    ],
)
def test_preprocessing_equals_timms_own(name):
    from skpool.backbones._timm import _recipe

    config = timm.get_pretrained_cfg(name).to_dict()
    recipe = _recipe(config, name)
    data = timm.data.resolve_data_config(pretrained_cfg=config)
    transform = timm.data.create_transform(**data, is_training=False)
    for photograph in map(Image.fromarray, load_sample_images().images):
        own = transform(photograph).permute(1, 2, 0).numpy()
        pixels = torch.tensor(recipe.prepare(photograph))[None]
        got = recipe.normalize(pixels)[0].permute(1, 2, 0).numpy()
        difference = np.abs(got - own) * recipe.std * 255
        assert difference.max() < 2.01
        assert (difference > 0.01).mean() < 2e-3


def test_recipe_is_read_from_the_directory(tmp_path):
    _, spec = _save("vit", tmp_path / "m", crop_mode="center", crop_pct=0.9)
    expected = ImageRecipe(
        28, (0.5,) * 3, (0.25,) * 3, 28 / 31, "bilinear", "crop", crop_rounding="even"
    )
    assert Backbone(spec).recipe == expected


def test_padding_asks_for_a_recipe(tmp_path):
    _, spec = _save("vit", tmp_path / "m", crop_mode="border")
    with pytest.raises(BackboneError, match=r"crop_mode='border'.*recipe=ImageRecipe"):
        Backbone(spec).network()
    assert Backbone(spec, recipe=ImageRecipe(28)).layout().n_tokens == 17


def test_weights_file_beside_an_architecture(tmp_path, images):
    model, spec = _save("mobilenet", tmp_path / "m")
    directory = Backbone(spec, recipe=ImageRecipe(64))
    torch.manual_seed(1)
    full = timm.create_model("mobilenetv2_035").state_dict()
    full.update({k: v for k, v in model.state_dict().items() if not k.startswith("classifier")})
    torch.save({"state_dict": full}, tmp_path / "w.pth")
    file = Backbone(f"timm:mobilenetv2_035?weights={tmp_path / 'w.pth'}", recipe=ImageRecipe(64))
    batch = file.prepare(images)
    assert torch.equal(file.forward(batch)[0][0], directory.forward(batch)[0][0])
    # The classifier does not tell two backbones apart.
    assert (
        file.network().module.state_dict().keys() == directory.network().module.state_dict().keys()
    )


def test_fingerprint_follows_weights_and_arguments_not_the_directory_or_precision(tmp_path):
    model, first = _save("vit", tmp_path / "a")
    _, second = _save("vit", tmp_path / "b", model)
    assert Backbone(first).fingerprint == Backbone(second).fingerprint
    half = model.half()
    _, third = _save("vit", tmp_path / "c", half)
    _, fourth = _save("vit", tmp_path / "d", half.float())
    assert (
        Backbone(third).fingerprint == Backbone(fourth).fingerprint != Backbone(first).fingerprint
    )
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    config["model_args"]["num_heads"] = 4
    (tmp_path / "d" / "config.json").write_text(json.dumps(config))
    other = Backbone(fourth, recipe=ImageRecipe(28))
    assert other.network().fingerprint != Backbone(third).network().fingerprint


def test_loading_leaves_the_random_generator_as_it_was(tmp_path):
    _, spec = _save("vit", tmp_path / "m")
    state = torch.random.get_rng_state()
    Backbone(spec).network()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_training_mode_is_caught(tmp_path, images):
    backbone = Backbone(_save("resnet", tmp_path / "m")[1])
    backbone.network().module.train()
    with pytest.raises(BackboneError, match="is not frozen"):
        check_frozen(backbone, images)
    backbone.network().module.eval()


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_do_not_fill_the_model_are_refused(change, tmp_path):
    _, spec = _save("vit", tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    if change == "missing":
        del weights["blocks.1.norm1.weight"]
    else:
        weights["blocks.1.norm1.weight"] = torch.zeros(3)
    save_file(weights, tmp_path / "m" / "model.safetensors")
    with pytest.raises(BackboneError, match="could not be loaded"):
        Backbone(spec).network()


def test_two_numbers_of_classes_that_would_forgive_absent_weights_are_refused(tmp_path):
    _, spec = _save("vit", tmp_path / "m", classifier="head")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights["blocks.1.norm1.weight"]
    save_file(weights, tmp_path / "m" / "model.safetensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["model_args"]["num_classes"] = 7
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match=r"declares 5 classes .* and 7"):
        Backbone(spec).network()


@pytest.mark.parametrize("form", ["torch", "pickle"])
@pytest.mark.parametrize("place", ["directory", "option"])
def test_code_in_a_file_is_not_run(form, place, tmp_path, malicious):
    _, spec = _save("vit", tmp_path / "m")
    path = malicious.write(tmp_path / "m" / "pytorch_model.bin", form)
    if place == "directory":
        (tmp_path / "m" / "model.safetensors").unlink()
    else:
        spec = f"timm:vit_tiny_patch16_224?weights={path}"
    with pytest.raises(BackboneError, match="holds code beside weights, which is never run"):
        Backbone(spec).network()
    assert not malicious.ran


def test_unknown_names_are_refused_with_near_ones(tmp_path):
    with pytest.raises(BackboneError, match="'vit_small_patch14_dinov2'"):
        Backbone("timm:vit_smal_patch14_dinov2").network()
    with pytest.raises(BackboneError, match=r"it has .*'augreg_in21k'"):
        Backbone("timm:vit_tiny_patch16_224.laion").network()
    with pytest.raises(BackboneError, match="names no file"):
        Backbone(f"timm:vit_tiny_patch16_224?weights={tmp_path}/absent.pth").network()
    with pytest.raises(BackboneError, match="could not be loaded"):
        Backbone(f"timm:local-dir:{tmp_path}/absent").network()


def test_hub_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match="without a network, give a local directory"):
        Backbone("timm:vit_tiny_patch16_224.augreg_in21k").network()


# The real network.


@pytest.mark.data
def test_deit_equals_its_plain_definition(data_dir, monkeypatch):
    folder = data_dir / "deit_tiny"
    file = folder / "deit_tiny_patch16_224.timm.fp16.safetensors"
    backbone = Backbone(f"timm:deit_tiny_patch16_224?weights={file}")
    monkeypatch.syspath_prepend(str(folder))
    import vit

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    batch = backbone.prepare(photographs)
    pixels = backbone.recipe.normalize(batch)
    model = vit.load()
    with torch.no_grad():
        expected = model.tokens(pixels)
    got = backbone.forward(batch)[0][0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert got.dtype == torch.float32
    top = model.head(got[:, 0]).argmax(1)
    names = (data_dir / "imagenet_names" / "synset_words.txt").read_text().splitlines()
    assert "palace" in names[top[0]]
    assert "mushroom" in names[top[1]]
