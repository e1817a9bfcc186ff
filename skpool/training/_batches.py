# SPDX-License-Identifier: BSD-3-Clause
"""From rows to minibatches: which rows, in what order, and what is done to them on the way.

Between `Rows` and the trainer: a sampler names the rows of an epoch, `Minibatches` cuts them,
reads them in order, moves them to the device, and mixes them or adds noise where asked.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from skpool.training._rows import Rows

__all__ = ["SAMPLERS", "Batch", "Minibatches", "Sampler"]

# Of the targets of the rows and a generator: positions of the rows of an epoch.
Sampler = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _shuffle(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return generator.permutation(len(y))


def _drawn(y: np.ndarray, generator: np.random.Generator, power: float) -> np.ndarray:
    """As many rows as there are, a class with n of them with weight ``n ** power``."""
    if y.ndim != 1:
        raise ValueError("sampler draws by class, but the targets are no classes; use 'shuffle'.")
    weights = np.bincount(y)[y].astype(np.float64) ** (power - 1.0)
    return generator.choice(len(y), size=len(y), p=weights / weights.sum())


def _class_balanced(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return _drawn(y, generator, 0.0)


def _sqrt(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return _drawn(y, generator, 0.5)


SAMPLERS: dict[str, Sampler] = {
    "class_balanced": _class_balanced,
    "shuffle": _shuffle,
    "sqrt": _sqrt,
}


class Batch(NamedTuple):
    """What an objective is called with, and how much it counts."""

    values: torch.Tensor
    mask: torch.Tensor | None
    target: torch.Tensor
    weight: torch.Tensor | None
    size: float


class Minibatches:
    """Rows and targets as minibatches on a device.

    Parameters
    ----------
    rows : Rows
    y : ndarray of shape (n_rows,) or (n_rows, n_outputs)
        Class numbers, or soft or continuous targets.
    sample_weight : ndarray of shape (n_rows,), or None
    device : torch.device
    dtype : torch.dtype
        Of values, weights and targets that are no class numbers.
    batch_size : int
    n_outputs : int
        Classes, of which "mixup" makes soft targets.
    mixup, feature_noise : float
        See `HeadTrainer`.
    """

    def __init__(
        self,
        rows: Rows,
        y: np.ndarray,
        sample_weight: np.ndarray | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        n_outputs: int,
        mixup: float = 0.0,
        feature_noise: float = 0.0,
    ):
        self.rows, self.device, self.dtype, self.batch_size = rows, device, dtype, batch_size
        self.n_outputs, self.mixup, self.feature_noise = n_outputs, mixup, feature_noise
        y = torch.as_tensor(y).to(device)
        self.y = y.to(dtype) if y.is_floating_point() else y.long()
        self.weights = sample_weight
        self.weight = None
        if sample_weight is not None:
            self.weight = torch.as_tensor(sample_weight).to(device, dtype)

    def cut(self, order: np.ndarray) -> Iterator[np.ndarray]:
        """Numbers of the rows of every minibatch, sorted: files are read faster in order.

        Parameters
        ----------
        order : ndarray of shape (n,)

        Yields
        ------
        index : ndarray of shape (batch,)
        """
        for start in range(0, len(order), self.batch_size):
            yield np.sort(order[start : start + self.batch_size])

    def read(self, index: np.ndarray) -> Batch:
        """Rows as they are.

        Parameters
        ----------
        index : ndarray of shape (batch,)

        Returns
        -------
        batch : Batch
        """
        values, mask = self.rows.take(index)
        place = torch.from_numpy(index).to(self.device)
        return Batch(
            values.to(self.device, self.dtype),
            None if mask is None else mask.to(self.device),
            self.y[place],
            None if self.weight is None else self.weight[place],
            float(len(index) if self.weights is None else self.weights[index].sum()),
        )

    def changed(self, index: np.ndarray, generator: np.random.Generator) -> Batch:
        """Rows as they are learned from: mixed, and with noise, where that is asked for.

        Parameters
        ----------
        index : ndarray of shape (batch,)
        generator : numpy Generator

        Returns
        -------
        batch : Batch
        """
        batch = self.read(index)
        if self.mixup:
            batch = self._mixed(batch, generator)
        if self.feature_noise:
            noise = generator.standard_normal(tuple(batch.values.shape), dtype=np.float32)
            noise = torch.from_numpy(noise).to(batch.values)
            batch = batch._replace(values=batch.values + self.feature_noise * noise)
        return batch

    def _mixed(self, batch: Batch, generator: np.random.Generator) -> Batch:
        """Every row with another of the minibatch, and so its target."""
        if batch.mask is not None:
            raise ValueError(
                f"mixup={self.mixup} mixes tokens place by place, which masked tokens do not "
                "allow; set mixup=0."
            )
        n = len(batch.target)
        share = torch.from_numpy(generator.beta(self.mixup, self.mixup, size=n))
        other = torch.from_numpy(generator.permutation(n)).to(self.device)
        share = share.to(self.device, self.dtype)

        def mix(whole: torch.Tensor) -> torch.Tensor:
            part = share.reshape(-1, *[1] * (whole.ndim - 1))
            return part * whole + (1 - part) * whole[other]

        target = batch.target
        if not target.is_floating_point():
            target = F.one_hot(target, self.n_outputs).to(self.dtype)
        weight = None if batch.weight is None else mix(batch.weight)
        size = batch.size if weight is None else float(weight.sum())
        return Batch(mix(batch.values), None, mix(target), weight, size)
