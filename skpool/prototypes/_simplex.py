# SPDX-License-Identifier: BSD-3-Clause
"""SimplexClassifier: features mapped onto fixed targets, in a frame that new classes do not move.

A classifier whose targets are set in advance gives embeddings that stay comparable: between one
session and the next, and between two networks. What is learned follows from the class moments.
"""

from numbers import Integral, Real
from typing import ClassVar, NamedTuple, Self

import numpy as np
import scipy.optimize
from scipy.special import softmax
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, spread_columns
from skpool.prototypes._base import NumberedClassesMixin
from skpool.prototypes._polytopes import simplex_etf, simplex_vertices
from skpool.statistics import ClassMoments, RidgePath
from skpool.utils import ArrayLike, apply_affine, as_tensor, numpy_or_tensor, validate_vectors

__all__ = ["SimplexClassifier"]


class _Map(NamedTuple):
    """Rows to embeddings: ``(x - center) @ matrix + offset``."""

    center: np.ndarray  # (d,)
    matrix: np.ndarray  # (d, m)
    offset: np.ndarray  # (m,)
    alpha: float | None


def _rotation(rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the map of orthonormal rows or columns that brings rows nearest to their targets.

    It has the largest sum of products. Of all such maps it is the one that vanishes where rows or
    targets do: the others would turn there as rounding errors tell them. All is computed in the
    span of the few rows.
    """
    basis, left = np.linalg.qr(rows.T)
    target_basis, right = np.linalg.qr(targets.T)
    turned, singular, back = np.linalg.svd(left @ right.T)
    tolerance = singular.max(initial=0.0) * max(rows.shape) * np.finfo(np.float64).eps
    kept = np.flatnonzero(singular > tolerance)
    return (basis @ turned[:, kept]) @ (target_basis @ back[kept].T).T


class SimplexClassifier(
    ClassScoresMixin,
    NumberedClassesMixin,
    ClassNamePrefixFeaturesOutMixin,
    ClassifierMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Linear map onto fixed targets: the vertices of a simplex, one for every class to come.

    Each class :math:`c` gets a unit vector :math:`s_c` out of `n_reserved` when its first sample
    comes. With the scatter :math:`T` of all rows around their mean, counts :math:`n_c` and means
    :math:`\mu_c`, "ridge" maps a row to

    .. math:: z(x) = W^\top (x - \bar x) + \bar s, \qquad
        W = (T + \lambda I)^{-1} \sum_c n_c (\mu_c - \bar x)\, s_c^\top ,

    which is a ridge regression on the targets. "procrustes" takes
    the rotation that maximises :math:`\sum_c \langle W^\top (\mu_c - \bar\mu), s_c \rangle`, with
    the mean :math:`\bar\mu` of the class means, and no offset. The class of the largest
    :math:`z^\top s_c` is predicted. The targets are those of d-Simplex [1]_ and CoReS [2]_.

    Parameters
    ----------
    n_reserved : int, default=1024
        Vertices, for as many classes as will ever come. For targets that are given, their number
        counts.
    targets : {"simplex", "etf"} or array-like of shape (n_reserved, n_outputs), default="simplex"
        `simplex_vertices`; `simplex_etf` of the width of the rows, which needs as many features
        as vertices less one; or unit rows of your own, such as `fixed_polytope` gives.
    solver : {"ridge", "procrustes"}, default="ridge"
        How the map is found, see above.
    alpha : float or "gcv", default="gcv"
        Penalty of "ridge"; "gcv" chooses it by generalized cross-validation, see
        :class:`~skpool.statistics.RidgePath`.
    relative : bool, default=True
        Whether the penalty is `alpha` times the mean eigenvalue of the scatter; else `alpha`.
    assign : {"order", "hungarian"}, default="order"
        Which vertices the classes of the first call get: the first ones, in the order of the
        labels; or those that the rotation of "procrustes" takes their means nearest to. Later
        classes take the next free ones.
    temperature : float, default=16.0
        Factor of the scores in `predict_proba`.
    random_state : int, RandomState instance or None, default=0
        Of "etf".

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    targets_ : ndarray of shape (n_reserved, n_outputs)
        All vertices.
    vertex_of_class_ : ndarray of shape (n_classes,)
        Row of `targets_` of each class; -1 for a class without samples.
    coef_ : ndarray of shape (n_outputs, n_features)
        Weights of the map.
    intercept_ : ndarray of shape (n_outputs,)
        Its offset.
    alpha_ : float or None
        Penalty of "ridge", relative where `relative` is.
    moments_ : ClassMoments
        Counts, means and scatter.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    skpool.linear_model.RidgeHeadClassifier : The same predictions, without the embedding.
    simplex_vertices : The targets.

    Notes
    -----
    Ridge onto simplex vertices predicts exactly as ridge onto one-hot targets does, for any number
    of reserved vertices, by product, cosine or distance: the vertices are the one-hot vectors
    centred and scaled. What is gained is the *embedding*, not accuracy: its frame is the same for
    any classes learned so far and for any network, so that rows of one model can be compared with
    rows of another.

    The vertices of old classes stay as they are, bit by bit, when classes arrive. A class that is
    forgotten sets its vertex free for the next; `merge` keeps the vertices of this classifier and
    places new labels of the other. Scores follow from the moments and do not depend on the order
    of the rows; which vertex is whose depends on the order of the classes.

    Cost: one product O(n d^2) and one decomposition O(d^3) for "ridge", O(n d) for "procrustes";
    O(n d n_outputs) to transform. Memory O(d^2 + n_reserved^2).

    References
    ----------
    .. [1] N. Biondi, F. Pernici, S. Ricci, A. Del Bimbo, Stationary Representations: Optimally
       Approximating Compatibility and Implications for Improved Model Replacements, 2024.
       <https://arxiv.org/abs/2405.02581>
    .. [2] N. Biondi, F. Pernici, M. Bruni, A. Del Bimbo, CoReS: Compatible Representations via
       Stationarity, 2021. <https://arxiv.org/abs/2111.07632>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.prototypes import SimplexClassifier
    >>> X = np.array([[0.0, 0.1], [1.0, 0.0], [4.0, 0.1], [5.0, 0.0]])
    >>> clf = SimplexClassifier(4, alpha=0.01).fit(X, ["b", "b", "c", "c"])
    >>> clf.partial_fit([[0.0, 9.0]], ["a"]).vertex_of_class_
    array([2, 0, 1])
    >>> clf.transform(X).shape
    (4, 3)
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_reserved": [Interval(Integral, 2, None, closed="left")],
        "targets": [StrOptions({"simplex", "etf"}), "array-like"],
        "solver": [StrOptions({"ridge", "procrustes"})],
        "alpha": [StrOptions({"gcv"}), Interval(Real, 0, None, closed="left")],
        "relative": ["boolean"],
        "assign": [StrOptions({"order", "hungarian"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_reserved: int = 1024,
        *,
        targets: str | ArrayLike = "simplex",
        solver: str = "ridge",
        alpha: float | str = "gcv",
        relative: bool = True,
        assign: str = "order",
        temperature: float = 16.0,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.n_reserved = n_reserved
        self.targets = targets
        self.solver = solver
        self.alpha = alpha
        self.relative = relative
        self.assign = assign
        self.temperature = temperature
        self.random_state = random_state

    # Learning.

    def _new_moments(self) -> ClassMoments:
        return ClassMoments("shared" if self.solver == "ridge" else "none")

    def _reset(self) -> None:
        super()._reset()
        self._targets: np.ndarray | None = None

    def _new_targets(self) -> np.ndarray:
        if isinstance(self.targets, str):
            if self.targets == "simplex":
                return simplex_vertices(self.n_reserved)
            return simplex_etf(self.n_reserved, self.n_features_in_, random_state=self.random_state)
        targets = np.array(self.targets, dtype=np.float64)
        lengths = np.linalg.norm(targets, axis=1) if targets.ndim == 2 else np.zeros(1)
        if not np.allclose(lengths, 1):
            raise ValueError(
                f"targets has shape {targets.shape} and rows of length {lengths.min():.3g} to "
                f"{lengths.max():.3g}; give unit rows, of shape (n_reserved, n_outputs)."
            )
        return targets

    def _refresh(self) -> None:
        if self._targets is None:
            self._targets = self._new_targets()
        super()._refresh()

    def _numbered(self, new: list, numbers: dict) -> list[int]:
        free = np.setdiff1d(np.arange(len(self._targets)), list(numbers.values()))
        if len(new) > len(free):
            raise ValueError(
                f"There are {len(numbers) + len(new)} classes and {len(self._targets)} vertices; "
                "set a larger n_reserved (or more targets) and fit anew, since every vertex would "
                "move."
            )
        if self.assign == "hungarian" and new and not numbers:
            return self._nearest_vertices()
        return free[: len(new)].tolist()

    def _nearest_vertices(self) -> list[int]:
        """Vertices of the first classes, by the largest sum of products after the rotation."""
        means = self._centred_means()[1]
        rotated = means @ _rotation(means, self._targets[: len(means)])
        return scipy.optimize.linear_sum_assignment(-rotated @ self._targets.T)[1].tolist()

    def _merge(self, other: Self) -> None:
        if not np.array_equal(self._targets, other._targets):
            raise ValueError(
                f"other maps onto targets of shape {other._targets.shape}, which are not those of "
                f"this classifier, of shape {self._targets.shape}; merge classifiers with equal "
                "targets."
            )
        super()._merge(other)

    def _map_to(self, mapped: Self, A: np.ndarray, b: np.ndarray) -> None:
        super()._map_to(mapped, A, b)
        # A frame as wide as the rows does not fit rows of another width.
        as_wide = isinstance(self.targets, str) and self.targets == "etf"
        mapped._targets = None if as_wide and A.shape[0] != A.shape[1] else self._targets

    def _centred_means(self) -> tuple[np.ndarray, np.ndarray]:
        means = self.moments_.means_
        center = means.mean(axis=0)
        return center, means - center

    def _solve(self) -> _Map:
        vertices = self._targets[self._numbers_held()]
        if self.solver == "procrustes":
            center, means = self._centred_means()
            none = np.zeros(vertices.shape[1])
            return _Map(center, _rotation(means, vertices), none, None)
        alphas = "auto" if self.alpha == "gcv" else [self.alpha]
        path = RidgePath(alphas, relative=self.relative).fit_moments(self.moments_)
        # One-hot targets times the vertices: so are their regressions.
        shares = self.moments_.counts_ / self.moments_.counts_.sum()
        center, offset = shares @ self.moments_.means_, shares @ vertices
        return _Map(center, path.coef_.T @ vertices, offset, path.alpha_)

    # What was learned.

    @property
    def targets_(self) -> np.ndarray:
        """All vertices."""
        self._known("targets_")
        return self._targets

    @property
    def vertex_of_class_(self) -> np.ndarray:
        """Row of the targets of each class."""
        self._known("vertex_of_class_")
        numbers, held = self._numbers_held()[None], self.moments_.classes_
        return spread_columns(numbers, held, self.classes_, fill=-1)[0]

    @property
    def coef_(self) -> np.ndarray:
        """Weights of the map."""
        return self._known("coef_").matrix.T

    @property
    def intercept_(self) -> np.ndarray:
        """Offset of the map."""
        solved = self._known("intercept_")
        return solved.offset - solved.center @ solved.matrix

    @property
    def alpha_(self) -> float | None:
        """The penalty."""
        return self._known("alpha_").alpha

    # Predictions.

    def transform(self, X: ArrayLike) -> ArrayLike:
        """Map rows into the space of the targets.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        Z : ndarray or tensor of shape (n_samples, n_outputs)
            Embeddings; compare them by product or cosine.
        """
        check_is_fitted(self)
        X = validate_vectors(self, X, reset=False)
        solved = self._solved
        _, restore = numpy_or_tensor(X[:1])
        return restore(
            apply_affine(
                as_tensor(X), shift=solved.center, matrix=solved.matrix, offset=solved.offset
            )
        )

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the products of the embeddings with the vertices of the classes.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; -inf for a class without samples.
        """
        check_is_fitted(self)
        rows = as_tensor(validate_vectors(self, X, reset=False))
        solved, vertices = self._solved, self._targets[self._numbers_held()]
        # The two maps in one: there are fewer classes than outputs.
        scores = apply_affine(
            rows,
            shift=solved.center,
            matrix=solved.matrix @ vertices.T,
            offset=solved.offset @ vertices.T,
        )
        return spread_columns(
            scores.cpu().numpy(), self.moments_.classes_, self.classes_, fill=-np.inf
        )

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the softmax of the scores times `temperature`.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Rows sum to 1; columns in the order of `classes_`.
        """
        return softmax(self.temperature * self._decisive_scores(X), axis=1)

    @property
    def _n_features_out(self) -> int:
        return self._targets.shape[1]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
