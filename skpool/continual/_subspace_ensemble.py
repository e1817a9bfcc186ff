# SPDX-License-Identifier: BSD-3-Clause
"""SubspaceEnsemblePrototypeClassifier: class means in feature spaces that arrive one by one.

Every task brings a space of its own, a block of columns, and rows of a class are only ever seen in
the spaces that were there when they came. What a class lacks is put together from the classes that
have it (`complete_prototypes`). The state is one `ClassMoments` per block; all else follows from
these.
"""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context, clone
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.statistics import ClassMoments
from skpool.utils import (
    ArrayLike,
    as_tensor,
    full_float32,
    row_batches,
    unchanged_on_error,
    unit_rows,
    validate_vectors,
    widened,
)

__all__ = ["SubspaceEnsemblePrototypeClassifier", "complete_prototypes"]

Blocks = ArrayLike | Sequence[ArrayLike]

# Sums of weights that differ by less, relatively, are those of the same rows.
_SAME = 1e-9


def _unit(vectors: np.ndarray) -> np.ndarray:
    return unit_rows(torch.from_numpy(np.array(vectors, dtype=np.float64))).numpy()


def complete_prototypes(
    P_old_a: np.ndarray, P_new_a: np.ndarray, P_new_b: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    r"""Put together prototypes in a space b from those of other classes.

    With the cosines :math:`c_{ij}` of old and new prototypes in a space a that both have,

    .. math:: p_i^b = \sum_j S_{ij} p_j^b, \qquad
        S_{ij} = \frac{e^{c_{ij} / T}}{\sum_k e^{c_{ik} / T}} .

    Parameters
    ----------
    P_old_a : ndarray of shape (n_old, n_features_a)
        Classes that are unknown in b.
    P_new_a, P_new_b : ndarray of shape (n_new, n_features_a), (n_new, n_features_b)
        Classes that are known in both.
    temperature : float, default=1.0
        :math:`T`.

    Returns
    -------
    P_old_b : ndarray of shape (n_old, n_features_b)

    References
    ----------
    .. [1] D.-W. Zhou, H.-L. Sun, H.-J. Ye, D.-C. Zhan, Expandable Subspace Ensemble for
       Pre-Trained Model-Based Class-Incremental Learning, CVPR 2024.
       <https://arxiv.org/abs/2403.12030>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import complete_prototypes
    >>> old, new = np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 3.0]])
    >>> complete_prototypes(old, new, np.array([[5.0], [7.0]]), temperature=0.01)
    array([[5.]])
    """
    weights = softmax(_unit(P_old_a) @ _unit(P_new_a).T / temperature, axis=1)
    return weights @ np.asarray(P_new_b, dtype=np.float64)


def _learns_in_parts(estimator: "SubspaceEnsemblePrototypeClassifier") -> bool:
    """Whether rows can be taken away; the estimator says why not."""
    return estimator._check_learns_in_parts()


class _Prototypes(NamedTuple):
    """What predictions are made of, of the classes that hold samples."""

    blocks: list[np.ndarray | None]  # (C, d_b) each; None for a block without rows
    completed: np.ndarray  # (B, C), bool
    weights: np.ndarray  # (B, C), of the cosines in a score


class SubspaceEnsemblePrototypeClassifier(
    ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator
):
    r"""Classifier by class means in an ensemble of feature spaces, one more with every task.

    X consists of blocks of columns, and a later call of `partial_fit` may bring further ones:
    adapters or projections of the tasks, or other backbones. A class is represented by the means
    of its rows in all blocks that these came with, the last of which is its own block, and by
    vectors put together from later classes (:func:`complete_prototypes`) in the others. With the
    cosines :math:`c_b` of a sample and the class, and B blocks, a class with the own block a
    scores

    .. math:: c_a + \frac{\alpha}{B - 1} \sum_{b \ne a} c_b + \beta c_0 ,

    where the last term is that of an optional block of the raw features, not counted among the
    B [1]_.

    Parameters
    ----------
    alpha : float, default=0.1
        :math:`\alpha`, weight of the mean of the cosines in the other blocks.
    beta : float, default=0.0
        :math:`\beta`, weight of the cosine in `base_block`.
    base_block : int, default=None
        Number of the block of raw features, which is no class's own.
    block_slices : "infer" or list of (int, int), default="infer"
        Where blocks start and end. "infer" takes the columns of the first X for one block, and
        those that a wider X adds for a further one; a list of blocks in place of X says it
        itself.
    softmax_temperature : float, default=1.0
        :math:`T` of the completion.
    per_task_block : transformer, default=None
        With it X is the raw features in every call: of each call that brings new classes a clone
        is fitted to its rows and labels, and gives one block more, such as
        ``FirstSessionAdapter(concat=False)``. With ``base_block=0`` the raw features are the
        first block.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    block_slices_ : ndarray of shape (n_blocks, 2)
        Where the blocks start and end.
    block_moments_ : list of ClassMoments
        The state that all else follows from: one per block.
    prototypes_ : dict of (int, label) to ndarray of shape (n_features_of_block,)
        Vectors by block and class, completed ones included.
    completed_ : ndarray of shape (n_blocks, n_classes)
        Whether the vector was put together from other classes.
    own_blocks_ : ndarray of shape (n_classes,)
        The own block of every class; -1 for a class that was announced.
    transformers_ : list of transformers
        Fitted clones of `per_task_block`.
    n_features_in_ : int
        Number of features of the widest X so far; predictions need all of them.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if that X had text column names.

    See Also
    --------
    skpool.prototypes.NearestClassMeanClassifier : What this is with one block.
    FirstSessionAdapter : A block for a task.

    Notes
    -----
    Completion is done again whenever something was learned, from all classes that are known in
    both blocks, so that later classes take part. Real means never change by it.

    Rows are forgotten in the blocks that they come with. Which block is a class's own follows from
    its counts: the last one that some of its rows reached at their time. With `per_task_block`
    rows cannot be forgotten, since the blocks were trained with them.

    Cost: O(n d) to learn, for d columns in all; a prediction O(n d n_classes); completion
    O(n_classes^2 d) per pair of blocks. Memory: n_classes * d numbers.

    References
    ----------
    .. [1] D.-W. Zhou, H.-L. Sun, H.-J. Ye, D.-C. Zhan, Expandable Subspace Ensemble for
       Pre-Trained Model-Based Class-Incremental Learning, CVPR 2024.
       <https://arxiv.org/abs/2403.12030>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import SubspaceEnsemblePrototypeClassifier
    >>> one, two = np.array([[1.0, 0.1], [0.1, 1.0]]), np.array([[2.0], [3.0]])
    >>> model = SubspaceEnsemblePrototypeClassifier().partial_fit(one, ["a", "b"])
    >>> model = model.partial_fit([one[:, ::-1] - 2, two], ["c", "d"])
    >>> model.own_blocks_
    array([0, 0, 1, 1])
    >>> model.completed_[1]
    array([ True,  True, False, False])
    """

    _parameter_constraints: ClassVar[dict] = {
        "alpha": [Interval(Real, 0, None, closed="left")],
        "beta": [Interval(Real, 0, None, closed="left")],
        "base_block": [Interval(Integral, 0, None, closed="left"), None],
        "block_slices": [StrOptions({"infer"}), list, np.ndarray],
        "softmax_temperature": [Interval(Real, 0, None, closed="neither")],
        "per_task_block": [HasMethods(["fit", "transform"]), None],
    }

    _solved_parameters = frozenset({"alpha", "beta", "softmax_temperature"})

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        beta: float = 0.0,
        base_block: int | None = None,
        block_slices: str | list[tuple[int, int]] = "infer",
        softmax_temperature: float = 1.0,
        per_task_block: BaseEstimator | None = None,
    ):
        self.alpha = alpha
        self.beta = beta
        self.base_block = base_block
        self.block_slices = block_slices
        self.softmax_temperature = softmax_temperature
        self.per_task_block = per_task_block

    # Learning.

    def fit(self, X: Blocks, y: object, sample_weight: object = None) -> Self:
        """Learn from these samples alone, as one stage.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features), or list of such blocks
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0; a sample of weight 0 counts as absent.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            super().fit(X, y, sample_weight)
            _ = self._solved
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Blocks, y: object, classes: object = None, sample_weight: object = None
    ) -> Self:
        """Learn from these samples on top of all earlier ones.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features), or list of such blocks
            Feature vectors, with all blocks known so far and as many new ones as there are.
        y : array-like of shape (n_samples,)
            Class labels; labels never seen before are welcome in any call.
        classes : array-like of shape (n_classes,), default=None
            Labels to announce before they have samples; never predicted until then.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0; a sample of weight 0 counts as absent.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        return self._learn(X, y, classes, sample_weight, reset=not hasattr(self, "classes_"))

    def _check_learns_in_parts(self) -> bool:
        if self.per_task_block is not None:
            raise AttributeError(
                "Rows cannot be taken from blocks that were trained with them; give blocks that "
                "are trained elsewhere, without per_task_block."
            )
        return True

    def _can_map(self) -> bool:
        # Cosines of mapped blocks are not those of these.
        return False

    def _check_batch(
        self, X: Blocks, y: object, sample_weight: object, *, reset: bool
    ) -> tuple[ArrayLike, np.ndarray, np.ndarray | None]:
        """Check rows as one wide X; the edges of their blocks are kept for `_update`."""
        X, widths = _joined(X)
        known = None if reset else self.n_features_in_
        grows = known is not None and self.per_task_block is None and _width(X) > known
        batch = super()._check_batch(X, y, sample_weight, reset=reset or grows)
        found = np.empty((0, 2), dtype=np.intp) if reset else self.block_slices_
        if self.per_task_block is None:
            found = self._edges(found, self.n_features_in_, widths)
            self.block_slices_ = found
        return batch

    def _edges(self, known: np.ndarray, width: int, widths: list[int] | None) -> np.ndarray:
        """Edges of the blocks of X, those that it brings included."""
        if not isinstance(self.block_slices, str):
            edges = _given_edges(self.block_slices)
            n = int(np.searchsorted(edges[:, 1], width)) + 1
            if n > len(edges) or edges[n - 1, 1] != width:
                raise ValueError(
                    f"X has {width} features, but the blocks of block_slices end at "
                    f"{edges[:, 1].tolist()}; give whole blocks."
                )
            return edges[:n]
        held = int(known[-1, 1]) if len(known) else 0
        if widths is None:
            new = [width - held] if width > held else []
        else:
            n = len(known)
            if np.diff(known, axis=1).ravel().tolist() != widths[:n]:
                raise ValueError(
                    f"X is a list of blocks of {widths} features, and the known ones have "
                    f"{np.diff(known, axis=1).ravel().tolist()}; give these first, then new ones."
                )
            new = widths[n:]
        ends = held + np.cumsum(new, dtype=np.intp)
        return np.concatenate([known, np.stack([ends - new, ends], axis=1).astype(np.intp)])

    def _reset(self) -> None:
        self.block_moments_: list[ClassMoments] = []
        self.transformers_: list[BaseEstimator] = []
        if self.per_task_block is not None:
            self.block_slices_ = np.empty((0, 2), dtype=np.intp)
            if self.base_block not in (None, 0):
                raise ValueError(
                    f"base_block={self.base_block} names no block of raw features, which are the "
                    "first one with per_task_block; set 0 or None."
                )

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        if self.per_task_block is not None:
            X = self._with_task_block(X, y)
        moments = list(self.block_moments_)
        moments += [ClassMoments("none") for _ in range(len(self.block_slices_) - len(moments))]
        self.block_moments_ = [
            held.copy().update(X[:, start:stop], y, sample_weight)
            for held, (start, stop) in zip(moments, self.block_slices_.tolist(), strict=True)
        ]

    def _with_task_block(self, X: ArrayLike, y: np.ndarray) -> torch.Tensor:
        """Blocks of rows, after one more was fitted if they are of new classes."""
        seen = self._seen_classes() if self.block_moments_ else y[:0]
        if len(np.setdiff1d(y, seen)):
            self.transformers_ = [*self.transformers_, clone(self.per_task_block).fit(X, y)]
        blocks = self._task_blocks(X)
        ends = np.cumsum([block.shape[1] for block in blocks])
        self.block_slices_ = np.stack([np.r_[0, ends[:-1]], ends], axis=1)
        return torch.cat(blocks, dim=1)

    def _task_blocks(self, X: ArrayLike) -> list[torch.Tensor]:
        rows = widened(as_tensor(X))
        raw = [] if self.base_block is None else [rows]
        return raw + [as_tensor(one.transform(X)).to(rows) for one in self.transformers_]

    @available_if(_learns_in_parts)
    def forget(self, X: Blocks, y: object, sample_weight: object = None) -> Self:
        """Remove samples that were learned, as if they had never been seen.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features), or list of such blocks
            The feature vectors as they were learned, in the blocks that they came with.
        y : array-like of shape (n_samples,)
            Their labels.
        sample_weight : array-like of shape (n_samples,), default=None
            The weights that they were learned with.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        check_is_fitted(self)
        with unchanged_on_error(self):
            X, _ = _joined(X)
            whole = self.n_features_in_
            if _width(X) in self.block_slices_[:, 1]:
                # Rows of an early stage have the blocks of that stage.
                self.n_features_in_ = _width(X)
            X, y, sample_weight = super()._check_batch(X, y, sample_weight, reset=False)
            self.n_features_in_ = whole
            self._check_seen(y)
            self._forget(X, y, sample_weight)
            self._refresh()
        return self

    def _forget(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        self.block_moments_ = [
            held.copy().downdate(X[:, start:stop], y, sample_weight) if stop <= X.shape[1] else held
            for held, (start, stop) in zip(
                self.block_moments_, self.block_slices_.tolist(), strict=True
            )
        ]

    def _forget_class(self, label: object) -> None:
        self.block_moments_ = [
            held.copy().forget_class(label) if label in held.classes_.tolist() else held
            for held in self.block_moments_
        ]

    def _merge(self, other: Self) -> None:
        if self.block_slices_.tolist() != other.block_slices_.tolist():
            raise ValueError(
                f"other has blocks at {other.block_slices_.tolist()} and this estimator at "
                f"{self.block_slices_.tolist()}; merge estimators of the same blocks."
            )
        pairs = zip(self.block_moments_, other.block_moments_, strict=True)
        self.block_moments_ = [one + two for one, two in pairs]

    def _seen_classes(self) -> np.ndarray:
        return self.block_moments_[0].classes_

    def _refresh(self) -> None:
        super()._refresh()
        self._counts = np.stack([self._counts_in(held) for held in self.block_moments_])
        self._own = self._found_own()
        self._solution: _Prototypes | None = None

    def _counts_in(self, held: ClassMoments) -> np.ndarray:
        """Sums of weights of the classes in a block, 0 for those without rows there."""
        counts = np.zeros(len(self._seen_classes()))
        counts[np.searchsorted(self._seen_classes(), held.classes_)] = held.counts_
        return counts

    def _found_own(self) -> np.ndarray:
        """The own block of every class: the last that its earliest rows came with."""
        blocks = np.array([b for b in range(len(self._counts)) if b != self.base_block], dtype=int)
        counts = self._counts[blocks]
        later = np.concatenate([counts[1:], np.zeros_like(self._counts[:1])])[: len(counts)]
        ends = counts > (1 + _SAME) * later
        if not (len(ends) and ends.any(axis=0).all()) and len(self._seen_classes()):
            raise ValueError(
                f"base_block={self.base_block} is the only block of some rows of X; bring a block "
                "of the task with the raw features."
            )
        return blocks[ends.argmax(axis=0)] if len(ends) else np.empty(0, dtype=int)

    # What follows from the moments.

    @property
    def _solved(self) -> _Prototypes:
        if self._solution is None:
            self._solution = self._solve()
        return self._solution

    def _solve(self) -> _Prototypes:
        real = self._counts > 0
        blocks = [self._means_in(held) for held in self.block_moments_]
        for b, means in enumerate(blocks):
            for a in np.unique(self._own[~real[b]]) if means is not None else ():
                old = ~real[b] & (self._own == a)
                both = real[a] & real[b]
                means[old] = complete_prototypes(
                    self.block_moments_[a].means_[np.flatnonzero(old[real[a]])],
                    self.block_moments_[a].means_[np.flatnonzero(both[real[a]])],
                    means[both],
                    self.softmax_temperature,
                )
        return _Prototypes(blocks, ~real, self._weights(real.any(axis=1)))

    def _means_in(self, held: ClassMoments) -> np.ndarray | None:
        """Means of the classes in a block, NaN for those without rows there."""
        if not len(held.classes_):
            return None
        means = np.full((len(self._seen_classes()), held.n_features_in_), np.nan)
        means[np.searchsorted(self._seen_classes(), held.classes_)] = held.means_
        return means

    def _weights(self, active: np.ndarray) -> np.ndarray:
        """Weights of the cosines, of the blocks that hold rows."""
        spaces = active.copy()
        if self.base_block is not None and self.base_block < len(active):
            spaces[self.base_block] = False
        others = max(int(spaces.sum()) - 1, 1)
        weights = np.where(spaces, self.alpha / others, 0.0)[:, None].repeat(len(self._own), axis=1)
        weights[self._own, np.arange(len(self._own))] = 1.0
        if self.base_block is not None and self.base_block < len(active):
            weights[self.base_block] = self.beta * active[self.base_block]
        return weights

    def _known(self, name: str) -> _Prototypes:
        if not hasattr(self, "_own"):
            raise AttributeError(f"This {type(self).__name__} is not fitted, so has no {name!r}.")
        return self._solved

    @property
    def prototypes_(self) -> dict[tuple[int, object], np.ndarray]:
        """Vectors by block and class."""
        labels = self._seen_classes().tolist() if self._known("prototypes_") else []
        return {
            (b, label): vector
            for b, vectors in enumerate(self._solved.blocks)
            if vectors is not None
            for label, vector in zip(labels, vectors, strict=True)
        }

    @property
    def completed_(self) -> np.ndarray:
        """Whether vectors were put together from other classes."""
        found = self._known("completed_").completed
        return spread_columns(found, self._seen_classes(), self.classes_, fill=False)

    @property
    def own_blocks_(self) -> np.ndarray:
        """The own block of every class."""
        self._known("own_blocks_")
        return spread_columns(self._own[None], self._seen_classes(), self.classes_, fill=-1)[0]

    # Predictions.

    def class_scores(self, X: Blocks) -> np.ndarray:
        """Return the score of every class.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features), or list of such blocks
            Feature vectors, with all blocks.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; -inf for a class without samples.
        """
        check_is_fitted(self)
        X = validate_vectors(self, _joined(X)[0], reset=False)
        rows = as_tensor(X) if self.per_task_block is None else self._all_task_blocks(X)
        solved, edges = self._solved, self.block_slices_.tolist()
        parts = []
        for part in row_batches(len(rows), 8 * (3 * rows.shape[1] + 2 * len(self._own))):
            block = widened(rows[part])
            scores = block.new_zeros(len(block), len(self._own))
            for (start, stop), vectors, weight in zip(
                edges, solved.blocks, solved.weights, strict=True
            ):
                if vectors is not None and weight.any():
                    weighted = as_tensor(weight[:, None] * _unit(vectors)).to(block)
                    with full_float32():
                        scores += unit_rows(block[:, start:stop]) @ weighted.T
            parts.append(scores)
        scores = torch.cat(parts).cpu().numpy()
        return spread_columns(scores, self._seen_classes(), self.classes_, fill=-np.inf)

    def _all_task_blocks(self, X: ArrayLike) -> torch.Tensor:
        return torch.cat(self._task_blocks(X), dim=1)


def _joined(X: Blocks) -> tuple[ArrayLike, list[int] | None]:
    """A list of blocks side by side, and their widths; anything else as it is, and None."""
    if not isinstance(X, (list, tuple)) or not X or any(np.ndim(b) != 2 for b in X):
        return X, None
    if len({len(block) for block in X}) > 1:
        raise ValueError(
            f"The blocks of X have {[len(block) for block in X]} rows; give all blocks of the "
            "same samples."
        )
    if all(isinstance(block, torch.Tensor) for block in X):
        return torch.cat(list(X), dim=1), [block.shape[1] for block in X]
    blocks = [np.asarray(block) for block in X]
    return np.concatenate(blocks, axis=1), [block.shape[1] for block in blocks]


def _width(X: object) -> int:
    """Columns of X, 0 where it has none."""
    shape = getattr(X, "shape", None) or np.shape(X)
    return int(shape[1]) if len(shape) == 2 else 0


def _given_edges(block_slices: Sequence) -> np.ndarray:
    """Checked edges of `block_slices`."""
    pairs = [(s.start or 0, s.stop) if isinstance(s, slice) else tuple(s) for s in block_slices]
    edges = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    starts = np.r_[0, edges[:-1, 1]]
    if not len(edges) or (edges[:, 0] != starts).any() or (edges[:, 1] <= edges[:, 0]).any():
        raise ValueError(
            f"block_slices={block_slices!r} must be blocks (start, stop) one after the other, from "
            "column 0 on; give their edges in the order in which the blocks arrive."
        )
    return edges
