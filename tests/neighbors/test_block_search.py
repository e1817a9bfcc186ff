# SPDX-License-Identifier: BSD-3-Clause
"""Candidates found block by block against a sort of all distances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import config_context

from skpool.neighbors import _block_search
from skpool.neighbors._block_search import candidates_torch

METRICS = ["cosine", "euclidean", "dot"]


def all_distances(q, x, metric):
    """Of integers this small, float64 and float32 hold the same numbers."""
    q, x = q.double().numpy(), x.double().numpy()
    if metric == "euclidean":
        return ((q[:, None] - x) ** 2).sum(axis=2)
    return (1 if metric == "cosine" else 0) - q @ x.T


def check(q, x, k, metric):
    """The values are the k smallest, and each stands beside a row that has it."""
    values, positions = candidates_torch(q, x, k, metric=metric)
    expected = all_distances(q, x, metric)
    # Squares of norms are rounded; products of these integers are not.
    atol = 1e-6 * expected.max(initial=1) if metric == "euclidean" else 0
    np.testing.assert_allclose(values, np.sort(expected, axis=1)[:, :k], rtol=0, atol=atol)
    found = np.take_along_axis(expected, positions.numpy(), axis=1)
    np.testing.assert_allclose(found, values, rtol=0, atol=atol)
    assert all(len(set(row)) == k for row in positions.tolist())


def integers(rng, n, d, largest):
    return torch.from_numpy(rng.integers(-largest, largest + 1, (n, d)).astype(np.float32))


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 400),
    m=st.integers(1, 9),
    d=st.integers(1, 12),
    largest=st.sampled_from([0, 1, 30]),
    rows=st.sampled_from([16, 48, 64, 4096]),
    queries=st.sampled_from([1, 4, 8192]),
    metric=st.sampled_from(METRICS),
    data=st.data(),
)
@settings(deadline=None, max_examples=150)
def test_any_blocks_give_the_smallest_distances(
    seed, n, m, d, largest, rows, queries, metric, data
):
    rng = np.random.default_rng(seed)
    k = data.draw(st.integers(1, n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_block_search, "_ROWS", rows)
        patch.setattr(_block_search, "_QUERIES", queries)
        check(integers(rng, m, d, largest), integers(rng, n, d, largest), k, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_come_nearer_and_nearer_are_all_seen(metric, monkeypatch):
    # The floor rises with every block, and each block holds the whole answer so far.
    monkeypatch.setattr(_block_search, "_ROWS", 64)
    x = torch.arange(1.0, 1001.0)[:, None]
    check(torch.tensor([[1000.0], [1.0]]), x, 30, metric)


def test_copies_of_one_row_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(_block_search, "_ROWS", 256)
    kept = []
    real = _block_search._Largest._keep

    def counted(self, *found):
        real(self, *found)
        kept.append(self._n_found)

    monkeypatch.setattr(_block_search._Largest, "_keep", counted)
    check(torch.ones(50, 3), torch.ones(20_000, 3), 5, "dot")
    assert max(kept) <= 17 * 50 * 5


def test_small_working_memory_changes_nothing():
    rng = np.random.default_rng(0)
    q, x = integers(rng, 40, 6, 9), integers(rng, 3000, 6, 9)
    with config_context(working_memory=0.001):
        assert _block_search._sides(40) == (4, 16)
        check(q, x, 12, "euclidean")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_leave_the_others_right(bad):
    x = torch.arange(1.0, 101.0)[:, None]
    x[7] = bad
    values, positions = candidates_torch(torch.ones(2, 1), x, 5, metric="dot")
    finite = positions[torch.isfinite(values)]
    assert set(finite.tolist()) <= set(range(95, 100))


def test_queries_whose_scores_are_nan_get_no_rows():
    q = torch.tensor([[torch.nan], [1.0]])
    _, positions = candidates_torch(q, torch.arange(100.0)[:, None], 5, metric="dot")
    assert (positions[0] == -1).all()
    assert set(positions[1].tolist()) == set(range(95, 100))
