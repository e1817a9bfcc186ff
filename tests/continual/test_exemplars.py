# SPDX-License-Identifier: BSD-3-Clause
"""Memories of exemplars: bounds, prefixes, what is kept; and the classifier by their means."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skpool.continual import (
    ExemplarMemory,
    NearestMeanOfExemplarsClassifier,
    herding,
)
from skpool.prototypes import NearestClassMeanClassifier

SELECTIONS = ("herding", "random", "closest", "kmedoids")


def made(n_classes=4, n=40, d=6, seed=0):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(n_classes), n)
    return (2 * rng.normal(size=(n_classes, d))[y] + rng.normal(size=(len(y), d))), y


def unit(X):
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def by_class(memory):
    return {label: memory.X_[memory.y_ == label] for label in memory.classes_.tolist()}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_memory_that_shrinks_is_cut_off(selection):
    X, y = made()
    memory = ExemplarMemory(24, selection=selection, random_state=0)
    before = by_class(memory.add(X[y < 2], y[y < 2]))
    after = by_class(memory.add(X[y == 2], y[y == 2]))
    assert [len(rows) for rows in before.values()] == [12, 12]
    assert [len(rows) for rows in after.values()] == [8, 8, 8]
    for label in (0, 1):
        np.testing.assert_array_equal(after[label], before[label][:8])


def test_herded_rows_are_those_of_herding():
    X, y = made()
    memory = ExemplarMemory(None, per_class=7, store_dtype="float32").add(X, y)
    for label, rows in by_class(memory).items():
        members = X[y == label]
        expected = members[herding(unit(members), 7)].astype("f4")
        np.testing.assert_array_equal(rows, expected)


def test_closest_rows_are_nearest_to_the_mean():
    X, _ = made(1)
    memory = ExemplarMemory(5, selection="closest", store_dtype="float32").add(X, [0] * 40)
    away = np.linalg.norm(unit(X) - unit(X).mean(axis=0), axis=1)
    np.testing.assert_array_equal(memory.X_, X[np.argsort(away)[:5]].astype("f4"))


def test_first_medoid_is_best_and_each_next_lowers_most():
    X, _ = made(1)
    memory = ExemplarMemory(3, selection="kmedoids", store_dtype="float32").add(X, [0] * 40)
    apart, chosen = cdist(unit(X), unit(X)), []
    for _ in range(3):
        costs = [apart[:, [*chosen, i]].min(axis=1).sum() for i in range(40)]
        chosen.append(int(np.argmin(costs)))
    np.testing.assert_array_equal(memory.X_, X[chosen].astype("f4"))


def test_random_rows_stay_a_uniform_sample_in_many_calls():
    counts = np.zeros(20)
    for seed in range(300):
        memory = ExemplarMemory(5, selection="random", random_state=seed)
        for part in np.split(np.arange(20), [3, 11]):
            memory.add(np.c_[part + 1.0, np.ones(len(part))], [0] * len(part))
        counts[memory.X_[:, 0].astype(int) - 1] += 1
    # Chi-square of 20 cells with mean 75, whose 99.9 % point is 43.8.
    assert ((counts - 75) ** 2 / 75).sum() / (1 - 5 / 20) < 43.8


def test_bound_in_bytes_is_kept_by_what_is_stored():
    X, y = made(3, 50, 8)
    memory = ExemplarMemory(None, budget_bytes=1000).add(X, y)
    assert memory.nbytes == memory.X_.nbytes <= 1000
    # Of 16 bytes per row and 3 classes, no row more would fit into each.
    assert memory.counts_.tolist() == [20, 20, 20]


def test_every_bound_holds():
    X, y = made()
    memory = ExemplarMemory(100, per_class=30, budget_bytes=12 * 4 * 11).add(X, y)
    assert memory.counts_.tolist() == [11] * 4
    assert ExemplarMemory(100, per_class=30).add(X, y).counts_.tolist() == [25] * 4


def test_no_bound_keeps_every_row():
    X, y = made()
    memory = ExemplarMemory(None, store_dtype="float32").add(X[:50], y[:50]).add(X[50:], y[50:])
    order = np.lexsort(memory.X_.T), np.lexsort(X.astype("f4").T)
    np.testing.assert_array_equal(memory.X_[order[0]], X.astype("f4")[order[1]])


def test_fewer_rows_than_classes_keep_one_each_and_warn():
    X, y = made()
    with pytest.warns(UserWarning, match="budget=3"):
        memory = ExemplarMemory(3).add(X, y)
    assert memory.counts_.tolist() == [1] * 4


def test_rows_are_kept_in_half_precision():
    X, y = made()
    memory = ExemplarMemory().add(X, y)
    assert memory.X_.dtype == np.float16
    with pytest.raises(ValueError, match="store_dtype"):
        ExemplarMemory().add(1e6 * X, y)


def test_known_class_is_chosen_anew_towards_the_mean_of_all_its_rows():
    X, _ = made(1)
    memory = ExemplarMemory(4, store_dtype="float32").add(X[:25], [0] * 25)
    held = memory.X_.copy()
    memory.add(X[25:], [0] * 15)
    candidates = np.concatenate([held, X[25:].astype("f4")])
    rows = np.concatenate([unit(held.astype("f8")), unit(X[25:])])
    chosen = herding(rows, 4, target=unit(X).mean(axis=0))
    np.testing.assert_array_equal(memory.X_, candidates[chosen])


def test_reduce_cuts_to_lowered_bounds():
    X, y = made()
    memory = ExemplarMemory(40).add(X, y)
    before = by_class(memory)
    memory.set_params(budget=12).reduce()
    for label, rows in by_class(memory).items():
        np.testing.assert_array_equal(rows, before[label][:3])


def test_copy_changes_on_its_own():
    X, y = made()
    memory = ExemplarMemory(40).add(X[y < 3], y[y < 3])
    before = memory.X_.copy()
    memory.copy().add(X[y == 3], y[y == 3])
    np.testing.assert_array_equal(memory.X_, before)


def test_removed_rows_and_classes_are_gone():
    X, y = made()
    memory = ExemplarMemory(8).add(X, y)
    kept = memory.X_.copy()
    memory.remove(np.arange(8) < 3)
    np.testing.assert_array_equal(memory.X_, kept[3:])
    assert memory.y_.tolist() == [1, 2, 2, 3, 3]
    assert memory.forget_class(2).classes_.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda m: m.remove([True]), "mask"),
        (lambda m: m.forget_class(9), "label=9"),
        (lambda m: m.add([[np.nan] * 6], [0]), "NaN"),
        (lambda m: m.add([[1.0] * 6], ["a"]), "text"),
        (lambda m: m.set_params(budget=0).add([[1.0] * 6], [0]), "budget"),
    ],
)
def test_refused_call_leaves_the_memory(act, match):
    X, y = made()
    memory = ExemplarMemory(8).add(X, y)
    before = memory.X_.copy()
    with pytest.raises(ValueError, match=match):
        act(memory)
    np.testing.assert_array_equal(memory.X_, before)


def test_empty_memory_says_so():
    with pytest.raises(NotFittedError, match="add"):
        _ = ExemplarMemory().X_
    assert not hasattr(ExemplarMemory(), "y_")


# The classifier.


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_full_memory_is_the_nearest_mean_of_unit_rows(metric):
    X, y = made()
    memory = ExemplarMemory(None, store_dtype="float32")
    nme = NearestMeanOfExemplarsClassifier(memory, metric=metric).fit(X, y)
    ncm = NearestClassMeanClassifier(metric, normalize="l2", normalize_means=True).fit(X, y)
    np.testing.assert_allclose(nme.prototypes_, ncm.prototypes_, atol=1e-6)
    np.testing.assert_allclose(nme.class_scores(X), ncm.class_scores(X), atol=1e-6)


def test_scores_are_distances_to_unit_means_of_unit_exemplars():
    X, y = made()
    memory = ExemplarMemory(20, store_dtype="float32")
    nme = NearestMeanOfExemplarsClassifier(memory)
    for label in (2, 0, 3, 1):
        nme.partial_fit(X[y == label], y[y == label])
    means = []
    for label in range(4):
        rows = X[y == label]
        kept = rows[herding(unit(rows), 20)[:5]]
        means.append(unit(kept).mean(axis=0))
    expected = -(cdist(unit(X), unit(np.array(means))) ** 2) / 2
    np.testing.assert_allclose(nme.class_scores(X), expected, atol=1e-6)


def test_parameter_stays_empty_and_unchanged():
    X, y = made()
    memory = ExemplarMemory(20)
    nme = NearestMeanOfExemplarsClassifier(memory).fit(X, y)
    assert not hasattr(memory, "classes_")
    assert clone(nme).memory.budget == 20


def test_forgotten_class_is_not_predicted_and_its_rows_are_gone():
    X, y = made()
    nme = NearestMeanOfExemplarsClassifier().fit(X, y).forget_class(1)
    assert nme.classes_.tolist() == [0, 2, 3]
    assert set(nme.memory_.y_.tolist()) == set(nme.predict(X).tolist()) == {0, 2, 3}
    never = NearestMeanOfExemplarsClassifier().fit(X[y != 1], y[y != 1])
    np.testing.assert_array_equal(nme.class_scores(X), never.class_scores(X))
