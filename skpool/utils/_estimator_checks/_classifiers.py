# SPDX-License-Identifier: BSD-3-Clause
"""Checks of classifiers: kinds of labels, columns of the outputs, refusals."""

from unittest import SkipTest

import numpy as np
import torch
from sklearn.base import BaseEstimator

from skpool.utils._estimator_checks._tools import expect, expect_close, fresh, refused, unchanged
from skpool.utils._estimator_checks._vectors import fitted, labels, output, rows

__all__ = ["BAD_LABELS", "CLASSIFIER_CHECKS"]

# Each a rule from class index to label; sorted as the indices are, so columns stay in place.
_KINDS = {
    "text": np.array(["ant", "bee", "cat"]),
    "text of unequal length": np.array(["a", "bbb", "cc"]),
    "negative integers": np.array([-1, 0, 5]),
    "large integers": np.array([2**40, 2**40 + 1, 2**41]),
    "unsigned integers": np.array([0, 7, 250], dtype=np.uint8),
    "whole floats": np.array([-1.0, 0.0, 2.0]),
}


def _with(position: int, value: object) -> list:
    y = labels().tolist()
    y[position] = value
    return y


BAD_LABELS = {
    "a missing label (None)": lambda: _with(4, None),
    "a missing label (NaN)": lambda: _with(4, np.nan),
    "a missing label among text": lambda: ["a", None, *["b"] * (len(labels()) - 2)],
    "text among numbers": lambda: _with(4, "a"),
    "text among numbers, as objects": lambda: np.array(_with(4, "a"), dtype=object),
    "fractions": lambda: labels() + 0.5,
    "too few labels": lambda: labels()[:-1],
    "too many labels": lambda: np.append(labels(), 0),
    "labels in two dimensions": lambda: np.eye(3)[labels()],
    "no labels": lambda: None,
}


def check_label_kinds_agree(estimator: BaseEstimator) -> None:
    """Renaming the classes in order changes names only; classes_ is sorted and of that kind."""
    desired, predicted = output(fitted(estimator)), fitted(estimator).predict(rows())
    for name, names in _KINDS.items():
        model = fitted(estimator, rows(), names[labels()])
        expect(
            model.classes_.tolist() == names.tolist() and model.classes_.dtype == names.dtype,
            f"{name}: classes_ is {model.classes_!r}, expected {names!r}.",
        )
        expect_close(output(model), desired, f"scores with {name}", tol=1e-10)
        expect((model.predict(rows()) == names[predicted]).all(), f"{name}: other predictions.")


def check_bool_labels_work(estimator: BaseEstimator) -> None:
    """Booleans are two classes and come back as booleans."""
    y = labels() == 1
    model, numbers = fitted(estimator, rows(), y), fitted(estimator, rows(), y.astype(int))
    expect(model.classes_.dtype == bool, f"classes_ has dtype {model.classes_.dtype}.")
    expect(model.predict(rows()).dtype == bool, "predict does not give booleans.")
    expect_close(output(model), output(numbers), "scores of booleans", tol=1e-10)


def check_labels_may_be_a_list_or_objects(estimator: BaseEstimator) -> None:
    """A list and an object array of text are as good as an array of text."""
    y = _KINDS["text"][labels()]
    desired = fitted(estimator, rows(), y).predict(rows())
    for given in (y.tolist(), y.astype(object)):
        actual = fitted(estimator, rows(), given).predict(rows())
        expect((actual == desired).all(), f"A {type(given).__name__} gives other predictions.")


def check_one_class_is_predicted(estimator: BaseEstimator) -> None:
    """A classifier that knows one class predicts it, or refuses to learn it by ValueError."""
    try:
        model = fitted(estimator, rows(), np.full(len(rows()), 3))
    except ValueError as error:
        raise SkipTest(f"refuses a single class: {error}") from error
    expect((model.predict(rows()) == 3).all(), "The only class is not predicted.")


def check_bad_labels_are_refused_and_change_nothing(estimator: BaseEstimator) -> None:
    """Missing, mixed, fractional and miscounted labels are refused; the state stays."""
    for name, bad in BAD_LABELS.items():
        with refused(name):
            fresh(estimator).fit(rows(), bad())
        model = fitted(estimator)
        with unchanged(model, f"fit with {name}"), refused(name):
            model.fit(rows(), bad())


def check_predictions_are_good(estimator: BaseEstimator) -> None:
    """Classes that lie apart are told apart."""
    accuracy = (fitted(estimator).predict(rows()) == labels()).mean()
    expect(accuracy > 0.9, f"{accuracy:.0%} of separate classes are right.")


def check_predict_proba_is_a_distribution(estimator: BaseEstimator) -> None:
    """One column per class in the order of classes_, rows that sum to 1, argmax is predict."""
    model = fitted(estimator)
    if not hasattr(model, "predict_proba"):
        raise SkipTest("no predict_proba")
    proba = model.predict_proba(rows())
    expect(proba.shape == (len(rows()), 3), f"predict_proba has shape {proba.shape}.")
    expect((proba >= 0).all(), "A probability is negative.")
    tolerance = 1e-5 if proba.dtype == np.float32 else 1e-10
    expect_close(proba.sum(axis=1), np.ones(len(proba)), "sums of rows", tol=tolerance)
    best = model.classes_[proba.argmax(axis=1)]
    expect((best == model.predict(rows())).all(), "The most probable class is not predicted.")


def check_decision_function_agrees_with_predict(estimator: BaseEstimator) -> None:
    """The highest decision is predicted; for two classes its sign."""
    model = fitted(estimator)
    if not hasattr(model, "decision_function"):
        raise SkipTest("no decision_function")
    decisions = model.decision_function(rows())
    expect(decisions.shape == (len(rows()), 3), f"decision_function has shape {decisions.shape}.")
    best = model.classes_[decisions.argmax(axis=1)]
    expect((best == model.predict(rows())).all(), "The highest decision is not predicted.")
    two = labels() < 2
    model = fitted(estimator, rows()[two], labels()[two])
    decisions = model.decision_function(rows())
    expect(decisions.ndim == 1, f"For two classes decisions have shape {decisions.shape}.")
    best = model.classes_[(decisions > 0).astype(int)]
    expect((best == model.predict(rows())).all(), "The sign of the decision is not predicted.")


def check_outputs_of_tensors_are_numpy(estimator: BaseEstimator) -> None:
    """Predictions are numpy arrays whatever was given, as scikit-learn's scorers need."""
    model, X = fitted(estimator), torch.from_numpy(rows())
    for name in ("predict", "predict_proba", "decision_function"):
        if hasattr(model, name):
            out = getattr(model, name)(X)
            expect(isinstance(out, np.ndarray), f"{name} of a tensor is {type(out).__name__}.")


CLASSIFIER_CHECKS = (
    check_label_kinds_agree,
    check_bool_labels_work,
    check_labels_may_be_a_list_or_objects,
    check_one_class_is_predicted,
    check_bad_labels_are_refused_and_change_nothing,
    check_predictions_are_good,
    check_predict_proba_is_a_distribution,
    check_decision_function_agrees_with_predict,
    check_outputs_of_tensors_are_numpy,
)
