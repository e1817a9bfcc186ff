# SPDX-License-Identifier: BSD-3-Clause
"""One stable hash for everything that names a computation: backbones, layers, poolings.

Stores key their rows by fingerprints, so two runs, processes or machines that would compute the
same thing must get the same text, and two that differ in any part must not.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from sklearn.base import BaseEstimator

from skpool import __version__

__all__ = ["estimator_fingerprint", "fingerprint"]


def _feed(digest, value: object) -> None:
    """Add one value with its type and length, so that no two structures read alike."""
    if isinstance(value, Mapping):
        digest.update(b"map%d:" % len(value))
        for key in sorted(value):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(b"seq%d:" % len(value))
        for item in value:
            _feed(digest, item)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        # ascontiguousarray makes a 0-d array 1-d, so the shape is taken before it.
        digest.update(f"array{value.dtype.str}{value.shape}:".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    elif value is None or isinstance(value, (str, bytes, bool, int, float, np.generic)):
        value = value.item() if isinstance(value, np.generic) else value
        text = f"{type(value).__name__}{value!r}".encode()
        digest.update(b"%d:" % len(text) + text)
    else:
        raise TypeError(
            f"A {type(value).__name__} has no stable fingerprint; give numbers, text, arrays, "
            "lists or dicts of these."
        )


def fingerprint(*parts: object) -> str:
    """Return a stable hexadecimal hash of nested plain values.

    Parameters
    ----------
    *parts : None, bool, int, float, str, bytes, ndarray, or lists, tuples, dicts of these
        What to hash; order matters, the order of dict keys does not.

    Returns
    -------
    text : str
        32 hexadecimal digits (the first 128 bits of SHA-256).

    Examples
    --------
    >>> from skpool.utils import fingerprint
    >>> fingerprint("gem", {"p": 3.0}) == fingerprint("gem", {"p": 3.0})
    True
    >>> fingerprint("gem", {"p": 3.0}) == fingerprint("gem", {"p": 4.0})
    False
    """
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.hexdigest()[:32]


def estimator_fingerprint(estimator: BaseEstimator) -> str | None:
    """Return the name of what an estimator of the package computes by its parameters alone.

    A class from outside the package has no name here: another class of that name, or an edited
    version of it, would be served its results. Its author may give one that says so.

    Parameters
    ----------
    estimator : estimator
        Its `batch_size`, if it has one, plays no part.

    Returns
    -------
    text : str or None
        None for a class from outside the package, and where a parameter has no stable
        fingerprint, as a callable.

    Examples
    --------
    >>> from skpool.pooling import TokenPooling
    >>> from skpool.utils import estimator_fingerprint
    >>> estimator_fingerprint(TokenPooling("mean")) == estimator_fingerprint(TokenPooling("max"))
    False
    """
    kind = type(estimator)
    if not kind.__module__.startswith("skpool."):
        return None
    parameters = {k: v for k, v in estimator.get_params(deep=False).items() if k != "batch_size"}
    try:
        return fingerprint(kind.__module__, kind.__qualname__, __version__, parameters)
    except TypeError:
        return None
