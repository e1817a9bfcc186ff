# SPDX-License-Identifier: BSD-3-Clause
"""Herding: an ordered choice of rows whose running mean stays near the mean of all.

`herding` is the choice; `HerdingSelector` makes it for every class. A memory of exemplars
(`_exemplars`) shrinks by cutting such lists off, because every beginning of one is the choice for
its length.
"""

from numbers import Integral
from typing import ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval

from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_finite,
    check_labels,
    unchanged_on_error,
    unit_rows,
    validate_vectors,
)

__all__ = ["HerdingSelector", "herding"]


def _wide(values: object) -> torch.Tensor:
    """Values in float64 where they lie; Apple's GPUs have float32 at most."""
    if not isinstance(values, torch.Tensor):
        values = np.asarray(values, dtype=np.float64)
    tensor = as_tensor(values)
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def herding(F: ArrayLike, m: int, target: ArrayLike | None = None) -> np.ndarray:
    r"""Choose rows one after the other so that their mean stays as near to a target as it can.

    Step k takes, of the rows left, the one with the smallest :math:`\|\mu - (s + x) / k\|`, where
    s is the sum of those taken before. With :math:`w = k \mu - s` this is the largest
    :math:`x^\top w - \|x\|^2 / 2`, and w grows by :math:`\mu - x` with every row that is taken, so
    that a step costs one product [1]_.

    Parameters
    ----------
    F : array-like or tensor of shape (n, n_features)
        Rows.
    m : int
        Rows to choose; all n are, in the order of the choice, if there are no more.
    target : array-like or tensor of shape (n_features,), default=None
        :math:`\mu`; None for the mean of the rows.

    Returns
    -------
    indices : ndarray of shape (min(m, n),)
        Positions in F. The first k are the choice for ``m=k``.

    Notes
    -----
    Cost: O(n d) per step, and a copy of the rows in float64. Of rows that differ by no more than
    rounding the first is taken.

    The published algorithm reads as if a row could be taken again, and its first code takes the
    largest :math:`x^\top w` of unit rows with repetition; here, as in most later code, no row is
    taken twice.

    References
    ----------
    .. [1] M. Welling, Herding Dynamical Weights to Learn, ICML 2009.
    .. [2] S.-A. Rebuffi, A. Kolesnikov, G. Sperl, C. H. Lampert, iCaRL: Incremental Classifier and
       Representation Learning, CVPR 2017. <https://arxiv.org/abs/1611.07725>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import herding
    >>> herding(np.array([[0.0], [9.0], [4.0], [3.0]]), 3)
    array([2, 3, 1])
    """
    rows = _wide(F)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"F has shape {tuple(rows.shape)}; give rows of shape (n, n_features).")
    check_finite(rows, name="F")
    if isinstance(m, bool) or not isinstance(m, Integral) or m < 1:
        raise ValueError(f"m={m!r} is not valid; give a whole number of at least 1.")
    mean = rows.mean(dim=0) if target is None else _wide(target).to(rows.device)
    if mean.shape != rows.shape[1:]:
        raise ValueError(
            f"target has shape {tuple(mean.shape)} and the rows of F have {rows.shape[1]} "
            "features; give one number for each."
        )
    return _herded(rows, mean, min(int(m), len(rows)))


def _herded(rows: torch.Tensor, mean: torch.Tensor, m: int) -> np.ndarray:
    norms = torch.linalg.vector_norm(rows, dim=1)
    # Of a row that is taken it becomes infinite.
    cost, peak = norms.square() / 2, norms.max()
    rounding = torch.finfo(rows.dtype).eps * rows.shape[1] * peak
    w, chosen = mean.clone(), []
    for _ in range(m):
        scores = rows @ w - cost
        slack = rounding * (torch.linalg.vector_norm(w) + peak)
        taken = (scores >= scores.max() - slack).byte().argmax()
        chosen.append(taken)
        cost[taken] = torch.inf
        w += mean - rows[taken]
    return torch.stack(chosen).cpu().numpy()


class HerdingSelector(BaseEstimator):
    """Choose exemplars of every class by herding.

    Parameters
    ----------
    n_exemplars : int, default=20
        Rows per class; a class with fewer gives all.
    normalize : bool, default=True
        Whether rows are scaled to unit length before their mean is taken and they are compared.

    Attributes
    ----------
    indices_ : dict of label to ndarray of shape (n_chosen,)
        Positions in X, in the order in which they were chosen: a beginning of a list is the
        choice for its length.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X had text column names.

    See Also
    --------
    herding : The choice among the rows of one class.
    ExemplarMemory : Keeps the rows themselves, as classes arrive.

    Notes
    -----
    Cost: O(n_c d) per exemplar of a class of n_c rows. The mean of m exemplars nears that of the
    class like 1 / m, where that of m random rows nears it like 1 / sqrt(m) [1]_.

    References
    ----------
    .. [1] S.-A. Rebuffi, A. Kolesnikov, G. Sperl, C. H. Lampert, iCaRL: Incremental Classifier and
       Representation Learning, CVPR 2017. <https://arxiv.org/abs/1611.07725>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import HerdingSelector
    >>> X = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [5.0, 0.0]])
    >>> HerdingSelector(2).fit(X, ["a", "a", "a", "b"]).indices_
    {'a': array([1, 0]), 'b': array([3])}
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_exemplars": [Interval(Integral, 1, None, closed="left")],
        "normalize": ["boolean"],
    }

    def __init__(self, n_exemplars: int = 20, *, normalize: bool = True):
        self.n_exemplars = n_exemplars
        self.normalize = normalize

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object) -> Self:
        """Choose among the rows of every class.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.

        Returns
        -------
        self : estimator
            If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            rows = as_tensor(validate_vectors(self, X))
            y = check_labels(y, n_samples=len(rows), who=type(self).__name__)
            self.indices_ = {
                label: self._chosen(rows, np.flatnonzero(y == label))
                for label in np.unique(y).tolist()
            }
        return self

    def _chosen(self, rows: torch.Tensor, members: np.ndarray) -> np.ndarray:
        part = _wide(rows[torch.from_numpy(members).to(rows.device)])
        return members[herding(unit_rows(part) if self.normalize else part, self.n_exemplars)]

    def fit_resample(self, X: ArrayLike, y: object) -> tuple[ArrayLike, np.ndarray]:
        """Choose, and return the rows that were chosen.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels.

        Returns
        -------
        X_chosen : ndarray or tensor of shape (n_chosen, n_features)
            Class after class, each in the order of the choice.
        y_chosen : ndarray of shape (n_chosen,)
            Their labels.
        """
        self.fit(X, y)
        chosen = np.concatenate(list(self.indices_.values()))
        labels = check_labels(y, n_samples=len(X))[chosen]
        if isinstance(X, torch.Tensor):
            return X[torch.from_numpy(chosen).to(X.device)], labels
        return np.asarray(X)[chosen], labels

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
