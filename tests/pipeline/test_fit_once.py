# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from skpool.pipeline import FitOnce, IncrementalPipeline, make_incremental_pipeline
from skpool.preprocessing import Whitening
from skpool.prototypes import NearestClassMeanClassifier


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 30)
    return rng.normal(size=(180, 5)) + 3 * rng.normal(size=(6, 5))[y], y


def test_fit_learns_anew(data):
    X, _ = data
    once = FitOnce(StandardScaler()).fit(X[:50]).fit(X[50:])
    np.testing.assert_array_equal(once.transform(X), StandardScaler().fit(X[50:]).transform(X))


@pytest.mark.parametrize("step", [Whitening(3), PCA(3)])
def test_step_of_a_pipeline_is_that_of_the_first_session_without_a_warning(step, data):
    X, y = data
    base = y < 3
    model = make_incremental_pipeline(FitOnce(step), NearestClassMeanClassifier("euclidean"))
    model.partial_fit(X[base], y[base]).partial_fit(X[~base], y[~base])
    fixed = clone(step).fit(X[base])
    whole = NearestClassMeanClassifier("euclidean").fit(fixed.transform(X), y)
    np.testing.assert_allclose(
        model.decision_function(X), whole.decision_function(fixed.transform(X)), rtol=1e-10
    )


def test_step_after_it_still_moves(data):
    X, y = data
    base = y < 3
    steps = [
        ("pca", FitOnce(PCA(4))),
        ("whiten", Whitening(3)),
        ("clf", NearestClassMeanClassifier("euclidean")),
    ]
    model = IncrementalPipeline(steps).partial_fit(X[base], y[base]).partial_fit(X[~base], y[~base])
    Z = PCA(4).fit(X[base]).transform(X)
    whitened = Whitening(3).fit(Z).transform(Z)
    whole = NearestClassMeanClassifier("euclidean").fit(whitened, y)
    np.testing.assert_allclose(model.decision_function(X), whole.decision_function(whitened))


def test_names_are_those_of_the_transformer(data):
    X, _ = data
    once = FitOnce(PCA(2)).fit(X)
    assert once.get_feature_names_out().tolist() == ["pca0", "pca1"]
    assert once.n_features_in_ == 5
    assert not hasattr(FitOnce(PCA(2)), "n_features_in_")
