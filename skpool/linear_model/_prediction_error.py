# SPDX-License-Identifier: BSD-3-Clause
"""PredictionErrorClassifier: the class that finds a row least surprising, in closed form.

Every class keeps the products of its own rows and nothing else, so classes never touch each other:
they may come one by one, in any order, and the scores are the same to the last bit.
"""

from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, spread_columns
from skpool.linear_model._projected_rows import PROJECTION_CONSTRAINTS, ProjectedRowsMixin
from skpool.statistics import ClassMoments, SymmetricFactor
from skpool.utils import ArrayLike, apply_affine, as_tensor, row_batches, validate_vectors

__all__ = ["PredictionErrorClassifier"]


class _ClassError(NamedTuple):
    """The errors that one class makes."""

    half: np.ndarray  # (k, k): the squared length of z @ half is z' (G + alpha I)^-1 z
    left_out: float  # expected at a row of the class that was left out


def _class_error(moments: ClassMoments, alpha: float) -> _ClassError:
    """Solve for the errors of the one class that the moments hold."""
    n, mean = float(moments.counts_[0]), moments.means_[0]
    gram = moments.scatter_[0] + n * np.outer(mean, mean)
    size = float(np.trace(gram)) / n
    gram.flat[:: len(gram) + 1] += alpha
    half = SymmetricFactor(gram).half(np.eye(len(gram)))
    # Leverages sum up to this; left out, a row of leverage h errs by alpha h / (1 - h).
    freedom = len(gram) - alpha * float((half**2).sum())
    left_out = alpha * freedom / (n - freedom) if n > freedom else np.inf
    # Which is at most the mean squared length, but where rows of weight below 1 are counted.
    return _ClassError(half, min(left_out, size))


class PredictionErrorClassifier(
    ClassScoresMixin, ProjectedRowsMixin, ClassifierMixin, BaseEstimator
):
    r"""Classes by how well what was learned from each of them alone predicts a row.

    Prediction-error classification [1]_ trains one network per class to imitate a fixed random
    one on the rows of the class, and predicts the class whose network errs least. For networks of
    infinite width the expected error is the posterior variance of a Gaussian process that saw the
    rows of the class, which has a closed form. With the features :math:`z = \phi(x)`, their
    products :math:`G_c` summed over class c and the noise :math:`\alpha`, a sample scores

    .. math:: s_c(x) = -\left( k(x, x) - k_c(x)^\top (K_c + \alpha I)^{-1} k_c(x) \right)
        = -\alpha\, z^\top (G_c + \alpha I)^{-1} z .

    Parameters
    ----------
    alpha : float, default=1.0
        Variance of the noise, on the scale of the products of one row.
    kernel : {"linear", "random_features"}, default="linear"
        What z is: the row, which should have unit length, or else its length decides and not its
        direction; or random features of it.
    n_components : int, default=2000
        Number of random features.
    activation : {"relu", "erf", "cos", "sign"} or None, default="relu"
        Their nonlinearity, see :class:`~skpool.preprocessing.RandomFeatures`. With "cos" and
        `bias` the kernel is near half the Gaussian one.
    bias : bool, default=False
        Whether offsets are added before it.
    calibrate : bool, default=False
        Whether the errors of a class are divided by its expected error at a row of its own that
        was left out. A class of many rows is sure of much; this takes off what follows from
        numbers alone. It helps where classes are of unequal size, and costs accuracy where they
        are alike.
    random_state : int, RandomState instance or None, default=0
        Draws the random features. Only estimators of one projection merge.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted, announced ones included.
    left_out_errors_ : ndarray of shape (n_classes,)
        Expected error at a row of the class that was left out, by generalized cross-validation;
        NaN for a class without samples.
    seed_ : int
        What the random features are made from; not there for the linear kernel.
    projection_ : RandomFeatures
        Maps rows to their random features; not there for the linear kernel.
    moments_ : ClassMoments
        Counts, means and scatters of the classes; everything else follows from them.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    PredictionErrorNetworkClassifier : The trained networks of the paper.
    KernelPredictionErrorClassifier : From the rows; for other kernels and classes of few rows.
    skpool.discriminant.LinearDiscriminantClassifier : Classes that share one covariance.

    Notes
    -----
    `partial_fit` in any order and partition, `forget`, `forget_class` and `merge` give what one
    `fit` gives, to rounding. A kernel without an offset cannot tell a row from its negative.

    Cost, with k features z: O(n k^2) to learn, one Cholesky factor and its inverse O(C k^3), and
    O(n C k^2) to predict. Memory: two matrices of 8 k^2 bytes per class (3.2 MB for 100 classes
    of 128 features, 6.4 GB for 100 of 2000 random features); products that exceed
    ``skpool.get_config()["max_array_bytes"]`` are refused.

    References
    ----------
    .. [1] M. Zajac, T. Tuytelaars, G. M. van de Ven, Prediction Error-based Classification for
       Class-Incremental Learning, 2024. <https://arxiv.org/abs/2305.18806>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.linear_model import PredictionErrorClassifier
    >>> X = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
    >>> clf = PredictionErrorClassifier(0.1).partial_fit(X[:2], ["a", "a"])
    >>> clf.partial_fit(X[2:], ["b", "b"]).predict([[0.9, 0.3], [-0.3, 0.9]])
    array(['a', 'b'], dtype='<U1')
    """

    _parameter_constraints: dict = PROJECTION_CONSTRAINTS | {
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "kernel": [StrOptions({"linear", "random_features"})],
        "calibrate": ["boolean"],
    }

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        kernel: str = "linear",
        n_components: int = 2000,
        activation: str | None = "relu",
        bias: bool = False,
        calibrate: bool = False,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.alpha = alpha
        self.kernel = kernel
        self.n_components = n_components
        self.activation = activation
        self.bias = bias
        self.calibrate = calibrate
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # A linear kernel cannot tell two classes that lie opposite each other.
        tags.classifier_tags.poor_score = self.kernel == "linear"
        return tags

    # Learning.

    def _projects(self) -> bool:
        return self.kernel == "random_features"

    def _can_map(self) -> bool:
        return self._check_maps()

    def _new_moments(self) -> ClassMoments:
        # The penalty is absolute, so it may be small beside the rounding of float32.
        return ClassMoments("per_class", product_dtype="float64")

    def _solve(self) -> list[_ClassError]:
        classes = self.moments_.classes_
        return [_class_error(self.moments_.subset([c]), self.alpha) for c in classes]

    @property
    def left_out_errors_(self) -> np.ndarray:
        """Expected error at a row of the class that was left out."""
        errors = np.array([[error.left_out for error in self._known("left_out_errors_")]])
        return spread_columns(errors, self.moments_.classes_, self.classes_, fill=np.nan)[0]

    # Predictions.

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return minus the error that every class makes.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            At most 0, and 0 where a class is sure. Columns in the order of `classes_`; -inf for a
            class without samples.
        """
        check_is_fitted(self)
        X = validate_vectors(self, X, reset=False)
        errors = self._solved
        parts = []
        for part in row_batches(len(X), self._prepared_row_bytes()):
            rows = as_tensor(self._prepared(X[part]))
            columns = [self._errors(rows, error) for error in errors]
            parts.append(torch.stack(columns, dim=1))
        scores = -torch.cat(parts).cpu().numpy()
        return spread_columns(scores, self.moments_.classes_, self.classes_, fill=-np.inf)

    def _errors(self, rows: torch.Tensor, error: _ClassError) -> torch.Tensor:
        zero = np.zeros(len(error.half))
        lengths = apply_affine(rows, shift=zero, matrix=error.half, offset=zero).square().sum(1)
        # A class of zero vectors has errors of 0, which nothing can be divided by.
        return lengths * (self.alpha / ((self.calibrate and error.left_out) or 1.0))
