# SPDX-License-Identifier: BSD-3-Clause
"""Herding against its definition by loops, and what the definition implies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import check_estimator

from skpool.continual import HerdingSelector, herding


def distances(F, chosen):
    """How far every row that is left would put the mean of the chosen from that of all."""
    left = [i for i in range(len(F)) if i not in chosen]
    total, k = F[chosen].sum(axis=0), len(chosen) + 1
    return {i: np.linalg.norm(F.mean(axis=0) - (total + F[i]) / k) for i in left}


def by_definition(F, m):
    """Of the rows left, the one that brings the mean of the chosen nearest to that of all."""
    chosen = []
    for _ in range(m):
        away = distances(F, chosen)
        chosen.append(min(away, key=away.get))
    return chosen


@given(
    n=st.integers(1, 30), d=st.integers(1, 6), seed=st.integers(0, 2**32 - 1), unit=st.booleans()
)
@settings(deadline=None, max_examples=40)
def test_every_row_is_the_nearest_by_the_definition(n, d, seed, unit):
    F = np.random.default_rng(seed).normal(size=(n, d)) + 0.5
    if unit:
        F /= np.linalg.norm(F, axis=1, keepdims=True)
    found = herding(F, (n + 1) // 2).tolist()
    for k, row in enumerate(found):
        away = distances(F, found[:k])
        # Two rows may be as near as each other.
        assert away[row] <= min(away.values()) + 1e-12


def test_choice_is_that_of_the_definition():
    F = np.random.default_rng(0).normal(size=(60, 8)) + 0.5
    assert herding(F, 25).tolist() == by_definition(F, 25)


@given(n=st.integers(2, 40), m=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_prefix_is_the_choice_for_its_length_and_no_row_comes_twice(n, m, seed):
    F = np.random.default_rng(seed).normal(size=(n, 5))
    whole = herding(F, n)
    assert herding(F, m).tolist() == whole[:m].tolist()
    assert sorted(whole) == list(range(n))


def test_equal_rows_are_taken_in_their_order():
    F = np.tile(np.random.default_rng(0).normal(size=(1, 37)), (50, 1))
    assert herding(F, 50).tolist() == list(range(50))
    twice = np.repeat(np.random.default_rng(1).normal(size=(6, 37)), 2, axis=0)
    order = herding(twice, 12).tolist()
    assert all(order.index(i) < order.index(i + 1) for i in range(0, 12, 2))


def test_error_of_the_mean_falls_faster_than_that_of_random_rows():
    rng = np.random.default_rng(0)
    F = rng.normal(size=(4000, 8))
    F /= np.linalg.norm(F, axis=1, keepdims=True)
    mean, sizes = F.mean(axis=0), np.array([10, 20, 40, 80, 160])
    order = herding(F, 160)
    chosen = [np.linalg.norm(F[order[:m]].mean(axis=0) - mean) for m in sizes]
    drawn = [
        np.mean([np.linalg.norm(F[rng.permutation(4000)[:m]].mean(0) - mean) for _ in range(50)])
        for m in sizes
    ]
    slope = [np.polyfit(np.log(sizes), np.log(errors), 1)[0] for errors in (chosen, drawn)]
    assert slope[0] < -0.8
    assert -0.6 < slope[1] < -0.4


def test_target_takes_the_place_of_the_mean():
    F = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [4.0, 4.0]])
    assert herding(F, 1, target=[4.0, 3.0]).tolist() == [3]
    assert herding(F, 2).tolist() == herding(F, 2, target=F.mean(axis=0)).tolist()


def test_tensor_and_array_give_the_same():
    F = np.random.default_rng(0).normal(size=(40, 7)).astype("f4")
    assert herding(torch.from_numpy(F), 9).tolist() == herding(F, 9).tolist()


@pytest.mark.parametrize("m", [0, -1, 2.0, True])
def test_number_of_rows_is_checked(m):
    with pytest.raises(ValueError, match="m="):
        herding(np.eye(3), m)


@pytest.mark.parametrize(("F", "target"), [(np.ones(3), None), (np.eye(3), np.ones(2))])
def test_shapes_are_checked(F, target):
    with pytest.raises(ValueError, match="shape"):
        herding(F, 1, target=target)


@pytest.mark.parametrize("normalize", [True, False])
def test_selector_herds_the_rows_of_every_class(normalize):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)) + 1, np.array(list("abc"))[rng.integers(0, 3, 60)]
    found = HerdingSelector(5, normalize=normalize).fit(X, y).indices_
    rows = X / np.linalg.norm(X, axis=1, keepdims=True) if normalize else X
    for label in "abc":
        members = np.flatnonzero(y == label)
        assert found[label].tolist() == members[by_definition(rows[members], 5)].tolist()


def test_resampling_gives_the_rows_that_were_chosen():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 4)), np.repeat([0, 1], 15)
    selector = HerdingSelector(4)
    rows, labels = selector.fit_resample(X, y)
    np.testing.assert_array_equal(rows, X[np.r_[selector.indices_[0], selector.indices_[1]]])
    assert labels.tolist() == [0] * 4 + [1] * 4
    tensor, _ = selector.fit_resample(torch.from_numpy(X), y)
    np.testing.assert_array_equal(tensor.numpy(), rows)


@pytest.mark.filterwarnings("default")
def test_selector_passes_the_checks_of_scikit_learn():
    check_estimator(HerdingSelector(3), on_skip=None)
