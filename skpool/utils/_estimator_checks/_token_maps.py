# SPDX-License-Identifier: BSD-3-Clause
"""Checks of steps that make tokens of tokens, and of row steps where they are given tokens.

A step between extraction and pooling must stay lazy, keep what tokens have beside their values,
and never read what is masked. Where it stands, errors hide: the pooling after it reads whatever it
gives. So most checks look at the tokens themselves, and some at what a pooling makes of them.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import SkipTest

import numpy as np
import torch
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags

from skpool.pooling import TokenPooling
from skpool.stores import TokenArray, TokenBatch
from skpool.utils._estimator_checks._tokens import _KeepingSource, _LazySource
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

__all__ = ["ROW_MAP_CHECKS", "TOKEN_MAP_CHECKS"]

# A class token before patches on a grid: steps may need either.
N_SAMPLES, GRID, N_PREFIX = 7, (2, 3), 1
N_PATCHES = GRID[0] * GRID[1]
N_TOKENS = N_PREFIX + N_PATCHES
FACTS = {"n_prefix_tokens": N_PREFIX, "grid": GRID}


def _values(dtype: str = "float64", n_tokens: int = N_TOKENS) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(N_SAMPLES, n_tokens, N_FEATURES))
    return values.astype(dtype)


def _tokens(values: object = None, mask: np.ndarray | None = None) -> TokenArray:
    return TokenArray.from_array(_values() if values is None else values, mask=mask, **FACTS)


def _mask() -> np.ndarray:
    """Class tokens are real, and from one patch to all of them."""
    n_real = np.array([1 + i % N_PATCHES for i in range(N_SAMPLES)])
    return np.arange(N_TOKENS) < N_PREFIX + n_real[:, None]


def _fitted(estimator: BaseEstimator, X: object = None, **params: object) -> BaseEstimator:
    copy = fresh(estimator, **params)
    return call(copy.fit, _tokens() if X is None else X, np.arange(N_SAMPLES) % 2, copy)


def _mapped(estimator: BaseEstimator, X: object) -> object:
    return _fitted(estimator, X).transform(X)


def _real(tokens: TokenArray) -> np.ndarray:
    """The tokens as an array, zeros where they are masked."""
    values, mask = np.asarray(tokens), tokens.mask
    return values if mask is None else np.where(mask[..., None], values, 0.0)


@contextmanager
def _or_skip() -> Iterator[None]:
    """Skip where a step refuses tokens that have no class token, or no grid."""
    try:
        yield
    except ValueError as error:
        if "class token" in str(error) or "grid" in str(error):
            raise SkipTest(f"it does not take such tokens: {error}") from None
        raise


def _patches() -> np.ndarray:
    return _values(n_tokens=N_PATCHES)


def _fitted_on_patches(estimator: BaseEstimator) -> BaseEstimator:
    """Fitted on tokens as an array holds them: without a class token."""
    with _or_skip():
        return _fitted(estimator, TokenArray.from_array(_patches(), grid=GRID))


class _CountedSource(_LazySource):
    """Rows that come late, with a class token and a grid, and how often they were asked for."""

    n_prefix_tokens, grid = N_PREFIX, GRID

    def __init__(self, values: np.ndarray, missing: tuple[int, ...] = ()):
        super().__init__(values, missing)
        self.n_reads = 0

    def stream(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[TokenBatch]:
        self.n_reads += 1
        return super().stream(rows, batch_size)


class _KeptSource(_KeepingSource):
    """The same, whose vectors are kept under the name of the function."""

    n_prefix_tokens, grid = N_PREFIX, GRID


# Containers.


def check_token_array_stays_lazy(estimator: BaseEstimator) -> None:
    """Tokens that are to be computed come back as a TokenArray, and transform computes none."""
    source = _CountedSource(_values("float32"))
    out = _fitted(estimator).transform(TokenArray(source))
    expect(isinstance(out, TokenArray), f"A TokenArray gave a {type(out).__name__}.")
    expect(len(out) == N_SAMPLES, f"{N_SAMPLES} samples gave {len(out)}.")
    expect(source.n_reads == 0, "transform read the tokens, which nobody had asked for yet.")
    expect(not out.in_memory, "Tokens that are to be computed are said to be in memory.")


def check_lazy_tokens_equal_those_in_memory(estimator: BaseEstimator) -> None:
    """Tokens that come late and out of order give what their array gives, fitted on either."""
    values = _values("float32")
    desired = _real(_mapped(estimator, _tokens(values)))
    lazy = TokenArray(_CountedSource(values))
    expect_close(_mapped(estimator, lazy), desired, "lazy tokens", tol=1e-5)


def check_array_of_tokens_gives_array(estimator: BaseEstimator) -> None:
    """An ndarray (n, L, d) gives an ndarray with the tokens of its TokenArray."""
    step, X = _fitted_on_patches(estimator), _patches()
    with _or_skip():
        out = step.transform(X)
    expect(isinstance(out, np.ndarray), f"An ndarray gave a {type(out).__name__}.")
    expect_close(out, step.transform(TokenArray.from_array(X)), "ndarray", tol=1e-12)


def check_tensor_of_tokens_gives_tensor(estimator: BaseEstimator) -> None:
    """A tensor (n, L, d) gives a tensor with the tokens of the array."""
    step, X = _fitted_on_patches(estimator), _patches()
    with _or_skip():
        out = step.transform(torch.from_numpy(X))
    expect(isinstance(out, torch.Tensor), f"A tensor gave a {type(out).__name__}.")
    expect_close(out, step.transform(X), "tensor and ndarray", tol=1e-12)


def check_map_gives_map(estimator: BaseEstimator) -> None:
    """A map (n, height, width, d) gives a map, or tokens where their grid is lost."""
    step, X = _fitted_on_patches(estimator), _patches()
    for given in (X, torch.from_numpy(X)):
        out = step.transform(given.reshape(N_SAMPLES, *GRID, N_FEATURES))
        tokens = step.transform(TokenArray.from_array(given, grid=GRID))
        desired = np.asarray(tokens)
        if tokens.grid is not None:
            desired = desired.reshape(N_SAMPLES, *tokens.grid, desired.shape[-1])
        expect(isinstance(out, type(given)), f"A map gave a {type(out).__name__}.")
        expect_close(out, desired, "map", tol=1e-12)


def _ragged() -> list[np.ndarray]:
    return [sample[: 1 + i % N_PATCHES] for i, sample in enumerate(_patches())]


def check_ragged_samples_equal_samples_alone(estimator: BaseEstimator) -> None:
    """A list of (n_tokens_i, n_features) gives a TokenArray with what each gives by itself."""
    samples = _ragged()
    with _or_skip():
        step = _fitted(estimator, samples)
    out = step.transform(samples)
    expect(isinstance(out, TokenArray), f"A list gave a {type(out).__name__}.")
    for i, sample in enumerate(samples):
        alone = step.transform([sample])
        # Where padding stands is the step's own business.
        whole, single = (np.asarray(X)[X.mask] for X in (out[[i]], alone))
        expect_close(whole, single, f"sample {i} in a list and alone", tol=1e-9)


# What tokens have beside their values.


def check_facts_of_tokens_hold(estimator: BaseEstimator) -> None:
    """Shape, type, mask, prefix and grid of the result are those of the tokens that come."""
    for mask in (None, _mask()):
        out = _mapped(estimator, _tokens(_values("float32"), mask))
        expect(out.n_prefix_tokens == N_PREFIX, "The prefix tokens are not said to be there.")
        expect(out.cls_index == 0, "The class token is not where it was.")
        n_patches = out.shape[1] - out.n_prefix_tokens
        holds = out.grid is None or out.grid[0] * out.grid[1] == n_patches
        expect(holds, f"grid={out.grid} does not hold {n_patches} patches.")
        expect((out.mask is None) == (mask is None), "A mask came or went.")
        for positions, values, part in out.iter_batches(2):
            expect(tuple(values.shape[1:]) == out.shape[1:], f"{values.shape} in {out.shape}.")
            dtype = str(values.dtype).removeprefix("torch.")
            expect(dtype == out.dtype, f"Tokens of {dtype} are said to be {out.dtype}.")
            if mask is not None:
                expect((part.numpy() == out.mask[positions]).all(), "The mask is another.")


def check_float_type_of_tokens_is_kept(estimator: BaseEstimator) -> None:
    """float64 stays float64, float32 stays float32, half precision becomes float32."""
    for given, wanted in {"float64": "float64", "float32": "float32", "float16": "float32"}.items():
        batch = next(_mapped(estimator, _tokens(_values(given))).iter_batches())
        dtype = str(batch.tokens.dtype).removeprefix("torch.")
        expect(dtype == wanted, f"{given} gave {dtype}, expected {wanted}.")


def check_half_precision_tokens_are_widened(estimator: BaseEstimator) -> None:
    """float16 tokens give what their float32 copy gives, also where their sums overflow."""
    for scale in (1.0, 15_000.0):
        values = (scale * _values()).astype("float16")
        actual = _mapped(estimator, _tokens(values))
        desired = _mapped(estimator, _tokens(values.astype("float32")))
        expect_close(actual, desired, f"float16, values up to {abs(values).max():g}", tol=1e-5)


# Masks.


def check_masked_tokens_leak_nowhere(estimator: BaseEstimator) -> None:
    """What stands under a False mask, NaN included, changes no real token and no state."""
    values, mask = _values(), _mask()
    clean = _real(_mapped(estimator, _tokens(np.where(mask[..., None], values, 0.0), mask)))
    for garbage in (np.nan, np.inf, -1e30, 1e30):
        out = _mapped(estimator, _tokens(np.where(mask[..., None], values, garbage), mask))
        expect(np.isfinite(np.asarray(out)).all(), f"{garbage} under the mask came through.")
        expect_close(_real(out), clean, f"{garbage} under the mask", tol=1e-12)


def check_full_mask_of_tokens_equals_no_mask(estimator: BaseEstimator) -> None:
    """A mask that is True everywhere is no mask."""
    full = _mapped(estimator, _tokens(mask=np.ones((N_SAMPLES, N_TOKENS), dtype=bool)))
    expect_close(_real(full), _real(_mapped(estimator, _tokens())), "mask", tol=1e-9)


# Rows and batches.


def check_view_of_tokens_equals_view(estimator: BaseEstimator) -> None:
    """Indexing a TokenArray before or after the step gives the same, one sample too."""
    X = _tokens(mask=_mask())
    step = _fitted(estimator, X)
    out = step.transform(X)
    whole = _real(out)
    for rows in (np.array([4, 0, 6]), np.array([3])):
        expect_close(_real(step.transform(X[rows])), whole[rows], "step of a view", tol=1e-9)
        expect_close(_real(out[rows]), whole[rows], "view of the result", tol=1e-9)


def check_batches_of_tokens_do_not_matter(estimator: BaseEstimator) -> None:
    """Tokens are the same one sample at a time; what is learned is so to the last bit."""
    out = _mapped(estimator, _tokens())
    one = np.concatenate([batch.tokens for batch in out.iter_batches(1)])
    expect_close(one, np.asarray(out), "one sample at a time", tol=1e-9)
    if has_parameter(estimator, "batch_size"):
        steps = [_fitted(estimator, batch_size=size) for size in (1, 3, 256)]
        first, *others = [np.asarray(step.transform(_tokens())) for step in steps]
        for other in others:
            expect_close(other, first, "batch_size of fit")


# What a pooling makes of the result.


def check_pooling_after_step_equals_pooled_array(estimator: BaseEstimator) -> None:
    """A pooling streams the result as it would pool the array that the result becomes."""
    for mask in (None, _mask()):
        X = _tokens(mask=mask)
        for pooling in (TokenPooling(("cls", "mean")), TokenPooling("max", scope="all")):
            step = fresh(estimator)
            streamed = make_pipeline(step, pooling).fit(X, np.arange(N_SAMPLES) % 2).transform(X)
            out = step.transform(X)
            facts = {"n_prefix_tokens": out.n_prefix_tokens, "grid": out.grid}
            array = TokenArray.from_array(np.asarray(out), mask=out.mask, **facts)
            expect_close(streamed, clone(pooling).fit_transform(array), "pooled", tol=1e-9)


def check_store_keeps_steps_apart(estimator: BaseEstimator) -> None:
    """A store never serves vectors of other tokens: of no step, or of one fitted otherwise."""
    values = _values("float32")
    stored = TokenArray(_KeptSource(values))
    pooling = TokenPooling().fit(stored)
    pooling.transform(stored)
    for other in (values, 3 * values**2 - 1):
        step = _fitted(estimator, _tokens(other))
        desired = _pooled(step.transform(_tokens(values)))
        expect_close(_pooled(step.transform(stored)), desired, "stored vectors", tol=1e-5)


def _pooled(tokens: TokenArray) -> object:
    """The mean of the patches."""
    return TokenPooling().fit_transform(tokens)


def check_unreadable_sample_of_tokens_is_nan(estimator: BaseEstimator) -> None:
    """A sample that its source cannot give is NaN, and fit and the others do not notice."""
    values = _values("float32")
    others = np.delete(np.arange(N_SAMPLES), 2)
    broken = TokenArray(_CountedSource(values, missing=(2,)))
    step = _fitted(estimator, broken)
    out = step.transform(broken)
    expect(np.isnan(np.asarray(out)[2]).all(), "An unreadable sample must be NaN.")
    expect(np.isnan(_pooled(out)[2]).all(), "An unreadable sample must pool to NaN.")
    copy = fresh(estimator)
    call(copy.fit, _tokens(values[others]), others % 2, copy)
    desired = copy.transform(_tokens(values[others]))
    expect_close(np.asarray(out)[others], desired, "readable samples", tol=1e-5)


# Refusals.


def check_bad_token_is_named_by_its_sample(estimator: BaseEstimator) -> None:
    """NaN or infinity in a real token is refused with the sample's index, and changes nothing."""
    step = _fitted(estimator)
    for value in (np.nan, np.inf, -np.inf):
        values = _values()
        values[5, 2, 3] = value
        for verb in (step.transform, lambda X: call(step.fit, X, np.arange(N_SAMPLES) % 2, step)):
            with (
                unchanged(step, f"A refused call with {value} in X"),
                refused(f"{value} in the tokens of sample 5", match=r"\b5\b"),
            ):
                verb(_tokens(values))


def check_other_width_of_tokens_is_refused(estimator: BaseEstimator) -> None:
    """Tokens of another width than fitted are refused, and a refused fit changes nothing."""
    step = _fitted(estimator)
    narrow = _values()[:, :, : N_FEATURES // 2].copy()
    both = rf"(?s)\b{N_FEATURES // 2}\b.*\b{N_FEATURES}\b"
    with unchanged(step, "A refused width"), refused("Another width", match=both):
        step.transform(_tokens(narrow))
    narrow[5, 2, 3] = np.nan
    with unchanged(step, "A refused fit of another width"), refused("NaN", match=r"\b5\b"):
        call(step.fit, _tokens(narrow), np.arange(N_SAMPLES) % 2, step)


def check_other_ranks_of_tokens_are_refused(estimator: BaseEstimator) -> None:
    """Arrays of rank 1 or 5, no samples and text are refused."""
    X = _values()
    cases = {"rank 1": X[0, 0], "rank 5": X[None, None], "no sample": X[:0]}
    for name, values in (cases | {"text": np.full(X.shape, "a")}).items():
        with refused(f"Tokens of {name}"):
            _fitted(estimator, values)


# Life as an estimator.


def check_step_on_tokens_needs_no_fit(estimator: BaseEstimator) -> None:
    """A step whose tag says requires_fit=False transforms before fit, to the same tokens."""
    if get_tags(estimator).requires_fit:
        raise SkipTest("it learns")
    out = fresh(estimator).transform(_tokens())
    expect_close(out, np.asarray(_mapped(estimator, _tokens())), "without fit")


def check_copies_of_step_on_tokens_give_the_same(estimator: BaseEstimator) -> None:
    """A fitted step comes back from pickle with its state, and a clone learns the same."""
    step = _fitted(estimator)
    desired = np.asarray(step.transform(_tokens()))
    back = pickle.loads(pickle.dumps(step))
    expect_close(back.transform(_tokens()), desired, "pickle", tol=1e-12)
    expect_close(_fitted(clone(step)).transform(_tokens()), desired, "clone", tol=1e-12)


def check_set_output_on_tokens_is_harmless(estimator: BaseEstimator) -> None:
    """Asked for data frames, which cannot hold tokens, a step gives tokens as before."""
    try:
        import pandas as pd
    except ImportError:
        raise SkipTest("pandas is not installed") from None
    desired = np.asarray(_mapped(estimator, _tokens()))
    step = fresh(estimator).set_output(transform="pandas")
    call(step.fit, _tokens(), np.arange(N_SAMPLES) % 2, step)
    with config_context(transform_output="pandas"):
        out = step.transform(_tokens())
    expect(isinstance(out, TokenArray), f"set_output made of tokens a {type(out).__name__}.")
    expect_close(out, desired, "set_output", tol=1e-12)
    pipeline = make_pipeline(fresh(estimator), TokenPooling()).set_output(transform="pandas")
    frame = pipeline.fit(_tokens(), np.arange(N_SAMPLES) % 2).transform(_tokens())
    expect(isinstance(frame, pd.DataFrame), f"set_output gave a {type(frame).__name__}.")


def check_tokens_given_are_not_changed(estimator: BaseEstimator) -> None:
    """Neither fit nor the reading of the result writes to X."""
    values = _values()
    for given in (_tokens(values), _tokens(torch.from_numpy(values))):
        np.asarray(_mapped(estimator, given))
        expect((values == _values()).all(), "The tokens were written to.")


def check_transform_of_tokens_changes_no_state(estimator: BaseEstimator) -> None:
    """transform, and the reading of its result, leave every attribute as it was."""
    step = _fitted(estimator)
    step.transform(_tokens())
    with unchanged(step, "transform"):
        np.asarray(step.transform(_tokens()[:3]))


def check_attributes_learned_from_tokens_are_on_the_host(estimator: BaseEstimator) -> None:
    """Fitted attributes are not tensors, also after a fit of tensors."""
    step = _fitted(estimator, _tokens(torch.from_numpy(_values())))
    tensors = [name for name, value in vars(step).items() if isinstance(value, torch.Tensor)]
    expect(not tensors, f"{tensors} are tensors; fitted attributes are numpy arrays.")


def check_prefix_tokens_stay_as_they_are(estimator: BaseEstimator) -> None:
    """A step on patches leaves the class token and registers alone."""
    out = _mapped(estimator, _tokens())
    expect_close(np.asarray(out)[:, :N_PREFIX], _values()[:, :N_PREFIX], "prefix tokens")


# Of row steps alone.


def check_tokens_are_mapped_one_by_one(estimator: BaseEstimator) -> None:
    """A step fitted on vectors maps each token as it maps that vector."""
    rows = np.random.default_rng(1).normal(size=(40, N_FEATURES))
    step = fresh(estimator)
    call(step.fit, rows, np.arange(len(rows)) % 2, step)
    X = _values()
    desired = step.transform(X.reshape(-1, N_FEATURES)).reshape(*X.shape[:2], -1)
    expect_close(step.transform(X), desired, "tokens and their vectors", tol=1e-9)
    expect_close(step.transform(_tokens(X)), desired, "TokenArray and its vectors", tol=1e-9)


def check_fit_on_tokens_equals_fit_on_their_vectors(estimator: BaseEstimator) -> None:
    """A step learns from all real tokens as from a table of them."""
    if get_tags(estimator).target_tags.required:
        raise SkipTest("it learns from labels, of which a sample has one for all its tokens")
    X, mask = _values(), _mask()
    on_tokens = fresh(estimator).fit(_tokens(X, mask))
    on_rows = fresh(estimator).fit(X[mask])
    probe = np.random.default_rng(1).normal(size=(9, N_FEATURES))
    expect_close(on_tokens.transform(probe), on_rows.transform(probe), "fit on tokens", tol=1e-6)


def check_places_of_tokens_are_kept(estimator: BaseEstimator) -> None:
    """As many tokens come as were given, on the same grid, under the same mask."""
    mask = _mask()
    out = _mapped(estimator, _tokens(mask=mask))
    expect(out.shape[:2] == (N_SAMPLES, N_TOKENS), f"{(N_SAMPLES, N_TOKENS)} gave {out.shape}.")
    expect(out.grid == GRID, f"The grid {GRID} became {out.grid}.")
    expect((out.mask == mask).all(), "The mask is another.")


_SHARED = (
    check_token_array_stays_lazy,
    check_lazy_tokens_equal_those_in_memory,
    check_array_of_tokens_gives_array,
    check_tensor_of_tokens_gives_tensor,
    check_map_gives_map,
    check_ragged_samples_equal_samples_alone,
    check_facts_of_tokens_hold,
    check_float_type_of_tokens_is_kept,
    check_half_precision_tokens_are_widened,
    check_masked_tokens_leak_nowhere,
    check_full_mask_of_tokens_equals_no_mask,
    check_view_of_tokens_equals_view,
    check_batches_of_tokens_do_not_matter,
    check_pooling_after_step_equals_pooled_array,
    check_store_keeps_steps_apart,
    check_unreadable_sample_of_tokens_is_nan,
    check_bad_token_is_named_by_its_sample,
    check_other_width_of_tokens_is_refused,
    check_other_ranks_of_tokens_are_refused,
    check_step_on_tokens_needs_no_fit,
    check_copies_of_step_on_tokens_give_the_same,
    check_set_output_on_tokens_is_harmless,
    check_tokens_given_are_not_changed,
    check_transform_of_tokens_changes_no_state,
    check_attributes_learned_from_tokens_are_on_the_host,
)

TOKEN_MAP_CHECKS = (*_SHARED, check_prefix_tokens_stay_as_they_are)

ROW_MAP_CHECKS = (
    *_SHARED,
    check_tokens_are_mapped_one_by_one,
    check_fit_on_tokens_equals_fit_on_their_vectors,
    check_places_of_tokens_are_kept,
)
