# SPDX-License-Identifier: BSD-3-Clause
"""Checks of steps that take several layers, (n_samples, n_layers, (n_tokens,) n_features).

What is asked of a pooling of tokens (n, L, d) is asked of them on pooled layers (n, k, d), where it
makes sense; on the tokens of several layers there are checks of their own.
"""

from unittest import SkipTest

import numpy as np
import torch
from sklearn.base import BaseEstimator

from skpool.stores import TokenArray
from skpool.utils._estimator_checks import _tokens as one_layer
from skpool.utils._estimator_checks._tools import (
    N_FEATURES,
    expect,
    expect_close,
    fresh,
    has_parameter,
    refused,
    unchanged,
)

__all__ = ["LAYER_CHECKS"]

N_SAMPLES, N_LAYERS, N_TOKENS = 7, 3, 5


def _layers(dtype: str = "float64") -> np.ndarray:
    shape = (N_SAMPLES, N_LAYERS, N_TOKENS, N_FEATURES)
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def _transformed(estimator: BaseEstimator, X: object) -> object:
    if not has_parameter(estimator, "token_pool"):
        raise SkipTest("it takes pooled layers only")
    return fresh(estimator).fit(X).transform(X)


def check_layers_of_tokens_equal_array(estimator: BaseEstimator) -> None:
    """A TokenArray, a tensor and a lazy source of several layers give what the array gives."""
    X = _layers("float32")
    expected = _transformed(estimator, X)
    for given in (TokenArray.from_layers(X), torch.from_numpy(X)):
        expect_close(_transformed(estimator, given), expected, type(given).__name__, tol=1e-6)
    lazy = TokenArray(one_layer._LazySource(X))
    expect_close(_transformed(estimator, lazy), expected, "lazy", tol=1e-6)


def check_subset_of_layers_equals_subset(estimator: BaseEstimator) -> None:
    """Indexing the samples before or after the step gives the same."""
    X, rows = TokenArray.from_layers(_layers()), np.array([4, 0, 6])
    expected = _transformed(estimator, X)[rows]
    actual = fresh(estimator).fit(X).transform(X[rows])
    expect_close(actual, expected, "view", tol=1e-9)


def check_masked_tokens_of_layers_are_never_read(estimator: BaseEstimator) -> None:
    """What stands under a False mask, NaN included, changes nothing in any layer."""
    X = _layers()
    mask = np.arange(N_TOKENS) < np.array([1 + i % N_TOKENS for i in range(N_SAMPLES)])[:, None]
    seen = mask[:, None, :, None]
    clean = _transformed(estimator, TokenArray.from_layers(np.where(seen, X, 0), mask=mask))
    for garbage in (np.nan, np.inf, -1e30, 1e30):
        dirty = TokenArray.from_layers(np.where(seen, X, garbage), mask=mask)
        expect_close(_transformed(estimator, dirty), clean, f"{garbage} under the mask", tol=1e-12)


def check_prefix_tokens_of_layers_are_accepted(estimator: BaseEstimator) -> None:
    """Tokens with a class token are read sample by sample too."""
    X = TokenArray.from_layers(_layers(), n_prefix_tokens=1)
    expected = _transformed(estimator, X)[[3]]
    expect_close(fresh(estimator).fit(X).transform(X[[3]]), expected, "class token", tol=1e-9)


def check_unreadable_rows_of_layers_are_nan(estimator: BaseEstimator) -> None:
    """A row that its source cannot give is NaN, and the others do not notice."""
    X = _layers("float32")
    others = np.delete(np.arange(N_SAMPLES), 2)
    if not has_parameter(estimator, "token_pool"):
        raise SkipTest("it takes pooled layers only")
    step = fresh(estimator).fit(X)
    out = step.transform(TokenArray(one_layer._LazySource(X, missing=(2,))))
    expect(np.isnan(out[2]).all(), "An unreadable row must give a NaN row.")
    expect_close(out[others], step.transform(X[others]), "readable rows", tol=1e-6)


def check_one_layer_is_refused(estimator: BaseEstimator) -> None:
    """Lazy tokens of one layer have no axis of layers, and are refused."""
    with refused("Tokens of one layer"):
        fresh(estimator).fit(TokenArray.from_array(_layers()[:, 0]))


def check_layers_are_not_changed(estimator: BaseEstimator) -> None:
    """Neither fit nor transform writes to X."""
    X = _layers()
    values = X.copy()
    for given in (X, torch.from_numpy(X), TokenArray.from_layers(X)):
        _transformed(estimator, given)
        expect((X == values).all(), f"A {type(given).__name__} was written to.")


def check_refused_refit_of_layers_changes_nothing(estimator: BaseEstimator) -> None:
    """A fit of X of another width that is then refused leaves the fitted step as it was."""
    step = fresh(estimator).fit(_layers()[:, :, 0])
    X = _layers()[:, :, 0, : N_FEATURES // 2].copy()
    X[5, 0, 3] = np.nan
    for given in (X, torch.from_numpy(X)):
        with unchanged(step, "A refused fit of another width"), refused("NaN", match=r"\b5\b"):
            step.fit(given)


# On arrays (n, k, d) these ask of layers what they ask of tokens.
_SHARED = (
    one_layer.check_tensor_gives_tensor_of_same_values,
    one_layer.check_array_gives_array,
    one_layer.check_list_equals_array,
    one_layer.check_batch_size_does_not_matter,
    one_layer.check_rows_are_independent,
    one_layer.check_read_only_memmap_is_accepted,
    one_layer.check_memory_layout_does_not_matter,
    one_layer.check_half_precision_is_widened,
    one_layer.check_float_type_is_kept,
    one_layer.check_bad_token_names_its_sample,
    one_layer.check_other_width_is_refused,
    one_layer.check_wrong_rank_is_refused,
    one_layer.check_feature_names_match_width,
    one_layer.check_set_output_pandas,
    one_layer.check_clone_gives_the_same,
    one_layer.check_pickle_gives_the_same,
    one_layer.check_transform_changes_no_state,
    one_layer.check_stateless_needs_no_fit,
)

LAYER_CHECKS = (
    *_SHARED,
    check_layers_of_tokens_equal_array,
    check_subset_of_layers_equals_subset,
    check_masked_tokens_of_layers_are_never_read,
    check_prefix_tokens_of_layers_are_accepted,
    check_unreadable_rows_of_layers_are_nan,
    check_one_layer_is_refused,
    check_layers_are_not_changed,
    check_refused_refit_of_layers_changes_nothing,
)
