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
from skpool.pooling import AttentionPoolingClassifier, ViewAveragingClassifier
from skpool.probing import TorchHeadMixin

# Of these an absolute penalty, kernel width, temperature or learning rate says how large rows are.
SCALED = (
    AttentionPoolingClassifier,
    BlockWeightedRidgeClassifier,
    KernelPredictionErrorClassifier,
    KNNMixtureClassifier,
    PredictionErrorClassifier,
    PredictionErrorNetworkClassifier,
    ReplayClassifier,
    TorchHeadMixin,
)


def has_own_scale(estimator: BaseEstimator) -> bool:
    params = estimator.get_params(deep=False)
    if isinstance(estimator, ViewAveragingClassifier):
        return isinstance(estimator.estimator, LogisticRegression)
    return (
        isinstance(estimator, SCALED)
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
    if is_classifier(instance) and takes_vectors(instance) and not has_own_scale(instance)
]


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four classes well apart, to learn from and to predict."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 4
    centres = 0.3 + 2.0 * rng.normal(size=(4, 12))
    X, unseen = (centres[y] + rng.normal(size=(120, 12)) for _ in range(2))
    return X, y, unseen


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("dtype", "exponent"), [("float32", -80), ("float32", 80), ("float64", -560), ("float64", 560)]
)
@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=name_of)
def test_magnitude_does_not_matter_or_is_refused(estimator, dtype, exponent):
    X, y, unseen = (part.astype(dtype) if part.dtype.kind == "f" else part for part in data())
    estimator = clone(estimator)
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=0)
    usual = clone(estimator).fit(X, y).predict(unseen)
    try:
        found = clone(estimator).fit(np.ldexp(X, exponent), y).predict(np.ldexp(unseen, exponent))
    except ValueError as refusal:
        assert "scale" in str(refusal)
        return
    # Rounding may turn a tie in an iteration, and no more.
    assert np.mean(found == usual) >= 0.97
