# SPDX-License-Identifier: BSD-3-Clause
"""Rows whose squares leave the range of their type: the same labels, or a refusal, never nonsense.

Multiplication by a power of two changes no digit of a row, so a classifier without a scale of its
own has to give the labels that it gives for rows around 1.
"""

import numpy as np
import pytest
from _instances import INSTANCES, name_of, takes_vectors
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.linear_model import LogisticRegression

from skpool.continual import ReplayClassifier
from skpool.linear_model import (
    BlockWeightedRidgeClassifier,
    KernelPredictionErrorClassifier,
    PredictionErrorClassifier,
    PredictionErrorNetworkClassifier,
    RandomFeatureRidgeClassifier,
)
from skpool.neighbors import KNNMixtureClassifier, WeightedKNNClassifier
from skpool.pooling import ViewAveragingClassifier
from skpool.probing import LinearProbeClassifier, LinearProbeSweepClassifier

# Of these an absolute penalty, kernel width, temperature or learning rate says how large rows are.
SCALED = (
    BlockWeightedRidgeClassifier,
    KernelPredictionErrorClassifier,
    KNNMixtureClassifier,
    LinearProbeClassifier,
    LinearProbeSweepClassifier,
    PredictionErrorClassifier,
    PredictionErrorNetworkClassifier,
    ReplayClassifier,
)


def has_own_scale(estimator: BaseEstimator) -> bool:
    params = estimator.get_params(deep=False)
    if isinstance(estimator, ViewAveragingClassifier):
        return isinstance(estimator.estimator, LogisticRegression)
    return (
        isinstance(estimator, SCALED)
        or params.get("standardize") is False
        or params.get("target") == "unit"
        or (isinstance(estimator, WeightedKNNClassifier) and params["metric"] != "cosine")
        or params.get("reduce") == "logmeanexp"
        or (
            isinstance(estimator, RandomFeatureRidgeClassifier)
            and (params["bias"] or params["activation"] not in ("relu", None))
        )
    )


CLASSIFIERS = [
    instance
    for instances in INSTANCES.values()
    for instance in instances
    if is_classifier(instance) and takes_vectors(instance)
]
SCALE_FREE = [instance for instance in CLASSIFIERS if not has_own_scale(instance)]


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four classes well apart, to learn from and to predict."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 4
    centres = 0.3 + 2.0 * rng.normal(size=(4, 12))
    X, unseen = (centres[y] + rng.normal(size=(120, 12)) for _ in range(2))
    return X, y, unseen


def seeded(estimator: BaseEstimator) -> BaseEstimator:
    estimator = clone(estimator)
    return estimator.set_params(random_state=0) if hasattr(estimator, "random_state") else estimator


def as_type(dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    X, y, unseen = data()
    return X.astype(dtype), y, unseen.astype(dtype)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("dtype", "exponent"), [("float32", -80), ("float32", 80), ("float64", -560), ("float64", 560)]
)
@pytest.mark.parametrize("estimator", SCALE_FREE, ids=name_of)
def test_magnitude_does_not_matter_or_is_refused(estimator, dtype, exponent):
    X, y, unseen = as_type(dtype)
    usual = seeded(estimator).fit(X, y).predict(unseen)
    try:
        found = seeded(estimator).fit(np.ldexp(X, exponent), y).predict(np.ldexp(unseen, exponent))
    except ValueError as refusal:
        assert "scale" in str(refusal)
        return
    # Rounding may turn a tie in an iteration, and no more.
    assert np.mean(found == usual) >= 0.97


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("dtype", "exponent"), [("float32", 100), ("float64", 560)])
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=name_of)
def test_rows_far_larger_than_those_learned_are_scored_or_refused(estimator, dtype, exponent):
    X, y, unseen = as_type(dtype)
    fitted = seeded(estimator).fit(X, y)
    verb = "predict_proba" if hasattr(fitted, "predict_proba") else "decision_function"
    try:
        scores = getattr(fitted, verb)(np.ldexp(unseen, exponent))
    except ValueError as refusal:
        assert "scale" in str(refusal)
        return
    assert np.isfinite(scores).all()
