# SPDX-License-Identifier: BSD-3-Clause
"""Several layers in one pass, each of them kept by itself."""

import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from nets import RECIPE, TokenNet, counting_backbone, token_backbone
from torch import nn

from skpool.backbones import Backbone
from skpool.exceptions import BackboneError
from skpool.extraction import FeatureExtractor
from skpool.pooling import GeMPooling, TokenPooling
from skpool.stores import FeatureStore, TokenArray, default_cache


@pytest.fixture(autouse=True)
def clean_cache():
    default_cache().clear()
    yield
    default_cache().clear()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (23, 16, 16, 3), dtype=np.uint8)


def _by_hand(pixels, *, norm="final"):
    """All layers of TokenNet, written out."""
    net = TokenNet()
    with torch.no_grad():
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        patches = net.embed(images).flatten(2).transpose(1, 2)
        embedded = torch.cat([net.cls_token + patches.mean(1, keepdim=True), patches], 1)
        # A block is a Linear; its output is taken before the tanh, which stands outside of it.
        first = net.blocks[0](embedded)
        second = net.blocks[1](first.tanh())
        output = net.norm(second.tanh())
        # The last block of the registered ones gives layer 2 where the norm is left out.
        layers = [embedded, first, second if norm == "none" else output]
        if norm == "all":
            layers = [net.norm(embedded), net.norm(first), output]
    return torch.stack(layers, 1).numpy()


def _normed_backbone():
    """TokenNet whose final norm is known, as that of a transformer of a library is."""
    from skpool.backbones._image_network import ImageNetwork

    backbone = token_backbone()
    net = TokenNet()
    network = ImageNetwork(net, RECIPE, blocks=list(net.blocks), final_norm=net.norm, patch_size=4)
    backbone.network()
    from skpool.backbones import _backbone

    _backbone._loaded[(backbone.spec, RECIPE, "cpu", False)] = network
    return backbone


@pytest.fixture
def normed_backbone():
    from skpool.backbones import _backbone

    before = dict(_backbone._loaded)
    yield _normed_backbone()
    _backbone._loaded.clear()
    _backbone._loaded.update(before)


@pytest.mark.parametrize("layers", [[0, 1, 2], [-1], [2, 0], [-3, 1]])
def test_several_layers_equal_the_networks_own(layers, pixels):
    tokens = FeatureExtractor(token_backbone(), layers=layers).fit_transform(pixels)
    assert tokens.shape == (23, len(layers), 17, 6)
    np.testing.assert_allclose(np.asarray(tokens), _by_hand(pixels)[:, layers], atol=1e-5)


@pytest.mark.parametrize("norm", ["final", "all", "none"])
def test_the_final_norm_goes_where_it_was_asked_for(norm, normed_backbone, pixels):
    extractor = FeatureExtractor(normed_backbone, layers=[0, 1, -1], token_norm=norm)
    got = np.asarray(extractor.fit_transform(pixels))
    np.testing.assert_allclose(got, _by_hand(pixels, norm=norm), atol=1e-5)


def test_a_norm_that_is_not_there_is_refused(pixels):
    with pytest.raises(BackboneError, match="token_norm='all'"):
        FeatureExtractor(token_backbone(), token_norm="all").fit(pixels)


def test_several_layers_cost_one_pass_and_serve_each_alone(pixels, tmp_path):
    count = tmp_path / "count"
    backbone = counting_backbone(count)
    whole = np.asarray(FeatureExtractor(backbone, layers=[0, 1, 2]).fit_transform(pixels))
    assert count.stat().st_size == len(pixels)
    for layer in (0, 1, -1):
        alone = np.asarray(FeatureExtractor(backbone, layers=layer).fit_transform(pixels[::-1]))
        np.testing.assert_array_equal(alone, whole[::-1, layer])
    assert count.stat().st_size == len(pixels)


def test_one_of_several_layers_is_a_pass_for_all(pixels, tmp_path):
    count = tmp_path / "count"
    tokens = FeatureExtractor(counting_backbone(count), layers=[0, -1]).fit_transform(pixels)
    pooled = [TokenPooling().fit_transform(tokens.layer(place)) for place in (0, 1)]
    assert count.stat().st_size == len(pixels)
    expected = _by_hand(pixels)[:, [0, 2], 1:].mean(2)
    np.testing.assert_allclose(np.stack(pooled, 1), expected, atol=1e-5)


def test_only_missing_layers_are_stored_again(pixels, tmp_path):
    store = FeatureStore(tmp_path / "store")
    backbone = token_backbone()
    np.asarray(FeatureExtractor(backbone, layers=1, store=store).fit_transform(pixels))
    np.asarray(FeatureExtractor(backbone, layers=[0, 1], store=store).fit_transform(pixels))
    assert sorted(store.info()["n_rows"].values()) == [23, 23]


def test_two_threads_share_one_pass_over_several_layers(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (600, 16, 16, 3), dtype=np.uint8)
    count = tmp_path / "count"
    backbone = counting_backbone(count)
    results = {}

    def run(name):
        # Two objects on one directory, as two processes have.
        with FeatureStore(tmp_path / "store") as store:
            extractor = FeatureExtractor(backbone, layers=[0, -1], store=store)
            results[name] = np.asarray(extractor.fit_transform(pixels))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results[0], results[1])
    assert count.stat().st_size == len(pixels)


def test_views_and_class_tokens_of_several_layers(pixels):
    expected = _by_hand(pixels)
    extractor = FeatureExtractor(token_backbone(), layers=[0, 2])
    tokens = extractor.fit_transform(pixels)
    np.testing.assert_allclose(np.asarray(tokens[3:7]), expected[3:7][:, [0, 2]], atol=1e-5)
    np.testing.assert_allclose(tokens.cls, expected[:, [0, 2], 0], atol=1e-5)
    np.testing.assert_allclose(np.asarray(tokens.patches.layer(1)), expected[:, 2, 1:], atol=1e-5)
    extractor.set_params(tokens="cls")
    np.testing.assert_allclose(extractor.fit_transform(pixels), expected[:, [0, 2], 0], atol=1e-5)


class _Pyramid(nn.Module):
    """Two convolutions whose outputs have unequal width."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 7, 2, 2)

    def forward(self, images):
        return self.second(self.first(images))


def test_layers_of_unequal_width_are_refused(pixels):
    backbone = Backbone.from_module(_Pyramid(), recipe=RECIPE, layer_paths=["first", "second"])
    with pytest.raises(ValueError, match=r"unequal shapes \[\(16, 4\), \(4, 7\)\]"):
        FeatureExtractor(backbone, layers=[1, 2]).fit(pixels)
    assert FeatureExtractor(backbone, layers=1).fit_transform(pixels).grid == (4, 4)


@pytest.mark.parametrize("layers", [[], [1.5], "ab", [7]])
def test_layers_that_are_none_are_refused(layers, pixels):
    with pytest.raises(ValueError, match="layers"):
        FeatureExtractor(token_backbone(), layers=layers).fit(pixels)


def test_the_pass_ends_after_the_last_layer_wanted(pixels):
    backbone = token_backbone()
    network = backbone.network()
    seen = []
    handle = network.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    try:
        np.asarray(FeatureExtractor(backbone, layers=[0, 1]).fit_transform(pixels))
        assert not seen
        np.asarray(FeatureExtractor(backbone, layers=[2]).fit_transform(pixels))
        assert seen
    finally:
        handle.remove()


def test_a_pooling_asks_for_one_layer(pixels):
    tokens = FeatureExtractor(token_backbone(), layers=[0, 1]).fit_transform(pixels)
    with pytest.raises(ValueError, match="tokens of 2 layers"):
        GeMPooling().fit(tokens)


class _Registers(TokenNet):
    """A class token and two registers ahead of the patches."""

    def forward(self, images):
        tokens = super().forward(images)
        return torch.cat([tokens[:, :1], tokens[:, 1:3] * 2, tokens[:, 1:]], 1)


def test_registers_are_apart_from_patches_and_class_token(pixels):
    backbone = Backbone.from_module(_Registers(), recipe=RECIPE, patch_size=4, n_prefix_tokens=3)
    tokens = FeatureExtractor(backbone).fit_transform(pixels)
    whole = np.asarray(tokens)
    assert tokens.n_prefix_tokens == 3 and tokens.cls_index == 0
    np.testing.assert_array_equal(tokens.registers, whole[:, 1:3])
    np.testing.assert_array_equal(np.asarray(tokens.patches), whole[:, 3:])
    np.testing.assert_allclose(
        TokenPooling().fit_transform(tokens), whole[:, 3:].mean(1), atol=1e-6
    )
    plain = FeatureExtractor(token_backbone()).fit_transform(pixels)
    with pytest.raises(ValueError, match="no registers"):
        _ = plain.registers


def test_arrays_of_several_layers_are_wrapped():
    X = np.random.default_rng(0).normal(size=(5, 3, 7, 2))
    tokens = TokenArray.from_layers(X, n_prefix_tokens=1, grid=(2, 3))
    assert (tokens.ndim, tokens.n_layers, tokens.layer(-1).ndim) == (4, 3, 3)
    np.testing.assert_array_equal(np.asarray(tokens.layer(1)), X[:, 1])
    np.testing.assert_array_equal(np.asarray(tokens.patches), X[:, :, 1:])
    np.testing.assert_array_equal(tokens.cls, X[:, :, 0])
    with pytest.raises(ValueError, match="one layer"):
        tokens.layer(0).layer(0)
    with pytest.raises(IndexError):
        tokens.layer(3)
    with pytest.raises(ValueError, match="several layers have"):
        TokenArray.from_layers(X[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_lower_precision_stays_near(dtype, pixels):
    exact = np.asarray(FeatureExtractor(token_backbone()).fit_transform(pixels))
    tokens = FeatureExtractor(token_backbone(), dtype=dtype).fit_transform(pixels)
    assert tokens.dtype == ("float16" if dtype == "float16" else "float32")
    error = np.abs(np.asarray(tokens, dtype=np.float64) - exact).max()
    # Rounding to 11 bits once, against 8 bits in every product.
    assert 0 < error < (2e-3 if dtype == "float16" else 0.3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_blocks_give_the_same_layers(pixels):
    extractor = FeatureExtractor(token_backbone(), layers=[0, 1, -1], compile=True)
    np.testing.assert_allclose(
        np.asarray(extractor.fit_transform(pixels)), _by_hand(pixels), atol=1e-5
    )


def test_what_was_computed_before_an_interruption_is_stored(pixels, tmp_path):
    count = tmp_path / "count"
    extractor = FeatureExtractor(
        counting_backbone(count), layers=[0, -1], batch_size=4, store=tmp_path / "store"
    )
    batches = extractor.fit_transform(pixels).iter_batches()
    for _ in range(3):
        next(batches)
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt)
    done = count.stat().st_size
    assert 12 <= done < len(pixels)
    np.asarray(extractor.fit_transform(pixels))
    assert count.stat().st_size == len(pixels)


def test_progress_is_told_batch_by_batch(pixels):
    events = []

    class Recorder:
        def setup(self, estimator, context):
            events.append("setup")

        def on_fit_task_begin(self, estimator, context):
            events.append(("begin", context.task_name, context.max_subtasks))

        def on_fit_task_end(self, estimator, context):
            events.append(("end", context.task_name, context.max_subtasks))

        def teardown(self, estimator, context):
            events.append("teardown")

    extractor = FeatureExtractor(token_backbone(), batch_size=10).set_callbacks(Recorder())
    tokens = extractor.fit_transform(pixels)
    assert not events
    np.asarray(tokens)
    assert events[:2] == ["setup", ("begin", "extract", 3)]
    assert events[-2:] == [("end", "extract", 3), "teardown"]
    assert events.count(("end", "batch", 0)) == 3
    assert all(a != b for a, b in pairwise(events))
    events.clear()
    np.asarray(tokens)
    assert not events
