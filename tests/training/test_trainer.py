# SPDX-License-Identifier: BSD-3-Clause
"""The trainer against scikit-learn, torch's own loops and formulas, and what it leaves alone."""

import numpy as np
import pytest
import torch
from linear_heads import C, D, Linear, N, classes, flat, trained
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from skpool.stores import TokenArray
from skpool.training import HeadObjective, HeadTrainer, TokenRows, VectorRows, get_loss, train_head


def in_order(y, generator):
    """Rows as they come."""
    return np.arange(len(y))


# Against others.


@pytest.mark.parametrize("weighted", [False, True])
def test_lbfgs_gives_the_coefficients_of_logistic_regression(weighted):
    X, y = classes(300)
    weight = np.random.default_rng(1).uniform(0.1, 3.0, size=300) if weighted else None
    total = 300 if weight is None else weight.sum()
    options = {"sample_weight": weight}
    settings = {"optimizer": "lbfgs", "weight_decay": 0.01, "batch_size": 64}
    weights, result = trained(X, y, options=options, **settings)
    reference = LogisticRegression(C=1 / (0.01 * total), solver="newton-cg", tol=1e-12)
    reference.fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(weights[: C * D].reshape(C, D), reference.coef_, atol=1e-7)
    intercept = weights[C * D :]
    np.testing.assert_allclose(
        intercept - intercept.mean(), reference.intercept_ - reference.intercept_.mean(), atol=1e-7
    )
    # It stops when it is there, not after all rounds.
    assert result.n_iter < 4


def test_lbfgs_converges_where_features_are_correlated():
    X, y = classes(300)
    X = X @ np.random.default_rng(3).normal(size=(D, D)) * [1.0, 30.0, 0.1, 3.0]
    settings = {"optimizer": "lbfgs", "weight_decay": 1e-4, "epochs": 30}
    weights, result = trained(X, y, **settings)
    reference = LogisticRegression(C=1 / (1e-4 * 300), solver="newton-cg", tol=1e-12).fit(X, y)
    np.testing.assert_allclose(weights[: C * D].reshape(C, D), reference.coef_, atol=1e-5)
    assert result.n_iter < 30


def loop(X, y, make, *, rates, batch_size=16, clip=None, epochs=4):
    """Weights after every step of a plain loop of torch."""
    module, X, y = Linear(), torch.from_numpy(X), torch.from_numpy(y)
    optimizer = make(
        [
            {"params": [module.coef], "weight_decay": 0.1},
            {"params": [module.intercept], "weight_decay": 0.0},
        ]
    )
    steps = []
    for _ in range(epochs):
        for start in range(0, len(X), batch_size):
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rates[len(steps)]
            optimizer.zero_grad()
            part = slice(start, start + batch_size)
            F.cross_entropy(module(X[part], None), y[part]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
            steps.append(flat(module))
    return steps


def cosine(n: int, warmup: int = 0) -> np.ndarray:
    """Rates of a warm-up and a half cosine, from their definition."""
    rise = 0.05 * np.arange(1, warmup + 1) / warmup if warmup else np.empty(0)
    u = np.arange(n - warmup) / (n - warmup)
    return np.r_[rise, 0.05 * (1 + np.cos(np.pi * u)) / 2]


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"optimizer": "adamw"}, lambda groups: torch.optim.AdamW(groups)),
        ({"optimizer": "adam"}, lambda groups: torch.optim.Adam(groups)),
        ({"optimizer": "sgd"}, lambda groups: torch.optim.SGD(groups)),
        (
            {"optimizer": "sgd", "momentum": 0.9},
            lambda groups: torch.optim.SGD(groups, momentum=0.9),
        ),
    ],
)
@pytest.mark.parametrize("warmup", [0, 2])
def test_steps_are_those_of_a_loop_of_torch(settings, make, warmup):
    X, y = classes()
    settings = settings | {"weight_decay": 0.1, "sampler": in_order, "warmup_epochs": warmup}
    actual, _ = trained(X, y, **settings)
    desired = loop(X, y, make, rates=cosine(16, 4 * warmup))[-1]
    np.testing.assert_allclose(actual, desired, rtol=1e-10, atol=1e-14)


def test_gradient_is_clipped():
    X, y = classes()
    make = torch.optim.SGD
    settings = {"optimizer": "sgd", "weight_decay": 0.1, "grad_clip": 0.05, "schedule": "constant"}
    actual, _ = trained(X, y, sampler=in_order, **settings)
    desired = loop(X, y, make, rates=np.full(16, 0.05), clip=0.05)[-1]
    np.testing.assert_allclose(actual, desired, rtol=1e-10)


def test_exponential_average_follows_its_formula():
    X, y = classes()
    settings = {"optimizer": "sgd", "weight_decay": 0.1, "ema": 0.3, "schedule": "constant"}
    actual, _ = trained(X, y, sampler=in_order, **settings)
    average = np.zeros(C * D + C)
    for t, weights in enumerate(loop(X, y, torch.optim.SGD, rates=np.full(16, 0.05))):
        m = min(0.3, (1 + t) / (10 + t))
        average = m * average + (1 - m) * weights
    np.testing.assert_allclose(actual, average, rtol=1e-10)


def test_plain_average_is_the_mean_of_the_later_epochs():
    X, y = classes()
    settings = {"optimizer": "sgd", "weight_decay": 0.1, "swa_start": 1, "schedule": "constant"}
    actual, _ = trained(X, y, sampler=in_order, **settings)
    steps = loop(X, y, torch.optim.SGD, rates=np.full(16, 0.05))
    np.testing.assert_allclose(actual, np.mean(steps[7::4], axis=0), rtol=1e-10)


def test_step_schedule_falls_to_a_tenth_twice():
    X, y = classes()
    rates = np.repeat([0.05, 0.005, 0.0005], [8, 8, 8])
    settings = {"optimizer": "sgd", "weight_decay": 0.1, "schedule": "step", "epochs": 6}
    actual, _ = trained(X, y, sampler=in_order, **settings)
    desired = loop(X, y, torch.optim.SGD, rates=rates, epochs=6)[-1]
    np.testing.assert_allclose(actual, desired, rtol=1e-10)


def test_least_rate_is_where_the_cosine_ends():
    X, y = classes()
    rates = 0.01 + (0.05 - 0.01) * cosine(16) / 0.05
    settings = {"optimizer": "sgd", "weight_decay": 0.1, "min_lr": 0.01}
    actual, _ = trained(X, y, sampler=in_order, **settings)
    np.testing.assert_allclose(actual, loop(X, y, torch.optim.SGD, rates=rates)[-1], rtol=1e-10)


def test_optimizer_goes_on_from_its_state():
    X, y = classes()
    settings = {"schedule": "constant", "sampler": in_order}
    module = Linear()
    _, first = trained(X, y, module=module, epochs=2, **settings)
    options = {"optimizer_state": first.optimizer_state}
    actual, _ = trained(X, y, module=module, epochs=3, options=options, **settings)
    np.testing.assert_array_equal(actual, trained(X, y, epochs=5, **settings)[0])


# Weights of samples.


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lbfgs"])
def test_row_of_weight_0_counts_as_absent(optimizer):
    X, y = classes()
    weight = np.random.default_rng(0).uniform(0.5, 2.0, size=N)
    weight[::7] = 0.0
    kept = weight > 0
    settings = {"optimizer": optimizer, "batch_size": N}
    actual, _ = trained(X, y, options={"sample_weight": weight}, **settings)
    desired, _ = trained(X[kept], y[kept], options={"sample_weight": weight[kept]}, **settings)
    np.testing.assert_allclose(actual, desired, rtol=1e-10, atol=1e-13)


def test_row_of_weight_2_counts_twice():
    X, y = classes()
    weight = 1.0 + (np.arange(N) % 2)
    actual, _ = trained(X, y, batch_size=N, options={"sample_weight": weight})
    twice = np.repeat(np.arange(N), weight.astype(int))
    desired, _ = trained(X[twice], y[twice], batch_size=2 * N)
    np.testing.assert_allclose(actual, desired, rtol=1e-9, atol=1e-12)


def test_no_weight_above_0_is_refused():
    X, y = classes()
    with pytest.raises(ValueError, match="sample_weight is 0 for every sample"):
        trained(X, y, options={"sample_weight": np.zeros(N)})


# The same bits.


def everything() -> dict:
    """Settings in which all that is random takes part."""
    return {"mixup": 0.4, "feature_noise": 0.1, "validation_fraction": 0.2}


def test_same_seed_gives_the_same_bits():
    X, y = classes()

    def weights(seed):
        return trained(X, y, module=Linear(dropout=0.3), options={"seed": seed}, **everything())[0]

    np.testing.assert_array_equal(weights(3), weights(3))
    assert (weights(3) != weights(4)).any()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_global_generators_are_left_alone(dropout):
    X, y = classes()
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    trained(X, y, module=Linear(dropout=dropout), **everything())
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)


def test_global_generator_does_not_matter():
    X, y = classes()
    desired, _ = trained(X, y, module=Linear(dropout=0.3))
    with torch.random.fork_rng():
        torch.manual_seed(17)
        np.testing.assert_array_equal(trained(X, y, module=Linear(dropout=0.3))[0], desired)


def test_memory_map_and_tensor_give_the_bits_of_the_array(tmp_path):
    X, y = classes()
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    desired, _ = trained(X, y)
    for given in (mapped, torch.from_numpy(X)):
        np.testing.assert_array_equal(trained(given, y)[0], desired)


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_training_works_where_gradients_are_switched_off(switch):
    X, y = classes()
    desired, _ = trained(X, y)
    module = Linear()
    with switch():
        np.testing.assert_array_equal(trained(X, y, module=module)[0], desired)


def test_mixed_precision_plays_no_part_on_a_host():
    X, y = classes()
    np.testing.assert_array_equal(trained(X, y, amp=True)[0], trained(X, y)[0])


def test_half_precision_is_trained_in_float32():
    X, y = classes()
    X = X.astype(np.float16)
    module = Linear()
    actual, _ = trained(X, y, module=module)
    assert module.coef.dtype == torch.float32
    np.testing.assert_array_equal(actual, trained(X.astype(np.float32), y)[0])


def test_data_are_not_written_to():
    X, y = classes()
    before = X.copy()
    trained(X, y, batch_size=N, **everything())
    np.testing.assert_array_equal(X, before)


# What rows become on the way.


class Watching(nn.Module):
    """An objective that remembers what it is called with in training."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.seen = []

    def forward(self, values, mask, target, weight=None):
        if self.training:
            self.seen.append((values.numpy(), target.numpy(), weight))
        return self.factor.square().sum()


def seen(X, y, *, options=None, **settings) -> list:
    objective = Watching()
    HeadTrainer(device="cpu", **settings).train(objective, VectorRows(X), y, **(options or {}))
    return objective.seen


def test_every_row_comes_once_an_epoch_and_in_order_within_a_minibatch():
    X = np.arange(50.0)[:, None]
    batches = [values[:, 0] for values, _, _ in seen(X, np.zeros(50, int), epochs=2, batch_size=8)]
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8, 8, 2] * 2
    for epoch in (batches[:7], batches[7:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), np.arange(50))
    assert all((np.diff(batch) > 0).all() for batch in batches)
    assert not np.array_equal(batches[0], batches[7])


@pytest.mark.parametrize(("sampler", "power"), [("class_balanced", 0.0), ("sqrt", 0.5)])
def test_sampler_draws_classes_as_often_as_it_says(sampler, power):
    sizes = np.array([800, 150, 50])
    y = np.repeat(np.arange(3), sizes)
    batches = seen(np.zeros((1000, 1)), y, epochs=40, batch_size=1000, sampler=sampler)
    counts = np.bincount(np.concatenate([target for _, target, _ in batches]))
    share = sizes**power / (sizes**power).sum()
    # Three standard deviations of a binomial share of 40,000 draws.
    np.testing.assert_allclose(counts / 40_000, share, atol=3 * np.sqrt(0.25 / 40_000))


def test_rows_of_a_callable_sampler_are_those_of_the_training_part():
    X, y = np.arange(40.0)[:, None], np.arange(40) % 2

    def first_three(targets, generator):
        assert len(targets) == 30
        return np.array([2, 0, 1])

    batches = seen(X, y, epochs=1, sampler=first_three, validation_fraction=0.25)
    assert [len(values) for values, _, _ in batches] == [3]


@pytest.mark.parametrize("given", [np.array([0.5]), np.zeros((2, 2), int), np.array([], int)])
def test_bad_positions_of_a_sampler_are_refused(given):
    X, y = classes()
    with pytest.raises(ValueError, match="sampler returned"):
        trained(X, y, sampler=lambda y, generator: given)


def test_mixed_targets_are_those_of_the_mixed_rows():
    y = np.arange(600) % C
    # Rows that are their own targets.
    for values, target, _ in seen(np.eye(C)[y], y, mixup=0.5, epochs=2, batch_size=100):
        np.testing.assert_allclose(values, target, rtol=1e-12)
        np.testing.assert_allclose(target.sum(axis=1), 1.0, rtol=1e-12)


def test_shares_of_mixed_rows_have_the_moments_of_the_beta_distribution():
    n, a = 4000, 0.7
    # Soft targets tell rows apart, so that the share of the row itself can be read off.
    X = np.arange(n, dtype=np.float64)[:, None]
    options = {"n_outputs": 2}
    ((_, target, _),) = seen(
        X, np.eye(2)[np.arange(n) % 2], mixup=a, epochs=1, batch_size=n, options=options
    )
    share = target[np.arange(n), np.arange(n) % 2]
    other_class = share < 1 - 1e-12
    # Half of the partners are of the other class, and leave a share of Beta(a, a).
    assert abs(other_class.mean() - 0.5) < 0.04
    assert abs(share[other_class].mean() - 0.5) < 0.03
    np.testing.assert_allclose(share[other_class].var(), 1 / (4 * (2 * a + 1)), atol=0.01)


def test_mixed_rows_have_mixed_weights():
    y = np.arange(100) % 2
    weight = 1.0 + np.arange(100) % 2
    ((_, target, weights),) = seen(
        np.zeros((100, 1)), y, mixup=1.0, epochs=1, options={"sample_weight": weight}
    )
    np.testing.assert_allclose(weights, target @ [1.0, 2.0], rtol=1e-12)


def test_masked_tokens_are_not_mixed():
    mask = np.arange(5) < np.array([2, 5, 3, 4])[:, None]
    rows = TokenRows(TokenArray.from_array(np.zeros((4, 5, 3)), mask=mask))
    with pytest.raises(ValueError, match=r"mixup=0\.5.*masked"):
        HeadTrainer(mixup=0.5, device="cpu").train(Watching(), rows, np.arange(4) % 2)


def test_noise_has_the_standard_deviation_that_was_asked_for():
    X = np.full((2000, 10), 3.0)
    ((values, _, _),) = seen(X, np.zeros(2000, int), feature_noise=0.2, epochs=1, batch_size=2000)
    noise = values - 3.0
    np.testing.assert_allclose(noise.std(), 0.2, rtol=0.02)
    assert abs(noise.mean()) < 0.005 and abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.1


def test_last_row_alone_is_skipped_with_batch_norm():
    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(D), nn.Linear(D, C)

        def forward(self, values, mask):
            return self.linear(self.norm(values))

    X, y = classes(17)
    with torch.random.fork_rng():
        result = train_head(Normalized(), X, y, epochs=2, batch_size=16, device="cpu")
    assert np.isfinite(result.history[:, 0]).all()


# Validation.


def noise_labels() -> tuple[np.ndarray, np.ndarray]:
    """Labels of noise: what is learned after the first epochs makes the validation loss worse."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 20)), rng.integers(2, size=60)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_weights_of_the_best_epoch_are_kept(ema):
    X, y = noise_labels()
    settings = {"validation_fraction": 0.3, "epochs": 60, "batch_size": 8, "ema": ema}
    options = {"seed": 5}
    module = Linear(20, 2)
    _, result = trained(
        X, y, module=module, early_stopping=True, patience=4, options=options, **settings
    )
    best = result.history[:, 1].argmin() + 1
    assert result.best_epoch == best and result.n_iter == best + 4 < 60
    # Rows that training did not see have the least validation loss of the history.
    watching = Watching()
    HeadTrainer(validation_fraction=0.3, epochs=1, device="cpu", batch_size=60).train(
        watching, VectorRows(np.arange(60.0)[:, None]), y, seed=5
    )
    kept_back = np.setdiff1d(np.arange(60), watching.seen[0][0][:, 0].astype(int))
    np.testing.assert_array_equal(
        np.bincount(y[kept_back]), np.round(0.3 * np.bincount(y)).astype(int)
    )
    logits = module(torch.from_numpy(X[kept_back]), None)
    loss = F.cross_entropy(logits, torch.from_numpy(y[kept_back])).item()
    np.testing.assert_allclose(loss, result.history[best - 1, 1], rtol=1e-9)


def test_all_epochs_run_without_early_stopping():
    X, y = noise_labels()
    settings = {"validation_fraction": 0.3, "epochs": 30, "batch_size": 8}
    _, result = trained(X, y, module=Linear(20, 2), **settings)
    assert result.n_iter == 30 and result.best_epoch < 30


def test_without_validation_part_the_last_epoch_is_kept():
    X, y = classes()
    _, result = trained(X, y, epochs=15)
    assert result.history.shape == (15, 2) and np.isnan(result.history[:, 1]).all()
    assert result.best_epoch == result.n_iter == 15


def test_too_few_rows_of_a_class_leave_no_validation_part_and_warn():
    X, y = classes()
    y[0] = C
    with pytest.warns(UserWarning, match=r"validation_fraction=0\.2.*none are kept back"):
        _, result = trained(X, y, module=Linear(D, C + 1), validation_fraction=0.2)
    assert np.isnan(result.history[:, 1]).all()


def test_training_loss_is_the_mean_over_the_rows():
    X, y = classes(40)
    # With a rate near 0 the loss stays that of the first weights.
    _, result = trained(X, y, module=Linear(seed=1), epochs=1, lr=1e-12)
    logits = Linear(seed=1)(torch.from_numpy(X), None)
    desired = F.cross_entropy(logits, torch.from_numpy(y)).item()
    np.testing.assert_allclose(result.history[0, 0], desired, rtol=1e-9)


# Ends.


def test_no_epochs_leave_the_first_weights():
    X, y = classes()
    weights, result = trained(X, y, module=Linear(seed=2), epochs=0)
    np.testing.assert_array_equal(weights, flat(Linear(seed=2)))
    assert result.n_iter == 0 and result.history.shape == (0, 2) and result.best_epoch == 0


class Fails(Linear):
    """NaN from some call on."""

    def __init__(self, n_good: int):
        super().__init__()
        self.n_left = n_good

    def forward(self, values, mask):
        self.n_left -= 1
        return super().forward(values, mask) * (1.0 if self.n_left >= 0 else torch.nan)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_loss_that_is_not_finite_keeps_the_last_good_weights(ema):
    X, y = classes()
    desired, _ = trained(X, y, epochs=2, batch_size=N, ema=ema, schedule="constant")
    with pytest.warns(ConvergenceWarning, match="epoch 3 is not finite"):
        actual, result = trained(
            X, y, module=Fails(2), epochs=5, batch_size=N, ema=ema, schedule="constant"
        )
    np.testing.assert_array_equal(actual, desired)
    assert result.best_epoch == 2 and result.n_iter == 3


def test_weights_that_overflow_in_the_last_step_are_not_kept():
    X, y = classes()
    module = Linear()
    with pytest.warns(ConvergenceWarning, match="not finite"):
        trained(X * 1e200, y, module=module, epochs=1, batch_size=N, optimizer="sgd", lr=1e200)
    np.testing.assert_array_equal(flat(module), 0.0)


def test_callback_is_told_of_every_epoch_with_the_weights_that_would_be_kept():
    X, y = classes()
    module, told = Linear(), []

    def on_epoch(*numbers):
        told.append((*numbers, flat(module)))

    weights, result = trained(X, y, module=module, ema=0.9, options={"on_epoch": on_epoch})
    assert [epoch for epoch, *_ in told] == [0, 1, 2, 3]
    np.testing.assert_array_equal([losses for _, *losses, _ in told], result.history)
    np.testing.assert_array_equal(told[-1][-1], weights)


def test_callback_that_returns_true_ends_the_training():
    X, y = classes()
    _, result = trained(X, y, options={"on_epoch": lambda epoch, *losses: epoch == 1})
    assert result.n_iter == 2


# What is refused.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "rmsprop"}, "optimizer"),
        ({"lr": 0.0}, "lr"),
        ({"schedule": "linear"}, "schedule"),
        ({"sampler": "balanced"}, "sampler"),
        ({"ema": 1.0}, "ema"),
        ({"ema": 0.9, "swa_start": 2}, "two averages"),
        ({"early_stopping": True}, "set validation_fraction"),
        ({"optimizer": "lbfgs", "mixup": 0.2}, r"lbfgs.*mixup=0\.2"),
        ({"optimizer": "lbfgs", "sampler": "sqrt"}, "lbfgs.*sampler='sqrt'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HeadTrainer(**settings)


def test_dropout_is_refused_with_lbfgs():
    X, y = classes()
    with pytest.raises(ValueError, match=r"lbfgs.*dropout"):
        trained(X, y, module=Linear(dropout=0.1), optimizer="lbfgs")


@pytest.mark.parametrize("device", ["nowhere", "cuda:77"])
def test_device_that_is_not_there_is_refused(device):
    X, y = classes()
    with pytest.raises(ValueError, match=f"device='{device}' is not available"):
        trained(X, y, device=device)


def test_sampler_by_class_is_refused_for_other_targets():
    X, _ = classes()
    with pytest.raises(ValueError, match="no classes"):
        trained(X, np.random.default_rng(0).random((N, C)), sampler="sqrt")


# The function on top.


def test_train_head_trains_in_place():
    X, y = classes()
    module = Linear()
    told = []
    result = train_head(
        module,
        X,
        y,
        lr=0.05,
        epochs=4,
        batch_size=16,
        device="cpu",
        random_state=3,
        callbacks=[lambda *numbers: told.append(numbers)],
    )
    seed = np.random.RandomState(3).randint(np.iinfo(np.int32).max)
    np.testing.assert_array_equal(flat(module), trained(X, y, options={"seed": seed})[0])
    assert len(told) == result.n_iter == 4


def test_soft_targets_with_one_1_equal_class_numbers():
    X, y = classes()
    hard, soft = Linear(), Linear()
    train_head(hard, X, y, device="cpu", epochs=3)
    train_head(soft, X, np.eye(C)[y], device="cpu", epochs=3)
    np.testing.assert_allclose(flat(soft), flat(hard), rtol=1e-10)


def test_counts_reach_the_loss():
    X, y = classes()
    X, y = X[y < 2][:30], np.repeat([0, 1], [10, 20])
    module = Linear(D, 2)
    weight = np.repeat([3.0, 1.0], [10, 20])
    settings = {"optimizer": "lbfgs", "weight_decay": 1e6, "device": "cpu"}
    train_head(module, X, y, loss="logit_adjusted", sample_weight=weight, **settings)
    # With next to no weights, intercepts and log priors together give the shares: 30 to 20.
    prior = np.log([0.6, 0.4])
    logits = module.intercept.detach().numpy() + prior
    np.testing.assert_allclose(logits - logits.mean(), prior - prior.mean(), atol=1e-3)


def test_train_head_takes_tokens_and_leaves_out_what_has_none():
    class Mean(Linear):
        def forward(self, values, mask):
            if mask is not None:
                values = values.where(mask[..., None], 0.0)
            n = values.shape[1] if mask is None else mask.sum(dim=1, keepdim=True)
            return super().forward(values.sum(dim=1) / n, None)

    X, y = classes()
    mask = np.ones((N, 2), dtype=bool)
    mask[5] = False
    tokens = TokenArray.from_array(np.stack([X, X], axis=1), mask=mask)
    module, desired = Mean(), Linear()
    train_head(module, tokens, y, device="cpu", epochs=3)
    train_head(desired, np.delete(X, 5, axis=0), np.delete(y, 5), device="cpu", epochs=3)
    np.testing.assert_allclose(flat(module), flat(desired), rtol=1e-10)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.zeros(3), [0, 1, 0], "X has shape"),
        (np.zeros((3, 2)), [0, 1], "y has shape"),
        (np.zeros((3, 2)), ["a", "b", "a"], "LabelEncoder"),
        (np.zeros((3, 2)), [0, -1, 0], "LabelEncoder"),
        (np.full((3, 2), np.nan), [0, 1, 0], "NaN in row 0"),
    ],
)
def test_bad_data_of_train_head_are_refused(X, y, message):
    with pytest.raises(ValueError, match=message):
        train_head(Linear(2, 2), X, y)


def test_objective_is_a_weighted_mean():
    module = Linear(seed=0)
    X, y = classes(6)
    values, target = torch.from_numpy(X), torch.from_numpy(y)
    weight = torch.arange(1.0, 7.0, dtype=torch.float64)
    objective = HeadObjective(module, get_loss("cross_entropy"))
    losses = F.cross_entropy(module(values, None), target, reduction="none").detach().numpy()
    np.testing.assert_allclose(
        objective(values, None, target, weight).item(), np.average(losses, weights=weight)
    )
    np.testing.assert_allclose(objective(values, None, target).item(), losses.mean())
