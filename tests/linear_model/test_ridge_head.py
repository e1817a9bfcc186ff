# SPDX-License-Identifier: BSD-3-Clause
"""The ridge head against scikit-learn's ridge, refits without a row, and over any stream."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeClassifier

from skpool.linear_model import RidgeHeadClassifier
from skpool.statistics import ClassMoments, FoldMoments


def _data(n: int = 80, d: int = 6, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, size=n - classes)])
    return 3 + rng.normal(size=(n, d)) + 1.5 * rng.normal(size=(classes, d))[y], y


@pytest.mark.parametrize("alpha", [0.0, 0.1, 30.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_ridge_regression_on_one_hot_targets(alpha, classes):
    X, y = _data(classes=classes)
    clf = RidgeHeadClassifier(alpha, relative=False).fit(X, y)
    expected = Ridge(alpha=alpha).fit(X, np.eye(classes)[y])
    np.testing.assert_allclose(clf.class_scores(X), expected.predict(X), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(clf.coef_, expected.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(clf.intercept_, expected.intercept_, rtol=1e-7)
    classifier = RidgeClassifier(alpha=alpha).fit(X, y)
    np.testing.assert_array_equal(clf.predict(X), classifier.predict(X))


def test_scores_sum_to_one():
    X, y = _data()
    np.testing.assert_allclose(RidgeHeadClassifier().fit(X, y).class_scores(X).sum(1), 1)


def test_balanced_classes_equal_ridge_with_sample_weight():
    X, y = _data(classes=3)
    X, y = np.concatenate([X, X[y == 0] + 0.3]), np.concatenate([y, y[y == 0]])
    weights = len(y) / (3 * np.bincount(y))
    clf = RidgeHeadClassifier(0.5, relative=False, class_weight="balanced").fit(X, y)
    expected = Ridge(alpha=0.5).fit(X, np.eye(3)[y], weights[y])
    np.testing.assert_allclose(clf.coef_, expected.coef_, rtol=1e-7)
    given = dict(enumerate(weights))
    named = RidgeHeadClassifier(0.5, relative=False, class_weight=given).fit(X, y)
    np.testing.assert_allclose(named.coef_, clf.coef_)


def test_leave_one_out_choice_equals_refits():
    X, y = _data(n=40)
    alphas = [1e-3, 1e-1, 10.0]
    clf = RidgeHeadClassifier("loo", alphas=alphas, relative=False).fit(X, y)
    for alpha, score in zip(alphas, clf.scores_, strict=True):
        hits = []
        for i in range(len(X)):
            rest = np.arange(len(X)) != i
            model = Ridge(alpha=alpha).fit(X[rest], np.eye(3)[y[rest]])
            hits.append(model.predict(X[i : i + 1]).argmax() == y[i])
        assert score == pytest.approx(np.mean(hits))
    best = Ridge(alpha=clf.alpha_).fit(X, np.eye(3)[y])
    np.testing.assert_allclose(clf.coef_, best.coef_, rtol=1e-7)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(1, 79), max_size=5, unique=True))
def test_any_order_and_partition_equals_one_fit(seed, cuts):
    X, y = _data()
    order = np.random.default_rng(seed).permutation(len(X))
    stream = RidgeHeadClassifier()
    for rows in np.split(order, sorted(cuts)):
        stream.partial_fit(X[rows], y[rows])
    whole = RidgeHeadClassifier().fit(X, y)
    assert stream.alpha_ == whole.alpha_
    np.testing.assert_allclose(stream.class_scores(X), whole.class_scores(X), rtol=1e-8)
    np.testing.assert_allclose(stream.predict_proba(X), whole.predict_proba(X), rtol=1e-7)


def test_classes_that_arrive_one_by_one_equal_one_fit():
    X, y = _data(classes=4)
    stream = RidgeHeadClassifier(0.1)
    for label in (2, 0, 3, 1):
        stream.partial_fit(X[y == label], y[y == label])
    np.testing.assert_allclose(
        stream.class_scores(X), RidgeHeadClassifier(0.1).fit(X, y).class_scores(X), rtol=1e-9
    )


def test_forgetting_and_merging_equal_a_fit_on_the_rest():
    X, y = _data()
    part = RidgeHeadClassifier().fit(X[:50], y[:50])
    forgotten = RidgeHeadClassifier().fit(X, y).forget(X[50:], y[50:])
    np.testing.assert_allclose(forgotten.class_scores(X), part.class_scores(X), rtol=1e-7)
    merged = part.merge(RidgeHeadClassifier().fit(X[50:], y[50:]))
    np.testing.assert_allclose(
        merged.class_scores(X), RidgeHeadClassifier().fit(X, y).class_scores(X), rtol=1e-8
    )


def test_a_class_is_forgotten_where_its_scatter_is_known():
    X, y = _data()
    clf = RidgeHeadClassifier(0.1, class_weight="balanced").fit(X, y).forget_class(1)
    kept = y != 1
    expected = RidgeHeadClassifier(0.1, class_weight="balanced").fit(X[kept], y[kept])
    np.testing.assert_allclose(clf.class_scores(X), expected.class_scores(X), rtol=1e-7)
    with pytest.raises(ValueError, match="scatter"):
        RidgeHeadClassifier().fit(X, y).forget_class(1)


def test_moments_give_what_rows_give():
    X, y = _data()
    clf = RidgeHeadClassifier().fit_moments(ClassMoments().update(X, y))
    np.testing.assert_allclose(
        clf.class_scores(X), RidgeHeadClassifier().fit(X, y).class_scores(X), rtol=1e-9
    )


def test_affine_equals_learning_mapped_rows():
    X, y = _data()
    rng = np.random.default_rng(1)
    A, b = rng.normal(size=(6, 4)), rng.normal(size=4)
    mapped = RidgeHeadClassifier(0.2).fit(X, y).affine(A, b)
    Z = X @ A + b
    np.testing.assert_allclose(
        mapped.class_scores(Z), RidgeHeadClassifier(0.2).fit(Z, y).class_scores(Z), rtol=1e-8
    )


def test_temperature_moves_probabilities_and_no_prediction():
    X, y = _data()
    clf = RidgeHeadClassifier().fit(X, y)
    soft = RidgeHeadClassifier(temperature=1.0).fit(X, y)
    np.testing.assert_array_equal(clf.predict(X), soft.predict(X))
    logits = np.log(clf.predict_proba(X)) - np.log(clf.predict_proba(X)).mean(1, keepdims=True)
    softer = np.log(soft.predict_proba(X)) - np.log(soft.predict_proba(X)).mean(1, keepdims=True)
    np.testing.assert_allclose(logits, clf.temperature_ * softer, rtol=1e-9, atol=1e-9)


def test_automatic_temperature_is_the_inverse_of_the_left_out_variance():
    X, y = _data()
    clf = RidgeHeadClassifier(0.3, relative=False).fit(X, y)
    centred = X - X.mean(0)
    hat = centred @ np.linalg.solve(centred.T @ centred + 0.3 * np.eye(6), centred.T) + 1 / len(X)
    Y = np.eye(3)[y]
    gcv = len(X) * ((Y - hat @ Y) ** 2).sum() / (len(X) - np.trace(hat)) ** 2
    assert clf.temperature_ == pytest.approx(3 / gcv)


def test_automatic_temperature_is_near_the_best_on_unseen_rows():
    X, y = _data(n=2000, d=10, classes=5)
    clf = RidgeHeadClassifier().fit(X[:1000], y[:1000])
    scores = clf.class_scores(X[1000:])

    def log_loss(temperature):
        logits = temperature * scores
        logits -= logits.max(1, keepdims=True)
        rows = np.arange(1000)
        return (np.log(np.exp(logits).sum(1)) - logits[rows, y[1000:]]).mean()

    best = min(log_loss(t) for t in np.logspace(-1, 3, 81))
    assert log_loss(clf.temperature_) < best + 0.05


def test_leave_one_out_needs_one_fit():
    X, y = _data()
    clf = RidgeHeadClassifier("loo").fit(X, y)
    for name in ("partial_fit", "forget", "merge", "affine"):
        assert not hasattr(clf, name)
    with pytest.raises(AttributeError) as refused:
        clf.partial_fit(X, y)
    assert "gcv" in str(refused.value.__cause__)


@pytest.mark.parametrize("d", [6, 60])
@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 2: 0.5}])
def test_leave_one_out_choice_with_class_weights_equals_weighted_refits(d, class_weight):
    X, y = _data(n=40, d=d)
    factors = len(y) / (3 * np.bincount(y)) if class_weight == "balanced" else [3.0, 1.0, 0.5]
    weights = np.asarray(factors)[y]
    alphas = [1e-2, 1.0, 30.0]
    clf = RidgeHeadClassifier("loo", alphas=alphas, relative=False, class_weight=class_weight)
    clf.fit(X, y)
    for alpha, score in zip(alphas, clf.scores_, strict=True):
        hits = []
        for i in range(len(X)):
            rest = np.arange(len(X)) != i
            model = Ridge(alpha=alpha).fit(X[rest], np.eye(3)[y[rest]], weights[rest])
            hits.append(model.predict(X[i : i + 1]).argmax() == y[i])
        assert score == pytest.approx(np.average(hits, weights=weights))
    best = Ridge(alpha=clf.alpha_).fit(X, np.eye(3)[y], weights)
    np.testing.assert_allclose(clf.coef_, best.coef_, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("alpha", ["gcv", "loo", 0.3])
def test_few_rows_are_learned_without_the_square_of_the_width(alpha):
    n, d = 30, 20_000
    X, y = _data(n=n, d=d)
    tracemalloc.start()
    clf = RidgeHeadClassifier(alpha).fit(X, y)
    clf.predict_proba(X)
    if alpha != "loo":
        clf.partial_fit(X[:5] + 1, y[:5]).merge(RidgeHeadClassifier(alpha).fit(X + 2, y)).predict(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < d * d * 8 / 10


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 999), cuts=st.lists(st.integers(1, 79), max_size=5, unique=True))
def test_rows_that_come_to_exceed_the_width_equal_one_fit(seed, cuts):
    X, y = _data(d=50)
    order = np.random.default_rng(seed).permutation(len(X))
    stream = RidgeHeadClassifier()
    for rows in np.split(order, sorted(cuts)):
        stream.partial_fit(X[rows], y[rows])
        so_far = order[: order.tolist().index(rows[-1]) + 1]
        seen = RidgeHeadClassifier().fit(X[so_far], y[so_far])
        np.testing.assert_allclose(stream.class_scores(X), seen.class_scores(X), atol=1e-7)
    stream.forget(X[order[:45]], y[order[:45]])
    rest = RidgeHeadClassifier().fit(X[order[45:]], y[order[45:]])
    np.testing.assert_allclose(stream.class_scores(X), rest.class_scores(X), atol=1e-6)


def test_scores_of_penalties_of_merged_halves_are_those_of_all():
    X, y = _data()
    halves = [RidgeHeadClassifier().fit(X[part], y[part]) for part in (slice(40), slice(40, 80))]
    merged, whole = halves[0].merge(halves[1]), RidgeHeadClassifier().fit(X, y)
    np.testing.assert_allclose(merged.scores_, whole.scores_, rtol=1e-9)
    assert merged.alpha_ == whole.alpha_


@pytest.mark.parametrize("alpha", [0.7, "gcv"])
def test_residual_over_one_minus_variance_is_that_of_a_refit_without_the_row(alpha):
    X, y = _data(n=30)
    clf = RidgeHeadClassifier(alpha, alphas=[0.2, 5.0], relative=False).fit(X, y)
    Y = np.eye(3)[y]
    left_out = (Y - clf.class_scores(X)) / (1 - clf.predict_variance(X))[:, None]
    for i in (0, 13, 29):
        rest = np.arange(30) != i
        refit = Ridge(clf.alpha_).fit(X[rest], Y[rest])
        np.testing.assert_allclose(left_out[i], Y[i] - refit.predict(X[i : i + 1])[0], rtol=1e-7)


def test_variance_is_that_of_scores_whose_targets_are_noise():
    X, y = _data()
    clf = RidgeHeadClassifier(1e-9).fit(X, y)
    new = np.random.default_rng(1).normal(3, 2, size=(4, 6))
    noise = np.random.default_rng(2).normal(size=(80, 20_000))
    simulated = Ridge(1e-9).fit(X, noise).predict(new).var(axis=1)
    np.testing.assert_allclose(clf.predict_variance(new), simulated, rtol=0.05)


def test_variance_far_from_the_rows_is_large():
    X, y = _data()
    clf = RidgeHeadClassifier().fit(X, y)
    assert clf.predict_variance(X).max() < 1 < clf.predict_variance(X + 100).min()


def test_one_class_is_predicted_with_certainty():
    X, _ = _data()
    clf = RidgeHeadClassifier().fit(X, np.zeros(len(X), dtype=int))
    np.testing.assert_allclose(clf.class_scores(X), 1)
    np.testing.assert_array_equal(clf.predict_proba(X), 1)


def test_more_features_than_samples_equal_ridge():
    X, y = _data(n=20, d=50)
    clf = RidgeHeadClassifier(0.3, relative=False).fit(X, y)
    expected = Ridge(alpha=0.3).fit(X, np.eye(3)[y])
    np.testing.assert_allclose(clf.class_scores(X), expected.predict(X), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_a_large_mean_costs_no_digits(offset):
    X, y = _data()
    near, far = (RidgeHeadClassifier(0.1).fit(X + shift, y) for shift in (0.0, offset))
    np.testing.assert_allclose(far.class_scores(X + offset), near.class_scores(X), atol=1e-6)


@pytest.mark.parametrize("alpha", ["gcv", "loo", "kfold"])
@pytest.mark.parametrize("alphas", [[], [-1.0], [np.nan]])
def test_alphas_that_are_no_penalties_are_refused(alpha, alphas):
    with pytest.raises(ValueError, match="alphas"):
        RidgeHeadClassifier(alpha, alphas=alphas).fit(*_data())


def test_coding_of_the_targets_makes_no_difference_to_predictions():
    X, y = _data()
    # scikit-learn codes classes as plus and minus one.
    expected = RidgeClassifier(alpha=3.0).fit(X, y).predict(X)
    clf = RidgeHeadClassifier(3.0, relative=False).fit(X, y)
    np.testing.assert_array_equal(clf.predict(X), expected)


def test_unknown_class_weight_is_refused():
    with pytest.raises(ValueError, match="class_weight"):
        RidgeHeadClassifier(class_weight={9: 1.0}).fit(*_data())


def test_kfold_penalty_is_that_of_refits_on_the_folds():
    rng = np.random.default_rng(0)
    y = np.arange(180) % 3
    X = rng.normal(size=(180, 40)) + 0.4 * np.eye(3, 40)[y]
    alphas = np.logspace(-3, 3, 7)
    clf = RidgeHeadClassifier("kfold", alphas=alphas, relative=False)
    for part in np.array_split(rng.permutation(180), 4):
        clf.partial_fit(X[part], y[part])
    errors, Y = np.zeros(7), np.eye(3)[y]
    # Which fold a row is in, from the moments of one row at a time.
    folds = [
        next(k for k, p in enumerate(FoldMoments(3).update(X[[i]], [0]).parts_) if len(p.classes_))
        for i in range(180)
    ]
    for k in range(3):
        train, test = np.flatnonzero(np.not_equal(folds, k)), np.flatnonzero(np.equal(folds, k))
        for i, alpha in enumerate(alphas):
            ridge = Ridge(alpha=alpha).fit(X[train], Y[train])
            errors[i] += ((Y[test] - ridge.predict(X[test])) ** 2).sum()
    np.testing.assert_allclose(clf.scores_, -errors, rtol=1e-9)
    assert clf.alpha_ == alphas[errors.argmin()]
    want = Ridge(alpha=clf.alpha_).fit(X, Y)
    np.testing.assert_allclose(clf.class_scores(X), want.predict(X), atol=1e-10)
    assert clf.forget(X[:60], y[:60]).certify(X[60:], y[60:]) < 1e-10
