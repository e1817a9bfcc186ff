# SPDX-License-Identifier: BSD-3-Clause
import io
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize
from torch import nn

from skpool.backbones import _glyph
from skpool.backbones._glyph import GlyphTransformer, load_glyph

SIZE = _glyph.INPUT_SIZE


@pytest.fixture(scope="module")
def model():
    return load_glyph()


@pytest.fixture(scope="module")
def digits():
    """Images (n, 3, 32, 32) of scikit-learn's digits, bright on dark, and their classes."""
    X, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[:350]
    pictures = np.round(X[rows].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    return _images([Image.fromarray(picture) for picture in pictures]), y[rows]


@pytest.fixture(scope="module")
def digit_tokens(model, digits):
    """Tokens of the digits by the pretrained network and by an untrained one."""
    torch.manual_seed(0)
    untrained = GlyphTransformer().eval().requires_grad_(False)
    return model(digits[0]), untrained(digits[0])


def _images(pictures):
    resized = [p.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for p in pictures]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in resized]))
    return (pixels.permute(0, 3, 1, 2) / 255 - _glyph.MEAN[0]) / _glyph.STD[0]


def _reference_block(block):
    """The same block as torch writes it."""
    n_features, n_hidden = block.mlp[0].in_features, block.mlp[0].out_features
    layer = nn.TransformerEncoderLayer(
        n_features,
        block.attention.n_heads,
        n_hidden,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    theirs = {
        "self_attn.in_proj_": block.attention.qkv,
        "self_attn.out_proj.": block.attention.projection,
        "linear1.": block.mlp[0],
        "linear2.": block.mlp[2],
        "norm1.": block.norm1,
        "norm2.": block.norm2,
    }
    weights = {f"{name}weight": module.weight for name, module in theirs.items()}
    biases = {f"{name}bias": module.bias for name, module in theirs.items()}
    layer.load_state_dict(weights | biases)
    # In training mode torch takes its plain path rather than a fused kernel.
    return layer.train().requires_grad_(False)


def test_tokens_are_one_class_token_and_the_patches(model, digits):
    tokens = model(digits[0][:3])
    n_patches = (SIZE // _glyph.PATCH_SIZE) ** 2
    assert tokens.shape == (3, _glyph.N_PREFIX_TOKENS + n_patches, _glyph.N_FEATURES)
    assert tokens.dtype == torch.float32


def test_weights_are_small_and_stored_in_half_precision(model):
    assert _glyph.WEIGHTS_PATH.stat().st_size <= 3_000_000
    assert sum(weight.numel() for weight in model.parameters()) <= 1_000_000
    with safe_open(_glyph.WEIGHTS_PATH, framework="pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"F16"}


def test_loaded_model_is_frozen(model):
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_alphabets_left_out_are_those_the_weights_name():
    with safe_open(_glyph.WEIGHTS_PATH, framework="pt") as stored:
        assert tuple(stored.metadata()["left_out"].split()) == _glyph.ALPHABETS_LEFT_OUT


def test_forward_of_two_loads_is_the_same(model, digits):
    torch.testing.assert_close(load_glyph()(digits[0][:8]), model(digits[0][:8]), rtol=0, atol=0)


@settings(deadline=None, max_examples=6)
@given(rows=st.lists(st.integers(0, 99), min_size=2, max_size=6))
def test_tokens_of_an_image_do_not_depend_on_the_batch(model, digits, rows):
    alone = torch.cat([model(digits[0][row : row + 1]) for row in rows])
    torch.testing.assert_close(model(digits[0][rows]), alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("index", range(_glyph.N_BLOCKS))
def test_block_equals_torch_encoder_layer(model, digits, index):
    tokens = model.embed(digits[0][:4])
    expected = _reference_block(model.blocks[index])(tokens)
    torch.testing.assert_close(model.blocks[index](tokens), expected, rtol=1e-4, atol=1e-4)


def test_output_is_the_normalised_end_of_the_chain_of_blocks(model, digits):
    seen = []
    hooks = [block.register_forward_hook(lambda *call: seen.append(call)) for block in model.blocks]
    output = model(digits[0][:4])
    for hook in hooks:
        hook.remove()
    for (_, _, before), (_, (after,), _) in pairwise(seen):
        assert after is before
    last = seen[-1][2].double()
    standard = (last - last.mean(-1, keepdim=True)) / last.std(-1, correction=0, keepdim=True)
    expected = standard * model.norm.weight + model.norm.bias
    torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("row", "column"), [(0, 7), (7, 0), (3, 5)])
def test_patch_tokens_run_row_by_row(model, row, column):
    p = _glyph.PATCH_SIZE
    image = torch.zeros(1, 3, SIZE, SIZE)
    image[..., row * p : (row + 1) * p, column * p : (column + 1) * p] = 1
    before_blocks = (model.embed(image) - model.embed(torch.zeros_like(image)))[0, 1:]
    strongest = before_blocks.norm(dim=1).argmax().item()
    assert max(abs(strongest // 8 - row), abs(strongest % 8 - column)) <= 1


def test_order_of_colours_does_not_matter(model):
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images[:, [2, 0, 1]]), model(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("contrast", "brightness"), [(-1.0, 0.0), (0.5, 0.2), (-0.6, -0.1)])
def test_polarity_contrast_and_brightness_do_not_matter(model, digits, contrast, brightness):
    images = digits[0][:8]
    changed = model(contrast * images + brightness)
    torch.testing.assert_close(changed, model(images), rtol=0, atol=0.02)


def test_blank_image_gives_finite_tokens(model):
    assert model(torch.full((1, 3, SIZE, SIZE), -1.0)).isfinite().all()


@pytest.mark.parametrize(
    "shape", [(2, 3, 28, 28), (2, 3, 32, 64), (2, 1, 32, 32), (3, 32, 32), (2, 3, 224, 224)]
)
def test_wrong_shape_is_refused_with_the_remedy(model, shape):
    with pytest.raises(ValueError, match=r"^images must have shape .* got .*; resize them"):
        model(torch.zeros(shape))


@pytest.mark.parametrize("pool", [lambda t: t[:, 0], lambda t: t[:, 1:].mean(1)])
def test_pretrained_features_of_digits_beat_untrained_ones(digits, digit_tokens, pool):
    y, scores = digits[1], []
    for tokens in digit_tokens:
        X = normalize(pool(tokens).numpy())
        scores.append(NearestCentroid().fit(X[:50], y[:50]).score(X[50:], y[50:]))
    # Pretraining takes away at least a third of the errors.
    assert 1 - scores[0] < (1 - scores[1]) * 2 / 3


def _left_out_characters(directory):
    """Images of the alphabets left out and their characters."""
    pictures = {}
    for path in sorted(directory.glob("images_background_small*.zip")):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                alphabet, _, name = member.partition("/")[2].partition("/")
                if alphabet in _glyph.ALPHABETS_LEFT_OUT and name.endswith(".png"):
                    pictures[alphabet, name] = Image.open(io.BytesIO(archive.read(member)))
    labels = np.array([f"{alphabet}/{name.split('/')[0]}" for alphabet, name in pictures])
    return _images(pictures.values()), labels


def _five_way_one_shot(X, y, n_episodes=200):
    """Mean accuracy of the nearest neighbour by cosine."""
    rng, X = np.random.default_rng(0), normalize(X)
    found = []
    for _ in range(n_episodes):
        ways = rng.choice(np.unique(y), 5, replace=False)
        rows = np.stack([rng.permutation(np.flatnonzero(y == way))[:6] for way in ways])
        nearest = (X[rows[:, 1:]] @ X[rows[:, 0]].T).argmax(axis=2)
        found.append((nearest == np.arange(5)[:, None]).mean())
    return np.mean(found)


@pytest.mark.data
def test_new_alphabets_are_told_apart_far_better_than_by_pixels(model, data_dir):
    directory = data_dir / "omniglot_small"
    if not directory.is_dir():
        pytest.skip("the Omniglot pictures (../shared/data/omniglot_small) are not on this machine")
    images, y = _left_out_characters(directory)
    tokens = torch.cat([model(block) for block in images.split(100)])
    ink = (1 - images[:, 0].flatten(1)).numpy()
    floor = _five_way_one_shot(ink, y)
    # Half of the errors of the raw pixels at most; guessing gets 0.2.
    assert 0.3 < floor < 0.7
    assert 1 - _five_way_one_shot(tokens[:, 0].numpy(), y) < (1 - floor) / 2
    assert 1 - _five_way_one_shot(tokens[:, 1:].mean(1).numpy(), y) < (1 - floor) / 2
