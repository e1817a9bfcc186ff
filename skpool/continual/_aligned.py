# SPDX-License-Identifier: BSD-3-Clause
"""AlignedClassifier: a linear head that is trained again on draws of all classes so far.

A head that is trained session by session forgets; the moments of the classes do not. After each
session the head learns from rows that are drawn from them, old and new classes alike.
"""

from copy import deepcopy
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skpool.base import ClassScoresMixin, MomentsMixin, spread_columns
from skpool.continual._gaussian_replay import GaussianReplay
from skpool.continual._growing import teach
from skpool.statistics import ClassMoments
from skpool.training import HeadObjective, HeadTrainer, VectorRows, get_loss
from skpool.utils import (
    ArrayLike,
    apply_affine,
    as_tensor,
    unchanged_on_error,
    validate_vectors,
    widened,
)

__all__ = ["AlignedClassifier"]

_MOMENTUM = 0.9


class _Linear(NamedTuple):
    """A head over the classes that hold samples: ``(x - center) @ coef.T + intercept``."""

    center: np.ndarray  # (d,)
    coef: np.ndarray  # (C, d)
    intercept: np.ndarray  # (C,)


class _NormedLogits(nn.Module):
    """A linear layer, its outputs divided by their length times a temperature."""

    def __init__(self, head: _Linear, logit_norm: float | None):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(head.coef.copy()))
        self.bias = nn.Parameter(torch.from_numpy(head.intercept.copy()))
        self.logit_norm = logit_norm

    def forward(self, values: torch.Tensor, mask: None) -> torch.Tensor:
        logits = nn.functional.linear(values, self.weight, self.bias)
        if self.logit_norm is None:
            return logits
        lengths = torch.linalg.vector_norm(logits, dim=1, keepdim=True)
        return logits / (self.logit_norm * (lengths + 1e-7))


def _learns_from_moments(classifier: "AlignedClassifier") -> bool:
    if classifier.estimator is not None:
        raise AttributeError(
            f"estimator={classifier.estimator!r} learns from rows; call fit, or set estimator=None."
        )
    return True


class AlignedClassifier(ClassScoresMixin, MomentsMixin, ClassifierMixin, BaseEstimator):
    """Linear head that is aligned after every session, on draws from the moments of all classes.

    `partial_fit` lets `estimator` learn the session, updates the moments of the classes, and
    trains a linear head on draws of all classes, from the weights of the estimator on [1]_.

    Parameters
    ----------
    estimator : classifier or None, default=None
        Linear, with `coef_` and `intercept_`, and with `partial_fit` where there are sessions; the
        head starts from its weights. None starts from the nearest class mean.
    replay : GaussianReplay or None, default=None
        How rows are drawn; None is ``GaussianReplay()``.
    n_per_class : int, default=256
        Draws of each class; 0 leaves the head as it starts.
    epochs : int, default=5
        Passes over the draws; 0 leaves the head as it starts.
    lr : float, default=0.01
        Step size of gradient descent with momentum 0.9, which falls as a half cosine.
    batch_size : int, default=128
        Draws of a step.
    logit_norm : float or None, default=0.1
        Temperature by which outputs that are scaled to unit length are divided in the loss, so
        that it cannot fall by longer weights alone; None takes outputs as they are.
    random_state : int, RandomState instance or None, default=0
        Of the draws and their order.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    coef_ : ndarray of shape (n_classes, n_features)
        Weights; NaN for a class without samples.
    intercept_ : ndarray of shape (n_classes,)
        Offsets; -inf for a class without samples.
    estimator_ : classifier or None
        What the estimator learned, session by session.
    moments_ : ClassMoments
        Of all classes.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.

    See Also
    --------
    skpool.discriminant.LinearDiscriminantClassifier : What a head trained on infinitely many draws
        with one covariance tends to, in closed form.
    GaussianReplay : The draws.

    Notes
    -----
    Closed-form heads need no replay; this is for heads and losses that have no closed form. The
    head is trained when a prediction needs it after a change, on draws that are scaled to unit
    variance. Without an estimator all follows from the moments, so parts in any order equal one
    `fit`, and `forget` and `merge` are exact; with one they are as good as its own, which it must
    have.

    The paper normalises the outputs of each session by themselves, so that predictions would
    depend on how classes came; here all outputs are normalised together. It also lets the means
    of old classes shrink while its network drifts, which frozen features do not.

    Cost: the draws (see `GaussianReplay`), n_per_class * n_classes rows of memory, and
    epochs * n_per_class * n_classes^2 * n_features operations.

    References
    ----------
    .. [1] G. Zhang, L. Wang, G. Kang, L. Chen, Y. Wei, SLCA: Slow Learner with Classifier
       Alignment for Continual Learning on a Pre-trained Model, 2023.
       <https://arxiv.org/abs/2303.05118>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import AlignedClassifier
    >>> rng = np.random.default_rng(0)
    >>> clf = AlignedClassifier().partial_fit(rng.normal(size=(50, 2)), ["old"] * 50)
    >>> clf = clf.partial_fit(rng.normal(size=(50, 2)) + 5, ["new"] * 50)
    >>> clf.predict([[0.0, 0.5], [5.0, 4.0]])
    array(['old', 'new'], dtype='<U3')
    """

    _parameter_constraints: ClassVar[dict] = {
        "estimator": [HasMethods(["fit", "predict"]), None],
        "replay": [GaussianReplay, None],
        "n_per_class": [Interval(Integral, 0, None, closed="left")],
        "epochs": [Interval(Integral, 0, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "logit_norm": [Interval(Real, 0, None, closed="neither"), None],
        "random_state": ["random_state"],
    }

    _solved_parameters = frozenset(
        {"n_per_class", "epochs", "lr", "batch_size", "logit_norm", "random_state"}
    )

    def __init__(
        self,
        estimator: BaseEstimator | None = None,
        *,
        replay: GaussianReplay | None = None,
        n_per_class: int = 256,
        epochs: int = 5,
        lr: float = 0.01,
        batch_size: int = 128,
        logit_norm: float | None = 0.1,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.estimator = estimator
        self.replay = replay
        self.n_per_class = n_per_class
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.logit_norm = logit_norm
        self.random_state = random_state

    # Learning.

    @available_if(_learns_from_moments)
    def fit_moments(self, moments: ClassMoments) -> Self:
        """Learn from moments that were computed elsewhere, forgetting what was learned before.

        Parameters
        ----------
        moments : ClassMoments
            Of the kind of ``GaussianReplay.new_moments``; not changed.

        Returns
        -------
        self : AlignedClassifier
            The fitted classifier. If the call fails, it stays as it was.
        """
        with unchanged_on_error(self):
            self.estimator_ = None
            return super().fit_moments(moments)

    def _replay(self) -> GaussianReplay:
        return GaussianReplay() if self.replay is None else self.replay

    def _new_moments(self) -> ClassMoments:
        return self._replay().new_moments()

    def _check_learns_in_parts(self) -> bool:
        if self.estimator is not None and not hasattr(self.estimator, "partial_fit"):
            raise AttributeError(
                f"estimator={self.estimator!r} has no partial_fit; give one that has, or None."
            )
        return True

    def _can_map(self) -> bool:
        # Variances alone say nothing of what a matrix mixes.
        return self.estimator is None and "diag" not in self._new_moments().scatter

    def _told(self, method: str, *args: Any, **options: Any) -> None:
        """Let a copy of the estimator learn or forget, and keep it."""
        if self.estimator is None:
            return
        if not hasattr(self.estimator_, method):
            raise ValueError(
                f"estimator={self.estimator!r} has no {method}; give one that has, or None."
            )
        told = deepcopy(self.estimator_)
        getattr(told, method)(*args, **options)
        self.estimator_ = told

    def _reset(self) -> None:
        super()._reset()
        self.estimator_ = None if self.estimator is None else clone(self.estimator)

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        super()._update(X, y, sample_weight)
        if sample_weight is not None:
            self._told(self._verb(), X, y, sample_weight=sample_weight)
        elif self._verb() == "fit":
            self._told("fit", X, y)
        elif self.estimator is not None:
            rows = widened(as_tensor(X)).cpu().numpy()
            self.estimator_ = teach(self.estimator_, rows, y, self._announced)

    def _verb(self) -> str:
        return "partial_fit" if hasattr(self.estimator, "partial_fit") else "fit"

    def _forget(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        super()._forget(X, y, sample_weight)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        self._told("forget", X, y, **weights)

    def _forget_class(self, label: object) -> None:
        super()._forget_class(label)
        self._told("forget_class", label)

    def _merge(self, other: Self) -> None:
        super()._merge(other)
        self._told("merge", other.estimator_)

    def _map_to(self, mapped: Self, A: np.ndarray, b: np.ndarray) -> None:
        super()._map_to(mapped, A, b)
        mapped.estimator_ = None

    # Alignment.

    def _start(self) -> _Linear:
        """The weights that training starts from."""
        means = self.moments_.means_
        center = self.moments_.counts_ @ means / self.moments_.counts_.sum()
        # Some of scikit-learn's wait for a second class.
        if not hasattr(self.estimator_, "classes_"):
            shifted = means - center
            squares = (shifted**2).sum(axis=1)
            # Scores of nearest class means, of the order of 1.
            unit = squares.mean() or 1.0
            return _Linear(center, shifted / unit, -squares / (2 * unit))
        learned = self.estimator_
        if not hasattr(learned, "coef_"):
            raise ValueError(
                f"estimator={self.estimator!r} has no coef_ to start from; give a linear "
                "classifier, or None."
            )
        coef, intercept = np.atleast_2d(learned.coef_), np.atleast_1d(learned.intercept_)
        if len(coef) == 1 and len(learned.classes_) == 2:
            coef, intercept = (np.concatenate([-part, part]) / 2 for part in (coef, intercept))
        held = np.searchsorted(learned.classes_, self.moments_.classes_)
        coef = coef[held].astype(np.float64)
        return _Linear(center, coef, intercept[held] + coef @ center)

    def _solve(self) -> _Linear:
        start = self._start()
        if self.n_per_class == 0 or self.epochs == 0:
            return start
        rng = check_random_state(self.random_state)
        X, y = self._replay().sample(self.moments_, self.n_per_class, random_state=rng)
        X -= start.center
        scale = X.std(axis=0)
        scale[scale == 0] = 1.0
        module = _NormedLogits(start._replace(coef=start.coef * scale), self.logit_norm)
        trainer = HeadTrainer(
            optimizer="sgd",
            lr=self.lr,
            momentum=_MOMENTUM,
            epochs=self.epochs,
            batch_size=self.batch_size,
            device="cpu",
        )
        trainer.train(
            HeadObjective(module, get_loss("cross_entropy")),
            VectorRows(X / scale),
            np.searchsorted(self.moments_.classes_, y),
            seed=rng.randint(np.iinfo(np.int32).max),
            n_outputs=len(start.coef),
        )
        weight, bias = (part.detach().numpy() for part in (module.weight, module.bias))
        return _Linear(start.center, weight / scale, bias)

    # What was learned.

    @property
    def coef_(self) -> np.ndarray:
        """Weights of the classes."""
        coef = self._known("coef_").coef
        return spread_columns(coef.T, self.moments_.classes_, self.classes_, fill=np.nan).T

    @property
    def intercept_(self) -> np.ndarray:
        """Offsets of the classes."""
        head = self._known("intercept_")
        offset = (head.intercept - head.coef @ head.center)[None]
        return spread_columns(offset, self.moments_.classes_, self.classes_, fill=-np.inf)[0]

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the score of every class.

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
        head = self._solved
        scores = apply_affine(rows, shift=head.center, matrix=head.coef.T, offset=head.intercept)
        return spread_columns(
            scores.cpu().numpy(), self.moments_.classes_, self.classes_, fill=-np.inf
        )
