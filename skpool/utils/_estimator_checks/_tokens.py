# SPDX-License-Identifier: BSD-3-Clause
"""Checks of poolings and other steps that take tokens (n_samples, n_tokens, n_features)."""

import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags

from skpool.stores import ArraySource, RowSource, TokenArray, TokenBatch, assemble
from skpool.utils._estimator_checks._tools import (
    N_FEATURES,
    call,
    expect,
    expect_close,
    fresh,
    has_parameter,
    refused,
    unchanged,
)

__all__ = ["TOKEN_CHECKS"]

N_SAMPLES, HEIGHT, WIDTH = 7, 2, 3
N_TOKENS = HEIGHT * WIDTH


def _tokens(dtype: str = "float64") -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(N_SAMPLES, N_TOKENS, N_FEATURES))
    return values.astype(dtype)


def _labels() -> np.ndarray:
    """Two balanced classes over the samples, for steps that learn from labels."""
    return np.arange(N_SAMPLES) % 2


def _fitted(
    estimator: BaseEstimator, X: object, y: np.ndarray | None = None, **params: object
) -> BaseEstimator:
    """A fitted clone, which saw labels only if its tags require them."""
    copy = fresh(estimator, **params)
    return call(copy.fit, X, _labels() if y is None else y, copy)


def _transformed(
    estimator: BaseEstimator, X: object, y: np.ndarray | None = None, **params: object
) -> object:
    return _fitted(estimator, X, y, **params).transform(X)


def check_token_array_equals_array(estimator: BaseEstimator) -> None:
    """A TokenArray over an array gives what the array gives."""
    X = _tokens()
    actual = _transformed(estimator, TokenArray.from_array(X))
    expect_close(actual, _transformed(estimator, X), "TokenArray and ndarray", tol=1e-12)


def check_map_equals_tokens(estimator: BaseEstimator) -> None:
    """A map (n, height, width, d) is read row by row as tokens."""
    X = _tokens()
    actual = _transformed(estimator, X.reshape(N_SAMPLES, HEIGHT, WIDTH, N_FEATURES))
    expect_close(actual, _transformed(estimator, X), "4-D map and tokens", tol=1e-12)


def check_tensor_gives_tensor_of_same_values(estimator: BaseEstimator) -> None:
    """A tensor gives a tensor with the values of the array."""
    X = _tokens()
    actual = _transformed(estimator, torch.from_numpy(X))
    expect(
        isinstance(actual, torch.Tensor), f"A tensor gave a {type(actual).__name__}, not a tensor."
    )
    expect_close(actual, _transformed(estimator, X), "tensor and ndarray", tol=1e-12)


def check_array_gives_array(estimator: BaseEstimator) -> None:
    """An ndarray gives an ndarray (n_samples, n_out) of finite numbers."""
    out = _transformed(estimator, _tokens())
    expect(isinstance(out, np.ndarray), f"An ndarray gave a {type(out).__name__}.")
    expect(out.ndim == 2 and len(out) == N_SAMPLES, f"The result has shape {out.shape}.")
    expect(np.isfinite(out).all(), "Finite tokens gave NaN or infinity.")


def check_list_equals_array(estimator: BaseEstimator) -> None:
    """A list of (n_tokens, n_features) gives what the array gives."""
    X = _tokens()
    expect_close(_transformed(estimator, list(X)), _transformed(estimator, X), "list", tol=1e-12)


def _ragged(X: np.ndarray) -> list[np.ndarray]:
    return [sample[: 1 + i % N_TOKENS] for i, sample in enumerate(X)]


def check_ragged_list_equals_samples_alone(estimator: BaseEstimator) -> None:
    """Samples of unequal length give what each gives by itself."""
    samples = _ragged(_tokens())
    pooling = _fitted(estimator, samples)
    alone = np.concatenate([pooling.transform(sample[None]) for sample in samples])
    expect_close(pooling.transform(samples), alone, "ragged list and single samples", tol=1e-9)


def check_vector_is_one_token(estimator: BaseEstimator) -> None:
    """(n, d) counts as one token per sample."""
    X = _tokens()[:, 0]
    expect_close(
        _transformed(estimator, X), _transformed(estimator, X[:, None]), "(n, d)", tol=1e-12
    )


def check_batch_size_does_not_matter(estimator: BaseEstimator) -> None:
    """One row at a time gives what all rows at once give."""
    if not has_parameter(estimator, "batch_size"):
        raise SkipTest("no parameter batch_size")
    X = _tokens()
    one = _transformed(estimator, X, batch_size=1)
    expect_close(one, _transformed(estimator, X, batch_size=256), "batch_size=1", tol=1e-9)


def check_rows_are_independent(estimator: BaseEstimator) -> None:
    """transform of some rows, in any order, is these rows of transform."""
    X, rows = _tokens(), np.array([4, 0, 6])
    pooling = _fitted(estimator, X)
    expect_close(pooling.transform(X[rows]), pooling.transform(X)[rows], "subset", tol=1e-9)


def check_lazy_subset_equals_subset(estimator: BaseEstimator) -> None:
    """Indexing a TokenArray before or after the step gives the same."""
    X, rows = TokenArray.from_array(_tokens()), np.array([4, 0, 6])
    pooling = _fitted(estimator, X)
    expect_close(pooling.transform(X[rows]), pooling.transform(X)[rows], "view", tol=1e-9)


def check_masked_tokens_are_never_read(estimator: BaseEstimator) -> None:
    """What stands under a False mask, NaN included, changes nothing."""
    X = _tokens()
    mask = np.arange(N_TOKENS) < np.array([1 + i % N_TOKENS for i in range(N_SAMPLES)])[:, None]
    clean = _transformed(
        estimator, TokenArray.from_array(np.where(mask[..., None], X, 0), mask=mask)
    )
    for garbage in (np.nan, np.inf, -1e30, 1e30):
        dirty = TokenArray.from_array(np.where(mask[..., None], X, garbage), mask=mask)
        expect_close(_transformed(estimator, dirty), clean, f"{garbage} under the mask", tol=1e-12)


def check_full_mask_equals_no_mask(estimator: BaseEstimator) -> None:
    """A mask that is True everywhere is no mask."""
    X = _tokens()
    masked = TokenArray.from_array(X, mask=np.ones((N_SAMPLES, N_TOKENS), dtype=bool))
    expect_close(_transformed(estimator, masked), _transformed(estimator, X), "mask", tol=1e-9)


def check_read_only_memmap_is_accepted(estimator: BaseEstimator) -> None:
    """A memory map opened for reading gives what the array gives."""
    X = _tokens("float32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.npy"
        np.save(path, X)
        mapped = np.load(path, mmap_mode="r")
        actual = _transformed(estimator, mapped)
        del mapped
    expect_close(actual, _transformed(estimator, X), "memory map", tol=1e-6)


def check_memory_layout_does_not_matter(estimator: BaseEstimator) -> None:
    """Column order and negative strides give what the plain array gives."""
    X = _tokens("float32")
    desired = _transformed(estimator, X)
    layouts = {"column order": np.asfortranarray(X), "negative strides": X[::-1].copy()[::-1]}
    for name, values in layouts.items():
        expect_close(_transformed(estimator, values), desired, name, tol=1e-6)


def check_half_precision_is_widened(estimator: BaseEstimator) -> None:
    """float16 tokens give what their float32 copy gives, also where their sums overflow."""
    for scale in (1.0, 15_000.0):
        X = (scale * _tokens()).astype("float16")
        actual, desired = _transformed(estimator, X), _transformed(estimator, X.astype("float32"))
        expect_close(actual, desired, f"float16, values up to {abs(X).max():g}", tol=1e-5)


def check_float_type_is_kept(estimator: BaseEstimator) -> None:
    """float64 stays float64, float32 stays float32, half precision becomes float32."""
    pairs = {"float64": "float64", "float32": "float32", "float16": "float32"}
    for given, wanted in pairs.items():
        for X in (_tokens(given), torch.from_numpy(_tokens(given))):
            dtype = str(_transformed(estimator, X).dtype).removeprefix("torch.")
            expect(dtype == wanted, f"{given} gave {dtype}, expected {wanted}.")


def check_sample_without_real_token_is_refused(estimator: BaseEstimator) -> None:
    """With empty="raise" (or no such parameter) a sample whose mask is all False is refused."""
    mask = np.ones((N_SAMPLES, N_TOKENS), dtype=bool)
    pooling = _fitted(estimator, TokenArray.from_array(_tokens(), mask=mask), empty="raise")
    mask = mask.copy()
    mask[3] = False
    with refused("A sample without a real token", match=r"\b3\b"):
        pooling.transform(TokenArray.from_array(_tokens(), mask=mask))


def check_bad_token_names_its_sample(estimator: BaseEstimator) -> None:
    """NaN or infinity in a real token is refused with the sample's index."""
    pooling = _fitted(estimator, _tokens())
    for value in (np.nan, np.inf, -np.inf):
        X = _tokens()
        X[5, 2, 3] = value
        for verb in (pooling.transform, lambda X: call(pooling.fit, X, _labels(), pooling)):
            with (
                unchanged(pooling, f"A refused call with {value} in X"),
                refused(f"{value} in the tokens of sample 5", match=r"\b5\b"),
            ):
                verb(X)


def check_refused_refit_changes_nothing(estimator: BaseEstimator) -> None:
    """A fit of X of another width that is then refused leaves the fitted step as it was."""
    pooling = _fitted(estimator, _tokens())
    X = _tokens()[:, :, : N_FEATURES // 2].copy()
    X[5, 0, 3] = np.nan
    for given in (X, torch.from_numpy(X), X[:, 0], torch.from_numpy(X)[:, 0]):
        with unchanged(pooling, "A refused fit of another width"), refused("NaN", match=r"\b5\b"):
            call(pooling.fit, given, _labels(), pooling)


def check_other_width_is_refused(estimator: BaseEstimator) -> None:
    """Tokens of another width than fitted are refused with both widths."""
    pooling = _fitted(estimator, _tokens())
    for X in (_tokens()[:, :, :-1], torch.from_numpy(_tokens())[:, :, :-1]):
        with (
            unchanged(pooling, "A refused width"),
            refused("Another width", match=rf"(?s)\b{N_FEATURES - 1}\b.*\b{N_FEATURES}\b"),
        ):
            pooling.transform(X)


def check_wrong_rank_is_refused(estimator: BaseEstimator) -> None:
    """Arrays of rank 1 or 5, text and no samples are refused."""
    X = _tokens()
    cases = {"rank 1": X[0, 0], "rank 5": X[None, None], "no sample": X[:0]}
    cases |= {"text": np.full((2, 3, N_FEATURES), "a"), "no token": X[:, :0]}
    for name, values in cases.items():
        with refused(name):
            _fitted(estimator, values, _labels()[: len(values)])


class _LazySource(RowSource):
    """Rows that come late, backwards, in small batches, and some of them never."""

    def __init__(self, values: np.ndarray, missing: tuple[int, ...] = ()):
        self.inner = ArraySource(values)
        self.n_rows, self.row_shape = len(values), values.shape[1:]
        self.dtype = values.dtype
        self.missing = missing

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        order = np.array([p for p in range(len(rows))[::-1] if rows[p] not in self.missing])
        for start in range(0, len(order), 2):
            positions = order[start : start + 2]
            yield TokenBatch(positions, torch.from_numpy(self.inner.values[rows[positions]]), None)

    def reduce(self, rows, function, *, fingerprint=None, batch_size=None) -> np.ndarray:
        batches = self.stream(rows)
        parts = ((batch.positions, function(batch.tokens, batch.mask)) for batch in batches)
        return assemble(
            parts, len(rows), lambda: function(torch.zeros(1, *self.row_shape), None)
        ).numpy()


def check_lazy_tokens_equal_array(estimator: BaseEstimator) -> None:
    """Tokens that are computed late and out of order give what their array gives."""
    X = _tokens("float32")
    lazy = TokenArray(_LazySource(X))
    expect_close(_transformed(estimator, lazy), _transformed(estimator, X), "lazy", tol=1e-6)


class _KeepingSource(_LazySource):
    """Rows whose vectors are kept under the name of the function, as a store keeps them."""

    def __init__(self, values: np.ndarray):
        super().__init__(values)
        self.kept: dict[str, np.ndarray] = {}

    def reduce(self, rows, function, *, fingerprint=None, batch_size=None) -> np.ndarray:
        if fingerprint is None:
            return super().reduce(rows, function)
        if fingerprint not in self.kept:
            self.kept[fingerprint] = super().reduce(np.arange(self.n_rows), function)
        return self.kept[fingerprint][rows]


def check_store_keeps_what_was_learned_apart(estimator: BaseEstimator) -> None:
    """Of steps fitted on different data, a store never serves the one's vectors to the other."""
    X = _tokens("float32")
    stored = TokenArray(_KeepingSource(X))
    for other in (X, 3 * X - 1):
        pooling = _fitted(estimator, other)
        expect_close(pooling.transform(stored), pooling.transform(X), "stored vectors", tol=1e-6)


def check_unreadable_rows_are_nan(estimator: BaseEstimator) -> None:
    """A row that its source cannot give is NaN, and the others do not notice."""
    X = _tokens("float32")
    others = np.delete(np.arange(N_SAMPLES), 2)
    out = _transformed(estimator, TokenArray(_LazySource(X, missing=(2,))))
    expect(np.isnan(out[2]).all(), "An unreadable row must give a NaN row.")
    desired = _transformed(estimator, X[others], _labels()[others])
    expect_close(out[others], desired, "readable rows", tol=1e-6)


def check_prefix_tokens_are_accepted(estimator: BaseEstimator) -> None:
    """Tokens with a class token are pooled row by row too."""
    X = TokenArray.from_array(_tokens(), n_prefix_tokens=1)
    pooling = _fitted(estimator, X)
    expect_close(pooling.transform(X[[3]]), pooling.transform(X)[[3]], "class token", tol=1e-9)


def check_feature_names_match_width(estimator: BaseEstimator) -> None:
    """get_feature_names_out has one distinct name per output feature."""
    X = _tokens()
    pooling = _fitted(estimator, X)
    names = list(pooling.get_feature_names_out())
    width = pooling.transform(X).shape[1]
    expect(len(names) == width, f"{len(names)} names for {width} features.")
    expect(len(set(names)) == len(names), "Two features have one name.")


def check_set_output_pandas(estimator: BaseEstimator) -> None:
    """set_output(transform="pandas") gives a frame with the names and the values."""
    try:
        import pandas as pd
    except ImportError:
        raise SkipTest("pandas is not installed") from None
    X = _tokens()
    pooling = fresh(estimator).set_output(transform="pandas")
    call(pooling.fit, X, _labels(), pooling)
    frame = pooling.transform(X)
    expect(isinstance(frame, pd.DataFrame), f"set_output gave a {type(frame).__name__}.")
    expect(list(frame.columns) == list(pooling.get_feature_names_out()), "Other column names.")
    expect_close(frame.to_numpy(), _transformed(estimator, X), "values of the frame")


def check_clone_gives_the_same(estimator: BaseEstimator) -> None:
    """A clone of a fitted step, fitted again, gives the same."""
    X = _tokens()
    pooling = _fitted(estimator, X)
    again = clone(pooling)
    call(again.fit, X, _labels(), again)
    expect_close(again.transform(X), pooling.transform(X), "clone")


def check_pickle_gives_the_same(estimator: BaseEstimator) -> None:
    """A fitted step comes back from pickle with its state."""
    X = _tokens()
    pooling = _fitted(estimator, X)
    back = pickle.loads(pickle.dumps(pooling))
    expect_close(back.transform(X), pooling.transform(X), "pickle")


def check_tokens_are_not_changed(estimator: BaseEstimator) -> None:
    """Neither fit nor transform writes to X."""
    X = _tokens()
    values = X.copy()
    for given in (X, torch.from_numpy(X), TokenArray.from_array(X), list(X)):
        _transformed(estimator, given)
        expect((X == values).all(), f"A {type(given).__name__} was written to.")


def check_transform_changes_no_state(estimator: BaseEstimator) -> None:
    """transform leaves every attribute as it was."""
    pooling = _fitted(estimator, _tokens())
    with unchanged(pooling, "transform"):
        pooling.transform(_tokens()[:3])


def check_stateless_needs_no_fit(estimator: BaseEstimator) -> None:
    """A step whose tag says requires_fit=False transforms before fit, to the same values."""
    if get_tags(estimator).requires_fit:
        raise SkipTest("it learns")
    X = _tokens()
    expect_close(fresh(estimator).transform(X), _transformed(estimator, X), "without fit")


TOKEN_CHECKS = (
    check_token_array_equals_array,
    check_map_equals_tokens,
    check_tensor_gives_tensor_of_same_values,
    check_array_gives_array,
    check_list_equals_array,
    check_ragged_list_equals_samples_alone,
    check_vector_is_one_token,
    check_batch_size_does_not_matter,
    check_rows_are_independent,
    check_lazy_subset_equals_subset,
    check_masked_tokens_are_never_read,
    check_full_mask_equals_no_mask,
    check_read_only_memmap_is_accepted,
    check_memory_layout_does_not_matter,
    check_half_precision_is_widened,
    check_float_type_is_kept,
    check_sample_without_real_token_is_refused,
    check_bad_token_names_its_sample,
    check_refused_refit_changes_nothing,
    check_other_width_is_refused,
    check_wrong_rank_is_refused,
    check_lazy_tokens_equal_array,
    check_store_keeps_what_was_learned_apart,
    check_unreadable_rows_are_nan,
    check_prefix_tokens_are_accepted,
    check_feature_names_match_width,
    check_set_output_pandas,
    check_clone_gives_the_same,
    check_pickle_gives_the_same,
    check_tokens_are_not_changed,
    check_transform_changes_no_state,
    check_stateless_needs_no_fit,
)
