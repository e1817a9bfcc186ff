# SPDX-License-Identifier: BSD-3-Clause
"""From scores of blocks to the blocks that are chosen: what the selectors of the room share.

Rows are drawn once, splits are made once, every block is scored on the same ones, and a rule says
which blocks stay.
"""

import warnings
from collections.abc import Callable, Iterable
from numbers import Integral

import numpy as np
import torch
from scipy.stats import binom
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.model_selection import check_cv
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import type_of_target

from skpool.layers._criteria import CRITERIA
from skpool.utils import check_labels

__all__ = ["BaseBlockSelector", "chosen_blocks", "draw_rows", "score_block"]

# How often independent guesses would pass for better than chance, over all blocks. Accuracies of
# splits that share their training rows vary more: labels at random pass about one time in thirty.
_LEVEL = 0.01
# Fewest rows of a group, on average, that are drawn before whole groups are.
_ROWS_PER_GROUP = 10


def draw_rows(
    n_rows: int, max_rows: int, y: np.ndarray | None, rng: np.random.RandomState, *, groups: bool
) -> np.ndarray:
    """Draw rows without replacement, in proportion to the labels where there are some.

    Parameters
    ----------
    n_rows, max_rows : int
        Rows there are, and most to draw.
    y : ndarray of shape (n_rows,), default=None
        Discrete labels.
    rng : RandomState
    groups : bool
        Whether y names groups that are drawn whole if only a few rows of each could be drawn.

    Returns
    -------
    rows : ndarray of shape (min(n_rows, max_rows),)
        In ascending order; fewer where groups are drawn whole.
    """
    if n_rows <= max_rows:
        return np.arange(n_rows)
    order = rng.permutation(n_rows)
    if y is None:
        return np.sort(order[:max_rows])
    codes = np.unique(y, return_inverse=True)[1]
    n_groups = codes.max() + 1
    if groups and max_rows < _ROWS_PER_GROUP * n_groups:
        new_codes = rng.permutation(n_groups)[codes]
        sizes = np.bincount(new_codes)
        n_whole = max(2, int(np.searchsorted(sizes.cumsum(), max_rows, side="right")))
        return np.flatnonzero(new_codes < n_whole)
    # Every class in one piece, and evenly spaced places: each has its share to within one row.
    order = order[np.argsort(codes[order], kind="stable")]
    return np.sort(order[np.arange(max_rows) * n_rows // max_rows])


def score_block(
    X: np.ndarray, criterion: str | Callable, y: np.ndarray | None, splits: list, chance: float
) -> float:
    """Score the vectors of one block.

    Parameters
    ----------
    X : ndarray of shape (n, d)
    criterion : str or callable
    y : ndarray of shape (n,), default=None
    splits : list of (train, test)
    chance : float
        Accuracy without any information.

    Returns
    -------
    score : float
    """
    if callable(criterion):
        return float(criterion(X, y))
    function, needs, _ = CRITERIA[criterion]
    if needs == "nothing":
        return function(X)
    if needs == "groups":
        return function(X, y)
    return chance if (X == X[0]).all() else function(X, y, splits)


def chosen_blocks(
    scores: np.ndarray, *, rule: str, k: int, chance: float, n_tested: int
) -> np.ndarray:
    """Choose blocks by scores of which larger is better; of equal ones the lower wins.

    Parameters
    ----------
    scores : ndarray of shape (n_blocks,)
    rule : {"best", "top_k", "above_chance"}
    k : int
        Blocks of "top_k".
    chance : float
        Accuracy without any information, for "above_chance".
    n_tested : int
        Rows that the accuracies stand on.

    Returns
    -------
    selected : ndarray of int
        In ascending order.
    """
    if rule != "above_chance":
        n_chosen = 1 if rule == "best" else k
        return np.sort(np.argsort(-scores, kind="stable")[:n_chosen])
    bound = binom.ppf(1 - _LEVEL / len(scores), n_tested, chance) / n_tested
    above = np.flatnonzero(scores > bound)
    if len(above):
        return above
    warnings.warn(
        f"No layer or block scores above {bound:.3f}, the bound of labels at random; the last one "
        "is taken, as without a choice.",
        UserWarning,
        stacklevel=4,
    )
    return np.array([len(scores) - 1])


class BaseBlockSelector(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of the selectors; a subclass makes blocks of X and joins the selected ones."""

    _parameter_constraints: dict = {
        "criterion": [StrOptions(set(CRITERIA)), callable],
        "rule": [StrOptions({"best", "top_k", "above_chance"})],
        "k": [Interval(Integral, 1, None, closed="left")],
        "cv": ["cv_object"],
        "greater_is_better": ["boolean", StrOptions({"auto"})],
        "max_samples": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
    }

    @property
    def _needs(self) -> str:
        return "anything" if callable(self.criterion) else CRITERIA[self.criterion].needs

    def _check_rule(self, n_blocks: int) -> None:
        """Refuse rules that do not go with the criterion or the number of blocks."""
        if self.rule == "top_k" and self.k > n_blocks:
            raise ValueError(f"k={self.k} is more than the {n_blocks} layers or blocks of X.")
        if self.rule == "above_chance" and self._needs != "splits":
            raise ValueError(
                f"rule='above_chance' needs an accuracy, and criterion={self.criterion!r} is "
                "none; use 'knn', 'ncm' or 'ridge', or another rule."
            )

    def _labels(self, y: object, n_rows: int) -> np.ndarray | None:
        """The labels as far as the criterion uses them."""
        needs = self._needs
        if needs in ("nothing", "tokens"):
            return None
        if y is None and needs in ("splits", "groups"):
            what = "class labels" if needs == "splits" else "the group of every row"
            raise ValueError(
                f"criterion={self.criterion!r} requires y to be passed, but the target y is "
                f"None; give {what}, or use criterion='rankme'."
            )
        y = y.cpu().numpy() if isinstance(y, torch.Tensor) else y
        if needs == "anything":
            y = None if y is None else np.asarray(y)
            if y is not None and len(y) != n_rows:
                raise ValueError(f"X has {n_rows} rows and y has {len(y)}; give one per row.")
            return y
        return check_labels(y, n_samples=n_rows)

    def _drawn(self, n_rows: int, y: np.ndarray | None) -> np.ndarray:
        rng = check_random_state(self.random_state)
        discrete = y is not None and type_of_target(y) in ("binary", "multiclass")
        return draw_rows(
            n_rows,
            self.max_samples,
            y if discrete else None,
            rng,
            groups=self._needs == "groups",
        )

    def _splits(self, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The splits that all blocks are scored on."""
        splitter = check_cv(self.cv, y, classifier=True)
        n_splits = splitter.get_n_splits(np.zeros((len(y), 1)), y)
        if len(y) < 2 or len(y) < n_splits:
            raise ValueError(
                f"cv={self.cv!r} makes {n_splits} splits, more than the {len(y)} rows can give; "
                "use fewer splits or more rows."
            )
        return list(splitter.split(np.zeros((len(y), 1)), y))

    def _score(self, blocks: Iterable[np.ndarray], y: np.ndarray | None) -> None:
        """Score blocks of vectors and choose."""
        splits, chance, n_tested = [], np.nan, 0
        if self._needs == "splits":
            splits = self._splits(y)
            chance = float(np.unique(y, return_counts=True)[1].max() / len(y))
            n_tested = sum(len(test) for _, test in splits)
        scores = [score_block(X, self.criterion, y, splits, chance) for X in blocks]
        self._choose(np.array(scores, dtype=np.float64), chance, n_tested)

    def _choose(self, scores: np.ndarray, chance: float = np.nan, n_tested: int = 0) -> None:
        if not np.isfinite(scores).all():
            bad = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ValueError(
                f"criterion={self.criterion!r} gives {scores[bad]} for layer or block {bad}; it "
                "must give finite numbers."
            )
        greater = self.greater_is_better
        if greater == "auto":
            greater = callable(self.criterion) or CRITERIA[self.criterion].greater_is_better
        signed = scores if greater else -scores
        self.scores_ = scores
        self._best = int(signed.argmax())
        self.selected_ = chosen_blocks(
            signed, rule=self.rule, k=self.k, chance=chance, n_tested=n_tested
        )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        needs = None if callable(self.criterion) else CRITERIA[self.criterion].needs
        tags.target_tags.required = needs in ("splits", "groups")
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags
