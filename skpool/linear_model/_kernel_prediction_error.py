# SPDX-License-Identifier: BSD-3-Clause
"""KernelPredictionErrorClassifier: posterior variances from the rows of the classes themselves.

The sibling of `PredictionErrorClassifier` for kernels without finite features, and for classes of
few rows: a class costs what its rows cost, however wide they are.
"""

from functools import cached_property
from numbers import Real

import numpy as np
from scipy.spatial.distance import pdist
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics.pairwise import linear_kernel, rbf_kernel
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.statistics import SymmetricFactor
from skpool.utils import ArrayLike, as_tensor, check_squares, row_batches, validate_vectors

__all__ = ["KernelPredictionErrorClassifier"]

# Rows whose distances tell the length scale.
_TRIED_ROWS = 1000


class _ClassRows:
    """The rows of one class and their weights, never changed."""

    def __init__(self, rows: np.ndarray, weights: np.ndarray):
        self.rows = rows
        self.weights = weights

    def __add__(self, other: "_ClassRows") -> "_ClassRows":
        return _ClassRows(
            np.concatenate([self.rows, other.rows]), np.concatenate([self.weights, other.weights])
        )

    def without(self, other: "_ClassRows", label: object) -> "_ClassRows | None":
        """The rows that are not among others, each of which is taken off once."""
        places: dict[tuple, list[int]] = {}
        for i, key in enumerate(self._keys()):
            places.setdefault(key, []).append(i)
        kept = np.ones(len(self.rows), dtype=bool)
        for key in other._keys():
            if not places.get(key):
                raise ValueError(
                    f"A row of class {label!r} is not held with its weight; only rows that were "
                    "learned can be removed."
                )
            kept[places[key].pop()] = False
        return _ClassRows(self.rows[kept], self.weights[kept]) if kept.any() else None

    def _keys(self) -> list[tuple]:
        # Adding 0 makes the two zeros one.
        pairs = zip(self.rows + 0.0, self.weights.tolist(), strict=True)
        return [(row.tobytes(), weight) for row, weight in pairs]


class _Process:
    """A Gaussian process that saw the rows of one class; solved for when first needed."""

    def __init__(self, seen: _ClassRows, alpha: float, kernel: str, length_scale: float):
        self.rows, self.noise = seen.rows, alpha / seen.weights
        self.kernel, self.length_scale = kernel, length_scale

    def products(self, rows: np.ndarray) -> np.ndarray:
        if self.kernel == "linear":
            return linear_kernel(rows, self.rows)
        return rbf_kernel(rows, self.rows, gamma=0.5 / self.length_scale**2)

    @cached_property
    def factor(self) -> SymmetricFactor:
        gram = self.products(self.rows)
        gram.flat[:: len(gram) + 1] += self.noise
        return SymmetricFactor(gram)

    @cached_property
    def left_out(self) -> float:
        """Median error at the rows, each left out."""
        half = self.factor.half(np.eye(len(self.rows)))
        # A diagonal entry of the inverse is one over the variance of a noisy left-out value.
        return float(np.median(1.0 / (half**2).sum(axis=1) - self.noise))

    def errors(self, rows: np.ndarray) -> np.ndarray:
        own = np.ones(len(rows)) if self.kernel == "rbf" else (rows**2).sum(axis=1)
        # Rounding can turn a variance of 0 negative.
        return np.maximum(own - self.factor.quad(self.products(rows)), 0.0)


class KernelPredictionErrorClassifier(
    ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator
):
    r"""Classes by how well their own rows predict a row, for a kernel.

    A sample scores minus the posterior variance of a Gaussian process with noise :math:`\alpha`
    that saw the rows of the class,
    :math:`s_c(x) = -(k(x, x) - k_c(x)^\top (K_c + \alpha I)^{-1} k_c(x))`: what prediction-error
    classification [1]_ tends to as its networks become wide.

    Parameters
    ----------
    alpha : float, default=1.0
        Variance of the noise, on the scale of k(x, x).
    kernel : {"rbf", "linear"}, default="rbf"
        :math:`\exp(-|x - y|^2 / (2 l^2))` with a length scale l, or inner products.
    length_scale : float or "median", default=1.0
        Of "rbf"; "median" takes the median distance between the rows of the first call and keeps
        it, so that what comes first matters.
    calibrate : bool, default=False
        Whether the errors of a class are divided by their median at rows of its own, each left
        out. A class of many rows is sure of much; this takes off what follows from numbers alone.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted, announced ones included.
    left_out_errors_ : ndarray of shape (n_classes,)
        Median error at the rows of the class, each left out; NaN for a class without samples.
    length_scale_ : float
        Length scale in use.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    PredictionErrorClassifier : From moments, for kernels of finite features: keeps no rows, and
        its cost does not grow with their number.
    sklearn.gaussian_process.GaussianProcessRegressor : The variance of one class.

    Notes
    -----
    With a number as `length_scale`, `partial_fit` in any order and partition, `forget`,
    `forget_class` and `merge` give what one `fit` gives, to rounding. Rows are kept as they came:
    only the very same ones can be forgotten. All is computed in float64 on the host.

    Cost for :math:`n_c` rows of a class: :math:`O(n_c^2 d + n_c^3)` when first needed,
    :math:`O(n_c d + n_c^2)` per row predicted; memory :math:`O(n_c d + n_c^2)`.

    References
    ----------
    .. [1] M. Zajac, T. Tuytelaars, G. M. van de Ven, Prediction Error-based Classification for
       Class-Incremental Learning, 2024. <https://arxiv.org/abs/2305.18806>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.linear_model import KernelPredictionErrorClassifier
    >>> X = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    >>> clf = KernelPredictionErrorClassifier(0.1, length_scale=0.5)
    >>> clf.partial_fit(X[:2], ["same", "same"]).partial_fit(X[2:], ["apart", "apart"]).predict(X)
    array(['same', 'same', 'apart', 'apart'], dtype='<U5')
    """

    _parameter_constraints: dict = {
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "kernel": [StrOptions({"rbf", "linear"})],
        "length_scale": [StrOptions({"median"}), Interval(Real, 0, None, closed="neither")],
        "calibrate": ["boolean"],
    }

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        kernel: str = "rbf",
        length_scale: float | str = 1.0,
        calibrate: bool = False,
    ):
        self.alpha = alpha
        self.kernel = kernel
        self.length_scale = length_scale
        self.calibrate = calibrate

    # Learning.

    def _can_map(self) -> bool:
        return False

    def _seen_classes(self) -> np.ndarray:
        return self._labels

    def _reset(self) -> None:
        self._labels, self._held = self._announced[:0], {}
        vars(self).pop("length_scale_", None)

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        rows = _host(X)
        if not hasattr(self, "length_scale_"):
            self.length_scale_ = self._scale_of(rows)
        new = np.unique(y)
        # A union with no labels would not keep the type of the new ones.
        self._labels = np.union1d(self._labels, new) if len(self._labels) else new
        self._add(_by_class(rows, y, sample_weight))

    def _add(self, new: dict[object, _ClassRows]) -> None:
        self._held = self._held | {
            label: self._held[label] + part if label in self._held else part
            for label, part in new.items()
        }

    def _scale_of(self, rows: np.ndarray) -> float:
        if self.length_scale != "median":
            return float(self.length_scale)
        distances = pdist(rows[:_TRIED_ROWS])
        median = float(np.median(distances)) if len(distances) else 0.0
        if not median > 0:
            raise ValueError(
                f'length_scale="median" needs rows that differ, and the first call has '
                f"n_samples={len(rows)} whose median distance is 0; give a number."
            )
        return median

    def _forget(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        held = dict(self._held)
        for label, part in _by_class(_host(X), y, sample_weight).items():
            rest = held[label].without(part, label)
            if rest is None:
                self._forget_class(label)
                del held[label]
            else:
                held[label] = rest
        self._held = held

    def _forget_class(self, label: object) -> None:
        self._labels = self._labels[self._labels != label]
        self._held = {c: part for c, part in self._held.items() if c != label}

    def _merge(self, other: "KernelPredictionErrorClassifier") -> None:
        if other.length_scale_ != self.length_scale_:
            raise ValueError(
                f"other has length_scale={other.length_scale_:g} and this estimator "
                f"{self.length_scale_:g}; merge estimators of one kernel."
            )
        self._labels = np.union1d(self._labels, other._labels)
        self._add(other._held)

    def _refresh(self) -> None:
        super()._refresh()
        self._processes = [
            _Process(self._held[label], self.alpha, self.kernel, self.length_scale_)
            for label in self._labels.tolist()
        ]

    @property
    def left_out_errors_(self) -> np.ndarray:
        """Median error at the rows of the class, each left out."""
        check_is_fitted(self)
        errors = np.array([[process.left_out for process in self._processes]])
        return spread_columns(errors, self._labels, self.classes_, fill=np.nan)[0]

    # Predictions.

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return minus the error that every class makes.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            At most 0, and 0 where a class is sure. Columns in the order of `classes_`; -inf for a
            class without samples.
        """
        check_is_fitted(self)
        rows = _host(validate_vectors(self, X, reset=False))
        largest = max(len(process.rows) for process in self._processes)
        scores = np.empty((len(rows), len(self._processes)))
        # Products with the rows of a class, twice while they are solved with.
        for part in row_batches(len(rows), 16 * largest):
            for c, process in enumerate(self._processes):
                scores[part, c] = -process.errors(rows[part])
        if self.calibrate:
            scores /= [process.left_out or 1.0 for process in self._processes]
        return spread_columns(scores, self._labels, self.classes_, fill=-np.inf)


def _host(X: ArrayLike) -> np.ndarray:
    rows = as_tensor(X).cpu().double()
    check_squares(rows, vanishing=False)
    return rows.numpy()


def _by_class(
    rows: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None
) -> dict[object, _ClassRows]:
    weights = np.ones(len(rows)) if sample_weight is None else sample_weight
    members = {label: np.flatnonzero(y == label) for label in np.unique(y).tolist()}
    return {label: _ClassRows(rows[i], weights[i]) for label, i in members.items()}
