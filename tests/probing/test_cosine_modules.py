# SPDX-License-Identifier: BSD-3-Clause
"""Cosine heads: margins, scales and partial classes, against numpy and by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from skpool.probing._cosine_modules import (
    MARGINS,
    CosineHead,
    CosineObjective,
    CosineSpec,
    adapted_scale,
    class_directions,
    first_adaptive_scale,
    make_cosine_head,
)
from skpool.training import VectorRows, get_loss

N, D, C = 12, 6, 5


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def X(rng):
    return rng.normal(size=(N, D))


@pytest.fixture
def y():
    return np.arange(N) % C


def drawn_head(X, y, **options):
    """A head whose directions are no class means."""
    spec = CosineSpec(X.shape[1], int(y.max()) + 1, **options)
    return make_cosine_head(spec, torch.Generator().manual_seed(0))


def head_of(X, y, **options):
    """A head that starts from class means."""
    head = drawn_head(X, y, **options)
    head.place(class_directions(head, VectorRows(X), y), torch.Generator().manual_seed(0))
    return head


def unit(X):
    return X / np.linalg.norm(X, axis=-1, keepdims=True)


def loss_of(head, X, y, weight=None, **options):
    objective = CosineObjective(head, get_loss("cross_entropy"), **options)
    return objective(torch.as_tensor(X), None, torch.as_tensor(y), weight)


# Scores.


def test_scores_are_scaled_cosines_with_class_means(X, y):
    means = np.stack([X[y == c].mean(axis=0) for c in range(C)])
    scores = head_of(X, y, scale=7.0)(torch.as_tensor(X)).detach().numpy()
    np.testing.assert_allclose(scores, 7 * unit(X) @ unit(means).T, rtol=1e-12, atol=1e-14)


def test_class_means_are_taken_behind_the_projection(X, y):
    head = head_of(X, y, n_components=3)
    Z = X @ head.projection.detach().numpy().T
    means = np.stack([Z[y == c].mean(axis=0) for c in range(C)])
    np.testing.assert_allclose(head.weight.detach().numpy()[:, 0], unit(means), rtol=1e-10)


def test_class_means_are_weighted(X, y):
    weights = np.arange(1.0, N + 1)
    means = np.stack([np.average(X[y == c], axis=0, weights=weights[y == c]) for c in range(C)])
    found = class_directions(drawn_head(X, y), VectorRows(X), y, weights)
    np.testing.assert_allclose(found, unit(means), rtol=1e-10)


def test_placing_leaves_earlier_classes_alone(X, y):
    head, before = drawn_head(X, y), drawn_head(X, y).weight.detach()
    head.append(1)
    head.place(torch.ones(1, D).double() / D**0.5, torch.Generator())
    assert torch.equal(head.weight.detach()[:-1], before)
    torch.testing.assert_close(head.weight.detach()[-1, 0], torch.ones(D).double() / D**0.5)


def test_projections_start_with_orthonormal_rows(X, y):
    P = head_of(X, y, n_components=3).projection.detach().numpy()
    np.testing.assert_allclose(P @ P.T, np.eye(3), atol=1e-12)


def test_proxies_are_averaged_by_their_softmax(X, y):
    head = drawn_head(X, y, n_proxies=3, scale=1.0)
    cosines = np.einsum("nd,ckd->nck", unit(X), unit(head.weight.detach().numpy()))
    shares = np.exp(10 * cosines)
    expected = (shares * cosines).sum(axis=2) / shares.sum(axis=2)
    np.testing.assert_allclose(head(torch.as_tensor(X)).detach(), expected, rtol=1e-10)


def test_proxies_of_a_class_start_apart_and_near_its_mean(X, y):
    one, many = head_of(X, y).weight.detach(), head_of(X, y, n_proxies=4).weight.detach()
    assert (one * torch.nn.functional.normalize(many, dim=2)).sum(dim=2).min() > 0.99
    assert len(torch.unique(many, dim=1)[0]) == 4


def test_bias_is_added_behind_the_scale(X, y):
    head, plain = head_of(X, y, bias=True), head_of(X, y)
    with torch.no_grad():
        head.bias.copy_(torch.arange(C))
    rows = torch.as_tensor(X)
    torch.testing.assert_close(head(rows), plain(rows) + torch.arange(C))


def test_zero_rows_and_directions_score_zero():
    head = CosineHead(CosineSpec(3, 2)).double()
    assert not head(torch.zeros(1, 3, dtype=torch.float64)).any()
    assert torch.isfinite(loss_of(head, np.zeros((2, 3)), np.array([0, 1])))


def test_building_leaves_the_generator_of_torch_alone(X, y):
    before = torch.get_rng_state()
    head_of(X, y, n_components=2, n_proxies=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_appended_classes_have_the_smallest_bias(X, y):
    head = head_of(X, y, bias=True)
    with torch.no_grad():
        head.bias.copy_(torch.arange(C) - 2.0)
    head.append(2)
    assert head(torch.as_tensor(X)).shape == (N, C + 2)
    assert head.bias.tolist()[C:] == [-2.0, -2.0]


# Margins.


@pytest.mark.parametrize("kind", MARGINS)
def test_margin_zero_changes_nothing(kind):
    cosines = torch.linspace(-0.99, 0.99, 9, dtype=torch.float64)
    torch.testing.assert_close(MARGINS[kind](cosines, 0.0), cosines)


def test_arcface_adds_to_the_angle_until_it_would_rise_again():
    margin, angles = 0.5, np.array([0.1, 1.5, math.pi - 0.51, math.pi - 0.49, 3.1])
    expected = np.where(
        angles > math.pi - margin,
        np.cos(angles) - margin * math.sin(margin),
        np.cos(angles + margin),
    )
    found = MARGINS["arcface"](torch.as_tensor(np.cos(angles)), margin)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", MARGINS)
def test_margins_have_finite_slopes_at_the_ends(kind, dtype):
    cosines = torch.tensor([-1.0, 1.0, 1.0000001], dtype=dtype, requires_grad=True)
    (slopes,) = torch.autograd.grad(MARGINS[kind](cosines, 0.5).sum(), cosines)
    assert torch.isfinite(slopes).all()


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_only_the_cosine_of_the_target_is_lowered(kind, X, y):
    head, margin = drawn_head(X, y, scale=9.0), 0.35
    cosines = unit(X) @ unit(head.weight.detach().numpy()[:, 0]).T
    own = cosines[np.arange(N), y]
    cosines[np.arange(N), y] = (
        own - margin if kind == "cosface" else np.cos(np.arccos(own) + margin)
    )
    expected = -log_softmax(9 * cosines, axis=1)[np.arange(N), y].mean()
    found = loss_of(head, X, y, kind=kind, margin=margin)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", MARGINS)
def test_one_hot_targets_equal_class_numbers(kind, X, y):
    head = drawn_head(X, y)
    hard = loss_of(head, X, y, kind=kind, margin=0.3, sample_ratio=0.5, seed=1)
    soft = loss_of(head, X, np.eye(C)[y], kind=kind, margin=0.3, sample_ratio=0.5, seed=1)
    torch.testing.assert_close(soft, hard)


@pytest.mark.parametrize("scale", [8.0, "learned", "adacos"])
@pytest.mark.parametrize("kind", MARGINS)
def test_gradients_are_those_of_differences(kind, scale, X, y):
    options = {"n_components": 4, "n_proxies": 2, "bias": True, "scale": scale}
    head = drawn_head(X, y, **options)
    objective = CosineObjective(head, get_loss("cross_entropy"), kind=kind, margin=0.2).eval()
    rows, target = torch.as_tensor(X), torch.as_tensor(y)

    def loss(*weights):
        return objective(rows, None, target)

    parameters = tuple(objective.parameters())
    assert torch.autograd.gradcheck(loss, parameters)
    assert len(parameters) == (4 if scale == "learned" else 3)


def test_rows_are_weighted(X, y):
    head, weight = drawn_head(X, y), torch.zeros(N, dtype=torch.float64)
    weight[:4] = 2.0
    torch.testing.assert_close(loss_of(head, X, y, weight), loss_of(head, X[:4], y[:4]))


def test_validation_sees_the_margin_and_all_classes(X, y):
    head = drawn_head(X, y)
    options = {"kind": "cosface", "margin": 0.3}
    objective = CosineObjective(head, get_loss("cross_entropy"), sample_ratio=0.2, **options)
    found = objective.eval()(torch.as_tensor(X), None, torch.as_tensor(y))
    torch.testing.assert_close(found, loss_of(head, X, y, **options))


# Partial classes and features.


def classes_of(head, y, seed, ratio=0.4):
    objective = CosineObjective(head, get_loss("cross_entropy"), sample_ratio=ratio, seed=seed)
    return objective._chosen(torch.as_tensor(y), objective._generator())


@pytest.mark.parametrize("seed", range(8))
def test_targets_are_among_the_chosen_classes(seed, rng):
    X, y = rng.normal(size=(60, 3)), np.arange(60) % 30
    target = y[seed : seed + 4]
    chosen, places = classes_of(drawn_head(X, y), target, seed)
    assert len(chosen) == 12 == len(chosen.unique())
    np.testing.assert_array_equal(chosen[places], target)


def test_all_targets_are_kept_where_they_are_more_than_the_ratio(X, y):
    chosen, places = classes_of(drawn_head(X, y), y, 0, ratio=0.2)
    np.testing.assert_array_equal(chosen, np.arange(C))
    np.testing.assert_array_equal(places, y)


def test_partial_loss_is_the_softmax_over_the_chosen_classes(rng):
    X, y = rng.normal(size=(60, 3)), np.arange(60) % 30
    head = drawn_head(X, y)
    rows, target = X[:4], y[:4]
    chosen, places = classes_of(head, target, 3)
    scores = 16 * unit(rows) @ unit(head.weight.detach().numpy()[chosen, 0]).T
    expected = -log_softmax(scores, axis=1)[np.arange(4), places].mean()
    found = loss_of(head, rows, target, sample_ratio=0.4, seed=3)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-10)


def test_other_classes_are_drawn_anew_in_every_step(rng):
    X, y = rng.normal(size=(60, 3)), np.arange(60) % 30
    head = drawn_head(X, y)
    objective = CosineObjective(head, get_loss("cross_entropy"), sample_ratio=0.4, seed=3)
    batch = torch.as_tensor(X[:4]), None, torch.as_tensor(y[:4])
    losses = [objective(*batch).item() for _ in range(5)]
    assert len(set(losses)) == 5
    # The number of the step is all that is needed to go on.
    again = CosineObjective(head, get_loss("cross_entropy"), sample_ratio=0.4, seed=3)
    again.n_steps.fill_(4)
    assert again(*batch).item() == losses[4]


def test_ratio_1_is_the_full_softmax(X, y):
    head = drawn_head(X, y)
    expected = -log_softmax(head(torch.as_tensor(X)).detach(), axis=1)[np.arange(N), y].mean()
    found = loss_of(head, X, y, sample_ratio=1.0, feature_ratio=1.0)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-10)


def test_partial_features_are_cosines_in_a_part_of_them(X, y):
    head = drawn_head(X, y)
    objective = CosineObjective(head, get_loss("cross_entropy"), feature_ratio=0.5, seed=2)
    part = objective._features(objective._generator()).numpy()
    assert len(set(part.tolist())) == 3
    scores = 16 * unit(X[:, part]) @ unit(head.weight.detach().numpy()[:, 0][:, part]).T
    expected = -log_softmax(scores, axis=1)[np.arange(N), y].mean()
    found = loss_of(head, X, y, feature_ratio=0.5, seed=2)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-10)


# The scale.


def test_adacos_of_two_classes_by_hand():
    # B = exp(10 * 0.5), and the median angle has the cosine 0.9.
    cosines = torch.tensor([[0.9, 0.5], [0.5, 0.9], [0.9, 0.5]], dtype=torch.float64)
    found = adapted_scale(cosines, torch.tensor([0, 1, 0]), torch.tensor(10.0).double(), 2)
    assert found.item() == pytest.approx(5 / 0.9)


def test_adacos_takes_angles_up_to_a_quarter_turn_of_half_a_circle():
    cosines = torch.tensor([[-0.2, 0.5], [0.5, 0.1]], dtype=torch.float64)
    found = adapted_scale(cosines, torch.tensor([0, 1]), torch.tensor(10.0).double(), 2)
    assert found.item() == pytest.approx(5 / math.cos(math.pi / 4))


def test_adacos_follows_its_formula(rng):
    cosines, y, s = np.tanh(rng.normal(size=(9, 7))), np.arange(9) % 7, 11.0
    others = np.exp(s * cosines).sum(axis=1) - np.exp(s * cosines[np.arange(9), y])
    median = np.median(np.arccos(cosines[np.arange(9), y]))
    expected = np.log(others.mean()) / np.cos(min(np.pi / 4, median))
    found = adapted_scale(torch.as_tensor(cosines), torch.as_tensor(y), torch.tensor(s), 7)
    assert found.item() == pytest.approx(expected)


def test_adacos_starts_from_the_number_of_classes():
    assert first_adaptive_scale(101) == pytest.approx(math.sqrt(2) * math.log(100))
    assert first_adaptive_scale(2) == first_adaptive_scale(1) == 1.0


def test_adacos_moves_the_scale_in_training_alone(rng):
    X, y = rng.normal(size=(60, 3)), np.arange(60) % 30
    head = drawn_head(X, y, scale="adacos")
    objective = CosineObjective(head, get_loss("cross_entropy"))
    batch, before = (torch.as_tensor(X), None, torch.as_tensor(y)), head.scale.item()
    objective.eval()(*batch)
    assert head.scale.item() == before
    cosines = unit(X) @ unit(head.weight.detach().numpy()[:, 0]).T
    objective.train()(*batch)
    expected = adapted_scale(torch.as_tensor(cosines), batch[2], torch.tensor(before).double(), 30)
    assert head.scale.item() == pytest.approx(expected.item())
    assert head.scale.item() != before


def test_directions_do_not_decay(X, y):
    head = head_of(X, y, n_components=2)
    assert [p is head.weight for p in head.undecayed] == [True]


# Somebody else's.


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_margins_equal_pytorch_metric_learning(kind, X, y):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    head, margin = drawn_head(X, y, scale=20.0), 0.4
    if kind == "cosface":
        theirs = losses.CosFaceLoss(C, D, margin=margin, scale=20.0)
    else:
        theirs = losses.ArcFaceLoss(C, D, margin=math.degrees(margin), scale=20.0)
    theirs = theirs.double()
    with torch.no_grad():
        theirs.W.copy_(head.weight[:, 0].T)
    expected = theirs(torch.as_tensor(X), torch.as_tensor(y)).item()
    found = loss_of(head, X, y, kind=kind, margin=margin).item()
    assert found == pytest.approx(expected, rel=1e-6)
