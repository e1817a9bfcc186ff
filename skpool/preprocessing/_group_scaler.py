# SPDX-License-Identifier: BSD-3-Clause
"""GroupStandardScaler and GroupCenterer: every group of rows by its own mean and spread.

Hospitals, scanners, stains and cameras leave an offset in features that has nothing to do with
what is in the picture. Where it is known which rows come from which of them, the offset is what
the moments of the groups say, and it is taken off before the classifier can learn it.
"""

import warnings
from numbers import Integral, Real
from typing import Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, column_or_1d

from skpool.preprocessing._kernels import standardize_by_group
from skpool.preprocessing._whitening_kernels import spectrum_of, whitening_map
from skpool.statistics import ClassMoments
from skpool.utils import (
    ArrayLike,
    apply_affine,
    as_tensor,
    check_labels,
    numpy_or_tensor,
    unchanged_on_error,
    validate_vectors,
)

__all__ = ["GroupCenterer", "GroupStandardScaler"]

# Rows by which "auto" trusts all rows against those of a group.
_PRIOR_ROWS = 10


class _BaseGroupScaler(TransformerMixin, BaseEstimator):
    """Base of both: moments of the cells of group and class, and what is solved from them.

    A subclass has the parameters `with_std`, `whiten`, `shrinkage`, `unseen`, `class_weighted`
    and `group_column`.
    """

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.class_weighted
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: ArrayLike, y: ArrayLike | None = None, *, groups: ArrayLike | None = None
    ) -> Self:
        """Learn the statistics of the groups, forgetting what was learned before.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Feature vectors; with `group_column` the group of every row among them.
        y : array-like of shape (n_samples,), default=None
            Labels, for `class_weighted`.
        groups : array-like of shape (n_samples,), default=None
            Group of every row, as numbers or text; needed unless there is a `group_column`.

        Returns
        -------
        self : estimator
        """
        with unchanged_on_error(self):
            X = validate_vectors(self, X)
            kind = "per_class" if self.whiten else "diag"
            self.moments_ = ClassMoments(kind, product_dtype="float64")
            self._cells: list[list] = [[], []]
            self._learn(*self._split(X, groups), y)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: ArrayLike, y: ArrayLike | None = None, *, groups: ArrayLike | None = None
    ) -> Self:
        """Add rows to those learned from; new groups may come in any call.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            As in `fit`.
        y : array-like of shape (n_samples,), default=None
            As in `fit`.
        groups : array-like of shape (n_samples,), default=None
            As in `fit`.

        Returns
        -------
        self : estimator
            If the call fails, the estimator stays as it was.
        """
        if not hasattr(self, "moments_"):
            return self.fit(X, y, groups=groups)
        with unchanged_on_error(self):
            X = validate_vectors(self, X, reset=False)
            self.moments_ = self.moments_.copy()
            self._learn(*self._split(X, groups), y)
        return self

    def fit_transform(
        self, X: ArrayLike, y: ArrayLike | None = None, *, groups: ArrayLike | None = None
    ) -> ArrayLike:
        """Learn the statistics of the groups, and take them off the same rows.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            As in `fit`.
        y : array-like of shape (n_samples,), default=None
            As in `fit`.
        groups : array-like of shape (n_samples,), default=None
            As in `fit`.

        Returns
        -------
        Z : ndarray or tensor of shape (n_samples, n_features_out)
        """
        return self.fit(X, y, groups=groups).transform(X, groups=groups)

    def transform(self, X: ArrayLike, *, groups: ArrayLike | None = None) -> ArrayLike:
        """Centre and scale every row by what is known of its group.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            As in `fit`.
        groups : array-like of shape (n_samples,), default=None
            As in `fit`.

        Returns
        -------
        Z : ndarray or tensor of shape (n_samples, n_features_out)
            Without the `group_column`, if there is one.
        """
        check_is_fitted(self)
        X, groups = self._split(validate_vectors(self, X, reset=False), groups)
        found, index = np.unique(groups, return_inverse=True)
        _check_kind(found, self.groups_)
        rows, restore = numpy_or_tensor(X)
        learned = [self._of_group(label, rows, index, i) for i, label in enumerate(found)]
        if not self._whitens:
            means, scales = (np.stack(values) for values in zip(*learned, strict=True))
            return restore(standardize_by_group(rows, index, means=means, scales=scales))
        Z = torch.empty_like(rows)
        for i, (mean, matrix) in enumerate(learned):
            part, zero = _positions(index, i, rows.device), np.zeros(len(mean))
            options = {"shift": mean, "matrix": matrix, "offset": zero, "dtype": rows.dtype}
            Z[part] = apply_affine(rows[part], **options)
        return restore(Z)

    @property
    def _whitens(self) -> bool:
        # As it was fitted, whatever the parameter says now.
        return self.moments_.scatter == "per_class"

    def _of_group(
        self, label: object, rows: torch.Tensor, index: np.ndarray, i: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean, and standard deviations or whitening matrix, for the i-th group of these rows."""
        at = int(np.searchsorted(self.groups_, label))
        if at < len(self.groups_) and self.groups_[at] == label:
            return self.means_[at], self._factors[at]
        if self.unseen == "error":
            raise ValueError(
                f"groups holds {label.item()!r}, which is not among the {len(self.groups_)} groups "
                'learned from; call partial_fit, or set unseen="pooled" or "batch".'
            )
        if self.unseen == "pooled":
            return self.mean_, self._pooled_factor
        alone = ClassMoments(self.moments_.scatter, product_dtype="float64")
        part = rows[_positions(index, i, rows.device)]
        spread = _spread(alone.update(part, np.zeros(len(part), np.int64)))
        return self._solved_group(*spread, len(part))

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray:
        """Names of the features, without the `group_column`.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the features of X; None takes those seen by `fit`, or x0, x1, ....

        Returns
        -------
        names : ndarray of str
        """
        check_is_fitted(self)
        names = _check_feature_names_in(self, input_features)
        return names if self.group_column is None else np.delete(names, self.group_column)

    # Groups.

    def _split(self, X: ArrayLike, groups: object) -> tuple[ArrayLike, np.ndarray]:
        """Features and groups of checked rows."""
        if self.group_column is None:
            return X, _checked_groups(groups, len(X), type(self).__name__)
        if groups is not None:
            raise ValueError(
                f"groups are given twice, as an argument and by group_column={self.group_column}; "
                "leave one of the two out."
            )
        d = X.shape[1]
        if d < 2 or not -d <= self.group_column < d:
            raise ValueError(
                f"group_column={self.group_column} leaves no features or names no column of X "
                f"with {d} feature(s)."
            )
        column = self.group_column % d
        kept = np.delete(np.arange(d), column)
        values = as_tensor(X)[:, column].double().cpu().numpy()
        return X[:, torch.from_numpy(kept) if isinstance(X, torch.Tensor) else kept], values

    # Learning.

    def _learn(self, X: ArrayLike, groups: np.ndarray, y: object) -> None:
        if self.class_weighted:
            if y is None:
                raise ValueError(
                    "class_weighted=True requires y to be passed, but the target y is None; give "
                    "one label per row."
                )
            y = check_labels(y, n_samples=len(X))
            y = np.array(y.tolist()) if y.dtype.kind == "O" else y
        else:
            y = np.zeros(len(X), dtype=np.int64)
        if self._cells[0]:
            _check_kind(groups, self.groups_)
            _check_kind(y, np.array(self._cells[1]), what="y")
        names, of_group = np.unique(groups, return_inverse=True)
        classes, of_class = np.unique(y, return_inverse=True)
        cells, codes = np.unique(of_group * len(classes) + of_class, return_inverse=True)
        known = {cell: i for i, cell in enumerate(zip(*self._cells, strict=True))}
        labels = [
            known.setdefault((names[g].item(), classes[c].item()), len(known))
            for g, c in zip(*divmod(cells, len(classes)), strict=True)
        ]
        self.moments_.update(X, np.array(labels)[codes])
        self._cells = [list(part) for part in zip(*known, strict=True)]
        self._solve()

    def _solve(self) -> None:
        self.groups_, group = np.unique(self._cells[0], return_inverse=True)
        counts = np.bincount(group, weights=self.moments_.counts_)
        self.counts_ = counts.round().astype(np.int64)
        classes = np.unique(self._cells[1], return_inverse=True)[1]
        pooled = self.moments_.relabel(dict(enumerate(classes.tolist())))
        self.mean_, self._pooled_spread = _spread(pooled)
        self._pooled_factor = self._factor(self.mean_, self._pooled_spread, counts.sum(), None)
        held = self.moments_.scatter_
        solved = []
        for i, n in enumerate(self.counts_.tolist()):
            cells = group == i
            spread = _spread_of(
                self.moments_.counts_[cells], self.moments_.means_[cells], held[cells]
            )
            solved.append(self._solved_group(*spread, n))
        self.means_, self._factors = (np.stack(values) for values in zip(*solved, strict=True))
        few = int(((self.counts_ > 1) & (self.counts_ <= len(self.mean_))).sum())
        if self._whitens and self.shrinkage == 0 and few:
            warnings.warn(
                f"{few} groups have no more rows than the {len(self.mean_)} features, so their "
                'directions without variance become 0; set shrinkage="auto" or a number.',
                UserWarning,
                stacklevel=5,
            )

    def _solved_group(
        self, mean: np.ndarray, spread: np.ndarray, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and factor of a group of n rows, moved towards those of all rows."""
        if n == 1:
            spread = self._pooled_spread
        share = _PRIOR_ROWS / (_PRIOR_ROWS + n) if self.shrinkage == "auto" else self.shrinkage
        mean = (1 - share) * mean + share * self.mean_
        spread = (1 - share) * spread + share * self._pooled_spread
        return mean, self._factor(mean, spread, n, self._pooled_factor)

    def _factor(
        self, mean: np.ndarray, spread: np.ndarray, n: float, pooled: np.ndarray | None
    ) -> np.ndarray:
        """What rows are divided by, or multiplied with: from variances, or a covariance."""
        if self._whitens:
            spectrum = spectrum_of(spread, n_samples=n)
            return whitening_map(spectrum, method="zca", eps=0.0).forward
        if not self.with_std:
            return np.ones_like(mean)
        eps = np.finfo(np.float64).eps
        # The rule of scikit-learn's StandardScaler: what rounding alone could make is constant.
        constant = spread <= n * eps * spread + (n * eps * mean) ** 2
        return np.where(constant, 1.0 if pooled is None else pooled, np.sqrt(spread))


def _spread(moments: ClassMoments) -> tuple[np.ndarray, np.ndarray]:
    return _spread_of(moments.counts_, moments.means_, moments.scatter_)


def _spread_of(
    counts: np.ndarray, means: np.ndarray, scatter: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and variances or covariance around it, where every class counts the same."""
    mean = means.mean(axis=0)
    away = means - mean
    within = (scatter / counts.reshape(-1, *[1] * (scatter.ndim - 1))).mean(axis=0)
    between = away.T @ away / len(away) if scatter.ndim == 3 else (away**2).mean(axis=0)
    return mean, within + between


def _positions(index: np.ndarray, i: int, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(index == i)).to(device)


def _check_kind(found: np.ndarray, known: np.ndarray, *, what: str = "groups") -> None:
    if (found.dtype.kind in "US") != (known.dtype.kind in "US"):
        raise ValueError(
            f"{what} is of {found.dtype} here and was of {known.dtype} before; name them in one "
            "way."
        )


def _checked_groups(groups: object, n_samples: int, who: str) -> np.ndarray:
    if groups is None:
        raise ValueError(
            f"groups is None, and {who} needs the group of every row: pass groups=..., in a "
            "pipeline by metadata routing (set_fit_request(groups=True) and "
            "set_transform_request(groups=True)), or set group_column."
        )
    if isinstance(groups, torch.Tensor):
        groups = groups.detach().cpu().numpy()
    groups = column_or_1d(groups)
    if groups.dtype.kind == "O":
        if len({isinstance(name, str) for name in groups}) > 1 or any(g is None for g in groups):
            raise ValueError(
                "groups mixes text with other names; give numbers alone or text alone."
            )
        groups = np.array(groups.tolist())
    if len(groups) != n_samples:
        raise ValueError(f"X has {n_samples} rows and groups {len(groups)}; give one per row.")
    if groups.dtype.kind not in "iubUSf" or (groups.dtype.kind == "f" and np.isnan(groups).any()):
        raise ValueError(
            f"groups of {groups.dtype} must be numbers or text without NaN; name every row's group."
        )
    return groups


class GroupStandardScaler(_BaseGroupScaler):
    r"""Standardise the rows of every group by the statistics of that group.

    A row x of group g becomes

    .. math:: z = (x - \mu_g) / \sigma_g, \qquad \mu_g = (1 - s_g) m_g + s_g m, \qquad
        \sigma_g^2 = (1 - s_g) v_g + s_g v,

    with mean and variances :math:`m_g, v_g` of the training rows of the group, those of all
    training rows, m and v, and the shrinkage :math:`s_g`. An offset or a scale that belongs to a
    hospital, a scanner or a camera goes; what differs within it stays [1]_.

    Parameters
    ----------
    with_std : bool, default=True
        Divide by the standard deviations.
    shrinkage : float or "auto", default=0.0
        Share of the statistics of all rows in those of a group, from 0 to 1. "auto" takes
        10 / (10 + n_g) for a group of n_g rows.
    unseen : {"pooled", "batch", "error"}, default="pooled"
        What is done to a group that was not learned from: the statistics of all training rows, or
        those of its rows in this very call, or an error. With "batch" the result for a row
        depends on the other rows of the call.
    whiten : bool, default=False
        Whiten every group by the symmetric root of its covariance, shrunk towards that of all
        rows, in place of standard deviations.
    class_weighted : bool, default=False
        Let every class count the same in the statistics of a group, for which `fit` needs labels.
        Where classes are unevenly spread over groups, plain means hold a part of the classes,
        which would be taken off with them.
    group_column : int or None, default=None
        Column of X that holds the group as a number; it is left out of the result. For searches
        and other tools that hand on nothing but X.

    Attributes
    ----------
    groups_ : ndarray of shape (n_groups,)
        Groups learned from, sorted.
    counts_ : ndarray of shape (n_groups,)
        Rows of each.
    means_ : ndarray of shape (n_groups, n_features_out)
        What is subtracted, shrinkage included.
    scales_ : ndarray of shape (n_groups, n_features_out)
        What is divided by, unless `whiten`.
    mean_ : ndarray of shape (n_features_out,)
        Of all rows.
    scale_ : ndarray of shape (n_features_out,)
        Of all rows, unless `whiten`.
    moments_ : ClassMoments
        Counts, means and scatters of the groups, or of the cells of group and class.
    n_features_in_ : int
        Number of features of X.

    See Also
    --------
    GroupCenterer : The means alone.
    WhiteningColoring : From the statistics of one domain to those of another.
    sklearn.preprocessing.StandardScaler : What this is with one group.

    Notes
    -----
    Variances have the divisor n. A group of one row, and a feature that is constant in its group,
    take the standard deviations of all rows; features constant in all rows are not divided. A
    covariance of fewer rows than features needs shrinkage; directions without variance become 0,
    with a warning.

    `partial_fit` equals `fit` on all rows together. Groups travel by metadata routing
    (``sklearn.set_config(enable_metadata_routing=True)``, then ``set_fit_request(groups=True)``
    and ``set_transform_request(groups=True)``); tools that call `predict` without metadata, such
    as the scorers of a search, need `group_column`.

    Cost: O(n d); with `whiten` O(n d^2), and a decomposition, O(d^3), and a matrix of d^2 numbers
    for every group (and class of it, with `class_weighted`). Arrays and tensors come back as they
    came, half precision as float32.

    References
    ----------
    .. [1] V. Srivastav, A. Gangi, N. Padoy, Unsupervised domain adaptation for clinician pose
       estimation and instance segmentation in the operating room, 2021.
       <https://arxiv.org/abs/2108.11801>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import GroupStandardScaler
    >>> X = np.array([[1.0], [3.0], [10.0], [30.0]])
    >>> GroupStandardScaler().fit_transform(X, groups=["a", "a", "b", "b"])
    array([[-1.],
           [ 1.],
           [-1.],
           [ 1.]])
    """

    _parameter_constraints: dict = {
        "with_std": ["boolean"],
        "shrinkage": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="both")],
        "unseen": [StrOptions({"pooled", "batch", "error"})],
        "whiten": ["boolean"],
        "class_weighted": ["boolean"],
        "group_column": [Integral, None],
    }

    def __init__(
        self,
        with_std: bool = True,
        *,
        shrinkage: float | str = 0.0,
        unseen: str = "pooled",
        whiten: bool = False,
        class_weighted: bool = False,
        group_column: int | None = None,
    ):
        self.with_std = with_std
        self.shrinkage = shrinkage
        self.unseen = unseen
        self.whiten = whiten
        self.class_weighted = class_weighted
        self.group_column = group_column

    @property
    def scales_(self) -> np.ndarray:
        """What the rows of each group are divided by."""
        return self._require("scales_")._factors

    @property
    def scale_(self) -> np.ndarray:
        """What rows of no known group are divided by."""
        return self._require("scale_")._pooled_factor

    def _require(self, name: str) -> Self:
        if not hasattr(self, "moments_") or self._whitens:
            raise AttributeError(
                f"This {type(self).__name__} has no {name!r}: it is not fitted, or whitens."
            )
        return self


class GroupCenterer(_BaseGroupScaler):
    """Subtract from every row the mean of its group.

    `GroupStandardScaler` without the division by standard deviations.

    Parameters
    ----------
    shrinkage : float or "auto", default=0.0
        Share of the mean of all rows in that of a group, from 0 to 1. "auto" takes
        10 / (10 + n_g) for a group of n_g rows.
    unseen : {"pooled", "batch", "error"}, default="pooled"
        What is done to a group that was not learned from: the mean of all training rows, or that
        of its rows in this very call, or an error. With "batch" the result for a row depends on
        the other rows of the call.
    class_weighted : bool, default=False
        Take the mean of the class means of a group, for which `fit` needs labels.
    group_column : int or None, default=None
        Column of X that holds the group as a number; it is left out of the result.

    Attributes
    ----------
    groups_ : ndarray of shape (n_groups,)
        Groups learned from, sorted.
    counts_ : ndarray of shape (n_groups,)
        Rows of each.
    means_ : ndarray of shape (n_groups, n_features_out)
        What is subtracted, shrinkage included.
    mean_ : ndarray of shape (n_features_out,)
        Of all rows.
    moments_ : ClassMoments
        Counts, means and variances of the groups, or of the cells of group and class.
    n_features_in_ : int
        Number of features of X.

    See Also
    --------
    GroupStandardScaler : Divides by the standard deviations too, or whitens.

    Notes
    -----
    As for `GroupStandardScaler`. Cost: O(n d).

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import GroupCenterer
    >>> X = np.array([[0, 1.0], [0, 3.0], [7, 10.0], [7, 30.0]])
    >>> GroupCenterer(group_column=0).fit_transform(X)
    array([[ -1.],
           [  1.],
           [-10.],
           [ 10.]])
    """

    with_std = False
    whiten = False

    _parameter_constraints: dict = {
        name: GroupStandardScaler._parameter_constraints[name]
        for name in ("shrinkage", "unseen", "class_weighted", "group_column")
    }

    def __init__(
        self,
        *,
        shrinkage: float | str = 0.0,
        unseen: str = "pooled",
        class_weighted: bool = False,
        group_column: int | None = None,
    ):
        self.shrinkage = shrinkage
        self.unseen = unseen
        self.class_weighted = class_weighted
        self.group_column = group_column
