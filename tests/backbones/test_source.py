# SPDX-License-Identifier: BSD-3-Clause
"""What all sources share: names and options, weights files, the table of families, the page."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from skpool.backbones import Backbone, ImageRecipe
from skpool.backbones._network import Network
from skpool.backbones._recipes import BACKBONE_RECIPES, FamilyRecipe, family_of, usual_pooling
from skpool.backbones._source import explained, fill, near, read_weights, split_options
from skpool.exceptions import BackboneError, MissingDependencyError
from skpool.pooling import TokenPooling
from skpool.stores import TokenArray

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sources.md"


@pytest.mark.parametrize(
    ("spec", "module", "extra"),
    [
        ("timm:resnet18", "timm", "timm"),
        ("torchvision:resnet18", "torchvision", "torchvision"),
        ("clip:ViT-B-32/openai", "open_clip", "clip"),
        ("hf:a/b", "transformers", "hf"),
    ],
)
def test_missing_library_names_the_extra(spec, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'skpool\[{extra}\]'"):
        Backbone(spec).network()


def test_options_are_taken_off_a_name():
    assert split_options("timm", "a/b", ["weights"]) == ("a/b", {})
    name, options = split_options("x", "m?weights=/a+b/c=d%20e.pth&output=z", ["weights", "output"])
    assert (name, options) == ("m", {"weights": "/a+b/c=d%20e.pth", "output": "z"})


@pytest.mark.parametrize("name", ["m?weight=a", "m?weights=", "m?weights", "m?"])
def test_unknown_or_empty_options_are_refused(name):
    with pytest.raises(BackboneError, match=r"\?weights=\.\.\."):
        split_options("timm", name, ["weights"])


def test_near_names_are_those_spelled_alike():
    assert near("resnet5", ["resnet50", "vgg11"]) == "did you mean 'resnet50'?"
    assert near("zzz", ["resnet50"]) == "check its spelling."


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_torch_files_are_read_with_or_without_a_wrapping(key, tmp_path):
    weights = {"a": torch.arange(3.0)}
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "w.pth")
    assert torch.equal(read_weights(tmp_path / "w.pth")["a"], weights["a"])


def test_torch_file_without_weights_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="no table of weights"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_torch_file_is_not_run(form, tmp_path, malicious):
    path = malicious.write(tmp_path / "w.pth", form)
    with pytest.raises(BackboneError, match="never run"), explained("x:y", "do this."):
        read_weights(path)
    assert not malicious.ran


def test_malicious_file_of_these_tests_does_bite(tmp_path, malicious):
    # Without which the tests above and beside would prove nothing.
    torch.load(malicious.write(tmp_path / "w.pth"), weights_only=False)
    assert malicious.ran


def test_truncated_safetensors_is_one_sentence(tmp_path):
    save_file({"a": torch.arange(100.0)}, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[:150])
    with pytest.raises(BackboneError, match=r"^'x:y' could not be loaded \(.*\); do this\.$"):
        with explained("x:y", "do this."):
            read_weights(tmp_path / "w.safetensors")


def test_interruption_is_not_explained_away():
    with pytest.raises(KeyboardInterrupt), explained("x:y", "do this."):
        raise KeyboardInterrupt


def test_weights_fill_all_of_a_module_or_nothing():
    module = nn.Linear(2, 2)
    before = module.weight.clone()
    for weights in (
        {"weight": torch.ones(2, 2)},
        {"weight": torch.ones(2, 2), "bias": torch.ones(3)},
        {"weight": torch.ones(2, 2), "bias": torch.ones(2), "other": torch.ones(2)},
    ):
        with pytest.raises(BackboneError, match="do not fill the model"):
            fill(module, weights, spec="x:y")
        assert torch.equal(module.weight, before)
    head = {"weight": torch.ones(2, 2), "bias": torch.ones(2), "fc.weight": torch.ones(9)}
    fill(module, head, spec="x:y", heads=("fc.",))
    assert torch.equal(module.weight, torch.ones(2, 2))


# The table of families.


def test_recommended_pooling_is_a_strategy_of_token_pooling():
    tokens = np.random.default_rng(0).normal(size=(2, 4, 3))
    known = {family.pooling for family in BACKBONE_RECIPES.values()} - {None}
    assert known == {"cls", "mean", ("cls", "mean")}
    with_cls = TokenArray.from_array(np.concatenate([tokens[:, :1], tokens], 1), n_prefix_tokens=1)
    expected = {"cls": tokens[:, 0], "mean": tokens.mean(1)}
    for strategy in known:
        parts = (strategy,) if isinstance(strategy, str) else strategy
        wanted = np.concatenate([expected[part] for part in parts], axis=1)
        np.testing.assert_allclose(TokenPooling(strategy).fit_transform(with_cls), wanted)


def test_unknown_families_claim_nothing():
    assert family_of("one_of_my_own") == FamilyRecipe()
    assert family_of("one_of_my_own").recipe(224) is None
    assert usual_pooling("one_of_my_own", None) is None


@pytest.mark.parametrize(
    ("architecture", "global_pool", "expected"),
    [
        ("vit_small_patch14_dinov2", "token", ("cls", "mean")),
        ("vit_small_patch14_reg4_dinov2", "token", ("cls", "mean")),
        ("vit_small_patch16_dinov3", "avg", ("cls", "mean")),
        ("vit_base_patch16_224", "token", "cls"),
        ("resnet50", "avg", "mean"),
        ("vit_base_patch16_siglip_224", "map", None),
    ],
)
def test_pooling_of_timms_models_is_the_authors_or_timms(architecture, global_pool, expected):
    assert usual_pooling(architecture, global_pool) == expected


# What a network does with what a source found.


class _InPlace(nn.Module):
    """The second block writes into the output of the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 4, 4), nn.ReLU(inplace=True)

    def forward(self, images):
        return self.second(self.first(images))


def test_layers_are_not_changed_by_later_layers_that_write_in_place(images):
    net = _InPlace()
    recipe = ImageRecipe(28)
    backbone = Backbone.from_module(net, recipe=recipe, layer_paths=["first", "second"])
    batch = backbone.prepare(images)
    together = backbone.forward(batch, [0, 1, 2])[0]
    for layer, tokens in enumerate(together):
        assert torch.equal(tokens, backbone.forward(batch, [layer])[0][0])
    assert together[1].min() < 0


class _WithUnsaved(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, images):
        return images * self.scale


def test_buffers_that_are_not_saved_count_unless_they_follow_from_the_settings():
    recipe = ImageRecipe(28)
    modules = [Backbone.from_module(_WithUnsaved(scale), recipe=recipe) for scale in (1.0, 2.0)]
    assert modules[0].fingerprint != modules[1].fingerprint
    named = [Network(_WithUnsaved(scale), settings="a", only_saved=True) for scale in (1.0, 2.0)]
    assert named[0].fingerprint == named[1].fingerprint


@pytest.mark.parametrize("channels_last", [False, True])
def test_axis_of_the_features_is_seen_from_the_shape(channels_last, images):
    class Net(nn.Module):
        def forward(self, images):
            maps = nn.functional.avg_pool2d(images, 7)
            return maps.permute(0, 2, 3, 1) if channels_last else maps

    backbone = Backbone.from_module(Net(), recipe=ImageRecipe(28))
    batch = backbone.prepare(images)
    expected = nn.functional.avg_pool2d(backbone.recipe.normalize(batch), 7).flatten(2).mT
    torch.testing.assert_close(backbone.forward(batch)[0][0], expected)
    assert backbone.layout().grid == (4, 4)


def test_size_that_a_network_cannot_take_is_one_sentence():
    class Net(nn.Module):
        def forward(self, images):
            return images.reshape(len(images), 3, 28, 28)

    backbone = Backbone.from_module(Net(), recipe=ImageRecipe(28))
    with pytest.raises(BackboneError, match=r"image_size=30 is not possible.*trained with"):
        backbone.layout(size=30)


def test_modules_of_ones_own_claim_no_pooling():
    assert Backbone.from_module(_InPlace(), recipe=ImageRecipe(28)).recommended_pooling is None


# The page.


def test_snippets_of_the_page_on_sources_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, "sources.md", "exec"), names)
        # A comment behind an expression says what it gives.
        for line in block.strip().splitlines():
            code, mark, said = line.partition("  # ")
            if mark and "=" not in code:
                assert repr(eval(code, names)) == said
    for source in ("hf", "timm", "torchvision", "clip"):
        specs = [v.spec for v in names.values() if isinstance(v, Backbone)]
        assert any(spec.startswith(source) for spec in specs)
