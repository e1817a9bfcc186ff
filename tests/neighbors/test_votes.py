# SPDX-License-Identifier: BSD-3-Clause
"""The vote kernels, against loops and limits."""

import numpy as np
import pytest

from skpool.neighbors._votes import WEIGHTS, neighbor_weights, vote_probabilities

D = np.array([[0.0, 0.5, 2.0], [0.1, 0.1, 0.4]])


def weigh(distances, weights, metric="cosine", temperature=0.5):
    return neighbor_weights(distances, weights, metric=metric, temperature=temperature)


def test_exp_weights_are_proportional_to_exp_of_similarity():
    expected = np.exp((1 - D) / 0.5)
    ratio = weigh(D, "exp") / expected
    np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones(3))


def test_exp_weights_of_euclidean_use_squared_distances():
    expected = np.exp(-(D**2) / 0.5)
    ratio = weigh(D, "exp", "euclidean") / expected
    np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones(3))


def test_exp_weights_never_underflow_altogether():
    weights = weigh(np.array([[1e3, 1e6]]), "exp", temperature=1e-12)
    assert weights.tolist() == [[1.0, 0.0]]


def test_distance_weights_of_zero_distances_leave_out_the_others():
    expected = [[1.0, 0.0, 0.0], [10.0, 10.0, 2.5]]
    np.testing.assert_allclose(weigh(D, "distance"), expected)


def test_distance_weights_of_dot_products_are_refused():
    with pytest.raises(ValueError, match="no meaning with metric='dot'"):
        weigh(D, "distance", "dot")


def test_rank_weights_fall_from_k_to_one():
    assert weigh(D, "rank").tolist() == [[3.0, 2.0, 1.0]] * 2


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_weighting_is_positive_for_the_nearest(name):
    assert (weigh(D, name)[:, 0] > 0).all()


def test_callable_gets_the_distances():
    assert (weigh(D, lambda distances: distances + 1) == D + 1).all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda d: d[:, :1], "returned shape"),
        (lambda d: d - 1, "negative"),
        (lambda d: d * np.nan, "NaN"),
        (lambda d: d * 0, "0 for all neighbours"),
    ],
)
def test_callable_that_returns_nonsense_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        weigh(D, function)


def test_votes_equal_a_loop():
    rng = np.random.default_rng(0)
    codes, weights = rng.integers(0, 4, (6, 5)), rng.random((6, 5))
    sizes = np.array([1.0, 2.0, 3.0, 4.0])
    expected = np.zeros((6, 4))
    for i in range(6):
        for j in range(5):
            expected[i, codes[i, j]] += weights[i, j] / sizes[codes[i, j]]
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        vote_probabilities(codes, weights, 4, class_sizes=sizes), expected, rtol=1e-12
    )
