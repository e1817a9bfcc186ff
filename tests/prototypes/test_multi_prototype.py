# SPDX-License-Identifier: BSD-3-Clause
"""MultiPrototypeClassifier between the nearest mean and the nearest neighbour."""

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpool.prototypes import MultiPrototypeClassifier, NearestClassMeanClassifier

METRICS = ["cosine", "euclidean"]


def model(n_prototypes=4, **options):
    return MultiPrototypeClassifier(n_prototypes, **({"random_state": 0} | options))


@parametrize_with_checks(
    [
        MultiPrototypeClassifier(metric="euclidean"),
        MultiPrototypeClassifier("balanced", reduce="logsumexp"),
    ]
)
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:600], y[:600], X[600:900]


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([0, 1, 2], [30, 12, 18]))
    return rng.standard_normal((60, 5)), y


@pytest.fixture(scope="module")
def xor():
    rng = np.random.default_rng(0)
    corner = np.arange(400) % 4
    X = np.array([[0, 0], [4, 4], [0, 4], [4, 0]])[corner] + 0.5 * rng.standard_normal((400, 2))
    return X, corner // 2


def similarities(Q, P, metric):
    return 1 - cdist(Q, P, "cosine") if metric == "cosine" else -cdist(Q, P, "sqeuclidean") / 2


@pytest.mark.parametrize("reduce", ["max", "logsumexp", "mean_top2"])
def test_one_euclidean_prototype_is_the_nearest_centroid(digits, reduce):
    X, y, Q = digits
    X = X + np.random.default_rng(0).standard_normal(X.shape)
    peer = NearestCentroid().fit(X, y)
    ours = model(1, metric="euclidean", reduce=reduce).fit(X, y)
    np.testing.assert_allclose(ours.prototypes_, peer.centroids_, atol=1e-12)
    assert (ours.predict(Q) == peer.predict(Q)).all()


def test_one_cosine_prototype_is_the_nearest_mean_of_unit_rows(digits):
    X, y, Q = digits
    ncm = NearestClassMeanClassifier("cosine", normalize="l2").fit(X, y)
    np.testing.assert_allclose(model(1).fit(X, y).class_scores(Q), ncm.class_scores(Q), atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n_prototypes", [10_000, dict.fromkeys(range(10), 10_000)])
def test_as_many_prototypes_as_rows_are_the_nearest_neighbor(digits, metric, n_prototypes):
    X, y, Q = digits
    peer = KNeighborsClassifier(1, metric=metric, algorithm="brute").fit(X, y)
    ours = model(n_prototypes, metric=metric).fit(X, y)
    assert len(ours.prototypes_) == 600
    assert (ours.predict(Q) == peer.predict(Q)).all()


def test_exactly_as_many_prototypes_as_rows_are_the_rows(small):
    X, y = small
    ours = model(12, metric="euclidean").fit(X[y == 1], y[y == 1])
    found = ours.prototypes_[np.lexsort(ours.prototypes_.T)]
    np.testing.assert_allclose(found, X[y == 1][np.lexsort(X[y == 1].T)], atol=1e-14)


def test_xor_is_solved_where_the_nearest_mean_is_at_chance(xor):
    X, y = xor
    ncm = NearestClassMeanClassifier("euclidean").fit(X[:200], y[:200])
    assert ncm.score(X[200:], y[200:]) < 0.65
    assert model(2, metric="euclidean").fit(X[:200], y[:200]).score(X[200:], y[200:]) > 0.98


@pytest.mark.parametrize("metric", METRICS)
def test_scores_reduce_the_scores_of_prototypes(small, metric):
    X, y = small
    Q, T = np.random.default_rng(1).standard_normal((20, 5)), 3.0
    for reduce in ("max", "logsumexp", "mean_top2"):
        ours = model({0: 5, 1: 1, 2: 3}, metric=metric, reduce=reduce, temperature=T).fit(X, y)
        assert np.unique(ours.parent_, return_counts=True)[1].tolist() == [5, 1, 3]
        scores = ours.class_scores(Q)
        for c in range(3):
            s = similarities(Q, ours.prototypes_[ours.parent_ == c], metric)
            expected = {
                "max": s.max(axis=1),
                "logsumexp": (logsumexp(T * s, axis=1) - np.log(s.shape[1])) / T,
                "mean_top2": np.sort(s, axis=1)[:, -2:].mean(axis=1),
            }[reduce]
            np.testing.assert_allclose(scores[:, c], expected, atol=1e-10)


def test_logsumexp_of_a_large_temperature_is_the_maximum(small):
    X, y = small
    hot = model(reduce="logsumexp", temperature=1e8).fit(X, y).class_scores(X)
    np.testing.assert_allclose(hot, model().fit(X, y).class_scores(X), atol=1e-6)


def test_copies_of_prototypes_gain_nothing_in_logsumexp():
    # Two classes at one place, one with three times the prototypes.
    X = np.array([[1.0, 0.0], [0.0, 1.0]])
    near = X + 1e-9 * np.arange(1, 7).reshape(3, 2, 1)
    rows, y = np.vstack([X, *near]), np.repeat([0, 1], [2, 6])
    scores = model(10, reduce="logsumexp").fit(rows, y).class_scores([[2.0, 1.0]])
    assert scores[0, 0] == pytest.approx(scores[0, 1], abs=1e-6)


def test_balanced_takes_clusters_of_the_smallest_class(small):
    X, y = small
    ours = model("balanced").fit(X, y)
    names, counts = np.unique(ours.parent_, return_counts=True)
    assert names.tolist() == [0, 1, 2] and counts.tolist() == [3, 1, 2]


def test_class_with_fewer_distinct_rows_has_one_prototype_each():
    X = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    ours = model(3, metric="euclidean").fit(X, [0, 0, 0, 1])
    assert ours.parent_.tolist() == [0, 0, 1]
    assert {tuple(p) for p in ours.prototypes_.tolist()} == {(1, 0), (0, 1), (5, 5)}


def test_balanced_takes_equal_rows():
    X = np.ones((50, 3))
    ours = model("balanced").fit(X, np.repeat([0, 1], [40, 10]))
    assert np.isfinite(ours.prototypes_).all() and (ours.parent_ == 0).sum() >= 4


@settings(deadline=None, max_examples=20)
@given(data=st.data(), reservoir=st.sampled_from([4, 15, 2000]), metric=st.sampled_from(METRICS))
def test_any_order_and_partition_equals_fit(small, data, reservoir, metric):
    X, y = small
    order = np.array(data.draw(st.permutations(range(60))))
    cuts = sorted(data.draw(st.sets(st.integers(1, 59), max_size=8)))
    options = {"reservoir": reservoir, "metric": metric}
    parts = model(3, **options)
    for rows in np.split(order, cuts):
        parts.partial_fit(X[rows], y[rows])
    whole = model(3, **options).fit(X, y)
    assert (parts.counts_ == [30, 12, 18]).all()
    np.testing.assert_allclose(parts.prototypes_, whole.prototypes_, atol=1e-13)


@pytest.mark.parametrize("reservoir", [10, 2000])
def test_merge_equals_fit_on_both(small, reservoir):
    X, y = small
    a = model(3, reservoir=reservoir).fit(X[:25], y[:25])
    b = model(3, reservoir=reservoir).fit(X[25:], y[25:])
    whole = model(3, reservoir=reservoir).fit(X, y)
    assert (a.merge(b).prototypes_ == whole.prototypes_).all()


def test_merge_of_other_seeds_keeps_all_rows(small):
    X, y = small
    a = model(50, random_state=1).fit(X[:25], y[:25])
    a.merge(model(50, random_state=2).fit(X[25:], y[25:]))
    whole = model(50).fit(X, y)
    np.testing.assert_allclose(a.class_scores(X), whole.class_scores(X), atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(gone=st.sets(st.integers(0, 59), min_size=1, max_size=58))
def test_forget_equals_refit(small, gone):
    X, y = small
    gone = sorted(gone)
    kept = np.setdiff1d(np.arange(60), gone)
    ours = model(3).fit(X, y).forget(X[gone], y[gone])
    refit = model(3).fit(X[kept], y[kept])
    assert (ours.classes_ == refit.classes_).all()
    assert (ours.prototypes_ == refit.prototypes_).all()


def test_forget_class_equals_fit_without_it(small):
    X, y = small
    ours = model(3, reservoir=10).fit(X, y).forget_class(1)
    refit = model(3, reservoir=10).fit(X[y != 1], y[y != 1])
    assert (ours.prototypes_ == refit.prototypes_).all() and ours.classes_.tolist() == [0, 2]


def test_forgetting_a_class_of_which_rows_were_dropped_is_refused(small):
    X, y = small
    ours = model(3, reservoir=15).fit(X, y)
    before = joblib.hash(vars(ours))
    with pytest.raises(ValueError, match="30 rows were learned and 15 are kept"):
        ours.forget(X[y == 0][:1], [0])
    assert joblib.hash(vars(ours)) == before
    assert ours.forget(X[y == 1][:2], [1, 1]).counts_.tolist() == [30, 10, 18]


def test_forgetting_rows_that_were_never_learned_is_refused(small):
    X, y = small
    ours = model(3).fit(X, y)
    before = joblib.hash(vars(ours))
    with pytest.raises(ValueError, match="X holds 1 rows with label 0 that were not learned"):
        ours.forget(np.vstack([X[y == 0][:3], X[y == 1][:1]]), [0, 0, 0, 0])
    assert joblib.hash(vars(ours)) == before


def test_reservoir_bounds_what_is_kept(small):
    X, y = small
    ours = model(1, reservoir=5, metric="euclidean").fit(X, y)
    assert all(len(sample.rows) == 5 for sample in ours._samples.values())
    rows = X[y == 1]
    fives = ours._samples[1].rows
    assert all((row == rows).all(axis=1).any() for row in fives)
    np.testing.assert_allclose(ours.prototypes_[1], fives.mean(axis=0), atol=1e-14)


def test_new_classes_may_come_in_any_call(small):
    X, y = small
    names = np.array(["b", "a longer name", "c"])[y]
    ours = model(2)
    for name in ("c", "b", "a longer name"):
        ours.partial_fit(X[names == name], names[names == name])
    whole = model(2).fit(X, names)
    assert ours.classes_.tolist() == ["a longer name", "b", "c"]
    assert (ours.class_scores(X) == whole.class_scores(X)).all()


def test_announced_class_has_no_prototypes(small):
    X, y = small
    ours = model(2).partial_fit(X, y, classes=[7])
    assert 7 not in ours.parent_ and ours.counts_.tolist() == [30, 12, 18, 0]
    assert (ours.class_scores(X)[:, 3] == -np.inf).all()


def test_tensors_give_what_arrays_give(small):
    X, y = small
    a = model(3).fit(X, y)
    b = model(3).fit(torch.from_numpy(X), torch.from_numpy(y))
    assert (a.prototypes_ == b.prototypes_).all()
    assert (b.class_scores(torch.from_numpy(X)) == a.class_scores(X)).all()


def test_wrong_number_in_the_dict_is_refused(small):
    with pytest.raises(ValueError, match="whole numbers of at least 1"):
        model({0: 0}).fit(*small)
