# SPDX-License-Identifier: BSD-3-Clause
"""Moments that follow from moments: of some classes, other labels, other weights, mapped rows.

None of these changes what is held; each returns a new object, equal to one that was given the
other rows from the start. They are methods of `ClassMoments`, which keeps what they work on.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import numpy as np

from skpool.statistics._checks import check_factors, check_map
from skpool.statistics._state import (
    map_moments,
    regroup_moments,
    reweigh_moments,
    take_moments,
)
from skpool.utils import ArrayLike, check_labels

__all__ = ["DerivedMomentsMixin"]


class DerivedMomentsMixin:
    """Mixin for an object that holds the record `_state` and builds another by `_with`."""

    def subset(self, classes: ArrayLike) -> Self:
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

    def relabel(self, mapping: Mapping) -> Self:
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

    def pooled(self) -> Self:
        """Return the moments of all rows as those of one class, labelled 0.

        Returns
        -------
        moments : ClassMoments
            A new object, with ``scatter="shared"`` or "shared_diag" where it was kept by class.
        """
        one = regroup_moments(self._state, np.zeros(len(self.classes_), np.int64), self.scatter)
        kinds = {"per_class": "shared", "diag": "shared_diag"}
        if self._held is not None and self.scatter in kinds:
            one = replace(one, scatter=one.scatter[0], third=None, fourth=None)
        held = None if self._held is None else one
        return self._with(held, scatter=kinds.get(self.scatter, self.scatter))

    def reweighted(self, class_weight: Mapping) -> Self:
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

    def affine(self, A: ArrayLike, b: ArrayLike | None = None) -> Self:
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
