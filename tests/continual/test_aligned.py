# SPDX-License-Identifier: BSD-3-Clause
"""AlignedClassifier: its limits, and what it is for."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from skpool.continual import AlignedClassifier, GaussianReplay
from skpool.discriminant import LinearDiscriminantClassifier
from skpool.linear_model import RidgeHeadClassifier

SHARED = GaussianReplay(covariance="shared", shrinkage=None, jitter=0.0)


def gaussians(seed=0, n=300, d=4, n_classes=3):
    rng = np.random.default_rng(seed)
    root = np.eye(d) + 0.3 * rng.normal(size=(d, d))
    y = np.arange(n) % n_classes
    X = rng.normal(size=(n_classes, d))[y] @ root + rng.normal(size=(n, d)) @ root
    return X, y


def test_without_draws_it_is_the_head():
    X, y = gaussians()
    for options in ({"n_per_class": 0}, {"epochs": 0}):
        clf = AlignedClassifier(RidgeHeadClassifier(0.1), **options).fit(X, y)
        desired = RidgeHeadClassifier(0.1).fit(X, y)
        np.testing.assert_allclose(clf.class_scores(X), desired.class_scores(X), atol=1e-9)
        np.testing.assert_allclose(clf.coef_, desired.coef_)
        np.testing.assert_allclose(clf.intercept_, desired.intercept_)


def test_without_draws_and_estimator_it_is_the_nearest_class_mean():
    X, y = gaussians()
    clf = AlignedClassifier(n_per_class=0).fit(X, y)
    np.testing.assert_array_equal(clf.predict(X), NearestCentroid().fit(X, y).predict(X))


@pytest.mark.parametrize("estimator", [None, RidgeHeadClassifier(0.1)])
def test_head_on_many_draws_of_one_covariance_tends_to_discriminant_analysis(estimator):
    X, y = gaussians()
    clf = AlignedClassifier(
        estimator,
        replay=SHARED,
        n_per_class=8000,
        epochs=20,
        lr=0.3,
        logit_norm=None,
        batch_size=1000,
    ).fit(X, y)
    exact = LinearDiscriminantClassifier(0.0, priors="uniform").fit(X, y).predict_proba(X)
    assert np.abs(clf.predict_proba(X) - exact).max() < 0.05
    few = clone(clf).set_params(n_per_class=20, epochs=1).fit(X, y)
    assert np.abs(few.predict_proba(X) - exact).max() > 0.1


def test_head_that_is_trained_to_the_end_is_logistic_regression_on_the_draws():
    X, y = gaussians()
    clf = AlignedClassifier(replay=SHARED, n_per_class=200, epochs=300, lr=0.3, logit_norm=None)
    clf.fit(X, y)
    rng = np.random.RandomState(0)
    draws, labels = SHARED.sample(clf.moments_, 200, random_state=rng)
    desired = LogisticRegression(C=1e6, max_iter=10_000).fit(draws, labels)
    np.testing.assert_allclose(clf.predict_proba(X), desired.predict_proba(X), atol=0.02)


def test_loss_of_normalized_outputs_is_that_of_the_formula():
    from skpool.continual._aligned import _Linear, _NormedLogits

    rng = np.random.default_rng(0)
    coef, intercept, X = rng.normal(size=(3, 4)), rng.normal(size=3), rng.normal(size=(6, 4))
    module = _NormedLogits(_Linear(np.zeros(4), coef, intercept), 0.1)
    given = module(torch.tensor(X), None).detach().numpy()
    for row, x in zip(given, X, strict=True):
        logits = coef @ x + intercept
        np.testing.assert_allclose(row, logits / np.sqrt((logits**2).sum()) / 0.1, rtol=1e-6)


def test_alignment_mends_what_sessions_forget():
    X, y = load_digits(return_X_y=True)
    X, train = X / 16, np.arange(len(y)) % 2 == 0

    def learned(model, **options):
        for first in range(0, 10, 2):
            part = train & ((y == first) | (y == first + 1))
            model.partial_fit(X[part], y[part], **options)
        return model.score(X[~train], y[~train])

    plain = learned(SGDClassifier(random_state=0), classes=np.arange(10))
    aligned = learned(AlignedClassifier(replay=GaussianReplay(shrinkage=0.1)))
    assert plain < 0.5
    assert aligned > 0.92


def test_linear_heads_of_scikit_learn_are_a_start():
    X, y = gaussians(n_classes=2)
    clf = AlignedClassifier(LogisticRegression(), n_per_class=0)
    assert not hasattr(clf, "partial_fit")
    desired = LogisticRegression().fit(X, y)
    np.testing.assert_allclose(clf.fit(X, y).decision_function(X), desired.decision_function(X))


def test_estimator_learns_session_by_session():
    X, y = gaussians()
    head = SGDClassifier(random_state=0)
    clf = AlignedClassifier(head, n_per_class=0)
    clf.partial_fit(X[:150], y[:150]).partial_fit(X[150:], y[150:])
    desired = clone(head).partial_fit(X[:150], y[:150], classes=[0, 1, 2])
    desired.partial_fit(X[150:], y[150:])
    np.testing.assert_allclose(clf.estimator_.coef_, desired.coef_)
    np.testing.assert_array_equal(clf.predict(X), desired.predict(X))


def test_seed_decides_the_head():
    X, y = gaussians()
    one, same, other = (AlignedClassifier(random_state=s).fit(X, y).coef_ for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_estimator_that_cannot_forget_is_named():
    X, y = gaussians()
    clf = AlignedClassifier(SGDClassifier()).fit(X, y)
    before = clf.class_scores(X)
    with pytest.raises(ValueError, match=r"SGDClassifier.* has no forget"):
        clf.forget(X[:3], y[:3])
    np.testing.assert_array_equal(clf.class_scores(X), before)


def test_estimator_without_weights_is_refused():
    X, y = gaussians()
    with pytest.raises(ValueError, match="no coef_"):
        AlignedClassifier(KNeighborsClassifier()).fit(X, y).predict(X)
