# SPDX-License-Identifier: BSD-3-Clause
"""ReplayBuffer and ReplayClassifier: a bounded memory of a stream, and learning with it.

What a gradient has learned fades when it moves on; mixing rows of a memory into every batch is
the baseline that is hard to beat. `ReplayBuffer` keeps rows (the policies stand in
`_replay_policies`), and `ReplayClassifier` gives them to any estimator with `partial_fit`.
"""

from copy import copy
from numbers import Integral, Real
from typing import ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, _fit_context, clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import SGDClassifier
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.continual._exemplars import ExemplarMemory
from skpool.continual._growing import teach
from skpool.continual._replay_policies import POLICIES, Stream
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_labels,
    joined_labels,
    unchanged_on_error,
    validate_vectors,
    widened,
)

__all__ = ["ReplayBuffer", "ReplayClassifier"]


def _host(X: ArrayLike) -> np.ndarray:
    return widened(as_tensor(X)).cpu().numpy()


class ReplayBuffer(BaseEstimator):
    r"""A bounded memory of the rows of a stream.

    Parameters
    ----------
    capacity : int or None, default=2000
        Rows, at most; None keeps all.
    policy : {"reservoir", "class_balanced", "fifo", "herding"}, default="reservoir"
        What stays. "reservoir": a uniform sample of all rows so far [1]_. "class_balanced":
        classes as equal as they can be, each a uniform sample of its rows [2]_. "fifo": the last
        rows. "herding": an `ExemplarMemory` of this budget, kept in float32.
    new_class_bonus : float, default=0.0
        With "reservoir": the chance, from 0 to 1, of a row that was not drawn to enter all the
        same, in place of a row of the largest class, while its class holds less than an equal
        share. Ours.
    random_state : int, RandomState instance or None, default=None
        Of what stays and what is drawn.

    Attributes
    ----------
    X_ : ndarray of shape (n_held, n_features)
        Rows.
    y_ : ndarray of shape (n_held,)
        Their labels.
    classes_ : ndarray of shape (n_classes,)
        Labels seen so far, sorted.
    counts_seen_ : ndarray of shape (n_classes,)
        Rows of each class seen so far.
    n_seen_ : int
        Rows seen so far.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.

    See Also
    --------
    ReplayClassifier : Learns with a buffer.
    ExemplarMemory : For classes that arrive as a whole.

    Notes
    -----
    A call of `update` copies the rows held, O(capacity d), so that a call that fails changes
    nothing; "class_balanced" takes O(capacity) more per row of a full buffer.

    References
    ----------
    .. [1] J. S. Vitter, Random Sampling with a Reservoir, ACM TOMS 1985.
    .. [2] A. Chrysakis, M.-F. Moens, Online Continual Learning from Imbalanced Data, ICML 2020.
    .. [3] A. Soutif-Cormerais, A. Carta, A. Cossu, J. Hurtado, H. Hemati, V. Lomonaco, J. van de
       Weijer, A Comprehensive Empirical Evaluation on Online Continual Learning, 2023.
       <https://arxiv.org/abs/2308.10328>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import ReplayBuffer
    >>> buffer = ReplayBuffer(4, policy="class_balanced", random_state=0)
    >>> buffer = buffer.update(np.zeros((50, 2)), ["old"] * 50).update(np.ones((2, 2)), ["new"] * 2)
    >>> np.unique(buffer.y_, return_counts=True)
    (array(['new', 'old'], dtype='<U3'), array([2, 2]))
    >>> X, y = buffer.sample(3)
    >>> X.shape
    (3, 2)
    """

    _parameter_constraints: ClassVar[dict] = {
        "capacity": [Interval(Integral, 1, None, closed="left"), None],
        "policy": [StrOptions({*POLICIES, "herding"})],
        "new_class_bonus": [Interval(Real, 0, 1, closed="both")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        capacity: int | None = 2000,
        *,
        policy: str = "reservoir",
        new_class_bonus: float = 0.0,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.capacity = capacity
        self.policy = policy
        self.new_class_bonus = new_class_bonus
        self.random_state = random_state

    def update(self, X: ArrayLike, y: object) -> Self:
        """See rows of the stream, in their order.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.

        Returns
        -------
        self : ReplayBuffer
            If the call fails, the buffer stays as it was.
        """
        self._validate_params()
        if self.new_class_bonus and self.policy != "reservoir":
            raise ValueError(
                f"new_class_bonus={self.new_class_bonus} is for policy='reservoir', and this is "
                f"{self.policy!r}; set it to 0."
            )
        with unchanged_on_error(self):
            rows = _host(validate_vectors(self, X, reset=not hasattr(self, "classes_")))
            y = check_labels(y, n_samples=len(rows), who=type(self).__name__)
            if not hasattr(self, "classes_"):
                self._start(rows, y)
            self._take_classes(y)
            if self.policy == "herding":
                self._herd(rows, y)
            else:
                self._keep(rows, y)
            self.counts_seen_ = self.counts_seen_ + self._numbers(y, counted=True)
            self.n_seen_ += len(y)
        return self

    def _start(self, rows: np.ndarray, y: np.ndarray) -> None:
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._n_draws = self.n_seen_ = 0
        self.X_, self.y_, self.classes_ = rows[:0].copy(), y[:0], y[:0]
        self.counts_seen_, self._full = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        self._memory: ExemplarMemory | None = None

    def _rng(self) -> np.random.Generator:
        """A generator of its own for every call: a number is all that has to be remembered."""
        self._n_draws += 1
        return np.random.default_rng([self._seed, self._n_draws])

    def _take_classes(self, y: np.ndarray) -> None:
        before, self.classes_ = self.classes_, joined_labels(self.classes_, y)
        at = np.searchsorted(self.classes_, before) if len(before) else np.zeros(0, dtype=np.intp)
        counts, full = np.zeros(len(self.classes_), np.int64), np.zeros(len(self.classes_), bool)
        counts[at], full[at] = self.counts_seen_, self._full
        self.counts_seen_, self._full = counts, full

    def _numbers(self, y: np.ndarray, *, counted: bool = False) -> np.ndarray:
        """Numbers of the classes of labels, or how often each is there."""
        numbers = np.searchsorted(self.classes_, y) if len(y) else np.zeros(0, dtype=np.intp)
        return np.bincount(numbers, minlength=len(self.classes_)) if counted else numbers

    def _keep(self, rows: np.ndarray, y: np.ndarray) -> None:
        held, new = self._numbers(self.y_), self._numbers(y)
        capacity = len(held) + len(new) if self.capacity is None else self.capacity
        stream = Stream(capacity, self.n_seen_, self.counts_seen_, self._full, self.new_class_bonus)
        sources, self._full = POLICIES[self.policy](held, new, stream, self._rng())
        self.X_ = np.concatenate([self.X_, rows])[sources]
        self.y_ = np.concatenate([self.y_, y])[sources] if len(self.y_) else y[sources]

    def _herd(self, rows: np.ndarray, y: np.ndarray) -> None:
        empty = ExemplarMemory(self.capacity, store_dtype="float32")
        self._memory = (empty if self._memory is None else self._memory.copy()).add(rows, y)
        self.X_, self.y_ = self._memory.X_, self._memory.y_

    def sample(self, n: int, balanced: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Draw rows.

        Parameters
        ----------
        n : int
            How many.
        balanced : bool, default=False
            Draw equally many of every class held, within one. A class with fewer rows than that
            gives some more than once; otherwise no row comes twice, and no more come than are
            held.

        Returns
        -------
        X : ndarray of shape (n_drawn, n_features)
            Rows.
        y : ndarray of shape (n_drawn,)
            Their labels.
        """
        self._check_started()
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 0:
            raise ValueError(f"n={n!r} is not valid; give a whole number of at least 0.")
        rng = self._rng()
        if not balanced or not len(self.y_):
            drawn = rng.permutation(len(self.y_))[:n]
            return self.X_[drawn], self.y_[drawn]
        held, codes = np.unique(self.y_, return_inverse=True)
        shares = np.full(len(held), n // len(held))
        shares[rng.permutation(len(held))[: n % len(held)]] += 1
        drawn = []
        for code, share in enumerate(shares.tolist()):
            members = np.flatnonzero(codes == code)
            drawn.append(rng.choice(members, share, replace=share > len(members)))
        drawn = rng.permutation(np.concatenate(drawn))
        return self.X_[drawn], self.y_[drawn]

    def remove(self, mask: ArrayLike) -> Self:
        """Remove rows.

        Parameters
        ----------
        mask : array-like of shape (n_held,), bool
            True for the rows of `X_` that go.

        Returns
        -------
        self : ReplayBuffer
        """
        self._check_started()
        gone = np.asarray(mask, dtype=bool)
        if gone.shape != self.y_.shape:
            raise ValueError(
                f"mask has shape {gone.shape} and {len(self.y_)} rows are held; give one value for "
                "each."
            )
        if self._memory is not None:
            self._memory = self._memory.copy().remove(gone)
        self.X_, self.y_ = self.X_[~gone], self.y_[~gone]
        return self

    def _check_started(self) -> None:
        if not hasattr(self, "classes_"):
            raise NotFittedError("This ReplayBuffer has seen no rows; call update first.")


class ReplayClassifier(
    MetaEstimatorMixin, ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator
):
    """Learn every batch together with rows of a memory.

    Any classifier with `partial_fit` gets a memory by it, and those of scikit-learn get new
    classes in any call: linear ones grow by rows of zeros.

    Parameters
    ----------
    estimator : classifier with partial_fit, default=None
        Cloned; None for ``SGDClassifier(loss="log_loss")``.
    buffer : ReplayBuffer, default=None
        Cloned; None for ``ReplayBuffer()``, 2000 rows.
    replay_batch : int, default=10
        Rows that are drawn from the memory and put to each batch.
    n_passes : int, default=1
        How often a batch is learned, each time with other rows of the memory; 0 only fills it.
    balanced : bool, default=True
        Whether rows are drawn equally often of every class.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    estimator_ : classifier
        What learned. Not fitted while it knows fewer classes than it needs.
    buffer_ : ReplayBuffer
        With the rows.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.

    See Also
    --------
    ReplayBuffer : The memory.
    skpool.prototypes.NearestClassMeanClassifier : Needs no memory, like all classifiers of this
        package that follow from moments.

    Notes
    -----
    The memory is drawn from before it sees the batch, so that no row of the batch comes twice.
    `fit` starts anew and learns its rows as one batch. Order and partition of the samples matter.

    Classifiers of scikit-learn that are not linear are told of all classes that the first call
    announces, and refuse others later. One that needs two classes begins when a second arrives,
    with all rows of the memory.

    Cost: that of `n_passes` calls of the estimator, a copy of it, and one update of the buffer.

    References
    ----------
    .. [1] A. Soutif-Cormerais, A. Carta, A. Cossu, J. Hurtado, H. Hemati, V. Lomonaco, J. van de
       Weijer, A Comprehensive Empirical Evaluation on Online Continual Learning, 2023.
       <https://arxiv.org/abs/2308.10328>

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import SGDClassifier
    >>> from skpool.continual import ReplayBuffer, ReplayClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1, 2], 100)
    >>> X = 6 * np.eye(3)[y] + rng.normal(size=(300, 3))
    >>> stream = [slice(start, start + 10) for start in range(0, 300, 10)]
    >>> sgd = SGDClassifier(loss="log_loss", random_state=0)
    >>> model = ReplayClassifier(sgd, buffer=ReplayBuffer(30, random_state=0))
    >>> for part in stream:
    ...     model = model.partial_fit(X[part], y[part])
    >>> bool(model.score(X, y) > 0.95)
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "estimator": [HasMethods(["partial_fit", "predict"]), None],
        "buffer": [ReplayBuffer, None],
        "replay_batch": [Interval(Integral, 0, None, closed="left")],
        "n_passes": [Interval(Integral, 0, None, closed="left")],
        "balanced": ["boolean"],
    }

    def __init__(
        self,
        estimator: BaseEstimator | None = None,
        *,
        buffer: ReplayBuffer | None = None,
        replay_batch: int = 10,
        n_passes: int = 1,
        balanced: bool = True,
    ):
        self.estimator = estimator
        self.buffer = buffer
        self.replay_batch = replay_batch
        self.n_passes = n_passes
        self.balanced = balanced

    # Learning.

    def fit(self, X: ArrayLike, y: object) -> Self:
        """Learn from these samples alone, as one batch.

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
        return super().fit(X, y)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: object, classes: object = None) -> Self:
        """Learn a batch together with rows of the memory.

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

    def _check_learns_in_parts(self) -> bool:
        raise AttributeError(
            "What an estimator with a memory owes to a row is not known, so rows cannot be removed "
            "or learners merged; use a classifier that follows from moments."
        )

    def _can_map(self) -> bool:
        return self._check_learns_in_parts()

    def _reset(self) -> None:
        default = SGDClassifier(loss="log_loss")
        self.estimator_ = clone(default if self.estimator is None else self.estimator)
        self.buffer_ = ReplayBuffer() if self.buffer is None else clone(self.buffer)
        self._seen = self._announced[:0]

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: None) -> None:
        rows, buffer, estimator = _host(X), copy(self.buffer_), self.estimator_
        for _ in range(self.n_passes):
            X, labels = self._with_replay(
                buffer, rows, y, begins=not hasattr(estimator, "classes_")
            )
            estimator = teach(estimator, X, labels, self._announced)
        self.buffer_, self.estimator_ = buffer.update(rows, y), estimator
        self._seen = joined_labels(self._seen, y)

    def _with_replay(
        self, buffer: ReplayBuffer, rows: np.ndarray, y: np.ndarray, *, begins: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        if not hasattr(buffer, "classes_"):
            return rows, y
        if begins:
            old, labels = buffer.X_, buffer.y_
        else:
            old, labels = buffer.sample(self.replay_batch, self.balanced)
        return np.concatenate([rows, old]), np.concatenate([y, labels])

    def _seen_classes(self) -> np.ndarray:
        return self._seen

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_seen") and self.n_passes > 0

    # Predictions.

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the score of every class, as the estimator has them.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; -inf for a class without samples. Those of its
            `class_scores` or `decision_function`, else logarithms of its probabilities.
        """
        check_is_fitted(self)
        rows = _host(validate_vectors(self, X, reset=False))
        if not hasattr(self.estimator_, "classes_"):
            scores, labels = np.zeros((len(rows), 1)), self._seen
        else:
            scores, labels = _scores_of(self.estimator_, rows), self.estimator_.classes_
        known = np.isin(labels, self._seen)
        return spread_columns(scores[:, known], labels[known], self.classes_, fill=-np.inf)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the probabilities of the estimator, or the softmax of its scores.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Rows sum to 1; columns in the order of `classes_`.
        """
        fitted = hasattr(getattr(self, "estimator_", None), "classes_")
        if not fitted or not hasattr(self.estimator_, "predict_proba"):
            return super().predict_proba(X)
        rows, labels = _host(validate_vectors(self, X, reset=False)), self.estimator_.classes_
        known = np.isin(labels, self._seen)
        probabilities = self.estimator_.predict_proba(rows)[:, known]
        probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
        return spread_columns(probabilities, labels[known], self.classes_, fill=0.0)


def _scores_of(estimator: BaseEstimator, rows: np.ndarray) -> np.ndarray:
    """One column per class of the estimator."""
    if hasattr(estimator, "class_scores"):
        return estimator.class_scores(rows)
    if hasattr(estimator, "decision_function"):
        scores = estimator.decision_function(rows)
        return np.stack([-scores / 2, scores / 2], axis=1) if scores.ndim == 1 else scores
    with np.errstate(divide="ignore"):
        return np.log(estimator.predict_proba(rows))
