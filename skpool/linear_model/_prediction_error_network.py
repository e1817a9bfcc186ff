# SPDX-License-Identifier: BSD-3-Clause
"""PredictionErrorNetworkClassifier: one small network per class that imitates a fixed random one.

The trained sibling of `PredictionErrorClassifier`, as it was published. Classes share no weight
that is trained, so a new class disturbs no old one.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.base import ClassScoresMixin, IncrementalMixin, spread_columns
from skpool.utils import ArrayLike, as_tensor, unchanged_on_error, validate_vectors, widened

__all__ = ["PredictionErrorNetworkClassifier"]

_ACTIVATIONS = {"gelu": torch.nn.GELU, "relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}
_BLOCK_ROWS = 4096
Weights = Mapping[str, np.ndarray]


def _initial_weights(
    rng: np.random.RandomState, n_features: int, hidden_dim: int, output_dim: int
) -> dict[str, np.ndarray]:
    """Weights of linear layer, layer normalisation, activation and linear layer."""
    weights = {"1.weight": np.ones(hidden_dim), "1.bias": np.zeros(hidden_dim)}
    for name, inputs, outputs in (("0", n_features, hidden_dim), ("3", hidden_dim, output_dim)):
        # As torch draws those of a linear layer, by numbers that do not change with its version.
        bound = inputs**-0.5
        weights[f"{name}.weight"] = rng.uniform(-bound, bound, (outputs, inputs))
        weights[f"{name}.bias"] = rng.uniform(-bound, bound, outputs)
    return {name: values.astype(np.float32) for name, values in weights.items()}


def _network(weights: Weights, activation: str, like: torch.Tensor) -> torch.nn.Sequential:
    """Build a network of the float type of some rows, where these lie."""
    hidden_dim, n_features = weights["0.weight"].shape
    network = torch.nn.Sequential(
        torch.nn.utils.skip_init(torch.nn.Linear, n_features, hidden_dim),
        torch.nn.LayerNorm(hidden_dim),
        _ACTIVATIONS[activation](),
        torch.nn.utils.skip_init(torch.nn.Linear, hidden_dim, len(weights["3.bias"])),
    )
    network.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    return network.to(like)


def _outputs(network: torch.nn.Sequential, rows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([network(part) for part in rows.split(_BLOCK_ROWS)])


def _imitate(
    network: torch.nn.Sequential,
    rows: torch.Tensor,
    targets: torch.Tensor,
    *,
    lr: float,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Train in one pass over the rows, at a rate that falls to 0, and return the weights."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    batches = list(zip(rows.split(batch_size), targets.split(batch_size), strict=True))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 - t / len(batches))
    with torch.enable_grad():
        for part, wanted in batches:
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(network(part), wanted).backward()
            optimizer.step()
            schedule.step()
    return {name: w.detach().cpu().numpy() for name, w in network.state_dict().items()}


class PredictionErrorNetworkClassifier(
    ClassScoresMixin, IncrementalMixin, ClassifierMixin, BaseEstimator
):
    r"""Classes by how well a network trained on each of them alone predicts a random one.

    A frozen random network h, the teacher, is imitated by one small network :math:`g_c` per class,
    which sees the rows of its class only. A sample scores minus the error,
    :math:`s_c(x) = -\frac{1}{o} \| g_c(x) - h(x) \|^2` with o outputs [1]_.

    Parameters
    ----------
    hidden_dim : int, default=64
        Width of the hidden layer of a student.
    teacher_multiplier : int, default=100
        How many times wider the teacher is.
    output_dim : int, default=128
        Outputs of all networks.
    activation : {"gelu", "relu", "tanh"}, default="gelu"
        After the first layer and its layer normalisation.
    lr : float, default=1e-2
        Learning rate of Adam at the start of a call, from which it falls to 0 linearly.
    batch_size : int, default=1
        Rows per step.
    random_state : int, RandomState instance or None, default=0
        Draws the teacher, and the weights that all students start from.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted, announced ones included.
    teacher_ : dict of str to ndarray
        Weights of the teacher.
    students_ : list of dict of str to ndarray
        Weights of the students, in the order of the classes that have samples.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    PredictionErrorClassifier : The same for infinitely wide networks, in closed form.

    Notes
    -----
    A call of `partial_fit` makes one pass, in the given order, over the rows of every class, and
    changes no other class: classes may arrive in any order, one after the other or together.
    Within a class the order and the partition of the rows matter, as in all training by gradient;
    a class that was seen before is trained on from its weights. So rows cannot be forgotten, while
    `forget_class` is exact.

    Networks want inputs of moderate size: scale rows to unit length or standardise them.

    Cost: O(d + o) times `hidden_dim` per row and class to learn and to predict, and
    `teacher_multiplier` times that per row for the teacher; memory as many numbers per class.

    References
    ----------
    .. [1] M. Zajac, T. Tuytelaars, G. M. van de Ven, Prediction Error-based Classification for
       Class-Incremental Learning, 2024. <https://arxiv.org/abs/2305.18806>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.linear_model import PredictionErrorNetworkClassifier
    >>> X = np.repeat(np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32), 50, axis=0)
    >>> clf = PredictionErrorNetworkClassifier(8, teacher_multiplier=4, output_dim=8)
    >>> clf.partial_fit(X[:50], ["a"] * 50).partial_fit(X[50:], ["b"] * 50).predict(X[::50])
    array(['a', 'b'], dtype='<U1')
    """

    _squares_rows = True

    _parameter_constraints: dict = {
        "hidden_dim": [Interval(Integral, 1, None, closed="left")],
        "teacher_multiplier": [Interval(Integral, 1, None, closed="left")],
        "output_dim": [Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(_ACTIVATIONS))],
        "lr": [Interval(Real, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        hidden_dim: int = 64,
        *,
        teacher_multiplier: int = 100,
        output_dim: int = 128,
        activation: str = "gelu",
        lr: float = 1e-2,
        batch_size: int = 1,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.hidden_dim = hidden_dim
        self.teacher_multiplier = teacher_multiplier
        self.output_dim = output_dim
        self.activation = activation
        self.lr = lr
        self.batch_size = batch_size
        self.random_state = random_state

    # Learning.

    def fit(self, X: ArrayLike, y: object) -> Self:
        """Train one network per class on these samples alone.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        return super().fit(X, y)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: ArrayLike, y: object, classes: object = None) -> Self:
        """Train the networks of the classes of these samples, and no other.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels; labels never seen before are welcome in any call.
        classes : array-like of shape (n_classes,), default=None
            Labels to announce before they have samples; never predicted until then.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.
        """
        return self._learn(X, y, classes, None, reset=not hasattr(self, "classes_"))

    def forget_class(self, label: object) -> Self:
        """Remove a class with its network.

        Parameters
        ----------
        label : int or str
            The class; announced ones can be removed too.

        Returns
        -------
        self : estimator
            The updated estimator.
        """
        check_is_fitted(self)
        if label not in self.classes_.tolist():
            raise ValueError(f"label={label!r} is not among the classes {self.classes_.tolist()}.")
        with unchanged_on_error(self):
            self._announced = self._announced[self._announced != label]
            kept = np.flatnonzero(self._trained != label)
            self.students_ = [self.students_[i] for i in kept]
            self._trained = self._trained[kept]
            self._refresh()
        return self

    def _check_learns_in_parts(self) -> bool:
        raise AttributeError(
            "What a trained network owes to a row is not known, so rows cannot be removed or "
            "networks merged; use PredictionErrorClassifier."
        )

    def _can_map(self) -> bool:
        return self._check_learns_in_parts()

    def _seen_classes(self) -> np.ndarray:
        return self._trained

    def _reset(self) -> None:
        self._trained, self.students_ = np.empty(0, dtype=self._announced.dtype), []
        rng, width = check_random_state(self.random_state), self.hidden_dim
        sizes = {"n_features": self.n_features_in_, "output_dim": self.output_dim}
        self.teacher_ = _initial_weights(rng, hidden_dim=width * self.teacher_multiplier, **sizes)
        self._start = _initial_weights(rng, hidden_dim=width, **sizes)

    def _update(self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        rows = as_tensor(X).float()
        targets = self._taught(rows)
        students = dict(zip(self._trained.tolist(), self.students_, strict=True))
        for label in np.unique(y).tolist():
            members = torch.from_numpy(np.flatnonzero(y == label)).to(rows.device)
            student = _network(students.get(label, self._start), self.activation, rows)
            students[label] = _imitate(
                student,
                rows[members],
                targets[members],
                lr=self.lr,
                batch_size=self.batch_size,
            )
        new = np.unique(y)
        # A union with no labels would not keep the type of the new ones.
        self._trained = np.union1d(self._trained, new) if len(self._trained) else new
        self.students_ = [students[label] for label in self._trained.tolist()]

    def _taught(self, rows: torch.Tensor) -> torch.Tensor:
        return _outputs(_network(self.teacher_, self.activation, rows), rows)

    # Predictions.

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return minus the error of the network of every class.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            At most 0. Columns in the order of `classes_`; -inf for a class without samples.
        """
        check_is_fitted(self)
        rows = widened(as_tensor(validate_vectors(self, X, reset=False, squares=True)))
        targets = self._taught(rows)
        columns = []
        for weights in self.students_:
            outputs = _outputs(_network(weights, self.activation, rows), rows)
            columns.append(-(outputs - targets).square().mean(dim=1))
        scores = torch.stack(columns, dim=1).cpu().numpy()
        return spread_columns(scores, self._trained, self.classes_, fill=-np.inf)
