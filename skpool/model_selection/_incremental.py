# SPDX-License-Identifier: BSD-3-Clause
"""Learn the stages of a protocol one after the other, and measure after each.

The estimator sees the rows of a stage once, by `partial_fit`, and never an old row again. After
every stage it is asked about the held-out rows of everything seen so far.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _check_method_params, _num_samples

from skpool.model_selection._evaluation_files import EvaluationFiles, plain_values, sample_of
from skpool.model_selection._incremental_result import IncrementalResult, StagePredictions
from skpool.model_selection._seen_classes import SeenClassesLearner, predict_among
from skpool.model_selection._stages import Stage, check_groups
from skpool.model_selection._state_bytes import state_bytes
from skpool.utils import check_labels

__all__ = ["incremental_evaluate"]

Scorer = Callable[[np.ndarray, np.ndarray], float]
Answers = Callable[[Any, np.ndarray | None], np.ndarray]
Record = dict[str, np.ndarray]
_WHO = "incremental_evaluate"


def incremental_evaluate(
    estimator: BaseEstimator,
    splitter: Any,
    X: Any,
    y: ArrayLike,
    *,
    X_test: Any = None,
    y_test: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    groups_test: ArrayLike | None = None,
    scenario: str = "class",
    scoring: str | Scorer = "accuracy",
    average: str = "micro",
    eval_future: bool = False,
    joint_reference: BaseEstimator | ArrayLike | None = None,
    random_reference: BaseEstimator | ArrayLike | float | None = None,
    return_predictions: bool = False,
    checkpoint: str | os.PathLike | None = None,
    on_stage: Callable[[IncrementalResult], Any] | None = None,
    fit_params: Mapping[str, Any] | None = None,
) -> IncrementalResult:
    """Learn in stages, and measure after every stage what is known of all of them.

    Parameters
    ----------
    estimator : classifier with `partial_fit`
        It is cloned. One of scikit-learn's is told all labels in its first call, as it demands,
        and is asked among the labels seen so far.
    splitter : splitter or sequence of Stage
        :class:`ClassIncrementalSplit`, :class:`FewShotIncrementalSplit`,
        :class:`DomainIncrementalSplit`, or stages themselves.
    X : indexable of length n_samples
        What the estimator learns from: an array, paths, an `ImageSequence`. The rows of a stage
        are taken from it when the stage comes.
    y : array-like of shape (n_samples,)
        Labels.
    X_test : indexable of length n_test, default=None
        Test rows; None to hold rows of X out, as the splitter says.
    y_test : array-like of shape (n_test,), default=None
        Their labels.
    groups : array-like of shape (n_samples,), default=None
        Groups, or domains, for the splitter.
    groups_test : array-like of shape (n_test,), default=None
        Domains of the test rows.
    scenario : {"class", "task", "domain"}, default="class"
        - "class": asked among all labels seen so far.
        - "task": told the stage that a test row belongs to, and asked among its labels.
        - "domain": as "class", and accuracies on domains to come are meaningful.
    scoring : "accuracy" or callable, default="accuracy"
        Accuracy, or a function of labels and predictions.
    average : {"micro", "macro"}, default="micro"
        Whether all rows count alike, or all classes.
    eval_future : bool, default=False
        Ask about stages to come as well, above the diagonal of the matrix. What is not defined
        there, as a task of which no class was seen, stays NaN.
    joint_reference : classifier or array-like of shape (n_stages,), default=None
        What to compare with: a classifier that is fitted, after every stage, on the rows of all
        stages so far; or its accuracies on everything seen.
    random_reference : classifier, float or array-like of shape (n_stages,), default=None
        Accuracy on every stage without learning: a number, one per stage, or a classifier such as
        :class:`sklearn.dummy.DummyClassifier` that is given the labels of all stages with
        features that are all 0.
    return_predictions : bool, default=False
        Keep the predictions after every stage.
    checkpoint : path-like, default=None
        Directory to which the results of every stage are written. Where it holds some, the stages
        are learned again and only the missing ones are evaluated.
    on_stage : callable, default=None
        Called with the result so far after every stage that was evaluated.
    fit_params : dict, default=None
        Arguments of `partial_fit`; those with one value per row of X are cut to the rows of a
        stage.

    Returns
    -------
    result : IncrementalResult

    Notes
    -----
    The cost is that of learning every row once, and of predicting the test rows of the first of T
    stages T times. A restart ends with the result of an undisturbed run if the estimator learns
    alike both times: give it an integer as `random_state`, since None and a `RandomState`
    instance draw something else after a restart. `checkpoint` holds labels and numbers, not rows;
    it is refused where parameters, stages, labels, or rows of X that were looked at differ.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import ClassIncrementalSplit, incremental_evaluate
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> y = np.arange(120) % 4
    >>> X = np.eye(4)[y] + 0.1 * np.random.default_rng(0).normal(size=(120, 4))
    >>> result = incremental_evaluate(
    ...     NearestClassMeanClassifier(), ClassIncrementalSplit(increment=2), X, y
    ... )
    >>> result.seen_accuracy
    array([1., 1.])
    """
    _check_options(scenario, scoring, average)
    data = _Data.checked(X, y, X_test, y_test)
    stages = _stages(splitter, data, groups, groups_test)
    evaluation = _Evaluation(data, stages, scenario, average, scoring, eval_future)
    references = _References(evaluation, joint_reference, random_reference)
    options = [scenario, scoring, average, eval_future, return_predictions]
    compared = [joint_reference, random_reference]
    files = None
    if checkpoint is not None:
        decisive = plain_values([estimator, options, compared, fit_params])
        files = EvaluationFiles(checkpoint, [decisive, evaluation.facts()])
    records = _finished(files, len(stages))
    learner = SeenClassesLearner(estimator, stages[-1].seen_classes)
    for record in _missing(learner, evaluation, references, len(records), fit_params or {}):
        if not return_predictions:
            del record["y_pred"]
        if files is not None:
            files.save(len(records), record)
        records.append(record)
        if on_stage is not None:
            on_stage(_result(evaluation, references, records))
    return _result(evaluation, references, records)


@dataclass(frozen=True)
class _Data:
    """What is learned from and what is asked; the same arrays where rows of X are held out."""

    X: Any
    y: np.ndarray
    X_test: Any
    y_test: np.ndarray
    apart: bool

    @classmethod
    def checked(cls, X: Any, y: ArrayLike, X_test: Any, y_test: ArrayLike | None) -> "_Data":
        if (X_test is None) != (y_test is None):
            given, missing = ("X_test", "y_test") if y_test is None else ("y_test", "X_test")
            raise ValueError(f"{given} is given and {missing} is None; give both or neither.")
        y = check_labels(y, n_samples=_num_samples(X), who=_WHO)
        if X_test is None:
            return cls(X, y, X, y, apart=False)
        y_test = check_labels(y_test, n_samples=_num_samples(X_test), who=_WHO)
        return cls(X, y, X_test, y_test, apart=True)


class _Evaluation:
    """Asks a learner about the test rows of the stages, each row once, and scores the answers."""

    def __init__(
        self,
        data: _Data,
        stages: list[Stage],
        scenario: str,
        average: str,
        scoring: str | Scorer,
        eval_future: bool,
    ):
        self.data, self.stages = data, stages
        self.scenario, self.average = scenario, average
        self.eval_future = eval_future
        self._scorer = _accuracy if scoring == "accuracy" else scoring
        # The test rows that each stage brings; a row that several bring belongs to the first.
        known = np.empty(0, dtype=np.intp)
        self._brought = []
        for stage in stages:
            rows = np.union1d(stage.test, stage.task_test).astype(np.intp)
            self._brought.append(np.setdiff1d(rows, known, assume_unique=True))
            known = np.union1d(known, rows)

    def facts(self) -> list:
        """What decides the results, in plain values."""
        data, stages = self.data, self.stages
        rows = [[s.train, s.test, s.task_test, s.classes, s.seen_classes] for s in stages]
        return [rows, data.y, data.y_test, sample_of(data.X), sample_of(data.X_test)]

    def score(self, y_true: np.ndarray, y_pred: np.ndarray) -> float:
        """Score of answers; NaN of none."""
        if len(y_true) == 0:
            return float("nan")
        if self.average == "micro":
            return float(self._scorer(y_true, y_pred))
        of_class = [y_true == label for label in np.unique(y_true)]
        return float(np.mean([self._scorer(y_true[rows], y_pred[rows]) for rows in of_class]))

    def answers(self, t: int, seen: np.ndarray, predict: Answers) -> tuple[np.ndarray, np.ndarray]:
        """Test rows, and what is answered on them; what cannot be answered is left out."""
        rows, answered = [], []
        for j in range(len(self.stages) if self.eval_future else t + 1):
            among = self.stages[j].classes if self.scenario == "task" else None
            chunk = self._brought[j]
            if len(chunk) == 0 or (among is not None and len(np.intersect1d(among, seen)) == 0):
                continue
            rows.append(chunk)
            answered.append(predict(_safe_indexing(self.data.X_test, chunk), among=among))
        if not rows:
            return np.empty(0, dtype=np.intp), self.data.y_test[:0]
        return np.concatenate(rows), np.concatenate(answered)

    def after(self, t: int, seen: np.ndarray, predict: Answers) -> dict[str, Any]:
        """All that is measured after stage t."""
        start = time.perf_counter()
        rows, answered = self.answers(t, seen, predict)
        predict_time = time.perf_counter() - start
        position = np.full(len(self.data.y_test), -1)
        position[rows] = np.arange(len(rows))

        def scored(wanted: np.ndarray) -> float:
            if len(wanted) == 0 or (position[wanted] < 0).any():
                return float("nan")
            return self.score(self.data.y_test[wanted], answered[position[wanted]])

        test = self.stages[t].test
        is_base = np.isin(self.data.y_test[test], self.stages[0].classes)
        asked = len(self.stages) if self.eval_future else t + 1
        row = [scored(stage.task_test) for stage in self.stages[:asked]]
        return {
            "accuracy": np.array(row + [np.nan] * (len(self.stages) - asked)),
            "seen_accuracy": scored(test),
            "base_accuracy": scored(test[is_base]),
            "novel_accuracy": scored(test[~is_base]),
            "predict_time": predict_time,
            "y_pred": answered[position[test]],
        }


class _References:
    """What the learner is compared with: all stages at once, and nothing learned at all."""

    def __init__(self, evaluation: _Evaluation, joint: Any, random: Any):
        self.evaluation = evaluation
        self._estimator = joint if hasattr(joint, "fit") else None
        self.random = random
        self.joint = None
        n_stages = len(evaluation.stages)
        if joint is not None and self._estimator is None:
            self.joint = np.asarray(joint, dtype=np.float64)
            if self.joint.shape != (n_stages,):
                raise ValueError(
                    f"joint_reference must be a classifier or {n_stages} accuracies, one per "
                    f"stage, got the shape {self.joint.shape}."
                )
        if hasattr(random, "fit"):
            self.random = self._untrained(random)
        elif random is not None:
            random = np.asarray(random, dtype=np.float64)
            if random.shape not in [(), (n_stages,)]:
                raise ValueError(
                    f"random_reference must be a classifier, a number or {n_stages} accuracies, "
                    f"got the shape {random.shape}."
                )
            self.random = np.broadcast_to(random, n_stages).copy()

    @property
    def fits(self) -> bool:
        """Whether a joint learner is fitted here."""
        return self._estimator is not None

    def after(self, t: int) -> dict[str, float]:
        """Accuracies of the joint learner after stage t."""
        if self._estimator is None:
            return {}
        data, stages = self.evaluation.data, self.evaluation.stages
        rows = np.concatenate([stage.train for stage in stages[: t + 1]])
        y = data.y[rows]
        fitted = clone(self._estimator).fit(_safe_indexing(data.X, rows), y)

        def predict(X: Any, among: np.ndarray | None) -> np.ndarray:
            if among is None:
                return np.asarray(fitted.predict(X))
            return predict_among(fitted, X, np.intersect1d(among, y))

        measured = self.evaluation.after(t, np.unique(y), predict)
        return {
            "joint_accuracy": measured["seen_accuracy"],
            "joint_stage_accuracy": measured["accuracy"][t],
        }

    def _untrained(self, estimator: BaseEstimator) -> np.ndarray:
        """Accuracy on every stage of a learner that sees labels and no features."""
        evaluation, data = self.evaluation, self.evaluation.data
        y = data.y[np.concatenate([stage.train for stage in evaluation.stages])]
        fitted = clone(estimator).fit(np.zeros((len(y), 1)), y)
        accuracy = []
        for stage in evaluation.stages:
            y_true, X = data.y_test[stage.task_test], np.zeros((len(stage.task_test), 1))
            if len(X) == 0:
                accuracy.append(np.nan)
            elif evaluation.scenario == "task":
                accuracy.append(evaluation.score(y_true, predict_among(fitted, X, stage.classes)))
            else:
                accuracy.append(evaluation.score(y_true, fitted.predict(X)))
        return np.array(accuracy)


def _accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    return float(np.mean(y_true == y_pred))


def _check_options(scenario: str, scoring: str | Scorer, average: str) -> None:
    for name, value, choices in (
        ("scenario", scenario, ["class", "task", "domain"]),
        ("average", average, ["micro", "macro"]),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {value!r}.")
    if scoring != "accuracy" and not callable(scoring):
        raise ValueError(
            f"scoring must be 'accuracy' or a function of labels and predictions, got {scoring!r}."
        )


def _stages(
    splitter: Any, data: _Data, groups: ArrayLike | None, groups_test: ArrayLike | None
) -> list[Stage]:
    if isinstance(splitter, Sequence) and all(isinstance(stage, Stage) for stage in splitter):
        stages = list(splitter)
    elif hasattr(splitter, "stages"):
        given = {"y_test": data.y_test} if data.apart else {}
        if groups is not None:
            given["groups"] = check_groups(groups, len(data.y))
        if groups_test is not None:
            given["groups_test"] = check_groups(groups_test, len(data.y_test), name="groups_test")
        stages = splitter.stages(data.y, **given)
    else:
        raise TypeError(
            f"splitter={splitter!r} has no method stages; give a splitter such as "
            "ClassIncrementalSplit, or a list of Stage."
        )
    if not stages:
        raise ValueError("splitter gives no stage; give at least one.")
    return stages


def _finished(files: EvaluationFiles | None, n_stages: int) -> list[Record]:
    """Results of the stages that are finished, up to the first that is not."""
    records: list[Record] = []
    while files is not None and len(records) < n_stages:
        record = files.load(len(records))
        if record is None:
            break
        records.append(record)
    return records


def _missing(
    learner: SeenClassesLearner,
    evaluation: "_Evaluation",
    references: "_References",
    n_finished: int,
    fit_params: Mapping[str, Any],
) -> Iterator[Record]:
    """Learn all stages, and measure after those that are not finished."""
    data, stages = evaluation.data, evaluation.stages
    if n_finished == len(stages):
        return
    for t, stage in enumerate(stages):
        params = _check_method_params(data.X, fit_params, indices=stage.train)
        start = time.perf_counter()
        learner.learn(_safe_indexing(data.X, stage.train), data.y[stage.train], params)
        record = {"fit_time": time.perf_counter() - start}
        if t >= n_finished:
            record |= {"state_bytes": state_bytes(learner.estimator)}
            record |= evaluation.after(t, learner.seen, learner.predict) | references.after(t)
            yield {name: np.asarray(value) for name, value in record.items()}


def _result(
    evaluation: "_Evaluation", references: "_References", records: list[Record]
) -> IncrementalResult:
    """The result of the stages evaluated so far."""
    n, stages, y_test = len(records), evaluation.stages[: len(records)], evaluation.data.y_test
    curves = ["seen_accuracy", "base_accuracy", "novel_accuracy"]
    curves += ["fit_time", "predict_time", "state_bytes"]
    if references.fits:
        curves += ["joint_accuracy", "joint_stage_accuracy"]
    found: dict[str, Any] = {
        name: np.array([record[name].item() for record in records]) for name in curves
    }
    if references.joint is not None:
        found["joint_accuracy"] = references.joint[:n]
    if references.random is not None:
        found["random_accuracy"] = references.random[:n]
    if "y_pred" in records[0]:
        found["predictions"] = [
            StagePredictions(stage.test, y_test[stage.test], record["y_pred"])
            for stage, record in zip(stages, records, strict=True)
        ]
    if any(stage.domain is not None for stage in stages):
        found["stage_names"] = [stage.domain for stage in stages]
    return IncrementalResult(
        accuracy_matrix=np.array([record["accuracy"][:n] for record in records]),
        test_counts=np.array([len(stage.task_test) for stage in stages]),
        stages=[stage.classes for stage in stages],
        scenario=evaluation.scenario,
        average=evaluation.average,
        **found,
    )
