# SPDX-License-Identifier: BSD-3-Clause
"""ClassMoments: counts, means and scatters of labelled rows, which add and subtract exactly.

Nearest-mean, discriminant, Gaussian and ridge classifiers are closed forms of these numbers, so
a classifier that keeps them can learn in any order, merge with another and forget rows.
"""

from collections.abc import Mapping

import numpy as np

from skpool.statistics._arrays import read_moments, stack_scatter, write_moments
from skpool.statistics._checks import (
    check_option,
    plain_labels,
    read_only,
)
from skpool.statistics._class_batch import Batch, check_kind, found_labels
from skpool.statistics._derived_moments import DerivedMomentsMixin
from skpool.statistics._row_scatter import RowScatter
from skpool.statistics._state import (
    Moments,
    close_moments,
    empty_moments,
    merge_moments,
    open_moments,
    subtract_moments,
    take_moments,
)
from skpool.statistics._symmetric_products import outer_sum
from skpool.utils import ArrayLike

__all__ = ["ClassMoments"]

_SCATTERS = ("none", "shared", "per_class", "diag", "shared_diag")
_PRODUCT_DTYPES = ("auto", "float32", "float64")


class ClassMoments(DerivedMomentsMixin):
    """Counts, means and scatters of classes, exact under adding, removing and merging.

    The moments of a union are computed from the moments of its parts by the pairwise formula
    of Chan, Golub and LeVeque [1]_, and taken away by the same formula with its signs turned.
    So any order and partition of the rows, on any number of machines, gives the same numbers up
    to rounding, and rows can be forgotten.

    Parameters
    ----------
    scatter : {"none", "shared", "per_class", "diag", "shared_diag"}, default="shared"
        Which sums of products around the class means to keep: nothing, one matrix summed over
        the classes, one matrix per class, the diagonals per class, or one diagonal summed over
        the classes.
    product_dtype : {"auto", "float32", "float64"}, default="auto"
        Type in which rows are multiplied. ``"auto"`` takes float32 for rows of float32 or half
        precision with more than 256 features (unless `block_rows` exceeds 16,384), where it saves
        time and costs about 1e-7 of the scatter, and float64 otherwise. Blocks are added up in
        float64 always.
    block_rows : int, default=8192
        Rows per product; bounds the working memory.
    fourth_order : bool, default=False
        Also keep, with ``scatter="per_class"``, the sums of the squared norms of centred rows
        times these rows, and of their fourth powers, from which Ledoit-Wolf's shrinkage follows
        without the rows. `affine` leaves them behind.
    fingerprint : bool, default=False
        Also keep, per class, the sum modulo 2^64 of a hash of every row and its weight, by which
        `holds_same_rows` tells whether two objects were made of the same rows. It adds the time
        of hashing to every batch. Classes that are relabelled or pooled bring theirs along;
        `affine` and `reweighted` leave them behind, since rows or weights are others then.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels held, sorted.
    counts_ : ndarray of shape (n_classes,)
        Sums of weights.
    counts_sq_ : ndarray of shape (n_classes,)
        Sums of squared weights.
    means_ : ndarray of shape (n_classes, n_features)
        Weighted means.
    scatter_ : ndarray or None
        Sums of weighted products around the class means, (n_features, n_features) for "shared",
        (n_classes, n_features, n_features) for "per_class", (n_classes, n_features) for "diag",
        (n_features,) for "shared_diag", None for "none".
    third_, fourth_ : ndarray of shape (n_classes, n_features), (n_classes,), or None
        What `fourth_order` keeps.
    fingerprints_ : ndarray of shape (n_classes,) of uint64, or None
        What `fingerprint` keeps.
    n_features_in_ : int or None
        Width of the rows; None before the first.

    Notes
    -----
    Memory: n_classes * n_features numbers for the means, and what `scatter` asks for. Time of a
    batch: one matrix product of n_samples * n_features^2. Arrays handed out are read-only and
    never change later: an update replaces them.

    Fewer rows than features of ``scatter="shared"`` are held as they are, centred, in place of
    the matrix, which is smaller, and multiplied when they reach the width, or when `scatter_` or
    anything but `update`, `merge` and `total_factor` is asked for.

    References
    ----------
    .. [1] T. F. Chan, G. H. Golub, R. J. LeVeque, Updating Formulae and a Pairwise Algorithm for
       Computing Sample Variances, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.statistics import ClassMoments
    >>> moments = ClassMoments(scatter="shared_diag")
    >>> moments = moments.update(np.array([[0.0], [2.0], [5.0]]), ["a", "a", "b"])
    >>> moments.means_
    array([[1.],
           [5.]])
    >>> moments.update(np.array([[7.0]]), ["b"]).scatter_
    array([4.])
    >>> moments.downdate(np.array([[5.0]]), ["b"]).means_
    array([[1.],
           [7.]])
    """

    def __init__(
        self,
        scatter: str = "shared",
        *,
        product_dtype: str = "auto",
        block_rows: int = 8192,
        fourth_order: bool = False,
        fingerprint: bool = False,
    ):
        self.scatter = check_option("scatter", scatter, _SCATTERS)
        self.fourth_order = bool(fourth_order)
        self.fingerprint = bool(fingerprint)
        if fourth_order and scatter != "per_class":
            raise ValueError(
                f"fourth_order=True needs the scatter of every class, and scatter={scatter!r} "
                'keeps another; set scatter="per_class".'
            )
        self.product_dtype = check_option("product_dtype", product_dtype, _PRODUCT_DTYPES)
        if isinstance(block_rows, bool) or not isinstance(block_rows, (int, np.integer)):
            raise TypeError(f"block_rows={block_rows!r} is not valid; give a whole number.")
        if block_rows < 1:
            raise ValueError(f"block_rows={block_rows!r} is not valid; give at least 1.")
        self.block_rows = int(block_rows)
        self._held: Moments | None = None

    def __repr__(self) -> str:
        return (
            f"ClassMoments(scatter={self.scatter!r}, n_classes={len(self.classes_)}, "
            f"n_features={self.n_features_in_})"
        )

    def __sklearn_clone__(self) -> "ClassMoments":
        return self._with(None)

    def _with(self, held: Moments | None, *, scatter: str | None = None) -> "ClassMoments":
        kind = self.scatter if scatter is None else scatter
        new = ClassMoments(
            kind,
            product_dtype=self.product_dtype,
            block_rows=self.block_rows,
            fourth_order=self.fourth_order
            and kind == self.scatter
            and (held is None or held.third is not None),
            fingerprint=self.fingerprint and (held is None or held.fingerprints is not None),
        )
        new._held = held
        return new

    def _empty(self, n_features: int) -> Moments:
        kept = {"fourth_order": self.fourth_order, "fingerprint": self.fingerprint}
        return empty_moments(n_features, self.scatter, **kept)

    def copy(self) -> "ClassMoments":
        """Return an independent object with the same moments.

        Returns
        -------
        moments : ClassMoments
        """
        # What is held is never changed in place, so it can be shared.
        return self._with(self._held)

    @property
    def _record(self) -> Moments:
        """What is held, its scatter perhaps open or rows."""
        return self._empty(0) if self._held is None else self._held

    @property
    def _state(self) -> Moments:
        """What is held, its scatter closed from here on: the same numbers in another form."""
        if self._held is None:
            return close_moments(self._record)
        self._held = close_moments(self._held)
        return self._held

    @property
    def _addend(self) -> Moments:
        """What is held in a form that merges: rows as they are, everything else closed."""
        return self._record if isinstance(self._record.scatter, RowScatter) else self._state

    def __getstate__(self) -> dict:
        return vars(self) | {"_held": None if self._held is None else self._state}

    @property
    def n_features_in_(self) -> int | None:
        """Width of the rows, None before the first."""
        return None if self._held is None else self._held.means.shape[1]

    @property
    def classes_(self) -> np.ndarray:
        """Labels held, sorted."""
        return read_only(self._record.classes)

    @property
    def counts_(self) -> np.ndarray:
        """Sums of weights of the classes."""
        return read_only(self._record.counts)

    @property
    def counts_sq_(self) -> np.ndarray:
        """Sums of squared weights of the classes."""
        return read_only(self._record.counts_sq)

    @property
    def means_(self) -> np.ndarray:
        """Weighted means of the classes."""
        return read_only(self._record.means)

    @property
    def scatter_(self) -> np.ndarray | None:
        """Sums of weighted products around the class means."""
        held = stack_scatter(self._state)
        return None if held is None else read_only(held)

    @property
    def third_(self) -> np.ndarray | None:
        """Sums of the squared norms of centred rows times these rows."""
        return None if self._state.third is None else read_only(self._state.third)

    @property
    def fourth_(self) -> np.ndarray | None:
        """Sums of the fourth powers of the norms of centred rows."""
        return None if self._state.fourth is None else read_only(self._state.fourth)

    @property
    def fingerprints_(self) -> np.ndarray | None:
        """Sums of hashes of the rows of the classes."""
        prints = self._record.fingerprints
        return None if prints is None else read_only(prints)

    def _checked(self, X: object, y: object, sample_weight: object) -> Batch:
        sizes = {"product_dtype": self.product_dtype, "block_rows": self.block_rows}
        return Batch.checked(X, y, sample_weight, self._held, **sizes)

    def _record_of(self, batch: Batch, held: Moments) -> Moments:
        kept = {"fourth_order": self.fourth_order, "fingerprint": self.fingerprint}
        return batch.record(held, self.scatter, block_rows=self.block_rows, **kept)

    def update(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> "ClassMoments":
        """Add rows; labels never seen before are welcome.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Rows, computed where they lie; half precision is read as float32, block by block.
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of at least 0; None weighs every row 1.

        Returns
        -------
        self : ClassMoments
        """
        batch = self._checked(X, y, sample_weight)
        # What was emptied starts anew.
        held = self._record if len(self._record.classes) else self._empty(batch.X.shape[1])
        if not batch.fits_as_rows(held):
            held = open_moments(held, batch.dtype)
        added = self._record_of(batch, held)
        self._held = merge_moments(held, added, self.scatter, batch.dtype)
        return self

    def downdate(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> "ClassMoments":
        """Remove rows that were added; a class with nothing left disappears.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Rows that were added before.
        y : array-like of shape (n_samples,)
            Their labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Their weights.

        Returns
        -------
        self : ClassMoments
        """
        batch = self._checked(X, y, sample_weight)
        removed = close_moments(self._record_of(batch, self._state))
        self._held = subtract_moments(self._state, removed, self.scatter, batch.dtype)
        return self

    def _check_other(self, other: object) -> Moments:
        if not isinstance(other, ClassMoments):
            raise TypeError(
                f"other must be a ClassMoments, got {type(other).__name__}; use update for rows."
            )
        if other.scatter != self.scatter:
            raise ValueError(
                f"other keeps scatter={other.scatter!r} and these moments {self.scatter!r}; only "
                "equal kinds combine."
            )
        if other.fourth_order != self.fourth_order:
            raise ValueError(
                f"other has fourth_order={other.fourth_order} and these moments "
                f"{self.fourth_order}; only equal kinds combine."
            )
        if other.fingerprint != self.fingerprint:
            raise ValueError(
                f"other has fingerprint={other.fingerprint} and these moments "
                f"{self.fingerprint}; only equal kinds combine."
            )
        d, width = self.n_features_in_, other.n_features_in_
        if None not in (d, width) and d != width:
            raise ValueError(f"other has {width} features, but these moments hold {d} features.")
        check_kind(self._record.classes, other._record.classes)
        return other._addend

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """Add the moments of other rows.

        Parameters
        ----------
        other : ClassMoments
            With the same `scatter` and width.

        Returns
        -------
        self : ClassMoments
        """
        added = self._check_other(other)
        if other._held is not None:
            held = self._addend if self._held is not None else self._empty(added.means.shape[1])
            self._held = merge_moments(held, added, self.scatter)
        return self

    def subtract(self, other: "ClassMoments") -> "ClassMoments":
        """Remove the moments of rows that were added.

        Parameters
        ----------
        other : ClassMoments
            Moments of some of the rows held.

        Returns
        -------
        self : ClassMoments
        """
        self._check_other(other)
        if other._held is not None:
            self._held = subtract_moments(self._state, other._state, self.scatter)
        return self

    def __add__(self, other: object) -> "ClassMoments":
        return self.copy().merge(other) if isinstance(other, ClassMoments) else NotImplemented

    def __sub__(self, other: object) -> "ClassMoments":
        if not isinstance(other, ClassMoments):
            return NotImplemented
        # Closed before it is copied, so that rows are not multiplied for every difference.
        return self._with(None if self._held is None else self._state).subtract(other)

    def holds_same_rows(self, other: "ClassMoments") -> bool:
        """Tell whether other moments were made of the same rows, by their fingerprints.

        Parameters
        ----------
        other : ClassMoments
            With ``fingerprint=True`` as these.

        Returns
        -------
        same : bool
            Whether both hold the same classes and, in each, the same multiset of rows with
            weights, up to a chance of 2^-64. Exact, whatever order the rows came and went in.
        """
        if not isinstance(other, ClassMoments) or not (self.fingerprint and other.fingerprint):
            raise ValueError(
                f"{self!r} and {other!r} do not both hold fingerprints; learn the rows with "
                "ClassMoments(fingerprint=True)."
            )
        same = np.array_equal(self.classes_, other.classes_)
        return same and np.array_equal(self.fingerprints_, other.fingerprints_)

    def _known(self, labels: object, name: str) -> np.ndarray:
        labels = np.atleast_1d(plain_labels(np.asarray(labels)))
        check_kind(self._record.classes, labels)
        known, _ = found_labels(self._record.classes, labels)
        if not known.all():
            raise ValueError(
                f"{name}: class {labels[~known][0].item()!r} is not held; held are "
                f"{len(self.classes_)} classes, see `classes_`."
            )
        return labels

    def forget_class(self, c: object) -> "ClassMoments":
        """Remove one class.

        Parameters
        ----------
        c : label
            A class that is held.

        Returns
        -------
        self : ClassMoments

        Raises
        ------
        ValueError
            The class is not held, or the scatter is shared, so that the part of this class is
            not known.
        """
        label = self._known(c, "c")
        if self.scatter in ("shared", "shared_diag"):
            raise ValueError(
                f"The scatter of class {label[0].item()!r} alone is not known with "
                f"scatter={self.scatter!r}; remove its rows with downdate(X, y), or keep "
                'scatter="per_class".'
            )
        self._held = take_moments(self._state, self._state.classes != label[0], self.scatter)
        return self

    def _centre(self) -> tuple[np.ndarray, np.ndarray]:
        state = self._record
        if not len(state.classes):
            raise ValueError("These moments hold no rows; call update first.")
        mean = (state.counts / state.counts.sum()) @ state.means
        return mean, (state.means - mean) * np.sqrt(state.counts)[:, None]

    def between(self) -> np.ndarray:
        """Return the scatter of the class means around the mean of all rows.

        Returns
        -------
        B : ndarray of shape (n_features, n_features) or (n_features,)
            Weighted by the counts; a diagonal where `scatter` is one.
        """
        _, rows = self._centre()
        diagonal = self.scatter in ("diag", "shared_diag")
        return (rows**2).sum(axis=0) if diagonal else outer_sum(rows)

    def total(self) -> tuple[float, np.ndarray, np.ndarray | None]:
        """Return count, mean and scatter of all rows, whatever their label.

        Returns
        -------
        n : float
            Sum of weights.
        mean : ndarray of shape (n_features,)
        T : ndarray of shape (n_features, n_features) or (n_features,), or None
            Scatter around `mean`; a diagonal where `scatter` is one, None where it is "none".
        """
        mean, _ = self._centre()
        n, scatter = float(self._state.counts.sum()), self._state.scatter
        if scatter is None:
            return n, mean, None
        if self.scatter in ("per_class", "diag"):
            scatter = sum(scatter[1:], start=scatter[0])
        return n, mean, scatter + self.between()

    def total_factor(self) -> np.ndarray | None:
        """Return rows whose products add up to the scatter of all rows, while these are few.

        Returns
        -------
        rows : ndarray of shape (n_rows, n_features) or None
            Fewer rows than features, with ``rows.T @ rows`` what `total` gives; the last
            n_classes are the class means less the mean of all, by the roots of the counts. None
            where the matrix itself is held.
        """
        held = self._record.scatter
        if not isinstance(held, RowScatter):
            return None
        _, between = self._centre()
        rows = held.rows(between)
        return rows if len(rows) < held.width else None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as plain arrays, for ``np.savez`` (no pickle needed).

        Returns
        -------
        arrays : dict of str to ndarray
            With a format number under "format".
        """
        settings = {
            "scatter": self.scatter,
            "product_dtype": self.product_dtype,
            "block_rows": self.block_rows,
        }
        return write_moments(self._state, settings)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "ClassMoments":
        """Build the moments from what `to_arrays` returned.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            Such as an opened ``.npz`` file.

        Returns
        -------
        moments : ClassMoments

        Raises
        ------
        ValueError
            Another format, a missing array, or shapes that do not fit together.
        """
        state, settings = read_moments(arrays)
        new = cls(**settings)
        if state.means.shape[1]:
            new._held = state
        return new
