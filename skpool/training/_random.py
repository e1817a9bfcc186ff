# SPDX-License-Identifier: BSD-3-Clause
"""Randomness of a training: everything from one seed, nothing from torch's own generators.

Every epoch has its generator, seeded by the training's seed and the epoch's number, so that a
training that is resumed goes on with the numbers of one that never stopped.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["child_seed", "epoch_generator", "own_generators"]


def child_seed(*numbers: int) -> int:
    """Return a seed for torch, drawn from whole numbers.

    Parameters
    ----------
    *numbers : int
        At least 0; a seed and the places of what is seeded.

    Returns
    -------
    seed : int
        Of 63 bits.

    Examples
    --------
    >>> from skpool.training import child_seed
    >>> child_seed(0, 1) == child_seed(0, 2)
    False
    """
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator of an epoch: the order of the rows, their mixing and their noise.

    Parameters
    ----------
    seed : int
    epoch : int
        From 0.

    Returns
    -------
    generator : numpy Generator
    """
    return np.random.default_rng(np.random.SeedSequence([seed, epoch]))


@contextmanager
def own_generators(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let layers that draw by themselves, such as dropout, draw from the seed.

    Torch's own generators, which such layers use, are put back at the end.

    Parameters
    ----------
    seed : int
    device : torch.device, default=None
        Where the layers compute; None for the host.
    """
    cuda = device is not None and device.type == "cuda"
    host, other = torch.get_rng_state(), torch.cuda.get_rng_state(device) if cuda else None
    try:
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(host)
        if cuda:
            torch.cuda.set_rng_state(other, device)
