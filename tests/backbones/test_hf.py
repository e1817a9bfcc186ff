# SPDX-License-Identifier: BSD-3-Clause
import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
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
        "deit": (transformers.DeiTConfig, transformers.DeiTModel, TRANSFORMER),
        "dinov3": (
            transformers.DINOv3ViTConfig,
            transformers.DINOv3ViTModel,
            {**TRANSFORMER, "num_register_tokens": 4},
        ),
        "ijepa": (transformers.IJepaConfig, transformers.IJepaModel, TRANSFORMER),
        "mae": (transformers.ViTMAEConfig, transformers.ViTMAEModel, TRANSFORMER),
        "msn": (transformers.ViTMSNConfig, transformers.ViTMSNModel, TRANSFORMER),
        "beit": (
            transformers.BeitConfig,
            transformers.BeitModel,
            {**TRANSFORMER, "use_mean_pooling": False},
        ),
        "beit_mean": (transformers.BeitConfig, transformers.BeitModel, TRANSFORMER),
        "swin": (
            transformers.SwinConfig,
            transformers.SwinModel,
            {
                "image_size": 128,
                "embed_dim": 8,
                "depths": [1, 2, 1, 1],
                "num_heads": [1, 1, 2, 2],
                "window_size": 4,
            },
        ),
        "mobilenet": (
            transformers.MobileNetV2Config,
            transformers.MobileNetV2Model,
            {"depth_multiplier": 0.25, "finegrained_output": True},
        ),
        "pvt": (
            transformers.PvtConfig,
            transformers.PvtModel,
            {"image_size": 64, "hidden_sizes": [4, 8, 12, 16], "num_attention_heads": [1, 1, 1, 1]},
        ),
        "convnext": (transformers.ConvNextConfig, transformers.ConvNextModel, STAGES),
        "resnet": (
            transformers.ResNetConfig,
            transformers.ResNetModel,
            {**STAGES, "embedding_size": 4},
        ),
    }
    config, model, options = configs[kind]
    torch.manual_seed(0)
    made = model(config(**options)).eval()
    with torch.no_grad():
        # Norms start as the identity and class tokens at zero, which hides mistakes.
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


def _pixels(batch):
    return ((batch.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)


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


@pytest.mark.parametrize(
    ("kind", "n_prefix", "grid"),
    [
        ("vit", 1, (4, 4)),
        ("dinov2", 1, (4, 4)),
        ("registers", 5, (4, 4)),
        ("clip", 1, (4, 4)),
        ("siglip", 0, (4, 4)),
        ("deit", 2, (4, 4)),
        ("dinov3", 5, (4, 4)),
        ("ijepa", 0, (4, 4)),
        ("msn", 1, (4, 4)),
        ("beit", 1, (4, 4)),
        ("beit_mean", 1, (4, 4)),
    ],
)
def test_transformer_tokens_equal_the_models_own(kind, n_prefix, grid, tmp_path, images):
    model = _make(kind)
    backbone = Backbone(_save(model, tmp_path))
    with torch.no_grad():
        own = model(_pixels(backbone.prepare(images)), output_hidden_states=True)
    wanted = [0, 1, 2, -1]
    got = backbone.forward(backbone.prepare(images), wanted)[0]
    expected = [own.hidden_states[0], own.hidden_states[1], own.hidden_states[2]]
    for tokens, theirs in zip(got, [*expected, own.last_hidden_state], strict=True):
        torch.testing.assert_close(tokens, theirs, rtol=1e-5, atol=1e-5)
    assert backbone.layers == range(4)
    assert backbone.n_prefix_tokens == n_prefix
    assert backbone.grid(28, 28) == grid
    assert backbone.layout().cls_index == (0 if n_prefix else None)
    check_frozen(backbone, images)


@pytest.mark.parametrize(
    ("kind", "norm", "pooling"),
    [
        ("vit", "layernorm", "cls"),
        ("deit", "layernorm", "cls"),
        ("msn", "layernorm", "cls"),
        ("dinov2", "layernorm", ("cls", "mean")),
        ("registers", "layernorm", ("cls", "mean")),
        ("dinov3", "norm", ("cls", "mean")),
        ("siglip", "post_layernorm", None),
        ("ijepa", "layernorm", "mean"),
        ("beit", "layernorm", "cls"),
    ],
)
def test_token_norm_puts_the_final_norm_where_it_is_asked_for(
    kind, norm, pooling, tmp_path, images
):
    model = _make(kind)
    backbone = Backbone(_save(model, tmp_path))
    batch = backbone.prepare(images)
    with torch.no_grad():
        own = model(_pixels(batch), output_hidden_states=True)
        normed = [model.get_submodule(norm)(hidden) for hidden in own.hidden_states]
    layers = [0, 1, 2]
    for tokens, expected in zip(
        backbone.forward(batch, layers, norm="all")[0], normed[:3], strict=True
    ):
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
    for name, expected in [("all", own.last_hidden_state), ("final", own.last_hidden_state)]:
        got = backbone.forward(batch, norm=name)[0][0]
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    without = backbone.forward(batch, norm="none")[0][0]
    # Applied once, it is what the model itself gives; so it was not applied before.
    with torch.no_grad():
        again = model.get_submodule(norm)(without)
    torch.testing.assert_close(again, own.last_hidden_state, rtol=1e-5, atol=1e-5)
    assert (without - own.last_hidden_state).abs().max() > 1e-2
    assert backbone.recommended_pooling == pooling


def test_clip_norms_its_tokens_only_on_request(tmp_path, images):
    model = _make("clip")
    backbone = Backbone(_save(model, tmp_path))
    batch = backbone.prepare(images)
    with torch.no_grad():
        own = model(_pixels(batch))
    for norm in ("final", "none"):
        got = backbone.forward(batch, norm=norm)[0][0]
        torch.testing.assert_close(got, own.last_hidden_state, rtol=1e-5, atol=1e-5)
    normed = backbone.forward(batch, norm="all")[0][0]
    torch.testing.assert_close(normed[:, 0], own.pooler_output, rtol=1e-5, atol=1e-5)


def test_masked_autoencoder_sees_all_patches_in_order(tmp_path, images):
    model = _make("mae")
    backbone = Backbone(_save(model, tmp_path))
    batch = backbone.prepare(images)
    model.config.mask_ratio = 0.0
    with torch.no_grad():
        # Its own pass shuffles the patches: put back, they are what they would be in order.
        torch.manual_seed(3)
        own = model(_pixels(batch))
    place = own.ids_restore[..., None].expand(-1, -1, 24)
    expected = torch.gather(own.last_hidden_state[:, 1:], 1, place)
    got = backbone.forward(batch)[0][0]
    torch.testing.assert_close(got[:, 1:], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[:, 0], own.last_hidden_state[:, 0], rtol=1e-5, atol=1e-5)
    check_frozen(backbone, images)
    assert backbone.recommended_pooling == "cls"


def test_layers_of_swin_differ_in_grid_and_width(tmp_path, images):
    model = _make("swin")
    backbone = Backbone(_save(model, tmp_path, size={"height": 128, "width": 128}))
    batch = backbone.prepare(images)
    with torch.no_grad():
        own = model(_pixels(batch), output_hidden_states=True)
    got = backbone.forward(batch, range(5))[0]
    for k, tokens in enumerate(got[:4]):
        torch.testing.assert_close(tokens, own.hidden_states[k], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[4], own.last_hidden_state, rtol=1e-5, atol=1e-5)
    grids = [backbone.layout(k).grid for k in range(5)]
    assert grids == [(32, 32), (16, 16), (8, 8), (4, 4), (4, 4)]
    assert backbone.n_prefix_tokens == 0
    without = backbone.forward(batch, norm="none")[0][0]
    torch.testing.assert_close(without, own.hidden_states[4], rtol=1e-5, atol=1e-5)
    with pytest.raises(BackboneError, match="differ in width"):
        backbone.forward(batch, norm="all")


def test_head_convolution_is_a_layer_after_the_blocks(tmp_path, images):
    model = _make("mobilenet")
    backbone = Backbone(_save(model, tmp_path, size={"height": 64, "width": 64}))
    batch = backbone.prepare(images)
    with torch.no_grad():
        own = model(_pixels(batch), output_hidden_states=True)
    n = len(own.hidden_states)
    assert backbone.layers == range(n + 2)
    got = backbone.forward(batch, [1, n, n + 1])[0]
    maps = [own.hidden_states[0], own.hidden_states[-1], own.last_hidden_state]
    for tokens, expected in zip(got, maps, strict=True):
        torch.testing.assert_close(tokens, expected.flatten(2).mT, rtol=1e-5, atol=1e-5)
    assert backbone.recommended_pooling == "mean"


def test_list_of_lists_is_not_taken_for_layers(tmp_path, images):
    model = _make("pvt")
    backbone = Backbone(_save(model, tmp_path, size={"height": 64, "width": 64}))
    batch = backbone.prepare(images)
    with torch.no_grad():
        own = model(_pixels(batch)).last_hidden_state
    assert backbone.layers == range(1)
    torch.testing.assert_close(backbone.forward(batch)[0][0], own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_maps_of_convolutional_models_become_tokens(kind, tmp_path, images):
    model = _make(kind)
    backbone = Backbone(_save(model, tmp_path, size={"height": 64, "width": 64}))
    batch = backbone.prepare(images)
    with torch.no_grad():
        own = model(_pixels(batch), output_hidden_states=True)
    maps = [*own.hidden_states[:-1], own.last_hidden_state]
    assert backbone.layers == range(len(maps))
    for tokens, expected in zip(backbone.forward(batch, range(5))[0], maps, strict=True):
        torch.testing.assert_close(tokens, expected.flatten(2).mT, rtol=1e-5, atol=1e-5)
    assert backbone.n_prefix_tokens == 0
    assert backbone.grid(64, 64) == tuple(own.last_hidden_state.shape[2:])
    assert backbone.recommended_pooling == "mean"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_model_of_pictures_and_texts_keeps_the_part_that_sees(kind, tmp_path, images):
    config, model = {
        "clip": (transformers.CLIPConfig, transformers.CLIPModel),
        "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
    }[kind]
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    torch.manual_seed(0)
    both = model(config(text_config=text, vision_config=TRANSFORMER)).eval()
    backbone = Backbone(_save(both, tmp_path))
    batch = backbone.prepare(images)
    with torch.no_grad():
        own = both.vision_model(_pixels(batch)).last_hidden_state
    torch.testing.assert_close(backbone.forward(batch)[0][0], own, rtol=1e-5, atol=1e-5)
    assert backbone.recommended_pooling == ("cls" if kind == "clip" else None)
    assert backbone.layout().cls_index == (0 if kind == "clip" else None)


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
        # As ConvNextImageProcessor reads it: cropped below 384 pixels, squashed from there on.
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            ImageRecipe(224, (0.5,) * 3, (0.25,) * 3, 224 / 256, "bicubic", "crop"),
        ),
        (
            {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 3},
            ImageRecipe(384, (0.5,) * 3, (0.25,) * 3, 1.0, "bicubic", "squash"),
        ),
        (
            {"do_normalize": False},
            ImageRecipe(28, (0.0,) * 3, (1.0,) * 3, 1.0, "bilinear", "squash"),
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


@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])
def test_families_with_one_preprocessing_need_no_file(kind, tmp_path):
    _make(kind).save_pretrained(tmp_path)
    got = Backbone(f"hf:{tmp_path}").recipe
    processor = {
        "dinov2": transformers.BitImageProcessorPil,
        "clip": transformers.CLIPImageProcessorPil,
        "siglip": transformers.SiglipImageProcessorPil,
    }[kind]
    # DINOv2's files name the class of BiT, and 256 pixels before the crop.
    own = processor(size={"shortest_edge": 256}) if kind == "dinov2" else processor()
    mean_of_bit = (0.485, 0.456, 0.406)
    assert got.mean == pytest.approx(mean_of_bit if kind == "dinov2" else own.image_mean)
    assert got.interpolation == {2: "bilinear", 3: "bicubic"}[int(own.resample)]
    # The tiny models are built for 28 pixels; DINOv2 is evaluated at 224 whatever it is built for.
    assert got.input_size == (224 if kind == "dinov2" else 28)
    assert got.fit == ("squash" if kind == "siglip" else "crop")


def test_other_size_of_dinov3_and_swin_and_convolutions(tmp_path):
    sizes = {"dinov3": (42, (6, 6)), "swin": (256, (8, 8)), "resnet": (96, (3, 3))}
    for kind, (size, grid) in sizes.items():
        native = {"dinov3": 28, "swin": 128, "resnet": 64}[kind]
        spec = _save(_make(kind), tmp_path / kind, size={"height": native, "width": native})
        assert Backbone(spec).layout(size=size).grid == grid


def test_half_precision_on_disk_is_computed_in_float32(tmp_path, images):
    model = _make("vit").half()
    half = Backbone(_save(model, tmp_path / "half"))
    full = Backbone(_save(model.float(), tmp_path / "full"))
    tokens = half.forward(half.prepare(images))[0][0]
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens, full.forward(full.prepare(images))[0][0])
    assert half.fingerprint == full.fingerprint


def test_training_mode_is_caught(tmp_path, images):
    backbone = Backbone(_save(_make("resnet"), tmp_path, size={"height": 64, "width": 64}))
    backbone.network().module.train()
    with pytest.raises(BackboneError, match="is not frozen"):
        check_frozen(backbone, images)
    backbone.network().module.eval()


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_file_is_not_run(form, tmp_path, malicious):
    spec = _save(_make("vit"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    malicious.write(tmp_path / "pytorch_model.bin", form)
    with pytest.raises(BackboneError, match="holds code beside weights, which is never run"):
        Backbone(spec).network()
    assert not malicious.ran


def test_code_of_a_model_directory_is_not_run(tmp_path, malicious):
    spec = _save(_make("vit"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "one_of_my_own"
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"import os\nos.mkdir({str(malicious.mark)!r})\n")
    with pytest.raises(BackboneError, match="could not be loaded"):
        Backbone(spec).network()
    assert not malicious.ran


def test_revision_of_a_hub_name_is_passed_on(monkeypatch, tmp_path):
    asked = {}

    def from_pretrained(name, **options):
        asked.update(options, name=name)
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", from_pretrained)
    with pytest.raises(BackboneError, match=r"'hf:a/model' could not be loaded \(no network\)"):
        Backbone("hf:a/model@0123abc").network()
    assert (asked["name"], asked["revision"]) == ("a/model", "0123abc")
    assert asked["trust_remote_code"] is False


def test_at_sign_in_a_path_is_part_of_the_path(tmp_path):
    directory = tmp_path / "model@home"
    assert Backbone(_save(_make("vit"), directory)).layout().n_tokens == 17


def test_hub_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match="give the local directory"):
        Backbone("hf:facebook/dinov2-small").network()


def test_torchvision_that_does_not_fit_torch_is_named(monkeypatch, tmp_path):
    spec = _save(_make("vit"), tmp_path)

    def from_pretrained(*args, **options):
        # What transformers raises then, with its cause.
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'ViTModel'.") from error

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", from_pretrained)
    with pytest.raises(MissingDependencyError, match=r"torchvision does not fit.*or uninstall it"):
        Backbone(spec).network()


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_that_does_not_fit_torch_is_named_in_a_process_of_its_own(tmp_path):
    spec = _save(_make("vit"), tmp_path)
    code = (
        "import sys\nfrom skpool.backbones import Backbone\n"
        "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
        "else:\n    sys.exit('fits')\n"
        f"Backbone({spec!r}).network()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "fits" in done.stderr:
        pytest.skip("the installed torchvision fits the installed torch")
    assert "does not fit the installed torch" in done.stderr.splitlines()[-1]


def test_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"holds no config.json"):
        Backbone(f"hf:{tmp_path}").network()


def test_missing_weights_are_refused_and_not_made_up(tmp_path):
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


@pytest.mark.parametrize("kind", ["vit", "deit", "beit", "ijepa"])
def test_fingerprint_does_not_know_of_a_pooler_that_was_made_up(kind, tmp_path, images):
    model = _make(kind)
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("pooler.")}
    found = []
    for seed in (1, 2):
        spec = _save(model, tmp_path / str(seed))
        save_file(
            {k: v.contiguous() for k, v in weights.items()},
            tmp_path / str(seed) / "model.safetensors",
            metadata={"format": "pt"},
        )
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        backbone = Backbone(spec)
        found.append(backbone.fingerprint)
        # What the library drew for it was not drawn from the user's generator.
        assert torch.equal(torch.random.get_rng_state(), state)
        with torch.no_grad():
            own = model(_pixels(backbone.prepare(images))).last_hidden_state
        got = backbone.forward(backbone.prepare(images))[0][0]
        torch.testing.assert_close(got, own, rtol=1e-5, atol=1e-5)
    assert found[0] == found[1]


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
    images = torch.from_numpy((prepared.numpy() / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model(images.float()).last_hidden_state
    got = deit.forward(deit.prepare(photographs))[0][0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.data
def test_deit_names_the_sample_photographs(deit, data_dir):
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    weights = load_file(data_dir / "deit_tiny" / "deit_tiny_patch16_224.timm.fp16.safetensors")
    cls = deit.forward(deit.prepare(photographs))[0][0][:, 0]
    top = (cls @ weights["head.weight"].float().T + weights["head.bias"].float()).argmax(1)
    names = (data_dir / "imagenet_names" / "synset_words.txt").read_text().splitlines()
    assert "palace" in names[top[0]]
    assert "mushroom" in names[top[1]]


@pytest.mark.data
def test_mobilenet_names_the_sample_photographs(data_dir):
    folder = data_dir / "mobilenet_v2"
    recipe = ImageRecipe(224, (0.5,) * 3, (0.5,) * 3, interpolation="bilinear")
    backbone = Backbone(f"hf:{folder}", recipe=recipe)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    batch = backbone.prepare(photographs)
    tokens = backbone.forward(batch)[0][0]
    assert backbone.grid(224, 224) == (7, 7)
    head = transformers.MobileNetV2ForImageClassification.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        own = head(backbone.recipe.normalize(batch)).logits
        got = head.classifier(tokens.mean(1))
    torch.testing.assert_close(got, own, rtol=1e-4, atol=1e-4)
    names = (data_dir / "imagenet_names" / "synset_words.txt").read_text().splitlines()
    # The first output stands for the background.
    assert "palace" in names[got[0].argmax() - 1]
    assert "honeycomb" in names[got[1].argmax() - 1]
