# SPDX-License-Identifier: BSD-3-Clause
"""Few-shot episodes of real features, the same for a published code and ours."""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator

from _published.tasks import features
from skpool.model_selection import EpisodeBatch, EpisodeSplit

WAYS, QUERIES, EPISODES = 5, 15, 100


class Episodes(NamedTuple):
    """Rows and local class numbers of the episodes, and the rows of other classes."""

    Xs: torch.Tensor  # (E, n_s, d), one class after the other
    ys: torch.Tensor  # (E, n_s)
    Xq: torch.Tensor  # (E, n_q, d)
    yq: torch.Tensor  # (E, n_q)
    base: np.ndarray  # (n, d)

    def normalized(self) -> "Episodes":
        """Return unit rows, centred by the mean of the other classes."""
        center = torch.from_numpy(self.base.mean(axis=0))
        Xs, Xq = (torch.nn.functional.normalize(X - center, dim=2) for X in (self.Xs, self.Xq))
        return self._replace(Xs=Xs, Xq=Xq)

    def first(self, n: int) -> "Episodes":
        """Return the first few episodes."""
        return Episodes(self.Xs[:n], self.ys[:n], self.Xq[:n], self.yq[:n], self.base)

    def batch(self) -> EpisodeBatch:
        """Return what ours takes."""
        return EpisodeBatch(self.Xs, self.ys, self.Xq, n_way=WAYS)

    def decided(self, model: BaseEstimator) -> np.ndarray:
        """Return the predictions of ours, (E, n_q)."""
        return model.predict_episodes(self.batch()).numpy()

    def score(self, model: BaseEstimator) -> float:
        """Return the accuracy of ours."""
        return share(self.decided(model), self.yq)


def share(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> float:
    """Share of equal entries."""
    return float((np.asarray(a) == np.asarray(b)).mean())


def make_episodes(
    seed: int, n_shot: int, *, distribution: str = "balanced", rectified: bool = False
) -> Episodes:
    """Draw episodes from half of the classes of CIFAR-100; `rectified` features have no signs."""
    X, y = features("cifar100_deit_tiny")
    if rectified:
        X = np.maximum(X, 0)
    novel = np.random.default_rng(seed).permutation(y.max() + 1)[: (y.max() + 1) // 2]
    split = EpisodeSplit(
        WAYS,
        n_shot,
        QUERIES,
        n_episodes=EPISODES,
        classes=novel,
        query_distribution=distribution,
        random_state=seed,
    )
    index = split.episodes(y)
    rows = (torch.from_numpy(X[at]) for at in (index.support, index.query))
    labels = (torch.from_numpy(at) for at in (index.support_labels, index.query_labels))
    (Xs, Xq), (ys, yq) = rows, labels
    return Episodes(Xs, ys, Xq, yq, X[~np.isin(y, novel)])
