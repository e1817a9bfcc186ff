# SPDX-License-Identifier: BSD-3-Clause
"""What a classifier with partial_fit refuses: in one sentence, and with its state untouched.

One table of bad calls to every method that learns, forgets, merges or is asked for too much; two
checks walk over it.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import has_fit_parameter

from skpool.utils._estimator_checks._tools import expect, expect_close, fresh, unchanged
from skpool.utils._estimator_checks._vectors import fitted, labels, output, rows

__all__ = ["REFUSAL_CHECKS"]

_LEARNING = ("fit", "partial_fit", "forget")
_LATER = ("partial_fit", "forget")
# A sentence longer than this is read by nobody.
_LONGEST = 400


class _Bad(NamedTuple):
    """A call that must be refused, and the pattern of what its message must name."""

    what: str
    method: str
    match: str
    args: tuple
    options: dict = {}

    def error(self, model: BaseEstimator) -> Exception | None:
        """Make the call; the refusal, or None if there was none."""
        try:
            getattr(model, self.method)(*self.args, **self.options)
        except (ValueError, TypeError) as error:
            return error
        return None


def _of_rows() -> Iterator[_Bad]:
    X, y = rows()[:6], labels()[:6]
    d = X.shape[1]
    bad = {
        "a narrower X": (X[:, :-1], rf"\b{d - 1}\b.*\b{d}\b", _LATER),
        "a wider X": (np.hstack([X, X]), rf"\b{2 * d}\b.*\b{d}\b", _LATER),
        "an empty X": (X[:0], r"\b0 sample", _LEARNING),
    }
    for value, word in ((np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")):
        spoilt = X.copy()
        spoilt[4, 2] = value
        bad[f"{value} in row 4"] = (spoilt, rf"X.*{word}.*\b4\b", _LEARNING)
    for what, (given, match, methods) in bad.items():
        for method in methods:
            yield _Bad(what, method, match, (given, y[: len(given)]))
            yield _Bad(
                f"a tensor: {what}", method, match, (torch.from_numpy(given), y[: len(given)])
            )


def _of_labels() -> Iterator[_Bad]:
    X, y = rows()[:6], labels()[:6]
    bad = {
        "text and numbers": ["a", 1, "a", 1, "a", 1],
        "a missing label": np.array([0, 1, None, 0, 1, 2], dtype=object),
        "NaN for a label": [0.0, 1.0, np.nan, 0.0, 1.0, 2.0],
        "fractions for labels": y + 0.5,
        "a label too few": y[:-1],
    }
    for what, given in bad.items():
        for method in _LEARNING:
            yield _Bad(what, method, r"\by\b|[Ll]abel", (X, given))
    for method in _LATER:
        yield _Bad("text after numbers", method, r"\by\b|[Ll]abel", (X, list("abcabc")))
    announced = {"classes": ["a", "b"]}
    yield _Bad("classes of text", "partial_fit", r"classes|\by\b|[Ll]abel", (X, y), announced)


def _of_weights() -> Iterator[_Bad]:
    X, y, ones = rows()[:6], labels()[:6], np.ones(6)
    bad = {
        "a negative weight": np.where(np.arange(6) == 3, -1.0, 1.0),
        "NaN for a weight": np.where(np.arange(6) == 3, np.nan, 1.0),
        "an infinite weight": np.where(np.arange(6) == 3, np.inf, 1.0),
        "no weight above 0": 0 * ones,
        "a weight too few": ones[:-1],
    }
    for what, given in bad.items():
        for method in _LEARNING:
            yield _Bad(what, method, "(?i)sample.?weight", (X, y), {"sample_weight": given})


def _of_removals() -> Iterator[_Bad]:
    X, y = rows(), labels()
    never = r"(?i)forget|remove|stored|learned|seen"
    yield _Bad("an unknown label", "forget", r"\b77\b", (X[:2], [0, 77]))
    yield _Bad("more samples than are held", "forget", never, (X.repeat(2, 0), y.repeat(2)))
    yield _Bad("an unknown label", "forget_class", r"\b77\b", (77,))
    yield _Bad("a label of text", "forget_class", "cat", ("cat",))


def _of_merges(estimator: BaseEstimator) -> Iterator[_Bad]:
    narrow = fitted(estimator, rows()[:, ::2])
    text = fitted(estimator, rows(), np.array(["a", "b", "c"])[labels()])
    yield _Bad("another width", "merge", r"\b6\b.*\b12\b|\b12\b.*\b6\b", (narrow,))
    yield _Bad("text with numbers", "merge", "[Ll]abel|text", (text,))
    yield _Bad("an estimator that is not fitted", "merge", "fitted", (fresh(estimator),))
    yield _Bad("another class", "merge", "BaseEstimator", (BaseEstimator(),))


def _of_blocks() -> Iterator[_Bad]:
    X, y = rows(), labels()
    spoilt = X[20:40].copy()
    spoilt[4, 2] = np.nan
    good = (X[:20], y[:20])
    bad = {
        "no block": ((), "blocks"),
        "NaN after a good block": ((good, (spoilt, y[20:40])), r"NaN.*\b4\b"),
        "blocks of two widths": ((good, (X[20:, ::2], y[20:])), r"\b6\b"),
        "blocks of text and of numbers": ((good, (X[20:40], ["a", "b"] * 10)), "[Ll]abel|text"),
    }
    for what, (blocks, match) in bad.items():
        yield _Bad(what, "fit_blocks", match, (blocks,))


def _bad_calls(estimator: BaseEstimator) -> Iterator[_Bad]:
    """Every bad call of a method that the estimator has."""
    calls = [*_of_rows(), *_of_labels(), *_of_removals(), *_of_blocks()]
    if has_fit_parameter(estimator, "sample_weight"):
        calls += _of_weights()
    if hasattr(estimator, "merge"):
        calls += _of_merges(estimator)
    n = len(rows())
    asked = {"n_neighbors": n + 1}
    calls.append(_Bad("too many", "kneighbors", rf"\b{n + 1}\b.*\b{n}\b", (rows()[:2],), asked))
    yield from (bad for bad in calls if hasattr(estimator, bad.method))


def check_bad_calls_change_nothing(estimator: BaseEstimator) -> None:
    """What is refused, by whatever method learns or forgets, leaves every byte as it was."""
    model = fitted(estimator)
    desired = np.array(output(model))
    for bad in _bad_calls(estimator):
        with unchanged(model, f"{bad.method} with {bad.what}"):
            refusal = bad.error(model)
        expect(refusal is not None, f"{bad.method} with {bad.what} was accepted.")
    expect_close(output(model), desired, "after refused calls")


def check_refusals_are_one_sentence(estimator: BaseEstimator) -> None:
    """A refusal is one sentence that names the argument or the value."""
    model = fitted(estimator)
    for bad in _bad_calls(estimator):
        text = str(bad.error(model))
        said = re.fullmatch(r"[^\n]+[.!]", text) and len(text) <= _LONGEST
        expect(
            said, f"{bad.method} with {bad.what} is refused by more or less than a sentence: {text}"
        )
        expect(
            re.search(bad.match, text),
            f"{bad.method} with {bad.what}: the message does not match {bad.match!r}: {text}",
        )


REFUSAL_CHECKS = (check_bad_calls_change_nothing, check_refusals_are_one_sentence)
