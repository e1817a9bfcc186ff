# SPDX-License-Identifier: BSD-3-Clause
"""Does an estimator keep the contracts of skpool? The suite that anybody's step can be put to.

scikit-learn's own suite passes over estimators that take images or tokens, and knows nothing of
tensors, masks, lazy tokens, or classes that arrive later. These checks stand beside it, in its
form. Nothing in the package imports this module: like a test, it uses the other rooms.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import SkipTest

from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils import get_tags

from skpool.pooling import BaseTokenTransformer
from skpool.preprocessing import BaseRowMap
from skpool.utils import _estimator_checks as suite

__all__ = ["check_estimator", "estimator_checks_generator", "parametrize_with_checks"]

_MODES = ("raise", "warn", None)
# Kinds whose checks are one list; vectors and classifiers are put together.
_SUITES = {
    "images": suite.EXTRACTOR_CHECKS,
    "layers": suite.LAYER_CHECKS,
    "maps": suite.MAP_CHECKS,
    "texts": suite.TEXT_CHECKS,
    "token map": suite.TOKEN_MAP_CHECKS,
    "tokens": suite.TOKEN_CHECKS,
}


def _kind(estimator: BaseEstimator) -> str:
    """What the tags say that the estimator takes and gives, or its base where tags cannot."""
    tags = get_tags(estimator)
    if isinstance(estimator, BaseTokenTransformer):
        return "token map"
    if tags.input_tags.three_d_array and tags.transformer_tags is not None:
        # A pooling that must know where tokens lie says so by this attribute.
        tokens = "maps" if getattr(estimator, "_needs_grid", False) else "tokens"
        return tokens if tags.input_tags.two_d_array else "layers"
    if tags.input_tags.string:
        return "texts"
    if not tags.input_tags.two_d_array:
        return "images"
    if is_classifier(estimator):
        return "classifier"
    return "vectors" if tags.transformer_tags is not None else "other"


def _checks_of(estimator: BaseEstimator) -> Iterator["suite.Check"]:
    kind = _kind(estimator)
    if kind in _SUITES:
        yield from _SUITES[kind]
        return
    yield from suite.SHARED_CHECKS
    if kind == "vectors":
        yield from suite.VECTOR_CHECKS
    if isinstance(estimator, BaseRowMap):
        yield from suite.ROW_MAP_CHECKS
    if kind == "classifier":
        yield from suite.CLASSIFIER_CHECKS
    if hasattr(estimator, "partial_fit"):
        yield from suite.INCREMENTAL_CHECKS
        if kind == "classifier":
            yield from suite.INCREMENTAL_CLASSIFIER_CHECKS
            yield from suite.REFUSAL_CHECKS


def _refuse_class(estimator: object) -> None:
    if isinstance(estimator, type):
        raise TypeError(
            f"estimator={estimator.__name__} is a class; pass an instance: {estimator.__name__}()."
        )


def estimator_checks_generator(estimator: BaseEstimator) -> Iterator[tuple]:
    """Yield the checks that concern an estimator.

    Parameters
    ----------
    estimator : estimator
        Never changed: every check works on clones.

    Yields
    ------
    estimator : estimator
    check : callable
        ``check(estimator)`` raises AssertionError, or whatever the estimator raises, where the
        estimator does not keep a contract, and `unittest.SkipTest` where the check does not
        concern it. Its `__name__` and docstring say what it checks.

    Examples
    --------
    >>> from skpool.pooling import TokenPooling
    >>> from skpool.utils.estimator_checks import estimator_checks_generator
    >>> names = [check.__name__ for _, check in estimator_checks_generator(TokenPooling())]
    >>> "check_masked_tokens_are_never_read" in names
    True
    """
    _refuse_class(estimator)
    for check in _checks_of(estimator):
        yield estimator, check


def check_estimator(
    estimator: BaseEstimator,
    *,
    generate_only: bool = False,
    expected_failed_checks: dict[str, str] | None = None,
    on_fail: str | None = "raise",
    callback: Callable[..., None] | None = None,
) -> list[dict[str, Any]] | Iterator[tuple]:
    """Check that an estimator keeps the contracts of skpool.

    Which checks run follows from its tags: ``input_tags.three_d_array`` (tokens in, vectors out;
    without ``input_tags.two_d_array``, several layers in), ``not input_tags.two_d_array`` alone
    (raw images in), else vectors; classifiers, transformers and estimators with `partial_fit` have
    checks of their own, and so have the steps from tokens to tokens that derive from
    :class:`~skpool.pooling.BaseTokenTransformer` or
    :class:`~skpool.preprocessing.BaseRowMap`. Run scikit-learn's
    :func:`~sklearn.utils.estimator_checks.check_estimator` too.

    Parameters
    ----------
    estimator : estimator
        An instance, which must accept 12 features. It is never changed.
    generate_only : bool, default=False
        Whether to return the checks without running them, as `estimator_checks_generator` does.
    expected_failed_checks : dict of str to str, default=None
        Names of checks that may fail, and why.
    on_fail : {"raise", "warn"} or None, default="raise"
        What a failed check does; None only records it.
    callback : callable, default=None
        Called with every result as keyword arguments.

    Returns
    -------
    results : list of dict
        One per check, with "estimator", "check_name", "exception" (None if it passed), "status"
        ("passed", "failed", "xfail" or "skipped"), "expected_to_fail" and
        "expected_to_fail_reason".

    Examples
    --------
    >>> from skpool.preprocessing import L2Normalizer
    >>> from skpool.utils.estimator_checks import check_estimator
    >>> results = check_estimator(L2Normalizer())
    >>> {result["status"] for result in results}
    {'passed'}
    """
    _refuse_class(estimator)
    if on_fail not in _MODES:
        raise ValueError(f"on_fail={on_fail!r} is not valid; choose one of {list(_MODES)}.")
    if generate_only:
        return estimator_checks_generator(estimator)
    results = []
    for check in _checks_of(estimator):
        reason = (expected_failed_checks or {}).get(check.__name__)
        result = _run(check, estimator, reason)
        if result["status"] == "failed":
            _report(result, on_fail)
        if callback is not None:
            callback(**result)
        results.append(result)
    return results


def _run(check: "suite.Check", estimator: BaseEstimator, reason: str | None) -> dict[str, Any]:
    status, exception = "passed", None
    try:
        check(estimator)
    except SkipTest as error:
        status, exception = "skipped", error
    except Exception as error:
        status, exception = "failed" if reason is None else "xfail", error
    return {
        "estimator": estimator,
        "check_name": check.__name__,
        "exception": exception,
        "status": status,
        "expected_to_fail": reason is not None,
        "expected_to_fail_reason": reason,
    }


def _report(result: dict[str, Any], on_fail: str | None) -> None:
    if on_fail == "raise":
        raise result["exception"]
    if on_fail == "warn":
        who = type(result["estimator"]).__name__
        warnings.warn(
            f"{who} fails {result['check_name']}: {result['exception']}", UserWarning, stacklevel=3
        )


def _short(estimator: BaseEstimator) -> str:
    """The estimator in one line of bounded length, for the names of tests."""
    text = " ".join(repr(estimator).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def parametrize_with_checks(
    estimators: Sequence[BaseEstimator],
    *,
    expected_failed_checks: Callable[[BaseEstimator], dict[str, str]] | None = None,
) -> Callable:
    """Decorate a pytest function of (estimator, check) with all checks of some estimators.

    Parameters
    ----------
    estimators : sequence of estimators
        Instances.
    expected_failed_checks : callable, default=None
        Is given an estimator and returns the names of checks that fail, and why; these are marked
        as expected failures, and must fail.

    Returns
    -------
    decorator : pytest.mark.parametrize

    Examples
    --------
    >>> from skpool.pooling import GeMPooling
    >>> from skpool.utils.estimator_checks import parametrize_with_checks
    >>> @parametrize_with_checks([GeMPooling()])
    ... def test_pooling_keeps_contracts(estimator, check):
    ...     check(estimator)
    """
    import pytest

    cases = []
    for estimator in estimators:
        expected = {} if expected_failed_checks is None else expected_failed_checks(estimator)
        for _, check in estimator_checks_generator(estimator):
            reason = expected.get(check.__name__)
            marks = () if reason is None else pytest.mark.xfail(reason=reason, strict=True)
            name = f"{_short(estimator)}-{check.__name__}"
            cases.append(pytest.param(estimator, check, marks=marks, id=name))
    return pytest.mark.parametrize("estimator, check", cases)
