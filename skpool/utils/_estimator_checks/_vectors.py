# SPDX-License-Identifier: BSD-3-Clause
"""Checks of transformers of vectors (n_samples, n_features), and of what classifiers share."""

import pickle
from collections.abc import Callable, Iterator
from unittest import SkipTest

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import get_tags

from skpool.preprocessing import BaseRowMap
from skpool.utils._estimator_checks._tools import (
    N_FEATURES,
    call,
    expect,
    expect_close,
    fresh,
    refused,
    unchanged,
)

__all__ = ["SHARED_CHECKS", "VECTOR_CHECKS", "fitted", "labels", "output", "rows"]

N_SAMPLES = 60


def labels() -> np.ndarray:
    """Three classes, each in every part of the data."""
    return np.arange(N_SAMPLES) % 3


def rows(dtype: str = "float64") -> np.ndarray:
    """Vectors of three classes that a classifier can tell apart."""
    rng = np.random.default_rng(0)
    centers = 2.0 * rng.normal(size=(3, N_FEATURES))
    return (centers[labels()] + rng.normal(size=(N_SAMPLES, N_FEATURES))).astype(dtype)


def fitted(estimator: BaseEstimator, X: object = None, y: object = None) -> BaseEstimator:
    """A fitted clone, on the given data or the data above."""
    copy = fresh(estimator)
    X, y = rows() if X is None else X, labels() if y is None else y
    return call(copy.fit, X, y, copy)


def output_method(estimator: BaseEstimator) -> Callable:
    """The most telling method of a fitted estimator."""
    names = ("transform", "predict_proba", "decision_function", "score_samples", "predict")
    return next(getattr(estimator, name) for name in names if hasattr(estimator, name))


def output(estimator: BaseEstimator, X: object = None) -> object:
    """What a fitted estimator says of X."""
    return output_method(estimator)(rows() if X is None else X)


# Of all estimators on vectors.


def check_tensor_equals_array(estimator: BaseEstimator) -> None:
    """Fitting and using tensors gives what arrays give."""
    X, y = rows(), labels()
    desired = output(fitted(estimator, X), X)
    on_tensors = output(fitted(estimator, torch.from_numpy(X), torch.from_numpy(y)), X)
    expect_close(on_tensors, desired, "fit of a tensor", tol=1e-8)
    of_tensors = output(fitted(estimator, X), torch.from_numpy(X))
    expect_close(of_tensors, desired, "use of a tensor", tol=1e-8)


def check_half_precision_equals_its_float32_copy(estimator: BaseEstimator) -> None:
    """float16 rows give what their float32 copy gives, also where their sums overflow."""
    for scale in (1.0, 4000.0):
        X = (scale * rows()).astype("float16")
        wide = X.astype("float32")
        desired = output(fitted(estimator, wide), wide)
        for given in (X, torch.from_numpy(X)):
            actual = output(fitted(estimator, given), given)
            expect_close(actual, desired, f"float16, values up to {abs(wide).max():g}", tol=1e-4)


def check_single_precision_is_near_double(estimator: BaseEstimator) -> None:
    """float32 rows give what their float64 copy gives, to the precision of float32."""
    X = rows("float32")
    wide = X.astype("float64")
    actual = output(fitted(estimator, X), X)
    expect_close(actual, output(fitted(estimator, wide), wide), "float32", tol=1e-3)


def _layouts(X: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    read_only = X.copy()
    read_only.flags.writeable = False
    yield "a read-only array", read_only
    yield "an array in column order", np.asfortranarray(X)
    yield "an array with negative strides", X[::-1].copy()[::-1]
    yield "a strided array", np.repeat(X, 2, axis=1)[:, ::2]
    yield "a big-endian array", X.astype(X.dtype.newbyteorder(">"))


def check_memory_layout_does_not_matter(estimator: BaseEstimator) -> None:
    """Order, strides, byte order and write permission of X change nothing."""
    for dtype in ("float64", "float32"):
        X = rows(dtype)
        desired = output(fitted(estimator, X), X)
        for name, values in _layouts(X):
            expect_close(output(fitted(estimator, values), values), desired, name, tol=1e-4)


def check_bad_row_is_named_and_changes_nothing(estimator: BaseEstimator) -> None:
    """NaN or infinity is refused with the row's index, in fit and after it."""
    model = fitted(estimator)
    for value in (np.nan, np.inf, -np.inf):
        X = rows()
        X[17, 3] = value
        for given in (X, torch.from_numpy(X)):
            for verb in (lambda X: call(model.fit, X, labels(), model), output_method(model)):
                with (
                    unchanged(model, f"A refused call with {value} in X"),
                    refused(f"{value} in row 17", match=r"\b17\b"),
                ):
                    verb(given)


def check_refused_refit_changes_nothing(estimator: BaseEstimator) -> None:
    """A fit of X of another width that is then refused leaves the fitted estimator as it was."""
    model = fitted(estimator)
    X = rows()[:, ::2].copy()
    X[17, 3] = np.nan
    for given in (X, torch.from_numpy(X)):
        with unchanged(model, "A refused fit of another width"), refused("NaN", match=r"\b17\b"):
            call(model.fit, given, labels(), model)


def check_other_width_is_refused_and_changes_nothing(estimator: BaseEstimator) -> None:
    """X of another width than fitted is refused with both widths."""
    model = fitted(estimator)
    for X in (rows()[:, :-1], torch.from_numpy(rows())[:, :-1]):
        with (
            unchanged(model, "A refused width"),
            refused("Another width", match=rf"(?s)\b{N_FEATURES - 1}\b.*\b{N_FEATURES}\b"),
        ):
            output(model, X)


def check_wrong_rank_is_refused(estimator: BaseEstimator) -> None:
    """Tensors and arrays that are not (n_samples, n_features) are refused."""
    X = rows()
    cases = {"rank 1": X[0], "rank 3": X[None], "no sample": X[:0]}
    if get_tags(estimator).input_tags.three_d_array:
        cases["rank 4"] = cases.pop("rank 3")[None]
    if isinstance(getattr(estimator, "transformer", estimator), BaseRowMap):
        # Tokens and maps of tokens are as good as vectors to a step on the last axis.
        cases["rank 5"] = cases.pop("rank 3")[None, None]
    for name, values in cases.items():
        for given in (values, torch.from_numpy(values)):
            with refused(f"X of {name}"):
                fitted(estimator, given, labels()[: len(values)])


def check_input_is_not_changed(estimator: BaseEstimator) -> None:
    """No method writes to X."""
    X = rows()
    values = X.copy()
    for given in (X, torch.from_numpy(X)):
        output(fitted(estimator, given), given)
        expect((X == values).all(), f"A {type(given).__name__} was written to.")


def check_state_does_not_share_memory_with_input(estimator: BaseEstimator) -> None:
    """What is learned does not follow X when X is overwritten later."""
    X = rows()
    model = fitted(estimator, X)
    desired = np.array(output(model, rows()))
    X[:] = 7.0
    expect_close(output(model, rows()), desired, "after X was overwritten")


def check_pickle_gives_the_same_output(estimator: BaseEstimator) -> None:
    """A fitted estimator comes back from pickle with its state."""
    model = fitted(estimator)
    expect_close(output(pickle.loads(pickle.dumps(model))), output(model), "pickle", tol=1e-12)


def check_rows_do_not_see_each_other(estimator: BaseEstimator) -> None:
    """The output for a row does not depend on the batch that it comes in."""
    model, X = fitted(estimator), rows()
    whole = output(model, X)
    some = np.array([40, 3, 59])
    expect_close(output(model, X[some]), whole[some], "some rows", tol=1e-8)
    for i in (0, 31):
        expect_close(output(model, X[[i]]), whole[[i]], "one row", tol=1e-8)


def check_fitted_attributes_are_on_the_host(estimator: BaseEstimator) -> None:
    """Public fitted attributes are not tensors, also after a fit of tensors."""
    model = fitted(estimator, torch.from_numpy(rows()), torch.from_numpy(labels()))
    tensors = [name for name, value in vars(model).items() if isinstance(value, torch.Tensor)]
    expect(not tensors, f"{tensors} are tensors; fitted attributes are numpy arrays.")


# Of transformers alone.


def check_array_gives_array_of_its_float_type(estimator: BaseEstimator) -> None:
    """float64 and float32 arrays keep their type, float16 becomes float32."""
    for given, wanted in {"float64": "float64", "float32": "float32", "float16": "float32"}.items():
        out = output(fitted(estimator, rows(given)), rows(given))
        expect(isinstance(out, np.ndarray), f"An ndarray gave a {type(out).__name__}.")
        expect(out.dtype == wanted, f"{given} gave {out.dtype}, expected {wanted}.")


def check_tensor_gives_tensor_of_its_float_type(estimator: BaseEstimator) -> None:
    """Tensors come back as tensors; half precision as float32."""
    model = fitted(estimator)
    half = torch.float16, torch.bfloat16
    for dtype in (torch.float64, torch.float32, *half):
        out = output(model, torch.from_numpy(rows()).to(dtype))
        expect(isinstance(out, torch.Tensor), f"A tensor gave a {type(out).__name__}.")
        wanted = torch.float32 if dtype in half else dtype
        expect(out.dtype == wanted, f"{dtype} gave {out.dtype}, expected {wanted}.")


def check_output_is_finite(estimator: BaseEstimator) -> None:
    """Finite rows give finite rows, one each."""
    out = output(fitted(estimator))
    expect(out.ndim == 2 and len(out) == N_SAMPLES, f"The result has shape {out.shape}.")
    expect(np.isfinite(out).all(), "Finite rows gave NaN or infinity.")


def check_feature_names_match_width(estimator: BaseEstimator) -> None:
    """get_feature_names_out has one distinct name per output feature."""
    model = fitted(estimator)
    names, width = list(model.get_feature_names_out()), output(model).shape[1]
    expect(len(names) == width, f"{len(names)} names for {width} features.")
    expect(len(set(names)) == len(names), "Two features have one name.")


def check_stateless_needs_no_fit(estimator: BaseEstimator) -> None:
    """A step whose tag says requires_fit=False transforms before fit, to the same values."""
    if get_tags(estimator).requires_fit:
        raise SkipTest("it learns")
    expect_close(fresh(estimator).transform(rows()), output(fitted(estimator)), "without fit")


SHARED_CHECKS = (
    check_tensor_equals_array,
    check_half_precision_equals_its_float32_copy,
    check_single_precision_is_near_double,
    check_memory_layout_does_not_matter,
    check_bad_row_is_named_and_changes_nothing,
    check_refused_refit_changes_nothing,
    check_other_width_is_refused_and_changes_nothing,
    check_wrong_rank_is_refused,
    check_input_is_not_changed,
    check_state_does_not_share_memory_with_input,
    check_pickle_gives_the_same_output,
    check_rows_do_not_see_each_other,
    check_fitted_attributes_are_on_the_host,
)

VECTOR_CHECKS = (
    check_array_gives_array_of_its_float_type,
    check_tensor_gives_tensor_of_its_float_type,
    check_output_is_finite,
    check_feature_names_match_width,
    check_stateless_needs_no_fit,
)
