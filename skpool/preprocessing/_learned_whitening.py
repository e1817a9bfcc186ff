# SPDX-License-Identifier: BSD-3-Clause
"""LearnedWhitening: a projection that makes the differences of matching rows small and round.

The supervised sister of `Whitening`: what it evens out is not all variance but that between rows
that belong together, given by labels or by pairs.
"""

import warnings
from numbers import Integral, Real

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.preprocessing._kernels import l2_normalize
from skpool.preprocessing._whitening_kernels import (
    check_n_components,
    learned_whitening,
    n_kept,
    pair_scatter,
)
from skpool.statistics import ClassMoments, RunningMoments
from skpool.utils import (
    ArrayLike,
    apply_affine,
    as_tensor,
    check_labels,
    numpy_or_tensor,
    unchanged_on_error,
    validate_vectors,
)

__all__ = ["LearnedWhitening"]


class LearnedWhitening(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Whiten the differences of matching rows, and keep the directions of most variance.

    With the mean product :math:`S_w` of the differences :math:`x_i - x_j` of matching rows and
    the covariance :math:`B` of all rows around their mean :math:`\mu`, rows become

    .. math:: z = (x - \mu) W, \qquad B W = S_w W \Lambda, \qquad W^\top S_w W = I ,

    of unit length, with the largest :math:`\Lambda` first: what differs between matching rows is
    evened out, what tells others apart stands in front. The "learned whitening" of image
    retrieval [1]_ [2]_; with labels of equally large classes, its leading directions are those of
    linear discriminant analysis.

    Parameters
    ----------
    n_components : int, str or None, default=None
        Leading directions to keep. Text such as "auto256" keeps that many where there are as
        many, and never more than ``min(n_samples, n_features) - 1``. None keeps all in which rows
        differ.
    shrinkage : float, default=1e-4
        Share of the mean of the diagonal of :math:`S_w` added to the diagonal. Where the sum has
        no Cholesky factor, tenfold shares are tried, with a warning.
    class_balanced : bool, default=False
        With labels: weigh classes equally instead of pairs, of which a class of n rows has
        n (n - 1) / 2.
    mean : {"all", "pairs"}, default="all"
        Around what rows are centred: the mean of all rows, or that of the first rows of the
        pairs, as in the authors' code for [2]_, where these are the queries.
    l2 : bool, default=True
        Scale rows to unit length afterwards, as a cosine needs.
    max_pairs : int or None, default=None
        Most of the pairs given to `fit` to learn from, drawn without replacement; None takes all.
        Labels need no pairs to be listed.
    random_state : int, RandomState instance or None, default=0
        Draws the pairs for `max_pairs`.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
        What is subtracted from rows.
    components_ : ndarray of shape (n_components, n_features)
        The transposed W.
    eigenvalues_ : ndarray of shape (n_components,)
        The diagonal of :math:`\Lambda`: variances of the projected training rows, before they are
        scaled to unit length, in units of their matching differences.
    shrinkage_ : float
        The share that was added.
    n_pairs_ : int
        Pairs learned from; with labels, all of equal label.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    Whitening : Without labels; it learns in parts too.
    sklearn.discriminant_analysis.LinearDiscriminantAnalysis : The same directions, scaled by the
        covariance within classes instead of that of differences (twice as much).

    Notes
    -----
    With labels no pair is listed: the products of the differences of all pairs of a class of n
    rows add up to n times its scatter. In other words, large classes count with the square of
    their size, unless `class_balanced`. ``mean="pairs"`` with labels counts every row as often as
    it is part of a pair.

    New rows of a class pair with all its old ones, so learning in parts would need a matrix for
    every class; there is no `partial_fit`.

    Cost: O(n d^2) for the moments, O(m d^2) for m given pairs, O(d^3) to solve, memory O(d^2).
    `transform` subtracts the mean before it multiplies, where X lies; arrays and tensors come
    back as they came, half precision as float32.

    References
    ----------
    .. [1] K. Mikolajczyk, J. Matas, Improving Descriptors for Fast Tree Matching by Optimal
       Linear Projection, ICCV 2007.
    .. [2] F. Radenovic, G. Tolias, O. Chum, Fine-tuning CNN Image Retrieval with No Human
       Annotation, TPAMI 2018. <https://arxiv.org/abs/1711.02512>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.preprocessing import LearnedWhitening
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1, 2], 30)
    >>> X = rng.normal(size=(90, 4)) * [1, 1, 9, 9] + 3 * rng.normal(size=(3, 4))[y]
    >>> LearnedWhitening(n_components=2).fit_transform(X, y).shape
    (90, 2)
    """

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left"), str, None],
        "shrinkage": [Interval(Real, 0, None, closed="left")],
        "class_balanced": ["boolean"],
        "mean": [StrOptions({"all", "pairs"})],
        "l2": ["boolean"],
        "max_pairs": [Interval(Integral, 1, None, closed="left"), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int | str | None = None,
        *,
        shrinkage: float = 1e-4,
        class_balanced: bool = False,
        mean: str = "all",
        l2: bool = True,
        max_pairs: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.n_components = n_components
        self.shrinkage = shrinkage
        self.class_balanced = class_balanced
        self.mean = mean
        self.l2 = l2
        self.max_pairs = max_pairs
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _validate_params(self) -> None:
        super()._validate_params()
        check_n_components(self.n_components)

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: ArrayLike, y: ArrayLike | None = None, *, pairs: ArrayLike | None = None
    ) -> "LearnedWhitening":
        """Learn the projection.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,), default=None
            Labels: rows of equal label match. Not used where pairs are given.
        pairs : array-like of shape (n_pairs, 2), default=None
            Positions in X of rows that match.

        Returns
        -------
        self : LearnedWhitening
        """
        with unchanged_on_error(self):
            X = validate_vectors(self, X, min_samples=2)
            if pairs is not None:
                within, mean, self.n_pairs_ = self._from_pairs(X, pairs)
            else:
                within, mean, self.n_pairs_ = self._from_labels(X, y)
            moments = RunningMoments(product_dtype="float64").update(X)
            self.mean_ = moments.mean_.copy() if self.mean == "all" else mean
            self._solve(within, moments)
        return self

    def _from_pairs(self, X: ArrayLike, pairs: object) -> tuple[np.ndarray, np.ndarray, int]:
        pairs = _checked_pairs(pairs, len(X))
        if self.max_pairs is not None and len(pairs) > self.max_pairs:
            rng = check_random_state(self.random_state)
            pairs = pairs[np.sort(rng.permutation(len(pairs))[: self.max_pairs])]
        within, mean = pair_scatter(as_tensor(X), pairs)
        if not within.any():
            raise ValueError(
                "The rows of every pair are equal, so there is no difference to whiten; give "
                "pairs of rows that differ."
            )
        return within / len(pairs), mean, len(pairs)

    def _from_labels(self, X: ArrayLike, y: object) -> tuple[np.ndarray, np.ndarray | None, int]:
        if y is None:
            raise ValueError(
                "LearnedWhitening requires y to be passed, but the target y is None; give labels, "
                "or pairs of matching rows."
            )
        y = check_labels(y, n_samples=len(X))
        codes, counts = np.unique(y, return_inverse=True, return_counts=True)[1:]
        if counts.max() < 2:
            raise ValueError(
                "No class of y has 2 samples, so no rows match; give more rows per class."
            )
        # Of all pairs within a class, the products of differences sum up to n times the scatter.
        n_pairs = counts * (counts - 1) / 2
        weights = counts / n_pairs.sum()
        if self.class_balanced:
            matching = counts > 1
            weights = np.where(matching, 2 / np.maximum(counts - 1, 1) / matching.sum(), 0.0)
        moments = ClassMoments(product_dtype="float64").update(X, codes, weights[codes])
        if not moments.scatter_.any():
            raise ValueError(
                "All rows of a class are equal, so there is no difference to whiten; give rows "
                "that differ."
            )
        mean = None
        if self.mean == "pairs":
            mean = RunningMoments("diag").update(X, (counts - 1.0)[codes]).mean_.copy()
        return moments.scatter_, mean, int(n_pairs.sum())

    def _solve(self, within: np.ndarray, moments: RunningMoments) -> None:
        n, d = moments.n_samples, self.n_features_in_
        total = moments.covariance(ddof=1)
        # Around another point than the mean, rows scatter more.
        away = moments.mean_ - self.mean_
        total = total + np.outer(away, away) * (n / (n - 1))
        if not total.any():
            raise ValueError("All rows of X are equal; a whitening needs rows that differ.")
        W, values, self.shrinkage_ = learned_whitening(
            within, total, n_samples=n, shrinkage=self.shrinkage
        )
        if self.shrinkage_ > self.shrinkage:
            warnings.warn(
                f"The differences of {self.n_pairs_} pairs do not reach all {d} features with "
                f"shrinkage={self.shrinkage:g}, so {self.shrinkage_:g} was taken; set a larger "
                "one, or give more pairs.",
                UserWarning,
                stacklevel=4,
            )
        k = n_kept(values, len(values), self.n_components, n_samples=n, d=d)
        self.components_, self.eigenvalues_ = W[:, :k].T.copy(), values[:k].copy()

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def transform(self, X: ArrayLike) -> ArrayLike:
        """Project rows.

        Parameters
        ----------
        X : ndarray or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        Z : ndarray or tensor of shape (n_samples, n_components)
        """
        check_is_fitted(self)
        X = validate_vectors(self, X, reset=False)
        A = self.components_.T
        narrow, restore = numpy_or_tensor(X[:1])
        zero = np.zeros(A.shape[1])
        Z = apply_affine(as_tensor(X), shift=self.mean_, matrix=A, offset=zero, dtype=narrow.dtype)
        return restore(l2_normalize(Z) if self.l2 else Z)


def _checked_pairs(pairs: object, n_samples: int) -> np.ndarray:
    pairs = np.asarray(pairs.cpu() if hasattr(pairs, "cpu") else pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.dtype.kind not in "iu":
        raise ValueError(
            f"pairs must be whole numbers of shape (n_pairs, 2), got {pairs.dtype} of shape "
            f"{pairs.shape}; give the positions in X of matching rows."
        )
    if pairs.min() < 0 or pairs.max() >= n_samples:
        wrong = pairs[(pairs < 0) | (pairs >= n_samples)][0]
        raise ValueError(
            f"pairs holds {wrong}, and the rows of X are 0 to {n_samples - 1}; give positions in X."
        )
    if (pairs[:, 0] == pairs[:, 1]).any():
        raise ValueError(
            f"pairs joins row {pairs[pairs[:, 0] == pairs[:, 1]][0, 0]} with itself; join "
            "different rows."
        )
    return pairs
