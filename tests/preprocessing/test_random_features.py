# SPDX-License-Identifier: BSD-3-Clause
"""RandomFeatures against the kernels that they approach, in closed form or by scikit-learn."""

import pickle

import numpy as np
import pytest
import scipy.special
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel

from skpool.preprocessing import RandomFeatures
from skpool.preprocessing import _random_features as module
from skpool.preprocessing._kernels import random_weights

WIDE = 60_000


@pytest.fixture
def X():
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 5)) * rng.uniform(0.3, 0.9, size=(12, 1))


def gram(X, **options):
    Z = RandomFeatures(WIDE, **options).fit_transform(X)
    return Z @ Z.T


def arc_cosine_kernel(X):
    """Order 1, of Cho and Saul (2009)."""
    norms = np.linalg.norm(X, axis=1)
    theta = np.arccos(np.clip(cosine_similarity(X), -1, 1))
    return np.outer(norms, norms) * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)


def arc_sine_kernel(X):
    """Of Williams (1997), for the error function."""
    squares = 1 + 2 * (X**2).sum(axis=1)
    return 2 / np.pi * np.arcsin(2 * X @ X.T / np.sqrt(np.outer(squares, squares)))


def with_one(X):
    return np.hstack([X, np.ones((len(X), 1))])


# --- kernels ---------------------------------------------------------------------------------

# Standard errors of a mean of 60,000 products are below 0.01 here.
CLOSE = {"atol": 0.03}


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_relu_tends_to_the_arc_cosine_kernel(X, orthogonal, bias):
    want = arc_cosine_kernel(with_one(X) if bias else X)
    np.testing.assert_allclose(gram(X, orthogonal=orthogonal, bias=bias), want, **CLOSE)


@pytest.mark.parametrize("bias", [False, True])
def test_erf_tends_to_the_arc_sine_kernel(X, bias):
    want = arc_sine_kernel(with_one(X) if bias else X)
    np.testing.assert_allclose(gram(X, activation="erf", bias=bias), want, **CLOSE)


def test_sign_tends_to_the_kernel_of_the_angle(X):
    want = 1 - 2 / np.pi * np.arccos(np.clip(cosine_similarity(X), -1, 1))
    np.testing.assert_allclose(gram(X, activation="sign"), want, **CLOSE)


def test_cos_with_bias_tends_to_half_the_gaussian_kernel(X):
    got = gram(X, activation="cos", bias=True)
    np.testing.assert_allclose(2 * got, rbf_kernel(X, gamma=0.5), **CLOSE)


def test_cos_without_bias_tends_to_the_even_part_of_it(X):
    want = (rbf_kernel(X, gamma=0.5) + rbf_kernel(X, -X, gamma=0.5)) / 2
    np.testing.assert_allclose(gram(X, activation="cos"), want, **CLOSE)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_projection_keeps_inner_products(X, orthogonal):
    got = gram(X, activation=None, orthogonal=orthogonal)
    np.testing.assert_allclose(got, X @ X.T, **CLOSE)


def test_projection_keeps_inner_products_on_average_at_any_width(X):
    grams = []
    for seed in range(500):
        Z = RandomFeatures(3, activation=None, random_state=seed).fit_transform(X)
        grams.append(Z @ Z.T)
    error = np.std(grams, axis=0) / np.sqrt(len(grams))
    assert (np.abs(np.mean(grams, axis=0) - X @ X.T) < 5 * error).all()


def test_narrow_projection_keeps_distances_as_johnson_and_lindenstrauss_say():
    X = np.random.default_rng(0).normal(size=(40, 2000))
    Z = RandomFeatures(600, activation=None).fit_transform(X)
    pairs = np.triu_indices(40, 1)
    ratio = ((Z[:, None] - Z) ** 2).sum(-1)[pairs] / ((X[:, None] - X) ** 2).sum(-1)[pairs]
    # Chi-square with 600 degrees of freedom: a standard deviation of 0.058, over 780 pairs.
    assert np.abs(ratio - 1).max() < 0.3
    assert ratio.std() == pytest.approx(np.sqrt(2 / 600), rel=0.2)


def test_error_of_the_kernel_falls_with_the_root_of_the_width(X):
    def error(k):
        seeds = range(10)
        parts = [RandomFeatures(k, random_state=s).fit_transform(X) for s in seeds]
        return np.mean([np.abs(Z @ Z.T - arc_cosine_kernel(X)).mean() for Z in parts])

    assert error(400) / error(6400) == pytest.approx(4.0, rel=0.3)


def test_orthogonal_columns_lower_the_variance_of_the_kernel():
    X = np.random.default_rng(0).normal(size=(6, 64)) / 8

    def spread(orthogonal):
        grams = []
        for seed in range(60):
            model = RandomFeatures(64, activation=None, orthogonal=orthogonal, random_state=seed)
            Z = model.fit_transform(X)
            grams.append(Z @ Z.T)
        return np.std(grams, axis=0)[np.triu_indices(6, 1)].mean()

    assert spread(True) < 0.5 * spread(False)


# --- weights ---------------------------------------------------------------------------------


def weights_of(d, k, **options):
    W, b = zip(*random_weights(3, n_features=d, n_components=k, **options), strict=True)
    return np.concatenate(W, axis=1), b


def test_weights_are_standard_normal():
    W, _ = weights_of(300, 1000)
    assert W.shape == (300, 1000)
    assert W.dtype == np.float32
    assert W.mean() == pytest.approx(0.0, abs=0.01)
    assert W.var() == pytest.approx(1.0, abs=0.02)
    assert (W**4).mean() == pytest.approx(3.0, abs=0.1)
    # No block of columns repeats another.
    assert np.abs(np.corrcoef(W.T) - np.eye(1000)).max() < 0.35


@pytest.mark.parametrize(("d", "k"), [(5, 5), (5, 23), (300, 1000), (20, 7)])
def test_orthogonal_weights_are_orthogonal_within_blocks_at_normal_lengths(d, k):
    W, _ = weights_of(d, k, orthogonal=True)
    assert W.shape == (d, k)
    for start in range(0, k, d):
        block = W[:, start : start + d].astype(np.float64)
        products = block.T @ block
        off = products - np.diag(np.diag(products))
        assert np.abs(off).max() < 1e-4 * d
    if k == 1000:
        lengths = (W.astype(np.float64) ** 2).sum(axis=0)
        assert lengths.mean() == pytest.approx(d, rel=0.02)
        assert lengths.var() == pytest.approx(2 * d, rel=0.2)


def test_directions_of_orthogonal_weights_have_no_preferred_sign():
    signs = [weights_of_seed(seed) for seed in range(400)]
    assert abs(np.mean(signs)) < 0.1


def weights_of_seed(seed):
    ((W, _),) = random_weights(seed, n_features=4, n_components=4, orthogonal=True)
    return np.sign(W[0])


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("bias", [None, "normal", "angle"])
def test_fewer_components_are_the_first_of_more(orthogonal, bias):
    options = {"orthogonal": orthogonal, "bias": bias}
    few, few_b = weights_of(6, 300, **options)
    more, more_b = weights_of(6, 1000, **options)
    np.testing.assert_array_equal(few, more[:, :300])
    if bias is not None:
        np.testing.assert_array_equal(np.concatenate(few_b), np.concatenate(more_b)[:300])


def test_bias_does_not_change_the_weights():
    np.testing.assert_array_equal(weights_of(6, 300)[0], weights_of(6, 300, bias="normal")[0])


def test_angles_are_uniform_on_the_circle():
    b = np.concatenate(weights_of(1, 20_000, bias="angle")[1])
    assert b.min() >= 0
    assert b.max() <= np.float32(2 * np.pi)
    counts = np.histogram(b, bins=10, range=(0, 2 * np.pi))[0]
    np.testing.assert_allclose(counts, 2000, atol=200)


# --- the same numbers whatever the way -------------------------------------------------------

OPTIONS = [
    {},
    {"activation": "erf", "bias": True},
    {"activation": "cos", "bias": True, "orthogonal": True},
    {"activation": None, "normalize": False},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_its_formula(X, options):
    model = RandomFeatures(700, **options).fit(X)
    bias = None
    if options.get("bias"):
        bias = "angle" if options["activation"] == "cos" else "normal"
    parts = random_weights(
        model.seed_,
        n_features=5,
        n_components=700,
        bias=bias,
        orthogonal=options.get("orthogonal", False),
    )
    W, b = zip(*parts, strict=True)
    projected = X @ np.concatenate(W, axis=1).astype(float)
    if bias is not None:
        projected = projected + np.concatenate(b)
    functions = {"relu": lambda v: np.maximum(v, 0), "erf": scipy.special.erf, "cos": np.cos}
    want = functions.get(options.get("activation", "relu"), np.array)(projected)
    want = want / np.sqrt(700) if options.get("normalize", True) else want
    np.testing.assert_allclose(model.transform(X), want, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
def test_drawn_anew_equals_held(X, options, monkeypatch):
    held = RandomFeatures(700, **options).fit(X)
    monkeypatch.setattr(module, "_HELD_BYTES", 0)
    anew = RandomFeatures(700, **options).fit(X)
    assert held._weights is not None
    assert anew._weights is None
    np.testing.assert_allclose(anew.transform(X), held.transform(X), atol=1e-14)


def test_rows_may_come_in_any_parts():
    X = np.random.default_rng(0).normal(size=(9000, 3))
    model = RandomFeatures(40).fit(X)
    whole = model.transform(X)
    parts = np.vstack([model.transform(part) for part in np.split(X, [1, 4096, 5000])])
    np.testing.assert_allclose(parts, whole, atol=1e-14)


def test_same_seed_gives_the_same_features(X):
    a = RandomFeatures(50, random_state=3).fit_transform(X)
    np.testing.assert_array_equal(a, RandomFeatures(50, random_state=3).fit_transform(X))
    # What is seen in fit does not matter.
    np.testing.assert_array_equal(a, RandomFeatures(50, random_state=3).fit(2 * X).transform(X))
    assert np.abs(a - RandomFeatures(50, random_state=4).fit_transform(X)).max() > 0.01


def test_random_state_none_draws_another_seed_each_time(X):
    model = RandomFeatures(50, random_state=None)
    a, b = model.fit_transform(X), model.fit_transform(X)
    assert np.abs(a - b).max() > 0.01
    np.testing.assert_array_equal(model.transform(X), b)


def test_random_state_instance_goes_on(X):
    rng = np.random.RandomState(0)
    seeds = [RandomFeatures(5, random_state=rng).fit(X).seed_ for _ in range(2)]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("activation", ["relu", "erf", "cos", None])
def test_float32_rows_give_float32_features_of_the_same_weights(X, activation):
    model = RandomFeatures(300, activation=activation, bias=True).fit(X)
    got = model.transform(X.astype(np.float32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, model.transform(X), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tensor_equals_array(X, dtype):
    T = torch.from_numpy(X).to(dtype)
    model = RandomFeatures(30).fit(T)
    got = model.transform(T)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, model.transform(T.numpy()))


def test_pickle_does_not_carry_the_weights():
    X = np.random.default_rng(0).normal(size=(4, 100))
    model = RandomFeatures(5000).fit(X)
    text = pickle.dumps(model)
    assert len(text) < 10_000
    again = pickle.loads(text)
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    assert pickle.dumps(again) == text


def test_unfitted_pickle_stays_unfitted(X):
    again = pickle.loads(pickle.dumps(RandomFeatures(7)))
    np.testing.assert_array_equal(again.fit_transform(X), RandomFeatures(7).fit_transform(X))


# --- use -------------------------------------------------------------------------------------


def test_ridge_on_relu_features_learns_what_a_linear_one_cannot():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 3))
    y = np.abs(X[:, 0]) + np.abs(X[:, 1])
    Z = RandomFeatures(2000, bias=True).fit_transform(X)
    assert Ridge(1e-3).fit(X[:300], y[:300]).score(X[300:], y[300:]) < 0.2
    assert Ridge(1e-3).fit(Z[:300], y[:300]).score(Z[300:], y[300:]) > 0.95


def test_odd_functions_of_unit_rows_need_a_bias():
    X = np.random.default_rng(0).normal(size=(600, 3))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    y = X.prod(axis=1)

    def score(bias):
        Z = RandomFeatures(3000, bias=bias).fit_transform(X)
        return Ridge(1e-4).fit(Z[:500], y[:500]).score(Z[500:], y[500:])

    assert score(False) < 0.1
    assert score(True) > 0.9


@pytest.mark.parametrize("activation", ["erf", "cos"])
def test_saturated_activations_are_warned_of(X, activation):
    with pytest.warns(UserWarning, match="median magnitude"):
        RandomFeatures(100, activation=activation).fit(100 * X)
    with pytest.warns(UserWarning, match="median magnitude"):
        RandomFeatures(100, activation=activation).fit(torch.from_numpy(100 * X)[None])


@pytest.mark.parametrize("activation", ["relu", "sign", None])
def test_activations_without_a_scale_are_not_warned_of(X, activation):
    RandomFeatures(100, activation=activation).fit(1e4 * X)


def test_rows_of_usual_scale_are_not_warned_of(X):
    RandomFeatures(100, activation="erf").fit(X)


def test_names_are_numbered(X):
    names = RandomFeatures(3).fit(X).get_feature_names_out()
    assert list(names) == ["randomfeatures0", "randomfeatures1", "randomfeatures2"]


@pytest.mark.parametrize(
    "options",
    [
        {"n_components": 0},
        {"n_components": 2.5},
        {"activation": "tanh"},
        {"bias": "yes"},
        {"orthogonal": None},
        {"random_state": -1},
    ],
)
def test_other_options_are_refused(X, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RandomFeatures(**options).fit(X)
