# SPDX-License-Identifier: BSD-3-Clause
"""Cross-validation from moments against scikit-learn's, which fits every candidate again."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, ShuffleSplit

from skpool.discriminant import LinearDiscriminantClassifier
from skpool.linear_model import RidgeHeadClassifier
from skpool.model_selection import cross_val_from_moments
from skpool.neighbors import WeightedKNNClassifier
from skpool.prototypes import NearestClassMeanClassifier


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 200)
    return rng.normal(size=(200, 10)) * np.linspace(0.3, 3, 10) + 0.7 * np.eye(4, 10)[y], y


CASES = [
    (
        RidgeHeadClassifier(),
        {"alpha": [1e-3, 1.0, 30.0, "gcv"], "class_weight": [None, "balanced"]},
    ),
    (LinearDiscriminantClassifier(), {"shrinkage": [0.01, 0.5, "oas"], "priors": ["uniform"]}),
    (
        NearestClassMeanClassifier(),
        [{"metric": ["cosine", "mahalanobis"]}, {"normalize": ["l2"], "metric": ["euclidean"]}],
    ),
    (WeightedKNNClassifier(), {"n_neighbors": [1, 5]}),
]


@pytest.mark.parametrize(("estimator", "grid"), CASES, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("scoring", [None, "neg_log_loss"])
def test_scores_are_those_of_a_grid_search(data, estimator, grid, scoring):
    X, y = data
    want = GridSearchCV(estimator, grid, cv=5, scoring=scoring, refit=False).fit(X, y).cv_results_
    got = cross_val_from_moments(estimator, X, y, param_grid=grid, cv=5, scoring=scoring)
    assert got["params"] == want["params"]
    for name in (f"split{k}_test_score" for k in range(5)):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-9)
    for name in ("mean_test_score", "std_test_score"):
        np.testing.assert_allclose(got[name], want[name], atol=1e-9)
    for name in (name for name in want if name.startswith("param_")):
        assert got[name].tolist() == want[name].tolist()


def test_ranks_are_those_of_a_grid_search(data):
    grid = {"alpha": [1e-3, 1.0, 1e3]}
    want = GridSearchCV(RidgeHeadClassifier(), grid, cv=4, refit=False).fit(*data).cv_results_
    got = cross_val_from_moments(RidgeHeadClassifier(), *data, param_grid=grid, cv=4)
    np.testing.assert_array_equal(got["rank_test_score"], want["rank_test_score"])


def test_rows_are_learned_once_for_all_penalties(data, monkeypatch):
    learned = []
    update = RidgeHeadClassifier._update

    def counted(self, X, y, sample_weight):
        learned.append(len(X))
        update(self, X, y, sample_weight)

    monkeypatch.setattr(RidgeHeadClassifier, "_update", counted)
    grid = {"alpha": np.logspace(-3, 3, 7), "temperature": [1.0, 2.0]}
    cross_val_from_moments(RidgeHeadClassifier(), *data, param_grid=grid, cv=5)
    assert sum(learned) == 200


def test_weights_are_those_of_the_training_rows(data):
    X, y = data
    w = np.random.default_rng(1).uniform(0.1, 5, 200)
    got = cross_val_from_moments(RidgeHeadClassifier(1.0), X, y, cv=KFold(4), sample_weight=w)
    for k, (train, test) in enumerate(KFold(4).split(X)):
        want = RidgeHeadClassifier(1.0).fit(X[train], y[train], w[train]).score(X[test], y[test])
        assert got[f"split{k}_test_score"][0] == want


def test_groups_are_kept_together(data):
    X, y = data
    groups = np.arange(200) // 9
    grid = {"alpha": [0.1, 1.0]}
    search = GridSearchCV(RidgeHeadClassifier(), grid, cv=GroupKFold(4), refit=False)
    want = search.fit(X, y, groups=groups).cv_results_["mean_test_score"]
    got = cross_val_from_moments(
        RidgeHeadClassifier(), X, y, param_grid=grid, cv=GroupKFold(4), groups=groups
    )
    np.testing.assert_allclose(got["mean_test_score"], want, atol=1e-12)


def test_what_cannot_be_done_says_so(data):
    with pytest.raises(TypeError, match="does not learn in parts"):
        cross_val_from_moments(LogisticRegression(), *data)
    with pytest.raises(ValueError, match="row left out once"):
        cross_val_from_moments(RidgeHeadClassifier(), *data, cv=ShuffleSplit(2, random_state=0))
