# SPDX-License-Identifier: BSD-3-Clause
"""Kernels of layers and criteria, against numpy, scikit-learn, autograd and identities."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scipy.special import softmax
from scipy.stats import entropy, ortho_group
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize

from skpool.layers import CRITERIA, LAYER_POOLS
from skpool.layers._criteria import lidar, ncm_accuracy, prompt_entropy, rankme, ridge_accuracy
from skpool.layers._kernels import combine_layers, fit_layer_weights, layer_weights_objective
from skpool.prototypes import NearestClassMeanClassifier

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 4, 6))
Y = np.arange(30) % 3
SPLITS = list(StratifiedKFold(3).split(X, Y))

# Putting layers together.


@pytest.mark.parametrize("name", ["mean", "sum", "max"])
def test_reduction_equals_numpy(name):
    np.testing.assert_allclose(
        combine_layers(torch.from_numpy(X), layer_pool=name), getattr(X, name)(axis=1)
    )


@pytest.mark.parametrize("name", sorted(LAYER_POOLS))
def test_tokens_of_layers_are_combined_token_by_token(name):
    tokens = torch.from_numpy(RNG.normal(size=(2, 4, 5, 6)))
    whole = combine_layers(tokens, layer_pool=name)
    for place in range(5):
        one = combine_layers(tokens[:, :, place], layer_pool=name)
        torch.testing.assert_close(whole[..., place, :], one)


def test_concatenated_layers_can_be_cut_apart():
    whole = combine_layers(torch.from_numpy(X), layer_pool="concat").numpy()
    np.testing.assert_array_equal(whole[:, 12:18], X[:, 2])


@pytest.mark.parametrize("place", range(4))
def test_weight_on_one_layer_gives_that_layer(place):
    weights = np.eye(4)[place]
    result = combine_layers(torch.from_numpy(X), layer_pool="weighted", weights=weights)
    np.testing.assert_array_equal(result, X[:, place])


def test_l2_divides_every_layer_by_its_norm():
    result = combine_layers(torch.from_numpy(X), layer_pool="stack", normalize="l2")
    expected = normalize(X.reshape(-1, 6)).reshape(X.shape)
    np.testing.assert_allclose(result, expected)


def test_layernorm_standardises_every_layer_of_every_sample():
    result = combine_layers(torch.from_numpy(X), layer_pool="stack", normalize="layernorm")
    expected = StandardScaler().fit_transform(X.reshape(-1, 6).T).T.reshape(X.shape)
    np.testing.assert_allclose(result, expected, rtol=1e-4)


@pytest.mark.parametrize("norm", ["l2", "layernorm"])
def test_zero_layer_stays_zero(norm):
    result = combine_layers(torch.zeros(2, 3, 4), layer_pool="stack", normalize=norm)
    assert (result == 0).all()


def test_half_precision_is_summed_in_float32():
    tokens = torch.full((1, 3, 2), 40_000.0, dtype=torch.float16)
    result = combine_layers(tokens, layer_pool="sum")
    assert result.dtype == torch.float32
    assert float(result[0, 0]) == 3 * float(tokens[0, 0, 0])


# The learned weights.


def _objective_by_autograd(theta, layers, targets, alpha):
    k, d = layers.shape[1:]
    a, head, offset = theta[:k], theta[k : k + d * 3].view(3, d), theta[k + d * 3 :]
    combined = (a.softmax(0)[None, :, None] * layers).sum(1)
    loss = torch.nn.functional.cross_entropy(combined @ head.T + offset, targets.argmax(1))
    return loss + alpha / 2 * (head.square().sum() + a.square().sum())


def test_objective_and_gradient_equal_autograd():
    layers, targets = torch.from_numpy(X), torch.eye(3, dtype=torch.float64)[Y]
    theta = torch.from_numpy(RNG.normal(size=4 + 18 + 3)).requires_grad_()
    expected = _objective_by_autograd(theta, layers, targets, 0.1)
    expected.backward()
    loss, gradient = layer_weights_objective(theta.detach().numpy(), layers, targets, 0.1)
    np.testing.assert_allclose(loss, float(expected.detach()))
    np.testing.assert_allclose(gradient, theta.grad, atol=1e-12)


def test_gradient_equals_finite_differences():
    layers, targets = torch.from_numpy(X), torch.eye(3, dtype=torch.float64)[Y]
    args = (layers, targets, 0.1)
    error = check_grad(
        lambda p: layer_weights_objective(p, *args)[0],
        lambda p: layer_weights_objective(p, *args)[1],
        RNG.normal(size=25),
    )
    assert error < 1e-5


def test_fixed_weights_leave_a_logistic_regression():
    # At the head of scikit-learn's model on the mean of equal layers the gradient vanishes.
    layers = np.repeat(X[:, :1], 4, axis=1)
    alpha = 0.05
    model = LogisticRegression(C=1 / (alpha * len(X)), tol=1e-10, max_iter=1000)
    model.fit(X[:, 0], Y)
    theta = np.concatenate([np.zeros(4), model.coef_.ravel(), model.intercept_])
    targets = torch.eye(3, dtype=torch.float64)[Y]
    gradient = layer_weights_objective(theta, torch.from_numpy(layers), targets, alpha)[1]
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def _planted(noise_layers=(0, 2, 3), n=300):
    rng = np.random.default_rng(1)
    y = np.arange(n) % 3
    layers = rng.normal(size=(n, 4, 6))
    for place in set(range(4)) - set(noise_layers):
        layers[:, place, :3] += 2 * np.eye(3)[y]
    return layers, y


def test_noise_layers_get_less_than_their_share():
    layers, y = _planted()
    weights = fit_layer_weights(torch.from_numpy(layers), y).weights
    assert weights.argmax() == 1
    assert (weights[[0, 2, 3]] < 1 / 4).all()


def test_one_noise_layer_among_good_ones_gets_less_than_its_share():
    layers, y = _planted(noise_layers=(2,))
    weights = fit_layer_weights(torch.from_numpy(layers), y).weights
    assert weights.argmin() == 2
    assert weights[2] < 1 / 4


def test_weights_are_a_point_of_the_simplex_that_scale_and_place_do_not_move():
    layers, y = _planted()
    weights = fit_layer_weights(torch.from_numpy(layers), y).weights
    moved = 1000 * layers + 1e4 * np.arange(6.0)
    scaled = fit_layer_weights(torch.from_numpy(moved), y).weights
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(), 1)
    np.testing.assert_allclose(scaled, weights, atol=1e-4)


def test_weights_follow_their_layers():
    layers, y = _planted()
    order = [2, 0, 3, 1]
    weights = fit_layer_weights(torch.from_numpy(layers), y).weights
    permuted = fit_layer_weights(torch.from_numpy(layers[:, order]), y).weights
    np.testing.assert_allclose(permuted, weights[order], atol=1e-4)


def test_no_iteration_leaves_the_weights_equal():
    layers, y = _planted()
    result = fit_layer_weights(torch.from_numpy(layers), y, max_iter=0)
    np.testing.assert_array_equal(result.weights, np.full(4, 0.25))
    assert result.n_iter == 0


def test_penalty_without_end_leaves_the_weights_equal():
    layers, y = _planted()
    weights = fit_layer_weights(torch.from_numpy(layers), y, alpha=1e6).weights
    np.testing.assert_allclose(weights, 0.25, atol=1e-3)


def test_weights_lie_at_a_minimum():
    layers, y = _planted()
    layers = layers - layers.mean(axis=0)
    layers /= np.sqrt(np.square(layers).mean())
    targets = torch.eye(3, dtype=torch.float64)[y]
    weights = fit_layer_weights(torch.from_numpy(layers), y, alpha=0.01, max_iter=1000).weights

    # a is known up to a constant, and its penalty makes its mean 0.
    a = np.log(weights) - np.log(weights).mean()
    np.testing.assert_allclose(softmax(a), weights)
    combined = np.tensordot(weights, layers, axes=([0], [1]))
    head = LogisticRegression(C=1 / (0.01 * len(y)), tol=1e-10, max_iter=1000).fit(combined, y)
    theta = np.concatenate([a, head.coef_.ravel(), head.intercept_])
    gradient = layer_weights_objective(theta, torch.from_numpy(layers), targets, 0.01)[1]
    assert np.abs(gradient).max() < 1e-3


# Criteria.


def _cross_validated(model, layer):
    return cross_val_score(model, layer, Y, cv=SPLITS).mean()


def test_knn_equals_cross_val_score_of_scikit_learn():
    model = KNeighborsClassifier(len(X) // 4, metric="cosine")
    for place in range(4):
        score = CRITERIA["knn"].function(X[:, place], Y, SPLITS)
        assert score == _cross_validated(model, X[:, place])


def test_ncm_equals_the_nearest_class_mean_classifier():
    layers, y = _planted()
    splits = list(StratifiedKFold(4).split(layers, y))
    for place in range(4):
        layer = layers[:, place]
        expected = cross_val_score(NearestClassMeanClassifier(), layer, y, cv=splits).mean()
        assert 0.2 < ncm_accuracy(layer, y, splits) == expected


def test_ridge_does_not_depend_on_scale_and_place():
    score = ridge_accuracy(X[:, 0], Y, SPLITS)
    assert ridge_accuracy(1e4 * X[:, 0] + 3, Y, SPLITS) == score


@pytest.mark.parametrize("name", ["knn", "ncm", "ridge"])
def test_accuracy_of_a_clear_layer_is_one(name):
    layer = 10 * np.eye(6)[Y] + 0.1 * RNG.normal(size=(30, 6))
    assert CRITERIA[name].function(layer, Y, SPLITS) == 1


def test_rankme_of_orthonormal_columns_is_their_number():
    Q = np.linalg.qr(RNG.normal(size=(50, 8)))[0]
    np.testing.assert_allclose(rankme(Q), 8, rtol=1e-4)


def test_rankme_of_one_direction_is_one():
    np.testing.assert_allclose(rankme(np.outer(RNG.normal(size=20), np.ones(5))), 1, rtol=1e-4)
    assert rankme(np.zeros((4, 3))) == 1


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_rankme_is_bounded_and_knows_no_scale_or_rotation(seed, scale):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(7, 5)) * rng.exponential(size=5)
    value = rankme(Z)
    assert 1 <= value <= 5 * (1 + 1e-4)
    rotation = ortho_group.rvs(5, random_state=seed)
    np.testing.assert_allclose(rankme(scale * Z @ rotation), value, rtol=1e-6)
    p = np.linalg.svd(Z, compute_uv=False)
    np.testing.assert_allclose(value, np.exp(entropy(p)), rtol=1e-4)


def test_lidar_equals_the_definition_by_a_matrix_square_root():
    groups = np.arange(40) % 8
    Z = RNG.normal(size=(40, 5)) + RNG.normal(size=(8, 5))[groups]
    views = np.stack([Z[groups == g] for g in range(8)])
    mu = views.mean(1)
    between = np.cov(mu.T, bias=True)
    within = np.mean([np.cov(v.T, bias=True) for v in views], axis=0) + 1e-4 * np.eye(5)
    values, vectors = np.linalg.eigh(within)
    root = vectors / np.sqrt(values) @ vectors.T
    p = np.linalg.eigvalsh(root @ between @ root)
    p = p / p.sum() + 1e-7
    np.testing.assert_allclose(lidar(Z, groups), np.exp(-(p * np.log(p)).sum()))


def test_lidar_without_ridge_knows_no_linear_map():
    groups = np.arange(60) % 6
    Z = RNG.normal(size=(60, 4)) + 2 * RNG.normal(size=(6, 4))[groups]
    A = RNG.normal(size=(4, 4))
    assert abs(rankme(Z @ A) - rankme(Z)) > 0.05
    np.testing.assert_allclose(lidar(Z @ A, groups, delta=0), lidar(Z, groups, delta=0), rtol=1e-5)


def test_lidar_is_at_most_the_rank_of_the_signal():
    groups = np.arange(200) % 20
    signal = RNG.normal(size=(20, 2)) @ RNG.normal(size=(2, 10))
    Z = 100 * signal[groups] + RNG.normal(size=(200, 10))
    assert lidar(Z, groups) < 2.05


def test_lidar_takes_fewer_rows_than_features():
    groups = np.arange(6) % 3
    assert 1 <= lidar(RNG.normal(size=(6, 30)), groups) <= 2.01


@pytest.mark.parametrize("groups", [np.arange(6), np.zeros(6), np.array([0, 0, 0, 0, 0, 1])])
def test_lidar_refuses_groups_without_spread(groups):
    with pytest.raises(ValueError, match="two or more groups"):
        lidar(RNG.normal(size=(6, 3)), groups)


def test_prompt_entropy_of_orthonormal_tokens_is_the_logarithm_of_their_number():
    tokens = torch.eye(8)[:5][None, None]
    torch.testing.assert_close(
        prompt_entropy(tokens), torch.full((1, 1), 5.0, dtype=torch.float64).log()
    )


def test_prompt_entropy_of_equal_tokens_is_zero():
    tokens = torch.ones(1, 2, 7, 3)
    tokens[:, 1] = 0
    torch.testing.assert_close(
        prompt_entropy(tokens).abs(), torch.zeros(1, 2).double(), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_prompt_entropy_equals_the_singular_values(shape):
    tokens = RNG.normal(size=(3, 2, *shape))
    p = np.linalg.svd(tokens, compute_uv=False) ** 2
    expected = entropy(p, axis=-1)
    np.testing.assert_allclose(prompt_entropy(torch.from_numpy(tokens)), expected)


def test_prompt_entropy_leaves_masked_tokens_out():
    tokens = torch.from_numpy(RNG.normal(size=(2, 3, 6, 4)))
    mask = torch.arange(6) < torch.tensor([[4], [6]])
    garbage = tokens.where(mask[:, None, :, None], torch.nan)
    result = prompt_entropy(garbage, mask)
    torch.testing.assert_close(result[0], prompt_entropy(tokens[:1, :, :4])[0])
    torch.testing.assert_close(result[1], prompt_entropy(tokens[1:])[0])
