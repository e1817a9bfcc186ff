# SPDX-License-Identifier: BSD-3-Clause
"""The errors and warnings that skpool raises by a name of its own.

All derive from the built-in class that a caller would expect, so ``except ValueError`` works;
the names exist so that a program can tell one from another.
"""

from collections.abc import Sequence

__all__ = [
    "BackboneError",
    "DamagedBlockWarning",
    "MissingDependencyError",
    "StoreError",
    "UnreadableInputError",
]


class MissingDependencyError(ImportError):
    """An optional library is needed and cannot be imported; the message names the extra."""


class BackboneError(ValueError):
    """A backbone cannot be built, or was asked for something that it does not have."""


class StoreError(OSError):
    """A feature store cannot be opened or written."""


class DamagedBlockWarning(UserWarning):
    """A stored block failed its checksum and will be recomputed."""


class UnreadableInputError(ValueError):
    """Some inputs cannot be read.

    Raised once at the end of a pass, after every readable input was computed and kept.

    Parameters
    ----------
    failures : sequence of (int, str, str)
        Position in X, name and reason of every unreadable input.

    Attributes
    ----------
    failures : list of (int, str, str)
        The same, sorted by position.
    """

    _SHOWN = 20

    def __init__(self, failures: Sequence[tuple[int, str, str]]):
        self.failures = sorted(failures)
        super().__init__(self._message())

    def _message(self) -> str:
        n = len(self.failures)
        lines = [f"{name}: {reason}" for _, name, reason in self.failures[: self._SHOWN]]
        if n > self._SHOWN:
            lines.append(f"and {n - self._SHOWN} more in the attribute `failures`")
        noun = "input" if n == 1 else "inputs"
        return (
            f"{n} {noun} could not be read (all others were computed and kept); remove or repair "
            f'them, or set on_error="nan" to get NaN rows: ' + "; ".join(lines)
        )

    def __reduce__(self):
        return type(self), (self.failures,)
