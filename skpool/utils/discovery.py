# SPDX-License-Identifier: BSD-3-Clause
"""Which estimators the package has: what its own tests and documentation walk over.

Nothing in the package imports this module; it imports every room, when it is called.
"""

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClusterMixin,
    OutlierMixin,
    RegressorMixin,
    TransformerMixin,
)

import skpool

__all__ = ["all_estimators", "all_public_objects"]

_TYPES = {
    "classifier": ClassifierMixin,
    "cluster": ClusterMixin,
    "outlier_detector": OutlierMixin,
    "regressor": RegressorMixin,
    "transformer": TransformerMixin,
}


def _public_modules() -> Iterator[ModuleType]:
    """The rooms of the package and its public top-level modules."""
    for info in pkgutil.iter_modules(skpool.__path__):
        if not info.name.startswith("_"):
            yield import_module(f"skpool.{info.name}")


def all_public_objects() -> list[tuple[str, object]]:
    """List what the rooms of the package export.

    Returns
    -------
    objects : list of (str, object)
        Full names, such as "skpool.pooling.GeMPooling", and what they name; sorted by name.

    Examples
    --------
    >>> from skpool.utils.discovery import all_public_objects
    >>> "skpool.pooling.GeMPooling" in dict(all_public_objects())
    True
    """
    found = {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in _public_modules()
        for name in getattr(module, "__all__", ())
    }
    return sorted(found.items())


def all_estimators(type_filter: str | list[str] | None = None) -> list[tuple[str, type]]:
    """List the public estimators of the package.

    Parameters
    ----------
    type_filter : str, list of str or None, default=None
        Which kinds to list: "classifier", "cluster", "outlier_detector", "regressor" or
        "transformer". None lists all.

    Returns
    -------
    estimators : list of (str, type)
        Names and classes, sorted by name. Classes that are meant to be subclassed (`Base...`,
        with subclasses in the package) are left out.

    Examples
    --------
    >>> from skpool.utils.discovery import all_estimators
    >>> "GeMPooling" in dict(all_estimators("transformer"))
    True
    """
    wanted = [type_filter] if isinstance(type_filter, str) else type_filter
    unknown = sorted(set(wanted or ()) - set(_TYPES))
    if unknown:
        raise ValueError(
            f"type_filter={type_filter!r} holds {unknown[0]!r}; choose from {sorted(_TYPES)}, or "
            "None for all."
        )
    kinds = tuple(_TYPES[kind] for kind in wanted) if wanted is not None else (BaseEstimator,)
    estimators = {
        (cls.__name__, cls)
        for _, cls in all_public_objects()
        if inspect.isclass(cls)
        and issubclass(cls, BaseEstimator)
        and issubclass(cls, kinds)
        and not inspect.isabstract(cls)
        and not (cls.__name__.startswith("Base") and cls.__subclasses__())
    }
    return sorted(estimators, key=lambda pair: pair[0])
