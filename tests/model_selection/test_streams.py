# SPDX-License-Identifier: BSD-3-Clause
"""Orders of a stream: each row once, and the shares that each kind promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from skpool.model_selection import StreamSplit

KINDS = ["iid", "disjoint", "blurry", "iblurry", "gaussian", "class_iid", "instance"]
LABELS = np.random.RandomState(0).permutation(np.repeat(np.arange(10), 60))


@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(1, 9), min_size=4, max_size=8),
    st.integers(1, 4),
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(0, 9),
)
def test_every_row_arrives_once(kind, sizes, n_tasks, blurry, disjoint_ratio, seed):
    y = np.repeat(np.arange(len(sizes)), sizes)
    splitter = StreamSplit(
        kind,
        n_tasks=n_tasks,
        blurry=blurry,
        disjoint_ratio=disjoint_ratio,
        batch_size=4,
        seed=seed,
    )
    groups = np.arange(len(y)) // 2
    batches = list(splitter.batches(y, groups))
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(len(y)))
    assert [len(rows) for rows in batches[:-1]] == [4] * (len(batches) - 1)
    np.testing.assert_array_equal(np.concatenate(batches), splitter.order(y, groups))
    assert len(splitter.tasks(y, groups)) == n_tasks


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_follows_from_the_seed(kind):
    groups = np.arange(600) // 6
    orders = [StreamSplit(kind, seed=seed).order(LABELS, groups) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert orders[0].tolist() != orders[2].tolist()


def test_disjoint_tasks_share_no_class():
    tasks = StreamSplit("disjoint", n_tasks=4).tasks(LABELS)
    classes = [np.unique(LABELS[rows]) for rows in tasks]
    assert [len(labels) for labels in classes] == [3, 3, 2, 2]
    assert len(np.unique(np.concatenate(classes))) == 10


@pytest.mark.parametrize("blurry", [0, 10, 30, 50, 80])
@pytest.mark.parametrize("n_tasks", [2, 5])
def test_blurry_tasks_hold_the_share_of_other_classes(blurry, n_tasks):
    tasks = StreamSplit("blurry", blurry=blurry, n_tasks=n_tasks, class_order="sorted").tasks(
        LABELS
    )
    own = np.arange(10) // (10 // n_tasks)
    for t, rows in enumerate(tasks):
        others = own[LABELS[rows]] != t
        assert others.mean() == pytest.approx(blurry / 100, abs=1e-9)
        counts = np.bincount(LABELS[rows], minlength=10)
        assert (counts[own == t] == 60 * (100 - blurry) / 100).all()


def test_iblurry_keeps_its_share_of_classes_in_one_task():
    splitter = StreamSplit("iblurry", disjoint_ratio=50, blurry=20, class_order="sorted")
    tasks = splitter.tasks(LABELS)
    counts = np.array([np.bincount(LABELS[rows], minlength=10) for rows in tasks])
    assert (np.sort(counts[:, :5], axis=0)[-1] == 60).all()
    assert (counts[:, 5:].max(axis=0) == 48).all()
    assert ((counts[:, :5] > 0).sum(axis=1) == 1).all()


def test_iblurry_with_no_disjoint_class_is_blurry_and_with_all_is_disjoint():
    def order(kind, **options):
        return StreamSplit(kind, **options).order(LABELS)

    np.testing.assert_array_equal(order("iblurry", disjoint_ratio=0), order("blurry"))
    np.testing.assert_array_equal(order("iblurry", disjoint_ratio=100), order("disjoint"))


def test_no_task_is_empty_where_disjoint_and_blurry_classes_are_few():
    y = np.repeat(np.arange(5), 10)
    tasks = StreamSplit("iblurry", n_tasks=5, disjoint_ratio=60, blurry=0).tasks(y)
    assert [len(rows) for rows in tasks] == [10] * 5


def test_a_class_with_more_rows_than_all_others_gives_what_they_can():
    y = np.repeat([0, 1, 2], [100, 10, 10])
    tasks = StreamSplit("blurry", n_tasks=3, blurry=50, class_order="sorted").tasks(y)
    assert [len(rows) for rows in tasks] == [100, 10, 10]
    counts = np.array([np.bincount(y[rows], minlength=3) for rows in tasks])
    assert counts.tolist() == [[90, 5, 5], [5, 5, 0], [5, 0, 5]]


def test_gaussian_classes_arrive_around_their_times():
    y = np.repeat(np.arange(5), 4000)
    order = StreamSplit("gaussian", class_order="sorted", width=0.05).order(y)
    position = np.empty(len(y))
    position[order] = np.linspace(0, 1, len(y))
    means = [position[y == c].mean() for c in range(5)]
    np.testing.assert_allclose(means, (np.arange(5) + 0.5) / 5, atol=0.01)
    # The place of an arrival is its quantile in the mixture of all classes.
    z = norm.ppf((np.arange(10_000) + 0.5) / 10_000)
    times = 0.5 + 0.05 * z
    places = norm.cdf((times[:, None] - (np.arange(5) + 0.5) / 5) / 0.05).mean(axis=1)
    assert position[y == 2].std() == pytest.approx(places.std(), rel=0.05)


def test_gaussian_becomes_classes_one_by_one_as_the_width_goes():
    narrow = StreamSplit("gaussian", width=1e-6).order(LABELS)
    one_by_one = StreamSplit("class_iid").order(LABELS)
    np.testing.assert_array_equal(LABELS[narrow], LABELS[one_by_one])


def test_class_iid_brings_one_class_after_the_other():
    arriving = LABELS[StreamSplit("class_iid").order(LABELS)]
    assert np.count_nonzero(np.diff(arriving)) == 9
    expected = np.random.RandomState(1993).permutation(10)
    np.testing.assert_array_equal(arriving[::60], expected)


def test_instances_arrive_whole_and_in_their_order():
    groups = np.random.RandomState(1).randint(0, 30, 600)
    order = StreamSplit("instance").order(LABELS, groups)
    assert np.count_nonzero(np.diff(groups[order])) == 29
    for one in range(30):
        assert (np.diff(order[groups[order] == one]) > 0).all()


def test_stream_takes_the_rows_of_batches():
    X, y = np.arange(25) * 2, ["a", "b"] * 12 + ["c"]
    splitter = StreamSplit("iid", batch_size=7)
    got = list(splitter.stream(X, y))
    assert [len(labels) for _, labels in got] == [7, 7, 7, 4]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in got]), 2 * splitter.order(y))
    labels = np.concatenate([labels for _, labels in got])
    np.testing.assert_array_equal(labels, np.array(y)[splitter.order(y)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StreamSplit("random"), "kind must be one of"),
        (lambda: StreamSplit(n_tasks=0), "n_tasks must be a whole number"),
        (lambda: StreamSplit(blurry=101), "blurry must be per cent"),
        (lambda: StreamSplit(width=0), "width must be above 0"),
        (lambda: StreamSplit("instance").order(LABELS), "needs groups"),
        (lambda: StreamSplit("blurry", n_tasks=11).tasks(LABELS), "more than the 10 classes"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
