# SPDX-License-Identifier: BSD-3-Clause
"""Fixed targets of classes: the vertices of regular polytopes, as far apart as there is room.

Pure functions. `SimplexClassifier` maps features onto them, so that an embedding keeps its frame
while classes arrive.
"""

from collections.abc import Callable
from numbers import Integral

import numpy as np
from sklearn.utils import check_random_state

__all__ = ["fixed_polytope", "simplex_etf", "simplex_vertices"]


def _checked_count(K: object) -> int:
    if isinstance(K, bool) or not isinstance(K, Integral) or K < 2:
        raise ValueError(f"K={K!r} is not valid; give a whole number of at least 2 vertices.")
    return int(K)


def simplex_vertices(K: int) -> np.ndarray:
    """Return the vertices of the regular simplex, on the unit sphere around zero.

    Parameters
    ----------
    K : int
        Vertices, at least 2.

    Returns
    -------
    vertices : ndarray of shape (K, K - 1)
        Unit rows that sum to 0, with the product -1 / (K - 1) between any two.

    See Also
    --------
    simplex_etf : The same in any number of dimensions, turned at random.

    Notes
    -----
    The unit vectors and one more point at equal distances, centred and scaled [1]_. Cost and
    memory O(K^2).

    References
    ----------
    .. [1] N. Biondi, F. Pernici, M. Bruni, A. Del Bimbo, CoReS: Compatible Representations via
       Stationarity, 2021. <https://arxiv.org/abs/2111.07632>

    Examples
    --------
    >>> from skpool.prototypes import simplex_vertices
    >>> simplex_vertices(2)
    array([[ 1.],
           [-1.]])
    >>> vertices = simplex_vertices(5)
    >>> (vertices @ vertices.T).round(2)[0]
    array([ 1.  , -0.25, -0.25, -0.25, -0.25])
    """
    K = _checked_count(K)
    vertices = np.vstack([np.eye(K - 1), np.full(K - 1, (1 - np.sqrt(K)) / (K - 1))])
    vertices -= vertices.mean(axis=0)
    return vertices / np.linalg.norm(vertices, axis=1, keepdims=True)


def simplex_etf(
    K: int, d: int, *, random_state: int | np.random.RandomState | None = None
) -> np.ndarray:
    r"""Return a simplex equiangular tight frame: a regular simplex, turned at random.

    With a random `U` of orthonormal columns the rows are
    :math:`\sqrt{K / (K - 1)}\,(I - \tfrac1K 1 1^\top)\, U^\top` [1]_.

    Parameters
    ----------
    K : int
        Vertices, at least 2.
    d : int
        Dimensions, at least K - 1.
    random_state : int, RandomState instance or None, default=None
        Of the rotation.

    Returns
    -------
    vertices : ndarray of shape (K, d)
        Unit rows that sum to 0, with the product -1 / (K - 1) between any two.

    Notes
    -----
    Where `d` is K - 1, one dimension short of the formula, `simplex_vertices` are turned instead.
    Cost O(K^2 d).

    References
    ----------
    .. [1] V. Papyan, X. Y. Han, D. L. Donoho, Prevalence of Neural Collapse during the terminal
       phase of deep learning training, 2020. <https://arxiv.org/abs/2008.08186>

    Examples
    --------
    >>> from skpool.prototypes import simplex_etf
    >>> frame = simplex_etf(4, 6, random_state=0)
    >>> (frame @ frame.T).round(2)[0]
    array([ 1.  , -0.33, -0.33, -0.33])
    """
    K = _checked_count(K)
    if isinstance(d, bool) or not isinstance(d, Integral) or d < K - 1:
        raise ValueError(f"d={d!r} is not valid; {K} vertices need at least {K - 1} dimensions.")
    # Any centred simplex serves: the vertices hold the factor of the formula without its rotation.
    vertices = simplex_vertices(K)
    normal = check_random_state(random_state).standard_normal((int(d), K - 1))
    frame, triangle = np.linalg.qr(normal)
    # QR fixes its signs; undone, all rotations are equally likely.
    return vertices @ (frame * np.sign(np.diagonal(triangle))).T


def _orthoplex_vertices(K: int) -> np.ndarray:
    m = (K + 1) // 2
    axes = np.repeat(np.eye(m), 2, axis=0)
    axes[1::2] *= -1
    return (axes + 0.0)[:K]


def _cube_vertices(K: int) -> np.ndarray:
    m = (K - 1).bit_length()
    bits = (np.arange(K)[:, None] >> np.arange(m)) & 1
    return (1.0 - 2.0 * bits) / np.sqrt(m)


_POLYTOPES: dict[str, Callable[[int], np.ndarray]] = {
    "cube": _cube_vertices,
    "orthoplex": _orthoplex_vertices,
    "simplex": simplex_vertices,
}


def fixed_polytope(kind: str = "simplex", K: int = 2) -> np.ndarray:
    """Return vertices of a regular polytope as targets of classes.

    Parameters
    ----------
    kind : {"simplex", "orthoplex", "cube"}, default="simplex"
        All vertices equally far apart; the axes of a cross and their opposites; or the corners
        of a cube. The three take less and less room for the same number of classes, and set them
        less and less apart [1]_.
    K : int, default=2
        Vertices, at least 2.

    Returns
    -------
    vertices : ndarray of shape (K, n_dimensions)
        Unit rows, in K - 1, K / 2 rounded up, or log2(K) rounded up dimensions. Of an orthoplex
        or a cube with more vertices, the first K.

    References
    ----------
    .. [1] F. Pernici, M. Bruni, C. Baecchi, A. Del Bimbo, Regular Polytope Networks, 2021.
       <https://arxiv.org/abs/2103.15632>

    Examples
    --------
    >>> from skpool.prototypes import fixed_polytope
    >>> fixed_polytope("orthoplex", 3)
    array([[ 1.,  0.],
           [-1.,  0.],
           [ 0.,  1.]])
    """
    if kind not in _POLYTOPES:
        raise ValueError(f"kind={kind!r} is not valid; give one of {sorted(_POLYTOPES)}.")
    return _POLYTOPES[kind](_checked_count(K))
