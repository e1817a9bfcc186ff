# SPDX-License-Identifier: BSD-3-Clause
"""Checks of estimators with partial_fit: learning in parts equals learning at once."""

from collections.abc import Iterator
from unittest import SkipTest

import numpy as np
import torch
from sklearn.base import BaseEstimator

from skpool.utils._estimator_checks._classifiers import BAD_LABELS
from skpool.utils._estimator_checks._tools import (
    N_FEATURES,
    call,
    expect,
    expect_close,
    freeze,
    fresh,
    refused,
    unchanged,
)
from skpool.utils._estimator_checks._vectors import fitted, labels, output, rows

__all__ = ["INCREMENTAL_CHECKS", "INCREMENTAL_CLASSIFIER_CHECKS"]

# Rounding of sums in another order.
_TOL = 1e-6


def _learned(estimator: BaseEstimator, parts: list[np.ndarray]) -> BaseEstimator:
    """A clone that learned the given rows part by part."""
    model, X, y = fresh(estimator), rows(), labels()
    for part in parts:
        call(model.partial_fit, X[part], y[part], model)
    return model


def _partitions() -> Iterator[tuple[str, list[np.ndarray]]]:
    n = len(rows())
    shuffled = np.random.default_rng(2).permutation(n)
    yield "one part", [np.arange(n)]
    yield "three parts", np.array_split(np.arange(n), 3)
    yield "uneven parts in another order", np.split(shuffled, [2, 3, 50])
    yield "one row at a time after two", np.split(shuffled, range(2, n))
    yield "class by class", [np.flatnonzero(labels() == c) for c in (2, 0, 1)]


def check_parts_equal_whole(estimator: BaseEstimator) -> None:
    """partial_fit over any partition in any order gives what fit gives."""
    desired = output(fitted(estimator))
    for name, parts in _partitions():
        expect_close(output(_learned(estimator, parts)), desired, name, tol=_TOL)


def check_first_part_may_be_one_row(estimator: BaseEstimator) -> None:
    """A first part of one row is learned; who needs two refuses it and stays as it was."""
    model, before = fresh(estimator), freeze(vars(fresh(estimator)))
    learned = 1
    try:
        call(model.partial_fit, rows()[:1], labels()[:1], model)
    except ValueError:
        expect(freeze(vars(model)) == before, "A refused first row changed the state.")
        learned = 0
    call(model.partial_fit, rows()[learned:], labels()[learned:], model)
    expect_close(output(model), output(fitted(estimator)), "after a first row", tol=_TOL)


def check_fit_starts_anew(estimator: BaseEstimator) -> None:
    """fit forgets what was learned before it, the width included."""
    X, y = rows(), labels()
    model = _learned(estimator, [np.arange(20)])
    call(model.fit, X[20:, ::2], y[20:], model)
    desired = fitted(estimator, X[20:, ::2], y[20:])
    expect_close(output(model, X[:, ::2]), output(desired, X[:, ::2]), "fit after partial_fit")


def check_partial_fit_continues_fit(estimator: BaseEstimator) -> None:
    """partial_fit after fit adds to what fit learned."""
    X, y = rows(), labels()
    model = fitted(estimator, X[:30], y[:30])
    call(model.partial_fit, X[30:], y[30:], model)
    expect_close(output(model), output(fitted(estimator)), "partial_fit after fit", tol=_TOL)


def check_parts_may_differ_in_container(estimator: BaseEstimator) -> None:
    """Arrays, tensors and float32 parts can follow each other."""
    X, y = rows("float32"), labels()
    model = fresh(estimator)
    parts = [X[:20], torch.from_numpy(X[20:40]), X[40:].astype(np.float64)]
    for part, target in zip(parts, np.split(y, [20, 40]), strict=True):
        call(model.partial_fit, part, target, model)
    desired = output(fitted(estimator, X.astype(np.float64)))
    expect_close(output(model), desired, "mixed parts", tol=1e-4)


def _bad_rows() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    X, y = rows()[:6], labels()[:6]
    nan, inf = X.copy(), X.copy()
    nan[4, 2], inf[5, 0] = np.nan, np.inf
    wide = np.hstack([X, X])
    return {
        "NaN": (nan, y),
        "infinity": (inf, y),
        "a narrower X": (X[:, :-1], y),
        "a wider X": (wide, y),
        "a wider X with NaN": (np.hstack([nan, nan]), y),
        "an empty batch": (X[:0], y[:0]),
        "rank 1": (X[0], y),
        "rank 5": (X[None, None, None], y),
    }


def check_failed_partial_fit_changes_nothing(estimator: BaseEstimator) -> None:
    """A refused batch leaves every attribute as it was, byte by byte."""
    model = fitted(estimator)
    for name, (X, y) in _bad_rows().items():
        for given in (X, torch.from_numpy(X)):
            with unchanged(model, f"partial_fit with {name}"), refused(name):
                call(model.partial_fit, given, y, model)


def check_failed_first_partial_fit_leaves_unfitted(estimator: BaseEstimator) -> None:
    """A refused first batch leaves an estimator as it was built, ready for any width."""
    for name, (X, y) in _bad_rows().items():
        if "er X" in name and "NaN" not in name:
            continue
        model = fresh(estimator)
        with unchanged(model, f"a first partial_fit with {name}"), refused(name):
            call(model.partial_fit, X, y, model)
        call(model.partial_fit, rows()[:, ::2], labels(), model)


def check_using_does_not_change_what_is_learned(estimator: BaseEstimator) -> None:
    """Output between two parts does not matter to what follows."""
    X, y = rows(), labels()
    model = fresh(estimator)
    for part in np.array_split(np.arange(len(X)), 3):
        call(model.partial_fit, X[part], y[part], model)
        output(model)
    expect_close(output(model), output(fitted(estimator)), "use between parts", tol=_TOL)


def _forget(model: BaseEstimator, part: np.ndarray) -> None:
    try:
        call(model.forget, rows()[part], labels()[part], model)
    except (ValueError, NotImplementedError) as error:
        raise AssertionError(f"forget of learned rows was refused: {error}") from error


def check_forget_equals_never_seen(estimator: BaseEstimator) -> None:
    """Learning more and forgetting it again gives what was there before."""
    if not hasattr(estimator, "forget"):
        raise SkipTest("no forget")
    first, later = np.arange(30), np.arange(30, len(rows()))
    model = _learned(estimator, [first, later])
    for part in np.array_split(later[::-1], 3):
        _forget(model, part)
    expect_close(output(model), output(_learned(estimator, [first])), "forget", tol=_TOL)


def check_failed_forget_changes_nothing(estimator: BaseEstimator) -> None:
    """A refused forget leaves every attribute as it was."""
    if not hasattr(estimator, "forget"):
        raise SkipTest("no forget")
    model = fitted(estimator)
    for name, (X, y) in _bad_rows().items():
        if name == "an empty batch":
            continue
        with unchanged(model, f"forget with {name}"), refused(name):
            call(model.forget, X, y, model)


def check_merge_equals_one_learner(estimator: BaseEstimator) -> None:
    """Two that learned one half each, merged, equal one that learned all."""
    if not hasattr(estimator, "merge"):
        raise SkipTest("no merge")
    half = np.arange(len(rows())) % 2 == 0
    one, other = (_learned(estimator, [np.flatnonzero(part)]) for part in (half, ~half))
    with unchanged(other, "merge into another"):
        expect(one.merge(other) is one, "merge must return the estimator itself.")
    expect_close(output(one), output(fitted(estimator)), "merge", tol=_TOL)
    call(one.partial_fit, rows()[:5], labels()[:5], one)
    before = freeze(vars(other))
    call(one.forget, rows()[:5], labels()[:5], one) if hasattr(one, "forget") else None
    expect(freeze(vars(other)) == before, "The merged one still shares state with the other.")


def check_merge_of_other_width_is_refused(estimator: BaseEstimator) -> None:
    """Merging what was learned on another width is refused and changes nothing."""
    if not hasattr(estimator, "merge"):
        raise SkipTest("no merge")
    model, other = fitted(estimator), fitted(estimator, rows()[:, : N_FEATURES // 2])
    with unchanged(model, "A refused merge"), refused("merge with another width"):
        model.merge(other)


# Of classifiers alone.


def check_forgotten_class_leaves_no_trace(estimator: BaseEstimator) -> None:
    """Forgetting all samples of a class gives what there was without it."""
    if not hasattr(estimator, "forget"):
        raise SkipTest("no forget")
    old, new = np.flatnonzero(labels() < 2), np.flatnonzero(labels() == 2)
    model, never = _learned(estimator, [old, new]), _learned(estimator, [old])
    _forget(model, new)
    expect(model.classes_.tolist() == [0, 1], f"classes_ is {model.classes_.tolist()}.")
    expect_close(output(model), output(never), "a forgotten class", tol=_TOL)


def check_new_classes_in_any_call(estimator: BaseEstimator) -> None:
    """Classes may arrive one by one, before, between and after the known ones."""
    model = fresh(estimator)
    y = np.array([5, -3, 11])[labels()]
    for label, known in ((5, [5]), (-3, [-3, 5]), (11, [-3, 5, 11])):
        model.partial_fit(rows()[y == label], y[y == label])
        expect(model.classes_.tolist() == known, f"classes_ is {model.classes_.tolist()}.")
    desired = output(fitted(estimator, rows(), y))
    expect_close(output(model), desired, "classes that came one by one", tol=_TOL)


def check_longer_text_labels_may_follow(estimator: BaseEstimator) -> None:
    """A later label of more characters is not cut to the length of the earlier ones."""
    model = fresh(estimator).partial_fit(rows()[:3], ["a", "b", "a"])
    model.partial_fit(rows()[3:5], ["a much longer label", "b"])
    expect("a much longer label" in model.classes_.tolist(), f"classes_ is {model.classes_}.")


def check_announced_class_is_listed_and_never_predicted(estimator: BaseEstimator) -> None:
    """`classes` of partial_fit lists labels that nothing is predicted as until samples come."""
    model = fresh(estimator).partial_fit(rows(), labels(), classes=[0, 1, 2, 9, -4])
    expect(model.classes_.tolist() == [-4, 0, 1, 2, 9], f"classes_ is {model.classes_.tolist()}.")
    expect(set(model.predict(rows()).tolist()) <= {0, 1, 2}, "An announced class is predicted.")
    if hasattr(model, "predict_proba"):
        proba = model.predict_proba(rows())
        expect(proba.shape[1] == 5 and not proba[:, [0, 4]].any(), "It has a probability.")
        expect_close(
            proba[:, 1:4], fitted(estimator).predict_proba(rows()), "known classes", tol=_TOL
        )


def check_announcing_is_not_needed(estimator: BaseEstimator) -> None:
    """Announced classes that then get samples are like any other."""
    model = fresh(estimator)
    for i, part in enumerate(np.array_split(np.arange(len(rows())), 3)):
        model.partial_fit(rows()[part], labels()[part], **({"classes": [0, 1, 2]} if not i else {}))
    expect_close(output(model), output(fitted(estimator)), "announced classes", tol=_TOL)


def check_bad_labels_change_nothing(estimator: BaseEstimator) -> None:
    """A batch with missing, mixed or miscounted labels leaves every attribute as it was."""
    model = fitted(estimator)
    bad = BAD_LABELS | {"text after numbers": lambda: np.array(["a", "b", "c"])[labels()]}
    for name, y in bad.items():
        with unchanged(model, f"partial_fit with {name}"), refused(name):
            model.partial_fit(rows(), y())


def check_forget_of_unknown_label_is_refused(estimator: BaseEstimator) -> None:
    """Forgetting a label that was never learned is refused and changes nothing."""
    if not hasattr(estimator, "forget"):
        raise SkipTest("no forget")
    model = fitted(estimator)
    with unchanged(model, "A refused forget"), refused("forget of an unknown label"):
        model.forget(rows()[:2], [0, 77])


INCREMENTAL_CHECKS = (
    check_parts_equal_whole,
    check_first_part_may_be_one_row,
    check_fit_starts_anew,
    check_partial_fit_continues_fit,
    check_parts_may_differ_in_container,
    check_failed_partial_fit_changes_nothing,
    check_failed_first_partial_fit_leaves_unfitted,
    check_using_does_not_change_what_is_learned,
    check_forget_equals_never_seen,
    check_failed_forget_changes_nothing,
    check_merge_equals_one_learner,
    check_merge_of_other_width_is_refused,
)

INCREMENTAL_CLASSIFIER_CHECKS = (
    check_forgotten_class_leaves_no_trace,
    check_new_classes_in_any_call,
    check_longer_text_labels_may_follow,
    check_announced_class_is_listed_and_never_predicted,
    check_announcing_is_not_needed,
    check_bad_labels_change_nothing,
    check_forget_of_unknown_label_is_refused,
)
