# SPDX-License-Identifier: BSD-3-Clause
"""Solves with a symmetric positive matrix, factored once.

What stands between a covariance and a classifier: discriminants solve with it, Mahalanobis
distances are its quadratic forms, and a ridge path is one decomposition for all penalties.
"""

import numpy as np
import torch

from skpool.statistics._checks import check_option
from skpool.utils import as_tensor

__all__ = ["SymmetricFactor", "product", "symmetric_eigen"]

_METHODS = ("cholesky", "eigh")
# Shares of the mean diagonal that are added, one after the other, until a factor exists.
_JITTERS = 10.0 ** np.arange(-10, -3)
# A decomposition takes as long as ten to thirty Cholesky factors (d = 384 to 1536, one machine).
_FEW_SHIFTS = 10
_MAX_WIDTH = 20_000


def symmetric_eigen(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decompose a symmetric matrix with the threads that sum up moments.

    Threads of two libraries, as of torch and of scipy, would wait for each other.

    Parameters
    ----------
    A : ndarray of shape (n, n)
        In float64.

    Returns
    -------
    values : ndarray of shape (n,)
        Eigenvalues, ascending.
    vectors : ndarray of shape (n, n)
        Eigenvectors, one per column.

    Raises
    ------
    ValueError
        The matrix is wider than 20,000, which would take hours.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import symmetric_eigen
    >>> symmetric_eigen(np.diag([4.0, 1.0]))[0]
    array([1., 4.])
    """
    if len(A) > _MAX_WIDTH:
        raise ValueError(
            f"An eigendecomposition of width {len(A)} is refused (above {_MAX_WIDTH}); take fewer "
            "features, or one penalty at a time."
        )
    values, vectors = torch.linalg.eigh(as_tensor(A))
    return values.numpy(), vectors.numpy()


def product(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Return ``A @ B`` of large float64 matrices, by torch for the same reason."""
    return (as_tensor(A) @ as_tensor(B)).numpy()


def _checked(A: np.ndarray) -> np.ndarray:
    A = np.asarray(A, dtype=np.float64)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or not len(A):
        raise ValueError(f"A has shape {A.shape}; give a square matrix.")
    if not np.isfinite(A).all():
        raise ValueError("A holds NaN or infinity; a factor needs finite numbers.")
    return (A + A.T) / 2


class SymmetricFactor:
    r"""A symmetric matrix, positive up to rounding, factored once for many uses.

    Parameters
    ----------
    A : ndarray of shape (n, n)
        Symmetric, with no eigenvalue below zero but by rounding; its two halves are averaged.
    method : {"cholesky", "eigh"}, default="cholesky"
        Cholesky's factor, or eigenvalues and eigenvectors, which serve any number of shifts.
    jitter : "auto" or float, default="auto"
        Share of the mean diagonal that is added. "auto" adds nothing if the factor exists, then
        1e-10, ten times more, and so on up to 1e-4, and then takes eigenvalues with a floor.

    Attributes
    ----------
    method_ : {"cholesky", "eigh"}
        What the solves use.
    jitter_ : float
        What was added to the diagonal.
    eigenvalues_, eigenvectors_ : ndarray of shape (n,), (n, n)
        Of A as it came, ascending; computed when first asked for.

    Notes
    -----
    Cost: :math:`n^3/3` for Cholesky's factor, ten to thirty times as much for the decomposition;
    a solve is :math:`n^2` per right side. An inverse is never formed.

    References
    ----------
    .. [1] G. H. Golub, C. F. Van Loan, Matrix Computations, 4th edition, 2013, sections 4.2, 8.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import SymmetricFactor
    >>> factor = SymmetricFactor(np.diag([1.0, 4.0]))
    >>> factor.solve(np.array([[2.0], [8.0]]))
    array([[2.],
           [2.]])
    >>> factor.quad(np.array([[2.0, 2.0]]))
    array([5.])
    """

    def __init__(self, A: np.ndarray, method: str = "cholesky", *, jitter: float | str = "auto"):
        self._A = _checked(A)
        check_option("method", method, _METHODS)
        if jitter != "auto" and not (np.isscalar(jitter) and jitter >= 0):
            raise ValueError(f'jitter={jitter!r} is not valid; give "auto" or at least 0.')
        scale = float(np.diagonal(self._A).mean())
        if scale < 0:
            raise ValueError("A has a negative trace; a covariance or a Gram matrix is needed.")
        self._eigen: tuple[np.ndarray, np.ndarray] | None = None
        self._lower: np.ndarray | None = None
        self.jitter_ = 0.0 if jitter == "auto" else float(jitter) * scale
        if method == "cholesky":
            self._factor(scale, () if jitter != "auto" else _JITTERS)
        self.method_ = "eigh" if self._lower is None else "cholesky"

    def __repr__(self) -> str:
        return f"SymmetricFactor(n={len(self._A)}, method={self.method_!r}, jitter={self.jitter_})"

    def _factor(self, scale: float, shares: np.ndarray | tuple) -> None:
        for added in (self.jitter_, *(share * scale for share in shares)):
            shifted = self._A.copy()
            shifted.flat[:: len(shifted) + 1] += added
            # By torch, as the moments are: threads of two libraries wait for each other.
            lower, info = torch.linalg.cholesky_ex(torch.from_numpy(shifted))
            if info == 0:
                self._lower, self.jitter_ = lower.numpy(), float(added)
                return

    def _triangular(self, B: np.ndarray, *, transposed: bool = False) -> np.ndarray:
        """Solve with Cholesky's factor, or its transpose."""
        lower = torch.from_numpy(self._lower)
        right = torch.from_numpy(np.ascontiguousarray(B))
        factor = lower.mT if transposed else lower
        return torch.linalg.solve_triangular(factor, right, upper=transposed).numpy()

    def _decomposed(self) -> tuple[np.ndarray, np.ndarray]:
        if self._eigen is None:
            self._eigen = symmetric_eigen(self._A)
        return self._eigen

    @property
    def eigenvalues_(self) -> np.ndarray:
        """Eigenvalues of A as it came, ascending."""
        return self._decomposed()[0]

    @property
    def eigenvectors_(self) -> np.ndarray:
        """Its eigenvectors, one per column."""
        return self._decomposed()[1]

    def _spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues that can be divided by, jitter included, and the eigenvectors."""
        values, vectors = self._decomposed()
        floor = max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
        if floor == 0:
            raise ValueError("A is zero; add a ridge or a shrinkage target before solving.")
        return np.maximum(values, floor) + self.jitter_, vectors

    def solve(self, B: np.ndarray) -> np.ndarray:
        """Return X with ``A @ X = B``.

        Parameters
        ----------
        B : ndarray of shape (n,) or (n, m)

        Returns
        -------
        X : ndarray of the shape of B
        """
        B = self._right_side(B)
        if self._lower is not None:
            columns = B if B.ndim == 2 else B[:, None]
            return self._triangular(self._triangular(columns), transposed=True).reshape(B.shape)
        values, vectors = self._spectrum()
        projected = vectors.T @ B
        return vectors @ (projected / (values if B.ndim == 1 else values[:, None]))

    def half(self, X: np.ndarray) -> np.ndarray:
        """Return rows in coordinates in which A is the identity.

        Parameters
        ----------
        X : ndarray of shape (m, n)

        Returns
        -------
        Z : ndarray of shape (m, n)
            Rows times the inverse square root of A, up to a rotation that all rows share.
        """
        X = self._rows(X)
        if self._lower is not None:
            return self._triangular(X.T).T
        values, vectors = self._spectrum()
        return (X @ vectors) / np.sqrt(values)

    def half_back(self, D: np.ndarray) -> np.ndarray:
        """Return directions of `half`'s coordinates in those of the rows.

        Parameters
        ----------
        D : ndarray of shape (n, m)
            One direction per column.

        Returns
        -------
        directions : ndarray of shape (n, m)
            For which ``X @ directions`` is ``half(X) @ D``.
        """
        D = self._right_side(D)
        if self._lower is not None:
            return self._triangular(D, transposed=True)
        values, vectors = self._spectrum()
        return vectors @ (D / np.sqrt(values)[:, None])

    def quad(self, X: np.ndarray) -> np.ndarray:
        """Return the quadratic form of the inverse for every row.

        Parameters
        ----------
        X : ndarray of shape (m, n)

        Returns
        -------
        forms : ndarray of shape (m,)
            ``x @ inv(A) @ x``, at least 0.
        """
        Z = self.half(X)
        return np.einsum("ij,ij->i", Z, Z)

    def logdet(self) -> float:
        """Return the logarithm of the determinant, of what the solves use.

        Returns
        -------
        value : float
        """
        if self._lower is not None:
            return 2.0 * float(np.log(np.diagonal(self._lower)).sum())
        return float(np.log(self._spectrum()[0]).sum())

    def solve_shifted(self, B: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """Return the solutions of ``(A + shift * I) @ X = B`` for all shifts.

        Parameters
        ----------
        B : ndarray of shape (n, m)
        shifts : array-like of shape (k,)
            At least 0. For 0 the smallest solution is given where A is singular.

        Returns
        -------
        X : ndarray of shape (k, n, m)

        Notes
        -----
        Few shifts are factored one by one; more share one decomposition.
        """
        B, shifts = self._right_side(B), np.atleast_1d(np.asarray(shifts, dtype=np.float64))
        if (shifts < 0).any() or not np.isfinite(shifts).all():
            raise ValueError(f"shifts={shifts.tolist()} are not valid; give numbers of at least 0.")
        if self._eigen is None and len(shifts) < _FEW_SHIFTS and (shifts > 0).all():
            identity = np.eye(len(self._A))
            parts = [SymmetricFactor(self._A + s * identity).solve(B) for s in shifts]
            return np.stack(parts)
        vectors = self.eigenvectors_
        projected = vectors.T @ B
        return np.stack(
            [vectors @ (projected * weight[:, None]) for weight in self.inverse(shifts)]
        )

    def inverse(self, shifts: np.ndarray) -> np.ndarray:
        """Return the eigenvalues of the inverse of ``A + shift * I`` for all shifts.

        Parameters
        ----------
        shifts : array-like of shape (k,)
            At least 0.

        Returns
        -------
        weights : ndarray of shape (k, n)
            ``1 / (eigenvalues_ + shift)``; 0 for directions in which A vanishes and the shift is
            0.
        """
        values = np.maximum(self.eigenvalues_, 0.0)
        tolerance = values[-1] * len(values) * np.finfo(np.float64).eps
        shifted = values + np.atleast_1d(shifts)[:, None]
        return np.divide(1.0, shifted, out=np.zeros_like(shifted), where=shifted > tolerance)

    def _right_side(self, B: np.ndarray) -> np.ndarray:
        B = np.asarray(B, dtype=np.float64)
        if B.ndim not in (1, 2) or len(B) != len(self._A):
            raise ValueError(
                f"B has shape {B.shape}; give ({len(self._A)},) or ({len(self._A)}, m)."
            )
        return B

    def _rows(self, X: np.ndarray) -> np.ndarray:
        X = np.asarray(X, dtype=np.float64)
        if X.ndim != 2 or X.shape[1] != len(self._A):
            raise ValueError(f"X has shape {X.shape}; give (m, {len(self._A)}).")
        return X
