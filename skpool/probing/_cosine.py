# SPDX-License-Identifier: BSD-3-Clause
"""CosineClassifier: a head whose scores are scaled cosines, trained with or without margins.

It starts from the class means, from where training moves it, and takes classes that arrive later
as their means; what is computed stands in `_cosine_modules`.
"""

import math
from numbers import Integral, Real
from typing import ClassVar, Self

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skpool.probing._base import TRAINER_CONSTRAINTS, TorchHeadMixin
from skpool.probing._cosine_modules import (
    MARGINS,
    CosineHead,
    CosineObjective,
    CosineSpec,
    class_directions,
    make_cosine_head,
)
from skpool.training import (
    Loss,
    Rows,
    VectorRows,
    child_seed,
)
from skpool.utils import ArrayLike, unchanged_on_error, validate_vectors

__all__ = ["CosineClassifier"]

_RATIO = [Interval(Real, 0, 1, closed="right")]


class CosineClassifier(
    TorchHeadMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    ClassifierMixin,
    BaseEstimator,
):
    r"""Softmax head on scaled cosines, with margins and partial classes.

    A sample :math:`x` is :math:`z = x`, or a learned linear projection of it, and its score for a
    class with the vector :math:`w_c` is

    .. math:: s_c(x) = s \cos\theta_c, \qquad \cos\theta_c = \frac{w_c^\top z}{|w_c| \, |z|}.

    Training lowers the score of the sample's own class, so that classes part by more than they
    have to: to :math:`s (\cos\theta_y - m)` by CosFace [1]_, to :math:`s \cos(\theta_y + m)` by
    ArcFace [2]_ (:math:`s (\cos\theta_y - m \sin m)` beyond :math:`\theta_y = \pi - m`, where the
    cosine would rise again). Predictions have no margin.

    Without training, ``epochs=0``, this is the nearest class mean by cosine. With ``margin=0`` it
    is the normalised softmax. The scale changes probabilities, and not which class is first.

    Parameters
    ----------
    n_components : int, default=None
        Width of the projection, which starts as random orthonormal directions; None for none.
    loss : {"softmax", "cosface", "arcface"}, default="softmax"
        Where the margin is taken off: nowhere, from the cosine, or added to the angle.
    scale : float, "adacos" or "learned", default=16.0
        s. "adacos" [3]_ starts at :math:`\sqrt{2} \log(C - 1)` and follows the angles of the
        minibatches, 1 at least, which suits many classes; "learned" starts at 16 and is a
        parameter. Heads for faces have 64.
    margin : float, default=0.0
        m. Heads for faces have 0.4 with "cosface" and 0.5 with "arcface".
    sample_ratio : float, default=1.0
        Part of the classes that a step computes [4]_: those of its minibatch, and others drawn at
        random up to the ratio.
    feature_ratio : float, default=1.0
        Part of the features of z, drawn anew in every step, that cosines are computed in [5]_.
    init : {"class_means", "random"}, default="class_means"
        First vectors of the classes.
    n_proxies : int, default=1
        Vectors of a class. Its cosine is the mean of theirs, weighted by the softmax of ten times
        them. They start close to the class mean.
    bias : bool, default=False
        Whether a learned number is added to the score of a class.
    lr : float, default=1e-3
        Step size of AdamW after the warm-up.
    weight_decay : float, default=0.0
        Of the projection; the length of class vectors plays no part.
    epochs : int, default=30
        Passes over the samples; 0 leaves the first vectors.
    warmup_epochs : int, default=0
        Passes in which the step size rises linearly.
    schedule : {"cosine", "constant", "step"}, default="cosine"
        How the step size falls afterwards.
    min_lr : float, default=0.0
        Least step size after the warm-up.
    batch_size : int, default=256
        Samples per step.
    mixup : float, default=0.0
        Of the Beta distribution by which samples are mixed; 0 for none.
    label_smoothing : float, default=0.0
        Share of a target that is spread over all classes.
    class_weight : {"balanced", "effective"}, dict or None, default=None
        Weights of the classes in the loss; "balanced" weighs classes alike, "effective" by their
        effective number of samples.
    ema : float, default=None
        Of an exponential average of the weights; None for none.
    validation_fraction : float, default=0.0
        Part of the samples of every class that is kept back to choose the best epoch.
    early_stopping : bool, default=False
        Whether training ends when `patience` epochs were no better than the best.
    patience : int, default=10
        Epochs that are waited for a better one.
    epochs_partial : int, default=1
        Passes of `partial_fit` over its samples.
    device : str, default="auto"
        Where to train; "auto" is a CUDA device where there is one.
    amp : bool, default=False
        Whether a CUDA device computes products in bfloat16.
    checkpoint : path-like, default=None
        Directory from which an interrupted training goes on.
    random_state : int, RandomState or None, default=0
        First weights, order of the samples and validation part.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X was a table with text column names.
    scale_ : float
        The scale s of the trained head.
    weights_ : dict of str to ndarray
        Of the head, by name; rows in the order in which classes arrived.
    module_ : torch.nn.Module
        The head, made anew of `weights_`.
    history_ : ndarray of shape (n_iter_, 2)
        Loss on the training samples and on those kept back (NaN without), of every epoch.
    n_iter_ : int
        Epochs that were run.

    See Also
    --------
    skpool.prototypes.NearestClassMeanClassifier : What ``epochs=0`` is, exact and incremental.
    skpool.discriminant.LinearDiscriminantClassifier : Directions in closed form.

    Notes
    -----
    Cost: of a step, the product of batch_size * n_classes * sample_ratio * width; memory is a
    minibatch, its scores, and three times the weights. `transform` gives the unit vectors z / |z|,
    for search, clustering or open sets.

    A class that arrives in `partial_fit` starts from the mean of its samples, and `add_classes`
    stops there. `mixup` lowers the cosine of both classes by their parts of the margin.

    References
    ----------
    .. [1] H. Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018.
       <https://arxiv.org/abs/1801.09414>
    .. [2] J. Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR
       2019. <https://arxiv.org/abs/1801.07698>
    .. [3] X. Zhang et al., AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep
       Face Representations, CVPR 2019. <https://arxiv.org/abs/1905.00292>
    .. [4] X. An et al., Killing Two Birds with One Stone: Efficient and Robust Training of Face
       Recognition CNNs by Partial FC, CVPR 2022. <https://arxiv.org/abs/2203.15565>
    .. [5] X. An et al., Unicom: Universal and Compact Representation Learning for Image Retrieval,
       ICLR 2023. <https://arxiv.org/abs/2304.05884>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.probing import CosineClassifier
    >>> X = np.array([[2.0, 0.0], [3.0, 1.0], [0.0, 1.0], [0.5, 4.0]])
    >>> clf = CosineClassifier(loss="arcface", margin=0.2, epochs=5)
    >>> clf.fit(X, ["cat", "cat", "dog", "dog"]).predict([[5.0, 1.0]])
    array(['cat'], dtype='<U3')
    >>> clf.add_classes([[-1.0, 0.0]], ["owl"]).predict([[-3.0, 0.5]])
    array(['owl'], dtype='<U3')
    """

    _parameter_constraints: ClassVar[dict] = {
        **TRAINER_CONSTRAINTS,
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "loss": [StrOptions(set(MARGINS))],
        "scale": [Interval(Real, 0, None, closed="neither"), StrOptions({"adacos", "learned"})],
        "margin": [Interval(Real, 0, math.pi, closed="left")],
        "sample_ratio": _RATIO,
        "feature_ratio": _RATIO,
        "init": [StrOptions({"class_means", "random"})],
        "n_proxies": [Interval(Integral, 1, None, closed="left")],
        "bias": ["boolean"],
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        loss: str = "softmax",
        scale: float | str = 16.0,
        margin: float = 0.0,
        sample_ratio: float = 1.0,
        feature_ratio: float = 1.0,
        init: str = "class_means",
        n_proxies: int = 1,
        bias: bool = False,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        epochs: int = 30,
        warmup_epochs: int = 0,
        schedule: str = "cosine",
        min_lr: float = 0.0,
        batch_size: int = 256,
        mixup: float = 0.0,
        label_smoothing: float = 0.0,
        class_weight: str | dict | None = None,
        ema: float | None = None,
        validation_fraction: float = 0.0,
        early_stopping: bool = False,
        patience: int = 10,
        epochs_partial: int = 1,
        device: str = "auto",
        amp: bool = False,
        checkpoint: object = None,
        random_state: object = 0,
    ):
        self.n_components = n_components
        self.loss = loss
        self.scale = scale
        self.margin = margin
        self.sample_ratio = sample_ratio
        self.feature_ratio = feature_ratio
        self.init = init
        self.n_proxies = n_proxies
        self.bias = bias
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.schedule = schedule
        self.min_lr = min_lr
        self.batch_size = batch_size
        self.mixup = mixup
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.ema = ema
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.patience = patience
        self.epochs_partial = epochs_partial
        self.device = device
        self.amp = amp
        self.checkpoint = checkpoint
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: ArrayLike, y: object, classes: object = None, sample_weight: object = None
    ) -> Self:
        """Train on with these samples; new classes start from their means.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels; labels never seen before are welcome in any call.
        classes : array-like of shape (n_classes,), default=None
            Labels to announce before they have samples. They are listed in `classes_` and are
            never predicted until a sample arrives. Not required.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0; a sample of weight 0 counts as absent.

        Returns
        -------
        self : CosineClassifier
            The updated classifier. If the call fails, the classifier stays as it was.
        """
        with unchanged_on_error(self):
            if hasattr(self, "weights_"):
                self._append_new(X, y, sample_weight)
            return super().partial_fit(X, y, classes, sample_weight)

    def add_classes(self, X: ArrayLike, y: object) -> Self:
        """Append classes by their means, without training.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Their labels, all of them new.

        Returns
        -------
        self : CosineClassifier
            The updated classifier; scores of the classes known before stay as they were. If the
            call fails, the classifier stays as it was.
        """
        check_is_fitted(self)
        with unchanged_on_error(self):
            rows, labels, _ = self._chosen(self._rows(X, reset=False), y, None)
            known = np.intersect1d(labels, self._outputs).tolist()
            if known:
                raise ValueError(
                    f"y holds the label {known[0]!r}, which is known; give samples of new classes "
                    "alone, or call partial_fit."
                )
            self._counts = self._counted(self._append(rows, labels, None), None)
        return self

    def transform(self, X: ArrayLike) -> ArrayLike:
        """Return the unit vectors that cosines are taken of.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        vectors : ndarray of shape (n_samples, n_components or n_features)
            A tensor where X was one. Zero vectors stay zero; half precision becomes float32.
        """
        check_is_fitted(self)
        X = validate_vectors(self, X, reset=False)

        def embed(head: CosineHead, values: torch.Tensor, mask: None) -> torch.Tensor:
            return head.embed(values)

        vectors = VectorRows(X).reduce(self._applied(embed))
        return vectors if isinstance(X, torch.Tensor) else vectors.numpy()

    @property
    def scale_(self) -> float:
        """The scale of the cosines."""
        return float(self.module_.scale.detach())

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_ if self.n_components is None else self.n_components

    # What the mixin asks for.

    def _rows(self, X: object, *, reset: bool) -> VectorRows:
        return VectorRows(validate_vectors(self, X, reset=reset))

    def _make_module(
        self, n_features: int, n_outputs: int, generator: torch.Generator, rows: Rows | None
    ) -> CosineHead:
        if self.n_components is not None and self.n_components > n_features:
            raise ValueError(
                f"n_components={self.n_components} is more than the {n_features} feature(s) of X; "
                f"give at most {n_features}, or None."
            )
        if self.margin and self.loss == "softmax":
            raise ValueError(
                f"margin={self.margin} plays no part in loss='softmax'; set it to 0, or choose "
                "loss='cosface' or 'arcface'."
            )
        spec = CosineSpec(
            n_features, n_outputs, self.n_components, self.n_proxies, self.bias, self.scale
        )
        return make_cosine_head(spec, generator)

    def _initialize(
        self, module: CosineHead, rows: Rows, codes: np.ndarray, weights: np.ndarray | None
    ) -> None:
        if self.init == "class_means":
            self._place(module, rows, codes, weights)

    def _place(
        self, module: CosineHead, rows: Rows, codes: np.ndarray, weights: np.ndarray | None
    ) -> None:
        """Let the last classes of a head start from the means of their rows."""
        directions = class_directions(module, rows, codes, weights)
        seed = child_seed(self._seed, len(module.weight), len(directions))
        module.place(directions, torch.Generator().manual_seed(seed))

    def _append(self, rows: Rows, y: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """Add the classes of these rows, all of them new; the outputs of the rows."""
        module, n_old = self.module_, len(self._outputs)
        codes = self._take_classes(y, None)
        module.append(len(self._outputs) - n_old)
        self._place(module, rows, codes - n_old, weights)
        vars(self).update(self._as_of_now(module))
        return codes

    def _append_new(self, X: object, y: object, sample_weight: object) -> None:
        """Add those classes of these samples that are not known."""
        rows, labels, weights = self._chosen(self._rows(X, reset=False), y, sample_weight)
        new = np.flatnonzero(~np.isin(labels, self._outputs))
        if len(new):
            weights = None if weights is None else weights[new]
            self._append(rows.among(new), labels[new], weights)

    def _objective(self, module: CosineHead, loss: Loss) -> CosineObjective:
        return CosineObjective(
            module,
            loss,
            kind=self.loss,
            margin=self.margin,
            sample_ratio=self.sample_ratio,
            feature_ratio=self.feature_ratio,
            seed=child_seed(self._seed, self._n_calls),
        )
