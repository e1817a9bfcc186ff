# SPDX-License-Identifier: BSD-3-Clause
"""Training a pooling by gradient, together with a linear head on its vectors.

Between lazy tokens and a `torch.nn.Module` that pools them: `TokenRows` gives the tokens of some
samples by number, `train` runs AdamW on minibatches of them. Poolings call these two and nothing
else, so that a larger trainer can take their place.

Everything random comes from one seed, and minibatches are made of sample numbers; a fit therefore
depends neither on where tokens come from nor on the order or the batches in which they arrive.
"""

import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

from skpool._config import get_config
from skpool.stores import TokenArray
from skpool.utils import all_finite, check_labels, widened

__all__ = ["LOSSES", "TokenRows", "Trained", "class_numbers", "train"]

Mask = torch.Tensor | None

# Epochs without a lower validation loss after which training ends.
_PATIENCE = 10
# Of the similarities of "supcon".
_TEMPERATURE = 0.1


# Tokens by number.


def _check_read(tokens: torch.Tensor, mask: Mask, positions: np.ndarray) -> None:
    """Tokens of a network are checked when they are read; those of an array were before."""
    real = tokens if mask is None else tokens.where(mask[..., None], 0.0)
    if all_finite(real):
        return
    bad = int((~torch.isfinite(real).flatten(1).all(dim=1)).nonzero()[0])
    raise ValueError(
        f"Input X contains NaN or infinity in the computed tokens of sample {int(positions[bad])};"
        " leave it out, or let the network compute in float32."
    )


def _read_once(tokens: TokenArray, batch_size: int) -> tuple[np.ndarray, TokenArray]:
    """Which samples could be read, and their tokens, kept if they fit into `max_array_bytes`."""
    keep = tokens.nbytes <= get_config()["max_array_bytes"]
    came, kept = np.zeros(len(tokens), dtype=bool), None
    for positions, values, mask in tokens.iter_batches(batch_size):
        _check_read(values, mask, positions)
        came[positions] = True
        if keep and kept is None:
            kept = values.new_zeros(tokens.shape)
        if keep:
            kept[torch.from_numpy(positions), : values.shape[1]] = values
    return came, tokens if kept is None else TokenArray.from_array(kept, mask=tokens.mask)


class TokenRows:
    """The samples that can be learned from: readable, and with a real token.

    Tokens that lie in an array are taken from there. Those of a network are read once and kept in
    their own float type, where they are computed, if they take no more than the option
    `max_array_bytes`; more than that are asked for again whenever a minibatch needs them, which
    the store or cache of the extractor answers.

    Parameters
    ----------
    tokens : TokenArray of shape (n_samples, n_tokens, n_features)
    batch_size : int
        Rows that are read at a time.

    Attributes
    ----------
    numbers : ndarray of shape (n_rows,)
        The samples that the rows are.
    """

    def __init__(self, tokens: TokenArray, *, batch_size: int):
        usable = np.ones(len(tokens), dtype=bool)
        if tokens.mask is not None:
            usable = tokens.mask.any(axis=1)
        if not tokens.in_memory:
            came, tokens = _read_once(tokens, batch_size)
            usable &= came
        self.numbers = np.flatnonzero(usable)
        if not len(self.numbers):
            raise ValueError("X has no sample with a real token to learn from.")
        self._tokens = tokens
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: np.ndarray) -> tuple[torch.Tensor, Mask]:
        """The tokens of some rows, in float32 at least, and their mask.

        Trailing places that no row fills are cut off, and a mask without a False is None.
        """
        chosen = self._tokens[self.numbers[rows]]
        if self._tokens.in_memory:
            _, values, mask = next(chosen.iter_batches(len(rows)))
        else:
            values, mask = _gathered(chosen)
        values = widened(values)
        if mask is None or bool(mask.all()):
            return values, None
        length = int(mask.any(dim=0).nonzero()[-1]) + 1
        return values[:, :length], mask[:, :length]

    def blocks(self) -> Iterator[tuple[torch.Tensor, Mask]]:
        """The tokens of all rows, in order, some rows at a time.

        How many does not depend on the batch size, because sums over the blocks would.
        """
        for start in range(0, len(self), 256):
            yield self.take(np.arange(start, min(start + 256, len(self))))

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of every feature over the real tokens, in float64."""
        return _moments(
            values.flatten(0, 1) if mask is None else values[mask] for values, mask in self.blocks()
        )


def _gathered(chosen: TokenArray) -> tuple[torch.Tensor, Mask]:
    """Tokens that come in any order, in the order in which they were asked for."""
    values, n_read = None, 0
    for positions, part, _ in chosen.iter_batches():
        values = part.new_zeros(chosen.shape) if values is None else values
        values[torch.from_numpy(positions), : part.shape[1]] = part
        n_read += len(positions)
    if n_read < len(chosen):
        raise ValueError(
            f"{len(chosen) - n_read} sample(s) could be read once and not again; keep the inputs "
            "in place while a pooling trains, or give the extractor a store."
        )
    mask = chosen.mask
    return values, None if mask is None else torch.from_numpy(mask).to(values.device)


def _moments(blocks: Iterator[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of columns; 1 for the deviation of a constant column."""
    n, shift = 0, None
    for block in blocks:
        # Apple's GPUs have no float64.
        block = (block.cpu() if block.device.type == "mps" else block).double()
        if shift is None:
            # Sums about a mean of the data keep their digits.
            shift = block.mean(dim=0)
            first, second = torch.zeros_like(shift), torch.zeros_like(shift)
        block = block - shift
        n += len(block)
        first += block.sum(dim=0)
        second += block.square().sum(dim=0)
    variance = (second / n - (first / n).square()).clamp_min(0.0)
    mean = shift + first / n
    # What is left of a constant column is rounding of its mean.
    floor = (mean.abs() * 1e-7).square()
    return mean.cpu(), torch.where(variance > floor, variance, 1.0).sqrt().cpu()


# Labels.


def _labels(y: object, n_samples: int, who: str) -> np.ndarray:
    """Class labels on the host, of a type that sorts; `who` requires them."""
    if y is None:
        raise ValueError(
            f"{who} requires y to be passed, but the target y is None; give one label per row of X."
        )
    y = check_labels(y.cpu().numpy() if isinstance(y, torch.Tensor) else y, n_samples=n_samples)
    return np.array(y.tolist()) if y.dtype.kind == "O" else y


def class_numbers(
    y: object, n_samples: int, chosen: np.ndarray, who: str
) -> tuple[np.ndarray, np.ndarray]:
    """The classes of the chosen samples, two at least, and the number of the class of each."""
    classes, codes = np.unique(_labels(y, n_samples, who)[chosen], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y holds one class, {classes.tolist()}; {who} needs two.")
    return classes, codes


# Losses of a minibatch.


def _cross_entropy(vectors: torch.Tensor, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, y)


def _mse(vectors: torch.Tensor, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(outputs, y.to(outputs))


def _supcon(vectors: torch.Tensor, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Supervised contrastive loss: every sample against those of its class in the minibatch."""
    vectors = F.normalize(vectors, dim=1)
    oneself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    similarity = (vectors @ vectors.T / _TEMPERATURE).masked_fill(oneself, -torch.inf)
    log_p = similarity - similarity.logsumexp(dim=1, keepdim=True)
    alike = (y[:, None] == y) & ~oneself
    anchors = alike.any(dim=1)
    if not bool(anchors.any()):
        return vectors.sum() * 0.0
    per_anchor = log_p.where(alike, 0.0).sum(dim=1)[anchors] / alike.sum(dim=1)[anchors]
    return -per_anchor.mean()


LOSSES = {"cross_entropy": _cross_entropy, "mse": _mse, "supcon": _supcon}


# Training.


class Trained(NamedTuple):
    """What training leaves beside the weights of the pooling.

    Attributes
    ----------
    coef : ndarray of shape (n_outputs, n_features_out)
        Of the linear head, for vectors as the pooling gives them.
    intercept : ndarray of shape (n_outputs,)
    history : ndarray of shape (n_epochs, 2)
        Loss on the training and on the validation part, NaN without one, after every epoch.
    """

    coef: np.ndarray
    intercept: np.ndarray
    history: np.ndarray


class _Objective(nn.Module):
    """A pooling, a linear head on its vectors in standard units, and a loss."""

    def __init__(self, pooling: nn.Module, n_features: int, n_outputs: int, loss: str):
        super().__init__()
        self.pooling = pooling
        self.loss = LOSSES[loss]
        # Heads start at zero: equal scores for all classes.
        self.coef = nn.Parameter(torch.zeros(n_outputs, n_features))
        self.intercept = nn.Parameter(torch.zeros(n_outputs))
        self.register_buffer("center", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    def forward(self, tokens: torch.Tensor, mask: Mask, y: torch.Tensor) -> torch.Tensor:
        vectors = (self.pooling(tokens, mask) - self.center) / self.scale
        return self.loss(vectors, F.linear(vectors, self.coef, self.intercept), y)

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """The head for vectors in their own units."""
        coef, intercept, center, scale = (
            value.detach().cpu().double()
            for value in (self.coef, self.intercept, self.center, self.scale)
        )
        coef = coef / scale
        return coef.numpy(), (intercept - coef @ center).numpy()


def _standard_targets(y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets (n, k) with mean 0 and variance 1, their offset and unit; class numbers stay."""
    if y.ndim == 1:
        return y, np.zeros(1), np.ones(1)
    offset, unit = y.mean(axis=0), y.std(axis=0)
    unit = np.where(unit > 0, unit, 1.0)
    return (y - offset) / unit, offset, unit


def _groups(objective: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, and what a module lists as `undecayed`, do not."""
    listed = {id(p) for module in objective.modules() for p in getattr(module, "undecayed", ())}
    groups = {True: [], False: []}
    for parameter in objective.parameters():
        groups[parameter.ndim > 1 and id(parameter) not in listed].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def _split(y: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to validate on, the latter none where a class could not be in both."""
    rows, n_validation = np.arange(len(y)), round(fraction * len(y))
    labels = y if y.ndim == 1 else None
    sizes = np.array([len(y)]) if labels is None else np.bincount(labels)
    if min(n_validation, len(y) - n_validation) < len(sizes) or sizes.min() < 2:
        return rows, rows[:0]
    parts = train_test_split(rows, test_size=n_validation, stratify=labels, random_state=seed)
    return np.sort(parts[0]), np.sort(parts[1])


def _device(device: str, tokens: torch.Tensor) -> torch.device:
    """Where to train: by itself where the tokens are, or on a GPU where there is one."""
    if device != "auto":
        return torch.device(device)
    if tokens.device.type == "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    return tokens.device


class _Training:
    """One training: the objective, what it reads, and where both meet."""

    def __init__(self, objective: _Objective, rows: TokenRows, y: np.ndarray, minibatch: int):
        self.objective, self.rows, self.minibatch = objective, rows, minibatch
        self.y = torch.from_numpy(y)
        self.place = objective.coef.device, objective.coef.dtype

    def _loss(self, index: np.ndarray) -> torch.Tensor:
        device, dtype = self.place
        tokens, mask = self.rows.take(index)
        mask = None if mask is None else mask.to(device)
        return self.objective(tokens.to(device, dtype), mask, self.y[index].to(device))

    def _minibatches(self, order: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(order), self.minibatch):
            # Memory maps are read faster in order, and the loss of a minibatch has none.
            yield np.sort(order[start : start + self.minibatch])

    def epoch(self, order: np.ndarray, optimizer: torch.optim.Optimizer, schedule) -> float:
        """One step for every minibatch; the mean loss of a sample."""
        total = 0.0
        for index in self._minibatches(order):
            optimizer.zero_grad()
            loss = self._loss(index)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        return total / len(order)

    @torch.no_grad()
    def loss_of(self, index: np.ndarray) -> float:
        """The mean loss of a sample; NaN of none."""
        losses = [float(self._loss(part)) * len(part) for part in self._minibatches(index)]
        return sum(losses) / len(index) if len(index) else np.nan

    def run(self, parts: tuple[np.ndarray, np.ndarray], optimizer, schedule, epochs, generator):
        """All epochs; the objective is left with the weights of the best."""
        training, validation = parts
        history, best = [], (np.inf, deepcopy(self.objective.state_dict()), 0)
        for number in range(epochs):
            order = torch.randperm(len(training), generator=generator).numpy()
            loss = self.epoch(training[order], optimizer, schedule)
            history.append((loss, self.loss_of(validation)))
            criterion = history[-1][1] if len(validation) else -number
            if not np.isfinite([loss, criterion]).all():
                warnings.warn(
                    f"The loss of epoch {number + 1} is not finite, so that the weights of the "
                    "best epoch before it are kept; give a smaller lr.",
                    ConvergenceWarning,
                    stacklevel=2,
                )
                break
            if criterion < best[0]:
                best = criterion, deepcopy(self.objective.state_dict()), number
            if number - best[2] >= _PATIENCE:
                break
        self.objective.load_state_dict(best[1])
        return np.array(history)


def _objective(
    pooling: nn.Module, rows: TokenRows, n_outputs: int, loss: str, device: str
) -> _Objective:
    """The objective where it will be trained, its head in units of the untrained pooling."""
    tokens, _ = rows.take(np.arange(1))
    place = _device(device, tokens)
    # Apple's GPUs have no float64.
    dtype = torch.float32 if place.type == "mps" else tokens.dtype
    pooling.to(place, dtype)

    def pooled() -> Iterator[torch.Tensor]:
        for tokens, mask in rows.blocks():
            yield pooling(tokens.to(place, dtype), None if mask is None else mask.to(place))

    with torch.no_grad():
        center, scale = _moments(pooled())
    objective = _Objective(pooling, len(center), n_outputs, loss)
    objective.center, objective.scale = center, scale
    return objective.to(place, dtype)


def train(
    pooling: nn.Module,
    rows: TokenRows,
    y: np.ndarray,
    *,
    loss: str = "cross_entropy",
    lr: float,
    epochs: int,
    minibatch: int,
    seed: int,
    weight_decay: float = 0.0,
    validation_fraction: float = 0.0,
    device: str = "auto",
) -> Trained:
    """Train a pooling and a linear head by AdamW, with a rate that falls to 0 as a cosine.

    With a validation part, the weights after its best epoch are kept, and training ends when ten
    epochs were no better.

    Parameters
    ----------
    pooling : module
        ``pooling(tokens, mask)`` gives vectors (batch, n_features_out). It is trained in place,
        and left on the host.
    rows : TokenRows
    y : ndarray of shape (n_rows,) or (n_rows, n_outputs)
        Of class numbers from 0 for "cross_entropy" and "supcon"; of targets for "mse", whose loss
        is that of targets with variance 1.
    loss : {"cross_entropy", "supcon", "mse"}, default="cross_entropy"
    lr : float
        The first rate.
    epochs : int
    minibatch : int
        Samples per step.
    seed : int
        Of the order of the samples and of the validation part.
    weight_decay : float, default=0.0
        Of matrices.
    validation_fraction : float, default=0.0
        Part of the samples that is kept back: of every class, or none where that cannot be.
    device : str, default="auto"

    Returns
    -------
    trained : Trained
    """
    n_outputs = int(y.max()) + 1 if y.ndim == 1 else y.shape[1]
    y, offset, unit = _standard_targets(y)
    parts = _split(y, validation_fraction, seed)
    # The caller may have switched gradients off.
    with torch.enable_grad():
        objective = _objective(pooling, rows, n_outputs, loss, device)
        optimizer = torch.optim.AdamW(_groups(objective, weight_decay), lr=lr)
        steps = epochs * -(-len(parts[0]) // minibatch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        history = _Training(objective, rows, y, minibatch).run(
            parts, optimizer, schedule, epochs, torch.Generator().manual_seed(seed)
        )
    pooling.cpu()
    coef, intercept = objective.folded()
    return Trained(unit[:, None] * coef, unit * intercept + offset, history)
