# SPDX-License-Identifier: BSD-3-Clause
"""Losses of scores: against torch's own, scipy's, formulas in numpy, and their limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, softmax
from torch.nn import functional as F

from skpool.training import LOSSES, class_weights, get_loss

COUNTS = np.array([50.0, 20.0, 7.0, 1.0])
MULTI_LABEL = ("asl", "bce", "distribution_balanced")
SOFTMAX = sorted(set(LOSSES) - set(MULTI_LABEL))
# Every loss by its defaults, and by parameters off them.
VARIANTS = [
    *((name, {}) for name in sorted(LOSSES)),
    ("asl", {"gamma_positive": 0.5, "gamma_negative": 0.5, "clip": 0.0}),
    ("cross_entropy", {"label_smoothing": 0.2}),
    ("encouraging", {"threshold": 0.2}),
    ("encouraging", {"threshold": 1.0}),
    ("focal", {"gamma": 0.5}),
    ("gce", {"q": 0.0}),
    ("gce", {"q": 1.0}),
    ("ldam", {"max_margin": 0.0, "scale": 2.0}),
    ("logit_adjusted", {"tau": -0.5}),
]


def ready(name, **params):
    return get_loss(name, **params).prepare(COUNTS)


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(scale=2.0, size=(9, 4))


@pytest.fixture
def y():
    return np.arange(9) % 4


def rows_of(loss, scores, target):
    return loss(torch.as_tensor(scores), torch.as_tensor(target)).numpy()


def distributions(n=9, c=4):
    return np.random.default_rng(1).dirichlet(np.ones(c), size=n)


# Against other people's.


def test_cross_entropy_equals_torch(scores, y):
    for smoothing in (0.0, 0.3):
        expected = F.cross_entropy(
            torch.as_tensor(scores),
            torch.as_tensor(y),
            reduction="none",
            label_smoothing=smoothing,
        )
        loss = get_loss("cross_entropy", label_smoothing=smoothing)
        np.testing.assert_allclose(rows_of(loss, scores, y), expected, rtol=1e-12)


def test_cross_entropy_of_soft_targets_equals_torch(scores):
    target = distributions()
    for smoothing in (0.0, 0.3):
        expected = F.cross_entropy(
            torch.as_tensor(scores),
            torch.as_tensor(target),
            reduction="none",
            label_smoothing=smoothing,
        )
        loss = get_loss("cross_entropy", label_smoothing=smoothing)
        np.testing.assert_allclose(rows_of(loss, scores, target), expected, rtol=1e-12)


def test_bce_equals_torch(scores):
    target = np.random.default_rng(2).integers(0, 2, size=scores.shape).astype(float)
    expected = F.binary_cross_entropy_with_logits(
        torch.as_tensor(scores), torch.as_tensor(target), reduction="none"
    ).mean(dim=1)
    np.testing.assert_allclose(rows_of(get_loss("bce"), scores, target), expected, rtol=1e-12)


# Against the formulas.


def _encouraging(p, t):
    bonus = np.log(1 - p) if p <= t else np.log(1 - t) - (p - t) / (1 - t)
    return -np.log(p) + bonus


OF_P = {
    ("gce", "q", 0.7): lambda p: (1 - p**0.7) / 0.7,
    ("sce", "A", -6.0): lambda p: -0.1 * np.log(p) + 6 * (1 - p),
    ("sce", "alpha", 2.0): lambda p: -2 * np.log(p) + 4 * (1 - p),
    ("sce", "beta", 0.5): lambda p: -0.1 * np.log(p) + 2 * (1 - p),
    ("focal", "gamma", 2.0): lambda p: -((1 - p) ** 2) * np.log(p),
    ("focal", "gamma", 0.5): lambda p: -np.sqrt(1 - p) * np.log(p),
    ("poly", "epsilon", 3.0): lambda p: -np.log(p) + 3 * (1 - p),
    ("encouraging", "threshold", 0.75): lambda p: _encouraging(p, 0.75),
    ("encouraging", "threshold", 0.1): lambda p: _encouraging(p, 0.1),
}


@pytest.mark.parametrize("case", OF_P, ids=str)
def test_losses_of_one_probability_follow_their_formula(case, scores, y):
    name, parameter, value = case
    p = softmax(scores, axis=1)[np.arange(9), y]
    expected = [OF_P[case](one) for one in p]
    loss = get_loss(name, **{parameter: value})
    np.testing.assert_allclose(rows_of(loss, scores, y), expected, rtol=1e-10)


@pytest.mark.parametrize("case", OF_P, ids=str)
def test_soft_targets_average_the_losses_of_the_classes(case, scores):
    name, parameter, value = case
    target, p = distributions(), softmax(scores, axis=1)
    expected = (target * np.vectorize(OF_P[case])(p)).sum(axis=1)
    loss = get_loss(name, **{parameter: value})
    np.testing.assert_allclose(rows_of(loss, scores, target), expected, rtol=1e-10)


def test_logit_adjustment_adds_log_frequencies(scores, y):
    shifted = scores + 1.7 * np.log(COUNTS / COUNTS.sum())
    expected = -log_softmax(shifted, axis=1)[np.arange(9), y]
    losses = rows_of(ready("logit_adjusted", tau=1.7), scores, y)
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


def test_balanced_softmax_weights_exponentials_by_counts(scores, y):
    weighted = COUNTS * np.exp(scores)
    expected = -np.log(weighted[np.arange(9), y] / weighted.sum(axis=1))
    np.testing.assert_allclose(rows_of(ready("balanced_softmax"), scores, y), expected, rtol=1e-12)


def test_ldam_takes_margins_off_the_target_cosine(scores, y):
    cosines = np.tanh(scores)
    margins = 0.4 * COUNTS**-0.25 / (COUNTS**-0.25).max()
    moved = cosines.copy()
    moved[np.arange(9), y] -= margins[y]
    expected = -log_softmax(20 * moved, axis=1)[np.arange(9), y]
    losses = rows_of(ready("ldam", max_margin=0.4, scale=20.0), cosines, y)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)


def test_asl_follows_its_formula(scores):
    target = np.random.default_rng(2).integers(0, 2, size=scores.shape).astype(float)
    p = expit(scores)
    p_m = np.maximum(p - 0.1, 0)
    terms = target * (1 - p) * np.log(p) + (1 - target) * p_m**3 * np.log(1 - p_m)
    loss = get_loss("asl", gamma_positive=1.0, gamma_negative=3.0, clip=0.1)
    np.testing.assert_allclose(rows_of(loss, scores, target), -terms.mean(axis=1), rtol=1e-10)


def test_asl_without_focus_and_clip_is_bce(scores):
    target = distributions()
    loss = get_loss("asl", gamma_positive=0.0, gamma_negative=0.0, clip=0.0)
    expected = rows_of(get_loss("bce"), scores, target)
    np.testing.assert_allclose(rows_of(loss, scores, target), expected, rtol=1e-10)


def test_distribution_balanced_follows_its_formula(scores):
    target = np.random.default_rng(2).integers(0, 2, size=scores.shape).astype(float)
    target[:, 0] = 1
    counts, n = np.array([60.0, 20.0, 7.0, 1.0]), 70
    expected = np.zeros(9)
    for i, row in enumerate(target):
        together = sum(1 / counts[j] for j in range(4) if row[j])
        for c in range(4):
            z = scores[i, c] - 0.1 / 3 * np.log(n / counts[c] - 1)
            weight = 0.2 + expit(5 * (1 / counts[c] / together - 0.3))
            cost = np.log1p(np.exp(-z)) if row[c] else np.log1p(np.exp(3 * z)) / 3
            expected[i] += weight * cost / 4
    loss = get_loss(
        "distribution_balanced", negative_scale=3.0, bias=0.1, alpha=0.2, beta=5.0, mu=0.3
    ).prepare(counts, n)
    np.testing.assert_allclose(rows_of(loss, scores, target), expected, rtol=1e-10)


def test_distribution_balanced_of_a_row_without_classes_is_finite(scores):
    assert np.isfinite(rows_of(ready("distribution_balanced"), scores, np.zeros((9, 4)))).all()


# Limits.


def test_gce_tends_to_cross_entropy(scores, y):
    expected = rows_of(get_loss("cross_entropy"), scores, y)
    np.testing.assert_allclose(rows_of(get_loss("gce", q=1e-9), scores, y), expected, rtol=1e-7)
    np.testing.assert_array_equal(rows_of(get_loss("gce", q=0), scores, y), expected)


def test_gce_with_q_1_is_the_missing_probability(scores, y):
    expected = 1 - softmax(scores, axis=1)[np.arange(9), y]
    np.testing.assert_allclose(rows_of(get_loss("gce", q=1), scores, y), expected, rtol=1e-10)


@pytest.mark.parametrize(
    "loss",
    [
        get_loss("logit_adjusted"),
        get_loss("balanced_softmax"),
        get_loss("ldam", max_margin=0.0, scale=1.0),
        get_loss("focal", gamma=0),
        get_loss("poly", epsilon=0),
        get_loss("sce", alpha=1, beta=0),
    ],
    ids=repr,
)
def test_balanced_data_and_zero_terms_leave_cross_entropy(loss, scores, y):
    expected = rows_of(get_loss("cross_entropy"), scores, y)
    losses = rows_of(loss.prepare(np.full(4, 13)), scores, y)
    np.testing.assert_allclose(losses, expected, rtol=1e-12)


def test_encouraging_is_smooth_at_its_threshold():
    p = torch.tensor([0.6 - 1e-9, 0.6 + 1e-9], dtype=torch.float64)
    logits = torch.stack([p.log(), (1 - p).log()], dim=1).requires_grad_()
    losses = get_loss("encouraging", threshold=0.6)(logits, torch.zeros(2, dtype=torch.long))
    slopes = torch.autograd.grad(losses.sum(), logits)[0]
    assert abs(losses[0] - losses[1]).item() < 1e-7
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-7, rtol=0)


def test_encouraging_without_threshold_is_bounded_by_its_clamp():
    loss = get_loss("encouraging", threshold=1.0)
    sure = loss(torch.tensor([[100.0, 0.0]]), torch.tensor([0]))
    np.testing.assert_allclose(sure, np.log(1e-5), rtol=1e-6)


# Of every loss.


@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=str)
def test_one_hot_targets_equal_class_numbers(name, params, scores, y):
    loss = ready(name, **params)
    hard, soft = rows_of(loss, scores, y), rows_of(loss, scores, np.eye(4)[y])
    np.testing.assert_allclose(soft, hard, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=str)
def test_gradients_are_those_of_differences(name, params, soft, scores, y):
    loss, target = ready(name, **params), torch.as_tensor(distributions() if soft else y)
    logits = torch.as_tensor(scores).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target), (logits,))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=str)
def test_huge_scores_give_finite_losses_and_gradients(name, params, soft):
    sizes = torch.tensor([[1e4, -1e4, 0.0, 1.0], [-1e4, 1e4, 1e4, -1e4], [0.0, 0.0, 1e4, 1e4]])
    logits = torch.cat([sizes, sizes.flip(1)]).requires_grad_()
    y = torch.tensor([0, 0, 1, 2, 3, 3])
    target = F.one_hot(y, 4).float() if soft else y
    losses = ready(name, **params)(logits, target)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=str)
def test_losses_of_rows_do_not_depend_on_each_other(name, params, scores, y):
    loss = ready(name, **params)
    together = rows_of(loss, scores, y)
    alone = [rows_of(loss, scores[i : i + 1], y[i : i + 1])[0] for i in range(9)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize(("name", "params"), VARIANTS, ids=str)
def test_half_precision_is_computed_in_float32(name, params, scores, y):
    half = torch.as_tensor(scores).half()
    loss, y = ready(name, **params), torch.as_tensor(y)
    torch.testing.assert_close(loss(half, y), loss(half.float(), y))


@settings(deadline=None, max_examples=25)
@given(
    name=st.sampled_from(SOFTMAX),
    shift=st.floats(-50, 50),
    seed=st.integers(0, 1000),
)
def test_softmax_losses_ignore_a_shift_of_a_row(name, shift, seed):
    rng = np.random.default_rng(seed)
    scores, y = rng.normal(size=(3, 4)), rng.integers(0, 4, size=3)
    loss = ready(name)
    expected = rows_of(loss, scores, y)
    np.testing.assert_allclose(rows_of(loss, scores + shift, y), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["logit_adjusted", "balanced_softmax", "ldam"])
def test_absent_classes_give_finite_losses_and_gradients(name):
    loss = get_loss(name).prepare([5, 0, 3])
    logits = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], requires_grad=True)
    for target in (torch.tensor([0, 2]), torch.tensor([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])):
        losses = loss(logits, target)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert torch.isfinite(losses).all()
        assert torch.isfinite(gradient).all()


def _accuracy_from_flipped_labels(loss, seed):
    """Of a linear head, fitted to labels of which 40 % are another class."""
    generator = torch.Generator().manual_seed(seed)
    centers = 0.5 * torch.randn(4, 50, generator=generator)

    def draw(n):
        y = torch.arange(n) % 4
        return centers[y] + torch.randn(n, 50, generator=generator), y

    (X, y), (X_test, y_test) = draw(400), draw(2000)
    flipped = torch.rand(400, generator=generator) < 0.4
    y = torch.where(flipped, (y + torch.randint(1, 4, (400,), generator=generator)) % 4, y)
    weights = torch.zeros(50, 4, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total = loss(X @ weights, y).mean()
        total.backward()
        return total

    optimizer.step(closure)
    return ((X_test @ weights).argmax(dim=1) == y_test).double().mean().item()


def test_gce_beats_cross_entropy_on_flipped_labels():
    robust, plain = (
        [_accuracy_from_flipped_labels(get_loss(name), seed) for seed in range(4)]
        for name in ("gce", "cross_entropy")
    )
    assert np.greater(robust, plain).all()
    assert np.mean(robust) > np.mean(plain) + 0.02


# Names and parameters.


def test_unknown_names_list_the_losses():
    with pytest.raises(ValueError, match=r"loss='hinge' is not valid; .*'asl'.*'sce'"):
        get_loss("hinge")


def test_unknown_parameters_list_those_of_the_loss():
    with pytest.raises(ValueError, match=r"'focal' has no parameter 'q'.*\['gamma'\]"):
        get_loss("focal", q=1)
    with pytest.raises(ValueError, match=r"'balanced_softmax' has no parameter 'tau'.* none"):
        get_loss("balanced_softmax", tau=2)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("asl", {"clip": 1.0}),
        ("cross_entropy", {"label_smoothing": -0.1}),
        ("encouraging", {"threshold": 1.1}),
        ("focal", {"gamma": -1}),
        ("gce", {"q": 1.5}),
        ("ldam", {"scale": 0}),
        ("logit_adjusted", {"tau": "cv"}),
        ("sce", {"A": 1.0}),
    ],
)
def test_values_out_of_range_are_refused(name, params):
    with pytest.raises(ValueError, match=next(iter(params))):
        get_loss(name, **params)


def test_losses_and_functions_pass_through(scores, y):
    loss = get_loss("focal", gamma=1)
    assert get_loss(loss) is loss

    def squared(logits, target, factor=1.0):
        return factor * (logits.gather(1, target[:, None])[:, 0] - 1) ** 2

    given = get_loss(squared, factor=2.0).prepare(COUNTS)
    np.testing.assert_allclose(rows_of(given, scores, y), 2 * (scores[np.arange(9), y] - 1) ** 2)


def test_parameters_of_a_ready_loss_are_refused():
    with pytest.raises(ValueError, match="has its parameters"):
        get_loss(get_loss("focal"), gamma=1)


@pytest.mark.parametrize("name", ["balanced_softmax", "distribution_balanced", "ldam"])
def test_losses_of_counts_ask_for_them(name, scores, y):
    with pytest.raises(ValueError, match="prepare"):
        rows_of(get_loss(name), scores, y)
    with pytest.raises(ValueError, match="4 classes, and prepare was given the counts of 2"):
        rows_of(get_loss(name).prepare([1, 2]), scores, y)


def test_preparing_leaves_the_loss_as_it_was(scores, y):
    loss = get_loss("logit_adjusted")
    first = loss.prepare(COUNTS)
    expected = rows_of(first, scores, y)
    loss.prepare(COUNTS[::-1].copy())
    np.testing.assert_array_equal(rows_of(first, scores, y), expected)


@pytest.mark.parametrize("counts", [[-1, 2], [0, 0], [[1, 2]], [np.nan, 1]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match="counts"):
        get_loss("balanced_softmax").prepare(counts)


# Weights of classes.


def test_balanced_weights_equal_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    y = np.repeat([0, 1, 2], [5, 3, 9])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(class_weights([5, 3, 9]), expected)


def test_effective_weights_follow_their_formula():
    counts = np.array([1.0, 100.0, 30000.0])
    raw = np.array([(1 - 0.999) / (1 - 0.999**n) for n in counts])
    weights = class_weights(counts, "effective", beta=0.999)
    np.testing.assert_allclose(weights, raw / raw.mean(), rtol=1e-9)


def test_effective_weights_lie_between_none_and_balanced():
    counts = [2, 8, 50]
    np.testing.assert_allclose(class_weights(counts, "effective", beta=0), 1)
    balanced = class_weights(counts)
    nearly = class_weights(counts, "effective", beta=1 - 1e-12)
    np.testing.assert_allclose(nearly, balanced / balanced.mean(), rtol=1e-3)


@pytest.mark.parametrize("kind", ["balanced", "effective"])
def test_absent_classes_have_no_weight(kind):
    weights = class_weights([3, 0, 5], kind)
    assert weights[1] == 0
    np.testing.assert_allclose(weights[[0, 2]], class_weights([3, 5], kind))


def test_unknown_kinds_of_weights_are_refused():
    with pytest.raises(ValueError, match="'balanced' or 'effective'"):
        class_weights([1, 2], "inverse")
