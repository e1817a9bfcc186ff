# SPDX-License-Identifier: BSD-3-Clause
"""torchvision's own code, with small models registered beside its own."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from skpool.backbones import Backbone, ImageRecipe, check_frozen
from skpool.exceptions import BackboneError

try:
    import torchvision
    from torchvision.models import _api
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.models.vgg import make_layers
except (ImportError, RuntimeError) as error:
    torchvision = None
    pytestmark = pytest.mark.skip(reason=f"torchvision cannot be imported: {error}")

RECIPE = ImageRecipe(32, (0.5,) * 3, (0.25,) * 3, fit="squash")


def _tiny_models():
    """Small members of the families, under the class names of torchvision."""
    models = torchvision.models
    conv, inverted = models.convnext.CNBlockConfig, models.mobilenetv3.InvertedResidualConfig
    mobile = [
        inverted(8, 3, 16, 8, True, "RE", 2, 1, 0.5),
        inverted(8, 3, 16, 16, 0, "HS", 2, 1, 0.5),
    ]
    stage = models.efficientnet.MBConvConfig
    params = models.regnet.BlockParams.from_init_params(2, 8, 16, 2.0, 8)
    return {
        "tiny_resnet": lambda **k: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], **k),
        "tiny_convnext": lambda **k: models.ConvNeXt(
            [conv(4, 8, 1), conv(8, 16, 1), conv(16, 24, 1), conv(24, None, 1)], **k
        ),
        "tiny_swin": lambda **k: models.SwinTransformer(
            [4, 4], 8, [1, 2, 1, 1], [1, 1, 2, 2], [4, 4], **k
        ),
        "tiny_vit": lambda image_size=32, **k: models.VisionTransformer(
            image_size, 8, 3, 2, 24, 32, **k
        ),
        "tiny_densenet": lambda **k: models.DenseNet(4, (1, 1, 1, 1), 8, **k),
        "tiny_vgg": lambda **k: models.VGG(make_layers([8, "M", 8, "M"]), **k),
        "tiny_mobilenet_v2": lambda **k: models.MobileNetV2(
            width_mult=0.25, inverted_residual_setting=[[1, 16, 1, 1], [2, 24, 1, 2]], **k
        ),
        "tiny_mobilenet_v3": lambda **k: models.MobileNetV3(mobile, 32, **k),
        "tiny_efficientnet": lambda **k: models.EfficientNet(
            [stage(1, 3, 1, 8, 8, 1), stage(2, 3, 2, 8, 16, 1)], 0.1, last_channel=32, **k
        ),
        "tiny_regnet": lambda **k: models.RegNet(params, **k),
        "tiny_shufflenet": lambda **k: models.ShuffleNetV2([1, 1, 1], [8, 8, 16, 32, 32], **k),
        "tiny_googlenet": lambda **k: models.GoogLeNet(init_weights=False, aux_logits=False, **k),
    }


# Layers from 1 on, by the names that torchvision's feature extraction gives them.
NODES = {
    "tiny_resnet": [f"layer{k}" for k in (1, 2, 3, 4)],
    "tiny_convnext": [f"features.{k}" for k in (1, 3, 5, 7)],
    "tiny_swin": ["features.1", "features.3", "features.5", "norm"],
    "tiny_vit": ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1", "encoder.ln"],
    "tiny_densenet": [f"features.denseblock{k}" for k in (1, 2, 3, 4)] + ["relu"],
    "tiny_vgg": ["features.2", "features.5"],
    "tiny_mobilenet_v2": ["features.1", "features.2", "features.3"],
    "tiny_mobilenet_v3": ["features.1", "features.2", "features.3"],
    "tiny_efficientnet": ["features.1", "features.2", "features.3"],
    "tiny_regnet": ["trunk_output.block1", "trunk_output.block2"],
    "tiny_shufflenet": ["stage2", "stage3", "stage4", "conv5"],
}


@pytest.fixture
def zoo(monkeypatch):
    """The small models, in torchvision's registry."""
    from torchvision.models import ResNet50_Weights

    for name, make in _tiny_models().items():

        def build(*, weights: ResNet50_Weights | None = None, make=make, **options):
            return make(**options)

        build.__module__ = "torchvision.models.tiny"
        monkeypatch.setitem(_api.BUILTIN_MODELS, name, build)
    return _tiny_models()


def _save(zoo, name, path, **options):
    torch.manual_seed(0)
    model = zoo[name](**options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    if name == "tiny_vgg":
        # A hundred million weights, which are left out anyhow.
        weights = {key: value for key, value in weights.items() if "classifier" not in key}
    save_file(weights, path)
    return model


def _as_tokens(output, channels_last):
    if output.ndim == 3:
        return output
    return output.flatten(1, 2) if channels_last else output.flatten(2).transpose(1, 2)


def _pixels(batch):
    return ((batch.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", NODES)
def test_layers_equal_torchvisions_feature_extraction(name, zoo, tmp_path, images):
    size = 64 if name == "tiny_swin" else 32
    options = {"init_weights": False} if name == "tiny_vgg" else {}
    model = _save(zoo, name, tmp_path / "weights.safetensors", **options)
    recipe = ImageRecipe(size, RECIPE.mean, RECIPE.std, fit="squash")
    backbone = Backbone(f"torchvision:{name}?weights={tmp_path}/weights.safetensors", recipe=recipe)
    batch = backbone.prepare(images)
    with torch.no_grad():
        own = create_feature_extractor(model, NODES[name])(_pixels(batch))
    layers = range(1, len(NODES[name]) + 1)
    assert backbone.layers == range(len(NODES[name]) + 1)
    got = backbone.forward(batch, layers)[0]
    for k, node in zip(layers, NODES[name], strict=True):
        expected = _as_tokens(own[node], name == "tiny_swin")
        torch.testing.assert_close(got[k - 1], expected, rtol=1e-5, atol=1e-5)
        assert backbone.layout(k).n_features == expected.shape[2]
    is_vit = name == "tiny_vit"
    assert backbone.n_prefix_tokens == is_vit
    assert backbone.layout().cls_index == (0 if is_vit else None)
    assert backbone.recommended_pooling == ("cls" if is_vit else "mean")
    check_frozen(backbone, images)


def test_first_layer_is_what_the_stem_gives(zoo, tmp_path, images):
    model = _save(zoo, "tiny_resnet", tmp_path / "w.safetensors")
    backbone = Backbone(f"torchvision:tiny_resnet?weights={tmp_path}/w.safetensors", recipe=RECIPE)
    batch = backbone.prepare(images)
    with torch.no_grad():
        expected = create_feature_extractor(model, ["maxpool"])(_pixels(batch))["maxpool"]
    got = backbone.forward(batch, [0])[0][0]
    torch.testing.assert_close(got, _as_tokens(expected, False), rtol=1e-5, atol=1e-5)


def test_token_norm_none_of_a_transformer_is_the_last_block(zoo, tmp_path, images):
    model = _save(zoo, "tiny_vit", tmp_path / "w.safetensors")
    backbone = Backbone(f"torchvision:tiny_vit?weights={tmp_path}/w.safetensors", recipe=RECIPE)
    batch = backbone.prepare(images)
    node = "encoder.layers.encoder_layer_2"
    with torch.no_grad():
        own = create_feature_extractor(model, [node])(_pixels(batch))[node]
        normed = model.encoder.ln(own)
    got = backbone.forward(batch, norm="none")[0][0]
    torch.testing.assert_close(got, own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone.forward(batch)[0][0], normed, rtol=1e-5, atol=1e-5)


def test_layers_of_different_width_cannot_share_the_last_norm(zoo, tmp_path, images):
    _save(zoo, "tiny_swin", tmp_path / "w.safetensors")
    backbone = Backbone(f"torchvision:tiny_swin?weights={tmp_path}/w.safetensors", recipe=RECIPE)
    with pytest.raises(BackboneError, match="differ in width; use token_norm='final'"):
        backbone.forward(backbone.prepare(images), norm="all")


def test_other_size_is_possible_for_convolutions_and_refused_by_transformers(zoo, tmp_path):
    for name in ("tiny_resnet", "tiny_vit"):
        _save(zoo, name, tmp_path / f"{name}.safetensors")
    specs = [
        f"torchvision:{n}?weights={tmp_path}/{n}.safetensors" for n in ("tiny_resnet", "tiny_vit")
    ]
    assert Backbone(specs[0], recipe=RECIPE).layout(size=96).grid == (3, 3)
    with pytest.raises(BackboneError, match=r"image_size=64 .*of side 32 only"):
        Backbone(specs[1], recipe=RECIPE).layout(size=64)


def test_half_precision_on_disk_is_computed_in_float32(zoo, tmp_path, images):
    model = _save(zoo, "tiny_resnet", tmp_path / "full.safetensors")
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    rounded = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    save_file(half, tmp_path / "half.safetensors")
    save_file(rounded, tmp_path / "rounded.safetensors")
    got = {}
    for name in ("half", "rounded"):
        spec = f"torchvision:tiny_resnet?weights={tmp_path}/{name}.safetensors"
        backbone = Backbone(spec, recipe=RECIPE)
        got[name] = (backbone.forward(backbone.prepare(images))[0][0], backbone.fingerprint)
    assert got["half"][0].dtype == torch.float32
    assert torch.equal(got["half"][0], got["rounded"][0])
    assert got["half"][1] == got["rounded"][1]


def test_classifier_does_not_tell_two_backbones_apart(zoo, tmp_path):
    model = _save(zoo, "tiny_resnet", tmp_path / "a.safetensors")
    weights = model.state_dict()
    weights["fc.weight"], weights["fc.bias"] = torch.ones(7, 512), torch.ones(7)
    torch.save({"state_dict": weights}, tmp_path / "b.pth")
    first = Backbone(f"torchvision:tiny_resnet?weights={tmp_path}/a.safetensors", recipe=RECIPE)
    second = Backbone(f"torchvision:tiny_resnet?weights={tmp_path}/b.pth", recipe=RECIPE)
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fill_the_model_are_refused(change, zoo, tmp_path):
    weights = _save(zoo, "tiny_resnet", tmp_path / "w.safetensors").state_dict()
    if change == "missing":
        del weights["layer1.0.conv1.weight"]
    elif change == "unknown":
        weights["layer9.weight"] = torch.zeros(2)
    else:
        weights["bn1.weight"] = torch.zeros(3)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=r"do not fill the model.*(layer1|layer9|bn1)"):
        Backbone(
            f"torchvision:tiny_resnet?weights={tmp_path}/w.safetensors", recipe=RECIPE
        ).network()


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_file_is_not_run(form, zoo, tmp_path, malicious):
    path = malicious.write(tmp_path / "w.pth", form)
    with pytest.raises(BackboneError, match="holds code beside weights, which is never run"):
        Backbone(f"torchvision:tiny_resnet?weights={path}", recipe=RECIPE).network()
    assert not malicious.ran


def test_code_in_torchs_download_cache_is_not_run(tmp_path, malicious, monkeypatch):
    entry = torchvision.models.ResNet18_Weights.DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    malicious.write(cache / entry.url.rsplit("/", 1)[-1])
    with pytest.raises(BackboneError, match="never run"):
        Backbone("torchvision:resnet18").network()
    assert not malicious.ran


def test_weights_in_torchs_download_cache_are_used_with_their_preprocessing(
    tmp_path, monkeypatch, images
):
    entry = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(weights=None).eval()
    file = cache / entry.url.rsplit("/", 1)[-1]
    torch.save(model.state_dict(), file)
    backbone = Backbone("torchvision:shufflenet_v2_x0_5")
    assert backbone.revision == "IMAGENET1K_V1"
    assert backbone.recipe.input_size == entry.transforms().crop_size[0]
    by_name = Backbone(f"torchvision:shufflenet_v2_x0_5?weights={entry.name}")
    by_file = Backbone(f"torchvision:shufflenet_v2_x0_5?weights={file}")
    assert by_name.fingerprint == by_file.fingerprint == backbone.fingerprint


@pytest.mark.parametrize(
    "entry",
    [
        "ResNet50_Weights.IMAGENET1K_V2",
        "ResNet18_Weights.IMAGENET1K_V1",
        "ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1",
    ],
)
def test_preprocessing_equals_torchvisions_own(entry):
    from skpool.backbones._torchvision import _recipe

    weights = torchvision.models.get_weight(entry)
    recipe, transform = _recipe(weights, "x"), weights.transforms()
    for photograph in map(Image.fromarray, load_sample_images().images):
        own = transform(photograph).permute(1, 2, 0).numpy()
        pixels = torch.tensor(recipe.prepare(photograph))[None]
        got = recipe.normalize(pixels)[0].permute(1, 2, 0).numpy()
        # A grey level or two, where resize and crop in one step round differently.
        difference = np.abs(got - own) * recipe.std * 255
        assert difference.max() < 2.01
        assert (difference > 0.01).mean() < 1e-3


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(BackboneError, match="'resnet50'"):
        Backbone("torchvision:resnet_50").network()
    with pytest.raises(BackboneError, match=r"names neither a file.*IMAGENET1K_V2"):
        Backbone("torchvision:resnet50?weights=IMAGENET22K").network()
    with pytest.raises(BackboneError, match=r"\?weights=\.\.\."):
        Backbone("torchvision:resnet50?pretrained=1").network()


def test_unknown_family_points_to_from_module(zoo):
    with pytest.raises(BackboneError, match=r"is a GoogLeNet.*from_module"):
        Backbone("torchvision:tiny_googlenet").network()


def test_own_weights_need_their_preprocessing(zoo, tmp_path):
    _save(zoo, "tiny_resnet", tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=r"preprocessing is unknown.*recipe=ImageRecipe"):
        Backbone(f"torchvision:tiny_resnet?weights={tmp_path}/w.safetensors").network()
