# SPDX-License-Identifier: BSD-3-Clause
"""The patch dictionary, against plain loops, and against raw pixels on real images."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits, load_sample_image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skpool.exceptions import UnreadableInputError
from skpool.extraction import PatchDictionaryExtractor, _patch_kernels


@pytest.fixture(scope="module")
def photographs():
    """Parts of a photograph, 14 x 12."""
    photo, rng = load_sample_image("china.jpg"), np.random.default_rng(0)
    tops, lefts = rng.integers(0, 400, 30), rng.integers(0, 600, 30)
    return np.stack([photo[t : t + 14, s : s + 12] for t, s in zip(tops, lefts, strict=True)])


def extractor(n_atoms=10, **options):
    return PatchDictionaryExtractor(n_atoms, **{"patch": 4} | options)


def slow_code(model, patch):
    """The code of one patch (side, side, 3), number by number."""
    x = [
        float(patch[r, c, k])
        for k in range(3)
        for r in range(len(patch))
        for c in range(len(patch))
    ]
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    scale = math.sqrt(variance + model.contrast_eps)
    x = [(v - mean) / scale - m for v, m in zip(x, model.mean_.tolist(), strict=True)]
    columns = model.whitening_.T.tolist()
    x = [sum(a * b for a, b in zip(x, column, strict=True)) for column in columns]
    z = [math.dist(x, atom) for atom in model.atoms_.tolist()]
    if model.encoding == "hard":
        return [1.0 if k == z.index(min(z)) else 0.0 for k in range(len(z))]
    if model.encoding == "soft":
        e = [math.exp(-(v**2) / (2 * model.variance_)) for v in z]
        return [v / sum(e) for v in e]
    return [max(0.0, sum(z) / len(z) - v) for v in z]


@pytest.mark.parametrize("encoding", ["triangle", "soft", "hard"])
@pytest.mark.parametrize("stride, pool", [(1, 2), (3, 1), (2, 3)])
def test_features_equal_plain_loops(encoding, stride, pool, photographs):
    model = extractor(encoding=encoding, stride=stride, pool=pool).fit(photographs)
    image = photographs[7]
    tops, lefts = range(0, 14 - 3, stride), range(0, 12 - 3, stride)
    expected = np.zeros((pool, pool, 10))
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            row = next(k for k in range(pool) if i < (k + 1) * len(tops) // pool)
            column = next(k for k in range(pool) if j < (k + 1) * len(lefts) // pool)
            expected[row, column] += slow_code(model, image[top : top + 4, left : left + 4])
    out = model.transform(photographs[[7]])
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0], expected.ravel(), rtol=2e-3, atol=2e-3)


def test_whitened_patches_are_uncorrelated_and_the_atoms_their_centroids(photographs):
    model = extractor(zca_eps=0.0, stride=2, n_patches=10**6).fit(photographs)
    windows = np.lib.stride_tricks.sliding_window_view(photographs, (4, 4), (1, 2))[:, ::2, ::2]
    x = windows.reshape(-1, 48).astype(np.float64)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 10)
    np.testing.assert_allclose(model.mean_, x.mean(0), atol=1e-5)
    white = (x - x.mean(0)) @ model.whitening_
    values = np.linalg.eigvalsh(np.cov(white.T, bias=True))
    # Every patch has mean zero, which is one direction without variance.
    np.testing.assert_allclose(values[0], 0, atol=1e-4)
    # The least of the others are a millionth of the largest, where float32 shows.
    np.testing.assert_allclose(values[1:], 1, rtol=0.05)
    distance = np.linalg.norm(white[:, None] - model.atoms_, axis=2)
    assert model.variance_ == pytest.approx(np.square(distance.min(1)).mean() / 48, rel=1e-4)
    # Centroids explain more than as many patches drawn at random do.
    chosen = white[np.random.default_rng(0).choice(len(white), 10, replace=False)]
    random = np.linalg.norm(white[:, None] - chosen, axis=2).min(1)
    assert np.square(distance.min(1)).mean() < np.square(random).mean()


def test_hard_codes_of_one_cell_are_a_histogram(photographs):
    out = extractor(encoding="hard", pool=1).fit(photographs).transform(photographs)
    np.testing.assert_array_equal(out.sum(axis=1), 11 * 9)
    np.testing.assert_array_equal(out, np.rint(out))


def test_cells_add_up_to_the_whole(photographs):
    model = extractor().fit(photographs)
    cells = model.transform(photographs).reshape(30, 4, 10).sum(axis=1)
    whole = clone(model).set_params(pool=1).fit(photographs).transform(photographs)
    np.testing.assert_allclose(cells, whole, rtol=1e-4, atol=1e-3)


def test_maps_hold_the_codes_in_their_places(photographs):
    model = extractor(pool=None).fit(photographs)
    maps = model.transform(photographs)
    assert maps.shape == (30, 11, 9, 10)
    code = slow_code(model, photographs[3][5:9, 2:6])
    np.testing.assert_allclose(maps[3, 5, 2], code, rtol=1e-3, atol=1e-3)


def test_same_seed_gives_the_same_bytes_and_another_does_not(photographs):
    first = extractor(n_patches=500).fit(photographs)
    again = extractor(n_patches=500).fit(photographs)
    other = extractor(n_patches=500, random_state=1).fit(photographs)
    assert first.atoms_.tobytes() == again.atoms_.tobytes()
    assert first.atoms_.tobytes() != other.atoms_.tobytes()


def test_global_generators_are_unchanged(photographs):
    before, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    extractor().fit(photographs).transform(photographs)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], of_numpy)


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 7}, {"strip": 1}, {"strip": 200}]
)
def test_size_of_blocks_changes_nothing(options, photographs, monkeypatch):
    model = extractor().fit(photographs)
    expected = model.transform(photographs)
    if "strip" in options:
        monkeypatch.setattr(_patch_kernels, "_STRIP_NUMBERS", options["strip"])
    else:
        model.set_params(**options)
    np.testing.assert_allclose(model.transform(photographs), expected, rtol=1e-4, atol=1e-3)


def test_images_of_mixed_sizes_keep_their_order(photographs):
    mixed = [image[:, : 8 + i % 3] for i, image in enumerate(photographs)]
    model = extractor(batch_size=10).fit(mixed)
    out = model.transform(mixed)
    alone = np.concatenate([model.transform([image]) for image in mixed])
    np.testing.assert_allclose(out, alone, rtol=1e-4, atol=1e-3)


def test_maps_of_mixed_sizes_are_refused_unless_resized(photographs):
    mixed = [photographs[0], photographs[1][:10]]
    model = extractor(n_atoms=5, pool=None).fit(mixed)
    with pytest.raises(ValueError, match="image_size"):
        model.transform(mixed)
    assert model.set_params(image_size=9).transform(mixed).shape == (2, 6, 6, 5)


@pytest.mark.parametrize("n_patches", [20, 100, 1000])
def test_dictionary_sees_at_most_the_patches_asked_for(n_patches, photographs, monkeypatch):
    counts = []
    learn = PatchDictionaryExtractor._learn
    monkeypatch.setattr(
        PatchDictionaryExtractor,
        "_learn",
        lambda self, patches, random: (counts.append(len(patches)), learn(self, patches, random)),
    )
    extractor(n_patches=n_patches).fit(photographs)
    assert counts == [n_patches]


def test_constant_images_have_finite_equal_codes(photographs):
    model = extractor(contrast_eps=0.0).fit(photographs)
    flat = np.stack([np.full((14, 12, 3), level, dtype=np.uint8) for level in (0, 130, 255)])
    out = model.transform(flat)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[0], out[1])
    np.testing.assert_array_equal(out[0], out[2])


@pytest.mark.parametrize(
    "options, match",
    [
        ({"patch": 13}, r"X\[0\] has 14 x 12 pixels, fewer than patch=13"),
        ({"patch": 11, "pool": 3}, r"X\[0\] has 4 x 2 patches, fewer than pool=3"),
        ({"n_atoms": 5000}, "n_atoms=5000 is more than the 2970 patches"),
        ({"n_patches": 9}, "n_atoms=10 is more than the 9 patches"),
    ],
)
def test_images_that_give_too_little_are_refused_with_the_remedy(options, match, photographs):
    model = extractor(**options)
    with pytest.raises(ValueError, match=match):
        model.fit(photographs)
    assert not hasattr(model, "atoms_")


def test_small_image_in_transform_is_named(photographs):
    model = extractor().fit(photographs)
    with pytest.raises(ValueError, match=r"X\[1\] has 3 x 12 pixels"):
        model.transform([photographs[0], photographs[1][:3]])


def test_unreadable_images_are_left_out_or_named(photographs, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(30)]
    for path, image in zip(paths, photographs, strict=True):
        Image.fromarray(image).save(path)
    whole = extractor().fit(paths)
    expected = whole.transform(paths)
    Path(paths[4]).write_bytes(b"no image")
    for call in (whole.transform, extractor().fit):
        with pytest.raises(UnreadableInputError, match=r"4\.png"):
            call(paths)
    whole.set_params(on_error="nan")
    out = whole.transform(paths)
    assert np.isnan(out[4]).all()
    rest = np.delete(np.arange(30), 4)
    np.testing.assert_allclose(out[rest], expected[rest], rtol=1e-4, atol=1e-3)
    assert [row for row, *_ in whole.failed_] == [4]
    good = extractor().fit(np.delete(photographs, 4, axis=0))
    assert extractor(on_error="nan").fit(paths).atoms_.tobytes() == good.atoms_.tobytes()
    with pytest.raises(UnreadableInputError):
        whole.transform(paths[4:5])


def test_linear_probe_tells_textures_apart():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    waves = np.sin(2 * np.pi * (np.arange(16) / 6 + rng.random((60, 1))))
    stripes = [np.tile(wave, (16, 1)) for wave in waves]
    grey = np.stack([s.T if label else s for s, label in zip(stripes, y, strict=True)])
    noisy = 128 + 60 * grey[..., None] + 30 * rng.normal(size=(60, 16, 16, 3))
    X = noisy.clip(0, 255).astype(np.uint8)
    model = make_pipeline(extractor(20), StandardScaler(), LogisticRegression())
    assert cross_val_score(model, X, y, cv=3, error_score="raise").mean() > 0.9


def test_patches_beat_pixels_on_few_digits():
    digits = load_digits()
    X = (digits.images * 255 / 16).round().astype(np.uint8)[:300, ..., None]
    y = digits.target[:300]
    head = [StandardScaler(), LogisticRegression(C=0.01, max_iter=500)]
    pixels = make_pipeline(FunctionTransformer(lambda X: X.reshape(len(X), -1)), *head)
    patches = make_pipeline(extractor(60, image_size=16), *head)
    baseline = max(
        cross_val_score(pixels.set_params(logisticregression__C=C), X, y, cv=3).mean()
        for C in (0.001, 0.01, 0.1, 1)
    )
    assert cross_val_score(patches, X, y, cv=3, error_score="raise").mean() > baseline + 0.01
