# SPDX-License-Identifier: BSD-3-Clause
"""Objects with locks, claims and database handles that must not be shared by a forked child.

Open SQLite handles and OS locks do not survive a fork: the child would believe that it holds
locks which are its parent's. Both stores register here; before a fork their locks are taken and
their handles closed, after it the parent goes on and the child starts with nothing.
"""

import os
import weakref
from threading import Lock
from typing import Protocol

__all__ = ["watch_forks"]


class _Forkable(Protocol):
    def _before_fork(self) -> None: ...
    def _after_fork_in_parent(self) -> None: ...
    def _after_fork_in_child(self) -> None: ...


_watched: "weakref.WeakSet[_Forkable]" = weakref.WeakSet()
# Strong references between the two halves of a fork, so that both see the same objects; the lock
# lets one thread fork at a time, so that no two take the stores' locks in turns.
_forking: list[_Forkable] = []
_one_fork = Lock()


def watch_forks(store: _Forkable) -> None:
    """Call the three methods of `_Forkable` around every fork while the object lives."""
    _watched.add(store)


def _before() -> None:
    _one_fork.acquire()
    _forking[:] = list(_watched)
    for store in _forking:
        store._before_fork()


def _in_parent() -> None:
    while _forking:
        _forking.pop()._after_fork_in_parent()
    _one_fork.release()


def _in_child() -> None:
    while _forking:
        _forking.pop()._after_fork_in_child()
    _one_fork.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
