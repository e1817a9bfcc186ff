# SPDX-License-Identifier: BSD-3-Clause
"""The proof that candidates suffice, with back-ends that are deliberately bad."""

import numpy as np
import pytest
import torch

from skpool.neighbors._kernels import (
    _unit_roundoff,
    approximate_distances,
    nearest_of_candidates,
    prepare_rows,
)

METRICS = ["cosine", "euclidean", "dot"]


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    # Tight together and away from 0, so that coarse products confuse neighbours.
    X = 3 + torch.randn(3000, 16, generator=generator)
    return X[:2970], X[2970:]


def prepared(X, Q, metric):
    center = X.mean(dim=0)
    return (prepare_rows(rows, metric=metric, center=center) for rows in (X, Q))


def expected_positions(X, Q, k, metric):
    X, Q = X.double().numpy(), Q.double().numpy()
    if metric == "cosine":
        X, Q = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (X, Q))
    distances = ((Q[:, None] - X) ** 2).sum(axis=2) if metric == "euclidean" else -Q @ X.T
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def proposals(q, x, n_candidates, metric):
    distances = approximate_distances(q, x, metric=metric)
    nearest = distances.topk(n_candidates, dim=1, largest=False)
    return nearest.values, nearest.indices


@pytest.mark.parametrize("metric", METRICS)
def test_products_of_eight_bits_do_not_change_the_answer(rows, metric):
    X, Q = rows
    x, q = prepared(X, Q, metric)
    coarse = proposals(q.bfloat16().float(), x.bfloat16().float(), 10, metric)
    expected = expected_positions(X, Q, 10, metric)
    # Otherwise the test would prove nothing.
    pairs = zip(expected.tolist(), coarse[1].tolist(), strict=True)
    assert any(set(wanted) - set(proposed) for wanted, proposed in pairs)
    _, found = nearest_of_candidates(Q, X, q, x, *coarse, 10, metric=metric, unit=2.0**-7)
    assert (found.numpy() == expected).all()


@pytest.mark.parametrize("metric", METRICS)
def test_candidates_that_a_backend_could_not_find_are_searched_for(rows, metric):
    X, Q = rows[0].clone(), rows[1]
    # The first row is nearest to some query: it must not stand in for the missing ones.
    X[0] *= 10
    Q = torch.cat([X[:1], Q])
    x, q = prepared(X, Q, metric)
    values, positions = proposals(q, x, 12, metric)
    positions[:, 5:] = -1
    distances, found = nearest_of_candidates(Q, X, q, x, values, positions, 10, metric=metric)
    assert (found.numpy() == expected_positions(X, Q, 10, metric)).all()
    assert (distances.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_of_torch_is_seen(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert _unit_roundoff() == 2.0**-7
    finally:
        torch.set_float32_matmul_precision(before)


def test_unknown_precision_of_torch_counts_as_reduced(monkeypatch):
    def refuse():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    assert _unit_roundoff() == 2.0**-7
