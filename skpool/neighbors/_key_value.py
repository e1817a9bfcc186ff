# SPDX-License-Identifier: BSD-3-Clause
"""DiscreteKeyValueClassifier: frozen keys, and under each what was seen there.

A sample only changes the values under its own keys, so samples with other keys cannot interfere.
With counts as values, the memory is a sparse table that adds and subtracts exactly.
"""

from numbers import Integral, Real
from typing import ClassVar, Self

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.neighbors._key_quantizer import KeyQuantizer
from skpool.utils import ArrayLike, unchanged_on_error, validate_vectors

__all__ = ["DiscreteKeyValueClassifier"]


def _by_counts(estimator: "DiscreteKeyValueClassifier") -> bool:
    """Whether what was learned can be taken back and combined."""
    if estimator.solver != "counts":
        raise AttributeError(
            f"solver={estimator.solver!r} depends on the order of the samples, so nothing can be "
            "taken back or merged; set solver='counts'."
        )
    return True


class DiscreteKeyValueClassifier(
    ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator
):
    r"""Classifier by values stored under discrete keys.

    A quantizer names one key per codebook for a sample; the values under these keys are averaged
    over the :math:`H` codebooks, and their softmax is the prediction [1]_:

    .. math:: p(x) = \mathrm{softmax}\Big(\frac{T}{H} \sum_{h=1}^{H} v_{h, k_h(x)}\Big) .

    Keys are learned without labels and frozen; only the values under the keys of a sample learn
    from it.

    Parameters
    ----------
    quantizer : transformer, default=None
        Gives codes of shape (n_samples, n_codebooks) and keeps `keys_`. None takes
        ``KeyQuantizer()``.
    solver : {"counts", "sgd"}, default="counts"
        "counts": the value of a class is :math:`\log(N + s)` of the samples :math:`N` of the
        class that were seen under the key: exact in any order, removable, mergeable. "sgd": the
        published gradient steps on the cross-entropy, from values of 0, one pass in the order
        given.
    smoothing : float, default=1.0
        :math:`s`, for "counts".
    temperature : float, default=1.0
        Factor :math:`T` of the averages.
    class_weight : {"balanced"}, dict or None, default=None
        "balanced" subtracts from the averages the logarithm of the number of samples of the
        class. A dict of label to weight adds the logarithm of the weight; labels that it does not
        hold weigh 1.
    lr : float, default=0.3
        Rate of "sgd".
    batch_size : int, default=256
        Samples per step of "sgd".

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted, announced ones included.
    class_count_ : ndarray of shape (n_classes,)
        Samples of the classes.
    quantizer_ : transformer
        The fitted quantizer.
    values_ : csr_matrix or ndarray of shape (n_codebooks * n_keys, n_seen_classes)
        Under key k of codebook h, in row h * n_keys + k: counts, or values by gradient.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.

    See Also
    --------
    KeyQuantizer : The keys.
    skpool.prototypes.NearestClassMeanClassifier : One vector per class in place of many keys.

    Notes
    -----
    `fit` learns keys from its own rows. To learn them from other, broader data, call `fit_keys`
    first and then `partial_fit`; a first `partial_fit` without it learns keys from its rows.

    Cost: the quantizer's search, and n_samples * n_codebooks entries of a table. Counts hold
    memory for pairs of key and class that were seen, at most one per sample and codebook;
    "sgd" holds a dense row of values per key that was seen.

    References
    ----------
    .. [1] F. Träuble et al., Discrete Key-Value Bottleneck, ICML 2023.
       <https://arxiv.org/abs/2207.11240>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.neighbors import DiscreteKeyValueClassifier, KeyQuantizer
    >>> X = np.random.default_rng(0).standard_normal((60, 4))
    >>> memory = DiscreteKeyValueClassifier(
    ...     KeyQuantizer(n_codebooks=8, n_keys=6, key_dim=2, random_state=0)
    ... ).fit_keys(X)
    >>> y = (X[:, 0] > 0).astype(int)
    >>> memory.partial_fit(X[:30], y[:30]).partial_fit(X[30:], y[30:]).score(X, y) > 0.8
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "quantizer": [HasMethods(["fit", "transform"]), None],
        "solver": [StrOptions({"counts", "sgd"})],
        "smoothing": [Interval(Real, 0, None, closed="neither")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        quantizer: BaseEstimator | None = None,
        *,
        solver: str = "counts",
        smoothing: float = 1.0,
        temperature: float = 1.0,
        class_weight: str | dict | None = None,
        lr: float = 0.3,
        batch_size: int = 256,
    ):
        self.quantizer = quantizer
        self.solver = solver
        self.smoothing = smoothing
        self.temperature = temperature
        self.class_weight = class_weight
        self.lr = lr
        self.batch_size = batch_size

    # Learning.

    def fit_keys(self, X: ArrayLike) -> Self:
        """Learn keys without labels.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        self : DiscreteKeyValueClassifier
            With keys. Refused once values are stored, which would lose their meaning, unless the
            quantizer says ``freeze=False``; `fit` starts anew.
        """
        self._validate_params()
        quantizer = self._new_quantizer()
        known = hasattr(self, "classes_")
        if known and getattr(quantizer, "freeze", True):
            raise ValueError(
                "Values are stored under the keys, which freeze=True keeps as they are; call fit "
                "to start anew, or set freeze=False on the quantizer."
            )
        with unchanged_on_error(self):
            X = validate_vectors(self, X, reset=not known)
            # FrozenEstimator wants a y.
            self.quantizer_ = quantizer.fit(X, None)
        return self

    def fit(self, X: ArrayLike, y: object) -> Self:
        """Learn keys and values from these samples alone.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.

        Returns
        -------
        self : DiscreteKeyValueClassifier
            The fitted classifier. If the call fails, it stays as it was.
        """
        with unchanged_on_error(self):
            vars(self).pop("quantizer_", None)
            return super().fit(X, y)

    def partial_fit(self, X: ArrayLike, y: object, classes: object = None) -> Self:
        """Learn values from these samples on top of all earlier ones.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels; labels never seen before are welcome in any call.
        classes : array-like of shape (n_classes,), default=None
            Labels to announce before they have samples. Not required.

        Returns
        -------
        self : DiscreteKeyValueClassifier
            The updated classifier. If the call fails, it stays as it was.
        """
        return super().partial_fit(X, y, classes)

    @available_if(_by_counts)
    def forget(self, X: ArrayLike, y: object) -> Self:
        """Remove samples that were learned, as if they had never been seen; keys stay.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            The feature vectors as they were learned.
        y : array-like of shape (n_samples,)
            Their labels.

        Returns
        -------
        self : DiscreteKeyValueClassifier
            The updated classifier. If the call fails, it stays as it was.
        """
        return super().forget(X, y)

    @available_if(_by_counts)
    def forget_class(self, label: object) -> Self:
        """Remove a class with all its samples; keys stay.

        Parameters
        ----------
        label : int, bool or str
            A label in `classes_`.

        Returns
        -------
        self : DiscreteKeyValueClassifier
            The updated classifier. If the call fails, it stays as it was.
        """
        return super().forget_class(label)

    @available_if(_by_counts)
    def merge(self, other: Self) -> Self:
        """Add what another classifier with the same keys has learned.

        Parameters
        ----------
        other : DiscreteKeyValueClassifier
            With the same keys, and labels of the same type; not changed.

        Returns
        -------
        self : DiscreteKeyValueClassifier
            The updated classifier. If the call fails, it stays as it was.
        """
        return super().merge(other)

    def _can_map(self) -> bool:
        return False

    def _new_quantizer(self) -> BaseEstimator:
        return KeyQuantizer() if self.quantizer is None else clone(self.quantizer)

    def _reset(self) -> None:
        self.values_ = None
        self._stored_classes = None
        self._stored_counts = np.empty(0, dtype=np.int64)

    def _seen_classes(self) -> np.ndarray:
        return self._stored_classes

    def _refresh(self) -> None:
        super()._refresh()
        counts = self._stored_counts[None]
        self.class_count_ = spread_columns(counts, self._seen_classes(), self.classes_, fill=0)[0]

    def _cells(self, X: ArrayLike) -> np.ndarray:
        """Rows of `values_` that samples fetch, of shape (n_samples, n_codebooks)."""
        codes = self.quantizer_.transform(X).astype(np.int64)
        return codes + self._n_keys() * np.arange(codes.shape[1])

    def _n_keys(self) -> int:
        return self.quantizer_.keys_.shape[1]

    def _n_cells(self) -> int:
        return self.quantizer_.keys_.shape[0] * self._n_keys()

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: None) -> None:
        if not hasattr(self, "quantizer_"):
            self.quantizer_ = self._new_quantizer().fit(X, None)
        cells = self._cells(X)
        new, counts = np.unique(y, return_counts=True)
        self._widen(new)
        np.add.at(self._stored_counts, np.searchsorted(self._stored_classes, new), counts)
        if self.solver == "counts":
            self.values_ = self.values_ + self._table(cells, y)
        else:
            self._descend(cells, np.searchsorted(self._stored_classes, y))

    def _widen(self, labels: np.ndarray) -> None:
        """Make a column for every label, in sorted order, and copies of what will change."""
        old = self._stored_classes
        seen = labels if old is None or not len(old) else np.union1d(old, labels)
        counts = np.zeros(len(seen), dtype=np.int64)
        dtype = np.int64 if self.solver == "counts" else np.float64
        places = np.empty(0, dtype=np.int64)
        if old is not None and len(old):
            places = np.searchsorted(seen, old)
            counts[places] = self._stored_counts
        shape = (self._n_cells(), len(seen))
        if self.solver == "counts":
            held = self.values_ if len(places) else csr_matrix((shape[0], 0), dtype=dtype)
            # Labels stay in order, so the columns of a row do too.
            columns = places[held.indices]
            self.values_ = csr_matrix((held.data, columns, held.indptr), shape=shape)
        else:
            values = np.zeros(shape if self.values_ is None else (len(self.values_), shape[1]))
            if self.values_ is not None:
                values[:, places] = self.values_
            self.values_ = values
        self._stored_classes, self._stored_counts = seen, counts

    def _table(self, cells: np.ndarray, y: np.ndarray) -> csr_matrix:
        """Counts of the samples under their keys, in the shape of `values_`."""
        columns = np.repeat(np.searchsorted(self._stored_classes, y), cells.shape[1])
        ones = np.ones(cells.size, dtype=np.int64)
        table = csr_matrix((ones, (cells.ravel(), columns)), shape=self.values_.shape)
        table.sum_duplicates()
        return table

    def _descend(self, cells: np.ndarray, codes: np.ndarray) -> None:
        n_codebooks = cells.shape[1]
        for batch in gen_batches(len(cells), self.batch_size):
            part, target = cells[batch], codes[batch]
            p = softmax(self.temperature * self.values_[part].mean(axis=1), axis=1)
            p[np.arange(len(part)), target] -= 1
            step = -self.lr * self.temperature * p / (len(part) * n_codebooks)
            np.add.at(self.values_, part.ravel(), np.repeat(step, n_codebooks, axis=0))

    def _forget(self, X: ArrayLike, y: np.ndarray, sample_weight: None) -> None:
        left = self.values_ - self._table(self._cells(X), y)
        if left.nnz and left.data.min() < 0:
            raise ValueError(
                f"X holds samples that were not learned with their label (n_samples={len(y)}); "
                "forget takes samples that were."
            )
        gone, counts = np.unique(y, return_counts=True)
        left_counts = self._stored_counts.copy()
        left_counts[np.searchsorted(self._stored_classes, gone)] -= counts
        self._keep(left, left_counts)

    def _keep(self, values: csr_matrix, counts: np.ndarray) -> None:
        """Take these values, without the classes that have no samples left."""
        held = counts > 0
        values = values[:, np.flatnonzero(held)]
        values.eliminate_zeros()
        self.values_, self._stored_counts = values, counts[held]
        self._stored_classes = self._stored_classes[held]

    def _forget_class(self, label: object) -> None:
        self._keep(self.values_, np.where(self._stored_classes == label, 0, self._stored_counts))

    def _merge(self, other: Self) -> None:
        if not np.array_equal(self.quantizer_.keys_, other.quantizer_.keys_):
            raise ValueError(
                "other has other keys, under which its values cannot be added; learn keys once, "
                "and share the fitted quantizer as FrozenEstimator."
            )
        self._widen(other._stored_classes)
        places = np.searchsorted(self._stored_classes, other._stored_classes)
        self._stored_counts[places] += other._stored_counts
        held = other.values_
        moved = csr_matrix((held.data, places[held.indices], held.indptr), shape=self.values_.shape)
        self.values_ = self.values_ + moved

    # Predictions.

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the averages of the values under the keys of each sample.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Times `temperature`; columns in the order of `classes_`, -inf for a class without
            samples. Their softmax is the prediction.
        """
        check_is_fitted(self)
        cells = self._cells(validate_vectors(self, X, reset=False))
        if self.solver == "counts":
            scores = self._log_counts(cells)
        else:
            blocks = gen_batches(len(cells), self.batch_size)
            scores = np.concatenate([self.values_[cells[block]].mean(axis=1) for block in blocks])
        scores = scores + self._offsets()
        return spread_columns(
            self.temperature * scores, self._stored_classes, self.classes_, fill=-np.inf
        )

    def _offsets(self) -> np.ndarray | float:
        """What the weights of the classes add to the averages."""
        if self.class_weight is None:
            return 0.0
        if self.class_weight == "balanced":
            return -np.log(self._stored_counts)
        labels = self._stored_classes.tolist()
        weights = np.array([self.class_weight.get(label, 1.0) for label in labels], np.float64)
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ValueError(
                f"class_weight={self.class_weight!r} holds a weight that is not above 0; give "
                "finite weights above 0."
            )
        return np.log(weights)

    def _log_counts(self, cells: np.ndarray) -> np.ndarray:
        n, n_codebooks = cells.shape
        # What is not stored counts 0 and has the value log(s), which is added at the end.
        gains = self.values_.astype(np.float64)
        gains.data = np.log1p(gains.data / self.smoothing)
        starts = np.arange(0, cells.size + 1, n_codebooks)
        fetched = csr_matrix(
            (np.ones(cells.size), cells.ravel(), starts), shape=(n, gains.shape[0])
        )
        return (fetched @ gains).toarray() / n_codebooks + np.log(self.smoothing)
