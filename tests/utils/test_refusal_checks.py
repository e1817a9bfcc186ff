# SPDX-License-Identifier: BSD-3-Clause
"""The checks of refusals pass for a sound classifier and catch one that refuses badly."""

import numpy as np
import pytest
import torch

from skpool.neighbors import WeightedKNNClassifier
from skpool.prototypes import NearestClassMeanClassifier
from skpool.utils.estimator_checks import estimator_checks_generator

UNCHANGED, SENTENCE = "check_bad_calls_change_nothing", "check_refusals_are_one_sentence"


class Counts(NearestClassMeanClassifier):
    """Notes how often it was called before it looks at what it was given."""

    def forget_class(self, label):
        self.n_calls_ = getattr(self, "n_calls_", 0) + 1
        return super().forget_class(label)


class TakesNegativeWeights(NearestClassMeanClassifier):
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        if sample_weight is not None and np.ndim(sample_weight) == 1:
            sample_weight = np.abs(sample_weight)
        return super().partial_fit(X, y, classes, sample_weight)


class LearnsBlocksOneByOne(NearestClassMeanClassifier):
    def fit_blocks(self, blocks, *, n_jobs=None):
        for number, (X, y) in enumerate(blocks):
            self.fit(X, y) if number == 0 else self.partial_fit(X, y)
        return self


class MergesBeforeItLooks(NearestClassMeanClassifier):
    def merge(self, other):
        self._announced = np.append(self._announced, 99)
        return super().merge(other)


class ForgetsMoreThanThereIs(NearestClassMeanClassifier):
    def forget(self, X, y, sample_weight=None):
        if len(X) > 60:
            X, y = X[::2], y[::2]
        return super().forget(X, y, sample_weight)


class ReturnsAllNeighbours(WeightedKNNClassifier):
    def kneighbors(self, X, n_neighbors=None, **options):
        n_neighbors = None if n_neighbors is None else min(n_neighbors, len(self.train_labels_))
        return super().kneighbors(X, n_neighbors, **options)


class Curt(NearestClassMeanClassifier):
    def forget_class(self, label):
        try:
            return super().forget_class(label)
        except ValueError:
            raise ValueError("no such class.") from None


class Verbose(NearestClassMeanClassifier):
    def merge(self, other):
        try:
            return super().merge(other)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}\nHere is how classifiers are merged.") from None


class FailsInside(NearestClassMeanClassifier):
    """What is not finite is left to the linear algebra to complain of."""

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        if not isinstance(X, torch.Tensor) and np.isnan(X).any():
            raise ValueError("array must not contain infs or NaNs")
        return super().partial_fit(X, y, classes, sample_weight)


MUTANTS = {
    Counts: UNCHANGED,
    TakesNegativeWeights: UNCHANGED,
    LearnsBlocksOneByOne: UNCHANGED,
    MergesBeforeItLooks: UNCHANGED,
    ForgetsMoreThanThereIs: UNCHANGED,
    ReturnsAllNeighbours: UNCHANGED,
    Curt: SENTENCE,
    Verbose: SENTENCE,
    FailsInside: SENTENCE,
}


def checks_of(estimator):
    return {check.__name__: check for _, check in estimator_checks_generator(estimator)}


@pytest.mark.parametrize("name", [UNCHANGED, SENTENCE])
@pytest.mark.parametrize("cls", [NearestClassMeanClassifier, WeightedKNNClassifier])
def test_sound_classifier_passes(cls, name):
    checks_of(cls())[name](cls())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda cls: cls.__name__)
def test_check_catches_the_fault(mutant):
    check = checks_of(mutant())[MUTANTS[mutant]]
    with pytest.raises(AssertionError):
        check(mutant())
