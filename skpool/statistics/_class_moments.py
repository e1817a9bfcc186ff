# SPDX-License-Identifier: BSD-3-Clause
"""ClassMoments: counts, means and scatters of labelled rows, which add and subtract exactly.

Nearest-mean, discriminant, Gaussian and ridge classifiers are closed forms of these numbers, so
a classifier that keeps them can learn in any order, merge with another and forget rows.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from skpool.statistics._arrays import read_moments, stack_scatter, write_moments
from skpool.statistics._checks import (
    check_factors,
    check_map,
    check_option,
    check_rows,
    check_weights,
    label_kind,
    plain_labels,
    read_only,
)
from skpool.statistics._kernels import batch_moments, higher_moments, resolve_product_dtype
from skpool.statistics._open_scatter import OpenScatter
from skpool.statistics._state import (
    Moments,
    close_moments,
    empty_moments,
    map_moments,
    merge_moments,
    regroup_moments,
    reweigh_moments,
    subtract_moments,
    take_moments,
)
from skpool.statistics._symmetric_products import outer_sum
from skpool.utils import ArrayLike, as_tensor, check_labels

__all__ = ["ClassMoments"]

_SCATTERS = ("none", "shared", "per_class", "diag", "shared_diag")
_PRODUCT_DTYPES = ("auto", "float32", "float64")


class ClassMoments:
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
    n_features_in_ : int or None
        Width of the rows; None before the first.

    Notes
    -----
    Memory: n_classes * n_features numbers for the means, and what `scatter` asks for. Time of a
    batch: one matrix product of n_samples * n_features^2. Arrays handed out are read-only and
    never change later: an update replaces them.

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
    ):
        self.scatter = check_option("scatter", scatter, _SCATTERS)
        self.fourth_order = bool(fourth_order)
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

    def _with(self, held: Moments | None) -> "ClassMoments":
        new = ClassMoments(
            self.scatter,
            product_dtype=self.product_dtype,
            block_rows=self.block_rows,
            fourth_order=self.fourth_order and (held is None or held.third is not None),
        )
        new._held = held
        return new

    def _empty(self, n_features: int) -> Moments:
        return empty_moments(n_features, self.scatter, fourth_order=self.fourth_order)

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
        """What is held, its scatter perhaps open."""
        return self._empty(0) if self._held is None else self._held

    @property
    def _state(self) -> Moments:
        """What is held, its scatter closed from here on: the same numbers in another form."""
        if self._held is not None:
            self._held = close_moments(self._held)
        return self._record

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

    def _batch(self, X: object, y: object, sample_weight: object) -> tuple[Moments, torch.dtype]:
        X = check_rows(X, self.n_features_in_)
        y = check_labels(y, n_samples=X.shape[0])
        weights = check_weights(sample_weight, X.shape[0])
        record = self._record
        self._checklabel_kind(y)
        dtype = resolve_product_dtype(
            self.product_dtype,
            as_tensor(X[:1]).dtype,
            n_features=X.shape[1],
            block_rows=self.block_rows,
        )
        classes, codes = np.unique(y, return_inverse=True)
        reference = np.full((len(classes), X.shape[1]), np.nan)
        known, at = self._lookup(classes)
        if known.any():
            # An open scatter goes on around the points that it has.
            is_open = isinstance(record.scatter, OpenScatter)
            reference[known] = (record.scatter.points if is_open else record.means)[at]
        counts, means, scatter = batch_moments(
            X,
            codes,
            reference=reference,
            weights=weights,
            scatter=self.scatter,
            dtype=dtype,
            block_rows=self.block_rows,
        )
        squares = counts if weights is None else np.bincount(codes, weights=weights**2)
        higher = (None, None)
        if self.fourth_order:
            higher = higher_moments(as_tensor(X), codes, means, weights)
        batch = Moments(classes, counts, squares, means, scatter, *higher)
        return take_moments(batch, counts > 0, self.scatter), dtype

    def _lookup(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the (sorted) classes are held, and where."""
        held = self._record.classes
        if not len(held):
            return np.zeros(len(classes), dtype=bool), np.zeros(0, dtype=np.intp)
        at = np.minimum(np.searchsorted(held, classes), len(held) - 1)
        known = held[at] == classes
        return known, at[known]

    def _checklabel_kind(self, labels: np.ndarray) -> None:
        held = self._record.classes
        if len(held) and len(labels) and label_kind(held) != label_kind(labels):
            raise ValueError(
                f"The labels given are {label_kind(labels)} (dtype {labels.dtype}) and those "
                f"held are {label_kind(held)} (dtype {held.dtype}); use one kind of label."
            )

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
        batch, dtype = self._batch(X, y, sample_weight)
        held = self._held or self._empty(batch.means.shape[1])
        self._held = merge_moments(held, batch, self.scatter, dtype)
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
        batch, dtype = self._batch(X, y, sample_weight)
        self._held = subtract_moments(self._state, close_moments(batch), self.scatter, dtype)
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
        d, width = self.n_features_in_, other.n_features_in_
        if None not in (d, width) and d != width:
            raise ValueError(f"other has {width} features, but these moments hold {d} features.")
        self._checklabel_kind(other._state.classes)
        return other._state

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
            held = self._state if self._held is not None else self._empty(added.means.shape[1])
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
        removed = self._check_other(other)
        if other._held is not None:
            self._held = subtract_moments(self._state, removed, self.scatter)
        return self

    def __add__(self, other: object) -> "ClassMoments":
        return self.copy().merge(other) if isinstance(other, ClassMoments) else NotImplemented

    def __sub__(self, other: object) -> "ClassMoments":
        return self.copy().subtract(other) if isinstance(other, ClassMoments) else NotImplemented

    def _known(self, labels: object, name: str) -> np.ndarray:
        labels = np.atleast_1d(plain_labels(np.asarray(labels)))
        self._checklabel_kind(labels)
        known, _ = self._lookup(labels)
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

    def subset(self, classes: ArrayLike) -> "ClassMoments":
        """Return the moments of some of the classes.

        Parameters
        ----------
        classes : array-like of labels
            Classes to keep, all of them held.

        Returns
        -------
        moments : ClassMoments
            A new object.
        """
        keep = np.isin(self._state.classes, self._known(classes, "classes"))
        if self.scatter in ("shared", "shared_diag") and not keep.all():
            raise ValueError(
                f"The scatter of some classes alone is not known with scatter={self.scatter!r}; "
                'keep scatter="per_class", "diag" or "none".'
            )
        return self._with(take_moments(self._state, keep, self.scatter))

    def relabel(self, mapping: Mapping) -> "ClassMoments":
        """Return the moments under other labels; classes given one label become one, exactly.

        Parameters
        ----------
        mapping : dict
            Old label to new label; classes that are not in it keep theirs.

        Returns
        -------
        moments : ClassMoments
            A new object, equal to one that was given the new labels from the start.
        """
        if self._held is None:
            return self.copy()
        new = [mapping.get(label, label) for label in self._state.classes.tolist()]
        labels = check_labels(new, n_samples=len(new)) if new else self._state.classes
        return self._with(regroup_moments(self._state, labels, self.scatter))

    def pooled(self) -> "ClassMoments":
        """Return the moments of all rows as those of one class, labelled 0.

        Returns
        -------
        moments : ClassMoments
            A new object, with ``scatter="shared"`` or "shared_diag" where it was kept by class.
        """
        one = regroup_moments(self._state, np.zeros(len(self.classes_), np.int64), self.scatter)
        kinds = {"per_class": "shared", "diag": "shared_diag"}
        if self._held is not None and self.scatter in kinds:
            one = replace(one, scatter=one.scatter[0])
        new = ClassMoments(
            kinds.get(self.scatter, self.scatter),
            product_dtype=self.product_dtype,
            block_rows=self.block_rows,
        )
        new._held = None if self._held is None else one
        return new

    def reweighted(self, class_weight: Mapping) -> "ClassMoments":
        """Return the moments of the same rows with the weights of some classes multiplied.

        Parameters
        ----------
        class_weight : dict
            Label to factor, above 0; classes that are not in it keep their weights.

        Returns
        -------
        moments : ClassMoments
            A new object, equal to one that was given the new weights from the start.
        """
        factors = check_factors(class_weight, self.classes_, self.scatter)
        if class_weight:
            self._known(list(class_weight), "class_weight")
        return self._with(reweigh_moments(self._state, factors, self.scatter))

    def affine(self, A: ArrayLike, b: ArrayLike | None = None) -> "ClassMoments":
        """Return the moments of the rows mapped to ``x @ A + b``.

        Parameters
        ----------
        A : array-like of shape (n_features, n_outputs) or (n_features,)
            Linear map, or one factor per feature.
        b : array-like of shape (n_outputs,), default=None
            Offset.

        Returns
        -------
        moments : ClassMoments
            A new object.
        """
        A, b = check_map(A, b, self.n_features_in_, self.scatter)
        return self._with(map_moments(self._state, A, b, self.scatter))

    def _centre(self) -> tuple[np.ndarray, np.ndarray]:
        state = self._state
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
