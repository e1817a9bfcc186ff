# SPDX-License-Identifier: BSD-3-Clause
"""PoolingComparisonDisplay: which pooling, which whitening, which classifier, and at what cost.

A grid search leaves a table of some hundred rows. This reads it (`from_search`,
`from_cv_results`), orders it by pooling, and draws it so that a difference can be held against
its standard error.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils.validation import check_is_fitted

from skpool.inspection._drawing import draw_comparison
from skpool.inspection._names import key_of, names_of_values

__all__ = ["PoolingComparisonDisplay"]

Names = str | Sequence[str] | None


class _Candidates(NamedTuple):
    """What a search found out about each of its candidates."""

    params: list[dict]
    scores: np.ndarray
    cost: np.ndarray


class PoolingComparisonDisplay:
    """Score and cost of every pooling, whitening and classifier of a grid search.

    One row per pooling, the best on top; in it one point per whitening (by colour, top to bottom)
    and classifier (by marker) at the mean over the splits, with its standard error. The narrow
    axes beside it have the cost. Use `from_search` or `from_cv_results` rather than this
    constructor.

    Parameters
    ----------
    poolings : sequence of str, of length n_poolings
        Names of the rows.
    whitenings : sequence of str, of length n_whitenings
        Names of the colours.
    classifiers : sequence of str, of length n_classifiers
        Names of the markers.
    mean : ndarray of shape (n_poolings, n_whitenings, n_classifiers)
        Mean score over the splits; NaN where a split failed or the combination was not tried.
    standard_error : ndarray of shape (n_poolings, n_whitenings, n_classifiers)
        Standard error of the mean.
    cost : ndarray of shape (n_poolings, n_whitenings, n_classifiers)
        Seconds to fit and score one split.
    n_failed : ndarray of shape (n_poolings, n_whitenings, n_classifiers)
        Splits on which the fit or the score failed.
    n_candidates : ndarray of shape (n_poolings, n_whitenings, n_classifiers)
        Candidates of the search that fall into a cell, of which it has the best.
    n_splits : int
        Splits of the cross-validation.
    score_name : str, default="score"
        What the score is.
    best_of : sequence of str, default=()
        Parameters that the search varied besides, over which each cell is the best.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure; after `plot`.
    ax_ : matplotlib Axes
        The axes of the scores; after `plot`.
    cost_ax_ : matplotlib Axes or None
        The axes of the cost; after `plot`.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : The search.

    Notes
    -----
    The standard error is the standard deviation over the splits (divisor one less than their
    number) divided by the square root of the number of splits. Splits share most of their
    training rows, so it is a lower bound; and since all candidates see the same splits, the
    difference of two is usually known better than either. The best of many candidates is the
    luckiest of them too: its score on rows that the search never saw is the one to report.

    The cost is `mean_fit_time` + `mean_score_time` of the search. Where a feature extractor is
    part of the pipeline, the first candidate pays for the pass of the network.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import Pipeline
    >>> from skpool.inspection import PoolingComparisonDisplay
    >>> from skpool.pooling import GeMPooling, TokenPooling
    >>> from skpool.preprocessing import Whitening
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> y = np.arange(30) % 2
    >>> tokens = np.random.default_rng(0).normal(size=(30, 5, 4)) + y[:, None, None]
    >>> pipeline = Pipeline(
    ...     [("pool", None), ("whiten", None), ("clf", NearestClassMeanClassifier())]
    ... )
    >>> grid = {"pool": [TokenPooling("max"), GeMPooling(4.6)], "whiten": [None, Whitening()]}
    >>> search = GridSearchCV(pipeline, grid).fit(tokens, y)
    >>> display = PoolingComparisonDisplay.from_search(search, classifier=None)
    >>> sorted(display.poolings), display.whitenings
    (['GeM, p=4.6', 'max'], ['none', 'Whitening'])
    >>> display.mean.shape
    (2, 2, 1)
    """

    def __init__(
        self,
        *,
        poolings: Sequence[str],
        whitenings: Sequence[str],
        classifiers: Sequence[str],
        mean: np.ndarray,
        standard_error: np.ndarray,
        cost: np.ndarray,
        n_failed: np.ndarray,
        n_candidates: np.ndarray,
        n_splits: int,
        score_name: str = "score",
        best_of: Sequence[str] = (),
    ):
        self.poolings = poolings
        self.whitenings = whitenings
        self.classifiers = classifiers
        self.mean = mean
        self.standard_error = standard_error
        self.cost = cost
        self.n_failed = n_failed
        self.n_candidates = n_candidates
        self.n_splits = n_splits
        self.score_name = score_name
        self.best_of = best_of

    @classmethod
    def from_search(
        cls,
        search: BaseEstimator,
        *,
        pooling: str | Sequence[str] = "pool",
        whitening: Names = "whiten",
        classifier: Names = "clf",
        score: str | None = None,
        score_name: str | None = None,
        names: Mapping[str, object] | None = None,
        ax: Any = None,
        **kwargs: object,
    ) -> "PoolingComparisonDisplay":
        """Draw what a fitted search found.

        Parameters
        ----------
        search : GridSearchCV or RandomizedSearchCV, fitted
        pooling, whitening, classifier
            As in `from_cv_results`.
        score : str, default=None
            Which of several scorers; None for the one that the search was refitted by.
        score_name : str, default=None
            What to call the score; None for the name of the scorer.
        names, ax, **kwargs
            As in `from_cv_results`.

        Returns
        -------
        display : PoolingComparisonDisplay
        """
        check_is_fitted(search, "cv_results_")
        if score is None:
            score = search.refit if search.multimetric_ else "score"
        if not isinstance(score, str):
            raise ValueError(
                f"score=None and refit={search.refit!r} do not say which of several scorers to "
                "draw; give the name of one as score."
            )
        return cls.from_cv_results(
            search.cv_results_,
            pooling=pooling,
            whitening=whitening,
            classifier=classifier,
            score=score,
            score_name=score_name or _name_of_score(search, score),
            names=names,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, object],
        *,
        pooling: str | Sequence[str] = "pool",
        whitening: Names = "whiten",
        classifier: Names = "clf",
        score: str = "score",
        score_name: str | None = None,
        names: Mapping[str, object] | None = None,
        ax: Any = None,
        **kwargs: object,
    ) -> "PoolingComparisonDisplay":
        """Draw the table of a search.

        Parameters
        ----------
        cv_results : dict
            The attribute `cv_results_` of a search.
        pooling : str or sequence of str, default="pool"
            Parameter of the search that chose the pooling, such as "pool" or "pool__strategy"; or
            several, such as ("pool", "pool__p").
        whitening : str, sequence of str or None, default="whiten"
            Parameter that chose the whitening; None where the search did not vary it.
        classifier : str, sequence of str or None, default="clf"
            Parameter that chose the classifier; None where the search did not vary it.
        score : str, default="score"
            Which scorer: the end of the keys "mean_test_...".
        score_name : str, default=None
            What to call the score on its axis; None for `score`.
        names : dict, default=None
            Names of values in the grid, such as ``{"VLAD": VLADPooling(8), "raw": None}``, in
            place of those made of class and parameters.
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : PoolingComparisonDisplay
            Where several candidates have the same pooling, whitening and classifier, the one with
            the best mean is shown.
        """
        candidates = _read(cv_results, score)
        roles = {"pooling": pooling, "whitening": whitening, "classifier": classifier}
        parameters = {role: _parameters(candidates.params, role, roles[role]) for role in roles}
        _check_names(candidates.params, names or {})
        named = [_names(candidates.params, chosen, names or {}) for chosen in parameters.values()]
        used = {name for chosen in parameters.values() for name in chosen}
        others = _varied(candidates.params) - used
        display = cls(
            **_table(candidates, *named),
            n_splits=candidates.scores.shape[1],
            score_name=score if score_name is None else score_name,
            best_of=sorted(others),
        )
        return display.plot(ax=ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        cost: bool = True,
        values: bool = True,
        reference: Mapping[str, float] | None = None,
        title: str | None = None,
    ) -> "PoolingComparisonDisplay":
        """Draw the comparison.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None for a new figure, as high as the number of poolings asks for.
        cost : bool, default=True
            Draw the cost in narrow axes on the right.
        values : bool, default=True
            Write the best mean of each pooling beside its row.
        reference : dict of {str: float}, default=None
            Scores to be marked by a line, such as ``{"chance": 0.1}``.
        title : str, default=None
            Stands above the legend.

        Returns
        -------
        display : PoolingComparisonDisplay
            This one.
        """
        reference = {name: float(score) for name, score in (reference or {}).items()}
        self.ax_, self.cost_ax_ = draw_comparison(
            self, ax, cost=cost, values=values, reference=reference, title=title
        )
        self.figure_ = self.ax_.figure
        return self


def _read(cv_results: Mapping[str, object], score: str) -> _Candidates:
    """The scores of every candidate on every split, and what they cost."""
    if "params" not in cv_results:
        raise ValueError(
            f"cv_results has the keys {sorted(cv_results)[:5]} and no 'params'; give the "
            "cv_results_ of a fitted search."
        )
    end = f"_test_{score}"
    splits = [key for key in cv_results if key.startswith("split") and key.endswith(end)]
    if not splits:
        scorers = sorted(key[10:] for key in cv_results if key.startswith("mean_test_"))
        raise ValueError(f"score={score!r} is not in cv_results; choose from {scorers}.")
    return _Candidates(
        list(cv_results["params"]),
        np.stack([np.asarray(cv_results[key], dtype=np.float64) for key in splits], axis=1),
        np.asarray(cv_results["mean_fit_time"]) + np.asarray(cv_results["mean_score_time"]),
    )


def _varied(params: list[dict]) -> set[str]:
    return {name for chosen in params for name in chosen}


def _parameters(params: list[dict], role: str, given: Names) -> tuple[str, ...]:
    """The parameters that play a role, which the search must have varied."""
    wanted = (given,) if isinstance(given, str) else tuple(given or ())
    for name in wanted:
        if name not in _varied(params):
            remedy = "" if role == "pooling" else f", or {role}=None if none of them chose it"
            raise ValueError(
                f"{role}={given!r} is no parameter of this search, which varied "
                f"{sorted(_varied(params))}; give one of these{remedy}."
            )
    if not wanted and role == "pooling":
        raise ValueError(
            f"pooling={given!r} names no parameter; give one of {sorted(_varied(params))}."
        )
    return wanted


def _check_names(params: list[dict], names: Mapping[str, object]) -> None:
    tried = {key_of(value) for chosen in params for value in chosen.values()}
    for name, value in names.items():
        if key_of(value) not in tried:
            raise ValueError(
                f"names has {name!r} for {value!r}, which the search did not try; leave it out."
            )


def _names(
    params: list[dict], parameters: tuple[str, ...], names: Mapping[str, object]
) -> list[str]:
    """What each candidate chose; nothing where the search had no choice."""
    if not parameters:
        return [""] * len(params)
    return names_of_values(
        [{p: chosen[p] for p in parameters if p in chosen} for chosen in params], names
    )


def _table(
    candidates: _Candidates, poolings: list[str], whitenings: list[str], classifiers: list[str]
) -> dict[str, object]:
    """The candidates by pooling, whitening and classifier, the best pooling first."""
    mean = candidates.scores.mean(axis=1)
    # The best comes last, so that it stays where several candidates share a cell.
    ascending = np.argsort(np.where(np.isnan(mean), -np.inf, mean), kind="stable")
    rows = list(dict.fromkeys(poolings[i] for i in ascending[::-1]))
    axes = rows, list(dict.fromkeys(whitenings)), list(dict.fromkeys(classifiers))
    shape = tuple(map(len, axes))
    scores = np.full((*shape, candidates.scores.shape[1]), np.nan)
    cost, n_failed, n_candidates = (
        np.full(shape, np.nan),
        np.zeros(shape, int),
        np.zeros(shape, int),
    )
    for i in ascending:
        named = poolings[i], whitenings[i], classifiers[i]
        cell = tuple(axis.index(name) for axis, name in zip(axes, named, strict=True))
        scores[cell], cost[cell] = candidates.scores[i], candidates.cost[i]
        n_failed[cell] = np.isnan(candidates.scores[i]).sum()
        n_candidates[cell] += 1
    return {
        **dict(zip(("poolings", "whitenings", "classifiers"), axes, strict=True)),
        "mean": scores.mean(axis=-1),
        "standard_error": _standard_error(scores),
        "cost": cost,
        "n_failed": n_failed,
        "n_candidates": n_candidates,
    }


def _standard_error(scores: np.ndarray) -> np.ndarray:
    """Standard error over the last axis; NaN for one split, which says nothing of the spread."""
    n_splits = scores.shape[-1]
    if n_splits == 1:
        return np.full(scores.shape[:-1], np.nan)
    return scores.std(axis=-1, ddof=1) / np.sqrt(n_splits)


def _name_of_score(search: BaseEstimator, score: str) -> str:
    if score != "score":
        return score
    if isinstance(search.scoring, str):
        return search.scoring
    return "accuracy" if search.scoring is None and is_classifier(search) else "score"
