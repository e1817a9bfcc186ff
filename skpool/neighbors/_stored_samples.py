# SPDX-License-Identifier: BSD-3-Clause
"""StoredSamplesMixin: rows in a `NeighborIndex`, labels beside it, and how both come and go.

Under the classifiers of this room that keep their training samples; what they do with the
neighbours is their own.
"""

from typing import Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skpool.base import IncrementalMixin
from skpool.neighbors._index import NeighborIndex
from skpool.utils import ArrayLike, as_tensor, unchanged_on_error

__all__ = ["StoredSamplesMixin"]


class StoredSamplesMixin(IncrementalMixin):
    """Mixin for classifiers that keep their training samples.

    Notes
    -----
    A subclass writes `_new_index()`, the empty index that samples are kept in. It finds them in
    `index_`, `train_labels_` and `_codes`, their classes as columns of `classes_`.
    """

    def fit(self, X: ArrayLike, y: object) -> Self:
        """Store these samples alone.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors; they are copied, and searched where they lie.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.

        Returns
        -------
        self : estimator
            The fitted classifier. If the call fails, it stays as it was.
        """
        return super().fit(X, y)

    def partial_fit(self, X: ArrayLike, y: object, classes: object = None) -> Self:
        """Store these samples beside all earlier ones.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels; labels never seen before are welcome in any call.
        classes : array-like of shape (n_classes,), default=None
            Labels to announce before they have samples. They are listed in `classes_` with
            probability 0. Not required.

        Returns
        -------
        self : estimator
            The updated classifier. If the call fails, it stays as it was.
        """
        return super().partial_fit(X, y, classes)

    def forget(self, X: ArrayLike, y: object) -> Self:
        """Remove stored samples.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            The feature vectors exactly as they were stored. Of equal samples with one label, as
            many are removed as are given, the last stored first.
        y : array-like of shape (n_samples,)
            Their labels.

        Returns
        -------
        self : estimator
            The updated classifier. If the call fails, it stays as it was.
        """
        return super().forget(X, y)

    def forget_ids(self, ids: ArrayLike) -> Self:
        """Remove stored samples by their ids.

        Parameters
        ----------
        ids : array-like of shape (n_ids,)
            Ids in `index_`, which counts samples from 0 in order of arrival and never uses an id
            again.

        Returns
        -------
        self : estimator
            The updated classifier. If the call fails, it stays as it was.
        """
        check_is_fitted(self)
        with unchanged_on_error(self):
            self._remove(self.index_._positions(np.unique(np.asarray(ids, dtype=np.int64))))
            self._refresh()
        return self

    @property
    def train_features_(self) -> np.ndarray:
        """Features of the stored samples, in the order of `train_labels_`; read-only."""
        # Fitted attributes do not exist before fit: hasattr must say so.
        if not hasattr(self, "index_"):
            raise AttributeError(
                f"This {type(self).__name__} is not fitted, so has no 'train_features_'."
            )
        return self.index_.vectors

    def _new_index(self) -> NeighborIndex:
        raise NotImplementedError

    def _counts(self) -> np.ndarray:
        return np.bincount(self._codes, minlength=len(self.classes_))

    def _seen_classes(self) -> np.ndarray:
        return self._stored_classes

    def _refresh(self) -> None:
        super()._refresh()
        self._codes = np.searchsorted(self.classes_, self.train_labels_)

    def _reset(self) -> None:
        self.index_ = self._new_index()
        self.train_labels_ = self._stored_classes = None

    def _store(self, X: ArrayLike, y: np.ndarray) -> None:
        if self.train_labels_ is None or len(self.train_labels_) == 0:
            self.train_labels_, self._stored_classes = y.copy(), np.unique(y)
        else:
            self.train_labels_ = np.concatenate([self.train_labels_, y])
            self._stored_classes = np.union1d(self._stored_classes, y)
        # Last, because it changes the index in place; it adds all rows or none.
        self.index_.add(X)

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: None) -> None:
        self._store(X, y)

    def _remove(self, positions: np.ndarray) -> None:
        self.train_labels_ = np.delete(self.train_labels_, positions)
        self._stored_classes = np.unique(self.train_labels_)
        self.index_.remove(self.index_.ids[positions])

    def _forget(self, X: ArrayLike, y: np.ndarray, sample_weight: None) -> None:
        stored = self.train_features_
        places: dict[tuple[object, bytes], list[int]] = {}
        members = np.flatnonzero(np.isin(self.train_labels_, y))
        for i, row in zip(members.tolist(), _row_bytes(stored[members]), strict=True):
            places.setdefault((self.train_labels_[i], row), []).append(i)
        found = []
        for i, (label, row) in enumerate(zip(y, _row_bytes(X), strict=True)):
            if not places.get((label, row)):
                raise ValueError(
                    f"Row {i} of X with label {label.item()!r} is not stored, or not as often as "
                    "it is given; forget takes samples exactly as they were stored."
                )
            found.append(places[label, row].pop())
        self._remove(np.array(found))

    def _forget_class(self, label: object) -> None:
        self._remove(np.flatnonzero(self.train_labels_ == label))

    def _merge(self, other: Self) -> None:
        self._store(other.train_features_, other.train_labels_)

    def _map_to(self, mapped: Self, A: np.ndarray, b: np.ndarray) -> None:
        rows = self.train_features_
        mapped._reset()
        mapped._store((rows @ A + b).astype(rows.dtype), self.train_labels_)


def _row_bytes(X: ArrayLike) -> list[bytes]:
    """Return each row as bytes that are equal if and only if all values are."""
    # Widening is exact, and adding 0 makes -0 equal to 0.
    rows = as_tensor(X).cpu().double().numpy() + 0.0
    return [row.tobytes() for row in rows]
