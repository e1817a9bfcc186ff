# SPDX-License-Identifier: BSD-3-Clause
"""What counts as vectors and as labels, and how everything else is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.base import BaseEstimator

from skpool.utils import (
    check_finite,
    check_labels,
    check_squares,
    squares_fit,
    validate_vectors,
)


class Step(BaseEstimator):
    """Something whose width is remembered."""


both = pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])


# Finite numbers.


@settings(deadline=None, max_examples=100)
@given(npst.arrays(st.sampled_from(["f2", "f4", "f8"]), npst.array_shapes(min_dims=1, max_dims=3)))
def test_check_finite_agrees_with_numpy(X):
    try:
        check_finite(X)
    except ValueError as error:
        bad = np.flatnonzero(~np.isfinite(X).reshape(len(X), -1).all(axis=1))
        assert f"row {bad[0]} " in str(error)
        assert f"({len(bad)} such rows)" in str(error)
    else:
        assert np.isfinite(X).all()


@both
def test_check_finite_accepts_large_values_whose_sum_overflows(wrap):
    check_finite(wrap(np.full((3, 2), 1.7e308)))


@both
def test_check_finite_refuses_infinities_whose_sum_is_nan(wrap):
    with pytest.raises(ValueError, match=r"infinity in row 0 \(2 such rows\)"):
        check_finite(wrap(np.array([[np.inf], [-np.inf], [1.0]])))


@both
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squares_that_fit_are_those_that_can_be_summed(wrap, dtype):
    for exponent in range(-290, 250):
        X = np.full((3, 100), 2.0 ** (exponent if dtype == "float64" else exponent / 2))
        X = X.astype(dtype)
        with np.errstate(all="ignore"):
            sums = np.square(2 * X).sum(axis=1)
            relative = sums / (400 * np.square(X[:, 0].astype(np.longdouble)))
        if squares_fit(wrap(X)):
            np.testing.assert_allclose(relative.astype(float), 1.0, rtol=1e-5)
            check_squares(wrap(X))
        else:
            with pytest.raises(ValueError, match=r"scale X (up|down)"):
                check_squares(wrap(X))


@both
def test_squares_of_zeros_fit_and_of_half_precision_are_float32(wrap):
    assert squares_fit(wrap(np.zeros((2, 3))))
    assert squares_fit(wrap(np.full((2, 3), 6e4, dtype=np.float16)))
    assert squares_fit(wrap(np.full((2, 3), 6e-8, dtype=np.float16)))


@both
def test_rows_near_zero_are_refused_where_they_are_all_rows_only(wrap):
    X = np.full((2, 3), 1e-30, dtype=np.float32)
    check_squares(wrap(X), vanishing=False)
    validate_vectors(BaseEstimator(), wrap(X))
    with pytest.raises(ValueError, match="at most 1e-30, and their squares are 0 in float32"):
        validate_vectors(BaseEstimator(), wrap(X), squares=True)


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_check_squares_names_what_is_not_finite(wrap, bad):
    assert not squares_fit(wrap(np.array([[1.0, bad]])))
    with pytest.raises(ValueError, match=r"contains (NaN|infinity) in row 0"):
        check_squares(wrap(np.array([[1.0, bad]])))


def test_check_finite_names_argument_and_kind():
    with pytest.raises(ValueError, match="Input bank contains NaN in row 1"):
        check_finite(np.array([[0.0], [np.nan]]), name="bank")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_check_finite_half_precision_whose_sum_overflows(dtype):
    check_finite(torch.full((4, 4), 6e4, dtype=dtype))


def test_check_finite_accepts_nothing():
    check_finite(np.empty((0, 3)))
    check_finite(np.empty((3, 0)))


# Vectors.


@both
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_vectors_keep_container_and_float_type(wrap, dtype):
    X = wrap(np.ones((2, 3), dtype=dtype))
    out = validate_vectors(Step(), X)
    assert type(out) is type(X) and out.dtype == X.dtype


@both
def test_whole_numbers_become_float64(wrap):
    out = validate_vectors(Step(), wrap(np.ones((2, 3), dtype=np.int32)))
    assert str(out.dtype).removeprefix("torch.") == "float64"


@both
def test_width_is_remembered_and_compared(wrap):
    step = Step()
    validate_vectors(step, wrap(np.ones((2, 3))))
    assert step.n_features_in_ == 3
    with pytest.raises(ValueError, match=r"X has 4 features, but Step is expecting 3 features"):
        validate_vectors(step, wrap(np.ones((2, 4))), reset=False)


@both
def test_width_is_taken_anew_on_reset(wrap):
    step = Step()
    validate_vectors(step, wrap(np.ones((2, 3))))
    validate_vectors(step, wrap(np.ones((2, 5))))
    assert step.n_features_in_ == 5


@both
def test_step_without_fit_takes_any_width(wrap):
    step = Step()
    validate_vectors(step, wrap(np.ones((2, 3))), reset=False)
    assert not hasattr(step, "n_features_in_")


@both
@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3), (3, 0)])
def test_other_ranks_and_empty_arrays_are_refused(wrap, shape):
    with pytest.raises(ValueError, match=r"[Ee]xpected|Found"):
        validate_vectors(Step(), wrap(np.ones(shape)))


@both
def test_too_few_rows_are_refused(wrap):
    with pytest.raises(ValueError, match="minimum of 2 is required by Step"):
        validate_vectors(Step(), wrap(np.ones((1, 3))), min_samples=2)


@both
def test_bad_row_is_named(wrap):
    X = np.ones((5, 2))
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN in row 3"):
        validate_vectors(Step(), wrap(X))


def test_tensor_is_detached():
    assert not validate_vectors(Step(), torch.ones(2, 2, requires_grad=True)).requires_grad


def test_tensor_after_a_frame_forgets_the_names():
    pd = pytest.importorskip("pandas")
    step = Step()
    validate_vectors(step, pd.DataFrame({"a": [1.0], "b": [2.0]}))
    assert step.feature_names_in_.tolist() == ["a", "b"]
    validate_vectors(step, torch.ones(1, 3))
    assert not hasattr(step, "feature_names_in_")


def test_array_is_not_copied():
    X = np.ones((2, 3), dtype=np.float32)
    assert np.shares_memory(validate_vectors(Step(), X), X)


# Labels.


@pytest.mark.parametrize(
    "y",
    [
        [3, -1, 0],
        ["b", "a", "b"],
        [True, False, True],
        [1.0, 2.0, -5.0],
        np.array(["b", "a", "b"], dtype=object),
        np.array([1, 2, 3], dtype=object),
        np.array([1, 2, 3], dtype=np.uint8),
    ],
    ids=str,
)
def test_labels_are_returned_as_they_are(y):
    out = check_labels(y, n_samples=3)
    assert out.tolist() == list(y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "target y is None"),
        ([1, None, 2], r"(NaN or None|missing|None).*position 1"),
        ([1.0, np.nan, 2.0], "position 1"),
        ([1.0, np.inf, 2.0], "position 1"),
        (["a", None, "b"], "text|None"),
        (np.array(["a", None, "b"], dtype=object), "position 1"),
        (np.array(["a", np.nan, "b"], dtype=object), "position 1"),
        ([1, "a", 2], "mixes text"),
        (np.array([1, "a", 2], dtype=object), "mixes text"),
        ([0.5, 1.5, 2.5], "continuous"),
        (np.array([0.5, 1, 2], dtype=object), "continuous"),
        ([1j, 2j, 3j], "Complex data not supported"),
        (np.array(["2020-01-01"] * 3, dtype="datetime64[D]"), "label type"),
        (np.array([(1,), (2, 3), "x"], dtype=object), "text|label type"),
        ([1, 2], "3 rows and y has 2"),
        ([1, 2, 3, 4], "3 rows and y has 4"),
        ([[1, 2], [3, 4], [5, 6]], "1d array"),
    ],
    ids=str,
)
def test_bad_labels_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        check_labels(y, n_samples=3)


def test_missing_value_of_pandas_is_refused():
    pd = pytest.importorskip("pandas")
    with pytest.raises((ValueError, TypeError)):
        check_labels(pd.Series(["a", pd.NA, "b"]), n_samples=3)
    with pytest.raises((ValueError, TypeError)):
        check_labels(pd.Series([1, pd.NA, 2], dtype="Int64"), n_samples=3)


def test_column_of_labels_warns_and_is_flattened():
    with pytest.warns(UserWarning, match="column-vector"):
        assert check_labels([[1], [2]], n_samples=2).tolist() == [1, 2]
