# SPDX-License-Identifier: BSD-3-Clause
"""FewShotIncrementalClassifier: a projection from the base session, and prototypes ever after.

The first session has samples enough to train by; later ones bring a handful per class, of which
only means are taken, in the space that the first left room in.
"""

from copy import deepcopy
from numbers import Integral, Real
from typing import ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.continual._base_projector import (
    Projector,
    TargetObjective,
    assigned,
    make_projector,
    mixed_classes,
    project,
)
from skpool.prototypes import NearestClassMeanClassifier, simplex_etf
from skpool.training import SETTINGS_CONSTRAINTS, HeadTrainer, VectorRows
from skpool.utils import (
    ArrayLike,
    as_tensor,
    check_squares,
    unit_rows,
    validate_vectors,
    widened,
)

__all__ = ["FewShotIncrementalClassifier"]

_TRAINER = ("lr", "weight_decay", "epochs", "warmup_epochs", "batch_size", "device")


def _class_means(rows: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    sums = np.zeros((int(codes.max()) + 1, rows.shape[1]))
    np.add.at(sums, codes, weights[:, None] * rows)
    return sums / np.bincount(codes, weights)[:, None]


class FewShotIncrementalClassifier(
    ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator
):
    r"""Class means in a space that was trained on the classes of the first call.

    The first call trains a projection :math:`g`. With the unit vector :math:`z = g(x) / |g(x)|`
    of a sample and fixed unit targets :math:`t_k`, the loss is the cross entropy of the softmax of
    :math:`z^\top t_k / \tau` over all targets, plus a multiple of the supervised contrastive loss
    [1]_. There are more targets than classes, so that room is kept for others. Later calls leave
    the projection as it is: a class is the mean of its projected samples, and a sample has the
    class of the highest cosine.

    Parameters
    ----------
    projector : {"linear", "mlp"} or None, default="linear"
        The projection; "mlp" has a hidden layer as wide as the rows. None takes rows as they are,
        and with no calibration this is the nearest class mean by cosine.
    n_components : int or None, default=None
        Width of the projection; None for that of the rows, or more if the targets need it.
    targets : {"etf", "means"}, default="etf"
        The vertices of a simplex, of which the base classes get those nearest to their means; or
        the directions of these means themselves, before training.
    n_reserved : int or None, default=None
        Vertices of "etf", for base classes, pseudo-classes and room; None for as many as the width
        allows, which is one more.
    supcon_weight : float, default=1.0
        Weight of the contrastive loss.
    temperature : float, default=0.1
        :math:`\tau`, of both losses.
    n_pseudo_classes : int, default=0
        Pairs of base classes whose mixtures are further classes in the training.
    mixup_alpha : float, default=0.5
        Of the Beta distribution of their shares.
    calibration : classifier or None, default=None
        What learns the projected samples, such as
        :class:`~skpool.prototypes.CalibratedPrototypeClassifier`; None for
        ``NearestClassMeanClassifier()``.
    lr : float, default=1e-3
        Step size of AdamW, which falls as a half cosine.
    weight_decay : float, default=0.0
        Of the matrices.
    epochs : int, default=30
        Passes over the samples of the first call; 0 leaves the projection as it starts.
    warmup_epochs : int, default=0
        Passes in which the step size rises linearly.
    batch_size : int, default=256
        Samples of a step.
    device : str, default="auto"
        Where to train; "auto" is a CUDA device where there is one.
    random_state : int, RandomState instance or None, default=0
        Of the targets, the first weights and the order of the samples.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    base_classes_ : ndarray of shape (n_base,)
        Those of the first call.
    layers_ : list of tuples of ndarrays, or None
        Shift, matrix and offset of the layers of the projection.
    targets_ : ndarray of shape (n_targets, n_components) or None
        Targets, of the base classes first.
    classifier_ : classifier
        What learned the projected samples.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if the first X had text column names.

    See Also
    --------
    skpool.prototypes.SimplexClassifier : A map onto such targets in closed form.
    skpool.prototypes.CalibratedPrototypeClassifier : Means drawn towards base classes.

    Notes
    -----
    The prototypes of base classes stay as they are, bit by bit, when others come. `forget` takes
    samples out of the prototypes, and not out of the projection. Training helps the base classes,
    and can cost more on new ones than it gains. Report the accuracies on base and new classes, and
    not their average alone.

    Cost: the training of the first call, of a step O(batch_size * n_features * n_components +
    batch_size^2 * n_components); of later ones a projection and means.

    References
    ----------
    .. [1] S. Roy, C. Simon, D. Moghadam, M. Harandi, A Bag of Tricks for Few-Shot
       Class-Incremental Learning, 2024. <https://arxiv.org/abs/2403.14392>
    .. [2] Q.-W. Wang, D.-W. Zhou, Y.-K. Zhang, D.-C. Zhan, H.-J. Ye, Few-Shot Class-Incremental
       Learning via Training-Free Prototype Calibration, 2023. <https://arxiv.org/abs/2312.05229>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import FewShotIncrementalClassifier
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(60, 4)) + 6 * np.eye(4)[np.arange(60) % 2], np.arange(60) % 2
    >>> clf = FewShotIncrementalClassifier(epochs=5).fit(X, y)
    >>> clf.partial_fit([[0.0, 0.0, 6.0, 1.0]], [2]).predict([[1.0, 0.0, 5.0, 0.0], X[0]])
    array([2, 0])
    """

    _squares_rows = True

    _parameter_constraints: ClassVar[dict] = {
        "projector": [StrOptions({"linear", "mlp"}), None],
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "targets": [StrOptions({"etf", "means"})],
        "n_reserved": [Interval(Integral, 2, None, closed="left"), None],
        "supcon_weight": [Interval(Real, 0, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "n_pseudo_classes": [Interval(Integral, 0, None, closed="left")],
        "mixup_alpha": [Interval(Real, 0, None, closed="neither")],
        "calibration": [HasMethods(["partial_fit", "class_scores"]), None],
        **{name: SETTINGS_CONSTRAINTS[name] for name in _TRAINER},
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        projector: str | None = "linear",
        *,
        n_components: int | None = None,
        targets: str = "etf",
        n_reserved: int | None = None,
        supcon_weight: float = 1.0,
        temperature: float = 0.1,
        n_pseudo_classes: int = 0,
        mixup_alpha: float = 0.5,
        calibration: BaseEstimator | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        epochs: int = 30,
        warmup_epochs: int = 0,
        batch_size: int = 256,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.projector = projector
        self.n_components = n_components
        self.targets = targets
        self.n_reserved = n_reserved
        self.supcon_weight = supcon_weight
        self.temperature = temperature
        self.n_pseudo_classes = n_pseudo_classes
        self.mixup_alpha = mixup_alpha
        self.calibration = calibration
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    # Learning.

    def _can_map(self) -> bool:
        return False

    def _reset(self) -> None:
        calibration = self.calibration
        chosen = NearestClassMeanClassifier() if calibration is None else calibration
        self.classifier_ = clone(chosen)
        self.base_classes_ = self.layers_ = self.targets_ = None

    def _seen_classes(self) -> np.ndarray:
        return self.classifier_._seen_classes()

    def _told(self, method: str, *args: object) -> None:
        """Let a copy of the classifier learn or forget, and keep it."""
        told = deepcopy(self.classifier_)
        getattr(told, method)(*args)
        self.classifier_ = told

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        if self.base_classes_ is None:
            self.base_classes_ = np.unique(y)
            if self.projector is not None:
                check_squares(X)
                self._train(widened(as_tensor(X)).cpu().numpy(), y, sample_weight)
        self._told("partial_fit", self._projected(X), y, None, sample_weight)

    def _forget(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        self._told("forget", self._projected(X), y, sample_weight)

    def _forget_class(self, label: object) -> None:
        self._told("forget_class", label)

    def _merge(self, other: Self) -> None:
        alike = (self.layers_ is None) == (other.layers_ is None)
        if alike and self.layers_ is not None:
            pairs = zip(self.layers_, other.layers_, strict=True)
            alike = all(
                np.array_equal(a, b)
                for ours, theirs in pairs
                for a, b in zip(ours, theirs, strict=True)
            )
        if not alike:
            raise ValueError(
                "other learned in another projection, which its own first call trained; merge "
                "copies of one classifier that went on from the same first call."
            )
        self._told("merge", other.classifier_)

    def _projected(self, X: ArrayLike) -> ArrayLike:
        return X if self.layers_ is None else project(as_tensor(X), self.layers_)

    # The first call.

    def _train(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        rng = check_random_state(self.random_state)
        codes = np.searchsorted(self.base_classes_, y)
        weights = np.ones(len(X)) if sample_weight is None else sample_weight
        if self.n_pseudo_classes:
            mixed = mixed_classes(X, codes, self.n_pseudo_classes, alpha=self.mixup_alpha, rng=rng)
            X = np.concatenate([X, mixed.rows])
            codes = np.concatenate([codes, mixed.numbers + len(self.base_classes_)])
            mean_weight = np.full(len(mixed.rows), weights.mean())
            weights = np.concatenate([weights, mean_weight])
        center = np.average(X, axis=0, weights=weights).astype(np.float64)
        spread = np.average(np.square(X - center).mean(axis=1), weights=weights)
        n_classes = int(codes.max()) + 1
        projector = make_projector(
            self.projector,
            center,
            float(np.sqrt(spread)) or 1.0,
            self._width(n_classes),
            torch.Generator().manual_seed(int(rng.randint(np.iinfo(np.int32).max))),
        )
        start = project(torch.from_numpy(X), projector.as_arrays()).numpy()
        self.targets_ = self._targets(_class_means(start, codes, weights), rng)
        self._minimise(projector, VectorRows(X), codes, weights, rng)
        self.layers_ = projector.as_arrays()

    def _width(self, n_classes: int) -> int:
        least = 1
        if self.targets == "etf":
            n_targets = n_classes if self.n_reserved is None else self.n_reserved
            if n_targets < n_classes:
                raise ValueError(
                    f"n_reserved={self.n_reserved} is less than the {n_classes} classes of the "
                    "first call, pseudo-classes included; give more, or None."
                )
            least = max(n_targets, 2) - 1
        if self.n_components is not None and self.n_components < least:
            raise ValueError(
                f"n_components={self.n_components} is too narrow for {least + 1} targets, which "
                f"need {least}; give more, or targets='means'."
            )
        return max(self.n_features_in_, least) if self.n_components is None else self.n_components

    def _targets(self, means: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
        means = means.astype(np.float64)
        if self.targets == "means":
            return unit_rows(torch.from_numpy(means)).numpy()
        width = means.shape[1]
        n_targets = width + 1 if self.n_reserved is None else self.n_reserved
        return assigned(simplex_etf(n_targets, width, random_state=rng), means)

    def _minimise(
        self,
        projector: Projector,
        rows: VectorRows,
        codes: np.ndarray,
        weights: np.ndarray,
        rng: np.random.RandomState,
    ) -> None:
        objective = TargetObjective(projector, self.targets_, self.supcon_weight, self.temperature)
        HeadTrainer(**{name: getattr(self, name) for name in _TRAINER}).train(
            objective,
            rows,
            codes,
            sample_weight=weights,
            seed=rng.randint(np.iinfo(np.int32).max),
            n_outputs=len(self.targets_),
        )

    # Predictions.

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
        return self._of_classifier("class_scores", X, -np.inf)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the probabilities of the classifier of the projected rows.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Rows sum to 1; columns in the order of `classes_`.
        """
        return self._of_classifier("predict_proba", X, 0.0)

    def _of_classifier(self, method: str, X: ArrayLike, fill: float) -> np.ndarray:
        check_is_fitted(self)
        rows = self._projected(validate_vectors(self, X, reset=False, squares=True))
        columns = getattr(self.classifier_, method)(rows)
        return spread_columns(columns, self.classifier_.classes_, self.classes_, fill=fill)
