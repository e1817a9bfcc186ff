# SPDX-License-Identifier: BSD-3-Clause
"""Samples by keys: which rows stay does not depend on the order, and looks random."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from skpool.prototypes._class_samples import ClassSample, join_samples, remove_rows, row_keys


def sample_of(rows, seed=0, size=10**9):
    return join_samples(None, ClassSample(rows, row_keys(rows, seed), len(rows)), size=size)


def test_keys_do_not_depend_on_the_float_type_or_the_sign_of_zero():
    rows = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float16)
    rows[0, 0], rows[1] = -0.0, rows[0]
    rows[1, 0] = 0.0
    wide = row_keys(rows.astype(np.float64), 3)
    assert (row_keys(rows.astype(np.float32), 3) == wide).all() and wide[0] == wide[1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_different_rows_have_different_keys(dtype):
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [
            rng.standard_normal((20_000, 5)),
            rng.integers(0, 9, (20_000, 5)),
            2.0 ** rng.integers(-9, 9, (20_000, 5)),
        ]
    ).astype(dtype)
    rows = np.unique(rows, axis=0)
    assert len(np.unique(row_keys(rows, 0))) == len(rows)


@pytest.mark.parametrize("kind", ["normal", "grid", "one feature"])
def test_keys_look_uniform(kind):
    rng = np.random.default_rng(0)
    rows = {
        "normal": lambda: rng.standard_normal((5000, 4)),
        "grid": lambda: np.stack(np.meshgrid(*[np.arange(17.0)] * 3), -1).reshape(-1, 3),
        "one feature": lambda: np.arange(5000.0)[:, None],
    }[kind]()
    keys = row_keys(rows, 1)
    assert kstest(keys / 2.0**64, "uniform").pvalue > 1e-3
    assert chisquare(np.bincount((keys & np.uint64(63)).astype(int), minlength=64)).pvalue > 1e-3


def test_other_seed_gives_other_keys():
    rows = np.random.default_rng(0).standard_normal((500, 4))
    assert not (row_keys(rows, 0) == row_keys(rows, 1)).any()


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_order_and_partition_keeps_the_same_rows(data):
    rows = np.random.default_rng(0).standard_normal((60, 3))
    order = np.array(data.draw(st.permutations(range(60))))
    cuts = sorted(data.draw(st.sets(st.integers(1, 59), max_size=10)))
    size = data.draw(st.integers(1, 70))
    kept = None
    for part in np.split(order, cuts):
        kept = join_samples(kept, sample_of(rows[part]), size=size)
    whole = sample_of(rows, size=size)
    assert (kept.rows == whole.rows).all() and kept.n_seen == 60
    assert whole.is_complete == (size >= 60)


def test_every_row_is_kept_equally_often():
    rows = np.random.default_rng(0).standard_normal((40, 3))
    kept = np.zeros(40)
    for seed in range(600):
        found = sample_of(rows, seed=seed, size=10).rows
        kept += (rows[:, None] == found).all(axis=2).any(axis=1)
    assert kept.sum() == 6000
    assert chisquare(kept).pvalue > 1e-3


@settings(deadline=None, max_examples=40)
@given(gone=st.lists(st.integers(0, 19), min_size=1, max_size=20, unique=True))
def test_removed_rows_leave_the_others(gone):
    # Every row twice: a key takes one of two.
    rows = np.repeat(np.random.default_rng(0).standard_normal((10, 2)), 2, axis=0)
    left = remove_rows(sample_of(rows), row_keys(rows[gone], 0))
    expected = sample_of(np.delete(rows, gone, axis=0))
    assert (left.rows == expected.rows).all() and left.n_seen == 20 - len(gone)


def test_removing_more_than_there_is_is_refused():
    rows = np.random.default_rng(0).standard_normal((5, 2))
    keys = row_keys(rows[[1, 1, 3]], 0)
    with pytest.raises(LookupError, match="1"):
        remove_rows(sample_of(rows), keys)
    with pytest.raises(LookupError, match="2"):
        remove_rows(sample_of(rows), row_keys(rows[:2] + 1, 0))
