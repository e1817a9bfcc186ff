# SPDX-License-Identifier: BSD-3-Clause
"""TorchHeadMixin: what every head that is trained by gradient shares.

Between scikit-learn's verbs and `skpool.training`: a head writes which rows it sees, which module
it trains and with which settings; labels, weights of samples and classes, classes that arrive
later, weights as arrays, callbacks and predictions are here.
"""

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral, Real
from typing import Self

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.callback import CallbackSupportMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import nn

from skpool.base import ClassScoresMixin, spread_columns
from skpool.training import (
    SETTINGS_CONSTRAINTS,
    HeadObjective,
    HeadTrainer,
    Loss,
    Rows,
    child_seed,
    class_weights,
    get_loss,
    own_generators,
    pick_device,
)
from skpool.utils import (
    check_labels,
    full_float32,
    joined_labels,
    unchanged_on_error,
    widened,
)

__all__ = ["TRAINER_CONSTRAINTS", "TorchHeadMixin", "grown_linear"]

_SHARED = (
    "lr",
    "weight_decay",
    "epochs",
    "warmup_epochs",
    "batch_size",
    "schedule",
    "min_lr",
    "ema",
    "validation_fraction",
    "early_stopping",
    "patience",
    "mixup",
    "device",
    "amp",
    "checkpoint",
)
# Of the parameters that all heads share.
TRAINER_CONSTRAINTS: dict = {
    **{name: SETTINGS_CONSTRAINTS[name] for name in _SHARED},
    "label_smoothing": [Interval(Real, 0, 1, closed="left")],
    "class_weight": [StrOptions({"balanced", "effective"}), dict, None],
    "epochs_partial": [Interval(Integral, 1, None, closed="left")],
    "random_state": ["random_state"],
}

Mask = torch.Tensor | None

# Numbers from which the seeds of a head's parts are drawn.
_OF_MODULE, _OF_CALLS = 0, 1


def grown_linear(layer: nn.Linear, n_new: int) -> nn.Linear:
    """Return a linear layer with further outputs: rows of zeros, and the least of the old biases.

    Parameters
    ----------
    layer : torch.nn.Linear
    n_new : int

    Returns
    -------
    layer : torch.nn.Linear
    """
    weight, bias = layer.weight.detach(), layer.bias
    grown = nn.utils.skip_init(
        nn.Linear, weight.shape[1], len(weight) + n_new, bias=bias is not None, dtype=weight.dtype
    )
    with torch.no_grad():
        grown.weight.copy_(torch.cat([weight, weight.new_zeros(n_new, weight.shape[1])]))
        if bias is not None:
            grown.bias.copy_(torch.cat([bias, bias.min().expand(n_new)]))
    return grown


def _learns_in_parts(estimator: "TorchHeadMixin") -> bool:
    """Whether samples can be added after `fit`; the estimator says why not."""
    return estimator._check_learns_in_parts()


class TorchHeadMixin(CallbackSupportMixin, ClassScoresMixin):
    """Mixin for classifiers whose head is a torch module, trained by gradient.

    Attributes
    ----------
    weights_ : dict of str to ndarray
        Of the module, by name; rows of outputs in the order in which classes arrived, which is
        that of `classes_` unless `partial_fit` met new ones.
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    history_ : ndarray of shape (n_iter_, 2)
        Loss on the training samples and on those kept back (NaN without), of every epoch.
    n_iter_ : int
        Epochs that were run.

    Notes
    -----
    A head writes the hooks `_rows(X, reset)` and `_make_module(n_features, n_outputs, generator,
    rows)`; where it has to, `_grow(module, n_new)`, `_initialize(module, rows, codes, weights)`,
    `_objective(module, loss)`, `_loss()` and `_trainer()`. It has the parameters `device`,
    `random_state` and `label_smoothing`, any of `HeadTrainer`, and may have `class_weight` and
    `epochs_partial`.

    Dropout must be a `torch.nn.Dropout`, whose draws come from the seed. What the optimizer
    remembers is kept for `partial_fit`: of Adam, twice the size of the weights.
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: object, y: object, sample_weight: object = None) -> Self:
        """Train on these samples alone.

        Parameters
        ----------
        X : array-like
            As the class describes.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0; a sample of weight 0 counts as absent.

        Returns
        -------
        self : estimator
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        return self._learn(X, y, None, sample_weight, self._trainer(), whole=True)

    @available_if(_learns_in_parts)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: object, y: object, classes: object = None, sample_weight: object = None
    ) -> Self:
        """Train on with these samples: `epochs_partial` passes over them alone.

        Parameters
        ----------
        X : array-like
            As the class describes.
        y : array-like of shape (n_samples,)
            Class labels; labels never seen before are welcome in any call.
        classes : array-like of shape (n_classes,), default=None
            Labels to announce before they have samples. They are listed in `classes_` and are
            never predicted until a sample arrives. Not required.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0; a sample of weight 0 counts as absent.

        Returns
        -------
        self : estimator
            The updated estimator. If the call fails, the estimator stays as it was.

        Notes
        -----
        The step size is `lr` throughout, the optimizer goes on from where it was, and nothing is
        kept back for validation or written to a checkpoint. Earlier samples are not seen again,
        so that what they taught fades.
        """
        trainer = replace(
            self._trainer(),
            epochs=getattr(self, "epochs_partial", 1),
            warmup_epochs=0,
            schedule="constant",
            validation_fraction=0.0,
            early_stopping=False,
            swa_start=None,
            checkpoint=None,
        )
        return self._learn(X, y, classes, sample_weight, trainer, whole=False)

    def class_scores(self, X: object) -> np.ndarray:
        """Return the outputs of the head.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`; -inf for a class without samples.
        """
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        scores = rows.reduce(self._applied()).cpu().numpy()
        seen = np.argsort(self._outputs)
        return spread_columns(scores[:, seen], self._outputs[seen], self.classes_, fill=-np.inf)

    @property
    def module_(self) -> nn.Module:
        """The trained module, in eval mode and on the host, made anew of `weights_`."""
        check_is_fitted(self)
        module = self._built(None)
        # Copies: whoever trains the module must not train the estimator.
        module.load_state_dict({k: torch.tensor(v) for k, v in self.weights_.items()}, assign=True)
        return module.eval()

    # What a head writes.

    def _rows(self, X: object, *, reset: bool) -> Rows:
        """Check X, and return its rows."""
        raise NotImplementedError

    def _make_module(
        self, n_features: int, n_outputs: int, generator: torch.Generator, rows: Rows | None
    ) -> nn.Module:
        """Return a module ``module(values, mask) -> logits``, its weights from the generator.

        `rows` is None where weights follow that were learned before.
        """
        raise NotImplementedError

    def _trainer(self) -> HeadTrainer:
        """Settings, which are parameters of the estimator as far as it has them."""
        names = [name for name in SETTINGS_CONSTRAINTS if hasattr(self, name)]
        return HeadTrainer(**{name: getattr(self, name) for name in names})

    def _loss(self) -> Loss:
        return get_loss("cross_entropy", label_smoothing=self.label_smoothing)

    def _initialize(
        self, module: nn.Module, rows: Rows, codes: np.ndarray, weights: np.ndarray | None
    ) -> None:
        """Give a new module weights that follow from the labels."""

    def _grow(self, module: nn.Module, n_new: int) -> None:
        """Append outputs for classes that arrived."""
        module.head = grown_linear(module.head, n_new)

    def _objective(self, module: nn.Module, loss: Loss) -> nn.Module:
        """What is minimised."""
        return HeadObjective(module, loss)

    def _check_learns_in_parts(self) -> bool:
        if getattr(self, "optimizer", None) == "lbfgs":
            raise AttributeError(
                "partial_fit needs an optimizer that takes steps; optimizer='lbfgs' minimises over "
                "all samples at once."
            )
        return True

    # Learning.

    def _learn(
        self,
        X: object,
        y: object,
        classes: object,
        sample_weight: object,
        trainer: HeadTrainer,
        *,
        whole: bool,
    ) -> Self:
        reset = whole or not hasattr(self, "weights_")
        # Before the attributes are remembered: callbacks are taken leave of after a failure, too.
        context = self._init_callback_context(max_subtasks=trainer.epochs)
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        with unchanged_on_error(self):
            rows = self._rows(X, reset=reset)
            rows, y, weights = self._chosen(rows, y, sample_weight)
            if reset:
                self._start(y)
            n_old, module = len(self._outputs), None if reset else self.module_
            codes = self._take_classes(y, classes)
            if whole:
                self._check_class_weight()
            self._counts = self._counted(codes, weights)
            if module is None:
                module = self._built(rows)
                self._initialize(module, rows, codes, weights)
            elif len(self._outputs) > n_old:
                self._grow(module, len(self._outputs) - n_old)
            self._train(module, rows, codes, weights, trainer, context)
        context.call_on_fit_task_end(estimator=self, X=X, y=y, reconstruction_attributes={})
        return self

    def _chosen(
        self, rows: Rows, y: object, sample_weight: object
    ) -> tuple[Rows, np.ndarray, np.ndarray | None]:
        """Rows, labels and weights of the samples that can be learned from."""
        y = check_labels(y, n_samples=rows.n_samples, who=type(self).__name__)
        if sample_weight is None:
            return rows, y[rows.numbers], None
        if isinstance(sample_weight, torch.Tensor):
            sample_weight = sample_weight.cpu().numpy()
        weights = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
        weights = weights[rows.numbers]
        kept = np.flatnonzero(weights)
        if not len(kept):
            raise ValueError("sample_weight is 0 for every sample; give a positive weight.")
        y = y[rows.numbers]
        if len(kept) == len(rows):
            return rows, y, weights
        return rows.among(kept), y[kept], weights[kept]

    def _start(self, y: np.ndarray) -> None:
        """Forget what was learned."""
        self._seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        self._n_calls = 0
        self._outputs = self._announced = y[:0]
        self._counts = np.empty(0)
        self._optimizer_state: dict[str, np.ndarray] = {}
        self.history_ = np.empty((0, 2))

    def _take_classes(self, y: np.ndarray, classes: object) -> np.ndarray:
        """Add labels that are new; the outputs that belong to the labels."""
        labels = np.unique(y)
        known = joined_labels(self._outputs, labels)
        if classes is not None and len(classes) > 0:
            who = type(self).__name__
            announced = check_labels(classes, n_samples=len(classes), who=who)
            joined_labels(known, announced)
            self._announced = joined_labels(self._announced, announced)
        new = np.setdiff1d(labels, self._outputs)
        self._outputs = np.concatenate([self._outputs, new]) if len(self._outputs) else new
        self.classes_ = joined_labels(known, self._announced)
        order = np.argsort(self._outputs)
        return order[np.searchsorted(self._outputs, y, sorter=order)]

    def _counted(self, codes: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """Samples, or sums of weights, of the outputs in all calls so far."""
        counts = np.bincount(codes, weights, minlength=len(self._outputs)).astype(np.float64)
        counts[: len(self._counts)] += self._counts
        return counts

    def _check_class_weight(self) -> None:
        """Refuse weights of classes that no sample is of; in parts, they may yet come."""
        class_weight = getattr(self, "class_weight", None)
        if isinstance(class_weight, dict):
            unknown = [label for label in class_weight if label not in self.classes_.tolist()]
            if unknown:
                raise ValueError(
                    f"class_weight names {unknown[0]!r}, which is not among the "
                    f"{len(self.classes_)} classes of y; leave it out."
                )

    def _weighted(self, codes: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
        """Weights of the samples times those of their classes."""
        class_weight = getattr(self, "class_weight", None)
        if class_weight is None:
            return weights
        if isinstance(class_weight, dict):
            given = [class_weight.get(label, 1.0) for label in self._outputs.tolist()]
            per_class = np.array(given, dtype=np.float64)
        else:
            per_class = class_weights(self._counts, class_weight)
        return per_class[codes] if weights is None else per_class[codes] * weights

    def _built(self, rows: Rows | None) -> nn.Module:
        """A new module; layers that draw their own first weights draw them from the seed, too."""
        seed = child_seed(self._seed, _OF_MODULE)
        generator = torch.Generator().manual_seed(seed)
        with own_generators(seed):
            return self._make_module(self.n_features_in_, len(self._outputs), generator, rows)

    def _train(self, module, rows, codes, weights, trainer, context) -> None:
        def told(epoch: int, training_loss: float, validation_loss: float) -> bool:
            step = context.subcontext("epoch")
            step.call_on_fit_task_begin(estimator=self)
            return step.call_on_fit_task_end(
                estimator=self, reconstruction_attributes=lambda: self._as_of_now(module)
            )

        trained = trainer.train(
            self._objective(module, self._loss().prepare(self._counts)),
            rows,
            codes,
            sample_weight=self._weighted(codes, weights),
            seed=child_seed(self._seed, _OF_CALLS, self._n_calls),
            n_outputs=len(self._outputs),
            on_epoch=told,
            optimizer_state=self._optimizer_state,
        )
        vars(self).update(self._as_of_now(module))
        self.history_ = np.concatenate([self.history_, trained.history])
        self.n_iter_ = len(self.history_)
        self._n_calls += 1
        if trainer.optimizer != "lbfgs":
            self._optimizer_state = trained.optimizer_state

    def _as_of_now(self, module: nn.Module) -> dict[str, object]:
        """Attributes from which the head predicts."""
        state = module.state_dict()
        names = ("classes_", "n_features_in_", "_outputs", "_seed")
        return {
            "weights_": {name: value.cpu().numpy().copy() for name, value in state.items()},
            **{name: getattr(self, name) for name in names},
        }

    def _applied(
        self, compute: Callable[[nn.Module, torch.Tensor, Mask], torch.Tensor] = nn.Module.__call__
    ) -> Callable[[torch.Tensor, Mask], torch.Tensor]:
        """A function of the module as one of values and mask, computed where the module does."""
        module = self.module_

        def applied(values: torch.Tensor, mask: Mask) -> torch.Tensor:
            values = widened(values)
            device = pick_device(self.device, values)
            dtype = torch.float32 if device.type == "mps" else values.dtype
            module.to(device, dtype)
            mask = None if mask is None else mask.to(device)
            with torch.inference_mode(), full_float32():
                return compute(module, values.to(device, dtype), mask).to(values.device)

        return applied

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weights_")
