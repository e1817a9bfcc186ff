# SPDX-License-Identifier: BSD-3-Clause
"""open_clip's own code, on small models written to disk in the form that its hub has."""

import copy
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
    import open_clip
    from open_clip import factory, pretrained
except (ImportError, RuntimeError) as error:
    open_clip = None
    pytestmark = pytest.mark.skip(reason=f"open_clip cannot be imported: {error}")

TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 28, "patch_size": 7, "layers": 3, "width": 32, "head_width": 16}
MODELS = {
    "vit": {"embed_dim": 12, "vision_cfg": VIT, "text_cfg": TEXT},
    "quick": {"embed_dim": 12, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "average": {"embed_dim": 12, "vision_cfg": {**VIT, "pool_type": "avg"}, "text_cfg": TEXT},
    "late_norm": {
        "embed_dim": 12,
        "vision_cfg": {**VIT, "final_ln_after_pool": True},
        "text_cfg": TEXT,
    },
    "attention": {
        "embed_dim": 16,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2},
        "text_cfg": TEXT,
    },
    "resnet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        "text_cfg": TEXT,
    },
    "timm": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "token"},
        "text_cfg": TEXT,
    },
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash"}


def _make(kind):
    torch.manual_seed(0)
    config = copy.deepcopy(MODELS[kind])
    custom = config["vision_cfg"].get("timm_model_name") is not None
    model = (open_clip.model.CustomTextCLIP if custom else open_clip.CLIP)(**config).eval()
    with torch.no_grad():
        # Norms start as the identity, which hides mistakes.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2)
    return model


def _save(kind, directory, model=None, **preprocess):
    model = model or _make(kind)
    directory.mkdir(exist_ok=True)
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors")
    custom = {"custom_text": True} if hasattr(model, "text") else {}
    config = {
        "model_cfg": {**MODELS[kind], **custom},
        "preprocess_cfg": {**PREPROCESS, **preprocess},
    }
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    return model, f"clip:{directory}"


@pytest.fixture
def registered(monkeypatch):
    """The small models under names of open_clip."""
    for kind in ("vit", "quick"):
        monkeypatch.setitem(factory._MODEL_CONFIGS, f"tiny-{kind}", copy.deepcopy(MODELS[kind]))


def _pixels(batch):
    return ((batch.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)


def _blocks(model, batch, **options):
    with torch.no_grad():
        found = model.visual.forward_intermediates(
            _pixels(batch),
            output_fmt="NLC",
            output_extra_tokens=True,
            intermediates_only=True,
            **options,
        )
    pairs = zip(found["image_intermediates_prefix"], found["image_intermediates"], strict=True)
    return [torch.cat(pair, dim=1) for pair in pairs]


@pytest.mark.parametrize(
    ("kind", "pooling"), [("vit", "cls"), ("quick", "cls"), ("average", "mean")]
)
def test_layers_equal_forward_intermediates(kind, pooling, tmp_path, images):
    model, spec = _save(kind, tmp_path / "m")
    backbone = Backbone(spec)
    batch = backbone.prepare(images)
    blocks = _blocks(model, batch)
    got = backbone.forward(batch, [1, 2, 3])[0]
    for tokens, expected in zip(got[:2], blocks[:2], strict=True):
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
    normed = _blocks(model, batch, normalize_intermediates=True)
    torch.testing.assert_close(got[2], normed[2], rtol=1e-5, atol=1e-5)
    for tokens, expected in zip(
        backbone.forward(batch, [1, 2, 3], norm="all")[0], normed, strict=True
    ):
        torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)
    without = backbone.forward(batch, norm="none")[0][0]
    torch.testing.assert_close(without, blocks[2], rtol=1e-5, atol=1e-5)
    layout = backbone.layout()
    assert (layout.n_prefix_tokens, layout.cls_index, layout.grid) == (1, 0, (4, 4))
    assert backbone.recommended_pooling == pooling
    check_frozen(backbone, images)


@pytest.mark.parametrize("kind", ["late_norm", "attention"])
def test_tokens_that_the_tower_does_not_norm_are_those_of_the_last_block(kind, tmp_path, images):
    model, spec = _save(kind, tmp_path / "m")
    backbone = Backbone(spec)
    batch = backbone.prepare(images)
    got = backbone.forward(batch)[0][0]
    torch.testing.assert_close(got, _blocks(model, batch)[2], rtol=1e-5, atol=1e-5)
    assert backbone.recommended_pooling is None


@pytest.mark.parametrize("kind", list(MODELS))
def test_embedding_is_the_models_own(kind, tmp_path, images):
    model, spec = _save(kind, tmp_path / "m")
    backbone = Backbone(f"{spec}?output=embedding")
    batch = backbone.prepare(images)
    with torch.no_grad():
        expected = model.encode_image(_pixels(batch))
    got = backbone.forward(batch)[0][0]
    torch.testing.assert_close(got[:, 0], expected, rtol=1e-5, atol=1e-5)
    layout = backbone.layout()
    assert (layout.n_tokens, layout.n_features, layout.grid) == (1, expected.shape[1], None)
    # The tokens of the last block are a layer still.
    tokens = Backbone(spec)
    last = backbone.forward(batch, [-2])[0][0]
    without = tokens.forward(batch, norm="none")[0][0]
    torch.testing.assert_close(last, without, rtol=1e-5, atol=1e-5)


def test_maps_of_a_resnet_equal_forward_intermediates(tmp_path, images):
    model, spec = _save("resnet", tmp_path / "m")
    backbone = Backbone(spec)
    batch = backbone.prepare(images)
    with torch.no_grad():
        maps = model.visual.forward_intermediates(_pixels(batch))["image_intermediates"]
    for tokens, expected in zip(backbone.forward(batch, range(5))[0], maps, strict=True):
        torch.testing.assert_close(tokens, expected.flatten(2).mT, rtol=1e-5, atol=1e-5)
    assert backbone.grid(64, 64) == (2, 2)
    assert backbone.grid(96, 96) == (3, 3)


def test_tower_of_timm_equals_timm(tmp_path, images):
    model, spec = _save("timm", tmp_path / "m")
    backbone = Backbone(spec)
    batch = backbone.prepare(images)
    trunk = model.visual.trunk
    with torch.no_grad():
        expected = trunk.forward_features(_pixels(batch))
    torch.testing.assert_close(backbone.forward(batch)[0][0], expected, rtol=1e-5, atol=1e-5)
    assert backbone.n_prefix_tokens == trunk.num_prefix_tokens


def test_other_size_is_refused(tmp_path):
    backbone = Backbone(_save("vit", tmp_path / "m")[1])
    with pytest.raises(BackboneError, match=r"image_size=42 .*of side 28 only"):
        backbone.layout(size=42)


def test_projection_tells_embeddings_apart_and_tokens_not(tmp_path):
    model, first = _save("vit", tmp_path / "a")
    with torch.no_grad():
        model.visual.proj.add_(1)
        model.text_projection.add_(1)
    _, second = _save("vit", tmp_path / "b", model)
    assert Backbone(first).fingerprint == Backbone(second).fingerprint
    embeddings = [Backbone(f"{spec}?output=embedding") for spec in (first, second)]
    assert embeddings[0].fingerprint != embeddings[1].fingerprint


def test_activation_tells_two_backbones_apart(tmp_path):
    model, first = _save("vit", tmp_path / "a")
    _, second = _save("quick", tmp_path / "b", model)
    assert Backbone(first).fingerprint != Backbone(second).fingerprint


def test_weights_get_the_activation_that_they_were_trained_with(
    registered, tmp_path, monkeypatch, images
):
    model, _ = _save("quick", tmp_path / "m")
    file = str(tmp_path / "m" / "open_clip_model.safetensors")
    for name, tags in {
        "tiny-vit": {"openai": {"file": file, "quick_gelu": True}},
        "tiny-quick": {"laion": {"file": file}},
    }.items():
        monkeypatch.setitem(pretrained._PRETRAINED, name, tags)
    backbone = Backbone("clip:tiny-vit/openai")
    batch = backbone.prepare(images)
    mean, std = (torch.tensor(v) for v in (backbone.recipe.mean, backbone.recipe.std))
    own = ((batch.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.encode_image(own)
    got = Backbone("clip:tiny-vit/openai?output=embedding").forward(batch)[0][0]
    torch.testing.assert_close(got[:, 0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(BackboneError, match="not trained with QuickGELU"):
        Backbone("clip:tiny-quick/laion").network()


def test_every_openai_tag_of_the_library_is_built_with_quick_gelu():
    from skpool.backbones._open_clip import _activation

    models = [name for name, tag in open_clip.list_pretrained() if tag == "openai"]
    plain = [name for name in models if not name.endswith("-quickgelu")]
    assert len(plain) >= 9
    for name in models:
        assert _activation(open_clip, name, "openai") == {"force_quick_gelu": True}


def test_weights_file_beside_a_model(registered, tmp_path, images):
    _, spec = _save("vit", tmp_path / "m")
    weights = load_file(tmp_path / "m" / "open_clip_model.safetensors")
    halves = {k: v.half() if v.ndim > 1 else v for k, v in weights.items()}
    torch.save(halves, tmp_path / "half.pt")
    torch.save({"state_dict": weights}, tmp_path / "full.pt")
    recipe = Backbone(spec).recipe
    full = Backbone(f"clip:tiny-vit?weights={tmp_path}/full.pt", recipe=recipe)
    batch = full.prepare(images)
    expected = Backbone(spec).forward(batch)[0][0]
    assert torch.equal(full.forward(batch)[0][0], expected)
    half = Backbone(f"clip:tiny-vit?weights={tmp_path}/half.pt", recipe=recipe)
    assert half.forward(batch)[0][0].dtype == torch.float32
    torch.testing.assert_close(half.forward(batch)[0][0], expected, rtol=0, atol=2e-2)
    # A path after the slash is one way to write it too.
    assert (
        Backbone(f"clip:tiny-vit/{tmp_path}/full.pt", recipe=recipe).fingerprint == full.fingerprint
    )


@pytest.mark.parametrize(
    ("name", "tag"), [("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-B-16-SigLIP", "webli")]
)
def test_preprocessing_equals_open_clips_own(name, tag):
    from skpool.backbones._open_clip import _recipe

    config = open_clip.transform.merge_preprocess_dict(
        open_clip.transform.PreprocessCfg(), open_clip.get_pretrained_cfg(name, tag)
    )
    config["size"] = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    recipe = _recipe(config, name)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**config), is_train=False
    )
    for photograph in map(Image.fromarray, load_sample_images().images):
        own = transform(photograph).permute(1, 2, 0).numpy()
        pixels = torch.tensor(recipe.prepare(photograph))[None]
        got = recipe.normalize(pixels)[0].permute(1, 2, 0).numpy()
        difference = np.abs(got - own) * recipe.std * 255
        assert difference.max() < 2.01
        assert (difference > 0.01).mean() < 2e-3


def test_padding_asks_for_a_recipe(tmp_path):
    _, spec = _save("vit", tmp_path / "m", resize_mode="longest")
    with pytest.raises(BackboneError, match=r"resize_mode='longest'.*recipe=ImageRecipe"):
        Backbone(spec).network()
    assert Backbone(spec, recipe=ImageRecipe(28)).layout().n_tokens == 17


def test_training_mode_is_caught(tmp_path, images):
    backbone = Backbone(_save("resnet", tmp_path / "m")[1])
    backbone.network().module.train()
    with pytest.raises(BackboneError, match="is not frozen"):
        check_frozen(backbone, images)
    backbone.network().module.eval()


@pytest.mark.parametrize("change", ["missing", "absent"])
def test_weights_that_do_not_fill_the_model_are_refused(change, tmp_path):
    _, spec = _save("vit", tmp_path / "m")
    file = tmp_path / "m" / "open_clip_model.safetensors"
    weights = load_file(file)
    file.unlink()
    if change == "missing":
        del weights["visual.ln_post.weight"]
        save_file(weights, file)
    with pytest.raises(BackboneError, match="could not be loaded"):
        Backbone(spec).network()


@pytest.mark.parametrize("form", ["torch", "pickle"])
@pytest.mark.parametrize("place", ["directory", "option"])
def test_code_in_a_file_is_not_run(form, place, registered, tmp_path, malicious):
    _, spec = _save("vit", tmp_path / "m")
    path = malicious.write(tmp_path / "m" / "open_clip_pytorch_model.bin", form)
    if place == "directory":
        (tmp_path / "m" / "open_clip_model.safetensors").unlink()
    else:
        spec = f"clip:tiny-vit?weights={path}"
    with pytest.raises(BackboneError, match="holds code beside weights, which is never run"):
        Backbone(spec).network()
    assert not malicious.ran


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(BackboneError, match="'ViT-B-32'"):
        Backbone("clip:ViT-B-23/openai").network()
    with pytest.raises(BackboneError, match="laion2b_s34b_b79k"):
        Backbone("clip:ViT-B-32/imagenet").network()
    with pytest.raises(BackboneError, match=r"choose one of \('tokens', 'embedding'\)"):
        Backbone("clip:ViT-B-32/openai?output=logits").network()


def test_hub_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match=r"without a network, give \?weights="):
        Backbone("clip:ViT-B-32/laion2b_s34b_b79k").network()
