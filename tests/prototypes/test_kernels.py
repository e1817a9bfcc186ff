# SPDX-License-Identifier: BSD-3-Clause
"""The score kernels against scipy's distances, in both float types."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from skpool.prototypes._kernels import METRICS


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((7, 7))
    return rng.standard_normal((20, 7)), rng.standard_normal((4, 7)), A @ A.T + np.eye(7)


def expected_scores(metric, X, P, covariance):
    return {
        "cosine": lambda: 1 - cdist(X, P, "cosine"),
        "dot": lambda: np.einsum("nd,cd->nc", X, P),
        "euclidean": lambda: -0.5 * cdist(X, P, "sqeuclidean"),
        "mahalanobis": lambda: -0.5 * cdist(X, P, "mahalanobis", VI=np.linalg.inv(covariance)) ** 2,
        "manhattan": lambda: -cdist(X, P, "cityblock"),
    }[metric]()


def score(metric, X, P, covariance):
    options = {}
    if metric == "mahalanobis":
        options["deviations"] = torch.from_numpy(np.linalg.cholesky(covariance))
    return METRICS[metric](torch.from_numpy(X), torch.from_numpy(P), **options)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_equal_scipy(sets, metric):
    scores = score(metric, *sets)
    np.testing.assert_allclose(scores.numpy(), expected_scores(metric, *sets), atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_float32_rows_give_float32_scores(sets, metric):
    X, P, covariance = sets
    scores = score(metric, X.astype(np.float32), P, covariance)
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.numpy(), expected_scores(metric, *sets), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean", "manhattan"])
def test_one_prototype_per_row_equals_the_diagonal(sets, metric):
    X, P, _ = sets
    rows, own = torch.from_numpy(X[:4])[:, None], torch.from_numpy(P)[:, None]
    single = METRICS[metric](rows, own)[:, 0, 0].numpy()
    np.testing.assert_allclose(single, np.diag(score(metric, X[:4], P, None)), atol=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "mahalanobis", "manhattan"])
def test_offset_of_a_thousand_deviations_keeps_float32_distances(sets, metric):
    X, P, covariance = sets
    far = (X + 1000).astype(np.float32)
    # The offset itself rounds the rows; the distances of the rounded rows are the truth.
    expected = expected_scores(metric, far.astype(np.float64), P + 1000, covariance)
    np.testing.assert_allclose(
        score(metric, far, P + 1000, covariance).numpy(), expected, rtol=1e-4
    )


def test_standard_deviations_stand_for_a_diagonal_covariance(sets):
    X, P, _ = sets
    deviations = torch.linspace(0.5, 3, 7, dtype=torch.float64)
    scores = METRICS["mahalanobis"](torch.from_numpy(X), torch.from_numpy(P), deviations=deviations)
    expected = expected_scores("mahalanobis", X, P, np.diag(deviations.numpy() ** 2))
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-12)


def test_cosine_of_a_zero_vector_is_zero():
    X, P = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    assert METRICS["cosine"](X, P).tolist() == [[0.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_cosine_does_not_depend_on_the_scale_of_rows(sets, kind, scale):
    X, P, _ = sets
    rows = (X * scale).astype(kind)
    rows[3] = 0
    expected = 1 - cdist(rows / kind(scale), P, "cosine")
    expected[3] = 0
    scores = METRICS["cosine"](torch.from_numpy(rows), torch.from_numpy(P)).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_cosine_of_extreme_doubles_is_right(sets, scale):
    X, P, _ = sets
    scores = METRICS["cosine"](torch.from_numpy(X * scale), torch.from_numpy(P)).numpy()
    np.testing.assert_allclose(scores, 1 - cdist(X, P, "cosine"), atol=1e-12)


def test_distance_to_itself_is_never_positive_score(sets):
    X = torch.from_numpy(sets[0].astype(np.float32)) * 1e3
    assert (METRICS["euclidean"](X, X.double()) <= 0).all()
