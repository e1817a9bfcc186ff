# SPDX-License-Identifier: BSD-3-Clause
"""The distinct samples of one request, and where the values of each of them go.

Rows of a request may repeat a sample; the pass computes it once.
"""

import numpy as np

__all__ = ["Wanted"]


class Wanted:
    """The rows of one request: each distinct sample once, and where its values go.

    Parameters
    ----------
    rows : ndarray of int
        The rows asked for; some may be equal, or hold equal samples.
    keys : ndarray, V16
        Keys of all rows of the source.
    unkeyed : ndarray of int
        Rows that cannot be read and have no key.

    Attributes
    ----------
    rows : ndarray of int
        One row per distinct sample.
    """

    def __init__(self, rows: np.ndarray, keys: np.ndarray, unkeyed: np.ndarray):
        positions = np.flatnonzero(~np.isin(rows, unkeyed))
        pairs = np.ascontiguousarray(keys[rows[positions]]).view([("a", "u8"), ("b", "u8")])
        _, first, group, counts = np.unique(
            pairs, return_index=True, return_inverse=True, return_counts=True
        )
        # In order of first appearance, so that files are read in the user's order.
        rank = np.argsort(np.argsort(first))
        self.rows = rows[positions[np.sort(first)]]
        self._counts = np.empty_like(counts)
        self._counts[rank] = counts
        self._sorted = positions[np.argsort(rank[group], kind="stable")]
        self._starts = np.cumsum(self._counts) - self._counts
        self._group_of = dict(zip(self.rows.tolist(), range(len(self.rows)), strict=True))

    def positions(self, row: int) -> np.ndarray:
        """Positions in the request that one of `rows` stands for."""
        group = self._group_of[row]
        start = self._starts[group]
        return self._sorted[start : start + self._counts[group]]

    def expand(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Where the values of some of `rows` go.

        Parameters
        ----------
        found : ndarray of int
            Some of `rows`.

        Returns
        -------
        positions : ndarray of int
            In the request.
        repeats : ndarray of int, or None
            Which of `found` stands at each of the positions; None where it is each one once.
        """
        groups = np.array([self._group_of[row] for row in found.tolist()], dtype=np.int64)
        counts = self._counts[groups]
        if (counts == 1).all():
            return self._sorted[self._starts[groups]], None
        positions = np.concatenate([self.positions(row) for row in found.tolist()])
        return positions, np.repeat(np.arange(len(found)), counts)
