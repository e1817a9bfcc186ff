# SPDX-License-Identifier: BSD-3-Clause
"""What an incremental evaluation found: plain arrays, and the field's numbers made from them.

Displays draw it, `summary` prints it. Every number carries the name of its convention, since
published tool boxes disagree about one and the same matrix.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils._optional_dependencies import check_pandas_support

from skpool import metrics

__all__ = ["IncrementalResult", "StagePredictions"]


class StagePredictions(NamedTuple):
    """What was predicted after one stage.

    Attributes
    ----------
    index : ndarray of shape (n_test,)
        Test rows of everything seen so far.
    y_true : ndarray of shape (n_test,)
        Their labels.
    y_pred : ndarray of shape (n_test,)
        Predictions.
    """

    index: np.ndarray
    y_true: np.ndarray
    y_pred: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class IncrementalResult:
    """Accuracies of a learner after every stage.

    Parameters
    ----------
    accuracy_matrix : ndarray of shape (n_stages, n_stages)
        Row t: after stage t; column j: on the test rows of stage j alone. NaN above the diagonal
        unless later stages were evaluated too, and in the columns of stages without test rows.
    seen_accuracy : ndarray of shape (n_stages,)
        On all test rows of everything seen, after every stage.
    test_counts : ndarray of shape (n_stages,)
        Test rows of every stage.
    stages : list of ndarray
        Labels of every stage.
    base_accuracy, novel_accuracy : ndarray of shape (n_stages,)
        On the seen test rows of classes of the first stage, and on all others, after every stage;
        NaN where there are none.
    fit_time, predict_time : ndarray of shape (n_stages,)
        Seconds spent in every stage.
    state_bytes : ndarray of shape (n_stages,)
        Bytes of the arrays in the learner after every stage.
    scenario : {"class", "task", "domain"}, default="class"
        What was evaluated.
    average : {"micro", "macro"}, default="micro"
        Whether rows or classes count alike in an accuracy.
    joint_accuracy, joint_stage_accuracy : ndarray of shape (n_stages,), default=None
        Of a learner fitted on all stages so far together: on everything seen, and on the newest
        stage.
    random_accuracy : ndarray of shape (n_stages,), default=None
        Of a learner that learned nothing, on every stage.
    predictions : list of StagePredictions, default=None
        By stage, where they were asked for.
    stage_names : list, default=None
        Labels of the domains, where stages are domains.

    See Also
    --------
    incremental_evaluate : Makes one.
    skpool.metrics : The functions that `summary` calls.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import ClassIncrementalSplit, incremental_evaluate
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> y = np.arange(90) % 3
    >>> X = np.eye(3)[y] + 0.1 * np.random.default_rng(0).normal(size=(90, 3))
    >>> split = ClassIncrementalSplit(increment=1)
    >>> result = incremental_evaluate(NearestClassMeanClassifier(), split, X, y)
    >>> result.accuracy_matrix
    array([[ 1., nan, nan],
           [ 1.,  1., nan],
           [ 1.,  1.,  1.]])
    >>> result.summary()["forgetting_max"]
    0.0
    """

    accuracy_matrix: np.ndarray
    seen_accuracy: np.ndarray
    test_counts: np.ndarray
    stages: list[np.ndarray]
    base_accuracy: np.ndarray
    novel_accuracy: np.ndarray
    fit_time: np.ndarray
    predict_time: np.ndarray
    state_bytes: np.ndarray
    scenario: str = "class"
    average: str = "micro"
    joint_accuracy: np.ndarray | None = None
    joint_stage_accuracy: np.ndarray | None = None
    random_accuracy: np.ndarray | None = None
    predictions: list[StagePredictions] | None = None
    stage_names: list | None = None

    @property
    def stage_accuracy(self) -> np.ndarray:
        """Accuracy on every stage just after it was learned, of shape (n_stages,)."""
        return np.diagonal(self.accuracy_matrix).copy()

    def summary(self) -> dict[str, float]:
        """Return the field's numbers, each by the name of its convention.

        Returns
        -------
        numbers : dict of str to float
            Fractions. In the names, "rows" ("classes" with macro averages) says that all rows
            (classes) seen count alike, "tasks" that all stages do, and the rest of a name is the
            `kind` of the function in `skpool.metrics`.
        """
        R, unit = self.accuracy_matrix, {"micro": "rows", "macro": "classes"}[self.average]
        by_tasks = metrics.seen_accuracy(R, kind="tasks")
        numbers = {
            f"average_incremental_accuracy_{unit}": float(np.mean(self.seen_accuracy)),
            "average_incremental_accuracy_tasks": float(np.mean(by_tasks)),
            f"last_accuracy_{unit}": float(self.seen_accuracy[-1]),
            "average_accuracy_tasks": metrics.average_accuracy(R),
            "learning_accuracy_tasks": metrics.learning_accuracy(R),
            f"performance_drop_{unit}": metrics.performance_drop(self.seen_accuracy),
        }
        for kind in ("max", "max_all", "first", "relative"):
            numbers[f"forgetting_{kind}"] = metrics.forgetting(R, kind=kind)
        for kind in ("max", "max_all"):
            numbers[f"forgetting_{kind}_row_weighted"] = metrics.forgetting(
                R, kind=kind, test_counts=self.test_counts
            )
        for kind in ("last", "all_pairs"):
            numbers[f"backward_transfer_{kind}"] = metrics.backward_transfer(R, kind=kind)
        return numbers | self._base_novel() | self._against_references()

    def to_dataframe(self) -> Any:
        """Return one row per stage.

        Returns
        -------
        table : pandas DataFrame
        """
        pandas = check_pandas_support("to_dataframe")
        columns = {
            "n_classes": [len(labels) for labels in self.stages],
            "test_count": self.test_counts,
            "seen_accuracy": self.seen_accuracy,
            "stage_accuracy": self.stage_accuracy,
            "base_accuracy": self.base_accuracy,
            "novel_accuracy": self.novel_accuracy,
            "joint_accuracy": self.joint_accuracy,
            "joint_stage_accuracy": self.joint_stage_accuracy,
            "random_accuracy": self.random_accuracy,
            "fit_time": self.fit_time,
            "predict_time": self.predict_time,
            "state_bytes": self.state_bytes,
        }
        known = {name: values for name, values in columns.items() if values is not None}
        index = pandas.Index(self.stage_names or range(len(self.stages)), name="stage")
        return pandas.DataFrame(known, index=index)

    def _base_novel(self) -> dict[str, float]:
        base, novel = float(self.base_accuracy[-1]), float(self.novel_accuracy[-1])
        if np.isnan(novel):
            return {}
        return {
            "last_base_accuracy": base,
            "last_novel_accuracy": novel,
            "last_harmonic_mean_accuracy": metrics.harmonic_mean_accuracy(base, novel),
        }

    def _against_references(self) -> dict[str, float]:
        R, numbers = self.accuracy_matrix, {}
        if self.joint_accuracy is not None:
            numbers["omega_all"] = metrics.omega_all(self.seen_accuracy, self.joint_accuracy)
        if self.joint_stage_accuracy is not None:
            numbers["intransigence"] = metrics.intransigence(R, self.joint_stage_accuracy)
        ahead = np.diagonal(R, offset=1)[~np.isnan(np.diagonal(R)[1:])]
        if self.random_accuracy is not None and not np.isnan(ahead).any():
            numbers["forward_transfer"] = metrics.forward_transfer(
                R, self.random_accuracy, scenario=self.scenario
            )
        return numbers
