# SPDX-License-Identifier: BSD-3-Clause
"""LinearProbeClassifier: softmax regression on frozen features, along the path of penalties.

The standard report on a frozen network. The arithmetic is in `_softmax_solver`; here labels become
numbers, folds become weights of rows, and solutions take scikit-learn's shapes.
"""

import warnings
from dataclasses import replace
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.utils import compute_class_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from skpool.base import ClassScoresMixin
from skpool.probing._softmax_solver import SoftmaxPath, softmax_path
from skpool.probing._softmax_terms import wide_type
from skpool.training import class_numbers
from skpool.utils import (
    ArrayLike,
    apply_affine,
    as_tensor,
    unchanged_on_error,
    validate_vectors,
)

__all__ = ["LinearProbeClassifier", "LinearProbePath", "linear_probe_path"]


def _accuracy(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return scores.argmax(axis=1) == codes


def _neg_log_loss(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return log_softmax(scores, axis=1)[np.arange(len(codes)), codes]


# Of class scores and class numbers of held-out rows, for each of them; higher is better.
SCORINGS = {"accuracy": _accuracy, "neg_log_loss": _neg_log_loss}


def candidates(Cs: int | ArrayLike) -> np.ndarray:
    """Inverse penalties, ascending and distinct.

    Parameters
    ----------
    Cs : int or array-like of shape (n_Cs,)
        So many from 1e-4 to 1e4, or the numbers themselves.

    Returns
    -------
    Cs : ndarray of shape (n_Cs,)
    """
    values = np.logspace(-4, 4, Cs) if isinstance(Cs, Integral) else np.asarray(Cs, dtype=float)
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            f"Cs={Cs!r} is not valid; give a number of candidates, or numbers above 0."
        )
    return np.unique(values)


def linear_scores(
    X: ArrayLike, coef: np.ndarray, intercept: np.ndarray, center: np.ndarray
) -> np.ndarray:
    """Scores of all classes; a single row of weights is the difference of two classes."""
    offset = intercept + coef @ center
    if len(coef) == 1:
        coef, offset = np.concatenate([-coef, coef]) / 2, np.concatenate([-offset, offset]) / 2
    scores = apply_affine(as_tensor(X), shift=center, matrix=coef.T, offset=offset)
    return scores.cpu().numpy()


def as_in_scikit_learn(coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (..., n_classes, d) and offsets; of two classes, the second less the first."""
    if coef.shape[-2] != 2:
        return coef, intercept
    return np.diff(coef, axis=-2), np.diff(intercept, axis=-1)


class Samples(NamedTuple):
    """Rows that count."""

    X: ArrayLike
    kept: np.ndarray  # their numbers among the rows that came
    classes: np.ndarray
    codes: np.ndarray
    sample_weight: np.ndarray
    weights: np.ndarray  # times those of the classes


def counted_samples(
    who: str, X: ArrayLike, y: object, sample_weight: object, class_weight: object
) -> Samples:
    n = len(X)
    kept, weights = np.arange(n), np.ones(n)
    if sample_weight is not None:
        if isinstance(sample_weight, torch.Tensor):
            sample_weight = sample_weight.cpu().numpy()
        weights = _check_sample_weight(
            sample_weight, np.empty((n, 1)), dtype=np.float64, ensure_non_negative=True
        )
        kept = np.flatnonzero(weights)
    classes, codes = class_numbers(y, n, kept, who, min_classes=1)
    weights = weights[kept]
    if len(kept) < n:
        X = X[torch.from_numpy(kept).to(X.device) if isinstance(X, torch.Tensor) else kept]
    if class_weight is not None:
        per_class = compute_class_weight(
            class_weight, classes=classes, y=classes[codes], sample_weight=weights
        )
        return Samples(X, kept, classes, codes, weights, weights * per_class[codes])
    return Samples(X, kept, classes, codes, weights, weights)


def _solved(samples: Samples, weights: np.ndarray, Cs: np.ndarray, **settings) -> SoftmaxPath:
    """Solutions in scikit-learn's shapes, and a warning where one was not reached."""
    tensor, n_classes = as_tensor(samples.X), len(samples.classes)
    sums = weights.sum(axis=1)[:, None]
    # Two rows of weights that are opposite have half the squared length of their difference.
    factor = 2.0 if n_classes == 2 else 1.0
    # From the strongest penalty to the weakest.
    penalties = factor / (Cs * sums)
    path = softmax_path(
        tensor,
        torch.from_numpy(samples.codes).to(tensor.device),
        torch.from_numpy(weights).to(wide_type(tensor.device)).to(tensor.device),
        penalties,
        n_classes=n_classes,
        **settings,
    )
    missed = np.flatnonzero(~path.converged.all(axis=0))
    if len(missed):
        warnings.warn(
            f"max_iter={settings['max_iter']} steps did not reach tol={settings['tol']:g} for "
            f"{len(missed)} of {len(Cs)} candidates, from C={Cs[missed[0]]:.3g} on; give a smaller "
            "C, standardise the features, or raise max_iter or tol.",
            ConvergenceWarning,
            stacklevel=4,
        )
    if n_classes > 2:
        return path
    return replace(path, coef=np.diff(path.coef, axis=2), intercept=np.diff(path.intercept, axis=2))


class LinearProbePath(NamedTuple):
    """Softmax regressions of many penalties, the strongest first.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        Labels, sorted.
    Cs : ndarray of shape (n_Cs,)
        Inverse strengths of the penalty, ascending.
    coef : ndarray of shape (n_Cs, n_classes, n_features), or (n_Cs, 1, n_features)
        Weights; one row for two classes.
    intercept : ndarray of shape (n_Cs, n_classes) or (n_Cs, 1)
        Offsets.
    objective : ndarray of shape (n_Cs,)
        What was minimised, divided by C times the sum of the weights.
    n_iter : ndarray of shape (n_Cs,)
        Steps.
    n_passes : float
        Reads of all rows for scores and a gradient.
    """

    classes: np.ndarray
    Cs: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    objective: np.ndarray
    n_iter: np.ndarray
    n_passes: float


def linear_probe_path(
    X: ArrayLike,
    y: object,
    Cs: int | ArrayLike = 10,
    *,
    sample_weight: object = None,
    class_weight: dict | str | None = None,
    fit_intercept: bool = True,
    tol: float = 1e-6,
    max_iter: int = 1000,
) -> LinearProbePath:
    """Softmax regressions of many penalties, without choosing among them.

    Parameters
    ----------
    X : ndarray or tensor of shape (n_samples, n_features)
        Feature vectors, finite.
    y : array-like of shape (n_samples,)
        Labels of at least two classes.
    Cs : int or array-like of shape (n_Cs,), default=10
        Inverse strengths of the penalty; a number stands for so many from 1e-4 to 1e4.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples.
    class_weight : {"balanced"}, dict or None, default=None
        Weights of the classes.
    fit_intercept : bool, default=True
        Whether there is an offset.
    tol, max_iter : float, int
        As of :class:`LinearProbeClassifier`, which describes the objective and the method too.

    Returns
    -------
    path : LinearProbePath
        Solutions and what they took.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skpool.probing import linear_probe_path
    >>> linear_probe_path(*load_iris(return_X_y=True), [0.1, 1.0]).coef.shape
    (2, 3, 4)
    """
    name = "linear_probe_path"
    samples = counted_samples(name, X, y, sample_weight, class_weight)
    classes = samples.classes
    if len(classes) < 2:
        raise ValueError(f"y holds one class, {classes.tolist()}; {name} needs two.")
    Cs = candidates(Cs)
    path = _solved(
        samples,
        samples.weights[None],
        Cs,
        fit_intercept=fit_intercept,
        tol=tol,
        max_iter=max_iter,
    )
    solved = path.coef[0], path.intercept[0], path.objective[0], path.n_iter[0]
    return LinearProbePath(classes, Cs, *solved, path.n_passes)


class LinearProbeClassifier(ClassScoresMixin, ClassifierMixin, BaseEstimator):
    r"""Linear probe: softmax regression, solved on the whole path of penalties.

    Minimises what :class:`sklearn.linear_model.LogisticRegression` minimises,

    .. math:: C \sum_i s_i \, \mathrm{CE}\big(\mathrm{softmax}(W x_i + b), y_i\big)
              + \frac{1}{2} \|W\|^2 ,

    with :math:`s_i` the weights of the samples, and with a single row of weights, that of the
    second class, where there are two. The linear evaluation of frozen features [1]_ [2]_ reports
    its accuracy, with C chosen on the training data.

    Parameters
    ----------
    C : float or "cv", default=1.0
        Inverse strength of the penalty; "cv" chooses it among `Cs` by cross-validation.
    Cs : int or array-like of shape (n_Cs,), default=10
        Candidates of "cv"; a number stands for so many from 1e-4 to 1e4, equidistant in the
        logarithm.
    cv : int, cross-validation generator or iterable, default=None
        Folds of "cv"; None for 5, a number for so many, stratified.
    scoring : {"accuracy", "neg_log_loss"}, default="accuracy"
        What is best on the held-out rows in the mean over the folds; of equally good candidates
        the smallest wins.
    class_weight : {"balanced"}, dict or None, default=None
        Weights of the classes; "balanced" weighs classes alike.
    fit_intercept : bool, default=True
        Whether there is an offset, which is not penalised.
    tol : float, default=1e-6
        A solution is accepted when the next step promises to decrease the objective by less than
        this part of it. It then is above the minimum by a part of that size: the same or less on
        most data, and up to some tens of it where steps have become short.
    max_iter : int, default=1000
        Most steps per candidate.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
        Weights.
    intercept_ : ndarray of shape (n_classes,) or (1,)
        Offsets; with mean 0 for more than two classes.
    C_ : float
        The inverse strength of the penalty.
    Cs_ : ndarray of shape (n_Cs,)
        Candidates, ascending; C alone where it was given.
    scores_ : ndarray of shape (n_folds, n_Cs) or None
        Scores of the candidates on the held-out rows of every fold; None where C was given.
    coef_path_ : ndarray of shape (n_Cs, n_classes, n_features), or (n_Cs, 1, n_features)
        Weights of all candidates on all samples.
    intercept_path_ : ndarray of shape (n_Cs, n_classes) or (n_Cs, 1)
        Their offsets.
    objective_path_ : ndarray of shape (n_Cs,)
        What was minimised, divided by C times the sum of the weights.
    n_iter_ : ndarray of shape (n_Cs,)
        Steps that were taken for every candidate on all samples.
    n_passes_ : float
        Reads of all rows, those of folds included, each for the scores and for a gradient of one
        problem: 4 n_samples n_features n_classes operations.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X was a table with text column names.

    See Also
    --------
    linear_probe_path : Many penalties, without choosing among them.
    sklearn.linear_model.LogisticRegressionCV : The same path, other penalties and solvers.
    skpool.linear_model.RidgeHeadClassifier : A closed form on moments, with the penalty chosen.
    skpool.discriminant.LinearDiscriminantClassifier : Another closed form on moments.
    sklearn.svm.LinearSVC : The probe of the first reports.

    Notes
    -----
    The penalty is in the units of the features: standardising them is a step of a pipeline.
    Internally their mean is subtracted, which the intercept makes up for, and L-BFGS works with a
    model of the Hessian that knows the covariance of the features and how sure the probabilities
    are. Its first step is closed-form ridge regression on the classes. Steps are minimised along
    without reading the rows. Candidates are solved from the strongest penalty to the weakest, each
    from where the solutions before it point, and with the memory of L-BFGS handed on, which a
    change of the penalty changes in a known way. Folds and all samples are solved side by side, as
    weights of the same rows, in one read.

    Products are in float32, with sums in float64, for tolerances down to 1e-8, and in float64
    below that and for small data. Separable classes under a penalty that is next to none have no
    solution within reach; the steps end at `max_iter` with a warning.

    Cost: O(n_samples n_features n_classes) per step; the more of them, the weaker the penalty.
    Memory: 2 n_samples n_classes numbers per fold, as many folds at a time as scikit-learn's
    `working_memory` holds, 90 times the weights, and a sample of 8 n_features rows; X is read in
    blocks and not copied.

    References
    ----------
    .. [1] Razavian et al., "CNN Features off-the-shelf: an Astounding Baseline for Recognition",
       CVPR Workshops 2014. <https://arxiv.org/abs/1403.6382>
    .. [2] Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", ICML 2021. <https://arxiv.org/abs/2103.00020>
    .. [3] D. Boehning, "Multinomial logistic regression algorithm", Annals of the Institute of
       Statistical Mathematics 44, 1992.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skpool.probing import LinearProbeClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LinearProbeClassifier("cv", Cs=[0.01, 1.0, 100.0]).fit(X, y)
    >>> clf.scores_.shape, clf.coef_.shape
    ((5, 3), (3, 4))
    >>> clf.predict(X[[0, 60, 140]])
    array([0, 1, 2])
    """

    _parameter_constraints: dict = {
        "C": [Interval(Real, 0, None, closed="neither"), StrOptions({"cv"})],
        "Cs": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "cv": ["cv_object"],
        "scoring": [StrOptions(set(SCORINGS))],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "fit_intercept": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        C: float | str = 1.0,
        *,
        Cs: int | ArrayLike = 10,
        cv=None,
        scoring: str = "accuracy",
        class_weight: dict | str | None = None,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 1000,
    ):
        self.C = C
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: object, sample_weight: object = None):
        """Solve for the weights, of all candidates where C is chosen.

        Parameters
        ----------
        X : array-like or tensor of shape (n_samples, n_features)
            Feature vectors; computed where they lie, read block by block.
        y : array-like of shape (n_samples,)
            Class labels: integers, booleans or text.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples, at least 0; a sample of weight 0 counts as absent.

        Returns
        -------
        self : LinearProbeClassifier
            The fitted estimator. If the call fails, the estimator stays as it was.
        """
        with unchanged_on_error(self):
            X = validate_vectors(self, X, squares=True)
            samples = counted_samples(type(self).__name__, X, y, sample_weight, self.class_weight)
            self.classes_, self.Cs_ = samples.classes, self._candidates()
            folds = self._folds(samples, len(X)) if self.C == "cv" else []
            if len(self.classes_) == 1:
                self._constant(len(folds))
            else:
                self._solve(samples, folds)
        return self

    def _candidates(self) -> np.ndarray:
        """Inverse penalties, ascending."""
        if self.C != "cv":
            return np.array([float(self.C)])
        return candidates(self.Cs)

    def _folds(self, samples: Samples, n: int) -> list[np.ndarray]:
        """Held-out rows of every fold, as numbers among the samples."""
        given = self.cv is not None and not isinstance(self.cv, Integral)
        if not given or hasattr(self.cv, "split"):
            cv = check_cv(self.cv, samples.codes, classifier=True)
            return [test for _, test in cv.split(np.empty((len(samples.codes), 1)), samples.codes)]
        # Rows that came, some of which may not count.
        number = np.full(n, -1)
        number[samples.kept] = np.arange(len(samples.kept))
        tests = [number[test] for _, test in self.cv]
        return [test[test >= 0] for test in tests]

    def _solve(self, samples: Samples, folds: list[np.ndarray]) -> None:
        """Solve all candidates on all samples, and beside them on the folds."""
        in_fold = np.repeat(samples.weights[None], 1 + len(folds), axis=0)
        for row, test in zip(in_fold[1:], folds, strict=True):
            row[test] = 0.0
        solved = _solved(
            samples,
            in_fold,
            self.Cs_,
            fit_intercept=self.fit_intercept,
            tol=self.tol,
            max_iter=self.max_iter,
        )
        self._center = solved.center
        self.scores_, best = None, 0
        if folds:
            self.scores_ = self._scores_of(solved, samples, folds)
            best = int(self.scores_.mean(axis=0).argmax())
        self.C_ = float(self.Cs_[best])
        # Copies, which do not keep the folds in memory.
        self.coef_path_, self.intercept_path_ = solved.coef[0].copy(), solved.intercept[0].copy()
        self.coef_, self.intercept_ = self.coef_path_[best], self.intercept_path_[best]
        self.objective_path_, self.n_iter_ = solved.objective[0].copy(), solved.n_iter[0].copy()
        self.n_passes_ = solved.n_passes

    def _scores_of(
        self, solved: SoftmaxPath, samples: Samples, folds: list[np.ndarray]
    ) -> np.ndarray:
        """Scores of the candidates on the held-out rows of every fold."""
        X, score = as_tensor(samples.X), SCORINGS[self.scoring]
        scores = np.empty((len(folds), len(self.Cs_)))
        for i, test in enumerate(folds):
            rows, weights = X[torch.from_numpy(test).to(X.device)], samples.sample_weight[test]
            for k, solution in enumerate(
                zip(solved.coef[i + 1], solved.intercept[i + 1], strict=True)
            ):
                outputs = linear_scores(rows, *solution, self._center)
                scores[i, k] = np.average(score(outputs, samples.codes[test]), weights=weights)
        return scores

    def _constant(self, n_folds: int) -> None:
        """One class: nothing to solve for."""
        n = len(self.Cs_)
        self.C_, self.scores_ = float(self.Cs_[0]), np.ones((n_folds, n)) if n_folds else None
        self.coef_path_ = np.zeros((n, 1, self.n_features_in_))
        self.intercept_path_ = np.zeros((n, 1))
        self.coef_, self.intercept_ = self.coef_path_[0], self.intercept_path_[0]
        self.objective_path_, self.n_iter_ = np.zeros(n), np.ones(n, dtype=int)
        self.n_passes_ = 0.0
        self._center = np.zeros(self.n_features_in_)

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the logarithms of the probabilities, up to one number per row.

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
        scores = linear_scores(X, self.coef_, self.intercept_, self._center)
        return scores[:, : len(self.classes_)]
