# SPDX-License-Identifier: BSD-3-Clause
"""The one trainer: modules of torch, fitted by gradient to rows of vectors or tokens.

Learned poolings and every head of `skpool.probing` are trained here. The room knows rows
(`VectorRows`, `TokenRows`), losses (`get_loss`) and how to take steps (`HeadTrainer`); it knows no
estimator.
"""

from skpool.training._class_weights import class_weights
from skpool.training._device import objective_on, pick_device
from skpool.training._losses import LOSSES, Loss, get_loss
from skpool.training._random import child_seed, own_generators
from skpool.training._rows import (
    Rows,
    TokenRows,
    VectorRows,
    class_numbers,
    moments_of,
)
from skpool.training._run import Trained, can_split
from skpool.training._trainer import SETTINGS_CONSTRAINTS, HeadObjective, HeadTrainer, train_head

__all__ = [
    "LOSSES",
    "SETTINGS_CONSTRAINTS",
    "HeadObjective",
    "HeadTrainer",
    "Loss",
    "Rows",
    "TokenRows",
    "Trained",
    "VectorRows",
    "can_split",
    "child_seed",
    "class_numbers",
    "class_weights",
    "get_loss",
    "moments_of",
    "objective_on",
    "own_generators",
    "pick_device",
    "train_head",
]
