# SPDX-License-Identifier: BSD-3-Clause
"""layerwise_probe: cross_val_score on every layer."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import ShuffleSplit, StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from skpool.layers import layerwise_probe
from skpool.pooling import GeMPooling, TokenPooling
from skpool.stores import TokenArray

RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(40, 3, 4, 5))
Y = np.arange(40) % 4


@pytest.mark.parametrize("cv", [4, StratifiedKFold(3)])
def test_scores_equal_cross_val_score_layer_by_layer(cv):
    X = TOKENS.mean(axis=2)
    scores = layerwise_probe(X, Y, KNeighborsClassifier(), cv=cv)
    for place in range(3):
        expected = cross_val_score(KNeighborsClassifier(), X[:, place], Y, cv=cv)
        np.testing.assert_array_equal(scores[place], expected)


def test_every_form_gives_the_same(computed_layers):
    expected = layerwise_probe(TOKENS.max(axis=2), Y, LogisticRegression(), cv=2)
    source = computed_layers(TOKENS)
    for X in (TOKENS, torch.from_numpy(TOKENS), TokenArray(source), list(TOKENS)):
        for pooling in ("max", TokenPooling("max")):
            scores = layerwise_probe(X, Y, LogisticRegression(), cv=2, token_pool=pooling)
            np.testing.assert_array_equal(scores, expected)
    assert source.n_streamed == 40


def test_splits_are_the_same_for_all_layers():
    X = np.repeat(RNG.normal(size=(40, 1, 5)), 3, axis=1)
    scores = layerwise_probe(X, Y, KNeighborsClassifier(), cv=ShuffleSplit(4))
    assert scores.shape == (3, 4)
    assert (scores == scores[0]).all()


def test_regression_is_scored_as_asked():
    X = RNG.normal(size=(40, 3, 5))
    target = X[:, 1] @ np.arange(5.0)
    scores = layerwise_probe(X, target, Ridge(1e-6), cv=3, scoring="r2")
    assert scores.mean(axis=1).argmax() == 1
    np.testing.assert_allclose(scores[1], 1)


def test_pooling_that_learns_is_refused():
    with pytest.raises(ValueError, match="learns"):
        layerwise_probe(TOKENS, Y, Ridge(), token_pool=GeMPooling(negative="shift"))


def test_targets_of_another_length_are_refused():
    with pytest.raises(ValueError, match="39"):
        layerwise_probe(TOKENS, Y[:-1], Ridge())
