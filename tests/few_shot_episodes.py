# SPDX-License-Identifier: BSD-3-Clause
"""Small random episodes for the tests of the transductive classifiers."""

from collections.abc import Sequence

import numpy as np
import torch

from skpool.model_selection import EpisodeBatch

__all__ = ["batch_of", "draw_episode", "labelled"]


def draw_episode(seed=0, *, n_way=3, n_shot=2, n_query=12, d=5, spread=0.4, shares=None):
    """Return supports, their numbers, queries and theirs, around random unit vectors."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_way, d))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    ys = rng.permutation(np.repeat(np.arange(n_way), n_shot))
    yq = rng.choice(n_way, size=n_query, p=shares)
    Xs, Xq = (centres[y] + spread * rng.normal(size=(len(y), d)) for y in (ys, yq))
    return Xs, ys, Xq, yq


def batch_of(episodes: Sequence[tuple], dtype=torch.float64) -> EpisodeBatch:
    """Return episodes of equal shape as a batch."""
    Xs, ys, Xq, yq = (torch.from_numpy(np.stack(part)) for part in zip(*episodes, strict=True))
    return EpisodeBatch(Xs.to(dtype), ys, Xq.to(dtype), yq)


def labelled(episode: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Return all rows of an episode, with -1 for queries."""
    Xs, ys, Xq, _ = episode
    return np.vstack([Xs, Xq]), np.concatenate([ys, np.full(len(Xq), -1)])
