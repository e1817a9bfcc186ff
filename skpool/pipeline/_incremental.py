# SPDX-License-Identifier: BSD-3-Clause
"""A pipeline that goes on learning: scikit-learn's Pipeline with `partial_fit` and `forget`.

The difficulty is a learned step before the classifier. When the whitening moves, everything that
the classifier learned lies in a space that is gone. Whitenings are affine, and what our classifiers
learn can be mapped by an affine map, so the pipeline keeps their state in the space *before* the
first step that moves, and maps it whenever a step has moved: nothing goes stale, and many calls
equal one.
"""

import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import Pipeline, _name_estimators
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpool.utils import unchanged_on_error

__all__ = ["IncrementalPipeline", "make_incremental_pipeline"]

Affine = tuple[np.ndarray, np.ndarray]


def _as_affine(step: object) -> Affine:
    """The fitted step as x @ A + b."""
    if isinstance(step, StandardScaler):
        d = step.n_features_in_
        scale = np.ones(d) if step.scale_ is None else step.scale_
        shift = np.zeros(d) if step.mean_ is None or not step.with_mean else step.mean_
        return np.diag(1 / scale), -shift / scale
    return step.as_affine()


def _is_affine(step: object) -> bool:
    return isinstance(step, StandardScaler) or hasattr(step, "as_affine")


def _compose(first: Affine | None, second: Affine) -> Affine:
    if first is None:
        return second
    return first[0] @ second[0], first[1] @ second[0] + second[1]


def _final_learns(self: "IncrementalPipeline") -> bool:
    return hasattr(self.steps[-1][1], "partial_fit")


def _final_transforms(self: "IncrementalPipeline") -> bool:
    return hasattr(self.steps[-1][1], "transform")


def _final_forgets(self: "IncrementalPipeline") -> bool:
    return hasattr(self.steps[-1][1], "forget")


def _final_forgets_class(self: "IncrementalPipeline") -> bool:
    return hasattr(self.steps[-1][1], "forget_class")


def _is_passthrough(step: object) -> bool:
    return step is None or (isinstance(step, str) and step == "passthrough")


class IncrementalPipeline(Pipeline):
    """Pipeline that learns in calls: new samples, new classes, and none of the old rows kept.

    Steps are of three kinds. *Stateless* ones (extraction, most poolings, `L2Normalizer`) only
    transform. *Moving* ones have `partial_fit` (`Whitening`, `StandardScaler`) and are updated by
    every call. All others are *fixed*: fitted by the first call, and only transforming after it,
    as is any step within `FitOnce`.

    Parameters
    ----------
    steps : list of (str, estimator)
        Transformers and a final estimator with `partial_fit`.
    refresh : {"transport", "frozen", "running"}, default="transport"
        What happens when a step before the classifier moves.

        - "transport": the classifier's state is kept in the space before the first moving step
          and mapped after every call, so that any sequence of calls equals one `fit` on all
          samples. The moving step must be an affine map (`as_affine`, or scikit-learn's
          `StandardScaler`), and the steps after it must be able to follow (`affine`), as our
          classifiers do: put normalisations before the whitening.
        - "frozen": moving steps are fixed after the first call, as in most papers.
        - "running": moving steps move and the classifier goes on in the new space; what it
          learned before belongs to older spaces, of which a warning tells once.

    Attributes
    ----------
    n_calls_ : int
        Calls learned from since the last `fit`, that one included.
    classes_ : ndarray of shape (n_classes,)
        Labels of the final estimator.
    n_features_in_ : int
        Number of features of the first step, where it has one.
    feature_names_in_ : ndarray of str
        Names seen by the first step, where it has some.

    See Also
    --------
    sklearn.pipeline.Pipeline : The same without `partial_fit`.

    Notes
    -----
    With "transport" a call costs the update of the moments and one solve of every moving step,
    O(d^3) for a whitening, whatever the number of rows. A call that fails changes nothing.
    Parameters for a step are given as ``step__parameter`` (e.g. ``clf__sample_weight``).

    Examples
    --------
    >>> import numpy as np
    >>> from skpool.pipeline import IncrementalPipeline
    >>> from skpool.preprocessing import Whitening
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> X = np.random.default_rng(0).normal(size=(60, 4))
    >>> y = np.repeat(["a", "b", "c"], 20)
    >>> X[y == "b"] += 4
    >>> X[y == "c"] -= 4
    >>> def make():
    ...     steps = [("whiten", Whitening(2)), ("clf", NearestClassMeanClassifier("euclidean"))]
    ...     return IncrementalPipeline(steps)
    >>> parts = make().partial_fit(X[:40], y[:40]).partial_fit(X[40:], y[40:])
    >>> whole = make().fit(X, y)
    >>> bool(np.allclose(parts.decision_function(X), whole.decision_function(X)))
    True
    """

    # The caching of scikit-learn's Pipeline serves repeated fits, of which there are none here.
    memory = None
    transform_input = None
    verbose = False

    _parameter_constraints: dict = {
        "steps": [list],
        "refresh": [StrOptions({"transport", "frozen", "running"})],
    }

    def __init__(self, steps: list[tuple[str, Any]], *, refresh: str = "transport"):
        self.steps = steps
        self.refresh = refresh

    def fit(self, X, y=None, **params) -> Self:
        """Learn from these samples alone.

        Parameters
        ----------
        X : array-like
            Input of the first step.
        y : array-like of shape (n_samples,), default=None
            Labels.
        **params : dict
            Parameters of the steps' `fit`, as ``step__parameter``.

        Returns
        -------
        self : estimator
        """
        return self._learn(X, y, None, params, first=True)

    @available_if(_final_learns)
    def partial_fit(self, X, y=None, classes=None, **params) -> Self:
        """Learn from these samples on top of all earlier ones.

        Parameters
        ----------
        X : array-like
            Input of the first step.
        y : array-like of shape (n_samples,), default=None
            Labels; new ones are welcome in any call.
        classes : array-like, default=None
            Labels to announce to the final estimator.
        **params : dict
            Parameters of the steps' `fit` or `partial_fit`, as ``step__parameter``.

        Returns
        -------
        self : estimator
            If the call fails, the estimator stays as it was.
        """
        return self._learn(X, y, classes, params, first=not hasattr(self, "n_calls_"))

    @available_if(_final_transforms)
    def fit_transform(self, X, y=None, **params):
        """Fit and transform, where the last step is a transformer.

        Parameters
        ----------
        X : array-like
            Input of the first step.
        y : array-like of shape (n_samples,), default=None
            Labels.
        **params : dict
            Parameters of the steps' `fit`.

        Returns
        -------
        Xt : array-like
        """
        return self.fit(X, y, **params).transform(X)

    @available_if(_final_forgets)
    def forget(self, X, y) -> Self:
        """Remove samples that were learned, as if they had never been seen.

        Moving steps forget them too, except with `refresh="frozen"`, where they keep what the
        first call taught them.

        Parameters
        ----------
        X : array-like
            Samples that were given to `fit` or `partial_fit`.
        y : array-like of shape (n_samples,)
            Their labels.

        Returns
        -------
        self : estimator
            If the call fails, the estimator stays as it was.
        """
        check_is_fitted(self, "n_calls_")
        if self.refresh == "running":
            raise ValueError(
                "forget is not possible with refresh='running', where old samples were learned in "
                "spaces that are gone; use refresh='transport' or 'frozen'."
            )
        with unchanged_on_error(self, *self._learners()):
            before, block = self._split()
            for _, step in before:
                X = step.transform(X)
            self._carry(block, lambda name, base: _forget_one(name, base, X, y))
        return self

    @available_if(_final_forgets_class)
    def forget_class(self, label: object) -> Self:
        """Remove a class, as if none of its samples had ever been seen by the classifier.

        Fixed steps keep what the first call taught them. A step that moves has learned from
        samples whose labels it does not know, so there the samples are needed: see `forget`.

        Parameters
        ----------
        label : int, bool or str
            A label in `classes_`.

        Returns
        -------
        self : estimator
            If the call fails, the estimator stays as it was.
        """
        check_is_fitted(self, "n_calls_")
        moving = [name for name, step in self._active_steps()[:-1] if _moves(step)]
        if moving and self.refresh != "frozen":
            raise ValueError(
                f"Step {moving[0]!r} has learned from the samples of class {label!r} and cannot "
                "tell which they are; give them to forget(X, y)."
            )
        with unchanged_on_error(self, *self._learners()):
            self._final.forget_class(label)
        return self

    def __getitem__(self, ind: slice | int | str) -> Any:
        """Return a step, or for a slice a plain Pipeline that shares the steps."""
        return Pipeline(self.steps)[ind]

    # The steps by their kinds.

    @property
    def _final(self) -> BaseEstimator:
        return self.steps[-1][1]

    def _active_steps(self) -> list[tuple[str, Any]]:
        return [(name, step) for name, step in self.steps if not _is_passthrough(step)]

    def _split(self) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
        """The steps before the first moving one, and the block from there to the end.

        Where nothing has to be carried along, the block is the final estimator alone.
        """
        steps = self._active_steps()
        for position, (_, step) in enumerate(steps[:-1]):
            if self.refresh == "transport" and _moves(step):
                return steps[:position], steps[position:]
        return steps[:-1], steps[-1:]

    def _learners(self) -> list[object]:
        """Everything whose attributes a call may change."""
        bases = [base for _, base in getattr(self, "_bases", [])]
        return [step for _, step in self._active_steps()] + bases

    # One call.

    def _learn(self, X, y, classes, params: dict, *, first: bool) -> Self:
        self._check(params)
        with unchanged_on_error(self, *self._learners()):
            self.n_calls_ = 1 if first else self.n_calls_ + 1
            before, block = self._split()
            for name, step in before:
                self._advance(name, step, X, y, _options_of(name, params))
                X = step.transform(X)
            if first:
                # A step that stands alone needs no second state.
                copies = len(block) > 1
                self._bases = [(name, clone(s) if copies else s) for name, s in block]
            last = self.steps[-1][0]

            def learn(name: str, base: object) -> None:
                options = _options_of(name, params)
                if classes is not None and name == last:
                    options["classes"] = classes
                _learn_one(base, X, y, options, first=first)

            self._carry(block, learn)
        return self

    def _check(self, params: dict) -> None:
        self._validate_params()
        self._validate_steps()
        names = [name for name, _ in self.steps]
        for key in params:
            if key.partition("__")[0] not in names or "__" not in key:
                raise ValueError(
                    f"{key!r} names no step; parameters are given as <step>__<parameter> with one "
                    f"of the steps {names}."
                )
        block = self._split()[1]
        if len(block) > 1 and not _is_affine(block[0][1]):
            raise ValueError(
                f"Step {block[0][0]!r} ({type(block[0][1]).__name__}) moves and is no affine map "
                "(it has no method `as_affine`), so what was learned after it cannot be carried "
                "along; set refresh='frozen'."
            )
        for name, step in block[1:]:
            if not hasattr(step, "affine"):
                raise ValueError(
                    f"Step {name!r} ({type(step).__name__}) cannot be carried along (it has no "
                    f"method `affine`) when the step {block[0][0]!r} before it moves; put it "
                    f"before {block[0][0]!r} if it is a normalisation, or set refresh='frozen'."
                )

    def _advance(self, name: str, step, X, y, options: dict) -> None:
        """Fit a transformer in the first call, and let it move later where it may."""
        if self.n_calls_ == 1:
            step.fit(X, y, **options)
        elif self.refresh == "running" and _moves(step):
            self._warn_once(f"moves: what {self.steps[-1][0]!r} learned is in another space", name)
            step.partial_fit(X, y, **options)
        elif self.refresh != "frozen" and get_tags(step).requires_fit and not _fits_once(step):
            self._warn_once("has no partial_fit and stays as the first call fitted it", name)

    def _warn_once(self, fact: str, name: str) -> None:
        if self.n_calls_ == 2:
            warnings.warn(
                f"Step {name!r} {fact}; refresh='frozen' fixes all steps after the first call.",
                UserWarning,
                stacklevel=5,
            )

    def _carry(self, block: list[tuple[str, Any]], act: Callable[[str, object], None]) -> None:
        """Let every base of the block learn or forget, and map it to where its step stands.

        The moving steps are solved before the final estimator learns, since a solve may fail and
        an index of neighbours cannot be changed back.
        """
        if [name for name, _ in block] != [name for name, _ in self._bases]:
            raise ValueError(
                "The steps or `refresh` were changed after the first call, so what was learned has "
                "no place; call fit."
            )
        path: Affine | None = None
        for (name, step), (_, base) in zip(block, self._bases, strict=True):
            act(name, base)
            if step is not base:
                vars(step).update(vars(base if path is None else base.affine(*path)))
            if step is not self._final:
                path = _compose(path, _as_affine(step))


def _fits_once(step: object) -> bool:
    return getattr(step, "_fits_once", False)


def _moves(step: object) -> bool:
    learns = get_tags(step).requires_fit and hasattr(step, "partial_fit")
    return learns and not _fits_once(step)


def _options_of(name: str, params: dict) -> dict:
    """The parameters meant for one step."""
    prefix = f"{name}__"
    return {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}


def _learn_one(step, X, y, options: dict, *, first: bool) -> None:
    """Reset and update in the first call, update after it."""
    if not first:
        step.partial_fit(X, y, **options)
    elif "classes" in options:
        # `fit` takes no announcements, so the state is dropped by hand.
        fresh = clone(step).partial_fit(X, y, **options)
        vars(step).clear()
        vars(step).update(vars(fresh))
    else:
        step.fit(X, y, **options)


def _forget_one(name: str, step, X, y) -> None:
    if not hasattr(step, "forget"):
        raise ValueError(
            f"Step {name!r} ({type(step).__name__}) cannot forget; set refresh='frozen' to let it "
            "keep what it learned."
        )
    step.forget(X, y) if hasattr(step, "predict") else step.forget(X)


def make_incremental_pipeline(*steps: Any, refresh: str = "transport") -> IncrementalPipeline:
    """Build an `IncrementalPipeline` and name its steps by their classes.

    Parameters
    ----------
    *steps : estimators
    refresh : {"transport", "frozen", "running"}, default="transport"
        As in `IncrementalPipeline`.

    Returns
    -------
    pipeline : IncrementalPipeline

    Examples
    --------
    >>> from skpool.pipeline import make_incremental_pipeline
    >>> from skpool.preprocessing import L2Normalizer
    >>> from skpool.prototypes import NearestClassMeanClassifier
    >>> list(make_incremental_pipeline(L2Normalizer(), NearestClassMeanClassifier()).named_steps)
    ['l2normalizer', 'nearestclassmeanclassifier']
    """
    return IncrementalPipeline(_name_estimators(steps), refresh=refresh)
