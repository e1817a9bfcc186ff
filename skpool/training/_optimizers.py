# SPDX-License-Identifier: BSD-3-Clause
"""Steps of a training: which parameters decay, how long a step is, and averages of weights.

All of it is a function of the number of the step, or can be written down as arrays by name
(`packed_state`, `unpack_state`), so that a training can stop and go on.
"""

import math

import numpy as np
import torch
from torch import nn

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "WeightAverage",
    "make_optimizer",
    "packed_state",
    "parameter_groups",
    "rate",
    "unpack_state",
]

SCHEDULES = ("constant", "cosine", "step")
# Of "step": the rate falls to a tenth after each third of the steps.
_DROPS, _DROP = 3, 0.1
# A round of L-BFGS: this many iterations with so many pairs of memory.
LBFGS_ITERATIONS, _LBFGS_MEMORY = 100, 20
# The loss is multiplied by it: torch's L-BFGS forgets steps along which the product of the changes
# of weights and gradient is below 1e-10, which means of a loss do long before the optimum.
LBFGS_SCALE = 2.0**20


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases, and what a module lists as `undecayed`, do not.

    Parameters
    ----------
    module : module
        It and its parts may have an attribute `undecayed`, parameters.
    weight_decay : float

    Returns
    -------
    groups : list of 2 dicts
        As optimizers of torch take them.
    """
    listed = {id(p) for part in module.modules() for p in getattr(part, "undecayed", ())}
    groups = {True: [], False: []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and id(parameter) not in listed].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def _adamw(module: nn.Module, lr: float, weight_decay: float, momentum: float):
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=lr)


def _adam(module: nn.Module, lr: float, weight_decay: float, momentum: float):
    return torch.optim.Adam(parameter_groups(module, weight_decay), lr=lr)


def _sgd(module: nn.Module, lr: float, weight_decay: float, momentum: float):
    return torch.optim.SGD(parameter_groups(module, weight_decay), lr=lr, momentum=momentum)


def _lbfgs(module: nn.Module, lr: float, weight_decay: float, momentum: float):
    # One group is all that it takes: the penalty is added to the loss. The line search finds the
    # length of the steps.
    return torch.optim.LBFGS(
        [p for p in module.parameters() if p.requires_grad],
        lr=1.0,
        max_iter=LBFGS_ITERATIONS,
        # No more than a line search may take, so that a round ends by iterations or at the optimum.
        max_eval=25 * LBFGS_ITERATIONS,
        history_size=_LBFGS_MEMORY,
        tolerance_grad=1e-9 * LBFGS_SCALE,
        # Of the loss: what float64 can still tell.
        tolerance_change=1e-16 * LBFGS_SCALE,
        line_search_fn="strong_wolfe",
    )


OPTIMIZERS = {"adamw": _adamw, "adam": _adam, "sgd": _sgd, "lbfgs": _lbfgs}


def make_optimizer(
    name: str, module: nn.Module, *, lr: float, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    """Return an optimizer of the parameters that need a gradient.

    Parameters
    ----------
    name : {"adamw", "adam", "sgd", "lbfgs"}
    module : module
    lr : float
    weight_decay : float
        Of matrices; "adamw" shrinks them, the others add it to the gradient.
    momentum : float
        Of "sgd".

    Returns
    -------
    optimizer : torch.optim.Optimizer
    """
    return OPTIMIZERS[name](module, lr, weight_decay, momentum)


def rate(
    step: int, n_steps: int, n_warmup: int, *, lr: float, min_lr: float = 0.0, schedule: str
) -> float:
    """Return the step size of a step.

    It rises as ``lr * (step + 1) / n_warmup`` in the first `n_warmup` steps. Then, with u the part
    of the others that is done, it is lr ("constant"), ``min_lr + (lr - min_lr) (1 + cos(pi u))/2``
    ("cosine"), or lr, a tenth and a hundredth of it in three equal parts ("step").

    Parameters
    ----------
    step : int
        From 0.
    n_steps, n_warmup : int
        Of the whole training, and of its start.
    lr, min_lr : float
    schedule : {"constant", "cosine", "step"}

    Returns
    -------
    rate : float

    Examples
    --------
    >>> from skpool.training._optimizers import rate
    >>> [round(rate(t, 6, 2, lr=1.0, schedule="cosine"), 3) for t in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < n_warmup:
        return lr * (step + 1) / n_warmup
    done = (step - n_warmup) / max(1, n_steps - n_warmup)
    if schedule == "cosine":
        return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * done)) / 2
    if schedule == "step":
        return max(min_lr, lr * _DROP ** min(int(_DROPS * done), _DROPS - 1))
    return lr


# The state of an optimizer as arrays.


def _names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters in the order in which the optimizer numbers them."""
    named = {id(p): name for name, p in module.named_parameters()}
    return [named[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _packed(prefix: str, value: object) -> dict[str, np.ndarray]:
    """Tensors and numbers under a name; lists under a name and their places."""
    if isinstance(value, torch.Tensor):
        return {prefix: value.detach().cpu().numpy().copy()}
    if isinstance(value, (int, float)):
        # Numbers must come back as numbers, not as tensors.
        return {f"{prefix}=": np.asarray(value)}
    # L-BFGS keeps a list of places to work in, None where it has not come to.
    if isinstance(value, list) and not any(one is None for one in value):
        parts = [_packed(f"{prefix}|{place}", one) for place, one in enumerate(value)]
        return {name: array for part in parts for name, array in part.items()}
    return {}


def packed_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """Return what an optimizer remembers of the parameters.

    Parameters
    ----------
    module : module
    optimizer : torch.optim.Optimizer
        Of the parameters of the module.

    Returns
    -------
    state : dict of str to ndarray
        By the name of the parameter and of the quantity, such as "head.weight|exp_avg".
    """
    names, state = _names(module, optimizer), {}
    for number, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            state |= _packed(f"{names[number]}|{key}", value)
    return state


def _resized(array: np.ndarray, parameter: torch.Tensor) -> np.ndarray:
    """Zeros for rows that a parameter has grown since."""
    shape = tuple(parameter.shape)
    if array.ndim == 0 or array.shape == shape or array.ndim != len(shape):
        return array
    grown = np.zeros(shape, dtype=array.dtype)
    kept = tuple(slice(min(a, b)) for a, b in zip(array.shape, shape, strict=True))
    grown[kept] = array[kept]
    return grown


def unpack_state(
    state: dict[str, np.ndarray], module: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Give an optimizer back what `packed_state` wrote down.

    Parameters
    ----------
    state : dict of str to ndarray
        What is known of rows that a parameter has grown since then is zero.
    module : module
    optimizer : torch.optim.Optimizer
    """
    names = _names(module, optimizer)
    parameters = dict(module.named_parameters())
    entries: dict[int, dict] = {}
    for key, array in state.items():
        name, quantity, *place = key.split("|")
        if name not in names:
            continue
        entry = entries.setdefault(names.index(name), {})
        if quantity.endswith("="):
            entry[quantity[:-1]] = array.item()
        elif place:
            entry.setdefault(quantity, {})[int(place[0])] = torch.tensor(array)
        else:
            entry[quantity] = torch.tensor(_resized(array, parameters[name]))
    for entry in entries.values():
        for quantity, value in entry.items():
            if isinstance(value, dict):
                entry[quantity] = [value[place] for place in sorted(value)]
    optimizer.load_state_dict(
        {"state": entries, "param_groups": optimizer.state_dict()["param_groups"]}
    )


class WeightAverage:
    """An average of weights over the training, that is evaluated in place of the last ones.

    Parameters
    ----------
    module : module
    decay : float, default=None
        m of the exponential average :math:`p \\leftarrow m_t p + (1-m_t) q` after step t = 0, 1,
        ..., with :math:`m_t = \\min(m, (1+t)/(10+t))`, so that the first weights are soon
        forgotten; None for the plain mean of the weights after every epoch from `start` on.
    start : int, default=0
        Epochs that the plain mean leaves out.

    Attributes
    ----------
    weights : dict of str to tensor
        By the name of the parameter.
    n_averaged : int
        Steps or epochs in the average.
    """

    def __init__(self, module: nn.Module, *, decay: float | None = None, start: int = 0):
        self.decay, self.start = decay, start
        self.n_averaged = 0
        self.weights = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def after_step(self, module: nn.Module) -> None:
        """Take the weights after a step into an exponential average."""
        if self.decay is None:
            return
        m = min(self.decay, (1 + self.n_averaged) / (10 + self.n_averaged))
        for name, parameter in module.named_parameters():
            self.weights[name].lerp_(parameter, 1 - m)
        self.n_averaged += 1

    @torch.no_grad()
    def after_epoch(self, module: nn.Module, n_epochs: int) -> None:
        """Take the weights after `n_epochs` epochs into a plain mean."""
        if self.decay is not None or n_epochs <= self.start:
            return
        self.n_averaged += 1
        for name, parameter in module.named_parameters():
            self.weights[name].lerp_(parameter, 1 / self.n_averaged)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the weights of the module and the average, once there is one."""
        if not self.n_averaged:
            return
        for name, parameter in module.named_parameters():
            last = parameter.clone()
            parameter.copy_(self.weights[name])
            self.weights[name] = last
