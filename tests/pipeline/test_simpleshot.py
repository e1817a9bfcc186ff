# SPDX-License-Identifier: BSD-3-Clause
"""SimpleShot against steps of scikit-learn, and where its centre comes from."""

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer

from skpool.pipeline import make_simpleshot
from skpool.preprocessing import CenteredL2Normalizer, L2Normalizer
from skpool.prototypes import NearestClassMeanClassifier


@pytest.fixture(scope="module")
def base():
    rng = np.random.default_rng(0)
    return 2.0 + rng.standard_normal((300, 10)) * np.linspace(0.2, 2, 10)


@pytest.fixture(scope="module")
def episode():
    """Five shots of five classes, and their queries."""
    rng = np.random.default_rng(1)
    y = np.repeat(np.arange(5), 5)
    means = 2.0 + rng.standard_normal((5, 10))
    queries = means[np.arange(200) % 5] + 0.8 * rng.standard_normal((200, 10))
    return means[y] + 0.8 * rng.standard_normal((25, 10)), y, queries


@pytest.mark.parametrize("norm", ["cl2n", "l2n", "un"])
def test_simpleshot_equals_steps_of_scikit_learn(base, episode, norm):
    X, y, Q = episode
    center = base.mean(axis=0) if norm == "cl2n" else 0.0
    first = FunctionTransformer() if norm == "un" else Normalizer()
    peer = make_pipeline(FunctionTransformer(lambda X: X - center), first, NearestCentroid())
    options = {"center": center} if norm == "cl2n" else {}
    ours = make_simpleshot(norm, **options).fit(X, y)
    assert (ours.predict(Q) == peer.fit(X, y).predict(Q)).all()


@pytest.mark.parametrize(
    ("norm", "step"), [("cl2n", CenteredL2Normalizer), ("l2n", L2Normalizer), ("un", str)]
)
def test_simpleshot_has_its_steps_in_order(norm, step):
    pipeline = make_simpleshot(norm)
    assert [name for name, _ in pipeline.steps] == ["normalize", "classify"]
    assert isinstance(pipeline.steps[0][1], step)
    assert isinstance(pipeline["classify"], NearestClassMeanClassifier)
    assert pipeline.refresh == "frozen" and not hasattr(pipeline, "n_calls_")


def test_zero_as_centre_equals_l2n(episode):
    X, y, Q = episode
    a = make_simpleshot(center=np.zeros(10)).fit(X, y)
    b = make_simpleshot("l2n").fit(X, y)
    np.testing.assert_allclose(a.decision_function(Q), b.decision_function(Q), atol=1e-12)


def test_constant_added_to_base_and_episode_changes_nothing(base, episode):
    X, y, Q = episode
    c = np.linspace(-30, 50, 10)
    a = make_simpleshot(center=base.mean(axis=0)).fit(X, y)
    b = make_simpleshot(center=(base + c).mean(axis=0)).fit(X + c, y)
    np.testing.assert_allclose(b.decision_function(Q + c), a.decision_function(Q), atol=1e-10)
    raw = make_simpleshot("l2n").fit(X + c, y).decision_function(Q + c)
    assert not np.allclose(raw, a.decision_function(Q), atol=1e-3)


def test_queries_are_never_learned_from(base, episode):
    X, y, Q = episode
    y_base = 10 + np.arange(300) % 3
    pipeline = make_simpleshot().fit(base, y_base).partial_fit(X, y)
    together = pipeline.decision_function(Q)
    np.testing.assert_allclose(pipeline["normalize"].center_, base.mean(axis=0), atol=1e-12)
    alone = np.vstack([pipeline.decision_function(q[None]) for q in Q])
    np.testing.assert_allclose(alone, together, atol=1e-10)


def test_later_sessions_stand_in_the_space_of_the_first(base, episode):
    X, y, Q = episode
    y_base = 10 + np.arange(300) % 3
    given = make_simpleshot(center=base.mean(axis=0)).fit(base, y_base).partial_fit(X, y)
    learned = make_simpleshot().fit(base, y_base).partial_fit(X, y)
    np.testing.assert_allclose(learned.decision_function(Q), given.decision_function(Q), atol=1e-10)


def test_row_equal_to_the_centre_stays_finite(base, episode):
    X, y, _ = episode
    center = base.mean(axis=0)
    scores = make_simpleshot(center=center).fit(X, y).decision_function(center[None])
    assert np.isfinite(scores).all()


def test_settings_can_be_searched(episode):
    X, y, _ = episode
    grid = {"normalize": [CenteredL2Normalizer(), L2Normalizer(), "passthrough"]}
    search = GridSearchCV(make_simpleshot(), grid, cv=3, error_score="raise").fit(X, y)
    assert search.cv_results_["mean_test_score"].min() > 0.3


@pytest.mark.parametrize(
    ("norm", "center", "message"),
    [("l2", "mean", "give one of"), ("un", np.zeros(10), "has no part"), ("cl2n", "x", "center")],
)
def test_wrong_options_are_refused(norm, center, message):
    with pytest.raises(ValueError, match=message):
        make_simpleshot(norm, center=center)
