# SPDX-License-Identifier: BSD-3-Clause
"""few_shot_score: accuracy over many few-shot episodes, with the interval that belongs to it.

Draws episodes (`EpisodeSplit`), maps the features once where the steps of a pipeline allow it, and
lets the classifier take batches of episodes (`EpisodeBatch`) where it can, or a clone per episode.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import _safe_indexing, get_tags
from sklearn.utils.parallel import Parallel, delayed

from skpool.model_selection._episode_batch import EpisodeBatch
from skpool.model_selection._episodes import EpisodeIndex, EpisodeSplit
from skpool.utils import ArrayLike, check_labels, side_by_side, validate_vectors

__all__ = ["FewShotResult", "compare_few_shot", "few_shot_score", "transductive_accuracy"]

# Features of a batch, if all were gathered at once; methods take a few of its episodes at a time.
_BATCH_BYTES = 200 << 20


@dataclass(frozen=True, eq=False)
class FewShotResult:
    """Accuracies of few-shot episodes, or differences of two methods on the same episodes.

    Parameters
    ----------
    mean : float
        Mean over the episodes.
    ci95 : float
        Half the width of the 95 % interval of the mean, by Student's t distribution; NaN for one
        episode.
    std : float
        Standard deviation over the episodes, with n_episodes - 1 in the denominator.
    scores : ndarray of shape (n_episodes,)
        Of each episode.
    n_episodes : int
        How many.
    seconds : float
        What the evaluation took, from rows to scores.
    index : EpisodeIndex, default=None
        The episodes, by which two results are paired.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import FewShotResult
    >>> print(FewShotResult.from_scores(np.array([0.6, 0.7, 0.8])))
    70.00 +- 24.84 % over 3 episodes
    """

    mean: float
    ci95: float
    std: float
    scores: np.ndarray
    n_episodes: int
    seconds: float
    index: EpisodeIndex | None = None

    @classmethod
    def from_scores(
        cls, scores: np.ndarray, seconds: float = 0.0, index: EpisodeIndex | None = None
    ) -> "FewShotResult":
        """Compute mean and interval.

        Parameters
        ----------
        scores : ndarray of shape (n_episodes,)
            Of each episode.
        seconds : float, default=0.0
            What the evaluation took.
        index : EpisodeIndex, default=None
            The episodes.

        Returns
        -------
        result : FewShotResult
        """
        n = len(scores)
        std = float(np.std(scores, ddof=1)) if n > 1 else np.nan
        ci95 = float(student_t.ppf(0.975, n - 1) * std / np.sqrt(n)) if n > 1 else np.nan
        return cls(float(np.mean(scores)), ci95, std, scores, n, seconds, index)

    def __str__(self) -> str:
        interval = f"{100 * self.mean:.2f} +- {100 * self.ci95:.2f} %"
        return f"{interval} over {self.n_episodes} episodes"


def few_shot_score(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    cv: EpisodeSplit | EpisodeIndex | None = None,
    *,
    groups: ArrayLike | None = None,
    transductive: bool | None = None,
    X_base: ArrayLike | None = None,
    y_base: ArrayLike | None = None,
    batch_size: int | None = None,
    n_jobs: int | None = None,
    average: str = "micro",
) -> FewShotResult:
    r"""Evaluate a classifier on few-shot episodes.

    The classifier learns the supports of each episode and is asked for its queries. The result is
    the mean of the accuracies with :math:`\pm t_{0.975, E-1} \, s / \sqrt{E}` for E episodes.

    Parameters
    ----------
    estimator : classifier
        Or a pipeline that ends in one. It is not changed.
    X : array-like or tensor of shape (n_samples, n_features)
        Feature vectors, or what the first step of the pipeline takes.
    y : array-like of shape (n_samples,)
        Labels, of any kind.
    cv : EpisodeSplit or EpisodeIndex, default=None
        The episodes; None for ``EpisodeSplit()``: 600 of 5 ways, 1 shot and 15 queries a class.
    groups : array-like of shape (n_samples,), default=None
        What supports and queries may not share.
    transductive : bool, default=None
        Whether the queries of an episode are classified as one set, by `predict_transductive`.
        None asks whether the classifier has it.
    X_base : array-like or tensor of shape (n_base, n_features), default=None
        Rows of other classes, which the transformers of a pipeline are fitted to, once.
    y_base : array-like of shape (n_base,), default=None
        Their labels, for transformers that use labels.
    batch_size : int, default=None
        Episodes at a time, for classifiers that take many; None for as many as fill 24 MB, since
        few episodes cost calls, and many the memory that they are read from.
    n_jobs : int, default=None
        Processes for classifiers that take one episode after the other; the others use the
        threads of torch. Never changes the result.
    average : {"micro", "macro"}, default="micro"
        Accuracy of an episode: over its queries, or the mean of its classes' accuracies.

    Returns
    -------
    result : FewShotResult

    See Also
    --------
    compare_few_shot : Difference of two methods on the same episodes.

    Notes
    -----
    The interval covers the draw of episodes from these rows alone, neither other data nor another
    training of the backbone.

    Transformers of a pipeline are fitted to `X_base` where it is given, never to rows of an
    episode, and X is transformed once. Without `X_base` those that need no fit, and scikit-learn's
    `FrozenEstimator`, are applied once too; from the first one that has to be fitted on, every
    episode gets a clone that is fitted to its supports. A classifier with `predict_episodes` then
    takes batches of episodes.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import EpisodeSplit, few_shot_score
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> y = np.repeat(np.arange(8), 20)
    >>> X = np.random.default_rng(0).normal(size=(160, 8)) + 8 * np.eye(8)[y]
    >>> cv = EpisodeSplit(n_way=5, n_shot=1, n_episodes=100)
    >>> bool(few_shot_score(NearestClassMeanClassifier("euclidean"), X, y, cv).mean > 0.95)
    True
    """
    start = time.perf_counter()
    if average not in ("micro", "macro"):
        raise ValueError(f"average={average!r} is not valid; give 'micro' or 'macro'.")
    y = check_labels(y, n_samples=len(y), who="few_shot_score")
    index = _episodes(cv, y, groups)
    estimator, X = _with_shared_steps_applied(estimator, X, X_base, y_base)
    transductive = _is_transductive(estimator, transductive)
    if _takes_episodes(estimator, transductive):
        predicted = _predict_batched(estimator, X, index, batch_size)
    else:
        predicted = _predict_one_by_one(estimator, X, y, index, transductive, n_jobs)
    scores = _accuracies(predicted, index, average)
    return FewShotResult.from_scores(scores, time.perf_counter() - start, index)


def compare_few_shot(results_a: FewShotResult, results_b: FewShotResult) -> FewShotResult:
    """Return the paired difference of two methods on the same episodes.

    Parameters
    ----------
    results_a, results_b : FewShotResult
        Of the same episodes: of one `EpisodeSplit` with an integer `random_state`.

    Returns
    -------
    difference : FewShotResult
        Of a minus b: an interval without 0 tells the two apart. It is narrower than the intervals
        of the two suggest, since hard episodes are hard for both.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.model_selection import FewShotResult, compare_few_shot
    >>> a, b = (FewShotResult.from_scores(np.array(s)) for s in ([0.6, 0.9], [0.5, 0.8]))
    >>> round(compare_few_shot(a, b).mean, 3)
    0.1
    """
    a, b = results_a, results_b
    same = len(a.scores) == len(b.scores)
    if same and a.index is not None and b.index is not None:
        names = ("support", "query", "query_labels")
        same = all(np.array_equal(getattr(a.index, n), getattr(b.index, n)) for n in names)
    if not same:
        raise ValueError(
            f"The results are of different episodes ({len(a.scores)} and {len(b.scores)}), so "
            "they cannot be paired; evaluate both with one EpisodeSplit of an integer random_state."
        )
    return FewShotResult.from_scores(a.scores - b.scores, a.seconds + b.seconds, a.index)


def transductive_accuracy(estimator: BaseEstimator, X: ArrayLike, y: ArrayLike) -> float:
    """Return the accuracy of a fitted transductive classifier on queries taken as one set.

    A scorer: ``GridSearchCV(classifier, grid, cv=EpisodeSplit(), scoring=transductive_accuracy)``.

    Parameters
    ----------
    estimator : classifier
        With `predict_transductive`, or a pipeline that ends in one; fitted to the supports.
    X : array-like or tensor of shape (n_query, n_features)
        Queries of one episode.
    y : array-like of shape (n_query,)
        Their labels.

    Returns
    -------
    accuracy : float

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.few_shot import TransductivePrototypeClassifier
    >>> from skpool.model_selection import transductive_accuracy
    >>> supports = TransductivePrototypeClassifier().fit([[0.0, 1.0], [1.0, 0.0]], ["a", "b"])
    >>> transductive_accuracy(supports, np.array([[0.1, 0.9], [0.8, 0.1]]), ["a", "b"])
    1.0
    """
    return float(np.mean(_predict(estimator, X, transductive=True) == np.asarray(y)))


def _episodes(cv: Any, y: np.ndarray, groups: ArrayLike | None) -> EpisodeIndex:
    if isinstance(cv, EpisodeIndex):
        if groups is not None:
            raise ValueError(
                "groups decide how episodes are drawn, and cv holds drawn ones; give groups to "
                "EpisodeSplit.episodes."
            )
        return cv
    cv = EpisodeSplit() if cv is None else cv
    if not hasattr(cv, "episodes"):
        raise TypeError(f"cv={cv!r} draws no episodes; give an EpisodeSplit or an EpisodeIndex.")
    return cv.episodes(y, groups)


# Steps that are the same for all episodes.


def _with_shared_steps_applied(
    estimator: BaseEstimator, X: ArrayLike, X_base: ArrayLike | None, y_base: ArrayLike | None
) -> tuple[BaseEstimator, ArrayLike]:
    """Apply the leading steps that no episode changes; return what is left, and X behind them."""
    if not hasattr(estimator, "steps"):
        return estimator, X
    *leading, (_, final) = estimator.steps
    for done, (_, step) in enumerate(leading):
        if step is None or isinstance(step, str):
            continue
        if getattr(step, "transductive", False):
            # What it subtracts is of the rows beside a row.
            return _rest(estimator, done), X
        frozen = isinstance(step, FrozenEstimator)
        if X_base is None and get_tags(step).requires_fit and not frozen:
            return _rest(estimator, done), X
        step = clone(step)
        if X_base is not None:
            step.fit(X_base, y_base)
            X_base = step.transform(X_base)
        X = step.transform(X)
    return final, X


def _rest(pipeline: BaseEstimator, done: int) -> BaseEstimator:
    rest = clone(pipeline)
    return rest.set_params(steps=rest.steps[done:])


# Predictions.


def _final(estimator: BaseEstimator) -> BaseEstimator:
    return estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator


def _is_transductive(estimator: BaseEstimator, asked: bool | None) -> bool:
    able = hasattr(_final(estimator), "predict_transductive")
    if asked and not able:
        raise ValueError(
            f"transductive=True, and {type(_final(estimator)).__name__} has no method "
            "predict_transductive; leave transductive=None."
        )
    return able if asked is None else asked


def _takes_episodes(estimator: BaseEstimator, transductive: bool) -> bool:
    """Whether `predict_episodes` is there and means what was asked for."""
    able = hasattr(estimator, "predict_transductive")
    return hasattr(estimator, "predict_episodes") and able == transductive


def _predict_batched(
    estimator: BaseEstimator, X: ArrayLike, index: EpisodeIndex, batch_size: int | None
) -> np.ndarray:
    X = validate_vectors(BaseEstimator(), X)
    if batch_size is None:
        rows = index.support.shape[1] + index.query.shape[1]
        batch_size = max(1, _BATCH_BYTES // (rows * X.shape[1] * max(4, X.itemsize)))
    predicted = np.empty(index.query.shape, dtype=np.intp)

    def work(part: slice) -> None:
        done = part.start
        for batch in EpisodeBatch.from_index(X, index[part], batch_size):
            found = estimator.predict_episodes(batch)
            predicted[done : done + len(batch)] = found.cpu().numpy()
            done += len(batch)

    with torch.inference_mode():
        on_device = isinstance(X, torch.Tensor) and X.device.type != "cpu"
        if on_device or getattr(estimator, "_takes_all_threads", False):
            work(slice(0, len(index)))
        else:
            side_by_side(work, len(index))
    return predicted


def _predict_one_by_one(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: np.ndarray,
    index: EpisodeIndex,
    transductive: bool,
    n_jobs: int | None,
) -> np.ndarray:
    found = Parallel(n_jobs=n_jobs)(
        delayed(_predict_one)(estimator, X, y, support[support >= 0], query, transductive)
        for support, query in zip(index.support, index.query, strict=True)
    )
    predicted = np.full(index.query.shape, -1, dtype=np.intp)
    for row, labels, classes, query in zip(
        predicted, found, index.classes, index.query, strict=True
    ):
        numbers = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
        row[query >= 0] = np.where(classes[numbers] == labels, numbers, -1)
    return predicted


def _predict_one(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: np.ndarray,
    support: np.ndarray,
    query: np.ndarray,
    transductive: bool,
) -> np.ndarray:
    fitted = clone(estimator).fit(_safe_indexing(X, support), y[support])
    return _predict(fitted, _safe_indexing(X, query[query >= 0]), transductive=transductive)


def _predict(estimator: BaseEstimator, X: ArrayLike, *, transductive: bool) -> np.ndarray:
    if not transductive:
        return estimator.predict(X)
    if hasattr(estimator, "steps"):
        X = estimator[:-1].transform(X) if len(estimator.steps) > 1 else X
    return _final(estimator).predict_transductive(X)


def _accuracies(predicted: np.ndarray, index: EpisodeIndex, average: str) -> np.ndarray:
    labels = index.query_labels
    right, real = (predicted == labels) & (labels >= 0), labels >= 0
    if average == "micro":
        return right.sum(axis=1) / real.sum(axis=1)
    n_way = index.classes.shape[1]
    hits = np.stack([(right & (labels == c)).sum(axis=1) for c in range(n_way)], axis=1)
    asked = np.stack([(labels == c).sum(axis=1) for c in range(n_way)], axis=1)
    recalls = np.where(asked > 0, hits / np.maximum(asked, 1), 0.0)
    return recalls.sum(axis=1) / (asked > 0).sum(axis=1)
