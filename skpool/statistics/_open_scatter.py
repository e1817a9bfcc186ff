# SPDX-License-Identifier: BSD-3-Clause
"""A shared scatter around reference points instead of means, which a stream only has to add to.

Around points that stay where they are, the products of a new block are added and nothing else; to
move them to the means is one product of as many rows as there are classes, and is put off until
somebody looks. `ClassMoments` holds its scatter so between updates.
"""

from typing import NamedTuple

import numpy as np
import torch

from skpool.statistics._symmetric_products import MANY_MEANS, add_product, mirror, panels
from skpool.utils import as_tensor

__all__ = ["OpenScatter"]

# A feature of which more of the products than this is distance of the means from the points has
# lost a digit or two; a closer point is due.
_FAR = 0.75


class OpenScatter(NamedTuple):
    """The scatter ``products - E.T @ E``, with E the rows of `excess`.

    Attributes
    ----------
    products : tensor of shape (n_features, n_features)
        Of rows less the points of their classes; the upper triangle counts.
    diagonal : tensor of shape (n_features,) or None
        To be used in place of that of the products.
    points : ndarray of shape (n_classes, n_features)
    """

    products: torch.Tensor
    diagonal: torch.Tensor | None
    points: np.ndarray

    def excess(self, counts: np.ndarray, means: np.ndarray) -> np.ndarray:
        """How far the means are from the points, (n_classes, n_features), by the root count."""
        return (means - self.points) * np.sqrt(counts)[:, None]

    def of(self, keep: np.ndarray) -> "OpenScatter":
        """Return the same without the points of classes that hold nothing."""
        return self._replace(points=self.points[keep])

    def closed(
        self,
        counts: np.ndarray,
        means: np.ndarray,
        *,
        onto: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return ``onto`` plus this scatter plus ``rows.T @ rows``, in float64."""
        before = None if onto is None else as_tensor(onto)
        # Nothing of the products may change.
        total = (
            self.products.to(torch.float64, copy=True) if onto is None else before + self.products
        )
        if self.diagonal is not None:
            own = self.diagonal if before is None else before.diagonal() + self.diagonal
            total.diagonal().copy_(own)
        left = right = torch.from_numpy(self.excess(counts, means))
        if rows is not None:
            left = torch.cat([left, torch.from_numpy(rows)])
            right = torch.cat([right, torch.from_numpy(-rows)])
        if len(left) > MANY_MEANS:
            left, right = left.to(self.products.dtype), right.to(self.products.dtype)
        add_product(total, left, -right)
        mirror(total)
        return total.numpy()

    def joined(
        self, other: "OpenScatter", i: np.ndarray, j: np.ndarray, n_classes: int
    ) -> "OpenScatter | None":
        """Return both together, their classes at `i` and `j`; None where their points differ."""
        points = self.points
        if len(i) < n_classes:
            points = np.full((n_classes, points.shape[1]), np.nan)
            points[i] = self.points
            new = np.setdiff1d(j, i)
            points[new] = other.points[np.searchsorted(j, new)]
        if not np.array_equal(points if len(j) == n_classes else points[j], other.points):
            return None
        products = torch.empty_like(self.products, dtype=torch.float64)
        for part in panels(len(products), products.device):
            torch.add(self.products[part], other.products[part], out=products[part])
        own, added = self.own_diagonal(), other.own_diagonal()
        return OpenScatter(products, own + added, points)

    def own_diagonal(self) -> torch.Tensor:
        """The diagonal, float64."""
        held = self.products.diagonal() if self.diagonal is None else self.diagonal
        return held.to(torch.float64)

    def is_near(self, counts: np.ndarray, means: np.ndarray) -> bool:
        """Tell whether the points are near enough to the means to lose next to nothing."""
        excess = np.square(self.excess(counts, means)).sum(axis=0)
        return bool((excess <= _FAR * self.own_diagonal().numpy()).all())
