# SPDX-License-Identifier: BSD-3-Clause
"""Optional libraries, imported where they are used and missed with a remedy."""

from importlib import import_module
from types import ModuleType

from skpool.exceptions import MissingDependencyError

__all__ = ["import_optional"]


def import_optional(name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional library or say which extra brings it.

    Parameters
    ----------
    name : str
        Module to import.
    extra : str
        Extra of skpool that installs it.
    purpose : str
        What it is needed for, for the error message.

    Returns
    -------
    module : module

    Raises
    ------
    MissingDependencyError
        The library is absent, or is installed and fails to import (some builds of torchvision
        raise RuntimeError beside a CPU build of torch).

    Examples
    --------
    >>> from skpool.utils import import_optional
    >>> import_optional("math", extra="hf", purpose="arithmetic").sqrt(4.0)
    2.0
    """
    try:
        return import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependencyError(
            f"{purpose} needs {name.split('.')[0]!r}, which could not be imported ({error}); "
            f"install it with: pip install 'skpool[{extra}]'."
        ) from error
