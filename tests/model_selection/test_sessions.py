# SPDX-License-Identifier: BSD-3-Clause
"""Splitters into stages: what every protocol keeps, and the exact shares of each."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import cross_val_score
from sklearn.naive_bayes import GaussianNB

from skpool.model_selection import (
    ClassIncrementalSplit,
    DomainIncrementalSplit,
    FewShotIncrementalSplit,
)

LABELS = np.random.RandomState(0).permutation(np.repeat(np.arange(10), 20))


@st.composite
def class_problems(draw):
    """Labels of few classes of unequal size, and a splitter for them."""
    sizes = draw(st.lists(st.integers(2, 12), min_size=2, max_size=7))
    y = np.random.RandomState(draw(st.integers(0, 99))).permutation(
        np.repeat(np.arange(len(sizes)) * 3 - 4, sizes)
    )
    splitter = ClassIncrementalSplit(
        draw(st.integers(0, len(sizes))),
        increment=draw(st.integers(1, 4)),
        class_order=draw(st.sampled_from(["sorted", "shuffled"])),
        seed=draw(st.integers(0, 9)),
    )
    return y, splitter


def joined(parts):
    return np.concatenate(list(parts))


@given(class_problems())
def test_every_row_is_learned_or_held_out_and_never_twice(problem):
    y, splitter = problem
    stages = splitter.stages(y)
    rows = joined([stage.train for stage in stages] + [stage.task_test for stage in stages])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(y)))


@given(class_problems())
def test_no_class_is_in_two_stages(problem):
    y, splitter = problem
    stages = splitter.stages(y)
    np.testing.assert_array_equal(np.sort(joined(s.classes for s in stages)), np.unique(y))
    for stage in stages:
        np.testing.assert_array_equal(np.unique(y[stage.train]), stage.classes)


@given(class_problems())
def test_test_rows_are_those_of_all_classes_seen_so_far(problem):
    y, splitter = problem
    stages = splitter.stages(y)
    held_out = joined(stage.task_test for stage in stages)
    for t, stage in enumerate(stages):
        seen = np.unique(joined(s.classes for s in stages[: t + 1]))
        np.testing.assert_array_equal(stage.seen_classes, seen)
        np.testing.assert_array_equal(stage.test, np.sort(held_out[np.isin(y[held_out], seen)]))


@given(class_problems(), st.floats(0.05, 0.9))
def test_held_out_share_of_every_class_is_within_rounding(problem, test_size):
    y, _ = problem
    stages = ClassIncrementalSplit(increment=1, test_size=test_size).stages(y)
    for stage in stages:
        n = len(stage.train) + len(stage.task_test)
        assert len(stage.task_test) in {1, n - 1} or abs(len(stage.task_test) - test_size * n) <= 1
        assert len(stage.train) > 0 < len(stage.task_test)


@pytest.mark.parametrize(
    ("init_classes", "increment", "sizes"),
    [(0, 2, [2] * 5), (4, 3, [4, 3, 3]), (5, 2, [5, 2, 2, 1]), (10, 3, [10]), (0, 30, [10])],
)
def test_stages_have_the_sizes_of_the_protocol(init_classes, increment, sizes):
    splitter = ClassIncrementalSplit(init_classes, increment=increment)
    assert [len(stage.classes) for stage in splitter.stages(LABELS)] == sizes
    assert splitter.get_n_splits(y=LABELS) == len(sizes)


def test_shuffled_order_is_the_habit_of_the_field():
    y = np.repeat([f"class {c:03d}" for c in range(100)], 2)
    expected = np.unique(y)[np.random.RandomState(1993).permutation(100)]
    stages = ClassIncrementalSplit(increment=1, class_order="shuffled").stages(y)
    np.testing.assert_array_equal(joined(stage.classes for stage in stages), expected)
    # The first classes of CIFAR-100 in the logs of published code with this seed.
    assert [int(label[-3:]) for label in expected[:10]] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]


def test_rows_do_not_depend_on_the_version_of_numpy():
    """The streams of RandomState are frozen, so these digests must never change."""
    stages = FewShotIncrementalSplit(4, way=2, shot=3, class_order="shuffled").stages(LABELS)
    rows = joined([*(s.train for s in stages), *(s.test for s in stages)])
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]
    assert digest == "d09cb7b0b707a92a"


def test_an_order_given_is_taken():
    order = [3, 1, 4, 5, 9, 2, 6, 0, 8, 7]
    stages = ClassIncrementalSplit(increment=1, class_order=order).stages(LABELS)
    assert joined(stage.classes for stage in stages).tolist() == order


def test_labels_of_test_rows_given_leave_all_rows_to_learn():
    y_test = np.repeat(np.arange(10), 3)
    stages = ClassIncrementalSplit(increment=5).stages(LABELS, y_test=y_test)
    assert [len(stage.train) for stage in stages] == [100, 100]
    assert [y_test[stage.task_test].tolist() for stage in stages] == [
        np.repeat(np.arange(5), 3).tolist(),
        np.repeat(np.arange(5, 10), 3).tolist(),
    ]


def test_groups_stay_on_one_side():
    groups = np.arange(200) // 4
    y = np.repeat(np.arange(10), 20)
    stages = ClassIncrementalSplit(increment=2).stages(y, groups=groups)
    train, test = joined(s.train for s in stages), joined(s.task_test for s in stages)
    assert np.intersect1d(groups[train], groups[test]).size == 0
    assert np.union1d(train, test).size == 200
    assert np.bincount(y[test]).tolist() == [4] * 10


def test_splits_are_a_cv_of_scikit_learn():
    X = np.eye(10)[LABELS] + 0.01 * np.random.RandomState(0).normal(size=(200, 10))
    scores = cross_val_score(GaussianNB(), X, LABELS, cv=ClassIncrementalSplit(increment=5))
    # Each split learns its own five classes alone, and is asked of all so far.
    np.testing.assert_allclose(scores, [1.0, 0.5])


@given(
    st.integers(1, 8), st.integers(1, 4), st.integers(1, 6), st.integers(0, 5), st.integers(0, 3)
)
def test_few_shot_stages_have_their_shots(base_classes, way, shot, seed, repeat):
    splitter = FewShotIncrementalSplit(base_classes, way=way, shot=shot, seed=seed)
    base, *later = splitter.stages(LABELS, repeat=repeat)
    assert np.bincount(LABELS[base.train], minlength=10).tolist() == [16] * base_classes + [0] * (
        10 - base_classes
    )
    for stage in later:
        assert len(stage.classes) == way or stage is later[-1]
        counts = dict(zip(*np.unique(LABELS[stage.train], return_counts=True), strict=True))
        assert counts == dict.fromkeys(stage.classes, shot)
        assert np.intersect1d(stage.train, stage.test).size == 0


def test_few_shot_repeats_draw_other_rows_of_the_same_classes():
    splitter = FewShotIncrementalSplit(5, n_repeats=2)
    first, second = splitter.stages(LABELS)[1], splitter.stages(LABELS, repeat=1)[1]
    np.testing.assert_array_equal(first.classes, second.classes)
    np.testing.assert_array_equal(first.test, second.test)
    assert first.train.tolist() != second.train.tolist()
    assert splitter.get_n_splits(y=LABELS) == len(list(splitter.split(None, LABELS))) == 4


def test_few_shot_of_a_class_with_too_few_rows_is_refused():
    with pytest.raises(ValueError, match="class 4 has 16 rows to learn, and shot=17"):
        FewShotIncrementalSplit(4, shot=17).stages(LABELS)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(0, 99))
def test_domains_come_one_by_one_with_all_their_rows(n_domains, seed):
    rng = np.random.RandomState(seed)
    y = rng.randint(0, 3, 60)
    groups = np.array(["photo", "clipart", "sketch", "art"])[rng.randint(0, n_domains, 60)]
    stages = DomainIncrementalSplit().stages(y, groups=groups)
    assert [stage.domain for stage in stages] == np.unique(groups).tolist()
    for t, stage in enumerate(stages):
        own = np.sort(np.concatenate([stage.train, stage.task_test]))
        np.testing.assert_array_equal(own, np.flatnonzero(groups == stage.domain))
        np.testing.assert_array_equal(
            stage.test, np.sort(joined(s.task_test for s in stages[: t + 1]))
        )


def test_domains_hold_out_the_same_share_of_every_class_in_every_domain():
    y, groups = np.tile(np.repeat([0, 1], [10, 20]), 2), np.repeat([5, 7], 30)
    for stage in DomainIncrementalSplit(test_size=0.3).stages(y, groups=groups):
        assert np.bincount(y[stage.task_test]).tolist() == [3, 6]


def test_domains_come_in_the_order_wanted():
    y, groups = np.zeros(30, int), np.repeat([1, 2, 3], 10)
    splitter = DomainIncrementalSplit([3, 1, 2])
    stages = splitter.stages(y, groups=groups)
    assert [np.unique(groups[stage.train]).item() for stage in stages] == [3, 1, 2]
    assert splitter.get_n_splits(groups=groups) == len(list(splitter.split(None, y, groups))) == 3


def test_domains_of_test_rows_are_theirs():
    stages = DomainIncrementalSplit().stages(
        [0, 1, 0, 1], y_test=[1, 0, 1], groups=["a", "a", "b", "b"], groups_test=["b", "a", "b"]
    )
    assert [stage.task_test.tolist() for stage in stages] == [[1], [0, 2]]
    assert [stage.train.tolist() for stage in stages] == [[0, 1], [2, 3]]


def test_a_stage_without_test_rows_is_told_of():
    with pytest.warns(UserWarning, match="Stage 1 has no test rows, and 1 of 3 stages"):
        stages = ClassIncrementalSplit(increment=1).stages([0, 0, 1, 1, 2], y_test=[0, 2])
    assert [len(stage.test) for stage in stages] == [1, 1, 2]


def test_a_class_of_one_row_is_learned():
    with pytest.warns(UserWarning, match="no test rows"):
        stages = ClassIncrementalSplit(increment=1).stages([0, 0, 1])
    assert stages[1].train.tolist() == [2]


def test_splitters_show_their_parameters():
    text = repr(ClassIncrementalSplit(50, increment=10))
    assert text.startswith("ClassIncrementalSplit(init_classes=50, increment=10")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClassIncrementalSplit(-1), "init_classes must be a whole number"),
        (lambda: ClassIncrementalSplit(increment=0), "increment must be a whole number"),
        (lambda: ClassIncrementalSplit(test_size=1.0), "between 0 and 1"),
        (lambda: ClassIncrementalSplit(11).stages(LABELS), "more than the 10 classes"),
        (lambda: ClassIncrementalSplit(class_order="random").stages(LABELS), "class_order must"),
        (lambda: ClassIncrementalSplit(class_order=[0, 1]).stages(LABELS), "each of the 10"),
        (lambda: ClassIncrementalSplit().stages([0, 1], y_test=[2]), "holds the label 2"),
        (lambda: ClassIncrementalSplit().stages(LABELS, groups=[1]), "each of the 200 rows"),
        (lambda: ClassIncrementalSplit().get_n_splits(), "y is None"),
        (lambda: FewShotIncrementalSplit(60).stages(LABELS), "base_classes=60 is more"),
        (lambda: FewShotIncrementalSplit(shot=0), "shot must be a whole number"),
        (lambda: DomainIncrementalSplit().stages([0, 1]), "groups is None"),
        (lambda: DomainIncrementalSplit([1, 2]).stages([0], groups=[1]), "order must hold each"),
        (
            lambda: DomainIncrementalSplit().stages([0], y_test=[0], groups=[1]),
            "groups_test is None",
        ),
        (
            lambda: DomainIncrementalSplit().stages(
                [0], y_test=[0], groups=["a"], groups_test=["b"]
            ),
            "holds the domain 'b'",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
