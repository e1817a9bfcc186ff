# SPDX-License-Identifier: BSD-3-Clause
"""One training, epoch by epoch: steps, validation, the weights that are kept, the checkpoint.

`HeadTrainer.train` makes a `Run` and lets it go. A run is a function of its settings, its seed
and what a checkpoint holds, so that one that was interrupted ends where it would have ended.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from torch import nn

from skpool.training._batches import SAMPLERS, Batch, Minibatches
from skpool.training._checkpoint import Checkpoint, Saved
from skpool.training._losses import Loss
from skpool.training._optimizers import (
    LBFGS_ITERATIONS,
    LBFGS_SCALE,
    WeightAverage,
    make_optimizer,
    packed_state,
    parameter_groups,
    rate,
    unpack_state,
)
from skpool.training._random import child_seed, epoch_generator, own_generators
from skpool.training._rows import Rows
from skpool.utils import fingerprint

if TYPE_CHECKING:
    from skpool.training._trainer import HeadTrainer

__all__ = [
    "OnEpoch",
    "Run",
    "Trained",
    "can_split",
    "split_rows",
]

# Of the number of the epoch and its losses on the training and the validation part.
OnEpoch = Callable[[int, float, float], object]
# Settings that a training may go on with others of.
_FREE = ("checkpoint", "device")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training leaves beside the weights.

    Parameters
    ----------
    history : ndarray of shape (n_epochs, 2)
        Loss on the training and on the validation part, NaN without one, of every epoch.
    n_iter : int
        Epochs that were run.
    best_epoch : int
        Epochs after which the weights were taken; 0 for the first weights.
    optimizer_state : dict of str to ndarray
        What the optimizer remembers, by the names of the parameters.
    """

    history: np.ndarray
    n_iter: int
    best_epoch: int
    optimizer_state: dict[str, np.ndarray]


# The validation part.


def can_split(y: np.ndarray, fraction: float) -> bool:
    """Whether every class can have a row in the training and in the validation part.

    Parameters
    ----------
    y : ndarray of shape (n_rows,) or (n_rows, n_outputs)
    fraction : float
        Of the validation part.

    Returns
    -------
    possible : bool
    """
    n_validation = round(fraction * len(y))
    sizes = np.array([len(y)]) if y.ndim > 1 else np.bincount(y)
    sizes = sizes[sizes > 0]
    return min(n_validation, len(y) - n_validation) >= len(sizes) and sizes.min() > 1


def split_rows(y: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to validate on, of every class.

    Parameters
    ----------
    y : ndarray of shape (n_rows,) or (n_rows, n_outputs)
    fraction : float
        Of the rows to validate on.
    seed : int

    Returns
    -------
    training, validation : ndarray
        Sorted; the latter is empty where a class could not be in both.
    """
    rows = np.arange(len(y))
    if not can_split(y, fraction):
        return rows, rows[:0]
    parts = train_test_split(
        rows,
        test_size=round(fraction * len(y)),
        stratify=y if y.ndim == 1 else None,
        random_state=seed % 2**32,
    )
    return np.sort(parts[0]), np.sort(parts[1])


def _has(module: nn.Module, kind: type) -> bool:
    return any(isinstance(part, kind) for part in module.modules())


def _draws(module: nn.Module) -> bool:
    """Whether layers of the module draw random numbers by themselves."""
    return any(
        (isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0)
        or (isinstance(part, nn.MultiheadAttention) and part.dropout > 0)
        for part in module.modules()
    )


def _name_of(function: object) -> str:
    """A name that is the same in every process."""
    return getattr(function, "__qualname__", type(function).__qualname__)


class Run:
    """One training.

    Parameters
    ----------
    trainer : HeadTrainer
        Settings.
    objective : module
        Where it is trained.
    rows : Rows
    y : ndarray of shape (n_rows,) or (n_rows, n_outputs)
    sample_weight : ndarray of shape (n_rows,), or None
    seed : int
    n_outputs : int or None
    place : tuple of torch.device and torch.dtype
    optimizer_state : dict or None
    """

    def __init__(
        self,
        trainer: "HeadTrainer",
        objective: nn.Module,
        rows: Rows,
        y: np.ndarray,
        sample_weight: np.ndarray | None,
        *,
        seed: int,
        n_outputs: int | None,
        place: tuple[torch.device, torch.dtype],
        optimizer_state: dict[str, np.ndarray] | None,
    ):
        self.settings, self.objective, self.seed = trainer, objective, seed
        self.device, self.y = place[0], y
        if n_outputs is None:
            n_outputs = int(y.max()) + 1 if y.ndim == 1 else y.shape[1]
        self.batches = Minibatches(
            rows,
            y,
            sample_weight,
            device=place[0],
            dtype=place[1],
            batch_size=trainer.batch_size,
            n_outputs=n_outputs,
            mixup=trainer.mixup,
            feature_noise=trainer.feature_noise,
        )
        self.training, self.validation = self._parts(sample_weight)
        self.optimizer = make_optimizer(
            trainer.optimizer,
            objective,
            lr=trainer.lr,
            weight_decay=trainer.weight_decay,
            momentum=trainer.momentum,
        )
        self.checkpoint = self._open_checkpoint(rows, y, sample_weight)
        if optimizer_state:
            unpack_state(optimizer_state, objective, self.optimizer)
        self.average = None
        if trainer.ema is not None or trainer.swa_start is not None:
            self.average = WeightAverage(objective, decay=trainer.ema, start=trainer.swa_start or 0)
        self.history: list[tuple[float, float]] = []
        self.best_epoch, self.converged = 0, False
        self.best = deepcopy(objective.state_dict())
        self.draws = _draws(objective)
        if self.draws and trainer.optimizer == "lbfgs":
            raise ValueError(
                "optimizer='lbfgs' minimises one fixed loss, and dropout changes it in every step; "
                "use another optimizer."
            )
        # A variance over one row is none.
        self.fewest = 2 if _has(objective, nn.modules.batchnorm._BatchNorm) else 1

    def _parts(self, sample_weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and to validate on; those of weight 0 are neither."""
        fraction = self.settings.validation_fraction
        kept = np.arange(len(self.y)) if sample_weight is None else np.flatnonzero(sample_weight)
        if not len(kept):
            raise ValueError("sample_weight is 0 for every sample; give a positive weight.")
        if not fraction:
            return kept, kept[:0]
        training, validation = split_rows(self.y[kept], fraction, self.seed)
        if not len(validation):
            warnings.warn(
                f"validation_fraction={fraction} of {len(kept)} samples is less than one of every "
                "class, so that none are kept back; give more, or set validation_fraction=0.",
                UserWarning,
                stacklevel=2,
            )
        return kept[training], kept[validation]

    # Epochs.

    def all_epochs(self, on_epoch: OnEpoch | None) -> Trained:
        """Train; the objective is left with the weights that are kept.

        Parameters
        ----------
        on_epoch : callable or None

        Returns
        -------
        trained : Trained
        """
        self._resume()
        while not self._finished():
            losses = self._epoch(len(self.history))
            self.history.append(losses)
            if not self._keep_if_better(*losses):
                break
            self._save()
            if on_epoch is not None and self._told(on_epoch):
                break
        self.objective.load_state_dict(self.best)
        self.objective.eval()
        return Trained(
            history=np.array(self.history, dtype=np.float64).reshape(-1, 2),
            n_iter=len(self.history),
            best_epoch=self.best_epoch,
            optimizer_state=packed_state(self.objective, self.optimizer),
        )

    def _finished(self) -> bool:
        n, settings = len(self.history), self.settings
        patient = settings.early_stopping and len(self.validation) > 0
        return (
            n >= settings.epochs
            or self.converged
            or (patient and n - self.best_epoch >= settings.patience)
        )

    def _epoch(self, number: int) -> tuple[float, float]:
        """Steps of an epoch; its losses on the training and the validation part."""
        drawing = nullcontext()
        if self.draws:
            drawing = own_generators(child_seed(self.seed, number, 1), self.device)
        self.objective.train()
        with drawing:
            if self.settings.optimizer == "lbfgs":
                loss = self._round()
            else:
                loss = self._steps(number)
        if self.average is not None:
            self.average.after_epoch(self.objective, number + 1)
        with self._averaged():
            return loss, self._loss_of(self.validation)

    def _steps(self, number: int) -> float:
        """One step for every minibatch; the mean loss of a row."""
        settings, generator = self.settings, epoch_generator(self.seed, number)
        order = self._order(generator)
        parts = [index for index in self.batches.cut(order) if len(index) >= self.fewest]
        total, size = 0.0, 0.0
        for place, index in enumerate(parts):
            batch = self.batches.changed(index, generator)
            self._set_rate(number * len(parts) + place, len(parts))
            self.optimizer.zero_grad()
            loss = self._loss(batch)
            loss.backward()
            if settings.grad_clip is not None:
                nn.utils.clip_grad_norm_(self.objective.parameters(), settings.grad_clip)
            self.optimizer.step()
            if self.average is not None:
                self.average.after_step(self.objective)
            # On the device: reading it would wait for every step.
            total = total + self._wide(loss) * batch.size
            size += batch.size
        return float(total) / size

    def _order(self, generator: np.random.Generator) -> np.ndarray:
        """Numbers of the rows of an epoch."""
        sampler = self.settings.sampler
        sampler = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
        places = np.asarray(sampler(self.y[self.training], generator))
        if places.ndim != 1 or places.dtype.kind not in "iu" or not len(places):
            raise ValueError(
                f"sampler returned {places.dtype} of shape {places.shape}; return positions, a row "
                "of at least one whole number."
            )
        return self.training[places]

    def _set_rate(self, step: int, steps_per_epoch: int) -> None:
        settings = self.settings
        lr = rate(
            step,
            settings.epochs * steps_per_epoch,
            settings.warmup_epochs * steps_per_epoch,
            lr=settings.lr,
            min_lr=settings.min_lr,
            schedule=settings.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @staticmethod
    def _wide(loss: torch.Tensor) -> torch.Tensor:
        """A loss to be summed up; Apple's GPUs have no float64."""
        return loss.detach().to(torch.float32 if loss.device.type == "mps" else torch.float64)

    def _loss(self, batch: Batch) -> torch.Tensor:
        return self.objective(batch.values, batch.mask, batch.target, batch.weight)

    @torch.no_grad()
    def _loss_of(self, rows: np.ndarray) -> float:
        """The mean loss of a row; NaN of none."""
        self.objective.eval()
        total, size = 0.0, 0.0
        for index in self.batches.cut(rows):
            batch = self.batches.read(index)
            total = total + self._wide(self._loss(batch)) * batch.size
            size += batch.size
        return float(total) / size if size else np.nan

    def _round(self) -> float:
        """Iterations of L-BFGS on all rows; their loss, without the penalty."""
        weights = self.batches.weights
        size = len(self.training) if weights is None else weights[self.training].sum()
        decay = self.settings.weight_decay
        matrices = parameter_groups(self.objective, decay)[0]["params"] if decay else []

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            total = 0.0
            for index in self.batches.cut(self.training):
                batch = self.batches.read(index)
                loss = self._loss(batch) * (LBFGS_SCALE * batch.size / size)
                loss.backward()
                total = total + loss.detach()
            for matrix in matrices:
                penalty = LBFGS_SCALE * decay / 2 * matrix.square().sum()
                penalty.backward()
                total = total + penalty.detach()
            return total

        before = self._n_iterations()
        self.optimizer.step(closure)
        self.converged = self._n_iterations() - before < LBFGS_ITERATIONS
        return self._loss_of(self.training)

    def _n_iterations(self) -> int:
        states = list(self.optimizer.state.values())
        return states[0].get("n_iter", 0) if states else 0

    # Which weights are kept.

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The average in the module in place of the last weights, if one is taken."""
        if self.average is None:
            yield
            return
        self.average.swap(self.objective)
        try:
            yield
        finally:
            self.average.swap(self.objective)

    def _keep_if_better(self, training_loss: float, validation_loss: float) -> bool:
        """Remember the weights of a better epoch; False where they are not finite."""
        validated = len(self.validation) > 0
        criterion = validation_loss if validated else training_loss
        with self._averaged():
            finite = bool(np.isfinite([training_loss, criterion]).all()) and all(
                bool(torch.isfinite(parameter).all()) for parameter in self.objective.parameters()
            )
            if finite and not (validated and criterion >= self._best_loss()):
                self.best = deepcopy(self.objective.state_dict())
                self.best_epoch = len(self.history)
        if not finite:
            warnings.warn(
                f"The loss of epoch {len(self.history)} is not finite, so that the weights of the "
                "best epoch before it are kept; give a smaller lr.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return finite

    def _best_loss(self) -> float:
        """Validation loss of the best epoch so far."""
        return self.history[self.best_epoch - 1][1] if self.best_epoch else np.inf

    def _told(self, on_epoch: OnEpoch) -> bool:
        with self._averaged():
            return bool(on_epoch(len(self.history) - 1, *self.history[-1]))

    # The checkpoint.

    def _open_checkpoint(
        self, rows: Rows, y: np.ndarray, sample_weight: np.ndarray | None
    ) -> Checkpoint | None:
        path = self.settings.checkpoint
        if path is None:
            return None
        names = [field.name for field in fields(self.settings) if field.name not in _FREE]
        settings = {name: getattr(self.settings, name) for name in names}
        if callable(settings["sampler"]):
            settings["sampler"] = _name_of(settings["sampler"])
        loss = getattr(self.objective, "loss", None)
        settings["loss"] = repr(loss) if isinstance(loss, Loss) else _name_of(loss)
        values, _ = rows.take(np.unique([0, len(rows) - 1]))
        weights = [
            (name, value.cpu().numpy()) for name, value in self.objective.state_dict().items()
        ]
        return Checkpoint(
            path,
            fingerprint(
                settings, self.seed, len(rows), values.cpu().numpy(), y, sample_weight, weights
            ),
        )

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        parts = {
            "last": self.objective.state_dict(),
            "best": self.best,
            "average": {} if self.average is None else self.average.weights,
        }
        arrays = {
            f"{part}/{name}": value.cpu().numpy()
            for part, values in parts.items()
            for name, value in values.items()
        }
        state = packed_state(self.objective, self.optimizer)
        arrays |= {f"optimizer/{name}": value for name, value in state.items()}
        arrays["history"] = np.array(self.history)
        facts = {
            "epoch": len(self.history),
            "best_epoch": self.best_epoch,
            "converged": self.converged,
            "n_averaged": 0 if self.average is None else self.average.n_averaged,
        }
        self.checkpoint.save(Saved(arrays, facts))

    def _resume(self) -> None:
        """Go on from the last epoch that was saved, if one was."""
        saved = None if self.checkpoint is None else self.checkpoint.load()
        if saved is None:
            return

        def part(name: str) -> dict[str, np.ndarray]:
            start = f"{name}/"
            return {
                k.removeprefix(start): v for k, v in saved.arrays.items() if k.startswith(start)
            }

        def tensors(name: str) -> dict[str, torch.Tensor]:
            return {k: torch.tensor(v, device=self.device) for k, v in part(name).items()}

        self.objective.load_state_dict(tensors("last"))
        self.best = tensors("best")
        unpack_state(part("optimizer"), self.objective, self.optimizer)
        if self.average is not None:
            self.average.weights = tensors("average")
            self.average.n_averaged = saved.facts["n_averaged"]
        self.history = [tuple(row) for row in saved.arrays["history"].tolist()]
        self.best_epoch, self.converged = saved.facts["best_epoch"], saved.facts["converged"]
