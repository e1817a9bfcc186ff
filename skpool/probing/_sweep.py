# SPDX-License-Identifier: BSD-3-Clause
"""LinearProbeSweepClassifier: linear probes of many learning rates, trained as one wide matrix.

The protocol in which some backbones report their linear evaluation. It reads rows by minibatches,
like every head that `skpool.training` trains; the convex problem itself is solved by
`LinearProbeClassifier`.
"""

import warnings
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn
from torch.nn import functional as F

from skpool.base import ClassScoresMixin
from skpool.probing._linear import as_in_scikit_learn, counted_samples, linear_scores
from skpool.training import SETTINGS_CONSTRAINTS, HeadTrainer, VectorRows, can_split
from skpool.utils import ArrayLike, as_tensor, unchanged_on_error, validate_vectors

__all__ = ["LinearProbeSweepClassifier"]

# The thirteen of DINOv2.
_PUBLISHED = tuple(base * 10.0**power for power in range(-5, -1) for base in (1, 2, 5)) + (0.1,)
# Standard deviation of the first weights, as published.
_FIRST_WEIGHTS = 0.01


class _WideHead(nn.Module):
    """Linear heads side by side, and the sum of their losses, each times its part of the rate."""

    def __init__(self, first: torch.Tensor, shares: torch.Tensor):
        super().__init__()
        n_classes = len(first)
        self.shape = len(shares), n_classes
        self.weight = nn.Parameter(first.repeat(len(shares), 1))
        self.bias = nn.Parameter(torch.zeros(len(shares) * n_classes))
        self.register_buffer("shares", shares)

    def forward(self, values, mask, target, weight=None) -> torch.Tensor:
        """The weighted mean over the rows of what the heads lose in sum."""
        scores = F.linear(values, self.weight, self.bias).unflatten(1, self.shape)
        targets = target[:, None].expand(-1, self.shape[0])
        losses = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none")
        losses = losses.view(targets.shape) @ self.shares
        return losses.mean() if weight is None else (weight * losses).sum() / weight.sum()


class LinearProbeSweepClassifier(ClassScoresMixin, ClassifierMixin, BaseEstimator):
    r"""Linear probes of many learning rates, trained together, of which the best is kept.

    Every probe minimises cross-entropy by SGD with momentum from the same first weights, on the
    same minibatches, with a rate that falls to 0 as a cosine; the one that is best on rows kept
    back predicts. It is the linear evaluation of DINOv2 [1]_.

    Parameters
    ----------
    lrs : array-like of shape (n_lrs,), default=None
        Learning rates; None for the thirteen published ones, 1, 2 and 5 times 1e-5 to 1e-2, and
        0.1. Published rates are multiplied by the number of rows per step over 256.
    momentum : float, default=0.9
        Of the gradients.
    epochs : int, default=10
        Passes over the rows.
    batch_size : int, default=128
        Rows per step.
    validation_fraction : float, default=0.1
        Part of the samples of every class that is kept back to choose the rate.
    class_weight : {"balanced"}, dict or None, default=None
        Weights of the classes in the loss.
    device : str, default="auto"
        Where to train; "auto" is a CUDA device where there is one.
    random_state : int, RandomState or None, default=0
        First weights, order of the samples and validation part.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    lrs_ : ndarray of shape (n_lrs,)
        Learning rates, ascending.
    scores_ : ndarray of shape (n_lrs,)
        Accuracy of each on the rows that were kept back.
    lr_ : float
        The best of them; of equally good ones the smallest.
    coefs_ : ndarray of shape (n_lrs, n_classes, n_features), or (n_lrs, 1, n_features)
        Weights of all probes; one row, that of the second class, for two classes.
    intercepts_ : ndarray of shape (n_lrs, n_classes) or (n_lrs, 1)
        Offsets of all probes.
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
        Weights of the best rate.
    intercept_ : ndarray of shape (n_classes,) or (1,)
        Its offsets.
    n_iter_ : int
        Passes over the rows.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X was a table with text column names.

    See Also
    --------
    LinearProbeClassifier : The minimum that these steps approach, with a penalty to choose.

    Notes
    -----
    A step of SGD with momentum is linear in the gradient. So one optimizer with one rate trains
    them all, if the loss of each is multiplied by its part of the largest rate, and each probe is
    what it would be if it were trained alone.

    Where the best rate is the largest, larger ones are worth a try: features of unlike scale learn
    slowly, and ten passes over few samples are few steps.

    The published sweep also goes over the last layer or the last four, with and without the mean
    of the patch tokens: give each as another X, and compare `scores_`.

    Cost: O(n_samples n_features n_classes n_lrs) per epoch, in one product per step.

    References
    ----------
    .. [1] Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024.
       <https://arxiv.org/abs/2304.07193>

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skpool.probing import LinearProbeSweepClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LinearProbeSweepClassifier(epochs=50, batch_size=32).fit(X, y)
    >>> clf.scores_.shape
    (13,)
    >>> clf.score(X, y) > 0.9
    True
    """

    _parameter_constraints: dict = {
        "lrs": ["array-like", None],
        **{
            name: SETTINGS_CONSTRAINTS[name]
            for name in ("momentum", "epochs", "batch_size", "device")
        },
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        lrs: ArrayLike | None = None,
        *,
        momentum: float = 0.9,
        epochs: int = 10,
        batch_size: int = 128,
        validation_fraction: float = 0.1,
        class_weight: dict | str | None = None,
        device: str = "auto",
        random_state: object = 0,
    ):
        self.lrs = lrs
        self.momentum = momentum
        self.epochs = epochs
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.class_weight = class_weight
        self.device = device
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object, sample_weight: object = None):
        """Train all probes, and choose the best.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors, read by minibatches.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0; a sample of weight 0 counts as absent.

        Returns
        -------
        self : LinearProbeSweepClassifier
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            X = validate_vectors(self, X, squares=True)
            samples = counted_samples(type(self).__name__, X, y, sample_weight, self.class_weight)
            self.classes_, self.lrs_ = samples.classes, self._rates()
            seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
            training, validation = self._parts(samples.codes, seed)
            self._train(samples, training, seed)
            self._choose(samples, validation)
        return self

    def _rates(self) -> np.ndarray:
        rates = np.asarray(_PUBLISHED if self.lrs is None else self.lrs, dtype=np.float64)
        if rates.ndim != 1 or not len(rates) or not (np.isfinite(rates) & (rates > 0)).all():
            raise ValueError(f"lrs={self.lrs!r} is not valid; give a row of numbers above 0.")
        return np.unique(rates)

    def _parts(self, codes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and to choose by."""
        rows = np.arange(len(codes))
        if len(self.classes_) == 1:
            return rows, rows
        if not can_split(codes, self.validation_fraction):
            warnings.warn(
                f"validation_fraction={self.validation_fraction} leaves a class without a row to "
                "train on or to choose by; the rate is chosen on the training rows.",
                UserWarning,
                stacklevel=4,
            )
            return rows, rows
        training, validation = train_test_split(
            rows,
            test_size=round(self.validation_fraction * len(rows)),
            stratify=codes,
            random_state=seed,
        )
        return np.sort(training), np.sort(validation)

    def _train(self, samples, training: np.ndarray, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = len(self.classes_), self.n_features_in_
        first = _FIRST_WEIGHTS * torch.randn(shape, generator=generator, dtype=torch.float64)
        head = _WideHead(first, torch.from_numpy(self.lrs_ / self.lrs_.max()))
        trainer = HeadTrainer(
            optimizer="sgd",
            lr=float(self.lrs_.max()),
            momentum=self.momentum,
            epochs=self.epochs,
            batch_size=self.batch_size,
            device=self.device,
        )
        weighted = (samples.weights != samples.weights[0]).any()
        trained = trainer.train(
            head,
            VectorRows(samples.X).among(training),
            samples.codes[training],
            sample_weight=samples.weights[training] if weighted else None,
            seed=seed,
            n_outputs=len(self.classes_),
        )
        weight, bias = head.weight.detach().double(), head.bias.detach().double()
        self.coefs_, self.intercepts_ = as_in_scikit_learn(
            weight.unflatten(0, head.shape).numpy(), bias.unflatten(0, head.shape).numpy()
        )
        self.n_iter_ = trained.n_iter

    def _choose(self, samples, validation: np.ndarray) -> None:
        """Keep the probe that is best on the rows that were kept back."""
        X = as_tensor(samples.X)
        rows = X[torch.from_numpy(validation).to(X.device)]
        weights, codes = samples.sample_weight[validation], samples.codes[validation]
        self.scores_ = np.array(
            [
                np.average(self._outputs(rows, *probe).argmax(axis=1) == codes, weights=weights)
                for probe in zip(self.coefs_, self.intercepts_, strict=True)
            ]
        )
        best = int(self.scores_.argmax())
        self.lr_ = float(self.lrs_[best])
        self.coef_, self.intercept_ = self.coefs_[best], self.intercepts_[best]

    def _outputs(self, X: ArrayLike, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
        scores = linear_scores(X, coef, intercept, np.zeros(self.n_features_in_))
        return scores[:, : len(self.classes_)]

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the outputs of the best probe.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; also two for two classes.
        """
        check_is_fitted(self)
        X = validate_vectors(self, X, reset=False, squares=True)
        return self._outputs(X, self.coef_, self.intercept_)
