# SPDX-License-Identifier: BSD-3-Clause
"""HeadTrainer: the settings of a training by gradient, and the training.

Heads of `skpool.probing` and learned poolings hand a module, rows and targets to
`HeadTrainer.train`; what runs epoch by epoch stands in `_run`. `train_head` is the same for a
module of one's own.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import _check_sample_weight
from torch import nn

from skpool.stores import TokenArray
from skpool.training._batches import SAMPLERS, Sampler
from skpool.training._device import objective_on, precision
from skpool.training._losses import Loss, get_loss
from skpool.training._optimizers import OPTIMIZERS, SCHEDULES
from skpool.training._rows import Rows, TokenRows, VectorRows
from skpool.training._run import OnEpoch, Run, Trained
from skpool.utils import ArrayLike, check_finite

__all__ = ["SETTINGS_CONSTRAINTS", "HeadObjective", "HeadTrainer", "train_head"]

_FRACTION = Interval(Real, 0, 1, closed="left")
_COUNT = Interval(Integral, 0, None, closed="left")
_AT_LEAST_0 = Interval(Real, 0, None, closed="left")
_ABOVE_0 = Interval(Real, 0, None, closed="neither")
# Of the settings, as scikit-learn's estimators declare them.
SETTINGS_CONSTRAINTS: dict = {
    "optimizer": [StrOptions(set(OPTIMIZERS))],
    "lr": [_ABOVE_0],
    "weight_decay": [_AT_LEAST_0],
    "momentum": [_FRACTION],
    "epochs": [_COUNT],
    "warmup_epochs": [_COUNT],
    "schedule": [StrOptions(set(SCHEDULES))],
    "min_lr": [_AT_LEAST_0],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "sampler": [StrOptions(set(SAMPLERS)), callable],
    "mixup": [_AT_LEAST_0],
    "feature_noise": [_AT_LEAST_0],
    "ema": [_FRACTION, None],
    "swa_start": [_COUNT, None],
    "grad_clip": [_ABOVE_0, None],
    "validation_fraction": [_FRACTION],
    "early_stopping": ["boolean"],
    "patience": [Interval(Integral, 1, None, closed="left")],
    "device": [str],
    "amp": ["boolean"],
    "deterministic": ["boolean"],
    "checkpoint": [str, HasMethods("__fspath__"), None],
}

# What makes the loss another function in every step, which a line search cannot minimise.
_NOT_FOR_LBFGS = ("mixup", "feature_noise", "ema", "swa_start", "grad_clip")


class HeadObjective(nn.Module):
    """The loss of a module as a function of its weights.

    Parameters
    ----------
    module : module
        ``module(values, mask)`` gives logits (batch, n_classes).
    loss : callable
        ``loss(logits, target)`` gives the loss of every row.
    """

    def __init__(self, module: nn.Module, loss: Loss):
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(
        self,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weighted mean of the loss over the rows.

        Parameters
        ----------
        values : tensor of shape (batch, n_features) or (batch, n_tokens, n_features)
        mask : tensor of shape (batch, n_tokens), bool, or None
        target : tensor of shape (batch,) or (batch, n_classes)
        weight : tensor of shape (batch,), default=None

        Returns
        -------
        loss : scalar tensor
        """
        losses = self.loss(self.module(values, mask), target)
        return losses.mean() if weight is None else (weight * losses).sum() / weight.sum()


@dataclass(frozen=True, kw_only=True)
class HeadTrainer:
    r"""Settings of a training by gradient, and the training.

    Minibatches of rows are read by number, so that arrays, memory maps and lazy tokens give the
    same weights; everything random comes from one seed, and torch's own generators stay as they
    are.

    Parameters
    ----------
    optimizer : {"adamw", "adam", "sgd", "lbfgs"}, default="adamw"
        "lbfgs" minimises over all rows at once: an epoch is a round of at most 100 iterations with
        a line search, training ends when a round converges, and `lr`, `momentum` and the schedule
        play no part; `weight_decay` is a penalty :math:`\tfrac{\lambda}{2} |W|^2`. In float32 the
        line search ends at about four digits.
    lr : float, default=1e-3
        Step size after the warm-up.
    weight_decay : float, default=0.0
        Of matrices; biases, and what a module lists as `undecayed`, do not decay.
    momentum : float, default=0.0
        Of "sgd".
    epochs : int, default=30
        Passes over the rows, the warm-up included; 0 leaves the first weights.
    warmup_epochs : int, default=0
        Passes in which the step size rises linearly.
    schedule : {"cosine", "constant", "step"}, default="cosine"
        How the step size falls afterwards: as a half cosine to `min_lr`, not at all, or to a tenth
        after each third of the steps.
    min_lr : float, default=0.0
        Least step size after the warm-up.
    batch_size : int, default=256
        Rows per step.
    sampler : {"shuffle", "class_balanced", "sqrt"} or callable, default="shuffle"
        Rows of an epoch: all in random order; or as many, drawn with replacement, classes equally
        often, or by the square root of their size. A callable gets the targets and a numpy
        Generator, and returns positions.
    mixup : float, default=0.0
        a of :math:`\lambda \sim \mathrm{Beta}(a, a)`, drawn for every row, with which it and its
        target are mixed with another row of the minibatch; 0 for none. Not for masked tokens.
    feature_noise : float, default=0.0
        Standard deviation of Gaussian noise on the features.
    ema : float, default=None
        m of an exponential average of the weights, which is taken in place of the last ones:
        :math:`p \leftarrow m_t p + (1 - m_t) q` with :math:`m_t = \min(m, (1+t)/(10+t))`.
    swa_start : int, default=None
        Epochs after which the plain mean of the weights of all later epochs is taken instead.
    grad_clip : float, default=None
        Largest norm of the gradient.
    validation_fraction : float, default=0.0
        Part of the rows of every class that is kept back; the weights after the epoch with their
        lowest loss are kept. None are kept back, with a warning, where that is fewer than one row
        per class.
    early_stopping : bool, default=False
        Whether training ends when `patience` epochs were no better than the best.
    patience : int, default=10
    device : str, default="auto"
        Where to train; "auto" is a CUDA device where there is one, or where the rows are. Rows
        that fit into half of the free memory of a CUDA device are kept there.
    amp : bool, default=False
        Whether a CUDA device computes products in bfloat16; plays no part elsewhere.
    deterministic : bool, default=True
        Whether a CUDA device takes convolutions that give the same bits again; on a host the same
        seed gives the same bits in any case.
    checkpoint : path-like, default=None
        Directory in which the training is kept after every epoch, from where an equal training
        goes on. Another training is refused there.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skpool.training import HeadObjective, HeadTrainer, VectorRows, get_loss
    >>> class Linear(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.coef = torch.nn.Parameter(torch.zeros(2, 3))
    ...     def forward(self, values, mask):
    ...         return values @ self.coef.T
    >>> X, y = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 2
    >>> objective = HeadObjective(Linear(), get_loss("cross_entropy"))
    >>> trained = HeadTrainer(epochs=5).train(objective, VectorRows(X), y)
    >>> trained.n_iter
    5
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.0
    epochs: int = 30
    warmup_epochs: int = 0
    schedule: str = "cosine"
    min_lr: float = 0.0
    batch_size: int = 256
    sampler: str | Sampler = "shuffle"
    mixup: float = 0.0
    feature_noise: float = 0.0
    ema: float | None = None
    swa_start: int | None = None
    grad_clip: float | None = None
    validation_fraction: float = 0.0
    early_stopping: bool = False
    patience: int = 10
    device: str = "auto"
    amp: bool = False
    deterministic: bool = True
    checkpoint: str | os.PathLike | None = None

    def __post_init__(self):
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        validate_parameter_constraints(SETTINGS_CONSTRAINTS, settings, type(self).__name__)
        if self.ema is not None and self.swa_start is not None:
            raise ValueError(
                f"ema={self.ema} and swa_start={self.swa_start} are two averages; set one to None."
            )
        if self.early_stopping and not self.validation_fraction:
            raise ValueError(
                "early_stopping=True needs rows to judge by; set validation_fraction, such as 0.1."
            )
        if self.optimizer == "lbfgs":
            self._check_fixed_loss()

    def _check_fixed_loss(self) -> None:
        changing = [name for name in _NOT_FOR_LBFGS if getattr(self, name)]
        if self.sampler != "shuffle":
            changing.append("sampler")
        if changing:
            raise ValueError(
                f"optimizer='lbfgs' minimises one fixed loss, which {changing[0]}="
                f"{getattr(self, changing[0])!r} does not leave it; use another optimizer."
            )

    def train(
        self,
        objective: nn.Module,
        rows: Rows,
        y: np.ndarray,
        *,
        sample_weight: np.ndarray | None = None,
        seed: int = 0,
        n_outputs: int | None = None,
        on_epoch: OnEpoch | None = None,
        optimizer_state: dict[str, np.ndarray] | None = None,
    ) -> Trained:
        """Train a module in place; it is left on the host, with the weights that are kept.

        Parameters
        ----------
        objective : module
            ``objective(values, mask, target, weight)`` gives the loss of a minibatch, the weighted
            mean over its rows, as `HeadObjective`.
        rows : Rows
        y : ndarray of shape (n_rows,) or (n_rows, n_outputs)
            Class numbers from 0, or soft or continuous targets.
        sample_weight : ndarray of shape (n_rows,), default=None
            At least 0; a row of weight 0 counts as absent.
        seed : int, default=0
            Of the order of the rows, the validation part, and all else that is random.
        n_outputs : int, default=None
            Classes; None for those of `y`.
        on_epoch : callable, default=None
            ``on_epoch(epoch, training_loss, validation_loss)`` is called after every epoch, with
            the weights in the module that would be kept; training ends where it returns True.
        optimizer_state : dict of str to ndarray, default=None
            Of an earlier training of the same module, which this one goes on from.

        Returns
        -------
        trained : Trained
        """
        # The caller may have switched gradients off.
        with torch.inference_mode(False), torch.enable_grad():
            device, dtype = objective_on(objective, rows, self.device)
            run = Run(
                self,
                objective,
                rows.on(device),
                y,
                sample_weight,
                seed=seed,
                n_outputs=n_outputs,
                place=(device, dtype),
                optimizer_state=optimizer_state,
            )
            with precision(device, amp=self.amp, deterministic=self.deterministic):
                trained = run.all_epochs(on_epoch)
        objective.cpu()
        return trained


def _rows_of(X: object) -> Rows:
    """Rows of vectors or tokens."""
    if isinstance(X, TokenArray):
        return TokenRows(X)
    X = X if isinstance(X, torch.Tensor) else np.asanyarray(X)
    if X.ndim == 3:
        return TokenRows(TokenArray.from_array(X))
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(
            f"X has shape {tuple(X.shape)}; give vectors (n_samples, n_features) or tokens "
            "(n_samples, n_tokens, n_features)."
        )
    if isinstance(X, np.ndarray) and X.dtype.kind != "f":
        X = X.astype(np.float64)
    check_finite(X)
    return VectorRows(X)


def _targets(y: object, n_rows: int) -> np.ndarray:
    """Class numbers (n,), or targets (n, n_outputs)."""
    y = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if len(y) != n_rows or y.ndim not in (1, 2):
        raise ValueError(f"y has shape {y.shape}; give one target for each of {n_rows} rows of X.")
    if y.ndim == 1 and (y.dtype.kind not in "biu" or y.min() < 0):
        raise ValueError(
            f"y of dtype {y.dtype} holds no class numbers; give whole numbers from 0, as "
            "LabelEncoder does, or targets of shape (n_samples, n_classes)."
        )
    return y.astype(np.int64 if y.ndim == 1 else np.float64)


def _told(callbacks: Iterable[Callable[..., object]]) -> OnEpoch:
    """Every callback after every epoch; one that returns True ends the training."""

    def on_epoch(epoch: int, training_loss: float, validation_loss: float) -> bool:
        # All are told, also after one that wants an end.
        answers = [told(epoch, training_loss, validation_loss) for told in callbacks]
        return any(answers)

    return on_epoch


def train_head(
    module: nn.Module,
    X: ArrayLike | TokenArray,
    y: ArrayLike,
    *,
    loss: str | Loss = "cross_entropy",
    sample_weight: ArrayLike | None = None,
    random_state: int | np.random.RandomState | None = 0,
    callbacks: Sequence[Callable[..., object]] = (),
    **settings: object,
) -> Trained:
    """Train a module of one's own on frozen features.

    Parameters
    ----------
    module : module
        ``module(values, mask)`` gives logits (batch, n_classes); `mask` is None for vectors. It is
        trained in place, and left on the host.
    X : array, memmap or tensor of rank 2 or 3, or TokenArray
        Vectors (n_samples, n_features) or tokens (n_samples, n_tokens, n_features).
    y : array-like of shape (n_samples,) or (n_samples, n_classes)
        Class numbers from 0, or soft targets.
    loss : str or callable, default="cross_entropy"
        A name that `get_loss` knows, or what it returns.
    sample_weight : array-like of shape (n_samples,), default=None
        At least 0; a row of weight 0 counts as absent.
    random_state : int, RandomState or None, default=0
        Of the order of the rows; the first weights are those of the module.
    callbacks : sequence of callables, default=()
        Called as ``callback(epoch, training_loss, validation_loss)`` after every epoch; training
        ends where one returns True.
    **settings
        Of `HeadTrainer`.

    Returns
    -------
    trained : Trained

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skpool.training import train_head
    >>> X = np.random.default_rng(0).normal(size=(60, 3))
    >>> class Linear(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.coef = torch.nn.Parameter(torch.zeros(2, 3))
    ...     def forward(self, values, mask):
    ...         return values @ self.coef.T
    >>> trained = train_head(Linear(), X, (X[:, 0] > 0).astype(int), lr=0.1, epochs=20)
    >>> bool(trained.history[-1, 0] < 0.4)
    True
    """
    trainer = HeadTrainer(**settings)
    rows = _rows_of(X)
    n_samples = len(X)
    targets = _targets(y, n_samples)
    weights = None
    if sample_weight is not None:
        weights = _check_sample_weight(
            sample_weight, np.empty((n_samples, 1)), dtype=np.float64, ensure_non_negative=True
        )
    if isinstance(rows, TokenRows):
        targets = targets[rows.numbers]
        weights = None if weights is None else weights[rows.numbers]
    counts = np.bincount(targets, weights) if targets.ndim == 1 else targets.sum(axis=0)
    objective = HeadObjective(module, get_loss(loss).prepare(counts))
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    return trainer.train(
        objective,
        rows,
        targets,
        sample_weight=weights,
        seed=seed,
        on_epoch=_told(callbacks),
    )
