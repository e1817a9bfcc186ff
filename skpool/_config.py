# SPDX-License-Identifier: BSD-3-Clause
"""Process-wide limits: how much may be cached, materialised and decoded.

Every limit has a default, an environment variable that sets the default (so that worker
processes agree with their parent), and can be changed for a process (`set_config`) or for a
block of code (`config_context`). The values are process-wide, not thread-local, because the
threads that decode images must see what the main thread set.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["config_context", "get_config", "set_config"]

_DEFAULTS = {
    "cache_bytes": 2**30,
    "max_array_bytes": 4 * 2**30,
    "max_pixels": 89_478_485,
}


def _checked(name: str, value: object) -> int:
    if name not in _DEFAULTS:
        raise ValueError(f"Unknown option {name!r}; the options are {sorted(_DEFAULTS)}.")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}={value!r} is not valid; give a whole number of at least 0.")
    return value


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(f"SKPOOL_{name.upper()}")
    if text is None:
        return default
    try:
        return _checked(name, int(text))
    except ValueError as error:
        raise ValueError(
            f"The environment variable SKPOOL_{name.upper()}={text!r} is not valid; "
            "give a whole number of at least 0."
        ) from error


_config = {name: _from_environment(name, default) for name, default in _DEFAULTS.items()}


def get_config() -> dict[str, int]:
    """Return a copy of the current configuration.

    Returns
    -------
    config : dict
        The options described in :func:`set_config` and their values.

    Examples
    --------
    >>> import skpool
    >>> sorted(skpool.get_config())
    ['cache_bytes', 'max_array_bytes', 'max_pixels']
    """
    return dict(_config)


def set_config(
    *,
    cache_bytes: int | None = None,
    max_array_bytes: int | None = None,
    max_pixels: int | None = None,
) -> None:
    """Change the limits of this process.

    Parameters
    ----------
    cache_bytes : int, default=None
        Bytes of features kept in memory by extractors that have no store; 0 switches the cache
        off. Initially 1 GiB, or the environment variable ``SKPOOL_CACHE_BYTES``.
    max_array_bytes : int, default=None
        Largest array, in bytes, that a lazy token array turns into without being asked twice.
        Initially 4 GiB, or ``SKPOOL_MAX_ARRAY_BYTES``.
    max_pixels : int, default=None
        Images with more pixels are refused unread, as a guard against decompression bombs.
        Initially 89,478,485 (Pillow's own limit), or ``SKPOOL_MAX_PIXELS``.

    Notes
    -----
    ``None`` leaves an option as it is.

    Examples
    --------
    >>> import skpool
    >>> before = skpool.get_config()
    >>> skpool.set_config(cache_bytes=2**28)
    >>> skpool.get_config()["cache_bytes"]
    268435456
    >>> skpool.set_config(**before)
    """
    given = {
        "cache_bytes": cache_bytes,
        "max_array_bytes": max_array_bytes,
        "max_pixels": max_pixels,
    }
    # All are checked before any is set: a refused call changes nothing.
    _config.update({k: _checked(k, v) for k, v in given.items() if v is not None})


@contextmanager
def config_context(**options: int) -> Iterator[None]:
    """Change the limits within a ``with`` block.

    Parameters
    ----------
    **options : int
        The options of :func:`set_config`.

    Examples
    --------
    >>> import skpool
    >>> with skpool.config_context(cache_bytes=0):
    ...     skpool.get_config()["cache_bytes"]
    0
    """
    before = get_config()
    set_config(**options)
    try:
        yield
    finally:
        set_config(**before)
