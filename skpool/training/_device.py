# SPDX-License-Identifier: BSD-3-Clause
"""Where a module computes, and how exactly."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from skpool.training._rows import Rows
from skpool.utils import full_float32

__all__ = ["objective_on", "pick_device", "precision"]


def pick_device(device: str, values: torch.Tensor) -> torch.device:
    """Return the device that a name stands for.

    Parameters
    ----------
    device : str
        "auto" for a CUDA device where there is one and the values are on the host, else where
        they are.
    values : tensor

    Returns
    -------
    device : torch.device
    """
    if device == "auto":
        auto = values.device.type == "cpu" and torch.cuda.is_available()
        return torch.device("cuda", torch.cuda.current_device()) if auto else values.device
    try:
        place = torch.device(device)
        # A device that this build or machine lacks says so when it is used.
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"device={device!r} is not available here; use 'auto' or 'cpu'."
        ) from error
    return place


def objective_on(objective: nn.Module, rows: Rows, device: str) -> tuple[torch.device, torch.dtype]:
    """Bring a module to where it is trained, in the float type of the rows.

    Parameters
    ----------
    objective : module
    rows : Rows
    device : str

    Returns
    -------
    device : torch.device
    dtype : torch.dtype
    """
    values, _ = rows.take(np.arange(1))
    place = pick_device(device, values)
    # Apple's GPUs have no float64.
    dtype = torch.float32 if place.type == "mps" else values.dtype
    objective.to(place, dtype)
    return place, dtype


@contextmanager
def precision(device: torch.device, *, amp: bool, deterministic: bool) -> Iterator[None]:
    """Products in full float32, or in bfloat16 where that is asked for on a CUDA device.

    Parameters
    ----------
    device : torch.device
    amp, deterministic : bool
    """
    cuda = device.type == "cuda"
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        if cuda and deterministic:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        with full_float32():
            if cuda and amp:
                with torch.autocast("cuda", torch.bfloat16):
                    yield
            else:
                yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
