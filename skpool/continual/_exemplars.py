# SPDX-License-Identifier: BSD-3-Clause
"""ExemplarMemory: a bounded choice of rows per class, and the classifier by their means.

The memory of iCaRL. Every class has an ordered list of rows, and when classes arrive the lists
are cut off, not chosen anew. `NearestMeanOfExemplarsClassifier` decides by the means of what is
kept; `ReplayBuffer` can keep its rows here.
"""

import copy
import warnings
from collections.abc import Callable
from numbers import Integral
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.continual._herding import herding
from skpool.prototypes import NearestClassMeanClassifier
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_labels,
    joined_labels,
    unchanged_on_error,
    unit_rows,
    validate_vectors,
    widened,
)

__all__ = ["SELECTIONS", "ExemplarMemory", "NearestMeanOfExemplarsClassifier"]


class Candidates(NamedTuple):
    """What a choice is made from: unit rows of one class."""

    unit: np.ndarray  # (n, d), float64
    mean: np.ndarray  # (d,), of all rows of the class so far, also of those not kept
    keys: np.ndarray  # (n,), random numbers that stay with the rows


def order_by_herding(given: Candidates, m: int) -> np.ndarray:
    """Return rows whose running mean stays near the mean of the class."""
    return herding(given.unit, m, target=given.mean)


def order_at_random(given: Candidates, m: int) -> np.ndarray:
    """Return the rows of the smallest keys: at any time a uniform sample of all rows so far."""
    return np.argsort(given.keys, kind="stable")[:m]


def order_by_distance(given: Candidates, m: int) -> np.ndarray:
    """Return the rows nearest to the mean of the class."""
    away = np.square(given.unit - given.mean).sum(axis=1)
    return np.argsort(away, kind="stable")[:m]


def order_by_medoids(given: Candidates, m: int) -> np.ndarray:
    """Return medoids one by one, each lowering most the distances of all rows to the nearest."""
    apart = cdist(given.unit, given.unit)
    nearest, chosen = np.full(len(apart), np.inf), []
    for _ in range(min(m, len(apart))):
        total = np.minimum(nearest[:, None], apart).sum(axis=0)
        total[chosen] = np.inf
        chosen.append(int(total.argmin()))
        nearest = np.minimum(nearest, apart[:, chosen[-1]])
    return np.array(chosen)


SELECTIONS: dict[str, Callable[[Candidates, int], np.ndarray]] = {
    "closest": order_by_distance,
    "herding": order_by_herding,
    "kmedoids": order_by_medoids,
    "random": order_at_random,
}


class Exemplars(NamedTuple):
    """What is kept of one class, in the order of the choice; never changed once built."""

    rows: np.ndarray  # (m, d)
    keys: np.ndarray  # (m,)
    mean: np.ndarray  # (d,), of the unit rows of all samples so far
    n_seen: int

    def among(self, kept: slice | np.ndarray) -> "Exemplars":
        """Some of the rows."""
        return self._replace(rows=self.rows[kept], keys=self.keys[kept])


def _unit(rows: np.ndarray) -> np.ndarray:
    return unit_rows(torch.from_numpy(rows.astype(np.float64))).numpy()


class ExemplarMemory(BaseEstimator):
    r"""A bounded memory of feature vectors, in each class ordered by how well they stand for it.

    With C classes in it a class keeps at most :math:`m = \lfloor \text{budget} / C \rfloor` rows,
    at least one; when classes arrive, lists are cut off to their first m.

    Parameters
    ----------
    budget : int or None, default=2000
        Rows in all. Every bound that is given holds; for one of the others alone, set None. With
        no bound every row is kept.
    per_class : int, default=None
        Rows per class.
    budget_bytes : int, default=None
        Bytes of the rows in all.
    selection : {"herding", "random", "closest", "kmedoids"}, default="herding"
        Which rows, in which order, all judged at unit length: by :func:`herding` towards the mean
        of the class; at random; those nearest to the mean; or medoids, one by one, each lowering
        most the sum of the distances to the nearest medoid.
    store_dtype : {"float16", "float32"}, default="float16"
        How rows are kept.
    random_state : int, RandomState instance or None, default=None
        Of "random".

    Attributes
    ----------
    X_ : ndarray of shape (n_kept, n_features)
        Rows, class after class.
    y_ : ndarray of shape (n_kept,)
        Their labels.
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    counts_ : ndarray of shape (n_classes,)
        Rows kept of each class.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.

    See Also
    --------
    NearestMeanOfExemplarsClassifier : Decides by the means of what is kept.
    ReplayBuffer : For streams of small batches.

    Notes
    -----
    Rows of a class that is known are chosen anew from them and what is kept, towards the mean of
    all rows of the class so far, which is remembered. "random" stays a uniform sample then; the
    others forget what was not kept.

    Cost of a call: for a class of n rows of which m are kept, O(n d m) for "herding", O(n d) for
    "closest" and "random", O(n^2 (d + m)) for "kmedoids". Memory: the rows, and one mean per class.

    References
    ----------
    .. [1] S.-A. Rebuffi, A. Kolesnikov, G. Sperl, C. H. Lampert, iCaRL: Incremental Classifier and
       Representation Learning, CVPR 2017. <https://arxiv.org/abs/1611.07725>
    .. [2] D.-W. Zhou, Q.-W. Wang, H.-J. Ye, D.-C. Zhan, A Model or 603 Exemplars: Towards
       Memory-Efficient Class-Incremental Learning, 2022. <https://arxiv.org/abs/2205.13218>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import ExemplarMemory
    >>> rng = np.random.default_rng(0)
    >>> memory = ExemplarMemory(6).add(rng.normal(size=(50, 4)), ["cat"] * 50)
    >>> memory.add(rng.normal(size=(50, 4)), ["dog"] * 50).y_
    array(['cat', 'cat', 'cat', 'dog', 'dog', 'dog'], dtype='<U3')
    >>> memory.nbytes
    48
    """

    _parameter_constraints: ClassVar[dict] = {
        "budget": [Interval(Integral, 1, None, closed="left"), None],
        "per_class": [Interval(Integral, 1, None, closed="left"), None],
        "budget_bytes": [Interval(Integral, 1, None, closed="left"), None],
        "selection": [StrOptions(set(SELECTIONS))],
        "store_dtype": [StrOptions({"float16", "float32"})],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        budget: int | None = 2000,
        *,
        per_class: int | None = None,
        budget_bytes: int | None = None,
        selection: str = "herding",
        store_dtype: str = "float16",
        random_state: int | np.random.RandomState | None = None,
    ):
        self.budget = budget
        self.per_class = per_class
        self.budget_bytes = budget_bytes
        self.selection = selection
        self.store_dtype = store_dtype
        self.random_state = random_state

    def add(self, X: ArrayLike, y: object) -> Self:
        """Choose among new rows, and make room for them.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.

        Returns
        -------
        self : ExemplarMemory
            If the call fails, the memory stays as it was.
        """
        self._validate_params()
        with unchanged_on_error(self):
            first = not hasattr(self, "classes_")
            rows = widened(as_tensor(validate_vectors(self, X, reset=first))).cpu().numpy()
            y = check_labels(y, n_samples=len(rows), who=type(self).__name__)
            if first:
                self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
                self._held, self._n_added = {}, 0
                self.classes_ = y[:0]
            self.classes_ = joined_labels(self.classes_, y)
            keys = np.random.default_rng([self._seed, self._n_added]).random(len(y))
            self._n_added += len(y)
            quota = self._quota()
            self._held = self._held | {
                label: self._joined(label, rows[y == label], keys[y == label], quota)
                for label in np.unique(y).tolist()
            }
            self._cut(quota)
        return self

    def _joined(
        self, label: object, rows: np.ndarray, keys: np.ndarray, quota: int | None
    ) -> Exemplars:
        """What is kept of a class when rows come to it."""
        unit, stored, held = _unit(rows), self._stored(rows), self._held.get(label)
        n_seen, mean = len(rows), unit.mean(axis=0)
        if held is not None:
            unit = np.concatenate([_unit(held.rows), unit])
            stored = np.concatenate([held.rows, stored])
            keys = np.concatenate([held.keys, keys])
            mean = (held.n_seen * held.mean + n_seen * mean) / (held.n_seen + n_seen)
            n_seen += held.n_seen
        m = len(stored) if quota is None else quota
        chosen = SELECTIONS[self.selection](Candidates(unit, mean, keys), m)
        return Exemplars(stored[chosen], keys[chosen], mean, n_seen)

    def _stored(self, rows: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            stored = rows.astype(self.store_dtype)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"X holds the value {np.abs(rows).max():.3g}, which "
                f"store_dtype={self.store_dtype!r} cannot keep; "
                "scale the rows, or set store_dtype='float32'."
            )
        lost = rows[rows.any(axis=1) & ~stored.any(axis=1)]
        if len(lost):
            raise ValueError(
                f"X holds a row of values of at most {np.abs(lost[0]).max():.3g}, which "
                f"store_dtype={self.store_dtype!r} keeps as zeros; scale the rows, or set "
                "store_dtype='float32'."
            )
        return stored

    def _quota(self) -> int | None:
        """Rows per class; None without a bound."""
        n_classes = len(self.classes_)
        row_bytes = self.n_features_in_ * np.dtype(self.store_dtype).itemsize
        bounds = {
            "budget": None if self.budget is None else self.budget // n_classes,
            "per_class": self.per_class,
            "budget_bytes": None
            if self.budget_bytes is None
            else self.budget_bytes // (row_bytes * n_classes),
        }
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        for name in [name for name, bound in given.items() if bound < 1]:
            warnings.warn(
                f"{name}={getattr(self, name)} is less than one row for each of {n_classes} "
                "classes, so one is kept of each; raise it.",
                UserWarning,
                stacklevel=3,
            )
        return max(1, min(given.values())) if given else None

    def _cut(self, quota: int | None) -> None:
        self._held = {label: held.among(slice(quota)) for label, held in self._held.items()}

    def reduce(self) -> Self:
        """Cut the lists off to the bounds, if these were lowered since.

        Returns
        -------
        self : ExemplarMemory
        """
        self._validate_params()
        self._check_filled()
        self._cut(self._quota())
        return self

    def forget_class(self, label: object) -> Self:
        """Remove a class; the lists of the others stay as they are.

        Parameters
        ----------
        label : int, bool or str
            A label in `classes_`.

        Returns
        -------
        self : ExemplarMemory
        """
        self._check_filled()
        if label not in self._held:
            raise ValueError(
                f"label={label!r} is not a known class; the {len(self.classes_)} classes are "
                "listed in `classes_`."
            )
        self._held = {known: held for known, held in self._held.items() if known != label}
        self.classes_ = self.classes_[self.classes_ != label]
        return self

    def remove(self, mask: ArrayLike) -> Self:
        """Remove rows.

        Parameters
        ----------
        mask : array-like of shape (n_kept,), bool
            True for the rows of `X_` that go; a class without rows goes too.

        Returns
        -------
        self : ExemplarMemory
        """
        self._check_filled()
        kept = ~np.asarray(mask, dtype=bool)
        if kept.shape != self.y_.shape:
            raise ValueError(
                f"mask has shape {kept.shape} and {len(self.y_)} rows are kept; give one value "
                "for each."
            )
        labels = self.classes_.tolist()
        parts = np.split(kept, np.cumsum(self.counts_)[:-1])
        pairs = zip(labels, parts, strict=True)
        held = {label: self._held[label].among(part) for label, part in pairs}
        self._held = {label: left for label, left in held.items() if len(left.keys)}
        self.classes_ = self.classes_[[label in self._held for label in labels]]
        return self

    def copy(self) -> "ExemplarMemory":
        """Return a memory that changes on its own from here.

        Returns
        -------
        memory : ExemplarMemory
        """
        # What is held is never changed in place, so it can be shared.
        return copy.copy(self)

    def _check_filled(self) -> None:
        if not hasattr(self, "_held"):
            raise NotFittedError(f"This {type(self).__name__} is empty; call add first.")

    def _of_classes(self) -> list[Exemplars]:
        self._check_filled()
        return [self._held[label] for label in self.classes_.tolist()]

    @property
    def X_(self) -> np.ndarray:
        """The rows that are kept, class after class."""
        empty = [np.empty((0, getattr(self, "n_features_in_", 0)), self.store_dtype)]
        return np.concatenate([held.rows for held in self._of_classes()] or empty)

    @property
    def y_(self) -> np.ndarray:
        """Labels of the rows that are kept."""
        return np.repeat(self.classes_, self.counts_)

    @property
    def counts_(self) -> np.ndarray:
        """Rows kept of each class."""
        return np.array([len(held.keys) for held in self._of_classes()], dtype=np.intp)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return sum(held.rows.nbytes for held in self._of_classes())


class NearestMeanOfExemplarsClassifier(
    ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator
):
    """Classifier by the nearest mean of the rows that a memory keeps of each class.

    Rows are scaled to unit length, and so are the means of those that are kept; the nearest mean
    decides. The rule of iCaRL [1]_.

    Parameters
    ----------
    memory : ExemplarMemory, default=None
        A memory that is cloned; None for ``ExemplarMemory()``, 2000 rows chosen by herding.
    metric : {"euclidean", "cosine"}, default="euclidean"
        What near means: minus half the squared distances, or the cosines. They decide alike.

    Attributes
    ----------
    memory_ : ExemplarMemory
        With the rows.
    prototypes_ : ndarray of shape (n_classes, n_features)
        Means of unit rows, of unit length; NaN for a class that was announced.
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.

    See Also
    --------
    skpool.prototypes.NearestClassMeanClassifier : The mean of all rows, which costs one vector
        per class; on frozen features it is the better rule.

    Notes
    -----
    The mean of what is kept changes when the memory is cut. Only where the features themselves
    change from session to session, so that means must be computed again from rows, is there
    something to gain by it. As long as nothing is dropped the order of the samples does not
    matter; rows cannot be forgotten, because others would have been kept without them, and
    `forget_class` is exact up to the room that the class took.

    Cost: that of the memory; a prediction is one product of n * n_classes * d.

    References
    ----------
    .. [1] S.-A. Rebuffi, A. Kolesnikov, G. Sperl, C. H. Lampert, iCaRL: Incremental Classifier and
       Representation Learning, CVPR 2017. <https://arxiv.org/abs/1611.07725>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import ExemplarMemory, NearestMeanOfExemplarsClassifier
    >>> X = np.array([[1.0, 0.1], [1.0, 0.3], [0.0, 1.0], [0.2, 1.0]])
    >>> nme = NearestMeanOfExemplarsClassifier(ExemplarMemory(2))
    >>> nme.partial_fit(X[:2], ["a", "a"]).partial_fit(X[2:], ["b", "b"]).memory_.counts_
    array([1, 1])
    >>> nme.predict([[3.0, 1.0]])
    array(['a'], dtype='<U1')
    """

    _parameter_constraints: ClassVar[dict] = {
        "memory": [ExemplarMemory, None],
        "metric": [StrOptions({"euclidean", "cosine"})],
    }

    def __init__(self, memory: ExemplarMemory | None = None, *, metric: str = "euclidean"):
        self.memory = memory
        self.metric = metric

    # Learning.

    def fit(self, X: ArrayLike, y: object) -> Self:
        """Choose exemplars of these samples alone.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            super().fit(X, y)
            _ = self._solved
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: object, classes: object = None) -> Self:
        """Choose exemplars of these samples too, and make room for them.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels; labels never seen before are welcome in any call.
        classes : array-like of shape (n_classes,), default=None
            Labels to announce before they have samples; never predicted until then.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        return self._learn(X, y, classes, None, reset=not hasattr(self, "classes_"))

    def forget_class(self, label: object) -> Self:
        """Remove a class with its exemplars.

        Parameters
        ----------
        label : int, bool or str
            A label in `classes_`.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        check_is_fitted(self)
        if label not in self.classes_.tolist():
            raise ValueError(
                f"label={label!r} is not a known class; the {len(self.classes_)} classes are "
                "listed in `classes_`."
            )
        self._announced = self._announced[self._announced != label]
        if label in self._seen_classes().tolist():
            self.memory_ = self.memory_.copy().forget_class(label)
        self._refresh()
        return self

    def _check_learns_in_parts(self) -> bool:
        raise AttributeError(
            "A memory of exemplars would have kept other rows without those that are to go; use "
            "NearestClassMeanClassifier, which forgets and merges."
        )

    def _can_map(self) -> bool:
        return self._check_learns_in_parts()

    def _reset(self) -> None:
        self.memory_ = ExemplarMemory() if self.memory is None else clone(self.memory)

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: None) -> None:
        self.memory_ = self.memory_.copy().add(X, y)

    def _seen_classes(self) -> np.ndarray:
        return self.memory_.classes_

    def _refresh(self) -> None:
        super()._refresh()
        self._solution: NearestClassMeanClassifier | None = None

    @property
    def _solved(self) -> NearestClassMeanClassifier:
        if self._solution is None:
            rule = NearestClassMeanClassifier(self.metric, normalize="l2", normalize_means=True)
            self._solution = rule.fit(self.memory_.X_, self.memory_.y_)
        return self._solution

    @property
    def prototypes_(self) -> np.ndarray:
        """Means of the unit rows that are kept, of unit length."""
        if not hasattr(self, "classes_"):
            raise AttributeError(f"This {type(self).__name__} is not fitted: no 'prototypes_'.")
        held = self._solved.prototypes_.T
        return spread_columns(held, self._seen_classes(), self.classes_, fill=np.nan).T

    # Predictions.

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the score of every class.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; -inf for a class without samples.
        """
        check_is_fitted(self)
        X = validate_vectors(self, X, reset=False)
        scores = self._solved.class_scores(X)
        return spread_columns(scores, self._seen_classes(), self.classes_, fill=-np.inf)
