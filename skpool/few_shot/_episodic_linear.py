# SPDX-License-Identifier: BSD-3-Clause
"""EpisodicLinear: a linear head on a handful of labelled rows, for one episode or thousands.

An ordinary classifier over `_linear_kernels`, which solve in the span of the rows, whatever their
width; a batch of episodes is one call.
"""

from numbers import Real
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from skpool.base import ClassScoresMixin
from skpool.few_shot._linear_kernels import HEADS
from skpool.utils import (
    ArrayLike,
    apply_affine,
    as_tensor,
    check_labels,
    full_float32,
    unchanged_on_error,
    validate_vectors,
)

if TYPE_CHECKING:
    from skpool.model_selection import EpisodeBatch

__all__ = ["EpisodicLinear"]


def _is_logistic(estimator: "EpisodicLinear") -> bool:
    if estimator.head != "logistic":
        raise AttributeError(
            f"predict_proba is not available with head={estimator.head!r}; use "
            "decision_function, or head='logistic'."
        )
    return True


def _wide(rows: torch.Tensor) -> torch.Tensor:
    """Rows in float64, where there is float64."""
    return rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)


class EpisodicLinear(ClassScoresMixin, ClassifierMixin, BaseEstimator):
    r"""Linear classifier for a handful of rows, solved exactly, and for many episodes at once.

    It scores :math:`s_c(x) = w_c^\top x + b_c`. With the errors :math:`\ell` of the training rows,
    the weights minimise

    .. math:: \tfrac12 \sum_c |w_c|^2 + C \sum_i \ell(s(x_i), y_i) ,

    in which the intercepts play no part. The errors are those of softmax regression
    ("logistic"), half the squared distances from targets of +1 for the class of a row and -1 for
    the others ("ridge"), or squared hinges of one class against the others ("svm").

    Parameters
    ----------
    head : {"logistic", "ridge", "svm"}, default="logistic"
        Which errors are minimised, see above.
    C : float, default=1.0
        Weight of the errors. With few rows 1 regularises strongly, and is what is customary for
        unit rows [1]_; choose another on classes that are not those of the evaluation.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    coef_ : ndarray of shape (n_classes, n_features)
        Weights.
    intercept_ : ndarray of shape (n_classes,)
        Offsets.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X had text column names.

    See Also
    --------
    sklearn.linear_model.LogisticRegression : The same decisions as "logistic", one fit at a time.
    sklearn.linear_model.RidgeClassifier : The same decisions as "ridge", with ``alpha=1/C``.
    sklearn.svm.LinearSVC : Nearly those of "svm"; it penalises the intercept too, less so the
        larger its `intercept_scaling` is.
    make_rfs : Logistic regression on unit rows.

    Notes
    -----
    Everything is computed in float64 from the products of the rows, which are centred first: a
    shift of all rows changes no decision. "logistic" and "svm" take Newton steps, "svm" ends
    after finitely many. Two classes are one problem, as in scikit-learn, whose solution is the
    difference of the two scores.

    Cost for n rows, N classes and d features: O(n^2 d) for the products and O(n^3) for "ridge",
    about ten times O(N n^3) for the others, O(n^2 N) memory: for episodes, and not for thousands
    of rows.

    References
    ----------
    .. [1] Y. Tian, Y. Wang, D. Krishnan, J. B. Tenenbaum, P. Isola, Rethinking Few-Shot Image
       Classification: a Good Embedding Is All You Need?, 2020. <https://arxiv.org/abs/2003.11539>

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.few_shot import EpisodicLinear
    >>> X = np.array([[1.0, 0.0], [0.8, 0.2], [0.0, 1.0]])
    >>> clf = EpisodicLinear("ridge").fit(X, ["cat", "cat", "dog"])
    >>> clf.predict([[0.9, 0.3], [0.1, 0.7]])
    array(['cat', 'dog'], dtype='<U3')
    """

    _parameter_constraints: ClassVar[dict] = {
        "head": [StrOptions(set(HEADS))],
        "C": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, head: str = "logistic", *, C: float = 1.0):
        self.head = head
        self.C = C

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object, sample_weight: object = None) -> Self:
        """Learn from these samples alone.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples' errors, at least 0; a sample of weight 0 counts as absent.

        Returns
        -------
        self : EpisodicLinear
            The fitted classifier. If the call fails, it stays as it was.
        """
        with unchanged_on_error(self):
            rows = _wide(as_tensor(validate_vectors(self, X, squares=True)))
            y = check_labels(y, n_samples=len(rows), who=type(self).__name__)
            if isinstance(sample_weight, torch.Tensor):
                sample_weight = sample_weight.cpu().numpy()
            weights = _check_sample_weight(
                sample_weight, y, dtype=np.float64, ensure_non_negative=True
            )
            rows, y = rows[torch.from_numpy(weights > 0).to(rows.device)], y[weights > 0]
            self.classes_, codes = np.unique(y, return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError(
                    f"{type(self).__name__} needs samples of at least 2 classes of positive "
                    "weight, and y holds one class or none; give more."
                )
            onehot = torch.eye(len(self.classes_), dtype=rows.dtype)[codes].to(rows)
            self._solve(rows, onehot, torch.from_numpy(weights[weights > 0]).to(rows))
        return self

    def _solve(self, rows: torch.Tensor, onehot: torch.Tensor, weights: torch.Tensor) -> None:
        center = rows.mean(dim=0)
        rows = rows - center
        with full_float32():
            head = HEADS[self.head](rows[None] @ rows.mT, onehot[None], weights[None], C=self.C)
        coef = head.dual[0].mT @ rows
        self.coef_ = coef.cpu().numpy()
        self._center = center.cpu().numpy()
        self._offset = head.intercept[0].cpu().numpy()
        self.intercept_ = self._offset - self.coef_ @ self._center

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the score of every class.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        scores : ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`.
        """
        check_is_fitted(self)
        rows = as_tensor(validate_vectors(self, X, reset=False, squares=True))
        scores = apply_affine(rows, shift=self._center, matrix=self.coef_.T, offset=self._offset)
        return scores.cpu().numpy()

    @available_if(_is_logistic)
    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Return the softmax of the scores; of "logistic" alone.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Rows sum to 1; columns in the order of `classes_`.
        """
        return super().predict_proba(X)

    # Many episodes.

    def class_scores_episodes(self, batch: "EpisodeBatch") -> torch.Tensor:
        """Return the scores of the queries of many episodes, each by its own supports.

        Parameters
        ----------
        batch : EpisodeBatch
            Episodes; nothing that was fitted is read or written.

        Returns
        -------
        scores : tensor of shape (n_episodes, n_queries, n_way)
            In float64, where the device has it.
        """
        self._validate_params()
        return torch.cat([self._scores_of(part) for _, part in batch.parts()])

    def _scores_of(self, batch: "EpisodeBatch") -> torch.Tensor:
        Xs, Xq, onehot = _wide(batch.Xs), _wide(batch.Xq), _wide(batch.onehot())
        weights = onehot.sum(dim=2)
        center = Xs.mean(dim=1, keepdim=True)
        Xs = Xs - center
        head = HEADS[self.head](Xs @ Xs.mT, onehot, weights, C=self.C)
        return ((Xq - center) @ Xs.mT) @ head.dual + head.intercept[:, None]

    def predict_episodes(self, batch: "EpisodeBatch") -> torch.Tensor:
        """Predict the queries of many episodes, each by its own supports.

        Parameters
        ----------
        batch : EpisodeBatch
            Episodes; nothing that was fitted is read or written.

        Returns
        -------
        labels : tensor of shape (n_episodes, n_queries)
            Local numbers of the classes.
        """
        return self.class_scores_episodes(batch).argmax(dim=2)
