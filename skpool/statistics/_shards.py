# SPDX-License-Identifier: BSD-3-Clause
"""ShardedMoments: moments kept apart by contributor, so that one can leave without a trace.

Subtraction leaves a residue in the last digits; a sum in which a contributor never took part does
not. What classifiers learn from is `total()`.
"""

from collections.abc import Mapping

import numpy as np

from skpool.statistics._class_moments import ClassMoments
from skpool.statistics._combining import merge_all
from skpool.utils import ArrayLike

__all__ = ["ShardedMoments"]


class ShardedMoments:
    """Moments of classes, one set per contributor.

    Parameters
    ----------
    scatter : {"none", "shared", "per_class", "diag", "shared_diag"}, default="shared"
        See :class:`ClassMoments`.

    Attributes
    ----------
    shards_ : mapping of str or int to ClassMoments
        Contributors and their moments, sorted by name.

    See Also
    --------
    ClassMoments : One set; removes rows by subtraction.

    Notes
    -----
    Memory: that of `ClassMoments` once per contributor. `total` adds the shards present in sorted
    order, so after `drop_shard` it is bit for bit what it would be had the shard never come.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import ShardedMoments
    >>> moments = ShardedMoments().update(np.array([[0.0], [2.0]]), ["a", "a"], shard="anna")
    >>> moments = moments.update(np.array([[6.0]]), ["b"], shard="otto")
    >>> moments.total().means_
    array([[1.],
           [6.]])
    >>> moments.drop_shard("otto").total().classes_
    array(['a'], dtype='<U1')
    """

    def __init__(self, scatter: str = "shared"):
        self._empty = ClassMoments(scatter)
        self._shards: dict[str | int, ClassMoments] = {}

    def __repr__(self) -> str:
        return f"ShardedMoments(scatter={self._empty.scatter!r}, n_shards={len(self._shards)})"

    @property
    def shards_(self) -> Mapping[str | int, ClassMoments]:
        """Contributors and their moments, sorted by name."""
        return {name: self._shards[name].copy() for name in self._names()}

    def _names(self) -> list[str | int]:
        # Text after numbers: the two do not compare.
        return sorted(self._shards, key=lambda name: (isinstance(name, str), name))

    def update(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        shard: str | int,
        sample_weight: ArrayLike | None = None,
    ) -> "ShardedMoments":
        """Add rows of a contributor.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Labels.
        shard : str or int
            Whose rows they are; a new name is a new contributor.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of at least 0.

        Returns
        -------
        self : ShardedMoments
        """
        if not isinstance(shard, (str, int, np.integer)) or isinstance(shard, bool):
            raise TypeError(f"shard={shard!r} is not valid; name a contributor by text or number.")
        held = self._shards.get(shard, self._empty).copy()
        held.update(X, y, sample_weight)
        # Shards that could not be added up later are refused while the rows are at hand.
        if self._shards:
            _ = next(iter(self._shards.values())) + held
        self._shards[shard] = held
        return self

    def drop_shard(self, shard: str | int) -> "ShardedMoments":
        """Remove a contributor with all rows.

        Parameters
        ----------
        shard : str or int
            A name in `shards_`.

        Returns
        -------
        self : ShardedMoments
        """
        if shard not in self._shards:
            raise ValueError(
                f"shard={shard!r} is not held; the {len(self._shards)} shards are listed in "
                "`shards_`."
            )
        del self._shards[shard]
        return self

    def total(self) -> ClassMoments:
        """Return the moments of all rows of the shards present.

        Returns
        -------
        moments : ClassMoments
            A new object, for `fit_moments` of the classifiers.
        """
        return merge_all([self._shards[name] for name in self._names()] or [self._empty])
