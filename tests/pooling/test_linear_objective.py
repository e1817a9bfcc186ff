# SPDX-License-Identifier: BSD-3-Clause
"""Poolings trained with a linear head: what is minimised, and that nothing else decides it."""

import numpy as np
import pytest
import torch
from lazy_tokens import LazySource
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

import skpool
from skpool.pooling._linear_objective import LOSSES, train_pooling
from skpool.stores import TokenArray
from skpool.training import TokenRows
from skpool.training._run import split_rows

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
    trained = train_pooling(pooling, rows, y, lr=0.1, epochs=200, batch_size=len(y), seed=0)
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
    trained = train_pooling(pooling, rows, y, loss="mse", lr=0.1, epochs=400, batch_size=N, seed=0)
    reference = LinearRegression().fit(values[:, 0], y)
    np.testing.assert_allclose(trained.coef, reference.coef_, atol=1e-3)
    np.testing.assert_allclose(trained.intercept, reference.intercept_, atol=1e-3)


def run(tokens: TokenArray, y: np.ndarray, **options):
    pooling = Mean(dtype=torch.float64)
    options = {"lr": 0.05, "epochs": 4, "batch_size": 3, "seed": 0, "device": "cpu"} | options
    trained = train_pooling(pooling, rows_of(tokens), y, **options)
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
    options = {"lr": 0.05, "epochs": 60, "batch_size": 8, "seed": 0, "validation_fraction": 0.3}
    trained = train_pooling(pooling, rows, y, **options)
    _, validation = split_rows(y, 0.3, seed=0)
    best = trained.history[:, 1].argmin()
    assert 0 < best and len(trained.history) == best + 11
    vectors = pooling(torch.from_numpy(X), None).detach().numpy()
    outputs = torch.from_numpy(vectors @ trained.coef.T + trained.intercept)[validation]
    loss = nn.functional.cross_entropy(outputs, torch.from_numpy(y[validation]))
    np.testing.assert_allclose(float(loss), trained.history[best, 1], rtol=1e-9)


def test_without_validation_part_all_epochs_run(values):
    rows = rows_of(TokenArray.from_array(values))
    trained = train_pooling(Mean(), rows, np.arange(N) % 2, lr=0.1, epochs=15, batch_size=4, seed=0)
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
        trained = train_pooling(
            pooling, rows, np.arange(N) % 2, lr=0.1, epochs=5, batch_size=N, seed=0
        )
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
    options = {"lr": 0.1, "epochs": 3, "batch_size": N, "seed": 0, "weight_decay": 0.5}
    train_pooling(pooling, rows, np.arange(N) % 2, **options)
    # AdamW multiplies by 1 - lr_t * decay, with lr_t on a cosine of three steps.
    rates = 0.1 * (1 + np.cos(np.pi * np.arange(3) / 3)) / 2
    np.testing.assert_allclose(pooling.matrix.detach(), np.prod(1 - 0.5 * rates), rtol=1e-12)
    assert (pooling.latents == 1).all() and (pooling.bias == 1).all()
