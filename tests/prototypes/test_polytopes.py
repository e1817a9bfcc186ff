# SPDX-License-Identifier: BSD-3-Clause
"""Vertices of polytopes: their products, lengths and sums."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from skpool.prototypes import fixed_polytope, simplex_etf, simplex_vertices

SIZES = [2, 3, 5, 12, 100]


def simplex_gram(K):
    return np.where(np.eye(K, dtype=bool), 1.0, -1 / (K - 1))


@pytest.mark.parametrize("K", SIZES)
def test_products_of_simplex_vertices_are_equal(K):
    V = simplex_vertices(K)
    assert V.shape == (K, K - 1)
    np.testing.assert_allclose(V @ V.T, simplex_gram(K), atol=1e-12)


@pytest.mark.parametrize("K", SIZES)
def test_simplex_vertices_sum_to_zero(K):
    np.testing.assert_allclose(simplex_vertices(K).sum(axis=0), 0, atol=1e-12)


def test_two_vertices_are_plus_and_minus_one():
    np.testing.assert_allclose(simplex_vertices(2), [[1], [-1]])


@pytest.mark.parametrize(("K", "d"), [(2, 1), (4, 3), (4, 4), (4, 9), (30, 64)])
def test_frame_has_the_products_of_a_simplex_in_any_width(K, d):
    M = simplex_etf(K, d, random_state=0)
    assert M.shape == (K, d)
    np.testing.assert_allclose(M @ M.T, simplex_gram(K), atol=1e-12)
    np.testing.assert_allclose(M.sum(axis=0), 0, atol=1e-12)


def test_frame_is_tight():
    # All directions of its span are covered alike: M'M is K/(K-1) times a projection.
    M = simplex_etf(5, 8, random_state=3)
    S = M.T @ M * 4 / 5
    np.testing.assert_allclose(S @ S, S, atol=1e-12)


def test_frame_follows_its_seed():
    a, b, c = (simplex_etf(4, 6, random_state=seed) for seed in (0, 0, 1))
    assert (a == b).all() and not np.allclose(a, c)


def test_random_frames_point_everywhere_alike():
    first = np.stack([simplex_etf(3, 3, random_state=i)[0] for i in range(2000)])
    np.testing.assert_allclose(first.mean(axis=0), 0, atol=0.06)
    np.testing.assert_allclose(first.T @ first / 2000, np.eye(3) / 3, atol=0.04)


@pytest.mark.parametrize("K", [2, 3, 7, 8, 9, 33])
@pytest.mark.parametrize("kind", ["simplex", "orthoplex", "cube"])
def test_polytope_has_distinct_unit_rows(kind, K):
    V = fixed_polytope(kind, K)
    dimensions = {"simplex": K - 1, "orthoplex": -(-K // 2), "cube": int(np.ceil(np.log2(K)))}
    assert V.shape == (K, dimensions[kind])
    np.testing.assert_allclose(np.linalg.norm(V, axis=1), 1, atol=1e-12)
    assert pdist(V).min() > 1e-3


def test_orthoplex_is_the_axes_and_their_opposites():
    V = fixed_polytope("orthoplex", 8)
    gram = np.round(V @ V.T).astype(int)
    assert (np.sort(gram, axis=1) == [-1, 0, 0, 0, 0, 0, 0, 1]).all()


def test_cube_is_all_corners():
    V = fixed_polytope("cube", 8) * np.sqrt(3)
    corners = {tuple(row) for row in V.round().astype(int).tolist()}
    assert corners == {(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)}


def test_polytope_simplex_is_the_simplex():
    assert (fixed_polytope("simplex", 6) == simplex_vertices(6)).all()


@pytest.mark.parametrize("K", [1, 0, 2.5, "3", True])
def test_wrong_number_of_vertices_is_refused(K):
    with pytest.raises(ValueError, match="at least 2 vertices"):
        simplex_vertices(K)


def test_frame_without_room_is_refused():
    with pytest.raises(ValueError, match="need at least 4 dimensions"):
        simplex_etf(5, 3)


def test_unknown_polytope_is_refused():
    with pytest.raises(ValueError, match=r"one of \['cube', 'orthoplex', 'simplex'\]"):
        fixed_polytope("ball", 4)
