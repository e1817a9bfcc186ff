# SPDX-License-Identifier: BSD-3-Clause
"""Checks of steps that take maps: those of tokens, on tokens that lie on a grid."""

from functools import wraps

import numpy as np
from sklearn.base import BaseEstimator

from skpool.stores import TokenArray
from skpool.utils._estimator_checks._tokens import N_SAMPLES, N_TOKENS, TOKEN_CHECKS
from skpool.utils._estimator_checks._tools import N_FEATURES, Check, fresh, refused

__all__ = ["MAP_CHECKS"]


def _grid(n_tokens: int) -> tuple[int, int]:
    return (n_tokens // 3, 3) if n_tokens % 3 == 0 else (n_tokens, 1)


def _on_grid(X: object) -> object:
    """Tokens as maps; the grid follows from their number."""
    if isinstance(X, TokenArray):
        n_patches = X.shape[1] - X.n_prefix_tokens
        return X.map(lambda tokens, mask: tokens, grid=_grid(n_patches))
    if isinstance(X, list) and np.ndim(X[0]) == 2:
        return [x.reshape(*_grid(len(x)), x.shape[1]) for x in X]
    if getattr(X, "ndim", 0) == 3:
        return X.reshape(len(X), *_grid(X.shape[1]), X.shape[2])
    return X


class _OnGrid:
    """Puts tokens on a grid before the step sees them."""

    def fit(self, X, y=None):
        return super().fit(_on_grid(X), y)

    def transform(self, X):
        return super().transform(_on_grid(X))

    def __reduce__(self):
        return _restored, (type(self).__mro__[2], self.__getstate__())


def _class_on_grid(kind: type) -> type:
    return type(kind.__name__, (_OnGrid, kind), {})


def _restored(kind: type, state: dict) -> BaseEstimator:
    step = _class_on_grid(kind)()
    step.__setstate__(state)
    return step


def _with_grid(check: Check) -> Check:
    @wraps(check)
    def check_on_grid(estimator: BaseEstimator) -> None:
        check(_class_on_grid(type(estimator))(**estimator.get_params(deep=False)))

    return check_on_grid


def check_tokens_without_a_grid_are_refused(estimator: BaseEstimator) -> None:
    """Several tokens of which nobody says where they lie are refused."""
    X = np.zeros((N_SAMPLES, N_TOKENS, N_FEATURES))
    for given in (X, list(X), TokenArray.from_array(X)):
        with refused("Tokens without a grid", match="grid"):
            fresh(estimator).fit(given)


MAP_CHECKS = (*map(_with_grid, TOKEN_CHECKS), check_tokens_without_a_grid_are_refused)
