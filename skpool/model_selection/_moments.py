# SPDX-License-Identifier: BSD-3-Clause
"""Cross-validation that reads the rows once, for classifiers that follow from moments.

Every row is learned in one fold; the classifier of a training set is the merger of the other
folds. What remains per candidate is to solve and to score.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import check_scoring
from sklearn.model_selection import BaseCrossValidator, ParameterGrid
from sklearn.utils import _safe_indexing

from skpool.statistics import fold_indices
from skpool.utils import ArrayLike

__all__ = ["cross_val_from_moments"]


def cross_val_from_moments(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    *,
    param_grid: Mapping | Sequence[Mapping] | None = None,
    cv: int | BaseCrossValidator = 5,
    groups: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    scoring: str | Callable | None = None,
) -> dict[str, Any]:
    """Cross-validate classifiers that learn in parts and merge, without fitting them again.

    Parameters
    ----------
    estimator : classifier
        One of the exact family: it has `partial_fit` and `merge`.
    X : array-like or tensor of shape (n_samples, n_features)
        Feature vectors.
    y : array-like of shape (n_samples,)
        Labels.
    param_grid : dict or list of dict, default=None
        Candidates, as for :class:`sklearn.model_selection.GridSearchCV`; None for the estimator
        as it is.
    cv : int, splitter or iterable, default=5
        As in scikit-learn; an integer stratifies by class. Every row must be left out once.
    groups : array-like of shape (n_samples,), default=None
        For splitters that keep groups together.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights that the samples are learned with; scores do not use them.
    scoring : str, callable or None, default=None
        As in scikit-learn; None is the estimator's own `score`.

    Returns
    -------
    results : dict
        In the form of ``GridSearchCV.cv_results_``: "params", "param_..." of every parameter,
        "split0_test_score" and so on, "mean_test_score", "std_test_score", "rank_test_score".

    Notes
    -----
    The scores are those of scikit-learn's cross-validation, to rounding, at the cost of one fit
    and, per fold and candidate, one solution and one prediction. Parameters on which the learned
    sums depend (a scatter per class in place of a shared one) cost one fit per value.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.linear_model import RidgeHeadClassifier
    >>> from skpool.model_selection import cross_val_from_moments
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(90, 4)), np.arange(90) % 3
    >>> grid = {"alpha": [0.01, 1.0, 100.0]}
    >>> found = cross_val_from_moments(RidgeHeadClassifier(), X, y, param_grid=grid)
    >>> found["mean_test_score"].shape
    (3,)
    """
    if not hasattr(estimator, "partial_fit") or not hasattr(estimator, "merge"):
        raise TypeError(
            f"estimator={estimator!r} does not learn in parts that merge; take cross_validate or "
            "GridSearchCV of scikit-learn."
        )
    candidates = list(ParameterGrid({} if param_grid is None else param_grid))
    folds = fold_indices(cv, y, groups)
    held_out = [(_safe_indexing(X, fold), _safe_indexing(y, fold)) for fold in folds]
    weights = [{}] * len(folds)
    if sample_weight is not None:
        weights = [{"sample_weight": np.asarray(sample_weight)[fold]} for fold in folds]
    scores = np.empty((len(candidates), len(folds)))
    for members in _learning_alike(estimator, candidates):
        first = clone(estimator).set_params(**candidates[members[0]])
        parts = [
            clone(first).partial_fit(*rows, **w) for rows, w in zip(held_out, weights, strict=True)
        ]
        for k, rows in enumerate(held_out):
            trained = _merged(parts[:k] + parts[k + 1 :])
            for c in members:
                candidate = copy.copy(trained).set_params(**clone(candidates[c], safe=False))
                candidate._refresh()
                scores[c, k] = check_scoring(candidate, scoring)(candidate, *rows)
    return _results(candidates, scores)


def _learning_alike(estimator: BaseEstimator, candidates: list[dict]) -> list[list[int]]:
    """Group the candidates that learn the same, and differ in what they solve for."""
    groups: dict[str, list[int]] = {}
    for c, params in enumerate(candidates):
        learned = {k: v for k, v in params.items() if k not in estimator._solved_parameters}
        kind = ()
        if hasattr(estimator, "_new_moments"):
            # Whether products are in float64 follows from how little regularises.
            moments = clone(estimator).set_params(**clone(params, safe=False))._new_moments()
            kind = type(moments).__name__, moments.scatter, moments.product_dtype
        groups.setdefault(repr((learned, kind)), []).append(c)
    return list(groups.values())


def _merged(parts: list[BaseEstimator]) -> BaseEstimator:
    total = copy.deepcopy(parts[0])
    for part in parts[1:]:
        total.merge(part)
    return total


def _results(candidates: list[dict], scores: np.ndarray) -> dict[str, Any]:
    results: dict[str, Any] = {"params": candidates}
    for name in sorted({name for params in candidates for name in params}):
        values = np.ma.masked_all(len(candidates), dtype=object)
        for c, params in enumerate(candidates):
            if name in params:
                values[c] = params[name]
        results[f"param_{name}"] = values
    for k, column in enumerate(scores.T):
        results[f"split{k}_test_score"] = column.copy()
    mean = scores.mean(axis=1)
    results |= {"mean_test_score": mean, "std_test_score": scores.std(axis=1)}
    results["rank_test_score"] = rankdata(-mean, method="min").astype(np.int32)
    return results
