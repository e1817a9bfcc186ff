# SPDX-License-Identifier: BSD-3-Clause
"""The same classes from several domains: pooled, one prototype per domain, or centred by domain."""

import numpy as np
import pytest
import sklearn
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from skpool.continual import PerGroupClassifier
from skpool.discriminant import GaussianClassifier
from skpool.linear_model import RidgeHeadClassifier
from skpool.pipeline import IncrementalPipeline, make_incremental_pipeline
from skpool.preprocessing import GroupCenterer, L2Normalizer
from skpool.prototypes import NearestClassMeanClassifier

EUCLIDEAN = NearestClassMeanClassifier("euclidean")


def made(n=240, d=5, seed=0):
    """Three classes in four domains of equal shares, each with its offset."""
    rng = np.random.default_rng(seed)
    y, groups = np.arange(n) % 3, np.arange(n) // 3 % 4
    X = 2 * rng.normal(size=(3, d))[y] + rng.normal(size=(n, d))
    return X, y, groups, 5 * rng.normal(size=(4, d))[groups]


# Pooled statistics.


def test_domains_one_by_one_are_the_joint_fit():
    X, y, groups, offset = made()
    model = RidgeHeadClassifier(0.1)
    for group in range(4):
        model.partial_fit((X + offset)[groups == group], y[groups == group])
    joint = RidgeHeadClassifier(0.1).fit(X + offset, y)
    np.testing.assert_allclose(model.class_scores(X), joint.class_scores(X), atol=1e-9)


# One prototype, or one Gaussian, per domain and class.


@pytest.mark.parametrize("groups", [None, "one"])
def test_one_domain_is_the_estimator(groups):
    X, y, *_ = made()
    groups = groups and [groups] * len(y)
    model = PerGroupClassifier(EUCLIDEAN).fit(X, y, groups=groups)
    np.testing.assert_allclose(
        model.class_scores(X), EUCLIDEAN.fit(X, y).class_scores(X), atol=1e-12
    )


def test_class_scores_as_the_nearest_of_its_domain_means():
    X, y, groups, offset = made()
    X = X + offset
    model = PerGroupClassifier(EUCLIDEAN)
    for group in (2, 0, 3, 1):
        rows = groups == group
        model.partial_fit(X[rows], y[rows], groups=groups[rows])
    expected = np.empty((len(X), 3))
    for c in range(3):
        means = [X[(y == c) & (groups == g)].mean(axis=0) for g in range(4)]
        expected[:, c] = np.max([-(np.square(X - m).sum(axis=1)) / 2 for m in means], axis=0)
    np.testing.assert_allclose(model.class_scores(X), expected, atol=1e-9)
    assert model.score(X, y) > EUCLIDEAN.fit(X, y).score(X, y) + 0.1


def test_densities_of_domains_are_averaged():
    X, y, groups, offset = made()
    X = X + offset
    gaussian = GaussianClassifier("diag", shrinkage=0.1)
    model = PerGroupClassifier(gaussian, reduce="logsumexp").fit(X, y, groups=groups)
    cells = GaussianClassifier("diag", shrinkage=0.1).fit(X, 10 * y + groups)
    scores = cells.class_scores(X).reshape(len(X), 3, 4)
    np.testing.assert_allclose(
        model.class_scores(X), logsumexp(scores, axis=2) - np.log(4), atol=1e-9
    )


def test_groups_of_text_and_classes_of_text_are_told_apart():
    X, y, groups, offset = made()
    names, domains = np.array(["a", 'b", "a', "c"])[y], np.array(["x", "y", "z", 'y", "b'])[groups]
    model = PerGroupClassifier(EUCLIDEAN).fit(X + offset, names, groups=domains)
    assert len(model.cells_) == 12
    plain = PerGroupClassifier(EUCLIDEAN).fit(X + offset, y, groups=groups)
    np.testing.assert_allclose(model.class_scores(X), plain.class_scores(X), atol=1e-12)


def test_forgotten_domain_was_never_seen():
    X, y, groups, offset = made()
    X = X + offset
    model = PerGroupClassifier(EUCLIDEAN).fit(X, y, groups=groups)
    gone = groups == 2
    model.forget(X[gone], y[gone], groups=groups[gone])
    never = PerGroupClassifier(EUCLIDEAN).fit(X[~gone], y[~gone], groups=groups[~gone])
    np.testing.assert_allclose(model.class_scores(X), never.class_scores(X), atol=1e-9)
    assert model.forget_class(1).classes_.tolist() == [0, 2]


def test_machines_with_other_domains_merge():
    X, y, groups, offset = made()
    X = X + offset
    parts = [groups < 2, groups >= 1]
    one, other = (
        PerGroupClassifier(EUCLIDEAN).fit(X[part], y[part], groups=groups[part]) for part in parts
    )
    twice = np.concatenate([np.flatnonzero(part) for part in parts])
    joint = PerGroupClassifier(EUCLIDEAN).fit(X[twice], y[twice], groups=groups[twice])
    np.testing.assert_allclose(one.merge(other).class_scores(X), joint.class_scores(X), atol=1e-9)


def test_groups_are_routed_through_a_pipeline():
    X, y, groups, offset = made()
    with sklearn.config_context(enable_metadata_routing=True):
        model = PerGroupClassifier(EUCLIDEAN).set_fit_request(groups=True)
        pipeline = make_pipeline(L2Normalizer(), model)
        pipeline.fit(X + offset, y, groups=groups)
    assert len(pipeline[-1].cells_) == 12


def test_groups_reach_the_last_step_of_an_incremental_pipeline():
    X, y, groups, _ = made()
    pipeline = make_incremental_pipeline(L2Normalizer(), PerGroupClassifier())
    for part in np.array_split(np.arange(len(y)), 3):
        pipeline.partial_fit(X[part], y[part], pergroupclassifier__groups=groups[part])
    whole = PerGroupClassifier().fit(L2Normalizer().transform(X), y, groups=groups)
    found = pipeline.decision_function(X)
    np.testing.assert_allclose(found, whole.decision_function(L2Normalizer().transform(X)))


@pytest.mark.parametrize(
    ("groups", "match"),
    [([0, 1], "groups 2"), ([0.0, np.nan, 1.0], "NaN"), (np.array([0, "a", 1], object), "alone")],
)
def test_groups_are_checked(groups, match):
    with pytest.raises(ValueError, match=match):
        PerGroupClassifier().fit(np.eye(3), [0, 1, 2], groups=groups)


# Rows centred by domain before one classifier for all.


def centred():
    steps = [("center", GroupCenterer(group_column=0)), ("ncm", clone(EUCLIDEAN))]
    return IncrementalPipeline(steps, refresh="running")


def test_centred_domains_lose_a_constant_offset_exactly():
    X, y, groups, offset = made()
    column, order = groups[:, None].astype(float), np.random.default_rng(1).permutation(len(y))
    plain, shifted = np.hstack([column, X]), np.hstack([column, X + offset])
    desired = centred().fit(plain[order], y[order]).decision_function(plain)
    found = centred().fit(shifted[order], y[order]).decision_function(shifted)
    np.testing.assert_allclose(found, desired, atol=1e-9)


# Every domain comes as a whole, so that its mean stays where it is.
@pytest.mark.filterwarnings("ignore:.*is in another space:UserWarning")
def test_centred_domains_one_by_one_equal_all_at_once():
    X, y, groups, offset = made()
    given, model = np.hstack([groups[:, None].astype(float), X + offset]), centred()
    for group in range(4):
        model.partial_fit(given[groups == group], y[groups == group])
    found, desired = (m.decision_function(given) for m in (model, centred().fit(given, y)))
    np.testing.assert_allclose(found, desired, atol=1e-9)


def test_unseen_domain_is_centred_by_the_mean_of_all_rows():
    X, _, groups, _ = made()
    given = np.hstack([groups[:, None].astype(float), X])
    centered = GroupCenterer(group_column=0).fit(given)
    new = np.hstack([np.full((len(X), 1), 9.0), X])
    np.testing.assert_allclose(centered.transform(new), X - X.mean(axis=0), atol=1e-12)
