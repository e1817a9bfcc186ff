# SPDX-License-Identifier: BSD-3-Clause
"""Fingerprints: equal for equal values in every process, different for everything else."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from skpool.utils import fingerprint

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def canonical(value: object) -> str:
    """A text by which two values are told apart, types and the sign of zero included."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k!r}:{canonical(value[k])}" for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return f"{type(value).__name__}({value!r})"


@settings(deadline=None, max_examples=60)
@given(plain, plain)
def test_equal_exactly_for_equal_values(a, b):
    assert (fingerprint(a) == fingerprint(b)) == (canonical(a) == canonical(b))


@settings(deadline=None, max_examples=30)
@given(st.lists(plain, max_size=4), st.integers(0, 4))
def test_nesting_counts(parts, cut):
    assume(0 < cut < len(parts))
    assert fingerprint(parts) != fingerprint([parts[:cut], parts[cut:]])


DIFFERENT = {
    "integer": 1,
    "float": 1.0,
    "bool": True,
    "text": "1",
    "bytes": b"1",
    "list": [1],
    "nested list": [[1]],
    "two parts": [1, 1],
    "None": None,
    "text None": "None",
    "dict": {"1": 1},
    "pairs": [["1", 1]],
    "float64 array": np.ones(1),
    "float32 array": np.ones(1, dtype=np.float32),
    "int array": np.ones(1, dtype=np.int64),
    "column": np.ones((1, 1)),
    "0-d array": np.ones(()),
    "big-endian array": np.ones(1, dtype=">f8"),
    "empty array": np.ones(0),
    "empty column": np.ones((0, 1)),
}


def test_types_shapes_and_containers_differ():
    assert len({fingerprint(value) for value in DIFFERENT.values()}) == len(DIFFERENT)


def test_parts_are_not_joined():
    assert fingerprint("ab", "c") != fingerprint("a", "bc") != fingerprint("abc")


def test_order_of_keys_does_not_matter():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_memory_layout_does_not_matter():
    X = np.arange(6.0).reshape(2, 3)
    assert fingerprint(X) == fingerprint(np.asfortranarray(X)) == fingerprint(X[::-1].copy()[::-1])


def test_numpy_scalar_equals_the_python_number():
    assert fingerprint(np.float64(2.5), np.int64(3)) == fingerprint(2.5, 3)


def test_tuple_equals_list():
    assert fingerprint((1, 2)) == fingerprint([1, 2])


@pytest.mark.parametrize("value", [object(), len, {1, 2}, np.array([object()])], ids=str)
def test_values_without_a_stable_form_are_refused(value):
    with pytest.raises(TypeError, match="has no stable fingerprint"):
        fingerprint("a", [value])


def test_another_process_gives_the_same():
    code = "from skpool.utils import fingerprint; print(fingerprint('a', {'x': 1.5, 'y': [None]}))"
    # Another seed for the hash of text, on which nothing may depend.
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == fingerprint("a", {"x": 1.5, "y": [None]})


def test_is_32_hexadecimal_digits():
    assert len(fingerprint()) == 32 and int(fingerprint(), 16) >= 0
