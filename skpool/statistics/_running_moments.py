# SPDX-License-Identifier: BSD-3-Clause
"""RunningMoments: count, mean and scatter of rows without labels.

The label-free face of `ClassMoments` (one class inside), for whitening, scalers and PCA.
"""

from collections.abc import Mapping

import numpy as np

from skpool.statistics._checks import check_option
from skpool.statistics._class_moments import ClassMoments
from skpool.utils import ArrayLike

__all__ = ["RunningMoments"]

_KINDS = {"full": "shared", "diag": "shared_diag"}


class RunningMoments:
    """Count, mean and scatter of rows, exact under adding, removing and merging.

    Parameters
    ----------
    scatter : {"full", "diag"}, default="full"
        Keep all sums of products around the mean, or the squares only.
    product_dtype : {"auto", "float32", "float64"}, default="auto"
        Type in which rows are multiplied, see :class:`ClassMoments`.
    block_rows : int, default=8192
        Rows per product; bounds the working memory.
    fourth_order : bool, default=False
        With ``scatter="full"``, also keep what Ledoit-Wolf's shrinkage needs of the rows, see
        :class:`ClassMoments`.

    Attributes
    ----------
    n_samples : float
        Sum of weights.
    mean_ : ndarray of shape (n_features,) or None
        Weighted mean; None while no rows are held.
    scatter_ : ndarray of shape (n_features, n_features) or (n_features,)
        Sum of weighted products, or squares, around the mean.
    n_features_in_ : int or None
        Width of the rows; None before the first.

    See Also
    --------
    ClassMoments : The same for labelled rows.

    Notes
    -----
    Memory: n_features^2 numbers for "full", n_features for "diag". Time of a batch: one matrix
    product of n_samples * n_features^2.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import RunningMoments
    >>> X = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    >>> moments = RunningMoments().update(X[:2]).update(X[2:])
    >>> moments.mean_
    array([2., 2.])
    >>> bool(np.allclose(moments.covariance(ddof=1), np.cov(X.T)))
    True
    """

    def __init__(
        self,
        scatter: str = "full",
        *,
        product_dtype: str = "auto",
        block_rows: int = 8192,
        fourth_order: bool = False,
    ):
        kind = _KINDS[check_option("scatter", scatter, tuple(_KINDS))]
        # Of one class, the shared scatter is that of the class.
        kind = "per_class" if fourth_order and kind == "shared" else kind
        self._moments = ClassMoments(
            kind, product_dtype=product_dtype, block_rows=block_rows, fourth_order=fourth_order
        )

    def __repr__(self) -> str:
        return (
            f"RunningMoments(scatter={self.scatter!r}, n_samples={self.n_samples:g}, "
            f"n_features={self.n_features_in_})"
        )

    def __sklearn_clone__(self) -> "RunningMoments":
        return self._with(self._moments.__sklearn_clone__())

    def _with(self, moments: ClassMoments) -> "RunningMoments":
        new = RunningMoments(self.scatter)
        new._moments = moments
        return new

    def copy(self) -> "RunningMoments":
        """Return an independent object with the same moments.

        Returns
        -------
        moments : RunningMoments
        """
        return self._with(self._moments.copy())

    @property
    def scatter(self) -> str:
        """Which products are kept."""
        return "diag" if self._moments.scatter == "shared_diag" else "full"

    @property
    def fourth_order(self) -> bool:
        """Whether what Ledoit-Wolf's shrinkage needs is kept."""
        return self._moments.fourth_order

    @property
    def n_features_in_(self) -> int | None:
        """Width of the rows, None before the first."""
        return self._moments.n_features_in_

    @property
    def n_samples(self) -> float:
        """Sum of weights."""
        return float(self._moments.counts_.sum())

    @property
    def mean_(self) -> np.ndarray | None:
        """Weighted mean."""
        return self._moments.means_[0] if self.n_samples else None

    @property
    def scatter_(self) -> np.ndarray:
        """Sum of weighted products, or squares, around the mean."""
        held = self._moments.scatter_
        return held[0] if self._moments.scatter == "per_class" and len(held) else held

    def _labels(self, X: object) -> np.ndarray:
        # What has no rows is refused by the check of X, in its own words.
        shape = X.shape if hasattr(X, "shape") else np.shape(X)
        return np.zeros(shape[0] if shape else 0, dtype=np.int64)

    def update(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> "RunningMoments":
        """Add rows.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Rows, computed where they lie.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of at least 0; None weighs every row 1.

        Returns
        -------
        self : RunningMoments
        """
        self._moments.update(X, self._labels(X), sample_weight)
        return self

    def downdate(self, X: ArrayLike, sample_weight: ArrayLike | None = None) -> "RunningMoments":
        """Remove rows that were added.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Rows that were added before.
        sample_weight : array-like of shape (n_samples,), default=None
            Their weights.

        Returns
        -------
        self : RunningMoments
        """
        self._moments.downdate(X, self._labels(X), sample_weight)
        return self

    def _inside(self, other: object) -> ClassMoments:
        if not isinstance(other, RunningMoments):
            raise TypeError(
                f"other must be a RunningMoments, got {type(other).__name__}; use update for rows."
            )
        return other._moments

    def merge(self, other: "RunningMoments") -> "RunningMoments":
        """Add the moments of other rows.

        Parameters
        ----------
        other : RunningMoments
            With the same `scatter` and width.

        Returns
        -------
        self : RunningMoments
        """
        self._moments.merge(self._inside(other))
        return self

    def subtract(self, other: "RunningMoments") -> "RunningMoments":
        """Remove the moments of rows that were added.

        Parameters
        ----------
        other : RunningMoments
            Moments of some of the rows held.

        Returns
        -------
        self : RunningMoments
        """
        self._moments.subtract(self._inside(other))
        return self

    def __add__(self, other: object) -> "RunningMoments":
        return self.copy().merge(other) if isinstance(other, RunningMoments) else NotImplemented

    def __sub__(self, other: object) -> "RunningMoments":
        return self.copy().subtract(other) if isinstance(other, RunningMoments) else NotImplemented

    def covariance(self, ddof: float = 0) -> np.ndarray:
        """Return the covariance matrix, or the variances.

        Parameters
        ----------
        ddof : float, default=0
            The scatter is divided by ``n_samples - ddof``.

        Returns
        -------
        covariance : ndarray of shape (n_features, n_features) or (n_features,)
        """
        if self.n_samples <= ddof:
            raise ValueError(
                f"A covariance with ddof={ddof} needs more than {ddof} rows (sum of weights), and "
                f"{self.n_samples:g} are held."
            )
        return self.scatter_ / (self.n_samples - ddof)

    def factor(self) -> np.ndarray | None:
        """Return rows whose products add up to `scatter_`, while these are few.

        Returns
        -------
        rows : ndarray of shape (n_rows, n_features) or None
            Fewer rows than features; None where the matrix itself is held.
        """
        return self._moments.total_factor()

    def as_class_moments(self) -> ClassMoments:
        """Return the moments as those of one class, labelled 0.

        Returns
        -------
        moments : ClassMoments
            An independent object.
        """
        return self._moments.copy()

    @classmethod
    def of_classes(cls, moments: ClassMoments) -> "RunningMoments":
        """Build the moments of all rows, whatever their label.

        Parameters
        ----------
        moments : ClassMoments
            With a scatter of any kind but "none".

        Returns
        -------
        moments : RunningMoments
            With the full scatter where it is known, else its diagonal.
        """
        if moments.scatter == "none":
            raise ValueError(
                'ClassMoments with scatter="none" hold no scatter; keep "shared" or "shared_diag".'
            )
        new = cls("diag" if moments.scatter in ("diag", "shared_diag") else "full")
        new._moments = moments.pooled()
        return new

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as plain arrays, for ``np.savez`` (no pickle needed).

        Returns
        -------
        arrays : dict of str to ndarray
            The format of :meth:`ClassMoments.to_arrays`.
        """
        return self._moments.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "RunningMoments":
        """Build the moments from what `to_arrays` returned.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            Such as an opened ``.npz`` file.

        Returns
        -------
        moments : RunningMoments
        """
        inside = ClassMoments.from_arrays(arrays)
        full = inside.scatter in _KINDS.values() or inside.fourth_order
        if not full or (inside.classes_ != 0).any():
            raise ValueError("These arrays hold labelled classes; read them with ClassMoments.")
        new = cls()
        new._moments = inside
        return new
