# SPDX-License-Identifier: BSD-3-Clause
"""predict_episodes against a clone that is fitted to each episode."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skpool.model_selection import EpisodeBatch, EpisodeSplit
from skpool.prototypes import NearestClassMeanClassifier

RNG = np.random.default_rng(0)
Y = np.repeat(np.arange(6), 30)
X = RNG.normal(size=(180, 16)) + 0.7 * np.repeat(RNG.normal(size=(6, 16)), 30, axis=0)
INDEX = EpisodeSplit(4, 3, 8, n_episodes=60, shot_distribution=(1, 5)).episodes(Y)


def fitted_to_each(classifier, X):
    found = []
    for e in range(len(INDEX)):
        support = INDEX.support[e][INDEX.support[e] >= 0]
        episode = clone(classifier).fit(X[support], Y[support])
        found.append(np.searchsorted(INDEX.classes[e], episode.predict(X[INDEX.query[e]])))
    return np.array(found)


def batched(classifier, X):
    (batch,) = EpisodeBatch.from_index(X, INDEX, 100)
    return classifier.predict_episodes(batch).numpy()


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot", "manhattan"])
@pytest.mark.parametrize("normalize", [None, "l2"])
@pytest.mark.parametrize("normalize_means", [False, True])
def test_predictions_are_those_of_a_fit_to_each(metric, normalize, normalize_means):
    classifier = NearestClassMeanClassifier(
        metric, normalize=normalize, normalize_means=normalize_means
    )
    np.testing.assert_array_equal(batched(classifier, X), fitted_to_each(classifier, X))


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("priors", ["empirical", [0.7, 0.1, 0.1, 0.1]])
def test_priors_and_temperature_have_their_part(metric, priors):
    classifier = NearestClassMeanClassifier(metric, priors=priors, temperature=2.0)
    found = batched(classifier, X)
    np.testing.assert_array_equal(found, fitted_to_each(classifier, X))
    assert (found != batched(NearestClassMeanClassifier(metric), X)).any()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rows_far_from_zero_keep_their_digits(metric):
    far = (X + 3000.0).astype(np.float32)
    classifier = NearestClassMeanClassifier(metric)
    wide = fitted_to_each(classifier, far.astype(np.float64))
    assert (batched(classifier, far) == wide).mean() > 0.99


def test_scores_are_per_class_beyond_a_few_classes():
    y = np.repeat(np.arange(40), 5)
    rows = RNG.normal(size=(200, 8)).astype(np.float32)
    index = EpisodeSplit(40, 1, 4, n_episodes=3).episodes(y)
    (batch,) = EpisodeBatch.from_index(rows, index)
    want = torch.cdist(batch.Xq, batch.Xs).argmin(dim=-1)
    found = NearestClassMeanClassifier("euclidean").predict_episodes(batch)
    np.testing.assert_array_equal(found, want)


def test_nothing_is_learned():
    classifier = NearestClassMeanClassifier("euclidean")
    batched(classifier, X)
    assert not [name for name in vars(classifier) if name.endswith("_")]


def test_mahalanobis_takes_one_episode_at_a_time():
    assert not hasattr(NearestClassMeanClassifier("mahalanobis"), "predict_episodes")
