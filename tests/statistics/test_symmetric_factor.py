# SPDX-License-Identifier: BSD-3-Clause
"""Solves, forms and determinants against scipy; singular and shifted matrices."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from skpool.statistics import SymmetricFactor, symmetric_eigen


def _spd(n: int, seed: int, condition: float = 1e3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return (Q * np.logspace(0, -np.log10(condition), n)) @ Q.T


METHODS = ["cholesky", "eigh"]


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 12), m=st.integers(1, 4), seed=st.integers(0, 99))
def test_solve_equals_scipy(method, n, m, seed):
    A, B = _spd(n, seed), np.random.default_rng(seed).normal(size=(n, m))
    expected = scipy.linalg.solve(A, B, assume_a="pos")
    np.testing.assert_allclose(SymmetricFactor(A, method).solve(B), expected, rtol=1e-9)
    vector = SymmetricFactor(A, method).solve(B[:, 0])
    np.testing.assert_allclose(vector, expected[:, 0], rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_logdet_equals_slogdet(method):
    A = _spd(8, 1)
    assert SymmetricFactor(A, method).logdet() == pytest.approx(np.linalg.slogdet(A)[1])


@pytest.mark.parametrize("method", METHODS)
def test_quad_is_the_form_of_the_inverse(method):
    A, X = _spd(7, 2), np.random.default_rng(0).normal(size=(5, 7))
    expected = np.diagonal(X @ np.linalg.inv(A) @ X.T)
    np.testing.assert_allclose(SymmetricFactor(A, method).quad(X), expected, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_half_whitens(method):
    A = _spd(6, 3)
    half = SymmetricFactor(A, method).half(np.eye(6))
    np.testing.assert_allclose(half @ half.T, np.linalg.inv(A), rtol=1e-8)


@pytest.mark.parametrize("shifts", [[0.3, 2.0], np.logspace(-6, 3, 25), [0.0]])
def test_shifted_solves_equal_a_loop(shifts):
    A, B = _spd(9, 4), np.random.default_rng(4).normal(size=(9, 3))
    found = SymmetricFactor(A).solve_shifted(B, shifts)
    assert found.shape == (len(shifts), 9, 3)
    for shift, X in zip(shifts, found, strict=True):
        np.testing.assert_allclose(X, np.linalg.solve(A + shift * np.eye(9), B), rtol=1e-8)


def test_shift_zero_of_a_singular_matrix_gives_the_smallest_solution():
    rows = np.random.default_rng(5).normal(size=(3, 6))
    A, B = rows.T @ rows, np.random.default_rng(6).normal(size=(6, 2))
    found = SymmetricFactor(A).solve_shifted(B, [0.0])[0]
    np.testing.assert_allclose(found, np.linalg.pinv(A) @ B, atol=1e-8)


def test_singular_matrix_is_solved_with_the_least_jitter_that_serves():
    rows = np.random.default_rng(7).normal(size=(3, 6))
    A = rows.T @ rows
    A -= 1e-13 * np.trace(A) * np.eye(6)
    factor = SymmetricFactor(A)
    assert 0 < factor.jitter_ <= 1e-4 * np.diagonal(A).mean()
    solution = factor.solve(np.ones(6))
    assert np.isfinite(solution).all()
    np.testing.assert_allclose(
        (A + factor.jitter_ * np.eye(6)) @ solution, np.ones(6), rtol=1e-4, atol=1e-4
    )


def test_norm_of_solutions_falls_with_the_shift():
    rows = np.random.default_rng(8).normal(size=(4, 8))
    found = SymmetricFactor(rows.T @ rows).solve_shifted(np.ones((8, 1)), np.logspace(-8, 2, 11))
    assert (np.diff(np.linalg.norm(found[..., 0], axis=1)) < 0).all()


def test_indefinite_matrix_falls_back_to_eigenvalues_with_a_floor():
    factor = SymmetricFactor(np.diag([1.0, -1e-3, 1.0]))
    assert factor.method_ == "eigh"
    assert (factor.quad(np.eye(3)) > 0).all()


def test_halves_of_the_matrix_are_averaged():
    A = _spd(4, 9)
    skew = np.triu(np.full((4, 4), 1e-9), 1)
    whole = SymmetricFactor(A + skew - skew.T).solve(np.eye(4))
    np.testing.assert_array_equal(whole, SymmetricFactor(A).solve(np.eye(4)))


@pytest.mark.parametrize(
    "A, match",
    [
        (np.ones((2, 3)), "square"),
        (np.full((2, 2), np.nan), "NaN"),
        (-np.eye(2), "negative trace"),
        (np.empty((0, 0)), "square"),
    ],
)
def test_bad_matrices_are_refused(A, match):
    with pytest.raises(ValueError, match=match):
        SymmetricFactor(A)


def test_zero_matrix_is_refused_when_solved():
    with pytest.raises(ValueError, match="zero"):
        SymmetricFactor(np.zeros((3, 3))).solve(np.ones(3))


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="method"):
        SymmetricFactor(np.eye(2), "lu")
    with pytest.raises(ValueError, match="jitter"):
        SymmetricFactor(np.eye(2), jitter=-1.0)
    factor = SymmetricFactor(np.eye(2))
    with pytest.raises(ValueError, match="B has shape"):
        factor.solve(np.ones(3))
    with pytest.raises(ValueError, match="X has shape"):
        factor.quad(np.ones((1, 3)))
    with pytest.raises(ValueError, match="shifts"):
        factor.solve_shifted(np.ones((2, 1)), [-1.0])


def test_wide_decomposition_is_refused(monkeypatch):
    monkeypatch.setattr("skpool.statistics._symmetric_factor._MAX_WIDTH", 3)
    with pytest.raises(ValueError, match="width 4"):
        _ = SymmetricFactor(np.eye(4)).eigenvalues_
    with pytest.raises(ValueError, match="width 4"):
        symmetric_eigen(np.eye(4))


@pytest.mark.parametrize("method", ["cholesky", "eigh"])
def test_directions_brought_back_measure_rows_alike(method):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(30, 6))
    X, D = rng.normal(size=(20, 6)), rng.normal(size=(6, 3))
    factor = SymmetricFactor(A.T @ A, method)
    np.testing.assert_allclose(X @ factor.half_back(D), factor.half(X) @ D, atol=1e-12)
