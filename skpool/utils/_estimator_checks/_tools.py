# SPDX-License-Identifier: BSD-3-Clause
"""What the checks are written with: expectations that speak, exact states, small data."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.utils import get_tags

__all__ = [
    "N_FEATURES",
    "Check",
    "call",
    "expect",
    "expect_close",
    "freeze",
    "fresh",
    "has_parameter",
    "host",
    "refused",
    "unchanged",
]

# Many divisors, so that an estimator that cuts features into groups runs with its defaults.
N_FEATURES = 12

Check = Callable[[BaseEstimator], None]


def expect(condition: object, message: str) -> None:
    """Fail with a message; unlike an assert statement also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def host(values: object) -> np.ndarray:
    """An array or tensor as an ndarray."""
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def expect_close(actual: object, desired: object, what: str, *, tol: float = 0.0) -> None:
    """Fail unless two arrays agree to `tol`, relative to the largest value; NaN equals NaN."""
    actual, desired = host(actual), host(desired)
    expect(actual.shape == desired.shape, f"{what}: shapes {actual.shape} and {desired.shape}.")
    if actual.dtype.kind not in "fiu":
        expect((actual == desired).all(), f"{what}: {actual!r} and {desired!r} differ.")
        return
    a, b = actual.astype(np.float64), desired.astype(np.float64)
    finite = np.isfinite(b)
    scale = max(1.0, np.abs(b[finite]).max(initial=0.0))
    same = np.array_equal(a[~finite], b[~finite], equal_nan=True)
    worst = np.abs(a[finite] - b[finite]).max(initial=0.0)
    # Written so that a NaN among the differences fails too.
    expect(
        same and worst <= tol * scale,
        f"{what}: the largest difference is {worst:.3g}, allowed is {tol * scale:.3g}"
        + ("." if same else ", and NaN or infinite values stand in other places."),
    )


@contextmanager
def refused(what: str, *, match: str = "") -> Iterator[None]:
    """Fail unless the block raises ValueError or TypeError with a message that matches."""
    try:
        yield
    except (ValueError, TypeError) as error:
        expect(
            re.search(match, str(error)),
            f"{what} was refused, but the message does not match {match!r}: {error}",
        )
        return
    raise AssertionError(f"{what} was accepted; it must be refused with a ValueError.")


def freeze(value: object) -> object:
    """Everything that an object holds, as nested tuples that are equal only if all bytes are."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (
            "tensor",
            str(value.dtype),
            tuple(value.shape),
            value.contiguous().numpy().tobytes(),
        )
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, np.ndarray):
        return ("objects", value.shape, freeze(value.ravel().tolist()))
    if isinstance(value, dict):
        return ("dict", tuple((freeze(k), freeze(v)) for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, tuple(freeze(item) for item in value))
    if isinstance(value, (set, frozenset)):
        return ("set", tuple(sorted(repr(freeze(item)) for item in value)))
    if value is None or isinstance(value, (str, bytes, bool, int, float, complex, np.generic)):
        return (type(value).__name__, repr(value))
    if isinstance(value, type) or callable(value):
        return ("object", id(value))
    return (type(value).__name__, freeze(value.__getstate__()))


@contextmanager
def unchanged(estimator: BaseEstimator, what: str) -> Iterator[None]:
    """Fail if the block changes any attribute of the estimator by a single byte."""
    before = {name: freeze(value) for name, value in vars(estimator).items()}
    yield
    after = {name: freeze(value) for name, value in vars(estimator).items()}
    changed = sorted(name for name in before | after if before.get(name, ()) != after.get(name, ()))
    expect(not changed, f"{what} changed the attributes {changed}; it must change nothing.")


def has_parameter(estimator: BaseEstimator, name: str) -> bool:
    """Whether the constructor has this parameter."""
    return name in estimator.get_params(deep=False)


def fresh(estimator: BaseEstimator, **params: object) -> BaseEstimator:
    """A clone with a fixed random state, and the given parameters where it has them."""
    copy = clone(estimator)
    params = {"random_state": 0} | params
    return copy.set_params(**{k: v for k, v in params.items() if has_parameter(copy, k)})


def call(method: Callable, X: object, y: object, estimator: BaseEstimator) -> object:
    """Call a method with labels if the estimator learns from labels."""
    # Not every meta-estimator passes the tag of its final step on.
    supervised = is_classifier(estimator) or get_tags(estimator).target_tags.required
    return method(X, y) if supervised else method(X)
