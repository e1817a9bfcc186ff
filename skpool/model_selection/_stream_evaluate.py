# SPDX-License-Identifier: BSD-3-Clause
"""Learn a stream in one pass, and measure again and again on the way.

An online learner is asked at any time. What counts is not where it ends but how good it is along
the way, and how deep it falls when the data change.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing
from sklearn.utils._optional_dependencies import check_pandas_support
from sklearn.utils.validation import _num_samples

from skpool import metrics
from skpool.model_selection._seen_classes import SeenClassesLearner
from skpool.model_selection._state_bytes import state_bytes
from skpool.utils import check_labels

__all__ = ["StreamResult", "stream_evaluate"]


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamResult:
    """Accuracies of a learner along a stream.

    Parameters
    ----------
    times : ndarray of shape (n_evaluations,)
        Rows learned before every evaluation.
    accuracy : ndarray of shape (n_evaluations,)
        On the test rows of all classes seen by then; NaN before one of them has test rows.
    per_class_accuracy : ndarray of shape (n_evaluations, n_classes)
        By class; NaN where it was not seen yet.
    classes : ndarray of shape (n_classes,)
        Labels of the test rows, sorted.
    fit_time, predict_time : ndarray of shape (n_evaluations,)
        Seconds spent learning since the last evaluation, and predicting.
    state_bytes : ndarray of shape (n_evaluations,)
        Bytes of the arrays in the learner.

    See Also
    --------
    stream_evaluate : Makes one.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import StreamSplit, stream_evaluate
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> y = np.arange(90) % 3
    >>> X = np.eye(3)[y] + 0.1 * np.random.default_rng(0).normal(size=(90, 3))
    >>> stream = StreamSplit("class_iid").stream(X[30:], y[30:])
    >>> result = stream_evaluate(
    ...     NearestClassMeanClassifier(), stream, X[:30], y[:30], eval_every=20
    ... )
    >>> result.times, result.accuracy
    (array([20, 40, 60]), array([1., 1., 1.]))
    """

    times: np.ndarray
    accuracy: np.ndarray
    per_class_accuracy: np.ndarray
    classes: np.ndarray
    fit_time: np.ndarray
    predict_time: np.ndarray
    state_bytes: np.ndarray

    @property
    def anytime_accuracy(self) -> float:
        """Mean over the evaluations of the mean accuracy over the classes seen by then."""
        return metrics.anytime_accuracy(self.per_class_accuracy)

    def summary(self) -> dict[str, float]:
        """Return the field's numbers, each by the name of its convention.

        Returns
        -------
        numbers : dict of str to float
            Fractions. "rows" says that all test rows seen count alike, "classes" that all classes
            do.
        """
        first_seen = (~np.isnan(self.per_class_accuracy)).argmax(axis=0)
        return {
            "anytime_accuracy_classes": self.anytime_accuracy,
            "anytime_accuracy_rows": metrics.anytime_accuracy(self.accuracy[:, None]),
            "last_accuracy_rows": float(self.accuracy[-1]),
            "last_accuracy_classes": metrics.anytime_accuracy(self.per_class_accuracy[-1:]),
            "min_accuracy_classes": metrics.min_accuracy(self.per_class_accuracy, first_seen),
        }

    def to_dataframe(self) -> Any:
        """Return one row per evaluation.

        Returns
        -------
        table : pandas DataFrame
        """
        pandas = check_pandas_support("to_dataframe")
        names = ("accuracy", "fit_time", "predict_time", "state_bytes")
        columns = {name: getattr(self, name) for name in names}
        return pandas.DataFrame(columns, index=pandas.Index(self.times, name="rows_seen"))


def stream_evaluate(
    estimator: BaseEstimator,
    stream: Iterable[tuple[Any, ArrayLike]],
    X_test: Any,
    y_test: ArrayLike,
    *,
    eval_every: int = 100,
    classes: ArrayLike | None = None,
) -> StreamResult:
    """Learn a stream batch by batch, and measure every so many rows.

    Parameters
    ----------
    estimator : classifier with `partial_fit`
        It is cloned.
    stream : iterable of tuples (X, y)
        Batches, such as those of :meth:`StreamSplit.stream`; each is learned once.
    X_test : indexable of length n_test
        Test rows.
    y_test : array-like of shape (n_test,)
        Their labels. At every evaluation the rows of classes seen by then are asked.
    eval_every : int, default=100
        Rows between evaluations, each made after the batch that completes them. The last one is
        made at the end of the stream.
    classes : array-like of shape (n_classes,), default=None
        All labels to come, for an estimator of scikit-learn, which demands them in its first call;
        None for those of `y_test`.

    Returns
    -------
    result : StreamResult

    Notes
    -----
    The cost is that of learning every row once, and of predicting the test rows at every
    evaluation.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import StreamSplit, stream_evaluate
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> y = np.arange(60) % 2
    >>> X = np.eye(2)[y]
    >>> stream = StreamSplit("iid").stream(X, y)
    >>> stream_evaluate(NearestClassMeanClassifier(), stream, X, y).anytime_accuracy
    1.0
    """
    if eval_every < 1:
        raise ValueError(f"eval_every must be at least 1 row, got {eval_every!r}.")
    y_test = check_labels(y_test, n_samples=_num_samples(X_test), who="stream_evaluate")
    asked = _Asked(X_test, y_test)
    told = asked.classes
    if classes is not None:
        told = np.unique(check_labels(classes, n_samples=len(classes), who="stream_evaluate"))
    learner = SeenClassesLearner(estimator, told)
    records, n_seen, fit_time = [], 0, 0.0
    evaluated = 0
    for X, y in stream:
        y = check_labels(y, n_samples=_num_samples(X), who="stream_evaluate")
        start = time.perf_counter()
        learner.learn(X, y, {})
        fit_time += time.perf_counter() - start
        n_seen += len(y)
        if n_seen // eval_every > evaluated // eval_every:
            records.append(asked.after(learner, n_seen, fit_time))
            evaluated, fit_time = n_seen, 0.0
    if n_seen == 0:
        raise ValueError("stream has no batch; give at least one.")
    if evaluated < n_seen:
        records.append(asked.after(learner, n_seen, fit_time))
    columns = {name: np.array([record[name] for record in records]) for name in records[0]}
    return StreamResult(classes=asked.classes, **columns)


class _Asked:
    """Test rows, of which those of seen classes are asked."""

    def __init__(self, X: Any, y: np.ndarray):
        self.X, self.y = X, y
        self.classes, self._codes = np.unique(y, return_inverse=True)

    def after(self, learner: SeenClassesLearner, n_seen: int, fit_time: float) -> dict[str, Any]:
        """All that is measured after some rows."""
        rows = np.flatnonzero(np.isin(self.y, learner.seen))
        per_class, accuracy = np.full(len(self.classes), np.nan), np.nan
        start = time.perf_counter()
        if len(rows):
            right = learner.predict(_safe_indexing(self.X, rows)) == self.y[rows]
            codes, size = self._codes[rows], len(self.classes)
            counts = np.bincount(codes, minlength=size)
            hits = np.bincount(codes, weights=right, minlength=size)
            np.divide(hits, counts, out=per_class, where=counts > 0)
            accuracy = right.mean()
        return {
            "times": n_seen,
            "accuracy": accuracy,
            "per_class_accuracy": per_class,
            "fit_time": fit_time,
            "predict_time": time.perf_counter() - start,
            "state_bytes": state_bytes(learner.estimator),
        }
