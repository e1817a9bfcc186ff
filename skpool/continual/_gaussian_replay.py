# SPDX-License-Identifier: BSD-3-Clause
"""GaussianReplay: rows of old classes that nobody kept, drawn from the moments of the classes.

Parameters and one method, `sample`; the moments belong to whoever learns. `AlignedClassifier`
trains its head on such draws.
"""

from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import scipy.linalg
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from skpool.statistics import ClassMoments, class_covariances, class_variances
from skpool.utils import ArrayLike, check_labels

__all__ = ["GaussianReplay"]

_SCATTERS = {"per_class": "per_class", "low_rank": "per_class", "shared": "shared", "diag": "diag"}
# A class of fewer rows says nothing of a covariance, and takes the pooled one.
_MIN_COUNT = 2


def _low_rank_root(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The symmetric root of the largest eigenpairs and one variance for the rest of the space."""
    d = len(matrix)
    values, axes = scipy.linalg.eigh(matrix, subset_by_index=[max(d - rank, 0), d - 1])
    rest = max(np.trace(matrix) - values.sum(), 0.0) / max(d - rank, 1) if rank < d else 0.0
    root = (axes * (np.sqrt(np.maximum(values, 0.0)) - np.sqrt(rest))) @ axes.T
    root.flat[:: d + 1] += np.sqrt(rest)
    return root


class GaussianReplay(BaseEstimator):
    r"""Draws of rows from the moments of classes.

    "gaussian" draws from :math:`\mathcal N(\mu_c, \Sigma_c + \epsilon I)` [1]_.
    "prototype_noise" [2]_ draws :math:`\mu_c + r z`, with :math:`r^2` the mean variance of the
    features within classes and standard normal :math:`z`. "neighbor" [3]_ draws
    :math:`g \mu_c + (1 - g) \mu_n`, with :math:`g` uniform between 0.5 and 1 and a random one
    :math:`n` of the classes whose means are nearest.

    Parameters
    ----------
    mode : {"gaussian", "prototype_noise", "neighbor"}, default="gaussian"
        How rows are drawn, see above.
    covariance : {"per_class", "shared", "diag", "low_rank"}, default="per_class"
        Of "gaussian": a full matrix per class, one for all classes, variances per class, or the
        `rank` largest eigenpairs per class with one variance for the rest of the space.
    shrinkage : float, "oas" or None, default="oas"
        Share of the identity times the mean variance in each covariance; "diag" needs a number or
        None, which is 0. A class of one row takes the covariance of all.
    jitter : float, default=1e-4
        :math:`\epsilon`, which is added to all variances of "gaussian".
    rank : int, default=32
        Eigenpairs of "low_rank".
    n_neighbors : int, default=5
        Of "neighbor".

    See Also
    --------
    AlignedClassifier : Trains a linear head on draws.
    skpool.discriminant.GaussianClassifier : Predicts by the same Gaussians, without draws.

    Notes
    -----
    It holds no state, and there is nothing to fit. Closed forms need no draws: linear and
    quadratic discriminants are what a head trained on infinitely many would tend to.

    PASS takes the radius of the first session, whose network then changes; frozen features do
    not, and all classes count here. In the released code of NAPA-VQ the neighbours are edges of a
    neural gas, and a class may be its own neighbour; here they are the nearest means, without
    itself.

    Cost of "per_class" and "low_rank": O(C d^3), and O(n d^2) for n draws; of the others O(n d)
    but for one factor of "shared". One matrix is held at a time.

    References
    ----------
    .. [1] G. Zhang, L. Wang, G. Kang, L. Chen, Y. Wei, SLCA: Slow Learner with Classifier
       Alignment for Continual Learning on a Pre-trained Model, 2023.
       <https://arxiv.org/abs/2303.05118>
    .. [2] F. Zhu, X.-Y. Zhang, C. Wang, F. Yin, C.-L. Liu, Prototype Augmentation and
       Self-Supervision for Incremental Learning, CVPR 2021.
    .. [3] T. Malepathirana, D. Senanayake, S. Halgamuge, NAPA-VQ: Neighborhood Aware Prototype
       Augmentation with Vector Quantization for Continual Learning, 2023.
       <https://arxiv.org/abs/2308.09297>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import GaussianReplay
    >>> replay = GaussianReplay(covariance="diag", shrinkage=None)
    >>> rows = np.array([[0.0, 5.0], [2.0, 5.0], [9.0, 0.0], [9.0, 4.0]])
    >>> moments = replay.new_moments().update(rows, ["a", "a", "b", "b"])
    >>> X, y = replay.sample(moments, 100, classes=["b"], random_state=0)
    >>> X.shape, sorted(set(y.tolist())), X.mean(axis=0).round()
    ((100, 2), ['b'], array([9., 2.]))
    """

    _parameter_constraints: ClassVar[dict] = {
        "mode": [StrOptions({"gaussian", "prototype_noise", "neighbor"})],
        "covariance": [StrOptions(set(_SCATTERS))],
        "shrinkage": [StrOptions({"oas"}), Interval(Real, 0, 1, closed="both"), None],
        "jitter": [Interval(Real, 0, None, closed="left")],
        "rank": [Interval(Integral, 1, None, closed="left")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        mode: str = "gaussian",
        *,
        covariance: str = "per_class",
        shrinkage: float | str | None = "oas",
        jitter: float = 1e-4,
        rank: int = 32,
        n_neighbors: int = 5,
    ):
        self.mode = mode
        self.covariance = covariance
        self.shrinkage = shrinkage
        self.jitter = jitter
        self.rank = rank
        self.n_neighbors = n_neighbors

    def _check_parameters(self) -> None:
        self._validate_params()
        if self.covariance == "diag" and self.shrinkage == "oas":
            raise ValueError(
                "shrinkage='oas' is for full matrices, and covariance='diag' has none; give a "
                "number, or None."
            )

    def new_moments(self) -> ClassMoments:
        """Return empty moments of the kind that is drawn from.

        Returns
        -------
        moments : ClassMoments
        """
        self._check_parameters()
        if self.mode == "gaussian":
            return ClassMoments(_SCATTERS[self.covariance])
        return ClassMoments("shared_diag" if self.mode == "prototype_noise" else "none")

    def sample(
        self,
        moments: ClassMoments,
        n_per_class: int,
        *,
        classes: ArrayLike | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw rows.

        Parameters
        ----------
        moments : ClassMoments
            Of the kind of `new_moments`.
        n_per_class : int
            Rows of each class.
        classes : array-like of shape (n_classes,), default=None
            Classes to draw from; None for all in the moments.
        random_state : int, RandomState instance or None, default=None
            Determines the rows; pass an int for the same ones in every call.

        Returns
        -------
        X : ndarray of shape (n_classes * n_per_class, n_features)
            Class after class.
        y : ndarray of shape (n_classes * n_per_class,)
            Their labels.
        """
        self._check_parameters()
        held = moments.classes_
        labels = held if classes is None else check_labels(classes, n_samples=len(classes))
        unknown = np.setdiff1d(labels, held).tolist()
        if unknown or not len(labels):
            raise ValueError(
                f"classes={classes!r} are not among the {len(held)} classes of the moments; give "
                "some that are."
            )
        positions = np.searchsorted(held, labels)
        rng = check_random_state(random_state)
        draws = _MODES[self.mode](self, moments, positions, n_per_class, rng)
        return np.concatenate(list(draws)), np.repeat(labels, n_per_class)

    def _gaussian(
        self, moments: ClassMoments, positions: np.ndarray, n: int, rng: np.random.RandomState
    ) -> Iterator[np.ndarray]:
        # Factored in their order in the moments, one at a time, and drawn from in the order asked.
        drawn = {}
        for k, root in self._roots(moments, set(positions.tolist())):
            normal = rng.standard_normal((n, len(root)))
            rows = normal * root if root.ndim == 1 else normal @ root.T
            drawn[k] = moments.means_[k] + rows
        return (drawn[k] for k in positions.tolist())

    def _roots(self, moments: ClassMoments, wanted: set[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Square roots of the covariances of classes, as matrices or standard deviations."""
        if self.covariance == "diag":
            options = {"shrinkage": self.shrinkage, "min_count": _MIN_COUNT}
            variances = class_variances(moments, **options)
            yield from ((k, np.sqrt(variances[k] + self.jitter)) for k in sorted(wanted))
            return
        if self.covariance == "shared":
            found = next(class_covariances(moments, "shared", shrinkage=self.shrinkage))
            root = self._root(found.matrix)
            yield from ((k, root) for k in sorted(wanted))
            return
        per_class = class_covariances(moments, shrinkage=self.shrinkage, min_count=_MIN_COUNT)
        for k, found in enumerate(per_class):
            if k in wanted:
                yield k, self._root(found.matrix)

    def _root(self, matrix: np.ndarray) -> np.ndarray:
        matrix.flat[:: len(matrix) + 1] += self.jitter
        if self.covariance == "low_rank":
            return _low_rank_root(matrix, self.rank)
        try:
            return np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError as error:
            raise ValueError(
                f"A covariance is singular with shrinkage={self.shrinkage!r} and "
                f"jitter={self.jitter}; raise either."
            ) from error

    def _prototype_noise(
        self, moments: ClassMoments, positions: np.ndarray, n: int, rng: np.random.RandomState
    ) -> Iterator[np.ndarray]:
        radius = np.sqrt(moments.scatter_.mean() / moments.counts_.sum())
        for mean in moments.means_[positions]:
            yield mean + radius * rng.standard_normal((n, len(mean)))

    def _neighbor(
        self, moments: ClassMoments, positions: np.ndarray, n: int, rng: np.random.RandomState
    ) -> Iterator[np.ndarray]:
        means = moments.means_
        apart = cdist(means[positions], means)
        apart[np.arange(len(positions)), positions] = np.inf
        # Of one class there is no neighbour but itself.
        nearest = apart.argsort(axis=1)[:, : min(self.n_neighbors, max(len(means) - 1, 1))]
        for own, others in zip(means[positions], nearest, strict=True):
            share = rng.uniform(0.5, 1.0, size=(n, 1))
            yield share * own + (1 - share) * means[rng.choice(others, size=n)]


_MODES: dict[str, Callable[..., Iterator[np.ndarray]]] = {
    "gaussian": GaussianReplay._gaussian,
    "neighbor": GaussianReplay._neighbor,
    "prototype_noise": GaussianReplay._prototype_noise,
}
