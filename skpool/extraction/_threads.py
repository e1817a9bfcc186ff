# SPDX-License-Identifier: BSD-3-Clause
"""Work done in threads, in order and in bounded memory: ahead of a device, or in its pauses."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["map_ahead", "map_in_bursts"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, n_workers: int, ahead: int
) -> Iterator[Result]:
    """Apply a function in threads and yield the results in order.

    Parameters
    ----------
    function : callable
        Must not raise for an item that is merely bad; what it raises ends the iteration.
    items : iterable
        Read only as far as needed.
    n_workers : int
        Threads; 0 works in the caller's.
    ahead : int
        Items that are worked on or wait to be taken, at most.

    Yields
    ------
    result : object

    Examples
    --------
    >>> from skpool.extraction._threads import map_ahead
    >>> list(map_ahead(abs, [-1, -2, -3], n_workers=2, ahead=2))
    [1, 2, 3]
    """
    if n_workers == 0:
        yield from map(function, items)
        return
    items = iter(items)
    with ThreadPoolExecutor(n_workers, thread_name_prefix="skpool-decode") as pool:
        waiting = deque(pool.submit(function, item) for item in islice(items, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(items, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def map_in_bursts(
    function: Callable[[Item], Result], items: Iterable[Item], *, n_workers: int, burst: int
) -> Iterator[Result]:
    """Apply a function to some items at once in threads, and to none while results are used.

    Parameters
    ----------
    function : callable
        What it raises ends the iteration.
    items : iterable
        Read one burst at a time.
    n_workers : int
        Threads; 0 works in the caller's.
    burst : int
        Items that are worked on at once.

    Yields
    ------
    result : object

    Examples
    --------
    >>> from skpool.extraction._threads import map_in_bursts
    >>> list(map_in_bursts(abs, [-1, -2, -3], n_workers=2, burst=2))
    [1, 2, 3]
    """
    if n_workers == 0:
        yield from map(function, items)
        return
    items = iter(items)
    with ThreadPoolExecutor(n_workers, thread_name_prefix="skpool-decode") as pool:
        while some := list(islice(items, burst)):
            yield from list(pool.map(function, some))
