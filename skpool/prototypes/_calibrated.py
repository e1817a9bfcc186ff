# SPDX-License-Identifier: BSD-3-Clause
"""CalibratedPrototypeClassifier: means of few-shot classes drawn towards the base classes.

The mean of five samples points away from where the class is. Classes that were learned from many
samples know better, so a new prototype is mixed with those base prototypes that it resembles.
"""

import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import spread_columns
from skpool.prototypes._base import ClassMeansMixin, NumberedClassesMixin, scores_of, wide_tensor
from skpool.prototypes._kernels import scores_dot
from skpool.statistics import ClassMoments
from skpool.utils import ArrayLike, as_tensor, unit_rows, validate_vectors

__all__ = ["CalibratedPrototypeClassifier", "calibrate_prototypes"]


def _unit(rows: ArrayLike) -> np.ndarray:
    return unit_rows(torch.from_numpy(np.array(rows, dtype=np.float64))).numpy()


def _weights(new: np.ndarray, base: np.ndarray, temperature: float) -> np.ndarray:
    """Shares of the base prototypes in each new one, given unit rows."""
    return softmax(temperature * (new @ base.T), axis=1)


def calibrate_prototypes(
    new: ArrayLike, base: ArrayLike, *, alpha: float = 0.5, temperature: float = 16.0
) -> np.ndarray:
    r"""Draw prototypes of new classes towards the base prototypes that they resemble.

    With unit rows :math:`p_i` of `new` and :math:`b_j` of `base`,

    .. math:: p_i' = (1 - \alpha)\, p_i + \alpha\, \frac{d_i}{|d_i|}, \qquad
        d_i = \sum_j \operatorname{softmax}_j(\tau\, p_i^\top b_j)\, b_j .

    Parameters
    ----------
    new : array-like of shape (n_new, n_features)
        Prototypes of new classes, of any length.
    base : array-like of shape (n_base, n_features)
        Prototypes of base classes, of any length.
    alpha : float, default=0.5
        Weight of the base part, from 0 to 1.
    temperature : float, default=16.0
        Factor :math:`\tau` of the cosines in the softmax, at least 0; large values take the most
        similar base prototype alone.

    Returns
    -------
    calibrated : ndarray of shape (n_new, n_features)
        In float64; not of unit length, which the cosine ignores.

    References
    ----------
    .. [1] Q.-W. Wang, D.-W. Zhou, Y.-K. Zhang, D.-C. Zhan, H.-J. Ye, Few-Shot Class-Incremental
       Learning via Training-Free Prototype Calibration, 2023. <https://arxiv.org/abs/2312.05229>

    Examples
    --------
    >>> from skpool.prototypes import calibrate_prototypes
    >>> calibrate_prototypes([[2.0, 0.0]], [[0.0, 3.0]], alpha=0.25)
    array([[0.75, 0.25]])
    """
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r} is not valid; give a number from 0 to 1.")
    if not isinstance(temperature, Real) or not 0 <= temperature < np.inf:
        raise ValueError(f"temperature={temperature!r} is not valid; give a number of at least 0.")
    new, base = _unit(new), _unit(base)
    if base.ndim != 2 or not len(base) or base.shape[1:] != new.shape[1:]:
        raise ValueError(
            f"base has shape {base.shape} and new {new.shape}; give at least one base prototype, "
            "of the width of the new ones."
        )
    return (1 - alpha) * new + alpha * _unit(_weights(new, base, temperature) @ base)


class _Calibrated(NamedTuple):
    """What predictions are made of; classes that hold samples only."""

    prototypes: np.ndarray  # (C, d)
    raw: np.ndarray  # (C, d), unit rows
    is_base: np.ndarray  # (C,)
    weights: np.ndarray  # (C_new, C_base)


class CalibratedPrototypeClassifier(
    ClassMeansMixin, NumberedClassesMixin, ClassifierMixin, BaseEstimator
):
    r"""Nearest class mean, in which means of new classes are calibrated by those of base classes.

    The classes of the first session, learned from many samples, keep their unit means
    :math:`b_j`; a class that arrives later with a unit mean :math:`p_i` is represented by

    .. math:: p_i' = (1 - \alpha)\, p_i + \alpha\, \frac{d_i}{|d_i|}, \qquad
        d_i = \sum_j \operatorname{softmax}_j(\tau\, p_i^\top b_j)\, b_j ,

    and a sample gets the class of the highest cosine. This is TEEN [1]_. With
    :math:`\alpha = 0` it is the nearest class mean.

    Parameters
    ----------
    alpha : float, default=0.5
        Weight of the base part in a new prototype, from 0 to 1. The released code takes 0.5 for
        CUB-200 and miniImageNet and 0.1 for CIFAR-100.
    softmax_temperature : float, default=16.0
        Factor :math:`\tau` of the cosines that weigh the base prototypes.
    temperature : float, default=16.0
        Factor of the scores in `predict_proba`; predictions do not depend on it.
    base_classes : "first_call" or sequence of labels, default="first_call"
        The classes that others are calibrated by: those of the first call of `fit` or
        `partial_fit`, or these labels, whenever they come.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    prototypes_ : ndarray of shape (n_classes, n_features)
        Unit means of the base classes, and calibrated ones of the others; NaN for a class that
        was announced and has no samples.
    raw_prototypes_ : ndarray of shape (n_classes, n_features)
        Unit means of all classes.
    base_classes_ : ndarray of shape (n_base,)
        Base classes that hold samples.
    calibration_weights_ : ndarray of shape (n_classes - n_base, n_base)
        Shares of the base classes in the prototypes of the others that hold samples, both in the
        order of `classes_`; rows sum to 1.
    session_of_class_ : ndarray of shape (n_classes,)
        In which session each class came: 0 for the first call, one more for every later call that
        brought new labels, -1 for a class without samples.
    counts_ : ndarray of shape (n_classes,)
        Samples, or sums of sample weights, of the classes.
    moments_ : ClassMoments
        Counts and means of the classes as they came.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    NearestClassMeanClassifier : The same without calibration.
    calibrate_prototypes : The formula alone.

    Notes
    -----
    All is computed from the class means, so later samples of a class, new or base, sharpen every
    prototype, and `forget` equals never having learned. Sessions commute, and new ones leave the
    scores of base classes as they are, bit by bit. `merge` adds the samples and takes for every
    class the earlier of its two sessions; `fit_blocks` and `fit_moments` learn one session, that
    of the base classes. Where every class comes in one session, as in the
    benchmarks of the paper, these are the prototypes of the released code, which computes each
    once.

    Report the accuracies on base and new classes and their harmonic mean: the average over all
    samples hides what the calibration does. In the text of the paper alpha seems to weigh a
    class's own mean; in its code, and here, the base part.

    Cost: one pass, O(n d), and O(C_new C_base d) for the calibration; memory O(C d).

    References
    ----------
    .. [1] Q.-W. Wang, D.-W. Zhou, Y.-K. Zhang, D.-C. Zhan, H.-J. Ye, Few-Shot Class-Incremental
       Learning via Training-Free Prototype Calibration, 2023. <https://arxiv.org/abs/2312.05229>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.prototypes import CalibratedPrototypeClassifier
    >>> clf = CalibratedPrototypeClassifier(alpha=0.2).fit(np.eye(3)[:2], ["cat", "dog"])
    >>> clf = clf.partial_fit([[0.9, 0.0, 1.0]], ["fox"])
    >>> clf.calibration_weights_.round(3)
    array([[1., 0.]])
    >>> clf.predict([[0.4, 0.0, 0.6], [1.0, 0.1, 0.1]])
    array(['fox', 'cat'], dtype='<U3')
    """

    _parameter_constraints: ClassVar[dict] = {
        "alpha": [Interval(Real, 0, 1, closed="both")],
        "softmax_temperature": [Interval(Real, 0, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "base_classes": [StrOptions({"first_call"}), "array-like"],
    }

    def __init__(
        self,
        alpha: float = 0.5,
        *,
        softmax_temperature: float = 16.0,
        temperature: float = 16.0,
        base_classes: str | Sequence[Any] = "first_call",
    ):
        self.alpha = alpha
        self.softmax_temperature = softmax_temperature
        self.temperature = temperature
        self.base_classes = base_classes

    # Learning.

    def _new_moments(self) -> ClassMoments:
        return ClassMoments("none")

    def _numbered(self, new: list, numbers: dict) -> list[int]:
        return [max(numbers.values(), default=-1) + 1] * len(new)

    def _merge(self, other: Self) -> None:
        super()._merge(other)
        ours, theirs = self._numbers, other._numbers
        self._numbers = {
            label: min(part[label] for part in (ours, theirs) if label in part)
            for label in ours | theirs
        }

    def _is_base(self) -> np.ndarray:
        """Tell which of the classes that hold samples are base classes."""
        if isinstance(self.base_classes, str):
            return self._numbers_held() == 0
        named = set(np.asarray(self.base_classes).tolist())
        return np.array([label in named for label in self.moments_.classes_.tolist()])

    def _solve(self) -> _Calibrated:
        raw, is_base = _unit(self.moments_.means_), self._is_base()
        self._warn_of_zero_means(raw)
        base, new = raw[is_base], raw[~is_base]
        if self.alpha == 0 or not len(new):
            weights = _weights(new, base, self.softmax_temperature) if len(base) else new[:, :0]
            return _Calibrated(raw, raw, is_base, weights)
        self._check_base(len(base))
        prototypes = raw.copy()
        prototypes[~is_base] = calibrate_prototypes(
            new, base, alpha=self.alpha, temperature=self.softmax_temperature
        )
        weights = _weights(new, base, self.softmax_temperature)
        return _Calibrated(prototypes, raw, is_base, weights)

    def _check_base(self, n_base: int) -> None:
        if n_base == 0:
            raise ValueError(
                f"No base class (base_classes={self.base_classes!r}) holds samples, so the "
                f"{len(self.moments_.classes_)} classes cannot be calibrated; learn the base "
                "classes, or set alpha=0."
            )
        if n_base == 1:
            warnings.warn(
                "There is one base class, so every other prototype is drawn towards it alone; "
                "learn more base classes, or set alpha=0.",
                UserWarning,
                stacklevel=2,
            )

    # What was learned.

    @property
    def raw_prototypes_(self) -> np.ndarray:
        """Unit means of the classes."""
        return self._of_classes(self._known("raw_prototypes_").raw, fill=np.nan)

    @property
    def base_classes_(self) -> np.ndarray:
        """Base classes that hold samples."""
        is_base = self._known("base_classes_").is_base
        return self.moments_.classes_[is_base]

    @property
    def calibration_weights_(self) -> np.ndarray:
        """Shares of the base classes in the other prototypes."""
        return self._known("calibration_weights_").weights

    @property
    def session_of_class_(self) -> np.ndarray:
        """In which session each class came."""
        self._known("session_of_class_")
        return self._of_classes(self._numbers_held(), fill=-1)

    # Predictions.

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the cosines with the prototypes.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; -inf for a class without samples, 0 for a zero
            row. float32 for float32 and half precision, else float64.
        """
        check_is_fitted(self)
        X = as_tensor(validate_vectors(self, X, reset=False))
        solved = self._solved
        # A product of its own for the base classes: their columns keep their last bits however
        # many classes come beside them.
        groups = [np.flatnonzero(solved.is_base), np.flatnonzero(~solved.is_base)]
        parts = [wide_tensor(_unit(solved.prototypes[at]), X) for at in groups]

        def score(rows: torch.Tensor) -> torch.Tensor:
            rows = unit_rows(rows)
            return torch.cat([scores_dot(rows, part) for part in parts], dim=1)

        scores = scores_of(X, score, n_outputs=len(solved.prototypes))
        scores = scores[:, np.argsort(np.concatenate(groups))]
        return spread_columns(scores, self.moments_.classes_, self.classes_, fill=-np.inf)
