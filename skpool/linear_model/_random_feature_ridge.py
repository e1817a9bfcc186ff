# SPDX-License-Identifier: BSD-3-Clause
"""RandomFeatureRidgeClassifier: a ridge head on a wide random layer, whose rows are never stored.

The nonlinear sibling of `RidgeHeadClassifier`: the moments are those of random features, so all
that moments can do (streams, forgetting, merging) it does too.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch

from skpool.linear_model._projected_rows import PROJECTION_CONSTRAINTS, ProjectedRowsMixin
from skpool.linear_model._ridge_head import Head, RidgeHeadClassifier
from skpool.preprocessing import RandomFeatures
from skpool.statistics import ClassMoments
from skpool.utils import ArrayLike, as_tensor, row_batches, validate_vectors

__all__ = ["RandomFeatureRidgeClassifier"]

# The median magnitude of a standard normal number, which is that of a projected unit row.
_MEDIAN = 0.6745
_HUGE, _TRIED_ROWS = 1e3, 1024


@dataclass(frozen=True, eq=False)
class _WideHead(Head):
    """A head, the random features that it stands on, and how it was chosen among others."""

    projection: RandomFeatures
    width_scores: np.ndarray | None


def _first_features(moments: ClassMoments, n: int) -> ClassMoments:
    """The moments of the first features, as a projection of that width would give them."""
    width = moments.n_features_in_
    if n == width:
        return moments
    arrays = moments.to_arrays()
    arrays["means"] = arrays["means"][:, :n]
    arrays["scatter_values"] = arrays["scatter_values"][..., :n, :n]
    return ClassMoments.from_arrays(arrays).affine(np.full(n, np.sqrt(width / n)))


class RandomFeatureRidgeClassifier(ProjectedRowsMixin, RidgeHeadClassifier):
    r"""Ridge regression on random features, as a classifier that learns in any order.

    Rows become :math:`z = \phi(x W + b) / \sqrt{k}` with standard normal directions W, and the
    one-hot targets are regressed on z: ``make_pipeline(RandomFeatures(...),
    RidgeHeadClassifier(...))`` in one object that never holds z of all rows. With k features it
    comes near the kernel machine of :math:`\phi`, and for "relu" it is RanPAC [1]_.

    Parameters
    ----------
    n_components : int, default=10000
        Number k of random features.
    activation : {"relu", "erf", "cos", "sign"} or None, default="relu"
        The nonlinearity, see :class:`~skpool.preprocessing.RandomFeatures`.
    bias : bool, default=False
        Whether offsets b are added before it.
    alpha : float, "gcv" or "loo", default="gcv"
        Penalty. "gcv" chooses it by generalized cross-validation from all that was learned, "loo"
        by the accuracy of predictions that leave one out, which needs the rows, hence `fit`. Take
        "loo" or a number where there are fewer rows than features, see Notes.
    alphas : array-like of shape (n_alphas,) or "auto", default="auto"
        Penalties that are tried; "auto" takes 17 from 1e-6 to 100.
    relative : bool, default=True
        Whether a penalty is this many times the mean eigenvalue of the scatter.
    widths : array-like of shape (n_widths,), default=None
        Numbers of features that are tried, at most `n_components`, all from the one matrix of
        `n_components`: its leading blocks are what narrower projections would give. The one of
        the best score is used. Needs ``alpha="gcv"``; None takes `n_components`.
    class_weight : {"balanced"}, dict or None, default=None
        Weights of the classes. They need one scatter per class.
    temperature : float or "auto", default="auto"
        Factor of the scores in the softmax of `predict_proba`.
    refit_every : int or None, default=None
        Rows that may be learned before what predictions are made of is solved for again, so that
        a stream that learns and predicts in turn solves once in so many rows. None solves at the
        first prediction after any change, as a new class, `forget`, `forget_class` and `merge`
        always make it.
    random_state : int, RandomState instance or None, default=0
        Draws the projection. Only estimators of one projection merge, so an int is needed where
        parts are learned apart.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted, announced ones included.
    n_components_ : int
        Features that predictions use.
    coef_ : ndarray of shape (n_classes, n_components_)
        Weights of the random features; NaN for a class without samples.
    intercept_ : ndarray of shape (n_classes,)
        Offsets; -inf for a class without samples.
    alpha_ : float
        The penalty.
    scores_ : ndarray of shape (n_alphas,) or None
        Scores of the penalties, in ascending order of these, with `n_components_` features;
        higher is better.
    width_scores_ : ndarray of shape (n_widths,) or None
        The best score of every width, in the order of `widths`.
    temperature_ : float
        Factor of the scores in the softmax.
    seed_ : int
        What the projection is made from; a part of the state.
    projection_ : RandomFeatures
        Maps rows to their random features.
    moments_ : ClassMoments
        Counts, means and scatter of the random features; everything else follows from them.
    n_features_in_ : int
        Number of features.

    See Also
    --------
    RidgeHeadClassifier : The same on the rows themselves.
    suggest_ridge : A penalty from the theory of random features.
    skpool.preprocessing.RandomFeatures : The projection.

    Notes
    -----
    `partial_fit` in any order and partition, `forget` and `merge` give what one `fit` gives, to
    rounding. The published code chooses its penalty anew on a split of the last task alone; here
    all that was learned decides, whatever the order.

    Generalized cross-validation takes all rows for equally influential. With fewer rows than
    features, rows that nearly repeat each other belie that, and it prefers penalties that are far
    too small.

    Cost: O(n d k) for the features, O(n k^2) for their products, one decomposition O(k^3) for all
    penalties (one per width; a Cholesky factor where `alpha` is a number), O(n k (d + C)) to
    predict. Memory: 8 k^2 bytes for the products (0.8 GB for 10,000), a few times that while they
    are added up and decomposed, and a block of features, which scikit-learn's `working_memory`
    bounds. While fewer rows than features were learned, and none forgotten, O(n^2 k + n^3) and
    memory O(n k), without `class_weight` and `widths`. What exceeds
    ``skpool.get_config()["max_array_bytes"]`` is refused.

    References
    ----------
    .. [1] M. D. McDonnell et al., RanPAC: Random Projections and Pre-trained Models for Continual
       Learning, 2023. <https://arxiv.org/abs/2307.02251>
    .. [2] J. B. Simon, D. Karkada, N. Ghosh, M. Belkin, More is Better in Modern Machine Learning,
       2024. <https://arxiv.org/abs/2311.14646>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.linear_model import RandomFeatureRidgeClassifier
    >>> X = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    >>> clf = RandomFeatureRidgeClassifier(200, bias=True, alpha=1e-3)
    >>> clf.partial_fit(X[:2], ["same", "same"]).partial_fit(X[2:], ["apart", "apart"]).predict(X)
    array(['same', 'same', 'apart', 'apart'], dtype='<U5')
    """

    _parameter_constraints: dict = (
        RidgeHeadClassifier._parameter_constraints
        | PROJECTION_CONSTRAINTS
        | {"widths": ["array-like", None]}
    )

    def __init__(
        self,
        n_components: int = 10_000,
        *,
        activation: str | None = "relu",
        bias: bool = False,
        alpha: float | str = "gcv",
        alphas: ArrayLike | str = "auto",
        relative: bool = True,
        widths: ArrayLike | None = None,
        class_weight: dict | str | None = None,
        temperature: float | str = "auto",
        refit_every: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ):
        super().__init__(
            alpha,
            alphas=alphas,
            relative=relative,
            class_weight=class_weight,
            temperature=temperature,
            refit_every=refit_every,
        )
        self.n_components = n_components
        self.activation = activation
        self.bias = bias
        self.widths = widths
        self.random_state = random_state

    # Learning.

    def _refresh(self) -> None:
        super()._refresh()
        # Refused here and not at the first prediction: these are parameters.
        self._checked_widths()

    def _checked_widths(self) -> list[int] | None:
        if self.widths is None:
            return None
        if self.alpha != "gcv":
            raise ValueError(
                f"widths are chosen by generalized cross-validation, and alpha={self.alpha!r}; "
                'set alpha="gcv", or give one width as n_components.'
            )
        widths = list(self.widths)
        if not widths or not all(
            isinstance(w, Integral) and 1 <= w <= self.n_components for w in widths
        ):
            raise ValueError(
                f"widths={self.widths!r} are not valid; give whole numbers from 1 to "
                f"n_components={self.n_components}."
            )
        return [int(w) for w in widths]

    def _can_map(self) -> bool:
        return self._check_maps()

    def _left_out(
        self, X: ArrayLike, y: np.ndarray, sample_weight: np.ndarray | None
    ) -> tuple[float, np.ndarray]:
        if len(X) < self.n_components:
            # All features together are smaller than their products.
            return super()._left_out(self._prepared(X), y, sample_weight)
        held = self._weighted_moments()
        path = self._path("gcv").fit_moments(held)
        codes = np.searchsorted(self.moments_.classes_, y)
        one_hot = np.eye(len(self.moments_.classes_))
        weights = (held.counts_ / self.moments_.counts_)[codes]
        weights = weights if sample_weight is None else weights * sample_weight
        sums = np.zeros((2, len(path.alphas_)))
        for part in row_batches(len(X), self._prepared_row_bytes()):
            rows = self._prepared(X[part])
            left_out = path.loo_predictions(rows, one_hot[codes[part]], weights[part])
            for k, predictions in enumerate(left_out):
                # NaN is a row that alone spans a direction, of which nothing else tells.
                known = weights[part] * ~np.isnan(predictions[:, 0])
                hits = predictions.argmax(axis=1) == codes[part]
                sums[:, k] += known @ hits, known.sum()
        with np.errstate(invalid="ignore"):
            scores = sums[0] / sums[1]
        finite = np.where(np.isnan(scores), -np.inf, scores)
        # Of equally good penalties the largest.
        return float(path.alphas_[np.flatnonzero(finite == finite.max())[-1]]), scores

    def _draw(self, X: ArrayLike) -> None:
        super()._draw(X)
        # Lengths of rows cancel in a relative penalty where activations are homogeneous; the
        # projection itself warns where they are not.
        if self.activation in ("relu", None) and (self.bias or not self.relative):
            typical = _MEDIAN * float(as_tensor(X[:_TRIED_ROWS]).double().norm(dim=1).median())
            if typical > _HUGE:
                warnings.warn(
                    f"The projections of X have a median magnitude of {typical:.3g}, against which "
                    "offsets and penalties of usual size do nothing; scale the rows, for example "
                    "with L2Normalizer.",
                    UserWarning,
                    stacklevel=6,
                )

    def _solve(self) -> _WideHead:
        held, widths = self._weighted_moments(), self._checked_widths()
        if widths is None:
            return self._wide_head(self._head(held))
        best, scores = None, []
        for width in widths:
            head = self._head(_first_features(held, width))
            scores.append(-head.gcv)
            best = head if best is None or head.gcv < best.gcv else best
        return self._wide_head(best, np.array(scores))

    def _wide_head(self, head: Head, width_scores: np.ndarray | None = None) -> _WideHead:
        projection, width = self.projection_, head.moments.n_features_in_
        if width < projection.n_components:
            # It learns nothing from a row but how long it is.
            projection = self._projection(width).fit(np.zeros((1, self.n_features_in_)))
        return _WideHead(**vars(head), projection=projection, width_scores=width_scores)

    @property
    def n_components_(self) -> int:
        """Features that predictions use."""
        return self._known("n_components_").projection.n_components

    @property
    def width_scores_(self) -> np.ndarray | None:
        """The best score of every width."""
        return self._known("width_scores_").width_scores

    # Predictions.

    def _seen_rows(self, X: ArrayLike) -> Iterator[torch.Tensor]:
        X = validate_vectors(self, X, reset=False)
        for part in row_batches(len(X), self._prepared_row_bytes()):
            yield as_tensor(self._features(X[part], self._solved.projection))
