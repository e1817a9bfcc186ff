# SPDX-License-Identifier: BSD-3-Clause
"""The trainer of poolings: what it reads, what it minimises, and that nothing else decides it."""

import numpy as np
import pytest
import torch
from lazy_tokens import LazySource
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

import skpool
from skpool.pooling._training import (
    LOSSES,
    TokenRows,
    _split,
    class_numbers,
    train,
)
from skpool.stores import TokenArray

N, L, D = 11, 5, 3


class Mean(nn.Module):
    """The mean of the tokens times one trained number."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, tokens, mask):
        if mask is None:
            return self.factor * tokens.mean(dim=1)
        tokens = tokens.where(mask[..., None], 0.0)
        return self.factor * tokens.sum(dim=1) / mask.sum(dim=1, keepdim=True)


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(N, L, D))


@pytest.fixture
def lengths_mask():
    return np.arange(L) < np.array([1, 3, 2, 4, 1, 2, 3, 2, 1, 4, 3])[:, None]


def rows_of(tokens: TokenArray) -> TokenRows:
    return TokenRows(tokens, batch_size=4)


# Reading.


def test_rows_are_those_of_the_array(values):
    tokens, mask = rows_of(TokenArray.from_array(values)).take(np.array([1, 4, 7]))
    np.testing.assert_array_equal(tokens, values[[1, 4, 7]])
    assert mask is None


def test_half_precision_is_widened_row_by_row(values):
    tokens, _ = rows_of(TokenArray.from_array(values.astype(np.float16))).take(np.array([0]))
    assert tokens.dtype == torch.float32


def test_trailing_padding_is_cut_off(values, lengths_mask):
    rows = rows_of(TokenArray.from_array(values, mask=lengths_mask))
    tokens, mask = rows.take(np.array([0, 1]))
    np.testing.assert_array_equal(tokens, values[:2, :3])
    np.testing.assert_array_equal(mask, lengths_mask[:2, :3])


def test_mask_without_false_is_no_mask(values):
    rows = rows_of(TokenArray.from_array(values, mask=np.ones((N, L), dtype=bool)))
    assert rows.take(np.arange(N))[1] is None


def test_samples_without_token_or_reading_are_left_out(values, lengths_mask):
    lengths_mask[3] = False
    rows = rows_of(TokenArray(LazySource(values, lengths_mask, missing=(5,))))
    np.testing.assert_array_equal(rows.numbers, np.delete(np.arange(N), [3, 5]))
    np.testing.assert_array_equal(rows.take(np.array([3]))[0], values[[4], :1])


def test_nothing_to_learn_from_is_refused(values):
    tokens = TokenArray.from_array(values, mask=np.zeros((N, L), dtype=bool))
    with pytest.raises(ValueError, match="no sample with a real token"):
        rows_of(tokens)


def test_bad_token_of_a_network_names_its_sample(values):
    values[6, 1, 1] = np.inf
    with pytest.raises(ValueError, match=r"computed tokens of sample 6\b"):
        rows_of(TokenArray(LazySource(values)))


def test_tokens_of_a_network_are_read_once(values):
    source = LazySource(values)
    rows = rows_of(TokenArray(source))
    for _ in range(3):
        rows.take(np.arange(N))
    assert source.n_read == N


def test_tokens_beyond_the_limit_are_read_again(values):
    source = LazySource(values)
    with skpool.config_context(max_array_bytes=values.nbytes - 1):
        rows = rows_of(TokenArray(source))
    tokens, _ = rows.take(np.array([2, 8, 9]))
    np.testing.assert_array_equal(tokens, values[[2, 8, 9]])
    assert source.n_read == N + 3


def test_sample_that_is_lost_between_epochs_is_refused(values):
    source = LazySource(values)
    with skpool.config_context(max_array_bytes=0):
        rows = rows_of(TokenArray(source))
    source.missing = (8,)
    with pytest.raises(ValueError, match="1 sample"):
        rows.take(np.array([2, 8]))


def test_moments_are_those_of_the_real_tokens(values, lengths_mask):
    values = values * [1.0, 100.0, 1e-3] + [0.0, 1e6, 5.0]
    garbage = np.where(lengths_mask[..., None], values, np.nan)
    mean, scale = rows_of(TokenArray.from_array(garbage, mask=lengths_mask)).moments()
    np.testing.assert_allclose(mean, values[lengths_mask].mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale, values[lengths_mask].std(0), rtol=1e-8)


def test_scale_of_a_constant_feature_is_one():
    mean, scale = rows_of(TokenArray.from_array(np.full((N, L, 1), 0.1))).moments()
    assert float(scale) == 1.0
    np.testing.assert_allclose(mean, [0.1])


# Labels.


def test_class_numbers_are_those_of_the_chosen_samples():
    classes, codes = class_numbers(["b", "a", "c", "b"], 4, np.array([0, 2, 3]), "It")
    assert classes.tolist() == ["b", "c"] and codes.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "It requires y to be passed, but the target y is None"),
        ([1, 1, 1], "one class"),
        ([1, 2], "inconsistent numbers of samples"),
        ([1, None, 2], "NaN or None"),
    ],
)
def test_bad_labels_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        class_numbers(y, 3, np.arange(3), "It")


def test_validation_part_holds_every_class():
    y = np.repeat(np.arange(3), [50, 30, 20])
    training, validation = _split(y, 0.1, seed=0)
    np.testing.assert_array_equal(np.bincount(y[validation]), [5, 3, 2])
    np.testing.assert_array_equal(np.sort(np.r_[training, validation]), np.arange(100))


@pytest.mark.parametrize("y", [[0, 1, 0, 1], [0] * 50 + [1], list(range(10)) * 2])
def test_too_few_samples_of_a_class_leave_no_validation_part(y):
    training, validation = _split(np.array(y), 0.2, seed=0)
    assert len(training) == len(y) and len(validation) == 0


# Losses.


def test_supcon_equals_its_definition():
    rng = np.random.default_rng(0)
    y, z = np.array([0, 1, 0, 2, 1, 0]), rng.normal(size=(6, 4))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        total = sum(np.exp(unit[i] @ unit[j] / 0.1) for j in others)
        alike = [-np.log(np.exp(unit[i] @ unit[j] / 0.1) / total) for j in others if y[j] == y[i]]
        losses += [np.mean(alike)] if alike else []
    actual = LOSSES["supcon"](torch.from_numpy(z), None, torch.from_numpy(y))
    np.testing.assert_allclose(float(actual), np.mean(losses), rtol=1e-10)


def test_supcon_of_samples_that_are_all_different_is_zero():
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert float(LOSSES["supcon"](z, None, torch.arange(3))) == 0.0


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_gradient_of_the_loss_is_right(loss):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.tensor([0, 1, 0, 2, 1]) if loss != "mse" else torch.ones(5, 3)
    assert torch.autograd.gradcheck(lambda z: LOSSES[loss](z, z, y), (z,))


# Training.


def overlapping_classes(n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    y = np.arange(n) % 3
    return rng.normal(size=(n, D)) + 1.5 * np.eye(3)[y][:, :D], y


def test_head_reaches_the_optimum_of_logistic_regression():
    X, y = overlapping_classes()
    # Units that a rate of 0.1 would not reach if the head did not work in standard units.
    X = X * [1.0, 1e-3, 1e3] + [0.0, 7.0, -1e4]
    pooling = Mean()
    pooling.factor.requires_grad = False
    rows = rows_of(TokenArray.from_array(X[:, None]))
    trained = train(pooling, rows, y, lr=0.1, epochs=200, minibatch=len(y), seed=0)
    logits = X @ trained.coef.T + trained.intercept
    actual = torch.from_numpy(logits).softmax(dim=1)
    scaled = (X - X.mean(0)) / X.std(0)
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(scaled, y)
    np.testing.assert_allclose(actual, reference.predict_proba(scaled), atol=1e-3)


def test_head_reaches_the_optimum_of_least_squares(values):
    y = np.random.default_rng(1).normal(size=(N, 2))
    rows = rows_of(TokenArray.from_array(values[:, :1]))
    pooling = Mean()
    pooling.factor.requires_grad = False
    trained = train(pooling, rows, y, loss="mse", lr=0.1, epochs=400, minibatch=N, seed=0)
    reference = LinearRegression().fit(values[:, 0], y)
    np.testing.assert_allclose(trained.coef, reference.coef_, atol=1e-3)
    np.testing.assert_allclose(trained.intercept, reference.intercept_, atol=1e-3)


def run(tokens: TokenArray, y: np.ndarray, **options):
    pooling = Mean(dtype=torch.float64)
    options = {"lr": 0.05, "epochs": 4, "minibatch": 3, "seed": 0, "device": "cpu"} | options
    trained = train(pooling, rows_of(tokens), y, **options)
    return np.r_[trained.coef.ravel(), trained.intercept, pooling.factor.detach().numpy()]


def test_same_seed_gives_the_same_bits(values):
    y = np.arange(N) % 2
    tokens = TokenArray.from_array(values)
    np.testing.assert_array_equal(run(tokens, y), run(tokens, y))
    assert (run(tokens, y) != run(tokens, y, seed=1)).any()


@pytest.mark.parametrize("limit", [2**30, 0])
def test_lazy_tokens_give_the_bits_of_their_array(values, lengths_mask, limit):
    y = np.arange(N) % 2
    desired = run(TokenArray.from_array(values, mask=lengths_mask), y)
    with skpool.config_context(max_array_bytes=limit):
        actual = run(TokenArray(LazySource(values, lengths_mask)), y)
    np.testing.assert_array_equal(actual, desired)


def test_memory_map_gives_the_bits_of_its_array(values, tmp_path):
    np.save(tmp_path / "tokens.npy", values)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    y = np.arange(N) % 2
    actual = run(TokenArray.from_array(mapped), y)
    np.testing.assert_array_equal(actual, run(TokenArray.from_array(values), y))


def test_global_generators_are_left_alone(values):
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(TokenArray.from_array(values), np.arange(N) % 2, validation_fraction=0.2)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)


def test_training_works_where_gradients_are_switched_off(values):
    y = np.arange(N) % 2
    desired = run(TokenArray.from_array(values), y)
    with torch.no_grad():
        np.testing.assert_array_equal(run(TokenArray.from_array(values), y), desired)


def test_weights_of_the_best_epoch_are_kept():
    # Labels of noise: what is learned after the first epochs makes the validation loss worse.
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 1, 20)), rng.integers(2, size=60)
    rows, pooling = rows_of(TokenArray.from_array(X)), Mean()
    options = {"lr": 0.05, "epochs": 60, "minibatch": 8, "seed": 0, "validation_fraction": 0.3}
    trained = train(pooling, rows, y, **options)
    _, validation = _split(y, 0.3, seed=0)
    best = trained.history[:, 1].argmin()
    assert 0 < best and len(trained.history) == best + 11
    vectors = pooling(torch.from_numpy(X), None).detach().numpy()
    outputs = torch.from_numpy(vectors @ trained.coef.T + trained.intercept)[validation]
    loss = nn.functional.cross_entropy(outputs, torch.from_numpy(y[validation]))
    np.testing.assert_allclose(float(loss), trained.history[best, 1], rtol=1e-9)


def test_without_validation_part_all_epochs_run(values):
    rows = rows_of(TokenArray.from_array(values))
    trained = train(Mean(), rows, np.arange(N) % 2, lr=0.1, epochs=15, minibatch=4, seed=0)
    assert trained.history.shape == (15, 2) and np.isnan(trained.history[:, 1]).all()


def test_loss_that_is_not_finite_keeps_the_last_good_weights(values):
    class Fails(Mean):
        n_calls = 0

        def forward(self, tokens, mask):
            self.n_calls += 1
            # The first call takes the moments of the vectors, the next two are steps.
            return super().forward(tokens, mask) * (torch.nan if self.n_calls > 3 else 1.0)

    rows, pooling = rows_of(TokenArray.from_array(values)), Fails()
    with pytest.warns(ConvergenceWarning, match="epoch 3 is not finite"):
        trained = train(pooling, rows, np.arange(N) % 2, lr=0.1, epochs=5, minibatch=N, seed=0)
    assert np.isfinite(trained.coef).all() and np.isfinite(pooling.factor.item())
    assert trained.coef.any()


def test_weight_decay_shrinks_matrices_alone(values):
    class Decaying(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
            self.latents = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
            self.bias = nn.Parameter(torch.ones(2, dtype=torch.float64))

        @property
        def undecayed(self):
            return (self.latents,)

        def forward(self, tokens, mask):
            # A gradient of zero leaves the decay alone.
            nothing = 0.0 * (self.matrix.sum() + self.latents.sum() + self.bias.sum())
            return tokens.mean(dim=1) + nothing

    pooling = Decaying()
    rows = rows_of(TokenArray.from_array(values))
    options = {"lr": 0.1, "epochs": 3, "minibatch": N, "seed": 0, "weight_decay": 0.5}
    train(pooling, rows, np.arange(N) % 2, **options)
    # AdamW multiplies by 1 - lr_t * decay, with lr_t on a cosine of three steps.
    rates = 0.1 * (1 + np.cos(np.pi * np.arange(3) / 3)) / 2
    np.testing.assert_allclose(pooling.matrix.detach(), np.prod(1 - 0.5 * rates), rtol=1e-12)
    assert (pooling.latents == 1).all() and (pooling.bias == 1).all()
