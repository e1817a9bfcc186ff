# SPDX-License-Identifier: BSD-3-Clause
"""Calls that happen wholly or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["unchanged_on_error"]


@contextmanager
def unchanged_on_error(*objects: object) -> Iterator[None]:
    """Give objects their attributes back when the block fails or is interrupted.

    Parameters
    ----------
    *objects : object
        Estimators whose methods replace attributes rather than change what these hold.

    Examples
    --------
    >>> from sklearn.base import BaseEstimator
    >>> from skpool.utils import unchanged_on_error
    >>> estimator = BaseEstimator()
    >>> try:
    ...     with unchanged_on_error(estimator):
    ...         estimator.half_done_ = True
    ...         raise ValueError
    ... except ValueError:
    ...     hasattr(estimator, "half_done_")
    False
    """
    before = [dict(vars(one)) for one in objects]
    try:
        yield
    except BaseException:
        for one, attributes in zip(objects, before, strict=True):
            vars(one).clear()
            vars(one).update(attributes)
        raise
