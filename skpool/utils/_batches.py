# SPDX-License-Identifier: BSD-3-Clause
"""How many rows at a time: one reading of scikit-learn's `working_memory` for loops over rows."""

from collections.abc import Iterator

from sklearn import get_config
from sklearn.utils import gen_batches

__all__ = ["row_batches"]


def row_batches(n_rows: int, row_bytes: int, *, most: int | None = None) -> Iterator[slice]:
    """Yield slices of as many rows as scikit-learn's `working_memory` holds, at least one.

    Parameters
    ----------
    n_rows : int
    row_bytes : int
        What working on a row takes; 0 if nothing.
    most : int, default=None
        Most rows of a slice, whatever the memory.

    Yields
    ------
    rows : slice

    Examples
    --------
    >>> from skpool.utils import row_batches
    >>> list(row_batches(5, 8, most=3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    fitting = int(get_config()["working_memory"] * 2**20) // row_bytes if row_bytes else n_rows
    yield from gen_batches(n_rows, max(1, fitting if most is None else min(fitting, most)))
