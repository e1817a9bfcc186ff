# SPDX-License-Identifier: BSD-3-Clause
"""Fisher vectors against scikit-image, scikit-learn's mixtures, and derivatives of their score."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils._param_validation import InvalidParameterError

from skpool.pooling import FisherVectorPooling, _fisher, _vocabulary_kernels
from skpool.pooling._vocabulary_kernels import pool_fisher
from skpool.stores import TokenArray

N, L, D, K = 6, 9, 4, 3
PLAIN = {"power": None, "l2": False}


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(N, L, D)) * [3.0, 1.0, 0.5, 2.0]


@pytest.fixture
def mixture(tokens):
    return GaussianMixture(K, covariance_type="diag", random_state=0).fit(tokens.reshape(-1, D))


@pytest.fixture(params=["one block", "a row per block"])
def blocks(request, monkeypatch):
    """Both ways in which a kernel may go through its rows."""
    n_bytes = 2**40 if request.param == "one block" else 0
    monkeypatch.setattr(_vocabulary_kernels, "_BLOCK_BYTES", n_bytes)


def fisher(x, mixture, mask=None, **options):
    return pool_fisher(
        torch.as_tensor(x),
        None if mask is None else torch.from_numpy(mask),
        weights=torch.from_numpy(mixture.weights_),
        means=torch.from_numpy(mixture.means_),
        variances=torch.from_numpy(mixture.covariances_),
        **options,
    ).numpy()


def mixture_of(weights, means, variances):
    """A fitted mixture with these parameters."""
    mixture = GaussianMixture(len(weights), covariance_type="diag")
    mixture.weights_, mixture.means_ = np.asarray(weights), np.asarray(means)
    mixture.covariances_ = np.asarray(variances)
    mixture.precisions_cholesky_ = 1 / np.sqrt(mixture.covariances_)
    return mixture


def learned(pooling):
    return mixture_of(pooling.weights_, pooling.means_, pooling.covariances_)


def by_loop(x, mixture):
    """The formulas of VLFeat, token by token."""
    q = mixture.predict_proba(x)
    means, deviations = mixture.means_, np.sqrt(mixture.covariances_)
    u, v = np.zeros_like(means), np.zeros_like(means)
    for t, token in enumerate(x):
        for k, weight in enumerate(mixture.weights_):
            z = (token - means[k]) / deviations[k]
            u[k] += q[t, k] * z / (len(x) * np.sqrt(weight))
            v[k] += q[t, k] * (z**2 - 1) / (len(x) * np.sqrt(2 * weight))
    return np.concatenate([u.ravel(), v.ravel()])


# The kernel.


def test_vectors_equal_the_formulas_with_the_posteriors_of_scikit_learn(tokens, mixture, blocks):
    expected = [by_loop(x, mixture) for x in tokens]
    np.testing.assert_allclose(fisher(tokens, mixture, **PLAIN), expected, atol=1e-12)


def test_masked_vectors_equal_the_formulas_for_the_real_tokens(tokens, mixture, blocks):
    mask = np.random.default_rng(2).random((N, L)) < 0.6
    mask[:, 0] = True
    dirty = np.where(mask[..., None], tokens, np.nan)
    expected = [by_loop(x[real], mixture) for x, real in zip(tokens, mask, strict=True)]
    np.testing.assert_allclose(fisher(dirty, mixture, mask, **PLAIN), expected, atol=1e-12)


def test_vectors_equal_those_of_scikit_image(tokens, mixture):
    feature = pytest.importorskip("skimage.feature", reason="scikit-image is not installed")
    theirs = np.array([feature.fisher_vector(x, mixture) for x in tokens])
    ours = fisher(tokens, mixture, **PLAIN)
    width = K * D
    np.testing.assert_allclose(ours[:, :width], theirs[:, K : K + width], atol=1e-12)
    # Its last block is the derivative with respect to the deviations with the other sign.
    np.testing.assert_allclose(ours[:, width:], -theirs[:, K + width :], atol=1e-12)


def score_of(x, mixture, **changed):
    parameters = {
        "weights": mixture.weights_,
        "means": mixture.means_,
        "variances": mixture.covariances_,
    }
    return mixture_of(**parameters | changed).score(x)


def test_vectors_are_the_gradient_of_the_score(tokens, mixture):
    x, step = tokens[0], 1e-6
    roots = np.sqrt(mixture.weights_)[:, None]
    deviations = np.sqrt(mixture.covariances_)
    u, v = np.zeros((K, D)), np.zeros((K, D))
    for place in np.ndindex(K, D):
        e = np.zeros((K, D))
        e[place] = step
        up = score_of(x, mixture, means=mixture.means_ + e)
        down = score_of(x, mixture, means=mixture.means_ - e)
        u[place] = (up - down) / (2 * step)
        up = score_of(x, mixture, variances=(deviations + e) ** 2)
        down = score_of(x, mixture, variances=(deviations - e) ** 2)
        v[place] = (up - down) / (2 * step)
    # Divided by the root of the information: pi / sigma^2 of a mean, 2 pi / sigma^2 of a deviation.
    expected = np.concatenate(
        [(u * deviations / roots).ravel(), (v * deviations / (roots * 2**0.5)).ravel()]
    )
    np.testing.assert_allclose(fisher(x[None], mixture, **PLAIN)[0], expected, atol=1e-7)


def test_all_training_tokens_give_zero_after_convergence(tokens):
    flat = np.random.default_rng(0).normal(size=(400, D)) + 2 * np.eye(D)[np.arange(400) % 2]
    converged = GaussianMixture(
        2, covariance_type="diag", tol=1e-13, max_iter=5000, reg_covar=0, random_state=0
    ).fit(flat)
    vector = fisher(flat[None], converged, **PLAIN)
    assert np.abs(vector).max() < 5e-6
    assert np.abs(fisher(flat[None, :200], converged, **PLAIN)).max() > 0.05


def test_mean_part_of_one_component_is_the_standardised_mean(tokens):
    flat = tokens.reshape(-1, D)
    scaler = StandardScaler().fit(flat)
    one = mixture_of([1.0], [scaler.mean_], [scaler.var_])
    expected = scaler.transform(flat).reshape(N, L, D).mean(1)
    actual = fisher(tokens, one, parts=("mean",), **PLAIN)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


@pytest.mark.parametrize("power", [None, 0.5, 0.2, 1.0])
@pytest.mark.parametrize("l2", [False, True])
def test_power_comes_before_unit_length(tokens, mixture, power, l2):
    plain = fisher(tokens, mixture, **PLAIN)
    expected = np.sign(plain) * np.abs(plain) ** (power or 1)
    expected = normalize(expected) if l2 else expected
    actual = fisher(tokens, mixture, power=power, l2=l2)
    np.testing.assert_allclose(actual, expected, atol=1e-9)


@pytest.mark.parametrize(
    "parts", [("mean",), ("variance",), ("mean", "variance"), ("variance", "mean")]
)
def test_parts_come_in_the_order_given(tokens, mixture, parts):
    whole = fisher(tokens, mixture, **PLAIN)
    blocks = {"mean": whole[:, : K * D], "variance": whole[:, K * D :]}
    expected = np.concatenate([blocks[part] for part in parts], axis=1)
    np.testing.assert_allclose(fisher(tokens, mixture, parts=parts, **PLAIN), expected)


@pytest.mark.parametrize("offset", [0.0, 500.0])
def test_projection_equals_a_product_before(tokens, offset):
    x = tokens + offset
    axes = np.random.default_rng(3).normal(size=(D, 2))
    shift = x.mean((0, 1))
    rotated = (x - shift) @ axes
    mixture = GaussianMixture(2, covariance_type="diag", random_state=0)
    mixture.fit(rotated.reshape(-1, 2))
    projection = torch.from_numpy(shift), torch.from_numpy(axes)
    actual = fisher(x, mixture, projection=projection, **PLAIN)
    np.testing.assert_allclose(actual, fisher(rotated, mixture, **PLAIN), atol=1e-10)


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e3, 1e15])
def test_units_of_tokens_do_not_matter(tokens, mixture, scale):
    scaled = mixture_of(mixture.weights_, scale * mixture.means_, scale**2 * mixture.covariances_)
    x = (scale * tokens).astype(np.float32)
    expected = fisher(tokens, mixture, **PLAIN)
    np.testing.assert_allclose(fisher(x, scaled, **PLAIN), expected, atol=1e-5)


def test_float32_survives_a_mean_of_a_thousand_deviations(tokens, mixture):
    far = mixture_of(mixture.weights_, mixture.means_ + 1000, mixture.covariances_)
    x = (tokens + 1000).astype(np.float32)
    expected = fisher(x.astype(np.float64), far, **PLAIN)
    np.testing.assert_allclose(fisher(x, far, **PLAIN), expected, atol=1e-4)


def test_projection_in_float32_survives_a_mean_of_a_thousand_deviations(tokens):
    x = (tokens + 1000).astype(np.float32)
    wide = FisherVectorPooling(2, **PLAIN).fit(x)
    assert np.linalg.norm(wide.pca_mean_) > 1900
    expected = wide.transform(x.astype(np.float64))
    np.testing.assert_allclose(wide.transform(x), expected, atol=2e-5)


def test_token_far_from_all_components_belongs_to_the_widest(mixture):
    x = np.full((1, 1, D), 1e6)
    vector = fisher(x, mixture, **PLAIN)
    np.testing.assert_allclose(vector[0], by_loop(x[0], mixture), rtol=1e-9)
    # Posteriors of 0 and 1 are no reason for NaN.
    assert np.count_nonzero(vector[0, : K * D]) == D


def test_tokens_too_large_for_their_type_are_refused(mixture):
    with pytest.raises(ValueError, match="too large for products in float32"):
        fisher(np.full((1, 2, D), 1e30, dtype=np.float32), mixture)


def test_half_precision_is_widened(tokens, mixture):
    x = torch.from_numpy(tokens).to(torch.bfloat16)
    expected = fisher(x.float(), mixture)
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(fisher(x, mixture), expected)


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1))
def test_laws_of_a_set_hold(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, L, D))
    mixture = mixture_of(rng.dirichlet([5] * K), rng.normal(size=(K, D)), rng.random((K, D)) + 0.2)
    vectors = fisher(x, mixture, **PLAIN)

    def same(actual):
        np.testing.assert_allclose(actual, vectors, atol=1e-9)

    same(fisher(x[:, rng.permutation(L)], mixture, **PLAIN))
    same(fisher(np.concatenate([x, x], axis=1), mixture, **PLAIN))
    padded = np.concatenate([np.full((N, 2, D), np.nan), x], axis=1)
    real = np.concatenate([np.zeros((N, 2), bool), np.ones((N, L), bool)], axis=1)
    same(fisher(padded, mixture, real, **PLAIN))
    same(np.concatenate([fisher(row[None], mixture, **PLAIN) for row in x]))
    # The gradient of a mean is the mean of gradients.
    same(np.mean([fisher(x[:, [t]], mixture, **PLAIN) for t in range(L)], axis=0))


# The estimator.


@pytest.mark.parametrize("pca_dim", [None, 2])
def test_transform_equals_scikit_image_on_principal_axes(tokens, pca_dim):
    feature = pytest.importorskip("skimage.feature", reason="scikit-image is not installed")
    pooling = FisherVectorPooling(2, pca_dim=pca_dim, **PLAIN).fit(tokens)
    x = tokens
    if pca_dim:
        x = (x - pooling.pca_mean_) @ pooling.pca_components_.T
    theirs = np.array([feature.fisher_vector(row, learned(pooling)) for row in x])[:, 2:]
    half = theirs.shape[1] // 2
    expected = np.concatenate([theirs[:, :half], -theirs[:, half:]], axis=1)
    np.testing.assert_allclose(pooling.transform(tokens), expected, atol=1e-10)


def test_axes_are_those_of_pca(tokens):
    pooling = FisherVectorPooling(2, pca_dim=3).fit(tokens)
    pca = PCA(3).fit(tokens.reshape(-1, D))
    cosines = np.abs((pooling.pca_components_ * pca.components_).sum(1))
    np.testing.assert_allclose(cosines, np.ones(3), rtol=1e-10)
    np.testing.assert_allclose(pooling.pca_mean_, pca.mean_, atol=1e-12)


def test_mixture_is_a_fixed_point_of_em():
    # Far apart, so that EM has converged when it stops.
    centers = 20 * np.eye(3)
    flat, _ = make_blobs(300, centers=centers, random_state=0)
    pooling = FisherVectorPooling(3, reg_covar=0.01, pca_dim=None, **PLAIN).fit(flat[:, None])
    mixture = learned(pooling)
    q = mixture.predict_proba(flat)
    np.testing.assert_allclose(pooling.weights_, q.mean(0), atol=1e-9)
    np.testing.assert_allclose(pooling.means_, (q.T @ flat) / q.sum(0)[:, None], atol=1e-9)
    second = (q.T @ flat**2) / q.sum(0)[:, None] - pooling.means_**2
    np.testing.assert_allclose(pooling.covariances_, second + 0.01, atol=1e-9)
    assert pooling.converged_


def test_all_training_tokens_give_zero():
    flat, _ = make_blobs(300, centers=20 * np.eye(3), random_state=0)
    pooling = FisherVectorPooling(3, reg_covar=0.0, **PLAIN).fit(flat.reshape(10, 30, 3))
    assert np.abs(pooling.transform(flat[None])).max() < 5e-6
    assert np.abs(pooling.transform(flat[None, :50])).max() > 0.1


def test_axes_are_at_most_the_features(tokens):
    pooling = FisherVectorPooling(2).fit(tokens)
    assert pooling.means_.shape == (2, D)
    assert pooling.transform(tokens).shape == (N, 2 * 2 * D)
    assert len(pooling.get_feature_names_out()) == 2 * 2 * D


def test_axes_are_at_most_the_rank(tokens):
    x = tokens.copy()
    x[..., 0] = 7.0
    x[..., 1] = x[..., 2]
    pooling = FisherVectorPooling(2).fit(x)
    assert pooling.means_.shape == (2, 2)
    assert np.isfinite(pooling.transform(x)).all()


def test_collapsed_components_are_dropped_with_one_warning():
    x = np.tile(5 * np.eye(D)[:3], (5, 4, 1))
    with pytest.warns(UserWarning, match="of the n_components=6 components have collapsed") as w:
        pooling = FisherVectorPooling(6, **PLAIN).fit(x)
    assert len(w) == 1
    kept = len(pooling.weights_)
    assert 3 <= kept < 6
    assert pooling.weights_.sum() == pytest.approx(1)
    assert pooling.transform(x).shape == (5, 2 * pooling.means_.size)
    assert np.isfinite(pooling.transform(x + 0.01)).all()


def test_mixture_that_has_not_converged_is_no_reason_to_warn(tokens, monkeypatch):
    def hasty(*args, **kwargs):
        return GaussianMixture(*args, max_iter=1, **kwargs)

    monkeypatch.setattr(_fisher, "GaussianMixture", hasty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pooling = FisherVectorPooling(K).fit(tokens)
    assert pooling.converged_ is False


def test_more_components_than_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match=r"n_components=64 is more than the 54 sampled tokens"):
        FisherVectorPooling().fit(tokens)
    with pytest.raises(ValueError, match="sampled tokens"):
        FisherVectorPooling(1).fit(tokens[:1, :1])


def test_one_token_per_sample_is_encoded(tokens):
    pooling = FisherVectorPooling(2, pca_dim=None, **PLAIN).fit(tokens)
    expected = [by_loop(x, learned(pooling)) for x in tokens[:, :1]]
    np.testing.assert_allclose(pooling.transform(tokens[:, :1]), expected, atol=1e-10)


def test_refit_without_axes_forgets_them(tokens):
    pooling = FisherVectorPooling(2, pca_dim=2).fit(tokens).set_params(pca_dim=None).fit(tokens)
    expected = FisherVectorPooling(2, pca_dim=None).fit_transform(tokens)
    np.testing.assert_array_equal(pooling.transform(tokens), expected)


def test_fit_is_the_same_whatever_the_batches():
    x = np.random.default_rng(0).normal(size=(40, 7, D)).astype(np.float32)
    expected = FisherVectorPooling(3, max_tokens=100).fit(x)
    for X in (x, torch.from_numpy(x), list(x)):
        for batch_size in (1, 7, 256):
            actual = FisherVectorPooling(3, max_tokens=100, batch_size=batch_size).fit(X)
            for name in ("weights_", "means_", "covariances_", "pca_mean_", "pca_components_"):
                np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))


def test_fit_is_the_same_for_the_same_random_state():
    x = np.random.default_rng(0).normal(size=(40, 7, D))
    first, again, other = (
        FisherVectorPooling(4, max_tokens=60, random_state=seed).fit(x).means_ for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_mixture_is_learned_from_real_tokens_in_scope(tokens):
    mask = np.ones((N, L), dtype=bool)
    mask[:, 6:] = False
    dirty = np.where(mask[..., None], tokens, np.nan)
    dirty[:, 0] = 100.0
    X = TokenArray.from_array(dirty, mask=mask, n_prefix_tokens=1)
    expected = FisherVectorPooling(2).fit(tokens[:, 1:6])
    np.testing.assert_array_equal(FisherVectorPooling(2).fit(X).means_, expected.means_)


def test_float32_and_float64_agree(tokens):
    wide = FisherVectorPooling(2, **PLAIN).fit(tokens)
    narrow = wide.transform(tokens.astype(np.float32))
    np.testing.assert_allclose(narrow, wide.transform(tokens), atol=1e-4)


def test_transform_before_fit_is_refused(tokens):
    with pytest.raises(NotFittedError):
        FisherVectorPooling(2).transform(tokens)


@pytest.mark.parametrize("parts", [(), ("weight",), ("mean", "mean"), ("mean", "weight"), (["a"],)])
def test_bad_parts_are_refused(tokens, parts):
    with pytest.raises(ValueError, match="must hold 'mean', 'variance' or both"):
        FisherVectorPooling(2, parts=parts).fit(tokens)


@pytest.mark.parametrize(
    "params",
    [
        {"n_components": 0},
        {"parts": "mean"},
        {"pca_dim": 0},
        {"power": 0.0},
        {"power": 1.5},
        {"reg_covar": -1.0},
        {"max_tokens": 0},
    ],
)
def test_bad_parameters_are_refused(tokens, params):
    with pytest.raises(InvalidParameterError):
        FisherVectorPooling(**params).fit(tokens)
