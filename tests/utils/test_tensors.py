# SPDX-License-Identifier: BSD-3-Clause
"""Between numpy and torch: the same numbers, shared where that is safe, written to never."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skpool.utils import as_tensor, full_float32, numpy_or_tensor, unit_rows

SHAPES = npst.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
DTYPES = st.sampled_from(["<f4", ">f4", "<f8", ">f8", "<f2", "<i8", ">i4", "u1", "?"])


@st.composite
def views(draw):
    """Arrays of any type and any strides, negative and zero ones included."""
    array = draw(npst.arrays(draw(DTYPES), draw(SHAPES)))
    if draw(st.booleans()):
        array = array.T
    index = tuple(slice(None, None, draw(st.sampled_from([1, -1, 2, -2]))) for _ in array.shape)
    array = array[index]
    if draw(st.booleans()) and array.ndim < 4:
        array = np.broadcast_to(array, (3, *array.shape))
    if draw(st.booleans()):
        array.flags.writeable = False
    return array


@settings(deadline=None, max_examples=150)
@given(views())
def test_as_tensor_holds_the_same_numbers(array):
    tensor = as_tensor(array)
    assert tuple(tensor.shape) == array.shape
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_as_tensor_negative_strides_do_not_end_the_process():
    array = np.arange(6.0).reshape(2, 3)[::-1, ::-1]
    assert as_tensor(array).tolist() == [[5.0, 4.0, 3.0], [2.0, 1.0, 0.0]]


def test_as_tensor_shares_memory():
    array = np.zeros(3)
    array[1] = 5
    tensor = as_tensor(array)
    array[1] = 7
    assert tensor.tolist() == [0.0, 7.0, 0.0]


@pytest.mark.filterwarnings("error")
def test_as_tensor_read_only_map_neither_warns_nor_copies(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(4.0))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    tensor = as_tensor(mapped)
    assert tensor.data_ptr() == mapped.ctypes.data
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_as_tensor_of_a_tensor_is_detached_and_shared():
    tensor = torch.ones(2, requires_grad=True)
    result = as_tensor(tensor)
    assert not result.requires_grad and result.data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("given_dtype", "wanted"),
    [("float16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_numpy_or_tensor_widens_half_precision_alone(given_dtype, wanted):
    array = np.ones((2, 2), dtype=given_dtype)
    tensor, restore = numpy_or_tensor(array)
    assert str(tensor.dtype) == f"torch.{wanted}"
    back = restore(tensor * 2)
    assert isinstance(back, np.ndarray) and back.dtype == wanted and (back == 2).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numpy_or_tensor_gives_tensors_for_tensors(dtype):
    tensor, restore = numpy_or_tensor(torch.ones(2, dtype=dtype))
    assert isinstance(restore(tensor), torch.Tensor)
    assert restore(tensor.double()).dtype == tensor.dtype != torch.float16


def test_numpy_or_tensor_restores_the_type_after_wider_arithmetic():
    _, restore = numpy_or_tensor(np.ones(2, dtype=np.float32))
    assert restore(torch.ones(2, dtype=torch.float64)).dtype == np.float32


magnitudes = st.just(0.0) | st.floats(1e-100, 1e100) | st.floats(-1e100, -1e-100)
rows = npst.arrays(np.float64, (3, 4), elements=magnitudes)


@settings(deadline=None, max_examples=100)
@given(rows)
def test_unit_rows_are_what_numpy_gives(X):
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    expected = np.divide(X, norms, out=np.zeros_like(X), where=norms > 0)
    np.testing.assert_allclose(unit_rows(torch.from_numpy(X)).numpy(), expected, rtol=1e-12)


def test_unit_rows_float32_does_not_overflow():
    X = torch.full((1, 4), 1e30)
    assert unit_rows(X).tolist() == [[0.5] * 4]


def test_unit_rows_keeps_the_float_type_and_the_input():
    X = torch.tensor([[3.0, 4.0]])
    assert unit_rows(X).dtype == torch.float32
    assert X.tolist() == [[3.0, 4.0]]


def test_unit_rows_divides_along_the_last_axis():
    X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(unit_rows(X).norm(dim=2), torch.ones(2, 3))


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_full_float32_is_in_force_within_and_put_back_after(setting):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        with pytest.raises(KeyError), full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)
