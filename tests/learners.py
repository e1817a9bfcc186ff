# SPDX-License-Identifier: BSD-3-Clause
"""The learners that the laws of learning are about, small data for them, and how they are compared.

A learner is a configured instance of a public classifier with `partial_fit`; a classifier that is
added to the package is among them as soon as it has its line in ``_instances.py``.
"""

from typing import NamedTuple

import numpy as np
from _instances import INSTANCES, expected_failures
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.utils.validation import has_fit_parameter

from skpool.probing import TorchHeadMixin

__all__ = [
    "LEARNERS",
    "Data",
    "difference",
    "joint",
    "learned_in",
    "made",
    "order_matters",
    "scores",
    "takes_weights",
]

LEARNERS = [
    instance
    for instances in INSTANCES.values()
    for instance in instances
    if is_classifier(instance) and hasattr(instance, "partial_fit")
]


class Data(NamedTuple):
    """Rows, labels and weights of samples, and rows that were never learned."""

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    unseen: np.ndarray
    # The largest relative difference of scores that rounding explains.
    tol: float

    def part(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and labels of some samples."""
        return self.X[rows], self.y[rows]


def made(dtype: str, *, seed: int = 0) -> Data:
    """Four classes of unequal size, one of them rare, away from the origin.

    float32 rows are wide enough that products of moments are taken in float32.
    """
    rng = np.random.default_rng(seed)
    n, d, tol = (72, 12, 1e-10) if dtype == "float64" else (640, 264, 1e-6)
    y = rng.choice(4, size=n, p=[0.4, 0.3, 0.2, 0.1])
    y[:8] = np.arange(8) % 4
    centres = 2.0 + 1.5 * rng.normal(size=(4, d))
    spread = np.linspace(0.5, 2.0, d)
    X, unseen = (
        (centres[labels] + spread * rng.normal(size=(len(labels), d))).astype(dtype)
        for labels in (y, rng.integers(0, 4, size=24))
    )
    return Data(X, y, rng.uniform(0.2, 3.0, size=n), unseen, tol)


def order_matters(estimator: BaseEstimator) -> str | None:
    """Why parts do not equal the whole, where the estimator's specification says so."""
    if isinstance(estimator, TorchHeadMixin):
        return "steps by gradient depend on the order and the partition of the samples"
    return expected_failures(estimator).get("check_parts_equal_whole")


def takes_weights(estimator: BaseEstimator) -> bool:
    """Whether samples can be weighted."""
    return has_fit_parameter(estimator, "sample_weight")


def joint(estimator: BaseEstimator, X: object, y: object, **weights: object) -> BaseEstimator:
    """A clone that learned all samples in one call."""
    return clone(estimator).fit(X, y, **weights)


def learned_in(estimator: BaseEstimator, data: Data, parts: list[np.ndarray]) -> BaseEstimator:
    """A clone that learned some samples part by part."""
    model = clone(estimator)
    for part in parts:
        model.partial_fit(*data.part(part))
    return model


def scores(model: BaseEstimator, X: object) -> np.ndarray:
    """What the fitted learner says of rows, in most detail."""
    names = ("class_scores", "decision_function", "predict_proba")
    return next(getattr(model, name) for name in names if hasattr(model, name))(X)


def difference(actual: np.ndarray, desired: np.ndarray) -> float:
    """The largest difference of finite scores, relative to the largest of them; inf if unlike."""
    if actual.shape != desired.shape:
        return np.inf
    finite = np.isfinite(desired)
    # Written so that a NaN fails in any comparison.
    if not np.array_equal(actual[~finite], desired[~finite], equal_nan=True):
        return np.inf
    apart = np.abs(actual[finite].astype(np.float64) - desired[finite])
    scale = np.abs(desired[finite].astype(np.float64)).max(initial=0.0)
    return float(apart.max(initial=0.0) / scale) if scale else float(apart.max(initial=0.0))
