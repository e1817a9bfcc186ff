# SPDX-License-Identifier: BSD-3-Clause
"""FirstSessionAdapter: features adapted to the first session, and fixed from then on.

The first session of a class-incremental task is the only one whose classes can be compared with
each other before anything has to be remembered. What it teaches about the domain is put into a
small map of the features, which stands before a classifier by class means.
"""

from collections.abc import Callable
from numbers import Integral, Real
from typing import ClassVar, Self

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
    clone,
)
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skpool.statistics import ClassMoments, covariance_from_moments
from skpool.training import (
    SETTINGS_CONSTRAINTS,
    HeadObjective,
    HeadTrainer,
    VectorRows,
    child_seed,
    get_loss,
)
from skpool.utils import (
    ArrayLike,
    apply_affine,
    as_tensor,
    check_labels,
    full_float32,
    numpy_or_tensor,
    row_batches,
    unchanged_on_error,
    unit_rows,
    validate_vectors,
)

__all__ = ["FirstSessionAdapter"]

# Numbers from which the seeds of first weights and of steps are drawn.
_OF_MODULE, _OF_STEPS = 0, 1


class _Bottleneck(nn.Module):
    """W2 relu(W1 x), zero at the start."""

    def __init__(self, d: int, hidden_dim: int, generator: torch.Generator):
        super().__init__()
        self.down = nn.Parameter(torch.empty(hidden_dim, d))
        self.up = nn.Parameter(torch.zeros(d, hidden_dim))
        nn.init.kaiming_uniform_(self.down, a=5**0.5, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.down.T) @ self.up.T


class _ScaleShift(nn.Module):
    """(g - 1) * x + b, zero at the start."""

    def __init__(self, d: int, hidden_dim: int, generator: torch.Generator):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(d))
        self.shift = nn.Parameter(torch.zeros(d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x + self.shift


class _Linear(nn.Module):
    """(A - I) x, zero at the start."""

    def __init__(self, d: int, hidden_dim: int, generator: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d, d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


# What is added to the rows, by `kind`.
_CHANGES: dict[str, Callable[..., nn.Module]] = {
    "linear": _Linear,
    "residual_mlp": _Bottleneck,
    "scale_shift": _ScaleShift,
}


class _Adapted(nn.Module):
    """A throw-away softmax head on adapted rows, which are measured in units of `unit`."""

    def __init__(self, change: nn.Module, unit: float, d: int, n_classes: int):
        super().__init__()
        self.change, self.unit = change, unit
        self.coef = nn.Parameter(torch.zeros(n_classes, d))
        self.intercept = nn.Parameter(torch.zeros(n_classes))

    def forward(self, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        x = values / self.unit
        return (x + self.change(x)) @ self.coef.T + self.intercept


def _within_class_map(X: ArrayLike, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and the symmetric matrix that makes classes round, of the mean variance they have."""
    moments = ClassMoments("shared", product_dtype="float64").update(X, y)
    if not moments.scatter_.any():
        raise ValueError(
            f"kind='lda' needs rows that differ within a class, and those of the first session, "
            f"{len(y)} sample(s) of {len(moments.classes_)} class(es), do not; give more rows."
        )
    covariance = covariance_from_moments(moments, "shared", shrinkage="oas").matrix
    values, vectors = np.linalg.eigh(covariance)
    # Directions in which no class varies say nothing of how far to trust them.
    real = values > len(values) * np.finfo(np.float64).eps * values[-1]
    roots = np.sqrt(values.mean() / np.where(real, values, np.inf))
    mean = moments.counts_ @ moments.means_ / moments.counts_.sum()
    return mean, (vectors * roots) @ vectors.T


class FirstSessionAdapter(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Adapt features to the first session, and put them beside the frozen ones.

    A row x becomes :math:`[x ; a(x)]`, where the map :math:`a` is learned from the samples of the
    first session and never changes again:

    .. math:: a(x) = x + W_2 \max(W_1 x, 0), \qquad a(x) = g \odot x + b, \qquad a(x) = A x ,

    trained by cross entropy with a softmax head that is thrown away; all start as the identity.
    Class means of such rows, compared by the cosine, are the form for frozen features of APER [1]_,
    where adapters, prompts or all weights of a copy of the backbone are tuned instead. This form
    is ours; a tuned backbone enters as a second extractor in a `FeatureUnion`.

    Parameters
    ----------
    kind : {"residual_mlp", "scale_shift", "linear", "lda"} or transformer, default="residual_mlp"
        The map: one of the three above; "lda", which makes the classes round,
        :math:`a(x) = \sigma \Sigma^{-1/2} (x - \mu)` with their pooled covariance (shrunk by OAS)
        and its mean variance :math:`\sigma^2`; or a transformer that is cloned and fitted with
        the labels.
    hidden_dim : int, default=64
        Rows of :math:`W_1`.
    concat : bool, default=True
        Whether the frozen features stand beside the adapted ones.
    block_norm : bool, default=False
        Whether both are scaled to unit length, so that the cosine of two rows is the mean of
        their cosines in the two blocks. Otherwise the longer block counts more.
    lr : float, default=0.01
        Step size, of stochastic gradient descent.
    momentum : float, default=0.9
        Of the steps.
    weight_decay : float, default=5e-4
        Of the matrices, towards the identity.
    batch_size : int, default=48
        Rows per step.
    epochs : int, default=20
        Passes over the session; 0 leaves the identity.
    schedule : {"cosine", "constant", "step"}, default="cosine"
        How the step size falls.
    validation_fraction : float, default=0.0
        Part of the rows of every class that is kept back; the weights after the epoch with their
        lowest loss are taken. For small first sessions, to which maps otherwise fit too well.
    device : str, default="auto"
        Where to train, see `skpool.training.HeadTrainer`.
    random_state : int, RandomState instance or None, default=0
        Of the first weights and the order of the rows.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels of the first session.
    weights_ : dict of str to ndarray
        Of the map: what is added to x ("down" and "up", "scale" and "shift", or "weight"), or the
        "mean" and "matrix" of "lda"; empty for a transformer.
    history_ : ndarray of shape (n_epochs, 2)
        Loss on the training samples and on those kept back (NaN without); empty where nothing is
        trained.
    transformer_ : transformer or None
        The fitted clone, if `kind` is one.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X had text column names.

    See Also
    --------
    skpool.prototypes.NearestClassMeanClassifier : What stands behind it; alone it is SimpleCIL.
    SubspaceEnsemblePrototypeClassifier : One adapter per session.

    Notes
    -----
    `partial_fit` learns once and then only checks what it is given, so that sessions leave the
    map bit-identical; `fit` starts anew. Rows are divided by the root mean square of their
    entries while the map is trained: rows that are c times as long give c times the output.

    What there is to gain is a question of the features, and of how many classes come first: with
    10 of 100 classes of CIFAR-100 first, on features of DeiT-tiny, the default map moves the
    accuracy of class means by a tenth of a point (``benchmarks/bench_sessions.py``).

    Cost: training takes O(n d (hidden_dim + n_classes)) per epoch, "lda" O(n d^2 + d^3);
    `transform` O(n d hidden_dim). Arrays and tensors come back as they came, half precision as
    float32.

    References
    ----------
    .. [1] D.-W. Zhou, Z.-W. Cai, H.-J. Ye, D.-C. Zhan, Z. Liu, Revisiting Class-Incremental
       Learning with Pre-Trained Models: Generalizability and Adaptivity are All You Need, 2023.
       <https://arxiv.org/abs/2303.07338>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.continual import FirstSessionAdapter
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(60, 5)), np.arange(60) % 3
    >>> adapter = FirstSessionAdapter(hidden_dim=8, epochs=2).fit(X, y)
    >>> adapter.transform(X[:4]).shape
    (4, 10)
    >>> bool((adapter.transform(X)[:, :5] == X).all())
    True
    """

    # `IncrementalPipeline` asks for it: this step does not move, although it has `partial_fit`.
    _fits_once = True

    _parameter_constraints: ClassVar[dict] = {
        "kind": [StrOptions({*_CHANGES, "lda"}), HasMethods(["fit", "transform"])],
        "hidden_dim": [Interval(Integral, 1, None, closed="left")],
        "concat": ["boolean"],
        "block_norm": ["boolean"],
        **{
            name: SETTINGS_CONSTRAINTS[name]
            for name in ("lr", "momentum", "weight_decay", "batch_size", "epochs", "schedule")
        },
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        kind: str | BaseEstimator = "residual_mlp",
        *,
        hidden_dim: int = 64,
        concat: bool = True,
        block_norm: bool = False,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        batch_size: int = 48,
        epochs: int = 20,
        schedule: str = "cosine",
        validation_fraction: float = 0.0,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.kind = kind
        self.hidden_dim = hidden_dim
        self.concat = concat
        self.block_norm = block_norm
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.schedule = schedule
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object) -> Self:
        """Learn the map from these samples alone.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors of the first session.
        y : array-like of shape (n_samples,)
            Their labels: integers, booleans or text.

        Returns
        -------
        self : estimator
            If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            X = validate_vectors(self, X)
            y = check_labels(y, n_samples=len(X), who=type(self).__name__)
            self.classes_, codes = np.unique(y, return_inverse=True)
            self.weights_, self.history_ = {}, np.empty((0, 2))
            self.transformer_, self._width = None, X.shape[1]
            if not isinstance(self.kind, str):
                self.transformer_ = clone(self.kind).fit(X, y)
                self._width = self.transformer_.transform(X[:1]).shape[1]
            elif self.kind == "lda":
                mean, matrix = _within_class_map(X, codes)
                self.weights_ = {"mean": mean, "matrix": matrix}
            else:
                self._train(X, codes)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: object) -> Self:
        """Learn the map in the first call; later ones are checked, and change nothing.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Their labels.

        Returns
        -------
        self : estimator
        """
        if not hasattr(self, "classes_"):
            return self.fit(X, y)
        X = validate_vectors(self, X, reset=False)
        check_labels(y, n_samples=len(X), who=type(self).__name__)
        return self

    def _train(self, X: ArrayLike, codes: np.ndarray) -> None:
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        generator = torch.Generator().manual_seed(child_seed(seed, _OF_MODULE))
        rows, d = VectorRows(X), X.shape[1]
        unit = _root_mean_square(rows)
        self._kind = self.kind
        change = _CHANGES[self._kind](d, self.hidden_dim, generator)
        module = _Adapted(change, unit, d, len(self.classes_))
        names = ("lr", "momentum", "weight_decay", "batch_size", "epochs", "schedule")
        settings = {name: getattr(self, name) for name in (*names, "validation_fraction")}
        trained = HeadTrainer(optimizer="sgd", device=self.device, **settings).train(
            HeadObjective(module, get_loss("cross_entropy")),
            rows,
            codes,
            seed=child_seed(seed, _OF_STEPS),
            n_outputs=len(self.classes_),
        )
        weights = {name: value.numpy().copy() for name, value in change.state_dict().items()}
        if "shift" in weights:
            # The only part that is not homogeneous in x.
            weights["shift"] *= unit
        self.weights_, self.history_ = weights, trained.history

    @property
    def _n_features_out(self) -> int:
        return self._width + (self.n_features_in_ if self.concat else 0)

    def transform(self, X: ArrayLike) -> ArrayLike:
        """Adapt rows.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        Z : ndarray or tensor of shape (n_samples, n_features_out)
            The frozen features, with `concat`, and the adapted ones; twice the width of X, unless
            a transformer gives another.
        """
        check_is_fitted(self)
        X = validate_vectors(self, X, reset=False)
        rows, restore = numpy_or_tensor(X)
        adapted = self._adapted(rows, X)
        blocks = [rows, adapted] if self.concat else [adapted]
        if self.block_norm:
            blocks = [unit_rows(block) for block in blocks]
        return restore(torch.cat(blocks, dim=1))

    def _adapted(self, rows: torch.Tensor, X: ArrayLike) -> torch.Tensor:
        if self.transformer_ is not None:
            return as_tensor(self.transformer_.transform(X)).to(rows)
        if "matrix" in self.weights_:
            mean, matrix = self.weights_["mean"], self.weights_["matrix"]
            return apply_affine(rows, shift=mean, matrix=matrix, offset=np.zeros(len(mean)))
        change = self._change().to(rows.device, rows.dtype)
        parts = row_batches(len(rows), 8 * (3 * rows.shape[1] + 2 * self.hidden_dim))
        with torch.inference_mode(), full_float32():
            return torch.cat([rows[part] + change(rows[part]) for part in parts])

    def _change(self) -> nn.Module:
        """What is added to rows, of the weights that were learned."""
        # As it was fitted, whatever the parameter says now.
        hidden_dim = len(self.weights_.get("down", ()))
        change = _CHANGES[self._kind](self.n_features_in_, hidden_dim, torch.Generator())
        weights = {name: torch.tensor(value) for name, value in self.weights_.items()}
        change.load_state_dict(weights, assign=True)
        return change


def _root_mean_square(rows: VectorRows) -> float:
    """Of all entries; 1 where all are 0."""
    total = sum(float(values.double().square().sum()) for values, _ in rows.blocks())
    n = len(rows) * rows.take(np.arange(1))[0].shape[1]
    return float(np.sqrt(total / n)) or 1.0
