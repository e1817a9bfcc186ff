# SPDX-License-Identifier: BSD-3-Clause
"""A linear head, small data, and ways to train it, for the tests of the trainer and of heads."""

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from skpool.probing._base import TRAINER_CONSTRAINTS, TorchHeadMixin
from skpool.stores import validate_tokens
from skpool.training import (
    HeadObjective,
    HeadTrainer,
    TokenRows,
    Trained,
    VectorRows,
    get_loss,
)
from skpool.utils import validate_vectors

__all__ = ["C", "D", "Linear", "LinearHead", "MeanHead", "N", "classes", "flat", "trained"]

N, D, C = 60, 4, 3


class Linear(nn.Module):
    """Scores that are linear in the features; its first weights are zero or drawn."""

    def __init__(self, d: int = D, c: int = C, *, seed: int | None = None, dropout: float = 0.0):
        super().__init__()
        first = (
            np.zeros((c, d)) if seed is None else np.random.default_rng(seed).normal(size=(c, d))
        )
        self.coef = nn.Parameter(torch.tensor(first))
        self.intercept = nn.Parameter(torch.zeros(c, dtype=torch.float64))
        self.dropout = nn.Dropout(dropout)

    def forward(self, values, mask):
        return self.dropout(values) @ self.coef.T + self.intercept


def classes(n: int = N, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % C
    return rng.normal(size=(n, D)) + 1.5 * np.eye(C)[y] @ np.eye(C, D), y


def flat(module: nn.Module) -> np.ndarray:
    """All weights in one row."""
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])


def trained(
    X, y, *, module=None, loss="cross_entropy", options=None, **settings
) -> tuple[np.ndarray, Trained]:
    """The weights of a linear head after training, and what else training leaves."""
    module = Linear() if module is None else module
    trainer = HeadTrainer(**{"device": "cpu", "lr": 0.05, "epochs": 4, "batch_size": 16} | settings)
    objective = HeadObjective(module, get_loss(loss))
    result = trainer.train(objective, VectorRows(X), y, **(options or {}))
    return flat(module), result


class _Scores(nn.Module):
    """A linear layer with the first weights of torch, and the mean of tokens before it."""

    def __init__(self, d: int, c: int):
        super().__init__()
        self.head = nn.Linear(d, c)

    def forward(self, values, mask):
        if values.ndim == 3:
            real = values if mask is None else values.where(mask[..., None], 0.0)
            n = values.shape[1] if mask is None else mask.sum(dim=1, keepdim=True)
            values = real.sum(dim=1) / n
        return self.head(values)


class LinearHead(TorchHeadMixin, ClassifierMixin, BaseEstimator):
    """The smallest head: what the mixin asks for, and nothing else."""

    _parameter_constraints: dict = {
        **{
            name: TRAINER_CONSTRAINTS[name]
            for name in ("lr", "epochs", "batch_size", "device", "class_weight", "epochs_partial")
        },
        **{name: TRAINER_CONSTRAINTS[name] for name in ("ema", "checkpoint", "random_state")},
    }

    def __init__(
        self,
        *,
        lr=0.05,
        epochs=20,
        batch_size=64,
        optimizer="adamw",
        weight_decay=0.0,
        ema=None,
        class_weight=None,
        loss="cross_entropy",
        epochs_partial=1,
        checkpoint=None,
        device="cpu",
        random_state=0,
    ):
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.ema = ema
        self.class_weight = class_weight
        self.loss = loss
        self.epochs_partial = epochs_partial
        self.checkpoint = checkpoint
        self.device = device
        self.random_state = random_state

    def _rows(self, X, *, reset):
        return VectorRows(validate_vectors(self, X, reset=reset))

    def _make_module(self, n_features, n_outputs, generator, rows):
        return _Scores(n_features, n_outputs)

    def _loss(self):
        return get_loss(self.loss)

    def _trainer(self):
        return HeadTrainer(
            lr=self.lr,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            ema=self.ema,
            checkpoint=self.checkpoint,
            device=self.device,
        )


class MeanHead(LinearHead):
    """The same on the mean of the tokens."""

    def _rows(self, X, *, reset):
        return TokenRows(validate_tokens(self, X, reset=reset))
