# SPDX-License-Identifier: BSD-3-Clause
import copy
import pickle

import numpy as np
import pytest
import torch
from nets import RECIPE, TokenNet, token_backbone
from PIL import Image
from sklearn.base import clone
from torch import nn

from skpool.backbones import Backbone, ImageRecipe, check_frozen
from skpool.exceptions import BackboneError


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(5)]


@pytest.mark.parametrize("make", [lambda: Backbone("glyph"), token_backbone])
def test_clone_and_copies_are_the_object_itself(make):
    backbone = make()
    assert clone(backbone) is backbone
    assert copy.copy(backbone) is backbone
    assert copy.deepcopy(backbone) is backbone


def test_equality_and_hash_follow_name_and_recipe():
    other = ImageRecipe(input_size=32, mean=(0.1, 0.2, 0.3))
    assert Backbone("glyph") == Backbone("glyph")
    assert hash(Backbone("glyph")) == hash(Backbone("glyph"))
    assert Backbone("glyph") != Backbone("glyph", recipe=other)
    assert token_backbone(0) == token_backbone(0)
    assert token_backbone(0) != token_backbone(1)


def test_attributes_cannot_be_changed_or_deleted():
    backbone = Backbone("glyph")
    with pytest.raises(AttributeError, match="cannot be changed"):
        backbone.spec = "other"
    with pytest.raises((AttributeError, TypeError)):
        del backbone.spec


def test_pickle_of_a_name_holds_no_weights():
    backbone = Backbone("glyph")
    backbone.network()
    data = pickle.dumps(backbone)
    assert len(data) < 1000
    assert pickle.loads(data) == backbone


def test_pickle_of_a_module_gives_equal_tokens(images):
    backbone = token_backbone()
    restored = pickle.loads(pickle.dumps(backbone))
    assert restored == backbone
    assert restored.fingerprint == backbone.fingerprint
    batch = backbone.prepare(images)
    torch.testing.assert_close(
        backbone.forward(batch)[0][0], restored.forward(batch)[0][0], rtol=0, atol=0
    )


def test_unknown_source_is_refused_naming_the_known_ones():
    with pytest.raises(BackboneError, match=r"'resnet50'.*hf:<name>"):
        Backbone("resnet50")
    with pytest.raises(BackboneError, match="write 'glyph'"):
        Backbone("glyph:large").network()


def test_from_module_is_not_changed_by_training_the_original(images):
    net = TokenNet().train()
    backbone = Backbone.from_module(net, recipe=RECIPE, patch_size=4)
    before = backbone.forward(backbone.prepare(images))[0][0]
    with torch.no_grad():
        net.norm.weight.add_(1.0)
    after = backbone.forward(backbone.prepare(images))[0][0]
    assert torch.equal(before, after)
    assert net.training
    assert net.norm.weight.requires_grad


def test_layers_are_the_inputs_and_outputs_of_the_blocks(images):
    net = TokenNet().eval()
    backbone = token_backbone()
    batch = backbone.prepare(images)
    got = backbone.forward(batch, [0, 1, 2, -1, -2])[0]
    with torch.no_grad():
        pixels = (batch.float() / 255 - 0.5) / 0.5
        patches = net.embed(pixels.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        embedded = torch.cat([net.cls_token + patches.mean(1, keepdim=True), patches], 1)
        first = net.blocks[0](embedded)
        last = net.norm(net.blocks[1](first.tanh()).tanh())
    for tensor, expected in zip(got, [embedded, first, last, last, first], strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)


def test_forward_stops_after_the_last_layer_wanted(images):
    class Net(TokenNet):
        def forward(self, images):
            super().forward(images)
            raise AssertionError("the pass went on")

    backbone = Backbone.from_module(
        Net(), recipe=RECIPE, layer_paths=["blocks.0", "blocks.1"], patch_size=4
    )
    tokens = backbone.forward(backbone.prepare(images), [1])[0][0]
    assert tokens.shape == (5, 17, 6)


def test_layer_out_of_range_is_refused_naming_the_range():
    with pytest.raises(BackboneError, match=r"layers=3 does not exist.*0 to 2"):
        token_backbone().layout(3)
    with pytest.raises(BackboneError, match="layers=-4"):
        token_backbone().layout(-4)


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((7, 4, 4), {}, (16, 7, 0, (4, 4))),
        ((9,), {}, (1, 9, 0, None)),
        ((16, 5), {}, (16, 5, 0, (4, 4))),
        ((17, 5), {}, (17, 5, 1, (4, 4))),
        ((21, 5), {"patch_size": 4}, (21, 5, 5, (4, 4))),
        ((18, 5), {"n_prefix_tokens": 2}, (18, 5, 2, (4, 4))),
        ((18, 5), {"n_prefix_tokens": 0}, (18, 5, 0, None)),
    ],
)
def test_layout_of_maps_vectors_and_tokens(shape, options, expected):
    class Constant(nn.Module):
        def forward(self, images):
            return images.new_zeros((len(images), *shape))

    layout = Backbone.from_module(Constant(), recipe=RECIPE, **options).layout()
    assert (layout.n_tokens, layout.n_features, layout.n_prefix_tokens, layout.grid) == expected


def test_map_becomes_tokens_row_by_row(images):
    net = nn.Conv2d(3, 5, 4, 4)
    backbone = Backbone.from_module(net, recipe=RECIPE)
    tokens = backbone.forward(backbone.prepare(images))[0][0]
    with torch.no_grad():
        maps = net((backbone.prepare(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
    torch.testing.assert_close(tokens[:, 1 * 4 + 2], maps[:, :, 1, 2], rtol=1e-5, atol=1e-6)


def test_size_that_patches_do_not_divide_is_refused():
    with pytest.raises(BackboneError, match=r"image_size=18 is not a multiple.*use 16"):
        token_backbone().layout(size=18)
    with pytest.raises(BackboneError, match="takes images of side 32 only"):
        Backbone("glyph").layout(size=64)


def test_unknown_layer_path_is_refused():
    with pytest.raises(BackboneError, match="layer_paths="):
        Backbone.from_module(TokenNet(), recipe=RECIPE, layer_paths=["blocks.7"])


class _Scaled(TokenNet):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, images):
        return super().forward(images) * self.factor


class _Shifted(TokenNet):
    def forward(self, images):
        return super().forward(images) + 1


def test_fingerprint_sees_weights_settings_code_and_preprocessing():
    other_recipe = ImageRecipe(input_size=16, fit="squash")
    backbones = [
        token_backbone(0),
        token_backbone(1),
        Backbone.from_module(TokenNet(0), recipe=RECIPE, patch_size=4),
        Backbone.from_module(TokenNet(0), recipe=other_recipe, patch_size=4),
        Backbone.from_module(_Scaled(2.0), recipe=RECIPE, patch_size=4),
        Backbone.from_module(_Scaled(3.0), recipe=RECIPE, patch_size=4),
        Backbone.from_module(_Shifted(), recipe=RECIPE, patch_size=4),
    ]
    assert len({backbone.fingerprint for backbone in backbones}) == len(backbones)
    assert token_backbone(0).fingerprint == token_backbone(0).fingerprint


def test_check_frozen_passes_for_frozen_networks(images):
    for backbone in (Backbone("glyph"), token_backbone()):
        report = check_frozen(backbone, images)
        assert max(report.values()) <= 1e-4


class _WithDropout(TokenNet):
    def forward(self, images):
        return nn.functional.dropout(super().forward(images), training=True)


class _WithBatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return self.norm(images)


class _Stateful(TokenNet):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        return super().forward(images) * self.calls


@pytest.mark.parametrize("make", [_WithDropout, _Stateful])
def test_check_frozen_catches_what_is_not_a_function(make, images):
    torch.manual_seed(0)
    backbone = Backbone.from_module(make(), recipe=RECIPE, patch_size=4)
    with pytest.raises(BackboneError, match="is not frozen: repeated differs"):
        check_frozen(backbone, images)


def test_check_frozen_catches_training_mode(images):
    backbone = Backbone.from_module(_WithBatchNorm(), recipe=RECIPE)
    check_frozen(backbone, images)
    backbone.network().module.train()
    with pytest.raises(BackboneError, match=r"norm.running_mean changed"):
        check_frozen(backbone, images)
