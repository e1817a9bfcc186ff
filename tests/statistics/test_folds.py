# SPDX-License-Identifier: BSD-3-Clause
"""Moments by fold against scikit-learn's splitters and its refitted Ridge."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit, StratifiedKFold

from skpool.statistics import (
    ClassMoments,
    FoldMoments,
    fold_indices,
    fold_moments,
    largest_difference,
    ridge_fold_errors,
)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    return rng.normal(size=(150, 6)) * np.linspace(0.5, 3, 6) + y[:, None] + 20.0, y


@pytest.mark.parametrize("cv", [2, 5, KFold(4), KFold(3, shuffle=True, random_state=0)], ids=str)
@pytest.mark.parametrize("scatter", ["none", "shared", "per_class", "diag"])
def test_training_moments_are_those_of_the_training_rows(data, cv, scatter):
    X, y = data
    folds = fold_moments(X, y, cv, scatter=scatter)
    splitter = StratifiedKFold(cv) if isinstance(cv, int) else cv
    for k, (train, test) in enumerate(splitter.split(X, y)):
        want = ClassMoments(scatter).update(X[train], y[train])
        assert largest_difference(folds.leave_out(k), want) < 1e-12
        want = ClassMoments(scatter).update(X[test], y[test])
        assert largest_difference(folds.parts_[k], want) < 1e-12
    assert largest_difference(folds.total_, ClassMoments(scatter).update(X, y)) < 1e-12


def test_groups_stay_together(data):
    X, y = data
    groups = np.arange(150) // 7
    for fold in fold_indices(GroupKFold(3), y, groups):
        assert not set(groups[fold]) & set(np.delete(groups, fold))
    folds = FoldMoments(4, "none").update(X, groups, groups=groups)
    held = [set(part.classes_.tolist()) for part in folds.parts_]
    assert sum(len(names) for names in held) == len(set(groups.tolist()))
    assert sum(bool(names) for names in held) > 1


@pytest.mark.parametrize("cv", [ShuffleSplit(3, random_state=0), [([0], [1]), ([1], [1])]])
def test_splits_that_are_no_partition_are_refused(data, cv):
    with pytest.raises(ValueError, match="row left out once"):
        fold_moments(*data, cv)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_errors_equal_those_of_refitted_ridges(data, relative, weighted):
    X, y = data
    w = np.random.default_rng(1).uniform(0.5, 2, 150) if weighted else None
    lambdas, Y = np.array([1e-3, 1.0, 50.0]), np.eye(3)[y]
    got = ridge_fold_errors(fold_moments(X, y, 5, sample_weight=w), lambdas, relative=relative)
    ones = np.ones(150) if w is None else w
    for k, (train, test) in enumerate(StratifiedKFold(5).split(X, y)):
        mean = np.average(X[train], axis=0, weights=ones[train])
        trace = (ones[train, None] * (X[train] - mean) ** 2).sum()
        for i, penalty in enumerate(lambdas * (trace / 6 if relative else 1.0)):
            ridge = Ridge(alpha=penalty).fit(X[train], Y[train], sample_weight=ones[train])
            rest = ((Y[test] - ridge.predict(X[test])) ** 2).sum(axis=1)
            assert got[k, i] == pytest.approx(ones[test] @ rest, rel=1e-9)


def test_a_class_in_one_fold_only_is_predicted_zero_by_the_others(data):
    X, y = data
    y = np.where(np.arange(150) < 10, 9, y)
    cv = KFold(3)
    got = ridge_fold_errors(fold_moments(X, y, cv), [1.0], relative=False)
    train, test = next(cv.split(X))
    Y = (y[:, None] == np.array([0, 1, 2, 9])).astype(float)
    rest = Y[test] - Ridge(alpha=1.0).fit(X[train], Y[train]).predict(X[test])
    assert got[0, 0] == pytest.approx((rest**2).sum(), rel=1e-9)


# --- folds that rows find by themselves ------------------------------------------------------


def as_parts(folds):
    return [part.to_arrays() for part in folds.parts_]


def close(a, b, atol=1e-9):
    return all(largest_difference(p, q) < atol for p, q in zip(a.parts_, b.parts_, strict=True))


def test_rows_find_the_same_fold_in_any_order_and_type(data):
    X, y = data
    X = X.astype(np.float32)
    order = np.random.default_rng(1).permutation(150)
    want = FoldMoments(3).update(X, y)
    assert all(part.counts_.sum() > 20 for part in want.parts_)
    got = FoldMoments(3).update(X[order[:40]], y[order[:40]])
    got.update(X[order[40:]].astype(np.float64), y[order[40:]])
    assert close(got, want)
    merged = FoldMoments(3).update(X[:60], y[:60]).merge(FoldMoments(3).update(X[60:], y[60:]))
    assert close(merged, want)
    assert close(
        FoldMoments(3).update(X, y) + FoldMoments(3).update(X[:9], y[:9]),
        FoldMoments(3).update(np.vstack([X, X[:9]]), np.append(y, y[:9])),
    )


def test_rows_are_found_again_to_be_removed(data):
    X, y = data
    got = FoldMoments(3).update(X, y).downdate(X[:70], y[:70])
    assert close(got, FoldMoments(3).update(X[70:], y[70:]))
    got = FoldMoments(3, "per_class").update(X, y).forget_class(1)
    assert close(got, FoldMoments(3, "per_class").update(X[y != 1], y[y != 1]))


def test_mapped_moments_are_those_of_mapped_rows(data):
    X, y = data
    A, b = np.random.default_rng(2).normal(size=(6, 4)), np.arange(4.0)
    got = fold_moments(X, y, 3).affine(A, b)
    assert close(got, fold_moments(X @ A + b, y, 3))


def test_what_fails_changes_nothing(data):
    X, y = data
    folds = FoldMoments(3).update(X, y)
    before = as_parts(folds)
    for bad, message in (
        (lambda: folds.update(X[:, :2], y), "features"),
        (lambda: folds.update(X, y.astype(str)), "one kind of label"),
        (lambda: folds.downdate(X + 1.0, y), "not held|remove"),
        (lambda: folds.merge(FoldMoments(2)), "2 folds"),
        (lambda: folds.update(X, y, groups=[1]), "groups has 1"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()
        for a, b in zip(before, as_parts(folds), strict=True):
            assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("n_folds", [1, 2.5, True])
def test_bad_numbers_of_folds_are_refused(n_folds):
    with pytest.raises(ValueError, match="n_folds"):
        FoldMoments(n_folds)


def test_bad_requests_of_errors_are_refused(data):
    with pytest.raises(ValueError, match="lambdas"):
        ridge_fold_errors(fold_moments(*data), [0.0])
    with pytest.raises(ValueError, match="scatter='diag'"):
        ridge_fold_errors(fold_moments(*data, scatter="diag"), [1.0])
