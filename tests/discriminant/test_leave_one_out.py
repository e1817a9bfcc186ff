# SPDX-License-Identifier: BSD-3-Clause
"""Leave-one-out of linear discriminants against refits without each row."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import LeaveOneOut

from skpool.discriminant import LinearDiscriminantClassifier
from skpool.prototypes import NearestClassMeanClassifier
from skpool.statistics import ClassMoments

TARGETS = ("identity", "unit", "diag")


def _data(n: int = 50, d: int = 5, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.concatenate(
        [np.repeat(np.arange(classes), 3), rng.integers(0, classes, n - 3 * classes)]
    )
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=(classes, d))[y], y


def _scatter(X, y, w):
    parts = []
    for c in np.unique(y):
        rows = X[y == c]
        rows = rows - np.average(rows, axis=0, weights=w[y == c])
        parts.append(rows.T @ (w[y == c, None] * rows))
    return sum(parts)


def _variances(X, y, w):
    """Squares alone, as a matrix."""
    return np.diag(np.diag(_scatter(X, y, w)))


SCATTERS = {"shared": _scatter, "shared_diag": _variances}


def _added(X, y, w, target, share, scatter=_scatter):
    """What is added to the share-weighted scatter, from all rows: it stays."""
    S, n, d = scatter(X, y, w), w.sum(), X.shape[1]
    targets = {
        "identity": np.trace(S) / n / d * np.eye(d),
        "unit": np.eye(d),
        "diag": np.diag(np.diag(S)) / n,
    }
    return share * n * targets[target]


def _refits(X, y, share, target, priors="empirical", w=None, covariance="shared"):
    """Scores of every row by a classifier that never saw it, written out."""
    scatter = SCATTERS[covariance]
    w = np.ones(len(y)) if w is None else w
    classes, added = np.unique(y), _added(X, y, w, target, share, scatter)
    scores = np.full((len(y), len(classes)), -np.inf)
    for i, x in enumerate(X):
        rest = np.arange(len(y)) != i
        n = w[rest].sum()
        matrix = ((1 - share) * scatter(X[rest], y[rest], w[rest]) + added) / n
        for k, c in enumerate(classes):
            mine = rest & (y == c)
            if not mine.any():
                continue
            gap = x - np.average(X[mine], axis=0, weights=w[mine])
            scores[i, k] = -0.5 * gap @ np.linalg.solve(matrix, gap)
            if isinstance(priors, str):
                scores[i, k] += np.log(w[mine].sum() / n) if priors == "empirical" else 0.0
            else:
                scores[i, k] += np.log(priors[k])
    return scores


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("covariance", SCATTERS)
def test_scores_equal_refits(target, share, covariance):
    X, y = _data()
    clf = LinearDiscriminantClassifier(share, target=target, covariance=covariance).fit(X, y)
    expected = _refits(X, y, share, target, covariance=covariance)
    np.testing.assert_allclose(clf.loo_scores(X, y), expected, rtol=1e-8)


@pytest.mark.parametrize("priors", ["empirical", "uniform", [0.2, 0.5, 0.3]])
def test_priors_are_those_without_the_row(priors):
    X, y = _data()
    clf = LinearDiscriminantClassifier(0.1, priors=priors).fit(X, y)
    expected = _refits(X, y, 0.1, "identity", priors)
    np.testing.assert_allclose(clf.loo_scores(X, y), expected, rtol=1e-8)


def test_without_shrinkage_predictions_equal_refits_of_scikit_learn():
    X, y = _data(seed=3)
    clf = LinearDiscriminantClassifier(0.0).fit(X, y)
    found = clf.loo_scores(X, y)
    for rest, (i,) in LeaveOneOut().split(X):
        peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.0).fit(X[rest], y[rest])
        expected = peer.decision_function(X[[i]])[0]
        apart = found[i] - expected
        np.testing.assert_allclose(apart - apart.mean(), 0, atol=1e-8)


def test_variances_without_shrinkage_equal_plain_refits():
    X, y = _data(seed=3)
    options = {"shrinkage": 0.0, "covariance": "shared_diag"}
    found = LinearDiscriminantClassifier(**options).fit(X, y).loo_scores(X, y)
    for rest, (i,) in LeaveOneOut().split(X):
        refit = LinearDiscriminantClassifier(**options).fit(X[rest], y[rest])
        apart = found[i] - refit.class_scores(X[[i]])[0]
        np.testing.assert_allclose(apart - apart.mean(), 0, atol=1e-9)


def test_whole_shrinkage_tends_to_nearest_class_means():
    X, y = _data()
    clf = LinearDiscriminantClassifier(1.0, target="unit", priors="uniform").fit(X, y)
    means = NearestClassMeanClassifier("euclidean").fit(X, y)
    # The divisor follows the rows that are left.
    expected = means.loo_scores(X, y) * (len(y) - 1) / len(y)
    np.testing.assert_allclose(clf.loo_scores(X, y), expected, rtol=1e-9)


@pytest.mark.parametrize("covariance", SCATTERS)
def test_large_offsets_and_float32_and_tensors_change_little(covariance):
    X, y = _data()
    clf = LinearDiscriminantClassifier(0.1, covariance=covariance)
    expected = clf.fit(X, y).loo_scores(X, y)
    far = clf.fit(X + 1e6, y).loo_scores(X + 1e6, y)
    np.testing.assert_allclose(far, expected, rtol=1e-6)
    tensor = torch.from_numpy(X.astype(np.float32))
    single = clf.fit(tensor, y).loo_scores(tensor, y)
    np.testing.assert_allclose(single, expected, rtol=1e-4)


@pytest.mark.parametrize("covariance", SCATTERS)
def test_only_row_of_a_class_scores_nothing_for_it(covariance):
    X, y = _data()
    X, y = np.vstack([X, X.mean(axis=0)]), np.append(y, 7)
    found = LinearDiscriminantClassifier(0.1, covariance=covariance).fit(X, y).loo_scores(X, y)
    expected = _refits(X, y, 0.1, "identity", covariance=covariance)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert found[-1, -1] == -np.inf
    assert np.isfinite(found[-1, :-1]).all()


@pytest.mark.parametrize("covariance", SCATTERS)
def test_a_row_that_alone_spans_a_direction_is_nan_with_a_warning(covariance):
    X, y = _data()
    X[:, 2] = 0.0
    X[13, 2] = 5.0
    clf = LinearDiscriminantClassifier(0.0, covariance=covariance).fit(X, y)
    with pytest.warns(UserWarning, match=r"1 samples, the first at 13"):
        found = clf.loo_scores(X, y)
    assert np.isnan(found[13]).all()
    assert np.isfinite(np.delete(found, 13, axis=0)).all()


def test_announced_class_scores_nothing():
    X, y = _data()
    clf = LinearDiscriminantClassifier(0.1).partial_fit(X, y, classes=[-3, 9])
    found = clf.loo_scores(X, y)
    np.testing.assert_allclose(found[:, 1:4], _refits(X, y, 0.1, "identity"), rtol=1e-8)
    assert (found[:, [0, 4]] == -np.inf).all()


def test_a_constant_feature_leaves_the_scores_of_the_others():
    X, y = _data()
    options = {"shrinkage": 0.0, "covariance": "shared_diag"}
    expected = LinearDiscriminantClassifier(**options).fit(X, y).loo_scores(X, y)
    wide = np.column_stack([X, np.full(len(y), 7.0)])
    found = LinearDiscriminantClassifier(**options).fit(wide, y).loo_scores(wide, y)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("covariance", SCATTERS)
def test_small_working_memory_changes_nothing(covariance):
    from sklearn import config_context

    X, y = _data()
    clf = LinearDiscriminantClassifier(0.1, covariance=covariance).fit(X, y)
    whole = clf.loo_scores(X, y)
    with config_context(working_memory=0):
        np.testing.assert_allclose(clf.loo_scores(X, y), whole, rtol=1e-10)


def test_unknown_labels_are_refused():
    X, y = _data()
    with pytest.raises(ValueError, match="8"):
        LinearDiscriminantClassifier(0.1).fit(X, y).loo_scores(X[:2], [0, 8])


# Shrinkage by leaving one out.

GRID = (0.01, 0.1, 0.4, 0.9)


@pytest.mark.parametrize(
    "target, covariance",
    [*((target, "shared") for target in TARGETS)]
    + [("identity", "shared_diag"), ("unit", "shared_diag")],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_accuracies_equal_those_of_refits(target, covariance, weighted):
    X, y = _data(n=40, seed=1)
    w = np.random.default_rng(0).uniform(0.5, 2.0, len(y)) if weighted else np.ones(len(y))
    options = {"target": target, "covariance": covariance}
    clf = LinearDiscriminantClassifier("loo", shrinkages=GRID, **options)
    clf.fit(X, y, w if weighted else None)
    hits = [_refits(X, y, share, w=w, **options).argmax(axis=1) == y for share in GRID]
    expected = np.array(hits) @ w / w.sum()
    assert len(set(expected)) > 1
    np.testing.assert_allclose(clf.scores_, expected, rtol=1e-12)
    best = max(share for share, right in zip(GRID, expected, strict=True) if right == max(expected))
    assert clf.shrinkage_ == best


@pytest.mark.parametrize("covariance", SCATTERS)
def test_chosen_shrinkage_gives_the_classifier_of_that_number(covariance):
    X, y = _data()
    clf = LinearDiscriminantClassifier("loo", covariance=covariance).fit(X, y)
    assert len(clf.scores_) == 13
    same = LinearDiscriminantClassifier(clf.shrinkage_, covariance=covariance).fit(X, y)
    np.testing.assert_array_equal(clf.class_scores(X), same.class_scores(X))
    assert same.scores_ is None


def test_priors_take_part_in_the_choice():
    X, y = _data(seed=1)
    for priors in ("uniform", [0.8, 0.1, 0.1]):
        clf = LinearDiscriminantClassifier("loo", shrinkages=GRID, priors=priors).fit(X, y)
        found = [_refits(X, y, share, "identity", priors).argmax(axis=1) for share in GRID]
        np.testing.assert_allclose(clf.scores_, (np.array(found) == y).mean(axis=1))


def test_of_equal_shrinkages_the_largest_is_taken():
    X, y = _data()
    X += 1000.0 * y[:, None]
    clf = LinearDiscriminantClassifier("loo", shrinkages=[0.5, 0.1, 0.3]).fit(X, y)
    assert (clf.scores_ == 1).all()
    assert clf.shrinkage_ == 0.5


def test_a_row_that_alone_spans_a_direction_counts_as_wrong():
    X, y = _data()
    X += 1000.0 * y[:, None]
    X[:, 2] = 0.0
    X[13, 2] = 5.0
    clf = LinearDiscriminantClassifier("loo", shrinkages=[0.0, 0.1]).fit(X, y)
    np.testing.assert_allclose(clf.scores_, [1 - 1 / len(y), 1.0])


def test_choice_needs_one_fit():
    X, y = _data()
    clf = LinearDiscriminantClassifier("loo").fit(X, y)
    for name in ("partial_fit", "forget", "forget_class", "merge", "affine", "fit_blocks"):
        assert not hasattr(clf, name)
    with pytest.raises(AttributeError) as refused:
        clf.partial_fit(X, y)
    assert "oas" in str(refused.value.__cause__)
    before = clf.class_scores(X)
    with pytest.raises(ValueError, match="loo"):
        clf.fit_moments(ClassMoments("shared").update(X[:20], y[:20]))
    np.testing.assert_array_equal(clf.class_scores(X), before)


@pytest.mark.parametrize("shrinkages", [[], [0.1, 1.5], [-0.1], [np.nan]])
def test_bad_shrinkages_are_refused(shrinkages):
    with pytest.raises(ValueError, match="shrinkages"):
        LinearDiscriminantClassifier("loo", shrinkages=shrinkages).fit(*_data())


def test_choice_is_refused_where_there_is_none_and_without_spread():
    with pytest.raises(ValueError, match=r"target='identity' or 'unit'.*give a number"):
        LinearDiscriminantClassifier("loo", target="diag", covariance="shared_diag").fit(*_data())
    with pytest.raises(ValueError, match="no covariance"):
        LinearDiscriminantClassifier("loo").fit(np.eye(2), [0, 1])


def test_ledoit_wolf_follows_from_fourth_moments_of_a_stream():
    X, y = _data()
    moments = ClassMoments("per_class", fourth_order=True)
    for rows in np.array_split(np.arange(len(y)), 4):
        moments.update(X[rows], y[rows])
    clf = LinearDiscriminantClassifier("ledoit_wolf").fit_moments(moments)
    within = X - np.array([X[y == c].mean(axis=0) for c in range(3)])[y]
    expected = LedoitWolf(assume_centered=True).fit(within)
    assert clf.shrinkage_ == pytest.approx(expected.shrinkage_, rel=1e-9)
    with pytest.raises(ValueError, match="fourth_order"):
        clf.fit_moments(ClassMoments("shared").update(X, y))


def test_bad_rows_are_refused():
    X, y = _data()
    clf = LinearDiscriminantClassifier(0.1).fit(X, y)
    X = X.copy()
    X[7, 1] = np.nan
    with pytest.raises(ValueError, match="NaN in row 7"):
        clf.loo_scores(X, y)
    with pytest.raises(ValueError, match="NaN in row 7"):
        LinearDiscriminantClassifier("loo").fit(X, y)
