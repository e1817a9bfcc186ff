# SPDX-License-Identifier: BSD-3-Clause
"""BackboneSelector: the network whose features serve a task best, as a step of a pipeline.

It follows a `FeatureUnion` of several extractors with their poolings, or takes their vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.layers._criteria import CRITERIA
from skpool.layers._scoring import BaseBlockSelector
from skpool.stores import TokenArray
from skpool.utils import ArrayLike, check_finite, numpy_or_tensor, unchanged_on_error

__all__ = ["BackboneSelector"]

_CRITERIA = {name for name, criterion in CRITERIA.items() if criterion.needs != "tokens"}
# These compare spectra, which grow with the width.
_OF_ONE_WIDTH = ("rankme",)


def _check_block(block: object, number: object) -> ArrayLike:
    """One block as floats (n_samples, n_features), finite."""
    block = block if isinstance(block, torch.Tensor) else np.asarray(block)
    if block.ndim != 2 or 0 in block.shape:
        raise ValueError(
            f"Block {number!r} of X has shape {tuple(block.shape)}; a block is (n_samples, "
            "n_features) with at least one of each."
        )
    if isinstance(block, np.ndarray) and block.dtype.kind not in "biuf":
        raise ValueError(f"Block {number!r} of X has dtype {block.dtype}; give numbers.")
    check_finite(block, name=f"block {number!r} of X")
    return block


class BackboneSelector(BaseBlockSelector):
    """Choose among the features of several networks by a score on the training samples.

    The criteria and rules of `LayerSelector`, for blocks that may have unequal widths.

    Parameters
    ----------
    criterion : {"knn", "ridge", "ncm", "rankme", "lidar"} or callable, default="knn"
        As in `LayerSelector`; "rankme" is for blocks of equal width alone.
    blocks : sequence of int, default=None
        Widths of the blocks of one wide matrix (n_samples, n_features), as a
        :class:`~sklearn.pipeline.FeatureUnion` makes it. None for X that comes in blocks.
    rule : {"best", "top_k", "above_chance"}, default="best"
        As in `LayerSelector`, but "above_chance" gives its blocks side by side, as "top_k" does.
    k : int, default=1
        Blocks of "top_k".
    cv : int, splitter or iterable, default=3
        Splits of the accuracies; the same for all blocks.
    greater_is_better : bool or "auto", default="auto"
        Whether larger scores are better; "auto" takes a callable to be so.
    max_samples : int, default=5000
        Most rows that the score is computed on, drawn in proportion to the classes.
    random_state : int, RandomState or None, default=0
        Of the draw.

    Attributes
    ----------
    n_features_in_ : int
        Number of features of all blocks together; of one where X is an array of rank 3.
    widths_ : list of int
        Number of features of every block.
    block_names_ : list
        Keys of the blocks where X is a dict, else their positions.
    scores_ : ndarray of shape (n_blocks,)
        The criterion of every block.
    best_block_ : int
        Position of the best score.
    selected_ : ndarray of int
        Positions of the selected blocks, ascending.

    See Also
    --------
    LayerSelector : Chooses layers of one network.
    sklearn.pipeline.FeatureUnion : Makes one wide matrix of several extractors.

    Notes
    -----
    scikit-learn's splitters take the length of a list or dict of blocks for the number of
    samples: for cross-validation give one wide matrix and `blocks`. The cost is that of the
    criterion, see `LayerSelector`, for every block.

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.layers import BackboneSelector
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(60) % 3
    >>> blocks = {"small": rng.normal(size=(60, 2)), "large": rng.normal(size=(60, 4))}
    >>> blocks["large"][:, :3] += 3 * np.eye(3)[y]
    >>> selector = BackboneSelector().fit(blocks, y)
    >>> selector.block_names_[selector.best_block_]
    'large'
    >>> selector.transform(blocks).shape
    (60, 4)
    """

    _parameter_constraints: dict = {
        **BaseBlockSelector._parameter_constraints,
        "criterion": [StrOptions(_CRITERIA), callable],
        "blocks": ["array-like", None],
    }

    def __init__(
        self,
        criterion: str | Callable = "knn",
        *,
        blocks: Sequence[int] | None = None,
        rule: str = "best",
        k: int = 1,
        cv=3,
        greater_is_better: bool | str = "auto",
        max_samples: int = 5000,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.criterion = criterion
        self.blocks = blocks
        self.rule = rule
        self.k = k
        self.cv = cv
        self.greater_is_better = greater_is_better
        self.max_samples = max_samples
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Score the blocks and choose.

        Parameters
        ----------
        X : list or dict of array-like of shape (n_samples, n_features_i), or array-like
            One wide matrix (n_samples, n_features) with `blocks`, or (n_samples, n_blocks,
            n_features).
        y : array-like of shape (n_samples,), default=None
            Class labels, groups for "lidar", or what a callable takes.

        Returns
        -------
        self : estimator
        """
        with unchanged_on_error(self):
            blocks = self._blocks(X)
            self.block_names_ = list(blocks)
            self.widths_ = [block.shape[1] for block in blocks.values()]
            self.n_features_in_ = sum(self.widths_)
            if not isinstance(X, (list, tuple, Mapping)) and np.ndim(X) == 3:
                self.n_features_in_ = self.widths_[0]
            self._check_rule(len(blocks))
            if self.criterion in _OF_ONE_WIDTH and len(set(self.widths_)) > 1:
                raise ValueError(
                    f"criterion={self.criterion!r} compares blocks of equal width, and these have "
                    f"{self.widths_}; use 'knn', 'ncm' or 'ridge'."
                )
            n_rows = len(next(iter(blocks.values())))
            y = self._labels(y, n_rows)
            rows = self._drawn(n_rows, y)
            vectors = (numpy_or_tensor(b)[0].cpu().numpy()[rows] for b in blocks.values())
            self._score(vectors, None if y is None else y[rows])
            self.best_block_ = self._best
        return self

    def transform(self, X) -> ArrayLike:
        """Give the selected blocks side by side.

        Parameters
        ----------
        X : list or dict of array-like of shape (n_samples, n_features_i), or array-like
            As in `fit`, with all blocks.

        Returns
        -------
        vectors : ndarray of shape (n_samples, n_features_out)
            A tensor where the blocks were tensors.
        """
        check_is_fitted(self, "selected_")
        blocks = self._blocks(X)
        widths = [block.shape[1] for block in blocks.values()]
        if widths != self.widths_ or list(blocks) != self.block_names_:
            raise ValueError(
                f"X has blocks {list(blocks)} of {widths} features, but BackboneSelector is "
                f"expecting {self.block_names_} of {self.widths_} features as input."
            )
        selected = [blocks[self.block_names_[place]] for place in self.selected_]
        _, restore = numpy_or_tensor(selected[0])
        tensors = [numpy_or_tensor(block)[0] for block in selected]
        if isinstance(selected[0], torch.Tensor):
            return torch.cat(tensors, dim=1)
        return restore(torch.cat(tensors, dim=1))

    def _blocks(self, X: object) -> dict[object, ArrayLike]:
        """The blocks by name, checked."""
        if isinstance(X, TokenArray):
            raise ValueError(
                f"X holds tokens of shape {X.shape}, and BackboneSelector takes vectors: pool them "
                "first, or use LayerSelector."
            )
        if isinstance(X, Mapping):
            blocks = dict(X)
        elif isinstance(X, (list, tuple)) and len(X) and np.ndim(X[0]) == 2:
            blocks = dict(enumerate(X))
        else:
            blocks = dict(enumerate(self._parts(X)))
        if not blocks:
            raise ValueError("X holds no block; give at least one.")
        blocks = {name: _check_block(block, name) for name, block in blocks.items()}
        lengths = {name: len(block) for name, block in blocks.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"The blocks of X have unequal numbers of samples: {lengths}.")
        return blocks

    def _parts(self, X: object) -> list[ArrayLike]:
        """The blocks of one array."""
        X = X if isinstance(X, torch.Tensor) else np.asarray(X)
        if X.ndim == 3:
            return [X[:, place] for place in range(X.shape[1])]
        if X.ndim != 2 or self.blocks is None:
            raise ValueError(
                f"X has shape {tuple(X.shape)}; give a list or dict of blocks, an array "
                "(n_samples, n_blocks, n_features), or one wide matrix and `blocks`, its widths."
            )
        widths = list(self.blocks)
        if sum(widths) != X.shape[1] or min(widths, default=0) < 1:
            raise ValueError(
                f"blocks={widths} do not add up to the {X.shape[1]} features of X; give the width "
                "of every block."
            )
        return [
            X[:, stop - width : stop]
            for width, stop in zip(widths, accumulate(widths), strict=True)
        ]

    @property
    def _n_features_out(self) -> int:
        return sum(self.widths_[place] for place in self.selected_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.blocks is not None
        tags.input_tags.three_d_array = self.blocks is None
        return tags
