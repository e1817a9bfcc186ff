# SPDX-License-Identifier: BSD-3-Clause
"""Random networks: determined by their names, drawn without touching anything global."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from skpool.backbones import (
    Backbone,
    _backbone,
    check_frozen,
    random_network,
    random_recipe,
)
from skpool.backbones._random import ARCHITECTURES, INITS, Standardise, open_random, sine_positions
from skpool.exceptions import BackboneError

ARCHS = sorted(ARCHITECTURES)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(_backbone.SOURCES, "random", open_random)


def images(n=5, side=32):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def frozen(network, input_size=32):
    return Backbone.from_module(
        network,
        recipe=random_recipe(input_size),
        layer_paths=network.layer_paths,
        patch_size=network.patch_size,
        n_prefix_tokens=network.n_prefix_tokens,
    )


def weights(network):
    return {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("arch", ARCHS)
def test_same_seed_gives_the_same_bytes_and_another_does_not(arch, init):
    first = random_network(arch, init=init, seed=3)
    torch.rand(7)
    assert weights(random_network(arch, init=init, seed=3)) == weights(first)
    other = weights(random_network(arch, init=init, seed=4))
    drawn = [name for name, _ in first.named_parameters()]
    assert all(other[name] != weights(first)[name] for name in drawn)


@pytest.mark.parametrize("arch", ARCHS)
def test_global_generator_is_neither_read_nor_changed(arch):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = random_network(arch)(images())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(random_network(arch)(images()), first)


def test_name_means_the_same_in_another_process():
    code = (
        "from skpool.backbones import _backbone, Backbone\n"
        "from skpool.backbones._random import open_random\n"
        "_backbone.SOURCES['random'] = open_random\n"
        "print(Backbone('random:vit?width=8&seed=5').fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == Backbone("random:vit?width=8&seed=5").fingerprint


@pytest.mark.parametrize(
    "name, arch, options, size",
    [
        ("conv", "conv", {}, 32),
        (
            "vit?width=16&depth=2&patch_size=4",
            "vit",
            {"width": 16, "depth": 2, "patch_size": 4},
            32,
        ),
        ("mlp?input_size=8&init=kaiming", "mlp", {"input_size": 8, "init": "kaiming"}, 8),
    ],
)
def test_name_is_the_network_of_its_numbers(name, arch, options, size):
    named, built = Backbone(f"random:{name}"), frozen(random_network(arch, **options), size)
    assert named.fingerprint == built.fingerprint
    assert named.recipe == built.recipe and named.layers == built.layers


def test_other_names_are_other_networks():
    names = ["conv", "conv?seed=1", "conv?width=32", "conv?depth=2", "conv?init=kaiming", "vit"]
    names += ["vit?patch_size=4", "mlp", "mlp?input_size=16", "conv?input_size=16"]
    assert len({Backbone(f"random:{name}").fingerprint for name in names}) == len(names)


@pytest.mark.parametrize(
    "name, match",
    [
        ("resnet", "conv"),
        ("", "conv"),
        ("conv?width", "width"),
        ("conv?colour=3", "colour"),
        ("conv?width=wide", "width"),
        ("conv?init=zeros", "kaiming"),
        ("conv?width=0", "width"),
        ("conv?seed=-1", "seed"),
        ("conv?depth=6", "depth=5"),
        ("vit?width=6", "width=4"),
        ("vit?patch_size=5", "divisor"),
    ],
)
def test_bad_names_are_refused_with_the_remedy(name, match):
    with pytest.raises(BackboneError, match=match):
        Backbone(f"random:{name}").network()


def test_dense_network_refuses_another_size():
    with pytest.raises(BackboneError, match="input_size=16"):
        Backbone("random:mlp").layout(-1, 16)


@pytest.mark.parametrize(
    "arch, prefix, grid", [("conv", 0, (4, 4)), ("vit", 1, (4, 4)), ("mlp", 0, None)]
)
def test_layout_is_that_of_the_architecture(arch, prefix, grid):
    layout = Backbone(f"random:{arch}?width=16").layout()
    assert (layout.n_prefix_tokens, layout.grid, layout.n_features) == (prefix, grid, 16)


@pytest.mark.parametrize("arch", ARCHS)
def test_network_is_frozen_and_each_image_is_by_itself(arch):
    backbone = Backbone(f"random:{arch}?width=16")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    check_frozen(backbone, [Image.fromarray(image) for image in pixels])


# Weights and layers, against torch.


def test_orthogonal_weights_are_orthogonal_of_gain_two():
    for name, weight in random_network("mlp", width=32, input_size=8).named_parameters():
        gram = weight @ weight.T
        np.testing.assert_allclose(gram, 2 * torch.eye(32), atol=1e-4, err_msg=name)


def test_kaiming_weights_have_variance_two_over_fan_in():
    network = random_network("conv", width=256, depth=2, init="kaiming")
    weight = network.get_parameter("blocks.1.conv.weight")
    assert float(weight.var()) == pytest.approx(2 / (256 * 9), rel=0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-3)


def test_conv_is_convolution_batch_norm_relu_and_max_pool():
    network = random_network("conv", width=8, depth=2)
    network.calibrate(lambda: [images(20)])
    layers = []
    for (mean, scale), n_in, block in zip(network.calibration, (3, 8), network.blocks, strict=True):
        conv, norm = nn.Conv2d(n_in, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, eps=0)
        conv.weight.data = block.conv.weight.data
        norm.running_mean.data = torch.from_numpy(mean)
        norm.running_var.data = torch.from_numpy(scale) ** 2
        layers += [conv, norm, nn.ReLU(), nn.MaxPool2d(2)]
    reference = nn.Sequential(*layers).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images()), reference(images()), rtol=1e-4, atol=1e-5)


def test_positions_are_distinct_and_of_equal_length():
    positions = sine_positions(5, 7, 16)
    assert positions.shape == (35, 16)
    torch.testing.assert_close(positions.square().sum(1), torch.full((35,), 8.0))
    assert torch.cdist(positions, positions).fill_diagonal_(9).min() > 0.1
    rows = positions.view(5, 7, 16)
    # Half of the numbers tell the row, half the column.
    assert torch.equal(rows[:, :1, :8].expand(5, 7, 8), rows[..., :8])
    assert torch.equal(rows[:1, :, 8:].expand(5, 7, 8), rows[..., 8:])


def test_patches_of_a_transformer_are_told_apart_by_place():
    tokens = random_network("vit", width=16)(torch.zeros(1, 3, 32, 32))[0, 1:]
    assert torch.pdist(tokens).min() > 1e-3


# Calibration.


@pytest.mark.parametrize("arch", ARCHS)
def test_calibrated_layers_have_mean_zero_and_deviation_one(arch):
    network, batches = random_network(arch, width=8), images(24).split(7)
    network.calibrate(lambda: iter(batches))
    outputs = {}
    for k, norm in enumerate(network.norms):
        norm.register_forward_hook(lambda m, a, out, k=k: outputs.setdefault(k, []).append(out))
    for batch in batches:
        network(batch)
    n_layers = {"conv": 3, "mlp": 3, "vit": 4}[arch]
    assert len(outputs) == n_layers
    for parts in outputs.values():
        values = torch.cat(parts)
        dims = (0, 2, 3) if values.ndim == 4 else tuple(range(values.ndim - 1))
        mean, deviation = values.mean(dims), values.std(dims, unbiased=False)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(deviation, torch.ones_like(mean), atol=1e-4, rtol=0)


def test_calibration_does_not_depend_on_the_batches():
    one, many = random_network("conv", width=8), random_network("conv", width=8)
    one.calibrate(lambda: [images(24)])
    many.calibrate(lambda: images(24).split(5))
    for a, b in zip(one.calibration, many.calibration, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_calibrating_again_forgets_the_first():
    network, fresh = random_network("conv", width=8), random_network("conv", width=8)
    network.calibrate(lambda: [3 * images(9) + 1]).calibrate(lambda: [images(24)])
    fresh.calibrate(lambda: [images(24)])
    assert weights(network) == weights(fresh)


def test_channel_without_variation_is_left_at_its_scale():
    network = random_network("conv", width=8).calibrate(lambda: [torch.zeros(3, 3, 32, 32)])
    for mean, scale in network.calibration:
        assert np.isfinite(mean).all()
        np.testing.assert_array_equal(scale, 1)


def test_calibration_is_part_of_the_fingerprint():
    plain = random_network("conv", width=8)
    calibrated = random_network("conv", width=8).calibrate(lambda: [images(24)])
    assert frozen(plain).fingerprint != frozen(calibrated).fingerprint
    copy = random_network("conv", width=8)
    copy.calibration = calibrated.calibration
    assert frozen(copy).fingerprint == frozen(calibrated).fingerprint


def test_standardisation_takes_channels_where_they_stand():
    layer = Standardise(2)
    layer.mean.copy_(torch.tensor([1.0, 2.0]))
    layer.scale.copy_(torch.tensor([1.0, 4.0]))
    maps = torch.arange(8.0).view(1, 2, 2, 2)
    torch.testing.assert_close(layer(maps)[0, 1], (maps[0, 1] - 2) / 4)
    tokens = torch.tensor([[[1.0, 6.0]]])
    torch.testing.assert_close(layer(tokens), torch.tensor([[[0.0, 1.0]]]))
